//! What must be changed in one snapshot of the nodes to make another of it: so are those kept that open transactions have.

use alloc::string::String;
use alloc::vec::Vec;

use crate::path::{Path, PathRef};
use crate::storage::{Node, Storage};
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
    let mut open: Vec<Path> = Vec::from([PathRef::known("/").to_path()]);
    while let Some(path) = open.pop() {
        let path = path.as_ref();
        if !new.shares(old, path) {
            open.extend(children(old, new, path, &mut each));
            compare(old, new, path, &mut each);
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

/// Compares the lists of children of a node that is in both; gives those that are in both, too. Children are added at the end of the
/// list only, so what was there and stayed stands first in the new one, in the old order.
fn children<S: Storage>(
    old: &S,
    new: &S,
    path: PathRef<'_>,
    each: &mut impl FnMut(Step<'_, S::Child>),
) -> Vec<Path> {
    let (before, after) = (names(old, path), names(new, path));
    let mut after = after.into_iter().peekable();
    let mut kept = Vec::new();
    for name in before {
        let child = path.join(&name);
        if after.next_if_eq(&name).is_some() {
            kept.push(child);
        } else {
            each(Step::Cut(child.as_ref()));
        }
    }
    for name in after {
        new.walk(path.join(&name).as_ref(), |path, node| {
            let is_new = true;
            each(Step::Set { path, node, is_new });
        });
    }
    kept
}

fn names<S: Storage>(nodes: &S, path: PathRef<'_>) -> Vec<String> {
    let mut names = Vec::new();
    if let Some(node) = nodes.get(path) {
        node.children().names_from(0, |name, _| {
            names.push(name.into());
            true
        });
    }
    names
}
