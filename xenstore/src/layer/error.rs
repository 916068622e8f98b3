//! The layer `error`: some requests fail, for those who test what their programs do then.

use alloc::boxed::Box;

use super::scope::{Group, Who};
use super::{Call, Gate, Layer};
use crate::extension::{Item, View, Why, node_path, number};
use crate::path::Path;
use crate::wire::Errno;

/// What fails, and how often.
#[derive(Debug)]
pub(super) struct Error {
    errno: Errno,
    /// Of 100.
    percentage: u32,
    group: Option<Group>,
    who: Who,
    /// Only while this node has a value other than `0`.
    only_while: Option<Path>,
    /// The state of the generator.
    random: u64,
}

impl Error {
    pub(super) fn make(item: &Item<'_>) -> Result<Box<dyn Layer>, Why> {
        let wrong = "it takes an error and how often, such as error:EAGAIN@1%";
        let mut parameters = item.parameters();
        let Some((None, what)) = parameters.next() else {
            return Err(wrong);
        };
        let (errno, percentage) = what.split_once('@').unwrap_or((what, "100%"));
        let percentage = percentage.strip_suffix('%').ok_or(wrong)?;
        let errno = Errno::ALL.iter().find(|known| known.name() == errno);
        let mut error = Self {
            errno: *errno.ok_or("there is no such error")?,
            percentage: number(percentage, 100)?,
            group: None,
            who: Who::default(),
            only_while: None,
            random: 0,
        };
        for (name, value) in parameters {
            match name {
                Some("kind") => {
                    let group = Group::parse(value);
                    error.group = Some(group.ok_or("there is no such kind of requests")?);
                }
                Some("who") => error.who = Who::parse(value)?,
                Some("seed") => error.random = number(value, u32::MAX)?.into(),
                Some("while") => error.only_while = Some(node_path(value)?),
                _ => return Err("it takes kind=, who=, seed= and while= besides"),
            }
        }
        Ok(Box::new(error))
    }

    /// Whether this time is one of those (SplitMix64).
    fn strikes(&mut self) -> bool {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        bits % 100 < u64::from(self.percentage)
    }
}

impl Layer for Error {
    fn name(&self) -> &'static str {
        "error"
    }

    fn admit(&mut self, call: &Call<'_>, store: &dyn View) -> Gate {
        let Some(group) = self.who.group(call) else {
            return Gate::Pass;
        };
        let is_on = |path: &Path| {
            let value = store.value(path.as_str());
            value.is_some_and(|value| value != b"0")
        };
        let is_meant = self.group.is_none_or(|meant| meant == group)
            && self.only_while.as_ref().is_none_or(is_on);
        if is_meant && self.strikes() {
            Gate::Refuse(self.errno)
        } else {
            Gate::Pass
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_fail_as_were_asked_for_and_a_seed_tells_which() {
        let error = |percentage, random| Error {
            errno: Errno::EIO,
            percentage,
            group: None,
            who: Who::All,
            only_while: None,
            random,
        };
        let count = |percentage, seed| {
            let mut error = error(percentage, seed);
            (0..100_000).filter(|_| error.strikes()).count()
        };
        assert_eq!(count(0, 1), 0);
        assert_eq!(count(100, 1), 100_000);
        for percentage in [1, 10, 50] {
            let expected = usize::try_from(percentage).unwrap() * 1000;
            let found = count(percentage, 1);
            assert!(found.abs_diff(expected) < 600, "{found} of {expected}");
            assert_eq!(found, count(percentage, 1));
            assert_ne!(found, count(percentage, 2));
        }
    }
}
