//! The requests that read and change nodes, judged here and nowhere else, in a transaction or out of one.
//!
//! Each first finds out whether it may and can (permissions, quotas, sizes), then edits; there is nothing to undo.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::iter;

use crate::acl::{self, Acl, Entry, Holder, Incarnation, Letter, Right, Subject};
use crate::answer::Answer;
use crate::bugs;
use crate::counters::Counters;
use crate::domain::{Domain, Domains};
use crate::effects::{Charge, Editor, Effects, footprint};
use crate::extension::View;
use crate::features::Features;
use crate::ids::{DomId, EvtchnPort, Generation};
use crate::memory::{self, Lack, Supply};
use crate::path::{Components, NamedPath, PathRef};
use crate::policy::{Access, Operation, Policies, legacy};
use crate::quota::{Quota, Quotas, within};
use crate::refusal::Reason;
use crate::run::fits;
use crate::storage::{Node, Storage, listed_size};
use crate::time::Instant;
use crate::touched::Touched;
use crate::watch::Watches;
use crate::wire::{Errno, Kind, decimal, exactly, one_path, strings};

/// Bytes of a node besides value, permissions and child list, as quota `node-size` counts (protocol.md section 6).
const SIZE_BASE: usize = 16;
/// Bytes of a permission, likewise.
const SIZE_ENTRY: usize = 8;

/// Why a request is not answered with what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Errno(Errno),
    /// Not yet: first the host must do something.
    Wait(Need),
    /// No answer now: it comes when there is one, and the connection goes on until then.
    Later,
}

/// What the host must do before a request can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Say who has this domid; then the request runs again.
    Identify(DomId),
    /// Connect this domain's ring; then the request is answered.
    Connect { domid: DomId, port: EvtchnPort },
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// What the requests of one client run with, whichever tree they run on.
pub(crate) struct Setting<'a> {
    pub(crate) generation: &'a mut Generation,
    pub(crate) domains: &'a Domains,
    pub(crate) quotas: &'a Quotas,
    pub(crate) client: &'a Domain,
    /// The client as one who asks.
    pub(crate) subject: Subject,
    pub(crate) supply: Supply,
    /// What is refused is counted here, and told of as of now.
    pub(crate) counters: &'a Counters,
    pub(crate) now: Instant,
    /// Bytes that the client has besides its nodes.
    pub(crate) held: u64,
    /// Whose home relative paths lie in.
    pub(crate) home: DomId,
    /// Domids that the host was asked for and knows no domain of.
    pub(crate) absent: &'a [DomId],
    /// What the client has more in the transactions that the one at hand is inside of.
    pub(crate) pending: Charge,
    /// Who has a say besides the access control lists.
    pub(crate) policies: Option<&'a Policies>,
    /// For them, in a transaction, the committed nodes.
    pub(crate) store: Option<&'a dyn View>,
}

/// What a request works on: the store's own nodes or a transaction's.
pub(crate) struct Work<'a, 's, S: Storage> {
    pub(crate) setting: &'a mut Setting<'s>,
    pub(crate) nodes: &'a mut S,
    pub(crate) effects: &'a mut Effects<S>,
    /// Who hears at once of what is done; none in a transaction.
    pub(crate) watches: Option<&'a Watches>,
    /// In a transaction, the nodes it has touched.
    pub(crate) touched: Option<&'a mut Touched>,
}

impl Setting<'_> {
    pub(crate) fn limit(&self, quota: Quota) -> u32 {
        if self.subject.privileged {
            return 0;
        }
        self.quotas.of(&self.client.overrides, quota)
    }

    /// Whether the client may have `count` of what a quota limits; if not, that is counted as a refusal.
    pub(crate) fn admits(&self, quota: Quota, count: u64) -> bool {
        let limit = self.limit(quota);
        let is_within = within(count, limit);
        if !is_within {
            self.refuse(quota, limit);
        }
        is_within
    }

    /// Counts a refusal for a quota.
    #[cold]
    pub(crate) fn refuse(&self, quota: Quota, limit: u32) {
        self.counters.refuse(Reason::Quota(quota), limit, self.now);
    }

    /// Bytes that the client has, as quota `memory` counts.
    pub(crate) fn used(&self) -> u64 {
        self.client.usage.node_bytes.saturating_add(self.held)
    }

    /// Whether the client may have `after` bytes.
    pub(crate) fn check_memory(&self, after: u64) -> Result<(), Errno> {
        if self.subject.privileged {
            return Ok(());
        }
        memory::check(self.supply, self.quotas, self.client, after).map_err(|lack| {
            lack.count(self.counters, self.now);
            lack.errno()
        })
    }
}

impl<S: Storage> Work<'_, '_, S> {
    /// Runs one of the requests that [`is_database`] names.
    pub(crate) fn execute(&mut self, kind: Kind, payload: &[u8]) -> Result<Answer, Refusal> {
        if let Some(policies) = self.setting.policies {
            self.ask(policies, kind, payload)?;
        }
        match kind {
            Kind::Directory => self.directory(payload),
            Kind::Read => self.read(payload),
            Kind::GetPerms => self.get_perms(payload),
            Kind::Write => self.write(payload),
            Kind::Mkdir => self.mkdir(payload),
            Kind::Rm => self.rm(payload),
            Kind::SetPerms => self.set_perms(payload),
            Kind::DirectoryPart => self.directory_part(payload),
            _ => Err(Errno::ENOSYS.into()),
        }
    }

    /// Asks those who have a say besides the access control lists. What these do not allow anyway, and what is no request, is not asked.
    #[cold]
    fn ask(&self, policies: &Policies, kind: Kind, payload: &[u8]) -> Result<(), Errno> {
        let written = strings(payload).next().unwrap_or_default();
        let Some(operation) = Operation::of(kind, written, payload) else {
            return Ok(());
        };
        let setting = &*self.setting;
        let Ok(path) = NamedPath::parse(written, setting.home, self.limit(Quota::PathMax)) else {
            return Ok(());
        };
        let path = path.as_ref();
        let (nearest, _) = self.nodes.nearest(path);
        let seen: &dyn View = &*self.nodes;
        let access = Access {
            subject: setting.subject,
            operation,
            path,
            acl: Some(&nearest.acl),
            seen,
            store: setting.store.unwrap_or(seen),
            domains: setting.domains,
            now: setting.now,
        };
        policies.check(&access, setting.counters)
    }

    fn directory(&mut self, payload: &[u8]) -> Result<Answer, Refusal> {
        let path = self.node_path(one_path(payload)?)?;
        let node = self.allowed(path.as_ref(), Right::Read)?;
        if !fits(node.children().list_size()) && !bugs::XSA_72 {
            return Err(Errno::E2BIG.into());
        }
        Ok(Answer::names(node.children()))
    }

    fn directory_part(&mut self, payload: &[u8]) -> Result<Answer, Refusal> {
        let [path, offset] = exactly(payload)?;
        let path = self.node_path(path)?;
        let offset = usize::try_from(decimal(offset, u32::MAX)?).unwrap_or(usize::MAX);
        let node = self.allowed(path.as_ref(), Right::Read)?;
        Ok(Answer::part(node.generation, node.children(), offset))
    }

    fn read(&mut self, payload: &[u8]) -> Result<Answer, Refusal> {
        let path = self.node_path(one_path(payload)?)?;
        let node = self.allowed(path.as_ref(), Right::Read)?;
        Ok(Answer::Value(node.value.clone()))
    }

    fn get_perms(&mut self, payload: &[u8]) -> Result<Answer, Refusal> {
        let path = self.any_path(one_path(payload)?)?;
        let domains = self.setting.domains;
        let node = self.allowed(path.as_ref(), Right::Read)?;
        let shown = node
            .acl
            .encode(|incarnation| domains.alive(incarnation).is_some());
        Ok(Answer::Permissions(shown))
    }

    fn write(&mut self, payload: &[u8]) -> Result<Answer, Refusal> {
        let path = strings(payload).next().ok_or(Errno::EINVAL)?;
        let value = payload
            .get(path.len().saturating_add(1)..)
            .unwrap_or_default();
        let path = self.node_path(path)?;
        let path = path.as_ref();
        self.touch(path)?;
        let (node, missing) = self.nearest(path, Right::Write)?;
        if missing.is_empty() {
            let size = node_size(node, value.len(), node.children().list_size());
            let grown = value.len().saturating_sub(node.value.as_bytes().len());
            self.check_size(size)?;
            self.check_memory(u64::try_from(grown).unwrap_or(u64::MAX))?;
            self.edit().write(path, value);
        } else {
            let plan = self.plan(node, missing, value)?;
            self.create(path, plan, value)?;
        }
        Ok(Answer::Done)
    }

    fn mkdir(&mut self, payload: &[u8]) -> Result<Answer, Refusal> {
        let path = self.node_path(one_path(payload)?)?;
        self.touch(path.as_ref())?;
        let (nearest, missing) = self.nearest(path.as_ref(), Right::Write)?;
        if !missing.is_empty() {
            let plan = self.plan(nearest, missing, &[])?;
            self.create(path.as_ref(), plan, &[])?;
        }
        Ok(Answer::Done)
    }

    fn rm(&mut self, payload: &[u8]) -> Result<Answer, Refusal> {
        let path = self.node_path(one_path(payload)?)?;
        let path = path.as_ref();
        self.touch(path)?;
        let (_, missing) = self.nearest(path, Right::Write)?;
        let parent = path.parent().ok_or(Errno::EINVAL)?;
        if missing.is_empty() {
            self.edit().remove(path);
        } else {
            self.touch(parent)?;
            self.nodes.get(parent).ok_or(Errno::ENOENT)?;
        }
        Ok(Answer::Done)
    }

    fn set_perms(&mut self, payload: &[u8]) -> Result<Answer, Refusal> {
        let mut rest = strings(payload);
        let path = self.any_path(rest.next().ok_or(Errno::EINVAL)?)?;
        let limit = self.limit(Quota::NodePermissions);
        let entries = acl::parse_entries(rest, limit).inspect_err(|errno| {
            if *errno == Errno::ENOSPC {
                self.setting.refuse(Quota::NodePermissions, limit);
            }
        })?;
        let node = self.allowed(path.as_ref(), Right::Own)?;
        let owner = node.acl.owner();
        let acl = self.resolve(&entries, owner)?;
        self.edit().set_acl(path.as_ref(), Rc::new(acl));
        Ok(Answer::Done)
    }

    /// Makes of a request's entries a list that means domains, not domids (hostility.md R13).
    fn resolve(&self, entries: &[(Letter, DomId)], present: Incarnation) -> Result<Acl, Refusal> {
        let ((others, owner), listed) = entries.split_first().ok_or(Errno::EINVAL)?;
        if !self.subject().privileged && *owner != present.domid && !bugs::XSA_352 {
            return Err(Errno::EPERM.into());
        }
        let Holder::Domain(owner) = self.holder(*owner)? else {
            return Err(Errno::ENOENT.into());
        };
        let listed = listed
            .iter()
            .map(|(letter, domid)| {
                Ok(Entry {
                    letter: *letter,
                    holder: self.holder(*domid)?,
                })
            })
            .collect::<Result<_, Refusal>>()?;
        Ok(Acl::new(owner, *others, listed))
    }

    fn holder(&self, domid: DomId) -> Result<Holder, Refusal> {
        if domid == DomId::ANY && self.setting.client.features.has(Features::DOMID_ANY) {
            return Ok(Holder::Any);
        }
        if !domid.is_ordinary() || self.setting.absent.contains(&domid) {
            return Ok(Holder::Nobody(domid));
        }
        let domain = self
            .setting
            .domains
            .get(domid)
            .ok_or(Refusal::Wait(Need::Identify(domid)))?;
        Ok(Holder::Domain(domain.incarnation))
    }

    /// Creates a node and what is missing above it, all of it or nothing (protocol.md sections 5.4 and 6).
    fn create(&mut self, path: PathRef<'_>, plan: Plan, value: &[u8]) -> Result<(), Refusal> {
        let Plan { acl, levels } = plan;
        if self.touched.is_some() {
            let above = iter::successors(path.parent(), |path| path.parent());
            let mut silent: Vec<PathRef<'_>> = above.take(levels).collect();
            silent.reverse();
            for path in silent {
                self.touch(path)?;
            }
        }
        self.edit().create(path, levels, value, &acl);
        Ok(())
    }

    /// What it takes to create `missing` below `nearest`, if the client may.
    fn plan(
        &self,
        nearest: &Node<S::Child>,
        missing: Components<'_>,
        value: &[u8],
    ) -> Result<Plan, Errno> {
        let subject = self.subject();
        let acl = if subject.privileged || nearest.acl.owner() == subject.incarnation {
            Rc::clone(&nearest.acl)
        } else {
            Rc::new(nearest.acl.owned_by(subject.incarnation))
        };
        let levels = missing.clone().count();
        if !subject.privileged {
            self.check_growth(nearest, missing, value, &acl)?;
        }
        Ok(Plan { acl, levels })
    }

    /// Whether an unprivileged client may add `missing` below `nearest`.
    fn check_growth(
        &self,
        nearest: &Node<S::Child>,
        missing: Components<'_>,
        value: &[u8],
        acl: &Acl,
    ) -> Result<(), Errno> {
        let added = u64::try_from(missing.clone().count()).unwrap_or(u64::MAX);
        let pending = self.pending();
        let owned = self
            .setting
            .client
            .usage
            .nodes
            .saturating_add_signed(pending.nodes);
        let owned = owned.saturating_add(added);
        if !self.setting.admits(Quota::Nodes, owned) && !bugs::XSA_272 {
            return Err(Errno::ENOSPC);
        }
        let mut list = nearest.children().list_size();
        let mut above = nearest.value.as_bytes().len();
        let mut entries = nearest.acl.len();
        let mut bytes = 0_u64;
        for name in missing {
            self.check_size(size(entries, above, list.saturating_add(listed_size(name))))?;
            bytes = bytes.saturating_add(footprint(name.len(), 0, acl.len()));
            (list, above, entries) = (0, 0, acl.len());
        }
        self.check_size(size(acl.len(), value.len(), 0))?;
        let value = u64::try_from(value.len()).unwrap_or(u64::MAX);
        self.check_memory(bytes.saturating_add(value))
    }

    fn check_size(&self, size: usize) -> Result<(), Errno> {
        let size = u64::try_from(size).unwrap_or(u64::MAX);
        if self.setting.admits(Quota::NodeSize, size) {
            Ok(())
        } else {
            Err(Errno::ENOSPC)
        }
    }

    fn check_memory(&self, added: u64) -> Result<(), Errno> {
        let pending = self.pending();
        let used = self.setting.used().saturating_add_signed(pending.bytes);
        if added == 0 {
            return Ok(());
        }
        self.setting.check_memory(used.saturating_add(added))
    }

    /// What the client has more in this piece of work, and in what this is part of.
    fn pending(&self) -> Charge {
        let own = self.effects.charge_of(self.subject().incarnation);
        own.plus(self.setting.pending)
    }

    /// The node, which must exist, if the client has `right` to it.
    fn allowed(&mut self, path: PathRef<'_>, right: Right) -> Result<&Node<S::Child>, Refusal> {
        self.touch(path)?;
        match self.nearest(path, right)? {
            (node, missing) if missing.is_empty() => Ok(node),
            _ => Err(Errno::ENOENT.into()),
        }
    }

    /// The node, or the nearest above where it is missing, with the names that are, if the client has `right` to that. What a client may not
    /// see, it may not miss either (protocol.md section 5.3).
    fn nearest<'p>(
        &self,
        path: PathRef<'p>,
        right: Right,
    ) -> Result<(&Node<S::Child>, Components<'p>), Refusal> {
        let (nearest, missing) = self.nodes.nearest(path);
        legacy::check(&self.setting.subject, right, path, &nearest.acl)?;
        Ok((nearest, missing))
    }

    fn touch(&mut self, path: PathRef<'_>) -> Result<(), Errno> {
        let limit = self.setting.limit(Quota::TransactionNodes);
        match &mut self.touched {
            Some(touched) => touched.add(path, limit).inspect_err(|errno| match errno {
                Errno::ENOSPC => self.setting.refuse(Quota::TransactionNodes, limit),
                _ => Lack::Store(0).count(self.setting.counters, self.setting.now),
            }),
            None => Ok(()),
        }
    }

    fn edit(&mut self) -> Editor<'_, S> {
        Editor {
            nodes: self.nodes,
            effects: self.effects,
            generation: self.setting.generation,
            watches: self.watches,
            touched: self.touched.as_deref_mut(),
        }
    }

    fn node_path<'p>(&self, written: &'p [u8]) -> Result<NamedPath<'p>, Errno> {
        let limit = self.limit(Quota::PathMax);
        NamedPath::parse_node(written, self.setting.home, limit)
            .inspect_err(|_| self.note_length(written, limit))
    }

    fn any_path<'p>(&self, written: &'p [u8]) -> Result<NamedPath<'p>, Errno> {
        let limit = self.limit(Quota::PathMax);
        NamedPath::parse(written, self.setting.home, limit)
            .inspect_err(|_| self.note_length(written, limit))
    }

    /// Counts a path that was refused for nothing but its length.
    #[cold]
    fn note_length(&self, written: &[u8], limit: u32) {
        if NamedPath::parse(written, self.setting.home, 0).is_ok() {
            self.setting.refuse(Quota::PathMax, limit);
        }
    }

    fn limit(&self, quota: Quota) -> u32 {
        self.setting.limit(quota)
    }

    fn subject(&self) -> Subject {
        self.setting.subject
    }
}

/// What a new node and those above it begin with, and how many they are.
struct Plan {
    acl: Rc<Acl>,
    levels: usize,
}

/// Whether a request reads or changes nodes, so that it can be part of a transaction.
pub(crate) fn is_database(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Directory
            | Kind::Read
            | Kind::GetPerms
            | Kind::Write
            | Kind::Mkdir
            | Kind::Rm
            | Kind::SetPerms
            | Kind::DirectoryPart
    )
}

fn node_size<T>(node: &Node<T>, value: usize, list: usize) -> usize {
    size(node.acl.len(), value, list)
}

fn size(entries: usize, value: usize, list: usize) -> usize {
    SIZE_BASE
        .saturating_add(SIZE_ENTRY.saturating_mul(entries))
        .saturating_add(value)
        .saturating_add(list)
}
