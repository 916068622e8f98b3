//! The store alone with domain 0 and guests, whose requests run one after the other.

use xenstore::wire::{HEADER_SIZE, Header, Kind};
use xenstore::{
    Action, ConnId, DomId, Identity, Instant, Outcome, Progress, ReqId, Server, Settings,
    StorageKind, UniqueId,
};

/// The store and its connections, by domid.
pub(crate) struct Store {
    pub(crate) server: Server,
    pub(crate) conns: Vec<ConnId>,
}

impl Store {
    /// A store with domain 0 and so many guests, each with a home of its own.
    pub(crate) fn new(guests: u16) -> Self {
        Self::kept(StorageKind::default(), guests)
    }

    /// The same, with its nodes kept in this way.
    pub(crate) fn kept(storage: StorageKind, guests: u16) -> Self {
        Self::with_settings(guests, settings(storage))
    }

    pub(crate) fn with_settings(guests: u16, settings: Settings) -> Self {
        let mut store = Self {
            server: Server::new(settings),
            conns: Vec::new(),
        };
        for domain in 0..=guests {
            let identity = identity(domain);
            let conn = store.server.open_domain(identity);
            store.conns.push(conn);
            if domain > 0 {
                store.ok(0, Kind::Mkdir, &format!("/local/domain/{domain}\0"));
                store.ok(
                    0,
                    Kind::SetPerms,
                    &format!("/local/domain/{domain}\0n{domain}\0"),
                );
            }
        }
        store
    }

    /// Sends a request and lets it run; its answer waits.
    pub(crate) fn send(&mut self, domain: u16, kind: Kind, tx_id: u32, payload: &[u8]) {
        let header = Header {
            kind: kind.number(),
            req_id: ReqId(1),
            tx_id,
            len: u32::try_from(payload.len()).unwrap(),
        };
        let conn = self.conns[usize::from(domain)];
        let mut bytes = &[&header.encode()[..], payload].concat()[..];
        while !bytes.is_empty() {
            let taken = self.server.handle_bytes(conn, bytes).unwrap();
            assert!(taken > 0);
            bytes = &bytes[taken..];
        }
        loop {
            let mut progress = self.server.run(Instant(0), 64);
            while let Some(action) = self.server.poll_action() {
                progress = Progress::More;
                let outcome = |domid: DomId| {
                    let known = usize::from(domid.get()) < self.conns.len();
                    Outcome::Identified(known.then(|| identity(domid.get())))
                };
                if let Action::Identify { ticket, domid } = action {
                    let outcome = outcome(domid);
                    self.server.handle_completed(ticket, outcome);
                }
            }
            if progress == Progress::Idle {
                return;
            }
        }
    }

    /// What waits for a domain.
    pub(crate) fn read(&mut self, domain: u16) -> Vec<u8> {
        let conn = self.conns[usize::from(domain)];
        let mut got = Vec::new();
        loop {
            let bytes = self.server.poll_output(conn);
            if bytes.is_empty() {
                while self.server.poll_ready().is_some() {}
                return got;
            }
            got.extend_from_slice(bytes);
            let length = bytes.len();
            self.server.consume_output(conn, length);
        }
    }

    /// The payload of the answer to a request.
    pub(crate) fn ask(&mut self, domain: u16, kind: Kind, tx_id: u32, payload: &[u8]) -> Vec<u8> {
        self.send(domain, kind, tx_id, payload);
        let mut got = &self.read(domain)[..];
        let mut answer = Vec::new();
        while let Some(header) = got.first_chunk::<HEADER_SIZE>() {
            let header = Header::decode(*header);
            let end = HEADER_SIZE + usize::try_from(header.len).unwrap();
            if header.kind != Kind::WatchEvent.number() {
                answer = got[HEADER_SIZE..end].to_vec();
            }
            got = &got[end..];
        }
        answer
    }

    pub(crate) fn ok(&mut self, domain: u16, kind: Kind, payload: &str) {
        let answer = self.ask(domain, kind, 0, payload.as_bytes());
        assert_eq!(answer, b"OK\0", "{kind:?} {:?}", payload.get(..80));
    }

    pub(crate) fn begin(&mut self, domain: u16) -> u32 {
        self.begin_inside(domain, 0)
    }

    pub(crate) fn begin_inside(&mut self, domain: u16, outer: u32) -> u32 {
        let id = self.ask(domain, Kind::TransactionStart, outer, b"\0");
        let digits = String::from_utf8(id).unwrap();
        digits.trim_end_matches('\0').parse().unwrap()
    }
}

pub(crate) fn settings(storage: StorageKind) -> Settings {
    Settings {
        storage,
        ..Settings::new(DomId::new(0), DomId::new(31))
    }
}

/// The first domain that has a domid.
pub(crate) fn identity(domain: u16) -> Identity {
    Identity {
        domid: DomId::new(domain),
        unique: UniqueId(u128::from(domain) + 1),
    }
}
