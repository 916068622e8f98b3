//! Xen's binary interface: the numbers and structures that this kernel hands to Xen, their sizes and offsets asserted.
//!
//! Our own and not a crate's: the one crate on offer has no grant, memory, HVM or domain control structures, and two sources of
//! one layout are worse than one. Names and layouts: Xen's `public/*.h`, measured in xen-abi.md sections 2 to 7.

use core::mem::{offset_of, size_of};

/// `DOMID_SELF` (xen.h).
pub(super) const DOMID_SELF: u16 = 0x7ff0;

/// Hypercall numbers (xen.h, `__HYPERVISOR_*`).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Call {
    Memory = 12,
    ConsoleIo = 18,
    GrantTable = 20,
    Vcpu = 24,
    Sched = 29,
    EventChannel = 32,
    Hvm = 34,
    Domctl = 36,
}

/// A structure that one hypercall takes by address.
///
/// # Safety
/// The layout must be the one that Xen's header gives for `CALL` and `COMMAND`: Xen reads and writes that many bytes.
pub(super) unsafe trait Operation {
    /// The hypercall.
    const CALL: Call;
    /// Its command; `Call::Domctl` has it in the structure.
    const COMMAND: u64;
}

/// Declares a C structure with its size, and what hypercall it belongs to.
macro_rules! operation {
    ($(#[$doc:meta])* $name:ident $(<$number:ident>)?, $call:ident $command:expr, $size:literal,
     { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        #[repr(C)]
        pub(super) struct $name $(<const $number: u64>)? {
            $($(#[$field_doc])* pub(super) $field: $type,)*
        }
        // SAFETY: fields in the header's order under `repr(C)`, size asserted below; so Xen and Rust mean the same bytes.
        unsafe impl $(<const $number: u64>)? Operation for $name $(<$number>)? {
            const CALL: Call = Call::$call;
            const COMMAND: u64 = $command;
        }
        operation!(@size $name $(<$number>)?, $size);
    };
    (@size $name:ident, $size:literal) => { const _: () = assert!(size_of::<$name>() == $size); };
    (@size $name:ident <$number:ident>, $size:literal) => { const _: () = assert!(size_of::<$name<0>>() == $size); };
}

// memory.h

operation!(
    /// `XENMEM_current_reservation` and `XENMEM_maximum_reservation`: the domain in, pages out as the result.
    Reservation<COMMAND>, Memory COMMAND, 2, { domid: u16, });
/// `XENMEM_current_reservation`: pages that the domain has.
pub(super) const CURRENT_RESERVATION: u64 = 3;
/// `XENMEM_maximum_reservation`: pages that the domain may have.
pub(super) const MAXIMUM_RESERVATION: u64 = 4;

operation!(
/// `struct xen_memory_reservation` for `XENMEM_populate_physmap`: as many extents as were given are the result.
PopulatePhysmap, Memory 6, 32, {
    /// Address of the first guest frame number of each extent.
    extents: u64,
    count: u64,
    /// An extent is 2^order pages.
    order: u32,
    flags: u32,
    domid: u16,
    padding: [u16; 3],
});

operation!(
/// `struct xen_add_to_physmap`.
AddToPhysmap, Memory 7, 24, {
    domid: u16,
    size: u16,
    /// `XENMAPSPACE_*`.
    space: u32,
    index: u64,
    gfn: u64,
});
/// `XENMAPSPACE_shared_info`.
pub(super) const MAPSPACE_SHARED_INFO: u32 = 0;

operation!(
/// `struct xen_memory_map`: room for `entries` in, their number out.
MemoryMap, Memory 9, 16, {
    entries: u32,
    padding: u32,
    /// Address of the first [`MemoryMapEntry`].
    buffer: u64,
});

/// One entry of `XENMEM_memory_map`: packed, the layout of a PC's e820.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, packed(4))]
pub(super) struct MemoryMapEntry {
    pub(super) address: u64,
    pub(super) size: u64,
    pub(super) kind: u32,
}
const _: () = assert!(size_of::<MemoryMapEntry>() == 20);

// hvm/hvm_op.h, hvm/params.h

operation!(
/// `struct xen_hvm_param`.
HvmParameter<COMMAND>, Hvm COMMAND, 16, {
    domid: u16,
    padding: u16,
    index: u32,
    value: u64,
});
/// `HVMOP_set_param`.
pub(super) type SetParameter = HvmParameter<0>;
/// `HVMOP_get_param`.
pub(super) type GetParameter = HvmParameter<1>;

/// `HVM_PARAM_CALLBACK_IRQ`.
pub(super) const PARAMETER_CALLBACK: u32 = 0;
/// `HVM_PARAM_CONSOLE_PFN`.
pub(super) const PARAMETER_CONSOLE_GFN: u32 = 17;
/// `HVM_PARAM_CONSOLE_EVTCHN`.
pub(super) const PARAMETER_CONSOLE_PORT: u32 = 18;
/// `HVM_PARAM_CALLBACK_TYPE_VECTOR`, in the top byte of `HVM_PARAM_CALLBACK_IRQ`: a vector that needs no LAPIC and no EOI.
pub(super) const CALLBACK_BY_VECTOR: u64 = 2 << 56;

// event_channel.h

operation!(
/// `struct evtchn_bind_interdomain`.
BindInterdomain, EventChannel 0, 12, {
    remote_domid: u16,
    padding: u16,
    remote_port: u32,
    /// Out.
    local_port: u32,
});
operation!(
/// `struct evtchn_bind_virq`.
BindVirq, EventChannel 1, 12, {
    virq: u32,
    vcpu: u32,
    /// Out.
    port: u32,
});
/// `VIRQ_TIMER`.
pub(super) const VIRQ_TIMER: u32 = 0;
/// `VIRQ_DOM_EXC`: a domain shut down or is gone.
pub(super) const VIRQ_DOM_EXC: u32 = 3;

operation!(
    /// `struct evtchn_close`, `evtchn_send` and `evtchn_unmask`.
    PortOperation<COMMAND>, EventChannel COMMAND, 4, { port: u32, });
/// `EVTCHNOP_close`.
pub(super) type ClosePort = PortOperation<3>;
/// `EVTCHNOP_send`.
pub(super) type SendEvent = PortOperation<4>;
/// `EVTCHNOP_unmask`.
pub(super) type UnmaskPort = PortOperation<9>;

operation!(
/// `struct evtchn_init_control`: switches the domain to the FIFO ABI.
InitControl, EventChannel 11, 24, {
    control_gfn: u64,
    offset: u32,
    vcpu: u32,
    /// Out: how wide a link is.
    link_bits: u8,
    padding: [u8; 7],
});
operation!(
    /// `struct evtchn_expand_array`: one page more of event words.
    ExpandArray, EventChannel 12, 8, { array_gfn: u64, });
operation!(
/// `struct evtchn_set_priority`.
SetPriority, EventChannel 13, 8, {
    port: u32,
    priority: u32,
});
/// `EVTCHN_FIFO_PRIORITY_MAX`.
pub(super) const HIGHEST_PRIORITY: u32 = 0;

// grant_table.h

operation!(
/// `struct gnttab_map_grant_ref`.
MapGrant, GrantTable 0, 32, {
    /// Guest-physical, as this domain has translated page tables.
    host_address: u64,
    /// `GNTMAP_*`.
    flags: u32,
    grant: u32,
    domid: u16,
    /// Out: `GNTST_*`.
    status: i16,
    /// Out.
    handle: u32,
    /// Out: 0 without `GNTMAP_device_map`.
    device_address: u64,
});
/// `GNTMAP_host_map`.
pub(super) const MAP_FOR_HOST: u32 = 2;

operation!(
/// `struct gnttab_unmap_grant_ref`.
UnmapGrant, GrantTable 1, 24, {
    host_address: u64,
    device_address: u64,
    handle: u32,
    /// Out: `GNTST_*`.
    status: i16,
    padding: u16,
});
/// `GNTST_okay`.
pub(super) const GRANT_OKAY: i16 = 0;

// vcpu.h

operation!(
/// `struct vcpu_set_singleshot_timer`.
SetSingleshotTimer, Vcpu 8, 16, {
    /// System time in nanoseconds; one that has passed fires at once.
    deadline_ns: u64,
    flags: u32,
    padding: u32,
});

operation!(
/// `struct vcpu_runstate_info`, by `VCPUOP_get_runstate_info`.
RunState, Vcpu 4, 48, {
    state: u32,
    padding: u32,
    since_ns: u64,
    /// Nanoseconds in each state, of which the first is to run.
    times_ns: [u64; 4],
});

// sched.h

operation!(
    /// `struct sched_shutdown`.
    Shutdown, Sched 2, 4, { reason: u32, });
/// `SHUTDOWN_crash`.
pub(super) const SHUTDOWN_CRASH: u32 = 3;

// domctl.h: `struct xen_domctl` is 144 bytes up to today; Xen gets 256, so that a longer one stays inside.

operation!(
/// `XEN_DOMCTL_get_domain_state`, stable since Xen 4.21.
DomainState, Domctl 0, 256, {
    command: u32,
    /// 0: this command has no version.
    interface_version: u32,
    domid: u16,
    padding: [u16; 3],
    /// Out: `XEN_DOMCTL_GETDOMSTATE_STATE_*`.
    state: u16,
    /// Out: `XEN_DOMCTL_GETDOMSTATE_CAP_*`.
    capabilities: u16,
    must_be_zero: u32,
    /// Out: never used again while the host runs.
    unique_id: u64,
    rest: [u64; 28],
});
const _: () = assert!(offset_of!(DomainState, state) == 16);
const _: () = assert!(offset_of!(DomainState, unique_id) == 24);
/// `XEN_DOMCTL_get_domain_state`.
pub(super) const GET_DOMAIN_STATE: u32 = 90;

operation!(
/// `XEN_DOMCTL_getdomaininfo`: these positions hold from Xen 4.14 on, only the interface version moves.
DomainInfo, Domctl 0, 256, {
    command: u32,
    interface_version: u32,
    domid: u16,
    padding: [u16; 3],
    /// Out: up to Xen 4.17 the *next* existing domain when `domid` names none.
    found_domid: u16,
    found_padding: u16,
    /// Out: `XEN_DOMINF_*`.
    flags: u32,
    counters: [u64; 8],
    ssidref: u32,
    /// Out: the domain's uuid.
    handle: [u8; 16],
    rest: [u8; 148],
});
const _: () = assert!(offset_of!(DomainInfo, flags) == 20);
const _: () = assert!(offset_of!(DomainInfo, ssidref) == 88);
const _: () = assert!(offset_of!(DomainInfo, handle) == 92);
/// `XEN_DOMCTL_getdomaininfo`.
pub(super) const GET_DOMAIN_INFO: u32 = 5;

// errno.h, as positive numbers

/// Xen does not know the call.
pub(super) const ENOSYS: i32 = 38;

#[cfg(test)]
mod tests {
    /// The numbers of the operations of one hypercall that this file declares; the calls of event channels by a number of their own are aliases.
    fn operations(call: &str) -> Vec<u32> {
        let words: Vec<&str> = include_str!("abi.rs")
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .collect();
        words
            .windows(2)
            .filter(|pair| pair[0] == call)
            .filter_map(|pair| pair[1].parse().ok())
            .collect()
    }

    /// Grants are mapped and unmapped. Nothing is copied, no version is set, no frames are asked for.
    #[test]
    fn xsa_500_501_grants_are_mapped_and_nothing_else_is_done_with_them() {
        assert_eq!(operations("GrantTable"), [0, 1]);
    }

    /// `EVTCHNOP_reset` (10) is never called: the FIFO ABI is set up once.
    #[test]
    fn xsa_505_event_channels_are_never_reset() {
        assert_eq!(operations("EventChannel"), [0, 1, 11, 12, 13]);
        assert_eq!(operations("PortOperation"), [3, 4, 9]);
    }
}
