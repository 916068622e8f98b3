//! A store with its domains in memory, and clients that hold it to its replies: one for each request, in order, well formed.

use std::collections::VecDeque;

use xenstore::wire::{HEADER_SIZE, Header, Kind, PAYLOAD_MAX};
use xenstore::{
    Action, ConnId, DomId, DomainEvent, Errno, Identity, Instant, Outcome, Progress, ReqId, Server,
    Settings, Storage, UniqueId,
};

/// Domains that can be: the toolstack's and two guests.
pub(crate) const DOMAINS: usize = 3;
/// What each turn of the store may cost: little, so that it is interrupted.
const BUDGET: u32 = 9;

/// A store and its clients.
pub(crate) struct World<S: Storage> {
    server: Server<S>,
    now: Instant,
    born: u128,
    clients: [Client; DOMAINS],
}

#[derive(Default)]
struct Client {
    identity: Option<Identity>,
    conn: Option<ConnId>,
    /// What the store has not taken yet.
    unsent: Vec<u8>,
    received: Vec<u8>,
    /// Requests without a reply.
    awaited: VecDeque<Header>,
    is_stopped: bool,
    reads: bool,
}

/// A message from the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
}

impl<S: Storage> World<S> {
    /// Domain 0 with the toolstack, and two guests with homes of their own.
    pub(crate) fn new() -> Self {
        let settings = Settings::new(DomId::new(0), DomId::new(31));
        let mut world = Self {
            server: Server::with_storage(settings),
            now: Instant(0),
            born: 0,
            clients: Default::default(),
        };
        let identity = world.create(0);
        let conn = world.server.open_domain(identity);
        world.connect(0, conn);
        for guest in 1..DOMAINS {
            world.build(guest);
        }
        world
    }

    fn create(&mut self, domain: usize) -> Identity {
        self.born += 1;
        let identity = Identity {
            domid: DomId::new(u16::try_from(domain).unwrap()),
            unique: UniqueId(self.born),
        };
        self.clients[domain].identity = Some(identity);
        identity
    }

    fn connect(&mut self, domain: usize, conn: ConnId) {
        let identity = self.clients[domain].identity;
        self.clients[domain] = Client {
            identity,
            conn: Some(conn),
            reads: true,
            ..Client::default()
        };
    }

    /// A domain with a home, introduced by the toolstack.
    pub(crate) fn build(&mut self, domain: usize) {
        self.create(domain);
        let home = format!("/local/domain/{domain}\0");
        let set_up = [
            (Kind::Mkdir, home.clone()),
            (Kind::SetPerms, format!("{home}n{domain}\0")),
            (Kind::Introduce, format!("{domain}\x001\x007\0")),
        ];
        for (kind, payload) in set_up {
            self.ask(0, kind, payload.as_bytes());
        }
    }

    /// A domain ends, and the store is told.
    pub(crate) fn kill(&mut self, domain: usize) {
        if domain == 0 {
            return;
        }
        if let Some(identity) = std::mem::take(&mut self.clients[domain]).identity {
            self.server
                .handle_domains(&[DomainEvent::Dead(identity)], u32::MAX, false);
        }
    }

    /// The guest begins anew through its ring page.
    pub(crate) fn reset(&mut self, domain: usize) {
        if let Some(conn) = self.clients[domain].conn {
            self.server.reset(conn);
            self.connect(domain, conn);
        }
    }

    pub(crate) fn set_reading(&mut self, domain: usize, reads: bool) {
        self.clients[domain].reads = reads || domain == 0;
    }

    pub(crate) fn pass(&mut self, milliseconds: u64) {
        self.now = Instant(self.now.0 + milliseconds * 1_000_000);
        self.server.handle_timeout(self.now);
    }

    /// The connection's end was found to be beyond repair, or has been told to be.
    pub(crate) fn is_stopped(&self, domain: usize) -> bool {
        self.clients[domain].is_stopped
    }

    /// Puts a request on its way.
    pub(crate) fn send(&mut self, domain: usize, kind: u32, tx_id: u32, payload: &[u8]) {
        let client = &mut self.clients[domain];
        if client.conn.is_none() || client.is_stopped {
            return;
        }
        let header = Header {
            kind,
            req_id: ReqId(7 + kind),
            tx_id,
            len: u32::try_from(payload.len()).unwrap(),
        };
        client.awaited.push_back(header);
        client.unsent.extend(header.encode());
        client.unsent.extend(payload);
    }

    /// Puts bytes on their way, whatever they are.
    pub(crate) fn send_bytes(&mut self, domain: usize, bytes: &[u8]) {
        self.clients[domain].unsent.extend(bytes);
    }

    /// What a request is answered when all is quiet.
    pub(crate) fn ask(&mut self, domain: usize, kind: Kind, payload: &[u8]) -> Message {
        self.send(domain, kind.number(), 0, payload);
        let messages = self.settle();
        let mut replies = messages.into_iter().filter(|(to, message)| {
            *to == domain && message.header.kind != Kind::WatchEvent.number()
        });
        replies.next_back().unwrap().1
    }

    /// Works until nothing moves any more; gives the messages that came, in order for each domain.
    pub(crate) fn settle(&mut self) -> Vec<(usize, Message)> {
        let mut messages = Vec::new();
        loop {
            let mut moved = false;
            for domain in 0..DOMAINS {
                moved |= self.exchange(domain, usize::MAX);
            }
            moved |= self.work(&mut messages);
            if !moved {
                return messages;
            }
        }
    }

    /// Lets the store work a little, without anything that is yet to be sent; gives the messages that had come.
    pub(crate) fn turn(&mut self) -> Vec<(usize, Message)> {
        let mut messages = Vec::new();
        self.work(&mut messages);
        messages
    }

    fn work(&mut self, messages: &mut Vec<(usize, Message)>) -> bool {
        for domain in 0..DOMAINS {
            self.parse(domain, messages);
        }
        let mut moved = self.server.run(self.now, BUDGET) == Progress::More;
        while let Some(action) = self.server.poll_action() {
            self.act(&action);
            moved = true;
        }
        while self.server.poll_ready().is_some() {
            moved = true;
        }
        moved
    }

    /// Moves bytes of a domain both ways, at most `piece` towards the store; whether any moved.
    pub(crate) fn exchange(&mut self, domain: usize, piece: usize) -> bool {
        let client = &mut self.clients[domain];
        let Some(conn) = client.conn else {
            return false;
        };
        let mut moved = false;
        while client.reads && !self.server.poll_output(conn).is_empty() {
            let bytes = self.server.poll_output(conn);
            let length = bytes.len();
            client.received.extend(bytes);
            self.server.consume_output(conn, length);
            moved = true;
        }
        let piece = piece.min(client.unsent.len());
        if piece > 0 && !client.is_stopped {
            match self.server.handle_bytes(conn, &client.unsent[..piece]) {
                Ok(taken) => {
                    assert!(taken <= piece);
                    client.unsent.drain(..taken);
                    moved |= taken > 0;
                }
                Err(_) => {
                    client.is_stopped = true;
                    client.unsent.clear();
                }
            }
        }
        moved
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Connect {
                ticket,
                conn,
                domid,
                ..
            } => {
                let domain = usize::from(domid.get());
                let identity = self.clients.get(domain).and_then(|client| client.identity);
                let outcome = match identity {
                    Some(identity) => {
                        self.connect(domain, conn);
                        Outcome::Connected(identity)
                    }
                    None => Outcome::Refused(Errno::EINVAL),
                };
                self.server.handle_completed(ticket, outcome);
            }
            Action::Disconnect { domid } => {
                if let Some(client) = self.clients.get_mut(usize::from(domid.get())) {
                    let identity = client.identity;
                    *client = Client {
                        identity,
                        ..Client::default()
                    };
                }
            }
            Action::Identify { ticket, domid } => {
                let client = self.clients.get(usize::from(domid.get()));
                let outcome = Outcome::Identified(client.and_then(|client| client.identity));
                self.server.handle_completed(ticket, outcome);
            }
        }
    }

    /// Takes whole messages out of what came, and holds the store to them.
    fn parse(&mut self, domain: usize, messages: &mut Vec<(usize, Message)>) {
        let client = &mut self.clients[domain];
        while let Some(header) = client.received.first_chunk::<HEADER_SIZE>() {
            let header = Header::decode(*header);
            assert!(header.len <= PAYLOAD_MAX, "{header:?}");
            let end = HEADER_SIZE + usize::try_from(header.len).unwrap();
            let Some(payload) = client.received.get(HEADER_SIZE..end) else {
                return;
            };
            let payload = payload.to_vec();
            client.received.drain(..end);
            judge(&header, &payload, &mut client.awaited);
            messages.push((domain, Message { header, payload }));
        }
    }
}

fn judge(header: &Header, payload: &[u8], awaited: &mut VecDeque<Header>) {
    if header.kind == Kind::WatchEvent.number() {
        assert_eq!((header.req_id, header.tx_id), (ReqId(0), 0));
        assert_eq!(payload.iter().filter(|byte| **byte == 0).count(), 2);
        assert_eq!(payload.last(), Some(&0));
        return;
    }
    let request = awaited.pop_front().expect("a reply without a request");
    assert_eq!(
        (header.req_id, header.tx_id),
        (request.req_id, request.tx_id)
    );
    if header.kind == Kind::Error.number() {
        let name = payload.strip_suffix(&[0]).expect("a NUL");
        assert!(
            model::ERRORS.iter().any(|error| error.as_bytes() == name),
            "{payload:?}"
        );
    } else {
        assert_eq!(header.kind, request.kind);
    }
}
