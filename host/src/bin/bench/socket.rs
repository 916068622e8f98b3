//! A server behind a unix socket, in a process of its own that is started for each group of workloads.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use xenstore::wire::{HEADER_SIZE, Header};

use crate::target::{Client, Failure, Message, Target};

/// How long a server may take to begin or to answer; under callgrind everything is slow.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two attempts to connect to a server that is starting.
const PAUSE: Duration = Duration::from_millis(20);

pub(crate) struct Socket {
    name: String,
    path: PathBuf,
    program: OsString,
    arguments: Vec<OsString>,
    server: Option<Child>,
    clients: Vec<UnixStream>,
}

impl Socket {
    pub(crate) fn new(
        name: &str,
        path: PathBuf,
        program: OsString,
        arguments: Vec<OsString>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            path,
            program,
            arguments,
            server: None,
            clients: Vec::new(),
        }
    }

    fn stop(&mut self) {
        self.clients.clear();
        if let Some(mut server) = self.server.take() {
            // It may have ended by itself; there is nothing to do about either.
            drop(server.kill());
            drop(server.wait());
        }
    }

    fn wait_until_served(&mut self) -> Result<(), Failure> {
        let begun = Instant::now();
        while UnixStream::connect(&self.path).is_err() {
            let server = self.server.as_mut().ok_or("no server")?;
            if let Some(status) = server.try_wait()? {
                return Err(format!("{} ended: {status}", self.name).into());
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("{} does not serve", self.name).into());
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

impl Target for Socket {
    fn name(&self) -> &str {
        &self.name
    }

    fn restart(&mut self) -> Result<(), Failure> {
        self.stop();
        if self.path.exists() {
            std::fs::remove_file(&self.path)?;
        }
        let server = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        self.server = Some(server);
        self.wait_until_served()
    }

    fn process(&self) -> u32 {
        self.server.as_ref().map_or(0, Child::id)
    }

    fn has_domains(&self) -> bool {
        false
    }

    fn open(&mut self) -> Result<Client, Failure> {
        let stream = UnixStream::connect(&self.path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        self.clients.push(stream);
        Ok(Client(self.clients.len().saturating_sub(1)))
    }

    fn send(&mut self, client: Client, request: &[u8]) -> Result<(), Failure> {
        let stream = self.clients.get_mut(client.0).ok_or("no such client")?;
        Ok(stream.write_all(request)?)
    }

    fn receive(&mut self, client: Client) -> Result<Message, Failure> {
        let stream = self.clients.get_mut(client.0).ok_or("no such client")?;
        let mut header = [0; HEADER_SIZE];
        stream.read_exact(&mut header)?;
        let header = Header::decode(header);
        let mut payload = vec![0; usize::try_from(header.len)?];
        stream.read_exact(&mut payload)?;
        Ok(Message {
            kind: header.kind,
            payload,
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.stop();
    }
}
