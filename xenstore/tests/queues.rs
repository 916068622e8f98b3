//! What waits for a client that does not read, and what is left of connections that were never made.
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

use machine::Machine;
use message::{ERROR, Message};
use request::request;
use xenstore::{AnyStorage, DomId, Instant, Settings};

const TOOLSTACK: u16 = 0;
const GUEST: u16 = 1;
/// Far more events than may wait for a guest.
const CHANGES: usize = 3000;
/// Far more requests than replies may wait for anyone.
const REQUESTS: usize = 3000;

fn machine() -> Machine<AnyStorage> {
    let mut machine = Machine::new(Settings::new(DomId::new(TOOLSTACK), DomId::new(31)));
    machine.create(GUEST, true);
    assert!(machine.request("INTRODUCE", "1\x001\x007\0"));
    machine
}

impl Machine<AnyStorage> {
    /// A request of the toolstack; whether it was granted.
    fn request(&mut self, what: &str, payload: &str) -> bool {
        self.post(TOOLSTACK, what, payload);
        let replies = self.messages(TOOLSTACK);
        replies.last().unwrap().kind != ERROR
    }

    fn post(&mut self, who: u16, what: &str, payload: &str) {
        assert!(self.send(who, &request(what, 0, payload)));
    }

    fn messages(&mut self, who: u16) -> Vec<Message> {
        let mut bytes = self.receive(who);
        std::iter::from_fn(|| Message::take_from(&mut bytes).unwrap()).collect()
    }
}

#[test]
fn watches_whose_events_had_no_room_are_told_once_more_when_the_client_reads() {
    let mut machine = machine();
    assert!(machine.request("MKDIR", "/t\0"));
    assert!(machine.request("SET_PERMS", "/t\0r0\0"));
    machine.post(GUEST, "WATCH", "/t\0first\0");
    machine.post(GUEST, "WATCH", "/t\0second\0");
    assert_eq!(machine.messages(GUEST).len(), 4);
    machine.set_reading(GUEST, false);
    for number in 0..CHANGES {
        assert!(machine.request("WRITE", &format!("/t/{number}\0")));
    }
    machine.set_reading(GUEST, true);
    let events = machine.messages(GUEST);
    assert!(events.len() < CHANGES, "{}", events.len());
    let payload = |at: usize| String::from_utf8(events[at].payload.clone()).unwrap();
    assert_eq!(payload(0), "/t/0\0first\0");
    assert_eq!(payload(1), "/t/0\0second\0");
    let mut last = [payload(events.len() - 2), payload(events.len() - 1)];
    last.sort();
    assert_eq!(last, ["/t\0first\0", "/t\0second\0"]);
    assert!(machine.messages(GUEST).is_empty());
}

#[test]
fn a_request_that_waited_for_room_for_its_reply_runs_when_the_client_reads() {
    let mut machine = machine();
    let server = &mut machine.server;
    let conn = server.open_socket();
    let request = request("READ", 0, "/nope\0");
    let mut sent = 0;
    // The last one is taken and has to wait.
    while server.takes_bytes(conn) {
        assert_eq!(server.handle_bytes(conn, &request).unwrap(), request.len());
        server.run(Instant(0), 10);
        sent += 1;
        assert!(sent <= REQUESTS);
    }
    let mut read = Vec::new();
    for _ in 0..2 {
        while !server.poll_output(conn).is_empty() {
            read.extend_from_slice(server.poll_output(conn));
            server.consume_output(conn, server.poll_output(conn).len());
        }
        server.run(Instant(0), 10);
    }
    let replies = std::iter::from_fn(|| Message::take_from(&mut read).unwrap());
    assert_eq!(replies.count(), sent);
}

#[test]
fn connections_that_could_not_be_made_leave_nothing() {
    let mut machine = machine();
    machine.create(2, false);
    let place = machine.server.open_socket().place();
    for _ in 0..100 {
        assert!(!machine.request("INTRODUCE", "2\x001\x007\0"));
    }
    assert!(machine.server.open_socket().place() <= place + 2);
}
