//! What happened to each domain, by kind: for the administrator who asks why.
//!
//! A domain shares its counters with its connections, so that to count is one addition on what is at hand. They outlive connections; when
//! the domain ends they are added to those of all that ended.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt::Display;

use crate::ids::DomId;
use crate::policy::Access;
use crate::refusal::{REASONS, Reason};
use crate::spell::{Spell, Untold};
use crate::time::Instant;
use crate::wire::{Errno, Kind};

/// A kind of what is counted besides requests, errors and refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each has its description in the table")]
pub enum Counter {
    EventsQueued,
    EventsCoalesced,
    EventsExpired,
    EventsLost,
    ConflictsSuffered,
    ConflictsCaused,
    HeldMs,
    Resets,
    Stops,
    ProtocolFaults,
    RingFaults,
    LazySpells,
    LazyLooks,
    LazyLetGo,
    Reintroductions,
    MapFailures,
    BindFailures,
    UnmapFailures,
    Crashes,
}

const COUNT: usize = 19;
/// One more than there are types: the last place is for all others.
const REQUESTS: usize = Kind::ALL.len() + 1;
const ERRORS: usize = Errno::ALL.len();
const SPELLS: usize = REASONS + COUNT;

/// Bytes that the counters of a domain have in a state stream, at most: as many for each as their names are long on the average.
pub(crate) const STREAM_MOST: u64 =
    (REQUESTS + ERRORS + REASONS + COUNT) as u64 * 48 + REASONS as u64 * 56;

struct Row {
    counter: Counter,
    name: &'static str,
    /// A domain with this has a node below `/tool/xenstored/counters`.
    is_noteworthy: bool,
    help: &'static str,
}

const fn row(counter: Counter, name: &'static str, is_noteworthy: bool, help: &'static str) -> Row {
    Row {
        counter,
        name,
        is_noteworthy,
        help,
    }
}

/// In the order of the variants.
const TABLE: [Row; COUNT] = [
    row(
        Counter::EventsQueued,
        "events-queued",
        false,
        "events queued for it",
    ),
    row(
        Counter::EventsCoalesced,
        "events-coalesced",
        false,
        "events not queued, because an equal one was waiting",
    ),
    row(
        Counter::EventsExpired,
        "events-expired",
        true,
        "events dropped, because they were left unread too long",
    ),
    row(
        Counter::EventsLost,
        "events-lost",
        true,
        "events without room; each watch concerned is told once more later",
    ),
    row(
        Counter::ConflictsSuffered,
        "conflicts-suffered",
        true,
        "transactions of it that ended with EAGAIN",
    ),
    row(
        Counter::ConflictsCaused,
        "conflicts-caused",
        true,
        "transactions of others that it made end with EAGAIN",
    ),
    row(
        Counter::HeldMs,
        "held-ms",
        true,
        "milliseconds for which its requests were held for lack of credit",
    ),
    row(
        Counter::Resets,
        "resets",
        false,
        "connections that it began anew",
    ),
    row(
        Counter::Stops,
        "stops",
        true,
        "connections stopped after a fault",
    ),
    row(
        Counter::ProtocolFaults,
        "protocol-faults",
        true,
        "requests that were too long",
    ),
    row(
        Counter::RingFaults,
        "ring-faults",
        true,
        "impossible ring indices",
    ),
    row(
        Counter::LazySpells,
        "lazy-spells",
        true,
        "times when its ring had work of which it had sent no event",
    ),
    row(
        Counter::LazyLooks,
        "lazy-looks",
        false,
        "looks at its ring that it was given for that",
    ),
    row(
        Counter::LazyLetGo,
        "lazy-let-go",
        false,
        "times when those were used up; from then on only the scan of all rings finds what it sends no event for",
    ),
    row(
        Counter::Reintroductions,
        "reintroductions",
        false,
        "connections that the toolstack made in place of another",
    ),
    row(
        Counter::MapFailures,
        "map-failures",
        true,
        "introductions that failed because Xen would not map its ring: the grant is not there, or was taken back",
    ),
    row(
        Counter::BindFailures,
        "bind-failures",
        true,
        "introductions that failed because its event channel could not be bound",
    ),
    row(
        Counter::UnmapFailures,
        "unmap-failures",
        true,
        "rings that Xen would not take back when they were not needed any more",
    ),
    row(
        Counter::Crashes,
        "crashes",
        true,
        "crashes of the store while it worked for this domain; its connection was stopped",
    ),
];

impl Counter {
    /// Each of them.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.counter)
    }

    /// The name under which it is shown.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// What it counts.
    #[must_use]
    pub fn help(self) -> &'static str {
        self.row().help
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "the table has a row for each variant, as a test shows"
    )]
    const fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }
}

/// The counters of one domain.
#[derive(Debug)]
pub(crate) struct Counters {
    domid: DomId,
    requests: [Cell<u64>; REQUESTS],
    errors: [Cell<u64>; ERRORS],
    refusals: [Cell<u64>; REASONS],
    others: [Cell<u64>; COUNT],
    /// Refusals and other troubles, for the log; there from the first one on.
    spells: RefCell<Option<Box<[Spell; SPELLS]>>>,
    notes: Notes,
}

/// Whether something noteworthy was counted since the last look.
#[derive(Debug, Default)]
struct Notes {
    own: Cell<bool>,
    /// The same of any domain.
    of_any: Rc<Cell<bool>>,
}

impl Counters {
    /// For one domain; `of_any` is set when something noteworthy is counted.
    pub(crate) fn new(domid: DomId, of_any: &Rc<Cell<bool>>) -> Self {
        let zeros = || Cell::new(0);
        Self {
            domid,
            requests: core::array::from_fn(|_| zeros()),
            errors: core::array::from_fn(|_| zeros()),
            refusals: core::array::from_fn(|_| zeros()),
            others: core::array::from_fn(|_| zeros()),
            spells: RefCell::new(None),
            notes: Notes {
                own: Cell::new(false),
                of_any: Rc::clone(of_any),
            },
        }
    }

    /// Counts a request by the number of its type.
    pub(crate) fn count_request(&self, kind: u32) {
        let place = usize::try_from(kind).unwrap_or(usize::MAX);
        let other = REQUESTS.saturating_sub(1);
        add(&self.requests, place.min(other), 1);
    }

    pub(crate) fn count_error(&self, errno: Errno) {
        add(&self.errors, errno as usize, 1);
    }

    pub(crate) fn count(&self, counter: Counter) {
        self.count_more(counter, 1);
    }

    pub(crate) fn count_more(&self, counter: Counter, more: u64) {
        add(&self.others, counter as usize, more);
        if counter.row().is_noteworthy && more > 0 {
            self.note();
        }
    }

    /// Counts what the domain did not get.
    pub(crate) fn count_refusal(&self, reason: Reason) {
        add(&self.refusals, reason.place(), 1);
        self.note();
    }

    /// Counts what the domain did not get, and logs it once a spell.
    #[cold]
    pub(crate) fn refuse(&self, reason: Reason, limit: u32, now: Instant) {
        self.count_refusal(reason);
        if let Some(line) = self.line(reason, limit, now) {
            log::warn!("{line}");
        }
    }

    /// Counts what a policy did not let the domain do, and logs it once a spell.
    #[cold]
    pub(crate) fn refuse_by_policy(&self, policy: &str, access: &Access<'_>) {
        self.count_refusal(Reason::Policy);
        if let Some(untold) = self.spell(Reason::Policy.place(), access.now()) {
            let (domid, name, path) = (self.domid, access.operation().name(), access.path());
            log::warn!("domain {domid}: refused by policy {policy}: {name} {path}{untold}");
        }
    }

    /// Counts things of a kind that happened for a limit, and logs that once a spell.
    #[cold]
    pub(crate) fn suffer(&self, counter: Counter, more: u64, limit: impl Display, now: Instant) {
        self.count_more(counter, more);
        let place = REASONS.saturating_add(counter as usize);
        if more > 0
            && let Some(untold) = self.spell(place, now)
        {
            let (domid, what) = (self.domid, counter.help());
            log::warn!("domain {domid}: {what} ({limit}){untold}");
        }
    }

    /// Counts for the log.
    fn spell(&self, place: usize, now: Instant) -> Option<Untold> {
        let mut spells = self.spells.try_borrow_mut().ok()?;
        spells
            .get_or_insert_with(fresh_spells)
            .get_mut(place)?
            .count(now)
    }

    /// The line about a refusal, if it is time for one.
    fn line(&self, reason: Reason, limit: u32, now: Instant) -> Option<String> {
        let untold = self.spell(reason.place(), now)?;
        let (domid, what) = (self.domid, reason.consequence());
        Some(format!(
            "domain {domid}: {what}, {reason} ({limit}){untold}"
        ))
    }

    /// Whether something noteworthy was counted since this was asked last.
    pub(crate) fn take_note(&self) -> bool {
        self.notes.own.take()
    }

    /// Adds those of another domain.
    pub(crate) fn add(&self, other: &Self) {
        for (sum, more) in self.cells().zip(other.cells()) {
            sum.set(sum.get().wrapping_add(more.get()));
        }
    }

    /// Those that are not 0, by name.
    pub(crate) fn values(&self) -> impl Iterator<Item = (String, u64)> {
        let values = self.cells().map(Cell::get);
        names().zip(values).filter(|(_, value)| *value > 0)
    }

    /// Sets the counter at a place to what another instance of the server had counted.
    pub(crate) fn restore(&self, place: usize, value: u64) {
        if let Some(cell) = self.cells().nth(place) {
            cell.set(value);
        }
    }

    /// What is known of refusals, for the log.
    pub(crate) fn spells(&self) -> Vec<(Reason, Spell)> {
        let Ok(spells) = self.spells.try_borrow() else {
            return Vec::new();
        };
        let spells = spells.iter().flat_map(|spells| spells.iter().cloned());
        Reason::all().zip(spells).collect()
    }

    /// Sets what was known of refusals.
    pub(crate) fn restore_spell(&self, reason: Reason, spell: Spell) {
        let mut spells = self.spells.borrow_mut();
        if let Some(place) = spells
            .get_or_insert_with(fresh_spells)
            .get_mut(reason.place())
        {
            *place = spell;
        }
    }

    /// Whether something noteworthy was counted that nobody looked at.
    pub(crate) fn is_noted(&self) -> bool {
        self.notes.own.get()
    }

    /// Sets whether there was such a thing.
    pub(crate) fn restore_note(&self, is_noted: bool) {
        self.notes.own.set(is_noted);
    }

    /// One line `name: value` for each that is not 0.
    pub(crate) fn text(&self) -> String {
        self.values()
            .map(|(name, value)| format!("{name}: {value}\n"))
            .collect()
    }

    fn cells(&self) -> impl Iterator<Item = &Cell<u64>> {
        let rest = self.refusals.iter().chain(&self.others);
        self.requests.iter().chain(&self.errors).chain(rest)
    }

    fn note(&self) {
        self.notes.own.set(true);
        self.notes.of_any.set(true);
    }
}

fn fresh_spells() -> Box<[Spell; SPELLS]> {
    Box::new(core::array::from_fn(|_| Spell::default()))
}

fn add(cells: &[Cell<u64>], place: usize, more: u64) {
    if let Some(cell) = cells.get(place) {
        cell.set(cell.get().wrapping_add(more));
    }
}

/// The place of each counter, by its name.
pub(crate) fn places() -> BTreeMap<String, usize> {
    names().zip(0..).collect()
}

/// The names of all counters, in the order of [`Counters::cells`].
fn names() -> impl Iterator<Item = String> {
    let requests = Kind::ALL.iter().map(|kind| kind.name()).chain(["other"]);
    let requests = requests.map(|kind| format!("requests-{kind}"));
    let errors = Errno::ALL.iter().map(|errno| format!("errors-{errno}"));
    let refusals =
        Reason::all().map(|reason| format!("{}-{}", reason.consequence(), reason.name()));
    let others = Counter::all().map(|counter| String::from(counter.name()));
    requests.chain(errors).chain(refusals).chain(others)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Quota;
    use crate::wire::PAYLOAD_MAX;

    #[test]
    fn no_domain_has_more_in_a_stream_than_is_said() {
        let record = |body: usize| 8 + body.next_multiple_of(8);
        // Domid, length, name, value.
        let counters: usize = names().map(|name| record(3 + 4 + name.len() + 8)).sum();
        // Domid, length, name, moment, number.
        let reasons: usize = Reason::all()
            .map(|reason| record(2 + 4 + reason.name().len() + 9 + 4))
            .sum();
        let all = u64::try_from(counters + reasons).unwrap();
        assert!(
            all <= STREAM_MOST,
            "{counters} and {reasons}, {STREAM_MOST}"
        );
    }

    fn fresh() -> (Counters, Rc<Cell<bool>>) {
        let of_any = Rc::default();
        (Counters::new(DomId::new(5), &of_any), of_any)
    }

    #[test]
    fn the_table_has_a_row_for_each_counter() {
        for (place, row) in TABLE.iter().enumerate() {
            assert_eq!(row.counter as usize, place);
        }
        for (place, errno) in Errno::ALL.iter().enumerate() {
            assert_eq!(*errno as usize, place);
        }
        for (place, kind) in Kind::ALL.iter().enumerate() {
            assert_eq!(usize::try_from(kind.number()), Ok(place));
        }
    }

    #[test]
    fn each_counter_has_a_name_of_its_own_and_all_fit_into_a_reply() {
        let (counters, _) = fresh();
        assert_eq!(names().count(), counters.cells().count());
        let mut given: Vec<String> = names().collect();
        given.sort();
        given.dedup();
        assert_eq!(given.len(), names().count());
        counters.cells().for_each(|cell| cell.set(u64::MAX));
        assert!(counters.text().len() < usize::try_from(PAYLOAD_MAX).unwrap());
    }

    #[test]
    fn what_is_counted_is_shown_and_the_rest_is_not() {
        let (counters, _) = fresh();
        assert_eq!(counters.text(), "");
        counters.count_request(Kind::Read.number());
        counters.count_request(Kind::Read.number());
        counters.count_request(u32::MAX);
        counters.count_error(Errno::EPERM);
        counters.refuse(Reason::Quota(Quota::Watches), 7, Instant(0));
        counters.count_more(Counter::HeldMs, 50);
        let text = "requests-READ: 2\nrequests-other: 1\nerrors-EPERM: 1\nrefused-watches: 1\nheld-ms: 50\n";
        assert_eq!(counters.text(), text);
        let (sum, _) = fresh();
        sum.add(&counters);
        sum.add(&counters);
        let doubled = "requests-READ: 4\nrequests-other: 2\nerrors-EPERM: 2\nrefused-watches: 2\nheld-ms: 100\n";
        assert_eq!(sum.text(), doubled);
    }

    #[test]
    fn refusals_are_told_once_a_spell_by_reason() {
        let (counters, _) = fresh();
        let line = |reason, limit, seconds: u64| {
            counters.line(reason, limit, Instant(seconds * 1_000_000_000))
        };
        let nodes = Reason::Quota(Quota::Nodes);
        let told = |text: &str| Some(text.to_owned());
        let refused = "domain 5: refused, quota nodes (1000)";
        assert_eq!(line(nodes, 1000, 1), told(refused));
        assert_eq!(line(nodes, 1000, 2), None);
        assert_eq!(line(nodes, 1000, 60), None);
        let held = "domain 5: held, quota outstanding (20)";
        let outstanding = Reason::Quota(Quota::Outstanding);
        assert_eq!(line(outstanding, 20, 60), told(held));
        let again = "domain 5: refused, quota nodes (1001) (2 more before)";
        assert_eq!(line(nodes, 1001, 61), told(again));
    }

    #[test]
    fn only_what_is_noteworthy_is_noted() {
        let (counters, of_any) = fresh();
        counters.count(Counter::EventsQueued);
        counters.count_more(Counter::EventsExpired, 0);
        counters.count_request(2);
        counters.count_error(Errno::ENOENT);
        assert!(!of_any.get() && !counters.take_note());
        counters.count(Counter::RingFaults);
        assert!(of_any.get() && counters.take_note() && !counters.take_note());
        counters.count_refusal(Reason::StoreMemory);
        assert!(counters.take_note());
    }
}
