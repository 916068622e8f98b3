//! `ferrostored --domains`: whoever connects to a fake domain's socket is a guest with a ring, beside the clients of the main socket.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a client that cannot go on fails its test"
)]

mod client;
mod ferrostored;
mod served;

use std::fs::read_to_string;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use client::{Client, command, request, result, text, tool, until};
use ferrostored::ferrostored;
use served::Served;
use xenstore::wire::Kind;

/// Bytes each way of a ring.
const RING_BYTES: usize = 1024;

fn with_two_domains(socket: &Path) -> Command {
    let mut command = ferrostored(socket);
    command.args(["--domains", "2"]);
    command
}

/// A daemon with domains 1 and 2.
struct Host {
    served: Served,
}

impl Host {
    fn start() -> Self {
        let served = Served::start(with_two_domains).unwrap();
        Self { served }
    }

    fn main(&self) -> PathBuf {
        self.served.socket()
    }

    fn domain(&self, domid: u16) -> PathBuf {
        self.main().with_file_name(format!("socket.dom{domid}"))
    }

    /// A client of the main socket.
    fn dom0(&self) -> Client {
        Client::connect(&self.main())
    }

    fn guest(&self, domid: u16) -> Client {
        Client::connect(&self.domain(domid))
    }

    fn is_consistent(&self) -> bool {
        self.dom0().ask(Kind::Control, b"check\0").as_deref() == Ok(&b"OK\0"[..])
    }
}

fn answer(client: &mut Client, kind: Kind, payload: &str) -> Result<String, String> {
    let answer = client.ask(kind, payload.as_bytes());
    answer.map(|bytes| text(&bytes))
}

fn ok() -> Result<String, String> {
    Ok("OK\0".to_owned())
}

fn error(name: &str) -> Result<String, String> {
    Err(name.to_owned())
}

#[test]
fn debians_tools_are_a_guest_there() {
    let host = Host::start();
    let (dom0, guest) = (host.main(), host.domain(1));
    assert_eq!(tool(&dom0, "write", &["/private", "secret"]), "");
    assert_eq!(tool(&guest, "write", &["data/hello", "hi"]), "");
    assert_eq!(
        tool(&guest, "ls", &["-f", "-p", "/local/domain/1"]),
        "/local/domain/1/data = \"\"   (n1)\n/local/domain/1/data/hello = \"hi\"   (n1)\n"
    );
    assert_eq!(tool(&dom0, "read", &["/local/domain/1/data/hello"]), "hi\n");
    let refused = tool(&guest, "read", &["/private"]);
    assert!(refused.starts_with("status 1: "), "{refused}");
    assert_eq!(
        tool(&dom0, "list", &["/local/domain"]),
        "1\n2\n",
        "the homes"
    );
}

#[test]
fn a_guest_may_what_its_domain_may() {
    let host = Host::start();
    let (mut dom0, mut one, mut two) = (host.dom0(), host.guest(1), host.guest(2));
    dom0.write("/private", b"secret");
    one.write("mine", b"x");
    assert_eq!(one.read("/private"), error("EACCES"));
    assert_eq!(two.read("/local/domain/1/mine"), error("EACCES"));
    assert_eq!(answer(&mut one, Kind::Control, "check\0"), error("EACCES"));
    let shared = "mine\0n1\0r2\0";
    assert_eq!(answer(&mut one, Kind::SetPerms, shared), ok());
    assert_eq!(two.read("/local/domain/1/mine").as_deref(), Ok("x"));
    let given_away = "mine\0n2\0";
    let refused = answer(&mut one, Kind::SetPerms, given_away);
    assert_eq!(refused, error("EPERM"));
    for (domid, introduced) in [("1\0", "T\0"), ("2\0", "T\0"), ("3\0", "F\0")] {
        let told = answer(&mut dom0, Kind::IsDomainIntroduced, domid);
        assert_eq!(told.as_deref(), Ok(introduced));
    }
    // A limit for unprivileged domains.
    let long = [&b"mine\0"[..], &[b'x'; 3000]].concat();
    assert_eq!(one.ask(Kind::Write, &long), Err("ENOSPC".to_owned()));
    assert!(host.is_consistent());
}

#[test]
fn watches_fire_across_both_kinds_of_clients() {
    let host = Host::start();
    let (mut dom0, mut one, mut two) = (host.dom0(), host.guest(1), host.guest(2));
    let watch = |client: &mut Client, path: &str| {
        let payload = format!("{path}\0token\0");
        assert_eq!(answer(client, Kind::Watch, &payload), ok());
        assert_eq!(client.event(), payload);
    };
    watch(&mut dom0, "/local/domain/1");
    watch(&mut one, "from-dom0");
    watch(&mut two, "/local/domain/1/public");
    one.write("to-dom0", b"x");
    assert_eq!(dom0.event(), "/local/domain/1/to-dom0\0token\0");
    dom0.write("/local/domain/1/from-dom0", b"x");
    assert_eq!(one.event(), "from-dom0\0token\0");
    one.write("public", b"x");
    answer(&mut one, Kind::SetPerms, "public\0n1\0r2\0").unwrap();
    assert_eq!(two.event(), "/local/domain/1/public\0token\0");
}

#[test]
fn messages_longer_than_a_ring_pass_in_any_pieces() {
    let host = Host::start();
    let (mut dom0, mut one) = (host.dom0(), host.guest(1));
    let value = "v".repeat(4096 - "/big\0".len());
    dom0.write("/big", value.as_bytes());
    answer(&mut dom0, Kind::SetPerms, "/big\0r0\0").unwrap();
    assert_eq!(one.read("/big"), Ok(value));
    let value = "w".repeat(2000);
    let write = request(Kind::Write, 0, format!("mine\0{value}").as_bytes());
    for piece in write.chunks(7) {
        one.send(piece);
    }
    assert_eq!(one.reply().as_deref(), Ok(&b"OK\0"[..]));
    assert_eq!(dom0.read("/local/domain/1/mine"), Ok(value));
}

#[test]
fn many_requests_at_once_are_all_answered() {
    const REQUESTS: usize = 2000;
    let host = Host::start();
    let mut one = host.guest(1);
    one.write("mine", b"x");
    let mut reader = Client {
        stream: one.stream.try_clone().unwrap(),
    };
    let answers = std::thread::spawn(move || {
        (0..REQUESTS).all(|_| reader.reply().as_deref() == Ok(&b"x"[..]))
    });
    one.send(&request(Kind::Read, 0, b"mine\0").repeat(REQUESTS));
    assert!(answers.join().unwrap());
}

#[test]
fn a_client_that_goes_leaves_nothing_to_the_next() {
    let host = Host::start();
    let mut dom0 = host.dom0();
    dom0.write("/local/domain/1/seen", b"before");
    let write = request(Kind::Write, 0, b"seen\0after");
    for length in 0..write.len() {
        let mut one = host.guest(1);
        let watch = one.ask(Kind::Watch, b"/local/domain/1\0token\0");
        assert_eq!(watch.as_deref(), Ok(&b"OK\0"[..]));
        assert_eq!(one.event(), "/local/domain/1\0token\0");
        let started = answer(&mut one, Kind::TransactionStart, "\0");
        assert_eq!(started.as_deref(), Ok("1\0"), "with {length} bytes");
        // Nothing of this is read: a reply is half in the ring when the client goes.
        one.send(&request(Kind::Read, 0, b"seen\0").repeat(100));
        one.send(write.get(..length).unwrap());
    }
    let mut one = host.guest(1);
    dom0.write("/local/domain/1/seen", b"again");
    // An event would come before the reply.
    one.send(&request(Kind::Read, 0, b"seen\0"));
    let (kind, value) = one.receive();
    assert_eq!((kind, &value[..]), (Some(Kind::Read), &b"again"[..]));
    assert!(host.is_consistent());
}

#[test]
fn a_client_that_is_killed_makes_room_for_the_next() {
    let host = Host::start();
    let guest = host.domain(1);
    let mut watching = command(&guest, "watch", &["/local/domain/1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    let told = watching.stdout.as_mut().unwrap();
    told.read_exact(&mut first).unwrap();
    watching.kill().unwrap();
    watching.wait().unwrap();
    assert_eq!(tool(&guest, "write", &["mine", "x"]), "");
    assert_eq!(tool(&guest, "read", &["mine"]), "x\n");
}

#[test]
fn a_second_client_waits_until_the_first_has_gone() {
    let host = Host::start();
    let mut first = host.guest(1);
    first.write("mine", b"first");
    let mut second = host.guest(1);
    second.send(&request(Kind::Write, 0, b"mine\0second"));
    // The daemon has seen all that there was to see when another client is answered.
    let mut other = host.guest(2);
    other.write("other", b"x");
    assert_eq!(first.read("mine").as_deref(), Ok("first"));
    drop(first);
    assert_eq!(second.reply().as_deref(), Ok(&b"OK\0"[..]));
    assert_eq!(second.read("mine").as_deref(), Ok("second"));
}

#[test]
fn a_request_too_long_ends_its_client_and_no_other() {
    let host = Host::start();
    let mut other = host.guest(2);
    for length in [4097, u32::MAX] {
        let mut one = host.guest(1);
        one.write("mine", b"x");
        let mut header = request(Kind::Write, 0, b"");
        header.splice(12.., length.to_le_bytes());
        one.send(&header);
        let mut rest = Vec::new();
        one.stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"", "a length of {length}");
        other.write("mine", b"x");
    }
    assert_eq!(host.guest(1).read("mine").as_deref(), Ok("x"));
}

#[test]
fn a_client_that_never_reads_delays_nobody() {
    let host = Host::start();
    let mut silent = host.guest(1);
    silent.write("mine", &[b'x'; RING_BYTES]);
    silent.stream.set_nonblocking(true).unwrap();
    let read = request(Kind::Read, 0, b"mine\0");
    let flood = read.repeat(100_000);
    let sent = std::io::Write::write(&mut silent.stream, &flood).unwrap();
    assert!(sent > read.len());
    let (mut dom0, mut two) = (host.dom0(), host.guest(2));
    for _ in 0..100 {
        two.write("mine", b"x");
        assert_eq!(dom0.read("/local/domain/2/mine").as_deref(), Ok("x"));
    }
    // Whoever begins to read gets what is owed.
    silent.stream.set_nonblocking(false).unwrap();
    for _ in 0..sent / read.len() {
        assert_eq!(silent.reply().map(|value| value.len()), Ok(RING_BYTES));
    }
}

#[test]
fn the_toolstack_may_release_and_introduce() {
    let host = Host::start();
    let (mut dom0, mut one) = (host.dom0(), host.guest(1));
    one.write("mine", b"x");
    assert_eq!(answer(&mut dom0, Kind::Release, "1\0"), ok());
    assert_eq!(dom0.read("/local/domain/1/mine"), error("ENOENT"));
    let told = answer(&mut dom0, Kind::IsDomainIntroduced, "1\0");
    assert_eq!(told.as_deref(), Ok("F\0"));
    one.send(&request(Kind::Read, 0, b"mine\0"));
    assert_eq!(answer(&mut dom0, Kind::Introduce, "1\0gfn\x001\0"), ok());
    let mut rest = Vec::new();
    one.stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"", "the old connection");
    assert_eq!(host.guest(1).read("/"), error("EACCES"));
    let absent = answer(&mut dom0, Kind::Introduce, "3\0gfn\x001\0");
    assert_eq!(absent, error("EINVAL"));
    let limit = answer(&mut dom0, Kind::SetQuota, "2\0nodes\x001\0");
    assert_eq!(limit, ok());
}

/// Also with clients that say nothing.
#[test]
fn idle_domains_cost_nothing() {
    const LONG: Duration = Duration::from_millis(500);
    let host = Host::start();
    let mut one = host.guest(1);
    let _waiting = host.guest(1);
    one.write("mine", b"x");
    let spent = || {
        let folder = format!("/proc/{}", host.served.child.id());
        let status = read_to_string(format!("{folder}/status")).unwrap();
        let switches: Vec<&str> = status
            .lines()
            .filter(|line| line.contains("ctxt_switches"))
            .collect();
        // User and system time, in hundredths of a second.
        let stat = read_to_string(format!("{folder}/stat")).unwrap();
        let times: Vec<&str> = stat.split(' ').skip(13).take(2).collect();
        (switches.join(" "), times.join(" "))
    };
    let quiet = || {
        let before = spent();
        std::thread::sleep(LONG);
        before == spent()
    };
    until(quiet);
}

#[test]
fn more_domains_than_there_may_be_are_refused() {
    let served = Served::start(ferrostored).unwrap();
    let socket = served.socket().with_file_name("other");
    let refused = result(ferrostored(&socket).args(["--domains", "1001"]));
    assert!(refused.contains("at most 1000 domains"), "{refused}");
}

#[test]
fn a_domain_that_is_played_elsewhere_is_left_alone() {
    let host = Host::start();
    // Another daemon of the same name, whose main socket has gone.
    std::fs::remove_file(host.main()).unwrap();
    let refused = result(&mut with_two_domains(&host.main()));
    assert!(refused.contains("dom1: it is being served"), "{refused}");
    host.guest(1).write("mine", b"x");
}
