//! Plays cases on a host and tells where they differ.

use std::collections::{BTreeMap, VecDeque};

use super::Host;
use super::message::{ERROR, Message, WATCH_EVENT, kind};
use super::syntax::{Action, Case, Directive, Expected, Piece, Step, Transaction};

/// The privileged domain in every text.
const TOOLSTACK: u16 = 0;
/// Where the runner's own request ids begin, so that they differ from everything else in a message.
const FIRST_REQUEST: u32 = 0x5000_0000;

/// What came of a text.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) played: usize,
    /// Cases that need what the host has not: file and name, and why.
    pub(crate) left_out: Vec<(String, String)>,
    /// One readable paragraph for each case that failed.
    pub(crate) failures: Vec<String>,
}

/// Plays every case of a text, each on a host of its own.
pub(crate) fn play<H: Host>(file: &str, cases: &[Case], mut host: impl FnMut() -> H) -> Report {
    let mut report = Report::default();
    for case in cases {
        let mut host = host();
        if let Err(why) = host.prepare(case) {
            let name = format!("{file}: {}", case.name);
            report.left_out.push((name, why));
            continue;
        }
        report.played += 1;
        if let Err((line, why)) = Player::new(host).play(case) {
            let name = &case.name;
            report
                .failures
                .push(format!("{file}:{line}: case {name}\n{why}"));
        }
    }
    report
}

struct Player<H> {
    host: H,
    clients: BTreeMap<u16, Client>,
    transactions: BTreeMap<String, u32>,
    numbers: BTreeMap<String, Vec<u8>>,
    next_request: u32,
}

/// What the player knows of a connection.
#[derive(Default)]
struct Client {
    /// Requests without a reply yet: the line, and the header to be echoed.
    awaited: VecDeque<(usize, Message)>,
    chunk: Option<usize>,
    /// Bytes were sent that are no whole request, or nothing is read: the server cannot be asked for its opinion through it.
    unusable: bool,
    /// Messages that came before others that are further on in the text, on a host that keeps no order between the two sorts.
    ahead: VecDeque<Message>,
}

/// The line that failed, and why.
type Failure = (usize, String);

impl<H: Host> Player<H> {
    fn new(host: H) -> Self {
        Self {
            host,
            clients: BTreeMap::from([(TOOLSTACK, Client::default())]),
            transactions: BTreeMap::new(),
            numbers: BTreeMap::new(),
            next_request: FIRST_REQUEST,
        }
    }

    fn play(mut self, case: &Case) -> Result<(), Failure> {
        for step in &case.steps {
            self.step(step).map_err(|why| {
                let text = &step.text;
                (step.line, format!("    {text}\n    {why}"))
            })?;
        }
        self.finish()
            .map_err(|why| (case.line, format!("    at the end: {why}")))
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match &step.action {
            Action::Request {
                from,
                transaction,
                kind,
                payload,
            } => {
                let tx_id = self.transaction(transaction)?;
                self.forget_introduced(*kind, payload);
                self.request(*from, step.line, *kind, tx_id, payload.clone())
            }
            Action::Header {
                from,
                kind,
                len,
                bytes,
            } => self.half(*from, step.line, *kind, *len, bytes),
            Action::Bytes { from, bytes } => {
                self.clients.entry(*from).or_default().unusable = true;
                self.send(*from, bytes)
            }
            Action::Reply { to, expected } => self.reply(*to, expected),
            Action::Event { to, payload } => self.event(*to, payload),
            Action::Nothing { to } => self.nothing(*to),
            Action::Stopped { to } => self.stopped(*to),
            Action::Chunks { from, size } => {
                self.clients.entry(*from).or_default().chunk = Some(*size);
                Ok(())
            }
            Action::SetUp { domid } => self.set_up(*domid),
            Action::Introduced { domid } => self.introduced(*domid),
            Action::Host(directive) => {
                self.forget_life(directive);
                self.host.direct(directive)
            }
        }
    }

    /// Nothing may be left over, and the store must find itself in order.
    fn finish(&mut self) -> Result<(), String> {
        let domids: Vec<u16> = self.clients.keys().copied().collect();
        for domid in domids {
            if self.is_readable(domid) {
                self.nothing(domid)?;
            }
            let client = self.clients.entry(domid).or_default();
            if let Some((line, _)) = client.awaited.front() {
                return Err(format!(
                    "d{domid} got no reply to its request of line {line}"
                ));
            }
        }
        if self.clients.get(&TOOLSTACK).is_some_and(|d0| !d0.unusable) {
            self.expect_ok("CONTROL", b"check\0")?;
        }
        Ok(())
    }

    fn is_readable(&self, domid: u16) -> bool {
        self.clients
            .get(&domid)
            .is_none_or(|client| !client.unusable || !client.awaited.is_empty())
    }

    /// A new connection life owes no replies to the requests of the old one.
    fn forget_life(&mut self, directive: &Directive) {
        match directive {
            Directive::Reconnects(domid) | Directive::BreaksRing(domid) => {
                self.clients.insert(*domid, Client::default());
            }
            Directive::Die(domids) => {
                for domid in domids {
                    self.clients.remove(domid);
                }
            }
            Directive::StopsReading(domid) => {
                self.clients.entry(*domid).or_default().unusable = true;
            }
            Directive::ReadsAgain(domid) => {
                self.clients.entry(*domid).or_default().unusable = false;
            }
            _ => {}
        }
    }

    /// An introduction begins a new life, too.
    fn forget_introduced(&mut self, sent: u32, payload: &[u8]) {
        let domid = payload.split(|byte| *byte == 0).next().unwrap_or_default();
        let domid = core::str::from_utf8(domid)
            .ok()
            .and_then(|domid| domid.parse().ok());
        if let Some(domid) = domid.filter(|domid| *domid != TOOLSTACK)
            && kind("INTRODUCE") == Some(sent)
            && let Some(client) = self.clients.get_mut(&domid)
        {
            *client = Client::default();
        }
    }

    fn transaction(&self, transaction: &Transaction) -> Result<u32, String> {
        match transaction {
            Transaction::None => Ok(0),
            Transaction::Number(id) => Ok(*id),
            Transaction::Named(name) => self
                .transactions
                .get(name)
                .copied()
                .ok_or(format!("no transaction has the name {name}")),
        }
    }

    fn request(
        &mut self,
        from: u16,
        line: usize,
        kind: u32,
        tx_id: u32,
        payload: Vec<u8>,
    ) -> Result<(), String> {
        let message = Message {
            kind,
            req_id: self.next_request,
            tx_id,
            payload,
        };
        self.next_request += 1;
        let bytes = message.encode();
        let client = self.clients.entry(from).or_default();
        client.awaited.push_back((line, message));
        self.send(from, &bytes)
    }

    /// Sends a header that announces what may not follow. Only a request that can become whole is owed a reply.
    fn half(
        &mut self,
        from: u16,
        line: usize,
        kind: u32,
        len: u32,
        bytes: &[u8],
    ) -> Result<(), String> {
        let req_id = self.next_request;
        self.next_request += 1;
        let client = self.clients.entry(from).or_default();
        let message = Message {
            kind,
            req_id,
            tx_id: 0,
            payload: Vec::new(),
        };
        if len <= 4096 {
            client.awaited.push_back((line, message));
        }
        client.unusable = true;
        let mut all = Message::header(kind, req_id, 0, len);
        all.extend_from_slice(bytes);
        self.send(from, &all)
    }

    fn send(&mut self, from: u16, bytes: &[u8]) -> Result<(), String> {
        let chunk = self.clients.get(&from).and_then(|client| client.chunk);
        for piece in bytes.chunks(chunk.unwrap_or(bytes.len()).max(1)) {
            self.host.send(from, piece)?;
        }
        Ok(())
    }

    fn reply(&mut self, to: u16, expected: &Expected) -> Result<(), String> {
        let came = self.next(to, |message| message.kind != WATCH_EVENT)?;
        let awaited = self.clients.entry(to).or_default().awaited.pop_front();
        let (_, request) = awaited.ok_or("no request is waiting for a reply")?;
        let shown = came.show();
        let wrong = |why: &str| Err(format!("d{to} got {shown}\n    {why}"));
        if came.kind == WATCH_EVENT {
            return wrong("which is an event, not a reply");
        }
        if (came.req_id, came.tx_id) != (request.req_id, request.tx_id) {
            return wrong("which is a reply to another request or transaction");
        }
        let is_error = came.kind == ERROR;
        if !is_error && came.kind != request.kind {
            return wrong("which has another type than the request");
        }
        let matches = match expected {
            Expected::Error(name) => is_error && came.payload == [name.as_bytes(), &[0]].concat(),
            Expected::Any => !is_error,
            Expected::Transaction(name) => !is_error && self.open(name, &came.payload),
            Expected::Payload(pieces) => {
                !is_error && fits(pieces, &came.payload, &mut self.numbers)
            }
        };
        if matches { Ok(()) } else { wrong("") }
    }

    /// Gives a transaction its name; `false` if the reply is no id in plain decimal.
    fn open(&mut self, name: &str, payload: &[u8]) -> bool {
        let text = payload.strip_suffix(&[0]).unwrap_or_default();
        let id = core::str::from_utf8(text)
            .ok()
            .and_then(|text| text.parse().ok());
        let Some(id) = id.filter(|id: &u32| *id != 0 && id.to_string().as_bytes() == text) else {
            return false;
        };
        self.transactions.insert(name.to_owned(), id);
        true
    }

    fn event(&mut self, to: u16, payload: &[Piece]) -> Result<(), String> {
        let came = self.next(to, |message| message.kind == WATCH_EVENT)?;
        let is_event = came.kind == WATCH_EVENT && (came.req_id, came.tx_id) == (0, 0);
        if is_event && fits(payload, &came.payload, &mut self.numbers) {
            Ok(())
        } else {
            Err(format!("d{to} got {}", came.show()))
        }
    }

    /// The next message, whatever it is; without order, the next one of the sort that the text has here.
    fn next(&mut self, to: u16, is_wanted: fn(&Message) -> bool) -> Result<Message, String> {
        let none = || format!("d{to} got nothing");
        if self.host.keeps_order(to) {
            return self.host.receive(to)?.ok_or_else(none);
        }
        let ahead = &mut self.clients.entry(to).or_default().ahead;
        if let Some(at) = ahead.iter().position(is_wanted) {
            return ahead.remove(at).ok_or_else(none);
        }
        loop {
            let came = self.host.receive(to)?.ok_or_else(none)?;
            if is_wanted(&came) {
                return Ok(came);
            }
            ahead.push_back(came);
        }
    }

    fn nothing(&mut self, to: u16) -> Result<(), String> {
        let ahead = &mut self.clients.entry(to).or_default().ahead;
        let came = match ahead.pop_front() {
            None => self.host.receive(to)?,
            came => came,
        };
        match came {
            None => Ok(()),
            Some(came) => Err(format!(
                "d{to} got {}, which nothing announced",
                came.show()
            )),
        }
    }

    fn stopped(&mut self, to: u16) -> Result<(), String> {
        self.nothing(to)?;
        if !self.host.is_stopped(to) {
            return Err(format!("d{to} is not stopped"));
        }
        self.clients.insert(
            to,
            Client {
                unusable: true,
                ..Client::default()
            },
        );
        Ok(())
    }

    fn set_up(&mut self, domid: u16) -> Result<(), String> {
        self.introduced(domid)?;
        let home = format!("/local/domain/{domid}\0");
        self.expect_ok("MKDIR", home.as_bytes())?;
        self.expect_ok("SET_PERMS", format!("{home}n{domid}\0").as_bytes())
    }

    fn introduced(&mut self, domid: u16) -> Result<(), String> {
        self.host.direct(&Directive::Exists(domid))?;
        self.clients.insert(domid, Client::default());
        let payload = format!("{domid}\x001\x007\0");
        self.expect_ok("INTRODUCE", payload.as_bytes())
    }

    /// A request of the toolstack's that must go well.
    fn expect_ok(&mut self, name: &str, payload: &[u8]) -> Result<(), String> {
        let kind = kind(name).ok_or("no message type")?;
        self.request(TOOLSTACK, 0, kind, 0, payload.to_vec())?;
        let ok = vec![Piece::Bytes(b"OK\0".to_vec())];
        self.reply(TOOLSTACK, &Expected::Payload(ok))
            .map_err(|why| format!("{name} by the toolstack: {why}"))
    }
}

/// Whether a payload is what the pieces say, one after the other.
fn fits(pieces: &[Piece], payload: &[u8], numbers: &mut BTreeMap<String, Vec<u8>>) -> bool {
    let Some((piece, rest)) = pieces.split_first() else {
        return payload.is_empty();
    };
    match piece {
        Piece::Bytes(bytes) => payload
            .strip_prefix(bytes.as_slice())
            .is_some_and(|payload| fits(rest, payload, numbers)),
        Piece::AnyBytes => (0..=payload.len()).any(|at| fits_from(rest, payload, at, numbers)),
        Piece::AnyText => {
            let most = payload.iter().take_while(|byte| **byte != 0).count();
            (0..=most).any(|at| fits_from(rest, payload, at, numbers))
        }
        Piece::Same(name) | Piece::Changed(name) => {
            let digits = payload
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .count();
            let (number, payload) = payload.split_at(digits);
            let known = numbers.insert(name.clone(), number.to_vec());
            let changed = known.as_deref() != Some(number);
            let wanted = match piece {
                Piece::Same(_) => known.is_none() || !changed,
                _ => changed,
            };
            digits > 0 && wanted && fits(rest, payload, numbers)
        }
    }
}

fn fits_from(
    pieces: &[Piece],
    payload: &[u8],
    at: usize,
    numbers: &mut BTreeMap<String, Vec<u8>>,
) -> bool {
    payload
        .get(at..)
        .is_some_and(|payload| fits(pieces, payload, numbers))
}
