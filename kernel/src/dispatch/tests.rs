//! The dispatcher over a machine in memory, with the real store and real ring bytes.

mod advisories;
mod counted;
mod early;
mod exhaustion;
mod failures;
mod fairness;
mod host;
mod lazy;
mod memory;
mod releases;
mod scale;

use core::time::Duration;

use proptest::prelude::*;
use xenstore::wire::Kind;

use self::host::{DOM0, Guest, machine, start, start_on, start_with_own_heap};
use super::*;
use crate::domains::POLL_INTERVAL;
use crate::fake::{Call, Release};
use crate::ring;

const RING_SCAN: Duration = Duration::from_secs(20);
const FIVE: DomId = DomId::new(5);

fn event(path: &str, token: &str) -> (String, String) {
    (path.to_string(), token.to_string())
}

mod service {
    use super::*;

    #[test]
    fn the_privileged_domain_is_welcomed_once_and_its_early_requests_are_answered() {
        let (xen, port) = machine();
        let page = xen.page(DOM0);
        page.store(2048, 77);
        page.store(2052, 77);
        page.store(2068, 1);
        let host_unstarted = start_on(&xen, "");
        let host = host_unstarted.unwrap();
        let mut dom0 = Guest::new(&host, DOM0, port);
        let (number, bytes) = dom0.request(Kind::Read, b"/\0");
        dom0.put(&bytes);
        host.settle();

        assert_eq!([2064, 2068, 2072].map(|at| page.load(at)), [15, 0, 0]);
        assert_eq!(page.load(2048), 77 + 18);
        assert_eq!(dom0.take_signals(), 1);
        dom0.take(usize::MAX);
        assert_eq!(dom0.replies[0].request, number);
    }

    #[test]
    fn the_privileged_domain_writes_and_reads() {
        let (_, mut dom0) = start();
        dom0.write("/tool/hello", "world");
        assert_eq!(dom0.read("/tool/hello"), Ok("world".into()));
        assert_eq!(dom0.read("/tool/nothing"), Err("ENOENT".into()));
    }

    #[test]
    fn an_introduced_guest_reads_its_own_key_and_the_toolstack_sees_what_it_writes() {
        let (host, mut dom0) = start();
        dom0.watch("/local/domain/5/data", "seen");
        let mut guest = dom0.build(5);
        dom0.take_events();
        assert_eq!([2064, 2068].map(|at| guest.page.load(at)), [15, 0]);

        dom0.write("/local/domain/5/name", "guest");
        dom0.ask_strings(Kind::SetPerms, &["/local/domain/5/name", "n0", "r5"])
            .unwrap();
        assert_eq!(guest.read("name"), Ok("guest".into()));
        guest.write("data/hello", "hi");
        assert_eq!(
            dom0.take_events(),
            [event("/local/domain/5/data/hello", "seen")]
        );
        assert_eq!(dom0.read("/local/domain/5/data/hello"), Ok("hi".into()));
        assert_eq!((host.xen.mapped(), host.xen.bound()), (2, 2));
    }

    #[test]
    fn when_memory_is_short_guests_may_read_and_remove_and_the_toolstack_everything() {
        let (host, mut dom0) = start();
        let mut guest = dom0.build(5);
        guest.write("key", "value");
        guest.watch("key", "seen");
        guest.take_events();
        host.xen.take_memory(95);
        dom0.write("/local/domain/5/key", "value");
        host.settle();
        assert_eq!(guest.take_events(), [event("key", "seen")]);
        let refused = Err("ENOSPC".to_string());
        assert_eq!(guest.ask_strings(Kind::Mkdir, &["other"]), refused);
        assert_eq!(guest.ask_strings(Kind::Watch, &["key", "token"]), refused);
        assert_eq!(guest.ask_strings(Kind::TransactionStart, &[""]), refused);
        assert_eq!(guest.read("key"), Ok("value".into()));
        guest.ask_strings(Kind::Rm, &["key"]).unwrap();
        dom0.write("/tool/more", "value");
        dom0.watch("/tool", "token");
        host.xen.take_memory(80);
        guest.write("key", "within what is guaranteed");
        host.xen.take_memory(0);
        guest.ask_strings(Kind::TransactionStart, &[""]).unwrap();
    }

    /// T-MEM-08, T-MEM-09.
    #[test]
    fn of_the_last_memory_only_the_toolstack_and_the_ends_of_domains_take() {
        let (host, mut dom0) = start();
        let mut guest = dom0.build(5);
        dom0.build(6);
        guest.write("key", &"v".repeat(1500));
        let (_, bytes) = guest.request(Kind::Read, b"key\0");
        guest.put(&bytes);
        guest.signal();
        host.settle();
        host.xen.take_memory(96);
        host.settle();
        guest.drain();
        assert_eq!(guest.replies.len(), 1, "what waits is sent");
        let (number, bytes) = guest.request(Kind::Read, b"key\0");
        guest.put(&bytes);
        guest.signal();
        host.settle();
        assert_ne!(guest.page.load(2048), guest.page.load(2052), "not taken");

        dom0.write("/tool/x", "y");
        dom0.watch("@releaseDomain", "gone");
        host.xen.destroy(DomId::new(6));
        assert_eq!(dom0.take_events(), [event("@releaseDomain", "gone")]);
        dom0.build(7);
        dom0.ask_strings(Kind::Release, &["7"]).unwrap();

        host.xen.take_memory(90);
        dom0.write("/tool/x", "y");
        guest.drain();
        assert_eq!(guest.replies.last().unwrap().request, number);
        assert_eq!(host.lazy_spells(), 0);
    }

    #[test]
    fn a_request_may_come_one_byte_at_a_time() {
        let (host, mut dom0) = start();
        let mut guest = dom0.build(5);
        let (number, bytes) = guest.request(Kind::Write, b"key\0value");
        for byte in bytes {
            assert_eq!(guest.put(&[byte]), 1);
            guest.signal();
            host.settle();
        }
        guest.drain();
        assert_eq!(guest.replies[0].request, number);
        assert_eq!(guest.read("key"), Ok("value".into()));
    }

    #[test]
    fn a_reply_may_be_taken_one_byte_at_a_time() {
        let (host, mut dom0) = start();
        let mut guest = dom0.build(5);
        let value = "v".repeat(2000);
        guest.write("key", &value);
        let (_, bytes) = guest.request(Kind::Read, b"key\0");
        guest.put(&bytes);
        guest.signal();
        host.settle();
        while guest.take(1) == 1 {
            guest.signal();
            host.settle();
        }
        assert_eq!(guest.replies[0].result, Ok(value.into_bytes()));
    }

    #[test]
    fn requests_and_replies_longer_than_the_ring_pass() {
        let (_, mut dom0) = start();
        let longest = "x".repeat(4096 - "/long\0".len());
        dom0.write("/long", &longest);
        assert_eq!(dom0.read("/long"), Ok(longest));
    }

    #[test]
    fn a_full_ring_of_requests_is_answered_in_order() {
        let (host, mut dom0) = start();
        let mut expected = Vec::new();
        loop {
            let (number, bytes) = dom0.request(Kind::Read, b"/tool\0");
            expected.push(number);
            if dom0.put(&bytes) < bytes.len() {
                break;
            }
        }
        assert_eq!(dom0.page.load(2052) - dom0.page.load(2048), 1024);
        dom0.signal();
        host.settle();
        dom0.drain();
        let answered: Vec<_> = dom0.replies.iter().map(|reply| reply.request).collect();
        assert_eq!(answered, expected[..expected.len() - 1]);
    }

    #[test]
    fn a_request_may_need_several_answers_of_the_machine() {
        let (host, mut dom0) = start();
        for id in 5..8 {
            host.xen.create(DomId::new(id));
        }
        dom0.ask_strings(Kind::SetPerms, &["/tool", "n0", "r5", "r6", "r7"])
            .unwrap();
        host.xen.destroy(FIVE);
        dom0.ask_strings(Kind::SetPerms, &["/tool", "n0", "r5"])
            .unwrap();
    }

    #[test]
    fn one_event_tells_of_all_that_a_turn_moved() {
        let (host, mut dom0) = start();
        for _ in 0..3 {
            let (_, bytes) = dom0.request(Kind::Read, b"/tool\0");
            dom0.put(&bytes);
        }
        dom0.signal();
        assert_eq!(host.turn(), Progress::Idle);
        assert_eq!(dom0.take_signals(), 1);
        assert_eq!(host.turn(), Progress::Idle);
        assert_eq!(dom0.take_signals(), 0, "nothing moved");
    }

    /// Who watches for work that does not end counts from there.
    #[test]
    fn each_round_is_told_of_however_long_there_is_work() {
        let (host, mut dom0) = start();
        let (works, collections) = (host.xen.works(), host.xen.collections());
        for _ in 0..50 {
            let (_, bytes) = dom0.request(Kind::Read, b"/tool\0");
            dom0.put(&bytes);
        }
        dom0.signal();
        host.settle();
        let begun = host.xen.works() - works;
        assert!(begun > 2);
        assert_eq!(
            begun * 2,
            host.xen.collections() - collections,
            "two a round"
        );
    }

    /// Linux sends no event for bytes that it puts behind others that are not consumed yet.
    #[test]
    fn what_comes_while_a_ring_is_looked_at_needs_no_event() {
        let (host, mut dom0) = start();
        let (number, bytes) = dom0.request(Kind::Read, b"/tool\0");
        let (early, late) = bytes.split_at(7);
        dom0.put(early);
        dom0.signal();
        let (writer, late) = (Guest::new(&host, DOM0, dom0.port), late.to_vec());
        host.xen.after_collection(2, move || {
            writer.put(&late);
        });
        host.settle();
        dom0.take(usize::MAX);
        assert_eq!(dom0.replies.last().unwrap().request, number);
    }

    /// Linux sends no event for replies that it takes unless it finds the ring full.
    #[test]
    fn room_that_comes_while_a_ring_is_looked_at_needs_no_event() {
        let (host, mut dom0) = start();
        dom0.write("/long", &"x".repeat(1500));
        let (_, bytes) = dom0.request(Kind::Read, b"/long\0");
        dom0.put(&bytes);
        dom0.signal();
        let page = dom0.page.clone();
        // The request is read after collection 1 and run after 2, the ring is filled after 3.
        host.xen
            .after_collection(4, move || page.store(2056, page.load(2060)));
        host.settle();
        assert_eq!(dom0.take(usize::MAX), 16 + 1500 - 1024);
    }

    #[test]
    fn a_guest_that_never_reads_hinders_nobody_and_finds_all_replies_later() {
        let (host, mut dom0) = start();
        let mut lazy = dom0.build(5);
        let mut other = dom0.build(6);
        let mut sent = 0_u32;
        for _ in 0..1000 {
            let (number, bytes) = lazy.request(Kind::Directory, b"/\0");
            if lazy.put(&bytes) < bytes.len() {
                break;
            }
            sent = number;
            lazy.signal();
            host.settle();
        }
        assert!((40..1000).contains(&sent), "{sent} requests were taken");
        other.write("key", "value");
        dom0.write("/tool/x", "y");

        lazy.drain();
        assert!(lazy.replies.iter().map(|reply| reply.request).eq(1..=sent));
    }

    /// T-RING-31.
    #[test]
    fn events_without_data_cost_a_look_and_no_more() {
        let (host, mut dom0) = start();
        let guest = dom0.build(5);
        for _ in 0..10_000 {
            guest.signal();
            assert_eq!(host.turn(), Progress::Idle);
        }
        assert_eq!(guest.take_signals(), 0);
    }

    #[test]
    fn more_guests_than_a_round_has_looks_are_all_served_and_the_privileged_domain_first() {
        let (host, mut dom0) = start();
        let ids = 10..10 + 3 * u16::try_from(LINKS_A_ROUND).unwrap();
        let mut guests: Vec<_> = ids.map(|id| dom0.build(id)).collect();
        for guest in &mut guests {
            let (_, bytes) = guest.request(Kind::Directory, b"/\0");
            guest.put(&bytes);
            guest.signal();
        }
        let (_, bytes) = dom0.request(Kind::Read, b"/tool\0");
        dom0.put(&bytes);
        dom0.signal();
        let page = dom0.page.clone();
        let unanswered = guests.last().unwrap().page.clone();
        host.xen.after_collection(2, move || {
            assert_eq!(
                page.load(2052),
                page.load(2048),
                "served in the first round"
            );
            assert_ne!(unanswered.load(2052), unanswered.load(2048));
        });
        host.settle();
        for guest in &mut guests {
            guest.take(usize::MAX);
            assert_eq!(guest.replies.len(), 1);
        }
    }
}

mod faults {
    use super::*;

    #[test]
    fn impossible_indices_stop_one_connection_and_its_domain_stays_introduced() {
        for index in [2052, 2060] {
            let (host, mut dom0) = start();
            let mut guest = dom0.build(5);
            guest.watch("/local/domain/5", "mine");
            let (_, bytes) = guest.request(Kind::Directory, b"/\0");
            guest.put(&bytes);
            let impossible = guest.page.load(index).wrapping_add(1025);
            guest.page.store(index, impossible);
            guest.signal();
            guest.take_signals();
            host.settle();
            assert_eq!(guest.error_word(), 2);
            assert_eq!(guest.take_signals(), 1);

            let before = [2048, 2060].map(|at| guest.page.load(at));
            dom0.write("/local/domain/5/key", "event for the watch");
            guest.signal();
            host.pass(2 * RING_SCAN);
            assert_eq!(
                [2048, 2060].map(|at| guest.page.load(at)),
                before,
                "left alone"
            );
            assert!(dom0.is_introduced(FIVE));
            assert_eq!((host.xen.mapped(), host.xen.bound()), (2, 2));
        }
    }

    /// More events than one writer may have unread by others.
    #[test]
    fn a_stopped_connection_gets_no_events_that_would_stall_their_cause() {
        let (host, mut dom0) = start();
        let mut guest = dom0.build(5);
        let mut writer = dom0.build(6);
        dom0.ask_strings(Kind::SetPerms, &["/local/domain/6", "n6", "r5"])
            .unwrap();
        guest.watch("/local/domain/6", "theirs");
        guest.page.store(2052, 5000);
        guest.signal();
        host.settle();
        for n in 0..50 {
            writer.write(&format!("key{n}"), "value");
        }
    }

    #[test]
    fn a_request_too_long_stops_one_connection_and_its_domain_stays_introduced() {
        let (host, mut dom0) = start();
        let mut guest = dom0.build(5);
        dom0.watch("@releaseDomain", "gone");
        let (_, mut bytes) = guest.request(Kind::Read, b"key\0");
        bytes[12..16].copy_from_slice(&4097_u32.to_le_bytes());
        guest.put(&bytes);
        guest.signal();
        host.settle();
        assert_eq!(guest.error_word(), 3);
        assert_eq!(guest.take(usize::MAX), 0, "no reply");
        assert!(dom0.is_introduced(FIVE));
        assert_eq!(dom0.take_events(), []);

        host.xen.destroy(FIVE);
        assert_eq!(dom0.take_events(), [event("@releaseDomain", "gone")]);
    }

    #[test]
    fn the_error_word_is_only_for_those_who_were_offered_it() {
        let (host, mut dom0) = start();
        host.xen.create(FIVE);
        dom0.ask_strings(Kind::SetFeature, &["5", "13"]).unwrap();
        let port = host.xen.allocate_port(FIVE);
        dom0.try_introduce(FIVE, port).unwrap();
        let guest = Guest::new(&host, FIVE, port);
        assert_eq!(guest.page.load(2064), 13);
        guest.page.store(2052, 2000);
        guest.signal();
        host.settle();
        assert_eq!(guest.error_word(), 0);
    }

    /// T-RING-21 to T-RING-24.
    #[test]
    fn a_reconnection_starts_anew_from_any_state() {
        for (request, fault) in [(1, false), (2, false), (u32::MAX, true)] {
            let (host, mut dom0) = start();
            let mut guest = dom0.build(5);
            guest.watch("/local/domain/5", "old life");
            let (_, bytes) = guest.request(Kind::Directory, b"/\0");
            guest.put(&bytes);
            guest.signal();
            host.settle();
            guest.put(&[1, 2, 3]);
            if fault {
                guest.page.store(2052, 5000);
                guest.signal();
                host.settle();
                assert_eq!(guest.error_word(), 2);
            }
            guest.take_signals();

            guest.page.store(2068, request);
            guest.signal();
            host.settle();
            let words = [2048, 2052, 2056, 2060, 2068, 2072].map(|at| guest.page.load(at));
            assert_eq!(words, [0; 6]);
            assert_eq!(guest.take_signals(), 1);

            dom0.write("/local/domain/5/key", "value");
            assert_eq!(guest.take_events(), [], "the old watch is gone");
            assert!(guest.replies.is_empty());
            guest.watch("/local/domain/5", "new life");
        }
    }

    #[test]
    fn who_was_not_offered_reconnection_cannot_have_it() {
        let (host, mut dom0) = start();
        host.xen.create(FIVE);
        dom0.ask_strings(Kind::SetFeature, &["5", "14"]).unwrap();
        let port = host.xen.allocate_port(FIVE);
        dom0.try_introduce(FIVE, port).unwrap();
        let mut guest = Guest::new(&host, FIVE, port);
        guest.page.store(2068, 1);
        assert!(guest.is_served());
        assert_eq!(guest.page.load(2068), 1);
    }

    /// T-RING-33.
    #[test]
    fn a_guest_that_closes_its_port_is_served_by_the_ring_scan() {
        let (host, mut dom0) = start();
        let mut guest = dom0.build(5);
        let (_, bytes) = guest.request(Kind::Directory, b"/\0");
        host.xen.close_remote(FIVE, guest.port);
        guest.put(&bytes);
        host.settle();
        assert_eq!(guest.take(usize::MAX), 0);
        host.pass(2 * RING_SCAN);
        guest.take(usize::MAX);
        assert_eq!(guest.replies.len(), 1);
    }
}

mod introduction {
    use super::*;

    #[test]
    fn a_refusal_of_xen_leaves_nothing_behind_and_is_not_for_ever() {
        for call in [Call::Map, Call::Bind, Call::Domain] {
            let (host, mut dom0) = start();
            host.xen.create(FIVE);
            let port = host.xen.allocate_port(FIVE);
            host.xen.refuse(call, Some(XenError(22)));
            assert_eq!(
                dom0.try_introduce(FIVE, port),
                Err("EINVAL".into()),
                "{call:?}"
            );
            assert!(!dom0.is_introduced(FIVE));
            assert_eq!((host.xen.mapped(), host.xen.bound()), (1, 1));

            host.xen.refuse(call, None);
            dom0.try_introduce(FIVE, port).unwrap();
            assert!(dom0.is_introduced(FIVE));
        }
    }

    /// T-INTRO-03, T-INTRO-06.
    #[test]
    fn who_is_not_there_or_dying_is_not_introduced() {
        let (host, mut dom0) = start();
        let refused = Err("EINVAL".into());
        assert_eq!(dom0.try_introduce(FIVE, EvtchnPort(1)), refused);
        host.xen.create(FIVE);
        assert_eq!(dom0.try_introduce(FIVE, EvtchnPort(99)), refused);
        let port = host.xen.allocate_port(FIVE);
        host.xen.change(FIVE, |info| info.dying = true);
        assert_eq!(dom0.try_introduce(FIVE, port), refused);
        assert_eq!((host.xen.mapped(), host.xen.bound()), (1, 1));
    }

    #[test]
    fn a_port_in_the_page_comes_before_the_toolstacks() {
        let (host, mut dom0) = start();
        host.xen.create(FIVE);
        let named = host.xen.allocate_port(FIVE);
        let own = host.xen.allocate_port(FIVE);
        host.xen.page(FIVE).store(2076, own.0);
        dom0.try_introduce(FIVE, named).unwrap();
        let mut guest = Guest::new(&host, FIVE, own);
        assert!(guest.is_served());
        assert_eq!(host.xen.take_events(FIVE, named), 0);
    }

    #[test]
    fn again_it_is_a_new_life_with_a_new_port_and_the_same_mapping() {
        let (host, mut dom0) = start();
        let mut guest = dom0.build(5);
        dom0.watch("@introduceDomain", "new");
        guest.watch("/local/domain/5", "old life");
        guest.put(&[1, 2, 3]);
        guest.take_signals();
        let old = guest.port;
        guest.port = host.xen.allocate_port(FIVE);
        host.xen.refuse(Call::Map, Some(XenError(3)));
        dom0.try_introduce(FIVE, guest.port).unwrap();
        assert_eq!((host.xen.mapped(), host.xen.bound()), (2, 2));
        assert_eq!(
            [2048, 2052, 2056, 2060].map(|at| guest.page.load(at)),
            [0; 4]
        );
        assert_eq!(guest.take_signals(), 1);
        assert_eq!(host.xen.take_events(FIVE, old), 0);
        guest.write("key", "value");
        assert_eq!(guest.take_events(), [], "the old watch is gone");
        assert_eq!(dom0.take_events(), []);
    }

    #[test]
    fn it_revives_a_stopped_connection_through_the_same_port() {
        let (host, mut dom0) = start();
        let mut guest = dom0.build(5);
        guest.page.store(2052, 5000);
        guest.signal();
        host.settle();
        assert_eq!(guest.error_word(), 2);
        dom0.try_introduce(FIVE, guest.port).unwrap();
        assert_eq!(guest.error_word(), 0);
        guest.write("key", "value");
    }

    /// More events than one writer may have unread by others.
    #[test]
    fn after_a_failed_one_the_domain_is_introduced_but_has_nothing_open_until_the_next() {
        let (host, mut dom0) = start();
        let mut guest = dom0.build(5);
        let mut writer = dom0.build(6);
        dom0.ask_strings(Kind::SetPerms, &["/local/domain/6", "n6", "r5"])
            .unwrap();
        guest.watch("/local/domain/6", "theirs");
        dom0.watch("@releaseDomain", "gone");
        assert!(dom0.try_introduce(FIVE, EvtchnPort(99)).is_err());
        assert_eq!((host.xen.mapped(), host.xen.bound()), (2, 2));
        assert_eq!(guest.error_word(), 1);
        assert!(dom0.is_introduced(FIVE));
        for n in 0..50 {
            writer.write(&format!("key{n}"), "value");
        }

        dom0.try_introduce(FIVE, guest.port).unwrap();
        assert_eq!((host.xen.mapped(), host.xen.bound()), (3, 3));
        assert_eq!(guest.error_word(), 0);
        guest.write("key", "value");
        writer.write("key", "value");
        assert_eq!(guest.take_events(), [], "the old watch is gone");

        assert!(dom0.try_introduce(FIVE, EvtchnPort(99)).is_err());
        host.xen.destroy(FIVE);
        assert_eq!(dom0.take_events(), [event("@releaseDomain", "gone")]);
        assert!(!dom0.is_introduced(FIVE));
    }

    #[test]
    fn after_a_failed_one_a_domain_can_be_released() {
        let (host, mut dom0) = start();
        let guest = dom0.build(5);
        host.xen.refuse(Call::Domain, Some(XenError(11)));
        assert!(dom0.try_introduce(FIVE, guest.port).is_err());
        host.xen.refuse(Call::Domain, None);
        dom0.ask_strings(Kind::Release, &["5"]).unwrap();
        assert!(!dom0.is_introduced(FIVE));
        assert_eq!((host.xen.mapped(), host.xen.bound()), (1, 1));
        dom0.try_introduce(FIVE, guest.port).unwrap();
    }

    #[test]
    fn release_lets_go_of_ring_and_port() {
        let (host, mut dom0) = start();
        let guest = dom0.build(5);
        guest.signal();
        dom0.ask_strings(Kind::Release, &["5"]).unwrap();
        assert_eq!((host.xen.mapped(), host.xen.bound()), (1, 1));
        assert!(!dom0.is_introduced(FIVE));
        dom0.try_introduce(FIVE, guest.port).unwrap();
        assert_eq!((host.xen.mapped(), host.xen.bound()), (2, 2));
    }
}

mod death {
    use super::*;

    #[test]
    fn a_dead_domain_is_let_go_and_told_of() {
        let (host, mut dom0) = start();
        let mut guest = dom0.build(5);
        guest.write("key", "value");
        dom0.watch("@releaseDomain", "gone");
        host.xen.destroy(FIVE);
        assert_eq!(dom0.take_events(), [event("@releaseDomain", "gone")]);
        assert_eq!((host.xen.mapped(), host.xen.bound()), (1, 1));
        assert_eq!(dom0.read("/local/domain/5/key"), Err("ENOENT".into()));
        assert!(!dom0.is_introduced(FIVE));
    }

    /// Our own mapping may be all that keeps it.
    #[test]
    fn a_dead_domain_that_is_still_there_is_let_go() {
        let (host, mut dom0) = start();
        dom0.build(5);
        host.xen.change(FIVE, |info| info.dying = true);
        host.settle();
        assert_eq!(host.xen.mapped(), 2, "dying is not dead");
        assert!(dom0.is_introduced(FIVE));
        host.xen.change(FIVE, |info| info.dead = true);
        host.settle();
        assert_eq!((host.xen.mapped(), host.xen.bound()), (1, 1));
        assert!(!dom0.is_introduced(FIVE));
    }

    /// T-DOM-13.
    #[test]
    fn shutdown_and_death_are_told_apart_and_each_once() {
        let (host, mut dom0) = start();
        dom0.build(5);
        dom0.watch("@releaseDomain", "gone");
        let told = [event("@releaseDomain", "gone")];
        for _ in 0..2 {
            host.xen.change(FIVE, |info| info.shutdown = true);
            assert_eq!(dom0.take_events(), told);
            host.pass(3 * POLL_INTERVAL);
            assert_eq!(dom0.take_events(), []);
            assert_eq!(host.xen.mapped(), 2);
            host.xen.change(FIVE, |info| info.shutdown = false);
            dom0.ask_strings(Kind::Resume, &["5"]).unwrap();
        }
        host.xen.destroy(FIVE);
        assert_eq!(dom0.take_events(), told);
    }

    /// T-HV-12.
    #[test]
    fn a_death_without_interrupt_is_found_slowly() {
        let (host, mut dom0) = start();
        dom0.build(5);
        dom0.watch("@releaseDomain", "gone");
        host.xen.lose_domain_exceptions(true);
        host.xen.destroy(FIVE);
        assert_eq!(dom0.take_events(), []);
        host.pass(2 * POLL_INTERVAL);
        assert_eq!(dom0.take_events(), [event("@releaseDomain", "gone")]);
        assert_eq!((host.xen.mapped(), host.xen.bound()), (1, 1));
    }

    #[test]
    fn one_batch_of_deaths_is_one_plain_event() {
        let (host, mut dom0) = start();
        for id in 5..100 {
            dom0.build(id);
        }
        dom0.watch("@releaseDomain", "gone");
        for id in 5..100 {
            host.xen.destroy(DomId::new(id));
        }
        assert_eq!(dom0.take_events(), [event("@releaseDomain", "gone")]);
        assert_eq!((host.xen.mapped(), host.xen.bound()), (1, 1));
    }

    /// T-HV-10: degraded, not ended.
    #[test]
    fn while_xen_does_not_tell_nobody_is_dead() {
        let (host, mut dom0) = start();
        let mut guest = dom0.build(5);
        host.xen.refuse(Call::Domain, Some(XenError(11)));
        host.xen.change(FIVE, |info| info.shutdown = true);
        host.pass(3 * POLL_INTERVAL);
        guest.write("key", "value");
        host.xen.destroy(FIVE);
        host.pass(3 * POLL_INTERVAL);
        assert!(dom0.is_introduced(FIVE));
        host.xen.refuse(Call::Domain, None);
        host.pass(2 * POLL_INTERVAL);
        assert!(!dom0.is_introduced(FIVE));
    }

    /// T-HV-03.
    #[test]
    fn a_page_that_cannot_be_unmapped_keeps_nothing_else() {
        let (host, mut dom0) = start();
        dom0.build(5);
        host.xen.refuse(Call::Unmap, Some(XenError(1)));
        host.xen.destroy(FIVE);
        host.settle();
        assert_eq!((host.xen.mapped(), host.xen.bound()), (2, 1));
        assert!(!dom0.is_introduced(FIVE));
        dom0.build(5).write("key", "value");
    }

    /// T-DOM-03: the interrupt is late.
    #[test]
    fn a_successor_introduced_early_takes_nothing_over() {
        let (host, mut dom0) = start();
        let mut old = dom0.build(5);
        old.write("key", "the old one's");
        host.xen.lose_domain_exceptions(true);
        host.xen.create(FIVE);
        let port = host.xen.allocate_port(FIVE);
        dom0.try_introduce(FIVE, port).unwrap();
        assert_eq!((host.xen.mapped(), host.xen.bound()), (2, 2));
        assert_eq!(dom0.read("/local/domain/5/key"), Err("ENOENT".into()));
        let mut new = Guest::new(&host, FIVE, port);
        assert!(new.is_served());
        host.xen.lose_domain_exceptions(false);
        host.pass(3 * POLL_INTERVAL);
        assert!(
            dom0.is_introduced(FIVE),
            "the old one's death is not the new one's"
        );
    }

    /// hostility.md R13: the domain ends after the ports were collected, and a request about its successor is read in the same round.
    #[test]
    fn a_request_is_not_run_before_the_deaths_that_precede_it() {
        let (host, mut dom0) = start();
        dom0.build(5);
        let (_, bytes) = dom0.request(Kind::IsDomainIntroduced, b"5\0");
        dom0.signal();
        let (xen, writer) = (host.xen.clone(), Guest::new(&host, DOM0, dom0.port));
        host.xen.after_collection(1, move || {
            xen.create(FIVE);
            writer.put(&bytes);
        });
        host.settle();
        dom0.take(usize::MAX);
        assert_eq!(dom0.replies[0].result, Ok(b"F\0".to_vec()));
    }

    #[test]
    fn a_domain_may_die_in_the_middle_of_everything() {
        let (host, mut dom0) = start();
        let mut guest = dom0.build(5);
        guest.watch("/local/domain/5", "mine");
        for _ in 0..50 {
            let (_, bytes) = guest.request(Kind::Directory, b"/local/domain\0");
            guest.put(&bytes);
        }
        guest.signal();
        assert_eq!(host.turn(), Progress::More);
        host.xen.destroy(FIVE);
        host.settle();
        assert_eq!((host.xen.mapped(), host.xen.bound()), (1, 1));
        dom0.build(5).write("key", "value");
    }
}

mod hints {
    use super::*;

    /// T-HV-09.
    #[test]
    fn a_lost_event_is_made_up_for_by_the_ring_scan() {
        let (host, mut dom0) = start();
        let mut guest = dom0.build(5);
        let (_, bytes) = guest.request(Kind::Directory, b"/\0");
        guest.put(&bytes);
        host.settle();
        assert_eq!(guest.take(usize::MAX), 0);
        host.pass(2 * RING_SCAN);
        guest.take(usize::MAX);
        assert_eq!(guest.replies.len(), 1);
    }

    #[test]
    fn the_ring_scan_can_be_faster_or_off() {
        for (options, after, served) in [
            ("ring-scan=1", Duration::from_secs(2), true),
            ("ring-scan=-1", 10 * RING_SCAN, false),
        ] {
            let (xen, port) = machine();
            let host = start_on(&xen, options).unwrap();
            host.settle();
            let mut dom0 = Guest::new(&host, DOM0, port);
            let (_, bytes) = dom0.request(Kind::Read, b"/\0");
            dom0.put(&bytes);
            host.pass(after);
            assert_eq!(dom0.take(usize::MAX) > 0, served, "{options}");
            assert_eq!(host.xen.time(), Instant::default().after(after));
        }
    }

    #[test]
    fn sleep_ends_at_the_nearest_deadline_or_at_once() {
        let (host, dom0) = start();
        let before = host.xen.time();
        dom0.signal();
        host.sleep();
        assert_eq!(host.xen.time(), before);
        host.settle();
        host.sleep();
        assert_eq!(host.xen.time().since(before), POLL_INTERVAL.min(RING_SCAN));
    }

    #[test]
    fn the_stores_own_deadlines_are_met() {
        let (host, mut dom0) = start();
        let mut guest = dom0.build(5);
        guest.watch("/local/domain/5", "mine");
        let (cons, prod) = (guest.page.load(2056), guest.page.load(2060));
        let full = prod.wrapping_sub(1024);
        guest.page.store(2056, full);
        host.xen.advance(Duration::from_secs(3));
        dom0.write("/local/domain/5/key", "value");
        let due = host.xen.time().after(Duration::from_secs(20));
        host.pass(Duration::from_secs(20));
        assert_eq!(host.xen.time(), due);
        guest.page.store(2056, cons);
        assert_eq!(guest.take_events(), [], "left unread for 20 s");
    }
}

mod start_up {
    use super::*;

    #[test]
    fn without_ring_or_port_of_the_privileged_domain_there_is_no_start() {
        let (xen, port) = machine();
        xen.refuse(Call::Map, Some(XenError(3)));
        let error = start_on(&xen, "").err().unwrap();
        assert_eq!(error, StartError::Map(DOM0, XenError(3)));
        xen.refuse(Call::Map, None);
        xen.close_remote(DOM0, port);
        let error = start_on(&xen, "").err().unwrap();
        assert_eq!(error, StartError::Bind(DOM0, port, XenError(22)));
        assert_eq!(
            error.to_string(),
            "cannot bind port 1 of domain 0, which --event names: Xen's error 22"
        );
    }

    #[test]
    fn without_knowledge_of_domains_there_is_service_still() {
        let (xen, port) = machine();
        xen.refuse(Call::BindDomainException, Some(XenError(16)));
        xen.refuse(Call::Domain, Some(XenError(13)));
        let host = start_on(&xen, "").unwrap();
        let mut dom0 = Guest::new(&host, DOM0, port);
        dom0.write("/tool/x", "y");
        xen.refuse(Call::Domain, None);
        dom0.build(5);
        xen.destroy(FIVE);
        host.pass(2 * POLL_INTERVAL);
        assert!(!dom0.is_introduced(FIVE));
    }
}

/// What a hostile domain does to its page, and what happens around it.
#[derive(Clone, Debug)]
enum Mischief {
    Word(usize, u32),
    Index(usize, u32),
    Bytes(usize, Vec<u8>),
    Request(u32, Vec<u8>),
    Signal,
    Turn,
    Wait,
    Introduce,
    Restart,
}

fn mischief() -> impl Strategy<Value = Mischief> {
    let word = prop::sample::select(&[2048, 2052, 2056, 2060, 2064, 2068, 2072, 2076][..]);
    let index = prop::sample::select(&[2048, 2052, 2056, 2060][..]);
    let bytes = prop::collection::vec(any::<u8>(), 0..300);
    prop_oneof![
        (word, any::<u32>()).prop_map(|(at, value)| Mischief::Word(at, value)),
        (index, 0u32..2000).prop_map(|(at, by)| Mischief::Index(at, by)),
        (0usize..2048, bytes.clone()).prop_map(|(at, bytes)| Mischief::Bytes(at, bytes)),
        (0u32..30, bytes).prop_map(|(kind, bytes)| Mischief::Request(kind, bytes)),
        Just(Mischief::Signal),
        Just(Mischief::Signal),
        Just(Mischief::Turn),
        Just(Mischief::Wait),
        Just(Mischief::Introduce),
        Just(Mischief::Restart),
    ]
}

proptest! {
    #[test]
    fn no_guest_hinders_the_others(deeds in prop::collection::vec(mischief(), 0..60)) {
        let (host, mut dom0) = start();
        let mut bystander = dom0.build(6);
        let mut hostile = dom0.build(5);
        for deed in deeds {
            match deed {
                Mischief::Word(at, value) => hostile.page.store(at, value),
                Mischief::Index(at, by) => hostile.page.store(at, hostile.page.load(at).wrapping_add(by)),
                Mischief::Bytes(at, bytes) => hostile.page.write(at, &bytes),
                Mischief::Request(kind, payload) => {
                    let (_, mut bytes) = hostile.request(Kind::Read, &payload);
                    bytes[..4].copy_from_slice(&kind.to_le_bytes());
                    hostile.page.write(0, &bytes);
                    for (at, value) in [(2048, 0), (2052, u32::try_from(bytes.len()).unwrap())] {
                        hostile.page.store(at, value);
                    }
                    hostile.signal();
                }
                Mischief::Signal => hostile.signal(),
                Mischief::Turn => { host.turn(); }
                Mischief::Wait => { host.settle(); host.sleep(); }
                Mischief::Introduce => drop(dom0.try_introduce(FIVE, hostile.port)),
                Mischief::Restart => hostile = dom0.build(5),
            }
        }
        host.settle();
        bystander.write("key", "value");
        prop_assert_eq!(bystander.read("key"), Ok("value".into()));
        dom0.write("/tool/x", "y");
        prop_assert_eq!(dom0.read("/tool/x"), Ok("y".into()));
        host.xen.destroy(FIVE);
        host.settle();
        prop_assert_eq!((host.xen.mapped(), host.xen.bound()), (2, 2));
    }
}
