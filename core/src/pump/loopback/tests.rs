//! Short runs of every kind of ring: what must come out whatever the machine does.

use std::time::Duration;

use super::*;

const KINDS: [u64; 4] =
    [0, feature::IN_ORDER, feature::RING_PACKED, feature::RING_PACKED | feature::IN_ORDER];
const DIRECTIONS: [Direction; 3] = [Direction::Send, Direction::Receive, Direction::Both];

fn setup(features: u64) -> LoopSetup {
    LoopSetup {
        features,
        size: 64,
        direction: Direction::Send,
        batch: 16,
        chain: 1,
        length: 64,
        indirect: false,
        event: false,
        regions: 1,
        depth: None,
        spread: false,
        pin: None,
    }
}

fn run(setup: LoopSetup) -> LoopReport {
    let mut ring = RingLoop::new(setup).unwrap();
    let mut report = LoopReport::default();
    // A machine that is busy elsewhere may give one of the threads nothing for a while.
    for _ in 0..500 {
        let more = ring.run(Duration::from_millis(4)).unwrap();
        report.buffers += more.buffers;
        report.batches += more.batches;
        report.used_entries += more.used_entries;
        report.kicks_sent += more.kicks_sent;
        report.calls_sent += more.calls_sent;
        report.bytes += more.bytes;
        report.verified += more.verified;
        if report.buffers > 1000 && report.verified > 0 {
            break;
        }
    }
    report
}

#[test]
fn every_kind_carries_what_was_sent() {
    for features in KINDS {
        for direction in DIRECTIONS {
            for (chain, indirect, length) in [(1, false, 64), (3, false, 100), (3, true, 7)] {
                let report =
                    run(LoopSetup { direction, chain, indirect, length, ..setup(features) });
                assert!(
                    report.buffers > 1000 && report.verified > 0,
                    "{features:#x} {direction:?}"
                );
                assert_eq!(report.bytes, report.buffers * u64::from(length));
                assert_eq!((report.kicks_sent, report.calls_sent), (0, 0));
            }
        }
    }
}

#[test]
fn every_kind_sleeps_and_is_woken() {
    for features in KINDS {
        for event_idx in [0, feature::EVENT_IDX] {
            for direction in DIRECTIONS {
                let report =
                    run(LoopSetup { direction, event: true, ..setup(features | event_idx) });
                assert!(report.buffers > 1000, "{features:#x} {direction:?}");
                assert!(report.kicks_sent > 0 && report.calls_sent > 0);
                if features & feature::IN_ORDER != 0 {
                    // A notification for a batch at most.
                    assert!(report.kicks_sent * 16 <= report.buffers + 64 * 16);
                }
            }
        }
    }
}

#[test]
fn buffers_may_lie_in_many_regions() {
    for features in KINDS {
        for regions in [2, 7, 100] {
            for direction in DIRECTIONS {
                let spread = regions > 2;
                let report = run(LoopSetup { direction, regions, spread, ..setup(features) });
                assert!(report.buffers > 1000, "{features:#x} {direction:?} {regions} regions");
            }
        }
    }
}

#[test]
fn no_more_are_outstanding_than_may_be() {
    for features in KINDS {
        for depth in [4, 16, 64] {
            let setup = LoopSetup { depth: Some(depth), batch: 4, ..setup(features) };
            let report = RingLoop::new(setup).unwrap().alternate(1).unwrap();
            // The driver adds what may be outstanding, sees all of it used, and adds it again.
            assert_eq!(report.buffers, depth as u64);
            assert_eq!(report.batches, 2 * depth as u64 / 4);
        }
    }
}

#[test]
fn what_makes_no_sense_is_named() {
    let valid = setup(0);
    for (wrong, word) in [
        (LoopSetup { size: 0, ..valid.clone() }, "size 0"),
        (LoopSetup { size: 48, ..valid.clone() }, "size 48"),
        (LoopSetup { chain: 0, ..valid.clone() }, "chain 0"),
        (LoopSetup { chain: 65, ..valid.clone() }, "chain 65"),
        (LoopSetup { batch: 0, ..valid.clone() }, "batch 0"),
        (LoopSetup { batch: 33, chain: 2, ..valid.clone() }, "batch 33"),
        (LoopSetup { length: 0, ..valid.clone() }, "length 0"),
        (LoopSetup { length: 1 << 17, ..valid.clone() }, "length 131072"),
        (LoopSetup { regions: 0, ..valid.clone() }, "regions 0"),
        (LoopSetup { depth: Some(0), ..valid.clone() }, "depth 0"),
        (LoopSetup { depth: Some(33), chain: 2, ..valid.clone() }, "depth 33"),
        (LoopSetup { depth: Some(7), batch: 8, ..valid.clone() }, "batch 8"),
        (LoopSetup { pin: Some((0, 1 << 20)), ..valid.clone() }, "processor 1048576"),
    ] {
        match RingLoop::new(wrong) {
            Err(QueueError::Invalid(text)) => assert!(text.contains(word), "{text}"),
            other => panic!("{word}: {:?}", other.err()),
        }
    }
}
