//! Domids of the texts and those of the machine: a guest that a text calls 1 has the domid that `xl` gave it.

use crate::cases::transcript::message::{Message, WATCH_EVENT, kind};

/// What is added to a number that means nobody in a text and somebody here.
const NOBODY: u16 = 1000;
/// The port that every text gives to a domain's connection.
const PORT: &[u8] = b"7";

/// Who is who in one case.
#[derive(Default)]
pub(crate) struct Domids {
    /// A text's domid, the machine's, and the port of its connection.
    known: Vec<(u16, u16, u32)>,
    /// Domids that are taken here.
    taken: Vec<u16>,
}

impl Domids {
    pub(crate) fn new(known: Vec<(u16, u16, u32)>, taken: Vec<u16>) -> Self {
        Self { known, taken }
    }

    /// A request as it must be here.
    pub(crate) fn to_machine(&self, mut message: Message) -> Message {
        let port = self.introduced_port(&message);
        rename(&mut message, asked, |domid| self.real(domid));
        if let Some(port) = port {
            replace_argument(&mut message.payload, 2, &port.to_string());
        }
        message
    }

    /// A reply or an event as the text has it.
    pub(crate) fn to_text(&self, mut message: Message) -> Message {
        rename(&mut message, answered, |domid| self.written(domid));
        message
    }

    fn real(&self, domid: u16) -> u16 {
        let known = self.known.iter().find(|(text, ..)| *text == domid);
        match known {
            Some((_, real, _)) => *real,
            None if self.taken.contains(&domid) => domid.saturating_add(NOBODY),
            None => domid,
        }
    }

    fn written(&self, domid: u16) -> u16 {
        let known = self.known.iter().find(|(_, real, _)| *real == domid);
        match (known, domid.checked_sub(NOBODY)) {
            (Some((text, ..)), _) => *text,
            (None, Some(nobody)) if self.taken.contains(&nobody) => nobody,
            _ => domid,
        }
    }

    /// The port of the domain that a request introduces, if the text means it.
    fn introduced_port(&self, message: &Message) -> Option<u32> {
        let mut arguments = message.payload.split(|byte| *byte == 0);
        let domid = number(arguments.next()?)?;
        let known = self.known.iter().find(|(text, ..)| *text == domid);
        let is_meant = Some(message.kind) == kind("INTRODUCE") && arguments.nth(1) == Some(PORT);
        known.filter(|_| is_meant).map(|(_, _, port)| *port)
    }
}

/// What a string of a message is to a domid.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// It is one.
    Domid,
    /// It ends in one, after a letter.
    Entry,
    /// It is a path, which may lie below a domain's home.
    Path,
    /// Nothing.
    Text,
}

/// What the string at a place in a request's payload means.
fn asked(sent: u32, index: usize) -> Meaning {
    const DOMID_FIRST: [&str; 11] = [
        "INTRODUCE",
        "RELEASE",
        "IS_DOMAIN_INTRODUCED",
        "RESUME",
        "SET_TARGET",
        "GET_DOMAIN_PATH",
        "GET_FEATURE",
        "SET_FEATURE",
        "GET_QUOTA",
        "SET_QUOTA",
        "CONTROL",
    ];
    let is = |name| Some(sent) == kind(name);
    match index {
        0 if DOMID_FIRST.into_iter().any(is) => Meaning::Domid,
        0 => Meaning::Path,
        1 if is("SET_TARGET") || is("CONTROL") => Meaning::Domid,
        _ if is("SET_PERMS") => Meaning::Entry,
        _ => Meaning::Text,
    }
}

/// Likewise in a reply or an event.
fn answered(came: u32, index: usize) -> Meaning {
    if Some(came) == kind("GET_PERMS") {
        return Meaning::Entry;
    }
    let holds_path = came == WATCH_EVENT || Some(came) == kind("GET_DOMAIN_PATH");
    if holds_path && index == 0 {
        Meaning::Path
    } else {
        Meaning::Text
    }
}

/// Applies a change to every domid in a message.
fn rename(message: &mut Message, meaning: fn(u32, usize) -> Meaning, change: impl Fn(u16) -> u16) {
    let pieces = message.payload.split_inclusive(|byte| *byte == 0);
    let renamed = pieces.enumerate().flat_map(|(at, piece)| {
        let text = piece.strip_suffix(&[0]);
        let changed = text.and_then(|text| match meaning(message.kind, at) {
            Meaning::Domid => whole(text, &change),
            Meaning::Entry => entry(text, &change),
            Meaning::Path => home(text, &change),
            Meaning::Text => None,
        });
        changed.map_or_else(
            || piece.to_vec(),
            |changed| [changed.as_slice(), &[0]].concat(),
        )
    });
    message.payload = renamed.collect();
}

fn replace_argument(payload: &mut Vec<u8>, index: usize, value: &str) {
    let pieces = payload.split_inclusive(|byte| *byte == 0).enumerate();
    let replaced = pieces.flat_map(|(at, piece)| {
        if at == index && piece.ends_with(&[0]) {
            [value.as_bytes(), &[0]].concat()
        } else {
            piece.to_vec()
        }
    });
    *payload = replaced.collect();
}

/// `1`
fn whole(text: &[u8], change: impl Fn(u16) -> u16) -> Option<Vec<u8>> {
    Some(change(number(text)?).to_string().into_bytes())
}

/// `r1`
fn entry(text: &[u8], change: impl Fn(u16) -> u16) -> Option<Vec<u8>> {
    let (letter, domid) = text.split_first()?;
    let domid = change(number(domid)?).to_string();
    b"nrwb"
        .contains(letter)
        .then(|| [&[*letter], domid.as_bytes()].concat())
}

/// `/local/domain/1` and what is below it.
fn home(text: &[u8], change: impl Fn(u16) -> u16) -> Option<Vec<u8>> {
    const HOMES: &[u8] = b"/local/domain/";
    let rest = text.strip_prefix(HOMES)?;
    let end = rest.iter().position(|byte| *byte == b'/');
    let (domid, below) = rest.split_at(end.unwrap_or(rest.len()));
    let domid = change(number(domid)?).to_string();
    Some([HOMES, domid.as_bytes(), below].concat())
}

/// A domid in the one way that it is written.
fn number(text: &[u8]) -> Option<u16> {
    let text = core::str::from_utf8(text).ok()?;
    let domid: u16 = text.parse().ok()?;
    (domid.to_string() == text).then_some(domid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domids() -> Domids {
        Domids::new(vec![(1, 8, 3), (31, 5, 0)], vec![5, 8])
    }

    fn sent(name: &str, payload: &[u8]) -> Vec<u8> {
        let message = message(name, payload);
        domids().to_machine(message).payload
    }

    fn came(name: &str, payload: &[u8]) -> Vec<u8> {
        let message = message(name, payload);
        domids().to_text(message).payload
    }

    fn message(name: &str, payload: &[u8]) -> Message {
        Message {
            kind: kind(name).unwrap(),
            req_id: 1,
            tx_id: 0,
            payload: payload.to_vec(),
        }
    }

    #[test]
    fn requests_name_the_machines_domains() {
        assert_eq!(sent("INTRODUCE", b"1\x001\x007\0"), b"8\x001\x003\0");
        assert_eq!(sent("INTRODUCE", b"1\x001\x009\0"), b"8\x001\x009\0");
        assert_eq!(sent("INTRODUCE", b"1\x001\x007"), b"8\x001\x007");
        assert_eq!(sent("RELEASE", b"31\0"), b"5\0");
        assert_eq!(sent("RELEASE", b"5\0"), b"1005\0");
        assert_eq!(sent("RELEASE", b"1"), b"1");
        assert_eq!(sent("SET_TARGET", b"1\x0077\0"), b"8\x0077\0");
        assert_eq!(sent("SET_QUOTA", b"1\0nodes\x001\0"), b"8\0nodes\x001\0");
        assert_eq!(sent("CONTROL", b"quota\x001\0"), b"quota\x008\0");
        assert_eq!(
            sent("SET_PERMS", b"/local/domain/1\0n1\0r0\0x1\0"),
            b"/local/domain/8\0n8\0r0\0x1\0"
        );
        assert_eq!(
            sent("WRITE", b"/local/domain/1/a\x001\0"),
            b"/local/domain/8/a\x001\0"
        );
        assert_eq!(sent("WATCH", b"a\x001\0"), b"a\x001\0");
    }

    #[test]
    fn replies_name_the_texts() {
        assert_eq!(came("GET_PERMS", b"n8\0r1005\0"), b"n1\0r5\0");
        assert_eq!(
            came("GET_DOMAIN_PATH", b"/local/domain/8\0"),
            b"/local/domain/1\0"
        );
        assert_eq!(
            came("WATCH_EVENT", b"/local/domain/8/a\x008\0"),
            b"/local/domain/1/a\x008\0"
        );
        assert_eq!(came("READ", b"8\0"), b"8\0");
        assert_eq!(came("GET_QUOTA", b"8\0"), b"8\0");
        assert_eq!(came("GET_FEATURE", b"8\0"), b"8\0");
    }
}
