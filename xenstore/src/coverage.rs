//! Keeps `docs/protocol-coverage.md` in step with the tables in the code: the document is what this test would write.
//!
//! `UPDATE_DOCS=1 cargo test -p xenstore coverage` writes it.

use std::fmt::Write;
use std::path::Path;

use crate::control;
use crate::counters::Counter;
use crate::database::is_database;
use crate::features::Features;
use crate::live_update;
use crate::privilege;
use crate::quota::{Quota, Quotas};
use crate::refusal::Reason;
use crate::request::is_served;
use crate::wire::Kind;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol-coverage.md");

#[test]
fn the_document_says_what_the_tables_say() {
    let document = Path::new(DOCUMENT);
    let expected = document_text();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(document, &expected).unwrap();
    }
    let found = std::fs::read_to_string(document).unwrap_or_default();
    assert!(
        found == expected,
        "docs/protocol-coverage.md is not in step; UPDATE_DOCS=1 cargo test -p xenstore coverage writes it"
    );
}

fn document_text() -> String {
    let mut text = String::from(
        "# What of the protocol is served\n\nWritten by a test from the tables in the code; do not edit.\n",
    );
    requests(&mut text);
    commands(&mut text);
    counters(&mut text);
    quotas(&mut text);
    features(&mut text);
    text
}

fn requests(text: &mut String) {
    text.push_str("\n## Message types\n\n| number | type | state | who | in a transaction |\n|---|---|---|---|---|\n");
    for kind in Kind::ALL {
        let number = kind.number();
        if is_served(*kind) {
            let who = if privilege::is_needed(*kind) {
                "privileged"
            } else {
                "everyone"
            };
            let place = if is_database(*kind) {
                "part of it"
            } else {
                "not part of it"
            };
            writeln!(text, "| {number} | {kind} | served | {who} | {place} |").unwrap();
        } else {
            writeln!(text, "| {number} | {kind} | ENOSYS | | |").unwrap();
        }
    }
    text.push_str("\nEvery other number is answered with ENOSYS.\n");
}

fn commands(text: &mut String) {
    text.push_str("\n## CONTROL commands\n\n| command | parameters |\n|---|---|\n");
    for control::Command {
        name, parameters, ..
    } in control::commands::<crate::AnyStorage>()
    {
        let parameters = parameters.replace('|', "\\|");
        let parameters = if parameters.is_empty() {
            parameters
        } else {
            format!("`{parameters}`")
        };
        writeln!(text, "| `{name}` | {parameters} |").unwrap();
    }
    writeln!(
        text,
        "| `{}` | `-b <size>`, `-d <length> <bytes>`, `-c <command line>`, `-s [-t <seconds>] [-F] [-v <version>]`, `-a`; where the host has room for another image |",
        live_update::NAME
    )
    .unwrap();
    text.push_str("\nEvery other command is answered with EINVAL.\n");
}

fn counters(text: &mut String) {
    text.push_str("\n## Counters\n\nOf each domain, and of all: `CONTROL counters`.\n\n| counter | counts |\n|---|---|\n");
    text.push_str(
        "| `requests-<type>` | requests of this type; `other`: of a type that there is not |\n",
    );
    text.push_str("| `errors-<error>` | requests that were answered with this error |\n");
    for reason in Reason::all() {
        let (consequence, name) = (reason.consequence(), reason.name());
        writeln!(text, "| `{consequence}-{name}` | {consequence}: {reason} |").unwrap();
    }
    for counter in Counter::all() {
        writeln!(text, "| `{}` | {} |", counter.name(), counter.help()).unwrap();
    }
}

fn quotas(text: &mut String) {
    text.push_str("\n## Quotas\n\n| quota | default | limits |\n|---|---|---|\n");
    for quota in Quota::all() {
        let default = Quotas::default().get(quota);
        writeln!(text, "| {} | {default} | {} |", quota.name(), quota.help()).unwrap();
    }
}

fn features(text: &mut String) {
    text.push_str("\n## Features\n\n| bit | name |\n|---|---|\n");
    for (feature, name) in Features::NAMES {
        writeln!(text, "| {} | {name} |", feature.bits().trailing_zeros()).unwrap();
    }
}
