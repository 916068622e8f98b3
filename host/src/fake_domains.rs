//! Fake domains for development: each is a ring in memory and a unix socket whose client plays the guest.
//!
//! Below the store is the dispatcher of the unikernel over a machine in memory, so that a guest's bytes take the real way: ring, event,
//! link, connection. The client's bytes go into the ring as they are and the ring's bytes come out as they are; there is no other
//! buffer, so that a client that does not read is a guest that does not. When a client goes, the domain asks for a new connection
//! through its ring page, and the next client, who waited at the socket, finds it new. Nothing is ever polled: a domain is looked at
//! when its socket or its ring had an event.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use kernel::config::Config;
use kernel::dispatch::Dispatcher;
use kernel::fake::FakeXen;
use kernel::ring::RING_BYTES;
use log::{debug, warn};
use mio::event::Event;
use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use xenstore::wire::{HEADER_SIZE, Header, Kind};
use xenstore::{ConnId, DomId, EvtchnPort, Instant, Progress, Server, Settings};

use crate::daemon::{bind, is_trusted};
use crate::guest_ring::GuestRing;

/// Most fake domains: far fewer than ports or domids, and each takes two open files.
const DOMAINS_MAX: u16 = 1000;
/// Tokens of the domains' sockets begin here, far above those of the daemon's own clients; each domain has two.
const FIRST_TOKEN: usize = usize::MAX / 2;
/// The port that every domain has for its ring, the first that it allocates.
const PORT: EvtchnPort = EvtchnPort(1);
/// The machine's command line. No event is lost here, so that no ring needs a scan.
const COMMAND_LINE: &[u8] = b"--event 1 ring-scan=-1";
/// Far more than one of the toolstack's requests needs.
const TURNS_MAX: u32 = 1000;

/// A machine in memory, the store in it, and who plays its domains.
pub(crate) struct FakeDomains {
    xen: FakeXen,
    dispatcher: Dispatcher<FakeXen>,
    registry: Registry,
    domains: BTreeMap<DomId, FakeDomain>,
    /// Domains that may have something to move.
    active: BTreeSet<DomId>,
    /// The daemon's own connections that are ready, as the store named them.
    others: VecDeque<ConnId>,
    /// Domains whose next client could not be accepted.
    crowded: BTreeSet<DomId>,
}

struct FakeDomain {
    ring: GuestRing,
    token: Token,
    listener: UnixListener,
    path: PathBuf,
    /// Somebody may wait at the listener.
    awaited: bool,
    client: Option<Client>,
}

struct Client {
    stream: UnixStream,
    /// The socket had more to read when it was looked at last.
    readable: bool,
}

/// The client has gone, or must.
struct Gone;

impl FakeDomains {
    /// A machine with `count` domains from 1 on, introduced, each with a home of its own.
    ///
    /// # Errors
    /// There are too many, or the socket of one cannot be made.
    pub(crate) fn new(
        settings: Settings,
        count: u16,
        path: &Path,
        registry: &Registry,
    ) -> io::Result<Self> {
        if count > DOMAINS_MAX {
            let why = format!("at most {DOMAINS_MAX} domains can be made");
            return Err(io::Error::new(ErrorKind::InvalidInput, why));
        }
        let xen = FakeXen::default();
        let privileged = settings.privileged;
        xen.create(privileged);
        xen.allocate_port(privileged);
        let config =
            Config::parse(COMMAND_LINE).map_err(|error| io::Error::other(error.to_string()))?;
        let server = Server::new(settings);
        let dispatcher = Dispatcher::start(xen.clone(), server, privileged, &config)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let mut machine = Self {
            xen,
            dispatcher,
            registry: registry.try_clone()?,
            domains: BTreeMap::new(),
            active: BTreeSet::new(),
            others: VecDeque::new(),
            crowded: BTreeSet::new(),
        };
        for domid in 1..=count {
            machine.build(DomId::new(domid), path)?;
        }
        machine.introduce_all()?;
        Ok(machine)
    }

    pub(crate) fn server(&self) -> &Server {
        self.dispatcher.server()
    }

    pub(crate) fn server_mut(&mut self) -> &mut Server {
        self.dispatcher.server_mut()
    }

    /// Takes an event of the kernel, if it is of a domain's socket.
    pub(crate) fn wake(&mut self, event: &Event) {
        let Some((domid, of_client)) = whose(event.token()) else {
            return;
        };
        let Some(domain) = self.domains.get_mut(&domid) else {
            return;
        };
        match &mut domain.client {
            Some(client) if of_client => client.readable |= event.is_readable(),
            _ => domain.awaited |= !of_client,
        }
        self.active.insert(domid);
    }

    /// Moves bytes between sockets and rings, and gives the dispatcher its turn.
    pub(crate) fn turn(&mut self, now: Instant) -> Progress {
        self.xen.advance(now.since(self.xen.time()));
        self.active.append(&mut self.crowded);
        for domid in std::mem::take(&mut self.active) {
            self.attend(domid);
        }
        let others = &mut self.others;
        let progress = self
            .dispatcher
            .turn_beside(&mut |conn| others.push_back(conn));
        self.active.append(&mut self.xen.take_notified());
        // What the others take may let more requests run.
        if self.active.is_empty() && self.others.is_empty() {
            progress
        } else {
            Progress::More
        }
    }

    /// The next of the daemon's own connections that is ready.
    pub(crate) fn next_ready(&mut self) -> Option<ConnId> {
        self.others.pop_front()
    }

    fn attend(&mut self, domid: DomId) {
        let Some(domain) = self.domains.get_mut(&domid) else {
            return;
        };
        let before = domain.client.is_some();
        if domain.accept(&self.registry).is_err() {
            self.crowded.insert(domid);
        }
        match domain.exchange() {
            Ok(0) => {}
            Ok(_) => self.xen.send(domid, PORT),
            Err(Gone) => {
                domain.part_from_client(&self.registry);
                self.xen.send(domid, PORT);
            }
        }
        if before != domain.client.is_some() {
            let now = if before { "has gone" } else { "is there" };
            debug!("domain {domid}: its client {now}");
        }
    }
}

/// The toolstack's part.
impl FakeDomains {
    fn build(&mut self, domid: DomId, path: &Path) -> io::Result<()> {
        self.xen.create(domid);
        let port = self.xen.allocate_port(domid);
        let token = token_of(domid);
        let mut name = OsString::from(path);
        name.push(format!(".dom{domid}"));
        let path = PathBuf::from(name);
        let cannot = |error| {
            let why = format!("{}: {error}", path.display());
            io::Error::other(why)
        };
        let mut listener = bind(&path).map_err(cannot)?;
        self.registry
            .register(&mut listener, token, Interest::READABLE)?;
        let domain = FakeDomain {
            ring: GuestRing::new(self.xen.page(domid), port.0),
            token,
            listener,
            path,
            awaited: false,
            client: None,
        };
        self.domains.insert(domid, domain);
        Ok(())
    }

    /// Does for all domains what libxl does, over a connection of its own.
    fn introduce_all(&mut self) -> io::Result<()> {
        let conn = self.server_mut().open_socket();
        let domids: Vec<DomId> = self.domains.keys().copied().collect();
        for domid in domids {
            let home = format!("/local/domain/{domid}\0");
            self.ask(conn, Kind::Mkdir, &home)?;
            self.ask(conn, Kind::SetPerms, &format!("{home}n{domid}\0"))?;
            self.ask(conn, Kind::Introduce, &format!("{domid}\00\0{}\0", PORT.0))?;
        }
        self.server_mut().close_socket(conn);
        Ok(())
    }

    fn ask(&mut self, conn: ConnId, kind: Kind, payload: &str) -> io::Result<()> {
        let header = Header {
            kind: kind.number(),
            len: u32::try_from(payload.len()).map_err(io::Error::other)?,
            ..Header::default()
        };
        let request = [&header.encode(), payload.as_bytes()].concat();
        let mut reply = Vec::new();
        let mut sent = 0;
        for _ in 0..TURNS_MAX {
            let server = self.dispatcher.server_mut();
            let rest = request.get(sent..).unwrap_or_default();
            sent += server
                .handle_bytes(conn, rest)
                .map_err(|fault| io::Error::other(format!("{fault:?}")))?;
            self.dispatcher.turn();
            let server = self.dispatcher.server_mut();
            while let output @ [_, ..] = server.poll_output(conn) {
                let taken = output.len();
                reply.extend_from_slice(output);
                server.consume_output(conn, taken);
            }
            if let Some(header) = reply.first_chunk::<HEADER_SIZE>() {
                let answered = Header::decode(*header).kind == kind.number();
                let refused = || io::Error::other(format!("{kind:?} was refused"));
                return answered.then_some(()).ok_or_else(refused);
            }
        }
        Err(io::Error::other(format!("{kind:?} has no answer")))
    }
}

/// The guest's part.
impl FakeDomain {
    /// Takes the next client on, if there is none and the ring is new.
    ///
    /// # Errors
    /// One waits and cannot be taken.
    fn accept(&mut self, registry: &Registry) -> io::Result<()> {
        while self.awaited && self.client.is_none() && self.ring.is_connected() {
            match self.listener.accept() {
                Ok((stream, _)) if is_trusted(&stream) => self.welcome(stream, registry)?,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.awaited = false,
                Err(error) => {
                    warn!("{}: cannot accept a client: {error}", self.path.display());
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn welcome(&mut self, mut stream: UnixStream, registry: &Registry) -> io::Result<()> {
        let token = Token(self.token.0 + 1);
        let interest = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut stream, token, interest)?;
        self.client = Some(Client {
            stream,
            readable: true,
        });
        Ok(())
    }

    /// Moves what can be moved both ways, and answers how many bytes that was.
    fn exchange(&mut self) -> Result<usize, Gone> {
        let Some(client) = &mut self.client else {
            return Ok(0);
        };
        if self.ring.is_stopped() || self.ring.is_renewed() {
            return Err(Gone);
        }
        Ok(client.take(&mut self.ring)? + client.give(&mut self.ring)?)
    }

    fn part_from_client(&mut self, registry: &Registry) {
        if let Some(mut client) = self.client.take()
            && let Err(error) = registry.deregister(&mut client.stream)
        {
            warn!("a client's socket stays watched: {error}");
        }
        self.ring.reconnect();
    }
}

impl Client {
    /// Gives the client what came out of the ring, as far as its socket takes it.
    fn take(&mut self, ring: &mut GuestRing) -> Result<usize, Gone> {
        let mut buffer = [0; RING_BYTES];
        let mut bytes = ring.peek(&mut buffer);
        let mut moved = 0;
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(sent) => {
                    ring.consume(sent);
                    bytes = bytes.get(sent..).unwrap_or_default();
                    moved += sent;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Gone),
            }
        }
        Ok(moved)
    }

    /// Puts what the client says into the ring, as far as there is room.
    fn give(&mut self, ring: &mut GuestRing) -> Result<usize, Gone> {
        let mut buffer = [0; RING_BYTES];
        let mut moved = 0;
        while self.readable
            && let room @ [_, ..] = buffer.get_mut(..ring.room()).unwrap_or_default()
        {
            match self.stream.read(room) {
                Ok(0) => return Err(Gone),
                Ok(read) => {
                    ring.send(room.get(..read).unwrap_or_default());
                    moved += read;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Gone),
            }
        }
        Ok(moved)
    }
}

/// The token of a domain's listener; its client has the next one.
fn token_of(domid: DomId) -> Token {
    Token(FIRST_TOKEN + 2 * usize::from(domid.get()))
}

/// Whose token it is, and whether the client's.
fn whose(token: Token) -> Option<(DomId, bool)> {
    let offset = token.0.checked_sub(FIRST_TOKEN)?;
    let domid = u16::try_from(offset / 2).ok()?;
    Some((DomId::new(domid), offset % 2 == 1))
}
