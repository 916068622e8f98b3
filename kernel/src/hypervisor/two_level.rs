//! The 2-level ABI of event channels: 4096 ports, each a pending bit and a mask bit in the page that Xen shares. No hypercalls.
//!
//! Xen raises the upcall only for a word of which it finds the bit in `pending_words` clear. So those bits stay set as long as there is work,
//! and all words are looked at that have a port of ours.

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

/// Words up to the port's.
pub(super) fn words_to(port: LocalPort) -> usize {
    place_of(port).map_or(0, |(word, _)| word.saturating_add(1))
}

/// Lets Xen raise the upcall for what becomes pending from here on.
pub(super) fn listen(shared: &SharedInfo) {
    shared.vcpu().pending_words.swap(0, Ordering::SeqCst);
}

/// Keeps Xen from raising the upcall.
pub(super) fn silence(shared: &SharedInfo) {
    shared.vcpu().pending_words.swap(u64::MAX, Ordering::SeqCst);
}

/// Whether one of the first `words` has a port that is pending and not masked.
pub(super) fn is_pending(shared: &SharedInfo, words: usize) -> bool {
    let mut words = shared.pending.iter().zip(&shared.mask).take(words);
    words.any(|(pending, mask)| pending.load(Ordering::SeqCst) & !mask.load(Ordering::Relaxed) != 0)
}

/// Takes all ports of the first `words` that are pending and not masked, clearing their bits before anyone looks at a ring: what is sent
/// afterwards is new.
pub(super) fn collect(shared: &SharedInfo, words: usize, ports: &mut PendingPorts) {
    let words = shared.pending.iter().zip(&shared.mask).take(words);
    for (index, (pending, mask)) in words.enumerate() {
        let unmasked = !mask.load(Ordering::Relaxed);
        if pending.load(Ordering::SeqCst) & unmasked != 0 {
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

    /// Xen's side: marks a port pending as `evtchn_2l_set_pending` does, and answers whether it raises the upcall.
    fn send(shared: &SharedInfo, port: u32) -> bool {
        let (word, bit) = place_of(LocalPort(port)).unwrap();
        shared.pending[word].fetch_or(bit, Ordering::SeqCst);
        let words = &shared.vcpu().pending_words;
        shared.mask[word].load(Ordering::SeqCst) & bit == 0
            && words.fetch_or(1 << word, Ordering::SeqCst) & (1 << word) == 0
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
        collect(shared, PORT_WORDS, &mut ports);
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
    fn upcalls_come_only_while_somebody_listens() {
        let shared = shared();
        for port in [1, 2, 70] {
            unmask_locally(&shared, port);
        }
        silence(&shared);
        assert!(!send(&shared, 1));
        assert!(is_pending(&shared, words_to(LocalPort(1))));
        listen(&shared);
        assert_eq!(collected(&shared), [1]);
        assert!(!is_pending(&shared, PORT_WORDS));
        assert!(send(&shared, 70) && !is_pending(&shared, 1));
        silence(&shared);
        assert!(is_pending(&shared, words_to(LocalPort(70))));
        assert!(!send(&shared, 2));
        assert_eq!(collected(&shared), [2, 70]);
    }

    #[test]
    fn ports_past_the_last_word_have_no_place() {
        assert_eq!(place_of(LocalPort(4096)), None);
        assert_eq!(words_to(LocalPort(4096)), 0);
        assert_eq!(place_of(LocalPort(u32::MAX)), None);
        mask(&shared(), LocalPort(u32::MAX));
    }
}
