//! The page that Xen shares with us: pending events, their masks, and the time.
//!
//! Xen writes it while we read, so every field is atomic. Layout: xen.h, `struct shared_info` of a 64-bit domain (xen-abi.md section 5).

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicI8, AtomicU8, AtomicU32, AtomicU64};

use spin::Once;

use super::abi::{AddToPhysmap, DOMID_SELF, MAPSPACE_SHARED_INFO};
use super::hypercall;
use crate::xen::XenError;

const VCPUS: usize = 32;
/// Words of 64 ports.
pub(super) const PORT_WORDS: usize = 64;

#[repr(C)]
pub(super) struct SharedInfo {
    vcpus: [VcpuInfo; VCPUS],
    pub(super) pending: [AtomicU64; PORT_WORDS],
    pub(super) mask: [AtomicU64; PORT_WORDS],
}
const _: () = assert!(offset_of!(SharedInfo, pending) == 2048);
const _: () = assert!(offset_of!(SharedInfo, mask) == 2560);

impl SharedInfo {
    /// The part of our only vCPU.
    pub(super) fn vcpu(&self) -> &VcpuInfo {
        let [first, ..] = &self.vcpus;
        first
    }
}

#[repr(C)]
pub(super) struct VcpuInfo {
    /// Not 0: an event became pending since it was 0.
    pub(super) upcall_pending: AtomicU8,
    upcall_mask: AtomicU8,
    /// Bit n: look at word n of `pending`.
    pub(super) pending_words: AtomicU64,
    arch: [AtomicU64; 2],
    pub(super) time: TimeInfo,
}
const _: () = assert!(offset_of!(VcpuInfo, pending_words) == 8);
const _: () = assert!(offset_of!(VcpuInfo, time) == 32);
const _: () = assert!(size_of::<VcpuInfo>() == 64);

/// `struct vcpu_time_info`.
#[repr(C)]
pub(super) struct TimeInfo {
    /// Odd while Xen writes.
    pub(super) version: AtomicU32,
    padding: AtomicU32,
    pub(super) tsc_timestamp: AtomicU64,
    pub(super) system_time_ns: AtomicU64,
    pub(super) tsc_to_system_multiplier: AtomicU32,
    pub(super) tsc_shift: AtomicI8,
    flags: AtomicU8,
    end: [AtomicU8; 2],
}
const _: () = assert!(offset_of!(TimeInfo, tsc_to_system_multiplier) == 24);
const _: () = assert!(offset_of!(TimeInfo, tsc_shift) == 28);
const _: () = assert!(size_of::<TimeInfo>() == 32);

static SHARED_INFO: Once<&'static SharedInfo> = Once::new();

/// Asks Xen to put the page at our guest frame `gfn`.
///
/// # Errors
/// What Xen answered.
///
/// # Safety
/// No memory of ours may be at `gfn`.
pub(super) unsafe fn place_at(gfn: u64) -> Result<(), XenError> {
    let mut place = AddToPhysmap {
        domid: DOMID_SELF,
        size: 0,
        space: MAPSPACE_SHARED_INFO,
        index: 0,
        gfn,
    };
    // SAFETY: the caller vouches for the only memory that changes.
    unsafe { hypercall::perform(&mut place) }.map(drop)
}

/// Makes the page known to all who read it.
pub(super) fn start(shared: &'static SharedInfo) {
    SHARED_INFO.call_once(|| shared);
}

/// The page, once it is mapped.
pub(super) fn get() -> Option<&'static SharedInfo> {
    SHARED_INFO.get().copied()
}
