//! What one start of the domain leaves to the next: where memory is, what is bound, why it ended. It lies in the reserve, at its beginning.
//!
//! The next start may be of another image, so the layout is an ABI: fields are added at the end and never change their meaning within one
//! `HANDOVER_VERSION`. All of them are atomic, because a crash can come between any two stores and is then read from elsewhere.

use core::fmt;
use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::ranges::{AddressRange, PageRanges, RANGES_MAX};
use crate::boot_info::COMMAND_LINE_MAX;
use crate::next_image::HANDOVER_VERSION;

/// "ferrosto", little-endian.
const MAGIC: u64 = u64::from_le_bytes(*b"ferrosto");
/// Bytes of a reason that is handed over.
pub(super) const REASON_MAX: usize = 511;
/// Crashes remembered, each with its time.
pub(super) const CRASHES_MAX: usize = 8;

/// Why the image runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The first start, or a later one that has been accepted.
    Running,
    /// It is tried: until it accepts, the image before it can come back.
    Trial,
    /// The image that was to follow did not accept. The reason says why.
    CameBack,
    /// The same image ended by a fault of its own. The reason says which.
    Crashed,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "started again",
            Self::Trial => "on trial after a live update",
            Self::CameBack => "back after a live update that failed",
            Self::Crashed => "restarted after a crash",
        })
    }
}

impl Stage {
    const fn code(self) -> u64 {
        match self {
            Self::Running => 0,
            Self::Trial => 1,
            Self::CameBack => 2,
            Self::Crashed => 3,
        }
    }

    const fn of_code(code: u64) -> Option<Self> {
        match code {
            0 => Some(Self::Running),
            1 => Some(Self::Trial),
            2 => Some(Self::CameBack),
            3 => Some(Self::Crashed),
            _ => None,
        }
    }
}

/// A number, read and written whole.
#[derive(Debug)]
#[repr(transparent)]
pub(super) struct Field(AtomicU64);

impl Field {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

/// The page of numbers and texts.
#[repr(C, align(4096))]
pub(super) struct Header {
    /// Read by `monitor.s`.
    pub(super) monitor: MonitorFields,
    magic: Field,
    version: Field,
    stage: Field,
    /// The reserve itself.
    pub(super) reserve_start: Field,
    pub(super) reserve_end: Field,
    /// Pages for event words that the reserve has, and how many of them Xen has taken; 1 if it was told of the control block.
    pub(super) event_pages: Field,
    pub(super) event_pages_used: Field,
    pub(super) has_control_block: Field,
    /// Bytes at the beginning of the area that are for an image.
    pub(super) slot_size: Field,
    /// Bytes of the state stream behind them, and entries of the table behind that: which page is whose.
    pub(super) stream_size: Field,
    pub(super) pages: Field,
    /// The same for an image that comes back, and where this begins, if that needs another stream; else 0.
    pub(super) back_at: Field,
    pub(super) back_size: Field,
    pub(super) back_pages: Field,
    /// Guest physical address where the window for foreign pages begins.
    pub(super) window_start: Field,
    /// Pages of `later` that Xen has given.
    pub(super) given: Field,
    /// Ports of virtual interrupts; 0 for none.
    pub(super) timer_port: Field,
    pub(super) exception_port: Field,
    /// System time when the last hand-over began, in nanoseconds.
    pub(super) began_ns: Field,
    /// Crashes since the first start, and when the last of them were.
    pub(super) crashes: Field,
    pub(super) crash_times_ns: [Field; CRASHES_MAX],
    /// Checksums of what the running image must not change.
    pub(super) image_checksum: Field,
    pub(super) ram: Ranges,
    pub(super) later: Ranges,
    pub(super) command_line: Text<{ COMMAND_LINE_MAX + 1 }>,
    /// That of an image that is tried.
    pub(super) next_command_line: Text<{ COMMAND_LINE_MAX + 1 }>,
    pub(super) reason: Text<{ REASON_MAX + 1 }>,
}
const _: () = assert!(size_of::<Header>() == 8192);
const _: () = assert!(offset_of!(Header, magic) == MONITOR_FIELDS_SIZE);

/// Bytes of [`MonitorFields`], part of the ABI.
const MONITOR_FIELDS_SIZE: usize = 192;

/// What the monitor's assembly reads and writes, at fixed places.
#[repr(C)]
pub(super) struct MonitorFields {
    /// 0: physical address of its page tables.
    pub(super) tables: Field,
    /// 8: top of its stack.
    pub(super) stack_top: Field,
    /// 16: operand of `lgdt`, from byte 6 on.
    pub(super) segments: [Field; 2],
    /// 32: operand of `lidt`, from byte 6 on.
    pub(super) gates: [Field; 2],
    /// 48: physical address of the image that runs.
    pub(super) image: Field,
    /// 56: physical address of the image that does not.
    pub(super) slot: Field,
    /// 64: bytes to be exchanged between the two; 0 if the running one starts again.
    pub(super) exchange: Field,
    /// 72: where the image is entered.
    pub(super) entry: Field,
    /// 80: where the image before it is entered.
    pub(super) way_back: Field,
    /// 88: 1 while the way back is open.
    pub(super) is_trial: Field,
    /// 96: ticks of the local APIC's timer that a trial may take; 0 if there is no such timer.
    pub(super) limit: Field,
    /// 104: 1 if the image to be entered has never run.
    pub(super) is_fresh: Field,
    /// 112: how a trial ended, see `monitor.s`.
    pub(super) outcome: Field,
    /// 120: the exception that ended it.
    pub(super) vector: Field,
    /// 128: its error code.
    pub(super) error_code: Field,
    /// 136: where.
    pub(super) rip: Field,
    /// 144: the address of a page fault.
    pub(super) cr2: Field,
    /// 152: where an image that is tried refuses.
    pub(super) refuse: Field,
    /// 160.
    pub(super) reserved: [Field; 4],
}
const _: () = assert!(size_of::<MonitorFields>() == MONITOR_FIELDS_SIZE);

impl Header {
    /// Makes zeroed memory a header.
    pub(super) fn begin(&self) {
        self.version.set(u64::from(HANDOVER_VERSION));
        self.magic.set(MAGIC);
    }

    /// Whether this is what an instance left that hands over as we take over.
    pub(super) fn is_ours(&self) -> bool {
        self.magic.get() == MAGIC && self.version.get() == u64::from(HANDOVER_VERSION)
    }

    pub(super) fn stage(&self) -> Option<Stage> {
        Stage::of_code(self.stage.get())
    }

    pub(super) fn set_stage(&self, stage: Stage) {
        self.stage.set(stage.code());
    }

    pub(super) fn reserve(&self) -> AddressRange {
        AddressRange {
            start: self.reserve_start.get(),
            end: self.reserve_end.get(),
        }
    }
}

/// A set of page ranges.
#[repr(C)]
pub(super) struct Ranges {
    count: Field,
    bounds: [[Field; 2]; RANGES_MAX],
}

impl Ranges {
    pub(super) fn set(&self, ranges: &PageRanges) {
        let mut count = 0;
        for ([start, end], range) in self.bounds.iter().zip(ranges.iter()) {
            start.set(range.start);
            end.set(range.end);
            count += 1;
        }
        self.count.set(count);
    }

    pub(super) fn get(&self) -> PageRanges {
        let count = usize::try_from(self.count.get()).unwrap_or(usize::MAX);
        let mut ranges = PageRanges::default();
        for [start, end] in self.bounds.iter().take(count) {
            ranges.add(AddressRange {
                start: start.get(),
                end: end.get(),
            });
        }
        ranges
    }
}

/// A text of less than `N` bytes.
#[repr(C)]
pub(super) struct Text<const N: usize> {
    bytes: [AtomicU8; N],
}

impl<const N: usize> Text<N> {
    /// Keeps as much of `text` as there is room for.
    pub(super) fn set(&self, text: &str) {
        self.clear();
        let _ = fmt::Write::write_str(&mut self.appender(), text);
    }

    pub(super) fn clear(&self) {
        for byte in &self.bytes {
            byte.store(0, Ordering::Relaxed);
        }
    }

    /// Writes on where the text ends. A formatter that fails half way leaves what it wrote.
    pub(super) fn appender(&self) -> Appender<'_> {
        let used = self
            .bytes
            .iter()
            .take_while(|byte| byte.load(Ordering::Relaxed) != 0);
        let used = used.count();
        Appender {
            room: self
                .bytes
                .get(used..N.saturating_sub(1))
                .unwrap_or_default(),
        }
    }

    pub(super) fn get(&self) -> heapless::String<N> {
        let bytes = self.bytes.iter().map(|byte| byte.load(Ordering::Relaxed));
        let printable = bytes.take_while(|byte| *byte != 0).map(|byte| {
            if byte == b' ' || byte.is_ascii_graphic() {
                char::from(byte)
            } else {
                '?'
            }
        });
        let mut text = heapless::String::new();
        for letter in printable {
            // There is room for as many as there are bytes.
            let _ = text.push(letter);
        }
        text
    }
}

/// The free end of a [`Text`].
pub(super) struct Appender<'a> {
    room: &'a [AtomicU8],
}

impl fmt::Write for Appender<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let count = text.len().min(self.room.len());
        let (taken, rest) = self.room.split_at(count);
        for (place, byte) in taken.iter().zip(text.bytes()) {
            place.store(byte, Ordering::Relaxed);
        }
        self.room = rest;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Write;

    fn header() -> Box<Header> {
        // SAFETY: all fields are atomic numbers, for which zero is a value.
        unsafe { Box::new_zeroed().assume_init() }
    }

    #[test]
    fn what_is_left_is_found() {
        let header = header();
        assert!(!header.is_ours());
        header.begin();
        assert!(header.is_ours());
        for stage in [
            Stage::Running,
            Stage::Trial,
            Stage::CameBack,
            Stage::Crashed,
        ] {
            header.set_stage(stage);
            assert_eq!(header.stage(), Some(stage));
        }
        header.stage.set(4);
        assert_eq!(header.stage(), None);
        let mut ram = PageRanges::default();
        for (start, end) in [(0x1000, 0x9000), (0x10_0000, 0x80_0000)] {
            ram.add(AddressRange { start, end });
        }
        header.ram.set(&ram);
        assert_eq!(header.ram.get(), ram);
        assert!(header.later.get().is_empty());
    }

    #[test]
    fn a_text_is_printable_and_cut_where_its_room_ends() {
        let header = header();
        header.reason.set("first");
        header.reason.set("a\nb");
        write!(header.reason.appender(), ", {}", 7).unwrap();
        assert_eq!(header.reason.get().as_str(), "a?b, 7");
        header.reason.set(&"x".repeat(2 * REASON_MAX));
        assert_eq!(header.reason.get().len(), REASON_MAX);
    }
}
