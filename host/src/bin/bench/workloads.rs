//! The workloads: each group begins with an empty store and grows one thing that an operation should not depend on.

use std::fmt::Write;

use crate::guest;
use crate::probe::{Probe, resident_bytes};
use crate::target::{Client, Failure, Session, Target};

/// Operations before a measured stretch: caches fill, the loader binds, the heap has its chunks.
const WARM_UP: u32 = 20;
/// Times that a transaction is tried before the run is given up.
const ATTEMPTS_MAX: u32 = 100;
/// Connections that hold the unrelated watches; the same number for every count of watches.
const WATCH_HOLDERS: usize = 10;
/// Children of each of the lowest directories; the same for every size of the store.
const LEAVES: u64 = 10;
const VALUE: &str = "0123456789";

/// How much is done.
pub(crate) struct Scale {
    pub(crate) quick: bool,
    /// Only groups with this in their name.
    pub(crate) only: String,
    /// Nodes of the largest store.
    pub(crate) nodes: u64,
    /// Children of the largest directory.
    pub(crate) children: u64,
}

impl Default for Scale {
    fn default() -> Self {
        Self {
            quick: false,
            only: String::new(),
            nodes: 1_000_000,
            children: 100_000,
        }
    }
}

/// A run over one target.
pub(crate) struct Bench {
    target: Box<dyn Target>,
    probe: Probe,
    scale: Scale,
}

/// A group of workloads and what it is called.
type Group = (&'static str, fn(&mut Bench) -> Result<(), Failure>);

const GROUPS: &[Group] = &[
    ("basic", Bench::basic),
    ("directory", Bench::directories),
    ("transaction", Bench::transactions),
    ("fan-out", Bench::fan_out),
    ("unrelated-watches", Bench::unrelated_watches),
    ("idle-connections", Bench::idle_connections),
    ("nodes", Bench::store_sizes),
    ("guest", Bench::guests),
];

impl Bench {
    pub(crate) fn new(target: Box<dyn Target>, probe: Probe, scale: Scale) -> Self {
        Self {
            target,
            probe,
            scale,
        }
    }

    pub(crate) fn workloads(&mut self) -> Result<(), Failure> {
        for (name, group) in GROUPS {
            if name.contains(&self.scale.only) {
                eprintln!("{}: {name} ({})", self.target.name(), self.probe.unit());
                group(self)?;
            }
        }
        Ok(())
    }

    /// Bytes of resident memory that a node costs, from a small store to a large one.
    pub(crate) fn memory(&mut self) -> Result<(), Failure> {
        let client = self.begin()?;
        let small = Shape::of(1_000);
        let large = Shape::of(self.scale.nodes);
        small.build(&mut self.session(client), "/small")?;
        let before = resident_bytes(self.target.process())?;
        large.build(&mut self.session(client), "/large")?;
        let grown = resident_bytes(self.target.process())?.saturating_sub(before);
        self.print("memory", large.nodes(), "bytes", grown, large.nodes(), 0);
        Ok(())
    }

    /// Makes nodes, and lets the server end with all of them in memory.
    pub(crate) fn build(&mut self, nodes: u64) -> Result<(), Failure> {
        let client = self.begin()?;
        let shape = Shape::of(nodes);
        shape.build(&mut self.session(client), "/n")?;
        self.print("build", shape.nodes(), "nodes", shape.nodes(), 1, 0);
        Ok(())
    }

    fn basic(&mut self) -> Result<(), Failure> {
        let client = self.begin()?;
        self.session(client).write("/bench/node", VALUE)?;
        self.measure("read", 0, 1, |target, _| {
            Session::new(target, client).read("/bench/node").map(drop)
        })?;
        self.measure("write", 0, 1, |target, _| {
            Session::new(target, client).write("/bench/node", VALUE)
        })?;
        self.measure("mkdir+rm", 0, 2, |target, _| {
            let mut session = Session::new(target, client);
            session.mkdir("/bench/made")?;
            session.rm("/bench/made")
        })
    }

    fn directories(&mut self) -> Result<(), Failure> {
        for size in sizes([10, 1_000, 10_000, 100_000], self.scale.children) {
            let client = self.begin()?;
            let mut session = self.session(client);
            for child in 0..size {
                session.mkdir(&format!("/bench/c{child:06}"))?;
            }
            let middle = usize::try_from(size)?.saturating_mul(4);
            let weight = u32::try_from(size)?.div_ceil(100);
            self.measure("directory list", size, weight, |target, _| {
                let listed = Session::new(target, client).list("/bench")?;
                let all = u64::try_from(listed)? == size;
                all.then_some(())
                    .ok_or_else(|| "children are missing".into())
            })?;
            self.measure("directory part", size, 1, |target, _| {
                Session::new(target, client)
                    .part("/bench", middle)
                    .map(drop)
            })?;
            self.measure("directory read child", size, 1, |target, turn| {
                let child = scatter(turn, size);
                Session::new(target, client)
                    .read(&format!("/bench/c{child:06}"))
                    .map(drop)
            })?;
            self.measure("directory write child", size, 1, |target, turn| {
                let child = scatter(turn, size);
                Session::new(target, client).write(&format!("/bench/c{child:06}"), VALUE)
            })?;
            self.measure("directory mkdir+rm child", size, 2, |target, turn| {
                let path = format!("/bench/n{turn:06}");
                let mut session = Session::new(target, client);
                session.mkdir(&path)?;
                session.rm(&path)
            })?;
        }
        Ok(())
    }

    fn transactions(&mut self) -> Result<(), Failure> {
        let one = self.begin()?;
        let two = self.target.open()?;
        for node in 0..10 {
            self.session(one).write(&format!("/bench/r{node}"), VALUE)?;
            self.session(one).write(&format!("/bench/w{node}"), VALUE)?;
        }
        self.measure("transaction empty", 0, 2, |target, _| {
            let mut session = Session::new(target, one);
            session.start()?;
            committed(session.end()?)
        })?;
        self.measure("transaction 10+10", 0, 20, |target, _| {
            ten_and_ten(&mut Session::new(target, one), "/bench")
        })?;
        self.pairs("transactions disjoint", [one, two], |_, client| Pair {
            reads: format!("/bench/r{}", client.0),
            writes: format!("/bench/w{}", client.0),
            removes: false,
        })?;
        self.pairs("transactions siblings", [one, two], |turn, client| Pair {
            reads: "/bench".to_owned(),
            writes: format!("/bench/new{turn}-{}", client.0),
            removes: true,
        })?;
        self.pairs("transactions contended", [one, two], |_, _| Pair {
            reads: "/bench/w0".to_owned(),
            writes: "/bench/w0".to_owned(),
            removes: false,
        })
    }

    /// Two clients' transactions, open at the same time, each repeated until it is committed.
    fn pairs(
        &mut self,
        workload: &str,
        clients: [Client; 2],
        pair: fn(u32, Client) -> Pair,
    ) -> Result<(), Failure> {
        let mut again = 0_u64;
        let mut turns = 0;
        self.measure_retried(workload, 0, 10, &mut again, |target, turn, again| {
            turns = turn;
            let mut waiting = clients.to_vec();
            for _ in 0..ATTEMPTS_MAX {
                let mut open = Vec::new();
                for client in &waiting {
                    let mut session = Session::new(target, *client);
                    session.start()?;
                    let pair = pair(turn, *client);
                    session.read(&pair.reads)?;
                    session.write(&pair.writes, &turn.to_string())?;
                    open.push((*client, session.transaction));
                }
                waiting.clear();
                for (client, transaction) in open {
                    let mut session = Session::new(target, client);
                    session.transaction = transaction;
                    if !session.end()? {
                        waiting.push(client);
                    }
                }
                if waiting.is_empty() {
                    return remove_made(target, clients, turn, pair);
                }
                *again = again.saturating_add(u64::try_from(waiting.len())?);
            }
            Err("transactions do not come to an end".into())
        })
    }

    fn fan_out(&mut self) -> Result<(), Failure> {
        for size in [1, 10, 100, 1_000] {
            let client = self.begin()?;
            self.session(client).write("/bench/node", VALUE)?;
            let mut watchers = Vec::new();
            for _ in 0..size {
                let watcher = self.target.open()?;
                self.session(watcher).watch("/bench/node", "token")?;
                watchers.push(watcher);
            }
            let weight = u32::try_from(size)?;
            self.measure("fan-out", size, weight, |target, _| {
                Session::new(target, client).write("/bench/node", VALUE)?;
                for watcher in &watchers {
                    target.receive(*watcher)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn unrelated_watches(&mut self) -> Result<(), Failure> {
        for size in [0, 10_000, 40_000] {
            let client = self.begin()?;
            self.session(client).write("/bench/node", VALUE)?;
            let mut holders = Vec::new();
            for _ in 0..WATCH_HOLDERS {
                holders.push(self.target.open()?);
            }
            for (watch, holder) in (0..size).zip(holders.iter().cycle()) {
                let path = format!("/other/w{watch:06}");
                self.session(*holder).watch(&path, "token")?;
            }
            self.measure("write, unrelated watches", size, 1, |target, _| {
                Session::new(target, client).write("/bench/node", VALUE)
            })?;
            self.measure("watch+unwatch, unrelated watches", size, 2, |target, _| {
                let mut session = Session::new(target, client);
                session.watch("/bench/node", "token")?;
                session.unwatch("/bench/node", "token")
            })?;
        }
        Ok(())
    }

    fn idle_connections(&mut self) -> Result<(), Failure> {
        for size in [0, 1_000, 4_000] {
            let client = self.begin()?;
            self.session(client).write("/bench/node", VALUE)?;
            for _ in 0..size {
                let idle = self.target.open()?;
                self.session(idle).read("/bench/node")?;
            }
            self.measure("read, idle connections", size, 1, |target, _| {
                Session::new(target, client).read("/bench/node").map(drop)
            })?;
        }
        Ok(())
    }

    /// Every operation at a fixed depth, in a small and in a large store.
    fn store_sizes(&mut self) -> Result<(), Failure> {
        for size in sizes([1_000, 100_000, 1_000_000], self.scale.nodes) {
            let shape = Shape::of(size);
            let client = self.begin()?;
            shape.build(&mut self.session(client), "/bench")?;
            self.at_one_size(client, &shape)?;
            self.transactions_at_one_size(client, &shape)?;
        }
        Ok(())
    }

    fn at_one_size(&mut self, client: Client, shape: &Shape) -> Result<(), Failure> {
        let size = shape.nodes();
        self.measure("nodes: read", size, 1, |target, turn| {
            Session::new(target, client)
                .read(&shape.leaf(turn))
                .map(drop)
        })?;
        self.measure("nodes: write", size, 1, |target, turn| {
            Session::new(target, client).write(&shape.leaf(turn), VALUE)
        })?;
        self.measure("nodes: mkdir+rm", size, 2, |target, turn| {
            let path = format!("{}/made", shape.directory(turn));
            let mut session = Session::new(target, client);
            session.mkdir(&path)?;
            session.rm(&path)
        })?;
        self.measure("nodes: directory", size, 1, |target, turn| {
            let path = shape.directory(turn);
            let kind = xenstore::wire::Kind::Directory;
            let mut session = Session::new(target, client);
            session.done(kind, &crate::target::onearg(&path)).map(drop)
        })?;
        self.measure("nodes: set_perms", size, 1, |target, turn| {
            let entries = ["n0".to_owned(), "r0".to_owned()];
            Session::new(target, client).set_perms(&shape.leaf(turn), &entries)
        })?;
        self.measure("nodes: watch+unwatch", size, 2, |target, turn| {
            let mut session = Session::new(target, client);
            session.watch(&shape.leaf(turn), "token")?;
            session.unwatch(&shape.leaf(turn), "token")
        })
    }

    fn transactions_at_one_size(&mut self, client: Client, shape: &Shape) -> Result<(), Failure> {
        let size = shape.nodes();
        let mut open = Vec::new();
        self.measure("nodes: transaction start", size, 1, |target, _| {
            open.push(Session::new(target, client).start()?);
            Ok(())
        })?;
        for transaction in open {
            let mut session = self.session(client);
            session.transaction = transaction;
            session.abort()?;
        }
        self.measure("nodes: transaction 10+10", size, 20, |target, turn| {
            let mut session = Session::new(target, client);
            session.start()?;
            for node in 0..10 {
                session.read(&shape.leaf(turn.wrapping_mul(20).wrapping_add(node)))?;
            }
            for node in 10..20 {
                session.write(&shape.leaf(turn.wrapping_mul(20).wrapping_add(node)), VALUE)?;
            }
            committed(session.end()?)
        })?;
        self.measure(
            "nodes: write beside an open transaction",
            size,
            1,
            |target, turn| {
                let mut other = Session::new(target, client);
                other.start()?;
                other.read(&shape.leaf(0))?;
                let transaction = std::mem::take(&mut other.transaction);
                other.write(&shape.leaf(turn.wrapping_add(1)), VALUE)?;
                other.transaction = transaction;
                other.abort()
            },
        )
    }

    /// What a toolstack asks for when it creates a guest, as the first and as the thousandth.
    fn guests(&mut self) -> Result<(), Failure> {
        for size in [1, 1_000] {
            let client = self.begin()?;
            for domid in 1..size {
                guest::create(&mut self.session(client), domid)?;
            }
            let mut requests = 0;
            self.measure("guest, create and remove", size, 60, |target, _| {
                let mut session = Session::new(target, client);
                guest::create(&mut session, size)?;
                requests = session.requests;
                guest::remove(&mut session, size)
            })?;
            eprintln!("  {requests} requests to create a guest");
        }
        Ok(())
    }

    /// An empty store and its first client.
    fn begin(&mut self) -> Result<Client, Failure> {
        self.target.restart()?;
        self.target.open()
    }

    fn session(&mut self, client: Client) -> Session<'_> {
        Session::new(self.target.as_mut(), client)
    }

    fn measure(
        &mut self,
        workload: &str,
        size: u64,
        weight: u32,
        mut operation: impl FnMut(&mut dyn Target, u32) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut none = 0;
        self.measure_retried(workload, size, weight, &mut none, |target, turn, _| {
            operation(target, turn)
        })
    }

    /// Runs an operation often enough to say what one costs, and prints it. `again` counts what had to be repeated.
    fn measure_retried(
        &mut self,
        workload: &str,
        size: u64,
        weight: u32,
        again: &mut u64,
        mut operation: impl FnMut(&mut dyn Target, u32, &mut u64) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let count = self.operations(weight);
        let warm = WARM_UP.min(count);
        for turn in 0..warm {
            operation(self.target.as_mut(), turn, again)?;
        }
        *again = 0;
        let process = self.target.process();
        let begun = self.probe.begin(process)?;
        for turn in warm..warm.saturating_add(count) {
            operation(self.target.as_mut(), turn, again)?;
        }
        let name = format!("{}-{workload}-{size}", self.target.name());
        let total = self.probe.end(process, begun, &name.replace(' ', "-"))?;
        self.print(
            workload,
            size,
            self.probe.unit(),
            total,
            u64::from(count),
            *again,
        );
        Ok(())
    }

    /// How often an operation that costs as much as `weight` requests is run.
    fn operations(&self, weight: u32) -> u32 {
        let requests: u32 = match (&self.probe, self.scale.quick) {
            (Probe::Nothing, _) => 20,
            (Probe::Instructions { .. }, true) => 100,
            (Probe::Instructions { .. }, false) => 400,
            (Probe::CpuTime, true) => 1_000,
            (Probe::CpuTime, false) => 5_000,
        };
        requests.div_euclid(weight.max(1)).max(5)
    }

    fn print(&self, workload: &str, size: u64, unit: &str, total: u64, count: u64, again: u64) {
        let mut line = String::new();
        let each = tenths(total, count);
        let repeated = tenths(again, count);
        // Writing to a string cannot fail.
        let _ = write!(
            line,
            r#"{{"target":"{}","workload":"{workload}","size":{size},"unit":"{unit}","#,
            self.target.name()
        );
        let _ = write!(
            line,
            r#""value":{each},"repeated":{repeated},"operations":{count}}}"#
        );
        println!("{line}");
    }
}

/// What a transaction reads and writes.
struct Pair {
    reads: String,
    writes: String,
    /// What it writes is new and goes afterwards.
    removes: bool,
}

fn remove_made(
    target: &mut dyn Target,
    clients: [Client; 2],
    turn: u32,
    pair: fn(u32, Client) -> Pair,
) -> Result<(), Failure> {
    for client in clients {
        let made = pair(turn, client);
        if made.removes {
            Session::new(target, client).rm(&made.writes)?;
        }
    }
    Ok(())
}

fn ten_and_ten(session: &mut Session<'_>, directory: &str) -> Result<(), Failure> {
    session.start()?;
    for node in 0..10 {
        session.read(&format!("{directory}/r{node}"))?;
    }
    for node in 0..10 {
        session.write(&format!("{directory}/w{node}"), VALUE)?;
    }
    committed(session.end()?)
}

/// No other client is there with whom a transaction could conflict.
fn committed(done: bool) -> Result<(), Failure> {
    done.then_some(())
        .ok_or_else(|| "a transaction without rivals must be done again".into())
}

/// A store's nodes: `edge` × `edge` directories with [`LEAVES`] children each. Depth, a path's length and a leaf's siblings are the same in a
/// small and in a large store; the two levels above are wider in the large one.
struct Shape {
    edge: u64,
}

impl Shape {
    /// The shape with at most this many leaves.
    fn of(leaves: u64) -> Self {
        Self {
            edge: leaves.div_euclid(LEAVES).isqrt(),
        }
    }

    /// Leaves and the directories above them.
    fn nodes(&self) -> u64 {
        let directories = self.edge.saturating_mul(self.edge);
        directories
            .saturating_mul(LEAVES.saturating_add(1))
            .saturating_add(self.edge)
    }

    fn build(&self, session: &mut Session<'_>, root: &str) -> Result<(), Failure> {
        for outer in 0..self.edge {
            for inner in 0..self.edge {
                for leaf in 0..LEAVES {
                    let path = format!("{root}/d{outer:03}/d{inner:03}/leaf{leaf}");
                    session.write(&path, VALUE)?;
                }
            }
        }
        Ok(())
    }

    fn directory(&self, turn: u32) -> String {
        let outer = scatter(turn, self.edge);
        let inner = scatter(turn.wrapping_mul(31).wrapping_add(7), self.edge);
        format!("/bench/d{outer:03}/d{inner:03}")
    }

    fn leaf(&self, turn: u32) -> String {
        format!("{}/leaf{}", self.directory(turn), scatter(turn, LEAVES))
    }
}

/// The sizes that are not above `limit`.
fn sizes<const COUNT: usize>(all: [u64; COUNT], limit: u64) -> impl Iterator<Item = u64> {
    all.into_iter().filter(move |size| *size <= limit)
}

/// A number below `limit` that jumps about as `turn` grows.
fn scatter(turn: u32, limit: u64) -> u64 {
    let mixed = u64::from(turn.wrapping_add(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32).checked_rem(limit).unwrap_or_default()
}

/// A quotient as a decimal with one digit.
fn tenths(total: u64, count: u64) -> String {
    let tenths = total
        .saturating_mul(10)
        .checked_div(count)
        .unwrap_or_default();
    format!("{}.{}", tenths.div_euclid(10), tenths.rem_euclid(10))
}
