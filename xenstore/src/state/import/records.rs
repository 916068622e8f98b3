//! Our own records, but for those of transactions.

use super::super::Damage;
use super::super::own::Own;
use crate::conflict::{CHANGES_MAX, GuestChange, Hold};
use crate::connection::Connection;
use crate::crash::{Blamed, Crash};
use crate::extensions::Lists;
use crate::ids::{DomId, EvtchnPort, Generation, Ticket};
use crate::live_update::Unanswered;
use crate::memory::Supply;
use crate::path::PathRef;
use crate::quota::Quota;
use crate::refusal::Reason;
use crate::server::{Action, Question};
use crate::spell::Spell;
use crate::storage::Storage;
use crate::turns::{Entry as Turn, Served};
use crate::wire::Header;

use super::Import;
use super::connections::Client;
use super::messages::MessageMark;
use super::nodes::Mark;

impl<'s, S: Storage> Import<'s, S> {
    pub(super) fn own(&mut self, own: &Own<'s>, path: &str) -> Result<(), Damage> {
        match own {
            Own::Store { .. } => self.store(own),
            Own::Peak { name, value } => {
                if let Some(quota) = Quota::from_name(name.0) {
                    self.server.peaks.note(quota, *value);
                }
                Ok(())
            }
            Own::Client { .. } => self.note_client(own),
            Own::WatchMark { number, depth, .. } => {
                self.next.watch = Some((*number, *depth));
                Ok(())
            }
            Own::Message {
                conn,
                is_event,
                repeats,
                watch,
                queued,
                cause,
                request,
            } => {
                let mark = MessageMark {
                    cause: cause.map(|number| (number, *request)),
                    event: is_event.then_some((*watch, *queued, *repeats)),
                };
                self.message(*conn, mark)
            }
            Own::Node {
                generation,
                permissions,
                departed,
                value,
                ..
            } => {
                let mark = Mark {
                    generation: *generation,
                    departed: departed.0,
                };
                self.node(path, *permissions, value.0, mark)
            }
            Own::DomainMark { .. } => Ok(()),
            Own::Counter { .. } | Own::Refusals { .. } => self.counted(own),
            Own::Host { facts } => {
                self.host.facts = facts.0.to_vec();
                Ok(())
            }
            Own::Lists { policies, layers } => {
                self.lists = Some(Lists {
                    policies: policies.0.to_vec(),
                    layers: layers.0.to_vec(),
                });
                Ok(())
            }
            Own::HostLink { facts, .. } => {
                self.next.host = Some(facts.0);
                Ok(())
            }
            Own::Check { nodes, .. } => {
                if *nodes == self.nodes {
                    Ok(())
                } else {
                    Err(Damage::Digest)
                }
            }
            Own::Cut { .. } | Own::Set { .. } => self.step(own, PathRef::known(path)),
            Own::Journal {
                dropped_bytes,
                dropped_lines,
                commits,
                text,
            } => {
                let text = core::str::from_utf8(text.0).map_err(|_| Damage::Text)?;
                let store = &mut self.server.store;
                if store.nodes.is_journaled() {
                    store
                        .log
                        .restore([*dropped_bytes, *dropped_lines, *commits]);
                    store.log.restore_text(text);
                }
                Ok(())
            }
            Own::Noted { path, is_removed } => {
                let notes = self.notes.as_mut().ok_or(Damage::Reference)?;
                notes.push((path, *is_removed));
                Ok(())
            }
            Own::Inside { conn, transaction } => self.inside(*conn, *transaction),
            Own::Begin { .. } => self.begin(own),
            Own::End {} => self.end(),
            Own::Request { .. } | Own::Touched { .. } | Own::Charge { .. } | Own::Estate { .. } => {
                self.in_transaction(own, PathRef::known(path))
            }
            Own::GuestChange { .. } | Own::Turn { .. } | Own::Ready { .. } => self.queue(own),
            Own::Question { .. } | Own::Wish { .. } => self.wish(own),
            Own::Update { connection, header } => self.update(*connection, header.0),
            Own::Crash { .. } => self.crash(own),
        }
    }

    pub(super) fn store(&mut self, own: &Own<'s>) -> Result<(), Damage> {
        let &Own::Store {
            now,
            generation,
            deaths,
            asked,
            spent,
            clock,
            next_watch,
            changes,
            begun,
            next_round,
            step_at,
            step_domid,
            supply,
            next_look,
            traces,
            is_noted,
            is_release_untold,
            crashes,
            ..
        } = own
        else {
            return Ok(());
        };
        let server = &mut self.server;
        server.now = self.clock.moved(now);
        server.store.generation = Generation(generation);
        server.domains.deaths = deaths;
        server.domains.noted.set(is_noted);
        server.asked = asked;
        server.spent = spent;
        server.turns.clock = clock;
        server.watches.next = next_watch;
        (server.history.count, server.history.begun) = (changes, begun);
        server.counter_nodes.next_round = self.clock.moved(next_round);
        let step = step_at.map(|at| (step_domid, self.clock.moved(at)));
        server.counter_nodes.next_step = step;
        server.left.next_look = self.clock.moved(next_look);
        server.traces = traces;
        server.is_release_untold = is_release_untold;
        server.crashes = crashes;
        server.supply = match supply {
            0 => Supply::Plenty,
            1 => Supply::Scarce,
            2 => Supply::Short,
            3 => Supply::Reserve,
            _ => return Err(Damage::Field),
        };
        Ok(())
    }

    pub(super) fn note_client(&mut self, own: &Own<'s>) -> Result<(), Damage> {
        let &Own::Client {
            conn,
            is_stopped,
            requests,
            late,
            served,
            deadline,
            held_since: since,
            held_until,
            waiting,
            last_transaction,
            absent,
            lost,
            outstanding,
            begun,
            crashes,
            ..
        } = own
        else {
            return Ok(());
        };
        self.next.client = Some(Client {
            conn,
            is_stopped,
            requests,
            late,
            served,
            deadline,
            held: held_until.map(|until| Hold {
                since,
                until,
                is_parked: false,
            }),
            waiting,
            last_transaction,
            absent,
            lost,
            outstanding,
            begun: begun.0,
            crashes,
        });
        Ok(())
    }

    pub(super) fn counted(&mut self, own: &Own<'s>) -> Result<(), Damage> {
        let domains = &mut self.server.domains;
        match own {
            Own::Counter { domid, name, value } => {
                let name = core::str::from_utf8(name.0).map_err(|_| Damage::Text)?;
                let Some(place) = self.counters.get(name) else {
                    return Ok(());
                };
                let Some(domid) = domid else {
                    domains.past.restore(*place, *value);
                    return Ok(());
                };
                let domain = domains.get(*domid).ok_or(Damage::Reference)?;
                let incarnation = domain.incarnation;
                domains.counters(incarnation).restore(*place, *value);
            }
            Own::Refusals {
                domid,
                name,
                told,
                untold,
            } => {
                let domain = domains.get(*domid).ok_or(Damage::Reference)?;
                let spell = Spell {
                    told: told.map(|told| self.clock.moved(told)),
                    untold: *untold,
                };
                let reason = Reason::all().find(|reason| reason.name().as_bytes() == name.0);
                if let (Some(counters), Some(reason)) = (domain.counters(), reason) {
                    counters.restore_spell(reason, spell);
                }
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn queue(&mut self, own: &Own<'s>) -> Result<(), Damage> {
        match own {
            Own::GuestChange {
                number,
                domid,
                is_alive,
                path,
                is_listed,
            } => {
                let domain = if *is_alive {
                    self.expected(*domid)
                } else {
                    self.departed(*domid)
                };
                let changes = &mut self.server.history.changes;
                if changes.len() >= CHANGES_MAX {
                    return Err(Damage::Duplicate);
                }
                changes.push_back(GuestChange {
                    number: *number,
                    domain,
                    path: PathRef::known(path).to_path(),
                    is_listed: *is_listed,
                });
            }
            Own::Turn {
                connection,
                ends,
                begins,
                served,
            } => {
                let conn = self.numbered(*connection);
                if let Some(connection) = self.server.connections.get_mut(conn)
                    && core::mem::replace(&mut connection.queued, true)
                {
                    return Err(Damage::Duplicate);
                }
                self.server.turns.put(Turn {
                    ends: Served(*ends),
                    begins: Served(*begins),
                    served: Served(*served),
                    conn,
                });
            }
            Own::Ready { connection } => self.server.announce(self.numbered(*connection)),
            _ => {}
        }
        Ok(())
    }

    /// The request that started the update is to be answered.
    fn update(&mut self, connection: u64, header: &[u8]) -> Result<(), Damage> {
        let conn = self.numbered(connection);
        let header = Header::decode(*header.first_chunk().ok_or(Damage::Field)?);
        let is_privileged = |own: &Connection<S>| own.privileged;
        if !self.server.connections.get(conn).is_some_and(is_privileged) {
            return Err(Damage::Reference);
        }
        let unanswered = &mut self.server.live_update.unanswered;
        match unanswered.replace(Unanswered { conn, header }) {
            Some(_) => Err(Damage::Duplicate),
            None => Ok(()),
        }
    }

    /// The server that wrote this had crashed.
    fn crash(&mut self, own: &Own<'s>) -> Result<(), Damage> {
        let &Own::Crash {
            connection,
            domid,
            header,
            is_answered,
            is_kept,
        } = own
        else {
            return Ok(());
        };
        let header = match header.0 {
            [] => None,
            bytes => Some(Header::decode(*bytes.first_chunk().ok_or(Damage::Field)?)),
        };
        let blamed = connection.map(|number| Blamed {
            conn: self.numbered(number),
            domid,
            request: header.map(|header| header.kind),
            is_kept,
        });
        let unanswered = header.filter(|_| !is_answered);
        match self.crash.replace((Crash { blamed }, unanswered)) {
            Some(_) => Err(Damage::Duplicate),
            None => Ok(()),
        }
    }

    pub(super) fn wish(&mut self, own: &Own<'s>) -> Result<(), Damage> {
        match own {
            Own::Question {
                ticket,
                requester,
                domid,
                connection,
                header,
            } => {
                let requester = self.numbered(*requester);
                let domid = *domid;
                let question = match connection {
                    Some(number) => {
                        let header = header.0.first_chunk().ok_or(Damage::Field)?;
                        if self.conns.contains_key(number) {
                            return Err(Damage::Duplicate);
                        }
                        let conn = self.server.connections.promise_as(*number);
                        self.conns.insert(*number, conn);
                        Question::Connect {
                            requester,
                            header: Header::decode(*header),
                            conn,
                            domid,
                            port: EvtchnPort(0),
                        }
                    }
                    None => Question::Identify { requester, domid },
                };
                self.server.questions.insert(Ticket(*ticket), question);
            }
            Own::Wish {
                ticket,
                domid,
                connection,
                port,
            } => self.act(ticket.map(Ticket), *domid, *connection, EvtchnPort(*port))?,
            _ => {}
        }
        Ok(())
    }

    pub(super) fn act(
        &mut self,
        ticket: Option<Ticket>,
        domid: DomId,
        connection: Option<u64>,
        named: EvtchnPort,
    ) -> Result<(), Damage> {
        let Some(ticket) = ticket else {
            self.server.actions.push_back(Action::Disconnect { domid });
            return Ok(());
        };
        if !self.wished.insert(ticket) {
            return Err(Damage::Duplicate);
        }
        let question = self.server.questions.get_mut(&ticket);
        let action = match question.ok_or(Damage::Reference)? {
            Question::Connect {
                conn, domid, port, ..
            } if connection == Some(conn.number) => {
                *port = named;
                Action::Connect {
                    ticket,
                    conn: *conn,
                    domid: *domid,
                    port: named,
                }
            }
            Question::Identify { domid, .. } if connection.is_none() => Action::Identify {
                ticket,
                domid: *domid,
            },
            _ => return Err(Damage::Field),
        };
        self.server.actions.push_back(action);
        Ok(())
    }
}
