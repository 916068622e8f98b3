//! The store once more, slow and obvious: a map from path to node, cloned whole for each transaction.
//!
//! Written from the protocol's description, not from the server. A transaction that changed something commits if all of its requests,
//! run again on the store as it is now, get the same replies; that is strict serializability, taken literally.

use std::collections::{BTreeMap, BTreeSet};

/// `DOMID_ANY`.
pub(crate) const ANY: u16 = 32757;
/// The privileged domain.
pub(crate) const TOOLSTACK: u16 = 0;

/// Limits of all others. What is not here has no limit in these tests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) nodes: usize,
    pub(crate) watches: usize,
    pub(crate) transactions: usize,
    pub(crate) entries: usize,
}

/// A request, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Directory(String),
    Part(String),
    Read(String),
    GetPerms(String),
    Write(String, Vec<u8>),
    Mkdir(String),
    Rm(String),
    SetPerms(String, Vec<(char, u16)>),
    Watch(String, String, Option<u32>),
    Unwatch(String, String),
    Start,
    End(bool),
    Reset,
    Introduce(u16),
    Release(u16),
    Resume(u16),
}

/// The payload, or an error's name. That of a list in parts comes without its generation.
pub(crate) type Reply = Result<Vec<u8>, &'static str>;

/// What a domain is told: the path as it is written to it, and the token.
pub(crate) type Event = (String, String);

/// What happens because of one step: for each domain groups of events, in order; inside a group any order will do.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) events: BTreeMap<u16, Vec<Vec<Event>>>,
    group: usize,
}

/// Whom an entry of a list means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// A domain in one of its lives.
    Life(u16, u32),
    Any,
    Nobody(u16),
}

/// A list of permissions; the first entry is the owner's.
type Acl = Vec<(char, Who)>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    value: Vec<u8>,
    acl: Acl,
    children: Vec<String>,
}

type Tree = BTreeMap<String, Node>;

/// A node of which watchers hear.
#[derive(Clone, Debug)]
struct Change {
    path: String,
    removed: bool,
}

#[derive(Default)]
struct Client {
    watches: Vec<Watch>,
    transactions: BTreeMap<u32, Transaction>,
    last_id: u32,
}

struct Watch {
    path: String,
    token: String,
    depth: Option<u32>,
    relative: bool,
}

struct Transaction {
    base: Tree,
    tree: Tree,
    log: Vec<(Request, Reply)>,
    changes: Vec<Change>,
}

pub(crate) struct Model {
    limits: Limits,
    tree: Tree,
    /// Which life a domain is in.
    lives: BTreeMap<u16, u32>,
    clients: BTreeMap<u16, Client>,
    shut_down: BTreeSet<u16>,
    born: u32,
}

/// What one request sees: the tree that it works on, and what its client has elsewhere.
struct View<'a> {
    tree: &'a mut Tree,
    changes: &'a mut Vec<Change>,
    /// Nodes that the client owns outside of this tree's base: what was committed meanwhile counts, too.
    owned_elsewhere: isize,
    lives: &'a BTreeMap<u16, u32>,
    limits: Limits,
    who: u16,
}

impl Model {
    pub(crate) fn new(limits: Limits) -> Self {
        let mut model = Self {
            limits,
            tree: Tree::new(),
            lives: BTreeMap::new(),
            clients: BTreeMap::new(),
            shut_down: BTreeSet::new(),
            born: 0,
        };
        model.create(TOOLSTACK);
        model.clients.insert(TOOLSTACK, Client::default());
        let owner = model.life(TOOLSTACK);
        let node = |acl: Acl, children: &[&str]| Node {
            value: Vec::new(),
            acl,
            children: children.iter().map(|name| (*name).to_owned()).collect(),
        };
        let mine = vec![('n', owner)];
        let everyones = vec![('n', owner), ('r', Who::Any)];
        model.tree = Tree::from([
            ("/".to_owned(), node(mine.clone(), &["tool"])),
            ("/tool".to_owned(), node(mine.clone(), &["xenstored"])),
            ("/tool/xenstored".to_owned(), node(mine.clone(), &[])),
            ("@introduceDomain".to_owned(), node(mine, &[])),
            ("@releaseDomain".to_owned(), node(everyones, &[])),
        ]);
        model
    }

    /// A new domain exists.
    pub(crate) fn create(&mut self, domid: u16) {
        self.born += 1;
        self.lives.insert(domid, self.born);
    }

    /// Nodes that a domain owns, if it is introduced.
    pub(crate) fn nodes_of(&self, domid: u16) -> Option<usize> {
        self.clients.get(&domid)?;
        Some(owned(&self.tree, self.life(domid)))
    }

    pub(crate) fn shut_down(&mut self, domid: u16) -> Told {
        let mut told = Told::default();
        if self.clients.contains_key(&domid) && self.shut_down.insert(domid) {
            self.tell_special(&mut told, "@releaseDomain", domid);
        }
        told
    }

    /// A domain is no more: its connection first, then its nodes, then its entries.
    pub(crate) fn die(&mut self, domid: u16) -> Told {
        let mut told = Told::default();
        let life = self.life(domid);
        let client = self.clients.remove(&domid);
        while let Some(path) = self.topmost_of(life) {
            let before = self.tree.clone();
            cut(&mut self.tree, &path);
            let change = Change {
                path,
                removed: true,
            };
            self.tell(&mut told, &before, &[change]);
        }
        self.lives.remove(&domid);
        self.shut_down.remove(&domid);
        strip(&mut self.tree, life);
        for client in self.clients.values_mut() {
            for transaction in client.transactions.values_mut() {
                strip(&mut transaction.base, life);
                strip(&mut transaction.tree, life);
            }
        }
        if client.is_some() {
            self.tell_special(&mut told, "@releaseDomain", domid);
        }
        told.merge();
        told
    }

    /// Answers a request, and says who hears of it.
    pub(crate) fn request(&mut self, who: u16, tx: u32, request: &Request) -> (Reply, Told) {
        let mut told = Told::default();
        let reply = self.answer(who, tx, request, &mut told);
        (reply, told)
    }

    /// The event that follows a WATCH that went well.
    pub(crate) fn first_event(request: &Request) -> Option<Event> {
        match request {
            Request::Watch(path, token, _) => Some((path.clone(), token.clone())),
            _ => None,
        }
    }

    fn answer(&mut self, who: u16, tx: u32, request: &Request, told: &mut Told) -> Reply {
        if matches!(
            request,
            Request::Introduce(_) | Request::Release(_) | Request::Resume(_)
        ) && who != TOOLSTACK
        {
            return Err("EACCES");
        }
        let heeds = !matches!(request, Request::Watch(..) | Request::Unwatch(..));
        let client = self.clients.get_mut(&who).ok_or("EIO")?;
        if heeds && tx != 0 && !client.transactions.contains_key(&tx) {
            return Err("ENOENT");
        }
        match request {
            Request::Start if tx != 0 => Err("EBUSY"),
            Request::Start => self.start(who),
            Request::End(commit) => self.end(who, tx, *commit, told),
            Request::Watch(path, token, depth) => self.watch(who, path, token, *depth),
            Request::Unwatch(path, token) => {
                let path = absolute(who, path);
                let watches = &mut client.watches;
                let at = watches
                    .iter()
                    .position(|watch| watch.path == path && watch.token == *token);
                watches.remove(at.ok_or("ENOENT")?);
                ok()
            }
            Request::Reset => {
                client.watches.clear();
                client.transactions.clear();
                ok()
            }
            Request::Introduce(domid) => self.introduce(*domid, told),
            Request::Release(domid) => self.release(*domid, told),
            Request::Resume(domid) => {
                if !self.clients.contains_key(domid) {
                    return Err("ENOENT");
                }
                self.shut_down.remove(domid);
                ok()
            }
            _ if tx == 0 => self.outside(who, request, told),
            _ => self.inside(who, tx, request),
        }
    }

    /// A request on nodes, outside of any transaction.
    fn outside(&mut self, who: u16, request: &Request, told: &mut Told) -> Reply {
        let before = self.tree.clone();
        let mut changes = Vec::new();
        let mut view = View {
            tree: &mut self.tree,
            changes: &mut changes,
            owned_elsewhere: 0,
            lives: &self.lives,
            limits: self.limits,
            who,
        };
        let reply = view.execute(request);
        if reply.is_err() {
            self.tree = before;
            return reply;
        }
        self.tell(told, &before, &changes);
        reply
    }

    fn inside(&mut self, who: u16, tx: u32, request: &Request) -> Reply {
        let life = self.life(who);
        let committed = owned(&self.tree, life);
        let client = self.clients.get_mut(&who).ok_or("EIO")?;
        let transaction = client.transactions.get_mut(&tx).ok_or("ENOENT")?;
        let before = transaction.tree.clone();
        let mut changes = Vec::new();
        let mut view = View {
            tree: &mut transaction.tree,
            changes: &mut changes,
            owned_elsewhere: committed
                .checked_signed_diff(owned(&transaction.base, life))
                .ok_or("EIO")?,
            lives: &self.lives,
            limits: self.limits,
            who,
        };
        let reply = view.execute(request);
        if reply.is_ok() {
            transaction.changes.extend(changes);
        } else {
            transaction.tree = before;
        }
        transaction.log.push((request.clone(), reply.clone()));
        reply
    }

    fn start(&mut self, who: u16) -> Reply {
        let limit = self.limits.transactions;
        let client = self.clients.get_mut(&who).ok_or("EIO")?;
        if who != TOOLSTACK && client.transactions.len() >= limit {
            return Err("ENOSPC");
        }
        client.last_id += 1;
        let transaction = Transaction {
            base: self.tree.clone(),
            tree: self.tree.clone(),
            log: Vec::new(),
            changes: Vec::new(),
        };
        client.transactions.insert(client.last_id, transaction);
        Ok(format!("{}\0", client.last_id).into_bytes())
    }

    /// Commits if running all again makes no difference.
    fn end(&mut self, who: u16, tx: u32, commit: bool, told: &mut Told) -> Reply {
        let client = self.clients.get_mut(&who).ok_or("EIO")?;
        let transaction = client.transactions.remove(&tx).ok_or("ENOENT")?;
        if !commit || transaction.changes.is_empty() {
            return ok();
        }
        let mut tree = self.tree.clone();
        let mut changes = Vec::new();
        for (request, reply) in &transaction.log {
            let before = tree.clone();
            let mut view = View {
                tree: &mut tree,
                changes: &mut changes,
                owned_elsewhere: 0,
                lives: &self.lives,
                limits: self.limits,
                who,
            };
            let again = view.execute(request);
            if again.is_err() {
                tree = before;
            }
            match again {
                again if again == *reply => {}
                Err("ENOSPC") => return Err("ENOSPC"),
                _ => return Err("EAGAIN"),
            }
        }
        let before = std::mem::replace(&mut self.tree, tree);
        let changes = settle(&before, &self.tree, changes);
        self.tell(told, &before, &changes);
        told.merge();
        ok()
    }

    fn watch(&mut self, who: u16, path: &str, token: &str, depth: Option<u32>) -> Reply {
        let limit = self.limits.watches;
        let client = self.clients.get_mut(&who).ok_or("EIO")?;
        let relative = !path.starts_with(['/', '@']);
        let path = absolute(who, path);
        let same = |watch: &Watch| watch.path == path && watch.token == token;
        if client.watches.iter().any(same) {
            return Err("EEXIST");
        }
        if who != TOOLSTACK && client.watches.len() >= limit {
            return Err("ENOSPC");
        }
        let token = token.to_owned();
        client.watches.push(Watch {
            path,
            token,
            depth,
            relative,
        });
        ok()
    }

    fn introduce(&mut self, domid: u16, told: &mut Told) -> Reply {
        if !self.lives.contains_key(&domid) {
            return Err("EINVAL");
        }
        let known = self.clients.insert(domid, Client::default());
        if known.is_none() {
            self.tell_special(told, "@introduceDomain", domid);
        }
        ok()
    }

    fn release(&mut self, domid: u16, told: &mut Told) -> Reply {
        if !self.clients.contains_key(&domid) {
            return Err("ENOENT");
        }
        *told = self.die(domid);
        ok()
    }

    /// Who a domain is now; nobody if there is none.
    fn life(&self, domid: u16) -> Who {
        let life = self.lives.get(&domid);
        life.map_or(Who::Nobody(domid), |life| Who::Life(domid, *life))
    }

    /// A node that a domain owns, with none of its own above.
    fn topmost_of(&self, life: Who) -> Option<String> {
        let mut all = self.tree.iter();
        let found = all.find(|(path, node)| owner(&node.acl) == Some(life) && !is_special(path));
        found.map(|(path, _)| path.clone())
    }

    /// Who hears of changes that the tree has now.
    fn tell(&self, told: &mut Told, before: &Tree, changes: &[Change]) {
        for change in changes {
            if change.removed {
                told.group += 1;
                for path in below(before, &change.path) {
                    let above = parent(&path).and_then(|above| before.get(&above));
                    let readers = [before.get(&path), above];
                    self.tell_of(told, &path, &readers, |distance| distance == 0);
                }
            }
            let above = parent(&change.path).and_then(|above| self.tree.get(&above));
            let readers = [self.tree.get(&change.path), before.get(&change.path), above];
            self.tell_of(told, &change.path, &readers, |_| true);
        }
    }

    /// Tells the watches on a path and above it, in order of registration, if one of the nodes may be read.
    fn tell_of(
        &self,
        told: &mut Told,
        path: &str,
        readers: &[Option<&Node>],
        wanted: impl Fn(u32) -> bool,
    ) {
        for (domid, client) in &self.clients {
            let life = self.life(*domid);
            let may = |node: &&Node| allows(&node.acl, life, 'r');
            if !readers.iter().flatten().any(may) {
                continue;
            }
            for watch in &client.watches {
                let in_depth = |distance| match watch.depth {
                    None => true,
                    Some(depth) => distance <= depth && !is_special(path),
                };
                if distance(&watch.path, path)
                    .is_some_and(|distance| wanted(distance) && in_depth(distance))
                {
                    if !wanted(1) {
                        told.add(*domid, watch.shown(*domid, path));
                    } else {
                        told.group += 1;
                        told.add(*domid, watch.shown(*domid, path));
                    }
                }
            }
        }
        if wanted(1) {
            told.group += 1;
        }
    }

    /// A domain is told of through a special name, by name and plainly.
    fn tell_special(&self, told: &mut Told, special: &str, domid: u16) {
        let named = format!("{special}/{domid}");
        for (receiver, client) in &self.clients {
            let life = self.life(*receiver);
            let node = self.tree.get(special);
            if !node.is_some_and(|node| allows(&node.acl, life, 'r')) {
                continue;
            }
            for watch in &client.watches {
                let deep = watch.path == special && watch.depth.is_some_and(|depth| depth > 0);
                if watch.path == named || deep {
                    told.add(*receiver, (named.clone(), watch.token.clone()));
                }
                if watch.path == special && watch.depth.is_none() {
                    told.add(*receiver, (special.to_owned(), watch.token.clone()));
                }
            }
        }
    }
}

impl View<'_> {
    fn execute(&mut self, request: &Request) -> Reply {
        match request {
            Request::Directory(path) => self.list(path),
            Request::Part(path) => {
                let mut list = self.list(path)?;
                list.push(0);
                Ok(list)
            }
            Request::Read(path) => Ok(self.allowed(path, 'r')?.1.value),
            Request::GetPerms(path) => Ok(show(&self.allowed(path, 'r')?.1.acl)),
            Request::Write(path, value) => self.write(path, value),
            Request::Mkdir(path) => {
                let path = absolute(self.who, path);
                if self.tree.contains_key(&path) {
                    self.allowed(&path, 'w')?;
                } else {
                    self.create(&path, Vec::new())?;
                }
                ok()
            }
            Request::Rm(path) => self.rm(path),
            Request::SetPerms(path, entries) => self.set_perms(path, entries),
            _ => Err("EIO"),
        }
    }

    fn list(&self, path: &str) -> Reply {
        let (_, node) = self.allowed(path, 'r')?;
        let names = node.children.iter();
        Ok(names
            .flat_map(|name| format!("{name}\0").into_bytes())
            .collect())
    }

    fn write(&mut self, path: &str, value: &[u8]) -> Reply {
        let path = absolute(self.who, path);
        if !self.tree.contains_key(&path) {
            self.create(&path, value.to_vec())?;
            return ok();
        }
        let (path, mut node) = self.allowed(&path, 'w')?;
        node.value = value.to_vec();
        self.tree.insert(path.clone(), node);
        self.change(path, false);
        ok()
    }

    fn rm(&mut self, path: &str) -> Reply {
        let above = parent(&absolute(self.who, path));
        match (self.allowed(path, 'w'), above) {
            (Ok(_), None) => return Err("EINVAL"),
            (Ok((path, _)), Some(_)) => {
                cut(self.tree, &path);
                self.change(path, true);
            }
            (Err("ENOENT"), Some(above)) if self.tree.contains_key(&above) => {}
            (Err(error), _) => return Err(error),
        }
        ok()
    }

    fn set_perms(&mut self, path: &str, entries: &[(char, u16)]) -> Reply {
        if self.who != TOOLSTACK && entries.len() > self.limits.entries {
            return Err("ENOSPC");
        }
        let (path, mut node) = self.allowed(path, 'o')?;
        let (_, new_owner) = entries.first().ok_or("EINVAL")?;
        let present = node.acl.first().map(|(_, who)| who.domid());
        if self.who != TOOLSTACK && Some(*new_owner) != present {
            return Err("EPERM");
        }
        if !self.lives.contains_key(new_owner) {
            return Err("ENOENT");
        }
        node.acl = entries
            .iter()
            .map(|(letter, domid)| (*letter, self.meant(*domid)))
            .collect();
        self.tree.insert(path.clone(), node);
        self.change(path, false);
        ok()
    }

    fn meant(&self, domid: u16) -> Who {
        match (domid, self.lives.get(&domid)) {
            (ANY, _) => Who::Any,
            (_, Some(life)) => Who::Life(domid, *life),
            (_, None) => Who::Nobody(domid),
        }
    }

    /// Makes a node and those missing above it, all or none.
    fn create(&mut self, path: &str, value: Vec<u8>) -> Result<(), &'static str> {
        let nearest = self.nearest(path);
        let above = self.tree.get(&nearest).ok_or("EIO")?;
        if !self.may(&above.acl, 'w') {
            return Err("EACCES");
        }
        let mut acl = above.acl.clone();
        let me = self.meant(self.who);
        if self.who != TOOLSTACK
            && let Some((_, owner)) = acl.first_mut()
        {
            *owner = me;
        }
        let mut missing = vec![path.to_owned()];
        while let Some(above) = missing.last().and_then(|path| parent(path))
            && above != nearest
        {
            missing.push(above);
        }
        let owned = owned(self.tree, me).saturating_add_signed(self.owned_elsewhere);
        if self.who != TOOLSTACK && owned + missing.len() > self.limits.nodes {
            return Err("ENOSPC");
        }
        for path in missing.into_iter().rev() {
            let above = parent(&path).unwrap_or_default();
            let name = path.rsplit('/').next().unwrap_or_default().to_owned();
            if let Some(above) = self.tree.get_mut(&above) {
                above.children.push(name);
            }
            let node = Node {
                value: Vec::new(),
                acl: acl.clone(),
                children: Vec::new(),
            };
            self.tree.insert(path, node);
        }
        if let Some(node) = self.tree.get_mut(path) {
            node.value = value;
        }
        self.change(path.to_owned(), false);
        Ok(())
    }

    /// The node, if the client has the right; else what it may know.
    fn allowed(&self, path: &str, right: char) -> Result<(String, Node), &'static str> {
        let path = absolute(self.who, path);
        let nearest = self.nearest(&path);
        // Above a special name there is nothing that could grant the right to know.
        let hidden = if self.who == TOOLSTACK {
            "ENOENT"
        } else {
            "EACCES"
        };
        let node = self.tree.get(&nearest).ok_or(hidden)?;
        if !self.may(&node.acl, right) {
            return Err("EACCES");
        }
        if nearest != path {
            return Err("ENOENT");
        }
        Ok((path, node.clone()))
    }

    fn may(&self, acl: &Acl, right: char) -> bool {
        allows(acl, self.meant(self.who), right)
    }

    /// The path, or the nearest one above it that exists, if any.
    fn nearest(&self, path: &str) -> String {
        let mut path = path.to_owned();
        while !self.tree.contains_key(&path)
            && let Some(above) = parent(&path)
        {
            path = above;
        }
        path
    }

    fn change(&mut self, path: String, removed: bool) {
        self.changes.push(Change { path, removed });
    }
}

impl Watch {
    fn shown(&self, domid: u16, path: &str) -> Event {
        let home = format!("/local/domain/{domid}/");
        let path = match path.strip_prefix(&home) {
            Some(rest) if self.relative => rest,
            _ => path,
        };
        (path.to_owned(), self.token.clone())
    }
}

impl Who {
    fn domid(self) -> u16 {
        match self {
            Self::Life(domid, _) | Self::Nobody(domid) => domid,
            Self::Any => ANY,
        }
    }
}

impl Told {
    /// Adds an event to the present group; an equal one that waits is enough, unless it is of a special name.
    fn add(&mut self, domid: u16, event: Event) {
        let groups = self.events.entry(domid).or_default();
        if !is_special(&event.0) && groups.iter().flatten().any(|earlier| *earlier == event) {
            return;
        }
        groups.resize(groups.len().max(self.group + 1), Vec::new());
        if let Some(group) = groups.last_mut() {
            group.push(event);
        }
    }

    /// Makes one group of all: any order will do.
    fn merge(&mut self) {
        for groups in self.events.values_mut() {
            *groups = vec![groups.drain(..).flatten().collect()];
        }
    }
}

fn ok() -> Reply {
    Ok(b"OK\0".to_vec())
}

fn is_special(path: &str) -> bool {
    path.starts_with('@')
}

fn absolute(who: u16, path: &str) -> String {
    if path.starts_with(['/', '@']) {
        path.to_owned()
    } else {
        format!("/local/domain/{who}/{path}")
    }
}

fn parent(path: &str) -> Option<String> {
    if is_special(path) || path == "/" {
        return None;
    }
    let (above, _) = path.rsplit_once('/')?;
    Some(if above.is_empty() { "/" } else { above }.to_owned())
}

/// How many levels a path lies below another, if it does.
fn distance(above: &str, path: &str) -> Option<u32> {
    let mut place = path.to_owned();
    let mut levels = 0;
    while place != above {
        place = parent(&place)?;
        levels += 1;
    }
    Some(levels)
}

/// The paths below one.
fn below(tree: &Tree, path: &str) -> Vec<String> {
    let prefix = format!("{path}/");
    let all = tree.keys().filter(|other| other.starts_with(&prefix));
    all.cloned().collect()
}

/// Removes a node with all below.
fn cut(tree: &mut Tree, path: &str) {
    for other in below(tree, path) {
        tree.remove(&other);
    }
    tree.remove(path);
    let name = path.rsplit('/').next().unwrap_or_default();
    if let Some(above) = parent(path).and_then(|above| tree.get_mut(&above)) {
        above.children.retain(|child| child != name);
    }
}

fn owner(acl: &Acl) -> Option<Who> {
    acl.first().map(|(_, who)| *who)
}

fn owned(tree: &Tree, life: Who) -> usize {
    let nodes = tree.iter().filter(|(path, _)| !is_special(path));
    nodes
        .filter(|(_, node)| owner(&node.acl) == Some(life))
        .count()
}

/// Takes a dead domain's entries out.
fn strip(tree: &mut Tree, life: Who) {
    for node in tree.values_mut() {
        let mut first = true;
        node.acl
            .retain(|(_, who)| std::mem::replace(&mut first, false) || *who != life);
    }
}

/// Whether a list gives a right: `r`, `w`, or `o` for the owner's.
fn allows(acl: &Acl, life: Who, right: char) -> bool {
    if life.domid() == TOOLSTACK || owner(acl) == Some(life) {
        return true;
    }
    let mut listed = acl.iter().skip(1);
    let entry = listed.find(|(_, who)| *who == life || *who == Who::Any);
    let letter = entry.or(acl.first()).map_or('n', |(letter, _)| *letter);
    letter == right || (letter == 'b' && right != 'o')
}

fn show(acl: &Acl) -> Vec<u8> {
    let entries = acl.iter();
    entries
        .flat_map(|(letter, who)| format!("{letter}{}\0", who.domid()).into_bytes())
        .collect()
}

/// One change for each node that is in one of the trees.
fn settle(before: &Tree, after: &Tree, changes: Vec<Change>) -> Vec<Change> {
    let mut settled: Vec<Change> = Vec::new();
    for change in changes {
        if !before.contains_key(&change.path) && !after.contains_key(&change.path) {
            continue;
        }
        match settled
            .iter_mut()
            .find(|earlier| earlier.path == change.path)
        {
            Some(earlier) => earlier.removed |= change.removed,
            None => settled.push(change),
        }
    }
    settled
}
