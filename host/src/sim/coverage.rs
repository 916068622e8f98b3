//! What was exercised: how often each type of request had each outcome.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use xenstore::wire::Kind;

/// The outcome of a request that went well.
const OK: &str = "OK";
const OUTCOMES: [&str; 13] = [
    OK, "EINVAL", "EACCES", "ENOENT", "EEXIST", "ENOSPC", "ENOMEM", "EAGAIN", "EBUSY", "EPERM",
    "E2BIG", "ENOSYS", "EIO",
];

/// What each type can come to (protocol.md section 3); types that are none are counted as one.
const POSSIBLE: [(Option<Kind>, &[&str]); 26] = [
    (Some(Kind::Control), &["OK", "EINVAL", "EACCES", "ENOENT"]),
    (Some(Kind::Directory), READ_OUTCOMES),
    (
        Some(Kind::Read),
        &["OK", "EINVAL", "EACCES", "ENOENT", "ENOSPC"],
    ),
    (
        Some(Kind::GetPerms),
        &["OK", "EINVAL", "EACCES", "ENOENT", "ENOSPC"],
    ),
    (
        Some(Kind::Watch),
        &["OK", "EINVAL", "EEXIST", "ENOSPC", "ENOMEM"],
    ),
    (Some(Kind::Unwatch), &["OK", "EINVAL", "ENOENT"]),
    (
        Some(Kind::TransactionStart),
        &["OK", "ENOENT", "EBUSY", "ENOSPC", "ENOMEM"],
    ),
    (
        Some(Kind::TransactionEnd),
        &["OK", "EINVAL", "ENOENT", "EAGAIN", "ENOSPC", "ENOMEM"],
    ),
    (Some(Kind::Introduce), &["OK", "EINVAL", "EACCES", "ENOENT"]),
    (Some(Kind::Release), &["OK", "EINVAL", "EACCES", "ENOENT"]),
    (Some(Kind::GetDomainPath), &["OK", "EINVAL", "ENOENT"]),
    (Some(Kind::Write), CHANGE_OUTCOMES),
    (Some(Kind::Mkdir), CHANGE_OUTCOMES),
    (
        Some(Kind::Rm),
        &["OK", "EINVAL", "EACCES", "ENOENT", "ENOSPC"],
    ),
    (
        Some(Kind::SetPerms),
        &["OK", "EINVAL", "EACCES", "ENOENT", "EPERM", "ENOSPC"],
    ),
    (
        Some(Kind::IsDomainIntroduced),
        &["OK", "EINVAL", "EACCES", "ENOENT"],
    ),
    (Some(Kind::Resume), &["OK", "EINVAL", "EACCES", "ENOENT"]),
    (Some(Kind::SetTarget), &["OK", "EINVAL", "EACCES", "ENOENT"]),
    (Some(Kind::ResetWatches), &["OK", "ENOENT"]),
    (
        Some(Kind::DirectoryPart),
        &["OK", "EINVAL", "EACCES", "ENOENT", "ENOSPC"],
    ),
    (
        Some(Kind::GetFeature),
        &["OK", "EINVAL", "EACCES", "ENOENT"],
    ),
    (
        Some(Kind::SetFeature),
        &["OK", "EINVAL", "EACCES", "ENOENT", "EBUSY"],
    ),
    (Some(Kind::GetQuota), &["OK", "EINVAL", "EACCES", "ENOENT"]),
    (Some(Kind::SetQuota), &["OK", "EINVAL", "EACCES", "ENOENT"]),
    (Some(Kind::Restrict), &["ENOSYS"]),
    (None, &["ENOSYS"]),
];
const READ_OUTCOMES: &[&str] = &["OK", "EINVAL", "EACCES", "ENOENT", "ENOSPC", "E2BIG"];
const CHANGE_OUTCOMES: &[&str] = &["OK", "EINVAL", "EACCES", "ENOENT", "ENOSPC", "ENOMEM"];

/// Counts of one run or of many.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    outcomes: BTreeMap<(Option<Kind>, &'static str), u64>,
    happenings: BTreeMap<&'static str, u64>,
}

impl Coverage {
    pub(crate) fn count(&mut self, kind: u32, refused: Option<&'static str>) {
        let kind = Kind::from_number(kind);
        *self
            .outcomes
            .entry((kind, refused.unwrap_or(OK)))
            .or_default() += 1;
    }

    /// Counts something else that happened.
    pub(crate) fn happened(&mut self, what: &'static str) {
        *self.happenings.entry(what).or_default() += 1;
    }

    /// Adds what another run has counted.
    pub fn add(&mut self, other: &Self) {
        for (key, count) in &other.outcomes {
            *self.outcomes.entry(*key).or_default() += count;
        }
        for (key, count) in &other.happenings {
            *self.happenings.entry(*key).or_default() += count;
        }
    }

    /// How many requests were served.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.outcomes.values().sum()
    }

    /// How many of the outcomes that there can be there were, and how many there can be.
    #[must_use]
    pub fn exercised(&self) -> (usize, usize) {
        let possible = POSSIBLE.iter().map(|(_, outcomes)| outcomes.len()).sum();
        (possible - self.missing().len(), possible)
    }

    /// Every type with each outcome, then what there was not, then what else happened.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!("{:<21}", "");
        for outcome in OUTCOMES {
            let _ = write!(text, "{outcome:>9}");
        }
        for (kind, _) in POSSIBLE {
            let _ = write!(text, "\n{:<21}", name(kind));
            for outcome in OUTCOMES {
                match self.outcomes.get(&(kind, outcome)) {
                    Some(count) => _ = write!(text, "{count:>9}"),
                    None => _ = write!(text, "{:>9}", "."),
                }
            }
        }
        let missing = self.missing();
        let _ = write!(text, "\n\nnever seen: ");
        if missing.is_empty() {
            text.push_str("nothing");
        }
        text.push_str(&missing.join(", "));
        text.push_str("\nand: ");
        let happenings = self.happenings.iter();
        let happenings: Vec<String> = happenings
            .map(|(what, count)| format!("{count} {what}"))
            .collect();
        text.push_str(&happenings.join(", "));
        text.push('\n');
        text
    }

    fn missing(&self) -> Vec<String> {
        let all = POSSIBLE
            .iter()
            .flat_map(|(kind, outcomes)| outcomes.iter().map(move |outcome| (*kind, *outcome)));
        let missing = all.filter(|key| !self.outcomes.contains_key(key));
        missing
            .map(|(kind, outcome)| format!("{} {outcome}", name(kind)))
            .collect()
    }
}

fn name(kind: Option<Kind>) -> &'static str {
    kind.map_or("other types", Kind::name)
}
