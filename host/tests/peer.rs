//! Plays every transcript in which only domain 0 speaks on Debian's C `xenstored`, started without a hypervisor, and holds each
//! difference in a table.
//!
//! `scripts/test-peer` gets that program and runs this; the environment variable `PEER` names the folder where it put it.

mod cases;
mod differences;
mod over_socket;
mod peer_daemon;
mod served;

use std::path::PathBuf;

use cases::play_all;
use differences::{DIFFERENCES, Seen};
use over_socket::OverSocket;
use peer_daemon::xenstored;
use served::Served;

#[test]
fn c_xenstored_differs_only_as_listed() {
    let peer = std::env::var_os("PEER").expect("run scripts/test-peer, which gets the peer");
    let peer = PathBuf::from(peer);
    let seen = DIFFERENCES.into_iter();
    let seen = seen.filter(|(seen, _)| [Seen::Everywhere, Seen::WithoutXen].contains(seen));
    let differences: Vec<_> = seen
        .flat_map(|(_, differences)| differences)
        .copied()
        .collect();
    let played = play_all(&differences, || {
        let server = Served::start(|socket| xenstored(&peer, socket)).unwrap();
        let path = server.socket();
        OverSocket::new(server, &path).unwrap()
    })
    .unwrap();
    let (passed, listed, left_out) = (played.passed, differences.len(), played.left_out.len());
    println!(
        "{passed} cases passed, {listed} differ as listed, {left_out} need domains, a clock or rings"
    );
    let count = played.complaints.len();
    assert!(
        played.complaints.is_empty(),
        "{count} complaints\n\n{}",
        played.complaints.join("\n\n")
    );
}
