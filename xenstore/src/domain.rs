//! The domains that the store knows, introduced or not, each for its own life only.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use core::mem;

use slotmap::{DefaultKey, SlotMap};

use crate::acl::{Incarnation, Subject};
use crate::conflict::Credits;
use crate::counters::{Counter, Counters};
use crate::features::Features;
use crate::ids::{ConnId, DomId, Identity, UniqueId};
use crate::path::Path;
use crate::quota::{Overrides, Quota, Quotas, within};
use crate::refusal::Reason;

/// One domain.
#[derive(Debug)]
pub(crate) struct Domain {
    pub(crate) incarnation: Incarnation,
    /// `None` only for the privileged domain before its ring is there.
    pub(crate) unique: Option<UniqueId>,
    /// Its connection, if it was introduced.
    pub(crate) connection: Option<ConnId>,
    /// What happened to it; there from its first connection on.
    counters: Option<Rc<Counters>>,
    /// Whether its shutdown was told already.
    pub(crate) told_shutdown: bool,
    /// Whether it was logged that it uses more than quota `soft-memory`; until it uses less again.
    pub(crate) told_memory: bool,
    pub(crate) target: Option<Incarnation>,
    pub(crate) features: Features,
    pub(crate) overrides: Overrides,
    /// Quotas that a state stream gave it and that mean nothing here; for the next stream.
    pub(crate) unknown_quotas: Vec<(String, u32)>,
    pub(crate) usage: Usage,
    /// What it may still do to others' transactions.
    pub(crate) credits: Credits,
    /// Its nodes whose parents belong to another: with what is below them, all that it owns.
    pub(crate) estates: BTreeSet<Path>,
}

/// The nodes that a domain has now; what its connection has is counted there. Each charge belongs to the node it pays for; the sum over
/// nodes equals the counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Nodes that it owns.
    pub(crate) nodes: u64,
    /// Bytes of those nodes.
    pub(crate) node_bytes: u64,
}

/// All known domains.
#[derive(Debug)]
pub(crate) struct Domains {
    privileged: Incarnation,
    lives: SlotMap<DefaultKey, Box<Domain>>,
    by_domid: BTreeMap<DomId, DefaultKey>,
    /// Counts those that ended.
    pub(crate) deaths: u64,
    /// What happened to those.
    pub(crate) past: Counters,
    /// Something noteworthy was counted since the last look.
    pub(crate) noted: Rc<Cell<bool>>,
}

impl Domains {
    /// The privileged domain alone, before its ring is there; and its incarnation.
    pub(crate) fn new(privileged: DomId, features: Features) -> (Self, Incarnation) {
        let mut lives = SlotMap::new();
        let life = lives.insert_with_key(|life| {
            let domid = privileged;
            Box::new(Domain::new(Incarnation { domid, life }, features))
        });
        let first = Incarnation {
            domid: privileged,
            life,
        };
        let noted = Rc::default();
        let domains = Self {
            past: Counters::new(privileged, &noted),
            noted,
            privileged: first,
            lives,
            by_domid: BTreeMap::from([(privileged, life)]),
            deaths: 0,
        };
        (domains, first)
    }

    /// The present domain with this id.
    pub(crate) fn get(&self, domid: DomId) -> Option<&Domain> {
        let life = *self.by_domid.get(&domid)?;
        self.lives.get(life).map(|domain| &**domain)
    }

    pub(crate) fn get_mut(&mut self, domid: DomId) -> Option<&mut Domain> {
        let life = *self.by_domid.get(&domid)?;
        self.lives.get_mut(life).map(|domain| &mut **domain)
    }

    /// The domain, while it is the present one with its id.
    pub(crate) fn alive(&self, incarnation: Incarnation) -> Option<&Domain> {
        self.lives.get(incarnation.life).map(|domain| &**domain)
    }

    pub(crate) fn alive_mut(&mut self, incarnation: Incarnation) -> Option<&mut Domain> {
        let domain = self.lives.get_mut(incarnation.life);
        domain.map(|domain| &mut **domain)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_domid.len()
    }

    /// All of them, by id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Domain> {
        let lives = self.by_domid.values();
        lives.filter_map(|life| self.lives.get(*life).map(|domain| &**domain))
    }

    /// Those with this id or a higher one, by id.
    pub(crate) fn iter_from(&self, from: DomId) -> impl Iterator<Item = &Domain> {
        let lives = self.by_domid.range(from..).map(|(_, life)| *life);
        lives.filter_map(|life| self.lives.get(life).map(|domain| &**domain))
    }

    /// Whether something noteworthy was counted since the last [`Domains::take_note`].
    pub(crate) fn is_noted(&self) -> bool {
        self.noted.get()
    }

    /// Begins to wait for the next thing that is noteworthy.
    pub(crate) fn take_note(&self) {
        self.noted.set(false);
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Domain> {
        self.lives.values_mut().map(|domain| &mut **domain)
    }

    /// The domain with this identity, made known if it was not. What was known under this domid must be the same domain.
    pub(crate) fn learn(&mut self, identity: Identity, features: Features) -> Incarnation {
        let incarnation = self.expect(identity.domid, features);
        if let Some(domain) = self.lives.get_mut(incarnation.life) {
            domain.unique.get_or_insert(identity.unique);
        }
        incarnation
    }

    /// The domain with this id, made known if it was not; who it is, is yet to be told.
    pub(crate) fn expect(&mut self, domid: DomId, features: Features) -> Incarnation {
        let lives = &mut self.lives;
        let life = *self.by_domid.entry(domid).or_insert_with(|| {
            lives.insert_with_key(|life| {
                Box::new(Domain::new(Incarnation { domid, life }, features))
            })
        });
        Incarnation { domid, life }
    }

    /// A domain with this id that is no more.
    pub(crate) fn departed(&mut self, domid: DomId) -> Incarnation {
        let life = self.lives.insert_with_key(|life| {
            let incarnation = Incarnation { domid, life };
            Box::new(Domain::new(incarnation, Features::ALL))
        });
        self.lives.remove(life);
        Incarnation { domid, life }
    }

    /// Forgets a domain that is no more.
    pub(crate) fn remove(&mut self, domid: DomId) -> Option<Domain> {
        let domain = self.lives.remove(self.by_domid.remove(&domid)?)?;
        self.deaths = self.deaths.wrapping_add(1);
        if let Some(counters) = &domain.counters {
            self.past.add(counters);
        }
        Some(*domain)
    }

    /// A domain's counters, made if it has none.
    pub(crate) fn counters(&mut self, incarnation: Incarnation) -> Rc<Counters> {
        let made = || Rc::new(Counters::new(incarnation.domid, &self.noted));
        match self.lives.get_mut(incarnation.life) {
            Some(domain) => Rc::clone(domain.counters.get_or_insert_with(made)),
            None => made(),
        }
    }

    /// Counts what happened to the present domain with this id; if there is none, among what happened to those that ended.
    pub(crate) fn count(&mut self, domid: DomId, counter: Counter) {
        match self.get(domid).map(|domain| domain.incarnation) {
            Some(incarnation) => self.counters(incarnation).count(counter),
            None => self.past.count(counter),
        }
    }

    /// What happened to all domains, those included that ended.
    pub(crate) fn total(&self) -> Counters {
        let total = Counters::new(self.privileged.domid, &self.noted);
        total.add(&self.past);
        self.lives
            .values()
            .filter_map(|domain| domain.counters.as_ref())
            .for_each(|counters| total.add(counters));
        total
    }

    /// How many domains have ended.
    pub(crate) fn deaths(&self) -> u64 {
        self.deaths
    }

    /// The domain as one who asks. A target that is no more gives no rights.
    pub(crate) fn subject(&self, domain: &Domain) -> Subject {
        Subject {
            incarnation: domain.incarnation,
            target: domain.target.filter(|target| self.alive(*target).is_some()),
            privileged: self.is_privileged(domain.incarnation.domid),
        }
    }

    pub(crate) fn privileged(&self) -> Incarnation {
        self.privileged
    }

    pub(crate) fn is_privileged(&self, domid: DomId) -> bool {
        domid == self.privileged.domid
    }

    /// A domain's limit; none for the privileged one.
    pub(crate) fn limit(&self, domain: &Domain, quotas: &Quotas, quota: Quota) -> u32 {
        if self.is_privileged(domain.incarnation.domid) {
            0
        } else {
            quotas.of(&domain.overrides, quota)
        }
    }
}

impl Domain {
    fn new(incarnation: Incarnation, features: Features) -> Self {
        Self {
            incarnation,
            unique: None,
            connection: None,
            counters: None,
            told_shutdown: false,
            told_memory: false,
            target: None,
            features,
            overrides: Overrides::default(),
            unknown_quotas: Vec::new(),
            usage: Usage::default(),
            credits: Credits::default(),
            estates: BTreeSet::new(),
        }
    }

    /// What happened to it, if it ever had a connection.
    pub(crate) fn counters(&self) -> Option<&Counters> {
        self.counters.as_deref()
    }

    /// Logs once that it uses more than `soft` bytes (quota `soft-memory`); again when it did so after using less.
    pub(crate) fn warn_of_memory(&mut self, memory: u64, soft: u32) {
        let exceeds = !within(memory, soft);
        if mem::replace(&mut self.told_memory, exceeds) != exceeds && exceeds {
            let domid = self.incarnation.domid;
            if let Some(counters) = &self.counters {
                counters.count_refusal(Reason::Quota(Quota::SoftMemory));
            }
            log::warn!("domain {domid} uses {memory} bytes, more than quota soft-memory ({soft})");
        }
    }

    /// Who this is, once that is known.
    pub(crate) fn identity(&self) -> Option<Identity> {
        let domid = self.incarnation.domid;
        self.unique.map(|unique| Identity { domid, unique })
    }
}
