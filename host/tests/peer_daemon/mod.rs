//! C xenstored, as `scripts/test-peer` has got it.

use std::path::Path;
use std::process::Command;

/// C xenstored on a socket, with a preloaded library in place of the hypervisor.
pub(crate) fn xenstored(peer: &Path, socket: &Path) -> Command {
    let folder = socket.parent().unwrap_or(socket);
    let mut command = Command::new(peer.join("xenstored"));
    command
        .arg("--no-fork")
        .env("LD_LIBRARY_PATH", peer.join("lib"))
        .env("LD_PRELOAD", peer.join("fake_xen.so"))
        .env("XENSTORED_PATH", socket)
        .env("XENSTORED_RUNDIR", folder)
        .env("XENSTORED_ROOTDIR", folder);
    command
}
