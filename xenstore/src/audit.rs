//! Every account counted again from what it pays for (hostility.md R9): for simulations, which ask after each step.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::connection::Connection;
use crate::ids::ConnId;
use crate::path::PathRef;
use crate::server::Server;
use crate::storage::Storage;
use crate::store::{INTRODUCE_DOMAIN, RELEASE_DOMAIN};

impl<S: Storage> Server<S> {
    /// Whether all accounts are what a recount finds.
    ///
    /// # Errors
    /// The first one that is not.
    pub fn audit(&self) -> Result<(), String> {
        if let Some(wrong) = self.miscounted().first() {
            return Err(format!(
                "the nodes of domain {} are miscounted",
                wrong.domid
            ));
        }
        let mut caused: BTreeMap<(ConnId, u64), (u32, u64)> = BTreeMap::new();
        let mut open = 0_usize;
        for (conn, connection) in self.connections.iter_with_ids() {
            connection.output.recount(&mut caused)?;
            open = open.saturating_add(connection.transactions.len());
            self.audit_watches(conn, connection)?;
            connection.transactions.recount()?;
        }
        for (conn, connection) in self.connections.iter_with_ids() {
            self.audit_debts(conn, connection, &caused)?;
        }
        let counted = self.history.open_transactions();
        if counted != open {
            return Err(format!(
                "{open} transactions are open, {counted} are counted"
            ));
        }
        for (due, conn) in &self.deadlines {
            let connection = self.connections.get(*conn);
            if connection.and_then(|connection| connection.deadline) != Some(*due) {
                return Err("a deadline is nobody's".to_string());
            }
        }
        Ok(())
    }

    /// The transactions that a connection has open.
    pub fn open_transactions(&self, conn: ConnId) -> Vec<u32> {
        let connection = self.connections.get(conn);
        let open = connection.map(|connection| connection.transactions.open.keys());
        open.into_iter().flatten().map(|id| id.get()).collect()
    }

    /// All nodes, special names included, by path: value, and permissions with a NUL behind each.
    pub fn all_nodes(&self) -> BTreeMap<String, (Vec<u8>, String)> {
        let is_alive = |incarnation| self.domains.alive(incarnation).is_some();
        let mut all = BTreeMap::new();
        let nodes = &self.store.nodes;
        nodes.walk(PathRef::known("/"), |path, node| {
            let permissions = node.acl.encode(is_alive);
            let value = node.value.as_bytes().to_vec();
            all.insert(path.as_str().to_string(), (value, permissions));
        });
        for name in [INTRODUCE_DOMAIN, RELEASE_DOMAIN] {
            if let Some(node) = nodes.get(PathRef::known(name)) {
                let permissions = node.acl.encode(is_alive);
                all.insert(name.to_string(), (Vec::new(), permissions));
            }
        }
        all
    }

    /// What the journal of the nodes has from a position on, and where that begins, if they keep one.
    pub fn journal_from(&self, position: u64) -> Option<(u64, String)> {
        self.store.journal()?.read(position, usize::MAX)
    }

    fn audit_watches(&self, conn: ConnId, connection: &Connection<S>) -> Result<(), String> {
        let (count, bytes) = self.watches.of_connection(conn);
        if (connection.watches, connection.watch_bytes) != (count, bytes) {
            let domid = connection.incarnation.domid;
            return Err(format!(
                "domain {domid} has {count} watches of {bytes} bytes, and {} of {} are counted",
                connection.watches, connection.watch_bytes
            ));
        }
        Ok(())
    }

    /// A connection owes for just the messages that its requests have on their way.
    fn audit_debts(
        &self,
        conn: ConnId,
        connection: &Connection<S>,
        caused: &BTreeMap<(ConnId, u64), (u32, u64)>,
    ) -> Result<(), String> {
        let domid = connection.incarnation.domid;
        let mut bytes = 0_u64;
        for (request, messages) in &connection.outstanding {
            let (there, size) = caused.get(&(conn, *request)).copied().unwrap_or_default();
            bytes = bytes.saturating_add(size);
            if there != *messages || there == 0 {
                return Err(format!(
                    "request {request} of domain {domid} has {there} messages on their way, {messages} are counted"
                ));
            }
        }
        if bytes != connection.caused_bytes {
            return Err(format!(
                "messages of domain {domid} have {bytes} bytes, {} are counted",
                connection.caused_bytes
            ));
        }
        Ok(())
    }
}
