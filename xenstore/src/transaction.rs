//! Transactions: a snapshot to work on, and a commit that merges or refuses.
//!
//! A transaction keeps its requests and their answers. If nothing else was committed meanwhile, its nodes become the store's. Else the
//! requests run once more, on the store as it is now, and count if every answer is the same: then the client could not have told
//! whether all of them ran just now, which is what strict serializability means. So only a read that mattered makes a conflict.
//!
//! A transaction inside another begins with the nodes of that one, its parent, and is merged into it by the same rule: as if its requests
//! had run in the parent at its end. So what the outermost one commits is one list of requests, and conflicts are with what is outside.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
#[cfg(feature = "journal")]
use alloc::{format, string::String};
use core::time::Duration;
use core::{iter, mem};

use crate::answer::Answer;
use crate::bugs;
use crate::conflict::{Conflict, Opening};
use crate::database::{Refusal, Setting, Work};
use crate::domain::{Domain, Domains};
use crate::effects::{Charge, Effects, SPARE_PLACES};
use crate::faults;
use crate::ids::TxId;
use crate::path::{Path, PathRef};
use crate::quota::{Quota, within};
use crate::run::cost_of;
use crate::storage::Storage;
use crate::time::Instant;
use crate::touched::Touched;
use crate::watch::Watches;
use crate::wire::{Errno, Kind, strings};

/// What the requests of a transaction may cost, if quota `transaction-nodes` is not more than this, else as much as that: at a merge they
/// all run again, at one go, while everybody else waits.
const COST_MAX: u64 = 1024;
/// Bytes that keeping a request costs besides its payload and answer.
const KEPT_BYTES: usize = 64;
/// Bytes of payloads and of paths for which there is memory in a log that is kept for another transaction; and requests and nodes, as many as
/// [`SPARE_PLACES`].
const SPARE_BYTES: usize = 8192;

/// The open transactions of one connection.
pub(crate) struct Transactions<S: Storage> {
    pub(crate) open: BTreeMap<TxId, Box<Transaction<S>>>,
    /// Each that is inside another, behind that one.
    nested: BTreeSet<(TxId, TxId)>,
    /// The id given last, if any.
    pub(crate) last: Option<TxId>,
    /// Bytes of all of them.
    bytes: u64,
    /// What commits have cost, and nobody was told.
    work: u64,
    /// Why the one that ended last could not be merged, until that was asked.
    conflict: Option<Conflict>,
    /// Memory of the one that ended last, until that was asked for.
    spare: Option<Box<Log<S>>>,
}

impl<S: Storage> Default for Transactions<S> {
    fn default() -> Self {
        Self {
            open: BTreeMap::new(),
            nested: BTreeSet::new(),
            last: None,
            bytes: 0,
            work: 0,
            conflict: None,
            spare: None,
        }
    }
}

impl<S: Storage> Transactions<S> {
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Counts again what they hold.
    #[cfg(feature = "journal")]
    pub(crate) fn recount(&self) -> Result<(), String> {
        let each = |kept: &Kept| {
            let answer = kept.answer.as_ref().map_or(0, Answer::footprint);
            KEPT_BYTES.saturating_add(answer)
        };
        let bytes = |transaction: &Transaction<S>| {
            let log = &transaction.log;
            let kept = log.kept.iter().map(each);
            let kept = kept.fold(log.payloads.len(), usize::saturating_add);
            let kept = u64::try_from(kept).unwrap_or(u64::MAX);
            let noted = transaction.nodes.noted_bytes();
            log.touched
                .bytes()
                .saturating_add(kept)
                .saturating_add(noted)
        };
        let all = self.open.values().map(|transaction| bytes(transaction));
        let found = all.fold(0, u64::saturating_add);
        if found == self.bytes {
            Ok(())
        } else {
            let counted = self.bytes;
            Err(format!(
                "transactions hold {found} bytes, {counted} are counted"
            ))
        }
    }

    pub(crate) fn has(&self, id: TxId) -> bool {
        self.open.contains_key(&id)
    }

    /// Bytes that they hold beyond what they share with the store.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the end of a transaction may cost, if it is open.
    pub(crate) fn cost_of(&self, id: TxId) -> u64 {
        self.open.get(&id).map_or(0, |transaction| transaction.cost)
    }

    /// What commits have cost since this was asked last, in units of a request's cost.
    pub(crate) fn take_work(&mut self) -> u64 {
        mem::take(&mut self.work)
    }

    /// Keeps a new transaction, under the next id that is not in use.
    pub(crate) fn add(&mut self, transaction: Transaction<S>) -> TxId {
        let mut id = self.last.map_or(TxId::FIRST, TxId::next);
        while self.has(id) {
            id = id.next();
        }
        self.last = Some(id);
        self.restore(id, Box::new(transaction));
        id
    }

    /// Keeps a transaction under its id.
    pub(crate) fn restore(&mut self, id: TxId, transaction: Box<Transaction<S>>) {
        self.bytes = self.bytes.saturating_add(transaction.bytes);
        if let Some(parent) = transaction.parent {
            self.nested.insert((parent, id));
        }
        self.open.insert(id, transaction);
    }

    /// Those directly inside another, the eldest first as far as ids tell.
    pub(crate) fn inside(&self, parent: TxId) -> impl Iterator<Item = TxId> {
        let all = self.nested.range((parent, TxId::FIRST)..);
        all.take_while(move |(of, _)| *of == parent)
            .map(|(_, id)| *id)
    }

    fn remove(&mut self, id: TxId) -> Option<Box<Transaction<S>>> {
        let transaction = self.open.remove(&id)?;
        self.bytes = self.bytes.saturating_sub(transaction.bytes);
        if let Some(parent) = transaction.parent {
            self.nested.remove(&(parent, id));
        }
        Some(transaction)
    }

    /// Drops those inside one that has ended, and those inside them.
    fn end_inside(&mut self, id: TxId) {
        if self.nested.is_empty() {
            return;
        }
        let mut doomed: Vec<TxId> = self.inside(id).collect();
        while let Some(id) = doomed.pop() {
            doomed.extend(self.inside(id));
            self.remove(id);
        }
    }

    /// The one around all that a transaction is inside of; itself, if there is none or it is not open.
    pub(crate) fn outermost(&self, id: TxId) -> TxId {
        let parent = |id: &TxId| self.open.get(id)?.parent;
        iter::successors(Some(id), parent).last().unwrap_or(id)
    }

    /// Drops all that is inside the transactions in which a request was that crashed.
    pub(crate) fn end_inside_broken(&mut self, at_work: [Option<TxId>; 2]) {
        for id in at_work.into_iter().flatten() {
            self.end_inside(id);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.open.clear();
        self.nested.clear();
        self.bytes = 0;
    }

    /// Memory of the one that ended last, for the next one of whomever.
    pub(crate) fn take_spare(&mut self) -> Option<Box<Log<S>>> {
        self.spare.take()
    }

    /// Gives up those that are open for so long, with all that they hold; answers how many these are. `none` is a store without anything.
    pub(crate) fn give_up(&mut self, none: &S, now: Instant, limit: Duration) -> usize {
        let is_old = |of: &Transaction<S>| !of.is_given_up && now.since(of.opening.since) >= limit;
        let open = self.open.iter();
        let old = open.filter(|(_, transaction)| is_old(transaction));
        let mut old: Vec<TxId> = old.map(|(id, _)| *id).collect();
        let mut given_up = 0_usize;
        while let Some(id) = old.pop() {
            old.extend(self.inside(id));
            if let Some(transaction) = self.open.get_mut(&id)
                && !transaction.is_given_up
            {
                self.bytes = self.bytes.saturating_sub(transaction.bytes);
                transaction.give_up(none);
                given_up = given_up.saturating_add(1);
            }
        }
        given_up
    }

    /// Why the one that ended last could not be merged.
    pub(crate) fn take_conflict(&mut self) -> Option<Conflict> {
        self.conflict.take()
    }

    /// Runs a request on a transaction's private nodes.
    pub(crate) fn execute(
        &mut self,
        id: TxId,
        setting: &mut Setting<'_>,
        kind: Kind,
        payload: &[u8],
    ) -> Result<Answer, Refusal> {
        if !self.nested.is_empty() {
            let parent = self.open.get(&id).and_then(|own| own.parent);
            setting.pending = self.pending(parent, setting);
        }
        let transaction = self.open.get_mut(&id).ok_or(Errno::ENOENT)?;
        let before = transaction.bytes;
        let answer = transaction.execute(setting, kind, payload);
        let grown = transaction.bytes.saturating_sub(before);
        self.bytes = self.bytes.saturating_add(grown);
        answer
    }

    /// Ends a transaction without more.
    ///
    /// # Errors
    /// ENOENT if it is not open.
    pub(crate) fn abort(&mut self, id: TxId) -> Result<(), Errno> {
        let transaction = self.remove(id).ok_or(Errno::ENOENT)?;
        self.end_inside(id);
        self.spare = transaction.log.reusable();
        Ok(())
    }

    /// What the client has pending in a transaction and in all that this one is inside of.
    fn pending(&self, innermost: Option<TxId>, setting: &Setting<'_>) -> Charge {
        let open = |id: &TxId| self.open.get(id);
        let all = iter::successors(innermost.as_ref().and_then(open), |own| {
            own.parent.as_ref().and_then(open)
        });
        all.map(|own| own.log.effects.charge_of(setting.subject.incarnation))
            .fold(Charge::default(), Charge::plus)
    }

    /// Whether a transaction is inside another.
    pub(crate) fn is_inside(&self, id: TxId) -> bool {
        self.open.get(&id).is_some_and(|own| own.parent.is_some())
    }

    /// Ends a transaction and those inside it, and makes its changes the store's, or without one those of the transaction that it is inside
    /// of; or changes nothing. While the host must be asked first it stays open.
    ///
    /// # Errors
    /// Those of [`Transaction::commit`] and [`Transaction::take_in`].
    pub(crate) fn commit(
        &mut self,
        id: TxId,
        setting: &mut Setting<'_>,
        store: Option<Target<'_, S>>,
    ) -> Result<(), Refusal> {
        faults::may_crash();
        let mut transaction = self.remove(id).ok_or(Errno::ENOENT)?;
        let committed = match (store, transaction.parent) {
            (Some(store), None) => transaction.commit(setting, store),
            (None, Some(parent)) => self.merge(parent, &mut transaction, setting),
            _ => Err(Errno::EIO.into()),
        };
        self.work = self.work.saturating_add(mem::take(&mut transaction.work));
        if let Err(Refusal::Wait(_)) = committed {
            self.restore(id, transaction);
            return committed;
        }
        self.end_inside(id);
        let Transaction {
            log,
            opening,
            conflict,
            ..
        } = *transaction;
        self.conflict = conflict.map(|path| Conflict { opening, path });
        self.spare = log.reusable();
        committed
    }

    /// Makes the changes of a transaction those of the one that it is inside of.
    fn merge(
        &mut self,
        parent: TxId,
        child: &mut Transaction<S>,
        setting: &mut Setting<'_>,
    ) -> Result<(), Refusal> {
        setting.pending = self.pending(Some(parent), setting);
        let parent = self.open.get_mut(&parent).ok_or(Errno::EAGAIN)?;
        let before = parent.bytes;
        let merged = parent.take_in(child, setting);
        let grown = parent.bytes.saturating_sub(before);
        self.bytes = self.bytes.saturating_add(grown);
        merged
    }
}

/// The store's nodes, where to note what is done to them, and whose changes alone are noted, if not all.
pub(crate) struct Target<'a, S: Storage> {
    pub(crate) nodes: &'a mut S,
    pub(crate) effects: &'a mut Effects<S>,
    pub(crate) watches: Option<&'a Watches>,
}

/// An open transaction.
pub(crate) struct Transaction<S: Storage> {
    pub(crate) base: S,
    pub(crate) nodes: S,
    pub(crate) log: Box<Log<S>>,
    /// What it costs to run them again.
    cost: u64,
    /// What running them again has cost.
    work: u64,
    /// Bytes that it holds beyond what it shares with the store.
    bytes: u64,
    pub(crate) failed: bool,
    /// It holds nothing any more, or was open in another instance of the server, which did not hand its nodes over; its requests and its end
    /// are answered with EAGAIN.
    pub(crate) is_given_up: bool,
    /// Domains that had ended when it began: what it gave to one that ended since must not become the store's.
    pub(crate) deaths: u64,
    pub(crate) opening: Opening,
    /// The one that it is inside of.
    pub(crate) parent: Option<TxId>,
    /// What the first request names that was answered otherwise when it ran again.
    conflict: Option<Path>,
}

/// What a transaction has done so far.
pub(crate) struct Log<S: Storage> {
    pub(crate) effects: Effects<S>,
    pub(crate) touched: Touched,
    kept: Vec<Kept>,
    /// The payloads of the kept requests, one behind the other.
    payloads: Vec<u8>,
}

impl<S: Storage> Default for Log<S> {
    fn default() -> Self {
        Self {
            effects: Effects::default(),
            touched: Touched::default(),
            kept: Vec::new(),
            payloads: Vec::new(),
        }
    }
}

impl<S: Storage> Log<S> {
    /// Keeps the memory of effects that were taken, if it is not too much.
    fn reuse(&mut self, mut effects: Effects<S>) {
        effects.clear();
        self.effects = effects;
    }

    /// Its memory for another transaction, if it is not too much.
    fn reusable(mut self: Box<Self>) -> Option<Box<Self>> {
        let effects = mem::take(&mut self.effects);
        self.reuse(effects);
        let (touches, path_bytes) = self.touched.capacity();
        let places = touches.max(self.kept.capacity());
        let bytes = path_bytes.max(self.payloads.capacity());
        self.touched.clear();
        self.kept.clear();
        self.payloads.clear();
        (places <= SPARE_PLACES && bytes <= SPARE_BYTES).then_some(self)
    }
}

impl<S: Storage> Log<S> {
    /// Room for all that another one has.
    fn make_room(&mut self, other: &Self) -> Option<()> {
        self.kept.try_reserve(other.kept.len()).ok()?;
        self.payloads.try_reserve(other.payloads.len()).ok()?;
        self.touched.make_room_for(&other.touched)
    }

    /// Takes what another one has behind its own; there is room for it.
    fn take_in(&mut self, other: &mut Self) {
        let start = self.payloads.len();
        self.payloads.append(&mut other.payloads);
        for kept in other.kept.drain(..) {
            self.kept.push(Kept {
                end: start.saturating_add(kept.end),
                ..kept
            });
        }
        self.touched.take_in(&other.touched);
        self.effects.take_in(&mut other.effects);
    }
}

/// A request and what it was answered.
struct Kept {
    kind: Kind,
    /// Where its payload ends.
    end: usize,
    answer: Result<Answer, Errno>,
}

impl<S: Storage> Transaction<S> {
    /// Begins with the store as it is: a pointer is copied.
    pub(crate) fn start(nodes: &S, domains: &Domains, opening: Opening, log: Box<Log<S>>) -> Self {
        Self {
            base: nodes.clone(),
            nodes: nodes.clone(),
            log,
            cost: 0,
            work: 0,
            bytes: nodes.noted_bytes(),
            failed: false,
            is_given_up: false,
            deaths: domains.deaths(),
            opening,
            parent: None,
            conflict: None,
        }
    }

    fn give_up(&mut self, none: &S) {
        self.is_given_up = true;
        (self.base, self.nodes) = (none.clone(), none.clone());
        *self.log = Log::default();
        self.bytes = 0;
    }

    /// Runs a request on the private nodes.
    fn execute(
        &mut self,
        setting: &mut Setting<'_>,
        kind: Kind,
        payload: &[u8],
    ) -> Result<Answer, Refusal> {
        if self.is_given_up {
            return Err(Errno::EAGAIN.into());
        }
        self.check_room(setting, payload)?;
        let touched = self.held();
        let mut work = Work {
            setting,
            nodes: &mut self.nodes,
            effects: &mut self.log.effects,
            watches: None,
            touched: Some(&mut self.log.touched),
        };
        let answer = work.execute(kind, payload);
        let touched = self.held().saturating_sub(touched);
        self.bytes = self.bytes.saturating_add(touched);
        let answer = match answer {
            Ok(answer) => Ok(answer),
            Err(Refusal::Errno(errno)) => Err(errno),
            Err(wait @ (Refusal::Wait(_) | Refusal::Later)) => return Err(wait),
        };
        self.failed |= self.log.touched.overflowed;
        self.keep(kind, payload, answer.clone());
        answer.map_err(Refusal::from)
    }

    /// Bytes that it holds besides its requests and their answers.
    #[inline]
    fn held(&self) -> u64 {
        let touched = self.log.touched.bytes();
        touched.saturating_add(self.nodes.noted_bytes())
    }

    /// Makes the transaction's changes the store's, and notes their `effects`; or changes nothing.
    ///
    /// # Errors
    /// ENOMEM if it failed before; ENOSPC if a domain would own too many nodes; EAGAIN for a conflict, or if it was given up. Or the host
    /// must be asked first.
    fn commit(&mut self, setting: &mut Setting<'_>, store: Target<'_, S>) -> Result<(), Refusal> {
        let committed = self.commit_to(setting, store.nodes, store.effects, store.watches);
        if bugs::XSA_415 && committed.is_err() {
            *store.nodes = self.nodes.clone();
        }
        committed
    }

    fn commit_to(
        &mut self,
        setting: &mut Setting<'_>,
        store: &mut S,
        effects: &mut Effects<S>,
        watches: Option<&Watches>,
    ) -> Result<(), Refusal> {
        if self.is_given_up {
            return Err(Errno::EAGAIN.into());
        }
        if self.failed {
            return Err(Errno::ENOMEM.into());
        }
        if self.nodes.is_same(&self.base) {
            return Ok(());
        }
        if !store.is_same(&self.base) || self.deaths != setting.domains.deaths() {
            self.rerun(setting, store)?;
        }
        self.check_nodes(setting)?;
        if let Some(policies) = setting.policies {
            policies.note_committed(self.log.touched.marked().map(|(path, _)| path));
        }
        let mut settled = mem::take(&mut self.log.effects);
        settled.settle(&self.base, &self.nodes, &self.log.touched, watches);
        settled.set_done();
        faults::may_crash();
        *store = mem::replace(&mut self.nodes, self.base.clone());
        // The memory of what was noted before serves the next transaction.
        self.log.effects = mem::replace(effects, settled);
        faults::may_crash();
        Ok(())
    }

    /// Runs the requests again on the store as it is now.
    fn rerun(&mut self, setting: &mut Setting<'_>, store: &S) -> Result<(), Refusal> {
        let (nodes, mut effects) = self.run_again(setting, store)?;
        self.log.touched.clear_marks();
        effects.mark(&mut self.log.touched);
        (self.base, self.nodes, self.log.effects) = (store.clone(), nodes, effects);
        Ok(())
    }

    /// Runs the requests again on nodes as they are now, and gives what these become and what is done to them.
    fn run_again(
        &mut self,
        setting: &mut Setting<'_>,
        now: &S,
    ) -> Result<(S, Effects<S>), Refusal> {
        let mut nodes = now.clone();
        let mut effects = Effects::default();
        let mut work = Work {
            setting,
            nodes: &mut nodes,
            effects: &mut effects,
            watches: None,
            touched: None,
        };
        let mut start = 0;
        for kept in &self.log.kept {
            let payload = self.log.payloads.get(start..kept.end).unwrap_or_default();
            start = kept.end;
            self.work = self.work.saturating_add(cost_of(payload));
            match (work.execute(kept.kind, payload), &kept.answer) {
                (Ok(now), Ok(then)) if now == *then => {}
                (Err(Refusal::Errno(now)), Err(then)) if now == *then => {}
                (Err(wait @ Refusal::Wait(_)), _) => return Err(wait),
                (Err(Refusal::Errno(Errno::ENOSPC)), _) => return Err(Errno::ENOSPC.into()),
                _ => {
                    let written = strings(payload).next().unwrap_or_default();
                    self.conflict = Path::parse(written, work.setting.home, 0).ok();
                    return Err(Errno::EAGAIN.into());
                }
            }
        }
        Ok((nodes, effects))
    }

    /// Takes in what another one, inside of this one, has done: as if its requests had run here just now. Or nothing changes.
    ///
    /// # Errors
    /// ENOMEM if the other one failed before, or there is no memory for both; ENOSPC if both together touch too many nodes, would cost too
    /// much to run again, or make too many nodes; EAGAIN if this one has changed what the other one has seen, or either was given up. Or
    /// the host must be asked first.
    fn take_in(&mut self, inner: &mut Self, setting: &mut Setting<'_>) -> Result<(), Refusal> {
        if self.is_given_up || inner.is_given_up {
            return Err(Errno::EAGAIN.into());
        }
        if inner.failed {
            return Err(Errno::ENOMEM.into());
        }
        self.check_union(inner, setting)?;
        let held = self.held();
        let kept = inner.bytes.saturating_sub(inner.held());
        if self.nodes.is_same(&inner.base) {
            self.nodes = mem::replace(&mut inner.nodes, inner.base.clone());
        } else {
            let (nodes, mut effects) = inner.run_again(setting, &self.nodes).inspect_err(|_| {
                // The client itself is to blame.
                inner.conflict = None;
            })?;
            inner.log.touched.clear_marks();
            effects.mark(&mut inner.log.touched);
            (self.nodes, inner.log.effects) = (nodes, effects);
        }
        self.cost = self.cost.saturating_add(inner.cost);
        self.log.take_in(&mut inner.log);
        let held = self.held().saturating_sub(held);
        self.bytes = self.bytes.saturating_add(kept).saturating_add(held);
        Ok(())
    }

    /// Whether this one may be as large as it would be with another one, and whether there is memory for that.
    fn check_union(&mut self, inner: &Self, setting: &Setting<'_>) -> Result<(), Errno> {
        let limit = setting.limit(Quota::TransactionNodes);
        let nodes = u64::from(limit);
        let cost = self.cost.saturating_add(inner.cost);
        let touched = self.log.touched.count_with(&inner.log.touched);
        if !within(touched, limit) || nodes != 0 && cost > nodes.max(COST_MAX) {
            setting.refuse(Quota::TransactionNodes, limit);
            return Err(Errno::ENOSPC);
        }
        self.log.make_room(&inner.log).ok_or(Errno::ENOMEM)
    }

    /// Whether all whose nodes became more may have that many, if the client is one whom quotas bind.
    fn check_nodes(&self, setting: &Setting<'_>) -> Result<(), Errno> {
        if setting.subject.privileged {
            return Ok(());
        }
        let fits = |domain: &Domain, more: i64| {
            let nodes = domain.usage.nodes.saturating_add_signed(more);
            let limit = setting.domains.limit(domain, setting.quotas, Quota::Nodes);
            let fits = within(nodes, limit);
            if !fits {
                setting.refuse(Quota::Nodes, limit);
            }
            fits
        };
        let exceeded = self.log.effects.charges().any(|(owner, charge)| {
            let owner = setting.domains.alive(owner);
            charge.nodes > 0 && owner.is_some_and(|owner| !fits(owner, charge.nodes))
        });
        if exceeded { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    /// Whether one more request may be kept. One that may not ends the transaction's chances: it could not be run again.
    fn check_room(&mut self, setting: &Setting<'_>, payload: &[u8]) -> Result<(), Errno> {
        let limit = setting.limit(Quota::TransactionNodes);
        let nodes = u64::from(limit);
        let cost = self.cost.saturating_add(cost_of(payload));
        let used = setting.used();
        let added = u64::try_from(payload.len()).unwrap_or(u64::MAX);
        if nodes != 0 && cost > nodes.max(COST_MAX) {
            self.failed = true;
            setting.refuse(Quota::TransactionNodes, limit);
            return Err(Errno::ENOSPC);
        }
        let room = setting
            .check_memory(used.saturating_add(added))
            .and_then(|()| self.make_room(payload).ok_or(Errno::ENOMEM));
        room.inspect_err(|_| self.failed = true)
    }

    /// Room for one more request, in lists that can become longer than any hole in the memory.
    fn make_room(&mut self, payload: &[u8]) -> Option<()> {
        faults::permit()?;
        self.log.kept.try_reserve(1).ok()?;
        faults::permit()?;
        self.log.payloads.try_reserve(payload.len()).ok()
    }

    /// The requests that it keeps, each with what it was answered.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (Kind, &[u8], &Result<Answer, Errno>)> {
        let mut start = 0;
        self.log.kept.iter().map(move |kept| {
            let payload = self.log.payloads.get(start..kept.end).unwrap_or_default();
            start = kept.end;
            (kept.kind, payload, &kept.answer)
        })
    }

    /// Notes a node that it has touched in another instance of the server, and counts what this costs.
    pub(crate) fn touch(&mut self, path: PathRef<'_>) -> Result<(), Errno> {
        let touched = self.log.touched.bytes();
        self.log.touched.add(path, 0)?;
        let touched = self.log.touched.bytes().saturating_sub(touched);
        self.bytes = self.bytes.saturating_add(touched);
        Ok(())
    }

    /// Takes what another instance of the server had noted of its nodes, and counts that. If that one kept no journal, what was noted when
    /// the nodes were made counts.
    pub(crate) fn restore_notes(&mut self, notes: Option<Vec<(&str, bool)>>) {
        if let Some(notes) = notes {
            self.nodes.forget();
            for (path, is_removed) in notes {
                self.nodes.restore_note(PathRef::known(path), is_removed);
            }
        }
        let noted = self.bytes.saturating_add(self.nodes.noted_bytes());
        self.bytes = noted.saturating_sub(self.base.noted_bytes());
    }

    /// Keeps a request, and counts what it costs.
    pub(crate) fn keep(&mut self, kind: Kind, payload: &[u8], answer: Result<Answer, Errno>) {
        self.cost = self.cost.saturating_add(cost_of(payload));
        let bytes = KEPT_BYTES
            .saturating_add(payload.len())
            .saturating_add(answer.as_ref().map_or(0, Answer::footprint));
        self.bytes = self
            .bytes
            .saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        self.log.payloads.extend_from_slice(payload);
        let end = self.log.payloads.len();
        self.log.kept.push(Kept { kind, end, answer });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conflict::History;
    use crate::features::Features;
    use crate::ids::DomId;
    use crate::storage::Tree;

    #[test]
    fn ids_are_never_zero_nor_open() {
        let (domains, owner) = Domains::new(DomId::new(0), Features::ALL);
        let nodes = Tree::new(owner);
        let mut history = History::default();
        let mut open = Transactions::default();
        let mut add = |last: Option<TxId>| {
            open.last = last.or(open.last);
            Some(open.add(Transaction::start(
                &nodes,
                &domains,
                history.open(Instant(0)),
                Box::default(),
            )))
        };
        assert_eq!(add(None), TxId::new(1));
        assert_eq!(add(TxId::new(u32::MAX - 1)), TxId::new(u32::MAX));
        assert_eq!(add(None), TxId::new(2));
    }
}
