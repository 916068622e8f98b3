//! The window: the only addresses at which pages of Xen and of other domains appear, each page with an unmapped neighbour.
//!
//! Every slot has a place in our physical address space too, where no memory is; all in a row, because Xen's tables for them come from
//! a pool of 1 MiB that never grows (xen-abi.md section 6).

use x86_64::instructions::tlb;
use x86_64::structures::paging::{PageTable, PageTableFlags, PageTableIndex};
use x86_64::{PhysAddr, VirtAddr};

use super::frames::{HeapFrames, HeapPage};
use super::page::SharedPage;
use super::ranges::PAGE_SIZE;

/// Where the window begins: a top-level entry of its own.
pub(super) const WINDOW_START: u64 = 2 << 39;

/// Slots: one for every domain that there can be, and some for Xen's pages.
pub(super) const SLOTS: usize = 32 * 1024;
/// A slot's page and its unmapped neighbour.
const STRIDE: u64 = 2 * PAGE_SIZE;
const ENTRIES: usize = 512;
const ENTRIES_PER_SLOT: usize = 2;
const SLOTS_PER_LEAF: usize = ENTRIES / ENTRIES_PER_SLOT;
const LEAVES: usize = SLOTS / SLOTS_PER_LEAF;
const WORD_BITS: usize = 64;

const UPPER: PageTableFlags = PageTableFlags::PRESENT.union(PageTableFlags::WRITABLE);
const SHARED: PageTableFlags = UPPER.union(PageTableFlags::NO_EXECUTE);

/// The window's upper page tables and the first of its lowest, at their physical address. The others come from the heap as more slots
/// are needed.
#[repr(C)]
pub(super) struct WindowTables {
    pointers: PageTable,
    directory: PageTable,
    first: PageTable,
}

impl WindowTables {
    pub(super) const fn new() -> Self {
        Self {
            pointers: PageTable::new(),
            directory: PageTable::new(),
            first: PageTable::new(),
        }
    }

    /// Enters the empty window into `root`.
    pub(super) fn link_into(&mut self, root: &mut PageTable) {
        let start = VirtAddr::new_truncate(WINDOW_START);
        let pointers = physical_address(&self.pointers);
        let directory = physical_address(&self.directory);
        root[start.p4_index()].set_addr(pointers, UPPER);
        self.pointers[start.p3_index()].set_addr(directory, UPPER);
        let first = physical_address(&self.first);
        self.directory[PageTableIndex::new(0)].set_addr(first, UPPER);
    }
}

/// Static tables lie at their physical address.
fn physical_address(table: &PageTable) -> PhysAddr {
    PhysAddr::new_truncate((&raw const *table).addr() as u64)
}

/// One place in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u16);

impl Slot {
    /// Its number, for the next start of the domain.
    pub(super) const fn number(self) -> u16 {
        self.0
    }

    fn index(self) -> usize {
        usize::from(self.0)
    }

    fn address(self) -> u64 {
        WINDOW_START.saturating_add(u64::from(self.0).saturating_mul(STRIDE))
    }
}

/// The window and which of its slots are taken.
pub(super) struct Window {
    directory: &'static mut PageTable,
    leaves: heapless::Vec<&'static mut PageTable, LEAVES>,
    slots: Slots,
    first_gfn: u64,
}

impl Window {
    /// The window over `tables`, which are in use, with its physical side at `physical_start`.
    pub(super) fn new(tables: &'static mut WindowTables, physical_start: u64) -> Self {
        let mut leaves = heapless::Vec::new();
        // There is room for one.
        let _ = leaves.push(&mut tables.first);
        Self {
            directory: &mut tables.directory,
            leaves,
            slots: Slots::new(),
            first_gfn: physical_start / PAGE_SIZE,
        }
    }

    /// Takes a free slot of those that have page tables.
    pub(super) fn take(&mut self) -> Option<Slot> {
        self.slots
            .take(self.leaves.len().saturating_mul(SLOTS_PER_LEAF))
    }

    /// Takes a free slot, with another page table from `frames` if there is none else.
    pub(super) fn take_or_grow(&mut self, frames: &HeapFrames) -> Option<Slot> {
        self.take().or_else(|| {
            self.grow(frames)?;
            self.take()
        })
    }

    /// Takes the slot with this number, whose page another start of the domain has put there; none if it is taken or cannot be.
    pub(super) fn adopt(&mut self, number: u16, frames: &HeapFrames) -> Option<Slot> {
        let slot = Slot(number);
        for _ in 0..LEAVES {
            if slot.index() < self.leaves.len().saturating_mul(SLOTS_PER_LEAF) {
                return self.slots.take_this(slot);
            }
            self.grow(frames)?;
        }
        None
    }

    fn grow(&mut self, frames: &HeapFrames) -> Option<()> {
        if self.leaves.is_full() {
            return None;
        }
        let HeapPage { page, physical } = frames.take_page()?;
        // SAFETY: the page is zeroed, which is an empty table, aligned, and ours for ever.
        let leaf: &'static mut PageTable = unsafe { page.cast().as_mut() };
        let index = u16::try_from(self.leaves.len()).ok()?;
        self.directory[PageTableIndex::new_truncate(index)]
            .set_addr(PhysAddr::try_new(physical).ok()?, UPPER);
        self.leaves.push(leaf).ok()
    }

    /// Gives a slot back. Its page must be unmapped on both sides.
    pub(super) fn give_back(&mut self, slot: Slot) {
        self.slots.give_back(slot);
    }

    /// The guest frame that belongs to `slot`, for Xen to put a page into.
    pub(super) fn gfn_of(&self, slot: Slot) -> u64 {
        self.first_gfn.saturating_add(u64::from(slot.0))
    }

    /// Shows the guest frame `gfn` at `slot`, until [`Window::hide`].
    pub(super) fn show(&mut self, slot: Slot, gfn: u64) -> Option<SharedPage> {
        let frame = PhysAddr::try_new(gfn.checked_mul(PAGE_SIZE)?).ok()?;
        self.entry(slot)?.set_addr(frame, SHARED);
        // SAFETY: the entry above maps a writable page at this address, and the window's addresses hold nothing of Rust's. Who hides
        // the slot has taken the page back first.
        unsafe { SharedPage::at(slot.address()) }
    }

    /// Makes `slot`'s address invalid.
    pub(super) fn hide(&mut self, slot: Slot) {
        if let Some(entry) = self.entry(slot) {
            entry.set_unused();
        }
        tlb::flush(VirtAddr::new_truncate(slot.address()));
    }

    /// The guest frame that belongs to the slot at `address`.
    #[cfg(feature = "guest")]
    pub(super) fn gfn_at(&self, address: u64) -> Option<u64> {
        let slot = address.checked_sub(WINDOW_START)? / STRIDE;
        u16::try_from(slot).ok().map(|slot| self.gfn_of(Slot(slot)))
    }

    fn entry(
        &mut self,
        slot: Slot,
    ) -> Option<&mut x86_64::structures::paging::page_table::PageTableEntry> {
        let entry = slot.index() * ENTRIES_PER_SLOT;
        let index = u16::try_from(entry % ENTRIES).ok()?;
        let leaf = self.leaves.get_mut(entry / ENTRIES)?;
        Some(&mut leaf[PageTableIndex::new_truncate(index)])
    }
}

/// Which slots are taken: one bit each, so that neither taking nor giving back needs the heap.
struct Slots {
    taken: [u64; SLOTS / WORD_BITS],
}

impl Slots {
    const fn new() -> Self {
        Self {
            taken: [0; SLOTS / WORD_BITS],
        }
    }

    /// Takes the lowest free slot below `limit`, a multiple of a word's bits.
    fn take(&mut self, limit: usize) -> Option<Slot> {
        let (index, word) = self
            .taken
            .iter_mut()
            .take(limit / WORD_BITS)
            .enumerate()
            .find(|(_, word)| **word != u64::MAX)?;
        let bit = word.trailing_ones();
        *word |= 1 << bit;
        let slot = index * WORD_BITS + usize::try_from(bit).ok()?;
        u16::try_from(slot).ok().map(Slot)
    }

    fn take_this(&mut self, slot: Slot) -> Option<Slot> {
        let word = self.taken.get_mut(slot.index() / WORD_BITS)?;
        let bit = 1 << (slot.index() % WORD_BITS);
        let is_free = *word & bit == 0;
        *word |= bit;
        is_free.then_some(slot)
    }

    fn give_back(&mut self, slot: Slot) {
        if let Some(word) = self.taken.get_mut(slot.index() / WORD_BITS) {
            *word &= !(1 << (slot.index() % WORD_BITS));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::paging::flags_at;
    use x86_64::structures::paging::OffsetPageTable;

    #[test]
    fn every_slot_is_given_once_and_again_after_it_came_back() {
        let mut slots = Slots::new();
        for expected in 0..SLOTS_PER_LEAF {
            let slot = slots.take(SLOTS_PER_LEAF).unwrap();
            assert_eq!(slot.index(), expected);
        }
        assert_eq!(slots.take(SLOTS_PER_LEAF), None);
        for expected in SLOTS_PER_LEAF..SLOTS {
            assert_eq!(slots.take(SLOTS).unwrap().index(), expected);
        }
        assert_eq!(slots.take(SLOTS), None);
        slots.give_back(Slot(77));
        assert_eq!(slots.take(SLOTS), Some(Slot(77)));
        assert_eq!(slots.take(SLOTS), None);
    }

    #[test]
    fn a_shown_slot_is_data_and_its_neighbours_are_missing() {
        let tables = Box::leak(Box::new(WindowTables::new()));
        let mut root = PageTable::new();
        tables.link_into(&mut root);
        let mut window = Window::new(tables, 16 << 20);
        for _ in 0..200 {
            window.take();
        }
        let slot = window.take().unwrap();
        assert_eq!(window.gfn_of(slot), 4096 + 200);
        window.show(slot, window.gfn_of(slot)).unwrap();
        // SAFETY: host memory stands for physical memory, at the same addresses.
        let tables = unsafe { OffsetPageTable::new(&mut root, VirtAddr::zero()) };
        let at = WINDOW_START + 200 * STRIDE;
        assert_eq!(flags_at(&tables, at), Some(SHARED));
        assert_eq!(flags_at(&tables, at - PAGE_SIZE), None);
        assert_eq!(flags_at(&tables, at + PAGE_SIZE), None);
    }
}
