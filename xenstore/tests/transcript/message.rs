//! Messages as they are on the wire, and as a transcript shows them.

use core::fmt::Write as _;

/// Bytes before each payload.
const HEADER_SIZE: usize = 16;

/// The message types by name, in order of their numbers; written down here once more so that the tests have their own opinion.
const KINDS: [&str; 27] = [
    "CONTROL",
    "DIRECTORY",
    "READ",
    "GET_PERMS",
    "WATCH",
    "UNWATCH",
    "TRANSACTION_START",
    "TRANSACTION_END",
    "INTRODUCE",
    "RELEASE",
    "GET_DOMAIN_PATH",
    "WRITE",
    "MKDIR",
    "RM",
    "SET_PERMS",
    "WATCH_EVENT",
    "ERROR",
    "IS_DOMAIN_INTRODUCED",
    "RESUME",
    "SET_TARGET",
    "RESTRICT",
    "RESET_WATCHES",
    "DIRECTORY_PART",
    "GET_FEATURE",
    "SET_FEATURE",
    "GET_QUOTA",
    "SET_QUOTA",
];

/// The type of an event.
pub(crate) const WATCH_EVENT: u32 = 15;
/// The type of a refusal.
pub(crate) const ERROR: u32 = 16;

/// One message, in either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: u32,
    pub(crate) req_id: u32,
    pub(crate) tx_id: u32,
    pub(crate) payload: Vec<u8>,
}

impl Message {
    /// The header with a length of its own, which need not be the payload's.
    pub(crate) fn header(kind: u32, req_id: u32, tx_id: u32, len: u32) -> Vec<u8> {
        [kind, req_id, tx_id, len]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let len = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        let mut bytes = Self::header(self.kind, self.req_id, self.tx_id, len);
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// Takes the first whole message off the bytes that came; none if there is none yet.
    ///
    /// # Errors
    /// The payload is announced longer than the protocol allows.
    pub(crate) fn take_from(bytes: &mut Vec<u8>) -> Result<Option<Self>, String> {
        let Some(header) = bytes.first_chunk::<HEADER_SIZE>() else {
            return Ok(None);
        };
        let (words, _) = header.as_chunks::<4>();
        let [kind, req_id, tx_id, len] = *words else {
            return Ok(None);
        };
        let len = usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX);
        if len > 4096 {
            return Err(format!("a message of {len} bytes"));
        }
        let end = HEADER_SIZE + len;
        if bytes.len() < end {
            return Ok(None);
        }
        let message = bytes.drain(..end).collect::<Vec<_>>();
        Ok(Some(Self {
            kind: u32::from_le_bytes(kind),
            req_id: u32::from_le_bytes(req_id),
            tx_id: u32::from_le_bytes(tx_id),
            payload: message.into_iter().skip(HEADER_SIZE).collect(),
        }))
    }

    /// The message in the words of a transcript.
    pub(crate) fn show(&self) -> String {
        let payload = show_payload(&self.payload);
        match self.kind {
            WATCH_EVENT => format!("! {payload}"),
            ERROR => format!("< {payload}"),
            kind => format!("< {payload}   ({})", name(kind)),
        }
    }
}

/// A message type's number, by name or as a number.
pub(crate) fn kind(word: &str) -> Option<u32> {
    let named = KINDS.iter().position(|name| *name == word);
    named.map_or_else(|| word.parse().ok(), |at| u32::try_from(at).ok())
}

fn name(kind: u32) -> String {
    let named = usize::try_from(kind).ok().and_then(|at| KINDS.get(at));
    named.map_or_else(|| kind.to_string(), |name| (*name).to_owned())
}

/// Strings with their NULs as words; what is left behind the last one as raw bytes.
fn show_payload(payload: &[u8]) -> String {
    let mut shown = String::new();
    for piece in payload.split_inclusive(|byte| *byte == 0) {
        let (text, quote) = match piece.strip_suffix(&[0]) {
            Some(text) if text.iter().all(|byte| byte.is_ascii_graphic()) && !text.is_empty() => {
                (text, "")
            }
            Some(text) => (text, "\""),
            None => (piece, "'"),
        };
        let separator = if shown.is_empty() { "" } else { " " };
        let text = abridge(&text.escape_ascii().to_string());
        let _ = write!(shown, "{separator}{quote}{text}{quote}");
    }
    if shown.is_empty() {
        shown.push_str("''");
    }
    shown
}

/// Long texts with their middle left out.
fn abridge(text: &str) -> String {
    const SHOWN: usize = 120;
    match (text.get(..SHOWN), text.get(text.len().saturating_sub(20)..)) {
        (Some(head), Some(tail)) => format!("{head}…({} characters)…{tail}", text.len()),
        _ => text.to_owned(),
    }
}
