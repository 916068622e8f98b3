//! A payload's strings: each ends with a NUL, and they are counted by their NULs (protocol.md section 2).

use super::Errno;

/// The strings of a payload. Bytes after the last NUL are no string.
pub(crate) fn strings(payload: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    payload
        .split_inclusive(|byte| *byte == 0)
        .filter_map(|piece| piece.strip_suffix(&[0]))
}

/// The one string of a payload with exactly one NUL, which is its last byte.
///
/// # Errors
/// EINVAL for every other payload.
pub(crate) fn one(payload: &[u8]) -> Result<&[u8], Errno> {
    exactly::<1>(payload).map(|[only]| only)
}

/// As [`one`], for a path: a NUL within is not looked for, since no path has one.
///
/// # Errors
/// EINVAL for a payload that does not end with a NUL.
pub(crate) fn one_path(payload: &[u8]) -> Result<&[u8], Errno> {
    match payload.split_last() {
        Some((0, path)) => Ok(path),
        _ => Err(Errno::EINVAL),
    }
}

/// The strings of a payload with exactly `N` NULs, the last of which is its last byte.
///
/// # Errors
/// EINVAL for every other payload.
pub(crate) fn exactly<const N: usize>(payload: &[u8]) -> Result<[&[u8]; N], Errno> {
    let mut found = [&[] as &[u8]; N];
    let mut rest = strings(payload);
    for place in &mut found {
        *place = rest.next().ok_or(Errno::EINVAL)?;
    }
    match (rest.next(), payload.last()) {
        (None, Some(0)) => Ok(found),
        _ => Err(Errno::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_string_is_the_whole_payload() {
        assert_eq!(one(b"/a\0"), Ok(&b"/a"[..]));
        assert_eq!(one(b"\0"), Ok(&b""[..]));
        for payload in [&b""[..], b"/a", b"/a\0b", b"/a\0b\0", b"\0\0"] {
            assert_eq!(one(payload), Err(Errno::EINVAL), "{payload:?}");
        }
    }

    #[test]
    fn strings_end_with_a_nul() {
        let all: Vec<_> = strings(b"a\0\0bc\0tail").collect();
        assert_eq!(all, [&b"a"[..], b"", b"bc"]);
        assert_eq!(exactly::<2>(b"a\0b\0"), Ok([&b"a"[..], b"b"]));
        assert_eq!(exactly::<2>(b"a\0b\0c"), Err(Errno::EINVAL));
    }
}
