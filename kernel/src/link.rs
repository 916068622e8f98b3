//! The rings that are connected: who is at the other end of each, and whose turn it is.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use xenstore::{ConnId, DomId, Features, Identity, Spell};

use crate::credit::{IoCredit, Look};
use crate::ring::Ring;
use crate::xen::{LocalPort, Page};

/// One domain's ring and what goes with it.
#[derive(Debug)]
pub struct Link<P> {
    /// Whose ring it is.
    pub identity: Identity,
    /// Its connection in the store.
    pub conn: ConnId,
    /// Our end of its event channel. It stays ours when the domain closes its end, which may bind to it again.
    pub port: LocalPort,
    /// The mapped page.
    pub ring: Ring<P>,
    /// What the domain was offered, whatever the page says now.
    pub features: u32,
    /// After a fault only the connection word is looked at.
    pub stopped: bool,
    /// Faults, for the log.
    pub faults: Spell,
    /// Fresh starts, for the log.
    pub resets: Spell,
    /// A look that nobody asked for found something to do, since the last scan.
    untold_work: bool,
    /// It was so at the last scan.
    lazy: bool,
    /// What it is served now it did not ask for.
    unasked: bool,
    /// Spells of laziness, for the log.
    pub lazy_spells: Spell,
    /// Looks that it has left.
    pub credit: IoCredit,
    owes_event: bool,
}

impl<P: Page> Link<P> {
    /// A link that was just connected.
    #[must_use]
    pub fn new(
        identity: Identity,
        conn: ConnId,
        port: LocalPort,
        ring: Ring<P>,
        features: u32,
    ) -> Self {
        Self {
            identity,
            conn,
            port,
            ring,
            features,
            stopped: false,
            faults: Spell::default(),
            resets: Spell::default(),
            untold_work: false,
            lazy: false,
            unasked: false,
            lazy_spells: Spell::default(),
            credit: IoCredit::default(),
            owes_event: false,
        }
    }

    /// Whether the domain is found lazy by a scan: work that no event told of, then or since the last scan. And whether that is news.
    pub fn judge(&mut self) -> (bool, bool) {
        let is_lazy = core::mem::take(&mut self.untold_work);
        let was_lazy = core::mem::replace(&mut self.lazy, is_lazy);
        (is_lazy, is_lazy && !was_lazy)
    }

    /// Whether the domain was offered a feature.
    pub const fn offers(&self, feature: Features) -> bool {
        self.features & feature.bits() != 0
    }
}

/// All links, at most one for each domid.
#[derive(Debug)]
pub struct Links<P> {
    privileged: DomId,
    by_domid: BTreeMap<DomId, Link<P>>,
    by_port: BTreeMap<LocalPort, DomId>,
    by_conn: BTreeMap<ConnId, DomId>,
    /// Those with a look that was asked for, in the order in which they got it, without the privileged one.
    ready: VecDeque<DomId>,
    /// Those with a look by the scan or a bonus: they come after all others, so that nobody waits for them.
    unasked: VecDeque<DomId>,
    /// Those that are owed an event.
    owed: Vec<DomId>,
}

impl<P: Page> Links<P> {
    /// None yet. The privileged domain's link is the first in each round.
    #[must_use]
    pub fn new(privileged: DomId) -> Self {
        Self {
            privileged,
            by_domid: BTreeMap::new(),
            by_port: BTreeMap::new(),
            by_conn: BTreeMap::new(),
            ready: VecDeque::new(),
            unasked: VecDeque::new(),
            owed: Vec::new(),
        }
    }

    /// Adds a link, for a domid that has none. It may be looked at, and its domain is owed an event: this is how it learns of it.
    pub fn insert(&mut self, link: Link<P>) {
        let domid = link.identity.domid;
        self.by_port.insert(link.port, domid);
        self.by_conn.insert(link.conn, domid);
        self.by_domid.insert(domid, link);
        self.grant(domid, Look::Asked);
        self.owe_event(domid);
    }

    /// Gives a link one look because its domain sent an event.
    pub fn signal(&mut self, domid: DomId) {
        if let Some(link) = self.by_domid.get_mut(&domid) {
            link.unasked = false;
            self.grant(domid, Look::Asked);
        }
    }

    /// Gives a link one look because there is more to do for it. Who is served unasked comes after all others with that, too.
    pub fn go_on(&mut self, domid: DomId) {
        if let Some(link) = self.by_domid.get(&domid) {
            let look = if link.unasked {
                Look::Bonus
            } else {
                Look::Asked
            };
            self.grant(domid, look);
        }
    }

    /// Notes that a look at a link found something to do.
    pub fn found_work(&mut self, domid: DomId, look: Look) {
        if let Some(link) = self.by_domid.get_mut(&domid)
            && look != Look::Asked
        {
            link.unasked = true;
            link.untold_work = true;
        }
    }

    /// Gives a domain's link the connection that it has in a store that took over. It may be looked at.
    #[cfg(any(test, feature = "fake"))]
    pub fn reconnect(&mut self, domid: DomId, conn: ConnId) {
        if let Some(link) = self.by_domid.get_mut(&domid) {
            self.by_conn.remove(&link.conn);
            link.conn = conn;
            self.by_conn.insert(conn, domid);
            self.grant(domid, Look::Asked);
        }
    }

    /// Takes a link out of everything that knows it.
    pub fn remove(&mut self, domid: DomId) -> Option<Link<P>> {
        let link = self.by_domid.remove(&domid)?;
        self.by_port.remove(&link.port);
        self.by_conn.remove(&link.conn);
        self.ready.retain(|ready| *ready != domid);
        self.unasked.retain(|unasked| *unasked != domid);
        self.owed.retain(|owed| *owed != domid);
        Some(link)
    }

    /// Whether the ring of this very domain is connected.
    #[must_use]
    pub fn is_linked(&self, identity: Identity) -> bool {
        let link = self.by_domid.get(&identity.domid);
        link.is_some_and(|link| link.identity == identity)
    }

    /// The link of a domain.
    #[must_use]
    pub fn get(&self, domid: DomId) -> Option<&Link<P>> {
        self.by_domid.get(&domid)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Link<P>> {
        self.by_domid.values()
    }

    /// The link of a domain.
    pub fn get_mut(&mut self, domid: DomId) -> Option<&mut Link<P>> {
        self.by_domid.get_mut(&domid)
    }

    /// Whose event a port brings.
    #[must_use]
    pub fn with_port(&self, port: LocalPort) -> Option<DomId> {
        self.by_port.get(&port).copied()
    }

    /// Whose connection this is; none if it has ended.
    #[must_use]
    pub fn with_conn(&self, conn: ConnId) -> Option<DomId> {
        self.by_conn.get(&conn).copied()
    }

    /// Every domain with a link.
    pub fn domids(&self) -> impl Iterator<Item = DomId> {
        self.by_domid.keys().copied()
    }

    /// The privileged domain.
    #[must_use]
    pub const fn privileged(&self) -> DomId {
        self.privileged
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.by_domid.len()
    }

    /// Gives a link one look.
    pub fn grant(&mut self, domid: DomId, look: Look) {
        let granted = self
            .by_domid
            .get_mut(&domid)
            .is_some_and(|link| link.credit.grant(look));
        if granted && domid != self.privileged {
            match look {
                Look::Asked => self.ready.push_back(domid),
                Look::Scan | Look::Bonus => self.unasked.push_back(domid),
            }
        }
    }

    /// Takes the looks of one round: the privileged domain's; then those who asked, longest waiting first, at most `asked`; then the
    /// others, at most `unasked`.
    pub fn take_round(&mut self, asked: usize, unasked: usize) -> Vec<(DomId, Look)> {
        let asked = self.ready.len().min(asked);
        let unasked = self.unasked.len().min(unasked);
        let privileged = core::iter::once(self.privileged);
        let others = self.ready.drain(..asked);
        privileged
            .chain(others)
            .chain(self.unasked.drain(..unasked))
            .filter_map(|domid| {
                let link = self.by_domid.get_mut(&domid)?;
                Some((domid, link.credit.take()?))
            })
            .collect()
    }

    /// Whether some link waits for its look.
    #[must_use]
    pub fn any_ready(&self) -> bool {
        let privileged = self.by_domid.get(&self.privileged);
        !self.ready.is_empty()
            || !self.unasked.is_empty()
            || privileged.is_some_and(|link| !link.credit.is_empty())
    }

    /// Notes that a domain is to be told of something in its ring.
    pub fn owe_event(&mut self, domid: DomId) {
        if let Some(link) = self.by_domid.get_mut(&domid)
            && !core::mem::replace(&mut link.owes_event, true)
        {
            self.owed.push(domid);
        }
    }

    /// The port on which a domain is owed an event, if it is; it is owed no longer.
    pub fn take_owed_by(&mut self, domid: DomId) -> Option<LocalPort> {
        let link = self.by_domid.get_mut(&domid)?;
        core::mem::take(&mut link.owes_event).then_some(link.port)
    }

    /// The ports on which events are owed, each once; they are owed no longer. Those whose links wait for another look are left out,
    /// unless `all` are due.
    pub fn take_owed(&mut self, all: bool) -> Vec<LocalPort> {
        let mut due = Vec::new();
        self.owed.retain(|domid| {
            let owing = self.by_domid.get_mut(domid);
            let Some(link) = owing.filter(|link| link.owes_event) else {
                return false;
            };
            let waits = !all && !link.credit.is_empty();
            if !waits {
                link.owes_event = false;
                due.push(link.port);
            }
            waits
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use xenstore::{Server, Settings, UniqueId};

    use super::*;
    use crate::fake::FakePage;

    fn links(domids: &[u16]) -> Links<FakePage> {
        let mut server = Server::new(Settings::new(DomId::new(0), DomId::new(99)));
        let mut links = Links::new(DomId::new(0));
        for domid in domids.iter().copied().map(DomId::new) {
            let identity = Identity {
                domid,
                unique: UniqueId(1),
            };
            let conn = server.open_domain(identity);
            let port = LocalPort(domid.get().into());
            let ring = Ring::new(FakePage::default());
            links.insert(Link::new(identity, conn, port, ring, 0));
        }
        links
    }

    fn domids(round: &[(DomId, Look)]) -> Vec<u16> {
        round.iter().map(|(domid, _)| domid.get()).collect()
    }

    #[test]
    fn a_round_is_the_privileged_domain_and_those_who_wait_longest() {
        let mut links = links(&[3, 7, 5, 0]);
        assert_eq!(domids(&links.take_round(2, 9)), [0, 3, 7]);
        links.grant(DomId::new(3), Look::Asked);
        links.grant(DomId::new(3), Look::Asked);
        assert_eq!(domids(&links.take_round(9, 9)), [5, 3]);
        assert!(!links.any_ready());
        links.grant(DomId::new(0), Look::Asked);
        assert!(links.any_ready());
        assert_eq!(domids(&links.take_round(9, 9)), [0]);
        assert_eq!(domids(&links.take_round(9, 9)), []);
    }

    #[test]
    fn who_did_not_ask_comes_last_unless_it_asks_meanwhile() {
        let mut links = links(&[3, 7, 5, 0]);
        links.take_round(9, 9);
        for id in [3, 5] {
            links.grant(DomId::new(id), Look::Scan);
        }
        links.grant(DomId::new(7), Look::Asked);
        links.grant(DomId::new(5), Look::Asked);
        let round = links.take_round(9, 1);
        let expected = [(7, Look::Asked), (5, Look::Asked), (3, Look::Scan)];
        assert_eq!(round, expected.map(|(id, look)| (DomId::new(id), look)));
        assert!(links.any_ready(), "an entry without credit is left");
        assert_eq!(links.take_round(9, 9), []);
        assert!(!links.any_ready());
    }

    #[test]
    fn an_event_is_owed_once_and_due_when_nothing_more_is_to_be_done() {
        let mut links = links(&[3, 7]);
        links.owe_event(DomId::new(3));
        assert_eq!(links.take_owed(false), []);
        links.take_round(1, 0);
        assert_eq!(links.take_owed(false), [LocalPort(3)]);
        assert_eq!(links.take_owed(true), [LocalPort(7)]);
        assert_eq!(links.take_owed(true), []);
        links.owe_event(DomId::new(7));
        assert_eq!(links.take_owed(true), [LocalPort(7)]);
        for _ in 0..2 {
            links.owe_event(DomId::new(7));
            assert_eq!(links.take_owed_by(DomId::new(7)), Some(LocalPort(7)));
            assert_eq!(links.take_owed_by(DomId::new(7)), None);
        }
        links.owe_event(DomId::new(7));
        assert_eq!(links.take_owed(true), [LocalPort(7)]);
        assert_eq!(links.take_owed(true), []);
    }

    #[test]
    fn nothing_knows_a_link_that_was_removed() {
        let mut links = links(&[3]);
        assert_eq!(links.with_port(LocalPort(3)), Some(DomId::new(3)));
        let link = links.remove(DomId::new(3)).unwrap();
        assert_eq!(links.with_port(link.port), None);
        assert_eq!(links.with_conn(link.conn), None);
        assert_eq!(links.domids().count(), 0);
        assert!(!links.any_ready());
        assert_eq!(
            (links.owed, links.ready.len(), links.unasked.len()),
            (Vec::new(), 0, 0)
        );
    }
}
