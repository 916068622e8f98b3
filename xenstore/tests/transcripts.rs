//! Plays every text in `transcripts/` on the core: `Server` between byte queues, with domains from a table.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that goes wrong here should stop at once"
)]

#[expect(dead_code, reason = "other tests need more of it")]
mod machine;
mod on_core;
mod transcript;

use std::path::{Path, PathBuf};

use on_core::Core;
use transcript::run::play;
use transcript::syntax::parse;
use xenstore::{AnyStorage, Features, Settings, StorageKind};

#[test]
fn the_core_answers_as_the_transcripts_say() {
    play_all("", || kept_as("tree"));
}

#[test]
fn over_a_flat_map_it_answers_the_same() {
    play_all("", || kept_as("flat"));
}

#[test]
fn transactions_inside_others_are_answered_as_the_transcripts_say() {
    for word in ["tree", "flat"] {
        let nested = |settings: &mut Settings| {
            settings.features = settings.features.with(Features::NESTED_TRANSACTIONS);
            settings.storage = kind(word);
        };
        play_all("nested", || Core::with(nested));
    }
    let granted = |settings: &mut Settings| settings.grantable = Features::NESTED_TRANSACTIONS;
    play_all("granted", || Core::with(granted));
}

#[test]
fn with_a_journal_it_answers_the_same_and_what_the_journal_has() {
    for word in ["journal", "journal:flat"] {
        play_all("", || kept_as(word));
        play_all("journal", || kept_as(word));
    }
}

/// A store that keeps its nodes as the word says.
fn kept_as(word: &str) -> Core<AnyStorage> {
    Core::with(|settings| settings.storage = kind(word))
}

fn kind(word: &str) -> StorageKind {
    StorageKind::parse(word.as_bytes()).unwrap()
}

fn play_all(below: &str, mut core: impl FnMut() -> Core<AnyStorage>) {
    let folder = folder().join(below);
    let wanted = std::env::var("TRANSCRIPT").unwrap_or_default();
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .filter(|path| path.to_string_lossy().contains(&wanted))
        .collect();
    files.sort();
    let (mut played, mut left_out, mut failures) = (0, 0, Vec::new());
    for path in files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let cases = parse(&text).unwrap_or_else(|why| panic!("{name}:{why}"));
        let report = play(&name, &cases, &mut core);
        played += report.played;
        left_out += report.left_out.len();
        failures.extend(report.failures);
    }
    println!("{played} cases played, {left_out} left out");
    let count = failures.len();
    assert!(
        failures.is_empty(),
        "{count} of {played} cases failed\n\n{}",
        failures.join("\n\n")
    );
    assert!(played > 0, "no transcripts found");
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts")
}

#[test]
fn the_table_of_malformed_payloads_names_cases_that_there_are() {
    let document = std::fs::read_to_string(folder().join("README.md")).unwrap();
    let (_, table) = document
        .split_once("| what | cases |\n|---|---|\n")
        .unwrap();
    let rows = table.lines().filter_map(|row| row.split(" | ").nth(1));
    let entries: Vec<&str> = rows
        .flat_map(|cases| cases.trim_end_matches(" |").split("; "))
        .collect();
    assert!(!entries.is_empty(), "the table is empty");
    for entry in &entries {
        let (file, case) = entry.split_once(": ").unwrap();
        let text = std::fs::read_to_string(folder().join(format!("{file}.txt"))).unwrap();
        let line = format!("case {case}");
        assert!(text.lines().any(|there| there == line), "{entry}");
    }
    let text = std::fs::read_to_string(folder().join("malformed.txt")).unwrap();
    for case in parse(&text).unwrap() {
        let named = entries.contains(&format!("malformed: {}", case.name).as_str());
        assert!(named, "{} is not in the table", case.name);
    }
}

/// Each of these is wrong in one line.
const WRONG: &str = "
case a value that is another
d0 > WRITE /t 'x' => OK
d0 > READ /t => 'y'
case an error that is another
d0 > READ /t => EINVAL
case an error where there is none
d0 > WRITE /t 'x' => ENOENT
case no error where there is one
d0 > READ /t => *
case a message that nothing announced
d0 > WATCH /t token => OK
case a message that does not come
d0 ! /t token
case a request without its reply
d0 > READ /t
case an event where a reply was due
d0 > WATCH /t token => OK
d0 > READ /t => ENOENT
case a quiet that is none
d0 > READ /t
d0 nothing
case a number that did not change
d0 > DIRECTORY_PART / 0 => {=generation} {**}
d0 > DIRECTORY_PART / 0 => {!generation} {**}
case a connection that is not stopped
d0 is stopped
case a client that there is not
d5 > READ /t => ENOENT
";

#[test]
fn what_differs_is_found() {
    let cases = parse(WRONG).unwrap();
    let report = play("wrong", &cases, Core::<AnyStorage>::new);
    assert_eq!(report.failures.len(), cases.len(), "{:#?}", report.failures);
}

#[test]
fn a_text_that_says_nothing_is_refused() {
    let lines = [
        "d0 > READ /t",
        "case a\nd0 > REED /t => OK",
        "case a\nd0 < ",
        "case a\nd0 > READ \"/t => OK",
        "case a\nd0 > READ {*}",
        "case a\nd0 > READ /t{x*y}",
        "case a\nx0 > READ /t",
        "case a\ndomain 1 sleeps",
        "case a\nd0 > [#x] READ /t",
        "case a\nd0 > READ /t\\q",
    ];
    for text in lines {
        assert!(parse(text).is_err(), "{text}");
    }
}
