//! Who makes other clients' transactions fail, or lets them run again and again, pays for it (hostility.md R25, XSA-206).
//!
//! While transactions are open, the latest changes that guests made are kept. When a transaction ends with EAGAIN, those are to blame who
//! changed, since it began, what its first request depends on that would now be answered otherwise. Each pays one of its conflict
//! credit. And whatever a guest changes while another client has a transaction open costs write credit, since that transaction must be
//! merged. A guest without credit is held: its requests wait until there is some again. So a transaction that is repeated
//! succeeds after a few attempts, and nobody stands still for long.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::time::Duration;

use crate::acl::Incarnation;
use crate::bugs;
use crate::counters::Counter;
use crate::domain::Domain;
use crate::effects::{Change, Effects};
use crate::ids::ConnId;
use crate::path::{Path, PathRef};
use crate::refusal::Reason;
use crate::server::Server;
use crate::storage::Storage;
use crate::time::Instant;

/// Conflicts that a domain may cause: few at once, since each one costs its victim the whole transaction.
const CONFLICTS: Rate = Rate {
    burst: 5,
    interval: Duration::from_millis(50),
};
/// Changes that a domain may make while others have transactions open: many, since they only make a merge of a commit.
const WRITES: Rate = Rate {
    burst: 1000,
    interval: Duration::from_millis(1),
};
/// Changes that are kept, of all guests.
pub(crate) const CHANGES_MAX: usize = 256;
/// So many of the latest are looked through for an equal one.
const LATEST: usize = 8;

/// How much credit there is at most, and how long it takes until one more is there.
#[derive(Clone, Copy)]
struct Rate {
    burst: u32,
    interval: Duration,
}

/// A credit of one kind of a domain, which fills up as time goes by.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Credit {
    pub(crate) full_at: Instant,
}

impl Credit {
    /// Pays, and goes below zero if need be, but by no more than it can be above.
    fn pay(&mut self, count: u32, rate: Rate, now: Instant) {
        let full_at = self
            .full_at
            .max(now)
            .after(rate.interval.saturating_mul(count));
        let latest = now.after(rate.interval.saturating_mul(rate.burst).saturating_mul(2));
        self.full_at = full_at.min(latest);
    }

    /// When there is something of it.
    fn usable_at(self, rate: Rate) -> Instant {
        let others = rate.burst.saturating_sub(1);
        self.full_at.before(rate.interval.saturating_mul(others))
    }
}

/// What a domain may still do to others.
#[derive(Debug, Default)]
pub(crate) struct Credits {
    pub(crate) conflicts: Credit,
    pub(crate) writes: Credit,
}

/// A connection whose requests wait, mostly until its domain has credit again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hold {
    pub(crate) since: Instant,
    pub(crate) until: Instant,
    /// It is a layer that lets its request wait.
    pub(crate) is_parked: bool,
}

/// What is known of changes while transactions are open.
#[derive(Default)]
pub(crate) struct History {
    /// Each open transaction holds one.
    open: Rc<()>,
    pub(crate) changes: VecDeque<GuestChange>,
    /// How many there were.
    pub(crate) count: u64,
    /// Transactions that began so far.
    pub(crate) begun: u64,
}

pub(crate) struct GuestChange {
    pub(crate) number: u64,
    pub(crate) domain: Incarnation,
    /// The topmost node that was changed.
    pub(crate) path: Path,
    /// It was made or cut off, so that its parent's list has changed.
    pub(crate) is_listed: bool,
}

/// Kept by a transaction while it is open.
pub(crate) struct Opening {
    /// How many changes there were when it began.
    pub(crate) changes: u64,
    /// How many transactions began before.
    pub(crate) number: u64,
    pub(crate) since: Instant,
    _open: Rc<()>,
}

/// Why a transaction could not be merged.
pub(crate) struct Conflict {
    pub(crate) opening: Opening,
    /// What the first request names that would now be answered otherwise.
    pub(crate) path: Path,
}

impl History {
    /// For a transaction that begins.
    pub(crate) fn open(&mut self, now: Instant) -> Opening {
        if !self.is_open() {
            self.changes.clear();
        }
        self.begun = self.begun.wrapping_add(1);
        self.opened_at(self.count, self.begun, now)
    }

    /// For a transaction that began after so many changes, as the one with this number.
    pub(crate) fn opened_at(&self, changes: u64, number: u64, since: Instant) -> Opening {
        let _open = Rc::clone(&self.open);
        Opening {
            changes,
            number,
            since,
            _open,
        }
    }

    /// The changes that matter to those transactions.
    pub(crate) fn kept(&self) -> impl Iterator<Item = &GuestChange> {
        let is_open = self.is_open();
        self.changes.iter().filter(move |_| is_open)
    }

    /// How many transactions are open.
    #[cfg(feature = "journal")]
    pub(crate) fn open_transactions(&self) -> usize {
        Rc::strong_count(&self.open).saturating_sub(1)
    }

    /// Whether there are open transactions.
    fn is_open(&self) -> bool {
        self.is_open_besides(0)
    }

    /// Whether there are more open transactions than these.
    pub(crate) fn is_open_besides(&self, own: usize) -> bool {
        Rc::strong_count(&self.open) > own.saturating_add(1)
    }

    /// Keeps a change. Of equal ones in short succession the last one is enough.
    fn keep<S: Storage>(&mut self, domain: Incarnation, change: &Change<S>) {
        let path = change.top();
        let equal = |known: &GuestChange| known.domain == domain && known.path.as_ref() == path;
        let latest = self.changes.iter().rev().take(LATEST).position(equal);
        let at = latest.and_then(|back| self.changes.len().checked_sub(back.saturating_add(1)));
        let known = at.and_then(|at| self.changes.remove(at));
        if self.changes.len() >= CHANGES_MAX {
            self.changes.pop_front();
        }
        self.count = self.count.saturating_add(1);
        self.changes.push_back(GuestChange {
            number: self.count,
            domain,
            path: path.to_path(),
            is_listed: change.is_listed() || known.is_some_and(|known| known.is_listed),
        });
    }

    /// The domains, each once, without `victim`, that caused a conflict, as far as is known.
    fn to_blame(&self, conflict: &Conflict, victim: Incarnation) -> Vec<Incarnation> {
        let mut blamed = Vec::new();
        for change in self.changes.iter().rev() {
            if change.number <= conflict.opening.changes {
                break;
            }
            if change.domain != victim
                && change.matters_to(conflict.path.as_ref())
                && !blamed.contains(&change.domain)
            {
                blamed.push(change.domain);
            }
        }
        blamed
    }
}

impl GuestChange {
    /// Whether a request on a node could be answered otherwise because of this.
    fn matters_to(&self, path: PathRef<'_>) -> bool {
        let changed = self.path.as_ref();
        path.lies_in(changed) || self.is_listed && changed.parent() == Some(path)
    }
}

impl<S: Storage> Server<S> {
    /// Notes what a client has changed, if that can matter to transactions of others.
    pub(crate) fn note_changes(&mut self, conn: ConnId, effects: &Effects<S>) {
        if !self.history.is_open() {
            return;
        }
        let Some(connection) = self.connections.get(conn) else {
            return;
        };
        let own = connection.transactions.len();
        if connection.privileged || !self.history.is_open_besides(own) {
            return;
        }
        let domain = connection.incarnation;
        for change in effects.changes() {
            self.history.keep(domain, change);
        }
        let count = u32::try_from(effects.changes().len()).unwrap_or(u32::MAX);
        self.charge(domain, Reason::WriteCredit, count);
    }

    /// Counts a conflict, and lets those pay who caused it.
    pub(crate) fn note_conflict(&mut self, conn: ConnId) {
        self.count(conn, Counter::ConflictsSuffered);
        let Some(connection) = self.connections.get_mut(conn) else {
            return;
        };
        let victim = connection.incarnation;
        let Some(conflict) = connection.transactions.take_conflict() else {
            return;
        };
        if bugs::XSA_206 {
            return;
        }
        for domain in self.history.to_blame(&conflict, victim) {
            if let Some(counters) = self.domains.alive(domain).and_then(Domain::counters) {
                counters.count(Counter::ConflictsCaused);
            }
            self.charge(domain, Reason::ConflictCredit, 1);
        }
    }

    /// Lets a domain pay, and holds it if it has nothing left.
    fn charge(&mut self, domain: Incarnation, reason: Reason, count: u32) {
        let now = self.now;
        let Some(domain) = self.domains.alive_mut(domain) else {
            return;
        };
        let (credit, rate) = match reason {
            Reason::ConflictCredit => (&mut domain.credits.conflicts, CONFLICTS),
            _ => (&mut domain.credits.writes, WRITES),
        };
        credit.pay(count, rate, now);
        let until = credit.usable_at(rate);
        if until > now
            && let Some(conn) = domain.connection
        {
            self.hold(conn, until, reason, rate.burst);
        }
    }

    /// Lets the requests of a connection wait until then, at least.
    fn hold(&mut self, conn: ConnId, until: Instant, reason: Reason, limit: u32) {
        let now = self.now;
        let Some(connection) = self.connections.get_mut(conn) else {
            return;
        };
        let since = match connection.held {
            Some(hold) if until <= hold.until => return,
            Some(hold) if !hold.is_parked => {
                self.holds.remove(&(hold.until, conn));
                hold.since
            }
            parked => {
                if let Some(hold) = parked {
                    self.holds.remove(&(hold.until, conn));
                }
                connection.counters.refuse(reason, limit, now);
                now
            }
        };
        connection.held = Some(Hold {
            since,
            until,
            is_parked: false,
        });
        self.holds.insert((until, conn));
    }

    /// Lets those go on who have credit again.
    pub(crate) fn end_due_holds(&mut self) {
        let now = self.now;
        while let Some((until, conn)) = self.holds.first().copied()
            && until <= now
        {
            self.holds.remove(&(until, conn));
            self.end_hold(conn);
            self.queue(conn);
        }
    }

    /// Ends what a connection waits for, if it does, and counts the time.
    pub(crate) fn end_hold(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn)
            && let Some(hold) = connection.held.take()
        {
            self.holds.remove(&(hold.until, conn));
            if hold.is_parked {
                return;
            }
            let waited = u64::try_from(self.now.since(hold.since).as_millis()).unwrap_or(u64::MAX);
            connection.counters.count_more(Counter::HeldMs, waited);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effects::Old;
    use crate::ids::DomId;
    use crate::storage::AnyStorage;

    fn ms(milliseconds: u64) -> Instant {
        Instant(milliseconds * 1_000_000)
    }

    fn domain(domid: u16) -> Incarnation {
        Incarnation {
            domid: DomId::new(domid),
            life: slotmap::KeyData::from_ffi(domid.into()).into(),
        }
    }

    #[test]
    fn credit_comes_back_by_time_and_not_beyond_its_burst() {
        let mut credit = Credit::default();
        let now = ms(10_000);
        for _ in 0..4 {
            credit.pay(1, CONFLICTS, now);
        }
        assert!(credit.usable_at(CONFLICTS) <= now);
        credit.pay(1, CONFLICTS, now);
        assert_eq!(credit.usable_at(CONFLICTS), ms(10_050));
        credit.pay(1, CONFLICTS, ms(10_050));
        assert_eq!(credit.usable_at(CONFLICTS), ms(10_100));
        credit.pay(1, CONFLICTS, ms(20_000));
        assert!(credit.usable_at(CONFLICTS) <= ms(20_000));
        credit.pay(u32::MAX, CONFLICTS, ms(20_000));
        assert_eq!(credit.usable_at(CONFLICTS), ms(20_300));
    }

    fn change(path: &str, made: usize, removed: bool) -> Change {
        Change {
            path: Path::known(path),
            removed,
            made,
            old: None::<Old<AnyStorage>>,
        }
    }

    fn blamed(changes: &[(u16, Change)], path: &str) -> Vec<u16> {
        let mut history = History::default();
        let before = history.open(Instant(0));
        history.keep(domain(9), &change("/a/b", 0, false));
        let opening = history.open(Instant(0));
        for (domid, change) in changes {
            history.keep(domain(*domid), change);
        }
        drop(before);
        let path = Path::known(path);
        let blamed = history.to_blame(&Conflict { opening, path }, domain(1));
        blamed.iter().map(|domain| domain.domid.get()).collect()
    }

    #[test]
    fn those_are_to_blame_whose_changes_matter() {
        let none: [u16; 0] = [];
        let write = |path| [(2, change(path, 0, false))];
        assert_eq!(blamed(&write("/a/b"), "/a/b"), [2]);
        assert_eq!(blamed(&write("/a"), "/a/b"), [2]);
        assert_eq!(blamed(&write("/"), "/a/b"), [2]);
        assert_eq!(blamed(&write("/a/b/c"), "/a/b"), none);
        assert_eq!(blamed(&write("/a/bc"), "/a/b"), none);
        assert_eq!(blamed(&write("/a/c"), "/a/b"), none);
        for (made, removed) in [(1, false), (0, true)] {
            let listed = |path| [(2, change(path, made, removed))];
            assert_eq!(blamed(&listed("/a/b/c"), "/a/b"), [2]);
            assert_eq!(blamed(&listed("/a/b/c/d"), "/a/b"), none);
            assert_eq!(blamed(&listed("/a"), "/"), [2]);
        }
        let parents = |made| [(2, change("/a/b/c/d", made, false))];
        assert_eq!(blamed(&parents(2), "/a/b"), [2]);
        assert_eq!(blamed(&parents(4), "/"), [2]);
        assert_eq!(blamed(&parents(3), "/a/b"), [2]);
    }

    #[test]
    fn each_is_blamed_once_and_nobody_for_his_own_conflict() {
        let write = |domid| (domid, change("/a", 0, false));
        let changes = [write(2), write(1), write(3), write(2), write(3)];
        assert_eq!(blamed(&changes, "/a"), [3, 2]);
    }

    #[test]
    fn the_history_is_bounded_and_forgets_when_nothing_is_open() {
        let mut history = History::default();
        let opening = history.open(Instant(0));
        assert!(history.is_open() && !history.is_open_besides(1));
        for number in 0..1000 {
            history.keep(domain(2), &change(&format!("/{number}"), 1, false));
            history.keep(domain(2), &change(&format!("/{number}"), 0, false));
        }
        assert_eq!(history.changes.len(), CHANGES_MAX);
        assert!(history.changes.iter().all(|change| change.is_listed));
        drop(opening);
        assert!(!history.is_open());
        let _opening = history.open(Instant(0));
        assert_eq!(history.changes.len(), 0);
    }
}
