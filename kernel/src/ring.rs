//! The xenstore ring: a page that another domain may rewrite at any time, and what is safe to do with it.
//!
//! Safety needs no trust in what the page says (hostility.md R1-R4): an operation loads both indices of its direction once, refuses
//! a distance above the ring's size, works on that snapshot and private copies only, and publishes its own index as snapshot + n. A
//! peer that plays with the indices gets wrong bytes in its own ring and nothing else.

use xenstore::EvtchnPort;

use crate::bugs;
use crate::sync::{Ordering, fence};
use crate::xen::Page;

/// Bytes each way (`XENSTORE_RING_SIZE`, xs_wire.h); a power of two.
pub const RING_BYTES: usize = 1024;

/// One ring in a mapped page.
#[derive(Debug)]
pub struct Ring<P> {
    page: P,
}

impl<P: Page> Ring<P> {
    /// The ring in `page`; nothing is touched.
    #[must_use]
    pub const fn new(page: P) -> Self {
        Self { page }
    }

    /// The page, to be unmapped.
    #[must_use]
    pub fn into_page(self) -> P {
        self.page
    }

    /// The page.
    pub const fn page(&self) -> &P {
        &self.page
    }

    /// Offers the waiting request bytes as one private copy to `take`, which answers how many it took; frees these.
    ///
    /// `take` is not called on an empty ring. What is left in the ring is offered again by the next call.
    ///
    /// # Errors
    /// The indices are impossible; nothing was consumed.
    pub fn fill(&self, take: impl FnOnce(&[u8]) -> usize) -> Result<usize, RingFault> {
        let Snapshot { cons, used, .. } = self.snapshot(&REQUESTS)?;
        let mut copy = [0; RING_BYTES];
        let Some(bytes) = copy.get_mut(..usize::from(used)).filter(|b| !b.is_empty()) else {
            return Ok(0);
        };
        let (head, tail) = bytes.split_at_mut(bytes_to_wrap(cons).min(bytes.len()));
        self.page.read(REQUESTS.bytes + position(cons), head);
        self.page.read(REQUESTS.bytes, tail);

        let taken = at_most(take(bytes), used);
        self.publish(REQUESTS.cons, cons, taken);
        Ok(usize::from(taken))
    }

    /// Sends as many of `bytes` as there is room for, and answers how many.
    ///
    /// # Errors
    /// The indices are impossible; nothing was sent.
    pub fn drain(&self, bytes: &[u8]) -> Result<usize, RingFault> {
        let Snapshot { prod, free, .. } = self.snapshot(&REPLIES)?;
        let sent = at_most(bytes.len(), free);
        let bytes = bytes.get(..usize::from(sent)).unwrap_or_default();
        let (head, tail) = bytes.split_at(bytes_to_wrap(prod).min(bytes.len()));
        self.page.write(REPLIES.bytes + position(prod), head);
        self.page.write(REPLIES.bytes, tail);

        self.publish(REPLIES.prod, prod, sent);
        Ok(usize::from(sent))
    }

    /// Whether the domain asks for a fresh start (protocol.md 7.4). Every value but zero counts, so that none is stuck.
    #[must_use]
    pub fn reconnect_requested(&self) -> bool {
        self.page.load(CONNECTION) != CONNECTED
    }

    /// The port that Xen itself filled in for a domain that it built (Xen 4.21). The domain can write it too.
    #[must_use]
    pub fn evtchn_port(&self) -> Option<EvtchnPort> {
        match self.page.load(EVTCHN_PORT) {
            0 => None,
            port => Some(EvtchnPort(port)),
        }
    }

    /// Shows the domain what the server can do. To be done before its first byte moves.
    pub fn offer(&self, features: u32) {
        self.page.store(FEATURES, features);
    }

    /// What the domain is shown that the server can do. The domain can write it too.
    #[must_use]
    pub fn offered(&self) -> u32 {
        self.page.load(FEATURES)
    }

    /// Tells the domain that it is connected; its indices stay as they are.
    pub fn welcome(&self) {
        self.page.store(ERROR, 0);
        fence(Ordering::Release);
        self.page.store(CONNECTION, CONNECTED);
    }

    /// Starts a new life with two empty directions. The domain waits for the connection word, so that is written last.
    pub fn reset(&self) {
        for index in [REQUESTS.cons, REQUESTS.prod, REPLIES.cons, REPLIES.prod] {
            self.page.store(index, 0);
        }
        fence(Ordering::Release);
        self.welcome();
    }

    /// Tells the domain why it is no longer served. Only for a domain that was offered [`xenstore::Features::ERROR`].
    pub fn fail(&self, error: ErrorWord) {
        self.page.store(ERROR, error as u32);
    }

    fn snapshot(&self, direction: &Direction) -> Result<Snapshot, RingFault> {
        // What was published before comes first. Linux sends an event only if it finds the requests all consumed or the replies
        // full, so either it sees our index or we see its own; without this order both could miss.
        fence(Ordering::SeqCst);
        let cons = self.page.load(direction.cons);
        let prod = self.page.load(direction.prod);
        // The bytes are not touched before the indices that promise them.
        fence(Ordering::Acquire);
        let distance = prod.wrapping_sub(cons);
        let distance = if bugs::XSA_38 {
            distance & MASK
        } else {
            distance
        };
        let used = u16::try_from(distance).map_err(|_| RingFault)?;
        let free = SIZE.checked_sub(used).ok_or(RingFault)?;
        let prod = if bugs::XSA_155 {
            self.page.load(direction.prod)
        } else {
            prod
        };
        Ok(Snapshot {
            cons,
            prod,
            used,
            free,
        })
    }

    /// Moves our own index to `snapshot + n`, once the bytes are copied. Nothing moved, nothing stored.
    fn publish(&self, index: usize, snapshot: u32, n: u16) {
        if n != 0 {
            fence(Ordering::Release);
            self.page.store(index, snapshot.wrapping_add(u32::from(n)));
        }
    }
}

/// The indices of a ring are further apart than it is long: the connection can no longer be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFault;

/// Why a domain is no longer served, as its `error` word says it (xs_wire.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorWord {
    /// The event channel cannot be bound.
    Communication = 1,
    /// A [`RingFault`].
    RingIndex = 2,
    /// A request longer than the protocol allows.
    Protocol = 3,
}

/// Both indices of a direction as they were at one moment, and what follows from them.
struct Snapshot {
    cons: u32,
    prod: u32,
    used: u16,
    free: u16,
}

/// Where the bytes and indices of one direction lie in the page.
#[derive(Clone, Copy, Debug)]
pub struct Direction {
    /// The first byte.
    pub bytes: usize,
    /// The reader's index.
    pub cons: usize,
    /// The writer's.
    pub prod: usize,
}

/// From the domain to the store.
pub const REQUESTS: Direction = Direction {
    bytes: 0,
    cons: 2048,
    prod: 2052,
};
/// From the store to the domain.
pub const REPLIES: Direction = Direction {
    bytes: REQUESTS.bytes + RING_BYTES,
    cons: REQUESTS.prod + WORD,
    prod: REQUESTS.prod + 2 * WORD,
};
/// What the store can do.
pub const FEATURES: usize = REPLIES.prod + WORD;
/// Not 0: the domain asks for a fresh start.
pub const CONNECTION: usize = FEATURES + WORD;
/// An [`ErrorWord`].
pub const ERROR: usize = CONNECTION + WORD;
/// The port that Xen itself filled in for a domain that it built.
pub const EVTCHN_PORT: usize = ERROR + WORD;
/// In [`CONNECTION`]: the domain asks (`XENSTORE_RECONNECT`).
pub const RECONNECT: u32 = 1;

const CONNECTED: u32 = 0;
const WORD: usize = size_of::<u32>();
const SIZE: u16 = 1024;
const MASK: u32 = SIZE as u32 - 1;

const _: () = {
    assert!(SIZE as usize == RING_BYTES && RING_BYTES.is_power_of_two());
    assert!(REPLIES.bytes + RING_BYTES == REQUESTS.cons);
    assert!(REPLIES.cons == 2056 && REPLIES.prod == 2060);
    assert!(FEATURES == 2064 && CONNECTION == 2068 && ERROR == 2072 && EVTCHN_PORT == 2076);
};

/// Where in the ring the byte of a free-running index lies.
fn position(index: u32) -> usize {
    (index & MASK) as usize
}

fn bytes_to_wrap(index: u32) -> usize {
    RING_BYTES - position(index)
}

fn at_most(n: usize, limit: u16) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX).min(limit)
}

#[cfg(test)]
#[path = "ring/tests.rs"]
mod tests;
