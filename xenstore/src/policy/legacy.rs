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
        check(&access.subject, right, access.path, access.acl)
    }
}

/// Whether a list, if there is one, gives a right to a path; asked directly where every request comes by.
#[inline]
pub(crate) fn check(
    subject: &Subject,
    right: Right,
    path: PathRef<'_>,
    acl: Option<&Acl>,
) -> Result<(), Errno> {
    let is_allowed = acl.is_none_or(|acl| acl.allows(subject, right));
    if is_allowed || bugs::XSA_353 && path.is_root() {
        Ok(())
    } else {
        Err(Errno::EACCES)
    }
}
