//! The store crashes at every place within a request where it can, for every type of request that changes something: what is left is as it
//! was before the request, or as it is after it, and all who had to hear of it hear once. So it is however nodes are kept, and a journal has
//! what was changed, once.
#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that goes wrong here should stop at once"
)]

#[expect(dead_code, reason = "other tests need more of it")]
mod store;

use std::panic::{AssertUnwindSafe, catch_unwind};

use store::{Store, settings};
use xenstore::state::HostLink;
use xenstore::wire::{HEADER_SIZE, Header, Kind};
use xenstore::{ConnId, Instant, Nesting, Server, Settings, StorageKind, faults};

/// Who asks, who hears of it besides domain 0, and another.
const GUEST: u16 = 1;
const WATCHER: u16 = 2;
const OTHER: u16 = 3;
/// More places than this no request has.
const PLACES_MAX: u64 = 4000;

/// A request, with what is there before.
struct Case {
    name: &'static str,
    prepare: fn(&mut Store) -> u32,
    domain: u16,
    kind: Kind,
    payload: String,
}

fn nothing(_: &mut Store) -> u32 {
    0
}

/// Something of another one to be removed, too, and estates that lie in each other.
fn a_tree(store: &mut Store) -> u32 {
    for n in 0..6 {
        store.ok(GUEST, Kind::Write, &format!("a/b/{n}/c\0value"));
    }
    store.ok(0, Kind::Mkdir, "/local/domain/1/a/b/3/theirs\0");
    store.ok(
        0,
        Kind::SetPerms,
        "/local/domain/1/a/b/3/theirs\0n3\0r2\0r0\0",
    );
    store.ok(GUEST, Kind::Write, "/shared/x\0value");
    store.ok(GUEST, Kind::Write, "/shared/y/z\0value");
    store.ok(0, Kind::SetPerms, "/local/domain/1/a\0n1\0r2\0");
    store.ok(0, Kind::SetPerms, "/local/domain/1/a/b/3\0n1\0r2\0");
    store.ok(WATCHER, Kind::Watch, "/local/domain/1/a/b/3/theirs\0t\0");
    store.ok(WATCHER, Kind::Watch, "/local/domain/1/a\0t\0");
    0
}

/// As many children as are kept in a list.
fn many_children(store: &mut Store) -> u32 {
    for n in 0..16 {
        store.ok(GUEST, Kind::Mkdir, &format!("/shared/{n}\0"));
    }
    0
}

fn a_transaction(store: &mut Store) -> u32 {
    a_tree(store);
    let tx = store.begin(GUEST);
    for (kind, payload) in [
        (Kind::Write, "/shared/x\0other"),
        (Kind::Write, "/shared/new/deep\0value"),
        (Kind::Rm, "/shared/y\0"),
        (Kind::Rm, "a/b\0"),
        (Kind::SetPerms, "a\0n1\0r2\0r3\0"),
    ] {
        let answer = store.ask(GUEST, kind, tx, payload.as_bytes());
        assert_eq!(answer, b"OK\0");
    }
    tx
}

fn a_merge(store: &mut Store) -> u32 {
    let tx = a_transaction(store);
    store.ok(OTHER, Kind::Write, "/shared/beside\0x");
    tx
}

/// A wall between two of what is shared; the guest has not chosen yet.
fn a_wall(store: &mut Store) -> u32 {
    for path in ["/shared/x", "/shared/y"] {
        store.ok(0, Kind::Mkdir, &format!("{path}\0"));
        store.ok(0, Kind::SetPerms, &format!("{path}\0b0\0"));
    }
    let classes = "c=/shared/x+/shared/y,d=/shared/x+/shared/z";
    let set = format!("policy\0set\0legacy,chinese_wall:{classes}\0");
    store.ok(0, Kind::Control, &set);
    0
}

/// Resources that a guest holds and others wait for, or are to take over.
fn leases(store: &mut Store) -> u32 {
    store.ok(0, Kind::Control, "policy\0set\0legacy,lease\0");
    for resource in ["/lease/d/x", "/lease/d/y"] {
        for (path, value) in [("", "exclusive"), ("/holder/1", "exclusive")] {
            store.ok(0, Kind::Write, &format!("{resource}{path}\0{value}"));
        }
    }
    store.ok(0, Kind::Write, "/lease/d/x/wait/2\0exclusive");
    store.ok(0, Kind::Write, "/lease/d/x/wait/3\0exclusive");
    store.ok(0, Kind::Write, "/lease/d/y/move/1\x002 60");
    store.ok(0, Kind::Watch, "/lease\0w\0");
    0
}

/// The toolstack gives a lease back, and asks for another one, at once.
fn leases_in_a_transaction(store: &mut Store) -> u32 {
    leases(store);
    let tx = store.begin(0);
    for (kind, payload) in [
        (Kind::Rm, "/lease/d/x/holder/1\0"),
        (Kind::Write, "/lease/d/z\0shared"),
        (Kind::Write, "/lease/d/y/holder/2\0exclusive"),
    ] {
        assert_eq!(store.ask(0, kind, tx, payload.as_bytes()), b"OK\0");
    }
    tx
}

fn cases() -> Vec<Case> {
    let case = |name, prepare, domain, kind, payload: &str| Case {
        name,
        prepare,
        domain,
        kind,
        payload: payload.to_owned(),
    };
    let list = "r0\0".repeat(2);
    vec![
        case("a new node", nothing, GUEST, Kind::Write, "/shared/n\0v"),
        case(
            "a new path",
            nothing,
            GUEST,
            Kind::Mkdir,
            "/shared/n/m/o/p\0",
        ),
        case(
            "the 17th child",
            many_children,
            GUEST,
            Kind::Mkdir,
            "/shared/n\0",
        ),
        case(
            "a value",
            a_tree,
            GUEST,
            Kind::Write,
            "/shared/x\0other value",
        ),
        case(
            "permissions",
            a_tree,
            GUEST,
            Kind::SetPerms,
            &format!("a\0n1\0{list}"),
        ),
        case(
            "another owner",
            a_tree,
            0,
            Kind::SetPerms,
            "/local/domain/1/a\0n3\0r2\0",
        ),
        case(
            "a special name",
            nothing,
            0,
            Kind::SetPerms,
            "@releaseDomain\0n0\0r2\0r3\0",
        ),
        case("a removal", a_tree, GUEST, Kind::Rm, "a\0"),
        case(
            "a removal by the toolstack",
            a_tree,
            0,
            Kind::Rm,
            "/local/domain/1\0",
        ),
        case(
            "a transaction's end",
            a_transaction,
            GUEST,
            Kind::TransactionEnd,
            "T\0",
        ),
        case("a merge", a_merge, GUEST, Kind::TransactionEnd, "T\0"),
        case("no end", a_transaction, GUEST, Kind::TransactionEnd, "F\0"),
        case(
            "a write in a transaction",
            a_transaction,
            GUEST,
            Kind::Write,
            "a/z/y\0v",
        ),
        case(
            "a removal in a transaction",
            a_transaction,
            GUEST,
            Kind::Rm,
            "a\0",
        ),
        case(
            "a transaction",
            nothing,
            GUEST,
            Kind::TransactionStart,
            "\0",
        ),
        case("a watch", nothing, GUEST, Kind::Watch, "a\0token\0"),
        case(
            "a watch less",
            a_tree,
            WATCHER,
            Kind::Unwatch,
            "/local/domain/1/a\0t\0",
        ),
        case("no watches", a_tree, WATCHER, Kind::ResetWatches, ""),
        case("a release", a_tree, 0, Kind::Release, "1\0"),
        case("a target", nothing, 0, Kind::SetTarget, "1\x003\0"),
        case("a quota", nothing, 0, Kind::SetQuota, "3\0nodes\x0077\0"),
        case("quota of all", nothing, 0, Kind::SetQuota, "nodes\x0078\0"),
        case("a resumption", nothing, 0, Kind::Resume, "3\0"),
        case("a reading", a_tree, GUEST, Kind::Read, "/shared/x\0"),
        case("a list", a_tree, GUEST, Kind::Directory, "/shared\0"),
        case("a choice", a_wall, GUEST, Kind::Read, "/shared/x\0"),
        case(
            "a change that is a choice",
            a_wall,
            GUEST,
            Kind::Write,
            "/shared/x/n\0v",
        ),
        case(
            "other policies",
            leases,
            0,
            Kind::Control,
            "policy\0set\0legacy,protocol,lease\0",
        ),
        case(
            "no policies",
            leases,
            0,
            Kind::Control,
            "policy\0set\0legacy\0",
        ),
        case("a layer", nothing, 0, Kind::Control, "layer\0add\0trace\0"),
        case(
            "a lease given back",
            leases,
            0,
            Kind::Rm,
            "/lease/d/x/holder/1\0",
        ),
        case(
            "a place in the line",
            leases,
            0,
            Kind::Write,
            "/lease/d/y/wait/3\0exclusive",
        ),
        case(
            "a takeover",
            leases,
            0,
            Kind::Write,
            "/lease/d/y/holder/2\0exclusive",
        ),
        case("a holder's release", leases, 0, Kind::Release, "1\0"),
        case(
            "leases at a transaction's end",
            leases_in_a_transaction,
            0,
            Kind::TransactionEnd,
            "T\0",
        ),
    ]
}

/// A store in which much is watched, and what the case needs.
fn scene(case: &Case, storage: StorageKind) -> (Store, u32) {
    let mut store = Store::kept(storage, OTHER);
    store.ok(0, Kind::Mkdir, "/shared\0");
    store.ok(0, Kind::SetPerms, "/shared\0b0\0");
    let tx = (case.prepare)(&mut store);
    for (domain, path) in [
        (0, "/"),
        (0, "@releaseDomain"),
        (WATCHER, "/shared"),
        (WATCHER, "@releaseDomain"),
        (OTHER, "/shared/x"),
        (OTHER, "/shared"),
    ] {
        store.ok(domain, Kind::Watch, &format!("{path}\0w\0"));
    }
    for domain in 0..=OTHER {
        store.read(domain);
    }
    (store, tx)
}

/// All that was told to one who watches, without replies.
fn told(store: &mut Store, domain: u16) -> Vec<Vec<u8>> {
    let bytes = store.read(domain);
    let mut rest = &bytes[..];
    let mut events = Vec::new();
    while let Some(header) = rest.first_chunk::<HEADER_SIZE>() {
        let header = Header::decode(*header);
        let end = HEADER_SIZE + usize::try_from(header.len).unwrap();
        if header.kind == Kind::WatchEvent.number() {
            events.push(rest[HEADER_SIZE..end].to_vec());
        }
        rest = &rest[end..];
    }
    events
}

/// All nodes with their values and permissions, and what else the toolstack can see.
fn seen(store: &mut Store) -> Vec<(String, Vec<u8>)> {
    let mut seen = Vec::new();
    let mut open = vec!["/".to_owned()];
    while let Some(path) = open.pop() {
        let payload = format!("{path}\0");
        for kind in [Kind::Read, Kind::GetPerms] {
            let answer = store.ask(0, kind, 0, payload.as_bytes());
            seen.push((path.clone(), answer));
        }
        let names = store.ask(0, Kind::Directory, 0, payload.as_bytes());
        for name in names
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
        {
            let name = String::from_utf8_lossy(name);
            open.push(format!("{}/{name}", path.trim_end_matches('/')));
        }
    }
    for (kind, payload) in [
        (Kind::GetPerms, "@releaseDomain\0"),
        (Kind::IsDomainIntroduced, "1\0"),
        (Kind::GetQuota, "3\0nodes\0"),
        (Kind::GetQuota, "nodes\0"),
        (Kind::Control, "journal\0"),
    ] {
        let answer = store.ask(0, kind, 0, payload.as_bytes());
        seen.push((format!("{kind} {payload}"), answer));
    }
    seen.push(("journal".to_owned(), journal(store)));
    store.read(0);
    seen
}

/// All of the journal, if there is one.
fn journal(store: &mut Store) -> Vec<u8> {
    let mut journal: Vec<u8> = Vec::new();
    loop {
        let payload = format!("journal\0read\0{}\0", journal.len());
        let answer = store.ask(0, Kind::Control, 0, payload.as_bytes());
        let text = answer.strip_suffix(b"\0").unwrap();
        let Some(line) = text.iter().position(|byte| *byte == b'\n') else {
            assert_eq!(text, b"ENOENT");
            return journal;
        };
        let piece = &text[line + 1..];
        if piece.is_empty() {
            return journal;
        }
        journal.extend_from_slice(piece);
    }
}

/// What domains hear, and what is there.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    told: Vec<Vec<Vec<u8>>>,
    seen: Vec<(String, Vec<u8>)>,
}

impl Outcome {
    /// What others than the one who asked find.
    fn of(store: &mut Store, asker: u16) -> Self {
        let hears = |domain: &u16| *domain == 0 || *domain != asker;
        let domains: Vec<u16> = (0..=OTHER).filter(hears).collect();
        Self {
            told: domains.iter().map(|domain| told(store, *domain)).collect(),
            seen: seen(store),
        }
    }
}

/// Makes another store of what a crash left.
fn go_on(store: &mut Store, settings: Settings) {
    let mut stream = Vec::new();
    let host = |_: ConnId| HostLink::default();
    store
        .server
        .export_after_crash(Instant(0), &host, None, &mut stream);
    let restored = Server::import(&stream, settings, Instant(0)).unwrap();
    // What crashed is not taken apart: nothing in it need be whole.
    std::mem::forget(std::mem::replace(&mut store.server, restored.server));
    let nobodys = store.server.open_socket();
    store.server.close_socket(nobodys);
    store.conns.fill(nobodys);
    for link in restored.links {
        store.conns[usize::from(link.domid.unwrap().get())] = link.conn;
    }
}

/// Crashes at one place; `None` if the request has none with this number.
fn crash(case: &Case, storage: StorageKind, place: u64) -> Option<(Store, bool)> {
    let (mut store, tx) = scene(case, storage);
    faults::crash_at(Some(place));
    let run = || store.send(case.domain, case.kind, tx, case.payload.as_bytes());
    let crashed = catch_unwind(AssertUnwindSafe(run));
    faults::crash_at(None);
    let error = crashed.err()?;
    assert!(error.is::<faults::Crash>(), "{}: another panic", case.name);
    let is_done = store.server.complete_after_crash().did_change;
    go_on(&mut store, settings(storage));
    Some((store, is_done))
}

#[test]
fn a_crash_at_any_place_leaves_all_of_a_request_or_nothing() {
    everywhere(StorageKind::default());
}

#[test]
fn so_it_does_over_a_flat_map() {
    everywhere(StorageKind::parse(b"flat").unwrap());
}

#[test]
fn a_journal_has_what_a_crash_left_and_nothing_twice() {
    everywhere(StorageKind::parse(b"journal").unwrap());
    everywhere(StorageKind::parse(b"journal:flat").unwrap());
}

fn everywhere(storage: StorageKind) {
    let mut places = 0;
    for case in cases() {
        let (mut store, tx) = scene(&case, storage);
        let before = Outcome::of(&mut store, case.domain);
        store.send(case.domain, case.kind, tx, case.payload.as_bytes());
        let after = Outcome::of(&mut store, case.domain);
        let mut done = [0, 0];
        for place in 0..PLACES_MAX {
            let Some((mut store, is_done)) = crash(&case, storage, place) else {
                break;
            };
            let what = format!("{} crashes at {place}, done: {is_done}", case.name);
            assert_eq!(store.server.audit(), Ok(()), "{what}");
            let left = Outcome::of(&mut store, case.domain);
            let expected = if is_done { &after } else { &before };
            assert_eq!(left.told, expected.told, "{what}");
            assert_eq!(left.seen, expected.seen, "{what}");
            store.ok(OTHER, Kind::Write, "/shared/goes-on\0value");
            store.ok(0, Kind::Write, "/shared/goes-on\0value");
            assert_eq!(store.server.audit(), Ok(()), "{what}");
            done[usize::from(is_done)] += 1;
        }
        println!(
            "{:30} {:3} places before it counts, {:3} after",
            case.name, done[0], done[1]
        );
        assert!(done[0] > 0, "{}", case.name);
        places += done[0] + done[1];
    }
    assert!(places > 200, "{places} places");
}

/// Transactions may be inside others.
fn nesting() -> Settings {
    let mut settings = settings(StorageKind::default());
    (settings.features, settings.grantable) = Nesting::Nested.features();
    settings
}

#[test]
fn a_crash_in_a_transaction_gives_up_the_outermost_and_ends_all_inside() {
    let mut crashes = 0;
    for (kind, payload) in [
        (Kind::Write, "/shared/n\0v"),
        (Kind::TransactionStart, "\0"),
        (Kind::TransactionEnd, "T\0"),
        (Kind::TransactionEnd, "F\0"),
    ] {
        for place in 0..PLACES_MAX {
            let mut store = Store::with_settings(OTHER, nesting());
            let outermost = store.begin(0);
            let middle = store.begin_inside(0, outermost);
            let [own, beside] = [middle, middle].map(|outer| store.begin_inside(0, outer));
            let apart = store.begin(0);
            let ask = |store: &mut Store, tx| store.ask(0, Kind::Write, tx, b"/t\0value");
            for tx in [outermost, own, apart] {
                assert_eq!(ask(&mut store, tx), b"OK\0");
            }
            faults::crash_at(Some(place));
            let run = || store.send(0, kind, own, payload.as_bytes());
            let crashed = catch_unwind(AssertUnwindSafe(run));
            faults::crash_at(None);
            if crashed.is_ok() {
                break;
            }
            store.server.complete_after_crash();
            go_on(&mut store, nesting());
            store.read(0);
            let left = [outermost, middle, own, beside, apart].map(|tx| ask(&mut store, tx));
            let expected: [&[u8]; 5] =
                [b"EAGAIN\0", b"ENOENT\0", b"ENOENT\0", b"ENOENT\0", b"OK\0"];
            assert_eq!(left, expected, "{kind} crashes at {place}");
            assert_eq!(store.server.audit(), Ok(()));
            crashes += 1;
        }
    }
    assert!(crashes > 10, "{crashes} crashes");
}
