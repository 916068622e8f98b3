//! Guests that together want far more memory than there is, on the image's own heap: it never has to refuse, and the toolstack is served.

use std::collections::VecDeque;

use super::*;
use crate::hypervisor::heap_usage;
use crate::hypervisor::own_heap::OwnHeap;

/// What a guest fills the store with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Greed {
    Nodes,
    /// Tiny nodes, deep below each other.
    Chains,
    Watches,
    Transactions,
    /// Changes all that it has, with transactions open from before each time.
    Hoard,
    /// Answers that it never reads.
    Answers,
    /// Events that it never reads.
    Events,
    /// Makes those events.
    Noise,
    /// Requests that it never completes.
    Halves,
}

const GREEDS: [Greed; 9] = [
    Greed::Nodes,
    Greed::Chains,
    Greed::Watches,
    Greed::Transactions,
    Greed::Hoard,
    Greed::Answers,
    Greed::Events,
    Greed::Noise,
    Greed::Halves,
];
const GUESTS: core::ops::Range<u16> = 100..190;
const TURNS: u32 = 200;

struct Greedy {
    guest: Guest,
    greed: Greed,
    step: u32,
    transaction: u32,
    outbox: VecDeque<u8>,
}

impl Greedy {
    fn new(guest: Guest, greed: Greed) -> Self {
        Self {
            guest,
            greed,
            step: 0,
            transaction: 0,
            outbox: VecDeque::new(),
        }
    }

    /// As much as the ring takes.
    fn work(&mut self) {
        let reads = !matches!(self.greed, Greed::Answers | Greed::Events) || self.step < 150;
        if reads {
            self.guest.take(usize::MAX);
        }
        for reply in self.guest.replies.drain(..) {
            if let Ok(text) = reply.result
                && let Ok(id) = String::from_utf8_lossy(&text)
                    .trim_end_matches('\0')
                    .parse()
            {
                self.transaction = id;
            }
        }
        self.guest.events.clear();
        while self.outbox.len() < 1024 {
            let bytes = self.next_request();
            self.outbox.extend(bytes);
        }
        let put = self.guest.put(self.outbox.make_contiguous());
        self.outbox.drain(..put);
        self.guest.signal();
    }

    fn next_request(&mut self) -> Vec<u8> {
        let n = self.step;
        self.step += 1;
        let mut transaction = 0;
        let value = "v".repeat(1900);
        let text = |text: String| text.into_bytes();
        let (kind, payload) = match self.greed {
            Greed::Nodes => (Kind::Write, text(format!("data/{}/{n}\0{value}", n / 50))),
            Greed::Chains => (Kind::Mkdir, text(format!("{n}{}\0", "/d".repeat(40)))),
            Greed::Watches => (Kind::Watch, text(format!("w\0{n}{value}\0"))),
            Greed::Transactions if n.is_multiple_of(90) => {
                (Kind::TransactionStart, text("\0".into()))
            }
            Greed::Transactions => {
                transaction = self.transaction;
                (Kind::Write, text(format!("t/{n}\0{value}")))
            }
            Greed::Hoard if n % 100 == 99 => (Kind::TransactionStart, text("\0".into())),
            Greed::Hoard => (Kind::Write, text(format!("hoard/{}\0{value}", n % 100))),
            Greed::Answers => (Kind::Directory, text("/large\0".into())),
            Greed::Events if n < 120 => (Kind::Watch, text(format!("/t\0{n}\0"))),
            Greed::Events => (Kind::Write, text(format!("key\0{n}"))),
            Greed::Noise => {
                let name = "n".repeat(200);
                let path = format!("/t/{}{name}{}", self.guest.domid, n % 100);
                (Kind::Write, text(format!("{path}\0{n}")))
            }
            Greed::Halves => (Kind::Write, text(format!("half\0{value}{value}"))),
        };
        let (_, mut bytes) = self.guest.request(kind, &payload);
        bytes[8..12].copy_from_slice(&transaction.to_le_bytes());
        if self.greed == Greed::Halves && n > 0 {
            bytes.truncate(if n == 1 { bytes.len() - 1 } else { 0 });
            bytes.resize(bytes.len().max(1), 0);
        }
        bytes
    }
}

/// What the toolstack does all day; everything must work.
fn toolstack_works(dom0: &mut Guest, n: u32) {
    dom0.write("/tool/key", &format!("{n}"));
    assert_eq!(dom0.read("/tool/key"), Ok(format!("{n}")));
    dom0.ask_strings(Kind::Directory, &["/local/domain"])
        .unwrap();
    let mut short = dom0.build(99);
    short.ask_strings(Kind::GetDomainPath, &["5"]).unwrap();
    short.host.xen.destroy(short.domid);
    assert!(!dom0.is_introduced(short.domid));
    dom0.take_events();
}

/// T-MEM-07, T-MEM-08, T-MEM-09.
#[test]
fn the_heap_never_refuses_whatever_guests_want() {
    let (host, mut dom0) = start_with_own_heap();
    for n in 0..20 {
        dom0.write(&format!("/large/{n}{}", "x".repeat(190)), "");
    }
    dom0.ask_strings(Kind::SetPerms, &["/large", "r0"]).unwrap();
    dom0.write("/t", "");
    dom0.ask_strings(Kind::SetPerms, &["/t", "b0"]).unwrap();
    dom0.watch("@releaseDomain", "gone");
    let used_before = heap_usage().used;
    let before = OwnHeap::left();
    let greeds = || GREEDS.iter().copied().cycle();
    let mut guests: Vec<Greedy> = GUESTS
        .zip(greeds())
        .map(|(id, greed)| Greedy::new(dom0.build(id), greed))
        .collect();
    let mut least = before.free;
    for n in 0..TURNS {
        guests.iter_mut().for_each(Greedy::work);
        host.turn();
        host.xen.advance(Duration::from_millis(10));
        least = least.min(OwnHeap::left().free);
        if n % 20 == 0 {
            toolstack_works(&mut dom0, n);
        }
        if n % 50 == 49 {
            let place = (n / 50) as usize % guests.len();
            let (domid, greed) = (guests[place].guest.domid, guests[place].greed);
            host.xen.destroy(domid);
            host.settle();
            guests[place] = Greedy::new(dom0.build(domid.get()), greed);
        }
    }
    println!("least free: {least} of {} bytes", before.total);
    assert_eq!(host.refused_memory(), 0);
    assert!(least > before.total / 20, "{least} bytes were left");
    let counted = dom0.ask_strings(Kind::Control, &["counters", "total"]);
    let counted = counted.unwrap();
    for refusal in ["refused-store-memory: ", "ended-open-transaction: "] {
        assert!(counted.contains(refusal), "{counted}");
    }
    for greedy in &guests {
        host.xen.destroy(greedy.guest.domid);
    }
    host.settle();
    dom0.take_events();
    // Queues keep their room, and the history of changes its last ones.
    let used = heap_usage().used;
    let kept = used_before + 128 * 1024;
    assert!(used < kept, "{used} bytes after {used_before}");
}

/// One request, of which more would be told than there is memory for.
#[test]
fn the_events_of_one_request_stop_at_the_reserve() {
    const WATCHERS: core::ops::Range<u16> = 100..180;
    const WATCHES: u32 = 120;
    let (host, mut dom0) = start_with_own_heap();
    dom0.write("/t", "");
    dom0.ask_strings(Kind::SetPerms, &["/t", "b0"]).unwrap();
    let mut watchers: Vec<Guest> = WATCHERS.map(|id| dom0.build(id)).collect();
    for watcher in &mut watchers {
        for n in 0..WATCHES {
            let token = n.to_string();
            watcher.ask_strings(Kind::Watch, &["/t", &token]).unwrap();
        }
        watcher.events.clear();
    }
    let mut fillers: Vec<Greedy> = (10..20)
        .map(|id| Greedy::new(dom0.build(id), Greed::Nodes))
        .collect();
    let mut writer = dom0.build(9);
    // Just above the mark below which memory is scarce.
    let enough = 2200 << 10;
    while OwnHeap::left().free > enough {
        fillers.iter_mut().for_each(Greedy::work);
        host.turn();
    }
    let before = OwnHeap::left().free;
    for n in 0..3 {
        let (_, bytes) = writer.request(Kind::Write, format!("/t/{n}\0v").as_bytes());
        writer.put(&bytes);
        writer.signal();
        host.settle();
    }
    let left = OwnHeap::left().free;
    println!("free: {before}, then {left}");
    assert_eq!(host.refused_memory(), 0);
    // The least reserve.
    assert!(left > 768 << 10, "{left} bytes are left of {before}");
    toolstack_works(&mut dom0, 0);
    let told = watchers.iter_mut().map(|watcher| {
        watcher.drain();
        watcher.events.len()
    });
    let told: Vec<usize> = told.collect();
    assert!(told.iter().all(|told| *told >= 1), "{told:?}");
}
