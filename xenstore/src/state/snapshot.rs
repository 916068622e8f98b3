//! What must be changed in one snapshot of the nodes to make another of it: so are those kept that open transactions have.

use alloc::string::String;
use alloc::vec::Vec;

use crate::path::PathRef;
use crate::storage::{Children, Node, Storage, listed_size};
use crate::store::{INTRODUCE_DOMAIN, RELEASE_DOMAIN};

/// The special names, which no client can make.
pub(super) const SPECIALS: [&str; 2] = [RELEASE_DOMAIN, INTRODUCE_DOMAIN];

/// One step from a snapshot to another.
pub(super) enum Step<'a, T> {
    /// A node goes, with all below it.
    Cut(PathRef<'a>),
    /// A node becomes this, but for its children; it may be new.
    Set {
        path: PathRef<'a>,
        node: &'a Node<T>,
        is_new: bool,
    },
}

/// Gives the steps from `old` to `new`, in an order in which they can be taken.
pub(super) fn steps<S: Storage>(old: &S, new: &S, mut each: impl FnMut(Step<'_, S::Child>)) {
    if new.is_same(old) {
        return;
    }
    for special in SPECIALS.map(PathRef::known) {
        compare(old, new, special, &mut each);
    }
    // The path of the node before, and the nodes to come, each with how much of that path is its parent's.
    let mut path = String::new();
    let mut open = Vec::from([(0, String::new())]);
    while let Some((above, name)) = open.pop() {
        path.truncate(above);
        if !name.is_empty() {
            path.push('/');
            path.push_str(&name);
        }
        let at = PathRef::known(if path.is_empty() { "/" } else { &path });
        if !new.shares(old, at) {
            children(old, new, at, &mut each, |name| {
                open.push((path.len(), name.into()))
            });
            compare(old, new, at, &mut each);
        }
    }
}

fn compare<S: Storage>(
    old: &S,
    new: &S,
    path: PathRef<'_>,
    each: &mut impl FnMut(Step<'_, S::Child>),
) {
    if let (Some(before), Some(node)) = (old.get(path), new.get(path))
        && (before.generation != node.generation
            || before.value != node.value
            || before.acl != node.acl)
    {
        let is_new = false;
        each(Step::Set { path, node, is_new });
    }
}

/// Compares the lists of children of a node that is in both; tells of those that are in both and may differ, too. Children are added at the
/// end of the list only, so what was there and stayed stands first in the new one, in the old order.
fn children<S: Storage>(
    old: &S,
    new: &S,
    path: PathRef<'_>,
    each: &mut impl FnMut(Step<'_, S::Child>),
    mut kept: impl FnMut(&str),
) {
    let (Some(before), Some(after)) = (old.get(path), new.get(path)) else {
        return;
    };
    let (mut before, mut after) = (Names::of(before), Names::of(after));
    while let Some(name) = before.next() {
        let child = path.join(&name);
        if after.peek().as_deref() != Some(&*name) {
            each(Step::Cut(child.as_ref()));
            continue;
        }
        after.next();
        if !new.shares(old, child.as_ref()) {
            kept(&name);
        }
    }
    while let Some(name) = after.next() {
        new.walk(path.join(&name).as_ref(), |path, node| {
            let is_new = true;
            each(Step::Set { path, node, is_new });
        });
    }
}

/// The names of a node's children, one at a time.
struct Names<'a, T: Clone> {
    children: &'a Children<T>,
    /// Where the next one begins in their list.
    at: usize,
}

impl<'a, T: Clone> Names<'a, T> {
    fn of(node: &'a Node<T>) -> Self {
        let children = node.children();
        Self { children, at: 0 }
    }

    fn peek(&self) -> Option<String> {
        let mut next = None;
        self.children.names_from(self.at, |name, _| {
            next = Some(name.into());
            false
        });
        next
    }

    fn next(&mut self) -> Option<String> {
        let next = self.peek()?;
        self.at = self.at.saturating_add(listed_size(&next));
        Some(next)
    }
}
