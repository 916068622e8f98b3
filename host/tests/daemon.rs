//! `ferrostored` as its clients see it: Debian's own tools, directories beyond one message, and clients that behave badly.
//!
//! Nothing here depends on how fast the machine is; a daemon that does not answer is killed after [`served::PATIENCE`].
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a client that cannot go on fails its test"
)]

mod client;
mod ferrostored;
mod served;

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Duration;

use client::{Client, command, request, result, text, tool, until};
use ferrostored::ferrostored;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use served::Served;
use xenstore::wire::Kind;

/// Between looks at something that becomes true soon.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);
/// `nobody`
const OTHER_USER: u32 = 65534;
const MIB: u64 = 1 << 20;

#[test]
fn debians_tools_work() {
    let served = Served::start(ferrostored).unwrap();
    let tool = |name: &str, arguments: &[&str]| tool(&served.socket(), name, arguments);
    assert_eq!(tool("write", &["/t/a", "one", "/t/b", "two"]), "");
    assert_eq!(tool("read", &["/t/a", "/t/b"]), "one\ntwo\n");
    assert_eq!(tool("read", &["-p", "/t/a"]), "/t/a: one\n");
    assert_eq!(tool("write", &["/t/b/c", r"\x00\xff\n"]), "");
    assert_eq!(tool("read", &["/t/b/c"]), "\\000\\xff\\n\n");
    assert_eq!(tool("list", &["/t"]), "a\nb\n");
    assert_eq!(tool("chmod", &["/t/a", "n0", "r5", "b7"]), "");
    assert_eq!(
        tool("ls", &["-f", "-p", "/t"]),
        "/t/a = \"one\"   (n0,r5,b7)\n/t/b = \"two\"   (n0)\n/t/b/c = \"\\000\\xff\\n\"   (n0)\n"
    );
    assert_eq!(tool("exists", &["/t/a"]), "");
    assert_eq!(tool("rm", &["/t/a"]), "");
    assert_eq!(tool("exists", &["/t/a"]), "status 1: ");
    assert_eq!(
        tool("read", &["/t/a"]),
        "status 1: xenstore-read: couldn't read path /t/a\n"
    );
    assert_eq!(tool("list", &["/t"]), "b\n");
    assert_eq!(tool("write", &["relative", "x"]), "");
    assert_eq!(tool("read", &["/local/domain/0/relative"]), "x\n");
}

#[test]
fn debians_xenstore_watch_is_told() {
    let served = Served::start(ferrostored).unwrap();
    let mut watching = command(&served.socket(), "watch", &["-n", "3", "/t"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut next = || told.next().map(Result::unwrap);
    assert_eq!(next().as_deref(), Some("/t"));
    tool(&served.socket(), "write", &["/t/a", "x"]);
    assert_eq!(next().as_deref(), Some("/t/a"));
    tool(&served.socket(), "rm", &["/t"]);
    assert_eq!(next().as_deref(), Some("/t"));
    assert_eq!(next(), None);
    assert!(watching.wait().unwrap().success());
}

/// The names take 45 000 bytes, so that they come in parts.
#[test]
fn a_directory_of_5000_is_listed_whole() {
    const CHILDREN: usize = 5000;
    let served = Served::start(ferrostored).unwrap();
    let mut client = Client::connect(&served.socket());
    let names: BTreeSet<String> = (0..CHILDREN).map(|n| format!("child{n:03}")).collect();
    for name in &names {
        client.write(&format!("/big/{name}"), b"x");
    }
    let listed = tool(&served.socket(), "ls", &["/big"]);
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), CHILDREN);
    let expected: BTreeSet<String> = names.iter().map(|n| format!("{n} = \"x\"")).collect();
    assert_eq!(
        lines.into_iter().map(String::from).collect::<BTreeSet<_>>(),
        expected
    );
    let listed = tool(&served.socket(), "list", &["/big"]);
    assert_eq!(listed.lines().count(), CHILDREN);
    assert_eq!(
        listed.lines().map(String::from).collect::<BTreeSet<_>>(),
        names
    );
}

#[test]
fn clients_that_end_in_the_middle_of_a_request_leave_nothing() {
    let served = Served::start(ferrostored).unwrap();
    let mut other = Client::connect(&served.socket());
    other.write("/t", b"before");
    let before = files_of(&served);
    let write = request(Kind::Write, 0, b"/t\0after");
    for length in 0..write.len() {
        let mut client = Client::connect(&served.socket());
        client.ask(Kind::Watch, b"/t\0token\0").unwrap();
        let tx_id = number(&client.ask(Kind::TransactionStart, b"\0").unwrap());
        client.send(&request(Kind::Write, tx_id, b"/t\0in a transaction"));
        client.send(&write[..length]);
    }
    let mut watching = command(&served.socket(), "watch", &["/t"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    let told = watching.stdout.as_mut().unwrap();
    told.read_exact(&mut first).unwrap();
    watching.kill().unwrap();
    watching.wait().unwrap();
    assert_eq!(other.read("/t").as_deref(), Ok("before"));
    until(|| files_of(&served) == before);
    assert_eq!(
        other.ask(Kind::Control, b"check\0").as_deref(),
        Ok(&b"OK\0"[..])
    );
}

#[test]
fn a_request_too_long_ends_its_connection_and_no_other() {
    let served = Served::start(ferrostored).unwrap();
    let mut other = Client::connect(&served.socket());
    for length in [4097, 1 << 30, u32::MAX] {
        let mut client = Client::connect(&served.socket());
        client.write("/t", b"x");
        let mut header = request(Kind::Write, 0, b"");
        header[12..].copy_from_slice(&length.to_le_bytes());
        client.send(&header);
        let mut rest = Vec::new();
        client.stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"", "a length of {length}");
        assert_eq!(other.read("/t").as_deref(), Ok("x"));
    }
}

#[test]
fn clients_silent_in_the_middle_of_a_request_delay_nobody() {
    let served = Served::start(ferrostored).unwrap();
    let write = request(Kind::Write, 0, b"/silent\0x");
    let silent: Vec<Client> = (1..write.len())
        .map(|length| {
            let mut client = Client::connect(&served.socket());
            client.send(&write[..length]);
            client
        })
        .collect();
    let mut other = Client::connect(&served.socket());
    for n in 0..1000 {
        other.write("/t", n.to_string().as_bytes());
        assert_eq!(other.read("/t"), Ok(n.to_string()));
    }
    assert_eq!(other.read("/silent"), Err("ENOENT".to_owned()));
    for (length, mut client) in (1..).zip(silent) {
        client.send(&write[length..]);
        assert_eq!(client.reply().as_deref(), Ok(&b"OK\0"[..]));
    }
    assert_eq!(other.read("/silent").as_deref(), Ok("x"));
}

/// Unbounded, the replies would take 800 MB.
#[test]
fn replies_that_nobody_reads_are_bounded() {
    const REQUESTS: usize = 50_000;
    let served = Served::start(ferrostored).unwrap();
    let mut other = Client::connect(&served.socket());
    for child in 0..100 {
        other.write(&format!("/t/{child:0>39}"), b"x");
    }
    let before = memory_of(&served);
    // A value would be shared with the store; a list is made for each reply.
    let list = request(Kind::Directory, 0, b"/t\0");
    let flood = list.repeat(REQUESTS);
    let flooding: Vec<(Client, usize)> = (0..4)
        .map(|_| {
            let client = Client::connect(&served.socket());
            let sent = client.flood(&flood);
            (client, sent)
        })
        .collect();
    for _ in 0..100 {
        assert_eq!(other.read("/t").as_deref(), Ok(""));
    }
    let grown = memory_of(&served).saturating_sub(before);
    assert!(grown < 64 * MIB, "{grown} bytes");
    // Whoever begins to read gets what is owed.
    for (mut client, sent) in flooding {
        for _ in 0..sent / list.len() {
            assert_eq!(client.reply().map(|names| names.len()), Ok(4000));
        }
    }
}

/// Unbounded, the events would take 40 MB and more: their payloads alone are 210 bytes each.
#[test]
fn events_that_nobody_reads_are_bounded() {
    const NODES: usize = 100;
    const ROUNDS: usize = 1000;
    let served = Served::start(ferrostored).unwrap();
    let mut silent = Client::connect(&served.socket());
    silent.ask(Kind::Watch, b"/t\0token\0").unwrap();
    let mut told = Client::connect(&served.socket());
    told.ask(Kind::Watch, b"/t/last\0token\0").unwrap();
    assert_eq!(told.event(), "/t/last\0token\0");
    let mut other = Client::connect(&served.socket());
    let round: Vec<u8> = (0..NODES)
        .flat_map(|n| request(Kind::Write, 0, format!("/t/{n:0>200}\0x").as_bytes()))
        .collect();
    let mut before = 0;
    for n in 0..ROUNDS {
        other.send(&round);
        for _ in 0..NODES {
            other.reply().unwrap();
        }
        if n == 0 {
            before = memory_of(&served);
        }
    }
    let grown = memory_of(&served).saturating_sub(before);
    assert!(grown < 16 * MIB, "{grown} bytes");
    other.write("/t/last", b"x");
    assert_eq!(told.event(), "/t/last\0token\0");
}

#[test]
fn idle_connections_are_held_and_cost_nobody() {
    const WANTED: u64 = 10_000;
    const NEEDED: u64 = 2000;
    /// Open files of this process and of the daemon besides.
    const SPARE: u64 = 1000;
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let count = WANTED.min(most.saturating_sub(SPARE));
    assert!(
        count >= NEEDED,
        "at most {most} open files are allowed: raise ulimit -n"
    );

    let served = Served::start(ferrostored).unwrap();
    let mut idle: Vec<Client> = (0..count)
        .map(|_| Client::connect(&served.socket()))
        .collect();
    let mut other = Client::connect(&served.socket());
    for n in 0..1000 {
        other.write("/t", n.to_string().as_bytes());
        assert_eq!(other.read("/t"), Ok(n.to_string()));
    }
    for client in &mut idle {
        assert_eq!(client.read("/t").as_deref(), Ok("999"));
    }
    println!("{count} idle connections");
    drop(idle);
    until(|| files_of(&served) < 100);
    assert_eq!(other.read("/t").as_deref(), Ok("999"));
}

/// Clients beyond what the daemon may open wait until others go.
#[test]
fn clients_that_there_is_no_room_for_are_served_later() {
    let served = Served::start(ferrostored).unwrap();
    let few = Rlimit {
        current: Some(40),
        maximum: Some(40),
    };
    let pid = i32::try_from(served.child.id()).unwrap();
    prlimit(Pid::from_raw(pid), Resource::Nofile, few).unwrap();
    let mut clients: Vec<Client> = (0..60).map(|_| Client::connect(&served.socket())).collect();
    clients[0].write("/t", b"x");
    let mut late = clients.split_off(50);
    drop(clients);
    for client in &mut late {
        assert_eq!(client.read("/t").as_deref(), Ok("x"));
    }
}

#[test]
fn a_client_of_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        println!("not shown: only root can be another user");
        return;
    }
    let served = Served::start(ferrostored).unwrap();
    tool(&served.socket(), "write", &["/t", "secret"]);
    // The file's own mode would refuse, too; the daemon must not rely on it.
    std::fs::set_permissions(served.socket(), Permissions::from_mode(0o777)).unwrap();
    let mut read = command(&served.socket(), "read", &["/t"]);
    assert_eq!(result(&mut read), "secret\n");
    let refused = result(read.uid(OTHER_USER).gid(OTHER_USER));
    assert!(refused.starts_with("status 1: "), "{refused}");
    assert!(!refused.contains("secret"), "{refused}");
    assert_eq!(tool(&served.socket(), "read", &["/t"]), "secret\n");
}

#[test]
fn a_socket_that_is_served_is_left_alone_and_a_dead_one_replaced() {
    let mut served = Served::start(ferrostored).unwrap();
    let mut second = ferrostored(&served.socket());
    let refused = result(&mut second);
    assert!(refused.contains("it is being served"), "{refused}");
    assert_eq!(tool(&served.socket(), "write", &["/t", "first"]), "");

    served.child.kill().unwrap();
    served.child.wait().unwrap();
    assert!(served.socket().exists());
    let mut second = second.stderr(Stdio::null()).spawn().unwrap();
    until(|| UnixStream::connect(served.socket()).is_ok());
    assert_eq!(tool(&served.socket(), "exists", &["/t"]), "status 1: ");
    second.kill().unwrap();
    second.wait().unwrap();
}

impl Client {
    /// Sends until the daemon has taken nothing for a while; gives how many bytes of whole requests went out.
    fn flood(&self, bytes: &[u8]) -> usize {
        const QUIET_LOOKS: u32 = 50;
        let mut rest = bytes;
        let mut quiet = 0;
        self.stream.set_nonblocking(true).unwrap();
        while quiet < QUIET_LOOKS && !rest.is_empty() {
            match (&self.stream).write(rest) {
                Ok(sent) => (rest, quiet) = (rest.split_at(sent).1, 0),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    quiet += 1;
                    std::thread::sleep(BETWEEN_LOOKS);
                }
                Err(error) => panic!("the daemon let go of its client: {error}"),
            }
        }
        self.stream.set_nonblocking(false).unwrap();
        bytes.len() - rest.len()
    }
}

fn number(bytes: &[u8]) -> u32 {
    text(bytes).trim_end_matches('\0').parse().unwrap()
}

/// How many files the daemon has open.
fn files_of(served: &Served) -> usize {
    let folder = format!("/proc/{}/fd", served.child.id());
    std::fs::read_dir(folder).unwrap().count()
}

/// How much memory the daemon takes, in bytes.
fn memory_of(served: &Served) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line
        .and_then(|line| line.split_whitespace().nth(1))
        .unwrap();
    kib.parse::<u64>().unwrap() * 1024
}
