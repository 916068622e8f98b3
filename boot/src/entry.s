# PVH entry: from 32-bit protected mode without paging (xen-abi.md section 1) to 64-bit Rust with a stack and SSE.
# In: ebx = physical address of hvm_start_info. Everything but the flat segments is unspecified.
#
# And the entry of every later start in the same domain, in 64-bit mode (the kernel's hypervisor/monitor.s).

.set STACK_SIZE, 128 * 1024

.set CR0_MONITOR_FPU,    1 << 1
.set CR0_EMULATE_FPU,    1 << 2
.set CR0_TASK_SWITCHED,  1 << 3
.set CR0_NUMERIC_ERROR,  1 << 5
.set CR0_WRITE_PROTECT,  1 << 16
.set CR0_PAGING,         1 << 31
.set CR4_PAE,            1 << 5
.set CR4_OSFXSR,         1 << 9
.set CR4_OSXMMEXCPT,     1 << 10
.set EFER,               0xc0000080
.set EFER_LONG_MODE,     1 << 8
.set EFER_NO_EXECUTE,    1 << 11
# Marked as used from the start, so that the processor never changes these tables: they are read-only data, which has a checksum.
.set TABLE, 0x23
.set LARGE_PAGE, 0xe3

# As many bytes as the sealed part and the data have.
.macro copy_words from, to
    mov rsi, offset \from
    mov rdi, offset \to
    mov rcx, offset kept_start
    sub rcx, offset sealed_start
    shr rcx, 3
    rep movsq
.endm

# On the boot stack, with what is in rbx.
.macro call_with_stack function
    fninit
    ldmxcsr [rip + sse_defaults]
    mov rsp, offset boot_stack_top
    xor ebp, ebp
    mov rdi, rbx
    call \function
.endm

.section .text.entry, "ax"
.code32
.global pvh_entry
.global unwinding_is_impossible
pvh_entry:
    cli
    cld
    mov eax, cr4
    or eax, CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT
    mov cr4, eax
    mov eax, offset boot_root_table
    mov cr3, eax
    mov ecx, EFER
    rdmsr
    or eax, EFER_LONG_MODE | EFER_NO_EXECUTE
    wrmsr
    mov eax, cr0
    and eax, ~(CR0_EMULATE_FPU | CR0_TASK_SWITCHED)
    or eax, CR0_PAGING | CR0_WRITE_PROTECT | CR0_NUMERIC_ERROR | CR0_MONITOR_FPU
    mov cr0, eax
    lgdt [boot_segments_pointer]
    # A far jump, which the assembler cannot write in this syntax: opcode, offset, selector.
    .byte 0xea
    .long long_mode
    .word 8

.code64
long_mode:
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov fs, eax
    mov gs, eax
    # The upper half of rbx is unspecified.
    mov ebx, ebx
    copy_words sealed_start, kept_start
    call_with_stack start

# In: rdi = physical address of the handover, rsi = 1 if this image was just loaded, or 0 if it ran before and its data is used up.
# All memory below 1 GiB is mapped at its own address, the descriptor tables are the monitor's, and interrupts may be on.
.global restart_entry
restart_entry:
    cld
    mov rax, offset boot_root_table
    mov cr3, rax
    mov rbx, rdi
    test esi, esi
    jz 1f
    copy_words sealed_start, kept_start
    jmp 2f
1:
    copy_words kept_start, sealed_start
2:
    mov rdi, offset zeroed_start
    mov rcx, offset image_end
    sub rcx, rdi
    shr rcx, 3
    xor eax, eax
    rep stosq
    call_with_stack restart

# Nothing returns here, and nobody unwinds: both are an invalid opcode, which the kernel reports.
unwinding_is_impossible:
    ud2

.section .rodata.boot, "a"
# All exceptions masked, as the processor manuals have it after reset.
sse_defaults:
    .long 0x1f80
    .balign 8
boot_segments:
    .quad 0
    # 64-bit code, ring 0, accessed.
    .quad 0x00209b0000000000
boot_segments_end:
boot_segments_pointer:
    .word boot_segments_end - boot_segments - 1
    .long boot_segments

# Identity map of the first 4 GiB by 2 MiB pages (1 GiB pages are not everywhere). The processor marks entries as accessed
# regardless of its own page rights, so this may be read-only data.
.balign 4096
boot_root_table:
    .quad boot_directory_pointers + TABLE
    .zero 4096 - 8
boot_directory_pointers:
    .quad boot_directories + TABLE
    .quad boot_directories + 0x1000 + TABLE
    .quad boot_directories + 0x2000 + TABLE
    .quad boot_directories + 0x3000 + TABLE
    .zero 4096 - 4 * 8
boot_directories:
    .set address, 0
    .rept 4 * 512
    .quad address + LARGE_PAGE
    .set address, address + 0x200000
    .endr

.section .bss.boot_stack, "aw", @nobits
.balign 4096
.global boot_stack_guard
boot_stack_guard:
    .zero 4096
.global boot_stack_bottom
boot_stack_bottom:
    .zero STACK_SIZE
boot_stack_top:
