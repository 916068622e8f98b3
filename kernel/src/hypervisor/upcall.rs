//! The one place where the processor sleeps and the one interrupt that it then takes: Xen's event upcall.
//!
//! Interrupts are enabled nowhere else. To the compiler the idle primitive is an ordinary call, so that no register and no red zone
//! is live across it, and Rust code is never interrupted.

use core::arch::naked_asm;

use super::abi::{CALLBACK_BY_VECTOR, DOMID_SELF, PARAMETER_CALLBACK, SetParameter};
use super::hypercall;
use super::trap::UPCALL_VECTOR;
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

/// Sleeps until an interrupt; returns with interrupts off. Returns at once if an event is pending.
pub(super) fn idle() {
    // SAFETY: an ordinary call that keeps the C calling convention; the handler leaves every register as it was.
    unsafe { sleep() }
}

/// # Safety
/// The upcall's handler must be installed.
#[unsafe(naked)]
unsafe extern "C" fn sleep() {
    naked_asm!("sti", "hlt", "cli", "ret")
}

/// `sti` is one byte, so `hlt` is here in [`sleep`].
const OFFSET_OF_HLT: usize = 1;

/// The upcall: ends the sleep and nothing else. Which event came is in shared memory, for the loop to collect.
///
/// It returns with interrupts off, so that an event that stays pending cannot raise it again and again. It steps over `hlt` if it came
/// before it: nested virtualisation under emulation loses the shadow of `sti`, and an NMI ends it on real machines; the sleep would
/// never end. It has no IST stack: emulation may deliver it twice, at its own first instruction, and the second frame must not
/// overwrite the first.
///
/// # Safety
/// Only an interrupt gate may enter it.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn handler() {
    naked_asm!(
        "push rax",
        "lea rax, [rip + {sleep} + {offset_of_hlt}]",
        "cmp [rsp + {rip}], rax",
        "jne 2f",
        "inc qword ptr [rsp + {rip}]",
        "2:",
        "and dword ptr [rsp + {rflags}], {interrupts_off}",
        "pop rax",
        "iretq",
        sleep = sym sleep,
        offset_of_hlt = const OFFSET_OF_HLT,
        rip = const 8,
        rflags = const 24,
        interrupts_off = const !(1_i32 << 9),
    )
}
