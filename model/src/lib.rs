//! The store once more, slow and obvious: a map from path to node, which a transaction copies, and a queue for each connection.
//!
//! Written from the protocol's description, not from the server. It is told in which order the server did things, and nothing of what
//! came of them: from that it says which messages each connection must get. A transaction that changed something commits if all of its
//! requests, run again on the store as it is now, get the same replies; that is strict serializability, taken literally.

mod acl;
mod control;
mod events;
mod lease;
mod life;
mod nodes;
mod payload;
mod policy;
mod queue;
mod request;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use acl::Who;
use lease::Leases;
use nodes::{Change, Node, Touched, Tree};
use queue::Queue;

pub use life::Fate;
pub use policy::{LAYERS, Rules};
pub use queue::Source;

/// The names of errors that clients know (`io/xs_wire.h`): no other may come.
pub const ERRORS: [&str; 16] = [
    "EINVAL",
    "EACCES",
    "EEXIST",
    "EISDIR",
    "ENOENT",
    "ENOMEM",
    "ENOSPC",
    "EIO",
    "ENOTEMPTY",
    "ENOSYS",
    "EROFS",
    "EBUSY",
    "EAGAIN",
    "EISCONN",
    "E2BIG",
    "EPERM",
];

/// Pieces of payloads that mean something somewhere, for clients that put them together as they like.
pub const FRAGMENTS: [&[u8]; 22] = [
    b"\0",
    b"/",
    b"//",
    b"a",
    b"a\0",
    b"/t\0",
    b"/t/a\0",
    b"@",
    b"@releaseDomain\0",
    b"/local/domain/1\0",
    b"/local/domain/",
    b"T\0",
    b"F\0",
    b"n1\0",
    b"r2\0",
    b"b0\0",
    b"-1\0",
    b"0\0",
    b"1\0",
    b"4294967296\0",
    b"\xff",
    b"x",
];

/// The limits, in the order in which GET_QUOTA names them.
pub const QUOTAS: [&str; 10] = [
    "nodes",
    "watches",
    "outstanding",
    "memory",
    "soft-memory",
    "transactions",
    "transaction-nodes",
    "node-permissions",
    "path-max",
    "node-size",
];

/// A limit's place in [`QUOTAS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the table")]
pub enum Quota {
    Nodes,
    Watches,
    Outstanding,
    Memory,
    SoftMemory,
    Transactions,
    TransactionNodes,
    NodePermissions,
    PathMax,
    NodeSize,
}

/// Limits by [`Quota`]; 0 means none.
pub type Limits = [u32; QUOTAS.len()];

/// `DOMID_ANY`: in permissions, every domain.
pub const ANY: u16 = 32757;
/// `DOMID_SELF`, where the ids begin that no domain has.
pub const RESERVED: u16 = 32752;
/// Feature bits (protocol.md section 12).
pub const WATCH_DEPTH: u32 = 4;
/// See [`WATCH_DEPTH`].
pub const DOMID_ANY: u32 = 8;
/// A transaction may be inside another; in no document.
pub const NESTED: u32 = 1 << 31;

/// Most bytes of a payload.
const PAYLOAD_MAX: usize = 4096;

/// How the store is set up.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The domain that may do everything.
    pub privileged: u16,
    /// The store's own domain.
    pub store: u16,
    /// What holds for all without limits of their own.
    pub limits: Limits,
    /// What is offered.
    pub features: u32,
    /// What SET_FEATURE may give besides.
    pub grantable: u32,
    /// How long an event may be left unread, in nanoseconds; 0 for ever.
    pub event_timeout_ns: u64,
}

/// One message that was served: the header's words, and the payload.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The type.
    pub kind: u32,
    /// Echoed.
    pub req_id: u32,
    /// Echoed; 0 for none.
    pub tx_id: u32,
    /// All of it.
    pub payload: &'a [u8],
}

/// An event that the server had no room for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The watch's path.
    pub path: String,
    /// The event's payload.
    pub event: Vec<u8>,
    /// An equal one waited already.
    pub is_told: bool,
}

/// What a crash left of a request.
#[derive(Clone, Copy, Debug)]
pub struct Left<'a> {
    /// What it was to change is changed.
    pub did_change: bool,
    /// Its reply is queued.
    pub did_answer: bool,
    /// The connection of the client goes on, which hears of an error if it has no reply; otherwise it is stopped.
    pub is_kept: bool,
    /// The transactions that are open still, if it goes on.
    pub open: &'a [u32],
}

/// An error's name.
type Errno = &'static str;

/// What a request is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A child list from some offset on, behind a generation that is the server's own affair.
    Part(Vec<u8>),
    /// A text whose lines begin so; `None` for a line, or a rest, that is the server's own affair.
    Lines(Vec<Option<String>>),
}

type Reply = Result<Answer, Errno>;

/// The store.
pub struct Model {
    settings: Settings,
    tree: Tree,
    /// Counts the changes of the tree, and the ends of domains.
    version: u64,
    /// Known domains, introduced or only named.
    domains: BTreeMap<u16, Domain>,
    clients: BTreeMap<u16, Client>,
    counted: Counted,
    now_ns: u64,
    /// What the present request is, if its client is not privileged.
    cause: Option<queue::Cause>,
    /// Domains were released, and that is yet to be told plainly.
    is_release_untold: bool,
    /// Whether memory may be short: then requests of guests may be refused, and their events lost.
    lenient: bool,
    /// Events that the server had no room for in the present step, with whose they are.
    lost: Vec<(u16, Lost)>,
    faults: Vec<String>,
    rules: Rules,
    leases: Leases,
    /// There was a time without the policy of leases, in which anything could be written.
    leases_unwatched: bool,
    /// The lists in force.
    policies: String,
    layers: Vec<String>,
    /// What the policies let pass of the request that ran last.
    passed: Option<(u32, String)>,
}

/// Numbers given so far.
#[derive(Default)]
struct Counted {
    lives: u32,
    connections: u64,
    watches: u64,
    groups: u64,
}

/// A domain in one of its lives.
#[derive(Clone, Debug)]
struct Domain {
    life: u32,
    unique: Option<u128>,
    target: Option<Who>,
    features: u32,
    overrides: [Option<u32>; QUOTAS.len()],
    told_shutdown: bool,
}

/// A domain's connection.
struct Client {
    /// No other one, before or later, has this number.
    number: u64,
    watches: Vec<Watch>,
    transactions: BTreeMap<u32, Transaction>,
    last_id: u32,
    queue: Queue,
    /// Watches of which an event had no room.
    lost: BTreeSet<u64>,
    requests: u64,
    /// Requests before its last beginning.
    forgotten: u64,
    /// The header of an INTRODUCE that waits for the machine, and the domain.
    waiting: Option<(u32, u32, u16)>,
    /// Domids of which the machine said, for the present request, that no domain has them.
    absent: Vec<u16>,
    stopped: bool,
}

struct Watch {
    id: u64,
    path: String,
    token: Vec<u8>,
    depth: Option<u32>,
    relative: bool,
}

struct Transaction {
    /// The one that it is inside of.
    outer: Option<u32>,
    base: Tree,
    tree: Tree,
    /// Of the store, or of the outer transaction.
    version: u64,
    /// Counts the changes of its own tree.
    own_version: u64,
    log: Vec<(u32, Vec<u8>, Reply)>,
    cost: usize,
    changes: Vec<Change>,
    touched: Touched,
    failed: bool,
    /// There was too little memory for it: all that is left of it is its end.
    is_given_up: bool,
}

impl Model {
    /// A store with its first nodes; the privileged domain, which is `unique`, is connected.
    #[must_use]
    pub fn new(settings: Settings, unique: u128) -> Self {
        let mut model = Self {
            settings,
            tree: Tree::default(),
            version: 0,
            domains: BTreeMap::new(),
            clients: BTreeMap::new(),
            counted: Counted::default(),
            now_ns: 0,
            cause: None,
            is_release_untold: false,
            lenient: false,
            lost: Vec::new(),
            faults: Vec::new(),
            rules: Rules::default(),
            leases: Leases::default(),
            leases_unwatched: false,
            policies: "legacy".to_owned(),
            layers: Vec::new(),
            passed: None,
        };
        let me = settings.privileged;
        model.meet(me, unique);
        model.connect(me);
        let owner = model.life(me);
        let node = |acl: &[(u8, Who)], children: &[&str]| {
            Rc::new(Node {
                value: Vec::new(),
                acl: acl.into(),
                children: children.iter().map(|name| (*name).into()).collect(),
            })
        };
        let mine = [(b'n', owner)];
        let everyones = [(b'n', owner), (b'r', Who::Any)];
        model.tree = Rc::new(BTreeMap::from([
            ("/".into(), node(&mine, &["tool"])),
            ("/tool".into(), node(&mine, &["xenstored"])),
            ("/tool/xenstored".into(), node(&mine, &[])),
            ("@introduceDomain".into(), node(&mine, &[])),
            ("@releaseDomain".into(), node(&everyones, &[])),
        ]));
        model
    }

    /// Whether memory may be short from now on, so that the server may refuse what guests ask for.
    pub fn set_lenient(&mut self, lenient: bool) {
        self.lenient = lenient;
    }

    /// The time of what happens from now on.
    pub fn set_time(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// What went wrong since this was asked last, as far as it cannot be blamed on one message.
    ///
    /// # Errors
    /// The first fault.
    pub fn check(&mut self) -> Result<(), String> {
        if let Some((domid, Lost { path, event, .. })) = self.lost.first() {
            let event = event.escape_ascii();
            self.faults.push(format!(
                "d{domid} lost {event} of its watch on {path} for nothing"
            ));
        }
        self.check_leases();
        match self.faults.first() {
            Some(fault) => Err(fault.clone()),
            None => Ok(()),
        }
    }

    /// As [`Model::check`], of what takes a look at every client.
    ///
    /// # Errors
    /// Somebody will never be told what was lost.
    pub fn check_clients(&self) -> Result<(), String> {
        let mut clients = self.clients.iter();
        let forgotten =
            clients.find(|(_, client)| client.queue.is_empty() && !client.lost.is_empty());
        match forgotten {
            Some((domid, _)) => Err(format!("what d{domid} has lost will never be told")),
            None => Ok(()),
        }
    }

    /// The introduced domains.
    pub fn introduced(&self) -> impl Iterator<Item = u16> {
        self.clients.keys().copied()
    }

    /// The unique id by which a domain is known, if it is.
    #[must_use]
    pub fn known(&self, domid: u16) -> Option<u128> {
        self.domains.get(&domid)?.unique
    }

    /// The known domains.
    pub fn known_domains(&self) -> impl Iterator<Item = (u16, u128)> {
        let all = self.domains.iter();
        all.filter_map(|(domid, domain)| Some((*domid, domain.unique?)))
    }

    /// The ids of a domain's open transactions.
    pub fn transactions(&self, domid: u16) -> impl Iterator<Item = u32> {
        let client = self.clients.get(&domid);
        client
            .into_iter()
            .flat_map(|client| client.transactions.keys().copied())
    }

    /// Messages that wait for a domain.
    #[must_use]
    pub fn waiting(&self, domid: u16) -> usize {
        self.clients
            .get(&domid)
            .map_or(0, |client| client.queue.len())
    }

    /// Nodes that a domain owns, if it is introduced.
    #[must_use]
    pub fn nodes_of(&self, domid: u16) -> Option<usize> {
        self.clients.get(&domid)?;
        Some(nodes::owned(&self.tree, self.life(domid)))
    }

    /// Every node's path.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.tree.keys().map(|path| &**path)
    }

    /// Every node: value, and permissions with a NUL behind each.
    #[must_use]
    pub fn nodes(&self) -> BTreeMap<String, (Vec<u8>, String)> {
        let all = self.tree.iter();
        all.map(|(path, node)| {
            let permissions = nodes::permissions(&node.acl, &self.domains);
            (path.to_string(), (node.value.clone(), permissions))
        })
        .collect()
    }

    /// Who a domain is now; nobody if none is known.
    fn life(&self, domid: u16) -> Who {
        let domain = self.domains.get(&domid);
        domain.map_or(Who::Nobody(domid), |domain| Who::Life(domid, domain.life))
    }

    fn is_privileged(&self, domid: u16) -> bool {
        domid == self.settings.privileged
    }

    fn limits(&self, domid: u16) -> Limits {
        if self.is_privileged(domid) {
            return [0; QUOTAS.len()];
        }
        self.limits_of(domid)
    }

    /// As [`Model::limits`], also for the privileged domain as it is listed.
    fn limits_of(&self, domid: u16) -> Limits {
        let mut limits = self.settings.limits;
        if let Some(domain) = self.domains.get(&domid) {
            for (limit, own) in limits.iter_mut().zip(domain.overrides) {
                *limit = own.unwrap_or(*limit);
            }
        }
        limits
    }

    fn fault(&mut self, what: String) {
        self.faults.push(what);
    }
}

/// A limit out of a list.
fn limit(limits: &Limits, quota: Quota) -> usize {
    let limit = limits.get(quota as usize).copied().unwrap_or_default();
    usize::try_from(limit).unwrap_or(usize::MAX)
}

fn within(count: usize, limit: usize) -> bool {
    limit == 0 || count <= limit
}
