//! Output that waits: cut into its messages, with what is known of each.

use super::super::Damage;
use crate::ids::{ConnId, DomId};
use crate::output::{Cause, EventText, Mark as EventMark, Message, Payload};
use crate::path::{Path, PathRef};
use crate::storage::Storage;
use crate::time::Instant;
use crate::watch::{Token, WatchId};
use crate::wire::{HEADER_SIZE, Header, Kind, PAYLOAD_MAX};

use super::{Import, NOWHERE};

/// Output of a connection that is not queued yet.
pub(super) struct Unsent<'s> {
    pub(super) conn: ConnId,
    pub(super) id: u32,
    /// What was sent of the first message.
    pub(super) begun: &'s [u8],
    /// The rest of that one.
    pub(super) tail: &'s [u8],
    pub(super) rest: &'s [u8],
}

impl<'s, S: Storage> Import<'s, S> {
    /// Queues the next message of a connection, with what is known of it.
    pub(super) fn message(&mut self, id: u32, mark: MessageMark) -> Result<(), Damage> {
        let unsent = self.output.as_mut().filter(|unsent| unsent.id == id);
        let unsent = unsent.ok_or(Damage::Reference)?;
        let conn = unsent.conn;
        let sent = unsent.begun.len();
        let bytes;
        let bytes = if unsent.tail.is_empty() {
            take_message(&mut unsent.rest)?
        } else {
            bytes = [unsent.begun, core::mem::take(&mut unsent.tail)].concat();
            let mut whole = bytes.as_slice();
            let message = take_message(&mut whole)?;
            if !whole.is_empty() || sent >= message.len() || sent == 0 {
                return Err(Damage::Message);
            }
            message
        };
        let is_begun = sent > 0 && core::mem::take(&mut unsent.begun).len() == sent;
        let cause = mark.cause.map(|(number, request)| Cause {
            connection: self.numbered(number),
            request,
        });
        let event = mark.event.map(|(watch, queued, repeats)| EventMark {
            watch: self.watch_id(watch),
            queued: self.clock.moved(queued),
            repeats,
        });
        let message = read_message(bytes, cause, event)?;
        if let Some(cause) = cause {
            self.caused
                .push((cause.connection, cause.request, message.bytes()));
        }
        self.queue_message(conn, message, if is_begun { sent } else { 0 })
    }

    /// The watch that had this number, or an id that names none and stands where its own would.
    pub(super) fn watch_id(&self, number: u64) -> WatchId {
        let place = NOWHERE();
        self.watches
            .get(&number)
            .copied()
            .unwrap_or(WatchId { number, place })
    }

    pub(super) fn queue_message(
        &mut self,
        conn: ConnId,
        message: Message,
        sent: usize,
    ) -> Result<(), Damage> {
        let connection = self.server.connections.get_mut(conn);
        let connection = connection.ok_or(Damage::Reference)?;
        let is_counted = !connection.privileged;
        connection.output.restore(message, is_counted);
        if sent > 0 {
            connection.output.restore_sent(sent);
        }
        Ok(())
    }

    /// Queues what is left of a connection's output, of which nothing more is known.
    pub(super) fn flush(&mut self) -> Result<(), Damage> {
        let Some(mut unsent) = self.output.take() else {
            return Ok(());
        };
        if !unsent.begun.is_empty() {
            return Err(Damage::Message);
        }
        if !unsent.tail.is_empty() {
            let message = Message {
                header: [0; HEADER_SIZE],
                payload: Payload::Bytes(unsent.tail.to_vec()),
                cause: None,
                event: None,
            };
            self.queue_message(unsent.conn, message, HEADER_SIZE)?;
        }
        while !unsent.rest.is_empty() {
            let bytes = take_message(&mut unsent.rest)?;
            let mark = EventMark {
                watch: self.watch_id(u64::MAX),
                queued: self.server.now,
                repeats: false,
            };
            let message = read_message(bytes, None, Some(mark))
                .or_else(|_| read_message(bytes, None, None))?;
            self.queue_message(unsent.conn, message, 0)?;
        }
        Ok(())
    }
}

/// What is known of a message besides its bytes.
pub(super) struct MessageMark {
    /// The number of the connection whose request made it, and which request that was.
    pub(super) cause: Option<(u64, u64)>,
    /// Of an event the watch, when it was queued, and whether it is told even if an equal one waits.
    pub(super) event: Option<(u64, Instant, bool)>,
}

/// Cuts a whole message off.
fn take_message<'b>(bytes: &mut &'b [u8]) -> Result<&'b [u8], Damage> {
    let header = bytes.first_chunk().ok_or(Damage::Message)?;
    let len = Header::decode(*header).len;
    if len > PAYLOAD_MAX {
        return Err(Damage::Message);
    }
    let len = usize::try_from(len).map_err(|_| Damage::Message)?;
    let size = len.saturating_add(HEADER_SIZE);
    let (message, rest) = bytes.split_at_checked(size).ok_or(Damage::Message)?;
    *bytes = rest;
    Ok(message)
}

fn read_message(
    bytes: &[u8],
    cause: Option<Cause>,
    event: Option<EventMark>,
) -> Result<Message, Damage> {
    let (header, payload) = bytes.split_first_chunk().ok_or(Damage::Message)?;
    let is_event = Header::decode(*header).kind == Kind::WatchEvent.number();
    let payload = match (event, is_event) {
        (Some(_), true) => Payload::Event(event_text(payload).ok_or(Damage::Message)?),
        (None, _) => Payload::Bytes(payload.to_vec()),
        (Some(_), false) => return Err(Damage::Message),
    };
    Ok(Message {
        header: *header,
        payload,
        cause,
        event,
    })
}

/// What an event says: a path as its client wrote it, and a token.
fn event_text(payload: &[u8]) -> Option<EventText> {
    let mut strings = payload.split(|byte| *byte == 0);
    let (path, token) = (strings.next()?, strings.next()?);
    let (Some([]), None) = (strings.next(), strings.next()) else {
        return None;
    };
    Path::parse(path, DomId::default(), 0).ok()?;
    let path = core::str::from_utf8(path).ok()?;
    Some(EventText {
        path: PathRef::known(path).to_path(),
        from: 0,
        token: Token::new(token),
    })
}
