//! Plays every transcript over rings: guests that move bytes through shared pages and event channels, the kernel's dispatcher between
//! them and the store, and a machine in memory below it.

mod cases;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use cases::transcript::Host;
use cases::transcript::message::Message;
use cases::transcript::syntax::{Directive, Need};
use cases::{Exception, play_all};
use kernel::config::Config;
use kernel::dispatch::Dispatcher;
use kernel::fake::{Call, FakePage, FakeXen};
use kernel::ring::{self, CONNECTION, ERROR, EVTCHN_PORT, RECONNECT, REPLIES, REQUESTS};
use kernel::xen::{Page as _, XenError};
use xenstore::{DomId, EvtchnPort, Progress, Server, Settings};

/// What cannot be said with rings.
const EXCEPTIONS: &[Exception] = &[];

#[test]
fn rings_answer_as_the_transcripts_say() {
    let played = play_all(EXCEPTIONS, Rings::new).unwrap();
    let (passed, listed) = (played.passed, EXCEPTIONS.len());
    println!("{passed} cases passed, {listed} are listed exceptions");
    assert_eq!(played.left_out, [], "cases need what nobody said");
    let count = played.complaints.len();
    assert!(
        played.complaints.is_empty(),
        "{count} complaints\n\n{}",
        played.complaints.join("\n\n")
    );
    assert!(passed > 0, "no transcripts found");
}

const DOM0: u16 = 0;
/// The domain that the store itself runs in, in every text.
const STORE: u16 = 31;
/// Event channel ports that each domain has: the texts name 7 and 8.
const PORTS: u32 = 8;
/// Bytes each way, as the indices count them.
const RING_BYTES: u32 = 1024;
const _: () = assert!(RING_BYTES as usize == ring::RING_BYTES);
/// `GNTST_bad_gntref` (grant_table.h), as a positive number.
const BAD_GRANT: XenError = XenError(3);
/// Far more than any case needs: a dispatcher that is still busy then never stops.
const TURNS_MAX: u32 = 100_000;

/// A machine, the dispatcher in it, and the guests' own ends.
struct Rings {
    xen: FakeXen,
    dispatcher: Dispatcher<FakeXen>,
    guests: BTreeMap<u16, Guest>,
}

impl Rings {
    fn new() -> Self {
        Self::with_rings_from_xen(&[])
    }

    /// A host on which Xen itself gave these domains their rings.
    #[expect(
        clippy::unwrap_used,
        reason = "a machine that does not start fails every case"
    )]
    fn with_rings_from_xen(domids: &[u16]) -> Self {
        let xen = FakeXen::default();
        let mut guests = BTreeMap::from([(DOM0, Guest::build(&xen, DOM0))]);
        for domid in domids {
            let guest = Guest::build(&xen, *domid);
            guest.page.store(EVTCHN_PORT, 1);
            guest.page.store(CONNECTION, RECONNECT);
            guests.insert(*domid, guest);
        }
        let config = Config::parse(b"--event 1").unwrap();
        let settings = Settings::new(DomId::new(DOM0), DomId::new(STORE));
        let server = Server::new(settings);
        let dispatcher = Dispatcher::start(xen.clone(), server, DomId::new(DOM0), &config).unwrap();
        Self {
            xen,
            dispatcher,
            guests,
        }
    }

    /// Lets dispatcher and guests work until nothing moves any more.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..TURNS_MAX {
            let mut moved = self.dispatcher.turn() == Progress::More;
            for guest in self.guests.values_mut() {
                moved |= guest.exchange(&self.xen);
            }
            if !moved {
                return Ok(());
            }
        }
        Err("the dispatcher is never idle".to_owned())
    }

    fn create(&mut self, domid: u16, granted: bool) {
        self.xen.refuse(Call::Map, (!granted).then_some(BAD_GRANT));
        let xen = &self.xen;
        let guest = unnoticed(xen, || Guest::build(xen, domid));
        self.guests.insert(domid, guest);
    }

    fn destroy(&mut self, domid: u16) {
        let xen = &self.xen;
        unnoticed(xen, || xen.destroy(DomId::new(domid)));
        self.guests.remove(&domid);
    }

    fn guest(&mut self, domid: u16) -> Result<&mut Guest, String> {
        let guest = self.guests.get_mut(&domid);
        guest.ok_or(format!("there is no domain {domid}"))
    }
}

/// Changes something without the virtual interrupt that tells of it.
fn unnoticed<T>(xen: &FakeXen, change: impl FnOnce() -> T) -> T {
    xen.lose_domain_exceptions(true);
    let done = change();
    xen.lose_domain_exceptions(false);
    done
}

impl Host for Rings {
    fn supports(&self, need: Need) -> bool {
        match need {
            Need::Domains | Need::FreshServer | Need::Clock | Need::Unread | Need::Ring => true,
        }
    }

    fn direct(&mut self, directive: &Directive) -> Result<(), String> {
        self.settle()?;
        match directive {
            Directive::Exists(domid) => self.create(*domid, true),
            Directive::ExistsWithoutRing(domid) => self.create(*domid, false),
            Directive::Vanishes(domid) => self.destroy(*domid),
            Directive::StartsConnected(domid) => *self = Self::with_rings_from_xen(&[*domid]),
            Directive::ShutDown(domids) => {
                for domid in domids {
                    let domid = DomId::new(*domid);
                    self.xen.change(domid, |info| info.shutdown = true);
                }
            }
            Directive::Die(domids) => {
                for domid in domids {
                    self.destroy(*domid);
                }
                self.xen.change(DomId::new(DOM0), |_| {});
            }
            Directive::Reconnects(domid) => {
                let xen = self.xen.clone();
                self.guest(*domid)?.ask_for_a_new_connection(&xen);
                self.settle()?;
                if self.guest(*domid)?.page.load(CONNECTION) == RECONNECT {
                    return Err(format!("d{domid} gets no new connection"));
                }
            }
            Directive::BreaksRing(domid) => {
                let xen = self.xen.clone();
                self.guest(*domid)?.break_ring(&xen);
            }
            Directive::StopsReading(domid) => self.guest(*domid)?.stop_reading(),
            Directive::ReadsAgain(domid) => {
                let xen = self.xen.clone();
                self.guest(*domid)?.read_again(&xen);
            }
            Directive::TimePasses(milliseconds) => {
                self.xen.advance(Duration::from_millis(*milliseconds));
            }
        }
        self.settle()
    }

    fn send(&mut self, domid: u16, bytes: &[u8]) -> Result<(), String> {
        self.settle()?;
        let xen = self.xen.clone();
        let guest = self.guest(domid)?;
        guest.outbox.extend(bytes);
        guest.exchange(&xen);
        Ok(())
    }

    fn receive(&mut self, domid: u16) -> Result<Option<Message>, String> {
        self.settle()?;
        match self.guests.get_mut(&domid) {
            Some(guest) => Message::take_from(&mut guest.inbox),
            None => Ok(None),
        }
    }

    fn is_stopped(&mut self, domid: u16) -> bool {
        let settled = self.settle().is_ok();
        let guest = self.guests.get(&domid);
        settled && guest.is_some_and(|guest| guest.page.load(ERROR) != 0)
    }
}

/// A domain's own end of its ring.
struct Guest {
    domid: DomId,
    page: FakePage,
    outbox: VecDeque<u8>,
    inbox: Vec<u8>,
    reading: bool,
    /// The indices that are this guest's to move, as it left them. The server touches them only to begin a new connection.
    request_prod: u32,
    reply_cons: u32,
}

impl Guest {
    fn build(xen: &FakeXen, domid: u16) -> Self {
        let domid = DomId::new(domid);
        xen.create(domid);
        for _ in 0..PORTS {
            xen.allocate_port(domid);
        }
        Self::new(domid, xen.page(domid))
    }

    fn new(domid: DomId, page: FakePage) -> Self {
        Self {
            domid,
            page,
            outbox: VecDeque::new(),
            inbox: Vec::new(),
            reading: true,
            request_prod: 0,
            reply_cons: 0,
        }
    }

    /// Moves what can be moved in both directions; whether anything did.
    fn exchange(&mut self, xen: &FakeXen) -> bool {
        let own = (self.request_prod, self.reply_cons);
        if own != (self.page.load(REQUESTS.prod), self.page.load(REPLIES.cons)) {
            *self = Self::new(self.domid, self.page.clone());
        }
        let moved = self.put() + self.take();
        if moved > 0 {
            self.signal(xen);
        }
        moved > 0
    }

    fn put(&mut self) -> u32 {
        let used = self
            .request_prod
            .wrapping_sub(self.page.load(REQUESTS.cons));
        let mut moved = 0;
        while used + moved < RING_BYTES
            && let Some(byte) = self.outbox.pop_front()
        {
            self.page.write(position(self.request_prod), &[byte]);
            self.request_prod = self.request_prod.wrapping_add(1);
            moved += 1;
        }
        self.page.store(REQUESTS.prod, self.request_prod);
        moved
    }

    fn take(&mut self) -> u32 {
        let there = self.page.load(REPLIES.prod).wrapping_sub(self.reply_cons);
        if !self.reading {
            return 0;
        }
        for _ in 0..there {
            let mut byte = [0];
            self.page
                .read(REPLIES.bytes + position(self.reply_cons), &mut byte);
            self.inbox.extend(byte);
            self.reply_cons = self.reply_cons.wrapping_add(1);
        }
        self.page.store(REPLIES.cons, self.reply_cons);
        there
    }

    /// Sends an event on every port: the server has bound the one that the toolstack named.
    fn signal(&self, xen: &FakeXen) {
        for port in 1..=PORTS {
            xen.send(self.domid, EvtchnPort(port));
        }
    }

    /// Shows the server a full ring: what it writes now, it must keep.
    fn stop_reading(&mut self) {
        self.reading = false;
        self.reply_cons = self.page.load(REPLIES.prod).wrapping_sub(RING_BYTES);
        self.page.store(REPLIES.cons, self.reply_cons);
    }

    fn read_again(&mut self, xen: &FakeXen) {
        self.reading = true;
        self.reply_cons = self.page.load(REPLIES.prod);
        self.page.store(REPLIES.cons, self.reply_cons);
        self.signal(xen);
    }

    fn ask_for_a_new_connection(&mut self, xen: &FakeXen) {
        self.page.store(CONNECTION, RECONNECT);
        self.signal(xen);
    }

    fn break_ring(&mut self, xen: &FakeXen) {
        let cons = self.page.load(REQUESTS.cons);
        self.request_prod = cons.wrapping_add(RING_BYTES + 1);
        self.page.store(REQUESTS.prod, self.request_prod);
        self.signal(xen);
    }
}

/// Where in its half of the page the byte of a free-running index lies.
fn position(index: u32) -> usize {
    usize::try_from(index % RING_BYTES).unwrap_or(usize::MAX)
}
