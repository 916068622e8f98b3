//! Writes the state as it is now: nothing changes, each thing is looked at once, and the same state gives the same bytes.
//!
//! The order is that of C xenstored. Records of our own stand before what they say more of, but for what has no documented record.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Reverse;

use super::codec::{Body, Writer};
use super::own::{Bytes, Near, Numbers, Own};
use super::packed::{NODES, Packer};
use super::record::{HAS_UNIQUE, IDENTIFIER, IGNORE, NO_TARGET, Permissions, UNLIMITED, kind};
use super::snapshot::{SPECIALS, Step, steps};
use super::{Format, Host, LeftOut, Loss, Sink, Size};
use crate::acl::{Acl, Holder, Incarnation};
use crate::answer::Answer;
use crate::connection::Connection;
use crate::counters::Counters;
use crate::crash::{AtWork, Blamed};
use crate::domain::Domain;
use crate::ids::{ConnId, DomId, TxId};
use crate::memory::Supply;
use crate::output::Message;
use crate::path::PathRef;
use crate::quota::Quota;
use crate::server::{Action, Question, Server};
use crate::storage::{Node, Storage};
use crate::time::Instant;
use crate::transaction::Transaction;
use crate::turns::Entry as Turn;
use crate::wire::{Errno, HEADER_SIZE, Header, Kind};

/// Most bytes of input that a connection's record has place for.
const INPUT_MAX: usize = u16::MAX as usize;

impl<S: Storage> Server<S> {
    /// Writes the whole state as of `now` into `sink`, with what `host` has for each connection. Gives what the format has no place for.
    pub fn export(
        &self,
        format: Format,
        now: Instant,
        host: &dyn Host,
        sink: &mut dyn Sink,
    ) -> Vec<LeftOut> {
        Export {
            server: self,
            is_own: format == Format::Own,
            format,
            now,
            host,
            out: Writer::new(sink),
            order: order(self),
            permissions: PermissionBytes::default(),
            before: String::new(),
            nodes: 0,
            packer: Packer::default(),
            crash: None,
        }
        .write();
        self.left_out(format)
    }

    /// Writes the state of a server that crashed, in [`Format::Own`], as [`Server::export`] does. It is as it was between two requests, but
    /// for what the last one had done already.
    ///
    /// The connection that the server worked for is blamed, or `at_work` if the host knows better: what it has is left out. If the sink has
    /// no room for all, open transactions are left out, too, and get EAGAIN.
    pub fn export_after_crash(
        &self,
        now: Instant,
        host: &dyn Host,
        at_work: Option<ConnId>,
        sink: &mut dyn Sink,
    ) {
        let known = at_work.map(AtWork::without_request);
        let own = self
            .at_work
            .filter(|own| at_work.is_none_or(|conn| conn == own.conn));
        let at_work = own.or(known);
        let blamed = at_work.and_then(|at_work| self.blamed(at_work));
        let lost = blamed.filter(|blamed| !blamed.is_kept);
        let left = lost.and_then(|lost| Some((lost.conn, self.left_of(lost)?)));
        let mut order = order(self);
        if let Some((lost, left)) = &left {
            let is_ring = self.is_ring(*lost);
            order.retain(|(conn, _)| is_ring || conn != lost);
            for (_, connection) in order.iter_mut().filter(|(conn, _)| conn == lost) {
                *connection = left;
            }
        }
        let crashed = Crashed {
            blamed,
            at_work,
            gives_up: false,
        };
        let write = |sink: &mut dyn Sink, crashed| {
            Export {
                server: self,
                is_own: true,
                format: Format::Own,
                now,
                host,
                out: Writer::new(sink),
                order: order.clone(),
                permissions: PermissionBytes::default(),
                before: String::new(),
                nodes: 0,
                packer: Packer::default(),
                crash: Some(crashed),
            }
            .write();
        };
        let room = sink.room();
        let mut size = Size::default();
        if room < u64::MAX {
            write(&mut size, crashed);
        }
        let gives_up = size.0 > room;
        write(
            sink,
            Crashed {
                gives_up,
                ..crashed
            },
        );
    }

    /// What a format has no place for.
    pub(crate) fn left_out(&self, format: Format) -> Vec<LeftOut> {
        losses(self, format)
    }
}

/// A connection's id in the stream, the connection, and an open transaction of it.
type Open<'a, S> = (u32, ConnId, TxId, &'a Transaction<S>);

struct Export<'a, S: Storage> {
    server: &'a Server<S>,
    is_own: bool,
    format: Format,
    now: Instant,
    host: &'a dyn Host,
    out: Writer<'a>,
    /// The connections in the order of the stream; their ids there count from 1.
    order: Vec<(ConnId, &'a Connection<S>)>,
    permissions: PermissionBytes,
    /// The path of the last node that was written in a record of our own.
    before: String,
    nodes: u64,
    packer: Packer,
    crash: Option<Crashed>,
}

/// What is known of a crash.
#[derive(Clone, Copy)]
struct Crashed {
    blamed: Option<Blamed>,
    at_work: Option<AtWork>,
    /// There is no room for what open transactions hold: they cannot be merged any more.
    gives_up: bool,
}

impl Crashed {
    /// The connection of which nothing is kept.
    fn lost(&self) -> Option<ConnId> {
        let lost = self.blamed.filter(|blamed| !blamed.is_kept)?;
        Some(lost.conn)
    }

    /// Whether a transaction is one in which the request ran: it may be half changed.
    fn broke(&self, conn: ConnId, id: TxId) -> bool {
        let at_work = self.at_work.filter(|at_work| at_work.conn == conn);
        at_work.is_some_and(|at_work| at_work.broken().contains(&Some(id)))
    }
}

impl<S: Storage> Export<'_, S> {
    fn write(mut self) {
        self.begin();
        self.connections();
        self.nodes();
        self.domains();
        if self.is_own {
            self.transactions();
            self.queues();
            self.update();
            self.crash();
            self.journal();
        }
        self.end();
    }

    fn own(&mut self, record: &Own<'_>) {
        if self.is_own {
            self.out.record(record.kind(), |body| record.write(body));
        }
    }

    /// A record of our own with the path of a node, of which it has how that differs from the one before.
    fn near<'p>(&mut self, path: PathRef<'p>, record: impl FnOnce(Near<'p>) -> Own<'p>) {
        let own = record(Near::of(path.as_str(), &self.before));
        self.out.record(own.kind(), |body| own.write(body));
        note(&mut self.before, path);
    }

    fn begin(&mut self) {
        let mut preamble = Vec::from(*IDENTIFIER);
        preamble.extend_from_slice(&self.format.version().to_be_bytes());
        preamble.extend_from_slice(&0_u32.to_be_bytes());
        self.out.preamble(&preamble);
        let global = self.host.global();
        let fds = [global.socket_fd, global.evtchn_fd];
        self.out.record(kind::GLOBAL, |body| {
            for fd in fds {
                body.u32(fd.unwrap_or(-1).cast_unsigned());
            }
        });
        self.quotas();
        self.store();
        if !global.facts.is_empty() {
            let facts = Bytes(&global.facts);
            self.own(&Own::Host { facts });
        }
        self.lists();
    }

    /// The lists of policies and layers, unless nobody has ever wanted others than the defaults; whatever became of the nodes that show them.
    fn lists(&mut self) {
        let settings = &self.server.settings;
        let are_default =
            settings.policies == Default::default() && settings.layers == Default::default();
        if self.server.are_lists_set || !are_default {
            self.own(&Own::Lists {
                policies: Bytes(settings.policies.as_str().as_bytes()),
                layers: Bytes(settings.layers.as_str().as_bytes()),
            });
        }
    }

    fn quotas(&mut self) {
        let Server {
            settings,
            unknown_quotas,
            ..
        } = self.server;
        let known = Quota::all().map(|quota| (quota.name(), settings.quotas.get(quota)));
        let mut all: Vec<(&str, u32)> = known.collect();
        all.extend(named(&unknown_quotas.of_domains));
        let of_domains = all.len();
        all.extend(named(&unknown_quotas.of_all));
        self.out.record(kind::QUOTAS, |body| {
            body.len16(of_domains);
            body.len16(all.len().saturating_sub(of_domains));
            pairs(body, &all);
        });
    }

    fn store(&mut self) {
        let server = self.server;
        let step = server.counter_nodes.next_step;
        self.own(&Own::Store {
            written: self.now,
            now: server.now,
            generation: server.store.generation.0,
            deaths: server.domains.deaths(),
            asked: server.asked,
            spent: server.spent,
            clock: server.turns.clock,
            next_connection: server.connections.next,
            next_watch: server.watches.next,
            changes: server.history.count,
            begun: server.history.begun,
            next_round: server.counter_nodes.next_round,
            step_at: step.map(|(_, at)| at),
            step_domid: step.map(|(domid, _)| domid).unwrap_or_default(),
            supply: match server.supply {
                Supply::Plenty => 0,
                Supply::Scarce => 1,
                Supply::Short => 2,
                Supply::Reserve => 3,
            },
            next_look: server.left.next_look,
            traces: server.traces,
            is_noted: server.domains.is_noted(),
            is_release_untold: server.is_release_untold,
            crashes: server.crashes,
        });
        for quota in Quota::all() {
            self.own(&Own::Peak {
                name: Bytes(quota.name().as_bytes()),
                value: server.peaks.get(quota),
            });
        }
    }

    fn connections(&mut self) {
        for (id, (conn, connection)) in (1..).zip(self.order.clone()) {
            let link = self.host.link(conn);
            let domain = self.server.domains.alive(connection.incarnation);
            let ring = domain.filter(|domain| domain.connection == Some(conn));
            self.client(id, conn, connection);
            if !link.facts.is_empty() {
                let facts = Bytes(&link.facts);
                self.own(&Own::HostLink { conn: id, facts });
            }
            let last = match self.is_own {
                true => Vec::new(),
                false => self.server.update_reply(conn),
            };
            let output = Unsent::of(connection, &last);
            let input = input(self.server, self.is_own, connection);
            let unique = ring.and_then(|domain| domain.unique);
            let unique = unique.and_then(|unique| u64::try_from(unique.0).ok());
            let target = ring.and_then(|domain| self.target(domain));
            self.out.long_record(kind::CONNECTION, |body| {
                body.u32(id);
                body.u16(u16::from(ring.is_none()));
                body.u16(if unique.is_some() { HAS_UNIQUE } else { 0 });
                match ring {
                    Some(domain) => {
                        body.u16(domain.incarnation.domid.get());
                        body.u16(target.map_or(NO_TARGET, DomId::get));
                        body.u32(link.port.unwrap_or_default());
                    }
                    None => {
                        body.u32(link.fd.unwrap_or(-1).cast_unsigned());
                        body.u32(0);
                    }
                }
                body.len16(input.len());
                body.len16(output.begun_left);
                body.len32(output.len);
                body.bytes(&input);
                output.write(body);
                body.pad();
                if let Some(unique) = unique {
                    body.u64(unique);
                }
            });
            if self.crash.as_ref().and_then(Crashed::lost) != Some(conn) {
                self.watches(id, conn);
            }
            for message in connection.output.waiting().0 {
                self.message(id, message);
            }
            for tx in connection.transactions.open.keys() {
                self.out.record(kind::TRANSACTION, |body| {
                    body.u32(id);
                    body.u32(tx.get());
                });
            }
        }
    }

    fn target(&self, domain: &Domain) -> Option<DomId> {
        let target = self.server.domains.alive(domain.target?)?;
        Some(target.incarnation.domid)
    }

    fn client(&mut self, id: u32, conn: ConnId, connection: &Connection<S>) {
        let absent = connection.absent.iter().map(|domid| domid.get().into());
        let lost = connection.lost.iter().map(|watch| watch.number);
        let outstanding = connection.outstanding.keys().copied();
        let (absent, lost, outstanding) = (numbers(absent), numbers(lost), numbers(outstanding));
        let last = connection.transactions.last;
        // A request that a layer lets wait is input that nobody has looked at.
        let held = connection.held.filter(|hold| !hold.is_parked);
        self.own(&Own::Client {
            conn: id,
            number: conn.number,
            is_stopped: connection.stopped,
            requests: connection.requests,
            late: connection.late,
            served: connection.served.0,
            deadline: connection.deadline,
            held_since: held.map(|hold| hold.since).unwrap_or_default(),
            held_until: held.map(|hold| hold.until),
            waiting: connection.waiting.map(|ticket| ticket.0),
            last_transaction: last.map_or(0, TxId::get),
            absent: Numbers(&absent),
            lost: Numbers(&lost),
            outstanding: Numbers(&outstanding),
            begun: Bytes(&begun(connection)),
            crashes: connection.crashes,
        });
    }

    fn watches(&mut self, id: u32, conn: ConnId) {
        for (mark, watch) in self.server.watches.of(conn) {
            let path = watch.path.as_ref();
            let from = watch.shown_from(path);
            let path = path.as_str().get(from..).unwrap_or_default();
            let token = watch.token.as_bytes();
            let depth = watch.depth.filter(|_| self.is_own);
            self.own(&Own::WatchMark {
                conn: id,
                number: mark.number,
                depth: watch.depth,
            });
            let kind = if depth.is_some() {
                kind::WATCH_EXTENDED
            } else {
                kind::WATCH
            };
            self.out.record(kind, |body| {
                body.u32(id);
                body.len16(path.len().saturating_add(1));
                body.len16(token.len().saturating_add(1));
                if let Some(depth) = depth {
                    let most = UNLIMITED.saturating_sub(1);
                    body.u16(u16::try_from(depth).unwrap_or(most).min(most));
                    body.u16(0);
                }
                body.bytes(path.as_bytes());
                body.u8(0);
                body.bytes(token);
                body.u8(0);
            });
        }
    }

    fn message(&mut self, id: u32, message: &Message) {
        let mark = message.event;
        self.own(&Own::Message {
            conn: id,
            is_event: mark.is_some(),
            repeats: mark.is_some_and(|mark| mark.repeats),
            watch: mark.map_or(0, |mark| mark.watch.number),
            queued: mark.map(|mark| mark.queued).unwrap_or_default(),
            cause: message.cause.map(|cause| cause.connection.number),
            request: message.cause.map_or(0, |cause| cause.request),
        });
    }

    fn nodes(&mut self) {
        let nodes = &self.server.store.nodes;
        nodes.walk(PathRef::known("/"), |path, node| self.node(path, node));
        for special in SPECIALS.map(PathRef::known) {
            if let Some(node) = nodes.get(special) {
                self.node(special, node);
            }
        }
        self.packed();
    }

    /// Writes the nodes that were collected.
    fn packed(&mut self) {
        let nodes = self.packer.bytes();
        if !nodes.is_empty() {
            self.out.record(NODES, |body| body.block(nodes));
        }
        self.packer.begin();
    }

    fn node(&mut self, path: PathRef<'_>, node: &Node<S::Child>) {
        self.nodes = self.nodes.saturating_add(1);
        self.permissions.of(self.server, self.is_own, &node.acl);
        let PermissionBytes {
            entries, departed, ..
        } = &self.permissions;
        let value = node.value.as_bytes();
        if self.is_own {
            let near = Near::of(path.as_str(), &self.before);
            let generation = node.generation.0;
            let packer = &mut self.packer;
            let is_enough = packer.add(near, generation, entries, departed, value);
            note(&mut self.before, path);
            if is_enough {
                self.packed();
            }
            return;
        }
        self.out.record(kind::NODE, |body| {
            body.u32(0);
            body.u32(0);
            body.len16(path.as_str().len().saturating_add(1));
            body.len16(value.len());
            body.u16(0);
            body.len16(entries.len() / 4);
            body.bytes(entries);
            body.bytes(path.as_str().as_bytes());
            body.u8(0);
            body.bytes(value);
        });
    }

    fn domains(&mut self) {
        let server = self.server;
        for domain in server.domains.iter() {
            if !self.is_own && domain.connection.is_none() {
                continue;
            }
            let domid = domain.incarnation.domid;
            self.own(&Own::DomainMark {
                domid,
                unique: domain.unique.map(|unique| unique.0),
                features: domain.features.bits(),
                told_shutdown: domain.told_shutdown,
                told_memory: domain.told_memory,
                is_noted: domain.counters().is_some_and(Counters::is_noted),
                conflicts: domain.credits.conflicts.full_at,
                writes: domain.credits.writes.full_at,
            });
            let known = domain.overrides.all();
            let mut all: Vec<(&str, u32)> =
                known.map(|(quota, limit)| (quota.name(), limit)).collect();
            all.extend(named(&domain.unknown_quotas));
            let has_features = self.format.version() >= 2;
            self.out.record(kind::DOMAIN, |body| {
                body.u16(domid.get());
                body.len16(all.len());
                body.u32(if has_features {
                    domain.features.bits()
                } else {
                    0
                });
                pairs(body, &all);
            });
            if let Some(counters) = domain.counters() {
                self.counters(Some(domid), counters);
            }
        }
        self.counters(None, &server.domains.past);
    }

    /// What was counted of a domain, or of all that ended.
    fn counters(&mut self, domid: Option<DomId>, counters: &Counters) {
        if !self.is_own {
            return;
        }
        for (name, value) in counters.values() {
            let name = Bytes(name.as_bytes());
            self.own(&Own::Counter { domid, name, value });
        }
        let Some(domid) = domid else {
            return;
        };
        for (reason, spell) in counters.spells() {
            if spell.told.is_some() {
                self.own(&Own::Refusals {
                    domid,
                    name: Bytes(reason.name().as_bytes()),
                    told: spell.told,
                    untold: spell.untold,
                });
            }
        }
    }

    /// Open transactions, the youngest first: each begins with what makes the nodes that it began with of those of the one before. Those that
    /// are inside another follow it likewise, beginning with the nodes that it has.
    fn transactions(&mut self) {
        let mut open = Vec::new();
        if self.crash.as_ref().is_some_and(|crash| crash.gives_up) {
            return;
        }
        for (id, (conn, connection)) in (1..).zip(&self.order) {
            let own = connection.transactions.open.iter();
            let own = own.filter(|(_, transaction)| transaction.parent.is_none());
            open.extend(own.map(|(tx, transaction)| (id, *conn, *tx, &**transaction)));
        }
        let mut written = Vec::new();
        self.siblings(&self.server.store.nodes, open, &mut written);
        while let Some((id, conn, tx, outer)) = written.pop() {
            let connection = self.server.connections.get(conn);
            let Some(own) = connection.map(|connection| &connection.transactions) else {
                continue;
            };
            let inside = own.inside(tx).filter_map(|tx| {
                let transaction = own.open.get(&tx)?;
                Some((id, conn, tx, &**transaction))
            });
            self.siblings(&outer.nodes, inside.collect(), &mut written);
        }
    }

    /// Transactions that began with the nodes of the same one, or of the store.
    fn siblings<'t>(
        &mut self,
        nodes: &S,
        mut all: Vec<Open<'t, S>>,
        written: &mut Vec<Open<'t, S>>,
    ) {
        all.sort_unstable_by_key(|(.., transaction)| Reverse(transaction.opening.number));
        all.retain(|(_, conn, tx, _)| {
            let crash = self.crash.as_ref();
            !crash.is_some_and(|crash| crash.broke(*conn, *tx))
        });
        let mut nodes = nodes;
        for (id, conn, tx, transaction) in all {
            if let Some(parent) = transaction.parent {
                let transaction = parent.get();
                self.own(&Own::Inside {
                    conn: id,
                    transaction,
                });
            }
            if !transaction.is_given_up {
                self.steps(nodes, &transaction.base);
                nodes = &transaction.base;
            }
            self.transaction(id, tx, transaction);
            written.push((id, conn, tx, transaction));
        }
    }

    fn transaction(&mut self, id: u32, tx: TxId, transaction: &Transaction<S>) {
        self.own(&Own::Begin {
            conn: id,
            transaction: tx.get(),
            has_failed: transaction.failed,
            is_given_up: transaction.is_given_up,
            is_overflowed: transaction.log.touched.overflowed,
            deaths: transaction.deaths,
            changes: transaction.opening.changes,
            number: transaction.opening.number,
            since: transaction.opening.since,
        });
        for (kind, payload, answer) in transaction.kept() {
            self.kept(kind, payload, answer);
        }
        for (path, mark) in transaction.log.touched.all() {
            let made = mark.map_or(0, |mark| mark.made);
            self.near(path, |path| Own::Touched {
                path,
                is_removed: mark.map(|mark| mark.removed),
                made: u32::try_from(made).unwrap_or(u32::MAX),
            });
        }
        let effects = &transaction.log.effects;
        for (owner, charge) in effects.charges() {
            if let Some(domid) = self.alive(owner) {
                let (nodes, bytes) = (charge.nodes, charge.bytes);
                self.own(&Own::Charge {
                    domid,
                    nodes,
                    bytes,
                });
            }
        }
        for estate in effects.estates() {
            if let Some(domid) = self.alive(estate.owner) {
                self.near(estate.path.as_ref(), |path| Own::Estate {
                    path,
                    domid,
                    is_gained: estate.gained,
                });
            }
        }
        self.steps(&transaction.base, &transaction.nodes);
        transaction.nodes.visit_notes(&mut |path, is_removed| {
            let path = path.as_str();
            self.own(&Own::Noted { path, is_removed });
        });
        self.own(&Own::End {});
    }

    fn alive(&self, incarnation: Incarnation) -> Option<DomId> {
        let domain = self.server.domains.alive(incarnation)?;
        Some(domain.incarnation.domid)
    }

    fn kept(&mut self, kind: Kind, payload: &[u8], answer: &Result<Answer, Errno>) {
        let (tag, start, text): (u8, usize, &[u8]) = match answer {
            Ok(Answer::Done) => (0, 0, &[]),
            Ok(Answer::Value(value)) => (1, 0, value.as_bytes()),
            Ok(Answer::Names(bytes) | Answer::Bytes(bytes)) => (2, 0, bytes),
            Ok(Answer::Part(names, start)) => (3, *start, names),
            Ok(Answer::Permissions(shown)) => (4, 0, shown.as_bytes()),
            Ok(Answer::Text(text)) => (5, 0, text.as_bytes()),
            Err(errno) => (6, 0, errno.name().as_bytes()),
        };
        let request = Own::Request {
            kind: kind.number(),
            payload: Bytes(payload),
            answer: tag,
            start: u32::try_from(start).unwrap_or(u32::MAX),
            text: Bytes(text),
        };
        let kind = request.kind();
        self.out.long_record(kind, |body| request.write(body));
    }

    fn steps(&mut self, old: &S, new: &S) {
        steps(old, new, |step| match step {
            Step::Cut(path) => {
                self.near(path, |path| Own::Cut { path });
            }
            Step::Set { path, node, is_new } => {
                self.permissions.of(self.server, true, &node.acl);
                let set = Own::Set {
                    path: Near::of(path.as_str(), &self.before),
                    is_new,
                    generation: node.generation.0,
                    permissions: Permissions::written(&self.permissions.entries),
                    departed: Bytes(&self.permissions.departed),
                    value: Bytes(node.value.as_bytes()),
                };
                self.out.record(set.kind(), |body| set.write(body));
                note(&mut self.before, path);
            }
        });
    }

    /// Whose turn it is, who waits for the host, and what the host is to do.
    fn queues(&mut self) {
        let server = self.server;
        for change in server.history.kept() {
            self.own(&Own::GuestChange {
                number: change.number,
                domid: change.domain.domid,
                is_alive: server.domains.alive(change.domain).is_some(),
                path: change.path.as_str(),
                is_listed: change.is_listed,
            });
        }
        let is_in_order = self.crash.is_none();
        for entry in turns(server).into_iter().filter(|_| is_in_order) {
            self.own(&Own::Turn {
                connection: entry.conn.number,
                ends: entry.ends.0,
                begins: entry.begins.0,
                served: entry.served.0,
            });
        }
        let is_open = |conn: &&ConnId| server.connections.get(**conn).is_some();
        for conn in server.ready.iter().filter(is_open) {
            let connection = conn.number;
            self.own(&Own::Ready { connection });
        }
        for (ticket, question) in &server.questions {
            let (requester, domid, connection, header) = match question {
                Question::Connect {
                    requester,
                    header,
                    conn,
                    domid,
                    ..
                } => (requester, *domid, Some(conn.number), header.encode()),
                Question::Identify { requester, domid } => {
                    (requester, *domid, None, [0; HEADER_SIZE])
                }
            };
            self.own(&Own::Question {
                ticket: ticket.0,
                requester: requester.number,
                domid,
                connection,
                header: Bytes(&header),
            });
        }
        for wish in wishes(server) {
            let (ticket, domid, connection, port) = match wish {
                Action::Connect {
                    ticket,
                    conn,
                    domid,
                    port,
                } => (Some(ticket.0), domid, Some(conn.number), port.0),
                Action::Identify { ticket, domid } => (Some(ticket.0), domid, None, 0),
                Action::Disconnect { domid } => (None, domid, None, 0),
            };
            self.own(&Own::Wish {
                ticket,
                domid,
                connection,
                port,
            });
        }
    }

    /// The journal in pieces, if there is one.
    fn journal(&mut self) {
        let Some(log) = self.server.store.journal() else {
            return;
        };
        let [dropped_bytes, dropped_lines, commits] = log.counts();
        for text in log.pieces() {
            self.own(&Own::Journal {
                dropped_bytes,
                dropped_lines,
                commits,
                text: Bytes(&text),
            });
        }
    }

    /// Who waits for this update.
    fn update(&mut self) {
        let lost = self.crash.as_ref().and_then(Crashed::lost);
        if let Some(unanswered) = &self.server.live_update.unanswered
            && lost != Some(unanswered.conn)
        {
            let connection = unanswered.conn.number;
            self.own(&Own::Update {
                connection,
                header: Bytes(&unanswered.header.encode()),
            });
        }
    }

    /// Whose work it was.
    fn crash(&mut self) {
        let Some(Crashed {
            blamed, at_work, ..
        }) = &self.crash
        else {
            return;
        };
        let request = at_work.and_then(|at_work| at_work.header);
        let header = request.map(|header| header.encode());
        let own = Own::Crash {
            connection: blamed.map(|blamed| blamed.conn.number),
            domid: blamed.map(|blamed| blamed.domid).unwrap_or_default(),
            header: Bytes(header.as_ref().map_or(&[], <[u8; HEADER_SIZE]>::as_slice)),
            is_answered: at_work.is_none_or(|at_work| at_work.is_answered),
            is_kept: blamed.is_some_and(|blamed| blamed.is_kept),
        };
        self.own(&own);
    }

    fn end(&mut self) {
        let (records, digest) = (self.out.records, self.out.digest);
        self.own(&Own::Check {
            records,
            nodes: self.nodes,
            digest,
        });
        self.out.record(kind::END, |_| {});
    }
}

/// The connections in the order in which they are written: the privileged domain's first, a target's before that of the domain that has
/// it, else in order of their beginnings.
fn order<S: Storage>(server: &Server<S>) -> Vec<(ConnId, &Connection<S>)> {
    let mut all: BTreeMap<ConnId, &Connection<S>> = server.connections.iter_with_ids().collect();
    let privileged = server.domains.get(server.domains.privileged().domid);
    let first = privileged.and_then(|domain| domain.connection);
    let ids: Vec<ConnId> = first.into_iter().chain(all.keys().copied()).collect();
    let mut order = Vec::new();
    for id in ids {
        // The connection, its domain's target, that one's target, and so on, as far as they are not written yet.
        let mut chain = Vec::new();
        let mut next = Some(id);
        while let Some((id, connection)) = next.and_then(|id| all.remove_entry(&id)) {
            chain.push((id, connection));
            let domain = server.domains.alive(connection.incarnation);
            let domain = domain.filter(|domain| domain.connection == Some(id));
            let target = domain.and_then(|domain| server.domains.alive(domain.target?));
            next = target.and_then(|target| target.connection);
        }
        order.extend(chain.into_iter().rev());
    }
    order
}

/// Who waits for a turn, in order. A request that a layer lets wait is one that nobody has looked at: in the next instance it has its turn.
fn turns<S: Storage>(server: &Server<S>) -> Vec<Turn> {
    let is_parked = |connection: &Connection<S>| connection.held.is_some_and(|hold| hold.is_parked);
    let parked = server.connections.iter_with_ids();
    let parked = parked.filter(|(_, connection)| is_parked(connection));
    let parked = parked.map(|(conn, connection)| {
        let cost = connection.foreseen_cost();
        server.turns.entry(conn, connection.served, cost)
    });
    let mut turns: Vec<Turn> = server.turns.waiting().copied().chain(parked).collect();
    turns.sort_unstable();
    turns
}

/// What the host has not done yet, or has not told of: those it knows of already first.
fn wishes<S: Storage>(server: &Server<S>) -> Vec<Action> {
    let ticket_of = |action: &Action| match action {
        Action::Connect { ticket, .. } | Action::Identify { ticket, .. } => Some(*ticket),
        Action::Disconnect { .. } => None,
    };
    let waiting: BTreeSet<_> = server.actions.iter().filter_map(ticket_of).collect();
    let told = server
        .questions
        .iter()
        .filter(|(ticket, _)| !waiting.contains(*ticket));
    let told = told.map(|(ticket, question)| match question {
        Question::Connect {
            conn, domid, port, ..
        } => Action::Connect {
            ticket: *ticket,
            conn: *conn,
            domid: *domid,
            port: *port,
        },
        Question::Identify { domid, .. } => Action::Identify {
            ticket: *ticket,
            domid: *domid,
        },
    });
    told.chain(server.actions.iter().cloned()).collect()
}

/// What was read of a connection and not answered. For a reader that does not know of questions, an introduction that waits for the host is a
/// request that was not read.
fn input<S: Storage>(server: &Server<S>, is_own: bool, connection: &Connection<S>) -> Vec<u8> {
    let mut input = Vec::new();
    let question = connection
        .waiting
        .and_then(|ticket| server.questions.get(&ticket));
    if let (
        false,
        Some(Question::Connect {
            header,
            domid,
            port,
            ..
        }),
    ) = (is_own, question)
    {
        let payload = alloc::format!("{domid}\0{}\0{}\0", 0, port.0);
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        input.extend_from_slice(&Header { len, ..*header }.encode());
        input.extend_from_slice(payload.as_bytes());
    }
    input.extend_from_slice(&connection.input.arrived());
    input.extend(&connection.backlog);
    input.truncate(INPUT_MAX);
    input
}

/// What a connection has to send.
struct Unsent<'a, S: Storage> {
    connection: &'a Connection<S>,
    /// Behind all messages.
    last: &'a [u8],
    /// Bytes that are left of the first message, if some were sent.
    begun_left: usize,
    /// All that is to be sent.
    len: usize,
}

impl<'a, S: Storage> Unsent<'a, S> {
    fn of(connection: &'a Connection<S>, last: &'a [u8]) -> Self {
        let (messages, sent) = connection.output.waiting();
        let sizes = messages.map(|message| message.payload.len().saturating_add(HEADER_SIZE));
        let (mut all, mut first) = (last.len(), None);
        for size in sizes {
            all = all.saturating_add(size);
            first.get_or_insert(size);
        }
        let first = first.filter(|_| sent > 0).unwrap_or_default();
        Self {
            connection,
            last,
            begun_left: first.saturating_sub(sent),
            len: all.saturating_sub(sent),
        }
    }

    fn write(&self, body: &mut Body<'_, '_>) {
        let (messages, mut sent) = self.connection.output.waiting();
        let pieces = messages.flat_map(pieces).chain([self.last]);
        for piece in pieces {
            let (gone, left) = piece.split_at(sent.min(piece.len()));
            sent = sent.saturating_sub(gone.len());
            body.bytes(left);
        }
    }
}

fn pieces(message: &Message) -> [&[u8]; 3] {
    let [first, second] = message.payload.pieces();
    [&message.header, first, second]
}

/// What was sent of the first message of a connection.
fn begun<S: Storage>(connection: &Connection<S>) -> Vec<u8> {
    let (messages, sent) = connection.output.waiting();
    let mut begun: Vec<u8> = Vec::with_capacity(sent);
    for piece in messages.take(1).flat_map(pieces) {
        let left = sent.saturating_sub(begun.len());
        begun.extend(piece.iter().take(left));
    }
    begun
}

/// The permissions of a node as a record has them; those of the node before are kept, since many nodes share theirs.
#[derive(Default)]
struct PermissionBytes {
    acl: Option<Rc<Acl>>,
    entries: Vec<u8>,
    /// For each entry whether it means a domain that is no more; nothing if none does.
    departed: Vec<u8>,
}

impl PermissionBytes {
    fn of<S: Storage>(&mut self, server: &Server<S>, is_own: bool, acl: &Rc<Acl>) {
        if self
            .acl
            .as_ref()
            .is_some_and(|known| Rc::ptr_eq(known, acl))
        {
            return;
        }
        self.acl = Some(Rc::clone(acl));
        self.entries.clear();
        self.departed.clear();
        let is_alive = |incarnation| server.domains.alive(incarnation).is_some();
        let owner = acl.owner();
        let departed = !is_alive(owner);
        match (departed, is_own) {
            (true, false) => self.push(acl.others(), 0, server.settings.privileged, false),
            _ => self.push(acl.others(), ignored(departed), owner.domid, departed),
        }
        for entry in acl.listed() {
            match entry.holder {
                Holder::Domain(domain) if is_alive(domain) => {
                    self.push(entry.letter, 0, domain.domid, false);
                }
                Holder::Domain(domain) if is_own => {
                    self.push(entry.letter, IGNORE, domain.domid, true);
                }
                Holder::Domain(_) => {}
                Holder::Any => self.push(entry.letter, 0, DomId::ANY, false),
                Holder::Nobody(domid) => self.push(entry.letter, IGNORE, domid, false),
            }
        }
        if !self.departed.contains(&1) {
            self.departed.clear();
        }
    }

    fn push(&mut self, letter: crate::acl::Letter, flags: u8, domid: DomId, departed: bool) {
        let [low, high] = domid.get().to_le_bytes();
        let letter = u8::try_from(letter.as_char()).unwrap_or(b'n');
        self.entries.extend_from_slice(&[letter, flags, low, high]);
        self.departed.push(departed.into());
    }
}

/// Notes the path of a node that was written.
fn note(before: &mut String, path: PathRef<'_>) {
    before.clear();
    before.push_str(path.as_str());
}

fn ignored(departed: bool) -> u8 {
    if departed { IGNORE } else { 0 }
}

fn numbers(numbers: impl Iterator<Item = u64>) -> Vec<u8> {
    numbers.flat_map(u64::to_le_bytes).collect()
}

fn named(all: &[(String, u32)]) -> impl Iterator<Item = (&str, u32)> {
    all.iter().map(|(name, value)| (name.as_str(), *value))
}

/// Values, then their names.
fn pairs(body: &mut Body<'_, '_>, all: &[(&str, u32)]) {
    for (_, value) in all {
        body.u32(*value);
    }
    for (name, _) in all {
        body.bytes(name.as_bytes());
        body.u8(0);
    }
}

/// What a format has no place for.
fn losses<S: Storage>(server: &Server<S>, format: Format) -> Vec<LeftOut> {
    let mut left_out = Vec::new();
    if format == Format::Own {
        return left_out;
    }
    let mut note = |domid, what, count: u64| {
        if count > 0 {
            left_out.push(LeftOut { domid, what, count });
        }
    };
    for (conn, connection) in server.connections.iter_with_ids() {
        let domid = connection.incarnation.domid;
        let open = connection.transactions.len();
        note(
            domid,
            Loss::Transactions,
            u64::try_from(open).unwrap_or(u64::MAX),
        );
        let depths = server.watches.of(conn).into_iter();
        let depths = depths.filter(|(_, watch)| watch.depth.is_some()).count();
        note(
            domid,
            Loss::Depths,
            u64::try_from(depths).unwrap_or(u64::MAX),
        );
        note(domid, Loss::Holds, connection.held.is_some().into());
        note(domid, Loss::Stops, connection.stopped.into());
    }
    for domain in server.domains.iter() {
        let domid = domain.incarnation.domid;
        let features = domain.features != server.settings.features;
        note(
            domid,
            Loss::Features,
            (features && format == Format::V1).into(),
        );
        note(domid, Loss::Shutdowns, domain.told_shutdown.into());
    }
    left_out.sort_by_key(|loss| (loss.domid, loss.what));
    left_out
}
