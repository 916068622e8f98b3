//! What the kernel finds out about domains is counted where an administrator reads it.

use super::*;
use crate::credit::bonus;

/// A domain's counter, or that of `total`.
fn counted(dom0: &mut Guest, whose: &str, name: &str) -> u64 {
    let text = dom0.ask_strings(Kind::Control, &["counters", whose]);
    let text = text.unwrap();
    let mut lines = text.trim_end_matches('\0').lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value.map_or(0, |value| value.parse().unwrap())
}

#[test]
fn laziness_the_looks_for_it_and_their_end() {
    let (host, mut dom0) = start();
    let mut guest = dom0.build(5);
    dom0.build(6);
    let (_, bytes) = guest.request(Kind::Directory, b"/\0");
    guest.put(&bytes);
    host.pass(RING_SCAN);
    assert_eq!(counted(&mut dom0, "5", "lazy-spells"), 1);
    assert_eq!(counted(&mut dom0, "5", "lazy-let-go"), 0);
    host.pass(5 * RING_SCAN);
    let let_go = counted(&mut dom0, "5", "lazy-let-go");
    assert!(let_go > 0);
    let looks = counted(&mut dom0, "5", "lazy-looks");
    assert_eq!(looks, let_go * u64::from(bonus(3)));
    assert_eq!(counted(&mut dom0, "5", "lazy-spells"), 1);
    for name in ["lazy-spells", "lazy-looks", "lazy-let-go"] {
        assert_eq!(counted(&mut dom0, "6", name), 0, "{name}");
    }
}

#[test]
fn faults_and_fresh_starts() {
    let (host, mut dom0) = start();
    let guest = dom0.build(5);
    for fault in 1..4 {
        guest.page.store(ring::REQUESTS.prod, 5000);
        guest.signal();
        host.settle();
        assert_eq!(counted(&mut dom0, "5", "ring-faults"), fault);
        assert_eq!(counted(&mut dom0, "5", "stops"), fault);
        guest.page.store(ring::CONNECTION, ring::RECONNECT);
        guest.signal();
        host.settle();
        assert_eq!(counted(&mut dom0, "5", "resets"), fault);
    }
    dom0.try_introduce(FIVE, guest.port).unwrap();
    assert_eq!(counted(&mut dom0, "5", "reintroductions"), 1);
}

#[test]
fn what_xen_refuses() {
    let (host, mut dom0) = start();
    let guest = dom0.build(5);
    assert!(dom0.try_introduce(FIVE, EvtchnPort(99)).is_err());
    assert_eq!(counted(&mut dom0, "5", "bind-failures"), 1);
    host.xen.refuse(Call::Map, Some(XenError(1)));
    assert!(dom0.try_introduce(FIVE, guest.port).is_err());
    assert_eq!(counted(&mut dom0, "5", "map-failures"), 1);
    host.xen.create(DomId::new(6));
    assert!(dom0.try_introduce(DomId::new(6), EvtchnPort(1)).is_err());
    assert_eq!(counted(&mut dom0, "total", "map-failures"), 2);
    host.xen.refuse(Call::Map, None);
    dom0.build(7);
    host.xen.refuse(Call::Unmap, Some(XenError(1)));
    host.xen.destroy(DomId::new(7));
    host.settle();
    assert_eq!(counted(&mut dom0, "total", "unmap-failures"), 1);
}
