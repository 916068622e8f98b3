//! Paths against what the protocol says of them, in twenty lines.

use xenstore::{DomId, Path};

use crate::bytes::Bytes;

pub(crate) fn run(input: &[u8]) {
    let mut input = Bytes::new(input);
    let home = [0, 1, 9, 10, 65535][input.below(5)];
    let limit: u16 = [0, 1, 20, 2048][input.below(4)];
    // Long names come from few bytes.
    let stretch = if input.below(8) == 0 { 400 } else { 1 };
    let written: Vec<u8> = input
        .rest()
        .iter()
        .flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b'l' { stretch } else { 1 }))
        .collect();
    let path = Path::parse(&written, DomId::new(home), limit.into()).ok();
    let told = path.as_ref().map(|path| path.as_str().to_owned());
    assert_eq!(told, expected(&written, home, limit.into()), "{written:?}");
}

/// The canonical path, if what a client wrote is one (protocol.md sections 4 and 18).
fn expected(written: &[u8], home: u16, limit: usize) -> Option<String> {
    let text = std::str::from_utf8(written).ok()?;
    let is_allowed = |letter: char| letter.is_ascii_alphanumeric() || "-/_@".contains(letter);
    if text.is_empty() || !text.chars().all(is_allowed) || text.contains("//") {
        return None;
    }
    if text.ends_with('/') && text != "/" {
        return None;
    }
    let whole = if text.starts_with(['/', '@']) {
        text.to_owned()
    } else {
        format!("/local/domain/{home}/{text}")
    };
    let mut parts = whole.splitn(5, '/');
    let is_below_home = parts.next() == Some("")
        && (parts.next(), parts.next()) == (Some("local"), Some("domain"))
        && parts.next().is_some_and(|domid| {
            (1..=5).contains(&domid.len()) && domid.chars().all(|digit| digit.is_ascii_digit())
        });
    let counted = parts.next().filter(|_| is_below_home).unwrap_or(&whole);
    let fits = whole.len() <= 3072 && (limit == 0 || counted.len() <= limit);
    fits.then_some(whole)
}
