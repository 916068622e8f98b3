//! Which memory is ours: the map that we were given, against what Xen really populated. No hardware.
//!
//! Maps lie (xen-abi.md section 1, test-bed.md section 4): Xen's tools give none in start_info, Xen's own names `maxmem` and not what
//! is populated, and up to 4.18 with `--maxmem` it names 16 bytes. What Xen counts as populated is the truth.

use super::ranges::{AddressRange, MapEntry, PAGE_SIZE, PageRanges};

/// Pages that Xen's builder puts at 0xfeff8000 for rings and counts as ours.
const SPECIAL_PAGES: u64 = 8;
/// The builder leaves this hole below 4 GiB (`HVM_BELOW_4G_RAM_END`'s counterpart for PVH: LAPIC and special pages).
const HOLE: AddressRange = AddressRange {
    start: 0xfee0_0000,
    end: 1 << 32,
};

/// The populated RAM: `map`, if it is credible, else everything from 0 up; in both cases no more than `populated_pages`.
///
/// A map is credible if it has the memory where the image runs.
pub(super) fn populated_ram(
    map: &[MapEntry],
    image: AddressRange,
    populated_pages: u64,
) -> PageRanges {
    let pages = populated_pages.saturating_sub(SPECIAL_PAGES);
    let mut ram = PageRanges::ram_of(map);
    if !ram.contains(image.grown_to_pages()) {
        ram = without_map(pages);
    }
    ram.truncate(pages);
    ram
}

/// Xen's builder populates from 0 upwards and leaves out the hole.
fn without_map(pages: u64) -> PageRanges {
    let mut ram = PageRanges::default();
    let bytes = pages.saturating_mul(PAGE_SIZE);
    let low = bytes.min(HOLE.start);
    ram.add(AddressRange { start: 0, end: low });
    let high = AddressRange::of_size(HOLE.end, bytes.saturating_sub(low));
    if let Some(high) = high {
        ram.add(high);
    }
    ram
}

/// Where the window for foreign pages begins: behind all memory that we have or may get, outside the hole.
pub(super) fn window_start(map: &[MapEntry], ram: &PageRanges, maximum_pages: u64) -> u64 {
    /// A window that begins at a multiple of this shares no page table of Xen's with RAM (a 2 MiB page stays whole).
    const ALIGNMENT: u64 = 2 << 20;
    /// An end behind this (256 GiB) is no plan to have memory there, and processors exist that could not address it.
    const CREDIBLE: u64 = 1 << 38;
    let maximum = without_map(maximum_pages.saturating_sub(SPECIAL_PAGES)).end();
    let named = PageRanges::ram_of(map).end();
    let behind = [maximum, named]
        .into_iter()
        .filter(|end| *end <= CREDIBLE)
        .fold(ram.end(), u64::max)
        .next_multiple_of(ALIGNMENT);
    let nearly_in_the_hole = HOLE.start - (1 << 30);
    if (nearly_in_the_hole..HOLE.end).contains(&behind) {
        HOLE.end
    } else {
        behind
    }
}

/// Memory is added in steps of this, so that Xen can give it as one large page.
pub(super) const STEP: u64 = 2 << 20;

/// What may be had later: whole steps behind all of `ram`, before the window, as many as Xen allows in all. And no more than 32 times
/// what is `free` now: its page tables are made at once.
pub(super) fn later_memory(
    ram: &PageRanges,
    free: u64,
    populated_pages: u64,
    maximum_pages: u64,
    window_start: u64,
) -> PageRanges {
    const TABLES_PART: u64 = 32;
    let allowed = maximum_pages
        .saturating_sub(populated_pages)
        .saturating_mul(PAGE_SIZE)
        .min(free.saturating_mul(TABLES_PART));
    let mut behind = without_map(maximum_pages.saturating_sub(SPECIAL_PAGES));
    behind.remove(AddressRange {
        start: 0,
        end: ram.end().next_multiple_of(STEP),
    });
    behind.remove(AddressRange {
        start: window_start,
        end: u64::MAX,
    });
    let mut later = PageRanges::default();
    for range in behind.iter() {
        let whole = range.size() / STEP * STEP;
        if let Some(steps) = AddressRange::of_size(range.start, whole) {
            later.add(steps);
        }
    }
    later.truncate(allowed / STEP * (STEP / PAGE_SIZE));
    later
}

/// What the heap and its page tables may use: `ram` without page 0, the image and the modules.
pub(super) fn free_memory(
    ram: &PageRanges,
    image: AddressRange,
    modules: &[AddressRange],
) -> PageRanges {
    let mut free = ram.clone();
    free.remove(AddressRange {
        start: 0,
        end: PAGE_SIZE,
    });
    free.remove(image);
    for module in modules {
        free.remove(*module);
    }
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: AddressRange = AddressRange {
        start: 0x10_0000,
        end: 0x14_0000,
    };
    const MIB: u64 = 1 << 20;

    fn map(entries: &[(u64, u64, u32)]) -> Vec<MapEntry> {
        entries
            .iter()
            .map(|(address, size, kind)| MapEntry::new(*address, *size, *kind).unwrap())
            .collect()
    }

    fn pages(mib: u64) -> u64 {
        mib * MIB / PAGE_SIZE + SPECIAL_PAGES
    }

    #[test]
    fn without_maxmem_the_map_is_right() {
        let map = map(&[(0, 8 * MIB, 1), (0xfeff_8000, 0x8000, 2)]);
        let ram = populated_ram(&map, IMAGE, pages(8));
        assert_eq!((ram.size(), ram.end()), (8 * MIB, 8 * MIB));
        assert_eq!(window_start(&map, &ram, pages(8)), 8 * MIB);
    }

    #[test]
    fn maxmem_is_not_populated_and_stays_free_of_mappings() {
        let map = map(&[(0, 16 * MIB, 1)]);
        let ram = populated_ram(&map, IMAGE, pages(8));
        assert_eq!(ram.size(), 8 * MIB);
        assert_eq!(window_start(&map, &ram, pages(16)), 16 * MIB);
    }

    #[test]
    fn sixteen_bytes_of_ram_are_not_believed() {
        let map = map(&[(0, 16, 1), (0xfeff_8000, 0x8000, 2)]);
        let ram = populated_ram(&map, IMAGE, pages(8));
        assert_eq!((ram.size(), ram.end()), (8 * MIB, 8 * MIB));
        assert_eq!(window_start(&map, &ram, pages(16)), 16 * MIB);
    }

    #[test]
    fn no_map_at_all_and_memory_on_both_sides_of_the_hole() {
        let ram = populated_ram(&[], IMAGE, pages(5 * 1024));
        assert_eq!(ram.size(), 5 * 1024 * MIB);
        assert!(ram.iter().all(|range| !range.overlaps(HOLE)));
        assert_eq!(
            window_start(&[], &ram, pages(5 * 1024)),
            ram.end().next_multiple_of(2 * MIB)
        );
    }

    #[test]
    fn the_window_never_lies_in_the_hole() {
        let ram = populated_ram(&[], IMAGE, pages(4000));
        assert_eq!(window_start(&[], &ram, pages(4000)), 1 << 32);
    }

    #[test]
    fn an_absurd_maximum_does_not_move_the_window_out_of_reach() {
        let ram = populated_ram(&[], IMAGE, pages(8));
        for maximum in [u64::from(u32::MAX), u64::MAX] {
            assert!(window_start(&[], &ram, maximum) <= 1 << 38);
        }
    }

    #[test]
    fn nothing_populated_is_nothing_and_no_panic() {
        assert!(populated_ram(&[], IMAGE, 0).is_empty());
        assert!(populated_ram(&[], IMAGE, 3).is_empty());
    }

    fn later(populated_mib: u64, maximum_mib: u64) -> PageRanges {
        let ram = populated_ram(&[], IMAGE, pages(populated_mib));
        let window = window_start(&[], &ram, pages(maximum_mib));
        let (populated, maximum) = (pages(populated_mib), pages(maximum_mib));
        later_memory(&ram, ram.size(), populated, maximum, window)
    }

    #[test]
    fn what_maxmem_allows_may_be_had_later_in_whole_steps() {
        let found = later(8, 33);
        assert_eq!((found.page(0), found.size()), (Some(8 * MIB), 24 * MIB));
        assert_eq!(found.end(), 32 * MIB);
        assert!(later(8, 8).is_empty());
        assert!(later(8, 9).is_empty(), "the builder allows 1 MiB more");
        let odd = later(9, 33);
        assert_eq!((odd.page(0), odd.end()), (Some(10 * MIB), 32 * MIB));
    }

    #[test]
    fn later_memory_leaves_out_the_hole_and_is_bounded() {
        let found = later(4000, 5000);
        assert!(found.iter().all(|range| !range.overlaps(HOLE)));
        assert_eq!(found.size(), 1000 * MIB);
        assert_eq!(later(8, 100_000).size(), 32 * 8 * MIB);
        let ram = populated_ram(&[], IMAGE, pages(8));
        for maximum in [u64::from(u32::MAX), u64::MAX] {
            let window = window_start(&[], &ram, maximum);
            let found = later_memory(&ram, ram.size(), pages(8), maximum, window);
            assert!(found.end() <= window);
        }
    }

    #[test]
    fn image_modules_and_page_0_are_not_free() {
        let ram = populated_ram(&[], IMAGE, pages(2));
        let module = AddressRange {
            start: 0x15_0010,
            end: 0x15_1010,
        };
        let free = free_memory(&ram, IMAGE, &[module]);
        assert!(!free.contains(AddressRange {
            start: 0,
            end: 4096
        }));
        assert_eq!(free.size(), 2 * MIB - 0x1000 - 0x4_0000 - 0x2000);
    }
}
