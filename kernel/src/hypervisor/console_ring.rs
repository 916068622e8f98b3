//! The arithmetic of the PV console's output: indices that another domain writes, and text that waits for it. No hardware.
//!
//! Layout: `io/console.h` (xen-abi.md section 7).

/// Bytes of the output ring.
pub(super) const OUTPUT_SIZE: u32 = 2048;
/// Where the output ring lies in the page.
pub(super) const OUTPUT: usize = 1024;
/// Where the consumer's index lies, free running.
pub(super) const OUTPUT_CONSUMED: usize = 3080;
/// Where our index lies, free running.
pub(super) const OUTPUT_PRODUCED: usize = 3084;

/// Bytes that can be written now. An index that the backend broke leaves no room instead of more.
pub(super) const fn room(produced: u32, consumed: u32) -> u32 {
    OUTPUT_SIZE.saturating_sub(produced.wrapping_sub(consumed))
}

/// Where the byte of a free-running index lies in the page.
pub(super) const fn place_of(index: u32) -> usize {
    OUTPUT + (index % OUTPUT_SIZE) as usize
}

/// Bytes of text kept until the console backend, which attaches late, has read the ring.
const BACKLOG_SIZE: usize = 8192;

/// Text that waits for room in the ring. Early text is kept and later lines are dropped, whole and counted.
#[derive(Debug)]
pub(super) struct Backlog {
    bytes: heapless::Deque<u8, BACKLOG_SIZE>,
    dropped_lines: u32,
}

impl Backlog {
    pub(super) const fn new() -> Self {
        Self {
            bytes: heapless::Deque::new(),
            dropped_lines: 0,
        }
    }

    /// Takes a line, or counts it as dropped.
    pub(super) fn push_line(&mut self, line: &[u8]) {
        self.tell_dropped();
        if self.dropped_lines > 0 || !self.try_push(line) {
            self.dropped_lines = self.dropped_lines.saturating_add(1);
        }
    }

    /// The next byte for the ring.
    pub(super) fn pop(&mut self) -> Option<u8> {
        self.bytes.pop_front()
    }

    /// Forgets all that waits, for a text that matters more.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.dropped_lines = 0;
    }

    /// Once there is room again, says how much is missing here.
    pub(super) fn tell_dropped(&mut self) {
        /// Half of the room must be free, so that the note is not followed by the next gap.
        const ENOUGH: usize = BACKLOG_SIZE / 2;
        if self.dropped_lines == 0 || self.bytes.len() > ENOUGH {
            return;
        }
        let mut note = heapless::String::<64>::new();
        let count = self.dropped_lines;
        let written = core::fmt::write(
            &mut note,
            format_args!("({count} lines dropped: console full)\r\n"),
        );
        if written.is_ok() && self.try_push(note.as_bytes()) {
            self.dropped_lines = 0;
        }
    }

    fn try_push(&mut self, line: &[u8]) -> bool {
        let room = BACKLOG_SIZE.saturating_sub(self.bytes.len());
        let fits = line.len() <= room;
        if fits {
            self.bytes.extend(line.iter().copied());
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(backlog: &mut Backlog) -> String {
        core::iter::from_fn(|| backlog.pop())
            .map(char::from)
            .collect()
    }

    #[test]
    fn room_is_bounded_whatever_the_backend_writes() {
        assert_eq!(room(0, 0), 2048);
        assert_eq!(room(2048, 0), 0);
        assert_eq!(room(5, u32::MAX), 2042);
        assert_eq!(room(0, 1), 0);
        assert_eq!(room(5000, 0), 0);
    }

    #[test]
    fn indices_wrap_inside_the_ring() {
        assert_eq!(place_of(0), 1024);
        assert_eq!(place_of(2047), 3071);
        assert_eq!(place_of(2048), 1024);
        assert_eq!(place_of(u32::MAX), 3071);
    }

    #[test]
    fn early_lines_stay_and_later_ones_are_counted() {
        let mut backlog = Backlog::new();
        let line = [b'x'; 1000];
        for _ in 0..11 {
            backlog.push_line(&line);
        }
        assert_eq!(drain(&mut backlog).len(), 8000);
        backlog.push_line(b"next\n");
        assert_eq!(
            drain(&mut backlog),
            "(3 lines dropped: console full)\r\nnext\n"
        );
    }

    #[test]
    fn a_small_line_does_not_slip_past_a_gap() {
        let mut backlog = Backlog::new();
        for _ in 0..9 {
            backlog.push_line(&[b'x'; 1000]);
        }
        backlog.push_line(b"small\n");
        assert!(!drain(&mut backlog).contains("small"));
        backlog.tell_dropped();
        assert!(drain(&mut backlog).starts_with("(2 lines dropped"));
    }
}
