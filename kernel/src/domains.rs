//! Which domains ended or shut down: asked of Xen when its virtual interrupt hints at it, and slowly all the time.
//!
//! The hint can be lost (hostility.md R28), so that nothing depends on it but how soon a death is noticed. What is told is a state, not
//! a change: a domain that is shut down is told of each time it is looked at, and the store, which knows of RESUME, keeps what was told.

use alloc::vec::Vec;
use core::time::Duration;

use log::{error, warn};
use xenstore::{DomainEvent, Identity, Instant};

use crate::spell::Spell;
use crate::sweep::Sweep;
use crate::xen::{LocalPort, Xen};

/// How long one slow round over all known domains takes: without any hint a death is noticed within twice this.
pub const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// The watch over domains' lives.
#[derive(Debug)]
pub struct DomainPoll {
    exception: Option<LocalPort>,
    hinted: bool,
    slow: Sweep<Identity>,
    refusals: Spell,
}

impl DomainPoll {
    /// Binds the virtual interrupt. If Xen refuses, that is logged and done without.
    pub fn start<X: Xen>(xen: &mut X) -> Self {
        let exception = xen.bind_domain_exception().inspect_err(|error| {
            error!("no interrupt for ended domains ({error}): deaths are noticed late");
        });
        Self {
            exception: exception.ok(),
            hinted: false,
            slow: Sweep::new(Some(POLL_INTERVAL), xen.now()),
            refusals: Spell::default(),
        }
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

    /// What became of the `known` domains: all of them after a hint, one hypercall for each, else the slice that is due.
    ///
    /// All of them, because a request about a new domain must not be served while an old one with its id is still known
    /// (hostility.md R13).
    pub fn poll<X: Xen>(
        &mut self,
        xen: &mut X,
        known: impl Iterator<Item = Identity>,
    ) -> Vec<DomainEvent> {
        let now = xen.now();
        let looked_at = if core::mem::take(&mut self.hinted) {
            known.collect()
        } else {
            self.slow.due(now, || known)
        };
        looked_at
            .into_iter()
            .filter_map(|identity| self.look_at(xen, identity))
            .collect()
    }

    fn look_at<X: Xen>(&mut self, xen: &mut X, known: Identity) -> Option<DomainEvent> {
        match xen.domain(known.domid) {
            Ok(Some(info)) if info.identity == known && !info.dead => {
                info.shutdown.then_some(DomainEvent::Shutdown(known))
            }
            Ok(_) => Some(DomainEvent::Dead(known)),
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
