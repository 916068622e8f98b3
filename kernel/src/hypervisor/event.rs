//! Event channels by the 2-level ABI: 4096 ports, each a pending bit and a mask bit in the page that Xen shares.

use core::sync::atomic::Ordering;

use xenstore::{DomId, EvtchnPort};

use super::abi::{BindInterdomain, BindVirq, ClosePort, SendEvent, UnmaskPort};
use super::hypercall;
use super::shared_info::SharedInfo;
use crate::xen::{LocalPort, PendingPorts, XenError};

const WORD_BITS: usize = 64;

/// Masks every port, so that only those that somebody bound here raise the upcall.
pub(super) fn mask_all(shared: &SharedInfo) {
    for word in &shared.mask {
        word.store(u64::MAX, Ordering::Relaxed);
    }
}

/// Binds a new port of ours to `remote` of `domid`. It is pending at once if the other side has sent already.
///
/// # Errors
/// What Xen answered; nothing stays bound.
pub(super) fn bind_interdomain(domid: DomId, remote: EvtchnPort) -> Result<LocalPort, XenError> {
    let mut bind = BindInterdomain {
        remote_domid: domid.get(),
        padding: 0,
        remote_port: remote.0,
        local_port: 0,
    };
    // SAFETY: touches no memory.
    unsafe { hypercall::perform(&mut bind) }?;
    unmask_new(LocalPort(bind.local_port))
}

/// Binds a virtual interrupt of vCPU 0.
///
/// # Errors
/// What Xen answered; nothing stays bound.
pub(super) fn bind_virq(virq: u32) -> Result<LocalPort, XenError> {
    let mut bind = BindVirq {
        virq,
        vcpu: 0,
        port: 0,
    };
    // SAFETY: touches no memory.
    unsafe { hypercall::perform(&mut bind) }?;
    unmask_new(LocalPort(bind.port))
}

fn unmask_new(port: LocalPort) -> Result<LocalPort, XenError> {
    unmask(port).inspect_err(|_| close_port(port))?;
    Ok(port)
}

/// Lets `port` raise the upcall; at once if it is pending.
///
/// # Errors
/// What Xen answered.
pub(super) fn unmask(port: LocalPort) -> Result<(), XenError> {
    let mut unmask = UnmaskPort { port: port.0 };
    // SAFETY: touches no memory.
    unsafe { hypercall::perform(&mut unmask) }.map(drop)
}

/// Closes a port, masked for its next life. A port that is closed already is no matter.
pub(super) fn close(shared: &SharedInfo, port: LocalPort) {
    if let Some((word, bit)) = place_of(port)
        && let Some(mask) = shared.mask.get(word)
    {
        mask.fetch_or(bit, Ordering::Relaxed);
    }
    close_port(port);
}

fn close_port(port: LocalPort) {
    let mut close = ClosePort { port: port.0 };
    // SAFETY: touches no memory. The only error is that the port is not open.
    let _ = unsafe { hypercall::perform(&mut close) };
}

/// Tells the other end. A closed other end is no matter.
pub(super) fn notify(port: LocalPort) {
    let mut send = SendEvent { port: port.0 };
    // SAFETY: touches no memory. The only error is that the port is not open.
    let _ = unsafe { hypercall::perform(&mut send) };
}

/// Whether an event became pending since the last [`collect`].
pub(super) fn is_pending(shared: &SharedInfo) -> bool {
    shared.vcpu().upcall_pending.load(Ordering::Acquire) != 0
}

/// Takes all pending ports that are not masked, clearing their bits before anyone looks at a ring: what is sent afterwards is new.
///
/// Those in `own` are taken too but not added; the answer has a bit for each that was pending.
pub(super) fn collect<const OWN: usize>(
    shared: &SharedInfo,
    ports: &mut PendingPorts,
    own: [Option<LocalPort>; OWN],
) -> [bool; OWN] {
    let mut own_pending = [false; OWN];
    let vcpu = shared.vcpu();
    vcpu.upcall_pending.store(0, Ordering::SeqCst);
    let words = vcpu.pending_words.swap(0, Ordering::SeqCst);
    for (index, (pending, mask)) in shared.pending.iter().zip(&shared.mask).enumerate() {
        if words & (1 << index) == 0 {
            continue;
        }
        let unmasked = !mask.load(Ordering::Relaxed);
        let mut bits = pending.fetch_and(!unmasked, Ordering::SeqCst) & unmasked;
        for (port, pending) in own.iter().zip(&mut own_pending) {
            let bit = bit_in_word(*port, index);
            *pending |= bits & bit != 0;
            bits &= !bit;
        }
        ports.add_word(index, bits);
    }
    own_pending
}

/// The bit of `port` if it lies in word `index`, else none.
fn bit_in_word(port: Option<LocalPort>, index: usize) -> u64 {
    match port.and_then(place_of) {
        Some((word, bit)) if word == index => bit,
        _ => 0,
    }
}

/// Word and bit of a port; `None` past the last port.
fn place_of(port: LocalPort) -> Option<(usize, u64)> {
    let port = usize::try_from(port.0).ok()?;
    let word = port / WORD_BITS;
    (word < super::shared_info::PORT_WORDS).then_some((word, 1 << (port % WORD_BITS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Xen's side: marks a port pending as `evtchn_2l_set_pending` does.
    fn send(shared: &SharedInfo, port: u32) {
        let (word, bit) = place_of(LocalPort(port)).unwrap();
        shared.pending[word].fetch_or(bit, Ordering::SeqCst);
        if shared.mask[word].load(Ordering::SeqCst) & bit == 0 {
            shared
                .vcpu()
                .pending_words
                .fetch_or(1 << word, Ordering::SeqCst);
            shared.vcpu().upcall_pending.store(1, Ordering::SeqCst);
        }
    }

    fn unmask_locally(shared: &SharedInfo, port: u32) {
        let (word, bit) = place_of(LocalPort(port)).unwrap();
        shared.mask[word].fetch_and(!bit, Ordering::SeqCst);
    }

    fn shared() -> Box<SharedInfo> {
        // SAFETY: all fields are atomic integers, for which zero is a value.
        let shared: Box<SharedInfo> = unsafe { Box::new_zeroed().assume_init() };
        mask_all(&shared);
        shared
    }

    fn taken(mut ports: PendingPorts) -> Vec<u32> {
        core::iter::from_fn(|| ports.take())
            .map(|port| port.0)
            .collect()
    }

    #[test]
    fn each_event_is_taken_once_and_masked_ports_stay() {
        let shared = shared();
        for port in [1, 64, 4095] {
            unmask_locally(&shared, port);
            send(&shared, port);
        }
        send(&shared, 65);
        assert!(is_pending(&shared));
        let mut ports = PendingPorts::default();
        collect(&shared, &mut ports, []);
        assert_eq!(taken(ports), [1, 64, 4095]);
        assert!(!is_pending(&shared));
        let mut ports = PendingPorts::default();
        send(&shared, 1);
        collect(&shared, &mut ports, []);
        assert_eq!(taken(ports), [1]);
        assert_eq!(shared.pending[1].load(Ordering::SeqCst), 1 << 1);
    }

    #[test]
    fn own_ports_are_told_apart() {
        let shared = shared();
        for port in [2, 3, 70] {
            unmask_locally(&shared, port);
            send(&shared, port);
        }
        let mut ports = PendingPorts::default();
        let own = collect(
            &shared,
            &mut ports,
            [Some(LocalPort(70)), None, Some(LocalPort(4))],
        );
        assert_eq!(own, [true, false, false]);
        assert_eq!(taken(ports), [2, 3]);
    }

    #[test]
    fn ports_past_the_last_word_have_no_place() {
        assert_eq!(place_of(LocalPort(4096)), None);
        assert_eq!(place_of(LocalPort(u32::MAX)), None);
    }
}
