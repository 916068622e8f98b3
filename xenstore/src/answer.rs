//! What a request is answered with, before it becomes bytes.
//!
//! Answers share what they show with the tree, so a transaction can keep them and compare them when it commits.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::ids::Generation;
use crate::output::Payload;
use crate::tree::{Children, Value, listed_size};
use crate::wire::PAYLOAD_MAX;

/// A good answer; the bad ones are [`crate::wire::Errno`].
#[derive(Clone)]
pub(crate) enum Answer {
    /// `OK`.
    Done,
    Value(Value),
    /// A child list, whole.
    Names(Children),
    /// A child list from byte `offset` on, as far as it fits.
    Part {
        generation: Generation,
        children: Children,
        offset: usize,
    },
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
            (Self::Names(a), Self::Names(b))
            | (Self::Part { children: a, .. }, Self::Part { children: b, .. }) => {
                a.list_size() == b.list_size() && a.names().eq(b.names())
            }
            (Self::Permissions(a), Self::Permissions(b)) => a == b,
            (Self::Text(a), Self::Text(b)) => a == b,
            _ => false,
        }
    }
}

impl Answer {
    /// The payload of the reply. It may be too long for one, except for a part, which is cut to fit.
    pub(crate) fn into_payload(self) -> Payload {
        match self {
            Self::Done => Payload::Fixed("OK\0"),
            Self::Value(value) => Payload::Value(value),
            Self::Names(children) => Payload::Bytes(list(&children)),
            Self::Part {
                generation,
                children,
                offset,
            } => Payload::Bytes(part(generation, &children, offset)),
            Self::Permissions(shown) => Payload::Bytes(shown.into_bytes()),
            Self::Text(text) => Payload::Bytes(listed(&text)),
        }
    }

    /// Bytes that keeping the answer costs; what it shares with the tree is small beside its bookkeeping.
    pub(crate) fn footprint(&self) -> usize {
        match self {
            Self::Value(value) => value.as_bytes().len(),
            Self::Names(children) | Self::Part { children, .. } => children.list_size(),
            Self::Permissions(shown) => shown.len(),
            Self::Done | Self::Text(_) => 0,
        }
    }
}

fn list(children: &Children) -> Vec<u8> {
    let mut payload = Vec::with_capacity(children.list_size());
    for name in children.names() {
        append(&mut payload, name.as_bytes());
    }
    payload
}

fn listed(text: &str) -> Vec<u8> {
    let mut payload = Vec::with_capacity(listed_size(text));
    append(&mut payload, text.as_bytes());
    payload
}

/// Appends a string with its NUL.
fn append(payload: &mut Vec<u8>, string: &[u8]) {
    payload.extend_from_slice(string);
    payload.push(0);
}

/// DIRECTORY_PART's payload (protocol.md section 6): the generation, then whole names while they fit; a further NUL ends the last part.
fn part(generation: Generation, children: &Children, offset: usize) -> Vec<u8> {
    let most = usize::try_from(PAYLOAD_MAX).unwrap_or(usize::MAX);
    let mut payload = listed(&format!("{}", generation.0));
    let (names, within) = children.names_from(offset);
    let mut skip = within;
    for name in names {
        let rest = name.as_bytes().get(skip..).unwrap_or_default();
        if payload.len().saturating_add(rest.len()) >= most {
            return payload;
        }
        append(&mut payload, rest);
        skip = 0;
    }
    if payload.len() < most {
        payload.push(0);
    }
    payload
}
