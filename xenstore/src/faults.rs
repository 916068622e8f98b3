//! Faults within the store, where a simulation asks for them: memory that is not to be had, and crashes. Without feature `journal` there are
//! none, and what depends on them is not compiled.
//!
//! A crash is an unwinding panic in the midst of a request: what is left is what a kernel finds that goes on after one. Each thread has
//! its own faults.

/// Permits that memory is asked for which the store can do without; none if it is not to be had this time.
#[inline]
#[cfg_attr(
    not(feature = "journal"),
    expect(clippy::unnecessary_wraps, reason = "nothing is refused")
)]
pub(crate) fn permit() -> Option<()> {
    #[cfg(feature = "journal")]
    return armed::permit();
    #[cfg(not(feature = "journal"))]
    Some(())
}

/// A place where the store may crash: between two steps that change something, or in one that may come to nothing.
#[inline]
pub(crate) fn may_crash() {
    #[cfg(feature = "journal")]
    armed::may_crash();
}

/// A request begins: only within one the store crashes.
#[inline]
pub(crate) fn begin_request() {
    #[cfg(feature = "journal")]
    armed::IS_IN_REQUEST.set(true);
}

/// The request is dealt with.
#[inline]
pub(crate) fn end_request() {
    #[cfg(feature = "journal")]
    armed::IS_IN_REQUEST.set(false);
}

#[cfg(feature = "journal")]
pub use armed::{Crash, crash_at, refuse_at};

#[cfg(feature = "journal")]
mod armed {
    extern crate std;

    use alloc::boxed::Box;
    use core::cell::Cell;
    use core::ops::Range;

    std::thread_local! {
        static REFUSALS: Cell<Plan> = const { Cell::new(Plan::NONE) };
        static CRASHES: Cell<Plan> = const { Cell::new(Plan::NONE) };
        pub(super) static IS_IN_REQUEST: Cell<bool> = const { Cell::new(false) };
    }

    /// Which of the chances to fail are taken, counted from 0.
    #[derive(Clone, Copy)]
    struct Plan {
        met: u64,
        first: u64,
        end: u64,
    }

    impl Plan {
        const NONE: Self = Self::of(0..0);

        const fn of(range: Range<u64>) -> Self {
            Self {
                met: 0,
                first: range.start,
                end: range.end,
            }
        }

        fn meet(plan: &Cell<Self>) -> bool {
            let now = plan.get();
            plan.set(Self {
                met: now.met.wrapping_add(1),
                ..now
            });
            (now.first..now.end).contains(&now.met)
        }
    }

    /// What a crash unwinds with.
    #[derive(Debug)]
    pub struct Crash;

    /// Lets these of the next tries to get memory fail, counted from 0. Gives how many there were since this was said last.
    pub fn refuse_at(tries: Range<u64>) -> u64 {
        REFUSALS.with(|plan| plan.replace(Plan::of(tries)).met)
    }

    /// Lets the store crash at the place with this number, counted from 0, if at any. Gives how many there were since this was said last.
    pub fn crash_at(place: Option<u64>) -> u64 {
        let range = place.map_or(0..0, |place| place..place.saturating_add(1));
        CRASHES.with(|plan| plan.replace(Plan::of(range)).met)
    }

    pub(super) fn permit() -> Option<()> {
        (!REFUSALS.with(Plan::meet)).then_some(())
    }

    pub(super) fn may_crash() {
        if IS_IN_REQUEST.get() && CRASHES.with(Plan::meet) {
            IS_IN_REQUEST.set(false);
            std::panic::resume_unwind(Box::new(Crash));
        }
    }
}
