//! Rounds of the paths, one at a time and without a thread.

use std::sync::Arc;

use super::*;
use crate::error::{Fault, QueueError};
use crate::memory::{Iotlb, Mapping, Memory, Region};
use crate::pump::{Path, Wants};
use crate::queue::{DeviceQueue, DriverQueue, Setup};
use crate::ring::{Piece, Reaped, feature};

const KINDS: [u64; 4] =
    [0, feature::IN_ORDER, feature::RING_PACKED, feature::RING_PACKED | feature::IN_ORDER];
const SIZE: u16 = 128;
const ARENA: u64 = 0x10_0000;

/// A driver and a device queue.
struct Rig {
    memory: Arc<Memory>,
    driver: DriverQueue,
    queue: DeviceQueue,
    next: u64,
}

impl Rig {
    fn new(features: u64) -> Self {
        Self::sized(features, SIZE)
    }

    fn sized(features: u64, size: u16) -> Self {
        let mapping = Mapping::anonymous(64 << 20).unwrap();
        let user_addr = mapping.ptr() as u64;
        let region = Region { guest_addr: 0, size: mapping.len(), user_addr, offset: 0, mapping };
        let memory = Arc::new(Memory::new().with_region(region).unwrap());
        let setup = Setup {
            index: 0,
            size,
            features,
            desc: 0x1000,
            driver: 0x4000,
            device: 0x8000,
            position: None,
        };
        let driver = DriverQueue::new(Arc::clone(&memory), setup.clone(), None).unwrap();
        let queue = DeviceQueue::new(Arc::clone(&memory), setup).unwrap();
        Self { memory, driver, queue, next: ARENA }
    }

    fn place(&mut self, bytes: &[u8]) -> Piece {
        let piece = Piece { addr: self.next, len: bytes.len() as u32 };
        self.memory.write(&mut Default::default(), piece.addr, bytes).unwrap();
        self.next += bytes.len() as u64;
        piece
    }

    fn get(&self, addr: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.memory.read(&mut Default::default(), addr, &mut bytes).unwrap();
        bytes
    }

    /// Make a packet available, cut into descriptors of `cut` bytes.
    fn send(&mut self, frame: &[u8], cut: usize) {
        let packet = [&[0; HEADER_BYTES], frame].concat();
        let pieces: Vec<_> = packet.chunks(cut).map(|part| self.place(part)).collect();
        self.driver.add(&pieces, &[], 0).unwrap();
        self.driver.publish();
    }

    /// Make a receive buffer available; its cookie is its address.
    fn offer(&mut self, len: usize) {
        let piece = self.place(&vec![0xee; len]);
        self.driver.add(&[], &[piece], piece.addr).unwrap();
        self.driver.publish();
    }

    fn reap(&mut self) -> Vec<Reaped> {
        let mut reaped = Vec::new();
        self.driver.reap(SIZE.into(), &mut reaped).unwrap();
        reaped
    }

    /// The packets that came back, headers included, reassembled by `num_buffers`.
    fn received(&mut self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let reaped = self.reap();
        let mut buffers = reaped.iter().map(|one| self.get(one.cookie, one.written));
        while let Some(mut packet) = buffers.next() {
            let count = u16::from_le_bytes([packet[10], packet[11]]);
            for _ in 1..count {
                packet.extend(buffers.next().expect("the buffers of a packet come together"));
            }
            packets.push(packet);
        }
        packets
    }
}

fn frame(from: u8, to: u8, len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|at| (at * 7 + len) as u8).collect();
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, to]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, from]);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

fn made(sequence: u64, size: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame.extend(sequence.to_be_bytes());
    frame.extend((0..size).map(|at| (sequence as usize + at) as u8));
    frame.truncate(size);
    frame
}

fn sink(keep: usize) -> (Arc<SinkLink>, Port) {
    let link = Arc::new(SinkLink::new(keep));
    (Arc::clone(&link), Port::new(link))
}

fn source(size: usize, count: Option<u64>) -> Port {
    Port::new(Arc::new(SourceLink::new(size, count).unwrap()))
}

fn hub_port(hub: &Arc<Hub>) -> Port {
    Port::new(Arc::new(HubLink::new(Arc::clone(hub))))
}

#[test]
fn transmit_takes_a_batch_however_it_is_cut() {
    for features in KINDS {
        let (link, port) = sink(64);
        let (mut path, counters) = port.transmit(0).unwrap();
        let mut rig = Rig::new(features);
        let frames: Vec<_> = (0..30).map(|n| frame(1, 2, 14 + n * 50)).collect();
        for (n, frame) in frames.iter().enumerate() {
            let cut = [5, 12, 13, 400, 4000][n % 5].max(frame.len() / 3);
            rig.send(frame, cut);
        }
        assert_eq!(path.round(&mut rig.queue, true), Ok(30));
        assert_eq!(path.round(&mut rig.queue, true), Ok(0));
        assert_eq!(rig.reap().len(), 30);
        assert_eq!(link.last(), frames);
        let bytes = frames.iter().map(|frame| frame.len() as u64).sum();
        let expected = Tally { packets: 30, bytes, ..Tally::default() };
        assert_eq!(counters.read(), expected);
        assert_eq!(port.transmitted(), expected);
        let entries = if features & feature::IN_ORDER == 0 { 30 } else { 1 };
        assert_eq!(rig.queue.stats().used_entries, entries, "{features:#x}");
    }
}

#[test]
fn transmit_drops_what_is_no_packet() {
    for features in KINDS {
        let (link, port) = sink(8);
        let (mut path, counters) = port.transmit(0).unwrap();
        let mut rig = Rig::new(features);
        let good = frame(1, 2, 60);
        rig.send(&good, 4096);
        rig.send(&[0; 13], 4096); // One byte short of a frame.
        let short = rig.place(&[0; 5]);
        rig.driver.add(&[short], &[], 0).unwrap();
        let huge = rig.place(&vec![0; HEADER_BYTES + FRAME_BYTES_MAX + 1]);
        rig.driver.add(&[huge], &[], 0).unwrap();
        let packet = rig.place(&[&[0; HEADER_BYTES], &good[..]].concat());
        let writable = rig.place(&[0; 64]);
        rig.driver.add(&[packet], &[writable], 0).unwrap();
        rig.driver.add(&[], &[writable], 0).unwrap();
        let empty = Piece { addr: 0xffff_ffff_0000, len: 0 };
        rig.driver.add(&[empty], &[], 0).unwrap();
        rig.send(&good, 4096);
        assert_eq!(path.round(&mut rig.queue, true), Ok(8));
        assert!(rig.reap().iter().all(|one| one.written == 0));
        assert_eq!(link.last(), [good.clone(), good.clone()]);
        let tally = counters.read();
        assert_eq!((tally.packets, tally.dropped_malformed), (2, 6));
    }
}

#[test]
fn a_sink_notices_a_frame_that_is_not_what_a_source_makes() {
    for features in KINDS {
        let (_, port) = sink(0);
        let (mut path, counters) = port.transmit(0).unwrap();
        let mut rig = Rig::new(features);
        let mut wrong = made(7, 64);
        wrong[63] ^= 1;
        for frames in [[made(5, 64), made(6, 64)], [made(7, 64), wrong]] {
            for frame in frames {
                rig.send(&frame, 4096);
            }
            assert_eq!(path.round(&mut rig.queue, true), Ok(2));
        }
        let expected = Tally { packets: 3, bytes: 192, dropped_port_error: 1, ..Tally::default() };
        assert_eq!(counters.read(), expected);
    }
}

#[test]
fn transmit_discards_while_disabled() {
    let (link, port) = sink(8);
    let (mut path, counters) = port.transmit(0).unwrap();
    let mut rig = Rig::new(feature::IN_ORDER);
    rig.send(&frame(1, 2, 60), 4096);
    assert_eq!(path.round(&mut rig.queue, false), Ok(1));
    assert_eq!(rig.reap().len(), 1);
    assert!(link.last().is_empty());
    assert_eq!(counters.read(), Tally { dropped_disabled: 1, ..Tally::default() });
}

#[test]
fn receive_gives_each_packet_one_buffer() {
    for features in KINDS {
        let port = source(1000, Some(100));
        let (mut path, counters) = port.receive(0, false, None).unwrap();
        let mut rig = Rig::new(features);
        assert_eq!(path.round(&mut rig.queue, true), Ok(0));
        assert_eq!(path.wants(), Wants { buffers: true, source: false });
        for _ in 0..40 {
            rig.offer(1526);
        }
        assert_eq!(path.round(&mut rig.queue, true), Ok(40));
        assert_eq!(rig.queue.stats().used_entries, 40, "one for each, also in order");
        let mut packets = rig.received();
        for _ in 0..SIZE {
            rig.offer(1526);
        }
        assert_eq!(path.round(&mut rig.queue, true), Ok(60));
        assert_eq!(path.round(&mut rig.queue, true), Ok(0));
        assert_eq!(path.wants(), Wants { buffers: false, source: true });
        assert_eq!(rig.queue.outstanding(), 0, "what was not needed went back");
        packets.extend(rig.received());
        for (sequence, packet) in packets.iter().enumerate() {
            assert_eq!(packet[..HEADER_BYTES], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            assert_eq!(packet[HEADER_BYTES..], made(sequence as u64, 1000));
        }
        assert_eq!(packets.len(), 100);
        assert_eq!(counters.read(), Tally { packets: 100, bytes: 100_000, ..Tally::default() });
        assert_eq!(port.received(), counters.read());
    }
}

#[test]
fn numbers_that_a_path_has_not_used_go_to_the_next_one() {
    let port = source(100, None);
    let mut rig = Rig::new(feature::IN_ORDER);
    let mut round = |path: &mut ReceivePath, count: usize| {
        (0..count).for_each(|_| rig.offer(1526));
        assert_eq!(path.round(&mut rig.queue, true), Ok(count));
        rig.received().iter().map(|packet| packet[HEADER_BYTES..].to_vec()).collect::<Vec<_>>()
    };
    let all = |numbers: std::ops::Range<u64>| numbers.map(|n| made(n, 100)).collect::<Vec<_>>();
    let (mut first, _) = port.receive(0, false, None).unwrap();
    assert_eq!(round(&mut first, 5), all(0..5));
    drop(first);
    let (mut second, _) = port.receive(0, false, None).unwrap();
    assert_eq!(round(&mut second, 3), all(5..8), "nothing is left out");
    let (mut third, _) = port.receive(0, false, None).unwrap();
    let sequence = |frame: &[u8]| u64::from_be_bytes(frame[14..22].try_into().unwrap());
    let number = sequence(&round(&mut third, 1)[0]);
    assert!(number >= 8, "nothing comes twice");
    drop(second);
    assert_eq!(round(&mut third, 2), all(number + 1..number + 3), "and they go up");
}

#[test]
fn a_port_counts_what_paths_carried_that_are_gone() {
    let port = source(100, None);
    let mut carried = 0;
    for features in KINDS {
        let (mut path, counters) = port.receive(0, false, None).unwrap();
        let (_other, _) = port.receive(0, false, None).unwrap();
        let mut rig = Rig::new(features);
        (0..7).for_each(|_| rig.offer(1526));
        assert_eq!(path.round(&mut rig.queue, true), Ok(7));
        carried += 7;
        let expected = Tally { packets: carried, bytes: 100 * carried, ..Tally::default() };
        assert_eq!(port.received(), expected, "while it is there");
        drop(path);
        assert_eq!((port.received(), counters.read().packets), (expected, 7), "once it is gone");
    }
}

#[test]
fn receive_spreads_a_packet_over_buffers() {
    for features in KINDS {
        let port = source(1000, Some(20));
        let (mut path, counters) = port.receive(0, true, None).unwrap();
        let mut rig = Rig::new(features);
        for n in 0..usize::from(SIZE) {
            rig.offer([12, 300, 70, 513][n % 4]);
        }
        assert_eq!(path.round(&mut rig.queue, true), Ok(20));
        assert_eq!(rig.queue.outstanding(), 0, "what was not needed went back");
        let packets = rig.received();
        assert_eq!(packets.len(), 20);
        for (sequence, packet) in packets.iter().enumerate() {
            assert!(packet[10] >= 4);
            assert_eq!(packet[HEADER_BYTES..], made(sequence as u64, 1000));
        }
        assert_eq!(counters.read().packets, 20);
        assert!(rig.queue.stats().used_entries >= 20 * 4);
    }
}

#[test]
fn a_packet_waits_for_enough_buffers() {
    for features in KINDS {
        let port = source(1000, Some(2));
        let (mut path, _) = port.receive(0, true, None).unwrap();
        let mut rig = Rig::new(features);
        rig.offer(600);
        assert_eq!(path.round(&mut rig.queue, true), Ok(0));
        assert_eq!(path.wants(), Wants { buffers: true, source: false });
        assert!(!rig.queue.enable_kicks(), "else the worker would not sleep");
        assert!(rig.reap().is_empty());
        rig.offer(600);
        rig.offer(600);
        assert_eq!(path.round(&mut rig.queue, true), Ok(1));
        assert_eq!(path.round(&mut rig.queue, true), Ok(0));
        drop(path);
        let before = rig.queue.position();
        let after = rig.queue.stop();
        assert_ne!(before, after, "the third buffer is taken again by the next owner");
        let packets = rig.received();
        assert_eq!(packets.len(), 1);
        assert_eq!(packets[0][HEADER_BYTES..], made(0, 1000));

        let setup = Setup { position: Some(after), ..rig.queue.setup().clone() };
        rig.queue = DeviceQueue::new(Arc::clone(&rig.memory), setup).unwrap();
        rig.offer(600);
        let (mut path, _) = port.receive(0, true, None).unwrap();
        assert_eq!(path.round(&mut rig.queue, true), Ok(1));
        assert_eq!(rig.received()[0][HEADER_BYTES..], made(1, 1000), "none was lost");
    }
}

#[test]
fn memory_may_change_while_a_packet_waits() {
    let port = source(1000, Some(1));
    let (mut path, _) = port.receive(0, true, None).unwrap();
    let mut rig = Rig::new(feature::IN_ORDER);
    rig.offer(600);
    assert_eq!(path.round(&mut rig.queue, true), Ok(0));
    rig.queue.set_memory(Arc::new(rig.memory.as_ref().clone())).unwrap();
    rig.offer(600);
    assert_eq!(path.round(&mut rig.queue, true), Ok(1));
    assert_eq!(rig.received().len(), 1);
}

#[test]
fn a_packet_larger_than_the_ring_is_dropped() {
    for features in KINDS {
        let port = source(1000, Some(2));
        let (mut path, counters) = port.receive(0, true, None).unwrap();
        let mut rig = Rig::sized(features, 4);
        for _ in 0..4 {
            rig.offer(200);
        }
        assert_eq!(path.round(&mut rig.queue, true), Ok(2));
        assert_eq!(counters.read().dropped_no_room, 2);
        assert!(rig.reap().is_empty());
        assert_eq!(rig.queue.outstanding(), 0);
    }
}

#[test]
fn a_packet_larger_than_a_buffer_is_dropped() {
    for features in KINDS {
        let port = source(1000, Some(3));
        let (mut path, counters) = port.receive(0, false, None).unwrap();
        let mut rig = Rig::new(features);
        rig.offer(1011);
        rig.offer(1012);
        assert_eq!(path.round(&mut rig.queue, true), Ok(3));
        assert_eq!(counters.read().dropped_no_room, 3);
        assert!(rig.reap().is_empty(), "the buffers stay");
        assert_eq!(rig.queue.outstanding(), 0);
    }
}

#[test]
fn buffers_too_small_for_a_header_come_back_empty() {
    for (features, mergeable) in KINDS.iter().flat_map(|kind| [(*kind, false), (*kind, true)]) {
        let port = source(64, Some(4));
        let (mut path, counters) = port.receive(0, mergeable, None).unwrap();
        let mut rig = Rig::new(features);
        for len in [0, 11, 100, 1, 100, 100] {
            rig.offer(len);
        }
        let readable = rig.place(&[0; 64]);
        rig.driver.add(&[readable], &[], 0).unwrap();
        rig.driver.publish();
        assert_eq!(path.round(&mut rig.queue, true), Ok(3));
        let written: Vec<_> = rig.reap().iter().map(|one| one.written).collect();
        assert_eq!(written, [0, 0, 76, 0, 76, 76, 0]);
        let tally = counters.read();
        assert_eq!((tally.packets, tally.dropped_malformed), (3, 4));
    }
}

#[test]
fn receive_takes_nothing_while_disabled() {
    let port = source(64, Some(1));
    let (mut path, _) = port.receive(0, false, None).unwrap();
    let mut rig = Rig::new(0);
    rig.offer(100);
    assert_eq!(path.round(&mut rig.queue, false), Ok(0));
    assert_eq!(path.wants(), Wants { buffers: false, source: false });
    assert_eq!(path.round(&mut rig.queue, true), Ok(1));
}

#[test]
fn packets_above_the_mtu_are_not_passed_on() {
    for (size, passed) in [(114, 1), (115, 0)] {
        let port = source(size, Some(1));
        let (mut path, counters) = port.receive(0, false, Some(100)).unwrap();
        let mut rig = Rig::new(0);
        rig.offer(2000);
        assert_eq!(path.round(&mut rig.queue, true), Ok(1));
        let tally = counters.read();
        assert_eq!((tally.packets, tally.dropped_mtu), (passed, 1 - passed));
        assert_eq!(rig.reap().len() as u64, passed);
    }
}

#[test]
fn faults_and_misses_end_the_round_with_what_was_done() {
    for features in KINDS {
        let mut rig = Rig::new(features);
        let (mut path, _) = source(64, None).receive(0, false, None).unwrap();
        rig.offer(100);
        let outside = Piece { addr: 1 << 40, len: 100 };
        rig.driver.add(&[], &[outside], 0).unwrap();
        rig.driver.publish();
        let unmapped = Fault::Unmapped { address: 1 << 40, length: 100 };
        let round = path.round(&mut rig.queue, true);
        if round == Ok(1) {
            assert_eq!(path.round(&mut rig.queue, true), Err(QueueError::Broken(unmapped)));
        } else {
            assert_eq!(round, Err(QueueError::Broken(unmapped)));
        }
        assert_eq!(rig.driver.stats().buffers, 0);
        assert!(rig.reap().len() <= 1);
    }
}

#[test]
fn a_miss_is_retried_with_the_same_packet() {
    for features in KINDS {
        let mut rig = Rig::new(features);
        let iotlb = Arc::new(Iotlb::default());
        let user = rig.memory.regions()[0].user_addr;
        // Rings, and the first of two buffers.
        iotlb.update(0, ARENA + 600, user, true, true).unwrap();
        let memory = Arc::new(rig.memory.with_iotlb(Some(Arc::clone(&iotlb))));
        rig.queue.set_memory(memory).unwrap();
        let (mut path, _) = source(1000, Some(1)).receive(0, true, None).unwrap();
        rig.offer(600);
        rig.offer(600);
        let missing = path.round(&mut rig.queue, true);
        let (address, length) = (ARENA + 600, 600);
        assert_eq!(missing, Err(QueueError::Miss { address, length, writable: true }));
        assert!(rig.reap().is_empty());
        iotlb.update(address, length, user + address, true, true).unwrap();
        assert_eq!(path.round(&mut rig.queue, true), Ok(1));
        assert_eq!(rig.received()[0][HEADER_BYTES..], made(0, 1000));
    }
}

#[test]
fn a_hub_sends_to_all_until_it_knows_better() {
    let hub = Arc::new(Hub::new());
    let ports: Vec<_> = (0..3).map(|_| hub_port(&hub)).collect();
    assert_eq!(hub.members(), 3);
    let mut sides: Vec<_> = ports
        .iter()
        .map(|port| {
            let (transmit, _) = port.transmit(0).unwrap();
            let (receive, _) = port.receive(0, false, None).unwrap();
            (transmit, receive, Rig::new(feature::IN_ORDER), Rig::new(feature::RING_PACKED))
        })
        .collect();
    for (_, receive, _, rig) in &mut sides {
        (0..SIZE).for_each(|_| rig.offer(2000));
        assert_eq!(receive.round(&mut rig.queue, true), Ok(0));
    }
    let mut send = |from: usize, frame: &[u8]| -> Vec<usize> {
        let (transmit, _, rig, _) = &mut sides[from];
        rig.send(frame, 30);
        assert_eq!(transmit.round(&mut rig.queue, true), Ok(1));
        let mut got = Vec::new();
        for (index, (_, receive, _, rig)) in sides.iter_mut().enumerate() {
            receive.round(&mut rig.queue, true).unwrap();
            for packet in rig.received() {
                assert_eq!(packet[..HEADER_BYTES], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
                assert_eq!(&packet[HEADER_BYTES..], frame);
                got.push(index);
            }
        }
        got
    };
    assert_eq!(send(0, &frame(10, 11, 64)), [1, 2], "nobody knows 11");
    assert_eq!(send(1, &frame(11, 10, 700)), [0], "10 is known now");
    assert_eq!(send(2, &frame(12, 11, 64)), [1]);
    assert_eq!(send(1, &frame(11, 11, 64)), [], "a frame to oneself stays");
    assert_eq!(send(2, &frame(10, 99, 64)), [0, 1], "10 moved");
    assert_eq!(send(1, &frame(11, 10, 64)), [2]);
    let mut group = frame(10, 0, 64);
    group[0] = 1;
    assert_eq!(send(0, &group), [1, 2], "multicast goes to all");
    drop(sides);
    drop(ports);
    assert_eq!(hub.members(), 0);
}

#[test]
fn a_hub_keeps_no_more_than_fits() {
    let hub = Arc::new(Hub::new());
    let (from, to) = (hub_port(&hub), hub_port(&hub));
    let (mut transmit, sent) = from.transmit(0).unwrap();
    let mut rig = Rig::new(feature::IN_ORDER);
    let mut send = |count: usize, len: usize| {
        for _ in 0..count {
            rig.send(&frame(1, 2, len), 1 << 20);
            rig.next = ARENA;
            transmit.round(&mut rig.queue, true).unwrap();
            rig.reap();
        }
    };
    send(3, 64); // No receive queue yet: nobody listens.
    let (mut receive, got) = to.receive(0, false, None).unwrap();
    send(5000, 64);
    assert_eq!(got.read().dropped_inbox_full, 5000 - 4096);
    assert_eq!(to.received(), got.read());
    assert_eq!(sent.read().packets, 5003);

    let mut rig = Rig::new(0);
    let mut seen = 0;
    loop {
        (0..SIZE / 2).for_each(|_| rig.offer(100));
        rig.next = ARENA;
        let done = receive.round(&mut rig.queue, true).unwrap();
        if done == 0 {
            break;
        }
        seen += rig.reap().len();
    }
    assert_eq!(seen, 4096);
    assert_eq!(got.read().packets, 4096);
}

#[test]
fn large_frames_fill_an_inbox_earlier() {
    let hub = Arc::new(Hub::new());
    let (from, to) = (hub_port(&hub), hub_port(&hub));
    let (mut transmit, _) = from.transmit(0).unwrap();
    let (_receive, got) = to.receive(0, false, None).unwrap();
    let mut rig = Rig::new(feature::IN_ORDER);
    for _ in 0..200 {
        rig.send(&frame(1, 2, 60_000), 1 << 20);
        rig.next = ARENA;
        transmit.round(&mut rig.queue, true).unwrap();
        rig.reap();
    }
    assert!((50..100).contains(&got.read().dropped_inbox_full));
}

#[test]
fn a_hub_answers_on_the_pair_that_asked() {
    let hub = Arc::new(Hub::new());
    let (one, other) = (hub_port(&hub), hub_port(&hub));
    let mut queues: Vec<_> = (0..3)
        .map(|pair| {
            let (receive, _) = one.receive(pair, false, None).unwrap();
            let mut rig = Rig::new(0);
            (0..SIZE).for_each(|_| rig.offer(200));
            (receive, rig)
        })
        .collect();
    let (mut answer, _) = other.transmit(0).unwrap();
    let mut answers = Rig::new(0);
    let mut where_it_came = |enabled: &[bool]| -> Vec<usize> {
        for ((receive, rig), on) in queues.iter_mut().zip(enabled) {
            receive.round(&mut rig.queue, *on).unwrap();
            rig.reap();
        }
        answers.send(&frame(2, 1, 100), 4096);
        answer.round(&mut answers.queue, true).unwrap();
        let each = queues.iter_mut().zip(enabled).enumerate();
        each.filter_map(|(at, ((receive, rig), on))| {
            receive.round(&mut rig.queue, *on).unwrap();
            (rig.reap().len() == 1).then_some(at)
        })
        .collect()
    };
    for pair in [2, 0, 1] {
        let (mut ask, _) = one.transmit(pair).unwrap();
        let mut rig = Rig::new(0);
        rig.send(&frame(1, 2, 100), 4096);
        ask.round(&mut rig.queue, true).unwrap();
        assert_eq!(where_it_came(&[true, true, true]), [usize::from(pair)]);
    }
    assert_eq!(where_it_came(&[true, false, false]), [0], "pair 1 is not in use any more");
}

#[test]
fn ports_that_cannot_be() {
    assert!(TapLink::open("", 1).is_err());
    assert!(TapLink::open("a-name-that-is-too-long", 1).is_err());
    assert!(TapLink::open("virtq-none", 0).is_err());
    assert!(SourceLink::new(13, None).is_err());
    assert!(SourceLink::new(FRAME_BYTES_MAX + 1, None).is_err());
}
