//! `xs`: the administrator's tool. So far it shows, checks, compares and converts state streams.

mod state;

use std::error::Error;
use std::process::ExitCode;

use lexopt::prelude::*;

const HELP: &str = "\
xs state dump FILE                      print a state stream, a line for each record: where it begins, and what it says
xs state check FILE                     read a state stream as a server would; say what is wrong with it, and where
xs state diff FILE OTHER                print what one has and the other has not, whatever the order of their nodes
xs state convert FILE OUT --format F    read a state stream and write it in another format: v1, v2 (both as C xenstored reads
                                        them) or own; say what that format has no place for

A state stream is what a xenstore server hands to the one that comes after it. FILE may be -, for the standard input.

The exit code is 0 for a stream in order and for equal ones, 1 for a damaged one and for a difference, 2 for anything else.";

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
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Short('h') | Long("help") => {
                println!("{HELP}");
                return Ok(ExitCode::SUCCESS);
            }
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
        _ => Err("what to do? xs --help says what there is".into()),
    }
}
