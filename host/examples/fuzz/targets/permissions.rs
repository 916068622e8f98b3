//! Lists of permissions: which are taken, how they are shown, and what they let two guests do.

use xenstore::AnyStorage;
use xenstore::wire::Kind;

use super::client::World;
use crate::bytes::Bytes;

/// Who may be named: the domains that there are, some that there are not, and what is no domid.
const NAMES: [&str; 12] = [
    "0", "1", "2", "1", "2", "3", "7", "32752", "65535", "65536", "01", "",
];
const LETTERS: &[u8] = b"rwbnrwbnx";

pub(crate) fn run(input: &[u8]) {
    let mut input = Bytes::new(input);
    let mut world = World::<AnyStorage>::new();
    world.ask(0, Kind::Write, b"/t/a\0x");
    while !input.is_empty() {
        let entries: Vec<String> = (0..input.below(7))
            .map(|_| {
                let letter = char::from(LETTERS[input.below(LETTERS.len())]);
                format!("{letter}{}", NAMES[input.below(NAMES.len())])
            })
            .collect();
        let list: String = entries.iter().map(|entry| format!("{entry}\0")).collect();
        let reply = world.ask(0, Kind::SetPerms, format!("/t/a\0{list}").as_bytes());
        let Some(parsed) = parse(&entries) else {
            assert_eq!(reply.payload, b"EINVAL\0", "{entries:?}");
            continue;
        };
        let owner = parsed[0].1;
        if owner > 2 {
            assert_eq!(reply.payload, b"ENOENT\0", "{entries:?}");
            continue;
        }
        assert_eq!(reply.payload, b"OK\0", "{entries:?}");
        let shown = world.ask(0, Kind::GetPerms, b"/t/a\0").payload;
        assert_eq!(shown, list.as_bytes());
        for guest in 1..3_u16 {
            for (right, kind, payload) in [
                ('r', Kind::Read, &b"/t/a\0"[..]),
                ('w', Kind::Write, b"/t/a\0x"),
            ] {
                let reply = world.ask(guest.into(), kind, payload);
                let is_allowed = reply.header.kind == kind.number();
                assert_eq!(
                    is_allowed,
                    may(&parsed, guest, right),
                    "{entries:?} {guest} {right}"
                );
                if !is_allowed {
                    assert_eq!(reply.payload, b"EACCES\0");
                }
            }
        }
    }
}

/// The entries, if there is one and all are well formed.
fn parse(entries: &[String]) -> Option<Vec<(char, u16)>> {
    let parse = |entry: &String| {
        let (letter, domid) = entry.split_at(1);
        let letter = letter.chars().next().filter(|letter| *letter != 'x')?;
        let number: u16 = domid.parse().ok()?;
        (number.to_string() == domid).then_some((letter, number))
    };
    let parsed: Option<Vec<_>> = entries.iter().map(parse).collect();
    parsed.filter(|parsed| !parsed.is_empty())
}

/// The owner may do all; else the first entry behind the owner's that names the guest decides, else the owner's letter.
fn may(entries: &[(char, u16)], guest: u16, right: char) -> bool {
    let (others, owner) = entries[0];
    let own = entries[1..].iter().find(|(_, domid)| *domid == guest);
    let letter = own.map_or(others, |(letter, _)| *letter);
    owner == guest || letter == 'b' || letter == right
}
