//! What is done, beside how much of what. Requests are done a few times, so that no single rounding decides.

use xenstore::DomainEvent;
use xenstore::wire::Kind;

use crate::store::{Store, identity};

/// The guest that works, and one that hears.
const GUEST: u16 = 1;
const OTHER: u16 = 2;

/// Something that may cost twice as much when there is twice as much.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) size: usize,
    /// What grows is not what is worked on.
    pub(crate) is_beside: bool,
    pub(crate) prepare: fn(usize) -> Measured,
}

/// A store that is ready, and what is to be counted.
pub(crate) struct Measured {
    store: Store,
    deeds: Vec<Deed>,
}

enum Deed {
    Ask(u16, Kind, u32, Vec<u8>),
    Read(u16),
    Die(u16),
}

impl Measured {
    pub(crate) fn run(&mut self) {
        for deed in &self.deeds {
            match deed {
                Deed::Ask(domain, kind, tx_id, payload) => {
                    self.store.send(*domain, *kind, *tx_id, payload);
                }
                Deed::Read(domain) => drop(self.store.read(*domain)),
                Deed::Die(domain) => {
                    let dead = DomainEvent::Dead(identity(*domain));
                    self.store.server.handle_domains(&[dead], u32::MAX, false);
                }
            }
        }
    }
}

/// A store without limits, with two guests of which the second may read all of the first.
fn open() -> Store {
    let mut store = Store::new(2);
    for quota in [
        "nodes",
        "watches",
        "transactions",
        "transaction-nodes",
        "node-permissions",
        "node-size",
        "path-max",
        "memory",
        "outstanding",
    ] {
        store.ok(0, Kind::SetQuota, &format!("{quota}\x000\0"));
    }
    store.ok(0, Kind::SetPerms, "/local/domain/1\0n1\0r2\0");
    store
}

fn ask(kind: Kind, payload: &str) -> Deed {
    Deed::Ask(GUEST, kind, 0, payload.as_bytes().to_vec())
}

/// Eight times the same with another number in place of `#`, each answer read at once.
fn eight(kind: Kind, payload: &str) -> Vec<Deed> {
    each(8, |n| ask(kind, &payload.replace('#', &n.to_string())))
}

fn each(count: usize, deed: impl Fn(usize) -> Deed) -> Vec<Deed> {
    (0..count)
        .flat_map(|n| [deed(n), Deed::Read(GUEST)])
        .collect()
}

fn small_requests() -> Vec<Deed> {
    let mut deeds = Vec::new();
    for (kind, payload) in [
        (Kind::Mkdir, "new#\0"),
        (Kind::Write, "new#\0value"),
        (Kind::Read, "new#\0"),
        (Kind::Directory, "new#\0"),
        (Kind::SetPerms, "new#\0n1\0r0\0"),
        (Kind::GetPerms, "new#\0"),
        (Kind::Watch, "new#\0token\0"),
        (Kind::Unwatch, "new#\0token\0"),
        (Kind::TransactionStart, "\0"),
        (Kind::Rm, "new#\0"),
        (Kind::GetDomainPath, "#\0"),
        (Kind::Read, "none#\0"),
    ] {
        deeds.extend(eight(kind, payload));
    }
    deeds
}

fn fill(store: &mut Store, count: usize, kind: Kind, payload: &str) {
    for n in 0..count {
        store.ok(GUEST, kind, &payload.replace('#', &n.to_string()));
    }
}

fn after(fill_in: impl FnOnce(&mut Store), deeds: Vec<Deed>) -> Measured {
    let mut store = open();
    fill_in(&mut store);
    Measured { store, deeds }
}

/// A path of so many names.
fn deep(names: usize) -> String {
    vec!["d"; names].join("/")
}

/// All of them.
pub(crate) const ALL: &[Workload] = &[
    Workload {
        name: "all small requests; own nodes",
        size: 700,
        is_beside: true,
        prepare: |n| {
            after(
                |store| fill(store, n, Kind::Mkdir, "dir/#/leaf\0"),
                small_requests(),
            )
        },
    },
    Workload {
        name: "all small requests; own watches elsewhere",
        size: 700,
        is_beside: true,
        prepare: |n| {
            after(
                |store| fill(store, n, Kind::Watch, "w/#\0token\0"),
                small_requests(),
            )
        },
    },
    Workload {
        name: "all small requests; open transactions",
        size: 70,
        is_beside: true,
        prepare: |n| {
            after(
                |store| {
                    for _ in 0..n {
                        store.begin(GUEST);
                    }
                },
                small_requests(),
            )
        },
    },
    Workload {
        name: "all small requests; children of the directory",
        size: 700,
        is_beside: true,
        prepare: |n| after(|store| fill(store, n, Kind::Mkdir, "#\0"), small_requests()),
    },
    Workload {
        name: "all small requests; events that the other has not read",
        size: 300,
        is_beside: true,
        prepare: |n| {
            after(
                |store| {
                    store.ok(OTHER, Kind::Watch, "/local/domain/1\0token\0");
                    fill(store, n, Kind::Mkdir, "e#\0");
                },
                small_requests(),
            )
        },
    },
    Workload {
        name: "WRITE, READ; length of the value",
        size: 1900,
        is_beside: false,
        prepare: |n| {
            let value = "x".repeat(n);
            let mut deeds = eight(Kind::Write, &format!("v#\0{value}"));
            deeds.extend(eight(Kind::Read, "v#\0"));
            after(|_| {}, deeds)
        },
    },
    Workload {
        name: "a payload of NULs; its length",
        size: 2000,
        is_beside: false,
        prepare: |n| {
            let nuls = "\0".repeat(n);
            let kinds = Kind::ALL.iter();
            after(|_| {}, kinds.flat_map(|kind| eight(*kind, &nuls)).collect())
        },
    },
    Workload {
        name: "a payload without a NUL; its length",
        size: 2000,
        is_beside: false,
        prepare: |n| {
            let text = "x".repeat(n);
            let kinds = Kind::ALL.iter();
            after(|_| {}, kinds.flat_map(|kind| eight(*kind, &text)).collect())
        },
    },
    Workload {
        name: "SET_PERMS, GET_PERMS; permissions",
        size: 300,
        is_beside: false,
        prepare: |n| {
            let list = "r0\0".repeat(n);
            let mut deeds = eight(Kind::SetPerms, &format!("p\0n1\0{list}"));
            deeds.extend(eight(Kind::GetPerms, "p\0"));
            after(|store| store.ok(GUEST, Kind::Mkdir, "p\0"), deeds)
        },
    },
    Workload {
        name: "READ by the last one listed; permissions",
        size: 300,
        is_beside: false,
        prepare: |n| {
            let list = "r0\0".repeat(n);
            after(
                |store| {
                    store.ok(GUEST, Kind::Mkdir, "p\0");
                    store.ok(GUEST, Kind::SetPerms, &format!("p\0n1\0{list}r2\0"));
                },
                each(8, |_| {
                    Deed::Ask(OTHER, Kind::Read, 0, b"/local/domain/1/p\0".to_vec())
                }),
            )
        },
    },
    Workload {
        name: "DIRECTORY; children",
        size: 300,
        is_beside: false,
        prepare: |n| {
            after(
                |store| fill(store, n, Kind::Mkdir, "l/#\0"),
                eight(Kind::Directory, "l\0"),
            )
        },
    },
    Workload {
        name: "DIRECTORY_PART at the end; children",
        size: 3000,
        is_beside: true,
        prepare: |n| {
            let last = (0..n).map(|n| n.to_string().len() + 1).sum::<usize>() - 5;
            let payload = format!("l\0{last}\0");
            after(
                |store| fill(store, n, Kind::Mkdir, "l/#\0"),
                eight(Kind::DirectoryPart, &payload),
            )
        },
    },
    Workload {
        name: "MKDIR and RM of a path; its names",
        size: 400,
        is_beside: false,
        prepare: |n| {
            let path = deep(n);
            after(
                |_| {},
                vec![ask(Kind::Mkdir, &format!("{path}\0")), ask(Kind::Rm, "d\0")],
            )
        },
    },
    Workload {
        name: "WRITE, READ, SET_PERMS; depth",
        size: 400,
        is_beside: false,
        prepare: |n| {
            let path = deep(n);
            let mut deeds = eight(Kind::Write, &format!("{path}\0x"));
            deeds.extend(eight(Kind::Read, &format!("{path}\0")));
            deeds.extend(eight(Kind::SetPerms, &format!("{path}\0n1\0")));
            after(
                |store| store.ok(GUEST, Kind::Mkdir, &format!("{path}\0")),
                deeds,
            )
        },
    },
    Workload {
        name: "WATCH and UNWATCH; depth",
        size: 400,
        is_beside: false,
        prepare: |n| {
            let path = deep(n);
            let mut deeds = eight(Kind::Watch, &format!("{path}\0#\0"));
            deeds.extend(eight(Kind::Unwatch, &format!("{path}\0#\0")));
            after(|_| {}, deeds)
        },
    },
    Workload {
        name: "WRITE below watches at each level; depth",
        size: 100,
        is_beside: false,
        prepare: |n| {
            let path = deep(n);
            after(
                |store| {
                    store.ok(GUEST, Kind::Mkdir, &format!("{path}\0"));
                    for level in 1..=n {
                        store.ok(
                            OTHER,
                            Kind::Watch,
                            &format!("/local/domain/1/{}\0t\0", deep(level)),
                        );
                    }
                },
                eight(Kind::Write, &format!("{path}\0x")),
            )
        },
    },
    Workload {
        name: "WRITE; watches on the node",
        size: 300,
        is_beside: false,
        prepare: |n| {
            after(
                |store| {
                    store.ok(GUEST, Kind::Mkdir, "w\0");
                    fill(store, n, Kind::Watch, "w\0#\0");
                },
                eight(Kind::Write, "w\0x"),
            )
        },
    },
    Workload {
        name: "RM; nodes below",
        size: 700,
        is_beside: false,
        prepare: |n| {
            after(
                |store| fill(store, n, Kind::Mkdir, "dir/#/leaf\0"),
                vec![ask(Kind::Rm, "dir\0")],
            )
        },
    },
    Workload {
        name: "RM; watches below",
        size: 300,
        is_beside: false,
        prepare: |n| {
            after(
                |store| {
                    fill(store, 600, Kind::Mkdir, "dir/#/leaf\0");
                    fill(store, n, Kind::Watch, "dir/#/leaf\0t\0");
                },
                vec![ask(Kind::Rm, "dir\0"), Deed::Read(GUEST)],
            )
        },
    },
    Workload {
        name: "RESET_WATCHES; watches",
        size: 700,
        is_beside: false,
        prepare: |n| {
            after(
                |store| fill(store, n, Kind::Watch, "w/#\0token\0"),
                vec![ask(Kind::ResetWatches, "")],
            )
        },
    },
    Workload {
        name: "UNWATCH; own events that wait",
        size: 300,
        is_beside: false,
        prepare: |n| {
            after(
                |store| {
                    store.ok(GUEST, Kind::Watch, "/local/domain/1\0token\0");
                    for n in 0..n {
                        let payload = format!("/local/domain/1/e{n}\0");
                        store.ok(0, Kind::Mkdir, &payload);
                    }
                },
                vec![ask(Kind::Unwatch, "/local/domain/1\0token\0")],
            )
        },
    },
    Workload {
        name: "one more request in a transaction; requests in it",
        size: 300,
        is_beside: true,
        prepare: |n| {
            let mut store = open();
            let tx = store.begin(GUEST);
            for n in 0..n {
                store.ask(GUEST, Kind::Write, tx, format!("t{n}\0x").as_bytes());
            }
            let deeds = each(8, |n| {
                Deed::Ask(GUEST, Kind::Write, tx, format!("u{n}\0x").into_bytes())
            });
            Measured { store, deeds }
        },
    },
    Workload {
        name: "the end of a transaction; requests in it",
        size: 300,
        is_beside: false,
        prepare: |n| transaction(n, false),
    },
    Workload {
        name: "the end of a transaction that is merged; requests in it",
        size: 300,
        is_beside: false,
        prepare: |n| transaction(n, true),
    },
    Workload {
        name: "a death; nodes of the dead in one place",
        size: 700,
        is_beside: false,
        prepare: |n| {
            after(
                |store| fill(store, n, Kind::Mkdir, "dir/#/leaf\0"),
                vec![Deed::Die(GUEST)],
            )
        },
    },
    Workload {
        name: "a death; nodes of the dead in another's directory",
        size: 700,
        is_beside: false,
        prepare: |n| {
            after(
                |store| {
                    store.ok(0, Kind::Mkdir, "/t\0");
                    store.ok(0, Kind::SetPerms, "/t\0b0\0");
                    fill(store, n, Kind::Mkdir, "/t/#\0");
                },
                vec![Deed::Die(GUEST)],
            )
        },
    },
    Workload {
        name: "a death; watches of the dead",
        size: 700,
        is_beside: false,
        prepare: |n| {
            after(
                |store| fill(store, n, Kind::Watch, "w/#\0token\0"),
                vec![Deed::Die(GUEST)],
            )
        },
    },
];

/// The end of a transaction with so many writes, after another change or none.
fn transaction(requests: usize, is_merged: bool) -> Measured {
    let mut store = open();
    let tx = store.begin(GUEST);
    for n in 0..requests {
        store.ask(GUEST, Kind::Write, tx, format!("t{n}\0x").as_bytes());
    }
    if is_merged {
        store.ok(0, Kind::Write, "/t\0x");
    }
    let deeds = vec![Deed::Ask(GUEST, Kind::TransactionEnd, tx, b"T\0".to_vec())];
    Measured { store, deeds }
}
