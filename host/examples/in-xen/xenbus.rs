//! A client of the store through Linux: one open of `/dev/xen/xenbus`, in dom0 or in a guest.
//!
//! The kernel passes replies on as they come, and events through a thread of its own, so that there is no order between the two. It
//! registers each watch itself, with a token of its own, and tells of a refusal as the error of `write`.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::cases::transcript::Host;
use crate::cases::transcript::message::{ERROR, Message, WATCH_EVENT};
use crate::cases::transcript::syntax::{Directive, Need};

const DEVICE: &str = "/dev/xen/xenbus";
/// How long a reply is waited for.
const PATIENCE_MS: u32 = 10_000;
/// How long an event may be on its way inside the kernel where nothing tells that it has come through.
const ON_ITS_WAY_MS: u32 = 200;

const WATCH: u32 = 4;
const UNWATCH: u32 = 5;
const TRANSACTION_START: u32 = 6;
const TRANSACTION_END: u32 = 7;
const GET_DOMAIN_PATH: u32 = 10;
/// Of requests that no transcript made.
const OWN_REQUEST: u32 = 0x7000_0000;

/// The errors that the kernel makes of a refused watch.
const ERRORS: [(Errno, &str); 9] = [
    (Errno::INVAL, "EINVAL"),
    (Errno::ACCESS, "EACCES"),
    (Errno::EXIST, "EEXIST"),
    (Errno::NOENT, "ENOENT"),
    (Errno::NOMEM, "ENOMEM"),
    (Errno::NOSPC, "ENOSPC"),
    (Errno::NOSYS, "ENOSYS"),
    (Errno::TOOBIG, "E2BIG"),
    (Errno::IO, "EIO"),
];

/// A client, and a second one that finds out whether all events have come.
pub(crate) struct Xenbus {
    device: Device,
    barrier: Device,
    came: VecDeque<Message>,
    /// Requests without a reply yet.
    awaited: usize,
    /// What the kernel keeps for this client: requests that end each watch and each transaction.
    held: Vec<Message>,
}

impl Xenbus {
    /// # Errors
    /// The device cannot be opened.
    pub(crate) fn open() -> Result<Self, String> {
        Ok(Self {
            device: Device::open()?,
            barrier: Device::open()?,
            came: VecDeque::new(),
            awaited: 0,
            held: Vec::new(),
        })
    }

    /// Sends one request. A refusal that the kernel tells of at once becomes a message like any other.
    ///
    /// # Errors
    /// The kernel does not take it.
    pub(crate) fn send(&mut self, request: &Message) -> Result<(), String> {
        match self.device.write(request) {
            Ok(()) => {
                self.awaited += 1;
                if request.kind == WATCH {
                    self.held.push(own(UNWATCH, 0, &request.payload));
                }
                Ok(())
            }
            Err(refusal) if request.kind == WATCH => {
                let name = name_of(refusal).ok_or(format!("{DEVICE}: {refusal}"))?;
                self.came.push_back(Message {
                    kind: ERROR,
                    payload: [name.as_bytes(), &[0]].concat(),
                    ..request.clone()
                });
                Ok(())
            }
            Err(refusal) => Err(format!("{DEVICE}: {refusal}")),
        }
    }

    /// The next message; none if nothing more was sent by the store so far.
    ///
    /// # Errors
    /// A reply does not come.
    pub(crate) fn receive(&mut self) -> Result<Option<Message>, String> {
        if self.came.is_empty() && self.awaited > 0 {
            self.read(PATIENCE_MS)?;
        }
        if self.came.is_empty() {
            self.catch_up()?;
        }
        Ok(self.came.pop_front())
    }

    /// Waits for every reply, and takes all that came.
    ///
    /// # Errors
    /// A reply does not come.
    pub(crate) fn take_replies(&mut self) -> Result<Vec<Message>, String> {
        while self.awaited > 0 {
            self.read(PATIENCE_MS)?;
        }
        Ok(self.came.drain(..).collect())
    }

    /// Receives all that the store has sent so far. Events take one way, in order: when the first event of a watch made now is
    /// here, so are all before it.
    ///
    /// # Errors
    /// The store does not answer.
    pub(crate) fn catch_up(&mut self) -> Result<(), String> {
        let place = b"/transcripts-barrier\0barrier\0";
        if self.barrier.write(&own(WATCH, 0, place)).is_ok() {
            while self.barrier.next(PATIENCE_MS)?.kind != WATCH_EVENT {}
            self.barrier.ask(&own(UNWATCH, 0, place))?;
        } else {
            // No watch is left for this domain: what is on its way through the kernel gets time instead.
            self.barrier.ask(&own(GET_DOMAIN_PATH, 0, b"0\0"))?;
            if self.device.is_readable(ON_ITS_WAY_MS)? {
                self.read(0)?;
            }
        }
        while self.device.is_readable(0)? {
            self.read(0)?;
        }
        Ok(())
    }

    /// Ends what the kernel would end by and by after the device is closed.
    ///
    /// # Errors
    /// The store does not answer.
    pub(crate) fn end(mut self) -> Result<(), String> {
        self.take_replies()?;
        for request in std::mem::take(&mut self.held) {
            if self.device.write(&request).is_ok() {
                self.awaited += 1;
                self.take_replies()?;
            }
        }
        Ok(())
    }

    fn read(&mut self, patience_ms: u32) -> Result<(), String> {
        let mut message = self.device.next(patience_ms)?;
        if message.kind == WATCH_EVENT {
            // The kernel wrote this header, and says nothing in these.
            (message.req_id, message.tx_id) = (0, 0);
        } else {
            self.awaited = self.awaited.saturating_sub(1);
        }
        if message.kind == TRANSACTION_START
            && let Some(id) = transaction_id(&message.payload)
        {
            self.held.push(own(TRANSACTION_END, id, b"F\0"));
        }
        self.came.push_back(message);
        Ok(())
    }
}

impl Host for Xenbus {
    fn supports(&self, need: Need) -> bool {
        need == Need::FreshServer
    }

    fn keeps_order(&self, _: u16) -> bool {
        false
    }

    fn direct(&mut self, _: &Directive) -> Result<(), String> {
        Err("a device has clients only".to_owned())
    }

    fn send(&mut self, _: u16, bytes: &[u8]) -> Result<(), String> {
        let whole = Message::take_from(&mut bytes.to_vec())?;
        self.send(&whole.ok_or("the kernel passes on whole requests only")?)
    }

    fn receive(&mut self, _: u16) -> Result<Option<Message>, String> {
        self.receive()
    }

    fn is_stopped(&mut self, _: u16) -> bool {
        false
    }
}

/// The open device.
struct Device {
    file: File,
    /// Bytes that came and are no whole message yet.
    partial: Vec<u8>,
}

impl Device {
    fn open() -> Result<Self, String> {
        let file = OpenOptions::new().read(true).write(true).open(DEVICE);
        Ok(Self {
            file: file.map_err(|error| format!("{DEVICE}: {error}"))?,
            partial: Vec::new(),
        })
    }

    /// The error is that of `write`: the kernel's word on the request.
    fn write(&mut self, request: &Message) -> Result<(), Errno> {
        let written = self.file.write_all(&request.encode());
        written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    /// A request's reply; events that come before it are passed over.
    fn ask(&mut self, request: &Message) -> Result<(), String> {
        self.write(request)
            .map_err(|error| format!("{DEVICE}: {error}"))?;
        while self.next(PATIENCE_MS)?.kind == WATCH_EVENT {}
        Ok(())
    }

    fn next(&mut self, patience_ms: u32) -> Result<Message, String> {
        loop {
            if let Some(message) = Message::take_from(&mut self.partial)? {
                return Ok(message);
            }
            if !self.is_readable(patience_ms)? {
                return Err(format!("no reply came within {patience_ms} ms"));
            }
            let mut bytes = [0; 8192];
            let read = self.file.read(&mut bytes).map_err(|e| e.to_string())?;
            self.partial.extend(bytes.iter().take(read));
        }
    }

    fn is_readable(&self, patience_ms: u32) -> Result<bool, String> {
        Ok(!self.partial.is_empty() || is_readable(&self.file, patience_ms)?)
    }
}

/// Whether a file has something to read before the time is over.
///
/// # Errors
/// The file cannot be waited for.
pub(crate) fn is_readable(file: &File, patience_ms: u32) -> Result<bool, String> {
    let patience = Timespec {
        tv_sec: i64::from(patience_ms / 1000),
        tv_nsec: i64::from(patience_ms % 1000) * 1_000_000,
    };
    let mut waiting = [PollFd::new(file, PollFlags::IN)];
    poll(&mut waiting, Some(&patience))
        .map(|ready| ready > 0)
        .map_err(|error| error.to_string())
}

fn own(kind: u32, tx_id: u32, payload: &[u8]) -> Message {
    Message {
        kind,
        req_id: OWN_REQUEST,
        tx_id,
        payload: payload.to_vec(),
    }
}

fn name_of(refusal: Errno) -> Option<&'static str> {
    let known = ERRORS.iter().find(|(errno, _)| *errno == refusal);
    known.map(|(_, name)| *name)
}

fn transaction_id(payload: &[u8]) -> Option<u32> {
    let text = payload.strip_suffix(&[0])?;
    core::str::from_utf8(text).ok()?.parse().ok()
}
