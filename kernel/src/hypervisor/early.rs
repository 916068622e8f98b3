//! Output that needs nothing: Xen's console if it lets us, else the debug port 0xe9, which Xen logs with `guest_loglvl=all`.
//!
//! A line is one call, because a VM exit costs much more than a byte.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

use super::hypercall;

/// `XEN_HVM_DEBUGCONS_IOPORT` (hvm/hvm_op.h is silent; xen `arch/x86/hvm/hvm.c`, also QEMU's and Bochs's).
const DEBUG_PORT: u16 = 0xe9;

static XEN_CONSOLE_WORKS: AtomicBool = AtomicBool::new(false);

/// Finds out whether Xen's console takes our text: debug builds do, and policies may.
pub(super) fn start() {
    let works = hypercall::write_console(&[]).is_ok();
    XEN_CONSOLE_WORKS.store(works, Ordering::Relaxed);
}

/// Writes one line, its end included.
pub(super) fn write(line: &[u8]) {
    let taken = XEN_CONSOLE_WORKS.load(Ordering::Relaxed) && hypercall::write_console(line).is_ok();
    if !taken {
        write_port(line);
    }
}

fn write_port(line: &[u8]) {
    // SAFETY: reads the bytes of `line` and nothing else; the port takes any byte and where nothing listens it is lost.
    unsafe {
        asm!("rep outsb", in("dx") DEBUG_PORT, inout("rcx") line.len() => _, inout("rsi") line.as_ptr() => _,
             options(readonly, nostack, preserves_flags));
    }
}
