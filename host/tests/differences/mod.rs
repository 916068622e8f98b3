//! Where Debian's C `xenstored` (4.17) answers a transcript otherwise, case by case: played by `peer.rs`, shown in
//! `docs/compatibility.md`.

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
const EVERY_DOMAIN: &str = "here every domid names a domain, because no hypervisor says otherwise";
const NO_STORE_DOMAIN: &str =
    "here the store has no domain of its own, so that domain 31 is no other than 77";

/// A case's file, its name, and what C xenstored does; ordered by the latter.
pub(crate) const DIFFERENCES: &[(&str, &str, &str)] = &[
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
    ("control.txt", "help names the commands", COMMANDS),
    ("control.txt", "the log's switches", COMMANDS),
    ("control.txt", "what there is, counted", COMMANDS),
    (
        "domains.txt",
        "introduction of the privileged and the store's domain, and of no domain",
        INTRODUCE_DOM0,
    ),
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
    (
        "domains.txt",
        "resume of those who are not there",
        NO_STORE_DOMAIN,
    ),
];

/// Further ones, where real guests take part.
pub(crate) const IN_XEN: &[(&str, &str, &str)] = &[];
