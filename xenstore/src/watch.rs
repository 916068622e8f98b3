//! The watches, found by the path that changed: a change costs its depth and the watches that match, not those that there are.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cmp::{Ordering, Reverse};

use slotmap::{DefaultKey, SecondaryMap, SlotMap};

use crate::bugs;
use crate::ids::{ConnId, DomId};
use crate::output::EventText;
use crate::path::{Path, PathRef};
use crate::storage::{Children, Digested, Index, digest, digest_bytes};

/// Bytes that a watch costs besides its path and token.
const WATCH_BYTES: u64 = 256;

/// One watch, in order of registration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WatchId {
    pub(crate) number: u64,
    pub(crate) place: DefaultKey,
}

/// Who wants to hear of what.
pub(crate) struct Watch {
    pub(crate) connection: ConnId,
    pub(crate) path: Path,
    pub(crate) token: Token,
    /// How many levels below the path count; `None` for all.
    pub(crate) depth: Option<u32>,
    /// The client named the path relative to its home, and hears of it so.
    pub(crate) relative_to: Option<DomId>,
}

/// What a client calls its watch.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Token {
    digest: u64,
    /// With a NUL before it and one behind, as it stands in an event.
    framed: Rc<[u8]>,
}

impl Token {
    pub(crate) fn new(token: &[u8]) -> Self {
        Self {
            digest: digest_bytes(token),
            framed: [&[0], token, &[0]].concat().into(),
        }
    }

    pub(crate) fn framed(&self) -> &Rc<[u8]> {
        &self.framed
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        match &*self.framed {
            [0, token @ .., 0] => token,
            _ => &[],
        }
    }
}

/// All watches of all connections.
#[derive(Default)]
pub(crate) struct Watches {
    watches: SlotMap<DefaultKey, Box<Watch>>,
    /// The watches of each connection, by what tells them apart.
    of: SecondaryMap<DefaultKey, Index<Name, WatchId>>,
    index: Spots,
    /// The number of the next one.
    pub(crate) next: u64,
}

/// What tells the watches of a connection apart: the absolute path and the token. A number made of both comes first, so that others
/// are told from it fast.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    digest: u64,
    path: Path,
    token: Token,
}

impl Name {
    /// The digest of this name, and how others stand to it.
    fn wanted(path: PathRef<'_>, token: &Token) -> (u64, impl Fn(&Self) -> Ordering) {
        let digest = Self::digest_of(path, token);
        let order = move |name: &Self| {
            name.digest
                .cmp(&digest)
                .then_with(|| name.path.as_ref().cmp(&path))
                .then_with(|| name.token.cmp(token))
        };
        (digest, order)
    }

    fn digest_of(path: PathRef<'_>, token: &Token) -> u64 {
        digest(path.as_str()).rotate_left(1) ^ token.digest()
    }
}

impl Digested for Name {
    fn digest(&self) -> u64 {
        self.digest
    }
}

impl Watch {
    /// Where in `path` begins what this watch hears of it.
    pub(crate) fn shown_from(&self, path: PathRef<'_>) -> usize {
        let shown = self.relative_to.and_then(|home| path.relative_to(home));
        shown.map_or(0, |shown| path.as_str().len().saturating_sub(shown.len()))
    }

    /// What it hears of a change at `path`.
    pub(crate) fn event(&self, path: &Path) -> EventText {
        EventText {
            path: path.clone(),
            from: self.shown_from(path.as_ref()),
            token: self.token.clone(),
        }
    }

    /// Bytes that it costs its connection's domain.
    pub(crate) fn footprint(&self) -> u64 {
        let text = self
            .path
            .as_str()
            .len()
            .saturating_add(self.token.as_bytes().len());
        WATCH_BYTES.saturating_add(u64::try_from(text).unwrap_or(u64::MAX))
    }

    /// Whether it hears of a change `distance` levels below its path. With a depth, a special name only tells of domains by name.
    pub(crate) fn reaches(&self, distance: u32) -> bool {
        self.depth
            .is_none_or(|depth| distance <= depth && !self.path.as_ref().is_special())
    }
}

impl Watches {
    pub(crate) fn get(&self, id: WatchId) -> Option<&Watch> {
        self.watches.get(id.place).map(|watch| &**watch)
    }

    /// Whether the connection has a watch with this path and token, however spelt (protocol.md section 8).
    pub(crate) fn has(&self, watch: &Watch) -> bool {
        let own = self.of.get(watch.connection.key);
        own.is_some_and(|own| {
            let (digest, order) = Name::wanted(watch.path.as_ref(), &watch.token);
            own.get(digest, order).is_some()
        })
    }

    /// Registers a watch that the connection does not have yet.
    pub(crate) fn add(&mut self, watch: Watch) -> WatchId {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.add_as(number, watch)
    }

    /// The watches of a connection, in order of registration.
    pub(crate) fn of(&self, connection: ConnId) -> Vec<(WatchId, &Watch)> {
        let own = self
            .of
            .get(connection.key)
            .into_iter()
            .flat_map(Index::iter);
        let mut found: Vec<_> = own
            .filter_map(|(_, id)| Some((*id, self.get(*id)?)))
            .collect();
        found.sort_unstable_by_key(|(id, _)| *id);
        found
    }

    /// As [`Watches::add`], with a number that no other one has.
    pub(crate) fn add_as(&mut self, number: u64, watch: Watch) -> WatchId {
        let connection = watch.connection.key;
        let path = watch.path.clone();
        let name = Name {
            digest: Name::digest_of(path.as_ref(), &watch.token),
            path: path.clone(),
            token: watch.token.clone(),
        };
        let place = self.watches.insert(Box::new(watch));
        let id = WatchId { number, place };
        if let Some(own) = self.of.entry(connection) {
            own.or_default().insert(name, id);
        }
        self.index.add(path.as_ref(), id);
        id
    }

    /// Takes a watch off, if the connection has it.
    pub(crate) fn remove(
        &mut self,
        connection: ConnId,
        path: PathRef<'_>,
        token: &[u8],
    ) -> Option<(WatchId, Watch)> {
        let own = self.of.get_mut(connection.key)?;
        let token = Token::new(token);
        let (digest, order) = Name::wanted(path, &token);
        let (_, id) = own.remove(digest, order)?;
        if own.is_empty() {
            self.of.remove(connection.key);
        }
        Some((id, self.drop_watch(id)?))
    }

    /// Takes all watches of a connection off.
    pub(crate) fn remove_all(&mut self, connection: ConnId) {
        let own = self.of.remove(connection.key).unwrap_or_default();
        for (_, id) in own.iter().filter(|_| !bugs::XSA_330) {
            self.drop_watch(*id);
        }
    }

    /// How many watches a connection has, and their bytes.
    #[cfg(feature = "journal")]
    pub(crate) fn of_connection(&self, connection: ConnId) -> (u64, u64) {
        let own = self
            .watches
            .values()
            .filter(|watch| watch.connection == connection);
        own.fold((0, 0), |(count, bytes), watch| {
            (
                count.saturating_add(1),
                bytes.saturating_add(watch.footprint()),
            )
        })
    }

    /// Whether there is a watch on `path` or above it, or, if that is `removed`, below it.
    pub(crate) fn concern(&self, path: PathRef<'_>, removed: bool) -> bool {
        let mut spot = self.index.start(path);
        let mut names = path.components();
        loop {
            if !spot.watches.is_empty() {
                return true;
            }
            match names.next().map(|name| spot.below.get(name)) {
                None => return removed && !spot.below.is_empty(),
                Some(None) => return false,
                Some(Some(place)) => match self.index.spots.get(*place) {
                    Some(next) => spot = next,
                    None => return false,
                },
            }
        }
    }

    /// The watches on `path` and above it, with how far above, in order of registration.
    pub(crate) fn along(&self, path: PathRef<'_>) -> Vec<(WatchId, u32)> {
        let mut found = Vec::new();
        let mut distance = u32::try_from(path.components().count()).unwrap_or(u32::MAX);
        let mut spot = Some(self.index.start(path));
        let mut names = path.components();
        let mut spots = 0_u32;
        while let Some(here) = spot {
            if !here.watches.is_empty() {
                found.reserve_exact(here.watches.len());
                found.extend(here.watches.iter().map(|id| (*id, distance)));
                spots = spots.saturating_add(1);
            }
            let next = names.next().and_then(|name| here.below.get(name));
            spot = next.and_then(|place| self.index.spots.get(*place));
            distance = distance.saturating_sub(1);
        }
        if spots > 1 {
            found.sort_unstable_by_key(|(id, _)| *id);
        }
        found
    }

    /// The watches below `path`, the deepest first, else in order of registration. Their paths are not copied: they could be as much as all watches.
    pub(crate) fn below(&self, path: PathRef<'_>) -> Vec<WatchId> {
        let mut found = Vec::new();
        let mut open: Vec<(&Spot, u32)> = Vec::new();
        open.extend(self.index.find(path).map(|spot| (spot, 0)));
        while let Some((spot, depth)) = open.pop() {
            if depth > 0 {
                found.extend(spot.watches.iter().map(|id| (Reverse(depth), *id)));
            }
            for (_, place) in spot.below.iter() {
                let spot = self.index.spots.get(*place);
                open.extend(spot.map(|spot| (spot, depth.saturating_add(1))));
            }
        }
        // An order that does not depend on which watches there were before.
        found.sort_unstable();
        found.into_iter().map(|(_, id)| id).collect()
    }

    fn drop_watch(&mut self, id: WatchId) -> Option<Watch> {
        let watch = self.watches.remove(id.place)?;
        self.index.remove(watch.path.as_ref(), id);
        Some(*watch)
    }
}

/// The paths that are watched, name by name. Spots refer to each other by place, so nothing here goes as deep as a path.
#[derive(Default)]
struct Spots {
    root: Spot,
    /// Where special names start.
    specials: Spot,
    spots: SlotMap<DefaultKey, Spot>,
}

#[derive(Default)]
struct Spot {
    watches: BTreeSet<WatchId>,
    below: Children<DefaultKey>,
}

impl Spot {
    fn is_needed(&self) -> bool {
        !self.watches.is_empty() || !self.below.is_empty()
    }
}

impl Spots {
    fn start(&self, path: PathRef<'_>) -> &Spot {
        if path.is_special() {
            &self.specials
        } else {
            &self.root
        }
    }

    /// A spot to change: where paths like this one start, or one below.
    fn spot_mut(&mut self, path: PathRef<'_>, place: Option<DefaultKey>) -> Option<&mut Spot> {
        match place {
            Some(place) => self.spots.get_mut(place),
            None if path.is_special() => Some(&mut self.specials),
            None => Some(&mut self.root),
        }
    }

    fn find(&self, path: PathRef<'_>) -> Option<&Spot> {
        path.components().try_fold(self.start(path), |spot, name| {
            self.spots.get(*spot.below.get(name)?)
        })
    }

    fn add(&mut self, path: PathRef<'_>, id: WatchId) {
        let mut place = None;
        for name in path.components() {
            let known = self
                .spot_mut(path, place)
                .and_then(|spot| spot.below.get(name).copied());
            let next = known.unwrap_or_else(|| self.spots.insert(Spot::default()));
            if known.is_none()
                && let Some(spot) = self.spot_mut(path, place)
            {
                spot.below.add(name, next);
            }
            place = Some(next);
        }
        if let Some(spot) = self.spot_mut(path, place) {
            spot.watches.insert(id);
        }
    }

    /// Takes a watch out, and the spots that nothing needs any more.
    fn remove(&mut self, path: PathRef<'_>, id: WatchId) {
        let mut way = Vec::from([(None, "")]);
        let mut spot = self.start(path);
        for name in path.components() {
            let Some(place) = spot.below.get(name).copied() else {
                return;
            };
            let Some(next) = self.spots.get(place) else {
                return;
            };
            spot = next;
            way.push((Some(place), name));
        }
        let last = way.last().and_then(|(place, _)| *place);
        if let Some(spot) = self.spot_mut(path, last) {
            spot.watches.remove(&id);
        }
        while let [.., (above, _), (Some(place), name)] = way.as_slice() {
            if self.spots.get(*place).is_some_and(Spot::is_needed) {
                return;
            }
            self.spots.remove(*place);
            if let Some(spot) = self.spot_mut(path, *above) {
                spot.below.remove(name);
            }
            way.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> ConnId {
        ConnId {
            number: 0,
            key: slotmap::KeyData::from_ffi(1).into(),
        }
    }

    fn watch(path: &str, token: &str) -> Watch {
        Watch {
            connection: connection(),
            path: Path::known(path),
            token: Token::new(token.as_bytes()),
            depth: None,
            relative_to: None,
        }
    }

    fn tokens<T>(watches: &Watches, found: impl IntoIterator<Item = (WatchId, T)>) -> Vec<String> {
        let token =
            |id| String::from_utf8(watches.get(id).unwrap().token.as_bytes().to_vec()).unwrap();
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
        let along = watches.along(PathRef::known("/a/b"));
        let distances: Vec<_> = along.iter().map(|(_, distance)| *distance).collect();
        assert_eq!(distances, [0, 2, 1]);
        assert_eq!(tokens(&watches, along), ["exact", "root", "above"]);
        assert_eq!(
            tokens(&watches, watches.along(PathRef::known("/a/x/y"))),
            ["root", "above"]
        );
    }

    #[test]
    fn a_removal_finds_the_watches_below_deepest_first() {
        let mut watches = Watches::default();
        for path in ["/a", "/a/b", "/a/b/c", "/a/d", "/e"] {
            watches.add(watch(path, path));
        }
        let below = watches.below(PathRef::known("/a")).into_iter();
        let below = tokens(&watches, below.map(|id| (id, ())));
        assert_eq!(below.len(), 3);
        let at = |path| below.iter().position(|token| token == path).unwrap();
        assert!(at("/a/b/c") < at("/a/b"));
        assert!(below.contains(&"/a/d".to_owned()));
        assert!(watches.below(PathRef::known("/x")).is_empty());
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
                .remove(connection(), PathRef::known("/a/b"), b"t")
                .is_some()
        );
        assert!(
            watches
                .remove(connection(), PathRef::known("/a/b"), b"t")
                .is_none()
        );
        watches.remove_all(connection());
        assert!(watches.watches.is_empty());
        assert!(watches.index.spots.is_empty());
        assert!(!watches.index.root.is_needed() && !watches.index.specials.is_needed());
        assert!(watches.of.is_empty());
    }
}
