//! The xenstore: bytes and events in, bytes and actions out.
//!
//! It knows no time, no memory map and no port; whoever runs it brings them. One request's path:
//!
//! ```text
//! Server::handle_bytes   connection.rs   bytes become one request; more than 4096 of them stop the connection
//! Server::run            run.rs          one request of each connection in turn, if its reply can be stored
//!   hold_back            extensions.rs   layers, if there are any: pass, answer, refuse, or later
//!   answer               request.rs      type, privilege, transaction; then the request itself
//!   execute              database.rs     policies, paths, permissions, quotas judge; nothing has changed so far
//!   Editor               effects.rs      the tree changes, the effects are noted
//!   commit               store.rs        the one commit point: accounts, then watchers
//!   tell                 events.rs       changes × watch index × permissions → events in queues
//!   reply                run.rs          behind the request's own events
//! Server::poll_output    output.rs       bytes for the client
//! ```
//!
//! A transaction (transaction.rs) runs `execute` on a tree of its own; what it did is committed as a whole at its end.
//! What a request needs from the machine (INTRODUCE, who has a domid) is an [`Action`]; the request waits for its [`Outcome`].
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

/// The code of docs/extending.md, which is compiled and run as part of the tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/extending.md")]
struct Extending;

mod acl;
mod answer;
#[cfg(feature = "journal")]
mod audit;
mod bugs;
mod conflict;
mod connection;
mod control;
mod counter_nodes;
mod counters;
#[cfg(test)]
mod coverage;
mod crash;
mod database;
#[cfg(test)]
mod described;
mod domain;
mod effects;
mod events;
mod extension;
mod extensions;
#[cfg(feature = "journal")]
pub mod faults;
#[cfg(not(feature = "journal"))]
mod faults;
mod features;
mod ids;
mod journal;
pub mod layer;
mod lifecycle;
mod live_update;
mod memory;
mod output;
mod path;
pub mod policy;
mod privilege;
mod quota;
mod refusal;
mod request;
mod run;
mod server;
mod spell;
pub mod state;
mod storage;
mod store;
mod stream_size;
mod time;
mod touched;
mod trace;
mod transaction;
mod turns;
mod upkeep;
mod watch;
pub mod wire;

pub use connection::ProtocolFault;
pub use counters::Counter;
pub use crash::{Blamed, Crash};
pub use features::{Features, Nesting};
pub use ids::{ConnId, DomId, EvtchnPort, GrantRef, Identity, ReqId, Ticket, UniqueId};
pub use journal::{Entry, Noted};
pub use lifecycle::Completed;
pub use live_update::{Reads, Refused, UpdatePlan, Updater};
pub use path::Path;
pub use quota::{Quota, Quotas};
pub use run::Budget;
pub use server::{Action, DomainEvent, Outcome, Progress, Server, Settings};
pub use spell::{Spell, Untold};
pub use storage::{AnyStorage, ChangeLog, FlatMap, Journaled, Kind as StorageKind, Storage, Tree};
pub use time::Instant;
pub use wire::Errno;
