//! How `ferrostored` is started.

use std::path::Path;
use std::process::Command;

/// The daemon on a socket, without a log.
pub(crate) fn ferrostored(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferrostored"));
    command.arg("--socket").arg(socket).args(["--log", "off"]);
    command
}
