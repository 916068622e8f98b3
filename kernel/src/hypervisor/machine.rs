//! The machine as a whole: what is set up in which order, and the traits by which the rest of the kernel uses it.

use core::sync::atomic::{AtomicBool, Ordering};

use ::log::{info, warn};
use x86_64::structures::paging::PageTable;
use xenstore::{DomId, EvtchnPort, GrantRef, Instant};

use super::abi::{VIRQ_DOM_EXC, VIRQ_TIMER};
use super::clock::Timer;
use super::domain::Hypervisor;
use super::event::Channels;
use super::frames::HeapFrames;
use super::grant::MappedPage;
use super::growth::Growth;
use super::memory::Memory;
use super::page::SharedPage;
use super::report::Hex;
use super::shared_info::SharedInfo;
use super::start_error::StartError;
use super::window::{Window, WindowTables};
use super::{
    clock, console, cpuid, early, event, grant, heap, hypercall, log, paging, report, shared_info,
    trap, upcall,
};
use crate::boot_info::{BootInfo, ImageLayout};
use crate::domain_interface::DomainInterface;
use crate::xen::{
    Clock, DomainInfo, Domains, EventAbi, Events, Grants, LocalPort, MemoryLeft, PendingPorts,
    XenError,
};

/// Makes failures visible: exceptions are reported, and text reaches every console that works. The first thing to call, once.
///
/// Without Xen it says so and stops.
pub fn prepare(image: &ImageLayout) {
    report::start(image.build_id);
    trap::start();
    log::start();
    if cpuid::find_xen().is_none() {
        report::crash(StartError::NoXen);
    }
    hypercall::enable(cpuid::vendor());
    early::start();
    if let Some(location) = console::locate()
        && location.address() < paging::BOOT_MAP_END
    {
        // SAFETY: boot's tables map all below 4 GiB at its own address, and Xen's builder keeps this page out of RAM. The machine
        // attaches another address when it leaves those tables.
        let page = unsafe { SharedPage::at(location.address()) };
        page.inspect(|page| console::attach(*page, location.port));
    }
}

/// What is there before anything is decided: memory, consoles, and what Xen says of itself.
pub struct Ground {
    window: Window,
    frames: HeapFrames,
    growth: Growth,
    shared: &'static SharedInfo,
    console_port: Option<LocalPort>,
    own_domid: DomId,
}

impl Ground {
    /// Sets it up, in the order of need: memory, page tables, heap, consoles, the page that Xen shares.
    ///
    /// # Errors
    /// What is missing, as a sentence. The domain cannot go on then.
    pub fn prepare(boot: &BootInfo) -> Result<Self, StartError> {
        static STARTED: AtomicBool = AtomicBool::new(false);
        if STARTED.swap(true, Ordering::Relaxed) {
            return Err(StartError::Twice);
        }
        let xen = cpuid::find_xen().ok_or(StartError::NoXen)?;
        let own_domid = xen.own_domid.ok_or(StartError::NoOwnDomid)?;
        let memory = Memory::survey(boot)?;
        let (mut window, frames) = take_memory(&boot.image, &memory)?;
        let console_port = show_console(&mut window);
        let shared = show_shared_info(&mut window)?;
        let (major, minor) = xen.version;
        info!(
            "Xen {major}.{minor}, domain {own_domid}, build id {}",
            Hex(report::build_id())
        );
        info!(
            "memory {memory}, heap {} KiB",
            heap::heap_usage().total / 1024
        );
        Ok(Self {
            window,
            frames,
            growth: Growth::new(memory.later),
            shared,
            console_port,
            own_domid,
        })
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
        let Ground {
            window,
            frames,
            growth,
            shared,
            console_port,
            own_domid,
        } = ground;
        let mut channels = Channels::start(shared, event_abi);
        info!("event channels by {}", channels.abi());
        upcall::start().map_err(StartError::Upcall)?;
        if console_port.is_none_or(|port| channels.unmask(port, &frames).is_err()) {
            warn!("there is no PV console");
        }
        // Xen gives PVH domains no periodic timer; where it does, it is not wanted.
        let _ = hypercall::stop_periodic_timer();
        let timer_port = channels
            .bind_virq(VIRQ_TIMER, &frames)
            .map_err(StartError::Timer)?;
        let domains = DomainInterface::probe(&mut Hypervisor);
        info!("state of domains by {domains}");
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

/// Leaves boot's page tables for ours and gives the heap its memory.
fn take_memory(image: &ImageLayout, memory: &Memory) -> Result<(Window, HeapFrames), StartError> {
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
            &memory.free,
            &memory.later,
            paging::BOOT_MAP_END,
        )
    }?;
    console::detach();
    // SAFETY: `ROOT` is in the image, which lies at its physical address, and maps the whole image, stack included.
    unsafe { paging::switch_to(root) };
    // SAFETY: the new tables map this range, for the heap alone.
    unsafe { heap::start(heap) };
    let tables_taken = paging::tables_for(&memory.free, &memory.later);
    let mut pages = memory.free.clone();
    memory.later.iter().for_each(|range| pages.add(range));
    let frames = HeapFrames::new(pages, tables_taken);
    Ok((Window::new(tables, memory.window_start), frames))
}

/// Goes on with the console at its place in the window; its port, if there is a console.
fn show_console(window: &mut Window) -> Option<LocalPort> {
    let location = console::locate()?;
    let slot = window.take()?;
    let page = window.show(slot, location.gfn)?;
    console::attach(page, location.port);
    Some(location.port)
}

fn show_shared_info(window: &mut Window) -> Result<&'static SharedInfo, StartError> {
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

    fn unmap(&mut self, page: MappedPage) -> Result<(), XenError> {
        grant::unmap(&mut self.window, page)
    }
}

impl Events for Machine {
    fn bind(&mut self, domid: DomId, remote: EvtchnPort) -> Result<LocalPort, XenError> {
        self.channels.bind_interdomain(domid, remote, &self.frames)
    }

    fn bind_domain_exception(&mut self) -> Result<LocalPort, XenError> {
        self.channels.bind_virq(VIRQ_DOM_EXC, &self.frames)
    }

    fn prefer(&mut self, port: LocalPort) {
        self.channels.prefer(port);
    }

    fn close(&mut self, port: LocalPort) {
        self.channels.close(port);
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
        upcall::idle();
    }
}
