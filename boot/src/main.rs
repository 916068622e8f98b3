//! The image: from PVH entry to the kernel, and the items that only a whole program has.
//!
//! Thinks as little as possible: assembly reaches 64-bit mode (`entry.s`), this reads the boot loader's tables and goes on.
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "the first instructions, the linker's symbols and physical memory"
)]

mod image;
mod note;
mod start_info;

use core::arch::global_asm;
use core::panic::PanicInfo;

use kernel::hypervisor::{self, KernelHeap};

global_asm!(include_str!("entry.s"));
global_asm!(include_str!("memory.s"));

/// Where `entry.s` arrives, with the physical address of `hvm_start_info`.
#[unsafe(no_mangle)]
extern "C" fn start(start_info: u32) -> ! {
    let image = image::layout();
    hypervisor::prepare(&image);
    match start_info::read(u64::from(start_info), image) {
        Ok(boot) => kernel::run::run(boot),
        Err(error) => hypervisor::crash(error),
    }
}

#[global_allocator]
static HEAP: KernelHeap = KernelHeap;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    hypervisor::panic(info)
}
