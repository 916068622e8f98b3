//! Whatever is done to a stream: it is refused, or it gives a server that is in order. Nothing panics, and the running server is not touched.

use super::*;
use crate::state::codec::mix;

fn outcome(stream: &[u8]) {
    if let Ok(restored) = Server::<AnyStorage>::import(stream, settings(), Instant(7)) {
        let mut server = restored.server;
        assert_eq!(server.miscounted(), []);
        for link in &restored.links {
            let _fault = server.handle_bytes(link.conn, &message(Kind::Directory, 1, b"/\0"));
        }
        server.run(Instant(8), 100);
        server.handle_timeout(Instant(1 << 40));
        let mut again = Vec::new();
        let links = |_: ConnId| HostLink::default();
        server.export(Format::Own, Instant(8), &links, &mut again);
    }
}

/// Puts the right counts and digest into a stream that was changed, so that what lies behind them is met.
fn mend(stream: &mut [u8]) {
    let mut at = 16;
    let mut digest = mix(0, &stream[..16]);
    while let Some(header) = stream.get(at..at + 8) {
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let (kind, len) = (word(0), usize::try_from(word(4)).unwrap());
        let Some(body) = at
            .checked_add(8 + len)
            .and_then(|end| stream.get(at + 8..end))
        else {
            return;
        };
        if kind == 0x4653_001a && len == 24 {
            stream[at + 24..at + 32].copy_from_slice(&digest.to_le_bytes());
            return;
        }
        digest = mix(mix(digest, header), body);
        at += 8 + len;
    }
}

#[test]
fn every_truncation_is_refused() {
    let sample = Sample::new();
    for format in [Format::V1, Format::Own] {
        let stream = sample.export(format);
        for len in 0..stream.len() {
            let cut = Server::<AnyStorage>::import(&stream[..len], settings(), Instant(0));
            assert!(cut.is_err(), "{len} of {} bytes are read", stream.len());
        }
    }
}

#[test]
fn a_change_of_any_byte_of_our_own_is_noticed() {
    let stream = Sample::new().export(Format::Own);
    for at in 0..stream.len() {
        let mut changed = stream.clone();
        changed[at] ^= 0x11;
        let read = Server::<AnyStorage>::import(&changed, settings(), Instant(0));
        assert!(read.is_err(), "byte {at:#x}");
    }
}

#[test]
fn every_byte_may_be_any_other() {
    let sample = Sample::new();
    for format in [Format::V1, Format::Own] {
        let stream = sample.export(format);
        for at in 0..stream.len() {
            for change in [1, 0x80, 0xff] {
                let mut changed = stream.clone();
                changed[at] ^= change;
                mend(&mut changed);
                outcome(&changed);
            }
        }
    }
}

#[test]
fn records_may_be_left_out_doubled_or_swapped() {
    let stream = Sample::new().export(Format::Own);
    let records: Vec<&[u8]> = Records::new(&stream)
        .unwrap()
        .map(|record| {
            let record = record.unwrap();
            &stream[record.offset..record.offset + 8 + record.len]
        })
        .collect();
    let outcome_of = |records: &[&[u8]]| {
        let mut changed = [&stream[..16], &records.concat()].concat();
        mend(&mut changed);
        outcome(&changed);
    };
    for at in 0..records.len() {
        let mut left_out = records.clone();
        left_out.remove(at);
        outcome_of(&left_out);
        let mut doubled = records.clone();
        doubled.insert(at, records[at]);
        outcome_of(&doubled);
        let mut swapped = records.clone();
        swapped.swap(at, (at * 7 + 1) % records.len());
        outcome_of(&swapped);
    }
}
