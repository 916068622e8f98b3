//! Random scripts of a toolstack and three guests, on the store and on a model of it: the same replies, the same events, the same accounts.
//!
//! The seeds are fixed, so that a run can be repeated; `XENSTORE_WILD=1` takes others each time, `PROPTEST_CASES` says how many.
#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that goes wrong here should stop at once"
)]

mod machine;
#[path = "transcript/message.rs"]
mod message;
mod twins;

use core::time::Duration;

use machine::Machine;
use message::{ERROR, Message, WATCH_EVENT};
use model::{ANY, FRAGMENTS, Fate, Model, QUOTAS};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use xenstore::{AnyStorage, DomId, Features, FlatMap, Journaled, Quota, Settings, Storage, Tree};

/// The privileged domain.
const TOOLSTACK: u16 = 0;
const GUESTS: [u16; 3] = [1, 2, 3];
/// Limits of all others, in the order of [`QUOTAS`]. What a guest may do besides has no limit in these tests.
const LIMITS: [u32; QUOTAS.len()] = [6, 4, 20, 0, 0, 2, 0, 3, 2048, 2048];
/// So many transactions each client has at hand, open or not.
const PLACES: usize = 4;
/// A domid that no domain ever has.
const NOBODY: u16 = 9;

/// Who causes conflicts is held for some of these; then his request runs after all.
const HOLD_MS: u64 = 50;
const HOLDS_MAX: u32 = 10;

#[test]
fn the_store_does_what_the_model_does() {
    let scripts = prop::collection::vec(step(), 1..60);
    run(300, &scripts, |script| compare::<AnyStorage>(&script));
}

#[test]
fn transactions_are_as_if_they_had_run_at_once() {
    run(600, &transactions(), |script| {
        compare::<AnyStorage>(&script)
    });
}

#[test]
fn transactions_inside_others_are_as_if_they_had_run_in_these_at_once() {
    run(600, &nested(), |script| {
        compare_nested::<AnyStorage>(&script)
    });
    run(100, &nested(), |script| compare_nested::<FlatMap>(&script));
    run(100, &nested(), |script| {
        compare_nested::<Journaled<Tree>>(&script)
    });
}

#[test]
fn over_a_flat_map_the_store_does_the_same() {
    let scripts = prop::collection::vec(step(), 1..60);
    run(100, &scripts, |script| compare::<FlatMap>(&script));
    run(100, &transactions(), |script| compare::<FlatMap>(&script));
}

/// Takes the steps in the store and in the model.
fn compare<S: Storage>(script: &[Step]) -> Result<(), TestCaseError> {
    play_on(Pair::<S>::new(settings()), script)
}

/// As [`compare`], where transactions may be inside others.
fn compare_nested<S: Storage>(script: &[Step]) -> Result<(), TestCaseError> {
    play_on(Pair::<S>::new(nesting(settings())), script)
}

fn play_on<S: Storage>(mut pair: Pair<S>, script: &[Step]) -> Result<(), TestCaseError> {
    for (at, step) in script.iter().enumerate() {
        pair.step(step)
            .map_err(|why| TestCaseError::fail(format!("step {at}, {step:?}: {why}")))?;
    }
    Ok(())
}

#[test]
fn hostile_bytes_get_one_reply_for_each_request_and_harm_nothing() {
    let attacks = prop::collection::vec(attack(), 1..40);
    run(400, &attacks, |attacks| {
        Siege::new().play(attacks).map_err(TestCaseError::fail)
    });
}

/// Runs a property with fixed seeds, or with others if that is wanted.
fn run<S: Strategy>(cases: u32, strategy: &S, test: impl Fn(S::Value) -> Result<(), TestCaseError>)
where
    S::Value: core::fmt::Debug,
{
    let mut config = Config {
        failure_persistence: None,
        max_shrink_iters: 4000,
        ..Config::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    let mut runner = if std::env::var_os("XENSTORE_WILD").is_some() {
        TestRunner::new(config)
    } else {
        TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
    };
    match runner.run(strategy, test) {
        Ok(()) => {}
        Err(TestError::Fail(why, input)) => panic!("{why}\nminimal input: {input:#?}"),
        Err(TestError::Abort(why)) => panic!("aborted: {why}"),
    }
}

/// A request, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Request {
    Directory(String),
    Part(String),
    Read(String),
    GetPerms(String),
    Write(String, Vec<u8>),
    Mkdir(String),
    Rm(String),
    SetPerms(String, Vec<(char, u16)>),
    Watch(String, String, Option<u32>),
    Unwatch(String, String),
    Start,
    End(bool),
    Reset,
    Introduce(u16),
    Release(u16),
    Resume(u16),
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// A request, perhaps in one of the client's transactions.
    Request(u16, Option<usize>, Request),
    /// A transaction begins and gets a place.
    Start(u16, usize),
    /// One begins inside that at another place.
    Inside(u16, usize, usize),
    ShutDown(u16),
    /// A guest dies; one with the same domid comes and is set up.
    Reborn(u16),
    /// A guest is released and set up again.
    Released(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        24 => (client(), place(), request()).prop_map(|(who, tx, what)| Step::Request(who, tx, what)),
        4 => (client(), 0..2_usize).prop_map(|(who, tx)| Step::Start(who, tx)),
        4 => (client(), 0..2_usize, prop::bool::weighted(0.8))
            .prop_map(|(who, tx, commit)| Step::Request(who, Some(tx), Request::End(commit))),
        1 => select(&GUESTS).prop_map(Step::ShutDown),
        1 => select(&GUESTS).prop_map(Step::Reborn),
        1 => select(&GUESTS).prop_map(Step::Released),
    ]
}

/// Few nodes, and clients that always have their transactions open.
fn transactions() -> impl Strategy<Value = Vec<Step>> {
    let places = || select(vec![(TOOLSTACK, 0), (TOOLSTACK, 1), (1, 0), (1, 1)]);
    let outside = select(vec![TOOLSTACK, TOOLSTACK, 1]);
    let request = || database(&["/t", "/t/a", "/t/b", "/t/a/b"]);
    let step = prop_oneof![
        10 => (places(), request())
            .prop_map(|((who, tx), what)| vec![Step::Request(who, Some(tx), what)]),
        4 => (outside, request()).prop_map(|(who, what)| vec![Step::Request(who, None, what)]),
        4 => (places(), prop::bool::weighted(0.9)).prop_map(|((who, tx), commit)| {
            vec![Step::Request(who, Some(tx), Request::End(commit)), Step::Start(who, tx)]
        }),
        1 => Just(vec![Step::Reborn(2)]),
    ];
    let begin = [(TOOLSTACK, 0), (TOOLSTACK, 1), (1, 0), (1, 1)];
    let begin = begin.map(|(who, tx)| Step::Start(who, tx)).to_vec();
    let mine = [(TOOLSTACK, "/t/a"), (1, "/t/b")];
    let nodes =
        mine.map(|(who, path)| Step::Request(who, None, Request::Write(path.to_owned(), vec![])));
    prop::collection::vec(step, 1..40)
        .prop_map(move |steps| [nodes.to_vec(), begin.clone(), steps.concat()].concat())
}

/// Few nodes, and clients that begin transactions inside others.
fn nested() -> impl Strategy<Value = Vec<Step>> {
    let who = || select(vec![TOOLSTACK, 1]);
    let request = || database(&["/t", "/t/a", "/t/b", "/t/a/b"]);
    let step = prop_oneof![
        12 => (who(), 0..PLACES, request())
            .prop_map(|(who, tx, what)| Step::Request(who, Some(tx), what)),
        2 => (who(), request()).prop_map(|(who, what)| Step::Request(who, None, what)),
        4 => (who(), 0..PLACES, 0..PLACES).prop_map(|(who, outer, at)| Step::Inside(who, outer, at)),
        2 => (who(), 0..PLACES).prop_map(|(who, at)| Step::Start(who, at)),
        5 => (who(), 0..PLACES, prop::bool::weighted(0.8))
            .prop_map(|(who, tx, commit)| Step::Request(who, Some(tx), Request::End(commit))),
        1 => Just(Step::Reborn(2)),
    ];
    let begin = [TOOLSTACK, 1].map(|who| [Step::Start(who, 0), Step::Inside(who, 0, 1)]);
    let mine = [(TOOLSTACK, "/t/a"), (1, "/t/b")];
    let nodes =
        mine.map(|(who, path)| Step::Request(who, None, Request::Write(path.to_owned(), vec![])));
    let watches = [(TOOLSTACK, "/"), (1, "/t"), (1, "/t/a/b")].map(|(who, path)| {
        let watch = Request::Watch(path.to_owned(), "t".to_owned(), None);
        Step::Request(who, None, watch)
    });
    prop::collection::vec(step, 1..50)
        .prop_map(move |steps| [nodes.to_vec(), watches.to_vec(), begin.concat(), steps].concat())
}

fn client() -> impl Strategy<Value = u16> {
    select(vec![TOOLSTACK, 1, 2, 3])
}

fn place() -> impl Strategy<Value = Option<usize>> {
    prop::option::weighted(0.4, 0..2_usize)
}

const PATHS: [&str; 14] = [
    "/t",
    "/t/a",
    "/t/b",
    "/t/a/b",
    "/t/a/b/c",
    "/t/b/d",
    "a",
    "a/b",
    "b",
    "/local/domain/1",
    "/local/domain/1/a",
    "/local/domain/2/a",
    "/nope/a",
    "/",
];

fn request() -> impl Strategy<Value = Request> {
    let special = || select(vec!["@introduceDomain", "@releaseDomain", "@x"]);
    let watched = prop_oneof![
        6 => select(&PATHS[..]),
        1 => special(),
        1 => select(vec!["@releaseDomain/1", "@introduceDomain/2"]),
    ];
    let unwatched = prop_oneof![6 => select(&PATHS[..]), 1 => special()];
    let token = || select(vec!["", "t", "u"]).prop_map(str::to_owned);
    let depth = prop::option::weighted(0.3, 0..3_u32);
    prop_oneof![
        30 => database(&PATHS),
        1 => special().prop_map(|path| Request::GetPerms(path.to_owned())),
        1 => (special(), entries()).prop_map(|(path, mut entries)| {
            entries[0].1 = TOOLSTACK;
            Request::SetPerms(path.to_owned(), entries)
        }),
        8 => (watched, token(), depth)
            .prop_map(|(path, token, depth)| Request::Watch(path.to_owned(), token, depth)),
        2 => (unwatched, token())
            .prop_map(|(path, token)| Request::Unwatch(path.to_owned(), token)),
        1 => Just(Request::Reset),
        1 => Just(Request::Start),
        1 => select(&GUESTS).prop_map(Request::Introduce),
        1 => select(&GUESTS).prop_map(Request::Resume),
    ]
}

fn database(paths: &'static [&'static str]) -> impl Strategy<Value = Request> {
    let path = || select(paths).prop_map(str::to_owned);
    let value = select(vec!["", "x", "y"]).prop_map(|value| value.as_bytes().to_vec());
    prop_oneof![
        3 => path().prop_map(Request::Directory),
        1 => path().prop_map(Request::Part),
        4 => path().prop_map(Request::Read),
        2 => path().prop_map(Request::GetPerms),
        6 => (path(), value).prop_map(|(path, value)| Request::Write(path, value)),
        2 => path().prop_map(Request::Mkdir),
        3 => path().prop_map(Request::Rm),
        3 => (path(), entries()).prop_map(|(path, mut entries)| {
            // The root stays the toolstack's: it cannot go with its owner.
            if path == "/" {
                entries[0].1 = TOOLSTACK;
            }
            Request::SetPerms(path, entries)
        }),
    ]
}

/// Permissions, also for a domain that never exists.
fn entries() -> impl Strategy<Value = Vec<(char, u16)>> {
    let letter = select(vec!['n', 'r', 'w', 'b']);
    let domid = select(vec![TOOLSTACK, 1, 1, 2, 3, NOBODY, ANY]);
    prop::collection::vec((letter, domid), 1..5)
}

/// The store and the model, side by side.
struct Pair<S: Storage> {
    machine: Machine<S>,
    model: Model,
    /// What the domains are known by.
    uniques: [u128; 4],
    /// The ids of the clients' transactions, by place.
    places: [[u32; PLACES]; 4],
    requests: u32,
}

fn settings() -> Settings {
    let mut settings = Settings::new(DomId::new(TOOLSTACK), DomId::new(31));
    for (name, limit) in QUOTAS.iter().zip(LIMITS) {
        let quota = Quota::from_name(name.as_bytes()).unwrap();
        settings.quotas.set(quota, limit);
    }
    settings.counter_interval = Duration::ZERO;
    settings
}

/// Lets transactions be inside others, as many as there are places for.
fn nesting(mut settings: Settings) -> Settings {
    settings.features = settings.features.with(Features::NESTED_TRANSACTIONS);
    let places = u32::try_from(PLACES).unwrap();
    settings.quotas.set(Quota::Transactions, places - 1);
    settings.quotas.set(Quota::TransactionNodes, 4);
    settings
}

impl<S: Storage> Pair<S> {
    fn new(settings: Settings) -> Self {
        let limits: Vec<u32> = Quota::all()
            .map(|quota| settings.quotas.get(quota))
            .collect();
        let as_modelled = model::Settings {
            privileged: TOOLSTACK,
            store: 31,
            limits: limits.try_into().unwrap(),
            features: settings.features.bits(),
            grantable: settings.grantable.bits(),
            event_timeout_ns: 0,
        };
        let machine = Machine::new(settings);
        let mut pair = Self {
            model: Model::new(as_modelled, 0),
            machine,
            uniques: [0; 4],
            places: [[77; PLACES]; 4],
            requests: 0,
        };
        pair.must(Request::Mkdir("/t".to_owned()));
        pair.must(Request::SetPerms("/t".to_owned(), vec![('b', TOOLSTACK)]));
        for domid in GUESTS {
            pair.set_up(domid);
        }
        pair
    }

    fn must(&mut self, request: Request) {
        let step = Step::Request(TOOLSTACK, None, request);
        self.step(&step)
            .unwrap_or_else(|why| panic!("{step:?}: {why}"));
    }

    fn set_up(&mut self, domid: u16) {
        let home = format!("/local/domain/{domid}");
        self.uniques[usize::from(domid)] = self.machine.create(domid, true);
        self.must(Request::Introduce(domid));
        self.must(Request::Mkdir(home.clone()));
        self.must(Request::SetPerms(home, vec![('n', domid)]));
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Request(who, tx, request) => {
                let tx = tx.map_or(0, |at| self.places[usize::from(*who)][at]);
                self.request(*who, tx, request)?;
            }
            Step::Start(who, at) => self.start(*who, 0, *at)?,
            Step::Inside(who, outer, at) => {
                let outer = self.places[usize::from(*who)][*outer];
                self.start(*who, outer, *at)?;
            }
            Step::ShutDown(domid) => {
                let unique = self.uniques[usize::from(*domid)];
                self.machine.shut_down(&[*domid]);
                self.model.fates(&[(*domid, unique, Fate::ShutDown)], true);
                self.compare()?;
            }
            Step::Reborn(domid) => {
                let unique = self.uniques[usize::from(*domid)];
                self.machine.die(&[*domid]);
                self.model.fates(&[(*domid, unique, Fate::Died)], true);
                self.compare()?;
                self.set_up(*domid);
            }
            Step::Released(domid) => {
                self.request(TOOLSTACK, 0, &Request::Release(*domid))?;
                self.set_up(*domid);
            }
        }
        self.audit()
    }

    fn start(&mut self, who: u16, outer: u32, at: usize) -> Result<(), String> {
        self.request(who, outer, &Request::Start)?;
        if let Some(id) = self.model.transactions(who).max() {
            self.places[usize::from(who)][at] = id;
        }
        Ok(())
    }

    fn request(&mut self, who: u16, tx: u32, request: &Request) -> Result<(), String> {
        let (kind, payload) = encode(request);
        self.requests += 1;
        let message = Message {
            kind,
            req_id: self.requests,
            tx_id: tx,
            payload,
        };
        self.machine.send(who, &message.encode());
        for _ in 0..HOLDS_MAX {
            if self.machine.takes_bytes(who) {
                break;
            }
            self.machine.pass(HOLD_MS);
        }
        self.model.identified(Some(who), NOBODY, None);
        let served = model::Request {
            kind,
            req_id: message.req_id,
            tx_id: tx,
            payload: &message.payload,
        };
        match request {
            // Whether it may be asked for, the model judges in the other case.
            Request::Introduce(domid) if who == TOOLSTACK && self.knows(tx) => {
                self.model.waits(who, &served, *domid);
                let unique = self.uniques[usize::from(*domid)];
                self.model.introduced_as(Some(who), *domid, Ok(unique));
            }
            _ => self.model.served(who, &served, None),
        }
        self.compare()
    }

    fn knows(&self, tx: u32) -> bool {
        tx == 0 || self.model.transactions(TOOLSTACK).any(|id| id == tx)
    }

    /// Compares what every domain received with what the model says: these messages, and no others.
    fn compare(&mut self) -> Result<(), String> {
        self.model.check()?;
        self.model.check_clients()?;
        for domid in [TOOLSTACK, 1, 2, 3] {
            for message in messages(self.machine.receive(domid))? {
                let bytes = message.encode();
                let told = self.model.sent(domid, &bytes, bytes.len());
                told.map_err(|why| format!("d{domid} {}: {why}", message.show()))?;
            }
            if self.model.waiting(domid) > 0 {
                return Err(format!("d{domid} got not all that it should"));
            }
        }
        Ok(())
    }

    /// The store must find itself in order, and count each domain's nodes as the model does.
    fn audit(&mut self) -> Result<(), String> {
        let check = self.control("check\0")?;
        if check != "OK\0" {
            return Err(format!("CONTROL check says {check:?}"));
        }
        for domid in GUESTS {
            let Some(expected) = self.model.nodes_of(domid) else {
                continue;
            };
            let text = self.control(&format!("quota\0{domid}\0"))?;
            let line = text.lines().find(|line| line.starts_with("nodes"));
            let count = line.and_then(|line| line.split_whitespace().nth(2));
            let expected = expected.to_string();
            if count != Some(expected.as_str()) {
                return Err(format!("domain {domid} owns {expected} nodes, but {text}"));
            }
        }
        Ok(())
    }

    fn control(&mut self, command: &str) -> Result<String, String> {
        let message = Message {
            kind: 0,
            req_id: 0,
            tx_id: 0,
            payload: command.as_bytes().to_vec(),
        };
        self.machine.send(TOOLSTACK, &message.encode());
        let came = messages(self.machine.receive(TOOLSTACK))?;
        match came.as_slice() {
            [message] => Ok(String::from_utf8_lossy(&message.payload).into_owned()),
            _ => Err(format!("{command:?} was answered with {came:?}")),
        }
    }
}

fn messages(mut bytes: Vec<u8>) -> Result<Vec<Message>, String> {
    let mut all = Vec::new();
    while let Some(message) = Message::take_from(&mut bytes)? {
        all.push(message);
    }
    if bytes.is_empty() {
        Ok(all)
    } else {
        Err(format!("{} bytes are no message", bytes.len()))
    }
}

fn encode(request: &Request) -> (u32, Vec<u8>) {
    let (name, strings): (_, Vec<String>) = match request {
        Request::Directory(path) => ("DIRECTORY", vec![path.clone()]),
        Request::Part(path) => ("DIRECTORY_PART", vec![path.clone(), "0".to_owned()]),
        Request::Read(path) => ("READ", vec![path.clone()]),
        Request::GetPerms(path) => ("GET_PERMS", vec![path.clone()]),
        Request::Write(path, _) => ("WRITE", vec![path.clone()]),
        Request::Mkdir(path) => ("MKDIR", vec![path.clone()]),
        Request::Rm(path) => ("RM", vec![path.clone()]),
        Request::SetPerms(path, entries) => {
            let entries = entries
                .iter()
                .map(|(letter, domid)| format!("{letter}{domid}"));
            (
                "SET_PERMS",
                [path.clone()].into_iter().chain(entries).collect(),
            )
        }
        Request::Watch(path, token, depth) => {
            let depth = depth.map(|depth| depth.to_string());
            (
                "WATCH",
                [path.clone(), token.clone()]
                    .into_iter()
                    .chain(depth)
                    .collect(),
            )
        }
        Request::Unwatch(path, token) => ("UNWATCH", vec![path.clone(), token.clone()]),
        Request::Start => ("TRANSACTION_START", vec![String::new()]),
        Request::End(commit) => {
            let word = if *commit { "T" } else { "F" };
            ("TRANSACTION_END", vec![word.to_owned()])
        }
        Request::Reset => ("RESET_WATCHES", Vec::new()),
        Request::Introduce(domid) => (
            "INTRODUCE",
            vec![domid.to_string(), "1".to_owned(), "7".to_owned()],
        ),
        Request::Release(domid) => ("RELEASE", vec![domid.to_string()]),
        Request::Resume(domid) => ("RESUME", vec![domid.to_string()]),
    };
    let mut payload: Vec<u8> = strings
        .into_iter()
        .flat_map(|text| format!("{text}\0").into_bytes())
        .collect();
    if let Request::Write(_, value) = request {
        payload.extend(value);
    }
    (message::kind(name).unwrap(), payload)
}

/// What a hostile guest does.
#[derive(Clone, Debug)]
enum Attack {
    /// Any bytes at all.
    Noise(u16, Vec<u8>),
    /// A request with any payload of fragments that mean something somewhere.
    Request(u16, u32, u32, Vec<u8>, usize),
    /// A length that no payload has.
    Oversize(u16, u32),
    Reconnect(u16),
    BreakRing(u16),
    Reborn(u16),
    Silent(u16),
    Listening(u16),
    Wait(u64),
}

fn attack() -> impl Strategy<Value = Attack> {
    let guest = || select(vec![1_u16, 2]);
    let fragment = select(&FRAGMENTS[..]);
    let long = (select(vec![b'a', b'/', 0_u8, b'1', 0xff]), 0..4097_usize)
        .prop_map(|(byte, count)| vec![byte; count]);
    let payload = prop_oneof![
        12 => prop::collection::vec(fragment, 0..6).prop_map(|pieces| pieces.concat()),
        1 => long,
        2 => prop::collection::vec(any::<u8>(), 0..60),
    ];
    let kind = prop_oneof![12 => 0..28_u32, 1 => any::<u32>()];
    prop_oneof![
        1 => (guest(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(who, bytes)| Attack::Noise(who, bytes)),
        40 => (guest(), kind, prop_oneof![6 => Just(0_u32), 2 => 1..4_u32, 1 => any::<u32>()], payload, 1..30_usize)
            .prop_map(|(who, kind, tx, payload, chunk)| Attack::Request(who, kind, tx, payload, chunk)),
        1 => (guest(), 4097..=u32::MAX).prop_map(|(who, len)| Attack::Oversize(who, len)),
        3 => guest().prop_map(Attack::Reconnect),
        1 => guest().prop_map(Attack::BreakRing),
        1 => guest().prop_map(Attack::Reborn),
        2 => guest().prop_map(Attack::Silent),
        4 => guest().prop_map(Attack::Listening),
        1 => (0..30_000_u64).prop_map(Attack::Wait),
    ]
}

/// A request of an [`Attack`], as bytes.
fn encoded(kind: u32, req_id: u32, tx_id: u32, payload: &[u8]) -> Vec<u8> {
    let payload = payload.to_vec();
    let message = Message {
        kind,
        req_id,
        tx_id,
        payload,
    };
    message.encode()
}

/// Few pieces even of a long request.
fn pieces(bytes: &[u8], chunk: usize) -> std::slice::Chunks<'_, u8> {
    bytes.chunks(chunk.max(bytes.len() / 20))
}

/// A store under attack, and what each guest has a right to.
struct Siege {
    machine: Machine,
    /// Bytes sent and not yet known to be whole requests.
    sent: [Vec<u8>; 3],
    /// Headers of whole requests that have no reply yet.
    awaited: [Vec<Message>; 3],
    stopped: [bool; 3],
    requests: u32,
}

impl Siege {
    fn new() -> Self {
        let settings = Settings::new(DomId::new(TOOLSTACK), DomId::new(31));
        let mut siege = Self {
            machine: Machine::new(settings),
            sent: Default::default(),
            awaited: Default::default(),
            stopped: [false; 3],
            requests: 0,
        };
        siege.toolstack(11, b"/t/a\0x");
        siege.toolstack(14, b"/t\0b0\0");
        siege.introduce(1);
        siege.introduce(2);
        siege
    }

    fn play(mut self, attacks: Vec<Attack>) -> Result<(), String> {
        for attack in attacks {
            self.attack(&attack);
            self.collect()?;
            if self.toolstack(0, b"check\0") != b"OK\0" {
                return Err(format!("not in order after {attack:?}"));
            }
        }
        for domid in [1, 2] {
            self.machine.set_reading(domid, true);
        }
        // Each drained guest may let another one's requests run.
        for _ in 0..4 {
            self.collect()?;
        }
        match self.awaited.iter().flatten().next() {
            Some(request) => Err(format!("no reply to {request:?}")),
            None => Ok(()),
        }
    }

    fn attack(&mut self, attack: &Attack) {
        match attack {
            Attack::Noise(domid, bytes) => self.send(*domid, bytes),
            Attack::Request(domid, kind, tx_id, payload, chunk) => {
                self.requests += 1;
                let bytes = encoded(*kind, self.requests, *tx_id, payload);
                pieces(&bytes, *chunk).for_each(|piece| self.send(*domid, piece));
            }
            Attack::Oversize(domid, len) => self.send(*domid, &Message::header(11, 1, 0, *len)),
            Attack::Reconnect(domid) => {
                self.machine.receive(*domid);
                self.machine.reconnect(*domid);
                self.forget(*domid);
            }
            Attack::BreakRing(domid) => {
                self.machine.break_ring(*domid);
                self.stopped[usize::from(*domid)] = true;
            }
            Attack::Reborn(domid) => {
                self.machine.die(&[*domid]);
                self.introduce(*domid);
            }
            Attack::Silent(domid) => self.machine.set_reading(*domid, false),
            Attack::Listening(domid) => self.machine.set_reading(*domid, true),
            Attack::Wait(milliseconds) => self.machine.pass(*milliseconds),
        }
    }

    fn introduce(&mut self, domid: u16) {
        self.machine.create(domid, true);
        self.forget(domid);
        self.toolstack(8, format!("{domid}\x001\x007\0").as_bytes());
        self.toolstack(12, format!("/local/domain/{domid}\0").as_bytes());
        self.toolstack(14, format!("/local/domain/{domid}\0n{domid}\0").as_bytes());
    }

    fn forget(&mut self, domid: u16) {
        let at = usize::from(domid);
        self.sent[at].clear();
        self.awaited[at].clear();
        self.stopped[at] = false;
    }

    /// Sends bytes, and notes the requests that they complete.
    fn send(&mut self, domid: u16, bytes: &[u8]) {
        let at = usize::from(domid);
        self.machine.send(domid, bytes);
        self.machine.pump();
        self.sent[at].extend_from_slice(bytes);
        while !self.stopped[at] {
            match Message::take_from(&mut self.sent[at]) {
                Ok(Some(message)) => self.awaited[at].push(message),
                Ok(None) => return,
                Err(_) => self.stopped[at] = true,
            }
        }
    }

    /// Each reply must be the one to the oldest request without one. What was not answered when a guest was stopped never will be.
    fn collect(&mut self) -> Result<(), String> {
        for domid in [1, 2] {
            let at = usize::from(domid);
            for message in messages(self.machine.receive(domid))? {
                if message.kind == WATCH_EVENT && (message.req_id, message.tx_id) == (0, 0) {
                    continue;
                }
                if self.awaited[at].is_empty() {
                    return Err(format!("a reply to nothing: {message:?}"));
                }
                let request = self.awaited[at].remove(0);
                let same = (message.req_id, message.tx_id) == (request.req_id, request.tx_id);
                if !same || (message.kind != request.kind && message.kind != ERROR) {
                    return Err(format!("{request:?} was answered with {message:?}"));
                }
            }
            if self.machine.is_stopped(domid) {
                if !self.stopped[at] {
                    return Err(format!("domain {domid} was stopped for nothing"));
                }
                self.awaited[at].clear();
            }
        }
        Ok(())
    }

    fn toolstack(&mut self, kind: u32, payload: &[u8]) -> Vec<u8> {
        let message = Message {
            kind,
            req_id: 0,
            tx_id: 0,
            payload: payload.to_vec(),
        };
        self.machine.send(TOOLSTACK, &message.encode());
        self.machine.receive(TOOLSTACK).split_off(16)
    }
}
