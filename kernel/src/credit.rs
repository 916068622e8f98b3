//! The right of a connection to be looked at: what keeps an idle ring free of cost and a busy one fair.
//!
//! A connection without credit is not looked at. Its event gives it one look; so does the store when it has something for it, and so
//! does a look that moved bytes, since the peer sends no event for what it adds meanwhile. Each look takes one, so the credit of a
//! connection that behaves moves between 0 and 1.
//!
//! An event that is lost, or was never sent, is made up for by the slow scan of all rings ([`crate::sweep`]). A connection that the scan
//! finds with work and without credit is *lazy*: it gets a bonus of further looks, spread over the time until the next scan, so that it
//! goes on in small steps and does not stand still from scan to scan. The bonus runs out, so that nobody is scanned for ever.

use alloc::collections::VecDeque;
use core::time::Duration;

use xenstore::{DomId, Instant};

/// Why a connection may be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// It sent an event, the store has something for it, or the look before moved bytes.
    Asked,
    /// The slow scan of all rings passed by.
    Scan,
    /// It is lazy: its bonus is not used up, or there is more to do after a look that it had not asked for.
    Bonus,
}

/// What a connection has left: one look or none, and a bonus if it was found lazy.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct IoCredit {
    look: Option<Look>,
    bonus: u32,
}

impl IoCredit {
    /// Grants one look. Grants merge while none is used, as events do in Xen; one that was asked for comes before the others. Answers
    /// whether it was not there before.
    pub fn grant(&mut self, look: Look) -> bool {
        let is_new = match self.look {
            None => true,
            Some(granted) => look == Look::Asked && granted != Look::Asked,
        };
        if is_new {
            self.look = Some(look);
        }
        is_new
    }

    /// Takes the look, if there is one.
    pub fn take(&mut self) -> Option<Look> {
        self.look.take()
    }

    /// Whether no look is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.look.is_none()
    }

    /// Gives a bonus of so many looks; answers whether there was none before.
    pub fn give_bonus(&mut self, looks: u32) -> bool {
        let had_none = self.bonus == 0;
        self.bonus = self.bonus.max(looks);
        had_none
    }

    /// Takes one look of the bonus; answers how many are left, `None` if there was none.
    pub fn take_bonus(&mut self) -> Option<u32> {
        self.bonus = self.bonus.checked_sub(1)?;
        Some(self.bonus)
    }
}

/// Looks that a connection gets when it is found lazy, on a host with so many domains.
#[must_use]
pub fn bonus(domains: usize) -> u32 {
    const ALONE: u32 = 32;
    const EACH_DOMAIN: u32 = 2;
    let domains = u32::try_from(domains).unwrap_or(u32::MAX);
    domains.saturating_mul(EACH_DOMAIN).saturating_add(ALONE)
}

/// The lazy connections in turn, a few at a time and at an even pace, however many they are.
#[derive(Debug)]
pub struct Lazy {
    /// Between two scans of a ring.
    interval: Duration,
    pace: Duration,
    next: Instant,
    /// Those with a bonus, each once.
    turn: VecDeque<DomId>,
}

impl Lazy {
    /// Lazy connections looked at in one step.
    pub const STEP: usize = 16;
    /// Steps are at least so far apart, so that they cost little whatever the number of domains.
    const SHORTEST_PACE: Duration = Duration::from_millis(1);

    /// Nobody is lazy yet; a ring is scanned once an `interval`.
    #[must_use]
    pub const fn new(interval: Duration) -> Self {
        Self {
            interval,
            pace: Self::SHORTEST_PACE,
            next: Instant(0),
            turn: VecDeque::new(),
        }
    }

    /// Adds one who was given a bonus of `looks` and is not among them.
    pub fn add(&mut self, domid: DomId, looks: u32, now: Instant) {
        self.pace = (self.interval / looks.max(1)).max(Self::SHORTEST_PACE);
        if self.turn.is_empty() {
            self.next = now.after(self.pace);
        }
        self.turn.push_back(domid);
    }

    /// When the next step is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        (!self.turn.is_empty()).then_some(self.next)
    }

    /// Who may be looked at now, at most [`Lazy::STEP`]: `spend` takes one look of a bonus and answers as [`IoCredit::take_bonus`].
    pub fn due(&mut self, now: Instant, mut spend: impl FnMut(DomId) -> Option<u32>) {
        if self.deadline().is_none_or(|due| now < due) {
            return;
        }
        self.next = now.after(self.pace);
        for _ in 0..self.turn.len().min(Self::STEP) {
            let Some(domid) = self.turn.pop_front() else {
                return;
            };
            if spend(domid).is_some_and(|left| left > 0) {
                self.turn.push_back(domid);
            }
        }
    }

    /// Forgets one whose connection has ended.
    pub fn remove(&mut self, domid: DomId) {
        self.turn.retain(|lazy| *lazy != domid);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn grants_merge_until_one_is_taken() {
        let mut credit = IoCredit::default();
        assert_eq!(credit.take(), None);
        assert!(credit.grant(Look::Asked));
        assert!(!credit.grant(Look::Asked));
        assert!(!credit.grant(Look::Scan));
        assert_eq!(credit.take(), Some(Look::Asked));
        assert_eq!(credit.take(), None);
    }

    #[test]
    fn who_asks_is_not_found_by_the_scan() {
        let mut credit = IoCredit::default();
        assert!(credit.grant(Look::Scan));
        assert!(!credit.grant(Look::Bonus));
        assert!(credit.grant(Look::Asked));
        assert_eq!(credit.take(), Some(Look::Asked));
        assert!(credit.is_empty());
    }

    #[test]
    fn a_bonus_is_topped_up_and_runs_out() {
        assert_eq!((bonus(0), bonus(10_000)), (32, 20_032));
        let mut credit = IoCredit::default();
        assert_eq!(credit.take_bonus(), None);
        assert!(credit.give_bonus(3));
        assert_eq!(credit.take_bonus(), Some(2));
        assert!(!credit.give_bonus(3));
        let rest: Vec<u32> = core::iter::from_fn(|| credit.take_bonus()).collect();
        assert_eq!(rest, [2, 1, 0]);
    }

    #[test]
    fn the_lazy_have_their_looks_spread_over_the_interval_and_are_let_go() {
        let mut lazy = Lazy::new(Duration::from_secs(20));
        let mut left: BTreeMap<DomId, u32> = (1..50).map(|id| (DomId::new(id), 100)).collect();
        for domid in left.keys() {
            lazy.add(*domid, 100, Instant(0));
        }
        let mut steps = 0;
        while let Some(due) = lazy.deadline() {
            let mut taken = 0;
            lazy.due(due, |domid| {
                taken += 1;
                let left = left.get_mut(&domid).unwrap();
                *left -= 1;
                Some(*left)
            });
            assert!((1..=Lazy::STEP).contains(&taken));
            steps += 1;
            assert_eq!(due, Instant(steps * 200_000_000));
        }
        assert_eq!(left.values().sum::<u32>(), 0);
        let mut asked = false;
        lazy.due(Instant(u64::MAX), |_| {
            asked = true;
            None
        });
        assert!(!asked, "nobody is lazy");
    }

    #[test]
    fn who_has_ended_is_not_looked_at() {
        let mut lazy = Lazy::new(Duration::from_secs(20));
        lazy.add(DomId::new(1), 100_000, Instant(0));
        assert_eq!(lazy.deadline(), Some(Instant(1_000_000)));
        lazy.remove(DomId::new(1));
        assert_eq!(lazy.deadline(), None);
    }
}
