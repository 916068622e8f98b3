//! Numbers in payloads: domids, depths, offsets and limits are plain decimal in range, or EINVAL.

use xenstore::AnyStorage;
use xenstore::wire::Kind;

use super::client::World;
use crate::bytes::Bytes;

/// A request with a number as its last word: its type, what stands before, the largest number.
const REQUESTS: [(Kind, &str, u64); 4] = [
    (Kind::GetDomainPath, "", 65535),
    (Kind::Watch, "/t\0token\0", 4_294_967_295),
    (Kind::DirectoryPart, "/\0", 4_294_967_295),
    (Kind::SetQuota, "watches\0", 4_294_967_295),
];

pub(crate) fn run(input: &[u8]) {
    let mut input = Bytes::new(input);
    let mut world = World::<AnyStorage>::new();
    while !input.is_empty() {
        let (kind, before, most) = REQUESTS[input.below(REQUESTS.len())];
        let length = input.below(24);
        let text: Vec<u8> = input
            .slice(length)
            .iter()
            .map(|byte| byte.max(&1))
            .map(|byte| if *byte < 200 { b'0' + byte % 10 } else { *byte })
            .collect();
        let payload = [before.as_bytes(), &text, &[0]].concat();
        let reply = world.ask(0, kind, &payload);
        let is_taken = reply.header.kind != Kind::Error.number();
        assert_eq!(is_taken, is_number(&text, most), "{kind:?} {text:?}");
        if !is_taken {
            assert_eq!(reply.payload, b"EINVAL\0");
        }
        if is_taken && kind == Kind::Watch {
            world.ask(0, Kind::Unwatch, b"/t\0token\0");
        }
    }
}

/// Digits that the number itself would be written with, and not too large.
fn is_number(text: &[u8], most: u64) -> bool {
    let text = std::str::from_utf8(text).unwrap_or_default();
    let number = text.parse::<u64>();
    number.is_ok_and(|number| number <= most && number.to_string() == text)
}
