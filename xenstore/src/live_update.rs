//! Live update: an administrator sends the image of the next instance over CONTROL and starts it.
//!
//! Here is the protocol, and when an update may be made; the image's bytes are passed on to the host's [`Updater`] as they come. What there is
//! to hand over is told by [`Server::poll_update`], once; until the next instance has all of it nothing has changed here.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use core::time::Duration;

use crate::answer::Answer;
use crate::connection::Request;
use crate::database::Refusal;
use crate::ids::ConnId;
use crate::server::Server;
use crate::state::{Format, Host, LeftOut, Size};
use crate::storage::Storage;
use crate::wire::{Errno, Header, decimal, one, strings};

/// The name of the command.
pub(crate) const NAME: &str = "live-update";
/// How the help shows its parameters, those of `xenstore-control`.
pub(crate) const PARAMETERS: &str =
    "[-c <cmdline>] [-F] [-t <timeout>] <file>\n    Default timeout is 60 seconds.";
/// Most of what is left out that a reply names.
const LEFT_OUT_SHOWN: usize = 32;

/// What the host does with the image of the next instance.
pub trait Updater {
    /// Makes room for an image of so many bytes, at least 1.
    ///
    /// # Errors
    /// There is none: "Allocation failure." to C xenstored.
    fn begin(&mut self, size: u64) -> Result<(), Refused>;

    /// Takes the next bytes of the image, never more of them in all than its size.
    ///
    /// # Errors
    /// What is wrong with them.
    fn append(&mut self, bytes: &[u8]) -> Result<(), Refused>;

    /// Looks at the image, all of whose bytes are there.
    ///
    /// # Errors
    /// What is wrong with it.
    fn check(&mut self) -> Result<Reads, Refused>;

    /// Bytes that may be handed over. In another format than [`Format::Own`] that is two streams: behind the one for the next instance, one in
    /// our own for this image, should it come back.
    fn room(&self) -> u64;

    /// Drops the image: the update was given up, or its requester is gone.
    fn drop_image(&mut self);
}

/// Why an update is not made, as the administrator reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub String);

/// Which streams an image reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reads {
    /// The highest version, 1 or 2.
    pub version: u32,
    /// It is this server, and reads [`Format::Own`] if the version is 2.
    pub is_own: bool,
    /// What it calls itself, for the log.
    pub name: String,
}

/// An update that is to be made now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdatePlan {
    /// What the next instance reads.
    pub format: Format,
    /// What it is to be told when it starts; none for what this one was told.
    pub command_line: Option<String>,
    /// Nothing that is lost matters.
    pub is_forced: bool,
    /// What the administrator would have waited for open transactions; they are carried, so there is no such wait.
    pub timeout: Duration,
}

/// The state of live update.
#[derive(Default)]
pub(crate) struct LiveUpdate {
    updater: Option<Box<dyn Updater>>,
    session: Option<Session>,
    /// The request that is answered by the next instance, or here if the update fails.
    pub(crate) unanswered: Option<Unanswered>,
}

/// From an image's first byte to the update, of one connection.
struct Session {
    conn: ConnId,
    size: u64,
    received: u64,
    command_line: Option<String>,
    /// What was asked for last, until it is told to the host.
    start: Option<UpdatePlan>,
}

/// A request to start an update.
#[derive(Clone, Copy)]
pub(crate) struct Unanswered {
    pub(crate) conn: ConnId,
    pub(crate) header: Header,
}

/// What an update's steps are answered: text, of success or failure, or an error if they are malformed.
type Step = Result<Result<(), Refused>, Refusal>;

/// For the host.
impl<S: Storage> Server<S> {
    /// Live update is done by `updater` from now on. Without one CONTROL knows no command of that name.
    pub fn set_updater(&mut self, updater: Box<dyn Updater>) {
        self.live_update.updater = Some(updater);
    }

    /// The update that is to be made now, once; `host` is what will be given to [`Server::export`]. The host exports in the plan's format,
    /// hands over, and calls [`Server::update_failed`] if that was in vain.
    ///
    /// The stream says who is to be answered: in [`Format::Own`] the next instance calls [`Server::update_done`]; in the others the answer is
    /// the last of its connection's output.
    pub fn poll_update(&mut self, host: &dyn Host) -> Option<UpdatePlan> {
        let plan = self.live_update.session.as_mut()?.start.take()?;
        let allowed = match self.may_lose(&plan) {
            Ok(()) if self.surely_fits(&plan, host) => Ok(()),
            Ok(()) => self.check_room(&plan, host),
            refused => refused,
        };
        match allowed {
            Ok(()) => Some(plan),
            Err(Refused(why)) => {
                self.update_failed(&why);
                None
            }
        }
    }

    /// Whether there is room for what must be handed over, to the byte: it looks at everything once.
    ///
    /// # Errors
    /// There is not; how much is missing.
    pub fn check_room(&self, plan: &UpdatePlan, host: &dyn Host) -> Result<(), Refused> {
        let mut size = Size::default();
        for format in streams_of(plan) {
            self.export(*format, self.now, host, &mut size);
            size.0 = size.0.saturating_add(host.bytes_behind());
        }
        let Size(size) = size;
        match size.checked_sub(self.room_for_update()) {
            None | Some(0) => Ok(()),
            Some(missing) => Err(Refused(format!(
                "Not enough memory: the state needs {size} bytes, {missing} more than there are."
            ))),
        }
    }

    /// The update is made: this is the next instance, and its requester is told.
    pub fn update_done(&mut self) {
        log::info!("live-update: done");
        self.end_update("OK");
    }

    /// The update cannot be made, and all goes on as if it had not been asked for; its requester is told why.
    pub fn update_failed(&mut self, why: &str) {
        if self.live_update.unanswered.is_some() {
            log::warn!("live-update: failed: {why}");
        }
        self.end_update(why);
    }
}

/// The protocol (live-update.md section 5).
impl<S: Storage> Server<S> {
    /// Whether there is such a command.
    pub(crate) fn can_update(&self) -> bool {
        self.live_update.updater.is_some()
    }

    /// One step of an update, behind the command's name.
    pub(crate) fn live_update(&mut self, conn: ConnId, steps: &[u8]) -> Result<Answer, Refusal> {
        if !self.can_update() {
            return Err(Errno::EINVAL.into());
        }
        let end = steps.iter().position(|byte| *byte == 0);
        let (step, rest) = steps.split_at(end.ok_or(Errno::EINVAL)?);
        let rest = rest.get(1..).unwrap_or_default();
        let done = match step {
            b"-b" => self.begin_update(conn, rest),
            b"-d" => self.take_image(conn, rest),
            b"-c" => self.take_command_line(conn, rest),
            b"-s" => self.start_update(conn, rest),
            b"-a" if rest.is_empty() => Ok(self.abort_update()),
            _ => Err(Errno::EINVAL.into()),
        }?;
        let text = done.map_or_else(|Refused(why)| why, |()| String::from("OK"));
        Ok(Answer::Text(text))
    }

    fn begin_update(&mut self, conn: ConnId, rest: &[u8]) -> Step {
        let size = decimal(one(rest)?, u32::MAX)?;
        if size == 0 {
            return Err(Errno::EINVAL.into());
        }
        let live_update = &mut self.live_update;
        if live_update.session.is_some() || live_update.unanswered.is_some() {
            return refuse(OTHER_SESSION);
        }
        let updater = live_update.updater.as_mut().ok_or(Errno::EINVAL)?;
        let size = u64::from(size);
        Ok(updater.begin(size).map(|()| {
            log::info!("live-update: an image of {size} bytes begins");
            live_update.session = Some(Session {
                conn,
                size,
                received: 0,
                command_line: None,
                start: None,
            });
        }))
    }

    fn take_image(&mut self, conn: ConnId, rest: &[u8]) -> Step {
        let end = rest.iter().position(|byte| *byte == 0);
        let (len, bytes) = rest.split_at(end.ok_or(Errno::EINVAL)?);
        let bytes = bytes.get(1..).and_then(|bytes| bytes.strip_suffix(&[0]));
        let bytes = bytes.ok_or(Errno::EINVAL)?;
        let len = decimal(len, u32::MAX)?;
        if usize::try_from(len).ok() != Some(bytes.len()) {
            return Err(Errno::EINVAL.into());
        }
        let Some((session, updater)) = self.live_update.of(conn) else {
            return refuse(NO_SESSION);
        };
        let received = session.received.saturating_add(len.into());
        if received > session.size {
            return refuse("Too much kernel data.");
        }
        session.received = received;
        Ok(updater.append(bytes))
    }

    fn take_command_line(&mut self, conn: ConnId, rest: &[u8]) -> Step {
        let text = core::str::from_utf8(one(rest)?).map_err(|_| Errno::EINVAL)?;
        let Some((session, _)) = self.live_update.of(conn) else {
            return refuse(NO_SESSION);
        };
        session.command_line = Some(text.into());
        Ok(Ok(()))
    }

    /// Starts an update that can be made, as far as its image is concerned; its answer comes later.
    fn start_update(&mut self, conn: ConnId, rest: &[u8]) -> Step {
        let wish = Wish::read(rest)?;
        let is_started = self.live_update.unanswered.is_some();
        let Some((session, updater)) = self.live_update.of(conn) else {
            return refuse(NO_SESSION);
        };
        if is_started {
            return refuse(OTHER_SESSION);
        }
        if session.received != session.size {
            return refuse("Kernel not complete.");
        }
        let reads = match updater.check() {
            Ok(reads) => reads,
            Err(refused) => {
                self.drop_session();
                return Ok(Err(refused));
            }
        };
        let Some(format) = format_for(&reads, wish.version) else {
            return refuse("Migration stream version not supported.");
        };
        log::info!("live-update: to {}, {format:?}", reads.name);
        session.start = Some(UpdatePlan {
            format,
            command_line: session.command_line.clone(),
            is_forced: wish.is_forced,
            timeout: Duration::from_secs(wish.timeout_s.into()),
        });
        Err(Refusal::Later)
    }

    fn abort_update(&mut self) -> Result<(), Refused> {
        if self.live_update.session.is_none() && self.live_update.unanswered.is_none() {
            return Err(Refused(String::from("No live-update session active.")));
        }
        log::info!("live-update: aborted");
        self.end_update("Cancellation was requested");
        Ok(())
    }

    /// Lets the request that starts an update wait for that. Its connection goes on.
    pub(crate) fn await_update(&mut self, conn: ConnId, request: Request) {
        let header = request.header;
        self.live_update.unanswered = Some(Unanswered { conn, header });
        self.spare.keep(request.payload);
        self.announce(conn);
        self.take_backlog(conn);
    }

    /// The reply that tells a connection that the update is made, if it is the one that asked for it.
    pub(crate) fn update_reply(&self, conn: ConnId) -> Vec<u8> {
        let unanswered = self.live_update.unanswered.as_ref();
        let Some(own) = unanswered.filter(|own| own.conn == conn) else {
            return Vec::new();
        };
        let len = u32::try_from(DONE.len()).unwrap_or(u32::MAX);
        let header = Header { len, ..own.header };
        [&header.encode(), DONE].concat()
    }

    /// Whether nothing is lost that matters.
    fn may_lose(&self, plan: &UpdatePlan) -> Result<(), Refused> {
        let left_out = self.left_out(plan.format);
        if left_out.is_empty() || plan.is_forced {
            return Ok(());
        }
        Err(Refused(told(&left_out)))
    }

    /// Whether there is far more room than needed: then nobody waits while each node is looked at once more.
    fn surely_fits(&mut self, plan: &UpdatePlan, host: &dyn Host) -> bool {
        let needed = self.stream_estimate().saturating_add(host.bytes_behind());
        plan.format == Format::Own && needed <= self.room_for_update() / 2
    }

    fn room_for_update(&self) -> u64 {
        let updater = self.live_update.updater.as_ref();
        updater.map_or(0, |updater| updater.room())
    }

    /// Ends what there is of an update, and answers the request that started it.
    fn end_update(&mut self, text: &str) {
        self.drop_session();
        if let Some(Unanswered { conn, header }) = self.live_update.unanswered.take() {
            self.reply(conn, header, Ok(Answer::Text(text.into())));
            self.complete_late(conn, header, None);
        }
    }

    fn drop_session(&mut self) {
        let live_update = &mut self.live_update;
        if let (Some(_), Some(updater)) = (live_update.session.take(), &mut live_update.updater) {
            updater.drop_image();
        }
    }

    /// A connection is gone or starts anew, and with it the update that it wanted.
    pub(crate) fn end_update_of(&mut self, conn: ConnId) {
        let live_update = &mut self.live_update;
        live_update.unanswered.take_if(|own| own.conn == conn);
        if live_update.of(conn).is_some() {
            log::warn!("live-update: its requester is gone");
            self.drop_session();
        }
    }
}

impl LiveUpdate {
    /// The session of a connection.
    fn of(&mut self, conn: ConnId) -> Option<(&mut Session, &mut dyn Updater)> {
        let session = self
            .session
            .as_mut()
            .filter(|session| session.conn == conn)?;
        Some((session, self.updater.as_deref_mut()?))
    }
}

/// The answer to an update that was made.
const DONE: &[u8] = b"OK\0";
const NO_SESSION: &str = "Not in live-update session.";
const OTHER_SESSION: &str = "live-update session already active.";

fn refuse(why: &str) -> Step {
    Ok(Err(Refused(why.into())))
}

/// The parameters of `-s`.
#[derive(Default)]
struct Wish {
    timeout_s: u32,
    is_forced: bool,
    version: Option<u32>,
}

impl Wish {
    fn read(rest: &[u8]) -> Result<Self, Errno> {
        let mut wish = Self::default();
        let mut words = strings(rest);
        let number = |words: &mut dyn Iterator<Item = &[u8]>| {
            decimal(words.next().ok_or(Errno::EINVAL)?, u32::MAX)
        };
        if rest.last().is_some_and(|last| *last != 0) {
            return Err(Errno::EINVAL);
        }
        while let Some(word) = words.next() {
            match word {
                b"-F" => wish.is_forced = true,
                b"-t" => wish.timeout_s = number(&mut words)?,
                b"-v" => wish.version = Some(number(&mut words)?),
                _ => return Err(Errno::EINVAL),
            }
        }
        Ok(wish)
    }
}

/// The best that an image reads, or what was asked for, if it reads that.
fn format_for(reads: &Reads, version: Option<u32>) -> Option<Format> {
    let most = reads.version.min(Format::Own.version());
    match version.unwrap_or(most) {
        version if version > most => None,
        1 => Some(Format::V1),
        2 if reads.is_own => Some(Format::Own),
        2 => Some(Format::V2),
        _ => None,
    }
}

/// The streams that are handed over.
fn streams_of(plan: &UpdatePlan) -> &'static [Format] {
    match plan.format {
        Format::Own => &[Format::Own],
        Format::V1 => &[Format::V1, Format::Own],
        Format::V2 => &[Format::V2, Format::Own],
    }
}

/// What would be lost, for the administrator.
fn told(left_out: &[LeftOut]) -> String {
    let mut text = String::from("The new instance cannot read all (-F loses it):");
    for loss in left_out.iter().take(LEFT_OUT_SHOWN) {
        let _ = write!(text, "\n{loss}");
    }
    match left_out.len().saturating_sub(LEFT_OUT_SHOWN) {
        0 => {}
        more => {
            let _ = write!(text, "\nand {more} more");
        }
    }
    text
}
