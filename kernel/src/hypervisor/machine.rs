//! The machine as a whole: what is set up in which order, and the traits by which the rest of the kernel uses it.

use ::log::{info, warn};
use x86_64::instructions::interrupts;
use x86_64::structures::paging::PageTable;
use xenstore::{DomId, EvtchnPort, GrantRef, Instant};

use super::abi::{VIRQ_DOM_EXC, VIRQ_TIMER};
use super::clock::Timer;
use super::domain::Hypervisor;
use super::event::Channels;
use super::frames::HeapFrames;
use super::grant::MappedPage;
use super::growth::Growth;
use super::handover::{Field, Header};
use super::memory::Memory;
use super::reserve::Layout;
use super::shared_info::SharedInfo;
use super::start_error::StartError;
use super::window::{Window, WindowTables};
use super::{
    clock, console, event, grant, heap, hypercall, paging, reserve, shared_info, trap, upcall,
    watch,
};
use crate::boot_info::ImageLayout;
use crate::domain_interface::DomainInterface;
use crate::xen::{
    Clock, DomainInfo, Domains, EventAbi, Events, Grants, LocalPort, MemoryLeft, PageFacts,
    PendingPorts, XenError,
};

/// What is there before anything is decided: memory, consoles, and what Xen says of itself.
pub struct Ground {
    pub(super) window: Window,
    pub(super) frames: HeapFrames,
    pub(super) growth: Growth,
    pub(super) shared: &'static SharedInfo,
    pub(super) console_port: Option<LocalPort>,
    pub(super) own_domid: DomId,
}

impl Ground {
    /// Our own id.
    #[must_use]
    pub fn own_domain(&self) -> DomId {
        self.own_domid
    }

    /// The domain that controls the host: domain 0, unless Xen names another.
    #[must_use]
    pub fn privileged_domain(&self) -> DomId {
        let domains = DomainInterface::probe(&mut Hypervisor);
        domains.privileged_domain(&mut Hypervisor)
    }

    /// System time.
    #[must_use]
    pub fn now(&self) -> Instant {
        clock::system_time()
    }
}

/// The real machine.
pub struct Machine {
    pub(super) window: Window,
    pub(super) frames: HeapFrames,
    growth: Growth,
    pub(super) channels: Channels,
    pub(super) timer: Timer,
    pub(super) timer_port: LocalPort,
    pub(super) console_port: Option<LocalPort>,
    domains: DomainInterface,
    own_domid: DomId,
    privileged_domid: DomId,
    latest: Instant,
}

impl Machine {
    /// Sets up the rest: events, timer, and how Xen tells of domains.
    ///
    /// # Errors
    /// What is missing, as a sentence. The domain cannot go on then.
    pub fn start(ground: Ground, event_abi: EventAbi) -> Result<Self, StartError> {
        let channels = Channels::start(ground.shared, event_abi);
        Self::with_channels(ground, channels, None)
    }

    /// As [`Machine::start`], with all that another start of the domain bound.
    ///
    /// # Errors
    /// As for [`Machine::start`].
    pub fn again(ground: Ground) -> Result<Self, StartError> {
        let channels = Channels::go_on(ground.shared);
        let header = reserve::get().ok_or(StartError::Handover)?.header();
        // It is bound anew, so that Xen tells of all domains.
        if let Some(port) = port_of(&header.exception_port) {
            channels.close(port);
        }
        Self::with_channels(ground, channels, port_of(&header.timer_port))
    }

    fn with_channels(
        ground: Ground,
        mut channels: Channels,
        timer_port: Option<LocalPort>,
    ) -> Result<Self, StartError> {
        let Ground {
            window,
            frames,
            growth,
            console_port,
            own_domid,
            ..
        } = ground;
        info!("event channels by {}", channels.abi());
        upcall::start().map_err(StartError::Upcall)?;
        if console_port.is_none_or(|port| channels.unmask(port).is_err()) {
            warn!("there is no PV console");
        }
        // Xen gives PVH domains no periodic timer; where it does, it is not wanted.
        let _ = hypercall::stop_periodic_timer();
        let timer_port = match timer_port {
            Some(port) => {
                channels.unmask(port).map_err(StartError::Timer)?;
                port
            }
            None => channels.bind_virq(VIRQ_TIMER).map_err(StartError::Timer)?,
        };
        note_port(timer_port, |header| &header.timer_port);
        let domains = DomainInterface::probe(&mut Hypervisor);
        info!("state of domains by {domains}");
        watch::start();
        Ok(Self {
            window,
            frames,
            growth,
            channels,
            timer: Timer::default(),
            timer_port,
            console_port,
            domains,
            own_domid,
            privileged_domid: domains.privileged_domain(&mut Hypervisor),
            latest: Instant::default(),
        })
    }

    /// Our own id.
    #[must_use]
    pub fn own_domain(&self) -> DomId {
        self.own_domid
    }

    /// The domain that controls the host: domain 0, unless Xen names another.
    #[must_use]
    pub fn privileged_domain(&self) -> DomId {
        self.privileged_domid
    }

    /// How this Xen tells of domains.
    #[must_use]
    pub fn domain_interface(&self) -> DomainInterface {
        self.domains
    }
}

/// A port that another start left; none if it left none.
fn port_of(field: &Field) -> Option<LocalPort> {
    let port = u32::try_from(field.get()).ok()?;
    (port != 0).then_some(LocalPort(port))
}

/// Leaves a port to the next start.
fn note_port(port: LocalPort, field: impl FnOnce(&'static Header) -> &'static Field) {
    if let Some(reserve) = reserve::get() {
        field(reserve.header()).set(port.0.into());
    }
}

/// Leaves boot's page tables for ours and gives the heap its memory.
pub(super) fn take_memory(
    image: &ImageLayout,
    memory: &Memory,
    reserve: Option<Layout>,
) -> Result<(Window, HeapFrames), StartError> {
    static mut ROOT: PageTable = PageTable::new();
    static mut WINDOW_TABLES: WindowTables = WindowTables::new();
    let (root, tables) = (&raw mut ROOT, &raw mut WINDOW_TABLES);
    // SAFETY: `Machine::start` comes here once, so this is the only reference.
    let root = unsafe { &mut *root };
    // SAFETY: as above.
    let tables = unsafe { &mut *tables };
    let mut guards = heapless::Vec::<u64, 8>::new();
    for guard in trap::stack_guards().chain([image.stack_guard]) {
        guards.push(guard).map_err(|_| StartError::Guards)?;
    }
    // SAFETY: the free memory is nobody's, and boot's tables map it below 4 GiB.
    let heap = unsafe {
        paging::build(
            root,
            tables,
            image,
            &guards,
            reserve,
            memory,
            paging::BOOT_MAP_END,
        )
    }?;
    console::detach();
    // SAFETY: `ROOT` is in the image, which lies at its physical address, and maps the whole image, stack included.
    unsafe { paging::switch_to(root) };
    // SAFETY: the new tables map this range, for the heap alone.
    unsafe { heap::start(heap) };
    let tables_taken = paging::tables_for(memory, reserve);
    let mut pages = memory.free.clone();
    memory.later.iter().for_each(|range| pages.add(range));
    let frames = HeapFrames::new(pages, tables_taken);
    Ok((Window::new(tables, memory.window_start), frames))
}

/// Goes on with the console at its place in the window; its port, if there is a console.
pub(super) fn show_console(window: &mut Window) -> Option<LocalPort> {
    let location = console::locate()?;
    let slot = window.take()?;
    let page = window.show(slot, location.gfn)?;
    console::attach(page, location.port);
    Some(location.port)
}

pub(super) fn show_shared_info(window: &mut Window) -> Result<&'static SharedInfo, StartError> {
    let slot = window.take().ok_or(StartError::Window)?;
    let gfn = window.gfn_of(slot);
    // SAFETY: no memory of ours is behind the window.
    unsafe { shared_info::place_at(gfn) }.map_err(StartError::SharedInfo)?;
    let page = window.show(slot, gfn).ok_or(StartError::Window)?;
    // SAFETY: the page is Xen's `shared_info` and stays mapped for ever; all its fields are atomic.
    let shared = unsafe { page.base().cast::<SharedInfo>().as_ref() };
    shared_info::start(shared);
    Ok(shared)
}

impl Grants for Machine {
    type Page = MappedPage;

    fn map(&mut self, domid: DomId, grant: GrantRef) -> Result<MappedPage, XenError> {
        grant::map(&mut self.window, &self.frames, domid, grant)
    }

    fn describe(&self, page: &MappedPage) -> PageFacts {
        grant::describe(page)
    }

    fn adopt(&mut self, facts: PageFacts) -> Result<MappedPage, XenError> {
        grant::adopt(&mut self.window, &self.frames, facts)
    }

    fn unmap(&mut self, page: MappedPage) -> Result<(), XenError> {
        grant::unmap(&mut self.window, page)
    }
}

impl Events for Machine {
    fn bind(&mut self, domid: DomId, remote: EvtchnPort) -> Result<LocalPort, XenError> {
        self.channels.bind_interdomain(domid, remote)
    }

    fn bind_domain_exception(&mut self) -> Result<LocalPort, XenError> {
        let port = self.channels.bind_virq(VIRQ_DOM_EXC)?;
        note_port(port, |header| &header.exception_port);
        Ok(port)
    }

    fn prefer(&mut self, port: LocalPort) {
        self.channels.prefer(port);
    }

    fn close(&mut self, port: LocalPort) {
        self.channels.close(port);
    }

    fn pause(&mut self) {
        self.channels.mask_all();
    }

    fn adopt(&mut self, port: LocalPort) -> Result<(), XenError> {
        self.channels.unmask(port)
    }

    fn notify(&mut self, port: LocalPort) {
        event::notify(port);
    }

    fn collect(&mut self, ports: &mut PendingPorts) {
        self.channels.collect(ports);
        if ports.remove(self.timer_port) {
            self.timer.fired();
        }
        if self.console_port.is_some_and(|port| ports.remove(port)) {
            console::flush();
        }
    }
}

impl crate::xen::Memory for Machine {
    fn memory(&mut self) -> MemoryLeft {
        let left = memory_left();
        self.growth.grow(left, self.latest);
        left
    }
}

/// What is left in the heap.
pub(super) fn memory_left() -> MemoryLeft {
    let heap = heap::heap_usage();
    let bytes = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    MemoryLeft {
        free: bytes(heap.total.saturating_sub(heap.reserved)),
        total: bytes(heap.total),
        stream_room: reserve::get().map_or(u64::MAX, reserve::Reserve::stream_room),
    }
}

impl Domains for Machine {
    fn domain(&mut self, domid: DomId) -> Result<Option<DomainInfo>, XenError> {
        self.domains.domain(&mut Hypervisor, domid)
    }

    fn next_changed(&mut self) -> Result<Option<DomId>, XenError> {
        self.domains.next_changed(&mut Hypervisor)
    }
}

impl Clock for Machine {
    fn now(&mut self) -> Instant {
        self.latest = self.latest.max(clock::system_time());
        self.latest
    }

    fn wait(&mut self, deadline: Option<Instant>) {
        if self.channels.is_pending() {
            return;
        }
        if let Some(deadline) = deadline {
            let is_over = deadline <= self.now();
            // Without a timer nobody would wake us: the loop then turns without sleep.
            if is_over || self.timer.arm(deadline).is_err() {
                return;
            }
        }
        // Events raise the upcall only here, and the timer of the watch is the one interrupt at work.
        interrupts::disable();
        self.channels.listen();
        if !self.channels.is_pending() {
            upcall::idle();
        }
        self.channels.silence();
        watch::go_on();
    }

    fn begin_work(&mut self, now: Instant) {
        watch::look(now);
    }

    fn begin_long_work(&mut self) {
        watch::allow_all_state();
    }
}
