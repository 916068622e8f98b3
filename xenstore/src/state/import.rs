//! Makes a server of a stream: tolerant as the document says, strict otherwise, and never half done.
//!
//! The stream is read twice. The first time everything in it is judged, and it is noted who the domains and connections are; the second time
//! the server is built. What it builds is in proportion to the stream.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use slotmap::{DefaultKey, Key};

use super::own::{Numbers, Own};
use super::record::{self, Carrier, Content, Permission, Permissions};
use super::records::{Record, Records};
use super::snapshot::SPECIALS;
use super::{Damage, HostGlobal, HostLink, Restored, RestoredLink, StateError};
use crate::acl::{Acl, Entry, Holder, Incarnation};
use crate::answer::Answer;
use crate::conflict::{CHANGES_MAX, GuestChange, Hold};
use crate::connection::Connection;
use crate::counters;
use crate::database::is_database;
use crate::effects::cost;
use crate::features::Features;
use crate::ids::{ConnId, DomId, EvtchnPort, Generation, Ticket, TxId, UniqueId};
use crate::memory::Supply;
use crate::output::{Cause, EventText, Mark as EventMark, Message, Payload};
use crate::path::{Path, PathRef, is_relative};
use crate::quota::Quota;
use crate::refusal::Reason;
use crate::server::{Action, Question, Server, Settings};
use crate::spell::Spell;
use crate::storage::{Seed, Storage, Value};
use crate::time::Instant;
use crate::touched::Mark;
use crate::transaction::Transaction;
use crate::turns::{Entry as Turn, Served};
use crate::watch::{Token, Watch, WatchId};
use crate::wire::{Errno, HEADER_SIZE, Header, Kind, PAYLOAD_MAX};

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
        for record in Records::new(stream)? {
            let record = record?;
            let at = |why| damaged(&record, why);
            import.record(&record).map_err(at)?;
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

/// Who there is, found at the first reading.
#[derive(Default)]
struct Outline {
    version: u32,
    is_own: bool,
    /// The record before was the one with counts and digest.
    is_checked: bool,
    domains: BTreeMap<DomId, Known>,
    /// The numbers of the connections, by their ids in the stream.
    numbers: BTreeMap<u32, u64>,
    /// When the stream was written.
    written: Option<Instant>,
    next_connection: u64,
}

/// A domain of the stream.
#[derive(Default)]
struct Known {
    has_ring: bool,
    unique: Option<UniqueId>,
    features: Option<u32>,
    mark: Option<DomainMark>,
}

struct DomainMark {
    told_shutdown: bool,
    told_memory: bool,
    is_noted: bool,
    conflicts: Instant,
    writes: Instant,
}

impl Outline {
    fn of(stream: &[u8]) -> Result<Self, StateError> {
        let records = Records::new(stream)?;
        let mut outline = Self {
            version: records.version(),
            ..Self::default()
        };
        let mut connections = Vec::new();
        let mut numbered = BTreeSet::new();
        for record in records {
            let record = record?;
            let noted = outline.note(&record.content, &mut connections, &mut numbered);
            noted.map_err(|why| damaged(&record, why))?;
        }
        // In a stream of others they are numbered as they come.
        let mut next = outline.next_connection;
        for id in connections {
            outline.numbers.entry(id).or_insert_with(|| {
                let number = next;
                next = next.saturating_add(1);
                number
            });
        }
        outline.next_connection = next;
        Ok(outline)
    }

    fn note(
        &mut self,
        content: &Content<'_>,
        connections: &mut Vec<u32>,
        numbered: &mut BTreeSet<u64>,
    ) -> Result<(), Damage> {
        let was_checked = core::mem::take(&mut self.is_checked);
        match content {
            Content::End if self.is_own && !was_checked => return Err(Damage::Digest),
            Content::Own(Own::Check { .. }) => self.is_checked = true,
            Content::Connection(connection) => {
                connections.push(connection.id);
                if let Carrier::Ring { domid, .. } = connection.carrier {
                    let known = self.domains.entry(domid).or_default();
                    if core::mem::replace(&mut known.has_ring, true) {
                        return Err(Damage::Duplicate);
                    }
                    let unique = connection.unique.map(|unique| UniqueId(unique.into()));
                    known.unique = known.unique.or(unique);
                }
            }
            Content::Domain(domain) => {
                let features = (self.version >= 2).then_some(domain.features);
                let known = self.domains.entry(domain.domid).or_default();
                known.features = known.features.or(features);
            }
            Content::Own(Own::DomainMark {
                domid,
                unique,
                features,
                told_shutdown,
                told_memory,
                is_noted,
                conflicts,
                writes,
            }) => {
                let known = self.domains.entry(*domid).or_default();
                known.unique = unique.map(UniqueId).or(known.unique);
                known.features = Some(*features);
                known.mark = Some(DomainMark {
                    told_shutdown: *told_shutdown,
                    told_memory: *told_memory,
                    is_noted: *is_noted,
                    conflicts: *conflicts,
                    writes: *writes,
                });
            }
            Content::Own(Own::Store {
                written,
                next_connection,
                ..
            }) => {
                self.is_own = true;
                self.written = Some(*written);
                self.next_connection = *next_connection;
            }
            Content::Own(Own::Client { conn, number, .. }) => {
                let is_new = self.numbers.insert(*conn, *number).is_none();
                if !is_new || !numbered.insert(*number) {
                    return Err(Damage::Duplicate);
                }
            }
            _ => {}
        }
        Ok(())
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
    acls: BTreeMap<(Vec<u8>, Vec<u8>), Rc<Acl>>,
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
    seen_specials: BTreeSet<&'static str>,
    nodes: u64,
    /// The nodes with which the last transaction began.
    base: Option<S>,
    transaction: Option<(ConnId, TxId, Box<Transaction<S>>)>,
    wished: BTreeSet<Ticket>,
    /// The places of the counters, by name.
    counters: BTreeMap<String, usize>,
}

/// What a record says of the one behind it.
#[derive(Default)]
struct Next<'s> {
    client: Option<Client<'s>>,
    host: Option<&'s [u8]>,
    /// Number and depth of a watch.
    watch: Option<(u64, Option<u32>)>,
    /// Generation of a node, and the entries of its permissions that mean domains that are no more.
    node: Option<(u64, &'s [u8])>,
}

/// What the stream says of a connection besides the documented record.
struct Client<'s> {
    conn: u32,
    is_stopped: bool,
    requests: u64,
    late: u64,
    served: u64,
    deadline: Option<Instant>,
    held: Option<Hold>,
    waiting: Option<u64>,
    last_transaction: u32,
    absent: Numbers<'s>,
    lost: Numbers<'s>,
    outstanding: Numbers<'s>,
    begun: &'s [u8],
}

/// Output of a connection that is not queued yet.
struct Unsent<'s> {
    conn: ConnId,
    id: u32,
    /// What was sent of the first message.
    begun: &'s [u8],
    /// The rest of that one.
    tail: &'s [u8],
    rest: &'s [u8],
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

/// The first connection of a stream that names nobody.
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
            seen_specials: BTreeSet::new(),
            nodes: 0,
            base: None,
            transaction: None,
            wished: BTreeSet::new(),
            counters: counters::places(),
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

    fn record(&mut self, record: &Record<'s>) -> Result<(), Damage> {
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
            Content::Node(node) if node.conn == 0 => self.node(node),
            Content::Node(node) => self.pending(node),
            Content::Quotas(quotas) => {
                self.quotas(quotas);
                Ok(())
            }
            Content::Domain(domain) => {
                self.domain(domain);
                Ok(())
            }
            Content::Own(own) => self.own(own),
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

    fn connection(&mut self, read: &record::Connection<'s>) -> Result<(), Damage> {
        self.flush()?;
        let conn = *self.ids.get(&read.id).ok_or(Damage::Reference)?;
        if !self.opened.insert(conn) {
            return Err(Damage::Duplicate);
        }
        let client = self.next.client.take();
        if client.as_ref().is_some_and(|client| client.conn != read.id) {
            return Err(Damage::Reference);
        }
        let facts = self.next.host.take().unwrap_or_default();
        let mut link = RestoredLink {
            conn,
            domid: None,
            identity: None,
            features: None,
            is_stopped: client.as_ref().is_some_and(|client| client.is_stopped),
            host: HostLink {
                facts: facts.to_vec(),
                ..HostLink::default()
            },
        };
        let (incarnation, home) = match read.carrier {
            Carrier::Ring {
                domid,
                target,
                port,
            } => {
                let domain = self.server.domains.get(domid).ok_or(Damage::Reference)?;
                link.domid = Some(domid);
                link.identity = domain.identity();
                let told = self.is_own || self.version >= 2;
                link.features = told.then(|| domain.features.bits());
                link.host.port = (port != 0).then_some(port);
                self.targets.extend(target.map(|target| (domid, target)));
                (domain.incarnation, domid)
            }
            Carrier::Socket { fd } => {
                link.host.fd = (fd >= 0).then_some(fd);
                (self.server.domains.privileged(), self.server.settings.store)
            }
        };
        let is_ring = link.domid.is_some();
        let privileged = !is_ring || self.server.domains.is_privileged(home);
        let counters = self.server.domains.counters(incarnation);
        let mut connection = Connection::new(incarnation, privileged, home, counters);
        connection.transactions.last = TxId::new(TRANSACTIONS_FROM);
        self.unread(&mut connection, read.input)?;
        if let Some(client) = &client {
            self.client(conn, &mut connection, client);
        }
        self.server.connections.open(conn, connection);
        if let Some(domain) = self.server.domains.alive_mut(incarnation)
            && is_ring
        {
            domain.connection = Some(conn);
        }
        let (tail, rest) = read
            .output
            .split_at_checked(read.tail)
            .ok_or(Damage::Message)?;
        self.output = Some(Unsent {
            conn,
            id: read.id,
            begun: client.map(|client| client.begun).unwrap_or_default(),
            tail,
            rest,
        });
        self.links.push(link);
        Ok(())
    }

    /// Takes what was read and not answered: the first request, and the bytes behind it.
    fn unread(&mut self, connection: &mut Connection<S>, input: &[u8]) -> Result<(), Damage> {
        let mut rest = input;
        while !rest.is_empty() && !connection.input.is_whole() {
            let taken = connection.input.take(rest, &mut self.server.spare);
            let taken = taken.map_err(|_| Damage::Message)?;
            rest = rest.get(taken..).unwrap_or_default();
        }
        connection.backlog.extend(rest);
        Ok(())
    }

    fn client(&mut self, conn: ConnId, connection: &mut Connection<S>, client: &Client<'s>) {
        connection.stopped = client.is_stopped;
        connection.requests = client.requests;
        connection.late = client.late;
        connection.served = Served(client.served);
        connection.deadline = client.deadline.map(|due| self.clock.moved(due));
        connection.held = client.held.map(|hold| Hold {
            since: self.clock.moved(hold.since),
            until: self.clock.moved(hold.until),
        });
        connection.waiting = client.waiting.map(Ticket);
        connection.transactions.last = TxId::new(client.last_transaction);
        let domids = client.absent.iter();
        let domids = domids.filter_map(|domid| u16::try_from(domid).ok());
        connection.absent = domids.map(DomId::new).collect();
        connection.outstanding = client.outstanding.iter().map(|own| (own, 0)).collect();
        self.lost.push((conn, client.lost));
        let server = &mut self.server;
        server
            .deadlines
            .extend(connection.deadline.map(|due| (due, conn)));
        server
            .holds
            .extend(connection.held.map(|hold| (hold.until, conn)));
    }

    fn watch(&mut self, read: &record::Watch<'s>) -> Result<(), Damage> {
        let conn = self.conn(read.conn)?;
        let connection = self.server.connections.get_mut(conn);
        let connection = connection.ok_or(Damage::Reference)?;
        let written = read.path.as_bytes();
        let home = connection.home;
        let mark = self.next.watch.take();
        let depth = read.depth.map(u32::from);
        let (number, depth) = match mark {
            Some((number, depth)) => (number, depth),
            None => (self.server.watches.next, depth),
        };
        let watch = Watch {
            connection: conn,
            path: Path::parse(written, home, 0).map_err(|_| Damage::Path)?,
            token: Token::new(read.token),
            depth,
            relative_to: is_relative(written).then_some(home),
        };
        if self.server.watches.has(&watch) || self.watches.contains_key(&number) {
            return Err(Damage::Duplicate);
        }
        connection.watches = connection.watches.saturating_add(1);
        connection.watch_bytes = connection.watch_bytes.saturating_add(watch.footprint());
        let id = self.server.watches.add_as(number, watch);
        self.watches.insert(number, id);
        if mark.is_none() {
            self.server.watches.next = number.saturating_add(1);
        }
        Ok(())
    }

    /// A transaction of which nothing else may follow that we understand.
    fn opaque(&mut self, read: &record::Transaction) -> Result<(), Damage> {
        let conn = self.conn(read.conn)?;
        let id = TxId::new(read.id).ok_or(Damage::Field)?;
        if self.opaque.insert((conn, id)) {
            Ok(())
        } else {
            Err(Damage::Duplicate)
        }
    }

    /// A node of a transaction, in the documented way: what its requests were answered is not known, so it cannot be merged, and its
    /// nodes are of no use.
    fn pending(&mut self, read: &record::Node<'s>) -> Result<(), Damage> {
        let conn = self.conn(read.conn)?;
        let id = TxId::new(read.transaction).ok_or(Damage::Field)?;
        if self.opaque.contains(&(conn, id)) {
            Ok(())
        } else {
            Err(Damage::Reference)
        }
    }

    fn node(&mut self, read: &record::Node<'s>) -> Result<(), Damage> {
        self.flush()?;
        let (generation, departed) = self.next.node.take().unwrap_or_default();
        let acl = self.acl(read.permissions, departed)?;
        let path = PathRef::known(read.path);
        let seed = Seed {
            value: Value::new(read.value),
            acl: Rc::clone(&acl),
            generation: Generation(generation),
        };
        self.nodes = self.nodes.saturating_add(1);
        let above = if path.is_special() {
            let mut known = SPECIALS.into_iter();
            let special = known.find(|name| *name == read.path).ok_or(Damage::Path)?;
            if !self.seen_specials.insert(special) {
                return Err(Damage::Duplicate);
            }
            return self.replace(path, seed);
        } else if path.is_root() {
            if core::mem::replace(&mut self.has_root, true) {
                return Err(Damage::Duplicate);
            }
            self.replace(path, seed)?;
            self.server.domains.privileged()
        } else {
            let nodes = &mut self.server.store.nodes;
            let is_there = nodes.get(path).is_some();
            let above = self.has_root.then(|| nodes.restore(path, seed)).flatten();
            above.ok_or(if is_there {
                Damage::Duplicate
            } else {
                Damage::Parent
            })?
        };
        self.charge(path, &acl, read.value, above);
        Ok(())
    }

    fn replace(&mut self, path: PathRef<'_>, seed: Seed) -> Result<(), Damage> {
        let node = self.server.store.nodes.get_mut(path);
        let node = node.ok_or(Damage::Reference)?;
        (node.value, node.acl, node.generation) = (seed.value, seed.acl, seed.generation);
        Ok(())
    }

    /// Lets the owner of a node pay for it.
    fn charge(&mut self, path: PathRef<'_>, acl: &Acl, value: &[u8], above: Incarnation) {
        let cost = cost(path, &Value::new(value), acl).unsigned_abs();
        let owner = acl.owner();
        if let Some(domain) = self.server.domains.alive_mut(owner) {
            domain.usage.nodes = domain.usage.nodes.saturating_add(1);
            domain.usage.node_bytes = domain.usage.node_bytes.saturating_add(cost);
            if above != owner {
                domain.estates.insert(path.to_path());
            }
        }
    }

    /// The permissions, which mean domains and not domids.
    fn acl(&mut self, read: Permissions<'s>, departed: &[u8]) -> Result<Rc<Acl>, Damage> {
        let key = (read.as_bytes().to_vec(), departed.to_vec());
        if let Some(known) = self.acls.get(&key) {
            return Ok(Rc::clone(known));
        }
        let departed = departed.iter().copied().chain(core::iter::repeat(0));
        let mut entries = read.iter().zip(departed);
        let (first, is_departed) = entries.next().ok_or(Damage::Permission)?;
        if !first.domid.is_ordinary() {
            return Err(Damage::Domid);
        }
        let owner = if is_departed != 0 || first.is_ignored {
            self.departed(first.domid)
        } else {
            self.expected(first.domid)
        };
        let mut listed = Vec::new();
        for (entry, is_departed) in entries {
            let letter = entry.letter;
            let holder = self.holder(&entry, is_departed != 0);
            listed.push(Entry { letter, holder });
        }
        let acl = Rc::new(Acl::new(owner, first.letter, listed));
        self.acls.insert(key, Rc::clone(&acl));
        Ok(acl)
    }

    fn holder(&mut self, entry: &Permission, is_departed: bool) -> Holder {
        let domid = entry.domid;
        if domid == DomId::ANY && !entry.is_ignored {
            Holder::Any
        } else if !domid.is_ordinary() {
            Holder::Nobody(domid)
        } else if is_departed {
            Holder::Domain(self.departed(domid))
        } else if entry.is_ignored {
            Holder::Nobody(domid)
        } else {
            Holder::Domain(self.expected(domid))
        }
    }

    /// A domain that is no more.
    fn departed(&mut self, domid: DomId) -> Incarnation {
        let domains = &mut self.server.domains;
        let departed = self.departed.entry(domid);
        *departed.or_insert_with(|| domains.departed(domid))
    }

    /// The domain with this id; one that the stream says nothing else of is known from now on, until the host says that it is not there.
    fn expected(&mut self, domid: DomId) -> Incarnation {
        let features = self.server.settings.features;
        self.server.domains.expect(domid, features)
    }

    fn quotas(&mut self, read: &record::Quotas<'s>) {
        let server = &mut self.server;
        for (name, limit) in &read.of_domains {
            match Quota::from_name(name) {
                Some(quota) => server.settings.quotas.set(quota, *limit),
                None => server.unknown_quotas.of_domains.push((text(name), *limit)),
            }
        }
        for (name, limit) in &read.of_all {
            server.unknown_quotas.of_all.push((text(name), *limit));
        }
    }

    /// The quotas of a domain. In a stream of others one that is as for all may have been set or not: then it was not.
    fn domain(&mut self, read: &record::Domain<'s>) {
        let quotas = &self.server.settings.quotas;
        let Some(domain) = self.server.domains.get_mut(read.domid) else {
            return;
        };
        for (name, limit) in &read.quotas {
            match Quota::from_name(name) {
                Some(quota) if self.is_own || quotas.get(quota) != *limit => {
                    domain.overrides.set(quota, *limit);
                }
                Some(_) => {}
                None => domain.unknown_quotas.push((text(name), *limit)),
            }
        }
    }
}

/// Messages.
impl<'s, S: Storage> Import<'s, S> {
    /// Queues the next message of a connection, with what is known of it.
    fn message(&mut self, id: u32, mark: MessageMark) -> Result<(), Damage> {
        let unsent = self.output.as_mut().filter(|unsent| unsent.id == id);
        let unsent = unsent.ok_or(Damage::Reference)?;
        let conn = unsent.conn;
        let sent = unsent.begun.len();
        let bytes;
        let bytes = if unsent.tail.is_empty() {
            take_message(&mut unsent.rest)?
        } else {
            bytes = [unsent.begun, core::mem::take(&mut unsent.tail)].concat();
            let mut whole = bytes.as_slice();
            let message = take_message(&mut whole)?;
            if !whole.is_empty() || sent >= message.len() || sent == 0 {
                return Err(Damage::Message);
            }
            message
        };
        let is_begun = sent > 0 && core::mem::take(&mut unsent.begun).len() == sent;
        let cause = mark.cause.map(|(number, request)| Cause {
            connection: self.numbered(number),
            request,
        });
        let event = mark.event.map(|(watch, queued, repeats)| EventMark {
            watch: self.watch_id(watch),
            queued: self.clock.moved(queued),
            repeats,
        });
        let message = read_message(bytes, cause, event)?;
        if let Some(cause) = cause {
            self.caused
                .push((cause.connection, cause.request, message.bytes()));
        }
        self.queue_message(conn, message, if is_begun { sent } else { 0 })
    }

    /// The watch that had this number, or an id that names none and stands where its own would.
    fn watch_id(&self, number: u64) -> WatchId {
        let place = NOWHERE();
        self.watches
            .get(&number)
            .copied()
            .unwrap_or(WatchId { number, place })
    }

    fn queue_message(&mut self, conn: ConnId, message: Message, sent: usize) -> Result<(), Damage> {
        let connection = self.server.connections.get_mut(conn);
        let connection = connection.ok_or(Damage::Reference)?;
        let is_counted = !connection.privileged;
        connection.output.restore(message, is_counted);
        if sent > 0 {
            connection.output.restore_sent(sent);
        }
        Ok(())
    }

    /// Queues what is left of a connection's output, of which nothing more is known.
    fn flush(&mut self) -> Result<(), Damage> {
        let Some(mut unsent) = self.output.take() else {
            return Ok(());
        };
        if !unsent.begun.is_empty() {
            return Err(Damage::Message);
        }
        if !unsent.tail.is_empty() {
            let message = Message {
                header: [0; HEADER_SIZE],
                payload: Payload::Bytes(unsent.tail.to_vec()),
                cause: None,
                event: None,
            };
            self.queue_message(unsent.conn, message, HEADER_SIZE)?;
        }
        while !unsent.rest.is_empty() {
            let bytes = take_message(&mut unsent.rest)?;
            let mark = EventMark {
                watch: self.watch_id(u64::MAX),
                queued: self.server.now,
                repeats: false,
            };
            let message = read_message(bytes, None, Some(mark))
                .or_else(|_| read_message(bytes, None, None))?;
            self.queue_message(unsent.conn, message, 0)?;
        }
        Ok(())
    }
}

/// What is known of a message besides its bytes.
struct MessageMark {
    /// The number of the connection whose request made it, and which request that was.
    cause: Option<(u64, u64)>,
    /// Of an event the watch, when it was queued, and whether it is told even if an equal one waits.
    event: Option<(u64, Instant, bool)>,
}

/// Cuts a whole message off.
fn take_message<'b>(bytes: &mut &'b [u8]) -> Result<&'b [u8], Damage> {
    let header = bytes.first_chunk().ok_or(Damage::Message)?;
    let len = Header::decode(*header).len;
    if len > PAYLOAD_MAX {
        return Err(Damage::Message);
    }
    let len = usize::try_from(len).map_err(|_| Damage::Message)?;
    let size = len.saturating_add(HEADER_SIZE);
    let (message, rest) = bytes.split_at_checked(size).ok_or(Damage::Message)?;
    *bytes = rest;
    Ok(message)
}

fn read_message(
    bytes: &[u8],
    cause: Option<Cause>,
    event: Option<EventMark>,
) -> Result<Message, Damage> {
    let (header, payload) = bytes.split_first_chunk().ok_or(Damage::Message)?;
    let is_event = Header::decode(*header).kind == Kind::WatchEvent.number();
    let payload = match (event, is_event) {
        (Some(_), true) => Payload::Event(event_text(payload).ok_or(Damage::Message)?),
        (None, _) => Payload::Bytes(payload.to_vec()),
        (Some(_), false) => return Err(Damage::Message),
    };
    Ok(Message {
        header: *header,
        payload,
        cause,
        event,
    })
}

/// What an event says: a path as its client wrote it, and a token.
fn event_text(payload: &[u8]) -> Option<EventText> {
    let mut strings = payload.split(|byte| *byte == 0);
    let (path, token) = (strings.next()?, strings.next()?);
    let (Some([]), None) = (strings.next(), strings.next()) else {
        return None;
    };
    Path::parse(path, DomId::default(), 0).ok()?;
    let path = core::str::from_utf8(path).ok()?;
    Some(EventText {
        path: PathRef::known(path).to_path(),
        from: 0,
        token: Token::new(token),
    })
}

/// Our own records.
impl<'s, S: Storage> Import<'s, S> {
    fn own(&mut self, own: &Own<'s>) -> Result<(), Damage> {
        match own {
            Own::Store { .. } => self.store(own),
            Own::Peak { name, value } => {
                if let Some(quota) = Quota::from_name(name.0) {
                    self.server.peaks.note(quota, *value);
                }
                Ok(())
            }
            Own::Client { .. } => self.note_client(own),
            Own::WatchMark { number, depth, .. } => {
                self.next.watch = Some((*number, *depth));
                Ok(())
            }
            Own::Message {
                conn,
                is_event,
                repeats,
                watch,
                queued,
                cause,
                request,
            } => {
                let mark = MessageMark {
                    cause: cause.map(|number| (number, *request)),
                    event: is_event.then_some((*watch, *queued, *repeats)),
                };
                self.message(*conn, mark)
            }
            Own::NodeMark {
                generation,
                departed,
            } => {
                self.next.node = Some((*generation, departed.0));
                Ok(())
            }
            Own::DomainMark { .. } => Ok(()),
            Own::Counter { .. } | Own::Refusals { .. } => self.counted(own),
            Own::Host { facts } => {
                self.host.facts = facts.0.to_vec();
                Ok(())
            }
            Own::HostLink { facts, .. } => {
                self.next.host = Some(facts.0);
                Ok(())
            }
            Own::Check { nodes, .. } => {
                if *nodes == self.nodes {
                    Ok(())
                } else {
                    Err(Damage::Digest)
                }
            }
            Own::Cut { .. } | Own::Set { .. } => self.step(own),
            Own::Begin { .. } => self.begin(own),
            Own::End {} => self.end(),
            Own::Request { .. }
            | Own::Touched { .. }
            | Own::Change { .. }
            | Own::Charge { .. }
            | Own::Estate { .. } => self.in_transaction(own),
            Own::GuestChange { .. } | Own::Turn { .. } | Own::Ready { .. } => self.queue(own),
            Own::Question { .. } | Own::Wish { .. } => self.wish(own),
        }
    }

    fn store(&mut self, own: &Own<'s>) -> Result<(), Damage> {
        let &Own::Store {
            now,
            generation,
            deaths,
            asked,
            spent,
            clock,
            next_watch,
            changes,
            begun,
            next_round,
            step_at,
            step_domid,
            supply,
            next_look,
            traces,
            is_noted,
            is_release_untold,
            ..
        } = own
        else {
            return Ok(());
        };
        let server = &mut self.server;
        server.now = self.clock.moved(now);
        server.store.generation = Generation(generation);
        server.domains.deaths = deaths;
        server.domains.noted.set(is_noted);
        server.asked = asked;
        server.spent = spent;
        server.turns.clock = clock;
        server.watches.next = next_watch;
        (server.history.count, server.history.begun) = (changes, begun);
        server.counter_nodes.next_round = self.clock.moved(next_round);
        let step = step_at.map(|at| (step_domid, self.clock.moved(at)));
        server.counter_nodes.next_step = step;
        server.left.next_look = self.clock.moved(next_look);
        server.traces = traces;
        server.is_release_untold = is_release_untold;
        server.supply = match supply {
            0 => Supply::Plenty,
            1 => Supply::Scarce,
            2 => Supply::Short,
            3 => Supply::Reserve,
            _ => return Err(Damage::Field),
        };
        Ok(())
    }

    fn note_client(&mut self, own: &Own<'s>) -> Result<(), Damage> {
        let &Own::Client {
            conn,
            is_stopped,
            requests,
            late,
            served,
            deadline,
            held_since: since,
            held_until,
            waiting,
            last_transaction,
            absent,
            lost,
            outstanding,
            begun,
            ..
        } = own
        else {
            return Ok(());
        };
        self.next.client = Some(Client {
            conn,
            is_stopped,
            requests,
            late,
            served,
            deadline,
            held: held_until.map(|until| Hold { since, until }),
            waiting,
            last_transaction,
            absent,
            lost,
            outstanding,
            begun: begun.0,
        });
        Ok(())
    }

    fn counted(&mut self, own: &Own<'s>) -> Result<(), Damage> {
        let domains = &mut self.server.domains;
        match own {
            Own::Counter { domid, name, value } => {
                let name = core::str::from_utf8(name.0).map_err(|_| Damage::Text)?;
                let Some(place) = self.counters.get(name) else {
                    return Ok(());
                };
                let Some(domid) = domid else {
                    domains.past.restore(*place, *value);
                    return Ok(());
                };
                let domain = domains.get(*domid).ok_or(Damage::Reference)?;
                let incarnation = domain.incarnation;
                domains.counters(incarnation).restore(*place, *value);
            }
            Own::Refusals {
                domid,
                name,
                told,
                untold,
            } => {
                let domain = domains.get(*domid).ok_or(Damage::Reference)?;
                let spell = Spell {
                    told: told.map(|told| self.clock.moved(told)),
                    untold: *untold,
                };
                let reason = Reason::all().find(|reason| reason.name().as_bytes() == name.0);
                if let (Some(counters), Some(reason)) = (domain.counters(), reason) {
                    counters.restore_spell(reason, spell);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn queue(&mut self, own: &Own<'s>) -> Result<(), Damage> {
        match own {
            Own::GuestChange {
                number,
                domid,
                is_alive,
                path,
                is_listed,
            } => {
                let domain = if *is_alive {
                    self.expected(*domid)
                } else {
                    self.departed(*domid)
                };
                let changes = &mut self.server.history.changes;
                if changes.len() >= CHANGES_MAX {
                    return Err(Damage::Duplicate);
                }
                changes.push_back(GuestChange {
                    number: *number,
                    domain,
                    path: PathRef::known(path).to_path(),
                    is_listed: *is_listed,
                });
            }
            Own::Turn {
                connection,
                ends,
                begins,
                served,
            } => {
                let conn = self.numbered(*connection);
                if let Some(connection) = self.server.connections.get_mut(conn)
                    && core::mem::replace(&mut connection.queued, true)
                {
                    return Err(Damage::Duplicate);
                }
                self.server.turns.put(Turn {
                    ends: Served(*ends),
                    begins: Served(*begins),
                    served: Served(*served),
                    conn,
                });
            }
            Own::Ready { connection } => self.server.announce(self.numbered(*connection)),
            _ => {}
        }
        Ok(())
    }

    fn wish(&mut self, own: &Own<'s>) -> Result<(), Damage> {
        match own {
            Own::Question {
                ticket,
                requester,
                domid,
                connection,
                header,
            } => {
                let requester = self.numbered(*requester);
                let domid = *domid;
                let question = match connection {
                    Some(number) => {
                        let header = header.0.first_chunk().ok_or(Damage::Field)?;
                        if self.conns.contains_key(number) {
                            return Err(Damage::Duplicate);
                        }
                        let conn = self.server.connections.promise_as(*number);
                        self.conns.insert(*number, conn);
                        Question::Connect {
                            requester,
                            header: Header::decode(*header),
                            conn,
                            domid,
                            port: EvtchnPort(0),
                        }
                    }
                    None => Question::Identify { requester, domid },
                };
                self.server.questions.insert(Ticket(*ticket), question);
            }
            Own::Wish {
                ticket,
                domid,
                connection,
                port,
            } => self.act(ticket.map(Ticket), *domid, *connection, EvtchnPort(*port))?,
            _ => {}
        }
        Ok(())
    }

    fn act(
        &mut self,
        ticket: Option<Ticket>,
        domid: DomId,
        connection: Option<u64>,
        named: EvtchnPort,
    ) -> Result<(), Damage> {
        let Some(ticket) = ticket else {
            self.server.actions.push_back(Action::Disconnect { domid });
            return Ok(());
        };
        if !self.wished.insert(ticket) {
            return Err(Damage::Duplicate);
        }
        let question = self.server.questions.get_mut(&ticket);
        let action = match question.ok_or(Damage::Reference)? {
            Question::Connect {
                conn, domid, port, ..
            } if connection == Some(conn.number) => {
                *port = named;
                Action::Connect {
                    ticket,
                    conn: *conn,
                    domid: *domid,
                    port: named,
                }
            }
            Question::Identify { domid, .. } if connection.is_none() => Action::Identify {
                ticket,
                domid: *domid,
            },
            _ => return Err(Damage::Field),
        };
        self.server.actions.push_back(action);
        Ok(())
    }
}

/// Transactions.
impl<'s, S: Storage> Import<'s, S> {
    fn begin(&mut self, own: &Own<'s>) -> Result<(), Damage> {
        let &Own::Begin {
            conn,
            transaction,
            has_failed,
            is_given_up,
            is_overflowed,
            deaths,
            changes,
            number,
            since,
        } = own
        else {
            return Ok(());
        };
        let conn = self.conn(conn)?;
        let id = TxId::new(transaction).ok_or(Damage::Field)?;
        if self.transaction.is_some() || !self.opaque.remove(&(conn, id)) {
            return Err(Damage::Reference);
        }
        let server = &self.server;
        let base = self.base.get_or_insert_with(|| server.store.nodes.clone());
        let opening = server
            .history
            .opened_at(changes, number, self.clock.moved(since));
        let mut transaction = Transaction::start(base, &server.domains, opening, Box::default());
        transaction.failed = has_failed;
        transaction.is_given_up = is_given_up;
        transaction.log.touched.overflowed = is_overflowed;
        transaction.deaths = deaths;
        self.transaction = Some((conn, id, Box::new(transaction)));
        Ok(())
    }

    fn end(&mut self) -> Result<(), Damage> {
        let (conn, id, transaction) = self.transaction.take().ok_or(Damage::Reference)?;
        let connection = self.server.connections.get_mut(conn);
        let connection = connection.ok_or(Damage::Reference)?;
        connection.transactions.restore(id, transaction);
        Ok(())
    }

    fn in_transaction(&mut self, own: &Own<'s>) -> Result<(), Damage> {
        let (_, _, transaction) = self.transaction.as_mut().ok_or(Damage::Reference)?;
        let domains = &self.server.domains;
        let alive = |domid| {
            let domain = domains.get(domid).ok_or(Damage::Reference)?;
            Ok(domain.incarnation)
        };
        match own {
            Own::Request {
                kind,
                payload,
                answer,
                start,
                text,
            } => {
                let kind = Kind::from_number(*kind).filter(|kind| is_database(*kind));
                let answer = read_answer(*answer, *start, text.0)?;
                transaction.keep(kind.ok_or(Damage::Field)?, payload.0, answer);
            }
            Own::Touched { path } => {
                let path = PathRef::known(path);
                transaction.touch(path).map_err(|_| Damage::Duplicate)?;
            }
            Own::Change {
                path,
                is_removed,
                made,
            } => {
                let mark = Mark {
                    removed: *is_removed,
                    made: usize::try_from(*made).map_err(|_| Damage::Field)?,
                };
                transaction.log.touched.mark(PathRef::known(path), mark);
            }
            Own::Charge {
                domid,
                nodes,
                bytes,
            } => transaction
                .log
                .effects
                .charge(alive(*domid)?, *nodes, *bytes),
            Own::Estate {
                domid,
                path,
                is_gained,
            } => {
                let path = PathRef::known(path);
                transaction
                    .log
                    .effects
                    .transfer(alive(*domid)?, path, *is_gained);
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes a step from one snapshot to another: to the nodes that a transaction has, or to those that the next one began with.
    fn step(&mut self, own: &Own<'s>) -> Result<(), Damage> {
        let set = match own {
            Own::Set {
                permissions,
                departed,
                ..
            } => Some(self.acl(*permissions, departed.0)?),
            _ => None,
        };
        let server = &self.server;
        let nodes = match &mut self.transaction {
            Some((_, _, transaction)) => &mut transaction.nodes,
            None => self.base.get_or_insert_with(|| server.store.nodes.clone()),
        };
        match (own, set) {
            (Own::Cut { path }, _) => {
                let path = PathRef::known(path);
                let parent = path.parent().and_then(|parent| nodes.get(parent));
                let generation = parent.ok_or(Damage::Parent)?.generation;
                nodes.get(path).ok_or(Damage::Reference)?;
                nodes.remove(path, generation).ok_or(Damage::Reference)?;
            }
            (
                Own::Set {
                    path,
                    is_new,
                    generation,
                    value,
                    ..
                },
                Some(acl),
            ) => {
                let path = PathRef::known(path);
                let (value, generation) = (Value::new(value.0), Generation(*generation));
                if *is_new {
                    let seed = Seed {
                        value,
                        acl,
                        generation,
                    };
                    nodes.restore(path, seed).ok_or(Damage::Parent)?;
                } else {
                    let node = nodes.get_mut(path).ok_or(Damage::Reference)?;
                    (node.value, node.acl, node.generation) = (value, acl, generation);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn read_answer(tag: u8, start: u32, text: &[u8]) -> Result<Result<Answer, Errno>, Damage> {
    let string = || {
        let text = core::str::from_utf8(text).map_err(|_| Damage::Text)?;
        Ok(String::from(text))
    };
    Ok(Ok(match tag {
        0 => Answer::Done,
        1 => Answer::Value(Value::new(text)),
        2 => Answer::Names(text.to_vec()),
        3 => {
            let start = usize::try_from(start).map_err(|_| Damage::Field)?;
            Answer::Part(text.to_vec(), start)
        }
        4 => Answer::Permissions(string()?),
        5 => Answer::Text(string()?),
        6 => {
            let mut all = Errno::ALL.iter();
            let errno = all.find(|errno| errno.name().as_bytes() == text);
            return Ok(Err(*errno.ok_or(Damage::Field)?));
        }
        _ => return Err(Damage::Field),
    }))
}

/// The end.
impl<S: Storage> Import<'_, S> {
    fn finish(mut self) -> Result<Restored<S>, Damage> {
        self.flush()?;
        if !self.has_root || self.transaction.is_some() {
            return Err(Damage::Reference);
        }
        if self.opened.len() != self.ids.len() {
            return Err(Damage::Reference);
        }
        self.resolve_targets();
        self.lose_transactions();
        self.resolve_lost();
        self.count_outstanding()?;
        self.check_questions()?;
        if !self.is_own {
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
            let mut lost = Transaction::start(
                &server.store.nodes,
                &server.domains,
                opening,
                Box::default(),
            );
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
        let mut all = self.server.connections.iter();
        if all.any(|connection| connection.outstanding.values().any(|count| *count == 0)) {
            return Err(Damage::Message);
        }
        Ok(())
    }

    /// Whoever waits must wait for something that will come.
    fn check_questions(&self) -> Result<(), Damage> {
        let questions = &self.server.questions;
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
