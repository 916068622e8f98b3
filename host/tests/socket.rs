//! Plays every transcript in which only domain 0 speaks over the unix socket of `ferrostored`, a daemon for each case.

mod cases;
mod ferrostored;
mod over_socket;
mod served;

use cases::{Exception, play_all};
use ferrostored::ferrostored;
use over_socket::OverSocket;
use served::Served;

/// What is different for a client of the socket.
const EXCEPTIONS: &[Exception] = &[(
    "domains.txt",
    "resume of those who are not there",
    "the daemon's store has no domain of its own, so that domain 31 is no other than 77",
)];
/// Fewer cases than there were when this was written: texts were lost, or their steps need more than they did.
const PASSED_MIN: usize = 100;

#[test]
fn the_socket_answers_as_the_transcripts_say() {
    let played = play_all(EXCEPTIONS, || {
        let server = Served::start(ferrostored).unwrap();
        let path = server.socket();
        OverSocket::new(server, &path).unwrap()
    })
    .unwrap();
    let (passed, listed, left_out) = (played.passed, EXCEPTIONS.len(), played.left_out.len());
    println!(
        "{passed} cases passed, {listed} are listed exceptions, {left_out} need domains, a clock or rings"
    );
    let count = played.complaints.len();
    assert!(
        played.complaints.is_empty(),
        "{count} complaints\n\n{}",
        played.complaints.join("\n\n")
    );
    let all = std::env::var_os("TRANSCRIPT").is_none();
    assert!(!all || passed >= PASSED_MIN, "only {passed} cases passed");
}
