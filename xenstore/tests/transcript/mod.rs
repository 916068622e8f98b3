//! Transcripts: plain texts that say what clients send and what they must receive, for any server behind a [`Host`].
//!
//! The format is described in `../transcripts/README.md`. [`syntax`] reads a text, [`run`] plays its cases on a host and tells what
//! differs. Neither knows which server it talks to: that is the host's matter.

pub(crate) mod message;
pub(crate) mod run;
pub(crate) mod syntax;

use message::Message;
use syntax::{Case, Directive, Need};

/// A server, the clients' ways to it, and the domains around it.
pub(crate) trait Host {
    /// Whether cases with this need can be played here; the others are left out and counted.
    fn supports(&self, need: Need) -> bool;

    /// Gets ready for a case.
    ///
    /// # Errors
    /// Why it cannot be played here.
    fn prepare(&mut self, case: &Case) -> Result<(), String> {
        let unmet = case.needs.iter().find(|need| !self.supports(**need));
        unmet.map_or(Ok(()), |need| Err(need.describe().to_owned()))
    }

    /// Whether a domain receives replies and events in the order in which the server sent them. If not, each of the two is in order.
    fn keeps_order(&self, _: u16) -> bool {
        true
    }

    /// Does what the text asks of the domains and of time.
    ///
    /// # Errors
    /// What went wrong, for the person who reads.
    fn direct(&mut self, directive: &Directive) -> Result<(), String>;

    /// Sends bytes on a domain's connection.
    ///
    /// # Errors
    /// The domain has no connection.
    fn send(&mut self, domid: u16, bytes: &[u8]) -> Result<(), String>;

    /// The next message for a domain, when all that was sent so far has been dealt with; none if there is no more.
    ///
    /// # Errors
    /// The bytes that came are no message.
    fn receive(&mut self, domid: u16) -> Result<Option<Message>, String>;

    /// Whether the server has stopped a domain's connection because its client broke the protocol.
    fn is_stopped(&mut self, domid: u16) -> bool;
}
