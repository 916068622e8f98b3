# The memory functions that the compiler calls: on this target they come from a C library, which is not here.
# In assembly, because a loop in Rust may be compiled into a call to itself.
#
# In all: rdi = destination or first, rsi = source, byte or second, rdx = length. Short lengths go in a few moves, since `rep` takes
# long to begin.

.section .text.memcpy, "ax"
.global memcpy
memcpy:
    mov rax, rdi
    cmp rdx, 16
    jbe copy_up_to_16
    cmp rdx, 32
    ja 2f
    movups xmm0, [rsi]
    movups xmm1, [rsi + rdx - 16]
    movups [rdi], xmm0
    movups [rdi + rdx - 16], xmm1
    ret
2:
    mov rcx, rdx
    rep movsb
    ret

# All is loaded before anything is stored, so the areas may overlap.
copy_up_to_16:
    cmp edx, 8
    jae 8f
    cmp edx, 4
    jae 4f
    test edx, edx
    je 2f
    # 1 to 3 bytes: the first, the middle and the last, which may be the same.
    mov r8, rdx
    shr r8
    mov cl, [rsi]
    mov r9b, [rsi + r8]
    mov r10b, [rsi + rdx - 1]
    mov [rdi], cl
    mov [rdi + r8], r9b
    mov [rdi + rdx - 1], r10b
2:
    ret
4:
    mov ecx, [rsi]
    mov r8d, [rsi + rdx - 4]
    mov [rdi], ecx
    mov [rdi + rdx - 4], r8d
    ret
8:
    mov rcx, [rsi]
    mov r8, [rsi + rdx - 8]
    mov [rdi], rcx
    mov [rdi + rdx - 8], r8
    ret

.section .text.memmove, "ax"
.global memmove
memmove:
    # Upwards unless the destination begins inside the source.
    mov rcx, rdi
    sub rcx, rsi
    cmp rcx, rdx
    jae memcpy
    mov rax, rdi
    jmp 3f
2:
    movups xmm0, [rsi + rdx - 16]
    movups [rdi + rdx - 16], xmm0
    sub rdx, 16
3:
    cmp rdx, 16
    ja 2b
    jmp copy_up_to_16

.section .text.memset, "ax"
.global memset
memset:
    mov r8, rdi
    cmp rdx, 16
    jae 2f
    movzx eax, sil
    mov ecx, edx
    rep stosb
    mov rax, r8
    ret
2:
    movzx eax, sil
    mov rcx, 0x0101010101010101
    imul rax, rcx
    cmp rdx, 64
    ja 4f
    # 16 to 64 bytes: whole steps of 16, then the last 16 again.
    movq xmm0, rax
    punpcklqdq xmm0, xmm0
    movups [r8 + rdx - 16], xmm0
3:
    movups [rdi], xmm0
    add rdi, 16
    sub rdx, 16
    cmp rdx, 16
    jae 3b
    mov rax, r8
    ret
4:
    mov rcx, rdx
    rep stosb
    mov rax, r8
    ret

.section .text.memcmp, "ax"
.global memcmp
.global bcmp
memcmp:
bcmp:
    xor ecx, ecx
    jmp 3f
2:
    mov rax, [rdi + rcx]
    mov r8, [rsi + rcx]
    cmp rax, r8
    jne 5f
    add rcx, 8
3:
    lea r9, [rcx + 8]
    cmp r9, rdx
    jbe 2b
    jmp 7f
    # The first difference decides, and the lowest address counts most.
5:
    bswap rax
    bswap r8
    cmp rax, r8
    sbb eax, eax
    or eax, 1
    ret
6:
    movzx eax, byte ptr [rdi + rcx]
    movzx r8d, byte ptr [rsi + rcx]
    sub eax, r8d
    jne 8f
    inc rcx
7:
    cmp rcx, rdx
    jb 6b
    xor eax, eax
8:
    ret
