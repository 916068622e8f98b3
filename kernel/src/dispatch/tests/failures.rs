//! Whatever can be refused is refused, one after the other, once and from then on: each call of the machine and each try of the store to
//! get memory that it can do without, at every step of a domain's life and in every type of request.
//!
//! Each time the one who asked hears an error or loses its connection, all accounts are right, everybody else goes on, and the same
//! works later.

use std::collections::BTreeSet;
use std::ops::Range;

use xenstore::faults;

use super::host::Host;
use super::*;

/// The guest that lives and dies, one that watches it, domains that the store does not know yet, and one that it never hears of.
const GUEST: u16 = 5;
const WATCHER: u16 = 6;
const UNKNOWN: Range<u16> = 7..10;

/// A host, its domains, and the transaction that is open.
struct Scene {
    host: Host,
    dom0: Guest,
    guest: Guest,
    watcher: Guest,
    transaction: u32,
}

/// A step: what is asked, by whom, and whether within the transaction.
struct Step {
    name: &'static str,
    deed: Deed,
    /// Where to begin again when it failed.
    again_from: usize,
}

#[derive(Clone, Copy)]
enum Deed {
    Dom0(Kind, &'static str),
    Guest(Kind, &'static str),
    Inside(Kind, &'static str),
    Begin,
    Machine(fn(&mut Scene)),
}

impl Scene {
    fn new() -> Self {
        let (host, mut dom0) = start();
        let mut watcher = dom0.build(WATCHER);
        for domid in UNKNOWN {
            host.xen.create(DomId::new(domid));
        }
        let guest = new_guest(&host);
        dom0.write("/shared", "");
        dom0.ask_strings(Kind::SetPerms, &["/shared", "b0"])
            .unwrap();
        dom0.watch("@releaseDomain", "gone");
        watcher.watch("/shared", "seen");
        Self {
            host,
            dom0,
            guest,
            watcher,
            transaction: 0,
        }
    }

    fn run(&mut self, deed: Deed) -> Option<Result<Vec<u8>, String>> {
        match deed {
            Deed::Dom0(kind, payload) => self.dom0.try_ask(kind, 0, payload.as_bytes()),
            Deed::Guest(kind, payload) => self.guest.try_ask(kind, 0, payload.as_bytes()),
            Deed::Inside(kind, payload) => {
                self.guest
                    .try_ask(kind, self.transaction, payload.as_bytes())
            }
            Deed::Begin => {
                let answer = self.guest.try_ask(Kind::TransactionStart, 0, b"\0");
                if let Some(Ok(id)) = &answer {
                    let digits = String::from_utf8_lossy(id);
                    self.transaction = digits.trim_end_matches('\0').parse().unwrap();
                }
                answer
            }
            Deed::Machine(deed) => {
                deed(self);
                Some(Ok(Vec::new()))
            }
        }
    }

    fn ok(&mut self, step: &Step) {
        let answer = self.run(step.deed);
        assert!(matches!(answer, Some(Ok(_))), "{}: {answer:?}", step.name);
    }

    /// Others go on, whatever happened; the watcher hears of what changes.
    fn others_go_on(&mut self, what: &str) {
        let audit = self.host.audit();
        assert_eq!(audit, Ok(()), "{what}");
        assert!(self.watcher.is_served(), "{what}");
        self.watcher.write("own", "value");
        self.watcher.take_events();
        self.dom0.write("/shared/told", what);
        let told = self.watcher.take_events();
        assert_eq!(told, [event("/shared/told", "seen")], "{what}");
        let read = self.dom0.read("/shared/told");
        assert_eq!(read.as_deref(), Ok(what));
    }

    /// The guest is no more, and nothing is left of it.
    fn end(&mut self, what: &str) {
        self.host.xen.destroy(DomId::new(GUEST));
        self.host.pass(3 * POLL_INTERVAL);
        self.dom0.drain();
        assert!(!self.dom0.is_introduced(DomId::new(GUEST)), "{what}");
        let (mapped, bound) = (self.host.xen.mapped(), self.host.xen.bound());
        let kept = (mapped - self.host.xen.leaks(), bound);
        assert_eq!(kept, (2, 2), "{what}");
        assert_eq!(self.host.audit(), Ok(()), "{what}");
    }
}

/// A domain that nobody has introduced.
fn new_guest(host: &Host) -> Guest {
    let domid = DomId::new(GUEST);
    host.xen.create(domid);
    let port = host.xen.allocate_port(domid);
    Guest::new(host, domid, port)
}

/// The life of a domain, with every type of request that asks for something that can be refused.
fn steps() -> Vec<Step> {
    use Deed::{Begin, Dom0, Guest, Inside, Machine};
    let life = [
        ("INTRODUCE", Dom0(Kind::Introduce, "5\x001\x001\0")),
        (
            "MKDIR by the toolstack",
            Dom0(Kind::Mkdir, "/local/domain/5\0"),
        ),
        (
            "SET_PERMS",
            Dom0(Kind::SetPerms, "/local/domain/5\0n5\0r7\0r8\0"),
        ),
        ("GET_FEATURE", Dom0(Kind::GetFeature, "7\0")),
        ("SET_FEATURE", Dom0(Kind::SetFeature, "8\x007\0")),
        ("GET_QUOTA", Dom0(Kind::GetQuota, "9\0nodes\0")),
        ("SET_QUOTA", Dom0(Kind::SetQuota, "9\0nodes\x0050\0")),
        (
            "INTRODUCE once more",
            Dom0(Kind::Introduce, "5\x001\x001\0"),
        ),
        ("SET_TARGET", Dom0(Kind::SetTarget, "6\x005\0")),
        (
            "IS_DOMAIN_INTRODUCED",
            Dom0(Kind::IsDomainIntroduced, "5\0"),
        ),
        ("CONTROL check", Dom0(Kind::Control, "check\0")),
        ("GET_DOMAIN_PATH", Guest(Kind::GetDomainPath, "5\0")),
        ("WATCH", Guest(Kind::Watch, "a\0token\0")),
        (
            "WRITE that makes parents",
            Guest(Kind::Write, "a/b/c\0value"),
        ),
        ("WRITE", Guest(Kind::Write, "a/b/c\0other")),
        ("MKDIR that others hear", Guest(Kind::Mkdir, "/shared/x\0")),
        ("READ", Guest(Kind::Read, "a/b/c\0")),
        ("GET_PERMS", Guest(Kind::GetPerms, "a\0")),
        ("DIRECTORY", Guest(Kind::Directory, "a\0")),
        ("DIRECTORY_PART", Guest(Kind::DirectoryPart, "a\x000\0")),
        ("RM", Guest(Kind::Rm, "a/b\0")),
        ("TRANSACTION_START", Begin),
        ("WRITE in it", Inside(Kind::Write, "a/d/e\0value")),
        ("MKDIR in it", Inside(Kind::Mkdir, "a/f\0")),
        ("READ in it", Inside(Kind::Read, "a/d/e\0")),
        ("DIRECTORY in it", Inside(Kind::Directory, "a\0")),
        (
            "DIRECTORY_PART in it",
            Inside(Kind::DirectoryPart, "a\x000\0"),
        ),
        ("GET_PERMS in it", Inside(Kind::GetPerms, "a/f\0")),
        ("SET_PERMS in it", Inside(Kind::SetPerms, "a/f\0n5\0r0\0")),
        ("RM in it", Inside(Kind::Rm, "a/d\0")),
        ("a change beside it", Dom0(Kind::Write, "/shared/y\0value")),
        ("TRANSACTION_END", Inside(Kind::TransactionEnd, "T\0")),
        ("UNWATCH", Guest(Kind::Unwatch, "a\0token\0")),
        ("RESET_WATCHES", Guest(Kind::ResetWatches, "")),
        (
            "a request for a new connection",
            Machine(|scene| {
                scene.guest.page.store(ring::CONNECTION, 1);
                scene.guest.signal();
                scene.host.settle();
            }),
        ),
        (
            "a shutdown",
            Machine(|scene| {
                scene.host.xen.change(FIVE, |info| info.shutdown = true);
                scene.host.pass(3 * POLL_INTERVAL);
            }),
        ),
        ("RESUME", Dom0(Kind::Resume, "5\0")),
        ("RELEASE", Dom0(Kind::Release, "5\0")),
        (
            "an introduction after that",
            Dom0(Kind::Introduce, "5\x001\x001\0"),
        ),
        (
            "a death",
            Machine(|scene| {
                scene.host.xen.destroy(FIVE);
                scene.host.pass(3 * POLL_INTERVAL);
            }),
        ),
        (
            "a death that is not told",
            Machine(|scene| {
                scene.guest = new_guest(&scene.host);
                scene.host.xen.lose_domain_exceptions(true);
                scene.host.xen.destroy(DomId::new(8));
                scene.host.pass(3 * POLL_INTERVAL);
                scene.host.xen.lose_domain_exceptions(false);
            }),
        ),
    ];
    let mut begins = 0;
    let mut steps = Vec::new();
    for (at, (name, deed)) in life.into_iter().enumerate() {
        if matches!(deed, Begin) {
            begins = at;
        }
        let is_inside = matches!(deed, Inside(..));
        let again_from = if is_inside { begins } else { at };
        steps.push(Step {
            name,
            deed,
            again_from,
        });
    }
    steps
}

/// Who refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refuser {
    Xen,
    Memory,
}

impl Refuser {
    /// Refuses these tries from now on; gives how many there were before.
    fn refuse(self, host: &Host, tries: Range<u64>) -> u64 {
        match self {
            Self::Xen => host.xen.refuse_at(tries),
            Self::Memory => faults::refuse_at(tries),
        }
    }

    /// What the one who asked may hear. A domain of which Xen says nothing is as one that is not there.
    fn errors(self) -> &'static [&'static str] {
        match self {
            Self::Xen => &["EINVAL", "ENOENT"],
            Self::Memory => &["ENOMEM"],
        }
    }
}

/// A scene in which the steps before one were done.
fn before(steps: &[Step], at: usize) -> Scene {
    let mut scene = Scene::new();
    steps[..at].iter().for_each(|step| scene.ok(step));
    scene
}

/// One refusal in one step. Gives the error that came of it.
fn refuse(steps: &[Step], at: usize, refuser: Refuser, tries: Range<u64>) -> Option<String> {
    let step = &steps[at];
    let what = format!("{}: {refuser:?} refuses {tries:?}", step.name);
    let mut scene = before(steps, at);
    refuser.refuse(&scene.host, tries);
    let answer = scene.run(step.deed);
    refuser.refuse(&scene.host, 0..0);
    scene.host.settle();
    let error = match answer {
        Some(Ok(_)) => None,
        Some(Err(error)) => {
            assert!(
                refuser.errors().contains(&error.as_str()),
                "{what}: {error}"
            );
            Some(error)
        }
        None => panic!("{what}: no answer"),
    };
    scene.others_go_on(&what);
    if error.is_some() {
        drop(
            scene
                .guest
                .try_ask(Kind::TransactionEnd, scene.transaction, b"F\0"),
        );
        steps[step.again_from..=at]
            .iter()
            .for_each(|step| scene.ok(step));
    }
    scene.others_go_on(&what);
    scene.end(&what);
    error
}

/// T-MEM-07, T-HV-01, T-HV-02, T-HV-03, T-HV-07, T-INTRO-05.
#[test]
fn whatever_is_refused_costs_an_error_and_no_more() {
    let steps = steps();
    let mut refusals = 0;
    let mut errors = BTreeSet::new();
    for refuser in [Refuser::Xen, Refuser::Memory] {
        for (at, step) in steps.iter().enumerate() {
            let mut scene = before(&steps, at);
            refuser.refuse(&scene.host, 0..0);
            scene.ok(step);
            let tries = refuser.refuse(&scene.host, 0..0);
            for number in 0..tries {
                for end in [number + 1, u64::MAX] {
                    let error = refuse(&steps, at, refuser, number..end);
                    errors.extend(error.map(|error| (step.name, error)));
                    refusals += 1;
                }
            }
        }
    }
    println!("{refusals} refusals; {errors:?}");
    assert!(refusals > 100, "{refusals}");
    for (name, error) in [
        ("INTRODUCE", "EINVAL"),
        ("INTRODUCE once more", "EINVAL"),
        ("GET_QUOTA", "ENOENT"),
        ("WRITE in it", "ENOMEM"),
    ] {
        assert!(errors.contains(&(name, error.to_owned())), "{name} {error}");
    }
}

/// At the start nobody can be served without domain 0's ring and port; all else is done without.
#[test]
fn what_is_refused_at_the_start_is_said_or_done_without() {
    let (xen, _) = machine();
    assert!(start_on(&xen, "").is_ok());
    let tries = xen.refuse_at(0..0);
    let mut failed = 0;
    for number in 0..tries {
        let (xen, port) = machine();
        xen.refuse_at(number..number + 1);
        match start_on(&xen, "") {
            Ok(host) => {
                host.settle();
                let mut dom0 = Guest::new(&host, DOM0, port);
                dom0.write("/tool/x", "y");
                dom0.build(GUEST);
                assert_eq!(host.audit(), Ok(()));
            }
            Err(error) => {
                assert!(matches!(error, StartError::Map(..) | StartError::Bind(..)));
                failed += 1;
            }
        }
    }
    assert_eq!(failed, 2, "of {tries}");
}
