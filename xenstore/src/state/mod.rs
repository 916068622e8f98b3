//! The whole state as a stream of records, for the instance of a server that comes after this one.
//!
//! The stream is the one that Xen documents (`docs/designs/xenstore-migration.md`), versions 1 and 2, with records of our own beside
//! those; docs/state-stream.md has them all. Between two of our own images nothing is lost: a client cannot tell that there were two.
//!
//! ```
//! use xenstore::state::{Format, HostLink};
//! use xenstore::{DomId, Instant, Server, Settings, AnyStorage};
//!
//! let settings = Settings::new(DomId::new(0), DomId::new(0));
//! let server = Server::new(settings.clone());
//! // What the host has for each connection: a port, and bytes that only the host reads.
//! let links = |_conn| HostLink { port: Some(7), facts: b"mapped at 0x1000".to_vec(), ..HostLink::default() };
//! let mut stream = Vec::new();
//! let left_out = server.export(Format::Own, Instant(0), &links, &mut stream);
//! assert!(left_out.is_empty());
//!
//! let restored = Server::<AnyStorage>::import(&stream, settings, Instant(0))?;
//! for link in &restored.links {
//!     // `link.conn` is the connection; it has the number that it had before, and `link.host` what the host had for it.
//!     println!("connection {} of {:?}: {:?}", link.conn.number(), link.domid, link.host);
//! }
//! let _server = restored.server;
//! # Ok::<(), xenstore::state::StateError>(())
//! ```
//!
//! `export` changes nothing and looks at each thing once. `import` builds a new server; the one that runs is not touched by it, and a stream
//! that is not in order gives a [`StateError`] and no server.

mod codec;
mod export;
mod import;
mod own;
mod packed;
mod record;
mod records;
mod snapshot;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::fmt;

pub use codec::{Sink, Size};
pub(crate) use packed::nodes_most;
pub use records::{Record, Records};

use crate::crash::Crash;
use crate::ids::{ConnId, DomId, Identity};
use crate::server::Server;
use crate::storage::{AnyStorage, Storage};

/// For whom a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Any reader of version 1: documented records only, as C xenstored reads them.
    V1,
    /// Any reader of version 2, which knows the features of domains: documented records only, as C xenstored reads them.
    V2,
    /// This server: version 2, with depths of watches and records of our own, which others skip.
    Own,
}

impl Format {
    /// The version that the stream says it has.
    #[must_use]
    pub const fn version(self) -> u32 {
        match self {
            Self::V1 => 1,
            Self::V2 | Self::Own => 2,
        }
    }
}

/// The host, asked what it has for the connections.
pub trait Host {
    /// What it has for a connection.
    fn link(&self, conn: ConnId) -> HostLink;

    /// What it has besides.
    fn global(&self) -> HostGlobal {
        HostGlobal::default()
    }

    /// Bytes that it hands over behind each stream.
    fn bytes_behind(&self) -> u64 {
        0
    }
}

impl<F: Fn(ConnId) -> HostLink> Host for F {
    fn link(&self, conn: ConnId) -> HostLink {
        self(conn)
    }
}

/// What the host has for all connections together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostGlobal {
    /// The file descriptor of a daemon's listening socket.
    pub socket_fd: Option<i32>,
    /// The file descriptor of its event channels.
    pub evtchn_fd: Option<i32>,
    /// Bytes that only the host reads. They are written in [`Format::Own`] only.
    pub facts: Vec<u8>,
}

/// What the host has for a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostLink {
    /// The event channel port on our side, of a ring; none if the host has no ring for it.
    pub port: Option<u32>,
    /// The file descriptor, of a socket.
    pub fd: Option<i32>,
    /// Bytes that only the host reads. They are written in [`Format::Own`] only.
    pub facts: Vec<u8>,
}

/// A server made from a stream.
pub struct Restored<S: Storage = AnyStorage> {
    /// It has all that the stream has; nothing was run or told.
    pub server: Server<S>,
    /// The version of the stream.
    pub version: u32,
    /// Whether one of us wrote it in [`Format::Own`].
    pub is_own: bool,
    /// The connections, in the order of the stream. The host must take up each or end it ([`Server::stop`], [`Server::close_socket`]).
    pub links: Vec<RestoredLink>,
    /// Domains of which the stream does not say who they are; [`Server::confirm`] must be called for each.
    pub unconfirmed: Vec<DomId>,
    /// What [`Host::global`] gave.
    pub host: HostGlobal,
    /// The server that wrote the stream had crashed ([`Server::export_after_crash`]). A blamed ring is among the links, stopped, and its page should
    /// say so; a blamed socket is not, and is to be closed.
    pub crash: Option<Crash>,
    /// Types of records that were skipped because they are not known, each with how many there were.
    pub skipped: Vec<(u32, u64)>,
}

/// A connection of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoredLink {
    /// The connection. Its number is that which it had when it was written in [`Format::Own`].
    pub conn: ConnId,
    /// Whose ring it is; none for a socket.
    pub domid: Option<DomId>,
    /// Who that is, if the stream says so. It must be compared with who has the domid now.
    pub identity: Option<Identity>,
    /// What the guest was offered, if the stream says so; else its ring page does ([`Server::adopt_features`]).
    pub features: Option<u32>,
    /// Nothing is to be read or written until the guest begins anew.
    pub is_stopped: bool,
    /// What [`Host::link`] gave.
    pub host: HostLink,
}

/// What a stream has no place for in the format that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Whose.
    pub domid: DomId,
    /// What.
    pub what: Loss,
    /// How many, at least 1.
    pub count: u64,
}

/// A kind of what can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// Open transactions: a reader that keeps their ids answers EAGAIN when they go on, C xenstored ENOENT.
    Transactions,
    /// The depths of watches: their clients hear more than they asked for.
    Depths,
    /// Features that are not the same for all: the reader keeps what the ring page shows.
    Features,
    /// Shutdowns that were told of: they are told again.
    Shutdowns,
    /// Waits for credit: they end.
    Holds,
    /// Stops after a fault: the reader finds the fault again.
    Stops,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domid, what, count } = self;
        match what {
            Loss::Transactions => write!(f, "domain {domid}: {count} open transactions"),
            Loss::Depths => write!(f, "domain {domid}: the depths of {count} watches"),
            Loss::Features => write!(f, "domain {domid}: features of its own"),
            Loss::Shutdowns => write!(f, "domain {domid}: that its shutdown was told"),
            Loss::Holds => write!(f, "domain {domid}: that it waits for credit"),
            Loss::Stops => write!(f, "domain {domid}: that its connection is stopped"),
        }
    }
}

/// A stream that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateError {
    /// Where the record begins, in bytes from the start of the stream.
    pub offset: usize,
    /// Its type; none where no record could be made out.
    pub record: Option<u32>,
    /// What is wrong with it.
    pub why: Damage,
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "offset {:#x}", self.offset)?;
        if let Some(kind) = self.record {
            write!(f, ", record {}", records::Name(kind))?;
        }
        write!(f, ": {}", self.why)
    }
}

impl core::error::Error for StateError {}

/// What can be wrong with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It does not begin as a state stream does.
    Identifier,
    /// It has a version that is not known.
    Version(u32),
    /// It has the other byte order, or flags that are not known.
    Flags(u32),
    /// It ends before it should.
    Truncated,
    /// A length is more than there is.
    Short,
    /// The record should have no body.
    Length,
    /// A field has a value that it cannot have.
    Field,
    /// A domid that no domain can have.
    Domid,
    /// A text without its NUL, with one inside, or of characters that it cannot have.
    Text,
    /// A path that is not well formed.
    Path,
    /// Permissions that are none.
    Permission,
    /// A watch in neither of the layouts that there are.
    Watch,
    /// Input or output that is not made of messages.
    Message,
    /// It refers to what was not there before it.
    Reference,
    /// It was there before.
    Duplicate,
    /// A node without its parent.
    Parent,
    /// The stream is not the one that was written: counts or digest differ.
    Digest,
    /// A policy was in force that is not known here: without it more would be allowed than was meant.
    Policy,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Identifier => "this is no xenstore state stream",
            Self::Version(version) => return write!(f, "version {version} is not known"),
            Self::Flags(flags) => {
                return write!(f, "flags {flags:#x}: another byte order, or unknown");
            }
            Self::Truncated => "the stream ends before its end record",
            Self::Short => "a length is more than there is",
            Self::Length => "it should have no body",
            Self::Field => "a field has a value that it cannot have",
            Self::Domid => "a domid that no domain can have",
            Self::Text => "a text that does not end where it should, or has wrong characters",
            Self::Path => "a path that is not well formed",
            Self::Permission => "permissions that are none",
            Self::Watch => "a watch in no known layout",
            Self::Message => "input or output that is not made of messages",
            Self::Reference => "it refers to what was not there before",
            Self::Duplicate => "it was there before",
            Self::Parent => "a node without its parent",
            Self::Policy => "a policy was in force that is not known here",
            Self::Digest => "counts or digest differ: the stream was changed",
        })
    }
}
