//! One run: a machine in memory, the real dispatcher and store in it, guests that do what their manner is, faults, and the checks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use kernel::config::Config;
use kernel::dispatch::Dispatcher;
use kernel::fake::{Call, FakeXen};
use kernel::ring::{CONNECTION, REPLIES, REQUESTS};
use kernel::xen::{LocalPort, Page as _, XenError};
use model::{Left, Model};
use xenstore::state::{Format, HostLink};
use xenstore::{
    AnyStorage, Completed, ConnId, DomId, Entry, Identity, Instant, Nesting, Noted, Progress,
    Quota, Server, Settings, faults, layer, policy,
};

use super::coverage::Coverage;
use super::guest::Guest;
use super::random::Random;
use super::replay::Replay;
use super::script::{CONTROL, Draft, END, INTRODUCE, START, Scene, words};
use super::swarm::{Extensions, Manner, Swarm};

const DOM0: DomId = DomId::new(0);
/// The domain that the store itself runs in.
const STORE: DomId = DomId::new(31);
/// Entries of the journal that are shown when something is wrong.
const SHOWN: usize = 60;
/// Requests that the toolstack has on their way at most.
const TOOLSTACK_MAX: usize = 60;
/// Requests that a turn answers at most: what 8 rounds of 64 units of cost are.
const REQUESTS_A_TURN: u64 = 8 * 64;
/// Looks at rings in a turn at most: in 8 rounds, the privileged domain's and 32 and 16 others.
const LOOKS_A_TURN: u64 = 8 * (1 + 32 + 16);
/// What a turn may cost at most: the last request of a round may cost more than is foreseen.
const COST_A_TURN: u64 = 8 * (64 + 4096);
/// Turns until everything that is owed has been done, once no more faults come.
const TURNS_TO_REST: u32 = 12_000;
/// Turns in which those who act together do the same.
const TURNS_A_PHASE: u64 = 100;
/// Domains that the toolstack makes at the start of a large host before it waits for answers.
const MADE_AT_ONCE: u16 = 8;
/// Turns between two complete checks of the accounts.
const TURNS_BETWEEN_AUDITS: u64 = 8;

/// A run.
pub(crate) struct World {
    pub(crate) xen: FakeXen,
    pub(crate) dispatcher: Dispatcher<FakeXen>,
    pub(crate) model: Model,
    pub(crate) coverage: Coverage,
    random: Random,
    swarm: Swarm,
    guests: BTreeMap<u16, Guest>,
    /// Domains that are dying, each with whether it is dead already.
    zombies: BTreeMap<u16, bool>,
    recent: VecDeque<Recent>,
    serial: u64,
    turns: u64,
    refused: BTreeSet<Call>,
    /// Something was refused since the present turn began, or a domain died within it.
    interrupted: bool,
    /// Domains that the last INTRODUCE named with a port that they do not have.
    wrong_ports: BTreeSet<u16>,
    leaking: bool,
    /// What every store begins with.
    settings: Settings,
    /// The request that is at work.
    pub(crate) begun: Option<Noted>,
    /// What decides when the store crashes.
    fate: Random,
    replay: Replay,
}

impl World {
    pub(crate) fn new(seed: u64) -> Result<Self, String> {
        let mut random = Random::new(seed);
        let swarm = Swarm::new(&mut random);
        let xen = FakeXen::default();
        let dom0 = xen.create(DOM0);
        let guest = Guest::new(&xen, dom0, Manner::Pipelining);
        let line = format!("--event {}", guest.port.0);
        let config = Config::parse(line.as_bytes()).map_err(|error| error.why.to_string())?;
        let mut settings = Settings::new(DOM0, STORE);
        for (quota, limit) in Quota::all().zip(swarm.limits) {
            settings.quotas.set(quota, limit);
        }
        settings.event_timeout = Duration::from_millis(swarm.event_timeout_ms);
        (settings.features, settings.grantable) = swarm.nesting.features();
        settings.storage = swarm.storage;
        // What the store writes of its own accord the model cannot know.
        settings.counter_interval = Duration::ZERO;
        let as_modelled = model::Settings {
            privileged: DOM0.get(),
            store: STORE.get(),
            limits: swarm.limits,
            features: settings.features.bits(),
            grantable: settings.grantable.bits(),
            event_timeout_ns: swarm.event_timeout_ms * 1_000_000,
        };
        let mut model = Model::new(as_modelled, dom0.unique.0);
        model.set_lenient(swarm.memory);
        let Extensions {
            policies, layers, ..
        } = &swarm.extensions;
        let chosen = policy::Choice::parse(policies.as_bytes());
        settings.policies = chosen.map_err(|error| error.to_string())?;
        let (chosen, errors) = layer::Choice::parse(layers.as_bytes());
        if let Some(error) = errors.first() {
            return Err(error.to_string());
        }
        settings.layers = chosen;
        model.configure(policies, layers);
        let server = Server::with_storage(settings.clone());
        let mut dispatcher = Dispatcher::start(xen.clone(), server, DOM0, &config)
            .map_err(|error| error.to_string())?;
        // From now on a journal is kept.
        dispatcher.server_mut().take_journal();
        let mut world = Self {
            xen,
            dispatcher,
            model,
            coverage: Coverage::default(),
            random,
            swarm,
            guests: BTreeMap::from([(0, guest)]),
            zombies: BTreeMap::new(),
            recent: VecDeque::new(),
            serial: 0,
            turns: 0,
            refused: BTreeSet::new(),
            interrupted: false,
            wrong_ports: BTreeSet::new(),
            leaking: false,
            settings,
            begun: None,
            fate: Random::new(!seed),
            replay: Replay::default(),
        };
        world.replay.begin(world.dispatcher.server());
        world.ask_dom0(12, words(&["/t"]));
        world.ask_dom0(14, words(&["/t", "b0"]));
        if world.swarm.extensions.leases {
            world.introduce_leases();
        }
        for domid in 1..=world.swarm.made {
            world.create(domid);
            world.introduce(domid);
            world.coverage.happened("domains of large hosts");
            while domid % MADE_AT_ONCE == 0
                && world.guests.get(&0).is_some_and(|dom0| dom0.waiting() > 0)
            {
                world.exchange_dom0()?;
                if world.turn()? == Progress::Idle {
                    // A layer may hold it for a while.
                    world.dispatcher.sleep();
                }
            }
        }
        Ok(world)
    }

    /// Resources that guests can ask for themselves.
    fn introduce_leases(&mut self) {
        for resource in ["/lease/d/x", "/lease/d/y"] {
            let modes = "exclusive,shared,read-only".into();
            self.ask_dom0(11, [words(&[resource]), modes].concat());
            for folder in ["holder", "wait", "move"] {
                let path = format!("{resource}/{folder}");
                self.ask_dom0(12, words(&[&path]));
                self.ask_dom0(14, words(&[&path, "b0"]));
            }
        }
    }

    fn exchange_dom0(&mut self) -> Result<(), String> {
        let dom0 = self.guests.get_mut(&0);
        dom0.map_or(Ok(false), |dom0| dom0.exchange(&self.xen, usize::MAX))
            .map(drop)
    }

    /// Does one thing.
    pub(crate) fn step(&mut self) -> Result<(), String> {
        self.xen
            .advance(Duration::from_micros(self.random.below(400)));
        let swarm = &self.swarm;
        let choices: [(u64, Step); 7] = [
            (330, Step::Turn),
            (600, Step::Guest),
            (swarm.lives, Step::Life),
            (swarm.deaths, Step::Death),
            (swarm.faults, Step::Fault),
            (swarm.waits, Step::Wait),
            (swarm.renewals, Step::Renewal),
        ];
        match self.random.weighted(&choices) {
            Some(Step::Guest) => self.guest()?,
            Some(Step::Life) => self.life(),
            Some(Step::Death) => self.death(),
            Some(Step::Fault) => self.fault(),
            Some(Step::Wait) => self.wait(),
            Some(Step::Renewal) => self.renew()?,
            _ => _ = self.turn()?,
        }
        Ok(())
    }

    /// Everything comes to rest: what is owed is done, without faults and without those who break rules.
    pub(crate) fn rest(&mut self) -> Result<(), String> {
        self.end_faults();
        self.calm(|guest| guest.domid() == DOM0)?;
        let doomed: Vec<u16> = self
            .guests
            .iter()
            .filter(|(_, guest)| !guest.manner.is_honest())
            .map(|(domid, _)| *domid)
            .collect();
        for domid in doomed {
            self.kill(domid);
        }
        self.bury_zombies(true);
        self.calm(|_| true)?;
        self.check_identities()?;
        self.check_pages()?;
        self.check_nodes()?;
        self.dispatcher.server().audit()
    }

    /// The store has the nodes that the model has, and those that its journal tells of, if it keeps one.
    fn check_nodes(&mut self) -> Result<(), String> {
        let nodes = self.dispatcher.server().all_nodes();
        let expected = self.model.nodes();
        let differs = nodes
            .iter()
            .find(|(path, node)| expected.get(*path) != Some(node));
        if let Some((path, node)) = differs {
            return Err(format!(
                "{path} is {node:?} and should be {:?}",
                expected.get(path)
            ));
        }
        if let Some(path) = expected.keys().find(|path| !nodes.contains_key(*path)) {
            return Err(format!("{path} is missing"));
        }
        self.replay.check(&nodes)
    }

    /// All guests go, and nothing is left of them.
    pub(crate) fn end(&mut self) -> Result<(), String> {
        self.rest()?;
        let all: Vec<u16> = self
            .guests
            .keys()
            .copied()
            .filter(|domid| *domid != 0)
            .collect();
        for domid in all {
            self.kill(domid);
        }
        self.calm(|_| true)?;
        let introduced: Vec<u16> = self.model.introduced().collect();
        let (mapped, bound) = (self.xen.mapped(), self.xen.bound());
        let clean = introduced == [0] && bound == 1 && (mapped == 1 || self.leaking);
        if !clean {
            return Err(format!(
                "all guests are gone, and {introduced:?} are introduced, {mapped} rings are mapped, {bound} ports are bound"
            ));
        }
        self.dispatcher.server().audit()
    }

    /// What came before, in the server's order.
    pub(crate) fn show_recent(&self) -> String {
        let lines: Vec<String> = self.recent.iter().map(Recent::show).collect();
        format!("{:?}\n{}", self.swarm, lines.join("\n"))
    }

    pub(crate) fn remember(&mut self, entry: Entry) {
        if self.recent.len() >= SHOWN {
            self.recent.pop_front();
        }
        let is_dull = match &entry {
            Entry::Run(_) | Entry::Begins { .. } => true,
            Entry::Domains { events, .. } => events.is_empty(),
            _ => false,
        };
        if !is_dull {
            self.recent.push_back(Recent::Entry(entry));
        }
    }

    /// Remembers what the journal does not tell.
    pub(crate) fn remark(&mut self, what: String) {
        self.recent.push_back(Recent::Remark(what));
    }

    /// The guest whose connection the store has for a domid; none if that guest is gone.
    pub(crate) fn served_guest(&mut self, domid: DomId) -> Option<&mut Guest> {
        let known = self.model.known(domid.get());
        let guest = self.guests.get_mut(&domid.get());
        guest.filter(|guest| Some(guest.identity.unique.0) == known)
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupted
    }

    pub(crate) fn may_fail_to_introduce(&self, domid: DomId) -> bool {
        let faulty = [Call::Map, Call::Bind, Call::Domain]
            .iter()
            .any(|call| self.refused.contains(call));
        let hostile = self
            .guests
            .get(&domid.get())
            .is_none_or(|guest| !guest.manner.is_honest());
        faulty || hostile || self.interrupted || self.wrong_ports.contains(&domid.get())
    }

    /// Remembers whether an INTRODUCE names a port that there is.
    pub(crate) fn note_introduction(&mut self, request: &Noted) {
        let text = String::from_utf8_lossy(&request.payload).into_owned();
        let numbers: Vec<u32> = text
            .split('\0')
            .take(3)
            .filter_map(|word| word.parse().ok())
            .collect();
        let [domid, _, port] = numbers.as_slice() else {
            return;
        };
        let Ok(domid) = u16::try_from(*domid) else {
            return;
        };
        let right = self
            .guests
            .get(&domid)
            .is_some_and(|guest| guest.port.0 == *port);
        if right {
            self.wrong_ports.remove(&domid);
        } else {
            self.wrong_ports.insert(domid);
        }
    }
}

/// What came before.
enum Recent {
    Entry(Entry),
    Remark(String),
}

impl Recent {
    fn show(&self) -> String {
        match self {
            Self::Entry(entry) => show(entry),
            Self::Remark(what) => what.clone(),
        }
    }
}

/// A kind of step.
#[derive(Clone, Copy, Debug)]
enum Step {
    Turn,
    Guest,
    Life,
    Death,
    Fault,
    Wait,
    Renewal,
}

/// The dispatcher's turns and what must be true after each.
impl World {
    fn turn(&mut self) -> Result<Progress, String> {
        let (looks, spent) = (self.dispatcher.looks(), self.dispatcher.server().spent());
        self.turns += 1;
        // One whose death was to come within a turn may die in any.
        self.interrupted |= self.zombies.values().any(|is_dead| *is_dead);
        let progress = self.turn_or_crash()?;
        let served = self.witness()?;
        self.replay.follow(self.dispatcher.server())?;
        let looks = self.dispatcher.looks() - looks;
        let spent = self.dispatcher.server().spent() - spent;
        if served > REQUESTS_A_TURN || looks > LOOKS_A_TURN || spent > COST_A_TURN {
            return Err(format!(
                "a turn answered {served} requests, looked {looks} times and cost {spent}"
            ));
        }
        // On a large host it takes long to look at everybody.
        let looks = self.swarm.made == 0 || self.turns.is_multiple_of(TURNS_BETWEEN_AUDITS);
        if looks && !self.interrupted && !self.swarm.lost_deaths && !self.swarm.refusals {
            self.check_identities()?;
        }
        let turns = TURNS_BETWEEN_AUDITS * if self.swarm.made == 0 { 1 } else { 8 };
        if self.turns.is_multiple_of(turns) {
            self.dispatcher.server().audit()?;
        }
        self.interrupted = false;
        Ok(progress)
    }

    /// A turn, within which the store may crash.
    fn turn_or_crash(&mut self) -> Result<Progress, String> {
        if !self.fate.chance(self.swarm.crashes) {
            return Ok(self.dispatcher.turn());
        }
        let range = 1 << self.fate.below(9);
        let place = self.fate.below(range);
        faults::crash_at(Some(place));
        let turned = catch_unwind(AssertUnwindSafe(|| self.dispatcher.turn()));
        faults::crash_at(None);
        match turned {
            Ok(progress) => Ok(progress),
            Err(error) if error.is::<faults::Crash>() => {
                self.go_on_after_crash()?;
                Ok(Progress::More)
            }
            Err(error) => resume_unwind(error),
        }
    }

    /// Nothing is known, mapped or bound of domains that are no more.
    fn check_identities(&self) -> Result<(), String> {
        for (domid, unique) in self.model.known_domains() {
            let there = self.xen.info(DomId::new(domid));
            let there = there.filter(|info| info.identity.unique.0 == unique && !info.dead);
            if there.is_none() {
                return Err(format!(
                    "domain {domid} ({unique}) is no more, and still known"
                ));
            }
        }
        let introduced: BTreeSet<u16> = self.model.introduced().collect();
        let held = [self.xen.mapped_domains(), self.xen.bound_domains()];
        let leaked = held
            .iter()
            .skip(usize::from(self.leaking))
            .flatten()
            .find(|identity| {
                !introduced.contains(&identity.domid.get())
                    || self.model.known(identity.domid.get()) != Some(identity.unique.0)
            });
        let mut twice = self.xen.mapped_domains();
        twice.sort();
        let is_twice = twice.windows(2).any(|pair| pair.first() == pair.last());
        match leaked {
            Some(identity) => Err(format!("{identity:?} is no client, and mapped or bound")),
            None if is_twice && !self.leaking => Err(format!("mapped twice: {twice:?}")),
            None => Ok(()),
        }
    }

    fn check_pages(&self) -> Result<(), String> {
        let guests = self.guests.values();
        let mut others = guests.filter(|guest| guest.manner != Manner::Hostile);
        others.try_for_each(Guest::check_page)
    }

    /// Turns and reads until all whom `waits` names have what they are owed, and nothing moves.
    fn calm(&mut self, waits: impl Fn(&Guest) -> bool) -> Result<(), String> {
        for _ in 0..TURNS_TO_REST {
            let progress = self.turn()?;
            let mut moved = progress == Progress::More;
            for guest in self.guests.values_mut() {
                if guest.manner.is_honest() {
                    moved |= guest.exchange(&self.xen, usize::MAX)?;
                }
            }
            if moved {
                continue;
            }
            if self.is_calm(&waits) {
                return Ok(());
            }
            self.bury_zombies(true);
            self.dispatcher.sleep();
        }
        let waiting = self
            .guests
            .values()
            .filter(|guest| waits(guest) && !self.has_all(guest));
        let waiting: Vec<String> = waiting
            .map(|guest| format!("{} for {:?}", guest.name(), guest.oldest()))
            .collect();
        Err(format!(
            "no rest after {TURNS_TO_REST} turns; {} wait; introduced are {:?}",
            waiting.join(", "),
            self.model.introduced().collect::<Vec<_>>()
        ))
    }

    fn is_calm(&self, waits: &impl Fn(&Guest) -> bool) -> bool {
        let mut guests = self.guests.values().filter(|guest| waits(guest));
        guests.all(|guest| self.has_all(guest)) && self.check_identities().is_ok()
    }

    /// Whether a guest has what it is owed. Without a connection that is nothing.
    fn has_all(&self, guest: &Guest) -> bool {
        let domid = guest.domid().get();
        let is_served = self.model.known(domid) == Some(guest.identity.unique.0)
            && self
                .model
                .introduced()
                .any(|introduced| introduced == domid);
        if !guest.manner.is_honest() || !is_served || guest.garbled {
            return true;
        }
        guest.is_idle() && self.model.waiting(domid) == 0
    }
}

/// What guests do.
impl World {
    fn guest(&mut self) -> Result<(), String> {
        let domids: Vec<u16> = self.guests.keys().copied().collect();
        let domid = match self.random.chance(250) {
            true => 0,
            false => self.random.pick(&domids).copied().unwrap_or(0),
        };
        let Some(manner) = self.guests.get(&domid).map(|guest| guest.manner) else {
            return Ok(());
        };
        let waiting = self.guests.get(&domid).map_or(0, Guest::waiting);
        let most = match manner {
            Manner::Modest => 1,
            Manner::Pipelining | Manner::Lazy => 12,
            Manner::Malformed => 20,
            Manner::Flooding | Manner::Hostile | Manner::Colluding => TOOLSTACK_MAX,
        };
        let count = match manner {
            Manner::Modest => 1,
            Manner::Flooding | Manner::Colluding => 20,
            _ => 1 + self.random.index(3),
        };
        for _ in 0..count.min(most.saturating_sub(waiting)) {
            self.ask(domid, manner);
        }
        let most = if self.random.chance(250) {
            1 + self.random.index(60)
        } else {
            usize::MAX
        };
        if manner == Manner::Colluding {
            let is_reading = self.phase() % 4 != 1;
            if let Some(guest) = self.guests.get_mut(&domid) {
                guest.reading = is_reading;
            }
        }
        let misbehaves = self.random.chance(150);
        if misbehaves && !manner.is_honest() {
            self.misbehave(domid, manner);
        }
        match self.guests.get_mut(&domid) {
            Some(guest) => guest.exchange(&self.xen, most).map(drop),
            None => Ok(()),
        }
    }

    /// Has a request of a guest ready.
    fn ask(&mut self, domid: u16, manner: Manner) {
        self.serial += 1;
        let open: Vec<u32> = self.model.transactions(domid).collect();
        let inside = self.random.chance(self.swarm.transactions);
        let mut tx_id = if inside {
            self.random.pick(&open).copied().unwrap_or(0)
        } else {
            0
        };
        if self.random.chance(8) {
            tx_id = u32::try_from(self.random.below(9)).unwrap_or(0);
        }
        let dice = self.random.below(100);
        let phase = self.phase();
        let mut scene = Scene {
            random: &mut self.random,
            domid,
            domids: self.swarm.domids,
            serial: self.serial,
            crowd: self.swarm.crowd,
            wide: self.swarm.wide,
            tight: self.swarm.tight,
        };
        let draft = match dice {
            0..=89 if manner == Manner::Colluding => scene.colluding(phase),
            0..=24 if tx_id != 0 => {
                let word = scene.random.word(&["T", "T", "T", "T", "F", "X"]);
                (END, words(&[word]))
            }
            0..=24 if inside => (START, vec![0]),
            25..=34 if tx_id != 0 && self.swarm.nesting != Nesting::Flat => (START, vec![0]),
            35..=59 if self.swarm.extensions.leases => scene.lease(),
            60..=99 if domid == 0 && scene.random.chance(self.swarm.reforms) => {
                scene.reform(&self.swarm.extensions)
            }
            25..=34 if domid == 0 => scene.administrative(),
            _ => scene.any(manner),
        };
        if let Some(guest) = self.guests.get_mut(&domid) {
            guest.ask(tx_id, draft);
        }
    }

    /// What those who act together have agreed to do now, of four things.
    fn phase(&self) -> u64 {
        self.turns / TURNS_A_PHASE
    }

    fn ask_dom0(&mut self, kind: u32, payload: Vec<u8>) {
        if let Some(dom0) = self.guests.get_mut(&0) {
            dom0.ask(0, (kind, payload));
        }
    }

    /// What only those do who break the rules.
    fn misbehave(&mut self, domid: u16, manner: Manner) {
        let dice = self.random.below(12);
        let mut own = self.random.fork();
        let Some(guest) = self.guests.get_mut(&domid) else {
            return;
        };
        let xen = self.xen.clone();
        match (dice, manner) {
            (0 | 1, _) => guest.reading = !guest.reading,
            (2, _) => guest.reconnect(&xen),
            (3, Manner::Malformed) => {
                let len = u32::try_from(4097 + own.below(1 << 31)).unwrap_or(u32::MAX);
                guest.garbled = true;
                guest.say(&[11, 1, 0, len]);
            }
            (4, Manner::Malformed) => {
                let count = 1 + own.index(40);
                let bytes: Vec<u8> = (0..count).map(|_| own.next().to_le_bytes()[0]).collect();
                guest.babble(&bytes);
            }
            (5 | 6, _) => guest.notify(&xen),
            (7..=9, Manner::Hostile) => scribble(guest.page(), &mut own),
            (10, Manner::Hostile) => {
                let page = guest.page().clone();
                let state = std::cell::RefCell::new(own);
                let rate = 20 + self.random.below(200);
                let meddle = move || {
                    let mut random = state.borrow_mut();
                    if random.chance(rate) {
                        scribble(&page, &mut random);
                    }
                };
                self.xen.meddle(DomId::new(domid), Some(Box::new(meddle)));
                self.coverage.happened("pages that change by themselves");
            }
            (11, Manner::Hostile) => {
                self.xen.close_remote(guest.domid(), guest.port);
                self.coverage.happened("ports closed");
            }
            _ => {}
        }
    }
}

/// Writes something into a page, mostly where it matters.
fn scribble(page: &kernel::fake::FakePage, random: &mut Random) {
    let words = [
        REQUESTS.cons,
        REQUESTS.prod,
        REPLIES.cons,
        REPLIES.prod,
        CONNECTION,
    ];
    let at = random.pick(&words).copied().unwrap_or(CONNECTION);
    match random.below(6) {
        0 => {
            let value = u32::try_from(random.next() >> 32).unwrap_or_default();
            page.store(at, value);
        }
        1 => {
            let offset = 4 * random.index(512);
            let value = u32::try_from(random.below(5000)).unwrap_or_default();
            page.store(offset, value);
        }
        2 => page.store(CONNECTION, 1),
        3 => page.store(at, page.load(at).wrapping_add(1024)),
        _ => {
            let by = u32::try_from(random.below(40)).unwrap_or_default();
            page.store(at, page.load(at).wrapping_add(by).wrapping_sub(8));
        }
    }
}

/// Domains come and go, by the toolstack's hand and otherwise.
impl World {
    fn life(&mut self) {
        let domid = u16::try_from(1 + self.random.below(self.swarm.domids.into())).unwrap_or(1);
        let busy = self.guests.get(&0).map_or(0, Guest::waiting) > TOOLSTACK_MAX;
        if self.zombies.contains_key(&domid) || busy {
            return;
        }
        if !self.guests.contains_key(&domid) {
            self.create(domid);
            if self.random.chance(900) {
                self.introduce(domid);
            }
            return;
        }
        match self.random.below(8) {
            0 => self.ask_dom0(9, words(&[&domid.to_string()])),
            1 => {
                self.xen
                    .change(DomId::new(domid), |info| info.shutdown = true);
                self.coverage.happened("shutdowns");
            }
            2 => self
                .xen
                .change(DomId::new(domid), |info| info.shutdown = false),
            3 => {
                let other = 1 + self.random.below(self.swarm.domids.into());
                self.ask_dom0(19, words(&[&domid.to_string(), &other.to_string()]));
            }
            4 => {
                let port = self.random.word(&["1", "9", "0", "x", "131072"]);
                self.ask_dom0(INTRODUCE, words(&[&domid.to_string(), "1", port]));
            }
            _ => self.introduce(domid),
        }
    }

    fn create(&mut self, domid: u16) {
        let identity = self.xen.create(DomId::new(domid));
        let manner = self
            .random
            .weighted(&self.swarm.manners)
            .unwrap_or(Manner::Modest);
        let guest = Guest::new(&self.xen, identity, manner);
        self.guests.insert(domid, guest);
        self.coverage.happened("domains created");
    }

    /// What a toolstack asks for when it has built a domain.
    fn introduce(&mut self, domid: u16) {
        let Some(port) = self.guests.get(&domid).map(|guest| guest.port) else {
            return;
        };
        let (number, port) = (domid.to_string(), port.0.to_string());
        let home = format!("/local/domain/{domid}");
        let owner = format!("n{domid}");
        if self.random.chance(150) {
            let features = self.random.word(&["0", "3", "7", "15", "11", "2147483663"]);
            self.ask_dom0(24, words(&[&number, features]));
        }
        let early = self.random.chance(100);
        let asks: [Draft; 3] = [
            (INTRODUCE, words(&[&number, "1", &port])),
            (12, words(&[&home])),
            (14, words(&[&home, &owner])),
        ];
        let [introduce, mkdir, set_perms] = asks;
        let order = if early {
            [mkdir, introduce, set_perms]
        } else {
            [introduce, mkdir, set_perms]
        };
        for (kind, payload) in order {
            self.ask_dom0(kind, payload);
        }
        if self.random.chance(300) {
            self.ask_dom0(CONTROL, words(&["check"]));
        }
    }

    fn death(&mut self) {
        self.bury_zombies(false);
        let domids: Vec<u16> = self
            .guests
            .keys()
            .copied()
            .filter(|domid| *domid != 0)
            .collect();
        let Some(domid) = self.random.pick(&domids).copied() else {
            return;
        };
        match self.random.below(6) {
            0 => {
                self.kill(domid);
                self.create(domid);
                if self.random.chance(800) {
                    self.introduce(domid);
                }
                self.coverage.happened("reboots with the same domid");
            }
            1 => {
                self.guests.remove(&domid);
                self.zombies.insert(domid, false);
                self.xen.change(DomId::new(domid), |info| info.dying = true);
                self.coverage.happened("slow deaths");
            }
            2 => {
                // It dies while the dispatcher is at work.
                self.guests.remove(&domid);
                let xen = self.xen.clone();
                let at = 1 + self.random.below(8);
                let destroy = move || xen.destroy(DomId::new(domid));
                self.xen.after_collection(at, destroy);
                self.zombies.insert(domid, true);
                self.interrupted = true;
                self.coverage.happened("deaths within a turn");
            }
            _ => self.kill(domid),
        }
    }

    fn kill(&mut self, domid: u16) {
        self.guests.remove(&domid);
        self.wrong_ports.remove(&domid);
        self.xen.destroy(DomId::new(domid));
        self.coverage.happened("deaths");
    }

    /// Lets some, or all, who are dying be dead, and those be gone of whom nobody holds anything.
    fn bury_zombies(&mut self, all: bool) {
        let zombies: Vec<(u16, bool)> = self
            .zombies
            .iter()
            .map(|(domid, dead)| (*domid, *dead))
            .collect();
        for (domid, is_dead) in zombies {
            let domain = DomId::new(domid);
            let held = |identity: &Identity| identity.domid == domain;
            let is_held = self.xen.mapped_domains().iter().any(held);
            if self.xen.info(domain).is_none() || (is_dead && (!is_held || self.leaking)) {
                self.xen.destroy(domain);
                self.zombies.remove(&domid);
            } else if !is_dead && (all || self.random.chance(400)) {
                self.xen.change(domain, |info| info.dead = true);
                self.zombies.insert(domid, true);
            } else if is_dead && all {
                // Also one whose death within a turn did not come.
                self.xen.change(domain, |info| info.dead = true);
            }
        }
    }
}

/// Another instance of the store takes over.
impl World {
    /// Replaces the store by one that is made of its state. Nobody can tell: the model is not told.
    fn renew(&mut self) -> Result<(), String> {
        let now = self.xen.time();
        let stream = self.state(now);
        let restored = Server::<AnyStorage>::import(&stream, self.settings.clone(), now)
            .map_err(|error| format!("the state cannot be read: {error}"))?;
        let links = restored.links.iter();
        let connections: Vec<(DomId, ConnId)> = links
            .filter_map(|link| Some((link.domid?, link.conn)))
            .collect();
        drop(self.dispatcher.take_over(restored.server, &connections));
        // From now on this one keeps a journal.
        self.dispatcher.server_mut().take_journal();
        let is_repaired = self.model.taken_over();
        self.dispatcher.server().audit()?;
        self.coverage.happened("other instances that took over");
        self.remark("another instance".to_owned());
        if is_repaired || self.state(now) == stream {
            Ok(())
        } else {
            Err("the state that was read is not the one that was written".to_owned())
        }
    }

    /// Replaces a store that crashed by one that is made of what it left.
    fn go_on_after_crash(&mut self) -> Result<(), String> {
        let now = self.xen.time();
        self.interrupted = true;
        let Completed {
            did_change,
            did_answer,
        } = self.dispatcher.server_mut().complete_after_crash();
        self.witness()?;
        let mut stream = Vec::new();
        let host = |_| HostLink::default();
        let server = self.dispatcher.server();
        server.export_after_crash(now, &host, None, &mut stream);
        let restored = Server::<AnyStorage>::import(&stream, self.settings.clone(), now)
            .map_err(|error| format!("what a crash left cannot be read: {error}"))?;
        let blamed = restored.crash.and_then(|crash| crash.blamed);
        let blamed = blamed.ok_or("a crash is nobody's")?;
        let links = restored.links.iter();
        let connections: Vec<(DomId, ConnId)> = links
            .filter_map(|link| Some((link.domid?, link.conn)))
            .collect();
        // What crashed is not taken apart: nothing in it need be whole.
        std::mem::forget(self.dispatcher.take_over(restored.server, &connections));
        self.dispatcher.server_mut().take_journal();
        if !blamed.is_kept {
            self.dispatcher.break_off(blamed.domid);
        }
        let open = self.dispatcher.server().open_transactions(blamed.conn);
        self.crashed(&Left {
            did_change,
            did_answer,
            is_kept: blamed.is_kept,
            open: &open,
        })?;
        self.model.taken_over();
        self.dispatcher.server().audit()
    }

    fn state(&self, now: Instant) -> Vec<u8> {
        let mut stream = Vec::new();
        let host = |_| HostLink::default();
        let server = self.dispatcher.server();
        server.export(Format::Own, now, &host, &mut stream);
        stream
    }
}

/// Faults of the machine.
impl World {
    fn fault(&mut self) {
        match self.random.below(7) {
            0 | 1 if self.swarm.refusals => self.toggle_refusal(),
            2 if self.swarm.lost_deaths => {
                let lost = self.random.chance(600);
                self.xen.lose_domain_exceptions(lost);
                self.coverage.happened("interrupts that get lost");
            }
            3 if self.swarm.lost_deaths => {
                self.xen.lose_pending();
                self.coverage.happened("events lost on their way");
            }
            4 if self.swarm.memory => {
                let taken = self.random.pick(&[0, 50, 76, 91, 96]).copied().unwrap_or(0);
                self.xen.take_memory(taken);
                self.coverage.happened("changes of memory");
            }
            5 if self.swarm.clock => {
                let back = Duration::from_millis(self.random.below(30_000));
                let now: Instant = self.xen.time().before(back);
                self.xen.set_time(now);
                self.coverage.happened("clocks that go back");
            }
            _ => {
                let port = u32::try_from(self.random.below(24)).unwrap_or_default();
                self.xen.disturb(LocalPort(port));
                self.coverage.happened("events for nothing");
            }
        }
    }

    fn toggle_refusal(&mut self) {
        const CALLS: [Call; 6] = [
            Call::Map,
            Call::Unmap,
            Call::Bind,
            Call::BindDomainException,
            Call::Domain,
            Call::NextChanged,
        ];
        let Some(call) = self.random.pick(&CALLS).copied() else {
            return;
        };
        self.interrupted = true;
        if self.refused.remove(&call) {
            self.xen.refuse(call, None);
        } else {
            self.refused.insert(call);
            self.leaking |= call == Call::Unmap;
            self.xen.refuse(call, Some(XenError(12)));
            self.coverage.happened("calls refused");
        }
    }

    fn end_faults(&mut self) {
        for call in std::mem::take(&mut self.refused) {
            self.xen.refuse(call, None);
        }
        self.interrupted = true;
        self.xen.lose_domain_exceptions(false);
        self.xen.take_memory(0);
    }

    fn wait(&mut self) {
        match self.random.below(4) {
            0 => self.dispatcher.sleep(),
            1 => self
                .xen
                .advance(Duration::from_millis(self.random.below(15_000))),
            _ => self
                .xen
                .advance(Duration::from_millis(self.random.below(60))),
        }
    }
}

/// An entry of the journal as a line.
fn show(entry: &Entry) -> String {
    match entry {
        Entry::Served {
            request: asked,
            refused,
        } => {
            let refused = refused.map_or("OK", xenstore::Errno::name);
            format!("{} => {refused}", show_request(asked))
        }
        Entry::Begins { request: asked } => format!("{} begins", show_request(asked)),
        Entry::Waits {
            request: asked,
            domid,
        } => format!("{} waits for {domid}", show_request(asked)),
        Entry::Sent { domid, rest, count } => {
            format!("d{domid} gets {count} of \"{}\"", abridge(rest))
        }
        other => format!("{other:?}"),
    }
}

pub(crate) fn show_request(request: &Noted) -> String {
    format!(
        "d{} {} ({}, {}) \"{}\"",
        request.domid,
        xenstore::wire::Kind::from_number(request.kind).map_or("?", xenstore::wire::Kind::name),
        request.req_id,
        request.tx_id,
        abridge(&request.payload)
    )
}

fn abridge(bytes: &[u8]) -> String {
    const SHOWN_BYTES: usize = 100;
    let text = bytes.get(..SHOWN_BYTES).unwrap_or(bytes).escape_ascii();
    if bytes.len() > SHOWN_BYTES {
        format!("{text}… ({} bytes)", bytes.len())
    } else {
        text.to_string()
    }
}
