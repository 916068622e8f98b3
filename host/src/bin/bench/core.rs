//! The store in this process, without sockets: what the unikernel runs for each request, and nothing else.

use std::collections::{BTreeMap, VecDeque};

use xenstore::{
    Action, ConnId, DomId, Errno, Identity, Instant, Outcome, Progress, Server, Settings, UniqueId,
};

use crate::target::{Client, Failure, Message, Target, split_message};

/// The domain that all clients speak for.
const DOM0: DomId = DomId::new(0);
/// What the server may spend at a time; one request at a time is far below it.
const TURN_BUDGET: u32 = 100_000;

pub(crate) struct Core {
    server: Server,
    clients: Vec<ConnId>,
    inboxes: BTreeMap<ConnId, VecDeque<Message>>,
    drained: Drained,
}

/// Output of the server, one connection's after the other's.
#[derive(Default)]
struct Drained {
    bytes: Vec<u8>,
    pieces: Vec<(ConnId, usize)>,
}

impl Core {
    pub(crate) fn new() -> Self {
        Self {
            server: Server::new(Settings::new(DOM0, DOM0)),
            clients: Vec::new(),
            inboxes: BTreeMap::new(),
            drained: Drained::default(),
        }
    }

    /// Makes messages of what was drained.
    fn deliver(&mut self) -> Result<(), Failure> {
        let mut rest = self.drained.bytes.as_slice();
        for (conn, length) in self.drained.pieces.drain(..) {
            let (mut own, others) = rest.split_at_checked(length).ok_or("output is missing")?;
            rest = others;
            let inbox = self.inboxes.entry(conn).or_default();
            while let Some((message, left)) = split_message(own) {
                inbox.push_back(message);
                own = left;
            }
        }
        self.drained.bytes.clear();
        Ok(())
    }
}

impl Target for Core {
    fn name(&self) -> &str {
        "core"
    }

    fn restart(&mut self) -> Result<(), Failure> {
        *self = Self::new();
        Ok(())
    }

    fn process(&self) -> u32 {
        std::process::id()
    }

    fn has_domains(&self) -> bool {
        true
    }

    fn open(&mut self) -> Result<Client, Failure> {
        let client = Client(self.clients.len());
        self.clients.push(self.server.open_socket());
        Ok(client)
    }

    fn send(&mut self, client: Client, request: &[u8]) -> Result<(), Failure> {
        let conn = *self.clients.get(client.0).ok_or("no such client")?;
        if !serve_measured(&mut self.server, conn, request, &mut self.drained) {
            return Err("the store did not take the request".into());
        }
        self.deliver()
    }

    fn receive(&mut self, client: Client) -> Result<Message, Failure> {
        let conn = self.clients.get(client.0).ok_or("no such client")?;
        let inbox = self.inboxes.get_mut(conn);
        let message = inbox.and_then(VecDeque::pop_front);
        message.ok_or_else(|| "a message did not come".into())
    }
}

/// One request from its first byte to the last of its output: callgrind counts inside this function alone (scripts/bench).
#[inline(never)]
fn serve_measured(
    server: &mut Server,
    conn: ConnId,
    mut request: &[u8],
    drained: &mut Drained,
) -> bool {
    while !request.is_empty() {
        let Ok(taken) = server.handle_bytes(conn, request) else {
            return false;
        };
        request = request.get(taken..).unwrap_or_default();
        if taken == 0 {
            return false;
        }
    }
    loop {
        let progress = server.run(Instant::default(), TURN_BUDGET);
        let mut acted = false;
        while let Some(action) = server.poll_action() {
            act(server, &action);
            acted = true;
        }
        if progress == Progress::Idle && !acted {
            break;
        }
    }
    while let Some(conn) = server.poll_ready() {
        drain(server, conn, drained);
    }
    true
}

fn drain(server: &mut Server, conn: ConnId, drained: &mut Drained) {
    let before = drained.bytes.len();
    loop {
        let output = server.poll_output(conn);
        let length = output.len();
        if length == 0 {
            break;
        }
        drained.bytes.extend_from_slice(output);
        server.consume_output(conn, length);
    }
    let length = drained.bytes.len().saturating_sub(before);
    drained.pieces.push((conn, length));
}

/// Every ordinary domid names a domain here, and every ring can be mapped.
fn act(server: &mut Server, action: &Action) {
    let identity = |domid: DomId| Identity {
        domid,
        unique: UniqueId(u128::from(domid.get())),
    };
    match *action {
        Action::Connect { ticket, domid, .. } if domid.is_ordinary() => {
            server.handle_completed(ticket, Outcome::Connected(identity(domid)));
        }
        Action::Connect { ticket, .. } => {
            server.handle_completed(ticket, Outcome::Refused(Errno::EINVAL));
        }
        Action::Identify { ticket, domid } => {
            let found = domid.is_ordinary().then(|| identity(domid));
            server.handle_completed(ticket, Outcome::Identified(found));
        }
        Action::Disconnect { .. } => {}
    }
}
