//! Who hears of what: changes meet watches, permissions decide, and events wait in the watchers' queues.

use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::mem;

use crate::acl::{Acl, Right, Subject};
use crate::effects::{Change, Old};
use crate::ids::{ConnId, DomId};
use crate::output::Event;
use crate::path::{Components, Path, PathRef};
use crate::run::fits;
use crate::server::Server;
use crate::storage::{Branch, Storage};
use crate::watch::{Watch, WatchId};

/// Events from one source that may wait for an unprivileged client; of what has no room, each watch concerned is told once more later.
const EVENTS_MAX: usize = 1024;

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
            let Some((watch, subject)) = self.watcher(id) else {
                continue;
            };
            let mut telling = telling.iter().flatten();
            if watch.reaches(distance) && telling.any(|acl| acl.allows(&subject, Right::Read)) {
                let payload = watch.event(change.path.as_ref());
                self.send(watch.connection, id, payload, false);
            }
        }
    }

    /// Of a node that was cut off with one above it, only watches on itself hear.
    fn tell_below(&mut self, path: PathRef<'_>, removed: &S::Branch) {
        for (id, way) in self.watches.below(path) {
            let Some((watch, subject)) = self.watcher(id) else {
                continue;
            };
            let Some(acl) = removed.acl(Components::of(&way)) else {
                continue;
            };
            let above = way.rsplit_once('/').map_or("", |(above, _)| above);
            let parent = removed.acl(Components::of(above));
            let mut telling = [Some(acl), parent].into_iter().flatten();
            if telling.any(|acl| acl.allows(&subject, Right::Read)) {
                let payload = watch.event(watch.path.as_ref());
                self.send(watch.connection, id, payload, false);
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
        if let Some((watch, subject)) = self.watcher(id)
            && wanted(watch)
            && node.is_some_and(|node| node.acl.allows(&subject, Right::Read))
        {
            let payload = watch.event(shown.as_ref());
            self.send(watch.connection, id, payload, true);
        }
    }

    /// The first event of a watch, which follows its registration whatever it may read.
    pub(crate) fn tell_first(&mut self, id: WatchId) {
        if let Some(watch) = self.watches.get(id) {
            let path = watch.path.as_ref();
            let payload = watch.event(path);
            self.send(watch.connection, id, payload, path.is_special());
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
    fn send(&mut self, conn: ConnId, watch: WatchId, payload: Vec<u8>, repeats: bool) {
        if !fits(payload.len()) {
            return;
        }
        let has_room = self.has_room(conn);
        let Some(connection) = self.connections.get_mut(conn) else {
            return;
        };
        if !has_room {
            connection.lost.insert(watch);
            return;
        }
        let event = Event {
            watch,
            payload,
            queued: self.now,
            cause: self.cause,
            repeats,
            is_counted: !connection.privileged,
        };
        let Some(bytes) = connection.output.event(event) else {
            return;
        };
        if !mem::replace(&mut connection.ready, true) {
            self.ready.push_back(conn);
        }
        self.events = self.events.wrapping_add(1);
        if self.cause.is_some() {
            self.charge_cause(bytes);
        } else {
            self.account(conn);
        }
        self.set_deadline(conn);
    }

    /// Whether one more event of the present source may wait for a client: the privileged one's always, others' while the source has
    /// a share of the queue left, and memory to pay with (hostility.md R21, R22). An empty queue has room for one: what is lost is told
    /// when the queue is empty again, so there must be something in it.
    fn has_room(&self, conn: ConnId) -> bool {
        let Some(connection) = self.connections.get(conn) else {
            return false;
        };
        if connection.privileged || connection.output.is_empty() {
            return true;
        }
        let source = self.cause.map(|cause| cause.connection);
        connection.output.events_from(source) < EVENTS_MAX
            && self.check_memory(source.unwrap_or(conn), 0).is_ok()
    }

    fn watcher(&self, id: WatchId) -> Option<(&Watch, Subject)> {
        let watch = self.watches.get(id)?;
        Some((watch, self.subject(watch.connection)?))
    }
}
