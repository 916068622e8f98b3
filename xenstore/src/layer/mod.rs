//! Layers: when, and who hears of it? They stand between the clients and the store, the outermost first.
//!
//! A loop asks them, one after the other, before a request runs; those that let it pass hear in the opposite order what came of it. No layer
//! holds the request, so none can change it, run it twice, or undo what it did. A request that must wait stays what it is, unread input of
//! its own connection, and is taken up again where it was left.

mod delay;
mod error;
mod rate;
mod scope;
mod stats;
mod trace;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::extension::{Item, LIST_MAX, Sort, items};
pub use crate::extension::{View, WordError};
use crate::ids::{ConnId, DomId};
use crate::time::Instant;
use crate::wire::{Errno, Header, Kind, strings};

/// Admits requests, or not yet, or not at all.
pub trait Layer {
    /// What it is called in lists.
    fn name(&self) -> &'static str;

    /// Judges a request before it runs. `store` are the committed nodes.
    fn admit(&mut self, call: &Call<'_>, store: &dyn View) -> Gate;

    /// Hears what came of a request that it let pass.
    fn complete(&mut self, _call: &Call<'_>, _done: &Done) {}

    /// A domain is no more.
    fn domain_ended(&mut self, _domid: DomId) {}

    /// What it has to say when it is listed: lines, each with its end.
    fn report(&self) -> String {
        String::new()
    }
}

/// What a layer makes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It may go on to the next layer, and behind the last one it runs.
    Pass,
    /// It does not run; the client gets this payload as its reply.
    Answer(Vec<u8>),
    /// It does not run; the client gets this error. If it is one with which a transaction ends, the transaction that it should have ended
    /// is aborted.
    Refuse(Errno),
    /// It waits until then, and this layer is asked again. Nothing else of its connection runs meanwhile; others are not concerned.
    Later(Instant),
}

/// A request, before it runs or after.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    pub(crate) conn: ConnId,
    pub(crate) domid: DomId,
    pub(crate) is_privileged: bool,
    pub(crate) header: Header,
    pub(crate) payload: &'a [u8],
    pub(crate) now: Instant,
    /// The layer that is asked had said [`Gate::Later`] to it.
    pub(crate) is_resumed: bool,
}

impl<'a> Call<'a> {
    /// On which connection it came.
    #[must_use]
    pub fn conn(&self) -> ConnId {
        self.conn
    }

    /// Whose it is.
    #[must_use]
    pub fn domid(&self) -> DomId {
        self.domid
    }

    /// Whether it is the privileged domain's.
    #[must_use]
    pub fn is_privileged(&self) -> bool {
        self.is_privileged
    }

    /// Its type, if it has one that is known.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        Kind::from_number(self.header.kind)
    }

    /// Its payload; empty when what was answered late is complete: an INTRODUCE or a live update.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The path that it names, as the client wrote it; nothing for types without one.
    #[must_use]
    pub fn path(&self) -> &'a [u8] {
        match self.kind() {
            Some(
                Kind::Directory
                | Kind::Read
                | Kind::GetPerms
                | Kind::Watch
                | Kind::Unwatch
                | Kind::Write
                | Kind::Mkdir
                | Kind::Rm
                | Kind::SetPerms
                | Kind::DirectoryPart,
            ) => strings(self.payload).next().unwrap_or_default(),
            _ => &[],
        }
    }

    /// The transaction that it names, 0 for none.
    #[must_use]
    pub fn transaction(&self) -> u32 {
        self.header.tx_id
    }

    /// When.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Whether the layer that is asked had let it wait, and the time is there.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.is_resumed
    }
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The error with which it was answered, if it was one.
    pub error: Option<Errno>,
    /// What it has cost, in the units of [`crate::Server::run`].
    pub cost: u32,
}

/// A list of layers that can be had: what `layer=` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice(String);

impl Choice {
    /// Reads a list such as `trace,rate:200/s`. Items that name no layer, or not well, are left out: each is told of, and so are those that
    /// are too many.
    #[must_use]
    pub fn parse(list: &[u8]) -> (Self, Vec<WordError>) {
        let (layers, errors) = Layers::parse(list);
        (Self(layers.words()), errors)
    }

    pub(crate) fn of(layers: &Layers) -> Self {
        Self(layers.words())
    }

    /// The list.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// All of them.
pub(crate) const SORTS: &[Sort<dyn Layer>] = &[
    Sort {
        name: "delay",
        parameters: "TIME | [KIND=TIME,...][,who=WHO]",
        help: "requests of a kind wait so long before they run",
        make: delay::Delay::make,
    },
    Sort {
        name: "error",
        parameters: "ERROR@N%[,kind=KIND][,who=WHO][,seed=N][,while=PATH]",
        help: "so many of a hundred requests fail; with while= only as long as that node is there and not 0",
        make: error::Error::make,
    },
    Sort {
        name: "rate",
        parameters: "N/s[,burst=N][,who=WHO]",
        help: "each domain gets so many requests a second, and a burst (default 20) at once; what is more waits",
        make: rate::Rate::make,
    },
    Sort {
        name: "stats",
        parameters: "",
        help: "counts requests, failures and cost by type, for `layer list`",
        make: stats::Stats::make,
    },
    Sort {
        name: "trace",
        parameters: "",
        help: "a line in the log for each request: trace: time domain type path result cost",
        make: trace::Trace::make,
    },
];

/// The layers, the outermost first.
#[derive(Default)]
pub(crate) struct Layers {
    list: Vec<Installed>,
}

struct Installed {
    layer: Box<dyn Layer>,
    /// As it was named.
    word: String,
}

impl Layers {
    /// Makes the layers of a list, as far as it can be understood.
    pub(crate) fn parse(list: &[u8]) -> (Self, Vec<WordError>) {
        let mut layers = Self::default();
        let mut errors = Vec::new();
        let Ok(text) = str::from_utf8(list) else {
            return (layers, Vec::from([WordError::new(list, "it is no text")]));
        };
        for item in items(text).iter().filter(|item| !item.word.is_empty()) {
            if errors.len() >= LIST_MAX {
                break;
            }
            if let Err(error) = layers.add(item) {
                errors.push(error);
            }
        }
        (layers, errors)
    }

    /// Makes one more, as the innermost.
    pub(crate) fn add(&mut self, item: &Item<'_>) -> Result<(), WordError> {
        let error = |why| WordError::new(item.word.as_bytes(), why);
        let sort = SORTS.iter().find(|sort| sort.name == item.name);
        let sort = sort.ok_or(error("there is no layer of this name"))?;
        let layer = (sort.make)(item).map_err(error)?;
        if self.list.len() >= LIST_MAX {
            return Err(error("there are too many"));
        }
        self.install(layer, item.word);
        Ok(())
    }

    pub(crate) fn install(&mut self, layer: Box<dyn Layer>, word: &str) {
        let word = word.to_string();
        self.list.push(Installed { layer, word });
    }

    /// Takes the one at a place away; whether there was one.
    pub(crate) fn remove(&mut self, place: usize) -> bool {
        let is_there = place < self.list.len();
        if is_there {
            self.list.remove(place);
        }
        is_there
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// As a list.
    pub(crate) fn words(&self) -> String {
        let words: Vec<&str> = self.list.iter().map(|entry| entry.word.as_str()).collect();
        words.join(",")
    }

    /// Each with its number, as it was named, and what it has to say.
    pub(crate) fn report(&self) -> String {
        let lines = self.list.iter().enumerate();
        let line = |(place, entry): (usize, &Installed)| {
            format!("{place} {}\n{}", entry.word, entry.layer.report())
        };
        lines.map(line).collect()
    }

    /// Asks those from `gates.passed` on; `None` if the request may run.
    pub(crate) fn admit(
        &mut self,
        call: &Call<'_>,
        gates: &mut Gates,
        store: &dyn View,
    ) -> Option<Gate> {
        if gates.is_admitted {
            return None;
        }
        let from = gates.passed;
        for entry in self.list.iter_mut().skip(from) {
            let call = Call {
                is_resumed: core::mem::take(&mut gates.is_resumed),
                ..*call
            };
            match entry.layer.admit(&call, store) {
                Gate::Pass => gates.passed = gates.passed.saturating_add(1),
                gate => return Some(gate),
            }
        }
        gates.is_admitted = true;
        None
    }

    /// Lets those hear what came of a request that let it pass, the innermost first.
    pub(crate) fn complete(&mut self, call: &Call<'_>, passed: usize, done: &Done) {
        for entry in self.list.iter_mut().take(passed).rev() {
            entry.layer.complete(call, done);
        }
    }

    pub(crate) fn domain_ended(&mut self, domid: DomId) {
        for entry in &mut self.list {
            entry.layer.domain_ended(domid);
        }
    }
}

/// How far the present request of a connection has come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gates {
    /// The outermost layers that let it pass, and shall hear what comes of it.
    pub(crate) passed: usize,
    /// No layer is to be asked any more: it runs, or waits for the host.
    pub(crate) is_admitted: bool,
    /// The next one had let it wait.
    pub(crate) is_resumed: bool,
}
