//! The FIFO ABI of event channels: queues of ports by priority, linked through one word for each port (event_channel.h). No hypercalls.
//!
//! Xen appends at a queue's tail, we take at its head. A port is pending and linked at most once, so an event that comes again while its
//! port waits costs nothing. What Xen writes is trusted but bounded: a step takes at most [`STEP`] ports, and a link that leads nowhere
//! ends its queue until Xen names a new head.
//!
//! Xen raises the upcall only for a queue of which it finds the bit `ready` clear. So the bits stay set as long as there is work, and a new
//! head is seen by itself: where Xen named one there is a port, and each is taken away.

#[cfg(not(loom))]
use core::mem::offset_of;

use crate::sync::{AtomicU32, Ordering};
use crate::xen::{LocalPort, MAX_PORTS, PendingPorts};

/// Ports whose words fill one page of the event array.
pub(super) const PORTS_PER_PAGE: usize = 1024;
/// Pages that hold a word for every port.
pub(super) const PAGES: usize = MAX_PORTS.div_ceil(PORTS_PER_PAGE);
/// Queues, one for each priority; 0 is the highest.
const PRIORITIES: usize = 16;
/// Ports taken in one step; the rest waits for the next.
const STEP: usize = 1024;

/// The bits of all queues.
const ALL_QUEUES: u32 = (1 << PRIORITIES) - 1;

const PENDING: u32 = 1 << 31;
const MASKED: u32 = 1 << 30;
const LINKED: u32 = 1 << 29;
/// The next port in the queue; 0 at its end.
const LINK: u32 = (1 << 17) - 1;

/// What Xen and we share for one vCPU (`struct evtchn_fifo_control_block`).
#[repr(C, align(128))]
pub(super) struct ControlBlock {
    /// Bit n: Xen raises no upcall for a new head of queue n. It sets the bit with each.
    pub(super) ready: AtomicU32,
    reserved: AtomicU32,
    /// Where Xen began a queue that was empty; 0 when that was taken.
    pub(super) heads: [AtomicU32; PRIORITIES],
}
#[cfg(not(loom))]
const _: () = assert!(offset_of!(ControlBlock, heads) == 8);

impl ControlBlock {
    /// As Xen wants it at first. Its alignment keeps it inside one page.
    #[cfg(any(test, loom))]
    pub(super) const fn new() -> Self {
        Self {
            ready: AtomicU32::new(0),
            reserved: AtomicU32::new(0),
            heads: [const { AtomicU32::new(0) }; PRIORITIES],
        }
    }
}

/// How far our side has come with each queue. It lies beside the control block, so that the next start of the domain finds it.
#[repr(C)]
pub(super) struct Heads {
    /// Where each queue goes on; 0 for where Xen says.
    heads: [AtomicU32; PRIORITIES],
    /// Bit n: queue n may have a port.
    ready: AtomicU32,
}

impl Heads {
    /// Of queues that nothing was taken from.
    #[cfg(any(test, loom))]
    pub(super) const fn new() -> Self {
        Self {
            heads: [const { AtomicU32::new(0) }; PRIORITIES],
            ready: AtomicU32::new(0),
        }
    }
}

/// The page of the reserve for both.
#[repr(C, align(4096))]
pub(super) struct FifoPage {
    pub(super) control: ControlBlock,
    pub(super) heads: Heads,
}

/// The words of 1024 ports: one page of the event array.
pub(super) type EventPage = [AtomicU32; PORTS_PER_PAGE];

/// Masks all ports of a page that no port uses yet.
pub(super) fn mask_all(page: &EventPage) {
    for word in page {
        word.store(MASKED, Ordering::Relaxed);
    }
}

/// Our end of the queues.
pub(super) struct Queues {
    control: &'static ControlBlock,
    heads: &'static Heads,
    pages: heapless::Vec<&'static EventPage, PAGES>,
}

impl Queues {
    /// Queues without a page of words.
    pub(super) fn new(control: &'static ControlBlock, heads: &'static Heads) -> Self {
        for (saved, named) in heads.heads.iter().zip(&control.heads) {
            // The start before this one ended while it took the head.
            if saved.load(Ordering::Relaxed) != 0 {
                named.store(0, Ordering::SeqCst);
            }
        }
        Self {
            control,
            heads,
            pages: heapless::Vec::new(),
        }
    }

    /// Adds the next page, which Xen has taken, too. Answers whether there was room for it.
    pub(super) fn add_page(&mut self, page: &'static EventPage) -> bool {
        self.pages.push(page).is_ok()
    }

    /// Whether the port has a word.
    pub(super) fn has(&self, port: LocalPort) -> bool {
        self.word(port.0).is_some()
    }

    /// Keeps a port from raising the upcall.
    pub(super) fn mask(&self, port: LocalPort) {
        if let Some(word) = self.word(port.0) {
            word.fetch_or(MASKED, Ordering::SeqCst);
        }
    }

    /// Keeps all ports from raising the upcall.
    pub(super) fn mask_all(&self) {
        let words = self.pages.iter().flat_map(|page| page.iter());
        for word in words {
            word.fetch_or(MASKED, Ordering::SeqCst);
        }
    }

    /// Whether a queue was left before its end.
    pub(super) fn has_more(&self) -> bool {
        self.heads.ready.load(Ordering::Relaxed) != 0
    }

    /// Whether there is a port to be taken.
    pub(super) fn is_pending(&self) -> bool {
        self.has_more() || self.has_news()
    }

    /// Lets Xen raise the upcall for what becomes pending from here on.
    pub(super) fn listen(&self) {
        self.control.ready.swap(0, Ordering::SeqCst);
    }

    /// Keeps Xen from raising the upcall.
    pub(super) fn silence(&self) {
        self.control.ready.swap(ALL_QUEUES, Ordering::SeqCst);
    }

    /// Whether Xen began a queue anew.
    fn has_news(&self) -> bool {
        let heads = self.control.heads.iter();
        heads.fold(0, |all, named| all | named.load(Ordering::SeqCst)) != 0
    }

    /// Bit n: Xen began queue n anew.
    fn news(&self) -> u32 {
        let heads = self.control.heads.iter().zip(0..);
        heads.fold(0, |news, (named, queue)| {
            news | u32::from(named.load(Ordering::SeqCst) != 0) << queue
        })
    }

    /// Takes pending ports that are not masked, those of the highest priority first, clearing each before anyone looks at a ring.
    pub(super) fn collect(&self, ports: &mut PendingPorts) {
        if self.has_news() {
            self.heads.ready.fetch_or(self.news(), Ordering::Relaxed);
        }
        if !self.has_more() {
            return;
        }
        for _ in 0..STEP {
            let ready = self.heads.ready.load(Ordering::Relaxed);
            let queue = usize::try_from(ready.trailing_zeros()).unwrap_or(PRIORITIES);
            if let Some(port) = self.take_from(queue) {
                ports.add(port);
            }
            if !self.has_more() {
                return;
            }
        }
    }

    /// Takes the next port of a queue; none if it was masked, or was taken before.
    fn take_from(&self, queue: usize) -> Option<LocalPort> {
        let bit = 1_u32.checked_shl(u32::try_from(queue).ok()?).unwrap_or(0);
        let ready = &self.heads.ready;
        let (Some(saved), Some(named)) =
            (self.heads.heads.get(queue), self.control.heads.get(queue))
        else {
            // Xen has no such queue.
            ready.fetch_and(!bit, Ordering::Relaxed);
            return None;
        };
        let port = match saved.load(Ordering::Relaxed) {
            0 => {
                let port = named.load(Ordering::SeqCst);
                saved.store(port, Ordering::Relaxed);
                // Xen names no other before this port is out of the queue.
                named.store(0, Ordering::SeqCst);
                port
            }
            port => port,
        };
        // Out of the queue first: what is sent from here on is linked anew.
        let word = self
            .word(port)
            .map_or(0, |word| word.fetch_and(!(LINKED | LINK), Ordering::SeqCst));
        let next = word & LINK;
        saved.store(next, Ordering::Relaxed);
        if next == 0 {
            ready.fetch_and(!bit, Ordering::Relaxed);
        }
        if word & (PENDING | MASKED) != PENDING {
            return None;
        }
        self.word(port)?.fetch_and(!PENDING, Ordering::SeqCst);
        Some(LocalPort(port))
    }

    fn word(&self, port: u32) -> Option<&'static AtomicU32> {
        let port = usize::try_from(port).ok()?;
        let page: &'static EventPage = self.pages.get(port / PORTS_PER_PAGE)?;
        page.get(port % PORTS_PER_PAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Xen's side, as event_channel.h describes it.
    struct Xen {
        control: &'static ControlBlock,
        pages: Vec<&'static EventPage>,
        tails: [u32; PRIORITIES],
        upcalls: u32,
    }

    fn machine(pages: usize) -> (Xen, Queues) {
        let control: &'static ControlBlock = Box::leak(Box::new(ControlBlock::new()));
        let mut queues = Queues::new(control, Box::leak(Box::new(Heads::new())));
        let pages: Vec<&'static EventPage> = (0..pages)
            .map(|_| {
                let page: &'static EventPage =
                    Box::leak(Box::new([const { AtomicU32::new(0) }; PORTS_PER_PAGE]));
                mask_all(page);
                assert!(queues.add_page(page));
                page
            })
            .collect();
        let xen = Xen {
            control,
            pages,
            tails: [0; PRIORITIES],
            upcalls: 0,
        };
        (xen, queues)
    }

    impl Xen {
        fn word(&self, port: u32) -> &AtomicU32 {
            let port = port as usize;
            &self.pages[port / PORTS_PER_PAGE][port % PORTS_PER_PAGE]
        }

        fn unmask(&self, port: u32) {
            self.word(port).fetch_and(!MASKED, Ordering::SeqCst);
        }

        fn send(&mut self, port: u32, priority: usize) {
            let word = self.word(port);
            if word.fetch_or(PENDING, Ordering::SeqCst) & MASKED != 0 {
                return;
            }
            if word.fetch_or(LINKED, Ordering::SeqCst) & LINKED != 0 {
                return;
            }
            let tail = core::mem::replace(&mut self.tails[priority], port);
            let appended = tail != 0 && tail != port && {
                let tail = self.word(tail);
                let old = tail.load(Ordering::SeqCst);
                let linked = old & LINKED != 0;
                if linked {
                    tail.store((old & !LINK) | port, Ordering::SeqCst);
                }
                linked
            };
            if !appended {
                self.control.heads[priority].store(port, Ordering::SeqCst);
                let bit = 1 << priority;
                if self.control.ready.fetch_or(bit, Ordering::SeqCst) & bit == 0 {
                    self.upcalls += 1;
                }
            }
        }
    }

    fn collected(queues: &mut Queues) -> Vec<u32> {
        let mut ports = PendingPorts::default();
        queues.collect(&mut ports);
        core::iter::from_fn(|| ports.take())
            .map(|port| port.0)
            .collect()
    }

    #[test]
    fn each_event_is_taken_once_and_masked_ports_stay() {
        let (mut xen, mut queues) = machine(2);
        for port in [1, 5, 1024, 2047] {
            xen.unmask(port);
            xen.send(port, 7);
            xen.send(port, 7);
        }
        xen.send(6, 7);
        assert_eq!(collected(&mut queues), [1, 5, 1024, 2047]);
        assert_eq!(collected(&mut queues), []);
        xen.send(5, 7);
        assert_eq!(collected(&mut queues), [5]);
        assert_eq!(xen.word(6).load(Ordering::SeqCst), PENDING | MASKED);
        assert_eq!(xen.word(5).load(Ordering::SeqCst), 0);
    }

    #[test]
    fn upcalls_come_only_while_somebody_listens() {
        let (mut xen, mut queues) = machine(1);
        for port in [1, 2, 3] {
            xen.unmask(port);
        }
        queues.silence();
        xen.send(1, 7);
        xen.send(2, 0);
        assert_eq!(xen.upcalls, 0);
        assert!(queues.is_pending());
        queues.listen();
        assert!(queues.is_pending(), "what came before is there");
        assert_eq!(collected(&mut queues), [1, 2]);
        assert!(!queues.is_pending());
        xen.send(3, 7);
        xen.send(1, 7);
        assert_eq!(xen.upcalls, 1, "one for a queue that was empty");
        queues.silence();
        assert_eq!(collected(&mut queues), [1, 3]);
        xen.send(3, 7);
        assert_eq!(xen.upcalls, 1);
        assert_eq!(collected(&mut queues), [3]);
    }

    #[test]
    fn a_head_that_was_being_taken_is_taken_once() {
        let (mut xen, queues) = machine(1);
        for port in [1, 2] {
            xen.unmask(port);
            xen.send(port, 7);
        }
        queues.heads.heads[7].store(1, Ordering::SeqCst);
        queues.heads.ready.store(1 << 7, Ordering::SeqCst);
        let mut next = Queues::new(queues.control, queues.heads);
        assert!(next.add_page(xen.pages[0]));
        assert_eq!(collected(&mut next), [1, 2]);
        assert!(!next.is_pending());
    }

    #[test]
    fn what_is_masked_while_it_waits_is_left_out_and_ends_no_queue() {
        let (mut xen, mut queues) = machine(1);
        for port in [1, 2, 3] {
            xen.unmask(port);
            xen.send(port, 7);
        }
        queues.mask(LocalPort(1));
        queues.mask(LocalPort(2));
        assert_eq!(collected(&mut queues), [3]);
        xen.unmask(1);
        xen.send(1, 7);
        assert_eq!(collected(&mut queues), [1]);
    }

    #[test]
    fn the_highest_priority_comes_first_and_a_step_has_an_end() {
        let (mut xen, mut queues) = machine(2);
        for port in 1..1500 {
            xen.unmask(port);
            xen.send(port, 7);
        }
        xen.unmask(1500);
        xen.send(1500, 0);
        let first = collected(&mut queues);
        assert_eq!(first.len(), STEP);
        assert_eq!(first.last(), Some(&1500));
        assert!(queues.has_more());
        xen.send(1, 7);
        xen.send(1500, 0);
        let second = collected(&mut queues);
        assert_eq!(second.len(), 1499 - (STEP - 1) + 2);
        assert!(!queues.has_more());
        assert_eq!(collected(&mut queues), []);
    }

    #[test]
    fn links_that_lead_nowhere_or_in_a_circle_end() {
        let (xen, mut queues) = machine(1);
        xen.control.heads[3].store(LINK, Ordering::SeqCst);
        assert_eq!(collected(&mut queues), []);
        assert!(!queues.has_more());

        for (port, next) in [(1, 2), (2, 1)] {
            let word = PENDING | LINKED | next;
            xen.word(port).store(word, Ordering::SeqCst);
        }
        xen.control.heads[7].store(1, Ordering::SeqCst);
        assert_eq!(collected(&mut queues), [1, 2]);
        assert!(!queues.has_more());
    }

    #[test]
    fn there_is_a_word_for_every_port_and_for_no_other() {
        let (_, mut queues) = machine(PAGES);
        let last = u32::try_from(MAX_PORTS - 1).unwrap();
        assert!(queues.has(LocalPort(last)) && !queues.has(LocalPort(last + 1)));
        queues.mask(LocalPort(u32::MAX));
        let page: &'static EventPage =
            Box::leak(Box::new([const { AtomicU32::new(0) }; PORTS_PER_PAGE]));
        assert!(!queues.add_page(page));
    }

    proptest! {
        /// Whatever is sent between steps is taken by the next ones, each port once for each time that it became pending.
        #[test]
        fn nothing_is_lost(deeds in prop::collection::vec((1_u32..40, 0_usize..16, any::<bool>()), 1..300)) {
            let (mut xen, mut queues) = machine(1);
            let mut pending = std::collections::BTreeSet::new();
            // A port keeps its priority, as a bound one does.
            let mut priorities = std::collections::BTreeMap::new();
            for port in 1..40 {
                xen.unmask(port);
            }
            for (port, priority, step) in deeds {
                let priority = *priorities.entry(port).or_insert(priority);
                xen.send(port, priority);
                pending.insert(port);
                if step {
                    prop_assert_eq!(collected(&mut queues), core::mem::take(&mut pending).into_iter().collect::<Vec<_>>());
                }
            }
            prop_assert_eq!(collected(&mut queues), pending.into_iter().collect::<Vec<_>>());
        }
    }
}
