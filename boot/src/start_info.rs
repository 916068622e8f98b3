//! Reads `hvm_start_info` out of physical memory, which boot's page tables show up to 4 GiB.

use kernel::boot_info::{BootInfo, ImageLayout, PhysicalMemory, StartInfoError, read_start_info};

/// What boot's page tables map, without page 0: nothing is ever loaded there.
const READABLE: core::ops::Range<u64> = 0x1000..1 << 32;

/// Reads and checks what the boot loader left at `address`.
///
/// # Errors
/// A sentence that names the broken field.
pub(super) fn read(address: u64, image: ImageLayout) -> Result<BootInfo, StartInfoError> {
    read_start_info(&IdentityMap, address, image)
}

struct IdentityMap;

impl PhysicalMemory for IdentityMap {
    fn read(&self, address: u64, into: &mut [u8]) -> Option<()> {
        let end = address.checked_add(into.len() as u64)?;
        if !READABLE.contains(&address) || end > READABLE.end {
            return None;
        }
        for (place, byte_address) in into.iter_mut().zip(address..end) {
            let pointer = usize::try_from(byte_address)
                .ok()
                .map(core::ptr::with_exposed_provenance::<u8>)?;
            // SAFETY: boot's page tables map the address. Where no memory is, Xen answers with ones; nobody writes meanwhile.
            *place = unsafe { pointer.read_volatile() };
        }
        Some(())
    }
}
