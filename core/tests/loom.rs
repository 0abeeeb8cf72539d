//! The publish and notify paths of all four kinds of ring under every interleaving that loom finds.
//!
//! Run by `make loom`; without `--cfg loom` this file is empty.
#![cfg(loom)]

use std::sync::Arc;

use loom::thread;
use virtq_core::area::Area;
use virtq_core::memory::{Mapping, Memory, Region};
use virtq_core::order::{AnyOrder, InOrder};
use virtq_core::ring::packed::{PackedAreas, PackedDevice, PackedDriver};
use virtq_core::ring::split::{SplitAreas, SplitDevice, SplitDriver};
use virtq_core::ring::{Batch, Burst, DeviceHalf, DriverHalf, Piece, feature};

const SIZE: u16 = 2;
const PIECE: [Piece; 1] = [Piece { addr: 0x1000, len: 64 }];

fn memory() -> Arc<Memory> {
    let mapping = Mapping::anonymous(0x2000).unwrap();
    let region = Region { guest_addr: 0, size: 0x2000, user_addr: 0, offset: 0, mapping };
    Arc::new(Memory::new().with_region(region).unwrap())
}

fn split_areas() -> SplitAreas {
    let [desc, avail, used] = SplitAreas::sizes(SIZE);
    SplitAreas { desc: Area::cells(desc), avail: Area::cells(avail), used: Area::cells(used) }
}

fn packed_areas() -> PackedAreas {
    let [ring, driver, device] = PackedAreas::sizes(SIZE);
    PackedAreas {
        ring: Area::cells(ring),
        driver: Area::cells(driver),
        device: Area::cells(device),
    }
}

fn check_buffers(batch: &Batch, from: usize) {
    for buffer in &batch.buffers[from..] {
        let segments = batch.readable(buffer);
        assert_eq!(buffer.readable, 64);
        assert_eq!(segments[0].addr, PIECE[0].addr, "seen before it was whole");
    }
}

/// With kicks switched off and one buffer behind them, the driver publishes a buffer while the
/// device looks, finds nothing, asks for kicks and looks again. Either the second look finds the
/// buffer, or the driver sees the wish: no wake-up is lost. What is taken is whole.
fn publish_and_kick(mut driver: impl DriverHalf, mut device: impl DeviceHalf + Send + 'static) {
    let mut batch = Batch::new();
    device.disable_kicks();
    driver.add(&PIECE, &[], 0).unwrap();
    driver.publish();
    driver.kick_wanted(true).unwrap();
    assert_eq!(device.take(2, &mut batch).unwrap(), 1);
    let taker = thread::spawn(move || {
        let taken = device.take(2, &mut batch).unwrap();
        check_buffers(&batch, 1);
        let waits = taken == 0 && !device.enable_kicks();
        (taken, waits, device, batch)
    });
    driver.add(&PIECE, &[], 1).unwrap();
    driver.publish();
    let kicked = driver.kick_wanted(true).unwrap();
    let (taken, waits, mut device, mut batch) = taker.join().unwrap();
    assert!(kicked || !waits, "the device waits for a kick that was not sent");
    assert_eq!(device.take(2, &mut batch).unwrap(), 1 - taken);
    check_buffers(&batch, 0);
}

/// The same for used buffers and calls.
fn use_and_call(mut driver: impl DriverHalf, mut device: impl DeviceHalf + Send + 'static) {
    driver.disable_calls();
    for cookie in 0..2 {
        driver.add(&[], &PIECE, cookie).unwrap();
    }
    driver.publish();
    let mut batch = Batch::new();
    assert_eq!(device.take(2, &mut batch).unwrap(), 2);
    device.complete(batch.buffers[0].token, 10).unwrap();
    device.flush().unwrap();
    device.call_wanted(true).unwrap();
    let mut reaped = Vec::new();
    assert_eq!(driver.reap(2, &mut reaped).unwrap(), 1);
    let user = thread::spawn(move || {
        device.complete(batch.buffers[1].token, 11).unwrap();
        device.flush().unwrap();
        device.call_wanted(true).unwrap()
    });
    let got = driver.reap(2, &mut reaped).unwrap();
    let waits = got == 0 && !driver.enable_calls();
    let called = user.join().unwrap();
    assert!(called || !waits, "the driver waits for a call that was not sent");
    driver.reap(2, &mut reaped).unwrap();
    let seen: Vec<_> = reaped.iter().map(|one| (one.cookie, one.written)).collect();
    assert_eq!(seen, [(0, 10), (1, 11)]);
}

/// A chain of two descriptors is seen whole, in a ring that it fills.
fn chain_is_seen_whole(mut driver: impl DriverHalf, mut device: impl DeviceHalf + Send + 'static) {
    let taker = thread::spawn(move || {
        let mut batch = Batch::new();
        device.take(1, &mut batch).unwrap();
        (device, batch)
    });
    driver.add(&PIECE, &PIECE, 0).unwrap();
    driver.publish();
    let (mut device, mut batch) = taker.join().unwrap();
    device.take(1, &mut batch).unwrap();
    assert_eq!(batch.buffers.len(), 1);
    let buffer = &batch.buffers[0];
    assert_eq!((buffer.readable, buffer.writable), (64, 64));
    assert!(batch.segments.iter().all(|segment| segment.addr == PIECE[0].addr));
}

/// Both at once: a batch of two is used with one flush while the driver looks.
fn batch_is_seen_whole(mut driver: impl DriverHalf, mut device: impl DeviceHalf + Send + 'static) {
    for cookie in 0..2 {
        driver.add(&[], &PIECE, cookie).unwrap();
    }
    driver.publish();
    let mut batch = Batch::new();
    device.take(2, &mut batch).unwrap();
    let user = thread::spawn(move || {
        device.complete(batch.buffers[0].token, 64).unwrap();
        device.complete(batch.buffers[1].token, 5).unwrap();
        device.flush().unwrap();
    });
    let mut reaped = Vec::new();
    driver.reap(2, &mut reaped).unwrap();
    assert_ne!(reaped.len(), 1, "one flush shows both or none");
    user.join().unwrap();
    driver.reap(2, &mut reaped).unwrap();
    let seen: Vec<_> = reaped.iter().map(|one| (one.cookie, one.written)).collect();
    assert_eq!(seen, [(0, 64), (1, 5)]);
}

/// Plain buffers are gathered while they are published, and used while the driver looks.
fn burst_is_seen_whole(mut driver: impl DriverHalf, mut device: impl DeviceHalf + Send + 'static) {
    let server = thread::spawn(move || {
        let mut burst = Burst::new();
        let gathered = device.gather(2, false, &mut burst).unwrap();
        for segment in burst.segments() {
            assert_eq!(
                (segment.addr, segment.len),
                (PIECE[0].addr, 64),
                "seen before it was whole"
            );
        }
        device.retire(&burst, gathered, false).unwrap();
        gathered
    });
    assert_eq!(driver.add_each(&[PIECE[0]; 2], false, 7).unwrap(), 2);
    driver.publish();
    let mut reaped = Vec::new();
    driver.reap(2, &mut reaped).unwrap();
    let gathered = server.join().unwrap();
    assert_ne!(gathered, 1, "one publication shows both or none");
    driver.reap(2, &mut reaped).unwrap();
    let seen: Vec<_> = reaped.iter().map(|one| one.cookie).collect();
    assert_eq!(seen, [7, 8][..gathered]);
}

macro_rules! split {
    ($order:ty, $features:expr, $check:ident) => {{
        let (areas, memory) = (split_areas(), memory());
        $check(
            SplitDriver::<$order>::new(SIZE, $features, areas.clone(), None, memory.clone(), None),
            SplitDevice::<$order>::new(SIZE, $features, areas, memory, None),
        );
    }};
}

macro_rules! packed {
    ($order:ty, $features:expr, $check:ident) => {{
        let (areas, memory) = (packed_areas(), memory());
        $check(
            PackedDriver::<$order>::new(SIZE, $features, areas.clone(), None, memory.clone(), None),
            PackedDevice::<$order>::new(SIZE, $features, areas, memory, None),
        );
    }};
}

macro_rules! tests {
    ($($name:ident: $layout:ident, $order:ty, $features:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn no_buffer_and_no_kick_is_lost() {
                loom::model(|| $layout!($order, $features, publish_and_kick));
            }

            #[test]
            fn no_used_buffer_and_no_call_is_lost() {
                loom::model(|| $layout!($order, $features, use_and_call));
            }

            #[test]
            fn a_chain_is_seen_whole() {
                loom::model(|| $layout!($order, $features, chain_is_seen_whole));
            }

            #[test]
            fn a_burst_is_seen_whole() {
                loom::model(|| $layout!($order, $features, burst_is_seen_whole));
            }

            #[test]
            fn a_batch_is_seen_whole() {
                loom::model(|| $layout!($order, $features, batch_is_seen_whole));
            }
        }
    )*};
}

tests! {
    split_any_order: split, AnyOrder, 0;
    split_in_order: split, InOrder, feature::IN_ORDER;
    packed_any_order: packed, AnyOrder, 0;
    packed_in_order: packed, InOrder, feature::IN_ORDER;
    split_any_order_event_idx: split, AnyOrder, feature::EVENT_IDX;
    split_in_order_event_idx: split, InOrder, feature::EVENT_IDX;
    packed_any_order_event_idx: packed, AnyOrder, feature::EVENT_IDX;
    packed_in_order_event_idx: packed, InOrder, feature::EVENT_IDX;
}
