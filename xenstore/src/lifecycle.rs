//! Domains from introduction to death: what the toolstack asks for and what Xen tells.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem;

use crate::acl::Incarnation;
use crate::answer::Answer;
use crate::bugs;
use crate::counters::Counter;
use crate::crash::AtWork;
use crate::database::{Need, Refusal};
use crate::domain::Domain;
use crate::events::Telling;
use crate::faults;
use crate::features::Features;
use crate::ids::{ConnId, DomId, EvtchnPort, Identity, Ticket};
use crate::journal::Entry;
use crate::privilege::Privileged;
use crate::quota::Quota;
use crate::server::{Action, DomainEvent, Outcome, Question, Server};
use crate::storage::Storage;
use crate::store::{INTRODUCE_DOMAIN, RELEASE_DOMAIN};
use crate::wire::{Errno, Kind, decimal, exactly, one, strings};

/// What became of the request within which the server crashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completed {
    /// What it was to change is changed.
    pub did_change: bool,
    /// Its reply is queued, and lost with its connection unless that is kept.
    pub did_answer: bool,
}

/// A domain that is being buried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    domid: DomId,
    connection: Option<ConnId>,
    /// Nothing of it is left but that others hear of it.
    is_telling: bool,
}

/// What happened outside.
impl<S: Storage> Server<S> {
    /// Opens the connection of a domain whose ring was there when the store started: the privileged one, or one that Xen itself made.
    pub fn open_domain(&mut self, identity: Identity) -> ConnId {
        let conn = self.connections.promise();
        self.attach(conn, identity);
        conn
    }

    /// Tells who has a domid, if anybody, where a state stream did not (`Restored::unconfirmed`). A domain that is not there has ended.
    pub fn confirm(&mut self, domid: DomId, identity: Option<Identity>) {
        match identity {
            Some(identity) => {
                self.meet(identity);
            }
            None => {
                self.release_plainly(domid);
            }
        }
    }

    /// Tells what a domain was offered, by its ring page, where a state stream did not (`RestoredLink::features`).
    pub fn adopt_features(&mut self, domid: DomId, bits: u32) {
        if let Some(domain) = self.domains.get_mut(domid) {
            let offered = self.settings.features.with(self.settings.grantable);
            domain.features = Features::known_of(bits).and(offered);
        }
    }

    /// An [`Action`] with a ticket is done, or failed. A ticket that is not open is no matter.
    pub fn handle_completed(&mut self, ticket: Ticket, outcome: Outcome) {
        let question = self.questions.remove(&ticket);
        self.at_work = question.as_ref().map(|question| match question {
            Question::Connect {
                requester, header, ..
            } => self.work_for(*requester, *header),
            Question::Identify { requester, .. } => AtWork::without_request(*requester),
        });
        self.answer_question(question, ticket, outcome);
        self.at_work = None;
    }

    fn answer_question(&mut self, question: Option<Question>, ticket: Ticket, outcome: Outcome) {
        match (question, outcome) {
            (
                Some(Question::Connect {
                    requester,
                    header,
                    conn,
                    domid,
                    ..
                }),
                outcome,
            ) => {
                let answer = match outcome {
                    Outcome::Connected(identity) => {
                        self.attach(conn, identity);
                        Ok(Answer::Done)
                    }
                    Outcome::Refused(errno) => {
                        self.lose_ring(domid);
                        Err(errno)
                    }
                    Outcome::Identified(_) => Err(Errno::EINVAL),
                };
                if answer.is_err() {
                    self.connections.remove(conn);
                }
                self.note_outcome(requester, |asker| Entry::Introduced {
                    asker,
                    domid,
                    outcome,
                });
                if self.goes_on(requester, ticket) {
                    let refused = answer.as_ref().err().copied();
                    self.reply(requester, header, answer);
                    self.complete_late(requester, header, refused);
                    self.account(requester);
                }
            }
            (Some(Question::Identify { requester, domid }), outcome) => {
                match outcome {
                    Outcome::Identified(Some(identity)) | Outcome::Connected(identity) => {
                        self.meet(identity);
                    }
                    Outcome::Identified(None) | Outcome::Refused(_) => {
                        self.note_absent(requester, domid)
                    }
                }
                self.note_outcome(requester, |asker| Entry::Identified {
                    asker,
                    domid,
                    outcome,
                });
                if self.goes_on(requester, ticket) {
                    self.queue(requester);
                }
            }
            (None, _) => {}
        }
    }

    /// Looks at what became of domains, in this order, until that has cost `budget` in the units of [`Server::run`]; answers how many it
    /// dealt with, one at least. The plain release event is sent at most once for all of them, and for those that were dealt with while
    /// there were `more` to come (protocol.md section 7.3).
    pub fn handle_domains(&mut self, events: &[DomainEvent], budget: u32, more: bool) -> usize {
        let sent_before = self.events;
        self.work = 0;
        let mut dealt_with = 0_usize;
        for event in events {
            self.is_release_untold |= match *event {
                DomainEvent::Shutdown(identity) => self.shut_down(identity),
                DomainEvent::Dead(identity) => self.is_known(identity) && self.bury(identity.domid),
            };
            self.ending = None;
            dealt_with = dealt_with.saturating_add(1);
            self.work = self.work.saturating_add(1);
            let sent = self.events.wrapping_sub(sent_before);
            if self.work.saturating_add(sent) >= budget.into() {
                break;
            }
        }
        let is_last = !more && dealt_with == events.len();
        if is_last && mem::take(&mut self.is_release_untold) {
            self.tell_special_plainly(RELEASE_DOMAIN);
        }
        let sent = self.events.wrapping_sub(sent_before);
        self.spent = self.spent.saturating_add(self.work).saturating_add(sent);
        self.journal.note(|| Entry::Domains {
            events: events.iter().take(dealt_with).copied().collect(),
            is_last,
        });
        dealt_with
    }

    /// Gives a domain its connection: a first one, which is told of, or a new one in place of the old.
    fn attach(&mut self, conn: ConnId, identity: Identity) {
        let incarnation = self.meet(identity);
        let old = self
            .domains
            .alive_mut(incarnation)
            .and_then(|domain| domain.connection.take());
        if let Some(old) = old {
            self.close(old);
        }
        self.open(conn, incarnation);
        if old.is_some() {
            self.count(conn, Counter::Reintroductions);
        }
        if old.is_none() && !self.domains.is_privileged(identity.domid) {
            self.tell_special(INTRODUCE_DOMAIN, identity.domid);
            self.tell_special_plainly(INTRODUCE_DOMAIN);
        }
    }

    /// An introduction failed, and with it went the ring that the domain may have had: its connection is stopped. It stays introduced
    /// until the toolstack releases it or it ends, so that its end is told (hostility.md R15); another introduction revives it.
    fn lose_ring(&mut self, domid: DomId) {
        let domain = self.domains.get(domid);
        if let Some(conn) = domain.and_then(|domain| domain.connection) {
            self.stop(conn);
        }
    }

    /// Makes a domain known. If its domid was another's, that one is dead, even if Xen has not told so yet (hostility.md R13).
    fn meet(&mut self, identity: Identity) -> Incarnation {
        let predecessor = self.domains.get(identity.domid).and_then(Domain::identity);
        if predecessor.is_some_and(|known| known != identity) {
            self.release_plainly(identity.domid);
        }
        self.domains.learn(identity, self.settings.features)
    }

    fn is_known(&self, identity: Identity) -> bool {
        self.domains.get(identity.domid).and_then(Domain::identity) == Some(identity)
    }

    /// Tells of a domain's shutdown, once; whether it did.
    fn shut_down(&mut self, identity: Identity) -> bool {
        if !self.is_known(identity) {
            return false;
        }
        let Some(domain) = self.domains.get_mut(identity.domid) else {
            return false;
        };
        let is_news = domain.connection.is_some() && !domain.told_shutdown;
        domain.told_shutdown |= is_news;
        if is_news {
            self.tell_special(RELEASE_DOMAIN, identity.domid);
        }
        is_news
    }

    /// Ends a domain in the order of hostility.md R14; whether it had been introduced, so that its release was told. It counts as being buried
    /// until all have heard, also plainly: `ending` is the caller's to clear.
    pub(crate) fn bury(&mut self, domid: DomId) -> bool {
        if self.domains.is_privileged(domid) {
            return false;
        }
        let domain = self.domains.get(domid);
        let connection = domain.and_then(|domain| domain.connection);
        self.ending = Some(Ending {
            domid,
            connection,
            is_telling: false,
        });
        self.telling = Telling::default();
        self.did_change = true;
        self.go_on_burying();
        connection.is_some()
    }

    /// Ends a domain, and tells plainly that one was released, if it had been introduced.
    fn release_plainly(&mut self, domid: DomId) {
        if self.bury(domid) {
            self.tell_special_plainly(RELEASE_DOMAIN);
        }
        self.ending = None;
    }

    /// Does what is left to do for the domain that is being buried; all of it may be done twice.
    fn go_on_burying(&mut self) {
        let Some(Ending {
            domid,
            connection,
            is_telling,
        }) = self.ending
        else {
            return;
        };
        faults::may_crash();
        if let Some(conn) = connection {
            self.work = self.work.saturating_add(self.closing_cost(conn));
            self.close(conn);
            faults::may_crash();
        }
        self.remove_estates(domid);
        faults::may_crash();
        self.domains.remove(domid);
        self.remove_counter_node(domid);
        self.tell_extensions_of_end(domid);
        if !is_telling {
            self.telling = Telling::default();
            self.ending = self.ending.map(|ending| Ending {
                is_telling: true,
                ..ending
            });
        }
        faults::may_crash();
        if connection.is_some() {
            self.tell_special(RELEASE_DOMAIN, domid);
        }
    }

    /// Completes what the server was at when it crashed: a change of which not all have heard, and the end of a domain. Before
    /// [`Server::export_after_crash`]; should it crash, too, then without it.
    ///
    /// What the request that crashed was to change is changed then, all of it or nothing.
    pub fn complete_after_crash(&mut self) -> Completed {
        self.recount();
        if self.effects.is_done() {
            self.did_change = true;
            self.telling.begin_again();
            let effects = Rc::clone(&self.effects);
            self.tell(effects.changes());
            drop(effects);
            self.telling = Telling::default();
            self.write_journal();
        } else {
            self.store.nodes.forget();
        }
        Rc::make_mut(&mut self.effects).clear();
        self.complete_extensions();
        if let Some(at_work) = self.at_work
            && let Some(connection) = self.connections.get_mut(at_work.conn)
        {
            connection.transactions.end_inside_broken(at_work.broken());
        }
        if let Some(ending) = self.ending {
            self.telling.begin_again();
            self.go_on_burying();
            self.ending = None;
            match self.at_work {
                Some(_) if ending.connection.is_some() => {
                    self.tell_special_plainly(RELEASE_DOMAIN);
                }
                _ => self.is_release_untold |= ending.connection.is_some(),
            }
        }
        if let Some(watch) = self.fresh_watch
            && self.at_work.is_some_and(|at_work| at_work.is_answered)
        {
            self.telling.begin_again();
            self.tell_first(watch);
        }
        Completed {
            did_change: self.did_change,
            did_answer: self.at_work.is_some_and(|at_work| at_work.is_answered),
        }
    }

    /// Removes all nodes of a domain with what is below them. `/` cannot go: it returns to the privileged domain, and what the
    /// domain owned right below it becomes estates; so all others wait for the second round.
    fn remove_estates(&mut self, domid: DomId) {
        for _ in 0..2 {
            let domain = self.domains.get(domid);
            let estates = domain.map(|domain| domain.estates.clone());
            let estates = estates.unwrap_or_default();
            let first = estates.first().is_some_and(|path| path.as_ref().is_root());
            let count = if first { 1 } else { estates.len() };
            for path in estates.into_iter().take(count) {
                let path = path.as_ref();
                let owner = self.domains.privileged();
                let stays = path.is_root() || bugs::XSA_419;
                let root = self.store.nodes.get(path).filter(|_| stays);
                let root = root.map(|node| Rc::new(node.acl.owned_by(owner)));
                let mut edit = self.edit();
                match root {
                    Some(acl) => edit.set_acl(path, acl),
                    None => edit.remove(path),
                }
                self.commit(None);
            }
        }
    }

    fn note_absent(&mut self, conn: ConnId, domid: DomId) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.absent.push(domid);
        }
    }

    /// Lets a connection go on that waited for this ticket; whether it did wait.
    fn goes_on(&mut self, conn: ConnId, ticket: Ticket) -> bool {
        let connection = self.connections.get_mut(conn);
        connection.is_some_and(|connection| {
            connection
                .waiting
                .take_if(|waiting| *waiting == ticket)
                .is_some()
        })
    }
}

/// What only the toolstack may ask for.
impl<S: Storage> Server<S> {
    pub(crate) fn answer_toolstack(
        &mut self,
        token: Privileged,
        conn: ConnId,
        kind: Kind,
        payload: &[u8],
    ) -> Result<Answer, Refusal> {
        match kind {
            Kind::Control => self.control(token, conn, payload),
            Kind::Introduce => self.introduce(payload),
            Kind::Release => self.release(payload),
            Kind::IsDomainIntroduced => self.tell_introduced(payload),
            Kind::Resume => self.resume(payload),
            Kind::SetTarget => self.set_target(payload),
            Kind::SetFeature => self.set_feature(conn, payload),
            Kind::GetQuota => self.get_quota(conn, payload),
            Kind::SetQuota => self.set_quota(conn, payload),
            _ => Err(Errno::ENOSYS.into()),
        }
    }

    fn introduce(&self, payload: &[u8]) -> Result<Answer, Refusal> {
        let mut rest = strings(payload);
        let [Some(domid), Some(_gfn), Some(port)] = [rest.next(), rest.next(), rest.next()] else {
            return Err(Errno::EINVAL.into());
        };
        let domid = self.ordinary(domid)?;
        let port = EvtchnPort(decimal(port, PORT_MAX)?);
        if port.0 == 0 {
            return Err(Errno::EINVAL.into());
        }
        Err(Refusal::Wait(Need::Connect { domid, port }))
    }

    fn release(&mut self, payload: &[u8]) -> Result<Answer, Refusal> {
        let domid = self.introduced(one(payload)?)?;
        self.actions.push_back(Action::Disconnect { domid });
        self.release_plainly(domid);
        Ok(Answer::Done)
    }

    fn resume(&mut self, payload: &[u8]) -> Result<Answer, Refusal> {
        let domid = self.introduced(one(payload)?)?;
        if let Some(domain) = self.domains.get_mut(domid) {
            domain.told_shutdown = false;
        }
        self.did_change = true;
        Ok(Answer::Done)
    }

    fn tell_introduced(&self, payload: &[u8]) -> Result<Answer, Refusal> {
        let domid = parse_domid(one(payload)?)?;
        let introduced = domid == DomId::SELF || self.is_introduced(domid);
        Ok(Answer::Text(String::from(if introduced {
            "T"
        } else {
            "F"
        })))
    }

    fn set_target(&mut self, payload: &[u8]) -> Result<Answer, Refusal> {
        let mut rest = strings(payload);
        let (Some(domid), Some(target)) = (rest.next(), rest.next()) else {
            return Err(Errno::EINVAL.into());
        };
        let (domid, target) = (parse_domid(domid)?, parse_domid(target)?);
        let known = |domid| {
            let domain = self.domains.get(domid);
            domain
                .filter(|domain| domain.connection.is_some())
                .map(|domain| domain.incarnation)
        };
        let (domain, target) = (
            known(domid).ok_or(Errno::ENOENT)?,
            known(target).ok_or(Errno::ENOENT)?,
        );
        if let Some(domain) = self.domains.alive_mut(domain) {
            domain.target = Some(target);
        }
        self.did_change = true;
        Ok(Answer::Done)
    }

    /// Any client may ask for its own features; the toolstack for anybody's.
    pub(crate) fn get_feature(
        &self,
        conn: ConnId,
        token: Option<Privileged>,
        payload: &[u8],
    ) -> Result<Answer, Refusal> {
        let mut rest = strings(payload);
        let features = match (rest.next(), rest.next(), token) {
            (None, _, _) if payload.is_empty() => self.client(conn).ok_or(Errno::EIO)?.features,
            (None, _, _) | (Some(_), Some(_), _) => return Err(Errno::EINVAL.into()),
            (Some(_), None, None) => return Err(Errno::EACCES.into()),
            (Some(domid), None, Some(_)) => self.existing(conn, parse_domid(domid)?)?.features,
        };
        Ok(Answer::Text(format!("{}", features.bits())))
    }

    fn set_feature(&mut self, conn: ConnId, payload: &[u8]) -> Result<Answer, Refusal> {
        let [domid, bits] = exactly(payload)?;
        let domid = parse_domid(domid)?;
        let features = Features::from_bits(decimal(bits, u32::MAX)?)
            .filter(|features| self.settings.knows(*features))
            .ok_or(Errno::EINVAL)?;
        let domain = self.existing(conn, domid)?;
        if domain.connection.is_some() {
            return Err(Errno::EBUSY.into());
        }
        if let Some(domain) = self.domains.get_mut(domid) {
            domain.features = features;
        }
        self.did_change = true;
        Ok(Answer::Done)
    }

    fn get_quota(&self, conn: ConnId, payload: &[u8]) -> Result<Answer, Refusal> {
        let given: Vec<&[u8]> = strings(payload).take(3).collect();
        let limit = match given.as_slice() {
            [] if payload.is_empty() => {
                let names: Vec<&str> = Quota::all().map(Quota::name).collect();
                return Ok(Answer::Text(names.join(" ")));
            }
            [name] => self
                .settings
                .quotas
                .get(Quota::from_name(name).ok_or(Errno::EINVAL)?),
            [domid, name] => {
                let domain = self.existing(conn, parse_domid(domid)?)?;
                let quota = Quota::from_name(name).ok_or(Errno::EINVAL)?;
                self.settings.quotas.of(&domain.overrides, quota)
            }
            _ => return Err(Errno::EINVAL.into()),
        };
        Ok(Answer::Text(format!("{limit}")))
    }

    fn set_quota(&mut self, conn: ConnId, payload: &[u8]) -> Result<Answer, Refusal> {
        let given: Vec<&[u8]> = strings(payload).take(4).collect();
        let parse = |name, limit| -> Result<(Quota, u32), Errno> {
            Ok((
                Quota::from_name(name).ok_or(Errno::EINVAL)?,
                decimal(limit, u32::MAX)?,
            ))
        };
        match given.as_slice() {
            [name, limit] => {
                let (quota, limit) = parse(name, limit)?;
                self.settings.quotas.set(quota, limit);
            }
            [domid, name, limit] => {
                let domid = parse_domid(domid)?;
                self.existing(conn, domid)?;
                let (quota, limit) = parse(name, limit)?;
                if let Some(domain) = self.domains.get_mut(domid) {
                    domain.overrides.set(quota, limit);
                }
            }
            _ => return Err(Errno::EINVAL.into()),
        }
        self.did_change = true;
        Ok(Answer::Done)
    }

    /// A domain that exists, introduced or not; the host is asked for one that is not known.
    fn existing(&self, conn: ConnId, domid: DomId) -> Result<&Domain, Refusal> {
        if let Some(domain) = self.domains.get(domid) {
            return Ok(domain);
        }
        let asked = self
            .connections
            .get(conn)
            .is_some_and(|connection| connection.absent.contains(&domid));
        if asked || !domid.is_ordinary() {
            return Err(Errno::ENOENT.into());
        }
        Err(Refusal::Wait(Need::Identify(domid)))
    }

    /// The id of an introduced domain that is neither privileged nor the store's own.
    fn introduced(&self, text: &[u8]) -> Result<DomId, Errno> {
        let domid = self.another(text)?;
        if self.is_introduced(domid) {
            Ok(domid)
        } else {
            Err(Errno::ENOENT)
        }
    }

    /// A domid that a domain may have which is neither privileged nor the store's own.
    fn ordinary(&self, text: &[u8]) -> Result<DomId, Errno> {
        let domid = self.another(text)?;
        if domid.is_ordinary() {
            Ok(domid)
        } else {
            Err(Errno::EINVAL)
        }
    }

    /// A domid that is neither the privileged domain's nor the store's own.
    fn another(&self, text: &[u8]) -> Result<DomId, Errno> {
        let domid = parse_domid(text)?;
        if domid == self.settings.privileged || domid == self.settings.store {
            Err(Errno::EINVAL)
        } else {
            Ok(domid)
        }
    }
}

/// The highest event channel port that Xen can give (FIFO ABI).
const PORT_MAX: u32 = (1 << 17) - 1;

/// Reads a domid: plain decimal of 16 bits.
///
/// # Errors
/// EINVAL for anything else.
pub(crate) fn parse_domid(text: &[u8]) -> Result<DomId, Errno> {
    let domid = decimal(text, u32::from(u16::MAX))?;
    Ok(DomId::new(u16::try_from(domid).map_err(|_| Errno::EINVAL)?))
}
