//! Clients of a server's socket: one that speaks the protocol itself, and Debian's `xenstore-*`.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use xenstore::ReqId;
use xenstore::wire::{HEADER_SIZE, Header, Kind};

/// Far more than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between looks at something that becomes true soon.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// A client that speaks the protocol itself.
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
}

impl Client {
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        Self { stream }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next message: its type, and its payload.
    pub(crate) fn receive(&mut self) -> (Option<Kind>, Vec<u8>) {
        let mut header = [0; HEADER_SIZE];
        self.stream.read_exact(&mut header).unwrap();
        let header = Header::decode(header);
        let mut payload = vec![0; usize::try_from(header.len).unwrap()];
        self.stream.read_exact(&mut payload).unwrap();
        (Kind::from_number(header.kind), payload)
    }

    /// The next reply, or the name of its error. Events before it are passed over.
    pub(crate) fn reply(&mut self) -> Result<Vec<u8>, String> {
        loop {
            match self.receive() {
                (Some(Kind::WatchEvent), _) => {}
                (Some(Kind::Error), name) => {
                    return Err(text(&name).trim_end_matches('\0').to_owned());
                }
                (_, payload) => return Ok(payload),
            }
        }
    }

    /// The next event. Replies before it are passed over.
    pub(crate) fn event(&mut self) -> String {
        loop {
            if let (Some(Kind::WatchEvent), payload) = self.receive() {
                return text(&payload);
            }
        }
    }

    pub(crate) fn ask(&mut self, kind: Kind, payload: &[u8]) -> Result<Vec<u8>, String> {
        self.send(&request(kind, 0, payload));
        self.reply()
    }

    pub(crate) fn write(&mut self, path: &str, value: &[u8]) {
        let payload = [path.as_bytes(), b"\0", value].concat();
        self.ask(Kind::Write, &payload).unwrap();
    }

    pub(crate) fn read(&mut self, path: &str) -> Result<String, String> {
        let payload = [path.as_bytes(), b"\0"].concat();
        self.ask(Kind::Read, &payload).map(|value| text(&value))
    }
}

pub(crate) fn request(kind: Kind, tx_id: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        kind: kind.number(),
        req_id: ReqId(1),
        tx_id,
        len: payload.len().try_into().unwrap(),
    };
    [&header.encode(), payload].concat()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs one of Debian's `xenstore-*`; gives its output, with its status before it if that is not 0.
pub(crate) fn tool(socket: &Path, name: &str, arguments: &[&str]) -> String {
    result(&mut command(socket, name, arguments))
}

pub(crate) fn command(socket: &Path, name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(format!("xenstore-{name}"));
    command.args(arguments).env("XENSTORED_PATH", socket);
    command
}

pub(crate) fn result(command: &mut Command) -> String {
    let ended = command.output().unwrap_or_else(|error| {
        let name = command.get_program().display();
        panic!("{name}: {error} (Debian's package xenstore-utils has the tools)")
    });
    let mut shown = String::new();
    if !ended.status.success() {
        let status = ended.status.code().unwrap_or(-1);
        write!(shown, "status {status}: ").unwrap();
    }
    shown.push_str(&String::from_utf8_lossy(&ended.stdout));
    shown.push_str(&String::from_utf8_lossy(&ended.stderr));
    shown
}

/// Waits for what becomes true soon.
pub(crate) fn until(mut is_true: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_true() {
        assert!(started.elapsed() < PATIENCE, "it does not come");
        std::thread::sleep(BETWEEN_LOOKS);
    }
}
