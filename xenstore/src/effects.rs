//! The only code that changes a tree, and the record of what each change means to watches and to the ledger.
//!
//! A request edits the store's tree, a transaction its private one; either way the effects are taken as a whole, when the change becomes
//! the store's, and dropped as a whole otherwise.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::{iter, mem};

use crate::acl::{Acl, Incarnation};
use crate::bugs;
use crate::faults;
use crate::ids::Generation;
use crate::path::{Path, PathRef};
use crate::storage::{AnyStorage, Branch, Leaf, Seed, Storage, Value};
use crate::touched::{Mark, Touched};
use crate::watch::Watches;

/// Bytes that a node costs before its name, value and permissions: the node, its place in its parent and the allocator's share.
pub(crate) const NODE_BYTES: u64 = 192;
/// Changes, or owners, for which there stays memory.
pub(crate) const SPARE_PLACES: usize = 128;
/// Bytes of an entry of an access control list.
pub(crate) const ENTRY_BYTES: u64 = 24;

/// What a request or transaction did.
#[derive(Clone)]
pub(crate) struct Effects<S: Storage = AnyStorage> {
    changes: Vec<Change<S>>,
    /// Sorted by owner.
    charges: Vec<(Incarnation, Charge)>,
    estates: Vec<Transfer>,
    /// Parents that were made on the way to a node that is yet to be.
    parents: usize,
    /// The nodes are changed: what is noted is to be told. Until then it is only foreseen.
    is_done: bool,
}

/// A node of which its watchers hear.
#[derive(Clone)]
pub(crate) struct Change<S: Storage = AnyStorage> {
    pub(crate) path: Path,
    /// It was cut off, with all below it.
    pub(crate) removed: bool,
    /// Nodes that were made, its missing parents included; none if it was there.
    pub(crate) made: usize,
    /// What stood there before, where that matters to who may hear.
    pub(crate) old: Option<Old<S>>,
}

/// What stood where something changed.
#[derive(Clone)]
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
            is_done: false,
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
#[derive(Clone)]
pub(crate) struct Transfer {
    pub(crate) owner: Incarnation,
    pub(crate) path: Path,
    pub(crate) gained: bool,
}

impl<S: Storage> Effects<S> {
    /// Whether nothing was changed.
    pub(crate) fn is_empty(&self) -> bool {
        !self.is_done && self.changes.is_empty() && self.charges.is_empty()
    }

    /// Forgets what was done; its memory stays for what comes, if it is not too much.
    pub(crate) fn clear(&mut self) {
        if self.capacity() > SPARE_PLACES {
            *self = Self::default();
            return;
        }
        self.changes.clear();
        self.charges.clear();
        self.estates.clear();
        self.is_done = false;
    }

    /// Whether nodes were changed, all that was asked for.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Notes that the nodes of all changes are those of the store.
    pub(crate) fn set_done(&mut self) {
        self.is_done = true;
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
///
/// Even a crash leaves no change that nobody hears of: a change is noted first, then the nodes change in one step, and then it counts as
/// done. What the accounts are comes out of the nodes, if need be.
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
        let is_noted = self.note(path, made, false);
        self.add(path, levels, value, acl);
        self.done(is_noted, None);
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
        faults::may_crash();
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
        let owner_above = self.nodes.add_all(path, seeds);
        self.effects.is_done = true;
        faults::may_crash();
        if owner_above != Some(owner) {
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
        let owner = node.acl.owner();
        let is_noted = note(
            self.effects,
            &mut self.touched,
            self.watches,
            path,
            0,
            false,
        );
        faults::may_crash();
        node.value.set(value);
        node.generation = generation;
        self.effects.set_done();
        faults::may_crash();
        self.effects.charge(owner, 0, grown);
        self.done(is_noted, None);
    }

    /// Cuts off a node that exists, with all below it.
    pub(crate) fn remove(&mut self, path: PathRef<'_>) {
        let generation = self.next();
        let is_noted = self.note(path, 0, true);
        faults::may_crash();
        let Some((removed, above)) = self.nodes.remove(path, generation) else {
            if is_noted {
                self.effects.changes.pop();
            }
            return;
        };
        self.done(is_noted, is_noted.then(|| Old::Branch(removed.clone())));
        faults::may_crash();
        removed.visit(path, |path, leaf: Leaf<'_>| {
            let owner = leaf.acl.owner();
            let cost = cost(path, leaf.value, leaf.acl);
            self.effects.charge(owner, -1, cost.saturating_neg());
            if leaf.owner_above.unwrap_or(above) != owner {
                self.effects.transfer(owner, path, false);
            }
        });
    }

    /// Replaces the access control list of a node that exists.
    pub(crate) fn set_acl(&mut self, path: PathRef<'_>, acl: Rc<Acl>) {
        let generation = self.next();
        let Some(node) = self.nodes.get_mut(path) else {
            return;
        };
        let owner = acl.owner();
        let new_cost = cost(path, &node.value, &acl);
        let is_noted = note(
            self.effects,
            &mut self.touched,
            self.watches,
            path,
            0,
            false,
        );
        faults::may_crash();
        let old = mem::replace(&mut node.acl, acl);
        let old_cost = cost(path, &node.value, &old);
        node.generation = generation;
        self.done(is_noted, is_noted.then(|| Old::Acl(Rc::clone(&old))));
        faults::may_crash();
        if !path.is_special() {
            self.effects
                .charge(old.owner(), -1, old_cost.saturating_neg());
            self.effects.charge(owner, 1, new_cost);
            self.change_hands(path, old.owner(), owner);
        }
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

    /// Notes a change that is to be made; whether others hear of it from here.
    fn note(&mut self, path: PathRef<'_>, made: usize, removed: bool) -> bool {
        note(
            self.effects,
            &mut self.touched,
            self.watches,
            path,
            made,
            removed,
        )
    }

    /// The change that was noted last is made.
    fn done(&mut self, is_noted: bool, old: Option<Old<S>>) {
        self.effects.is_done = true;
        if is_noted && let Some(change) = self.effects.changes.last_mut() {
            change.old = old;
        }
    }

    fn next(&mut self) -> Generation {
        self.generation.0 = self.generation.0.wrapping_add(1);
        *self.generation
    }
}

fn note<S: Storage>(
    effects: &mut Effects<S>,
    touched: &mut Option<&mut Touched>,
    watches: Option<&Watches>,
    path: PathRef<'_>,
    made: usize,
    removed: bool,
) -> bool {
    if let Some(touched) = touched {
        touched.mark(path, Mark { removed, made });
        return false;
    }
    let is_heard = watches.is_none_or(|watches| watches.concern(path, removed));
    if is_heard {
        effects.changes.push(Change {
            path: path.to_path(),
            removed,
            made,
            old: None,
        });
    }
    is_heard
}
