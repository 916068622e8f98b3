//! An ordered list with a place for each byte of it, whose clone is a snapshot: blocks are shared until one side changes them.
//!
//! A B-tree in which every limb knows the weight below it, so that the entry at a byte offset of a long list is found without walking
//! the list. Nothing shared → edits happen in place.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::{mem, slice};

/// Most entries of a block.
const BLOCK_MAX: usize = 16;
/// Neighbours are joined when both fit into this many entries, which leaves room for the next insertion.
const JOINED_MAX: usize = BLOCK_MAX * 3 / 4;

/// What an entry adds to the weight of its map.
pub(crate) trait Weigh {
    /// The weight; it must not change while the entry is in the map.
    fn weight(&self) -> usize;
}

#[derive(Clone)]
pub(crate) struct Map<K, V> {
    root: Option<Rc<Block<K, V>>>,
    len: usize,
    weight: usize,
}

#[derive(Clone)]
enum Block<K, V> {
    Leaf(Vec<(K, V)>),
    Branch(Vec<Limb<K, V>>),
}

/// A block seen from above: no key below is smaller than `first`.
#[derive(Clone)]
struct Limb<K, V> {
    first: K,
    weight: usize,
    block: Rc<Block<K, V>>,
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self {
            root: None,
            len: 0,
            weight: 0,
        }
    }
}

impl<K: Ord + Clone, V: Clone + Weigh> Map<K, V> {
    /// The weights of all entries together.
    pub(crate) fn weight(&self) -> usize {
        self.weight
    }

    /// Puts a value, giving back the one it replaces.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let added = value.weight();
        let root = self
            .root
            .get_or_insert_with(|| Rc::new(Block::Leaf(Vec::new())));
        let (old, split) = Rc::make_mut(root).insert(key, value);
        if let Some(right) = split
            && let Some(left) = Limb::new(Rc::clone(root))
        {
            *root = Rc::new(Block::Branch(Vec::from([left, right])));
        }
        match &old {
            Some(old) => self.weight = self.weight.saturating_sub(old.weight()),
            None => self.len = self.len.saturating_add(1),
        }
        self.weight = self.weight.saturating_add(added);
        old
    }

    pub(crate) fn remove(&mut self, order: impl Fn(&K) -> Ordering) -> Option<V> {
        let root = self.root.as_mut()?;
        let old = Rc::make_mut(root).remove(&order)?;
        self.len = self.len.saturating_sub(1);
        self.weight = self.weight.saturating_sub(old.weight());
        if self.len == 0 {
            self.root = None;
        } else if let Block::Branch(limbs) = &**root
            && let [only] = limbs.as_slice()
        {
            *root = Rc::clone(&only.block);
        }
        Some(old)
    }

    /// The entries from the one that holds `offset` on, counted in weight, and how far into that one `offset` lies.
    pub(crate) fn iter_from(&self, offset: usize) -> (Iter<'_, K, V>, usize) {
        let mut open = Vec::new();
        let mut rest = offset;
        let mut next = self.root.as_deref();
        while let Some(block) = next {
            match block {
                Block::Branch(limbs) => {
                    let at = skip(limbs.iter().map(|limb| limb.weight), &mut rest);
                    let (_, behind) = limbs.split_at(at.min(limbs.len()));
                    let mut limbs = behind.iter();
                    next = limbs.next().map(|limb| &*limb.block);
                    open.push(limbs);
                }
                Block::Leaf(entries) => {
                    let at = skip(entries.iter().map(|(_, value)| value.weight()), &mut rest);
                    let (_, entries) = entries.split_at(at.min(entries.len()));
                    let leaf = entries.iter();
                    return (Iter { open, leaf }, rest);
                }
            }
        }
        let leaf = [].iter();
        (Iter { open, leaf }, rest)
    }
}

/// The limb under which a key belongs.
fn limb_of<K, V>(limbs: &[Limb<K, V>], order: &impl Fn(&K) -> Ordering) -> usize {
    limbs
        .partition_point(|limb| order(&limb.first).is_le())
        .saturating_sub(1)
}

fn position<K, V>(entries: &[(K, V)], order: &impl Fn(&K) -> Ordering) -> Result<usize, usize> {
    entries.binary_search_by(|(key, _)| order(key))
}

/// Cuts a block that has grown too long. One that grew at its end stays full, so that a list which only grows wastes nothing.
fn cut<T>(items: &mut Vec<T>, grown_at: usize) -> Option<Vec<T>> {
    if items.len() <= BLOCK_MAX {
        return None;
    }
    let last = items.len().saturating_sub(1);
    let at = if grown_at == last {
        last
    } else {
        items.len() / 2
    };
    let cut = items.split_off(at);
    items.shrink_to(BLOCK_MAX);
    Some(cut)
}

impl<K: Ord + Clone, V: Clone + Weigh> Limb<K, V> {
    fn new(block: Rc<Block<K, V>>) -> Option<Self> {
        let first = block.first()?.clone();
        let weight = block.weight();
        Some(Self {
            first,
            weight,
            block,
        })
    }
}

/// The recursion below goes down the blocks: its depth is the logarithm of the entries, at most 16 for 2^32 of them.
impl<K: Ord + Clone, V: Clone + Weigh> Block<K, V> {
    fn len(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Branch(limbs) => limbs.len(),
        }
    }

    fn first(&self) -> Option<&K> {
        match self {
            Self::Leaf(entries) => entries.first().map(|(key, _)| key),
            Self::Branch(limbs) => limbs.first().map(|limb| &limb.first),
        }
    }

    fn weight(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.iter().map(|(_, value)| value.weight()).sum(),
            Self::Branch(limbs) => limbs.iter().map(|limb| limb.weight).sum(),
        }
    }

    /// Puts an entry; gives back the value it replaces and the right half if the block had to be cut.
    fn insert(&mut self, key: K, value: V) -> (Option<V>, Option<Limb<K, V>>) {
        match self {
            Self::Leaf(entries) => match position(entries, &|other: &K| other.cmp(&key)) {
                Ok(at) => (
                    entries.get_mut(at).map(|(_, old)| mem::replace(old, value)),
                    None,
                ),
                Err(at) => {
                    entries.insert(at, (key, value));
                    let right = cut(entries, at).map(Self::Leaf);
                    (None, right.and_then(|block| Limb::new(Rc::new(block))))
                }
            },
            Self::Branch(limbs) => {
                let at = limb_of(limbs, &|other: &K| other.cmp(&key));
                let Some(limb) = limbs.get_mut(at) else {
                    return (None, None);
                };
                if key < limb.first {
                    limb.first = key.clone();
                }
                let added = value.weight();
                let (old, split) = Rc::make_mut(&mut limb.block).insert(key, value);
                let replaced = old.as_ref().map_or(0, Weigh::weight);
                let gone = split.as_ref().map_or(0, |split| split.weight);
                limb.weight = limb
                    .weight
                    .saturating_add(added)
                    .saturating_sub(replaced)
                    .saturating_sub(gone);
                let Some(split) = split else {
                    return (old, None);
                };
                let at = at.saturating_add(1);
                limbs.insert(at, split);
                let right = cut(limbs, at).map(Self::Branch);
                (old, right.and_then(|block| Limb::new(Rc::new(block))))
            }
        }
    }

    fn remove(&mut self, order: &impl Fn(&K) -> Ordering) -> Option<V> {
        match self {
            Self::Leaf(entries) => {
                let at = position(entries, order).ok()?;
                Some(entries.remove(at).1)
            }
            Self::Branch(limbs) => {
                let at = limb_of(limbs, order);
                let limb = limbs.get_mut(at)?;
                let old = Rc::make_mut(&mut limb.block).remove(order)?;
                limb.weight = limb.weight.saturating_sub(old.weight());
                if limb.block.len() == 0 {
                    limbs.remove(at);
                } else {
                    join(limbs, at.saturating_sub(1));
                    join(limbs, at);
                }
                Some(old)
            }
        }
    }

    /// Moves the entries of `right`, a block of the same height, behind the own ones.
    fn absorb(&mut self, right: Self) {
        match (self, right) {
            (Self::Leaf(entries), Self::Leaf(more)) => entries.extend(more),
            (Self::Branch(limbs), Self::Branch(more)) => limbs.extend(more),
            // Blocks below one branch have one height.
            (Self::Leaf(_), Self::Branch(_)) | (Self::Branch(_), Self::Leaf(_)) => {}
        }
    }
}

/// Joins the limb at `at` with its right neighbour if both together are small.
fn join<K: Ord + Clone, V: Clone + Weigh>(limbs: &mut Vec<Limb<K, V>>, at: usize) {
    let Some([left, right]) = limbs.get(at..at.saturating_add(2)) else {
        return;
    };
    if left.block.len().saturating_add(right.block.len()) > JOINED_MAX {
        return;
    }
    let right = limbs.remove(at.saturating_add(1));
    if let Some(left) = limbs.get_mut(at) {
        Rc::make_mut(&mut left.block).absorb(Rc::unwrap_or_clone(right.block));
        left.weight = left.weight.saturating_add(right.weight);
    }
}

/// How many of these weights lie before the offset `rest`, from which they are taken.
fn skip(weights: impl Iterator<Item = usize>, rest: &mut usize) -> usize {
    let mut skipped = 0_usize;
    for weight in weights {
        if *rest < weight {
            break;
        }
        *rest = rest.saturating_sub(weight);
        skipped = skipped.saturating_add(1);
    }
    skipped
}

/// Walks the entries in order; holds one place for each level of blocks.
pub(crate) struct Iter<'a, K, V> {
    open: Vec<slice::Iter<'a, Limb<K, V>>>,
    leaf: slice::Iter<'a, (K, V)>,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.leaf.next() {
                return Some((key, value));
            }
            let limbs = self.open.last_mut()?;
            match limbs.next().map(|limb| &*limb.block) {
                Some(Block::Leaf(entries)) => self.leaf = entries.iter(),
                Some(Block::Branch(limbs)) => self.open.push(limbs.iter()),
                None => {
                    self.open.pop();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use proptest::prelude::*;

    impl Weigh for u32 {
        fn weight(&self) -> usize {
            usize::try_from(*self % 7 + 1).unwrap()
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u16, u32),
        Remove(u16),
        Snapshot,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..300_u16, any::<u32>()).prop_map(|(key, value)| Step::Insert(key, value)),
            4 => (0..300_u16).prop_map(Step::Remove),
            1 => Just(Step::Snapshot),
        ]
    }

    fn same(map: &Map<u16, u32>, model: &BTreeMap<u16, u32>) {
        assert!(map.iter_from(0).0.eq(model.iter()));
        assert_eq!(map.len, model.len());
        assert_eq!(
            map.weight(),
            model.values().map(Weigh::weight).sum::<usize>()
        );
    }

    proptest! {
        #[test]
        fn behaves_as_an_ordered_map_and_snapshots_stay(steps in prop::collection::vec(step(), 1..600)) {
            let mut map = Map::default();
            let mut model = BTreeMap::new();
            let mut snapshots = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(key, value) => assert_eq!(map.insert(key, value), model.insert(key, value)),
                    Step::Remove(key) => assert_eq!(map.remove(|other| other.cmp(&key)), model.remove(&key)),
                    Step::Snapshot => snapshots.push((map.clone(), model.clone())),
                }
            }
            same(&map, &model);
            snapshots.iter().for_each(|(map, model)| same(map, model));
        }

        #[test]
        fn an_offset_finds_its_entry(keys in prop::collection::btree_map(any::<u16>(), any::<u32>(), 0..400), offset in 0..2000_usize) {
            let mut map = Map::default();
            keys.iter().for_each(|(key, value)| { map.insert(*key, *value); });
            let (iter, within) = map.iter_from(offset);
            let mut before = 0;
            let expected: Vec<_> = keys.iter().skip_while(|(_, value)| {
                let skip = before + value.weight() <= offset;
                before += if skip { value.weight() } else { 0 };
                skip
            }).collect();
            assert!(iter.eq(expected.iter().copied()));
            assert_eq!(within, offset - before);
        }
    }

    #[test]
    fn a_list_that_only_grows_is_packed() {
        let mut map = Map::default();
        (0..10_000_u32).for_each(|key| {
            map.insert(key, key);
        });
        let mut leaves = 0;
        let mut blocks = Vec::from([map.root.clone().unwrap()]);
        while let Some(block) = blocks.pop() {
            match &*block {
                Block::Leaf(_) => leaves += 1,
                Block::Branch(limbs) => {
                    blocks.extend(limbs.iter().map(|limb| Rc::clone(&limb.block)))
                }
            }
        }
        assert_eq!(leaves, 10_000 / BLOCK_MAX);
    }
}
