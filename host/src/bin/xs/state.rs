//! State streams for people.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{Read, Write};
use std::process::ExitCode;

use xenstore::state::{Format, Host, HostGlobal, HostLink, Records, Restored};
use xenstore::{ConnId, DomId, Instant, Server, Settings};

type Outcome = Result<ExitCode, Box<dyn Error>>;

/// Prints a stream, as far as it is in order.
pub(crate) fn dump(file: &str) -> Outcome {
    let stream = read(file)?;
    let mut out = std::io::stdout().lock();
    let records = match Records::new(&stream) {
        Ok(records) => records,
        Err(error) => return damaged(file, &error),
    };
    writeln!(out, "xenstore state stream, version {}", records.version())?;
    for record in records {
        match record {
            Ok(record) => writeln!(out, "{:#08x} {record}", record.offset)?,
            Err(error) => return damaged(file, &error),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a stream as a server would.
pub(crate) fn check(file: &str) -> Outcome {
    let stream = read(file)?;
    let restored = match import(&stream) {
        Ok(restored) => restored,
        Err(error) => return damaged(file, &error),
    };
    let mut records = 0_u64;
    let mut nodes = 0_u64;
    for record in Records::new(&stream)?.flatten() {
        records += 1;
        nodes += u64::from(record.node_path().is_some());
    }
    let (version, connections) = (restored.version, restored.links.len());
    let kind = if restored.is_own {
        "with records of Ferrostore's own"
    } else {
        "with documented records only"
    };
    println!(
        "{file}: in order; version {version}, {kind}: {records} records, {connections} connections, {nodes} nodes"
    );
    for (kind, count) in &restored.skipped {
        println!("{file}: {count} records of the unknown type {kind:#x} are skipped");
    }
    for domid in &restored.unconfirmed {
        println!("{file}: it does not say who domain {domid} is");
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what one stream has and the other has not.
pub(crate) fn diff(file: &str, other: &str) -> Outcome {
    let (stream, others) = (read(file)?, read(other)?);
    let (own, others) = match (lines(&stream), lines(&others)) {
        (Ok(own), Ok(others)) => (own, others),
        (Err(error), _) => return damaged(file, &error),
        (_, Err(error)) => return damaged(other, &error),
    };
    let mut differ = false;
    let mut out = std::io::stdout().lock();
    let all: BTreeMap<&String, ()> = own
        .keys()
        .chain(others.keys())
        .map(|line| (line, ()))
        .collect();
    for line in all.into_keys() {
        let count = |lines: &BTreeMap<String, usize>| lines.get(line).copied().unwrap_or_default();
        let (here, there) = (count(&own), count(&others));
        for (sign, times) in [
            ('-', here.saturating_sub(there)),
            ('+', there.saturating_sub(here)),
        ] {
            for _ in 0..times {
                differ = true;
                writeln!(out, "{sign} {line}")?;
            }
        }
    }
    Ok(ExitCode::from(u8::from(differ)))
}

/// Writes a stream in another format.
pub(crate) fn convert(file: &str, out: &str, format: &str) -> Outcome {
    let format = match format {
        "v1" => Format::V1,
        "v2" => Format::V2,
        "own" => Format::Own,
        other => return Err(format!("there is no format {other}: v1, v2 or own").into()),
    };
    let stream = read(file)?;
    let restored = match import(&stream) {
        Ok(restored) => restored,
        Err(error) => return damaged(file, &error),
    };
    let host = SameHost {
        global: restored.host,
        links: restored
            .links
            .into_iter()
            .map(|link| (link.conn, link.host))
            .collect(),
    };
    let mut converted = Vec::new();
    let left_out = restored
        .server
        .export(format, written(&stream), &host, &mut converted);
    for loss in left_out {
        println!("{file}: left out: {loss}");
    }
    std::fs::write(out, converted).map_err(|error| format!("{out}: {error}"))?;
    Ok(ExitCode::SUCCESS)
}

/// What a stream says the host had.
struct SameHost {
    global: HostGlobal,
    links: BTreeMap<ConnId, HostLink>,
}

impl Host for SameHost {
    fn link(&self, conn: ConnId) -> HostLink {
        self.links.get(&conn).cloned().unwrap_or_default()
    }

    fn global(&self) -> HostGlobal {
        self.global.clone()
    }
}

fn import(stream: &[u8]) -> Result<Restored, xenstore::state::StateError> {
    let dom0 = DomId::new(0);
    Server::import(stream, Settings::new(dom0, dom0), written(stream))
}

/// When a stream was written: no time has passed since then for whom it is only shown to.
fn written(stream: &[u8]) -> Instant {
    let records = Records::new(stream).into_iter().flatten().flatten();
    let mut written = records.filter_map(|record| record.written());
    written.next().unwrap_or_default()
}

/// The records as they are shown, each with how often it is there.
fn lines(stream: &[u8]) -> Result<BTreeMap<String, usize>, xenstore::state::StateError> {
    let mut lines = BTreeMap::new();
    for record in Records::new(stream)? {
        let times = lines.entry(record?.to_string()).or_insert(0);
        *times += 1;
    }
    Ok(lines)
}

fn damaged(file: &str, error: &xenstore::state::StateError) -> Outcome {
    eprintln!("{file}: {error}");
    Ok(ExitCode::FAILURE)
}

fn read(file: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut stream = Vec::new();
    if file == "-" {
        std::io::stdin().lock().read_to_end(&mut stream)?;
    } else {
        stream = std::fs::read(file).map_err(|error| format!("{file}: {error}"))?;
    }
    Ok(stream)
}
