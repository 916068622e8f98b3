//! In tests, what runs inside [`OwnHeap::run`] takes its memory from the image's own heap, of the size that a small domain has.
//!
//! So the store can be brought to where memory is really short, with the holes and the rounding that it has in the image. What that heap
//! could not give is counted, which in the image would be the end, and comes from Linux.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::alloc::System;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::heap::{self, KernelHeap};
use super::machine::memory_left;
use super::ranges::{AddressRange, PAGE_SIZE};
use crate::xen::MemoryLeft;

/// What is left for the heap of a domain of 8 MiB.
const BYTES: usize = 7400 * 1024;

#[global_allocator]
static ALLOCATOR: Switch = Switch;

static USER: Mutex<()> = Mutex::new(());
static START: OnceLock<usize> = OnceLock::new();
static REFUSED: AtomicUsize = AtomicUsize::new(0);

std::thread_local! {
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// The heap, for one test at a time.
pub(crate) struct OwnHeap {
    _user: MutexGuard<'static, ()>,
}

impl OwnHeap {
    /// Waits until no other test has it.
    pub(crate) fn take() -> Self {
        let user = USER.lock().unwrap_or_else(PoisonError::into_inner);
        START.get_or_init(start);
        REFUSED.store(0, Ordering::Relaxed);
        Self { _user: user }
    }

    /// What `work` allocates comes from the heap.
    pub(crate) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        IS_INSIDE.set(true);
        let result = work();
        IS_INSIDE.set(false);
        result
    }

    /// What is left, as the machine says it.
    pub(crate) fn left() -> MemoryLeft {
        memory_left()
    }

    /// How often there was none.
    pub(crate) fn refused(&self) -> usize {
        REFUSED.load(Ordering::Relaxed)
    }
}

fn start() -> usize {
    let page = usize::try_from(PAGE_SIZE).unwrap();
    let layout = Layout::from_size_align(BYTES, page).unwrap();
    // SAFETY: the size is not 0.
    let memory = unsafe { System.alloc(layout) };
    assert!(!memory.is_null());
    let start = memory.expose_provenance();
    let range = AddressRange {
        start: start as u64,
        end: (start + BYTES) as u64,
    };
    // SAFETY: the memory is nobody else's and never freed; this runs once.
    unsafe { heap::start(range) };
    start
}

/// Linux's memory, or the heap's.
struct Switch;

// SAFETY: each object goes back to where it came from, which its address tells; both are allocators.
unsafe impl GlobalAlloc for Switch {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if IS_INSIDE.get() {
            // SAFETY: the caller vouches for the layout.
            let object = unsafe { KernelHeap.alloc(layout) };
            if !object.is_null() {
                return object;
            }
            REFUSED.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        let is_own = |start: &usize| (*start..*start + BYTES).contains(&object.addr());
        if START.get().is_some_and(is_own) {
            // SAFETY: it lies in the heap, so it came from there; the caller vouches for the rest.
            unsafe { KernelHeap.dealloc(object, layout) }
        } else {
            // SAFETY: it came from here.
            unsafe { System.dealloc(object, layout) }
        }
    }
}
