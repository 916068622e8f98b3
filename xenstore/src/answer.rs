//! What a request is answered with, before it becomes bytes. A transaction keeps its answers and compares them when it commits.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crate::ids::Generation;
use crate::output::Payload;
use crate::storage::{Children, Value, listed_size};
use crate::wire::PAYLOAD_MAX;

/// Most bytes of a payload.
const MOST: usize = PAYLOAD_MAX as usize;

/// A good answer; the bad ones are [`crate::wire::Errno`].
#[derive(Clone)]
pub(crate) enum Answer {
    /// `OK`.
    Done,
    Value(Value),
    /// A child list, each name with its NUL.
    Names(Vec<u8>),
    /// As much of a child list as fits behind the generation, and a further NUL if that is all; with how long the generation is.
    Part(Vec<u8>, usize),
    /// An access control list as it is shown: each entry with its NUL, without those of domains that are no more.
    Permissions(String),
    /// Text, sent with a NUL behind it.
    Text(String),
    /// What a layer answered.
    Bytes(Vec<u8>),
}

/// Whether a client could not tell one from the other. Generations are no matter: they only tell that something may have changed.
impl PartialEq for Answer {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Done, Self::Done) => true,
            (Self::Value(a), Self::Value(b)) => a == b,
            (Self::Names(a), Self::Names(b)) | (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::Part(a, a_start), Self::Part(b, b_start)) => {
                a.get(*a_start..) == b.get(*b_start..)
            }
            (Self::Permissions(a), Self::Permissions(b)) | (Self::Text(a), Self::Text(b)) => a == b,
            _ => false,
        }
    }
}

impl Answer {
    /// The whole child list.
    pub(crate) fn names<T: Clone>(children: &Children<T>) -> Self {
        let mut list = List::new(children.list_size());
        children.pieces_from(0, |piece| list.append(piece));
        Self::Names(list.bytes)
    }

    /// A child list from byte `offset` on (DIRECTORY_PART, protocol.md section 6): the generation, then whole names while they fit; a further
    /// NUL ends the last part.
    pub(crate) fn part<T: Clone>(
        generation: Generation,
        children: &Children<T>,
        offset: usize,
    ) -> Self {
        let number = format!("{}", generation.0);
        let left = children.list_size().saturating_sub(offset);
        let start = listed_size(&number);
        let mut list = List::new(start.saturating_add(left).saturating_add(1).min(MOST));
        let mut whole = list.append(number.as_bytes());
        children.pieces_from(offset, |piece| {
            let mut names = piece.split(|byte| *byte == 0);
            whole = list.append(piece) || names.all(|name| list.append(name));
            whole
        });
        // The byte behind all names is a NUL already.
        let end = list.end.saturating_add(usize::from(whole));
        list.bytes.truncate(end);
        Self::Part(list.bytes, start)
    }

    /// The payload of the reply. It may be too long for one, except for a part, which is cut to fit.
    pub(crate) fn into_payload(self) -> Payload {
        match self {
            Self::Done => Payload::Fixed("OK\0"),
            Self::Value(value) => Payload::Value(value),
            Self::Names(bytes) | Self::Part(bytes, _) | Self::Bytes(bytes) => Payload::Bytes(bytes),
            Self::Permissions(shown) => Payload::Bytes(shown.into_bytes()),
            Self::Text(text) => {
                let mut payload = text.into_bytes();
                payload.push(0);
                Payload::Bytes(payload)
            }
        }
    }

    /// Bytes that keeping the answer costs.
    pub(crate) fn footprint(&self) -> usize {
        match self {
            Self::Value(value) => value.as_bytes().len(),
            Self::Names(bytes) | Self::Part(bytes, _) | Self::Bytes(bytes) => bytes.len(),
            Self::Permissions(shown) | Self::Text(shown) => shown.len(),
            Self::Done => 0,
        }
    }
}

/// Strings one behind the other, each with its NUL, in a place that is made for them.
struct List {
    /// NULs, where no string stands.
    bytes: Vec<u8>,
    /// Where the strings end.
    end: usize,
}

impl List {
    fn new(size: usize) -> Self {
        Self {
            bytes: vec![0; size],
            end: 0,
        }
    }

    /// Appends a string, if there is room for it; whether there was.
    fn append(&mut self, string: &[u8]) -> bool {
        let nul = self.end.saturating_add(string.len());
        if nul >= self.bytes.len() {
            return false;
        }
        if let Some(place) = self.bytes.get_mut(self.end..nul) {
            place.copy_from_slice(string);
        }
        self.end = nul.saturating_add(1);
        true
    }
}
