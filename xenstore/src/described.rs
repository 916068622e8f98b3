//! Keeps the tables of `docs/policies.md` in step with those in the code.
//!
//! `UPDATE_DOCS=1 cargo test -p xenstore described` writes them.

use std::fmt::Write;
use std::path::Path;

use crate::{layer, policy};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/policies.md");

#[test]
fn the_guide_lists_the_policies_and_layers_that_there_are() {
    let document = Path::new(DOCUMENT);
    let text = std::fs::read_to_string(document).unwrap_or_default();
    let policies = policy::SORTS.iter();
    let policies = policies.map(|sort| (sort.name, sort.parameters, sort.help));
    let layers = layer::SORTS.iter();
    let layers = layers.map(|sort| (sort.name, sort.parameters, sort.help));
    let expected = with_table(&text, "policies", policies.collect());
    let expected = with_table(&expected, "layers", layers.collect());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(document, &expected).unwrap();
    }
    let found = std::fs::read_to_string(document).unwrap_or_default();
    assert!(
        found == expected,
        "docs/policies.md is not in step; UPDATE_DOCS=1 cargo test -p xenstore described writes it"
    );
}

/// The text with a table between the marks of this name.
fn with_table(text: &str, mark: &str, rows: Vec<(&str, &str, &str)>) -> String {
    let begin =
        format!("<!-- {mark}: written by UPDATE_DOCS=1 cargo test -p xenstore described -->\n");
    let (before, rest) = text.split_once(&begin).expect("the document has the mark");
    let (_, after) = rest
        .split_once("<!-- end -->")
        .expect("the table has an end");
    let mut table = String::from("| name | parameters | |\n|---|---|---|\n");
    for (name, parameters, help) in rows {
        let parameters = match parameters {
            "" => String::new(),
            parameters => format!("`{}`", parameters.replace('|', "\\|")),
        };
        writeln!(table, "| `{name}` | {parameters} | {help} |").unwrap();
    }
    format!("{before}{begin}{table}{}{after}", "<!-- end -->")
}
