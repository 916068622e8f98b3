//! The children of a node: listed in the order of their creation, found by name, alike cheap for ten and for a hundred thousand.

use alloc::rc::Rc;

use super::Node;
use super::map::{Map, Weigh};

/// Up to this many children are found by looking through the list; more have an index.
const LISTED_MAX: usize = 16;

/// The children of a node; one that has none owns no memory for them.
#[derive(Clone, Default)]
pub(crate) struct Children(Option<Rc<List>>);

#[derive(Clone, Default)]
struct List {
    by_age: Map<Age, Child>,
    /// Empty while the list is short.
    by_name: Map<Rc<str>, Age>,
    next: u64,
}

/// When a child was created, among its siblings.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Age(u64);

#[derive(Clone)]
struct Child {
    name: Rc<str>,
    node: Rc<Node>,
}

impl Weigh for Child {
    fn weight(&self) -> usize {
        listed_size(&self.name)
    }
}

impl Weigh for Age {
    fn weight(&self) -> usize {
        0
    }
}

/// Bytes of a name in its parent's child list: the name and a NUL.
pub(crate) fn listed_size(name: &str) -> usize {
    name.len().saturating_add(1)
}

impl Children {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Bytes of the list of names, each with its NUL.
    pub(crate) fn list_size(&self) -> usize {
        self.0.as_ref().map_or(0, |list| list.by_age.weight())
    }

    /// The names in order of creation.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(name, _)| name)
    }

    /// The names from the one that holds byte `offset` of the list on, and how far into that one the offset lies.
    pub(crate) fn names_from(&self, offset: usize) -> (impl Iterator<Item = &str>, usize) {
        let found = self.0.as_ref().map(|list| list.by_age.iter_from(offset));
        let (entries, within) = found.unzip();
        let names = entries.into_iter().flatten().map(|(_, child)| &*child.name);
        (names, within.unwrap_or(offset))
    }

    /// The children in order of creation.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Rc<Node>)> {
        let entries = self.0.iter().flat_map(|list| list.by_age.iter());
        entries.map(|(_, child)| (&*child.name, &child.node))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Rc<Node>> {
        self.0.as_ref()?.get(name)
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Rc<Node>> {
        Rc::make_mut(self.0.as_mut()?).get_mut(name)
    }

    /// Adds a child as the youngest. A child that has the name already is replaced.
    pub(super) fn insert(&mut self, name: &str, node: Rc<Node>) {
        Rc::make_mut(self.0.get_or_insert_default()).insert(name, node);
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<Rc<Node>> {
        let list = Rc::make_mut(self.0.as_mut()?);
        let removed = list.remove(name);
        if list.by_age.is_empty() {
            self.0 = None;
        }
        removed
    }

    /// Takes all children out; `each` gets those that no other tree shares.
    pub(super) fn dismantle(&mut self, mut each: impl FnMut(Rc<Node>)) {
        if let Some(Ok(mut list)) = self.0.take().map(Rc::try_unwrap) {
            list.by_age.dismantle(|child| each(child.node));
        }
    }
}

impl List {
    fn get(&self, name: &str) -> Option<&Rc<Node>> {
        let child = if self.is_indexed() {
            self.by_age.get(self.by_name.get(name)?)?
        } else {
            self.by_age.find(|child| &*child.name == name)?.1
        };
        Some(&child.node)
    }

    fn get_mut(&mut self, name: &str) -> Option<&mut Rc<Node>> {
        let child = if self.is_indexed() {
            self.by_age.get_mut(self.by_name.get(name)?)?
        } else {
            self.by_age.find_mut(|child| &*child.name == name)?
        };
        Some(&mut child.node)
    }

    fn insert(&mut self, name: &str, node: Rc<Node>) {
        self.remove(name);
        let age = Age(self.next);
        self.next = self.next.wrapping_add(1);
        let name: Rc<str> = name.into();
        if self.is_indexed() {
            self.by_name.insert(Rc::clone(&name), age);
        }
        self.by_age.insert(age, Child { name, node });
        if self.by_age.len() > LISTED_MAX && !self.is_indexed() {
            for (age, child) in self.by_age.iter() {
                self.by_name.insert(Rc::clone(&child.name), *age);
            }
        }
    }

    fn remove(&mut self, name: &str) -> Option<Rc<Node>> {
        let age = self.age(name)?;
        self.by_name.remove(name);
        self.by_age.remove(&age).map(|child| child.node)
    }

    fn is_indexed(&self) -> bool {
        !self.by_name.is_empty()
    }

    fn age(&self, name: &str) -> Option<Age> {
        if self.is_indexed() {
            return self.by_name.get(name).copied();
        }
        let found = self.by_age.find(|child| &*child.name == name);
        found.map(|(age, _)| *age)
    }
}
