//! What waits to be sent on one connection: replies and events, first in, first out.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
#[cfg(feature = "journal")]
use alloc::{format, string::String};

use crate::bugs;
use crate::faults;
use crate::ids::ConnId;
use crate::path::Path;
use crate::storage::{Value, digest_bytes};
use crate::time::Instant;
use crate::watch::{Token, WatchId};
use crate::wire::{HEADER_SIZE, Header, Kind};

/// Bytes that a waiting message costs besides its payload.
const MESSAGE_BYTES: u64 = 128;

/// The request that a message belongs to: it is outstanding until all its messages are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cause {
    pub(crate) connection: ConnId,
    pub(crate) request: u64,
}

/// What messages that are gone have cost the one who caused them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Debt {
    pub(crate) cause: Cause,
    pub(crate) messages: u32,
    pub(crate) bytes: u64,
}

/// Adds a debt. The messages of one request stand together, so that there are no more debts than requests.
fn add(debts: &mut Vec<Debt>, debt: Debt) {
    match debts.last_mut() {
        Some(last) if last.cause == debt.cause => {
            last.messages = last.messages.saturating_add(debt.messages);
            last.bytes = last.bytes.saturating_add(debt.bytes);
        }
        _ => debts.push(debt),
    }
}

/// An event on its way to a watcher.
pub(crate) struct Event {
    pub(crate) watch: WatchId,
    pub(crate) text: EventText,
    pub(crate) queued: Instant,
    /// The unprivileged request that made it, if one did.
    pub(crate) cause: Option<Cause>,
    /// It is told even if an equal one waits: events of special names.
    pub(crate) repeats: bool,
    /// It counts against the share that its source has of the queue.
    pub(crate) is_counted: bool,
}

/// The queue of one connection.
#[derive(Default)]
pub(crate) struct Output {
    messages: VecDeque<Message>,
    /// The number of the first message; each has the next.
    first: u64,
    /// Bytes of the first message that were sent.
    sent: usize,
    /// Events that wait.
    events: usize,
    /// The digests and numbers of waiting events to which an equal one would add nothing; unused until the events are many, from then on
    /// until there are none.
    told: Option<BTreeSet<(u64, u64)>>,
    /// Waiting events by the connection that caused them; without one if the toolstack did, or Xen.
    sources: BTreeMap<Option<ConnId>, usize>,
    replies: usize,
    /// Bytes of messages that nobody else pays for.
    bytes: u64,
    /// Bytes of all messages, whoever pays for them.
    all_bytes: u64,
}

/// Messages for which a queue of as many has room before another event is queued: replies are not refused.
const ROOM: usize = 32;
/// Up to this many waiting events are looked through for an equal one.
const FEW_EVENTS: usize = 8;

/// The bytes of a message behind its header, shared with whoever has them already.
pub(crate) enum Payload {
    Fixed(&'static str),
    Bytes(Vec<u8>),
    Value(Value),
    Event(EventText),
}

/// What an event says: where something changed, and to which watch. Nothing of it is copied.
#[derive(Clone)]
pub(crate) struct EventText {
    pub(crate) path: Path,
    /// Where in the path begins what is shown.
    pub(crate) from: usize,
    pub(crate) token: Token,
}

impl EventText {
    pub(crate) fn pieces(&self) -> [&[u8]; 2] {
        let shown = self.path.as_str().as_bytes().get(self.from..);
        [shown.unwrap_or_default(), self.token.framed()]
    }

    pub(crate) fn len(&self) -> usize {
        let [shown, token] = self.pieces();
        shown.len().saturating_add(token.len())
    }

    fn is_equal(&self, other: &Self) -> bool {
        self.token.digest() == other.token.digest() && self.pieces() == other.pieces()
    }

    /// The same for equal texts, and seldom for others.
    fn digest(&self) -> u64 {
        let [shown, _] = self.pieces();
        digest_bytes(shown).rotate_left(1) ^ self.token.digest()
    }
}

impl Payload {
    pub(crate) fn pieces(&self) -> [&[u8]; 2] {
        match self {
            Self::Fixed(text) => [text.as_bytes(), &[]],
            Self::Bytes(bytes) => [bytes, &[]],
            Self::Value(value) => [value.as_bytes(), &[]],
            Self::Event(text) => text.pieces(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        if let Self::Value(value) = self {
            return value.len();
        }
        let [first, second] = self.pieces();
        first.len().saturating_add(second.len())
    }
}

pub(crate) struct Message {
    pub(crate) header: [u8; HEADER_SIZE],
    pub(crate) payload: Payload,
    pub(crate) cause: Option<Cause>,
    pub(crate) event: Option<Mark>,
}

/// What is kept of an event.
#[derive(Clone, Copy)]
pub(crate) struct Mark {
    pub(crate) watch: WatchId,
    pub(crate) queued: Instant,
    /// It is told even if an equal one waits, and an equal one even if it waits.
    pub(crate) repeats: bool,
}

impl Message {
    /// What it costs.
    pub(crate) fn bytes(&self) -> u64 {
        let payload = u64::try_from(self.payload.len()).unwrap_or(u64::MAX);
        MESSAGE_BYTES.saturating_add(payload)
    }

    /// What an event says that is not told again while it waits.
    fn told(&self) -> Option<&EventText> {
        match (&self.payload, self.event) {
            (Payload::Event(text), Some(mark)) if !mark.repeats => Some(text),
            _ => None,
        }
    }

    fn debt(&self) -> Option<Debt> {
        let bytes = self.bytes();
        self.cause.map(|cause| Debt {
            cause,
            messages: 1,
            bytes,
        })
    }
}

impl Output {
    /// Bytes that the queue costs its own connection.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of all messages, with what each costs besides.
    pub(crate) fn all_bytes(&self) -> u64 {
        self.all_bytes
    }

    /// Bytes of the first message that were sent.
    pub(crate) fn sent(&self) -> usize {
        self.sent
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Counts again what waits, and adds it to what each request has on its way: messages and bytes.
    #[cfg(feature = "journal")]
    pub(crate) fn recount(
        &self,
        caused: &mut BTreeMap<(ConnId, u64), (u32, u64)>,
    ) -> Result<(), String> {
        let mut own = 0_u64;
        let mut events = 0_usize;
        for message in &self.messages {
            events = events.saturating_add(usize::from(message.event.is_some()));
            match message.debt() {
                Some(Debt { cause, bytes, .. }) => {
                    let of = caused.entry((cause.connection, cause.request)).or_default();
                    *of = (of.0.saturating_add(1), of.1.saturating_add(bytes));
                }
                None => own = own.saturating_add(message.bytes()),
            }
        }
        let replies = self.messages.len().saturating_sub(events);
        let counted = (self.bytes, self.events, self.replies);
        if counted != (own, events, replies) {
            return Err(format!(
                "bytes, events and replies that wait are {:?}, and {counted:?} are counted",
                (own, events, replies)
            ));
        }
        Ok(())
    }

    /// Events that wait.
    pub(crate) fn events(&self) -> usize {
        self.events
    }

    /// Events from one source that wait.
    pub(crate) fn events_from(&self, source: Option<ConnId>) -> usize {
        self.sources.get(&source).copied().unwrap_or_default()
    }

    /// Replies that wait.
    pub(crate) fn replies(&self) -> usize {
        self.replies
    }

    /// Makes room for an event, in a long queue for some replies behind it, too; gives the bytes that this took. None if there is no
    /// memory in one piece for all.
    pub(crate) fn make_room(&mut self) -> Option<u64> {
        let is_long = self.messages.len() >= ROOM;
        let more = if is_long { ROOM } else { 1 };
        let before = self.messages.capacity();
        faults::permit()?;
        self.messages.try_reserve(more).ok()?;
        let grown = self.messages.capacity().saturating_sub(before);
        u64::try_from(grown.saturating_mul(size_of::<Message>())).ok()
    }

    /// Queues a reply, and gives the bytes that it costs.
    pub(crate) fn reply(&mut self, header: Header, payload: Payload, cause: Option<Cause>) -> u64 {
        self.replies = self.replies.saturating_add(1);
        self.push(Message {
            header: header.encode(),
            payload,
            cause,
            event: None,
        })
    }

    /// Queues an event, and gives the bytes that it costs; `None` if an equal one waits already (protocol.md section 8).
    pub(crate) fn event(&mut self, event: Event) -> Option<u64> {
        if !event.repeats && !bugs::XSA_349 && self.events > 0 && self.is_told(&event.text) {
            return None;
        }
        let header = Header {
            kind: Kind::WatchEvent.number(),
            len: u32::try_from(event.text.len()).unwrap_or(u32::MAX),
            ..Header::default()
        };
        if event.is_counted {
            let waiting = self.sources.entry(source_of(event.cause)).or_default();
            *waiting = waiting.saturating_add(1);
        }
        let mark = Mark {
            watch: event.watch,
            queued: event.queued,
            repeats: event.repeats,
        };
        let bytes = self.push(Message {
            header: header.encode(),
            payload: Payload::Event(event.text),
            cause: event.cause,
            event: Some(mark),
        });
        self.events = self.events.saturating_add(1);
        self.index_last();
        Some(bytes)
    }

    /// Whether an event that is equal, and not one that repeats, waits already.
    pub(crate) fn is_told(&self, text: &EventText) -> bool {
        let equal = |message: &Message| message.told().is_some_and(|told| told.is_equal(text));
        let Some(told) = &self.told else {
            return self.messages.iter().any(equal);
        };
        let digest = text.digest();
        let alike = told.range((digest, 0)..=(digest, u64::MAX));
        alike
            .filter_map(|(_, number)| {
                let at = usize::try_from(number.wrapping_sub(self.first)).ok()?;
                self.messages.get(at)
            })
            .any(equal)
    }

    /// Notes the last message among those that are told; all of them when they become too many to be looked through.
    fn index_last(&mut self) {
        let behind = u64::try_from(self.messages.len()).unwrap_or(u64::MAX);
        let number = self.first.wrapping_add(behind.saturating_sub(1));
        match &mut self.told {
            Some(told) => {
                let last = self.messages.back().and_then(Message::told);
                told.extend(last.map(|text| (text.digest(), number)));
            }
            None if self.events > FEW_EVENTS => self.index_all(),
            None => {}
        }
    }

    fn index_all(&mut self) {
        let numbers = (self.first..).zip(&self.messages);
        let told = numbers.filter_map(|(number, message)| Some((message.told()?.digest(), number)));
        self.told = Some(told.collect());
    }

    /// The messages that wait, and how much of the first was sent.
    pub(crate) fn waiting(&self) -> (impl Iterator<Item = &Message>, usize) {
        (self.messages.iter(), self.sent)
    }

    /// Queues a message that waited in another instance of the server; `is_counted` is that of its event.
    pub(crate) fn restore(&mut self, message: Message, is_counted: bool) {
        if message.event.is_none() {
            self.replies = self.replies.saturating_add(1);
            self.push(message);
            return;
        }
        if is_counted {
            let waiting = self.sources.entry(source_of(message.cause)).or_default();
            *waiting = waiting.saturating_add(1);
        }
        self.push(message);
        self.events = self.events.saturating_add(1);
        self.index_last();
    }

    /// Notes how much of the first message that other instance had sent.
    pub(crate) fn restore_sent(&mut self, sent: usize) {
        self.sent = sent;
    }

    /// The next bytes to send, of one message: what is left of its header and of its payload.
    pub(crate) fn front(&self) -> [&[u8]; 3] {
        let Some(message) = self.messages.front() else {
            return [&[]; 3];
        };
        let [first, second] = message.payload.pieces();
        let mut sent = self.sent;
        [&message.header[..], first, second].map(|piece| {
            let rest = piece.get(sent..).unwrap_or_default();
            sent = sent.saturating_sub(piece.len());
            rest
        })
    }

    /// Counts bytes of [`Output::front`] as sent; gives the debt of a message that is gone with them.
    #[inline]
    pub(crate) fn advance(&mut self, sent: usize) -> Option<Debt> {
        self.sent = self.sent.saturating_add(sent);
        let message = self.messages.front()?;
        if self.sent < HEADER_SIZE.saturating_add(message.payload.len()) {
            return None;
        }
        self.sent = 0;
        let message = self.messages.pop_front()?;
        let number = self.first;
        self.first = self.first.wrapping_add(1);
        if let Some(told) = &mut self.told
            && let Some(text) = message.told()
        {
            told.remove(&(text.digest(), number));
        }
        self.forget(&message)
    }

    /// Drops the waiting events that `doomed` names, except one of which the client has a part; gives their debts.
    pub(crate) fn drop_events(&mut self, doomed: impl Fn(WatchId, Instant) -> bool) -> Vec<Debt> {
        let keep_first = self.sent > 0;
        let mut debts = Vec::new();
        if self.events == 0 {
            return debts;
        }
        // In place: there may be no memory for another queue as long as this.
        let mut messages = core::mem::take(&mut self.messages);
        let mut begun = keep_first;
        messages.retain(|message| {
            let keep = core::mem::take(&mut begun);
            let doomed = |mark: Mark| doomed(mark.watch, mark.queued);
            if keep || !message.event.is_some_and(doomed) {
                return true;
            }
            if let Some(debt) = self.forget(message) {
                add(&mut debts, debt);
            }
            false
        });
        self.messages = messages;
        if self.told.is_some() {
            self.index_all();
        }
        debts
    }

    /// When the oldest event was queued that may still be dropped.
    pub(crate) fn oldest_event(&self) -> Option<Instant> {
        let begun = usize::from(self.sent > 0);
        let mut waiting = self.messages.iter().skip(begun);
        waiting.find_map(|message| message.event.map(|mark| mark.queued))
    }

    /// Drops everything; gives the debts.
    pub(crate) fn clear(&mut self) -> Vec<Debt> {
        let cleared = core::mem::take(self);
        let mut debts = Vec::new();
        for debt in cleared.messages.iter().filter_map(Message::debt) {
            add(&mut debts, debt);
        }
        debts
    }

    fn push(&mut self, message: Message) -> u64 {
        let bytes = message.bytes();
        self.all_bytes = self.all_bytes.saturating_add(bytes);
        if message.cause.is_none() {
            self.bytes = self.bytes.saturating_add(bytes);
        }
        self.messages.push_back(message);
        bytes
    }

    fn forget(&mut self, message: &Message) -> Option<Debt> {
        let bytes = message.bytes();
        self.all_bytes = self.all_bytes.saturating_sub(bytes);
        if message.cause.is_none() {
            self.bytes = self.bytes.saturating_sub(bytes);
        }
        if message.event.is_none() {
            self.replies = self.replies.saturating_sub(1);
            return message.debt();
        }
        self.events = self.events.saturating_sub(1);
        if self.events == 0 {
            self.told = None;
        }
        let source = source_of(message.cause);
        match self.sources.get_mut(&source) {
            Some(waiting) if *waiting > 1 => *waiting = waiting.saturating_sub(1),
            Some(_) => {
                self.sources.remove(&source);
            }
            None => {}
        }
        message.debt()
    }
}

fn source_of(cause: Option<Cause>) -> Option<ConnId> {
    cause.map(|cause| cause.connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(payload: &str, repeats: bool) -> Event {
        let (path, token) = payload
            .strip_suffix('\0')
            .unwrap()
            .split_once('\0')
            .unwrap();
        Event {
            watch: WatchId::default(),
            text: EventText {
                path: Path::known(path),
                from: 0,
                token: Token::new(token.as_bytes()),
            },
            queued: Instant(0),
            cause: None,
            repeats,
            is_counted: true,
        }
    }

    fn drain(output: &mut Output, chunk: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !output.is_empty() {
            let front = output.front().concat();
            let sent = front.len().min(chunk);
            all.extend_from_slice(&front[..sent]);
            output.advance(sent);
        }
        all
    }

    #[test]
    fn bytes_come_out_whole_whatever_the_chunks() {
        for chunk in [1, 3, 16, 17, 4096] {
            let mut output = Output::default();
            output.reply(
                Header {
                    kind: 2,
                    len: 3,
                    ..Header::default()
                },
                Payload::Fixed("abc"),
                None,
            );
            output.reply(
                Header {
                    kind: 1,
                    ..Header::default()
                },
                Payload::Fixed(""),
                None,
            );
            assert!(output.event(event("p\0t\0", false)).is_some());
            let bytes = drain(&mut output, chunk);
            assert_eq!(bytes.len(), 3 * HEADER_SIZE + 3 + 4);
            assert_eq!(&bytes[16..19], b"abc");
            assert_eq!(&bytes[bytes.len() - 4..], b"p\0t\0");
            assert_eq!((output.bytes(), output.replies()), (0, 0));
            assert_eq!(output.events_from(None), 0);
        }
    }

    #[test]
    fn an_equal_event_waits_once() {
        let mut output = Output::default();
        assert!(output.event(event("p\0t\0", false)).is_some());
        assert!(output.event(event("p\0t\0", false)).is_none());
        assert!(output.event(event("@p\0t\0", true)).is_some());
        assert!(output.event(event("@p\0t\0", true)).is_some());
        assert_eq!(output.events_from(None), 3);
        drain(&mut output, 4096);
        assert!(output.event(event("p\0t\0", false)).is_some());
    }

    /// Else it would be looked at again and again, at once, since it stays too old.
    #[test]
    fn a_half_sent_event_has_no_age() {
        let mut output = Output::default();
        output.event(event("a\0t\0", false));
        assert_eq!(output.oldest_event(), Some(Instant(0)));
        output.advance(1);
        assert_eq!(output.oldest_event(), None);
        output.event(event("b\0t\0", false));
        assert_eq!(output.oldest_event(), Some(Instant(0)));
    }

    #[test]
    fn a_half_sent_event_is_not_dropped() {
        let mut output = Output::default();
        output.event(event("a\0t\0", false));
        output.event(event("b\0t\0", false));
        output.advance(1);
        output.drop_events(|_, _| true);
        assert_eq!(output.events_from(None), 1);
        assert_eq!(output.oldest_event(), None, "nothing is left to be dropped");
        assert_eq!(drain(&mut output, 4096).len(), HEADER_SIZE + 4 - 1);
    }

    #[test]
    fn equal_events_are_found_among_few_and_among_many() {
        let mut output = Output::default();
        let mut model: VecDeque<u32> = VecDeque::new();
        let mut state = 1_u32;
        for round in 0..20_000_u32 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let number = (state >> 8) % 40;
            // Grows to dozens, then shrinks to none, again and again.
            let grows = (round / 100) % 2 == 0;
            if (state >> 24) % 10 < if grows { 8 } else { 2 } {
                let text = format!("/{number}\0t\0");
                let queued = output.event(event(&text, false)).is_some();
                assert_eq!(queued, !model.contains(&number));
                if queued {
                    model.push_back(number);
                }
            } else if state.is_multiple_of(64) {
                output.drop_events(|_, _| true);
                model.clear();
            } else if let Some(number) = model.pop_front() {
                let front = output.front().concat();
                assert!(front.ends_with(format!("/{number}\0t\0").as_bytes()));
                output.advance(front.len());
            }
            assert_eq!(output.events_from(None), model.len());
        }
    }
}
