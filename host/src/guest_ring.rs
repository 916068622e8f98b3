//! A guest's own end of its xenstore ring, as a well-behaved kernel holds it (xs_wire.h, protocol.md section 7).

use kernel::fake::FakePage;
use kernel::ring::{CONNECTION, ERROR, EVTCHN_PORT, RECONNECT, REPLIES, REQUESTS, RING_BYTES};
use kernel::xen::Page as _;

/// The page, seen by the domain that granted it. A server that moves its indices wrongly finds a full or an empty ring, no more.
pub(crate) struct GuestRing {
    page: FakePage,
    /// The indices that are this end's to move, as it left them. The server touches them only to begin a new connection.
    request_prod: u32,
    reply_cons: u32,
}

impl GuestRing {
    /// The end of a page that no server has seen yet: the domain waits for one, and tells it the port to bind, as Xen 4.21 does.
    pub(crate) fn new(page: FakePage, port: u32) -> Self {
        page.store(CONNECTION, RECONNECT);
        page.store(EVTCHN_PORT, port);
        Self {
            page,
            request_prod: 0,
            reply_cons: 0,
        }
    }

    /// Whether a server serves it, with an empty ring since it last was not.
    pub(crate) fn is_connected(&self) -> bool {
        self.page.load(CONNECTION) == 0
    }

    /// Whether the server has stopped serving it for a fault of this end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.page.load(ERROR) != 0
    }

    /// Whether the server has begun a new connection that this end did not ask for, as the toolstack can make it.
    pub(crate) fn is_renewed(&self) -> bool {
        let there = (self.page.load(REQUESTS.prod), self.page.load(REPLIES.cons));
        there != (self.request_prod, self.reply_cons)
    }

    /// Asks for a new connection. What is in the ring, or half out of it, then never was.
    pub(crate) fn reconnect(&mut self) {
        (self.request_prod, self.reply_cons) = (0, 0);
        self.page.store(CONNECTION, RECONNECT);
    }

    /// The server has begun a new connection: this end begins at zero, too.
    #[cfg(feature = "simulation")]
    pub(crate) fn renew(&mut self) {
        (self.request_prod, self.reply_cons) = (0, 0);
    }

    /// How many bytes may be sent now.
    pub(crate) fn room(&self) -> usize {
        RING_BYTES - distance(self.page.load(REQUESTS.cons), self.request_prod)
    }

    /// Sends `bytes`, no more than there is room for.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let prod = self.request_prod;
        let (head, tail) = bytes.split_at(to_wrap(prod).min(bytes.len()));
        self.page.write(REQUESTS.bytes + position(prod), head);
        self.page.write(REQUESTS.bytes, tail);
        self.request_prod = moved(prod, bytes.len());
        self.page.store(REQUESTS.prod, self.request_prod);
    }

    /// The bytes that came, at the beginning of `into`; they stay until [`GuestRing::consume`].
    pub(crate) fn peek<'a>(&self, into: &'a mut [u8; RING_BYTES]) -> &'a [u8] {
        let cons = self.reply_cons;
        let used = distance(cons, self.page.load(REPLIES.prod));
        let bytes = into.get_mut(..used).unwrap_or_default();
        let (head, tail) = bytes.split_at_mut(to_wrap(cons).min(used));
        self.page.read(REPLIES.bytes + position(cons), head);
        self.page.read(REPLIES.bytes, tail);
        bytes
    }

    /// Takes `count` of the bytes that came out of the ring.
    pub(crate) fn consume(&mut self, count: usize) {
        self.reply_cons = moved(self.reply_cons, count);
        self.page.store(REPLIES.cons, self.reply_cons);
    }
}

/// How many bytes lie between two indices.
fn distance(cons: u32, prod: u32) -> usize {
    let used = prod.wrapping_sub(cons);
    usize::try_from(used).map_or(RING_BYTES, |used| used.min(RING_BYTES))
}

/// A free-running index, further by `count`, which is at most [`RING_BYTES`].
fn moved(index: u32, count: usize) -> u32 {
    index.wrapping_add(u32::try_from(count).unwrap_or_default())
}

/// Where in the ring the byte of a free-running index lies.
fn position(index: u32) -> usize {
    usize::try_from(index).map_or(0, |index| index % RING_BYTES)
}

fn to_wrap(index: u32) -> usize {
    RING_BYTES - position(index)
}

#[cfg(test)]
mod tests {
    use kernel::ring::Ring;

    use super::*;

    #[test]
    fn bytes_pass_between_both_ends_in_any_portions() {
        let page = FakePage::default();
        let (mut guest, server) = (GuestRing::new(page.clone(), 1), Ring::new(page));
        assert!(!guest.is_connected());
        server.reset();
        assert!(guest.is_connected());
        let sent: Vec<u8> = (0..=u8::MAX).cycle().take(10 * RING_BYTES).collect();
        let (mut up, mut down) = (Vec::new(), Vec::new());
        let mut portions = [1, 700, 1024, 33].into_iter().cycle();
        while down.len() < sent.len() {
            let portion = portions.next().unwrap();
            let rest = sent.get(up.len()..).unwrap();
            guest.send(rest.get(..portion.min(guest.room())).unwrap_or(rest));
            let take = |bytes: &[u8]| {
                up.extend_from_slice(bytes);
                bytes.len()
            };
            server.fill(take).unwrap();
            server.drain(up.get(down.len()..).unwrap()).unwrap();
            let mut buffer = [0; RING_BYTES];
            let came = guest.peek(&mut buffer);
            let came = came.get(..portion).unwrap_or(came);
            down.extend_from_slice(came);
            guest.consume(came.len());
        }
        assert!(down == sent);
    }

    #[test]
    fn a_new_connection_begins_with_an_empty_ring() {
        let page = FakePage::default();
        let (mut guest, server) = (GuestRing::new(page.clone(), 1), Ring::new(page));
        server.reset();
        guest.send(b"half");
        server.drain(b"unread").unwrap();
        assert!(!guest.is_renewed());
        guest.reconnect();
        assert!(server.reconnect_requested());
        server.reset();
        assert!(!guest.is_renewed());
        assert_eq!(guest.room(), RING_BYTES);
        assert_eq!(guest.peek(&mut [0; RING_BYTES]), b"");
    }

    #[test]
    fn a_connection_that_the_toolstack_made_anew_is_noticed() {
        let page = FakePage::default();
        let (mut guest, server) = (GuestRing::new(page.clone(), 1), Ring::new(page));
        server.reset();
        guest.send(b"half");
        server.reset();
        assert!(guest.is_renewed());
    }
}
