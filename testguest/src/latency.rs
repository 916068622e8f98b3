//! How long requests take, as the guest itself sees it.

use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

/// Requests of one line of figures.
const SAMPLES: usize = 200;

/// Times of requests, until there are enough for a line.
#[derive(Default)]
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    /// Adds one; the figures, if they are complete, and then begins anew.
    pub(crate) fn add(&mut self, took: Duration) -> Option<Figures> {
        self.0.push(took);
        if self.0.len() < SAMPLES {
            return None;
        }
        let mut sorted = core::mem::take(&mut self.0);
        sorted.sort_unstable();
        let at = |per_mille: usize| sorted.get(sorted.len().saturating_sub(1) * per_mille / 1000);
        Some(Figures {
            requests: sorted.len(),
            p50: at(500).copied().unwrap_or_default(),
            p99: at(990).copied().unwrap_or_default(),
            max: at(1000).copied().unwrap_or_default(),
        })
    }
}

/// One line.
pub(crate) struct Figures {
    requests: usize,
    p50: Duration,
    p99: Duration,
    max: Duration,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests, p50 {} us, p99 {} us, max {} us",
            self.requests,
            self.p50.as_micros(),
            self.p99.as_micros(),
            self.max.as_micros()
        )
    }
}
