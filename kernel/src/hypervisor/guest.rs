//! The machine as an ordinary guest uses it: its own ring, its own grants, its own end. Only for the test guest (feature `guest`).

use core::mem::size_of;

use xenstore::GrantRef;

use super::abi::{AddToPhysmap, Call, DOMID_SELF, Operation, SHUTDOWN_CRASH, Shutdown, VIRQ_TIMER};
use super::clock::Timer;
use super::event::Channels;
use super::machine::Machine;
use super::page::SharedPage;
use super::start_error::StartError;
use super::{console, hypercall, shared_info, upcall};
use crate::xen::{EventAbi, LocalPort, Page, XenError};

/// `HVM_PARAM_STORE_PFN` (hvm/params.h).
const PARAMETER_STORE_GFN: u32 = 1;
/// `HVM_PARAM_STORE_EVTCHN`.
const PARAMETER_STORE_PORT: u32 = 2;
/// `XENMAPSPACE_grant_table` (memory.h).
const MAPSPACE_GRANT_TABLE: u32 = 1;
/// Bytes of a grant entry, version 1 (grant_table.h): flags and domid, then the frame.
const GRANT_ENTRY_SIZE: usize = 8;

/// Why a domain stops running (sched.h, `SHUTDOWN_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ShutdownReason {
    /// It is to be destroyed.
    PowerOff = 0,
    /// It is to be built anew.
    Reboot = 1,
    /// It is to be saved, and goes on later, perhaps as another domain.
    Suspend = 2,
    /// It cannot go on.
    Crash = SHUTDOWN_CRASH,
}

/// A page of our own that others see too.
#[derive(Clone, Copy, Debug)]
pub struct OwnPage {
    page: SharedPage,
    gfn: u64,
}

impl Page for OwnPage {
    fn load(&self, offset: usize) -> u32 {
        self.page.load(offset)
    }

    fn store(&self, offset: usize, value: u32) {
        self.page.store(offset, value);
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.page.read(offset, into);
    }

    fn write(&self, offset: usize, from: &[u8]) {
        self.page.write(offset, from);
    }
}

/// `struct xen_memory_reservation` (memory.h), for `XENMEM_decrease_reservation`.
#[repr(C)]
struct GiveUp {
    frames: u64,
    count: u64,
    order: u32,
    flags: u32,
    domid: u16,
}
const _: () = assert!(size_of::<GiveUp>() == 32);

// SAFETY: fields in the header's order under `repr(C)`, size asserted above.
unsafe impl Operation for GiveUp {
    const CALL: Call = Call::Memory;
    const COMMAND: u64 = 1;
}

impl Machine {
    /// Our xenstore ring and our port, as the toolstack made them; `None` if it made none.
    pub fn own_ring(&mut self) -> Option<(OwnPage, LocalPort)> {
        let gfn = console::parameter(PARAMETER_STORE_GFN)?;
        let port = LocalPort(u32::try_from(console::parameter(PARAMETER_STORE_PORT)?).ok()?);
        let slot = self.window.take()?;
        let page = self.window.show(slot, gfn)?;
        self.channels.unmask(port).ok()?;
        Some((OwnPage { page, gfn }, port))
    }

    /// The first page of our grant table.
    ///
    /// # Errors
    /// What Xen answered.
    pub fn grant_table(&mut self) -> Result<OwnPage, XenError> {
        const NO_SPACE: XenError = XenError(28);
        let slot = self.window.take().ok_or(NO_SPACE)?;
        let gfn = self.window.gfn_of(slot);
        let mut place = AddToPhysmap {
            domid: DOMID_SELF,
            size: 0,
            space: MAPSPACE_GRANT_TABLE,
            index: 0,
            gfn,
        };
        // SAFETY: the page appears at a guest frame of the window, where no memory of ours is.
        unsafe { hypercall::perform(&mut place) }?;
        let page = self.window.show(slot, gfn).ok_or(NO_SPACE)?;
        Ok(OwnPage { page, gfn })
    }

    /// Gives the memory behind `page` back to Xen. What is written there afterwards is lost, and ones are read.
    ///
    /// # Errors
    /// What Xen answered.
    pub fn give_up(&mut self, page: OwnPage) -> Result<(), XenError> {
        let frame = page.gfn;
        let mut reservation = GiveUp {
            frames: (&raw const frame).expose_provenance() as u64,
            count: 1,
            order: 0,
            flags: 0,
            domid: DOMID_SELF,
        };
        // SAFETY: Xen reads `frame`; the page that goes is shown in the window only, where nothing of Rust's is.
        unsafe { hypercall::perform(&mut reservation) }.map(drop)
    }

    /// Ends this domain, or lets it be saved. Returns only from being saved: whether this is a new domain, or the old one after all.
    pub fn shut_down(&mut self, reason: ShutdownReason) -> bool {
        const CANCELLED: u64 = 1;
        let mut shutdown = Shutdown {
            reason: reason as u32,
        };
        // SAFETY: touches no memory.
        let answer = unsafe { hypercall::perform(&mut shutdown) };
        answer != Ok(CANCELLED)
    }

    /// Lets this domain be saved, and goes on when it is restored: a new domain, which has our memory and nothing else. `false` if it
    /// goes on as what it was.
    ///
    /// # Errors
    /// What the new domain lacks.
    pub fn suspend(&mut self) -> Result<bool, StartError> {
        if !self.shut_down(ShutdownReason::Suspend) {
            return Ok(false);
        }
        let shared = shared_info::get().ok_or(StartError::Window)?;
        let gfn = self
            .window
            .gfn_at((&raw const *shared).addr() as u64)
            .ok_or(StartError::Window)?;
        // SAFETY: it is the window's guest frame where this page has always been.
        unsafe { shared_info::place_at(gfn) }.map_err(StartError::SharedInfo)?;
        self.channels = Channels::start(shared, EventAbi::TwoLevel);
        upcall::start().map_err(StartError::Upcall)?;
        let _ = hypercall::stop_periodic_timer();
        self.timer = Timer::default();
        self.timer_port = self
            .channels
            .bind_virq(VIRQ_TIMER)
            .map_err(StartError::Timer)?;
        self.console_port = console::reattach();
        if let Some(port) = self.console_port {
            let _ = self.channels.unmask(port);
        }
        Ok(true)
    }
}

impl OwnPage {
    /// Its guest frame.
    #[must_use]
    pub const fn gfn(self) -> u64 {
        self.gfn
    }

    /// In a page of the grant table: where the flags, and above them the domid, of `grant` are.
    #[must_use]
    pub fn grant_flags_at(grant: GrantRef) -> usize {
        usize::try_from(grant.0).map_or(usize::MAX, |index| index.saturating_mul(GRANT_ENTRY_SIZE))
    }
}
