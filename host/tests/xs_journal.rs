//! `xs journal` and `xs replay` on stores that serve: what one has done, another one does again.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a program that cannot be run fails its test"
)]

#[expect(dead_code, reason = "other tests need more of it")]
mod client;
mod ferrostored;
mod served;

use std::path::Path;
use std::process::Command;

use client::tool;
use ferrostored::ferrostored;
use served::Served;

/// The exit code, what is printed, and what is complained of.
fn xs(store: &Path, words: &[&str]) -> (Option<i32>, String, String) {
    let ended = Command::new(env!("CARGO_BIN_EXE_xs"))
        .args(words)
        .arg("--store")
        .arg(store)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (ended.status.code(), text(ended.stdout), text(ended.stderr))
}

fn journaled(socket: &Path) -> Command {
    let mut command = ferrostored(socket);
    command.args(["--store", "journal:flat"]);
    command
}

fn replay(store: &Path, journal: &str) -> (Option<i32>, String, String) {
    let file = std::env::temp_dir().join(format!(
        "xs-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::write(&file, journal).unwrap();
    let ended = xs(store, &["replay", file.to_str().unwrap()]);
    std::fs::remove_file(file).unwrap();
    ended
}

#[test]
fn what_one_store_has_done_another_does_again() {
    let (one, other) = (
        Served::start(journaled).unwrap(),
        Served::start(ferrostored).unwrap(),
    );
    let tool = |name: &str, arguments: &[&str]| tool(&one.socket(), name, arguments);
    let long = "v".repeat(1500);
    tool(
        "write",
        &["/t/a", "one two", "/t/b", &long, "/t/c/d", r"\x00\xff\n"],
    );
    for number in 0..20 {
        tool("write", &[&format!("/t/many/{number}"), &long]);
    }
    tool("chmod", &["/t/a", "n0", "r5", "b7"]);
    tool("rm", &["/t/b"]);
    let (code, journal, position) = xs(&one.socket(), &["journal"]);
    assert_eq!(code, Some(0));
    assert_eq!(position, format!("position: {}\n", journal.len()));
    let (code, said, complaints) = replay(&other.socket(), &journal);
    assert_eq!((code, complaints.as_str()), (Some(0), ""), "{said}");
    let shown = |served: &Served| client::tool(&served.socket(), "ls", &["-f", "-p"]);
    assert_eq!(shown(&one), shown(&other));
    assert!(shown(&other).contains(r#"/t/c/d = "\000\xff\n"   (n0)"#));

    tool("rm", &["/t/many"]);
    let from = journal.len().to_string();
    let (code, more, _) = xs(&one.socket(), &["journal", "--from", &from]);
    assert_eq!(code, Some(0));
    assert!(
        more.ends_with(" rm /t/many\n") && more.lines().count() == 1,
        "{more}"
    );
    assert_eq!(replay(&other.socket(), &more).0, Some(0));
    assert_eq!(shown(&one), shown(&other));
}

#[test]
fn what_was_dropped_is_told() {
    let one = Served::start(journaled).unwrap();
    let long = "v".repeat(2000);
    for _ in 0..200 {
        tool(&one.socket(), "write", &["/t", &long]);
    }
    let (code, _, complaint) = xs(&one.socket(), &["journal", "--from", "1"]);
    assert_eq!(code, Some(2));
    assert!(
        complaint.ends_with(" bytes from position 1 on are dropped\n"),
        "{complaint}"
    );
    let (code, journal, _) = xs(&one.socket(), &["journal"]);
    assert_eq!(code, Some(0));
    assert!(journal.len() <= 256 * 1024 && journal.lines().count() < 200);
}

#[test]
fn a_store_without_a_journal_says_so() {
    let other = Served::start(ferrostored).unwrap();
    let (code, _, complaint) = xs(&other.socket(), &["journal"]);
    assert_eq!(
        (code, complaint.as_str()),
        (Some(2), "xs: this store keeps no journal\n")
    );
    let wrong = replay(&other.socket(), "1.1/1 0 write /a\n");
    assert_eq!(wrong.0, Some(2));
}
