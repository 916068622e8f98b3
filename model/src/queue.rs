//! What waits to be sent on one connection, and whether what is sent is that (protocol.md section 8).

use std::collections::VecDeque;

use crate::{Answer, PAYLOAD_MAX};

const HEADER: usize = 16;
const WATCH_EVENT: u32 = 15;

/// Whose request made an event: the number of an unprivileged connection; none for the privileged one and the machine.
pub type Source = Option<u64>;

/// The unprivileged request that a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cause {
    pub(crate) connection: u64,
    pub(crate) request: u64,
}

#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) kind: u32,
    pub(crate) req_id: u32,
    pub(crate) tx_id: u32,
    pub(crate) body: Answer,
    pub(crate) cause: Option<Cause>,
    pub(crate) event: Option<Mark>,
    /// Messages of one group may come in any order.
    pub(crate) group: u64,
}

/// What is known of an event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    pub(crate) watch: u64,
    pub(crate) queued_ns: u64,
    /// It is told however many equal ones wait.
    pub(crate) repeats: bool,
}

#[derive(Default)]
pub(crate) struct Queue {
    messages: VecDeque<Message>,
    /// The first message as it is sent, and how much of it was.
    begun: Option<(Vec<u8>, usize)>,
}

impl Message {
    /// An event's message.
    pub(crate) fn event(
        path: &str,
        token: &[u8],
        mark: Mark,
        cause: Option<Cause>,
        group: u64,
    ) -> Self {
        let payload = [path.as_bytes(), b"\0", token, b"\0"].concat();
        Self {
            kind: WATCH_EVENT,
            req_id: 0,
            tx_id: 0,
            body: Answer::Bytes(payload),
            cause,
            event: Some(mark),
            group,
        }
    }

    fn repeats(&self) -> bool {
        self.event.is_none_or(|mark| mark.repeats)
    }

    /// Whether these bytes, header and payload, are this message.
    fn is(&self, bytes: &[u8]) -> bool {
        let Some((header, payload)) = bytes.split_at_checked(HEADER) else {
            return false;
        };
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let words = [self.kind, self.req_id, self.tx_id, len];
        let expected: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        payload.len() <= PAYLOAD_MAX && header == expected && self.body.is(payload)
    }

    fn show(&self) -> String {
        format!(
            "{} ({}, {}) {}",
            self.kind,
            self.req_id,
            self.tx_id,
            self.body.show()
        )
    }
}

impl Answer {
    fn is(&self, payload: &[u8]) -> bool {
        match self {
            Self::Bytes(bytes) => bytes == payload,
            Self::Part(list) => is_part(payload, list),
            Self::Lines(lines) => has_lines(payload, lines),
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Bytes(bytes) => format!("\"{}\"", bytes.escape_ascii()),
            Self::Part(list) => format!("generation and \"{}\"", list.escape_ascii()),
            Self::Lines(lines) => format!("{lines:?}"),
        }
    }
}

/// Whether a payload is a generation and as many whole names as fit, with a further NUL if there are no more (protocol.md section 6).
fn is_part(payload: &[u8], list: &[u8]) -> bool {
    let Some(end) = payload.iter().position(|byte| *byte == 0) else {
        return false;
    };
    let (generation, rest) = payload.split_at(end + 1);
    let plain = generation.iter().take(end).all(u8::is_ascii_digit);
    let room = PAYLOAD_MAX - generation.len();
    let mut fits = 0;
    for name in list.split_inclusive(|byte| *byte == 0) {
        if fits + name.len() > room {
            break;
        }
        fits += name.len();
    }
    let mut expected = list.get(..fits).unwrap_or_default().to_vec();
    if fits == list.len() && fits < room {
        expected.push(0);
    }
    plain && end > 0 && rest == expected
}

fn has_lines(payload: &[u8], expected: &[Option<String>]) -> bool {
    let Some(text) = payload.strip_suffix(b"\0") else {
        return false;
    };
    let text = String::from_utf8_lossy(text);
    let mut lines = text.lines();
    let fits = |expected: &Option<String>| match (lines.next(), expected) {
        (Some(line), Some(expected)) => line == expected,
        (_, expected) => expected.is_none(),
    };
    expected.iter().all(fits)
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Events that wait from one source.
    pub(crate) fn events_from(&self, source: Source) -> usize {
        let from = |message: &&Message| {
            message.event.is_some() && message.cause.map(|cause| cause.connection) == source
        };
        self.messages.iter().filter(from).count()
    }

    /// The requests of a connection, from a certain one on, of which messages wait here.
    pub(crate) fn requests_of(&self, connection: u64, from: u64) -> impl Iterator<Item = u64> {
        let causes = self.messages.iter().filter_map(|message| message.cause);
        causes
            .filter(move |cause| cause.connection == connection && cause.request > from)
            .map(|cause| cause.request)
    }

    /// Whether an event is told already by one that waits.
    pub(crate) fn tells(&self, event: &Message) -> bool {
        let mut waiting = self.messages.iter();
        !event.repeats() && waiting.any(|other| !other.repeats() && other.body == event.body)
    }

    /// Whether an event with this payload waits, and not one that repeats.
    pub(crate) fn has_event(&self, payload: &[u8]) -> bool {
        let mut waiting = self.messages.iter();
        waiting.any(|other| !other.repeats() && other.body.is(payload))
    }

    pub(crate) fn push(&mut self, message: Message) {
        self.messages.push_back(message);
    }

    /// Drops events of which nothing was sent.
    pub(crate) fn drop_events(&mut self, doomed: impl Fn(&Mark) -> bool) {
        let mut begun = self.begun.is_some();
        self.messages.retain(|message| {
            let kept = std::mem::take(&mut begun);
            kept || !message.event.as_ref().is_some_and(&doomed)
        });
    }

    /// The server sent `count` bytes of the message of which `rest` was left. Answers whether that was its end.
    pub(crate) fn sent(&mut self, rest: &[u8], count: usize) -> Result<bool, String> {
        if self.begun.is_none() {
            self.begin(rest)?;
        }
        let Some((bytes, sent)) = &mut self.begun else {
            return Err("nothing was begun".to_owned());
        };
        if bytes.get(*sent..) != Some(rest) || count > rest.len() {
            return Err(format!(
                "{count} bytes sent of \"{}\", but \"{}\" was begun and {sent} sent",
                rest.escape_ascii(),
                bytes.escape_ascii()
            ));
        }
        *sent += count;
        let is_end = *sent == bytes.len();
        if is_end {
            self.begun = None;
            self.messages.pop_front();
        }
        Ok(is_end)
    }

    /// Finds the message among those that may come next, and puts it first.
    fn begin(&mut self, bytes: &[u8]) -> Result<(), String> {
        let group = self.messages.front().map(|message| message.group);
        let mut next = self
            .messages
            .iter()
            .take_while(|message| Some(message.group) == group);
        let Some(at) = next.position(|message| message.is(bytes)) else {
            let waiting: Vec<String> = self.messages.iter().take(3).map(Message::show).collect();
            return Err(format!(
                "got {}, should get {}",
                show_bytes(bytes),
                waiting.join(", then ")
            ));
        };
        if let Some(message) = self.messages.remove(at) {
            self.messages.push_front(message);
        }
        self.begun = Some((bytes.to_vec(), 0));
        Ok(())
    }
}

fn show_bytes(bytes: &[u8]) -> String {
    let (header, payload) = bytes.split_at_checked(HEADER).unwrap_or((bytes, &[]));
    let words = header.as_chunks::<4>().0.iter();
    let words: Vec<u32> = words.map(|word| u32::from_le_bytes(*word)).collect();
    format!("{words:?} \"{}\"", payload.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_cut_between_names_and_ends_with_a_further_nul() {
        assert!(is_part(b"12\0a\0bc\0\0", b"a\0bc\0"));
        assert!(is_part(b"12\0\0", b""));
        assert!(!is_part(b"12\0a\0bc\0", b"a\0bc\0"));
        assert!(!is_part(b"\0a\0\0", b"a\0"));
        let list = b"0123456\0".repeat(600);
        let whole = [&b"7\0"[..], &list[..4088]].concat();
        assert!(is_part(&whole, &list));
        assert!(!is_part(&whole[..4082], &list));
    }

    #[test]
    fn lines_that_nobody_knows_are_skipped() {
        let expected = [Some("a: 1".to_owned()), None, Some("c".to_owned())];
        assert!(has_lines(b"a: 1\nb\nc\nd\n\0", &expected));
        assert!(!has_lines(b"a: 2\nb\nc\n\0", &expected));
        assert!(!has_lines(b"a: 1\nb\nc\n", &expected));
    }
}
