//! A tiny guest that plays the part its command line names, `role=NAME`, on its real xenstore ring.
//!
//! `spell-ms=N` says how long it does what it could do for ever; `wait-for=PATH` lets it begin when there is such a node. `roles.rs`
//! is the table of parts. No part of the product: it stands for what a guest of the host may do.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "assembly calls `start` by its name")]

extern crate alloc;

mod checks;
mod guest;
mod latency;
mod manners;
mod roles;

use kernel::boot_info::BootInfo;
use kernel::hypervisor::{Ground, Machine, crash};
use kernel::xen::EventAbi;
use log::{LevelFilter, debug};

use crate::guest::Guest;

/// Where boot's assembly arrives, with the physical address of `hvm_start_info`.
#[unsafe(no_mangle)]
extern "C" fn start(start_info: u32) -> ! {
    boot::enter(start_info, play)
}

fn play(boot: BootInfo) -> ! {
    let machine = Ground::prepare(&boot)
        .and_then(|ground| Machine::start(ground, EventAbi::TwoLevel))
        .unwrap_or_else(|error| crash(error));
    // Such lines go to the paravirtual console only, where they cost little.
    log::set_max_level(LevelFilter::Debug);
    let word = |name| {
        boot.command_line
            .split(' ')
            .find_map(|word| word.strip_prefix(name))
    };
    let name = word("role=").unwrap_or_default();
    let role = roles::find(name).unwrap_or_else(|| crash(roles::Unknown));
    let mut guest = Guest::open(machine).unwrap_or_else(|| crash("no xenstore ring"));
    if let Some(spell_ms) = word("spell-ms=").and_then(|number| number.parse().ok()) {
        guest.spell_ms = spell_ms;
    }
    if let Some(path) = word("wait-for=") {
        guest.wait_for(path);
    }
    debug!("{name}: begins");
    (role.play)(&mut guest);
    debug!("{name}: done");
    loop {
        guest.pause_ms(60_000);
    }
}

/// A test guest is not updated.
#[unsafe(no_mangle)]
extern "C" fn restart(_: u64) -> ! {
    crash("a test guest has no second start")
}
