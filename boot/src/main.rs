//! The image: from PVH entry (this crate's library) to the kernel.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "assembly calls `start` by its name")]

/// Where `entry.s` arrives, with the physical address of `hvm_start_info`.
#[unsafe(no_mangle)]
extern "C" fn start(start_info: u32) -> ! {
    boot::enter(start_info, kernel::run::run)
}

/// Where `entry.s` arrives at every later start, with the physical address of what was handed over.
#[unsafe(no_mangle)]
extern "C" fn restart(handover: u64) -> ! {
    boot::enter_again(handover, kernel::run::run_again)
}
