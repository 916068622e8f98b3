//! The heap: size classes in chunks of 8 and 16 KiB, which come from a first-fit list.
//!
//! The list alone takes as long as there are holes, which a guest could provoke; a class takes and gives back in constant time. An empty
//! chunk goes back to the list, so that memory that one size needed yesterday serves another today.

use core::alloc::{GlobalAlloc, Layout};
use core::ops::Range;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use linked_list_allocator::Heap as FirstFit;
use spin::Mutex;

use super::ranges::AddressRange;

/// The kernel's heap, for the image's `#[global_allocator]`.
pub struct KernelHeap;

static HEAP: Mutex<SizeClasses> = Mutex::new(SizeClasses::empty());

/// How full the heap is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeapUsage {
    /// Bytes that the heap has.
    pub total: usize,
    /// Bytes in use, each object counted with its class's size.
    pub used: usize,
    /// Bytes that are in use or kept for one size of object.
    pub reserved: usize,
}

/// How full the kernel's heap is.
#[must_use]
pub fn heap_usage() -> HeapUsage {
    HEAP.lock().usage()
}

/// Gives the kernel's heap its memory, the virtual addresses of `memory`.
///
/// # Safety
/// They must be mapped, writable, nobody else's, and at least a page, for ever; and this the first call.
pub(super) unsafe fn start(memory: AddressRange) {
    let start =
        core::ptr::with_exposed_provenance_mut(usize::try_from(memory.start).unwrap_or(usize::MAX));
    let size = usize::try_from(memory.size()).unwrap_or(0);
    // SAFETY: the caller vouches for the memory.
    unsafe { HEAP.lock().init(start, size) };
}

/// Gives the kernel's heap `bytes` more, right behind what it has.
///
/// # Safety
/// As for [`start`], and a multiple of a page.
pub(super) unsafe fn extend(bytes: u64) {
    let bytes = usize::try_from(bytes).unwrap_or(0);
    // SAFETY: the caller vouches for the memory.
    unsafe { HEAP.lock().list.extend(bytes) };
}

/// Crashes while the heap is in use.
#[cfg(feature = "inject")]
#[expect(clippy::panic, reason = "this is what it is for")]
pub(super) fn panic_inside() {
    let _held = HEAP.lock();
    panic!("asked for, in the allocator");
}

/// After a crash: the heap is as the crash left it, and what is asked for comes from elsewhere.
static ABANDONED: AtomicBool = AtomicBool::new(false);
static REST: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Leaves the heap as it is, for ever: from now on memory comes from `rest` and is not given back. A second call changes nothing.
///
/// # Safety
/// `rest` must be mapped, writable and nobody else's.
pub(super) unsafe fn abandon(rest: Range<u64>) {
    if ABANDONED.swap(true, Ordering::Relaxed) {
        return;
    }
    let [start, end] = &REST;
    start.store(rest.start, Ordering::Relaxed);
    end.store(rest.end, Ordering::Relaxed);
}

fn take_from_rest(layout: Layout) -> *mut u8 {
    let [start, end] = &REST;
    let bytes = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let at = start.load(Ordering::Relaxed);
    let Some(at) = at.checked_next_multiple_of(bytes(layout.align())) else {
        return null_mut();
    };
    let behind = at.saturating_add(bytes(layout.size()));
    if behind > end.load(Ordering::Relaxed) {
        return null_mut();
    }
    start.store(behind, Ordering::Relaxed);
    core::ptr::with_exposed_provenance_mut(usize::try_from(at).unwrap_or(0))
}

// SAFETY: memory comes from `SizeClasses`, which hands out each byte once, aligned and as long as asked for, until it is given back.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if ABANDONED.load(Ordering::Relaxed) {
            return take_from_rest(layout);
        }
        let object = HEAP.lock().take(layout);
        object.map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        if let Some(object) = NonNull::new(object)
            && !ABANDONED.load(Ordering::Relaxed)
        {
            // SAFETY: the caller vouches that it is ours, of this layout, and no longer in use.
            unsafe { HEAP.lock().give_back(object, layout) };
        }
    }
}

/// Bytes of a chunk of larger objects, and its alignment: an object's chunk is found from its address.
const CHUNK_SIZE: usize = 16 * 1024;
/// The same for objects of up to [`SMALL_MAX`] bytes: of each size one chunk is begun, however small the heap is.
const SMALL_CHUNK_SIZE: usize = 8 * 1024;
const SMALL_MAX: usize = 512;
/// Bytes at a chunk's start that describe it.
const HEADER_SIZE: usize = 64;
/// Every object is aligned to this; what needs more goes to the list.
const ALIGNMENT: usize = 16;
/// Number of size classes.
const CLASSES: usize = 20;

/// Memory in size classes over a first-fit list.
struct SizeClasses {
    list: FirstFit,
    /// Smallest first.
    classes: [SizeClass; CLASSES],
    used: usize,
}

impl SizeClasses {
    /// The last four sizes fill a chunk without rest.
    const fn empty() -> Self {
        Self {
            list: FirstFit::empty(),
            classes: [
                SizeClass::new(16),
                SizeClass::new(32),
                SizeClass::new(48),
                SizeClass::new(64),
                SizeClass::new(80),
                SizeClass::new(96),
                SizeClass::new(128),
                SizeClass::new(160),
                SizeClass::new(192),
                SizeClass::new(256),
                SizeClass::new(320),
                SizeClass::new(400),
                SizeClass::new(512),
                SizeClass::new(640),
                SizeClass::new(768),
                SizeClass::new(1024),
                SizeClass::new(1632),
                SizeClass::new(2320),
                SizeClass::new(3264),
                SizeClass::new(5440),
            ],
            used: 0,
        }
    }

    /// # Safety
    /// As for [`start`].
    unsafe fn init(&mut self, start: *mut u8, size: usize) {
        // SAFETY: the caller vouches for the memory.
        unsafe { self.list.init(start, size) };
    }

    fn usage(&self) -> HeapUsage {
        HeapUsage {
            total: self.list.size(),
            used: self.used,
            reserved: self.list.used(),
        }
    }

    /// Memory for `layout`, if there is any.
    fn take(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        let (object, size) = match class_for(&mut self.classes, layout) {
            Some(class) => (class.take(&mut self.list)?, class.size),
            None => (take_from_list(&mut self.list, layout)?, layout.size()),
        };
        self.used = self.used.saturating_add(size);
        Some(object)
    }

    /// Takes an object back.
    ///
    /// # Safety
    /// It must come from [`SizeClasses::take`] with the same layout, and be used no more.
    unsafe fn give_back(&mut self, object: NonNull<u8>, layout: Layout) {
        let size = match class_for(&mut self.classes, layout) {
            Some(class) => {
                // SAFETY: the same layout has the same class, so the object is of this class; the caller vouches for the rest.
                unsafe { class.give_back(object, &mut self.list) };
                class.size
            }
            None => {
                // SAFETY: the same layout went to the list before.
                unsafe { self.list.deallocate(object, layout) };
                layout.size()
            }
        };
        self.used = self.used.saturating_sub(size);
    }
}

/// The class for a layout; `None` if it goes to the list.
fn class_for(classes: &mut [SizeClass; CLASSES], layout: Layout) -> Option<&mut SizeClass> {
    if layout.align() > ALIGNMENT {
        return None;
    }
    let index = classes.partition_point(|class| class.size < layout.size());
    classes.get_mut(index)
}

fn take_from_list(list: &mut FirstFit, layout: Layout) -> Option<NonNull<u8>> {
    list.allocate_first_fit(layout).ok()
}

/// Objects of one size.
struct SizeClass {
    size: usize,
    /// The first of the chunks that have room for another object.
    with_room: Option<ChunkRef>,
}

impl SizeClass {
    const fn new(size: usize) -> Self {
        Self {
            size,
            with_room: None,
        }
    }

    /// Objects that a chunk holds.
    const fn capacity(&self) -> usize {
        (self.chunk().size() - HEADER_SIZE) / self.size
    }

    /// Size and alignment of its chunks.
    const fn chunk(&self) -> Layout {
        if self.size <= SMALL_MAX {
            SMALL_CHUNK
        } else {
            CHUNK
        }
    }

    fn take(&mut self, list: &mut FirstFit) -> Option<NonNull<u8>> {
        let mut chunk = match self.with_room {
            Some(chunk) => chunk,
            None => self.add_chunk(list)?,
        };
        let object = chunk.take_object(self.size);
        if chunk.header().live == self.capacity() {
            self.unlink(chunk);
        }
        Some(object)
    }

    /// # Safety
    /// The object must be of this class and used no more.
    unsafe fn give_back(&mut self, object: NonNull<u8>, list: &mut FirstFit) {
        // SAFETY: the object is of this class, as the caller vouches.
        let mut chunk = unsafe { ChunkRef::of_object(object, self.chunk()) };
        if chunk.header().live == self.capacity() {
            self.link(chunk);
        }
        // SAFETY: it is an object of this chunk, and nobody uses it any more.
        unsafe { chunk.give_object_back(object) };
        // The last chunk with room stays, so that one object that comes and goes does not take the list's time.
        let header = chunk.header();
        let is_only_one = header.next.is_none() && header.previous.is_none();
        if header.live == 0 && !is_only_one {
            self.unlink(chunk);
            // SAFETY: it came from the list with this layout; no object of it is in use, and it is in no list of ours.
            unsafe { list.deallocate(chunk.0.cast(), self.chunk()) };
        }
    }

    fn add_chunk(&mut self, list: &mut FirstFit) -> Option<ChunkRef> {
        let memory = take_from_list(list, self.chunk())?;
        let chunk = ChunkRef(memory.cast());
        // SAFETY: the memory is ours, large and aligned enough.
        unsafe { chunk.0.write(Chunk::new()) };
        self.link(chunk);
        Some(chunk)
    }

    fn link(&mut self, mut chunk: ChunkRef) {
        chunk.header().previous = None;
        chunk.header().next = self.with_room;
        if let Some(mut next) = self.with_room {
            next.header().previous = Some(chunk);
        }
        self.with_room = Some(chunk);
    }

    fn unlink(&mut self, mut chunk: ChunkRef) {
        let next = chunk.header().next.take();
        let previous = chunk.header().previous.take();
        if let Some(mut next) = next {
            next.header().previous = previous;
        }
        match previous {
            Some(mut previous) => previous.header().next = next,
            None => self.with_room = next,
        }
    }
}

const CHUNK: Layout = chunk(CHUNK_SIZE);
const SMALL_CHUNK: Layout = chunk(SMALL_CHUNK_SIZE);
const _: () = assert!(CHUNK.size() == CHUNK_SIZE && SMALL_CHUNK.size() == SMALL_CHUNK_SIZE);

const fn chunk(size: usize) -> Layout {
    match Layout::from_size_align(size, size) {
        Ok(layout) => layout,
        Err(_) => Layout::new::<()>(),
    }
}

/// What stands at a chunk's start.
#[derive(Debug)]
struct Chunk {
    /// Neighbours among the chunks with room.
    next: Option<ChunkRef>,
    previous: Option<ChunkRef>,
    /// The objects that were given back, a list.
    free: Option<NonNull<FreeObject>>,
    /// Objects that were ever taken; those behind are untouched memory.
    touched: usize,
    /// Objects in use.
    live: usize,
}
const _: () = assert!(size_of::<Chunk>() <= HEADER_SIZE);

impl Chunk {
    const fn new() -> Self {
        Self {
            next: None,
            previous: None,
            free: None,
            touched: 0,
            live: 0,
        }
    }
}

/// An object that nobody uses.
struct FreeObject {
    next: Option<NonNull<FreeObject>>,
}
const _: () = assert!(align_of::<FreeObject>() <= ALIGNMENT);

/// A chunk that a class owns. It exists only while the chunk does.
#[derive(Clone, Copy, Debug)]
struct ChunkRef(NonNull<Chunk>);

// SAFETY: the chunk belongs to the one `SizeClasses` that this is part of.
unsafe impl Send for ChunkRef {}

impl ChunkRef {
    /// # Safety
    /// The object must be one of a live chunk's, and this that chunk's layout.
    unsafe fn of_object(object: NonNull<u8>, chunk: Layout) -> Self {
        let offset = object.addr().get() & (chunk.align() - 1);
        // SAFETY: chunks are aligned to their size, so the chunk begins this far below, in the same allocation.
        Self(unsafe { object.byte_sub(offset) }.cast())
    }

    fn header(&mut self) -> &mut Chunk {
        // SAFETY: the chunk is live and its header initialised; the class that owns it is borrowed, so no other reference exists.
        unsafe { self.0.as_mut() }
    }

    /// Takes an object of a chunk that has room.
    fn take_object(&mut self, size: usize) -> NonNull<u8> {
        let header = self.header();
        header.live += 1;
        if let Some(object) = header.free {
            // SAFETY: objects in this list are unused and were initialised by `give_object_back`.
            header.free = unsafe { object.read() }.next;
            return object.cast();
        }
        let offset = HEADER_SIZE + header.touched * size;
        header.touched += 1;
        // SAFETY: the chunk has room and no object is free, so the next untouched one lies inside.
        unsafe { self.0.cast::<u8>().add(offset) }
    }

    /// # Safety
    /// The object must be one of this chunk's, in use until now.
    unsafe fn give_object_back(&mut self, object: NonNull<u8>) {
        let header = self.header();
        let object = object.cast::<FreeObject>();
        // SAFETY: the object is at least this large and aligned, and nobody uses it any more.
        unsafe { object.write(FreeObject { next: header.free }) };
        header.free = Some(object);
        header.live -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MEMORY: Layout = match Layout::from_size_align(1 << 20, CHUNK_SIZE) {
        Ok(layout) => layout,
        Err(_) => Layout::new::<()>(),
    };

    /// A heap of 1 MiB of the host's memory.
    struct TestHeap {
        heap: SizeClasses,
        memory: *mut u8,
    }

    impl TestHeap {
        fn new() -> Self {
            // SAFETY: the size is not 0.
            let memory = unsafe { std::alloc::alloc(MEMORY) };
            let mut heap = SizeClasses::empty();
            // SAFETY: the memory is ours until `drop`, when the heap ends too.
            unsafe { heap.init(memory, MEMORY.size()) };
            Self { heap, memory }
        }
    }

    impl Drop for TestHeap {
        fn drop(&mut self) {
            // SAFETY: allocated in `new` with this layout.
            unsafe { std::alloc::dealloc(self.memory, MEMORY) };
        }
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).unwrap()
    }

    #[test]
    fn classes_waste_less_than_half_and_chunks_little() {
        let heap = SizeClasses::empty();
        for pair in heap.classes.windows(2) {
            assert!(pair[0].size < pair[1].size && pair[1].size <= 2 * pair[0].size);
        }
        for class in &heap.classes {
            assert_eq!(class.size % ALIGNMENT, 0);
            let chunk = class.chunk().size();
            assert!(chunk - class.capacity() * class.size <= chunk / 16);
        }
    }

    #[test]
    fn memory_of_one_size_serves_another_later() {
        let mut test = TestHeap::new();
        for size in [40, 400, 4000, 40_000] {
            let objects: Vec<_> = core::iter::from_fn(|| test.heap.take(layout(size))).collect();
            assert!(objects.len() * size > MEMORY.size() / 2, "{size}");
            for object in objects {
                // SAFETY: taken above with this layout.
                unsafe { test.heap.give_back(object, layout(size)) };
            }
            assert_eq!(test.heap.usage().used, 0);
        }
    }

    #[test]
    fn a_heap_that_grew_has_what_it_got() {
        // SAFETY: the size is not 0.
        let memory = unsafe { std::alloc::alloc(MEMORY) };
        let mut heap = SizeClasses::empty();
        // SAFETY: the memory is ours until the end of this test.
        unsafe { heap.init(memory, MEMORY.size() / 4) };
        let count =
            |heap: &mut SizeClasses| core::iter::from_fn(|| heap.take(layout(5000))).count();
        let before = count(&mut heap);
        // SAFETY: as above.
        unsafe { heap.list.extend(3 * (MEMORY.size() / 4)) };
        assert_eq!(heap.usage().total, MEMORY.size());
        let added = count(&mut heap);
        assert!(added > 2 * before, "{added} after {before}");
        // SAFETY: allocated above with this layout; nothing in it is used any more.
        unsafe { std::alloc::dealloc(memory, MEMORY) };
    }

    #[test]
    fn what_needs_more_alignment_gets_it() {
        let mut test = TestHeap::new();
        let page = Layout::from_size_align(100, 4096).unwrap();
        let object = test.heap.take(page).unwrap();
        assert_eq!(object.addr().get() % 4096, 0);
        // SAFETY: taken above with this layout.
        unsafe { test.heap.give_back(object, page) };
    }

    proptest! {
        /// Objects keep their contents whatever else comes and goes: none overlaps another.
        #[test]
        fn objects_never_overlap(steps in prop::collection::vec((any::<bool>(), 1_usize..9000, any::<prop::sample::Index>()), 1..400)) {
            let mut test = TestHeap::new();
            let mut live: Vec<(NonNull<u8>, usize, u8)> = Vec::new();
            for (number, (take, size, which)) in steps.into_iter().enumerate() {
                if take || live.is_empty() {
                    let Some(object) = test.heap.take(layout(size)) else { continue };
                    let mark = u8::try_from(number % 251).unwrap();
                    // SAFETY: `size` bytes at `object` are ours now.
                    unsafe { object.write_bytes(mark, size) };
                    live.push((object, size, mark));
                } else {
                    let (object, size, mark) = live.swap_remove(which.index(live.len()));
                    // SAFETY: `size` bytes at `object` are ours and written.
                    let bytes = unsafe { core::slice::from_raw_parts(object.as_ptr(), size) };
                    prop_assert!(bytes.iter().all(|byte| *byte == mark));
                    // SAFETY: taken above with this layout; `bytes` is used no more.
                    unsafe { test.heap.give_back(object, layout(size)) };
                }
            }
        }
    }
}
