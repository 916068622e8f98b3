//! What Xen knows of domains, by the two calls that a xenstore domain may make, whichever this Xen has.
//!
//! The newer one is stable; the older one has a version that no two releases share, so it is probed (xen-abi.md section 4).

use core::fmt;

use xenstore::{DomId, Identity, UniqueId};

use super::abi::{
    CAPABILITY_CONTROL, DOMAIN_DEAD, DOMAIN_DYING, DOMAIN_EXISTS, DOMAIN_SHUTDOWN, DomainState,
    EACCES, EPERM, ESRCH, GET_DOMAIN_INFO, GET_DOMAIN_STATE, INFO_DYING, INFO_SHUTDOWN,
};
use super::{abi, hypercall};
use crate::xen::{DomainInfo, XenError};

/// Interface versions of `getdomaininfo` that are tried: those of Xen 4.13 up to some that do not exist yet.
const VERSIONS: core::ops::RangeInclusive<u32> = 0x12..=0x20;

/// How this Xen tells of domains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainInterface {
    /// `get_domain_state`, Xen 4.21 and later.
    State,
    /// `getdomaininfo` with this interface version.
    Info {
        /// `XEN_DOMCTL_INTERFACE_VERSION` of the running Xen.
        version: u32,
    },
    /// Neither: deaths stay unknown.
    Neither,
}

impl fmt::Display for DomainInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State => f.write_str("get_domain_state"),
            Self::Info { version } => write!(f, "getdomaininfo, interface version {version:#x}"),
            Self::Neither => f.write_str("none: domains' deaths stay unknown"),
        }
    }
}

impl DomainInterface {
    /// Finds the call that this Xen has and allows, by asking for domain 0.
    pub(super) fn probe() -> Self {
        let anyone = DomId::new(0);
        if get_domain_state(anyone).is_ok() {
            return Self::State;
        }
        VERSIONS
            .into_iter()
            .find(|version| get_domain_info(anyone, *version).is_ok())
            .map_or(Self::Neither, |version| Self::Info { version })
    }

    /// The state of one domain; `None` when there is none with this id.
    ///
    /// # Errors
    /// What Xen answered when it would not say.
    pub(super) fn domain(self, domid: DomId) -> Result<Option<DomainInfo>, XenError> {
        if !domid.is_ordinary() {
            // DOMID_INVALID would mean "the next one that changed".
            return Ok(None);
        }
        let answer = match self {
            Self::State => get_domain_state(domid).map(|state| describe_state(domid, &state)),
            Self::Info { version } => {
                get_domain_info(domid, version).map(|info| describe_info(domid, &info))
            }
            Self::Neither => Err(XenError(EACCES)),
        };
        or_gone(answer)
    }

    /// The domain that controls the host: domain 0, unless Xen says that another one does.
    pub(super) fn privileged_domain(self) -> DomId {
        let domain_0 = DomId::new(0);
        if self != Self::State || controls(domain_0) {
            return domain_0;
        }
        (1..DomId::FIRST_RESERVED)
            .map(DomId::new)
            .find(|domid| controls(*domid))
            .unwrap_or(domain_0)
    }
}

fn controls(domid: DomId) -> bool {
    get_domain_state(domid).is_ok_and(|state| state.capabilities & CAPABILITY_CONTROL != 0)
}

/// The probe showed that the call is allowed, so both of these mean that there is no such domain.
fn or_gone(answer: Result<Option<DomainInfo>, XenError>) -> Result<Option<DomainInfo>, XenError> {
    match answer {
        Err(XenError(EPERM | ESRCH)) => Ok(None),
        answer => answer,
    }
}

fn get_domain_state(domid: DomId) -> Result<DomainState, XenError> {
    let mut state = DomainState {
        command: GET_DOMAIN_STATE,
        interface_version: 0,
        domid: domid.get(),
        padding: [0; 3],
        state: 0,
        capabilities: 0,
        must_be_zero: 0,
        unique_id: 0,
        rest: [0; 28],
    };
    // SAFETY: touches no other memory.
    unsafe { hypercall::perform(&mut state) }?;
    Ok(state)
}

fn describe_state(domid: DomId, state: &DomainState) -> Option<DomainInfo> {
    let is = |bits| state.state & bits != 0;
    is(DOMAIN_EXISTS).then(|| DomainInfo {
        identity: Identity {
            domid,
            unique: UniqueId(u128::from(state.unique_id)),
        },
        shutdown: is(DOMAIN_SHUTDOWN),
        dying: is(DOMAIN_DYING | DOMAIN_DEAD),
        dead: is(DOMAIN_DEAD),
    })
}

fn get_domain_info(domid: DomId, version: u32) -> Result<abi::DomainInfo, XenError> {
    let mut info = abi::DomainInfo {
        command: GET_DOMAIN_INFO,
        interface_version: version,
        domid: domid.get(),
        padding: [0; 3],
        found_domid: 0,
        found_padding: 0,
        flags: 0,
        counters: [0; 8],
        ssidref: 0,
        handle: [0; 16],
        rest: [0; 148],
    };
    // SAFETY: touches no other memory.
    unsafe { hypercall::perform(&mut info) }?;
    Ok(info)
}

/// Up to Xen 4.17 an unknown domid is answered with the next domain that exists. Its flag `dying` is set when all memory is released
/// but what others hold: a dead domain.
fn describe_info(domid: DomId, info: &abi::DomainInfo) -> Option<DomainInfo> {
    let is = |bits| info.flags & bits != 0;
    (info.found_domid == domid.get()).then(|| DomainInfo {
        identity: Identity {
            domid,
            unique: UniqueId(u128::from_be_bytes(info.handle)),
        },
        shutdown: is(INFO_SHUTDOWN),
        dying: is(INFO_DYING),
        dead: is(INFO_DYING),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(state: u16) -> DomainState {
        DomainState {
            command: 0,
            interface_version: 0,
            domid: 7,
            padding: [0; 3],
            state,
            capabilities: 0,
            must_be_zero: 0,
            unique_id: 99,
            rest: [0; 28],
        }
    }

    #[test]
    fn all_zero_state_is_no_domain() {
        assert_eq!(describe_state(DomId::new(7), &state(0)), None);
    }

    #[test]
    fn the_dead_are_dying() {
        let dead = describe_state(DomId::new(7), &state(DOMAIN_EXISTS | DOMAIN_DEAD)).unwrap();
        assert!(dead.dying && dead.dead && !dead.shutdown);
        let dying = describe_state(DomId::new(7), &state(DOMAIN_EXISTS | DOMAIN_DYING)).unwrap();
        assert!(dying.dying && !dying.dead);
        assert_eq!(dead.identity.unique, UniqueId(99));
        let down = describe_state(DomId::new(7), &state(DOMAIN_EXISTS | DOMAIN_SHUTDOWN)).unwrap();
        assert!(down.shutdown && !down.dying);
    }

    #[test]
    fn the_next_domain_is_not_the_one_asked_for() {
        let info = abi::DomainInfo {
            command: 0,
            interface_version: 0,
            domid: 7,
            padding: [0; 3],
            found_domid: 8,
            found_padding: 0,
            flags: INFO_DYING,
            counters: [0; 8],
            ssidref: 0,
            handle: [1; 16],
            rest: [0; 148],
        };
        assert_eq!(describe_info(DomId::new(7), &info), None);
        let found = describe_info(DomId::new(8), &info).unwrap();
        assert!(found.dying && found.dead);
    }

    #[test]
    fn two_errors_mean_gone_and_others_do_not() {
        assert_eq!(or_gone(Err(XenError(EPERM))), Ok(None));
        assert_eq!(or_gone(Err(XenError(ESRCH))), Ok(None));
        assert_eq!(or_gone(Err(XenError(EACCES))), Err(XenError(EACCES)));
    }
}
