//! The starts of the domain: the first one by the boot loader, and later ones by what the instance before left in the reserve.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use ::log::{info, warn};
use xenstore::{DomId, Instant};

use super::growth::Growth;
use super::handover::{Field, Header, Stage};
use super::machine::Ground;
use super::memory::Memory;
use super::paging::BOOT_MAP_END;
use super::ranges::AddressRange;
use super::report::Hex;
use super::rescue::Rescued;
use super::reserve::{Layout, Reserve};
use super::start_error::StartError;
use super::trial::Failure;
use super::{
    console, cpuid, early, heap, hypercall, log, machine, paging, report, rescue, reserve, trap,
    trial,
};
use crate::boot_info::{BootInfo, ImageLayout};
use crate::next_image::NextImage;
use crate::xen::PageFacts;

/// Makes failures visible: exceptions are reported, and text reaches every console that works. The first thing to call, once.
///
/// Without Xen it says so and stops.
pub fn prepare(image: &ImageLayout) {
    report::start(image.build_id);
    trap::start();
    make_visible();
}

/// As [`prepare`], for a later start: `address` is the reserve's physical one.
///
/// # Errors
/// There is no reserve, or not one that this image understands.
pub fn take_over(address: u64, image: ImageLayout) -> Result<Handover, StartError> {
    report::start(image.build_id);
    // SAFETY: `restart_entry`'s contract: all below 1 GiB is mapped at its own address, and the reserve is nobody else's.
    let reserve = unsafe { Reserve::find(address) }.ok_or(StartError::Handover)?;
    #[cfg(feature = "inject")]
    if trial::is_open() {
        super::inject::at_entry(reserve.header());
    }
    // While this image is tried the tables are the monitor's.
    trap::prepare();
    let is_trial = trial::is_open();
    if !is_trial {
        trap::load();
    }
    make_visible();
    let stage = match reserve.header().stage().ok_or(StartError::Handover)? {
        // The monitor knows no stages: it closes the trial and comes back.
        Stage::Trial if !is_trial => Stage::CameBack,
        stage => stage,
    };
    Ok(Handover {
        reserve,
        stage,
        image,
    })
}

fn make_visible() {
    log::start();
    if cpuid::find_xen().is_none() {
        report::crash(StartError::NoXen);
    }
    hypercall::enable(cpuid::vendor());
    early::start();
    if let Some(location) = console::locate()
        && location.address() < BOOT_MAP_END
    {
        // SAFETY: boot's tables map all below 4 GiB at its own address, and Xen's builder keeps this page out of RAM. The machine
        // attaches another address when it leaves those tables.
        let page = unsafe { super::page::SharedPage::at(location.address()) };
        page.inspect(|page| console::attach(*page, location.port));
    }
}

/// What the start before this one left.
pub struct Handover {
    reserve: Reserve,
    stage: Stage,
    image: ImageLayout,
}

impl Handover {
    /// Why this image was started.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The command line for this image.
    #[must_use]
    pub fn command_line(&self) -> impl AsRef<str> + use<> {
        let header = self.header();
        match self.stage {
            Stage::Trial => header.next_command_line.get(),
            _ => header.command_line.get(),
        }
    }

    /// The state stream.
    #[must_use]
    pub fn stream(&self) -> &'static [u8] {
        let (all, size, _) = self.handed_over();
        all.get(..size).unwrap_or_default()
    }

    /// What was handed over, bytes of the stream at its beginning, and entries of the table behind that.
    fn handed_over(&self) -> (&'static [u8], usize, usize) {
        let header = self.header();
        let is_other = self.stage == Stage::CameBack && header.back_at.get() != 0;
        let number = |field: &Field| usize::try_from(field.get()).unwrap_or(usize::MAX);
        let (at, size, pages) = if is_other {
            let (size, pages) = (number(&header.back_size), number(&header.back_pages));
            (number(&header.back_at), size, pages)
        } else {
            // It begins where its place does.
            (0, number(&header.stream_size), number(&header.pages))
        };
        // SAFETY: nobody writes to it before the next hand-over, which ends this start.
        let all = unsafe { self.reserve.stream_bytes() };
        (all.get(at..).unwrap_or_default(), size, pages)
    }

    /// Which page is whose.
    #[must_use]
    pub fn pages(&self) -> Vec<(DomId, PageFacts)> {
        let (all, size, count) = self.handed_over();
        let table = all.get(size..).unwrap_or_default();
        let (entries, _) = table.as_chunks::<PAGE_ENTRY>();
        entries
            .iter()
            .take(count)
            .map(|entry| page_of(*entry))
            .collect()
    }

    /// Accepts: from here on there is no image to come back to but this one, which can be started again from now on. Exceptions are its own.
    pub fn accept(&self) {
        let header = self.header();
        if self.stage == Stage::Trial {
            trial::close(header);
            // The processor marks our task as busy, in a table that is read-only by now.
            // SAFETY: these tables map all below 1 GiB, where the image is; nothing else is needed.
            unsafe { paging::with_tables(header.monitor.tables.get(), trap::load) };
            header.command_line.set(&header.next_command_line.get());
        }
        own(self.reserve, &self.image);
        header.set_stage(Stage::Running);
    }

    /// Why the image that should have followed did not stay, or what this image ended by.
    #[must_use]
    pub fn reason(&self) -> String {
        match self.stage {
            Stage::CameBack => format!("{}", Failure(self.header())),
            _ => self.header().reason.get().as_str().into(),
        }
    }

    /// Crashes since the first start.
    #[must_use]
    pub fn crashes(&self) -> u64 {
        self.header().crashes.get()
    }

    /// When the hand-over began.
    #[must_use]
    pub fn began(&self) -> Instant {
        Instant(self.header().began_ns.get())
    }

    fn header(&self) -> &'static Header {
        self.reserve.header()
    }
}

/// Bytes of an entry of the table of pages: the domid and what the machine notes.
pub const PAGE_ENTRY: usize = 16;

/// Writes the table of pages into `room`, which begins right behind the state stream; how many there are, or none if there is not enough
/// room.
pub fn page_table(
    pages: impl Iterator<Item = (DomId, PageFacts)>,
    room: &mut [u8],
) -> Option<usize> {
    let mut entries = room.as_chunks_mut::<PAGE_ENTRY>().0.iter_mut();
    let mut count = 0_usize;
    for (domid, facts) in pages {
        let (first, second) = entries.next()?.split_at_mut(PAGE_ENTRY / 2);
        first.copy_from_slice(&u64::from(domid.get()).to_le_bytes());
        second.copy_from_slice(&facts);
        count = count.saturating_add(1);
    }
    Some(count)
}

fn page_of(entry: [u8; PAGE_ENTRY]) -> (DomId, PageFacts) {
    let [d0, d1, _, _, _, _, _, _, facts @ ..] = entry;
    (DomId::new(u16::from_le_bytes([d0, d1])), facts)
}

/// Makes `image` the one that a later start enters.
fn own(reserve: Reserve, image: &ImageLayout) {
    let header = reserve.header();
    let install = || {
        // SAFETY: no monitor is in use; the tables with which this runs are the image's or have the same entries.
        unsafe { reserve.install_monitor() }
    };
    let tables = header.monitor.tables.get();
    let installed = match tables {
        0 => install(),
        // SAFETY: these tables map all below 1 GiB, where image and reserve are; nothing else is needed.
        tables => unsafe { paging::with_tables(tables, install) },
    };
    if installed.is_none() {
        warn!("there is no room for the monitor: no live update, no restart after a crash");
        return;
    }
    header.monitor.image.set(image.rodata.start);
    header.monitor.way_back.set(image.restart_entry);
    header.image_checksum.set(rescue::checksum(image).into());
    rescue::start(*image);
}

/// How the ground is laid: by the boot loader's word, or by what the start before left.
enum Origin<'a> {
    Boot(&'a BootInfo),
    Handover(&'a Handover),
}

impl Ground {
    /// Sets it up, in the order of need: memory, page tables, heap, consoles, the page that Xen shares.
    ///
    /// # Errors
    /// What is missing, as a sentence. The domain cannot go on then.
    pub fn prepare(boot: &BootInfo) -> Result<Self, StartError> {
        Self::lay(&Origin::Boot(boot))
    }

    /// As [`Ground::prepare`], where another start left everything.
    ///
    /// # Errors
    /// As for [`Ground::prepare`].
    pub fn again(handover: &Handover) -> Result<Self, StartError> {
        Self::lay(&Origin::Handover(handover))
    }

    fn lay(origin: &Origin<'_>) -> Result<Self, StartError> {
        static STARTED: AtomicBool = AtomicBool::new(false);
        if STARTED.swap(true, Ordering::Relaxed) {
            return Err(StartError::Twice);
        }
        let xen = cpuid::find_xen().ok_or(StartError::NoXen)?;
        let own_domid = xen.own_domid.ok_or(StartError::NoOwnDomid)?;
        let (memory, reserve) = match origin {
            Origin::Boot(boot) => first_memory(boot)?,
            Origin::Handover(handover) => {
                let memory = Memory::again(handover.header(), handover.image.whole());
                (memory, Some(handover.reserve))
            }
        };
        let layout = reserve.map(Reserve::layout);
        let memory = memory.without(layout.map(|layout| layout.range))?;
        let image = match origin {
            Origin::Boot(boot) => &boot.image,
            Origin::Handover(handover) => &handover.image,
        };
        if let (Origin::Boot(_), Some(reserve)) = (origin, reserve) {
            own(reserve, image);
        }
        let (mut window, frames) = machine::take_memory(image, &memory, layout)?;
        let console_port = machine::show_console(&mut window);
        let shared = machine::show_shared_info(&mut window)?;
        let (major, minor) = xen.version;
        info!(
            "Xen {major}.{minor}, domain {own_domid}, build id {}",
            Hex(report::build_id())
        );
        let kept = layout.map_or(0, |layout| layout.range.size());
        info!(
            "memory {memory}, heap {} KiB, {} KiB kept for live update and restart",
            heap::heap_usage().total / 1024,
            kept / 1024
        );
        Ok(Self {
            window,
            frames,
            growth: Growth::new(memory.later, memory.given),
            shared,
            console_port,
            own_domid,
        })
    }
}

/// Memory at the first start, and a reserve in it.
fn first_memory(boot: &BootInfo) -> Result<(Memory, Option<Reserve>), StartError> {
    let memory = Memory::survey(boot)?;
    // A guest is not updated, and has little memory.
    if cfg!(feature = "guest") {
        return Ok((memory, None));
    }
    let image = boot.image.kept.end.saturating_sub(boot.image.rodata.start);
    let Some(layout) = Layout::plan(&memory.free, image) else {
        return Ok((memory, None));
    };
    // SAFETY: this memory was nobody's, and is taken out of what the heap gets; boot's tables map it as ours will.
    let reserve = unsafe { Reserve::create(layout) };
    if let Some(reserve) = reserve {
        memory.note_in(reserve.header());
        reserve.header().command_line.set(&boot.command_line);
    }
    Ok((memory, reserve))
}

/// The way to another image, or to this one anew.
pub struct Successor {
    reserve: Reserve,
}

impl Successor {
    /// The way, if this domain has a reserve; once.
    #[must_use]
    pub fn find() -> Option<Self> {
        static FOUND: AtomicBool = AtomicBool::new(false);
        let reserve = reserve::get()?;
        let is_ready = reserve.header().monitor.tables.get() != 0;
        (is_ready && !FOUND.swap(true, Ordering::Relaxed)).then_some(Self { reserve })
    }

    /// Bytes of an image that there is room for.
    #[must_use]
    pub fn image_room(&self) -> usize {
        usize::try_from(self.reserve.slot_size()).unwrap_or(0)
    }

    /// Bytes of state that there is room for: streams, and the table of pages behind each.
    #[must_use]
    pub fn stream_room(&self) -> u64 {
        self.reserve.stream_room()
    }

    /// Where an image may run: where this one does, as far as there is memory that is not the reserve's.
    #[must_use]
    pub fn image_range(&self) -> AddressRange {
        let header = self.reserve.header();
        let start = header.monitor.image.get();
        let reserve = self.reserve.layout().range;
        let ram = header.ram.get();
        let piece = ram.iter().find(|piece| piece.contains_address(start));
        let end = piece.map_or(start, |piece| piece.end);
        AddressRange {
            start,
            end: if start < reserve.start {
                end.min(reserve.start)
            } else {
                end
            },
        }
    }

    /// The room for an image.
    pub fn image(&mut self) -> &mut [u8] {
        // SAFETY: there is one such value (`find`), and the slice ends before the next one begins.
        unsafe { self.reserve.slot_bytes() }
    }

    /// The room for a state stream.
    pub fn stream(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { self.reserve.stream_bytes() }
    }

    /// What is exchanged when `image`, loaded in the slot, takes this one's place and this one its.
    ///
    /// # Errors
    /// What this image needs to be started again does not fit into the room for an image, which the first image of this domain made.
    pub fn exchange(&self, image: &NextImage) -> Result<Exchange, &'static str> {
        let loaded = u64::try_from(image.loaded_size()).unwrap_or(u64::MAX);
        let size = loaded.max(rescue::image_size()).next_multiple_of(8);
        if size > self.reserve.slot_size() {
            return Err("This image is too large to be kept while another one is tried.");
        }
        Ok(Exchange {
            size,
            entry: image.entry,
        })
    }

    /// Starts the image in the slot on what is `handed_over` in the room for the state stream. If it does not accept, this image is started on
    /// it, or on what is behind it for the `way_back`, at [`Stage::CameBack`].
    pub fn try_image(
        &self,
        exchange: &Exchange,
        command_line: Option<&str>,
        handed_over: Rescued,
        way_back: Option<Rescued>,
        began: Instant,
    ) -> ! {
        let header = self.reserve.header();
        match command_line {
            Some(line) => header.next_command_line.set(line),
            None => header.next_command_line.set(&header.command_line.get()),
        }
        handed_over.note_in(header, way_back);
        header.began_ns.set(began.0);
        trial::begin(self.reserve, exchange)
    }
}

/// Two images that can change places.
pub struct Exchange {
    /// Bytes, a multiple of 8, no more than the slot has.
    pub(super) size: u64,
    /// Where the one that comes is entered.
    pub(super) entry: u64,
}

/// Appends to the reason that the next start is told.
pub(super) fn note_reason(text: fmt::Arguments<'_>) {
    if let Some(reserve) = reserve::get() {
        let reason = &reserve.header().reason;
        let mut end = reason.appender();
        let _ = end.write_fmt(text);
        let _ = end.write_str(". ");
    }
}
