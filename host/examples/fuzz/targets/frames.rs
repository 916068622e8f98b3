//! The same bytes in pieces of any size, and at once: the replies are the same.

use xenstore::AnyStorage;
use xenstore::wire::Kind;

use super::client::{Message, World};
use crate::bytes::Bytes;

/// The guest that speaks.
const GUEST: usize = 1;
/// Most requests of a run.
const REQUESTS_MAX: usize = 40;

pub(crate) fn run(input: &[u8]) {
    let mut input = Bytes::new(input);
    let requests = requests(&mut input);
    let pieces = input.rest();

    let mut at_once = World::<AnyStorage>::new();
    let mut in_pieces = World::<AnyStorage>::new();
    for world in [&mut at_once, &mut in_pieces] {
        for request in &requests {
            match request {
                Request::Whole(kind, payload) => world.send(GUEST, *kind, 0, payload),
                Request::Header(bytes) => world.send_bytes(GUEST, bytes),
            }
        }
    }
    let mut got: Vec<Message> = Vec::new();
    for piece in pieces {
        in_pieces.exchange(GUEST, usize::from(*piece) % 40);
        got.extend(own(in_pieces.turn()));
    }
    got.extend(own(in_pieces.settle()));
    assert_eq!(got, own(at_once.settle()).collect::<Vec<_>>());
    assert_eq!(in_pieces.is_stopped(GUEST), at_once.is_stopped(GUEST));
}

enum Request {
    Whole(u32, Vec<u8>),
    /// 16 bytes, from which on nothing need be well formed.
    Header([u8; 16]),
}

fn requests(input: &mut Bytes<'_>) -> Vec<Request> {
    let mut requests = Vec::new();
    for _ in 0..input.below(REQUESTS_MAX) {
        let kind = [Kind::Write, Kind::Read, Kind::Directory, Kind::Watch][input.below(4)];
        let length = input.below(100) * if input.below(8) == 0 { 40 } else { 1 };
        let mut payload = input.slice(length).to_vec();
        payload.push(0);
        requests.push(Request::Whole(kind.number(), payload));
    }
    if input.below(4) == 0 {
        let mut header = [0; 16];
        let bytes = input.slice(16);
        header[..bytes.len()].copy_from_slice(bytes);
        // Too long, or of no bytes.
        let len = if input.below(2) == 0 {
            4097 + input.word() % 9
        } else {
            u32::MAX
        };
        header[12..].copy_from_slice(&len.to_le_bytes());
        requests.push(Request::Header(header));
    }
    requests
}

fn own(messages: Vec<(usize, Message)>) -> impl Iterator<Item = Message> {
    let own = messages.into_iter().filter(|(to, _)| *to == GUEST);
    own.map(|(_, message)| message)
}
