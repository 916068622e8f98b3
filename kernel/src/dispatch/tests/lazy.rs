//! Connections that do not send the events that they owe, beside others that do.

use super::*;
use crate::credit::bonus;

/// Puts a request that no event tells of.
fn put_quietly(guest: &mut Guest) {
    let (_, bytes) = guest.request(Kind::Directory, b"/\0");
    assert_eq!(guest.put(&bytes), bytes.len(), "no room");
}

/// Rounds until a request that an event tells of is answered by an event.
fn rounds_to_answer(guest: &mut Guest) -> u64 {
    put_quietly(guest);
    let before = guest.host.xen.collections();
    guest.take_signals();
    guest.signal();
    while guest.page.load(2060) == guest.page.load(2056) || guest.take_signals() == 0 {
        guest.host.turn();
    }
    let rounds = (guest.host.xen.last_event(guest.domid, guest.port) - before) / 2;
    guest.drain();
    rounds
}

#[test]
fn who_sends_its_events_is_never_lazy() {
    let (host, mut dom0) = start();
    let mut guest = dom0.build(5);
    for n in 0..100 {
        guest.write("key", "value");
        host.xen.advance(Duration::from_millis(700));
        dom0.write(&format!("/local/domain/5/key{n}"), "value");
        host.settle();
    }
    host.pass(3 * RING_SCAN);
    assert_eq!(host.lazy_spells(), 0);
}

#[test]
fn who_sends_none_is_found_and_then_served_in_small_steps() {
    let (host, mut dom0) = start();
    let mut guest = dom0.build(5);
    put_quietly(&mut guest);
    host.pass(RING_SCAN);
    guest.take(usize::MAX);
    assert_eq!((guest.replies.len(), host.lazy_spells()), (1, 1));
    let step = RING_SCAN / bonus(2);
    for served in 2..100 {
        put_quietly(&mut guest);
        host.pass(2 * step);
        guest.take(usize::MAX);
        assert_eq!(guest.replies.len(), served);
    }
    assert_eq!(host.lazy_spells(), 1, "one spell");
}

#[test]
fn the_bonus_runs_out_and_the_next_spell_is_counted_again() {
    let (host, mut dom0) = start();
    let mut guest = dom0.build(5);
    for spells in 1..4 {
        put_quietly(&mut guest);
        host.pass(2 * RING_SCAN);
        assert_eq!(host.lazy_spells(), spells);
        host.pass(3 * RING_SCAN);
        let before = host.xen.collections();
        host.pass(RING_SCAN);
        let rounds = (host.xen.collections() - before) / 2;
        assert!(rounds < 10, "let go: {rounds} rounds");
        guest.take(usize::MAX);
    }
}

/// Linux sends an event only if it found the ring full.
#[test]
fn room_for_waiting_output_that_nobody_tells_of_is_found() {
    let (host, mut dom0) = start();
    let mut guest = dom0.build(5);
    guest.write("key", &"v".repeat(1500));
    let (_, bytes) = guest.request(Kind::Read, b"key\0");
    guest.put(&bytes);
    guest.signal();
    host.settle();
    guest.take(usize::MAX);
    assert!(guest.replies.is_empty());
    host.pass(2 * RING_SCAN);
    guest.take(usize::MAX);
    assert_eq!((guest.replies.len(), host.lazy_spells()), (1, 1));
}

/// One that does not read is slow, not lazy: nothing can be done for it.
#[test]
fn who_does_not_read_is_not_lazy() {
    let (host, mut dom0) = start();
    let mut guest = dom0.build(5);
    for _ in 0..100 {
        let (_, bytes) = guest.request(Kind::Directory, b"/\0");
        if guest.put(&bytes) < bytes.len() {
            break;
        }
        guest.signal();
        host.settle();
    }
    host.pass(3 * RING_SCAN);
    assert_eq!(host.lazy_spells(), 0);
}

#[test]
fn others_wait_no_longer_beside_a_hundred_lazy_ones() {
    let (host, mut dom0) = start();
    let mut guest = dom0.build(5);
    let (alone, privileged_alone) = (rounds_to_answer(&mut guest), rounds_to_answer(&mut dom0));
    let mut lazy: Vec<Guest> = (10..110).map(|id| dom0.build(id)).collect();
    lazy.iter_mut().for_each(put_quietly);
    host.pass(2 * RING_SCAN);
    assert_eq!(host.lazy_spells(), 100);
    for _ in 0..200 {
        for guest in &mut lazy {
            if guest.take(usize::MAX) > 0 {
                put_quietly(guest);
            }
        }
        host.xen.advance(RING_SCAN / 20);
        assert_eq!(rounds_to_answer(&mut guest), alone);
        assert_eq!(rounds_to_answer(&mut dom0), privileged_alone);
    }
}

#[test]
fn a_lazy_one_may_end_and_its_successor_is_not_lazy() {
    let (host, mut dom0) = start();
    let mut guest = dom0.build(5);
    put_quietly(&mut guest);
    host.pass(2 * RING_SCAN);
    assert_eq!(host.lazy_spells(), 1);
    let mut next = dom0.build(5);
    next.write("key", "value");
    host.pass(3 * RING_SCAN);
    assert_eq!(host.lazy_spells(), 1);
}
