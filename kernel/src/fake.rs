//! A machine in memory: the dispatcher runs over it in tests and in a simulated host exactly as over Xen.
//!
//! [`FakeXen`] is a handle; the dispatcher has one, the test keeps another and plays the guests, the toolstack and the faults. It
//! gives no more than Xen guarantees: ports are reused at once, a domain's page stays while it is mapped, time only moves when told.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::ops::Range;
use core::time::Duration;

use xenstore::{DomId, EvtchnPort, GrantRef, Identity, Instant, UniqueId};

use crate::domain_interface::{
    DomainCalls, DomainInterface, InfoAnswer, NEXT_CHANGED, StateAnswer, capability, errno, info,
    state,
};
use crate::xen::{
    Clock, DomainInfo, Domains, Events, Grants, LocalPort, MAX_PORTS, Memory, MemoryLeft, Page,
    PageFacts, PendingPorts, XenError,
};

/// The machine. Clones are the same machine.
#[derive(Clone, Default)]
pub struct FakeXen(Rc<RefCell<World>>);

#[derive(Default)]
struct World {
    now: Instant,
    next_unique: u128,
    domains: BTreeMap<DomId, Domain>,
    locals: BTreeMap<LocalPort, Local>,
    /// Ports that were closed, to be used first.
    free: BTreeSet<LocalPort>,
    pending: BTreeSet<LocalPort>,
    /// Domains that got an event since this was last asked for.
    notified: BTreeSet<DomId>,
    /// Pages that we hold mapped, each with whose it is.
    mapped: Vec<(Identity, FakePage)>,
    refused: BTreeMap<Call, XenError>,
    /// Calls that may be refused, counted since that was last asked; and which of them are.
    calls: Cell<u64>,
    refused_calls: Range<u64>,
    /// Pages that could not be unmapped.
    leaks: usize,
    /// Questions about domains.
    questions: u64,
    release: Release,
    /// How the dispatcher asks for domains; found out at the first question.
    interface: Option<DomainInterface>,
    /// Which domains came, went or changed since they were named.
    changed: BTreeSet<DomId>,
    /// Who controls the host, if not domain 0.
    control: Option<DomId>,
    loses_domain_exceptions: bool,
    /// How often other work was begun.
    works: u64,
    collections: u64,
    notifications: u64,
    interludes: BTreeMap<u64, Box<dyn FnOnce()>>,
    /// Per cent of the memory that are taken.
    memory_taken: u8,
    /// Says what is left, in place of that.
    measure: Option<fn() -> MemoryLeft>,
}

struct Domain {
    info: DomainInfo,
    page: FakePage,
    meddler: Meddler,
    ports: BTreeMap<EvtchnPort, Remote>,
}

/// The guest's end of a channel.
#[derive(Default)]
struct Remote {
    peer: Option<LocalPort>,
    sent_unbound: bool,
    received: u32,
    /// Collections of pending ports before the last event came.
    received_at: u64,
}

/// Our end of one.
enum Local {
    Interdomain(Identity, EvtchnPort),
    DomainException,
}

/// Whose behaviour the machine shows: releases of Xen that tell of domains in different ways (xen-abi.md section 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Release {
    Xen4_14,
    Xen4_17,
    Xen4_18,
    Xen4_20,
    Xen4_21,
    #[default]
    Xen4_22,
}

impl Release {
    /// All of them, oldest first.
    pub const ALL: [Self; 6] = [
        Self::Xen4_14,
        Self::Xen4_17,
        Self::Xen4_18,
        Self::Xen4_20,
        Self::Xen4_21,
        Self::Xen4_22,
    ];

    /// `XEN_DOMCTL_INTERFACE_VERSION`.
    const fn interface_version(self) -> u32 {
        match self {
            Self::Xen4_14 => 0x12,
            Self::Xen4_17 => 0x15,
            Self::Xen4_18 => 0x16,
            Self::Xen4_20 | Self::Xen4_21 => 0x17,
            Self::Xen4_22 => 0x18,
        }
    }

    /// What is answered for a domain that is not there.
    const fn no_such_domain(self) -> XenError {
        match self {
            Self::Xen4_22 => XenError(errno::EPERM),
            _ => XenError(errno::ESRCH),
        }
    }
}

/// What the machine can be told to refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// [`Grants::map`]
    Map,
    /// [`Grants::unmap`]
    Unmap,
    /// [`Events::bind`]
    Bind,
    /// [`Events::bind_domain_exception`]
    BindDomainException,
    /// [`Domains::domain`]
    Domain,
    /// [`Domains::next_changed`], until the virtual interrupt is bound anew
    NextChanged,
}

/// `GNTST_bad_domain` (grant_table.h), as a positive number.
const BAD_DOMAIN: XenError = XenError(2);
/// `GNTST_bad_gntref`.
const BAD_GRANT: XenError = XenError(3);
/// `EINVAL`.
const INVALID: XenError = XenError(22);
/// `ENOSPC`.
const NO_SPACE: XenError = XenError(28);

/// The toolstack's and the hypervisor's side.
impl FakeXen {
    /// A machine with this release of Xen.
    #[must_use]
    pub fn with_release(release: Release) -> Self {
        let xen = Self::default();
        xen.0.borrow_mut().release = release;
        xen
    }

    /// Lets a domain control the host, in place of domain 0.
    pub fn give_control(&self, domid: DomId) {
        self.0.borrow_mut().control = Some(domid);
    }

    /// Builds a domain that granted a zeroed page for its ring; one that had the id before is gone.
    pub fn create(&self, domid: DomId) -> Identity {
        self.destroy(domid);
        let world = &mut *self.0.borrow_mut();
        world.next_unique += 1;
        let identity = Identity {
            domid,
            unique: UniqueId(world.next_unique),
        };
        let domain = Domain {
            info: DomainInfo {
                identity,
                shutdown: false,
                dying: false,
                dead: false,
            },
            page: FakePage::default(),
            meddler: Meddler::default(),
            ports: BTreeMap::new(),
        };
        world.domains.insert(domid, domain);
        world.changed.insert(domid);
        identity
    }

    /// Changes what Xen says of a domain, and raises the virtual interrupt.
    pub fn change(&self, domid: DomId, change: impl FnOnce(&mut DomainInfo)) {
        let world = &mut *self.0.borrow_mut();
        if let Some(domain) = world.domains.get_mut(&domid) {
            change(&mut domain.info);
        }
        world.has_changed(domid);
    }

    /// Ends a domain, and raises the virtual interrupt.
    pub fn destroy(&self, domid: DomId) {
        let world = &mut *self.0.borrow_mut();
        if world.domains.remove(&domid).is_some() {
            world.has_changed(domid);
        }
    }

    /// Gives a domain an unbound port that we may bind.
    pub fn allocate_port(&self, domid: DomId) -> EvtchnPort {
        let world = &mut *self.0.borrow_mut();
        let Some(domain) = world.domains.get_mut(&domid) else {
            return EvtchnPort(0);
        };
        let last = domain.ports.last_key_value().map_or(0, |(port, _)| port.0);
        let port = EvtchnPort(last.saturating_add(1));
        domain.ports.insert(port, Remote::default());
        port
    }

    /// Makes `call` fail from now on, or work again.
    pub fn refuse(&self, call: Call, error: Option<XenError>) {
        let refused = &mut self.0.borrow_mut().refused;
        match error {
            Some(error) => refused.insert(call, error),
            None => refused.remove(&call),
        };
    }

    /// Makes these of the next calls fail, whatever they are, counted from 0. Gives how many there were since this was said last.
    pub fn refuse_at(&self, calls: Range<u64>) -> u64 {
        let world = &mut *self.0.borrow_mut();
        world.refused_calls = calls;
        world.calls.replace(0)
    }

    /// How often a page could not be unmapped.
    #[must_use]
    pub fn leaks(&self) -> usize {
        self.0.borrow().leaks
    }

    /// Lets the virtual interrupt be lost from now on, or not. A new binding ends it, too.
    pub fn lose_domain_exceptions(&self, lost: bool) {
        self.0.borrow_mut().loses_domain_exceptions = lost;
    }

    /// How often other work was begun.
    #[must_use]
    pub fn works(&self) -> u64 {
        self.0.borrow().works
    }

    /// Has `interlude` happen right after the `n`th collection of pending ports from now; the next one is the first.
    pub fn after_collection(&self, n: u64, interlude: impl FnOnce() + 'static) {
        let world = &mut *self.0.borrow_mut();
        let at = world.collections.saturating_add(n);
        world.interludes.insert(at, Box::new(interlude));
    }

    /// Lets `percent` of the memory be taken.
    pub fn take_memory(&self, percent: u8) {
        self.0.borrow_mut().memory_taken = percent;
    }

    /// Lets `measure` say how much memory is left.
    pub fn measure_memory(&self, measure: fn() -> MemoryLeft) {
        self.0.borrow_mut().measure = Some(measure);
    }

    /// How often pending ports were collected: twice in each round of the dispatcher.
    #[must_use]
    pub fn collections(&self) -> u64 {
        self.0.borrow().collections
    }

    /// How many events were sent to domains.
    #[must_use]
    pub fn notifications(&self) -> u64 {
        self.0.borrow().notifications
    }

    /// How often Xen was asked about a domain.
    #[must_use]
    pub fn questions(&self) -> u64 {
        self.0.borrow().questions
    }

    /// What time it is.
    #[must_use]
    pub fn time(&self) -> Instant {
        self.0.borrow().now
    }

    /// Lets time pass.
    pub fn advance(&self, duration: Duration) {
        let now = &mut self.0.borrow_mut().now;
        *now = now.after(duration);
    }

    /// Sets the clock, also back.
    pub fn set_time(&self, now: Instant) {
        self.0.borrow_mut().now = now;
    }

    /// Makes one of our ports pending for nothing, also one that is closed.
    pub fn disturb(&self, port: LocalPort) {
        self.0.borrow_mut().pending.insert(port);
    }

    /// Loses what is pending.
    pub fn lose_pending(&self) {
        self.0.borrow_mut().pending.clear();
    }

    /// How many pages we hold mapped.
    #[must_use]
    pub fn mapped(&self) -> usize {
        self.0.borrow().mapped.len()
    }

    /// Whose pages we hold mapped.
    #[must_use]
    pub fn mapped_domains(&self) -> Vec<Identity> {
        let mapped = &self.0.borrow().mapped;
        mapped.iter().map(|(identity, _)| *identity).collect()
    }

    /// To whom we hold channels bound.
    #[must_use]
    pub fn bound_domains(&self) -> Vec<Identity> {
        let locals = &self.0.borrow().locals;
        let bound = locals.values().filter_map(|local| match local {
            Local::Interdomain(identity, _) => Some(*identity),
            Local::DomainException => None,
        });
        bound.collect()
    }

    /// What Xen knows of a domain, without asking it.
    #[must_use]
    pub fn info(&self, domid: DomId) -> Option<DomainInfo> {
        let world = self.0.borrow();
        world.domains.get(&domid).map(|domain| domain.info)
    }

    /// How many channels to other domains we hold bound.
    #[must_use]
    pub fn bound(&self) -> usize {
        let locals = &self.0.borrow().locals;
        locals
            .values()
            .filter(|local| matches!(local, Local::Interdomain(..)))
            .count()
    }
}

/// A guest's side.
impl FakeXen {
    /// The domain's own view of its ring page.
    #[must_use]
    pub fn page(&self, domid: DomId) -> FakePage {
        let world = self.0.borrow();
        world
            .domains
            .get(&domid)
            .map(|domain| domain.page.clone())
            .unwrap_or_default()
    }

    /// Has `meddle` happen before each access of ours to the domain's page; nothing of the machine may be asked for in it.
    pub fn meddle(&self, domid: DomId, meddle: Option<Meddling>) {
        if let Some(domain) = self.0.borrow().domains.get(&domid) {
            *domain.meddler.0.borrow_mut() = meddle;
        }
    }

    /// The domain sends an event on its port.
    pub fn send(&self, domid: DomId, port: EvtchnPort) {
        let world = &mut *self.0.borrow_mut();
        if let Some(remote) = world.remote(domid, port) {
            match remote.peer {
                Some(local) => {
                    world.pending.insert(local);
                }
                None => remote.sent_unbound = true,
            }
        }
    }

    /// How many events the domain got on its port since it was last asked.
    pub fn take_events(&self, domid: DomId, port: EvtchnPort) -> u32 {
        let world = &mut *self.0.borrow_mut();
        world
            .remote(domid, port)
            .map_or(0, |remote| core::mem::take(&mut remote.received))
    }

    /// The domains that got events since this was last asked, for whoever plays many of them.
    #[must_use]
    pub fn take_notified(&self) -> BTreeSet<DomId> {
        core::mem::take(&mut self.0.borrow_mut().notified)
    }

    /// How often pending ports had been collected when the domain got its last event on its port.
    #[must_use]
    pub fn last_event(&self, domid: DomId, port: EvtchnPort) -> u64 {
        let world = &mut *self.0.borrow_mut();
        world
            .remote(domid, port)
            .map_or(0, |remote| remote.received_at)
    }

    /// The domain closes its port.
    pub fn close_remote(&self, domid: DomId, port: EvtchnPort) {
        let world = &mut *self.0.borrow_mut();
        if let Some(domain) = world.domains.get_mut(&domid) {
            domain.ports.remove(&port);
        }
    }
}

impl World {
    fn remote(&mut self, domid: DomId, port: EvtchnPort) -> Option<&mut Remote> {
        self.domains.get_mut(&domid)?.ports.get_mut(&port)
    }

    /// The other end of one of our ports, if its domain still lives and has not closed it.
    fn peer(&mut self, local: LocalPort) -> Option<&mut Remote> {
        let &Local::Interdomain(identity, port) = self.locals.get(&local)? else {
            return None;
        };
        let domain = self.domains.get_mut(&identity.domid)?;
        let same = domain.info.identity == identity;
        domain.ports.get_mut(&port).filter(|_| same)
    }

    /// Notes a change and raises the virtual interrupt, unless it gets lost.
    fn has_changed(&mut self, domid: DomId) {
        self.changed.insert(domid);
        if !self.loses_domain_exceptions {
            self.pending.extend(self.domain_exception());
        }
    }

    fn domain_exception(&self) -> Option<LocalPort> {
        self.locals
            .iter()
            .find_map(|(port, local)| matches!(local, Local::DomainException).then_some(*port))
    }

    fn open(&mut self, local: Local) -> Result<LocalPort, XenError> {
        let limit = u32::try_from(MAX_PORTS).unwrap_or(u32::MAX);
        let next = || {
            let last = self.locals.last_key_value().map_or(0, |(port, _)| port.0);
            let next = LocalPort(last.saturating_add(1));
            (next.0 < limit).then_some(next)
        };
        let port = self.free.pop_first().or_else(next).ok_or(NO_SPACE)?;
        self.locals.insert(port, local);
        Ok(port)
    }

    fn permit(&self, call: Call) -> Result<(), XenError> {
        let number = self.calls.replace(self.calls.get().saturating_add(1));
        if self.refused_calls.contains(&number) {
            return Err(NO_SPACE);
        }
        self.refused.get(&call).map_or(Ok(()), |&error| Err(error))
    }
}

impl Grants for FakeXen {
    type Page = FakePage;

    fn map(&mut self, domid: DomId, grant: GrantRef) -> Result<FakePage, XenError> {
        let world = &mut *self.0.borrow_mut();
        world.permit(Call::Map)?;
        if grant != GrantRef::XENSTORE {
            return Err(BAD_GRANT);
        }
        let domain = world.domains.get(&domid).ok_or(BAD_DOMAIN)?;
        let mut page = domain.page.clone();
        page.meddler = Some(domain.meddler.clone());
        world.mapped.push((domain.info.identity, page.clone()));
        Ok(page)
    }

    fn describe(&self, page: &FakePage) -> PageFacts {
        page.number().to_le_bytes()
    }

    fn adopt(&mut self, facts: PageFacts) -> Result<FakePage, XenError> {
        let number = u64::from_le_bytes(facts);
        let world = &*self.0.borrow();
        let mut mapped = world.mapped.iter();
        let found = mapped.find(|(_, page)| page.number() == number);
        found.map(|(_, page)| page.clone()).ok_or(BAD_GRANT)
    }

    fn unmap(&mut self, page: FakePage) -> Result<(), XenError> {
        let world = &mut *self.0.borrow_mut();
        world.permit(Call::Unmap).inspect_err(|_| {
            world.leaks = world.leaks.saturating_add(1);
        })?;
        let mut mapped = world.mapped.iter();
        let at = mapped.position(|(_, mapped)| Rc::ptr_eq(&mapped.bytes, &page.bytes));
        world.mapped.swap_remove(at.ok_or(BAD_GRANT)?);
        Ok(())
    }
}

impl Events for FakeXen {
    fn bind(&mut self, domid: DomId, port: EvtchnPort) -> Result<LocalPort, XenError> {
        let world = &mut *self.0.borrow_mut();
        world.permit(Call::Bind)?;
        let domain = world.domains.get(&domid).ok_or(INVALID)?;
        let identity = domain.info.identity;
        let remote = domain.ports.get(&port).ok_or(INVALID)?;
        if remote.peer.is_some() {
            return Err(INVALID);
        }
        let local = world.open(Local::Interdomain(identity, port))?;
        if let Some(remote) = world.remote(domid, port) {
            remote.peer = Some(local);
            if core::mem::take(&mut remote.sent_unbound) {
                world.pending.insert(local);
            }
        }
        Ok(local)
    }

    fn bind_domain_exception(&mut self) -> Result<LocalPort, XenError> {
        let world = &mut *self.0.borrow_mut();
        world.permit(Call::BindDomainException)?;
        let local = world.open(Local::DomainException)?;
        world.loses_domain_exceptions = false;
        world.refused.remove(&Call::NextChanged);
        world.changed = world.domains.keys().copied().collect();
        world.pending.insert(local);
        Ok(local)
    }

    fn prefer(&mut self, _: LocalPort) {}

    fn close(&mut self, local: LocalPort) {
        let world = &mut *self.0.borrow_mut();
        if let Some(remote) = world.peer(local) {
            remote.peer = None;
        }
        if world.locals.remove(&local).is_some() {
            world.free.insert(local);
        }
        world.pending.remove(&local);
    }

    fn pause(&mut self) {}

    fn adopt(&mut self, local: LocalPort) -> Result<(), XenError> {
        let world = &mut *self.0.borrow_mut();
        if !world.locals.contains_key(&local) {
            return Err(INVALID);
        }
        // What was told while nobody listened.
        world.pending.insert(local);
        Ok(())
    }

    fn notify(&mut self, local: LocalPort) {
        let world = &mut *self.0.borrow_mut();
        let collections = world.collections;
        world.notifications = world.notifications.saturating_add(1);
        if let Some(remote) = world.peer(local) {
            remote.received = remote.received.saturating_add(1);
            remote.received_at = collections;
            if let Some(&Local::Interdomain(identity, _)) = world.locals.get(&local) {
                world.notified.insert(identity.domid);
            }
        }
    }

    fn collect(&mut self, ports: &mut PendingPorts) {
        let interlude = {
            let world = &mut *self.0.borrow_mut();
            for port in core::mem::take(&mut world.pending) {
                ports.add(port);
            }
            world.collections = world.collections.saturating_add(1);
            world.interludes.remove(&world.collections)
        };
        if let Some(happens) = interlude {
            happens();
        }
    }
}

impl FakeXen {
    fn interface(&mut self) -> DomainInterface {
        let known = self.0.borrow().interface;
        known.unwrap_or_else(|| {
            let found = DomainInterface::probe(self);
            self.0.borrow_mut().interface = Some(found);
            found
        })
    }
}

impl Domains for FakeXen {
    fn domain(&mut self, domid: DomId) -> Result<Option<DomainInfo>, XenError> {
        {
            let world = &mut *self.0.borrow_mut();
            world.questions = world.questions.saturating_add(1);
            world.permit(Call::Domain)?;
        }
        self.interface().domain(self, domid)
    }

    fn next_changed(&mut self) -> Result<Option<DomId>, XenError> {
        self.interface().next_changed(self)
    }
}

/// Xen's answers, release by release.
impl DomainCalls for FakeXen {
    fn domain_state(&mut self, domid: u16) -> Result<StateAnswer, XenError> {
        let world = &mut *self.0.borrow_mut();
        if world.release < Release::Xen4_21 {
            return Err(XenError(errno::EACCES));
        }
        if domid != NEXT_CHANGED {
            let answer = world.state_of(DomId::new(domid));
            return answer.ok_or(world.release.no_such_domain());
        }
        world.permit(Call::NextChanged)?;
        if world.domain_exception().is_none() {
            return Err(XenError(errno::EACCES));
        }
        let changed = world.changed.pop_first().ok_or(XenError(errno::ENOENT))?;
        Ok(world.state_of(changed).unwrap_or(StateAnswer {
            domid: changed.get(),
            ..StateAnswer::default()
        }))
    }

    fn domain_info(&mut self, domid: u16, version: u32) -> Result<InfoAnswer, XenError> {
        let world = &mut *self.0.borrow_mut();
        if version != world.release.interface_version() {
            return Err(XenError(errno::EACCES));
        }
        let asked = DomId::new(domid);
        let (found, domain) = if world.release <= Release::Xen4_17 {
            world.domains.range(asked..).next()
        } else {
            world.domains.get_key_value(&asked)
        }
        .ok_or(world.release.no_such_domain())?;
        let flag = |is: bool, flag: u32| if is { flag } else { 0 };
        Ok(InfoAnswer {
            domid: found.get(),
            flags: flag(domain.info.dead, info::DYING) | flag(domain.info.shutdown, info::SHUTDOWN),
            handle: domain.info.identity.unique.0.to_be_bytes(),
        })
    }
}

impl World {
    fn state_of(&self, domid: DomId) -> Option<StateAnswer> {
        let domain = self.domains.get(&domid)?;
        let flag = |is: bool, flag: u16| if is { flag } else { 0 };
        let controls = domid == self.control.unwrap_or_default();
        Some(StateAnswer {
            domid: domid.get(),
            state: state::EXISTS
                | flag(domain.info.shutdown, state::SHUTDOWN)
                | flag(domain.info.dying, state::DYING)
                | flag(domain.info.dead, state::DEAD),
            capabilities: flag(controls, capability::CONTROL),
            unique_id: u64::try_from(domain.info.identity.unique.0).unwrap_or(u64::MAX),
        })
    }
}

impl Memory for FakeXen {
    fn memory(&mut self) -> MemoryLeft {
        let world = self.0.borrow();
        let percent = || MemoryLeft {
            stream_room: u64::MAX,
            free: u64::from(100_u8.saturating_sub(world.memory_taken)) << 20,
            total: 100 << 20,
        };
        world.measure.map_or_else(percent, |measure| measure())
    }
}

impl Clock for FakeXen {
    fn now(&mut self) -> Instant {
        self.time()
    }

    /// Nobody else acts in between: time jumps to the deadline, and without one it returns at once.
    fn wait(&mut self, deadline: Option<Instant>) {
        let world = &mut *self.0.borrow_mut();
        if let Some(deadline) = deadline.filter(|_| world.pending.is_empty()) {
            world.now = world.now.max(deadline);
        }
    }

    fn begin_work(&mut self, _now: Instant) {
        self.0.borrow_mut().works += 1;
    }
}

/// A page of memory. Clones are the same page, as the two mappings of a granted one are.
#[derive(Clone, Debug)]
pub struct FakePage {
    bytes: Rc<[Cell<u8>]>,
    /// In a mapping of ours: what its owner does meanwhile.
    meddler: Option<Meddler>,
}

impl FakePage {
    /// By which the machine finds it again.
    fn number(&self) -> u64 {
        self.bytes.as_ptr().addr() as u64
    }
}

/// What a domain does with its page between any two accesses of ours.
#[derive(Clone, Default)]
struct Meddler(Rc<RefCell<Option<Meddling>>>);

/// See [`FakeXen::meddle`].
pub type Meddling = Box<dyn Fn()>;

impl fmt::Debug for Meddler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meddler")
    }
}

const PAGE_BYTES: usize = 4096;

impl Default for FakePage {
    fn default() -> Self {
        Self {
            bytes: vec![Cell::new(0); PAGE_BYTES].into(),
            meddler: None,
        }
    }
}

impl FakePage {
    fn meet_meddler(&self) {
        if let Some(meddler) = &self.meddler
            && let Some(meddle) = &*meddler.0.borrow()
        {
            meddle();
        }
    }
}

impl Page for FakePage {
    fn load(&self, offset: usize) -> u32 {
        let mut bytes = [0; size_of::<u32>()];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn store(&self, offset: usize, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.meet_meddler();
        for (to, from) in into.iter_mut().zip(self.bytes.iter().skip(offset)) {
            *to = from.get();
        }
    }

    fn write(&self, offset: usize, from: &[u8]) {
        self.meet_meddler();
        for (to, &from) in self.bytes.iter().skip(offset).zip(from) {
            to.set(from);
        }
    }
}
