//! Who hears of what (protocol.md section 8).

use std::collections::BTreeMap;

use crate::acl::{Subject, Who};
use crate::nodes::{Change, Node, Touched, Tree, below, is_special, parent};
use crate::queue::{Mark, Message};
use crate::{Client, Lost, Model, PAYLOAD_MAX, Watch};

/// Events of one source that may wait for an unprivileged client.
const EVENTS_MAX: usize = 1024;

/// An event for a watch of a client.
struct Told {
    to: u16,
    watch: u64,
    path: String,
    repeats: bool,
    group: u64,
}

impl Watch {
    /// How far below the watch's path another one lies, if it does.
    fn distance(&self, path: &str) -> Option<u32> {
        let rest = path.strip_prefix(&*self.path)?;
        if rest.is_empty() {
            return Some(0);
        }
        let rest = if self.path == "/" { path } else { rest };
        if !rest.starts_with('/') {
            return None;
        }
        u32::try_from(rest.matches('/').count()).ok()
    }

    fn shown(&self, domid: u16, path: &str) -> String {
        let home = format!("/local/domain/{domid}/");
        match path.strip_prefix(&home) {
            Some(rest) if self.relative => rest.to_owned(),
            _ => path.to_owned(),
        }
    }
}

impl Model {
    /// Tells of changes that the tree has now, in order; of what was removed with a node, in any order.
    pub(crate) fn tell(&mut self, before: &Tree, changes: &[Change], group: Option<u64>) {
        for change in changes {
            let mut told = Vec::new();
            if change.removed {
                let group = group.unwrap_or_else(|| self.next_group());
                for path in below(before, &change.path) {
                    let above = parent(&path).and_then(|above| before.get(above));
                    let readers = [before.get(path.as_str()), above];
                    let readers = readers.into_iter().flatten().map(|node| &**node);
                    let readers: Vec<&Node> = readers.collect();
                    self.find(&path, &readers, true, &mut told);
                }
                told.iter_mut()
                    .for_each(|told: &mut Told| told.group = group);
            }
            let from = told.len();
            let above = parent(&change.path).filter(|_| !is_special(&change.path));
            let readers = [
                self.tree.get(change.path.as_str()),
                before.get(change.path.as_str()),
                above.and_then(|above| self.tree.get(above)),
            ];
            let readers: Vec<&Node> = readers.into_iter().flatten().map(|node| &**node).collect();
            self.find(&change.path, &readers, false, &mut told);
            for told in told.iter_mut().skip(from) {
                told.group = group.unwrap_or_else(|| {
                    self.counted.groups += 1;
                    self.counted.groups
                });
            }
            told.into_iter().for_each(|told| self.push(told));
        }
    }

    pub(crate) fn next_group(&mut self) -> u64 {
        self.counted.groups += 1;
        self.counted.groups
    }

    /// Finds the watches on a path, and unless it must be `exact` above it, of those who may read one of the nodes.
    fn find(&self, path: &str, readers: &[&Node], exact: bool, told: &mut Vec<Told>) {
        for (domid, client) in &self.clients {
            let mut hears = None;
            for watch in &client.watches {
                let Some(distance) = watch.distance(path) else {
                    continue;
                };
                let in_depth = match watch.depth {
                    None => true,
                    Some(depth) => exact || distance <= depth && !is_special(path),
                };
                if (exact && distance > 0) || !in_depth {
                    continue;
                }
                let may = |node: &&Node| self.subject(*domid).may(&node.acl, b'r');
                let may_hear = || {
                    let kept_out = self.rules.is_kept_out(*domid, path, &self.tree);
                    readers.iter().any(may) && (self.is_privileged(*domid) || !kept_out)
                };
                if *hears.get_or_insert_with(may_hear) {
                    told.push(Told {
                        to: *domid,
                        watch: watch.id,
                        path: watch.shown(*domid, path),
                        repeats: false,
                        group: 0,
                    });
                }
            }
        }
    }

    /// Tells of a domain through a special name, by name (protocol.md section 8.1).
    pub(crate) fn tell_of(&mut self, special: &str, domid: u16) {
        let named = format!("{special}/{domid}");
        self.tell_special(special, &named, |watch| {
            let deep = watch.path == special && watch.depth.is_some_and(|depth| depth > 0);
            watch.path == named || deep
        });
    }

    /// Tells through a special name that some domain was concerned.
    pub(crate) fn tell_plainly(&mut self, special: &str) {
        self.tell_special(special, special, |watch| {
            watch.path == special && watch.depth.is_none()
        });
    }

    fn tell_special(&mut self, special: &str, path: &str, wanted: impl Fn(&Watch) -> bool) {
        let mut told = Vec::new();
        let node = self.tree.get(special).cloned();
        for (domid, client) in &self.clients {
            let subject = self.subject(*domid);
            if !node
                .as_ref()
                .is_some_and(|node| subject.may(&node.acl, b'r'))
            {
                continue;
            }
            let watches = client.watches.iter().filter(|watch| wanted(watch));
            told.extend(watches.map(|watch| Told {
                to: *domid,
                watch: watch.id,
                path: path.to_owned(),
                repeats: true,
                group: 0,
            }));
        }
        for mut told in told {
            told.group = self.next_group();
            self.push(told);
        }
    }

    /// The event on a watch's own path: its first one, or in place of lost ones.
    pub(crate) fn tell_own(&mut self, to: u16, watch: u64) {
        let group = self.next_group();
        let found = self.clients.get(&to).and_then(|client| client.watch(watch));
        let told = found.map(|watch| Told {
            to,
            watch: watch.id,
            path: watch.shown(to, &watch.path),
            repeats: is_special(&watch.path),
            group,
        });
        if let Some(told) = told {
            self.push(told);
        }
    }

    /// Queues an event, if it fits, has room and is not told already.
    fn push(&mut self, told: Told) {
        let has_room = self.has_room(&told);
        let (now, cause) = (self.now_ns, self.cause);
        let privileged = self.is_privileged(told.to);
        let Some(client) = self.clients.get_mut(&told.to) else {
            return;
        };
        let Some(watch) = client.watches.iter().find(|watch| watch.id == told.watch) else {
            return;
        };
        let mark = Mark {
            watch: told.watch,
            queued_ns: now,
            repeats: told.repeats,
        };
        let message = Message::event(&told.path, &watch.token, mark, cause, told.group);
        if told.path.len() + watch.token.len() + 2 > PAYLOAD_MAX {
            return;
        }
        if !has_room && !privileged {
            client.lost.insert(told.watch);
        } else if !client.queue.tells(&message) {
            client.queue.push(message);
        }
    }

    /// Whether an event has room: one source may have so many that wait. Which of those that a removal makes are lost, and whether there
    /// is memory to pay for them, the server says.
    fn has_room(&mut self, told: &Told) -> bool {
        let Some(client) = self.clients.get(&told.to) else {
            return true;
        };
        let privileged = self.is_privileged(told.to);
        let source = self.cause.map(|cause| cause.connection);
        let waiting = client.queue.events_from(source);
        let name = client.watch(told.watch).map(|watch| {
            let event = [told.path.as_bytes(), b"\0", &watch.token, b"\0"].concat();
            Lost {
                path: watch.path.clone(),
                is_told: client.queue.has_event(&event),
                event,
            }
        });
        let is_lost = |lost: &(u16, Lost)| lost.0 == told.to && Some(&lost.1) == name.as_ref();
        let Some(at) = self.lost.iter().position(is_lost) else {
            if waiting > EVENTS_MAX && !privileged {
                self.fault(format!(
                    "{waiting} events of {source:?} wait for d{}",
                    told.to
                ));
            }
            return true;
        };
        let is_possible = self.lenient || waiting >= EVENTS_MAX / 2;
        if is_possible && !privileged {
            self.lost.remove(at);
        }
        false
    }

    /// The server had no room for an event of a domain, in the step that comes next.
    pub fn loses(&mut self, domid: u16, lost: Lost) {
        self.lost.push((domid, lost));
    }

    /// One who asks or hears.
    pub(crate) fn subject(&self, domid: u16) -> Subject {
        let target = self.domains.get(&domid).and_then(|domain| domain.target);
        Subject {
            who: self.life(domid),
            target: target.filter(|target| self.is_alive(*target)),
            privileged: self.is_privileged(domid),
        }
    }

    fn is_alive(&self, who: Who) -> bool {
        self.life(who.domid()) == who
    }
}

impl Client {
    fn watch(&self, id: u64) -> Option<&Watch> {
        self.watches.iter().find(|watch| watch.id == id)
    }
}

/// Makes one change of all changes to a node, in the order in which the nodes were first touched; none of one that is in neither tree.
pub(crate) fn settle(
    before: &Tree,
    after: &Tree,
    changes: &[Change],
    touched: &Touched,
) -> Vec<Change> {
    let mut settled: BTreeMap<usize, Change> = BTreeMap::new();
    let there = |tree: &Tree, change: &Change| tree.contains_key(change.path.as_str());
    for change in changes {
        if !there(before, change) && !there(after, change) {
            continue;
        }
        let at = touched.order(&change.path).unwrap_or(usize::MAX);
        let known = settled.entry(at).or_insert_with(|| change.clone());
        known.removed |= change.removed;
    }
    settled.into_values().collect()
}
