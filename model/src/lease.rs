//! Leases, said once more from docs/leases.md: who holds, waits for and hands over what, read from the nodes each time anew.

use std::collections::{BTreeMap, BTreeSet};

use crate::acl::owner;
use crate::nodes::{Tree, View, below};
use crate::policy::lies_in;
use crate::{Errno, Model, RESERVED};

const ROOT: &str = "/lease";
const HOLDER: &str = "holder";
const WAIT: &str = "wait";
const MOVE: &str = "move";
const FOLDERS: [&str; 3] = [HOLDER, WAIT, MOVE];
const MODES: [&str; 3] = ["exclusive", "shared", "read-only"];
/// Each domain that has to do with leases owns a node here.
const MARKS: &str = "/tool/xenstored/lease";
const SPACES_MAX: usize = 64;
const RESOURCES_MAX: usize = 1024;
const USERS_MAX: usize = 64;
const WRITE: u32 = 11;
const RM: u32 = 13;
const SET_PERMS: u32 = 14;
const SECOND_NS: u64 = 1_000_000_000;

/// What the policy remembers besides the nodes.
#[derive(Default)]
pub(crate) struct Leases {
    /// The resources in which a domain has been seen.
    users: BTreeMap<u16, BTreeSet<String>>,
    /// When moves are over, by their nodes.
    deadlines: BTreeMap<String, u64>,
}

/// A resource as its nodes have it.
#[derive(Clone, Debug, Default)]
struct Lease {
    modes: Vec<&'static str>,
    holders: Vec<(u16, &'static str)>,
    waiters: Vec<(u16, &'static str)>,
    /// From whom, to whom, and within how many seconds.
    moves: Vec<(u16, u16, u64)>,
}

impl Lease {
    /// Reads a resource: ENOENT if it is not registered, EIO if it makes no sense.
    fn read(tree: &Tree, resource: &str) -> Result<Self, Errno> {
        let node = tree.get(resource).ok_or("ENOENT")?;
        let entries = |folder: &str| -> Result<Vec<(u16, Vec<u8>)>, Errno> {
            let folder = format!("{resource}/{folder}");
            let entry = |name: String| {
                let value = tree.get(format!("{folder}/{name}").as_str());
                let value = value.map(|node| node.value.clone());
                Ok((domid(&name).ok_or("EIO")?, value.ok_or("EIO")?))
            };
            children(tree, &folder).into_iter().map(entry).collect()
        };
        let users = |folder| -> Result<Vec<(u16, &'static str)>, Errno> {
            let all = entries(folder)?.into_iter();
            all.map(|(domid, value)| Ok((domid, mode(&value).ok_or("EIO")?)))
                .collect()
        };
        let moves = entries(MOVE)?.into_iter().map(|(from, value)| {
            let (to, seconds) = successor(&value).ok_or("EIO")?;
            Ok((from, to, seconds))
        });
        let lease = Self {
            modes: modes(&node.value).ok_or("EIO")?,
            holders: users(HOLDER)?,
            waiters: users(WAIT)?,
            moves: moves.collect::<Result<_, Errno>>()?,
        };
        // Who takes over is there before the other one goes.
        let is_over = |domid: u16| {
            let mut moves = lease.moves.iter();
            moves.any(|(from, to, _)| *from == domid && lease.held_by(*to).is_some())
        };
        let stay = lease.holders.iter().filter(|(domid, _)| !is_over(*domid));
        let staying = Self {
            holders: stay.copied().collect(),
            ..lease.clone()
        };
        let clashes = |(domid, mode): &(u16, &'static str)| {
            staying.in_the_way(*domid, mode).is_some() || !lease.modes.contains(mode)
        };
        let is_wrong = |(_, mode): &(u16, &'static str)| !lease.modes.contains(mode);
        if staying.holders.iter().any(clashes) || lease.waiters.iter().any(is_wrong) {
            return Err("EIO");
        }
        Ok(lease)
    }

    fn held_by(&self, domid: u16) -> Option<&'static str> {
        let held = self.holders.iter().find(|(holder, _)| *holder == domid);
        held.map(|(_, mode)| *mode)
    }

    fn waits(&self, domid: u16) -> bool {
        self.waiters.iter().any(|(waiter, _)| *waiter == domid)
    }

    fn is_leaving(&self, domid: u16) -> bool {
        self.moves.iter().any(|(from, ..)| *from == domid)
    }

    /// Another holder beside whom a domain cannot hold it so.
    fn in_the_way(&self, domid: u16, mode: &str) -> Option<u16> {
        let mut holders = self.holders.iter();
        let clash = |held: &str| held == "exclusive" || held != mode;
        let other = holders.find(|(holder, held)| *holder != domid && clash(held));
        other.map(|(holder, _)| *holder)
    }

    fn is_used(&self) -> bool {
        !self.holders.is_empty() || !self.waiters.is_empty()
    }

    /// What must be true of every resource, whatever happens.
    fn check(&self) -> Result<(), String> {
        for (domid, mode) in &self.holders {
            if let Some(other) = self.in_the_way(*domid, mode) {
                return Err(format!("domain {domid} holds it {mode} beside {other}"));
            }
            if !self.modes.contains(mode) {
                return Err(format!("it cannot be held {mode}"));
            }
        }
        match self.waiters.first() {
            Some((domid, mode)) if self.in_the_way(*domid, mode).is_none() => {
                Err(format!("domain {domid} waits for nobody"))
            }
            _ => Ok(()),
        }
    }
}

/// The parts of a path in the lease space.
struct Place<'p> {
    space: &'p str,
    resource: Option<String>,
    /// What follows the resource.
    rest: Vec<&'p str>,
}

impl<'p> Place<'p> {
    fn of(path: &'p str) -> Option<Self> {
        let below = path.strip_prefix(ROOT)?;
        if !below.is_empty() && !below.starts_with('/') {
            return None;
        }
        let mut names = below.split('/').skip(1);
        let space = names.next().unwrap_or_default();
        let resource = names.next().map(|name| format!("{ROOT}/{space}/{name}"));
        Some(Self {
            space,
            resource,
            rest: names.collect(),
        })
    }
}

/// The domains that are named in a resource, whether or not it makes sense.
fn parties(tree: &Tree, resource: &str) -> BTreeSet<u16> {
    let mut all = BTreeSet::new();
    for folder in FOLDERS {
        for name in children(tree, &format!("{resource}/{folder}")) {
            let node = tree.get(format!("{resource}/{folder}/{name}").as_str());
            let next = node.and_then(|node| successor(&node.value));
            let next = next.filter(|_| folder == MOVE);
            all.extend(domid(&name).into_iter().chain(next.map(|(to, _)| to)));
        }
    }
    all
}

/// The resource that a path belongs to.
fn resource_of(path: &str) -> Option<String> {
    Place::of(path)?.resource
}

fn children(tree: &Tree, path: &str) -> Vec<String> {
    let node = tree.get(path);
    let names = node.into_iter().flat_map(|node| &node.children);
    names.map(|name| name.to_string()).collect()
}

fn mode(text: &[u8]) -> Option<&'static str> {
    MODES.into_iter().find(|mode| mode.as_bytes() == text)
}

fn modes(text: &[u8]) -> Option<Vec<&'static str>> {
    let words: Option<Vec<&'static str>> = text.split(|byte| *byte == b',').map(mode).collect();
    let words = words?;
    let different: BTreeSet<&str> = words.iter().copied().collect();
    (different.len() == words.len()).then_some(words)
}

fn plain(text: &str, max: u64) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number <= max && number.to_string() == text).then_some(number)
}

fn domid(text: &str) -> Option<u16> {
    let number = plain(text, u64::from(RESERVED) - 1)?;
    u16::try_from(number).ok()
}

/// To whom, and within how many seconds.
fn successor(text: &[u8]) -> Option<(u16, u64)> {
    let text = std::str::from_utf8(text).ok()?;
    let (to, seconds) = match text.split_once(' ') {
        Some((to, seconds)) => (to, plain(seconds, 600)?),
        None => (text, 60),
    };
    (seconds > 0).then_some((domid(to)?, seconds))
}

impl View<'_> {
    fn owner_of(&self, path: &str) -> Option<u16> {
        let node = self.tree.get(path)?;
        owner(&node.acl).map(|who| who.domid())
    }

    /// Whether a change that the lists allow is one that leases allow.
    pub(crate) fn judge_lease(&self, kind: u32, path: &str, payload: &[u8]) -> Result<(), Errno> {
        if !matches!(kind, 11..=14) {
            return Ok(());
        }
        if lies_in(path, MARKS) || kind == RM && lies_in(MARKS, path) {
            return Err("EACCES");
        }
        let Some(place) = Place::of(path) else {
            return Ok(());
        };
        let tree = &*self.tree;
        if kind == SET_PERMS {
            return Ok(());
        }
        let value = payload.splitn(2, |byte| *byte == 0).nth(1);
        let value = value.unwrap_or_default();
        let Some(resource) = &place.resource else {
            return self.judge_space(kind, path, place.space);
        };
        let lease = Lease::read(tree, resource);
        if kind == RM && self.subject.privileged && matches!(lease, Err("EIO")) {
            return Ok(());
        }
        match place.rest.as_slice() {
            [] => self.judge_resource(kind, resource, place.space, value),
            [folder, name] if FOLDERS.contains(folder) => {
                let lease = lease?;
                let user = domid(name).ok_or("EINVAL")?;
                self.speaks_for(user)?;
                self.judge_user(kind, folder, user, &lease, value)
            }
            _ => lease.and(Err("ENOSYS")),
        }
    }

    fn judge_space(&self, kind: u32, path: &str, space: &str) -> Result<(), Errno> {
        let tree = &*self.tree;
        if kind == RM {
            let is_empty = children(tree, path).is_empty();
            return if is_empty { Ok(()) } else { Err("EBUSY") };
        }
        let is_new = !space.is_empty() && !tree.contains_key(path);
        if is_new && children(tree, ROOT).len() >= SPACES_MAX {
            return Err("ENOSPC");
        }
        Ok(())
    }

    fn judge_resource(
        &self,
        kind: u32,
        resource: &str,
        space: &str,
        value: &[u8],
    ) -> Result<(), Errno> {
        let tree = &*self.tree;
        let owns =
            self.subject.privileged || self.owner_of(resource) == Some(self.subject.who.domid());
        let owns = if owns { Ok(()) } else { Err("EINVAL") };
        let lease = Lease::read(tree, resource);
        match kind {
            WRITE => {
                modes(value).ok_or("EINVAL")?;
                let space = format!("{ROOT}/{space}");
                let count = |path: &str| children(tree, path).len();
                match lease {
                    Err("ENOENT") if tree.contains_key(space.as_str()) => {
                        let is_full = count(&space) >= RESOURCES_MAX;
                        if is_full { Err("ENOSPC") } else { Ok(()) }
                    }
                    Err("ENOENT") if count(ROOT) >= SPACES_MAX => Err("ENOSPC"),
                    Err("ENOENT") => Ok(()),
                    Ok(lease) if lease.is_used() && self.value_of(resource) != value => {
                        Err("EBUSY")
                    }
                    _ => owns,
                }
            }
            RM => match lease?.is_used() {
                true => Err("EBUSY"),
                false => owns,
            },
            _ => Err("EINVAL"),
        }
    }

    fn value_of(&self, path: &str) -> &[u8] {
        let node = self.tree.get(path);
        node.map_or(&[], |node| &node.value)
    }

    /// A guest speaks for itself and for its target.
    fn speaks_for(&self, user: u16) -> Result<(), Errno> {
        let target = self.subject.target.map(|target| target.domid());
        let may =
            self.subject.privileged || self.subject.who.domid() == user || target == Some(user);
        if may { Ok(()) } else { Err("EINVAL") }
    }

    fn judge_user(
        &self,
        kind: u32,
        folder: &str,
        user: u16,
        lease: &Lease,
        value: &[u8],
    ) -> Result<(), Errno> {
        let held = lease.held_by(user);
        match (folder, kind) {
            (HOLDER, RM) if held.is_none() => Err("EPERM"),
            (HOLDER, RM) if lease.is_leaving(user) => Err("EAGAIN"),
            (WAIT, RM) if !lease.waits(user) => Err("EPERM"),
            (MOVE, RM) if !lease.is_leaving(user) => Err("EPERM"),
            (_, RM) => Ok(()),
            (HOLDER, WRITE) => acquire(lease, user, self.usable(user, lease, value)?),
            (WAIT, WRITE) => {
                let mode = self.usable(user, lease, value)?;
                let is_full = lease.waiters.len() >= USERS_MAX || lease.holders.len() >= USERS_MAX;
                match held {
                    _ if lease.is_leaving(user) => Err("EAGAIN"),
                    Some(held) if held != mode => Err("EBUSY"),
                    _ if is_full && !lease.waits(user) => Err("ENOSPC"),
                    _ => Ok(()),
                }
            }
            (MOVE, WRITE) => {
                let (to, _) = successor(value).ok_or("EINVAL")?;
                if to == user || !self.domains.contains_key(&to) {
                    return Err("EINVAL");
                }
                if held.is_none() {
                    return Err("EPERM");
                }
                if lease.held_by(to).is_some() {
                    return Err("EBUSY");
                }
                let concerns = |(from, next, _): &(u16, u16, u64)| {
                    *from == user || *next == to || *next == user
                };
                let is_moving = lease.moves.iter().any(concerns);
                if is_moving { Err("EAGAIN") } else { Ok(()) }
            }
            _ => Err("EINVAL"),
        }
    }

    fn usable(&self, user: u16, lease: &Lease, value: &[u8]) -> Result<&'static str, Errno> {
        let mode = mode(value).ok_or("EINVAL")?;
        if !self.domains.contains_key(&user) {
            return Err("EINVAL");
        }
        let has = lease.modes.contains(&mode);
        if has { Ok(mode) } else { Err("ENOSYS") }
    }
}

/// Whether a domain may have it now: as a new holder, in another mode, or as the one to whom it moves.
fn acquire(lease: &Lease, user: u16, mode: &str) -> Result<(), Errno> {
    let held = lease.held_by(user);
    if held == Some(mode) {
        return Ok(());
    }
    if lease.is_leaving(user) {
        return Err("EAGAIN");
    }
    if let Some((from, ..)) = lease.moves.iter().find(|(_, to, _)| *to == user) {
        let is_same = lease.held_by(*from) == Some(mode);
        return if is_same { Ok(()) } else { Err("EINVAL") };
    }
    if let Some(other) = lease.in_the_way(user, mode) {
        return Err(if lease.is_leaving(other) {
            "EAGAIN"
        } else {
            "EBUSY"
        });
    }
    let is_next = lease
        .waiters
        .first()
        .is_none_or(|(first, _)| *first == user);
    match held {
        Some(_) => Ok(()),
        None if lease.holders.is_empty() => Ok(()),
        None if !is_next => Err("EBUSY"),
        None if lease.holders.len() >= USERS_MAX => Err("ENOSPC"),
        None => Ok(()),
    }
}

impl Model {
    /// A change in the lease space was allowed, or is committed: what follows from it, follows.
    pub(crate) fn settle_leases<'p>(&mut self, changed: impl Iterator<Item = &'p str>) {
        if !self.rules.lease {
            return;
        }
        let resources: Vec<String> = changed.filter_map(resource_of).collect();
        for resource in resources {
            self.settle(&resource);
        }
    }

    /// The policy begins to be looked at.
    pub(crate) fn begin_leases(&mut self) {
        self.leases = Leases::default();
        if !self.rules.lease {
            self.leases_unwatched = true;
            return;
        }
        for resource in self.resources() {
            for domid in parties(&self.tree, &resource) {
                if self.owner_of(&mark_of(domid)) != Some(domid) {
                    self.release_lease(&resource, domid);
                }
            }
            self.settle(&resource);
        }
    }

    /// What a domain had that is no more is free.
    pub(crate) fn end_leases(&mut self, domid: u16) {
        for resource in self.leases.users.remove(&domid).unwrap_or_default() {
            self.release_lease(&resource, domid);
            self.settle(&resource);
        }
        if !self.tree.contains_key(MARKS) {
            let all: Vec<u16> = self.leases.users.keys().copied().collect();
            all.into_iter().for_each(|domid| self.mark(domid));
        }
    }

    /// Moves whose time is over end.
    pub(crate) fn time_leases(&mut self) {
        let now = self.now_ns;
        let all = self.leases.deadlines.iter();
        let over = all.filter(|(_, deadline)| **deadline <= now);
        let over: Vec<String> = over.map(|(node, _)| node.clone()).collect();
        for node in over {
            self.leases.deadlines.remove(&node);
            self.drop_node(&node);
            if let Some(resource) = resource_of(&node) {
                self.settle(&resource);
            }
        }
    }

    /// Whether every resource is what the policy promises, and nobody who is no more has to do with any.
    pub(crate) fn check_leases(&mut self) {
        if !self.rules.lease {
            return;
        }
        for resource in self.resources() {
            let lease = Lease::read(&self.tree, &resource);
            if matches!(lease, Err("EIO")) && !self.leases_unwatched {
                self.fault(format!(
                    "{resource} makes no sense: {:?}",
                    self.nodes_in(&resource)
                ));
            }
            if let Err(why) = lease.as_ref().map_or(Ok(()), Lease::check) {
                self.fault(format!("{resource}: {why}: {lease:?}"));
            }
            let folders = FOLDERS.map(|folder| format!("{resource}/{folder}"));
            let missing = folders
                .iter()
                .find(|folder| !self.tree.contains_key(folder.as_str()));
            if let Some(folder) = missing.filter(|_| !self.leases_unwatched) {
                self.fault(format!("{folder} is missing"));
            }
            let mut parties = parties(&self.tree, &resource).into_iter();
            if let Some(domid) = parties.find(|domid| !self.domains.contains_key(domid)) {
                self.fault(format!("{resource}: domain {domid} is no more: {lease:?}"));
            }
        }
    }

    /// How many leases are held, waited for and handed over, for the tables of a simulation.
    #[must_use]
    pub fn leases(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for resource in self.resources() {
            if let Ok(lease) = Lease::read(&self.tree, &resource) {
                let parts = [lease.holders.len(), lease.waiters.len(), lease.moves.len()];
                counts
                    .iter_mut()
                    .zip(parts)
                    .for_each(|(count, part)| *count += part);
            }
        }
        counts
    }

    fn nodes_in(&self, path: &str) -> Vec<(String, String)> {
        let paths = below(&self.tree, path).into_iter();
        let entry = |path: String| {
            let value = &self.tree.get(path.as_str())?.value;
            Some((path, value.escape_ascii().to_string()))
        };
        paths.filter_map(entry).collect()
    }

    fn resources(&self) -> BTreeSet<String> {
        let spaces = children(&self.tree, ROOT).into_iter();
        let spaces = spaces.map(|space| format!("{ROOT}/{space}"));
        let resources = spaces.flat_map(|space| {
            let names = children(&self.tree, &space).into_iter();
            names.map(move |name| format!("{space}/{name}"))
        });
        resources.collect()
    }

    fn owner_of(&self, path: &str) -> Option<u16> {
        let node = self.tree.get(path)?;
        owner(&node.acl).map(|who| who.domid())
    }

    /// Makes what is missing, lets moves end and those who wait have their turn, until nothing follows any more.
    fn settle(&mut self, resource: &str) {
        if let Some(owner) = self.owner_of(resource) {
            for folder in FOLDERS {
                let folder = format!("{resource}/{folder}");
                if !self.tree.contains_key(folder.as_str()) {
                    self.keep(&folder, "", owner);
                }
            }
        }
        let mut lease = Lease::read(&self.tree, resource);
        while let Ok(present) = &lease
            && self.follow(resource, present)
        {
            lease = Lease::read(&self.tree, resource);
        }
        self.note_parties(resource);
        for (from, _, seconds) in lease.map_or(Vec::new(), |lease| lease.moves) {
            let until = self.now_ns.saturating_add(seconds * SECOND_NS);
            let node = format!("{resource}/{MOVE}/{from}");
            self.leases.deadlines.entry(node).or_insert(until);
        }
        let prefix = format!("{resource}/{MOVE}/");
        let tree = &self.tree;
        let is_open = |node: &str| !node.starts_with(&prefix) || tree.contains_key(node);
        self.leases.deadlines.retain(|node, _| is_open(node));
    }

    fn follow(&mut self, resource: &str, lease: &Lease) -> bool {
        for (from, to, _) in &lease.moves {
            let is_over = lease.held_by(*to).is_some();
            let holds = lease.held_by(*from).is_some();
            if is_over && holds {
                self.drop_node(&format!("{resource}/{HOLDER}/{from}"));
            }
            if is_over || !holds {
                self.drop_node(&format!("{resource}/{MOVE}/{from}"));
                return true;
            }
        }
        let Some((next, mode)) = lease.waiters.first().copied() else {
            return false;
        };
        let has = lease.held_by(next) == Some(mode);
        if !has && lease.in_the_way(next, mode).is_some() {
            return false;
        }
        let waits = format!("{resource}/{WAIT}/{next}");
        if !has {
            let owner = self.owner_of(&waits).unwrap_or_default();
            self.keep(&format!("{resource}/{HOLDER}/{next}"), mode, owner);
        }
        self.drop_node(&waits);
        true
    }

    fn note_parties(&mut self, resource: &str) {
        for domid in parties(&self.tree, resource) {
            let resources = self.leases.users.entry(domid).or_default();
            if !resources.insert(resource.to_owned()) {
                continue;
            }
            self.mark(domid);
        }
    }

    fn mark(&mut self, domid: u16) {
        if !self.tree.contains_key(MARKS) {
            self.keep(MARKS, "", self.settings.privileged);
        }
        if self.owner_of(&mark_of(domid)) != Some(domid) {
            self.keep(&mark_of(domid), "", domid);
        }
    }

    /// Takes a domain out of a resource: as holder, as one who waits, and as party to moves.
    fn release_lease(&mut self, resource: &str, domid: u16) {
        for folder in FOLDERS {
            self.drop_node(&format!("{resource}/{folder}/{domid}"));
        }
        let folder = format!("{resource}/{MOVE}");
        for from in children(&self.tree, &folder) {
            let node = format!("{folder}/{from}");
            let next = self.tree.get(node.as_str());
            let next = next.and_then(|next| successor(&next.value));
            if next.is_some_and(|(to, _)| to == domid) {
                self.drop_node(&node);
            }
        }
    }
}

fn mark_of(domid: u16) -> String {
    format!("{MARKS}/{domid}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_as_the_documentation_has_them() {
        assert_eq!(
            modes(b"shared,exclusive"),
            Some(vec!["shared", "exclusive"])
        );
        for wrong in [&b""[..], b"shared,", b"shared,shared", b"Shared"] {
            assert_eq!(modes(wrong), None);
        }
        assert_eq!(successor(b"7"), Some((7, 60)));
        assert_eq!(successor(b"7 600"), Some((7, 600)));
        for wrong in ["", "x", "07", "7 0", "7 601", "7 5 5", "32752", "7 "] {
            assert_eq!(successor(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn two_who_do_not_go_together_are_found() {
        let lease = |holders: &[(u16, &'static str)]| Lease {
            modes: MODES.to_vec(),
            holders: holders.to_vec(),
            ..Lease::default()
        };
        assert!(lease(&[(1, "shared"), (2, "shared")]).check().is_ok());
        assert!(lease(&[(1, "read-only"), (2, "read-only")]).check().is_ok());
        assert!(lease(&[(1, "exclusive")]).check().is_ok());
        assert!(
            lease(&[(1, "exclusive"), (2, "exclusive")])
                .check()
                .is_err()
        );
        assert!(lease(&[(1, "exclusive"), (2, "shared")]).check().is_err());
        assert!(lease(&[(1, "shared"), (2, "read-only")]).check().is_err());
    }
}
