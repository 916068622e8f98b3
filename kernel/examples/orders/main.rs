//! Every order in which Xen or a guest can come between our loads and stores, as far as memory ordering lets them (loom).
//!
//! The files that share memory with others stand here once more, over loom's atomics in place of the processor's (`sync`). Without
//! `--cfg loom` there is nothing to do; `scripts/test-orders` sets it. What loom does not notice is a missing acquire fence.
#![cfg_attr(
    loom,
    expect(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        dead_code,
        unreachable_pub,
        reason = "the kernel needs more of its own files, and a test that goes wrong should stop at once"
    )
)]

#[cfg(loom)]
#[path = "../../src/bugs.rs"]
mod bugs;
#[cfg(loom)]
mod events;
#[cfg(loom)]
#[path = "../../src/hypervisor/fifo.rs"]
mod fifo;
#[cfg(loom)]
#[path = "../../src/ring.rs"]
mod ring;
#[cfg(loom)]
mod rings;
#[cfg(loom)]
mod shared_info;
#[cfg(loom)]
mod sync;
#[cfg(loom)]
#[path = "../../src/hypervisor/two_level.rs"]
mod two_level;

#[cfg(loom)]
use kernel::xen;

#[cfg(not(loom))]
fn main() {}

#[cfg(loom)]
fn main() {
    rings::run();
    events::run();
}
