//! The real Xen and the real processor, one topic a file: the only modules of the kernel with `unsafe`, and Xen's structures stay inside.
//!
//! [`prepare`] makes failures visible and comes first; [`Machine::start`] does the rest. Files without hardware in them (`ranges`,
//! `memory_map`, `console_ring`, `line`, `two_level`, `fifo`, and parts of `clock`, `heap`, `paging`) are tested on the host.
#![expect(
    unsafe_code,
    reason = "this is where the kernel meets the processor and Xen; every block proves itself"
)]

mod abi;
mod clock;
mod console;
mod console_ring;
mod cpuid;
mod domain;
mod early;
mod event;
mod fifo;
mod frames;
mod grant;
mod growth;
#[cfg(feature = "guest")]
mod guest;
mod handover;
mod heap;
mod hypercall;
#[cfg(feature = "inject")]
pub mod inject;
mod line;
mod log;
mod machine;
mod memory;
#[cfg(test)]
mod memory_functions;
mod memory_map;
#[cfg(feature = "fake")]
mod metered;
#[cfg(test)]
pub(crate) mod own_heap;
mod page;
mod paging;
pub mod ranges;
mod report;
mod rescue;
mod reserve;
mod shared_info;
mod start;
mod start_error;
mod trap;
mod trial;
mod two_level;
mod upcall;
mod watch;
mod window;

pub use grant::MappedPage;
#[cfg(feature = "guest")]
pub use guest::{OwnPage, ShutdownReason};
pub use handover::Stage;
pub use heap::{HeapUsage, KernelHeap, heap_usage};
pub use machine::{Ground, Machine};
#[cfg(feature = "fake")]
pub use metered::{METERED_BYTES, MeteredHeap};
pub use report::{crash, panic};
pub use rescue::{Rescue, Rescued, guard};
pub use start::{Exchange, Handover, PAGE_ENTRY, Successor, page_table, prepare, take_over};
pub use start_error::StartError;
