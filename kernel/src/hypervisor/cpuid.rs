//! What CPUID tells: whether Xen is below us, who we are, and which protections the processor has.
//!
//! Leaves: Xen's `public/arch-x86/cpuid.h`.

use core::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};

use xenstore::DomId;

const FIRST_HYPERVISOR_LEAF: u32 = 0x4000_0000;
const HYPERVISOR_LEAF_STEP: u32 = 0x100;
/// Where Xen may hide behind the leaves of other interfaces (viridian): the last base that is looked at.
const LAST_HYPERVISOR_LEAF: u32 = 0x4001_0000;

/// Xen, as its leaves describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Xen {
    /// 4.17 is (4, 17).
    pub(super) version: (u16, u16),
    /// Our own id; absent before Xen 4.6.
    pub(super) own_domid: Option<DomId>,
}

/// Whose hypercall instruction the processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vendor {
    /// Intel and those that follow it: `vmcall`.
    Intel,
    /// AMD and Hygon: `vmmcall`.
    Amd,
}

/// Protections that a kernel switches on in CR4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Protections {
    /// No execution of user pages.
    pub(super) smep: bool,
    /// No access to user pages.
    pub(super) smap: bool,
    /// No reading of descriptor registers by user code.
    pub(super) umip: bool,
}

/// Looks for Xen.
pub(super) fn find_xen() -> Option<Xen> {
    let step = usize::try_from(HYPERVISOR_LEAF_STEP).unwrap_or(usize::MAX);
    let base = (FIRST_HYPERVISOR_LEAF..LAST_HYPERVISOR_LEAF)
        .step_by(step)
        .find(|base| is_xen(__cpuid(*base)))?;
    Some(describe(
        __cpuid(base | 1),
        (__cpuid(base).eax >= base | 4).then(|| __cpuid(base | 4)),
    ))
}

fn is_xen(leaf: CpuidResult) -> bool {
    signature([leaf.ebx, leaf.ecx, leaf.edx]) == *b"XenVMMXenVMM"
}

fn describe(version: CpuidResult, hvm: Option<CpuidResult>) -> Xen {
    /// `XEN_HVM_CPUID_DOMID_PRESENT`
    const DOMID_PRESENT: u32 = 1 << 4;
    let [minor_low, minor_high, major_low, major_high] = version.eax.to_le_bytes();
    Xen {
        version: (
            u16::from_le_bytes([major_low, major_high]),
            u16::from_le_bytes([minor_low, minor_high]),
        ),
        own_domid: hvm
            .filter(|leaf| leaf.eax & DOMID_PRESENT != 0)
            .and_then(|leaf| u16::try_from(leaf.ecx).ok())
            .map(DomId::new),
    }
}

/// The processor's vendor.
pub(super) fn vendor() -> Vendor {
    let leaf = __cpuid(0);
    match &signature([leaf.ebx, leaf.edx, leaf.ecx]) {
        b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
        _ => Vendor::Intel,
    }
}

/// What the processor can protect.
pub(super) fn protections() -> Protections {
    const STRUCTURED_FEATURES: u32 = 7;
    if __cpuid(0).eax < STRUCTURED_FEATURES {
        return Protections {
            smep: false,
            smap: false,
            umip: false,
        };
    }
    let features = __cpuid_count(STRUCTURED_FEATURES, 0);
    Protections {
        smep: features.ebx & (1 << 7) != 0,
        smap: features.ebx & (1 << 20) != 0,
        umip: features.ecx & (1 << 2) != 0,
    }
}

/// Whether the local APIC has registers with numbers.
pub(super) fn has_x2apic() -> bool {
    __cpuid(1).ecx & (1 << 21) != 0
}

/// The twelve letters in three registers.
fn signature(registers: [u32; 3]) -> [u8; 12] {
    let mut letters = [0; 12];
    for (place, register) in letters.chunks_exact_mut(4).zip(registers) {
        place.copy_from_slice(&register.to_le_bytes());
    }
    letters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(eax: u32, ecx: u32) -> CpuidResult {
        CpuidResult {
            eax,
            ebx: 0,
            ecx,
            edx: 0,
        }
    }

    #[test]
    fn version_and_domid_as_xen_4_17_gives_them() {
        let xen = describe(leaf(0x0004_0011, 0), Some(leaf(0x5c, 1)));
        assert_eq!(xen.version, (4, 17));
        assert_eq!(xen.own_domid, Some(DomId::new(1)));
    }

    #[test]
    fn domid_only_when_it_is_said_to_be_there() {
        assert_eq!(describe(leaf(0, 0), Some(leaf(0x4c, 1))).own_domid, None);
        assert_eq!(describe(leaf(0, 0), None).own_domid, None);
        assert_eq!(
            describe(leaf(0, 0), Some(leaf(0x5c, 0x1_0000))).own_domid,
            None
        );
    }

    #[test]
    fn signature_is_in_register_order() {
        let letters = signature([
            u32::from_le_bytes(*b"XenV"),
            u32::from_le_bytes(*b"MMXe"),
            u32::from_le_bytes(*b"nVMM"),
        ]);
        assert_eq!(&letters, b"XenVMMXenVMM");
    }
}
