//! Who hears of what: changes meet watches, permissions decide, and events wait in the watchers' queues.

use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;

use crate::acl::{Right, Subject};
use crate::effects::Change;
use crate::ids::{ConnId, DomId};
use crate::output::Event;
use crate::path::{Components, Path};
use crate::run::fits;
use crate::server::Server;
use crate::tree::{Node, descend};
use crate::watch::{Watch, WatchId};

/// Events from one source that may wait for an unprivileged client; of what has no room, each watch concerned is told once more later.
const EVENTS_MAX: usize = 1024;

impl Server {
    /// Tells the watchers of committed changes, in order.
    pub(crate) fn tell(&mut self, changes: &[Change]) {
        for change in changes {
            if let (true, Some(old)) = (change.removed, &change.old) {
                self.tell_below(&change.path, old);
            }
            self.tell_along(change);
        }
    }

    /// A change is heard on its path and above.
    fn tell_along(&mut self, change: &Change) {
        let watches = self.watches.along(&change.path);
        if watches.is_empty() {
            return;
        }
        let telling = self.telling(change);
        for (id, distance) in watches {
            let Some((watch, subject)) = self.watcher(id) else {
                continue;
            };
            let may_hear = telling.iter().any(|node| readable(&subject, node));
            if watch.reaches(distance) && may_hear {
                let payload = watch.event(&change.path);
                self.send(watch.connection, id, payload, false);
            }
        }
    }

    /// Of a node that was cut off with one above it, only watches on itself hear.
    fn tell_below(&mut self, path: &Path, removed: &Rc<Node>) {
        for (id, way) in self.watches.below(path) {
            let Some((watch, subject)) = self.watcher(id) else {
                continue;
            };
            let Some(node) = descend(removed, Components::of(&way)) else {
                continue;
            };
            let above = way.rsplit_once('/').map_or("", |(above, _)| above);
            let parent = descend(removed, Components::of(above));
            if [Some(node), parent]
                .into_iter()
                .flatten()
                .any(|node| readable(&subject, node))
            {
                let payload = watch.event(&watch.path);
                self.send(watch.connection, id, payload, false);
            }
        }
    }

    /// The nodes of which a watcher must be able to read one to hear of a change: the node as it is, as it was, and its parent
    /// (protocol.md section 8).
    fn telling(&self, change: &Change) -> Vec<Rc<Node>> {
        let tree = &self.store.tree;
        [
            tree.get(&change.path),
            change.old.as_ref(),
            tree.parent(&change.path),
        ]
        .into_iter()
        .flatten()
        .cloned()
        .collect()
    }

    /// Tells of one domain through a special name (protocol.md section 8.1).
    pub(crate) fn tell_special(&mut self, name: &str, domid: DomId) {
        let special = Path::known(name);
        let named = Path::known(&format!("{name}/{domid}"));
        for (id, distance) in self.watches.along(&named) {
            let deep = |watch: &Watch| watch.depth.is_some_and(|depth| depth >= distance);
            self.send_special(&special, id, &named, |watch| distance == 0 || deep(watch));
        }
    }

    /// Tells through a special name that some domain was concerned.
    pub(crate) fn tell_special_plainly(&mut self, name: &str) {
        let special = Path::known(name);
        for (id, distance) in self.watches.along(&special) {
            self.send_special(&special, id, &special, |watch| {
                distance == 0 && watch.depth.is_none()
            });
        }
    }

    fn send_special(
        &mut self,
        special: &Path,
        id: WatchId,
        shown: &Path,
        wanted: impl Fn(&Watch) -> bool,
    ) {
        let node = self.store.tree.get(special);
        if let Some((watch, subject)) = self.watcher(id)
            && wanted(watch)
            && node.is_some_and(|node| readable(&subject, node))
        {
            let payload = watch.event(shown);
            self.send(watch.connection, id, payload, true);
        }
    }

    /// The first event of a watch, which follows its registration whatever it may read.
    pub(crate) fn tell_first(&mut self, id: WatchId) {
        if let Some(watch) = self.watches.get(id) {
            let payload = watch.event(&watch.path);
            self.send(watch.connection, id, payload, watch.path.is_special());
        }
    }

    /// Tells the watches once more of which an event had no room, now that there is some.
    pub(crate) fn tell_lost(&mut self, conn: ConnId) {
        let lost = self
            .connections
            .get_mut(&conn)
            .map(|connection| core::mem::take(&mut connection.lost));
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
        let Some(connection) = self.connections.get_mut(&conn) else {
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
        };
        if let Some(bytes) = connection.output.event(event) {
            self.events = self.events.wrapping_add(1);
            self.charge_cause(bytes);
            self.set_deadline(conn);
            self.account(conn);
            self.announce(conn);
        }
    }

    /// Whether one more event of the present source may wait for a client: the privileged one's always, others' while the source has
    /// a share of the queue left, and memory to pay with (hostility.md R21, R22). An empty queue has room for one: what is lost is told
    /// when the queue is empty again, so there must be something in it.
    fn has_room(&self, conn: ConnId) -> bool {
        let Some(connection) = self.connections.get(&conn) else {
            return false;
        };
        let privileged = self.subject(conn).is_some_and(|subject| subject.privileged);
        if privileged || connection.output.is_empty() {
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

fn readable(subject: &Subject, node: &Rc<Node>) -> bool {
    node.acl.allows(subject, Right::Read)
}
