//! How much memory Xen gave us, and where: asked once, before the page tables are made.

use core::fmt;

use super::abi::{
    CURRENT_RESERVATION, DOMID_SELF, MAXIMUM_RESERVATION, MemoryMap, MemoryMapEntry, Reservation,
};
use super::handover::Header;
use super::hypercall;
use super::memory_map::{free_memory, later_memory, populated_ram, window_start};
use super::ranges::{AddressRange, MapEntry, PageRanges};
use super::start_error::StartError;
use crate::boot_info::{BootInfo, MEMORY_MAP_MAX};
use crate::xen::XenError;

/// Free bytes without which starting makes no sense.
pub(super) const MINIMUM: u64 = 2 << 20;

/// Our memory.
pub(super) struct Memory {
    pub(super) ram: PageRanges,
    /// What the heap may have.
    pub(super) free: PageRanges,
    /// What Xen may give later; nothing is there yet but in the first `given` pages.
    pub(super) later: PageRanges,
    pub(super) given: u64,
    /// Physical address behind all memory, where foreign pages may appear.
    pub(super) window_start: u64,
}

impl Memory {
    /// Asks Xen, and takes the boot loader's map if it gave one.
    ///
    /// # Errors
    /// Xen would not say, or it is too little.
    pub(super) fn survey(boot: &BootInfo) -> Result<Self, StartError> {
        let populated = reservation::<CURRENT_RESERVATION>().map_err(StartError::Memory)?;
        let maximum = reservation::<MAXIMUM_RESERVATION>().map_err(StartError::Memory)?;
        let map = if boot.memory_map.is_empty() {
            // Without any map the populated pages are taken as Xen's builder lays them out.
            ask_for_map().unwrap_or_default()
        } else {
            boot.memory_map.clone()
        };
        let image = boot.image.whole();
        let ram = populated_ram(&map, image, populated);
        let free = free_memory(&ram, image, &boot.modules);
        let window_start = window_start(&map, &ram, maximum);
        Ok(Self {
            later: later_memory(&ram, free.size(), populated, maximum, window_start),
            given: 0,
            window_start,
            ram,
            free,
        })
    }

    /// The memory that another start of the domain found, for an image that lies at `image`.
    pub(super) fn again(header: &Header, image: AddressRange) -> Self {
        let ram = header.ram.get();
        Self {
            free: free_memory(&ram, image, &[]),
            later: header.later.get(),
            given: header.given.get(),
            window_start: header.window_start.get(),
            ram,
        }
    }

    /// Leaves it to the next start of the domain.
    pub(super) fn note_in(&self, header: &Header) {
        header.ram.set(&self.ram);
        header.later.set(&self.later);
        header.given.set(self.given);
        header.window_start.set(self.window_start);
    }

    /// Takes the reserve out of what the heap may have.
    ///
    /// # Errors
    /// What is left makes no sense.
    pub(super) fn without(mut self, reserve: Option<AddressRange>) -> Result<Self, StartError> {
        if let Some(reserve) = reserve {
            self.free.remove(reserve);
        }
        match self.free.size() {
            MINIMUM.. => Ok(self),
            free => Err(StartError::TooLittleMemory {
                free,
                needed: MINIMUM,
            }),
        }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} KiB", self.ram.size() / 1024)?;
        match self.later.size() / 1024 {
            0 => Ok(()),
            more => write!(f, " and {more} KiB to be had"),
        }
    }
}

/// A number of pages that Xen counts for us.
fn reservation<const WHICH: u64>() -> Result<u64, XenError> {
    let mut reservation = Reservation::<WHICH> { domid: DOMID_SELF };
    // SAFETY: touches no memory.
    unsafe { hypercall::perform(&mut reservation) }
}

/// The map that the toolstack left with Xen, without absurd entries.
fn ask_for_map() -> Result<heapless::Vec<MapEntry, MEMORY_MAP_MAX>, XenError> {
    let mut entries = [MemoryMapEntry::default(); MEMORY_MAP_MAX];
    let mut map = MemoryMap {
        entries: u32::try_from(entries.len()).unwrap_or(0),
        padding: 0,
        buffer: entries.as_mut_ptr().expose_provenance() as u64,
    };
    // SAFETY: Xen writes at most `map.entries` entries to the buffer, which has as many and is lent for it alone.
    unsafe { hypercall::perform(&mut map) }?;
    let given = usize::try_from(map.entries).unwrap_or(0);
    let credible = entries
        .iter()
        .take(given)
        .filter_map(|entry| MapEntry::new(entry.address, entry.size, entry.kind));
    Ok(credible.collect())
}
