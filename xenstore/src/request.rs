//! From a request to its answer: the rules that hold for all of them, then the one that was asked for.

use alloc::format;
use alloc::rc::Rc;

use crate::answer::Answer;
use crate::bugs;
use crate::connection::Request;
use crate::database::{Refusal, Setting, Work, is_database};
use crate::effects::{Charge, Effects};
use crate::faults;
use crate::features::Features;
use crate::ids::{ConnId, DomId, TxId};
use crate::lifecycle::parse_domid;
use crate::path::{Path, is_relative};
use crate::privilege::{self, Privileged};
use crate::quota::Quota;
use crate::refusal::Reason;
use crate::server::Server;
use crate::storage::Storage;
use crate::transaction::{Target, Transaction, Transactions};
use crate::watch::{Token, Watch, Watches};
use crate::wire::{Errno, Kind, decimal, exactly, one, strings};

impl<S: Storage> Server<S> {
    /// Answers a request: type, privilege and transaction are judged first, in this order (protocol.md section 2).
    pub(crate) fn answer(&mut self, conn: ConnId, request: &Request) -> Result<Answer, Refusal> {
        let kind = Kind::from_number(request.header.kind)
            .filter(|kind| is_served(*kind))
            .ok_or(Errno::ENOSYS)?;
        let connection = self.connections.get(conn).ok_or(Errno::EIO)?;
        let privileged = Privileged::grant(connection.privileged);
        if privilege::is_needed(kind) && privileged.is_none() {
            return Err(Errno::EACCES.into());
        }
        let transaction = match kind {
            Kind::Watch | Kind::Unwatch => None,
            _ => TxId::new(request.header.tx_id),
        };
        if transaction.is_some_and(|id| !connection.transactions.has(id)) {
            return Err(Errno::ENOENT.into());
        }
        let payload = request.payload.as_slice();
        match (kind, privileged) {
            _ if is_database(kind) => self.database(conn, transaction, kind, payload),
            (Kind::Watch, _) => self.watch(conn, payload),
            (Kind::Unwatch, _) => self.unwatch(conn, payload),
            (Kind::ResetWatches, _) => Ok(self.reset_watches(conn)),
            (Kind::TransactionStart, _) => self.start_transaction(conn, transaction),
            (Kind::TransactionEnd, _) => self.end_transaction(conn, transaction, payload),
            (Kind::GetDomainPath, _) => domain_path(payload),
            (Kind::GetFeature, _) => self.get_feature(conn, privileged, payload),
            (_, Some(token)) => self.answer_toolstack(token, conn, kind, payload),
            (_, None) => Err(Errno::EACCES.into()),
        }
    }

    /// Runs a request on nodes, in its transaction or on the store itself.
    fn database(
        &mut self,
        conn: ConnId,
        transaction: Option<TxId>,
        kind: Kind,
        payload: &[u8],
    ) -> Result<Answer, Refusal> {
        let answer = self.with_setting(conn, |setting, place| match transaction {
            Some(id) => {
                if setting.policies.is_some() {
                    setting.store = Some(place.nodes);
                }
                place.transactions.execute(id, setting, kind, payload)
            }
            None => Work {
                setting,
                nodes: place.nodes,
                effects: place.effects,
                watches: place.watches,
                touched: None,
            }
            .execute(kind, payload),
        });
        if !self.effects.is_empty() {
            self.commit(Some(conn));
        }
        if self.policies.more().is_some() {
            self.tell_passed(!matches!(answer, Err(Refusal::Wait(_))));
        }
        answer
    }

    /// Does `work` with what a connection's requests run with.
    fn with_setting<T>(
        &mut self,
        conn: ConnId,
        work: impl for<'s> FnOnce(&mut Setting<'s>, Place<'s, S>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let connection = self.connections.get_mut(conn).ok_or(Errno::EIO)?;
        let client = self
            .domains
            .alive(connection.incarnation)
            .ok_or(Errno::EIO)?;
        let own = connection.transactions.len();
        let told_all = !connection.privileged && self.history.is_open_besides(own);
        let mut setting = Setting {
            generation: &mut self.store.generation,
            domains: &self.domains,
            quotas: &self.settings.quotas,
            client,
            subject: self.domains.subject(client),
            supply: self.supply,
            counters: &connection.counters,
            now: self.now,
            held: connection.footprint(),
            home: connection.home,
            absent: &connection.absent,
            pending: Charge::default(),
            policies: self.policies.more(),
            store: None,
        };
        let place = Place {
            transactions: &mut connection.transactions,
            nodes: &mut self.store.nodes,
            effects: Rc::make_mut(&mut self.effects),
            watches: (!told_all).then_some(&self.watches),
        };
        work(&mut setting, place)
    }

    fn start_transaction(
        &mut self,
        conn: ConnId,
        transaction: Option<TxId>,
    ) -> Result<Answer, Refusal> {
        if transaction.is_some() && !self.has_feature(conn, Features::NESTED_TRANSACTIONS) {
            return Err(Errno::EBUSY.into());
        }
        self.check_memory(conn, 0)?;
        let connection = self.connections.get(conn).ok_or(Errno::EIO)?;
        let open = u64::try_from(connection.transactions.len()).unwrap_or(u64::MAX);
        if !self.admits(conn, Quota::Transactions, open.saturating_add(1)) {
            return Err(Errno::ENOSPC.into());
        }
        let connection = self.connections.get_mut(conn).ok_or(Errno::EIO)?;
        let transactions = &mut connection.transactions;
        let outer = transaction.and_then(|id| transactions.open.get(&id));
        if outer.is_some_and(|outer| outer.is_given_up) {
            return Err(Errno::EAGAIN.into());
        }
        let nodes = outer.map_or(&self.store.nodes, |outer| &outer.nodes);
        let log = self.spare_log.take().unwrap_or_default();
        let opening = self.history.open(self.now);
        let mut begun = Transaction::start(nodes, &self.domains, opening, log);
        begun.parent = transaction;
        faults::may_crash();
        let id = transactions.add(begun);
        self.did_change = true;
        Ok(Answer::Text(format!("{id}")))
    }

    /// Ends a transaction. All answers but EINVAL and ENOENT do.
    fn end_transaction(
        &mut self,
        conn: ConnId,
        transaction: Option<TxId>,
        payload: &[u8],
    ) -> Result<Answer, Refusal> {
        let commit = match one(payload)? {
            b"T" => true,
            b"F" => false,
            _ => return Err(Errno::EINVAL.into()),
        };
        let id = transaction.ok_or(Errno::ENOENT)?;
        let (mut work, mut spare) = (0, None);
        let ended = self.with_setting(conn, |setting, place| {
            if commit {
                let Place {
                    nodes,
                    effects,
                    watches,
                    ..
                } = place;
                let store = if place.transactions.is_inside(id) {
                    setting.store = Some(nodes);
                    None
                } else {
                    Some(Target {
                        nodes,
                        effects,
                        watches,
                    })
                };
                let committed = place.transactions.commit(id, setting, store);
                work = place.transactions.take_work();
                spare = place.transactions.take_spare();
                committed
            } else {
                place.transactions.abort(id)?;
                spare = place.transactions.take_spare();
                Ok(())
            }
        });
        if self.policies.more().is_some() {
            // What was allowed when it ran again was noted when it ran first.
            self.tell_passed(false);
        }
        self.spare_log = spare.or(self.spare_log.take());
        self.work = self.work.saturating_add(work);
        ended.inspect_err(|refusal| {
            if *refusal == Refusal::Errno(Errno::EAGAIN) {
                self.note_conflict(conn);
            }
        })?;
        if !self.effects.is_empty() {
            self.commit(Some(conn));
        }
        if self.policies.more().is_some() {
            self.tell_committed();
        }
        Ok(Answer::Done)
    }

    fn watch(&mut self, conn: ConnId, payload: &[u8]) -> Result<Answer, Refusal> {
        let mut rest = strings(payload);
        let written = rest.next().ok_or(Errno::EINVAL)?;
        let token = rest.next().ok_or(Errno::EINVAL)?;
        let depth = match (rest.next(), rest.next()) {
            (None, _) => None,
            (Some(depth), None) if self.has_feature(conn, Features::WATCH_DEPTH) => {
                Some(decimal(depth, u32::MAX)?)
            }
            _ => return Err(Errno::EINVAL.into()),
        };
        let path = self.any_path(conn, written)?;
        self.may_watch(conn, path.as_ref())?;
        let watch = Watch {
            connection: conn,
            relative_to: is_relative(written).then_some(self.home(conn)?),
            path,
            token: Token::new(token),
            depth,
        };
        self.add_watch(watch)?;
        Ok(Answer::Done)
    }

    fn add_watch(&mut self, watch: Watch) -> Result<(), Errno> {
        let conn = watch.connection;
        let connection = self.connections.get(conn).ok_or(Errno::EIO)?;
        let bytes = watch.footprint();
        if self.watches.has(&watch) {
            return Err(Errno::EEXIST);
        }
        if !self.admits(conn, Quota::Watches, connection.watches.saturating_add(1)) {
            return Err(Errno::ENOSPC);
        }
        self.check_memory(conn, bytes)?;
        let connection = self.connections.get_mut(conn).ok_or(Errno::EIO)?;
        connection.watches = connection.watches.saturating_add(1);
        connection.watch_bytes = connection.watch_bytes.saturating_add(bytes);
        self.fresh_watch = Some(self.watches.add(watch));
        self.did_change = true;
        Ok(())
    }

    fn unwatch(&mut self, conn: ConnId, payload: &[u8]) -> Result<Answer, Refusal> {
        let [written, token] = exactly(payload)?;
        let path = self.any_path(conn, written)?;
        let (id, watch) = self
            .watches
            .remove(conn, path.as_ref(), token)
            .ok_or(Errno::ENOENT)?;
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.watches = connection.watches.saturating_sub(1);
            connection.watch_bytes = connection.watch_bytes.saturating_sub(watch.footprint());
            connection.lost.remove(&id);
        }
        self.drop_events(conn, |of, _| of == id);
        self.did_change = true;
        Ok(Answer::Done)
    }

    /// Drops watches and transactions, also the one that the request itself may name. Events that wait stay.
    fn reset_watches(&mut self, conn: ConnId) -> Answer {
        self.watches.remove_all(conn);
        if let Some(connection) = self.connections.get_mut(conn) {
            if !bugs::XSA_484 {
                connection.transactions.clear();
            }
            connection.lost.clear();
            (connection.watches, connection.watch_bytes) = (0, 0);
        }
        self.did_change = true;
        Answer::Done
    }

    fn any_path(&self, conn: ConnId, written: &[u8]) -> Result<Path, Errno> {
        let home = self.home(conn)?;
        let limit = self.limit(conn, Quota::PathMax);
        Path::parse(written, home, limit).inspect_err(|_| {
            let is_long = Path::parse(written, home, 0).is_ok();
            if let Some(connection) = self.connections.get(conn).filter(|_| is_long) {
                let reason = Reason::Quota(Quota::PathMax);
                connection.counters.refuse(reason, limit, self.now);
            }
        })
    }

    fn home(&self, conn: ConnId) -> Result<DomId, Errno> {
        let connection = self.connections.get(conn);
        connection
            .map(|connection| connection.home)
            .ok_or(Errno::EIO)
    }

    fn has_feature(&self, conn: ConnId, feature: Features) -> bool {
        self.client(conn)
            .is_some_and(|domain| domain.features.has(feature))
    }
}

/// What the requests of a connection work on.
struct Place<'a, S: Storage> {
    transactions: &'a mut Transactions<S>,
    nodes: &'a mut S,
    effects: &'a mut Effects<S>,
    /// Whose changes alone are noted; of all if others have transactions open to which they may matter.
    watches: Option<&'a Watches>,
}

/// Whether a client may send this type at all.
pub(crate) fn is_served(kind: Kind) -> bool {
    !matches!(kind, Kind::WatchEvent | Kind::Error | Kind::Restrict)
}

fn domain_path(payload: &[u8]) -> Result<Answer, Refusal> {
    let domid = parse_domid(one(payload)?)?;
    Ok(Answer::Text(format!("{}", Path::home(domid))))
}
