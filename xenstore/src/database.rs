//! The requests that read and change nodes, judged here and nowhere else, in a transaction or out of one.
//!
//! Each first finds out whether it may and can (permissions, quotas, sizes), then edits; there is nothing to undo.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::iter;

use crate::acl::{self, Acl, Entry, Holder, Incarnation, Letter, Right, Subject};
use crate::answer::Answer;
use crate::domain::{Domain, Domains};
use crate::effects::{Editor, Effects, footprint};
use crate::features::Features;
use crate::ids::{DomId, EvtchnPort, Generation};
use crate::memory::{self, Supply};
use crate::path::{Components, Path};
use crate::quota::{Quota, Quotas, within};
use crate::tree::{Node, Tree, Value, listed_size};
use crate::wire::{Errno, Kind, PAYLOAD_MAX, decimal, exactly, one, strings};

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
    pub(crate) supply: Supply,
    /// Whose home relative paths lie in.
    pub(crate) home: DomId,
    /// Domids that the host was asked for and knows no domain of.
    pub(crate) absent: &'a [DomId],
}

/// What a request works on: the store's own tree or a transaction's.
pub(crate) struct Work<'a, 's> {
    pub(crate) setting: &'a mut Setting<'s>,
    pub(crate) tree: &'a mut Tree,
    pub(crate) effects: &'a mut Effects,
    /// In a transaction, the nodes it has touched.
    pub(crate) touched: Option<&'a mut Touched>,
}

/// The nodes that a transaction has read or changed, as quota `transaction-nodes` counts.
#[derive(Default)]
pub(crate) struct Touched {
    /// With how many were touched before it.
    paths: BTreeMap<Path, usize>,
    /// There were more than allowed: the transaction can only be ended.
    pub(crate) overflowed: bool,
}

impl Setting<'_> {
    pub(crate) fn limit(&self, quota: Quota) -> u32 {
        self.domains.limit(self.client, self.quotas, quota)
    }

    /// Whether the client may have `after` bytes.
    pub(crate) fn check_memory(&self, after: u64) -> Result<(), Errno> {
        memory::check(self.supply, self.domains, self.quotas, self.client, after)
    }
}

impl Work<'_, '_> {
    /// Runs one of the requests that [`is_database`] names.
    pub(crate) fn execute(&mut self, kind: Kind, payload: &[u8]) -> Result<Answer, Refusal> {
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

    fn directory(&mut self, payload: &[u8]) -> Result<Answer, Refusal> {
        let path = self.node_path(one(payload)?)?;
        let node = self.allowed(&path, Right::Read)?;
        let most = usize::try_from(PAYLOAD_MAX).unwrap_or(usize::MAX);
        if node.children().list_size() > most {
            return Err(Errno::E2BIG.into());
        }
        Ok(Answer::Names(node.children().clone()))
    }

    fn directory_part(&mut self, payload: &[u8]) -> Result<Answer, Refusal> {
        let [path, offset] = exactly(payload)?;
        let path = self.node_path(path)?;
        let offset = usize::try_from(decimal(offset, u32::MAX)?).unwrap_or(usize::MAX);
        let node = self.allowed(&path, Right::Read)?;
        Ok(Answer::Part {
            generation: node.generation,
            children: node.children().clone(),
            offset,
        })
    }

    fn read(&mut self, payload: &[u8]) -> Result<Answer, Refusal> {
        let path = self.node_path(one(payload)?)?;
        let node = self.allowed(&path, Right::Read)?;
        Ok(Answer::Value(node.value.clone()))
    }

    fn get_perms(&mut self, payload: &[u8]) -> Result<Answer, Refusal> {
        let path = self.any_path(one(payload)?)?;
        let node = self.allowed(&path, Right::Read)?;
        let acl = Rc::clone(&node.acl);
        let domains = self.setting.domains;
        let shown = acl.encode(|incarnation| domains.alive(incarnation).is_some());
        Ok(Answer::Permissions(shown))
    }

    fn write(&mut self, payload: &[u8]) -> Result<Answer, Refusal> {
        let path = strings(payload).next().ok_or(Errno::EINVAL)?;
        let value = payload
            .get(path.len().saturating_add(1)..)
            .unwrap_or_default();
        let path = self.node_path(path)?;
        if let Some(node) = self.find(&path, Right::Write)? {
            let size = node_size(node, value.len(), node.children().list_size());
            let grown = value.len().saturating_sub(node.value.as_bytes().len());
            self.check_size(size)?;
            self.check_memory(u64::try_from(grown).unwrap_or(u64::MAX))?;
            self.edit().write(&path, Value::new(value));
        } else {
            self.create(&path, value)?;
        }
        Ok(Answer::Done)
    }

    fn mkdir(&mut self, payload: &[u8]) -> Result<Answer, Refusal> {
        let path = self.node_path(one(payload)?)?;
        if self.find(&path, Right::Write)?.is_none() {
            self.create(&path, &[])?;
        }
        Ok(Answer::Done)
    }

    fn rm(&mut self, payload: &[u8]) -> Result<Answer, Refusal> {
        let path = self.node_path(one(payload)?)?;
        let exists = self.find(&path, Right::Write)?.is_some();
        let parent = path.parent().ok_or(Errno::EINVAL)?;
        if exists {
            self.edit().remove(&path);
        } else {
            self.touch(&parent)?;
            self.tree.get(&parent).ok_or(Errno::ENOENT)?;
        }
        Ok(Answer::Done)
    }

    fn set_perms(&mut self, payload: &[u8]) -> Result<Answer, Refusal> {
        let mut rest = strings(payload).collect::<Vec<_>>().into_iter();
        let path = rest.next().ok_or(Errno::EINVAL)?;
        let path = self.any_path(path)?;
        let limit = self.limit(Quota::NodePermissions);
        let entries = acl::parse_entries(rest, limit)?;
        let node = self.allowed(&path, Right::Own)?;
        let owner = node.acl.owner();
        let acl = self.resolve(&entries, owner)?;
        self.edit().set_acl(&path, Rc::new(acl));
        Ok(Answer::Done)
    }

    /// Makes of a request's entries a list that means domains, not domids (hostility.md R13).
    fn resolve(&self, entries: &[(Letter, DomId)], present: Incarnation) -> Result<Acl, Refusal> {
        let ((others, owner), listed) = entries.split_first().ok_or(Errno::EINVAL)?;
        if !self.subject().privileged && *owner != present.domid {
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
    fn create(&mut self, path: &Path, value: &[u8]) -> Result<(), Refusal> {
        let subject = self.subject();
        let (nearest, missing) = self.tree.nearest(path);
        let acl = if subject.privileged || nearest.acl.owner() == subject.incarnation {
            Rc::clone(&nearest.acl)
        } else {
            Rc::new(nearest.acl.owned_by(subject.incarnation))
        };
        let levels = missing.clone().count();
        self.check_growth(nearest, missing, value, &acl)?;
        let mut silent: Vec<Path> = iter::successors(path.parent(), Path::parent)
            .take(levels)
            .collect();
        silent.reverse();
        for path in &silent {
            self.touch(path)?;
        }
        // The first of them is the one that exists.
        silent.drain(..silent.len().min(1));
        for parent in &silent {
            self.edit()
                .create(parent, Value::default(), Rc::clone(&acl), true);
        }
        self.edit().create(path, Value::new(value), acl, false);
        Ok(())
    }

    /// Whether an unprivileged client may add `missing` below `nearest`.
    fn check_growth(
        &self,
        nearest: &Node,
        missing: Components<'_>,
        value: &[u8],
        acl: &Acl,
    ) -> Result<(), Errno> {
        if self.subject().privileged {
            return Ok(());
        }
        let added = u64::try_from(missing.clone().count()).unwrap_or(u64::MAX);
        let pending = self.effects.charge_of(self.subject().incarnation);
        let owned = self
            .setting
            .client
            .usage
            .nodes
            .saturating_add_signed(pending.nodes);
        if !within(owned.saturating_add(added), self.limit(Quota::Nodes)) {
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
        if within(size, self.limit(Quota::NodeSize)) {
            Ok(())
        } else {
            Err(Errno::ENOSPC)
        }
    }

    fn check_memory(&self, added: u64) -> Result<(), Errno> {
        let pending = self.effects.charge_of(self.subject().incarnation);
        let used = self
            .setting
            .client
            .usage
            .memory()
            .saturating_add_signed(pending.bytes);
        if added == 0 {
            return Ok(());
        }
        self.setting.check_memory(used.saturating_add(added))
    }

    /// The node, which must exist, if the client has `right` to it.
    fn allowed(&mut self, path: &Path, right: Right) -> Result<&Node, Refusal> {
        self.find(path, right)?.ok_or(Errno::ENOENT.into())
    }

    /// The node, if it exists and the client has `right` to it; none, if it has that right to the nearest node above where it is
    /// missing. What a client may not see, it may not miss either (protocol.md section 5.3).
    fn find(&mut self, path: &Path, right: Right) -> Result<Option<&Node>, Refusal> {
        self.touch(path)?;
        let subject = self.subject();
        let (nearest, mut missing) = self.tree.nearest(path);
        if !nearest.acl.allows(&subject, right) {
            return Err(Errno::EACCES.into());
        }
        Ok(missing.next().is_none().then_some(&**nearest))
    }

    fn touch(&mut self, path: &Path) -> Result<(), Errno> {
        if self.touched.is_none() {
            return Ok(());
        }
        let limit = self.limit(Quota::TransactionNodes);
        let touched = self.touched.as_mut();
        touched.map_or(Ok(()), |touched| touched.add(path, limit))
    }

    fn edit(&mut self) -> Editor<'_> {
        Editor {
            tree: self.tree,
            effects: self.effects,
            generation: self.setting.generation,
        }
    }

    fn node_path(&self, written: &[u8]) -> Result<Path, Errno> {
        Path::parse_node(written, self.setting.home, self.limit(Quota::PathMax))
    }

    fn any_path(&self, written: &[u8]) -> Result<Path, Errno> {
        Path::parse(written, self.setting.home, self.limit(Quota::PathMax))
    }

    fn limit(&self, quota: Quota) -> u32 {
        self.setting.limit(quota)
    }

    fn subject(&self) -> Subject {
        self.setting.domains.subject(self.setting.client)
    }
}

impl Touched {
    fn add(&mut self, path: &Path, limit: u32) -> Result<(), Errno> {
        if self.paths.contains_key(path) {
            return Ok(());
        }
        let before = self.paths.len();
        let count = u64::try_from(before).unwrap_or(u64::MAX);
        if !within(count.saturating_add(1), limit) {
            self.overflowed = true;
            return Err(Errno::ENOSPC);
        }
        self.paths.insert(path.clone(), before);
        Ok(())
    }

    /// How many nodes were touched before this one.
    pub(crate) fn order(&self, path: &Path) -> usize {
        self.paths.get(path).copied().unwrap_or(usize::MAX)
    }
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

fn node_size(node: &Node, value: usize, list: usize) -> usize {
    size(node.acl.len(), value, list)
}

fn size(entries: usize, value: usize, list: usize) -> usize {
    SIZE_BASE
        .saturating_add(SIZE_ENTRY.saturating_mul(entries))
        .saturating_add(value)
        .saturating_add(list)
}
