//! The nodes that a transaction has read or changed, as quota `transaction-nodes` counts, in the order in which it first did.

use alloc::string::String;
use alloc::vec::Vec;

use hashbrown::HashTable;

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
    /// There were more than allowed: the transaction can only be ended.
    pub(crate) overflowed: bool,
}

struct Touch {
    digest: u64,
    /// Where its path begins and ends.
    start: usize,
    end: usize,
}

impl Touched {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.touches.len()
    }

    /// Notes a path.
    ///
    /// # Errors
    /// ENOSPC if `limit` paths (0: any number) are there and this is another.
    pub(crate) fn add(&mut self, path: PathRef<'_>, limit: u32) -> Result<(), Errno> {
        let digest = digest(path.as_str());
        if self.find(digest, path).is_some() {
            return Ok(());
        }
        let count = u64::try_from(self.touches.len()).unwrap_or(u64::MAX);
        if !within(count.saturating_add(1), limit) {
            self.overflowed = true;
            return Err(Errno::ENOSPC);
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
        touches.push(Touch {
            digest,
            start,
            end: paths.len(),
        });
        Ok(())
    }

    /// How many paths were touched before this one, if it was touched.
    pub(crate) fn order(&self, path: PathRef<'_>) -> Option<usize> {
        self.find(digest(path.as_str()), path)
    }

    fn find(&self, digest: u64, path: PathRef<'_>) -> Option<usize> {
        let equal = |at: &usize| {
            self.touches.get(*at).is_some_and(|touch| {
                touch.digest == digest
                    && self.paths.get(touch.start..touch.end) == Some(path.as_str())
            })
        };
        self.table.find(digest, equal).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_counts_once_and_keeps_its_place() {
        let mut touched = Touched::default();
        let name = |number: usize| format!("/{number}");
        for number in (0..100).chain(0..100) {
            assert_eq!(touched.add(PathRef::known(&name(number)), 100), Ok(()));
        }
        for number in 0..100 {
            assert_eq!(touched.order(PathRef::known(&name(number))), Some(number));
        }
        assert_eq!(touched.order(PathRef::known("/100")), None);
        assert_eq!(touched.add(PathRef::known("/99"), 100), Ok(()));
        assert!(!touched.overflowed);
        assert_eq!(touched.add(PathRef::known("/100"), 100), Err(Errno::ENOSPC));
        assert!(touched.overflowed);
        assert_eq!(touched.len(), 100);
    }
}
