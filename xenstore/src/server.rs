//! The server: four kinds of methods and nothing hidden between them.
//!
//! **A** getters; **B** `open_*`, `handle_*`, `stop`, `reset`: what happened outside; **C** [`Server::run`], the only place where requests
//! change the store; **D** `poll_*`, `consume_output`: what the host must do next. It knows no time, no memory, no port.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use core::time::Duration;

use crate::acl::{Incarnation, Subject};
use crate::answer::Answer;
use crate::connection::{Connection, ProtocolFault, Request};
use crate::database::{Need, Refusal};
use crate::domain::{Domain, Domains};
use crate::features::Features;
use crate::ids::{ConnId, DomId, EvtchnPort, Identity, Ticket};
use crate::output::{Cause, Debt, Payload};
use crate::quota::{Peaks, Quota, Quotas, within};
use crate::store::Store;
use crate::time::Instant;
use crate::watch::{WatchId, Watches};
use crate::wire::{Errno, Header, Kind, PAYLOAD_MAX};

/// Replies that may wait for a client without the quota `outstanding` before no more of its requests are run.
const REPLIES_MAX: usize = 1024;
/// What running a request costs of the budget, at least.
const REQUEST_COST: u32 = 1;
/// Bytes of a payload that cost as much as the request itself.
const BYTES_PER_COST: usize = 256;

/// How the server is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The domain that may do everything: the one with the toolstack.
    pub privileged: DomId,
    /// The domain in which the server runs.
    pub store: DomId,
    /// The limits of all others.
    pub quotas: Quotas,
    /// What the server offers.
    pub features: Features,
    /// How long an unprivileged client may leave an event unread; zero for ever.
    pub event_timeout: Duration,
}

impl Settings {
    /// The defaults (protocol.md sections 8, 10 and 12).
    #[must_use]
    pub fn new(privileged: DomId, store: DomId) -> Self {
        Self {
            privileged,
            store,
            quotas: Quotas::default(),
            features: Features::ALL,
            event_timeout: Duration::from_secs(20),
        }
    }
}

/// What the host must do for the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Find out who `domid` is, map its ring and bind its port, begin at zero indices; then tell [`Outcome::Connected`] or
    /// [`Outcome::Refused`]. From then on the ring is connection `conn`; what the domain had before is no more.
    Connect {
        /// To answer with.
        ticket: Ticket,
        /// The new connection.
        conn: ConnId,
        /// Whose ring.
        domid: DomId,
        /// The port that the toolstack named; a port in the ring page itself comes first.
        port: EvtchnPort,
    },
    /// Unmap the domain's ring and close its port; the connection is no more.
    Disconnect {
        /// Whose ring.
        domid: DomId,
    },
    /// Find out who has this domid now; then tell [`Outcome::Identified`].
    Identify {
        /// To answer with.
        ticket: Ticket,
        /// The domid in question.
        domid: DomId,
    },
}

/// How an [`Action`] with a ticket went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The ring of this domain is connected.
    Connected(Identity),
    /// This domain has the domid, or none.
    Identified(Option<Identity>),
    /// It could not be done; the client hears this error.
    Refused(Errno),
}

/// What became of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainEvent {
    /// It has shut down, and still exists. Told again it is no news.
    Shutdown(Identity),
    /// It is no more; the host has given its ring and port back.
    Dead(Identity),
}

/// Whether there is more to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No request is waiting that could run.
    Idle,
    /// The budget is used up and requests are waiting.
    More,
}

/// The whole xenstore.
pub struct Server {
    pub(crate) settings: Settings,
    pub(crate) store: Store,
    pub(crate) domains: Domains,
    pub(crate) connections: BTreeMap<ConnId, Connection>,
    pub(crate) watches: Watches,
    pub(crate) actions: VecDeque<Action>,
    pub(crate) questions: BTreeMap<Ticket, Question>,
    pub(crate) now: Instant,
    /// The unprivileged request that runs now, until it is answered: it pays for the events that it makes.
    pub(crate) cause: Option<Cause>,
    /// The watch whose first event follows the reply of the request that runs now.
    pub(crate) fresh_watch: Option<WatchId>,
    /// Unprivileged connections with unread events, by when to look whether they are too old; each at most once.
    pub(crate) deadlines: BTreeSet<(Instant, ConnId)>,
    runnable: VecDeque<ConnId>,
    ready: VecDeque<ConnId>,
    /// The most of each that was seen, for the administrator.
    pub(crate) peaks: Peaks,
    /// Each request and reply gets a line in the log.
    pub(crate) traces: bool,
    /// Counts the events that were queued.
    pub(crate) events: u64,
    opened: u64,
    asked: u64,
}

/// What a ticket was given for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Question {
    Connect {
        requester: ConnId,
        header: Header,
        conn: ConnId,
    },
    Identify {
        requester: ConnId,
        domid: DomId,
    },
}

/// A: getters.
impl Server {
    /// The feature word for a domain's ring page.
    #[must_use]
    pub fn features(&self, domid: DomId) -> u32 {
        let domain = self.domains.get(domid);
        domain
            .map_or(self.settings.features, |domain| domain.features)
            .bits()
    }

    /// The domains whose end matters, introduced or only named in permissions; the privileged one is not among them.
    pub fn known_domains(&self) -> impl Iterator<Item = Identity> {
        self.domains
            .iter()
            .filter(|domain| !self.domains.is_privileged(domain.incarnation.domid))
            .filter_map(|domain| domain.identity())
    }

    /// Whether a domain has a connection.
    #[must_use]
    pub fn is_introduced(&self, domid: DomId) -> bool {
        self.domains
            .get(domid)
            .is_some_and(|domain| domain.connection.is_some())
    }
}

/// B: what happened outside.
impl Server {
    /// A store with its first nodes and no connection.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let (domains, owner) = Domains::new(settings.privileged, settings.features);
        Self {
            store: Store::new(owner),
            domains,
            settings,
            connections: BTreeMap::new(),
            watches: Watches::default(),
            actions: VecDeque::new(),
            questions: BTreeMap::new(),
            now: Instant::default(),
            cause: None,
            fresh_watch: None,
            deadlines: BTreeSet::new(),
            runnable: VecDeque::new(),
            ready: VecDeque::new(),
            peaks: Peaks::default(),
            traces: false,
            events: 0,
            opened: 0,
            asked: 0,
        }
        .with_first_nodes()
    }

    /// Takes bytes of a connection: at most to the end of one request, none while one waits to run.
    ///
    /// # Errors
    /// The framing is broken and the connection is stopped; its ring should say so and then be left alone.
    pub fn handle_bytes(&mut self, conn: ConnId, bytes: &[u8]) -> Result<usize, ProtocolFault> {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return Ok(0);
        };
        if connection.stopped || connection.waiting.is_some() {
            return Ok(0);
        }
        let taken = connection.input.take(bytes);
        match taken {
            Ok(_) => self.queue(conn),
            Err(_) => self.stop(conn),
        }
        taken
    }

    /// Opens a connection that is no domain's ring: a local client that may do what the privileged domain may. Its relative paths
    /// lie in the home of the store's domain.
    pub fn open_socket(&mut self) -> ConnId {
        let conn = self.next_connection();
        let connection = Connection::new(self.domains.privileged(), self.settings.store);
        self.connections.insert(conn, connection);
        conn
    }

    /// The client of [`Server::open_socket`] has gone.
    pub fn close_socket(&mut self, conn: ConnId) {
        self.close(conn);
    }

    /// Stops a connection after a fault: watches, transactions and buffers go, the domain stays introduced (hostility.md R15).
    pub fn stop(&mut self, conn: ConnId) {
        self.clear(conn);
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.stopped = true;
        }
    }

    /// Begins a connection anew, as its guest asked through the ring page. A stopped one goes on.
    pub fn reset(&mut self, conn: ConnId) {
        self.clear(conn);
    }

    /// Time has passed: drops events that were left unread too long.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        while let Some((due, conn)) = self.deadlines.first().copied()
            && due <= now
        {
            self.deadlines.remove(&(due, conn));
            let limit = self.settings.event_timeout;
            self.drop_events(conn, |_, queued| queued.after(limit) <= now);
            if let Some(connection) = self.connections.get_mut(&conn) {
                connection.deadline = None;
            }
            self.set_deadline(conn);
        }
    }
}

/// C: the work.
impl Server {
    /// Runs requests, one of each connection in turn, until none is left or the budget is used up.
    ///
    /// A request costs 1, and 1 more for each 256 bytes of payload and for each event it makes.
    pub fn run(&mut self, now: Instant, budget: u32) -> Progress {
        self.now = now;
        let mut left = budget;
        while left > 0 {
            let Some(conn) = self.runnable.pop_front() else {
                return Progress::Idle;
            };
            if let Some(connection) = self.connections.get_mut(&conn) {
                connection.queued = false;
            }
            left = left.saturating_sub(self.serve(conn));
        }
        if self.runnable.is_empty() {
            Progress::Idle
        } else {
            Progress::More
        }
    }

    /// Runs the request of a connection, if it has one that may run; gives its cost.
    fn serve(&mut self, conn: ConnId) -> u32 {
        if !self.may_run(conn) {
            return REQUEST_COST;
        }
        let Some((request, sequence)) = self.take_request(conn) else {
            return REQUEST_COST;
        };
        let cause = Cause {
            connection: conn,
            request: sequence,
        };
        self.cause = self
            .subject(conn)
            .filter(|subject| !subject.privileged)
            .map(|_| cause);
        if self.traces {
            self.trace_request(conn, &request);
        }
        let cost = cost_of(&request);
        let events = self.events;
        match self.answer(conn, &request) {
            Ok(answer) => self.reply(conn, request.header, Ok(answer)),
            Err(Refusal::Errno(errno)) => self.reply(conn, request.header, Err(errno)),
            Err(Refusal::Wait(need)) => self.ask(conn, need, request),
        }
        self.cause = None;
        self.account(conn);
        let events = self.events.wrapping_sub(events);
        cost.saturating_add(u32::try_from(events).unwrap_or(u32::MAX))
    }

    fn may_run(&self, conn: ConnId) -> bool {
        let Some(connection) = self.connections.get(&conn) else {
            return false;
        };
        let limit = self.limit(conn, Quota::Outstanding);
        let outstanding = u64::try_from(connection.outstanding.len()).unwrap_or(u64::MAX);
        !connection.stopped
            && connection.waiting.is_none()
            && connection.input.is_whole()
            && within(outstanding.saturating_add(1), limit)
            && connection.output.replies() < REPLIES_MAX
    }

    fn take_request(&mut self, conn: ConnId) -> Option<(Request, u64)> {
        let connection = self.connections.get_mut(&conn)?;
        let request = connection.input.request()?;
        connection.requests = connection.requests.wrapping_add(1);
        Some((request, connection.requests))
    }

    /// Lets a request wait for the host.
    fn ask(&mut self, conn: ConnId, need: Need, request: Request) {
        self.asked = self.asked.wrapping_add(1);
        let ticket = Ticket(self.asked);
        let header = request.header;
        let (question, action) = match need {
            Need::Identify(domid) => {
                if let Some(connection) = self.connections.get_mut(&conn) {
                    connection.input.put_back(request);
                }
                (
                    Question::Identify {
                        requester: conn,
                        domid,
                    },
                    Action::Identify { ticket, domid },
                )
            }
            Need::Connect { domid, port } => {
                let fresh = self.next_connection();
                let question = Question::Connect {
                    requester: conn,
                    header,
                    conn: fresh,
                };
                (
                    question,
                    Action::Connect {
                        ticket,
                        conn: fresh,
                        domid,
                        port,
                    },
                )
            }
        };
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.waiting = Some(ticket);
        }
        self.questions.insert(ticket, question);
        self.actions.push_back(action);
    }

    /// Queues the reply, then what must follow it.
    pub(crate) fn reply(&mut self, conn: ConnId, header: Header, answer: Result<Answer, Errno>) {
        let (kind, payload) = match answer.map(Answer::into_payload) {
            Ok(payload) if fits(payload.len()) => (header.kind, payload),
            Ok(_) => error(Errno::E2BIG),
            Err(errno) => error(errno),
        };
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = Header {
            kind,
            len,
            ..header
        };
        if self.traces {
            self.trace_reply(conn, header.kind, payload.as_bytes());
        }
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.absent.clear();
            let bytes = connection.output.reply(header, payload, self.cause);
            self.charge_cause(bytes);
        }
        self.cause = None;
        if let Some(watch) = self.fresh_watch.take() {
            self.tell_first(watch);
        }
        self.announce(conn);
    }
}

/// D: what the host must do next.
impl Server {
    /// The next connection whose output grew or that takes input again, each once.
    pub fn poll_ready(&mut self) -> Option<ConnId> {
        let conn = self.ready.pop_front()?;
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.ready = false;
        }
        Some(conn)
    }

    /// The next bytes for a connection's client; none if nothing waits.
    #[must_use]
    pub fn poll_output(&self, conn: ConnId) -> &[u8] {
        match self.connections.get(&conn) {
            Some(connection) if !connection.stopped => connection.output.front(),
            _ => &[],
        }
    }

    /// Bytes of [`Server::poll_output`] that were sent.
    pub fn consume_output(&mut self, conn: ConnId, sent: usize) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        let done = connection.output.advance(sent);
        let empty = connection.output.is_empty();
        if let Some(debt) = done {
            self.settle(debt);
        }
        if empty {
            self.tell_lost(conn);
        }
        self.account(conn);
        self.queue(conn);
    }

    /// The next thing that the host must do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Server::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(due, _)| *due)
    }
}

/// What all of them share.
impl Server {
    /// Opens the connection of a domain that is known.
    pub(crate) fn open(&mut self, conn: ConnId, incarnation: Incarnation) {
        let connection = Connection::new(incarnation, incarnation.domid);
        self.connections.insert(conn, connection);
        if let Some(domain) = self.domains.alive_mut(incarnation) {
            domain.connection = Some(conn);
        }
        self.account(conn);
        self.announce(conn);
    }

    pub(crate) fn next_connection(&mut self) -> ConnId {
        self.opened = self.opened.wrapping_add(1);
        ConnId(self.opened)
    }

    /// The domain of a connection.
    pub(crate) fn client(&self, conn: ConnId) -> Option<&Domain> {
        self.domains.alive(self.connections.get(&conn)?.incarnation)
    }

    /// Who a connection asks as.
    pub(crate) fn subject(&self, conn: ConnId) -> Option<Subject> {
        self.client(conn).map(|domain| self.domains.subject(domain))
    }

    /// A limit of a connection's domain.
    pub(crate) fn limit(&self, conn: ConnId, quota: Quota) -> u32 {
        let quotas = &self.settings.quotas;
        self.client(conn)
            .map_or(0, |domain| self.domains.limit(domain, quotas, quota))
    }

    /// Drops all that a connection has open; it can go on from nothing.
    pub(crate) fn clear(&mut self, conn: ConnId) {
        self.watches.remove_all(conn);
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        let (incarnation, home) = (connection.incarnation, connection.home);
        let debts = connection.output.clear();
        let requests = connection.requests;
        let (queued, ready, deadline) = (connection.queued, connection.ready, connection.deadline);
        *connection = Connection {
            requests,
            queued,
            ready,
            deadline,
            ..Connection::new(incarnation, home)
        };
        debts.into_iter().for_each(|debt| self.settle(debt));
        self.account(conn);
        self.announce(conn);
    }

    /// Drops a connection for good.
    pub(crate) fn close(&mut self, conn: ConnId) {
        self.clear(conn);
        if let Some(connection) = self.connections.remove(&conn)
            && let Some(due) = connection.deadline
        {
            self.deadlines.remove(&(due, conn));
        }
    }

    /// Drops waiting events of a connection, with what they owe.
    pub(crate) fn drop_events(&mut self, conn: ConnId, doomed: impl Fn(WatchId, Instant) -> bool) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            let debts = connection.output.drop_events(doomed);
            debts.into_iter().for_each(|debt| self.settle(debt));
            self.account(conn);
        }
    }

    /// Notes that the running request has one more message on its way, and what that costs.
    pub(crate) fn charge_cause(&mut self, bytes: u64) {
        if let Some(cause) = self.cause
            && let Some(connection) = self.connections.get_mut(&cause.connection)
        {
            connection.owe(cause.request, bytes);
            self.account(cause.connection);
        }
    }

    /// Notes that a message is gone; with the last one of a request it is no longer outstanding.
    fn settle(&mut self, debt: Debt) {
        let conn = debt.cause.connection;
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.repay(debt.cause.request, debt.bytes);
            self.account(conn);
            self.queue(conn);
        }
    }

    /// Brings the domain's account in line with what its connection holds.
    pub(crate) fn account(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get(&conn)
            && let Some(domain) = self.domains.alive_mut(connection.incarnation)
            && domain.connection == Some(conn)
        {
            domain.usage.connection_bytes = connection.footprint();
            domain.usage.watches = connection.watches;
            let memory = domain.usage.memory();
            if !self.domains.is_privileged(connection.home) {
                let count = |items: usize| u64::try_from(items).unwrap_or(u64::MAX);
                self.peaks.note(Quota::Memory, memory);
                self.peaks.note(Quota::Watches, connection.watches);
                self.peaks
                    .note(Quota::Transactions, count(connection.transactions.len()));
                self.peaks
                    .note(Quota::Outstanding, count(connection.outstanding.len()));
            }
        }
    }

    /// Lets a connection with a whole request stand in the queue, once.
    pub(crate) fn queue(&mut self, conn: ConnId) {
        let waits = |connection: &Connection| connection.input.is_whole() && !connection.queued;
        if self.connections.get(&conn).is_some_and(waits)
            && self.may_run(conn)
            && let Some(connection) = self.connections.get_mut(&conn)
        {
            connection.queued = true;
            self.runnable.push_back(conn);
        }
    }

    /// Lets the host look at a connection, once.
    pub(crate) fn announce(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(&conn)
            && !connection.ready
        {
            connection.ready = true;
            self.ready.push_back(conn);
        }
    }

    /// Notes when the oldest event of an unprivileged connection will have been left unread too long.
    pub(crate) fn set_deadline(&mut self, conn: ConnId) {
        let limit = self.settings.event_timeout;
        let privileged = self.subject(conn).is_none_or(|subject| subject.privileged);
        if let Some(connection) = self.connections.get_mut(&conn)
            && connection.deadline.is_none()
            && !privileged
            && !limit.is_zero()
            && let Some(oldest) = connection.output.oldest_event()
        {
            let due = oldest.after(limit);
            connection.deadline = Some(due);
            self.deadlines.insert((due, conn));
        }
    }
}

pub(crate) fn fits(len: usize) -> bool {
    u32::try_from(len).is_ok_and(|len| len <= PAYLOAD_MAX)
}

fn error(errno: Errno) -> (u32, Payload) {
    (Kind::Error.number(), Payload::Fixed(errno.payload()))
}

fn cost_of(request: &Request) -> u32 {
    let bytes = request.payload.len() / BYTES_PER_COST;
    REQUEST_COST.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX))
}
