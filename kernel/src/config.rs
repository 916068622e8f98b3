//! The command line as settings: what the domain builder and the host's administrator say about this run.
//!
//! The builder passes dom0's port by `--event`; without it nothing works, so that is an error. The rest is the administrator's, who
//! may well pass words meant for C xenstored: what is not understood is named in a warning and left out. Only a word that decides who
//! is privileged, or who may do what, must not be guessed: that is an error too.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use log::LevelFilter;
use xenstore::policy::WordError;
use xenstore::{DomId, EvtchnPort, Nesting, Quota, Quotas, StorageKind, layer, policy};

use crate::xen::EventAbi;

/// What the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The privileged domain's port for its ring.
    pub event: EvtchnPort,
    /// The domain that may do everything, if the command line tells it.
    pub privileged: Option<DomId>,
    /// This domain, if the command line tells it.
    pub store: Option<DomId>,
    /// The limits to start with.
    pub quotas: Quotas,
    /// Who may do what.
    pub policies: policy::Choice,
    /// What stands between clients and the store.
    pub layers: layer::Choice,
    /// How long an event may stay unread before it is dropped; zero for ever.
    pub event_timeout: Duration,
    /// How long the slow scan of all rings takes; `None` if there is none.
    pub ring_scan: Option<Duration>,
    /// Who may begin a transaction inside another.
    pub nesting: Nesting,
    /// How nodes are kept.
    pub storage: StorageKind,
    /// How events are delivered.
    pub event_abi: EventAbi,
    /// What is worth a line on the console.
    pub log_level: LevelFilter,
    /// A sentence for each word that was left out, at most [`MAX_WARNINGS`].
    pub warnings: Vec<String>,
}

/// A command line that leaves no way to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The word in question, printable.
    pub word: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// How many words are warned of.
pub const MAX_WARNINGS: usize = 16;
/// How much of a word a message repeats, in bytes.
const MAX_SHOWN: usize = 64;
/// The highest port that a domain can have (`EVTCHN_FIFO_NR_CHANNELS`, event_channel.h).
const MAX_REMOTE_PORT: u32 = (1 << 17) - 1;
/// No domain has this port.
const NO_PORT: EvtchnPort = EvtchnPort(0);
const MISSING: Why =
    "missing; the domain builder passes the privileged domain's event channel port by it";

impl Config {
    /// Reads a command line: words between blanks or semicolons, in any order; of a word given twice the last one counts.
    ///
    /// # Errors
    /// `--event` is missing, or it, a domid or a policy makes no sense.
    pub fn parse(line: &[u8]) -> Result<Self, ConfigError> {
        let config = Self::parse_again(line)?;
        match config.event {
            NO_PORT => Err(Quoted(b"--event", None).error(MISSING)),
            _ => Ok(config),
        }
    }

    /// As [`Config::parse`], for a start to which the instance before hands over all ports: `--event` may be missing.
    ///
    /// # Errors
    /// `--event` or a domid makes no sense.
    pub fn parse_again(line: &[u8]) -> Result<Self, ConfigError> {
        let mut config = Self {
            event: NO_PORT,
            privileged: None,
            store: None,
            quotas: Quotas::default(),
            policies: policy::Choice::default(),
            layers: layer::Choice::default(),
            event_timeout: Duration::from_secs(20),
            ring_scan: Some(Duration::from_secs(20)),
            nesting: Nesting::default(),
            storage: StorageKind::default(),
            event_abi: EventAbi::default(),
            log_level: LevelFilter::Info,
            warnings: Vec::new(),
        };
        let mut words = line
            .split(|byte| byte.is_ascii_whitespace() || matches!(byte, 0 | b';'))
            .filter(|word| !word.is_empty());

        while let Some(word) = words.next() {
            let Some((option, attached)) = recognise(word) else {
                config.warn(format!("ignoring unknown word {}", Quoted(word, None)));
                continue;
            };
            let detached = match attached {
                None if option.has_value => words.next(),
                _ => None,
            };
            let value = attached.or(detached).unwrap_or_default();
            let said = Quoted(word, detached);
            if let Meaning::Policies = option.meaning {
                config.set_policies(value)?;
                continue;
            }
            match option.meaning.apply(&mut config, value) {
                Ok(()) => {}
                Err(why) if option.meaning.is_essential() => return Err(said.error(why)),
                Err(why) => config.warn(format!("ignoring {said}: {why}")),
            }
        }
        Ok(config)
    }

    fn warn(&mut self, sentence: String) {
        let room = MAX_WARNINGS.saturating_sub(self.warnings.len());
        match room {
            0 => {}
            1 => self.warnings.push("ignoring more words".into()),
            _ => self.warnings.push(sentence),
        }
    }

    fn set_event(&mut self, value: &[u8]) -> Result<(), Why> {
        self.event = match number(value) {
            Ok(port @ 1..=MAX_REMOTE_PORT) => EvtchnPort(port),
            _ => return Err("it takes an event channel port, a number from 1 to 131071"),
        };
        Ok(())
    }

    fn set_priv(&mut self, value: &[u8]) -> Result<(), Why> {
        self.privileged = Some(domid(value)?);
        Ok(())
    }

    fn set_store(&mut self, value: &[u8]) -> Result<(), Why> {
        self.store = Some(domid(value)?);
        Ok(())
    }

    fn limit(&mut self, quota: Quota, value: &[u8]) -> Result<(), Why> {
        self.quotas.set(quota, number(value)?);
        Ok(())
    }

    fn set_quota(&mut self, value: &[u8]) -> Result<(), Why> {
        let (name, limit) = assignment(value)?;
        let quota = Quota::from_name(name).ok_or("there is no such quota")?;
        self.limit(quota, limit)
    }

    fn set_soft_quota(&mut self, value: &[u8]) -> Result<(), Why> {
        match assignment(value)? {
            (b"memory", limit) => self.limit(Quota::SoftMemory, limit),
            _ => Err("there is no such soft quota"),
        }
    }

    fn set_policies(&mut self, value: &[u8]) -> Result<(), ConfigError> {
        let chosen = policy::Choice::parse(value);
        self.policies = chosen.map_err(|WordError { word, why }| ConfigError { word, why })?;
        Ok(())
    }

    fn set_layers(&mut self, value: &[u8]) -> Result<(), Why> {
        let (layers, errors) = layer::Choice::parse(value);
        self.layers = layers;
        for error in errors {
            self.warn(format!("ignoring layer {error}"));
        }
        Ok(())
    }

    fn set_timeout(&mut self, value: &[u8]) -> Result<(), Why> {
        let (b"watch-event", seconds) = assignment(value)? else {
            return Err("there is no such timeout");
        };
        self.event_timeout = Duration::from_secs(number(seconds)?.into());
        Ok(())
    }

    fn set_ring_scan(&mut self, value: &[u8]) -> Result<(), Why> {
        self.ring_scan = match value.strip_prefix(b"-") {
            Some(seconds) => number(seconds).map(|_| None)?,
            None => match number(value)? {
                0 => return Err("it takes a number of seconds, or a negative one for never"),
                seconds => Some(Duration::from_secs(seconds.into())),
            },
        };
        Ok(())
    }

    fn set_nesting(&mut self, value: &[u8]) -> Result<(), Why> {
        self.nesting = Nesting::parse(value)?;
        Ok(())
    }

    fn set_storage(&mut self, value: &[u8]) -> Result<(), Why> {
        self.storage = StorageKind::parse(value)?;
        Ok(())
    }

    fn set_event_abi(&mut self, value: &[u8]) -> Result<(), Why> {
        self.event_abi = match value {
            b"fifo" => EventAbi::Fifo,
            b"2level" => EventAbi::TwoLevel,
            _ => return Err("it takes fifo or 2level"),
        };
        Ok(())
    }

    fn set_log_level(&mut self, value: &[u8]) -> Result<(), Why> {
        self.log_level = str::from_utf8(value)
            .ok()
            .and_then(|name| name.parse().ok())
            .ok_or("it takes one of off, error, warn, info, debug, trace")?;
        Ok(())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command line: {}: {}", self.word, self.why)
    }
}

/// What is wrong with a value.
type Why = &'static str;

/// One option in C xenstored's spellings, or a word of our own.
struct Spelling {
    short: Option<u8>,
    long: &'static str,
    has_value: bool,
    meaning: Meaning,
}

#[derive(Clone, Copy)]
enum Meaning {
    /// A setting without whose right value there is no way to start.
    Essential(fn(&mut Config, &[u8]) -> Result<(), Why>),
    Setting(fn(&mut Config, &[u8]) -> Result<(), Why>),
    Limit(Quota),
    /// As essential, and names the one that is wrong itself.
    Policies,
    None(Why),
}

impl Meaning {
    fn apply(self, config: &mut Config, value: &[u8]) -> Result<(), Why> {
        match self {
            Self::Essential(set) | Self::Setting(set) => set(config, value),
            Self::Limit(quota) => config.limit(quota, value),
            Self::Policies => Ok(()),
            Self::None(why) => Err(why),
        }
    }

    const fn is_essential(self) -> bool {
        matches!(self, Self::Essential(_))
    }
}

const DAEMON_ONLY: Meaning = Meaning::None("it is for a daemon only");
const NO_TRACE_FILE: Meaning = Meaning::None("there is no trace file");
const NO_ORPHANS: Meaning = Meaning::None("the nodes of dead domains are always removed");

/// The options that begin with a dash.
const OPTIONS: &[Spelling] = &[
    takes(b'e', "event", Meaning::Essential(Config::set_event)),
    takes(b'p', "priv-domid", Meaning::Essential(Config::set_priv)),
    takes(b'm', "master-domid", Meaning::Essential(Config::set_store)),
    takes(b'Q', "quota", Meaning::Setting(Config::set_quota)),
    takes(b'q', "quota-soft", Meaning::Setting(Config::set_soft_quota)),
    takes(b'E', "entry-nb", Meaning::Limit(Quota::Nodes)),
    takes(b'W', "watch-nb", Meaning::Limit(Quota::Watches)),
    takes(b't', "transaction", Meaning::Limit(Quota::Transactions)),
    takes(b'A', "perm-nb", Meaning::Limit(Quota::NodePermissions)),
    takes(b'M', "path-max", Meaning::Limit(Quota::PathMax)),
    takes(b'S', "entry-size", Meaning::Limit(Quota::NodeSize)),
    takes(b'w', "timeout", Meaning::Setting(Config::set_timeout)),
    takes(b'F', "pid-file", DAEMON_ONLY),
    takes(b'T', "trace-file", NO_TRACE_FILE),
    word("trace-control", NO_TRACE_FILE),
    flag(b'K', "keep-orphans", NO_ORPHANS),
    flag(b'N', "no-fork", DAEMON_ONLY),
    flag(b'H', "help", DAEMON_ONLY),
];

/// The words `name=value`.
const WORDS: &[Spelling] = &[
    word("ring-scan", Meaning::Setting(Config::set_ring_scan)),
    word("transactions", Meaning::Setting(Config::set_nesting)),
    word("store", Meaning::Setting(Config::set_storage)),
    word("evtchn", Meaning::Setting(Config::set_event_abi)),
    word("loglevel", Meaning::Setting(Config::set_log_level)),
    word("policy", Meaning::Policies),
    word("layer", Meaning::Setting(Config::set_layers)),
];

const fn takes(short: u8, long: &'static str, meaning: Meaning) -> Spelling {
    let short = Some(short);
    Spelling {
        short,
        ..word(long, meaning)
    }
}

const fn flag(short: u8, long: &'static str, meaning: Meaning) -> Spelling {
    let has_value = false;
    Spelling {
        has_value,
        ..takes(short, long, meaning)
    }
}

const fn word(long: &'static str, meaning: Meaning) -> Spelling {
    Spelling {
        short: None,
        long,
        has_value: true,
        meaning,
    }
}

/// Which option a word is, and the value that is part of the same word.
fn recognise(word: &[u8]) -> Option<(&'static Spelling, Option<&[u8]>)> {
    if let Some(long) = word.strip_prefix(b"--") {
        let (name, value) = split_at_equals(long);
        return find(OPTIONS, name, value);
    }
    if let Some([short, rest @ ..]) = word.strip_prefix(b"-") {
        let attached = Some(rest).filter(|rest| !rest.is_empty());
        return OPTIONS
            .iter()
            .find(|option| option.short == Some(*short))
            .filter(|option| option.has_value || attached.is_none())
            .map(|option| (option, attached));
    }
    match split_at_equals(word) {
        (name, Some(value)) => find(WORDS, name, Some(value)),
        (_, None) => None,
    }
}

fn find<'w>(
    table: &'static [Spelling],
    name: &[u8],
    value: Option<&'w [u8]>,
) -> Option<(&'static Spelling, Option<&'w [u8]>)> {
    table
        .iter()
        .find(|option| option.long.as_bytes() == name)
        .filter(|option| option.has_value || value.is_none())
        .map(|option| (option, value))
}

fn split_at_equals(word: &[u8]) -> (&[u8], Option<&[u8]>) {
    let mut parts = word.splitn(2, |byte| *byte == b'=');
    (parts.next().unwrap_or_default(), parts.next())
}

fn assignment(value: &[u8]) -> Result<(&[u8], &[u8]), Why> {
    let (name, value) = split_at_equals(value);
    value
        .map(|value| (name, value))
        .ok_or("it takes <name>=<number>")
}

fn domid(value: &[u8]) -> Result<DomId, Why> {
    number(value)
        .ok()
        .and_then(|id| u16::try_from(id).ok())
        .map(DomId::new)
        .filter(|id| id.is_ordinary())
        .ok_or("it takes a domain id, a number from 0 to 32751")
}

fn number(digits: &[u8]) -> Result<u32, Why> {
    str::from_utf8(digits)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or("it takes a number below 4294967296")
}

/// A word and its value between quotation marks, printable whatever it holds, and not too long.
struct Quoted<'w>(&'w [u8], Option<&'w [u8]>);

impl Quoted<'_> {
    fn error(&self, why: Why) -> ConfigError {
        ConfigError {
            word: format!("{self}"),
            why,
        }
    }
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for (part, space) in [(Some(self.0), ""), (self.1, " ")] {
            if let Some(part) = part {
                let shown = part.get(..MAX_SHOWN).unwrap_or(part);
                let cut = if shown.len() < part.len() { "..." } else { "" };
                write!(f, "{space}{}{cut}", shown.escape_ascii())?;
            }
        }
        f.write_str("\"")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(line: &str) -> Config {
        Config::parse(line.as_bytes()).unwrap()
    }

    fn error(line: &str) -> String {
        format!("{}", Config::parse(line.as_bytes()).unwrap_err())
    }

    #[test]
    fn the_builders_line_is_enough() {
        let config = parse("--event 5");
        assert_eq!(config.event, EvtchnPort(5));
        assert_eq!(config.privileged, None);
        assert_eq!(config.store, None);
        assert_eq!(config.quotas, Quotas::default());
        assert_eq!(config.event_timeout, Duration::from_secs(20));
        assert_eq!(config.ring_scan, Some(Duration::from_secs(20)));
        assert_eq!(config.event_abi, EventAbi::Fifo);
        assert_eq!(config.nesting, Nesting::Flat);
        assert_eq!(config.log_level, LevelFilter::Info);
        assert!(config.warnings.is_empty());
    }

    #[test]
    fn the_storage_can_be_chosen() {
        let kinds = [
            ("tree", false, false),
            ("flat", true, false),
            ("journal", false, true),
            ("journal:tree", false, true),
            ("journal:flat", true, true),
        ];
        for (word, is_flat, is_journaled) in kinds {
            let config = parse(&format!("--event 5 store={word}"));
            let storage = config.storage;
            assert_eq!(
                (storage.is_flat, storage.is_journaled),
                (is_flat, is_journaled)
            );
            assert!(config.warnings.is_empty());
        }
        for wrong in ["heap", "journal:heap", ""] {
            let config = parse(&format!("--event 5 store={wrong}"));
            assert_eq!(config.storage, StorageKind::default());
            assert_eq!(config.warnings.len(), 1);
        }
    }

    #[test]
    fn transactions_inside_others_are_allowed_by_a_word() {
        let config = parse("--event 5 transactions=nested");
        assert_eq!(config.nesting, Nesting::Nested);
        let config = parse("--event 5 transactions=granted");
        assert_eq!(config.nesting, Nesting::Granted);
        assert!(config.warnings.is_empty());
        let config = parse("--event 5 transactions=deep");
        assert_eq!(config.nesting, Nesting::Flat);
        let warning = "ignoring \"transactions=deep\": it takes flat, granted or nested";
        assert_eq!(config.warnings, [warning]);
    }

    #[test]
    fn the_event_abi_can_be_chosen() {
        let config = parse("--event 5 evtchn=2level");
        assert_eq!(config.event_abi, EventAbi::TwoLevel);
        let config = parse("--event 5 evtchn=2level evtchn=fifo");
        assert_eq!(config.event_abi, EventAbi::Fifo);
        assert!(config.warnings.is_empty());
    }

    #[test]
    fn a_missing_or_absurd_port_is_an_error_that_names_it() {
        for line in ["", "   ", "-E 5", "event=7"] {
            assert!(
                error(line).starts_with("command line: \"--event\": missing"),
                "{line}"
            );
        }
        for value in [
            "0",
            "-1",
            "+1",
            "131072",
            "4294967296",
            "0x5",
            "five",
            "-Q",
            "5five",
        ] {
            let line = format!("--event {value} -E 100");
            let expected = format!(
                "command line: \"--event {value}\": it takes an event channel port, a number from 1 to 131071"
            );
            assert_eq!(error(&line), expected);
        }
        assert_eq!(parse("--event 131071").event, EvtchnPort(131_071));
        assert!(error("-E 7 --event").contains("\"--event\""));
        assert!(error("--event=").contains("\"--event=\""));
    }

    #[test]
    fn an_absurd_domid_is_an_error() {
        assert_eq!(
            parse("--event 5 --priv-domid 3 --master-domid=32751").privileged,
            Some(DomId::new(3))
        );
        assert_eq!(
            parse("--event 5 --master-domid=32751").store,
            Some(DomId::new(32751))
        );
        for value in ["32752", "65536", "x", "-1"] {
            assert!(error(&format!("--event 5 --priv-domid {value}")).contains("domain id"));
            assert!(error(&format!("--event 5 --master-domid {value}")).contains("domain id"));
        }
    }

    #[test]
    fn quotas_have_two_spellings() {
        let config = parse(
            "-e5 -E 10 -W 20 -t 30 -A 40 -M 50 -S60 -Q outstanding=70 -Q memory=0 -q memory=80 --quota=transaction-nodes=90",
        );
        let set = [
            (Quota::Nodes, 10),
            (Quota::Watches, 20),
            (Quota::Transactions, 30),
            (Quota::NodePermissions, 40),
            (Quota::PathMax, 50),
            (Quota::NodeSize, 60),
            (Quota::Outstanding, 70),
            (Quota::Memory, 0),
            (Quota::SoftMemory, 80),
            (Quota::TransactionNodes, 90),
        ];
        for (quota, limit) in set {
            assert_eq!(config.quotas.get(quota), limit, "{}", quota.name());
        }
        assert_eq!(config.warnings, [""; 0]);
    }

    #[test]
    fn times_can_be_set_and_switched_off() {
        let config = parse("--event 5 -w watch-event=7 ring-scan=3 loglevel=debug");
        assert_eq!(config.event_timeout, Duration::from_secs(7));
        assert_eq!(config.ring_scan, Some(Duration::from_secs(3)));
        assert_eq!(config.log_level, LevelFilter::Debug);
        let config = parse("--event 5 --timeout watch-event=0 ring-scan=-1");
        assert_eq!(
            (config.event_timeout, config.ring_scan),
            (Duration::ZERO, None)
        );
        assert!(config.warnings.is_empty());
    }

    #[test]
    fn policies_and_layers_are_one_word() {
        let config = parse("--event 5 policy=legacy,protocol;layer=trace,rate:200/s,burst=5 -E 9");
        assert_eq!(config.policies.as_str(), "legacy,protocol");
        assert_eq!(config.layers.as_str(), "trace,rate:200/s,burst=5");
        assert_eq!(config.quotas.get(Quota::Nodes), 9);
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        let config = parse("--event 5");
        assert_eq!(config.policies.as_str(), "legacy");
        assert_eq!(config.layers.as_str(), "");
    }

    #[test]
    fn a_policy_that_is_none_stops_the_start_and_is_named() {
        for (list, word, why) in [
            (
                "legacy,protokoll",
                "protokoll",
                "there is no policy of this name",
            ),
            ("protocol", "protocol", "legacy comes first, and once"),
            ("", "", "there is no policy of this name"),
            ("legacy,legacy", "legacy", "legacy comes first, and once"),
            ("legacy,protocol,protocol", "protocol", "it is there twice"),
            ("legacy,protocol:x", "protocol:x", "it takes no parameters"),
            ("legacy,", "", "there is no policy of this name"),
        ] {
            let line = format!("--event 5 layer=trace;policy={list}");
            assert_eq!(error(&line), format!("command line: \"{word}\": {why}"));
        }
    }

    #[test]
    fn a_layer_that_is_none_is_warned_of_and_left_out() {
        let config = parse("--event 5 layer=trace,delya:5ms,rate:200,stats");
        assert_eq!(config.layers.as_str(), "trace,stats");
        let expected = [
            "ignoring layer \"delya:5ms\": there is no layer of this name",
            "ignoring layer \"rate:200\": it takes requests a second, such as rate:200/s",
        ];
        assert_eq!(config.warnings, expected);
    }

    #[test]
    fn unknown_words_are_named_and_left_out() {
        let config = parse("quick --event 5 -X --frobnicate=9 -N5 --no-fork=5 loglevel");
        assert_eq!(config.event, EvtchnPort(5));
        let expected = [
            "quick",
            "-X",
            "--frobnicate=9",
            "-N5",
            "--no-fork=5",
            "loglevel",
        ]
        .map(|word| format!("ignoring unknown word \"{word}\""));
        assert_eq!(config.warnings, expected);
    }

    #[test]
    fn options_of_the_daemon_are_left_out_with_their_values() {
        let config = parse("-N -H -F --event -T trace --trace-control=+obj -K --event 5");
        assert_eq!(config.event, EvtchnPort(5));
        assert_eq!(config.warnings.len(), 6, "{:?}", config.warnings);
        assert_eq!(
            config.warnings[2],
            "ignoring \"-F --event\": it is for a daemon only"
        );
    }

    #[test]
    fn bad_values_are_named_and_left_out() {
        let lines = [
            "-E many",
            "-E",
            "-Q nodes",
            "-Q trees=5",
            "-Q nodes=-5",
            "-q nodes=5",
            "-w watch=5",
            "-w watch-event=x",
            "ring-scan=0",
            "ring-scan=--1",
            "ring-scan=",
            "loglevel=loud",
            "evtchn=3level",
            "-E 4294967296",
        ];
        for line in lines {
            let config = parse(&format!("--event 5 {line}"));
            assert_eq!(config.warnings.len(), 1, "{line}");
            assert!(
                config.warnings[0].starts_with(&format!("ignoring \"{line}\": ")),
                "{:?}",
                config.warnings
            );
            let untouched = Config {
                warnings: Vec::new(),
                ..config
            };
            assert_eq!(untouched, parse("--event 5"), "{line}");
        }
    }

    #[test]
    fn what_is_repeated_is_printable_and_short() {
        let long = "x".repeat(1000);
        let config = parse(&format!("--event 5 a\x1b[31m\u{e4}\" {long}"));
        assert_eq!(
            config.warnings[0],
            r#"ignoring unknown word "a\x1b[31m\xc3\xa4\"""#
        );
        assert_eq!(
            config.warnings[1],
            format!("ignoring unknown word \"{}...\"", "x".repeat(64))
        );
    }

    #[test]
    fn warnings_are_bounded() {
        let config = parse(&format!("--event 5{}", " x".repeat(1000)));
        assert_eq!(config.warnings.len(), MAX_WARNINGS);
        assert_eq!(config.warnings.last().unwrap(), "ignoring more words");
    }

    proptest! {
        #[test]
        fn no_line_is_too_odd(mut line in prop::collection::vec(any::<u8>(), 0..600)) {
            drop(Config::parse(&line));
            line.extend(b" --event 5");
            if let Ok(config) = Config::parse(&line) {
                prop_assert!(config.warnings.len() <= MAX_WARNINGS);
                prop_assert!(config.warnings.iter().all(|w| w.len() < 1000 && w.bytes().all(|b| (b' '..=b'~').contains(&b))));
            }
        }

        #[test]
        fn nor_any_choice_of_known_words(words in prop::collection::vec(
            prop::sample::select(&["--event", "-e", "5", "-Q", "=", "nodes=1", "-w", "watch-event=", "--", "-", "ring-scan=-", "-K", "--priv-domid=1"][..]),
            0..20,
        )) {
            drop(Config::parse(words.join(" ").as_bytes()));
        }
    }
}
