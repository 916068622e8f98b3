//! A storage around another one that keeps a journal: every change that became the store's, in order.
//!
//! Each snapshot notes the paths that were changed in it. When a snapshot becomes the store's nodes ([`Storage::committed`]), what stands at
//! these paths is written down; whatever was only tried is forgotten with the snapshot.
//!
//! A crash loses no line and doubles none. Memory for a note is taken before the change, so that no other step lies between the two; and
//! notes are dropped when all their lines are written, of which the journal takes back what is not whole.

use alloc::vec::Vec;

use super::change_log::{ChangeLog, Edit};
use super::{Node, Seed, Storage};
use crate::acl::{Acl, Incarnation};
use crate::faults;
use crate::ids::Generation;
use crate::path::{Components, Path, PathRef};
use crate::time::Instant;

/// Bytes that a note costs besides its path.
const NOTE_BYTES: usize = 48;

/// Nodes as `S` keeps them, and the journal of what is committed.
#[derive(Clone)]
pub struct Journaled<S> {
    nodes: S,
    /// What was changed since this was the store's, in order.
    notes: Vec<Note>,
    /// Bytes of these.
    note_bytes: usize,
}

/// Where something was changed.
#[derive(Clone, PartialEq, Eq)]
enum Note {
    /// A node was made, or is another one now.
    Set(Path),
    /// A node went, with all below it.
    Removed(Path),
}

impl Note {
    fn path(&self) -> PathRef<'_> {
        match self {
            Self::Set(path) | Self::Removed(path) => path.as_ref(),
        }
    }
}

impl<S> Journaled<S> {
    /// Nothing has changed in these nodes yet.
    pub(super) const fn around(nodes: S) -> Self {
        Self {
            nodes,
            notes: Vec::new(),
            note_bytes: 0,
        }
    }

    /// Takes the memory for a note.
    fn foresee(&mut self, path: PathRef<'_>) -> Path {
        self.notes.reserve(1);
        path.to_path()
    }

    fn note(&mut self, note: Note) {
        if self.notes.last() != Some(&note) {
            let bytes = NOTE_BYTES.saturating_add(note.path().as_str().len());
            self.note_bytes = self.note_bytes.saturating_add(bytes);
            self.notes.push(note);
        }
    }
}

impl<S: Storage> Storage for Journaled<S> {
    type Child = S::Child;
    type Branch = S::Branch;
    type Growth = S::Growth;

    fn new(owner: Incarnation) -> Self {
        Self::around(S::new(owner))
    }

    fn is_same(&self, other: &Self) -> bool {
        self.nodes.is_same(&other.nodes)
    }

    fn get(&self, path: PathRef<'_>) -> Option<&Node<S::Child>> {
        self.nodes.get(path)
    }

    fn nearest<'p>(&self, path: PathRef<'p>) -> (&Node<S::Child>, Components<'p>) {
        self.nodes.nearest(path)
    }

    fn get_mut(&mut self, path: PathRef<'_>) -> Option<&mut Node<S::Child>> {
        self.nodes.get(path)?;
        let noted = self.foresee(path);
        self.note(Note::Set(noted));
        self.nodes.get_mut(path)
    }

    fn add(&mut self, path: PathRef<'_>, seed: Seed) -> Option<Incarnation> {
        let noted = self.foresee(path);
        let owner = self.nodes.add(path, seed)?;
        self.note(Note::Set(noted));
        Some(owner)
    }

    fn restore(&mut self, path: PathRef<'_>, seed: Seed) -> Option<Incarnation> {
        let noted = self.foresee(path);
        let owner = self.nodes.restore(path, seed)?;
        self.note(Note::Set(noted));
        Some(owner)
    }

    /// It is no news what a state stream has: nothing is noted.
    fn grow(
        &mut self,
        growth: &mut S::Growth,
        path: PathRef<'_>,
        seed: Seed,
    ) -> Option<Incarnation> {
        self.nodes.grow(growth, path, seed)
    }

    fn settle(&mut self, growth: &mut S::Growth) {
        self.nodes.settle(growth);
    }

    fn add_all(
        &mut self,
        path: PathRef<'_>,
        seeds: impl ExactSizeIterator<Item = Seed>,
    ) -> Option<Incarnation> {
        let levels = (0..seeds.len()).rev();
        let made = levels.filter_map(|level| Some(path.above(level)?.to_path()));
        let made: Vec<Path> = made.collect();
        self.notes.reserve(made.len());
        let owner = self.nodes.add_all(path, seeds)?;
        for path in made {
            self.note(Note::Set(path));
        }
        Some(owner)
    }

    fn add_special(&mut self, name: PathRef<'_>, seed: Seed) {
        let noted = self.foresee(name);
        self.nodes.add_special(name, seed);
        self.note(Note::Set(noted));
    }

    fn remove(
        &mut self,
        path: PathRef<'_>,
        generation: Generation,
    ) -> Option<(S::Branch, Incarnation)> {
        let noted = self.foresee(path);
        let removed = self.nodes.remove(path, generation)?;
        self.note(Note::Removed(noted));
        Some(removed)
    }

    fn branch(&self, path: PathRef<'_>) -> Option<S::Branch> {
        self.nodes.branch(path)
    }

    fn shares(&self, other: &Self, path: PathRef<'_>) -> bool {
        self.nodes.shares(&other.nodes, path)
    }

    fn walk(&self, top: PathRef<'_>, each: impl FnMut(PathRef<'_>, &Node<S::Child>)) {
        self.nodes.walk(top, each);
    }

    fn visit_children(&self, path: PathRef<'_>, each: impl FnMut(&str, &Acl)) {
        self.nodes.visit_children(path, each);
    }

    fn is_journaled(&self) -> bool {
        true
    }

    fn committed(
        &mut self,
        log: &mut ChangeLog,
        now: Instant,
        is_alive: &dyn Fn(Incarnation) -> bool,
    ) {
        if self.notes.is_empty() {
            log.finish();
            return;
        }
        let edits = self.notes.iter().filter_map(|note| match note {
            Note::Removed(path) => Some(Edit::Removed(path.as_ref())),
            Note::Set(path) => {
                let node = self.nodes.get(path.as_ref())?;
                Some(Edit::Set {
                    path: path.as_ref(),
                    value: node.value.as_bytes(),
                    permissions: node.acl.encode(is_alive),
                })
            }
        });
        log.append(now, edits);
        faults::may_crash();
        self.forget();
        log.finish();
    }

    fn forget(&mut self) {
        self.notes.clear();
        self.note_bytes = 0;
    }

    fn visit_notes(&self, each: &mut dyn FnMut(PathRef<'_>, bool)) {
        for note in &self.notes {
            each(note.path(), matches!(note, Note::Removed(_)));
        }
    }

    fn restore_note(&mut self, path: PathRef<'_>, is_removed: bool) {
        let path = path.to_path();
        self.note(match is_removed {
            true => Note::Removed(path),
            false => Note::Set(path),
        });
    }

    fn noted_bytes(&self) -> u64 {
        u64::try_from(self.note_bytes).unwrap_or(u64::MAX)
    }
}
