//! Plays the transcripts in dom0 of the real Xen, with guests that do their part, on Ferrostore or on C `xenstored`.
//!
//! `scripts/run-qemu` takes this program into dom0 and into two guests. There the latter run `in-xen relay` on their consoles, and dom0
//! runs `in-xen play`; `in-xen list` says anywhere which cases are left out, and why.

#[path = "../../tests/cases/mod.rs"]
mod cases;
#[path = "../../tests/differences/mod.rs"]
mod differences;
mod domids;
mod machine;
#[path = "../../tests/over_socket/mod.rs"]
mod over_socket;
mod playable;
mod relay;
mod xenbus;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use cases::{Exception, Played, all_cases, play_all};
use differences::{DIFFERENCES, Seen};
use machine::{Guest, InXen, Machine};
use playable::{Stage, domains};
use relay::Relay;

const USAGE: &str = "
in-xen list                                   the cases that cannot be played through dom0's kernel and two guests, and why
in-xen relay                                  in a guest, on a raw console: do what dom0 says
in-xen play WAY STORE DOMID:PORT:TERMINAL...  in dom0: play all, with these guests
  WAY    device, or the path of the store's socket
  STORE  the domid of Ferrostore's domain, or xenstored
The environment variable TRANSCRIPTS names the folder of the texts, TRANSCRIPT chooses files.
";

/// What is different where a guest exists all along.
const EXCEPTIONS: &[Exception] = &[(
    "permissions.txt",
    "an entry for a domain that does not exist is shown and means nothing",
    "a guest exists before the text says so",
)];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["list"] => list(),
        ["relay"] => relay::serve(),
        ["play", way, store, guests @ ..] => play(way, store, guests),
        _ => Err(USAGE.to_owned()),
    };
    if let Err(why) = &done {
        eprintln!("{why}");
    }
    ExitCode::from(u8::from(done.is_err()))
}

fn list() -> Result<(), String> {
    let stage = Stage {
        is_dom0_behind_kernel: true,
        guests: 2,
    };
    let mut left_out = Vec::new();
    for (file, cases) in all_cases("")? {
        for case in cases {
            if let Err(why) = stage.admit(&case) {
                left_out.push((format!("{file}: {}", case.name), why.to_owned()));
            }
        }
    }
    show_left_out(&left_out);
    Ok(())
}

fn play(way: &str, store: &str, guests: &[&str]) -> Result<(), String> {
    let socket = (way != "device").then(|| PathBuf::from(way));
    let guests: Result<Vec<_>, _> = guests.iter().map(|words| guest(words)).collect();
    let is_peer = store == "xenstored";
    let domid = (!is_peer).then(|| store.parse().map_err(|_| USAGE));
    let machine = Machine::new(socket, domid.transpose()?, guests?)?;
    let stage = machine.stage();
    let exceptions = applicable(stage, is_peer)?;
    let machine = Rc::new(RefCell::new(machine));
    let spared: Vec<_> = seen(&[Seen::Spared]).filter(|_| is_peer).collect();
    let played = play_all(&exceptions, || InXen {
        machine: Rc::clone(&machine),
        spared: spared.clone(),
    })?;
    let concluded = conclude(stage, &exceptions, &played);
    machine.borrow_mut().part().and(concluded)
}

/// DOMID:PORT:TERMINAL
fn guest(words: &str) -> Result<Guest, String> {
    let mut words = words.splitn(3, ':');
    let mut next = || words.next().ok_or(USAGE);
    let (domid, port, terminal) = (next()?, next()?, next()?);
    let domid = domid.parse().map_err(|_| USAGE)?;
    let port = port.parse().map_err(|_| USAGE)?;
    Ok(Guest::new(domid, port, Relay::new(Path::new(terminal))?))
}

/// What is listed for this store, as far as it can be played.
fn applicable(stage: Stage, is_peer: bool) -> Result<Vec<Exception>, String> {
    let mut admitted = Vec::new();
    for (file, cases) in all_cases("")? {
        let cases = cases.into_iter();
        let cases = cases.filter(|case| stage.admit(case).is_ok());
        admitted.extend(cases.map(|case| (file.clone(), case.name)));
    }
    let listed = seen(&[Seen::Everywhere, Seen::InXen]).filter(|_| is_peer);
    let listed = listed.chain(EXCEPTIONS.iter().copied());
    let is_admitted = |(file, name, _): &Exception| {
        let is_spared = seen(&[Seen::Spared]).any(|(_, spared, _)| spared == *name);
        !is_spared && admitted.iter().any(|(of, case)| of == file && case == name)
    };
    Ok(listed.filter(is_admitted).collect())
}

/// The differences that are seen in these places.
fn seen(places: &[Seen]) -> impl Iterator<Item = Exception> {
    let tables = DIFFERENCES.into_iter();
    let tables = tables.filter(|(place, _)| places.contains(place));
    tables.flat_map(|(_, differences)| differences).copied()
}

fn conclude(stage: Stage, exceptions: &[Exception], played: &Played) -> Result<(), String> {
    show_left_out(&played.left_out);
    for (file, name, why) in exceptions {
        println!("listed: {file}: {name}: {why}");
    }
    let mut with_guests = 0;
    for (_, cases) in all_cases("")? {
        let cases = cases.iter().filter(|case| stage.admit(case).is_ok());
        with_guests += cases.filter(|case| !domains(case).is_empty()).count();
    }
    let (listed, left_out) = (exceptions.len(), played.left_out.len());
    let passed = played.passed;
    println!(
        "note: {passed} cases passed, {listed} listed as different, {left_out} left out; guests take part in {with_guests}"
    );
    if played.complaints.is_empty() && passed > 0 {
        return Ok(());
    }
    let count = played.complaints.len();
    Err(format!(
        "{}\n\n{count} complaints",
        played.complaints.join("\n\n")
    ))
}

/// By reason, the most frequent one first.
fn show_left_out(left_out: &[(String, String)]) {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (case, why) in left_out {
        reasons.entry(why).or_default().push(case);
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, cases)| std::cmp::Reverse(cases.len()));
    for (why, cases) in reasons {
        println!("{} left out because {why}:", cases.len());
        cases.iter().for_each(|case| println!("    {case}"));
    }
}
