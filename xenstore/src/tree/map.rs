//! An ordered map whose clone is a snapshot: blocks are shared until one side changes them.
//!
//! A B-tree in which every limb knows the weight below it, so that the entry at a byte offset of a long list is found without walking
//! the list. Nothing shared → edits happen in place.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::borrow::Borrow;
use core::mem;

/// Most entries of a block.
const BLOCK_MAX: usize = 16;
/// Neighbours are joined when both fit into this many entries, which leaves room for the next insertion.
const JOINED_MAX: usize = BLOCK_MAX * 3 / 4;

/// What an entry adds to the weight of its map.
pub(super) trait Weigh {
    /// The weight; it must not change while the entry is in the map.
    fn weight(&self) -> usize;
}

#[derive(Clone)]
pub(super) struct Map<K, V> {
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
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The weights of all entries together.
    pub(super) fn weight(&self) -> usize {
        self.weight
    }

    pub(super) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let mut block = self.root.as_deref()?;
        loop {
            match block {
                Block::Branch(limbs) => block = &limbs.get(limb_of(limbs, key))?.block,
                Block::Leaf(entries) => {
                    let at = position(entries, key).ok()?;
                    return entries.get(at).map(|(_, value)| value);
                }
            }
        }
    }

    /// The value to change in place; its weight must stay.
    pub(super) fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let mut block = Rc::make_mut(self.root.as_mut()?);
        loop {
            match block {
                Block::Branch(limbs) => {
                    let at = limb_of(limbs, key);
                    block = Rc::make_mut(&mut limbs.get_mut(at)?.block);
                }
                Block::Leaf(entries) => {
                    let at = position(entries, key).ok()?;
                    return entries.get_mut(at).map(|(_, value)| value);
                }
            }
        }
    }

    /// The first entry in order whose value is `wanted`, by looking at each: for maps of a few entries.
    pub(super) fn find(&self, wanted: impl Fn(&V) -> bool) -> Option<(&K, &V)> {
        match self.root.as_deref()? {
            Block::Leaf(entries) => entries
                .iter()
                .find(|(_, value)| wanted(value))
                .map(|(key, value)| (key, value)),
            Block::Branch(_) => self.iter().find(|(_, value)| wanted(value)),
        }
    }

    /// As [`Map::find`], to change the value in place; its weight must stay.
    pub(super) fn find_mut(&mut self, wanted: impl Fn(&V) -> bool) -> Option<&mut V> {
        if matches!(self.root.as_deref()?, Block::Branch(_)) {
            let key = self.find(wanted)?.0.clone();
            return self.get_mut(&key);
        }
        match Rc::make_mut(self.root.as_mut()?) {
            Block::Leaf(entries) => entries
                .iter_mut()
                .map(|(_, value)| value)
                .find(|value| wanted(value)),
            Block::Branch(_) => None,
        }
    }

    /// Puts a value, giving back the one it replaces.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
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

    pub(super) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let root = self.root.as_mut()?;
        let old = Rc::make_mut(root).remove(key)?;
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

    /// All entries in order of their keys.
    pub(super) fn iter(&self) -> Iter<'_, K, V> {
        self.iter_from(0).0
    }

    /// The entries from the one that holds `offset` on, counted in weight, and how far into that one `offset` lies.
    pub(super) fn iter_from(&self, offset: usize) -> (Iter<'_, K, V>, usize) {
        let mut iter = Iter { open: Vec::new() };
        let mut rest = offset;
        let mut next = self.root.as_deref();
        while let Some(block) = next {
            let weights: &mut dyn Iterator<Item = usize> = match block {
                Block::Leaf(entries) => &mut entries.iter().map(|(_, value)| value.weight()),
                Block::Branch(limbs) => &mut limbs.iter().map(|limb| limb.weight),
            };
            let mut at = 0_usize;
            for weight in weights {
                if rest < weight {
                    break;
                }
                rest = rest.saturating_sub(weight);
                at = at.saturating_add(1);
            }
            next = match block {
                Block::Leaf(_) => None,
                Block::Branch(limbs) => limbs.get(at).map(|limb| &*limb.block),
            };
            let resume = if next.is_some() {
                at.saturating_add(1)
            } else {
                at
            };
            iter.open.push((block, resume));
        }
        (iter, rest)
    }

    /// Takes the map apart; `each` gets the values of blocks that no other map shares.
    pub(super) fn dismantle(&mut self, mut each: impl FnMut(V)) {
        let map = mem::take(self);
        let mut blocks: Vec<_> = map.root.into_iter().collect();
        while let Some(block) = blocks.pop() {
            match Rc::try_unwrap(block) {
                Ok(Block::Leaf(entries)) => entries.into_iter().for_each(|(_, value)| each(value)),
                Ok(Block::Branch(limbs)) => blocks.extend(limbs.into_iter().map(|limb| limb.block)),
                Err(_shared) => {}
            }
        }
    }
}

/// The limb under which a key belongs.
fn limb_of<K: Borrow<Q>, V, Q: Ord + ?Sized>(limbs: &[Limb<K, V>], key: &Q) -> usize {
    limbs
        .partition_point(|limb| limb.first.borrow() <= key)
        .saturating_sub(1)
}

fn position<K: Borrow<Q>, V, Q: Ord + ?Sized>(entries: &[(K, V)], key: &Q) -> Result<usize, usize> {
    entries.binary_search_by(|(other, _)| other.borrow().cmp(key))
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
    Some(items.split_off(at))
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
            Self::Leaf(entries) => match position(entries, &key) {
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
                let at = limb_of(limbs, &key);
                let Some(limb) = limbs.get_mut(at) else {
                    return (None, None);
                };
                if key < limb.first {
                    limb.first = key.clone();
                }
                let (old, split) = Rc::make_mut(&mut limb.block).insert(key, value);
                limb.weight = limb.block.weight();
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

    fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        match self {
            Self::Leaf(entries) => {
                let at = position(entries, key).ok()?;
                Some(entries.remove(at).1)
            }
            Self::Branch(limbs) => {
                let at = limb_of(limbs, key);
                let limb = limbs.get_mut(at)?;
                let old = Rc::make_mut(&mut limb.block).remove(key)?;
                limb.weight = limb.block.weight();
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

/// Walks the entries in order; holds one place for each level of blocks.
pub(super) struct Iter<'a, K, V> {
    open: Vec<(&'a Block<K, V>, usize)>,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (block, at) = self.open.last_mut()?;
            let here = *at;
            *at = at.saturating_add(1);
            match block {
                Block::Leaf(entries) => match entries.get(here) {
                    Some((key, value)) => return Some((key, value)),
                    None => self.open.pop(),
                },
                Block::Branch(limbs) => match limbs.get(here) {
                    Some(limb) => {
                        self.open.push((&limb.block, 0));
                        None
                    }
                    None => self.open.pop(),
                },
            };
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
        assert!(map.iter().eq(model.iter()));
        assert_eq!(map.len(), model.len());
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
                    Step::Remove(key) => assert_eq!(map.remove(&key), model.remove(&key)),
                    Step::Snapshot => snapshots.push((map.clone(), model.clone())),
                }
                for key in [0_u16, 150, 299] {
                    assert_eq!(map.get(&key), model.get(&key));
                    assert_eq!(map.get_mut(&key).copied(), model.get(&key).copied());
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

    #[test]
    fn only_unshared_values_are_handed_out() {
        let mut map = Map::default();
        (0..100_u32).for_each(|key| {
            map.insert(key, key);
        });
        let mut snapshot = map.clone();
        let mut handed = 0;
        map.dismantle(|_| handed += 1);
        assert_eq!(handed, 0);
        snapshot.dismantle(|_| handed += 1);
        assert_eq!(handed, 100);
    }
}
