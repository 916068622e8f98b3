//! The policy `protocol`: a paravirtual device is a pair of folders, and each end keeps to its own (xenbus).
//!
//! The toolstack makes both folders and says in them who the other end is; then each end writes what it has to offer and moves its `state`.
//! Access lists give an end its whole folder, so that a guest could name itself another backend, or take steps in an order that its backend
//! was never tried with. Here an end writes the keys that are its part of the protocol and no others, and its `state` moves as xenbus has
//! it. The privileged domain is not judged: it is the toolstack, and often every backend, and nothing tells one from the other.

use alloc::boxed::Box;

use super::{Access, Operation, Policy};
use crate::extension::{Item, View, Why};
use crate::path::PathRef;
use crate::wire::{Errno, decimal};

/// Judges changes below `/local/domain/N/device` and `/local/domain/N/backend`.
#[derive(Debug)]
pub(super) struct Protocol;

impl Protocol {
    pub(super) fn make(item: &Item<'_>) -> Result<Box<dyn Policy>, Why> {
        item.without_parameters()
            .map(|()| Box::new(Self) as Box<dyn Policy>)
    }
}

impl Policy for Protocol {
    fn name(&self) -> &'static str {
        "protocol"
    }

    fn check(&self, access: &Access<'_>) -> Result<(), Errno> {
        if access.is_privileged() || !access.operation().is_change() {
            return Ok(());
        }
        let Some(place) = Place::of(access.path()) else {
            return Ok(());
        };
        let is_own = place.domid == u32::from(access.domid().get());
        if is_own && place.may(access.operation(), access.seen()) {
            Ok(())
        } else {
            Err(Errno::EACCES)
        }
    }
}

/// One end of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Front,
    Back,
}

/// The states of xenbus (`io/xenbus.h`): 0 is Unknown, or no state yet.
const STATE_MAX: u32 = 8;

impl End {
    /// The folders below `device` or `backend` on the way to that of one device.
    const fn depth(self) -> usize {
        match self {
            Self::Front => 2,
            Self::Back => 3,
        }
    }

    /// The key by which the toolstack names the other end.
    const fn other(self) -> &'static str {
        match self {
            Self::Front => "backend",
            Self::Back => "frontend",
        }
    }

    /// The keys that are this end's part; `*` stands for any bytes.
    const fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Front => &[
                "state",
                "protocol",
                "version",
                "versions",
                "magic",
                "port",
                "page-ref",
                "page-gref",
                "*ring-ref*",
                "*event-channel*",
                "pci-op-ref",
                "ring-page-order",
                "num-ring*",
                "multi-queue-num-queues",
                "xdp-headroom",
                "feature-*",
                "request-*",
            ],
            Self::Back => &[
                "state",
                "hotplug-*",
                "error",
                "ready",
                "node",
                "physical-*",
                "sectors",
                "sector-size",
                "size",
                "info",
                "feature-*",
                "max-*",
                "multi-queue-max-queues",
                "discard-*",
                "versions",
                "function-calls",
                "vifname",
                "vdev-*",
                "root-*",
                "root_num",
                "state-*",
            ],
        }
    }

    /// The steps from a state, besides staying there.
    const fn steps(self, from: u32) -> &'static [u32] {
        match (self, from) {
            (Self::Front, 0) => &[1, 3, 4, 5, 6],
            (Self::Front, 1) => &[3, 4, 5, 6],
            (Self::Front, 3) => &[4, 5, 6],
            // Back to 3: a guest that was not told that its suspension failed connects anew.
            (Self::Front, 4) => &[3, 5, 6, 7, 8],
            (Self::Front, 6) => &[1],
            (Self::Back, 0) => &[1, 2, 3, 4, 5, 6],
            (Self::Back, 1) => &[2, 3, 4, 5, 6],
            (Self::Back, 2) => &[1, 3, 4, 5, 6],
            (Self::Back, 3) => &[4, 5, 6],
            (Self::Back, 4) => &[5, 6, 7, 8],
            (Self::Back, 6) => &[1, 2, 5],
            (_, 5) => &[6],
            (_, 7) => &[4, 5, 6, 8],
            (_, 8) => &[4, 5, 6, 7],
            _ => &[],
        }
    }
}

/// Where a path lies.
struct Place<'a> {
    path: PathRef<'a>,
    end: End,
    /// Whose folder of devices, or of backends, it is.
    domid: u32,
    /// The folder of the device, if the path leads that far.
    device: Option<&'a str>,
    /// What is behind that.
    below: &'a str,
}

impl<'a> Place<'a> {
    /// The place of a path that concerns devices.
    fn of(path: PathRef<'a>) -> Option<Self> {
        let rest = path.as_str().strip_prefix("/local/domain/")?;
        let (domid, rest) = rest.split_once('/')?;
        let (folder, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let end = match folder {
            "device" => End::Front,
            "backend" => End::Back,
            _ => return None,
        };
        let is_suspend = end == End::Front && rest == "suspend/event-channel";
        if is_suspend {
            // Of no device: by it the toolstack tells the guest to suspend.
            return None;
        }
        let domid = decimal(domid.as_bytes(), u32::from(u16::MAX)).ok()?;
        let (device, below) = split_behind(path.as_str(), rest, end.depth());
        Some(Self {
            path,
            end,
            domid,
            device,
            below,
        })
    }

    /// Whether its own domain may do that there.
    fn may(&self, operation: Operation<'_>, seen: &dyn View) -> bool {
        match self.device {
            Some(device) if !self.below.is_empty() => self.may_below(device, operation, seen),
            Some(device) => {
                operation == Operation::Remove && (self.is_over(device, seen) || self.is_bare(seen))
            }
            None => operation == Operation::Remove && self.is_bare(seen),
        }
    }

    fn may_below(&self, device: &str, operation: Operation<'_>, seen: &dyn View) -> bool {
        let is_pair = value_of(seen, device, self.end.other()).is_some();
        if !is_pair || !self.is_own_key(operation) {
            return false;
        }
        match operation {
            Operation::Write(value) if self.below == "state" => {
                let from = value_of(seen, device, "state").and_then(state);
                let from = from.unwrap_or_default();
                state(value).is_some_and(|to| to == from || self.end.steps(from).contains(&to))
            }
            // Without its state a device could begin anew wherever it likes.
            Operation::Mkdir | Operation::Remove => self.below != "state",
            _ => true,
        }
    }

    /// Whether this is a key of this end, or a folder of such keys.
    fn is_own_key(&self, operation: Operation<'_>) -> bool {
        let (folders, key) = self.below.rsplit_once('/').unwrap_or(("", self.below));
        let mut folders = folders.split('/').filter(|folder| !folder.is_empty());
        let is_key = self.end.keys().iter().any(|known| matches(key, known));
        let is_part = matches!(operation, Operation::Mkdir | Operation::Remove) && is_queue(key);
        folders.all(is_queue) && (is_key || is_part)
    }

    /// Whether this is the folder of a backend that has come to its end and is not to come back: then its domain clears it away.
    fn is_over(&self, device: &str, seen: &dyn View) -> bool {
        let online = value_of(seen, device, "online");
        let ended = value_of(seen, device, "state").and_then(state) == Some(6);
        self.end == End::Back && (ended || online == Some(b"0"))
    }

    /// Whether this is a folder of backends with nothing in it.
    fn is_bare(&self, seen: &dyn View) -> bool {
        let mut is_bare = true;
        seen.children(self.path.as_str(), &mut |_| {
            is_bare = false;
            false
        });
        self.end == End::Back && is_bare
    }
}

/// The part of `path` up to the end of so many names of `rest`, its last part; and what is behind. Nothing, if there are fewer.
fn split_behind<'a>(path: &'a str, rest: &'a str, names: usize) -> (Option<&'a str>, &'a str) {
    let mut ends = rest.bytes().enumerate().filter(|(_, byte)| *byte == b'/');
    let end = ends.nth(names.saturating_sub(1)).map(|(end, _)| end);
    let slashes = rest.bytes().filter(|byte| *byte == b'/').count();
    let whole = !rest.is_empty() && slashes.saturating_add(1) == names;
    match end {
        Some(end) => {
            let below = rest.get(end.saturating_add(1)..).unwrap_or_default();
            let device = path.len().checked_sub(below.len().saturating_add(1));
            (device.and_then(|end| path.get(..end)), below)
        }
        None if whole => (Some(path), ""),
        None => (None, ""),
    }
}

fn value_of<'v>(seen: &'v dyn View, folder: &str, key: &str) -> Option<&'v [u8]> {
    seen.value(&alloc::format!("{folder}/{key}"))
}

/// A state as it is written; some write a NUL behind it.
fn state(value: &[u8]) -> Option<u32> {
    let digits = value.strip_suffix(b"\0").unwrap_or(value);
    decimal(digits, STATE_MAX).ok()
}

/// Whether a folder is that of one queue, or one stream, of a device.
fn is_queue(name: &str) -> bool {
    let number = name.strip_prefix("queue-").unwrap_or(name);
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a key is one that `*` in a pattern stands for any part of.
fn matches(key: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = key.strip_prefix(first) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        last = Some(part);
        match rest.find(part) {
            Some(at) => {
                rest = rest
                    .get(at.saturating_add(part.len())..)
                    .unwrap_or_default()
            }
            None => return false,
        }
    }
    // Behind the last star anything may follow only if that ends the pattern.
    rest.is_empty() || last == Some("")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &str) -> Option<(End, u32, Option<&str>, &str)> {
        let place = Place::of(PathRef::known(path))?;
        Some((place.end, place.domid, place.device, place.below))
    }

    #[test]
    fn a_path_has_its_place() {
        let vif = "/local/domain/5/device/vif/0";
        assert_eq!(place(vif), Some((End::Front, 5, Some(vif), "")));
        assert_eq!(
            place("/local/domain/5/device/vif/0/queue-1/tx-ring-ref"),
            Some((End::Front, 5, Some(vif), "queue-1/tx-ring-ref"))
        );
        for short in ["", "/vif"] {
            let path = alloc::format!("/local/domain/5/device{short}");
            assert_eq!(place(&path), Some((End::Front, 5, None, "")));
        }
        let vbd = "/local/domain/2/backend/vbd/5/768";
        assert_eq!(place(vbd), Some((End::Back, 2, Some(vbd), "")));
        assert_eq!(
            place("/local/domain/2/backend/vbd/5/768/state"),
            Some((End::Back, 2, Some(vbd), "state"))
        );
        for short in ["", "/vbd", "/vbd/5"] {
            let path = alloc::format!("/local/domain/2/backend{short}");
            assert_eq!(place(&path), Some((End::Back, 2, None, "")));
        }
        for other in [
            "/",
            "/local/domain",
            "/local/domain/5",
            "/local/domain/5/data",
            "/local/domain/5/devices/vif/0",
            "/local/domain/5/device/suspend/event-channel",
            "/vm/5/device/vif/0",
            "/local/domain/x/device/vif/0",
        ] {
            assert_eq!(place(other), None, "{other}");
        }
    }

    #[test]
    fn stars_stand_for_any_part() {
        for (key, pattern) in [
            ("state", "state"),
            ("ring-ref", "*ring-ref*"),
            ("tx-ring-ref", "*ring-ref*"),
            ("ring-ref12", "*ring-ref*"),
            ("feature-", "feature-*"),
            ("feature-sg", "feature-*"),
        ] {
            assert!(matches(key, pattern), "{key} {pattern}");
        }
        for (key, pattern) in [
            ("state2", "state"),
            ("stat", "state"),
            ("backend-id", "*ring-ref*"),
            ("my-feature-sg", "feature-*"),
            ("", "state"),
        ] {
            assert!(!matches(key, pattern), "{key} {pattern}");
        }
    }

    #[test]
    fn no_key_of_the_toolstack_is_an_ends() {
        let theirs = [
            "backend",
            "backend-id",
            "frontend",
            "frontend-id",
            "online",
            "script",
            "params",
            "type",
            "mode",
            "mac",
            "bridge",
            "handle",
            "virtual-device",
            "device-type",
            "dev",
            "domain",
            "removable",
            "bootable",
            "num_devs",
        ];
        for end in [End::Front, End::Back] {
            for key in theirs {
                let is_own = end.keys().iter().any(|known| matches(key, known));
                assert!(!is_own, "{end:?} {key}");
            }
        }
    }

    #[test]
    fn every_state_leads_to_an_end_and_none_to_itself() {
        for end in [End::Front, End::Back] {
            for from in (0..=STATE_MAX).filter(|from| end == End::Back || *from != 2) {
                let steps = end.steps(from);
                assert!(!steps.contains(&from) && !steps.contains(&0));
                let is_ended = from == 5 || from == 6;
                assert!(
                    is_ended || steps.contains(&5) && steps.contains(&6),
                    "{from}"
                );
            }
        }
        assert_eq!(state(b"4\0"), Some(4));
        for wrong in [&b"9"[..], b"", b"04", b"4 ", b"-1", b"x"] {
            assert_eq!(state(wrong), None);
        }
    }
}
