//! What a seed makes of a run: which faults there are and how often, who the guests are, and how much they may have.
//!
//! Each run has few kinds of faults, and those often: so that each of them is seen without the others in its way, too.

use model::{Limits, QUOTAS, Rules};

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
    /// Transactions may be inside others.
    pub(crate) nested: bool,
    pub(crate) extensions: Extensions,
    /// How often another instance takes over, made of the state of the one before, of a thousand steps.
    pub(crate) renewals: u64,
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
        Self {
            // What is left of transactions inside others is no more than given up, which the model does not know exactly.
            crashes: if nested { 0 } else { crashes },
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
            crowd: random.below(1000),
            refusals: random.chance(350),
            lost_deaths: random.chance(300),
            memory,
            clock,
            nested,
            extensions: Extensions::new(random, memory),
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
    pub(crate) rules: Rules,
    /// The same as a list.
    pub(crate) policies: String,
    pub(crate) layers: String,
}

impl Extensions {
    /// What a domain has chosen depends on how far its requests came that there was no memory for, which nobody can tell.
    fn new(random: &mut Random, memory: bool) -> Self {
        let mut rules = Rules::default();
        let mut policies = vec!["legacy"];
        if random.chance(300) {
            rules.protocol = true;
            policies.push("protocol");
        }
        if random.chance(300) && !memory {
            let members = vec!["/t/a".to_owned(), "/t/b".to_owned()];
            rules.classes.push(("c".to_owned(), members));
            policies.push("chinese_wall:c=/t/a+/t/b");
        }
        let mut layers = Vec::new();
        if random.chance(400) {
            let count = 1 + random.below(4);
            layers.extend((0..count).map(|_| random.word(&LAYERS)));
        }
        Self {
            rules,
            policies: policies.join(","),
            layers: layers.join(","),
        }
    }
}

/// Layers that leave guests a way to come to rest, and the toolstack of the simulation to its work.
const LAYERS: [&str; 9] = [
    "trace",
    "stats",
    "rate:500/s,burst=3",
    "rate:2000/s,who=all",
    "delay:1ms,read=0ms",
    "delay:write=3ms,end=2ms,who=all",
    "error:EAGAIN@5%,kind=end",
    "error:EIO@3%,seed=7",
    "error:EINVAL@20%,kind=write,while=/t/a",
];

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
