//! The policies `protocol` and `chinese_wall`, and what layers withhold: said once more, in the plainest way.

use std::rc::Rc;

use crate::nodes::{Change, Node, Tree, cut};
use crate::{Errno, Model, Request};

/// Where the choices of `chinese_wall` are kept.
const CHOICES: &str = "/tool/xenstored/chinese-wall";
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
}

impl Rules {
    fn is_empty(&self) -> bool {
        !self.protocol && self.classes.is_empty()
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

fn lies_in(path: &str, above: &str) -> bool {
    let rest = path.strip_prefix(above);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || above == "/")
}

fn choice_of(class: &str, who: u16) -> String {
    format!("{CHOICES}/{class}/{who}")
}

impl Model {
    /// What the administrator chose at the start: policies, and the lists as they are kept in nodes.
    pub fn configure(&mut self, rules: Rules, policy: &str, layer: &str) {
        if !rules.is_empty() {
            self.keep("/tool/xenstored/policy", policy);
        }
        if !layer.is_empty() {
            self.keep("/tool/xenstored/layer", layer);
        }
        self.rules = rules;
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
                self.keep(&choice, &member);
            }
        }
    }

    /// Forgets what a domain has chosen that is no more.
    pub(crate) fn forget_choices(&mut self, who: u16) {
        let classes = self.rules.classes.iter();
        let choices: Vec<String> = classes.map(|(class, _)| choice_of(class, who)).collect();
        for path in choices {
            if self.tree.contains_key(path.as_str()) {
                let before = self.tree.clone();
                cut(&mut self.tree, &path);
                self.version += 1;
                let removed = true;
                self.tell(&before, &[Change { path, removed }], None);
            }
        }
    }

    /// Writes a node on the store's own account.
    fn keep(&mut self, path: &str, value: &str) {
        let before = self.tree.clone();
        let acl = vec![(b'n', self.life(self.settings.privileged))];
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
