//! Keeps the list of transcripts in `docs/compatibility.md` in step with the table that C `xenstored` is tested against.

mod differences;

use std::path::Path;

use differences::{DIFFERENCES, Difference, Seen};

const HEADING: &str = "## Transcripts that C xenstored does not pass\n";
const INTRODUCTION: &str = "
Debian's C xenstored (4.17) plays the transcripts in two ways: started without a hypervisor, those in which only domain 0 speaks
(`scripts/test-peer`); and as the daemon of the real dom0, those from its socket and from two guests (`scripts/run-qemu --peer
--transcripts`; [what that leaves out](../xenstore/tests/transcripts/README.md)). These come out otherwise; all others come out the same.
A case may differ in more than the first answer that does.
";

#[test]
fn the_document_lists_what_the_peer_does_otherwise() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/compatibility.md");
    let written = std::fs::read_to_string(&path).unwrap();
    let (before, _) = written.split_once(HEADING).unwrap_or((&written, ""));
    let tables: String = DIFFERENCES.into_iter().map(table).collect();
    let wanted = format!("{}\n\n{HEADING}{INTRODUCTION}{tables}", before.trim_end());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    } else {
        assert!(
            written == wanted,
            "docs/compatibility.md is not in step; UPDATE_DOCS=1 cargo test -p host --test compatibility writes it"
        );
    }
}

/// A row for each reason, with the cases that it has.
fn table((seen, differences): (Seen, &[Difference])) -> String {
    let title = match seen {
        Seen::Everywhere => "where only domain 0 speaks",
        Seen::WithoutXen => "only without a hypervisor",
        Seen::InXen => "with guests",
        Seen::Spared => "not played in dom0, for its own sake",
    };
    let reasons = differences.chunk_by(|(_, _, one), (_, _, other)| one == other);
    let rows: String = reasons.map(row).collect();
    format!("\n| C xenstored, {title} | cases |\n|---|---|\n{rows}")
}

fn row(differences: &[Difference]) -> String {
    let cases: Vec<String> = differences
        .iter()
        .map(|(file, case, _)| format!("{}: {case}", file.trim_end_matches(".txt")))
        .collect();
    let reason = differences.first().map_or("", |(_, _, reason)| reason);
    format!("| {reason} | {} |\n", cases.join("; "))
}
