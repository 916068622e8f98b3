//! CONTROL: what an administrator asks the server itself, one table of commands.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::answer::Answer;
use crate::domain::Domain;
use crate::ids::DomId;
use crate::lifecycle::parse_domid;
use crate::privilege::Privileged;
use crate::quota::{Quota, within};
use crate::server::Server;
use crate::wire::{Errno, decimal, strings};

/// Longest text of the `print` command that goes to the log.
const PRINT_MAX: usize = 256;

struct Command {
    name: &'static str,
    parameters: &'static str,
    run: Run,
}

/// Gets the parameters behind the command's name; gives the text of the reply.
type Run = fn(&mut Server, Privileged, &[&[u8]]) -> Result<String, Errno>;

const COMMANDS: [Command; 5] = [
    Command {
        name: "check",
        parameters: "",
        run: check,
    },
    Command {
        name: "help",
        parameters: "",
        run: help,
    },
    Command {
        name: "print",
        parameters: "<string>",
        run: print,
    },
    Command {
        name: "quota",
        parameters: "[set <name> <val>|<domid>]",
        run: quota,
    },
    Command {
        name: "quota-soft",
        parameters: "[set <name> <val>]",
        run: quota_soft,
    },
];

impl Server {
    /// Runs a command (protocol.md section 11).
    pub(crate) fn control(&mut self, token: Privileged, payload: &[u8]) -> Result<Answer, Errno> {
        let words: Vec<&[u8]> = strings(payload).collect();
        let (name, parameters) = words.split_first().ok_or(Errno::EINVAL)?;
        let command = COMMANDS
            .iter()
            .find(|command| command.name.as_bytes() == *name)
            .ok_or(Errno::EINVAL)?;
        (command.run)(self, token, parameters).map(Answer::Text)
    }
}

fn done() -> Result<String, Errno> {
    Ok(String::from("OK"))
}

fn help(_: &mut Server, _: Privileged, _: &[&[u8]]) -> Result<String, Errno> {
    let line = |command: &Command| format!("{:<15} {}\n", command.name, command.parameters);
    Ok(COMMANDS.iter().map(line).collect())
}

/// Counts again what every domain has, and compares.
fn check(server: &mut Server, _: Privileged, parameters: &[&[u8]]) -> Result<String, Errno> {
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

fn print(_: &mut Server, _: Privileged, parameters: &[&[u8]]) -> Result<String, Errno> {
    let [text] = parameters else {
        return Err(Errno::EINVAL);
    };
    let text = text.get(..PRINT_MAX).unwrap_or(text);
    log::info!("control: {}", text.escape_ascii());
    done()
}

fn quota(server: &mut Server, _: Privileged, parameters: &[&[u8]]) -> Result<String, Errno> {
    match parameters {
        [] => Ok(settings(server, |quota| quota != Quota::SoftMemory)),
        [b"set", name, limit] => set(server, name, limit),
        [domid] => usage(server, parse_domid(domid)?),
        _ => Err(Errno::EINVAL),
    }
}

fn quota_soft(server: &mut Server, _: Privileged, parameters: &[&[u8]]) -> Result<String, Errno> {
    match parameters {
        [] => Ok(settings(server, |quota| quota == Quota::SoftMemory)),
        [b"set", b"memory", limit] => set(server, b"soft-memory", limit),
        _ => Err(Errno::EINVAL),
    }
}

fn settings(server: &Server, shown: impl Fn(Quota) -> bool) -> String {
    let line = |quota: Quota| {
        let limit = server.settings.quotas.get(quota);
        format!("{:<17}: {limit:8} {}\n", quota.name(), quota.help())
    };
    let lines: String = Quota::all()
        .filter(|quota| shown(*quota))
        .map(line)
        .collect();
    format!("Quota settings:\n{lines}")
}

fn set(server: &mut Server, name: &[u8], limit: &[u8]) -> Result<String, Errno> {
    let quota = Quota::from_name(name).ok_or(Errno::EINVAL)?;
    let limit = decimal(limit, u32::MAX)?;
    if limit == 0 {
        return Err(Errno::EINVAL);
    }
    server.settings.quotas.set(quota, limit);
    done()
}

fn usage(server: &Server, domid: DomId) -> Result<String, Errno> {
    let domain = server.domains.get(domid).ok_or(Errno::ENOENT)?;
    let transactions = domain
        .connection
        .and_then(|conn| server.connections.get(&conn));
    let transactions = transactions.map_or(0, |connection| connection.transactions.len());
    let line = |(quota, used): (Quota, u64)| {
        let limit = server.settings.quotas.of(&domain.overrides, quota);
        let mark = if within(used, limit) { "" } else { " over" };
        format!("{:<17}: {used:8} (max {limit:8}){mark}\n", quota.name())
    };
    let lines: String = used(domain, transactions).into_iter().map(line).collect();
    Ok(format!("Domain {domid}:\n{lines}"))
}

fn used(domain: &Domain, transactions: usize) -> [(Quota, u64); 4] {
    [
        (Quota::Nodes, domain.usage.nodes),
        (Quota::Watches, domain.usage.watches),
        (
            Quota::Transactions,
            u64::try_from(transactions).unwrap_or(u64::MAX),
        ),
        (Quota::Memory, domain.usage.memory()),
    ]
}
