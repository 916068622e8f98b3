//! Policies: may it? Each can only narrow what the ones before it allow.
//!
//! `legacy`, the access control lists, is always there and always first. The others are looked at in the order given, and the first
//! refusal is the answer. They judge every access in a transaction and out of it, and again when a transaction is merged.

mod chinese_wall;
pub mod lease;
pub(crate) mod legacy;
mod protocol;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::mem;

use crate::acl::{Acl, Right, Subject};
use crate::counters::Counters;
use crate::domain::Domains;
pub use crate::extension::{Keep, View, WordError};
use crate::extension::{LIST_MAX, Sort, items};
use crate::ids::DomId;
use crate::path::{Path, PathRef};
use crate::time::Instant;
use crate::wire::{Errno, Kind};

use legacy::Legacy;

/// Accesses of one request that are noted for policies: more than any request has.
const PASSED_MAX: usize = 16;

/// Says who may do what. What a policy must remember is in nodes ([`Keep`]), below `/tool/xenstored/` unless clients have to do with it.
pub trait Policy {
    /// What it is called in lists and in the log.
    fn name(&self) -> &'static str;

    /// Judges an access, and changes nothing. It may be asked more than once about the same access, and about some that come to nothing.
    ///
    /// # Errors
    /// What the client is answered instead; EACCES unless the policy's own documentation says otherwise.
    fn check(&self, access: &Access<'_>) -> Result<(), Errno>;

    /// An access that all policies let pass was answered, whether or not a transaction will ever be committed of which it is part.
    fn passed(&mut self, _passed: &Passed, _keep: &mut dyn Keep) {}

    /// Whether it wants to know when a transaction that has changed this node is committed.
    fn wants(&self, _path: PathRef<'_>) -> bool {
        false
    }

    /// A transaction that has changed such a node is committed.
    fn committed(&mut self, _path: PathRef<'_>, _keep: &mut dyn Keep) {}

    /// It begins to be looked at: at the start, after a live update, or when the administrator says so.
    fn started(&mut self, _keep: &mut dyn Keep) {}

    /// A domain is no more: its connection is closed and its nodes are gone, and nobody has been told of it yet.
    fn domain_ended(&mut self, _domid: DomId, _keep: &mut dyn Keep) {}

    /// When [`Policy::time_passed`] is due.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// What was due is done.
    fn time_passed(&mut self, _now: Instant, _keep: &mut dyn Keep) {}
}

/// What a client does to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// READ.
    Read,
    /// DIRECTORY or DIRECTORY_PART.
    List,
    /// GET_PERMS.
    GetPerms,
    /// WRITE, of this value.
    Write(&'a [u8]),
    /// MKDIR.
    Mkdir,
    /// RM, of the node with all below it.
    Remove,
    /// SET_PERMS.
    SetPerms,
    /// WATCH. The access control lists have no say in it; they judge each event.
    Watch,
    /// To be told by an event that the node has changed. Refusals are not counted.
    Hear,
}

impl<'a> Operation<'a> {
    /// Whether it changes the node.
    #[must_use]
    pub const fn is_change(self) -> bool {
        matches!(
            self,
            Self::Write(_) | Self::Mkdir | Self::Remove | Self::SetPerms
        )
    }

    /// The name that the protocol has for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "READ",
            Self::List => "DIRECTORY",
            Self::GetPerms => "GET_PERMS",
            Self::Write(_) => "WRITE",
            Self::Mkdir => "MKDIR",
            Self::Remove => "RM",
            Self::SetPerms => "SET_PERMS",
            Self::Watch => "WATCH",
            Self::Hear => "WATCH_EVENT",
        }
    }

    /// What a request of a type does to the node that it names first.
    pub(crate) fn of(kind: Kind, written: &[u8], payload: &'a [u8]) -> Option<Self> {
        Some(match kind {
            Kind::Read => Self::Read,
            Kind::Directory | Kind::DirectoryPart => Self::List,
            Kind::GetPerms => Self::GetPerms,
            Kind::Write => {
                let value = payload.get(written.len().saturating_add(1)..);
                Self::Write(value.unwrap_or_default())
            }
            Kind::Mkdir => Self::Mkdir,
            Kind::Rm => Self::Remove,
            Kind::SetPerms => Self::SetPerms,
            _ => return None,
        })
    }

    /// The right that the access control list must give.
    const fn right(self) -> Right {
        match self {
            Self::Read | Self::List | Self::GetPerms | Self::Watch | Self::Hear => Right::Read,
            Self::Write(_) | Self::Mkdir | Self::Remove => Right::Write,
            Self::SetPerms => Right::Own,
        }
    }
}

/// Who does what to which node.
pub struct Access<'a> {
    pub(crate) subject: Subject,
    pub(crate) operation: Operation<'a>,
    pub(crate) path: PathRef<'a>,
    /// The list that decides, if one does: the node's, or that of the nearest one above where it is missing.
    pub(crate) acl: Option<&'a Acl>,
    /// The nodes that the request sees: those of its transaction, or the store's.
    pub(crate) seen: &'a dyn View,
    /// The committed nodes.
    pub(crate) store: &'a dyn View,
    pub(crate) domains: &'a Domains,
    pub(crate) now: Instant,
}

impl<'a> Access<'a> {
    /// Whose request it is.
    #[must_use]
    pub fn domid(&self) -> DomId {
        self.subject.incarnation.domid
    }

    /// The domain on whose behalf it may act, too (SET_TARGET).
    #[must_use]
    pub fn target(&self) -> Option<DomId> {
        self.subject.target.map(|target| target.domid)
    }

    /// Whether it is the privileged domain's: that of the toolstack, and often of all backends.
    #[must_use]
    pub fn is_privileged(&self) -> bool {
        self.subject.privileged
    }

    /// What is done.
    #[must_use]
    pub fn operation(&self) -> Operation<'a> {
        self.operation
    }

    /// To which node, whether it exists or not.
    #[must_use]
    pub fn path(&self) -> PathRef<'a> {
        self.path
    }

    /// The nodes as the request sees them, before it changes any: in a transaction, with what that has done so far.
    #[must_use]
    pub fn seen(&self) -> &'a dyn View {
        self.seen
    }

    /// The committed nodes; while a transaction is merged, those with what it has done so far.
    #[must_use]
    pub fn store(&self) -> &'a dyn View {
        self.store
    }

    /// Whether there is a domain with this domid, so that its end will be noticed.
    #[must_use]
    pub fn is_known(&self, domid: DomId) -> bool {
        self.domains.get(domid).is_some()
    }

    /// When.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }
}

/// An access that was allowed, when the request is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Whose request it was.
    pub domid: DomId,
    /// Whether it was the privileged domain's.
    pub is_privileged: bool,
    /// What was asked for.
    pub is_change: bool,
    /// Of which node.
    pub path: Path,
}

/// A list of policies that can be had: what `policy=` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice(String);

impl Default for Choice {
    /// `legacy` alone.
    fn default() -> Self {
        Self(LEGACY.to_string())
    }
}

const LEGACY: &str = "legacy";

impl Choice {
    /// Reads a list such as `legacy,protocol`.
    ///
    /// # Errors
    /// The first item that names no policy, or not well: then there is no list at all, since without it more would be allowed than was
    /// meant.
    pub fn parse(list: &[u8]) -> Result<Self, WordError> {
        Policies::parse(list)?;
        Ok(Self(String::from_utf8_lossy(list).into_owned()))
    }

    pub(crate) fn of(policies: &Policies) -> Self {
        Self(policies.words())
    }

    /// The list.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// All of them.
pub(crate) const SORTS: &[Sort<dyn Policy>] = &[
    Sort {
        name: LEGACY,
        parameters: "",
        help: "the access control lists of nodes; always there, and first",
        make: |item| item.without_parameters().map(|()| Box::new(Legacy) as _),
    },
    Sort {
        name: "protocol",
        parameters: "",
        help: "frontends and backends write the keys of their own end of a device, and move its state as xenbus has it",
        make: protocol::Protocol::make,
    },
    Sort {
        name: "chinese_wall",
        parameters: "CLASS=PATH+PATH...,...",
        help: "a domain that touched what lies at or below one path of a class is kept out of the others",
        make: chinese_wall::ChineseWall::make,
    },
    Sort {
        name: "lease",
        parameters: "",
        help: "resources below /lease are held as their leases say, and released when their holder ends",
        make: lease::Lease::make,
    },
];

/// A domain is no more: what a policy keeps of it goes, also of one that is not in force just now.
pub(crate) fn forget(domid: DomId, keep: &mut dyn Keep) {
    chinese_wall::forget(domid, keep);
}

/// The policies behind `legacy`.
#[derive(Default)]
pub(crate) struct Policies {
    list: Vec<Installed>,
    /// What the present request was allowed, for [`Policy::passed`].
    passed: RefCell<Vec<Passed>>,
    /// What a transaction has changed that is committed, as far as somebody wants to know.
    committed: RefCell<Vec<Path>>,
}

struct Installed {
    policy: Box<dyn Policy>,
    /// As it was named.
    word: String,
    refused: Cell<u64>,
}

impl Policies {
    /// Makes the policies of a list.
    pub(crate) fn parse(list: &[u8]) -> Result<Self, WordError> {
        let text = str::from_utf8(list).map_err(|_| WordError::new(list, "it is no text"))?;
        let items = items(text);
        let mut policies = Self::default();
        for (place, item) in items.iter().enumerate() {
            let error = |why| WordError::new(item.word.as_bytes(), why);
            let sort = SORTS.iter().find(|sort| sort.name == item.name);
            let sort = sort.ok_or(error("there is no policy of this name"))?;
            let policy = (sort.make)(item).map_err(error)?;
            if (place == 0) != (sort.name == LEGACY) {
                return Err(error("legacy comes first, and once"));
            }
            if policies.has(sort.name) {
                return Err(error("it is there twice"));
            }
            if place >= LIST_MAX {
                return Err(error("there are too many"));
            }
            if place > 0 {
                policies.install(policy, item.word);
            }
        }
        Ok(policies)
    }

    pub(crate) fn install(&mut self, policy: Box<dyn Policy>, word: &str) {
        self.list.push(Installed {
            policy,
            word: word.to_string(),
            refused: Cell::new(0),
        });
    }

    fn has(&self, name: &str) -> bool {
        self.list.iter().any(|entry| entry.policy.name() == name)
    }

    /// These, if there is more to ask than `legacy`.
    #[inline]
    pub(crate) fn more(&self) -> Option<&Self> {
        (!self.list.is_empty()).then_some(self)
    }

    /// As a list.
    pub(crate) fn words(&self) -> String {
        let mut words = LEGACY.to_string();
        for entry in &self.list {
            words.push(',');
            words.push_str(&entry.word);
        }
        words
    }

    /// Each as it was named, with how often it has refused.
    pub(crate) fn report(&self) -> String {
        let line = |entry: &Installed| format!("{} refused {}\n", entry.word, entry.refused.get());
        let more: String = self.list.iter().map(line).collect();
        format!("{LEGACY}\n{more}")
    }

    /// Judges an access, if the lists allow it. What is refused is counted and told; what is not is noted.
    #[cold]
    pub(crate) fn check(&self, access: &Access<'_>, counters: &Counters) -> Result<(), Errno> {
        if Legacy.check(access).is_err() {
            return Ok(());
        }
        for entry in &self.list {
            let Err(errno) = entry.policy.check(access) else {
                continue;
            };
            if access.operation != Operation::Hear {
                entry.refused.set(entry.refused.get().wrapping_add(1));
                counters.refuse_by_policy(entry.policy.name(), access);
            }
            return Err(errno);
        }
        if access.operation != Operation::Hear
            && let Ok(mut passed) = self.passed.try_borrow_mut()
            && passed.len() < PASSED_MAX
        {
            passed.push(Passed {
                domid: access.domid(),
                is_privileged: access.is_privileged(),
                is_change: access.operation.is_change(),
                path: access.path.to_path(),
            });
        }
        Ok(())
    }

    /// What was allowed since this was asked last.
    pub(crate) fn take_passed(&mut self) -> Vec<Passed> {
        mem::take(self.passed.get_mut())
    }

    /// Notes what a transaction has changed that is committed.
    #[cold]
    pub(crate) fn note_committed<'p>(&self, changed: impl Iterator<Item = PathRef<'p>>) {
        let wants = |path: &PathRef<'_>| self.list.iter().any(|entry| entry.policy.wants(*path));
        if let Ok(mut committed) = self.committed.try_borrow_mut() {
            committed.extend(changed.filter(wants).map(PathRef::to_path));
        }
    }

    /// What was committed since this was asked last.
    pub(crate) fn take_committed(&mut self) -> Vec<Path> {
        mem::take(self.committed.get_mut())
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Box<dyn Policy>> {
        self.list.iter_mut().map(|entry| &mut entry.policy)
    }

    /// When the first of them wants to hear of the time.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.list
            .iter()
            .filter_map(|entry| entry.policy.due())
            .min()
    }
}
