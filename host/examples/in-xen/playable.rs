//! Which cases can be played through a kernel, and why others cannot.
//!
//! Linux's xenbus device is no mere pipe: it passes on whole requests only, and answers some of them itself. A case may be played if
//! what the kernel says is what the text wants, and if the store is asked anything at all.

use std::collections::{BTreeMap, BTreeSet};

use crate::cases::transcript::message::kind;
use crate::cases::transcript::syntax::{Action, Case, Directive, Expected, Need, Transaction};

/// The kernel's buffer holds one page, header and all.
const PAYLOAD_MAX: usize = 4096 - 16;
/// The port that every text gives to a domain's connection.
const PORT: &[u8] = b"7";

const MANY_DOMAINS: &str = "it needs more guests than there are";
const LIVES: &str = "a guest comes and goes by xl alone, and not at once";
const NOT_WHOLE: &str = "the kernel passes on whole requests only";
const LONG: &str = "the kernel takes payloads of at most 4080 bytes";
const OTHER_PORT: &str = "a guest has one port for its store";
const WATCH_WORDS: &str = "the kernel passes on no more of a watch than path and token";
const TOKENS: &str = "the kernel makes each watch one with a token of its own";
const RESET: &str = "RESET_WATCHES would take the kernel's own watches away";
const ONE_AT_A_TIME: &str = "the kernel has room for one request of a client at a time";
const NO_TRANSACTION: &str = "the kernel keeps back the answer to an end of no transaction";
const ANSWERS: &str = "the kernel gives an answer of its own";
const ALL_ANSWERS: &str = "the kernel answers every request itself";

/// What there is to play on.
#[derive(Clone, Copy)]
pub(crate) struct Stage {
    /// Domain 0 is a client through its kernel, not over a socket.
    pub(crate) is_dom0_behind_kernel: bool,
    pub(crate) guests: usize,
}

impl Stage {
    /// # Errors
    /// Why a case cannot be played here.
    pub(crate) fn admit(self, case: &Case) -> Result<(), &'static str> {
        let met = [Need::Domains];
        if let Some(unmet) = case.needs.iter().find(|need| !met.contains(need)) {
            return Err(unmet.describe());
        }
        for step in &case.steps {
            self.admit_step(&step.action)?;
        }
        if domains(case).len() > self.guests {
            return Err(MANY_DOMAINS);
        }
        self.admit_order(case)?;
        self.admit_requests(case)
    }

    fn admit_step(self, action: &Action) -> Result<(), &'static str> {
        match action {
            Action::Host(Directive::Exists(_)) => Ok(()),
            Action::Host(_) => Err(LIVES),
            Action::Header { from, .. }
            | Action::Bytes { from, .. }
            | Action::Chunks { from, .. }
            | Action::Stopped { to: from }
                if self.is_behind_kernel(*from) =>
            {
                Err(NOT_WHOLE)
            }
            _ => Ok(()),
        }
    }

    /// Linux sends a request after `write` has returned, out of a buffer that the next `write` fills.
    fn admit_order(self, case: &Case) -> Result<(), &'static str> {
        let mut waiting = BTreeSet::new();
        for step in &case.steps {
            match &step.action {
                Action::Request { from, .. }
                    if self.is_behind_kernel(*from) && !waiting.insert(*from) =>
                {
                    return Err(ONE_AT_A_TIME);
                }
                Action::Reply { to, .. } => drop(waiting.remove(to)),
                _ => {}
            }
        }
        Ok(())
    }

    fn admit_requests(self, case: &Case) -> Result<(), &'static str> {
        let mut reaches_store = false;
        let mut watched = Vec::new();
        for (request, reply) in exchanges(case) {
            let is_wanted = |error| matches!(reply, Some(Expected::Error(name)) if name == error);
            let is_refused = matches!(reply, Some(Expected::Error(_)));
            if !is_refused && request.introduces_elsewhere() {
                return Err(OTHER_PORT);
            }
            if !self.is_behind_kernel(request.from) {
                reaches_store = true;
                continue;
            }
            match request.way()? {
                Way::ToStore if Some(request.kind) == kind("WATCH") && is_wanted("EEXIST") => {
                    return Err(TOKENS);
                }
                Way::ToStore => {
                    reaches_store = true;
                    watched.push((request.from, request.payload));
                }
                // A number may be that of a transaction that is open.
                Way::Unknown if !is_refused => reaches_store = true,
                Way::Unknown if is_wanted("ENOENT") => {}
                Way::Refused if is_wanted("EINVAL") => {}
                Way::Granted
                    if !is_refused && watched.contains(&(request.from, request.payload)) => {}
                _ => return Err(ANSWERS),
            }
        }
        if reaches_store {
            Ok(())
        } else {
            Err(ALL_ANSWERS)
        }
    }

    /// Whether a kernel is between a domain's client and the store.
    pub(crate) fn is_behind_kernel(self, domid: u16) -> bool {
        domid != 0 || self.is_dom0_behind_kernel
    }
}

/// The domains besides the toolstack's that play a part, in the order of their appearance.
pub(crate) fn domains(case: &Case) -> Vec<u16> {
    let mut found = Vec::new();
    for step in &case.steps {
        let domid = match &step.action {
            Action::SetUp { domid } | Action::Introduced { domid } => *domid,
            Action::Host(Directive::Exists(domid)) => *domid,
            Action::Request { from, .. } => *from,
            _ => continue,
        };
        if domid != 0 && !found.contains(&domid) {
            found.push(domid);
        }
    }
    found
}

struct Request<'a> {
    from: u16,
    kind: u32,
    transaction: &'a Transaction,
    payload: &'a [u8],
}

/// What becomes of a request in the kernel.
enum Way {
    ToStore,
    /// EINVAL at once.
    Refused,
    /// OK at once, and to the store if a watch of just these words was made before.
    Granted,
    /// ENOENT at once, if the transaction is not open.
    Unknown,
}

impl Request<'_> {
    fn is(&self, name: &str) -> bool {
        Some(self.kind) == kind(name)
    }

    fn way(&self) -> Result<Way, &'static str> {
        let strings = self.payload.iter().filter(|byte| **byte == 0).count();
        if self.payload.len() > PAYLOAD_MAX {
            return Err(LONG);
        }
        if self.is("WATCH") || self.is("UNWATCH") {
            let is_pair = strings == 2 && self.payload.last() == Some(&0);
            return match (strings, self.is("WATCH")) {
                (0 | 1, _) => Ok(Way::Refused),
                (_, false) => Ok(Way::Granted),
                (_, true) if is_pair => Ok(Way::ToStore),
                (_, true) => Err(WATCH_WORDS),
            };
        }
        let is_end = self.is("TRANSACTION_END");
        let is_number = matches!(self.transaction, Transaction::Number(_));
        if is_number && !self.is("TRANSACTION_START") {
            return Ok(Way::Unknown);
        }
        if self.is("RESET_WATCHES") {
            return Err(RESET);
        }
        if is_end && !matches!(self.payload, b"T\0" | b"F\0") {
            return Ok(Way::Refused);
        }
        if is_end && matches!(self.transaction, Transaction::None) {
            return Err(NO_TRANSACTION);
        }
        Ok(Way::ToStore)
    }

    fn introduces_elsewhere(&self) -> bool {
        self.is("INTRODUCE") && self.payload.split(|byte| *byte == 0).nth(2) != Some(PORT)
    }
}

/// Each request with the reply that the text wants, if it wants one.
fn exchanges(case: &Case) -> Vec<(Request<'_>, Option<&Expected>)> {
    let mut replies: BTreeMap<u16, Vec<&Expected>> = BTreeMap::new();
    let mut requests = Vec::new();
    for step in case.steps.iter().rev() {
        match &step.action {
            Action::Reply { to, expected } => replies.entry(*to).or_default().push(expected),
            Action::Request {
                from,
                transaction,
                kind,
                payload,
            } => requests.push(Request {
                from: *from,
                kind: *kind,
                transaction,
                payload,
            }),
            _ => {}
        }
    }
    let requests = requests.into_iter().rev();
    requests
        .map(|request| {
            let reply = replies.get_mut(&request.from).and_then(Vec::pop);
            (request, reply)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::transcript::syntax::parse;

    const THROUGH_KERNEL: Stage = Stage {
        is_dom0_behind_kernel: true,
        guests: 2,
    };

    fn verdict(stage: Stage, text: &str) -> Result<(), &'static str> {
        let cases = parse(&format!("case a\n{text}")).unwrap();
        stage.admit(cases.first().unwrap())
    }

    #[test]
    fn what_the_kernel_does_itself_is_left_out() {
        let cases = [
            ("d0 > READ /t => ENOENT", Ok(())),
            ("d0 > READ '{x*4081}' => ENOENT", Err(LONG)),
            ("d0 > WATCH /t token 1 => OK", Err(WATCH_WORDS)),
            ("d0 > WATCH /t token => EEXIST", Err(TOKENS)),
            ("d0 > WATCH /t => EINVAL", Err(ALL_ANSWERS)),
            ("d0 > WATCH /t => EINVAL\nd0 > READ /t => ENOENT", Ok(())),
            ("d0 > UNWATCH /t token => ENOENT", Err(ANSWERS)),
            ("d0 > RESET_WATCHES => OK", Err(RESET)),
            ("d0 > [#7] RESET_WATCHES => ENOENT", Err(ALL_ANSWERS)),
            ("d0 > [#7] 27 => ENOSYS", Err(ANSWERS)),
            ("d0 > [#7] READ /t => OK", Ok(())),
            ("d0 > TRANSACTION_END X => EINVAL", Err(ALL_ANSWERS)),
            ("d0 > TRANSACTION_END T => ENOENT", Err(NO_TRANSACTION)),
            ("d0 > WATCH a t => OK\nd0 > UNWATCH a t => OK", Ok(())),
            ("d0 > WATCH a t => OK\nd0 > UNWATCH b t => OK", Err(ANSWERS)),
            ("d0 sends pieces of 1", Err(NOT_WHOLE)),
            ("d0 bytes 'x'", Err(NOT_WHOLE)),
            ("d0 > READ /t\nd0 > READ /t", Err(ONE_AT_A_TIME)),
            ("domain 1 dies", Err(LIVES)),
            ("d0 > INTRODUCE 1 1 8 => OK", Err(OTHER_PORT)),
            ("d0 > INTRODUCE 1 1 8 => EINVAL", Ok(())),
        ];
        for (text, wanted) in cases {
            assert_eq!(verdict(THROUGH_KERNEL, text), wanted, "{text}");
        }
    }

    #[test]
    fn a_socket_passes_all_on() {
        let socket = Stage {
            is_dom0_behind_kernel: false,
            guests: 1,
        };
        assert_eq!(verdict(socket, "d0 > RESET_WATCHES => OK"), Ok(()));
        assert_eq!(verdict(socket, "d0 > UNWATCH /t token => ENOENT"), Ok(()));
        let two = "domain 1 is set up\ndomain 2 is set up";
        assert_eq!(verdict(socket, two), Err(MANY_DOMAINS));
        let guest = "domain 1 is set up\nd1 > RESET_WATCHES => OK";
        assert_eq!(verdict(socket, guest), Err(RESET));
    }
}
