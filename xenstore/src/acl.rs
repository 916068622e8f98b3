//! Access control lists: one check for every operation on every node, `/` and `@…` included (hostility.md R16).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use slotmap::DefaultKey;

use crate::bugs;
use crate::ids::DomId;
use crate::wire::{Errno, decimal};

/// Entries that a list can have at all, whatever the quota says: what fits into a request.
const ENTRIES_MAX: usize = 1365;

/// One of the domains that have a domid one after the other: an entry for it means nothing to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Incarnation {
    pub(crate) domid: DomId,
    /// Where it stands among the known domains; never given twice.
    pub(crate) life: DefaultKey,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    pub(crate) incarnation: Incarnation,
    /// The domain on whose behalf it may act, too (SET_TARGET).
    pub(crate) target: Option<Incarnation>,
    pub(crate) privileged: bool,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    Read,
    Write,
    /// To change the list itself.
    Own,
}

/// A letter of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Letter {
    None,
    Read,
    Write,
    Both,
}

impl Letter {
    pub(crate) fn parse(byte: u8) -> Result<Self, Errno> {
        match byte {
            b'n' => Ok(Self::None),
            b'r' => Ok(Self::Read),
            b'w' => Ok(Self::Write),
            b'b' => Ok(Self::Both),
            _ => Err(Errno::EINVAL),
        }
    }

    pub(crate) fn as_char(self) -> char {
        match self {
            Self::None => 'n',
            Self::Read => 'r',
            Self::Write => 'w',
            Self::Both => 'b',
        }
    }

    fn allows(self, right: Right) -> bool {
        match right {
            Right::Read => matches!(self, Self::Read | Self::Both),
            Right::Write => matches!(self, Self::Write | Self::Both),
            Right::Own => false,
        }
    }
}

/// Whom an entry means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// One domain, for its life.
    Domain(Incarnation),
    /// Every domain.
    Any,
    /// Nobody: there was no domain with this id when the entry was made. It is still listed.
    Nobody(DomId),
}

impl Holder {
    fn domid(self) -> DomId {
        match self {
            Self::Domain(incarnation) => incarnation.domid,
            Self::Any => DomId::ANY,
            Self::Nobody(domid) => domid,
        }
    }
}

/// A letter for a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) letter: Letter,
    pub(crate) holder: Holder,
}

/// Who may do what: the first entry names the owner, its letter is for all that are not listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    owner: Incarnation,
    others: Letter,
    listed: Vec<Entry>,
}

impl Acl {
    /// For `owner` and nobody else.
    pub(crate) fn private(owner: Incarnation) -> Self {
        Self::new(owner, Letter::None, Vec::new())
    }

    pub(crate) fn new(owner: Incarnation, others: Letter, listed: Vec<Entry>) -> Self {
        Self {
            owner,
            others,
            listed,
        }
    }

    /// The same list with another owner.
    pub(crate) fn owned_by(&self, owner: Incarnation) -> Self {
        Self {
            owner,
            ..self.clone()
        }
    }

    pub(crate) fn owner(&self) -> Incarnation {
        self.owner
    }

    /// What those may who are not listed.
    pub(crate) fn others(&self) -> Letter {
        self.others
    }

    /// The entries behind the owner's.
    pub(crate) fn listed(&self) -> &[Entry] {
        &self.listed
    }

    /// Number of entries, the owner's included.
    pub(crate) fn len(&self) -> usize {
        self.listed.len().saturating_add(1)
    }

    /// Whether `subject` has `right` (protocol.md section 5.1), as itself or for its target: the union of both, so that a narrow
    /// entry for one does not hide a wide one for the other.
    pub(crate) fn allows(&self, subject: &Subject, right: Right) -> bool {
        subject.privileged
            || self.allows_domain(subject.incarnation, right)
            || subject
                .target
                .is_some_and(|target| self.allows_domain(target, right))
    }

    fn allows_domain(&self, domain: Incarnation, right: Right) -> bool {
        if self.owner == domain {
            return true;
        }
        self.listed
            .iter()
            .find(|entry| match entry.holder {
                Holder::Domain(holder) if bugs::XSA_322 => holder.domid == domain.domid,
                Holder::Domain(holder) => holder == domain,
                Holder::Any => true,
                Holder::Nobody(domid) => bugs::XSA_417 && domid == domain.domid,
            })
            .map_or(self.others, |entry| entry.letter)
            .allows(right)
    }

    /// The list as GET_PERMS shows it: each entry with its NUL. Entries of domains that are no more are left out.
    pub(crate) fn encode(&self, is_alive: impl Fn(Incarnation) -> bool) -> String {
        let shown = self.listed.iter().filter(|entry| match entry.holder {
            Holder::Domain(incarnation) => is_alive(incarnation),
            Holder::Any | Holder::Nobody(_) => true,
        });
        let mut text = format!("{}{}\0", self.others.as_char(), self.owner.domid);
        for entry in shown {
            text.push_str(&format!(
                "{}{}\0",
                entry.letter.as_char(),
                entry.holder.domid()
            ));
        }
        text
    }
}

/// Reads one entry, `<letter><domid>`.
///
/// # Errors
/// EINVAL for another letter, or a domid that is no plain decimal of 16 bits.
pub(crate) fn parse_entry(text: &[u8]) -> Result<(Letter, DomId), Errno> {
    let (letter, domid) = text.split_first().ok_or(Errno::EINVAL)?;
    let letter = Letter::parse(*letter)?;
    let domid = decimal(domid, u32::from(u16::MAX))?;
    Ok((
        letter,
        DomId::new(u16::try_from(domid).map_err(|_| Errno::EINVAL)?),
    ))
}

/// Reads the entries of a SET_PERMS request, at least one and at most `limit` (0: as many as fit into a request).
///
/// # Errors
/// EINVAL for none or a misshapen one; ENOSPC for more than `limit`, judged before any is read.
pub(crate) fn parse_entries<'a>(
    entries: impl Iterator<Item = &'a [u8]> + Clone,
    limit: u32,
) -> Result<Vec<(Letter, DomId)>, Errno> {
    let limit = match usize::try_from(limit) {
        Ok(0) | Err(_) => ENTRIES_MAX,
        Ok(limit) => limit,
    };
    match entries.clone().take(limit.saturating_add(1)).count() {
        0 => Err(Errno::EINVAL),
        count if count > limit => Err(Errno::ENOSPC),
        _ => entries.map(parse_entry).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incarnation(domid: u16, life: u64) -> Incarnation {
        Incarnation {
            domid: DomId::new(domid),
            life: slotmap::KeyData::from_ffi(life).into(),
        }
    }

    fn owner() -> Incarnation {
        incarnation(1, 1)
    }

    fn guest() -> Incarnation {
        incarnation(2, 2)
    }

    fn other() -> Incarnation {
        incarnation(2, 3)
    }

    fn subject(incarnation: Incarnation) -> Subject {
        Subject {
            incarnation,
            target: None,
            privileged: false,
        }
    }

    fn entry(letter: Letter, holder: Holder) -> Entry {
        Entry { letter, holder }
    }

    fn acl(others: Letter, listed: &[Entry]) -> Acl {
        Acl::new(owner(), others, listed.to_vec())
    }

    #[test]
    fn the_first_entry_that_names_the_domain_decides() {
        let acl = acl(
            Letter::None,
            &[
                entry(Letter::Both, Holder::Nobody(DomId::new(2))),
                entry(Letter::Read, Holder::Domain(guest())),
                entry(Letter::Both, Holder::Domain(guest())),
                entry(Letter::Write, Holder::Any),
            ],
        );
        assert!(acl.allows(&subject(guest()), Right::Read));
        assert!(!acl.allows(&subject(guest()), Right::Write));
        assert!(!acl.allows(&subject(other()), Right::Read));
        assert!(acl.allows(&subject(other()), Right::Write));
        assert!(acl.allows(&subject(owner()), Right::Own));
        assert!(!acl.allows(&subject(guest()), Right::Own));
    }

    #[test]
    fn those_not_listed_have_the_owners_letter() {
        assert!(acl(Letter::Both, &[]).allows(&subject(guest()), Right::Write));
        assert!(!acl(Letter::Read, &[]).allows(&subject(guest()), Right::Write));
    }

    #[test]
    fn a_target_adds_rights_and_takes_none() {
        let acl = acl(
            Letter::None,
            &[entry(Letter::Read, Holder::Domain(guest()))],
        );
        let stub = Subject {
            target: Some(owner()),
            ..subject(guest())
        };
        assert!(acl.allows(&stub, Right::Write));
        assert!(acl.allows(&stub, Right::Own));
        let widened = Subject {
            target: Some(guest()),
            ..subject(other())
        };
        assert!(acl.allows(&widened, Right::Read));
    }

    #[test]
    fn entries_are_plain() {
        assert_eq!(
            parse_entry(b"b65535"),
            Ok((Letter::Both, DomId::new(65535)))
        );
        for text in [
            "r",
            "x5",
            "r-1",
            "r 5",
            "r+5",
            "r0x5",
            "r05",
            "r5x",
            "r65536",
            "r4294967301",
            "",
        ] {
            assert_eq!(parse_entry(text.as_bytes()), Err(Errno::EINVAL), "{text:?}");
        }
    }

    #[test]
    fn the_limit_is_judged_before_the_entries() {
        let parse =
            |count: usize, limit| parse_entries(std::iter::repeat_n(&b"x"[..], count), limit);
        assert_eq!(parse(0, 5), Err(Errno::EINVAL));
        assert_eq!(parse(5, 5), Err(Errno::EINVAL));
        assert_eq!(parse(6, 5), Err(Errno::ENOSPC));
        assert_eq!(parse(6, 0), Err(Errno::EINVAL));
    }
}
