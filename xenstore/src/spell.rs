//! Trouble that a guest can repeat at will: told once a spell, counted in between (hostility.md R21, R30).

use core::fmt;
use core::time::Duration;

use crate::time::Instant;

/// How long one line of log stands for all trouble of its kind.
const SPELL: Duration = Duration::from_secs(60);

/// One kind of trouble from one source.
#[derive(Clone, Debug, Default)]
pub struct Spell {
    pub(crate) told: Option<Instant>,
    pub(crate) untold: u32,
}

impl Spell {
    /// Counts one more. The answer is there if it is time for a line about it, and says how many had none.
    pub fn count(&mut self, now: Instant) -> Option<Untold> {
        if self.told.is_some_and(|told| now.since(told) < SPELL) {
            self.untold = self.untold.saturating_add(1);
            return None;
        }
        self.told = Some(now);
        Some(Untold(core::mem::take(&mut self.untold)))
    }
}

/// How often it happened since the last line; written as the end of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untold(u32);

impl fmt::Display for Untold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            n => write!(f, " ({n} more before)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn second(s: u64) -> Instant {
        Instant(s * 1_000_000_000)
    }

    #[test]
    fn tells_the_first_of_a_spell_and_counts_the_rest() {
        let mut spell = Spell::default();
        assert_eq!(spell.count(second(1)), Some(Untold(0)));
        assert_eq!(spell.count(second(2)), None);
        assert_eq!(spell.count(second(60)), None);
        assert_eq!(spell.count(second(61)), Some(Untold(2)));
        assert_eq!(spell.count(second(62)), None);
        assert_eq!(spell.count(second(200)), Some(Untold(1)));
    }

    #[test]
    fn a_clock_that_goes_back_silences_but_does_not_panic() {
        let mut spell = Spell::default();
        assert!(spell.count(second(100)).is_some());
        assert_eq!(spell.count(second(1)), None);
        assert!(spell.count(second(160)).is_some());
    }
}
