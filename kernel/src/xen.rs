//! What the dispatcher asks of the machine, so that the same dispatcher runs over the real Xen and over a simulated one.
//!
//! The real one is `hypervisor::Machine`; tests bring their own.

use core::fmt;

use xenstore::{DomId, EvtchnPort, GrantRef, Identity, Instant};

/// The machine: grants, event channels, domains, a clock and memory.
pub trait Xen: Grants + Events + Domains + Clock + Memory {}

impl<X: Grants + Events + Domains + Clock + Memory> Xen for X {}

/// What a machine notes of a mapped page, for its next start.
pub type PageFacts = [u8; 8];

/// Mapping other domains' ring pages.
pub trait Grants {
    /// A mapped page. Dropping it does not unmap it; [`Grants::unmap`] does.
    type Page: Page;

    /// Maps the page that `domid` granted to us as `grant`.
    ///
    /// # Errors
    /// What Xen answered; nothing stays mapped.
    fn map(&mut self, domid: DomId, grant: GrantRef) -> Result<Self::Page, XenError>;

    /// What another start of this domain needs to go on with the page.
    fn describe(&self, page: &Self::Page) -> PageFacts;

    /// Goes on with a page that another start of this domain mapped and described.
    ///
    /// # Errors
    /// It cannot be found again.
    fn adopt(&mut self, facts: PageFacts) -> Result<Self::Page, XenError>;

    /// Gives a page back, so that a dead domain can leave.
    ///
    /// # Errors
    /// What Xen answered; the page counts as leaked and is never given out again.
    fn unmap(&mut self, page: Self::Page) -> Result<(), XenError>;
}

/// One 4 KiB page that a hostile domain writes at the same time: every load is a private copy, no reference can be formed.
///
/// Offsets past the page load zero and store nothing, so that an error in our arithmetic cannot reach other memory.
pub trait Page {
    /// Loads the 32-bit word at `offset` (a multiple of 4) once.
    fn load(&self, offset: usize) -> u32;
    /// Stores the 32-bit word at `offset` (a multiple of 4).
    fn store(&self, offset: usize, value: u32);
    /// Copies from the page into private memory, each byte once.
    fn read(&self, offset: usize, into: &mut [u8]);
    /// Copies private memory into the page.
    fn write(&self, offset: usize, from: &[u8]);
}

/// Event channels.
pub trait Events {
    /// Binds a new local port to `remote` of `domid`.
    ///
    /// # Errors
    /// What Xen answered; nothing stays bound.
    fn bind(&mut self, domid: DomId, remote: EvtchnPort) -> Result<LocalPort, XenError>;
    /// Binds the virtual interrupt that tells of domains' deaths (`VIRQ_DOM_EXC`).
    ///
    /// # Errors
    /// What Xen answered.
    fn bind_domain_exception(&mut self) -> Result<LocalPort, XenError>;
    /// Lets the events of a port be taken before all others, where events have priorities.
    fn prefer(&mut self, port: LocalPort);
    /// Closes a local port. A port that is closed already is no matter.
    fn close(&mut self, port: LocalPort);
    /// Keeps all events back, for another start of this domain, which adopts the ports.
    fn pause(&mut self);
    /// Goes on with a port that another start of this domain bound.
    ///
    /// # Errors
    /// There is no such port, or what Xen answered.
    fn adopt(&mut self, port: LocalPort) -> Result<(), XenError>;
    /// Tells the other end. A closed other end is no matter.
    fn notify(&mut self, port: LocalPort);
    /// Takes pending ports, clearing each before its ring is looked at. Masked ports stay.
    fn collect(&mut self, ports: &mut PendingPorts);
}

/// What Xen knows of domains.
pub trait Domains {
    /// The state of one domain; `None` when there is none with this id.
    ///
    /// # Errors
    /// What Xen answered when it would not say.
    fn domain(&mut self, domid: DomId) -> Result<Option<DomainInfo>, XenError>;

    /// The next domain that came, went or changed since it was last named; none when all are named. After
    /// [`Events::bind_domain_exception`] these are all domains.
    ///
    /// # Errors
    /// This Xen keeps no such list.
    fn next_changed(&mut self) -> Result<Option<DomId>, XenError>;
}

/// Time and waiting.
pub trait Clock {
    /// System time.
    fn now(&mut self) -> Instant;
    /// Sleeps until an event is pending or `deadline` has passed. Returns at once if one is pending already.
    fn wait(&mut self, deadline: Option<Instant>);
    /// The work that was begun before has ended, and other work begins: a machine may end work that does not end by itself.
    fn begin_work(&mut self, _now: Instant) {}
    /// The next work goes through the whole state, and may take long.
    fn begin_long_work(&mut self) {}
}

/// What there is to store things in.
pub trait Memory {
    /// How much is left. Asked often: a machine that can have more takes some when it is little.
    fn memory(&mut self) -> MemoryLeft;
}

/// How much memory is left, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLeft {
    /// Free for objects of any size.
    pub free: u64,
    /// All of it.
    pub total: u64,
    /// Room for the state stream, apart from that.
    pub stream_room: u64,
}

/// An event channel port of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalPort(pub u32);

/// One domain as Xen sees it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// Which domain it is, apart from its id.
    pub identity: Identity,
    /// It has shut down (for any reason) but still exists.
    pub shutdown: bool,
    /// Its end has begun: nothing new is to be had from it.
    pub dying: bool,
    /// Nothing of it is left but what others hold. Our mapping of its ring is one such thing: it has to go first.
    pub dead: bool,
}

/// A negative answer of Xen: its errno or grant status, as a positive number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XenError(pub i32);

impl fmt::Display for XenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Xen's error {}", self.0)
    }
}

/// How events are delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EventAbi {
    /// Queues by priority, if Xen offers them, else the other one.
    #[default]
    Fifo,
    /// A bit for each of 4096 ports.
    TwoLevel,
}

impl fmt::Display for EventAbi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fifo => "the FIFO ABI",
            Self::TwoLevel => "the 2-level ABI",
        })
    }
}

/// Ports that can be used: one for every domain that there can be, and some of our own.
pub const MAX_PORTS: usize = 33 * 1024;
const WORD_BITS: usize = 64;
const WORDS: usize = MAX_PORTS / WORD_BITS;

/// The ports that were pending at one moment: a fixed bitmap, no heap.
#[derive(Clone, Debug)]
pub struct PendingPorts {
    words: [u64; WORDS],
    /// Bit n of word m: word 64 m + n of `words` is not 0.
    used: [u64; WORDS.div_ceil(WORD_BITS)],
}

impl Default for PendingPorts {
    fn default() -> Self {
        Self {
            words: [0; WORDS],
            used: [0; WORDS.div_ceil(WORD_BITS)],
        }
    }
}

impl PendingPorts {
    /// Adds the 64 ports of word `index` that are set in `bits`; words past the end name no port.
    pub fn add_word(&mut self, index: usize, bits: u64) {
        if bits != 0
            && let Some(word) = self.words.get_mut(index)
            && let Some(used) = self.used.get_mut(index / WORD_BITS)
        {
            *word |= bits;
            *used |= 1 << (index % WORD_BITS);
        }
    }

    /// Adds one port; a port past the end is none of ours.
    pub fn add(&mut self, port: LocalPort) {
        let (index, bit) = place_of(port);
        self.add_word(index, bit);
    }

    /// Takes one port out; whether it was there.
    pub fn remove(&mut self, port: LocalPort) -> bool {
        let (index, bit) = place_of(port);
        let Some(word) = self.words.get_mut(index) else {
            return false;
        };
        let was_there = *word & bit != 0;
        *word &= !bit;
        was_there
    }

    /// Takes the lowest port.
    pub fn take(&mut self) -> Option<LocalPort> {
        loop {
            let group = self.used.iter().position(|used| *used != 0)?;
            let used = self.used.get_mut(group)?;
            let bit = usize::try_from(used.trailing_zeros()).ok()?;
            let index = group.saturating_mul(WORD_BITS).saturating_add(bit);
            let word = self.words.get_mut(index)?;
            if *word == 0 {
                *used &= used.wrapping_sub(1);
                continue;
            }
            let bit = word.trailing_zeros();
            *word &= word.wrapping_sub(1);
            let base = u32::try_from(index.saturating_mul(WORD_BITS)).ok()?;
            return Some(LocalPort(base.saturating_add(bit)));
        }
    }
}

/// Word and bit of a port.
fn place_of(port: LocalPort) -> (usize, u64) {
    let port = usize::try_from(port.0).unwrap_or(usize::MAX);
    (port / WORD_BITS, 1 << (port % WORD_BITS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_taken_lowest_first_each_once() {
        let mut ports = PendingPorts::default();
        let last = u32::try_from(MAX_PORTS - 1).unwrap();
        for port in [last, 4096, 64, 4096, 0, last + 1, u32::MAX] {
            ports.add(LocalPort(port));
        }
        ports.add_word(1, 0b110);
        ports.add_word(WORDS, 1);
        assert!(ports.remove(LocalPort(66)));
        assert!(!ports.remove(LocalPort(66)));
        assert!(!ports.remove(LocalPort(u32::MAX)));
        let taken: Vec<u32> = core::iter::from_fn(|| ports.take())
            .map(|port| port.0)
            .collect();
        assert_eq!(taken, [0, 64, 65, 4096, last]);
    }
}
