//! Which requests a layer means: whose, and of which group of types.

use crate::extension::{Why, number};
use crate::ids::DomId;
use crate::layer::Call;
use crate::wire::Kind;

/// A group of request types that cost alike and fail alike, as reads, writes and flushes of a disk do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// READ, GET_PERMS and what else only asks.
    Read,
    /// DIRECTORY and DIRECTORY_PART.
    List,
    /// WRITE, MKDIR, RM and SET_PERMS.
    Write,
    /// WATCH, UNWATCH and RESET_WATCHES.
    Watch,
    /// TRANSACTION_START.
    Begin,
    /// TRANSACTION_END.
    End,
    /// What the toolstack asks for.
    Domain,
}

impl Group {
    /// Each with the name that words have for it, in order of [`Group::place`].
    pub(crate) const NAMES: [(&'static str, Self); 7] = [
        ("read", Self::Read),
        ("list", Self::List),
        ("write", Self::Write),
        ("watch", Self::Watch),
        ("begin", Self::Begin),
        ("end", Self::End),
        ("domain", Self::Domain),
    ];

    pub(crate) fn parse(name: &str) -> Option<Self> {
        let mut names = Self::NAMES.iter();
        names
            .find(|(known, _)| *known == name)
            .map(|(_, group)| *group)
    }

    /// A number below 7 that is its own.
    pub(crate) const fn place(self) -> usize {
        self as usize
    }

    /// That of a type; none for CONTROL, so that the administrator can always put an end to what he began, and for types that nobody serves.
    fn of(kind: Kind) -> Option<Self> {
        Some(match kind {
            Kind::Read | Kind::GetPerms | Kind::GetDomainPath | Kind::GetFeature => Self::Read,
            Kind::Directory | Kind::DirectoryPart => Self::List,
            Kind::Write | Kind::Mkdir | Kind::Rm | Kind::SetPerms => Self::Write,
            Kind::Watch | Kind::Unwatch | Kind::ResetWatches => Self::Watch,
            Kind::TransactionStart => Self::Begin,
            Kind::TransactionEnd => Self::End,
            Kind::Introduce
            | Kind::Release
            | Kind::IsDomainIntroduced
            | Kind::Resume
            | Kind::SetTarget
            | Kind::SetFeature
            | Kind::GetQuota
            | Kind::SetQuota => Self::Domain,
            Kind::Control | Kind::WatchEvent | Kind::Error | Kind::Restrict => return None,
        })
    }
}

/// Whose requests a layer means: parameter `who`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Who {
    /// All but the privileged domain's: what dom0 waits for, every guest waits for.
    #[default]
    Guests,
    All,
    One(DomId),
}

impl Who {
    pub(crate) fn parse(text: &str) -> Result<Self, Why> {
        Ok(match text {
            "guests" => Self::Guests,
            "all" => Self::All,
            _ => {
                let domid = number(text, u32::from(u16::MAX));
                let domid = domid.ok().and_then(|domid| u16::try_from(domid).ok());
                Self::One(DomId::new(domid.ok_or("who is guests, all, or a domid")?))
            }
        })
    }

    /// The group of a request, if it is one of theirs.
    pub(crate) fn group(self, call: &Call<'_>) -> Option<Group> {
        let is_theirs = match self {
            Self::Guests => !call.is_privileged(),
            Self::All => true,
            Self::One(domid) => call.domid() == domid,
        };
        call.kind().filter(|_| is_theirs).and_then(Group::of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_group_has_a_place_and_a_name() {
        for (place, (name, group)) in Group::NAMES.into_iter().enumerate() {
            assert_eq!(group.place(), place);
            assert_eq!(Group::parse(name), Some(group));
        }
        assert_eq!(Group::parse("control"), None);
    }

    #[test]
    fn all_types_that_are_served_have_one_but_control() {
        for kind in Kind::ALL {
            let served = crate::request::is_served(*kind) && *kind != Kind::Control;
            assert_eq!(Group::of(*kind).is_some(), served, "{kind:?}");
        }
    }

    #[test]
    fn whose_requests_are_meant() {
        assert_eq!(Who::parse("guests"), Ok(Who::Guests));
        assert_eq!(Who::parse("all"), Ok(Who::All));
        assert_eq!(Who::parse("7"), Ok(Who::One(DomId::new(7))));
        for wrong in ["", "none", "-1", "65536"] {
            assert!(Who::parse(wrong).is_err(), "{wrong}");
        }
    }
}
