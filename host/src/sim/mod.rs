//! Deterministic simulation: one seed drives a machine, its guests, its faults and the time; the real dispatcher, rings and store run in
//! it, and a model says what ought to come of it.
//!
//! A run stops at the first difference. Everything that happens follows from the seed and the number of steps.

mod coverage;
mod guest;
mod random;
mod replay;
mod script;
mod swarm;
mod witness;
mod world;

use std::fmt;

pub use coverage::Coverage;
use world::World;

/// Steps between two times of rest.
const STEPS_BETWEEN_RESTS: u64 = 2500;

/// A run that went wrong.
#[derive(Debug)]
pub struct Failure {
    /// What it began with.
    pub seed: u64,
    /// The step at which it went wrong.
    pub step: u64,
    /// What was wrong.
    pub why: String,
    /// What came before.
    pub before: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed,
            step,
            why,
            before,
        } = self;
        writeln!(f, "{before}")?;
        writeln!(f, "seed {seed}, step {step}: {why}")?;
        write!(f, "again: {}", command(*seed, step.saturating_add(1)))
    }
}

/// What to type to see a run again.
#[must_use]
pub fn command(seed: u64, steps: u64) -> String {
    format!("cargo run --profile sim -p host --bin simulate -- --seed {seed} --steps {steps}")
}

/// Runs so many steps from a seed, and lets all come to an end.
///
/// # Errors
/// Something was not as it must be.
pub fn run(seed: u64, steps: u64) -> Result<Coverage, Box<Failure>> {
    let fail = |step, why, before| {
        Box::new(Failure {
            seed,
            step,
            why,
            before,
        })
    };
    let mut world = World::new(seed).map_err(|why| fail(0, why, String::new()))?;
    for step in 0..steps {
        let rests = step % STEPS_BETWEEN_RESTS == STEPS_BETWEEN_RESTS - 1;
        let done = world
            .step()
            .and_then(|()| if rests { world.rest() } else { Ok(()) });
        done.map_err(|why| fail(step, why, world.show_recent()))?;
    }
    world
        .end()
        .map_err(|why| fail(steps, why, world.show_recent()))?;
    Ok(world.coverage)
}
