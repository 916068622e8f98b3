//! Nodes in a row in one record, each written as it differs from the one before.
//!
//! Most of a stream is nodes, and the room for it is memory that nothing else has: a record of its own takes three times as much.

use alloc::vec::Vec;

use super::Damage;
use super::codec::Fields;
use super::own::{Bytes, FIRST, Near, Own};
use super::record::{Permissions, absolute};

/// The type of a record of nodes.
pub(super) const NODES: u32 = FIRST.saturating_add(43);
const _: () = assert!(Own::name(NODES).is_none());
/// A record of so many bytes gets no further node.
const ENOUGH: u64 = 2048;

/// Bytes of a record besides its nodes, and what its first node takes more than others, at most.
const RECORD_MOST: u64 = 32;
/// Bytes of a node besides its name, its value, its permissions and its generation, at most: the lengths of these and of what its path
/// has in common with that of the node before, and a slash.
const NODE_MOST: u64 = 9;

/// Bytes that so many nodes have in a stream at most, with `texts` bytes of names, values and permissions, while the generation is
/// `generation`.
pub(crate) fn nodes_most(nodes: u64, texts: u64, generation: u64) -> u64 {
    let bits = u64::from(u64::BITS.saturating_sub(generation.leading_zeros()));
    let of_generation = bits.saturating_add(1).div_ceil(7);
    let of_nodes = nodes.saturating_mul(NODE_MOST.saturating_add(of_generation));
    let all = texts.saturating_add(of_nodes);
    let records = (all / ENOUGH).saturating_add(1);
    all.saturating_add(records.saturating_mul(RECORD_MOST))
}

/// Collects nodes until they are enough for a record.
#[derive(Default)]
pub(super) struct Packer {
    bytes: Vec<u8>,
    generation: u64,
    entries: Vec<u8>,
    departed: Vec<u8>,
}

impl Packer {
    /// Adds a node; gives whether the record is long enough.
    pub(super) fn add(
        &mut self,
        path: Near<'_>,
        generation: u64,
        entries: &[u8],
        departed: &[u8],
        value: &[u8],
    ) -> bool {
        let (shared, rest) = path.parts();
        let is_other = self.entries != entries || self.departed != departed;
        self.varint(wide(shared));
        self.varint(flagged(rest.len(), is_other));
        self.bytes.extend_from_slice(rest.as_bytes());
        let step = generation.wrapping_sub(core::mem::replace(&mut self.generation, generation));
        self.varint(zigzag(step));
        if is_other {
            self.varint(flagged(entries.len() / 4, !departed.is_empty()));
            self.bytes.extend_from_slice(entries);
            self.bytes.extend_from_slice(departed);
            self.entries.clear();
            self.entries.extend_from_slice(entries);
            self.departed.clear();
            self.departed.extend_from_slice(departed);
        }
        self.varint(wide(value.len()));
        self.bytes.extend_from_slice(value);
        wide(self.bytes.len()) >= ENOUGH
    }

    /// The nodes that were added.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The next node begins another record. All memory is kept: after a crash what is given back is lost.
    pub(super) fn begin(&mut self) {
        self.bytes.clear();
        self.entries.clear();
        self.departed.clear();
        self.generation = 0;
    }

    /// Seven bits to a byte, the lowest first; all bytes but the last have the highest bit.
    fn varint(&mut self, value: u64) {
        let mut rest = value;
        while rest >= 0x80 {
            self.bytes.push(low_byte(rest) | 0x80);
            rest >>= 7;
        }
        self.bytes.push(low_byte(rest));
    }
}

/// Takes the nodes out of a record, one after the other.
#[derive(Clone, Debug)]
pub(super) struct Packed<'a> {
    rest: Fields<'a>,
    generation: u64,
    permissions: Option<Permissions<'a>>,
    departed: &'a [u8],
}

impl<'a> Packed<'a> {
    /// Those of a record with this body.
    pub(super) fn new(body: &'a [u8]) -> Result<Self, Damage> {
        let mut fields = Fields::new(body);
        Ok(Self {
            rest: Fields::new(fields.block()?),
            generation: 0,
            permissions: None,
            departed: &[],
        })
    }

    /// Whether there is none left.
    pub(super) fn is_over(&self) -> bool {
        self.rest.rest().is_empty()
    }

    pub(super) fn node(&mut self) -> Result<Own<'a>, Damage> {
        let shared = self.length()?;
        let (len, is_other) = self.flagged()?;
        let path = Near::new(shared, absolute(self.rest.bytes(len)?)?);
        let step = unzigzag(self.rest.varint()?);
        self.generation = self.generation.wrapping_add(step);
        if is_other {
            let (count, has_departed) = self.flagged()?;
            let entries = u16::try_from(count).ok().filter(|count| *count > 0);
            let entries = entries.ok_or(Damage::Permission)?;
            self.permissions = Some(Permissions::read(&mut self.rest, entries)?);
            let departed = if has_departed { count } else { 0 };
            self.departed = self.rest.bytes(departed)?;
        }
        let len = self.length()?;
        Ok(Own::Node {
            path,
            generation: self.generation,
            permissions: self.permissions.ok_or(Damage::Permission)?,
            departed: Bytes(self.departed),
            value: Bytes(self.rest.bytes(len)?),
        })
    }

    fn length(&mut self) -> Result<usize, Damage> {
        usize::try_from(self.rest.varint()?).map_err(|_| Damage::Short)
    }

    fn flagged(&mut self) -> Result<(usize, bool), Damage> {
        let number = self.length()?;
        Ok((number >> 1, number & 1 == 1))
    }
}

/// A length, and a flag in its lowest bit.
fn flagged(len: usize, flag: bool) -> u64 {
    wide(len).saturating_mul(2) | u64::from(flag)
}

/// Small steps in either direction are small numbers.
fn zigzag(step: u64) -> u64 {
    let is_down = step >> 63;
    (step << 1) ^ is_down.wrapping_neg()
}

fn unzigzag(number: u64) -> u64 {
    (number >> 1) ^ (number & 1).wrapping_neg()
}

fn low_byte(number: u64) -> u8 {
    let [low, ..] = number.to_le_bytes();
    low & 0x7f
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::own::Near;
    use proptest::prelude::*;

    type Written = (String, u64, Vec<u8>, bool, Vec<u8>);

    fn nodes() -> impl Strategy<Value = Vec<Written>> {
        let path = prop_oneof![Just("/".to_owned()), "(/[ab]{1,70}){1,5}"];
        let generation = prop_oneof![0_u64..300, any::<u64>()];
        let entries = prop::collection::vec(
            prop::sample::select(vec![*b"n\0\0\0", *b"r\x01\x05\0"]),
            1..4,
        );
        let node = (
            path,
            generation,
            entries.prop_map(|all| all.concat()),
            any::<bool>(),
            prop::collection::vec(any::<u8>(), 0..200),
        );
        prop::collection::vec(node, 1..20)
    }

    fn departed(entries: &[u8], has_some: bool) -> Vec<u8> {
        vec![1; if has_some { entries.len() / 4 } else { 0 }]
    }

    fn body(nodes: &[Written]) -> Vec<u8> {
        let (mut packer, mut before) = (Packer::default(), "");
        for (path, generation, entries, has_departed, value) in nodes {
            let departed = departed(entries, *has_departed);
            packer.add(
                Near::of(path, before),
                *generation,
                entries,
                &departed,
                value,
            );
            before = path;
        }
        let bytes = packer.bytes();
        [
            &u32::try_from(bytes.len()).unwrap().to_le_bytes()[..],
            bytes,
        ]
        .concat()
    }

    proptest! {
        #[test]
        fn nodes_that_are_written_are_read(nodes in nodes()) {
            let body = body(&nodes);
            let mut packed = Packed::new(&body).unwrap();
            let mut path = String::new();
            for (written, own_generation, own_entries, has_departed, own_value) in &nodes {
                let Own::Node { path: near, generation, permissions, departed: gone, value } = packed.node().unwrap() else {
                    panic!("no node")
                };
                near.follow(&mut path).unwrap();
                prop_assert_eq!(&path, written);
                prop_assert_eq!(generation, *own_generation);
                prop_assert_eq!(permissions.as_bytes(), own_entries);
                prop_assert_eq!(gone.0, departed(own_entries, *has_departed));
                prop_assert_eq!(value.0, own_value);
            }
            prop_assert!(packed.is_over());
        }

        #[test]
        fn no_bytes_make_the_reader_stumble(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let body = [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], &bytes].concat();
            let mut packed = Packed::new(&body).unwrap();
            while !packed.is_over() && packed.node().is_ok() {}
        }

        #[test]
        fn nodes_are_not_longer_than_is_said(nodes in nodes()) {
            let most = nodes.iter().map(|(_, generation, ..)| *generation).max().unwrap_or_default();
            let texts: usize = nodes.iter().map(|(path, _, entries, _, value)| path.len() + entries.len() / 4 * 5 + value.len()).sum();
            let said = nodes_most(wide(nodes.len()), wide(texts), most);
            prop_assert!(wide(body(&nodes).len()) <= said);
        }
    }
}
