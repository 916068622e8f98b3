//! What the daemon's clients are served from: the store alone, or the store with fake domains beside them.

use std::io;
use std::ops::{Deref, DerefMut};
use std::path::Path;

use log::info;
use mio::Registry;
use mio::event::Event;
use xenstore::{Action, ConnId, Errno, Instant, Outcome, Progress, Server, Settings};

use crate::fake_domains::FakeDomains;

/// The store with what stands below it.
pub(crate) enum Engine {
    /// No domain but the clients' own exists.
    Alone(Box<Server>),
    /// There is a hypervisor in memory.
    WithDomains(Box<FakeDomains>),
}

impl Engine {
    /// A new store with `domains` fake domains, whose sockets are named after `path`.
    ///
    /// # Errors
    /// A domain's socket cannot be made, or there are too many.
    pub(crate) fn new(
        settings: Settings,
        domains: u16,
        path: &Path,
        registry: &Registry,
    ) -> io::Result<Self> {
        if domains == 0 {
            return Ok(Self::Alone(Box::new(Server::new(settings))));
        }
        let domains = FakeDomains::new(settings, domains, path, registry)?;
        Ok(Self::WithDomains(Box::new(domains)))
    }

    /// Takes an event of the kernel that is none of the daemon's own sockets.
    pub(crate) fn wake(&mut self, event: &Event) {
        match self {
            Self::Alone(_) => {}
            Self::WithDomains(domains) => domains.wake(event),
        }
    }

    /// Whether anybody's time can run out: the clients of the main socket may do everything, and take as long as they like, unless a layer or
    /// a policy says otherwise.
    pub(crate) fn needs_time(&self) -> bool {
        match self {
            Self::Alone(server) => server.needs_time(),
            Self::WithDomains(_) => true,
        }
    }

    /// Runs requests and does what came of them.
    pub(crate) fn turn(&mut self, now: Instant, budget: u32) -> Progress {
        match self {
            Self::Alone(server) => turn_alone(server, now, budget),
            Self::WithDomains(domains) => domains.turn(now),
        }
    }

    /// The next of the daemon's own connections whose output grew or that takes input again.
    pub(crate) fn next_ready(&mut self) -> Option<ConnId> {
        match self {
            Self::Alone(server) => server.poll_ready(),
            Self::WithDomains(domains) => domains.next_ready(),
        }
    }
}

impl Deref for Engine {
    type Target = Server;

    fn deref(&self) -> &Server {
        match self {
            Self::Alone(server) => server,
            Self::WithDomains(domains) => domains.server(),
        }
    }
}

impl DerefMut for Engine {
    fn deref_mut(&mut self) -> &mut Server {
        match self {
            Self::Alone(server) => server,
            Self::WithDomains(domains) => domains.server_mut(),
        }
    }
}

fn turn_alone(server: &mut Server, now: Instant, budget: u32) -> Progress {
    let mut progress = server.run(now, budget);
    while let Some(action) = server.poll_action() {
        act_alone(server, &action);
        progress = Progress::More;
    }
    progress
}

fn act_alone(server: &mut Server, action: &Action) {
    match *action {
        Action::Connect { ticket, domid, .. } => {
            info!("domain {domid} cannot be introduced: there is no hypervisor");
            server.handle_completed(ticket, Outcome::Refused(Errno::EINVAL));
        }
        Action::Identify { ticket, .. } => {
            server.handle_completed(ticket, Outcome::Identified(None));
        }
        Action::Disconnect { .. } => {}
    }
}
