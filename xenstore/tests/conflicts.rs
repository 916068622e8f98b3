//! A guest that changes nodes at full speed, and clients whose transactions suffer from it (hostility.md T-TX-20).
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that goes wrong here should stop at once"
)]

#[expect(dead_code, reason = "other tests need more of it")]
mod machine;
#[expect(dead_code, reason = "other tests need more of it")]
#[path = "transcript/message.rs"]
mod message;
mod request;

use std::collections::BTreeMap;

use machine::Machine;
use message::{ERROR, Message};
use request::request;
use xenstore::{AnyStorage, DomId, Settings};

/// The toolstack, and the guest that writes.
const TOOLSTACK: u16 = 0;
const WRITER: u16 = 1;
/// The guest's home, where all may read.
const HOME: &str = "/local/domain/1";
/// How fast the toolstack is: from one of its requests to the next, and so often the guest writes meanwhile.
const PACE_MS: u64 = 1;
const WRITES_A_STEP: u64 = 20;

/// A machine with clients that count what they got.
struct Scene {
    machine: Machine<AnyStorage>,
    now_ms: u64,
    written: u64,
    /// Replies that came, by domain.
    replies: BTreeMap<u16, u64>,
    held_back: u64,
}

/// How a transaction went that was tried until it succeeded.
#[derive(Debug)]
struct Outcome {
    attempts: u64,
    took_ms: u64,
}

#[test]
fn xsa_206_the_toolstack_commits_soon_whatever_a_guest_writes_into_what_it_reads() {
    let mut scene = Scene::new();
    for _ in 0..20 {
        let outcome = scene.transact(&format!("{HOME}/x"));
        assert!(outcome.attempts <= 10, "{outcome:?}");
        assert!(outcome.took_ms <= 1000, "{outcome:?}");
    }
    let text = scene.counters();
    for counter in ["conflicts-caused", "held-conflict-credit", "held-ms"] {
        assert!(text.contains(counter), "{counter}: {text}");
    }
    scene.expect_progress();
}

#[test]
fn what_a_guest_writes_elsewhere_makes_no_conflict() {
    let mut scene = Scene::new();
    for _ in 0..20 {
        let outcome = scene.transact("/t/x");
        assert_eq!(outcome.attempts, 1);
    }
    let text = scene.counters();
    assert!(!text.contains("conflicts"), "{text}");
    scene.expect_progress();
}

#[test]
fn a_guest_that_writes_while_others_have_transactions_open_is_slowed_down_and_goes_on() {
    let mut scene = Scene::new();
    let open = scene
        .request(TOOLSTACK, "TRANSACTION_START", 0, "\0")
        .unwrap();
    let tx = number(&open);
    let before = scene.written_and_answered();
    for _ in 0..1000 {
        scene.write();
        scene.pass();
    }
    let answered = scene.written_and_answered() - before;
    assert!((1900..=2100).contains(&answered), "{answered} in a second");
    assert!(scene.counters().contains("held-write-credit: "));
    scene
        .request(TOOLSTACK, "TRANSACTION_END", tx, "F\0")
        .unwrap();
    for _ in 0..20 {
        scene.write();
        scene.pass();
    }
    let before = scene.written_and_answered();
    for _ in 0..100 {
        scene.write();
        scene.pass();
    }
    assert_eq!(scene.written_and_answered() - before, 100 * WRITES_A_STEP);
}

#[test]
fn a_guests_own_transaction_costs_it_no_credit() {
    let mut scene = Scene::new();
    scene.request(WRITER, "TRANSACTION_START", 0, "\0").unwrap();
    for _ in 0..100 {
        scene.write();
        scene.pass();
    }
    assert_eq!(scene.written_and_answered(), 1 + 100 * WRITES_A_STEP);
    let counters = scene.counters();
    assert!(!counters.contains("held"), "{counters}");
}

#[test]
fn a_held_guest_that_begins_anew_or_ends_leaves_nothing_behind() {
    let mut scene = Scene::new();
    scene.until_held();
    scene.machine.reconnect(WRITER);
    let replies = scene.written_and_answered();
    scene.held_back = 0;
    scene.write();
    assert_eq!(scene.written_and_answered(), replies, "still held");
    scene.now_ms += 50;
    scene.machine.pass(50);
    scene.collect();
    assert_eq!(scene.written_and_answered(), replies + WRITES_A_STEP);
    scene.until_held();
    scene.machine.die(&[WRITER]);
    scene.machine.pass(1000);
    assert!(scene.request(TOOLSTACK, "CONTROL", 0, "check\0").is_ok());
}

impl Scene {
    fn new() -> Self {
        let settings = Settings::new(DomId::new(TOOLSTACK), DomId::new(31));
        let mut scene = Self {
            machine: Machine::new(settings),
            now_ms: 0,
            written: 0,
            replies: BTreeMap::new(),
            held_back: 0,
        };
        scene.machine.create(WRITER, true);
        let must = |scene: &mut Self, kind, payload: &str| {
            scene.request(TOOLSTACK, kind, 0, payload).unwrap();
        };
        must(&mut scene, "INTRODUCE", "1\x001\x007\0");
        must(&mut scene, "MKDIR", &format!("{HOME}\0"));
        must(&mut scene, "SET_PERMS", &format!("{HOME}\0r1\0"));
        must(&mut scene, "WRITE", "/t/x\x001");
        scene
    }

    /// Tries {start, read `path`, write, commit} until it succeeds, while the guest writes.
    fn transact(&mut self, path: &str) -> Outcome {
        let began_ms = self.now_ms;
        for attempts in 1..=100 {
            let open = self.slowly("TRANSACTION_START", 0, "\0").unwrap();
            let tx = number(&open);
            let _ = self.slowly("READ", tx, &format!("{path}\0"));
            self.slowly("WRITE", tx, &format!("/t/y\0{attempts}"))
                .unwrap();
            match self.slowly("TRANSACTION_END", tx, "T\0") {
                Ok(_) => {
                    let took_ms = self.now_ms - began_ms;
                    return Outcome { attempts, took_ms };
                }
                Err(errno) => assert_eq!(errno, "EAGAIN\0"),
            }
        }
        panic!("never committed");
    }

    /// A request of the toolstack, before which the guest writes, and after which time passes.
    fn slowly(&mut self, what: &str, tx: u32, payload: &str) -> Result<String, String> {
        self.write();
        let reply = self.request(TOOLSTACK, what, tx, payload);
        self.pass();
        reply
    }

    fn pass(&mut self) {
        self.now_ms += PACE_MS;
        self.machine.pass(PACE_MS);
        self.collect();
    }

    /// The guest writes as much as it can: another value each time, and nothing while too much of it is unanswered.
    fn write(&mut self) {
        for _ in 0..WRITES_A_STEP {
            if self.held_back >= WRITES_A_STEP {
                break;
            }
            self.written += 1;
            self.held_back += 1;
            self.post(WRITER, "WRITE", 0, &format!("{HOME}/x\0{}", self.written));
        }
        self.collect();
    }

    fn until_held(&mut self) {
        for _ in 0..100 {
            if self.held_back > 0 {
                return;
            }
            let open = self
                .request(TOOLSTACK, "TRANSACTION_START", 0, "\0")
                .unwrap();
            let tx = number(&open);
            let _ = self.request(TOOLSTACK, "READ", tx, &format!("{HOME}/x\0"));
            let _ = self.request(TOOLSTACK, "WRITE", tx, "/t/y\0x");
            self.write();
            let _ = self.request(TOOLSTACK, "TRANSACTION_END", tx, "T\0");
            self.write();
        }
        panic!("never held");
    }

    /// The guest is not stopped for long.
    fn expect_progress(&mut self) {
        let before = self.written_and_answered();
        for _ in 0..1000 {
            self.write();
            self.pass();
        }
        let answered = self.written_and_answered() - before;
        assert!(answered > 15_000, "{answered} in a second");
    }

    fn written_and_answered(&self) -> u64 {
        self.replies.get(&WRITER).copied().unwrap_or_default()
    }

    fn counters(&mut self) -> String {
        self.request(TOOLSTACK, "CONTROL", 0, "counters\x001\0")
            .unwrap()
    }

    fn request(&mut self, who: u16, what: &str, tx: u32, payload: &str) -> Result<String, String> {
        self.post(who, what, tx, payload);
        let reply = self.collect().remove(&who).unwrap();
        let text = String::from_utf8_lossy(&reply.payload).into_owned();
        if reply.kind == ERROR {
            Err(text)
        } else {
            Ok(text)
        }
    }

    fn post(&mut self, who: u16, what: &str, tx_id: u32, payload: &str) {
        assert!(self.machine.send(who, &request(what, tx_id, payload)));
    }

    /// Takes what came; gives the last message to each.
    fn collect(&mut self) -> BTreeMap<u16, Message> {
        let mut last = BTreeMap::new();
        for domid in [TOOLSTACK, WRITER] {
            let mut bytes = self.machine.receive(domid);
            while let Some(message) = Message::take_from(&mut bytes).unwrap() {
                *self.replies.entry(domid).or_default() += 1;
                if domid == WRITER {
                    self.held_back = self.held_back.saturating_sub(1);
                }
                last.insert(domid, message);
            }
            assert!(bytes.is_empty());
        }
        last
    }
}

fn number(reply: &str) -> u32 {
    reply.trim_end_matches('\0').parse().unwrap()
}
