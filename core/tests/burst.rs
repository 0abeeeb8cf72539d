//! Bursts of plain buffers: what joins them, what ends them, and what becomes of them.
#![cfg(not(loom))]

use std::sync::Arc;

use virtq_core::error::{Fault, QueueError};
use virtq_core::memory::{Cache, DirtyLog, Mapping, Memory, Region};
use virtq_core::queue::{DeviceQueue, DriverQueue, Setup};
use virtq_core::ring::{Batch, Burst, Piece, Reaped, feature};

const ORDERED: u64 = feature::IN_ORDER;
const PACKED: u64 = feature::RING_PACKED;
const KINDS: [u64; 4] = [0, ORDERED, PACKED, PACKED | ORDERED];
const SIZE: u16 = 8;
const DESC: u64 = 0x1000;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
const PAYLOAD: u64 = 0x4000;

struct Rig {
    memory: Arc<Memory>,
    driver: DriverQueue,
    device: DeviceQueue,
    burst: Burst,
}

fn memory() -> Memory {
    let mut memory = Memory::new();
    // Two regions that follow each other.
    for guest_addr in [0, 0x10000] {
        let mapping = Mapping::anonymous(0x10000).unwrap();
        let user_addr = mapping.ptr() as u64;
        let region = Region { guest_addr, size: 0x10000, user_addr, offset: 0, mapping };
        memory = memory.with_region(region).unwrap();
    }
    memory
}

impl Rig {
    fn new(features: u64) -> Self {
        let memory = Arc::new(memory());
        let setup = Setup {
            index: 0,
            size: SIZE,
            features,
            desc: DESC,
            driver: DRIVER,
            device: DEVICE,
            position: None,
        };
        let driver = DriverQueue::new(Arc::clone(&memory), setup.clone(), None).unwrap();
        let device = DeviceQueue::new(Arc::clone(&memory), setup).unwrap();
        Self { memory, driver, device, burst: Burst::new() }
    }

    fn offer(&mut self, count: usize, write: bool) {
        let at = |n| Piece { addr: PAYLOAD + 64 * n as u64, len: 64 };
        let pieces: Vec<_> = (0..count).map(at).collect();
        assert_eq!(self.driver.add_each(&pieces, write, 0), Ok(count));
        self.driver.publish();
    }

    fn gather(&mut self, write: bool) -> usize {
        self.device.gather(64, write, &mut self.burst).unwrap()
    }

    fn reap(&mut self) -> Vec<(u64, u32)> {
        let mut reaped: Vec<Reaped> = Vec::new();
        self.driver.reap(usize::MAX, &mut reaped).unwrap();
        reaped.iter().map(|one| (one.cookie, one.written)).collect()
    }

    /// The wish of the device (or the driver) to be notified from the second buffer on.
    fn poke_wish(&self, features: u64, of_device: bool) {
        let by_index = features & feature::EVENT_IDX != 0;
        let (flags, event) = if features & PACKED != 0 {
            let word = if by_index { 1 | 1 << 15 | 2 << 16 } else { 0u32 };
            let at = if of_device { DEVICE } else { DRIVER };
            return self.poke(at, &word.to_le_bytes());
        } else if of_device {
            (DEVICE, DEVICE + 4 + 8 * u64::from(SIZE))
        } else {
            (DRIVER, DRIVER + 4 + 2 * u64::from(SIZE))
        };
        self.poke(if by_index { event } else { flags }, &u16::from(by_index).to_le_bytes());
    }

    fn poke(&self, addr: u64, bytes: &[u8]) {
        self.memory.write(&mut Cache::default(), addr, bytes).unwrap();
    }
}

#[test]
fn what_is_gathered_is_not_taken_before_it_is_retired() {
    for features in KINDS {
        let mut rig = Rig::new(features);
        rig.offer(5, false);
        for _ in 0..2 {
            assert_eq!(rig.gather(false), 5);
            assert!(!rig.burst.is_blocked());
        }
        assert_eq!(rig.device.outstanding(), 0);
        rig.device.retire(&rig.burst, 3, false).unwrap();
        assert_eq!(rig.reap(), [(0, 0), (1, 0), (2, 0)]);
        let again = rig.device.retire(&rig.burst, 1, false);
        assert_eq!(again, Err(QueueError::Stale), "the ring has gone on");
        assert_eq!(rig.gather(false), 2);
        assert_eq!(rig.burst.segments()[0].addr, PAYLOAD + 3 * 64);
        rig.device.retire(&rig.burst, 2, false).unwrap();
        assert_eq!(rig.gather(false), 0);
        assert!(!rig.burst.is_blocked());
        assert_eq!(rig.reap(), [(3, 0), (4, 0)]);
        let (stats, ordered) = (rig.device.stats(), features & ORDERED != 0);
        assert_eq!((stats.buffers, stats.batches, stats.bytes_read), (5, 2, 320));
        assert_eq!(stats.used_entries, if ordered { 2 } else { 5 });
    }
}

#[test]
fn bursts_go_round_the_ring() {
    for features in KINDS {
        let mut rig = Rig::new(features);
        for lap in 0..40 {
            let count = 1 + lap % usize::from(SIZE);
            rig.offer(count, true);
            assert_eq!(rig.gather(true), count);
            for index in 0..count {
                rig.burst.set_written(index, 64);
            }
            rig.device.retire(&rig.burst, count, true).unwrap();
            let expected: Vec<_> = (0..count as u64).map(|cookie| (cookie, 64)).collect();
            assert_eq!(rig.reap(), expected);
        }
    }
}

#[test]
fn only_full_buffers_are_skipped() {
    for (features, merge) in KINDS.iter().flat_map(|kind| [(*kind, true), (*kind, false)]) {
        let mut rig = Rig::new(features);
        rig.device.set_merge(merge);
        rig.offer(5, true);
        assert_eq!(rig.gather(true), 5);
        for (index, written) in [64, 64, 10, 64, 0].into_iter().enumerate() {
            rig.burst.set_written(index, written);
        }
        rig.device.retire(&rig.burst, 5, true).unwrap();
        assert_eq!(rig.reap(), [(0, 64), (1, 64), (2, 10), (3, 64), (4, 0)]);
        let merged = merge && features & ORDERED != 0;
        assert_eq!(rig.device.stats().used_entries, if merged { 2 } else { 5 });
    }
}

#[test]
fn what_is_not_plain_ends_a_burst() {
    let one = |addr, len| Piece { addr, len };
    for features in KINDS {
        let chain = [one(PAYLOAD, 8), one(PAYLOAD + 8, 8)];
        let buffers: [(&[Piece], bool); 4] = [
            (&chain, false),
            (&[one(PAYLOAD, 64)], true),
            (&[one(0xfff0, 32)], false), // in two regions
            (&[one(PAYLOAD, 0)], false),
        ];
        for (pieces, write) in buffers {
            let mut rig = Rig::new(features);
            rig.driver.add(&[one(PAYLOAD, 64)], &[], 0).unwrap();
            let (readable, writable) = if write { (&[][..], pieces) } else { (pieces, &[][..]) };
            rig.driver.add(readable, writable, 1).unwrap();
            rig.driver.publish();
            assert_eq!(rig.gather(false), 1);
            rig.device.retire(&rig.burst, 1, false).unwrap();
            assert_eq!(rig.gather(false), 0);
            assert!(rig.burst.is_blocked());
            let mut batch = Batch::new();
            assert_eq!(rig.device.take(8, &mut batch), Ok(1));
            rig.offer(1, false);
            assert_eq!(rig.gather(false), 0, "one is outstanding");
            rig.device.complete_all(&batch).unwrap();
            rig.device.flush().unwrap();
            assert_eq!(rig.gather(false), 1);
        }
    }
}

#[test]
fn a_malformed_buffer_ends_a_burst_and_breaks_the_queue() {
    for features in KINDS {
        let mut rig = Rig::new(features);
        rig.offer(3, false);
        // The second descriptor leads nowhere.
        rig.poke(DESC + 16, &u64::MAX.to_le_bytes());
        assert_eq!(rig.gather(false), 1);
        rig.device.retire(&rig.burst, 1, false).unwrap();
        assert_eq!(rig.gather(false), 0);
        assert!(rig.burst.is_blocked());
        let fault = rig.device.take(8, &mut Batch::new()).unwrap_err();
        assert!(matches!(fault, QueueError::Broken(Fault::AddressOverflow { .. })), "{fault}");
        assert_eq!(rig.device.gather(8, false, &mut rig.burst), Err(fault));
    }
}

#[test]
fn a_jump_of_the_available_index_is_found() {
    for features in [0, ORDERED] {
        let mut rig = Rig::new(features);
        rig.poke(DRIVER + 2, &(SIZE + 1).to_le_bytes());
        assert_eq!(rig.gather(false), 0);
        assert!(rig.burst.is_blocked());
        let fault = rig.device.take(8, &mut Batch::new()).unwrap_err();
        assert!(matches!(fault, QueueError::Broken(Fault::AvailableJump { .. })), "{fault}");
    }
}

#[test]
fn the_same_head_twice_is_not_one_burst() {
    let mut rig = Rig::new(0);
    rig.offer(3, false);
    let heads: Vec<u8> = [0u16, 1, 0].iter().flat_map(|head| head.to_le_bytes()).collect();
    rig.poke(DRIVER + 4, &heads);
    assert_eq!(rig.gather(false), 2);
    assert!(rig.burst.is_blocked());
}

#[test]
fn with_a_dirty_log_nothing_is_gathered() {
    for features in KINDS {
        let mut rig = Rig::new(features);
        rig.offer(2, true);
        let log = DirtyLog::new(Mapping::anonymous(4096).unwrap());
        let logged = Arc::new(rig.memory.with_log(Some(log)));
        rig.device.set_memory(logged).unwrap();
        assert_eq!(rig.gather(true), 0);
        assert!(rig.burst.is_blocked(), "take() notes what is written");
    }
}

/// Entries for one buffer and entries for several, in every mixture, are reaped as what they are.
#[test]
fn single_entries_and_runs_are_reaped_alike() {
    for features in KINDS {
        for (mixture, each) in (0..64u32).flat_map(|mixture| [(mixture, 1), (mixture, 64)]) {
            let mut rig = Rig::new(features);
            for lap in 0..3u64 {
                // Six buffers; a set bit ends the burst, and so the used entry, behind one of them.
                rig.offer(6, false);
                let mut first = 0;
                for last in 0..6 {
                    if mixture & 1 << last != 0 || last == 5 {
                        assert_eq!(rig.gather(false), 6 - first);
                        rig.device.retire(&rig.burst, last + 1 - first, false).unwrap();
                        first = last + 1;
                    }
                }
                let mut reaped = Vec::new();
                // First in part, which may end inside a run.
                rig.driver.reap(1 + lap as usize, &mut reaped).unwrap();
                while rig.driver.reap(each, &mut reaped).unwrap() > 0 {}
                let cookies: Vec<_> = reaped.iter().map(|one| one.cookie).collect();
                assert_eq!(cookies, [0, 1, 2, 3, 4, 5], "{features:x} {mixture:b}");
                assert_eq!((rig.driver.free(), rig.driver.outstanding()), (SIZE.into(), 0));
            }
            assert_eq!(rig.driver.stats().used_entries, rig.device.stats().used_entries);
        }
    }
}

/// What is wrong behind single entries that are right is found in its turn.
#[test]
fn a_used_entry_that_is_wrong_is_found_behind_those_that_are_right() {
    for features in KINDS {
        for (id, written, each) in [(7, 0, 64), (0, 65, 64), (7, 0, 1), (0, 65, 1)] {
            let mut rig = Rig::new(features);
            rig.offer(4, true);
            let mut batch = Batch::new();
            assert_eq!(rig.device.take(4, &mut batch), Ok(4));
            rig.device.set_merge(false);
            for index in 0..4 {
                if index == 2 {
                    rig.device.spoil_next_used(id, written);
                }
                rig.device.complete(&batch, index, 0).unwrap();
                rig.device.flush().unwrap();
            }
            let mut reaped = Vec::new();
            while reaped.len() < 2 {
                rig.driver.reap(each, &mut reaped).unwrap();
            }
            assert_eq!(reaped.iter().map(|one| one.cookie).collect::<Vec<_>>(), [0, 1]);
            match rig.driver.reap(each, &mut Vec::new()) {
                Err(QueueError::Broken(Fault::UsedIdUnknown { id: found, .. })) => {
                    assert_eq!((id, found), (7, 2 ^ 7));
                }
                Err(QueueError::Broken(Fault::UsedLength { length, .. })) => {
                    assert_eq!((written, length), (65, 65));
                }
                other => panic!("{features:x}: {other:?}"),
            }
        }
    }
}

/// A notification that was not wanted at the first look is sent at the settled one, if it is wanted by
/// then, for all that was published in between.
#[test]
fn an_unsettled_no_is_asked_again() {
    for features in KINDS {
        for index in [0, feature::EVENT_IDX] {
            let mut rig = Rig::new(features | index);
            rig.driver.disable_calls();
            rig.device.disable_kicks();
            // What was there before anybody asked counts for itself.
            rig.offer(1, false);
            rig.driver.kick().unwrap();
            assert_eq!(rig.gather(false), 1);
            rig.device.retire(&rig.burst, 1, false).unwrap();
            rig.device.call().unwrap();
            rig.reap();

            rig.device.disable_kicks();
            rig.offer(2, false);
            assert_eq!(rig.driver.kick_soon(), Ok(false), "{features:x} {index:x}");
            // The device's wish: EVENT_IDX names the first of the two.
            rig.poke_wish(features | index, true);
            assert_eq!(rig.driver.kick(), Ok(true), "{features:x} {index:x}");
            assert_eq!(rig.driver.kick(), Ok(false));

            assert_eq!(rig.gather(false), 2);
            rig.driver.disable_calls();
            rig.device.retire(&rig.burst, 2, false).unwrap();
            assert_eq!(rig.device.call_soon(), Ok(false), "{features:x} {index:x}");
            rig.poke_wish(features | index, false);
            assert_eq!(rig.device.call_soon(), Ok(true), "{features:x} {index:x}");
            assert_eq!(rig.device.call(), Ok(false));
        }
    }
}

#[test]
fn all_of_a_burst_may_be_written_alike() {
    for features in KINDS {
        let mut rig = Rig::new(features);
        let pieces = [64, 64, 48, 64].map(|len| Piece { addr: PAYLOAD, len });
        assert_eq!(rig.driver.add_each(&pieces, true, 0), Ok(4));
        rig.driver.publish();
        assert_eq!(rig.gather(true), 4);
        assert_eq!([48, 49, 64, 65].map(|bytes| rig.burst.at_least(bytes)), [4, 2, 2, 0]);
        rig.burst.set_all_written(2, 50);
        let mut too_much = std::panic::AssertUnwindSafe(&mut rig.burst);
        assert!(std::panic::catch_unwind(move || too_much.set_all_written(3, 50)).is_err());
        rig.device.retire(&rig.burst, 2, true).unwrap();
        assert_eq!(rig.reap(), [(0, 50), (1, 50)]);
    }
}

/// Whatever the order: buffers that are added in turn, and used in turn, find their descriptors as
/// they left them, lap for lap.
#[test]
fn what_is_used_in_turn_finds_its_descriptor_again() {
    for features in [0, ORDERED] {
        let mut rig = Rig::new(features);
        let at = |slot: u64| Piece { addr: PAYLOAD + 64 * slot, len: 64 };
        let mut laps = Vec::new();
        let (mut added, mut reaped) = (0, 0);
        while laps.len() < 3 {
            // All are outstanding, then some are replaced, across the end of the ring too.
            while rig.driver.free() > 0 {
                let slot = added % u64::from(SIZE);
                assert_eq!(rig.driver.add_each(&[at(slot)], false, slot), Ok(1));
                added += 1;
            }
            rig.driver.publish();
            // What the device has not seen yet waits until the rest is served.
            let count = rig.gather(false).min(3);
            rig.device.retire(&rig.burst, count, false).unwrap();
            for (cookie, _) in rig.reap() {
                assert_eq!(cookie, reaped % u64::from(SIZE));
                reaped += 1;
            }
            if added % u64::from(SIZE) == 0 {
                let mut descriptors = vec![0; 16 * usize::from(SIZE)];
                rig.memory.read(&mut Cache::default(), DESC, &mut descriptors).unwrap();
                laps.push(descriptors);
            }
        }
        assert!(laps.iter().all(|lap| *lap == laps[0]), "{features:x}");
    }
}
