//! Requests of three domains, of any type with any payload, and what happens to domains meanwhile. Two storages do the same, every
//! reply is one that can be (`client`), and the store's own check finds its accounts in order.

use xenstore::wire::Kind;
use xenstore::{AnyStorage, FlatMap};

use super::client::{DOMAINS, World};
use crate::bytes::Bytes;

/// Pieces of payloads that mean something.
const WORDS: [&[u8]; 40] = [
    b"/",
    b"/t",
    b"/t/a",
    b"/t/a/b",
    b"/t/c",
    b"a",
    b"a/b",
    b"a/b/c/d",
    b"b",
    b"name",
    b"/local/domain/0",
    b"/local/domain/1",
    b"/local/domain/1/a",
    b"/local/domain/2",
    b"/local/domain/2/b",
    b"/local/domain/",
    b"/tool/xenstored",
    b"@releaseDomain",
    b"@introduceDomain",
    b"@x",
    b"//",
    b"0",
    b"1",
    b"2",
    b"3",
    b"7",
    b"65535",
    b"token",
    b"n0",
    b"n1",
    b"b2",
    b"r1",
    b"w1",
    b"T",
    b"F",
    b"nodes",
    b"watches",
    b"check",
    b"quota",
    b"x",
];
/// Most steps of a run.
const STEPS_MAX: usize = 200;

pub(crate) fn run(input: &[u8]) {
    let mut tree = World::<AnyStorage>::new();
    let mut flat = World::<FlatMap>::new();
    let mut input = Bytes::new(input);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let step = Step::next(&mut input);
        step.take(&mut tree);
        step.take(&mut flat);
        if !matches!(step, Step::Send { settles: false, .. }) {
            assert_eq!(tree.settle(), flat.settle());
        }
    }
    for world_is_quiet in [1, 2] {
        tree.set_reading(world_is_quiet, true);
        flat.set_reading(world_is_quiet, true);
    }
    assert_eq!(tree.settle(), flat.settle());
    let verdicts = [
        tree.ask(0, Kind::Control, b"check\0"),
        flat.ask(0, Kind::Control, b"check\0"),
    ];
    for verdict in verdicts {
        assert_eq!(verdict.payload, b"OK\0", "{verdict:?}");
    }
}

#[derive(Debug)]
enum Step {
    Send {
        domain: usize,
        kind: u32,
        tx_id: u32,
        payload: Vec<u8>,
        settles: bool,
    },
    Kill(usize),
    Build(usize),
    Reset(usize),
    Read(usize, bool),
    Pass(u64),
}

impl Step {
    fn next(input: &mut Bytes<'_>) -> Self {
        let choice = input.byte();
        let domain = usize::from(choice) % DOMAINS;
        match choice / 3 {
            0 => Self::Kill(domain.max(1)),
            1 => Self::Build(domain.max(1)),
            2 => Self::Reset(domain.max(1)),
            3 => Self::Read(domain, false),
            4 => Self::Read(domain, true),
            5 => Self::Pass(30_000),
            6 => Self::Pass(1),
            _ => Self::Send {
                domain,
                kind: u32::from(input.byte() % 29),
                tx_id: u32::try_from(input.below(6)).unwrap().saturating_sub(2),
                payload: payload(input),
                settles: choice < 200,
            },
        }
    }

    fn take<S: xenstore::Storage>(&self, world: &mut World<S>) {
        match self {
            Self::Send {
                domain,
                kind,
                tx_id,
                payload,
                ..
            } => world.send(*domain, *kind, *tx_id, payload),
            Self::Kill(domain) => world.kill(*domain),
            Self::Build(domain) => {
                world.kill(*domain);
                world.build(*domain);
            }
            Self::Reset(domain) => world.reset(*domain),
            Self::Read(domain, reads) => world.set_reading(*domain, *reads),
            Self::Pass(milliseconds) => world.pass(*milliseconds),
        }
    }
}

/// Words, bytes as they are, and much of one byte.
fn payload(input: &mut Bytes<'_>) -> Vec<u8> {
    let mut payload = Vec::new();
    for _ in 0..input.below(6) {
        match input.byte() {
            choice @ 0..200 => {
                payload.extend(WORDS[usize::from(choice) % WORDS.len()]);
                payload.push(0);
            }
            200..240 => {
                let length = input.below(20);
                payload.extend(input.slice(length));
            }
            240..250 => drop(payload.pop()),
            _ => {
                let byte = input.byte();
                payload.extend(std::iter::repeat_n(byte, input.below(256) * 10));
            }
        }
    }
    payload.truncate(4096);
    payload
}
