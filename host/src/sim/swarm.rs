//! What a seed makes of a run: which faults there are and how often, who the guests are, and how much they may have.
//!
//! Each run has few kinds of faults, and those often: so that each of them is seen without the others in its way, too.

use model::{LAYERS, Limits, QUOTAS};
use xenstore::{Nesting, StorageKind};

use super::random::Random;

/// How a guest behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// One request at a time, read at once.
    Modest,
    /// Many requests at a time, as Linux has them.
    Pipelining,
    /// Sends no events.
    Lazy,
    /// Its requests are no such.
    Malformed,
    /// As many requests as fit, and seldom looks at what comes.
    Flooding,
    /// Writes anything into its page at any time.
    Hostile,
    /// Does at the same time as others of its kind what is much only if all do it.
    Colluding,
}

impl Manner {
    const ALL: [Self; 6] = [
        Self::Modest,
        Self::Pipelining,
        Self::Lazy,
        Self::Malformed,
        Self::Flooding,
        Self::Hostile,
    ];

    /// Whether it keeps to the protocol, so that it is owed its replies in time.
    pub(crate) fn is_honest(self) -> bool {
        matches!(self, Self::Modest | Self::Pipelining | Self::Lazy)
    }
}

/// Of a thousand hosts so many have thousands of domains.
const LARGE_HOSTS: u64 = 5;

/// The configuration of a run.
#[derive(Clone, Debug)]
pub(crate) struct Swarm {
    /// Domids of guests are 1 to this.
    pub(crate) domids: u16,
    pub(crate) limits: Limits,
    pub(crate) event_timeout_ms: u64,
    /// Manners by weight.
    pub(crate) manners: Vec<(u64, Manner)>,
    /// How often things happen, of a thousand steps.
    pub(crate) lives: u64,
    pub(crate) deaths: u64,
    pub(crate) faults: u64,
    pub(crate) waits: u64,
    pub(crate) transactions: u64,
    /// Requests of one guest in this many refer to few nodes, so that they meet.
    pub(crate) crowd: u64,
    /// Calls may fail.
    pub(crate) refusals: bool,
    /// The virtual interrupt may be lost.
    pub(crate) lost_deaths: bool,
    /// Memory may be short.
    pub(crate) memory: bool,
    /// The clock may go back.
    pub(crate) clock: bool,
    /// Who may begin transactions inside others.
    pub(crate) nesting: Nesting,
    pub(crate) storage: StorageKind,
    pub(crate) extensions: Extensions,
    /// How often another instance takes over, made of the state of the one before, of a thousand steps.
    pub(crate) renewals: u64,
    /// How often the administrator changes policies or layers, of a thousand of the toolstack's requests.
    pub(crate) reforms: u64,
    /// How often the store crashes within a request, of a thousand turns.
    pub(crate) crashes: u64,
    /// Domains that there are from the start on.
    pub(crate) made: u16,
    /// The toolstack makes more children than a list of them has room for.
    pub(crate) wide: bool,
    /// The toolstack lets guests have little memory.
    pub(crate) tight: bool,
}

impl Swarm {
    pub(crate) fn new(random: &mut Random) -> Self {
        let mut manners = Manner::ALL.map(|manner| (random.below(4), manner)).to_vec();
        let memory = random.chance(250);
        let clock = random.chance(200);
        // What came later is chosen apart, so that the rest of what a seed does stays as it is.
        let mut later = random.clone().fork();
        if later.chance(250) {
            manners.push((1 + later.below(12), Manner::Colluding));
        }
        let made = if later.chance(LARGE_HOSTS) {
            1000 + u16::try_from(later.below(2000)).unwrap_or_default()
        } else {
            0
        };
        let few = 2 + u16::try_from(random.below(9)).unwrap_or_default();
        let crashes = if later.chance(300) {
            later.below(60)
        } else {
            0
        };
        let nested = random.chance(400);
        let mut latest = later.clone().fork();
        let storage = StorageKind {
            is_flat: latest.chance(300),
            is_journaled: latest.chance(250),
        };
        let nesting = match nested {
            true if latest.chance(250) => Nesting::Granted,
            true => Nesting::Nested,
            false => Nesting::Flat,
        };
        let extensions = Extensions::new(random, &mut latest, memory);
        let crowd = random.below(1000);
        // Walls are where few domains meet at few nodes.
        let (few, crowd) = match extensions.policies.contains("chinese_wall") {
            true => (few.min(4), crowd.max(400)),
            false => (few, crowd),
        };
        Self {
            storage,
            nesting,
            reforms: if latest.chance(300) {
                latest.below(60)
            } else {
                0
            },
            crowd,
            crashes,
            made,
            wide: later.chance(100),
            tight: memory && later.chance(500),
            domids: few.max(made),
            limits: limits(random, memory),
            event_timeout_ms: if clock { 0 } else { 20_000 },
            manners,
            lives: 5 + random.below(30),
            deaths: random.below(12),
            faults: if random.chance(500) {
                random.below(40)
            } else {
                0
            },
            waits: random.below(60),
            transactions: random.below(700),
            refusals: random.chance(350),
            lost_deaths: random.chance(300),
            memory,
            clock,
            extensions,
            renewals: if random.chance(600) {
                random.below(20) / if made > 0 { 10 } else { 1 }
            } else {
                0
            },
        }
    }
}

/// Policies and layers of a run.
#[derive(Clone, Debug)]
pub(crate) struct Extensions {
    /// The list of policies to begin with.
    pub(crate) policies: String,
    pub(crate) layers: String,
    /// There are leases, at least at times.
    pub(crate) leases: bool,
    /// There may be walls. What a domain has chosen depends on how far its requests came that there was no memory for, which nobody can
    /// tell.
    pub(crate) walls: bool,
}

impl Extensions {
    fn new(random: &mut Random, latest: &mut Random, memory: bool) -> Self {
        let walls = !memory;
        let leases = latest.chance(350);
        let mut policies = vec!["legacy"];
        if random.chance(300) {
            policies.push("protocol");
        }
        if random.chance(300) && walls {
            policies.push(latest.word(&WALLS));
        }
        if leases && latest.chance(800) {
            policies.push("lease");
        }
        let mut layers = Vec::new();
        if random.chance(400) {
            let count = 1 + random.below(4);
            layers.extend((0..count).map(|_| random.word(&LAYERS)));
        }
        Self {
            policies: policies.join(","),
            layers: layers.join(","),
            leases,
            walls,
        }
    }

    /// A list of policies for the time to come, which may be none.
    pub(crate) fn list(&self, random: &mut Random) -> String {
        if random.chance(150) {
            return random.word(&BAD_LISTS).to_owned();
        }
        let mut list = vec!["legacy"];
        if random.chance(300) {
            list.push("protocol");
        }
        if random.chance(400) && self.walls {
            list.push(random.word(&WALLS));
        }
        if random.chance(700) && self.leases {
            list.push("lease");
        }
        list.join(",")
    }
}

/// Walls between what all write to, some in more than one class.
const WALLS: [&str; 3] = [
    "chinese_wall:c=/t/a+/t/b",
    "chinese_wall:c=/t/a+/t/b,d=/t/0+/t/1+/t/2",
    "chinese_wall:d=/t/a/b+/t/b/d+/t/1,c=/t/b+/t/a",
];

/// What is no list of policies.
const BAD_LISTS: [&str; 6] = [
    "",
    "protocol",
    "legacy,lattice",
    "legacy,legacy",
    "legacy,chinese_wall:c=/t/a",
    "legacy,lease,lease",
];

/// What is no layer.
pub(crate) const BAD_LAYERS: [&str; 4] = ["slow", "delay:5", "rate:0/x", "error:NONE@5%"];

/// Small limits, so that they are met; those of memory only where it matters.
fn limits(random: &mut Random, memory: bool) -> Limits {
    let mut limits = [1000, 128, 20, 0, 0, 10, 1024, 5, 2048, 2048];
    debug_assert_eq!(limits.len(), QUOTAS.len());
    let small = [12, 5, 3, 12_000, 11_000, 2, 9, 3, 60, 120];
    for (limit, small) in limits.iter_mut().zip(small) {
        let is_memory = small > 10_000;
        if random.chance(350) && (memory || !is_memory) {
            *limit = small + u32::try_from(random.below(u64::from(small))).unwrap_or_default();
        }
    }
    limits
}
