//! After a crash: the state is exported by what is left of the instance, and the same image is started anew on it.
//!
//! Nothing of the crashed instance is trusted but the state itself, which the export only reads: it runs on a stack of its own, with memory
//! of its own, both in the reserve's slot. The image that starts is the one that ran: its text and read-only data cannot be written and have
//! a checksum, its other data begins as it did at the first start. If the export fails, too, or crashes follow each other, the domain ends.

use core::arch::asm;
use core::ops::Range;
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use spin::Once;

use super::handover::{CRASHES_MAX, Header, Stage};
use super::heap;
use super::ranges::AddressRange;
use super::reserve::{self, Reserve};
use super::{clock, start, trial, watch};
use crate::boot_info::ImageLayout;

/// As many crashes as are remembered within this time are the end.
const LOOP_TIME: Duration = Duration::from_secs(60);
/// Bytes of the stack on which the export runs; the rest of the slot is its memory.
const STACK_SIZE: u64 = 128 << 10;

/// What is left to hand over after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rescued {
    /// Bytes of the state stream.
    pub stream: usize,
    /// Pages noted behind it.
    pub pages: usize,
}

impl Rescued {
    /// Bytes of both.
    #[must_use]
    pub fn size(self) -> usize {
        self.stream
            .saturating_add(self.pages.saturating_mul(start::PAGE_ENTRY))
    }

    /// Leaves word of it to the next start, and of what is for an image that comes back, if that is another one.
    pub(super) fn note_in(self, header: &Header, way_back: Option<Self>) {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        header.stream_size.set(count(self.stream));
        header.pages.set(count(self.pages));
        header
            .back_at
            .set(way_back.map_or(0, |_| count(self.size())));
        header
            .back_size
            .set(way_back.map_or(0, |back| count(back.stream)));
        header
            .back_pages
            .set(way_back.map_or(0, |back| count(back.pages)));
    }
}

/// Who can still tell the state after a crash.
pub trait Rescue {
    /// Ends what was half done. It may crash, too; then what is left is rescued.
    fn complete(&mut self);

    /// Writes the state into `room`, touching nothing; none if there is not enough of it.
    fn rescue(&self, room: &mut [u8]) -> Option<Rescued>;
}

static IMAGE: Once<ImageLayout> = Once::new();
static GUARDED: Once<Guarded> = Once::new();

struct Guarded {
    /// The exposed address of a [`Rescue`] of the type that `rescue` knows.
    address: usize,
    rescue: unsafe fn(usize, &mut [u8]) -> Option<Rescued>,
}

/// How often the state was tried to be saved: the first time what was half done is ended, the second time it is left.
static TRIES: AtomicU32 = AtomicU32::new(0);
const TRIES_MAX: u32 = 2;

/// From now on a crash saves what `subject` knows.
pub fn guard<T: Rescue>(subject: &'static mut T) -> &'static mut T {
    let pointer = &raw mut *subject;
    GUARDED.call_once(|| Guarded {
        address: pointer.expose_provenance(),
        rescue: rescue_from::<T>,
    });
    // SAFETY: it is the one that was handed in.
    unsafe { &mut *pointer }
}

/// # Safety
/// `address` must be that of a live `T`, exposed, and nobody may change it any more.
unsafe fn rescue_from<T: Rescue>(address: usize, room: &mut [u8]) -> Option<Rescued> {
    // SAFETY: the caller vouches for it.
    let subject = unsafe { &mut *with_exposed_provenance_mut::<T>(address) };
    if TRIES.load(Ordering::Relaxed) < TRIES_MAX {
        subject.complete();
    }
    subject.rescue(room)
}

/// Remembers the image that a restart enters.
pub(super) fn start(image: ImageLayout) {
    IMAGE.call_once(|| image);
}

/// Bytes of the running image that a later start needs.
pub(super) fn image_size() -> u64 {
    IMAGE
        .get()
        .map_or(0, |image| image.kept.end.saturating_sub(image.rodata.start))
}

/// The checksum of what must be as it was when the image is started again.
pub(super) fn checksum(image: &ImageLayout) -> u32 {
    let mut checksum = crc32fast::Hasher::new();
    for part in [image.rodata, image.text, image.kept] {
        // SAFETY: the image's own read-only parts, mapped for ever.
        checksum.update(unsafe { bytes_of(part) });
    }
    checksum.finalize()
}

/// # Safety
/// The range must be mapped and nobody may write to it.
unsafe fn bytes_of(range: AddressRange) -> &'static [u8] {
    let start = usize::try_from(range.start).unwrap_or(0);
    let size = usize::try_from(range.size()).unwrap_or(0);
    // SAFETY: the caller vouches for it.
    unsafe { core::slice::from_raw_parts(with_exposed_provenance(start), size) }
}

/// Starts the image anew, with all that can be saved. Returns, with the reason, if that cannot be.
pub(super) fn restart() -> &'static str {
    let Some(reserve) = reserve::get() else {
        return "there is no reserve";
    };
    let Some(image) = IMAGE.get() else {
        return "it had not started";
    };
    if GUARDED.get().is_none() && reserve.header().stream_size.get() == 0 {
        return "it had not started";
    }
    match TRIES.fetch_add(1, Ordering::Relaxed) {
        0 if is_loop(reserve.header()) => return "it crashed too often",
        TRIES_MAX.. => return "it crashed while its state was saved",
        _ => {}
    }
    if u64::from(checksum(image)) != reserve.header().image_checksum.get() {
        return "the image is damaged";
    }
    let stack = reserve
        .slot()
        .saturating_add(STACK_SIZE.min(reserve.slot_size()));
    // SAFETY: nobody uses the slot any more, and nothing returns to the stack that is left. The pushed word keeps the alignment of a call.
    unsafe {
        asm!("mov rsp, {stack}", "xor ebp, ebp", "call {go_on}", "ud2",
             stack = in(reg) stack, go_on = sym export_and_enter, options(noreturn));
    }
}

extern "C" fn export_and_enter() -> ! {
    if let (Some(reserve), Some(image)) = (reserve::get(), IMAGE.get())
        && save(reserve)
    {
        let header = reserve.header();
        let fields = &header.monitor;
        fields.exchange.set(0);
        fields.entry.set(image.restart_entry);
        fields.is_fresh.set(0);
        fields.is_trial.set(0);
        header.set_stage(Stage::Crashed);
        trial::enter(reserve);
    }
    super::report::end("the state could not be saved")
}

/// Saves the state. Before there is any, what this start was given is still there.
fn save(reserve: Reserve) -> bool {
    let header = reserve.header();
    header.began_ns.set(clock::system_time().0);
    let Some(guarded) = GUARDED.get() else {
        return true;
    };
    // SAFETY: from here on the heap is not touched any more, and the slot behind the stack is nobody's.
    unsafe { heap::abandon(memory_of(reserve)) };
    // SAFETY: nothing else uses the stream's place any more.
    let room = unsafe { reserve.stream_bytes() };
    watch::allow_rescue();
    // SAFETY: `guard` exposed it; who could change it has crashed.
    let rescued = unsafe { (guarded.rescue)(guarded.address, room) };
    watch::stop();
    let Some(rescued) = rescued else {
        return false;
    };
    rescued.note_in(header, None);
    true
}

fn memory_of(reserve: Reserve) -> Range<u64> {
    let start = reserve.slot().saturating_add(STACK_SIZE);
    start..reserve.slot().saturating_add(reserve.slot_size())
}

/// Notes a crash, and answers whether there were too many lately.
fn is_loop(header: &Header) -> bool {
    let now = clock::system_time().0;
    let count = header.crashes.get();
    header.crashes.set(count.saturating_add(1));
    let place = usize::try_from(count).unwrap_or(usize::MAX) % CRASHES_MAX;
    let Some(oldest) = header.crash_times_ns.get(place) else {
        return true;
    };
    let limit = u64::try_from(LOOP_TIME.as_nanos()).unwrap_or(u64::MAX);
    let times = u64::try_from(CRASHES_MAX).unwrap_or(u64::MAX);
    let is_loop = count >= times && now.saturating_sub(oldest.get()) < limit;
    oldest.set(now);
    is_loop
}
