//! The ring over a page on which every load gives what the input says.

use std::cell::RefCell;
use std::ops::Range;

use kernel::ring::{REPLIES, REQUESTS, RING_BYTES, Ring, RingFault};
use kernel::xen::Page;

use crate::bytes::Bytes;

/// Most operations of a run.
const OPERATIONS_MAX: usize = 64;

pub(crate) fn run(input: &[u8]) {
    let page = Adversary(RefCell::new(State {
        input: Bytes::new(input),
        done: Done::default(),
    }));
    let ring = Ring::new(&page);
    for _ in 0..OPERATIONS_MAX {
        let (choice, length) = {
            let input = &mut page.0.borrow_mut().input;
            if input.is_empty() {
                return;
            }
            (input.below(3), input.below(256) * 8)
        };
        page.0.borrow_mut().done = Done::default();
        match choice {
            0 => page.judge_fill(length, |taken| ring.fill(taken)),
            1 => page.judge_drain(length, ring.drain(&vec![7; length])),
            _ => drop(ring.reconnect_requested()),
        }
    }
}

struct Adversary<'a>(RefCell<State<'a>>);

struct State<'a> {
    input: Bytes<'a>,
    done: Done,
}

/// What an operation did to the page.
#[derive(Default)]
struct Done {
    loads: Vec<(usize, u32)>,
    stores: Vec<(usize, u32)>,
    reads: Vec<Range<usize>>,
    writes: Vec<Range<usize>>,
}

impl Adversary<'_> {
    fn judge_fill(
        &self,
        takes: usize,
        fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> usize) -> Result<usize, RingFault>,
    ) {
        let mut offered = 0;
        let result = fill(&mut |bytes| {
            offered = bytes.len();
            takes
        });
        let done = &self.0.borrow().done;
        assert!(done.writes.is_empty());
        let (cons, prod) = done.indices(REQUESTS.cons, REQUESTS.prod);
        let used = prod.wrapping_sub(cons);
        let moved = judge(used, &done.reads, REQUESTS.bytes, result.map(|_| offered));
        assert_eq!(moved, u32::try_from(offered).unwrap());
        let taken = result.map_or(0, |taken| u32::try_from(taken).unwrap());
        assert!(taken <= moved);
        done.judge_publication(REQUESTS.cons, cons, taken);
    }

    fn judge_drain(&self, length: usize, result: Result<usize, RingFault>) {
        let done = &self.0.borrow().done;
        assert!(done.reads.is_empty());
        let (cons, prod) = done.indices(REPLIES.cons, REPLIES.prod);
        let used = prod.wrapping_sub(cons);
        let sent = judge(used, &done.writes, REPLIES.bytes, result);
        if used <= 1024 {
            let free = 1024 - used;
            assert_eq!(sent, free.min(u32::try_from(length).unwrap()));
        }
        done.judge_publication(REPLIES.prod, prod, sent);
    }
}

/// Whether a fault is told when there is one, and the accesses are within the ring, each byte once; gives how many bytes.
fn judge(
    used: u32,
    accesses: &[Range<usize>],
    area: usize,
    result: Result<usize, RingFault>,
) -> u32 {
    assert_eq!(result.is_err(), used > 1024);
    let mut touched = [false; RING_BYTES];
    for at in accesses.iter().cloned().flatten() {
        let place = &mut touched[at - area];
        assert!(!*place, "a byte twice");
        *place = true;
    }
    let count = touched.iter().filter(|touched| **touched).count();
    assert_eq!(count, result.unwrap_or(0));
    u32::try_from(count).unwrap()
}

impl Done {
    /// What the two words gave, each loaded once and nothing else.
    fn indices(&self, cons: usize, prod: usize) -> (u32, u32) {
        assert_eq!(self.loads.len(), 2, "a word more or less");
        let of = |offset| {
            let load = self.loads.iter().find(|(at, _)| *at == offset);
            load.unwrap().1
        };
        (of(cons), of(prod))
    }

    /// The own index moves from the snapshot, by what was moved.
    fn judge_publication(&self, index: usize, snapshot: u32, moved: u32) {
        let wanted = (moved > 0).then(|| (index, snapshot.wrapping_add(moved)));
        assert!(self.stores.iter().copied().eq(wanted));
    }
}

impl Page for &Adversary<'_> {
    fn load(&self, offset: usize) -> u32 {
        let state = &mut *self.0.borrow_mut();
        // Most distances are credible, so that both sorts are met.
        let word = match (state.input.byte(), state.done.loads.last()) {
            (0..200, Some((_, last))) => last.wrapping_add(state.input.word() % 1100),
            _ => state.input.word(),
        };
        state.done.loads.push((offset, word));
        word
    }

    fn store(&self, offset: usize, value: u32) {
        self.0.borrow_mut().done.stores.push((offset, value));
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        let state = &mut *self.0.borrow_mut();
        state.done.reads.push(offset..offset + into.len());
        into.fill(state.input.byte());
    }

    fn write(&self, offset: usize, from: &[u8]) {
        let done = &mut self.0.borrow_mut().done;
        done.writes.push(offset..offset + from.len());
    }
}
