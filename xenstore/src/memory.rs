//! How much memory is left, and what guests may still take of it: the store must never be the one that runs out (hostility.md 5.4).

use core::fmt;

use crate::counters::Counters;
use crate::domain::Domain;
use crate::quota::{Quota, Quotas, within};
use crate::refusal::Reason;
use crate::time::Instant;
use crate::wire::Errno;

/// Free memory below this part of all is scarce, in per cent.
const SCARCE_BELOW: u64 = 25;
/// Free memory below this part of all is kept for the toolstack, for deletions and for the ends of domains, in per cent.
const SHORT_BELOW: u64 = 10;
/// Bytes that a domain may have even when memory is scarce.
const GUARANTEE: u32 = 64 * 1024;

/// What the host has for the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Supply {
    #[default]
    Plenty,
    /// No unprivileged domain grows beyond what is guaranteed.
    Scarce,
    /// No unprivileged domain grows.
    Short,
}

impl fmt::Display for Supply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plenty => "enough for all",
            Self::Scarce => "scarce, guests may have what is guaranteed",
            Self::Short => "short, guests may take no more",
        })
    }
}

impl Supply {
    /// What it means that `free` bytes of `total` are free.
    pub(crate) fn of(free: u64, total: u64) -> Self {
        let below = |percent: u64| free.saturating_mul(100) < total.saturating_mul(percent);
        if below(SHORT_BELOW) {
            Self::Short
        } else if below(SCARCE_BELOW) {
            Self::Scarce
        } else {
            Self::Plenty
        }
    }

    /// Whether an unprivileged domain may grow so that it has `after` bytes.
    pub(crate) fn admits(self, after: u64) -> bool {
        match self {
            Self::Plenty => true,
            Self::Scarce => after <= u64::from(GUARANTEE),
            Self::Short => false,
        }
    }

    /// Bytes that an unprivileged domain may grow to.
    fn limit(self) -> u32 {
        match self {
            Self::Plenty => u32::MAX,
            Self::Scarce => GUARANTEE,
            Self::Short => 0,
        }
    }
}

/// What there is too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// The store's own memory; a domain may have so many bytes.
    Store(u32),
    /// The domain's quota, which is this.
    Quota(u32),
}

impl Lack {
    /// What the client hears.
    pub(crate) fn errno(self) -> Errno {
        match self {
            Self::Store(_) => Errno::ENOSPC,
            Self::Quota(_) => Errno::ENOMEM,
        }
    }

    /// Counts and logs that a client was refused for this.
    pub(crate) fn count(self, counters: &Counters, now: Instant) {
        let (reason, limit) = match self {
            Self::Store(limit) => (Reason::StoreMemory, limit),
            Self::Quota(limit) => (Reason::Quota(Quota::Memory), limit),
        };
        counters.refuse(reason, limit, now);
    }
}

/// Whether an unprivileged `domain` may have `after` bytes.
///
/// # Errors
/// What it would be too much for.
pub(crate) fn check(
    supply: Supply,
    quotas: &Quotas,
    domain: &Domain,
    after: u64,
) -> Result<(), Lack> {
    if !supply.admits(after) {
        return Err(Lack::Store(supply.limit()));
    }
    let limit = quotas.of(&domain.overrides, Quota::Memory);
    if within(after, limit) {
        Ok(())
    } else {
        Err(Lack::Quota(limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marks_are_where_they_are_said_to_be() {
        assert_eq!(Supply::of(25, 100), Supply::Plenty);
        assert_eq!(Supply::of(24, 100), Supply::Scarce);
        assert_eq!(Supply::of(10, 100), Supply::Scarce);
        assert_eq!(Supply::of(9, 100), Supply::Short);
        assert_eq!(Supply::of(0, 0), Supply::Plenty);
        assert_eq!(Supply::of(u64::MAX, u64::MAX), Supply::Plenty);
    }

    #[test]
    fn what_is_guaranteed_is_admitted_while_memory_is_scarce() {
        assert!(Supply::Scarce.admits(u64::from(GUARANTEE)));
        assert!(!Supply::Scarce.admits(u64::from(GUARANTEE) + 1));
        assert!(!Supply::Short.admits(0));
        assert!(Supply::Plenty.admits(u64::MAX));
    }
}
