//! The 16 bytes before every payload.

use crate::ids::ReqId;

/// Bytes of a header on the wire.
pub const HEADER_SIZE: usize = 16;
/// Most bytes of a payload, in both directions (`XENSTORE_PAYLOAD_MAX`).
pub const PAYLOAD_MAX: u32 = 4096;

/// A message's header: four little-endian words (protocol.md section 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The message's type; see [`super::Kind`].
    pub kind: u32,
    /// The client's own number, echoed in the reply; 0 in an event.
    pub req_id: ReqId,
    /// The transaction, 0 for none; echoed in the reply; 0 in an event.
    pub tx_id: u32,
    /// Bytes of the payload.
    pub len: u32,
}

impl Header {
    /// Reads a header. Every bit pattern is one; the fields are not judged here.
    #[must_use]
    pub fn decode(bytes: [u8; HEADER_SIZE]) -> Self {
        let (words, _) = bytes.as_chunks::<4>();
        let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
        let mut next = || words.next().unwrap_or(0);
        Self {
            kind: next(),
            req_id: ReqId(next()),
            tx_id: next(),
            len: next(),
        }
    }

    /// The header as bytes.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let words = [self.kind, self.req_id.0, self.tx_id, self.len];
        for (place, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_at_their_offsets() {
        let header = Header {
            kind: 11,
            req_id: ReqId(0x0102_0304),
            tx_id: 7,
            len: 4096,
        };
        let bytes = header.encode();
        assert_eq!(bytes, [11, 0, 0, 0, 4, 3, 2, 1, 7, 0, 0, 0, 0, 16, 0, 0]);
        assert_eq!(Header::decode(bytes), header);
    }
}
