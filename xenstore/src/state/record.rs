//! The documented records as they are read: every inner length checked, strings ended where the lengths say and nowhere before.
//!
//! Layouts are those of `docs/designs/xenstore-migration.md` of Xen, as docs/state-stream.md has them.

use alloc::vec::Vec;
use core::fmt;
use core::str;

use super::Damage;
use super::codec::{Fields, padded};
use super::own::Own;
use crate::acl::Letter;
use crate::ids::DomId;
use crate::path::NamedPath;

/// What a stream begins with.
pub(super) const IDENTIFIER: &[u8; 8] = b"xenstore";
/// Bytes of what comes before the records.
pub(super) const PREAMBLE_SIZE: usize = 16;
/// Bytes before a record's body.
pub(super) const HEADER_SIZE: usize = 8;
/// The target of a domain that has none, `DOMID_INVALID`.
pub(super) const NO_TARGET: u16 = 0x7ff4;
/// Any depth.
pub(super) const UNLIMITED: u16 = 0xffff;
/// `flags` of a permission: it is to be ignored, since there was no domain that it could mean.
pub(super) const IGNORE: u8 = 1;
/// `fields` of a connection: a unique id stands at the end.
pub(super) const HAS_UNIQUE: u16 = 1;
/// Highest type of a documented record.
const DOCUMENTED_MAX: u32 = 8;

/// The types of the documented records.
pub(super) mod kind {
    pub(in super::super) const END: u32 = 0;
    pub(in super::super) const GLOBAL: u32 = 1;
    pub(in super::super) const CONNECTION: u32 = 2;
    pub(in super::super) const WATCH: u32 = 3;
    pub(in super::super) const TRANSACTION: u32 = 4;
    pub(in super::super) const NODE: u32 = 5;
    pub(in super::super) const QUOTAS: u32 = 6;
    pub(in super::super) const DOMAIN: u32 = 7;
    pub(in super::super) const WATCH_EXTENDED: u32 = 8;
}

/// One record of a stream.
#[derive(Clone, Debug)]
pub(super) enum Content<'a> {
    End,
    Global(Global),
    Connection(Connection<'a>),
    Watch(Watch<'a>),
    Transaction(Transaction),
    Node(Node<'a>),
    Quotas(Quotas<'a>),
    Domain(Domain<'a>),
    Own(Own<'a>),
    Unknown,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Global {
    pub(super) rw_socket_fd: i32,
    pub(super) evtchn_fd: i32,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Carrier {
    Ring {
        domid: DomId,
        target: Option<DomId>,
        port: u32,
    },
    Socket {
        fd: i32,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Connection<'a> {
    pub(super) id: u32,
    pub(super) carrier: Carrier,
    pub(super) input: &'a [u8],
    /// How much of the output is the end of a message that was begun.
    pub(super) tail: usize,
    pub(super) output: &'a [u8],
    pub(super) unique: Option<u64>,
}

#[derive(Clone, Debug)]
pub(super) struct Watch<'a> {
    pub(super) conn: u32,
    pub(super) path: &'a str,
    pub(super) token: &'a [u8],
    /// `None` for any.
    pub(super) depth: Option<u16>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Transaction {
    pub(super) conn: u32,
    pub(super) id: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Node<'a> {
    pub(super) conn: u32,
    pub(super) transaction: u32,
    pub(super) access: u16,
    pub(super) permissions: Permissions<'a>,
    pub(super) path: &'a str,
    pub(super) value: &'a [u8],
}

/// Quotas with their values.
#[derive(Clone, Debug)]
pub(super) struct Quotas<'a> {
    pub(super) of_domains: Vec<(&'a [u8], u32)>,
    pub(super) of_all: Vec<(&'a [u8], u32)>,
}

#[derive(Clone, Debug)]
pub(super) struct Domain<'a> {
    pub(super) domid: DomId,
    pub(super) features: u32,
    pub(super) quotas: Vec<(&'a [u8], u32)>,
}

/// The permissions of a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permissions<'a>(&'a [u8]);

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permission {
    pub(super) letter: Letter,
    pub(super) is_ignored: bool,
    pub(super) domid: DomId,
}

impl<'a> Permissions<'a> {
    /// Reads `count` permissions.
    pub(super) fn read(fields: &mut Fields<'a>, count: u16) -> Result<Self, Damage> {
        let bytes = fields.bytes(usize::from(count).saturating_mul(4))?;
        let all = Self(bytes);
        let are_letters = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .all(|[letter, ..]| Letter::parse(*letter).is_ok());
        if are_letters {
            Ok(all)
        } else {
            Err(Damage::Permission)
        }
    }

    /// Those that were written so by us.
    pub(super) fn written(entries: &'a [u8]) -> Self {
        Self(entries)
    }

    pub(super) fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Permission> {
        let entries = self.0.as_chunks::<4>().0.iter();
        entries.map(|[letter, flags, low, high]| Permission {
            letter: Letter::parse(*letter).unwrap_or(Letter::None),
            is_ignored: flags & IGNORE != 0,
            domid: DomId::new(u16::from_le_bytes([*low, *high])),
        })
    }
}

/// As `xenstore-ls -p` shows them.
impl fmt::Display for Permissions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(")?;
        for (number, entry) in self.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            let ignored = if entry.is_ignored { "!" } else { "" };
            write!(
                f,
                "{comma}{ignored}{}{}",
                entry.letter.as_char(),
                entry.domid
            )?;
        }
        f.write_str(")")
    }
}

impl<'a> Content<'a> {
    /// Reads the body of a record of any type but the one of watches with a depth.
    pub(super) fn read(kind: u32, body: &'a [u8]) -> Result<Self, Damage> {
        let fields = Fields::new(body);
        match kind {
            kind::END if body.is_empty() => Ok(Self::End),
            kind::END => Err(Damage::Length),
            kind::GLOBAL => global(fields).map(Self::Global),
            kind::CONNECTION => connection(body).map(Self::Connection),
            kind::WATCH => watch(fields).map(Self::Watch),
            kind::TRANSACTION => transaction(fields).map(Self::Transaction),
            kind::NODE => node(fields).map(Self::Node),
            kind::QUOTAS => quotas(fields).map(Self::Quotas),
            kind::DOMAIN => domain(fields).map(Self::Domain),
            kind => match Own::read(kind, fields)? {
                Some(own) => Ok(Self::Own(own)),
                None => Ok(Self::Unknown),
            },
        }
    }
}

fn global(mut fields: Fields<'_>) -> Result<Global, Damage> {
    Ok(Global {
        rw_socket_fd: fields.u32()?.cast_signed(),
        evtchn_fd: fields.u32()?.cast_signed(),
    })
}

fn connection(body: &[u8]) -> Result<Connection<'_>, Damage> {
    let mut fields = Fields::new(body);
    let id = fields.u32()?;
    let kind = fields.u16()?;
    let has_unique = fields.u16()? & HAS_UNIQUE != 0;
    let carrier = carrier(kind, Fields::new(fields.bytes(8)?))?;
    let input_len = usize::from(fields.u16()?);
    let tail = usize::from(fields.u16()?);
    let output_len = fields.len32()?;
    let input = fields.bytes(input_len)?;
    let output = fields.bytes(output_len)?;
    if id == 0 || tail > output_len {
        return Err(Damage::Field);
    }
    let unique = if has_unique {
        let before = body.len().saturating_sub(fields.rest().len());
        let at = padded(before).ok_or(Damage::Short)?;
        Some(Fields::new(body.get(at..).ok_or(Damage::Short)?).u64()?)
    } else {
        None
    };
    Ok(Connection {
        id,
        carrier,
        input,
        tail,
        output,
        unique,
    })
}

fn carrier(kind: u16, mut fields: Fields<'_>) -> Result<Carrier, Damage> {
    match kind {
        0 => {
            let domid = ordinary(fields.u16()?)?;
            let target = match fields.u16()? {
                NO_TARGET => None,
                target => Some(ordinary(target)?),
            };
            let port = fields.u32()?;
            Ok(Carrier::Ring {
                domid,
                target,
                port,
            })
        }
        1 => Ok(Carrier::Socket {
            fd: fields.u32()?.cast_signed(),
        }),
        _ => Err(Damage::Field),
    }
}

fn watch(mut fields: Fields<'_>) -> Result<Watch<'_>, Damage> {
    let conn = fields.u32()?;
    let path_len = fields.u16()?;
    let token_len = fields.u16()?;
    let path = watched(fields.bytes(path_len.into())?)?;
    let token = string(fields.bytes(token_len.into())?)?;
    Ok(Watch {
        conn,
        path,
        token,
        depth: None,
    })
}

/// Reads a watch with a depth out of what follows its header: in the documented layout, or in the one that C xenstored writes, which lacks
/// the depth and is up to 8 bytes shorter than it says. Gives the length of the body that is really there, too.
pub(super) fn watch_extended(rest: &[u8], declared: usize) -> Result<(Watch<'_>, usize), Damage> {
    let body = rest.get(..declared).ok_or(Damage::Short)?;
    if let Ok(watch) = watch_documented(body) {
        return Ok((watch, declared));
    }
    // What stands here may end with the record, so the next one is where the lengths say.
    let (watch, used) = watch_short(rest).map_err(|_| Damage::Watch)?;
    let real = padded(used).ok_or(Damage::Short)?;
    let fits = real == declared || real.checked_add(8) == Some(declared);
    if fits && is_header(rest.get(real..).unwrap_or_default()) {
        Ok((watch, real))
    } else {
        Err(Damage::Watch)
    }
}

fn watch_documented(body: &[u8]) -> Result<Watch<'_>, Damage> {
    let mut fields = Fields::new(body);
    let conn = fields.u32()?;
    let path_len = fields.u16()?;
    let token_len = fields.u16()?;
    let depth = fields.u16()?;
    if fields.u16()? != 0 {
        return Err(Damage::Watch);
    }
    let path = watched(fields.bytes(path_len.into())?)?;
    let token = string(fields.bytes(token_len.into())?)?;
    Ok(Watch {
        conn,
        path,
        token,
        depth: (depth != UNLIMITED).then_some(depth),
    })
}

fn watch_short(rest: &[u8]) -> Result<(Watch<'_>, usize), Damage> {
    let mut fields = Fields::new(rest);
    let conn = fields.u32()?;
    let path_len = fields.u16()?;
    let token_len = fields.u16()?;
    let path = watched(fields.bytes(path_len.into())?)?;
    let token = string(fields.bytes(token_len.into())?)?;
    let used = rest.len().saturating_sub(fields.rest().len());
    let watch = Watch {
        conn,
        path,
        token,
        depth: None,
    };
    Ok((watch, used))
}

/// Whether a record can begin with these bytes.
fn is_header(rest: &[u8]) -> bool {
    let mut fields = Fields::new(rest);
    match (fields.u32(), fields.u32()) {
        (Ok(kind), Ok(len)) => {
            let is_known = kind <= DOCUMENTED_MAX || Own::is_one(kind);
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            is_known && len.is_multiple_of(8) && len <= fields.rest().len()
        }
        _ => false,
    }
}

fn transaction(mut fields: Fields<'_>) -> Result<Transaction, Damage> {
    let conn = fields.u32()?;
    let id = fields.u32()?;
    if conn == 0 || id == 0 {
        return Err(Damage::Field);
    }
    Ok(Transaction { conn, id })
}

fn node(mut fields: Fields<'_>) -> Result<Node<'_>, Damage> {
    let conn = fields.u32()?;
    let transaction = fields.u32()?;
    let path_len = fields.u16()?;
    let value_len = fields.u16()?;
    let access = fields.u16()?;
    let count = fields.u16()?;
    let permissions = Permissions::read(&mut fields, count)?;
    let path = absolute(string(fields.bytes(path_len.into())?)?)?;
    let value = fields.bytes(value_len.into())?;
    let is_deletion = conn != 0 && access == 0;
    if count == 0 && !is_deletion {
        return Err(Damage::Permission);
    }
    Ok(Node {
        conn,
        transaction,
        access,
        permissions,
        path,
        value,
    })
}

fn quotas(mut fields: Fields<'_>) -> Result<Quotas<'_>, Damage> {
    let of_domains = fields.u16()?;
    let of_all = fields.u16()?;
    let count = u32::from(of_domains).saturating_add(of_all.into());
    let mut all = named(fields, count)?;
    let rest = all.split_off(usize::from(of_domains).min(all.len()));
    Ok(Quotas {
        of_domains: all,
        of_all: rest,
    })
}

fn domain(mut fields: Fields<'_>) -> Result<Domain<'_>, Damage> {
    let domid = ordinary(fields.u16()?)?;
    let count = fields.u16()?;
    let features = fields.u32()?;
    let quotas = named(fields, count.into())?;
    Ok(Domain {
        domid,
        features,
        quotas,
    })
}

/// Values, then their names.
fn named(mut fields: Fields<'_>, count: u32) -> Result<Vec<(&[u8], u32)>, Damage> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let values = fields.bytes(count.saturating_mul(4))?;
    let values = values.as_chunks::<4>().0.iter();
    let mut rest = fields.rest();
    values
        .map(|value| {
            let end = rest.iter().position(|byte| *byte == 0);
            let (name, behind) = rest
                .split_at_checked(end.ok_or(Damage::Text)?)
                .ok_or(Damage::Text)?;
            rest = behind.get(1..).unwrap_or_default();
            if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) {
                return Err(Damage::Text);
            }
            Ok((name, u32::from_le_bytes(*value)))
        })
        .collect()
}

pub(super) fn ordinary(domid: u16) -> Result<DomId, Damage> {
    let domid = DomId::new(domid);
    if domid.is_ordinary() {
        Ok(domid)
    } else {
        Err(Damage::Domid)
    }
}

/// A string with its NUL at the end, and no other.
fn string(bytes: &[u8]) -> Result<&[u8], Damage> {
    match bytes.split_last() {
        Some((0, text)) if !text.contains(&0) => Ok(text),
        _ => Err(Damage::Text),
    }
}

/// An absolute path or a special name.
pub(super) fn absolute(text: &[u8]) -> Result<&str, Damage> {
    let is_absolute = matches!(text.first(), Some(b'/' | b'@'));
    if is_absolute && NamedPath::parse(text, DomId::default(), 0).is_ok() {
        str::from_utf8(text).map_err(|_| Damage::Path)
    } else {
        Err(Damage::Path)
    }
}

/// A path as a client wrote it.
fn watched(bytes: &[u8]) -> Result<&str, Damage> {
    let text = string(bytes)?;
    NamedPath::parse(text, DomId::default(), 0).map_err(|_| Damage::Path)?;
    str::from_utf8(text).map_err(|_| Damage::Path)
}
