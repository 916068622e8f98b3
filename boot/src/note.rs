//! The ELF note by which Xen's domain builder, and QEMU's `-kernel`, find the 32-bit PVH entry.

use core::arch::global_asm;

/// `XEN_ELFNOTE_PHYS32_ENTRY` (elfnote.h).
const PHYS32_ENTRY: u32 = 18;

// The descriptor has eight bytes, because QEMU reads that many.
global_asm!(
    ".section .note.Xen, \"a\", @note",
    ".balign 4",
    ".long 4, 8, {kind}",
    ".asciz \"Xen\"",
    ".quad pvh_entry",
    ".previous",
    kind = const PHYS32_ENTRY,
);
