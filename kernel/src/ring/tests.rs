//! The ring against an honest page, and against one on which every load may give anything.

#![expect(clippy::cast_possible_truncation, reason = "the numbers are small")]

use core::cell::{Cell, RefCell};
use core::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::fake::FakePage;

const REQUEST_AREA: Range<usize> = 0..1024;
const REPLY_AREA: Range<usize> = 1024..2048;

/// A ring whose words are set as the guest would, by their place in xs_wire.h.
fn ring(req: (u32, u32), rsp: (u32, u32)) -> (Ring<FakePage>, FakePage) {
    let page = FakePage::default();
    page.store(2048, req.0);
    page.store(2052, req.1);
    page.store(2056, rsp.0);
    page.store(2060, rsp.1);
    (Ring::new(page.clone()), page)
}

fn put_request(page: &FakePage, cons: u32, bytes: &[u8]) {
    for (index, &byte) in bytes.iter().enumerate() {
        page.write((cons as usize + index) % 1024, &[byte]);
    }
}

fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 % 251) as u8).collect()
}

/// T-RING-01, T-RING-02.
#[test]
fn impossible_request_indices_are_a_fault_and_nothing_is_consumed() {
    for (cons, prod) in [(0, 1025), (0, 1 << 31), (0, u32::MAX), (5, 4), (7, 1032)] {
        let (ring, page) = ring((cons, prod), (0, 0));
        assert_eq!(ring.fill(|_| panic!("offered bytes")), Err(RingFault));
        assert_eq!((page.load(2048), page.load(2052)), (cons, prod));
    }
}

/// T-RING-03.
#[test]
fn a_full_ring_is_legal_wherever_it_starts() {
    for cons in [0, 1, 1023, u32::MAX - 511] {
        let (ring, page) = ring((cons, cons.wrapping_add(1024)), (0, 0));
        let bytes = pattern(1024);
        put_request(&page, cons, &bytes);
        let mut seen = Vec::new();
        let took = ring.fill(|offered| {
            seen.extend_from_slice(offered);
            offered.len()
        });
        assert_eq!(took, Ok(1024));
        assert_eq!(seen, bytes);
        assert_eq!(page.load(2048), cons.wrapping_add(1024));
    }
}

#[test]
fn what_is_not_taken_is_offered_again() {
    let (ring, page) = ring((1020, 1030), (0, 0));
    put_request(&page, 1020, b"0123456789");
    assert_eq!(ring.fill(|_| 0), Ok(0));
    assert_eq!(page.load(2048), 1020);
    assert_eq!(
        ring.fill(|offered| {
            assert_eq!(offered, b"0123456789");
            7
        }),
        Ok(7)
    );
    assert_eq!(
        ring.fill(|offered| {
            assert_eq!(offered, b"789");
            99
        }),
        Ok(3)
    );
    assert_eq!(ring.fill(|_| panic!("the ring is empty")), Ok(0));
}

/// T-RING-05.
#[test]
fn impossible_reply_indices_are_a_fault_and_nothing_is_written() {
    for (cons, prod) in [(1, 0), (0, 1025), (0, u32::MAX), (1 << 31, 0)] {
        let (ring, page) = ring((0, 0), (cons, prod));
        assert_eq!(ring.drain(b"reply"), Err(RingFault));
        let mut area = [0; 1024];
        page.read(1024, &mut area);
        assert_eq!(area, [0; 1024]);
        assert_eq!(page.load(2060), prod);
    }
}

/// T-RING-06.
#[test]
fn a_full_reply_ring_takes_a_reply_byte_by_byte() {
    let (ring, page) = ring((0, 0), (1000, 2024));
    let reply = pattern(100);
    let mut sent = 0;
    let mut seen = Vec::new();
    while sent < reply.len() {
        assert_eq!(ring.drain(&reply[sent..]), Ok(0));
        page.store(2056, page.load(2056) + 1);
        assert_eq!(ring.drain(&reply[sent..]), Ok(1));
        let at = (page.load(2060) as usize - 1) % 1024;
        let mut byte = [0];
        page.read(1024 + at, &mut byte);
        seen.push(byte[0]);
        sent += 1;
    }
    assert_eq!(seen, reply);
}

/// T-RING-11: Linux drops what it finds unread when it boots.
#[test]
fn goes_on_when_the_domain_skips_replies() {
    let (ring, page) = ring((0, 0), (0, 0));
    assert_eq!(ring.drain(&pattern(2000)), Ok(1024));
    page.store(2056, page.load(2060));
    assert_eq!(ring.drain(&pattern(2000)[1024..]), Ok(976));
    assert_eq!(page.load(2060), 2000);
}

/// T-RING-16.
#[test]
fn words_of_ours_that_the_domain_rewrites_change_nothing() {
    let (ring, page) = ring((0, 3), (0, 0));
    page.store(2064, u32::MAX);
    page.store(2072, 7);
    page.store(2076, 999);
    put_request(&page, 0, b"abc");
    assert_eq!(ring.fill(|offered| offered.len()), Ok(3));
    assert_eq!(ring.drain(b"xyz"), Ok(3));
    assert!(!ring.reconnect_requested());
    assert_eq!((page.load(2064), page.load(2072)), (u32::MAX, 7));
}

/// T-RING-21, T-RING-23, T-RING-24.
#[test]
fn a_reset_clears_indices_and_error_before_the_connection_word() {
    for request in [1, 2, u32::MAX] {
        let page = Recorder::default();
        let ring = Ring::new(&page);
        page.words.borrow_mut().extend([request]);
        assert!(ring.reconnect_requested());
        ring.reset();
        let stored: Vec<_> = page.stores.take();
        let (last, before) = stored.split_last().unwrap();
        assert_eq!(*last, (2068, 0));
        let mut before = before.to_vec();
        before.sort_unstable();
        assert_eq!(before, [2048, 2052, 2056, 2060, 2072].map(|at| (at, 0)));
    }
}

#[test]
fn a_welcome_leaves_the_indices_of_a_ring_in_use_alone() {
    let (ring, page) = ring((3, 20), (40, 41));
    page.store(2068, 1);
    ring.offer(3);
    ring.welcome();
    let words = [2048, 2052, 2056, 2060, 2064, 2068].map(|at| page.load(at));
    assert_eq!(words, [3, 20, 40, 41, 3, 0]);
}

#[test]
fn names_the_fault_in_the_error_word() {
    let (ring, page) = ring((0, 0), (0, 0));
    ring.fail(ErrorWord::RingIndex);
    assert_eq!(page.load(2072), 2);
    ring.fail(ErrorWord::Protocol);
    assert_eq!(page.load(2072), 3);
    assert_eq!(ring.evtchn_port(), None);
    page.store(2076, 17);
    assert_eq!(ring.evtchn_port(), Some(EvtchnPort(17)));
}

/// A page that gives whatever it is told to, and remembers what was done to it.
#[derive(Default)]
struct Recorder {
    words: RefCell<Vec<u32>>,
    filler: Cell<u8>,
    loads: RefCell<Vec<usize>>,
    reads: RefCell<Vec<Range<usize>>>,
    writes: RefCell<Vec<Range<usize>>>,
    stores: RefCell<Vec<(usize, u32)>>,
}

impl Page for &Recorder {
    fn load(&self, offset: usize) -> u32 {
        self.loads.borrow_mut().push(offset);
        self.words.borrow_mut().pop().unwrap_or(0xffff_ffff)
    }

    fn store(&self, offset: usize, value: u32) {
        self.stores.borrow_mut().push((offset, value));
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.reads.borrow_mut().push(offset..offset + into.len());
        self.filler.set(self.filler.get().wrapping_add(1));
        into.fill(self.filler.get());
    }

    fn write(&self, offset: usize, from: &[u8]) {
        self.writes.borrow_mut().push(offset..offset + from.len());
    }
}

impl Recorder {
    /// The first load gives `cons`, the second `prod`, any further one the rest.
    fn new(cons: u32, prod: u32) -> Self {
        let page = Self::default();
        page.words.borrow_mut().extend([0xdead_beef, 0, prod, cons]);
        page
    }

    fn assert_loaded_once(&self, mut expected: [usize; 2]) {
        let mut loads = self.loads.borrow().clone();
        loads.sort_unstable();
        expected.sort_unstable();
        assert_eq!(loads, expected);
    }
}

fn assert_within(accesses: &[Range<usize>], area: &Range<usize>, bytes: usize) {
    let mut touched = vec![0; 4096];
    for access in accesses.iter().filter(|access| !access.is_empty()) {
        assert!(
            access.start >= area.start && access.end <= area.end,
            "{access:?}"
        );
        for at in access.clone() {
            touched[at] += 1;
        }
    }
    assert!(touched.iter().all(|&times| times <= 1), "a byte twice");
    assert_eq!(touched.iter().sum::<usize>(), bytes);
}

/// The indices are others at the second load, which there is none of, and the payload changes as soon as it is copied.
#[test]
fn xsa_155_478_what_changes_while_it_is_read_is_one_private_copy() {
    let page = Recorder::new(1000, 1100);
    let ring = Ring::new(&page);
    let mut seen = Vec::new();
    let took = ring.fill(|bytes| {
        page.words.borrow_mut().extend([0, 0, 0, 0]);
        page.filler.set(99);
        seen.extend_from_slice(bytes);
        bytes.len()
    });
    assert_eq!(took, Ok(100));
    assert_eq!(seen, [[1; 24].as_slice(), &[2; 76]].concat());
    page.assert_loaded_once([2048, 2052]);
    assert_within(&page.reads.borrow(), &REQUEST_AREA, 100);
    assert_eq!(page.stores.take(), [(2048, 1100)]);
}

/// Pairs that are mostly near each other, so that the legal distances are met as often as the others.
fn indices() -> impl Strategy<Value = (u32, u32)> {
    let distance = prop_oneof![0u32..=1030, Just(1024), any::<u32>()];
    (any::<u32>(), distance).prop_map(|(cons, distance)| (cons, cons.wrapping_add(distance)))
}

proptest! {
    /// T-RING-07, T-RING-08, T-RING-09.
    #[test]
    fn fill_survives_any_page((cons, prod) in indices(), takes in 0usize..2000) {
        let page = Recorder::new(cons, prod);
        let ring = Ring::new(&page);
        let used = prod.wrapping_sub(cons) as usize;
        let mut offered = 0;
        let result = ring.fill(|bytes| { offered = bytes.len(); takes });

        page.assert_loaded_once([2048, 2052]);
        prop_assert!(page.writes.borrow().is_empty());
        if used > 1024 {
            prop_assert_eq!(result, Err(RingFault));
            prop_assert!(page.stores.borrow().is_empty() && page.reads.borrow().is_empty());
        } else {
            prop_assert_eq!(offered, used);
            assert_within(&page.reads.borrow(), &REQUEST_AREA, used);
            let taken = takes.min(used);
            prop_assert_eq!(result, Ok(taken));
            let published = (taken > 0).then(|| (2048, cons.wrapping_add(taken as u32)));
            prop_assert!(page.stores.borrow().iter().copied().eq(published));
        }
    }

    #[test]
    fn drain_survives_any_page((cons, prod) in indices(), length in 0usize..2000) {
        let page = Recorder::new(cons, prod);
        let ring = Ring::new(&page);
        let used = prod.wrapping_sub(cons) as usize;
        let result = ring.drain(&vec![1; length]);

        page.assert_loaded_once([2056, 2060]);
        prop_assert!(page.reads.borrow().is_empty());
        if used > 1024 {
            prop_assert_eq!(result, Err(RingFault));
            prop_assert!(page.stores.borrow().is_empty() && page.writes.borrow().is_empty());
        } else {
            let sent = length.min(1024 - used);
            prop_assert_eq!(result, Ok(sent));
            assert_within(&page.writes.borrow(), &REPLY_AREA, sent);
            let published = (sent > 0).then(|| (2060, prod.wrapping_add(sent as u32)));
            prop_assert!(page.stores.borrow().iter().copied().eq(published));
        }
    }

    #[test]
    fn bytes_pass_unchanged_and_in_order(
        start in any::<u32>(),
        sent in prop::collection::vec(any::<u8>(), 0..5000),
        step in 1usize..1500,
    ) {
        let (ring, page) = ring((0, 0), (start, start));
        let mut rest = &sent[..];
        let mut got = Vec::new();
        while got.len() < sent.len() {
            rest = &rest[ring.drain(&rest[..rest.len().min(step)]).unwrap()..];
            let (cons, prod) = (page.load(2056), page.load(2060));
            let mut at = cons;
            while at != prod {
                let mut byte = [0];
                page.read(1024 + (at as usize) % 1024, &mut byte);
                got.push(byte[0]);
                at = at.wrapping_add(1);
            }
            page.store(2056, at);
        }
        prop_assert_eq!(got, sent);
    }
}
