//! Tells the model what the server did, in the server's own order, and holds what came of it against what the model says.

use model::{Fate, Left, Lost};
use xenstore::{DomId, DomainEvent, Entry, Errno, Identity, Noted, Outcome};

use super::guest::Sent;
use super::world::{World, show_request};

/// The first of the wrong, and what was wrong.
type Judged = Result<(), String>;

impl World {
    /// Goes through what the server did since this was asked last; gives how many requests it answered.
    pub(crate) fn witness(&mut self) -> Result<u64, String> {
        let mut served = 0;
        for entry in self.dispatcher.server_mut().take_journal() {
            let judged = self.judge(&entry);
            served += u64::from(matches!(
                entry,
                Entry::Served { .. } | Entry::Waits { .. } | Entry::Withheld { .. }
            ));
            self.remember(entry);
            judged?;
        }
        self.model.check_clients()?;
        Ok(served)
    }

    fn judge(&mut self, entry: &Entry) -> Judged {
        match entry {
            Entry::Lost {
                domid,
                path,
                event,
                is_told,
            } => {
                self.coverage.happened("events lost");
                let path = path.as_str().to_owned();
                let lost = Lost {
                    path,
                    event: event.clone(),
                    is_told: *is_told,
                };
                self.model.loses(domid.get(), lost);
                return Ok(());
            }
            Entry::Run(now) => self.model.set_time(now.0),
            Entry::Timeout(now) => {
                self.model.set_time(now.0);
                self.model.timeout();
            }
            Entry::Begins { request } => {
                self.begun = Some(request.clone());
                return Ok(());
            }
            Entry::Served { request, refused } => {
                self.begun = None;
                self.served(request, *refused)?;
            }
            Entry::Withheld { request, refused } => {
                self.begun = None;
                self.is_next(request)?;
                let error = refused.map_or("a layer of the simulation never answers", Errno::name);
                self.coverage.happened("requests withheld by a layer");
                self.model
                    .withheld(request.domid.get(), &as_modelled(request), error);
            }
            Entry::Waits { request, domid } => {
                self.begun = None;
                self.is_next(request)?;
                self.model
                    .waits(request.domid.get(), &as_modelled(request), domid.get());
                self.note_introduction(request);
            }
            Entry::Introduced {
                asker,
                domid,
                outcome,
            } => self.introduced(*asker, *domid, *outcome)?,
            Entry::Identified {
                asker,
                domid,
                outcome,
            } => self.identified(*asker, *domid, *outcome),
            Entry::Domains { events, is_last } => self.ended(events, *is_last)?,
            Entry::Stopped { domid } => {
                self.coverage.happened("connections stopped");
                self.is_stopped(*domid)?;
            }
            Entry::Reset { domid } => {
                self.coverage.happened("connections reset");
                self.model.reset(domid.get());
                self.begin_anew(*domid);
            }
            Entry::Sent { domid, rest, count } => {
                let sent = self.model.sent(domid.get(), rest, *count);
                sent.map_err(|why| format!("d{domid}: {why}"))?;
                let bytes = rest.get(..*count).unwrap_or_default();
                if let Some(guest) = self.served_guest(*domid) {
                    guest.is_sent(bytes);
                }
            }
        }
        self.model.check()
    }

    fn served(&mut self, request: &Noted, refused: Option<Errno>) -> Judged {
        self.is_next(request)?;
        let refused = refused.map(Errno::name);
        self.coverage.count(request.kind, refused);
        self.model
            .served(request.domid.get(), &as_modelled(request), refused);
        Ok(())
    }

    /// The store crashed within a request. Who asked has lost its connection, unless it is the toolstack.
    pub(crate) fn crashed(&mut self, left: &Left<'_>) -> Judged {
        let request = self.begun.take().ok_or("a crash, and nobody asked")?;
        self.is_next(&request)?;
        let domid = request.domid;
        self.remark(format!("{} crashes: {left:?}", show_request(&request)));
        self.coverage.happened(if left.did_change {
            "crashes after a change"
        } else {
            "crashes before a change"
        });
        self.model
            .crashed(domid.get(), &as_modelled(&request), left);
        self.model.check()?;
        if left.is_kept {
            return Ok(());
        }
        let xen = self.xen.clone();
        if let Some(guest) = self.served_guest(domid) {
            guest.stop();
            guest.reconnect(&xen);
        }
        Ok(())
    }

    /// Requests are served in the order in which they were sent, each once.
    fn is_next(&mut self, request: &Noted) -> Judged {
        let domid = request.domid;
        let Some(guest) = self.served_guest(domid) else {
            return Ok(());
        };
        let served = guest.served(&Sent {
            kind: request.kind,
            req_id: request.req_id,
            tx_id: request.tx_id,
            payload: request.payload.clone(),
        });
        served.map_err(|why| format!("d{domid}: {why}"))
    }

    fn introduced(&mut self, asker: Option<DomId>, domid: DomId, outcome: Outcome) -> Judged {
        let there = self.xen.info(domid).filter(|info| !info.dying);
        let outcome = match outcome {
            Outcome::Connected(identity) => {
                let is_there = there.map(|info| info.identity) == Some(identity);
                if !is_there && !self.is_interrupted() {
                    return Err(format!("{identity:?} is connected, {there:?} is there"));
                }
                Ok(identity.unique.0)
            }
            _ if there.is_none() || self.may_fail_to_introduce(domid) => Err("EINVAL"),
            _ => {
                return Err(format!(
                    "domain {domid} could not be introduced for nothing"
                ));
            }
        };
        self.coverage.count(super::script::INTRODUCE, outcome.err());
        self.model
            .introduced_as(asker.map(DomId::get), domid.get(), outcome);
        if outcome.is_ok() {
            self.begin_anew(domid);
        } else if let Some(guest) = self.served_guest(domid) {
            guest.stop();
        }
        Ok(())
    }

    fn identified(&mut self, asker: Option<DomId>, domid: DomId, outcome: Outcome) {
        let identity = match outcome {
            Outcome::Identified(identity) => identity,
            _ => None,
        };
        self.coverage.happened("domains asked for");
        let unique = identity.map(|identity| identity.unique.0);
        self.model
            .identified(asker.map(DomId::get), domid.get(), unique);
    }

    fn ended(&mut self, events: &[DomainEvent], is_last: bool) -> Judged {
        let mut fates = Vec::new();
        for event in events {
            let (identity, fate) = match event {
                DomainEvent::Shutdown(identity) => (*identity, Fate::ShutDown),
                DomainEvent::Dead(identity) => (*identity, Fate::Died),
            };
            self.is_so(identity, fate)?;
            self.coverage.happened(match fate {
                Fate::ShutDown => "shutdowns noticed",
                Fate::Died => "deaths noticed",
            });
            fates.push((identity.domid.get(), identity.unique.0, fate));
        }
        self.model.fates(&fates, is_last);
        Ok(())
    }

    fn is_so(&self, identity: Identity, fate: Fate) -> Judged {
        let there = self.xen.info(identity.domid);
        let there = there.filter(|info| info.identity == identity && !info.dead);
        let is_so = match fate {
            Fate::Died => there.is_none(),
            Fate::ShutDown => there.is_none_or(|info| info.shutdown),
        };
        if is_so {
            Ok(())
        } else {
            Err(format!(
                "{identity:?} is told to be {fate:?}, which it is not"
            ))
        }
    }

    /// Only who broke the rules of the ring is stopped, or who cannot be introduced again.
    fn is_stopped(&mut self, domid: DomId) -> Judged {
        self.model.stopped(domid.get());
        let Some(guest) = self.served_guest(domid) else {
            return Ok(());
        };
        let deserved = guest.garbled || !guest.manner.is_honest();
        guest.stop();
        if deserved || self.may_fail_to_introduce(domid) {
            Ok(())
        } else {
            Err(format!("d{domid} is stopped for nothing"))
        }
    }

    fn begin_anew(&mut self, domid: DomId) {
        if let Some(guest) = self.served_guest(domid) {
            guest.begin_anew();
        }
    }
}

fn as_modelled(request: &Noted) -> model::Request<'_> {
    model::Request {
        kind: request.kind,
        req_id: request.req_id,
        tx_id: request.tx_id,
        payload: &request.payload,
    }
}
