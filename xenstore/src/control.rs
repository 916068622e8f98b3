//! CONTROL: what an administrator asks the server itself, one table of commands.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::answer::Answer;
use crate::connection::Connection;
use crate::counters::Counters;
use crate::database::Refusal;
use crate::domain::Domain;
use crate::extension;
use crate::ids::{ConnId, DomId};
use crate::layer;
use crate::lifecycle::parse_domid;
use crate::live_update;
use crate::policy;
use crate::privilege::Privileged;
use crate::quota::{Peaks, Quota};
use crate::server::Server;
use crate::storage::Storage;
use crate::wire::{Errno, decimal, strings};

/// Longest text of the `print` command that goes to the log.
const PRINT_MAX: usize = 256;
/// Bytes of the journal in a reply: with the line before them they fit.
const JOURNAL_PIECE: usize = 4000;

pub(crate) struct Command<S: Storage> {
    pub(crate) name: &'static str,
    pub(crate) parameters: &'static str,
    run: Run<S>,
}

/// Gets the parameters behind the command's name; gives the text of the reply.
type Run<S> = fn(&mut Server<S>, Privileged, &[&[u8]]) -> Result<String, Errno>;

/// All of them.
pub(crate) const fn commands<S: Storage>() -> [Command<S>; 11] {
    [
        command("check", "", check),
        command("counters", "[<domid>|total]", counters),
        command("help", "", help),
        command("journal", "[read <position>]", journal),
        command(
            "layer",
            "[list|help|add <word>|remove <number>|set <list>]",
            layer,
        ),
        command("log", "[on|off|+io|-io]", log),
        command("memreport", "", memreport),
        command("policy", "[list|help|set <list>]", policy),
        command("print", "<string>", print),
        command("quota", "[set <name> <val>|<domid>|max [-r]]", quota),
        command("quota-soft", "[set <name> <val>]", quota_soft),
    ]
}

const fn command<S: Storage>(
    name: &'static str,
    parameters: &'static str,
    run: Run<S>,
) -> Command<S> {
    Command {
        name,
        parameters,
        run,
    }
}

impl<S: Storage> Server<S> {
    /// Runs a command (protocol.md section 11).
    pub(crate) fn control(
        &mut self,
        token: Privileged,
        conn: ConnId,
        payload: &[u8],
    ) -> Result<Answer, Refusal> {
        let mut parts = payload.splitn(2, |byte| *byte == 0);
        if let (Some(name), Some(steps)) = (parts.next(), parts.next())
            && name == live_update::NAME.as_bytes()
        {
            return self.live_update(conn, steps);
        }
        let words: Vec<&[u8]> = strings(payload).collect();
        let (name, parameters) = words.split_first().ok_or(Errno::EINVAL)?;
        #[cfg(feature = "inject")]
        if let ([kind], b"crash", Some(injector)) = (parameters, *name, self.settings.injector) {
            return match injector(kind) {
                true => Ok(Answer::Text(done()?)),
                false => Err(Errno::EINVAL.into()),
            };
        }
        let command = commands()
            .into_iter()
            .find(|command| command.name.as_bytes() == *name)
            .ok_or(Errno::EINVAL)?;
        let text = (command.run)(self, token, parameters)?;
        Ok(Answer::Text(text))
    }
}

fn done() -> Result<String, Errno> {
    Ok(String::from("OK"))
}

fn help<S: Storage>(
    server: &mut Server<S>,
    _: Privileged,
    parameters: &[&[u8]],
) -> Result<String, Errno> {
    if !parameters.is_empty() {
        return Err(Errno::EINVAL);
    }
    let commands = commands::<S>();
    let known = commands
        .iter()
        .map(|command| (command.name, command.parameters));
    let all = known.chain(
        server
            .can_update()
            .then_some((live_update::NAME, live_update::PARAMETERS)),
    );
    Ok(all
        .map(|(name, parameters)| format!("{name:<15} {parameters}\n"))
        .collect())
}

/// Counts again what every domain has, and compares.
fn check<S: Storage>(
    server: &mut Server<S>,
    _: Privileged,
    parameters: &[&[u8]],
) -> Result<String, Errno> {
    if !parameters.is_empty() {
        return Err(Errno::EINVAL);
    }
    let wrong = server.miscounted();
    for incarnation in &wrong {
        log::error!(
            "check: the account of domain {} is wrong",
            incarnation.domid
        );
    }
    if wrong.is_empty() {
        done()
    } else {
        Err(Errno::EIO)
    }
}

/// What happened to a domain, or to all of them, those included that ended.
fn counters<S: Storage>(
    server: &mut Server<S>,
    _: Privileged,
    parameters: &[&[u8]],
) -> Result<String, Errno> {
    match parameters {
        [] | [b"total"] => Ok(server.domains.total().text()),
        [domid] => {
            let domain = server.domains.get(parse_domid(domid)?);
            let counters = domain.ok_or(Errno::ENOENT)?.counters();
            Ok(counters.map(Counters::text).unwrap_or_default())
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Lists the layers, outermost first, or changes them: `help` says which there are.
fn layer<S: Storage>(
    server: &mut Server<S>,
    _: Privileged,
    parameters: &[&[u8]],
) -> Result<String, Errno> {
    match parameters {
        [] | [b"list"] => Ok(server.layers.report()),
        [b"help"] => Ok(extension::help(layer::SORTS)),
        [b"add", word] => {
            server.add_layer_word(word).map_err(|error| {
                log::warn!("layer {error}");
                Errno::EINVAL
            })?;
            done()
        }
        [b"remove", place] => {
            let place = decimal(place, u32::MAX)?;
            server.remove_layer(usize::try_from(place).unwrap_or(usize::MAX))?;
            done()
        }
        [b"set"] => Ok(server.set_layers(&[])),
        [b"set", list] => Ok(server.set_layers(list)),
        _ => Err(Errno::EINVAL),
    }
}

/// Lists what is logged, or changes it: `io` is a line for each request and each reply.
fn log<S: Storage>(
    server: &mut Server<S>,
    _: Privileged,
    parameters: &[&[u8]],
) -> Result<String, Errno> {
    match parameters {
        [] => {
            let state = if server.traces { "on" } else { "off" };
            return Ok(format!("Log switch settings:\n{:<8}: {state}\n", "io"));
        }
        [b"on" | b"+io"] => server.traces = true,
        [b"off" | b"-io"] => server.traces = false,
        _ => return Err(Errno::EINVAL),
    }
    done()
}

/// What there is, and what it costs. C xenstored writes it to a file, of which there is none here.
fn memreport<S: Storage>(
    server: &mut Server<S>,
    _: Privileged,
    parameters: &[&[u8]],
) -> Result<String, Errno> {
    if !parameters.is_empty() {
        return Err(Errno::EINVAL);
    }
    let (mut domains, mut nodes, mut node_bytes) = (0_usize, 0_u64, 0_u64);
    for domain in server.domains.iter() {
        domains = domains.saturating_add(1);
        nodes = nodes.saturating_add(domain.usage.nodes);
        node_bytes = node_bytes.saturating_add(domain.usage.node_bytes);
    }
    let (mut connections, mut watches, mut bytes) = (0_usize, 0_u64, 0_u64);
    for connection in server.connections.iter() {
        connections = connections.saturating_add(1);
        watches = watches.saturating_add(connection.watches);
        bytes = bytes.saturating_add(connection.footprint());
    }
    Ok(format!(
        "domains: {domains}\nnodes: {nodes} in {node_bytes} bytes\nwatches: {watches}\nconnections: {connections} in {bytes} bytes\n"
    ))
}

/// Lists the policies, or replaces those behind `legacy`: `help` says which there are.
fn policy<S: Storage>(
    server: &mut Server<S>,
    _: Privileged,
    parameters: &[&[u8]],
) -> Result<String, Errno> {
    match parameters {
        [] | [b"list"] => Ok(server.policies.report()),
        [b"help"] => Ok(extension::help(policy::SORTS)),
        [b"set", list] => {
            server.set_policies(list).map_err(|error| {
                log::warn!("policy {error}; nothing has changed");
                Errno::EINVAL
            })?;
            done()
        }
        _ => Err(Errno::EINVAL),
    }
}

/// What the journal has, or a piece of it behind a line that says where in all of it the piece begins.
fn journal<S: Storage>(
    server: &mut Server<S>,
    _: Privileged,
    parameters: &[&[u8]],
) -> Result<String, Errno> {
    let log = server.store.journal().ok_or(Errno::ENOENT)?;
    match parameters {
        [] => Ok(log.report()),
        [b"read", position] => {
            let text = core::str::from_utf8(position).map_err(|_| Errno::EINVAL)?;
            let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
            let position = text.parse().ok().filter(|_| is_plain);
            let (start, piece) = log
                .read(position.ok_or(Errno::EINVAL)?, JOURNAL_PIECE)
                .ok_or(Errno::EINVAL)?;
            Ok(format!("{start}\n{piece}"))
        }
        _ => Err(Errno::EINVAL),
    }
}

fn print<S: Storage>(
    _: &mut Server<S>,
    _: Privileged,
    parameters: &[&[u8]],
) -> Result<String, Errno> {
    let [text] = parameters else {
        return Err(Errno::EINVAL);
    };
    let text = text.get(..PRINT_MAX).unwrap_or(text);
    log::info!("control: {}", text.escape_ascii());
    done()
}

fn quota<S: Storage>(
    server: &mut Server<S>,
    _: Privileged,
    parameters: &[&[u8]],
) -> Result<String, Errno> {
    match parameters {
        [] => {
            let hard = Quota::all().filter(|quota| *quota != Quota::SoftMemory);
            Ok(settings(server, hard.map(|quota| (quota.name(), quota))))
        }
        [b"set", name, limit] => set(server, name, limit),
        [b"max"] => Ok(peaks(server)),
        [b"max", b"-r"] => {
            server.peaks = Peaks::default();
            done()
        }
        [domid] => usage(server, parse_domid(domid)?),
        _ => Err(Errno::EINVAL),
    }
}

fn quota_soft<S: Storage>(
    server: &mut Server<S>,
    _: Privileged,
    parameters: &[&[u8]],
) -> Result<String, Errno> {
    match parameters {
        [] => Ok(settings(
            server,
            [("memory", Quota::SoftMemory)].into_iter(),
        )),
        [b"set", b"memory", limit] => set(server, b"soft-memory", limit),
        _ => Err(Errno::EINVAL),
    }
}

fn settings<S: Storage>(
    server: &Server<S>,
    shown: impl Iterator<Item = (&'static str, Quota)>,
) -> String {
    let line = |(name, quota): (&str, Quota)| {
        let limit = server.settings.quotas.get(quota);
        format!("{name:<17}: {limit:8} {}\n", quota.help())
    };
    let lines: String = shown.map(line).collect();
    format!("Quota settings:\n{lines}")
}

fn peaks<S: Storage>(server: &Server<S>) -> String {
    let line = |quota: Quota| format!("{:<17}: {:8}\n", quota.name(), server.peaks.get(quota));
    let lines: String = MEASURED.into_iter().map(line).collect();
    format!("Max. seen accounting values:\n{lines}")
}

fn set<S: Storage>(server: &mut Server<S>, name: &[u8], limit: &[u8]) -> Result<String, Errno> {
    let quota = Quota::from_name(name).ok_or(Errno::EINVAL)?;
    let limit = decimal(limit, u32::MAX)?;
    if limit == 0 {
        return Err(Errno::EINVAL);
    }
    server.settings.quotas.set(quota, limit);
    done()
}

fn usage<S: Storage>(server: &Server<S>, domid: DomId) -> Result<String, Errno> {
    let domain = server.domains.get(domid).ok_or(Errno::ENOENT)?;
    let line = |quota: Quota| {
        let limit = server.settings.quotas.of(&domain.overrides, quota);
        format!(
            "{:<17}: {:8} (max {limit:8})\n",
            quota.name(),
            used(server, domain, quota)
        )
    };
    let lines: String = MEASURED.into_iter().map(line).collect();
    Ok(format!("Domain {domid}:\n{lines}"))
}

/// The quotas of which a domain has so much at a time.
const MEASURED: [Quota; 5] = [
    Quota::Nodes,
    Quota::Watches,
    Quota::Outstanding,
    Quota::Memory,
    Quota::Transactions,
];

/// How much of one of [`MEASURED`] a domain has.
fn used<S: Storage>(server: &Server<S>, domain: &Domain, quota: Quota) -> u64 {
    let connection = domain
        .connection
        .and_then(|conn| server.connections.get(conn));
    let count = |items: usize| u64::try_from(items).unwrap_or(u64::MAX);
    let of = |part: fn(&Connection<S>) -> u64| connection.map_or(0, part);
    match quota {
        Quota::Nodes => domain.usage.nodes,
        Quota::Watches => of(|connection| connection.watches),
        Quota::Memory => of(Connection::footprint).saturating_add(domain.usage.node_bytes),
        Quota::Outstanding => connection.map_or(0, |own| count(own.outstanding.len())),
        Quota::Transactions => connection.map_or(0, |own| count(own.transactions.len())),
        _ => 0,
    }
}
