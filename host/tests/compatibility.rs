//! Keeps the list of transcripts in `docs/compatibility.md` in step with the table that C `xenstored` is tested against.

mod differences;

use std::path::Path;

use differences::DIFFERENCES;

const HEADING: &str = "## Transcripts that C xenstored does not pass\n";
const INTRODUCTION: &str = "
Debian's C xenstored (4.17), started without a hypervisor, plays the transcripts in which only domain 0 speaks (`scripts/test-peer`).
These come out otherwise; all others come out the same. A case may differ in more than the first answer that does.

| C xenstored | cases |
|---|---|
";

#[test]
fn the_document_lists_what_the_peer_does_otherwise() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/compatibility.md");
    let written = std::fs::read_to_string(&path).unwrap();
    let (before, _) = written.split_once(HEADING).unwrap_or((&written, ""));
    let wanted = format!("{}\n\n{HEADING}{INTRODUCTION}{}", before.trim_end(), rows());
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
fn rows() -> String {
    let reasons = DIFFERENCES.chunk_by(|(_, _, one), (_, _, other)| one == other);
    reasons.map(row).collect()
}

fn row(differences: &[(&str, &str, &str)]) -> String {
    let cases: Vec<String> = differences
        .iter()
        .map(|(file, case, _)| format!("{}: {case}", file.trim_end_matches(".txt")))
        .collect();
    let reason = differences.first().map_or("", |(_, _, reason)| reason);
    format!("| {reason} | {} |\n", cases.join("; "))
}
