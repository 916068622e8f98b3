//! What a toolstack asks of xenstore for one guest: about as many requests, of the same kinds and on the same paths, as `xl create` makes for
//! a guest with a disk and a network interface.

use xenstore::wire::Kind;

use crate::target::{Failure, Session, onearg};

/// The guest's own directories and whether the guest may write there.
const DIRECTORIES: &[(&str, bool)] = &[
    ("cpu", false),
    ("device", false),
    ("control", false),
    ("control/shutdown", true),
    ("data", true),
];
const DEVICES: &[(&str, &str)] = &[("vbd", "51712"), ("vif", "0")];

/// Creates a guest, as `xl` does: the domain, its values, its devices, its ring.
pub(crate) fn create(session: &mut Session<'_>, domid: u64) -> Result<(), Failure> {
    let guest = Guest::new(session, domid);
    guest.make(session)?;
    guest.describe(session)?;
    for (class, id) in DEVICES {
        guest.add_device(session, class, id)?;
    }
    guest.introduce(session)
}

/// Removes what [`create`] has made.
pub(crate) fn remove(session: &mut Session<'_>, domid: u64) -> Result<(), Failure> {
    let guest = Guest::new(session, domid);
    if session.target.has_domains() {
        session.done(Kind::Release, &onearg(&domid.to_string()))?;
    }
    for (class, _) in DEVICES {
        session.rm(&format!("/local/domain/0/backend/{class}/{domid}"))?;
    }
    session.rm(&guest.vm)?;
    session.rm(&format!("/libxl/{domid}"))?;
    session.rm(&guest.home)
}

struct Guest {
    domid: u64,
    home: String,
    vm: String,
    /// Permissions of what the guest may read, and of what is its own.
    reads: [String; 2],
    owns: [String; 1],
}

impl Guest {
    /// A server without domains cannot let one own a node: there dom0 owns them all.
    fn new(session: &Session<'_>, domid: u64) -> Self {
        let owner = if session.target.has_domains() {
            domid
        } else {
            0
        };
        Self {
            domid,
            home: format!("/local/domain/{domid}"),
            vm: format!("/vm/5f1f0a5e-0000-4000-8000-{domid:012}"),
            reads: ["n0".to_owned(), format!("r{domid}")],
            owns: [format!("n{owner}")],
        }
    }

    /// One transaction for all that the domain is.
    fn make(&self, session: &mut Session<'_>) -> Result<(), Failure> {
        let Self {
            domid, home, vm, ..
        } = self;
        session.start()?;
        for path in [home, vm, &format!("/libxl/{domid}")] {
            session.rm(path)?;
            session.mkdir(path)?;
            session.set_perms(path, &self.reads)?;
        }
        session.write(&format!("{home}/vm"), vm)?;
        session.write(&format!("{home}/name"), &format!("guest{domid}"))?;
        for (name, own) in DIRECTORIES {
            let path = format!("{home}/{name}");
            session.mkdir(&path)?;
            let entries: &[String] = if *own { &self.owns } else { &self.reads };
            session.set_perms(&path, entries)?;
        }
        session.write(&format!("{vm}/uuid"), vm)?;
        session.write(&format!("{home}/domid"), &domid.to_string())?;
        ended(session)
    }

    fn describe(&self, session: &mut Session<'_>) -> Result<(), Failure> {
        let home = &self.home;
        session.start()?;
        for (name, value) in [
            ("memory/static-max", "131072"),
            ("memory/target", "131072"),
            ("cpu/0/availability", "online"),
            ("store/ring-ref", "1"),
            ("store/port", "1"),
        ] {
            session.write(&format!("{home}/{name}"), value)?;
        }
        ended(session)
    }

    /// A frontend and its backend; between them the two go through their states.
    fn add_device(&self, session: &mut Session<'_>, class: &str, id: &str) -> Result<(), Failure> {
        let domid = self.domid;
        let front = format!("{}/device/{class}/{id}", self.home);
        let back = format!("/local/domain/0/backend/{class}/{domid}/{id}");
        session.watch(&format!("{back}/state"), "xl")?;
        session.start()?;
        session.probe(&front)?;
        session.mkdir(&front)?;
        session.set_perms(&front, &self.owns)?;
        session.mkdir(&back)?;
        session.set_perms(&back, &self.reads)?;
        for (directory, name, value) in [
            (&front, "backend", back.as_str()),
            (&front, "backend-id", "0"),
            (&front, "state", "1"),
            (&back, "frontend", front.as_str()),
            (&back, "state", "1"),
        ] {
            session.write(&format!("{directory}/{name}"), value)?;
        }
        ended(session)?;
        session.read(&format!("{back}/state"))?;
        session.unwatch(&format!("{back}/state"), "xl")
    }

    fn introduce(&self, session: &mut Session<'_>) -> Result<(), Failure> {
        if session.target.has_domains() {
            let arguments = [onearg(&self.domid.to_string()), onearg("1"), onearg("1")];
            session.done(Kind::Introduce, &arguments.concat())?;
        }
        session.read(&format!("{}/name", self.home)).map(drop)
    }
}

/// Nobody else is at work: the transaction is committed.
fn ended(session: &mut Session<'_>) -> Result<(), Failure> {
    let done = session.end()?;
    done.then_some(())
        .ok_or_else(|| "the toolstack's transaction must be done again".into())
}
