//! What requests cost at a size and at twice that size, in instructions: at most 2.2 times as much, whatever grows, and no more than at
//! first beside what they have nothing to do with.
//!
//! The program runs itself under callgrind, which counts what happens inside [`measured`] and tells after each time.
#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a program that measures should stop at once when it cannot"
)]

#[path = "../../tests/store/mod.rs"]
mod store;
mod workloads;

use kernel::hypervisor::MeteredHeap;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use workloads::{ALL, Measured};

/// As in the image: the C library's takes longer the more there is to take back.
#[global_allocator]
static HEAP: MeteredHeap = MeteredHeap;

/// How much more twice the size may cost: a little for logarithms and for what is rounded up.
const MOST: f64 = 2.2;
/// The same where what grows is not what is worked on.
const MOST_BESIDE: f64 = 1.2;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("run") {
        for workload in ALL {
            for size in [workload.size, 2 * workload.size] {
                measured(&mut (workload.prepare)(size));
            }
        }
        return ExitCode::SUCCESS;
    }
    let counts = counts();
    assert_eq!(counts.len(), 2 * ALL.len(), "callgrind has counted less");
    let mut worse = 0;
    println!(
        "{:62} {:>6} {:>12} {:>12} {:>6}",
        "what, and what grows", "size", "there", "at twice", "ratio"
    );
    for (workload, pair) in ALL.iter().zip(counts.chunks(2)) {
        let ratio = pair[1] / pair[0];
        let most = if workload.is_beside {
            MOST_BESIDE
        } else {
            MOST
        };
        let verdict = if ratio > most { "TOO MUCH" } else { "" };
        worse += usize::from(ratio > most);
        println!(
            "{:62} {:>6} {:>12} {:>12} {ratio:>6.2} {verdict}",
            workload.name, workload.size, pair[0], pair[1]
        );
    }
    println!("{worse} of {} grow faster than they may", ALL.len());
    ExitCode::from(u8::from(worse > 0))
}

/// All that counts. Never inlined, so that callgrind finds it.
#[inline(never)]
fn measured(work: &mut Measured) {
    work.run();
}

/// Runs all workloads in order; the instructions of each.
fn counts() -> Vec<f64> {
    let folder = Path::new("target/growth");
    drop(fs::remove_dir_all(folder));
    fs::create_dir_all(folder).unwrap();
    let status = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet", "--collect-atstart=no"])
        .args(["--toggle-collect=growth::measured", "--dump-after=growth::measured"])
        .arg("--callgrind-out-file=target/growth/out")
        .arg(std::env::current_exe().unwrap())
        .arg("run")
        // Otherwise glibc copies long stretches with one instruction that is counted once for each byte.
        .env("GLIBC_TUNABLES", "glibc.cpu.x86_rep_stosb_threshold=1000000000:glibc.cpu.x86_rep_movsb_threshold=1000000000")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    (1..=2 * ALL.len())
        .map_while(|part| {
            let text = fs::read_to_string(folder.join(format!("out.{part}"))).ok()?;
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("totals: "))?;
            line.trim().parse().ok()
        })
        .collect()
}
