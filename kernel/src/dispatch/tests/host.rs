//! A host in memory: a toolstack domain and guests that speak the protocol through the bytes of their rings.

use std::cell::RefCell;
use std::rc::Rc;

use xenstore::wire::{HEADER_SIZE, Header, Kind};
use xenstore::{ReqId, Settings};

use super::*;
use crate::fake::{FakePage, FakeXen};
use crate::hypervisor::own_heap::OwnHeap;
use crate::ring::{self, REPLIES, REQUESTS};

pub(super) const DOM0: DomId = DomId::new(0);
const STORE: DomId = DomId::new(1);

/// The machine with the dispatcher in it. Clones are the same host.
#[derive(Clone)]
pub(super) struct Host {
    pub(super) xen: FakeXen,
    dispatcher: Rc<RefCell<Dispatcher<FakeXen>>>,
    /// What the dispatcher allocates comes from here, if it is not Linux's memory.
    heap: Option<Rc<OwnHeap>>,
}

/// A domain's own end of its ring and port.
pub(super) struct Guest {
    pub(super) host: Host,
    pub(super) domid: DomId,
    pub(super) port: EvtchnPort,
    pub(super) page: FakePage,
    /// Paths and tokens of events that came, oldest first.
    pub(super) events: Vec<(String, String)>,
    pub(super) replies: Vec<Reply>,
    last_request: u32,
    received: Vec<u8>,
}

/// What a request was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) request: u32,
    pub(super) result: Result<Vec<u8>, String>,
}

/// A machine with domain 0 and its port, before the store has started.
pub(super) fn machine() -> (FakeXen, EvtchnPort) {
    let xen = FakeXen::default();
    xen.create(DOM0);
    let port = xen.allocate_port(DOM0);
    (xen, port)
}

pub(super) fn start_on(xen: &FakeXen, options: &str) -> Result<Host, StartError> {
    let dispatcher = start_dispatcher(xen, options)?;
    Ok(Host {
        xen: xen.clone(),
        dispatcher: Rc::new(RefCell::new(dispatcher)),
        heap: None,
    })
}

fn start_dispatcher(xen: &FakeXen, options: &str) -> Result<Dispatcher<FakeXen>, StartError> {
    let config = Config::parse(format!("--event 1 {options}").as_bytes()).unwrap();
    let server = Server::new(Settings::new(DOM0, STORE));
    Dispatcher::start(xen.clone(), server, DOM0, &config)
}

/// A host that serves domain 0 from the image's own heap.
pub(super) fn start_with_own_heap() -> (Host, Guest) {
    let heap = OwnHeap::take();
    let (xen, port) = machine();
    xen.measure_memory(OwnHeap::left);
    let dispatcher = heap.run(|| start_dispatcher(&xen, "")).unwrap();
    let host = Host {
        xen,
        dispatcher: Rc::new(RefCell::new(dispatcher)),
        heap: Some(Rc::new(heap)),
    };
    host.settle();
    let dom0 = Guest::new(&host, DOM0, port);
    dom0.take_signals();
    (host, dom0)
}

/// A host that serves domain 0.
pub(super) fn start() -> (Host, Guest) {
    let (xen, port) = machine();
    let host = start_on(&xen, "").unwrap();
    host.settle();
    let dom0 = Guest::new(&host, DOM0, port);
    dom0.take_signals();
    (host, dom0)
}

impl Host {
    pub(super) fn turn(&self) -> Progress {
        let mut dispatcher = self.dispatcher.borrow_mut();
        match &self.heap {
            Some(heap) => heap.run(|| dispatcher.turn()),
            None => dispatcher.turn(),
        }
    }

    /// How often the image's own heap had no memory for what was asked.
    pub(super) fn refused_memory(&self) -> usize {
        self.heap.as_ref().map_or(0, |heap| heap.refused())
    }

    /// Takes memory from the image's own heap, if that is what is used.
    pub(super) fn take_memory<T>(&self, take: impl FnOnce() -> T) -> T {
        match &self.heap {
            Some(heap) => heap.run(take),
            None => take(),
        }
    }

    /// Whether all accounts of the store are right.
    pub(super) fn audit(&self) -> Result<(), String> {
        self.dispatcher.borrow().server.audit()
    }

    /// How often rings were looked at, and what the store spent.
    pub(super) fn looks_and_cost(&self) -> [u64; 2] {
        let dispatcher = self.dispatcher.borrow();
        [dispatcher.looks(), dispatcher.server.spent()]
    }

    /// One round, and what it took: looks at rings, and what the store spent. `last` ends the turn.
    pub(super) fn round(&self, last: bool) -> (u64, u64) {
        let [looks, cost] = self.looks_and_cost();
        self.dispatcher.borrow_mut().round(&mut |_| {});
        self.dispatcher.borrow_mut().send_events(last);
        let [looks_after, cost_after] = self.looks_and_cost();
        (looks_after - looks, cost_after - cost)
    }

    /// How often a connection was found lazy.
    pub(super) fn lazy_spells(&self) -> u64 {
        self.dispatcher.borrow().lazy_spells()
    }

    pub(super) fn sleep(&self) {
        self.dispatcher.borrow_mut().sleep();
    }

    /// Lets the dispatcher work until it would sleep. That it always comes to this is part of every test.
    pub(super) fn settle(&self) {
        let turns = (0..1000).take_while(|_| self.turn() == Progress::More);
        assert!(turns.count() < 1000, "never idle");
    }

    /// Sleeps and works in turn, until so much time has passed.
    pub(super) fn pass(&self, duration: Duration) {
        let end = self.xen.time().after(duration);
        let naps = (0..10_000).take_while(|_| {
            self.sleep();
            self.settle();
            self.xen.time() < end
        });
        assert!(naps.count() < 10_000, "time stands still at a deadline");
    }
}

impl Guest {
    pub(super) fn new(host: &Host, domid: DomId, port: EvtchnPort) -> Self {
        Self {
            host: host.clone(),
            domid,
            port,
            page: host.xen.page(domid),
            events: Vec::new(),
            replies: Vec::new(),
            last_request: 0,
            received: Vec::new(),
        }
    }

    /// Puts bytes into the request ring without an event, and answers how many had room.
    pub(super) fn put(&self, bytes: &[u8]) -> usize {
        let (cons, prod) = (self.page.load(REQUESTS.cons), self.page.load(REQUESTS.prod));
        let room = RING_BYTES - prod.wrapping_sub(cons) as usize;
        let bytes = &bytes[..bytes.len().min(room)];
        let mut at = prod;
        for byte in bytes {
            self.page
                .write(REQUESTS.bytes + at as usize % RING_BYTES, &[*byte]);
            at = at.wrapping_add(1);
        }
        self.page.store(REQUESTS.prod, at);
        bytes.len()
    }

    pub(super) fn signal(&self) {
        self.host.xen.send(self.domid, self.port);
    }

    /// How many events the store sent since this was last asked.
    pub(super) fn take_signals(&self) -> u32 {
        self.host.xen.take_events(self.domid, self.port)
    }

    pub(super) fn error_word(&self) -> u32 {
        self.page.load(ring::ERROR)
    }

    /// A request as bytes, with its number.
    pub(super) fn request(&mut self, kind: Kind, payload: &[u8]) -> (u32, Vec<u8>) {
        self.last_request += 1;
        let header = Header {
            kind: kind.number(),
            req_id: ReqId(self.last_request),
            tx_id: 0,
            len: payload.len().try_into().unwrap(),
        };
        (self.last_request, [&header.encode()[..], payload].concat())
    }

    /// A small request in a transaction, and its answer; none if the store does not give one.
    pub(super) fn try_ask(
        &mut self,
        kind: Kind,
        transaction: u32,
        payload: &[u8],
    ) -> Option<Result<Vec<u8>, String>> {
        let (number, mut bytes) = self.request(kind, payload);
        bytes[8..12].copy_from_slice(&transaction.to_le_bytes());
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let put = self.put(rest);
            if put == 0 {
                return None;
            }
            rest = &rest[put..];
            self.signal();
            self.drain();
        }
        let mut replies = self.replies.iter();
        let answer = replies.position(|reply| reply.request == number)?;
        Some(self.replies.remove(answer).result)
    }

    /// Takes at most `limit` bytes of replies and events out of the ring, without an event.
    pub(super) fn take(&mut self, limit: usize) -> usize {
        let (cons, prod) = (self.page.load(REPLIES.cons), self.page.load(REPLIES.prod));
        let there = prod.wrapping_sub(cons);
        assert!(there as usize <= RING_BYTES, "the store broke the ring");
        let taken = limit.min(there as usize);
        let mut at = cons;
        for _ in 0..taken {
            let mut byte = [0];
            self.page
                .read(REPLIES.bytes + at as usize % RING_BYTES, &mut byte);
            self.received.push(byte[0]);
            at = at.wrapping_add(1);
        }
        self.page.store(REPLIES.cons, at);
        self.parse();
        taken
    }

    fn parse(&mut self) {
        while let Some(header) = self.received.first_chunk::<HEADER_SIZE>() {
            let header = Header::decode(*header);
            let end = HEADER_SIZE + header.len as usize;
            let Some(payload) = self.received.get(HEADER_SIZE..end) else {
                return;
            };
            let payload = payload.to_vec();
            self.received.drain(..end);
            let request = header.req_id.0;
            match Kind::from_number(header.kind) {
                Some(Kind::WatchEvent) => {
                    let payload = text(&payload);
                    let (path, rest) = payload.split_once('\0').expect("a path");
                    let token = rest.strip_suffix('\0').expect("a token");
                    self.events.push((path.into(), token.into()));
                }
                Some(Kind::Error) => {
                    let result = Err(text(&payload).trim_end_matches('\0').to_string());
                    self.replies.push(Reply { request, result });
                }
                _ => {
                    let result = Ok(payload);
                    self.replies.push(Reply { request, result });
                }
            }
        }
    }

    /// Reads all there is, as a well-behaved client does.
    pub(super) fn drain(&mut self) {
        let rounds = (0..1000).take_while(|_| {
            self.host.settle();
            let took = self.take(usize::MAX);
            self.signal();
            took > 0
        });
        assert!(rounds.count() < 1000, "replies without end");
    }

    /// Sends a request of any length and gets its answer.
    pub(super) fn ask(&mut self, kind: Kind, payload: &[u8]) -> Result<Vec<u8>, String> {
        let (number, bytes) = self.request(kind, payload);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let put = self.put(rest);
            assert!(put > 0, "the store takes nothing");
            rest = &rest[put..];
            self.signal();
            self.drain();
        }
        let answer = self
            .replies
            .iter()
            .position(|reply| reply.request == number);
        self.replies.remove(answer.expect("an answer")).result
    }

    pub(super) fn ask_strings(&mut self, kind: Kind, strings: &[&str]) -> Result<String, String> {
        self.ask(kind, &nul_terminated(strings))
            .map(|payload| text(&payload))
    }

    pub(super) fn write(&mut self, path: &str, value: &str) {
        let payload = [&nul_terminated(&[path])[..], value.as_bytes()].concat();
        self.ask(Kind::Write, &payload).unwrap();
    }

    pub(super) fn read(&mut self, path: &str) -> Result<String, String> {
        self.ask_strings(Kind::Read, &[path])
    }

    /// Whether requests are answered.
    pub(super) fn is_served(&mut self) -> bool {
        self.ask_strings(Kind::GetDomainPath, &["5"]).is_ok()
    }

    pub(super) fn watch(&mut self, path: &str, token: &str) {
        self.ask_strings(Kind::Watch, &[path, token]).unwrap();
        self.drain();
        self.events.clear();
    }

    pub(super) fn take_events(&mut self) -> Vec<(String, String)> {
        self.drain();
        std::mem::take(&mut self.events)
    }
}

/// What a toolstack does.
impl Guest {
    pub(super) fn try_introduce(&mut self, domid: DomId, port: EvtchnPort) -> Result<(), String> {
        let strings = [domid.to_string(), "1".into(), port.0.to_string()];
        self.ask_strings(Kind::Introduce, &strings.each_ref().map(String::as_str))
            .map(|_| ())
    }

    /// Builds a domain with a home of its own and introduces it.
    pub(super) fn build(&mut self, id: u16) -> Guest {
        let domid = DomId::new(id);
        let host = self.host.clone();
        host.xen.create(domid);
        let port = host.xen.allocate_port(domid);
        let home = format!("/local/domain/{id}");
        self.write(&home, "");
        self.ask_strings(Kind::SetPerms, &[&home, &format!("n{id}")])
            .unwrap();
        self.try_introduce(domid, port).unwrap();
        let guest = Guest::new(&host, domid, port);
        guest.take_signals();
        guest
    }

    pub(super) fn is_introduced(&mut self, domid: DomId) -> bool {
        let answer = self.ask_strings(Kind::IsDomainIntroduced, &[&domid.to_string()]);
        answer.unwrap().starts_with('T')
    }
}

fn nul_terminated(strings: &[&str]) -> Vec<u8> {
    let terminated = strings.iter().flat_map(|string| [string.as_bytes(), b"\0"]);
    terminated.collect::<Vec<_>>().concat()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
