//! The one place where the processor sleeps, and Xen's event upcall, which wakes it.
//!
//! To the compiler the sleep is an ordinary call, and an interrupt ends it as its `ret` would, whatever it interrupted: emulation may deliver
//! an interrupt twice, at its handler's own first instruction, and may lose the shadow of `sti`, so that it comes before `hlt`. At work the
//! upcall is kept away (`event::Channels::silence`); one that was under way is dropped.

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use super::abi::{CALLBACK_BY_VECTOR, DOMID_SELF, PARAMETER_CALLBACK, SetParameter};
use super::trap::{UPCALL_VECTOR, save_and_return};
use super::{hypercall, shared_info};
use crate::xen::XenError;

/// Asks Xen for [`UPCALL_VECTOR`] when an event is pending. Xen injects it without a LAPIC, so there is no end of interrupt to tell.
///
/// # Errors
/// What Xen answered.
pub(super) fn start() -> Result<(), XenError> {
    let mut callback = SetParameter {
        domid: DOMID_SELF,
        padding: 0,
        index: PARAMETER_CALLBACK,
        value: CALLBACK_BY_VECTOR | u64::from(UPCALL_VECTOR),
    };
    // SAFETY: touches no memory; the vector has a handler (`trap::start`).
    unsafe { hypercall::perform(&mut callback) }.map(drop)
}

/// The stack of who sleeps; 0 while nobody does.
pub(super) static SLEEPER: AtomicU64 = AtomicU64::new(0);

/// Sleeps until an upcall; to be called, and returns, with interrupts off.
pub(super) fn idle() {
    // SAFETY: an ordinary call that keeps the C calling convention: a handler that ends it leaves every register as it was, but for those
    // that a call may change.
    unsafe { sleep() }
}

/// # Safety
/// The handlers must be installed, and interrupts off.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn sleep() {
    naked_asm!(
        "mov [rip + {sleeper}], rsp",
        "sti",
        "hlt",
        "cli",
        "mov qword ptr [rip + {sleeper}], 0",
        "ret",
        sleeper = sym SLEEPER,
    )
}

/// The upcall: ends the sleep and nothing else. Which event came is in shared memory, for the loop to collect.
///
/// # Safety
/// Only an interrupt gate with a stack of its own may enter it.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn handler() {
    naked_asm!(
        "cmp qword ptr [rip + {sleeper}], 0",
        "je 2f",
        "mov rsp, [rip + {sleeper}]",
        "mov qword ptr [rip + {sleeper}], 0",
        "ret",
        "2:",
        "push 0",
        "push {vector}",
        "jmp {at_work}",
        sleeper = sym SLEEPER,
        vector = const UPCALL_VECTOR,
        at_work = sym save_and_return,
    )
}

/// An upcall that Xen was about to raise when it was told not to: the loop finds what came by itself.
pub(super) fn came_at_work() {
    if let Some(shared) = shared_info::get() {
        shared.vcpu().upcall_pending.store(0, Ordering::SeqCst);
    }
}
