//! Canonical paths and their limits: what a request names is judged once, here, and is a [`Path`] from then on.

use alloc::format;
use alloc::rc::Rc;
use core::fmt;

use crate::ids::DomId;
use crate::wire::Errno;

/// Longest absolute path in bytes, for everyone (protocol.md section 18).
const ABSOLUTE_MAX: usize = 3072;
/// What the paths below a domain's home begin with.
const HOMES: &str = "/local/domain/";
/// Most digits of a domid in a home's path.
const HOME_DIGITS_MAX: usize = 5;

/// An absolute path (`/`, `/a/b`) or a special name (`@releaseDomain`), well formed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(Rc<str>);

impl Path {
    /// Reads a path as a client of domain `home` wrote it; relative ones lie below `/local/domain/<home>/`.
    ///
    /// `limit` is the most bytes after a leading `/local/domain/<domid>/` (quota `path-max`), 0 for no limit.
    ///
    /// # Errors
    /// EINVAL for characters outside `[A-Za-z0-9-/_@]`, empty components, a trailing `/`, or too many bytes.
    pub fn parse(written: &[u8], home: DomId, limit: u32) -> Result<Self, Errno> {
        if !is_well_formed(written) {
            return Err(Errno::EINVAL);
        }
        let text = core::str::from_utf8(written).map_err(|_| Errno::EINVAL)?;
        let path: Rc<str> = if is_relative(written) {
            format!("{HOMES}{home}/{text}").into()
        } else {
            text.into()
        };
        if path.len() > ABSOLUTE_MAX || exceeds(&path, limit) {
            return Err(Errno::EINVAL);
        }
        Ok(Self(path))
    }

    /// As [`Path::parse`], where only a node may be named.
    ///
    /// # Errors
    /// As [`Path::parse`]; and EINVAL for special names.
    pub fn parse_node(written: &[u8], home: DomId, limit: u32) -> Result<Self, Errno> {
        let path = Self::parse(written, home, limit)?;
        if path.is_special() {
            Err(Errno::EINVAL)
        } else {
            Ok(path)
        }
    }

    /// A path of the server's own, known to be well formed.
    #[must_use]
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

    /// Whether this is `/`.
    #[must_use]
    pub fn is_root(&self) -> bool {
        &*self.0 == "/"
    }

    /// Whether this is a special name, beginning with `@`.
    #[must_use]
    pub fn is_special(&self) -> bool {
        self.0.starts_with('@')
    }

    /// The names from the top down; none for `/`.
    pub fn components(&self) -> Components<'_> {
        Components::of(&self.0)
    }

    /// The text of the path one level up (empty for `/`), and the last name; `None` for `/`.
    #[must_use]
    pub(crate) fn split(&self) -> Option<(&str, &str)> {
        self.0.rsplit_once('/').filter(|(_, name)| !name.is_empty())
    }

    /// The path one level up; `None` for `/`.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let (parent, _) = self.split()?;
        Some(Self::known(if parent.is_empty() { "/" } else { parent }))
    }

    /// The path of `name` below this one.
    #[must_use]
    pub(crate) fn join(&self, name: &str) -> Self {
        let separator = if self.is_root() { "" } else { "/" };
        Self(format!("{}{separator}{name}", self.0).into())
    }

    /// This path as a client of domain `home` would write it relatively, if it lies below its home.
    #[must_use]
    pub fn relative_to(&self, home: DomId) -> Option<&str> {
        let rest = self.0.strip_prefix(HOMES)?;
        let (domid, below) = rest.split_once('/')?;
        (domid == format!("{home}")).then_some(below)
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
    let mut last = 0;
    for byte in written {
        if !is_path_byte(*byte) || (*byte == b'/' && last == b'/') {
            return false;
        }
        last = *byte;
    }
    last != 0 && (last != b'/' || written.len() == 1)
}

fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'/' | b'_' | b'@')
}

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
    if is_home { below } else { path }
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
        assert_eq!(Path::parse_node(b"@x", HOME, 0), Err(Errno::EINVAL));
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
        let path = |text| Path::known(text);
        assert_eq!(path("/a/b").split(), Some(("/a", "b")));
        assert_eq!(path("/a").split(), Some(("", "a")));
        assert_eq!(path("/").split(), None);
        assert_eq!(path("/a/b").parent(), Some(path("/a")));
        assert_eq!(path("/a").parent(), Some(path("/")));
        assert_eq!(path("/").parent(), None);
        assert!(path("/a/b").components().eq(["a", "b"]));
        assert_eq!(path("/").components().next(), None);
        assert_eq!(path("/").join("a"), path("/a"));
        assert_eq!(path("/a").join("b"), path("/a/b"));
    }

    #[test]
    fn relative_spelling_needs_the_whole_component() {
        let path = Path::known("/local/domain/5/data");
        assert_eq!(path.relative_to(HOME), Some("data"));
        assert_eq!(path.relative_to(DomId::new(55)), None);
        assert_eq!(Path::home(HOME).relative_to(HOME), None);
    }
}
