//! Domains that were there before the store: those to which Xen itself gave a ring and a port, and the others.

use super::*;

/// A machine whose domain 5 has a ring from Xen, which names `port`; and the domain's own port.
fn machine_with_early_domain(
    port: impl Fn(EvtchnPort) -> u32,
) -> (crate::fake::FakeXen, EvtchnPort, EvtchnPort) {
    let (xen, dom0_port) = machine();
    xen.create(FIVE);
    let own = xen.allocate_port(FIVE);
    let page = xen.page(FIVE);
    page.store(2076, port(own));
    page.store(2068, 1);
    (xen, dom0_port, own)
}

/// T-RING-28.
#[test]
fn a_ring_from_xen_is_taken_up_as_it_is() {
    let (xen, dom0_port, own) = machine_with_early_domain(|own| own.0);
    for index in [2048, 2052, 2056, 2060] {
        xen.page(FIVE).store(index, 1000);
    }
    let host = start_on(&xen, "").unwrap();
    let mut guest = Guest::new(&host, FIVE, own);
    assert_eq!([2064, 2068, 2072].map(|at| guest.page.load(at)), [15, 0, 0]);
    let (number, bytes) = guest.request(Kind::GetDomainPath, b"5\0");
    guest.put(&bytes);
    host.settle();
    assert_eq!(guest.page.load(2048), 1000 + 18);
    assert_eq!(guest.take_signals(), 1);
    guest.take(usize::MAX);
    assert_eq!(guest.replies[0].request, number);
    let mut dom0 = Guest::new(&host, DOM0, dom0_port);
    assert!(dom0.is_introduced(FIVE));
    xen.destroy(FIVE);
    assert!(!dom0.is_introduced(FIVE));
    assert_eq!((xen.mapped(), xen.bound()), (1, 1));
}

#[test]
fn who_has_no_port_in_its_page_waits_for_its_introduction() {
    let (xen, dom0_port, own) = machine_with_early_domain(|_| 0);
    let host = start_on(&xen, "").unwrap();
    let mut dom0 = Guest::new(&host, DOM0, dom0_port);
    assert!(!dom0.is_introduced(FIVE));
    assert_eq!((xen.mapped(), xen.bound()), (1, 1));
    assert_eq!(xen.page(FIVE).load(2068), 1, "still waits");
    dom0.try_introduce(FIVE, own).unwrap();
    let mut guest = Guest::new(&host, FIVE, own);
    assert_eq!((guest.page.load(2068), guest.take_signals()), (0, 1));
    assert!(guest.is_served());
}

#[test]
fn a_port_that_cannot_be_bound_is_passed_over_and_the_toolstacks_serves() {
    let (xen, dom0_port, own) = machine_with_early_domain(|_| 99);
    let host = start_on(&xen, "").unwrap();
    let mut dom0 = Guest::new(&host, DOM0, dom0_port);
    assert!(!dom0.is_introduced(FIVE));
    assert_eq!((xen.mapped(), xen.bound()), (1, 1));
    dom0.try_introduce(FIVE, own).unwrap();
    assert!(Guest::new(&host, FIVE, own).is_served());
}

#[test]
fn a_release_without_a_list_of_domains_starts_with_one() {
    for release in [Release::Xen4_17, Release::Xen4_20] {
        let xen = crate::fake::FakeXen::with_release(release);
        xen.create(DOM0);
        let port = xen.allocate_port(DOM0);
        xen.create(FIVE);
        let own = xen.allocate_port(FIVE);
        xen.page(FIVE).store(2076, own.0);
        let host = start_on(&xen, "").unwrap();
        let mut dom0 = Guest::new(&host, DOM0, port);
        assert!(!dom0.is_introduced(FIVE));
        dom0.try_introduce(FIVE, own).unwrap();
        assert!(Guest::new(&host, FIVE, own).is_served());
    }
}
