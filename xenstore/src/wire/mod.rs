//! Messages as bytes: shared by the server, clients and tests, so that there is one reading of the format.
//!
//! Layout and numbers are those of `xs_wire.h` (protocol.md sections 2 and 3).

mod errno;
mod header;
mod kind;
mod number;
mod strings;

pub use errno::Errno;
pub use header::{HEADER_SIZE, Header, PAYLOAD_MAX};
pub use kind::Kind;
pub(crate) use number::decimal;
pub(crate) use strings::{exactly, one, one_path, strings};
