//! What a request costs on a host with few domains and on one with ten thousand.
//!
//! Counted here are the steps that the dispatcher takes. Instructions are counted from outside, in a release build:
//! `valgrind --tool=callgrind --toggle-collect='*scale*requests*' TEST-PROGRAM --exact dispatch::tests::scale::on_a_full_host`.

use super::host::Host;
use super::*;

/// What was done so far: looks, rounds, events sent, questions to Xen, and what the store spent.
fn steps(host: &Host) -> [u64; 5] {
    let [looks, spent] = host.looks_and_cost();
    let xen = &host.xen;
    [
        looks,
        xen.collections(),
        xen.notifications(),
        xen.questions(),
        spent,
    ]
}

/// Requests of all kinds, by one guest and the toolstack.
#[inline(never)]
fn requests(dom0: &mut Guest, guest: &mut Guest) {
    for n in 0..20 {
        guest.write("key", "value");
        guest.read("key").unwrap();
        guest.ask_strings(Kind::Directory, &[""]).unwrap_err();
        dom0.write("/local/domain/9/told", &format!("{n}"));
        guest.take_events();
        guest.ask_strings(Kind::GetPerms, &["key"]).unwrap();
        guest.ask_strings(Kind::Rm, &["key"]).unwrap();
    }
}

/// A domain comes and goes.
#[inline(never)]
fn lives(dom0: &mut Guest) {
    for _ in 0..5 {
        let mut short = dom0.build(8);
        short.write("key", "value");
        dom0.host.xen.destroy(DomId::new(8));
        dom0.host.settle();
        dom0.take_events();
    }
}

/// The steps for requests, and for lives, beside so many domains that have a watch and nodes each.
fn beside(domains: u16) -> [[u64; 5]; 2] {
    let (host, mut dom0) = start();
    dom0.watch("@releaseDomain", "gone");
    for id in 100..100 + domains {
        let mut idle = dom0.build(id);
        idle.watch("here", "mine");
        idle.write("here", "value");
    }
    let mut guest = dom0.build(9);
    guest.watch("told", "mine");
    host.xen.change(DOM0, |_| {});
    host.settle();
    lives(&mut dom0);
    requests(&mut dom0, &mut guest);

    let before = steps(&host);
    requests(&mut dom0, &mut guest);
    let between = steps(&host);
    lives(&mut dom0);
    let after = steps(&host);
    let difference = |from: [u64; 5], to: [u64; 5]| core::array::from_fn(|n| to[n] - from[n]);
    [difference(before, between), difference(between, after)]
}

#[test]
fn with_ten_thousand_domains_everything_takes_as_many_steps_as_with_ten() {
    assert_eq!(beside(10_000), beside(10));
}

#[test]
fn on_a_full_host() {
    let domains = std::env::var("DOMAINS").map_or(10, |text| text.parse().unwrap());
    beside(domains);
}
