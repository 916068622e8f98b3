//! The only code that changes a tree, and the record of what each change means to watches and to the ledger.
//!
//! A request edits the store's tree, a transaction its private one; either way the effects are taken as a whole, when the change becomes
//! the store's, and dropped as a whole otherwise.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::{iter, mem};

use crate::acl::{Acl, Incarnation};
use crate::bugs;
use crate::ids::Generation;
use crate::path::{Path, PathRef};
use crate::storage::{Branch, Leaf, Seed, Storage, Tree, Value};
use crate::touched::{Mark, Touched};
use crate::watch::Watches;

/// Bytes that a node costs before its name, value and permissions: the node, its place in its parent and the allocator's share.
pub(crate) const NODE_BYTES: u64 = 192;
/// Bytes of an entry of an access control list.
const ENTRY_BYTES: u64 = 24;

/// What a request or transaction did.
pub(crate) struct Effects<S: Storage = Tree> {
    changes: Vec<Change<S>>,
    /// Sorted by owner.
    charges: Vec<(Incarnation, Charge)>,
    estates: Vec<Transfer>,
    /// Parents that were made on the way to a node that is yet to be.
    parents: usize,
}

/// A node of which its watchers hear.
pub(crate) struct Change<S: Storage = Tree> {
    pub(crate) path: Path,
    /// It was cut off, with all below it.
    pub(crate) removed: bool,
    /// Nodes that were made, its missing parents included; none if it was there.
    pub(crate) made: usize,
    /// What stood there before, where that matters to who may hear.
    pub(crate) old: Option<Old<S>>,
}

/// What stood where something changed.
pub(crate) enum Old<S: Storage> {
    Acl(Rc<Acl>),
    Branch(S::Branch),
}

impl<S: Storage> Default for Effects<S> {
    fn default() -> Self {
        Self {
            changes: Vec::new(),
            charges: Vec::new(),
            estates: Vec::new(),
            parents: 0,
        }
    }
}

impl<S: Storage> Change<S> {
    /// The topmost node that was changed.
    pub(crate) fn top(&self) -> PathRef<'_> {
        let path = self.path.as_ref();
        let above = iter::successors(Some(path), |path| path.parent());
        above.take(self.made.max(1)).last().unwrap_or(path)
    }

    /// Whether the children of that node's parent are others now.
    pub(crate) fn is_listed(&self) -> bool {
        self.removed || self.made > 0
    }
}

/// What an owner has more, or less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Charge {
    pub(crate) nodes: i64,
    pub(crate) bytes: i64,
}

impl Charge {
    /// Both together.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            nodes: self.nodes.saturating_add(other.nodes),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

/// A node that begins or ceases to be one whose parent has another owner.
pub(crate) struct Transfer {
    pub(crate) owner: Incarnation,
    pub(crate) path: Path,
    pub(crate) gained: bool,
}

impl<S: Storage> Effects<S> {
    /// Whether nothing was changed.
    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.charges.is_empty()
    }

    /// Forgets what was done; its memory stays for what comes.
    pub(crate) fn clear(&mut self) {
        self.changes.clear();
        self.charges.clear();
        self.estates.clear();
    }

    /// How many of each kind there can be before more memory is needed.
    pub(crate) fn capacity(&self) -> usize {
        let charges = self.charges.capacity().max(self.estates.capacity());
        self.changes.capacity().max(charges)
    }

    pub(crate) fn changes(&self) -> &[Change<S>] {
        &self.changes
    }

    pub(crate) fn charges(&self) -> impl Iterator<Item = (Incarnation, Charge)> {
        self.charges.iter().copied()
    }

    /// What it costs to make them the store's, in the units of a request's cost: 1 for each change, and for 4 nodes of a tree.
    pub(crate) fn cost(&self) -> u64 {
        let changes = u64::try_from(self.changes.len()).unwrap_or(u64::MAX);
        let nodes = self
            .charges()
            .map(|(_, charge)| charge.nodes.unsigned_abs())
            .fold(0, u64::saturating_add);
        changes.saturating_add(nodes / 4)
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
    /// which the nodes were first `touched`, and to these watchers only, if not to all.
    ///
    /// A node that was both cut off and changed counts as cut off; one that is in neither tree does not count. Whatever was changed was touched.
    pub(crate) fn settle(
        &mut self,
        before: &S,
        after: &S,
        touched: &Touched,
        watches: Option<&Watches>,
    ) {
        for (path, Mark { removed, made }) in touched.marked() {
            if bugs::XSA_421 && before.branch(path).is_none() && after.get(path).is_none() {
                self.charges.clear();
            }
            if watches.is_some_and(|watches| !watches.concern(path, removed)) {
                continue;
            }
            let old = before.branch(path).map(Old::Branch);
            if old.is_some() || after.get(path).is_some() {
                let path = path.to_path();
                self.changes.push(Change {
                    path,
                    removed,
                    made,
                    old,
                });
            }
        }
    }

    /// Leaves it to `touched` what was changed.
    pub(crate) fn mark(&mut self, touched: &mut Touched) {
        for Change {
            path,
            removed,
            made,
            ..
        } in self.changes.drain(..)
        {
            touched.mark(path.as_ref(), Mark { removed, made });
        }
    }

    /// Takes charges and estates of what was done after this.
    pub(crate) fn take_in(&mut self, later: &mut Self) {
        for (owner, charge) in later.charges.drain(..) {
            self.charge(owner, charge.nodes, charge.bytes);
        }
        self.estates.append(&mut later.estates);
    }

    /// The estates that begin or cease to be, in order.
    pub(crate) fn estates(&self) -> &[Transfer] {
        &self.estates
    }

    pub(crate) fn charge(&mut self, owner: Incarnation, nodes: i64, bytes: i64) {
        let at = self.charges.partition_point(|(other, _)| *other < owner);
        match self.charges.get_mut(at) {
            Some((other, charge)) if *other == owner => {
                charge.nodes = charge.nodes.saturating_add(nodes);
                charge.bytes = charge.bytes.saturating_add(bytes);
            }
            _ => self.charges.insert(at, (owner, Charge { nodes, bytes })),
        }
    }

    pub(crate) fn transfer(&mut self, owner: Incarnation, path: PathRef<'_>, gained: bool) {
        let path = path.to_path();
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

/// What a node at `path` costs its owner.
pub(crate) fn cost(path: PathRef<'_>, value: &Value, acl: &Acl) -> i64 {
    let name = path.split().map_or(0, |(_, name)| name.len());
    let bytes = footprint(name, value.as_bytes().len(), acl.len());
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Changes nodes and notes the effects. What may be changed was judged before: nothing here fails half way.
pub(crate) struct Editor<'a, S: Storage> {
    pub(crate) nodes: &'a mut S,
    pub(crate) effects: &'a mut Effects<S>,
    pub(crate) generation: &'a mut Generation,
    /// Whose changes alone are noted; of all if none are given.
    pub(crate) watches: Option<&'a Watches>,
    /// In a transaction, of which others hear when it is committed, the nodes that it has touched: changes are noted there.
    pub(crate) touched: Option<&'a mut Touched>,
}

impl<S: Storage> Editor<'_, S> {
    /// Adds a node with those above it that are missing, `levels` in all, below one that exists; only the node itself is told of.
    pub(crate) fn create(&mut self, path: PathRef<'_>, levels: usize, value: &[u8], acl: &Rc<Acl>) {
        let made = levels.saturating_add(mem::take(&mut self.effects.parents));
        self.add(path, levels, value, acl);
        self.told(path, made, false, None);
    }

    /// Adds an empty parent of a node that is yet to be created. Nobody is told.
    pub(crate) fn create_parent(&mut self, path: PathRef<'_>, acl: &Rc<Acl>) {
        self.effects.parents = self.effects.parents.saturating_add(1);
        self.add(path, 1, &[], acl);
    }

    fn add(&mut self, path: PathRef<'_>, levels: usize, value: &[u8], acl: &Rc<Acl>) {
        let owner = acl.owner();
        let above = levels.saturating_sub(1);
        let top = path.above(levels).unwrap_or(path);
        let mut bytes = u64::try_from(value.len()).unwrap_or(u64::MAX);
        for name in path.components_below(top) {
            bytes = bytes.saturating_add(footprint(name.len(), 0, acl.len()));
        }
        let count = i64::try_from(levels).unwrap_or(i64::MAX);
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.effects.charge(owner, count, bytes);
        let generation = &mut *self.generation;
        let seeds = (0..levels).map(|level| {
            generation.0 = generation.0.wrapping_add(1);
            Seed {
                value: if level == above {
                    Value::new(value)
                } else {
                    Value::default()
                },
                acl: Rc::clone(acl),
                generation: *generation,
            }
        });
        if self.nodes.add_all(path, seeds) != Some(owner) {
            let topmost = path.above(above).unwrap_or(path);
            self.effects.transfer(owner, topmost, true);
        }
    }

    /// Replaces the value of a node that exists.
    pub(crate) fn write(&mut self, path: PathRef<'_>, value: &[u8]) {
        let generation = self.next();
        let Some(node) = self.nodes.get_mut(path) else {
            return;
        };
        let size = |value: &[u8]| i64::try_from(value.len()).unwrap_or(i64::MAX);
        let grown = size(value).saturating_sub(size(node.value.as_bytes()));
        node.value.set(value);
        node.generation = generation;
        self.effects.charge(node.acl.owner(), 0, grown);
        self.told(path, 0, false, None);
    }

    /// Cuts off a node that exists, with all below it.
    pub(crate) fn remove(&mut self, path: PathRef<'_>) {
        let generation = self.next();
        let Some((removed, above)) = self.nodes.remove(path, generation) else {
            return;
        };
        removed.visit(path, |path, leaf: Leaf<'_>| {
            let owner = leaf.acl.owner();
            let cost = cost(path, leaf.value, leaf.acl);
            self.effects.charge(owner, -1, cost.saturating_neg());
            if leaf.owner_above.unwrap_or(above) != owner {
                self.effects.transfer(owner, path, false);
            }
        });
        self.told(path, 0, true, Some(Old::Branch(removed)));
    }

    /// Replaces the access control list of a node that exists.
    pub(crate) fn set_acl(&mut self, path: PathRef<'_>, acl: Rc<Acl>) {
        let generation = self.next();
        let Some(node) = self.nodes.get_mut(path) else {
            return;
        };
        let owner = acl.owner();
        let new_cost = cost(path, &node.value, &acl);
        let old = mem::replace(&mut node.acl, acl);
        let old_cost = cost(path, &node.value, &old);
        node.generation = generation;
        if !path.is_special() {
            self.effects
                .charge(old.owner(), -1, old_cost.saturating_neg());
            self.effects.charge(owner, 1, new_cost);
            self.change_hands(path, old.owner(), owner);
        }
        self.told(path, 0, false, Some(Old::Acl(old)));
    }

    /// Keeps the estates right when a node gets another owner: its own place among them, and that of each child.
    fn change_hands(&mut self, path: PathRef<'_>, previous: Incarnation, owner: Incarnation) {
        if previous == owner {
            return;
        }
        let parent = path.parent().and_then(|parent| self.nodes.get(parent));
        let above = parent.map(|parent| parent.acl.owner());
        if above != Some(previous) {
            self.effects.transfer(previous, path, false);
        }
        if above != Some(owner) {
            self.effects.transfer(owner, path, true);
        }
        self.nodes.visit_children(path, |name, acl| {
            let holder = acl.owner();
            if holder == owner || holder == previous {
                self.effects
                    .transfer(holder, path.join(name).as_ref(), holder == previous);
            }
        });
    }

    fn told(&mut self, path: PathRef<'_>, made: usize, removed: bool, old: Option<Old<S>>) {
        if let Some(touched) = &mut self.touched {
            return touched.mark(path, Mark { removed, made });
        }
        let heard = |watches: &Watches| watches.concern(path, removed);
        if self.watches.is_none_or(heard) {
            let path = path.to_path();
            self.effects.changes.push(Change {
                path,
                removed,
                made,
                old,
            });
        }
    }

    fn next(&mut self) -> Generation {
        self.generation.0 = self.generation.0.wrapping_add(1);
        *self.generation
    }
}
