//! The bytes of the documented records, as docs/designs/xenstore-migration.md of Xen has them.

use super::*;
use crate::state::{LeftOut, Loss};

/// The body of the first record of this type that holds these bytes.
fn body(stream: &[u8], kind: u32, with: &[u8]) -> Vec<u8> {
    let records = Records::new(stream).unwrap().map(Result::unwrap);
    let mut bodies = records
        .filter(|record| record.kind == kind)
        .map(|record| {
            let start = record.offset + 8;
            stream[start..start + record.len].to_vec()
        })
        .filter(|body| with.is_empty() || body.windows(with.len()).any(|window| window == with));
    bodies.next().unwrap()
}

#[test]
fn the_preamble_is_big_endian() {
    let sample = Sample::new();
    let stream = sample.export(Format::V1);
    assert_eq!(stream[..16], *b"xenstore\0\0\0\x01\0\0\0\0");
    let stream = sample.export(Format::V2);
    assert_eq!(stream[..16], *b"xenstore\0\0\0\x02\0\0\0\0");
}

#[test]
fn a_stream_for_others_has_documented_records_in_the_order_of_c() {
    let stream = Sample::new().export(Format::V1);
    let kinds: Vec<u32> = Records::new(&stream)
        .unwrap()
        .map(|record| record.unwrap().kind)
        .collect();
    let connections = [2, 2, 3, 3, 3, 4, 2, 4];
    let nodes = [5; 13];
    let all = [&[1, 6][..], &connections, &nodes, &[7, 7, 7, 0]].concat();
    assert_eq!(kinds, all, "{:#?}", lines(&stream));
}

#[test]
fn t_lu_04_records_have_the_documented_layout() {
    let stream = Sample::new().export(Format::V1);
    assert_eq!(body(&stream, 1, &[]), [0xff; 8]);
    let quotas = body(&stream, 6, &[]);
    assert_eq!(quotas[..8], [10, 0, 0, 0, 0xe8, 3, 0, 0]);
    assert_eq!(quotas[8..12], [99, 0, 0, 0]);
    assert_eq!(quotas[44..58], *b"nodes\0watches\0");
    // The guest: half a request, and an event that nobody has read.
    let ring = body(&stream, 2, &[5, 0, 0xf4, 0x7f, 21, 0, 0, 0]);
    assert_eq!(
        ring[..16],
        [2, 0, 0, 0, 0, 0, 1, 0, 5, 0, 0xf4, 0x7f, 21, 0, 0, 0]
    );
    assert_eq!(ring[16..20], [18, 0, 0, 0]);
    assert_eq!(ring[24..42], message(Kind::Read, 0, b"/a/b\0")[..18]);
    assert_eq!(ring[ring.len() - 8..], 105_u64.to_le_bytes());
    // The stub domain: its target, and the rest of a reply of which it has 5 bytes.
    let stub = body(&stream, 2, &[7, 0, 5, 0, 22, 0, 0, 0]);
    assert_eq!(stub[16..24], [0, 0, 14, 0, 14, 0, 0, 0]);
    assert_eq!(stub[24..38], message(Kind::Write, 0, b"OK\0")[5..]);
    // Watches, spelt as they were.
    assert_eq!(
        body(&stream, 3, b"rel"),
        *b"\x02\0\0\0\x05\0\x04\0data\0rel\0\0\0\0\0\0\0\0"
    );
    assert_eq!(
        body(&stream, 3, b"deep"),
        *b"\x02\0\0\0\x03\0\x05\0/a\0deep\0"
    );
    assert_eq!(body(&stream, 4, &[2, 0, 0, 0]), [2, 0, 0, 0, 1, 0, 0, 0]);
    // A node: entries of the dead are gone; every domain is one.
    let node = body(&stream, 5, b"/a/c");
    let expected =
        *b"\0\0\0\0\0\0\0\0\x05\0\0\0\0\0\x03\0n\0\0\0r\0\x05\0w\0\xf5\x7f/a/c\0\0\0\0\0\0\0\0";
    assert_eq!(node, expected);
    let value = body(&stream, 5, b"/a/b");
    assert_eq!(value[10..12], [5, 0]);
    assert_eq!(value[20..30], *b"/a/b\0value");
    let domain = body(&stream, 7, &[5, 0, 1, 0]);
    assert_eq!(
        domain,
        *b"\x05\0\x01\0\0\0\0\0\xf4\x01\0\0nodes\0\0\0\0\0\0\0"
    );
}

#[test]
fn version_2_has_features_and_our_own_has_depths() {
    let sample = Sample::new();
    let features = |stream: &[u8]| body(stream, 7, &[5, 0, 1, 0])[4];
    assert_eq!(features(&sample.export(Format::V1)), 0);
    assert_eq!(features(&sample.export(Format::V2)), 15);
    let own = sample.export(Format::Own);
    assert_eq!(features(&own), 15);
    assert_eq!(
        body(&own, 8, b"deep"),
        *b"\x02\0\0\0\x03\0\x05\0\x01\0\0\0/a\0deep\0\0\0\0\0"
    );
    assert!(
        lines(&sample.export(Format::V2))
            .iter()
            .all(|line| !line.contains("own "))
    );
}

#[test]
fn what_a_format_has_no_place_for_is_named() {
    let sample = Sample::new();
    let losses = |format| {
        let links = |_: ConnId| HostLink::default();
        let mut stream = Vec::new();
        sample
            .server
            .export(format, Instant(0), &links, &mut stream)
    };
    let loss = |domid, what, count| LeftOut {
        domid: DomId::new(domid),
        what,
        count,
    };
    let expected = [
        loss(5, Loss::Transactions, 1),
        loss(5, Loss::Depths, 1),
        loss(7, Loss::Transactions, 1),
    ];
    assert_eq!(losses(Format::V1), expected);
    assert_eq!(losses(Format::V2), expected);
    assert_eq!(losses(Format::Own), []);
    assert_eq!(format!("{}", expected[0]), "domain 5: 1 open transactions");
}
