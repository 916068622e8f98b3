//! A store to be measured, as its clients see it: requests go out as bytes, messages come back.

use std::error::Error;

use xenstore::Errno;
use xenstore::wire::{HEADER_SIZE, Header, Kind};

/// Why a run cannot go on.
pub(crate) type Failure = Box<dyn Error>;

/// A connection of a [`Target`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Client(pub(crate) usize);

/// A message from the server.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) kind: u32,
    pub(crate) payload: Vec<u8>,
}

/// A server with clients that may do everything.
pub(crate) trait Target {
    /// What the figures are printed under.
    fn name(&self) -> &str;

    /// Starts anew: an empty store without clients.
    fn restart(&mut self) -> Result<(), Failure>;

    /// The process in which the server runs.
    fn process(&self) -> u32;

    /// Whether domains can be introduced.
    fn has_domains(&self) -> bool;

    fn open(&mut self) -> Result<Client, Failure>;

    fn send(&mut self, client: Client, request: &[u8]) -> Result<(), Failure>;

    /// The next message for this client; waits for it.
    fn receive(&mut self, client: Client) -> Result<Message, Failure>;
}

/// The requests of one client.
pub(crate) struct Session<'a> {
    pub(crate) target: &'a mut dyn Target,
    pub(crate) client: Client,
    /// The transaction that requests belong to, 0 for none.
    pub(crate) transaction: u32,
    /// Requests made.
    pub(crate) requests: u32,
}

impl<'a> Session<'a> {
    pub(crate) fn new(target: &'a mut dyn Target, client: Client) -> Self {
        Self {
            target,
            client,
            transaction: 0,
            requests: 0,
        }
    }

    /// Makes a request and waits for its reply; events that come before are dropped.
    pub(crate) fn call(&mut self, kind: Kind, payload: &[u8]) -> Result<Message, Failure> {
        let header = Header {
            kind: kind.number(),
            tx_id: self.transaction,
            len: u32::try_from(payload.len())?,
            ..Header::default()
        };
        let request = [&header.encode(), payload].concat();
        self.target.send(self.client, &request)?;
        self.requests = self.requests.wrapping_add(1);
        loop {
            let message = self.target.receive(self.client)?;
            if message.kind != Kind::WatchEvent.number() {
                return Ok(message);
            }
        }
    }

    /// As [`Session::call`]; an error in the reply ends the run.
    pub(crate) fn done(&mut self, kind: Kind, payload: &[u8]) -> Result<Vec<u8>, Failure> {
        let reply = self.call(kind, payload)?;
        if reply.kind == Kind::Error.number() {
            let shown = String::from_utf8_lossy(payload).replace('\0', " ");
            let error = String::from_utf8_lossy(&reply.payload).into_owned();
            return Err(format!("{kind} {shown}: {error}").into());
        }
        Ok(reply.payload)
    }

    pub(crate) fn read(&mut self, path: &str) -> Result<Vec<u8>, Failure> {
        self.done(Kind::Read, &onearg(path))
    }

    /// As [`Session::read`]; the node may be missing.
    pub(crate) fn probe(&mut self, path: &str) -> Result<(), Failure> {
        self.call(Kind::Read, &onearg(path)).map(drop)
    }

    pub(crate) fn write(&mut self, path: &str, value: &str) -> Result<(), Failure> {
        let payload = [path.as_bytes(), &[0], value.as_bytes()].concat();
        self.done(Kind::Write, &payload).map(drop)
    }

    pub(crate) fn mkdir(&mut self, path: &str) -> Result<(), Failure> {
        self.done(Kind::Mkdir, &onearg(path)).map(drop)
    }

    /// Removes a node; it may be missing.
    pub(crate) fn rm(&mut self, path: &str) -> Result<(), Failure> {
        self.call(Kind::Rm, &onearg(path)).map(drop)
    }

    pub(crate) fn set_perms(&mut self, path: &str, entries: &[String]) -> Result<(), Failure> {
        let mut payload = onearg(path);
        for entry in entries {
            payload.extend(onearg(entry));
        }
        self.done(Kind::SetPerms, &payload).map(drop)
    }

    /// Sets a watch and takes its first event.
    pub(crate) fn watch(&mut self, path: &str, token: &str) -> Result<(), Failure> {
        self.done(Kind::Watch, &[onearg(path), onearg(token)].concat())?;
        self.target.receive(self.client).map(drop)
    }

    pub(crate) fn unwatch(&mut self, path: &str, token: &str) -> Result<(), Failure> {
        self.done(Kind::Unwatch, &[onearg(path), onearg(token)].concat())
            .map(drop)
    }

    /// Starts a transaction; requests belong to it until [`Session::end`].
    pub(crate) fn start(&mut self) -> Result<u32, Failure> {
        let reply = self.done(Kind::TransactionStart, &[0])?;
        let text = std::str::from_utf8(&reply)?.trim_end_matches('\0');
        self.transaction = text.parse()?;
        Ok(self.transaction)
    }

    /// Ends the transaction; `false` if it must be done again.
    pub(crate) fn end(&mut self) -> Result<bool, Failure> {
        let reply = self.call(Kind::TransactionEnd, b"T\0")?;
        self.transaction = 0;
        let again = onearg(Errno::EAGAIN.name());
        if reply.kind != Kind::Error.number() {
            Ok(true)
        } else if reply.payload == again {
            Ok(false)
        } else {
            Err(String::from_utf8_lossy(&reply.payload).into())
        }
    }

    /// Drops the transaction.
    pub(crate) fn abort(&mut self) -> Result<(), Failure> {
        self.done(Kind::TransactionEnd, b"F\0")?;
        self.transaction = 0;
        Ok(())
    }

    /// Lists a directory in parts, as `xenstore-ls` does; gives the number of children.
    pub(crate) fn list(&mut self, path: &str) -> Result<usize, Failure> {
        let mut list = Vec::new();
        loop {
            let reply = self.part(path, list.len())?;
            let mut halves = reply.splitn(2, |byte| *byte == 0);
            let part = halves.nth(1).ok_or("a part without a generation")?;
            list.extend_from_slice(part);
            if part == [0] || part.ends_with(&[0, 0]) {
                return Ok(list
                    .split(|byte| *byte == 0)
                    .filter(|name| !name.is_empty())
                    .count());
            }
        }
    }

    pub(crate) fn part(&mut self, path: &str, offset: usize) -> Result<Vec<u8>, Failure> {
        let payload = [onearg(path), onearg(&offset.to_string())].concat();
        self.done(Kind::DirectoryPart, &payload)
    }
}

/// Takes one message off the front of `bytes`, if all of it is there.
pub(crate) fn split_message(bytes: &[u8]) -> Option<(Message, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_SIZE>()?;
    let header = Header::decode(*header);
    let (payload, rest) = rest.split_at_checked(usize::try_from(header.len).ok()?)?;
    let message = Message {
        kind: header.kind,
        payload: payload.to_vec(),
    };
    Some((message, rest))
}

/// A string and its NUL.
pub(crate) fn onearg(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}
