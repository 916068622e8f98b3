//! The text of a journal: a line for each change, in a ring that forgets its oldest lines.
//!
//! A line is `<commit>.<number>/<of so many> <ms> set <path> <permissions> <value>`, or `... rm <path>`: so a reader knows which changes were
//! one commit, and whether it has them all. Positions count the bytes of all lines that there ever were, for readers who come back.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use crate::faults;
use crate::path::PathRef;
use crate::time::Instant;

/// Most bytes of all lines together.
pub(crate) const LOG_BYTES_MAX: usize = 256 * 1024;

/// Bytes of a piece of the text in a state stream.
const PIECE_BYTES: usize = 4096;

/// The latest lines.
#[derive(Default)]
pub struct ChangeLog {
    bytes: VecDeque<u8>,
    /// Bytes of the lines that were dropped.
    dropped_bytes: u64,
    dropped_lines: u64,
    commits: u64,
    /// Where the lines of a commit begin that is not known to be whole.
    unfinished: Option<u64>,
}

/// One change.
pub(super) enum Edit<'a> {
    Set {
        path: PathRef<'a>,
        value: &'a [u8],
        /// Each entry with its NUL.
        permissions: String,
    },
    Removed(PathRef<'a>),
}

impl ChangeLog {
    /// Writes down the changes of a commit, in place of what a crash may have left of it. It counts when it is [finished](Self::finish).
    pub(super) fn append<'a>(
        &mut self,
        now: Instant,
        edits: impl Iterator<Item = Edit<'a>> + Clone,
    ) {
        self.take_back();
        let count = edits.clone().count();
        if count == 0 {
            return;
        }
        self.unfinished = Some(self.end());
        self.commits = self.commits.saturating_add(1);
        let commit = self.commits;
        let ms = now.0 / 1_000_000;
        for (number, edit) in (1_u64..).zip(edits) {
            let written = self.line(format_args!("{commit}.{number}/{count} {ms} {edit}\n"));
            if written.is_err() {
                self.dropped_lines = self.dropped_lines.saturating_add(1);
            }
            faults::may_crash();
        }
    }

    /// The commit that was written last is whole, and its changes are not noted any more.
    pub(super) fn finish(&mut self) {
        self.unfinished = None;
    }

    /// Takes back what there is of a commit that is to be written again.
    fn take_back(&mut self) {
        if let Some(start) = self.unfinished.take() {
            let kept = start.saturating_sub(self.dropped_bytes);
            self.bytes
                .truncate(usize::try_from(kept).unwrap_or(usize::MAX));
            self.commits = self.commits.saturating_sub(1);
        }
    }

    /// Writes a line; drops old ones if need be. Without memory for the ring there is none: then the line counts as dropped.
    fn line(&mut self, line: fmt::Arguments<'_>) -> fmt::Result {
        let missing = LOG_BYTES_MAX.saturating_sub(self.bytes.capacity());
        if missing > 0 {
            self.bytes
                .try_reserve_exact(LOG_BYTES_MAX)
                .map_err(|_| fmt::Error)?;
        }
        Tail(self).write_fmt(line)
    }

    /// Drops the oldest line.
    fn drop_line(&mut self) {
        let end = self.bytes.iter().position(|byte| *byte == b'\n');
        let len = end.map_or(self.bytes.len(), |end| end.saturating_add(1));
        self.bytes.drain(..len);
        self.dropped_bytes = self.dropped_bytes.saturating_add(wide(len));
        self.dropped_lines = self.dropped_lines.saturating_add(1);
    }

    /// What there is.
    pub(crate) fn report(&self) -> String {
        let Self {
            commits,
            dropped_lines,
            ..
        } = self;
        let (first, end) = (self.first(), self.end());
        format!(
            "commits: {commits}\nbytes: {first} to {end}, at most {LOG_BYTES_MAX} of them\nlines dropped: {dropped_lines}\n"
        )
    }

    /// The position of the first byte that is kept.
    pub(crate) fn first(&self) -> u64 {
        self.dropped_bytes
    }

    /// The position behind the last one.
    pub(crate) fn end(&self) -> u64 {
        self.dropped_bytes.saturating_add(wide(self.bytes.len()))
    }

    /// Bytes that are kept.
    pub(crate) fn len(&self) -> u64 {
        wide(self.bytes.len())
    }

    /// At most so many bytes from a position on, or from the first one that is kept, with where they begin. `None` if the position is behind
    /// the end.
    pub(crate) fn read(&self, from: u64, most: usize) -> Option<(u64, String)> {
        let start = from.max(self.first());
        if start > self.end() {
            return None;
        }
        let skipped = usize::try_from(start.saturating_sub(self.first())).ok()?;
        let bytes = self.bytes.iter().skip(skipped).take(most);
        Some((start, bytes.map(|byte| char::from(*byte)).collect()))
    }

    /// For another instance of the server: what was dropped, and committed.
    pub(crate) fn counts(&self) -> [u64; 3] {
        [self.dropped_bytes, self.dropped_lines, self.commits]
    }

    /// The text for another instance, in pieces of [`PIECE_BYTES`]: at least one, wherever the ring begins.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Vec<u8>> {
        let starts = (0..self.bytes.len().max(1)).step_by(PIECE_BYTES);
        let piece = |start| self.bytes.iter().skip(start).take(PIECE_BYTES).copied();
        starts.map(move |start| piece(start).collect())
    }

    /// Goes on where another instance of the server was.
    pub(crate) fn restore(&mut self, [dropped_bytes, dropped_lines, commits]: [u64; 3]) {
        (self.dropped_bytes, self.dropped_lines) = (dropped_bytes, dropped_lines);
        self.commits = commits;
    }

    /// Takes text of another instance of the server, behind what it has.
    pub(crate) fn restore_text(&mut self, text: &str) {
        if self.line(format_args!("{text}")).is_err() {
            self.dropped_bytes = self.dropped_bytes.saturating_add(wide(text.len()));
        }
    }
}

/// Where the next line is written.
struct Tail<'a>(&'a mut ChangeLog);

impl Write for Tail<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let log = &mut *self.0;
        while log.bytes.len().saturating_add(text.len()) > LOG_BYTES_MAX && !log.bytes.is_empty() {
            log.drop_line();
        }
        log.bytes.extend(text.as_bytes());
        Ok(())
    }
}

impl fmt::Display for Edit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Removed(path) => write!(f, "rm {}", path.as_str()),
            Self::Set {
                path,
                value,
                permissions,
            } => {
                write!(f, "set {} ", path.as_str())?;
                for (place, entry) in permissions.split_terminator('\0').enumerate() {
                    let comma = if place == 0 { "" } else { "," };
                    write!(f, "{comma}{entry}")?;
                }
                write!(f, " {}", value.escape_ascii())
            }
        }
    }
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(log: &mut ChangeLog, path: &str, value: &[u8]) {
        let edit = || Edit::Set {
            path: PathRef::known(path),
            value,
            permissions: "n0\0r1\0".into(),
        };
        let both = [edit(), Edit::Removed(PathRef::known("/b"))];
        log.append(
            Instant(7_000_000),
            both.iter().map(|edit| match edit {
                Edit::Removed(path) => Edit::Removed(*path),
                Edit::Set {
                    path,
                    value,
                    permissions,
                } => Edit::Set {
                    path: *path,
                    value,
                    permissions: permissions.clone(),
                },
            }),
        );
        log.finish();
    }

    #[test]
    fn a_line_says_what_was_changed_and_of_which_commit() {
        let mut log = ChangeLog::default();
        set(&mut log, "/a", b"x y\n\xff\\");
        let text = "1.1/2 7 set /a n0,r1 x y\\n\\xff\\\\\n1.2/2 7 rm /b\n";
        assert_eq!(log.read(0, usize::MAX), Some((0, text.into())));
        assert_eq!(log.read(3, 4), Some((3, "/2 7".into())));
        assert_eq!(
            log.read(wide(text.len()), 9),
            Some((wide(text.len()), String::new()))
        );
        assert_eq!(log.read(wide(text.len()) + 1, 9), None);
    }

    #[test]
    fn the_oldest_lines_are_dropped_whole_and_counted() {
        let mut log = ChangeLog::default();
        let value = [0xff; 4000];
        for _ in 0..50 {
            set(&mut log, "/a", &value);
            assert!(log.bytes.len() <= LOG_BYTES_MAX);
        }
        let (first, text) = log.read(0, 20).unwrap();
        assert!(
            first > 0 && text.contains('/') && text.contains(" 7 "),
            "{text}"
        );
        let (_, all) = log.read(0, usize::MAX).unwrap();
        assert_eq!(log.dropped_lines + wide(all.lines().count()), 100);
        assert_eq!(log.end(), log.first() + wide(all.len()));
    }
}
