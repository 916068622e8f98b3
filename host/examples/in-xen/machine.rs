//! The real machine as a transcript's host: dom0's way to the store, and guests that are new to the store for each case.
//!
//! No guest can be made and ended for each case: that takes seconds. Instead the store is made to forget one: RELEASE takes its
//! connection, its nodes and its limits, the toolstack removes its home, and INTRODUCE begins a new life on the same ring. So a guest
//! exists from the start and is not introduced, as the texts want it; one that dies is beyond this host.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use crate::cases::Exception;
use crate::cases::transcript::Host;
use crate::cases::transcript::message::{ERROR, Message, kind};
use crate::cases::transcript::syntax::{Case, Directive, Need};
use crate::domids::Domids;
use crate::over_socket::OverSocket;
use crate::playable::{Stage, domains};
use crate::relay::Relay;
use crate::xenbus::Xenbus;

const DOM0: u16 = 0;
/// The store's own domain in every text.
const STORE: u16 = 31;
/// Of requests that no transcript made.
const OWN_REQUEST: u32 = 0x6000_0000;
/// Nodes whose children are put in order after each case. Below others the texts leave nothing.
const TIDIED: [&str; 4] = ["/", "/tool", "/local/domain", "/local/domain/0"];

/// All that outlives a case.
pub(crate) struct Machine {
    /// Where the store's socket is, if dom0 has one.
    socket: Option<PathBuf>,
    /// The runner's own client, and the clients of the case.
    own: Box<dyn Host>,
    dom0: Option<Box<dyn Host>>,
    guests: Vec<Guest>,
    store: Option<u16>,
    domids: Domids,
    /// The children that each of the tidied nodes had at the start.
    kept: Vec<(&'static str, Vec<String>)>,
    /// A case was played since all was put in order.
    is_used: bool,
    /// Why the case cannot begin.
    trouble: Option<String>,
}

/// A guest that does what it is told.
pub(crate) struct Guest {
    pub(crate) domid: u16,
    pub(crate) port: u32,
    pub(crate) relay: Relay,
    /// The texts' number for it in this case.
    plays: Option<u16>,
}

impl Guest {
    pub(crate) fn new(domid: u16, port: u32, relay: Relay) -> Self {
        let plays = None;
        Self {
            domid,
            port,
            relay,
            plays,
        }
    }
}

impl Machine {
    /// # Errors
    /// The store cannot be reached, or a guest cannot.
    pub(crate) fn new(
        socket: Option<PathBuf>,
        store: Option<u16>,
        guests: Vec<Guest>,
    ) -> Result<Self, String> {
        let mut machine = Self {
            own: connect(socket.as_ref())?,
            socket,
            dom0: None,
            guests,
            store,
            domids: Domids::default(),
            kept: Vec::new(),
            is_used: false,
            trouble: None,
        };
        for place in TIDIED {
            let children = machine.children(place)?;
            machine.kept.push((place, children));
        }
        for at in 0..machine.guests.len() {
            machine.forget(at)?;
        }
        Ok(machine)
    }

    pub(crate) fn stage(&self) -> Stage {
        Stage {
            is_dom0_behind_kernel: self.socket.is_none(),
            guests: self.guests.len(),
        }
    }

    /// Gives each domain of a case to a guest.
    fn cast(&mut self, case: &Case) -> Result<(), String> {
        self.tidy()?;
        let parts = domains(case).into_iter().map(Some);
        let parts = parts.chain(std::iter::repeat(None));
        for (guest, part) in self.guests.iter_mut().zip(parts) {
            guest.plays = part;
        }
        let guests = self.guests.iter();
        let mut known: Vec<_> = guests
            .filter_map(|guest| Some((guest.plays?, guest.domid, guest.port)))
            .collect();
        known.extend(self.store.map(|store| (STORE, store, 0)));
        let guests = self.guests.iter().map(|guest| guest.domid);
        let taken = guests.chain(self.store).collect();
        self.domids = Domids::new(known, taken);
        self.dom0 = Some(connect(self.socket.as_ref())?);
        self.is_used = true;
        Ok(())
    }

    /// Leaves the guests introduced, so that the store tells of their end.
    ///
    /// # Errors
    /// The store does not answer or refuses, or a guest does.
    pub(crate) fn part(&mut self) -> Result<(), String> {
        self.tidy()?;
        let guests = self.guests.iter().map(|guest| (guest.domid, guest.port));
        for (domid, port) in guests.collect::<Vec<_>>() {
            self.introduce(domid, port)?;
        }
        Ok(())
    }

    /// Leaves nothing of the last case.
    fn tidy(&mut self) -> Result<(), String> {
        if !std::mem::take(&mut self.is_used) {
            return Ok(());
        }
        self.dom0 = None;
        for at in 0..self.guests.len() {
            if self
                .guests
                .get(at)
                .is_some_and(|guest| guest.plays.is_some())
            {
                self.forget(at)?;
            }
        }
        for (place, kept) in self.kept.clone() {
            for child in self.children(place)? {
                if !kept.contains(&child) {
                    self.ask("RM", &format!("{}/{child}\0", place.trim_end_matches('/')))?;
                }
            }
        }
        Ok(())
    }

    /// Makes the store forget a guest. Its kernel must be served while it gives up what it has.
    fn forget(&mut self, at: usize) -> Result<(), String> {
        let guest = self.guests.get(at).ok_or("no such guest")?;
        let (domid, port) = (guest.domid, guest.port);
        if !self.is_introduced(domid)? {
            self.introduce(domid, port)?;
        }
        let guest = self.guests.get_mut(at).ok_or("no such guest")?;
        guest.relay.open()?;
        guest.plays = None;
        self.leave(domid)
    }

    fn introduce(&mut self, domid: u16, port: u32) -> Result<(), String> {
        self.ask("INTRODUCE", &format!("{domid}\x001\0{port}\0"))?;
        Ok(())
    }

    fn leave(&mut self, domid: u16) -> Result<(), String> {
        self.ask("RELEASE", &format!("{domid}\0"))?;
        // It may have gone with its owner.
        let _gone = self.ask("RM", &format!("/local/domain/{domid}\0"));
        Ok(())
    }

    fn is_introduced(&mut self, domid: u16) -> Result<bool, String> {
        let answer = self.ask("IS_DOMAIN_INTRODUCED", &format!("{domid}\0"))?;
        Ok(answer == b"T\0")
    }

    fn children(&mut self, place: &str) -> Result<Vec<String>, String> {
        let listed = self.ask("DIRECTORY", &format!("{place}\0"))?;
        let names = listed.split(|byte| *byte == 0);
        let names = names.map(|name| String::from_utf8_lossy(name).into_owned());
        Ok(names.filter(|name| !name.is_empty()).collect())
    }

    /// A request of the runner's own, which must go well.
    fn ask(&mut self, name: &str, payload: &str) -> Result<Vec<u8>, String> {
        let what = || format!("{name} {}", payload.escape_debug());
        let request = Message {
            kind: kind(name).ok_or_else(what)?,
            req_id: OWN_REQUEST,
            tx_id: 0,
            payload: payload.as_bytes().to_vec(),
        };
        self.own.send(DOM0, &request.encode())?;
        match self.own.receive(DOM0)? {
            Some(answer) if answer.kind != ERROR => Ok(answer.payload),
            Some(refusal) => Err(format!("{}: {}", what(), refusal.show())),
            None => Err(format!("{}: no reply", what())),
        }
    }

    fn guest(&mut self, domid: u16) -> Result<&mut Guest, String> {
        let mut guests = self.guests.iter_mut();
        let guest = guests.find(|guest| guest.plays == Some(domid));
        guest.ok_or(format!("there is no domain {domid}"))
    }

    fn dom0(&mut self) -> Result<&mut Box<dyn Host>, String> {
        let none = "dom0 has no connection".to_owned();
        self.dom0.as_mut().ok_or(none)
    }

    fn send(&mut self, domid: u16, bytes: &[u8]) -> Result<(), String> {
        self.trouble.take().map_or(Ok(()), Err)?;
        let whole = Message::take_from(&mut bytes.to_vec()).ok().flatten();
        match whole.map(|message| self.domids.to_machine(message)) {
            Some(message) if domid != DOM0 => self.guest(domid)?.relay.send(&message),
            Some(message) => self.dom0()?.send(DOM0, &message.encode()),
            None if domid == DOM0 => self.dom0()?.send(DOM0, bytes),
            None => Err("a guest's kernel passes on whole requests only".to_owned()),
        }
    }

    fn receive(&mut self, domid: u16) -> Result<Option<Message>, String> {
        let came = match domid {
            DOM0 => self.dom0()?.receive(DOM0)?,
            _ => self.receive_in_guest(domid)?,
        };
        Ok(came.map(|message| self.domids.to_text(message)))
    }

    /// Who is not introduced gets nothing more, and must not ask: its kernel would wait for ever.
    fn receive_in_guest(&mut self, domid: u16) -> Result<Option<Message>, String> {
        let guest = self.guest(domid)?;
        let (domid_here, came) = (guest.domid, guest.relay.came());
        if came.is_some() || !self.is_introduced(domid_here)? {
            return Ok(came);
        }
        self.guest(domid)?.relay.receive()
    }
}

fn connect(socket: Option<&PathBuf>) -> Result<Box<dyn Host>, String> {
    Ok(match socket {
        Some(path) => Box::new(OverSocket::new((), path)?),
        None => Box::new(Xenbus::open()?),
    })
}

/// One case on the machine.
pub(crate) struct InXen {
    pub(crate) machine: Rc<RefCell<Machine>>,
    /// Cases that would do harm to this store.
    pub(crate) spared: Vec<Exception>,
}

impl Host for InXen {
    fn supports(&self, need: Need) -> bool {
        need == Need::Domains
    }

    fn prepare(&mut self, case: &Case) -> Result<(), String> {
        let mut machine = self.machine.borrow_mut();
        machine.stage().admit(case)?;
        let spared = self.spared.iter().find(|(_, name, _)| *name == case.name);
        spared.map_or(Ok(()), |(_, _, why)| Err((*why).to_owned()))?;
        // Where a run that hangs was.
        println!("case {}", case.name);
        machine.trouble = machine.cast(case).err();
        Ok(())
    }

    fn keeps_order(&self, domid: u16) -> bool {
        !self.machine.borrow().stage().is_behind_kernel(domid)
    }

    fn direct(&mut self, directive: &Directive) -> Result<(), String> {
        let Directive::Exists(domid) = directive else {
            return Err("a guest comes and goes by xl alone".to_owned());
        };
        let mut machine = self.machine.borrow_mut();
        machine.trouble.take().map_or(Ok(()), Err)?;
        let domid = machine.guest(*domid)?.domid;
        if machine.is_introduced(domid)? {
            return Err("it is here already".to_owned());
        }
        Ok(())
    }

    fn send(&mut self, domid: u16, bytes: &[u8]) -> Result<(), String> {
        self.machine.borrow_mut().send(domid, bytes)
    }

    fn receive(&mut self, domid: u16) -> Result<Option<Message>, String> {
        self.machine.borrow_mut().receive(domid)
    }

    fn is_stopped(&mut self, domid: u16) -> bool {
        let mut machine = self.machine.borrow_mut();
        domid == DOM0
            && machine
                .dom0
                .as_mut()
                .is_some_and(|dom0| dom0.is_stopped(DOM0))
    }
}
