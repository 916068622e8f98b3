//! How this Xen tells of domains: by which of two calls, found out once, and what their answers mean. One image for Xen 4.14 and later.
//!
//! The newer call is stable; the older one has a version that no two releases share, so it is probed. Releases also differ in what they
//! answer for a domain that is not there (xen-abi.md section 4). No hardware: the calls are a trait, real in `hypervisor` and played
//! release by release by the machine in memory (the module `fake`).

use core::fmt;

use xenstore::{DomId, Identity, UniqueId};

use crate::xen::{DomainInfo, XenError};

/// The two calls about domains that a xenstore domain may make.
pub trait DomainCalls {
    /// `XEN_DOMCTL_get_domain_state`: of one domain, or with [`NEXT_CHANGED`] of the next one that changed.
    ///
    /// # Errors
    /// What Xen answered.
    fn domain_state(&mut self, domid: u16) -> Result<StateAnswer, XenError>;

    /// `XEN_DOMCTL_getdomaininfo`, with the interface version that the caller claims to have.
    ///
    /// # Errors
    /// What Xen answered.
    fn domain_info(&mut self, domid: u16, version: u32) -> Result<InfoAnswer, XenError>;
}

/// What `get_domain_state` answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateAnswer {
    /// The domain that it speaks of.
    pub domid: u16,
    /// Bits of [`state`].
    pub state: u16,
    /// Bits of [`capability`].
    pub capabilities: u16,
    /// Never used again while the host runs.
    pub unique_id: u64,
}

/// What `getdomaininfo` answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InfoAnswer {
    /// The domain that it speaks of: up to Xen 4.17 the *next* existing one if none has the id that was asked for.
    pub domid: u16,
    /// Bits of [`info`].
    pub flags: u32,
    /// The domain's uuid.
    pub handle: [u8; 16],
}

/// `DOMID_INVALID`: asks `get_domain_state` for the next domain that changed.
pub const NEXT_CHANGED: u16 = 0x7ff4;

/// `XEN_DOMCTL_GETDOMSTATE_STATE_*` (domctl.h).
pub mod state {
    /// There is such a domain.
    pub const EXISTS: u16 = 1;
    /// Its shutdown is complete.
    pub const SHUTDOWN: u16 = 2;
    /// Its end has begun.
    pub const DYING: u16 = 4;
    /// Nothing is left of it but what others hold.
    pub const DEAD: u16 = 8;
}

/// `XEN_DOMCTL_GETDOMSTATE_CAP_*` (domctl.h).
pub mod capability {
    /// It controls the host.
    pub const CONTROL: u16 = 1;
}

/// `XEN_DOMINF_*` (domctl.h).
pub mod info {
    /// Nothing is left of it but what others hold: Xen sets it later than `state::DYING`.
    pub const DYING: u32 = 1;
    /// It has shut down.
    pub const SHUTDOWN: u32 = 4;
}

/// Error numbers of Xen, positive.
pub mod errno {
    /// Not permitted; since Xen 4.22 also "no such domain".
    pub const EPERM: i32 = 1;
    /// No domain has changed.
    pub const ENOENT: i32 = 2;
    /// No such domain.
    pub const ESRCH: i32 = 3;
    /// Wrong interface version, or refused by policy.
    pub const EACCES: i32 = 13;
    /// There is no such call.
    pub const ENOSYS: i32 = 38;
}

use errno::{EACCES, ENOENT, ENOSYS, EPERM, ESRCH};

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
    pub fn probe(calls: &mut impl DomainCalls) -> Self {
        const ANYONE: u16 = 0;
        if calls.domain_state(ANYONE).is_ok() {
            return Self::State;
        }
        VERSIONS
            .into_iter()
            .find(|version| calls.domain_info(ANYONE, *version).is_ok())
            .map_or(Self::Neither, |version| Self::Info { version })
    }

    /// The state of one domain; `None` when there is none with this id.
    ///
    /// # Errors
    /// What Xen answered when it would not say.
    pub fn domain(
        self,
        calls: &mut impl DomainCalls,
        domid: DomId,
    ) -> Result<Option<DomainInfo>, XenError> {
        if !domid.is_ordinary() {
            // `NEXT_CHANGED` is among these.
            return Ok(None);
        }
        let answer = match self {
            Self::State => calls
                .domain_state(domid.get())
                .map(|answer| describe_state(domid, answer)),
            Self::Info { version } => calls
                .domain_info(domid.get(), version)
                .map(|answer| describe_info(domid, answer)),
            Self::Neither => Err(XenError(EACCES)),
        };
        or_gone(answer)
    }

    /// The next domain that came, went or changed since it was last named; none when all are named.
    ///
    /// # Errors
    /// This Xen keeps no such list, or not for us.
    pub fn next_changed(self, calls: &mut impl DomainCalls) -> Result<Option<DomId>, XenError> {
        if self != Self::State {
            return Err(XenError(ENOSYS));
        }
        match calls.domain_state(NEXT_CHANGED) {
            Ok(answer) => Ok(Some(DomId::new(answer.domid))),
            Err(XenError(ENOENT)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The domain that controls the host: domain 0, unless Xen says that another one does.
    pub fn privileged_domain(self, calls: &mut impl DomainCalls) -> DomId {
        let mut controls = |domid: u16| {
            let answer = calls.domain_state(domid);
            answer.is_ok_and(|answer| answer.capabilities & capability::CONTROL != 0)
        };
        if self != Self::State || controls(0) {
            return DomId::new(0);
        }
        let found = (1..DomId::FIRST_RESERVED).find(|domid| controls(*domid));
        DomId::new(found.unwrap_or(0))
    }
}

/// The probe showed that the call is allowed, so both of these mean that there is no such domain.
fn or_gone(answer: Result<Option<DomainInfo>, XenError>) -> Result<Option<DomainInfo>, XenError> {
    match answer {
        Err(XenError(EPERM | ESRCH)) => Ok(None),
        answer => answer,
    }
}

fn describe_state(domid: DomId, answer: StateAnswer) -> Option<DomainInfo> {
    let is = |bits| answer.state & bits != 0;
    is(state::EXISTS).then(|| DomainInfo {
        identity: Identity {
            domid,
            unique: UniqueId(u128::from(answer.unique_id)),
        },
        shutdown: is(state::SHUTDOWN),
        dying: is(state::DYING | state::DEAD),
        dead: is(state::DEAD),
    })
}

fn describe_info(domid: DomId, answer: InfoAnswer) -> Option<DomainInfo> {
    let is = |bits| answer.flags & bits != 0;
    (answer.domid == domid.get()).then(|| DomainInfo {
        identity: Identity {
            domid,
            unique: UniqueId(u128::from_be_bytes(answer.handle)),
        },
        shutdown: is(info::SHUTDOWN),
        dying: is(info::DYING),
        dead: is(info::DYING),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeXen, Release};

    const SEVEN: DomId = DomId::new(7);

    fn state(state: u16) -> Option<DomainInfo> {
        let answer = StateAnswer {
            domid: 7,
            state,
            capabilities: 0,
            unique_id: 99,
        };
        describe_state(SEVEN, answer)
    }

    #[test]
    fn all_zero_state_is_no_domain() {
        assert_eq!(state(0), None);
    }

    #[test]
    fn the_dead_are_dying() {
        let dead = state(state::EXISTS | state::DEAD).unwrap();
        assert!(dead.dying && dead.dead && !dead.shutdown);
        let dying = state(state::EXISTS | state::DYING).unwrap();
        assert!(dying.dying && !dying.dead);
        assert_eq!(dead.identity.unique, UniqueId(99));
        let down = state(state::EXISTS | state::SHUTDOWN).unwrap();
        assert!(down.shutdown && !down.dying);
    }

    #[test]
    fn each_release_is_told_from_the_others() {
        for release in Release::ALL {
            let mut xen = FakeXen::with_release(release);
            xen.create(DomId::new(0));
            let expected = match release {
                Release::Xen4_14 => DomainInterface::Info { version: 0x12 },
                Release::Xen4_17 => DomainInterface::Info { version: 0x15 },
                Release::Xen4_18 => DomainInterface::Info { version: 0x16 },
                Release::Xen4_20 => DomainInterface::Info { version: 0x17 },
                Release::Xen4_21 | Release::Xen4_22 => DomainInterface::State,
            };
            assert_eq!(DomainInterface::probe(&mut xen), expected, "{release:?}");
        }
    }

    #[test]
    fn every_release_tells_who_is_there_who_shut_down_and_who_is_gone() {
        for release in Release::ALL {
            let mut xen = FakeXen::with_release(release);
            for id in [0, 7, 9] {
                xen.create(DomId::new(id));
            }
            let interface = DomainInterface::probe(&mut xen);
            let look = |domid| interface.domain(&mut xen.clone(), domid);
            let seven = look(SEVEN).unwrap().unwrap();
            assert_eq!(seven.identity.domid, SEVEN, "{release:?}");
            assert!(!seven.shutdown && !seven.dying && !seven.dead);
            for id in [8, 10, 0x7ff4, 0x7ff0, u16::MAX] {
                assert_eq!(look(DomId::new(id)), Ok(None), "{release:?}: {id}");
            }
            xen.change(SEVEN, |info| info.shutdown = true);
            assert!(look(SEVEN).unwrap().unwrap().shutdown, "{release:?}");
            xen.change(SEVEN, |info| info.dead = true);
            let dead = look(SEVEN).unwrap().unwrap();
            assert!(dead.dead && dead.dying, "{release:?}");
            xen.create(SEVEN);
            let next = look(SEVEN).unwrap().unwrap();
            assert_ne!(next.identity, seven.identity, "{release:?}");
            xen.destroy(SEVEN);
            assert_eq!(look(SEVEN), Ok(None), "{release:?}");
        }
    }

    #[test]
    fn only_the_newer_call_lists_what_changed_and_only_for_the_one_who_has_the_interrupt() {
        use crate::xen::Events as _;
        for release in Release::ALL {
            let mut xen = FakeXen::with_release(release);
            for id in [0, 7, 9] {
                xen.create(DomId::new(id));
            }
            let interface = DomainInterface::probe(&mut xen);
            assert!(interface.next_changed(&mut xen).is_err(), "{release:?}");
            xen.bind_domain_exception().unwrap();
            let named: Result<Vec<u16>, XenError> =
                core::iter::from_fn(|| interface.next_changed(&mut xen).transpose())
                    .take(10)
                    .map(|domid| domid.map(DomId::get))
                    .collect();
            match interface {
                DomainInterface::State => assert_eq!(named, Ok(vec![0, 7, 9])),
                _ => assert_eq!(named, Err(XenError(ENOSYS))),
            }
        }
    }

    #[test]
    fn the_privileged_domain_is_the_first_that_controls_the_host() {
        let mut xen = FakeXen::with_release(Release::Xen4_22);
        for id in [0, 7, 9] {
            xen.create(DomId::new(id));
        }
        let interface = DomainInterface::probe(&mut xen);
        assert_eq!(interface.privileged_domain(&mut xen), DomId::new(0));
        xen.give_control(SEVEN);
        assert_eq!(interface.privileged_domain(&mut xen), SEVEN);
        let mut old = FakeXen::with_release(Release::Xen4_17);
        old.create(DomId::new(0));
        let interface = DomainInterface::probe(&mut old);
        assert_eq!(interface.privileged_domain(&mut old), DomId::new(0));
    }

    #[test]
    fn without_either_call_nothing_is_said_of_anyone() {
        let mut xen = FakeXen::default();
        assert_eq!(
            DomainInterface::Neither.domain(&mut xen, SEVEN),
            Err(XenError(EACCES))
        );
    }
}
