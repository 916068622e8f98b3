//! Streams that others wrote.

use super::*;
use crate::features::Features;
use crate::state::{Damage, StateError};

/// Written by Debian's xenstored 4.17 in `host/tests/peer_state.rs`.
const OF_C: &[u8] = include_bytes!("c-xenstored-4.17.stream");

fn refused(stream: &[u8]) -> StateError {
    match Server::<AnyStorage>::import(stream, settings(), Instant(0)) {
        Ok(_) => panic!("it is read"),
        Err(error) => error,
    }
}

/// A connection's reply to a request.
fn ask(server: &mut Server, conn: ConnId, kind: Kind, tx: u32, payload: &[u8]) -> Vec<u8> {
    server
        .handle_bytes(conn, &message(kind, tx, payload))
        .unwrap();
    server.run(Instant(2_000_000_000), u32::MAX);
    drain(server, conn).split_off(HEADER_SIZE)
}

#[test]
fn t_lu_04_a_stream_of_c_is_read() {
    let restored = import(OF_C);
    let mut server = restored.server;
    assert_eq!((restored.version, restored.is_own), (1, false));
    let links = &restored.links;
    let domids: Vec<_> = links
        .iter()
        .map(|link| link.domid.map(DomId::get))
        .collect();
    assert_eq!(domids, [Some(0), None, None, Some(5), Some(7)]);
    assert_eq!(restored.host.socket_fd, Some(3));
    let (admin, half) = (links[1].conn, links[2].conn);
    // The reply to the request that started the update, then life goes on.
    assert_eq!(
        drain(&mut server, admin),
        message(Kind::Control, 0, b"OK\0")
    );
    assert_eq!(
        ask(&mut server, admin, Kind::Read, 0, b"/a/b/c\0"),
        b"value"
    );
    assert_eq!(
        ask(&mut server, admin, Kind::Directory, 0, b"/a\0"),
        b"b\0d\0"
    );
    assert_eq!(
        ask(&mut server, admin, Kind::GetPerms, 0, b"/a/d\0"),
        b"n0\0r5\0b7\0"
    );
    let rest = &message(Kind::Read, 0, b"/a/b/c\0")[19..];
    server.handle_bytes(half, rest).unwrap();
    server.run(Instant(0), u32::MAX);
    assert_eq!(drain(&mut server, half)[16..], *b"value");
    assert_eq!(server.watches.of(admin).len(), 3);
    let stub = server.domains.get(DomId::new(7)).unwrap();
    let target = server.domains.get(DomId::new(5)).unwrap();
    assert_eq!(stub.target, Some(target.incarnation));
    assert_eq!(server.miscounted(), []);
}

#[test]
fn who_is_not_named_is_asked_for() {
    let mut restored = import(OF_C);
    let unconfirmed: Vec<u16> = restored
        .unconfirmed
        .iter()
        .map(|domid| domid.get())
        .collect();
    assert_eq!(unconfirmed, [0, 5, 7]);
    let identity = Identity {
        domid: DomId::new(5),
        unique: UniqueId(55),
    };
    restored.server.confirm(DomId::new(5), Some(identity));
    restored.server.confirm(DomId::new(7), None);
    assert_eq!(restored.server.known_domain(DomId::new(5)), Some(identity));
    assert!(restored.server.is_introduced(DomId::new(5)));
    assert!(!restored.server.is_introduced(DomId::new(7)));
    let admin = restored.links[1].conn;
    drain(&mut restored.server, admin);
    let perms = ask(&mut restored.server, admin, Kind::GetPerms, 0, b"/a/d\0");
    assert_eq!(perms, b"n0\0r5\0", "what was domain 7's is nobody's");
}

/// The domid is another domain's by the time of the import.
#[test]
fn t_lu_13_a_domid_that_was_used_again_is_torn_down() {
    let mut restored = import(&Sample::new().export(Format::Own));
    let guest = restored
        .links
        .iter()
        .find(|link| link.domid == Some(DomId::new(5)));
    let known = guest.unwrap().identity.unwrap();
    assert_eq!(known.unique, UniqueId(105));
    let dead = [crate::server::DomainEvent::Dead(known)];
    restored.server.handle_domains(&dead, u32::MAX, false);
    assert!(!restored.server.is_introduced(DomId::new(5)));
    let dom0 = restored.links[0].conn;
    drain(&mut restored.server, dom0);
    assert_eq!(
        ask(
            &mut restored.server,
            dom0,
            Kind::Read,
            0,
            b"/local/domain/5\0"
        ),
        b"ENOENT\0"
    );
}

#[test]
fn t_lu_03_versions_and_byte_order() {
    let records = [node("/"), end()];
    for version in [1, 2] {
        assert_eq!(import(&stream(version, &records)).version, version);
    }
    for version in [0, 3, u32::MAX] {
        let error = refused(&stream(version, &records));
        assert_eq!(error.why, Damage::Version(version));
    }
    let mut foreign = stream(1, &records);
    foreign[15] = 1;
    assert_eq!(refused(&foreign).why, Damage::Flags(1));
    assert_eq!(refused(b"").why, Damage::Identifier);
    assert_eq!(
        refused(b"xenstor\0\0\0\0\x01\0\0\0\0").why,
        Damage::Identifier
    );
}

#[test]
fn unknown_records_and_quotas_are_no_matter_and_quotas_come_back() {
    let quotas = [
        &[2, 0, 1, 0][..],
        &[5, 0, 0, 0, 9, 0, 0, 0, 7, 0, 0, 0],
        b"nodes\0x-new\0x-all\0",
    ];
    let mut quotas = quotas.concat();
    quotas.resize(quotas.len().next_multiple_of(8), 0);
    let own = b"\x05\0\x02\0\0\0\0\0\x03\0\0\0\x05\0\0\0x-own\0nodes\0\0\0\0\0".to_vec();
    let records = [
        record(6, &quotas),
        record(77, &[1; 8]),
        ring(1, 5),
        node("/"),
        record(77, &[]),
        record(7, &own),
        end(),
    ];
    let restored = import(&stream(2, &records));
    assert_eq!(restored.skipped, [(77, 2)]);
    let mut again = Vec::new();
    let links = |_: ConnId| HostLink::default();
    restored
        .server
        .export(Format::V2, Instant(0), &links, &mut again);
    let again = lines(&again);
    assert!(
        again
            .iter()
            .any(|line| line.contains(" x-new=9; for all together x-all=7"))
    );
    // That one is as for all: it was not set for this domain.
    assert!(
        again.contains(&"DOMAIN_DATA 5: features 0x0 x-own=3".into()),
        "{again:#?}"
    );
}

/// What C writes for a watch with a depth: no depth, and a length that is up to 8 bytes too long.
#[test]
fn t_lu_10_watches_with_depths_of_c_are_read() {
    for (path, token) in [
        ("/a", "t"),
        ("/a", "1234"),
        ("/ab", "1234"),
        ("@releaseDomain", "x"),
        ("/a/b/c/d", "12345678"),
    ] {
        let text = format!("{path}\0{token}\0");
        let declared = (12 + text.len()).next_multiple_of(8);
        let lengths = [path.len() + 1, token.len() + 1].map(|len| u8::try_from(len).unwrap());
        let mut body = [1, 0, 0, 0, lengths[0], 0, lengths[1], 0].to_vec();
        body.extend_from_slice(text.as_bytes());
        body.resize(body.len().next_multiple_of(8), 0);
        let mut short = record(8, &body);
        short[4..8].copy_from_slice(&u32::try_from(declared).unwrap().to_le_bytes());
        let restored = import(&stream(
            1,
            &[ring(1, 5), short, node("/"), node("/x"), end()],
        ));
        let watches = restored.server.watches.of(restored.links[0].conn);
        let (_, watch) = watches[0];
        assert_eq!(watch.path.as_str(), path);
        assert_eq!(
            (watch.token.as_bytes(), watch.depth),
            (token.as_bytes(), None)
        );
    }
    let documented = b"\x01\0\0\0\x03\0\x02\0\x07\0\0\0/a\0t\0\0\0\0\0\0\0\0";
    let restored = import(&stream(
        1,
        &[ring(1, 5), record(8, documented), node("/"), end()],
    ));
    let watches = restored.server.watches.of(restored.links[0].conn);
    assert_eq!(watches[0].1.depth, Some(7));
    let neither = b"\x01\0\0\0\x03\0\x02\0\x07\0\0\x01/a\0t\0\0\0\0\0\0\0\0";
    let error = refused(&stream(
        1,
        &[ring(1, 5), record(8, neither), node("/"), end()],
    ));
    assert_eq!((error.record, error.why), (Some(8), Damage::Watch));
}

#[test]
fn t_lu_08_a_transaction_that_is_not_handed_over_is_a_conflict() {
    let open = record(4, &[1, 0, 0, 0, 9, 0, 0, 0]);
    let pending = {
        let mut body = b"\x01\0\0\0\x09\0\0\0\x03\0\x01\0\x02\0\x01\0n\0\0\0/p\0v".to_vec();
        body.resize(24, 0);
        record(5, &body)
    };
    let records = [ring(1, 5), open, node("/"), pending.clone(), end()];
    let mut restored = import(&stream(2, &records));
    let conn = restored.links[0].conn;
    let server = &mut restored.server;
    assert_eq!(ask(server, conn, Kind::Read, 9, b"/\0"), b"EAGAIN\0");
    assert_eq!(
        ask(server, conn, Kind::TransactionEnd, 9, b"T\0"),
        b"EAGAIN\0"
    );
    assert_eq!(
        ask(server, conn, Kind::TransactionEnd, 9, b"T\0"),
        b"ENOENT\0"
    );
    let mut restored = import(&stream(2, &records));
    assert_eq!(
        ask(&mut restored.server, conn, Kind::TransactionEnd, 9, b"F\0"),
        b"OK\0"
    );
    let lone = [ring(1, 5), node("/"), pending, end()];
    assert_eq!(refused(&stream(2, &lone)).why, Damage::Reference);
}

/// C does not tell where it was counting, nor which transactions are lost.
#[test]
fn t_lu_18_a_lost_transaction_is_never_taken_for_a_new_one() {
    let mut restored = import(&stream(1, &[ring(1, 5), node("/"), end()]));
    let conn = restored.links[0].conn;
    let id = ask(&mut restored.server, conn, Kind::TransactionStart, 0, b"\0");
    assert_eq!(id, b"1073741825\0");
    for old in [1, 2, 1000] {
        let answer = ask(&mut restored.server, conn, Kind::Read, old, b"/\0");
        assert_eq!(answer, b"ENOENT\0");
    }
}

/// Several whole requests and a part of one, as C leaves them when it holds requests back.
#[test]
fn input_of_several_requests_is_answered_in_order() {
    let mut input = Vec::new();
    for path in ["/\0", "/none\0", "/\0"] {
        input.extend(message(Kind::GetPerms, 0, path.as_bytes()));
    }
    let last = message(Kind::Directory, 0, b"/\0");
    input.extend_from_slice(&last[..last.len() - 1]);
    let mut body = ring(1, 0)[8..].to_vec();
    body[16] = u8::try_from(input.len()).unwrap();
    body.extend_from_slice(&input);
    body.resize(body.len().next_multiple_of(8), 0);
    let mut restored = import(&stream(
        1,
        &[record(2, &body), node("/"), node("/x"), end()],
    ));
    let (conn, server) = (restored.links[0].conn, &mut restored.server);
    server.run(Instant(0), u32::MAX);
    let expected = [
        message(Kind::GetPerms, 0, b"n0\0"),
        message(Kind::Error, 0, b"ENOENT\0"),
        message(Kind::GetPerms, 0, b"n0\0"),
    ];
    assert_eq!(drain(server, conn), expected.concat());
    assert_eq!(server.handle_bytes(conn, b"\0more"), Ok(1));
    server.run(Instant(0), u32::MAX);
    assert_eq!(drain(server, conn), message(Kind::Directory, 0, b"x\0"));
}

/// The end of a message whose beginning is in the ring already, then whole ones.
#[test]
fn output_goes_on_where_it_was() {
    let event = {
        let mut event = message(Kind::WatchEvent, 0, b"/a\0t\0");
        event[4] = 0;
        event
    };
    for tail in [&b"tail"[..], b"", &[7; 300]] {
        let output = [tail, &event, &message(Kind::Read, 0, b"x")].concat();
        let mut body = ring(1, 5)[8..].to_vec();
        body[18..20].copy_from_slice(&u16::try_from(tail.len()).unwrap().to_le_bytes());
        body[20..24].copy_from_slice(&u32::try_from(output.len()).unwrap().to_le_bytes());
        body.extend_from_slice(&output);
        body.resize(body.len().next_multiple_of(8), 0);
        let records = [record(2, &body), node("/"), end()];
        let mut restored = import(&stream(1, &records));
        let conn = restored.links[0].conn;
        assert_eq!(drain(&mut restored.server, conn), output);
        body[20] -= 1;
        let records = [record(2, &body), node("/"), end()];
        assert_eq!(refused(&stream(1, &records)).why, Damage::Message);
    }
}

#[test]
fn features_are_those_of_the_stream_or_of_the_ring() {
    let domain = b"\x05\0\0\0\x06\0\0\0";
    let records = [ring(1, 5), node("/"), record(7, domain), end()];
    let restored = import(&stream(2, &records));
    assert_eq!(restored.links[0].features, Some(6));
    assert_eq!(restored.server.features(DomId::new(5)), 6);
    let mut restored = import(&stream(1, &records));
    assert_eq!(restored.links[0].features, None);
    restored.server.adopt_features(DomId::new(5), 0xffff_fff2);
    assert_eq!(
        restored.server.features(DomId::new(5)),
        Features::ERROR.bits()
    );
}

#[test]
fn what_is_not_in_order_is_refused_and_named() {
    let records = |records: &[Vec<u8>]| refused(&stream(1, records));
    let why = |found: &[Vec<u8>]| records(found).why;
    assert_eq!(why(&[node("/")]), Damage::Truncated);
    assert_eq!(why(&[end()]), Damage::Reference);
    assert_eq!(why(&[node("/a"), node("/"), end()]), Damage::Parent);
    assert_eq!(why(&[node("/"), node("/a/b"), end()]), Damage::Parent);
    assert_eq!(
        why(&[node("/"), node("/a"), node("/a"), end()]),
        Damage::Duplicate
    );
    assert_eq!(why(&[node("/"), node("/"), end()]), Damage::Duplicate);
    assert_eq!(why(&[node("/"), node("a"), end()]), Damage::Path);
    assert_eq!(why(&[node("/"), node("@other"), end()]), Damage::Path);
    assert_eq!(
        why(&[ring(1, 5), ring(1, 6), node("/"), end()]),
        Damage::Duplicate
    );
    assert_eq!(
        why(&[ring(1, 5), ring(2, 5), node("/"), end()]),
        Damage::Duplicate
    );
    assert_eq!(why(&[ring(0, 5), node("/"), end()]), Damage::Field);
    assert_eq!(why(&[record(0, &[0; 8])]), Damage::Length);
    let watch = record(3, b"\x01\0\0\0\x03\0\x02\0/a\0t\0\0\0\0");
    assert_eq!(why(&[watch.clone(), node("/"), end()]), Damage::Reference);
    assert_eq!(
        why(&[ring(1, 5), watch.clone(), watch, node("/"), end()]),
        Damage::Duplicate
    );
    let error = records(&[node("/"), node("/a/b"), end()]);
    assert_eq!((error.offset, error.record), (48, Some(5)));
    assert_eq!(
        format!("{error}"),
        "offset 0x30, record NODE_DATA: a node without its parent"
    );
}

/// The tree may be as deep as a path can be long.
#[test]
fn t_lu_21_owners_and_permissions_of_others_are_kept_apart() {
    let mut foreign = node("/a");
    foreign[16 + 8 + 2] = 0xf4;
    foreign[16 + 8 + 3] = 0x7f;
    let error = refused(&stream(1, &[node("/"), foreign, end()]));
    assert_eq!(error.why, Damage::Domid);
}
