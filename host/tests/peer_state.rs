//! Live updates of C xenstored, started without a hypervisor: we read the state that it writes, and it goes on with what we write at version 1.
//!
//! `scripts/test-peer` gets that program and runs this; the environment variable `PEER` names the folder where it put it. In the place of
//! the new program stands a script that is called between the two: it keeps the stream of the old one, lets `xs state convert` write it
//! anew, and then becomes the real program.

mod peer_daemon;
mod served;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use peer_daemon::xenstored;
use served::Served;
use xenstore::state::Records;
use xenstore::wire::{HEADER_SIZE, Header, Kind};
use xenstore::{AnyStorage, DomId, Instant, ReqId, Server, Settings};

#[test]
fn t_lu_04_c_xenstored_and_we_read_each_other() {
    let peer = std::env::var_os("PEER").expect("run scripts/test-peer, which gets the peer");
    let peer = PathBuf::from(peer);
    let server = Served::start(|socket| {
        let mut command = xenstored(&peer, socket);
        command.env("FAKE_XEN_GRANTS", "1");
        command
    })
    .unwrap();
    let socket = server.socket();
    let folder = socket.parent().unwrap().to_path_buf();
    let mut client = Client::connect(&socket);
    let mut half = Client::connect(&socket);
    populate(&mut client);
    // Of this request the old program reads one half, the new one the other.
    let split = request(Kind::Read, b"/a/b/c\0");
    let (first, second) = split.split_at(HEADER_SIZE + 3);
    half.send(first);
    let before = client.look();
    client.events.clear();

    let relay = relay(&peer, &folder);
    client.tell(
        Kind::Control,
        &[b"live-update\0-f\0", relay.as_bytes(), b"\0"].concat(),
    );
    assert_eq!(
        client.tell(Kind::Control, b"live-update\0-s\0-t\x0030\0"),
        b"OK\0"
    );

    assert_eq!(client.look(), before, "the store after the update");
    half.send(second);
    assert_eq!(half.message().1, b"value");
    client.tell(Kind::Write, b"/a/new\0x");
    assert_eq!(client.events, ["/a/new\0tok\0"]);
    client.tell(Kind::Write, b"/local/domain/0/rel/x\0x");
    assert_eq!(client.events.last().unwrap(), "rel/x\0t3\0");
    let converted = fs::read_to_string(folder.join("convert.log")).unwrap();
    assert_eq!(converted, "", "nothing of a stream of C is left out");
    let stream = fs::read(folder.join("state_of_c")).unwrap();
    is_read(&stream);
    if let Some(keep) = std::env::var_os("KEEP_STATE") {
        fs::write(keep, stream).unwrap();
    }
}

/// What the test data has, too: see `xenstore/src/state/tests`.
fn populate(client: &mut Client) {
    client.tell(Kind::Write, b"/a/b/c\0value");
    client.tell(Kind::Write, b"/a/d\0\0\xff");
    client.tell(Kind::SetPerms, b"/a/d\0n0\0r5\0b7\0");
    client.tell(Kind::Introduce, b"5\x001\x007\0");
    client.tell(Kind::Introduce, b"7\x001\x007\0");
    client.tell(Kind::SetTarget, b"7\x005\0");
    client.tell(Kind::Mkdir, b"/local/domain/5\0");
    client.tell(Kind::SetPerms, b"/local/domain/5\0r5\0");
    client.tell(Kind::Watch, b"/a\0tok\0");
    client.tell(Kind::Watch, b"@releaseDomain\0t2\0");
    client.tell(Kind::Watch, b"rel/x\0t3\0");
}

/// Our reader's opinion of a stream of C xenstored.
fn is_read(stream: &[u8]) {
    let dom0 = DomId::new(0);
    let restored =
        Server::<AnyStorage>::import(stream, Settings::new(dom0, dom0), Instant(0)).unwrap();
    assert!(!restored.is_own && restored.skipped.is_empty());
    let domids: Vec<_> = restored.links.iter().map(|link| link.domid).collect();
    let ring = |domid| Some(DomId::new(domid));
    assert_eq!(domids, [ring(0), None, None, ring(5), ring(7)]);
    let nodes = Records::new(stream).unwrap().map(Result::unwrap);
    let nodes = nodes.filter(|record| record.node_path().is_some()).count();
    assert_eq!(nodes, 12);
}

/// The script that stands for the new program.
fn relay(peer: &Path, folder: &Path) -> String {
    let (xs, peer, folder) = (env!("CARGO_BIN_EXE_xs"), peer.display(), folder.display());
    let script = format!(
        "#!/bin/sh\ncd {folder}\nmv state_dump state_of_c\n{xs} state convert state_of_c state_dump --format v1 >convert.log 2>&1\nexec {peer}/xenstored \"$@\"\n"
    );
    let path = format!("{folder}/relay");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A client, with the events that it got.
struct Client {
    stream: UnixStream,
    events: Vec<String>,
}

impl Client {
    fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        let events = Vec::new();
        Self { stream, events }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn message(&mut self) -> (u32, Vec<u8>) {
        let mut header = [0; HEADER_SIZE];
        self.stream.read_exact(&mut header).unwrap();
        let header = Header::decode(header);
        let mut payload = vec![0; usize::try_from(header.len).unwrap()];
        self.stream.read_exact(&mut payload).unwrap();
        (header.kind, payload)
    }

    /// The payload of the reply, which is no error.
    fn tell(&mut self, kind: Kind, payload: &[u8]) -> Vec<u8> {
        self.send(&request(kind, payload));
        loop {
            let (answered, payload) = self.message();
            if answered == Kind::WatchEvent.number() {
                self.events.push(String::from_utf8(payload).unwrap());
            } else {
                assert_eq!(answered, kind.number(), "{}", payload.escape_ascii());
                return payload;
            }
        }
    }

    /// All that can be seen of the store.
    fn look(&mut self) -> Vec<Vec<u8>> {
        let nodes = [
            "/",
            "/a",
            "/a/b",
            "/a/b/c",
            "/a/d",
            "/local/domain",
            "/local/domain/5",
        ];
        let mut seen = Vec::new();
        for node in nodes {
            for kind in [Kind::Directory, Kind::Read, Kind::GetPerms] {
                seen.push(self.tell(kind, format!("{node}\0").as_bytes()));
            }
        }
        for domid in [5, 6, 7] {
            seen.push(self.tell(Kind::IsDomainIntroduced, format!("{domid}\0").as_bytes()));
        }
        seen
    }
}

fn request(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        kind: kind.number(),
        req_id: ReqId(1),
        tx_id: 0,
        len: u32::try_from(payload.len()).unwrap(),
    };
    [&header.encode(), payload].concat()
}
