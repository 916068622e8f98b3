//! Transactions: a snapshot to work on, and a commit that merges or refuses.
//!
//! A transaction keeps its requests and their answers. If nothing else was committed meanwhile, its tree becomes the store's. Else the
//! requests run once more, on the store as it is now, and count if every answer is the same: then the client could not have told
//! whether all of them ran just now, which is what strict serializability means. So only a read that mattered makes a conflict.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::mem;

use crate::answer::Answer;
use crate::database::{Refusal, Setting, Touched, Work};
use crate::domain::{Domain, Domains};
use crate::effects::Effects;
use crate::quota::{Quota, within};
use crate::tree::Tree;
use crate::wire::{Errno, Kind};

/// Requests that a transaction may hold for each node that it may touch (quota `transaction-nodes`): they all run again at a merge.
const REQUESTS_PER_NODE: u64 = 16;
/// Bytes that keeping a request costs besides its payload and answer.
const KEPT_BYTES: usize = 64;

/// An open transaction.
pub(crate) struct Transaction {
    base: Tree,
    tree: Tree,
    effects: Effects,
    touched: Touched,
    kept: Vec<Kept>,
    bytes: u64,
    failed: bool,
    /// Domains that had ended when it began: what it gave to one that ended since must not become the store's.
    deaths: u64,
}

/// A request and what it was answered.
struct Kept {
    kind: Kind,
    payload: Rc<[u8]>,
    answer: Result<Answer, Errno>,
}

impl Transaction {
    /// Begins with the store as it is: a pointer is copied.
    pub(crate) fn start(tree: &Tree, domains: &Domains) -> Self {
        Self {
            base: tree.clone(),
            tree: tree.clone(),
            effects: Effects::default(),
            touched: Touched::default(),
            kept: Vec::new(),
            bytes: 0,
            failed: false,
            deaths: domains.deaths(),
        }
    }

    /// Bytes that it holds beyond what it shares with the store.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Runs a request on the private tree.
    pub(crate) fn execute(
        &mut self,
        setting: &mut Setting<'_>,
        kind: Kind,
        payload: &[u8],
    ) -> Result<Answer, Refusal> {
        self.check_room(setting, payload)?;
        let mut work = Work {
            setting,
            tree: &mut self.tree,
            effects: &mut self.effects,
            touched: Some(&mut self.touched),
        };
        let answer = match work.execute(kind, payload) {
            Ok(answer) => Ok(answer),
            Err(Refusal::Errno(errno)) => Err(errno),
            Err(wait @ Refusal::Wait(_)) => return Err(wait),
        };
        self.failed |= self.touched.overflowed;
        self.keep(Kept {
            kind,
            payload: payload.into(),
            answer: answer.clone(),
        });
        answer.map_err(Refusal::from)
    }

    /// Makes the transaction's changes the store's, and gives their effects; or changes nothing.
    ///
    /// # Errors
    /// ENOMEM if it failed before; ENOSPC if a domain would own too many nodes; EAGAIN for a conflict. Or the host must be asked first.
    pub(crate) fn commit(
        &mut self,
        setting: &mut Setting<'_>,
        store: &mut Tree,
    ) -> Result<Effects, Refusal> {
        if self.failed {
            return Err(Errno::ENOMEM.into());
        }
        if self.tree.is_same(&self.base) {
            return Ok(Effects::default());
        }
        if !store.is_same(&self.base) || self.deaths != setting.domains.deaths() {
            self.rerun(setting, store)?;
        }
        self.check_nodes(setting)?;
        self.effects
            .settle(&self.base, &self.tree, |path| self.touched.order(path));
        *store = mem::replace(&mut self.tree, self.base.clone());
        Ok(mem::take(&mut self.effects))
    }

    /// Runs the requests again on the store as it is now.
    fn rerun(&mut self, setting: &mut Setting<'_>, store: &Tree) -> Result<(), Refusal> {
        let mut tree = store.clone();
        let mut effects = Effects::default();
        let mut work = Work {
            setting,
            tree: &mut tree,
            effects: &mut effects,
            touched: None,
        };
        for kept in &self.kept {
            match (work.execute(kept.kind, &kept.payload), &kept.answer) {
                (Ok(now), Ok(then)) if now == *then => {}
                (Err(Refusal::Errno(now)), Err(then)) if now == *then => {}
                (Err(wait @ Refusal::Wait(_)), _) => return Err(wait),
                (Err(Refusal::Errno(Errno::ENOSPC)), _) => return Err(Errno::ENOSPC.into()),
                _ => return Err(Errno::EAGAIN.into()),
            }
        }
        (self.base, self.tree, self.effects) = (store.clone(), tree, effects);
        Ok(())
    }

    /// Whether all whose nodes became more may have that many, if the client is one whom quotas bind.
    fn check_nodes(&self, setting: &Setting<'_>) -> Result<(), Errno> {
        if setting.domains.subject(setting.client).privileged {
            return Ok(());
        }
        let fits = |domain: &Domain, more: i64| {
            let nodes = domain.usage.nodes.saturating_add_signed(more);
            within(
                nodes,
                setting.domains.limit(domain, setting.quotas, Quota::Nodes),
            )
        };
        let exceeded = self.effects.charges().any(|(owner, charge)| {
            let owner = setting.domains.alive(owner);
            charge.nodes > 0 && owner.is_some_and(|owner| !fits(owner, charge.nodes))
        });
        if exceeded { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    /// Whether one more request may be kept. One that may not ends the transaction's chances: it could not be run again.
    fn check_room(&mut self, setting: &Setting<'_>, payload: &[u8]) -> Result<(), Errno> {
        let nodes = u64::from(setting.limit(Quota::TransactionNodes));
        let count = u64::try_from(self.kept.len()).unwrap_or(u64::MAX);
        let used = setting.client.usage.memory();
        let added = u64::try_from(payload.len()).unwrap_or(u64::MAX);
        if nodes != 0 && count >= nodes.saturating_mul(REQUESTS_PER_NODE) {
            self.failed = true;
            return Err(Errno::ENOSPC);
        }
        setting
            .check_memory(used.saturating_add(added))
            .inspect_err(|_| self.failed = true)
    }

    fn keep(&mut self, kept: Kept) {
        let answer = kept.answer.as_ref().map_or(0, Answer::footprint);
        let bytes = KEPT_BYTES
            .saturating_add(kept.payload.len())
            .saturating_add(answer);
        self.bytes = self
            .bytes
            .saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        self.kept.push(kept);
    }
}
