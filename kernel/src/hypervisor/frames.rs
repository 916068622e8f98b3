//! Pages of the heap that Xen or the processor must find by their physical address.

use alloc::alloc::{alloc_zeroed, dealloc};
use core::alloc::Layout;
use core::ptr::NonNull;

use super::paging::HEAP_START;
use super::ranges::{PAGE_SIZE, PageRanges};

/// Which page of memory is behind which page of the heap.
#[derive(Debug)]
pub(super) struct HeapFrames {
    /// All memory that the heap has or may get, in the order in which it is mapped.
    pages: PageRanges,
    /// Pages at its beginning that became page tables.
    tables: u64,
}

/// A page of the heap, zeroed, for ever.
pub(super) struct HeapPage {
    /// Its address.
    pub(super) page: NonNull<[u64; 512]>,
    /// Its physical address.
    pub(super) physical: u64,
}

impl HeapFrames {
    /// The heap is mapped to `pages` without the first `tables`.
    pub(super) const fn new(pages: PageRanges, tables: u64) -> Self {
        Self { pages, tables }
    }

    /// Takes a page from the heap; none if it has none.
    pub(super) fn take_page(&self) -> Option<HeapPage> {
        const PAGE: Layout = Layout::new::<HeapTable>();
        // SAFETY: the size is not 0.
        let memory = NonNull::new(unsafe { alloc_zeroed(PAGE) })?;
        if let Some(physical) = self.physical(memory.addr().get() as u64) {
            let page = memory.cast();
            return Some(HeapPage { page, physical });
        }
        // SAFETY: taken above with this layout.
        unsafe { dealloc(memory.as_ptr(), PAGE) };
        None
    }

    fn physical(&self, address: u64) -> Option<u64> {
        let page = address.checked_sub(HEAP_START)? / PAGE_SIZE;
        self.pages.page(self.tables.checked_add(page)?)
    }
}

/// What takes a whole page.
#[repr(C, align(4096))]
struct HeapTable {
    _entries: [u64; 512],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::ranges::AddressRange;

    #[test]
    fn the_heap_lies_in_order_behind_the_tables() {
        let mut pages = PageRanges::default();
        for (start, end) in [(0x1000, 0x4000), (0x8000, 0xa000)] {
            pages.add(AddressRange { start, end });
        }
        let frames = HeapFrames::new(pages, 2);
        let found = [0, 1, 2, 3].map(|page| frames.physical(HEAP_START + page * PAGE_SIZE));
        assert_eq!(found, [Some(0x3000), Some(0x8000), Some(0x9000), None]);
        assert_eq!(frames.physical(HEAP_START - 1), None);
    }

    #[test]
    fn what_is_not_in_the_heap_is_given_back() {
        assert!(
            HeapFrames::new(PageRanges::default(), 0)
                .take_page()
                .is_none()
        );
    }
}
