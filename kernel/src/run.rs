//! The way from a booted processor to a served host, then the loop: serve, sleep.
//!
//! The only place that names both the machine and the dispatcher.

use log::{info, warn};
use xenstore::{FlatMap, Journaled, Progress, Server, Settings, Storage, StorageKind, Tree};

use crate::boot_info::BootInfo;
use crate::config::Config;
use crate::dispatch::Dispatcher;
use crate::hypervisor::{Ground, Machine, crash};

/// Serves the host for ever. What cannot start says why on every console and ends the domain as crashed.
pub fn run(boot: BootInfo) -> ! {
    info!("Ferrostore {}", env!("CARGO_PKG_VERSION"));
    let ground = Ground::prepare(&boot).unwrap_or_else(|error| crash(error));
    let config = Config::parse(boot.command_line.as_bytes()).unwrap_or_else(|error| crash(error));
    log::set_max_level(config.log_level);
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let machine = Machine::start(ground, config.event_abi).unwrap_or_else(|error| crash(error));

    match config.storage {
        StorageKind { is_flat: true, .. } => serve::<FlatMap>(machine, &config),
        StorageKind {
            is_journaled: true, ..
        } => serve::<Journaled<Tree>>(machine, &config),
        _ => serve::<Tree>(machine, &config),
    }
}

fn serve<S: Storage>(machine: Machine, config: &Config) -> ! {
    let privileged = config.privileged.unwrap_or(machine.privileged_domain());
    let (features, grantable) = config.nesting.features();
    let server = Server::<S>::with_storage(Settings {
        features,
        grantable,
        quotas: config.quotas.clone(),
        event_timeout: config.event_timeout,
        policies: config.policies.clone(),
        layers: config.layers.clone(),
        ..Settings::new(privileged, config.store.unwrap_or(machine.own_domain()))
    });
    let mut dispatcher =
        Dispatcher::start(machine, server, privileged, config).unwrap_or_else(|error| crash(error));
    info!("ready");
    loop {
        while dispatcher.turn() == Progress::More {}
        dispatcher.sleep();
    }
}
