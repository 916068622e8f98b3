//! The atomic types of what the hypervisor or another domain changes at the same time, in one place so that `tests/loom` can put its own here.

pub(crate) use core::sync::atomic::{AtomicU32, Ordering, fence};
