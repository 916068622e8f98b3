//! The lease space as nodes: where things are, what they say, and what a call can be answered with.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::extension::View;
use crate::ids::DomId;
use crate::wire::{Errno, decimal};

/// Where all of it is.
pub(super) const FOLDER: &str = "/lease";
/// The folders of a resource.
pub(super) const DIRS: [&str; 3] = [HOLDER, WAIT, MOVE];
pub(super) const HOLDER: &str = "holder";
pub(super) const WAIT: &str = "wait";
pub(super) const MOVE: &str = "move";
/// Spaces that there can be.
pub(super) const SPACES_MAX: usize = 64;
/// Resources in a space.
pub(super) const RESOURCES_MAX: usize = 1024;
/// Holders of a resource, and domains that wait for it.
pub(super) const USERS_MAX: usize = 64;
/// How long a move may take, in seconds: if nothing is said, and at most.
const MOVE_S: u32 = 60;
const MOVE_S_MAX: u32 = 600;

/// How a resource is held. What is held so can be held by others in the same mode, but for an exclusive one; in another mode never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By one.
    Exclusive,
    /// By several, who have agreed on how to write to it.
    Shared,
    /// By several, while nobody writes.
    ReadOnly,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Exclusive, Self::Shared, Self::ReadOnly];

    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
            Self::ReadOnly => "read-only",
        }
    }

    /// Reads one.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.name().as_bytes() == text)
    }

    /// Whether two domains can hold it so at a time.
    fn goes_with(self, other: Self) -> bool {
        self == other && self != Self::Exclusive
    }
}

/// Why a call is refused; there is no other reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No such mode, domain, or time; or somebody else's affair.
    BadParameter,
    /// There is no such resource.
    NotRegistered,
    /// This domain holds it.
    Conflict(DomId),
    /// The domain does not hold it, wait for it, or move.
    NotHeld,
    /// This domain holds it, and is about to hand it over.
    Migrating(DomId),
    /// The resource does not have this mode; nodes that mean nothing.
    Unsupported,
    /// There are as many as there can be.
    Quota,
    /// What the nodes say makes no sense: they were written while nobody looked.
    Internal,
}

impl Refused {
    /// What the client is answered with, another one for each.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::BadParameter => Errno::EINVAL,
            Self::NotRegistered => Errno::ENOENT,
            Self::Conflict(_) => Errno::EBUSY,
            Self::NotHeld => Errno::EPERM,
            Self::Migrating(_) => Errno::EAGAIN,
            Self::Unsupported => Errno::ENOSYS,
            Self::Quota => Errno::ENOSPC,
            Self::Internal => Errno::EIO,
        }
    }
}

/// What is known of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inquiry {
    /// The modes in which it can be held.
    pub modes: Vec<Mode>,
    /// Who holds it.
    pub holders: Vec<(DomId, Mode)>,
    /// Who waits for it, in order.
    pub waiters: Vec<(DomId, Mode)>,
    /// Who is about to hand it over.
    pub moves: Vec<Move>,
}

/// A lease that is about to be handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// By whom.
    pub from: DomId,
    /// To whom.
    pub to: DomId,
    /// Within how many seconds, counted from its beginning.
    pub seconds: u32,
}

impl Inquiry {
    /// In which mode a domain holds it.
    #[must_use]
    pub fn mode_of(&self, domid: DomId) -> Option<Mode> {
        let mut holders = self.holders.iter();
        let held = holders.find(|(holder, _)| *holder == domid);
        held.map(|(_, mode)| *mode)
    }

    pub(super) fn waits(&self, domid: DomId) -> bool {
        self.waiters.iter().any(|(waiter, _)| *waiter == domid)
    }

    pub(super) fn move_from(&self, domid: DomId) -> Option<&Move> {
        self.moves.iter().find(|next| next.from == domid)
    }

    /// Whether all holders can hold it at a time, and the resource has all modes. Who takes over is there before the other one goes.
    fn is_possible(&self) -> bool {
        let is_leaving = |domid: DomId| {
            let next = self.move_from(domid);
            next.is_some_and(|next| self.mode_of(next.to).is_some())
        };
        let holders = self.holders.iter();
        let stay = holders.filter(|(domid, _)| self.moves.is_empty() || !is_leaving(*domid));
        let mut pairs = stay.clone().zip(stay.skip(1));
        let mut users = self.holders.iter().chain(&self.waiters);
        pairs.all(|((_, one), (_, other))| one.goes_with(*other))
            && users.all(|(_, mode)| self.modes.contains(mode))
    }

    /// Another holder with whom a domain cannot hold it so.
    pub(super) fn in_the_way(&self, domid: DomId, mode: Mode) -> Option<DomId> {
        let mut holders = self.holders.iter();
        let other = holders.find(|(holder, held)| *holder != domid && !mode.goes_with(*held));
        other.map(|(holder, _)| *holder)
    }
}

/// What is known of the resource at a path such as `/lease/disks/root`.
///
/// # Errors
/// It is not registered, or its nodes make no sense.
pub fn inquire(view: &dyn View, resource: &str) -> Result<Inquiry, Refused> {
    let modes = view.value(resource).ok_or(Refused::NotRegistered)?;
    let users = |folder: &str| -> Result<Vec<(DomId, Mode)>, Refused> {
        let folder = format!("{resource}/{folder}");
        let read = |name: String| {
            let mode = view.value(&format!("{folder}/{name}"));
            let mode = mode.and_then(Mode::parse).ok_or(Refused::Internal)?;
            Ok((domid_of(&name).ok_or(Refused::Internal)?, mode))
        };
        names(view, &folder).map(read).collect()
    };
    let folder = format!("{resource}/{MOVE}");
    let moves = names(view, &folder).map(|name| {
        let next = view.value(&format!("{folder}/{name}"));
        let (to, seconds) = next.and_then(move_of).ok_or(Refused::Internal)?;
        let from = domid_of(&name).ok_or(Refused::Internal)?;
        Ok(Move { from, to, seconds })
    });
    let state = Inquiry {
        modes: modes_of(modes).ok_or(Refused::Internal)?,
        holders: users(HOLDER)?,
        waiters: users(WAIT)?,
        moves: moves.collect::<Result<_, Refused>>()?,
    };
    if state.is_possible() {
        Ok(state)
    } else {
        Err(Refused::Internal)
    }
}

/// What a path of the lease space is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<'p> {
    /// Nothing of ours.
    Outside,
    Root,
    Space,
    Resource {
        resource: &'p str,
        space: &'p str,
    },
    /// A domain in a folder of a resource.
    User {
        resource: &'p str,
        folder: &'p str,
        domid: &'p str,
    },
    /// What means nothing, and the folders themselves.
    Elsewhere {
        resource: &'p str,
    },
}

impl<'p> Place<'p> {
    pub(super) fn of(path: &'p str) -> Self {
        let Some(below) = path.strip_prefix(FOLDER) else {
            return Self::Outside;
        };
        let Some(names) = below.strip_prefix('/') else {
            return if below.is_empty() {
                Self::Root
            } else {
                Self::Outside
            };
        };
        let mut names = names.split('/');
        let space = names.next().unwrap_or_default();
        let Some(name) = names.next() else {
            return Self::Space;
        };
        // The folder, two slashes, and two names.
        let len = [FOLDER.len(), space.len(), name.len(), 2];
        let len = len.into_iter().fold(0, usize::saturating_add);
        let resource = path.get(..len).unwrap_or(path);
        match (names.next(), names.next(), names.next()) {
            (None, ..) => Self::Resource { resource, space },
            (Some(folder), Some(domid), None) if DIRS.contains(&folder) => Self::User {
                resource,
                folder,
                domid,
            },
            _ => Self::Elsewhere { resource },
        }
    }

    /// The resource that it belongs to.
    pub(super) fn resource(&self) -> Option<&'p str> {
        match self {
            Self::Outside | Self::Root | Self::Space => None,
            Self::Resource { resource, .. }
            | Self::User { resource, .. }
            | Self::Elsewhere { resource } => Some(resource),
        }
    }
}

/// The names of children of a node, at most as many as there can be of anything here.
pub(super) fn names(view: &dyn View, path: &str) -> impl Iterator<Item = String> + use<> {
    let mut names = Vec::new();
    view.children(path, &mut |name| {
        names.push(name.into());
        names.len() < RESOURCES_MAX
    });
    names.into_iter()
}

/// How many children a node has, at most as many as there can be.
pub(super) fn count(view: &dyn View, path: &str) -> usize {
    let mut count = 0_usize;
    view.children(path, &mut |_| {
        count = count.saturating_add(1);
        count < RESOURCES_MAX
    });
    count
}

/// A domid as it stands in a path: plain decimal, and of a domain that there can be.
pub(super) fn domid_of(text: &str) -> Option<DomId> {
    let number = decimal(text.as_bytes(), u16::MAX.into()).ok()?;
    let domid = DomId::new(u16::try_from(number).ok()?);
    let is_plain = text == "0" || !text.starts_with('0');
    (domid.is_ordinary() && is_plain).then_some(domid)
}

/// A list of modes, none twice.
pub(super) fn modes_of(text: &[u8]) -> Option<Vec<Mode>> {
    let mut modes = Vec::new();
    for word in text.split(|byte| *byte == b',') {
        let mode = Mode::parse(word)?;
        if modes.contains(&mode) {
            return None;
        }
        modes.push(mode);
    }
    Some(modes)
}

/// To whom, and within how many seconds.
pub(super) fn move_of(text: &[u8]) -> Option<(DomId, u32)> {
    let mut words = core::str::from_utf8(text).ok()?.split(' ');
    let to = domid_of(words.next()?)?;
    let seconds = match words.next() {
        None => MOVE_S,
        Some(seconds) => decimal(seconds.as_bytes(), MOVE_S_MAX).ok()?,
    };
    (seconds > 0 && words.next().is_none()).then_some((to, seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found() {
        let resource = "/lease/s/r";
        assert_eq!(Place::of("/leases"), Place::Outside);
        assert_eq!(Place::of("/a/lease/s/r"), Place::Outside);
        assert_eq!(Place::of("/lease"), Place::Root);
        assert_eq!(Place::of("/lease/s"), Place::Space);
        assert_eq!(
            Place::of(resource),
            Place::Resource {
                resource,
                space: "s"
            }
        );
        for path in [
            "/lease/s/r/holder",
            "/lease/s/r/x/5",
            "/lease/s/r/holder/5/x",
        ] {
            assert_eq!(Place::of(path), Place::Elsewhere { resource }, "{path}");
        }
        let user = Place::User {
            resource,
            folder: WAIT,
            domid: "5",
        };
        assert_eq!(Place::of("/lease/s/r/wait/5"), user);
    }

    #[test]
    fn modes_go_together_or_not() {
        for one in Mode::ALL {
            assert_eq!(Mode::parse(one.name().as_bytes()), Some(one));
            for other in Mode::ALL {
                let expected = one == other && one != Mode::Exclusive;
                assert_eq!(one.goes_with(other), expected);
            }
        }
        assert_eq!(modes_of(b"shared,exclusive").unwrap().len(), 2);
        for wrong in [
            &b""[..],
            b"shared,",
            b"shared,shared",
            b"Shared",
            b"shared exclusive",
        ] {
            assert_eq!(modes_of(wrong), None);
        }
    }

    #[test]
    fn moves_are_read() {
        assert_eq!(move_of(b"7"), Some((DomId::new(7), 60)));
        assert_eq!(move_of(b"7 600"), Some((DomId::new(7), 600)));
        for wrong in [
            &b""[..],
            b"x",
            b"07",
            b"7 0",
            b"7 601",
            b"7 5 5",
            b"32752",
            b"7 ",
        ] {
            assert_eq!(move_of(wrong), None);
        }
    }

    #[test]
    fn each_refusal_has_an_error_of_its_own() {
        let someone = DomId::new(5);
        let all = [
            (Refused::BadParameter, Errno::EINVAL),
            (Refused::NotRegistered, Errno::ENOENT),
            (Refused::Conflict(someone), Errno::EBUSY),
            (Refused::NotHeld, Errno::EPERM),
            (Refused::Migrating(someone), Errno::EAGAIN),
            (Refused::Unsupported, Errno::ENOSYS),
            (Refused::Quota, Errno::ENOSPC),
            (Refused::Internal, Errno::EIO),
        ];
        let mut errors: Vec<Errno> = all.iter().map(|(_, errno)| *errno).collect();
        errors.dedup();
        assert_eq!(errors.len(), all.len());
        assert!(all.iter().all(|(refused, errno)| refused.errno() == *errno));
    }
}
