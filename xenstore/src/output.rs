//! What waits to be sent on one connection: replies and events, first in, first out.

use alloc::collections::{BTreeSet, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;

use crate::ids::ConnId;
use crate::time::Instant;
use crate::watch::WatchId;
use crate::wire::{HEADER_SIZE, Header, Kind};

/// Bytes that a waiting message costs besides its payload.
const MESSAGE_BYTES: u64 = 128;

/// The request that a message belongs to: it is outstanding until all its messages are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cause {
    pub(crate) connection: ConnId,
    pub(crate) request: u64,
}

/// An event on its way to a watcher.
pub(crate) struct Event {
    pub(crate) watch: WatchId,
    pub(crate) payload: Vec<u8>,
    pub(crate) queued: Instant,
    /// The unprivileged request that made it, if one did.
    pub(crate) cause: Option<Cause>,
    /// It is told even if an equal one waits: events of special names.
    pub(crate) repeats: bool,
}

/// The queue of one connection.
#[derive(Default)]
pub(crate) struct Output {
    messages: VecDeque<Message>,
    /// Bytes of the first message that were sent.
    sent: usize,
    /// The payloads of waiting events, to which an equal one would add nothing.
    told: BTreeSet<Rc<[u8]>>,
    events: usize,
    bytes: u64,
}

struct Message {
    header: [u8; HEADER_SIZE],
    payload: Rc<[u8]>,
    cause: Option<Cause>,
    /// Set in events.
    event: Option<(WatchId, Instant)>,
}

impl Message {
    fn bytes(&self) -> u64 {
        let payload = u64::try_from(self.payload.len()).unwrap_or(u64::MAX);
        MESSAGE_BYTES.saturating_add(payload)
    }
}

impl Output {
    /// Bytes that the queue costs.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Events that wait.
    pub(crate) fn events(&self) -> usize {
        self.events
    }

    /// Replies that wait.
    pub(crate) fn replies(&self) -> usize {
        self.messages.len().saturating_sub(self.events)
    }

    pub(crate) fn reply(&mut self, header: Header, payload: &[u8], cause: Option<Cause>) {
        self.push(Message {
            header: header.encode(),
            payload: payload.into(),
            cause,
            event: None,
        });
    }

    /// Queues an event; `false` if an equal one waits already (protocol.md section 8).
    pub(crate) fn event(&mut self, event: Event) -> bool {
        let payload: Rc<[u8]> = event.payload.into();
        if !event.repeats && !self.told.insert(Rc::clone(&payload)) {
            return false;
        }
        let header = Header {
            kind: Kind::WatchEvent.number(),
            len: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            ..Header::default()
        };
        self.events = self.events.saturating_add(1);
        self.push(Message {
            header: header.encode(),
            payload,
            cause: event.cause,
            event: Some((event.watch, event.queued)),
        });
        true
    }

    /// The next bytes to send; none when the queue is empty.
    pub(crate) fn front(&self) -> &[u8] {
        let Some(message) = self.messages.front() else {
            return &[];
        };
        match message.header.get(self.sent..) {
            Some(rest) if !rest.is_empty() => rest,
            _ => {
                let sent = self.sent.saturating_sub(HEADER_SIZE);
                message.payload.get(sent..).unwrap_or_default()
            }
        }
    }

    /// Counts bytes of [`Output::front`] as sent; gives the cause of a message that is gone with them.
    pub(crate) fn advance(&mut self, sent: usize) -> Option<Cause> {
        self.sent = self.sent.saturating_add(sent);
        let message = self.messages.front()?;
        if self.sent < HEADER_SIZE.saturating_add(message.payload.len()) {
            return None;
        }
        self.sent = 0;
        let message = self.messages.pop_front()?;
        self.forget(&message);
        message.cause
    }

    /// Drops the waiting events that `doomed` names, except one of which the client has a part; gives their causes.
    pub(crate) fn drop_events(&mut self, doomed: impl Fn(WatchId, Instant) -> bool) -> Vec<Cause> {
        let keep_first = self.sent > 0;
        let mut causes = Vec::new();
        for (at, message) in core::mem::take(&mut self.messages).into_iter().enumerate() {
            let begun = keep_first && at == 0;
            match message.event {
                Some((watch, queued)) if !begun && doomed(watch, queued) => {
                    self.forget(&message);
                    causes.extend(message.cause);
                }
                _ => self.messages.push_back(message),
            }
        }
        causes
    }

    /// When the oldest waiting event was queued.
    pub(crate) fn oldest_event(&self) -> Option<Instant> {
        self.messages
            .iter()
            .find_map(|message| message.event.map(|(_, queued)| queued))
    }

    /// Drops everything; gives the causes.
    pub(crate) fn clear(&mut self) -> Vec<Cause> {
        let cleared = core::mem::take(self);
        cleared
            .messages
            .iter()
            .filter_map(|message| message.cause)
            .collect()
    }

    fn push(&mut self, message: Message) {
        self.bytes = self.bytes.saturating_add(message.bytes());
        self.messages.push_back(message);
    }

    fn forget(&mut self, message: &Message) {
        self.bytes = self.bytes.saturating_sub(message.bytes());
        if message.event.is_some() {
            self.events = self.events.saturating_sub(1);
            self.told.remove(&message.payload);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(payload: &str, repeats: bool) -> Event {
        Event {
            watch: WatchId::default(),
            payload: payload.as_bytes().to_vec(),
            queued: Instant(0),
            cause: None,
            repeats,
        }
    }

    fn drain(output: &mut Output, chunk: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !output.front().is_empty() {
            let front = output.front();
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
                b"abc",
                None,
            );
            output.reply(
                Header {
                    kind: 1,
                    ..Header::default()
                },
                b"",
                None,
            );
            assert!(output.event(event("p\0t\0", false)));
            let bytes = drain(&mut output, chunk);
            assert_eq!(bytes.len(), 3 * HEADER_SIZE + 3 + 4);
            assert_eq!(&bytes[16..19], b"abc");
            assert_eq!(&bytes[bytes.len() - 4..], b"p\0t\0");
            assert_eq!((output.bytes(), output.events()), (0, 0));
        }
    }

    #[test]
    fn an_equal_event_waits_once() {
        let mut output = Output::default();
        assert!(output.event(event("p\0t\0", false)));
        assert!(!output.event(event("p\0t\0", false)));
        assert!(output.event(event("@p\0t\0", true)));
        assert!(output.event(event("@p\0t\0", true)));
        assert_eq!(output.events(), 3);
        drain(&mut output, 4096);
        assert!(output.event(event("p\0t\0", false)));
    }

    #[test]
    fn a_half_sent_event_is_not_dropped() {
        let mut output = Output::default();
        output.event(event("a\0t\0", false));
        output.event(event("b\0t\0", false));
        output.advance(1);
        output.drop_events(|_, _| true);
        assert_eq!(output.events(), 1);
        assert_eq!(drain(&mut output, 4096).len(), HEADER_SIZE + 4 - 1);
    }
}
