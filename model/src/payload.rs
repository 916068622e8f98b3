//! What is in a payload (protocol.md sections 2 to 4).

use crate::{Errno, Limits, Quota, limit, within};

const INVALID: Errno = "EINVAL";

/// Bytes of the longest absolute path.
const ABSOLUTE_MAX: usize = 3072;

/// The strings, each of which ends with a NUL.
pub(crate) fn strings(payload: &[u8]) -> Vec<&[u8]> {
    let mut pieces: Vec<&[u8]> = payload.split(|byte| *byte == 0).collect();
    // What stands behind the last NUL is none.
    pieces.pop();
    pieces
}

/// The strings, if they are just so many and nothing stands behind them.
pub(crate) fn exactly<const N: usize>(payload: &[u8]) -> Result<[&[u8]; N], Errno> {
    if payload.last() != Some(&0) {
        return Err(INVALID);
    }
    strings(payload).try_into().map_err(|_| INVALID)
}

/// A plain decimal number of at most `max`.
pub(crate) fn number(text: &[u8], max: u32) -> Result<u32, Errno> {
    let text = std::str::from_utf8(text).map_err(|_| INVALID)?;
    let number: u32 = text.parse().map_err(|_| INVALID)?;
    // Signs and superfluous zeros are not plain.
    if number > max || number.to_string() != text {
        return Err(INVALID);
    }
    Ok(number)
}

pub(crate) fn domid(text: &[u8]) -> Result<u16, Errno> {
    let number = number(text, u16::MAX.into())?;
    u16::try_from(number).map_err(|_| INVALID)
}

/// A path in full, as a client of domain `home` means it.
pub(crate) fn path(written: &[u8], home: u16, limits: &Limits) -> Result<String, Errno> {
    let written = std::str::from_utf8(written).map_err(|_| INVALID)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-/_@".contains(c);
    let trailing = written.ends_with('/') && written != "/";
    if written.is_empty() || !written.chars().all(allowed) || written.contains("//") || trailing {
        return Err(INVALID);
    }
    let path = if is_relative(written.as_bytes()) {
        format!("/local/domain/{home}/{written}")
    } else {
        written.to_owned()
    };
    let counted = below_home(&path).unwrap_or(&path).len();
    if path.len() > ABSOLUTE_MAX || !within(counted, limit(limits, Quota::PathMax)) {
        return Err(INVALID);
    }
    Ok(path)
}

/// A path that may name a node.
pub(crate) fn node_path(written: &[u8], home: u16, limits: &Limits) -> Result<String, Errno> {
    if written.starts_with(b"@") {
        return Err(INVALID);
    }
    path(written, home, limits)
}

pub(crate) fn is_relative(written: &[u8]) -> bool {
    !written.starts_with(b"/") && !written.starts_with(b"@")
}

/// What stands behind `/local/domain/<1-5 digits>/`.
fn below_home(path: &str) -> Option<&str> {
    let (domid, below) = path.strip_prefix("/local/domain/")?.split_once('/')?;
    let is_domid = (1..=5).contains(&domid.len()) && domid.bytes().all(|b| b.is_ascii_digit());
    is_domid.then_some(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_end_with_a_nul() {
        assert_eq!(strings(b"a\0\0bc\0tail"), [&b"a"[..], b"", b"bc"]);
        assert_eq!(strings(b""), [&b""[..]; 0]);
        assert_eq!(exactly::<1>(b"a\0b\0"), Err(INVALID));
        assert_eq!(exactly::<2>(b"a\0b\0"), Ok([&b"a"[..], b"b"]));
        assert_eq!(exactly::<2>(b"a\0b\0c"), Err(INVALID));
    }

    #[test]
    fn numbers_are_plain() {
        assert_eq!(number(b"65535", 65535), Ok(65535));
        for text in ["", "-1", "+5", " 5", "5x", "05", "65536", "4294967296"] {
            assert_eq!(number(text.as_bytes(), 65535), Err(INVALID), "{text:?}");
        }
    }

    #[test]
    fn paths_are_made_absolute_and_limited_without_the_home() {
        let mut limits = [0; 10];
        assert_eq!(path(b"a", 7, &limits), Ok("/local/domain/7/a".to_owned()));
        for text in ["", "a/", "//", "a//b", "/local/domain/", "a.b", "@x/"] {
            assert_eq!(path(text.as_bytes(), 7, &limits), Err(INVALID), "{text}");
        }
        limits[Quota::PathMax as usize] = 3;
        assert!(path(b"abc", 7, &limits).is_ok());
        assert!(path(b"/local/domain/12/abc", 7, &limits).is_ok());
        assert_eq!(path(b"abcd", 7, &limits), Err(INVALID));
    }
}
