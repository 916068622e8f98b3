//! `bench`: the workloads of scripts/bench, run against one server; each figure is a line of JSON.
//!
//! The same requests go to the store inside this process (`core`) and to a server behind a unix socket (`socket`), so that figures can be
//! compared. What an operation costs is read from outside: from callgrind in the measured process, or from Linux.

mod core;
mod guest;
mod probe;
mod socket;
mod target;
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::prelude::*;

use crate::core::Core;
use crate::probe::Probe;
use crate::socket::Socket;
use crate::target::{Failure, Target};
use crate::workloads::{Bench, Scale};

const HELP: &str = "\
bench core [OPTION]...                               the store in this process
bench socket NAME PATH [OPTION]... -- COMMAND...     the server that COMMAND starts, which listens at PATH

Runs the workloads of scripts/bench and prints a line of JSON for each figure.

  --instructions PREFIX   count instructions: the server runs under callgrind with --callgrind-out-file=PREFIX
  --cpu-time              count the nanoseconds that the server runs, in user space and in the kernel
  --memory                count bytes of resident memory for each node, and nothing else
  --build NODES           make that many nodes and exit, for a tool that counts the heap
  --only WORD             only the groups of workloads that have WORD in their name
  --nodes NUMBER          nodes in a large store; default: 1000000
  --children NUMBER       children of a large directory; default: 100000
  --quick                 less of everything: the figures are rough";

/// What the command line asks for.
struct Arguments {
    target: Box<dyn Target>,
    probe: Probe,
    scale: Scale,
    task: Task,
}

enum Task {
    Workloads,
    Memory,
    Build(u64),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let Some(arguments) = arguments()? else {
        println!("{HELP}");
        return Ok(());
    };
    let mut bench = Bench::new(arguments.target, arguments.probe, arguments.scale);
    match arguments.task {
        Task::Workloads => bench.workloads(),
        Task::Memory => bench.memory(),
        Task::Build(nodes) => bench.build(nodes),
    }
}

/// Reads the command line; nothing if help is asked for.
fn arguments() -> Result<Option<Arguments>, Failure> {
    let mut probe = Probe::Nothing;
    let mut scale = Scale::default();
    let mut task = Task::Workloads;
    let mut words = Vec::new();
    let mut command = Vec::new();
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("instructions") => probe = Probe::instructions(parser.value()?.into()),
            Long("cpu-time") => probe = Probe::CpuTime,
            Long("memory") => task = Task::Memory,
            Long("build") => task = Task::Build(parser.value()?.parse()?),
            Long("only") => scale.only = parser.value()?.string()?,
            Long("nodes") => scale.nodes = parser.value()?.parse()?,
            Long("children") => scale.children = parser.value()?.parse()?,
            Long("quick") => scale.quick = true,
            Short('h') | Long("help") => return Ok(None),
            Value(word) if words.len() < 3 => words.push(word.string()?),
            Value(word) => {
                command.push(word);
                command.extend(parser.raw_args()?);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    // What follows "--" reaches here as words, too: the first of them is the program.
    let target: Box<dyn Target> = match words.as_slice() {
        [mode] if mode == "core" => Box::new(Core::new()),
        [mode, name, path, program] if mode == "socket" => Box::new(Socket::new(
            name,
            PathBuf::from(path),
            program.into(),
            command,
        )),
        _ => return Ok(None),
    };
    Ok(Some(Arguments {
        target,
        probe,
        scale,
        task,
    }))
}
