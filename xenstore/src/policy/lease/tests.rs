//! What transcripts cannot show of leases: whom a refusal names, the limits, and another instance of the server.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::space::{Inquiry, Mode, Move, RESOURCES_MAX, Refused, SPACES_MAX, USERS_MAX, inquire};
use super::{acquire, give_back, stand_in_line};
use crate::ids::{ConnId, DomId, Identity, UniqueId};
use crate::policy;
use crate::server::{DomainEvent, Server, Settings};
use crate::state::{Format, HostLink};
use crate::storage::Tree;
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
        let header = Header {
            kind: kind.number(),
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
        let restored = Server::<Tree>::import(&stream, settings(), now).unwrap();
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
