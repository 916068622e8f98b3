//! The page tables that hold after start-up: the image's sections, the heap, and an empty window for foreign pages; nothing else.
//!
//! No page is both writable and executable, page 0 and the pages below stacks are missing, and there is no map of all memory.
//! Boot's identity map shows the new tables while they are built, so physical and virtual addresses are equal here.

use x86_64::registers::control::{Cr3, Cr3Flags, Cr4, Cr4Flags};
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageTable, PageTableFlags, PhysFrame, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

use super::cpuid;
use super::memory::Memory;
use super::ranges::{AddressRange, PAGE_SIZE};
use super::reserve::Layout;
use super::window::WindowTables;
use crate::boot_info::ImageLayout;

/// Where the heap begins: a top-level entry of its own.
pub(super) const HEAP_START: u64 = 1 << 39;
/// Pages of the largest heap: 64 GiB.
const HEAP_PAGES_MAX: usize = 1 << 24;
/// Where boot's identity map ends: no new table can lie above.
pub(super) const BOOT_MAP_END: u64 = 1 << 32;
/// Tables for an image of up to 4 MiB (asserted in linker.ld): two above, two leaves.
const IMAGE_TABLES: u64 = 4;

const READ: PageTableFlags = PageTableFlags::PRESENT.union(PageTableFlags::NO_EXECUTE);
const EXECUTE: PageTableFlags = PageTableFlags::PRESENT;
const WRITE: PageTableFlags = READ.union(PageTableFlags::WRITABLE);
/// Upper tables allow everything; the leaf decides.
const UPPER: PageTableFlags = PageTableFlags::PRESENT.union(PageTableFlags::WRITABLE);

/// There is not even memory for the page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoMemoryForTables;

/// Fills `root` with the image but for `guards`, with the reserve, with `window`, and with all pages of `free` and the `given` first ones of
/// `later` as one heap, whose virtual range it returns. Right behind it are the other pages of `later`, which must not be touched yet.
///
/// New tables come from the pages of `free` below `reach`.
///
/// # Errors
/// [`NoMemoryForTables`].
///
/// # Safety
/// The pages of `free` must be nobody else's, and readable and writable at their physical addresses as far as they lie below `reach`.
pub(super) unsafe fn build(
    root: &mut PageTable,
    window: &mut WindowTables,
    image: &ImageLayout,
    guards: &[u64],
    reserve: Option<Layout>,
    memory: &Memory,
    reach: u64,
) -> Result<AddressRange, NoMemoryForTables> {
    let Memory { free, later, .. } = memory;
    let table_pages = usize::try_from(tables_for(memory, reserve)).unwrap_or(usize::MAX);
    let mut frames = TableFrames(
        free.pages()
            .take(table_pages)
            .take_while(|page| *page < reach),
    );
    window.link_into(root);
    // SAFETY: the tables are read and written at their physical addresses, which the caller vouches for.
    let mut tables = unsafe { OffsetPageTable::new(root, VirtAddr::zero()) };
    for (section, flags) in [
        (image.rodata, READ),
        (image.text, EXECUTE),
        (image.sealed, READ),
        (image.data, WRITE),
    ] {
        let pages = section.grown_to_pages().pages();
        for page in pages.filter(|page| !guards.contains(page)) {
            let is_kept = image.kept.contains_address(page);
            let flags = if is_kept { READ } else { flags };
            map(&mut tables, &mut frames, page, page, flags)?;
        }
    }
    if let Some(reserve) = reserve {
        for page in reserve.range.pages() {
            let is_code = page == reserve.code_page();
            let flags = if is_code { EXECUTE } else { WRITE };
            map(&mut tables, &mut frames, page, page, flags)?;
        }
    }
    let mut next = HEAP_START;
    let mut end = HEAP_START;
    let now = free.pages().skip(table_pages).map(|page| (page, true));
    let later = (0..).zip(later.pages());
    let later = later.map(|(index, page)| (page, index < memory.given));
    for (page, is_given) in now.chain(later).take(HEAP_PAGES_MAX) {
        map(&mut tables, &mut frames, next, page, WRITE)?;
        next = next.saturating_add(PAGE_SIZE);
        if is_given {
            end = next;
        }
    }
    Ok(AddressRange {
        start: HEAP_START,
        end,
    })
}

/// Page tables that map all of `memory`, the reserve and the image, at most.
pub(super) fn tables_for(memory: &Memory, reserve: Option<Layout>) -> u64 {
    const ENTRIES: u64 = 512;
    let reserved = reserve.map_or(0, |reserve| {
        (reserve.range.size() / PAGE_SIZE / ENTRIES).saturating_add(2)
    });
    let heap = memory.free.size().saturating_add(memory.later.size());
    let pages = heap / PAGE_SIZE;
    let leaves = pages.div_ceil(ENTRIES);
    let directories = leaves.div_ceil(ENTRIES);
    let top = 1;
    [IMAGE_TABLES, reserved, top, directories, leaves]
        .iter()
        .fold(0, |sum, count| sum.saturating_add(*count))
}

fn map(
    tables: &mut OffsetPageTable<'_>,
    frames: &mut impl FrameAllocator<Size4KiB>,
    address: u64,
    physical: u64,
    flags: PageTableFlags,
) -> Result<(), NoMemoryForTables> {
    let page = Page::<Size4KiB>::containing_address(VirtAddr::new_truncate(address));
    let frame = PhysFrame::containing_address(PhysAddr::new_truncate(physical));
    // SAFETY: these tables are not in use yet; a frame is mapped once, by `build`, for the one who owns it.
    let mapped = unsafe { tables.map_to_with_table_flags(page, frame, flags, UPPER, frames) };
    mapped
        .map(x86_64::structures::paging::mapper::MapperFlush::ignore)
        .map_err(|_| NoMemoryForTables)
}

/// Physical pages for tables.
struct TableFrames<Pages>(Pages);

// SAFETY: `build` gives it pages that are nobody else's, and an iterator gives each once.
unsafe impl<Pages: Iterator<Item = u64>> FrameAllocator<Size4KiB> for TableFrames<Pages> {
    fn allocate_frame(&mut self) -> Option<PhysFrame<Size4KiB>> {
        let page = self.0.next()?;
        Some(PhysFrame::containing_address(PhysAddr::new_truncate(page)))
    }
}

/// Goes over to `root`, and switches on what else the processor has against misuse of pages.
///
/// # Safety
/// `root` must be at its physical address and map all that is in use: code, data, the current stack.
pub(super) unsafe fn switch_to(root: &'static PageTable) {
    let frame =
        PhysFrame::containing_address(PhysAddr::new_truncate((&raw const *root).addr() as u64));
    // SAFETY: the caller vouches for the tables.
    unsafe { Cr3::write(frame, Cr3Flags::empty()) };
    let processor = cpuid::protections();
    let mut flags = Cr4::read();
    flags.set(
        Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION,
        processor.smep,
    );
    flags.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, processor.smap);
    flags.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, processor.umip);
    // SAFETY: the processor has what is switched on; no page is a user page, so no access of ours is affected.
    unsafe { Cr4::write(flags) };
}

/// Runs `deed` with the tables at the physical address `root`, then goes on with those in use.
///
/// # Safety
/// They must map the image, stack included, at its address, and `deed` must not need the heap or the window.
pub(super) unsafe fn with_tables<T>(root: u64, deed: impl FnOnce() -> T) -> T {
    let (ours, flags) = Cr3::read();
    let other = PhysFrame::containing_address(PhysAddr::new_truncate(root));
    // SAFETY: the caller vouches for the tables.
    unsafe { Cr3::write(other, Cr3Flags::empty()) };
    let done = deed();
    // SAFETY: these are the ones that were in use.
    unsafe { Cr3::write(ours, flags) };
    done
}

/// The rights of the page at `address`, for tests.
#[cfg(test)]
pub(super) fn flags_at(tables: &OffsetPageTable<'_>, address: u64) -> Option<PageTableFlags> {
    use x86_64::structures::paging::Translate;
    use x86_64::structures::paging::mapper::TranslateResult;
    match tables.translate(VirtAddr::new(address)) {
        TranslateResult::Mapped { flags, .. } => Some(flags),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::ranges::PageRanges;
    use crate::hypervisor::window::WINDOW_START;

    #[derive(Clone)]
    #[repr(align(4096))]
    struct HostPage {
        _bytes: [u8; 4096],
    }

    fn section(start: u64, pages: u64) -> AddressRange {
        AddressRange::of_size(start, pages * PAGE_SIZE).unwrap()
    }

    fn image() -> ImageLayout {
        ImageLayout {
            rodata: section(0x10_0000, 2),
            text: section(0x10_2000, 3),
            sealed: section(0x10_5000, 1),
            data: section(0x10_6000, 4),
            kept: section(0x10_9000, 1),
            restart_entry: 0x10_2000,
            stack_guard: 0x10_7000,
            build_id: &[],
        }
    }

    fn memory_of(free: PageRanges, later: PageRanges) -> Memory {
        Memory {
            ram: PageRanges::default(),
            free,
            later,
            given: 0,
            window_start: 0,
        }
    }

    /// Nothing is behind these addresses.
    fn later() -> PageRanges {
        let mut later = PageRanges::default();
        later.add(section(1 << 40, 512));
        later
    }

    /// Builds tables in host memory, 700 pages of which stand for RAM, and hands them to `check`.
    fn with_tables(check: impl FnOnce(&OffsetPageTable<'_>, AddressRange)) {
        let memory = vec![
            HostPage {
                _bytes: [0xff; 4096],
            };
            700
        ];
        let mut free = PageRanges::default();
        free.add(section(memory.as_ptr().addr() as u64, 700));
        let mut root = Box::new(PageTable::new());
        let mut window = Box::new(WindowTables::new());
        let guards = [image().stack_guard];
        // SAFETY: `memory` is ours and mapped at the addresses that stand for physical ones.
        let heap = unsafe {
            build(
                &mut root,
                &mut window,
                &image(),
                &guards,
                None,
                &memory_of(free, later()),
                u64::MAX,
            )
        };
        // SAFETY: as above.
        let tables = unsafe { OffsetPageTable::new(&mut root, VirtAddr::zero()) };
        check(&tables, heap.unwrap());
        drop(memory);
    }

    #[test]
    fn sections_have_their_rights_and_guards_are_missing() {
        with_tables(|tables, _| {
            assert_eq!(flags_at(tables, 0x10_0000), Some(READ));
            assert_eq!(flags_at(tables, 0x10_2000), Some(EXECUTE));
            assert_eq!(flags_at(tables, 0x10_5000), Some(READ));
            assert_eq!(flags_at(tables, 0x10_6000), Some(WRITE));
            assert_eq!(flags_at(tables, 0x10_8000), Some(WRITE));
            assert_eq!(flags_at(tables, 0x10_9000), Some(READ));
            for missing in [0, 0x10_7000, 0xf_f000, 0x10_a000, WINDOW_START] {
                assert_eq!(flags_at(tables, missing), None);
            }
        });
    }

    #[test]
    fn the_heap_has_all_pages_but_the_tables() {
        with_tables(|tables, heap| {
            assert_eq!(heap.size() / PAGE_SIZE, 700 - (4 + 1 + 1 + 3));
            assert_eq!(flags_at(tables, HEAP_START), Some(WRITE));
            assert_eq!(flags_at(tables, heap.end - 1), Some(WRITE));
            let end = heap.end + 512 * PAGE_SIZE;
            assert_eq!(flags_at(tables, end - 1), Some(WRITE), "for later");
            assert_eq!(flags_at(tables, end), None);
            assert_eq!(flags_at(tables, HEAP_START - 1), None);
        });
    }

    #[test]
    fn too_little_memory_is_an_error() {
        let memory = vec![HostPage { _bytes: [0; 4096] }; 2];
        let mut free = PageRanges::default();
        free.add(section(memory.as_ptr().addr() as u64, 2));
        let mut root = Box::new(PageTable::new());
        let mut window = Box::new(WindowTables::new());
        // SAFETY: `memory` is ours and mapped at the addresses that stand for physical ones.
        let heap = unsafe {
            build(
                &mut root,
                &mut window,
                &image(),
                &[],
                None,
                &memory_of(free, later()),
                u64::MAX,
            )
        };
        assert_eq!(heap, Err(NoMemoryForTables));
        drop(memory);
    }
}
