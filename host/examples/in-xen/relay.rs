//! The other half of a guest: a program in it that does on its `/dev/xen/xenbus` what dom0 says over its console.
//!
//! The store cannot carry this, because the transcripts take its watches and nodes away. A command is a line with a number; the answer
//! is lines that begin with `=` and the same number, the last of them `done` or `failed`. All else on the console is not for us.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, Read, Write};
use std::path::Path;

use crate::cases::transcript::message::Message;
use crate::xenbus::{Xenbus, is_readable};

/// How long an answer is waited for: more than the guest waits for the store.
const PATIENCE_MS: u32 = 15_000;

/// In the guest: obeys until the console ends.
///
/// # Errors
/// The console fails.
pub(crate) fn serve() -> Result<(), String> {
    let mut client = None;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|error| error.to_string())?;
        let Some((number, command)) = line.split_once(' ') else {
            continue;
        };
        let mut answer = String::new();
        match obey(&mut client, command) {
            Ok(came) => {
                for message in came {
                    answer.push_str(&format!("={number} {}\n", to_hex(&message.encode())));
                }
                answer.push_str(&format!("={number} done\n"));
            }
            Err(why) => answer.push_str(&format!("={number} failed {why}\n")),
        }
        let mut console = std::io::stdout().lock();
        let said = console.write_all(answer.as_bytes());
        said.and_then(|()| console.flush())
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn obey(client: &mut Option<Xenbus>, command: &str) -> Result<Vec<Message>, String> {
    if command == "open" {
        client.take().map_or(Ok(()), Xenbus::end)?;
        *client = Some(Xenbus::open()?);
        return Ok(Vec::new());
    }
    let client = client.as_mut().ok_or("the device is not open")?;
    if let Some(request) = command.strip_prefix("send ") {
        let request = Message::take_from(&mut from_hex(request)?)?;
        client.send(&request.ok_or("half a request")?)?;
    } else if command == "catch-up" {
        client.catch_up()?;
    } else {
        return Err(format!("unknown: {command}"));
    }
    client.take_replies()
}

/// In dom0: a guest's console with that program behind it.
pub(crate) struct Relay {
    console: File,
    partial: Vec<u8>,
    last_number: u32,
    came: VecDeque<Message>,
}

impl Relay {
    /// # Errors
    /// The terminal cannot be opened.
    pub(crate) fn new(terminal: &Path) -> Result<Self, String> {
        let console = OpenOptions::new().read(true).write(true).open(terminal);
        Ok(Self {
            console: console.map_err(|error| format!("{}: {error}", terminal.display()))?,
            partial: Vec::new(),
            last_number: 0,
            came: VecDeque::new(),
        })
    }

    /// The guest becomes a new client. What it had of the store ends, so that its ring must be served.
    ///
    /// # Errors
    /// The guest does not answer, or fails.
    pub(crate) fn open(&mut self) -> Result<(), String> {
        self.command("open")?;
        self.came.clear();
        Ok(())
    }

    /// Sends a request, and waits for its reply.
    ///
    /// # Errors
    /// The guest does not answer, or fails.
    pub(crate) fn send(&mut self, request: &Message) -> Result<(), String> {
        self.command(&format!("send {}", to_hex(&request.encode())))
    }

    /// The next message that the guest has passed on already.
    pub(crate) fn came(&mut self) -> Option<Message> {
        self.came.pop_front()
    }

    /// The next message; none if nothing more was sent by the store so far. The guest asks the store, so that its ring must be served.
    ///
    /// # Errors
    /// The guest does not answer, or fails.
    pub(crate) fn receive(&mut self) -> Result<Option<Message>, String> {
        if self.came.is_empty() {
            self.command("catch-up")?;
        }
        Ok(self.came())
    }

    fn command(&mut self, command: &str) -> Result<(), String> {
        self.last_number += 1;
        let line = format!("{} {command}\n", self.last_number);
        let said = self.console.write_all(line.as_bytes());
        said.map_err(|error| format!("the guest's console: {error}"))?;
        let ours = format!("={} ", self.last_number);
        loop {
            let line = self.line()?;
            let Some(answer) = line.trim_end().strip_prefix(&ours) else {
                continue;
            };
            if answer == "done" {
                return Ok(());
            }
            if let Some(why) = answer.strip_prefix("failed ") {
                return Err(format!("the guest: {why}"));
            }
            self.came
                .extend(Message::take_from(&mut from_hex(answer)?)?);
        }
    }

    fn line(&mut self) -> Result<String, String> {
        loop {
            if let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.partial.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            if !is_readable(&self.console, PATIENCE_MS)? {
                return Err("the guest does not answer".to_owned());
            }
            let mut bytes = [0; 4096];
            let read = self.console.read(&mut bytes);
            let read = read.map_err(|error| format!("the guest's console: {error}"))?;
            self.partial.extend(bytes.iter().take(read));
        }
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| {
            let digits = core::str::from_utf8(pair).unwrap_or_default();
            u8::from_str_radix(digits, 16).map_err(|_| format!("no bytes: {text}"))
        })
        .collect()
}
