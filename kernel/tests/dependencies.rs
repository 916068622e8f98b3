//! Holds the direction of dependencies: boot → kernel → xenstore, host → kernel, xenstore, and testguest → boot, kernel, xenstore. Nothing points the other way.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

/// The crates of the house, and which of the others each may name.
const MAY_NAME: [(&str, &[&str]); 6] = [
    ("model", &[]),
    ("xenstore", &["model"]),
    ("kernel", &["xenstore"]),
    ("boot", &["kernel"]),
    ("host", &["kernel", "model", "xenstore"]),
    ("testguest", &["boot", "kernel", "xenstore"]),
];

/// The words in a manifest's dependency tables: names of crates, and what renames and paths consist of.
fn words_of_dependencies(manifest: &str) -> Vec<&str> {
    let mut inside = false;
    let mut words = Vec::new();
    for line in manifest.lines() {
        let header = line.trim().strip_prefix('[');
        inside = header.map_or(inside, |header| header.contains("dependencies"));
        if inside {
            words.extend(line.split(|c: char| !c.is_alphanumeric() && c != '_'));
        }
    }
    words
}

/// Every crate's manifest, by the crate's folder.
fn manifests() -> io::Result<BTreeMap<String, String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut manifests = BTreeMap::new();
    for folder in fs::read_dir(root)? {
        let folder = folder?;
        if let Ok(manifest) = fs::read_to_string(folder.path().join("Cargo.toml")) {
            let name = folder.file_name().to_string_lossy().into_owned();
            manifests.insert(name, manifest);
        }
    }
    Ok(manifests)
}

#[test]
fn dependencies_point_one_way() {
    let manifests = manifests().unwrap();
    assert!(manifests.len() >= 3, "{:?}", manifests.keys());
    for (name, manifest) in &manifests {
        let (_, may_name) = MAY_NAME
            .iter()
            .find(|(known, _)| known == name)
            .unwrap_or_else(|| panic!("crate {name} has no place in the house"));
        for word in words_of_dependencies(manifest) {
            let forbidden = manifests.contains_key(word) && !may_name.contains(&word);
            assert!(!forbidden, "{name} names {word}");
        }
    }
}

#[test]
fn every_way_to_name_a_dependency_is_seen() {
    for manifest in [
        "[dependencies]\nkernel.workspace = true",
        "[dev-dependencies]\nkernel = { path = \"../kernel\" }",
        "[target.'cfg(unix)'.dependencies]\nother = { package = \"kernel\" }",
        "[dependencies.kernel]\nworkspace = true",
    ] {
        assert!(
            words_of_dependencies(manifest).contains(&"kernel"),
            "{manifest}"
        );
    }
    let elsewhere =
        "[package]\nname = \"kernel\"\n[dependencies]\nlog = \"0.4\"\n[lints]\nkernel = 1";
    assert!(!words_of_dependencies(elsewhere).contains(&"kernel"));
}
