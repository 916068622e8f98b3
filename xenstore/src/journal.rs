//! What the server did, in order, for a simulation that says what ought to have come of it. Without feature `journal` nothing is kept.
//!
//! It tells which requests, ends and bytes came in which order, and never what the answers are: those are for others to say.

use alloc::vec::Vec;

use crate::connection::Request;
use crate::ids::{ConnId, DomId};
use crate::output::EventText;
use crate::path::Path;
use crate::server::{DomainEvent, Outcome, Server};
use crate::storage::Storage;
use crate::time::Instant;
use crate::watch::WatchId;
use crate::wire::Errno;

/// One thing that the server did.
#[derive(Clone, Debug)]
pub enum Entry {
    /// It ran requests, at this time.
    Run(Instant),
    /// It did what this time asked for.
    Timeout(Instant),
    /// It begins to work for a request. If nothing more is told of it, it crashed.
    Begins {
        /// Which.
        request: Noted,
    },
    /// It answered a request, with an error or not.
    Served {
        /// Which.
        request: Noted,
        /// Whether memory may be to blame is for the reader to judge.
        refused: Option<Errno>,
    },
    /// A layer answered a request, which did not run.
    Withheld {
        /// Which.
        request: Noted,
        /// The error, if it is one.
        refused: Option<Errno>,
    },
    /// It lets an INTRODUCE wait for its host.
    Waits {
        /// Which.
        request: Noted,
        /// The domain to introduce.
        domid: DomId,
    },
    /// Its host did what an INTRODUCE asked for, or could not.
    Introduced {
        /// Whose request it was, if it has a connection still.
        asker: Option<DomId>,
        /// The domain that was to be introduced.
        domid: DomId,
        /// How it went.
        outcome: Outcome,
    },
    /// Its host said who has a domid.
    Identified {
        /// Whose request needs it, if it has a connection still.
        asker: Option<DomId>,
        /// Of whom.
        domid: DomId,
        /// Who it is.
        outcome: Outcome,
    },
    /// It dealt with what became of domains.
    Domains {
        /// In order.
        events: Vec<DomainEvent>,
        /// There are no more for now.
        is_last: bool,
    },
    /// It had no room for an event.
    Lost {
        /// Of whom.
        domid: DomId,
        /// The watch's path.
        path: Path,
        /// The event's payload.
        event: Vec<u8>,
        /// An equal one waits already.
        is_told: bool,
    },
    /// It stopped a connection.
    Stopped {
        /// Whose.
        domid: DomId,
    },
    /// It began a connection anew.
    Reset {
        /// Whose.
        domid: DomId,
    },
    /// Bytes of a message were sent.
    Sent {
        /// To whom.
        domid: DomId,
        /// All that was left of the message.
        rest: Vec<u8>,
        /// How many of these bytes.
        count: usize,
    },
}

/// A request as the server understood it.
#[derive(Clone, Debug)]
pub struct Noted {
    /// Whose it is.
    pub domid: DomId,
    /// Its type's number.
    pub kind: u32,
    /// As in its header.
    pub req_id: u32,
    /// As in its header.
    pub tx_id: u32,
    /// All of it.
    pub payload: Vec<u8>,
}

/// The entries since they were taken last, if anybody wants them.
#[derive(Default)]
pub(crate) struct Journal {
    #[cfg(feature = "journal")]
    entries: Option<Vec<Entry>>,
}

impl Journal {
    #[inline]
    #[cfg_attr(
        not(feature = "journal"),
        expect(clippy::unused_self, reason = "nothing is kept")
    )]
    pub(crate) fn note(&mut self, entry: impl FnOnce() -> Entry) {
        #[cfg(feature = "journal")]
        if let Some(entries) = &mut self.entries {
            entries.push(entry());
        }
        #[cfg(not(feature = "journal"))]
        let _ = entry;
    }

    #[inline]
    pub(crate) fn keep(&mut self, entry: Option<Entry>) {
        if let Some(entry) = entry {
            self.note(|| entry);
        }
    }

    #[inline]
    fn is_kept(&self) -> bool {
        #[cfg(feature = "journal")]
        return self.entries.is_some();
        #[cfg(not(feature = "journal"))]
        return false;
    }
}

impl<S: Storage> Server<S> {
    /// What was done since this was asked last; nothing before it was asked for the first time.
    #[cfg(feature = "journal")]
    pub fn take_journal(&mut self) -> Vec<Entry> {
        self.journal.entries.replace(Vec::new()).unwrap_or_default()
    }

    /// Notes something of a connection's domain.
    #[inline]
    pub(crate) fn note(&mut self, conn: ConnId, entry: impl FnOnce(DomId) -> Entry) {
        if self.journal.is_kept()
            && let Some(connection) = self.connections.get(conn)
        {
            let domid = connection.incarnation.domid;
            self.journal.note(|| entry(domid));
        }
    }

    /// Notes a request.
    #[inline]
    pub(crate) fn note_request(
        &mut self,
        conn: ConnId,
        request: &Request,
        entry: impl FnOnce(Noted) -> Entry,
    ) {
        self.note(conn, |domid| {
            entry(Noted {
                domid,
                kind: request.header.kind,
                req_id: request.header.req_id.0,
                tx_id: request.header.tx_id,
                payload: request.payload.clone(),
            })
        });
    }

    /// Notes that an event of a watch is lost.
    pub(crate) fn note_lost(&mut self, id: WatchId, text: &EventText) {
        if self.journal.is_kept()
            && let Some(watch) = self.watches.get(id)
        {
            let (path, event) = (watch.path.clone(), text.pieces().concat());
            let conn = watch.connection;
            let connection = self.connections.get(conn);
            let is_told = connection.is_some_and(|connection| connection.output.is_told(text));
            self.note(conn, |domid| Entry::Lost {
                domid,
                path,
                event,
                is_told,
            });
        }
    }

    /// Notes how something went that a request asked the host for, whether or not its connection is still there.
    pub(crate) fn note_outcome(
        &mut self,
        conn: ConnId,
        entry: impl FnOnce(Option<DomId>) -> Entry,
    ) {
        if self.journal.is_kept() {
            let connection = self.connections.get(conn);
            let asker = connection.map(|connection| connection.incarnation.domid);
            self.journal.note(|| entry(asker));
        }
    }

    /// What is to be noted when bytes were sent.
    #[inline]
    pub(crate) fn output_to_note(&self, conn: ConnId, count: usize) -> Option<Entry> {
        if !self.journal.is_kept() {
            return None;
        }
        let domid = self.connections.get(conn)?.incarnation.domid;
        let rest = self.poll_message(conn).concat();
        Some(Entry::Sent { domid, rest, count })
    }
}
