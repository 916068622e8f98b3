//! What the server offers beyond the first protocol: one bit each, per domain (protocol.md section 12).

/// A set of feature bits, as the guest sees it in its ring page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(u32);

impl Features {
    /// The guest may ask for a fresh connection through its ring page.
    pub const RECONNECTION: Self = Self(1);
    /// The server tells in the ring page why it stopped a connection.
    pub const ERROR: Self = Self(2);
    /// WATCH takes a depth.
    pub const WATCH_DEPTH: Self = Self(4);
    /// Permissions for every domain (`DOMID_ANY`).
    pub const DOMID_ANY: Self = Self(8);
    /// Every feature with the name that the protocol gives it.
    pub const NAMES: [(Self, &str); 4] = [
        (Self::RECONNECTION, "RECONNECTION"),
        (Self::ERROR, "ERROR"),
        (Self::WATCH_DEPTH, "WATCHDEPTH"),
        (Self::DOMID_ANY, "DOMID_ANY"),
    ];
    /// All that this server has.
    pub const ALL: Self = Self(15);

    /// The set with these bits, if the server has them all.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        if bits & !Self::ALL.0 == 0 {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// Those of these bits that the server has.
    pub(crate) const fn known_of(bits: u32) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// The word for the ring page.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other` is in this set.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}
