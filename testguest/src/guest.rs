//! One guest: its ring, its event channel, and requests over them, with as good manners as the caller wants.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use kernel::hypervisor::{Machine, OwnPage};
use kernel::ring::{CONNECTION, Direction, ERROR, RECONNECT, REPLIES, REQUESTS, RING_BYTES};
use kernel::xen::{Clock as _, Events as _, LocalPort, Page as _, PendingPorts};
use xenstore::wire::{HEADER_SIZE, Header, Kind, PAYLOAD_MAX};
use xenstore::{Instant, ReqId};

/// Longest wait for an answer. The store's slowest ring scan is faster.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Events kept until somebody asks for them; later ones are dropped.
const EVENTS_MAX: usize = 64;

/// The guest and its ring.
pub(crate) struct Guest {
    pub(crate) machine: Machine,
    pub(crate) page: OwnPage,
    pub(crate) port: LocalPort,
    /// Of so many changes to the ring one is told; none for 0.
    pub(crate) notify_every: u32,
    /// How long a part goes on that could for ever.
    pub(crate) spell_ms: u64,
    writes: u32,
    next_req_id: u32,
    events: VecDeque<Vec<u8>>,
}

/// Why there is no good answer.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    /// None came in time.
    Silence,
    /// An errno's name.
    Refused,
}

impl Guest {
    /// The guest with its ring; `None` if the toolstack made none.
    pub(crate) fn open(mut machine: Machine) -> Option<Self> {
        let (page, port) = machine.own_ring()?;
        Some(Self {
            machine,
            page,
            port,
            notify_every: 1,
            spell_ms: 2000,
            writes: 0,
            next_req_id: 1,
            events: VecDeque::new(),
        })
    }

    /// Goes on after the domain was restored: the same page with nothing in it, and a new port.
    pub(crate) fn reopen(&mut self) {
        self.events.clear();
        if let Some((page, port)) = self.machine.own_ring() {
            (self.page, self.port) = (page, port);
        }
    }

    /// Asks and waits for the answer. Events that come before it are kept.
    pub(crate) fn ask(
        &mut self,
        kind: Kind,
        tx_id: u32,
        payload: &[u8],
    ) -> Result<Vec<u8>, Trouble> {
        let deadline = self.machine.now().after(ANSWER_LIMIT);
        let req_id = self.send(kind, tx_id, payload, deadline)?;
        loop {
            let (header, payload) = self.receive(deadline)?;
            if header.req_id != req_id {
                continue;
            }
            return match Kind::from_number(header.kind) {
                Some(Kind::Error) => Err(Trouble::Refused),
                _ => Ok(payload),
            };
        }
    }

    /// Waits until there is a node.
    pub(crate) fn wait_for(&mut self, path: &str) {
        const PACE_MS: u64 = 200;
        let payload = [path.as_bytes(), &[0]].concat();
        while self.ask(Kind::Read, 0, &payload).is_err() {
            self.pause_ms(PACE_MS);
        }
    }

    /// Puts a request into the ring, waiting for room.
    pub(crate) fn send(
        &mut self,
        kind: Kind,
        tx_id: u32,
        payload: &[u8],
        deadline: Instant,
    ) -> Result<ReqId, Trouble> {
        let req_id = ReqId(self.next_req_id);
        self.next_req_id = self.next_req_id.wrapping_add(1).max(1);
        let header = Header {
            kind: kind.number(),
            req_id,
            tx_id,
            len: u32::try_from(payload.len()).unwrap_or(u32::MAX),
        };
        let mut message = Vec::from(header.encode());
        message.extend_from_slice(payload);
        let mut rest = message.as_slice();
        while !rest.is_empty() {
            let written = self.put(rest);
            rest = rest.get(written..).unwrap_or_default();
            if written == 0 {
                self.wait(deadline)?;
            }
        }
        Ok(req_id)
    }

    /// Puts as many bytes into the ring as there is room for, and answers how many.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> usize {
        let (cons, prod) = self.indices(REQUESTS);
        let room = RING_BYTES.saturating_sub(distance(cons, prod));
        let count = room.min(bytes.len());
        for (index, byte) in (0_u32..).zip(bytes.iter().take(count)) {
            let place = place_of(REQUESTS, prod.wrapping_add(index));
            self.page.write(place, &[*byte]);
        }
        if count > 0 {
            self.advance(REQUESTS.prod, prod, count);
            self.tell();
        }
        count
    }

    /// The next answer; events that come before it are kept.
    pub(crate) fn receive(&mut self, deadline: Instant) -> Result<(Header, Vec<u8>), Trouble> {
        loop {
            let (header, payload) = self.message(deadline)?;
            if header.kind != Kind::WatchEvent.number() {
                return Ok((header, payload));
            }
            if self.events.len() < EVENTS_MAX {
                self.events.push_back(payload);
            }
        }
    }

    /// The oldest event that was kept, or the next one that begins before `deadline`. No answer may be awaited.
    pub(crate) fn next_event(&mut self, deadline: Instant) -> Option<Vec<u8>> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        let is_empty = |guest: &Self| {
            let (cons, prod) = guest.indices(REPLIES);
            cons == prod
        };
        while is_empty(self) {
            self.wait(deadline).ok()?;
        }
        let until = self.machine.now().after(ANSWER_LIMIT);
        self.message(until).ok().map(|(_, payload)| payload)
    }

    fn message(&mut self, deadline: Instant) -> Result<(Header, Vec<u8>), Trouble> {
        let mut header = [0; HEADER_SIZE];
        self.take(&mut header, deadline)?;
        let header = Header::decode(header);
        let mut payload = vec![0; usize::try_from(header.len.min(PAYLOAD_MAX)).unwrap_or(0)];
        self.take(&mut payload, deadline)?;
        Ok((header, payload))
    }

    /// Fills `into` from the ring.
    fn take(&mut self, into: &mut [u8], deadline: Instant) -> Result<(), Trouble> {
        let mut filled = 0;
        while filled < into.len() {
            let rest = into.get_mut(filled..).unwrap_or_default();
            let taken = self.get(rest);
            filled = filled.saturating_add(taken);
            if taken == 0 {
                self.wait(deadline)?;
            }
        }
        Ok(())
    }

    /// Takes as many bytes as there are, and answers how many.
    pub(crate) fn get(&mut self, into: &mut [u8]) -> usize {
        let (cons, prod) = self.indices(REPLIES);
        let filled = distance(cons, prod).min(RING_BYTES);
        let count = filled.min(into.len());
        for (index, byte) in (0_u32..).zip(into.iter_mut().take(count)) {
            let place = place_of(REPLIES, cons.wrapping_add(index));
            self.page.read(place, core::slice::from_mut(byte));
        }
        if count > 0 {
            self.advance(REPLIES.cons, cons, count);
        }
        // The store waits for room only if there was none.
        if filled == RING_BYTES {
            self.tell();
        }
        count
    }

    fn advance(&self, index: usize, from: u32, count: usize) {
        let count = u32::try_from(count).unwrap_or(0);
        self.page.store(index, from.wrapping_add(count));
    }

    /// Tells the store of a change, if it is time for that.
    fn tell(&mut self) {
        self.writes = self.writes.wrapping_add(1);
        if self.notify_every != 0 && self.writes.is_multiple_of(self.notify_every) {
            self.notify();
        }
    }

    /// Reader's and writer's index.
    pub(crate) fn indices(&self, direction: Direction) -> (u32, u32) {
        (
            self.page.load(direction.cons),
            self.page.load(direction.prod),
        )
    }

    /// Sends an event.
    pub(crate) fn notify(&mut self) {
        self.machine.notify(self.port);
    }

    /// Why the store no longer serves us; 0 if it does.
    pub(crate) fn error_word(&self) -> u32 {
        self.page.load(ERROR)
    }

    /// Asks for a fresh start, and answers whether it was granted within five seconds.
    pub(crate) fn reconnect(&mut self) -> bool {
        self.page.store(CONNECTION, RECONNECT);
        self.notify();
        self.events.clear();
        self.until_ms(5000, |guest| guest.page.load(CONNECTION) == 0)
    }

    /// Waits until something holds; `false` if it did not within `limit_ms`.
    pub(crate) fn until_ms(
        &mut self,
        limit_ms: u64,
        mut holds: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        let deadline = self.after_ms(limit_ms);
        while !holds(self) {
            if self.wait(deadline).is_err() {
                return holds(self);
            }
        }
        true
    }

    /// Sleeps, whatever comes.
    pub(crate) fn pause_ms(&mut self, duration_ms: u64) {
        let deadline = self.after_ms(duration_ms);
        while self.wait(deadline).is_ok() {}
    }

    /// When the spell is over that begins now.
    pub(crate) fn end_of_spell(&mut self) -> Instant {
        self.after_ms(self.spell_ms)
    }

    /// The time in so many milliseconds.
    pub(crate) fn after_ms(&mut self, duration_ms: u64) -> Instant {
        self.machine.now().after(Duration::from_millis(duration_ms))
    }

    /// Sleeps until an event.
    ///
    /// # Errors
    /// The time is over.
    pub(crate) fn wait(&mut self, deadline: Instant) -> Result<(), Trouble> {
        let mut pending = PendingPorts::default();
        self.machine.wait(Some(deadline));
        self.machine.collect(&mut pending);
        if self.machine.now() >= deadline {
            return Err(Trouble::Silence);
        }
        Ok(())
    }
}

/// Bytes between two free-running indices.
fn distance(cons: u32, prod: u32) -> usize {
    usize::try_from(prod.wrapping_sub(cons)).unwrap_or(usize::MAX)
}

/// Where in the page the byte of a free-running index lies.
fn place_of(direction: Direction, index: u32) -> usize {
    let position = usize::try_from(index).unwrap_or(0) % RING_BYTES;
    direction.bytes.saturating_add(position)
}
