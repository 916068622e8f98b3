//! What the store holds now, and the one place where a change becomes part of it.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;

use crate::acl::{Acl, Entry, Holder, Incarnation, Letter};
use crate::counter_nodes::STORE_FOLDERS;
use crate::domain::{Domains, Usage};
use crate::effects::{Charge, Editor, Effects, cost};
use crate::events::Telling;
use crate::faults;
use crate::ids::{ConnId, Generation};
use crate::path::PathRef;
use crate::quota::{Peaks, Quota};
use crate::server::Server;
use crate::storage::{Branch, ChangeLog, Kind, Seed, Storage, Value};
use crate::watch::Watches;

/// Told when a domain is introduced.
pub(crate) const INTRODUCE_DOMAIN: &str = "@introduceDomain";
/// Told when a domain shuts down, and again when it is no more.
pub(crate) const RELEASE_DOMAIN: &str = "@releaseDomain";

/// The committed nodes.
pub(crate) struct Store<S: Storage> {
    pub(crate) nodes: S,
    pub(crate) generation: Generation,
    pub(crate) sums: Sums,
    /// The journal; empty, if the nodes are kept without one.
    pub(crate) log: ChangeLog,
}

/// All nodes, and what they cost their owners together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) nodes: u64,
    pub(crate) bytes: u64,
}

impl Sums {
    pub(crate) fn add(&mut self, charge: Charge) {
        self.nodes = self.nodes.saturating_add_signed(charge.nodes);
        self.bytes = self.bytes.saturating_add_signed(charge.bytes);
    }
}

impl<S: Storage> Store<S> {
    /// The root and the special names (protocol.md section 5.5): the privileged domain's; every guest may hear of releases.
    pub(crate) fn new(kind: Kind, owner: Incarnation) -> Self {
        let mut nodes = S::of(kind, owner);
        let everyone = Entry {
            letter: Letter::Read,
            holder: Holder::Any,
        };
        let special = |listed| Seed {
            value: Value::default(),
            acl: Rc::new(Acl::new(owner, Letter::None, listed)),
            generation: Generation(0),
        };
        nodes.add_special(PathRef::known(INTRODUCE_DOMAIN), special(Vec::new()));
        nodes.add_special(
            PathRef::known(RELEASE_DOMAIN),
            special(Vec::from([everyone])),
        );
        Self {
            nodes,
            generation: Generation(0),
            sums: Sums::default(),
            log: ChangeLog::default(),
        }
    }

    /// The journal, if one is kept.
    pub(crate) fn journal(&self) -> Option<&ChangeLog> {
        self.nodes.is_journaled().then_some(&self.log)
    }

    /// What changes the nodes, for these watchers.
    pub(crate) fn edit<'a>(
        &'a mut self,
        effects: &'a mut Effects<S>,
        watches: &'a Watches,
    ) -> Editor<'a, S> {
        Editor {
            nodes: &mut self.nodes,
            effects,
            generation: &mut self.generation,
            watches: Some(watches),
            touched: None,
        }
    }
}

impl<S: Storage> Server<S> {
    /// Takes the noted effects of a change that the store's nodes have: the ledger first, then the watchers. Who asked for the change is
    /// `conn`, if anybody.
    ///
    /// The effects stay where they are until all have heard, so that a crash leaves them to [`Server::complete_after_crash`].
    pub(crate) fn commit(&mut self, conn: Option<ConnId>) {
        self.work = self.work.saturating_add(self.effects.cost());
        self.did_change = true;
        faults::may_crash();
        for (_, charge) in self.effects.charges() {
            self.store.sums.add(charge);
        }
        let exact = post(
            &mut self.domains,
            &mut self.peaks,
            Rc::make_mut(&mut self.effects),
        );
        if !exact {
            log::error!("accounts were wrong and are counted again");
            self.recount();
        }
        if !self.effects.changes().is_empty() {
            let effects = Rc::clone(&self.effects);
            self.tell(effects.changes());
            if let Some(conn) = conn {
                self.note_changes(conn, &effects);
            }
        }
        self.write_journal();
        faults::may_crash();
        Rc::make_mut(&mut self.effects).clear();
        self.telling = Telling::default();
    }

    /// Writes down what has changed in the store's nodes, if a journal is kept.
    #[inline]
    pub(crate) fn write_journal(&mut self) {
        let is_alive = |incarnation| self.domains.alive(incarnation).is_some();
        let Store { nodes, log, .. } = &mut self.store;
        nodes.committed(log, self.now, &is_alive);
    }

    /// Where to note the effects of a change of the store's own.
    pub(crate) fn edit(&mut self) -> Editor<'_, S> {
        let effects = Rc::make_mut(&mut self.effects);
        self.store.edit(effects, &self.watches)
    }

    /// Sets every account to what a walk over the tree finds.
    pub(crate) fn recount(&mut self) {
        let found = count(&self.store.nodes);
        self.store.sums = Sums::default();
        for charge in found.values() {
            self.store.sums.add(*charge);
        }
        for domain in self.domains.iter_mut() {
            let charge = found.get(&domain.incarnation).copied().unwrap_or_default();
            domain.usage.nodes = charge.nodes.unsigned_abs();
            domain.usage.node_bytes = charge.bytes.unsigned_abs();
        }
    }

    /// The domains whose account is not what a walk over the tree finds: none, ever.
    pub(crate) fn miscounted(&self) -> Vec<Incarnation> {
        let found = count(&self.store.nodes);
        let wrong = |incarnation: Incarnation, usage: &Usage| {
            let charge = found.get(&incarnation).copied().unwrap_or_default();
            (usage.nodes, usage.node_bytes)
                != (charge.nodes.unsigned_abs(), charge.bytes.unsigned_abs())
        };
        self.domains
            .iter()
            .filter(|domain| wrong(domain.incarnation, &domain.usage))
            .map(|domain| domain.incarnation)
            .collect()
    }

    /// `/tool/xenstored`, where tools look for the server (protocol.md section 5.5).
    pub(crate) fn with_first_nodes(mut self) -> Self {
        self.create_missing(&STORE_FOLDERS);
        self.commit(None);
        self.recount();
        self.start_extensions();
        self
    }

    /// Creates those of some nodes of the privileged domain that are missing, each below the one before.
    pub(crate) fn create_missing(&mut self, paths: &[&str]) {
        let acl = Rc::new(Acl::private(self.domains.privileged()));
        for path in paths.iter().copied().map(PathRef::known) {
            if self.store.nodes.get(path).is_none() {
                self.edit().create_parent(path, &acl);
            }
        }
    }
}

/// Posts the charges and estates to the domains' accounts; `false` if an account would fall below zero.
fn post<S: Storage>(domains: &mut Domains, peaks: &mut Peaks, effects: &mut Effects<S>) -> bool {
    let mut exact = true;
    let privileged = domains.privileged();
    for (owner, charge) in effects.charges() {
        if let Some(domain) = domains.alive_mut(owner) {
            let nodes = domain.usage.nodes.checked_add_signed(charge.nodes);
            let bytes = domain.usage.node_bytes.checked_add_signed(charge.bytes);
            exact &= nodes.is_some() && bytes.is_some();
            domain.usage.nodes = nodes.unwrap_or_default();
            domain.usage.node_bytes = bytes.unwrap_or_default();
            if owner != privileged {
                peaks.note(Quota::Nodes, domain.usage.nodes);
            }
        }
    }
    for transfer in effects.transfers() {
        if let Some(domain) = domains.alive_mut(transfer.owner) {
            if transfer.gained {
                domain.estates.insert(transfer.path);
            } else {
                domain.estates.remove(&transfer.path);
            }
        }
    }
    exact
}

#[inline(never)]
fn count<S: Storage>(nodes: &S) -> BTreeMap<Incarnation, Charge> {
    let mut found: BTreeMap<Incarnation, Charge> = BTreeMap::new();
    let root = PathRef::known("/");
    if let Some(all) = nodes.branch(root) {
        all.visit(root, |path, leaf| {
            let charge = found.entry(leaf.acl.owner()).or_default();
            charge.nodes = charge.nodes.saturating_add(1);
            charge.bytes = charge
                .bytes
                .saturating_add(cost(path, leaf.value, leaf.acl));
        });
    }
    found
}
