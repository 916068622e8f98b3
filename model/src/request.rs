//! From a request to its reply, and who hears of it (protocol.md sections 2, 3 and 9).

use crate::acl::Who;
use crate::events::settle;
use crate::nodes::{self, Touched, View, is_about_nodes};
use crate::payload::{domid, exactly, is_relative, number, path, strings};
use crate::{
    Answer, Client, Errno, Left, Model, NESTED, QUOTAS, Quota, RESERVED, Reply, Request,
    Transaction, WATCH_DEPTH, Watch, limit, within,
};

/// Most that the requests of a transaction may cost, unless quota `transaction-nodes` is more.
const COST_MAX: usize = 1024;
/// Bytes of a payload that count as one request more.
const BYTES_PER_COST: usize = 256;
/// The highest event channel port.
const PORT_MAX: u32 = (1 << 17) - 1;

impl Model {
    /// A request of `who` is answered. With `refused`, the server answered so; that counts only where memory may be short.
    pub fn served(&mut self, who: u16, request: &Request<'_>, refused: Option<Errno>) {
        let privileged = self.is_privileged(who);
        if !self.begin(who, privileged) {
            return;
        }
        let lacks = self.lenient && !privileged && self.may_lack(request);
        let reply = match refused {
            Some(name @ ("ENOSPC" | "ENOMEM")) if lacks && !self.is_due(who, request, name) => {
                self.refuse(who, request, name)
            }
            Some(name @ "EAGAIN")
                if lacks && request.tx_id != 0 && !self.is_due(who, request, name) =>
            {
                self.give_up(who, request)
            }
            _ => self.answer(who, request),
        };
        if lacks && matches!(refused, Some("ENOSPC" | "ENOMEM")) {
            self.note_unsure(who, request);
        }
        let fresh = self.finish(who, request, reply);
        self.cause = None;
        if let Some(watch) = fresh {
            self.tell_own(who, watch);
        }
    }

    /// The server crashed while it was at a request of `who`, and goes on: all that it was to change is changed, or nothing.
    pub fn crashed(&mut self, who: u16, request: &Request<'_>, left: &Left<'_>) {
        let privileged = self.is_privileged(who);
        if !self.begin(who, privileged) {
            return;
        }
        let outermost = self.outermost(who, request.tx_id);
        // Who is not privileged may have been refused what it asked for, for want of memory.
        let reply = if left.did_change || left.did_answer && privileged {
            self.answer(who, request)
        } else {
            Err("EIO")
        };
        if !left.is_kept {
            self.cause = None;
            return self.stopped(who);
        }
        let reply = if left.did_answer { reply } else { Err("EIO") };
        let fresh = self.finish(who, request, reply);
        self.cause = None;
        if let Some(watch) = fresh {
            self.tell_own(who, watch);
        }
        self.broken(who, request, outermost, left.open);
    }

    /// The transaction around all that another one is inside of.
    fn outermost(&self, who: u16, id: u32) -> u32 {
        let open = self.clients.get(&who).map(|client| &client.transactions);
        let outer = |id: &u32| open?.get(id)?.outer;
        std::iter::successors(Some(id), outer).last().unwrap_or(id)
    }

    /// A crash breaks the outermost transaction around its request, and ends all inside of that. Whether the one that the request was to end
    /// is open still, the server says.
    fn broken(&mut self, who: u16, request: &Request<'_>, outermost: u32, left: &[u32]) {
        let Some(client) = self.clients.get_mut(&who) else {
            return;
        };
        let open = &mut client.transactions;
        let broken = open.remove(&outermost);
        client.end_inside();
        if let Some(mut broken) = broken
            && (request.kind != 7 || request.tx_id != outermost || left.contains(&outermost))
        {
            broken.is_given_up = true;
            client.transactions.insert(outermost, broken);
        }
        let open: Vec<u32> = client.transactions.keys().copied().collect();
        if open != left {
            self.fault(format!(
                "d{who}: a crash leaves the transactions {left:?} open, not {open:?}"
            ));
        }
    }

    /// An INTRODUCE was understood, and waits for the machine.
    pub fn waits(&mut self, who: u16, request: &Request<'_>, domid: u16) {
        let privileged = self.is_privileged(who);
        if !self.begin(who, privileged) {
            return;
        }
        self.cause = None;
        let understood = self
            .judge(who, request)
            .and_then(|()| self.introduce(request.payload));
        if request.kind != 8 || understood != Ok(domid) {
            self.fault(format!(
                "d{who}: {request:?} waits for domain {domid}, and should be {understood:?}"
            ));
        }
        if let Some(client) = self.clients.get_mut(&who) {
            client.waiting = Some((request.req_id, request.tx_id, domid));
        }
    }

    /// Counts a request, and whether it may run.
    pub(crate) fn begin(&mut self, who: u16, privileged: bool) -> bool {
        let outstanding = self.outstanding(who);
        let limit = limit(&self.limits(who), Quota::Outstanding);
        let Some(client) = self.clients.get_mut(&who) else {
            self.fault(format!(
                "a request of d{who} is served, which has no connection"
            ));
            return false;
        };
        client.requests += 1;
        if client.stopped || client.waiting.is_some() || !within(outstanding + 1, limit) {
            let stopped = client.stopped;
            self.fault(format!(
                "a request of d{who} is served, with {outstanding} outstanding, stopped: {stopped}"
            ));
        }
        let Some(client) = self.clients.get(&who) else {
            return false;
        };
        self.cause = (!privileged).then_some(crate::queue::Cause {
            connection: client.number,
            request: client.requests,
        });
        true
    }

    /// How many requests of a client have messages on their way.
    fn outstanding(&self, who: u16) -> usize {
        let Some(client) = self.clients.get(&who) else {
            return 0;
        };
        let (number, from) = (client.number, client.forgotten);
        let queues = self.clients.values().map(|client| &client.queue);
        let mut requests: Vec<u64> = queues
            .flat_map(|queue| queue.requests_of(number, from))
            .collect();
        requests.sort_unstable();
        requests.dedup();
        requests.len()
    }

    /// Queues the reply; gives the watch whose first event follows it.
    pub(crate) fn finish(&mut self, who: u16, request: &Request<'_>, reply: Reply) -> Option<u64> {
        let fresh = match (&reply, request.kind) {
            (Ok(_), 4) => {
                let client = self.clients.get(&who);
                client
                    .and_then(|client| client.watches.last())
                    .map(|watch| watch.id)
            }
            _ => None,
        };
        self.reply(who, (request.kind, request.req_id, request.tx_id), reply);
        fresh
    }

    /// Whether a request takes memory.
    fn may_lack(&self, request: &Request<'_>) -> bool {
        let in_transaction = request.tx_id != 0 && is_about_nodes(request.kind);
        in_transaction || matches!(request.kind, 4 | 6 | 7 | 11 | 12 | 14)
    }

    /// Whether a request in a transaction fails so anyway, however much memory there is.
    fn is_due(&mut self, who: u16, request: &Request<'_>, name: Errno) -> bool {
        self.try_inside(who, request) == Some(Err(name))
    }

    /// What would come of a request in a transaction.
    fn try_inside(&mut self, who: u16, request: &Request<'_>) -> Option<Reply> {
        if !is_about_nodes(request.kind) || self.judge(who, request).is_err() {
            return None;
        }
        let elsewhere = self.owned_elsewhere(who, request.tx_id);
        let client = self.clients.get(&who)?;
        let transaction = client.transactions.get(&request.tx_id)?;
        let (tree, mut touched) = (transaction.tree.clone(), transaction.touched.clone());
        let known = self.faults.len();
        let (reply, _, _) = self.with_view(who, tree, Some(&mut touched), elsewhere, |view| {
            view.execute(request.kind, request.payload)
        });
        // Of what it had no memory for, the server did not have to ask anybody.
        self.faults.truncate(known);
        Some(reply)
    }

    /// What is left of a request for which there was no memory: a transaction may have failed with it, or has ended.
    fn refuse(&mut self, who: u16, request: &Request<'_>, name: Errno) -> Reply {
        if request.kind == 7
            && let Some(client) = self.clients.get_mut(&who)
        {
            client.transactions.remove(&request.tx_id);
            client.end_inside();
        }
        Err(name)
    }

    /// Notes that there may have been no memory for a request in a transaction.
    fn note_unsure(&mut self, who: u16, request: &Request<'_>) {
        let client = self.clients.get_mut(&who);
        let open = client.and_then(|client| client.transactions.get_mut(&request.tx_id));
        if let Some(transaction) = open.filter(|_| is_about_nodes(request.kind)) {
            transaction.touched.unsure = true;
        }
    }

    /// Nodes that a client owns, and owned not, when a transaction began: in the store, and in all transactions that it is inside of.
    fn owned_elsewhere(&self, who: u16, tx: u32) -> isize {
        let life = self.life(who);
        let open = self.clients.get(&who).map(|client| &client.transactions);
        let mut elsewhere = 0;
        let mut next = Some(tx);
        while let Some(transaction) = next.and_then(|tx| open?.get(&tx)) {
            let outer = transaction.outer.and_then(|tx| open?.get(&tx));
            let now = nodes::owned(outer.map_or(&self.tree, |outer| &outer.tree), life);
            let base = nodes::owned(&transaction.base, life);
            elsewhere += now.checked_signed_diff(base).unwrap_or_default();
            next = transaction.outer;
        }
        elsewhere
    }

    /// A transaction was given up, or has a conflict with what was refused for want of memory.
    fn give_up(&mut self, who: u16, request: &Request<'_>) -> Reply {
        self.judge(who, request)?;
        if request.kind == 7 {
            return self.refuse(who, request, "EAGAIN");
        }
        let client = self.clients.get_mut(&who).ok_or("EIO")?;
        if let Some(transaction) = client.transactions.get_mut(&request.tx_id)
            && (is_about_nodes(request.kind) || request.kind == 6)
        {
            transaction.is_given_up = true;
        }
        self.answer(who, request)
    }

    fn answer(&mut self, who: u16, request: &Request<'_>) -> Reply {
        self.judge(who, request)?;
        let tx = request.tx_id;
        let payload = request.payload;
        match request.kind {
            kind if is_about_nodes(kind) && tx == 0 => self.outside(who, kind, payload),
            kind if is_about_nodes(kind) => self.inside(who, tx, kind, payload),
            0 => self.control(payload),
            4 => self.watch(who, payload),
            5 => self.unwatch(who, payload),
            6 => self.start(who, tx),
            7 => self.end_transaction(who, tx, payload),
            8 => self.introduce(payload).and(Err("should wait")),
            9 => self.release(payload),
            10 => {
                let [text] = exactly(payload)?;
                text_of(format!("/local/domain/{}", domid(text)?))
            }
            17 => {
                let [text] = exactly(payload)?;
                let domid = domid(text)?;
                let is = domid == RESERVED || self.clients.contains_key(&domid);
                text_of(if is { "T" } else { "F" }.to_owned())
            }
            18 => {
                let domid = self.other_introduced(payload)?;
                if let Some(domain) = self.domains.get_mut(&domid) {
                    domain.told_shutdown = false;
                }
                ok()
            }
            19 => self.set_target(payload),
            21 => self.reset_watches(who),
            23 => self.get_feature(who, payload),
            24 => self.set_feature(who, payload),
            25 => self.get_quota(who, payload),
            26 => self.set_quota(who, payload),
            _ => Err("ENOSYS"),
        }
    }

    /// The rules that hold for all types, in their order.
    fn judge(&self, who: u16, request: &Request<'_>) -> Result<(), Errno> {
        let kind = request.kind;
        if kind > 26 || matches!(kind, 15 | 16 | 20) {
            return Err("ENOSYS");
        }
        let only_privileged = matches!(kind, 0 | 8 | 9 | 17..=19 | 24..=26);
        if only_privileged && !self.is_privileged(who) {
            return Err("EACCES");
        }
        let client = self.clients.get(&who).ok_or("EIO")?;
        let heeds = !matches!(kind, 4 | 5) && request.tx_id != 0;
        if heeds && !client.transactions.contains_key(&request.tx_id) {
            return Err("ENOENT");
        }
        Ok(())
    }

    /// A request on nodes, outside of any transaction.
    fn outside(&mut self, who: u16, kind: u32, payload: &[u8]) -> Reply {
        let before = self.tree.clone();
        let (reply, tree, changes) = self.with_view(who, before.clone(), None, 0, |view| {
            view.execute(kind, payload)
        });
        if reply.is_ok() && !changes.is_empty() {
            self.tree = tree;
            self.version += 1;
            self.tell(&before, &changes, None);
        }
        self.pass(who);
        reply
    }

    /// What was allowed may be a choice, or have consequences for leases.
    fn pass(&mut self, who: u16) {
        let Some((kind, path)) = self.passed.take() else {
            return;
        };
        if !self.is_privileged(who) {
            self.choose(who, &path);
        }
        if matches!(kind, 11..=14) {
            self.settle_leases([path.as_str()].into_iter());
        }
    }

    fn inside(&mut self, who: u16, tx: u32, kind: u32, payload: &[u8]) -> Reply {
        let limits = self.limits(who);
        let elsewhere = self.owned_elsewhere(who, tx);
        let client = self.clients.get_mut(&who).ok_or("EIO")?;
        let transaction = client.transactions.get_mut(&tx).ok_or("EIO")?;
        if transaction.is_given_up {
            return Err("EAGAIN");
        }
        let nodes = limit(&limits, Quota::TransactionNodes);
        let cost = transaction.cost + 1 + payload.len() / BYTES_PER_COST;
        if nodes != 0 && cost > nodes.max(COST_MAX) {
            transaction.failed = true;
            return Err("ENOSPC");
        }
        transaction.cost = cost;
        let mut touched = std::mem::take(&mut transaction.touched);
        let tree = transaction.tree.clone();
        let (reply, tree, changes) =
            self.with_view(who, tree, Some(&mut touched), elsewhere, |view| {
                view.execute(kind, payload)
            });
        self.pass(who);
        let client = self.clients.get_mut(&who).ok_or("EIO")?;
        let transaction = client.transactions.get_mut(&tx).ok_or("EIO")?;
        transaction.failed |= touched.overflowed;
        transaction.touched = touched;
        if reply.is_ok() {
            transaction.tree = tree;
            transaction.own_version += u64::from(!changes.is_empty());
            transaction.changes.extend(changes);
        }
        transaction
            .log
            .push((kind, payload.to_vec(), reply.clone()));
        reply
    }

    /// Does something with nodes as a client sees them; gives the nodes as they then are, and what was changed.
    fn with_view<T>(
        &mut self,
        who: u16,
        mut tree: nodes::Tree,
        touched: Option<&mut Touched>,
        owned_elsewhere: isize,
        work: impl FnOnce(&mut View<'_>) -> T,
    ) -> (T, nodes::Tree, Vec<nodes::Change>) {
        let mut changes = Vec::new();
        let absent = self.clients.get(&who).map(|client| client.absent.clone());
        let absent = absent.unwrap_or_default();
        let own = vec![(b'n', self.life(self.settings.privileged))];
        let mut view = View {
            tree: &mut tree,
            changes: &mut changes,
            touched,
            owned_elsewhere,
            domains: &self.domains,
            absent: &absent,
            limits: self.limits(who),
            features: self.features_of(who),
            subject: self.subject(who),
            own: &own,
            unasked: None,
            rules: &self.rules,
            store: &self.tree,
            passed: None,
        };
        let done = work(&mut view);
        let (unasked, passed) = (view.unasked, view.passed.take());
        self.passed = passed;
        if let Some(domid) = unasked {
            self.fault(format!("nobody asked the machine for domain {domid}"));
        }
        (done, tree, changes)
    }

    fn start(&mut self, who: u16, tx: u32) -> Reply {
        if tx != 0 && self.features_of(who) & NESTED == 0 {
            return Err("EBUSY");
        }
        let limits = self.limits(who);
        let (mut tree, mut version) = (self.tree.clone(), self.version);
        let client = self.clients.get_mut(&who).ok_or("EIO")?;
        let outer = client.transactions.get(&tx);
        if let Some(outer) = outer {
            (tree, version) = (outer.tree.clone(), outer.own_version);
        }
        let is_given_up = outer.is_some_and(|outer| outer.is_given_up);
        let open = client.transactions.len();
        if !within(open + 1, limit(&limits, Quota::Transactions)) {
            return Err("ENOSPC");
        }
        if is_given_up {
            return Err("EAGAIN");
        }
        client.last_id += 1;
        let transaction = Transaction {
            outer: (tx != 0).then_some(tx),
            own_version: 0,
            base: tree.clone(),
            tree,
            version,
            log: Vec::new(),
            cost: 0,
            changes: Vec::new(),
            touched: Touched::default(),
            failed: false,
            is_given_up: false,
        };
        client.transactions.insert(client.last_id, transaction);
        text_of(client.last_id.to_string())
    }

    fn end_transaction(&mut self, who: u16, tx: u32, payload: &[u8]) -> Reply {
        let commit = match exactly(payload)? {
            [b"T"] => true,
            [b"F"] => false,
            [_] => return Err("EINVAL"),
        };
        let client = self.clients.get_mut(&who).ok_or("EIO")?;
        let transaction = client.transactions.remove(&tx).ok_or("ENOENT")?;
        client.end_inside();
        match transaction.outer {
            _ if !commit => {}
            Some(outer) => self.merge(who, outer, transaction)?,
            None => self.commit(who, transaction)?,
        }
        ok()
    }

    /// Makes what was done in a transaction part of the one that it was inside of, if it could have been done there just now; or nothing.
    fn merge(&mut self, who: u16, outer: u32, inner: Transaction) -> Result<(), Errno> {
        let nodes = limit(&self.limits(who), Quota::TransactionNodes);
        let elsewhere = self.owned_elsewhere(who, outer);
        let client = self.clients.get(&who).ok_or("EIO")?;
        let around = client.transactions.get(&outer).ok_or("EIO")?;
        if inner.is_given_up || around.is_given_up {
            return Err("EAGAIN");
        }
        if inner.failed {
            return Err("ENOMEM");
        }
        let mut touched = around.touched.clone();
        touched.join(&inner.touched, nodes)?;
        let cost = around.cost + inner.cost;
        if nodes != 0 && cost > nodes.max(COST_MAX) {
            return Err("ENOSPC");
        }
        let (mut tree, mut changes) = (inner.tree, inner.changes);
        if inner.version != around.own_version {
            let now = around.tree.clone();
            let (ran, ran_tree, ran_changes) = self.with_view(who, now, None, elsewhere, |view| {
                inner.log.iter().try_for_each(|entry| again(view, entry))
            });
            ran?;
            (tree, changes) = (ran_tree, ran_changes);
        }
        let client = self.clients.get_mut(&who).ok_or("EIO")?;
        let around = client.transactions.get_mut(&outer).ok_or("EIO")?;
        around.tree = tree;
        around.own_version += u64::from(!changes.is_empty());
        around.changes.extend(changes);
        around.log.extend(inner.log);
        (around.touched, around.cost) = (touched, cost);
        Ok(())
    }

    /// Commits if nothing was changed, or if running all again makes no difference.
    fn commit(&mut self, who: u16, mut transaction: Transaction) -> Result<(), Errno> {
        if transaction.is_given_up {
            return Err("EAGAIN");
        }
        if transaction.failed {
            return Err("ENOMEM");
        }
        if transaction.changes.is_empty() {
            return Ok(());
        }
        let before = self.tree.clone();
        if transaction.version != self.version {
            let log = std::mem::take(&mut transaction.log);
            let (ran, tree, changes) = self.with_view(who, before.clone(), None, 0, |view| {
                log.iter().try_for_each(|entry| again(view, entry))
            });
            ran?;
            (transaction.tree, transaction.changes) = (tree, changes);
        }
        self.check_nodes(who, &transaction.tree)?;
        let changes = settle(
            &before,
            &transaction.tree,
            &transaction.changes,
            &transaction.touched,
        );
        self.tree = transaction.tree;
        self.version += 1;
        self.tell(&before, &changes, None);
        self.settle_leases(changes.iter().map(|change| change.path.as_str()));
        Ok(())
    }

    /// Whether all who own more nodes now may, if quotas bind the client.
    fn check_nodes(&self, who: u16, tree: &nodes::Tree) -> Result<(), Errno> {
        if self.is_privileged(who) {
            return Ok(());
        }
        let before = nodes::owners(&self.tree);
        let fits = |(owner, count): (&Who, &usize)| {
            let grown = before.get(owner).is_none_or(|before| count > before);
            let limits = self.limits(owner.domid());
            !grown
                || self.life(owner.domid()) != *owner
                || within(*count, limit(&limits, Quota::Nodes))
        };
        if nodes::owners(tree).iter().all(fits) {
            Ok(())
        } else {
            Err("ENOSPC")
        }
    }

    fn watch(&mut self, who: u16, payload: &[u8]) -> Reply {
        let words = strings(payload);
        let (written, token, depth) = match words.as_slice() {
            [path, token] => (*path, *token, None),
            [path, token, depth] if self.features_of(who) & WATCH_DEPTH != 0 => {
                (*path, *token, Some(number(depth, u32::MAX)?))
            }
            _ => return Err("EINVAL"),
        };
        let limits = self.limits(who);
        let path = path(written, who, &limits)?;
        self.may_watch(who, &path)?;
        let client = self.clients.get_mut(&who).ok_or("EIO")?;
        let same = |watch: &Watch| watch.path == path && watch.token == token;
        if client.watches.iter().any(same) {
            return Err("EEXIST");
        }
        if !within(client.watches.len() + 1, limit(&limits, Quota::Watches)) {
            return Err("ENOSPC");
        }
        self.counted.watches += 1;
        client.watches.push(Watch {
            id: self.counted.watches,
            path,
            token: token.to_vec(),
            depth,
            relative: is_relative(written),
        });
        ok()
    }

    fn unwatch(&mut self, who: u16, payload: &[u8]) -> Reply {
        let [written, token] = exactly(payload)?;
        let path = path(written, who, &self.limits(who))?;
        let client = self.clients.get_mut(&who).ok_or("EIO")?;
        let same = |watch: &Watch| watch.path == path && watch.token == token;
        let at = client.watches.iter().position(same).ok_or("ENOENT")?;
        let watch = client.watches.remove(at);
        client.lost.remove(&watch.id);
        client.queue.drop_events(|mark| mark.watch == watch.id);
        ok()
    }

    fn reset_watches(&mut self, who: u16) -> Reply {
        let client = self.clients.get_mut(&who).ok_or("EIO")?;
        client.watches.clear();
        client.transactions.clear();
        client.lost.clear();
        ok()
    }

    /// The domain that an INTRODUCE names.
    fn introduce(&self, payload: &[u8]) -> Result<u16, Errno> {
        let words = strings(payload);
        let [text, _, port, ..] = words.as_slice() else {
            return Err("EINVAL");
        };
        let domid = domid(text)?;
        let port = number(port, PORT_MAX)?;
        if self.is_own(domid) || domid >= RESERVED || port == 0 {
            return Err("EINVAL");
        }
        Ok(domid)
    }

    fn release(&mut self, payload: &[u8]) -> Reply {
        let domid = self.other_introduced(payload)?;
        if self.end(domid) {
            self.tell_plainly(crate::life::RELEASE);
        }
        ok()
    }

    fn set_target(&mut self, payload: &[u8]) -> Reply {
        let words = strings(payload);
        let [domid_text, target, ..] = words.as_slice() else {
            return Err("EINVAL");
        };
        let (who, target) = (domid(domid_text)?, domid(target)?);
        if !self.clients.contains_key(&who) || !self.clients.contains_key(&target) {
            return Err("ENOENT");
        }
        let target = self.life(target);
        if let Some(domain) = self.domains.get_mut(&who) {
            domain.target = Some(target);
        }
        ok()
    }

    fn get_feature(&self, who: u16, payload: &[u8]) -> Reply {
        let words = strings(payload);
        let features = match words.as_slice() {
            [] if payload.is_empty() => self.features_of(who),
            [_] if !self.is_privileged(who) => return Err("EACCES"),
            [text] => self.features_of(self.existing(who, text)?),
            _ => return Err("EINVAL"),
        };
        text_of(features.to_string())
    }

    fn set_feature(&mut self, who: u16, payload: &[u8]) -> Reply {
        let [text, bits] = exactly(payload)?;
        domid(text)?;
        let features = number(bits, u32::MAX)?;
        if features & !(self.settings.features | self.settings.grantable) != 0 {
            return Err("EINVAL");
        }
        let domid = self.existing(who, text)?;
        if self.clients.contains_key(&domid) {
            return Err("EBUSY");
        }
        if let Some(domain) = self.domains.get_mut(&domid) {
            domain.features = features;
        }
        ok()
    }

    fn get_quota(&self, who: u16, payload: &[u8]) -> Reply {
        let words = strings(payload);
        let (limits, name) = match words.as_slice() {
            [] if payload.is_empty() => return text_of(QUOTAS.join(" ")),
            [name] => (self.settings.limits, name),
            [text, name] => (self.limits_of(self.existing(who, text)?), name),
            _ => return Err("EINVAL"),
        };
        let limit = limits.get(quota(name)?).ok_or("EINVAL")?;
        text_of(limit.to_string())
    }

    fn set_quota(&mut self, who: u16, payload: &[u8]) -> Reply {
        let words = strings(payload);
        match words.as_slice() {
            [name, value] => self.set_limit(name, number(value, u32::MAX))?,
            [text, name, value] => {
                let domid = self.existing(who, text)?;
                let (at, value) = (quota(name)?, number(value, u32::MAX)?);
                let domain = self.domains.get_mut(&domid);
                if let Some(own) = domain.and_then(|domain| domain.overrides.get_mut(at)) {
                    *own = Some(value);
                }
            }
            _ => return Err("EINVAL"),
        }
        ok()
    }

    pub(crate) fn set_limit(
        &mut self,
        name: &[u8],
        value: Result<u32, Errno>,
    ) -> Result<(), Errno> {
        let at = quota(name)?;
        if let Some(limit) = self.settings.limits.get_mut(at) {
            *limit = value?;
        }
        Ok(())
    }

    /// A domain that exists, introduced or not.
    fn existing(&self, who: u16, text: &[u8]) -> Result<u16, Errno> {
        let domid = domid(text)?;
        if self.domains.contains_key(&domid) {
            return Ok(domid);
        }
        let absent = self.clients.get(&who).map(|client| &client.absent);
        if domid >= RESERVED || absent.is_some_and(|absent| absent.contains(&domid)) {
            return Err("ENOENT");
        }
        Err("nobody asked the machine")
    }

    /// An introduced domain that is neither the privileged one nor the store's own.
    fn other_introduced(&self, payload: &[u8]) -> Result<u16, Errno> {
        let [text] = exactly(payload)?;
        let domid = domid(text)?;
        if self.is_own(domid) {
            return Err("EINVAL");
        }
        self.clients
            .contains_key(&domid)
            .then_some(domid)
            .ok_or("ENOENT")
    }

    fn is_own(&self, domid: u16) -> bool {
        domid == self.settings.privileged || domid == self.settings.store
    }

    fn features_of(&self, domid: u16) -> u32 {
        let domain = self.domains.get(&domid);
        domain.map_or(0, |domain| domain.features)
    }
}

impl Client {
    /// Ends the transactions inside of one that is not open any more, and those inside of them.
    pub(crate) fn end_inside(&mut self) {
        let mut before = usize::MAX;
        while self.transactions.len() < before {
            before = self.transactions.len();
            let open: Vec<u32> = self.transactions.keys().copied().collect();
            let is_open = |id: &u32| open.contains(id);
            self.transactions
                .retain(|_, own| own.outer.as_ref().is_none_or(is_open));
        }
    }
}

/// Runs a request of a transaction once more: the reply must be the same.
fn again(view: &mut View<'_>, (kind, payload, reply): &(u32, Vec<u8>, Reply)) -> Result<(), Errno> {
    let (tree, changes) = (view.tree.clone(), view.changes.len());
    let now = view.execute(*kind, payload);
    if now.is_err() {
        *view.tree = tree;
        view.changes.truncate(changes);
    }
    match now {
        now if now == *reply => Ok(()),
        Err("ENOSPC") => Err("ENOSPC"),
        _ => Err("EAGAIN"),
    }
}

/// A limit's place by its name.
fn quota(name: &[u8]) -> Result<usize, Errno> {
    let at = QUOTAS.iter().position(|known| known.as_bytes() == name);
    at.ok_or("EINVAL")
}

fn text_of(text: String) -> Reply {
    let mut bytes = text.into_bytes();
    bytes.push(0);
    Ok(Answer::Bytes(bytes))
}

fn ok() -> Reply {
    Ok(Answer::Bytes(b"OK\0".to_vec()))
}
