//! The smallest host of the store: domains in a table, connections as byte queues, time by hand.
//!
//! It does only what the store asks for, so that the store's asking is tested too: output is fetched and input offered again only for
//! connections that `poll_ready` names, and time is told only when `poll_timeout` says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use xenstore::{
    Action, AnyStorage, ConnId, DomId, DomainEvent, Errno, Identity, Instant, Outcome, Progress,
    Server, Settings, Storage, UniqueId,
};

/// Little, so that runs are interrupted.
const BUDGET: u32 = 7;
/// Event channel ports that each domain has: the texts name 7 and 8.
const PORTS: u32 = 8;

pub(crate) struct Machine<S: Storage = AnyStorage> {
    pub(crate) server: Server<S>,
    domains: BTreeMap<u16, Domain>,
    pub(crate) links: BTreeMap<u16, Link>,
    pub(crate) now: Instant,
    born: u128,
    /// Connections of which the store said that they should be looked at.
    pub(crate) ready: BTreeSet<ConnId>,
    /// What happens whenever the host has done one thing and not yet the next.
    pub(crate) between: Option<fn(&mut Self)>,
}

/// A domain that exists.
struct Domain {
    identity: Identity,
    has_ring: bool,
}

/// A domain's way to the store.
pub(crate) struct Link {
    pub(crate) conn: ConnId,
    input: VecDeque<u8>,
    output: Vec<u8>,
    /// The store took nothing the last time: it is offered more when the store says so.
    refused: bool,
    reading: bool,
    stopped: bool,
}

impl<S: Storage> Machine<S> {
    /// A store with the privileged domain 0 connected.
    pub(crate) fn new(settings: Settings) -> Self {
        let mut machine = Self {
            server: Server::with_storage(settings),
            domains: BTreeMap::new(),
            links: BTreeMap::new(),
            now: Instant(0),
            born: 1000,
            ready: BTreeSet::new(),
            between: None,
        };
        machine.create(0, true);
        machine.open(0);
        machine
    }

    /// A new domain has this domid from now on, and this unique id. The store is not told.
    pub(crate) fn create(&mut self, domid: u16, has_ring: bool) -> u128 {
        self.born += 1;
        let identity = Identity {
            domid: DomId::new(domid),
            unique: UniqueId(self.born),
        };
        self.domains.insert(domid, Domain { identity, has_ring });
        self.born
    }

    /// A domain is no more. The store is not told.
    pub(crate) fn vanish(&mut self, domid: u16) -> Option<Identity> {
        self.domains.remove(&domid).map(|domain| domain.identity)
    }

    /// The ring was there when the store started.
    pub(crate) fn open(&mut self, domid: u16) {
        if let Some(domain) = self.domains.get(&domid) {
            let conn = self.server.open_domain(domain.identity);
            self.links.insert(domid, Link::new(conn));
        }
    }

    pub(crate) fn die(&mut self, domids: &[u16]) {
        self.pump();
        let mut events = Vec::new();
        for domid in domids {
            self.links.remove(domid);
            events.extend(self.vanish(*domid).map(DomainEvent::Dead));
        }
        self.server.handle_domains(&events, u32::MAX, false);
    }

    pub(crate) fn shut_down(&mut self, domids: &[u16]) {
        self.pump();
        let identities = domids.iter().filter_map(|domid| self.domains.get(domid));
        let events: Vec<DomainEvent> = identities
            .map(|domain| DomainEvent::Shutdown(domain.identity))
            .collect();
        self.server.handle_domains(&events, u32::MAX, false);
    }

    /// The guest wants a new connection: nothing of the old one is left in its ring.
    pub(crate) fn reconnect(&mut self, domid: u16) {
        self.pump();
        if let Some(link) = self.links.get_mut(&domid) {
            *link = Link::new(link.conn);
            self.server.reset(link.conn);
        }
    }

    pub(crate) fn break_ring(&mut self, domid: u16) {
        self.pump();
        if let Some(link) = self.links.get_mut(&domid) {
            link.stopped = true;
            self.server.stop(link.conn);
        }
    }

    pub(crate) fn set_reading(&mut self, domid: u16, reading: bool) {
        self.pump();
        if let Some(link) = self.links.get_mut(&domid) {
            link.reading = reading;
        }
    }

    /// Whether nothing of what a domain sent waits to run.
    pub(crate) fn takes_bytes(&mut self, domid: u16) -> bool {
        self.pump();
        let link = self.links.get(&domid);
        link.is_none_or(|link| self.server.takes_bytes(link.conn))
    }

    pub(crate) fn pass(&mut self, milliseconds: u64) {
        self.pump();
        self.now = Instant(self.now.0 + milliseconds * 1_000_000);
        if self
            .server
            .poll_timeout()
            .is_some_and(|due| due <= self.now)
        {
            self.server.handle_timeout(self.now);
        }
    }

    pub(crate) fn is_stopped(&mut self, domid: u16) -> bool {
        self.pump();
        self.links.get(&domid).is_some_and(|link| link.stopped)
    }

    /// Offers bytes; what the store does not take now waits. `false` if the domain has no connection.
    pub(crate) fn send(&mut self, domid: u16, bytes: &[u8]) -> bool {
        let Some(link) = self.links.get_mut(&domid) else {
            return false;
        };
        link.input.extend(bytes);
        link.refused = false;
        self.offer(domid);
        true
    }

    /// All bytes that came for a domain since the last call.
    pub(crate) fn receive(&mut self, domid: u16) -> Vec<u8> {
        self.pump();
        let link = self.links.get_mut(&domid);
        link.map(|link| core::mem::take(&mut link.output))
            .unwrap_or_default()
    }

    /// Works until nothing is left to do.
    pub(crate) fn pump(&mut self) {
        loop {
            let progress = self.server.run(self.now, BUDGET);
            self.interrupt();
            let mut idle = progress == Progress::Idle;
            while let Some(action) = self.server.poll_action() {
                self.act(&action);
                self.interrupt();
                idle = false;
            }
            while let Some(conn) = self.server.poll_ready() {
                self.ready.insert(conn);
                idle = false;
            }
            let domids: Vec<u16> = self.links.keys().copied().collect();
            for domid in domids {
                idle &= !self.look(domid);
                self.interrupt();
            }
            if idle {
                return;
            }
        }
    }

    fn interrupt(&mut self) {
        if let Some(between) = self.between {
            between(self);
        }
    }

    /// Does what the store asked for a connection to be looked at for; whether anything moved.
    fn look(&mut self, domid: u16) -> bool {
        let Some(link) = self.links.get_mut(&domid) else {
            return false;
        };
        if !link.reading || !self.ready.remove(&link.conn) {
            return false;
        }
        link.refused = false;
        loop {
            let bytes = self.server.poll_output(link.conn);
            let sent = bytes.len();
            if sent == 0 {
                break;
            }
            link.output.extend_from_slice(bytes);
            self.server.consume_output(link.conn, sent);
        }
        self.offer(domid);
        true
    }

    fn offer(&mut self, domid: u16) {
        let Some(link) = self.links.get_mut(&domid) else {
            return;
        };
        while !link.input.is_empty() && !link.refused && !link.stopped {
            match self
                .server
                .handle_bytes(link.conn, link.input.make_contiguous())
            {
                Ok(0) => link.refused = true,
                Ok(taken) => drop(link.input.drain(..taken)),
                Err(_) => link.stopped = true,
            }
        }
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Connect {
                ticket,
                conn,
                domid,
                port,
            } => {
                let domain = self.domains.get(&domid.get());
                let connects = |domain: &&Domain| domain.has_ring && port.0 <= PORTS;
                let outcome = match domain.filter(connects) {
                    Some(domain) => {
                        self.links.insert(domid.get(), Link::new(conn));
                        Outcome::Connected(domain.identity)
                    }
                    None => Outcome::Refused(Errno::EINVAL),
                };
                self.server.handle_completed(ticket, outcome);
            }
            Action::Disconnect { domid } => drop(self.links.remove(&domid.get())),
            Action::Identify { ticket, domid } => {
                let domain = self.domains.get(&domid.get());
                let outcome = Outcome::Identified(domain.map(|domain| domain.identity));
                self.server.handle_completed(ticket, outcome);
            }
        }
    }
}

impl Link {
    fn new(conn: ConnId) -> Self {
        Self {
            conn,
            input: VecDeque::new(),
            output: Vec::new(),
            refused: false,
            reading: true,
            stopped: false,
        }
    }
}
