//! Who may do what with a node (protocol.md section 5).

use crate::ANY;

/// Whom an entry of a list means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// A domain in one of its lives.
    Life(u16, u32),
    Any,
    Nobody(u16),
}

impl Who {
    pub(crate) fn domid(self) -> u16 {
        match self {
            Self::Life(domid, _) | Self::Nobody(domid) => domid,
            Self::Any => ANY,
        }
    }
}

/// A list of permissions; the first entry is the owner's.
pub(crate) type Acl = Vec<(u8, Who)>;

/// One who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    pub(crate) who: Who,
    pub(crate) target: Option<Who>,
    pub(crate) privileged: bool,
}

impl Subject {
    /// Whether a list gives a right: `r`, `w`, or `o` for the owner's. What the target may, the domain may, too.
    pub(crate) fn may(&self, acl: &Acl, right: u8) -> bool {
        let mut sides = [Some(self.who), self.target].into_iter().flatten();
        self.privileged || sides.any(|who| gives(acl, who, right))
    }
}

pub(crate) fn owner(acl: &Acl) -> Option<Who> {
    acl.first().map(|(_, who)| *who)
}

fn gives(acl: &Acl, to: Who, right: u8) -> bool {
    if owner(acl) == Some(to) {
        return true;
    }
    let mut listed = acl.iter().skip(1);
    let entry = listed.find(|(_, who)| *who == to || *who == Who::Any);
    let letter = entry.or(acl.first()).map_or(b'n', |(letter, _)| *letter);
    letter == right || (letter == b'b' && right != b'o')
}
