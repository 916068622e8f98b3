//! The kernel's own heap as the allocator of a test program, which tells the most that was ever in use.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

use spin::Once;

use super::heap::{self, HeapUsage, KernelHeap, heap_usage};
use super::ranges::AddressRange;

/// Bytes that the test program has, its own needs included.
pub const METERED_BYTES: usize = 512 * 1024 * 1024;

#[repr(C, align(16384))]
struct Arena(UnsafeCell<[u8; METERED_BYTES]>);

// SAFETY: nobody touches it but the heap, which has a lock.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(UnsafeCell::new([0; METERED_BYTES]));
static START: Once<()> = Once::new();
static PEAK: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// The kernel's heap over 512 MiB, metered.
pub struct MeteredHeap;

impl MeteredHeap {
    /// How full the heap is.
    #[must_use]
    pub fn usage(&self) -> HeapUsage {
        heap_usage()
    }

    /// Begins to look for the most in use, and for the largest piece, anew.
    pub fn start(&self) {
        PEAK.store(heap_usage().used, Ordering::Relaxed);
        LARGEST.store(0, Ordering::Relaxed);
        TAKEN.store(0, Ordering::Relaxed);
    }

    /// The most bytes in use since [`MeteredHeap::start`], each object counted with its class's size.
    #[must_use]
    pub fn peak(&self) -> usize {
        PEAK.load(Ordering::Relaxed)
    }

    /// Bytes of all objects that were taken since [`MeteredHeap::start`], given back or not: what it needs where nothing can be given back.
    #[must_use]
    pub fn taken(&self) -> usize {
        TAKEN.load(Ordering::Relaxed)
    }

    /// The largest object since [`MeteredHeap::start`], in bytes.
    #[must_use]
    pub fn largest(&self) -> usize {
        LARGEST.load(Ordering::Relaxed)
    }
}

fn prepare() {
    START.call_once(|| {
        let start = ARENA.0.get().expose_provenance() as u64;
        let memory = AddressRange {
            start,
            end: start.saturating_add(METERED_BYTES as u64),
        };
        // SAFETY: the arena is a static that nobody else uses, and this is the first call.
        unsafe { heap::start(memory) };
    });
}

// SAFETY: all of it is the kernel's heap.
unsafe impl GlobalAlloc for MeteredHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        prepare();
        // SAFETY: the caller vouches for the layout.
        let object = unsafe { KernelHeap.alloc(layout) };
        PEAK.fetch_max(heap_usage().used, Ordering::Relaxed);
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        TAKEN.fetch_add(layout.size().next_multiple_of(16), Ordering::Relaxed);
        object
    }

    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        // SAFETY: the caller vouches that the object came from here.
        unsafe { KernelHeap.dealloc(object, layout) };
    }
}
