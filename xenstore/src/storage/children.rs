//! The children of a node: listed in the order of their creation, found by name, alike cheap for ten and for a hundred thousand.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cmp::Ordering;

use super::index::{Digested, Index};
use super::map::{Map, Weigh};

/// Up to this many children are found by looking through the list; more have an index.
const FEW_MAX: usize = 16;

/// How many children a walk that goes down to each holds at a time.
const SOME: usize = 64;

/// Where in the list of children a walk is: at its beginning, or further on.
#[derive(Clone, Copy, Default)]
pub(super) struct Cursor(usize);

/// The children of a node, each with what its storage keeps for it; a node that has none owns no memory for them.
#[derive(Clone)]
pub(crate) struct Children<T>(Option<Rc<List<T>>>);

impl<T> Default for Children<T> {
    fn default() -> Self {
        Self(None)
    }
}

#[derive(Clone)]
enum List<T> {
    Few(Few<T>),
    Many(Box<Many<T>>),
}

/// In order of creation.
#[derive(Clone)]
struct Few<T> {
    children: Vec<(Key, T)>,
    /// Bytes of the names as they are listed.
    size: usize,
}

#[derive(Clone)]
struct Many<T> {
    by_name: Index<Key, Aged<T>>,
    by_age: Map<Age, Rc<str>>,
    next: u64,
}

/// When a child was created, among its siblings.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Age(u64);

#[derive(Clone)]
struct Aged<T> {
    age: Age,
    item: T,
}

impl Weigh for Rc<str> {
    fn weight(&self) -> usize {
        listed_size(self)
    }
}

/// Bytes of a name in its parent's child list: the name and a NUL.
pub(crate) fn listed_size(name: &str) -> usize {
    name.len().saturating_add(1)
}

/// A text in an order in which it is found fast: by a number made of it, and only then by itself. Whoever finds texts of the same number
/// gains nothing but their comparison.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    digest: u64,
    text: Rc<str>,
}

impl Key {
    pub(crate) fn new(text: Rc<str>) -> Self {
        let digest = digest(&text);
        Self { digest, text }
    }

    /// The digest of a key with this text, and how others stand to it.
    pub(crate) fn wanted(text: &str) -> (u64, impl Fn(&Self) -> Ordering) {
        let digest = digest(text);
        let order = move |key: &Self| match key.digest.cmp(&digest) {
            Ordering::Equal if key.text.len().max(text.len()) <= INJECTIVE_MAX => Ordering::Equal,
            Ordering::Equal => (*key.text).cmp(text),
            unequal => unequal,
        };
        (digest, order)
    }
}

impl Digested for Key {
    fn digest(&self) -> u64 {
        self.digest
    }
}

/// Texts of up to so many bytes, none of them NUL, that have one digest are equal: they are digits of one number, mixed by an odd factor.
const INJECTIVE_MAX: usize = 7;

/// Mixes a text into a number.
pub(crate) fn digest(text: &str) -> u64 {
    digest_bytes(text.as_bytes())
}

/// Mixes bytes into a number, eight at a time.
pub(crate) fn digest_bytes(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    let rest = rest
        .iter()
        .fold(0, |word, byte| (word << 8) | u64::from(*byte));
    mix(words.fold(0, mix), rest)
}

/// Mixes one word more into the digest of those before it.
pub(crate) fn mix(digest: u64, word: u64) -> u64 {
    /// Odd, without a pattern: the fraction of the golden ratio.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    (digest.rotate_left(5) ^ word).wrapping_mul(FACTOR)
}

impl<T: Clone> Children<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Bytes of the list of names, each with its NUL.
    pub(crate) fn list_size(&self) -> usize {
        match self.0.as_deref() {
            None => 0,
            Some(List::Few(few)) => few.size,
            Some(List::Many(many)) => many.by_age.weight(),
        }
    }

    /// Gives each name in order of creation, from the one that holds byte `offset` of the list on, as long as `each` wants more; and to the
    /// first how far into it the offset lies.
    pub(crate) fn names_from(&self, offset: usize, mut each: impl FnMut(&str, usize) -> bool) {
        let mut within;
        match self.0.as_deref() {
            None => {}
            Some(List::Few(few)) => {
                let mut rest = offset;
                for (key, _) in &few.children {
                    let size = listed_size(&key.text);
                    if rest >= size {
                        rest = rest.saturating_sub(size);
                    } else if !each(&key.text, core::mem::take(&mut rest)) {
                        return;
                    }
                }
            }
            Some(List::Many(many)) => {
                let names;
                (names, within) = many.by_age.iter_from(offset);
                for (_, name) in names {
                    if !each(name, core::mem::take(&mut within)) {
                        return;
                    }
                }
            }
        }
    }

    /// The children, in no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Rc<str>, &T)> {
        let (few, many) = match self.0.as_deref() {
            None => (None, None),
            Some(List::Few(few)) => (Some(&few.children), None),
            Some(List::Many(many)) => (None, Some(&many.by_name)),
        };
        let few = few.into_iter().flatten();
        let few = few.map(|(key, item)| (&key.text, item));
        let many = many.into_iter().flat_map(Index::iter);
        few.chain(many.map(|(key, aged)| (&key.text, &aged.item)))
    }

    /// Some of the children in order of creation; gives where to go on, if there are more.
    pub(super) fn some_from<'a>(
        &'a self,
        from: Cursor,
        mut each: impl FnMut(&'a Rc<str>, &'a T),
    ) -> Option<Cursor> {
        let Some(List::Many(many)) = self.0.as_deref() else {
            self.iter().for_each(|(name, item)| each(name, item));
            return None;
        };
        let (names, _) = many.by_age.iter_from(from.0);
        let mut at = from.0;
        for (_, name) in names.take(SOME) {
            at = at.saturating_add(listed_size(name));
            if let Some(item) = self.get(name) {
                each(name, item);
            }
        }
        (at < many.by_age.weight()).then_some(Cursor(at))
    }

    /// The children in order of creation.
    pub(crate) fn in_order(&self) -> Vec<(&Rc<str>, &T)> {
        match self.0.as_deref() {
            Some(List::Many(many)) => {
                let (names, _) = many.by_age.iter_from(0);
                names
                    .filter_map(|(_, name)| Some((name, self.get(name)?)))
                    .collect()
            }
            _ => self.iter().collect(),
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&T> {
        let (digest, order) = Key::wanted(name);
        match &**self.0.as_ref()? {
            List::Few(few) => {
                let found = few.children.iter().find(|(key, _)| order(key).is_eq());
                found.map(|(_, item)| item)
            }
            List::Many(many) => many.by_name.get(digest, order).map(|aged| &aged.item),
        }
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut T> {
        let (digest, order) = Key::wanted(name);
        match Rc::make_mut(self.0.as_mut()?) {
            List::Few(few) => {
                let found = few.children.iter_mut().find(|(key, _)| order(key).is_eq());
                found.map(|(_, item)| item)
            }
            List::Many(many) => many
                .by_name
                .get_mut(digest, order)
                .map(|aged| &mut aged.item),
        }
    }

    /// Adds a child, which there is not yet, as the youngest.
    pub(crate) fn add(&mut self, name: &str, item: T) {
        let key = Key::new(name.into());
        let Some(list) = &mut self.0 else {
            let size = listed_size(name);
            let children = Vec::from([(key, item)]);
            self.0 = Some(Rc::new(List::Few(Few { children, size })));
            return;
        };
        match Rc::make_mut(list) {
            List::Many(many) => many.add(key, item),
            List::Few(few) if few.children.len() < FEW_MAX => few.add(key, item),
            list @ List::Few(_) => {
                let mut many = Many::default();
                if let List::Few(few) = list {
                    for (key, item) in &few.children {
                        many.add(key.clone(), item.clone());
                    }
                }
                many.add(key, item);
                *list = List::Many(Box::new(many));
            }
        }
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<T> {
        let (digest, order) = Key::wanted(name);
        let (removed, left) = match Rc::make_mut(self.0.as_mut()?) {
            List::Few(few) => {
                let at = few
                    .children
                    .iter()
                    .position(|(key, _)| order(key).is_eq())?;
                few.size = few.size.saturating_sub(listed_size(name));
                (few.children.remove(at).1, few.children.len())
            }
            List::Many(many) => {
                let aged = many.by_name.remove(digest, order)?;
                many.by_age.remove(|age| age.cmp(&aged.age));
                (aged.item, many.by_name.len())
            }
        };
        if left == 0 {
            self.0 = None;
        }
        Some(removed)
    }

    /// Takes all children out; `each` gets those that no other list shares.
    pub(super) fn dismantle(&mut self, mut each: impl FnMut(T)) {
        match self.0.take().map(Rc::try_unwrap) {
            Some(Ok(List::Few(few))) => few.children.into_iter().for_each(|(_, item)| each(item)),
            Some(Ok(List::Many(mut many))) => many.by_name.dismantle(|aged| each(aged.item)),
            Some(Err(_shared)) => {}
            None => {}
        }
    }
}

impl<T> Few<T> {
    fn add(&mut self, key: Key, item: T) {
        self.size = self.size.saturating_add(listed_size(&key.text));
        self.children.push((key, item));
    }
}

impl<T> Default for Many<T> {
    fn default() -> Self {
        Self {
            by_name: Index::default(),
            by_age: Map::default(),
            next: 0,
        }
    }
}

impl<T: Clone> Many<T> {
    fn add(&mut self, key: Key, item: T) {
        let age = Age(self.next);
        self.next = self.next.wrapping_add(1);
        self.by_age.insert(age, Rc::clone(&key.text));
        self.by_name.insert(key, Aged { age, item });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_texts_of_one_digest_are_equal() {
        let mut seen = alloc::collections::BTreeMap::new();
        let mut texts = Vec::from([String::new()]);
        for length in 0..=3 {
            for text in texts.clone().iter().filter(|text| text.len() == length) {
                for byte in "az09-_@A".chars() {
                    texts.push(format!("{text}{byte}"));
                }
            }
        }
        texts.extend((0..1000).map(|number| format!("{number:07}")));
        texts.extend((0..1000).map(|number| format!("x{number:x}")));
        for text in texts {
            let other = seen.insert(digest(&text), text.clone());
            assert!(other.is_none_or(|other| other == text), "{text}");
        }
    }

    #[test]
    fn a_digest_is_never_taken_for_a_long_text() {
        let key = |text: &str| Key::new(text.into());
        for (one, other) in [("abcdefgh", "abcdefgi"), ("a", "aaaaaaaaaa"), ("", "a")] {
            let (digest, order) = Key::wanted(other);
            assert_eq!(digest, key(other).digest());
            assert_eq!(order(&key(one)), key(one).cmp(&key(other)));
            assert!(Key::wanted(one).1(&key(one)).is_eq());
        }
    }
}
