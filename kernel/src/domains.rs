//! Which domains ended or shut down: asked of Xen when its virtual interrupt hints at it, and slowly all the time.
//!
//! The hint can be lost (hostility.md R28), so that nothing depends on it but how soon a death is noticed. What is told is a state, not
//! a change: a domain that is shut down is told of each time it is looked at, and the store, which knows of RESUME, keeps what was told.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use log::{error, warn};
use xenstore::{DomId, DomainEvent, Identity, Instant, Server, Spell};

use crate::bugs;
use crate::sweep::Sweep;
use crate::xen::{LocalPort, Xen, XenError};

/// How long one slow round over all known domains takes: without any hint a death is noticed within twice this.
pub const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// Domains with a ring looked at in a round after a hint.
const LOOKS_A_ROUND: usize = 64;

/// The watch over domains' lives.
#[derive(Debug)]
pub struct DomainPoll {
    exception: Option<LocalPort>,
    hinted: bool,
    /// Those with a ring that are to be looked at after a hint.
    to_look_at: BTreeMap<DomId, Identity>,
    /// Another hint came before all of them were looked at, and names nobody.
    again: bool,
    /// All of them have just been looked at, though there may be more already.
    done: bool,
    slow: Sweep<Identity>,
    refusals: Spell,
}

impl DomainPoll {
    /// Binds the virtual interrupt. If Xen refuses, that is logged and done without.
    pub fn start<X: Xen>(xen: &mut X) -> Self {
        Self {
            exception: bind(xen),
            hinted: false,
            to_look_at: BTreeMap::new(),
            again: false,
            done: false,
            slow: Sweep::new(Some(POLL_INTERVAL), xen.now()),
            refusals: Spell::default(),
        }
    }

    /// As [`DomainPoll::start`], where other instances knew of domains: each of these may have ended since.
    pub fn start_anew<X: Xen>(xen: &mut X) -> Self {
        Self {
            hinted: true,
            ..Self::start(xen)
        }
    }

    /// The domains that are there, right after the start; none if this Xen keeps no list of them.
    pub fn existing<X: Xen>(&mut self, xen: &mut X) -> Vec<DomId> {
        all_changed(xen).unwrap_or_default()
    }

    /// Takes a pending port as a hint, if it is the virtual interrupt's.
    pub fn hint(&mut self, port: LocalPort) {
        self.hinted |= self.exception == Some(port);
    }

    /// When the next slow look is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.slow.deadline()
    }

    /// Whether there is somebody to look at after a hint.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.to_look_at.is_empty()
    }

    /// Whether more may come of the hint of which the last events came.
    #[must_use]
    pub fn may_tell_more(&self) -> bool {
        self.is_busy() && !self.done
    }

    /// What became of the domains that `server` knows: after a hint of those that Xen names, or of all of them if it names none; and of
    /// the slice that is due.
    ///
    /// After a hint those are looked at at once of whom nothing `is_mapped`, because a request about a new domain must not be served while
    /// an old one with its id is still known (hostility.md R13). The others are looked at some in each round: as long as a page of a
    /// domain is mapped, Xen gives its id to nobody else.
    pub fn poll<X: Xen>(
        &mut self,
        xen: &mut X,
        server: &Server,
        is_mapped: impl Fn(Identity) -> bool,
    ) -> Vec<DomainEvent> {
        let now = xen.now();
        let mut events = Vec::new();
        if core::mem::take(&mut self.hinted) {
            let named = all_changed(xen);
            let names_nobody = named.is_err();
            let known: Vec<Identity> = match named {
                Ok(domids) => domids
                    .into_iter()
                    .filter_map(|domid| server.known_domain(domid))
                    .collect(),
                Err(_) => server.known_domains().collect(),
            };
            let (mapped, others): (Vec<_>, Vec<_>) =
                known.into_iter().partition(|identity| is_mapped(*identity));
            // However often hints come, this comes to an end.
            if names_nobody && self.is_busy() {
                self.again = true;
            } else {
                self.to_look_at.extend(mapped.into_iter().map(by_domid));
            }
            self.look_at_all(xen, others.into_iter(), &mut events);
        }
        let was_busy = self.is_busy();
        for _ in 0..LOOKS_A_ROUND {
            let Some((_, identity)) = self.to_look_at.pop_first() else {
                break;
            };
            events.extend(self.look_at(xen, identity));
        }
        self.done = was_busy && !self.is_busy();
        if self.done && core::mem::take(&mut self.again) {
            let mapped = server.known_domains().filter(|known| is_mapped(*known));
            self.to_look_at.extend(mapped.map(by_domid));
        }
        let told = events.len();
        let slice = self.slow.due(now, || server.known_domains());
        self.look_at_all(xen, slice.into_iter(), &mut events);
        let slowly = events.get(told..).unwrap_or_default();
        if slowly
            .iter()
            .any(|event| matches!(event, DomainEvent::Dead(_)) && !bugs::XSA_496)
        {
            self.rebind(xen);
        }
        events
    }

    /// A death of which no hint came may mean that none will come any more: a new binding names all domains again, and those that end
    /// from now on (XSA-496).
    fn rebind<X: Xen>(&mut self, xen: &mut X) {
        if let Some(port) = self.exception.take() {
            xen.close(port);
        }
        self.exception = bind(xen);
    }

    fn look_at_all<X: Xen>(
        &mut self,
        xen: &mut X,
        known: impl Iterator<Item = Identity>,
        events: &mut Vec<DomainEvent>,
    ) {
        events.extend(known.filter_map(|identity| self.look_at(xen, identity)));
    }

    fn look_at<X: Xen>(&mut self, xen: &mut X, known: Identity) -> Option<DomainEvent> {
        match xen.domain(known.domid) {
            Ok(Some(info)) if info.identity == known && !info.dead => {
                info.shutdown.then_some(DomainEvent::Shutdown(known))
            }
            Ok(_) => Some(DomainEvent::Dead(known)),
            Err(_) if bugs::XSA_492 => Some(DomainEvent::Dead(known)),
            Err(error) => {
                if let Some(untold) = self.refusals.count(xen.now()) {
                    let domid = known.domid;
                    warn!("domain {domid}: Xen does not tell its state ({error}){untold}");
                }
                None
            }
        }
    }
}

fn by_domid(identity: Identity) -> (DomId, Identity) {
    (identity.domid, identity)
}

fn bind<X: Xen>(xen: &mut X) -> Option<LocalPort> {
    let bound = xen.bind_domain_exception().inspect_err(|error| {
        error!("no interrupt for ended domains ({error}): deaths are noticed late");
    });
    bound.ok()
}

/// The domains that changed, each once.
///
/// # Errors
/// This Xen does not name them.
fn all_changed<X: Xen>(xen: &mut X) -> Result<Vec<DomId>, XenError> {
    let mut domids = Vec::new();
    for _ in 0..DomId::FIRST_RESERVED {
        let Some(domid) = xen.next_changed()? else {
            break;
        };
        domids.push(domid);
    }
    Ok(domids)
}
