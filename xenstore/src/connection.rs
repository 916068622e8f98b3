//! One connection: bytes become requests, one at a time, and what the client has open is kept.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::mem;

use slotmap::{DefaultKey, SlotMap};

use crate::acl::Incarnation;
use crate::bugs;
use crate::conflict::Hold;
use crate::counters::Counters;
use crate::ids::{ConnId, DomId, Ticket, TxId};
use crate::layer::Gates;
use crate::output::{Debt, Output};
use crate::run::cost_of;
use crate::storage::Storage;
use crate::time::Instant;
use crate::transaction::Transactions;
use crate::turns::Served;
use crate::watch::WatchId;
use crate::wire::{HEADER_SIZE, Header, Kind, PAYLOAD_MAX};

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
pub(crate) struct Connection<S: Storage> {
    pub(crate) incarnation: Incarnation,
    /// Its domain may do everything.
    pub(crate) privileged: bool,
    /// The domain in whose home relative paths lie.
    pub(crate) home: DomId,
    /// Its domain's.
    pub(crate) counters: Rc<Counters>,
    pub(crate) input: Input,
    /// Bytes of further requests, which another instance of the server had read: they come before all others.
    pub(crate) backlog: VecDeque<u8>,
    pub(crate) output: Output,
    pub(crate) transactions: Transactions<S>,
    /// Requests of which messages are still on their way, with how many.
    pub(crate) outstanding: BTreeMap<u64, u32>,
    /// Bytes of those messages, wherever they wait.
    pub(crate) caused_bytes: u64,
    /// Counts the requests.
    pub(crate) requests: u64,
    /// The last request that was counted as one that must wait for the quota `outstanding`.
    pub(crate) late: u64,
    /// The question that the present request waits for.
    pub(crate) waiting: Option<Ticket>,
    /// Domids that the host was asked for, for the present request, and knows no domain of.
    pub(crate) absent: Vec<DomId>,
    /// Watches of which events had no room; each is told once more when there is.
    pub(crate) lost: BTreeSet<WatchId>,
    pub(crate) watches: u64,
    pub(crate) watch_bytes: u64,
    /// Its requests wait, until its domain has credit again or as a layer says.
    pub(crate) held: Option<Hold>,
    /// How far its present request has come among the layers.
    pub(crate) gates: Gates,
    /// Nothing is read or written any more, until it starts anew.
    pub(crate) stopped: bool,
    /// How often the server crashed while it worked for this connection.
    pub(crate) crashes: u8,
    /// When to look whether its oldest event is too old.
    pub(crate) deadline: Option<Instant>,
    /// Up to where it has had its share.
    pub(crate) served: Served,
    /// It stands in the queue of those with a request to run.
    pub(crate) queued: bool,
    /// It stands in the queue of those that the host must look at.
    pub(crate) ready: bool,
}

/// The connections that there are, found in a few steps however many.
pub(crate) struct Connections<S: Storage> {
    places: SlotMap<DefaultKey, Place<S>>,
    /// The number of the next one.
    pub(crate) next: u64,
    /// Those that may weigh something else than what was found last, each once.
    changed: Vec<ConnId>,
    /// What all others weigh, and these weighed last.
    weight: u64,
}

/// A place for a connection; an empty one is promised to a connection that the host is making.
struct Place<S: Storage> {
    number: u64,
    taken_by: Option<Box<Connection<S>>>,
    /// What the connection weighed when that was looked at last, and whether it is to be looked at again.
    weight: u64,
    is_changed: bool,
}

impl<S: Storage> Default for Connections<S> {
    fn default() -> Self {
        Self {
            places: SlotMap::new(),
            next: 0,
            changed: Vec::new(),
            weight: 0,
        }
    }
}

impl<S: Storage> Connections<S> {
    pub(crate) fn get(&self, conn: ConnId) -> Option<&Connection<S>> {
        self.places.get(conn.key)?.taken_by.as_deref()
    }

    pub(crate) fn get_mut(&mut self, conn: ConnId) -> Option<&mut Connection<S>> {
        let place = self.places.get_mut(conn.key)?;
        if !mem::replace(&mut place.is_changed, true) {
            self.changed.push(conn);
        }
        place.taken_by.as_deref_mut()
    }

    /// Lets every connection be weighed anew.
    pub(crate) fn note_all(&mut self) {
        for (key, place) in &mut self.places {
            let number = place.number;
            if !mem::replace(&mut place.is_changed, true) {
                self.changed.push(ConnId { number, key });
            }
        }
    }

    /// What all connections weigh together; it must always be asked in the same way.
    pub(crate) fn weigh(&mut self, of_one: impl Fn(&Connection<S>) -> u64) -> u64 {
        while let Some(conn) = self.changed.pop() {
            if let Some(place) = self.places.get_mut(conn.key) {
                let weight = place.taken_by.as_deref().map_or(0, &of_one);
                let before = mem::replace(&mut place.weight, weight);
                place.is_changed = false;
                self.weight = self.weight.saturating_sub(before).saturating_add(weight);
            }
        }
        self.weight
    }

    /// Promises a place to a connection to come.
    pub(crate) fn promise(&mut self) -> ConnId {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.promise_as(number)
    }

    /// As [`Connections::promise`], with a number that a connection had in a state stream.
    pub(crate) fn promise_as(&mut self, number: u64) -> ConnId {
        let key = self.places.insert(Place {
            number,
            taken_by: None,
            weight: 0,
            is_changed: false,
        });
        ConnId { number, key }
    }

    /// Puts a connection into the place that was promised to it.
    pub(crate) fn open(&mut self, conn: ConnId, connection: Connection<S>) {
        if let Some(place) = self.places.get_mut(conn.key) {
            place.taken_by = Some(Box::new(connection));
        }
        self.get_mut(conn);
    }

    /// Takes a connection, or a promise, back.
    pub(crate) fn remove(&mut self, conn: ConnId) -> Option<Box<Connection<S>>> {
        let place = self.places.remove(conn.key)?;
        if place.is_changed {
            self.changed.retain(|changed| *changed != conn);
        }
        self.weight = self.weight.saturating_sub(place.weight);
        place.taken_by
    }

    /// Each with its id, in no order that means anything, without promises.
    pub(crate) fn iter_with_ids(&self) -> impl Iterator<Item = (ConnId, &Connection<S>)> {
        self.places.iter().filter_map(|(key, place)| {
            let number = place.number;
            Some((ConnId { number, key }, place.taken_by.as_deref()?))
        })
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Connection<S>> {
        self.places
            .values_mut()
            .filter_map(|place| place.taken_by.as_deref_mut())
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = ConnId> {
        self.places.iter().map(|(key, place)| {
            let number = place.number;
            ConnId { number, key }
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Connection<S>> {
        self.iter_with_ids().map(|(_, connection)| connection)
    }
}

impl<S: Storage> Connection<S> {
    pub(crate) fn new(
        incarnation: Incarnation,
        privileged: bool,
        home: DomId,
        counters: Rc<Counters>,
    ) -> Self {
        Self {
            incarnation,
            privileged,
            home,
            counters,
            input: Input::default(),
            backlog: VecDeque::new(),
            output: Output::default(),
            transactions: Transactions::default(),
            outstanding: BTreeMap::new(),
            caused_bytes: 0,
            requests: 0,
            late: 0,
            waiting: None,
            absent: Vec::new(),
            lost: BTreeSet::new(),
            watches: 0,
            watch_bytes: 0,
            held: None,
            gates: Gates::default(),
            stopped: false,
            crashes: 0,
            deadline: None,
            served: Served::default(),
            queued: false,
            ready: false,
        }
    }

    /// Bytes that it costs its domain.
    pub(crate) fn footprint(&self) -> u64 {
        self.output
            .bytes()
            .saturating_add(self.transactions.bytes())
            .saturating_add(self.watch_bytes)
            .saturating_add(self.caused_bytes)
    }

    /// What is known beforehand of the cost of the request that has arrived.
    pub(crate) fn foreseen_cost(&self) -> u64 {
        let Some((request, _)) = &self.input.request else {
            return 0;
        };
        let merged = match TxId::new(request.header.tx_id) {
            Some(id) if request.header.kind == Kind::TransactionEnd.number() => {
                self.transactions.cost_of(id)
            }
            _ => 0,
        };
        cost_of(&request.payload).saturating_add(merged)
    }

    /// Notes a message of a request that is on its way.
    pub(crate) fn owe(&mut self, request: u64, bytes: u64) {
        let messages = self.outstanding.entry(request).or_default();
        *messages = messages.saturating_add(1);
        self.caused_bytes = self.caused_bytes.saturating_add(bytes);
    }

    /// Notes that such messages are gone. Those of an earlier life of the connection are no matter.
    pub(crate) fn repay(&mut self, debt: Debt) {
        let request = debt.cause.request;
        if let Some(messages) = self.outstanding.get_mut(&request) {
            self.caused_bytes = self.caused_bytes.saturating_sub(debt.bytes);
            *messages = messages.saturating_sub(debt.messages);
            if *messages == 0 {
                self.outstanding.remove(&request);
            }
        }
    }
}

/// What has arrived of the present request.
#[derive(Default)]
pub(crate) struct Input {
    /// Bytes of a header that is not whole yet.
    begun: heapless::Vec<u8, HEADER_SIZE>,
    /// The request behind a whole header, and the bytes of it that are missing.
    request: Option<(Request, usize)>,
}

impl Input {
    /// Takes bytes up to the end of the request, and says how many; none while a whole request waits to run.
    ///
    /// # Errors
    /// The announced length, as soon as the header is there and before anything is reserved for it.
    pub(crate) fn take(&mut self, bytes: &[u8], spare: &mut Spare) -> Result<usize, ProtocolFault> {
        let mut taken = 0_usize;
        if self.request.is_none() {
            let Some(header) = self.header(bytes, &mut taken) else {
                return Ok(taken);
            };
            if is_too_long(header.len) {
                return Err(ProtocolFault::Oversize { len: header.len });
            }
            let missing = usize::try_from(header.len).unwrap_or(usize::MAX);
            let payload = spare.take(missing);
            self.request = Some((Request { header, payload }, missing));
        }
        if let Some((request, missing)) = &mut self.request {
            let body = bytes.get(taken..).unwrap_or_default();
            let body = body.get(..*missing).unwrap_or(body);
            request.payload.extend_from_slice(body);
            *missing = missing.saturating_sub(body.len());
            taken = taken.saturating_add(body.len());
        }
        Ok(taken)
    }

    /// The header, if it is whole with these bytes.
    fn header(&mut self, bytes: &[u8], taken: &mut usize) -> Option<Header> {
        if self.begun.is_empty()
            && let Some(whole) = bytes.first_chunk()
        {
            *taken = HEADER_SIZE;
            return Some(Header::decode(*whole));
        }
        for byte in bytes {
            if self.begun.push(*byte).is_err() {
                break;
            }
            *taken = taken.saturating_add(1);
        }
        let header = Header::decode(*self.begun.first_chunk()?);
        self.begun.clear();
        Some(header)
    }

    /// What has arrived: a header, whole or begun, and as much of the payload.
    pub(crate) fn arrived(&self) -> Vec<u8> {
        match &self.request {
            None => self.begun.to_vec(),
            Some((request, _)) => [&request.header.encode(), request.payload.as_slice()].concat(),
        }
    }

    /// Bytes that have arrived.
    pub(crate) fn len(&self) -> usize {
        let request = self.request.as_ref();
        let request = request.map_or(0, |(request, _)| {
            request.payload.len().saturating_add(HEADER_SIZE)
        });
        self.begun.len().saturating_add(request)
    }

    /// Whether a request is whole. An empty payload is whole with its header.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.request, Some((_, 0)))
    }

    /// The request, if it is whole.
    pub(crate) fn whole(&self) -> Option<&Request> {
        let (request, missing) = self.request.as_ref()?;
        (*missing == 0).then_some(request)
    }

    /// Takes the request out, if it is whole.
    pub(crate) fn request(&mut self) -> Option<Request> {
        let whole = self.request.take_if(|(_, missing)| *missing == 0);
        whole.map(|(request, _)| request)
    }

    /// Puts a request back that could not be answered yet.
    pub(crate) fn put_back(&mut self, request: Request) {
        self.request = Some((request, 0));
    }
}

fn is_too_long(len: u32) -> bool {
    len > PAYLOAD_MAX && !(bugs::XSA_420 && len.cast_signed().is_negative())
}

/// Memory of payloads that were dealt with, for the next ones.
#[derive(Default)]
pub(crate) struct Spare(heapless::Vec<Vec<u8>, SPARE_MAX>);

/// Pieces of such memory that are kept.
const SPARE_MAX: usize = 4;

impl Spare {
    fn take(&mut self, size: usize) -> Vec<u8> {
        let mut payload = self.0.pop().unwrap_or_default();
        payload.reserve_exact(size);
        payload
    }

    pub(crate) fn keep(&mut self, mut payload: Vec<u8>) {
        payload.clear();
        // What is too much is freed.
        drop(self.0.push(payload));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            let mut spare = Spare::default();
            let mut got = Vec::new();
            let mut rest = &stream[..];
            let mut chunks = chunks.iter().cycle();
            while !rest.is_empty() {
                let chunk = rest.len().min(*chunks.next().unwrap());
                let taken = input.take(&rest[..chunk], &mut spare).unwrap();
                rest = &rest[taken..];
                if let Some(request) = input.request() {
                    got.push(request.payload.clone());
                    spare.keep(request.payload);
                }
            }
            prop_assert_eq!(got, payloads);
        }
    }

    #[test]
    fn a_whole_request_takes_no_more_bytes() {
        let mut input = Input::default();
        let bytes = [message(2, b""), message(2, b"x")].concat();
        assert_eq!(input.take(&bytes, &mut Spare::default()), Ok(HEADER_SIZE));
        assert!(input.is_whole());
        assert_eq!(
            input.take(&bytes[HEADER_SIZE..], &mut Spare::default()),
            Ok(0)
        );
    }

    #[test]
    fn a_length_over_the_limit_is_a_fault_at_once() {
        for len in [4097, 1 << 30, (1 << 31) - 1, 1 << 31, u32::MAX] {
            let header = Header {
                len,
                ..Header::default()
            };
            assert_eq!(
                Input::default().take(&header.encode(), &mut Spare::default()),
                Err(ProtocolFault::Oversize { len })
            );
        }
        let header = Header {
            len: 4096,
            ..Header::default()
        };
        assert_eq!(
            Input::default().take(&header.encode(), &mut Spare::default()),
            Ok(HEADER_SIZE)
        );
    }
}
