//! What a request is answered with, before it becomes bytes. A transaction keeps its answers and compares them when it commits.

use alloc::format;
use alloc::string::String;
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
}

/// Whether a client could not tell one from the other. Generations are no matter: they only tell that something may have changed.
impl PartialEq for Answer {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Done, Self::Done) => true,
            (Self::Value(a), Self::Value(b)) => a == b,
            (Self::Names(a), Self::Names(b)) => a == b,
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
        let mut names = Vec::with_capacity(children.list_size());
        children.names_from(0, |name, _| {
            append(&mut names, name.as_bytes());
            true
        });
        Self::Names(names)
    }

    /// A child list from byte `offset` on (DIRECTORY_PART, protocol.md section 6): the generation, then whole names while they fit; a further
    /// NUL ends the last part.
    pub(crate) fn part<T: Clone>(
        generation: Generation,
        children: &Children<T>,
        offset: usize,
    ) -> Self {
        let start = format!("{}\0", generation.0);
        let left = children.list_size().saturating_sub(offset);
        let size = start.len().saturating_add(left).saturating_add(1);
        let mut payload = Vec::with_capacity(size.min(MOST));
        payload.extend_from_slice(start.as_bytes());
        let mut whole = true;
        children.names_from(offset, |name, within| {
            let rest = name.as_bytes().get(within..).unwrap_or_default();
            whole = payload.len().saturating_add(rest.len()) < MOST;
            if whole {
                append(&mut payload, rest);
            }
            whole
        });
        if whole && payload.len() < MOST {
            payload.push(0);
        }
        Self::Part(payload, start.len())
    }

    /// The payload of the reply. It may be too long for one, except for a part, which is cut to fit.
    pub(crate) fn into_payload(self) -> Payload {
        match self {
            Self::Done => Payload::Fixed("OK\0"),
            Self::Value(value) => Payload::Value(value),
            Self::Names(names) | Self::Part(names, _) => Payload::Bytes(names),
            Self::Permissions(shown) => Payload::Bytes(shown.into_bytes()),
            Self::Text(text) => {
                let mut payload = Vec::with_capacity(listed_size(&text));
                append(&mut payload, text.as_bytes());
                Payload::Bytes(payload)
            }
        }
    }

    /// Bytes that keeping the answer costs.
    pub(crate) fn footprint(&self) -> usize {
        match self {
            Self::Value(value) => value.as_bytes().len(),
            Self::Names(names) | Self::Part(names, _) => names.len(),
            Self::Permissions(shown) | Self::Text(shown) => shown.len(),
            Self::Done => 0,
        }
    }
}

/// Appends a string with its NUL.
fn append(payload: &mut Vec<u8>, string: &[u8]) {
    payload.extend_from_slice(string);
    payload.push(0);
}
