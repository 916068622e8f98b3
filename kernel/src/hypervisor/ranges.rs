//! Ranges of addresses, and sorted sets of page ranges: the arithmetic of memory maps, free of any hardware.
//!
//! A map comes from a boot loader or Xen and may be unsorted, overlapping or absurd; what comes out here is none of that.

use core::cmp::{max, min};

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;

/// Ranges that one set can hold. What does not fit is left out: memory is lost, nothing else.
pub const RANGES_MAX: usize = 64;

/// No processor has more physical address bits.
const ADDRESS_END: u64 = 1 << 52;

/// Addresses from `start` up to, not including, `end`; physical ones unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressRange {
    /// First address.
    pub start: u64,
    /// First address behind.
    pub end: u64,
}

impl AddressRange {
    /// From `start`, `size` bytes long; `None` if it leaves the address space of any processor.
    #[must_use]
    pub fn of_size(start: u64, size: u64) -> Option<Self> {
        let end = start.checked_add(size)?;
        (end <= ADDRESS_END).then_some(Self { start, end })
    }

    /// Bytes.
    #[must_use]
    pub const fn size(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether no byte is in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.size() == 0
    }

    /// Whether all of `other` is in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether the byte at `address` is in it.
    #[must_use]
    pub const fn contains_address(self, address: u64) -> bool {
        self.start <= address && address < self.end
    }

    /// Whether they share a byte.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        max(self.start, other.start) < min(self.end, other.end)
    }

    /// The whole pages in it.
    #[must_use]
    pub const fn shrunk_to_pages(self) -> Self {
        Self {
            start: page_up(self.start),
            end: page_down(self.end),
        }
    }

    /// All pages that it touches.
    #[must_use]
    pub const fn grown_to_pages(self) -> Self {
        Self {
            start: page_down(self.start),
            end: page_up(self.end),
        }
    }

    /// The addresses of its pages, lowest first.
    pub fn pages(self) -> impl Iterator<Item = u64> {
        let whole = self.shrunk_to_pages();
        let count = whole.size() / PAGE_SIZE;
        (0..count).map(move |index| whole.start.saturating_add(index.saturating_mul(PAGE_SIZE)))
    }
}

const fn page_down(address: u64) -> u64 {
    address & !(PAGE_SIZE - 1)
}

const fn page_up(address: u64) -> u64 {
    page_down(address.saturating_add(PAGE_SIZE - 1))
}

/// What one entry of a memory map says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// Where.
    pub range: AddressRange,
    /// Ordinary memory; else it must not be touched.
    pub is_ram: bool,
}

impl MapEntry {
    /// `E820_TYPE_RAM`, `XEN_HVM_MEMMAP_TYPE_RAM`.
    const KIND_RAM: u32 = 1;

    /// An entry as Xen and boot loaders write it; `None` for an absurd range.
    #[must_use]
    pub fn new(address: u64, size: u64, kind: u32) -> Option<Self> {
        Some(Self {
            range: AddressRange::of_size(address, size)?,
            is_ram: kind == Self::KIND_RAM,
        })
    }
}

/// Disjoint page ranges, lowest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageRanges {
    ranges: heapless::Vec<AddressRange, RANGES_MAX>,
}

impl PageRanges {
    /// The memory that `map` grants: whole pages of RAM, once each, without what another entry reserves.
    #[must_use]
    pub fn ram_of(map: &[MapEntry]) -> Self {
        let mut ram = Self::default();
        for entry in map.iter().filter(|entry| entry.is_ram) {
            ram.add(entry.range.shrunk_to_pages());
        }
        for entry in map.iter().filter(|entry| !entry.is_ram) {
            ram.remove(entry.range);
        }
        ram
    }

    /// The ranges, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = AddressRange> {
        self.ranges.iter().copied()
    }

    /// All their pages, lowest first.
    pub fn pages(&self) -> impl Iterator<Item = u64> {
        self.iter().flat_map(AddressRange::pages)
    }

    /// The address of one of their pages, counted from the lowest.
    #[must_use]
    pub fn page(&self, mut index: u64) -> Option<u64> {
        for range in self.iter() {
            let pages = range.size() / PAGE_SIZE;
            if index < pages {
                return range.start.checked_add(index.checked_mul(PAGE_SIZE)?);
            }
            index = index.saturating_sub(pages);
        }
        None
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Bytes in all.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.iter()
            .fold(0, |sum, range| sum.saturating_add(range.size()))
    }

    /// The first address behind all of them; 0 if empty.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.end)
    }

    /// Whether one of them holds all of `range`.
    #[must_use]
    pub fn contains(&self, range: AddressRange) -> bool {
        self.iter().any(|one| one.contains(range))
    }

    /// Adds the whole pages of `range`, merging with what it touches.
    pub fn add(&mut self, range: AddressRange) {
        let mut merged = range.shrunk_to_pages();
        if merged.is_empty() {
            return;
        }
        self.ranges.retain(|one| {
            let apart = one.end < merged.start || merged.end < one.start;
            if !apart {
                merged.start = min(merged.start, one.start);
                merged.end = max(merged.end, one.end);
            }
            apart
        });
        let place = self
            .ranges
            .iter()
            .take_while(|one| one.start < merged.start)
            .count();
        // A full set loses the new range: memory that nobody will use.
        let _ = self.ranges.insert(place, merged);
    }

    /// Removes every page that `range` touches.
    pub fn remove(&mut self, range: AddressRange) {
        let hole = range.grown_to_pages();
        if hole.is_empty() {
            return;
        }
        let before = core::mem::take(&mut self.ranges);
        for one in before {
            let low = AddressRange {
                start: one.start,
                end: min(one.end, hole.start),
            };
            let high = AddressRange {
                start: max(one.start, hole.end),
                end: one.end,
            };
            for rest in [low, high] {
                if !rest.is_empty() {
                    // A full set loses the rest, as in `add`.
                    let _ = self.ranges.push(rest);
                }
            }
        }
    }

    /// Keeps the first `pages` pages only.
    pub fn truncate(&mut self, pages: u64) {
        let mut left = pages.saturating_mul(PAGE_SIZE);
        for range in &mut self.ranges {
            range.end = min(range.end, range.start.saturating_add(left));
            left = left.saturating_sub(range.size());
        }
        self.ranges.retain(|range| !range.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, end: u64) -> AddressRange {
        AddressRange { start, end }
    }

    fn all(ranges: &PageRanges) -> Vec<AddressRange> {
        ranges.iter().collect()
    }

    #[test]
    fn a_pc_map_loses_its_odd_bytes_and_reserved_pages() {
        let map = [
            MapEntry::new(0x10_0000, 0x70_0000, 1),
            MapEntry::new(0, 0x9_fc00, 1),
            MapEntry::new(0x9_fc00, 0x400, 2),
            MapEntry::new(0x20_0800, 0x100, 2),
        ]
        .map(Option::unwrap);
        let ram = PageRanges::ram_of(&map);
        assert_eq!(
            all(&ram),
            [
                range(0, 0x9_f000),
                range(0x10_0000, 0x20_0000),
                range(0x20_1000, 0x80_0000)
            ]
        );
    }

    #[test]
    fn absurd_entries_are_none() {
        assert_eq!(MapEntry::new(u64::MAX, 2, 1), None);
        assert_eq!(MapEntry::new(1 << 51, 1 << 52, 1), None);
        let tiny = MapEntry::new(0, 16, 1).unwrap();
        assert!(PageRanges::ram_of(&[tiny]).is_empty());
    }

    #[test]
    fn truncate_counts_over_holes() {
        let mut ram = PageRanges::default();
        ram.add(range(0, 0x3000));
        ram.add(range(0x8000, 0xa000));
        ram.truncate(4);
        assert_eq!(all(&ram), [range(0, 0x3000), range(0x8000, 0x9000)]);
        ram.truncate(3);
        assert_eq!(all(&ram), [range(0, 0x3000)]);
    }

    proptest! {
        /// The sets agree with a bitmap of pages whatever is added and removed, and stay sorted and apart.
        #[test]
        fn agrees_with_a_bitmap(steps in prop::collection::vec((any::<bool>(), 0_u64..80, 0_u64..20), 0..40)) {
            let mut ranges = PageRanges::default();
            let mut bitmap = [false; 100];
            for (add, first, count) in steps {
                let one = range(first * PAGE_SIZE, (first + count) * PAGE_SIZE);
                if add { ranges.add(one) } else { ranges.remove(one) }
                for page in first..first + count {
                    bitmap[usize::try_from(page).unwrap()] = add;
                }
            }
            let expected: Vec<u64> = (0..100_u64).filter(|page| bitmap[usize::try_from(*page).unwrap()]).map(|page| page * PAGE_SIZE).collect();
            prop_assert_eq!(ranges.pages().collect::<Vec<_>>(), expected);
            prop_assert!(all(&ranges).windows(2).all(|two| two[0].end < two[1].start));
        }
    }
}
