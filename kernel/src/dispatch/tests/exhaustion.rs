//! Every type of request, as large as a guest can make what it works on, with less and less memory free in the image's own heap: no request
//! meets an allocation that fails. `docs/memory.md` says why.

use core::ops::Range;

use super::host::Host;
use super::*;
use crate::hypervisor::own_heap::OwnHeap;

const GUEST: u16 = 5;
const WATCHERS: Range<u16> = 10..50;
/// Watches of each watcher on the node that all watch.
const WATCHES: u32 = 30;
/// Free memory at which requests are tried, in KiB: about the marks (`xenstore/src/memory.rs`), and between and below them.
const FREE_KIB: [u64; 16] = [
    2500, 2080, 2047, 1600, 1310, 1279, 1000, 800, 767, 640, 512, 448, 400, 300, 200, 100,
];
/// Below this mark guests' requests wait.
const RESERVE_KIB: u64 = 768;
/// So much that nobody is refused anything.
const PLENTY_KIB: u64 = 3000;
/// Sizes of what fills the heap, the rest of it with smaller pieces, for there need not be room for a large one.
const BALLAST: [usize; 4] = [20_000, 6000, 1000, 48];

/// What fills the heap.
struct Ballast<'a> {
    host: &'a Host,
    taken: Vec<Vec<u8>>,
}

impl<'a> Ballast<'a> {
    fn new(host: &'a Host, free_kib: u64) -> Self {
        let taken = Vec::with_capacity(10_000);
        let mut ballast = Self { host, taken };
        ballast.leave(free_kib);
        ballast
    }

    /// Fills the heap, or gives back of it, until so much is free and little less.
    fn leave(&mut self, free_kib: u64) {
        let free = || OwnHeap::left().free;
        let wanted = free_kib << 10;
        while free() < wanted && self.taken.pop().is_some() {}
        for size in BALLAST {
            while free() > wanted + 16 * size as u64 + 1000 {
                let piece = self.host.take_memory(|| Vec::with_capacity(size));
                self.taken.push(piece);
                assert_eq!(self.host.refused_memory(), 0, "for ballast");
            }
        }
    }
}

/// A request and what is to be there before.
struct Case {
    name: String,
    prepare: Prepare,
    kind: Kind,
    payload: Vec<u8>,
}

/// What the guest, and domain 0, do before; gives the transaction that the request is in.
type Prepare = fn(&mut Guest, &mut Guest) -> u32;

fn nothing(_: &mut Guest, _: &mut Guest) -> u32 {
    0
}

fn begin(guest: &mut Guest) -> u32 {
    let id = guest.ask_strings(Kind::TransactionStart, &[""]).unwrap();
    id.trim_end_matches('\0').parse().unwrap()
}

fn parent() -> String {
    "y".repeat(1900)
}

/// All that a guest can own but for a few nodes, below a long path.
fn all_nodes(guest: &mut Guest, _: &mut Guest) -> u32 {
    let parent = parent();
    if guest.ask_strings(Kind::Directory, &[&parent]).is_err() {
        for n in 0..330 {
            let path = format!("{parent}/{n:x}/c");
            guest.ask_strings(Kind::Mkdir, &[&path]).unwrap();
        }
    }
    0
}

fn all_nodes_in_a_transaction(guest: &mut Guest, dom0: &mut Guest) -> u32 {
    all_nodes(guest, dom0);
    begin(guest)
}

/// A transaction that changes as much as one can, and something else that was changed meanwhile.
fn a_merge(guest: &mut Guest, dom0: &mut Guest) -> u32 {
    let tx = begin(guest);
    for n in 0..120 {
        let payload = format!("m/{}\0{}", n % 20, "z".repeat(1900));
        let answer = guest.try_ask(Kind::Write, tx, payload.as_bytes());
        assert_eq!(answer, Some(Ok(b"OK\0".to_vec())));
    }
    dom0.write("/tool/x", "y");
    tx
}

fn shared(guest: &mut Guest, dom0: &mut Guest) -> u32 {
    dom0.write("/shared/below", "");
    dom0.ask_strings(Kind::SetPerms, &["/shared", "b0"])
        .unwrap();
    dom0.ask_strings(Kind::SetPerms, &["/shared/below", "b0"])
        .unwrap();
    guest.drain();
    0
}

/// Each type with what is longest in it.
fn cases() -> Vec<Case> {
    let long = [
        "list\0".to_owned(),
        "list\x004000\0".to_owned(),
        "v\0".to_owned(),
        format!("v\0{}", "y".repeat(1900)),
        format!("v\0{}", "y".repeat(4094)),
        format!("{}e\0", "d/".repeat(900)),
        format!("v\0n5\0{}", "r0\0".repeat(1300)),
        format!("v\0n5\0{}", "r0\0".repeat(4)),
        format!("{}\0{}\0", "w".repeat(2040), "t".repeat(2000)),
        "T\0".to_owned(),
        "\0".repeat(4096),
        "x".repeat(4096),
        String::new(),
    ];
    let single = |kind: Kind| {
        long.each_ref().map(|payload| Case {
            name: format!("{kind} {:?}", payload.get(..20)),
            prepare: nothing,
            kind,
            payload: payload.clone().into_bytes(),
        })
    };
    Kind::ALL.iter().flat_map(|kind| single(*kind)).collect()
}

/// What works on most.
fn large_cases() -> [Case; 5] {
    let path = [parent().as_bytes(), b"\0"].concat();
    let most: [(&str, Prepare, Kind, &[u8]); 5] = [
        ("all nodes go", all_nodes, Kind::Rm, &path),
        (
            "all nodes go in a transaction",
            all_nodes_in_a_transaction,
            Kind::Rm,
            &path,
        ),
        ("a merge", a_merge, Kind::TransactionEnd, b"T\0"),
        (
            "a change that all hear",
            shared,
            Kind::Write,
            b"/shared\0new",
        ),
        (
            "a removal that all hear",
            shared,
            Kind::Rm,
            b"/shared/below\0",
        ),
    ];
    most.map(|(name, prepare, kind, payload)| Case {
        name: name.to_owned(),
        prepare,
        kind,
        payload: payload.to_vec(),
    })
}

/// A host on its own heap, with a guest that has something of everything, and those who watch one node.
fn scene() -> (Host, Guest, Guest, Vec<Guest>) {
    let (host, mut dom0) = start_with_own_heap();
    let mut guest = dom0.build(GUEST);
    for n in 0..250 {
        guest.write(&format!("list/{n}"), "");
    }
    guest.write("v", &"x".repeat(1900));
    guest.watch("v", "token");
    shared(&mut guest, &mut dom0);
    let mut watchers: Vec<Guest> = WATCHERS.map(|id| dom0.build(id)).collect();
    for watcher in &mut watchers {
        for n in 0..WATCHES {
            watcher.watch("/shared", &n.to_string());
        }
    }
    (host, dom0, guest, watchers)
}

/// A request on its way.
struct Sent {
    number: u32,
    rest: Vec<u8>,
}

impl Guest {
    /// Sends a request that may have to wait.
    fn send(&mut self, kind: Kind, transaction: u32, payload: &[u8]) -> Sent {
        let (number, mut rest) = self.request(kind, payload);
        rest[8..12].copy_from_slice(&transaction.to_le_bytes());
        let mut sent = Sent { number, rest };
        self.go_on(&mut sent);
        sent
    }

    /// Sends as much of the rest as the store takes, and reads what comes; whether the request is answered.
    fn go_on(&mut self, sent: &mut Sent) -> bool {
        loop {
            self.signal();
            self.host.settle();
            let put = self.put(&sent.rest);
            sent.rest.drain(..put);
            if self.take(usize::MAX) + put == 0 {
                return self
                    .replies
                    .iter()
                    .any(|reply| reply.request == sent.number);
            }
        }
    }
}

/// A request with so little left: it is answered, or waits at the reserve, and the heap has what it needs.
fn attempt(
    ballast: &mut Ballast<'_>,
    guest: &mut Guest,
    tx: u32,
    case: &Case,
    free_kib: u64,
) -> bool {
    ballast.leave(free_kib);
    let mut sent = guest.send(case.kind, tx, &case.payload);
    let what = format!("{} in {tx} at {free_kib} KiB", case.name);
    let is_answered = guest.go_on(&mut sent);
    assert_eq!(guest.host.refused_memory(), 0, "{what}");
    let may_wait = free_kib <= RESERVE_KIB + 32 && guest.domid != DOM0;
    assert!(is_answered || may_wait, "{what}");
    if !is_answered {
        ballast.leave(PLENTY_KIB);
        assert!(guest.go_on(&mut sent), "{what}");
        ballast.leave(free_kib);
    }
    guest.replies.clear();
    guest.events.clear();
    is_answered
}

/// T-MEM-07.
#[test]
fn no_request_meets_an_allocation_that_fails_however_little_is_left() {
    let (host, mut dom0, mut guest, mut watchers) = scene();
    let (mut answered, mut waited) = (0, 0);
    let mut count = |is_answered: bool| {
        answered += usize::from(is_answered);
        waited += usize::from(!is_answered);
    };
    let mut ballast = Ballast::new(&host, PLENTY_KIB);
    let mut tx = 0;
    for free_kib in FREE_KIB {
        for case in &cases() {
            if case.payload.starts_with(b"list\0") {
                ballast.leave(PLENTY_KIB);
                host.settle();
                drop(guest.ask_strings(Kind::ResetWatches, &[""]));
                guest.write("v", &"x".repeat(1900));
                tx = begin(&mut guest);
            }
            for tx in [tx, 0] {
                count(attempt(&mut ballast, &mut guest, tx, case, free_kib));
            }
        }
        for case in &large_cases() {
            ballast.leave(PLENTY_KIB);
            host.settle();
            drop(guest.ask_strings(Kind::ResetWatches, &[""]));
            let tx = (case.prepare)(&mut guest, &mut dom0);
            count(attempt(&mut ballast, &mut guest, tx, case, free_kib));
            dom0.write("/tool/x", "still served");
            assert_eq!(host.refused_memory(), 0, "after {}", case.name);
            watchers.iter_mut().for_each(|watcher| {
                watcher.take_events();
            });
        }
    }
    println!("{answered} answered, {waited} waited");
    assert!(answered > 1000 && waited > 1000, "{answered} {waited}");
    assert_eq!(host.audit(), Ok(()));
}

/// What the reserve is for: domain 0's requests, of any type and length, and the ends of domains with all that they can have.
#[test]
fn domain_0_and_the_ends_of_domains_have_the_reserve() {
    let (host, mut dom0, mut guest, _watchers) = scene();
    let mut ballast = Ballast::new(&host, PLENTY_KIB);
    for free_kib in [767, 512, 400] {
        for case in &cases() {
            attempt(&mut ballast, &mut dom0, 0, case, free_kib);
        }
        ballast.leave(PLENTY_KIB);
        host.settle();
        all_nodes(&mut guest, &mut dom0);
        for n in 0..100 {
            guest.watch("v", &n.to_string());
        }
        a_merge(&mut guest, &mut dom0);
        ballast.leave(free_kib);
        host.xen.destroy(DomId::new(GUEST));
        host.settle();
        assert_eq!(host.refused_memory(), 0, "a death at {free_kib} KiB");
        ballast.leave(PLENTY_KIB);
        assert!(!dom0.is_introduced(DomId::new(GUEST)));
        guest = dom0.build(GUEST);
        assert_eq!(host.audit(), Ok(()));
    }
}
