//! `xs state`, as a person uses it: on the stream of a real C xenstored, and on damaged ones.
#![expect(
    clippy::unwrap_used,
    reason = "a program that cannot be run fails its test"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Written by Debian's xenstored 4.17.
const OF_C: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../xenstore/src/state/tests/c-xenstored-4.17.stream"
);

/// The exit code, what is printed, and what is complained of.
fn xs(words: &[&str]) -> (Option<i32>, String, String) {
    let ended = Command::new(env!("CARGO_BIN_EXE_xs"))
        .args(words)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (ended.status.code(), text(ended.stdout), text(ended.stderr))
}

/// A file of a test's own.
struct Scratch(PathBuf);

impl Scratch {
    fn with(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("xs-{}-{name}", std::process::id()));
        fs::write(&path, bytes).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

#[test]
fn dump_shows_where_each_record_begins_and_what_it_says() {
    let (code, shown, complaints) = xs(&["state", "dump", OF_C]);
    assert_eq!((code, complaints.as_str()), (Some(0), ""));
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.first(), Some(&"xenstore state stream, version 1"));
    for line in [
        "0x000010 GLOBAL_DATA socket fd 3, evtchn fd 6",
        "0x0000b8 WATCH_DATA of 2: rel/x \"t3\"",
        "0x000130 CONNECTION_DATA 5: ring of domain 7, port 1, target 5",
        "0x000298 NODE_DATA /a/d = \"\\x00\\xff\"   (n0,r5,b7)",
        "0x000350 END",
    ] {
        assert!(lines.contains(&line), "{line} is not in {shown}");
    }
}

#[test]
fn check_says_what_there_is_or_what_is_wrong() {
    let (code, shown, _) = xs(&["state", "check", OF_C]);
    assert_eq!(code, Some(0));
    let summary =
        "in order; version 1, with documented records only: 22 records, 5 connections, 12 nodes";
    assert!(shown.contains(summary), "{shown}");
    let mut bytes = fs::read(OF_C).unwrap();
    let at = bytes
        .windows(4)
        .position(|window| window == b"/a/d")
        .unwrap();
    bytes[at + 1] = b'!';
    let damaged = Scratch::with("damaged", &bytes);
    for command in ["check", "dump"] {
        let (code, _, complaint) = xs(&["state", command, damaged.path()]);
        assert_eq!(code, Some(1));
        let expected = "offset 0x298, record NODE_DATA: a path that is not well formed";
        assert!(complaint.contains(expected), "{complaint}");
    }
    let cut = Scratch::with("cut", &bytes[..0x290]);
    let (code, _, complaint) = xs(&["state", "check", cut.path()]);
    assert_eq!(code, Some(1));
    assert!(complaint.contains("offset 0x270"), "{complaint}");
}

#[test]
fn diff_shows_what_differs_and_not_the_order() {
    let bytes = fs::read(OF_C).unwrap();
    // Two nodes change places.
    let (special, other) = (0x150..0x180, 0x180..0x1b0);
    let swapped = [
        &bytes[..0x150],
        &bytes[other],
        &bytes[special],
        &bytes[0x1b0..],
    ]
    .concat();
    let swapped = Scratch::with("swapped", &swapped);
    assert_eq!(
        xs(&["state", "diff", OF_C, swapped.path()]),
        (Some(0), String::new(), String::new())
    );
    let mut changed = bytes;
    let at = changed
        .windows(5)
        .position(|window| window == b"value")
        .unwrap();
    changed[at] = b'V';
    let changed = Scratch::with("changed", &changed);
    let (code, shown, _) = xs(&["state", "diff", OF_C, changed.path()]);
    assert_eq!(code, Some(1));
    let mut lines: Vec<&str> = shown.lines().collect();
    lines.sort_unstable();
    let expected = [
        "+ NODE_DATA /a/b/c = \"Value\"   (n0)",
        "- NODE_DATA /a/b/c = \"value\"   (n0)",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn convert_keeps_everything_and_says_what_it_cannot() {
    let (own, v1) = (Scratch::with("own", b""), Scratch::with("v1", b""));
    let convert = |from: &str, to: &Scratch, format| {
        xs(&["state", "convert", from, to.path(), "--format", format])
    };
    assert_eq!(
        convert(OF_C, &own, "own"),
        (Some(0), String::new(), String::new())
    );
    assert_eq!(
        convert(own.path(), &v1, "v1"),
        (Some(0), String::new(), String::new())
    );
    let (_, shown, _) = xs(&["state", "diff", OF_C, v1.path()]);
    assert!(
        shown
            .lines()
            .all(|line| line.starts_with("+ DOMAIN_DATA") || line.starts_with("+ GLOBAL_QUOTA")),
        "{shown}"
    );
    let (code, _, complaint) = convert(OF_C, &v1, "v9");
    assert_eq!(code, Some(2));
    assert!(complaint.contains("there is no format v9"), "{complaint}");
}

#[test]
fn help_names_every_command() {
    let (code, shown, _) = xs(&["--help"]);
    assert_eq!(code, Some(0));
    for command in ["dump", "check", "diff", "convert"] {
        assert!(
            shown.contains(&format!("xs state {command} FILE")),
            "{shown}"
        );
    }
    assert_eq!(xs(&["state"]).0, Some(2));
    assert_eq!(xs(&["state", "check", "/nowhere"]).0, Some(2));
    assert!(Path::new(OF_C).exists());
}
