//! Records of our own: what must survive for a live update to be invisible, and what the documented records have no place for.
//!
//! Other readers skip them as unknown. docs/state-stream.md says what each is for.

use alloc::string::String;
use core::fmt;

use super::Damage;
use super::codec::{Body, Fields};
use super::record::{Permissions, absolute, ordinary};
use crate::ids::DomId;
use crate::path::ABSOLUTE_MAX;
use crate::time::Instant;

/// Where our types begin: "FS" in the upper half.
pub(super) const FIRST: u32 = 0x4653_0000;

macro_rules! records {
    ($($number:literal $variant:ident { $($field:ident: $type:ty,)* },)*) => {
        /// One of our records; the fields stand one behind the other as they are listed.
        #[derive(Clone, Debug)]
        pub(super) enum Own<'a> { $($variant { $($field: $type,)* },)* }

        impl<'a> Own<'a> {
            /// Reads a record, if it is of one of our types.
            pub(super) fn read(kind: u32, mut fields: Fields<'a>) -> Result<Option<Self>, Damage> {
                Ok(match kind.checked_sub(FIRST) {
                    $(Some($number) => Some(Self::$variant { $($field: Field::read(&mut fields)?,)* }),)*
                    _ => None,
                })
            }

            pub(super) fn write(&self, body: &mut Body<'_, '_>) {
                match self {
                    $(Self::$variant { $($field,)* } => { $($field.write(body);)* })*
                }
            }

            /// The type.
            pub(super) fn kind(&self) -> u32 {
                let number = match self { $(Self::$variant { .. } => $number,)* };
                FIRST.saturating_add(number)
            }

            /// Whether this is one of our types.
            pub(super) fn is_one(kind: u32) -> bool {
                Self::name(kind).is_some()
            }

            /// The name of one of our types.
            pub(super) const fn name(kind: u32) -> Option<&'static str> {
                match kind.checked_sub(FIRST) {
                    $(Some($number) => Some(stringify!($variant)),)*
                    _ => None,
                }
            }
        }
    };
}

records! {
    1 Store {
        written: Instant,
        now: Instant,
        generation: u64,
        deaths: u64,
        asked: u64,
        spent: u64,
        clock: u64,
        next_connection: u64,
        next_watch: u64,
        changes: u64,
        begun: u64,
        next_round: Instant,
        step_at: Option<Instant>,
        step_domid: DomId,
        supply: u8,
        next_look: Instant,
        traces: bool,
        is_noted: bool,
        is_release_untold: bool,
        crashes: u64,
    },
    2 Peak { name: Bytes<'a>, value: u64, },
    3 Client {
        conn: u32,
        number: u64,
        is_stopped: bool,
        requests: u64,
        late: u64,
        served: u64,
        deadline: Option<Instant>,
        held_since: Instant,
        held_until: Option<Instant>,
        waiting: Option<u64>,
        last_transaction: u32,
        absent: Numbers<'a>,
        lost: Numbers<'a>,
        outstanding: Numbers<'a>,
        begun: Bytes<'a>,
        crashes: u8,
    },
    4 WatchMark { conn: u32, number: u64, depth: Option<u32>, },
    5 Message {
        conn: u32,
        is_event: bool,
        repeats: bool,
        watch: u64,
        queued: Instant,
        cause: Option<u64>,
        request: u64,
    },
    6 Node {
        path: Near<'a>,
        generation: u64,
        permissions: Permissions<'a>,
        departed: Bytes<'a>,
        value: Bytes<'a>,
    },
    7 DomainMark {
        domid: DomId,
        unique: Option<u128>,
        features: u32,
        told_shutdown: bool,
        told_memory: bool,
        is_noted: bool,
        conflicts: Instant,
        writes: Instant,
    },
    8 Counter { domid: Option<DomId>, name: Bytes<'a>, value: u64, },
    9 Refusals { domid: DomId, name: Bytes<'a>, told: Option<Instant>, untold: u32, },
    10 Begin {
        conn: u32,
        transaction: u32,
        has_failed: bool,
        is_given_up: bool,
        is_overflowed: bool,
        deaths: u64,
        changes: u64,
        number: u64,
        since: Instant,
    },
    11 Request { kind: u32, payload: Bytes<'a>, answer: u8, start: u32, text: Bytes<'a>, },
    12 Touched { path: Near<'a>, is_removed: Option<bool>, made: u32, },
    14 Charge { domid: DomId, nodes: i64, bytes: i64, },
    15 Estate { path: Near<'a>, domid: DomId, is_gained: bool, },
    16 Cut { path: Near<'a>, },
    17 Set {
        path: Near<'a>,
        is_new: bool,
        generation: u64,
        permissions: Permissions<'a>,
        departed: Bytes<'a>,
        value: Bytes<'a>,
    },
    18 End {},
    19 GuestChange { number: u64, domid: DomId, is_alive: bool, path: &'a str, is_listed: bool, },
    20 Turn { connection: u64, ends: u64, begins: u64, served: u64, },
    21 Ready { connection: u64, },
    22 Question {
        ticket: u64,
        requester: u64,
        domid: DomId,
        connection: Option<u64>,
        header: Bytes<'a>,
    },
    23 Wish { ticket: Option<u64>, domid: DomId, connection: Option<u64>, port: u32, },
    24 Host { facts: Bytes<'a>, },
    25 HostLink { conn: u32, facts: Bytes<'a>, },
    26 Check { records: u64, nodes: u64, digest: u64, },
    27 Update { connection: u64, header: Bytes<'a>, },
    28 Crash { connection: Option<u64>, domid: DomId, header: Bytes<'a>, is_answered: bool, is_kept: bool, },
    40 Inside { conn: u32, transaction: u32, },
    42 Noted { path: &'a str, is_removed: bool, },
    44 Lists { policies: Bytes<'a>, layers: Bytes<'a>, },
    41 Journal { dropped_bytes: u64, dropped_lines: u64, commits: u64, text: Bytes<'a>, },
}

impl<'a> Own<'a> {
    /// The path that is to be read behind that of another record, if there is one.
    pub(super) fn near(&self) -> Option<Near<'a>> {
        match self {
            Self::Node { path, .. }
            | Self::Touched { path, .. }
            | Self::Estate { path, .. }
            | Self::Set { path, .. }
            | Self::Cut { path } => Some(*path),
            _ => None,
        }
    }
}

/// What a record is made of.
trait Field<'a>: Sized {
    fn read(fields: &mut Fields<'a>) -> Result<Self, Damage>;
    fn write(&self, body: &mut Body<'_, '_>);
}

/// Bytes behind their length.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl fmt::Debug for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl<'a> Field<'a> for Bytes<'a> {
    fn read(fields: &mut Fields<'a>) -> Result<Self, Damage> {
        fields.block().map(Self)
    }

    fn write(&self, body: &mut Body<'_, '_>) {
        body.block(self.0);
    }
}

/// The path of a node as it differs from that of the node before: what both begin with, in bytes, and the rest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Near<'a> {
    shared: usize,
    rest: &'a str,
}

impl<'a> Near<'a> {
    /// How a path is written behind one of `before`: both have as many names in common as can be, but for the last.
    pub(super) fn of(path: &'a str, before: &str) -> Self {
        let same = path.bytes().zip(before.bytes());
        let same = same.take_while(|(own, other)| own == other).count();
        let is_end = |at: usize| at == before.len() || before.as_bytes().get(at) == Some(&b'/');
        let slashes = path.bytes().enumerate().rev();
        let mut ends = slashes.filter(|(at, byte)| *byte == b'/' && *at <= same && is_end(*at));
        let shared = ends.next().map_or(0, |(at, _)| at);
        let rest = path.get(shared..).unwrap_or(path);
        Self { shared, rest }
    }

    pub(super) fn new(shared: usize, rest: &'a str) -> Self {
        Self { shared, rest }
    }

    /// What it has in common with the one before, in bytes, and the rest.
    pub(super) fn parts(self) -> (usize, &'a str) {
        (self.shared, self.rest)
    }

    /// Makes the path of the one before it.
    ///
    /// # Errors
    /// What they have in common does not end where a name ends, or the path is too long.
    pub(super) fn follow(self, path: &mut String) -> Result<(), Damage> {
        let Self { shared, rest } = self;
        if shared > 0 {
            let is_end = shared == path.len() || path.as_bytes().get(shared) == Some(&b'/');
            let is_below = rest.starts_with('/') && rest.len() > 1;
            if !is_end || !is_below || path.starts_with('@') || path.len() == 1 {
                return Err(Damage::Path);
            }
        }
        if shared.saturating_add(rest.len()) > ABSOLUTE_MAX {
            return Err(Damage::Path);
        }
        path.truncate(shared);
        path.push_str(rest);
        Ok(())
    }
}

impl<'a> Field<'a> for Near<'a> {
    fn read(fields: &mut Fields<'a>) -> Result<Self, Damage> {
        let shared = fields.u16()?.into();
        let len = fields.u16()?.into();
        let rest = absolute(fields.bytes(len)?)?;
        Ok(Self { shared, rest })
    }

    fn write(&self, body: &mut Body<'_, '_>) {
        body.len16(self.shared);
        body.len16(self.rest.len());
        body.bytes(self.rest.as_bytes());
    }
}

/// A list of numbers behind its length in bytes.
#[derive(Clone, Copy)]
pub(super) struct Numbers<'a>(pub(super) &'a [u8]);

impl<'a> Numbers<'a> {
    pub(super) fn iter(self) -> impl Iterator<Item = u64> {
        let numbers = self.0.as_chunks::<8>().0.iter();
        numbers.map(|number| u64::from_le_bytes(*number))
    }
}

impl fmt::Debug for Numbers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> Field<'a> for Numbers<'a> {
    fn read(fields: &mut Fields<'a>) -> Result<Self, Damage> {
        let bytes = fields.block()?;
        if bytes.len().is_multiple_of(8) {
            Ok(Self(bytes))
        } else {
            Err(Damage::Field)
        }
    }

    fn write(&self, body: &mut Body<'_, '_>) {
        body.block(self.0);
    }
}

impl<'a> Field<'a> for Permissions<'a> {
    fn read(fields: &mut Fields<'a>) -> Result<Self, Damage> {
        match fields.u16()? {
            0 => Err(Damage::Permission),
            count => Self::read(fields, count),
        }
    }

    fn write(&self, body: &mut Body<'_, '_>) {
        body.len16(self.as_bytes().len() / 4);
        body.bytes(self.as_bytes());
    }
}

/// An absolute path or a special name.
impl<'a> Field<'a> for &'a str {
    fn read(fields: &mut Fields<'a>) -> Result<Self, Damage> {
        absolute(fields.block()?)
    }

    fn write(&self, body: &mut Body<'_, '_>) {
        body.block(self.as_bytes());
    }
}

impl<'a> Field<'a> for DomId {
    fn read(fields: &mut Fields<'a>) -> Result<Self, Damage> {
        ordinary(fields.u16()?)
    }

    fn write(&self, body: &mut Body<'_, '_>) {
        body.u16(self.get());
    }
}

impl<'a> Field<'a> for Instant {
    fn read(fields: &mut Fields<'a>) -> Result<Self, Damage> {
        fields.u64().map(Self)
    }

    fn write(&self, body: &mut Body<'_, '_>) {
        body.u64(self.0);
    }
}

impl<'a> Field<'a> for bool {
    fn read(fields: &mut Fields<'a>) -> Result<Self, Damage> {
        match fields.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Damage::Field),
        }
    }

    fn write(&self, body: &mut Body<'_, '_>) {
        body.u8(u8::from(*self));
    }
}

/// A flag, and the value if there is one.
impl<'a, T: Field<'a>> Field<'a> for Option<T> {
    fn read(fields: &mut Fields<'a>) -> Result<Self, Damage> {
        let is_there = bool::read(fields)?;
        is_there.then(|| T::read(fields)).transpose()
    }

    fn write(&self, body: &mut Body<'_, '_>) {
        self.is_some().write(body);
        if let Some(value) = self {
            value.write(body);
        }
    }
}

macro_rules! numbers {
    ($($type:ident)*) => {
        $(impl<'a> Field<'a> for $type {
            fn read(fields: &mut Fields<'a>) -> Result<Self, Damage> {
                fields.$type()
            }

            fn write(&self, body: &mut Body<'_, '_>) {
                body.bytes(&self.to_le_bytes());
            }
        })*
    };
}

numbers! { u8 u16 u32 u64 u128 i64 }

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_shares_whole_names_with_the_one_before() {
        for (before, path, shared, rest) in [
            ("", "/", 0, "/"),
            ("/", "/a", 0, "/a"),
            ("/a", "/a/b", 2, "/b"),
            ("/a/b", "/a/bc", 2, "/bc"),
            ("/a/bc", "/a/b", 2, "/b"),
            ("/a/b/c/d", "/a/b", 2, "/b"),
            ("/a/b", "/a/b", 2, "/b"),
            ("/a/b", "/b", 0, "/b"),
            ("/a", "@releaseDomain", 0, "@releaseDomain"),
            ("@releaseDomain", "/a", 0, "/a"),
        ] {
            let near = Near::of(path, before);
            assert_eq!((near.shared, near.rest), (shared, rest), "{before} {path}");
        }
    }

    #[test]
    fn what_is_no_path_behind_the_one_before_is_refused() {
        let long = "/".to_owned() + &"a".repeat(ABSOLUTE_MAX - 1);
        for (before, shared, rest) in [
            ("/ab/c", 2, "/x"),
            ("/ab", 4, "/x"),
            ("/", 1, "/x"),
            ("/a", 2, "/"),
            ("/a", 2, "@x"),
            ("@x", 2, "/a"),
            ("", 1, "/a"),
            (&long, ABSOLUTE_MAX, "/x"),
        ] {
            let mut path = before.to_owned();
            let read = Near { shared, rest }.follow(&mut path);
            assert_eq!(read, Err(Damage::Path), "{before} {shared} {rest}");
        }
    }

    proptest! {
        #[test]
        fn paths_that_are_written_are_read(
            paths in prop::collection::vec(
                prop_oneof![
                    Just("/".to_owned()),
                    Just("@introduceDomain".to_owned()),
                    "(/[ab]{1,2}){1,5}",
                ],
                1..20,
            ),
        ) {
            let (mut before, mut read) = (String::new(), String::new());
            for path in paths {
                let near = Near::of(&path, &before);
                prop_assert_eq!(near.follow(&mut read), Ok(()));
                prop_assert_eq!(&read, &path);
                before = path;
            }
        }
    }
}
