//! The nodes as one flat map from whole paths: slower where many nodes go at once, and simple enough to be believed.

use alloc::rc::Rc;
use alloc::vec::Vec;

use super::children::Key;
use super::index::Index;
use super::{Branch, Leaf, Node, Seed, Storage};
use crate::acl::{Acl, Incarnation};
use crate::ids::Generation;
use crate::path::{Components, Path, PathRef};

/// All nodes and special names by their paths.
///
/// Lists of children have names alone. `T` stands in them beside each, for whoever wants nodes of the same type as another storage's.
#[derive(Clone)]
pub struct FlatMap<T = ()> {
    nodes: Index<Key, Node<T>>,
    /// Stands for what is nearest to a special name that does not exist.
    nowhere: Node<T>,
    /// Stands in lists of children.
    child: T,
    /// Another one after each change.
    version: Rc<()>,
}

/// Nothing is what the lists of children have of a node.
impl From<Node<()>> for () {
    fn from(_: Node<()>) -> Self {}
}

impl<T: Clone + From<Node<T>>> Storage for FlatMap<T> {
    type Child = T;
    type Branch = FlatBranch<T>;
    type Growth = ();

    fn new(owner: Incarnation) -> Self {
        let root = Node::new(Seed::root(owner));
        let mut nodes = Index::default();
        nodes.insert(Key::new("/"), root.clone());
        Self {
            nodes,
            child: T::from(root.clone()),
            nowhere: root,
            version: Rc::new(()),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.version, &other.version)
    }

    #[inline(never)]
    fn get(&self, path: PathRef<'_>) -> Option<&Node<T>> {
        let (digest, order) = Key::wanted(path.as_str());
        self.nodes.get(digest, order)
    }

    fn nearest<'p>(&self, path: PathRef<'p>) -> (&Node<T>, Components<'p>) {
        if path.is_special() {
            return match self.get(path) {
                Some(node) => (node, Components::of("")),
                None => (&self.nowhere, path.components()),
            };
        }
        let mut above = Some(path);
        while let Some(here) = above {
            if let Some(node) = self.get(here) {
                let missing = path.as_str().get(here.as_str().len()..);
                return (node, Components::of(missing.unwrap_or_default()));
            }
            above = here.parent();
        }
        (&self.nowhere, path.components())
    }

    #[inline(never)]
    fn get_mut(&mut self, path: PathRef<'_>) -> Option<&mut Node<T>> {
        self.touch();
        let (digest, order) = Key::wanted(path.as_str());
        self.nodes.get_mut(digest, order)
    }

    #[inline(never)]
    fn add(&mut self, path: PathRef<'_>, seed: Seed) -> Option<Incarnation> {
        let generation = seed.generation;
        let owner = self.restore(path, seed)?;
        self.get_mut(path.parent()?)?.generation = generation;
        Some(owner)
    }

    fn grow(&mut self, _: &mut (), path: PathRef<'_>, seed: Seed) -> Option<Incarnation> {
        self.restore(path, seed)
    }

    fn settle(&mut self, _: &mut ()) {}

    fn restore(&mut self, path: PathRef<'_>, seed: Seed) -> Option<Incarnation> {
        let (_, name) = path.split()?;
        let child = self.child.clone();
        let parent = self.get_mut(path.parent()?)?;
        if parent.children.get(name).is_some() {
            return None;
        }
        let owner = parent.acl.owner();
        parent.children.add(name, child);
        self.nodes.insert(Key::new(path.as_str()), Node::new(seed));
        Some(owner)
    }

    fn add_special(&mut self, name: PathRef<'_>, seed: Seed) {
        self.touch();
        self.nodes.insert(Key::new(name.as_str()), Node::new(seed));
    }

    fn remove(
        &mut self,
        path: PathRef<'_>,
        generation: Generation,
    ) -> Option<(FlatBranch<T>, Incarnation)> {
        let branch = self.branch(path)?;
        let (_, name) = path.split()?;
        let parent = self.get_mut(path.parent()?)?;
        let owner = parent.acl.owner();
        parent.generation = generation;
        parent.children.remove(name)?;
        branch.visit(path, |path, _| {
            let (digest, order) = Key::wanted(path.as_str());
            self.nodes.remove(digest, order);
        });
        Some((branch, owner))
    }

    #[inline(never)]
    fn branch(&self, path: PathRef<'_>) -> Option<FlatBranch<T>> {
        self.get(path)?;
        Some(FlatBranch {
            all: self.clone(),
            top: path.to_path(),
        })
    }

    fn shares(&self, other: &Self, _: PathRef<'_>) -> bool {
        self.is_same(other)
    }

    fn walk(&self, top: PathRef<'_>, mut each: impl FnMut(PathRef<'_>, &Node<T>)) {
        let mut open = Vec::from([top.to_path()]);
        while let Some(path) = open.pop() {
            let Some(node) = self.get(path.as_ref()) else {
                continue;
            };
            each(path.as_ref(), node);
            let below = node.children.in_order().into_iter().rev();
            open.extend(below.map(|(name, _)| path.as_ref().join(name)));
        }
    }

    fn visit_children(&self, path: PathRef<'_>, mut each: impl FnMut(&str, &Acl)) {
        if let Some(node) = self.get(path) {
            for (name, _) in node.children.iter() {
                if let Some(child) = self.get(path.join(name).as_ref()) {
                    each(name, &child.acl);
                }
            }
        }
    }
}

impl<T> FlatMap<T> {
    fn touch(&mut self) {
        self.version = Rc::new(());
    }
}

/// A snapshot, and the path in it.
#[derive(Clone)]
pub struct FlatBranch<T = ()> {
    all: FlatMap<T>,
    top: Path,
}

impl<T: Clone + From<Node<T>>> Branch for FlatBranch<T> {
    fn acl(&self, names: Components<'_>) -> Option<&Rc<Acl>> {
        let mut path = self.top.clone();
        for name in names {
            path = path.as_ref().join(name);
        }
        self.all.get(path.as_ref()).map(|node| &node.acl)
    }

    fn visit(&self, top: PathRef<'_>, mut each: impl FnMut(PathRef<'_>, Leaf<'_>)) {
        let mut open = Vec::from([(top.to_path(), None)]);
        while let Some((path, owner_above)) = open.pop() {
            let Some(node) = self.all.get(path.as_ref()) else {
                continue;
            };
            let leaf = Leaf {
                value: &node.value,
                acl: &node.acl,
                owner_above,
            };
            each(path.as_ref(), leaf);
            let owner = Some(node.acl.owner());
            let below = node.children.iter();
            open.extend(below.map(|(name, _)| (path.as_ref().join(name), owner)));
        }
    }
}
