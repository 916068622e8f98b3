//! Connections and what hangs on them: what was read and not answered, watches, and transactions of which nothing more is known.

use super::super::own::Numbers;
use super::super::record::{self, Carrier};
use super::super::{Damage, HostLink, RestoredLink};
use crate::conflict::Hold;
use crate::connection::Connection;
use crate::ids::{ConnId, DomId, Ticket, TxId};
use crate::path::{Path, is_relative};
use crate::storage::Storage;
use crate::time::Instant;
use crate::turns::Served;
use crate::watch::{Token, Watch};

use super::messages::Unsent;
use super::{Import, TRANSACTIONS_FROM};

/// What the stream says of a connection besides the documented record.
pub(super) struct Client<'s> {
    pub(super) conn: u32,
    pub(super) is_stopped: bool,
    pub(super) requests: u64,
    pub(super) late: u64,
    pub(super) served: u64,
    pub(super) deadline: Option<Instant>,
    pub(super) held: Option<Hold>,
    pub(super) waiting: Option<u64>,
    pub(super) last_transaction: u32,
    pub(super) absent: Numbers<'s>,
    pub(super) lost: Numbers<'s>,
    pub(super) outstanding: Numbers<'s>,
    pub(super) begun: &'s [u8],
    pub(super) crashes: u8,
}

impl<'s, S: Storage> Import<'s, S> {
    pub(super) fn connection(&mut self, read: &record::Connection<'s>) -> Result<(), Damage> {
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
    pub(super) fn unread(
        &mut self,
        connection: &mut Connection<S>,
        input: &[u8],
    ) -> Result<(), Damage> {
        let mut rest = input;
        while !rest.is_empty() && !connection.input.is_whole() {
            let taken = connection.input.take(rest, &mut self.server.spare);
            let taken = taken.map_err(|_| Damage::Message)?;
            rest = rest.get(taken..).unwrap_or_default();
        }
        connection.backlog.extend(rest);
        Ok(())
    }

    pub(super) fn client(
        &mut self,
        conn: ConnId,
        connection: &mut Connection<S>,
        client: &Client<'s>,
    ) {
        connection.stopped = client.is_stopped;
        connection.crashes = client.crashes;
        connection.requests = client.requests;
        connection.late = client.late;
        connection.served = Served(client.served);
        connection.deadline = client.deadline.map(|due| self.clock.moved(due));
        connection.held = client.held.map(|hold| Hold {
            since: self.clock.moved(hold.since),
            until: self.clock.moved(hold.until),
            ..hold
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

    pub(super) fn watch(&mut self, read: &record::Watch<'s>) -> Result<(), Damage> {
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
    pub(super) fn opaque(&mut self, read: &record::Transaction) -> Result<(), Damage> {
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
    pub(super) fn pending(&mut self, read: &record::Node<'s>) -> Result<(), Damage> {
        let conn = self.conn(read.conn)?;
        let id = TxId::new(read.transaction).ok_or(Damage::Field)?;
        if self.opaque.contains(&(conn, id)) {
            Ok(())
        } else {
            Err(Damage::Reference)
        }
    }
}
