//! The store in a process of its own, without sockets: what the unikernel runs for each request, and nothing else.
//!
//! Requests come and output goes through pipes. That is not measured: callgrind counts inside [`serve_measured`] alone.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};

use xenstore::{
    Action, ConnId, DomId, Errno, Identity, Instant, Outcome, Progress, Server, Settings, UniqueId,
};

use crate::target::Failure;

/// The domain that all clients speak for.
const DOM0: DomId = DomId::new(0);
/// What the server may spend at a time; one request is far below it.
const TURN_BUDGET: u32 = 100_000;
/// Bytes of a number on the pipes: little endian.
pub(crate) const WORD: usize = 4;

/// Output of the server, one connection's after the other's.
#[derive(Default)]
struct Drained {
    bytes: Vec<u8>,
    pieces: Vec<(ConnId, usize)>,
}

/// Serves the pipes until they end, then ends the process with the store still in memory, for a tool that counts the heap.
///
/// In: a client's number, a length, a request. A length of 0 opens the client; numbers count from 0. Out, for each request: the number of
/// pieces, then for each piece a client's number, a length, output.
pub(crate) fn serve() -> Result<(), Failure> {
    let mut server = Server::new(Settings::new(DOM0, DOM0));
    let mut clients = Vec::new();
    let mut numbers = BTreeMap::new();
    let mut drained = Drained::default();
    let mut input = BufReader::new(std::io::stdin().lock());
    let mut output = std::io::stdout().lock();
    while let Ok(client) = read_word(&mut input) {
        let mut request = vec![0; usize::try_from(read_word(&mut input)?)?];
        input.read_exact(&mut request)?;
        if request.is_empty() {
            let conn = server.open_socket();
            clients.push(conn);
            numbers.insert(conn, client);
            continue;
        }
        let conn = clients.get(usize::try_from(client)?);
        let conn = *conn.ok_or("no such client")?;
        if !serve_measured(&mut server, conn, &request, &mut drained) {
            return Err("the store did not take the request".into());
        }
        output.write_all(&answer(&mut drained, &numbers)?)?;
        output.flush()?;
    }
    std::process::exit(0)
}

fn answer(drained: &mut Drained, numbers: &BTreeMap<ConnId, u32>) -> Result<Vec<u8>, Failure> {
    let pieces = u32::try_from(drained.pieces.len())?;
    let mut answer = Vec::from(pieces.to_le_bytes());
    let mut rest = drained.bytes.as_slice();
    for (conn, length) in drained.pieces.drain(..) {
        let (piece, others) = rest.split_at_checked(length).ok_or("output is missing")?;
        rest = others;
        // A domain's ring is nobody's: its number is none of a client's.
        let client = numbers.get(&conn).copied().unwrap_or(u32::MAX);
        answer.extend(client.to_le_bytes());
        answer.extend(u32::try_from(length)?.to_le_bytes());
        answer.extend(piece);
    }
    drained.bytes.clear();
    Ok(answer)
}

pub(crate) fn read_word(input: &mut impl Read) -> Result<u32, Failure> {
    let mut word = [0; WORD];
    input.read_exact(&mut word)?;
    Ok(u32::from_le_bytes(word))
}

/// One request from its first byte to the last of its output: callgrind counts inside this function alone (scripts/bench).
#[inline(never)]
fn serve_measured(
    server: &mut Server,
    conn: ConnId,
    mut request: &[u8],
    drained: &mut Drained,
) -> bool {
    while !request.is_empty() {
        let Ok(taken) = server.handle_bytes(conn, request) else {
            return false;
        };
        request = request.get(taken..).unwrap_or_default();
        if taken == 0 {
            return false;
        }
    }
    loop {
        let progress = server.run(Instant::default(), TURN_BUDGET);
        let mut acted = false;
        while let Some(action) = server.poll_action() {
            act(server, &action);
            acted = true;
        }
        if progress == Progress::Idle && !acted {
            break;
        }
    }
    while let Some(conn) = server.poll_ready() {
        drain(server, conn, drained);
    }
    true
}

fn drain(server: &mut Server, conn: ConnId, drained: &mut Drained) {
    let before = drained.bytes.len();
    loop {
        let output = server.poll_output(conn);
        let length = output.len();
        if length == 0 {
            break;
        }
        drained.bytes.extend_from_slice(output);
        server.consume_output(conn, length);
    }
    let length = drained.bytes.len().saturating_sub(before);
    drained.pieces.push((conn, length));
}

/// Every ordinary domid names a domain here, and every ring can be mapped.
fn act(server: &mut Server, action: &Action) {
    let identity = |domid: DomId| Identity {
        domid,
        unique: UniqueId(u128::from(domid.get())),
    };
    match *action {
        Action::Connect { ticket, domid, .. } if domid.is_ordinary() => {
            server.handle_completed(ticket, Outcome::Connected(identity(domid)));
        }
        Action::Connect { ticket, .. } => {
            server.handle_completed(ticket, Outcome::Refused(Errno::EINVAL));
        }
        Action::Identify { ticket, domid } => {
            let found = domid.is_ordinary().then(|| identity(domid));
            server.handle_completed(ticket, Outcome::Identified(found));
        }
        Action::Disconnect { .. } => {}
    }
}
