//! The nodes as a persistent tree, in which cloning the root is the snapshot.
//!
//! Where no snapshot is alive, edits happen in place; else the nodes on the way down are copied, and their children shared.

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use super::children::Cursor;
use super::{Branch, Children, Leaf, Node, Seed, Storage};
use crate::acl::{Acl, Incarnation};
use crate::bugs;
use crate::faults;
use crate::ids::Generation;
use crate::path::{Components, PathRef};

/// The whole tree at one moment.
#[derive(Clone)]
pub struct Tree {
    root: Limb,
    /// The special names, which have permissions but no value, as children of a node that has no name.
    specials: Limb,
}

/// A node with all below it, shared by all trees that have it.
#[derive(Clone)]
pub struct Limb(Rc<Node<Limb>>);

impl From<Node<Self>> for Limb {
    fn from(node: Node<Self>) -> Self {
        Self(Rc::new(node))
    }
}

impl Storage for Tree {
    type Child = Limb;
    type Branch = Limb;
    type Growth = Growth;

    fn new(owner: Incarnation) -> Self {
        let root = Node::new(Seed::root(owner));
        Self {
            specials: Limb(Rc::new(root.clone())),
            root: Limb(Rc::new(root)),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.root.0, &other.root.0) && Rc::ptr_eq(&self.specials.0, &other.specials.0)
    }

    fn get(&self, path: PathRef<'_>) -> Option<&Node<Limb>> {
        self.start(path)
            .descend(path.components())
            .map(|limb| &*limb.0)
    }

    fn nearest<'p>(&self, path: PathRef<'p>) -> (&Node<Limb>, Components<'p>) {
        let mut node = &*self.start(path).0;
        let mut names = path.components();
        loop {
            let missing = names.clone();
            match names.next().map(|name| node.children.get(name)) {
                Some(Some(child)) => node = &child.0,
                Some(None) | None => return (node, missing),
            }
        }
    }

    fn get_mut(&mut self, path: PathRef<'_>) -> Option<&mut Node<Limb>> {
        let start = if path.is_special() {
            &mut self.specials
        } else {
            &mut self.root
        };
        start.descend_mut(path.components())
    }

    fn add(&mut self, path: PathRef<'_>, seed: Seed) -> Option<Incarnation> {
        let (parent, name) = path.split()?;
        let parent = self.root.descend_mut(Components::of(parent))?;
        parent.generation = seed.generation;
        parent.children.add(name, Limb(Rc::new(Node::new(seed))));
        Some(parent.acl.owner())
    }

    fn restore(&mut self, path: PathRef<'_>, seed: Seed) -> Option<Incarnation> {
        let (parent, name) = path.split()?;
        let parent = self.root.descend_mut(Components::of(parent))?;
        if parent.children.get(name).is_some() {
            return None;
        }
        parent.children.add(name, Limb(Rc::new(Node::new(seed))));
        Some(parent.acl.owner())
    }

    /// The nodes on the way to the last one are held until all below them are there, so that nothing is sought from the top.
    fn grow(&mut self, growth: &mut Growth, path: PathRef<'_>, seed: Seed) -> Option<Incarnation> {
        let (parent, name) = path.split()?;
        while growth
            .shoots
            .last()
            .is_some_and(|last| growth.path.get(..last.end) != Some(parent))
        {
            self.end_shoot(growth);
        }
        let above = match growth.shoots.last() {
            Some(last) => &last.node,
            None => &*self.root.descend(Components::of(parent))?.0,
        };
        if above.children.get(name).is_some() {
            return None;
        }
        let owner = above.acl.owner();
        growth.path.clear();
        growth.path.push_str(path.as_str());
        growth.shoots.push(Shoot {
            node: Node::new(seed),
            end: growth.path.len(),
        });
        Some(owner)
    }

    fn settle(&mut self, growth: &mut Growth) {
        while !growth.shoots.is_empty() {
            self.end_shoot(growth);
        }
    }

    /// The new nodes are made first, and then become the tree's in one step.
    fn add_all(
        &mut self,
        path: PathRef<'_>,
        seeds: impl ExactSizeIterator<Item = Seed>,
    ) -> Option<Incarnation> {
        let top = path.above(seeds.len())?;
        let mut names = path.components_below(top);
        let topmost = names.next()?;
        let mut seeds = seeds;
        let first = seeds.next()?;
        let generation = first.generation;
        let mut limb = Node::new(first);
        if seeds.len() > 0 {
            let mut above = Vec::with_capacity(seeds.len());
            for (name, seed) in names.zip(seeds) {
                limb.generation = seed.generation;
                above.push((limb, name));
                limb = Node::new(seed);
            }
            for (mut parent, name) in above.into_iter().rev() {
                parent.children.add(name, Limb(Rc::new(limb)));
                limb = parent;
            }
        }
        let limb = Limb(Rc::new(limb));
        let node = self.root.descend_mut(top.components())?;
        faults::may_crash();
        node.children.add(topmost, limb);
        node.generation = generation;
        Some(node.acl.owner())
    }

    fn add_special(&mut self, name: PathRef<'_>, seed: Seed) {
        let specials = Rc::make_mut(&mut self.specials.0);
        let limb = Limb(Rc::new(Node::new(seed)));
        specials.children.add(name.as_str(), limb);
    }

    fn remove(&mut self, path: PathRef<'_>, generation: Generation) -> Option<(Limb, Incarnation)> {
        let (parent, name) = path.split()?;
        let parent = self.root.descend_mut(Components::of(parent))?;
        let limb = parent.children.remove(name)?;
        parent.generation = generation;
        Some((limb, parent.acl.owner()))
    }

    fn branch(&self, path: PathRef<'_>) -> Option<Limb> {
        self.start(path).descend(path.components()).cloned()
    }

    fn shares(&self, other: &Self, path: PathRef<'_>) -> bool {
        let own = self.start(path).descend(path.components());
        let its = other.start(path).descend(path.components());
        own.zip(its)
            .is_some_and(|(own, its)| Rc::ptr_eq(&own.0, &its.0))
    }

    fn walk(&self, top: PathRef<'_>, mut each: impl FnMut(PathRef<'_>, &Node<Limb>)) {
        let Some(first) = self.start(top).descend(top.components()) else {
            return;
        };
        // The path of the node before; and what is to come: nodes, each with how much of that path is its parent's, and behind the first
        // children of a node those that follow them.
        let mut path = String::from(top.as_str());
        each(top, &first.0);
        let mut open = Vec::new();
        let root = if top.is_root() { 0 } else { path.len() };
        open.push(Ahead::Children(root, first, Cursor::default()));
        while let Some(next) = open.pop() {
            match next {
                Ahead::Children(above, limb, from) => {
                    let first = open.len();
                    let rest = limb.0.children.some_from(from, |name, child| {
                        open.push(Ahead::Node(above, name, child));
                    });
                    let added = open.get_mut(first..).unwrap_or_default();
                    added.reverse();
                    if let Some(rest) = rest {
                        open.insert(first, Ahead::Children(above, limb, rest));
                    }
                }
                Ahead::Node(above, name, child) => {
                    path.truncate(above);
                    path.push('/');
                    path.push_str(name);
                    each(PathRef::known(&path), &child.0);
                    if !child.0.children.is_empty() {
                        open.push(Ahead::Children(path.len(), child, Cursor::default()));
                    }
                }
            }
        }
    }

    fn visit_children(&self, path: PathRef<'_>, mut each: impl FnMut(&str, &Acl)) {
        if let Some(node) = self.get(path) {
            for (name, child) in node.children.iter() {
                each(name, &child.0.acl);
            }
        }
    }
}

/// Nodes that are being restored, each the parent of the next: nothing of them is in the tree.
#[derive(Default)]
pub struct Growth {
    /// Of the last of them.
    path: String,
    shoots: Vec<Shoot>,
}

struct Shoot {
    node: Node<Limb>,
    /// Where its path ends in that of the last one.
    end: usize,
}

/// What a walk has before it.
enum Ahead<'a> {
    Node(usize, &'a str, &'a Limb),
    Children(usize, &'a Limb, Cursor),
}

impl Tree {
    /// Makes the last of the nodes that are being restored a child of the one above it.
    fn end_shoot(&mut self, growth: &mut Growth) {
        let Growth { path, shoots } = growth;
        let (Some(Shoot { node, end }), path) = (shoots.pop(), path.as_str()) else {
            return;
        };
        let path = PathRef::known(path.get(..end).unwrap_or(path));
        let Some((parent, name)) = path.split() else {
            return;
        };
        let above = match shoots.last_mut() {
            Some(last) => Some(&mut last.node),
            None => self.root.descend_mut(Components::of(parent)),
        };
        if let Some(above) = above {
            above.children.add(name, Limb(Rc::new(node)));
        }
    }

    fn start(&self, path: PathRef<'_>) -> &Limb {
        if path.is_special() {
            &self.specials
        } else {
            &self.root
        }
    }
}

impl Branch for Limb {
    fn acl(&self, names: Components<'_>) -> Option<&Rc<Acl>> {
        self.descend(names).map(|limb| &limb.0.acl)
    }

    fn visit(&self, top: PathRef<'_>, mut each: impl FnMut(PathRef<'_>, Leaf<'_>)) {
        each(top, self.leaf(None));
        if self.0.children.is_empty() {
            return;
        }
        // One path for all: one for each node that is yet to be looked into could be as much as all nodes together.
        let mut path = String::from(if top.is_root() { "" } else { top.as_str() });
        let mut open = Vec::from([(path.len(), None, self)]);
        while let Some((above, name, parent)) = open.pop() {
            path.truncate(above);
            if let Some(name) = name {
                extend(&mut path, name);
            }
            let length = path.len();
            let owner = parent.0.acl.owner();
            for (name, child) in parent.0.children.iter() {
                path.truncate(length);
                extend(&mut path, name);
                each(PathRef::known(&path), child.leaf(Some(owner)));
                if !child.0.children.is_empty() {
                    open.push((length, Some(name), child));
                }
            }
        }
    }
}

/// Makes of a path that of a node below.
fn extend(path: &mut String, name: &str) {
    path.push('/');
    path.push_str(name);
}

impl Limb {
    fn leaf(&self, owner_above: Option<Incarnation>) -> Leaf<'_> {
        Leaf {
            value: &self.0.value,
            acl: &self.0.acl,
            owner_above,
        }
    }

    fn descend(&self, names: Components<'_>) -> Option<&Self> {
        let mut limb = self;
        for name in names {
            limb = limb.0.children.get(name)?;
        }
        Some(limb)
    }

    /// As [`Limb::descend`], to change the node: what it shares with other trees on the way is copied.
    fn descend_mut(&mut self, names: Components<'_>) -> Option<&mut Node<Self>> {
        let mut node = Rc::make_mut(&mut self.0);
        for name in names {
            node = Rc::make_mut(&mut node.children.get_mut(name)?.0);
        }
        Some(node)
    }

    /// Whether nodes go with this one when it is dropped: no other tree has it, and it has children.
    fn takes_others_along(&self) -> bool {
        Rc::strong_count(&self.0) == 1 && !self.0.children.is_empty()
    }

    /// The children, if no other tree has this node.
    fn own_children(&mut self) -> Children<Self> {
        let node = Rc::get_mut(&mut self.0);
        node.map_or_else(Children::default, |node| {
            core::mem::take(&mut node.children)
        })
    }
}

/// Takes the nodes apart one by one: the compiler's own way would go as deep as the tree (hostility.md R11).
impl Drop for Limb {
    fn drop(&mut self) {
        if !self.takes_others_along() || bugs::XSA_418 {
            return;
        }
        let mut orphans = Vec::new();
        let bereave = |limb: &mut Self, orphans: &mut Vec<Self>| {
            limb.own_children().dismantle(|child| {
                if child.takes_others_along() {
                    orphans.push(child);
                }
            });
        };
        bereave(self, &mut orphans);
        while let Some(mut orphan) = orphans.pop() {
            bereave(&mut orphan, &mut orphans);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Path;
    use crate::storage::contract::{owner, seed};

    #[test]
    fn an_edit_without_snapshot_copies_nothing() {
        let mut tree = Tree::new(owner(0));
        let path = Path::known("/a");
        tree.add(path.as_ref(), seed(b""));
        let address = |tree: &Tree| Rc::as_ptr(&tree.branch(path.as_ref()).unwrap().0);
        let before = address(&tree);
        tree.get_mut(path.as_ref()).unwrap().generation = Generation(7);
        assert_eq!(address(&tree), before);
    }

    #[test]
    fn the_deepest_tree_is_dropped_on_a_small_stack() {
        let deep = || {
            let mut tree = Tree::new(owner(0));
            let mut path = Path::known("/");
            for _ in 0..1535 {
                path = path.as_ref().join("x");
                tree.add(path.as_ref(), seed(b""));
            }
            let snapshot = tree.clone();
            drop(tree);
            drop(snapshot);
        };
        let small = std::thread::Builder::new().stack_size(64 * 1024);
        small.spawn(deep).unwrap().join().unwrap();
    }
}
