//! The nodes: a persistent tree, in which cloning the root is the snapshot.
//!
//! Where no snapshot is alive, edits happen in place; else the nodes on the way down are copied, and their children shared.

mod children;
mod map;

use alloc::rc::Rc;
use alloc::vec::Vec;

use crate::acl::{Acl, Incarnation};
use crate::ids::Generation;
use crate::path::{Components, Path};

pub(crate) use children::{Children, listed_size};

/// The whole tree at one moment.
#[derive(Clone)]
pub(crate) struct Tree {
    root: Rc<Node>,
    /// The special names, which have permissions but no value, as children of a node that has no name.
    specials: Rc<Node>,
}

/// One node: its value, who may use it, and its children.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) acl: Rc<Acl>,
    /// The last change of value, access control list or child list.
    pub(crate) generation: Generation,
    children: Children,
}

/// The bytes of a node, shared by its copies. An empty value owns no memory.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Value(Option<Rc<[u8]>>);

impl Value {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self((!bytes.is_empty()).then(|| bytes.into()))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl Node {
    pub(crate) fn new(value: Value, acl: Rc<Acl>, generation: Generation) -> Self {
        Self {
            value,
            acl,
            generation,
            children: Children::default(),
        }
    }

    pub(crate) fn children(&self) -> &Children {
        &self.children
    }
}

impl Tree {
    /// A tree of nothing but `/`, which belongs to `owner` alone.
    pub(crate) fn new(owner: Incarnation) -> Self {
        let root = Node::new(
            Value::default(),
            Rc::new(Acl::private(owner)),
            Generation(0),
        );
        Self {
            specials: Rc::new(root.clone()),
            root: Rc::new(root),
        }
    }

    /// Whether nothing was changed since one was cloned from the other.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.root, &other.root) && Rc::ptr_eq(&self.specials, &other.specials)
    }

    pub(crate) fn root(&self) -> &Rc<Node> {
        &self.root
    }

    pub(crate) fn get(&self, path: &Path) -> Option<&Rc<Node>> {
        descend(self.start(path), path.components())
    }

    /// The node above `path`; none above `/`.
    pub(crate) fn parent(&self, path: &Path) -> Option<&Rc<Node>> {
        let (parent, _) = path.split()?;
        descend(&self.root, Components::of(parent))
    }

    /// The deepest node that exists on the way to `path`, and the names that lead on from there: none if that is the node itself.
    pub(crate) fn nearest<'p>(&self, path: &'p Path) -> (&Rc<Node>, Components<'p>) {
        let mut node = self.start(path);
        let mut names = path.components();
        loop {
            let missing = names.clone();
            match names.next().map(|name| node.children.get(name)) {
                Some(Some(child)) => node = child,
                Some(None) | None => return (node, missing),
            }
        }
    }

    /// The node to change; its children are changed by [`Tree::insert`] and [`Tree::remove`] only.
    pub(crate) fn get_mut(&mut self, path: &Path) -> Option<&mut Node> {
        let start = if path.is_special() {
            &mut self.specials
        } else {
            &mut self.root
        };
        descend_mut(start, path.components())
    }

    /// Adds a node below its parent, which must exist. The parent's generation becomes the node's.
    pub(crate) fn insert(&mut self, path: &Path, node: Node) {
        if let Some((parent, name)) = path.split()
            && let Some(parent) = descend_mut(&mut self.root, Components::of(parent))
        {
            parent.generation = node.generation;
            parent.children.insert(name, Rc::new(node));
        }
    }

    /// Adds a special name.
    pub(crate) fn insert_special(&mut self, name: &str, node: Node) {
        Rc::make_mut(&mut self.specials)
            .children
            .insert(name, Rc::new(node));
    }

    /// Cuts a node off with all below it.
    pub(crate) fn remove(&mut self, path: &Path, generation: Generation) -> Option<Rc<Node>> {
        let (parent, name) = path.split()?;
        let parent = descend_mut(&mut self.root, Components::of(parent))?;
        let node = parent.children.remove(name)?;
        parent.generation = generation;
        Some(node)
    }

    fn start(&self, path: &Path) -> &Rc<Node> {
        if path.is_special() {
            &self.specials
        } else {
            &self.root
        }
    }
}

/// The node that `names` lead to from `node`.
pub(crate) fn descend<'a>(node: &'a Rc<Node>, names: Components<'_>) -> Option<&'a Rc<Node>> {
    let mut node = node;
    for name in names {
        node = node.children.get(name)?;
    }
    Some(node)
}

/// As [`descend`], to change the node: what it shares with other trees on the way is copied.
fn descend_mut<'a>(node: &'a mut Rc<Node>, names: Components<'_>) -> Option<&'a mut Node> {
    let mut node = Rc::make_mut(node);
    for name in names {
        node = Rc::make_mut(node.children.get_mut(name)?);
    }
    Some(node)
}

/// Visits `node` and all below it, parents first, with the path of each and its parent's node (none for `node` itself).
pub(crate) fn visit(
    path: &Path,
    node: &Rc<Node>,
    mut each: impl FnMut(&Path, &Node, Option<&Node>),
) {
    each(path, node, None);
    let mut open = Vec::from([(path.clone(), node)]);
    while let Some((path, parent)) = open.pop() {
        for (name, child) in parent.children.iter() {
            let path = path.join(name);
            each(&path, child, Some(parent));
            if !child.children.is_empty() {
                open.push((path, child));
            }
        }
    }
}

/// Takes the nodes apart one by one: the compiler's own way would go as deep as the tree (hostility.md R11).
impl Drop for Node {
    fn drop(&mut self) {
        if self.children.is_empty() {
            return;
        }
        let mut orphans = Vec::new();
        self.children.dismantle(|child| orphans.push(child));
        while let Some(orphan) = orphans.pop() {
            if let Ok(mut node) = Rc::try_unwrap(orphan) {
                node.children.dismantle(|child| orphans.push(child));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::DomId;

    const OWNER: Incarnation = Incarnation {
        domid: DomId::new(0),
        number: 0,
    };

    fn node() -> Node {
        Node::new(
            Value::default(),
            Rc::new(Acl::private(OWNER)),
            Generation(0),
        )
    }

    fn names(tree: &Tree, path: &str) -> Vec<String> {
        let node = tree.get(&Path::known(path)).unwrap();
        node.children().names().map(str::to_owned).collect()
    }

    #[test]
    fn a_clone_keeps_what_it_saw() {
        let mut tree = Tree::new(OWNER);
        tree.insert(&Path::known("/a"), node());
        let before = tree.clone();
        tree.insert(&Path::known("/a/b"), node());
        tree.get_mut(&Path::known("/a")).unwrap().value = Value::new(b"new");
        assert!(before.get(&Path::known("/a/b")).is_none());
        assert_eq!(
            before.get(&Path::known("/a")).unwrap().value.as_bytes(),
            b""
        );
        assert_eq!(names(&tree, "/a"), ["b"]);
    }

    #[test]
    fn an_edit_without_snapshot_copies_nothing() {
        let mut tree = Tree::new(OWNER);
        tree.insert(&Path::known("/a"), node());
        let address = Rc::as_ptr(tree.get(&Path::known("/a")).unwrap());
        tree.get_mut(&Path::known("/a")).unwrap().value = Value::new(b"new");
        assert_eq!(Rc::as_ptr(tree.get(&Path::known("/a")).unwrap()), address);
    }

    #[test]
    fn many_children_keep_their_order_and_are_found() {
        let mut tree = Tree::new(OWNER);
        let name = |number: u32| format!("/{:x}", number.wrapping_mul(2_654_435_761));
        for number in 0..1000 {
            tree.insert(&Path::known(&name(number)), node());
        }
        for number in (0..1000).step_by(3) {
            assert!(
                tree.remove(&Path::known(&name(number)), Generation(1))
                    .is_some()
            );
        }
        let expected: Vec<_> = (0..1000)
            .filter(|n| n % 3 != 0)
            .map(|n| name(n).trim_start_matches('/').to_owned())
            .collect();
        assert_eq!(names(&tree, "/"), expected);
        let list: usize = expected.iter().map(|name| name.len() + 1).sum();
        assert_eq!(tree.root().children().list_size(), list);
        for number in 0..1000 {
            assert_eq!(
                tree.get(&Path::known(&name(number))).is_some(),
                number % 3 != 0
            );
        }
    }

    #[test]
    fn the_deepest_tree_is_dropped_on_a_small_stack() {
        let deep = || {
            let mut tree = Tree::new(OWNER);
            let mut path = Path::known("/");
            for _ in 0..1535 {
                path = path.join("x");
                tree.insert(&path, node());
            }
            let snapshot = tree.clone();
            drop(tree);
            drop(snapshot);
        };
        let small = std::thread::Builder::new().stack_size(64 * 1024);
        small.spawn(deep).unwrap().join().unwrap();
    }
}
