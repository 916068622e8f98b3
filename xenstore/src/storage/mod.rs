//! Where nodes live: what the store asks of any way of keeping them, of which there are two, one around either, and one that is any of these.
//!
//! The tree ([`Tree`]) is what hosts run. The flat map ([`FlatMap`]) is the second opinion: it keeps nodes by their whole path and shares
//! nothing with the tree but the lists of children, so that a difference between the two is a mistake in one of them. [`Journaled`] keeps
//! a journal besides. [`AnyStorage`] is what the word `store=` says, and what programs are made with.

mod any;
mod change_log;
mod children;
#[cfg(test)]
mod contract;
mod flat;
mod index;
mod journaled;
mod map;
mod tree;

use alloc::rc::Rc;

use crate::acl::{Acl, Incarnation};
use crate::ids::Generation;
use crate::path::{Components, PathRef};
use crate::time::Instant;

pub use any::AnyStorage;
pub use change_log::ChangeLog;
pub(crate) use children::{Children, digest, digest_bytes, listed_size, mix as mix_word};
pub use flat::FlatMap;
pub(crate) use index::{Digested, Index};
pub use journaled::Journaled;
pub use tree::Tree;

/// What `store=` names: how nodes are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    /// As a flat map, not as a tree.
    pub is_flat: bool,
    /// With a journal.
    pub is_journaled: bool,
}

impl Kind {
    /// Reads the word: `tree`, `flat`, `journal` (of a tree), `journal:tree` or `journal:flat`.
    ///
    /// # Errors
    /// There is no such storage.
    pub fn parse(word: &[u8]) -> Result<Self, &'static str> {
        let (is_flat, is_journaled) = match word {
            b"tree" => (false, false),
            b"flat" => (true, false),
            b"journal" | b"journal:tree" => (false, true),
            b"journal:flat" => (true, true),
            _ => return Err("it takes tree, flat, journal, journal:tree or journal:flat"),
        };
        Ok(Self {
            is_flat,
            is_journaled,
        })
    }
}

/// A way of keeping nodes. A clone is a snapshot, made in a few steps however many nodes there are.
///
/// What is to be changed was judged before, so that no method fails: one that cannot do what it is asked for does nothing.
pub trait Storage: Clone {
    /// What a list of children has for each, besides the name.
    type Child: Clone;
    /// A node with all below it, as it was at some time.
    type Branch: Branch;
    /// What [`Storage::grow`] has begun.
    type Growth: Default;

    /// Nothing but `/`, which belongs to `owner` alone.
    fn new(owner: Incarnation) -> Self;

    /// The same in the way that is chosen, of a type that leaves the choice.
    fn of(_: Kind, owner: Incarnation) -> Self {
        Self::new(owner)
    }

    /// Whether nothing was changed since one was cloned from the other.
    fn is_same(&self, other: &Self) -> bool;

    /// The node.
    fn get(&self, path: PathRef<'_>) -> Option<&Node<Self::Child>>;

    /// The deepest node that exists on the way to `path`, and the names that lead on from there: none if that is the node itself.
    ///
    /// Below a special name nothing exists; nearest to one that does not exist is a node that is the privileged domain's alone.
    fn nearest<'p>(&self, path: PathRef<'p>) -> (&Node<Self::Child>, Components<'p>);

    /// The node, to change all but its children.
    fn get_mut(&mut self, path: PathRef<'_>) -> Option<&mut Node<Self::Child>>;

    /// Adds a node as the youngest child of its parent, which exists, and gives the parent's owner. The parent's generation becomes the
    /// node's.
    fn add(&mut self, path: PathRef<'_>, seed: Seed) -> Option<Incarnation>;

    /// As [`Storage::add`], for a node that was there before: the parent's generation stays. Not if there is one by that name.
    fn restore(&mut self, path: PathRef<'_>, seed: Seed) -> Option<Incarnation>;

    /// As [`Storage::restore`], for many nodes in a row, each behind its parent or near it: what is begun becomes part of the nodes when it is
    /// [settled](Storage::settle).
    fn grow(
        &mut self,
        growth: &mut Self::Growth,
        path: PathRef<'_>,
        seed: Seed,
    ) -> Option<Incarnation>;

    /// Ends what [`Storage::grow`] has begun.
    fn settle(&mut self, growth: &mut Self::Growth);

    /// As [`Storage::add`] for a node and those above it that are missing: `seeds` are theirs, topmost first. Gives the owner of the one
    /// that exists above them.
    fn add_all(
        &mut self,
        path: PathRef<'_>,
        seeds: impl ExactSizeIterator<Item = Seed>,
    ) -> Option<Incarnation> {
        let mut owner = None;
        let missing = seeds.len();
        for (done, seed) in seeds.enumerate() {
            let above = missing.saturating_sub(done).saturating_sub(1);
            let parent = self.add(path.above(above)?, seed);
            owner = owner.or(parent);
        }
        owner
    }

    /// Adds a special name.
    fn add_special(&mut self, name: PathRef<'_>, seed: Seed);

    /// Cuts a node off with all below it; gives that and the parent's owner. The parent's generation becomes `generation`.
    fn remove(
        &mut self,
        path: PathRef<'_>,
        generation: Generation,
    ) -> Option<(Self::Branch, Incarnation)>;

    /// A node with all below it, as it is now.
    fn branch(&self, path: PathRef<'_>) -> Option<Self::Branch>;

    /// Whether it is certain without a look at them that a node and all below it, or a special name, are the same in both.
    fn shares(&self, other: &Self, path: PathRef<'_>) -> bool;

    /// Visits a node and all below it: parents before children, and children in order of their creation.
    fn walk(&self, top: PathRef<'_>, each: impl FnMut(PathRef<'_>, &Node<Self::Child>));

    /// Visits the children of a node, with their names, in no order that means anything.
    fn visit_children(&self, path: PathRef<'_>, each: impl FnMut(&str, &Acl));

    /// Whether it notes what is changed, for a journal.
    #[inline]
    fn is_journaled(&self) -> bool {
        false
    }

    /// These are the store's nodes now: all that was changed is written down, if it was noted. `is_alive` says which domains there are.
    #[inline]
    fn committed(
        &mut self,
        _log: &mut ChangeLog,
        _now: Instant,
        _is_alive: &dyn Fn(Incarnation) -> bool,
    ) {
    }

    /// What was changed so far is no news: it was read from a state stream.
    #[inline]
    fn forget(&mut self) {}

    /// Where something was changed since these were the store's nodes, in order, and whether a node was removed, if that is kept.
    #[inline]
    fn visit_notes(&self, _each: &mut dyn FnMut(PathRef<'_>, bool)) {}

    /// Notes again what another instance of the server had noted.
    #[inline]
    fn restore_note(&mut self, _path: PathRef<'_>, _is_removed: bool) {}

    /// Bytes that are kept of what was changed since these were the store's nodes.
    #[inline]
    fn noted_bytes(&self) -> u64 {
        0
    }
}

/// A node with all below it, as it was at some time.
pub trait Branch: Clone {
    /// The access control list of the node that `names` lead to from the top of the branch.
    fn acl(&self, names: Components<'_>) -> Option<&Rc<Acl>>;

    /// Visits all nodes, parents first, each with its path (`top` is that of the first) and its parent's owner (none for the first).
    fn visit(&self, top: PathRef<'_>, each: impl FnMut(PathRef<'_>, Leaf<'_>));
}

/// What a visitor sees of a node.
#[derive(Clone, Copy)]
pub struct Leaf<'a> {
    pub(crate) value: &'a Value,
    pub(crate) acl: &'a Rc<Acl>,
    pub(crate) owner_above: Option<Incarnation>,
}

/// What a new node begins with.
#[derive(Clone)]
pub struct Seed {
    pub(crate) value: Value,
    pub(crate) acl: Rc<Acl>,
    pub(crate) generation: Generation,
}

/// One node: its value, who may use it, and its children.
#[derive(Clone)]
pub struct Node<T> {
    pub(crate) value: Value,
    pub(crate) acl: Rc<Acl>,
    /// The last change of value, access control list or child list.
    pub(crate) generation: Generation,
    children: Children<T>,
}

impl<T> Node<T> {
    fn new(seed: Seed) -> Self {
        Self {
            value: seed.value,
            acl: seed.acl,
            generation: seed.generation,
            children: Children::default(),
        }
    }

    pub(crate) fn children(&self) -> &Children<T> {
        &self.children
    }
}

impl Seed {
    /// Of `/`, and of what stands for all that is nowhere: it belongs to `owner` alone.
    fn root(owner: Incarnation) -> Self {
        Self {
            value: Value::default(),
            acl: Rc::new(Acl::private(owner)),
            generation: Generation(0),
        }
    }
}

/// Bytes of a value that takes no memory of its own: as many as make it no larger than a pointer, a length and a word.
const SHORT_MAX: usize = 22;

/// The bytes of a node, shared by its copies if they are many.
#[derive(Clone)]
pub(crate) enum Value {
    /// Up to [`SHORT_MAX`] bytes, of which the first `len` count.
    Short { len: u8, bytes: [u8; SHORT_MAX] },
    /// More than those.
    Long(Rc<[u8]>),
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Value {}

impl Default for Value {
    fn default() -> Self {
        Self::Short {
            len: 0,
            bytes: [0; SHORT_MAX],
        }
    }
}

impl Value {
    pub(crate) fn new(value: &[u8]) -> Self {
        let mut bytes = [0; SHORT_MAX];
        match (bytes.get_mut(..value.len()), u8::try_from(value.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(value);
                Self::Short { len, bytes }
            }
            _ => Self::Long(value.into()),
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => bytes.split_at(usize::from(*len).min(SHORT_MAX)).0,
            Self::Long(bytes) => bytes,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Short { len, .. } => (*len).into(),
            Self::Long(bytes) => bytes.len(),
        }
    }

    /// Becomes other bytes; in the same memory, if they are as many and nobody shares it.
    pub(crate) fn set(&mut self, value: &[u8]) {
        let place = match self {
            Self::Short { len, bytes } => {
                let place = bytes.get_mut(..value.len());
                place
                    .zip(u8::try_from(value.len()).ok())
                    .map(|(place, new)| {
                        *len = new;
                        place
                    })
            }
            Self::Long(bytes) if bytes.len() == value.len() => Rc::get_mut(bytes),
            Self::Long(_) => None,
        };
        match place {
            Some(place) => place.copy_from_slice(value),
            None => *self = Self::new(value),
        }
    }
}
