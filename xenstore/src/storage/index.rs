//! Entries found by a number made of their key, in a few steps however many there are; a clone is a snapshot.
//!
//! A trie over the number's bits, highest first, with small sorted leaves. Nothing shared → edits happen in place. Keys of one number, which
//! only somebody who wants them makes, meet in one leaf and are found there by halving.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::{array, mem, slice};

/// Most entries of a leaf above the lowest.
const LEAF_MAX: usize = 16;
/// A fork with no more entries than this becomes a leaf.
const FORK_MIN: usize = LEAF_MAX / 2;
/// Bits of the number that a fork looks at: few, so that leaves are well filled, however many entries there are.
const BITS: u32 = 2;
const ARMS: usize = 1 << BITS;
/// Forks above a leaf, at most.
const FORKS_MAX: u32 = u64::BITS / BITS;

/// A key that comes with a number; its order is first that of the number.
pub(crate) trait Digested: Ord {
    fn digest(&self) -> u64;
}

#[derive(Clone)]
pub(crate) struct Index<K, V> {
    root: Option<Rc<Block<K, V>>>,
    len: usize,
}

#[derive(Clone)]
enum Block<K, V> {
    /// In order of the keys.
    Leaf(Vec<(K, V)>),
    Fork(Fork<K, V>),
}

#[derive(Clone)]
struct Fork<K, V> {
    /// Entries below.
    len: usize,
    arms: [Option<Rc<Block<K, V>>>; ARMS],
}

impl<K, V> Default for Index<K, V> {
    fn default() -> Self {
        Self { root: None, len: 0 }
    }
}

impl<K, V> Index<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of the key with this digest that `order` finds equal to what is wanted; it tells how a key stands to that.
    pub(crate) fn get(&self, digest: u64, order: impl Fn(&K) -> Ordering) -> Option<&V> {
        let mut block = self.root.as_deref()?;
        let mut bits = digest;
        loop {
            match block {
                Block::Fork(fork) => block = fork.arms.get(arm_of(bits))?.as_deref()?,
                Block::Leaf(entries) => {
                    let at = position(entries, &order).ok()?;
                    return entries.get(at).map(|(_, value)| value);
                }
            }
            bits <<= BITS;
        }
    }

    /// All entries, in order of their keys.
    pub(crate) fn iter(&self) -> Iter<'_, K, V> {
        let root = self.root.as_slice();
        Iter {
            open: Vec::new(),
            blocks: Blocks::Root(root.iter()),
            leaf: [].iter(),
        }
    }

    /// Takes all entries out; `each` gets the values of blocks that no other index shares.
    pub(crate) fn dismantle(&mut self, mut each: impl FnMut(V)) {
        let index = mem::take(self);
        let mut blocks: Vec<_> = index.root.into_iter().collect();
        while let Some(block) = blocks.pop() {
            match Rc::try_unwrap(block) {
                Ok(Block::Leaf(entries)) => entries.into_iter().for_each(|(_, value)| each(value)),
                Ok(Block::Fork(fork)) => {
                    let arms = fork.arms.into_iter().flatten();
                    blocks.extend(arms.filter(|arm| Rc::strong_count(arm) == 1));
                }
                Err(_shared) => {}
            }
        }
    }
}

impl<K: Digested + Clone, V: Clone> Index<K, V> {
    /// As [`Index::get`], to change the value in place.
    pub(crate) fn get_mut(
        &mut self,
        digest: u64,
        order: impl Fn(&K) -> Ordering,
    ) -> Option<&mut V> {
        let mut block = Rc::make_mut(self.root.as_mut()?);
        let mut bits = digest;
        loop {
            match block {
                Block::Fork(fork) => {
                    block = Rc::make_mut(fork.arms.get_mut(arm_of(bits))?.as_mut()?);
                }
                Block::Leaf(entries) => {
                    let at = position(entries, &order).ok()?;
                    return entries.get_mut(at).map(|(_, value)| value);
                }
            }
            bits <<= BITS;
        }
    }

    /// Puts a value; one that the key had before is replaced.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        let digest = key.digest();
        if let Some(old) = self.get_mut(digest, |other| other.cmp(&key)) {
            *old = value;
            return;
        }
        self.len = self.len.saturating_add(1);
        let mut place = &mut self.root;
        let mut bits = digest;
        for forks in 0..=FORKS_MAX {
            let block = place.get_or_insert_with(|| Rc::new(Block::Leaf(Vec::new())));
            let block = Rc::make_mut(block);
            if let Block::Leaf(entries) = block
                && entries.len() >= LEAF_MAX
                && forks < FORKS_MAX
            {
                *block = Block::Fork(Fork::of(mem::take(entries), forks));
            }
            match block {
                Block::Fork(fork) => {
                    fork.len = fork.len.saturating_add(1);
                    let Some(arm) = fork.arms.get_mut(arm_of(bits)) else {
                        return;
                    };
                    place = arm;
                }
                Block::Leaf(entries) => {
                    let at = entries.partition_point(|(other, _)| *other < key);
                    make_room(entries);
                    entries.insert(at, (key, value));
                    return;
                }
            }
            bits <<= BITS;
        }
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, digest: u64, order: impl Fn(&K) -> Ordering) -> Option<(K, V)> {
        self.get(digest, &order)?;
        self.len = self.len.saturating_sub(1);
        let mut place = &mut self.root;
        let mut bits = digest;
        loop {
            if matches!(place.as_deref()?, Block::Leaf(entries) if entries.len() == 1) {
                let entries = match Rc::unwrap_or_clone(place.take()?) {
                    Block::Leaf(entries) => entries,
                    Block::Fork(_) => return None,
                };
                return entries.into_iter().next();
            }
            let block = Rc::make_mut(place.as_mut()?);
            if let Block::Fork(fork) = block {
                fork.len = fork.len.saturating_sub(1);
                if fork.len <= FORK_MIN {
                    *block = Block::Leaf(fork.gather());
                }
            }
            match block {
                Block::Fork(fork) => place = fork.arms.get_mut(arm_of(bits))?,
                Block::Leaf(entries) => {
                    let at = position(entries, &order).ok()?;
                    return Some(entries.remove(at));
                }
            }
            bits <<= BITS;
        }
    }
}

impl<K: Digested + Clone, V: Clone> Fork<K, V> {
    /// Deals the entries of a leaf, which has `forks` above it, out to leaves of their own.
    fn of(entries: Vec<(K, V)>, forks: u32) -> Self {
        let len = entries.len();
        let mut dealt: [Vec<(K, V)>; ARMS] = array::from_fn(|_| Vec::new());
        for (key, value) in entries {
            let bits = key.digest() << (forks.saturating_mul(BITS));
            if let Some(arm) = dealt.get_mut(arm_of(bits)) {
                make_room(arm);
                arm.push((key, value));
            }
        }
        let arms =
            dealt.map(|entries| (!entries.is_empty()).then(|| Rc::new(Block::Leaf(entries))));
        Self { len, arms }
    }

    /// All entries below, in order.
    fn gather(&mut self) -> Vec<(K, V)> {
        let mut gathered = Vec::new();
        let mut open: Vec<_> = mem::take(&mut self.arms)
            .into_iter()
            .rev()
            .flatten()
            .collect();
        while let Some(block) = open.pop() {
            match Rc::unwrap_or_clone(block) {
                Block::Leaf(entries) => gathered.extend(entries),
                Block::Fork(fork) => open.extend(fork.arms.into_iter().rev().flatten()),
            }
        }
        gathered
    }
}

/// Makes room for an entry, and for little more: there are many short lists.
pub(super) fn make_room<T>(entries: &mut Vec<T>) {
    const STEP: usize = 2;
    if entries.len() == entries.capacity() {
        entries.reserve_exact(STEP);
    }
}

/// The arm of the highest bits.
fn arm_of(bits: u64) -> usize {
    usize::try_from(bits >> (u64::BITS - BITS)).unwrap_or_default()
}

fn position<K, V>(entries: &[(K, V)], order: &impl Fn(&K) -> Ordering) -> Result<usize, usize> {
    if entries.len() > LEAF_MAX {
        return entries.binary_search_by(|(key, _)| order(key));
    }
    let equal = |(key, _): &(K, V)| order(key).is_eq();
    entries.iter().position(equal).ok_or(entries.len())
}

/// Walks the entries in order; holds one place for each level of forks.
pub(crate) struct Iter<'a, K, V> {
    open: Vec<Blocks<'a, K, V>>,
    blocks: Blocks<'a, K, V>,
    leaf: slice::Iter<'a, (K, V)>,
}

/// What is left of the blocks side by side.
enum Blocks<'a, K, V> {
    Root(slice::Iter<'a, Rc<Block<K, V>>>),
    Arms(slice::Iter<'a, Option<Rc<Block<K, V>>>>),
}

impl<'a, K, V> Blocks<'a, K, V> {
    fn next(&mut self) -> Option<&'a Block<K, V>> {
        match self {
            Self::Root(blocks) => blocks.next().map(|block| &**block),
            Self::Arms(arms) => arms.find_map(Option::as_deref),
        }
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.leaf.next() {
                return Some((key, value));
            }
            match self.blocks.next() {
                Some(Block::Leaf(entries)) => self.leaf = entries.iter(),
                Some(Block::Fork(fork)) => {
                    let below = Blocks::Arms(fork.arms.iter());
                    self.open.push(mem::replace(&mut self.blocks, below));
                }
                None => self.blocks = self.open.pop()?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use proptest::prelude::*;

    /// A key whose digest has few bits, so that many keys share one.
    #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
    struct Clashing {
        digest: u64,
        number: u16,
    }

    impl Clashing {
        fn new(number: u16) -> Self {
            let digest = match number % 3 {
                0 => 0,
                1 => u64::from(number),
                _ => u64::from(number) << 56,
            };
            Self { digest, number }
        }
    }

    impl Digested for Clashing {
        fn digest(&self) -> u64 {
            self.digest
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u16, u32),
        Change(u16, u32),
        Remove(u16),
        Snapshot,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..400_u16, any::<u32>()).prop_map(|(key, value)| Step::Insert(key, value)),
            2 => (0..400_u16, any::<u32>()).prop_map(|(key, value)| Step::Change(key, value)),
            5 => (0..400_u16).prop_map(Step::Remove),
            1 => Just(Step::Snapshot),
        ]
    }

    fn same(index: &Index<Clashing, u32>, model: &BTreeMap<Clashing, u32>) {
        assert!(index.iter().eq(model.iter()));
        assert_eq!(index.len(), model.len());
    }

    proptest! {
        #[test]
        fn behaves_as_an_ordered_map_and_snapshots_stay(steps in prop::collection::vec(step(), 1..900)) {
            let mut index = Index::default();
            let mut model = BTreeMap::new();
            let mut snapshots = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(number, value) => {
                        index.insert(Clashing::new(number), value);
                        model.insert(Clashing::new(number), value);
                    }
                    Step::Change(number, value) => {
                        let key = Clashing::new(number);
                        let here = index.get_mut(key.digest, |other| other.cmp(&key));
                        let there = model.get_mut(&key);
                        assert_eq!(here, there);
                        here.into_iter().chain(there).for_each(|place| *place = value);
                    }
                    Step::Remove(number) => {
                        let key = Clashing::new(number);
                        assert_eq!(index.remove(key.digest, |other| other.cmp(&key)), model.remove_entry(&key));
                    }
                    Step::Snapshot => snapshots.push((index.clone(), model.clone())),
                }
            }
            same(&index, &model);
            snapshots.iter().for_each(|(index, model)| same(index, model));
            let keys: Vec<_> = model.into_keys().collect();
            for key in &keys {
                assert!(index.remove(key.digest, |other| other.cmp(key)).is_some());
            }
            assert!(index.is_empty() && index.root.is_none());
        }
    }

    #[test]
    fn what_shrinks_gives_its_forks_back() {
        let mut index = Index::default();
        for number in 0..1000 {
            index.insert(Clashing::new(number), number);
        }
        for number in 0..1000 - u16::try_from(FORK_MIN).unwrap() {
            let key = Clashing::new(number);
            index.remove(key.digest, |other| other.cmp(&key));
        }
        assert!(
            matches!(index.root.as_deref(), Some(Block::Leaf(entries)) if entries.len() == FORK_MIN)
        );
    }

    #[test]
    fn only_unshared_values_are_handed_out() {
        let mut index = Index::default();
        for number in 0..100 {
            index.insert(Clashing::new(number), number);
        }
        let mut snapshot = index.clone();
        let mut handed = 0;
        index.dismantle(|_| handed += 1);
        assert_eq!(handed, 0);
        snapshot.dismantle(|_| handed += 1);
        assert_eq!(handed, 100);
    }
}
