//! The right to do what only the toolstack may, as a value: a function that needs it cannot be called without it.

use crate::wire::Kind;

/// Held by requests of the privileged domain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Privileged(());

impl Privileged {
    /// The token, for a client that the server found to be privileged.
    pub(crate) fn grant(privileged: bool) -> Option<Self> {
        privileged.then_some(Self(()))
    }
}

/// Whether only the privileged domain may send this request (protocol.md section 3).
pub(crate) fn is_needed(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Control
            | Kind::Introduce
            | Kind::Release
            | Kind::IsDomainIntroduced
            | Kind::Resume
            | Kind::SetTarget
            | Kind::SetFeature
            | Kind::GetQuota
            | Kind::SetQuota
    )
}
