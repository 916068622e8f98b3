//! What a stretch of work costs a process, read from outside it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::target::Failure;

/// After its last reply a server still goes back to sleep.
const SETTLE: Duration = Duration::from_millis(30);

pub(crate) enum Probe {
    /// Nothing is measured: the workloads are only tried.
    Nothing,
    /// Nanoseconds on a processor, in user space and in the kernel.
    CpuTime,
    /// Instructions in user space, as callgrind counts them.
    Instructions {
        /// The beginning of the names of callgrind's files.
        prefix: PathBuf,
        /// Where each figure's profile is kept, for `callgrind_annotate`.
        kept: Option<PathBuf>,
    },
}

impl Probe {
    pub(crate) fn instructions(prefix: PathBuf) -> Self {
        Self::Instructions { prefix, kept: None }
    }

    /// Keeps the profiles in this directory, if instructions are counted.
    pub(crate) fn keep(&mut self, directory: PathBuf) {
        if let Self::Instructions { kept, .. } = self {
            *kept = Some(directory);
        }
    }

    /// What the figures are.
    pub(crate) fn unit(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::CpuTime => "nanoseconds",
            Self::Instructions { .. } => "instructions",
        }
    }

    /// Begins a measured stretch; gives what [`Probe::end`] needs.
    pub(crate) fn begin(&self, process: u32) -> Result<u64, Failure> {
        std::thread::sleep(SETTLE);
        match self {
            Self::Nothing => Ok(0),
            Self::CpuTime => cpu_time_ns(process),
            // Switched on by the first stretch of a process and never off, so that what is built before it is built fast.
            Self::Instructions { .. } => {
                tell_callgrind(process, &["instrumentation", "on"])?;
                tell_callgrind(process, &["zero"]).map(|()| 0)
            }
        }
    }

    /// Ends a measured stretch; gives what it cost. Its profile is kept under `name`.
    pub(crate) fn end(&self, process: u32, begun: u64, name: &str) -> Result<u64, Failure> {
        std::thread::sleep(SETTLE);
        match self {
            Self::Nothing => Ok(0),
            Self::CpuTime => Ok(cpu_time_ns(process)?.saturating_sub(begun)),
            Self::Instructions { prefix, kept } => {
                tell_callgrind(process, &["dump"])?;
                let kept = kept.as_ref().map(|directory| directory.join(name));
                let total = take_total(prefix, kept.as_deref())?;
                Ok(total)
            }
        }
    }
}

/// Bytes of a process that are in memory.
pub(crate) fn resident_bytes(process: u32) -> Result<u64, Failure> {
    std::thread::sleep(SETTLE);
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    let kib: u64 = kib.ok_or("the process has no VmRSS")?.parse()?;
    Ok(kib.saturating_mul(1024))
}

fn cpu_time_ns(process: u32) -> Result<u64, Failure> {
    let text = std::fs::read_to_string(format!("/proc/{process}/schedstat"))?;
    let first = text.split_whitespace().next();
    Ok(first.ok_or("schedstat is empty")?.parse()?)
}

fn tell_callgrind(process: u32, words: &[&str]) -> Result<(), Failure> {
    let status = Command::new("vgdb")
        .arg(format!("--pid={process}"))
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("vgdb {}: {status}", words.join(" ")).into())
    }
}

/// Takes the one dump that callgrind has written: its total, and the file away.
fn take_total(prefix: &Path, kept: Option<&Path>) -> Result<u64, Failure> {
    let directory = prefix.parent().ok_or("the prefix has no directory")?;
    let name = prefix.file_name().ok_or("the prefix has no name")?;
    let start = format!("{}.", name.to_string_lossy());
    let mut total = None;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&start) {
            let text = std::fs::read_to_string(entry.path())?;
            let line = text.lines().find_map(|line| line.strip_prefix("totals: "));
            total = line.map(|number| number.trim().parse()).transpose()?;
            match kept {
                Some(kept) => std::fs::rename(entry.path(), kept)?,
                None => std::fs::remove_file(entry.path())?,
            }
        }
    }
    total.ok_or_else(|| "callgrind wrote no totals".into())
}
