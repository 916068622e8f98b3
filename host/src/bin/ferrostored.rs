//! `ferrostored`: the store of the unikernel as an ordinary daemon, for those who develop against xenstore or test it.
//!
//! It serves a unix socket as C xenstored does, so that `xenstore-*`, libxenstore and pyxs work with `XENSTORED_PATH` set to it.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use host::daemon::Daemon;
use lexopt::prelude::*;
use xenstore::{DomId, Nesting, Quota, Settings, StorageKind, layer, policy};

const HELP: &str = "\
ferrostored [--socket PATH] [--domains N] [--quota NAME=LIMIT]... [--transactions WORD] [--store WORD]
            [--policy LIST] [--layer LIST] [--log LEVEL]

Serves xenstore on a unix socket, in the foreground.

  --socket PATH        where to listen; default: $XENSTORED_PATH, else /run/xenstored/socket
  --domains N          make domains 1 to N, up to 1000, with rings in memory: whoever connects to PATH.dom1 plays domain 1, one
                       client at a time; default: 0
  --quota NAME=LIMIT   a limit for unprivileged domains
  --transactions WORD  who may begin a transaction inside another: nobody (flat), domains to which SET_FEATURE gives that (granted), or
                       everybody (nested); default: flat
  --store WORD         how nodes are kept: tree, flat, or with a journal of all changes: journal, journal:flat; default: tree
  --policy LIST        who may do what; default: legacy (docs/policies.md)
  --layer LIST         what stands between clients and the store; default: nothing (docs/policies.md)
  --log LEVEL          off, error, warn, info, debug or trace; default: info";
const DEFAULT_SOCKET: &str = "/run/xenstored/socket";
/// The domain that clients of the socket speak for.
const DOM0: DomId = DomId::new(0);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ferrostored: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut socket =
        std::env::var_os("XENSTORED_PATH").map_or(DEFAULT_SOCKET.into(), PathBuf::from);
    let mut settings = Settings::new(DOM0, DOM0);
    let mut domains = 0;
    let mut level = log::LevelFilter::Info;
    let mut ignored = Vec::new();
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("socket") => socket = arguments.value()?.into(),
            Long("domains") => domains = arguments.value()?.parse()?,
            Long("quota") => set_quota(&mut settings, &arguments.value()?.string()?)?,
            Long("transactions") => {
                let nesting = Nesting::parse(arguments.value()?.string()?.as_bytes())?;
                (settings.features, settings.grantable) = nesting.features();
            }
            Long("store") => {
                settings.storage = StorageKind::parse(arguments.value()?.string()?.as_bytes())?;
            }
            Long("policy") => {
                let chosen = policy::Choice::parse(arguments.value()?.as_encoded_bytes());
                settings.policies = chosen.map_err(|error| format!("policy {error}"))?;
            }
            Long("layer") => {
                let (layers, errors) = layer::Choice::parse(arguments.value()?.as_encoded_bytes());
                settings.layers = layers;
                ignored.extend(errors);
            }
            Long("log") => level = arguments.value()?.parse()?,
            Short('h') | Long("help") => {
                println!("{HELP}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    env_logger::Builder::new().filter_level(level).init();
    for error in ignored {
        log::warn!("ignoring layer {error}");
    }
    serve(&socket, settings, domains)
}

fn serve(socket: &Path, settings: Settings, domains: u16) -> Result<(), Box<dyn Error>> {
    let mut daemon = Daemon::listen(socket, settings, domains)
        .map_err(|error| format!("cannot listen at {}: {error}", socket.display()))?;
    log::info!("serving {}", socket.display());
    if domains > 0 {
        log::info!("domain N is played at {}.domN", socket.display());
    }
    daemon.serve()?;
    Ok(())
}

fn set_quota(settings: &mut Settings, text: &str) -> Result<(), Box<dyn Error>> {
    let (name, limit) = text.split_once('=').ok_or("--quota takes NAME=LIMIT")?;
    let quota =
        Quota::from_name(name.as_bytes()).ok_or_else(|| format!("there is no quota \"{name}\""))?;
    settings.quotas.set(quota, limit.parse()?);
    Ok(())
}
