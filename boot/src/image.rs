//! Where the linker put the image (`linker.ld`).

use kernel::boot_info::ImageLayout;
use kernel::hypervisor::ranges::AddressRange;

/// Symbols of the linker script and of `entry.s`: only their addresses mean something.
mod symbol {
    unsafe extern "C" {
        pub(super) static image_start: u8;
        pub(super) static text_start: u8;
        pub(super) static sealed_start: u8;
        pub(super) static data_start: u8;
        pub(super) static kept_start: u8;
        pub(super) static kept_end: u8;
        pub(super) static image_end: u8;
        pub(super) static restart_entry: u8;
        pub(super) static boot_stack_guard: u8;
        pub(super) static build_id_note: u8;
        pub(super) static build_id_note_end: u8;
    }
}

/// Bytes of an ELF note before the descriptor: three words and the owner "GNU".
const NOTE_HEADER_SIZE: usize = 16;

/// The layout of this image.
pub(super) fn layout() -> ImageLayout {
    let text = address_of(&raw const symbol::text_start);
    let sealed = address_of(&raw const symbol::sealed_start);
    let data = address_of(&raw const symbol::data_start);
    ImageLayout {
        rodata: range(address_of(&raw const symbol::image_start), text),
        text: range(text, sealed),
        sealed: range(sealed, data),
        kept: range(
            address_of(&raw const symbol::kept_start),
            address_of(&raw const symbol::kept_end),
        ),
        data: range(data, address_of(&raw const symbol::image_end)),
        restart_entry: address_of(&raw const symbol::restart_entry),
        stack_guard: address_of(&raw const symbol::boot_stack_guard),
        build_id: build_id(),
    }
}

fn range(start: u64, end: u64) -> AddressRange {
    AddressRange { start, end }
}

fn address_of(symbol: *const u8) -> u64 {
    symbol.addr() as u64
}

fn build_id() -> &'static [u8] {
    let note = &raw const symbol::build_id_note;
    let size = (&raw const symbol::build_id_note_end).addr() - note.addr();
    // SAFETY: the linker put this one note between the two symbols, in read-only data.
    let note = unsafe { core::slice::from_raw_parts(note, size) };
    note.get(NOTE_HEADER_SIZE..).unwrap_or_default()
}
