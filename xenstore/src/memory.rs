//! How much memory is left, and what guests may still take of it: the store must never be the one that runs out (hostility.md 5.4).

use core::fmt;

use crate::domain::Domain;
use crate::quota::{Quota, Quotas, within};
use crate::wire::Errno;

/// Free memory below this part of all is scarce, in per cent.
const SCARCE_BELOW: u64 = 25;
/// Free memory below this part of all is kept for the toolstack, for deletions and for the ends of domains, in per cent.
const SHORT_BELOW: u64 = 10;
/// Bytes that a domain may have even when memory is scarce.
const GUARANTEE: u64 = 64 * 1024;

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
            Self::Scarce => after <= GUARANTEE,
            Self::Short => false,
        }
    }
}

/// Whether an unprivileged `domain` may have `after` bytes.
///
/// # Errors
/// ENOSPC if memory is too scarce for that; ENOMEM if its quota is.
pub(crate) fn check(
    supply: Supply,
    quotas: &Quotas,
    domain: &Domain,
    after: u64,
) -> Result<(), Errno> {
    if !supply.admits(after) {
        Err(Errno::ENOSPC)
    } else if !within(after, quotas.of(&domain.overrides, Quota::Memory)) {
        Err(Errno::ENOMEM)
    } else {
        Ok(())
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
        assert!(Supply::Scarce.admits(GUARANTEE));
        assert!(!Supply::Scarce.admits(GUARANTEE + 1));
        assert!(!Supply::Short.admits(0));
        assert!(Supply::Plenty.admits(u64::MAX));
    }
}
