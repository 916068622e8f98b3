//! What guests and the toolstack ask for, right and wrong.

use model::{LAYERS, QUOTAS};

use super::random::Random;
use super::swarm::{BAD_LAYERS, Extensions, Manner};

/// A request without its header.
pub(crate) type Draft = (u32, Vec<u8>);

pub(crate) const CONTROL: u32 = 0;
pub(crate) const START: u32 = 6;
pub(crate) const END: u32 = 7;
pub(crate) const INTRODUCE: u32 = 8;

/// What can be done with leases, some of it in a folder of a resource.
#[derive(Clone, Copy)]
enum Act {
    Write(&'static str),
    Remove(&'static str),
    Prepare,
    Register,
    Unregister,
    /// Lets guests ask for themselves.
    Open,
    Inquire,
    Watch,
    Nonsense,
    Space,
}

/// What a request is chosen with.
pub(crate) struct Scene<'a> {
    pub(crate) random: &'a mut Random,
    pub(crate) domid: u16,
    pub(crate) domids: u16,
    /// Makes every value another one.
    pub(crate) serial: u64,
    /// How often, of a thousand, a request is about the few nodes that all share.
    pub(crate) crowd: u64,
    /// Some directories get more children than a list has room for.
    pub(crate) wide: bool,
    /// Quotas of memory may be small.
    pub(crate) tight: bool,
}

impl Scene<'_> {
    /// A request that makes sense, on nodes or watches.
    pub(crate) fn sensible(&mut self) -> Draft {
        const KINDS: [(u64, u32); 14] = [
            (8, 1),
            (14, 2),
            (5, 3),
            (7, 4),
            (3, 5),
            (24, 11),
            (6, 12),
            (8, 13),
            (8, 14),
            (1, 10),
            (4, 22),
            (1, 23),
            (1, 21),
            (1, 17),
        ];
        let kind = self.random.weighted(&KINDS).unwrap_or(2);
        let payload = match kind {
            4 => self.watch(),
            5 => words(&[&self.watched(), self.token()]),
            10 | 17 => words(&[&self.any_domid().to_string()]),
            11 => self.write(),
            14 => self.set_perms(),
            21 => Vec::new(),
            22 => {
                let offset =
                    self.random
                        .word(&["0", "0", "0", "1", "3", "7", "4000", "4294967295"]);
                words(&[&self.path(), offset])
            }
            23 if self.random.chance(500) => Vec::new(),
            23 => words(&[&self.any_domid().to_string()]),
            3 if self.random.chance(100) => words(&[self.special()]),
            _ => words(&[&self.path()]),
        };
        (kind, payload)
    }

    /// A request about a lease: right, wrong, or in vain.
    pub(crate) fn lease(&mut self) -> Draft {
        const ACTS: [(u64, Act); 13] = [
            (30, Act::Write("holder")),
            (18, Act::Write("wait")),
            (15, Act::Remove("holder")),
            (4, Act::Remove("wait")),
            (9, Act::Prepare),
            (4, Act::Remove("move")),
            (3, Act::Register),
            (1, Act::Unregister),
            (7, Act::Open),
            (7, Act::Inquire),
            (5, Act::Watch),
            (2, Act::Nonsense),
            (1, Act::Space),
        ];
        let act = self.random.weighted(&ACTS).unwrap_or(Act::Inquire);
        let resource = self
            .random
            .word(&["/lease/d/x", "/lease/d/x", "/lease/d/y", "/lease/e/x"]);
        let own = self.domid != 0 && self.random.chance(800);
        let user = if own { self.domid } else { self.any_domid() };
        let folder = self.random.word(&["holder", "wait", "move"]);
        let write = |path: String, value: &str| (11, [words(&[&path]), value.into()].concat());
        match act {
            Act::Write(folder) => {
                let mode = self.mode();
                write(format!("{resource}/{folder}/{user}"), mode)
            }
            Act::Remove(folder) => (13, words(&[&format!("{resource}/{folder}/{user}")])),
            Act::Prepare => {
                let to = self.any_domid();
                let time = self.random.word(&["", " 1", " 3", " 20", " 0"]);
                write(format!("{resource}/move/{user}"), &format!("{to}{time}"))
            }
            Act::Register => {
                let modes = self.random.word(&[
                    "exclusive,shared,read-only",
                    "exclusive,shared,read-only",
                    "exclusive",
                    "shared,read-only",
                    "shared,shared",
                ]);
                write(resource.to_owned(), modes)
            }
            Act::Unregister => (13, words(&[resource])),
            Act::Open => (14, words(&[&format!("{resource}/{folder}"), "b0"])),
            Act::Inquire => {
                let kind = *self.random.pick(&[1, 2]).unwrap_or(&1);
                let path = format!("{resource}/{folder}");
                match self.random.below(3) {
                    0 => (kind, words(&[resource])),
                    1 => (kind, words(&[&path])),
                    _ => (kind, words(&[&format!("{path}/{user}")])),
                }
            }
            Act::Watch => {
                let path = format!("{resource}/holder");
                (4, words(&[&path, self.token()]))
            }
            Act::Nonsense => match self.random.below(4) {
                0 => (12, words(&[&format!("{resource}/holder/{user}/x")])),
                1 => write(format!("{resource}/{folder}"), "x"),
                2 => (13, words(&[&format!("{resource}/{folder}")])),
                _ => (12, words(&[&format!("{resource}/{folder}/0{user}")])),
            },
            Act::Space => {
                let kind = *self.random.pick(&[11, 12, 13, 13]).unwrap_or(&13);
                (
                    kind,
                    words(&[self.random.word(&["/lease", "/lease/d", "/lease/e"])]),
                )
            }
        }
    }

    fn mode(&mut self) -> &'static str {
        self.random.word(&[
            "exclusive",
            "exclusive",
            "shared",
            "shared",
            "read-only",
            "none",
        ])
    }

    /// A change of policies or layers by the administrator.
    pub(crate) fn reform(&mut self, extensions: &Extensions) -> Draft {
        let place = self.random.below(4).to_string();
        let mut layer = self.random.word(&LAYERS);
        if self.random.chance(150) {
            layer = self.random.word(&BAD_LAYERS);
        }
        let payload = match self.random.below(8) {
            0 | 1 => words(&["policy", "set", &extensions.list(self.random)]),
            2 | 3 => words(&["layer", "add", layer]),
            4 | 5 => words(&["layer", "remove", &place]),
            6 => {
                let count = self.random.below(4);
                let more: Vec<&str> = (0..count).map(|_| self.random.word(&LAYERS)).collect();
                words(&["layer", "set", &format!("{},{layer}", more.join(","))])
            }
            _ => words(&["layer", "set", ""]),
        };
        (CONTROL, payload)
    }

    /// A request of the toolstack about domains, quotas or itself.
    pub(crate) fn administrative(&mut self) -> Draft {
        const KINDS: [(u64, u32); 8] = [
            (3, 0),
            (1, 17),
            (2, 18),
            (4, 19),
            (2, 23),
            (1, 24),
            (3, 25),
            (4, 26),
        ];
        let kind = self.random.weighted(&KINDS).unwrap_or(0);
        let domid = self.any_domid().to_string();
        let other = self.any_domid().to_string();
        let payload = match kind {
            0 => self.control(&domid),
            19 => words(&[&domid, &other]),
            24 => {
                let bits = self.random.word(&["0", "5", "7", "15", "14", "16", "x"]);
                words(&[&domid, bits])
            }
            25 => match self.random.below(3) {
                0 => Vec::new(),
                1 => words(&[self.quota()]),
                _ => words(&[&domid, self.quota()]),
            },
            26 => {
                let name = self.quota();
                let value = self.limit(name);
                if self.random.chance(200) {
                    words(&[name, &value])
                } else {
                    words(&[&domid, name, &value])
                }
            }
            _ => words(&[&domid]),
        };
        (kind, payload)
    }

    /// What is no request, or hardly one.
    pub(crate) fn malformed(&mut self) -> Draft {
        let kind = if self.random.chance(900) {
            u32::try_from(self.random.below(29)).unwrap_or_default()
        } else {
            u32::try_from(self.random.next() >> 32).unwrap_or_default()
        };
        let payload = match self.random.below(8) {
            0 => self.noise(60),
            1 => {
                let byte = *self.random.pick(b"a/\x00\x31\xff").unwrap_or(&0);
                vec![byte; self.random.index(4097)]
            }
            _ => {
                let count = self.random.index(6);
                let pieces = (0..count).map(|_| self.fragment());
                pieces.collect::<Vec<_>>().concat()
            }
        };
        (kind, payload)
    }

    /// Any request that fits a manner.
    pub(crate) fn any(&mut self, manner: Manner) -> Draft {
        match manner {
            Manner::Malformed if self.random.chance(700) => self.malformed(),
            Manner::Hostile | Manner::Flooding if self.random.chance(300) => self.malformed(),
            _ if self.random.chance(20) => self.malformed(),
            _ if self.random.chance(10) => self.administrative(),
            _ => self.sensible(),
        }
    }

    fn write(&mut self) -> Vec<u8> {
        let path = self.path();
        let mut payload = words(&[&path]);
        let value = if path.ends_with("state") && self.random.chance(700) {
            self.random
                .word(&["1", "2", "3", "4", "5", "6", "7", "8"])
                .to_owned()
        } else {
            format!("{}:{}", self.domid, self.serial)
        };
        payload.extend(value.as_bytes());
        if self.random.chance(60) {
            let more = self.random.index(2100);
            payload.extend(std::iter::repeat_n(b'v', more));
        }
        payload
    }

    fn watch(&mut self) -> Vec<u8> {
        let (path, token) = (self.watched(), self.token());
        if self.random.chance(300) {
            let depth = self.random.word(&["0", "1", "2", "9", "4294967295", "-1"]);
            words(&[&path, token, depth])
        } else if self.random.chance(20) {
            words(&[&path, &"t".repeat(self.random.index(4000))])
        } else {
            words(&[&path, token])
        }
    }

    fn set_perms(&mut self) -> Vec<u8> {
        let path = match self.random.below(20) {
            0 => self.special().to_owned(),
            _ => self.path(),
        };
        let owner = match self.random.below(10) {
            0 => self.any_domid(),
            1 => 0,
            _ => self.owner_of(&path),
        };
        let mut entries = vec![format!("{}{owner}", self.letter())];
        for _ in 0..self.random.below(5) {
            let domid = self.any_domid();
            entries.push(format!("{}{domid}", self.letter()));
        }
        let mut all = vec![path.as_str()];
        all.extend(entries.iter().map(String::as_str));
        words(&all)
    }

    /// Who likely owns a node.
    fn owner_of(&self, path: &str) -> u16 {
        let home = path.strip_prefix("/local/domain/");
        let named = home.and_then(|rest| rest.split('/').next()?.parse().ok());
        named.unwrap_or(if path.starts_with(['/', '@']) {
            0
        } else {
            self.domid
        })
    }

    fn letter(&mut self) -> &'static str {
        self.random.word(&["n", "r", "w", "b", "b"])
    }

    /// What several domains do together, which have agreed on what to do when: in turn they set watches on what they share, change it and read
    /// nothing, hoard transactions over what the others change, and take it all back.
    pub(crate) fn colluding(&mut self, phase: u64) -> Draft {
        let path = format!("/t/{}", self.random.below(12));
        match phase % 4 {
            0 => {
                let token = format!("{}", self.random.below(40));
                (4, words(&[&path, &token]))
            }
            1 if self.random.chance(200) => (13, words(&[&path])),
            1 => self.long_value(&path),
            2 if self.random.chance(300) => (START, vec![0]),
            2 => self.long_value(&path),
            _ if self.random.chance(100) => (21, Vec::new()),
            _ => (5, words(&[&path, "1"])),
        }
    }

    fn long_value(&mut self, path: &str) -> Draft {
        let mut payload = words(&[path]);
        let value = format!("{}:{}", self.domid, self.serial);
        payload.extend(value.as_bytes());
        payload.extend(std::iter::repeat_n(b'v', self.random.index(1800)));
        (11, payload)
    }

    fn path(&mut self) -> String {
        if self.wide && self.domid == 0 && self.random.chance(150) {
            let name = "w".repeat(200);
            return format!("/t/{name}{}", self.random.below(30));
        }
        if self.random.chance(self.crowd) {
            let name = self
                .random
                .word(&["/t", "/t/a", "/t/b", "/t/a/b", "/t/a/b/c", "/t/b/d"]);
            return name.to_owned();
        }
        let name = self.random.word(&[
            "a",
            "b",
            "a/b",
            "a/b/c",
            "data/x",
            "data",
            "device/vif/0/state",
            "device/vif/0/backend",
        ]);
        let domid = 1 + self.random.below(self.domids.into());
        match self.random.below(12) {
            0..=5 => name.to_owned(),
            6 => format!("/local/domain/{domid}"),
            7 | 8 => format!("/local/domain/{domid}/{name}"),
            9 => self
                .random
                .word(&["/", "/tool", "/tool/xenstored", "/local", "/local/domain"])
                .to_owned(),
            10 => format!("/t/{}", self.random.below(60)),
            _ => format!("/nope/{name}"),
        }
    }

    fn watched(&mut self) -> String {
        match self.random.below(6) {
            0 => self.special().to_owned(),
            1 => format!(
                "@releaseDomain/{}",
                1 + self.random.below(self.domids.into())
            ),
            _ => self.path(),
        }
    }

    fn special(&mut self) -> &'static str {
        self.random.word(&[
            "@introduceDomain",
            "@releaseDomain",
            "@releaseDomain",
            "@x",
            "@",
        ])
    }

    fn token(&mut self) -> &'static str {
        self.random.word(&["", "t", "u", "a/b", "v"])
    }

    fn any_domid(&mut self) -> u16 {
        match self.random.below(12) {
            0 => 0,
            1 => *self
                .random
                .pick(&[31, 77, 32752, 32757, 40000])
                .unwrap_or(&31),
            _ => u16::try_from(1 + self.random.below(self.domids.into())).unwrap_or(1),
        }
    }

    fn quota(&mut self) -> &'static str {
        if self.random.chance(30) {
            return "nonsense";
        }
        self.random.word(&QUOTAS)
    }

    /// A limit that is not too small to go on with.
    fn limit(&mut self, name: &str) -> String {
        let value = match name {
            "memory" if self.tight => 500 + self.random.below(20_000),
            "memory" | "soft-memory" => 0,
            "outstanding" => 4 + self.random.below(30),
            "path-max" => 50 + self.random.below(2000),
            "node-size" => 100 + self.random.below(2000),
            "nodes" => 4 + self.random.below(60),
            _ => self.random.below(20),
        };
        if self.random.chance(30) {
            return self.random.word(&["-1", "x", "", "4294967296"]).to_owned();
        }
        value.to_string()
    }

    fn control(&mut self, domid: &str) -> Vec<u8> {
        match self.random.below(12) {
            0..=3 => words(&["check"]),
            4 => words(&["quota", domid]),
            5 => words(&["quota"]),
            6 => words(&["quota", "max"]),
            7 => words(&["counters", domid]),
            8 => words(&["counters"]),
            9 => words(&["memreport"]),
            10 => words(&[self.random.word(&["help", "policy", "layer"])]),
            _ => words(&["nonsense", domid]),
        }
    }

    fn fragment(&mut self) -> Vec<u8> {
        self.random
            .pick(&model::FRAGMENTS)
            .map(|piece| piece.to_vec())
            .unwrap_or_default()
    }

    pub(crate) fn noise(&mut self, most: usize) -> Vec<u8> {
        let count = self.random.index(most);
        (0..count)
            .map(|_| self.random.next().to_le_bytes()[0])
            .collect()
    }
}

/// Strings, each with its NUL.
pub(crate) fn words(strings: &[&str]) -> Vec<u8> {
    strings
        .iter()
        .flat_map(|text| [text.as_bytes(), b"\0"].concat())
        .collect()
}
