//! What the dispatcher asks of the machine, so that the same dispatcher runs over the real Xen and over a simulated one.
//!
//! The real one is `hypervisor::Machine`; tests bring their own.

use core::fmt;

use xenstore::{DomId, EvtchnPort, GrantRef, Identity, Instant};

/// The machine: grants, event channels, domains, a clock and memory.
pub trait Xen: Grants + Events + Domains + Clock + Memory {}

impl<X: Grants + Events + Domains + Clock + Memory> Xen for X {}

/// Mapping other domains' ring pages.
pub trait Grants {
    /// A mapped page. Dropping it does not unmap it; [`Grants::unmap`] does.
    type Page: Page;

    /// Maps the page that `domid` granted to us as `grant`.
    ///
    /// # Errors
    /// What Xen answered; nothing stays mapped.
    fn map(&mut self, domid: DomId, grant: GrantRef) -> Result<Self::Page, XenError>;

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
    /// Closes a local port. A port that is closed already is no matter.
    fn close(&mut self, port: LocalPort);
    /// Tells the other end. A closed other end is no matter.
    fn notify(&mut self, port: LocalPort);
    /// Takes all pending ports, clearing each before its ring is looked at. Masked ports stay.
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
}

/// What there is to store things in.
pub trait Memory {
    /// How much is left.
    fn memory(&self) -> MemoryLeft;
}

/// How much memory is left, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLeft {
    /// Free for objects of any size.
    pub free: u64,
    /// All of it.
    pub total: u64,
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

/// Ports of the 2-level event channel ABI: 64 words of 64 bits.
pub const MAX_PORTS: usize = 4096;
const WORD_BITS: usize = 64;

/// The ports that were pending at one moment: a fixed bitmap, no heap.
#[derive(Clone, Debug)]
pub struct PendingPorts {
    words: [u64; MAX_PORTS / WORD_BITS],
}

impl Default for PendingPorts {
    fn default() -> Self {
        Self {
            words: [0; MAX_PORTS / WORD_BITS],
        }
    }
}

impl PendingPorts {
    /// Adds the 64 ports of word `index` that are set in `bits`; words past the end name no port.
    pub fn add_word(&mut self, index: usize, bits: u64) {
        if let Some(word) = self.words.get_mut(index) {
            *word |= bits;
        }
    }

    /// Adds one port; a port past the end is none of ours.
    pub fn add(&mut self, port: LocalPort) {
        let port = usize::try_from(port.0).unwrap_or(usize::MAX);
        self.add_word(port / WORD_BITS, 1 << (port % WORD_BITS));
    }

    /// Takes the lowest port.
    pub fn take(&mut self) -> Option<LocalPort> {
        let (index, word) = self
            .words
            .iter_mut()
            .enumerate()
            .find(|(_, word)| **word != 0)?;
        let bit = word.trailing_zeros();
        *word &= word.wrapping_sub(1);
        let base = u32::try_from(index.saturating_mul(WORD_BITS)).ok()?;
        Some(LocalPort(base.saturating_add(bit)))
    }
}
