//! Transcripts over a unix socket: domain 0 is a client of it, and there is no other domain.
//!
//! A client cannot see that a server has nothing more to say. It is asked something of no effect: what comes before the answer was
//! owed before. Where the connection cannot be asked, in the middle of a request, another one is.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cases::transcript::Host;
use crate::cases::transcript::message::Message;
use crate::cases::transcript::syntax::{Directive, Need};

const DOM0: u16 = 0;
/// How long a server that hangs is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Questions of the player's own: GET_DOMAIN_PATH, which everybody may ask and which changes nothing.
const QUESTION: u32 = 10;
const FIRST_QUESTION: u32 = 0x7000_0000;
/// Bytes before each payload, and the longest one.
const HEADER_SIZE: usize = 16;
const PAYLOAD_MAX: usize = 4096;

/// A client, and the server that goes when the case ends.
pub(crate) struct OverSocket<S> {
    _server: S,
    path: PathBuf,
    client: Client,
}

impl<S> OverSocket<S> {
    /// # Errors
    /// Nobody serves the socket.
    pub(crate) fn new(server: S, path: &Path) -> Result<Self, String> {
        Ok(Self {
            _server: server,
            path: path.to_owned(),
            client: Client::connect(path)?,
        })
    }
}

impl<S> Host for OverSocket<S> {
    fn supports(&self, need: Need) -> bool {
        match need {
            Need::FreshServer => true,
            Need::Domains | Need::Clock | Need::Unread | Need::Ring => false,
        }
    }

    fn direct(&mut self, _: &Directive) -> Result<(), String> {
        Err("a socket has clients only".to_owned())
    }

    fn send(&mut self, domid: u16, bytes: &[u8]) -> Result<(), String> {
        match domid {
            DOM0 => self.client.send(bytes),
            _ => Err(format!("domain {domid} has no socket")),
        }
    }

    fn receive(&mut self, domid: u16) -> Result<Option<Message>, String> {
        if domid != DOM0 {
            return Ok(None);
        }
        if self.client.came.is_empty() {
            if self.client.can_ask() {
                self.client.catch_up()?;
            } else {
                Client::connect(&self.path)?.catch_up()?;
                self.client.take_what_is_there()?;
            }
        }
        Ok(self.client.came.pop_front())
    }

    fn is_stopped(&mut self, _: u16) -> bool {
        self.client.closed || self.client.read_to_the_end()
    }
}

/// One connection.
struct Client {
    stream: UnixStream,
    /// Bytes sent that are no whole request yet.
    begun: Vec<u8>,
    /// Bytes that came and are no whole message yet.
    partial: Vec<u8>,
    came: VecDeque<Message>,
    closed: bool,
    next_question: u32,
}

impl Client {
    fn connect(path: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(path).map_err(|error| error.to_string())?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
            .map_err(|error| error.to_string())?;
        Ok(Self {
            stream,
            begun: Vec::new(),
            partial: Vec::new(),
            came: VecDeque::new(),
            closed: false,
            next_question: FIRST_QUESTION,
        })
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.begun.extend_from_slice(bytes);
        while let Some(length) = request_length(&self.begun)
            && length <= self.begun.len()
            && length <= HEADER_SIZE + PAYLOAD_MAX
        {
            self.begun.drain(..length);
        }
        self.stream
            .write_all(bytes)
            .map_err(|error| format!("cannot send: {error}"))
    }

    /// Whether all that was sent is whole requests, so that another one is understood as such.
    fn can_ask(&self) -> bool {
        self.begun.is_empty() && !self.closed
    }

    /// Receives all that is owed.
    fn catch_up(&mut self) -> Result<(), String> {
        let question = Message {
            kind: QUESTION,
            req_id: self.next_question,
            tx_id: 0,
            payload: b"0\0".to_vec(),
        };
        self.next_question += 1;
        self.send(&question.encode())?;
        while !self.closed {
            self.read()?;
            while let Some(message) = Message::take_from(&mut self.partial)? {
                if message.req_id == question.req_id {
                    return Ok(());
                }
                self.came.push_back(message);
            }
        }
        Ok(())
    }

    fn take_what_is_there(&mut self) -> Result<(), String> {
        self.set_blocking(false)?;
        let mut taken = self.read();
        while taken == Ok(true) && !self.closed {
            taken = self.read();
        }
        self.set_blocking(true)?;
        while let Some(message) = Message::take_from(&mut self.partial)? {
            self.came.push_back(message);
        }
        taken.map(drop)
    }

    fn read_to_the_end(&mut self) -> bool {
        while !self.closed {
            if self.read() != Ok(true) {
                return false;
            }
        }
        true
    }

    /// Reads once; `false` if a socket that does not block has nothing.
    fn read(&mut self) -> Result<bool, String> {
        let mut bytes = [0; 8192];
        match self.stream.read(&mut bytes) {
            Ok(0) => self.closed = true,
            Ok(read) => self.partial.extend(bytes.iter().take(read)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => self.closed = true,
            Err(error) => return Err(format!("cannot receive: {error}")),
        }
        Ok(true)
    }

    fn set_blocking(&self, blocking: bool) -> Result<(), String> {
        self.stream
            .set_nonblocking(!blocking)
            .map_err(|error| error.to_string())
    }
}

/// How long the first request is, header and all; unknown before its header is whole.
fn request_length(bytes: &[u8]) -> Option<usize> {
    let length = bytes.first_chunk::<HEADER_SIZE>()?.last_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    length.checked_add(HEADER_SIZE)
}
