//! A stream, record by record: where each begins, what it says, and what is wrong with the first that is not in order.

use alloc::string::String;
use core::fmt;

use super::codec::{Fields, mix, padded};
use super::own::Own;
use super::packed::{NODES, Packed};
use super::record::{
    Carrier, Content, HEADER_SIZE, IDENTIFIER, PREAMBLE_SIZE, kind, watch_extended,
};
use super::{Damage, StateError};
use crate::time::Instant;

/// The records of a stream, up to and with the one that ends it.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    stream: &'a [u8],
    version: u32,
    /// Where the next one begins.
    at: usize,
    /// Those that were given.
    pub(super) count: u64,
    /// Of all bytes before the next one.
    pub(super) digest: u64,
    /// The nodes of the last record that were not given yet, and where that record is.
    packed: Option<(Place, Packed<'a>)>,
    /// Of the node of the last record whose path is written as it differs from the one before.
    pub(super) path: String,
    is_over: bool,
}

/// Where a record is.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: usize,
    len: usize,
}

/// One record, or one of the nodes that a record has in a row. It is written as a person reads it.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// Where it begins, in bytes from the start of the stream.
    pub offset: usize,
    /// Its type.
    pub kind: u32,
    /// Bytes of its body, padding included.
    pub len: usize,
    pub(super) content: Content<'a>,
    /// The whole path, where the record has only how it differs.
    path: Option<String>,
}

impl<'a> Records<'a> {
    /// Begins to read a stream.
    ///
    /// # Errors
    /// It does not begin as a stream of a known version in the byte order of this machine.
    pub fn new(stream: &'a [u8]) -> Result<Self, StateError> {
        let damaged = |why| StateError {
            offset: 0,
            record: None,
            why,
        };
        let preamble = stream.get(..PREAMBLE_SIZE);
        let Some((identifier, [v3, v2, v1, v0, flags @ ..])) =
            preamble.and_then(<[u8]>::split_first_chunk)
        else {
            return Err(damaged(Damage::Identifier));
        };
        let version = u32::from_be_bytes([*v3, *v2, *v1, *v0]);
        let flags = flags.first_chunk().copied().map_or(0, u32::from_be_bytes);
        if identifier != IDENTIFIER {
            Err(damaged(Damage::Identifier))
        } else if !(1..=2).contains(&version) {
            Err(damaged(Damage::Version(version)))
        } else if flags != 0 {
            Err(damaged(Damage::Flags(flags)))
        } else {
            Ok(Self {
                stream,
                version,
                at: PREAMBLE_SIZE,
                count: 0,
                digest: mix(0, preamble.unwrap_or_default()),
                packed: None,
                path: String::new(),
                is_over: false,
            })
        }
    }

    /// The version of the stream.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The next record; its whole path is in `path`, and not in the record.
    pub(super) fn advance(&mut self) -> Option<Result<Record<'a>, StateError>> {
        if self.is_over {
            return None;
        }
        let record = self.read();
        self.is_over = record
            .as_ref()
            .map_or(true, |record| matches!(record.content, Content::End));
        Some(record)
    }

    fn read(&mut self) -> Result<Record<'a>, StateError> {
        let offset = self.at;
        let mut record = None;
        self.read_at(offset, &mut record).map_err(|why| StateError {
            offset,
            record,
            why,
        })
    }

    fn read_at(&mut self, offset: usize, record: &mut Option<u32>) -> Result<Record<'a>, Damage> {
        if let Some(node) = self.packed_node(record)? {
            return Ok(node);
        }
        let rest = self.stream.get(offset..).unwrap_or_default();
        let mut header = Fields::new(rest);
        let kind = header.u32().map_err(|_| Damage::Truncated)?;
        let declared = header.len32().map_err(|_| Damage::Truncated)?;
        *record = Some(kind);
        let rest = header.rest();
        let (content, len) = match kind {
            kind::WATCH_EXTENDED => {
                let (watch, len) = watch_extended(rest, declared)?;
                (Content::Watch(watch), len)
            }
            NODES => {
                let body = rest.get(..declared).ok_or(Damage::Truncated)?;
                let len = body.len();
                self.packed = Some((Place { offset, len }, Packed::new(body)?));
                (Content::Unknown, len)
            }
            _ => {
                let body = rest.get(..declared).ok_or(Damage::Truncated)?;
                (Content::read(kind, body)?, declared)
            }
        };
        let len = padded(len).ok_or(Damage::Truncated)?;
        let size = len.checked_add(HEADER_SIZE).ok_or(Damage::Truncated)?;
        let end = offset.checked_add(size).ok_or(Damage::Truncated)?;
        let whole = self.stream.get(offset..end).ok_or(Damage::Truncated)?;
        let (header, body) = whole
            .split_at_checked(HEADER_SIZE)
            .ok_or(Damage::Truncated)?;
        if let Content::Own(Own::Check {
            records, digest, ..
        }) = content
            && (records, digest) != (self.count, self.digest)
        {
            return Err(Damage::Digest);
        }
        if let Content::Own(own) = &content
            && let Some(near) = own.near()
        {
            near.follow(&mut self.path)?;
        }
        self.digest = mix(mix(self.digest, header), body);
        self.count = self.count.saturating_add(1);
        self.at = end;
        if kind == NODES {
            return self.packed_node(record)?.ok_or(Damage::Short);
        }
        Ok(Record {
            offset,
            kind,
            len,
            content,
            path: None,
        })
    }

    /// The next of the nodes of the last record, if there is one left.
    fn packed_node(&mut self, record: &mut Option<u32>) -> Result<Option<Record<'a>>, Damage> {
        let rest = self.packed.as_mut().filter(|(_, nodes)| !nodes.is_over());
        let Some((Place { offset, len }, nodes)) = rest else {
            self.packed = None;
            return Ok(None);
        };
        *record = Some(NODES);
        let own = nodes.node()?;
        if let Some(near) = own.near() {
            near.follow(&mut self.path)?;
        }
        Ok(Some(Record {
            offset: *offset,
            kind: NODES,
            len: *len,
            content: Content::Own(own),
            path: None,
        }))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = self.advance()?;
        Some(record.map(|record| {
            Record {
                path: matches!(&record.content, Content::Own(own) if own.near().is_some())
                    .then(|| self.path.clone()),
                ..record
            }
        }))
    }
}

impl Record<'_> {
    /// Whether this is a node of the store.
    pub(super) fn is_node(&self) -> bool {
        match &self.content {
            Content::Node(node) => node.conn == 0,
            Content::Own(own) => matches!(own, Own::Node { .. }),
            _ => false,
        }
    }

    /// The path of a node of the store; none for anything else.
    #[must_use]
    pub fn node_path(&self) -> Option<&str> {
        match &self.content {
            Content::Node(node) if node.conn == 0 => Some(node.path),
            Content::Own(Own::Node { .. }) => self.path.as_deref(),
            _ => None,
        }
    }

    /// When the stream was written, if this record says so.
    #[must_use]
    pub fn written(&self) -> Option<Instant> {
        match self.content {
            Content::Own(Own::Store { written, .. }) => Some(written),
            _ => None,
        }
    }

    /// Whether only our own kind reads it.
    #[must_use]
    pub fn is_own(&self) -> bool {
        matches!(self.content, Content::Own(_))
    }
}

impl fmt::Display for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Name(self.kind);
        match &self.content {
            Content::End => write!(f, "{name}"),
            Content::Global(global) => write!(
                f,
                "{name} socket fd {}, evtchn fd {}",
                global.rw_socket_fd, global.evtchn_fd
            ),
            Content::Connection(connection) => {
                write!(f, "{name} {}: ", connection.id)?;
                match connection.carrier {
                    Carrier::Ring {
                        domid,
                        target,
                        port,
                    } => {
                        write!(f, "ring of domain {domid}, port {port}")?;
                        if let Some(target) = target {
                            write!(f, ", target {target}")?;
                        }
                    }
                    Carrier::Socket { fd } => write!(f, "socket, fd {fd}")?,
                }
                if let Some(unique) = connection.unique {
                    write!(f, ", unique id {unique:#x}")?;
                }
                if !connection.input.is_empty() {
                    write!(f, ", in \"{}\"", connection.input.escape_ascii())?;
                }
                if !connection.output.is_empty() {
                    let (tail, out) = (connection.tail, connection.output.escape_ascii());
                    write!(f, ", out \"{out}\" of which {tail} bytes are begun")?;
                }
                Ok(())
            }
            Content::Watch(watch) => {
                let token = watch.token.escape_ascii();
                write!(f, "{name} of {}: {} \"{token}\"", watch.conn, watch.path)?;
                match watch.depth {
                    Some(depth) => write!(f, " depth {depth}"),
                    None => Ok(()),
                }
            }
            Content::Transaction(open) => write!(f, "{name} {} of {}", open.id, open.conn),
            Content::Node(node) => {
                let value = node.value.escape_ascii();
                write!(
                    f,
                    "{name} {} = \"{value}\"   {}",
                    node.path, node.permissions
                )?;
                if node.conn != 0 {
                    let (conn, transaction, access) = (node.conn, node.transaction, node.access);
                    write!(
                        f,
                        " in transaction {transaction} of {conn}, access {access}"
                    )?;
                }
                Ok(())
            }
            Content::Quotas(quotas) => {
                write!(f, "{name}")?;
                values(f, &quotas.of_domains)?;
                if !quotas.of_all.is_empty() {
                    f.write_str("; for all together")?;
                    values(f, &quotas.of_all)?;
                }
                Ok(())
            }
            Content::Domain(domain) => {
                let (domid, features) = (domain.domid, domain.features);
                write!(f, "{name} {domid}: features {features:#x}")?;
                values(f, &domain.quotas)
            }
            Content::Own(Own::Node {
                generation,
                permissions,
                value,
                ..
            }) => {
                let path = self.path.as_deref().unwrap_or_default();
                let value = value.0.escape_ascii();
                write!(
                    f,
                    "{name} {path} = \"{value}\"   {permissions} generation {generation}"
                )
            }
            Content::Own(own) => {
                write!(f, "own {own:?}")?;
                self.path
                    .iter()
                    .try_for_each(|path| write!(f, " of {path}"))
            }
            Content::Unknown => write!(f, "{name}, {} bytes", self.len),
        }
    }
}

fn values(f: &mut fmt::Formatter<'_>, values: &[(&[u8], u32)]) -> fmt::Result {
    for (name, value) in values {
        write!(f, " {}={value}", name.escape_ascii())?;
    }
    Ok(())
}

/// A type of records by its name.
pub(super) struct Name(pub(super) u32);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            kind::END => "END",
            kind::GLOBAL => "GLOBAL_DATA",
            kind::CONNECTION => "CONNECTION_DATA",
            kind::WATCH => "WATCH_DATA",
            kind::TRANSACTION => "TRANSACTION_DATA",
            kind::NODE => "NODE_DATA",
            kind::QUOTAS => "GLOBAL_QUOTA_DATA",
            kind::DOMAIN => "DOMAIN_DATA",
            kind::WATCH_EXTENDED => "WATCH_DATA_EXTENDED",
            NODES => "own Nodes",
            kind => match Own::name(kind) {
                Some(name) => return write!(f, "own {name}"),
                None => return write!(f, "unknown type {kind:#x}"),
            },
        })
    }
}
