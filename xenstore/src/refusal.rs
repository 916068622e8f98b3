//! Why a domain does not get what it asks for, or not at once: counted by reason, told in the log (hostility.md R30).

use core::fmt;

use crate::quota::Quota;

/// A reason, with which goes a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Quota(Quota),
    /// The store has so little memory left that nobody gets more than what is guaranteed.
    StoreMemory,
    /// It made too many transactions of others fail.
    ConflictCredit,
    /// It changed too much while others had transactions open.
    WriteCredit,
    /// It had a transaction open for long while the store had little memory left.
    OpenTransaction,
    /// A policy does not let it.
    Policy,
}

/// How many there are.
pub(crate) const REASONS: usize = Quota::COUNT + 5;

impl Reason {
    /// Each, in order of [`Reason::place`].
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let others = [
            Self::StoreMemory,
            Self::ConflictCredit,
            Self::WriteCredit,
            Self::OpenTransaction,
            Self::Policy,
        ];
        Quota::all().map(Self::Quota).chain(others)
    }

    /// A number below [`REASONS`] that is its own.
    pub(crate) fn place(self) -> usize {
        let behind_quotas = match self {
            Self::Quota(quota) => return quota as usize,
            Self::StoreMemory => 0,
            Self::ConflictCredit => 1,
            Self::WriteCredit => 2,
            Self::OpenTransaction => 3,
            Self::Policy => 4,
        };
        Quota::COUNT.saturating_add(behind_quotas)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Quota(quota) => quota.name(),
            Self::StoreMemory => "store-memory",
            Self::ConflictCredit => "conflict-credit",
            Self::WriteCredit => "write-credit",
            Self::OpenTransaction => "open-transaction",
            Self::Policy => "policy",
        }
    }

    /// What comes of it.
    pub(crate) fn consequence(self) -> &'static str {
        match self {
            Self::Quota(Quota::Outstanding) | Self::ConflictCredit | Self::WriteCredit => "held",
            Self::Quota(Quota::SoftMemory) => "above",
            Self::OpenTransaction => "ended",
            Self::Quota(_) | Self::StoreMemory | Self::Policy => "refused",
        }
    }
}

/// As the log has it.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quota(quota) => write!(f, "quota {}", quota.name()),
            Self::StoreMemory => f.write_str("bytes while the store has little memory left"),
            Self::ConflictCredit => f.write_str("conflict credit used up"),
            Self::WriteCredit => f.write_str("write credit used up"),
            Self::OpenTransaction => {
                f.write_str("a transaction open for more ms while the store has little memory left")
            }
            Self::Policy => f.write_str("policy"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_place() {
        let places: Vec<usize> = Reason::all().map(Reason::place).collect();
        assert_eq!(places, (0..REASONS).collect::<Vec<_>>());
    }
}
