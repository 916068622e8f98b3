//! Live update as the administrator's tool asks for it, with a host that only notes what it is told.
#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that goes wrong here should stop at once"
)]

use core::cell::RefCell;
use core::time::Duration;
use std::rc::Rc;

use xenstore::state::{Format, HostLink};
use xenstore::wire::{HEADER_SIZE, Kind};
use xenstore::{
    AnyStorage, ConnId, DomId, DomainEvent, Features, Identity, Instant, Reads, Refused, ReqId,
    Server, Settings, StorageKind, UniqueId, UpdatePlan, Updater, wire::Header,
};

/// What the host was told of the image, and what it says.
struct Images {
    bytes: Vec<u8>,
    dropped: u32,
    refuses: Option<&'static str>,
    reads: Reads,
    room: u64,
}

#[derive(Clone)]
struct Fake(Rc<RefCell<Images>>);

impl Updater for Fake {
    fn begin(&mut self, size: u64) -> Result<(), Refused> {
        if size > 1 << 20 {
            return Err(Refused("Allocation failure.".to_owned()));
        }
        self.0.borrow_mut().bytes.clear();
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        self.0.borrow_mut().bytes.extend(bytes);
        Ok(())
    }

    fn check(&mut self) -> Result<Reads, Refused> {
        let images = self.0.borrow();
        match images.refuses {
            Some(why) => Err(Refused(why.to_owned())),
            None => Ok(images.reads.clone()),
        }
    }

    fn room(&self) -> u64 {
        self.0.borrow().room
    }

    fn drop_image(&mut self) {
        self.0.borrow_mut().dropped += 1;
    }
}

/// A store with the toolstack's connection, a guest's and an administrator's on a socket.
struct Scene {
    server: Server,
    toolstack: ConnId,
    guest: ConnId,
    other: ConnId,
    images: Rc<RefCell<Images>>,
}

const NOBODY: fn(ConnId) -> HostLink = |_| HostLink::default();

fn settings() -> Settings {
    Settings::new(DomId::new(0), DomId::new(31))
}

impl Scene {
    fn new() -> Self {
        let images = Rc::new(RefCell::new(Images {
            bytes: Vec::new(),
            dropped: 0,
            refuses: None,
            reads: Reads {
                version: 2,
                is_own: true,
                name: "next".to_owned(),
            },
            room: u64::MAX,
        }));
        let mut server = Server::new(settings());
        let mut open = |number: u16| {
            server.open_domain(Identity {
                domid: DomId::new(number),
                unique: UniqueId(number.into()),
            })
        };
        let (toolstack, guest) = (open(0), open(1));
        let other = server.open_socket();
        server.set_updater(Box::new(Fake(Rc::clone(&images))));
        Self {
            server,
            toolstack,
            guest,
            other,
            images,
        }
    }

    fn control(&mut self, conn: ConnId, payload: &[u8]) -> Option<String> {
        send(&mut self.server, conn, Kind::Control, payload);
        receive(&mut self.server, conn)
    }

    /// One step of an update by the toolstack.
    fn step(&mut self, step: &[u8]) -> Option<String> {
        let payload = [b"live-update\0", step].concat();
        self.control(self.toolstack, &payload)
    }

    fn steps(&mut self, steps: &[(&[u8], &str)]) {
        for (step, answer) in steps {
            let heard = self.step(step);
            let step = step.escape_ascii();
            assert_eq!(heard.as_deref(), Some(*answer), "{step}");
        }
    }

    /// A whole image came.
    fn upload(&mut self) {
        self.steps(&[(b"-b\x003\0", "OK\0"), (b"-d\x003\0\0a\0\0", "OK\0")]);
    }

    fn poll(&mut self) -> Option<UpdatePlan> {
        self.server.poll_update(&NOBODY)
    }

    fn next_instance(&self, format: Format) -> Server {
        let mut stream = Vec::new();
        self.server.export(format, Instant(0), &NOBODY, &mut stream);
        let restored = Server::<AnyStorage>::import(&stream, settings(), Instant(0));
        restored.unwrap().server
    }
}

/// A store that keeps its nodes in this way, and in which transactions may be inside others.
fn kept(word: &str) -> Settings {
    let mut settings = settings();
    settings.features = settings.features.with(Features::NESTED_TRANSACTIONS);
    settings.storage = StorageKind::parse(word.as_bytes()).unwrap();
    settings
}

#[test]
fn a_journal_has_all_that_becomes_the_stores_after_it_began_and_nothing_before() {
    for before in ["tree", "flat", "journal"] {
        for after in ["journal", "journal:flat"] {
            let mut store = Store::kept(before);
            store.ask(0, Kind::Write, b"/before\0x");
            store.ask(0, Kind::TransactionStart, b"\0");
            store.ask(1, Kind::Write, b"/t/a\0x");
            store.ask(1, Kind::TransactionStart, b"\0");
            store.ask(2, Kind::Write, b"/t/b\0y");
            store.ask(2, Kind::Rm, b"/before\0");
            store.go_on(after);
            assert_eq!(store.ask(2, Kind::TransactionEnd, b"T\0"), "OK\0");
            assert_eq!(store.ask(1, Kind::TransactionEnd, b"T\0"), "OK\0");
            let journal = store.ask(0, Kind::Control, b"journal\0read\x000\0");
            let (first, after) = journal.trim_end_matches('\0').split_once('\n').unwrap();
            let last = after.lines().last().unwrap().split('.').next().unwrap();
            let commit = after.lines().filter(|line| line.starts_with(last));
            // Parents of what was changed before the journal began may be there, too.
            let parent = ["set / n0 ", "set /t n0 "];
            let mut lines: Vec<&str> = commit
                .map(|line| line.splitn(3, ' ').last().unwrap())
                .collect();
            assert_eq!((first, lines[0]), ("0", "set /t n0 "));
            lines.retain(|line| !parent.contains(line));
            lines.sort_unstable();
            assert_eq!(lines, ["rm /before", "set /t/a n0 x", "set /t/b n0 y"]);
            assert_eq!(last == "1", before != "journal");
        }
    }
}

#[test]
fn a_journal_ends_with_an_update_to_a_store_without_one_and_begins_anew() {
    let mut store = Store::kept("journal");
    store.ask(0, Kind::Write, b"/t\0x");
    store.go_on("flat");
    assert_eq!(store.ask(0, Kind::Control, b"journal\0"), "ENOENT\0");
    assert_eq!(store.ask(0, Kind::Read, b"/t\0"), "x");
    store.go_on("journal");
    let journal = store.ask(0, Kind::Control, b"journal\0read\x000\0");
    assert_eq!(journal, "0\n\0");
    store.ask(0, Kind::Rm, b"/t\0");
    let journal = store.ask(0, Kind::Control, b"journal\0read\x000\0");
    assert_eq!(journal, "0\n1.1/1 0 rm /t\n\0");
}

/// A store and its toolstack.
struct Store {
    server: Server,
    toolstack: ConnId,
}

impl Store {
    fn kept(word: &str) -> Self {
        let mut server = Server::new(kept(word));
        let toolstack = server.open_domain(Identity {
            domid: DomId::new(0),
            unique: UniqueId(0),
        });
        Self { server, toolstack }
    }

    fn ask(&mut self, tx_id: u32, kind: Kind, payload: &[u8]) -> String {
        send_in(&mut self.server, self.toolstack, tx_id, kind, payload);
        receive(&mut self.server, self.toolstack).unwrap()
    }

    /// Another instance takes over that keeps nodes in this way.
    fn go_on(&mut self, word: &str) {
        let mut stream = Vec::new();
        self.server
            .export(Format::Own, Instant(0), &NOBODY, &mut stream);
        let restored = Server::import(&stream, kept(word), Instant(0)).unwrap();
        self.toolstack = restored.links[0].conn;
        self.server = restored.server;
    }
}

fn send(server: &mut Server, conn: ConnId, kind: Kind, payload: &[u8]) {
    send_in(server, conn, 0, kind, payload);
}

fn send_in(server: &mut Server, conn: ConnId, tx_id: u32, kind: Kind, payload: &[u8]) {
    let header = Header {
        kind: kind.number(),
        req_id: ReqId(77),
        tx_id,
        len: u32::try_from(payload.len()).unwrap(),
    };
    let bytes = [&header.encode()[..], payload].concat();
    assert_eq!(server.handle_bytes(conn, &bytes), Ok(bytes.len()));
    server.run(Instant(0), 1000);
}

/// The payload of the next message, if there is one.
fn receive(server: &mut Server, conn: ConnId) -> Option<String> {
    let message = server.poll_message(conn).concat();
    server.consume_output(conn, message.len());
    let (header, payload) = message.split_first_chunk::<HEADER_SIZE>()?;
    assert_eq!(Header::decode(*header).req_id, ReqId(77));
    Some(String::from_utf8_lossy(payload).into_owned())
}

#[test]
fn without_an_updater_there_is_no_such_command() {
    let mut server = Server::new(settings());
    let conn = server.open_socket();
    for payload in [&b"live-update\0-a\0"[..], b"live-update\0"] {
        send(&mut server, conn, Kind::Control, payload);
        let answer = receive(&mut server, conn);
        assert_eq!(answer.as_deref(), Some("EINVAL\0"));
    }
}

#[test]
fn an_image_is_passed_on_as_it_comes_and_the_update_is_told_of_once() {
    let mut scene = Scene::new();
    scene.steps(&[
        (b"-b\x006\0", "OK\0"),
        (b"-d\x004\0\0-d\0\0", "OK\0"),
        (b"-d\x002\0\xffz\0", "OK\0"),
        (b"-c\0--memory 8 x=y\0", "OK\0"),
    ]);
    assert_eq!(scene.images.borrow().bytes, b"\0-d\0\xffz");
    assert_eq!(scene.step(b"-s\0-t\x0060\0-F\0-v\x002\0"), None);
    let plan = UpdatePlan {
        format: Format::Own,
        command_line: Some("--memory 8 x=y".to_owned()),
        is_forced: true,
        timeout: Duration::from_secs(60),
    };
    assert_eq!(scene.poll(), Some(plan));
    assert_eq!(scene.poll(), None);
}

#[test]
fn what_is_out_of_turn_or_malformed_is_refused() {
    let mut scene = Scene::new();
    let none = "Not in live-update session.\0";
    scene.steps(&[
        (b"-d\x001\0x\0", none),
        (b"-c\0x\0", none),
        (b"-s\0", none),
        (b"-a\0", "No live-update session active.\0"),
        (b"-b\x009999999\0", "Allocation failure.\0"),
        (b"-a\0", "No live-update session active.\0"),
        (b"-b\x003\0", "OK\0"),
        (b"-b\x003\0", "live-update session already active.\0"),
        (b"-d\x002\0xy\0", "OK\0"),
        (b"-s\0", "Kernel not complete.\0"),
        (b"-d\x002\0yz\0", "Too much kernel data.\0"),
        (b"-d\x001\0z\0", "OK\0"),
        (
            b"-s\0-v\x003\0",
            "Migration stream version not supported.\0",
        ),
    ]);
    for malformed in [
        &b""[..],
        b"-b",
        b"-b\0",
        b"-b\x000\0",
        b"-b\0x\0",
        b"-b\x001\x001\0",
        b"-d\0",
        b"-d\x001\0",
        b"-d\x001\0x",
        b"-d\x002\0x\0",
        b"-d\x000\0x\0",
        b"-d\x001\0x\0\0",
        b"-c\0",
        b"-c\0\xff\0",
        b"-c\0x\0y\0",
        b"-s",
        b"-s\0-F",
        b"-s\0-t\0",
        b"-s\0-t\0x\0",
        b"-s\0-v\0",
        b"-s\0-x\0",
        b"-s\0\0",
        b"-a",
        b"-a\0x\0",
        b"-f\0/boot/xenstore\0",
        b"x\0",
    ] {
        let answer = scene.step(malformed);
        let malformed = malformed.escape_ascii();
        assert_eq!(answer.as_deref(), Some("EINVAL\0"), "{malformed}");
    }
    assert_eq!(scene.images.borrow().bytes, b"xyz");
    scene.step(b"-s\0");
    assert!(scene.poll().is_some(), "nothing of it has changed anything");
}

#[test]
fn only_the_toolstack_may_update() {
    let mut scene = Scene::new();
    let guest = scene.guest;
    for payload in [&b"live-update\0-b\x001\0"[..], b"live-update\0-a\0"] {
        let answer = scene.control(guest, payload);
        assert_eq!(answer.as_deref(), Some("EACCES\0"));
    }
}

#[test]
fn the_next_instance_tells_that_the_update_is_done() {
    for (reads, format) in [
        ((2, true), Format::Own),
        ((2, false), Format::V2),
        ((1, true), Format::V1),
    ] {
        let mut scene = Scene::new();
        (
            scene.images.borrow_mut().reads.version,
            scene.images.borrow_mut().reads.is_own,
        ) = reads;
        scene.upload();
        assert_eq!(scene.step(b"-s\0"), None);
        assert_eq!(scene.poll().unwrap().format, format);
        let mut next = scene.next_instance(format);
        next.update_done();
        let conn = scene.toolstack;
        assert_eq!(receive(&mut next, conn).as_deref(), Some("OK\0"));
        assert_eq!(receive(&mut next, conn), None);
        scene.server.update_failed("The new instance is mute.");
        let heard = receive(&mut scene.server, conn);
        assert_eq!(heard.as_deref(), Some("The new instance is mute.\0"));
        assert_eq!(scene.images.borrow().dropped, 1);
        scene.upload();
    }
}

#[test]
fn the_old_image_started_anew_tells_that_the_update_failed() {
    let mut scene = Scene::new();
    scene.upload();
    scene.step(b"-s\0");
    scene.poll().unwrap();
    let mut again = scene.next_instance(Format::Own);
    again.update_failed("It never came back.");
    let heard = receive(&mut again, scene.toolstack);
    assert_eq!(heard.as_deref(), Some("It never came back.\0"));
    again.update_done();
    assert_eq!(receive(&mut again, scene.toolstack), None);
}

#[test]
fn t_lu_06_anyone_privileged_may_abort_and_an_update_ends_with_its_requester() {
    let abort = b"live-update\0-a\0";
    for is_started in [false, true] {
        for end in 0..4 {
            let mut scene = Scene::new();
            let (own, other) = (scene.toolstack, scene.other);
            scene.upload();
            if is_started {
                assert_eq!(scene.step(b"-s\0"), None);
            }
            let begin = b"live-update\0-b\x003\0";
            let answer = scene.control(other, begin);
            let active = "live-update session already active.\0";
            assert_eq!(answer.as_deref(), Some(active));
            match end {
                0 => {
                    assert_eq!(scene.control(other, abort).as_deref(), Some("OK\0"));
                }
                1 => {
                    send(&mut scene.server, own, Kind::Control, abort);
                }
                2 => scene.server.reset(own),
                _ => scene.server.stop(own),
            }
            let mut heard = Vec::new();
            while let Some(answer) = receive(&mut scene.server, own) {
                heard.push(answer);
            }
            let cancelled = (is_started && end < 2).then_some("Cancellation was requested\0");
            let done = (end == 1).then_some("OK\0");
            let expected: Vec<&str> = cancelled.into_iter().chain(done).collect();
            assert_eq!(heard, expected, "{end}");
            assert_eq!(scene.images.borrow().dropped, 1);
            assert_eq!(scene.poll(), None);
            let answer = scene.control(other, begin);
            assert_eq!(answer.as_deref(), Some("OK\0"));
        }
    }
}

#[test]
fn an_image_that_is_none_is_dropped() {
    let mut scene = Scene::new();
    scene.images.borrow_mut().refuses = Some("This is no PVH image.");
    scene.upload();
    scene.steps(&[
        (b"-s\0", "This is no PVH image.\0"),
        (b"-a\0", "No live-update session active.\0"),
    ]);
    assert_eq!(scene.images.borrow().dropped, 1);
    assert_eq!(scene.poll(), None);
}

#[test]
fn what_a_reader_cannot_carry_is_told_and_lost_only_if_forced() {
    for forced in [false, true] {
        let mut scene = Scene::new();
        let guest = scene.guest;
        send(&mut scene.server, guest, Kind::TransactionStart, b"\0");
        receive(&mut scene.server, guest);
        scene.upload();
        let step: &[u8] = if forced {
            b"-s\0-v\x001\0-F\0"
        } else {
            b"-s\0-v\x001\0"
        };
        assert_eq!(scene.step(step), None);
        assert_eq!(scene.poll().is_some(), forced);
        let heard = receive(&mut scene.server, scene.toolstack);
        let told =
            "The new instance cannot read all (-F loses it):\ndomain 1: 1 open transactions\0";
        assert_eq!(heard.as_deref(), (!forced).then_some(told));
    }
}

#[test]
fn a_stream_for_which_there_is_no_room_is_not_begun() {
    let mut scene = Scene::new();
    let mut stream = Vec::new();
    scene.upload();
    scene.step(b"-s\0");
    scene
        .server
        .export(Format::Own, Instant(0), &NOBODY, &mut stream);
    let size = stream.len();
    scene.images.borrow_mut().room = u64::try_from(size).unwrap() - 5;
    assert_eq!(scene.poll(), None);
    let told = format!("Not enough memory: the state needs {size} bytes, 5 more than there are.\0");
    assert_eq!(receive(&mut scene.server, scene.toolstack), Some(told));
    scene.images.borrow_mut().room += 5;
    scene.upload();
    scene.step(b"-s\0");
    assert!(scene.poll().is_some());
}

/// Behind a stream that this image does not read whole there is one that it does, should it come back.
#[test]
fn a_stream_of_others_needs_room_for_the_way_back_too() {
    let mut scene = Scene::new();
    scene.upload();
    scene.step(b"-s\0-v\x001\0-F\0");
    let mut size = 0;
    for format in [Format::V1, Format::Own] {
        let mut stream = Vec::new();
        let server = &scene.server;
        server.export(format, Instant(0), &NOBODY, &mut stream);
        size += stream.len();
    }
    scene.images.borrow_mut().room = u64::try_from(size).unwrap() - 1;
    assert_eq!(scene.poll(), None);
    let heard = receive(&mut scene.server, scene.toolstack).unwrap();
    assert!(heard.contains("1 more than there are."), "{heard}");
}

/// A guest that bound its port anew is served on the one that it has now: what the host has for a ring is carried as it is, update after update.
#[test]
fn t_lu_14_and_15_ports_and_handles_are_handed_on_unchanged() {
    let mut scene = Scene::new();
    let had = |conn: ConnId| HostLink {
        port: Some(40 + u32::try_from(conn.number()).unwrap()),
        fd: None,
        facts: format!("handle {}", conn.number()).into_bytes(),
    };
    let conns = [scene.toolstack, scene.guest, scene.other];
    for _ in 0..3 {
        let mut stream = Vec::new();
        let server = &scene.server;
        server.export(Format::Own, Instant(0), &had, &mut stream);
        let restored = Server::import(&stream, settings(), Instant(0)).unwrap();
        scene.server = restored.server;
        let links = restored.links.iter();
        let kept: Vec<_> = links.map(|link| (link.conn, link.host.clone())).collect();
        assert_eq!(kept.len(), conns.len());
        for (conn, host) in kept {
            assert!(conns.iter().any(|own| own.number() == conn.number()));
            // A socket has no port.
            let expected = HostLink {
                port: had(conn).port.filter(|_| conn != scene.other),
                ..had(conn)
            };
            assert_eq!(host, expected);
        }
        assert_eq!(scene.server.poll_action(), None, "nothing is made anew");
    }
}

/// The host asks Xen for all domains that matter, once: who died while nobody listened is found, and told of.
#[test]
fn t_lu_16_deaths_of_which_no_event_told_are_found() {
    let mut scene = Scene::new();
    let toolstack = scene.toolstack;
    send(
        &mut scene.server,
        toolstack,
        Kind::Watch,
        b"@releaseDomain\0t\0",
    );
    while !scene.server.poll_output(toolstack).is_empty() {
        let waiting = scene.server.poll_output(toolstack).len();
        scene.server.consume_output(toolstack, waiting);
    }
    let mut next = scene.next_instance(Format::Own);
    let known: Vec<Identity> = next.known_domains().collect();
    assert_eq!(known.len(), 1);
    next.handle_domains(&[DomainEvent::Dead(known[0])], u32::MAX, false);
    let event = next.poll_message(toolstack).concat();
    assert!(event.ends_with(b"@releaseDomain\0t\0"), "{event:?}");
    assert_eq!(next.known_domains().count(), 0);
}
