//! Nodes, whose owners pay for them at once, permissions, which mean domains and not domids, and quotas.

use alloc::rc::Rc;
use alloc::vec::Vec;

use super::super::Damage;
use super::super::record::{self, Permission, Permissions};
use super::super::snapshot::SPECIALS;
use crate::acl::{Acl, Entry, Holder, Incarnation};
use crate::effects::{Charge, cost};
use crate::ids::{DomId, Generation};
use crate::path::PathRef;
use crate::quota::Quota;
use crate::storage::{Seed, Storage, Value};

use super::{Import, text};

/// What only our own records say of a node.
#[derive(Clone, Copy, Default)]
pub(super) struct Mark<'s> {
    pub(super) generation: u64,
    /// The entries of its permissions that mean domains that are no more.
    pub(super) departed: &'s [u8],
}

impl<'s, S: Storage> Import<'s, S> {
    pub(super) fn node(
        &mut self,
        written: &str,
        permissions: Permissions<'s>,
        value: &'s [u8],
        mark: Mark<'s>,
    ) -> Result<(), Damage> {
        self.flush()?;
        let acl = self.acl(permissions, mark.departed)?;
        let path = PathRef::known(written);
        let seed = Seed {
            value: Value::new(value),
            acl: Rc::clone(&acl),
            generation: Generation(mark.generation),
        };
        self.nodes = self.nodes.saturating_add(1);
        let above = if path.is_special() {
            let mut known = SPECIALS.into_iter();
            let special = known.find(|name| *name == written).ok_or(Damage::Path)?;
            if !self.seen_specials.insert(special) {
                return Err(Damage::Duplicate);
            }
            return self.replace(path, seed);
        } else if path.is_root() {
            if core::mem::replace(&mut self.has_root, true) {
                return Err(Damage::Duplicate);
            }
            self.replace(path, seed)?;
            self.server.domains.privileged()
        } else {
            let (nodes, growth) = (&mut self.server.store.nodes, &mut self.growth);
            let above = self
                .has_root
                .then(|| nodes.grow(growth, path, seed))
                .flatten();
            match above {
                Some(above) => above,
                None => {
                    nodes.settle(growth);
                    let is_there = nodes.get(path).is_some();
                    return Err(if is_there {
                        Damage::Duplicate
                    } else {
                        Damage::Parent
                    });
                }
            }
        };
        self.charge(path, &acl, value, above);
        Ok(())
    }

    pub(super) fn replace(&mut self, path: PathRef<'_>, seed: Seed) -> Result<(), Damage> {
        let node = self.server.store.nodes.get_mut(path);
        let node = node.ok_or(Damage::Reference)?;
        (node.value, node.acl, node.generation) = (seed.value, seed.acl, seed.generation);
        Ok(())
    }

    /// Lets the owner of a node pay for it.
    pub(super) fn charge(
        &mut self,
        path: PathRef<'_>,
        acl: &Acl,
        value: &[u8],
        above: Incarnation,
    ) {
        let cost = cost(path, &Value::new(value), acl);
        let owner = acl.owner();
        let charge = Charge {
            nodes: 1,
            bytes: cost,
        };
        self.server.store.sums.add(charge);
        let cost = cost.unsigned_abs();
        if let Some(domain) = self.server.domains.alive_mut(owner) {
            domain.usage.nodes = domain.usage.nodes.saturating_add(1);
            domain.usage.node_bytes = domain.usage.node_bytes.saturating_add(cost);
            if above != owner {
                domain.estates.insert(path.to_path());
            }
        }
    }

    /// The permissions, which mean domains and not domids.
    pub(super) fn acl(
        &mut self,
        read: Permissions<'s>,
        departed: &'s [u8],
    ) -> Result<Rc<Acl>, Damage> {
        let key = (read.as_bytes(), departed);
        if let Some(known) = self.acls.get(&key) {
            return Ok(Rc::clone(known));
        }
        let departed = departed.iter().copied().chain(core::iter::repeat(0));
        let mut entries = read.iter().zip(departed);
        let (first, is_departed) = entries.next().ok_or(Damage::Permission)?;
        if !first.domid.is_ordinary() {
            return Err(Damage::Domid);
        }
        let owner = if is_departed != 0 || first.is_ignored {
            self.departed(first.domid)
        } else {
            self.expected(first.domid)
        };
        let mut listed = Vec::new();
        for (entry, is_departed) in entries {
            let letter = entry.letter;
            let holder = self.holder(&entry, is_departed != 0);
            listed.push(Entry { letter, holder });
        }
        let acl = Rc::new(Acl::new(owner, first.letter, listed));
        self.acls.insert(key, Rc::clone(&acl));
        Ok(acl)
    }

    pub(super) fn holder(&mut self, entry: &Permission, is_departed: bool) -> Holder {
        let domid = entry.domid;
        if domid == DomId::ANY && !entry.is_ignored {
            Holder::Any
        } else if !domid.is_ordinary() {
            Holder::Nobody(domid)
        } else if is_departed {
            Holder::Domain(self.departed(domid))
        } else if entry.is_ignored {
            Holder::Nobody(domid)
        } else {
            Holder::Domain(self.expected(domid))
        }
    }

    /// A domain that is no more.
    pub(super) fn departed(&mut self, domid: DomId) -> Incarnation {
        let domains = &mut self.server.domains;
        let departed = self.departed.entry(domid);
        *departed.or_insert_with(|| domains.departed(domid))
    }

    /// The domain with this id; one that the stream says nothing else of is known from now on, until the host says that it is not there.
    pub(super) fn expected(&mut self, domid: DomId) -> Incarnation {
        let features = self.server.settings.features;
        self.server.domains.expect(domid, features)
    }

    pub(super) fn quotas(&mut self, read: &record::Quotas<'s>) {
        let server = &mut self.server;
        for (name, limit) in &read.of_domains {
            match Quota::from_name(name) {
                Some(quota) => server.settings.quotas.set(quota, *limit),
                None => server.unknown_quotas.of_domains.push((text(name), *limit)),
            }
        }
        for (name, limit) in &read.of_all {
            server.unknown_quotas.of_all.push((text(name), *limit));
        }
    }

    /// The quotas of a domain. In a stream of others one that is as for all may have been set or not: then it was not.
    pub(super) fn domain(&mut self, read: &record::Domain<'s>) {
        let quotas = &self.server.settings.quotas;
        let Some(domain) = self.server.domains.get_mut(read.domid) else {
            return;
        };
        for (name, limit) in &read.quotas {
            match Quota::from_name(name) {
                Some(quota) if self.is_own || quotas.get(quota) != *limit => {
                    domain.overrides.set(quota, *limit);
                }
                Some(_) => {}
                None => domain.unknown_quotas.push((text(name), *limit)),
            }
        }
    }
}
