//! What transcripts cannot show of leases: whom a refusal names, the limits, and another instance of the server.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use core::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;

use super::space::{
    HOLDER, Inquiry, MOVE, Mode, Move, RESOURCES_MAX, Refused, SPACES_MAX, USERS_MAX, WAIT, inquire,
};
use super::{Ties, acquire, give_back, stand_in_line};
use crate::ids::{ConnId, DomId, Identity, UniqueId};
use crate::policy;
use crate::server::{DomainEvent, Server, Settings};
use crate::state::{Format, HostLink};
use crate::storage::AnyStorage;
use crate::time::Instant;
use crate::wire::{Errno, HEADER_SIZE, Header, Kind};

const DOM0: DomId = DomId::new(0);

fn settings() -> Settings {
    let mut settings = Settings::new(DOM0, DomId::new(31));
    settings.policies = policy::Choice::parse(b"legacy,lease").unwrap();
    settings
}

fn identity(domid: u16) -> Identity {
    Identity {
        domid: DomId::new(domid),
        unique: UniqueId(u128::from(domid) + 100),
    }
}

struct Host {
    server: Server,
    dom0: ConnId,
}

impl Host {
    /// A store with domain 0 and so many guests.
    fn new(guests: u16) -> Self {
        let mut server = Server::new(settings());
        let dom0 = server.open_domain(identity(0));
        for domid in 1..=guests {
            server.open_domain(identity(domid));
        }
        Self { server, dom0 }
    }

    fn ask(&mut self, kind: Kind, payload: &[u8]) -> Result<(), Errno> {
        self.ask_in(0, kind, payload)
    }

    fn ask_in(&mut self, tx_id: u32, kind: Kind, payload: &[u8]) -> Result<(), Errno> {
        let header = Header {
            kind: kind.number(),
            tx_id,
            len: u32::try_from(payload.len()).unwrap(),
            ..Header::default()
        };
        let bytes = [&header.encode()[..], payload].concat();
        self.server.handle_bytes(self.dom0, &bytes).unwrap();
        self.server.run(self.server.now, 1000);
        let reply = self.server.poll_message(self.dom0).concat();
        self.server.consume_output(self.dom0, reply.len());
        let (header, payload) = reply.split_first_chunk::<HEADER_SIZE>().unwrap();
        if Header::decode(*header).kind != Kind::Error.number() {
            return Ok(());
        }
        let name = String::from_utf8_lossy(payload);
        let name = name.trim_end_matches('\0');
        let errno = Errno::ALL.iter().find(|errno| errno.name() == name);
        Err(*errno.unwrap())
    }

    fn write(&mut self, path: &str, value: &str) -> Result<(), Errno> {
        self.ask(Kind::Write, format!("{path}\0{value}").as_bytes())
    }

    fn state(&self, resource: &str) -> Inquiry {
        inquire(&self.server.store.nodes, resource).unwrap()
    }

    fn dies(&mut self, domid: u16) {
        let dead = DomainEvent::Dead(identity(domid));
        self.server.handle_domains(&[dead], u32::MAX, false);
    }

    /// Another instance takes over.
    fn replaced(self) -> Self {
        let mut stream = Vec::new();
        let links = |_| HostLink::default();
        let now = self.server.now;
        self.server.export(Format::Own, now, &links, &mut stream);
        let restored = Server::<AnyStorage>::import(&stream, settings(), now).unwrap();
        let mut links = restored.links.iter();
        let dom0 = links.find(|link| link.domid == Some(DOM0)).unwrap().conn;
        let server = restored.server;
        Self { server, dom0 }
    }
}

#[test]
fn a_refusal_names_who_is_in_the_way() {
    let [one, two, three] = [1, 2, 3].map(DomId::new);
    let mut state = Inquiry {
        modes: vec![Mode::Exclusive, Mode::Shared],
        holders: vec![(one, Mode::Shared), (two, Mode::Shared)],
        waiters: vec![],
        moves: vec![],
    };
    assert_eq!(acquire(&state, three, Mode::Shared), Ok(()));
    assert_eq!(
        acquire(&state, three, Mode::Exclusive),
        Err(Refused::Conflict(one))
    );
    assert_eq!(
        acquire(&state, one, Mode::Exclusive),
        Err(Refused::Conflict(two))
    );
    assert_eq!(give_back(&state, three), Err(Refused::NotHeld));
    state.waiters.push((three, Mode::Exclusive));
    assert_eq!(
        acquire(&state, DomId::new(4), Mode::Shared),
        Err(Refused::Conflict(one))
    );
    state.moves.push(Move {
        from: one,
        to: DomId::new(5),
        seconds: 1,
    });
    assert_eq!(
        acquire(&state, three, Mode::Exclusive),
        Err(Refused::Migrating(one))
    );
    assert_eq!(give_back(&state, one), Err(Refused::Migrating(one)));
    assert_eq!(
        stand_in_line(&state, one, Mode::Shared),
        Err(Refused::Migrating(one))
    );
}

#[test]
fn there_are_no_more_spaces_resources_and_holders_than_there_may_be() {
    let users = u16::try_from(USERS_MAX).unwrap();
    let mut host = Host::new(users + 2);
    for number in 0..RESOURCES_MAX {
        host.write(&format!("/lease/disk/r{number}"), "shared")
            .unwrap();
    }
    assert_eq!(
        host.write("/lease/disk/one-more", "shared"),
        Err(Errno::ENOSPC)
    );
    for number in 1..SPACES_MAX {
        host.ask(Kind::Mkdir, format!("/lease/s{number}\0").as_bytes())
            .unwrap();
    }
    assert_eq!(
        host.ask(Kind::Mkdir, b"/lease/one-more\0"),
        Err(Errno::ENOSPC)
    );
    assert_eq!(
        host.write("/lease/one-more/r", "shared"),
        Err(Errno::ENOSPC)
    );
    for domid in 1..=users {
        host.write(&format!("/lease/disk/r0/holder/{domid}"), "shared")
            .unwrap();
    }
    let last = users + 1;
    assert_eq!(
        host.write(&format!("/lease/disk/r0/holder/{last}"), "shared"),
        Err(Errno::ENOSPC)
    );
    assert_eq!(
        host.write(&format!("/lease/disk/r0/wait/{last}"), "shared"),
        Err(Errno::ENOSPC)
    );
    assert_eq!(host.state("/lease/disk/r0").holders.len(), USERS_MAX);
    host.dies(1);
    assert_eq!(
        host.write(&format!("/lease/disk/r0/holder/{last}"), "shared"),
        Ok(())
    );
}

#[test]
fn another_instance_knows_who_holds_what_and_releases_it() {
    let mut host = Host::new(3);
    host.write("/lease/disk/x", "exclusive").unwrap();
    host.write("/lease/disk/y", "exclusive").unwrap();
    host.write("/lease/disk/x/holder/1", "exclusive").unwrap();
    host.write("/lease/disk/x/wait/2", "exclusive").unwrap();
    host.write("/lease/disk/y/holder/1", "exclusive").unwrap();
    host.write("/lease/disk/y/move/1", "3 10").unwrap();
    let before = (host.state("/lease/disk/x"), host.state("/lease/disk/y"));
    let mut host = host.replaced();
    assert_eq!(
        (host.state("/lease/disk/x"), host.state("/lease/disk/y")),
        before
    );
    assert_eq!(
        host.write("/lease/disk/x/holder/2", "exclusive"),
        Err(Errno::EBUSY)
    );
    assert_eq!(host.server.policies_due(), Some(Instant(10_000_000_000)));
    host.dies(1);
    assert_eq!(
        host.state("/lease/disk/x").holders,
        [(DomId::new(2), Mode::Exclusive)]
    );
    assert_eq!(host.state("/lease/disk/y").holders, []);
    assert_eq!(host.state("/lease/disk/y").moves, []);
}

#[test]
fn a_deadline_is_kept_by_the_next_instance() {
    let mut host = Host::new(2);
    host.write("/lease/disk/x", "exclusive").unwrap();
    host.write("/lease/disk/x/holder/1", "exclusive").unwrap();
    host.write("/lease/disk/x/move/1", "2 10").unwrap();
    let mut host = host.replaced();
    host.server.handle_timeout(Instant(9_999_999_999));
    assert_eq!(host.state("/lease/disk/x").moves.len(), 1);
    host.server.handle_timeout(Instant(10_000_000_000));
    assert_eq!(host.state("/lease/disk/x").moves, []);
    assert_eq!(host.state("/lease/disk/x").holders.len(), 1);
}

/// What may happen to two resources and four domains.
#[derive(Clone, Debug)]
enum Step {
    /// WRITE in a folder, in an open transaction or not.
    Write(&'static str, &'static str, u16, &'static str),
    Remove(&'static str, &'static str, u16),
    /// WRITE or RM of the resource itself.
    Register(&'static str, &'static str),
    Unregister(&'static str),
    Move(&'static str, u16, u16, u32),
    Begin,
    End(bool),
    Dies(u16),
    Passes(u64),
    Replaced,
    /// The policy is taken away, and set again after this domain has died.
    Unwatched(u16),
}

const RESOURCES: [&str; 2] = ["/lease/disk/x", "/lease/disk/y"];
const DOMAINS: u16 = 4;

fn step() -> impl Strategy<Value = Step> {
    let resource = || select(&RESOURCES[..]);
    let domid = || 1..=DOMAINS;
    let mode = || select(vec!["exclusive", "shared", "read-only"]);
    let folder = || select(vec![HOLDER, HOLDER, WAIT]);
    prop_oneof![
        10 => (resource(), folder(), domid(), mode())
            .prop_map(|(resource, folder, domid, mode)| Step::Write(resource, folder, domid, mode)),
        6 => (resource(), select(vec![HOLDER, HOLDER, WAIT, MOVE]), domid())
            .prop_map(|(resource, folder, domid)| Step::Remove(resource, folder, domid)),
        1 => (resource(), select(vec!["exclusive", "exclusive,shared,read-only", "shared,read-only"]))
            .prop_map(|(resource, modes)| Step::Register(resource, modes)),
        1 => resource().prop_map(Step::Unregister),
        3 => (resource(), domid(), domid(), 1..5_u32)
            .prop_map(|(resource, from, to, seconds)| Step::Move(resource, from, to, seconds)),
        2 => Just(Step::Begin),
        2 => any::<bool>().prop_map(Step::End),
        2 => domid().prop_map(Step::Dies),
        2 => (0..3_000_u64).prop_map(Step::Passes),
        1 => Just(Step::Replaced),
        1 => domid().prop_map(Step::Unwatched),
    ]
}

/// Lives of domains, each with a domid that it may share with earlier ones.
struct Story {
    host: Host,
    lives: [u128; DOMAINS as usize + 1],
    transaction: u32,
}

impl Story {
    fn new() -> Self {
        let mut host = Host::new(DOMAINS);
        for resource in RESOURCES {
            host.write(resource, "exclusive,shared,read-only").unwrap();
        }
        Self {
            host,
            lives: std::array::from_fn(|domid| identity(u16::try_from(domid).unwrap()).unique.0),
            transaction: 0,
        }
    }

    fn ask(&mut self, kind: Kind, payload: &[u8]) {
        let tx_id = self.transaction;
        // Refused or not: what must be true is looked at after it.
        _ = self.host.ask_in(tx_id, kind, payload);
    }

    fn dies(&mut self, domid: u16) {
        let life = &mut self.lives[usize::from(domid)];
        let identity = |unique| Identity {
            domid: DomId::new(domid),
            unique: UniqueId(unique),
        };
        let dead = DomainEvent::Dead(identity(*life));
        self.host.server.handle_domains(&[dead], u32::MAX, false);
        *life += 1000;
        self.host.server.open_domain(identity(*life));
    }

    fn take(mut self, step: &Step) -> Self {
        match step {
            Step::Write(resource, folder, domid, mode) => {
                let payload = format!("{resource}/{folder}/{domid}\0{mode}");
                self.ask(Kind::Write, payload.as_bytes());
            }
            Step::Remove(resource, folder, domid) => {
                let payload = format!("{resource}/{folder}/{domid}\0");
                self.ask(Kind::Rm, payload.as_bytes());
            }
            Step::Register(resource, modes) => {
                self.ask(Kind::Write, format!("{resource}\0{modes}").as_bytes());
            }
            Step::Unregister(resource) => self.ask(Kind::Rm, format!("{resource}\0").as_bytes()),
            Step::Move(resource, from, to, seconds) => {
                let payload = format!("{resource}/move/{from}\0{to} {seconds}");
                self.ask(Kind::Write, payload.as_bytes());
            }
            Step::Begin if self.transaction == 0 => {
                _ = self.host.ask(Kind::TransactionStart, b"\0");
                let dom0 = self.host.server.connections.get(self.host.dom0).unwrap();
                self.transaction = dom0.transactions.last.unwrap().get();
            }
            Step::Begin => {}
            Step::End(commit) => {
                let word: &[u8] = if *commit { b"T\0" } else { b"F\0" };
                self.ask(Kind::TransactionEnd, word);
                self.transaction = 0;
            }
            Step::Dies(domid) => self.dies(*domid),
            Step::Passes(ms) => {
                let now = self.host.server.now.after(Duration::from_millis(*ms));
                self.host.server.handle_timeout(now);
            }
            Step::Replaced => self.host = self.host.replaced(),
            Step::Unwatched(domid) => {
                _ = self.host.ask(Kind::Control, b"policy\0set\0legacy\0");
                self.dies(*domid);
                _ = self.host.ask(Kind::Control, b"policy\0set\0legacy,lease\0");
            }
        }
        self
    }

    /// What must be true after every step.
    fn check(&self) -> Result<(), TestCaseError> {
        for resource in RESOURCES {
            let state = match inquire(&self.host.server.store.nodes, resource) {
                Ok(state) => state,
                Err(refused) => {
                    prop_assert_eq!(refused, Refused::NotRegistered);
                    continue;
                }
            };
            for (domid, mode) in &state.holders {
                prop_assert!(state.modes.contains(mode), "{:?}", state);
                prop_assert_eq!(state.in_the_way(*domid, *mode), None);
            }
            if let Some((domid, mode)) = state.waiters.first() {
                prop_assert!(state.in_the_way(*domid, *mode).is_some(), "{:?}", state);
            }
            for next in &state.moves {
                prop_assert!(state.mode_of(next.from).is_some(), "{:?}", state);
                prop_assert!(state.mode_of(next.to).is_none(), "{:?}", state);
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn whatever_happens_leases_are_what_they_say(steps in prop::collection::vec(step(), 1..80)) {
        let mut story = Story::new();
        for step in &steps {
            let died = match step {
                Step::Dies(domid) | Step::Unwatched(domid) => Some(DomId::new(*domid)),
                _ => None,
            };
            story = story.take(step);
            story.check()?;
            for state in RESOURCES.map(|resource| inquire(&story.host.server.store.nodes, resource)) {
                let (Some(died), Ok(state)) = (died, state) else {
                    continue;
                };
                prop_assert!(state.mode_of(died).is_none() && !state.waits(died));
                prop_assert!(state.moves.iter().all(|next| next.from != died && next.to != died));
            }
        }
        prop_assert_eq!(story.host.ask(Kind::Control, b"check\0"), Ok(()));
    }
}

/// A client that makes resources and removes them, again and again, takes no memory with that.
#[test]
fn nothing_is_kept_of_a_resource_that_nobody_has_to_do_with() {
    let domids = |numbers: &[u16]| numbers.iter().copied().map(DomId::new).collect();
    let mut ties = Ties::default();
    for resource in ["/lease/a/x", "/lease/a/y"] {
        ties.set(resource, domids(&[1, 2]));
        ties.set(resource, domids(&[2, 3]));
        assert!(ties.has(resource, DomId::new(3)) && !ties.has(resource, DomId::new(1)));
    }
    assert_eq!(ties.of_domain.len(), 2);
    for resource in ["/lease/a/x", "/lease/a/y"] {
        ties.set(resource, domids(&[]));
    }
    assert!(ties.of_domain.is_empty() && ties.of_resource.is_empty());
}
