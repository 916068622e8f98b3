//! The numbers of the field as types, so that a gfn cannot be taken for a port nor a dead domain for its successor.

use core::fmt;
use core::num::NonZeroU32;

use slotmap::{DefaultKey, Key};

/// A Xen domain id. Ids from [`DomId::FIRST_RESERVED`] up name no domain (xen.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomId(u16);

impl DomId {
    /// Where the reserved ids begin: 0x7ff0, which is also `DOMID_SELF`.
    pub const FIRST_RESERVED: u16 = 0x7ff0;
    /// `DOMID_ANY` (0x7ff5): in an access control list, "every domain" (protocol.md section 5.1).
    pub const ANY: Self = Self(0x7ff5);
    /// `DOMID_SELF` (0x7ff0).
    pub const SELF: Self = Self(Self::FIRST_RESERVED);

    /// Any 16-bit value, reserved ids included.
    #[must_use]
    pub const fn new(id: u16) -> Self {
        Self(id)
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Whether a domain can have this id.
    #[must_use]
    pub const fn is_ordinary(self) -> bool {
        self.0 < Self::FIRST_RESERVED
    }
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What tells a domain from an earlier one with the same domid: Xen's `unique_id` (4.21 and later), else the domain's uuid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UniqueId(pub u128);

/// One domain for its whole life: rights and charges belong to this, never to the domid alone (hostility.md R13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The id that Xen reuses.
    pub domid: DomId,
    /// The part that it does not.
    pub unique: UniqueId,
}

/// A grant reference in the granting domain's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GrantRef(pub u32);

impl GrantRef {
    /// The reference that every domain reserves for its xenstore ring (`GNTTAB_RESERVED_XENSTORE`).
    pub const XENSTORE: Self = Self(1);
}

/// An event channel port in *another* domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EvtchnPort(pub u32);

/// A transaction of one connection; 0 on the wire means "none" and is not a `TxId`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TxId(NonZeroU32);

impl TxId {
    /// Where a connection begins to count.
    pub(crate) const FIRST: Self = Self(NonZeroU32::MIN);

    /// The transaction with this number; none for 0.
    pub(crate) fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// The number itself.
    pub(crate) fn get(self) -> u32 {
        self.0.get()
    }

    /// The number that comes next; 0 is left out.
    pub(crate) fn next(self) -> Self {
        Self(self.0.checked_add(1).unwrap_or(NonZeroU32::MIN))
    }
}

impl fmt::Display for TxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A request's number, chosen by the client and echoed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReqId(pub u32);

/// Counts the changes of the store; a node carries the one that changed it last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub(crate) u64);

/// One connection's life, in order of their beginnings. Never used twice, so a stale one names nothing (hostility.md R12).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    /// How many began before it. A state stream keeps it, so that an order by connection is the same before and after.
    pub(crate) number: u64,
    /// Where it is kept.
    pub(crate) key: DefaultKey,
}

/// A question to the host that a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(crate) u64);

impl ConnId {
    /// How many connections began before this one.
    #[must_use]
    pub fn number(self) -> u64 {
        self.number
    }

    /// Where the connection stands among those there are: a small number that no other one has at the same time.
    #[must_use]
    pub fn place(self) -> usize {
        // The lower half of the key is the place, the upper one how often it was taken.
        let place = self.key.data().as_ffi() & u64::from(u32::MAX);
        usize::try_from(place).unwrap_or(usize::MAX)
    }
}

/// Its number.
impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(f)
    }
}
