//! Requests on nodes, on the store's own or on those of a transaction (protocol.md sections 3, 5 and 6).

use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;

use crate::acl::{Acl, Subject, Who, owner};
use crate::payload::{domid, exactly, node_path, number, path, strings};
use crate::policy::Rules;
use crate::{
    ANY, Answer, DOMID_ANY, Domain, Errno, Limits, PAYLOAD_MAX, Quota, RESERVED, Reply, limit,
    within,
};

/// A node, or a special name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) value: Vec<u8>,
    pub(crate) acl: Acl,
    pub(crate) children: Vec<Rc<str>>,
}

/// All nodes by path. Copies share what is equal.
pub(crate) type Tree = Rc<BTreeMap<Rc<str>, Rc<Node>>>;

/// A node of which watchers hear.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) path: String,
    pub(crate) removed: bool,
}

/// The nodes that a transaction has touched, in order.
#[derive(Clone, Default)]
pub(crate) struct Touched {
    paths: Vec<String>,
    /// There was no memory for a request: whether its nodes were noted nobody knows, so that the server says how many are too many.
    pub(crate) unsure: bool,
    pub(crate) overflowed: bool,
}

/// What one request sees: the nodes that it works on, and who its client is.
pub(crate) struct View<'a> {
    pub(crate) tree: &'a mut Tree,
    pub(crate) changes: &'a mut Vec<Change>,
    /// In a transaction.
    pub(crate) touched: Option<&'a mut Touched>,
    /// Nodes that the client owns outside of this tree's base: what was committed meanwhile counts, too.
    pub(crate) owned_elsewhere: isize,
    pub(crate) domains: &'a BTreeMap<u16, Domain>,
    pub(crate) absent: &'a [u16],
    pub(crate) limits: Limits,
    pub(crate) features: u32,
    pub(crate) subject: Subject,
    /// The privileged domain's permissions for itself alone.
    pub(crate) own: &'a Acl,
    /// A domid of which the server should have asked the machine.
    pub(crate) unasked: Option<u16>,
    pub(crate) rules: &'a Rules,
    /// The committed nodes.
    pub(crate) store: &'a Tree,
    /// What the policies let pass last: the type of the request, and its path.
    pub(crate) passed: Option<(u32, String)>,
}

impl Touched {
    /// Notes a path, if it may be one more.
    fn add(&mut self, path: &str, limit: usize) -> Result<(), Errno> {
        if self.paths.iter().any(|known| known == path) {
            return Ok(());
        }
        if !self.unsure && !within(self.paths.len() + 1, limit) {
            self.overflowed = true;
            return Err("ENOSPC");
        }
        self.paths.push(path.to_owned());
        Ok(())
    }

    /// Notes all that another one has.
    ///
    /// # Errors
    /// ENOSPC if that is too much; then nothing is noted.
    pub(crate) fn join(&mut self, other: &Self, limit: usize) -> Result<(), Errno> {
        let mut both = self.paths.clone();
        for path in &other.paths {
            if !both.contains(path) {
                both.push(path.clone());
            }
        }
        let unsure = self.unsure || other.unsure;
        if !unsure && !within(both.len(), limit) {
            return Err("ENOSPC");
        }
        (self.paths, self.unsure) = (both, unsure);
        Ok(())
    }

    pub(crate) fn order(&self, path: &str) -> Option<usize> {
        self.paths.iter().position(|known| known == path)
    }
}

/// Whether a type of request is one on nodes.
pub(crate) fn is_about_nodes(kind: u32) -> bool {
    matches!(kind, 1..=3 | 11..=14 | 22)
}

impl View<'_> {
    pub(crate) fn execute(&mut self, kind: u32, payload: &[u8]) -> Reply {
        self.ask(kind, payload)?;
        match kind {
            1 => self.directory(one_path(payload)?),
            2 => self.read(one_path(payload)?),
            3 => self.get_perms(one_path(payload)?),
            11 => self.write(payload),
            12 => self.mkdir(one_path(payload)?),
            13 => self.rm(one_path(payload)?),
            14 => self.set_perms(payload),
            22 => self.part(payload),
            _ => Err("ENOSYS"),
        }
    }

    /// Asks the policies about what the lists allow.
    fn ask(&mut self, kind: u32, payload: &[u8]) -> Result<(), Errno> {
        let written = strings(payload).first().copied().unwrap_or_default();
        let Ok(path) = self.any_path(written) else {
            return Ok(());
        };
        let right = match kind {
            1..=3 | 22 => b'r',
            14 => b'o',
            _ => b'w',
        };
        let who = self.subject.who.domid();
        if self.nearest(&path, right).is_err() {
            return Ok(());
        }
        let is_refused = self
            .rules
            .refuse(who, (kind, &path, payload), self.tree, self.store);
        if !self.subject.privileged && is_refused {
            return Err("EACCES");
        }
        if self.rules.lease {
            self.judge_lease(kind, &path, payload)?;
        }
        self.passed = Some((kind, path));
        Ok(())
    }

    fn directory(&mut self, written: &[u8]) -> Reply {
        let path = self.node_path(written)?;
        let list = list_of(&*self.allowed(&path, b'r')?);
        if list.len() > PAYLOAD_MAX {
            return Err("E2BIG");
        }
        Ok(Answer::Bytes(list))
    }

    fn part(&mut self, payload: &[u8]) -> Reply {
        let [written, offset] = exactly(payload)?;
        let path = self.node_path(written)?;
        let offset = usize::try_from(number(offset, u32::MAX)?).unwrap_or(usize::MAX);
        let list = list_of(&*self.allowed(&path, b'r')?);
        Ok(Answer::Part(list.get(offset..).unwrap_or_default().into()))
    }

    fn read(&mut self, written: &[u8]) -> Reply {
        let path = self.node_path(written)?;
        Ok(Answer::Bytes(self.allowed(&path, b'r')?.value.clone()))
    }

    fn get_perms(&mut self, written: &[u8]) -> Reply {
        let path = self.any_path(written)?;
        let node = self.allowed(&path, b'r')?;
        let text = permissions(&node.acl, self.domains);
        Ok(Answer::Bytes(text.into_bytes()))
    }

    fn write(&mut self, payload: &[u8]) -> Reply {
        let written = *strings(payload).first().ok_or("EINVAL")?;
        let value = payload.get(written.len() + 1..).unwrap_or_default();
        let path = self.node_path(written)?;
        self.touch(&path)?;
        if self.nearest(&path, b'w')? != path {
            self.create(&path, value.to_vec())?;
            return ok();
        }
        let mut node = self.node(&path)?;
        node.value = value.to_vec();
        self.check_size(&node)?;
        self.put(&path, node);
        self.change(&path, false);
        ok()
    }

    fn mkdir(&mut self, written: &[u8]) -> Reply {
        let path = self.node_path(written)?;
        self.touch(&path)?;
        if self.nearest(&path, b'w')? != path {
            self.create(&path, Vec::new())?;
        }
        ok()
    }

    fn rm(&mut self, written: &[u8]) -> Reply {
        let path = self.node_path(written)?;
        self.touch(&path)?;
        let nearest = self.nearest(&path, b'w')?;
        let above = parent(&path).ok_or("EINVAL")?;
        if nearest == path {
            cut(self.tree, &path);
            self.change(&path, true);
        } else {
            self.touch(above)?;
            self.node(above)?;
        }
        ok()
    }

    fn set_perms(&mut self, payload: &[u8]) -> Reply {
        let words = strings(payload);
        let (written, entries) = words.split_first().ok_or("EINVAL")?;
        let path = self.any_path(written)?;
        if entries.is_empty() {
            return Err("EINVAL");
        }
        if !within(entries.len(), limit(&self.limits, Quota::NodePermissions)) {
            return Err("ENOSPC");
        }
        let entries: Vec<(u8, u16)> = entries
            .iter()
            .map(|entry| permission(entry))
            .collect::<Result<_, _>>()?;
        let mut node = Node::clone(&*self.allowed(&path, b'o')?);
        let (_, new_owner) = *entries.first().ok_or("EINVAL")?;
        let present = owner(&node.acl).map(Who::domid);
        if !self.subject.privileged && Some(new_owner) != present {
            return Err("EPERM");
        }
        if !matches!(self.meant(new_owner), Who::Life(..)) {
            return Err("ENOENT");
        }
        node.acl = entries
            .iter()
            .map(|(letter, domid)| (*letter, self.meant(*domid)))
            .collect();
        self.put(&path, node);
        self.change(&path, false);
        ok()
    }

    /// Whom an entry means that is made now. The owner's entry cannot mean all.
    fn meant(&mut self, domid: u16) -> Who {
        if domid == ANY && self.features & DOMID_ANY != 0 {
            return Who::Any;
        }
        if domid >= RESERVED || self.absent.contains(&domid) {
            return Who::Nobody(domid);
        }
        match self.domains.get(&domid) {
            Some(domain) => Who::Life(domid, domain.life),
            None => {
                self.unasked = Some(domid);
                Who::Nobody(domid)
            }
        }
    }

    /// Makes a node and those missing above it, all or none. The right to do so was judged.
    fn create(&mut self, path: &str, value: Vec<u8>) -> Result<(), Errno> {
        let mut missing = vec![path];
        let mut nearest = parent(path).ok_or("EIO")?;
        while !self.tree.contains_key(nearest) {
            missing.push(nearest);
            nearest = parent(nearest).ok_or("EIO")?;
        }
        missing.reverse();
        let mut above = self.node(nearest)?;
        let mut acl = above.acl.clone();
        if !self.subject.privileged
            && let Some((_, owner)) = acl.first_mut()
        {
            *owner = self.subject.who;
        }
        if !self.subject.privileged {
            let owned =
                owned(self.tree, self.subject.who).saturating_add_signed(self.owned_elsewhere);
            let nodes = limit(&self.limits, Quota::Nodes);
            if !within(owned + missing.len(), nodes) {
                return Err("ENOSPC");
            }
        }
        let mut made = Vec::new();
        let mut at = nearest;
        for next in &missing {
            above.children.push(name_of(next).into());
            self.check_size(&above)?;
            made.push((at, above));
            above = Node {
                value: Vec::new(),
                acl: acl.clone(),
                children: Vec::new(),
            };
            at = next;
        }
        above.value = value;
        self.check_size(&above)?;
        made.push((at, above));
        for silent in made.iter().map(|(path, _)| *path).take(missing.len()) {
            self.touch(silent)?;
        }
        for (path, node) in made {
            self.put(path, node);
        }
        self.change(path, false);
        Ok(())
    }

    fn check_size(&self, node: &Node) -> Result<(), Errno> {
        let size = 16 + 8 * node.acl.len() + node.value.len() + list_of(node).len();
        if within(size, limit(&self.limits, Quota::NodeSize)) {
            Ok(())
        } else {
            Err("ENOSPC")
        }
    }

    /// The node, if the client has the right; else what it may know.
    fn allowed(&mut self, path: &str, right: u8) -> Result<Rc<Node>, Errno> {
        self.touch(path)?;
        let nearest = self.nearest(path, right)?;
        let node = self.tree.get(path).filter(|_| nearest == path);
        node.cloned().ok_or("ENOENT")
    }

    /// The path, or the nearest one above it that exists, if the client has the right to that. Above a special name there is nothing: that
    /// is the privileged domain's own.
    fn nearest<'p>(&self, path: &'p str, right: u8) -> Result<&'p str, Errno> {
        let mut nearest = path;
        while !self.tree.contains_key(nearest)
            && let Some(above) = parent(nearest)
        {
            nearest = above;
        }
        let may = match self.tree.get(nearest) {
            Some(node) => self.subject.may(&node.acl, right),
            None => self.subject.may(self.own, right),
        };
        if may { Ok(nearest) } else { Err("EACCES") }
    }

    fn node(&self, path: &str) -> Result<Node, Errno> {
        let node = self.tree.get(path).ok_or("ENOENT")?;
        Ok(Node::clone(node))
    }

    fn put(&mut self, path: &str, node: Node) {
        Rc::make_mut(self.tree).insert(path.into(), Rc::new(node));
    }

    fn touch(&mut self, path: &str) -> Result<(), Errno> {
        let limit = limit(&self.limits, Quota::TransactionNodes);
        match &mut self.touched {
            Some(touched) => touched.add(path, limit),
            None => Ok(()),
        }
    }

    fn change(&mut self, path: &str, removed: bool) {
        let path = path.to_owned();
        self.changes.push(Change { path, removed });
    }

    fn node_path(&self, written: &[u8]) -> Result<String, Errno> {
        node_path(written, self.subject.who.domid(), &self.limits)
    }

    fn any_path(&self, written: &[u8]) -> Result<String, Errno> {
        path(written, self.subject.who.domid(), &self.limits)
    }
}

/// A list as it is shown: without the domains that are no more, unless it is the owner.
pub(crate) fn permissions(acl: &Acl, domains: &BTreeMap<u16, Domain>) -> String {
    let is_listed = |who: Who| match who {
        Who::Life(domid, life) => domains
            .get(&domid)
            .is_some_and(|domain| domain.life == life),
        Who::Any | Who::Nobody(_) => true,
    };
    let shown = acl.iter().enumerate();
    let shown = shown.filter(|(place, (_, who))| *place == 0 || is_listed(*who));
    shown
        .map(|(_, (letter, who))| format!("{}{}\0", char::from(*letter), who.domid()))
        .collect()
}

fn one_path(payload: &[u8]) -> Result<&[u8], Errno> {
    let [path] = exactly(payload)?;
    Ok(path)
}

fn permission(text: &[u8]) -> Result<(u8, u16), Errno> {
    let (letter, rest) = text.split_first().ok_or("EINVAL")?;
    if !b"nrwb".contains(letter) {
        return Err("EINVAL");
    }
    Ok((*letter, domid(rest)?))
}

fn ok() -> Reply {
    Ok(Answer::Bytes(b"OK\0".to_vec()))
}

fn list_of(node: &Node) -> Vec<u8> {
    let names = node.children.iter();
    names
        .flat_map(|name| [name.as_bytes(), b"\0"].concat())
        .collect()
}

pub(crate) fn is_special(path: &str) -> bool {
    path.starts_with('@')
}

/// The path one level up. A special name has none, but what is below one has.
pub(crate) fn parent(path: &str) -> Option<&str> {
    let (above, name) = path.rsplit_once('/')?;
    if name.is_empty() {
        return None;
    }
    Some(if above.is_empty() { "/" } else { above })
}

fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// The paths below one.
pub(crate) fn below(tree: &Tree, path: &str) -> Vec<String> {
    let prefix = format!("{path}/");
    let from = tree.range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded));
    let all = from.map(|(path, _)| &**path);
    all.take_while(|other| other.starts_with(&prefix))
        .map(str::to_owned)
        .collect()
}

/// Removes a node with all below.
pub(crate) fn cut(tree: &mut Tree, path: &str) {
    let doomed = below(tree, path);
    let all = Rc::make_mut(tree);
    for other in doomed {
        all.remove(other.as_str());
    }
    all.remove(path);
    let name = name_of(path);
    if let Some(above) = parent(path).and_then(|above| all.get_mut(above)) {
        Rc::make_mut(above)
            .children
            .retain(|child| &**child != name);
    }
}

/// How many nodes someone owns.
pub(crate) fn owned(tree: &Tree, who: Who) -> usize {
    let nodes = tree.iter().filter(|(path, _)| !is_special(path));
    nodes
        .filter(|(_, node)| owner(&node.acl) == Some(who))
        .count()
}

/// How many nodes each owner has.
pub(crate) fn owners(tree: &Tree) -> BTreeMap<Who, usize> {
    let mut owners = BTreeMap::new();
    for node in tree.iter().filter(|(path, _)| !is_special(path)) {
        if let Some(owner) = owner(&node.1.acl) {
            *owners.entry(owner).or_default() += 1;
        }
    }
    owners
}
