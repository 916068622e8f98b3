//! A test for each security advisory of Xen that is about a xenstore and can be told as a transcript; `docs/advisories.md` has all.
//!
//! Each says what a guest did to another implementation, and what happens here.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that goes wrong here should stop at once"
)]

#[expect(dead_code, reason = "other tests need more of it")]
mod machine;
mod on_core;
mod transcript;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use on_core::Core;
use transcript::run::play;
use transcript::syntax::parse;
use xenstore::{AnyStorage, FlatMap};

/// Plays one case on both storages. At its end every message must have been announced, and the store's accounts must be right.
fn holds(text: &str) {
    let cases = parse(&format!("case it holds\n{text}")).unwrap_or_else(|why| panic!("{why}"));
    let mut failures = play("tree", &cases, Core::<AnyStorage>::new).failures;
    failures.extend(play("flat map", &cases, Core::<FlatMap>::new).failures);
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn xsa_72_a_reply_above_4096_bytes_is_an_error_and_the_connection_goes_on() {
    holds(
        "d0 > WRITE /t/{a*2047} '' => OK
        d0 > WRITE /t/{b*2047} '' => OK
        d0 > DIRECTORY /t => {a*2047} {b*2047}
        d0 > RM /t/{b*2047} => OK
        d0 > WRITE /t/{b*2048} '' => OK
        d0 > DIRECTORY /t => E2BIG
        d0 > READ /t => ''
        d0 > DIRECTORY_PART /t 0 => {=generation} {a*2047}
        d0 > DIRECTORY_PART /t 2048 => {=generation} {b*2048} \"\"",
    );
}

#[test]
fn xsa_115_a_watch_tells_nothing_of_what_its_client_may_not_read() {
    holds(
        "domain 1 is set up
        d0 > WRITE /t/secret/a 'x' => OK
        d1 > WATCH / root => OK
        d1 ! / root
        d1 > WATCH /t/secret/a node => OK
        d1 ! /t/secret/a node
        d0 > WRITE /t/secret/a 'y' => OK
        d0 > WRITE /t/secret/b 'y' => OK
        d0 > MKDIR /t/c => OK
        d0 > SET_PERMS /t/secret/b b0 n1 => OK
        d0 > RM /t/secret => OK
        d1 nothing
        d0 > WRITE /t/open 'x' => OK
        d0 > SET_PERMS /t/open r0 => OK
        d1 ! /t/open root
        d0 > SET_PERMS /t/open n0 => OK
        d1 ! /t/open root
        d0 > WRITE /t/open 'y' => OK
        d1 nothing
        d1 > IS_DOMAIN_INTRODUCED 0 => EACCES",
    );
}

#[test]
fn xsa_233_a_stub_domain_and_its_target_may_end_together() {
    let set_up = "domain 1 is set up
        domain 2 is set up
        d0 > SET_TARGET 1 2 => OK
        d0 > WATCH @releaseDomain token 1 => OK
        d0 ! @releaseDomain token";
    for (first, second) in [(1, 2), (2, 1)] {
        holds(&format!(
            "{set_up}
            domains {first} {second} die
            d0 ! @releaseDomain/{first} token
            d0 ! @releaseDomain/{second} token"
        ));
        holds(&format!(
            "{set_up}
            d0 > RELEASE {first}
            d0 ! @releaseDomain/{first} token
            d0 < OK
            domains {first} {second} die
            d0 ! @releaseDomain/{second} token"
        ));
    }
}

#[test]
fn xsa_272_the_quota_of_nodes_binds_every_way_to_make_one() {
    holds(
        "domain 1 is set up
        d0 > SET_QUOTA 1 nodes 2 => OK
        d1 > WRITE a 'x' => OK
        d1 > WRITE b 'x' => ENOSPC
        d1 > MKDIR b => ENOSPC
        d1 > WRITE b/c 'x' => ENOSPC
        d1 > TRANSACTION_START => [t]
        d1 > [t] WRITE b 'x' => ENOSPC
        d1 > [t] MKDIR b => ENOSPC
        d1 > [t] RM a => OK
        d1 > [t] WRITE b/c 'x' => ENOSPC
        d1 > [t] WRITE b 'x' => OK
        d1 > [t] TRANSACTION_END T => OK
        d0 > CONTROL quota 1 => '{**}nodes{**} 2 (max        2){**}\\0'",
    );
}

#[test]
fn xsa_322_the_next_domain_with_a_domid_inherits_no_rights() {
    let set_up = "domain 1 is set up
        d0 > WRITE /t/a 'x' => OK
        d0 > SET_PERMS /t/a n0 b1 => OK
        d0 > SET_PERMS @introduceDomain n0 r1 => OK
        d1 > READ /t/a => 'x'";
    let check = "d1 > READ /t/a => EACCES
        d1 > WRITE /t/a 'y' => EACCES
        d1 > GET_PERMS @introduceDomain => EACCES
        d0 > GET_PERMS /t/a => n0
        d0 > GET_PERMS @introduceDomain => n0";
    holds(&format!(
        "{set_up}
        domain 1 dies
        domain 1 is introduced
        {check}"
    ));
    // The successor is there before anybody has told of the end.
    holds(&format!(
        "{set_up}
        domain 1 vanishes
        domain 1 is introduced
        {check}"
    ));
}

#[test]
fn xsa_323_the_length_of_a_path_is_judged_the_same_however_it_is_written() {
    let prefix = "/local/domain/1/";
    for home in ["", prefix] {
        holds(&format!(
            "domain 1 is set up
            d0 > SET_QUOTA 1 path-max 100 => OK
            d1 > WRITE {home}{{a*99}} 'x' => OK
            d1 > WRITE {home}{{a*100}} 'x' => OK
            d1 > READ {{a*100}} => 'x'
            d1 > READ {prefix}{{a*100}} => 'x'
            d1 > WRITE {home}{{a*101}} 'x' => EINVAL
            d1 > DIRECTORY /local/domain/1 => {{a*99}} {{a*100}}"
        ));
    }
}

#[test]
fn xsa_324_an_event_too_long_for_a_message_is_dropped_and_others_are_sent() {
    holds(
        "d0 > WATCH /t {t*4089} => OK
        d0 ! /t {t*4089}
        d0 > WRITE /t/a 'x'
        d0 ! /t/a {t*4089}
        d0 < OK
        d0 > WRITE /t/ab 'x'
        d0 ! /t/ab {t*4089}
        d0 < OK
        d0 > WRITE /t/abc 'x' => OK
        d0 nothing
        d0 > WRITE /t/a 'y'
        d0 ! /t/a {t*4089}
        d0 < OK",
    );
}

#[test]
fn xsa_325_a_guest_that_breaks_the_protocol_is_released_when_it_dies_and_not_before() {
    holds(
        "domain 1 is set up
        d0 > WATCH @releaseDomain token 1 => OK
        d0 ! @releaseDomain token
        d1 > WATCH a token => OK
        d1 ! a token
        d1 header WRITE len 4097 ''
        d1 is stopped
        d0 nothing
        d0 > IS_DOMAIN_INTRODUCED 1 => T
        domain 1 dies
        d0 ! @releaseDomain/1 token
        d0 > IS_DOMAIN_INTRODUCED 1 => F",
    );
}

#[test]
fn xsa_326_what_a_guest_leaves_unread_makes_it_wait() {
    holds(
        "domain 1 is set up
        d0 > SET_QUOTA 1 outstanding 2 => OK
        d1 stops reading
        d1 > WRITE a 'x'
        d1 > WRITE b 'x'
        d1 > WRITE c 'x'
        d0 > READ /local/domain/1/b => 'x'
        d0 > READ /local/domain/1/c => ENOENT
        d1 reads again
        d1 < OK
        d1 < OK
        d1 < OK
        d0 > READ /local/domain/1/c => 'x'",
    );
}

#[test]
fn xsa_326_a_request_is_answered_fully_when_its_events_are_read_or_old() {
    holds(
        "domain 1 is set up
        domain 2 is set up
        d0 > SET_PERMS /local/domain/1 r1 => OK
        d0 > SET_QUOTA 1 outstanding 1 => OK
        d2 > WATCH /local/domain/1 token => OK
        d2 ! /local/domain/1 token
        d2 stops reading
        d1 > WRITE a 'x' => OK
        d1 > WRITE b 'x'
        d1 nothing
        d0 > READ /local/domain/1/b => ENOENT
        time passes 21000 ms
        d1 < OK",
    );
}

#[test]
fn xsa_326_nodes_that_a_transaction_touches_are_limited_before_it_grows() {
    holds(
        "domain 1 is set up
        d0 > SET_QUOTA 1 transaction-nodes 2 => OK
        d1 > WRITE a 'x' => OK
        d1 > TRANSACTION_START => [t]
        d1 > [t] READ a => 'x'
        d1 > [t] READ b => ENOENT
        d1 > [t] READ c => ENOSPC
        d1 > [t] WRITE d 'x' => ENOSPC
        d1 > [t] TRANSACTION_END T => ENOMEM
        d1 > DIRECTORY /local/domain/1 => a",
    );
}

#[test]
fn xsa_330_reset_leaves_no_watch_behind() {
    let round = "d1 > WATCH a one => OK
        d1 ! a one
        d1 > WATCH a/b two => OK
        d1 ! a/b two
        d1 > RESET_WATCHES \"\" => OK
        d0 > WRITE /local/domain/1/a/b 'x' => OK
        d0 > RM /local/domain/1/a => OK
        d1 nothing\n"
        .repeat(20);
    holds(&format!(
        "needs a fresh server
        domain 1 is set up
        d0 > SET_QUOTA 1 watches 2 => OK
        {round}
        d0 > CONTROL memreport => '{{**}}watches: 0\\n{{**}}'"
    ));
}

#[test]
fn xsa_349_354_an_equal_event_that_waits_is_enough() {
    let writes = "d0 > WRITE /local/domain/1/a 'x' => OK\n".repeat(2000);
    holds(&format!(
        "domain 1 is set up
        d1 > WATCH a token => OK
        d1 ! a token
        d1 stops reading
        {writes}
        d1 reads again
        d1 ! a token
        d1 nothing"
    ));
}

#[test]
fn xsa_352_a_guest_gives_no_node_away() {
    holds(
        "domain 1 is set up
        domain 2 is set up
        d0 > SET_TARGET 1 2 => OK
        d1 > WRITE a 'x' => OK
        d1 > SET_PERMS a n0 => EPERM
        d1 > SET_PERMS a n2 => EPERM
        d1 > SET_PERMS a n2 b1 => EPERM
        d1 > TRANSACTION_START => [t]
        d1 > [t] SET_PERMS a n0 => EPERM
        d1 > [t] SET_PERMS a n2 => EPERM
        d1 > [t] TRANSACTION_END T => OK
        d0 > GET_PERMS /local/domain/1/a => n1
        d0 > CONTROL quota 1 => '{**}nodes{**} 2 {**}\\0'
        d0 > CONTROL quota 2 => '{**}nodes{**} 1 {**}\\0'",
    );
}

#[test]
fn xsa_353_the_root_is_a_node_like_any_other() {
    holds(
        "domain 1 is set up
        d1 > READ / => EACCES
        d1 > WRITE / 'x' => EACCES
        d1 > MKDIR / => EACCES
        d1 > RM / => EACCES
        d1 > DIRECTORY / => EACCES
        d1 > DIRECTORY_PART / 0 => EACCES
        d1 > GET_PERMS / => EACCES
        d1 > SET_PERMS / b1 => EACCES
        d1 > MKDIR /new => EACCES
        d0 > RM / => EINVAL
        d0 > READ / => ''",
    );
}

#[test]
fn xsa_414_a_creation_that_fails_half_way_has_made_nothing() {
    holds(
        "domain 1 is set up
        d0 > SET_QUOTA 1 nodes 3 => OK
        d0 > WATCH /local/domain/1 token => OK
        d0 ! /local/domain/1 token
        d1 > WRITE a/b/c/d 'x' => ENOSPC
        d1 > READ a => ENOENT
        d1 > DIRECTORY /local/domain/1 => ''
        d0 > CONTROL quota 1 => '{**}nodes{**} 1 {**}\\0'
        d0 nothing",
    );
}

#[test]
fn xsa_415_a_creation_that_fails_in_a_transaction_leaves_no_orphan() {
    holds(
        "domain 1 is set up
        d0 > SET_QUOTA 1 nodes 3 => OK
        d1 > TRANSACTION_START => [t]
        d1 > [t] WRITE a/b/c/d 'x' => ENOSPC
        d1 > [t] DIRECTORY /local/domain/1 => ''
        d1 > [t] TRANSACTION_END T => OK
        d1 > DIRECTORY /local/domain/1 => ''
        d1 > TRANSACTION_START => [t]
        d1 > [t] WRITE a/b 'x' => OK
        d1 > WRITE c 'x' => OK
        d1 > [t] TRANSACTION_END T => ENOSPC
        d1 > DIRECTORY /local/domain/1 => c
        d0 > CONTROL quota 1 => '{**}nodes{**} 2 {**}\\0'",
    );
}

#[test]
fn xsa_417_an_entry_for_a_domain_that_does_not_exist_means_nobody() {
    holds(
        "d0 > WRITE /t/a 'x' => OK
        d0 > SET_PERMS /t/a n0 b1 => OK
        domain 1 is set up
        d1 > READ /t/a => EACCES
        d1 > WRITE /t/a 'y' => EACCES
        domain 2 exists
        d0 > SET_PERMS /t/a n0 r2 => OK
        d0 > INTRODUCE 2 1 7 => OK
        d2 > READ /t/a => 'x'",
    );
}

/// The stack that the deepest tree is worked on with: a few frames, nowhere near one for each level.
const SMALL_STACK: usize = 256 * 1024;

#[test]
fn xsa_418_the_deepest_tree_needs_no_more_stack_than_a_flat_one() {
    let deep = || {
        holds(
            "domain 1 is set up
            d0 > MKDIR /t{/x*1535} => OK
            d0 > WRITE /t{/x*1535} 'x' => OK
            d0 > TRANSACTION_START => [t]
            d0 > [t] WRITE /t{/x*1534}/y 'x' => OK
            d0 > [t] TRANSACTION_END T => OK
            d0 > WATCH /t{/x*1535} token => OK
            d0 ! /t{/x*1535} token
            d0 > CONTROL check => OK
            d0 > RM /t/x
            d0 ! /t{/x*1535} token
            d0 < OK
            d1 > MKDIR {x/*900}x => OK
            domain 1 dies
            d0 > READ /local/domain/1 => ENOENT",
        );
    };
    let small = std::thread::Builder::new().stack_size(SMALL_STACK);
    small.spawn(deep).unwrap().join().unwrap();
}

#[test]
fn xsa_419_a_dead_guests_nodes_go_with_it_wherever_they_are() {
    let life = "domain 1 is introduced
        d1 > WRITE /t/a/b 'x' => OK
        d1 > WRITE /t/a/c 'x' => OK
        domain 1 dies
        d0 > DIRECTORY /t => ''\n"
        .repeat(20);
    holds(&format!(
        "needs a fresh server
        d0 > MKDIR /t => OK
        d0 > SET_PERMS /t b0 => OK
        d0 > CONTROL quota 0 => 'Domain 0:\\nnodes            :        4 {{**}}'
        {life}
        d0 > CONTROL quota 0 => 'Domain 0:\\nnodes            :        4 {{**}}'"
    ));
}

#[test]
fn xsa_420_an_absurd_length_stops_the_connection_at_once() {
    for len in [1_u64 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 1] {
        holds(&format!(
            "domain 1 is set up
            d1 header WRITE len {len} ''
            d1 is stopped
            d1 bytes '\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0'
            d1 nothing
            d0 > IS_DOMAIN_INTRODUCED 1 => T"
        ));
    }
}

#[test]
fn xsa_421_a_node_made_and_removed_in_a_transaction_is_no_half_commit() {
    let round = "d1 > TRANSACTION_START => [t]
        d1 > [t] WRITE n 'x' => OK
        d1 > [t] RM n => OK
        d1 > [t] WRITE m/o 'x' => OK
        d1 > [t] TRANSACTION_END T => OK
        d1 > DIRECTORY /local/domain/1 => m
        d0 > CONTROL quota 1 => '{**}nodes{**} 3 {**}\\0'
        d0 > CONTROL check => OK
        d1 > RM m => OK\n"
        .repeat(20);
    holds(&format!("domain 1 is set up\n{round}"));
}

#[test]
fn xsa_440_two_transactions_that_remove_the_same_nodes_are_one_commit_and_one_conflict() {
    let each = |line: &str| -> String {
        (0..50)
            .map(|n| format!("{}\n", line.replace('#', &n.to_string())))
            .collect()
    };
    holds(&format!(
        "domain 1 is set up
        {made}
        d1 > TRANSACTION_START => [s]
        d1 > TRANSACTION_START => [t]
        {read}{first}{second}
        d1 > [s] TRANSACTION_END T => OK
        d1 > [t] TRANSACTION_END T => EAGAIN
        d1 > DIRECTORY /local/domain/1 => ''
        d0 > CONTROL quota 1 => '{{**}}nodes{{**}} 1 {{**}}\\0'",
        made = each("d1 > WRITE a# 'x' => OK"),
        read = each("d1 > [t] READ a# => 'x'"),
        first = each("d1 > [s] RM a# => OK"),
        second = each("d1 > [t] RM a# => OK"),
    ));
}

#[test]
fn xsa_481_misshapen_paths_of_homes_get_one_error_each() {
    for path in [
        "/local/domain/",
        "/local/domain//x",
        "/local/domain/5/",
        "/local/domain/5//",
    ] {
        holds(&format!(
            "d0 > MKDIR /local/domain/5 => OK
            d0 > READ {path} => EINVAL
            d0 > WRITE {path} 'x' => EINVAL
            d0 > MKDIR {path} => EINVAL
            d0 > RM {path} => EINVAL
            d0 > DIRECTORY {path} => EINVAL
            d0 > DIRECTORY_PART {path} 0 => EINVAL
            d0 > GET_PERMS {path} => EINVAL
            d0 > SET_PERMS {path} n0 => EINVAL
            d0 > WATCH {path} token => EINVAL
            d0 > UNWATCH {path} token => EINVAL
            d0 > DIRECTORY /local/domain => 5"
        ));
    }
}

#[test]
fn xsa_483_each_life_of_a_domid_has_the_whole_quota() {
    let life = "domain 1 is set up
        d1 > WATCH a token => OK
        d1 ! a token
        d1 > TRANSACTION_START => {**}
        d1 > WRITE /local/domain/1/b 'x' => OK
        d1 > WRITE /local/domain/1/c 'x' => OK
        d1 > WRITE /local/domain/1/d 'x' => ENOSPC
        d1 > WATCH b token => ENOSPC
        d1 > TRANSACTION_START => ENOSPC
        domain 1 dies\n"
        .repeat(100);
    holds(&format!(
        "d0 > SET_QUOTA nodes 3 => OK
        d0 > SET_QUOTA watches 1 => OK
        d0 > SET_QUOTA transactions 1 => OK
        {life}"
    ));
}

#[test]
fn xsa_484_reset_in_a_transaction_ends_it_and_a_fault_does_too() {
    holds(
        "domain 1 is set up
        d1 > TRANSACTION_START => [s]
        d1 > TRANSACTION_START => [t]
        d1 > [s] WRITE a 'x' => OK
        d1 > [t] RESET_WATCHES \"\" => OK
        d1 > [t] TRANSACTION_END T => ENOENT
        d1 > [s] TRANSACTION_END T => ENOENT
        d1 > READ a => ENOENT
        d1 > TRANSACTION_START => [t]
        d1 > [t] WRITE a 'x' => OK
        d1 header READ len 4097 ''
        d1 is stopped
        d0 > READ /local/domain/1/a => ENOENT",
    );
}

/// The permissions that libxl gives to what it and a guest share.
#[test]
fn xsa_57_175_178_what_the_toolstack_trusts_a_guest_cannot_write() {
    holds(
        "domain 1 is introduced
        d0 > MKDIR /local/domain/1 => OK
        d0 > SET_PERMS /local/domain/1 n0 r1 => OK
        d0 > WRITE /local/domain/1/device/vbd/1/backend '/local/domain/0/backend/vbd/1/1' => OK
        d0 > SET_PERMS /local/domain/1/device/vbd/1 n1 r0 => OK
        d0 > SET_PERMS /local/domain/1/device/vbd/1/backend n0 r1 => OK
        d0 > WRITE /local/domain/0/backend/vbd/1/1/params 'disk' => OK
        d0 > SET_PERMS /local/domain/0/backend/vbd/1/1 n0 r1 => OK
        d0 > SET_PERMS /local/domain/0/backend/vbd/1/1/params n0 r1 => OK
        d0 > WRITE /libxl/1/device/vbd/1/params 'disk' => OK
        d1 > WRITE device/vbd/1/state '1' => OK
        d1 > WRITE device/vbd/1/backend '/local/domain/1/mine' => EACCES
        d1 > SET_PERMS device/vbd/1/backend b1 => EACCES
        d1 > RM device/vbd/1/backend => EACCES
        d1 > WRITE /local/domain/0/backend/vbd/1/1/params '/etc/shadow' => EACCES
        d1 > MKDIR /local/domain/0/backend/vbd/1/1/mine => EACCES
        d1 > WRITE name 'other' => EACCES
        d1 > RM /local/domain/1/device => EACCES
        d1 > RM /local/domain/1 => EACCES
        d1 > READ /libxl/1/device/vbd/1/params => EACCES
        d1 > WRITE /libxl/1/device/vbd/1/params 'x' => EACCES",
    );
}

/// The advisories that are about a xenstore, what it needs, or its neighbours.
const ADVISORIES: [u32; 45] = [
    38, 57, 72, 86, 115, 155, 175, 178, 206, 233, 272, 322, 323, 324, 325, 326, 330, 332, 349, 352,
    353, 354, 376, 391, 414, 415, 416, 417, 418, 419, 420, 421, 425, 437, 440, 478, 481, 483, 484,
    486, 492, 496, 500, 501, 505,
];

#[test]
fn the_table_of_advisories_names_every_advisory_and_the_tests_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let document = std::fs::read_to_string(root.join("docs/advisories.md")).unwrap();
    let rows: Vec<&str> = document
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| XSA"))
        .collect();
    let numbers = rows.iter().flat_map(|row| {
        let cell = row.split('|').nth(1).unwrap();
        cell.split(|c: char| !c.is_ascii_digit())
    });
    let numbers: BTreeSet<u32> = numbers.filter_map(|number| number.parse().ok()).collect();
    assert_eq!(numbers, BTreeSet::from(ADVISORIES));

    let named = rows.iter().flat_map(|row| row.split('`'));
    let named: BTreeSet<&str> = named.filter(|word| word.starts_with("xsa_")).collect();
    let sources: Vec<String> = sources(&root.join("xenstore"))
        .into_iter()
        .chain(sources(&root.join("kernel")))
        .chain(sources(&root.join("host")))
        .collect();
    let there = sources
        .iter()
        .flat_map(|source| source.split("fn ").skip(1));
    let there = there.filter_map(|rest| rest.split('(').next());
    let there: BTreeSet<&str> = there.filter(|name| name.starts_with("xsa_")).collect();
    assert_eq!(named, there);
}

#[test]
fn the_table_of_advisories_marks_the_bugs_that_can_be_brought_back() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let lists = read("xenstore/src/bugs.rs") + &read("kernel/src/bugs.rs");
    let bugs = lists.split("const XSA_").skip(1);
    let bugs = bugs.filter_map(|rest| rest.split(':').next());
    let document = read("docs/advisories.md");
    let cells = document.lines().filter_map(|line| line.split(" | ").next());
    let mut marked: BTreeSet<&str> = cells.filter(|cell| cell.ends_with("*B*")).collect();
    for bug in bugs {
        let word = |cell: &&&str| cell.split([' ', ',']).any(|word| word == bug);
        let cell = marked.iter().find(word).copied();
        assert!(cell.is_some_and(|cell| marked.remove(cell)), "{bug}");
    }
    assert!(marked.is_empty(), "{marked:?}");
}

/// The texts of all Rust files in a folder.
fn sources(folder: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    let mut open = vec![PathBuf::from(folder)];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                texts.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }
    texts
}
