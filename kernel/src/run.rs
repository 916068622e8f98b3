//! The way from a booted processor to a served host, then the loop: serve, sleep. And from one instance to the next.
//!
//! The only place that names both the machine and the dispatcher.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;

use log::{info, warn};
use xenstore::state::Restored;
use xenstore::{DomId, Instant, Progress, Server, Settings};

use crate::boot_info::BootInfo;
use crate::config::Config;
use crate::dispatch::Dispatcher;
use crate::hypervisor::{Ground, Handover, Machine, Rescue, Rescued, Stage, crash, guard};
use crate::update;

/// Serves the host for ever. What cannot start says why on every console and ends the domain as crashed.
pub fn run(boot: BootInfo) -> ! {
    info!("Ferrostore {}", env!("CARGO_PKG_VERSION"));
    let ground = Ground::prepare(&boot).unwrap_or_else(|error| crash(error));
    let config = Config::parse(boot.command_line.as_bytes()).unwrap_or_else(|error| crash(error));
    apply(&config);
    let machine = Machine::start(ground, config.event_abi).unwrap_or_else(|error| crash(error));
    start(machine, &config)
}

fn start(machine: Machine, config: &Config) -> ! {
    let privileged = config.privileged.unwrap_or(machine.privileged_domain());
    let server = Server::new(settings(config, privileged, machine.own_domain()));
    let dispatcher =
        Dispatcher::start(machine, server, privileged, config).unwrap_or_else(|error| crash(error));
    info!("ready");
    serve(dispatcher)
}

/// Serves on where another instance stopped. An image that is tried and cannot go on gives way to the one before it; any other ends the domain.
pub fn run_again(handover: Handover) -> ! {
    info!(
        "Ferrostore {}, {}",
        env!("CARGO_PKG_VERSION"),
        handover.stage()
    );
    let ground = Ground::again(&handover).unwrap_or_else(|error| crash(error));
    let config = Config::parse_again(handover.command_line().as_ref().as_bytes())
        .unwrap_or_else(|error| crash(error));
    apply(&config);
    go_on(ground, &config, &handover)
}

fn go_on(ground: Ground, config: &Config, handover: &Handover) -> ! {
    let privileged = config.privileged.unwrap_or(ground.privileged_domain());
    let settings = settings(config, privileged, ground.own_domain());
    #[cfg(feature = "inject")]
    let stream = crate::hypervisor::inject::at_import(handover);
    #[cfg(not(feature = "inject"))]
    let stream = handover.stream();
    let mut restored =
        Server::import(stream, settings, ground.now()).unwrap_or_else(|error| crash(error));
    if handover.stage() == Stage::Trial
        && let Some(why) = cannot_accept(&restored)
    {
        crash(why);
    }
    let pages = handover.pages();
    handover.accept();

    let began = handover.began();
    tell(&mut restored, handover, ground.now());
    let machine = Machine::again(ground).unwrap_or_else(|error| crash(error));
    let mut dispatcher = Dispatcher::go_on(machine, restored, privileged, config, &pages);
    let pause = dispatcher.now().since(began);
    info!(
        "ready; {} bytes of state taken over, {} us after the last request",
        stream.len(),
        pause.as_micros()
    );
    serve(dispatcher)
}

fn apply(config: &Config) {
    log::set_max_level(config.log_level);
    for warning in &config.warnings {
        warn!("{warning}");
    }
}

fn settings(config: &Config, privileged: DomId, own_domid: DomId) -> Settings {
    let (features, grantable) = config.nesting.features();
    Settings {
        features,
        grantable,
        quotas: config.quotas.clone(),
        storage: config.storage,
        event_timeout: config.event_timeout,
        policies: config.policies.clone(),
        layers: config.layers.clone(),
        #[cfg(feature = "inject")]
        injector: Some(crate::hypervisor::inject::crash),
        ..Settings::new(privileged, config.store.unwrap_or(own_domid))
    }
}

/// What an image that reads old streams only does not take.
fn cannot_accept(restored: &Restored) -> Option<String> {
    let is_old = cfg!(feature = "old-stream") && (restored.is_own || restored.version > 1);
    is_old.then(|| format!("a stream of version {} is too new", restored.version))
}

/// Tells the store what became of the start before.
fn tell(restored: &mut Restored, handover: &Handover, now: Instant) {
    let server = &mut restored.server;
    match handover.stage() {
        Stage::Running | Stage::Trial => server.update_done(),
        Stage::CameBack => server.update_failed(&handover.reason()),
        Stage::Crashed => {
            let blamed = restored.crash.and_then(|crash| crash.blamed);
            let work = blamed.map(|blamed| format!("{blamed}: "));
            let reason = work.unwrap_or_default() + &handover.reason();
            warn!("restarted after crash {}: {reason}", handover.crashes());
            server.report_crash(now, &reason);
            server.update_failed("The instance crashed and was restarted.");
        }
    }
}

fn serve(mut dispatcher: Dispatcher<Machine>) -> ! {
    let next = update::offer(dispatcher.server_mut());
    let dispatcher = guard(Box::leak(Box::new(dispatcher)));
    loop {
        while dispatcher.turn() == Progress::More {}
        #[cfg(feature = "inject")]
        crate::hypervisor::inject::in_loop();
        if let Some(next) = &next
            && let Some(plan) = dispatcher.poll_update()
        {
            let Err(why) = next.hand_over(dispatcher, &plan);
            dispatcher.server_mut().update_failed(&why);
            continue;
        }
        dispatcher.sleep();
    }
}

impl Rescue for Dispatcher<Machine> {
    fn complete(&mut self) {
        self.server_mut().complete_after_crash();
    }

    fn rescue(&self, room: &mut [u8]) -> Option<Rescued> {
        self.hand_over_after_crash(room)
    }
}
