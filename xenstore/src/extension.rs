//! What policies and layers have in common: how they see nodes, where they keep what must last, and the words that name them.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::ids::DomId;
use crate::path::{Path, PathRef};
use crate::storage::Storage;
use crate::time::Instant;
use crate::wire::decimal;

/// Policies, or layers, that can be there at a time.
pub(crate) const LIST_MAX: usize = 16;
/// How much of a word a message repeats, in bytes.
const SHOWN_MAX: usize = 64;
/// Longest time that a word can name.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Nodes, as somebody sees them now. Paths are absolute.
pub trait View {
    /// The value of a node, if there is one.
    fn value(&self, path: &str) -> Option<&[u8]>;

    /// Whose a node is, if there is one.
    fn owner(&self, path: &str) -> Option<DomId>;

    /// Visits the names of a node's children, in order of their creation, while the visitor wants more.
    fn children(&self, path: &str, each: &mut dyn FnMut(&str) -> bool);
}

impl<S: Storage> View for S {
    fn value(&self, path: &str) -> Option<&[u8]> {
        let node = self.get(PathRef::known(path))?;
        Some(node.value.as_bytes())
    }

    fn owner(&self, path: &str) -> Option<DomId> {
        let node = self.get(PathRef::known(path))?;
        Some(node.acl.owner().domid)
    }

    fn children(&self, path: &str, each: &mut dyn FnMut(&str) -> bool) {
        if let Some(node) = self.get(PathRef::known(path)) {
            node.children().names_from(0, |name, _| each(name));
        }
    }
}

/// The committed nodes, for those who may change them on the store's own account: there, what must last is kept, so that it survives live
/// update and can be looked at. Nodes that are made belong to the privileged domain alone; watchers hear of every change.
pub trait Keep {
    /// The nodes.
    fn view(&self) -> &dyn View;

    /// Gives a node a value; makes it, and what is missing above it, if need be. Not if the path is not well formed.
    fn write(&mut self, path: &str, value: &[u8]);

    /// As [`Keep::write`]; nodes that are made belong to a domain alone, if it is known.
    fn give(&mut self, path: &str, value: &[u8], owner: DomId);

    /// Cuts a node off with all below it, if it is there. `/` stays.
    fn remove(&mut self, path: &str);

    /// Whether there is a domain with this domid, so that its end will be noticed.
    fn is_known(&self, domid: DomId) -> bool;

    /// When this is.
    fn now(&self) -> Instant;
}

/// A word that names no policy or layer, or not well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WordError {
    /// What is wrong, printable and not too long.
    pub word: String,
    /// Why.
    pub why: &'static str,
}

impl WordError {
    pub(crate) fn new(word: &[u8], why: Why) -> Self {
        let shown = word.get(..SHOWN_MAX).unwrap_or(word);
        let cut = if shown.len() < word.len() { "..." } else { "" };
        let word = format!("\"{}{cut}\"", shown.escape_ascii());
        Self { word, why }
    }
}

impl fmt::Display for WordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.word, self.why)
    }
}

/// A policy or layer that can be had.
pub(crate) struct Sort<T: ?Sized> {
    pub(crate) name: &'static str,
    pub(crate) parameters: &'static str,
    pub(crate) help: &'static str,
    pub(crate) make: fn(&Item<'_>) -> Result<Box<T>, Why>,
}

/// What each of them is for, a line each.
pub(crate) fn help<T: ?Sized>(sorts: &[Sort<T>]) -> String {
    let line = |sort: &Sort<T>| {
        let colon = if sort.parameters.is_empty() { "" } else { ":" };
        format!("{}{colon}{}: {}\n", sort.name, sort.parameters, sort.help)
    };
    sorts.iter().map(line).collect()
}

/// What is wrong with a word.
pub(crate) type Why = &'static str;

/// One policy or layer of a list, as `name`, `name:parameter`, or `name:parameter,name=value,...`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item<'w> {
    /// All of it.
    pub(crate) word: &'w str,
    pub(crate) name: &'w str,
    /// What is behind the colon.
    parameters: &'w str,
}

impl<'w> Item<'w> {
    /// Reads an item.
    fn parse(word: &'w str) -> Self {
        let (name, parameters) = word.split_once(':').unwrap_or((word, ""));
        Self {
            word,
            name,
            parameters,
        }
    }

    /// Its parameters, in order: each with its name, if it has one, and its value.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = (Option<&'w str>, &'w str)> + use<'w> {
        let given = self.parameters.split(',').filter(|given| !given.is_empty());
        given.map(|given| match given.split_once('=') {
            Some((name, value)) => (Some(name), value),
            None => (None, given),
        })
    }

    /// Nothing, for what takes no parameters.
    pub(crate) fn without_parameters(&self) -> Result<(), Why> {
        if self.parameters.is_empty() {
            Ok(())
        } else {
            Err("it takes no parameters")
        }
    }
}

/// The items of a list, which commas part. A part with `=` before any colon belongs to the item before it.
pub(crate) fn items(list: &str) -> Vec<Item<'_>> {
    let mut items: Vec<Item<'_>> = Vec::new();
    let mut begin = 0_usize;
    let mut end = 0_usize;
    for part in list.split(',') {
        let is_more = part
            .split(':')
            .next()
            .is_some_and(|head| head.contains('='));
        let part_end = begin_of_next(end, part);
        if is_more && let Some(last) = items.last_mut() {
            *last = Item::parse(list.get(begin..part_end).unwrap_or_default());
        } else {
            begin = end;
            items.push(Item::parse(part));
        }
        end = part_end.saturating_add(1);
    }
    items
}

fn begin_of_next(start: usize, part: &str) -> usize {
    start.saturating_add(part.len())
}

/// Reads a number of at most `max`.
pub(crate) fn number(text: &str, max: u32) -> Result<u32, Why> {
    decimal(text.as_bytes(), max).map_err(|_| "a number is too great, or none")
}

/// Reads a time: a number with `us`, `ms` or `s`.
pub(crate) fn time(text: &str) -> Result<Duration, Why> {
    let wrong = "it takes times such as 500us, 20ms or 3s, up to 60s";
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let count = decimal(digits.as_bytes(), u32::MAX).map_err(|_| wrong)?;
    let unit = match text.get(digits.len()..) {
        Some("us") => Duration::from_micros(1),
        Some("ms") => Duration::from_millis(1),
        Some("s") => Duration::from_secs(1),
        _ => return Err(wrong),
    };
    let time = unit.checked_mul(count).filter(|time| *time <= TIME_MAX);
    time.ok_or(wrong)
}

/// Reads an absolute path of a node.
pub(crate) fn node_path(text: &str) -> Result<Path, Why> {
    Path::parse(text.as_bytes(), DomId::new(0), 0)
        .ok()
        .filter(|_| text.starts_with('/'))
        .ok_or("it takes the path of a node, which begins with /")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &str) -> Vec<&str> {
        items(list).iter().map(|item| item.word).collect()
    }

    #[test]
    fn commas_part_items_and_their_parameters() {
        assert_eq!(words("legacy"), ["legacy"]);
        assert_eq!(words("a,b:1,c"), ["a", "b:1", "c"]);
        assert_eq!(
            words("a,b:x=1,y=2,c:3,z=/p:q,d"),
            ["a", "b:x=1,y=2", "c:3,z=/p:q", "d"]
        );
        assert_eq!(words(""), [""]);
        assert_eq!(words("x=1"), ["x=1"]);
        assert_eq!(words(",a,"), ["", "a", ""]);
        let all = items("b:5,y=2,z=");
        let parameters: Vec<_> = all[0].parameters().collect();
        assert_eq!(all[0].name, "b");
        assert_eq!(parameters, [(None, "5"), (Some("y"), "2"), (Some("z"), "")]);
    }

    #[test]
    fn times_have_units_and_a_bound() {
        assert_eq!(time("500us"), Ok(Duration::from_micros(500)));
        assert_eq!(time("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(time("60s"), Ok(Duration::from_secs(60)));
        for wrong in ["", "5", "ms", "61s", "5h", "-5ms", "4294967296us", "5 ms"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_is_shown_printable_and_short() {
        let error = WordError::new(b"x\n\xff", "no");
        assert_eq!(format!("{error}"), r#""x\n\xff": no"#);
        let error = WordError::new(&[b'a'; 100], "no");
        assert!(error.word.ends_with("...\"") && error.word.len() < 80);
    }
}
