//! Whose request runs next: fair queueing by cost.
//!
//! A clock counts what each has got. A connection carries the clock's time up to which it has had its share, and each request that it runs
//! moves this on by its cost. The one whose request would end first, by what is foreseen of its cost, is next; the clock follows to where
//! that began. So what a client costs others is one share, whatever it asks for; and who asks for little now and then comes before all who
//! ask for much, and waits for the request that runs already and no other. It is what deficit round robin approximates, without a
//! quantum to choose.

use alloc::collections::BTreeSet;

use crate::ids::ConnId;

/// How far ahead of the others a connection can get, in units of cost: what is beyond that is forgotten.
const AHEAD_MAX: u64 = 10_000;

/// The clock's time up to which a connection has had its share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Served(pub(crate) u64);

impl Served {
    /// Up to where it has had its share when a request that began here has cost so much.
    pub(crate) fn after(self, cost: u32) -> Self {
        let cost = u64::from(cost).min(AHEAD_MAX);
        Self(self.0.saturating_add(cost))
    }
}

/// The connections with a request that may run, each once.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    pub(crate) clock: u64,
    /// The only one, most of the time.
    first: Option<Entry>,
    others: BTreeSet<Entry>,
}

/// One who waits. Fields in the order in which they decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    /// Where its request ends, as far as its cost is foreseen.
    pub(crate) ends: Served,
    /// Where it begins: not before the clock, so that who was away has not gathered a claim.
    pub(crate) begins: Served,
    /// Among equals, who has had less comes first.
    pub(crate) served: Served,
    pub(crate) conn: ConnId,
}

impl Turns {
    /// Adds one who is not among them, whose request is foreseen to cost so much.
    pub(crate) fn add(&mut self, conn: ConnId, served: Served, cost: u64) {
        self.put(self.entry(conn, served, cost));
    }

    /// The place that such a one would have now.
    #[inline]
    pub(crate) fn entry(&self, conn: ConnId, served: Served, cost: u64) -> Entry {
        let begins = served.max(Served(self.clock));
        Entry {
            ends: Served(begins.0.saturating_add(cost.min(AHEAD_MAX))),
            begins,
            served,
            conn,
        }
    }

    /// Adds one whose place is known.
    pub(crate) fn put(&mut self, entry: Entry) {
        if self.first.is_none() && self.others.is_empty() {
            self.first = Some(entry);
        } else {
            self.others.insert(entry);
        }
    }

    /// All who wait.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &Entry> {
        self.first.iter().chain(&self.others)
    }

    /// The next, and where its share begins; none if it is foreseen to cost more than `at_most`.
    pub(crate) fn next(&mut self, at_most: u64) -> Option<(ConnId, Served)> {
        let waiting = self.others.first().copied();
        let next = match (self.first, waiting) {
            (Some(first), Some(other)) => first.min(other),
            (first, waiting) => first.or(waiting)?,
        };
        let Entry {
            ends, begins, conn, ..
        } = next;
        if ends.0.saturating_sub(begins.0) > at_most {
            return None;
        }
        if self.first.take_if(|first| *first == next).is_none() {
            self.others.pop_first();
        }
        self.clock = self.clock.max(begins.0);
        Some((conn, begins))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none() && self.others.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use slotmap::{DefaultKey, SlotMap};

    fn connections(n: usize) -> Vec<ConnId> {
        let mut places: SlotMap<DefaultKey, ()> = SlotMap::new();
        let conn = |number| ConnId {
            number,
            key: places.insert(()),
        };
        (0..).take(n).map(conn).collect()
    }

    /// All ask without end, and each gets as much, whether its cost is foreseen or not.
    #[test]
    fn shares_are_equal_whatever_a_request_costs() {
        let costs = [1, 9, 100, 2000, 2000];
        for foreseen in [1, 2000] {
            let mut turns = Turns::default();
            let mut spent = [0_u64; 5];
            let conns = connections(5);
            for conn in &conns {
                turns.add(*conn, Served::default(), 1);
            }
            for _ in 0..50_000 {
                let (next, begins) = turns.next(u64::MAX).unwrap();
                let who = conns.iter().position(|conn| *conn == next).unwrap();
                let cost = u64::from(costs[who]);
                spent[who] += cost;
                turns.add(next, begins.after(costs[who]), cost.min(foreseen));
            }
            let (least, most) = (spent.iter().min().unwrap(), spent.iter().max().unwrap());
            assert!(most - least <= 4000, "{spent:?}");
        }
    }

    #[test]
    fn who_asks_now_and_then_is_next_however_many_ask_without_end() {
        let mut turns = Turns::default();
        let conns = connections(8);
        let mut moderate = Served::default();
        for conn in &conns[1..] {
            turns.add(*conn, Served::default(), 1);
        }
        for round in 0..10_000 {
            if round % 100 == 0 {
                turns.add(conns[0], moderate, 1);
            }
            let (next, begins) = turns.next(u64::MAX).unwrap();
            if round > 100 {
                assert_eq!(next == conns[0], round % 100 == 0, "round {round}");
            }
            let served = begins.after(5);
            if next == conns[0] {
                moderate = served;
            } else {
                turns.add(next, served, 1);
            }
        }
    }

    #[test]
    fn what_is_foreseen_to_cost_much_waits_for_what_costs_little() {
        let mut turns = Turns::default();
        let conns = connections(2);
        turns.add(conns[0], Served::default(), 1000);
        assert_eq!(turns.next(999), None);
        let mut served = Served::default();
        for _ in 0..100 {
            turns.add(conns[1], served, 1);
            let (next, begins) = turns.next(u64::MAX).unwrap();
            assert_eq!(next, conns[1]);
            served = begins.after(1);
        }
        assert_eq!(turns.next(1000), Some((conns[0], Served(0))));
    }

    #[test]
    fn a_great_cost_is_not_held_against_anyone_for_ever() {
        let mut turns = Turns::default();
        let conns = connections(2);
        turns.add(conns[0], Served::default(), u64::MAX);
        let (_, begins) = turns.next(u64::MAX).unwrap();
        let served = begins.after(u32::MAX);
        assert!(served.0 <= AHEAD_MAX);
        turns.add(conns[0], served, 1);
        assert_eq!(
            turns.next(u64::MAX),
            Some((conns[0], served)),
            "nobody else asks"
        );
        assert!(turns.is_empty());
        assert_eq!(turns.next(u64::MAX), None);
    }
}
