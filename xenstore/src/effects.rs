//! The only code that changes a tree, and the record of what each change means to watches and to the ledger.
//!
//! A request edits the store's tree, a transaction its private one; either way the effects are taken as a whole, when the change becomes
//! the store's, and dropped as a whole otherwise.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;

use crate::acl::{Acl, Incarnation};
use crate::ids::Generation;
use crate::path::Path;
use crate::tree::{Node, Tree, Value, visit};

/// Bytes that a node costs before its name, value and permissions: the node, its place in its parent and the allocator's share.
const NODE_BYTES: u64 = 192;
/// Bytes of an entry of an access control list.
const ENTRY_BYTES: u64 = 24;

/// What a request or transaction did.
#[derive(Default)]
pub(crate) struct Effects {
    changes: Vec<Change>,
    /// Sorted by owner.
    charges: Vec<(Incarnation, Charge)>,
    estates: Vec<Transfer>,
}

/// A node of which its watchers hear.
pub(crate) struct Change {
    pub(crate) path: Path,
    /// It was cut off, with all below it.
    pub(crate) removed: bool,
    /// What stood there before, where that matters to who may hear.
    pub(crate) old: Option<Rc<Node>>,
}

/// What an owner has more, or less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Charge {
    pub(crate) nodes: i64,
    pub(crate) bytes: i64,
}

/// A node that begins or ceases to be one whose parent has another owner.
pub(crate) struct Transfer {
    pub(crate) owner: Incarnation,
    pub(crate) path: Path,
    pub(crate) gained: bool,
}

impl Effects {
    /// Whether nothing was changed.
    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.charges.is_empty()
    }

    pub(crate) fn changes(&self) -> &[Change] {
        &self.changes
    }

    pub(crate) fn charges(&self) -> impl Iterator<Item = (Incarnation, Charge)> {
        self.charges.iter().copied()
    }

    pub(crate) fn charge_of(&self, owner: Incarnation) -> Charge {
        let at = self.charges.partition_point(|(other, _)| *other < owner);
        match self.charges.get(at) {
            Some((other, charge)) if *other == owner => *charge,
            _ => Charge::default(),
        }
    }

    pub(crate) fn transfers(&mut self) -> impl Iterator<Item = Transfer> {
        self.estates.drain(..)
    }

    /// Makes one change of all changes to a node: what lay between `before` and `after` was never seen. They are told in the order in
    /// which the nodes were first `accessed`.
    ///
    /// A node that was both cut off and changed counts as cut off; one that is in neither tree does not count.
    pub(crate) fn settle(
        &mut self,
        before: &Tree,
        after: &Tree,
        accessed: impl Fn(&Path) -> usize,
    ) {
        let mut first: BTreeMap<Path, usize> = BTreeMap::new();
        let mut settled: Vec<Change> = Vec::new();
        for change in self.changes.drain(..) {
            if let Some(earlier) = first.get(&change.path).and_then(|at| settled.get_mut(*at)) {
                earlier.removed |= change.removed;
                continue;
            }
            let old = before.get(&change.path).cloned();
            if old.is_some() || after.get(&change.path).is_some() {
                first.insert(change.path.clone(), settled.len());
                settled.push(Change { old, ..change });
            }
        }
        settled.sort_by_key(|change| accessed(&change.path));
        self.changes = settled;
    }

    fn charge(&mut self, owner: Incarnation, nodes: i64, bytes: i64) {
        let at = self.charges.partition_point(|(other, _)| *other < owner);
        match self.charges.get_mut(at) {
            Some((other, charge)) if *other == owner => {
                charge.nodes = charge.nodes.saturating_add(nodes);
                charge.bytes = charge.bytes.saturating_add(bytes);
            }
            _ => self.charges.insert(at, (owner, Charge { nodes, bytes })),
        }
    }

    fn transfer(&mut self, owner: Incarnation, path: &Path, gained: bool) {
        let path = path.clone();
        self.estates.push(Transfer {
            owner,
            path,
            gained,
        });
    }
}

/// Bytes that a node with a name and a value of these lengths and this many permissions costs its owner.
pub(crate) fn footprint(name: usize, value: usize, entries: usize) -> u64 {
    let wide = |size: usize| u64::try_from(size).unwrap_or(u64::MAX);
    NODE_BYTES
        .saturating_add(wide(name))
        .saturating_add(wide(value))
        .saturating_add(ENTRY_BYTES.saturating_mul(wide(entries)))
}

/// What `node` at `path` costs its owner.
pub(crate) fn footprint_of(path: &Path, node: &Node) -> i64 {
    let name = path.as_str().rsplit('/').next().unwrap_or_default();
    let bytes = footprint(name.len(), node.value.as_bytes().len(), node.acl.len());
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Changes a tree and notes the effects. What may be changed was judged before: nothing here fails half way.
pub(crate) struct Editor<'a> {
    pub(crate) tree: &'a mut Tree,
    pub(crate) effects: &'a mut Effects,
    pub(crate) generation: &'a mut Generation,
}

impl Editor<'_> {
    /// Adds a node below its parent, which exists. A parent made on the way to the node that was asked for is `silent`.
    pub(crate) fn create(&mut self, path: &Path, value: Value, acl: Rc<Acl>, silent: bool) {
        let owner = acl.owner();
        let node = Node::new(value, acl, self.next());
        self.effects.charge(owner, 1, footprint_of(path, &node));
        if self.owner_above(path) != Some(owner) {
            self.effects.transfer(owner, path, true);
        }
        self.tree.insert(path, node);
        if !silent {
            self.told(path, false, None);
        }
    }

    /// Replaces the value of a node that exists.
    pub(crate) fn write(&mut self, path: &Path, value: Value) {
        let generation = self.next();
        let Some(node) = self.tree.get_mut(path) else {
            return;
        };
        let size = |value: &Value| i64::try_from(value.as_bytes().len()).unwrap_or(i64::MAX);
        let grown = size(&value).saturating_sub(size(&node.value));
        node.value = value;
        node.generation = generation;
        self.effects.charge(node.acl.owner(), 0, grown);
        self.told(path, false, None);
    }

    /// Cuts off a node that exists, with all below it.
    pub(crate) fn remove(&mut self, path: &Path) {
        let generation = self.next();
        let above = self.owner_above(path);
        let Some(removed) = self.tree.remove(path, generation) else {
            return;
        };
        visit(path, &removed, |path, node, parent| {
            let owner = node.acl.owner();
            let cost = footprint_of(path, node);
            self.effects.charge(owner, -1, cost.saturating_neg());
            if parent.map(|parent| parent.acl.owner()).or(above) != Some(owner) {
                self.effects.transfer(owner, path, false);
            }
        });
        self.told(path, true, Some(removed));
    }

    /// Replaces the access control list of a node that exists.
    pub(crate) fn set_acl(&mut self, path: &Path, acl: Rc<Acl>) {
        let generation = self.next();
        let Some(old) = self.tree.get(path).cloned() else {
            return;
        };
        let owner = acl.owner();
        let Some(node) = self.tree.get_mut(path) else {
            return;
        };
        node.acl = acl;
        node.generation = generation;
        let cost = footprint_of(path, node);
        if !path.is_special() {
            self.effects.charge(
                old.acl.owner(),
                -1,
                footprint_of(path, &old).saturating_neg(),
            );
            self.effects.charge(owner, 1, cost);
            self.change_hands(path, &old, owner);
        }
        self.told(path, false, Some(old));
    }

    /// Keeps the estates right when a node gets another owner: its own place among them, and that of each child.
    fn change_hands(&mut self, path: &Path, old: &Rc<Node>, owner: Incarnation) {
        let previous = old.acl.owner();
        if previous == owner {
            return;
        }
        let above = self.owner_above(path);
        if above != Some(previous) {
            self.effects.transfer(previous, path, false);
        }
        if above != Some(owner) {
            self.effects.transfer(owner, path, true);
        }
        for (name, child) in old.children().iter() {
            let holder = child.acl.owner();
            if holder == owner || holder == previous {
                self.effects
                    .transfer(holder, &path.join(name), holder == previous);
            }
        }
    }

    fn owner_above(&self, path: &Path) -> Option<Incarnation> {
        self.tree.parent(path).map(|parent| parent.acl.owner())
    }

    fn told(&mut self, path: &Path, removed: bool, old: Option<Rc<Node>>) {
        let path = path.clone();
        self.effects.changes.push(Change { path, removed, old });
    }

    fn next(&mut self) -> Generation {
        self.generation.0 = self.generation.0.wrapping_add(1);
        *self.generation
    }
}
