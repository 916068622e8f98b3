//! The parts a guest can play: honest, lazy and hostile ones, one line each in [`ROLES`].

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use kernel::hypervisor::{OwnPage, ShutdownReason};
use kernel::ring::{CONNECTION, REPLIES, REQUESTS, RING_BYTES};
use kernel::xen::{Clock as _, Events as _, Page as _};
use log::debug;
use xenstore::wire::{Header, Kind};
use xenstore::{GrantRef, Instant, ReqId};

use crate::checks::checks;
use crate::guest::Guest;
use crate::manners::{honest, quiet, strings};

/// One part.
pub(crate) struct Role {
    /// The word after `role=`.
    name: &'static str,
    /// Plays it. What returns sleeps from then on.
    pub(crate) play: fn(&mut Guest),
}

const ROLES: &[Role] = &[
    role("honest", honest),
    role("checks", checks),
    role("quiet", quiet),
    role("never-notifies", never_notifies),
    role("notifies-sometimes", notifies_sometimes),
    role("bad-indices", bad_indices),
    role("bad-lengths", bad_lengths),
    role("half-header", half_header),
    role("half-message-then-crash", half_message_then_crash),
    role("open-transaction-then-crash", open_transaction_then_crash),
    role("never-reads", never_reads),
    role("floods-requests", floods_requests),
    role("floods-watches", floods_watches),
    role("floods-transactions", floods_transactions),
    role("floods-nodes", floods_nodes),
    role("fills-memory", fills_memory),
    role("floods-events", floods_events),
    role("floods-reconnects", floods_reconnects),
    role("scribbles", scribbles),
    role("ends-its-grant", ends_its_grant),
    role("moves-its-grant", moves_its_grant),
    role("gives-up-its-page", gives_up_its_page),
    role("closes-its-port", closes_its_port),
];

const fn role(name: &'static str, play: fn(&mut Guest)) -> Role {
    Role { name, play }
}

/// The part of that name.
pub(crate) fn find(name: &str) -> Option<&'static Role> {
    ROLES.iter().find(|role| role.name == name)
}

/// The command line names no part: says which there are.
pub(crate) struct Unknown;

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("role= must be one of")?;
        ROLES
            .iter()
            .try_for_each(|role| write!(f, " {}", role.name))
    }
}

/// Sends no event at all: only the store's slow scan finds what it asks.
fn never_notifies(guest: &mut Guest) {
    guest.notify_every = 0;
    lazily(guest);
}

/// Sends an event for every eighth request.
fn notifies_sometimes(guest: &mut Guest) {
    guest.notify_every = 8;
    lazily(guest);
}

fn lazily(guest: &mut Guest) {
    let end = guest.end_of_spell();
    let mut answers = 0_u32;
    while guest.machine.now() < end {
        match guest.ask(Kind::Write, 0, &write("data/lazy", b"x")) {
            Ok(_) => answers = answers.saturating_add(1),
            Err(trouble) => debug!("{trouble:?}"),
        }
    }
    debug!("{answers} answers");
}

/// Indices further apart than the ring is long, in both directions, each time with a way back.
fn bad_indices(guest: &mut Guest) {
    let size = u32::try_from(RING_BYTES).unwrap_or(0);
    for (what, direction, distance) in [
        ("requests one too many", REQUESTS, size.wrapping_add(1)),
        ("requests less than none", REQUESTS, u32::MAX),
        ("requests in thousands", REQUESTS, 0x8000_0000),
        ("answers less than none", REPLIES, u32::MAX),
        ("answers in thousands", REPLIES, 0x8000_0000),
    ] {
        // So that there is something to take and something to give.
        guest.put(&a_write());
        let prod = guest.page.load(direction.cons).wrapping_add(distance);
        guest.page.store(direction.prod, prod);
        complain_until_stopped(guest, what);
    }
}

/// Lengths that no message may have.
fn bad_lengths(guest: &mut Guest) {
    for len in [4097, 1 << 30, 1 << 31, u32::MAX] {
        let header = Header {
            kind: Kind::Write.number(),
            req_id: ReqId(1),
            tx_id: 0,
            len,
        };
        guest.put(&header.encode());
        complain_until_stopped(guest, &format!("length {len}"));
    }
}

/// After a fault: keeps on sending events, says what the store thinks of it, and comes back.
fn complain_until_stopped(guest: &mut Guest, what: &str) {
    /// Events that must not make a line of log each.
    const EVENTS: u32 = 100;
    guest.notify();
    let stopped = guest.until_ms(5000, |guest| guest.error_word() != 0);
    let error = guest.error_word();
    for _ in 0..EVENTS {
        guest.notify();
    }
    let back = guest.reconnect() && guest.ask(Kind::Read, 0, &strings([b"domid"])).is_ok();
    debug!("{what}: stopped {stopped}, error {error}, back {back}");
}

/// A part of a header, then silence.
fn half_header(guest: &mut Guest) {
    guest.put(&[0; 7]);
    guest.pause_ms(guest.spell_ms);
}

/// A part of a message, then the end.
fn half_message_then_crash(guest: &mut Guest) {
    let header = Header {
        kind: Kind::Write.number(),
        req_id: ReqId(1),
        tx_id: 0,
        len: 2000,
    };
    guest.put(&header.encode());
    guest.put(&[b'x'; 900]);
    guest.pause_ms(200);
    guest.machine.shut_down(ShutdownReason::Crash);
}

/// A transaction, watches and a request under way, then the end.
fn open_transaction_then_crash(guest: &mut Guest) {
    let begun = begin(guest);
    if let Some(tx_id) = begun {
        for n in 0..20 {
            let _ = guest.ask(Kind::Write, tx_id, &write(&format!("data/{n}"), b"x"));
            let _ = guest.ask(
                Kind::Watch,
                0,
                &strings([format!("data/{n}").as_bytes(), b"t"]),
            );
        }
    }
    guest.put(&[0; 3]);
    guest.machine.shut_down(ShutdownReason::Crash);
}

/// Asks for large answers and never reads one, with watches on all that it may see.
fn never_reads(guest: &mut Guest) {
    for (path, token) in [("@releaseDomain", "r"), ("/", "all"), ("data", "own")] {
        let _ = guest.ask(
            Kind::Watch,
            0,
            &strings([path.as_bytes(), token.as_bytes()]),
        );
    }
    let _ = guest.ask(Kind::Write, 0, &write("data/large", &[b'x'; 1900]));
    let end = guest.end_of_spell();
    let mut asked = 0_u32;
    while guest
        .send(Kind::Read, 0, &strings([b"data/large"]), end)
        .is_ok()
    {
        asked = asked.saturating_add(1);
    }
    debug!("stuck after {asked} requests");
}

/// Keeps the request ring full.
fn floods_requests(guest: &mut Guest) {
    let end = guest.end_of_spell();
    let mut answers = vec![0; RING_BYTES];
    let mut bytes = 0_usize;
    let (mut message, mut sent) = (a_write(), 0);
    while guest.machine.now() < end {
        let got = guest.get(&mut answers);
        let put = guest.put(message.get(sent..).unwrap_or_default());
        bytes = bytes.saturating_add(got);
        sent = sent.saturating_add(put);
        if sent >= message.len() {
            (message, sent) = (a_write(), 0);
        } else if got == 0 && put == 0 {
            let _ = guest.wait(end);
        }
    }
    debug!("{bytes} bytes of answers");
}

fn a_write() -> Vec<u8> {
    let payload = write("data/flood", b"x");
    let header = Header {
        kind: Kind::Write.number(),
        req_id: ReqId(7),
        tx_id: 0,
        len: u32::try_from(payload.len()).unwrap_or(0),
    };
    [header.encode().as_slice(), &payload].concat()
}

/// Sets watches until they are refused, forgets them, and again.
fn floods_watches(guest: &mut Guest) {
    again_and_again(guest, |guest| {
        let mut set = 0_u32;
        while set < 1000
            && guest
                .ask(
                    Kind::Watch,
                    0,
                    &strings([b"/", format!("{set}").as_bytes()]),
                )
                .is_ok()
        {
            set = set.saturating_add(1);
        }
        let _ = guest.ask(Kind::ResetWatches, 0, &[0]);
        set
    });
}

/// Opens transactions until they are refused, changes nodes in each, ends them, and again; two stay open.
fn floods_transactions(guest: &mut Guest) {
    again_and_again(guest, |guest| {
        let mut open = Vec::new();
        while open.len() < 1000
            && let Some(tx_id) = begin(guest)
        {
            for n in 0..10 {
                let _ = guest.ask(Kind::Write, tx_id, &write(&format!("data/{n}"), b"x"));
            }
            open.push(tx_id);
        }
        for tx_id in &open {
            let _ = guest.ask(Kind::TransactionEnd, *tx_id, &strings([b"T"]));
        }
        u32::try_from(open.len()).unwrap_or(0)
    });
    debug!("open {}", begin(guest).is_some() && begin(guest).is_some());
}

/// Makes nodes until they are refused, then one as deep as a path can be.
fn floods_nodes(guest: &mut Guest) {
    /// Nodes in one directory, whose names are counted as its size.
    const CHILDREN: u32 = 100;
    let directory = |n: u32| format!("data/{}", n / CHILDREN);
    let mut made = 0_u32;
    while made < 5000 {
        let path = format!("{}/{}", directory(made), made % CHILDREN);
        if guest
            .ask(Kind::Mkdir, 0, &strings([path.as_bytes()]))
            .is_err()
        {
            break;
        }
        made = made.saturating_add(1);
    }
    for n in [0, CHILDREN, 2 * CHILDREN, 3 * CHILDREN] {
        let _ = guest.ask(Kind::Rm, 0, &strings([directory(n).as_bytes()]));
    }
    let deep = [b"data".as_slice(), &b"/d".repeat(280)].concat();
    let is_deep = guest.ask(Kind::Mkdir, 0, &strings([&deep])).is_ok();
    debug!("refused at {made} nodes, deep path {is_deep}");
}

/// Makes as many nodes as it may have, each below the one before, and changes the last one again and again, each time with one more
/// transaction open, which keeps alive what there was.
fn fills_memory(guest: &mut Guest) {
    let deep = format!("data{}", "/d".repeat(900));
    let mut refused = 0_u32;
    let mut open = Vec::new();
    let mut changes = 0_u32;
    let end = guest.end_of_spell();
    while guest.machine.now() < end {
        match begin(guest) {
            Some(tx_id) => open.push(tx_id),
            None => refused = refused.saturating_add(1),
        }
        let is_changed = guest.ask(Kind::Write, 0, &write(&deep, b"x")).is_ok();
        changes = changes.saturating_add(u32::from(is_changed));
        if open.len() >= 10 {
            guest.pause_ms(3000);
            for tx_id in open.drain(..) {
                let _ = guest.ask(Kind::TransactionEnd, tx_id, &strings([b"F"]));
            }
        }
    }
    debug!("{changes} changes, {refused} transactions refused");
}

/// Sends events and nothing else, as fast as it can.
fn floods_events(guest: &mut Guest) {
    let end = guest.end_of_spell();
    let mut sent = 0_u32;
    while guest.machine.now() < end {
        guest.notify();
        sent = sent.saturating_add(1);
    }
    debug!("{sent} events");
}

/// Asks for a fresh start all the time.
fn floods_reconnects(guest: &mut Guest) {
    again_and_again(guest, |guest| {
        guest.put(&[0; 9]);
        guest.page.store(CONNECTION, u32::MAX);
        guest.notify();
        1
    });
    debug!("back {}", guest.reconnect());
}

/// Writes at random over everything in the page while the store reads it.
fn scribbles(guest: &mut Guest) {
    let mut random = guest.machine.now().0 | 1;
    again_and_again(guest, |guest| {
        for _ in 0..200 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let [low, _, high, _, value @ ..] = random.to_le_bytes();
            let place = usize::from(u16::from_le_bytes([low, high])) % 2080 / 4 * 4;
            guest.page.store(place, u32::from_le_bytes(value));
            // Often enough what the store looks at first.
            guest.page.store(
                REQUESTS.prod,
                guest
                    .page
                    .load(REQUESTS.cons)
                    .wrapping_add(u32::from(low) * 5),
            );
        }
        guest.notify();
        200
    });
    debug!("back {}", guest.reconnect());
}

/// Ends the grant of its ring while the store has it mapped, and goes on talking.
fn ends_its_grant(guest: &mut Guest) {
    with_grant(guest, |guest, table| {
        table.store(OwnPage::grant_flags_at(GrantRef::XENSTORE), 0);
        let answered = guest.ask(Kind::Read, 0, &strings([b"domid"])).is_ok();
        debug!("answered {answered}, back {}", guest.reconnect());
    });
}

/// Lets the grant of its ring name another page, and goes on talking.
fn moves_its_grant(guest: &mut Guest) {
    with_grant(guest, |guest, table| {
        let frame_at = OwnPage::grant_flags_at(GrantRef::XENSTORE).saturating_add(size_of::<u32>());
        // The first page of the image.
        table.store(frame_at, 0x100);
        let answered = guest.ask(Kind::Read, 0, &strings([b"domid"])).is_ok();
        debug!("answered {answered}, back {}", guest.reconnect());
    });
}

fn with_grant(guest: &mut Guest, act: impl FnOnce(&mut Guest, OwnPage)) {
    match guest.machine.grant_table() {
        Ok(table) => act(guest, table),
        Err(error) => debug!("no grant table: {error}"),
    }
}

/// Gives the memory of its ring back to Xen in the middle of a message.
fn gives_up_its_page(guest: &mut Guest) {
    guest.put(&[0; 5]);
    let page = guest.page;
    let given_up = guest.machine.give_up(page);
    for _ in 0..100 {
        guest.notify();
    }
    guest.pause_ms(guest.spell_ms);
    debug!("gave it up: {}", given_up.is_ok());
}

/// Closes its end of the event channel with a request under way.
fn closes_its_port(guest: &mut Guest) {
    guest.put(&[0; 5]);
    let port = guest.port;
    guest.machine.close(port);
    for _ in 0..100 {
        guest.notify();
    }
    guest.pause_ms(guest.spell_ms);
}

/// Acts for a spell and says how much it did.
fn again_and_again(guest: &mut Guest, mut act: impl FnMut(&mut Guest) -> u32) {
    let end: Instant = guest.end_of_spell();
    let mut done = 0_u32;
    while guest.machine.now() < end {
        done = done.saturating_add(act(guest));
    }
    debug!("{done} times");
}

/// Starts a transaction; its number.
fn begin(guest: &mut Guest) -> Option<u32> {
    let answer = guest.ask(Kind::TransactionStart, 0, &[0]).ok()?;
    let number = core::str::from_utf8(&answer).ok()?;
    number.trim_end_matches('\0').parse().ok()
}

/// The payload of a WRITE.
fn write(path: &str, value: &[u8]) -> Vec<u8> {
    [path.as_bytes(), &[0], value].concat()
}
