//! Canonical paths and their limits: what a request names is judged once, here, and is a [`Path`] from then on.

use alloc::borrow::Cow;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use core::fmt;

use crate::bugs;
use crate::ids::DomId;
use crate::storage::listed_size;
use crate::wire::{Errno, decimal};

/// Longest absolute path in bytes, for everyone (protocol.md section 18).
pub(crate) const ABSOLUTE_MAX: usize = 3072;
/// What the paths below a domain's home begin with.
const HOMES: &str = "/local/domain/";
/// Most digits of a domid in a home's path.
const HOME_DIGITS_MAX: usize = 5;

/// An absolute path (`/`, `/a/b`) or a special name (`@releaseDomain`), well formed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(Rc<str>);

/// A [`Path`] that is kept elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathRef<'a>(&'a str);

/// A [`Path`] as a request names it: one that is written in full needs no memory of its own.
pub(crate) struct NamedPath<'a>(Cow<'a, str>);

impl<'a> NamedPath<'a> {
    /// As [`Path::parse`].
    ///
    /// # Errors
    /// As [`Path::parse`].
    pub(crate) fn parse(written: &'a [u8], home: DomId, limit: u32) -> Result<Self, Errno> {
        if !is_well_formed(written) {
            return Err(Errno::EINVAL);
        }
        let text = core::str::from_utf8(written).map_err(|_| Errno::EINVAL)?;
        let path = if is_relative(written) {
            Cow::Owned(format!("{HOMES}{home}/{text}"))
        } else {
            Cow::Borrowed(text)
        };
        let judged = if bugs::XSA_323 { text } else { &path };
        if path.len() > ABSOLUTE_MAX || exceeds(judged, limit) {
            return Err(Errno::EINVAL);
        }
        Ok(Self(path))
    }

    /// As [`NamedPath::parse`], where only a node may be named.
    ///
    /// # Errors
    /// As [`Path::parse`]; and EINVAL for special names.
    pub(crate) fn parse_node(written: &'a [u8], home: DomId, limit: u32) -> Result<Self, Errno> {
        if written.first() == Some(&b'@') {
            return Err(Errno::EINVAL);
        }
        Self::parse(written, home, limit)
    }

    pub(crate) fn as_ref(&self) -> PathRef<'_> {
        PathRef(&self.0)
    }
}

impl Path {
    /// Reads a path as a client of domain `home` wrote it; relative ones lie below `/local/domain/<home>/`.
    ///
    /// `limit` is the most bytes after a leading `/local/domain/<domid>/` (quota `path-max`), 0 for no limit.
    ///
    /// # Errors
    /// EINVAL for characters outside `[A-Za-z0-9-/_@]`, empty components, a trailing `/`, or too many bytes.
    pub fn parse(written: &[u8], home: DomId, limit: u32) -> Result<Self, Errno> {
        NamedPath::parse(written, home, limit).map(|named| named.as_ref().to_path())
    }

    /// A path of a test's own, known to be well formed.
    #[cfg(test)]
    pub(crate) fn known(path: &str) -> Self {
        Self(path.into())
    }

    /// The home of a domain, which its relative paths begin with.
    #[must_use]
    pub fn home(domid: DomId) -> Self {
        Self(format!("{HOMES}{domid}").into())
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path without its memory.
    #[must_use]
    pub fn as_ref(&self) -> PathRef<'_> {
        PathRef(&self.0)
    }
}

impl<'a> PathRef<'a> {
    /// A path of the server's own, known to be well formed.
    pub(crate) const fn known(path: &'a str) -> Self {
        Self(path)
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(self) -> &'a str {
        self.0
    }

    pub(crate) fn to_path(self) -> Path {
        Path(self.0.into())
    }

    /// Whether this is `/`.
    #[must_use]
    pub fn is_root(self) -> bool {
        self.0 == "/"
    }

    /// Whether this is a special name, beginning with `@`.
    #[must_use]
    pub fn is_special(self) -> bool {
        self.0.as_bytes().first() == Some(&b'@')
    }

    /// The names from the top down; none for `/`.
    #[must_use]
    pub fn components(self) -> Components<'a> {
        Components::of(self.0)
    }

    /// The text of the path one level up (empty for `/`), and the last name; `None` for `/`.
    #[must_use]
    pub(crate) fn split(self) -> Option<(&'a str, &'a str)> {
        let at = self.0.bytes().rposition(|byte| byte == b'/')?;
        let parent = self.0.get(..at)?;
        let name = self.0.get(at.saturating_add(1)..)?;
        (!name.is_empty()).then_some((parent, name))
    }

    /// The path one level up; `None` for `/`.
    #[must_use]
    pub fn parent(self) -> Option<Self> {
        let (parent, _) = self.split()?;
        Some(Self(if parent.is_empty() { "/" } else { parent }))
    }

    /// The path so many levels up; `None` if that is above `/`.
    pub(crate) fn above(self, levels: usize) -> Option<Self> {
        (0..levels).try_fold(self, |path, _| path.parent())
    }

    /// The names below `above`, on which this path lies.
    pub(crate) fn components_below(self, above: Self) -> Components<'a> {
        let skipped = if above.is_root() { 0 } else { above.0.len() };
        Components::of(self.0.get(skipped..).unwrap_or_default())
    }

    /// Whether this is `above` or below it.
    pub(crate) fn lies_in(self, above: Self) -> bool {
        let rest = self.0.strip_prefix(above.0);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || above.is_root())
    }

    /// The path of `name` below this one.
    #[must_use]
    pub(crate) fn join(self, name: &str) -> Path {
        let above = if self.is_root() { "" } else { self.0 };
        let mut path = String::with_capacity(above.len().saturating_add(listed_size(name)));
        path.push_str(above);
        path.push('/');
        path.push_str(name);
        Path(path.into())
    }

    /// This path as a client of domain `home` would write it relatively, if it lies below its home.
    #[must_use]
    pub fn relative_to(self, home: DomId) -> Option<&'a str> {
        let rest = self.0.strip_prefix(HOMES)?;
        let (domid, below) = rest.split_once('/')?;
        let domid = decimal(domid.as_bytes(), u32::from(u16::MAX)).ok()?;
        (domid == u32::from(home.get())).then_some(below)
    }
}

impl fmt::Display for PathRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a client wrote this path relative to its home.
pub(crate) fn is_relative(written: &[u8]) -> bool {
    !matches!(written.first(), Some(b'/' | b'@'))
}

/// The names of a path from the top down.
#[derive(Clone)]
pub struct Components<'a> {
    rest: &'a str,
}

impl<'a> Components<'a> {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The names of an absolute path, a special name, or the empty text.
    pub(crate) fn of(path: &'a str) -> Self {
        Self {
            rest: path.strip_prefix('/').unwrap_or(path),
        }
    }
}

impl<'a> Iterator for Components<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let (name, rest) = match self.rest.bytes().position(|byte| byte == b'/') {
            Some(at) => (self.rest.get(..at)?, self.rest.get(at.saturating_add(1)..)?),
            None => (self.rest, ""),
        };
        self.rest = rest;
        Some(name)
    }
}

/// Whether a path as written has only allowed characters, no empty component, and no `/` at its end but that of `/` itself.
fn is_well_formed(written: &[u8]) -> bool {
    let (mut faults, mut last) = (0, 0);
    for byte in written {
        let class = PATH_BYTES.get(usize::from(*byte)).copied();
        let class = class.unwrap_or(FORBIDDEN);
        faults |= (class & FORBIDDEN) | (class & last);
        last = class;
    }
    faults == 0 && !written.is_empty() && (last != SLASH || written.len() == 1 || bugs::XSA_481)
}

/// A class of bytes: none that a path may have.
const FORBIDDEN: u8 = 2;
/// A class of bytes: what stands between names.
const SLASH: u8 = 1;

/// The class of each byte; 0 of those that names may have.
#[expect(
    clippy::indexing_slicing,
    reason = "a byte is an index of 256 places, and a constant is made before anything runs"
)]
const PATH_BYTES: [u8; 256] = {
    let mut classes = [FORBIDDEN; 256];
    let mut rest: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_@";
    while let [byte, more @ ..] = rest {
        classes[*byte as usize] = 0;
        rest = more;
    }
    classes[b'/' as usize] = SLASH;
    classes
};

fn exceeds(path: &str, limit: u32) -> bool {
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    limit != 0 && counted(path).len() > most
}

/// The part of a path that `path-max` counts: all but a leading `/local/domain/<1 to 5 digits>/`.
fn counted(path: &str) -> &str {
    let Some((domid, below)) = path
        .strip_prefix(HOMES)
        .and_then(|rest| rest.split_once('/'))
    else {
        return path;
    };
    let is_home = (1..=HOME_DIGITS_MAX).contains(&domid.len())
        && domid.bytes().all(|byte| byte.is_ascii_digit());
    if is_home && !bugs::XSA_323 {
        below
    } else {
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: DomId = DomId::new(5);

    fn parse(written: &str) -> Result<String, Errno> {
        Path::parse(written.as_bytes(), HOME, 2048).map(|path| path.to_string())
    }

    #[test]
    fn relative_paths_lie_below_the_home() {
        assert_eq!(parse("data/x"), Ok("/local/domain/5/data/x".into()));
        assert_eq!(parse("/data/x"), Ok("/data/x".into()));
        assert_eq!(parse("/"), Ok("/".into()));
        assert_eq!(parse("/local/domain"), Ok("/local/domain".into()));
        assert_eq!(parse("@releaseDomain"), Ok("@releaseDomain".into()));
        assert_eq!(parse("/a@b"), Ok("/a@b".into()));
    }

    #[test]
    fn misshapen_paths_are_refused() {
        for written in [
            "",
            "//",
            "/a//b",
            "a/",
            "/a/",
            "/local/domain/",
            "/local/domain//x",
            "/local/domain/5/",
            "/.",
        ] {
            assert_eq!(parse(written), Err(Errno::EINVAL), "{written:?}");
        }
        for byte in 0..=255_u8 {
            for written in [[byte, b'a', b'b'], [b'a', byte, b'b'], [b'a', b'b', byte]] {
                let good = byte.is_ascii_alphanumeric() || b"-_@".contains(&byte);
                let slash = byte == b'/' && written.last() != Some(&b'/');
                let parsed = Path::parse(&written, HOME, 0);
                assert_eq!(parsed.is_ok(), good || slash, "{written:?}");
            }
        }
    }

    #[test]
    fn special_names_are_no_nodes() {
        assert_eq!(
            NamedPath::parse_node(b"@x", HOME, 0).err(),
            Some(Errno::EINVAL)
        );
    }

    #[test]
    fn the_home_prefix_is_not_counted() {
        let name = "x".repeat(10);
        let limit = |written: &str| Path::parse(written.as_bytes(), HOME, 10).is_ok();
        assert!(limit(&name));
        assert!(limit(&format!("/local/domain/12345/{name}")));
        assert!(!limit(&format!("{name}y")));
        assert!(!limit(&format!("/local/domain/123456/{name}")));
        assert!(!limit(&format!("/local/domain/5x/{name}")));
        assert!(!limit(&format!("/{name}")));
    }

    #[test]
    fn absolute_paths_end_at_3072_bytes() {
        let path = |len: usize| format!("/{}", "x".repeat(len - 1));
        assert!(Path::parse(path(3072).as_bytes(), HOME, 0).is_ok());
        assert_eq!(
            Path::parse(path(3073).as_bytes(), HOME, 0),
            Err(Errno::EINVAL)
        );
    }

    #[test]
    fn a_path_splits_into_parent_and_name() {
        let path = PathRef::known;
        assert_eq!(path("/a/b").split(), Some(("/a", "b")));
        assert_eq!(path("/a").split(), Some(("", "a")));
        assert_eq!(path("/").split(), None);
        assert_eq!(path("/a/b").parent(), Some(path("/a")));
        assert_eq!(path("/a").parent(), Some(path("/")));
        assert_eq!(path("/").parent(), None);
        assert!(path("/a/b").components().eq(["a", "b"]));
        assert_eq!(path("/").components().next(), None);
        assert_eq!(path("/").join("a"), Path::known("/a"));
        assert_eq!(path("/a").join("b"), Path::known("/a/b"));
    }

    #[test]
    fn relative_spelling_needs_the_whole_component() {
        let path = PathRef::known("/local/domain/5/data");
        assert_eq!(path.relative_to(HOME), Some("data"));
        assert_eq!(path.relative_to(DomId::new(55)), None);
        assert_eq!(Path::home(HOME).as_ref().relative_to(HOME), None);
    }
}
