//! `bench`: the workloads of scripts/bench, run against one server; each figure is a line of JSON.
//!
//! The same requests go to the store alone (`core`) and to a server behind a unix socket (`socket`), so that figures can be compared. What an
//! operation costs is read from outside the measured process: from callgrind, or from Linux.

mod core;
mod guest;
mod probe;
mod socket;
mod store;
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
bench core [OPTION]... -- COMMAND... bench store     the store alone, in a process that COMMAND starts
bench socket NAME PATH [OPTION]... -- COMMAND...     the server that COMMAND starts, which listens at PATH
bench store                                          the process that the first one talks to

Runs the workloads of scripts/bench and prints a line of JSON for each figure.

  --instructions PREFIX   count instructions: the server runs under callgrind with --callgrind-out-file=PREFIX
  --cpu-time              count the nanoseconds that the server runs, in user space and in the kernel
  --profiles DIRECTORY    after --instructions: keep each figure's profile there
  --memory                count bytes of resident memory for each node, and nothing else
  --build NODES           make that many nodes and exit, for a tool that counts the heap
  --only WORD             only the groups of workloads that have WORD in their name
  --nodes NUMBER          nodes of the largest store; default: 1000000
  --children NUMBER       children of the largest directory; default: 100000
  --quick                 less of everything: the figures are rough";

/// Words before the program that is to be started: "core".
const CORE_WORDS: usize = 1;
/// Words before the program that is to be started: "socket", the name and the path.
const SOCKET_WORDS: usize = 3;

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
    if std::env::args().nth(1).as_deref() == Some("store") {
        return store::serve();
    }
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
            Long("profiles") => probe.keep(parser.value()?.into()),
            Long("memory") => task = Task::Memory,
            Long("build") => task = Task::Build(parser.value()?.parse()?),
            Long("only") => scale.only = parser.value()?.string()?,
            Long("nodes") => scale.nodes = parser.value()?.parse()?,
            Long("children") => scale.children = parser.value()?.parse()?,
            Long("quick") => scale.quick = true,
            Short('h') | Long("help") => return Ok(None),
            Value(word) if before(&words) == words.len() => {
                command.push(word);
                command.extend(parser.raw_args()?);
            }
            Value(word) => words.push(word.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let mut command = command.into_iter();
    let target: Box<dyn Target> = match (words.as_slice(), command.next()) {
        ([mode], Some(program)) if mode == "core" => {
            Box::new(Core::new(program, command.collect()))
        }
        ([mode, name, path], Some(program)) if mode == "socket" => {
            let path = PathBuf::from(path);
            Box::new(Socket::new(name, path, program, command.collect()))
        }
        _ => return Err("say what to measure; --help lists it".into()),
    };
    Ok(Some(Arguments {
        target,
        probe,
        scale,
        task,
    }))
}

/// How many words come before the program that is to be started.
fn before(words: &[String]) -> usize {
    match words.first() {
        Some(mode) if mode == "core" => CORE_WORDS,
        _ => SOCKET_WORDS,
    }
}
