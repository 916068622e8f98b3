//! How long the state stream can be at most, kept up to date as things change: what is to be handed over must have room, however little
//! memory there is.
//!
//! It follows the accounts: nothing is longer in the stream than what its owner pays for it. Not in it are the nodes that open transactions
//! alone keep alive, which nobody pays for; if there is no room for those, [`Server::export_after_crash`] leaves them out.

use crate::connection::Connection;
use crate::counters;
use crate::effects::{ENTRY_BYTES, NODE_BYTES};
use crate::server::Server;
use crate::state::nodes_most;
use crate::storage::{ChangeLog, Storage};

/// Bytes that each permission has in the stream, at most.
const ENTRY_MOST: u64 = 5;
/// The same of a connection that has nothing: its own records, its turn, and what it waits for.
const CONNECTION_MOST: u64 = 512;
/// The same of a domain besides its counters.
const DOMAIN_MOST: u64 = 1024;
/// The same of a transaction besides what its connection pays for.
const TRANSACTION_MOST: u64 = 256;
/// The same of a change that may be to blame for a conflict, besides its path.
const CHANGE_MOST: u64 = 64;
/// The same of an action that the host has not fetched.
const ACTION_MOST: u64 = 64;
/// What there is but once.
const REST_MOST: u64 = 4096;

impl<S: Storage> Server<S> {
    /// Bytes that [`Server::export`] writes in [`Format::Own`](crate::state::Format::Own), at most, without what the host adds and without the
    /// nodes that only open transactions have. It costs a few steps for each connection that was at work since it was asked last.
    pub fn stream_estimate(&mut self) -> u64 {
        let sums = self.store.sums;
        // Every node has one permission at least, its owner's.
        let account = NODE_BYTES.saturating_add(ENTRY_BYTES.saturating_sub(ENTRY_MOST));
        let texts = sums
            .bytes
            .saturating_sub(sums.nodes.saturating_mul(account));
        let nodes = nodes_most(sums.nodes, texts, self.store.generation.0);
        let of_domain = DOMAIN_MOST.saturating_add(counters::STREAM_MOST);
        let domains = wide(self.domains.len()).saturating_add(1);
        let mut all = REST_MOST.saturating_add(nodes);
        all = all.saturating_add(domains.saturating_mul(of_domain));
        all = all.saturating_add(self.connections.weigh(weight));
        all = all.saturating_add(wide(self.actions.len()).saturating_mul(ACTION_MOST));
        let journal = self.store.journal().map_or(0, ChangeLog::len);
        all = all.saturating_add(journal);
        let changes = self.history.kept().map(|change| {
            let path = wide(change.path.as_ref().as_str().len());
            path.saturating_add(CHANGE_MOST)
        });
        changes.fold(all, u64::saturating_add)
    }
}

/// Bytes that a connection has in the stream, at most.
fn weight<S: Storage>(connection: &Connection<S>) -> u64 {
    let lists = [
        connection.absent.len(),
        connection.lost.len(),
        connection.outstanding.len(),
    ];
    let lists = lists.into_iter().fold(0, usize::saturating_add);
    let open = wide(connection.transactions.len());
    let parts = [
        CONNECTION_MOST,
        wide(connection.input.len()),
        wide(connection.backlog.len()),
        connection.output.all_bytes(),
        wide(connection.output.sent()),
        wide(lists).saturating_mul(8),
        connection.watch_bytes,
        // What a request writes may be in the transaction's nodes once more.
        connection.transactions.bytes().saturating_mul(2),
        open.saturating_mul(TRANSACTION_MOST),
    ];
    parts.into_iter().fold(0, u64::saturating_add)
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
