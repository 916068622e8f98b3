//! What a request can take of the kernel's own heap, at its peak and for good, whatever its type and however large its client makes what
//! it works on. `docs/memory.md` says what follows from it.
#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that goes wrong here should stop at once"
)]

mod store;

use std::sync::Mutex;

use kernel::hypervisor::MeteredHeap;
use store::{Store, identity};
use xenstore::state::{HostLink, Size};
use xenstore::wire::Kind;
use xenstore::{DomainEvent, Identity, Instant, StorageKind, UniqueId};

#[global_allocator]
static HEAP: MeteredHeap = MeteredHeap;

/// The guest whose requests are metered.
const GUEST: u16 = 1;

/// What a request took, in bytes of the heap.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    /// At most at one moment.
    peak: usize,
    /// When it was answered, and the answer not yet read.
    kept: isize,
    /// As one object.
    largest: usize,
}

impl Store {
    /// What a request of the guest takes while it runs and its answer waits.
    fn meter(&mut self, kind: Kind, tx_id: u32, payload: &[u8]) -> Taken {
        self.read(GUEST);
        let before = HEAP.usage().used;
        HEAP.start();
        self.send(GUEST, kind, tx_id, payload);
        let taken = Taken {
            peak: HEAP.peak() - before,
            kept: isize::try_from(HEAP.usage().used).unwrap() - isize::try_from(before).unwrap(),
            largest: HEAP.largest(),
        };
        self.read(GUEST);
        taken
    }
}

/// Bytes that one request may take at its peak when little memory is left: about half of the least reserve (`xenstore::memory`). The rest is
/// for what else was begun in the same round, and for domain 0.
const MOST: usize = 400 * 1024;
/// Bytes of it that may stay, most of them what 40 watchers are yet to be told.
const KEPT: isize = 128 * 1024;
/// Bytes of one object: what is left may be in pieces.
const LARGEST: usize = 64 * 1024;

impl Taken {
    fn is_little(self, what: &str) {
        println!("{what:50} {self:?}");
        let is_little = self.peak <= MOST && self.kept <= KEPT && self.largest <= LARGEST;
        assert!(is_little, "{what}: {self:?}");
    }
}

/// The longest path that a guest's node can have but for a few names below.
fn parent() -> String {
    "y".repeat(1990)
}

/// As many directories with a child each as a guest may have, below a long path.
fn plant(store: &mut Store) {
    store.ok(0, Kind::SetQuota, "1\0node-size\x005000\0");
    for n in 0..450 {
        store.ok(GUEST, Kind::Mkdir, &format!("{}/{n:x}/c\0", parent()));
    }
}

/// From now on guests may not grow; what they ask for is as it would be above the reserve.
fn run_short(store: &mut Store) {
    store
        .server
        .handle_memory(Instant(0), 9 << 20, 100 << 20, u64::MAX);
}

/// There is one heap, so that one test at a time can meter it.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn what_requests_take_when_memory_is_short() {
    let _turn = TURN.lock().unwrap();
    for word in ["tree", "journal"] {
        println!("{word}:");
        let storage = StorageKind::parse(word.as_bytes()).unwrap();
        single_requests(storage);
        removals(storage);
        transactions(storage);
        watchers(storage);
        deaths(storage);
    }
}

/// Each type with the most that a guest can put into it.
fn single_requests(storage: StorageKind) {
    let mut store = Store::kept(storage, 1);
    store.ok(0, Kind::SetQuota, "1\0node-size\x005000\0");
    for n in 0..900 {
        store.ok(GUEST, Kind::Mkdir, &format!("list/{n:x}\0"));
    }
    store.ok(GUEST, Kind::Write, &format!("v\0{}", "x".repeat(2000)));
    store.ok(GUEST, Kind::Watch, "v\0token\0");
    let tx = store.begin(GUEST);
    run_short(&mut store);
    for kind in Kind::ALL {
        let most = [
            "list\0".to_owned(),
            "list\x000\0".to_owned(),
            "v\0".to_owned(),
            format!("v\0{}", "y".repeat(2000)),
            format!("v\0{}", "y".repeat(4094)),
            format!("{}e\0", "d/".repeat(1000)),
            format!("v\0n1\0{}", "r0\0".repeat(1300)),
            format!("{}\0{}\0", "w".repeat(2040), "t".repeat(2000)),
            "\0".repeat(4096),
            "x".repeat(4096),
        ];
        for (at, payload) in most.iter().enumerate() {
            for tx_id in [0, tx] {
                let what = format!("{kind:?} {at} {tx_id}");
                store
                    .meter(*kind, tx_id, payload.as_bytes())
                    .is_little(&what);
            }
        }
    }
}

/// The removal of all that a guest can own, in a transaction and out of it.
fn removals(storage: StorageKind) {
    let mut store = Store::kept(storage, 1);
    plant(&mut store);
    for n in 0..128 {
        store.ok(GUEST, Kind::Watch, &format!("{}/{n:x}/c\0{n}\0", parent()));
    }
    let path = format!("{}\0", parent());
    let tx = store.begin(GUEST);
    run_short(&mut store);
    store
        .meter(Kind::Rm, tx, path.as_bytes())
        .is_little("a removal in a transaction");
    store
        .meter(Kind::TransactionEnd, tx, b"F\0")
        .is_little("its end");
    store
        .meter(Kind::Rm, 0, path.as_bytes())
        .is_little("a removal");
}

/// The largest transactions, merged with what was changed meanwhile.
fn transactions(storage: StorageKind) {
    let mut store = Store::kept(storage, 1);
    store.ok(0, Kind::SetQuota, "1\0node-size\x005000\0");
    let write = |n: usize, size: usize, letter: &str| format!("m/{n}\0{}", letter.repeat(size));
    for (count, size) in [(900, 1), (120, 1900)] {
        for n in 0..count {
            store.ok(GUEST, Kind::Write, &write(n, size, "x"));
        }
        let tx = store.begin(GUEST);
        for n in 0..count {
            let payload = write(n, size, "y");
            assert_eq!(
                store.ask(GUEST, Kind::Write, tx, payload.as_bytes()),
                b"OK\0"
            );
        }
        store.ok(0, Kind::Write, "/t\0x");
        run_short(&mut store);
        let merge = store.meter(Kind::TransactionEnd, tx, b"T\0");
        merge.is_little(&format!("a merge of {count} values of {size} bytes"));
        assert_eq!(
            store
                .ask(
                    GUEST,
                    Kind::Read,
                    0,
                    format!("m/{}\0", count - 1).as_bytes()
                )
                .first(),
            Some(&b'y')
        );
        store
            .server
            .handle_memory(Instant(0), 100 << 20, 100 << 20, u64::MAX);
        store.ok(GUEST, Kind::Rm, "m\0");
    }
}

/// Forty guests with all the watches that they may have, on one node and below another.
fn watchers(storage: StorageKind) {
    let mut store = Store::kept(storage, 40);
    store.ok(GUEST, Kind::Mkdir, "top/below\0");
    store.ok(GUEST, Kind::SetPerms, "top\0r1\0");
    store.ok(GUEST, Kind::SetPerms, "top/below\0r1\0");
    for guest in 1..=40 {
        for n in 0..64 {
            store.ok(guest, Kind::Watch, &format!("/local/domain/1/top\0{n}\0"));
            store.ok(
                guest,
                Kind::Watch,
                &format!("/local/domain/1/top/below\0{n}\0"),
            );
        }
    }
    run_short(&mut store);
    store
        .meter(Kind::Write, 0, b"top\0")
        .is_little("a change that 2560 watches hear");
    store
        .meter(Kind::Rm, 0, b"top\0")
        .is_little("a removal that 5120 watches hear");
}

/// Guests with as many nodes as they may have, in a domain of 8 MiB (docs/memory.md).
const SMALL_GUESTS: u16 = 20;
const SMALL_NODES: usize = 1000;
/// Bytes of the heap that the image has there, less 60 KiB for what is not the store's: rings, tables, the console.
const SMALL_HEAP: usize = 4420 * 1024;
/// Bytes that writing the state may take in all, half of what there is for it after a crash, when nothing can be given back: it may be
/// written twice, the first time to count.
const SMALL_EXPORT: usize = 450 * 1024;
/// Bytes of the room for the state.
const SMALL_ROOM: u64 = 1011 * 1024;

/// Twenty thousand nodes are there, and memory is not scarce yet.
#[test]
fn twenty_guests_have_a_thousand_nodes_each_in_8_mib() {
    let _turn = TURN.lock().unwrap();
    for (what, name) in [
        (
            "in one directory",
            (|n| format!("many/{n}")) as fn(usize) -> String,
        ),
        ("ten in each", |n| format!("{}/{}", n / 9, n % 9)),
    ] {
        let before = HEAP.usage();
        let mut store = Store::new(SMALL_GUESTS + 1);
        for guest in 1..=SMALL_GUESTS {
            store.ok(0, Kind::SetQuota, &format!("{guest}\0node-size\x005000\0"));
            while_allowed(&mut store, guest, name);
            for n in 0..8 {
                store.ok(guest, Kind::Watch, &format!("many/{n}\0token\0"));
            }
            store.read(guest);
        }
        let taken = HEAP.usage().reserved - before.used;
        HEAP.start();
        let mut size = Size::default();
        let links = |_| HostLink::default();
        store
            .server
            .export_after_crash(Instant(0), &links, None, &mut size);
        let export = HEAP.taken();
        assert!(export < SMALL_EXPORT, "{export}");
        let estimate = store.server.stream_estimate();
        let per_node = (HEAP.usage().used - before.used) / 20_000;
        let size = size.0;
        println!(
            "{what}: {taken} bytes taken, {per_node} a node; {size} of stream, {estimate} estimated; writing it takes {export}"
        );
        let (free, total) = (SMALL_HEAP - taken, SMALL_HEAP);
        let [free, total] = [free, total].map(|bytes| u64::try_from(bytes).unwrap());
        store
            .server
            .handle_memory(Instant(0), free, total, SMALL_ROOM);
        // Only where there is plenty may one grow that has so much.
        store.ok(
            1,
            Kind::Write,
            &format!("{}\0value-that-is-longer", name(1)),
        );
    }
}

/// A guest writes nodes until its quota ends it.
fn while_allowed(store: &mut Store, guest: u16, name: fn(usize) -> String) {
    for n in 0..SMALL_NODES {
        let payload = format!("{}\0value-{n}", name(n));
        let answer = store.ask(guest, Kind::Write, 0, payload.as_bytes());
        if answer != b"OK\0" {
            assert_eq!(answer, b"ENOSPC\0");
            return;
        }
    }
}

/// What a request needed is free when its reply waits, but for the reply.
#[test]
fn xsa_416_a_request_keeps_no_memory_while_its_reply_waits() {
    let _turn = TURN.lock().unwrap();
    let mut store = Store::new(20);
    for guest in 1..=20 {
        store.ok(guest, Kind::Write, &format!("a\0{}", "x".repeat(2000)));
    }
    let before = HEAP.usage().used;
    for guest in 1..=20 {
        for _ in 0..20 {
            store.send(
                guest,
                Kind::Write,
                0,
                format!("a\0{}", "y".repeat(2000)).as_bytes(),
            );
        }
    }
    let kept = HEAP.usage().used.saturating_sub(before) / 400;
    println!("each of 400 requests whose replies wait keeps {kept} bytes");
    assert!(kept < 512, "{kept}");
}

/// After many lives at full quotas memory is as it was.
fn deaths(storage: StorageKind) {
    let mut store = Store::kept(storage, 1);
    let mut used = Vec::new();
    for life in 0..20 {
        let next = Identity {
            unique: UniqueId(100 + life),
            ..identity(GUEST)
        };
        let dead = Identity {
            unique: UniqueId(99 + life),
            ..identity(GUEST)
        };
        let dead = if life == 0 { identity(GUEST) } else { dead };
        plant(&mut store);
        for n in 0..128 {
            store.ok(GUEST, Kind::Watch, &format!("a\0{n}\0"));
        }
        store.begin(GUEST);
        store
            .server
            .handle_domains(&[DomainEvent::Dead(dead)], u32::MAX, false);
        store.conns[usize::from(GUEST)] = store.server.open_domain(next);
        store.ok(0, Kind::Mkdir, "/local/domain/1\0");
        store.ok(0, Kind::SetPerms, "/local/domain/1\0n1\0");
        used.push(HEAP.usage().used);
    }
    println!("in use after each life: {used:?}");
    let grown = used[19].saturating_sub(used[2]);
    assert!(grown < 2048, "{used:?}");
}
