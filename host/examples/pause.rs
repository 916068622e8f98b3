//! What of an update's pause grows with the state: writing the stream and making a store of it again, on the image's own heap.
//!
//! `cargo run --release --package host --example pause` prints a table. The rest of the pause (the exchange of two images, page tables, a few
//! hypercalls for each ring) does not depend on nodes; `scripts/run-qemu --scenario live-update` prints all of it.
#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a program that measures should stop at once when it cannot"
)]

#[path = "../tests/store/mod.rs"]
#[expect(dead_code, reason = "tests use all of it")]
mod store;

use std::time::{Duration, Instant as Clock};

use kernel::hypervisor::MeteredHeap;
use store::Store;
use xenstore::state::{Format, HostLink};
use xenstore::wire::Kind;
use xenstore::{ConnId, DomId, Instant, Server, Settings, Tree};

#[global_allocator]
static HEAP: MeteredHeap = MeteredHeap;

const SIZES: [u32; 4] = [1_000, 10_000, 100_000, 1_000_000];
/// Nodes of each domain: as many as the default quota allows.
const OF_DOMAIN: u32 = 1_000;
/// Domains that have the nodes by turns, if there are more of these.
const DOMAINS: u16 = 1_000;
/// Each size is measured so often, and the shortest time counts.
const TIMES: u32 = 3;

fn main() {
    println!(
        "{:>9} {:>11} {:>10} {:>10} {:>10} {:>12} {:>15}",
        "nodes", "heap KiB", "stream KiB", "write ms", "read ms", "ns for each", "as with 10 000"
    );
    let mut usual = None;
    for nodes in SIZES {
        let Row {
            heap,
            stream,
            write,
            read,
        } = measure(nodes);
        let each = (write + read).as_nanos() / u128::from(nodes);
        if nodes == 10_000 {
            usual = Some(each);
        }
        let ratio = usual.map_or_else(String::new, |usual| {
            format!("{}.{:02}", each / usual, each % usual * 100 / usual)
        });
        println!(
            "{nodes:>9} {:>11} {:>10} {:>10} {:>10} {each:>12} {ratio:>15}",
            heap / 1024,
            stream / 1024,
            tenths(write),
            tenths(read),
        );
    }
}

struct Row {
    /// Bytes that the nodes take.
    heap: usize,
    /// Bytes of the stream.
    stream: usize,
    write: Duration,
    read: Duration,
}

fn measure(nodes: u32) -> Row {
    let before = HEAP.usage().used;
    let server = build(nodes);
    let heap = HEAP.usage().used.saturating_sub(before);
    let links = |_: ConnId| HostLink::default();
    let mut stream = Vec::new();
    let write = shortest(|| {
        stream.clear();
        server.export(Format::Own, Instant(0), &links, &mut stream);
    });
    // In the domain the old heap is gone when the new one is filled.
    drop(server);
    let read = shortest(|| Server::<Tree>::import(&stream, settings(), Instant(0)).unwrap());
    Row {
        heap,
        stream: stream.len(),
        write,
        read,
    }
}

fn settings() -> Settings {
    Settings::new(DomId::new(0), DomId::new(31))
}

fn build(nodes: u32) -> Server {
    let domains = u16::try_from(nodes / OF_DOMAIN).unwrap().min(DOMAINS);
    let mut store = Store::new(domains);
    for node in 0..nodes {
        let domain = node / OF_DOMAIN % u32::from(domains) + 1;
        let path = format!("/local/domain/{domain}/data/n{:06}", node % OF_DOMAIN);
        store.ok(0, Kind::Write, &format!("{path}\0value-{node}"));
    }
    store.server
}

/// The shortest of some times, without that of taking down again what was made.
fn shortest<T>(mut work: impl FnMut() -> T) -> Duration {
    let times = (0..TIMES).map(|_| {
        let begun = Clock::now();
        let made = work();
        let time = begun.elapsed();
        drop(made);
        time
    });
    times.min().unwrap()
}

fn tenths(time: Duration) -> String {
    let micros = time.as_micros();
    format!("{}.{}", micros / 1000, micros % 1000 / 100)
}
