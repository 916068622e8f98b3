//! Bugs that others had on Xen (docs/advisories.md), to be brought back one at a time: `scripts/test-bugs` sees that the tests notice each.
//!
//! Every constant is false, and what depends on it is not compiled, but with `--cfg xs_bug="NUMBER"`.

/// The distance of two indices is cut to the ring's size.
pub(crate) const XSA_38: bool = cfg!(xs_bug = "38");
/// An index is read twice.
pub(crate) const XSA_155: bool = cfg!(xs_bug = "155");
/// A domain of which Xen does not tell is taken for dead.
pub(crate) const XSA_492: bool = cfg!(xs_bug = "492");
/// Who lost the interrupt for ended domains never asks for it again.
pub(crate) const XSA_496: bool = cfg!(xs_bug = "496");
