//! The domains that the store knows, introduced or not, each for its own life only.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::acl::{Incarnation, Subject};
use crate::features::Features;
use crate::ids::{ConnId, DomId, Identity, UniqueId};
use crate::path::Path;
use crate::quota::{Overrides, Quota, Quotas};

/// One domain.
#[derive(Debug)]
pub(crate) struct Domain {
    pub(crate) incarnation: Incarnation,
    /// `None` only for the privileged domain before its ring is there.
    pub(crate) unique: Option<UniqueId>,
    /// Its connection, if it was introduced.
    pub(crate) connection: Option<ConnId>,
    /// Whether its shutdown was told already.
    pub(crate) told_shutdown: bool,
    /// Whether it was logged that it uses more than quota `soft-memory`; until it uses less again.
    pub(crate) told_memory: bool,
    pub(crate) target: Option<Incarnation>,
    pub(crate) features: Features,
    pub(crate) overrides: Overrides,
    pub(crate) usage: Usage,
    /// Its nodes whose parents belong to another: with what is below them, all that it owns.
    pub(crate) estates: BTreeSet<Path>,
}

/// What a domain has now. Each charge belongs to the object it pays for; the sum over objects equals the counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Nodes that it owns.
    pub(crate) nodes: u64,
    /// Bytes of those nodes.
    pub(crate) node_bytes: u64,
    /// Watches of its connection.
    pub(crate) watches: u64,
    /// Bytes of watches, transactions and messages of its connection.
    pub(crate) connection_bytes: u64,
}

impl Usage {
    /// All bytes that count against quota `memory`.
    pub(crate) fn memory(&self) -> u64 {
        self.node_bytes.saturating_add(self.connection_bytes)
    }
}

/// All known domains.
#[derive(Debug)]
pub(crate) struct Domains {
    privileged: Incarnation,
    known: BTreeMap<DomId, Domain>,
    /// Counts the incarnations.
    born: u64,
    /// Counts those that ended.
    deaths: u64,
}

impl Domains {
    /// The privileged domain alone, before its ring is there; and its incarnation.
    pub(crate) fn new(privileged: DomId, features: Features) -> (Self, Incarnation) {
        let first = Incarnation {
            domid: privileged,
            number: 0,
        };
        let domains = Self {
            privileged: first,
            known: BTreeMap::from([(privileged, Domain::new(first, None, features))]),
            born: 1,
            deaths: 0,
        };
        (domains, first)
    }

    /// The present domain with this id.
    pub(crate) fn get(&self, domid: DomId) -> Option<&Domain> {
        self.known.get(&domid)
    }

    pub(crate) fn get_mut(&mut self, domid: DomId) -> Option<&mut Domain> {
        self.known.get_mut(&domid)
    }

    /// The domain, while it is the present one with its id.
    pub(crate) fn alive(&self, incarnation: Incarnation) -> Option<&Domain> {
        self.get(incarnation.domid)
            .filter(|domain| domain.incarnation == incarnation)
    }

    pub(crate) fn alive_mut(&mut self, incarnation: Incarnation) -> Option<&mut Domain> {
        self.get_mut(incarnation.domid)
            .filter(|domain| domain.incarnation == incarnation)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Domain> {
        self.known.values()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Domain> {
        self.known.values_mut()
    }

    /// The domain with this identity, made known if it was not. What was known under this domid must be the same domain.
    pub(crate) fn learn(&mut self, identity: Identity, features: Features) -> &mut Domain {
        let born = &mut self.born;
        let domain = self.known.entry(identity.domid).or_insert_with(|| {
            let incarnation = Incarnation {
                domid: identity.domid,
                number: *born,
            };
            *born = born.wrapping_add(1);
            Domain::new(incarnation, None, features)
        });
        domain.unique.get_or_insert(identity.unique);
        domain
    }

    /// Forgets a domain that is no more, and that others had it as their target.
    pub(crate) fn remove(&mut self, domid: DomId) -> Option<Domain> {
        let domain = self.known.remove(&domid)?;
        self.deaths = self.deaths.wrapping_add(1);
        for other in self.known.values_mut() {
            other.target = other.target.filter(|target| *target != domain.incarnation);
        }
        Some(domain)
    }

    /// How many domains have ended.
    pub(crate) fn deaths(&self) -> u64 {
        self.deaths
    }

    /// The domain as one who asks.
    pub(crate) fn subject(&self, domain: &Domain) -> Subject {
        Subject {
            incarnation: domain.incarnation,
            target: domain.target,
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
    fn new(incarnation: Incarnation, unique: Option<UniqueId>, features: Features) -> Self {
        Self {
            incarnation,
            unique,
            connection: None,
            told_shutdown: false,
            told_memory: false,
            target: None,
            features,
            overrides: Overrides::default(),
            usage: Usage::default(),
            estates: BTreeSet::new(),
        }
    }

    /// Who this is, once that is known.
    pub(crate) fn identity(&self) -> Option<Identity> {
        let domid = self.incarnation.domid;
        self.unique.map(|unique| Identity { domid, unique })
    }
}
