//! Event channels: binding, closing and telling by hypercalls that are the same in both ABIs, and collecting by the ABI in use.

use core::sync::atomic::Ordering;

use xenstore::{DomId, EvtchnPort};

use super::abi::{
    BindInterdomain, BindVirq, ClosePort, ExpandArray, HIGHEST_PRIORITY, InitControl, SendEvent,
    SetPriority, UnmaskPort,
};
use super::fifo::{self, Queues};
use super::ranges::PAGE_SIZE;
use super::shared_info::SharedInfo;
use super::{hypercall, reserve, two_level};
use crate::xen::{EventAbi, LocalPort, PendingPorts, XenError};

/// `ENOSPC`.
const NO_SPACE: XenError = XenError(28);

/// Our end of all event channels.
pub(super) struct Channels {
    shared: &'static SharedInfo,
    /// The FIFO ABI's queues; none under the 2-level ABI.
    queues: Option<Queues>,
    /// Under the 2-level ABI: words of ports up to the last that was unmasked.
    words: usize,
}

impl Channels {
    /// Chooses the ABI, before anything is bound: what is pending at that moment is lost. All ports are masked.
    pub(super) fn start(shared: &'static SharedInfo, wanted: EventAbi) -> Self {
        two_level::mask_all(shared);
        let queues = match wanted {
            EventAbi::Fifo => start_fifo(),
            EventAbi::TwoLevel => None,
        };
        Self::at_work(shared, queues)
    }

    /// Goes on with the ABI that was chosen at the first start, and with all that is bound. There may be events, and ports may be masked.
    pub(super) fn go_on(shared: &'static SharedInfo) -> Self {
        let is_fifo =
            reserve::get().is_some_and(|reserve| reserve.header().has_control_block.get() != 0);
        let queues = if is_fifo { start_fifo() } else { None };
        Self::at_work(shared, queues)
    }

    fn at_work(shared: &'static SharedInfo, queues: Option<Queues>) -> Self {
        let channels = Self {
            shared,
            queues,
            words: 0,
        };
        channels.silence();
        channels
    }

    /// The ABI in use.
    pub(super) const fn abi(&self) -> EventAbi {
        match self.queues {
            Some(_) => EventAbi::Fifo,
            None => EventAbi::TwoLevel,
        }
    }

    /// Binds a new port of ours to `remote` of `domid`. It is pending at once if the other side has sent already.
    ///
    /// # Errors
    /// What Xen answered, or that there is no memory; nothing stays bound.
    pub(super) fn bind_interdomain(
        &mut self,
        domid: DomId,
        remote: EvtchnPort,
    ) -> Result<LocalPort, XenError> {
        let mut bind = BindInterdomain {
            remote_domid: domid.get(),
            padding: 0,
            remote_port: remote.0,
            local_port: 0,
        };
        // SAFETY: touches no memory.
        unsafe { hypercall::perform(&mut bind) }?;
        self.unmask_new(LocalPort(bind.local_port))
    }

    /// Binds a virtual interrupt of vCPU 0.
    ///
    /// # Errors
    /// What Xen answered, or that there is no memory; nothing stays bound.
    pub(super) fn bind_virq(&mut self, virq: u32) -> Result<LocalPort, XenError> {
        let mut bind = BindVirq {
            virq,
            vcpu: 0,
            port: 0,
        };
        // SAFETY: touches no memory.
        unsafe { hypercall::perform(&mut bind) }?;
        self.unmask_new(LocalPort(bind.port))
    }

    fn unmask_new(&mut self, port: LocalPort) -> Result<LocalPort, XenError> {
        self.unmask(port).inspect_err(|_| close_port(port))?;
        Ok(port)
    }

    /// Lets `port` raise the upcall; at once if it is pending.
    ///
    /// # Errors
    /// What Xen answered, or that there is no memory for its word.
    pub(super) fn unmask(&mut self, port: LocalPort) -> Result<(), XenError> {
        if let Some(queues) = &mut self.queues {
            make_word(queues, port)?;
        }
        self.words = self.words.max(two_level::words_to(port));
        let mut unmask = UnmaskPort { port: port.0 };
        // SAFETY: touches no memory.
        unsafe { hypercall::perform(&mut unmask) }.map(drop)
    }

    /// Lets a port's events be taken first, if the ABI has priorities.
    pub(super) fn prefer(&self, port: LocalPort) {
        if self.queues.is_some() {
            let mut priority = SetPriority {
                port: port.0,
                priority: HIGHEST_PRIORITY,
            };
            // SAFETY: touches no memory. Refused, the port has the priority of all others.
            let _ = unsafe { hypercall::perform(&mut priority) };
        }
    }

    /// Keeps every port from raising the upcall, until it is unmasked: events stay pending.
    pub(super) fn mask_all(&self) {
        match &self.queues {
            Some(queues) => queues.mask_all(),
            None => two_level::mask_all(self.shared),
        }
        self.shared.vcpu().upcall_pending.store(0, Ordering::SeqCst);
    }

    /// Closes a port, masked for its next life. A port that is closed already is no matter.
    pub(super) fn close(&self, port: LocalPort) {
        match &self.queues {
            Some(queues) => queues.mask(port),
            None => two_level::mask(self.shared, port),
        }
        close_port(port);
    }

    /// Whether an event is pending.
    pub(super) fn is_pending(&self) -> bool {
        match &self.queues {
            Some(queues) => queues.is_pending(),
            None => two_level::is_pending(self.shared, self.words),
        }
    }

    /// Takes pending ports that are not masked, clearing them before anyone looks at a ring: what is sent afterwards is new.
    pub(super) fn collect(&mut self, ports: &mut PendingPorts) {
        match &self.queues {
            Some(queues) => queues.collect(ports),
            None => two_level::collect(self.shared, self.words, ports),
        }
    }

    /// Lets events raise the upcall from here on. What is pending already is seen by [`Channels::is_pending`] only.
    pub(super) fn listen(&self) {
        self.shared.vcpu().upcall_pending.store(0, Ordering::SeqCst);
        match &self.queues {
            Some(queues) => queues.listen(),
            None => two_level::listen(self.shared),
        }
    }

    /// Keeps events from raising the upcall. One that Xen was about to raise may still come.
    pub(super) fn silence(&self) {
        match &self.queues {
            Some(queues) => queues.silence(),
            None => two_level::silence(self.shared),
        }
        self.shared.vcpu().upcall_pending.store(0, Ordering::SeqCst);
    }
}

/// Tells the other end. A closed other end is no matter.
pub(super) fn notify(port: LocalPort) {
    let mut send = SendEvent { port: port.0 };
    // SAFETY: touches no memory. The only error is that the port is not open.
    let _ = unsafe { hypercall::perform(&mut send) };
}

fn close_port(port: LocalPort) {
    let mut close = ClosePort { port: port.0 };
    // SAFETY: touches no memory. The only error is that the port is not open.
    let _ = unsafe { hypercall::perform(&mut close) };
}

/// Switches this domain to the FIFO ABI, or goes on with it: Xen takes a control block once in a domain's life. None if Xen does not offer it.
fn start_fifo() -> Option<Queues> {
    let reserve = reserve::get()?;
    let header = reserve.header();
    let fifo = reserve.fifo()?;
    let address = (&raw const fifo.control).expose_provenance() as u64;
    if header.has_control_block.get() == 0 {
        let mut init = InitControl {
            control_gfn: address / PAGE_SIZE,
            offset: u32::try_from(address % PAGE_SIZE).ok()?,
            vcpu: 0,
            link_bits: 0,
            padding: [0; 7],
        };
        // SAFETY: Xen writes the control block from now on, which is atomic throughout; the reserve lies at its physical address.
        unsafe { hypercall::perform(&mut init) }.ok()?;
        header.has_control_block.set(1);
    }
    let mut queues = Queues::new(&fifo.control, &fifo.heads);
    for index in 0..header.event_pages_used.get() {
        let (page, _) = reserve.event_page(index)?;
        queues.add_page(page);
    }
    Some(queues)
}

/// Gives Xen pages until `port` has a word.
///
/// # Errors
/// There is no page left, or what Xen answered.
fn make_word(queues: &mut Queues, port: LocalPort) -> Result<(), XenError> {
    for _ in 0..fifo::PAGES {
        if queues.has(port) {
            return Ok(());
        }
        let reserve = reserve::get().ok_or(NO_SPACE)?;
        let header = reserve.header();
        let used = header.event_pages_used.get();
        let (page, physical) = reserve.event_page(used).ok_or(NO_SPACE)?;
        fifo::mask_all(page);
        let mut expand = ExpandArray {
            array_gfn: physical / PAGE_SIZE,
        };
        // SAFETY: Xen writes the page from now on, which is atomic throughout.
        unsafe { hypercall::perform(&mut expand) }?;
        header.event_pages_used.set(used.saturating_add(1));
        if !queues.add_page(page) {
            break;
        }
    }
    if queues.has(port) {
        Ok(())
    } else {
        Err(NO_SPACE)
    }
}
