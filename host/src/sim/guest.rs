//! One domain's end: what it has asked for, what it is owed, and its ring.

use std::collections::VecDeque;

use kernel::fake::{FakePage, FakeXen};
use kernel::ring::RING_BYTES;
use kernel::xen::Page as _;
use xenstore::{DomId, EvtchnPort, Identity};

use super::script::Draft;
use super::swarm::Manner;
use crate::guest_ring::GuestRing;

const HEADER: usize = 16;
const WATCH_EVENT: u32 = 15;
const ERROR: u32 = 16;
/// Where the part of a page begins that nobody but its owner has anything to do with.
const OWN_PART: usize = 2080;
const PATTERN: u32 = 0x5eed_5eed;

/// A request as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) kind: u32,
    pub(crate) req_id: u32,
    pub(crate) tx_id: u32,
    pub(crate) payload: Vec<u8>,
}

/// A domain.
pub(crate) struct Guest {
    pub(crate) identity: Identity,
    pub(crate) port: EvtchnPort,
    pub(crate) manner: Manner,
    page: FakePage,
    ring: GuestRing,
    /// Bytes that are not in the ring yet.
    outbox: VecDeque<u8>,
    /// Requests that were not served yet.
    unserved: VecDeque<Sent>,
    /// Type and ids of the requests without a reply.
    awaited: VecDeque<(u32, u32, u32)>,
    /// Bytes that the store sent and that were not read yet.
    coming: VecDeque<u8>,
    inbox: Vec<u8>,
    /// What it sends is no stream of whole requests any more.
    pub(crate) garbled: bool,
    pub(crate) reading: bool,
    requests: u32,
}

impl Guest {
    pub(crate) fn new(xen: &FakeXen, identity: Identity, manner: Manner) -> Self {
        let port = xen.allocate_port(identity.domid);
        let page = xen.page(identity.domid);
        for offset in (OWN_PART..4096).step_by(4) {
            page.store(offset, PATTERN);
        }
        Self {
            identity,
            port,
            manner,
            ring: GuestRing::new(page.clone(), port.0),
            page,
            outbox: VecDeque::new(),
            unserved: VecDeque::new(),
            awaited: VecDeque::new(),
            coming: VecDeque::new(),
            inbox: Vec::new(),
            garbled: false,
            reading: true,
            requests: 0,
        }
    }

    pub(crate) fn domid(&self) -> DomId {
        self.identity.domid
    }

    pub(crate) fn page(&self) -> &FakePage {
        &self.page
    }

    /// Requests without a reply.
    pub(crate) fn waiting(&self) -> usize {
        self.awaited.len()
    }

    /// The oldest request without a reply.
    pub(crate) fn oldest(&self) -> Option<(u32, u32, u32)> {
        self.awaited.front().copied()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.outbox.is_empty() && self.awaited.is_empty() && self.coming.is_empty()
    }

    /// Whether what it gets can be judged: a hostile guest does not know itself what is in its ring.
    fn is_judged(&self) -> bool {
        self.manner != Manner::Hostile && !self.garbled
    }

    /// Has a request ready to be put into the ring.
    pub(crate) fn ask(&mut self, tx_id: u32, (kind, payload): Draft) {
        self.requests = self.requests.wrapping_add(1);
        let req_id = self.requests;
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        self.say(&[kind, req_id, tx_id, len]);
        self.outbox.extend(&payload);
        self.awaited.push_back((kind, req_id, tx_id));
        self.unserved.push_back(Sent {
            kind,
            req_id,
            tx_id,
            payload,
        });
    }

    /// Has a header ready.
    pub(crate) fn say(&mut self, words: &[u32; 4]) {
        self.outbox
            .extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }

    /// Has bytes ready that are no request.
    pub(crate) fn babble(&mut self, bytes: &[u8]) {
        self.garbled = true;
        self.outbox.extend(bytes);
    }

    /// Puts and takes what can be; whether anything moved. The peer is told, unless this domain does not.
    pub(crate) fn exchange(&mut self, xen: &FakeXen, most: usize) -> Result<bool, String> {
        if !self.ring.is_connected() {
            return Ok(false);
        }
        let put = self.put(most);
        let taken = if self.reading { self.take()? } else { 0 };
        if put + taken > 0 && self.manner != Manner::Lazy {
            self.notify(xen);
        }
        Ok(put + taken > 0)
    }

    pub(crate) fn notify(&self, xen: &FakeXen) {
        xen.send(self.domid(), self.port);
    }

    /// Asks for a new connection through the ring.
    pub(crate) fn reconnect(&mut self, xen: &FakeXen) {
        self.ring.reconnect();
        self.notify(xen);
    }

    /// The server has begun a connection with nothing in it.
    pub(crate) fn begin_anew(&mut self) {
        self.ring.renew();
        self.outbox.clear();
        self.unserved.clear();
        self.awaited.clear();
        self.coming.clear();
        self.inbox.clear();
        self.garbled = false;
    }

    /// The server has stopped the connection: nothing that it has sent, or not, counts any more.
    pub(crate) fn stop(&mut self) {
        self.outbox.clear();
        self.unserved.clear();
        self.awaited.clear();
        self.coming.clear();
        self.inbox.clear();
        self.garbled = true;
    }

    /// The store has served a request of this domain: it must be the one that was next.
    pub(crate) fn served(&mut self, request: &Sent) -> Result<(), String> {
        if !self.is_judged() {
            return Ok(());
        }
        match self.unserved.pop_front() {
            Some(next) if next == *request => Ok(()),
            next => Err(format!("served is {request:?}, sent was {next:?}")),
        }
    }

    /// The store has sent bytes to this domain.
    pub(crate) fn is_sent(&mut self, bytes: &[u8]) {
        if self.is_judged() {
            self.coming.extend(bytes);
        }
    }

    /// Whether the part of the page that is nobody else's is as it was.
    pub(crate) fn check_page(&self) -> Result<(), String> {
        let mut words = (OWN_PART..4096).step_by(4);
        match words.find(|offset| self.page.load(*offset) != PATTERN) {
            Some(offset) => Err(format!("{}: page was written at {offset}", self.name())),
            None => Ok(()),
        }
    }

    pub(crate) fn name(&self) -> String {
        format!("d{} ({:?})", self.identity.domid, self.manner)
    }

    fn put(&mut self, most: usize) -> usize {
        let count = self.ring.room().min(self.outbox.len()).min(most);
        let bytes: Vec<u8> = self.outbox.drain(..count).collect();
        if count > 0 {
            self.ring.send(&bytes);
        }
        count
    }

    fn take(&mut self) -> Result<usize, String> {
        let mut buffer = [0; RING_BYTES];
        let bytes = self.ring.peek(&mut buffer).to_vec();
        self.ring.consume(bytes.len());
        if !self.is_judged() {
            return Ok(bytes.len());
        }
        for byte in &bytes {
            if self.coming.pop_front() != Some(*byte) {
                return Err(format!(
                    "{}: its ring brings other bytes than were sent",
                    self.name()
                ));
            }
        }
        self.inbox.extend(&bytes);
        while let Some(message) = self.next_message() {
            self.judge(message)?;
        }
        Ok(bytes.len())
    }

    fn next_message(&mut self) -> Option<[u32; 3]> {
        let (words, _) = self.inbox.first_chunk::<HEADER>()?.as_chunks::<4>();
        let words: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let [kind, req_id, tx_id, len] = words.try_into().ok()?;
        let end = HEADER + usize::try_from(len).ok()?;
        if self.inbox.len() < end {
            return None;
        }
        self.inbox.drain(..end);
        Some([kind, req_id, tx_id])
    }

    /// Each reply is the one to the oldest request without one.
    fn judge(&mut self, [kind, req_id, tx_id]: [u32; 3]) -> Result<(), String> {
        if kind == WATCH_EVENT && (req_id, tx_id) == (0, 0) {
            return Ok(());
        }
        match self.awaited.pop_front() {
            Some(asked)
                if (asked.1, asked.2) == (req_id, tx_id) && (kind == asked.0 || kind == ERROR) =>
            {
                Ok(())
            }
            asked => Err(format!(
                "{}: {asked:?} was answered with {:?}",
                self.name(),
                (kind, req_id, tx_id)
            )),
        }
    }
}
