//! Who hears of what: changes meet watches, permissions decide, and events wait in the watchers' queues.

use alloc::format;
use alloc::rc::Rc;
use core::mem;

use crate::acl::{Acl, Right};
use crate::bugs;
use crate::connection::Connection;
use crate::counters::Counter;
use crate::effects::{Change, Old};
use crate::faults;
use crate::ids::{ConnId, DomId};
use crate::output::{Event, EventText};
use crate::path::{Components, Path, PathRef};
use crate::run::fits;
use crate::server::Server;
use crate::storage::{Branch, Storage};
use crate::watch::{Watch, WatchId};

/// Events from one source that may wait for an unprivileged client; of what has no room, each watch concerned is told once more later.
const EVENTS_MAX: usize = 1024;

/// Bytes that finding an event among those that wait takes, besides its place in the queue.
const INDEX_BYTES: u64 = 64;

/// How far all that are to hear of something have heard of it, so that it can be told once more, to those who have not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Telling {
    /// Events that were come to.
    step: u64,
    /// Events that are queued, or were not to be.
    done: u64,
}

impl Telling {
    /// Begins once more.
    pub(crate) fn begin_again(&mut self) {
        self.step = 0;
    }

    /// Comes to the next event; whether it is yet to be told.
    fn is_next(&mut self) -> bool {
        self.step = self.step.wrapping_add(1);
        self.step > self.done
    }

    /// The present event is told.
    fn set_told(&mut self) {
        self.done = self.step;
    }
}

impl<S: Storage> Server<S> {
    /// Tells the watchers of committed changes, in order.
    pub(crate) fn tell(&mut self, changes: &[Change<S>]) {
        for change in changes {
            if let (true, Some(Old::Branch(old))) = (change.removed, &change.old) {
                self.tell_below(change.path.as_ref(), old);
            }
            self.tell_along(change);
        }
    }

    /// A change is heard on its path and above.
    fn tell_along(&mut self, change: &Change<S>) {
        let watches = self.watches.along(change.path.as_ref());
        if watches.is_empty() {
            return;
        }
        let telling = self.telling(change);
        for (id, distance) in watches {
            if let Some(watch) = self.watches.get(id)
                && watch.reaches(distance)
                && self.may_hear(watch.connection, telling.iter().flatten())
                && self.may_be_told(watch.connection, change.path.as_ref())
            {
                self.send(id, &change.path, false);
            }
        }
    }

    /// Whether one of these lists lets the client of a connection read.
    fn may_hear<'a>(&self, conn: ConnId, mut telling: impl Iterator<Item = &'a Rc<Acl>>) -> bool {
        let Some(connection) = self.connections.get(conn) else {
            return false;
        };
        if connection.privileged || bugs::XSA_115 {
            return telling.next().is_some();
        }
        self.domains
            .alive(connection.incarnation)
            .map(|domain| self.domains.subject(domain))
            .is_some_and(|subject| telling.any(|acl| acl.allows(&subject, Right::Read)))
    }

    /// Of a node that was cut off with one above it, only watches on itself hear.
    #[inline(never)]
    fn tell_below(&mut self, path: PathRef<'_>, removed: &S::Branch) {
        for id in self.watches.below(path) {
            let Some(watch) = self.watches.get(id) else {
                continue;
            };
            let whole = watch.path.as_str();
            let way = whole.get(path.as_str().len()..).unwrap_or_default();
            let Some(acl) = removed.acl(Components::of(way)) else {
                continue;
            };
            let above = way.rsplit_once('/').map_or("", |(above, _)| above);
            let parent = removed.acl(Components::of(above));
            if self.may_hear(watch.connection, [Some(acl), parent].into_iter().flatten())
                && self.may_be_told(watch.connection, watch.path.as_ref())
            {
                self.queue_event(id, watch.connection, watch.event(&watch.path), false);
            }
        }
    }

    /// The access control lists of which one must let a watcher read for it to hear of a change: the node's as it is, as it was, and its
    /// parent's (protocol.md section 8).
    fn telling(&self, change: &Change<S>) -> [Option<Rc<Acl>>; 3] {
        let path = change.path.as_ref();
        let now = |path| {
            let node = self.store.nodes.get(path);
            node.map(|node| Rc::clone(&node.acl))
        };
        let old = match &change.old {
            Some(Old::Acl(acl)) => Some(Rc::clone(acl)),
            Some(Old::Branch(branch)) => branch.acl(Components::of("")).cloned(),
            None => None,
        };
        let parent = path.parent().filter(|_| !path.is_special());
        [now(path), old, parent.and_then(now)]
    }

    /// Tells of one domain through a special name (protocol.md section 8.1).
    pub(crate) fn tell_special(&mut self, name: &str, domid: DomId) {
        let special = PathRef::known(name);
        let named = special.join(&format!("{domid}"));
        for (id, distance) in self.watches.along(named.as_ref()) {
            let deep = |watch: &Watch| watch.depth.is_some_and(|depth| depth >= distance);
            self.send_special(special, id, &named, |watch| distance == 0 || deep(watch));
        }
    }

    /// Tells through a special name that some domain was concerned.
    pub(crate) fn tell_special_plainly(&mut self, name: &str) {
        let special = PathRef::known(name);
        let shown = special.to_path();
        for (id, distance) in self.watches.along(special) {
            self.send_special(special, id, &shown, |watch| {
                distance == 0 && watch.depth.is_none()
            });
        }
    }

    fn send_special(
        &mut self,
        special: PathRef<'_>,
        id: WatchId,
        shown: &Path,
        wanted: impl Fn(&Watch) -> bool,
    ) {
        let node = self.store.nodes.get(special);
        if let Some(watch) = self.watches.get(id)
            && wanted(watch)
            && self.may_hear(watch.connection, node.map(|node| &node.acl).into_iter())
        {
            self.send(id, shown, true);
        }
    }

    /// The first event of a watch, which follows its registration whatever it may read.
    pub(crate) fn tell_first(&mut self, id: WatchId) {
        if let Some(watch) = self.watches.get(id) {
            let path = watch.path.clone();
            self.send(id, &path, path.as_ref().is_special());
        }
    }

    /// Tells the watches once more of which an event had no room, now that there is some.
    pub(crate) fn tell_lost(&mut self, conn: ConnId) {
        let lost = self
            .connections
            .get_mut(conn)
            .map(|connection| mem::take(&mut connection.lost));
        lost.into_iter()
            .flatten()
            .for_each(|id| self.tell_first(id));
    }

    /// Queues an event. One too long for a message is dropped; of one without room, its watch is told later.
    fn send(&mut self, id: WatchId, path: &Path, repeats: bool) {
        if let Some(watch) = self.watches.get(id) {
            self.queue_event(id, watch.connection, watch.event(path), repeats);
        }
    }

    fn queue_event(&mut self, id: WatchId, conn: ConnId, text: EventText, repeats: bool) {
        if !fits(text.len()) && !bugs::XSA_324 || !self.telling.is_next() {
            return;
        }
        faults::may_crash();
        let Some(has_room) = self.connections.get(conn).map(|to| self.has_room(conn, to)) else {
            return;
        };
        let Some(connection) = self.connections.get_mut(conn) else {
            return;
        };
        let room = has_room.then(|| connection.output.make_room()).flatten();
        let Some(taken) = room.or(connection.privileged.then_some(0)) else {
            connection.lost.insert(id);
            self.telling.set_told();
            let counters = &connection.counters;
            counters.suffer(Counter::EventsLost, 1, EVENTS_MAX, self.now);
            self.note_lost(id, &text);
            return;
        };
        let privileged = connection.privileged;
        let event = Event {
            watch: id,
            text,
            queued: self.now,
            cause: self.cause,
            repeats,
            is_counted: !privileged,
        };
        let queued = connection.output.event(event);
        self.telling.set_told();
        let Some(bytes) = queued else {
            connection.counters.count(Counter::EventsCoalesced);
            return;
        };
        faults::may_crash();
        connection.counters.count(Counter::EventsQueued);
        if !mem::replace(&mut connection.ready, true) {
            self.ready.push_back(conn);
        }
        self.events = self.events.wrapping_add(1);
        self.take_memory(taken.saturating_add(INDEX_BYTES));
        self.charge_cause(bytes);
        if !privileged {
            self.account(conn);
            self.set_deadline(conn);
        }
    }

    /// Whether one more event of the present source may wait for a client: the privileged one's always, others' while the source has
    /// a share of the queue left, and memory to pay with (hostility.md R21, R22). An empty queue has room for one: what is lost is told
    /// when the queue is empty again, so there must be something in it.
    fn has_room(&self, conn: ConnId, connection: &Connection<S>) -> bool {
        if connection.privileged || connection.output.is_empty() {
            return true;
        }
        let source = self.cause.map(|cause| cause.connection);
        connection.output.events_from(source) < EVENTS_MAX
            && self
                .connections
                .get(source.unwrap_or(conn))
                .is_some_and(|payer| self.lack(payer, 0).is_none())
    }
}
