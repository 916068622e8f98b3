//! Fuzz targets: whatever bytes come in, the promises hold. `docs/fuzzing.md` tells how to run them for long.
//!
//! As an ordinary program it feeds a target with changed inputs of its corpus, from a seed; its tests do so a fixed number of times. With
//! `--cfg fuzzing` it is a target of libFuzzer, which finds its way by the branches that are taken.
#![cfg_attr(fuzzing, no_main)]
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a program that looks for panics should stop at the first"
)]

mod bytes;
#[cfg(not(fuzzing))]
mod drive;
mod targets;

#[cfg(not(fuzzing))]
fn main() {
    if let Err(why) = drive::run(std::env::args().skip(1)) {
        eprintln!("fuzz: {why}");
        std::process::exit(2);
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let name = std::env::var("FUZZ_TARGET").unwrap();
    targets::find(&name).unwrap().run(input);
});
