//! The policy `legacy`: what the access control lists say (protocol.md section 5), which is what every xenstore does.

use super::{Access, Policy};
use crate::acl::{Acl, Right, Subject};
use crate::bugs;
use crate::path::PathRef;
use crate::wire::Errno;

/// The access control list decides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Legacy;

impl Policy for Legacy {
    fn name(&self) -> &'static str {
        "legacy"
    }

    fn check(&self, access: &Access<'_>) -> Result<(), Errno> {
        let right = access.operation.right();
        let judge = |acl: &Acl| check(&access.subject, right, access.path, acl);
        access.acl.map_or(Ok(()), judge)
    }
}

/// Whether a list gives a right to a path: asked directly where every request comes by.
#[inline]
pub(crate) fn check(
    subject: &Subject,
    right: Right,
    path: PathRef<'_>,
    acl: &Acl,
) -> Result<(), Errno> {
    if acl.allows(subject, right) || bugs::XSA_353 && path.is_root() {
        Ok(())
    } else {
        Err(Errno::EACCES)
    }
}
