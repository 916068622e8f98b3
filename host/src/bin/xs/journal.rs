//! The journal of a store that keeps one: fetched, and done again on another store.

use std::error::Error;
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use xenstore::wire::Kind;

use crate::client::{Client, text};

type Outcome = Result<ExitCode, Box<dyn Error>>;

/// A transaction is tried so often.
const TRIALS_MAX: u32 = 100;

/// Prints the journal from a position on, as far as it goes now; the position behind it goes to the standard error.
pub(crate) fn fetch(store: &Path, from: u64) -> Outcome {
    let mut client = Client::connect(store)?;
    let mut out = io::stdout().lock();
    let mut position = from;
    loop {
        let payload = format!("journal\0read\0{position}\0");
        let reply = match client.ask(Kind::Control, 0, payload.as_bytes())? {
            Ok(reply) => text(&reply),
            Err(error) if error == "ENOENT" => return Err("this store keeps no journal".into()),
            Err(error) => return Err(format!("position {position}: {error}").into()),
        };
        let (start, piece) = reply.split_once('\n').ok_or("a reply without a position")?;
        let start: u64 = start.parse()?;
        if start > position && position > 0 {
            let lost = start - position;
            return Err(format!("{lost} bytes from position {position} on are dropped").into());
        }
        if piece.is_empty() {
            eprintln!("position: {start}");
            return Ok(ExitCode::SUCCESS);
        }
        out.write_all(piece.as_bytes())?;
        position = start + u64::try_from(piece.len())?;
    }
}

/// Does again what a journal has, each commit as one.
pub(crate) fn replay(store: &Path, file: &str) -> Outcome {
    let journal = match file {
        "-" => {
            let mut journal = String::new();
            io::stdin().read_to_string(&mut journal)?;
            journal
        }
        file => fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?,
    };
    let commits = commits(&journal).map_err(|error| format!("{file}: {error}"))?;
    let mut client = Client::connect(store)?;
    let mut refused = 0_u64;
    for edits in &commits {
        refused += commit(&mut client, edits)?;
    }
    println!(
        "{} commits done again, {refused} changes refused",
        commits.len()
    );
    Ok(if refused == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// A change of one node.
#[derive(Debug, PartialEq, Eq)]
struct Edit<'j> {
    path: &'j str,
    /// Permissions and value; none if it is removed.
    set: Option<(Vec<&'j str>, Vec<u8>)>,
}

/// Reads a journal. What of the first commit is missing because it was dropped is no matter; a gap is.
fn commits(journal: &str) -> Result<Vec<Vec<Edit<'_>>>, String> {
    let mut commits: Vec<Vec<Edit<'_>>> = Vec::new();
    let mut before: Option<(u64, u64, u64)> = None;
    for (number, line) in (1..).zip(journal.split_inclusive('\n')) {
        let here = |what: &str| format!("line {number}: {what}");
        let line = line.strip_suffix('\n').ok_or(here("it has no end"))?;
        let (place, edit) = parse(line).ok_or(here("this is no line of a journal"))?;
        match before {
            None => commits.push(Vec::new()),
            Some((commit, last, of)) if last == of => {
                if place.0 != commit + 1 || place.1 != 1 {
                    return Err(here("commits are missing before it"));
                }
                commits.push(Vec::new());
            }
            Some((commit, last, of)) => {
                if place != (commit, last + 1, of) {
                    return Err(here("changes of a commit are missing before it"));
                }
            }
        }
        before = Some(place);
        commits.last_mut().ok_or(here("no commit"))?.push(edit);
    }
    match before {
        Some((commit, last, of)) if last < of => Err(format!("commit {commit} is not all there")),
        _ => Ok(commits),
    }
}

fn parse(line: &str) -> Option<((u64, u64, u64), Edit<'_>)> {
    let (place, rest) = line.split_once(' ')?;
    let (commit, place) = place.split_once('.')?;
    let (number, of) = place.split_once('/')?;
    let place = (commit.parse().ok()?, number.parse().ok()?, of.parse().ok()?);
    let (_ms, rest) = rest.split_once(' ')?;
    if let Some(path) = rest.strip_prefix("rm ") {
        return Some((place, Edit { path, set: None }));
    }
    let mut words = rest.strip_prefix("set ")?.splitn(3, ' ');
    let (path, permissions, value) = (words.next()?, words.next()?, words.next()?);
    let set = Some((permissions.split(',').collect(), unescape(value)?));
    Some((place, Edit { path, set }))
}

/// The bytes that a value stands for.
fn unescape(value: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next()? {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'x' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(str::from_utf8(&digits).ok()?, 16).ok()?
            }
            quoted => quoted,
        });
    }
    Some(bytes)
}

/// Does a commit again; gives how many of its changes are refused.
fn commit(client: &mut Client, edits: &[Edit<'_>]) -> Result<u64, Box<dyn Error>> {
    for _ in 0..TRIALS_MAX {
        let begun = client.ask(Kind::TransactionStart, 0, b"\0")??;
        let tx_id = text(&begun).parse()?;
        let mut refused = 0;
        for edit in edits {
            if let Err(error) = change(client, tx_id, edit)? {
                eprintln!("{}: {error}", edit.path);
                refused += 1;
            }
        }
        match client.ask(Kind::TransactionEnd, tx_id, b"T\0")? {
            Ok(_) => return Ok(refused),
            Err(error) if error == "EAGAIN" => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err("others change what is to be changed, again and again".into())
}

fn change(client: &mut Client, tx_id: u32, edit: &Edit<'_>) -> io::Result<Result<(), String>> {
    let path = [edit.path.as_bytes(), b"\0"].concat();
    let Some((permissions, value)) = &edit.set else {
        return Ok(match client.ask(Kind::Rm, tx_id, &path)? {
            // It was made and removed in the same commit.
            Err(error) if error == "ENOENT" => Ok(()),
            reply => reply.map(drop),
        });
    };
    let is_special = edit.path.starts_with('@');
    if !is_special
        && let Err(error) = client.ask(Kind::Write, tx_id, &[&path, &value[..]].concat())?
    {
        return Ok(Err(error));
    }
    let entries = permissions
        .iter()
        .flat_map(|entry| [entry.as_bytes(), b"\0"]);
    let payload = [path, entries.flatten().copied().collect()].concat();
    Ok(client.ask(Kind::SetPerms, tx_id, &payload)?.map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_back() {
        let journal = "3.2/2 7 rm /b\n4.1/1 8 set /a n0,r1 x y\\n\\xff\\\\\\'\n";
        let read = commits(journal).unwrap();
        let gone = Edit {
            path: "/b",
            set: None,
        };
        let set = Edit {
            path: "/a",
            set: Some((vec!["n0", "r1"], b"x y\n\xff\\'".to_vec())),
        };
        assert_eq!(read, [[gone], [set]]);
    }

    #[test]
    fn gaps_and_other_texts_are_found() {
        let wrong = [
            "1.1/1 0 rm /a",
            "1.1/1 0 rm /a\n3.1/1 0 rm /b\n",
            "1.1/3 0 rm /a\n1.3/3 0 rm /b\n",
            "1.1/2 0 rm /a\n",
            "1.1/2 0 rm /a\n2.1/1 0 rm /a\n",
            "hello\n",
            "1.1/1 0 set /a n0\n",
            "1.1/1 0 set /a n0 \\x1\n",
        ];
        for journal in wrong {
            assert!(commits(journal).is_err(), "{journal}");
        }
        assert_eq!(commits("").unwrap().len(), 0);
    }
}
