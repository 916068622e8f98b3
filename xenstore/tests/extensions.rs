//! Policies and layers where a transcript cannot look: what a layer is told, what waits, and live updates (docs/policies.md).
#![expect(
    clippy::unwrap_used,
    reason = "a test that goes wrong here should stop at once"
)]

#[expect(dead_code, reason = "other tests need more of it")]
mod machine;
#[expect(dead_code, reason = "other tests need more of it")]
#[path = "transcript/message.rs"]
mod message;
mod request;

use std::cell::RefCell;
use std::rc::Rc;

use machine::Machine;
use message::Message;
use request::request;
use xenstore::layer::{self, Call, Done, Gate, Layer, View};
use xenstore::policy;
use xenstore::state::{Damage, Format, HostLink};
use xenstore::wire::Kind;
use xenstore::{AnyStorage, ConnId, DomId, Errno, Instant, Server, Settings};

const TOOLSTACK: u16 = 0;
const GUEST: u16 = 1;

fn settings() -> Settings {
    Settings::new(DomId::new(TOOLSTACK), DomId::new(31))
}

/// A store with a guest that owns its home.
fn machine(settings: Settings) -> Machine<AnyStorage> {
    let mut machine = Machine::new(settings);
    machine.create(GUEST, true);
    assert_eq!(machine.ask(TOOLSTACK, "INTRODUCE", "1\x001\x007\0"), "OK");
    assert_eq!(machine.ask(TOOLSTACK, "MKDIR", "/local/domain/1\0"), "OK");
    let owned = machine.ask(TOOLSTACK, "SET_PERMS", "/local/domain/1\0n1\0");
    assert_eq!(owned, "OK");
    machine
}

impl Machine<AnyStorage> {
    fn post(&mut self, who: u16, what: &str, payload: &str) {
        assert!(self.send(who, &request(what, 0, payload)));
    }

    /// Lets the store run a request, and nobody else do anything.
    fn hand(&mut self, who: u16, what: &str, payload: &str) {
        let conn = self.links.get(&who).unwrap().conn;
        let bytes = request(what, 0, payload);
        let taken = self.server.handle_bytes(conn, &bytes);
        assert_eq!(taken, Ok(bytes.len()));
        self.server.run(self.now, 100);
    }

    fn replies(&mut self, who: u16) -> Vec<String> {
        let mut bytes = self.receive(who);
        let messages = std::iter::from_fn(|| Message::take_from(&mut bytes).unwrap());
        let text = |message: Message| {
            let text = String::from_utf8(message.payload).unwrap();
            text.trim_end_matches('\0').to_owned()
        };
        messages.map(text).collect()
    }

    fn ask(&mut self, who: u16, what: &str, payload: &str) -> String {
        self.post(who, what, payload);
        self.replies(who).pop().unwrap_or_default()
    }

    /// Another instance takes over, set up so.
    fn renew(&mut self, settings: Settings) -> Result<(), Damage> {
        self.pump();
        let stream = self.state();
        let now = self.now;
        let restored =
            Server::<AnyStorage>::import(&stream, settings, now).map_err(|error| error.why)?;
        for link in &restored.links {
            let domid = link.domid.unwrap();
            self.links.get_mut(&domid.get()).unwrap().conn = link.conn;
        }
        let conns = restored.links.iter().map(|link| link.conn);
        self.ready = conns.collect();
        self.server = restored.server;
        Ok(())
    }

    fn state(&self) -> Vec<u8> {
        let mut stream = Vec::new();
        let links = |_: ConnId| HostLink {
            port: Some(5),
            fd: None,
            facts: Vec::new(),
        };
        let left_out = self
            .server
            .export(Format::Own, self.now, &links, &mut stream);
        assert_eq!(left_out, []);
        stream
    }
}

/// Writes down all that it is told, and does what it is asked to.
struct Scribe {
    name: &'static str,
    lines: Rc<RefCell<Vec<String>>>,
    gate: fn(&Call<'_>) -> Gate,
}

impl Layer for Scribe {
    fn name(&self) -> &'static str {
        self.name
    }

    fn admit(&mut self, call: &Call<'_>, store: &dyn View) -> Gate {
        if call.is_privileged() {
            return Gate::Pass;
        }
        assert!(store.value("/tool/xenstored").is_some());
        let again = if call.is_resumed() { " again" } else { "" };
        let path = String::from_utf8_lossy(call.path()).into_owned();
        let line = format!("{} admit {}{again}", self.name, path);
        self.lines.borrow_mut().push(line);
        (self.gate)(call)
    }

    fn complete(&mut self, call: &Call<'_>, done: &Done) {
        if !call.is_privileged() {
            let result = done.error.map_or("OK", Errno::name);
            self.lines
                .borrow_mut()
                .push(format!("{} complete {result}", self.name));
        }
    }

    fn domain_ended(&mut self, domid: DomId) {
        self.lines
            .borrow_mut()
            .push(format!("{} end of {domid}", self.name));
    }
}

/// A store with three layers, of which the middle one does this; and what they are told.
fn between(gate: fn(&Call<'_>) -> Gate) -> (Machine<AnyStorage>, Rc<RefCell<Vec<String>>>) {
    let mut machine = machine(settings());
    let lines = Rc::new(RefCell::new(Vec::new()));
    let passes: fn(&Call<'_>) -> Gate = |_| Gate::Pass;
    for (name, gate) in [("outer", passes), ("middle", gate), ("inner", passes)] {
        let lines = Rc::clone(&lines);
        machine
            .server
            .add_layer(Box::new(Scribe { name, lines, gate }));
    }
    (machine, lines)
}

#[test]
fn those_hear_that_let_a_request_pass_the_innermost_first() {
    let (mut machine, lines) = between(|_| Gate::Pass);
    assert_eq!(machine.ask(GUEST, "WRITE", "a\0x"), "OK");
    let all = [
        "outer admit a",
        "middle admit a",
        "inner admit a",
        "inner complete OK",
        "middle complete OK",
        "outer complete OK",
    ];
    assert_eq!(*lines.borrow(), all);
}

#[test]
fn what_a_layer_refuses_those_inside_never_see() {
    let (mut machine, lines) = between(|_| Gate::Refuse(Errno::EROFS));
    assert_eq!(machine.ask(GUEST, "WRITE", "a\0x"), "EROFS");
    let all = ["outer admit a", "middle admit a", "outer complete EROFS"];
    assert_eq!(*lines.borrow(), all);
    assert_eq!(
        machine.ask(TOOLSTACK, "READ", "/local/domain/1/a\0"),
        "ENOENT"
    );
}

#[test]
fn a_layer_can_answer_itself() {
    let (mut machine, lines) = between(|_| Gate::Answer(b"mine".to_vec()));
    assert_eq!(machine.ask(GUEST, "READ", "a\0"), "mine");
    let all = ["outer admit a", "middle admit a", "outer complete OK"];
    assert_eq!(*lines.borrow(), all);
}

#[test]
fn what_waits_is_taken_up_where_it_was_left_and_nothing_is_left_of_one_that_died() {
    fn later(call: &Call<'_>) -> Gate {
        if call.is_resumed() {
            Gate::Pass
        } else {
            Gate::Later(Instant(call.now().0 + 5_000_000))
        }
    }
    let (mut machine, lines) = between(later);
    machine.post(GUEST, "WRITE", "a\0x");
    assert_eq!(machine.replies(GUEST), [""; 0]);
    let due = Instant(machine.now.0 + 5_000_000);
    assert_eq!(machine.server.poll_timeout(), Some(due));
    machine.pass(5);
    assert_eq!(machine.replies(GUEST), ["OK"]);
    let all = [
        "outer admit a",
        "middle admit a",
        "middle admit a again",
        "inner admit a",
        "inner complete OK",
        "middle complete OK",
        "outer complete OK",
    ];
    assert_eq!(*lines.borrow(), all);
    lines.borrow_mut().clear();
    machine.post(GUEST, "WRITE", "b\0x");
    machine.pump();
    machine.die(&[GUEST]);
    machine.pump();
    assert_eq!(machine.server.poll_timeout(), None);
    let all = [
        "outer admit b",
        "middle admit b",
        "outer end of 1",
        "middle end of 1",
        "inner end of 1",
    ];
    assert_eq!(*lines.borrow(), all);
}

/// A request waits for the host when the last layer goes; the next one is asked by the layers that come.
#[test]
fn no_request_is_taken_for_one_that_was_asked_before() {
    let mut machine = machine(settings());
    let layers = |list: &str| format!("layer\0set\0{list}\0");
    assert_eq!(machine.ask(TOOLSTACK, "CONTROL", &layers("stats")), "OK");
    assert_eq!(machine.ask(TOOLSTACK, "MKDIR", "/t\0"), "OK");
    assert_eq!(machine.ask(TOOLSTACK, "SET_PERMS", "/t\0b0\0"), "OK");
    assert_eq!(machine.ask(GUEST, "WRITE", "/t/a\0x"), "OK");
    machine.hand(GUEST, "SET_PERMS", "/t/a\0n1\0r7\0");
    let conn = machine.links.get(&GUEST).unwrap().conn;
    assert!(!machine.server.takes_bytes(conn), "it waits for the host");
    machine.hand(TOOLSTACK, "CONTROL", "layer\0set\0");
    assert_eq!(machine.replies(GUEST), ["OK"]);
    assert_eq!(machine.replies(TOOLSTACK), ["OK"]);
    let fails = layers("error:EIO@100%");
    assert_eq!(machine.ask(TOOLSTACK, "CONTROL", &fails), "OK");
    assert_eq!(machine.ask(GUEST, "READ", "/t/a\0"), "EIO");
}

#[test]
fn a_live_update_loses_no_request_that_waits() {
    let mut settings = settings();
    let (layers, errors) = layer::Choice::parse(b"stats,delay:write=10ms,stats");
    assert_eq!(errors, []);
    settings.layers = layers;
    let mut machine = machine(settings);
    machine.post(GUEST, "WRITE", "a\0x");
    assert_eq!(machine.replies(GUEST), [""; 0]);
    machine.pass(6);
    machine.renew(self::settings()).unwrap();
    assert_eq!(machine.replies(GUEST), [""; 0]);
    machine.pass(9);
    assert_eq!(
        machine.replies(GUEST),
        [""; 0],
        "it waits from the beginning"
    );
    machine.pass(1);
    assert_eq!(machine.replies(GUEST), ["OK"]);
    let report = machine.ask(TOOLSTACK, "CONTROL", "layer\0");
    assert!(
        report.starts_with("0 stats\n") && report.contains("WRITE: 1 requests"),
        "{report}"
    );
}

#[test]
fn what_was_chosen_and_what_was_touched_survives_a_live_update() {
    let wall = "policy\0set\0legacy,chinese_wall:c=/t/a+/t/b\0";
    let mut machine = machine(settings());
    for path in ["/t/a", "/t/b"] {
        assert_eq!(machine.ask(TOOLSTACK, "WRITE", &format!("{path}\0x")), "OK");
        assert_eq!(
            machine.ask(TOOLSTACK, "SET_PERMS", &format!("{path}\0r0\0")),
            "OK"
        );
    }
    assert_eq!(machine.ask(TOOLSTACK, "CONTROL", wall), "OK");
    assert_eq!(machine.ask(GUEST, "READ", "/t/a\0"), "x");
    for _ in 0..2 {
        let mut other = settings();
        other.policies = policy::Choice::parse(b"legacy,protocol").unwrap();
        machine.renew(other).unwrap();
        assert_eq!(machine.ask(GUEST, "READ", "/t/b\0"), "EACCES");
        assert_eq!(machine.ask(GUEST, "READ", "/t/a\0"), "x");
        assert_eq!(machine.ask(GUEST, "WRITE", "device/vif/0/state\0x"), "OK");
    }
}

#[test]
fn a_policy_that_is_not_known_stops_a_live_update() {
    let mut machine = machine(settings());
    let node = "/tool/xenstored/policy\0legacy,lattice";
    assert_eq!(machine.ask(TOOLSTACK, "WRITE", node), "OK");
    assert_eq!(machine.renew(settings()), Err(Damage::Policy));
    assert_eq!(machine.ask(GUEST, "WRITE", "a\0x"), "OK");
}

#[test]
fn lists_that_are_in_force_survive_a_live_update_whatever_became_of_their_nodes() {
    let state = "device/vif/0/state\0".to_owned() + "1";
    let mut machine = machine(settings());
    let set = "policy\0set\0legacy,protocol\0";
    assert_eq!(machine.ask(TOOLSTACK, "CONTROL", set), "OK");
    assert_eq!(
        machine.ask(TOOLSTACK, "CONTROL", "layer\0add\0trace\0"),
        "OK"
    );
    assert_eq!(machine.ask(TOOLSTACK, "RM", "/tool\0"), "OK");
    machine.renew(settings()).unwrap();
    assert_eq!(machine.ask(GUEST, "WRITE", &state), "EACCES");
    assert!(
        machine
            .ask(TOOLSTACK, "CONTROL", "layer\0list\0")
            .contains("trace")
    );
    // Nor does the command line of the next image bring back what the administrator took away.
    let set = "policy\0set\0legacy\0";
    assert_eq!(machine.ask(TOOLSTACK, "CONTROL", set), "OK");
    let mut other = settings();
    other.policies = policy::Choice::parse(b"legacy,protocol").unwrap();
    machine.renew(other).unwrap();
    assert_eq!(machine.ask(GUEST, "WRITE", &state), "OK");
}

#[test]
fn with_nothing_chosen_nothing_is_kept() {
    let mut machine = machine(settings());
    let names = machine.ask(TOOLSTACK, "DIRECTORY", "/tool/xenstored\0");
    assert_eq!(names, "");
    let settings = {
        let mut settings = settings();
        settings.policies = policy::Choice::parse(b"legacy,protocol").unwrap();
        settings.layers = layer::Choice::parse(b"trace").0;
        settings
    };
    let mut machine = self::machine(settings);
    let names = machine.ask(TOOLSTACK, "DIRECTORY", "/tool/xenstored\0");
    assert_eq!(names, "policy\0layer");
    assert_eq!(Kind::ALL.len(), 27);
}
