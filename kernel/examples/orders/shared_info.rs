//! The part of Xen's shared page that event channels need, over loom's atomics.

use crate::sync::{AtomicU8, AtomicU64};

pub(crate) const PORT_WORDS: usize = 64;

pub(crate) struct SharedInfo {
    vcpu: VcpuInfo,
    pub(crate) pending: [AtomicU64; PORT_WORDS],
    pub(crate) mask: [AtomicU64; PORT_WORDS],
}

pub(crate) struct VcpuInfo {
    pub(crate) upcall_pending: AtomicU8,
    pub(crate) pending_words: AtomicU64,
}

impl SharedInfo {
    pub(crate) const fn new() -> Self {
        Self {
            vcpu: VcpuInfo {
                upcall_pending: AtomicU8::new(0),
                pending_words: AtomicU64::new(0),
            },
            pending: [const { AtomicU64::new(0) }; PORT_WORDS],
            mask: [const { AtomicU64::new(0) }; PORT_WORDS],
        }
    }

    pub(crate) fn vcpu(&self) -> &VcpuInfo {
        &self.vcpu
    }
}
