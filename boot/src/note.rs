//! The ELF notes: by one Xen's domain builder, and QEMU's `-kernel`, find the 32-bit PVH entry; by the other a running instance finds out
//! whether it can be followed by this image (`kernel::next_image`).

use core::arch::global_asm;

use kernel::next_image::{HANDOVER_VERSION, NOTE_KIND, READS_OWN, READS_VERSION};

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

// The checksum is scripts/build-image's to fill in.
global_asm!(
    ".section .note.Ferrostore, \"a\", @note",
    ".balign 4",
    ".long 11, 24, {kind}",
    ".asciz \"Ferrostore\"",
    ".balign 4",
    ".long {handover}, {version}, {own}, 0",
    ".quad restart_entry",
    ".previous",
    kind = const NOTE_KIND,
    handover = const HANDOVER_VERSION,
    version = const READS_VERSION,
    own = const READS_OWN,
);
