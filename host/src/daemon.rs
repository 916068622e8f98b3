//! The server behind a unix socket: one thread, one epoll, and a client costs what it does.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::path::Path;
use std::time::{self, Duration};

use log::{debug, warn};
use mio::event::Event;
use mio::net::{UnixListener, UnixStream};
use mio::{Events, Interest, Poll, Token};
use rustix::net::sockopt::socket_peercred;
use xenstore::{ConnId, Instant, Progress, Server, Settings};

use crate::engine::Engine;

/// No connection has this place.
const LISTENER: Token = Token(usize::MAX);
/// Events taken from the kernel at a time.
const EVENTS_MAX: usize = 256;
/// Bytes read from a client at a time; what the server does not take at once waits, and nothing more is read.
const READ_BYTES: usize = 8192;
/// What the server may spend before sockets are looked at again.
const TURN_BUDGET: u32 = 256;

/// A server and its clients.
pub struct Daemon {
    server: Engine,
    poll: Poll,
    listener: UnixListener,
    /// Each at the place of its connection.
    clients: Vec<Option<Client>>,
    /// Clients that may have bytes to be read, each once.
    active: Vec<ConnId>,
    started: time::Instant,
    /// What is read goes through here.
    buffer: Box<[u8]>,
    /// Clients may be waiting at the listener: the last one could not be accepted.
    crowded: bool,
}

struct Client {
    conn: ConnId,
    stream: UnixStream,
    /// Bytes that the server has not taken yet.
    unread: Vec<u8>,
    /// The socket may have more to read.
    readable: bool,
    /// Nothing comes behind what the socket has.
    ending: bool,
    /// It stands among the active ones.
    active: bool,
}

/// The client has gone, or must.
struct Gone;

impl Daemon {
    /// Listens at `path`, in place of a socket that an earlier daemon left there. The clients of `path.dom1` to `path.dom`N play fake
    /// domains, N of them, at most 1000.
    ///
    /// # Errors
    /// A socket cannot be made, or is being served.
    pub fn listen(path: &Path, settings: Settings, domains: u16) -> io::Result<Self> {
        ensure_unserved(path)?;
        let poll = Poll::new()?;
        let server = Engine::new(settings, domains, path, poll.registry())?;
        // Last of all sockets: whoever finds it finds the others.
        let mut listener = bind(path)?;
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self {
            server,
            poll,
            listener,
            clients: Vec::new(),
            active: Vec::new(),
            started: time::Instant::now(),
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
                Progress::More => Some(Duration::ZERO),
                Progress::Idle => {
                    let due = self.server.poll_timeout();
                    due.map(|at| at.since(self.now(due)))
                }
            };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                if event.token() == LISTENER {
                    self.accept();
                } else {
                    self.wake(event);
                }
            }
            progress = self.turn();
        }
    }

    /// Moves bytes, runs requests, and moves what came of them.
    fn turn(&mut self) -> Progress {
        let due = self.server.poll_timeout();
        let now = self.now(due);
        if due.is_some_and(|due| due <= now) {
            self.server.handle_timeout(now);
        }
        let mut active = std::mem::take(&mut self.active);
        for conn in active.drain(..) {
            self.attend(conn, Client::receive);
        }
        if self.active.is_empty() {
            // Its memory is used again.
            self.active = active;
        }
        let progress = self.server.turn(now, TURN_BUDGET);
        while let Some(conn) = self.server.next_ready() {
            self.attend(conn, Client::send);
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
        if !is_trusted(&stream) {
            return;
        }
        let conn = self.server.open_socket();
        let token = Token(conn.place());
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut stream, token, interest) {
            self.server.close_socket(conn);
            return warn!("cannot watch a client: {error}");
        }
        if self.clients.len() <= conn.place() {
            self.clients.resize_with(conn.place() + 1, || None);
        }
        if let Some(place) = self.clients.get_mut(conn.place()) {
            *place = Some(Client {
                conn,
                stream,
                unread: Vec::new(),
                readable: true,
                ending: false,
                active: true,
            });
            self.active.push(conn);
        }
    }

    /// The kernel has news of a client. If that one has gone and another has its place, it is looked at in vain.
    fn wake(&mut self, event: &Event) {
        let place = self.clients.get_mut(event.token().0);
        let Some(client) = place.and_then(Option::as_mut) else {
            return self.server.wake(event);
        };
        if event.is_readable() {
            client.readable = true;
            client.ending |= event.is_read_closed();
            activate(client, &mut self.active);
        }
        if event.is_writable() {
            let conn = client.conn;
            self.attend(conn, Client::send);
        }
    }

    /// Moves bytes of a client, and parts from it if it has gone. What makes the server take bytes again wakes it.
    fn attend(
        &mut self,
        conn: ConnId,
        work: impl FnOnce(&mut Client, &mut Server, &mut [u8]) -> Result<(), Gone>,
    ) {
        let place = self.clients.get_mut(conn.place());
        let Some(client) = place.and_then(Option::as_mut) else {
            return;
        };
        if client.conn != conn {
            return;
        }
        client.active = false;
        if work(client, &mut self.server, &mut self.buffer).is_err() {
            self.part_from(conn);
        } else if !client.unread.is_empty() && self.server.takes_bytes(conn) {
            activate(client, &mut self.active);
        }
    }

    fn part_from(&mut self, conn: ConnId) {
        self.server.close_socket(conn);
        let place = self.clients.get_mut(conn.place());
        if let Some(mut client) = place.and_then(Option::take)
            && let Err(error) = self.poll.registry().deregister(&mut client.stream)
        {
            warn!("a client's socket stays watched: {error}");
        }
        // The kernel tells of those who wait at the listener only once, when they come.
        if self.crowded {
            self.accept();
        }
    }

    /// The time, if anything depends on it: something is `due`, or could be.
    fn now(&self, due: Option<Instant>) -> Instant {
        if due.is_some() || self.server.needs_time() {
            Instant::default().after(self.started.elapsed())
        } else {
            Instant::default()
        }
    }
}

/// A listener at `path`, in place of a socket that nobody serves.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    ensure_unserved(path)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

fn ensure_unserved(path: &Path) -> io::Result<()> {
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "it is being served")),
        Err(_) => Ok(()),
    }
}

/// Whether a client runs as root or as this daemon.
pub(crate) fn is_trusted(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid();
    match socket_peercred(stream) {
        Ok(peer) if peer.uid.is_root() || peer.uid == own => return true,
        Ok(peer) => warn!("refused a client of user {}", peer.uid.as_raw()),
        Err(error) => warn!("refused a client that cannot be told: {error}"),
    }
    false
}

impl Client {
    /// Sends what waits, as far as the socket takes it.
    fn send(&mut self, server: &mut Server, _: &mut [u8]) -> Result<(), Gone> {
        loop {
            let pieces = server.poll_message(self.conn);
            if pieces.iter().all(|piece| piece.is_empty()) {
                return Ok(());
            }
            match self.stream.write_vectored(&pieces.map(IoSlice::new)) {
                Ok(sent) => {
                    if !server.consume_output(self.conn, sent) {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Gone),
            }
        }
    }

    /// Gives the server what it takes, and reads more only when it has taken all.
    fn receive(&mut self, server: &mut Server, buffer: &mut [u8]) -> Result<(), Gone> {
        if !self.unread.is_empty() {
            let taken = give(server, self.conn, &self.unread)?;
            self.unread.drain(..taken);
        }
        while self.unread.is_empty() && self.readable {
            let read = match self.stream.read(buffer) {
                Ok(0) => return Err(Gone),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Err(Gone),
            };
            // When it gives less than it could, the kernel tells again when there is more.
            self.readable = self.ending || read == buffer.len();
            let bytes = buffer.get(..read).unwrap_or_default();
            let taken = give(server, self.conn, bytes)?;
            let rest = bytes.get(taken..).unwrap_or_default();
            self.unread.extend_from_slice(rest);
        }
        Ok(())
    }
}

fn give(server: &mut Server, conn: ConnId, bytes: &[u8]) -> Result<usize, Gone> {
    server.handle_bytes(conn, bytes).map_err(|fault| {
        debug!("a client is dropped: {fault:?}");
        Gone
    })
}

fn activate(client: &mut Client, active: &mut Vec<ConnId>) {
    if !std::mem::replace(&mut client.active, true) {
        active.push(client.conn);
    }
}
