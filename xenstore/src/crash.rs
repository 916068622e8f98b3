//! After a crash: whose work it was, what that costs, and where the administrator reads of it.
//!
//! A host that survives a panic of the server writes what it still has ([`Server::export_after_crash`]) and makes a new server of it. Who asked
//! for the work pays with its connection; the toolstack alone keeps it, for without it nothing works, and its request gets EIO.

use alloc::format;
use alloc::string::String;
use core::fmt;

use crate::answer::Answer;
use crate::connection::Connection;
use crate::counter_nodes::STORE_FOLDERS;
use crate::counters::Counter;
use crate::ids::{ConnId, DomId, TxId};
use crate::memory::Supply;
use crate::server::Server;
use crate::storage::Storage;
use crate::time::Instant;
use crate::wire::{Errno, Header, Kind};

/// Crashes after which a connection stays stopped until the toolstack introduces its domain again.
const CRASHES_MAX: u8 = 2;
/// Most bytes of a report that are shown.
const REPORT_MAX: usize = 1024;
/// The same while only the reserve of memory is left: the place, and not all registers.
const REPORT_MAX_AT_RESERVE: usize = 256;
/// Where reports are.
const FOLDERS: [&str; 3] = {
    let [tool, store] = STORE_FOLDERS;
    [tool, store, "/tool/xenstored/crash"]
};

/// The connection for which the server works just now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AtWork {
    pub(crate) conn: ConnId,
    /// Of the request that runs, if one does.
    pub(crate) header: Option<Header>,
    /// The outermost transaction that it is in, if any.
    pub(crate) outermost: Option<TxId>,
    pub(crate) is_answered: bool,
}

impl AtWork {
    /// Work for a connection of which no request runs.
    pub(crate) const fn without_request(conn: ConnId) -> Self {
        Self {
            conn,
            header: None,
            outermost: None,
            is_answered: false,
        }
    }

    /// The transactions that a crash now leaves in no order: the one that the request is in, and the outermost around it.
    pub(crate) fn broken(&self) -> [Option<TxId>; 2] {
        let own = self.header.and_then(|header| TxId::new(header.tx_id));
        [own, self.outermost]
    }
}

/// What a server left that crashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash {
    /// Whose work it was, if anybody's.
    pub blamed: Option<Blamed>,
}

/// Whose work a crash was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blamed {
    /// The connection.
    pub conn: ConnId,
    /// Whose it is.
    pub domid: DomId,
    /// The number of the type of its request, if one was at work.
    pub request: Option<u32>,
    /// It is the toolstack's ring, and goes on. Every other is stopped, and a socket is closed.
    pub is_kept: bool,
}

impl fmt::Display for Blamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "working for domain {}", self.domid)?;
        match self
            .request
            .map(|number| (Kind::from_number(number), number))
        {
            Some((Some(kind), _)) => write!(f, ", {kind}"),
            Some((None, number)) => write!(f, ", request type {number}"),
            None => Ok(()),
        }
    }
}

impl<S: Storage> Server<S> {
    /// Whether a guest may begin its connection anew ([`Server::reset`]): not if its requests made the server crash again and again; then only an
    /// INTRODUCE helps.
    #[must_use]
    pub fn may_reset(&self, conn: ConnId) -> bool {
        let connection = self.connections.get(conn);
        connection.is_none_or(|connection| connection.crashes < CRASHES_MAX)
    }

    /// Shows that the server crashed, and why, in the nodes `count` and `last` below `/tool/xenstored/crash`; of `text` as much as is
    /// printable among its first 1024 characters; while only the reserve of memory is left, which is for this, too, among the first 256.
    pub fn report_crash(&mut self, now: Instant, text: &str) {
        self.now = self.now.max(now);
        self.crashes = self.crashes.saturating_add(1);
        let most = match self.supply {
            Supply::Reserve => REPORT_MAX_AT_RESERVE,
            _ => REPORT_MAX,
        };
        let printable = |c: &char| c.is_ascii_graphic() || matches!(c, ' ' | '\n');
        let shown: String = text.chars().take(most).filter(printable).collect();
        let count = format!("{}", self.crashes);
        self.write_own_node(&FOLDERS, "count", &count);
        self.write_own_node(&FOLDERS, "last", &shown);
    }

    /// What is known of the work for a request that begins.
    pub(crate) fn work_for(&self, conn: ConnId, header: Header) -> AtWork {
        let connection = self.connections.get(conn);
        let own = TxId::new(header.tx_id).zip(connection);
        AtWork {
            conn,
            header: Some(header),
            outermost: own.map(|(id, connection)| connection.transactions.outermost(id)),
            is_answered: false,
        }
    }

    /// Whose work it is, as far as is known.
    pub(crate) fn blamed(&self, at_work: AtWork) -> Option<Blamed> {
        let connection = self.connections.get(at_work.conn)?;
        Some(Blamed {
            conn: at_work.conn,
            domid: connection.incarnation.domid,
            request: at_work.header.map(|header| header.kind),
            is_kept: connection.privileged && self.is_ring(at_work.conn),
        })
    }

    /// Whether a connection is a domain's ring and no socket.
    pub(crate) fn is_ring(&self, conn: ConnId) -> bool {
        let domain = self.client(conn);
        domain.is_some_and(|domain| domain.connection == Some(conn))
    }

    /// What is left of a connection that is blamed.
    pub(crate) fn left_of(&self, blamed: Blamed) -> Option<Connection<S>> {
        let own = self.connections.get(blamed.conn)?;
        let counters = alloc::rc::Rc::clone(&own.counters);
        let blank = Connection::new(own.incarnation, own.privileged, own.home, counters);
        Some(Connection {
            requests: own.requests,
            served: own.served,
            crashes: own.crashes.saturating_add(1),
            stopped: true,
            ..blank
        })
    }

    /// Lets whose work it was pay for it; all others go on.
    pub(crate) fn go_on_after(&mut self, blamed: Option<Blamed>, unanswered: Option<Header>) {
        let Some(blamed) = blamed else {
            return;
        };
        self.count_of(blamed.domid, Counter::Crashes);
        if blamed.is_kept
            && let Some(header) = unanswered
        {
            self.reply(blamed.conn, header, Err::<Answer, _>(Errno::EIO));
        }
    }
}
