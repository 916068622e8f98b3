//! The reserve: memory that the heap never gets, kept from the first start on for what must not fail for want of it. Live update and restart
//! after a crash need room for the state and for another image when there may be none left, and when the heap cannot be trusted.
//!
//! ```text
//! header 2 | FIFO control block 1 | monitor 1 | its descriptor tables 1 | its stack 2 | its page tables 3 | event words n | area
//!                                                                               area: slot for an image, then the state stream
//! ```
//! in pages. It lies below 1 GiB, mapped at its physical address, and stays where it is whatever image comes.

use core::ptr::{NonNull, with_exposed_provenance_mut};

use spin::Once;
use x86_64::structures::DescriptorTablePointer;

use super::fifo::{EventPage, FifoPage};
use super::handover::{Field, Header};
use super::ranges::{AddressRange, PAGE_SIZE, PageRanges};
use super::trap::{Gate, UPCALL_VECTOR};

/// Behind the header.
const FIFO_PAGE: u64 = 2;
const CODE_PAGE: u64 = 3;
const DESCRIPTORS_PAGE: u64 = 4;
const STACK_PAGE: u64 = 5;
const STACK_PAGES: u64 = 2;
const TABLES_PAGE: u64 = 7;
const TABLE_PAGES: u64 = 3;
const EVENT_PAGES: u64 = 10;

/// It lies below this: its tables map so much.
const REACH: u64 = 1 << 30;
/// The area's percentage of all free memory besides the slot: as much as state that fills the heap needs, with a quarter of it left.
const STREAM_PERCENT: u64 = 15;
/// What an image may be larger than the one that runs.
const SLOT_SLACK: u64 = 64 << 10;
/// One page of event words, 1024 ports, for so much memory: more domains than it can have nodes of.
const MEMORY_FOR_EVENT_PAGE: u64 = 2 << 20;
const EVENT_PAGES_MIN: u64 = 4;
const EVENT_PAGES_MAX: u64 = 128;

/// The interrupt of the timer that ends a trial, or work that does not end.
pub(super) const TIMER_VECTOR: u8 = 33;
const VECTORS: usize = 34;

/// Where its parts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) range: AddressRange,
    event_pages: u64,
    slot_size: u64,
}

impl Layout {
    /// Room for it at the upper end of a piece of `free`, for an image of `image_size` bytes; none if there is no piece large enough.
    pub(super) fn plan(free: &PageRanges, image_size: u64) -> Option<Self> {
        let event_pages =
            (free.size() / MEMORY_FOR_EVENT_PAGE).clamp(EVENT_PAGES_MIN, EVENT_PAGES_MAX);
        let slot_size = image_size
            .saturating_add(SLOT_SLACK)
            .next_multiple_of(PAGE_SIZE);
        let stream = free.size() / 100 * STREAM_PERCENT;
        let pages = EVENT_PAGES.saturating_add(event_pages);
        let fixed = pages.saturating_mul(PAGE_SIZE).saturating_add(slot_size);
        // The state of a host that has more than this does not go through one piece of memory below 1 GiB.
        let size = fixed.saturating_add(stream).min(REACH / 2) / PAGE_SIZE * PAGE_SIZE;
        let end = free
            .iter()
            .map(|piece| AddressRange {
                start: piece.start,
                end: piece.end.min(REACH),
            })
            .filter(|piece| piece.start < piece.end && piece.size() >= size)
            .map(|piece| piece.end)
            .max()?;
        Some(Self {
            range: AddressRange {
                start: end.checked_sub(size)?,
                end,
            },
            event_pages,
            slot_size,
        })
    }

    /// The page that must be executable; all others are data.
    pub(super) fn code_page(&self) -> u64 {
        self.page(CODE_PAGE)
    }

    fn page(&self, index: u64) -> u64 {
        self.range
            .start
            .saturating_add(index.saturating_mul(PAGE_SIZE))
    }

    fn area(&self) -> AddressRange {
        AddressRange {
            start: self.page(EVENT_PAGES.saturating_add(self.event_pages)),
            end: self.range.end,
        }
    }
}

/// The reserve of this domain.
#[derive(Clone, Copy)]
pub(super) struct Reserve {
    layout: Layout,
    header: &'static Header,
}

static RESERVE: Once<Reserve> = Once::new();

/// The reserve, if there is one.
pub(super) fn get() -> Option<Reserve> {
    RESERVE.get().copied()
}

impl Reserve {
    /// Makes a new one, and puts a copy of the monitor into it.
    ///
    /// # Safety
    /// The memory must be nobody's, and mapped at its physical address for ever.
    pub(super) unsafe fn create(layout: Layout) -> Option<Self> {
        let size = usize::try_from(layout.area().start.checked_sub(layout.range.start)?).ok()?;
        let start = pointer(layout.range.start)?;
        // SAFETY: the caller vouches for the memory.
        unsafe { start.write_bytes(0, size) };
        // SAFETY: zeroed memory, page-aligned and ours for ever, is a header.
        let header: &'static Header = unsafe { start.cast::<Header>().as_ref() };
        header.begin();
        header.reserve_start.set(layout.range.start);
        header.reserve_end.set(layout.range.end);
        header.event_pages.set(layout.event_pages);
        header.slot_size.set(layout.slot_size);
        let reserve = Self { layout, header };
        reserve.keep();
        Some(reserve)
    }

    /// The one that an instance left at `address`.
    ///
    /// # Safety
    /// As for [`Reserve::create`], where a header is there and says what it says.
    pub(super) unsafe fn find(address: u64) -> Option<Self> {
        let start = pointer(address).filter(|_| address.is_multiple_of(PAGE_SIZE))?;
        // SAFETY: the caller vouches for the memory; a header is atomic throughout, so that any content is one.
        let header: &'static Header = unsafe { start.cast::<Header>().as_ref() };
        let range = header.reserve();
        let layout = Layout {
            range,
            event_pages: header.event_pages.get(),
            slot_size: header.slot_size.get(),
        };
        let is_sound = header.is_ours()
            && range.start == address
            && range.end <= REACH
            && layout.event_pages <= EVENT_PAGES_MAX
            && layout.area().start.saturating_add(layout.slot_size) < range.end;
        let reserve = is_sound.then_some(Self { layout, header })?;
        reserve.keep();
        Some(reserve)
    }

    fn keep(self) {
        RESERVE.call_once(|| self);
    }

    pub(super) fn layout(self) -> Layout {
        self.layout
    }

    pub(super) fn header(self) -> &'static Header {
        self.header
    }

    /// The control block of the FIFO ABI and our side of its queues.
    pub(super) fn fifo(self) -> Option<&'static FifoPage> {
        let page = pointer(self.layout.page(FIFO_PAGE))?;
        // SAFETY: a page of the reserve for this alone, zeroed at first and atomic throughout.
        Some(unsafe { page.cast::<FifoPage>().as_ref() })
    }

    /// A page of event words, and its physical address; none past those that there are.
    pub(super) fn event_page(self, index: u64) -> Option<(&'static EventPage, u64)> {
        if index >= self.layout.event_pages {
            return None;
        }
        let address = self.layout.page(EVENT_PAGES.saturating_add(index));
        // SAFETY: as for `fifo`.
        Some((
            unsafe { pointer(address)?.cast::<EventPage>().as_ref() },
            address,
        ))
    }

    /// Physical address of the slot.
    pub(super) fn slot(self) -> u64 {
        self.layout.area().start
    }

    /// Bytes of the slot.
    pub(super) fn slot_size(self) -> u64 {
        self.layout.slot_size
    }

    /// Bytes that a state stream may have.
    pub(super) fn stream_room(self) -> u64 {
        self.layout
            .area()
            .size()
            .saturating_sub(self.layout.slot_size)
    }

    /// The slot, for an image that is to follow.
    ///
    /// # Safety
    /// Only one such slice may be in use at a time.
    pub(super) unsafe fn slot_bytes(self) -> &'static mut [u8] {
        // SAFETY: the caller vouches for the slot.
        unsafe { bytes(self.slot(), self.layout.slot_size) }
    }

    /// Where the state stream goes.
    ///
    /// # Safety
    /// Only one such slice may be in use at a time.
    pub(super) unsafe fn stream_bytes(self) -> &'static mut [u8] {
        let start = self.slot().saturating_add(self.layout.slot_size);
        // SAFETY: the caller vouches for this part.
        unsafe { bytes(start, self.stream_room()) }
    }

    /// Puts this image's monitor into the reserve, and makes this image the one to come back to. From here on nobody else's monitor is
    /// there: the way back is closed.
    ///
    /// # Safety
    /// The monitor's tables must not be in use.
    pub(super) unsafe fn install_monitor(self) -> Option<()> {
        let (code, entries) = monitor_code();
        let page = pointer(self.layout.page(CODE_PAGE))?;
        if code.len() > usize::try_from(PAGE_SIZE).ok()? {
            return None;
        }
        // SAFETY: the page is the reserve's for this, as long as checked above, and no Rust memory.
        unsafe { page.copy_from_nonoverlapping(NonNull::from_ref(code).cast(), code.len()) };
        let base = self.layout.page(CODE_PAGE);
        // SAFETY: so are the pages of descriptors and tables.
        unsafe { self.install_descriptors(base, entries) };
        // SAFETY: as above.
        unsafe { self.install_tables() };
        let fields = &self.header.monitor;
        let stack = self.layout.page(STACK_PAGE.saturating_add(STACK_PAGES));
        fields.stack_top.set(stack);
        fields.tables.set(self.layout.page(TABLES_PAGE));
        fields.slot.set(self.slot());
        fields.refuse.set(self.entries().refuse);
        Some(())
    }

    /// Where the monitor's `monitor_refuse` is that another image put there.
    pub(super) fn refuse_entry(self) -> u64 {
        self.header.monitor.refuse.get()
    }

    /// Where the copy's `monitor_enter` and `monitor_refuse` are, if this image's is there.
    pub(super) fn entries(self) -> Entries {
        let base = self.layout.page(CODE_PAGE);
        let (_, offsets) = monitor_code();
        Entries {
            enter: base.saturating_add(offsets.enter),
            refuse: base.saturating_add(offsets.refuse),
            stubs: base.saturating_add(offsets.stubs),
            upcall: base.saturating_add(offsets.upcall),
            timer: base.saturating_add(offsets.timer),
        }
    }

    /// # Safety
    /// As for [`Reserve::install_monitor`].
    unsafe fn install_descriptors(self, code: u64, offsets: Entries) {
        /// 64-bit code of ring 0, and where the task's descriptor is: `monitor.s` has the selectors.
        const CODE: u64 = 0x0020_9b00_0000_0000;
        const TASK_LIMIT: u64 = 103;
        const TASK_AVAILABLE: u64 = 0x89 << 40;
        const TASK_AT: u64 = 64;
        const GATES_AT: u64 = 256;
        const STUB_SIZE: u64 = 16;
        let page = self.layout.page(DESCRIPTORS_PAGE);
        // SAFETY: `at` is one of the places below, all inside the page, which is the reserve's for this.
        let put = |at: u64, value: u64| unsafe { store(page.saturating_add(at), value) };
        let task = page.saturating_add(TASK_AT);
        let [low, middle, high] = [task & 0xff_ffff, (task >> 24) & 0xff, task >> 32];
        put(0, 0);
        put(8, CODE);
        put(
            16,
            TASK_LIMIT | (low << 16) | TASK_AVAILABLE | (middle << 56),
        );
        put(24, high);
        for at in (TASK_AT..TASK_AT + 104).step_by(8) {
            put(at, 0);
        }
        // The task state segment is packed: its first interrupt stack is at byte 36, as two halves of words.
        let stack = self.layout.page(STACK_PAGE.saturating_add(STACK_PAGES));
        put(TASK_AT + 32, stack << 32);
        put(TASK_AT + 40, stack >> 32);
        for vector in 0..VECTORS {
            let number = u64::try_from(vector).unwrap_or(u64::MAX);
            let handler = match vector {
                0..32 => offsets
                    .stubs
                    .saturating_add(number.saturating_mul(STUB_SIZE)),
                32 => offsets.upcall,
                _ => offsets.timer,
            };
            let address = code.saturating_add(handler);
            // The upcall returns, and may come twice: on a stack of its own the second would overwrite where the first returns to.
            let stack = u8::from(vector != usize::from(UPCALL_VECTOR));
            let [first, second] = Gate::to(address, 8, stack).words();
            let at = GATES_AT.saturating_add(number.saturating_mul(16));
            put(at, first);
            put(at.saturating_add(8), second);
        }
        let fields = &self.header.monitor;
        set_pointer(&fields.segments, 31, page);
        let gates = u64::try_from(VECTORS * 16 - 1).unwrap_or(0);
        set_pointer(&fields.gates, gates, page.saturating_add(GATES_AT));
    }

    /// Maps the first GiB at its own address, by large pages.
    ///
    /// # Safety
    /// As for [`Reserve::install_monitor`].
    unsafe fn install_tables(self) {
        const TABLE: u64 = 0x23;
        const LARGE_PAGE: u64 = 0xe3;
        const LARGE_PAGE_SIZE: u64 = 2 << 20;
        let page = |index: u64| self.layout.page(TABLES_PAGE.saturating_add(index));
        const { assert!(TABLE_PAGES == 3) };
        for (table, entry) in [(0, page(1) | TABLE), (1, page(2) | TABLE)] {
            // SAFETY: the table's page is the reserve's for this.
            unsafe { store(page(table), entry) };
        }
        for index in 0..512 {
            let address = index * LARGE_PAGE_SIZE;
            // SAFETY: as above, and a table has 512 entries.
            unsafe { store(page(2).saturating_add(index * 8), address | LARGE_PAGE) };
        }
    }
}

/// Entries of the monitor: addresses, or offsets from its start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entries {
    pub(super) enter: u64,
    pub(super) refuse: u64,
    stubs: u64,
    upcall: u64,
    timer: u64,
}

/// The operand of an `lgdt` or `lidt`, at byte 6 of two words so that its address is aligned.
fn set_pointer(field: &[Field; 2], limit: u64, base: u64) {
    const { assert!(size_of::<DescriptorTablePointer>() == 10) };
    let [first, second] = field;
    first.set(limit << 48);
    second.set(base);
}

/// # Safety
/// The address must be that of a word that nobody else uses.
unsafe fn store(address: u64, value: u64) {
    if let Some(word) = pointer(address) {
        // SAFETY: the caller vouches for the word.
        unsafe { word.cast::<u64>().write_volatile(value) };
    }
}

fn pointer(address: u64) -> Option<NonNull<u8>> {
    NonNull::new(with_exposed_provenance_mut(usize::try_from(address).ok()?))
}

/// # Safety
/// The memory must be mapped, nobody else's, and in no other slice that is in use.
unsafe fn bytes(start: u64, size: u64) -> &'static mut [u8] {
    let size = usize::try_from(size).unwrap_or(0);
    let start = pointer(start).unwrap_or(NonNull::dangling());
    // SAFETY: the caller vouches for the memory; bytes may have any value.
    unsafe { core::slice::from_raw_parts_mut(start.as_ptr(), size) }
}

core::arch::global_asm!(include_str!("monitor.s"));

/// The monitor as it lies in the image, and its entries as offsets.
fn monitor_code() -> (&'static [u8], Entries) {
    unsafe extern "C" {
        static monitor_start: u8;
        static monitor_enter: u8;
        static monitor_refuse: u8;
        static monitor_stubs: u8;
        static monitor_upcall: u8;
        static monitor_timer: u8;
        static monitor_end: u8;
    }
    let start = &raw const monitor_start;
    let offset = |symbol: *const u8| (symbol.addr() - start.addr()) as u64;
    let size = (&raw const monitor_end).addr() - start.addr();
    // SAFETY: `monitor.s` put all of it, read-only, between the two symbols.
    let code = unsafe { core::slice::from_raw_parts(start, size) };
    let entries = Entries {
        enter: offset(&raw const monitor_enter),
        refuse: offset(&raw const monitor_refuse),
        stubs: offset(&raw const monitor_stubs),
        upcall: offset(&raw const monitor_upcall),
        timer: offset(&raw const monitor_timer),
    };
    (code, entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn free(pieces: &[(u64, u64)]) -> PageRanges {
        let mut free = PageRanges::default();
        for (start, end) in pieces.iter().copied() {
            free.add(AddressRange { start, end });
        }
        free
    }

    #[test]
    fn it_is_the_upper_end_of_what_is_free_below_a_gib() {
        let image = 900 << 10;
        let small = Layout::plan(&free(&[(0x1000, MIB), (3 * MIB, 8 * MIB)]), image).unwrap();
        assert_eq!(small.range.end, 8 * MIB);
        assert!(small.slot_size >= image);
        let room = small.area().size() - small.slot_size;
        assert!((6 * MIB / 7..MIB).contains(&room), "{room}");
        let large = Layout::plan(&free(&[(3 * MIB, 4096 * MIB)]), image).unwrap();
        assert_eq!((large.range.end, large.range.size()), (REACH, REACH / 2));
        assert_eq!(Layout::plan(&free(&[(0x1000, MIB)]), image), None);
        let high = free(&[(2048 * MIB, 4096 * MIB)]);
        assert_eq!(Layout::plan(&high, image), None);
    }

    #[test]
    fn the_monitor_fits_its_page() {
        let (code, entries) = monitor_code();
        assert!(code.len() < 4096);
        let end = code.len() as u64;
        for entry in [entries.enter, entries.refuse, entries.upcall, entries.timer] {
            assert!(entry < end);
        }
        assert!(entries.stubs % 16 == 0 && entries.stubs + 31 * 16 < end);
    }
}
