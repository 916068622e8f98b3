//! Where Debian's C `xenstored` (4.17) answers a transcript otherwise, case by case: played by `peer.rs` without a hypervisor and by
//! `../examples/in-xen` in dom0, shown in `docs/compatibility.md`.

/// A case's file, its name, and what C xenstored does.
pub(crate) type Difference = (&'static str, &'static str, &'static str);

/// Where a difference is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Everywhere,
    /// Only where no hypervisor knows of domains.
    WithoutXen,
    /// Only where real guests take part.
    InXen,
    /// Only without Xen, or not at all: in dom0 the case would cut dom0 off.
    Spared,
}

/// All differences; those of one table are ordered by what C xenstored does.
pub(crate) const DIFFERENCES: [(Seen, &[Difference]); 4] = [
    (Seen::Everywhere, EVERYWHERE),
    (Seen::WithoutXen, WITHOUT_XEN),
    (Seen::InXen, IN_XEN),
    (Seen::Spared, SPARED),
];

const TOUCHED: &str = "a transaction that read a node ends with EAGAIN if the node was written, or got or lost a child, even if every answer would be the same";
const WRITTEN: &str = "a transaction that changed a node, or made or removed it, ends with EAGAIN if another one did the same or changed its parent, even if it read nothing";
const FIRST_ACCESS: &str =
    "a transaction sees each node as it was at the first access to it, not as it was at the start";
const LATER_TYPES: &str =
    "4.17 does not know GET_FEATURE, SET_FEATURE, GET_QUOTA and SET_QUOTA: ENOSYS";
const LATER_DEPTH: &str = "4.17 does not know the depth of a watch: EINVAL";
const SPECIAL_PERMISSIONS: &str = "4.17 answers GET_PERMS of a special name with EINVAL";
const SHORT_PATHS: &str =
    "4.17 refuses paths of more than 2048 bytes from the privileged domain, too";
const LAX_NUMBERS: &str = "numbers are read loosely: -1 as a domid, garbage as 0";
const ONE_STRING: &str = "requests of one path with more or fewer strings, or an empty one: ENOENT, from MKDIR and RM ENOMEM";
const UNWATCH_EXTRA: &str = "UNWATCH passes over bytes behind the token";
const UNWATCH_PATH: &str =
    "UNWATCH takes any path: one that cannot be watched is not watched, ENOENT";
const SPECIAL_NAMES: &str = "any name that begins with `@` may be watched, however it ends; permissions of one that is none are not there, ENOENT";
const COMMANDS: &str = "CONTROL has other commands";
const INTRODUCE_DOM0: &str = "INTRODUCE of the privileged domain answers OK";
const ANY_DOMAIN: &str = "4.17 does not know entries for every domain (32757)";
const LAYOUT: &str = "CONTROL quota of a domain is laid out otherwise";
const ONE_MORE: &str = "one transaction more than the limit can be open";
const NODE_BYTES: &str = "a node counts as a few bytes more";
const TARGET: &str = "RELEASE of a domain that is another's target answers OK and does nothing";
const RELEASE_FIRST: &str = "RELEASE is answered before the events that it makes";
const NEW_RING: &str = "INTRODUCE of domain 0, or of garbage, which counts as 0, begins dom0's own connection anew: its kernel then waits for ever";
const ASSERTION: &str =
    "after a READ of 4096 NULs it ends by a failed assertion (`conn->in == NULL`), mostly";
const EVERY_DOMAIN: &str = "here every domid names a domain, because no hypervisor says otherwise";
const NO_STORE_DOMAIN: &str =
    "here the store has no domain of its own, so that domain 31 is no other than 77";

const EVERYWHERE: &[Difference] = &[
    (
        "conflicts.txt",
        "read a node, the same value is written",
        TOUCHED,
    ),
    (
        "conflicts.txt",
        "read a node, another value is written and the first one again",
        TOUCHED,
    ),
    (
        "conflicts.txt",
        "read a missing node, it stays missing",
        TOUCHED,
    ),
    (
        "conflicts.txt",
        "list a node's children, one is written",
        TOUCHED,
    ),
    (
        "conflicts.txt",
        "list in parts, the node's value is written",
        TOUCHED,
    ),
    (
        "conflicts.txt",
        "read a node, a child of it is made",
        TOUCHED,
    ),
    (
        "conflicts.txt",
        "read a node, a child of a child is made",
        TOUCHED,
    ),
    (
        "conflicts.txt",
        "read a node, its permissions change",
        TOUCHED,
    ),
    (
        "conflicts.txt",
        "read a node's permissions, its value changes",
        TOUCHED,
    ),
    (
        "conflicts.txt",
        "write a node without reading it, it is written",
        WRITTEN,
    ),
    (
        "conflicts.txt",
        "write a node and read it back, it is written",
        WRITTEN,
    ),
    (
        "conflicts.txt",
        "make one child, another one is made",
        WRITTEN,
    ),
    ("conflicts.txt", "make the same node twice", WRITTEN),
    (
        "conflicts.txt",
        "make a node that another one makes meanwhile: only that one is told",
        WRITTEN,
    ),
    (
        "conflicts.txt",
        "remove a node that is missing, another one makes it: it is told",
        WRITTEN,
    ),
    ("conflicts.txt", "write a node, it is removed", WRITTEN),
    ("conflicts.txt", "remove a node, it is written", WRITTEN),
    ("conflicts.txt", "remove a node, it is removed", WRITTEN),
    (
        "conflicts.txt",
        "make a node, its parent is removed",
        WRITTEN,
    ),
    (
        "conflicts.txt",
        "a merged transaction tells each change once",
        WRITTEN,
    ),
    (
        "transactions.txt",
        "two at once see only their own",
        WRITTEN,
    ),
    (
        "conflicts.txt",
        "only reads, everything is written",
        FIRST_ACCESS,
    ),
    (
        "transactions.txt",
        "inside, the store is as it was at the beginning",
        FIRST_ACCESS,
    ),
    ("control.txt", "limits, set", LATER_TYPES),
    ("features.txt", "a domain that there is not", LATER_TYPES),
    (
        "framing.txt",
        "an unknown transaction is judged before the payload, for all types but WATCH and UNWATCH",
        LATER_TYPES,
    ),
    (
        "framing.txt",
        "an empty payload is answered as soon as its header is there",
        LATER_TYPES,
    ),
    ("quotas.txt", "the names and their defaults", LATER_TYPES),
    (
        "quotas.txt",
        "the limits are not for the privileged domain",
        LATER_TYPES,
    ),
    (
        "malformed.txt",
        "4096 bytes of which all or none are NULs, in requests for features and quotas",
        LATER_TYPES,
    ),
    (
        "malformed.txt",
        "domids of nobody: features and quotas",
        LATER_TYPES,
    ),
    (
        "malformed.txt",
        "what CONTROL refused has changed nothing",
        LATER_TYPES,
    ),
    (
        "specials.txt",
        "the permissions of a special name change: a plain event, as any other",
        LATER_DEPTH,
    ),
    (
        "watches.txt",
        "parents made on the way are silent",
        LATER_DEPTH,
    ),
    (
        "watches.txt",
        "a depth of nothing, one and two",
        LATER_DEPTH,
    ),
    ("watches.txt", "a depth from the root", LATER_DEPTH),
    ("watches.txt", "large depths", LATER_DEPTH),
    (
        "watches.txt",
        "a watch on the root without what is below",
        LATER_DEPTH,
    ),
    (
        "watches.txt",
        "removal and watches with a depth",
        LATER_DEPTH,
    ),
    (
        "conflicts.txt",
        "a special name's permissions are part of a transaction",
        SPECIAL_PERMISSIONS,
    ),
    ("nodes.txt", "the first nodes", SPECIAL_PERMISSIONS),
    (
        "permissions.txt",
        "special names that are none",
        SPECIAL_PERMISSIONS,
    ),
    (
        "framing.txt",
        "a reply of 4096 bytes fits and one of 4097 is E2BIG",
        SHORT_PATHS,
    ),
    (
        "paths.txt",
        "an absolute path may have 3072 bytes, and no more",
        SHORT_PATHS,
    ),
    (
        "paths.txt",
        "a path as deep as a request can name",
        SHORT_PATHS,
    ),
    ("nodes.txt", "an offset that is no number", LAX_NUMBERS),
    ("permissions.txt", "entries that are none", LAX_NUMBERS),
    (
        "malformed.txt",
        "4096 bytes of which all or none are NULs, where two domids are wanted",
        LAX_NUMBERS,
    ),
    (
        "malformed.txt",
        "domids in permissions that are none",
        LAX_NUMBERS,
    ),
    (
        "malformed.txt",
        "domids that are none: RELEASE",
        LAX_NUMBERS,
    ),
    ("malformed.txt", "domids that are none: RESUME", LAX_NUMBERS),
    (
        "malformed.txt",
        "domids that are none: IS_DOMAIN_INTRODUCED",
        LAX_NUMBERS,
    ),
    (
        "malformed.txt",
        "domids that are none: GET_DOMAIN_PATH",
        LAX_NUMBERS,
    ),
    (
        "malformed.txt",
        "domids that are none: INTRODUCE",
        LAX_NUMBERS,
    ),
    (
        "malformed.txt",
        "domids that are none: SET_TARGET",
        LAX_NUMBERS,
    ),
    ("malformed.txt", "offsets that are no numbers", LAX_NUMBERS),
    (
        "malformed.txt",
        "CONTROL quota with numbers that are none",
        LAX_NUMBERS,
    ),
    (
        "framing.txt",
        "one argument means one string to the last byte",
        ONE_STRING,
    ),
    ("framing.txt", "nothing but NULs", ONE_STRING),
    (
        "malformed.txt",
        "one path, and something behind it",
        ONE_STRING,
    ),
    (
        "malformed.txt",
        "4096 bytes of which all or none are NULs, where one path is wanted",
        ONE_STRING,
    ),
    (
        "framing.txt",
        "two arguments mean exactly two strings",
        UNWATCH_EXTRA,
    ),
    ("paths.txt", "misshapen paths", UNWATCH_PATH),
    ("paths.txt", "the folder of homes", UNWATCH_PATH),
    (
        "malformed.txt",
        "misshapen paths of watches to end",
        UNWATCH_PATH,
    ),
    (
        "specials.txt",
        "any special name may be watched",
        SPECIAL_NAMES,
    ),
    (
        "malformed.txt",
        "special names that are misshapen, watched, and with permissions to set",
        SPECIAL_NAMES,
    ),
    ("counters.txt", "counters of all domains", COMMANDS),
    (
        "counters.txt",
        "counters with arguments that are none",
        COMMANDS,
    ),
    (
        "leases.txt",
        "nobody removes what the policy keeps, or what is above it",
        COMMANDS,
    ),
    ("policies.txt", "policies, listed and set", COMMANDS),
    (
        "policies.txt",
        "a list of policies that is none changes nothing",
        COMMANDS,
    ),
    (
        "policies.txt",
        "policies bind the toolstack only where they say so",
        COMMANDS,
    ),
    (
        "layers.txt",
        "layers, listed, added and taken away",
        COMMANDS,
    ),
    (
        "layers.txt",
        "of a list of layers, those that are none are left out and named",
        COMMANDS,
    ),
    ("layers.txt", "a layer that is none is not added", COMMANDS),
    ("layers.txt", "no more than 16 layers", COMMANDS),
    ("control.txt", "help names the commands", COMMANDS),
    ("control.txt", "the log's switches", COMMANDS),
    ("control.txt", "what there is, counted", COMMANDS),
    (
        "domains.txt",
        "introduction of the privileged and the store's domain, and of no domain",
        INTRODUCE_DOM0,
    ),
    (
        "domains.txt",
        "resume of those who are not there",
        NO_STORE_DOMAIN,
    ),
];

const WITHOUT_XEN: &[Difference] = &[
    (
        "conflicts.txt",
        "an entry for a domain that does not exist is no conflict",
        EVERY_DOMAIN,
    ),
    (
        "permissions.txt",
        "an owner that does not exist",
        EVERY_DOMAIN,
    ),
];

const IN_XEN: &[Difference] = &[
    (
        "conflicts.txt",
        "two transactions make a child each",
        WRITTEN,
    ),
    (
        "transactions.txt",
        "permissions inside are those of the snapshot",
        FIRST_ACCESS,
    ),
    (
        "conflicts.txt",
        "a transaction that failed to fit would now fit",
        LATER_TYPES,
    ),
    ("features.txt", "what is offered", LATER_TYPES),
    ("features.txt", "whose may be asked for", LATER_TYPES),
    (
        "features.txt",
        "a domain that is not introduced yet",
        LATER_TYPES,
    ),
    (
        "features.txt",
        "after the introduction it is too late",
        LATER_TYPES,
    ),
    ("features.txt", "bits that there are not", LATER_TYPES),
    (
        "features.txt",
        "features are not for guests to set",
        LATER_TYPES,
    ),
    (
        "features.txt",
        "without entries for every domain",
        LATER_TYPES,
    ),
    (
        "paths.txt",
        "a guest's path may have 2048 bytes below its home, and no more",
        LATER_TYPES,
    ),
    (
        "quotas.txt",
        "names and arguments that are none",
        LATER_TYPES,
    ),
    ("quotas.txt", "a domain's own limit", LATER_TYPES),
    (
        "quotas.txt",
        "a domain that exists but is not introduced has limits",
        LATER_TYPES,
    ),
    (
        "quotas.txt",
        "limits are not for guests to see or set",
        LATER_TYPES,
    ),
    ("quotas.txt", "nodes", LATER_TYPES),
    (
        "quotas.txt",
        "all nodes of one request count together",
        LATER_TYPES,
    ),
    ("quotas.txt", "nodes in a transaction", LATER_TYPES),
    (
        "quotas.txt",
        "nodes are counted once more when a transaction ends",
        LATER_TYPES,
    ),
    (
        "quotas.txt",
        "nodes made for a domain by the toolstack are counted, not refused",
        LATER_TYPES,
    ),
    (
        "quotas.txt",
        "nodes given away are the new owner's",
        LATER_TYPES,
    ),
    (
        "quotas.txt",
        "removal gives each owner its node back",
        LATER_TYPES,
    ),
    ("quotas.txt", "no limit", LATER_TYPES),
    ("quotas.txt", "transactions", LATER_TYPES),
    (
        "quotas.txt",
        "nodes that a transaction touches",
        LATER_TYPES,
    ),
    (
        "quotas.txt",
        "one node more than a transaction may touch, and it has failed",
        LATER_TYPES,
    ),
    (
        "quotas.txt",
        "a failed transaction may be given up",
        LATER_TYPES,
    ),
    ("quotas.txt", "entries of a node's permissions", LATER_TYPES),
    ("quotas.txt", "bytes of a path", LATER_TYPES),
    ("quotas.txt", "bytes of a node with children", LATER_TYPES),
    ("quotas.txt", "memory", LATER_TYPES),
    (
        "quotas.txt",
        "what a transaction keeps counts as memory",
        LATER_TYPES,
    ),
    (
        "transactions.txt",
        "what one transaction touched is nothing to the next",
        LATER_TYPES,
    ),
    (
        "transactions.txt",
        "requests about domains are the same inside",
        LATER_TYPES,
    ),
    (
        "malformed.txt",
        "bytes without a NUL where nothing or a string is wanted",
        LATER_TYPES,
    ),
    (
        "malformed.txt",
        "bytes behind the last NUL of a list of any length mean nothing",
        LATER_TYPES,
    ),
    (
        "malformed.txt",
        "domids that are none: features and quotas",
        LATER_TYPES,
    ),
    (
        "malformed.txt",
        "features that are no numbers, or are none",
        LATER_TYPES,
    ),
    ("malformed.txt", "limits that are no numbers", LATER_TYPES),
    ("malformed.txt", "quotas that there are not", LATER_TYPES),
    (
        "malformed.txt",
        "quotas with too many arguments",
        LATER_TYPES,
    ),
    (
        "quotas.txt",
        "nodes made for a domain in a transaction of the toolstack are counted, not refused",
        LATER_TYPES,
    ),
    ("quotas.txt", "no limits at all", LATER_TYPES),
    (
        "quotas.txt",
        "every limit of a domain can be read",
        LATER_TYPES,
    ),
    (
        "counters.txt",
        "refusals are counted by quota: nodes",
        LATER_TYPES,
    ),
    (
        "counters.txt",
        "refusals are counted by quota: nodes, at the end of a transaction",
        LATER_TYPES,
    ),
    (
        "counters.txt",
        "refusals are counted by quota: watches",
        LATER_TYPES,
    ),
    (
        "counters.txt",
        "refusals are counted by quota: transactions",
        LATER_TYPES,
    ),
    (
        "counters.txt",
        "refusals are counted by quota: nodes of a transaction",
        LATER_TYPES,
    ),
    (
        "counters.txt",
        "refusals are counted by quota: permissions, length of paths, size of nodes",
        LATER_TYPES,
    ),
    (
        "counters.txt",
        "refusals are counted by quota: memory",
        LATER_TYPES,
    ),
    (
        "counters.txt",
        "the quota memory in a transaction",
        LATER_TYPES,
    ),
    (
        "permissions.txt",
        "special names have permissions",
        SPECIAL_PERMISSIONS,
    ),
    ("permissions.txt", "an entry for every domain", ANY_DOMAIN),
    ("domains.txt", "who is introduced", LAX_NUMBERS),
    (
        "domains.txt",
        "a domain's home is a matter of words",
        LAX_NUMBERS,
    ),
    (
        "malformed.txt",
        "domids that are none: the target of SET_TARGET",
        LAX_NUMBERS,
    ),
    (
        "framing.txt",
        "an empty payload where a string is wanted",
        ONE_STRING,
    ),
    ("framing.txt", "a payload without a NUL", ONE_STRING),
    (
        "counters.txt",
        "requests and errors are counted by type and name",
        COMMANDS,
    ),
    (
        "counters.txt",
        "a request of a type that there is not",
        COMMANDS,
    ),
    ("counters.txt", "conflicts are counted", COMMANDS),
    ("control.txt", "what a domain has", LAYOUT),
    (
        "control.txt",
        "what a domain has, listed as C lists it",
        LAYOUT,
    ),
    ("quotas.txt", "ten transactions by default", ONE_MORE),
    ("quotas.txt", "bytes of a node", NODE_BYTES),
    (
        "quotas.txt",
        "bytes of a node with further permissions",
        NODE_BYTES,
    ),
    ("domains.txt", "a stub's target can be released", TARGET),
    (
        "domains.txt",
        "a domain that is its own target has what it had",
        TARGET,
    ),
    (
        "domains.txt",
        "others hear that a released domain's nodes go",
        RELEASE_FIRST,
    ),
    (
        "specials.txt",
        "a domain's release is announced",
        RELEASE_FIRST,
    ),
    (
        "domains.txt",
        "release of those who are not to be released",
        NO_STORE_DOMAIN,
    ),
];

const SPARED: &[Difference] = &[
    (
        "domains.txt",
        "introduction with arguments that are none",
        NEW_RING,
    ),
    (
        "domains.txt",
        "introduction of the privileged and the store's domain, and of no domain",
        NEW_RING,
    ),
    ("malformed.txt", "domids that are none: INTRODUCE", NEW_RING),
    ("framing.txt", "nothing but NULs", ASSERTION),
    (
        "malformed.txt",
        "4096 bytes of which all or none are NULs, where one path is wanted",
        ASSERTION,
    ),
];
