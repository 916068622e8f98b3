//! The server: four kinds of methods and nothing hidden between them.
//!
//! **A** getters; **B** `open_*`, `handle_*`, `stop`, `reset`: what happened outside; **C** [`Server::run`] (run.rs), the only place where
//! requests change the store; **D** `poll_*`, `consume_output`: what the host must do next. It knows no time, no memory, no port.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::bugs;
use crate::conflict::History;
use crate::connection::{Connection, Connections, ProtocolFault, Spare};
use crate::counter_nodes::CounterNodes;
use crate::counters::Counter;
use crate::crash::AtWork;
use crate::domain::Domains;
use crate::effects::Effects;
use crate::events::Telling;
use crate::extensions::Owed;
use crate::features::Features;
use crate::ids::{ConnId, DomId, EvtchnPort, Identity, Ticket};
use crate::journal::{Entry, Journal};
use crate::layer::{self, Layers};
use crate::lifecycle::Ending;
use crate::live_update::LiveUpdate;
use crate::memory::{Left, Supply};
use crate::output::Cause;
use crate::policy::{self, Policies};
use crate::quota::{Peaks, Quotas};
use crate::storage::{AnyStorage, Kind, Storage};
use crate::store::Store;
use crate::time::{Instant, earlier};
use crate::transaction::Log;
use crate::turns::Turns;
use crate::watch::{WatchId, Watches};
use crate::wire::{Errno, Header};

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
    /// What SET_FEATURE may give a domain besides.
    pub grantable: Features,
    /// How nodes are kept, if the server's type leaves that open ([`AnyStorage`]).
    pub storage: Kind,
    /// How long an unprivileged client may leave an event unread; zero for ever.
    pub event_timeout: Duration,
    /// Who may do what.
    pub policies: policy::Choice,
    /// What stands between clients and the store.
    pub layers: layer::Choice,
    /// Crashes in the way that the text names, and answers whether there is such a way.
    #[cfg(feature = "inject")]
    pub injector: Option<fn(&[u8]) -> bool>,
    /// How long the nodes below `/tool/xenstored/counters` stay as they are at least; zero for no such nodes.
    pub counter_interval: Duration,
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
            grantable: Features::NONE,
            storage: Kind::default(),
            event_timeout: Duration::from_secs(20),
            policies: policy::Choice::default(),
            layers: layer::Choice::default(),
            #[cfg(feature = "inject")]
            injector: None,
            counter_interval: Duration::from_secs(10),
        }
    }
}

impl Settings {
    /// Whether a domain may have all of these features.
    pub(crate) fn knows(&self, features: Features) -> bool {
        self.features.with(self.grantable).has(features)
    }
}

/// What the host must do for the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Find out who `domid` is, map its ring and bind its port, begin at zero indices; then tell [`Outcome::Connected`] or
    /// [`Outcome::Refused`]. From then on the ring is connection `conn`; what the domain had before is no more, refused or not.
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
    /// It is no more; the host gives its ring and port back before it sends anything else.
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
pub struct Server<S: Storage = AnyStorage> {
    pub(crate) settings: Settings,
    pub(crate) store: Store<S>,
    pub(crate) domains: Domains,
    pub(crate) connections: Connections<S>,
    pub(crate) spare: Spare,
    /// Memory for the log of the next transaction.
    pub(crate) spare_log: Option<Box<Log<S>>>,
    /// What a request notes its effects in, until all have heard of them; empty between requests.
    pub(crate) effects: Rc<Effects<S>>,
    /// The request that runs has changed something that stays.
    pub(crate) did_change: bool,
    /// Up to where they have heard.
    pub(crate) telling: Telling,
    /// A domain that is being buried.
    pub(crate) ending: Option<Ending>,
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
    pub(crate) turns: Turns,
    pub(crate) policies: Policies,
    pub(crate) layers: Layers,
    /// The policies are not in [`Server::policies`], since they do something.
    pub(crate) are_policies_at_work: bool,
    /// What they must hear even if they crash.
    pub(crate) owed: Rc<Owed>,
    /// Somebody has wanted other lists of policies or layers than the defaults.
    pub(crate) are_lists_set: bool,
    /// Other lists are in force than what their nodes show.
    pub(crate) are_lists_changing: bool,
    /// What the present request made the store do besides, in units of cost.
    pub(crate) work: u64,
    /// What all requests and ends of domains have cost so far.
    pub(crate) spent: u64,
    pub(crate) counter_nodes: CounterNodes,
    /// What guests changed while transactions are open.
    pub(crate) history: History,
    /// Connections whose requests wait until a time, each at most once.
    pub(crate) holds: BTreeSet<(Instant, ConnId)>,
    pub(crate) ready: VecDeque<ConnId>,
    /// What the host has for all this.
    pub(crate) supply: Supply,
    pub(crate) left: Left,
    /// The most of each that was seen, for the administrator.
    pub(crate) peaks: Peaks,
    /// Each request and reply gets a line in the log.
    pub(crate) traces: bool,
    /// Domains ended or shut down, and more are to come before the plain release event.
    pub(crate) is_release_untold: bool,
    /// Counts the events that were queued.
    pub(crate) events: u64,
    pub(crate) asked: u64,
    pub(crate) journal: Journal,
    pub(crate) unknown_quotas: UnknownQuotas,
    pub(crate) live_update: LiveUpdate,
    /// For whom the server works just now: whom to blame if it crashes.
    pub(crate) at_work: Option<AtWork>,
    /// Of instances before this one.
    pub(crate) crashes: u64,
}

/// Limits for all domains, and limits for all of them together, that a state stream gave and that mean nothing here; for the next stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct UnknownQuotas {
    pub(crate) of_domains: Vec<(String, u32)>,
    pub(crate) of_all: Vec<(String, u32)>,
}

/// What a ticket was given for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Question {
    Connect {
        requester: ConnId,
        header: Header,
        conn: ConnId,
        domid: DomId,
        port: EvtchnPort,
    },
    Identify {
        requester: ConnId,
        domid: DomId,
    },
}

/// A: getters.
impl<S: Storage> Server<S> {
    /// The feature word for a domain's ring page.
    #[must_use]
    pub fn features(&self, domid: DomId) -> u32 {
        let domain = self.domains.get(domid);
        domain
            .map_or(self.settings.features, |domain| domain.features)
            .bits()
    }

    /// What all requests and ends of domains have cost so far, in the units of [`Server::run`].
    #[must_use]
    pub fn spent(&self) -> u64 {
        self.spent
    }

    /// The domains whose end matters, introduced or only named in permissions; the privileged one is not among them.
    pub fn known_domains(&self) -> impl Iterator<Item = Identity> {
        self.domains
            .iter()
            .filter(|domain| !self.domains.is_privileged(domain.incarnation.domid))
            .filter_map(|domain| domain.identity())
    }

    /// The domain with this id, if its end matters.
    #[must_use]
    pub fn known_domain(&self, domid: DomId) -> Option<Identity> {
        let domain = self.domains.get(domid)?.identity();
        domain.filter(|_| !self.domains.is_privileged(domid))
    }

    /// Whether something besides unprivileged domains asks for the time: a layer, or a policy other than `legacy`.
    #[must_use]
    pub fn needs_time(&self) -> bool {
        !self.layers.is_empty() || self.policies.more().is_some()
    }

    /// Whether a domain has a connection.
    #[must_use]
    pub fn is_introduced(&self, domid: DomId) -> bool {
        self.domains
            .get(domid)
            .is_some_and(|domain| domain.connection.is_some())
    }
}

impl Server {
    /// A store that keeps its nodes as the settings say, with its first nodes and no connection.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self::with_storage(settings)
    }
}

/// B: what happened outside.
impl<S: Storage> Server<S> {
    /// A store with its first nodes and no connection.
    #[must_use]
    pub fn with_storage(settings: Settings) -> Self {
        Self::bare(settings).with_first_nodes()
    }

    /// A store that has nothing but what every store has.
    pub(crate) fn bare(settings: Settings) -> Self {
        let (domains, owner) = Domains::new(settings.privileged, settings.features);
        Self {
            store: Store::new(settings.storage, owner),
            domains,
            settings,
            connections: Connections::default(),
            spare: Spare::default(),
            spare_log: None,
            effects: Rc::default(),
            did_change: false,
            telling: Telling::default(),
            ending: None,
            watches: Watches::default(),
            actions: VecDeque::new(),
            questions: BTreeMap::new(),
            now: Instant::default(),
            cause: None,
            fresh_watch: None,
            deadlines: BTreeSet::new(),
            turns: Turns::default(),
            policies: Policies::default(),
            layers: Layers::default(),
            are_policies_at_work: false,
            owed: Rc::default(),
            are_lists_set: false,
            are_lists_changing: false,
            work: 0,
            spent: 0,
            counter_nodes: CounterNodes::default(),
            history: History::default(),
            holds: BTreeSet::new(),
            ready: VecDeque::new(),
            supply: Supply::default(),
            left: Left::default(),
            peaks: Peaks::default(),
            traces: false,
            is_release_untold: false,
            events: 0,
            asked: 0,
            journal: Journal::default(),
            unknown_quotas: UnknownQuotas::default(),
            live_update: LiveUpdate::default(),
            at_work: None,
            crashes: 0,
        }
    }

    /// Takes bytes of a connection: at most to the end of one request, none while one waits to run.
    ///
    /// # Errors
    /// The framing is broken and the connection is stopped; its ring should say so and then be left alone.
    pub fn handle_bytes(&mut self, conn: ConnId, bytes: &[u8]) -> Result<usize, ProtocolFault> {
        self.at_work = Some(AtWork::without_request(conn));
        let taken = self.take_bytes(conn, bytes);
        self.at_work = None;
        taken
    }

    fn take_bytes(&mut self, conn: ConnId, bytes: &[u8]) -> Result<usize, ProtocolFault> {
        let Some(connection) = self.connections.get_mut(conn) else {
            return Ok(0);
        };
        let is_behind = !connection.backlog.is_empty();
        if connection.stopped || connection.waiting.is_some() || is_behind {
            return Ok(0);
        }
        let taken = connection.input.take(bytes, &mut self.spare);
        match taken {
            Ok(_) => self.queue(conn),
            Err(_) => {
                self.count(conn, Counter::ProtocolFaults);
                self.stop(conn);
            }
        }
        taken
    }

    /// Whether [`Server::handle_bytes`] would take bytes of a connection now.
    #[must_use]
    pub fn takes_bytes(&self, conn: ConnId) -> bool {
        self.connections.get(conn).is_some_and(|connection| {
            !connection.stopped
                && connection.waiting.is_none()
                && connection.backlog.is_empty()
                && !connection.input.is_whole()
        })
    }

    /// Opens a connection that is no domain's ring: a local client that may do what the privileged domain may. Its relative paths
    /// lie in the home of the store's domain.
    pub fn open_socket(&mut self) -> ConnId {
        let conn = self.connections.promise();
        let privileged = self.domains.privileged();
        let counters = self.domains.counters(privileged);
        let connection = Connection::new(privileged, true, self.settings.store, counters);
        self.connections.open(conn, connection);
        conn
    }

    /// The client of [`Server::open_socket`] has gone.
    pub fn close_socket(&mut self, conn: ConnId) {
        self.close(conn);
    }

    /// Counts what the host found out about a connection's client.
    pub fn count(&self, conn: ConnId, counter: Counter) {
        if let Some(connection) = self.connections.get(conn) {
            connection.counters.count(counter);
        }
    }

    /// Counts what the host found out about a domain, connected or not.
    pub fn count_of(&mut self, domid: DomId, counter: Counter) {
        self.domains.count(domid, counter);
    }

    /// Stops a connection after a fault: watches, transactions and buffers go, the domain stays introduced (hostility.md R15).
    pub fn stop(&mut self, conn: ConnId) {
        self.note(conn, |domid| Entry::Stopped { domid });
        self.count(conn, Counter::Stops);
        self.clear(conn);
        let Some(connection) = self.connections.get_mut(conn) else {
            return;
        };
        connection.stopped = true;
        if bugs::XSA_325 {
            let domid = connection.incarnation.domid;
            self.bury(domid);
        }
    }

    /// Begins a connection anew, as its guest asked through the ring page. A stopped one goes on, if it may ([`Server::may_reset`]).
    pub fn reset(&mut self, conn: ConnId) {
        if !self.may_reset(conn) {
            return;
        }
        self.note(conn, |domid| Entry::Reset { domid });
        self.count(conn, Counter::Resets);
        self.clear(conn);
    }

    /// Time has passed: drops events that were left unread too long, lets those go on who have credit again, and shows what was counted.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        self.drop_old_events(now);
        self.end_due_holds();
        self.tell_policies_of_time();
        self.write_counter_nodes();
        self.journal.note(|| Entry::Timeout(now));
    }

    fn drop_old_events(&mut self, now: Instant) {
        while let Some((due, conn)) = self.deadlines.first().copied()
            && due <= now
        {
            self.deadlines.remove(&(due, conn));
            let limit = self.settings.event_timeout;
            let dropped = self.drop_events(conn, |_, queued| queued.after(limit) <= now);
            let mut empty = false;
            if let Some(connection) = self.connections.get_mut(conn) {
                connection.deadline = None;
                let counters = &connection.counters;
                let limit = format_args!("{} s", limit.as_secs());
                counters.suffer(Counter::EventsExpired, dropped, limit, now);
                empty = connection.output.is_empty();
            }
            if empty {
                self.tell_lost(conn);
            }
            self.set_deadline(conn);
        }
    }
}

/// D: what the host must do next.
impl<S: Storage> Server<S> {
    /// The next connection whose output grew or that takes input again, each once.
    pub fn poll_ready(&mut self) -> Option<ConnId> {
        let conn = self.ready.pop_front()?;
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.ready = false;
        }
        Some(conn)
    }

    /// The next bytes for a connection's client; none if nothing waits.
    #[must_use]
    pub fn poll_output(&self, conn: ConnId) -> &[u8] {
        let pieces = self.poll_message(conn);
        let next = pieces.into_iter().find(|piece| !piece.is_empty());
        next.unwrap_or_default()
    }

    /// All that is left of the next message for a connection's client, in pieces, for hosts that can send several at a time.
    #[must_use]
    pub fn poll_message(&self, conn: ConnId) -> [&[u8]; 3] {
        match self.connections.get(conn) {
            Some(connection) if !connection.stopped => connection.output.front(),
            _ => [&[]; 3],
        }
    }

    /// Bytes of [`Server::poll_output`] or [`Server::poll_message`] that were sent; whether more wait.
    pub fn consume_output(&mut self, conn: ConnId, sent: usize) -> bool {
        let noted = self.output_to_note(conn, sent);
        let more = self.advance_output(conn, sent);
        self.journal.keep(noted);
        more
    }

    fn advance_output(&mut self, conn: ConnId, sent: usize) -> bool {
        let Some(connection) = self.connections.get_mut(conn) else {
            return false;
        };
        let done = connection.output.advance(sent);
        let mut more = !connection.output.is_empty();
        let lost = !more && !connection.lost.is_empty();
        let waits = connection.input.is_whole() && !connection.queued;
        let is_charged = !connection.privileged;
        if let Some(debt) = done {
            self.settle(debt);
        }
        if lost {
            self.tell_lost(conn);
            more = true;
        }
        if is_charged {
            self.account(conn);
        }
        if waits {
            self.queue(conn);
        }
        more
    }

    /// The next thing that the host must do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Server::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let oldest_event = self.deadlines.first().map(|(due, _)| *due);
        let hold = self.holds.first().map(|(until, _)| *until);
        let due = earlier(earlier(oldest_event, hold), self.counter_nodes_due());
        earlier(due, self.policies_due())
    }
}
