//! Domains and their connections, from introduction to death, and what only time or a ring brings about (protocol.md section 7).

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::acl::{Who, owner};
use crate::nodes::{Change, cut, is_special};
use crate::queue::{Message, Queue};
use crate::{Answer, Client, Domain, Errno, Model, QUOTAS};

pub(crate) const INTRODUCE: &str = "@introduceDomain";
pub(crate) const RELEASE: &str = "@releaseDomain";

/// What became of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It has shut down.
    ShutDown,
    /// It is no more.
    Died,
}

impl Model {
    /// The machine said who has a domid, for a request of `asker`.
    pub fn identified(&mut self, asker: Option<u16>, domid: u16, unique: Option<u128>) {
        match unique {
            Some(unique) => self.meet(domid, unique),
            None => {
                if let Some(client) = asker.and_then(|asker| self.clients.get_mut(&asker)) {
                    client.absent.push(domid);
                }
            }
        }
    }

    /// The machine did, or did not do, what an INTRODUCE asked it for.
    pub fn introduced_as(&mut self, asker: Option<u16>, domid: u16, outcome: Result<u128, Errno>) {
        match outcome {
            Ok(unique) => {
                self.meet(domid, unique);
                if self.connect(domid) && !self.is_privileged(domid) {
                    self.tell_of(INTRODUCE, domid);
                    self.tell_plainly(INTRODUCE);
                }
            }
            Err(_) => self.stopped(domid),
        }
        let Some(asker) = asker else {
            return;
        };
        let client = self.clients.get_mut(&asker);
        let waiting = client.and_then(|client| client.waiting.take_if(|w| w.2 == domid));
        if let Some((req_id, tx_id, _)) = waiting {
            let answer = outcome.map(|_| Answer::Bytes(b"OK\0".to_vec()));
            self.reply(asker, (8, req_id, tx_id), answer);
        }
    }

    /// Becomes what the machine says of some domains; those that follow until the last one are told of plainly all at once.
    pub fn fates(&mut self, fates: &[(u16, u128, Fate)], is_last: bool) {
        for (domid, unique, fate) in fates {
            if self.known(*domid) != Some(*unique) {
                continue;
            }
            self.is_release_untold |= match fate {
                Fate::ShutDown => self.shut_down(*domid),
                Fate::Died => self.end(*domid),
            };
        }
        if is_last && std::mem::take(&mut self.is_release_untold) {
            self.tell_plainly(RELEASE);
        }
    }

    /// A connection begins anew, as its guest asked for, or another of its requests made it.
    pub fn reset(&mut self, domid: u16) {
        if let Some(client) = self.clients.get_mut(&domid) {
            let (number, requests) = (client.number, client.requests);
            *client = Client::new(number);
            client.requests = requests;
            client.forgotten = requests;
        }
    }

    /// A connection is stopped for a fault.
    pub fn stopped(&mut self, domid: u16) {
        self.reset(domid);
        if let Some(client) = self.clients.get_mut(&domid) {
            client.stopped = true;
        }
    }

    /// The server sent bytes: `count` of `rest`, which is what was left of a message.
    ///
    /// # Errors
    /// It is not what this domain must get next.
    pub fn sent(&mut self, domid: u16, rest: &[u8], count: usize) -> Result<(), String> {
        let client = self.clients.get_mut(&domid).ok_or("no such connection")?;
        if client.queue.sent(rest, count)? {
            self.tell_lost(domid);
        }
        Ok(())
    }

    /// The server looks what is too old.
    pub fn timeout(&mut self) {
        let limit = self.settings.event_timeout_ns;
        if limit > 0 {
            self.drop_old_events(limit);
        }
        self.time_leases();
    }

    fn drop_old_events(&mut self, limit: u64) {
        let now = self.now_ns;
        let domids: Vec<u16> = self.clients.keys().copied().collect();
        for domid in domids {
            if self.is_privileged(domid) {
                continue;
            }
            if let Some(client) = self.clients.get_mut(&domid) {
                let old = |queued: u64| queued.saturating_add(limit) <= now;
                client.queue.drop_events(|mark| old(mark.queued_ns));
            }
            self.tell_lost(domid);
        }
    }

    /// Tells the watches of which an event had no room, once there is nothing else to tell.
    pub(crate) fn tell_lost(&mut self, domid: u16) {
        let empty = |client: &&mut Client| client.queue.is_empty() && !client.lost.is_empty();
        let Some(client) = self.clients.get_mut(&domid).filter(empty) else {
            return;
        };
        for watch in std::mem::take(&mut client.lost) {
            self.tell_own(domid, watch);
        }
    }

    /// A domain becomes known. If another one was by its id, that one has ended.
    pub(crate) fn meet(&mut self, domid: u16, unique: u128) {
        if self.known(domid).is_some_and(|known| known != unique) && self.end(domid) {
            self.tell_plainly(RELEASE);
        }
        let features = self.settings.features;
        let lives = &mut self.counted.lives;
        self.domains.entry(domid).or_insert_with(|| {
            *lives += 1;
            Domain {
                life: *lives,
                unique: Some(unique),
                target: None,
                features,
                overrides: [None; QUOTAS.len()],
                told_shutdown: false,
            }
        });
    }

    /// Gives a domain a new connection; whether it is its first.
    pub(crate) fn connect(&mut self, domid: u16) -> bool {
        self.counted.connections += 1;
        let client = Client::new(self.counted.connections);
        self.clients.insert(domid, client).is_none()
    }

    fn shut_down(&mut self, domid: u16) -> bool {
        let is_introduced = self.clients.contains_key(&domid);
        let Some(domain) = self.domains.get_mut(&domid).filter(|_| is_introduced) else {
            return false;
        };
        let is_news = !std::mem::replace(&mut domain.told_shutdown, true);
        if is_news {
            self.tell_of(RELEASE, domid);
        }
        is_news
    }

    /// A domain is no more: its connection first, then its nodes, then it is told. Whether it had been introduced.
    pub(crate) fn end(&mut self, domid: u16) -> bool {
        if self.is_privileged(domid) {
            return false;
        }
        let life = self.life(domid);
        let was_introduced = self.clients.remove(&domid).is_some();
        let group = self.next_group();
        self.return_root(life, group);
        while let Some(path) = self.topmost_of(life) {
            let before = self.tree.clone();
            cut(&mut self.tree, &path);
            self.version += 1;
            let change = Change {
                path,
                removed: true,
            };
            self.tell(&before, &[change], Some(group));
        }
        self.domains.remove(&domid);
        self.version += 1;
        self.end_leases(domid);
        self.forget_choices(domid);
        if was_introduced {
            self.tell_of(RELEASE, domid);
        }
        was_introduced
    }

    /// The root cannot go with its owner: the privileged domain has it again.
    fn return_root(&mut self, life: Who, group: u64) {
        let heir = self.life(self.settings.privileged);
        let root = self
            .tree
            .get("/")
            .filter(|root| owner(&root.acl) == Some(life));
        let Some(mut root) = root.map(|root| (**root).clone()) else {
            return;
        };
        if let Some((_, who)) = root.acl.first_mut() {
            *who = heir;
        }
        let before = self.tree.clone();
        Rc::make_mut(&mut self.tree).insert("/".into(), Rc::new(root));
        let path = "/".to_owned();
        let removed = false;
        self.tell(&before, &[Change { path, removed }], Some(group));
    }

    /// A node that a domain owns, with none of its own above.
    fn topmost_of(&self, life: Who) -> Option<String> {
        let mut all = self.tree.iter();
        let found = all.find(|(path, node)| owner(&node.acl) == Some(life) && !is_special(path));
        found.map(|(path, _)| (**path).to_owned())
    }

    /// Queues a reply, and what follows it.
    pub(crate) fn reply(
        &mut self,
        domid: u16,
        (kind, req_id, tx_id): (u32, u32, u32),
        answer: Result<Answer, Errno>,
    ) {
        const ERROR: u32 = 16;
        let group = self.next_group();
        let cause = self.cause;
        let (kind, body) = match answer {
            Ok(Answer::Bytes(bytes)) if bytes.len() > crate::PAYLOAD_MAX => {
                (ERROR, Answer::Bytes(b"E2BIG\0".to_vec()))
            }
            Ok(body) => (kind, body),
            Err(name) => (ERROR, Answer::Bytes(format!("{name}\0").into_bytes())),
        };
        if let Some(client) = self.clients.get_mut(&domid) {
            client.absent.clear();
            client.queue.push(Message {
                kind,
                req_id,
                tx_id,
                body,
                cause,
                event: None,
                group,
            });
        }
    }
}

impl Client {
    pub(crate) fn new(number: u64) -> Self {
        Self {
            number,
            watches: Vec::new(),
            transactions: BTreeMap::new(),
            last_id: 0,
            queue: Queue::default(),
            lost: BTreeSet::new(),
            requests: 0,
            forgotten: 0,
            waiting: None,
            absent: Vec::new(),
            stopped: false,
        }
    }
}
