//! The server behind a unix socket: one thread, one epoll, and a client costs what it does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::time;

use log::{debug, info, warn};
use mio::net::{UnixListener, UnixStream};
use mio::{Events, Interest, Poll, Token};
use rustix::net::sockopt::socket_peercred;
use xenstore::{Action, ConnId, Errno, Instant, Outcome, Progress, Server, Settings};

const LISTENER: Token = Token(0);
/// Events taken from the kernel at a time.
const EVENTS_MAX: usize = 256;
/// Bytes read from a client at a time; what the server does not take at once waits, and nothing more is read.
const READ_BYTES: usize = 8192;
/// What the server may spend before sockets are looked at again.
const TURN_BUDGET: u32 = 256;

/// A server and its clients.
pub struct Daemon {
    server: Server,
    poll: Poll,
    listener: UnixListener,
    clients: BTreeMap<ConnId, Client>,
    by_token: BTreeMap<Token, ConnId>,
    /// Clients that may have bytes to move.
    active: BTreeSet<ConnId>,
    started: time::Instant,
    next_token: usize,
    /// What is read goes through here.
    buffer: Box<[u8]>,
    /// Clients may be waiting at the listener: the last one could not be accepted.
    crowded: bool,
}

struct Client {
    stream: UnixStream,
    token: Token,
    /// Bytes that the server has not taken yet.
    unread: Vec<u8>,
    /// The socket had more to read when it was looked at last.
    readable: bool,
}

/// The client has gone, or must.
struct Gone;

impl Daemon {
    /// Listens at `path`, in place of a socket that an earlier daemon left there.
    ///
    /// # Errors
    /// The socket cannot be made, or is being served.
    pub fn listen(path: &Path, settings: Settings) -> io::Result<Self> {
        if UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(ErrorKind::AddrInUse, "it is being served"));
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut listener = UnixListener::bind(path)?;
        let poll = Poll::new()?;
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self {
            server: Server::new(settings),
            poll,
            listener,
            clients: BTreeMap::new(),
            by_token: BTreeMap::new(),
            active: BTreeSet::new(),
            started: time::Instant::now(),
            next_token: LISTENER.0 + 1,
            buffer: vec![0; READ_BYTES].into(),
            crowded: false,
        })
    }

    /// Serves for ever.
    ///
    /// # Errors
    /// The kernel gives no more events.
    pub fn serve(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut progress = Progress::Idle;
        loop {
            let timeout = match progress {
                Progress::More => Some(time::Duration::ZERO),
                Progress::Idle => self.server.poll_timeout().map(|due| due.since(self.now())),
            };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                if event.token() == LISTENER {
                    self.accept();
                } else if let Some(conn) = self.by_token.get(&event.token()).copied() {
                    self.wake(conn, event.is_readable());
                }
            }
            progress = self.turn();
        }
    }

    /// Moves bytes, runs requests, and moves what came of them.
    fn turn(&mut self) -> Progress {
        let now = self.now();
        if self.server.poll_timeout().is_some_and(|due| due <= now) {
            self.server.handle_timeout(now);
        }
        let clients = self.clients.len();
        for conn in std::mem::take(&mut self.active) {
            self.attend(conn);
        }
        // The kernel tells of those who wait only once, when they come.
        if self.crowded && self.clients.len() < clients {
            self.accept();
        }
        let mut progress = self.server.run(now, TURN_BUDGET);
        while let Some(action) = self.server.poll_action() {
            self.act(&action);
            progress = Progress::More;
        }
        while let Some(conn) = self.server.poll_ready() {
            self.active.insert(conn);
        }
        if self.active.is_empty() {
            progress
        } else {
            Progress::More
        }
    }

    fn accept(&mut self) {
        self.crowded = false;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.welcome(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    warn!("cannot accept a client: {error}");
                    self.crowded = true;
                    return;
                }
            }
        }
    }

    /// Takes a client on, if it runs as root or as this daemon: all clients of the socket may do everything.
    fn welcome(&mut self, mut stream: UnixStream) {
        let own = rustix::process::geteuid();
        match socket_peercred(&stream) {
            Ok(peer) if peer.uid.is_root() || peer.uid == own => {}
            Ok(peer) => return warn!("refused a client of user {}", peer.uid.as_raw()),
            Err(error) => return warn!("refused a client that cannot be told: {error}"),
        }
        let token = Token(self.next_token);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut stream, token, interest) {
            return warn!("cannot watch a client: {error}");
        }
        self.next_token += 1;
        let conn = self.server.open_socket();
        self.by_token.insert(token, conn);
        let client = Client {
            stream,
            token,
            unread: Vec::new(),
            readable: true,
        };
        self.clients.insert(conn, client);
        self.active.insert(conn);
    }

    fn wake(&mut self, conn: ConnId, readable: bool) {
        if let Some(client) = self.clients.get_mut(&conn) {
            client.readable |= readable;
            self.active.insert(conn);
        }
    }

    fn attend(&mut self, conn: ConnId) {
        let Some(client) = self.clients.get_mut(&conn) else {
            return;
        };
        let moved = client
            .send(conn, &mut self.server)
            .and_then(|()| client.receive(conn, &mut self.server, &mut self.buffer));
        if moved.is_err() {
            self.part_from(conn);
        }
    }

    fn part_from(&mut self, conn: ConnId) {
        self.server.close_socket(conn);
        if let Some(mut client) = self.clients.remove(&conn) {
            self.by_token.remove(&client.token);
            if let Err(error) = self.poll.registry().deregister(&mut client.stream) {
                warn!("a client's socket stays watched: {error}");
            }
        }
    }

    /// There is no hypervisor here: no domain but the clients' own exists.
    fn act(&mut self, action: &Action) {
        match *action {
            Action::Connect { ticket, domid, .. } => {
                info!("domain {domid} cannot be introduced: there is no hypervisor");
                self.server
                    .handle_completed(ticket, Outcome::Refused(Errno::EINVAL));
            }
            Action::Identify { ticket, .. } => {
                self.server
                    .handle_completed(ticket, Outcome::Identified(None));
            }
            Action::Disconnect { .. } => {}
        }
    }

    fn now(&self) -> Instant {
        Instant::default().after(self.started.elapsed())
    }
}

impl Client {
    /// Sends what waits, as far as the socket takes it.
    fn send(&mut self, conn: ConnId, server: &mut Server) -> Result<(), Gone> {
        loop {
            let output = server.poll_output(conn);
            if output.is_empty() {
                return Ok(());
            }
            match self.stream.write(output) {
                Ok(sent) => server.consume_output(conn, sent),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Gone),
            }
        }
    }

    /// Gives the server what it takes, and reads more only when it has taken all.
    fn receive(
        &mut self,
        conn: ConnId,
        server: &mut Server,
        buffer: &mut [u8],
    ) -> Result<(), Gone> {
        loop {
            let taken = server.handle_bytes(conn, &self.unread).map_err(|fault| {
                debug!("a client is dropped: {fault:?}");
                Gone
            })?;
            self.unread.drain(..taken);
            if !self.unread.is_empty() || !self.readable {
                return Ok(());
            }
            let read = self.stream.read(buffer);
            match read {
                Ok(0) => return Err(Gone),
                Ok(read) => self
                    .unread
                    .extend_from_slice(buffer.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Gone),
            }
        }
    }
}
