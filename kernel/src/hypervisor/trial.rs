//! A trial: another image takes this one's place, and this one comes back unless it accepts what is handed over in time.
//!
//! The image that is tried runs with the monitor's descriptor tables and with interrupts on, and no other interrupt can come than the local
//! APIC's timer: whatever it does, an exception or the end of its time leads back.

use core::arch::asm;
use core::fmt;
use core::time::Duration;

use x86_64::instructions::interrupts;

use super::handover::{Header, Stage};
use super::reserve::{self, Reserve};
use super::start::Exchange;
use super::trap::name_of;
use super::watch::{self, APIC_TIMER, TICKS_A_MILLISECOND, TIMER_MASKED};

/// How long an image may take to accept, besides what the size of the state takes.
const LIMIT: Duration = Duration::from_secs(5);
/// State that may take a second more.
pub(super) const BYTES_A_SECOND: u64 = 256 << 10;

/// What the monitor notes of how a trial ended.
const OUTCOME_FAULT: u64 = 1;
const OUTCOME_TIMEOUT: u64 = 2;

/// Whether this image is being tried.
pub(super) fn is_open() -> bool {
    reserve::get().is_some_and(|reserve| reserve.header().monitor.is_trial.get() != 0)
}

/// Goes over to the image in the slot. This one comes back by its own later start. All events must be masked.
pub(super) fn begin(reserve: Reserve, exchange: &Exchange) -> ! {
    watch::stop();
    let header = reserve.header();
    let limit = time_for(header.stream_size.get());
    let fields = &header.monitor;
    fields.exchange.set(exchange.size);
    fields.entry.set(exchange.entry);
    fields.is_fresh.set(1);
    fields.is_trial.set(1);
    fields.limit.set(if watch::has_timer() { limit } else { 0 });
    fields.outcome.set(0);
    header.reason.clear();
    header.set_stage(Stage::Trial);
    enter(reserve)
}

/// Enters the image that the header names.
pub(super) fn enter(reserve: Reserve) -> ! {
    let entry = reserve.entries().enter;
    // SAFETY: the monitor's code is there, mapped executable, and needs nothing of this image.
    unsafe { asm!("jmp {}", in(reg) entry, options(noreturn)) }
}

/// This image does not accept; the reason is in the header.
pub(super) fn refuse(reserve: Reserve) -> ! {
    let entry = reserve.refuse_entry();
    // SAFETY: as in `enter`; the monitor is that of the image that comes back.
    unsafe { asm!("jmp {}", in(reg) entry, options(noreturn)) }
}

/// Closes the way back: interrupts are off and the timer is stopped.
pub(super) fn close(header: &Header) {
    interrupts::disable();
    header.monitor.is_trial.set(0);
    if header.monitor.limit.get() != 0 {
        let mut timer = APIC_TIMER;
        // SAFETY: the timer's register, in the mode in which the trial was begun; masked, it interrupts nobody.
        unsafe { timer.write(TIMER_MASKED) };
    }
}

/// Why the image that was tried did not stay.
pub(super) struct Failure<'a>(pub(super) &'a Header);

impl fmt::Display for Failure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = &self.0.monitor;
        match fields.outcome.get() {
            OUTCOME_FAULT => write!(
                f,
                "the new image met exception {} ({}) at {:#x}, error code {:#x}, address {:#x}",
                fields.vector.get(),
                name_of(fields.vector.get()),
                fields.rip.get(),
                fields.error_code.get(),
                fields.cr2.get(),
            ),
            OUTCOME_TIMEOUT => write!(
                f,
                "the new image did not accept in time; it was at {:#x}",
                fields.rip.get()
            ),
            _ => write!(f, "the new image refused: {}", self.0.reason.get()),
        }
    }
}

fn time_for(stream_size: u64) -> u64 {
    let fixed = u64::try_from(LIMIT.as_millis()).unwrap_or(u64::MAX);
    let milliseconds = fixed.saturating_add(stream_size.saturating_mul(1000) / BYTES_A_SECOND);
    milliseconds
        .saturating_mul(TICKS_A_MILLISECOND)
        .min(u64::from(u32::MAX))
}
