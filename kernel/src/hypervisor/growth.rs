//! Growing into memory that Xen allows us but has not given yet (`--maxmem`): a piece at a time, when little is left.

use ::log::{info, warn};
use core::time::Duration;

use xenstore::{Instant, Spell};

use super::abi::{DOMID_SELF, PopulatePhysmap};
use super::heap;
use super::memory_map::STEP;
use super::ranges::{PAGE_SIZE, PageRanges};
use super::{hypercall, reserve};
use crate::xen::MemoryLeft;

/// Free memory below this part of all makes the heap grow, in per cent: before the store refuses guests anything.
const GROW_BELOW: u64 = 40;
/// How long Xen is left alone after it had no memory.
const RETRY: Duration = Duration::from_secs(10);
/// Pages of a step, which Xen gives as one if it has one so large.
const STEP_PAGES: u64 = STEP / PAGE_SIZE;
/// The order of such a step.
const STEP_ORDER: u32 = STEP_PAGES.trailing_zeros();
/// Single pages asked for at once otherwise.
const PIECE_PAGES: usize = 64;

/// What may still be had.
pub(super) struct Growth {
    /// All that was not given at the start, in the order in which it is mapped behind the heap.
    later: PageRanges,
    /// Pages of it that were given since.
    given: u64,
    retry: Instant,
    refusals: Spell,
}

impl Growth {
    /// The pages of `later` are mapped behind the heap, and nothing has touched them but the first `given`, which the heap has.
    pub(super) fn new(later: PageRanges, given: u64) -> Self {
        Self {
            later,
            given,
            retry: Instant(0),
            refusals: Spell::default(),
        }
    }

    /// Bytes that may still be had.
    pub(super) fn left(&self) -> u64 {
        let given = self.given.saturating_mul(PAGE_SIZE);
        self.later.size().saturating_sub(given)
    }

    /// Lets the heap grow by a piece, if little of it is free and there is something to be had.
    pub(super) fn grow(&mut self, memory: MemoryLeft, now: Instant) {
        if !self.is_due(memory, now) {
            return;
        }
        let (pages, order) = self.next_piece();
        let mut taken = self.populate(pages, order);
        if taken == 0 && order != 0 {
            taken = self.populate(PIECE_PAGES.try_into().unwrap_or(0), 0);
        }
        if taken == 0 {
            self.retry = now.after(RETRY);
            if let Some(untold) = self.refusals.count(now) {
                warn!("Xen has no more memory for us now{untold}");
            }
            return;
        }
        self.given = self.given.saturating_add(taken);
        if let Some(reserve) = reserve::get() {
            reserve.header().given.set(self.given);
        }
        // SAFETY: these pages are mapped behind the heap's last one, and Xen has just given them.
        unsafe { heap::extend(taken.saturating_mul(PAGE_SIZE)) };
        if self.given.is_multiple_of(STEP_PAGES) {
            let total = heap::heap_usage().total / 1024;
            info!(
                "heap grown to {total} KiB, {} KiB to be had",
                self.left() / 1024
            );
        }
    }

    fn is_due(&self, memory: MemoryLeft, now: Instant) -> bool {
        let MemoryLeft { free, total, .. } = memory;
        self.left() > 0
            && now >= self.retry
            && free.saturating_mul(100) < total.saturating_mul(GROW_BELOW)
    }

    /// Pages of the next piece, and the order in which to ask for them: a whole step, as long as none was begun.
    fn next_piece(&self) -> (u64, u32) {
        let begun = self.given % STEP_PAGES;
        if begun == 0 {
            return (STEP_PAGES, STEP_ORDER);
        }
        let piece = u64::try_from(PIECE_PAGES).unwrap_or(u64::MAX);
        (piece.min(STEP_PAGES.saturating_sub(begun)), 0)
    }

    /// Asks Xen for the next `pages`, and answers how many it gave.
    fn populate(&self, pages: u64, order: u32) -> u64 {
        let extents = usize::try_from(pages >> order).unwrap_or(0);
        let frames: heapless::Vec<u64, PIECE_PAGES> = (self.given..)
            .take(extents)
            .map_while(|index| Some(self.later.page(index)? / PAGE_SIZE))
            .collect();
        let mut populate = PopulatePhysmap {
            extents: frames.as_ptr().expose_provenance() as u64,
            count: frames.len() as u64,
            order,
            flags: 0,
            domid: DOMID_SELF,
            padding: [0; 3],
        };
        // SAFETY: Xen reads the list, which lives, and puts new pages where none are: nothing has touched them.
        let given = unsafe { hypercall::perform(&mut populate) }.unwrap_or(0);
        given.saturating_mul(1 << order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::ranges::AddressRange;

    fn growth(steps: u64) -> Growth {
        let mut later = PageRanges::default();
        later.add(AddressRange {
            start: 8 << 20,
            end: (8 << 20) + steps * STEP,
        });
        Growth::new(later, 0)
    }

    fn free(percent: u64) -> MemoryLeft {
        MemoryLeft {
            free: percent,
            total: 100,
            stream_room: u64::MAX,
        }
    }

    #[test]
    fn it_grows_when_little_is_free_while_there_is_something_to_be_had() {
        assert!(!growth(3).is_due(free(40), Instant(0)));
        assert!(growth(3).is_due(free(39), Instant(0)));
        assert!(!growth(0).is_due(free(0), Instant(0)));
        let mut all = growth(1);
        all.given = STEP_PAGES;
        assert_eq!(all.left(), 0);
        assert!(!all.is_due(free(0), Instant(0)));
    }

    #[test]
    fn a_refusal_of_xen_gives_it_time() {
        let mut growth = growth(3);
        growth.grow(free(0), Instant(5));
        assert_eq!(growth.given, 0, "there is no Xen here");
        assert!(!growth.is_due(free(0), Instant(6)));
        assert!(growth.is_due(free(0), Instant(5).after(RETRY)));
    }

    #[test]
    fn a_step_that_was_begun_in_single_pages_is_ended_so() {
        let mut growth = growth(3);
        assert_eq!(growth.next_piece(), (512, 9));
        growth.given = 64;
        assert_eq!(growth.next_piece(), (64, 0));
        growth.given = 500;
        assert_eq!(growth.next_piece(), (12, 0));
        growth.given = 512;
        assert_eq!(growth.next_piece(), (512, 9));
    }
}
