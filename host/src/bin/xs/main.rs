//! `xs`: the administrator's tool. It shows, checks, compares and converts state streams, and does again what a journal has.

mod client;
mod journal;
mod state;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::prelude::*;

const HELP: &str = "\
xs state dump FILE                      print a state stream, a line for each record: where it begins, and what it says
xs state check FILE                     read a state stream as a server would; say what is wrong with it, and where
xs state diff FILE OTHER                print what one has and the other has not, whatever the order of their nodes
xs state convert FILE OUT --format F    read a state stream and write it in another format: v1, v2 (both as C xenstored reads
                                        them) or own; say what that format has no place for
xs journal [--from POSITION]            print the journal of a store that keeps one; the position behind it goes to the standard error
xs replay FILE                          do again what a journal has, on a running store

A running store is found at --store PATH, a socket or /dev/xen/xenbus; default: $XENSTORED_PATH, else /run/xenstored/socket.
A state stream is what a xenstore server hands to the one that comes after it. FILE may be -, for the standard input.

The exit code is 0 for a stream in order and for equal ones, 1 for a damaged one, for a difference and for changes that were refused,
2 for anything else.";
const DEFAULT_STORE: &str = "/run/xenstored/socket";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xs: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let mut words = Vec::new();
    let mut format = None;
    let mut from = None;
    let mut store = std::env::var_os("XENSTORED_PATH").map_or(DEFAULT_STORE.into(), PathBuf::from);
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Short('h') | Long("help") => {
                println!("{HELP}");
                return Ok(ExitCode::SUCCESS);
            }
            Long("from") => from = Some(arguments.value()?.parse()?),
            Long("store") => store = arguments.value()?.into(),
            Long("format") => format = Some(arguments.value()?.string()?),
            Value(word) => words.push(word.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match (words.as_slice(), format) {
        (["state", "dump", file], None) => state::dump(file),
        (["state", "check", file], None) => state::check(file),
        (["state", "diff", file, other], None) => state::diff(file, other),
        (["state", "convert", file, out], Some(format)) => state::convert(file, out, &format),
        (["journal"], None) => journal::fetch(&store, from.unwrap_or_default()),
        (["replay", file], None) => journal::replay(&store, file),
        _ => Err("what to do? xs --help says what there is".into()),
    }
}
