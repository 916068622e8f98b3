//! How much memory is left, and what guests may still take of it: the store must never be the one that runs out (hostility.md 5.4).

use alloc::vec::Vec;
use core::fmt;
use core::mem;
use core::time::Duration;

use crate::counters::Counters;
use crate::domain::Domain;
use crate::ids::ConnId;
use crate::quota::{Quota, Quotas, within};
use crate::refusal::Reason;
use crate::run::REPLIES_MAX;
use crate::server::Server;
use crate::spell::Spell;
use crate::storage::Storage;
use crate::time::Instant;
use crate::wire::Errno;

/// Free memory below a mark is scarce, short, or the reserve. However little there is in all, the marks are so far apart that one request
/// cannot lead from above one of them to below the next (docs/memory.md): a path of a thousand nodes is copied, or its nodes are noted in a
/// transaction.
const SCARCE_BELOW: Mark = Mark {
    percent: 25,
    bytes: 1568 << 10,
};
const SHORT_BELOW: Mark = Mark {
    percent: 10,
    bytes: 1168 << 10,
};
const RESERVE_BELOW: Mark = Mark {
    percent: 5,
    bytes: 768 << 10,
};
/// How long a transaction of a guest may be open while memory is scarce: it keeps alive what others change.
const TRANSACTION_LIMIT: Duration = Duration::from_secs(1);
/// How often that is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Replies that may wait for a guest while memory is short.
const REPLIES_WHEN_SHORT: usize = 1;
/// Bytes that a domain may have even when memory is scarce.
const GUARANTEE: u32 = 64 * 1024;

/// A part of all memory, or so many bytes if that is more.
struct Mark {
    percent: u64,
    bytes: u64,
}

impl Mark {
    fn is_above(&self, free: u64, total: u64) -> bool {
        free < self.bytes || free.saturating_mul(100) < total.saturating_mul(self.percent)
    }
}

/// What the host has for the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Supply {
    #[default]
    Plenty,
    /// No unprivileged domain grows beyond what is guaranteed.
    Scarce,
    /// No unprivileged domain grows.
    Short,
    /// What is left is for the toolstack and for the ends of domains: nobody else's requests are run.
    Reserve,
}

impl fmt::Display for Supply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plenty => "enough for all",
            Self::Scarce => "scarce, guests may have what is guaranteed",
            Self::Short => "short, guests may take no more",
            Self::Reserve => "only the reserve is left, guests' requests wait",
        })
    }
}

impl Supply {
    /// What it means that `free` bytes of `total` are free.
    pub(crate) fn of(free: u64, total: u64) -> Self {
        let below = |mark: Mark| mark.is_above(free, total);
        if below(RESERVE_BELOW) {
            Self::Reserve
        } else if below(SHORT_BELOW) {
            Self::Short
        } else if below(SCARCE_BELOW) {
            Self::Scarce
        } else {
            Self::Plenty
        }
    }

    /// What it means that the state needs so many bytes of those that a stream may have. What is there can be read, whatever it needs.
    fn of_stream(needed: u64, room: u64) -> Self {
        let left = room.saturating_sub(needed);
        let of_room = |percent: u64| u128::from(room) * u128::from(percent);
        let below = |percent| needed > room || u128::from(left) * 100 < of_room(percent);
        if below(SHORT_BELOW.percent) {
            Self::Short
        } else if below(SCARCE_BELOW.percent) {
            Self::Scarce
        } else {
            Self::Plenty
        }
    }

    /// Whether an unprivileged domain may grow so that it has `after` bytes.
    pub(crate) fn admits(self, after: u64) -> bool {
        match self {
            Self::Plenty => true,
            Self::Scarce => after <= u64::from(GUARANTEE),
            Self::Short | Self::Reserve => false,
        }
    }

    /// How many replies may wait for a guest before no more of its requests are run; none is run at 0.
    pub(crate) fn replies_max(self) -> usize {
        match self {
            Self::Plenty | Self::Scarce => REPLIES_MAX,
            Self::Short => REPLIES_WHEN_SHORT,
            Self::Reserve => 0,
        }
    }

    /// How long a guest's transaction may be open, if that is limited.
    fn transaction_limit(self) -> Option<Duration> {
        match self {
            Self::Plenty => None,
            Self::Scarce | Self::Short => Some(TRANSACTION_LIMIT),
            Self::Reserve => Some(Duration::ZERO),
        }
    }

    /// Bytes that an unprivileged domain may grow to.
    fn limit(self) -> u32 {
        match self {
            Self::Plenty => u32::MAX,
            Self::Scarce => GUARANTEE,
            Self::Short | Self::Reserve => 0,
        }
    }
}

/// What the host said of its memory, and what was taken of it since.
#[derive(Debug, Default)]
pub(crate) struct Left {
    free: u64,
    total: u64,
    /// What that came to.
    said: Supply,
    /// When to look again for transactions that are open too long.
    pub(crate) next_look: Instant,
    /// Changes, for the log, by what it came to.
    told: [Spell; 4],
}

impl<S: Storage> Server<S> {
    /// The host has `free` bytes of `total` left, and `stream_room` for a state stream besides what it writes into that itself. When either
    /// becomes little, unprivileged domains may take no more (hostility.md 5.4).
    pub fn handle_memory(&mut self, now: Instant, free: u64, total: u64, stream_room: u64) {
        self.now = self.now.max(now);
        (self.left.free, self.left.total) = (free, total);
        let estimate = self.stream_estimate();
        let of_stream = Supply::of_stream(estimate, stream_room);
        let supply = Supply::of(free, total).max(of_stream);
        let before = mem::replace(&mut self.supply, supply);
        if mem::replace(&mut self.left.said, supply) != supply
            && let Some(spell) = self.left.told.get_mut(supply as usize)
            && let Some(untold) = spell.count(now)
        {
            log::warn!(
                "memory: {supply}, {free} of {total} bytes free; the state needs {estimate} of {stream_room}{untold}"
            );
        }
        if before >= Supply::Short && supply < before {
            self.queue_all();
        }
        if supply > before || self.now >= self.left.next_look {
            self.left.next_look = self.now.after(LOOK_INTERVAL);
            self.give_up_transactions();
        }
    }

    /// Whether nothing is left but the reserve, so that no guest's bytes should be taken.
    #[must_use]
    pub fn is_at_reserve(&self) -> bool {
        self.supply == Supply::Reserve
    }

    /// Notes bytes that were taken since the host said what is left: one request may take many.
    pub(crate) fn take_memory(&mut self, bytes: u64) {
        if self.left.total > 0 {
            self.left.free = self.left.free.saturating_sub(bytes);
            let supply = Supply::of(self.left.free, self.left.total);
            self.supply = self.supply.max(supply);
        }
    }

    /// Gives up the transactions of guests that keep alive what others change, for longer than is good while memory is scarce.
    fn give_up_transactions(&mut self) {
        let Some(limit) = self.supply.transaction_limit() else {
            return;
        };
        let (now, none) = (self.now, S::new(self.domains.privileged()));
        for connection in self.connections.iter_mut() {
            if connection.privileged {
                continue;
            }
            let limit_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
            for _ in 0..connection.transactions.give_up(&none, now, limit) {
                let counters = &connection.counters;
                counters.refuse(Reason::OpenTransaction, limit_ms, now);
            }
        }
        self.connections.note_all();
    }

    /// Lets everybody's requests run that may again.
    fn queue_all(&mut self) {
        let waiting: Vec<ConnId> = self.connections.ids().collect();
        for conn in waiting {
            self.queue(conn);
        }
    }
}

/// What there is too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// The store's own memory; a domain may have so many bytes.
    Store(u32),
    /// The domain's quota, which is this.
    Quota(u32),
}

impl Lack {
    /// What the client hears.
    pub(crate) fn errno(self) -> Errno {
        match self {
            Self::Store(_) => Errno::ENOSPC,
            Self::Quota(_) => Errno::ENOMEM,
        }
    }

    /// Counts and logs that a client was refused for this.
    pub(crate) fn count(self, counters: &Counters, now: Instant) {
        let (reason, limit) = match self {
            Self::Store(limit) => (Reason::StoreMemory, limit),
            Self::Quota(limit) => (Reason::Quota(Quota::Memory), limit),
        };
        counters.refuse(reason, limit, now);
    }
}

/// Whether an unprivileged `domain` may have `after` bytes.
///
/// # Errors
/// What it would be too much for.
pub(crate) fn check(
    supply: Supply,
    quotas: &Quotas,
    domain: &Domain,
    after: u64,
) -> Result<(), Lack> {
    if !supply.admits(after) {
        return Err(Lack::Store(supply.limit()));
    }
    let limit = quotas.of(&domain.overrides, Quota::Memory);
    if within(after, limit) {
        Ok(())
    } else {
        Err(Lack::Quota(limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{DomId, Identity, UniqueId};
    use crate::server::Settings;
    use crate::wire::{Header, Kind};

    #[test]
    fn the_marks_are_where_they_are_said_to_be() {
        for (free, supply) in [
            (25, Supply::Plenty),
            (24, Supply::Scarce),
            (10, Supply::Scarce),
            (9, Supply::Short),
            (5, Supply::Short),
            (4, Supply::Reserve),
            (0, Supply::Reserve),
        ] {
            assert_eq!(Supply::of(free << 20, 100 << 20), supply);
        }
        assert_eq!(Supply::of(u64::MAX, u64::MAX), Supply::Plenty);
    }

    #[test]
    fn where_there_is_little_in_all_the_marks_are_bytes() {
        for (free, supply) in [
            (1568, Supply::Plenty),
            (1567, Supply::Scarce),
            (1167, Supply::Short),
            (767, Supply::Reserve),
        ] {
            assert_eq!(Supply::of(free << 10, 4 << 20), supply);
        }
    }

    #[test]
    fn what_is_guaranteed_is_admitted_while_memory_is_scarce() {
        assert!(Supply::Scarce.admits(u64::from(GUARANTEE)));
        assert!(!Supply::Scarce.admits(u64::from(GUARANTEE) + 1));
        assert!(!Supply::Short.admits(0));
        assert!(Supply::Plenty.admits(u64::MAX));
    }

    const ALL: u64 = 100 << 20;
    const PLENTY: u64 = 50 << 20;
    const SCARCE: u64 = 20 << 20;
    const SHORT: u64 = 8 << 20;
    const RESERVE: u64 = 1 << 20;

    /// A server with the toolstack's connection and a guest's.
    struct Scene {
        server: Server,
        toolstack: ConnId,
        guest: ConnId,
        now: Instant,
    }

    impl Scene {
        fn new() -> Self {
            let dom0 = DomId::new(0);
            let mut server = Server::new(Settings::new(dom0, dom0));
            let mut open = |number: u16| {
                server.open_domain(Identity {
                    domid: DomId::new(number),
                    unique: UniqueId(number.into()),
                })
            };
            let (toolstack, guest) = (open(0), open(1));
            Self {
                server,
                toolstack,
                guest,
                now: Instant(0),
            }
        }

        fn pass(&mut self, ms: u64, free: u64) {
            self.now = self.now.after(Duration::from_millis(ms));
            self.server.handle_memory(self.now, free, ALL, u64::MAX);
            self.server.run(self.now, 1000);
        }

        fn send(&mut self, conn: ConnId, kind: Kind, tx_id: u32, payload: &[u8]) {
            let header = Header {
                kind: kind.number(),
                tx_id,
                len: u32::try_from(payload.len()).unwrap(),
                ..Header::default()
            };
            let bytes = [&header.encode()[..], payload].concat();
            assert_eq!(self.server.handle_bytes(conn, &bytes), Ok(bytes.len()));
            self.server.run(self.now, 1000);
        }

        /// The payload of the next reply, if there is one.
        fn receive(&mut self, conn: ConnId) -> Option<String> {
            let [header, payload, _] = self.server.poll_message(conn);
            let (sent, text) = (
                header.len() + payload.len(),
                String::from_utf8_lossy(payload).into_owned(),
            );
            (sent > 0).then(|| {
                self.server.consume_output(conn, sent);
                self.server.run(self.now, 1000);
                text
            })
        }

        fn ask(&mut self, conn: ConnId, kind: Kind, tx_id: u32, payload: &[u8]) -> String {
            self.send(conn, kind, tx_id, payload);
            self.receive(conn).unwrap()
        }
    }

    #[test]
    fn a_guests_transaction_is_given_up_after_a_second_while_memory_is_scarce_and_at_once_at_the_reserve()
     {
        let mut scene = Scene::new();
        let (guest, toolstack) = (scene.guest, scene.toolstack);
        for (free, ms) in [(SCARCE, 999), (RESERVE, 0)] {
            scene.pass(0, PLENTY);
            for conn in [toolstack, guest] {
                scene.ask(conn, Kind::TransactionStart, 0, b"\0");
            }
            scene.pass(ms, free);
            let is_late = free == RESERVE;
            if !is_late {
                let answer = scene.ask(guest, Kind::Read, 1, b"/tool\0");
                assert_eq!(answer, "EACCES\0");
                scene.pass(LOOK_INTERVAL.as_millis().try_into().unwrap(), free);
            }
            scene.pass(0, PLENTY);
            let number = if is_late { 2 } else { 1 };
            assert_eq!(scene.ask(guest, Kind::Read, number, b"/tool\0"), "EAGAIN\0");
            let end = Kind::TransactionEnd;
            assert_eq!(scene.ask(guest, end, number, b"T\0"), "EAGAIN\0");
            assert_eq!(scene.ask(toolstack, Kind::Read, number, b"/tool\0"), "");
            assert_eq!(scene.ask(toolstack, end, number, b"T\0"), "OK\0");
        }
        let counted = scene.ask(toolstack, Kind::Control, 0, b"counters\x001\0");
        assert!(counted.contains("ended-open-transaction: 2\n"), "{counted}");
    }

    /// However little room there is for the stream, guests may read, and what they have can be taken away.
    #[test]
    fn while_the_state_fills_the_room_for_its_stream_guests_may_not_grow() {
        let mut scene = Scene::new();
        let (guest, toolstack) = (scene.guest, scene.toolstack);
        scene.ask(toolstack, Kind::Write, 0, b"/g\0v");
        scene.ask(toolstack, Kind::SetPerms, 0, b"/g\0n1\0");
        let needed = scene.server.stream_estimate();
        let at = |scene: &mut Scene, room| {
            scene.server.handle_memory(scene.now, PLENTY, ALL, room);
        };
        for (room, supply) in [
            (needed * 2, Supply::Plenty),
            (needed * 5 / 4, Supply::Scarce),
            (needed * 20 / 19, Supply::Short),
            (needed, Supply::Short),
            (0, Supply::Short),
            (u64::MAX, Supply::Plenty),
        ] {
            at(&mut scene, room);
            assert_eq!(scene.server.supply, supply, "{room}");
        }
        at(&mut scene, needed);
        assert_eq!(scene.ask(guest, Kind::Mkdir, 0, b"/g/new\0"), "ENOSPC\0");
        assert_eq!(scene.ask(guest, Kind::Read, 0, b"/g\0"), "v");
        assert_eq!(scene.ask(toolstack, Kind::Mkdir, 0, b"/g/new\0"), "OK\0");
        at(&mut scene, needed * 2);
        assert_eq!(scene.ask(guest, Kind::Mkdir, 0, b"/g/own\0"), "OK\0");
    }

    #[test]
    fn while_memory_is_short_a_guest_has_one_reply_at_a_time() {
        let mut scene = Scene::new();
        let guest = scene.guest;
        scene.pass(0, SHORT);
        scene.send(guest, Kind::Read, 0, b"/\0");
        scene.send(guest, Kind::Read, 0, b"/tool\0");
        assert!(!scene.server.takes_bytes(guest), "the second one waits");
        assert!(scene.receive(guest).is_some());
        assert!(scene.server.takes_bytes(guest));
        assert!(scene.receive(guest).is_some());
    }

    #[test]
    fn at_the_reserve_the_toolstack_is_served_and_guests_wait() {
        let mut scene = Scene::new();
        let (guest, toolstack) = (scene.guest, scene.toolstack);
        scene.pass(0, RESERVE);
        assert!(scene.server.is_at_reserve());
        scene.send(guest, Kind::Read, 0, b"/\0");
        assert_eq!(scene.receive(guest), None);
        assert_eq!(scene.ask(toolstack, Kind::Write, 0, b"/t\0v"), "OK\0");
        scene.pass(0, SHORT);
        assert!(scene.receive(guest).is_some());
    }
}
