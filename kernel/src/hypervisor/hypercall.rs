//! The way into Xen: one instruction, chosen at run time by the processor's vendor.
//!
//! No hypercall page: the instruction itself is the advice since XSA-466, and one page less is executable.

use core::arch::asm;
use core::sync::atomic::{AtomicU8, Ordering};

use super::abi::{Call, ENOSYS, Operation};
use super::cpuid::Vendor;
use crate::xen::XenError;

/// Results from -1 down to this are errors (Linux's and Xen's `MAX_ERRNO`).
const LARGEST_ERRNO: i64 = 4095;

const UNKNOWN: u8 = 0;
const VMCALL: u8 = 1;
const VMMCALL: u8 = 2;

static INSTRUCTION: AtomicU8 = AtomicU8::new(UNKNOWN);

/// Chooses the instruction. Before this every hypercall answers an error.
pub(super) fn enable(vendor: Vendor) {
    let instruction = match vendor {
        Vendor::Intel => VMCALL,
        Vendor::Amd => VMMCALL,
    };
    INSTRUCTION.store(instruction, Ordering::Relaxed);
}

/// Performs one operation; its result or the negative errno that Xen answered.
///
/// # Safety
/// Besides `operation` itself, what it makes Xen read, write or map must not be memory that Rust code uses as its own.
///
/// # Errors
/// What Xen answered.
pub(super) unsafe fn perform<O: Operation>(operation: &mut O) -> Result<u64, XenError> {
    let address = (&raw mut *operation).expose_provenance() as u64;
    let arguments = match O::CALL {
        Call::Domctl => [address, 0, 0],
        Call::GrantTable => [O::COMMAND, address, 1],
        Call::Vcpu => [O::COMMAND, 0, address],
        _ => [O::COMMAND, address, 0],
    };
    // SAFETY: `address` is a live structure of the layout that the call expects (trait `Operation`); the caller vouches for the rest.
    unsafe { call(O::CALL, arguments) }
}

/// Writes `text` to Xen's own console.
///
/// # Errors
/// Release builds of Xen and policies refuse it with `EPERM`.
pub(super) fn write_console(text: &[u8]) -> Result<(), XenError> {
    const CONSOLEIO_WRITE: u64 = 0;
    let arguments = [
        CONSOLEIO_WRITE,
        text.len() as u64,
        text.as_ptr().expose_provenance() as u64,
    ];
    // SAFETY: Xen only reads the `text.len()` bytes there.
    unsafe { call(Call::ConsoleIo, arguments) }.map(drop)
}

/// Stops the periodic timer of our vCPU, which would wake us 100 times a second.
///
/// # Errors
/// What Xen answered.
pub(super) fn stop_periodic_timer() -> Result<(), XenError> {
    const VCPUOP_STOP_PERIODIC_TIMER: u64 = 7;
    // SAFETY: takes no address.
    unsafe { call(Call::Vcpu, [VCPUOP_STOP_PERIODIC_TIMER, 0, 0]) }.map(drop)
}

/// # Safety
/// The arguments must be what `call` expects; addresses in them must not be memory that Rust code uses as its own,
/// other than what the caller lent exclusively for this.
#[inline(never)]
unsafe fn call(call: Call, [first, second, third]: [u64; 3]) -> Result<u64, XenError> {
    let result: i64;
    match INSTRUCTION.load(Ordering::Relaxed) {
        VMCALL => {
            // SAFETY: Xen was found and the vendor has this instruction; it leaves stack and flags alone and may lose only the
            // argument registers, all declared. Memory is clobbered by default.
            unsafe {
                asm!("vmcall", inlateout("rax") call as u64 => result, inlateout("rdi") first => _, inlateout("rsi") second => _,
                     inlateout("rdx") third => _, lateout("r10") _, lateout("r8") _, options(nostack));
            }
        }
        VMMCALL => {
            // SAFETY: as above.
            unsafe {
                asm!("vmmcall", inlateout("rax") call as u64 => result, inlateout("rdi") first => _, inlateout("rsi") second => _,
                     inlateout("rdx") third => _, lateout("r10") _, lateout("r8") _, options(nostack));
            }
        }
        _ => return Err(XenError(ENOSYS)),
    }
    decode(result)
}

/// Tells results from errors.
fn decode(result: i64) -> Result<u64, XenError> {
    if (-LARGEST_ERRNO..0).contains(&result) {
        let errno = i32::try_from(result.unsigned_abs()).unwrap_or(i32::MAX);
        return Err(XenError(errno));
    }
    Ok(result.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_page_of_numbers_is_errors() {
        assert_eq!(decode(0), Ok(0));
        assert_eq!(decode(-1), Err(XenError(1)));
        assert_eq!(decode(-4095), Err(XenError(4095)));
        assert_eq!(decode(-4096), Ok(4096_u64.wrapping_neg()));
        assert_eq!(decode(2056), Ok(2056));
    }

    #[test]
    fn before_xen_is_found_every_call_is_an_error() {
        assert_eq!(write_console(b"x"), Err(XenError(ENOSYS)));
    }
}
