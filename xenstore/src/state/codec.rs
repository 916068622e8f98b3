//! Bytes of a stream: records with a length that is a multiple of 8, written into a [`Sink`], and read with every length checked.

use alloc::vec::Vec;

use super::Damage;
use crate::storage::{digest_bytes, mix_word};

/// Where a stream is written to. One that is too small should note it, and take no more.
pub trait Sink {
    /// Takes the next bytes.
    fn put(&mut self, bytes: &[u8]);

    /// How many it still takes.
    fn room(&self) -> u64 {
        u64::MAX
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Counts the bytes of a stream and keeps none: what an export would need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size(pub u64);

impl Sink for Size {
    fn put(&mut self, bytes: &[u8]) {
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.0 = self.0.saturating_add(len);
    }
}

/// What every record's length is a multiple of.
const ALIGNMENT: usize = 8;

/// A length with its padding.
pub(super) fn padded(len: usize) -> Option<usize> {
    len.checked_next_multiple_of(ALIGNMENT)
}

/// Mixes the next bytes of a stream into the digest of those before. Their number is a multiple of 8, so that every change of a few
/// neighbouring bytes changes the digest.
pub(super) fn mix(digest: u64, bytes: &[u8]) -> u64 {
    mix_digest(digest, digest_bytes(bytes))
}

fn mix_digest(digest: u64, next: u64) -> u64 {
    digest.rotate_left(7) ^ next
}

/// Writes records.
pub(super) struct Writer<'a> {
    sink: &'a mut dyn Sink,
    /// Room for a record that is held until its length is known.
    body: Vec<u8>,
    pub(super) records: u64,
    pub(super) digest: u64,
}

impl<'a> Writer<'a> {
    pub(super) fn new(sink: &'a mut dyn Sink) -> Self {
        Self {
            sink,
            body: Vec::new(),
            records: 0,
            digest: 0,
        }
    }

    /// Bytes before the records.
    pub(super) fn preamble(&mut self, bytes: &[u8]) {
        self.digest = mix(self.digest, bytes);
        self.sink.put(bytes);
    }

    /// A record of this type with the body that `fill` makes, which is held in memory.
    pub(super) fn record(&mut self, kind: u32, fill: impl FnOnce(&mut Body<'_, '_>)) {
        let mut held = core::mem::take(&mut self.body);
        held.clear();
        let mut body = Body::Held(&mut held);
        fill(&mut body);
        body.pad();
        self.header(kind, held.len());
        self.digest = mix(self.digest, &held);
        self.sink.put(&held);
        self.body = held;
    }

    /// As [`Writer::record`], for a body that may be long: it is not held, but made twice, the first time to count its bytes.
    pub(super) fn long_record(&mut self, kind: u32, fill: impl Fn(&mut Body<'_, '_>)) {
        let mut counted = Body::Counted(0);
        fill(&mut counted);
        counted.pad();
        self.header(kind, counted.len());
        let mut stream = Stream {
            sink: self.sink,
            held: heapless::Vec::new(),
            len: 0,
            digest: 0,
        };
        let mut body = Body::Passed(&mut stream);
        fill(&mut body);
        body.pad();
        self.digest = mix_digest(self.digest, stream.end());
    }

    fn header(&mut self, kind: u32, size: usize) {
        let mut header = [0; ALIGNMENT];
        let len = u32::try_from(size).unwrap_or(u32::MAX);
        let words = [kind, len];
        for (place, word) in header.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        self.digest = mix(self.digest, &header);
        self.records = self.records.saturating_add(1);
        self.sink.put(&header);
    }
}

/// The body of a record that is being written.
pub(super) enum Body<'a, 'b> {
    Held(&'a mut Vec<u8>),
    Counted(usize),
    Passed(&'a mut Stream<'b>),
}

impl Body<'_, '_> {
    pub(super) fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// The length of something in 16 bits.
    pub(super) fn len16(&mut self, len: usize) {
        self.u16(u16::try_from(len).unwrap_or(u16::MAX));
    }

    /// The length of something in 32 bits.
    pub(super) fn len32(&mut self, len: usize) {
        self.u32(u32::try_from(len).unwrap_or(u32::MAX));
    }

    /// Bytes behind their length in 32 bits.
    pub(super) fn block(&mut self, bytes: &[u8]) {
        self.len32(bytes.len());
        self.bytes(bytes);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        match self {
            Self::Held(held) => held.extend_from_slice(bytes),
            Self::Counted(len) => *len = len.saturating_add(bytes.len()),
            Self::Passed(stream) => stream.put(bytes),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Held(held) => held.len(),
            Self::Counted(len) => *len,
            Self::Passed(stream) => stream.len,
        }
    }

    /// Zeros up to a multiple of 8.
    pub(super) fn pad(&mut self) {
        let len = self.len();
        let size = padded(len).unwrap_or(len);
        let zeros = [0; ALIGNMENT];
        let missing = zeros.get(..size.saturating_sub(len));
        self.bytes(missing.unwrap_or_default());
    }
}

/// Bytes that are held until there is enough of them to pass on.
const HELD_MAX: usize = 512;

/// A body on its way.
pub(super) struct Stream<'a> {
    sink: &'a mut dyn Sink,
    held: heapless::Vec<u8, HELD_MAX>,
    len: usize,
    /// Of all that was passed on.
    digest: u64,
}

impl Stream<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.len = self.len.saturating_add(bytes.len());
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = HELD_MAX.saturating_sub(self.held.len());
            let (next, others) = rest.split_at(room.min(rest.len()));
            let _fits = self.held.extend_from_slice(next);
            rest = others;
            if self.held.is_full() {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        let words = self.held.as_chunks().0.iter();
        let words = words.map(|word| u64::from_le_bytes(*word));
        self.digest = words.fold(self.digest, mix_word);
        self.sink.put(&self.held);
        self.held.clear();
    }

    /// Passes the rest on; gives the digest of all, as [`digest_bytes`] would.
    fn end(mut self) -> u64 {
        self.flush();
        mix_word(self.digest, 0)
    }
}

/// The fields of a record that is being read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Damage> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(Damage::Short)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(Damage::Short)?;
        self.rest = rest;
        Ok(*bytes)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Damage> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Damage> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Damage> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Damage> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn u128(&mut self) -> Result<u128, Damage> {
        self.array().map(u128::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, Damage> {
        self.array().map(i64::from_le_bytes)
    }

    /// A number in as many bytes as it needs (`packed.rs`).
    pub(super) fn varint(&mut self) -> Result<u64, Damage> {
        let mut value = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            let shifted = bits << shift;
            if shifted >> shift != bits {
                return Err(Damage::Field);
            }
            value |= shifted;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Damage::Field)
    }

    /// A length in 32 bits.
    pub(super) fn len32(&mut self) -> Result<usize, Damage> {
        usize::try_from(self.u32()?).map_err(|_| Damage::Short)
    }

    /// Bytes behind their length in 32 bits.
    pub(super) fn block(&mut self) -> Result<&'a [u8], Damage> {
        let len = self.len32()?;
        self.bytes(len)
    }
}
