//! A page that another domain or Xen writes while we read: raw accesses only, no Rust reference to its bytes can exist.
//!
//! Every access is volatile or in assembly, so the compiler neither repeats nor invents one, and keeps their order.

use core::arch::asm;
use core::ptr::{NonNull, with_exposed_provenance_mut};

use super::ranges::PAGE_SIZE;

const SIZE: usize = 4096;
const _: () = assert!(SIZE as u64 == PAGE_SIZE);

/// One mapped page. Copies name the same page.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharedPage {
    base: NonNull<u8>,
}

// SAFETY: the address means the same everywhere on the one processor, and all accesses are raw.
unsafe impl Send for SharedPage {}

impl SharedPage {
    /// The page at a virtual address; `None` for address 0.
    ///
    /// # Safety
    /// A page must be mapped there, present and writable, as long as this value or a copy of it is used, and hold nothing that Rust
    /// code owns.
    pub(super) unsafe fn at(address: u64) -> Option<Self> {
        let base = with_exposed_provenance_mut(usize::try_from(address).ok()?);
        NonNull::new(base).map(|base| Self { base })
    }

    /// Where it is mapped.
    pub(super) const fn base(self) -> NonNull<u8> {
        self.base
    }

    /// Loads the word at `offset` once; 0 for an offset that is outside or not a multiple of 4.
    pub(super) fn load(self, offset: usize) -> u32 {
        let Some(word) = self.word(offset) else {
            return 0;
        };
        // SAFETY: `word` checked that the four bytes lie in the mapped page, aligned.
        unsafe { word.read_volatile() }
    }

    /// Stores the word at `offset`; nothing for an offset that is outside or not a multiple of 4.
    pub(super) fn store(self, offset: usize, value: u32) {
        if let Some(word) = self.word(offset) {
            // SAFETY: `word` checked that the four bytes lie in the mapped page, aligned.
            unsafe { word.write_volatile(value) }
        }
    }

    /// Copies out of the page, each byte once; bytes past its end read as 0.
    pub(super) fn read(self, offset: usize, into: &mut [u8]) {
        let inside = SIZE.saturating_sub(offset).min(into.len());
        let (copied, outside) = into.split_at_mut(inside);
        outside.fill(0);
        if let Some(from) = self.bytes(offset) {
            // SAFETY: `inside` bytes from `offset` lie in the mapped page; `copied` is ours and as long; they cannot overlap,
            // since the page holds nothing that Rust owns.
            unsafe { copy(from, copied.as_mut_ptr(), inside) }
        }
    }

    /// Copies into the page; bytes past its end are lost.
    pub(super) fn write(self, offset: usize, from: &[u8]) {
        let inside = SIZE.saturating_sub(offset).min(from.len());
        if let Some(to) = self.bytes(offset) {
            // SAFETY: as in `read`, the other way round.
            unsafe { copy(from.as_ptr(), to, inside) }
        }
    }

    fn word(self, offset: usize) -> Option<*mut u32> {
        let inside = offset < SIZE && offset.is_multiple_of(size_of::<u32>());
        inside
            .then(|| self.bytes(offset).map(<*mut u8>::cast))
            .flatten()
    }

    fn bytes(self, offset: usize) -> Option<*mut u8> {
        (offset < SIZE).then(|| self.base.as_ptr().wrapping_add(offset))
    }
}

/// Copies `length` bytes upwards, each read once and written once.
///
/// # Safety
/// `from` must be readable and `to` writable for `length` bytes; what Rust owns of `to` must be borrowed for it.
unsafe fn copy(from: *const u8, to: *mut u8, length: usize) {
    // SAFETY: the caller vouches for both areas; the direction flag is clear by the calling convention; no stack is used.
    unsafe {
        asm!("rep movsb", inout("rcx") length => _, inout("rsi") from => _, inout("rdi") to => _,
             options(nostack, preserves_flags));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page and a neighbour that must stay as it is.
    #[repr(align(4096))]
    struct Memory([u8; 2 * SIZE]);

    fn with_page(test: impl FnOnce(SharedPage)) -> Box<Memory> {
        let memory = Box::into_raw(Box::new(Memory([0; 2 * SIZE])));
        // SAFETY: page-sized, aligned and alive until it is made a box again below.
        let page = unsafe { SharedPage::at(memory.expose_provenance() as u64) }.unwrap();
        test(page);
        // SAFETY: from `into_raw` above; `page` is used no more.
        unsafe { Box::from_raw(memory) }
    }

    #[test]
    fn words_and_bytes_inside() {
        let memory = with_page(|page| {
            page.store(4092, 0x0403_0201);
            assert_eq!(page.load(4092), 0x0403_0201);
            page.write(10, b"abc");
            let mut back = [0; 3];
            page.read(10, &mut back);
            assert_eq!(&back, b"abc");
        });
        assert_eq!(memory.0[4092..4096], [1, 2, 3, 4]);
    }

    #[test]
    fn outside_reads_zero_and_writes_nothing() {
        let memory = with_page(|page| {
            page.store(4096, 1);
            page.store(2, u32::MAX);
            page.store(usize::MAX, 1);
            assert_eq!(page.load(4096) | page.load(2) | page.load(usize::MAX), 0);
            page.write(4095, b"xy");
            page.write(5000, b"xy");
            let mut back = [9; 3];
            page.read(4095, &mut back);
            assert_eq!(back, [b'x', 0, 0]);
            page.read(usize::MAX, &mut back);
            assert_eq!(back, [0, 0, 0]);
        });
        assert!(memory.0[..4095].iter().all(|byte| *byte == 0));
        assert!(memory.0[SIZE..].iter().all(|byte| *byte == 0));
    }
}
