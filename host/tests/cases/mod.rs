//! All transcripts of `xenstore/tests/transcripts/`, played on a host that these tests bring: what does not apply to it is in a table.

#[path = "../../../xenstore/tests/transcript/mod.rs"]
pub(crate) mod transcript;

use std::path::{Path, PathBuf};

use transcript::Host;
use transcript::run::play;
use transcript::syntax::{Case, parse};

/// A case that cannot go on some host as it is written: its file, its name, and why.
pub(crate) type Exception = (&'static str, &'static str, &'static str);

/// What came of all texts.
#[derive(Default)]
pub(crate) struct Played {
    pub(crate) passed: usize,
    /// Cases that need what the host has not, by their steps: file and name, and why.
    pub(crate) left_out: Vec<(String, String)>,
    /// What is wrong: cases that failed, and exceptions that are none.
    pub(crate) complaints: Vec<String>,
}

/// Plays every case of every text on a host of its own. Exceptions must fail; all others must not.
///
/// The environment variable `TRANSCRIPT` chooses files, as in the test of the core, and `TRANSCRIPTS` names another folder of them.
pub(crate) fn play_all<H: Host>(
    exceptions: &[Exception],
    mut host: impl FnMut() -> H,
) -> Result<Played, String> {
    let mut played = Played::default();
    let wanted = std::env::var("TRANSCRIPT").unwrap_or_default();
    let mut unmet: Vec<_> = exceptions.iter().collect();
    unmet.retain(|(file, _, _)| file.contains(&wanted));
    for (file, cases) in all_cases(&wanted)? {
        for case in &cases {
            let report = play(&file, core::slice::from_ref(case), &mut host);
            let is_left_out = !report.left_out.is_empty();
            played.left_out.extend(report.left_out);
            let passes = report.played == 1 && report.failures.is_empty();
            let others = unmet.len();
            unmet.retain(|(of, name, _)| (*of, *name) != (file.as_str(), case.name.as_str()));
            if unmet.len() == others {
                played.passed += usize::from(passes);
                played.complaints.extend(report.failures);
            } else if passes || is_left_out {
                let (line, name) = (case.line, &case.name);
                played.complaints.push(format!(
                    "{file}:{line}: case {name}\n    is listed as an exception and is none"
                ));
            }
        }
    }
    let unmet = unmet.into_iter();
    played.complaints.extend(unmet.map(|(file, case, _)| {
        format!("{file}: case {case}\n    is listed as an exception and there is no such case")
    }));
    Ok(played)
}

/// The texts by their file's name.
pub(crate) fn all_cases(wanted: &str) -> Result<Vec<(String, Vec<Case>)>, String> {
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../xenstore/tests/transcripts");
    let folder = std::env::var_os("TRANSCRIPTS").map_or_else(here, PathBuf::from);
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(|error| error.to_string())? {
        let path = entry.map_err(|error| error.to_string())?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.ends_with(".txt") || !name.contains(wanted) {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{name}: {error}"))?;
        let cases = parse(&text).map_err(|why| format!("{name}:{why}"))?;
        all.push((name.into_owned(), cases));
    }
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(all)
}
