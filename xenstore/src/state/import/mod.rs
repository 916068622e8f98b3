//! Makes a server of a stream: tolerant as the document says, strict otherwise, and never half done.
//!
//! The stream is read twice. The first time everything in it is judged, and it is noted who the domains and connections are; the second time
//! the server is built. What it builds is in proportion to the stream.

mod connections;
mod messages;
mod nodes;
mod outline;
mod records;
mod transactions;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use slotmap::{DefaultKey, Key};

use super::own::Numbers;
use super::record::Content;
use super::records::{Record, Records};
use super::{Damage, HostGlobal, Restored, RestoredLink, StateError};
use crate::acl::{Acl, Incarnation};
use crate::counters;
use crate::crash::Crash;
use crate::extensions::Lists;
use crate::features::Features;
use crate::ids::{ConnId, DomId, Ticket, TxId};
use crate::server::{Question, Server, Settings};
use crate::storage::Storage;
use crate::time::Instant;
use crate::transaction::Transaction;
use crate::watch::WatchId;
use crate::wire::Header;

use connections::Client;
use messages::Unsent;
use nodes::Mark;
use outline::{Known, Outline};

/// Transactions of connections of which we are not told where they were counting begin with the number behind this, so that a request in one
/// that is lost is not taken for a request in a new one.
const TRANSACTIONS_FROM: u32 = 0x4000_0000;
/// Unknown types of records that are told apart in what is skipped.
const SKIPPED_MAX: usize = 64;

impl<S: Storage> Server<S> {
    /// Makes a server of a stream, with `settings` but for what the stream says itself. Moments in the stream are moved by as much as lies
    /// between the one at which it was written and `now`, so that nothing expires for the time between.
    ///
    /// What the host must do: take up every connection of [`Restored::links`] or end it, and ask who the domains are.
    ///
    /// # Errors
    /// Where the stream is not in order.
    pub fn import(
        stream: &[u8],
        settings: Settings,
        now: Instant,
    ) -> Result<Restored<S>, StateError> {
        let outline = Outline::of(stream)?;
        let mut import = Import::new(settings, now, &outline);
        let mut last = None;
        let mut records = Records::new(stream)?;
        while let Some(record) = records.advance() {
            let record = record?;
            let at = |why| damaged(&record, why);
            import.record(&record, &records.path).map_err(at)?;
            last = Some(record);
        }
        let finished = import.finish();
        finished.map_err(|why| StateError {
            offset: last.as_ref().map_or(0, |record| record.offset),
            record: last.map(|record| record.kind),
            why,
        })
    }
}

fn damaged(record: &Record<'_>, why: Damage) -> StateError {
    StateError {
        offset: record.offset,
        record: Some(record.kind),
        why,
    }
}

struct Import<'s, S: Storage> {
    server: Server<S>,
    is_own: bool,
    version: u32,
    clock: Shift,
    links: Vec<RestoredLink>,
    host: HostGlobal,
    skipped: BTreeMap<u32, u64>,
    /// The connections by their ids in the stream.
    ids: BTreeMap<u32, ConnId>,
    /// The connections that were opened.
    opened: BTreeSet<ConnId>,
    /// Connections, and places for some to come, by their numbers.
    conns: BTreeMap<u64, ConnId>,
    watches: BTreeMap<u64, WatchId>,
    /// Domains that are no more, of which permissions speak.
    departed: BTreeMap<DomId, Incarnation>,
    /// Equal permissions are kept once.
    acls: BTreeMap<(&'s [u8], &'s [u8]), Rc<Acl>>,
    targets: Vec<(DomId, DomId)>,
    /// What a record says of the one behind it.
    next: Next<'s>,
    /// Output of the last connection that is not queued yet.
    output: Option<Unsent<'s>>,
    /// Messages by who caused them.
    caused: Vec<(ConnId, u64, u64)>,
    lost: Vec<(ConnId, Numbers<'s>)>,
    /// Transactions of which nothing was read but that they are open.
    opaque: BTreeSet<(ConnId, TxId)>,
    has_root: bool,
    /// Nodes that are not yet in the store.
    growth: S::Growth,
    seen_specials: BTreeSet<&'static str>,
    nodes: u64,
    /// The nodes with which the last transaction began that is inside of no other.
    base: Option<S>,
    /// The transaction that the next one is inside of.
    outer: Option<(ConnId, TxId)>,
    /// The nodes with which the last transaction inside of each one began.
    inner_bases: BTreeMap<(ConnId, TxId), S>,
    transaction: Option<(ConnId, TxId, Box<Transaction<S>>)>,
    /// Where it has changed something, as its storage notes that, if it did.
    notes: Option<Vec<(&'s str, bool)>>,
    wished: BTreeSet<Ticket>,
    /// The places of the counters, by name.
    counters: BTreeMap<String, usize>,
    /// The lists of policies and layers that were in force.
    lists: Option<Lists>,
    /// What a server left that crashed, and the request that it had not answered.
    crash: Option<(Crash, Option<Header>)>,
}

/// What a record says of the one behind it.
#[derive(Default)]
struct Next<'s> {
    client: Option<Client<'s>>,
    host: Option<&'s [u8]>,
    /// Number and depth of a watch.
    watch: Option<(u64, Option<u32>)>,
}

/// How moments in the stream become moments now.
#[derive(Clone, Copy)]
struct Shift {
    written: Instant,
    now: Instant,
}

impl Shift {
    fn moved(self, then: Instant) -> Instant {
        if self.now >= self.written {
            then.after(self.now.since(self.written))
        } else {
            then.before(self.written.since(self.now))
        }
    }
}

/// The place of what is not there.
const NOWHERE: fn() -> DefaultKey = DefaultKey::null;

impl<'s, S: Storage> Import<'s, S> {
    fn new(settings: Settings, now: Instant, outline: &Outline) -> Self {
        let mut server = Server::bare(settings);
        server.now = now;
        let clock = Shift {
            written: outline.written.unwrap_or(now),
            now,
        };
        let by_number: BTreeMap<u64, u32> = outline
            .numbers
            .iter()
            .map(|(id, number)| (*number, *id))
            .collect();
        let mut ids = BTreeMap::new();
        let mut conns = BTreeMap::new();
        for (number, id) in by_number {
            let conn = server.connections.promise_as(number);
            ids.insert(id, conn);
            conns.insert(number, conn);
        }
        server.connections.next = outline.next_connection;
        let mut import = Self {
            server,
            is_own: outline.is_own,
            version: outline.version,
            clock,
            links: Vec::new(),
            host: HostGlobal::default(),
            skipped: BTreeMap::new(),
            ids,
            opened: BTreeSet::new(),
            conns,
            watches: BTreeMap::new(),
            departed: BTreeMap::new(),
            acls: BTreeMap::new(),
            targets: Vec::new(),
            next: Next::default(),
            output: None,
            caused: Vec::new(),
            lost: Vec::new(),
            opaque: BTreeSet::new(),
            has_root: false,
            growth: S::Growth::default(),
            seen_specials: BTreeSet::new(),
            nodes: 0,
            base: None,
            outer: None,
            inner_bases: BTreeMap::new(),
            transaction: None,
            notes: outline.is_journaled.then(Vec::new),
            wished: BTreeSet::new(),
            counters: counters::places(),
            lists: None,
            crash: None,
        };
        for (domid, known) in &outline.domains {
            import.meet(*domid, known);
        }
        import
    }

    /// Makes a domain known.
    fn meet(&mut self, domid: DomId, known: &Known) {
        let clock = self.clock;
        let features = self.server.settings.features;
        let incarnation = self.server.domains.expect(domid, features);
        if let Some(mark) = &known.mark
            && mark.is_noted
        {
            let counters = self.server.domains.counters(incarnation);
            counters.restore_note(true);
        }
        let Some(domain) = self.server.domains.alive_mut(incarnation) else {
            return;
        };
        domain.unique = known.unique;
        if let Some(bits) = known.features {
            domain.features = Features::known_of(bits);
        }
        if let Some(mark) = &known.mark {
            domain.told_shutdown = mark.told_shutdown;
            domain.told_memory = mark.told_memory;
            domain.credits.conflicts.full_at = clock.moved(mark.conflicts);
            domain.credits.writes.full_at = clock.moved(mark.writes);
        }
    }

    /// Takes a record; `path` is the whole path of one that has only how it differs.
    fn record(&mut self, record: &Record<'s>, path: &str) -> Result<(), Damage> {
        if !record.is_node() {
            self.server.store.nodes.settle(&mut self.growth);
        }
        match &record.content {
            Content::End => Ok(()),
            Content::Global(global) => {
                let fd = |fd: i32| (fd >= 0).then_some(fd);
                self.host.socket_fd = fd(global.rw_socket_fd);
                self.host.evtchn_fd = fd(global.evtchn_fd);
                Ok(())
            }
            Content::Connection(connection) => self.connection(connection),
            Content::Watch(watch) => self.watch(watch),
            Content::Transaction(open) => self.opaque(open),
            Content::Node(node) if node.conn == 0 => {
                self.node(node.path, node.permissions, node.value, Mark::default())
            }
            Content::Node(node) => self.pending(node),
            Content::Quotas(quotas) => {
                self.quotas(quotas);
                Ok(())
            }
            Content::Domain(domain) => {
                self.domain(domain);
                Ok(())
            }
            Content::Own(own) => self.own(own, path),
            Content::Unknown => {
                if self.skipped.len() < SKIPPED_MAX || self.skipped.contains_key(&record.kind) {
                    let count = self.skipped.entry(record.kind).or_default();
                    *count = count.saturating_add(1);
                }
                Ok(())
            }
        }
    }

    fn conn(&self, id: u32) -> Result<ConnId, Damage> {
        match self.ids.get(&id) {
            Some(conn) if self.opened.contains(conn) => Ok(*conn),
            _ => Err(Damage::Reference),
        }
    }

    /// The connection that had this number, or an id that names nobody and stands where its own would.
    fn numbered(&self, number: u64) -> ConnId {
        let key = NOWHERE();
        self.conns
            .get(&number)
            .copied()
            .unwrap_or(ConnId { number, key })
    }
}

/// The end.
impl<S: Storage> Import<'_, S> {
    fn finish(mut self) -> Result<Restored<S>, Damage> {
        self.flush()?;
        if !self.has_root || self.transaction.is_some() || self.outer.is_some() {
            return Err(Damage::Reference);
        }
        if self.opened.len() != self.ids.len() {
            return Err(Damage::Reference);
        }
        self.server.store.nodes.forget();
        self.resolve_targets();
        self.lose_transactions();
        self.resolve_lost();
        self.count_outstanding()?;
        self.check_questions()?;
        self.server
            .resume_extensions(self.lists.take())
            .map_err(|_| Damage::Policy)?;
        if let Some((Crash { blamed }, unanswered)) = self.crash {
            self.server.go_on_after(blamed, unanswered);
        }
        if !self.is_own || self.crash.is_some() {
            self.wake_all();
        }
        let privileged = self.server.domains.privileged().domid;
        let nameless = self.server.domains.iter();
        let nameless = nameless.filter(|domain| domain.identity().is_none());
        let nameless = nameless.map(|domain| domain.incarnation.domid);
        let unconfirmed = nameless.filter(|domid| *domid != privileged || self.is_linked(*domid));
        Ok(Restored {
            unconfirmed: unconfirmed.collect(),
            version: self.version,
            is_own: self.is_own,
            links: self.links,
            host: self.host,
            skipped: self.skipped.into_iter().collect(),
            crash: self.crash.map(|(crash, _)| crash),
            server: self.server,
        })
    }

    fn is_linked(&self, domid: DomId) -> bool {
        self.server.is_introduced(domid)
    }

    fn resolve_targets(&mut self) {
        for (domid, target) in core::mem::take(&mut self.targets) {
            let domains = &mut self.server.domains;
            let target = domains.get(target).map(|target| target.incarnation);
            if let Some(domain) = domains.get_mut(domid) {
                domain.target = target;
            }
        }
    }

    /// Keeps the ids of transactions of which nothing more is known, so that their clients hear that they cannot be merged.
    fn lose_transactions(&mut self) {
        for (conn, id) in core::mem::take(&mut self.opaque) {
            let server = &mut self.server;
            let opening = server.history.open(server.now);
            let nothing = S::new(server.domains.privileged());
            let mut lost = Transaction::start(&nothing, &server.domains, opening, Box::default());
            lost.is_given_up = true;
            if let Some(connection) = server.connections.get_mut(conn) {
                let transactions = &mut connection.transactions;
                transactions.restore(id, Box::new(lost));
                transactions.last = transactions.last.max(Some(id));
            }
        }
    }

    fn resolve_lost(&mut self) {
        for (conn, lost) in core::mem::take(&mut self.lost) {
            let known = lost.iter().filter_map(|number| self.watches.get(&number));
            if let Some(connection) = self.server.connections.get_mut(conn) {
                connection.lost = known.copied().collect();
            }
        }
    }

    /// Counts the messages that are on their way, for the requests that wait for that.
    fn count_outstanding(&mut self) -> Result<(), Damage> {
        for (conn, request, bytes) in core::mem::take(&mut self.caused) {
            if let Some(connection) = self.server.connections.get_mut(conn)
                && connection.outstanding.contains_key(&request)
            {
                connection.owe(request, bytes);
            }
        }
        if self.crash.is_some() {
            for connection in self.server.connections.iter_mut() {
                connection.outstanding.retain(|_, count| *count > 0);
            }
        }
        let mut all = self.server.connections.iter();
        if all.any(|connection| connection.outstanding.values().any(|count| *count == 0)) {
            return Err(Damage::Message);
        }
        Ok(())
    }

    /// Whoever waits must wait for something that will come.
    fn check_questions(&mut self) -> Result<(), Damage> {
        let questions = &self.server.questions;
        if self.crash.is_some() {
            for connection in self.server.connections.iter_mut() {
                let is_asked = |ticket: &mut Ticket| !questions.contains_key(ticket);
                connection.waiting.take_if(is_asked);
            }
        }
        if questions.len() != self.wished.len() {
            return Err(Damage::Reference);
        }
        for (conn, connection) in self.server.connections.iter_with_ids() {
            let Some(ticket) = connection.waiting else {
                continue;
            };
            match questions.get(&ticket) {
                Some(
                    Question::Connect { requester, .. } | Question::Identify { requester, .. },
                ) if *requester == conn => {}
                _ => return Err(Damage::Reference),
            }
        }
        Ok(())
    }

    /// Lets every request run that has arrived, and the host look at every connection.
    fn wake_all(&mut self) {
        let all: Vec<ConnId> = self.links.iter().map(|link| link.conn).collect();
        for conn in all {
            self.server.announce(conn);
            self.server.queue(conn);
            self.server.set_deadline(conn);
        }
    }
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
