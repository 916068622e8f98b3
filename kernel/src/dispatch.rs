//! The one place that joins Xen and the store: ports become links, links' bytes become requests, the store's wishes become hypercalls.
//!
//! A turn is a few rounds. A link gets the event that it is owed when all that it asked for is answered, or nothing more is to be done
//! for it; at the latest when the turn ends. So one event tells of much, and nobody waits for it until others are served, too.
//!
//! A round: collect pending ports; give every link with credit one look, the privileged domain's first; collect again and deal with ended
//! domains; let the store run; do what it asks for. Ended domains come *between* reading requests and running them: Xen raises its
//! interrupt before a domid can be used again, so a request that speaks of the new domain is never run while the old one is still known
//! (hostility.md R13). Of many at once those may wait for a later round whose ring is mapped: until it is not, Xen gives their domids to
//! nobody.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use log::{error, info, warn};
use xenstore::state::{Format, Host, HostLink, Restored, RestoredLink};
use xenstore::{
    Action, Budget, ConnId, Counter, DomId, DomainEvent, Errno, EvtchnPort, Features, GrantRef,
    Identity, Instant, Outcome, Progress, ProtocolFault, Refused, Server, Spell, UniqueId,
    UpdatePlan, wire::PAYLOAD_MAX,
};

use crate::config::Config;
use crate::credit::{Lazy, Look, bonus};
use crate::domains::DomainPoll;
use crate::hypervisor::{PAGE_ENTRY, Rescued, page_table};
use crate::link::{Link, Links};
use crate::ring::{ErrorWord, RING_BYTES, Ring, RingFault};
use crate::sweep::Sweep;
use crate::update::Room;
use crate::xen::{
    Events, Grants, LocalPort, MemoryLeft, Page, PageFacts, PendingPorts, Xen, XenError,
};

/// Rounds before the events owed are sent, even if there is more to do.
const ROUNDS_A_TURN: u32 = 8;
/// Links looked at in a round besides the privileged domain's, which so waits for no more than these.
const LINKS_A_ROUND: usize = 32;
/// Links looked at in a round besides, which nobody asked for: the scan's and those of lazy connections.
const UNASKED_A_ROUND: usize = 16;
/// Wishes of the store fulfilled in a round.
const ACTIONS_A_ROUND: u32 = 32;
/// What the store may spend in a round, in its units of cost: a small request is one.
const COST_A_ROUND: u32 = 64;

/// Ends of domains dealt with in a round, as long as they cost no more than requests may.
const ENDS_A_ROUND: usize = 32;

/// The store at work in a machine.
pub struct Dispatcher<X: Xen> {
    xen: X,
    server: Server,
    links: Links<X::Page>,
    domains: DomainPoll,
    /// Domains that ended, with a ring that is still mapped.
    ended: BTreeMap<DomId, Identity>,
    ring_scan: Sweep<DomId>,
    lazy: Lazy,
    lazy_spells: u64,
    looks: u64,
    /// Nothing is left but the reserve.
    short: bool,
    pending: PendingPorts,
    leaks: Spell,
    last_now: Instant,
    /// Whose bytes are being moved.
    at_work: Option<ConnId>,
}

impl<X: Xen> Dispatcher<X> {
    /// Connects the privileged domain, whose first requests may be in its ring already, then those that have a ring from Xen itself.
    ///
    /// # Errors
    /// Its ring or its port cannot be had: nobody could be served.
    pub fn start(
        mut xen: X,
        server: Server,
        privileged: DomId,
        config: &Config,
    ) -> Result<Self, StartError> {
        let mut domains = DomainPoll::start(&mut xen);
        let existing = domains.existing(&mut xen);
        let mut dispatcher = Self::new(xen, server, privileged, config, domains);
        dispatcher.open(privileged, config.event)?;
        for domid in existing {
            if domid != privileged {
                dispatcher.adopt(domid);
            }
        }
        Ok(dispatcher)
    }

    /// Goes on where another instance stopped: `restored` is its store, and `pages` its mapped rings. A ring that cannot be found again is
    /// stopped, so that its domain may be introduced anew and its death is told.
    pub fn go_on(
        mut xen: X,
        restored: Restored,
        privileged: DomId,
        config: &Config,
        pages: &[(DomId, PageFacts)],
    ) -> Self {
        let domains = DomainPoll::start_anew(&mut xen);
        let mut dispatcher = Self::new(xen, restored.server, privileged, config, domains);
        let mut pages: BTreeMap<DomId, PageFacts> = pages.iter().copied().collect();
        let blamed = restored.crash.and_then(|crash| crash.blamed);
        let blamed = blamed.filter(|blamed| !blamed.is_kept);
        for link in restored.links {
            let Some(domid) = link.domid else {
                dispatcher.server.close_socket(link.conn);
                continue;
            };
            let facts = pages.remove(&domid);
            let is_blamed = blamed.is_some_and(|blamed| blamed.conn == link.conn);
            if let Err(error) = dispatcher.take_back(domid, &link, facts, is_blamed) {
                warn!("domain {domid}: its ring is not found again: {error}");
                dispatcher.server.stop(link.conn);
            }
        }
        for (domid, facts) in pages {
            if let Ok(page) = Grants::adopt(&mut dispatcher.xen, facts) {
                dispatcher.unmap(domid, Ring::new(page));
            }
        }
        dispatcher.confirm(restored.unconfirmed);
        dispatcher
    }

    fn new(
        mut xen: X,
        server: Server,
        privileged: DomId,
        config: &Config,
        domains: DomainPoll,
    ) -> Self {
        Self {
            links: Links::new(privileged),
            ring_scan: Sweep::new(config.ring_scan, xen.now()),
            lazy: Lazy::new(config.ring_scan.unwrap_or_default()),
            lazy_spells: 0,
            looks: 0,
            short: false,
            pending: PendingPorts::default(),
            leaks: Spell::default(),
            last_now: Instant::default(),
            at_work: None,
            xen,
            server,
            domains,
            ended: BTreeMap::new(),
        }
    }

    /// Writes the state into `room`, with the table of mapped pages behind it. None if there is not enough room.
    #[must_use]
    pub fn hand_over(&self, format: Format, now: Instant, room: &mut [u8]) -> Option<Rescued> {
        self.write_state(room, |ports, room| {
            self.server.export(format, now, ports, room);
        })
    }

    /// As [`Dispatcher::hand_over`], of what a crash has left: nobody may use this any more.
    #[must_use]
    pub fn hand_over_after_crash(&self, room: &mut [u8]) -> Option<Rescued> {
        self.write_state(room, |ports, room| {
            self.server
                .export_after_crash(self.last_now, ports, self.at_work, room);
        })
    }

    fn write_state(
        &self,
        room: &mut [u8],
        export: impl FnOnce(&Ports<'_, X::Page>, &mut Room<'_>),
    ) -> Option<Rescued> {
        let mut stream = Room::new(room, table_size(&self.links));
        export(&Ports(&self.links), &mut stream);
        let (stream, rest) = stream.finish()?;
        let pages = self
            .links
            .iter()
            .map(|link| (link.identity.domid, self.xen.describe(link.ring.page())));
        let pages = page_table(pages, rest)?;
        Some(Rescued { stream, pages })
    }

    /// Keeps all events back: the domain is about to be started again.
    pub fn pause(&mut self) {
        self.xen.pause();
    }

    /// When the store was last given time: since then no client was served.
    #[must_use]
    pub fn last_now(&self) -> Instant {
        self.last_now
    }

    /// System time.
    pub fn now(&mut self) -> Instant {
        self.xen.now()
    }

    /// The update that is to be made now, once.
    pub fn poll_update(&mut self) -> Option<UpdatePlan> {
        let plan = self.server.poll_update(&Ports(&self.links))?;
        // The image is checked and copied, and the state is written.
        self.xen.begin_long_work();
        Some(plan)
    }

    /// Why there is no room for what must be handed over, to the byte; none if there is.
    #[must_use]
    pub fn lacks_room(&self, plan: &UpdatePlan) -> Option<Refused> {
        self.server.check_room(plan, &Ports(&self.links)).err()
    }

    /// Serves until nothing is left to do or the turn is over; in the second case there should be another turn at once.
    pub fn turn(&mut self) -> Progress {
        self.turn_beside(&mut |_| {})
    }

    /// A turn for a host that opened connections of its own in [`Dispatcher::server_mut`]: `other` is told of each that is ready.
    pub fn turn_beside(&mut self, other: &mut dyn FnMut(ConnId)) -> Progress {
        let mut progress = Progress::More;
        for _ in 0..ROUNDS_A_TURN {
            progress = self.round(other);
            self.send_events(false);
            if progress == Progress::Idle {
                break;
            }
        }
        self.send_events(true);
        progress
    }

    fn send_events(&mut self, all: bool) {
        for port in self.links.take_owed(all) {
            self.xen.notify(port);
        }
    }

    /// How often a connection was found lazy: with work that no event had told of.
    #[must_use]
    pub fn lazy_spells(&self) -> u64 {
        self.lazy_spells
    }

    /// How often a ring was looked at.
    #[must_use]
    pub fn looks(&self) -> u64 {
        self.looks
    }

    /// Sleeps until there may be something to do.
    pub fn sleep(&mut self) {
        let deadlines = [
            self.server.poll_timeout(),
            self.ring_scan.deadline(),
            self.lazy.deadline(),
            self.domains.deadline(),
        ];
        self.xen.wait(deadlines.into_iter().flatten().min());
    }

    /// The store.
    #[must_use]
    pub const fn server(&self) -> &Server {
        &self.server
    }

    /// The store, for connections that are no rings. Its `run` and `poll_*` for all are the dispatcher's.
    pub fn server_mut(&mut self) -> &mut Server {
        &mut self.server
    }

    /// Lets another store take over, and gives each link the connection that it has there: as if another image had come, but for what
    /// is mapped and bound, which stays. Gives the one before.
    #[cfg(any(test, feature = "fake"))]
    pub fn take_over(&mut self, server: Server, connections: &[(DomId, ConnId)]) -> Server {
        let before = core::mem::replace(&mut self.server, server);
        for (domid, conn) in connections {
            self.links.reconnect(*domid, *conn);
        }
        // One that was being released has no connection there: its bytes must not be taken for another's.
        let all: Vec<DomId> = self.links.domids().collect();
        for domid in all {
            if connections.iter().all(|(connected, _)| *connected != domid) {
                self.disconnect(domid);
            }
        }
        before
    }

    /// The connection of a domain was lost in a crash of the store: its ring says so, and is left alone until it asks for a new one.
    #[cfg(any(test, feature = "fake"))]
    pub fn break_off(&mut self, domid: DomId) {
        if let Some(link) = self.links.get_mut(domid) {
            link.stopped = true;
            if link.offers(Features::ERROR) {
                link.ring.fail(ErrorWord::Communication);
            }
            self.links.owe_event(domid);
        }
    }

    fn round(&mut self, other: &mut dyn FnMut(ConnId)) -> Progress {
        let now = self.xen.now();
        self.xen.begin_work(now);
        self.last_now = now;
        self.tick(now);
        self.collect();
        for (domid, look) in self.links.take_round(LINKS_A_ROUND, UNASKED_A_ROUND) {
            self.looks = self.looks.saturating_add(1);
            if self.look_at(domid, now) {
                self.links.found_work(domid, look);
                self.links.go_on(domid);
            }
            if look == Look::Scan {
                self.judge(domid, now);
            }
        }
        self.collect();
        self.bury();
        let ran = self.run_store(now);
        let acted = self.act();
        while let Some(conn) = self.server.poll_ready() {
            match self.links.with_conn(conn) {
                Some(domid) => self.links.go_on(domid),
                None => other(conn),
            }
        }
        let is_busy = self.domains.is_busy() || !self.ended.is_empty();
        if acted || is_busy || self.links.any_ready() {
            Progress::More
        } else {
            ran
        }
    }

    /// Lets the store run, with an eye on what memory is left.
    fn run_store(&mut self, now: Instant) -> Progress {
        let mut budget = Budget::new(COST_A_ROUND);
        let mut progress = Progress::More;
        while !budget.is_used_up() {
            self.weigh_memory(now);
            progress = self.server.run_slice(now, &mut budget);
        }
        progress
    }

    /// Tells the store what memory is left. While that is the reserve alone, guests wait; they all get a look when it is over.
    fn weigh_memory(&mut self, now: Instant) {
        let MemoryLeft {
            free,
            total,
            stream_room,
        } = self.xen.memory();
        self.server.handle_memory(now, free, total, stream_room);
        let short = self.server.is_at_reserve();
        if core::mem::replace(&mut self.short, short) && !short {
            let waiting: Vec<DomId> = self.links.domids().collect();
            for domid in waiting {
                self.links.grant(domid, Look::Asked);
            }
        }
    }

    /// Does what only time asks for.
    fn tick(&mut self, now: Instant) {
        if self.server.poll_timeout().is_some_and(|due| due <= now) {
            self.server.handle_timeout(now);
        }
        for domid in self.ring_scan.due(now, || self.links.domids()) {
            self.links.grant(domid, Look::Scan);
        }
        let (links, server) = (&mut self.links, &self.server);
        self.lazy.due(now, |domid| {
            let link = links.get_mut(domid)?;
            let left = link.credit.take_bonus()?;
            server.count(link.conn, Counter::LazyLooks);
            if left == 0 {
                server.count(link.conn, Counter::LazyLetGo);
            }
            links.grant(domid, Look::Bonus);
            Some(left)
        });
    }

    fn collect(&mut self) {
        self.xen.collect(&mut self.pending);
        while let Some(port) = self.pending.take() {
            match self.links.with_port(port) {
                Some(domid) => self.links.signal(domid),
                None => self.domains.hint(port),
            }
        }
    }
}

/// What a stream has for each link.
struct Ports<'a, P>(&'a Links<P>);

impl<P: Page> Host for Ports<'_, P> {
    fn link(&self, conn: ConnId) -> HostLink {
        let Self(links) = self;
        let link = links.with_conn(conn).and_then(|domid| links.get(domid));
        HostLink {
            port: link.map(|link| link.port.0),
            ..HostLink::default()
        }
    }

    fn bytes_behind(&self) -> u64 {
        u64::try_from(table_size(self.0)).unwrap_or(u64::MAX)
    }
}

/// Bytes of the table of pages behind a stream.
fn table_size<P: Page>(links: &Links<P>) -> usize {
    links.count().saturating_mul(PAGE_ENTRY)
}

/// Bytes: one look at one link.
impl<X: Xen> Dispatcher<X> {
    /// Moves what there is to move, and answers whether there was anything.
    fn look_at(&mut self, domid: DomId, now: Instant) -> bool {
        let takes = !self.short || domid == self.links.privileged();
        let Some(link) = self.links.get_mut(domid) else {
            return false;
        };
        let may_reset = || self.server.may_reset(link.conn);
        if link.offers(Features::RECONNECTION) && link.ring.reconnect_requested() && may_reset() {
            self.server.reset(link.conn);
            link.ring.reset();
            link.stopped = false;
            if let Some(untold) = link.resets.count(now) {
                info!("domain {domid} began its connection anew{untold}");
            }
            self.links.owe_event(domid);
            return true;
        }
        if link.stopped {
            return false;
        }
        self.at_work = Some(link.conn);
        let moved = transfer(link, &mut self.server, takes);
        self.at_work = None;
        match moved {
            Ok(Moved { sent: 0, taken: 0 }) => false,
            Ok(Moved { sent, taken }) => {
                let answered =
                    sent > 0 && taken == 0 && self.server.poll_output(link.conn).is_empty();
                self.links.owe_event(domid);
                if answered && let Some(port) = self.links.take_owed_by(domid) {
                    self.xen.notify(port);
                }
                true
            }
            Err(fault) => {
                self.stop(domid, fault, now);
                false
            }
        }
    }

    /// What the scan makes of a link at which it has looked.
    fn judge(&mut self, domid: DomId, now: Instant) {
        let looks = bonus(self.links.count());
        let Some(link) = self.links.get_mut(domid) else {
            return;
        };
        let (is_lazy, is_news) = link.judge();
        if !is_lazy {
            return;
        }
        if link.credit.give_bonus(looks) {
            self.lazy.add(domid, looks, now);
        }
        if is_news {
            self.lazy_spells = self.lazy_spells.saturating_add(1);
            self.server.count(link.conn, Counter::LazySpells);
            if let Some(untold) = link.lazy_spells.count(now) {
                info!(
                    "domain {domid} is lazy: it sent no event for what is in its ring, and gets {looks} looks until the next scan{untold}"
                );
            }
        }
    }

    /// Ends a connection that is beyond repair. Its domain stays introduced (hostility.md R15) and may ask for a new connection.
    fn stop(&mut self, domid: DomId, fault: LinkFault, now: Instant) {
        let Some(link) = self.links.get_mut(domid) else {
            return;
        };
        link.stopped = true;
        let word = match fault {
            LinkFault::Ring => {
                self.server.count(link.conn, Counter::RingFaults);
                self.server.stop(link.conn);
                ErrorWord::RingIndex
            }
            LinkFault::Protocol(_) => ErrorWord::Protocol,
        };
        if link.offers(Features::ERROR) {
            link.ring.fail(word);
        }
        if let Some(untold) = link.faults.count(now) {
            warn!("domain {domid}: {fault}; connection stopped{untold}");
        }
        self.links.owe_event(domid);
    }
}

/// Bytes that a look at a link moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moved {
    sent: usize,
    taken: usize,
}

/// Moves what can be moved, about one ring full each way at most; requests only if the store `takes` any.
fn transfer<P: Page>(link: &Link<P>, server: &mut Server, takes: bool) -> Result<Moved, LinkFault> {
    let mut sent = 0;
    while sent < RING_BYTES {
        let output = server.poll_output(link.conn);
        let n = match output {
            [] => 0,
            bytes => link.ring.drain(bytes)?,
        };
        if n == 0 {
            break;
        }
        server.consume_output(link.conn, n);
        sent += n;
    }
    if !takes {
        return Ok(Moved { sent, taken: 0 });
    }
    let mut refusal = None;
    let taken = link.ring.fill(|bytes| {
        server
            .handle_bytes(link.conn, bytes)
            .unwrap_or_else(|fault| {
                refusal = Some(fault);
                0
            })
    })?;
    match refusal {
        Some(fault) => Err(fault.into()),
        None => Ok(Moved { sent, taken }),
    }
}

/// What ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkFault {
    Ring,
    Protocol(ProtocolFault),
}

impl From<RingFault> for LinkFault {
    fn from(_: RingFault) -> Self {
        Self::Ring
    }
}

impl From<ProtocolFault> for LinkFault {
    fn from(fault: ProtocolFault) -> Self {
        Self::Protocol(fault)
    }
}

impl fmt::Display for LinkFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring => write!(
                f,
                "impossible ring indices, more than {RING_BYTES} bytes apart"
            ),
            Self::Protocol(ProtocolFault::Oversize { len }) => {
                write!(
                    f,
                    "request too long, {len} bytes and not {PAYLOAD_MAX} at most"
                )
            }
        }
    }
}

/// Domains: their links come and go.
impl<X: Xen> Dispatcher<X> {
    /// Tells the store of domains that ended or shut down, and lets go of those that ended. Whose ring is mapped may wait for its turn, so
    /// that many ends at once keep nobody from being served: until then Xen gives its domid to nobody.
    fn bury(&mut self) {
        let links = &self.links;
        let is_linked = |identity| links.is_linked(identity);
        let mut at_once = self.domains.poll(&mut self.xen, &self.server, is_linked);
        at_once.retain(|event| {
            let DomainEvent::Dead(identity) = *event else {
                return true;
            };
            let waits = is_linked(identity);
            if !waits || self.ended.insert(identity.domid, identity).is_none() {
                info!("domain {} is dead", identity.domid);
            }
            !waits
        });
        self.server.handle_domains(&at_once, u32::MAX, true);
        let ended: Vec<Identity> = self.ended.values().take(ENDS_A_ROUND).copied().collect();
        let more = self.domains.may_tell_more() || ended.len() < self.ended.len();
        let events: Vec<DomainEvent> = ended.iter().copied().map(DomainEvent::Dead).collect();
        let buried = self.server.handle_domains(&events, COST_A_ROUND, more);
        for identity in ended.into_iter().take(buried) {
            self.ended.remove(&identity.domid);
            if self.links.is_linked(identity) {
                self.disconnect(identity.domid);
            }
        }
    }

    /// Fulfils the store's wishes, and answers whether there were any.
    fn act(&mut self) -> bool {
        for done in 0..ACTIONS_A_ROUND {
            let Some(action) = self.server.poll_action() else {
                return done > 0;
            };
            match action {
                Action::Connect {
                    ticket,
                    conn,
                    domid,
                    port,
                } => {
                    let connected = self.connect(conn, domid, port);
                    let outcome = connected.map_or_else(
                        |error| {
                            warn!("domain {domid}: cannot be introduced: {error}");
                            Outcome::Refused(Errno::EINVAL)
                        },
                        Outcome::Connected,
                    );
                    self.server.handle_completed(ticket, outcome);
                    if let Err(error) = connected {
                        error.count(&mut self.server, domid);
                    }
                }
                Action::Disconnect { domid } => {
                    self.disconnect(domid);
                    info!("domain {domid} released");
                }
                Action::Identify { ticket, domid } => {
                    let outcome = match self.xen.domain(domid) {
                        Ok(info) => Outcome::Identified(info.map(|info| info.identity)),
                        Err(_) => Outcome::Refused(Errno::EIO),
                    };
                    self.server.handle_completed(ticket, outcome);
                }
            }
        }
        true
    }

    /// Connects the privileged domain.
    fn open(&mut self, domid: DomId, port: EvtchnPort) -> Result<(), StartError> {
        let page = self
            .xen
            .map(domid, GrantRef::XENSTORE)
            .map_err(|error| StartError::Map(domid, error))?;
        let local = self
            .xen
            .bind(domid, port)
            .map_err(|error| StartError::Bind(domid, port, error))?;
        let unique = match self.xen.domain(domid) {
            Ok(info) => info.map(|info| info.identity.unique),
            Err(error) => {
                error!("Xen does not tell the state of domains ({error}): no death is noticed");
                None
            }
        };
        let identity = Identity {
            domid,
            unique: unique.unwrap_or(UniqueId(0)),
        };
        self.xen.prefer(local);
        self.take_up(identity, Ring::new(page), local);
        info!("domain {domid} connected, port {}", port.0);
        Ok(())
    }

    /// Goes on with a ring that another instance mapped, and with its port.
    fn take_back(
        &mut self,
        domid: DomId,
        link: &RestoredLink,
        facts: Option<PageFacts>,
        is_blamed: bool,
    ) -> Result<(), ConnectError> {
        let port = link.host.port.ok_or(ConnectError::Gone)?;
        let (local, port) = (LocalPort(port), EvtchnPort(port));
        Events::adopt(&mut self.xen, local).map_err(|error| ConnectError::Bind(port, error))?;
        let page = match facts {
            Some(facts) => Grants::adopt(&mut self.xen, facts),
            None => self.xen.map(domid, GrantRef::XENSTORE),
        };
        let ring = Ring::new(page.map_err(ConnectError::Map)?);
        let features = link.features.unwrap_or_else(|| {
            let offered = ring.offered() & self.server.features(domid);
            self.server.adopt_features(domid, offered);
            offered
        });
        let identity = match link.identity {
            Some(identity) => identity,
            None => self.living(domid)?,
        };
        if domid == self.links.privileged() {
            self.xen.prefer(local);
        }
        let mut taken = Link::new(identity, link.conn, local, ring, features);
        taken.stopped = link.is_stopped;
        if is_blamed && taken.offers(Features::ERROR) {
            taken.ring.fail(ErrorWord::Protocol);
        }
        self.links.insert(taken);
        Ok(())
    }

    /// Finds out who the domains are of which the stream does not say it.
    fn confirm(&mut self, unconfirmed: Vec<DomId>) {
        for domid in unconfirmed {
            let identity = self
                .xen
                .domain(domid)
                .ok()
                .flatten()
                .map(|info| info.identity);
            self.server.confirm(domid, identity);
        }
    }

    /// Connects a domain that was there before the store, if Xen gave it a ring with a port in it (dom0less). Any other waits for
    /// its INTRODUCE.
    fn adopt(&mut self, domid: DomId) {
        let Ok(page) = self.xen.map(domid, GrantRef::XENSTORE) else {
            return;
        };
        let ring = Ring::new(page);
        let Some(port) = ring.evtchn_port() else {
            return self.unmap(domid, ring);
        };
        let connected = self.living(domid).and_then(|identity| {
            let local = self.xen.bind(domid, port);
            let local = local.map_err(|error| ConnectError::Bind(port, error))?;
            Ok((identity, local))
        });
        match connected {
            Ok((identity, local)) => {
                self.take_up(identity, ring, local);
                info!("domain {domid} connected, port {}", port.0);
            }
            Err(error) => {
                warn!("domain {domid}: cannot be connected: {error}");
                error.count(&mut self.server, domid);
                self.unmap(domid, ring);
            }
        }
    }

    /// Takes up a ring that may be in use already, as it is.
    fn take_up(&mut self, identity: Identity, ring: Ring<X::Page>, local: LocalPort) {
        let features = self.server.features(identity.domid);
        let conn = self.server.open_domain(identity);
        ring.offer(features);
        ring.welcome();
        self.links
            .insert(Link::new(identity, conn, local, ring, features));
    }

    /// INTRODUCE (protocol.md 7.2): connects a domain's ring, or connects it anew. A failure leaves it without a link.
    fn connect(
        &mut self,
        conn: ConnId,
        domid: DomId,
        port: EvtchnPort,
    ) -> Result<Identity, ConnectError> {
        let (identity, ring) = self.take_ring(domid)?;
        let (port, local) = match self.bind(domid, ring.evtchn_port(), port) {
            Ok(bound) => bound,
            Err(error) => {
                if self.server.features(domid) & Features::ERROR.bits() != 0 {
                    ring.fail(ErrorWord::Communication);
                }
                self.unmap(domid, ring);
                return Err(error);
            }
        };
        let features = self.server.features(domid);
        ring.offer(features);
        ring.reset();
        self.links
            .insert(Link::new(identity, conn, local, ring, features));
        info!("domain {domid} introduced, port {}", port.0);
        Ok(identity)
    }

    /// Binds the port that the page names, if it can be bound, else the toolstack's.
    fn bind(
        &mut self,
        domid: DomId,
        in_page: Option<EvtchnPort>,
        named: EvtchnPort,
    ) -> Result<(EvtchnPort, LocalPort), ConnectError> {
        if let Some(port) = in_page
            && let Ok(local) = self.xen.bind(domid, port)
        {
            return Ok((port, local));
        }
        match self.xen.bind(domid, named) {
            Ok(local) => Ok((named, local)),
            Err(error) => Err(ConnectError::Bind(named, error)),
        }
    }

    /// The mapped ring of whoever has `domid` now. An old link ends; its mapping is kept if it is the same domain's.
    fn take_ring(&mut self, domid: DomId) -> Result<(Identity, Ring<X::Page>), ConnectError> {
        if let Some(old) = self.take_link(domid) {
            self.xen.close(old.port);
            if self.living(domid) == Ok(old.identity) {
                return Ok((old.identity, old.ring));
            }
            self.unmap(domid, old.ring);
        }
        let page = self
            .xen
            .map(domid, GrantRef::XENSTORE)
            .map_err(ConnectError::Map)?;
        let ring = Ring::new(page);
        // Asked for only now: while its page is mapped, no other domain can take its id.
        match self.living(domid) {
            Ok(identity) => Ok((identity, ring)),
            Err(error) => {
                self.unmap(domid, ring);
                Err(error)
            }
        }
    }

    fn living(&mut self, domid: DomId) -> Result<Identity, ConnectError> {
        match self.xen.domain(domid) {
            Ok(Some(info)) if !info.dying => Ok(info.identity),
            Ok(_) => Err(ConnectError::Gone),
            Err(error) => Err(ConnectError::Unknown(error)),
        }
    }

    fn disconnect(&mut self, domid: DomId) {
        if let Some(link) = self.take_link(domid) {
            self.xen.close(link.port);
            self.unmap(domid, link.ring);
        }
    }

    fn take_link(&mut self, domid: DomId) -> Option<Link<X::Page>> {
        self.lazy.remove(domid);
        self.links.remove(domid)
    }

    fn unmap(&mut self, domid: DomId, ring: Ring<X::Page>) {
        if let Err(error) = self.xen.unmap(ring.into_page()) {
            self.server.count_of(domid, Counter::UnmapFailures);
            if let Some(untold) = self.leaks.count(self.xen.now()) {
                error!("domain {domid}: its ring cannot be unmapped ({error}){untold}");
            }
        }
    }
}

/// Why nobody can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The privileged domain's ring cannot be mapped.
    Map(DomId, XenError),
    /// Its port cannot be bound.
    Bind(DomId, EvtchnPort, XenError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(domid, error) => {
                write!(
                    f,
                    "cannot map the ring that domain {domid} granted as reference 1: {error}"
                )
            }
            Self::Bind(domid, port, error) => {
                write!(
                    f,
                    "cannot bind port {} of domain {domid}, which --event names: {error}",
                    port.0
                )
            }
        }
    }
}

/// Why a domain cannot be introduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectError {
    Gone,
    Unknown(XenError),
    Map(XenError),
    Bind(EvtchnPort, XenError),
}

impl ConnectError {
    /// Counts what Xen refused.
    fn count(self, server: &mut Server, domid: DomId) {
        match self {
            Self::Map(_) => server.count_of(domid, Counter::MapFailures),
            Self::Bind(..) => server.count_of(domid, Counter::BindFailures),
            Self::Gone | Self::Unknown(_) => {}
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("there is no such domain, or it is dying"),
            Self::Unknown(error) => write!(f, "its state is not told: {error}"),
            Self::Map(error) => write!(f, "its ring cannot be mapped: {error}"),
            Self::Bind(port, error) => write!(f, "its port {} cannot be bound: {error}", port.0),
        }
    }
}

#[cfg(test)]
mod tests;
