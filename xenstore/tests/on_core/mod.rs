//! The core alone as a host on which transcripts are played.

use std::collections::BTreeMap;

use xenstore::{DomId, Settings, Storage};

use crate::machine::Machine;
use crate::transcript::Host;
use crate::transcript::message::Message;
use crate::transcript::syntax::{Directive, Need};

/// The domain that the store itself runs in, in every text.
const STORE: u16 = 31;

/// `Server` between byte queues, with domains from a table.
pub(crate) struct Core<S: Storage> {
    machine: Machine<S>,
    /// Bytes that came and are no whole message yet.
    partial: BTreeMap<u16, Vec<u8>>,
}

impl<S: Storage> Core<S> {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// One that is set up otherwise.
    pub(crate) fn with(otherwise: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::new(DomId::new(0), DomId::new(STORE));
        otherwise(&mut settings);
        Self {
            machine: Machine::new(settings),
            partial: BTreeMap::new(),
        }
    }
}

impl<S: Storage> Host for Core<S> {
    fn supports(&self, need: Need) -> bool {
        match need {
            Need::Domains | Need::FreshServer | Need::Clock | Need::Unread | Need::Ring => true,
        }
    }

    fn direct(&mut self, directive: &Directive) -> Result<(), String> {
        let machine = &mut self.machine;
        if let Directive::Die(domids) = directive {
            domids
                .iter()
                .for_each(|domid| drop(self.partial.remove(domid)));
        }
        match directive {
            Directive::Exists(domid) => _ = machine.create(*domid, true),
            Directive::ExistsWithoutRing(domid) => _ = machine.create(*domid, false),
            Directive::Vanishes(domid) => drop(machine.vanish(*domid)),
            Directive::StartsConnected(domid) => {
                machine.create(*domid, true);
                machine.open(*domid);
            }
            Directive::ShutDown(domids) => machine.shut_down(domids),
            Directive::Die(domids) => machine.die(domids),
            Directive::Reconnects(domid) => machine.reconnect(*domid),
            Directive::BreaksRing(domid) => machine.break_ring(*domid),
            Directive::StopsReading(domid) => machine.set_reading(*domid, false),
            Directive::ReadsAgain(domid) => machine.set_reading(*domid, true),
            Directive::TimePasses(milliseconds) => machine.pass(*milliseconds),
        }
        Ok(())
    }

    fn send(&mut self, domid: u16, bytes: &[u8]) -> Result<(), String> {
        self.machine.pump();
        if self.machine.send(domid, bytes) {
            Ok(())
        } else {
            Err(format!("d{domid} has no connection"))
        }
    }

    fn receive(&mut self, domid: u16) -> Result<Option<Message>, String> {
        let bytes = self.partial.entry(domid).or_default();
        bytes.extend(self.machine.receive(domid));
        Message::take_from(bytes)
    }

    fn is_stopped(&mut self, domid: u16) -> bool {
        self.machine.is_stopped(domid)
    }
}
