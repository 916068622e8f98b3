//! The children of a node: listed in the order of their creation, found by name, alike cheap for ten and for a hundred thousand.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::{iter, mem};

use super::index::{Digested, Index, make_room};
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
    by_name: Index<Key, T>,
    by_age: Names,
}

/// Names in order of creation as they are listed, each with its NUL, in pieces: a name costs little more than its bytes.
#[derive(Clone, Default)]
struct Names {
    /// By their numbers.
    pieces: Map<u64, Rc<str>>,
    /// The youngest names, a piece that has room.
    last: String,
    /// Of the last piece.
    number: u64,
}

/// Bytes of names in a piece, but for a longer name.
const PIECE_MAX: usize = 80;

impl Weigh for Rc<str> {
    fn weight(&self) -> usize {
        self.len()
    }
}

/// Bytes of a name in its parent's child list: the name and a NUL.
pub(crate) fn listed_size(name: &str) -> usize {
    name.len().saturating_add(1)
}

/// A text in an order in which it is found fast: by a number made of it, and only then by itself. Whoever finds texts of the same number
/// gains nothing but their comparison.
#[derive(Clone)]
pub(crate) struct Key {
    digest: u64,
    text: Text,
}

/// Bytes of a text that takes no memory of its own.
const SHORT_MAX: usize = 16;

#[derive(Clone)]
enum Text {
    Short {
        len: u8,
        bytes: [u8; SHORT_MAX],
        piece: Piece,
    },
    Long {
        text: Rc<str>,
        piece: Piece,
    },
}

/// The number of the piece that lists a name, where names are listed in pieces.
#[derive(Clone, Copy, Default)]
struct Piece([u8; 6]);

impl Piece {
    /// No list lives to have more than 2^48 of them.
    fn of(number: u64) -> Self {
        let [a, b, c, d, e, f, _, _] = number.to_le_bytes();
        Self([a, b, c, d, e, f])
    }

    fn number(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }
}

impl Text {
    fn new(text: &str, piece: Piece) -> Self {
        let mut bytes = [0; SHORT_MAX];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(text.as_bytes());
                Self::Short { len, bytes, piece }
            }
            _ => Self::Long {
                text: text.into(),
                piece,
            },
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes, .. } => bytes.split_at(usize::from(*len).min(SHORT_MAX)).0,
            Self::Long { text, .. } => text.as_bytes(),
        }
    }

    fn is_injective(&self) -> bool {
        matches!(self, Self::Short { len, .. } if usize::from(*len) <= INJECTIVE_MAX)
    }

    fn piece(&self) -> Piece {
        match self {
            Self::Short { piece, .. } | Self::Long { piece, .. } => *piece,
        }
    }
}

impl Key {
    pub(crate) fn new(text: &str) -> Self {
        Self::in_piece(text, Piece::default())
    }

    fn in_piece(text: &str, piece: Piece) -> Self {
        let digest = digest(text);
        let text = Text::new(text, piece);
        Self { digest, text }
    }

    fn as_str(&self) -> &str {
        match &self.text {
            Text::Long { text, .. } => text,
            // It was made of a text.
            Text::Short { .. } => str::from_utf8(self.text.as_bytes()).unwrap_or_default(),
        }
    }

    /// The digest of a key with this text, and how others stand to it.
    pub(crate) fn wanted(text: &str) -> (u64, impl Fn(&Self) -> Ordering) {
        let digest = digest(text);
        let is_short = text.len() <= INJECTIVE_MAX;
        let order = move |key: &Self| match key.digest.cmp(&digest) {
            Ordering::Equal if is_short && key.text.is_injective() => Ordering::Equal,
            Ordering::Equal => key.text.as_bytes().cmp(text.as_bytes()),
            unequal => unequal,
        };
        (digest, order)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        let digests = self.digest.cmp(&other.digest);
        digests.then_with(|| self.text.as_bytes().cmp(other.text.as_bytes()))
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
            Some(List::Many(many)) => many.by_age.size(),
        }
    }

    /// Gives each name in order of creation, from the one that holds byte `offset` of the list on, as long as `each` wants more; and to the
    /// first how far into it the offset lies.
    pub(crate) fn names_from(&self, offset: usize, mut each: impl FnMut(&str, usize) -> bool) {
        match self.0.as_deref() {
            None => {}
            Some(List::Few(few)) => {
                let mut rest = offset;
                for (key, _) in &few.children {
                    let name = key.as_str();
                    let size = listed_size(name);
                    if rest >= size {
                        rest = rest.saturating_sub(size);
                    } else if !each(name, mem::take(&mut rest)) {
                        return;
                    }
                }
            }
            Some(List::Many(many)) => {
                for (name, within) in many.by_age.from(offset) {
                    if !each(name, within) {
                        return;
                    }
                }
            }
        }
    }

    /// Gives the list of names from byte `offset` on, piece by piece and each without its last NUL, as long as `each` wants more.
    pub(crate) fn pieces_from(&self, offset: usize, each: impl FnMut(&[u8]) -> bool) {
        match self.0.as_deref() {
            None => {}
            Some(List::Few(few)) => {
                let names = few.children.iter().map(|(key, _)| key.text.as_bytes());
                give_from(offset, names, each);
            }
            Some(List::Many(many)) => {
                let (pieces, within) = many.by_age.pieces_from(offset);
                let pieces = pieces.filter_map(|piece| piece.as_bytes().strip_suffix(b"\0"));
                give_from(within, pieces, each);
            }
        }
    }

    /// The children, in no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        let (few, many) = match self.0.as_deref() {
            None => (None, None),
            Some(List::Few(few)) => (Some(&few.children), None),
            Some(List::Many(many)) => (None, Some(&many.by_name)),
        };
        let few = few.into_iter().flatten();
        let few = few.map(|(key, item)| (key.as_str(), item));
        let many = many.into_iter().flat_map(Index::iter);
        few.chain(many.map(|(key, item)| (key.as_str(), item)))
    }

    /// Some of the children in order of creation; gives where to go on, if there are more.
    pub(super) fn some_from<'a>(
        &'a self,
        from: Cursor,
        mut each: impl FnMut(&'a str, &'a T),
    ) -> Option<Cursor> {
        let Some(List::Many(many)) = self.0.as_deref() else {
            self.iter().for_each(|(name, item)| each(name, item));
            return None;
        };
        let mut at = from.0;
        for (name, _) in many.by_age.from(from.0).take(SOME) {
            at = at.saturating_add(listed_size(name));
            if let Some(item) = self.get(name) {
                each(name, item);
            }
        }
        (at < many.by_age.size()).then_some(Cursor(at))
    }

    /// The children in order of creation.
    pub(crate) fn in_order(&self) -> Vec<(&str, &T)> {
        match self.0.as_deref() {
            Some(List::Many(many)) => {
                let names = many.by_age.from(0);
                names
                    .filter_map(|(name, _)| Some((name, self.get(name)?)))
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
            List::Many(many) => many.by_name.get(digest, order),
        }
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut T> {
        let (digest, order) = Key::wanted(name);
        match Rc::make_mut(self.0.as_mut()?) {
            List::Few(few) => {
                let found = few.children.iter_mut().find(|(key, _)| order(key).is_eq());
                found.map(|(_, item)| item)
            }
            List::Many(many) => many.by_name.get_mut(digest, order),
        }
    }

    /// Adds a child, which there is not yet, as the youngest.
    pub(crate) fn add(&mut self, name: &str, item: T) {
        let Some(list) = &mut self.0 else {
            let size = listed_size(name);
            let children = Vec::from([(Key::new(name), item)]);
            self.0 = Some(Rc::new(List::Few(Few { children, size })));
            return;
        };
        match Rc::make_mut(list) {
            List::Many(many) => many.add(name, item),
            List::Few(few) if few.children.len() < FEW_MAX => few.add(name, item),
            list @ List::Few(_) => {
                let mut many = Many::default();
                if let List::Few(few) = list {
                    for (key, item) in &few.children {
                        many.add(key.as_str(), item.clone());
                    }
                }
                many.add(name, item);
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
                let (key, item) = many.by_name.remove(digest, order)?;
                many.by_age.remove(key.text.piece(), name);
                (item, many.by_name.len())
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
            Some(Ok(List::Many(mut many))) => many.by_name.dismantle(each),
            Some(Err(_shared)) => {}
            None => {}
        }
    }
}

impl<T> Few<T> {
    fn add(&mut self, name: &str, item: T) {
        self.size = self.size.saturating_add(listed_size(name));
        make_room(&mut self.children);
        self.children.push((Key::new(name), item));
    }
}

impl<T> Default for Many<T> {
    fn default() -> Self {
        Self {
            by_name: Index::default(),
            by_age: Names::default(),
        }
    }
}

impl<T: Clone> Many<T> {
    fn add(&mut self, name: &str, item: T) {
        let piece = self.by_age.add(name);
        self.by_name.insert(Key::in_piece(name, piece), item);
    }
}

impl Names {
    /// Bytes of all.
    fn size(&self) -> usize {
        self.pieces.weight().saturating_add(self.last.len())
    }

    /// Adds a name behind all; gives where it is.
    fn add(&mut self, name: &str) -> Piece {
        let size = listed_size(name);
        let is_full = self.last.len().saturating_add(size) > PIECE_MAX;
        if is_full && !self.last.is_empty() {
            self.pieces.insert(self.number, self.last.as_str().into());
            self.last.clear();
            self.number = self.number.wrapping_add(1);
        }
        self.last.push_str(name);
        self.last.push('\0');
        Piece::of(self.number)
    }

    fn remove(&mut self, piece: Piece, name: &str) {
        let number = piece.number();
        if number == self.number {
            if let Some(at) = position(&self.last, name) {
                self.last.drain(at..at.saturating_add(listed_size(name)));
            }
            return;
        }
        let Some(old) = self.pieces.remove(|other| other.cmp(&number)) else {
            return;
        };
        let Some((before, rest)) = position(&old, name).and_then(|at| old.split_at_checked(at))
        else {
            return;
        };
        let behind = rest.get(listed_size(name)..).unwrap_or_default();
        if before.len().saturating_add(behind.len()) > 0 {
            let left = [before, behind].concat();
            self.pieces.insert(number, left.into());
        }
    }

    /// The pieces from the one that holds byte `offset` on, and how far into that one the offset lies.
    fn pieces_from(&self, offset: usize) -> (impl Iterator<Item = &str>, usize) {
        let (pieces, within) = self.pieces.iter_from(offset);
        let pieces = pieces.map(|(_, piece)| &**piece);
        (pieces.chain(iter::once(self.last.as_str())), within)
    }

    /// The names from the one that holds byte `offset` on, each with how far into it the offset lies.
    fn from(&self, offset: usize) -> impl Iterator<Item = (&str, usize)> {
        let (pieces, mut rest) = self.pieces_from(offset);
        let names = pieces.flat_map(|piece| piece.split_terminator('\0'));
        names.filter_map(move |name| {
            let size = listed_size(name);
            let is_before = rest >= size;
            if is_before {
                rest = rest.saturating_sub(size);
            }
            (!is_before).then(|| (name, mem::take(&mut rest)))
        })
    }
}

/// Gives texts from byte `offset` on, where each has a NUL behind it, as long as `each` wants more.
fn give_from<'a>(
    offset: usize,
    texts: impl Iterator<Item = &'a [u8]>,
    mut each: impl FnMut(&[u8]) -> bool,
) {
    let mut rest = offset;
    for text in texts {
        let size = text.len().saturating_add(1);
        if rest >= size {
            rest = rest.saturating_sub(size);
        } else if !each(text.get(mem::take(&mut rest)..).unwrap_or_default()) {
            return;
        }
    }
}

/// Where in a piece a name begins.
fn position(piece: &str, name: &str) -> Option<usize> {
    let mut at = 0_usize;
    for listed in piece.split_terminator('\0') {
        if listed == name {
            return Some(at);
        }
        at = at.saturating_add(listed_size(listed));
    }
    None
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
        let key = Key::new;
        for (one, other) in [("abcdefgh", "abcdefgi"), ("a", "aaaaaaaaaa"), ("", "a")] {
            let (digest, order) = Key::wanted(other);
            assert_eq!(digest, key(other).digest());
            assert_eq!(order(&key(one)), key(one).cmp(&key(other)));
            assert!(Key::wanted(one).1(&key(one)).is_eq());
        }
    }
}
