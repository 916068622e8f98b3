//! A guest that knows what it must be answered: any reply or event that is lost, doubled, late or out of order is counted, for whoever
//! replaces the store under it.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use log::debug;
use xenstore::ReqId;
use xenstore::wire::Kind;

use crate::guest::Guest;
use crate::manners::strings;

/// Nodes written by turns, so that every event tells which write it is of.
const NODES: u64 = 8;
/// Rounds between two reports.
const REPORT_EVERY: u64 = 4;
/// How long an event or a reply may take.
const LIMIT_MS: u64 = 60_000;
/// Pause between two rounds: many guests share one emulated processor.
const PACE_MS: u64 = 100;
/// Wrong answers that are told in words.
const TOLD_MAX: u64 = 10;

/// Checks for ever. `data/checked` says after how many rounds how much was wrong.
pub(crate) fn checks(guest: &mut Guest) {
    let mut checker = Checker {
        guest,
        round: 0,
        wrong: 0,
    };
    if checker.begin() {
        debug!("checking");
    }
    loop {
        checker.round();
        checker.guest.pause_ms(PACE_MS);
    }
}

struct Checker<'a> {
    guest: &'a mut Guest,
    round: u64,
    wrong: u64,
}

impl Checker<'_> {
    fn begin(&mut self) -> bool {
        let watched = self.guest.ask(Kind::Watch, 0, &strings([b"data", b"t"]));
        let first = self.event();
        self.expect("the first event", first.as_deref(), b"data\0t\0");
        watched.is_ok()
    }

    fn round(&mut self) {
        self.round = self.round.wrapping_add(1);
        let name = format!("data/n{}", self.round % NODES);
        let value = format!("{}", self.round);
        self.write_and_read(&name, &value);
        self.transaction(&name, &value);
        if self.round.is_multiple_of(REPORT_EVERY) {
            let report = format!("{} rounds, {} wrong", self.round, self.wrong);
            let payload = [b"data/checked\0".as_slice(), report.as_bytes()].concat();
            let sent = self.send(Kind::Write, 0, &payload);
            self.reply("a report", sent, Kind::Write, b"OK\0");
            let event = self.event();
            self.expect("a report's event", event.as_deref(), b"data/checked\0t\0");
        }
    }

    /// Three requests at once: their replies must come in their order.
    fn write_and_read(&mut self, name: &str, value: &str) {
        let path = with_nul(name);
        let write = [path.as_slice(), value.as_bytes()].concat();
        let sent = [
            self.send(Kind::Write, 0, &write),
            self.send(Kind::Read, 0, &path),
            self.send(Kind::Read, 0, b"data/missing\0"),
        ];
        let [written, read, missing] = sent;
        self.reply("a write", written, Kind::Write, b"OK\0");
        self.reply("a read", read, Kind::Read, value.as_bytes());
        self.reply("a missing node", missing, Kind::Error, b"ENOENT\0");
        self.event_of(name);
    }

    /// What is written in a transaction is read in it, not outside, and told when it ends.
    fn transaction(&mut self, name: &str, value: &str) {
        let sent = self.send(Kind::TransactionStart, 0, b"\0");
        let Some(number) = self.any_reply("a transaction's start", sent) else {
            return;
        };
        let number = number.split(|byte| *byte == 0).next().unwrap_or_default();
        let id = core::str::from_utf8(number)
            .ok()
            .and_then(|id| id.parse().ok());
        let Some(id) = id else {
            return self.complain("a transaction's number", number);
        };
        let path = with_nul(name);
        let inside = [path.as_slice(), value.as_bytes(), b"+"].concat();
        let [write, read, outside] = [
            self.send(Kind::Write, id, &inside),
            self.send(Kind::Read, id, &path),
            self.send(Kind::Read, 0, &path),
        ];
        self.reply("a write inside", write, Kind::Write, b"OK\0");
        let new = format!("{value}+");
        self.reply("a read inside", read, Kind::Read, new.as_bytes());
        self.reply("a read outside", outside, Kind::Read, value.as_bytes());
        let end = self.send(Kind::TransactionEnd, id, b"T\0");
        // One that was given up changes nothing, and nobody hears of it.
        if self.reply("a transaction's end", end, Kind::TransactionEnd, b"OK\0") {
            let read = self.send(Kind::Read, 0, &path);
            self.reply("a read after it", read, Kind::Read, new.as_bytes());
            self.event_of(name);
        }
    }

    fn send(&mut self, kind: Kind, tx_id: u32, payload: &[u8]) -> Option<ReqId> {
        let deadline = self.guest.after_ms(LIMIT_MS);
        self.guest.send(kind, tx_id, payload, deadline).ok()
    }

    fn reply(&mut self, what: &str, sent: Option<ReqId>, kind: Kind, wanted: &[u8]) -> bool {
        let deadline = self.guest.after_ms(LIMIT_MS);
        let wrong = self.wrong;
        match self.guest.receive(deadline) {
            Ok((header, payload))
                if Some(header.req_id) == sent
                    && header.kind == kind.number()
                    && payload == wanted => {}
            Ok((header, payload)) => {
                debug!(
                    "reply of type {} to {:?}, sent {sent:?}",
                    header.kind, header.req_id
                );
                self.complain(what, &payload);
            }
            Err(_) => self.complain(what, b"(nothing)"),
        }
        self.wrong == wrong
    }

    fn any_reply(&mut self, what: &str, sent: Option<ReqId>) -> Option<Vec<u8>> {
        let deadline = self.guest.after_ms(LIMIT_MS);
        match self.guest.receive(deadline) {
            Ok((header, payload)) if Some(header.req_id) == sent => Some(payload),
            Ok((_, payload)) => {
                self.complain(what, &payload);
                None
            }
            Err(_) => {
                self.complain(what, b"(nothing)");
                None
            }
        }
    }

    fn event_of(&mut self, name: &str) {
        let event = self.event();
        let wanted = [with_nul(name).as_slice(), b"t\0"].concat();
        self.expect("an event", event.as_deref(), &wanted);
    }

    fn event(&mut self) -> Option<Vec<u8>> {
        let deadline = self.guest.after_ms(LIMIT_MS);
        self.guest.next_event(deadline)
    }

    fn expect(&mut self, what: &str, got: Option<&[u8]>, wanted: &[u8]) {
        if got != Some(wanted) {
            self.complain(what, got.unwrap_or(b"(nothing)"));
        }
    }

    fn complain(&mut self, what: &str, got: &[u8]) {
        self.wrong = self.wrong.saturating_add(1);
        if self.wrong <= TOLD_MAX {
            let got = String::from_utf8_lossy(got);
            debug!("WRONG in round {}: {what}: {got:?}", self.round);
        }
    }
}

fn with_nul(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}
