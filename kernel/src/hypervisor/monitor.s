# The monitor: what goes from one start of the domain to the next, and back if the next one does not accept. It is copied into the reserve,
# behind the header, and runs there, so that no image can be in its way. `handover.rs` has the header's layout.
#
# It does not return. Memory below 1 GiB is mapped at its own address by its own tables.

.set HEADER_SIZE,     8192
.set FIFO_SIZE,       4096

.set TABLES,          0
.set STACK_TOP,       8
.set SEGMENTS,        16 + 6
.set GATES,           32 + 6
.set IMAGE,           48
.set SLOT,            56
.set EXCHANGE,        64
.set ENTRY,           72
.set WAY_BACK,        80
.set IS_TRIAL,        88
.set LIMIT,           96
.set IS_FRESH,        104
.set OUTCOME,         112
.set VECTOR,          120
.set ERROR_CODE,      128
.set FAULT_RIP,       136
.set FAULT_CR2,       144

.set OUTCOME_FAULT,   1
.set OUTCOME_TIMEOUT, 2
.set OUTCOME_REFUSED, 3

.set CODE_SELECTOR,   8
.set TASK_SELECTOR,   16

# The local APIC by its registers (Intel's manual volume 3, section 11.12).
.set X2APIC_EOI,      0x80b
.set X2APIC_SPURIOUS, 0x80f
.set X2APIC_TIMER,    0x832
.set X2APIC_COUNT,    0x838
.set X2APIC_DIVIDE,   0x83e
.set APIC_ENABLED,    0x1ff
.set TIMER_MASKED,    1 << 16
.set TIMER_VECTOR,    33
.set UPCALL_VECTOR,   32
.set INTERRUPTS_ON,   1 << 9
.set MONITOR_SIZE,    4096
.set DIVIDE_BY_128,   0xa

.section .rodata.monitor, "a"
.code64
.balign 16
.global monitor_start
.global monitor_enter
.global monitor_refuse
.global monitor_stubs
.global monitor_timer
.global monitor_upcall
.global monitor_end
monitor_start:

# Enters the image that the header names.
monitor_enter:
    cli
    cld
    lea rbx, [rip + monitor_start - HEADER_SIZE - FIFO_SIZE]
    mov rax, [rbx + TABLES]
    mov cr3, rax
    mov rsp, [rbx + STACK_TOP]
    lgdt [rbx + SEGMENTS]
    push CODE_SELECTOR
    lea rax, [rip + 1f]
    push rax
    retfq
1:
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov eax, TASK_SELECTOR
    ltr ax
    lidt [rbx + GATES]
    call exchange_images
    cmp qword ptr [rbx + IS_TRIAL], 0
    je 2f
    # Before the trial's first instruction, and with interrupts on: whatever the image does, time ends it.
    mov rsi, [rbx + LIMIT]
    test rsi, rsi
    jz 2f
    mov eax, APIC_ENABLED
    mov ecx, X2APIC_SPURIOUS
    call write_register
    mov eax, DIVIDE_BY_128
    mov ecx, X2APIC_DIVIDE
    call write_register
    mov eax, TIMER_VECTOR
    mov ecx, X2APIC_TIMER
    call write_register
    mov eax, esi
    mov ecx, X2APIC_COUNT
    call write_register
    # Upcalls under way come now.
    mov esi, 8
1:
    sti
    nop
    nop
    nop
    cli
    dec esi
    jnz 1b
    mov rdi, rbx
    mov rsi, [rbx + IS_FRESH]
    mov rax, [rbx + ENTRY]
    sti
    jmp rax
2:
    mov rdi, rbx
    mov rsi, [rbx + IS_FRESH]
    jmp [rbx + ENTRY]

# The image that is tried does not accept, and has written the reason.
monitor_refuse:
    cli
    lea rbx, [rip + monitor_start - HEADER_SIZE - FIFO_SIZE]
    mov qword ptr [rbx + OUTCOME], OUTCOME_REFUSED
    jmp go_back

monitor_timer:
    lea rbx, [rip + monitor_start - HEADER_SIZE - FIFO_SIZE]
    mov rax, [rsp]
    mov [rbx + FAULT_RIP], rax
    mov qword ptr [rbx + OUTCOME], OUTCOME_TIMEOUT
    xor eax, eax
    mov ecx, X2APIC_EOI
    call write_register
    jmp go_back

# An upcall that was under way when upcalls were stopped. In the monitor it is dropped, and interrupts are off when it returns; an image has
# lost what it kept below its stack pointer.
monitor_upcall:
    push rax
    push rcx
    mov rax, [rsp + 16]
    lea rcx, [rip + monitor_start]
    sub rax, rcx
    cmp rax, MONITOR_SIZE
    pop rcx
    pop rax
    jae 1f
    and dword ptr [rsp + 16], ~INTERRUPTS_ON
    iretq
1:
    push 0
    push UPCALL_VECTOR
fault:
    lea rbx, [rip + monitor_start - HEADER_SIZE - FIFO_SIZE]
    pop rax
    mov [rbx + VECTOR], rax
    pop rax
    mov [rbx + ERROR_CODE], rax
    mov rax, [rsp]
    mov [rbx + FAULT_RIP], rax
    mov rax, cr2
    mov [rbx + FAULT_CR2], rax
    mov qword ptr [rbx + OUTCOME], OUTCOME_FAULT

# The image before this one again, which finds its own content where it was.
go_back:
    cld
    mov rax, [rbx + TABLES]
    mov cr3, rax
    mov rsp, [rbx + STACK_TOP]
    cmp qword ptr [rbx + IS_TRIAL], 0
    je give_up
    mov qword ptr [rbx + IS_TRIAL], 0
    cmp qword ptr [rbx + LIMIT], 0
    je 1f
    mov eax, TIMER_MASKED
    mov ecx, X2APIC_TIMER
    call write_register
1:
    call exchange_images
    mov rdi, rbx
    xor esi, esi
    jmp [rbx + WAY_BACK]

# A fault with no way back: the processor stops the domain.
give_up:
    push 0
    push 0
    lidt [rsp]
    ud2

# Register ecx := eax.
write_register:
    xor edx, edx
    wrmsr
    ret

exchange_images:
    mov rsi, [rbx + IMAGE]
    mov rdi, [rbx + SLOT]
    mov rcx, [rbx + EXCHANGE]
    shr rcx, 3
    jz 2f
1:
    mov rax, [rsi]
    mov rdx, [rdi]
    mov [rsi], rdx
    mov [rdi], rax
    add rsi, 8
    add rdi, 8
    dec rcx
    jnz 1b
2:
    ret

# 32 entries of 16 bytes, as those of `trap.rs`.
.balign 16
monitor_stubs:
.set monitor_vector, 0
.rept 32
.balign 16
.if ((0x60227d00 >> monitor_vector) & 1) == 0
    push 0
.endif
    push monitor_vector
    jmp fault
.set monitor_vector, monitor_vector + 1
.endr
monitor_end:
