//! How long the state stream is beside what the state takes of the image's heap, whatever guests do, and what writing it takes of the heap.
//! docs/state-stream.md has the figures.
#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that goes wrong here should stop at once"
)]

mod store;

use kernel::hypervisor::MeteredHeap;
use store::Store;
use xenstore::state::{Format, HostLink, Size};
use xenstore::wire::Kind;
use xenstore::{ConnId, Instant};

#[global_allocator]
static HEAP: MeteredHeap = MeteredHeap;

/// Guests of each state.
const GUESTS: u16 = 4;
/// Bytes of the stream for a hundred bytes of the heap, at most.
const MOST_PERCENT: u64 = 100;
/// What the estimate has for four guests and their connections, whatever they do.
const CONSTANT: u64 = 64 * 1024;
/// Bytes that writing takes at its peak, at most.
const PEAK_MAX: usize = 160 * 1024;

/// Makes a guest's part of a state.
type Make = fn(&mut Store, u16);

/// What a state is made of, and what each guest does for it.
const STATES: [(&str, Make); 9] = [
    ("typical guests", typical),
    ("nodes as deep as can be", deep),
    ("4 KB values", values),
    ("small nodes, many in a row", flat),
    ("watches with long paths", watches),
    ("unread events of long paths", events),
    ("unread replies of one large value", replies),
    ("transactions that made deep nodes", transactions),
    ("transactions that read and wrote", reads),
];

#[test]
fn the_stream_is_not_longer_than_what_it_says_takes() {
    let empty = Store::new(GUESTS);
    let nothing = size(&empty);
    drop(empty);
    for (name, make) in STATES {
        let before = HEAP.usage().used;
        let mut store = Store::new(GUESTS);
        let bare = HEAP.usage().used;
        for guest in 1..=GUESTS {
            store.ok(0, Kind::SetQuota, &format!("{guest}\0node-size\x005000\0"));
            make(&mut store, guest);
        }
        let used = HEAP.usage().used;
        HEAP.start();
        let stream = size(&store);
        let peak = HEAP.peak() - used;
        let (heap, more) = (u64::try_from(used - bare).unwrap(), stream - nothing);
        let (of_heap, of_account) = (more * 100 / heap, more * 100 / accounted(&mut store));
        println!(
            "{name:36} stream {more:>8}: {of_heap:>4} % of the heap, {of_account:>3} % of the accounts; writing it takes {peak:>6}"
        );
        assert!(of_account <= MOST_PERCENT, "{name}");
        assert!(peak <= PEAK_MAX, "{name}: {peak}");
        let estimate = store.server.stream_estimate();
        println!(
            "{:36} estimate {:>4} %",
            "",
            estimate * 100 / (more + nothing)
        );
        assert!(estimate >= more + nothing, "{name}: {estimate}");
        assert!(estimate <= 8 * more + CONSTANT, "{name}: {estimate}");
        drop(store);
        assert!(HEAP.usage().used <= before + 4096, "{name}: all is freed");
    }
}

fn size(store: &Store) -> u64 {
    let links = |_: ConnId| HostLink::default();
    let mut size = Size::default();
    store
        .server
        .export(Format::Own, Instant(0), &links, &mut size);
    size.0
}

/// What all that the store has costs its owners, in bytes.
fn accounted(store: &mut Store) -> u64 {
    let report = store.ask(0, Kind::Control, 0, b"memreport\0");
    let report = String::from_utf8(report).unwrap();
    let ends = report
        .lines()
        .filter_map(|line| line.strip_suffix(" bytes"));
    ends.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

fn typical(store: &mut Store, guest: u16) {
    for device in ["vbd/51712", "vif/0", "vkbd/0", "console/0"] {
        for (name, value) in [
            ("backend", "/local/domain/0/backend/vbd/5/51712"),
            ("backend-id", "0"),
            ("state", "4"),
            ("event-channel", "17"),
            ("ring-ref", "8"),
        ] {
            store.ok(
                guest,
                Kind::Write,
                &format!("device/{device}/{name}\0{value}"),
            );
        }
        store.ok(guest, Kind::Watch, &format!("device/{device}/state\0t\0"));
        store.read(guest);
    }
}

fn deep(store: &mut Store, guest: u16) {
    store.ok(guest, Kind::Mkdir, &format!("{}a\0", "d/".repeat(900)));
}

fn values(store: &mut Store, guest: u16) {
    for n in 0..200 {
        store.ok(guest, Kind::Write, &format!("{n}\0{}", "x".repeat(4000)));
    }
}

fn flat(store: &mut Store, guest: u16) {
    for n in 0..900 {
        store.ok(guest, Kind::Mkdir, &format!("{n:x}\0"));
    }
}

fn watches(store: &mut Store, guest: u16) {
    for n in 0..120 {
        store.ok(guest, Kind::Watch, &format!("{}{n}\0t\0", "w".repeat(1900)));
    }
    store.read(guest);
}

fn events(store: &mut Store, guest: u16) {
    let path = "e".repeat(1900);
    store.ok(guest, Kind::Mkdir, &format!("{path}\0"));
    for n in 0..120 {
        store.ok(guest, Kind::Watch, &format!("{path}\0{n}\0"));
    }
    store.read(guest);
    for n in 0..8 {
        let changed = format!("/local/domain/{guest}/{path}/{n}\0");
        store.ok(0, Kind::Mkdir, &changed);
    }
}

fn replies(store: &mut Store, guest: u16) {
    store.ok(guest, Kind::Write, &format!("v\0{}", "x".repeat(4000)));
    for _ in 0..20 {
        store.send(guest, Kind::Read, 0, b"v\0");
    }
}

fn transactions(store: &mut Store, guest: u16) {
    for n in 0..10 {
        let tx = store.begin(guest);
        for branch in 0..9 {
            let path = format!("{n}/{branch}/{}a\0", "d/".repeat(90));
            store.ask(guest, Kind::Mkdir, tx, path.as_bytes());
        }
    }
}

fn reads(store: &mut Store, guest: u16) {
    for n in 0..100 {
        store.ok(guest, Kind::Write, &format!("{n}\0{}", "x".repeat(1000)));
    }
    for _ in 0..10 {
        let tx = store.begin(guest);
        for n in 0..100 {
            let path = format!("{n}\0");
            store.ask(guest, Kind::Read, tx, path.as_bytes());
            let payload = format!("{n}\0{}", "y".repeat(n));
            store.ask(guest, Kind::Write, tx, payload.as_bytes());
        }
    }
}
