//! The policy `legacy`: what the access control lists say (protocol.md section 5), which is what every xenstore does.

use super::{Access, Policy};
use crate::bugs;
use crate::wire::Errno;

/// The access control list decides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Legacy;

impl Policy for Legacy {
    fn name(&self) -> &'static str {
        "legacy"
    }

    #[inline]
    fn check(&self, access: &Access<'_>) -> Result<(), Errno> {
        let right = access.operation.right();
        let is_allowed = access
            .acl
            .is_none_or(|acl| acl.allows(&access.subject, right));
        if is_allowed || bugs::XSA_353 && access.path.is_root() {
            Ok(())
        } else {
            Err(Errno::EACCES)
        }
    }
}
