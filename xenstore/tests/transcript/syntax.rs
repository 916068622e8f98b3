//! The text of a transcript, read into cases and steps. One line is one step.

use std::collections::BTreeSet;

use super::message::kind;

/// One independent story: it begins with a server of its own.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) line: usize,
    pub(crate) needs: BTreeSet<Need>,
    pub(crate) steps: Vec<Step>,
}

/// What a host must be able to do for a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// Domains besides the privileged one, which come and go as the text says.
    Domains,
    /// A server that nothing else has used: the case looks at what it holds or sets at the start, or at global settings.
    FreshServer,
    /// Time that passes when the text says so.
    Clock,
    /// Clients that stop reading, without a buffer on the way that hides it.
    Unread,
    /// Rings: guests that ask for a new connection, or break theirs.
    Ring,
}

impl Need {
    /// What a host without it says.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Domains => "there are no other domains",
            Self::FreshServer => "the server is not fresh",
            Self::Clock => "time passes as it will",
            Self::Unread => "clients always read",
            Self::Ring => "the ring's page is out of reach",
        }
    }
}

/// A line.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) line: usize,
    pub(crate) text: String,
    pub(crate) action: Action,
}

/// What a line says.
#[derive(Debug)]
pub(crate) enum Action {
    Request {
        from: u16,
        transaction: Transaction,
        kind: u32,
        payload: Vec<u8>,
    },
    /// A header with its own length, and what follows it.
    Header {
        from: u16,
        kind: u32,
        len: u32,
        bytes: Vec<u8>,
    },
    Bytes {
        from: u16,
        bytes: Vec<u8>,
    },
    Reply {
        to: u16,
        expected: Expected,
    },
    Event {
        to: u16,
        payload: Vec<Piece>,
    },
    /// The client has received all there is.
    Nothing {
        to: u16,
    },
    Stopped {
        to: u16,
    },
    /// From now on the client's bytes go out in pieces of this size.
    Chunks {
        from: u16,
        size: usize,
    },
    /// The domain exists, is introduced, and owns its home.
    SetUp {
        domid: u16,
    },
    Introduced {
        domid: u16,
    },
    Host(Directive),
}

/// What only the host can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Directive {
    /// A domain that was not there before has this domid; what had it before is gone, and nobody has told the server.
    Exists(u16),
    /// As [`Directive::Exists`], but its ring cannot be mapped.
    ExistsWithoutRing(u16),
    /// The domain is gone, and nobody has told the server.
    Vanishes(u16),
    /// The domain's ring was connected when the server started.
    StartsConnected(u16),
    /// The server is told, in one go, that these domains have shut down.
    ShutDown(Vec<u16>),
    /// These domains end, and the server is told in one go.
    Die(Vec<u16>),
    /// The guest asks for a new connection through its ring page.
    Reconnects(u16),
    /// The ring's indices are found broken.
    BreaksRing(u16),
    /// The client takes no more bytes.
    StopsReading(u16),
    ReadsAgain(u16),
    /// Milliseconds pass.
    TimePasses(u64),
}

/// The transaction that a request names.
#[derive(Debug)]
pub(crate) enum Transaction {
    None,
    /// The one that a reply gave this name to.
    Named(String),
    /// Any number.
    Number(u32),
}

#[derive(Debug)]
pub(crate) enum Expected {
    Error(String),
    /// The id of a new transaction, which gets this name.
    Transaction(String),
    /// Anything but an error.
    Any,
    Payload(Vec<Piece>),
}

/// A part of an expected payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Bytes(Vec<u8>),
    /// Any bytes but NUL.
    AnyText,
    AnyBytes,
    /// A decimal number: the one that has this name, or that gets it now.
    Same(String),
    /// A decimal number other than the one that has this name; it gets the name.
    Changed(String),
}

/// Reads a whole text.
///
/// # Errors
/// The first line that cannot be understood, and why.
pub(crate) fn parse(text: &str) -> Result<Vec<Case>, String> {
    let mut cases: Vec<Case> = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        if let Some(name) = text.strip_prefix("case ") {
            cases.push(Case {
                name: name.to_owned(),
                line,
                needs: BTreeSet::new(),
                steps: Vec::new(),
            });
            continue;
        }
        let case = cases
            .last_mut()
            .ok_or(format!("{line}: a step before the first case"))?;
        if text == "needs a fresh server" {
            case.needs.insert(Need::FreshServer);
            continue;
        }
        let actions = parse_line(text).map_err(|why| format!("{line}: {why}: {text}"))?;
        for action in actions {
            case.needs.extend(needs_of(&action));
            case.steps.push(Step {
                line,
                text: text.to_owned(),
                action,
            });
        }
    }
    Ok(cases)
}

fn needs_of(action: &Action) -> Option<Need> {
    match action {
        Action::SetUp { .. } | Action::Introduced { .. } => Some(Need::Domains),
        Action::Host(directive) => Some(match directive {
            Directive::TimePasses(_) => Need::Clock,
            Directive::StopsReading(_) | Directive::ReadsAgain(_) => Need::Unread,
            Directive::Reconnects(_) | Directive::BreaksRing(_) => Need::Ring,
            _ => Need::Domains,
        }),
        _ => None,
    }
}

/// A line is one step, or a request and its reply with `=>` between them.
fn parse_line(text: &str) -> Result<Vec<Action>, String> {
    let words = words(text)?;
    let bare: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
    match bare.as_slice() {
        ["domain" | "domains", rest @ ..] => Ok(vec![parse_domain(rest)?]),
        ["time", "passes", amount, "ms"] => {
            let amount = number(amount)?;
            Ok(vec![Action::Host(Directive::TimePasses(amount))])
        }
        [client, ..] => {
            let domid = client
                .strip_prefix('d')
                .ok_or("no step begins with this")?
                .parse::<u16>()
                .map_err(|_| "no domid")?;
            parse_client(domid, words.get(1..).unwrap_or_default())
        }
        [] => Err("an empty line".to_owned()),
    }
}

fn parse_domain(words: &[&str]) -> Result<Action, String> {
    let count = words
        .iter()
        .take_while(|word| word.bytes().all(|byte| byte.is_ascii_digit()))
        .count();
    let (domids, verb) = words.split_at(count);
    let domids = domids
        .iter()
        .map(|word| number(word))
        .collect::<Result<Vec<u16>, _>>()?;
    let directive = match (domids.as_slice(), verb) {
        ([domid], ["is", "set", "up"]) => return Ok(Action::SetUp { domid: *domid }),
        ([domid], ["is", "introduced"]) => return Ok(Action::Introduced { domid: *domid }),
        ([domid], ["exists"]) => Directive::Exists(*domid),
        ([domid], ["exists", "without", "a", "ring"]) => Directive::ExistsWithoutRing(*domid),
        ([domid], ["vanishes"]) => Directive::Vanishes(*domid),
        ([domid], ["is", "connected", "from", "the", "start"]) => {
            Directive::StartsConnected(*domid)
        }
        (_, ["shuts" | "shut", "down"]) => Directive::ShutDown(domids),
        (_, ["dies" | "die"]) => Directive::Die(domids),
        _ => return Err("nothing that domains do".to_owned()),
    };
    Ok(Action::Host(directive))
}

fn parse_client(domid: u16, words: &[Word]) -> Result<Vec<Action>, String> {
    let (verb, rest) = words.split_first().ok_or("nothing after the client")?;
    let bare: Vec<&str> = rest.iter().map(|word| word.text.as_str()).collect();
    let action = match (verb.text.as_str(), bare.as_slice()) {
        (">", _) => return parse_request(domid, rest),
        ("<", _) => Action::Reply {
            to: domid,
            expected: parse_expected(rest)?,
        },
        ("!", _) => Action::Event {
            to: domid,
            payload: pattern(rest)?,
        },
        ("nothing", []) => Action::Nothing { to: domid },
        ("header", [name, "len", len, ..]) => Action::Header {
            from: domid,
            kind: kind(name).ok_or("no message type")?,
            len: number(len)?,
            bytes: bytes(rest.get(3..).unwrap_or_default())?,
        },
        ("bytes", _) => Action::Bytes {
            from: domid,
            bytes: bytes(rest)?,
        },
        ("is", ["stopped"]) => Action::Stopped { to: domid },
        ("sends", ["pieces", "of", size]) => Action::Chunks {
            from: domid,
            size: number(size)?,
        },
        ("reconnects", []) => Action::Host(Directive::Reconnects(domid)),
        ("breaks", ["its", "ring"]) => Action::Host(Directive::BreaksRing(domid)),
        ("stops", ["reading"]) => Action::Host(Directive::StopsReading(domid)),
        ("reads", ["again"]) => Action::Host(Directive::ReadsAgain(domid)),
        _ => return Err("nothing that a client does".to_owned()),
    };
    Ok(vec![action])
}

fn parse_request(from: u16, words: &[Word]) -> Result<Vec<Action>, String> {
    let arrow = words.iter().position(|word| word.is_bare("=>"));
    let (request, reply) = words.split_at(arrow.unwrap_or(words.len()));
    let first = request.first().map_or("", |word| word.text.as_str());
    let (transaction, request) = match transaction_name(first) {
        None => (Transaction::None, request),
        Some(name) => {
            let transaction = match name.strip_prefix('#') {
                Some(id) => Transaction::Number(number(id)?),
                None => Transaction::Named(name.to_owned()),
            };
            (transaction, request.get(1..).unwrap_or_default())
        }
    };
    let (name, payload) = request.split_first().ok_or("no message type")?;
    let mut actions = vec![Action::Request {
        from,
        transaction,
        kind: kind(&name.text).ok_or("no message type")?,
        payload: bytes(payload)?,
    }];
    if let Some((_, expected)) = reply.split_first() {
        let expected = parse_expected(expected)?;
        actions.push(Action::Reply { to: from, expected });
    }
    Ok(actions)
}

fn parse_expected(words: &[Word]) -> Result<Expected, String> {
    if let [word] = words
        && word.quote.is_none()
    {
        if model::ERRORS.contains(&word.text.as_str()) {
            return Ok(Expected::Error(word.text.clone()));
        }
        if let Some(name) = transaction_name(&word.text) {
            return Ok(Expected::Transaction(name.to_owned()));
        }
        if word.text == "*" {
            return Ok(Expected::Any);
        }
    }
    if words.is_empty() {
        return Err("an empty reply is written ''".to_owned());
    }
    Ok(Expected::Payload(pattern(words)?))
}

fn transaction_name(word: &str) -> Option<&str> {
    word.strip_prefix('[')?.strip_suffix(']')
}

fn number<N: core::str::FromStr>(word: &str) -> Result<N, String> {
    word.parse().map_err(|_| format!("no number: {word}"))
}

/// A word as it stands: bare and double-quoted words are strings with their NUL, single-quoted ones bytes without.
#[derive(Debug)]
struct Word {
    text: String,
    quote: Option<char>,
}

impl Word {
    fn is_bare(&self, text: &str) -> bool {
        self.quote.is_none() && self.text == text
    }
}

fn words(text: &str) -> Result<Vec<Word>, String> {
    let mut found = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(first) = rest.next() {
        if first.is_whitespace() {
            continue;
        }
        let quote = matches!(first, '"' | '\'').then_some(first);
        let mut word = String::new();
        if quote.is_none() {
            word.push(first);
        }
        loop {
            match (rest.next(), quote) {
                (None, None) => break,
                (None, Some(_)) => return Err("a quote that does not end".to_owned()),
                (Some('\\'), _) => {
                    word.push('\\');
                    word.extend(rest.next());
                }
                (Some(character), Some(quote)) if character == quote => break,
                (Some(character), None) if character.is_whitespace() => break,
                (Some(character), _) => word.push(character),
            }
        }
        found.push(Word { text: word, quote });
    }
    Ok(found)
}

/// The bytes that words stand for.
fn bytes(words: &[Word]) -> Result<Vec<u8>, String> {
    let mut all = Vec::new();
    for piece in pattern(words)? {
        match piece {
            Piece::Bytes(bytes) => all.extend(bytes),
            _ => return Err("a pattern in what is sent".to_owned()),
        }
    }
    Ok(all)
}

fn pattern(words: &[Word]) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    for word in words {
        pieces.extend(pieces_of(&word.text)?);
        if word.quote != Some('\'') {
            pieces.push(Piece::Bytes(vec![0]));
        }
    }
    Ok(pieces)
}

/// A word's escapes and braces resolved.
fn pieces_of(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut plain = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let taken = match first {
            '\\' => {
                let (byte, taken) = escape(rest)?;
                plain.push(byte);
                taken
            }
            '{' => {
                let end = rest.find('}').ok_or("a brace that does not end")?;
                pieces.push(Piece::Bytes(core::mem::take(&mut plain)));
                pieces.push(brace(rest.get(1..end).unwrap_or_default())?);
                end + 1
            }
            _ => {
                let taken = first.len_utf8();
                plain.extend(rest.bytes().take(taken));
                taken
            }
        };
        rest = rest.get(taken..).unwrap_or_default();
    }
    pieces.push(Piece::Bytes(plain));
    Ok(pieces)
}

fn escape(text: &str) -> Result<(u8, usize), String> {
    let second = text
        .as_bytes()
        .get(1)
        .copied()
        .ok_or("an escape of nothing")?;
    let byte = match second {
        b'0' => 0,
        b'n' => b'\n',
        b'x' => {
            let digits = text.get(2..4).ok_or("\\x wants two digits")?;
            let byte = u8::from_str_radix(digits, 16).map_err(|_| "\\x wants two digits")?;
            return Ok((byte, 4));
        }
        other if other.is_ascii_punctuation() => other,
        _ => return Err("an unknown escape".to_owned()),
    };
    Ok((byte, 2))
}

/// `{text*count}`, `{*}`, `{**}`, `{=name}`, `{!name}`.
fn brace(inside: &str) -> Result<Piece, String> {
    match inside {
        "*" => return Ok(Piece::AnyText),
        "**" => return Ok(Piece::AnyBytes),
        _ => {}
    }
    if let Some(name) = inside.strip_prefix('=') {
        return Ok(Piece::Same(name.to_owned()));
    }
    if let Some(name) = inside.strip_prefix('!') {
        return Ok(Piece::Changed(name.to_owned()));
    }
    let (text, count) = inside.rsplit_once('*').ok_or("braces of no known kind")?;
    let mut bytes = Vec::new();
    for piece in pieces_of(text)? {
        match piece {
            Piece::Bytes(plain) => bytes.extend(plain),
            _ => return Err("braces in braces".to_owned()),
        }
    }
    Ok(Piece::Bytes(bytes.repeat(number(count)?)))
}
