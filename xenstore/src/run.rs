//! The only place where requests change the store: one of each connection in turn ([`crate::turns`]), while the budget lasts.

use core::mem;

use crate::answer::Answer;
use crate::bugs;
use crate::connection::{Connection, Request};
use crate::counters::Counter;
use crate::database::{Need, Refusal};
use crate::events::Telling;
use crate::faults;
use crate::ids::{ConnId, Ticket};
use crate::journal::Entry;
use crate::output::{Cause, Payload};
use crate::quota::{Quota, within};
use crate::server::{Action, Progress, Question, Server};
use crate::storage::Storage;
use crate::time::Instant;
use crate::turns::Served;
use crate::wire::{Errno, Header, Kind, PAYLOAD_MAX};

/// Replies that may wait for a client without the quota `outstanding` before no more of its requests are run.
pub(crate) const REPLIES_MAX: usize = 1024;
/// What is run before the host may want to see what memory is left.
const SLICE: u32 = 8;
/// What running a request costs of the budget, at least.
const REQUEST_COST: u64 = 1;
/// Bytes of a payload that cost as much as the request itself.
const BYTES_PER_COST: usize = 256;

/// What may be spent on requests, in the units of [`Server::run`].
#[derive(Debug)]
pub struct Budget {
    left: u32,
    is_untouched: bool,
}

impl Budget {
    /// So much, or one request that costs more.
    #[must_use]
    pub const fn new(left: u32) -> Self {
        Self {
            left,
            is_untouched: true,
        }
    }

    /// Whether nothing is left, or nobody wants it.
    #[must_use]
    pub const fn is_used_up(&self) -> bool {
        self.left == 0
    }

    /// What the next request may cost.
    fn at_most(&self) -> u64 {
        if self.is_untouched {
            u64::MAX
        } else {
            self.left.into()
        }
    }

    fn spend(&mut self, cost: u32) {
        self.left = self.left.saturating_sub(cost);
        self.is_untouched = false;
    }
}

/// C: the work.
impl<S: Storage> Server<S> {
    /// Runs requests, one of each connection in turn, until none is left or the budget is used up. One that is foreseen to cost
    /// more than what is left of the budget waits for the next run.
    ///
    /// A request costs 1, and 1 more for each 256 bytes of payload, each event that it makes, each change, each 4 nodes of a tree that it
    /// removes, and each request that runs again when a transaction ends.
    pub fn run(&mut self, now: Instant, budget: u32) -> Progress {
        let mut budget = Budget::new(budget);
        let mut progress = Progress::More;
        while !budget.is_used_up() {
            progress = self.run_slice(now, &mut budget);
        }
        progress
    }

    /// As [`Server::run`], a little of it: the host can say in between what memory is left.
    pub fn run_slice(&mut self, now: Instant, budget: &mut Budget) -> Progress {
        self.now = now;
        self.journal.note(|| Entry::Run(now));
        let end = budget.left.saturating_sub(SLICE);
        while budget.left > end {
            let Some((conn, begins)) = self.turns.next(budget.at_most()) else {
                budget.left = 0;
                break;
            };
            let cost = self.serve_next(conn, begins);
            budget.spend(cost);
        }
        if self.turns.is_empty() {
            Progress::Idle
        } else {
            Progress::More
        }
    }

    /// Runs the request of a connection whose turn it is, and lets it pay the cost.
    fn serve_next(&mut self, conn: ConnId, begins: Served) -> u32 {
        let cost = self.serve(conn);
        self.at_work = None;
        faults::end_request();
        self.spent = self.spent.saturating_add(cost.into());
        if let Some(connection) = self.connections.get_mut(conn)
            && !connection.privileged
        {
            connection.served = begins.after(cost);
        }
        cost
    }

    /// Runs the request of a connection, if it has one that may run; gives its cost.
    fn serve(&mut self, conn: ConnId) -> u32 {
        let has_layers = !self.layers.is_empty();
        if has_layers && let Some(cost) = self.hold_back(conn) {
            return cost;
        }
        let Some((request, cause)) = self.take_request(conn) else {
            return 1;
        };
        self.at_work = Some(self.work_for(conn, request.header));
        let is_charged = cause.is_some();
        self.cause = cause;
        if self.traces {
            self.trace_request(conn, &request);
        }
        let cost = cost_of(&request.payload);
        let events = self.events;
        self.work = 0;
        self.did_change = false;
        self.telling = Telling::default();
        self.note_request(conn, &request, |request| Entry::Begins { request });
        faults::begin_request();
        faults::may_crash();
        let answer = match self.answer(conn, &request) {
            Ok(answer) => Ok(answer),
            Err(Refusal::Errno(errno)) => Err(errno),
            Err(Refusal::Later) => {
                self.await_update(conn, request);
                return u32::try_from(cost).unwrap_or(u32::MAX);
            }
            Err(Refusal::Wait(need)) => {
                self.cause = None;
                if let Need::Connect { domid, .. } = need {
                    self.note_request(conn, &request, |request| Entry::Waits { request, domid });
                }
                self.ask(conn, need, request);
                return u32::try_from(cost).unwrap_or(u32::MAX);
            }
        };
        faults::may_crash();
        let refused = answer.as_ref().err().copied();
        self.reply(conn, request.header, answer);
        self.note_request(conn, &request, |request| Entry::Served { request, refused });
        let events = self.events.wrapping_sub(events);
        let cost = cost.saturating_add(events).saturating_add(self.work);
        let cost = u32::try_from(cost).unwrap_or(u32::MAX);
        if has_layers {
            self.complete_request(conn, &request, refused, cost);
        }
        self.spare.keep(request.payload);
        self.cause = None;
        if is_charged {
            self.account(conn);
        }
        cost
    }

    pub(crate) fn may_run(&self, connection: &Connection<S>) -> bool {
        let outstanding = u64::try_from(connection.outstanding.len()).unwrap_or(u64::MAX);
        !connection.stopped
            && connection.held.is_none()
            && connection.waiting.is_none()
            && connection.input.is_whole()
            && connection.output.replies() < self.replies_max(connection)
            && (bugs::XSA_326
                || within(
                    outstanding.saturating_add(1),
                    self.limit_of(connection, Quota::Outstanding),
                ))
    }

    fn replies_max(&self, connection: &Connection<S>) -> usize {
        if connection.privileged {
            REPLIES_MAX
        } else {
            self.supply.replies_max()
        }
    }

    /// The request of a connection, if it has one that may run; and as what it makes others work, if its client is unprivileged.
    #[inline(always)]
    pub(crate) fn take_request(&mut self, conn: ConnId) -> Option<(Request, Option<Cause>)> {
        self.connections.get_mut(conn)?.queued = false;
        if !self.may_run(self.connections.get(conn)?) {
            return None;
        }
        let connection = self.connections.get_mut(conn)?;
        let request = connection.input.request()?;
        connection.requests = connection.requests.wrapping_add(1);
        connection.counters.count_request(request.header.kind);
        let cause = Cause {
            connection: conn,
            request: connection.requests,
        };
        Some((request, (!connection.privileged).then_some(cause)))
    }

    /// Lets a request wait for the host.
    fn ask(&mut self, conn: ConnId, need: Need, request: Request) {
        self.asked = self.asked.wrapping_add(1);
        let ticket = Ticket(self.asked);
        let header = request.header;
        let (question, action) = match need {
            Need::Identify(domid) => {
                if let Some(connection) = self.connections.get_mut(conn) {
                    connection.input.put_back(request);
                }
                (
                    Question::Identify {
                        requester: conn,
                        domid,
                    },
                    Action::Identify { ticket, domid },
                )
            }
            Need::Connect { domid, port } => {
                let fresh = self.connections.promise();
                let question = Question::Connect {
                    requester: conn,
                    header,
                    conn: fresh,
                    domid,
                    port,
                };
                (
                    question,
                    Action::Connect {
                        ticket,
                        conn: fresh,
                        domid,
                        port,
                    },
                )
            }
        };
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.waiting = Some(ticket);
        }
        self.questions.insert(ticket, question);
        self.actions.push_back(action);
    }

    /// Queues the reply, then what must follow it.
    #[inline]
    pub(crate) fn reply(&mut self, conn: ConnId, header: Header, answer: Result<Answer, Errno>) {
        let asked = header;
        let (kind, payload) = match answer.map(Answer::into_payload) {
            Ok(payload) if fits(payload.len()) || bugs::XSA_72 => (header.kind, payload),
            Ok(_) => self.fail(conn, Errno::E2BIG),
            Err(errno) => self.fail(conn, errno),
        };
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = Header {
            kind,
            len,
            ..header
        };
        if self.traces {
            self.trace_reply(conn, header.kind, payload.pieces().concat().as_slice());
        }
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.absent.clear();
            let bytes = connection.output.reply(header, payload, self.cause);
            if let Some(at_work) = &mut self.at_work {
                at_work.is_answered |= at_work.header == Some(asked);
            }
            if !mem::replace(&mut connection.ready, true) {
                self.ready.push_back(conn);
            }
            self.charge_cause(bytes);
        }
        self.cause = None;
        faults::may_crash();
        if let Some(watch) = self.fresh_watch {
            self.telling = Telling::default();
            self.tell_first(watch);
            self.fresh_watch = None;
        }
        self.take_backlog(conn);
    }

    /// Makes a request of bytes that another instance of the server had read, behind one that was answered.
    pub(crate) fn take_backlog(&mut self, conn: ConnId) {
        let connection = self.connections.get_mut(conn);
        let Some(connection) = connection.filter(|connection| !connection.backlog.is_empty())
        else {
            return;
        };
        while !connection.backlog.is_empty() && !connection.input.is_whole() {
            let (bytes, _) = connection.backlog.as_slices();
            match connection.input.take(bytes, &mut self.spare) {
                Ok(taken) => drop(connection.backlog.drain(..taken)),
                Err(_) => {
                    self.count(conn, Counter::ProtocolFaults);
                    return self.stop(conn);
                }
            }
        }
        self.queue(conn);
    }

    /// The reply that is an error, which is counted.
    fn fail(&self, conn: ConnId, errno: Errno) -> (u32, Payload) {
        if let Some(connection) = self.connections.get(conn) {
            connection.counters.count_error(errno);
        }
        (Kind::Error.number(), Payload::Fixed(errno.payload()))
    }

    /// Lets a connection with a whole request stand in the queue, once.
    pub(crate) fn queue(&mut self, conn: ConnId) {
        let waits = |connection: &&Connection<S>| connection.input.is_whole() && !connection.queued;
        let Some(connection) = self.connections.get(conn).filter(waits) else {
            return;
        };
        if !self.may_run(connection) {
            self.note_late(conn);
        } else if let Some(connection) = self.connections.get_mut(conn) {
            connection.queued = true;
            let cost = connection.foreseen_cost();
            self.turns.add(conn, connection.served, cost);
        }
    }

    /// Counts a request that must wait for the quota `outstanding`, once.
    #[cold]
    fn note_late(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.get(conn) else {
            return;
        };
        let request = connection.requests.wrapping_add(1);
        let outstanding = u64::try_from(connection.outstanding.len()).unwrap_or(u64::MAX);
        if connection.late != request
            && !self.admits(conn, Quota::Outstanding, outstanding.saturating_add(1))
            && let Some(connection) = self.connections.get_mut(conn)
        {
            connection.late = request;
        }
    }
}

pub(crate) fn fits(len: usize) -> bool {
    u32::try_from(len).is_ok_and(|len| len <= PAYLOAD_MAX)
}

/// What a request with this payload costs at least.
pub(crate) fn cost_of(payload: &[u8]) -> u64 {
    let bytes = payload.len() / BYTES_PER_COST;
    REQUEST_COST.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX))
}
