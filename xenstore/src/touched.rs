//! The nodes that a transaction has read or changed, as quota `transaction-nodes` counts, in the order in which it first did; and which of
//! them it has changed.

use alloc::string::String;
use alloc::vec::Vec;

use hashbrown::HashTable;

use crate::faults;
use crate::path::PathRef;
use crate::quota::within;
use crate::storage::digest;
use crate::wire::Errno;

/// Paths of one transaction, none twice.
#[derive(Default)]
pub(crate) struct Touched {
    /// One behind the other.
    paths: String,
    touches: Vec<Touch>,
    /// Finds a touch by its path. Whoever makes paths of one digest meets them again in his own transaction, as many as the quota allows.
    table: HashTable<usize>,
    /// Where among the touches the one is that was added or marked last, most likely.
    last: usize,
    /// There were more than allowed: the transaction can only be ended.
    pub(crate) overflowed: bool,
}

/// Bytes of a touch besides its path, with its place in the table.
const TOUCH_BYTES: usize = 64;

struct Touch {
    digest: u64,
    /// Where its path begins and ends.
    start: usize,
    end: usize,
    mark: Option<Mark>,
}

/// What was done to a node, all in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// It was cut off, with all below it.
    pub(crate) removed: bool,
    /// Nodes that were made, its missing parents included; none if it was there.
    pub(crate) made: usize,
}

impl Touched {
    /// Forgets them all; their memory stays for what comes.
    pub(crate) fn clear(&mut self) {
        self.paths.clear();
        self.touches.clear();
        self.table.clear();
        self.last = 0;
        self.overflowed = false;
    }

    /// How many there can be, and how many bytes their paths can have, before more memory is needed.
    pub(crate) fn capacity(&self) -> (usize, usize) {
        let touches = self.touches.capacity().max(self.table.capacity());
        (touches, self.paths.capacity())
    }

    /// Bytes that they take.
    pub(crate) fn bytes(&self) -> u64 {
        let entries = self.touches.len().saturating_mul(TOUCH_BYTES);
        u64::try_from(entries.saturating_add(self.paths.len())).unwrap_or(u64::MAX)
    }

    /// Notes a path.
    ///
    /// # Errors
    /// ENOSPC if `limit` paths (0: any number) are there and this is another; ENOMEM if there is no memory in one piece for so many.
    pub(crate) fn add(&mut self, path: PathRef<'_>, limit: u32) -> Result<(), Errno> {
        let digest = digest(path.as_str());
        if let Some(at) = self.find(digest, path) {
            self.last = at;
            return Ok(());
        }
        let count = u64::try_from(self.touches.len()).unwrap_or(u64::MAX);
        if !within(count.saturating_add(1), limit) {
            self.overflowed = true;
            return Err(Errno::ENOSPC);
        }
        if self.make_room(path).is_none() {
            self.overflowed = true;
            return Err(Errno::ENOMEM);
        }
        let Self {
            touches,
            table,
            paths,
            ..
        } = self;
        table.insert_unique(digest, touches.len(), |at| {
            touches.get(*at).map_or(0, |touch| touch.digest)
        });
        let start = paths.len();
        paths.push_str(path.as_str());
        self.last = touches.len();
        touches.push(Touch {
            digest,
            start,
            end: paths.len(),
            mark: None,
        });
        Ok(())
    }

    fn make_room(&mut self, path: PathRef<'_>) -> Option<()> {
        let touches = &self.touches;
        let digest = |at: &usize| touches.get(*at).map_or(0, |touch| touch.digest);
        faults::permit()?;
        self.table.try_reserve(1, digest).ok()?;
        faults::permit()?;
        self.touches.try_reserve(1).ok()?;
        faults::permit()?;
        self.paths.try_reserve(path.as_str().len()).ok()
    }

    /// How many there would be with those of another one.
    pub(crate) fn count_with(&self, other: &Self) -> u64 {
        let is_new = |touch: &&Touch| {
            let path = other.paths.get(touch.start..touch.end);
            path.is_some_and(|path| self.find(touch.digest, PathRef::known(path)).is_none())
        };
        let new = other.touches.iter().filter(is_new).count();
        u64::try_from(self.touches.len().saturating_add(new)).unwrap_or(u64::MAX)
    }

    /// Room for those of another one.
    pub(crate) fn make_room_for(&mut self, other: &Self) -> Option<()> {
        let touches = &self.touches;
        let digest = |at: &usize| touches.get(*at).map_or(0, |touch| touch.digest);
        self.table.try_reserve(other.touches.len(), digest).ok()?;
        self.touches.try_reserve(other.touches.len()).ok()?;
        self.paths.try_reserve(other.paths.len()).ok()
    }

    /// Takes those of another one behind its own, and what was done to them; there is room for them.
    pub(crate) fn take_in(&mut self, other: &Self) {
        for touch in &other.touches {
            let Some(path) = other.paths.get(touch.start..touch.end) else {
                continue;
            };
            let path = PathRef::known(path);
            if self.add(path, 0).is_ok()
                && let Some(mark) = touch.mark
            {
                self.mark(path, mark);
            }
        }
    }

    /// Notes what was done to a node that was touched.
    pub(crate) fn mark(&mut self, path: PathRef<'_>, mark: Mark) {
        if self.path(self.last) != Some(path.as_str()) {
            let Some(at) = self.find(digest(path.as_str()), path) else {
                return;
            };
            self.last = at;
        }
        if let Some(touch) = self.touches.get_mut(self.last) {
            let earlier = touch.mark.unwrap_or(mark);
            touch.mark = Some(Mark {
                removed: earlier.removed || mark.removed,
                made: earlier.made.max(mark.made),
            });
        }
    }

    /// Forgets what was done to them.
    pub(crate) fn clear_marks(&mut self) {
        self.touches.iter_mut().for_each(|touch| touch.mark = None);
    }

    /// The nodes to which something was done.
    pub(crate) fn marked(&self) -> impl Iterator<Item = (PathRef<'_>, Mark)> {
        self.touches.iter().filter_map(|touch| {
            let mark = touch.mark?;
            let path = self.paths.get(touch.start..touch.end)?;
            Some((PathRef::known(path), mark))
        })
    }

    fn path(&self, at: usize) -> Option<&str> {
        let touch = self.touches.get(at)?;
        self.paths.get(touch.start..touch.end)
    }

    /// The paths, in the order in which they were touched first, and what was done to those nodes.
    pub(crate) fn all(&self) -> impl Iterator<Item = (PathRef<'_>, Option<Mark>)> {
        self.touches.iter().filter_map(|touch| {
            let path = self.paths.get(touch.start..touch.end)?;
            Some((PathRef::known(path), touch.mark))
        })
    }

    fn find(&self, digest: u64, path: PathRef<'_>) -> Option<usize> {
        let equal = |at: &usize| {
            let is_alike = |touch: &Touch| touch.digest == digest;
            self.touches.get(*at).is_some_and(is_alike) && self.path(*at) == Some(path.as_str())
        };
        self.table.find(digest, equal).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    fn name(number: usize) -> String {
        format!("/{number}")
    }

    #[test]
    fn each_path_counts_once() {
        let mut touched = Touched::default();
        for number in (0..100).chain(0..100) {
            assert_eq!(touched.add(PathRef::known(&name(number)), 100), Ok(()));
        }
        assert_eq!(touched.add(PathRef::known("/99"), 100), Ok(()));
        assert!(!touched.overflowed);
        assert_eq!(touched.add(PathRef::known("/100"), 100), Err(Errno::ENOSPC));
        assert!(touched.overflowed);
        touched.clear();
        assert!(!touched.overflowed);
        assert_eq!(touched.add(PathRef::known("/100"), 1), Ok(()));
        assert_eq!(touched.add(PathRef::known("/99"), 1), Err(Errno::ENOSPC));
    }

    #[test]
    fn marks_add_up_and_come_in_the_order_of_the_first_touch() {
        let mut touched = Touched::default();
        for number in 0..10 {
            touched.add(PathRef::known(&name(number)), 0).unwrap();
        }
        let mark = |removed, made| Mark { removed, made };
        let marks = [
            (7, mark(false, 2)),
            (3, mark(true, 0)),
            (7, mark(false, 1)),
            (3, mark(false, 1)),
            (5, mark(false, 0)),
            (5, mark(true, 0)),
            (11, mark(true, 0)),
        ];
        for (number, mark) in marks {
            touched.mark(PathRef::known(&name(number)), mark);
        }
        let marked: Vec<_> = touched.marked().collect();
        let expected = [
            (PathRef::known("/3"), mark(true, 1)),
            (PathRef::known("/5"), mark(true, 0)),
            (PathRef::known("/7"), mark(false, 2)),
        ];
        assert_eq!(marked, expected);
        touched.clear_marks();
        assert_eq!(touched.marked().count(), 0);
    }
}
