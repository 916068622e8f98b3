//! The store panics within a request: whose it was pays, and nobody else notices. What panics is the log, where a line has a certain word.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that goes wrong here should stop at once"
)]

use core::sync::atomic::{AtomicBool, Ordering};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use xenstore::state::{Format, HostLink, Restored, Sink};
use xenstore::wire::{HEADER_SIZE, Header, Kind};
use xenstore::{
    Action, AnyStorage, Blamed, ConnId, Crash, DomId, Errno, Identity, Instant, Outcome, Reads,
    Refused, ReqId, Server, Settings, UniqueId, Updater,
};

/// Where one of these stands in a line of the log, the log panics, if it is the way of the request that the line speaks of.
const POISON: [&str; 2] = ["poison", "ERROR (ENOENT"];
static IS_REPLY: AtomicBool = AtomicBool::new(false);
/// The tests share the log.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Poisoned;

impl log::Log for Poisoned {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = record.args().to_string();
        let way = if IS_REPLY.load(Ordering::Relaxed) {
            "io: OUT"
        } else {
            "io: IN"
        };
        if line.starts_with(way) && POISON.iter().any(|word| line.contains(word)) {
            panic!("the log is poisoned");
        }
    }

    fn flush(&self) {}
}

const NOBODY: fn(ConnId) -> HostLink = |_| HostLink::default();

fn settings() -> Settings {
    Settings::new(DomId::new(0), DomId::new(31))
}

/// A toolstack, two guests and a socket; all requests are logged.
struct Scene {
    server: Server,
    toolstack: ConnId,
    guests: [ConnId; 2],
    socket: ConnId,
}

impl Scene {
    fn new() -> Self {
        let _ = log::set_logger(&Poisoned);
        log::set_max_level(log::LevelFilter::Info);
        let mut server = Server::new(settings());
        let mut open = |number: u16| {
            server.open_domain(Identity {
                domid: DomId::new(number),
                unique: UniqueId(number.into()),
            })
        };
        let (toolstack, guests) = (open(0), [open(1), open(2)]);
        let socket = server.open_socket();
        let mut scene = Self {
            server,
            toolstack,
            guests,
            socket,
        };
        scene.ask(toolstack, Kind::Control, 0, b"log\0on\0");
        scene
    }

    fn send(&mut self, conn: ConnId, kind: Kind, tx_id: u32, payload: &[u8]) {
        let header = Header {
            kind: kind.number(),
            req_id: ReqId(7),
            tx_id,
            len: u32::try_from(payload.len()).unwrap(),
        };
        let bytes = [&header.encode()[..], payload].concat();
        assert_eq!(self.server.handle_bytes(conn, &bytes), Ok(bytes.len()));
    }

    /// The payload of the next message, if there is one.
    fn receive(&mut self, conn: ConnId) -> Option<String> {
        let message = self.server.poll_message(conn).concat();
        self.server.consume_output(conn, message.len());
        let payload = message.get(HEADER_SIZE..)?;
        Some(String::from_utf8_lossy(payload).into_owned())
    }

    fn ask(&mut self, conn: ConnId, kind: Kind, tx_id: u32, payload: &[u8]) -> String {
        self.send(conn, kind, tx_id, payload);
        self.server.run(Instant(0), 1000);
        self.receive(conn).unwrap()
    }

    /// What was sent makes the store panic; it is started anew.
    fn crash(&mut self) -> Restored {
        self.crash_in(|server| {
            server.run(Instant(0), 1000);
        })
    }

    fn crash_in(&mut self, work: impl FnOnce(&mut Server)) -> Restored {
        let server = &mut self.server;
        let crashed = catch_unwind(AssertUnwindSafe(|| work(server)));
        assert!(crashed.is_err());
        let mut stream = Vec::new();
        let server = &self.server;
        server.export_after_crash(Instant(0), &NOBODY, None, &mut stream);
        let mut restored = Server::import(&stream, settings(), Instant(0)).unwrap();
        let fresh = Server::new(settings());
        self.server = core::mem::replace(&mut restored.server, fresh);
        restored
    }
}

#[test]
fn t_panic_a_guest_whose_request_panics_is_stopped_and_nobody_else() {
    let _one = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(|lock| lock.into_inner());
    let mut scene = Scene::new();
    let [culprit, other] = scene.guests;
    scene.ask(culprit, Kind::Watch, 0, b"@releaseDomain\0t\0");
    scene.receive(culprit);
    scene.ask(other, Kind::TransactionStart, 0, b"\0");
    scene.send(culprit, Kind::Read, 0, b"/poison\0");
    scene.send(other, Kind::Read, 1, b"/tool\0");
    let Restored { crash, links, .. } = scene.crash();
    let blamed = Blamed {
        conn: culprit,
        domid: DomId::new(1),
        request: Some(Kind::Read.number()),
        is_kept: false,
    };
    let blamed = Some(blamed);
    assert_eq!(crash, Some(Crash { blamed }));
    let stopped = links.iter().filter(|link| link.is_stopped);
    let stopped: Vec<_> = stopped.map(|link| link.conn).collect();
    assert_eq!((stopped, links.len()), (vec![culprit], 4));
    assert!(!scene.server.takes_bytes(culprit));
    scene.server.run(Instant(0), 1000);
    assert_eq!(scene.receive(other).as_deref(), Some("EACCES\0"));
    assert_eq!(scene.ask(other, Kind::TransactionEnd, 1, b"T\0"), "OK\0");
    let toolstack = scene.toolstack;
    let counted = scene.ask(toolstack, Kind::Control, 0, b"counters\x001\0");
    assert!(counted.contains("crashes: 1\n"), "{counted}");
    let counted = scene.ask(toolstack, Kind::Control, 0, b"quota\x001\0");
    assert!(counted.contains("watches          :        0"), "{counted}");
    assert_eq!(scene.ask(toolstack, Kind::Control, 0, b"check\0"), "OK\0");
}

#[test]
fn t_panic_07_a_guest_may_begin_anew_once_and_not_after_another_crash() {
    let _one = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(|lock| lock.into_inner());
    let mut scene = Scene::new();
    let [culprit, _] = scene.guests;
    for is_first in [true, false] {
        scene.send(culprit, Kind::Read, 0, b"/poison\0");
        scene.crash();
        assert_eq!(scene.server.may_reset(culprit), is_first);
        scene.server.reset(culprit);
        assert_eq!(scene.server.takes_bytes(culprit), is_first);
    }
    let mut stream = Vec::new();
    let server = &scene.server;
    server.export(Format::Own, Instant(0), &NOBODY, &mut stream);
    let restored = Server::<AnyStorage>::import(&stream, settings(), Instant(0)).unwrap();
    assert!(!restored.server.may_reset(culprit));
    let introduced = Identity {
        domid: DomId::new(1),
        unique: UniqueId(1),
    };
    let anew = scene.server.open_domain(introduced);
    assert!(scene.server.takes_bytes(anew));
    assert!(scene.server.may_reset(anew));
}

#[test]
fn t_panic_a_request_of_the_toolstack_that_panics_gets_eio_and_its_ring_goes_on() {
    let _one = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(|lock| lock.into_inner());
    let mut scene = Scene::new();
    let toolstack = scene.toolstack;
    let begin = |scene: &mut Scene| scene.ask(toolstack, Kind::TransactionStart, 0, b"\0");
    let end = |scene: &mut Scene, id| scene.ask(toolstack, Kind::TransactionEnd, id, b"T\0");
    begin(&mut scene);
    for (is_reply, broken) in [(false, 2), (true, 3)] {
        let path: &[u8] = if is_reply { b"/p\0" } else { b"/poison\0" };
        IS_REPLY.store(is_reply, Ordering::Relaxed);
        if is_reply {
            scene.ask(toolstack, Kind::Write, 0, b"/p\0poison");
        }
        begin(&mut scene);
        scene.send(toolstack, Kind::Read, broken, path);
        let Restored { crash, links, .. } = scene.crash();
        IS_REPLY.store(false, Ordering::Relaxed);
        let blamed = crash.unwrap().blamed.unwrap();
        assert_eq!((blamed.conn, blamed.is_kept), (toolstack, true));
        assert!(links.iter().all(|link| !link.is_stopped));
        assert_eq!(scene.receive(toolstack).as_deref(), Some("EIO\0"));
        assert_eq!(scene.receive(toolstack), None);
        assert_eq!(end(&mut scene, broken), "EAGAIN\0");
    }
    assert_eq!(end(&mut scene, 1), "OK\0");
}

#[test]
fn t_panic_a_socket_whose_request_panics_is_closed() {
    let _one = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(|lock| lock.into_inner());
    let mut scene = Scene::new();
    let socket = scene.socket;
    scene.server.set_updater(Box::new(Ready));
    scene.ask(socket, Kind::Control, 0, b"live-update\0-b\x001\0");
    scene.ask(socket, Kind::Control, 0, b"live-update\0-d\x001\0x\0");
    scene.send(socket, Kind::Control, 0, b"live-update\0-s\0");
    scene.server.run(Instant(0), 1000);
    scene.send(socket, Kind::Read, 0, b"/poison\0");
    let Restored { crash, links, .. } = scene.crash();
    let blamed = crash.unwrap().blamed.unwrap();
    assert_eq!(blamed.conn.number(), socket.number());
    assert!(
        links
            .iter()
            .all(|link| link.conn != socket && !link.is_stopped)
    );
}

/// A host that would make any update.
struct Ready;

impl Updater for Ready {
    fn begin(&mut self, _: u64) -> Result<(), Refused> {
        Ok(())
    }

    fn append(&mut self, _: &[u8]) -> Result<(), Refused> {
        Ok(())
    }

    fn check(&mut self) -> Result<Reads, Refused> {
        Ok(Reads {
            version: 2,
            is_own: true,
            name: String::new(),
        })
    }

    fn room(&self) -> u64 {
        u64::MAX
    }

    fn drop_image(&mut self) {}
}

#[test]
fn t_panic_an_introduction_that_panics_gets_eio() {
    let _one = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(|lock| lock.into_inner());
    let mut scene = Scene::new();
    let toolstack = scene.toolstack;
    scene.send(toolstack, Kind::Introduce, 0, b"7\x001\x007\0");
    scene.server.run(Instant(0), 1000);
    let Some(Action::Connect { ticket, .. }) = scene.server.poll_action() else {
        panic!("the host is not asked");
    };
    // The reply is logged.
    IS_REPLY.store(true, Ordering::Relaxed);
    let outcome = Outcome::Refused(Errno::ENOENT);
    scene.crash_in(|server| server.handle_completed(ticket, outcome));
    IS_REPLY.store(false, Ordering::Relaxed);
    assert_eq!(scene.receive(toolstack).as_deref(), Some("EIO\0"));
    assert_eq!(scene.ask(toolstack, Kind::Read, 0, b"/tool\0"), "");
}

#[test]
fn a_host_can_say_better_whose_work_it_was() {
    let _one = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(|lock| lock.into_inner());
    let scene = Scene::new();
    for at_work in [None, Some(scene.guests[1])] {
        let mut stream = Vec::new();
        let server = &scene.server;
        server.export_after_crash(Instant(0), &NOBODY, at_work, &mut stream);
        let restored = Server::<AnyStorage>::import(&stream, settings(), Instant(0)).unwrap();
        let crash = restored.crash.unwrap();
        assert_eq!(crash.blamed.map(|blamed| blamed.conn), at_work);
        let told = crash.blamed.map(|blamed| blamed.to_string());
        assert_eq!(told.as_deref(), at_work.map(|_| "working for domain 2"));
        let stopped = restored.links.iter().filter(|link| link.is_stopped);
        assert_eq!(stopped.count(), usize::from(at_work.is_some()));
    }
}

#[test]
fn a_report_is_two_nodes_and_counts_on() {
    let _one = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(|lock| lock.into_inner());
    let mut scene = Scene::new();
    let toolstack = scene.toolstack;
    for count in ["1", "2"] {
        let text = format!("panic at {count}\x07{}", "x".repeat(5000));
        scene.server.report_crash(Instant(5), &text);
        let mut read = |name: &str| {
            let path = format!("/tool/xenstored/crash/{name}\0");
            scene.ask(toolstack, Kind::Read, 0, path.as_bytes())
        };
        assert_eq!(read("count"), count);
        let last = read("last");
        assert!(last.starts_with(&format!("panic at {count}xx")), "{last}");
        assert!(last.len() <= 1024);
        let mut stream = Vec::new();
        let server = &scene.server;
        server.export(Format::Own, Instant(0), &NOBODY, &mut stream);
        let restored = Server::import(&stream, settings(), Instant(0)).unwrap();
        scene.server = restored.server;
    }
}

#[test]
fn a_report_is_shorter_where_only_the_reserve_is_left() {
    let _one = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(|lock| lock.into_inner());
    let mut scene = Scene::new();
    let toolstack = scene.toolstack;
    scene
        .server
        .handle_memory(Instant(5), 1000, 8 << 20, u64::MAX);
    assert!(scene.server.is_at_reserve());
    let text = format!("panic{}", "x".repeat(5000));
    scene.server.report_crash(Instant(5), &text);
    let mut read = |path: &[u8]| scene.ask(toolstack, Kind::Read, 0, path);
    assert_eq!(read(b"/tool/xenstored/crash/count\0"), "1");
    let last = read(b"/tool/xenstored/crash/last\0");
    assert!(text.starts_with(&last) && last.len() == 256, "{last}");
}

/// A sink that has room for so many bytes.
struct Small(Vec<u8>, u64);

impl Sink for Small {
    fn put(&mut self, bytes: &[u8]) {
        self.0.put(bytes);
    }

    fn room(&self) -> u64 {
        self.1
    }
}

#[test]
fn where_there_is_no_room_for_transactions_they_cannot_be_merged() {
    let _one = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(|lock| lock.into_inner());
    let mut scene = Scene::new();
    let toolstack = scene.toolstack;
    scene.ask(toolstack, Kind::TransactionStart, 0, b"\0");
    let payload = [b"/a\0", &[b'x'; 3000][..]].concat();
    scene.ask(toolstack, Kind::Write, 1, &payload);
    let write = |room| {
        let mut small = Small(Vec::new(), room);
        let server = &scene.server;
        server.export_after_crash(Instant(0), &NOBODY, None, &mut small);
        small.0
    };
    let whole = write(u64::MAX);
    let size = u64::try_from(whole.len()).unwrap();
    assert_eq!(write(size), whole);
    let left = write(size - 1);
    assert!(left.len() < whole.len() - 6000);
    let restored = Server::import(&left, settings(), Instant(0)).unwrap();
    scene.server = restored.server;
    let end = scene.ask(toolstack, Kind::TransactionEnd, 1, b"T\0");
    assert_eq!(end, "EAGAIN\0");
}
