//! Where policies and layers meet the server: requests before they run and after, ends of domains, time, and what they keep in nodes.

use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::mem;

use crate::acl::Acl;
use crate::answer::Answer;
use crate::conflict::Hold;
use crate::connection::Request;
use crate::extension::{Keep, View, WordError, items};
use crate::ids::{ConnId, DomId, TxId};
use crate::journal::Entry;
use crate::layer::{self, Call, Done, Gate, Gates, Layers};
use crate::path::{Path, PathRef};
use crate::policy::{self, Access, Operation, Passed, Policies, Policy};
use crate::server::Server;
use crate::storage::Storage;
use crate::time::Instant;
use crate::wire::{Errno, Header, Kind};

/// Where the list of policies is shown, unless it is `legacy` alone.
const POLICY_NODE: &str = "/tool/xenstored/policy";
/// Where the list of layers is shown, unless there are none.
const LAYER_NODE: &str = "/tool/xenstored/layer";

/// The lists in force, as a state stream has them.
pub(crate) struct Lists {
    pub(crate) policies: Vec<u8>,
    pub(crate) layers: Vec<u8>,
}

/// What policies are yet to know.
#[derive(Clone, Default)]
pub(crate) struct Owed {
    passed: Vec<Passed>,
    committed: Vec<Path>,
}

/// Lists.
impl<S: Storage> Server<S> {
    /// Adds a policy of a host's own behind those that are there. It is not named in nodes, and does not survive a live update.
    pub fn add_policy(&mut self, policy: Box<dyn Policy>) {
        let name = policy.name();
        self.policies.install(policy, name);
        self.with_policies(|policies, keep| {
            if let Some(last) = policies.iter_mut().last() {
                last.started(keep);
            }
        });
    }

    /// Adds a layer of a host's own inside those that are there. It is not named in nodes, and does not survive a live update.
    pub fn add_layer(&mut self, layer: Box<dyn layer::Layer>) {
        let name = layer.name();
        self.layers.install(layer, name);
    }

    /// Takes the policies and layers that the host has set, and shows their lists.
    pub(crate) fn start_extensions(&mut self) {
        let policies = self.settings.policies.as_str().to_string();
        match Policies::parse(policies.as_bytes()) {
            Ok(policies) => {
                self.show_lists();
                self.begin_policies(policies);
            }
            Err(error) => log::error!("policy {error}"),
        }
        let (layers, _) = Layers::parse(self.settings.layers.as_str().as_bytes());
        self.layers = layers;
    }

    /// As [`Server::start_extensions`], of a store that was running before: the `lists` of its state count, else what its nodes show, else
    /// what the host has set.
    ///
    /// # Errors
    /// A policy that was in force is not known here.
    pub(crate) fn resume_extensions(&mut self, lists: Option<Lists>) -> Result<(), WordError> {
        let shown = |node| self.store.nodes.value(node).map(<[u8]>::to_vec);
        self.are_lists_set = lists.is_some();
        let (policies, layers) = match lists {
            Some(Lists { policies, layers }) => (Some(policies), Some(layers)),
            None => (shown(POLICY_NODE), shown(LAYER_NODE)),
        };
        if let Some(policies) = policies {
            self.settings.policies = policy::Choice::parse(&policies)?;
        }
        if let Some(layers) = layers {
            let (layers, errors) = layer::Choice::parse(&layers);
            warn_of(&errors);
            self.settings.layers = layers;
        }
        // Nothing is written: to clients it must be as if nothing had happened.
        self.begin_policies(Policies::parse(self.settings.policies.as_str().as_bytes())?);
        let (layers, _) = Layers::parse(self.settings.layers.as_str().as_bytes());
        self.layers = layers;
        Ok(())
    }

    /// Replaces the policies.
    ///
    /// # Errors
    /// The list makes no sense; nothing has changed.
    pub(crate) fn set_policies(&mut self, list: &[u8]) -> Result<(), WordError> {
        let policies = Policies::parse(list)?;
        self.settings.policies = policy::Choice::of(&policies);
        self.lists_changed(Some(policies));
        Ok(())
    }

    /// Shows other lists than before, and begins with `policies` if these are others; if the server crashes meanwhile, that is done
    /// afterwards.
    fn lists_changed(&mut self, policies: Option<Policies>) {
        self.are_lists_set = true;
        self.are_lists_changing = true;
        self.did_change = true;
        self.show_lists();
        if let Some(policies) = policies {
            self.begin_policies(policies);
        }
        self.are_lists_changing = false;
    }

    fn show_lists(&mut self) {
        let policies = self.settings.policies.as_str().to_string();
        let is_default = self.settings.policies == policy::Choice::default();
        self.show_list(POLICY_NODE, &policies, is_default);
        let layers = self.settings.layers.as_str().to_string();
        self.show_list(LAYER_NODE, &layers, layers.is_empty());
    }

    /// Does what the policies and lists would have done if the server had not crashed: the request counts if it has changed something.
    pub(crate) fn complete_extensions(&mut self) {
        let mut begins = self.are_lists_changing;
        if begins {
            self.show_lists();
        }
        let mut owed = mem::take(&mut self.owed);
        if mem::take(&mut self.are_policies_at_work) {
            let policies = Policies::parse(self.settings.policies.as_str().as_bytes());
            self.policies = policies.unwrap_or_default();
            begins = true;
        } else {
            owed = Rc::new(Owed {
                passed: self.policies.take_passed(),
                committed: self.policies.take_committed(),
            });
        }
        let header = self.at_work.and_then(|at_work| at_work.header);
        if header.is_some_and(|header| header.kind == Kind::TransactionEnd.number()) {
            // What was allowed when it ran again was noted when it ran first.
            Rc::make_mut(&mut owed).passed.clear();
        }
        if self.did_change {
            self.pay(owed);
        }
        if begins {
            let policies = Policies::parse(self.settings.policies.as_str().as_bytes());
            self.begin_policies(policies.unwrap_or_default());
        }
    }

    fn begin_policies(&mut self, policies: Policies) {
        self.policies = policies;
        self.with_policies(|policies, keep| {
            for policy in policies.iter_mut() {
                policy.started(keep);
            }
        });
    }

    /// Replaces the layers, as far as the list makes sense; says what does not. Requests that wait at one are asked by the new ones.
    pub(crate) fn set_layers(&mut self, list: &[u8]) -> String {
        let (layers, errors) = Layers::parse(list);
        warn_of(&errors);
        self.layers = layers;
        self.settings.layers = layer::Choice::of(&self.layers);
        self.layers_changed(|gates| {
            gates.passed = 0;
        });
        match errors[..] {
            [] => "OK".to_string(),
            _ => errors.iter().map(ignoring).collect(),
        }
    }

    /// Adds a layer inside the others.
    ///
    /// # Errors
    /// The word makes no sense.
    pub(crate) fn add_layer_word(&mut self, word: &[u8]) -> Result<(), WordError> {
        let text = str::from_utf8(word).map_err(|_| WordError::new(word, "it is no text"))?;
        let [item] = items(text)[..] else {
            return Err(WordError::new(word, "it is more than one layer"));
        };
        self.layers.add(&item)?;
        self.settings.layers = layer::Choice::of(&self.layers);
        self.lists_changed(None);
        Ok(())
    }

    /// Takes the layer at a place away. A request that waits there goes on.
    ///
    /// # Errors
    /// ENOENT if there is none.
    pub(crate) fn remove_layer(&mut self, place: usize) -> Result<(), Errno> {
        if !self.layers.remove(place) {
            return Err(Errno::ENOENT);
        }
        self.settings.layers = layer::Choice::of(&self.layers);
        self.layers_changed(|gates| {
            if gates.passed > place {
                gates.passed = gates.passed.saturating_sub(1);
            }
        });
        Ok(())
    }

    /// Corrects how far requests have come, lets those go on that wait, and keeps the list.
    fn layers_changed(&mut self, correct: impl Fn(&mut Gates)) {
        for connection in self.connections.iter_mut() {
            let gates = &mut connection.gates;
            correct(gates);
            gates.is_resumed = false;
            if self.layers.is_empty() {
                // Nobody hears of its end, so that this would be taken for the next request's.
                *gates = Gates::default();
            }
        }
        let parked = |(_, conn): &(Instant, ConnId)| {
            let connection = self.connections.get(*conn)?;
            connection.held.filter(|hold| hold.is_parked)?;
            Some(*conn)
        };
        let parked: Vec<ConnId> = self.holds.iter().filter_map(parked).collect();
        for conn in parked {
            self.end_hold(conn);
            self.queue(conn);
        }
        self.lists_changed(None);
    }

    fn show_list(&mut self, node: &str, words: &str, is_default: bool) {
        let mut keep = Keeper(self);
        match keep.view().value(node) {
            None if is_default => {}
            Some(_) if is_default => keep.remove(node),
            Some(kept) if kept == words.as_bytes() => {}
            _ => keep.write(node, words.as_bytes()),
        }
    }
}

fn warn_of(errors: &[WordError]) {
    for error in errors {
        log::warn!("{}", ignoring(error).trim_end());
    }
}

fn ignoring(error: &WordError) -> String {
    format!("ignoring layer {error}\n")
}

/// Policies.
impl<S: Storage> Server<S> {
    /// Does `work` with the policies behind `legacy`, which may keep what they like; they judge nothing meanwhile.
    fn with_policies(&mut self, work: impl FnOnce(&mut Policies, &mut dyn Keep)) {
        let mut policies = mem::take(&mut self.policies);
        self.are_policies_at_work = true;
        work(&mut policies, &mut Keeper(self));
        self.policies = policies;
        self.are_policies_at_work = false;
    }

    /// Lets the policies know what a request was allowed, now that it is over; unless it waits and will ask again.
    #[cold]
    pub(crate) fn tell_passed(&mut self, is_answered: bool) {
        let passed = self.policies.take_passed();
        if passed.is_empty() || !is_answered {
            return;
        }
        self.pay(Rc::new(Owed {
            passed,
            committed: Vec::new(),
        }));
    }

    /// Lets the policies know what a transaction has changed that is committed.
    #[cold]
    pub(crate) fn tell_committed(&mut self) {
        let committed = self.policies.take_committed();
        if committed.is_empty() {
            return;
        }
        self.pay(Rc::new(Owed {
            passed: Vec::new(),
            committed,
        }));
    }

    /// Lets the policies know; if the server crashes meanwhile, all of it is owed still.
    fn pay(&mut self, owed: Rc<Owed>) {
        self.owed = Rc::clone(&owed);
        self.with_policies(|policies, keep| {
            for policy in policies.iter_mut() {
                owed.passed
                    .iter()
                    .for_each(|passed| policy.passed(passed, keep));
                for path in &owed.committed {
                    if policy.wants(path.as_ref()) {
                        policy.committed(path.as_ref(), keep);
                    }
                }
            }
        });
        self.owed = Rc::default();
    }

    /// Whether a client may watch a path, as far as policies are concerned.
    pub(crate) fn may_watch(&mut self, conn: ConnId, path: PathRef<'_>) -> Result<(), Errno> {
        if let Some(policies) = self.policies.more() {
            self.ask_policies(policies, conn, Operation::Watch, path)?;
            self.tell_passed(true);
        }
        Ok(())
    }

    /// Whether a client may hear of a node that it may read, as far as policies are concerned.
    pub(crate) fn may_be_told(&self, conn: ConnId, path: PathRef<'_>) -> bool {
        self.policies.more().is_none_or(|policies| {
            let asked = self.ask_policies(policies, conn, Operation::Hear, path);
            asked.is_ok()
        })
    }

    #[cold]
    fn ask_policies(
        &self,
        policies: &Policies,
        conn: ConnId,
        operation: Operation<'_>,
        path: PathRef<'_>,
    ) -> Result<(), Errno> {
        let connection = self.connections.get(conn).ok_or(Errno::EIO)?;
        let client = self.client(conn).ok_or(Errno::EIO)?;
        let access = Access {
            subject: self.domains.subject(client),
            operation,
            path,
            acl: None,
            seen: &self.store.nodes,
            store: &self.store.nodes,
            domains: &self.domains,
            now: self.now,
        };
        policies.check(&access, &connection.counters)
    }

    /// A domain is no more, and nobody has been told.
    pub(crate) fn tell_extensions_of_end(&mut self, domid: DomId) {
        self.layers.domain_ended(domid);
        if self.policies.more().is_some() {
            self.with_policies(|policies, keep| {
                for policy in policies.iter_mut() {
                    policy.domain_ended(domid, keep);
                }
            });
        }
        policy::forget(domid, &mut Keeper(self));
    }

    /// When a policy wants to hear of the time.
    pub(crate) fn policies_due(&self) -> Option<Instant> {
        self.policies.due()
    }

    /// Lets those policies hear of the time that want to.
    pub(crate) fn tell_policies_of_time(&mut self) {
        let now = self.now;
        if self.policies.due().is_none_or(|due| now < due) {
            return;
        }
        self.with_policies(|policies, keep| {
            for policy in policies.iter_mut() {
                if policy.due().is_some_and(|due| due <= now) {
                    policy.time_passed(now, keep);
                }
            }
        });
    }
}

/// Layers.
impl<S: Storage> Server<S> {
    /// Asks the layers about the request of a connection, if it has one that may run; the cost, if it does not run now.
    #[cold]
    pub(crate) fn hold_back(&mut self, conn: ConnId) -> Option<u32> {
        let (header, payload) = self.request_to_judge(conn)?;
        let call = self.call(conn, header, &payload)?;
        let connection = self.connections.get_mut(conn)?;
        let gates = &mut connection.gates;
        match self.layers.admit(&call, gates, &self.store.nodes)? {
            Gate::Pass => return None,
            Gate::Later(until) => self.park(conn, until),
            Gate::Answer(payload) => self.withhold(conn, Ok(Answer::Bytes(payload))),
            Gate::Refuse(errno) => self.withhold(conn, Err(errno)),
        }
        Some(1)
    }

    /// The request that would run now, if there is one.
    fn request_to_judge(&self, conn: ConnId) -> Option<(Header, Vec<u8>)> {
        let connection = self.connections.get(conn)?;
        if !self.may_run(connection) {
            return None;
        }
        let request = connection.input.whole()?;
        Some((request.header, request.payload.clone()))
    }

    fn call<'a>(&self, conn: ConnId, header: Header, payload: &'a [u8]) -> Option<Call<'a>> {
        let connection = self.connections.get(conn)?;
        Some(Call {
            conn,
            domid: connection.incarnation.domid,
            is_privileged: connection.privileged,
            header,
            payload,
            now: self.now,
            is_resumed: false,
        })
    }

    /// Lets a request wait.
    fn park(&mut self, conn: ConnId, until: Instant) {
        let now = self.now;
        let Some(connection) = self.connections.get_mut(conn) else {
            return;
        };
        connection.queued = false;
        connection.gates.is_resumed = true;
        if until <= now {
            return self.queue(conn);
        }
        connection.held = Some(Hold {
            since: now,
            until,
            is_parked: true,
        });
        self.holds.insert((until, conn));
    }

    /// Answers a request that does not run.
    fn withhold(&mut self, conn: ConnId, answer: Result<Answer, Errno>) {
        let Some((request, cause)) = self.take_request(conn) else {
            return;
        };
        let is_charged = cause.is_some();
        self.cause = cause;
        if self.traces {
            self.trace_request(conn, &request);
        }
        let refused = answer.as_ref().err().copied();
        if request.header.kind == Kind::TransactionEnd.number()
            && !matches!(refused, None | Some(Errno::EINVAL | Errno::ENOENT))
            && let Some(id) = TxId::new(request.header.tx_id)
            && let Some(connection) = self.connections.get_mut(conn)
        {
            // As the protocol has it, whoever refuses; ENOENT if there is none.
            let _ = connection.transactions.abort(id);
        }
        self.reply(conn, request.header, answer);
        self.note_request(conn, &request, |request| Entry::Withheld {
            request,
            refused,
        });
        self.complete_request(conn, &request, refused, 1);
        self.spare.keep(request.payload);
        self.cause = None;
        if is_charged {
            self.account(conn);
        }
    }

    /// Lets the layers that let a request pass hear that it was answered.
    #[cold]
    pub(crate) fn complete_request(
        &mut self,
        conn: ConnId,
        request: &Request,
        error: Option<Errno>,
        cost: u32,
    ) {
        if let Some(call) = self.call(conn, request.header, &request.payload) {
            self.complete(&call, &Done { error, cost });
        }
    }

    /// Lets the layers hear of a request that was answered late: an INTRODUCE or a live update.
    pub(crate) fn complete_late(&mut self, conn: ConnId, header: Header, error: Option<Errno>) {
        if !self.layers.is_empty()
            && let Some(call) = self.call(conn, header, &[])
        {
            self.complete(&call, &Done { error, cost: 1 });
        }
    }

    fn complete(&mut self, call: &Call<'_>, done: &Done) {
        let Some(connection) = self.connections.get_mut(call.conn) else {
            return;
        };
        let Gates { passed, .. } = mem::take(&mut connection.gates);
        self.layers.complete(call, passed, done);
    }
}

/// Writes nodes on the store's own account.
struct Keeper<'a, S: Storage>(&'a mut Server<S>);

impl<S: Storage> Keep for Keeper<'_, S> {
    fn view(&self) -> &dyn View {
        &self.0.store.nodes
    }

    fn write(&mut self, path: &str, value: &[u8]) {
        self.give(path, value, self.0.domains.privileged().domid);
    }

    fn now(&self) -> Instant {
        self.0.now
    }

    fn is_known(&self, domid: DomId) -> bool {
        self.0.domains.get(domid).is_some()
    }

    fn give(&mut self, path: &str, value: &[u8], owner: DomId) {
        let Ok(path) = Path::parse(path.as_bytes(), DomId::new(0), 0) else {
            return;
        };
        let path = path.as_ref();
        let server = &mut *self.0;
        let owner = server.domains.get(owner);
        let owner = owner.map(|owner| owner.incarnation);
        let owner = owner.unwrap_or(server.domains.privileged());
        let (_, missing) = server.store.nodes.nearest(path);
        let levels = missing.count();
        let mut edit = server.edit();
        if path.is_special() {
            return;
        }
        if levels == 0 {
            edit.write(path, value);
        } else {
            edit.create(path, levels, value, &Rc::new(Acl::private(owner)));
        }
        server.commit(None);
    }

    fn remove(&mut self, path: &str) {
        let path = PathRef::known(path);
        let server = &mut *self.0;
        if path.is_root() || path.is_special() || server.store.nodes.get(path).is_none() {
            return;
        }
        server.edit().remove(path);
        server.commit(None);
    }
}
