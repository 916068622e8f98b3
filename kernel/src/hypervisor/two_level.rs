//! The 2-level ABI of event channels: 4096 ports, each a pending bit and a mask bit in the page that Xen shares. No hypercalls.

use super::shared_info::{PORT_WORDS, SharedInfo};
use crate::sync::Ordering;
use crate::xen::{LocalPort, PendingPorts};

const WORD_BITS: usize = 64;

/// Masks every port, so that only those that somebody bound here raise the upcall.
pub(super) fn mask_all(shared: &SharedInfo) {
    for word in &shared.mask {
        word.store(u64::MAX, Ordering::Relaxed);
    }
}

/// Keeps a port from raising the upcall.
pub(super) fn mask(shared: &SharedInfo, port: LocalPort) {
    if let Some((word, bit)) = place_of(port)
        && let Some(mask) = shared.mask.get(word)
    {
        mask.fetch_or(bit, Ordering::Relaxed);
    }
}

/// Takes all pending ports that are not masked, clearing their bits before anyone looks at a ring: what is sent afterwards is new.
pub(super) fn collect(shared: &SharedInfo, ports: &mut PendingPorts) {
    let words = shared.vcpu().pending_words.swap(0, Ordering::SeqCst);
    for (index, (pending, mask)) in shared.pending.iter().zip(&shared.mask).enumerate() {
        if words & (1 << index) != 0 {
            let unmasked = !mask.load(Ordering::Relaxed);
            let bits = pending.fetch_and(!unmasked, Ordering::SeqCst) & unmasked;
            ports.add_word(index, bits);
        }
    }
}

/// Word and bit of a port; `None` past the last port.
fn place_of(port: LocalPort) -> Option<(usize, u64)> {
    let port = usize::try_from(port.0).ok()?;
    let word = port / WORD_BITS;
    (word < PORT_WORDS).then_some((word, 1 << (port % WORD_BITS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Xen's side: marks a port pending as `evtchn_2l_set_pending` does.
    fn send(shared: &SharedInfo, port: u32) {
        let (word, bit) = place_of(LocalPort(port)).unwrap();
        shared.pending[word].fetch_or(bit, Ordering::SeqCst);
        if shared.mask[word].load(Ordering::SeqCst) & bit == 0 {
            let words = &shared.vcpu().pending_words;
            words.fetch_or(1 << word, Ordering::SeqCst);
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

    fn collected(shared: &SharedInfo) -> Vec<u32> {
        let mut ports = PendingPorts::default();
        collect(shared, &mut ports);
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
        assert_eq!(collected(&shared), [1, 64, 4095]);
        send(&shared, 1);
        assert_eq!(collected(&shared), [1]);
        assert_eq!(shared.pending[1].load(Ordering::SeqCst), 1 << 1);
        mask(&shared, LocalPort(64));
        send(&shared, 64);
        assert_eq!(collected(&shared), []);
    }

    #[test]
    fn ports_past_the_last_word_have_no_place() {
        assert_eq!(place_of(LocalPort(4096)), None);
        assert_eq!(place_of(LocalPort(u32::MAX)), None);
        mask(&shared(), LocalPort(u32::MAX));
    }
}
