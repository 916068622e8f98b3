//! What a stream says, byte by byte, and what comes of it.

mod damage;
mod foreign;
mod layout;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Format, HostLink, Records, Restored};
use crate::ids::{ConnId, DomId, Identity, ReqId, UniqueId};
use crate::server::{Server, Settings};
use crate::storage::AnyStorage;
use crate::time::Instant;
use crate::wire::{HEADER_SIZE, Header, Kind};

fn settings() -> Settings {
    Settings::new(DomId::new(0), DomId::new(31))
}

/// Domain 0 and three guests with a little of everything: nodes, permissions of the dead and of nobody, watches, a target, quotas, half a
/// request, half a reply, events of others' making, and transactions.
struct Sample {
    server: Server,
    dom0: ConnId,
    guest: ConnId,
    stub: ConnId,
}

impl Sample {
    fn new() -> Self {
        let mut server = Server::new(settings());
        server.now = Instant(1_000_000_000);
        let mut open = |number: u16| {
            server.open_domain(Identity {
                domid: DomId::new(number),
                unique: UniqueId(u128::from(number) + 100),
            })
        };
        let (dom0, guest, stub) = (open(0), open(5), open(7));
        let mut sample = Self {
            server,
            dom0,
            guest,
            stub,
        };
        sample.fill();
        sample
    }

    fn fill(&mut self) {
        let (dom0, guest, stub) = (self.dom0, self.guest, self.stub);
        let doomed = Identity {
            domid: DomId::new(9),
            unique: UniqueId(u128::MAX),
        };
        let doomed_conn = self.server.open_domain(doomed);
        self.ask(doomed_conn, Kind::Watch, b"@releaseDomain\0t\0");
        for (path, value) in [("/a/b", "value"), ("/a/c", ""), ("/local/domain/5", "")] {
            self.ask(dom0, Kind::Write, format!("{path}\0{value}").as_bytes());
        }
        self.ask(dom0, Kind::SetPerms, b"/a/c\0n0\0r5\0b9\0w32757\0");
        self.ask(dom0, Kind::SetPerms, b"/local/domain/5\0n5\0");
        self.ask(dom0, Kind::SetTarget, b"7\x005\0");
        self.ask(dom0, Kind::SetQuota, b"5\0nodes\x00500\0");
        self.ask(dom0, Kind::SetQuota, b"watches\x0099\0");
        let dead = [crate::server::DomainEvent::Dead(doomed)];
        self.server.handle_domains(&dead, u32::MAX, false);
        self.ask(guest, Kind::Watch, b"data\0rel\0");
        self.ask(guest, Kind::Watch, b"/a\0deep\x001\0");
        self.ask(guest, Kind::Watch, b"@releaseDomain\0@\0");
        self.ask(guest, Kind::TransactionStart, b"\0");
        self.ask_in(1, guest, Kind::Write, b"data/x\0in a transaction");
        self.ask_in(1, guest, Kind::Read, b"/nope\0");
        self.ask(dom0, Kind::Write, b"/a/later\0x");
        self.ask(stub, Kind::TransactionStart, b"\0");
        self.ask_in(1, stub, Kind::Rm, b"/local/domain/5\0");
        // From here on nobody reads what comes.
        self.tell(stub, 0, Kind::Write, b"/local/domain/5/data\0for the guest");
        let request = message(Kind::Read, 0, b"/a/b\0");
        self.server.handle_bytes(guest, &request[..18]).unwrap();
        let sent = self.server.poll_output(stub).len().min(5);
        self.server.consume_output(stub, sent);
    }

    /// Sends a request and lets it run.
    fn tell(&mut self, conn: ConnId, tx: u32, kind: Kind, payload: &[u8]) {
        let request = message(kind, tx, payload);
        self.server.handle_bytes(conn, &request).unwrap();
        let now = self.server.now;
        self.server.run(now, u32::MAX);
        while let Some(action) = self.server.poll_action() {
            if let crate::server::Action::Identify { ticket, .. } = action {
                let nobody = crate::server::Outcome::Identified(None);
                self.server.handle_completed(ticket, nobody);
                self.server.run(now, u32::MAX);
            }
        }
    }

    /// The same, and all that waits is read.
    fn ask(&mut self, conn: ConnId, kind: Kind, payload: &[u8]) -> Vec<u8> {
        self.ask_in(0, conn, kind, payload)
    }

    fn ask_in(&mut self, tx: u32, conn: ConnId, kind: Kind, payload: &[u8]) -> Vec<u8> {
        self.tell(conn, tx, kind, payload);
        drain(&mut self.server, conn)
    }

    fn export(&self, format: Format) -> Vec<u8> {
        let mut stream = Vec::new();
        let links = |conn: ConnId| HostLink {
            port: Some(u32::try_from(conn.number()).unwrap() + 20),
            ..HostLink::default()
        };
        self.server
            .export(format, self.server.now, &links, &mut stream);
        stream
    }
}

fn message(kind: Kind, tx_id: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        kind: kind.number(),
        req_id: ReqId(1),
        tx_id,
        len: u32::try_from(payload.len()).unwrap(),
    };
    [&header.encode(), payload].concat()
}

fn drain(server: &mut Server, conn: ConnId) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let next = server.poll_output(conn).to_vec();
        if next.is_empty() {
            return all;
        }
        all.extend_from_slice(&next);
        server.consume_output(conn, next.len());
    }
}

fn import(stream: &[u8]) -> Restored {
    Server::import(stream, settings(), Instant(1_000_000_000)).unwrap()
}

fn lines(stream: &[u8]) -> Vec<String> {
    let records = Records::new(stream).unwrap();
    records
        .map(|record| format!("{}", record.unwrap()))
        .collect()
}

/// A record of any type.
fn record(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut record = [
        kind.to_le_bytes(),
        u32::try_from(body.len()).unwrap().to_le_bytes(),
    ]
    .concat();
    record.extend_from_slice(body);
    record
}

/// A stream of these records.
fn stream(version: u32, records: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = b"xenstore".to_vec();
    stream.extend_from_slice(&version.to_be_bytes());
    stream.extend_from_slice(&[0; 4]);
    stream.extend(records.concat());
    stream
}

fn end() -> Vec<u8> {
    record(0, &[])
}

/// A node of domain 0 without a value.
fn node(path: &str) -> Vec<u8> {
    let mut body = [0_u8; 16].to_vec();
    body[8] = u8::try_from(path.len() + 1).unwrap();
    body[14] = 1;
    body.extend_from_slice(b"n\0\0\0");
    body.extend_from_slice(path.as_bytes());
    body.push(0);
    body.resize(body.len().next_multiple_of(8), 0);
    record(5, &body)
}

/// The ring of a domain.
fn ring(id: u8, domid: u8) -> Vec<u8> {
    let mut body = [0_u8; 24].to_vec();
    (body[0], body[8], body[12]) = (id, domid, 3);
    (body[10], body[11]) = (0xf4, 0x7f);
    record(2, &body)
}

#[test]
fn what_is_written_is_read() {
    let sample = Sample::new();
    let stream = sample.export(Format::Own);
    let restored = import(&stream);
    let again = Sample {
        server: restored.server,
        ..sample
    };
    assert_eq!(lines(&stream), lines(&again.export(Format::Own)));
    assert_eq!(stream, again.export(Format::Own));
    assert_eq!(again.server.miscounted(), []);
    let numbers = restored.links.iter().map(|link| link.host.port.unwrap());
    let numbers: Vec<_> = numbers.collect();
    assert_eq!(numbers, [20, 21, 22]);
}

/// Nothing is told to anybody by the import itself.
#[test]
fn an_import_makes_no_noise() {
    let sample = Sample::new();
    let mut restored = import(&sample.export(Format::Own));
    for link in &restored.links {
        let previous = [sample.dom0, sample.guest, sample.stub]
            .into_iter()
            .find(|conn| conn.number() == link.conn.number())
            .unwrap();
        let expected = sample.server.poll_output(previous).to_vec();
        assert_eq!(restored.server.poll_output(link.conn), expected);
    }
    assert_eq!(restored.server.poll_action(), None);
    assert_eq!(restored.server.poll_timeout(), sample.server.poll_timeout());
}

/// What the writer needs is known beforehand.
#[test]
fn the_size_is_that_of_the_stream() {
    let sample = Sample::new();
    for format in [Format::V1, Format::V2, Format::Own] {
        let mut size = super::Size::default();
        let links = |_: ConnId| HostLink::default();
        sample.server.export(format, Instant(0), &links, &mut size);
        let stream = sample.export(format);
        assert_eq!(usize::try_from(size.0).unwrap(), stream.len());
        assert_eq!(stream.len() % 8, 0);
        assert!(stream.len() > HEADER_SIZE);
    }
}
