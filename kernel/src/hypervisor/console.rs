//! The PV console: dom0's `xl console` and its log of us. Writing never waits for dom0.
//!
//! Text goes to a backlog first and from there into the ring as room appears, because xenconsoled attaches long after our first line.

use spin::Mutex;

use super::abi::{
    DOMID_SELF, GetParameter, PARAMETER_CONSOLE_GFN, PARAMETER_CONSOLE_PORT, SendEvent,
};
use super::console_ring::{Backlog, OUTPUT_CONSUMED, OUTPUT_PRODUCED, place_of, room};
use super::hypercall;
use super::page::SharedPage;
use super::ranges::PAGE_SIZE;
use crate::xen::LocalPort;

static CONSOLE: Mutex<Console> = Mutex::new(Console {
    attached: None,
    backlog: Backlog::new(),
});

struct Console {
    attached: Option<Attached>,
    backlog: Backlog,
}

/// Where Xen put the console.
#[derive(Clone, Copy)]
struct Attached {
    page: SharedPage,
    port: LocalPort,
}

/// What the toolstack prepared for us.
#[derive(Clone, Copy, Debug)]
pub(super) struct Location {
    /// Guest frame of the ring page.
    pub(super) gfn: u64,
    /// Our port towards the console's backend.
    pub(super) port: LocalPort,
}

impl Location {
    /// Physical address of the ring page.
    pub(super) const fn address(self) -> u64 {
        self.gfn.saturating_mul(PAGE_SIZE)
    }
}

/// Asks Xen for the console; `None` if the toolstack made none.
pub(super) fn locate() -> Option<Location> {
    let gfn = parameter(PARAMETER_CONSOLE_GFN)?;
    let port = u32::try_from(parameter(PARAMETER_CONSOLE_PORT)?).ok()?;
    Some(Location {
        gfn,
        port: LocalPort(port),
    })
}

/// An HVM parameter that is set.
pub(super) fn parameter(index: u32) -> Option<u64> {
    let mut parameter = GetParameter {
        domid: DOMID_SELF,
        padding: 0,
        index,
        value: 0,
    };
    // SAFETY: touches no other memory.
    unsafe { hypercall::perform(&mut parameter) }.ok()?;
    (parameter.value != 0).then_some(parameter.value)
}

/// Writes to `page` and tells `port` from now on; what waited goes out.
pub(super) fn attach(page: SharedPage, port: LocalPort) {
    let mut console = CONSOLE.lock();
    console.attached = Some(Attached { page, port });
    console.flush();
}

/// Goes on after the domain was restored, which gave the console another port.
#[cfg(feature = "guest")]
pub(super) fn reattach() -> Option<LocalPort> {
    let page = CONSOLE.lock().attached?.page;
    let port = locate()?.port;
    attach(page, port);
    Some(port)
}

/// Leaves the page alone from now on, because its address is about to go; text waits.
pub(super) fn detach() {
    CONSOLE.lock().attached = None;
}

/// Writes one line, its end included. Never waits; a line that finds no room is dropped and counted.
pub(super) fn write(line: &[u8]) {
    let mut console = CONSOLE.lock();
    console.backlog.push_line(line);
    console.flush();
}

/// The backend has read something: moves waiting text on.
pub(super) fn flush() {
    let mut console = CONSOLE.lock();
    console.backlog.tell_dropped();
    console.flush();
}

/// Makes way for the domain's last words: text that still waits is dropped.
pub(super) fn clear_backlog() {
    if let Some(mut console) = CONSOLE.try_lock() {
        console.backlog.clear();
    }
}

/// Like [`write`], but nothing if the console itself is what failed.
pub(super) fn try_write(line: &[u8]) {
    if let Some(mut console) = CONSOLE.try_lock() {
        console.backlog.push_line(line);
        console.flush();
    }
}

impl Console {
    fn flush(&mut self) {
        let Some(Attached { page, port }) = self.attached else {
            return;
        };
        let mut produced = page.load(OUTPUT_PRODUCED);
        let room = room(produced, page.load(OUTPUT_CONSUMED));
        let before = produced;
        for _ in 0..room {
            let Some(byte) = self.backlog.pop() else {
                break;
            };
            page.write(place_of(produced), &[byte]);
            produced = produced.wrapping_add(1);
        }
        if produced != before {
            page.store(OUTPUT_PRODUCED, produced);
            let mut event = SendEvent { port: port.0 };
            // SAFETY: touches no memory. A port without a listener is no matter: the text stays in the ring.
            let _ = unsafe { hypercall::perform(&mut event) };
        }
    }
}
