//! The watches, found by the path that changed: a change costs its depth and the watches that match, not those that there are.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use crate::ids::{ConnId, DomId};
use crate::path::Path;

/// Bytes that a watch costs besides its path and token.
const WATCH_BYTES: u64 = 256;

/// One watch, in order of registration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WatchId(u64);

/// Who wants to hear of what.
pub(crate) struct Watch {
    pub(crate) connection: ConnId,
    pub(crate) path: Path,
    pub(crate) token: Rc<[u8]>,
    /// How many levels below the path count; `None` for all.
    pub(crate) depth: Option<u32>,
    /// The client named the path relative to its home, and hears of it so.
    pub(crate) relative_to: Option<DomId>,
}

/// All watches of all connections.
#[derive(Default)]
pub(crate) struct Watches {
    watches: BTreeMap<WatchId, Watch>,
    of: BTreeMap<ConnId, Own>,
    index: Index,
    next: u64,
}

/// The watches of one connection, by what tells them apart: the absolute path and the token.
type Own = BTreeMap<(Path, Rc<[u8]>), WatchId>;

impl Watch {
    /// The payload of an event of this watch about `path`.
    pub(crate) fn event(&self, path: &Path) -> Vec<u8> {
        let shown = self.relative_to.and_then(|home| path.relative_to(home));
        let shown = shown.unwrap_or(path.as_str());
        [shown.as_bytes(), &[0], &self.token, &[0]].concat()
    }

    /// Bytes that it costs its connection's domain.
    pub(crate) fn footprint(&self) -> u64 {
        let text = self.path.as_str().len().saturating_add(self.token.len());
        WATCH_BYTES.saturating_add(u64::try_from(text).unwrap_or(u64::MAX))
    }

    /// Whether it hears of a change `distance` levels below its path. With a depth, a special name only tells of domains by name.
    pub(crate) fn reaches(&self, distance: u32) -> bool {
        self.depth
            .is_none_or(|depth| distance <= depth && !self.path.is_special())
    }
}

impl Watches {
    pub(crate) fn get(&self, id: WatchId) -> Option<&Watch> {
        self.watches.get(&id)
    }

    /// Whether the connection has a watch with this path and token, however spelt (protocol.md section 8).
    pub(crate) fn has(&self, watch: &Watch) -> bool {
        let key = (watch.path.clone(), Rc::clone(&watch.token));
        self.of
            .get(&watch.connection)
            .is_some_and(|own| own.contains_key(&key))
    }

    /// Registers a watch that the connection does not have yet.
    pub(crate) fn add(&mut self, watch: Watch) -> WatchId {
        let id = WatchId(self.next);
        self.next = self.next.wrapping_add(1);
        let key = (watch.path.clone(), Rc::clone(&watch.token));
        self.of.entry(watch.connection).or_default().insert(key, id);
        self.index.add(&watch.path, id);
        self.watches.insert(id, watch);
        id
    }

    /// Takes a watch off, if the connection has it.
    pub(crate) fn remove(
        &mut self,
        connection: ConnId,
        path: &Path,
        token: &[u8],
    ) -> Option<(WatchId, Watch)> {
        let own = self.of.get_mut(&connection)?;
        let id = own.remove(&(path.clone(), token.into()))?;
        if own.is_empty() {
            self.of.remove(&connection);
        }
        Some((id, self.drop_watch(id)?))
    }

    /// Takes all watches of a connection off.
    pub(crate) fn remove_all(&mut self, connection: ConnId) {
        for id in self
            .of
            .remove(&connection)
            .unwrap_or_default()
            .into_values()
        {
            self.drop_watch(id);
        }
    }

    /// The watches on `path` and above it, with how far above, in order of registration.
    pub(crate) fn along(&self, path: &Path) -> Vec<(WatchId, u32)> {
        let mut found = Vec::new();
        let mut distance = u32::try_from(path.components().count()).unwrap_or(u32::MAX);
        let mut place = Index::start(path);
        let mut names = path.components();
        while let Some(spot) = self.index.spots.get(&place) {
            found.extend(spot.watches.iter().map(|id| (*id, distance)));
            let Some(next) = names.next().and_then(|name| spot.below.get(name)) else {
                break;
            };
            place = *next;
            distance = distance.saturating_sub(1);
        }
        found.sort_unstable_by_key(|(id, _)| *id);
        found
    }

    /// The watches below `path`, each with the names that lead there, the deepest first.
    pub(crate) fn below(&self, path: &Path) -> Vec<(WatchId, String)> {
        let mut found = Vec::new();
        let mut open: Vec<(u64, String)> = Vec::new();
        if let Some(place) = self.index.find(path) {
            open.push((place, String::new()));
        }
        while let Some((place, way)) = open.pop() {
            let Some(spot) = self.index.spots.get(&place) else {
                continue;
            };
            if !way.is_empty() {
                found.extend(spot.watches.iter().map(|id| (*id, way.clone())));
            }
            open.extend(
                spot.below
                    .iter()
                    .map(|(name, place)| (*place, format!("{way}/{name}"))),
            );
        }
        found.reverse();
        found
    }

    fn drop_watch(&mut self, id: WatchId) -> Option<Watch> {
        let watch = self.watches.remove(&id)?;
        self.index.remove(&watch.path, id);
        Some(watch)
    }
}

/// The paths that are watched, name by name. Spots refer to each other by number, so nothing here goes as deep as a path.
struct Index {
    spots: BTreeMap<u64, Spot>,
    next: u64,
}

#[derive(Default)]
struct Spot {
    watches: BTreeSet<WatchId>,
    below: BTreeMap<Rc<str>, u64>,
}

/// Where paths from `/` start, and special names.
const ROOT: u64 = 0;
const SPECIALS: u64 = 1;

impl Default for Index {
    fn default() -> Self {
        Self {
            spots: BTreeMap::from([(ROOT, Spot::default()), (SPECIALS, Spot::default())]),
            next: SPECIALS.wrapping_add(1),
        }
    }
}

impl Index {
    fn start(path: &Path) -> u64 {
        if path.is_special() { SPECIALS } else { ROOT }
    }

    fn find(&self, path: &Path) -> Option<u64> {
        path.components()
            .try_fold(Self::start(path), |place, name| {
                self.spots.get(&place)?.below.get(name).copied()
            })
    }

    fn add(&mut self, path: &Path, id: WatchId) {
        let mut place = Self::start(path);
        for name in path.components() {
            let fresh = self.next;
            let spot = self.spots.entry(place).or_default();
            place = *spot.below.entry(name.into()).or_insert(fresh);
            if place == fresh {
                self.next = self.next.wrapping_add(1);
                self.spots.insert(fresh, Spot::default());
            }
        }
        self.spots.entry(place).or_default().watches.insert(id);
    }

    /// Takes a watch out, and the spots that nothing needs any more.
    fn remove(&mut self, path: &Path, id: WatchId) {
        let mut way = Vec::from([(Self::start(path), "")]);
        for name in path.components() {
            let last = way.last().and_then(|(place, _)| self.spots.get(place));
            let Some(next) = last.and_then(|spot| spot.below.get(name)) else {
                return;
            };
            way.push((*next, name));
        }
        if let Some(spot) = way.last().and_then(|(place, _)| self.spots.get_mut(place)) {
            spot.watches.remove(&id);
        }
        while let [.., (above, _), (place, name)] = way.as_slice() {
            let needed = self
                .spots
                .get(place)
                .is_some_and(|spot| !spot.watches.is_empty() || !spot.below.is_empty());
            if needed {
                return;
            }
            self.spots.remove(place);
            if let Some(spot) = self.spots.get_mut(above) {
                spot.below.remove(*name);
            }
            way.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECTION: ConnId = ConnId(1);

    fn watch(path: &str, token: &str) -> Watch {
        Watch {
            connection: CONNECTION,
            path: Path::known(path),
            token: token.as_bytes().into(),
            depth: None,
            relative_to: None,
        }
    }

    fn tokens<T>(watches: &Watches, found: Vec<(WatchId, T)>) -> Vec<String> {
        let token = |id| String::from_utf8(watches.get(id).unwrap().token.to_vec()).unwrap();
        found.into_iter().map(|(id, _)| token(id)).collect()
    }

    #[test]
    fn a_change_finds_the_watches_on_its_way() {
        let mut watches = Watches::default();
        for (path, token) in [
            ("/a/b", "exact"),
            ("/", "root"),
            ("/a", "above"),
            ("/a/b/c", "below"),
            ("/ab", "aside"),
        ] {
            watches.add(watch(path, token));
        }
        let along = watches.along(&Path::known("/a/b"));
        let distances: Vec<_> = along.iter().map(|(_, distance)| *distance).collect();
        assert_eq!(distances, [0, 2, 1]);
        assert_eq!(tokens(&watches, along), ["exact", "root", "above"]);
        assert_eq!(
            tokens(&watches, watches.along(&Path::known("/a/x/y"))),
            ["root", "above"]
        );
    }

    #[test]
    fn a_removal_finds_the_watches_below_deepest_first() {
        let mut watches = Watches::default();
        for path in ["/a", "/a/b", "/a/b/c", "/a/d", "/e"] {
            watches.add(watch(path, path));
        }
        let below = tokens(&watches, watches.below(&Path::known("/a")));
        assert_eq!(below.len(), 3);
        let at = |path| below.iter().position(|token| token == path).unwrap();
        assert!(at("/a/b/c") < at("/a/b"));
        assert!(below.contains(&"/a/d".to_owned()));
        assert!(watches.below(&Path::known("/x")).is_empty());
    }

    #[test]
    fn the_index_keeps_nothing_of_removed_watches() {
        let mut watches = Watches::default();
        for path in ["/a/b/c", "/a/b", "/x", "@releaseDomain/5"] {
            watches.add(watch(path, "t"));
        }
        assert!(watches.has(&watch("/x", "t")));
        assert!(!watches.has(&watch("/x", "u")));
        assert!(
            watches
                .remove(CONNECTION, &Path::known("/a/b"), b"t")
                .is_some()
        );
        assert!(
            watches
                .remove(CONNECTION, &Path::known("/a/b"), b"t")
                .is_none()
        );
        watches.remove_all(CONNECTION);
        assert!(watches.watches.is_empty());
        assert_eq!(watches.index.spots.len(), 2);
        assert!(watches.of.is_empty());
    }
}
