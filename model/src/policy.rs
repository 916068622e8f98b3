//! The policies `protocol` and `chinese_wall`, the lists of policies and layers, and what layers withhold: said once more, in the plainest way.

use std::rc::Rc;

use crate::nodes::{Change, Node, Tree, cut};
use crate::{Errno, Model, Request};

/// Where the choices of `chinese_wall` are kept.
const CHOICES: &str = "/tool/xenstored/chinese-wall";
/// Layers that there are, of all that can be named.
pub const LAYERS: [&str; 9] = [
    "trace",
    "stats",
    "rate:500/s,burst=3",
    "rate:2000/s,who=all",
    "delay:1ms,read=0ms",
    "delay:write=3ms,end=2ms,who=all",
    "error:EAGAIN@5%,kind=end",
    "error:EIO@3%,seed=7",
    "error:EINVAL@20%,kind=write,while=/t/a",
];
/// Layers that there can be at a time.
const LAYERS_MAX: usize = 16;
/// The frontend's keys of the one class of devices that is modelled.
const STATE: &str = "device/vif/0/state";
const BACKEND: &str = "device/vif/0/backend";

/// The policies in force besides the access control lists.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// `protocol`, for the device `vif/0` of a guest.
    pub protocol: bool,
    /// `chinese_wall`: classes by name, each with the paths of its members.
    pub classes: Vec<(String, Vec<String>)>,
    /// `lease`.
    pub lease: bool,
}

impl Rules {
    /// Reads a list; `None` if it is none.
    fn parse(list: &str) -> Option<Self> {
        let mut rules = Self::default();
        let mut items = items(list).into_iter();
        if items.next()? != "legacy" {
            return None;
        }
        for item in items {
            match item.split_once(':') {
                None if item == "protocol" && !rules.protocol => rules.protocol = true,
                None if item == "lease" && !rules.lease => rules.lease = true,
                Some(("chinese_wall", classes)) if rules.classes.is_empty() => {
                    rules.classes = read_classes(classes)?;
                }
                _ => return None,
            }
        }
        Some(rules)
    }

    /// The classes to which a path belongs, each with the member.
    fn members<'r>(&'r self, path: &str) -> impl Iterator<Item = (&'r str, &'r str)> {
        self.classes.iter().filter_map(move |(class, members)| {
            let member = members.iter().find(|member| lies_in(path, member))?;
            Some((class.as_str(), member.as_str()))
        })
    }

    /// Whether a domain has chosen another side than the one where a path lies.
    pub(crate) fn is_kept_out(&self, who: u16, path: &str, store: &Tree) -> bool {
        self.members(path).any(|(class, member)| {
            let choice = store.get(choice_of(class, who).as_str());
            choice.is_some_and(|choice| choice.value != member.as_bytes())
        })
    }

    /// Whether a request of an unprivileged domain, which the lists allow, is refused.
    pub(crate) fn refuse(
        &self,
        who: u16,
        (kind, path, payload): (u32, &str, &[u8]),
        seen: &Tree,
        store: &Tree,
    ) -> bool {
        let mut all = self.classes.iter().flat_map(|(_, members)| members);
        let holds_member = kind == 13 && all.any(|member| member != path && lies_in(member, path));
        let breaks_protocol = self.protocol
            && matches!(kind, 11..=14)
            && breaks_protocol(who, (kind, path, payload), seen);
        self.is_kept_out(who, path, store) || holds_member || breaks_protocol
    }
}

/// The items of a list: commas part them, and a part with `=` before any colon belongs to the item before it.
fn items(list: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    for part in list.split(',') {
        let head = part.split(':').next().unwrap_or_default();
        match items.last_mut() {
            Some(last) if head.contains('=') => *last = format!("{last},{part}"),
            _ => items.push(part.to_owned()),
        }
    }
    items
}

fn read_classes(text: &str) -> Option<Vec<(String, Vec<String>)>> {
    let class = |text: &str| {
        let (name, members) = text.split_once('=')?;
        let members: Vec<String> = members.split('+').map(str::to_owned).collect();
        let overlap = |(place, one): (usize, &String)| {
            let mut others = members.iter().skip(place + 1);
            others.any(|other| lies_in(one, other) || lies_in(other, one))
        };
        let is_wrong = members.len() < 2 || members.iter().any(|path| !path.starts_with('/'));
        let is_wrong = is_wrong || name.is_empty() || members.iter().enumerate().any(overlap);
        (!is_wrong).then(|| (name.to_owned(), members.clone()))
    };
    text.split(',').map(class).collect()
}

fn breaks_protocol(who: u16, (kind, path, payload): (u32, &str, &[u8]), seen: &Tree) -> bool {
    let Some((domid, rest)) = path
        .strip_prefix("/local/domain/")
        .and_then(|rest| rest.split_once('/'))
    else {
        return false;
    };
    if rest != "device" && !rest.starts_with("device/") {
        return false;
    }
    let home = format!("/local/domain/{domid}");
    let is_pair = seen.contains_key(format!("{home}/{BACKEND}").as_str());
    if domid != who.to_string() || rest != STATE || !is_pair {
        return true;
    }
    let steps = |from: &[u8]| match from {
        b"1" => "13456",
        b"3" => "3456",
        b"4" => "345678",
        b"5" => "56",
        b"6" => "61",
        b"2" => "2",
        b"7" => "74568",
        b"8" => "84567",
        _ => "013456",
    };
    let from = seen.get(path).map(|node| node.value.clone());
    let value = payload.splitn(2, |byte| *byte == 0).nth(1);
    match (kind, value) {
        (11, Some([digit])) => {
            let from = from.unwrap_or_default();
            !steps(&from).as_bytes().contains(digit)
        }
        (14, _) => false,
        _ => true,
    }
}

pub(crate) fn lies_in(path: &str, above: &str) -> bool {
    let rest = path.strip_prefix(above);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || above == "/")
}

fn choice_of(class: &str, who: u16) -> String {
    format!("{CHOICES}/{class}/{who}")
}

fn is_layer(word: &str) -> bool {
    LAYERS.contains(&word)
}

impl Model {
    /// What the administrator chose at the start.
    pub fn configure(&mut self, policies: &str, layers: &str) {
        self.rules = Rules::parse(policies).unwrap_or_default();
        self.policies = policies.to_owned();
        self.layers = items(layers);
        self.layers.retain(|word| !word.is_empty());
        self.show_lists();
        self.begin_leases();
    }

    /// Another instance of the store has taken over: what policies do not keep in nodes begins anew. Whether nodes have changed by that.
    pub fn taken_over(&mut self) -> bool {
        let version = self.version;
        self.begin_leases();
        self.version != version
    }

    pub(crate) fn set_policies(&mut self, list: &str) -> Result<(), Errno> {
        self.rules = Rules::parse(list).ok_or("EINVAL")?;
        self.policies = list.to_owned();
        self.show_lists();
        self.begin_leases();
        Ok(())
    }

    /// Replaces all layers by those of a list that there are; whether these are all.
    pub(crate) fn set_layers(&mut self, list: &str) -> bool {
        let words = items(list).into_iter().filter(|word| !word.is_empty());
        let (good, bad): (Vec<String>, Vec<String>) = words.partition(|word| is_layer(word));
        let is_all = bad.is_empty() && good.len() <= LAYERS_MAX;
        self.layers = good;
        self.layers.truncate(LAYERS_MAX);
        self.show_lists();
        is_all
    }

    pub(crate) fn add_layer(&mut self, word: &str) -> Result<(), Errno> {
        if !is_layer(word) || self.layers.len() >= LAYERS_MAX {
            return Err("EINVAL");
        }
        self.layers.push(word.to_owned());
        self.show_lists();
        Ok(())
    }

    pub(crate) fn remove_layer(&mut self, place: usize) -> Result<(), Errno> {
        if place >= self.layers.len() {
            return Err("ENOENT");
        }
        self.layers.remove(place);
        self.show_lists();
        Ok(())
    }

    /// Shows lists other than the defaults.
    fn show_lists(&mut self) {
        let lists = [
            ("/tool/xenstored/policy", self.policies.clone(), "legacy"),
            ("/tool/xenstored/layer", self.layers.join(","), ""),
        ];
        for (path, words, default) in lists {
            let shown = self.tree.get(path).map(|node| node.value.clone());
            if words == default {
                self.drop_node(path);
            } else if shown.as_deref() != Some(words.as_bytes()) {
                self.keep(path, &words, self.settings.privileged);
            }
        }
    }

    /// A layer answered a request with an error; it did not run.
    pub fn withheld(&mut self, who: u16, request: &Request<'_>, error: Errno) {
        if !self.begin(who, self.is_privileged(who)) {
            return;
        }
        if request.kind == 7
            && !matches!(error, "EINVAL" | "ENOENT")
            && let Some(client) = self.clients.get_mut(&who)
        {
            client.transactions.remove(&request.tx_id);
            client.end_inside();
        }
        self.finish(who, request, Err(error));
        self.cause = None;
    }

    /// Whether a client may watch a path; if so, that is a choice.
    pub(crate) fn may_watch(&mut self, who: u16, path: &str) -> Result<(), Errno> {
        if self.is_privileged(who) {
            return Ok(());
        }
        if self.rules.is_kept_out(who, path, &self.tree) {
            return Err("EACCES");
        }
        self.choose(who, path);
        Ok(())
    }

    /// Notes the choice that an access is, whatever became of the request.
    pub(crate) fn choose(&mut self, who: u16, path: &str) {
        let members: Vec<(String, String)> = self
            .rules
            .members(path)
            .map(|(class, member)| (choice_of(class, who), member.to_owned()))
            .collect();
        for (choice, member) in members {
            if !self.tree.contains_key(choice.as_str()) {
                self.keep(&choice, &member, self.settings.privileged);
            }
        }
    }

    /// Forgets what a domain has chosen that is no more.
    pub(crate) fn forget_choices(&mut self, who: u16) {
        let folder = self.tree.get(CHOICES);
        let classes: Vec<Rc<str>> = folder.map_or(Vec::new(), |folder| folder.children.clone());
        for class in classes {
            self.drop_node(&choice_of(&class, who));
        }
    }

    /// Removes a node on the store's own account, if it is there.
    pub(crate) fn drop_node(&mut self, path: &str) {
        if self.tree.contains_key(path) {
            let before = self.tree.clone();
            cut(&mut self.tree, path);
            self.version += 1;
            let (path, removed) = (path.to_owned(), true);
            self.tell(&before, &[Change { path, removed }], None);
        }
    }

    /// Writes a node on the store's own account; what is made belongs to a domain, or to the privileged one if that is not known.
    pub(crate) fn keep(&mut self, path: &str, value: &str, owner: u16) {
        let before = self.tree.clone();
        let is_known = self.domains.contains_key(&owner);
        let owner = if is_known {
            owner
        } else {
            self.settings.privileged
        };
        let acl = vec![(b'n', self.life(owner))];
        let tree = Rc::make_mut(&mut self.tree);
        let mut at = String::new();
        for name in path.split('/').skip(1) {
            let above = if at.is_empty() { "/" } else { at.as_str() };
            let next = format!("{at}/{name}");
            if !tree.contains_key(next.as_str()) {
                if let Some(parent) = tree.get_mut(above) {
                    Rc::make_mut(parent).children.push(name.into());
                }
                let node = Node {
                    value: Vec::new(),
                    acl: acl.clone(),
                    children: Vec::new(),
                };
                tree.insert(next.as_str().into(), Rc::new(node));
            }
            at = next;
        }
        if let Some(node) = tree.get_mut(path) {
            Rc::make_mut(node).value = value.as_bytes().to_vec();
        }
        self.version += 1;
        let change = Change {
            path: path.to_owned(),
            removed: false,
        };
        self.tell(&before, &[change], None);
    }
}
