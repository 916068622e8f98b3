//! System time from the processor's counter and Xen's scale for it, and the one timer.

use core::sync::atomic::{Ordering, fence};

use core::arch::x86_64::{_mm_lfence, _rdtsc};

use xenstore::Instant;

use super::abi::{RunState, SetSingleshotTimer};
use super::hypercall;
use super::shared_info::{self, TimeInfo};
use crate::xen::XenError;

/// Nanoseconds since the host started; 0 before Xen shares its page.
pub(super) fn system_time() -> Instant {
    let Some(shared) = shared_info::get() else {
        return Instant(0);
    };
    let (scale, tsc) = read(&shared.vcpu().time);
    Instant(scale.time_at(tsc))
}

/// Nanoseconds for which this domain has run. System time if Xen does not say, which includes the time that others had the processor.
pub(super) fn running_time_ns() -> u64 {
    let mut times = RunState {
        state: 0,
        padding: 0,
        since_ns: 0,
        times_ns: [0; 4],
    };
    // SAFETY: touches no other memory.
    let answer = unsafe { hypercall::perform(&mut times) };
    let [running, ..] = times.times_ns;
    answer.map_or_else(|_| system_time().0, |_| running)
}

/// A consistent scale and a counter value that belongs to it.
fn read(time: &TimeInfo) -> (Scale, u64) {
    /// Xen updates about once a second; not even a wrong one keeps us here.
    const ATTEMPTS: u32 = 1000;
    let mut sample = (Scale::default(), 0);
    for _ in 0..ATTEMPTS {
        let version = time.version.load(Ordering::Acquire);
        sample = (
            Scale {
                tsc_timestamp: time.tsc_timestamp.load(Ordering::Relaxed),
                system_time_ns: time.system_time_ns.load(Ordering::Relaxed),
                multiplier: time.tsc_to_system_multiplier.load(Ordering::Relaxed),
                shift: time.tsc_shift.load(Ordering::Relaxed),
            },
            counter(),
        );
        fence(Ordering::Acquire);
        let is_whole = version.is_multiple_of(2) && version == time.version.load(Ordering::Relaxed);
        if is_whole {
            break;
        }
    }
    sample
}

/// The time stamp counter, not before what stands before it.
fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction.
    unsafe { _mm_lfence() };
    // SAFETY: Xen leaves reading the counter to us or answers for it.
    unsafe { _rdtsc() }
}

/// How counter ticks become time (xen.h, `struct vcpu_time_info`).
#[derive(Clone, Copy, Debug, Default)]
struct Scale {
    tsc_timestamp: u64,
    system_time_ns: u64,
    /// Nanoseconds a tick, times 2^32, after the shift.
    multiplier: u32,
    /// To the left, or to the right if negative.
    shift: i8,
}

impl Scale {
    /// The time when the counter stood at `tsc`. A counter before the timestamp counts as the timestamp; absurd scales end at the
    /// end of time.
    ///
    /// Xen starts our counter near zero and may have taken the timestamp before that, as a very large number: only the difference,
    /// signed, means something.
    fn time_at(self, tsc: u64) -> u64 {
        let ticks = tsc.wrapping_sub(self.tsc_timestamp).cast_signed();
        let ticks = u128::try_from(ticks).unwrap_or(0);
        let by = u32::from(self.shift.unsigned_abs());
        let shifted = if self.shift < 0 {
            ticks.checked_shr(by)
        } else {
            // The high half must stay empty for the multiplication.
            ticks
                .checked_shl(by)
                .filter(|shifted| by < u64::BITS && shifted >> by == ticks)
        };
        let elapsed = shifted
            .and_then(|ticks| ticks.checked_mul(u128::from(self.multiplier)))
            .map_or(u128::MAX, |scaled| scaled >> 32);
        self.system_time_ns
            .saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }
}

/// The single-shot timer, which raises its event at a time. Remembers what it is set to, because setting it is a VM exit.
#[derive(Debug, Default)]
pub(super) struct Timer {
    armed_for: Option<Instant>,
}

impl Timer {
    /// Lets the timer's event come at `deadline`.
    ///
    /// # Errors
    /// What Xen answered; the timer is as it was.
    pub(super) fn arm(&mut self, deadline: Instant) -> Result<(), XenError> {
        if self.armed_for == Some(deadline) {
            return Ok(());
        }
        let mut timer = SetSingleshotTimer {
            deadline_ns: deadline.0,
            flags: 0,
            padding: 0,
        };
        // SAFETY: touches no memory.
        unsafe { hypercall::perform(&mut timer) }?;
        self.armed_for = Some(deadline);
        Ok(())
    }

    /// The timer's event has come.
    pub(super) fn fired(&mut self) {
        self.armed_for = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2 GHz: half a nanosecond a tick.
    const TWO_GHZ: Scale = Scale {
        tsc_timestamp: 1000,
        system_time_ns: 5_000,
        multiplier: 1 << 31,
        shift: 0,
    };

    #[test]
    fn ticks_become_nanoseconds() {
        assert_eq!(TWO_GHZ.time_at(1000), 5_000);
        assert_eq!(TWO_GHZ.time_at(3000), 6_000);
        let right = Scale {
            shift: -1,
            ..TWO_GHZ
        };
        assert_eq!(right.time_at(3000), 5_500);
        let left = Scale {
            shift: 1,
            ..TWO_GHZ
        };
        assert_eq!(left.time_at(3000), 7_000);
    }

    #[test]
    fn a_timestamp_from_before_the_counters_zero_counts() {
        let early = Scale {
            tsc_timestamp: 0_u64.wrapping_sub(1000),
            ..TWO_GHZ
        };
        assert_eq!(early.time_at(1000), 6_000);
    }

    #[test]
    fn a_counter_that_went_back_does_not_take_time_back() {
        assert_eq!(TWO_GHZ.time_at(0), 5_000);
    }

    #[test]
    fn large_counts_and_absurd_scales_do_not_overflow() {
        let year = Scale {
            multiplier: u32::MAX,
            ..TWO_GHZ
        };
        assert_eq!(
            year.time_at(1 << 60),
            5_000 + ((1 << 60) - 1000 - (1 << 28))
        );
        for shift in [i8::MIN, -64, 63, 64, i8::MAX] {
            let scale = Scale { shift, ..TWO_GHZ };
            assert!(scale.time_at(u64::MAX) >= 5_000);
        }
    }
}
