//! Runs targets without a compiler's help: inputs of the corpus, changed at random from a seed.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::targets::{self, Target};

/// Most bytes of an input.
const LENGTH_MAX: usize = 4096;
/// Most changes between an input of the corpus and the one that is tried.
const CHANGES_MAX: u64 = 16;

const USAGE: &str = "usage: fuzz --list | TARGET SECONDS [SEED] | --replay TARGET FILE";

/// Does what the command line says.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let words: [Option<String>; 3] = std::array::from_fn(|_| arguments.next());
    match words.each_ref().map(Option::as_deref) {
        [Some("--list"), None, None] => {
            for target in targets::ALL {
                println!("{:14} {}", target.name, target.about);
            }
            Ok(())
        }
        [Some("--replay"), Some(name), Some(file)] => {
            let target = targets::find(name).ok_or(USAGE)?;
            let input = fs::read(file).map_err(|error| format!("{file}: {error}"))?;
            target.run(&input);
            println!("{name}: {file} does no harm");
            Ok(())
        }
        [Some(name), Some(seconds), seed] => {
            let target = targets::find(name).ok_or(USAGE)?;
            let seconds = seconds.parse().map_err(|_| USAGE)?;
            let seed = seed.unwrap_or("1").parse().map_err(|_| USAGE)?;
            for_a_while(target, Duration::from_secs(seconds), seed);
            Ok(())
        }
        _ => Err(USAGE.into()),
    }
}

fn for_a_while(target: &'static Target, duration: Duration, seed: u64) {
    /// What is tried now, for the one who looks into a panic.
    static TRIED: Mutex<Vec<u8>> = Mutex::new(Vec::new());
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        let input = TRIED.lock().map(|tried| tried.clone()).unwrap_or_default();
        match keep_failure(target, &input) {
            Ok(file) => eprintln!(
                "replay: cargo run -p host --example fuzz -- --replay {} {}",
                target.name,
                file.display()
            ),
            Err(error) => eprintln!("the input cannot be kept ({error}): {input:?}"),
        }
    }));
    let mut inputs = Inputs::new(target, seed);
    let started = Instant::now();
    let mut tried = 0_u64;
    while started.elapsed() < duration {
        let input = inputs.next();
        TRIED.lock().unwrap().clone_from(&input);
        target.run(&input);
        tried += 1;
    }
    drop(std::panic::take_hook());
    println!(
        "{}: {tried} inputs from seed {seed}, no harm done",
        target.name
    );
}

fn keep_failure(target: &Target, input: &[u8]) -> io::Result<PathBuf> {
    let folder = PathBuf::from("target/fuzz");
    fs::create_dir_all(&folder)?;
    let file = folder.join(format!("failure-{}", target.name));
    fs::write(&file, input)?;
    Ok(file)
}

/// Inputs without end: first the corpus as it is, then changed.
pub(crate) struct Inputs {
    corpus: Vec<Vec<u8>>,
    next: usize,
    random: Random,
}

impl Inputs {
    pub(crate) fn new(target: &Target, seed: u64) -> Self {
        Self {
            corpus: corpus_of(target),
            next: 0,
            random: Random::new(seed),
        }
    }

    pub(crate) fn next(&mut self) -> Vec<u8> {
        if let Some(input) = self.corpus.get(self.next) {
            self.next += 1;
            return input.clone();
        }
        let random = &mut self.random;
        let mut input = match random.below(4) {
            0 => random.bytes(512),
            _ => random.pick(&self.corpus).cloned().unwrap_or_default(),
        };
        for _ in 0..random.below(CHANGES_MAX) {
            random.change(&mut input);
        }
        if random.below(8) == 0 {
            input.extend(random.pick(&self.corpus).into_iter().flatten());
        }
        input.truncate(LENGTH_MAX);
        input
    }
}

/// The inputs that are kept for a target, in order of their names.
pub(crate) fn corpus_of(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/fuzz/corpus");
    let files = fs::read_dir(folder.join(target.name));
    let mut files: Vec<PathBuf> = files
        .into_iter()
        .flatten()
        .filter_map(|file| Some(file.ok()?.path()))
        .collect();
    files.sort();
    files
        .iter()
        .filter_map(|file| fs::read(file).ok())
        .collect()
}

/// A generator of numbers (xorshift64*) that is the same everywhere.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit
    }

    fn place(&mut self, length: usize) -> usize {
        let length = u64::try_from(length).unwrap().max(1);
        usize::try_from(self.below(length)).unwrap()
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }

    fn bytes(&mut self, limit: u64) -> Vec<u8> {
        (0..self.below(limit)).map(|_| self.byte()).collect()
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        all.get(self.place(all.len()))
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.place(input.len() + 1);
        let end = at + self.place(input.len() + 1 - at).min(64);
        match self.below(6) {
            0 => drop(input.drain(at..end)),
            1 => {
                let piece = self.bytes(9);
                input.splice(at..at, piece);
            }
            2 => {
                let piece = input[at..end].to_vec();
                let to = self.place(input.len() + 1);
                input.splice(to..to, piece);
            }
            3 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
            4 => {
                const ODD: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, b'/', b'0', b'@'];
                if let Some(byte) = input.get_mut(at) {
                    *byte = *self.pick(&ODD).unwrap();
                }
            }
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = self.byte();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `cargo test` tries of each target.
    fn try_some(name: &str, count: usize) {
        let target = targets::find(name).unwrap();
        let mut inputs = Inputs::new(target, 1);
        assert!(!inputs.corpus.is_empty(), "{name} has no corpus");
        (0..count).for_each(|_| target.run(&inputs.next()));
    }

    #[test]
    fn ring() {
        try_some("ring", 20_000);
    }

    #[test]
    fn frames() {
        try_some("frames", 150);
    }

    #[test]
    fn request() {
        try_some("request", 300);
    }

    #[test]
    fn path() {
        try_some("path", 30_000);
    }

    #[test]
    fn permissions() {
        try_some("permissions", 500);
    }

    #[test]
    fn numbers() {
        try_some("numbers", 500);
    }

    #[test]
    fn stream() {
        try_some("stream", 10_000);
    }

    #[test]
    fn start_info() {
        try_some("start_info", 20_000);
    }

    #[test]
    fn command_line() {
        try_some("command_line", 20_000);
    }

    #[test]
    fn the_same_seed_gives_the_same_inputs_and_another_one_others() {
        let target = targets::find("path").unwrap();
        let inputs = |seed| {
            let mut inputs = Inputs::new(target, seed);
            let skipped = inputs.corpus.len();
            let mut next = || inputs.next();
            (0..skipped + 20).map(|_| next()).collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
    }
}
