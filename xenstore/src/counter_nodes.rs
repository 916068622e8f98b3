//! The counters as nodes below `/tool/xenstored/counters`: of each domain to which something noteworthy happened, and of all together.
//!
//! They follow the clock and not what happens, a few nodes at a time: whatever guests do, writing this costs others next to nothing.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::acl::Acl;
use crate::counters::Counters;
use crate::ids::DomId;
use crate::memory::Supply;
use crate::path::PathRef;
use crate::server::Server;
use crate::storage::Storage;
use crate::time::Instant;

/// Where they are.
const FOLDERS: [&str; 3] = {
    let [tool, store] = STORE_FOLDERS;
    [tool, store, "/tool/xenstored/counters"]
};
/// The nodes above.
pub(crate) const STORE_FOLDERS: [&str; 2] = ["/tool", "/tool/xenstored"];
/// Domains looked at in one step of a round.
const DOMAINS_A_STEP: usize = 256;
/// Nodes written in one step.
const NODES_A_STEP: usize = 16;
/// From one step to the next.
const PAUSE: Duration = Duration::from_millis(1);

/// How far they are.
#[derive(Debug, Default)]
pub(crate) struct CounterNodes {
    /// When the next round may begin.
    pub(crate) next_round: Instant,
    /// The domid at which the present round goes on, and when.
    pub(crate) next_step: Option<(DomId, Instant)>,
}

impl<S: Storage> Server<S> {
    /// When nodes must be written; never while there is nothing new to show.
    pub(crate) fn counter_nodes_due(&self) -> Option<Instant> {
        let CounterNodes {
            next_round,
            next_step,
        } = self.counter_nodes;
        let is_news = self.domains.is_noted() && !self.settings.counter_interval.is_zero();
        match next_step {
            Some((_, due)) => Some(due),
            None => is_news.then_some(next_round),
        }
    }

    /// Writes what is due. While memory is scarce nothing is.
    pub(crate) fn write_counter_nodes(&mut self) {
        let now = self.now;
        let next_round = now.after(self.settings.counter_interval);
        if self.counter_nodes_due().is_none_or(|due| now < due) {
            return;
        }
        if self.supply != Supply::Plenty {
            self.counter_nodes = CounterNodes {
                next_round,
                next_step: None,
            };
            return;
        }
        let from = match self.counter_nodes.next_step.take() {
            Some((domid, _)) => domid,
            None => {
                self.domains.take_note();
                self.counter_nodes.next_round = next_round;
                DomId::new(0)
            }
        };
        let (texts, rest) = self.noted_counters(from);
        for (domid, text) in texts {
            self.write_counter_node(&format!("{domid}"), &text);
        }
        if rest.is_none() {
            let total = self.domains.total().text();
            self.write_counter_node("total", &total);
        }
        self.counter_nodes.next_step = rest.map(|domid| (domid, now.after(PAUSE)));
    }

    /// Takes away the node of a domain that is no more.
    pub(crate) fn remove_counter_node(&mut self, domid: DomId) {
        let path = node_path(&format!("{domid}"));
        let path = PathRef::known(&path);
        if self.store.nodes.get(path).is_some() {
            self.edit().remove(path);
            self.commit(None);
        }
    }

    /// What is to be shown in this step; and where the next one begins, if it is not the last.
    fn noted_counters(&self, from: DomId) -> (Vec<(DomId, String)>, Option<DomId>) {
        let mut texts = Vec::new();
        for (looked_at, domain) in self.domains.iter_from(from).enumerate() {
            let domid = domain.incarnation.domid;
            if looked_at >= DOMAINS_A_STEP || texts.len() >= NODES_A_STEP {
                return (texts, Some(domid));
            }
            let counters = domain.counters();
            let noted = counters.filter(|counters| counters.take_note());
            texts.extend(noted.map(|counters| (domid, Counters::text(counters))));
        }
        (texts, None)
    }

    fn write_counter_node(&mut self, name: &str, text: &str) {
        self.write_own_node(&FOLDERS, name, text);
    }

    /// Writes a node below the last of these folders, each of which is below the one before.
    pub(crate) fn write_own_node(&mut self, folders: &[&str], name: &str, text: &str) {
        let folder = folders.last().copied().unwrap_or_default();
        let path = format!("{folder}/{name}");
        let path = PathRef::known(&path);
        self.create_missing(folders);
        let owner = self.domains.privileged();
        let present = self.store.nodes.get(path).map(|node| node.acl.owner());
        let mut edit = self.edit();
        if present == Some(owner) {
            edit.write(path, text.as_bytes());
        } else {
            // The toolstack may have given the node away: nobody else shall pay for it.
            if present.is_some() {
                edit.remove(path);
            }
            let acl = Rc::new(Acl::private(owner));
            edit.create(path, 1, text.as_bytes(), &acl);
        }
        self.commit(None);
    }
}

fn node_path(name: &str) -> String {
    let [.., folder] = FOLDERS;
    format!("{folder}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Counter;
    use crate::ids::{ConnId, Identity, UniqueId};
    use crate::server::Settings;

    fn second(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000_000)
    }

    /// A server with so many guests besides domain 0.
    fn server(guests: u16) -> (Server, Vec<ConnId>) {
        let dom0 = DomId::new(0);
        let mut server = Server::new(Settings::new(dom0, dom0));
        let open = |number| {
            server.open_domain(Identity {
                domid: DomId::new(number),
                unique: UniqueId(number.into()),
            })
        };
        let connections = (1..=guests).map(open).collect();
        (server, connections)
    }

    fn shown(server: &Server) -> usize {
        let [.., folder] = FOLDERS;
        let mut names = 0;
        if let Some(node) = server.store.nodes.get(PathRef::known(folder)) {
            node.children().names_from(0, |_, _| {
                names += 1;
                true
            });
        }
        names
    }

    #[test]
    fn a_round_is_made_of_small_steps() {
        let (mut server, connections) = server(40);
        assert_eq!(server.poll_timeout(), None);
        for conn in &connections {
            server.count(*conn, Counter::LazySpells);
        }
        let mut now = second(100);
        let mut seen = Vec::new();
        while let Some(due) = server.poll_timeout() {
            now = now.max(due);
            server.handle_timeout(now);
            seen.push(shown(&server));
        }
        assert_eq!(seen, [16, 32, 41]);
        assert_eq!(now, second(100).after(PAUSE * 2));
        server.count(connections[0], Counter::LazySpells);
        assert_eq!(server.poll_timeout(), Some(second(110)));
    }

    #[test]
    fn a_step_looks_at_a_few_domains_only() {
        let (mut server, connections) = server(600);
        server.count(connections[599], Counter::LazySpells);
        let mut steps = 0;
        while let Some(due) = server.poll_timeout() {
            server.handle_timeout(due);
            steps += 1;
        }
        assert_eq!((steps, shown(&server)), (3, 2));
    }

    #[test]
    fn while_memory_is_scarce_nothing_is_written() {
        let (mut server, connections) = server(1);
        server.handle_memory(Instant(0), 20 << 20, 100 << 20, u64::MAX);
        server.count(connections[0], Counter::LazySpells);
        server.handle_timeout(second(1));
        assert_eq!(shown(&server), 0);
        assert_eq!(server.poll_timeout(), Some(second(11)));
        server.handle_memory(Instant(0), 90 << 20, 100 << 20, u64::MAX);
        server.handle_timeout(second(11));
        assert_eq!(shown(&server), 2);
    }
}
