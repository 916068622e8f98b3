//! Visiting many things slowly: all within an interval, a slice at a time, so that no tick costs more than its slice.
//!
//! Events and the virtual interrupt are hints that may be lost (hostility.md R28); sweeps find what they did not tell.

use alloc::vec::Vec;
use core::time::Duration;

use xenstore::Instant;

/// How many are visited in one tick.
pub const SLICE: usize = 64;

/// One kind of thing to visit. What is there all the time is visited within twice the interval.
#[derive(Debug)]
pub struct Sweep<T> {
    interval: Option<Duration>,
    tick: Duration,
    next: Instant,
    left: Vec<T>,
}

impl<T> Sweep<T> {
    /// Starts one interval from `now`; without an interval it never does.
    #[must_use]
    pub fn new(interval: Option<Duration>, now: Instant) -> Self {
        let tick = interval.unwrap_or_default();
        Self {
            interval,
            tick,
            next: now.after(tick),
            left: Vec::new(),
        }
    }

    /// When the next slice is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.interval.map(|_| self.next)
    }

    /// Those to visit now: none before the time, at most [`SLICE`]. `all` is asked at the start of each sweep.
    pub fn due<A: IntoIterator<Item = T>>(
        &mut self,
        now: Instant,
        all: impl FnOnce() -> A,
    ) -> Vec<T> {
        let Some(interval) = self.interval.filter(|_| now >= self.next) else {
            return Vec::new();
        };
        if self.left.is_empty() {
            self.left.extend(all());
            let slices = u32::try_from(self.left.len().div_ceil(SLICE)).unwrap_or(u32::MAX);
            self.tick = interval / slices.max(1);
        }
        self.next = now.after(self.tick);
        self.left.split_off(self.left.len().saturating_sub(SLICE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(20);

    fn members(n: usize) -> impl FnOnce() -> core::ops::Range<usize> {
        move || 0..n
    }

    #[test]
    fn visits_everyone_once_an_interval_in_slices() {
        const MANY: usize = 10 * SLICE + 1;
        let mut sweep = Sweep::new(Some(INTERVAL), Instant(0));
        assert!(sweep.due(Instant(1), members(MANY)).is_empty());

        let start = sweep.deadline().unwrap();
        let mut visited = Vec::new();
        while visited.len() < MANY {
            let slice = sweep.due(sweep.deadline().unwrap(), members(MANY));
            assert!((1..=SLICE).contains(&slice.len()));
            visited.extend(slice);
        }
        visited.sort_unstable();
        assert!(visited.into_iter().eq(0..MANY));
        let took = sweep.deadline().unwrap().since(start);
        assert!(took <= INTERVAL && took > INTERVAL * 9 / 10, "{took:?}");
    }

    #[test]
    fn waits_a_whole_interval_when_there_is_nothing() {
        let mut sweep = Sweep::new(Some(INTERVAL), Instant(0));
        let due = sweep.deadline().unwrap();
        assert!(sweep.due(due, members(0)).is_empty());
        assert_eq!(sweep.deadline(), Some(due.after(INTERVAL)));
    }

    #[test]
    fn can_be_switched_off() {
        let mut sweep = Sweep::new(None, Instant(0));
        assert!(sweep.due(Instant(u64::MAX), members(5)).is_empty());
        assert_eq!(sweep.deadline(), None);
    }
}
