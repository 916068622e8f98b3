//! Open transactions: what they have done, and the nodes that they began with and have now, as steps from one snapshot to the next.

use alloc::boxed::Box;
use alloc::string::String;

use super::super::Damage;
use super::super::own::Own;
use crate::answer::Answer;
use crate::database::is_database;
use crate::ids::{Generation, TxId};
use crate::path::PathRef;
use crate::storage::{Seed, Storage, Value};
use crate::touched::Mark;
use crate::transaction::Transaction;
use crate::wire::{Errno, Kind};

use super::Import;

impl<'s, S: Storage> Import<'s, S> {
    /// The next transaction is inside one that was read.
    pub(super) fn inside(&mut self, conn: u32, transaction: u32) -> Result<(), Damage> {
        let conn = self.conn(conn)?;
        let id = TxId::new(transaction).ok_or(Damage::Field)?;
        let connection = self.server.connections.get(conn);
        let open = connection.and_then(|connection| connection.transactions.open.get(&id));
        let outer = open.ok_or(Damage::Reference)?;
        if self.transaction.is_some() || self.outer.replace((conn, id)).is_some() {
            return Err(Damage::Reference);
        }
        self.inner_bases
            .entry((conn, id))
            .or_insert_with(|| outer.nodes.clone());
        Ok(())
    }

    /// The nodes that the next transaction begins with, as far as they are known.
    fn base(&mut self) -> &mut S {
        let nodes = &self.server.store.nodes;
        match self
            .outer
            .and_then(|outer| self.inner_bases.get_mut(&outer))
        {
            Some(base) => base,
            None => self.base.get_or_insert_with(|| {
                let mut nodes = nodes.clone();
                nodes.forget();
                nodes
            }),
        }
    }

    pub(super) fn begin(&mut self, own: &Own<'s>) -> Result<(), Damage> {
        let &Own::Begin {
            conn,
            transaction,
            has_failed,
            is_given_up,
            is_overflowed,
            deaths,
            changes,
            number,
            since,
        } = own
        else {
            return Ok(());
        };
        let conn = self.conn(conn)?;
        let id = TxId::new(transaction).ok_or(Damage::Field)?;
        if self.transaction.is_some() || !self.opaque.remove(&(conn, id)) {
            return Err(Damage::Reference);
        }
        let since = self.clock.moved(since);
        let opening = self.server.history.opened_at(changes, number, since);
        let mut base = match is_given_up {
            true => S::of(
                self.server.settings.storage,
                self.server.domains.privileged(),
            ),
            false => self.base().clone(),
        };
        let outer = self.outer.take();
        // Where nothing was noted, what one inside another has changed begins with what that one has.
        if outer.is_none() || self.notes.is_some() {
            base.forget();
        }
        if outer.is_some_and(|(of, outer)| of != conn || outer == id) {
            return Err(Damage::Reference);
        }
        let domains = &self.server.domains;
        let mut transaction = Transaction::start(&base, domains, opening, Box::default());
        transaction.parent = outer.map(|(_, outer)| outer);
        transaction.failed = has_failed;
        transaction.is_given_up = is_given_up;
        transaction.log.touched.overflowed = is_overflowed;
        transaction.deaths = deaths;
        self.transaction = Some((conn, id, Box::new(transaction)));
        Ok(())
    }

    pub(super) fn end(&mut self) -> Result<(), Damage> {
        let (conn, id, mut transaction) = self.transaction.take().ok_or(Damage::Reference)?;
        let connection = self.server.connections.get_mut(conn);
        let connection = connection.ok_or(Damage::Reference)?;
        transaction.restore_notes(self.notes.as_mut().map(core::mem::take));
        connection.transactions.restore(id, transaction);
        Ok(())
    }

    pub(super) fn in_transaction(
        &mut self,
        own: &Own<'s>,
        path: PathRef<'_>,
    ) -> Result<(), Damage> {
        let (_, _, transaction) = self.transaction.as_mut().ok_or(Damage::Reference)?;
        let domains = &self.server.domains;
        let alive = |domid| {
            let domain = domains.get(domid).ok_or(Damage::Reference)?;
            Ok(domain.incarnation)
        };
        match own {
            Own::Request {
                kind,
                payload,
                answer,
                start,
                text,
            } => {
                let kind = Kind::from_number(*kind).filter(|kind| is_database(*kind));
                let answer = read_answer(*answer, *start, text.0)?;
                transaction.keep(kind.ok_or(Damage::Field)?, payload.0, answer);
            }
            Own::Touched {
                is_removed, made, ..
            } => {
                transaction.touch(path).map_err(|_| Damage::Duplicate)?;
                if let Some(removed) = *is_removed {
                    let made = usize::try_from(*made).map_err(|_| Damage::Field)?;
                    transaction.log.touched.mark(path, Mark { removed, made });
                }
            }
            Own::Charge {
                domid,
                nodes,
                bytes,
            } => transaction
                .log
                .effects
                .charge(alive(*domid)?, *nodes, *bytes),
            Own::Estate {
                domid, is_gained, ..
            } => {
                transaction
                    .log
                    .effects
                    .transfer(alive(*domid)?, path, *is_gained);
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes a step from one snapshot to another: to the nodes that a transaction has, or to those that the next one began with.
    pub(super) fn step(&mut self, own: &Own<'s>, path: PathRef<'_>) -> Result<(), Damage> {
        let set = match own {
            Own::Set {
                permissions,
                departed,
                ..
            } => Some(self.acl(*permissions, departed.0)?),
            _ => None,
        };
        let nodes = match &mut self.transaction {
            Some((_, _, transaction)) => &mut transaction.nodes,
            None => self.base(),
        };
        match (own, set) {
            (Own::Cut { .. }, _) => {
                let parent = path.parent().and_then(|parent| nodes.get(parent));
                let generation = parent.ok_or(Damage::Parent)?.generation;
                nodes.get(path).ok_or(Damage::Reference)?;
                nodes.remove(path, generation).ok_or(Damage::Reference)?;
            }
            (
                Own::Set {
                    is_new,
                    generation,
                    value,
                    ..
                },
                Some(acl),
            ) => {
                let (value, generation) = (Value::new(value.0), Generation(*generation));
                if *is_new {
                    let seed = Seed {
                        value,
                        acl,
                        generation,
                    };
                    nodes.restore(path, seed).ok_or(Damage::Parent)?;
                } else {
                    let node = nodes.get_mut(path).ok_or(Damage::Reference)?;
                    (node.value, node.acl, node.generation) = (value, acl, generation);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn read_answer(tag: u8, start: u32, text: &[u8]) -> Result<Result<Answer, Errno>, Damage> {
    let string = || {
        let text = core::str::from_utf8(text).map_err(|_| Damage::Text)?;
        Ok(String::from(text))
    };
    Ok(Ok(match tag {
        0 => Answer::Done,
        1 => Answer::Value(Value::new(text)),
        2 => Answer::Names(text.to_vec()),
        3 => {
            let start = usize::try_from(start).map_err(|_| Damage::Field)?;
            Answer::Part(text.to_vec(), start)
        }
        4 => Answer::Permissions(string()?),
        5 => Answer::Text(string()?),
        6 => {
            let mut all = Errno::ALL.iter();
            let errno = all.find(|errno| errno.name().as_bytes() == text);
            return Ok(Err(*errno.ok_or(Damage::Field)?));
        }
        _ => return Err(Damage::Field),
    }))
}
