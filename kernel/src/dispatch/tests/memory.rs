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
    /// Answers that it never reads.
    Answers,
    /// Events that it never reads.
    Events,
    /// Makes those events.
    Noise,
    /// Requests that it never completes.
    Halves,
}

const GREEDS: [Greed; 8] = [
    Greed::Nodes,
    Greed::Chains,
    Greed::Watches,
    Greed::Transactions,
    Greed::Answers,
    Greed::Events,
    Greed::Noise,
    Greed::Halves,
];
const GUESTS: core::ops::Range<u16> = 100..164;
const TURNS: u32 = 300;

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
            Greed::Answers if n == 0 => (Kind::Write, text(format!("large\0{value}"))),
            Greed::Answers => (Kind::Read, text("large\0".into())),
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
    assert!(short.is_served() || OwnHeap::left().free * 20 < OwnHeap::left().total);
    short.host.xen.destroy(short.domid);
    assert!(!dom0.is_introduced(short.domid));
    dom0.take_events();
}

/// T-MEM-07, T-MEM-08, T-MEM-09.
#[test]
fn the_heap_never_refuses_whatever_guests_want() {
    let (host, mut dom0) = start_with_own_heap();
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
        host.xen.advance(Duration::from_millis(1));
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
    let percent = least * 100 / before.total;
    println!("least free: {least} of {} bytes", before.total);
    assert_eq!(host.refused_memory(), 0);
    assert!((1..10).contains(&percent), "{percent} % were left");
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
