//! One connection: bytes become requests, one at a time, and what the client has open is kept.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::acl::Incarnation;
use crate::ids::{DomId, Ticket, TxId};
use crate::output::Output;
use crate::time::Instant;
use crate::transaction::Transaction;
use crate::watch::WatchId;
use crate::wire::{HEADER_SIZE, Header, PAYLOAD_MAX};

/// A client broke the framing: its connection is stopped, its domain is not dead (hostility.md R5, R15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolFault {
    /// A header announced more than 4096 bytes.
    Oversize {
        /// What it announced.
        len: u32,
    },
}

/// A whole request.
pub(crate) struct Request {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
}

/// A connection's life, from its opening until its client is gone or it starts anew.
pub(crate) struct Connection {
    pub(crate) incarnation: Incarnation,
    /// The domain in whose home relative paths lie.
    pub(crate) home: DomId,
    pub(crate) input: Input,
    pub(crate) output: Output,
    pub(crate) transactions: BTreeMap<TxId, Transaction>,
    /// The id given last, if any.
    pub(crate) last_transaction: Option<TxId>,
    /// Requests of which messages are still on their way, with how many.
    pub(crate) outstanding: BTreeMap<u64, u32>,
    /// Bytes of those messages, wherever they wait.
    pub(crate) caused_bytes: u64,
    /// Counts the requests.
    pub(crate) requests: u64,
    /// The question that the present request waits for.
    pub(crate) waiting: Option<Ticket>,
    /// Domids that the host was asked for, for the present request, and knows no domain of.
    pub(crate) absent: Vec<DomId>,
    /// Watches of which events had no room; each is told once more when there is.
    pub(crate) lost: BTreeSet<WatchId>,
    pub(crate) watches: u64,
    pub(crate) watch_bytes: u64,
    /// Nothing is read or written any more, until it starts anew.
    pub(crate) stopped: bool,
    /// When to look whether its oldest event is too old.
    pub(crate) deadline: Option<Instant>,
    /// It stands in the queue of those with a request to run.
    pub(crate) queued: bool,
    /// It stands in the queue of those that the host must look at.
    pub(crate) ready: bool,
}

impl Connection {
    pub(crate) fn new(incarnation: Incarnation, home: DomId) -> Self {
        Self {
            incarnation,
            home,
            input: Input::default(),
            output: Output::default(),
            transactions: BTreeMap::new(),
            last_transaction: None,
            outstanding: BTreeMap::new(),
            caused_bytes: 0,
            requests: 0,
            waiting: None,
            absent: Vec::new(),
            lost: BTreeSet::new(),
            watches: 0,
            watch_bytes: 0,
            stopped: false,
            deadline: None,
            queued: false,
            ready: false,
        }
    }

    /// Bytes that it costs its domain.
    pub(crate) fn footprint(&self) -> u64 {
        self.transactions
            .values()
            .map(Transaction::bytes)
            .fold(self.output.bytes(), u64::saturating_add)
            .saturating_add(self.watch_bytes)
            .saturating_add(self.caused_bytes)
    }

    /// Notes a message of a request that is on its way.
    pub(crate) fn owe(&mut self, request: u64, bytes: u64) {
        let messages = self.outstanding.entry(request).or_default();
        *messages = messages.saturating_add(1);
        self.caused_bytes = self.caused_bytes.saturating_add(bytes);
    }

    /// Notes that such a message is gone. One of an earlier life of the connection is no matter.
    pub(crate) fn repay(&mut self, request: u64, bytes: u64) {
        if let Some(messages) = self.outstanding.get_mut(&request) {
            self.caused_bytes = self.caused_bytes.saturating_sub(bytes);
            *messages = messages.saturating_sub(1);
            if *messages == 0 {
                self.outstanding.remove(&request);
            }
        }
    }

    /// Keeps a new transaction, under the next id that is not in use.
    pub(crate) fn add_transaction(&mut self, transaction: Transaction) -> Option<TxId> {
        let mut id = self
            .last_transaction
            .map_or_else(|| TxId::new(1), |last| Some(last.next()))?;
        while self.transactions.contains_key(&id) {
            id = id.next();
        }
        self.last_transaction = Some(id);
        self.transactions.insert(id, transaction);
        Some(id)
    }
}

/// What has arrived of the present request.
#[derive(Default)]
pub(crate) struct Input {
    header: [u8; HEADER_SIZE],
    /// Bytes of the header that are there.
    filled: usize,
    payload: Vec<u8>,
}

impl Input {
    /// Takes bytes up to the end of the request, and says how many; none while a whole request waits to run.
    ///
    /// # Errors
    /// The announced length, as soon as the header is there and before anything is reserved for it.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<usize, ProtocolFault> {
        let mut taken = 0_usize;
        for (place, byte) in self.header.iter_mut().skip(self.filled).zip(bytes) {
            *place = *byte;
            taken = taken.saturating_add(1);
        }
        self.filled = self.filled.saturating_add(taken);
        if self.filled < HEADER_SIZE {
            return Ok(taken);
        }
        let missing = self.missing()?;
        if self.payload.is_empty() {
            self.payload.reserve_exact(missing);
        }
        let body = bytes.get(taken..).unwrap_or_default();
        let body = body.get(..missing).unwrap_or(body);
        self.payload.extend_from_slice(body);
        Ok(taken.saturating_add(body.len()))
    }

    /// Whether a request is whole. An empty payload is whole with its header.
    pub(crate) fn is_whole(&self) -> bool {
        self.filled == HEADER_SIZE && self.missing() == Ok(0)
    }

    /// Takes the request out, if it is whole.
    pub(crate) fn request(&mut self) -> Option<Request> {
        if !self.is_whole() {
            return None;
        }
        self.filled = 0;
        Some(Request {
            header: Header::decode(self.header),
            payload: core::mem::take(&mut self.payload),
        })
    }

    /// Puts a request back that could not be answered yet.
    pub(crate) fn put_back(&mut self, request: Request) {
        self.header = request.header.encode();
        self.filled = HEADER_SIZE;
        self.payload = request.payload;
    }

    fn missing(&self) -> Result<usize, ProtocolFault> {
        let len = Header::decode(self.header).len;
        if len > PAYLOAD_MAX {
            return Err(ProtocolFault::Oversize { len });
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        Ok(len.saturating_sub(self.payload.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Domains;
    use crate::features::Features;
    use crate::tree::Tree;
    use proptest::prelude::*;

    fn message(kind: u32, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap();
        let header = Header {
            kind,
            len,
            ..Header::default()
        };
        [&header.encode()[..], payload].concat()
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_requests(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..6),
            chunks in prop::collection::vec(1..40_usize, 1..100),
        ) {
            let stream: Vec<u8> = payloads.iter().flat_map(|payload| message(2, payload)).collect();
            let mut input = Input::default();
            let mut got = Vec::new();
            let mut rest = &stream[..];
            let mut chunks = chunks.iter().cycle();
            while !rest.is_empty() {
                let chunk = rest.len().min(*chunks.next().unwrap());
                let taken = input.take(&rest[..chunk]).unwrap();
                rest = &rest[taken..];
                if let Some(request) = input.request() {
                    got.push(request.payload);
                }
            }
            prop_assert_eq!(got, payloads);
        }
    }

    #[test]
    fn a_whole_request_takes_no_more_bytes() {
        let mut input = Input::default();
        let bytes = [message(2, b""), message(2, b"x")].concat();
        assert_eq!(input.take(&bytes), Ok(HEADER_SIZE));
        assert!(input.is_whole());
        assert_eq!(input.take(&bytes[HEADER_SIZE..]), Ok(0));
    }

    #[test]
    fn a_length_over_the_limit_is_a_fault_at_once() {
        for len in [4097, 1 << 30, (1 << 31) - 1, 1 << 31, u32::MAX] {
            let header = Header {
                len,
                ..Header::default()
            };
            assert_eq!(
                Input::default().take(&header.encode()),
                Err(ProtocolFault::Oversize { len })
            );
        }
        let header = Header {
            len: 4096,
            ..Header::default()
        };
        assert_eq!(Input::default().take(&header.encode()), Ok(HEADER_SIZE));
    }

    #[test]
    fn transaction_ids_are_never_zero_nor_open() {
        let owner = Incarnation {
            domid: DomId::new(1),
            number: 1,
        };
        let (domains, _) = Domains::new(owner.domid, Features::ALL);
        let mut connection = Connection::new(owner, owner.domid);
        let add = |connection: &mut Connection| {
            connection.add_transaction(Transaction::start(&Tree::new(owner), &domains))
        };
        assert_eq!(add(&mut connection), TxId::new(1));
        connection.last_transaction = TxId::new(u32::MAX - 1);
        assert_eq!(add(&mut connection), TxId::new(u32::MAX));
        assert_eq!(add(&mut connection), TxId::new(2));
    }
}
