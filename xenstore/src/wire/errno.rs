//! The 16 error names that clients know: nothing else may leave the server (hostility.md R29).

use core::fmt;

/// An error as the protocol names it (`xsd_errors` in `io/xs_wire.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the field's own")]
pub enum Errno {
    EINVAL,
    EACCES,
    EEXIST,
    EISDIR,
    ENOENT,
    ENOMEM,
    ENOSPC,
    EIO,
    ENOTEMPTY,
    ENOSYS,
    EROFS,
    EBUSY,
    EAGAIN,
    EISCONN,
    E2BIG,
    EPERM,
}

impl Errno {
    /// Every error, in the order of the variants.
    pub(crate) const ALL: &[Self] = &[
        Self::EINVAL,
        Self::EACCES,
        Self::EEXIST,
        Self::EISDIR,
        Self::ENOENT,
        Self::ENOMEM,
        Self::ENOSPC,
        Self::EIO,
        Self::ENOTEMPTY,
        Self::ENOSYS,
        Self::EROFS,
        Self::EBUSY,
        Self::EAGAIN,
        Self::EISCONN,
        Self::E2BIG,
        Self::EPERM,
    ];

    /// The name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.payload().trim_end_matches('\0')
    }

    /// The payload of an ERROR reply: the name and a NUL.
    pub(crate) const fn payload(self) -> &'static str {
        match self {
            Self::EINVAL => "EINVAL\0",
            Self::EACCES => "EACCES\0",
            Self::EEXIST => "EEXIST\0",
            Self::EISDIR => "EISDIR\0",
            Self::ENOENT => "ENOENT\0",
            Self::ENOMEM => "ENOMEM\0",
            Self::ENOSPC => "ENOSPC\0",
            Self::EIO => "EIO\0",
            Self::ENOTEMPTY => "ENOTEMPTY\0",
            Self::ENOSYS => "ENOSYS\0",
            Self::EROFS => "EROFS\0",
            Self::EBUSY => "EBUSY\0",
            Self::EAGAIN => "EAGAIN\0",
            Self::EISCONN => "EISCONN\0",
            Self::E2BIG => "E2BIG\0",
            Self::EPERM => "EPERM\0",
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
