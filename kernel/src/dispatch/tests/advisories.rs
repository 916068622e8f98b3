//! A test for each security advisory of Xen that is about rings, events, grants or the lives of domains; `docs/advisories.md` has all.

use proptest::prelude::*;
use xenstore::wire::Kind;

use super::*;

const SIX: DomId = DomId::new(6);

/// A guest whose indices are impossible is told so and left alone; nobody else notices, and it has a way back.
fn is_stopped_by(index: usize, change: impl Fn(u32) -> u32) {
    let (host, mut dom0) = start();
    let mut guest = dom0.build(5);
    let (_, bytes) = guest.request(Kind::Directory, b"/\0");
    guest.put(&bytes);
    guest.page.store(index, change(guest.page.load(index)));
    let direction = if index < 2056 {
        [2048, 2052]
    } else {
        [2056, 2060]
    };
    let before = direction.map(|at| guest.page.load(at));
    guest.signal();
    host.settle();
    assert_eq!(guest.error_word(), 2);
    let after = direction.map(|at| guest.page.load(at));
    assert_eq!(after, before, "nothing is consumed or sent");
    assert!(dom0.is_served());

    guest.page.store(2068, 1);
    guest.signal();
    host.settle();
    guest.take_signals();
    let mut revived = Guest::new(&host, FIVE, guest.port);
    assert!(revived.is_served());
}

#[test]
fn xsa_38_a_distance_above_the_rings_size_stops_the_connection() {
    is_stopped_by(2052, |_| 1025);
    is_stopped_by(2052, |_| 2048);
}

/// The first mending of XSA-38 took a full ring for an empty one.
#[test]
fn xsa_38_a_full_ring_is_served() {
    let (_, mut dom0) = start();
    let mut guest = dom0.build(5);
    let mut sent = 0;
    let mut full = Vec::new();
    while full.len() < 1024 {
        sent += 1;
        full.extend(guest.request(Kind::GetDomainPath, b"5\0").1);
    }
    assert_eq!(guest.put(&full), 1024);
    guest.signal();
    guest.drain();
    assert_eq!(guest.replies.len(), sent - 1);
    assert_eq!(guest.put(&full[1024..]), full.len() - 1024);
    guest.signal();
    guest.drain();
    assert_eq!(guest.replies.len(), sent);
}

#[test]
fn xsa_86_indices_that_run_backwards_stop_the_connection() {
    for index in [2052, 2060] {
        is_stopped_by(index, |at| at.wrapping_add(1 << 31));
        is_stopped_by(index, |at| at.wrapping_add(1025));
    }
    is_stopped_by(2052, |_| u32::MAX);
    is_stopped_by(2056, |at| at.wrapping_add(1));
}

#[test]
fn xsa_325_who_breaks_its_ring_stays_mapped_and_is_released_once_when_it_dies() {
    let (host, mut dom0) = start();
    dom0.watch("@releaseDomain", "token");
    let mut guest = dom0.build(5);
    let (_, mut bytes) = guest.request(Kind::Read, b"key\0");
    bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    guest.put(&bytes);
    guest.signal();
    host.settle();
    assert_eq!(guest.error_word(), 3);
    assert_eq!(dom0.take_events(), []);
    assert!(dom0.is_introduced(FIVE));
    assert_eq!((host.xen.mapped(), host.xen.bound()), (2, 2));
    host.xen.destroy(FIVE);
    assert_eq!(dom0.take_events(), [event("@releaseDomain", "token")]);
    assert_eq!((host.xen.mapped(), host.xen.bound()), (1, 1));
}

/// Also XSA-391, which is the same in other receivers.
#[test]
fn xsa_332_a_storm_of_events_without_data_costs_a_look_each_and_hinders_nobody() {
    let (host, mut dom0) = start();
    let mut bystander = dom0.build(6);
    let storm = dom0.build(5);
    host.settle();
    let [looks, _] = host.looks_and_cost();
    for _ in 0..10_000 {
        // However often it sends before it is looked at, it is looked at once.
        storm.signal();
        storm.signal();
        storm.signal();
        host.turn();
    }
    let [after, _] = host.looks_and_cost();
    assert!(after - looks <= 10_000, "{} looks", after - looks);
    assert_eq!(storm.take_signals(), 0);
    storm.signal();
    assert!(bystander.is_served());
}

proptest! {
    /// RELEASE of the domain before, after, or in whose turn it comes, while all rings have input.
    #[test]
    fn xsa_425_a_release_may_come_in_any_state_of_the_others(
        deeds in prop::collection::vec((0_u16..3, 0_u8..6), 1..40),
    ) {
        let (host, mut dom0) = start();
        let mut guests: Vec<Guest> = (5..8).map(|id| dom0.build(id)).collect();
        for (which, deed) in deeds {
            let id = which + 5;
            let guest = &mut guests[usize::from(which)];
            match deed {
                0 | 1 => {
                    let (_, bytes) = guest.request(Kind::GetDomainPath, b"5\0");
                    guest.put(&bytes);
                    guest.signal();
                }
                2 => guest.signal(),
                3 => { host.turn(); }
                4 => {
                    let (_, bytes) = dom0.request(Kind::Release, format!("{id}\0").as_bytes());
                    dom0.put(&bytes);
                    dom0.signal();
                }
                _ => {
                    host.settle();
                    dom0.drain();
                    guests[usize::from(which)] = dom0.build(id);
                }
            }
            if dom0.page.load(2052).wrapping_sub(dom0.page.load(2048)) > 900 {
                dom0.drain();
            }
        }
        dom0.drain();
        let introduced = (5..8).filter(|id| dom0.is_introduced(DomId::new(*id))).count();
        prop_assert_eq!((host.xen.mapped(), host.xen.bound()), (introduced + 1, introduced + 1));
        for id in 5..8 {
            guests[usize::from(id - 5_u16)] = dom0.build(id);
        }
        for guest in &mut guests {
            prop_assert!(guest.is_served());
        }
    }
}

/// The answers that Xen gave when somebody else held its lock, and those of older releases.
#[test]
fn xsa_492_xen_may_refuse_to_tell_of_domains_for_a_while() {
    for error in [1, 11, 13, 38].map(XenError) {
        let (host, mut dom0) = start();
        let mut guest = dom0.build(5);
        host.xen.refuse(Call::Domain, Some(error));
        host.xen.refuse(Call::NextChanged, Some(error));
        host.xen.destroy(SIX);
        host.xen.change(FIVE, |info| info.shutdown = true);
        host.pass(2 * POLL_INTERVAL);
        assert!(dom0.is_introduced(FIVE), "nobody is taken for dead");
        assert!(guest.is_served());
        host.xen.destroy(FIVE);
        host.xen.refuse(Call::Domain, None);
        host.pass(2 * POLL_INTERVAL);
        assert!(!dom0.is_introduced(FIVE));
        assert_eq!((host.xen.mapped(), host.xen.bound()), (1, 1));
    }
}

#[test]
fn xsa_496_after_a_death_of_which_no_hint_came_the_interrupt_is_bound_anew() {
    let (host, mut dom0) = start();
    dom0.build(5);
    dom0.build(6);
    host.xen.lose_domain_exceptions(true);
    host.xen.refuse(Call::NextChanged, Some(XenError(2)));
    host.xen.destroy(FIVE);
    host.pass(2 * POLL_INTERVAL);
    assert!(!dom0.is_introduced(FIVE));
    host.xen.destroy(SIX);
    assert!(!dom0.is_introduced(SIX), "told at once again");
}

/// Grants may be refused for a moment while a guest switches their version. A page that is mapped stays so: nothing is mapped twice,
/// whatever the guest does to its grants.
#[test]
fn xsa_486_a_ring_is_mapped_once_and_a_refusal_is_not_for_ever() {
    let (host, mut dom0) = start();
    host.xen.create(FIVE);
    let port = host.xen.allocate_port(FIVE);
    for status in 1..=13 {
        host.xen.refuse(Call::Map, Some(XenError(status)));
        assert_eq!(dom0.try_introduce(FIVE, port), Err("EINVAL".into()));
        assert_eq!((host.xen.mapped(), host.xen.bound()), (1, 1));
    }
    host.xen.refuse(Call::Map, None);
    dom0.try_introduce(FIVE, port).unwrap();
    assert!(Guest::new(&host, FIVE, port).is_served());
    host.xen.refuse(Call::Map, Some(XenError(3)));
    dom0.try_introduce(FIVE, port).unwrap();
    assert!(
        Guest::new(&host, FIVE, port).is_served(),
        "the old mapping is kept"
    );
    assert_eq!((host.xen.mapped(), host.xen.bound()), (2, 2));
}
