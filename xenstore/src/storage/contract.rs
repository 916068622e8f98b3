//! What every storage must do: one suite that each passes, and one run of random edits in which both must agree.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;

use proptest::prelude::*;
use slotmap::KeyData;

use super::children::mix;
use super::{AnyStorage, Branch, FlatMap, Journaled, Kind, Seed, Storage, Tree, Value, digest};
use crate::acl::{Acl, Incarnation, Letter};
use crate::ids::{DomId, Generation};
use crate::path::{Components, Path, PathRef};

/// Storages to test; one that leaves a choice is several.
trait Make {
    type Nodes: Storage;

    fn new(owner: Incarnation) -> Self::Nodes;
}

impl<S: Storage> Make for S {
    type Nodes = S;

    fn new(owner: Incarnation) -> S {
        Storage::new(owner)
    }
}

struct Any<const IS_FLAT: bool, const IS_JOURNALED: bool>;

impl<const IS_FLAT: bool, const IS_JOURNALED: bool> Make for Any<IS_FLAT, IS_JOURNALED> {
    type Nodes = AnyStorage;

    fn new(owner: Incarnation) -> AnyStorage {
        let kind = Kind {
            is_flat: IS_FLAT,
            is_journaled: IS_JOURNALED,
        };
        let nodes = AnyStorage::of(kind, owner);
        assert_eq!(nodes.is_journaled(), IS_JOURNALED);
        nodes
    }
}

pub(super) fn owner(number: u16) -> Incarnation {
    Incarnation {
        domid: DomId::new(number),
        life: KeyData::from_ffi(u64::from(number)).into(),
    }
}

pub(super) fn seed(value: &[u8]) -> Seed {
    seed_of(value, owner(0), 1)
}

fn seed_of(value: &[u8], owner: Incarnation, generation: u64) -> Seed {
    Seed {
        value: Value::new(value),
        acl: Rc::new(Acl::private(owner)),
        generation: Generation(generation),
    }
}

fn path(text: &str) -> PathRef<'_> {
    PathRef::known(text)
}

fn names<S: Storage>(nodes: &S, at: &str) -> Vec<String> {
    let mut names = Vec::new();
    let node = nodes.get(path(at)).unwrap();
    node.children().names_from(0, |name, _| {
        names.push(name.to_owned());
        true
    });
    names
}

fn value<S: Storage>(nodes: &S, at: &str) -> Option<Vec<u8>> {
    let node = nodes.get(path(at))?;
    Some(node.value.as_bytes().to_vec())
}

fn missing<S: Storage>(nodes: &S, at: &str) -> (u16, Vec<String>) {
    let (nearest, missing) = nodes.nearest(path(at));
    (
        nearest.acl.owner().domid.get(),
        missing.map(str::to_owned).collect(),
    )
}

fn a_new_one_has_a_root_and_nothing_else<M: Make>() {
    let nodes = M::new(owner(3));
    assert_eq!(value(&nodes, "/"), Some(Vec::new()));
    assert_eq!(value(&nodes, "/a"), None);
    assert_eq!(missing(&nodes, "/a/b"), (3, vec!["a".into(), "b".into()]));
    assert_eq!(missing(&nodes, "@x"), (3, vec!["@x".into()]));
    assert_eq!(missing(&nodes, "/"), (3, vec![]));
}

fn what_is_added_is_found_below_its_parent<M: Make>() {
    let mut nodes = M::new(owner(0));
    assert_eq!(
        nodes.add(path("/a"), seed_of(b"1", owner(1), 5)),
        Some(owner(0))
    );
    assert_eq!(
        nodes.add(path("/a/b"), seed_of(b"2", owner(2), 6)),
        Some(owner(1))
    );
    assert_eq!(nodes.add(path("/x/y"), seed(b"")), None);
    assert_eq!(value(&nodes, "/a/b"), Some(b"2".to_vec()));
    assert_eq!(nodes.get(path("/")).unwrap().generation, Generation(5));
    assert_eq!(nodes.get(path("/a")).unwrap().generation, Generation(6));
    assert_eq!(missing(&nodes, "/a/b/c"), (2, vec!["c".into()]));
    assert_eq!(missing(&nodes, "/a/bc"), (1, vec!["bc".into()]));
}

fn special_names_are_no_children<M: Make>() {
    let mut nodes = M::new(owner(0));
    nodes.add_special(path("@releaseDomain"), seed_of(b"", owner(4), 1));
    assert_eq!(missing(&nodes, "@releaseDomain"), (4, vec![]));
    assert!(nodes.get(path("/@releaseDomain")).is_none());
    assert!(names(&nodes, "/").is_empty());
    nodes.get_mut(path("@releaseDomain")).unwrap().generation = Generation(9);
    let special = nodes.get(path("@releaseDomain")).unwrap();
    assert_eq!(special.generation, Generation(9));
}

fn what_is_removed_goes_with_all_below_it<M: Make>() {
    let mut nodes = M::new(owner(0));
    for text in ["/a", "/a/b", "/a/b/c", "/ab"] {
        nodes.add(path(text), seed(text.as_bytes()));
    }
    let (branch, above) = nodes.remove(path("/a"), Generation(7)).unwrap();
    assert_eq!(above, owner(0));
    assert_eq!(nodes.get(path("/")).unwrap().generation, Generation(7));
    assert_eq!(names(&nodes, "/"), ["ab"]);
    for gone in ["/a", "/a/b", "/a/b/c"] {
        assert!(nodes.get(path(gone)).is_none(), "{gone}");
    }
    assert!(nodes.remove(path("/a"), Generation(8)).is_none());
    assert!(nodes.remove(path("/"), Generation(8)).is_none());
    let mut seen = BTreeMap::new();
    branch.visit(path("/a"), |path, leaf| {
        let value = leaf.value.as_bytes().to_vec();
        seen.insert(path.as_str().to_owned(), (value, leaf.owner_above));
    });
    assert_eq!(seen.len(), 3);
    assert_eq!(seen["/a"], (b"/a".to_vec(), None));
    assert_eq!(seen["/a/b/c"], (b"/a/b/c".to_vec(), Some(owner(0))));
    assert!(branch.acl(Components::of("b/c")).is_some());
    assert!(branch.acl(Components::of("b/x")).is_none());
}

fn a_clone_keeps_what_it_saw<M: Make>() {
    let mut nodes = M::new(owner(0));
    nodes.add(path("/a"), seed(b"old"));
    let before = nodes.clone();
    assert!(nodes.is_same(&before));
    nodes.add(path("/a/b"), seed(b""));
    assert!(!nodes.is_same(&before));
    nodes.get_mut(path("/a")).unwrap().value = Value::new(b"new");
    assert!(before.get(path("/a/b")).is_none());
    assert_eq!(value(&before, "/a"), Some(b"old".to_vec()));
    assert_eq!(value(&nodes, "/a"), Some(b"new".to_vec()));
    assert_eq!(names(&nodes, "/a"), ["b"]);
    nodes.remove(path("/a"), Generation(2));
    assert_eq!(value(&before, "/a"), Some(b"old".to_vec()));
}

fn many_children_keep_their_order_and_are_found<M: Make>() {
    let mut nodes = M::new(owner(0));
    let name = |number: u32| format!("/{:x}", number.wrapping_mul(2_654_435_761));
    for number in 0..1000 {
        nodes.add(path(&name(number)), seed(b""));
    }
    for number in (0..1000).step_by(3) {
        assert!(nodes.remove(path(&name(number)), Generation(1)).is_some());
    }
    let expected: Vec<_> = (0..1000)
        .filter(|n| n % 3 != 0)
        .map(|n| name(n).trim_start_matches('/').to_owned())
        .collect();
    assert_eq!(names(&nodes, "/"), expected);
    let root = nodes.get(path("/")).unwrap();
    let list: usize = expected.iter().map(|name| name.len() + 1).sum();
    assert_eq!(root.children().list_size(), list);
    for number in 0..1000 {
        let found = nodes.get(path(&name(number))).is_some();
        assert_eq!(found, number % 3 != 0);
    }
}

/// Names that are all different and have one digest.
fn alike(count: usize) -> Vec<String> {
    // What the first half does to the digest, the second half can undo, if that is text.
    let digest = |first: u64| mix(0, first).rotate_left(5);
    let wanted = digest(u64::MAX);
    let halves = (0..u32::MAX).filter_map(|number| {
        let nibble = |at: u32| b'a' + u8::try_from(number >> (4 * at) & 15).unwrap();
        let first = [0, 1, 2, 3, 4, 5, 6, 7].map(nibble);
        let second = (wanted ^ digest(u64::from_le_bytes(first))).to_le_bytes();
        let is_name = second.iter().all(u8::is_ascii_alphanumeric);
        is_name.then(|| String::from_utf8([first, second].concat()).unwrap())
    });
    halves.take(count).collect()
}

fn names_of_one_digest_are_different_names<M: Make>() {
    let names: Vec<String> = alike(20);
    for name in &names {
        assert_eq!(digest(name), digest(&names[0]));
    }
    for count in [2, 20] {
        let mut nodes = M::new(owner(0));
        for name in &names[..count] {
            assert!(nodes.get(path(&format!("/{name}"))).is_none());
            nodes.add(path(&format!("/{name}")), seed(name.as_bytes()));
        }
        let removed = path("/").join(&names[1]);
        assert!(nodes.remove(removed.as_ref(), Generation(1)).is_some());
        for (at, name) in names[..count].iter().enumerate() {
            let there = (at != 1).then(|| name.as_bytes().to_vec());
            assert_eq!(value(&nodes, &format!("/{name}")), there);
        }
    }
}

fn all_children_are_visited_however_many<M: Make>() {
    for count in [0, 1, 16, 17, 300_usize] {
        let mut nodes = M::new(owner(0));
        for number in 0..count {
            nodes.add(path(&format!("/{number}")), seed(b""));
        }
        let mut direct = 0;
        nodes.visit_children(path("/"), |_, _| direct += 1);
        let mut all = 0;
        let branch = nodes.branch(path("/")).unwrap();
        branch.visit(path("/"), |_, _| all += 1);
        assert_eq!((direct, all), (count, count + 1));
    }
}

fn a_list_is_read_from_any_byte<M: Make>() {
    for count in [3_usize, 200] {
        let mut nodes = M::new(owner(0));
        let mut list = String::new();
        for number in 0..count {
            let name = format!("n{number}");
            nodes.add(path(&format!("/{name}")), seed(b""));
            list.push_str(&name);
            list.push('\0');
        }
        let root = nodes.get(path("/")).unwrap();
        for offset in 0..list.len() + 3 {
            let mut rest = String::new();
            root.children().names_from(offset, |name, within| {
                rest.push_str(name.get(within..).unwrap());
                rest.push('\0');
                true
            });
            assert_eq!(rest, list.get(offset..).unwrap_or_default(), "{offset}");
        }
    }
}

macro_rules! suite {
    ($($case:ident),* $(,)?) => {
        mod tree {
            $(#[test] fn $case() { super::$case::<super::Tree>(); })*
        }
        mod flat_map {
            $(#[test] fn $case() { super::$case::<super::FlatMap>(); })*
        }
        mod journaled_tree {
            $(#[test] fn $case() { super::$case::<super::Journaled<super::Tree>>(); })*
        }
        mod journaled_flat_map {
            $(#[test] fn $case() { super::$case::<super::Journaled<super::FlatMap>>(); })*
        }
        mod any_tree {
            $(#[test] fn $case() { super::$case::<super::Any<false, false>>(); })*
        }
        mod any_flat_map {
            $(#[test] fn $case() { super::$case::<super::Any<true, false>>(); })*
        }
        mod any_journaled_tree {
            $(#[test] fn $case() { super::$case::<super::Any<false, true>>(); })*
        }
        mod any_journaled_flat_map {
            $(#[test] fn $case() { super::$case::<super::Any<true, true>>(); })*
        }
    };
}

suite!(
    a_new_one_has_a_root_and_nothing_else,
    what_is_added_is_found_below_its_parent,
    special_names_are_no_children,
    what_is_removed_goes_with_all_below_it,
    a_clone_keeps_what_it_saw,
    many_children_keep_their_order_and_are_found,
    names_of_one_digest_are_different_names,
    all_children_are_visited_however_many,
    a_list_is_read_from_any_byte,
);

#[derive(Clone, Debug)]
enum Step {
    Add(Path, u16),
    Write(Path, Vec<u8>),
    Give(Path, u16),
    Remove(Path),
    Snapshot,
    Return(usize),
}

fn any_path() -> impl Strategy<Value = Path> {
    prop::collection::vec(0..5_u8, 1..5).prop_map(|names| {
        let names: String = names.iter().map(|name| format!("/{name}")).collect();
        Path::known(&names)
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (any_path(), 0..4_u16).prop_map(|(path, owner)| Step::Add(path, owner)),
        3 => (any_path(), prop::collection::vec(any::<u8>(), 0..3)).prop_map(|(path, value)| Step::Write(path, value)),
        2 => (any_path(), 0..4_u16).prop_map(|(path, owner)| Step::Give(path, owner)),
        3 => any_path().prop_map(Step::Remove),
        1 => Just(Step::Snapshot),
        1 => any::<usize>().prop_map(Step::Return),
    ]
}

/// Storage under test, with the snapshots that were taken of it.
struct Run<S> {
    now: S,
    before: Vec<S>,
}

impl<S: Storage> Run<S> {
    fn of<M: Make<Nodes = S>>() -> Self {
        Self {
            now: M::new(owner(0)),
            before: Vec::new(),
        }
    }

    fn take(&mut self, step: &Step, generation: u64) {
        match step {
            Step::Add(path, domid) => {
                let path = path.as_ref();
                if self.now.get(path).is_none() {
                    self.now.add(path, seed_of(b"", owner(*domid), generation));
                }
            }
            Step::Write(path, value) => {
                if let Some(node) = self.now.get_mut(path.as_ref()) {
                    node.value = Value::new(value);
                }
            }
            Step::Give(path, domid) => {
                if let Some(node) = self.now.get_mut(path.as_ref()) {
                    node.acl = Rc::new(Acl::new(owner(*domid), Letter::Read, Vec::new()));
                }
            }
            Step::Remove(path) => {
                self.now.remove(path.as_ref(), Generation(generation));
            }
            Step::Snapshot => self.before.push(self.now.clone()),
            Step::Return(which) => {
                if let Some(last) = self.before.len().checked_sub(1) {
                    self.now = self.before[which % (last + 1)].clone();
                }
            }
        }
    }

    fn shown(nodes: &S) -> Vec<String> {
        let mut shown = Vec::new();
        let all = nodes.branch(path("/")).unwrap();
        all.visit(path("/"), |at, leaf| {
            let node = nodes.get(at).unwrap();
            let (value, owner, above) = (leaf.value.as_bytes(), leaf.acl.owner(), leaf.owner_above);
            let generation = node.generation;
            let mut below = BTreeMap::new();
            nodes.visit_children(at, |name, acl| {
                below.insert(name.to_owned(), acl.owner());
            });
            let names = names(nodes, at.as_str());
            shown.push(format!(
                "{at} {value:?} {owner:?} {above:?} {generation:?} {names:?} {below:?}"
            ));
        });
        shown.sort();
        shown
    }
}

proptest! {
    #[test]
    fn all_agree_on_random_edits(steps in prop::collection::vec(step(), 1..200)) {
        let mut tree = Run::of::<Tree>();
        let mut flat = Run::of::<FlatMap>();
        let mut journaled = Run::of::<Journaled<Tree>>();
        let mut any = [
            Run::of::<Any<false, false>>(),
            Run::of::<Any<true, false>>(),
            Run::of::<Any<false, true>>(),
            Run::of::<Any<true, true>>(),
        ];
        for (generation, step) in (1..).zip(&steps) {
            tree.take(step, generation);
            flat.take(step, generation);
            journaled.take(step, generation);
            any.iter_mut().for_each(|run| run.take(step, generation));
        }
        prop_assert_eq!(Run::shown(&tree.now), Run::shown(&journaled.now));
        prop_assert_eq!(Run::shown(&tree.now), Run::shown(&flat.now));
        let now = Run::shown(&tree.now);
        let before: Vec<_> = tree.before.iter().map(Run::shown).collect();
        for run in &any {
            prop_assert_eq!(&now, &Run::shown(&run.now));
        }
        let [_, _, _, any] = &any;
        for (tree, other) in before.iter().zip(&any.before) {
            prop_assert_eq!(tree, &Run::shown(other));
        }
        for (tree, flat) in before.iter().zip(&flat.before) {
            prop_assert_eq!(tree, &Run::shown(flat));
        }
    }
}
