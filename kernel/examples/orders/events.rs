//! Pending event channels between Xen (common/event_fifo.c, event_2l.c) and the loop: no event is lost, whenever it comes.
//!
//! A guest writes, then sends an event; Xen marks its port pending; the loop collects ports, looks at what their guests wrote, and sleeps
//! when nothing is pending, until an upcall. In the end all that was written must have been seen.

use std::sync::Arc;

use loom::thread;

use crate::fifo::{ControlBlock, EventPage, Heads, PORTS_PER_PAGE, Queues};
use crate::shared_info::SharedInfo;
use crate::sync::{AtomicU32, Ordering};
use crate::two_level;
use crate::xen::PendingPorts;

pub(crate) fn run() {
    println!("2-level: two events of one port, and one of another");
    loom::model(|| two_level_events(&[1, 1, 70]));
    println!("FIFO: two events of one port");
    loom::model(|| fifo_events(&[1, 1]));
    println!("FIFO: two ports in one queue");
    loom::model(|| fifo_events(&[1, 2]));
}

/// The queue that all ports are in.
const PRIORITY: usize = 7;
const PENDING: u32 = 1 << 31;
const LINKED: u32 = 1 << 29;
const LINK: u32 = (1 << 17) - 1;

/// Ports that are looked at, and their words.
const PORTS: usize = 72;
const WORDS: usize = 2;

/// What guests have written so far, one for each port.
type Written = [AtomicU32; PORTS];

fn written(events: &[u32]) -> Arc<Written> {
    let written = [const { AtomicU32::new(0) }; PORTS];
    events
        .iter()
        .for_each(|port| written[*port as usize].touch());
    Arc::new(written)
}

/// Looks at what the guests of these ports wrote.
fn look(ports: &mut PendingPorts, written: &Written, seen: &mut [u32; PORTS]) {
    while let Some(port) = ports.take() {
        let port = port.0 as usize;
        seen[port] = written[port].load(Ordering::Relaxed);
    }
}

fn assert_all_seen(events: &[u32], seen: &[u32; PORTS]) {
    for port in events {
        let sent = events.iter().filter(|other| *other == port).count();
        assert_eq!(seen[*port as usize] as usize, sent, "port {port}");
    }
}

fn two_level_events(events: &'static [u32]) {
    let shared = Arc::new(SharedInfo::new());
    for port in events {
        shared.pending[*port as usize / 64].touch();
        shared.mask[*port as usize / 64].touch();
    }
    shared.vcpu().pending_words.touch();
    shared.vcpu().upcall_pending.touch();
    let written = written(events);
    let xen = thread::spawn({
        let (shared, written) = (Arc::clone(&shared), Arc::clone(&written));
        move || {
            for port in events {
                write(&written, *port);
                let (word, bit) = (*port as usize / 64, *port % 64);
                if shared.pending[word].fetch_or(1 << bit, Ordering::SeqCst) & (1 << bit) == 0
                    && shared.mask[word].load(Ordering::SeqCst) & (1 << bit) == 0
                    && shared
                        .vcpu()
                        .pending_words
                        .fetch_or(1 << word, Ordering::SeqCst)
                        & (1 << word)
                        == 0
                {
                    shared.vcpu().upcall_pending.swap(1, Ordering::SeqCst);
                }
            }
        }
    });
    let mut seen = [0; PORTS];
    let mut collect = || {
        let mut ports = Box::<PendingPorts>::default();
        two_level::collect(&shared, WORDS, &mut ports);
        look(&mut ports, &written, &mut seen);
    };
    two_level::silence(&shared);
    collect();
    two_level::listen(&shared);
    let is_awake = two_level::is_pending(&shared, WORDS);
    xen.join().unwrap();
    if is_awake || shared.vcpu().upcall_pending.load(Ordering::Acquire) != 0 {
        two_level::silence(&shared);
        collect();
    }
    assert_all_seen(events, &seen);
}

fn write(written: &Written, port: u32) {
    let word = &written[port as usize];
    word.store(word.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Xen's side of the queues.
struct Xen {
    control: &'static ControlBlock,
    page: &'static EventPage,
    upcall_pending: Arc<AtomicU32>,
    tail: u32,
}

impl Xen {
    fn send(&mut self, port: u32) {
        let word = &self.page[port as usize];
        word.fetch_or(PENDING, Ordering::SeqCst);
        if word.fetch_or(LINKED, Ordering::SeqCst) & LINKED != 0 {
            return;
        }
        let tail = core::mem::replace(&mut self.tail, port);
        let is_linked = tail != 0 && tail != port && self.link(tail, port);
        if !is_linked {
            self.control.heads[PRIORITY].store(port, Ordering::SeqCst);
            let bit = 1 << PRIORITY;
            if self.control.ready.fetch_or(bit, Ordering::SeqCst) & bit == 0 {
                self.upcall_pending.swap(1, Ordering::SeqCst);
            }
        }
    }

    /// Appends a port behind the tail, if that is still in the queue.
    fn link(&self, tail: u32, port: u32) -> bool {
        let word = &self.page[tail as usize];
        let mut old = word.load(Ordering::SeqCst);
        while old & LINKED != 0 {
            match word.compare_exchange(old, (old & !LINK) | port) {
                Ok(_) => return true,
                Err(now) => old = now,
            }
        }
        false
    }
}

fn fifo_events(events: &'static [u32]) {
    let control: &'static ControlBlock = Box::leak(Box::new(ControlBlock::new()));
    // Made in the heap: loom's threads have small stacks.
    let page: Vec<AtomicU32> = (0..PORTS_PER_PAGE).map(|_| AtomicU32::new(0)).collect();
    let page: Box<EventPage> = page.into_boxed_slice().try_into().ok().unwrap();
    let page: &'static EventPage = Box::leak(page);
    let upcall_pending = Arc::new(AtomicU32::new(0));
    events.iter().for_each(|port| page[*port as usize].touch());
    control.heads[PRIORITY].touch();
    control.ready.touch();
    upcall_pending.touch();
    let written = written(events);
    let mut xen = Xen {
        control,
        page,
        upcall_pending: Arc::clone(&upcall_pending),
        tail: 0,
    };
    let mut queues = Queues::new(control, Box::leak(Box::new(Heads::new())));
    assert!(queues.add_page(page));
    let sender = thread::spawn({
        let written = Arc::clone(&written);
        move || {
            for port in events {
                write(&written, *port);
                xen.send(*port);
            }
        }
    });
    let mut seen = [0; PORTS];
    let mut collect = |queues: &mut Queues| {
        let mut ports = Box::<PendingPorts>::default();
        queues.collect(&mut ports);
        look(&mut ports, &written, &mut seen);
    };
    queues.silence();
    collect(&mut queues);
    queues.listen();
    let is_awake = queues.is_pending();
    sender.join().unwrap();
    if is_awake || upcall_pending.load(Ordering::Acquire) != 0 {
        queues.silence();
        collect(&mut queues);
    }
    assert_all_seen(events, &seen);
}
