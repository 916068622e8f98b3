//! `simulate`: runs of the store in a simulated host, each from one number, until something is wrong.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use host::sim::{self, Coverage, Failure};
use lexopt::prelude::*;

const HELP: &str = "\
simulate (--seed N | --seeds A..B | --forever) [--steps M] [--threads T]

Runs the dispatcher and the store in a simulated host, with guests of all manners and faults of all kinds, and compares all that
comes of it with a model. The first difference ends a run; what to type to see it again is printed.

  --seed N        one run
  --seeds A..B    the runs A to B - 1, and a table of what they exercised
  --forever       one run after another until one fails, from a seed taken from the clock or from --seed, with a line every ten seconds
  --steps M       steps of a run; default: 10000
  --threads T     runs at a time; default: as many as there are processors";
const STEPS: u64 = 10_000;
/// Between two lines of `--forever`.
const PAUSE: Duration = Duration::from_secs(10);
/// A run that takes so long, and more for many steps, never ends.
const ENDLESS: Duration = Duration::from_secs(120);
const STEPS_A_SECOND: u64 = 100;

/// What to run.
struct Plan {
    seeds: Range<u64>,
    forever: bool,
    steps: u64,
    threads: usize,
}

fn main() -> ExitCode {
    match plan().map(|plan| plan.map(|plan| run(&plan))) {
        Ok(Some(true) | None) => ExitCode::SUCCESS,
        Ok(Some(false)) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("simulate: {error}");
            ExitCode::from(2)
        }
    }
}

fn plan() -> Result<Option<Plan>, Box<dyn Error>> {
    let mut plan = Plan {
        seeds: 0..0,
        forever: false,
        steps: STEPS,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("seed") => {
                let seed = arguments.value()?.parse::<u64>()?;
                plan.seeds = seed..seed.saturating_add(1);
            }
            Long("seeds") => {
                let text = arguments.value()?.string()?;
                let (first, end) = text.split_once("..").ok_or("--seeds takes A..B")?;
                plan.seeds = first.parse()?..end.parse()?;
            }
            Long("forever") => plan.forever = true,
            Long("steps") => plan.steps = arguments.value()?.parse()?,
            Long("threads") => plan.threads = arguments.value()?.parse::<usize>()?.max(1),
            Short('h') | Long("help") => {
                println!("{HELP}");
                return Ok(None);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if plan.forever {
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let first = if plan.seeds.is_empty() {
            clock.as_secs() << 20
        } else {
            plan.seeds.start
        };
        plan.seeds = first..u64::MAX;
    }
    if plan.seeds.is_empty() {
        return Err("which seeds? --seed N, --seeds A..B or --forever".into());
    }
    Ok(Some(plan))
}

/// What the threads share.
struct Progress {
    next: AtomicU64,
    done: AtomicU64,
    coverage: Mutex<Coverage>,
    failures: Mutex<VecDeque<Box<Failure>>>,
    /// The runs that are under way, by seed, with when they began.
    running: Mutex<BTreeMap<u64, Instant>>,
    /// Threads that still work.
    workers: AtomicU64,
}

/// Runs all; whether nothing was wrong.
fn run(plan: &Plan) -> bool {
    let progress = Progress {
        next: AtomicU64::new(plan.seeds.start),
        done: AtomicU64::new(0),
        coverage: Mutex::default(),
        failures: Mutex::default(),
        running: Mutex::default(),
        workers: AtomicU64::new(u64::try_from(plan.threads).unwrap_or(1)),
    };
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..plan.threads {
            scope.spawn(|| {
                work(plan, &progress);
                progress.workers.fetch_sub(1, Ordering::Relaxed);
            });
        }
        scope.spawn(|| watch(plan, &progress, begun));
    });
    let failures = lock(&progress.failures);
    let coverage = lock(&progress.coverage).clone();
    if coverage.requests() > 0 {
        println!("{}", coverage.table());
    }
    if let Some(first) = failures.front() {
        println!("{first}");
    }
    summary(plan, &progress, begun);
    println!(
        "{} runs, {} failed",
        progress.done.load(Ordering::Relaxed),
        failures.len()
    );
    failures.is_empty()
}

fn work(plan: &Plan, progress: &Progress) {
    loop {
        let seed = progress.next.fetch_add(1, Ordering::Relaxed);
        if seed >= plan.seeds.end || (plan.forever && !lock(&progress.failures).is_empty()) {
            return;
        }
        lock(&progress.running).insert(seed, Instant::now());
        let outcome = guarded(seed, plan.steps);
        lock(&progress.running).remove(&seed);
        progress.done.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Ok(coverage) => lock(&progress.coverage).add(&coverage),
            Err(failure) => {
                println!(
                    "FAILED: seed {}, step {}: {}",
                    failure.seed, failure.step, failure.why
                );
                lock(&progress.failures).push_back(failure);
            }
        }
    }
}

/// A run; a panic in it is a failure, too.
fn guarded(seed: u64, steps: u64) -> Result<Coverage, Box<Failure>> {
    std::panic::catch_unwind(|| sim::run(seed, steps)).unwrap_or_else(|_| {
        Err(Box::new(Failure {
            seed,
            step: steps,
            why: "a panic; see above".to_owned(),
            before: String::new(),
        }))
    })
}

/// Sees to it that every run ends; and a line now and then where nothing else ends.
fn watch(plan: &Plan, progress: &Progress, begun: Instant) {
    let limit = ENDLESS + Duration::from_secs(plan.steps / STEPS_A_SECOND);
    let mut told = Instant::now();
    while progress.workers.load(Ordering::Relaxed) > 0 {
        std::thread::sleep(Duration::from_millis(50));
        let endless = lock(&progress.running)
            .iter()
            .find_map(|(seed, begun)| (begun.elapsed() > limit).then_some(*seed));
        if let Some(seed) = endless {
            println!("FAILED: seed {seed} has not ended in {} s", limit.as_secs());
            println!("again: {}", sim::command(seed, plan.steps));
            std::process::exit(1);
        }
        if plan.forever && told.elapsed() >= PAUSE {
            told = Instant::now();
            summary(plan, progress, begun);
        }
    }
}

fn summary(plan: &Plan, progress: &Progress, begun: Instant) {
    let coverage = lock(&progress.coverage);
    let runs = progress.done.load(Ordering::Relaxed);
    let elapsed_ms = u64::try_from(begun.elapsed().as_millis())
        .unwrap_or(u64::MAX)
        .max(1);
    let speed = runs.saturating_mul(plan.steps).saturating_mul(1000) / elapsed_ms;
    let (seen, possible) = coverage.exercised();
    println!(
        "{runs} seeds from {}, {} s, {speed} steps/s, {} requests, {seen} of {possible} outcomes",
        plan.seeds.start,
        elapsed_ms / 1000,
        coverage.requests()
    );
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
