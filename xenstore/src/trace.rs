//! A line in the log for each request and reply, while `CONTROL log on` holds.

use core::fmt;

use crate::connection::Request;
use crate::ids::ConnId;
use crate::server::Server;
use crate::storage::Storage;
use crate::wire::Kind;

/// Most bytes of a payload that a line shows.
const SHOWN_MAX: usize = 128;

impl<S: Storage> Server<S> {
    pub(crate) fn trace_request(&self, conn: ConnId, request: &Request) {
        self.trace("IN", conn, request.header.kind, &request.payload);
    }

    pub(crate) fn trace_reply(&self, conn: ConnId, kind: u32, payload: &[u8]) {
        self.trace("OUT", conn, kind, payload);
    }

    fn trace(&self, direction: &str, conn: ConnId, kind: u32, payload: &[u8]) {
        let domid = self.connections.get(conn).map(|connection| connection.home);
        let name = Kind::from_number(kind).map_or("?", Kind::name);
        if let Some(domid) = domid {
            log::info!(
                "io: {direction} {conn} (d{domid}) {name} ({})",
                Arguments(payload)
            );
        }
    }
}

/// A payload on one line: NULs are blanks, what is not printable is escaped.
struct Arguments<'a>(&'a [u8]);

impl fmt::Display for Arguments<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.get(..SHOWN_MAX).unwrap_or(self.0);
        for (number, string) in shown.split(|byte| *byte == 0).enumerate() {
            let blank = if number == 0 { "" } else { " " };
            write!(f, "{blank}{}", string.escape_ascii())?;
        }
        f.write_str(if shown.len() < self.0.len() {
            "…"
        } else {
            ""
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_one_printable_line() {
        assert_eq!(Arguments(b"/a\0b\n\xff\0").to_string(), r"/a b\n\xff ");
        assert_eq!(
            Arguments(&[b'x'; 200]).to_string(),
            "x".repeat(SHOWN_MAX) + "…"
        );
    }
}
