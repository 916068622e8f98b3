//! The ring between a guest as Linux is one (drivers/xen/xenbus/xenbus_comms.c) and the store: bytes arrive as they were sent, and nobody
//! sleeps while there is something for it.

use std::sync::Arc;

use loom::thread;

use crate::ring::{REPLIES, REQUESTS, Ring};
use crate::sync::{AtomicU8, AtomicU32, Ordering, fence};
use crate::xen::Page;

pub(crate) fn run() {
    println!("requests arrive as they were written");
    loom::model(requests_arrive_as_they_were_written);
    println!("replies arrive as they were written");
    loom::model(replies_arrive_as_they_were_written);
    println!("a request that is left in the ring was told of");
    loom::model(a_request_that_is_left_in_the_ring_was_told_of);
    println!("room that a full ring waits for is told of");
    loom::model(room_that_a_full_ring_waits_for_is_told_of);
}

/// Bytes of each direction that are looked at.
const BYTES: usize = 4;

/// A page of which the first bytes of both directions exist.
#[derive(Clone)]
struct SharedPage(Arc<Words>);

struct Words {
    bytes: [[AtomicU8; BYTES]; 2],
    words: [AtomicU32; 8],
}

impl SharedPage {
    fn new() -> Self {
        let words = Words {
            bytes: [const { [const { AtomicU8::new(0) }; BYTES] }; 2],
            words: [const { AtomicU32::new(0) }; 8],
        };
        words.bytes.iter().flatten().for_each(AtomicU8::touch);
        words.words.iter().for_each(AtomicU32::touch);
        Self(Arc::new(words))
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        &self.0.words[(offset - REQUESTS.cons) / 4]
    }

    fn byte(&self, offset: usize) -> &AtomicU8 {
        &self.0.bytes[offset / REPLIES.bytes][offset % REPLIES.bytes]
    }
}

/// As plain as the page's own accesses: no order but that of the fences.
impl Page for SharedPage {
    fn load(&self, offset: usize) -> u32 {
        self.word(offset).load(Ordering::Relaxed)
    }

    fn store(&self, offset: usize, value: u32) {
        self.word(offset).store(value, Ordering::Relaxed);
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        for (at, byte) in into.iter_mut().enumerate() {
            *byte = self.byte(offset + at).load(Ordering::Relaxed);
        }
    }

    fn write(&self, offset: usize, from: &[u8]) {
        for (at, byte) in from.iter().enumerate() {
            self.byte(offset + at).store(*byte, Ordering::Relaxed);
        }
    }
}

/// The guest puts a byte into the ring, and answers whether it sends an event.
fn send(page: &SharedPage, byte: u8) -> bool {
    let prod = page.load(REQUESTS.prod);
    page.write(prod as usize, &[byte]);
    fence(Ordering::Release);
    page.store(REQUESTS.prod, prod + 1);
    fence(Ordering::SeqCst);
    prod <= page.load(REQUESTS.cons)
}

/// What the store finds in the ring.
fn take(ring: &Ring<SharedPage>) -> Vec<u8> {
    let mut taken = Vec::new();
    ring.fill(|bytes| {
        taken.extend_from_slice(bytes);
        bytes.len()
    })
    .unwrap();
    taken
}

fn requests_arrive_as_they_were_written() {
    let page = SharedPage::new();
    let ring = Ring::new(page.clone());
    let guest = thread::spawn(move || {
        send(&page, 1);
        send(&page, 2);
    });
    let mut taken = take(&ring);
    taken.extend(take(&ring));
    guest.join().unwrap();
    taken.extend(take(&ring));
    assert_eq!(taken, [1, 2]);
}

/// What the guest finds of replies.
fn receive(page: &SharedPage) -> Vec<u8> {
    let (cons, prod) = (page.load(REPLIES.cons), page.load(REPLIES.prod));
    fence(Ordering::Acquire);
    let mut bytes = vec![0; (prod - cons) as usize];
    page.read(REPLIES.bytes + cons as usize, &mut bytes);
    fence(Ordering::SeqCst);
    page.store(REPLIES.cons, prod);
    bytes
}

fn replies_arrive_as_they_were_written() {
    let page = SharedPage::new();
    let ring = Ring::new(page.clone());
    let store = thread::spawn(move || {
        assert_eq!(ring.drain(&[1, 2]), Ok(2));
        assert_eq!(ring.drain(&[3]), Ok(1));
    });
    let mut received = receive(&page);
    received.extend(receive(&page));
    store.join().unwrap();
    received.extend(receive(&page));
    assert_eq!(received, [1, 2, 3]);
}

/// The store looks at the ring until it finds nothing, then it sleeps until an event.
fn a_request_that_is_left_in_the_ring_was_told_of() {
    let page = SharedPage::new();
    let ring = Ring::new(page.clone());
    send(&page, 1);
    let guest = thread::spawn(move || send(&page, 2));
    let mut taken = take(&ring);
    if !take(&ring).is_empty() {
        taken.push(2);
    }
    let has_told = guest.join().unwrap();
    let left = take(&ring);
    assert!(
        left.is_empty() || has_told,
        "taken {taken:?}, left {left:?}"
    );
}

/// The guest frees a full ring and sends an event if it found it full; the store sleeps when there was no room.
fn room_that_a_full_ring_waits_for_is_told_of() {
    let page = SharedPage::new();
    let ring = Ring::new(page.clone());
    page.store(REPLIES.prod, 1024);
    let guest = thread::spawn(move || {
        let (cons, prod) = (page.load(REPLIES.cons), page.load(REPLIES.prod));
        page.store(REPLIES.cons, cons + 1);
        fence(Ordering::SeqCst);
        // As Linux, which looks again at what the store has done meanwhile.
        prod - cons >= 1024 || page.load(REPLIES.prod) - cons >= 1024
    });
    let sent = ring.drain(&[7]).unwrap();
    let has_told = guest.join().unwrap();
    assert!(sent == 1 || has_told);
}
