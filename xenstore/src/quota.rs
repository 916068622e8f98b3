//! What a domain may have: the limits, global and per domain.

/// A limit. N means that N are allowed; 0 means no limit (protocol.md section 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each has its description in the table")]
pub enum Quota {
    Nodes,
    Watches,
    Outstanding,
    Memory,
    SoftMemory,
    Transactions,
    TransactionNodes,
    NodePermissions,
    PathMax,
    NodeSize,
}

struct Row {
    quota: Quota,
    name: &'static str,
    default: u32,
    help: &'static str,
}

const fn row(quota: Quota, name: &'static str, default: u32, help: &'static str) -> Row {
    Row {
        quota,
        name,
        default,
        help,
    }
}

/// In the order in which GET_QUOTA names them, which is that of the variants.
const TABLE: [Row; Quota::COUNT] = [
    row(Quota::Nodes, "nodes", 1000, "nodes owned"),
    row(Quota::Watches, "watches", 128, "watches set"),
    row(
        Quota::Outstanding,
        "outstanding",
        20,
        "requests not fully answered",
    ),
    row(
        Quota::Memory,
        "memory",
        2_621_440,
        "bytes used, refused above",
    ),
    row(
        Quota::SoftMemory,
        "soft-memory",
        2_097_152,
        "bytes used, reported above",
    ),
    row(Quota::Transactions, "transactions", 10, "transactions open"),
    row(
        Quota::TransactionNodes,
        "transaction-nodes",
        1024,
        "nodes touched in a transaction",
    ),
    row(
        Quota::NodePermissions,
        "node-permissions",
        5,
        "permissions of a node",
    ),
    row(
        Quota::PathMax,
        "path-max",
        2048,
        "bytes of a path below the home",
    ),
    row(Quota::NodeSize, "node-size", 2048, "bytes of a node"),
];

impl Quota {
    /// How many there are.
    pub(crate) const COUNT: usize = 10;

    /// Every quota, in the order in which GET_QUOTA names them.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.quota)
    }

    /// The quota with this name.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::all().find(|quota| quota.name().as_bytes() == name)
    }

    /// The name that tools use.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// What it limits.
    #[must_use]
    pub fn help(self) -> &'static str {
        self.row().help
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "the table has a row for each variant, as a test shows"
    )]
    const fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }
}

/// The limits that hold for every domain without one of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quotas([u32; Quota::COUNT]);

/// The limits that a domain has of its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides([Option<u32>; Quota::COUNT]);

impl Default for Quotas {
    fn default() -> Self {
        Self(TABLE.each_ref().map(|row| row.default))
    }
}

impl Quotas {
    /// The limit for domains without one of their own.
    #[must_use]
    pub fn get(&self, quota: Quota) -> u32 {
        self.0.get(quota as usize).copied().unwrap_or_default()
    }

    /// Sets a limit; it holds at once for every domain without one of its own.
    pub fn set(&mut self, quota: Quota, limit: u32) {
        if let Some(place) = self.0.get_mut(quota as usize) {
            *place = limit;
        }
    }

    /// The limit for a domain.
    pub(crate) fn of(&self, overrides: &Overrides, quota: Quota) -> u32 {
        let own = overrides.0.get(quota as usize).copied().flatten();
        own.unwrap_or_else(|| self.get(quota))
    }
}

impl Overrides {
    /// Those that there are.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Quota, u32)> {
        let limits = Quota::all().zip(self.0);
        limits.filter_map(|(quota, limit)| Some((quota, limit?)))
    }

    pub(crate) fn set(&mut self, quota: Quota, limit: u32) {
        if let Some(place) = self.0.get_mut(quota as usize) {
            *place = Some(limit);
        }
    }
}

/// The most that any unprivileged domain has had.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peaks([u64; Quota::COUNT]);

impl Peaks {
    pub(crate) fn note(&mut self, quota: Quota, value: u64) {
        if let Some(peak) = self.0.get_mut(quota as usize) {
            *peak = value.max(*peak);
        }
    }

    pub(crate) fn get(&self, quota: Quota) -> u64 {
        self.0.get(quota as usize).copied().unwrap_or_default()
    }
}

/// Whether `count` is within `limit`.
pub(crate) fn within(count: u64, limit: u32) -> bool {
    limit == 0 || count <= u64::from(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_for_each_quota() {
        for (index, quota) in Quota::all().enumerate() {
            assert_eq!(quota as usize, index);
            assert_eq!(Quota::from_name(quota.name().as_bytes()), Some(quota));
        }
    }

    #[test]
    fn a_global_change_reaches_all_without_their_own() {
        let mut quotas = Quotas::default();
        let inherited = Overrides::default();
        let mut own = Overrides::default();
        own.set(Quota::Nodes, 7);
        quotas.set(Quota::Nodes, 5);
        assert_eq!(quotas.of(&inherited, Quota::Nodes), 5);
        assert_eq!(quotas.of(&own, Quota::Nodes), 7);
    }

    #[test]
    fn a_limit_admits_its_number() {
        assert!(within(20, 20));
        assert!(!within(21, 20));
        assert!(within(u64::MAX, 0));
    }
}
