//! Why the machine cannot start: each a sentence that a person on the host can act on.

use core::fmt;

use super::paging::NoMemoryForTables;
use crate::xen::XenError;

/// Why the machine cannot start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// No hypervisor that says it is Xen.
    NoXen,
    /// Xen does not say which domain this is.
    NoOwnDomid,
    /// It has been started already.
    Twice,
    /// Xen would not say how much memory there is.
    Memory(XenError),
    /// Not enough memory to be useful.
    TooLittleMemory {
        /// Free bytes.
        free: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// No memory below 4 GiB for page tables.
    PageTables,
    /// More stack guards than there is room to note.
    Guards,
    /// What another start of the domain left makes no sense.
    Handover,
    /// No room in the window for Xen's pages.
    Window,
    /// Xen would not share its page.
    SharedInfo(XenError),
    /// Xen would not tell of events.
    Upcall(XenError),
    /// There is no timer.
    Timer(XenError),
}

impl From<NoMemoryForTables> for StartError {
    fn from(NoMemoryForTables: NoMemoryForTables) -> Self {
        Self::PageTables
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoXen => {
                f.write_str("this is not a Xen domain (no XenVMMXenVMM among the CPUID leaves)")
            }
            Self::NoOwnDomid => {
                f.write_str("Xen does not tell our own domain id (CPUID leaf base + 4)")
            }
            Self::Twice => f.write_str("the machine was started twice"),
            Self::Memory(error) => write!(
                f,
                "Xen does not tell how much memory there is (errno {})",
                error.0
            ),
            Self::TooLittleMemory { free, needed } => write!(
                f,
                "too little memory: {} KiB free behind the image, {} KiB needed; give the domain more with --memory",
                free / 1024,
                needed / 1024
            ),
            Self::PageTables => f.write_str("no memory below 4 GiB for page tables"),
            Self::Guards => f.write_str("too many stack guards"),
            Self::Handover => f.write_str("what the instance before this one left makes no sense"),
            Self::Window => f.write_str("no room to map Xen's pages"),
            Self::SharedInfo(error) => write!(f, "Xen does not share its page (errno {})", error.0),
            Self::Upcall(error) => {
                write!(f, "Xen does not take our event vector (errno {})", error.0)
            }
            Self::Timer(error) => write!(f, "Xen gives no timer (errno {})", error.0),
        }
    }
}
