//! What keeps connections and accounts in order, whichever method of the server is at work.

use alloc::rc::Rc;

use crate::acl::Incarnation;
use crate::conflict::Hold;
use crate::connection::Connection;
use crate::domain::Domain;
use crate::ids::ConnId;
use crate::memory::{self, Lack};
use crate::output::Debt;
use crate::quota::{Quota, within};
use crate::refusal::Reason;
use crate::server::Server;
use crate::storage::Storage;
use crate::time::Instant;
use crate::watch::WatchId;
use crate::wire::Errno;

impl<S: Storage> Server<S> {
    /// Opens the connection of a domain that is known.
    pub(crate) fn open(&mut self, conn: ConnId, incarnation: Incarnation) {
        let domid = incarnation.domid;
        let privileged = self.domains.is_privileged(domid);
        let connection = Connection::new(
            incarnation,
            privileged,
            domid,
            self.domains.counters(incarnation),
        );
        self.connections.open(conn, connection);
        if let Some(domain) = self.domains.alive_mut(incarnation) {
            domain.connection = Some(conn);
        }
        self.account(conn);
        self.announce(conn);
    }

    /// The domain of a connection.
    pub(crate) fn client(&self, conn: ConnId) -> Option<&Domain> {
        self.domains.alive(self.connections.get(conn)?.incarnation)
    }

    /// A limit of a connection's domain.
    pub(crate) fn limit(&self, conn: ConnId, quota: Quota) -> u32 {
        self.connections
            .get(conn)
            .map_or(0, |connection| self.limit_of(connection, quota))
    }

    pub(crate) fn limit_of(&self, connection: &Connection<S>, quota: Quota) -> u32 {
        if connection.privileged {
            return 0;
        }
        let domain = self.domains.alive(connection.incarnation);
        domain.map_or(0, |domain| {
            self.settings.quotas.of(&domain.overrides, quota)
        })
    }

    /// Whether the domain of a connection may have `count` of what a quota limits; if not, that is counted as a refusal.
    pub(crate) fn admits(&self, conn: ConnId, quota: Quota, count: u64) -> bool {
        let Some(connection) = self.connections.get(conn) else {
            return false;
        };
        let limit = self.limit_of(connection, quota);
        let is_within = within(count, limit);
        if !is_within {
            let counters = &connection.counters;
            counters.refuse(Reason::Quota(quota), limit, self.now);
        }
        is_within
    }

    /// Whether the domain of a connection may have `added` bytes more; if not, that is counted as a refusal.
    pub(crate) fn check_memory(&self, conn: ConnId, added: u64) -> Result<(), Errno> {
        let connection = self.connections.get(conn).ok_or(Errno::EIO)?;
        self.lack(connection, added).map_or(Ok(()), |lack| {
            lack.count(&connection.counters, self.now);
            Err(lack.errno())
        })
    }

    /// What keeps the domain of a connection from having `added` bytes more, if anything does.
    pub(crate) fn lack(&self, connection: &Connection<S>, added: u64) -> Option<Lack> {
        if connection.privileged {
            return None;
        }
        let domain = self.domains.alive(connection.incarnation)?;
        let used = domain
            .usage
            .node_bytes
            .saturating_add(connection.footprint());
        let after = used.saturating_add(added);
        memory::check(self.supply, &self.settings.quotas, domain, after).err()
    }

    /// Drops all that a connection has open; it can go on from nothing.
    pub(crate) fn clear(&mut self, conn: ConnId) {
        self.watches.remove_all(conn);
        self.end_update_of(conn);
        let parked = |hold: &Hold| hold.is_parked;
        let connection = self.connections.get(conn);
        if connection.is_some_and(|connection| connection.held.as_ref().is_some_and(parked)) {
            self.end_hold(conn);
        }
        let Some(connection) = self.connections.get_mut(conn) else {
            return;
        };
        let (incarnation, privileged) = (connection.incarnation, connection.privileged);
        let home = connection.home;
        let debts = connection.output.clear();
        let counters = Rc::clone(&connection.counters);
        let requests = connection.requests;
        let held = connection.held;
        let (queued, ready, deadline) = (connection.queued, connection.ready, connection.deadline);
        let (served, crashes) = (connection.served, connection.crashes);
        *connection = Connection {
            requests,
            served,
            crashes,
            queued,
            ready,
            deadline,
            held,
            ..Connection::new(incarnation, privileged, home, counters)
        };
        debts.into_iter().for_each(|debt| self.settle(debt));
        self.account(conn);
        self.announce(conn);
    }

    /// What it costs to drop a connection, in the units of a request's cost: 1 for 4 watches or events.
    pub(crate) fn closing_cost(&self, conn: ConnId) -> u64 {
        self.connections.get(conn).map_or(0, |connection| {
            let events = u64::try_from(connection.output.events()).unwrap_or(u64::MAX);
            connection.watches.saturating_add(events) / 4
        })
    }

    /// Drops a connection for good.
    pub(crate) fn close(&mut self, conn: ConnId) {
        self.clear(conn);
        self.end_hold(conn);
        if let Some(connection) = self.connections.remove(conn)
            && let Some(due) = connection.deadline
        {
            self.deadlines.remove(&(due, conn));
        }
    }

    /// Drops waiting events of a connection, with what they owe; gives how many they were.
    pub(crate) fn drop_events(
        &mut self,
        conn: ConnId,
        doomed: impl Fn(WatchId, Instant) -> bool,
    ) -> u64 {
        let Some(connection) = self.connections.get_mut(conn) else {
            return 0;
        };
        let before = connection.output.events();
        let debts = connection.output.drop_events(doomed);
        let dropped = before.saturating_sub(connection.output.events());
        debts.into_iter().for_each(|debt| self.settle(debt));
        self.account(conn);
        u64::try_from(dropped).unwrap_or(u64::MAX)
    }

    /// Notes that the running request has one more message on its way, and what that costs. Its account follows when it is answered.
    #[inline]
    pub(crate) fn charge_cause(&mut self, bytes: u64) {
        if let Some(cause) = self.cause
            && let Some(connection) = self.connections.get_mut(cause.connection)
        {
            connection.owe(cause.request, bytes);
        }
    }

    /// Notes that a message is gone; with the last one of a request it is no longer outstanding.
    pub(crate) fn settle(&mut self, debt: Debt) {
        let conn = debt.cause.connection;
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.repay(debt);
            self.account(conn);
            self.queue(conn);
        }
    }

    /// Notes how much the domain of an unprivileged connection has, after that changed.
    pub(crate) fn account(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get(conn)
            && !connection.privileged
            && let Some(domain) = self.domains.alive_mut(connection.incarnation)
        {
            let memory = connection
                .footprint()
                .saturating_add(domain.usage.node_bytes);
            let count = |items: usize| u64::try_from(items).unwrap_or(u64::MAX);
            self.peaks.note(Quota::Memory, memory);
            self.peaks.note(Quota::Watches, connection.watches);
            self.peaks
                .note(Quota::Transactions, count(connection.transactions.len()));
            self.peaks
                .note(Quota::Outstanding, count(connection.outstanding.len()));
            let soft = self
                .settings
                .quotas
                .of(&domain.overrides, Quota::SoftMemory);
            domain.warn_of_memory(memory, soft);
        }
    }

    /// Lets the host look at a connection, once.
    pub(crate) fn announce(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn)
            && !connection.ready
        {
            connection.ready = true;
            self.ready.push_back(conn);
        }
    }

    /// Notes when the oldest event of an unprivileged connection will have been left unread too long.
    pub(crate) fn set_deadline(&mut self, conn: ConnId) {
        let limit = self.settings.event_timeout;
        if let Some(connection) = self.connections.get_mut(conn)
            && !connection.privileged
            && connection.deadline.is_none()
            && !limit.is_zero()
            && let Some(oldest) = connection.output.oldest_event()
        {
            let due = oldest.after(limit);
            connection.deadline = Some(due);
            self.deadlines.insert((due, conn));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{DomId, Identity, UniqueId};
    use crate::server::Settings;
    use crate::wire::{Header, Kind};

    fn watch(server: &mut Server, conn: ConnId, payload: &[u8]) {
        let header = Header {
            kind: Kind::Watch.number(),
            len: u32::try_from(payload.len()).unwrap(),
            ..Header::default()
        };
        let bytes = [&header.encode()[..], payload].concat();
        server.handle_bytes(conn, &bytes).unwrap();
        server.run(Instant(0), 100);
    }

    #[test]
    fn a_domain_above_its_soft_quota_is_told_of_until_it_is_below_again() {
        let dom0 = DomId::new(0);
        let domid = DomId::new(1);
        let mut server = Server::new(Settings::new(dom0, dom0));
        let conn = server.open_domain(Identity {
            domid,
            unique: UniqueId(1),
        });
        let told = |server: &mut Server, soft: u32| {
            server.settings.quotas.set(Quota::SoftMemory, soft);
            watch(server, conn, b"@releaseDomain\0t\0");
            server.domains.get(domid).unwrap().told_memory
        };
        assert!(!told(&mut server, 1_000_000));
        assert!(told(&mut server, 1));
        assert!(!told(&mut server, 0));
    }

    /// T-WATCH-29.
    #[test]
    fn an_event_that_is_half_sent_is_too_old_for_ever_and_nobody_waits_for_it() {
        let dom0 = DomId::new(0);
        let mut server = Server::new(Settings::new(dom0, dom0));
        let conn = server.open_domain(Identity {
            domid: DomId::new(1),
            unique: UniqueId(1),
        });
        watch(&mut server, conn, b"/a\0t\0");
        let reply: usize = server
            .poll_message(conn)
            .iter()
            .map(|piece| piece.len())
            .sum();
        server.consume_output(conn, reply);
        server.consume_output(conn, 1);
        let late = Instant(0).after(server.settings.event_timeout * 2);
        server.handle_timeout(late);
        assert_eq!(server.poll_timeout(), None);
        assert_eq!(server.connections.get(conn).unwrap().output.events(), 1);
    }
}
