//! What the server offers beyond the first protocol: one bit each, per domain (protocol.md section 12).

/// A set of feature bits, as the guest sees it in its ring page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(u32);

/// Who may begin a transaction inside another; everybody else is answered with EBUSY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nesting {
    /// Nobody.
    #[default]
    Flat,
    /// Domains to which SET_FEATURE gave [`Features::NESTED_TRANSACTIONS`].
    Granted,
    /// Everybody from whom SET_FEATURE did not take it.
    Nested,
}

impl Nesting {
    /// What the word behind `transactions=` means.
    ///
    /// # Errors
    /// There is no such word.
    pub fn parse(word: &[u8]) -> Result<Self, &'static str> {
        match word {
            b"flat" => Ok(Self::Flat),
            b"granted" => Ok(Self::Granted),
            b"nested" => Ok(Self::Nested),
            _ => Err("it takes flat, granted or nested"),
        }
    }

    /// What the server offers, and what SET_FEATURE may give besides.
    #[must_use]
    pub const fn features(self) -> (Features, Features) {
        let nested = Features::NESTED_TRANSACTIONS;
        match self {
            Self::Flat => (Features::ALL, Features::NONE),
            Self::Granted => (Features::ALL, nested),
            Self::Nested => (Features::ALL.with(nested), Features::NONE),
        }
    }
}

impl Features {
    /// The guest may ask for a fresh connection through its ring page.
    pub const RECONNECTION: Self = Self(1);
    /// The server tells in the ring page why it stopped a connection.
    pub const ERROR: Self = Self(2);
    /// WATCH takes a depth.
    pub const WATCH_DEPTH: Self = Self(4);
    /// Permissions for every domain (`DOMID_ANY`).
    pub const DOMID_ANY: Self = Self(8);
    /// A transaction may be inside another. No document knows this bit; it is not offered unless the administrator wishes
    /// ([`crate::Settings`]).
    pub const NESTED_TRANSACTIONS: Self = Self(1 << 31);
    /// Every feature with the name that the protocol gives it.
    pub const NAMES: [(Self, &str); 4] = [
        (Self::RECONNECTION, "RECONNECTION"),
        (Self::ERROR, "ERROR"),
        (Self::WATCH_DEPTH, "WATCHDEPTH"),
        (Self::DOMID_ANY, "DOMID_ANY"),
    ];
    /// Nothing beyond the first protocol.
    pub const NONE: Self = Self(0);
    /// All that the protocol has, which is what the server offers if nobody says otherwise.
    pub const ALL: Self = Self(15);
    const KNOWN: Self = Self::ALL.with(Self::NESTED_TRANSACTIONS);

    /// The set with these bits, if the server has them all.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        if bits & !Self::KNOWN.0 == 0 {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// Those of these bits that the server has.
    pub(crate) const fn known_of(bits: u32) -> Self {
        Self(bits & Self::KNOWN.0)
    }

    /// Those of both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that are in both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
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
