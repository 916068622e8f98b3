//! The lives of domains over each release of Xen, and what a hint costs.

use super::*;
use crate::fake::FakeXen;

pub(super) fn start_with(release: Release) -> (host::Host, Guest) {
    let xen = FakeXen::with_release(release);
    xen.create(DOM0);
    let port = xen.allocate_port(DOM0);
    let host = start_on(&xen, "").unwrap();
    host.settle();
    let dom0 = Guest::new(&host, DOM0, port);
    dom0.take_signals();
    (host, dom0)
}

/// T-DOM-01, T-DOM-13, T-DOM-15.
#[test]
fn a_life_is_told_of_in_the_same_way_by_every_release() {
    for release in Release::ALL {
        let (host, mut dom0) = start_with(release);
        let mut guest = dom0.build(5);
        guest.write("key", "value");
        dom0.write("/tool/mine", "x");
        dom0.ask_strings(Kind::SetPerms, &["/tool/mine", "n0", "b5"])
            .unwrap();
        dom0.watch("@releaseDomain", "gone");
        let told = [event("@releaseDomain", "gone")];

        for _ in 0..2 {
            host.xen.change(FIVE, |info| info.shutdown = true);
            assert_eq!(dom0.take_events(), told, "{release:?}");
            host.pass(3 * POLL_INTERVAL);
            assert_eq!(dom0.take_events(), [], "{release:?}: told once");
            host.xen.change(FIVE, |info| info.shutdown = false);
            dom0.ask_strings(Kind::Resume, &["5"]).unwrap();
        }
        host.xen.change(FIVE, |info| info.dying = true);
        assert_eq!(dom0.take_events(), [], "{release:?}: dying is not dead");
        assert_eq!(host.xen.mapped(), 2);
        host.xen.change(FIVE, |info| info.dead = true);
        assert_eq!(dom0.take_events(), told, "{release:?}");
        assert_eq!((host.xen.mapped(), host.xen.bound()), (1, 1));
        host.xen.destroy(FIVE);
        assert_eq!(dom0.take_events(), [], "{release:?}: dead once");

        let mut next = dom0.build(5);
        assert_eq!(next.read("key"), Err("ENOENT".into()), "{release:?}");
        assert_eq!(next.read("/tool/mine"), Err("EACCES".into()));
        assert_eq!((host.xen.mapped(), host.xen.bound()), (2, 2));
    }
}

#[test]
fn neighbours_of_the_dead_live_on_whatever_the_release_answers_for_nobody() {
    for release in Release::ALL {
        let (host, mut dom0) = start_with(release);
        dom0.build(5);
        let mut next = dom0.build(6);
        host.xen.lose_domain_exceptions(true);
        host.xen.destroy(FIVE);
        host.pass(2 * POLL_INTERVAL);
        assert!(!dom0.is_introduced(FIVE), "{release:?}");
        assert!(dom0.is_introduced(DomId::new(6)), "{release:?}");
        assert!(next.is_served());
    }
}

#[test]
fn a_hint_costs_a_question_for_each_domain_that_changed() {
    let (host, mut dom0) = start();
    for id in 5..105 {
        dom0.build(id);
    }
    host.xen.change(DOM0, |_| {});
    host.settle();
    for gone in [5, 50] {
        let before = host.xen.questions();
        host.xen.destroy(DomId::new(gone));
        host.settle();
        assert!(!dom0.is_introduced(DomId::new(gone)));
        let asked = host.xen.questions() - before;
        assert!(asked <= 2, "{asked} questions");
    }
}

#[test]
fn without_the_list_a_hint_asks_for_all() {
    let (host, mut dom0) = start();
    dom0.build(5);
    dom0.build(6);
    host.xen.refuse(Call::NextChanged, Some(XenError(13)));
    host.xen.destroy(FIVE);
    host.settle();
    assert!(!dom0.is_introduced(FIVE));
    assert!(dom0.is_introduced(DomId::new(6)));
}

/// T-DOM-20.
#[test]
fn a_stub_domain_and_its_target_end_in_one_batch_and_each_is_told_once() {
    for release in Release::ALL {
        for (first, second) in [(5, 6), (6, 5)] {
            let (host, mut dom0) = start_with(release);
            let mut stub = dom0.build(5);
            let mut target = dom0.build(6);
            dom0.ask_strings(Kind::SetTarget, &["5", "6"]).unwrap();
            target.write("key", "value");
            assert_eq!(stub.read("/local/domain/6/key"), Ok("value".into()));
            dom0.ask_strings(Kind::Watch, &["@releaseDomain", "each", "1"])
                .unwrap();
            dom0.take_events();
            for id in [first, second] {
                host.xen.destroy(DomId::new(id));
            }
            let mut told = dom0.take_events();
            told.sort();
            let each = ["@releaseDomain/5", "@releaseDomain/6"];
            assert_eq!(told, each.map(|path| event(path, "each")));
            assert_eq!((host.xen.mapped(), host.xen.bound()), (1, 1));
        }
    }
}

/// However many domains there are to be asked for, and however often.
#[test]
fn hints_in_every_turn_keep_no_release_from_being_told() {
    let (host, mut dom0) = start_with(Release::Xen4_17);
    for id in 100..1300 {
        dom0.build(id);
    }
    dom0.watch("@releaseDomain", "gone");
    host.xen.destroy(DomId::new(200));
    let told = (0..10).any(|_| {
        host.xen.change(DOM0, |_| {});
        host.turn();
        dom0.take(usize::MAX);
        dom0.signal();
        !dom0.events.is_empty()
    });
    assert!(told);
    host.settle();
    assert_eq!(dom0.take_events(), [event("@releaseDomain", "gone")]);
}
