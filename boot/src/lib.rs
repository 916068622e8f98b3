//! What every image shares: PVH entry, what the boot loader said, and the items that only a whole program has.
//!
//! Thinks as little as possible: assembly reaches 64-bit mode (`entry.s`), this reads the boot loader's tables and goes on.
#![no_std]
#![expect(
    unsafe_code,
    reason = "the first instructions, the linker's symbols and physical memory"
)]

mod image;
mod note;
mod start_info;

use core::arch::global_asm;
use core::panic::PanicInfo;

use kernel::boot_info::BootInfo;
use kernel::hypervisor::{self, Handover, KernelHeap};

global_asm!(include_str!("entry.s"));
global_asm!(include_str!("memory.s"));

/// Goes on with `run` and what the boot loader left at `start_info`, a physical address. For `start`, the image's first function.
pub fn enter(start_info: u32, run: fn(BootInfo) -> !) -> ! {
    let image = image::layout();
    hypervisor::prepare(&image);
    match start_info::read(u64::from(start_info), image) {
        Ok(boot) => run(boot),
        Err(error) => hypervisor::crash(error),
    }
}

/// Goes on with `run` and what the instance before this one left at `handover`, a physical address. For `restart`, the first function of
/// every later start.
pub fn enter_again(handover: u64, run: fn(Handover) -> !) -> ! {
    let image = image::layout();
    match hypervisor::take_over(handover, image) {
        Ok(handover) => run(handover),
        Err(error) => hypervisor::crash(error),
    }
}

#[global_allocator]
static HEAP: KernelHeap = KernelHeap;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    hypervisor::panic(info)
}
