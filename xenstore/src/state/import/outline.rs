//! The first reading of a stream: everything in it is judged, and it is noted who the domains and connections are.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::super::own::Own;
use super::super::record::{Carrier, Content};
use super::super::records::Records;
use super::super::{Damage, StateError};
use super::damaged;
use crate::ids::{DomId, UniqueId};
use crate::time::Instant;

/// Who there is, found at the first reading.
#[derive(Default)]
pub(super) struct Outline {
    pub(super) version: u32,
    pub(super) is_own: bool,
    /// A journal was kept.
    pub(super) is_journaled: bool,
    /// The record before was the one with counts and digest.
    pub(super) is_checked: bool,
    pub(super) domains: BTreeMap<DomId, Known>,
    /// The numbers of the connections, by their ids in the stream.
    pub(super) numbers: BTreeMap<u32, u64>,
    /// When the stream was written.
    pub(super) written: Option<Instant>,
    pub(super) next_connection: u64,
}

/// A domain of the stream.
#[derive(Default)]
pub(super) struct Known {
    pub(super) has_ring: bool,
    pub(super) unique: Option<UniqueId>,
    pub(super) features: Option<u32>,
    pub(super) mark: Option<DomainMark>,
}

pub(super) struct DomainMark {
    pub(super) told_shutdown: bool,
    pub(super) told_memory: bool,
    pub(super) is_noted: bool,
    pub(super) conflicts: Instant,
    pub(super) writes: Instant,
}

impl Outline {
    pub(super) fn of(stream: &[u8]) -> Result<Self, StateError> {
        let records = Records::new(stream)?;
        let mut outline = Self {
            version: records.version(),
            ..Self::default()
        };
        let mut connections = Vec::new();
        let mut numbered = BTreeSet::new();
        for record in records {
            let record = record?;
            let noted = outline.note(&record.content, &mut connections, &mut numbered);
            noted.map_err(|why| damaged(&record, why))?;
        }
        // In a stream of others they are numbered as they come.
        let mut next = outline.next_connection;
        for id in connections {
            outline.numbers.entry(id).or_insert_with(|| {
                let number = next;
                next = next.saturating_add(1);
                number
            });
        }
        outline.next_connection = next;
        Ok(outline)
    }

    fn note(
        &mut self,
        content: &Content<'_>,
        connections: &mut Vec<u32>,
        numbered: &mut BTreeSet<u64>,
    ) -> Result<(), Damage> {
        let was_checked = core::mem::take(&mut self.is_checked);
        match content {
            Content::End if self.is_own && !was_checked => return Err(Damage::Digest),
            Content::Own(Own::Check { .. }) => self.is_checked = true,
            Content::Own(Own::Journal { .. }) => self.is_journaled = true,
            Content::Connection(connection) => {
                connections.push(connection.id);
                if let Carrier::Ring { domid, .. } = connection.carrier {
                    let known = self.domains.entry(domid).or_default();
                    if core::mem::replace(&mut known.has_ring, true) {
                        return Err(Damage::Duplicate);
                    }
                    let unique = connection.unique.map(|unique| UniqueId(unique.into()));
                    known.unique = known.unique.or(unique);
                }
            }
            Content::Domain(domain) => {
                let features = (self.version >= 2).then_some(domain.features);
                let known = self.domains.entry(domain.domid).or_default();
                known.features = known.features.or(features);
            }
            Content::Own(Own::DomainMark {
                domid,
                unique,
                features,
                told_shutdown,
                told_memory,
                is_noted,
                conflicts,
                writes,
            }) => {
                let known = self.domains.entry(*domid).or_default();
                known.unique = unique.map(UniqueId).or(known.unique);
                known.features = Some(*features);
                known.mark = Some(DomainMark {
                    told_shutdown: *told_shutdown,
                    told_memory: *told_memory,
                    is_noted: *is_noted,
                    conflicts: *conflicts,
                    writes: *writes,
                });
            }
            Content::Own(Own::Store {
                written,
                next_connection,
                ..
            }) => {
                self.is_own = true;
                self.written = Some(*written);
                self.next_connection = *next_connection;
            }
            Content::Own(Own::Client { conn, number, .. }) => {
                let is_new = self.numbers.insert(*conn, *number).is_none();
                if !is_new || !numbered.insert(*number) {
                    return Err(Damage::Duplicate);
                }
            }
            _ => {}
        }
        Ok(())
    }
}
