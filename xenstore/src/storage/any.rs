//! Nodes kept in the way that the word `store=` says: one type for all ways, so that the store's own code is made once.
//!
//! The tree is what hosts run: to it this costs a comparison. What else there is lies behind a pointer, and its code aside. What few requests
//! need is not made in line either: in the image it would be there many times.

use alloc::boxed::Box;
use alloc::rc::Rc;

use super::tree::{Growth, Limb};
use super::{
    Branch, ChangeLog, FlatMap, Journaled, Kind, Leaf, Node, Seed, Storage, Tree, flat::FlatBranch,
};
use crate::acl::{Acl, Incarnation};
use crate::ids::Generation;
use crate::path::{Components, PathRef};
use crate::time::Instant;

/// Nodes in any of the ways that a [`Kind`] names.
#[derive(Clone)]
pub struct AnyStorage(Way);

#[derive(Clone)]
enum Way {
    Tree(Tree),
    Other(Box<Other>),
}

/// Its nodes are those of a tree, without any below them, so that they are of the same type.
type Flat = FlatMap<Limb>;

#[derive(Clone)]
enum Other {
    Flat(Flat),
    Journaled(Journaled<AnyStorage>),
}

use Way::{Other as Aside, Tree as Plain};

impl Storage for AnyStorage {
    type Child = Limb;
    type Branch = AnyBranch;
    type Growth = Growth;

    fn new(owner: Incarnation) -> Self {
        Self(Plain(Tree::new(owner)))
    }

    fn of(kind: Kind, owner: Incarnation) -> Self {
        let aside = |other| Self(Aside(Box::new(other)));
        let nodes = if kind.is_flat {
            aside(Other::Flat(Storage::new(owner)))
        } else {
            Self::new(owner)
        };
        if kind.is_journaled {
            aside(Other::Journaled(Journaled::around(nodes)))
        } else {
            nodes
        }
    }

    #[inline]
    fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Plain(own), Plain(its)) => own.is_same(its),
            (Aside(own), Aside(its)) => own.is_same(its),
            _ => false,
        }
    }

    #[inline]
    fn get(&self, path: PathRef<'_>) -> Option<&Node<Limb>> {
        match &self.0 {
            Plain(nodes) => nodes.get(path),
            Aside(other) => other.get(path),
        }
    }

    #[inline]
    fn nearest<'p>(&self, path: PathRef<'p>) -> (&Node<Limb>, Components<'p>) {
        match &self.0 {
            Plain(nodes) => nodes.nearest(path),
            Aside(other) => other.nearest(path),
        }
    }

    #[inline]
    fn get_mut(&mut self, path: PathRef<'_>) -> Option<&mut Node<Limb>> {
        match &mut self.0 {
            Plain(nodes) => nodes.get_mut(path),
            Aside(other) => other.get_mut(path),
        }
    }

    #[inline(never)]
    fn add(&mut self, path: PathRef<'_>, seed: Seed) -> Option<Incarnation> {
        match &mut self.0 {
            Plain(nodes) => nodes.add(path, seed),
            Aside(other) => other.add(path, seed),
        }
    }

    #[inline(never)]
    fn restore(&mut self, path: PathRef<'_>, seed: Seed) -> Option<Incarnation> {
        match &mut self.0 {
            Plain(nodes) => nodes.restore(path, seed),
            Aside(other) => other.restore(path, seed),
        }
    }

    fn grow(&mut self, growth: &mut Growth, path: PathRef<'_>, seed: Seed) -> Option<Incarnation> {
        match &mut self.0 {
            Plain(nodes) => nodes.grow(growth, path, seed),
            Aside(other) => other.grow(growth, path, seed),
        }
    }

    #[inline(never)]
    fn settle(&mut self, growth: &mut Growth) {
        match &mut self.0 {
            Plain(nodes) => nodes.settle(growth),
            Aside(other) => other.settle(growth),
        }
    }

    #[inline]
    fn add_all(
        &mut self,
        path: PathRef<'_>,
        mut seeds: impl ExactSizeIterator<Item = Seed>,
    ) -> Option<Incarnation> {
        match &mut self.0 {
            Plain(nodes) => nodes.add_all(path, seeds),
            Aside(other) => other.add_all(path, &mut seeds),
        }
    }

    #[inline(never)]
    fn add_special(&mut self, name: PathRef<'_>, seed: Seed) {
        match &mut self.0 {
            Plain(nodes) => nodes.add_special(name, seed),
            Aside(other) => other.add_special(name, seed),
        }
    }

    #[inline]
    fn remove(
        &mut self,
        path: PathRef<'_>,
        generation: Generation,
    ) -> Option<(AnyBranch, Incarnation)> {
        match &mut self.0 {
            Plain(nodes) => nodes.remove(path, generation).map(cut),
            Aside(other) => other.remove(path, generation),
        }
    }

    #[inline(never)]
    fn branch(&self, path: PathRef<'_>) -> Option<AnyBranch> {
        match &self.0 {
            Plain(nodes) => nodes.branch(path).map(AnyBranch::from),
            Aside(other) => other.branch(path),
        }
    }

    #[inline(never)]
    fn shares(&self, other: &Self, path: PathRef<'_>) -> bool {
        match (&self.0, &other.0) {
            (Plain(own), Plain(its)) => own.shares(its, path),
            (Aside(own), Aside(its)) => own.shares(its, path),
            _ => false,
        }
    }

    #[inline]
    fn walk(&self, top: PathRef<'_>, mut each: impl FnMut(PathRef<'_>, &Node<Limb>)) {
        self.walk_all(top, &mut each);
    }

    #[inline]
    fn visit_children(&self, path: PathRef<'_>, mut each: impl FnMut(&str, &Acl)) {
        self.visit_all_children(path, &mut each);
    }

    #[inline]
    fn is_journaled(&self) -> bool {
        match &self.0 {
            Plain(_) => false,
            Aside(other) => other.is_journaled(),
        }
    }

    #[inline]
    fn committed(
        &mut self,
        log: &mut ChangeLog,
        now: Instant,
        is_alive: &dyn Fn(Incarnation) -> bool,
    ) {
        if let Aside(other) = &mut self.0 {
            other.committed(log, now, is_alive);
        }
    }

    #[inline]
    fn forget(&mut self) {
        if let Aside(other) = &mut self.0 {
            other.forget();
        }
    }

    #[inline(never)]
    fn visit_notes(&self, each: &mut dyn FnMut(PathRef<'_>, bool)) {
        if let Aside(other) = &self.0 {
            other.visit_notes(each);
        }
    }

    #[inline(never)]
    fn restore_note(&mut self, path: PathRef<'_>, is_removed: bool) {
        if let Aside(other) = &mut self.0 {
            other.restore_note(path, is_removed);
        }
    }

    #[inline]
    fn noted_bytes(&self) -> u64 {
        match &self.0 {
            Plain(_) => 0,
            Aside(other) => other.noted_bytes(),
        }
    }
}

/// What takes functions of its caller's is here once for all of them.
impl AnyStorage {
    fn walk_all(&self, top: PathRef<'_>, each: &mut dyn FnMut(PathRef<'_>, &Node<Limb>)) {
        match &self.0 {
            Plain(nodes) => nodes.walk(top, each),
            Aside(other) => other.walk(top, each),
        }
    }

    fn visit_all_children(&self, path: PathRef<'_>, each: &mut dyn FnMut(&str, &Acl)) {
        match &self.0 {
            Plain(nodes) => nodes.visit_children(path, each),
            Aside(other) => other.visit_children(path, each),
        }
    }
}

/// Does the same with whichever it is.
macro_rules! with {
    ($other:expr, $nodes:ident => $done:expr) => {
        match $other {
            Self::Flat($nodes) => $done,
            Self::Journaled($nodes) => $done,
        }
    };
}

/// As [`Storage`] has them.
impl Other {
    #[cold]
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Flat(own), Self::Flat(its)) => own.is_same(its),
            (Self::Journaled(own), Self::Journaled(its)) => own.is_same(its),
            _ => false,
        }
    }

    #[cold]
    fn get(&self, path: PathRef<'_>) -> Option<&Node<Limb>> {
        with!(self, nodes => nodes.get(path))
    }

    #[cold]
    fn nearest<'p>(&self, path: PathRef<'p>) -> (&Node<Limb>, Components<'p>) {
        with!(self, nodes => nodes.nearest(path))
    }

    #[cold]
    fn get_mut(&mut self, path: PathRef<'_>) -> Option<&mut Node<Limb>> {
        with!(self, nodes => nodes.get_mut(path))
    }

    #[cold]
    fn add(&mut self, path: PathRef<'_>, seed: Seed) -> Option<Incarnation> {
        with!(self, nodes => nodes.add(path, seed))
    }

    #[cold]
    fn restore(&mut self, path: PathRef<'_>, seed: Seed) -> Option<Incarnation> {
        with!(self, nodes => nodes.restore(path, seed))
    }

    #[cold]
    fn grow(&mut self, growth: &mut Growth, path: PathRef<'_>, seed: Seed) -> Option<Incarnation> {
        match self {
            Self::Flat(nodes) => nodes.grow(&mut (), path, seed),
            Self::Journaled(nodes) => nodes.grow(growth, path, seed),
        }
    }

    #[cold]
    fn settle(&mut self, growth: &mut Growth) {
        if let Self::Journaled(nodes) = self {
            nodes.settle(growth);
        }
    }

    #[cold]
    fn add_all(
        &mut self,
        path: PathRef<'_>,
        seeds: &mut dyn ExactSizeIterator<Item = Seed>,
    ) -> Option<Incarnation> {
        with!(self, nodes => nodes.add_all(path, seeds))
    }

    #[cold]
    fn add_special(&mut self, name: PathRef<'_>, seed: Seed) {
        with!(self, nodes => nodes.add_special(name, seed));
    }

    #[cold]
    fn remove(
        &mut self,
        path: PathRef<'_>,
        generation: Generation,
    ) -> Option<(AnyBranch, Incarnation)> {
        match self {
            Self::Flat(nodes) => nodes.remove(path, generation).map(cut),
            Self::Journaled(nodes) => nodes.remove(path, generation),
        }
    }

    #[cold]
    fn branch(&self, path: PathRef<'_>) -> Option<AnyBranch> {
        match self {
            Self::Flat(nodes) => nodes.branch(path).map(AnyBranch::from),
            Self::Journaled(nodes) => nodes.branch(path),
        }
    }

    #[cold]
    fn shares(&self, other: &Self, path: PathRef<'_>) -> bool {
        match (self, other) {
            (Self::Flat(own), Self::Flat(its)) => own.shares(its, path),
            (Self::Journaled(own), Self::Journaled(its)) => own.shares(its, path),
            _ => false,
        }
    }

    #[cold]
    fn walk(&self, top: PathRef<'_>, each: &mut dyn FnMut(PathRef<'_>, &Node<Limb>)) {
        with!(self, nodes => nodes.walk(top, each));
    }

    #[cold]
    fn visit_children(&self, path: PathRef<'_>, each: &mut dyn FnMut(&str, &Acl)) {
        with!(self, nodes => nodes.visit_children(path, each));
    }

    #[cold]
    fn is_journaled(&self) -> bool {
        with!(self, nodes => nodes.is_journaled())
    }

    #[cold]
    fn committed(
        &mut self,
        log: &mut ChangeLog,
        now: Instant,
        is_alive: &dyn Fn(Incarnation) -> bool,
    ) {
        with!(self, nodes => nodes.committed(log, now, is_alive));
    }

    #[cold]
    fn forget(&mut self) {
        with!(self, nodes => nodes.forget());
    }

    #[cold]
    fn visit_notes(&self, each: &mut dyn FnMut(PathRef<'_>, bool)) {
        with!(self, nodes => nodes.visit_notes(each));
    }

    #[cold]
    fn restore_note(&mut self, path: PathRef<'_>, is_removed: bool) {
        with!(self, nodes => nodes.restore_note(path, is_removed));
    }

    #[cold]
    fn noted_bytes(&self) -> u64 {
        with!(self, nodes => nodes.noted_bytes())
    }
}

/// A node with all below it, as the storage has it that it comes from.
#[derive(Clone)]
pub enum AnyBranch {
    /// Of a tree.
    Limb(Limb),
    /// Of a flat map.
    Flat(Box<FlatBranch<Limb>>),
}

impl From<Limb> for AnyBranch {
    #[inline]
    fn from(limb: Limb) -> Self {
        Self::Limb(limb)
    }
}

impl From<FlatBranch<Limb>> for AnyBranch {
    fn from(branch: FlatBranch<Limb>) -> Self {
        Self::Flat(Box::new(branch))
    }
}

#[inline]
fn cut<B: Into<AnyBranch>>((branch, owner): (B, Incarnation)) -> (AnyBranch, Incarnation) {
    (branch.into(), owner)
}

impl Branch for AnyBranch {
    #[inline(never)]
    fn acl(&self, names: Components<'_>) -> Option<&Rc<Acl>> {
        match self {
            Self::Limb(limb) => limb.acl(names),
            Self::Flat(branch) => branch.acl(names),
        }
    }

    #[inline]
    fn visit(&self, top: PathRef<'_>, mut each: impl FnMut(PathRef<'_>, Leaf<'_>)) {
        self.visit_all(top, &mut each);
    }
}

impl AnyBranch {
    fn visit_all(&self, top: PathRef<'_>, each: &mut dyn FnMut(PathRef<'_>, Leaf<'_>)) {
        match self {
            Self::Limb(limb) => limb.visit(top, each),
            Self::Flat(branch) => branch.visit(top, each),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_takes_no_room() {
        assert_eq!(size_of::<AnyStorage>(), size_of::<Tree>());
    }
}
