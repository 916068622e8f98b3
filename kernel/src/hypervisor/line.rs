//! One bounded line of console text. No hardware.
//!
//! What it holds may come from a guest, so only printable ASCII passes; and it needs no heap, so that a panic can use it.

use core::fmt;

/// Longest line in bytes, without its end; the rest of a longer one is cut off.
pub(super) const LINE_MAX: usize = 240;
const END: &[u8] = b"\r\n";
const WITH_END: usize = LINE_MAX + END.len();

/// A line being written. Writing to it never fails.
#[derive(Default)]
pub(super) struct Line {
    text: heapless::Vec<u8, WITH_END>,
}

impl Line {
    /// The line that `text` makes, its end included.
    pub(super) fn of(text: fmt::Arguments<'_>) -> Self {
        let mut line = Self::default();
        // `write_str` below never fails; what a `Display` of someone else does is cut off there.
        let _ = fmt::write(&mut line, text);
        let _ = line.text.extend_from_slice(END);
        line
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.text
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LINE_MAX.saturating_sub(self.text.len());
        let printable = text.bytes().take(room).map(|byte| {
            if byte == b' ' || byte.is_ascii_graphic() {
                byte
            } else {
                b'?'
            }
        });
        self.text.extend(printable);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_bytes_cannot_reach_a_terminal() {
        let line = Line::of(format_args!("a\x1b[31m\n{}", "é"));
        assert_eq!(line.as_bytes(), b"a?[31m???\r\n");
    }

    #[test]
    fn a_long_line_is_cut_and_still_ends() {
        let line = Line::of(format_args!("{}{}", "x".repeat(200), "y".repeat(200)));
        assert_eq!(line.as_bytes().len(), LINE_MAX + 2);
        assert!(line.as_bytes().ends_with(b"y\r\n"));
    }
}
