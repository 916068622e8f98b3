//! Bugs that other stores had (docs/advisories.md), to be brought back one at a time: `scripts/test-bugs` sees that the tests notice each.
//!
//! Every constant is false, and what depends on it is not compiled, but with `--cfg xs_bug="NUMBER"`.

/// Replies above 4096 bytes are sent.
pub(crate) const XSA_72: bool = cfg!(xs_bug = "72");
/// A watch tells of what its client may not read.
pub(crate) const XSA_115: bool = cfg!(xs_bug = "115");
/// Nobody pays for others' conflicts.
pub(crate) const XSA_206: bool = cfg!(xs_bug = "206");
/// The quota of nodes binds nobody who makes one.
pub(crate) const XSA_272: bool = cfg!(xs_bug = "272");
/// An entry is good for everyone who ever has its domid.
pub(crate) const XSA_322: bool = cfg!(xs_bug = "322");
/// A path is judged as long as it is written, prefix or not.
pub(crate) const XSA_323: bool = cfg!(xs_bug = "323");
/// Events too long for a message are sent.
pub(crate) const XSA_324: bool = cfg!(xs_bug = "324");
/// Who breaks the protocol is released at once.
pub(crate) const XSA_325: bool = cfg!(xs_bug = "325");
/// Requests run however many are outstanding.
pub(crate) const XSA_326: bool = cfg!(xs_bug = "326");
/// RESET_WATCHES leaves the watches in the index.
pub(crate) const XSA_330: bool = cfg!(xs_bug = "330");
/// Equal events wait side by side.
pub(crate) const XSA_349: bool = cfg!(xs_bug = "349");
/// Everyone may give his nodes away.
pub(crate) const XSA_352: bool = cfg!(xs_bug = "352");
/// The root has no permissions.
pub(crate) const XSA_353: bool = cfg!(xs_bug = "353");
/// What a transaction did that fails at its end stays.
pub(crate) const XSA_415: bool = cfg!(xs_bug = "415");
/// An entry for nobody is good for the next one with its domid.
pub(crate) const XSA_417: bool = cfg!(xs_bug = "417");
/// A tree is freed by recursion.
pub(crate) const XSA_418: bool = cfg!(xs_bug = "418");
/// A dead domain's nodes become the privileged domain's.
pub(crate) const XSA_419: bool = cfg!(xs_bug = "419");
/// A length is a signed number.
pub(crate) const XSA_420: bool = cfg!(xs_bug = "420");
/// A transaction that made and removed a node is not accounted for.
pub(crate) const XSA_421: bool = cfg!(xs_bug = "421");
/// The folder of homes may end with a slash.
pub(crate) const XSA_481: bool = cfg!(xs_bug = "481");
/// RESET_WATCHES leaves the transactions open.
pub(crate) const XSA_484: bool = cfg!(xs_bug = "484");
