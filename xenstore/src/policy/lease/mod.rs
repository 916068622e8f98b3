//! The policy `lease`: resources, such as disks, that domains hold exclusively, share, or only read, one lease for each holder.
//!
//! All of it is nodes, so that the stock tools use it and live update carries it (docs/leases.md):
//!
//! ```text
//! /lease/SPACE/RESOURCE                 = "exclusive,shared,read-only"   registered, with the modes that it can be held in
//! /lease/SPACE/RESOURCE/holder/DOMID    = "exclusive"                    held
//! /lease/SPACE/RESOURCE/wait/DOMID      = "shared"                       to be held as soon as that can be, in order
//! /lease/SPACE/RESOURCE/move/DOMID      = "7 30"                         to be taken over by domain 7 within 30 s
//! ```
//!
//! A WRITE there is judged here, and RM as well. What follows from it (the next one's turn, a takeover complete, a holder's end) is done at
//! once, before anything else is served.

mod space;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use super::{Access, Operation, Passed, Policy};
use crate::extension::{Item, Keep, View, Why};
use crate::ids::DomId;
use crate::path::PathRef;
use crate::time::Instant;
use crate::wire::Errno;

use space::{
    DIRS, FOLDER, HOLDER, MOVE, Place, RESOURCES_MAX, SPACES_MAX, USERS_MAX, WAIT, count, domid_of,
    modes_of, move_of, names,
};
pub use space::{Inquiry, Mode, Move, Refused, inquire};

/// Where each domain that has to do with leases has a node of its own, which nobody may change.
const MARKS: &str = "/tool/xenstored/lease";

/// Who is in which resources, and what has a deadline; all else is in nodes.
#[derive(Debug, Default)]
pub(super) struct Lease {
    ties: Ties,
    /// Domains that were in a resource, and so have a mark.
    marked: BTreeSet<DomId>,
    /// The deadlines of moves, by their nodes. After a live update they begin anew.
    moves: BTreeMap<String, Instant>,
}

impl Lease {
    pub(super) fn make(item: &Item<'_>) -> Result<Box<dyn Policy>, Why> {
        item.without_parameters()?;
        Ok(Box::new(Self::default()))
    }
}

impl Policy for Lease {
    fn name(&self) -> &'static str {
        "lease"
    }

    fn check(&self, access: &Access<'_>) -> Result<(), Errno> {
        if !access.operation().is_change() {
            return Ok(());
        }
        let marks = PathRef::known(MARKS);
        let removes_marks = access.operation() == Operation::Remove && marks.lies_in(access.path());
        if access.path().lies_in(marks) || removes_marks {
            return Err(Errno::EACCES);
        }
        match Place::of(access.path().as_str()) {
            Place::Outside => Ok(()),
            place => judge(access, &place).map_err(Refused::errno),
        }
    }

    fn passed(&mut self, passed: &Passed, keep: &mut dyn Keep) {
        if !passed.is_change {
            return;
        }
        if let Some(resource) = Place::of(passed.path.as_str()).resource() {
            self.settle(resource, keep);
        }
    }

    fn wants(&self, path: PathRef<'_>) -> bool {
        Place::of(path.as_str()).resource().is_some()
    }

    fn committed(&mut self, path: PathRef<'_>, keep: &mut dyn Keep) {
        if let Some(resource) = Place::of(path.as_str()).resource() {
            self.settle(resource, keep);
        }
    }

    fn started(&mut self, keep: &mut dyn Keep) {
        for resource in resources(keep.view()) {
            bury_unknown(&resource, keep);
            self.settle(&resource, keep);
        }
    }

    fn domain_ended(&mut self, domid: DomId, keep: &mut dyn Keep) {
        self.marked.remove(&domid);
        for resource in self.ties.of_domain.remove(&domid).unwrap_or_default() {
            release(&resource, domid, keep);
            self.settle(&resource, keep);
        }
        if keep.view().value(MARKS).is_none() {
            // They went with a folder above, which had been given to this domain.
            self.marked.iter().for_each(|domid| mark(*domid, keep));
        }
    }

    fn due(&self) -> Option<Instant> {
        self.moves.values().min().copied()
    }

    fn time_passed(&mut self, now: Instant, keep: &mut dyn Keep) {
        let over = self.moves.iter().filter(|(_, deadline)| **deadline <= now);
        let over: Vec<String> = over.map(|(node, _)| node.clone()).collect();
        for node in over {
            self.moves.remove(&node);
            keep.remove(&node);
            if let Some(resource) = Place::of(&node).resource() {
                self.settle(resource, keep);
            }
        }
    }
}

impl Lease {
    /// Does what follows from the state of a resource, until nothing does.
    fn settle(&mut self, resource: &str, keep: &mut dyn Keep) {
        make_folders(resource, keep);
        // Each step takes a waiter or a move away, and nothing adds one.
        for _ in 0..USERS_MAX.saturating_mul(3) {
            match inquire(keep.view(), resource) {
                Ok(state) if step(resource, &state, keep) => {}
                Ok(state) => {
                    self.note_parties(resource, keep);
                    self.note_moves(resource, &state, keep.now());
                    break;
                }
                Err(_) => {
                    self.note_parties(resource, keep);
                    break;
                }
            }
        }
        let is_there = |node: &String| keep.view().value(node).is_some();
        let prefix = format!("{resource}/{MOVE}/");
        self.moves
            .retain(|node, _| !node.starts_with(&prefix) || is_there(node));
    }

    /// Notes who is in it, even if it makes no sense: they are to be gone from it when they end. So are the nodes of those who speak of others.
    fn note_parties(&mut self, resource: &str, keep: &mut dyn Keep) {
        let mut tied = parties(keep.view(), resource);
        for domid in &tied {
            if self.marked.insert(*domid) || !self.ties.has(resource, *domid) {
                mark(*domid, keep);
            }
        }
        tied.append(&mut owners(keep.view(), resource));
        self.ties.set(resource, tied);
    }

    fn note_moves(&mut self, resource: &str, state: &Inquiry, now: Instant) {
        for next in &state.moves {
            let node = format!("{resource}/{MOVE}/{}", next.from);
            let until = now.after(Duration::from_secs(next.seconds.into()));
            self.moves.entry(node).or_insert(until);
        }
    }
}

/// Which domains hold, wait, or are party to a move, and where, or have nodes there.
#[derive(Debug, Default)]
struct Ties {
    of_domain: BTreeMap<DomId, BTreeSet<String>>,
    of_resource: BTreeMap<String, BTreeSet<DomId>>,
}

impl Ties {
    fn has(&self, resource: &str, domid: DomId) -> bool {
        let domids = self.of_resource.get(resource);
        domids.is_some_and(|domids| domids.contains(&domid))
    }

    /// These have to do with a resource, and nobody else.
    fn set(&mut self, resource: &str, domids: BTreeSet<DomId>) {
        let before = self.of_resource.remove(resource).unwrap_or_default();
        for domid in before.difference(&domids) {
            if let Some(resources) = self.of_domain.get_mut(domid) {
                resources.remove(resource);
                if resources.is_empty() {
                    self.of_domain.remove(domid);
                }
            }
        }
        for domid in domids.difference(&before) {
            let resources = self.of_domain.entry(*domid).or_default();
            resources.insert(resource.to_string());
        }
        if !domids.is_empty() {
            self.of_resource.insert(resource.to_string(), domids);
        }
    }
}

/// All resources, in the order in which a domain's are released.
fn resources(view: &dyn View) -> BTreeSet<String> {
    let spaces = names(view, FOLDER).map(|space| format!("{FOLDER}/{space}"));
    let resources = spaces.flat_map(|space| {
        let all = names(view, &space);
        all.map(move |resource| format!("{space}/{resource}"))
    });
    resources.collect()
}

/// Takes one step that follows from the state of a resource, if there is one.
fn step(resource: &str, state: &Inquiry, keep: &mut dyn Keep) -> bool {
    for next in &state.moves {
        let is_complete = state.mode_of(next.to).is_some();
        let holds = state.mode_of(next.from).is_some();
        if is_complete && holds {
            keep.remove(&format!("{resource}/{HOLDER}/{}", next.from));
        }
        if is_complete || !holds {
            keep.remove(&format!("{resource}/{MOVE}/{}", next.from));
            return true;
        }
    }
    let Some((domid, mode)) = state.waiters.first().copied() else {
        return false;
    };
    let holds = state.mode_of(domid) == Some(mode);
    if !holds && state.in_the_way(domid, mode).is_some() {
        return false;
    }
    let waits = format!("{resource}/{WAIT}/{domid}");
    if !holds {
        // Whoever asked may give it back.
        let owner = keep.view().owner(&waits).unwrap_or_default();
        let held = format!("{resource}/{HOLDER}/{domid}");
        keep.give(&held, mode.name().as_bytes(), owner);
    }
    keep.remove(&waits);
    true
}

/// The folders of a resource belong to whom it belongs.
fn make_folders(resource: &str, keep: &mut dyn Keep) {
    let Some(owner) = keep.view().owner(resource) else {
        return;
    };
    for folder in DIRS {
        let folder = format!("{resource}/{folder}");
        if keep.view().value(&folder).is_none() {
            keep.give(&folder, b"", owner);
        }
    }
}

/// Takes a domain out of a resource.
fn release(resource: &str, domid: DomId, keep: &mut dyn Keep) {
    for folder in DIRS {
        keep.remove(&format!("{resource}/{folder}/{domid}"));
    }
    let moves = format!("{resource}/{MOVE}");
    for from in names(keep.view(), &moves) {
        let node = format!("{moves}/{from}");
        let to = keep.view().value(&node).and_then(move_of);
        if to.is_some_and(|(to, _)| to == domid) {
            keep.remove(&node);
        }
    }
}

/// Takes those out of a resource who ended while nobody looked.
fn bury_unknown(resource: &str, keep: &mut dyn Keep) {
    for domid in parties(keep.view(), resource) {
        if keep.view().owner(&mark_of(domid)) != Some(domid) {
            release(resource, domid, keep);
        }
    }
}

/// The domains whose nodes are in a resource.
fn owners(view: &dyn View, resource: &str) -> BTreeSet<DomId> {
    let mut all = BTreeSet::new();
    for folder in DIRS.map(|folder| format!("{resource}/{folder}")) {
        all.extend(view.owner(&folder));
        let nodes = names(view, &folder).map(|name| format!("{folder}/{name}"));
        all.extend(nodes.filter_map(|node| view.owner(&node)));
    }
    all
}

/// The domains that have to do with a resource, whether or not that makes sense.
fn parties(view: &dyn View, resource: &str) -> BTreeSet<DomId> {
    let mut all = BTreeSet::new();
    for folder in DIRS {
        let in_folder = names(view, &format!("{resource}/{folder}"));
        all.extend(in_folder.filter_map(|name| domid_of(&name)));
    }
    let moves = format!("{resource}/{MOVE}");
    for from in names(view, &moves) {
        let next = view.value(&format!("{moves}/{from}"));
        all.extend(next.and_then(move_of).map(|(to, _)| to));
    }
    all
}

/// A node that a domain owns goes with it, even while nobody looks: so another one with the same domid is not taken for it.
fn mark(domid: DomId, keep: &mut dyn Keep) {
    let node = mark_of(domid);
    if keep.view().value(MARKS).is_none() {
        keep.write(MARKS, b"");
    }
    if keep.view().owner(&node) != Some(domid) {
        keep.give(&node, b"", domid);
    }
}

fn mark_of(domid: DomId) -> String {
    format!("{MARKS}/{domid}")
}

/// Whether a change of a node of the lease space may be.
fn judge(access: &Access<'_>, place: &Place<'_>) -> Result<(), Refused> {
    let seen = access.seen();
    let path = access.path().as_str();
    let operation = access.operation();
    let is_senseless = || {
        let state = place.resource().map(|resource| inquire(seen, resource));
        state == Some(Err(Refused::Internal))
    };
    match (place, operation) {
        (_, Operation::SetPerms) => Ok(()),
        (_, Operation::Remove) if access.is_privileged() && is_senseless() => Ok(()),
        (Place::Root | Place::Space, Operation::Remove) => match names(seen, path).next() {
            None => Ok(()),
            Some(_) => Err(first_holder(seen, path)),
        },
        (Place::Root, _) => Ok(()),
        (Place::Space, _) => match seen.value(path) {
            None if count(seen, FOLDER) >= SPACES_MAX => Err(Refused::Quota),
            _ => Ok(()),
        },
        (Place::Resource { space, .. }, Operation::Write(modes)) => {
            register(access, seen, path, space, modes)
        }
        (Place::Resource { .. }, Operation::Remove) => {
            let state = inquire(seen, path)?;
            match state.holders.first().or(state.waiters.first()) {
                Some((domid, _)) => Err(Refused::Conflict(*domid)),
                None => owns(access, path),
            }
        }
        (Place::Resource { .. }, _) => Err(Refused::BadParameter),
        (
            Place::User {
                resource,
                folder,
                domid,
            },
            _,
        ) => {
            let state = inquire(seen, resource)?;
            let domid = domid_of(domid).ok_or(Refused::BadParameter)?;
            speaks_for(access, domid)?;
            match (*folder, operation) {
                (HOLDER, Operation::Write(mode)) => {
                    let mode = usable(access, &state, domid, mode)?;
                    acquire(&state, domid, mode)
                }
                (HOLDER, Operation::Remove) => give_back(&state, domid),
                (WAIT, Operation::Write(mode)) => {
                    let mode = usable(access, &state, domid, mode)?;
                    stand_in_line(&state, domid, mode)
                }
                (WAIT, Operation::Remove) => match state.waits(domid) {
                    true => Ok(()),
                    false => Err(Refused::NotHeld),
                },
                (MOVE, Operation::Write(next)) => prepare(access, &state, domid, next),
                (MOVE, Operation::Remove) => match state.move_from(domid) {
                    Some(_) => Ok(()),
                    None => Err(Refused::NotHeld),
                },
                _ => Err(Refused::BadParameter),
            }
        }
        (Place::Elsewhere { resource }, _) => {
            inquire(seen, resource)?;
            Err(Refused::Unsupported)
        }
        (Place::Outside, _) => Ok(()),
    }
}

/// Who is in the way of removing all that is below a node.
fn first_holder(seen: &dyn View, path: &str) -> Refused {
    let mut below = names(seen, path);
    let holder = below.find_map(|name| inquire(seen, &format!("{path}/{name}")).ok());
    let holder = holder.and_then(|state| Some(state.holders.first()?.0));
    Refused::Conflict(holder.unwrap_or_default())
}

fn register(
    access: &Access<'_>,
    seen: &dyn View,
    path: &str,
    space: &str,
    modes: &[u8],
) -> Result<(), Refused> {
    modes_of(modes).ok_or(Refused::BadParameter)?;
    match inquire(seen, path) {
        Err(Refused::NotRegistered) => {
            let space = format!("{FOLDER}/{space}");
            let is_full = match seen.value(&space) {
                Some(_) => count(seen, &space) >= RESOURCES_MAX,
                None => count(seen, FOLDER) >= SPACES_MAX,
            };
            if is_full { Err(Refused::Quota) } else { Ok(()) }
        }
        // What no resource can be is put right.
        Err(_) => owns(access, path),
        Ok(state) => match state.holders.first().or(state.waiters.first()) {
            Some((domid, _)) if seen.value(path) != Some(modes) => Err(Refused::Conflict(*domid)),
            _ => owns(access, path),
        },
    }
}

/// Only whom a resource belongs to may say what it is.
fn owns(access: &Access<'_>, path: &str) -> Result<(), Refused> {
    if access.is_privileged() || access.seen().owner(path) == Some(access.domid()) {
        Ok(())
    } else {
        Err(Refused::BadParameter)
    }
}

/// A guest speaks for itself, and for the domain that it is there for.
fn speaks_for(access: &Access<'_>, domid: DomId) -> Result<(), Refused> {
    if access.is_privileged() || access.domid() == domid || access.target() == Some(domid) {
        Ok(())
    } else {
        Err(Refused::BadParameter)
    }
}

/// The mode, if the resource has it and the domain is one whose end would be noticed.
fn usable(
    access: &Access<'_>,
    state: &Inquiry,
    domid: DomId,
    mode: &[u8],
) -> Result<Mode, Refused> {
    let mode = Mode::parse(mode).ok_or(Refused::BadParameter)?;
    if !access.is_known(domid) {
        return Err(Refused::BadParameter);
    }
    if state.modes.contains(&mode) {
        Ok(mode)
    } else {
        Err(Refused::Unsupported)
    }
}

/// Acquire without waiting, or complete a move.
fn acquire(state: &Inquiry, domid: DomId, mode: Mode) -> Result<(), Refused> {
    let held = state.mode_of(domid);
    if held == Some(mode) {
        return Ok(());
    }
    if state.move_from(domid).is_some() {
        return Err(Refused::Migrating(domid));
    }
    if let Some(next) = state.moves.iter().find(|next| next.to == domid) {
        return match state.mode_of(next.from) == Some(mode) {
            true => Ok(()),
            false => Err(Refused::BadParameter),
        };
    }
    if let Some(other) = state.in_the_way(domid, mode) {
        return Err(match state.move_from(other) {
            Some(_) => Refused::Migrating(other),
            None => Refused::Conflict(other),
        });
    }
    let is_next = state
        .waiters
        .first()
        .is_none_or(|(first, _)| *first == domid);
    match state.holders.first() {
        Some((holder, _)) if held.is_none() && !is_next => Err(Refused::Conflict(*holder)),
        Some(_) if held.is_none() && state.holders.len() >= USERS_MAX => Err(Refused::Quota),
        _ => Ok(()),
    }
}

fn give_back(state: &Inquiry, domid: DomId) -> Result<(), Refused> {
    match (state.mode_of(domid), state.move_from(domid)) {
        (None, _) => Err(Refused::NotHeld),
        (Some(_), Some(_)) => Err(Refused::Migrating(domid)),
        (Some(_), None) => Ok(()),
    }
}

/// Acquire, and wait if need be.
fn stand_in_line(state: &Inquiry, domid: DomId, mode: Mode) -> Result<(), Refused> {
    if state.move_from(domid).is_some() {
        return Err(Refused::Migrating(domid));
    }
    if state.mode_of(domid).is_some_and(|held| held != mode) {
        return Err(Refused::Conflict(domid));
    }
    let is_full = state.waiters.len() >= USERS_MAX || state.holders.len() >= USERS_MAX;
    if is_full && !state.waits(domid) {
        Err(Refused::Quota)
    } else {
        Ok(())
    }
}

fn prepare(access: &Access<'_>, state: &Inquiry, from: DomId, next: &[u8]) -> Result<(), Refused> {
    let (to, _) = move_of(next).ok_or(Refused::BadParameter)?;
    if to == from || !access.is_known(to) {
        return Err(Refused::BadParameter);
    }
    if state.mode_of(from).is_none() {
        return Err(Refused::NotHeld);
    }
    if state.mode_of(to).is_some() {
        return Err(Refused::Conflict(to));
    }
    let mut moves = state.moves.iter();
    match moves.find(|known| known.from == from || known.to == to || known.to == from) {
        Some(known) => Err(Refused::Migrating(known.from)),
        None => Ok(()),
    }
}
