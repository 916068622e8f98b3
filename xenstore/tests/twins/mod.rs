//! A store that is exported and imported again and again, beside one that is not: nobody can tell them apart.
use core::cell::Cell;
use std::collections::BTreeMap;

use crate::machine::Machine;
use crate::message::Message;
use crate::{
    Attack, GUESTS, PLACES, Request, Step, TOOLSTACK, attack, encode, encoded, nested, pieces, run,
    step, transactions,
};
use proptest::prelude::*;
use xenstore::state::{Format, HostLink, Records, Size};
use xenstore::{
    AnyStorage, ConnId, DomId, Features, FlatMap, Instant, Journaled, Quota, Server, Settings,
    Storage, StorageKind, Tree,
};

/// Between two things that a host does another instance may take over each so often.
const EVERY: u32 = 7;

#[test]
fn t_lu_01_and_07_nobody_can_tell_that_another_instance_took_over() {
    let scripts = prop::collection::vec(step(), 1..60);
    run(12, &scripts, |script| play::<AnyStorage>(&script));
    run(12, &transactions(), |script| play::<AnyStorage>(&script));
}

#[test]
fn t_lu_01_nobody_can_tell_over_a_flat_map() {
    let scripts = prop::collection::vec(step(), 1..40);
    run(6, &scripts, |script| play::<FlatMap>(&script));
    run(6, &transactions(), |script| play::<FlatMap>(&script));
}

#[test]
fn t_lu_01_nobody_can_tell_with_transactions_inside_others() {
    run(30, &nested(), |script| play::<AnyStorage>(&script));
    run(6, &nested(), |script| play::<FlatMap>(&script));
    run(12, &nested(), |script| play::<Journaled<Tree>>(&script));
}

#[test]
fn t_lu_01_nobody_can_tell_that_nodes_are_kept_otherwise() {
    run(12, &nested(), |script| {
        let twins = Twins::<AnyStorage>::of(exchange);
        // A journal, and memory for it in transactions, has one of them only.
        let commands = &COMMANDS[..3];
        play_on(Twins { commands, ..twins }, &script)
    });
}

#[test]
fn t_lu_01_nobody_can_tell_under_attack() {
    let attacks = prop::collection::vec(attack(), 1..40);
    run(20, &attacks, |attacks| siege::<AnyStorage>(&attacks));
}

/// Small limits; transactions may be inside others.
fn settings() -> Settings {
    let mut settings = Settings::new(DomId::new(TOOLSTACK), DomId::new(31));
    settings.features = settings.features.with(Features::NESTED_TRANSACTIONS);
    let limits = [
        (Quota::Nodes, 6),
        (Quota::Watches, 4),
        (Quota::Transactions, 3),
        (Quota::NodePermissions, 3),
    ];
    for (quota, limit) in limits {
        settings.quotas.set(quota, limit);
    }
    settings
}

/// Two machines to which the same happens; in one of them the store is replaced all the time.
struct Twins<S: Storage> {
    plain: Machine<S>,
    replaced: Machine<S>,
    /// The ids of the clients' transactions, by place.
    places: [[u32; PLACES]; 4],
    requests: u32,
    /// What the toolstack can find out about the stores themselves.
    commands: &'static [&'static str],
}

const COMMANDS: [&str; 8] = [
    "check",
    "counters",
    "counters\x001",
    "quota\0max",
    "quota\x001",
    "memreport",
    "journal",
    "journal\0read\x000",
];

impl<S: Storage> Twins<S> {
    fn new() -> Self {
        Self::of(|machine| {
            if due().is_some() {
                replace(machine, settings(), is_any);
            }
        })
    }

    /// `replacing` replaces the store of one of them, if it is time to.
    fn of(replacing: fn(&mut Machine<S>)) -> Self {
        let mut replaced = Machine::new(settings());
        replaced.between = Some(replacing);
        let mut twins = Self {
            plain: Machine::new(settings()),
            replaced,
            places: [[77; PLACES]; 4],
            requests: 0,
            commands: &COMMANDS,
        };
        twins
            .ask(TOOLSTACK, 0, &Request::Mkdir("/t".to_owned()))
            .unwrap();
        let open = vec![('b', TOOLSTACK)];
        twins
            .ask(TOOLSTACK, 0, &Request::SetPerms("/t".to_owned(), open))
            .unwrap();
        for domid in GUESTS {
            twins.set_up(domid).unwrap();
        }
        twins
    }

    fn both(&mut self, what: impl Fn(&mut Machine<S>)) {
        what(&mut self.plain);
        what(&mut self.replaced);
    }

    fn set_up(&mut self, domid: u16) -> Result<(), String> {
        self.both(|machine| {
            machine.create(domid, true);
        });
        let home = format!("/local/domain/{domid}");
        self.ask(TOOLSTACK, 0, &Request::Introduce(domid))?;
        self.ask(TOOLSTACK, 0, &Request::Mkdir(home.clone()))?;
        self.ask(TOOLSTACK, 0, &Request::SetPerms(home, vec![('n', domid)]))?;
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        self.both(|machine| machine.pass(7));
        match step {
            Step::Request(who, tx, request) => {
                let tx = tx.map_or(0, |at| self.places[usize::from(*who)][at]);
                self.ask(*who, tx, request)?;
            }
            Step::Start(who, at) => self.start(*who, 0, *at)?,
            Step::Inside(who, outer, at) => {
                let outer = self.places[usize::from(*who)][*outer];
                self.start(*who, outer, *at)?;
            }
            Step::ShutDown(domid) => self.both(|machine| machine.shut_down(&[*domid])),
            Step::Reborn(domid) => {
                self.both(|machine| machine.die(&[*domid]));
                self.set_up(*domid)?;
            }
            Step::Released(domid) => {
                self.ask(TOOLSTACK, 0, &Request::Release(*domid))?;
                self.set_up(*domid)?;
            }
        }
        if self.requests.is_multiple_of(8) {
            self.audit()?;
        }
        Ok(())
    }

    fn start(&mut self, who: u16, outer: u32, at: usize) -> Result<(), String> {
        let bytes = self.ask(who, outer, &Request::Start)?;
        let text = String::from_utf8_lossy(bytes.get(16..).unwrap_or_default());
        if let Ok(id) = text.trim_end_matches('\0').parse() {
            self.places[usize::from(who)][at] = id;
        }
        Ok(())
    }

    /// Sends a request, and compares all that comes of it; gives what its client got.
    fn ask(&mut self, who: u16, tx: u32, request: &Request) -> Result<Vec<u8>, String> {
        let (kind, payload) = encode(request);
        self.send(who, kind, tx, payload);
        let mut got = self.compare()?;
        Ok(got.remove(&who).unwrap_or_default())
    }

    fn send(&mut self, who: u16, kind: u32, tx_id: u32, payload: Vec<u8>) {
        self.requests += 1;
        let bytes = encoded(kind, self.requests, tx_id, &payload);
        self.both(|machine| {
            machine.send(who, &bytes);
        });
    }

    fn compare(&mut self) -> Result<BTreeMap<u16, Vec<u8>>, String> {
        let mut all = BTreeMap::new();
        for domid in [TOOLSTACK, 1, 2, 3] {
            let (plain, replaced) = (self.plain.receive(domid), self.replaced.receive(domid));
            if plain != replaced {
                let (plain, replaced) = (plain.escape_ascii(), replaced.escape_ascii());
                return Err(format!("d{domid} got\n{replaced}\nand should get\n{plain}"));
            }
            all.insert(domid, plain);
        }
        Ok(all)
    }

    fn audit(&mut self) -> Result<(), String> {
        for command in self.commands {
            self.send(TOOLSTACK, 0, 0, format!("{command}\0").into_bytes());
            self.compare()
                .map_err(|why| format!("{}: {why}", command.escape_default()))?;
        }
        Ok(())
    }
}

fn play<S: Storage>(script: &[Step]) -> Result<(), TestCaseError> {
    play_on(Twins::<S>::new(), script)
}

fn play_on<S: Storage>(mut twins: Twins<S>, script: &[Step]) -> Result<(), TestCaseError> {
    for (at, step) in script.iter().enumerate() {
        twins
            .step(step)
            .map_err(|why| TestCaseError::fail(format!("step {at}, {step:?}: {why}")))?;
    }
    Ok(())
}

fn siege<S: Storage>(attacks: &[Attack]) -> Result<(), TestCaseError> {
    let mut twins = Twins::<S>::new();
    for (at, attack) in attacks.iter().enumerate() {
        twins
            .attack(attack)
            .map_err(|why| TestCaseError::fail(format!("attack {at}, {attack:?}: {why}")))?;
    }
    twins.both(|machine| {
        GUESTS
            .into_iter()
            .for_each(|domid| machine.set_reading(domid, true))
    });
    for _ in 0..4 {
        twins.compare().map_err(TestCaseError::fail)?;
    }
    Ok(())
}

impl<S: Storage> Twins<S> {
    fn attack(&mut self, attack: &Attack) -> Result<(), String> {
        match attack {
            Attack::Noise(domid, bytes) => self.both(|machine| {
                machine.send(*domid, bytes);
            }),
            Attack::Request(domid, kind, tx_id, payload, chunk) => {
                self.requests += 1;
                let bytes = encoded(*kind, self.requests, *tx_id, payload);
                for piece in pieces(&bytes, *chunk) {
                    self.both(|machine| {
                        machine.send(*domid, piece);
                        machine.pump();
                    });
                }
            }
            Attack::Oversize(domid, len) => self.both(|machine| {
                machine.send(*domid, &Message::header(11, 1, 0, *len));
            }),
            Attack::Reconnect(domid) => {
                self.compare()?;
                self.both(|machine| machine.reconnect(*domid));
            }
            Attack::BreakRing(domid) => self.both(|machine| machine.break_ring(*domid)),
            Attack::Reborn(domid) => {
                self.compare()?;
                self.both(|machine| machine.die(&[*domid]));
                self.set_up(*domid)?;
            }
            Attack::Silent(domid) => self.both(|machine| machine.set_reading(*domid, false)),
            Attack::Listening(domid) => self.both(|machine| machine.set_reading(*domid, true)),
            Attack::Wait(milliseconds) => self.both(|machine| machine.pass(*milliseconds)),
        }
        self.compare()?;
        if self.requests.is_multiple_of(8) {
            self.audit()?;
        }
        Ok(())
    }
}

/// Whether another instance is to take over now, and how many there were.
fn due() -> Option<usize> {
    thread_local! { static COUNT: Cell<u32> = const { Cell::new(0) }; }
    let count = COUNT.get();
    COUNT.set(count.wrapping_add(1));
    let is_due = count.is_multiple_of(EVERY);
    is_due.then(|| usize::try_from(count / EVERY).unwrap())
}

/// Now and then an instance takes over that keeps nodes in another way, with a journal or without.
fn exchange(machine: &mut Machine<AnyStorage>) {
    const WORDS: [&[u8]; 5] = [
        b"flat",
        b"journal",
        b"journal:flat",
        b"journal:flat",
        b"tree",
    ];
    if let Some(count) = due() {
        let storage = StorageKind::parse(WORDS[count % WORDS.len()]).unwrap();
        let settings = Settings {
            storage,
            ..settings()
        };
        let is_of_all = |line: &str| {
            let others = ["own Journal ", "own Noted ", "own Check "];
            !others.iter().any(|other| line.starts_with(other))
        };
        replace(machine, settings, is_of_all);
    }
}

fn is_any(_: &str) -> bool {
    true
}

/// Another instance takes over: what it writes then is what the first one wrote, as far as is to be compared.
fn replace<S: Storage>(
    machine: &mut Machine<S>,
    settings: Settings,
    is_compared: fn(&str) -> bool,
) {
    is_foreseen(&mut machine.server);
    let stream = export(&machine.server, machine);
    let restored = Server::<S>::import(&stream, settings, machine.now).unwrap();
    assert!(restored.is_own && restored.skipped.is_empty());
    let conns: BTreeMap<u64, ConnId> = restored
        .links
        .iter()
        .map(|link| (link.conn.number(), link.conn))
        .collect();
    machine.server = restored.server;
    machine.ready = machine
        .ready
        .iter()
        .filter_map(|conn| conns.get(&conn.number()).copied())
        .collect();
    for link in machine.links.values_mut() {
        if let Some(conn) = conns.get(&link.conn.number()) {
            link.conn = *conn;
        }
    }
    is_foreseen(&mut machine.server);
    let again = export(&machine.server, machine);
    if stream != again {
        let compared = |stream| {
            let mut lines = lines(stream);
            lines.retain(|line| is_compared(line));
            lines
        };
        let (before, after) = (compared(&stream), compared(&again));
        let differ = before
            .iter()
            .zip(&after)
            .find(|(before, after)| before != after);
        assert!(
            before == after,
            "the second stream differs from the first: {differ:#?}"
        );
    }
}

/// The stream is not longer than the server says without looking at everything, and not so much shorter that its word were of no use.
fn is_foreseen<S: Storage>(server: &mut Server<S>) {
    let mut size = Size::default();
    let nothing = |_: ConnId| HostLink::default();
    server.export(Format::Own, Instant(0), &nothing, &mut size);
    let (Size(size), estimate) = (size, server.stream_estimate());
    assert!(size <= estimate, "{size} bytes, {estimate} are foreseen");
    let most = size * 8 + FORESEEN_MORE;
    assert!(estimate <= most, "{size} bytes, {estimate} are foreseen");
}

/// Bytes more than are needed that may be foreseen for a few domains.
const FORESEEN_MORE: u64 = 96 * 1024;

fn export<S: Storage>(server: &Server<S>, machine: &Machine<S>) -> Vec<u8> {
    let mut stream = Vec::new();
    let links = |conn: ConnId| HostLink {
        port: Some(5),
        fd: None,
        facts: conn.number().to_le_bytes().to_vec(),
    };
    let left_out = server.export(Format::Own, machine.now, &links, &mut stream);
    assert_eq!(left_out, []);
    stream
}

/// A stream as a person reads it, a line for each record, without what tells where they are.
fn lines(stream: &[u8]) -> Vec<String> {
    let records = Records::new(stream).unwrap();
    records.map(|record| record.unwrap().to_string()).collect()
}
