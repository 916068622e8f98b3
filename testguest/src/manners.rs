//! A guest with good manners: it measures how long its requests take, and does what `control/shutdown` says.

use kernel::hypervisor::ShutdownReason;
use kernel::xen::Clock as _;
use log::debug;
use xenstore::wire::Kind;

use crate::guest::{Guest, Trouble};
use crate::latency::Latencies;

const SHUTDOWN: &[u8] = b"control/shutdown";
/// Pause between two requests of a guest that measures.
const PACE_MS: u64 = 5;
/// How often a guest that does not measure looks around.
const IDLE_MS: u64 = 60_000;

/// Measures all the time.
pub(crate) fn honest(guest: &mut Guest) {
    live(guest, PACE_MS, true);
}

/// Says hello and waits.
pub(crate) fn quiet(guest: &mut Guest) {
    live(guest, IDLE_MS, false);
}

fn live(guest: &mut Guest, pace_ms: u64, measures: bool) {
    let mut latencies = Latencies::default();
    greet(guest);
    loop {
        let deadline = guest.after_ms(pace_ms);
        if guest.next_event(deadline).is_some() {
            obey(guest);
        } else if measures {
            measure(guest, &mut latencies);
        }
    }
}

/// Watches for orders, and leaves a node of its own.
fn greet(guest: &mut Guest) {
    let watched = guest.ask(Kind::Watch, 0, &strings([SHUTDOWN, b"orders"]));
    let written = guest.ask(
        Kind::Write,
        0,
        &[b"data/hello\0".as_slice(), b"hello"].concat(),
    );
    match (watched, written) {
        (Ok(_), Ok(_)) => debug!("hello"),
        trouble => debug!("cannot say hello: {trouble:?}"),
    }
}

/// Writes and reads a node, and says the figures when there are enough.
fn measure(guest: &mut Guest, latencies: &mut Latencies) {
    for (kind, payload) in [
        (Kind::Write, b"data/ping\0pong".as_slice()),
        (Kind::Read, b"data/ping\0"),
    ] {
        let before = guest.machine.now();
        if let Err(trouble) = guest.ask(kind, 0, payload) {
            debug!("honest: no good answer: {trouble:?}");
            continue;
        }
        let took = guest.machine.now().since(before);
        if let Some(figures) = latencies.add(took) {
            debug!("honest: {figures}");
        }
    }
}

/// Does what the toolstack wants, after telling it so.
fn obey(guest: &mut Guest) {
    let Ok(order) = guest.ask(Kind::Read, 0, &strings([SHUTDOWN])) else {
        return;
    };
    let reason = match order.as_slice() {
        b"poweroff" | b"halt" => ShutdownReason::PowerOff,
        b"reboot" => ShutdownReason::Reboot,
        b"suspend" => ShutdownReason::Suspend,
        _ => return,
    };
    let told: Result<_, Trouble> = guest.ask(Kind::Write, 0, &strings([SHUTDOWN]));
    debug!("{reason:?}, told: {}", told.is_ok());
    if reason != ShutdownReason::Suspend {
        guest.machine.shut_down(reason);
        return;
    }
    match guest.machine.suspend() {
        Ok(false) => debug!("not saved after all"),
        Ok(true) => {
            guest.reopen();
            debug!("restored");
            greet(guest);
        }
        Err(error) => debug!("cannot go on: {error}"),
    }
}

/// Strings as the wire has them, each with its NUL.
pub(crate) fn strings<const N: usize>(strings: [&[u8]; N]) -> alloc::vec::Vec<u8> {
    let mut payload = alloc::vec::Vec::new();
    for string in strings {
        payload.extend_from_slice(string);
        payload.push(0);
    }
    payload
}
