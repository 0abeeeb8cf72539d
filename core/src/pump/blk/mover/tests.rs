use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::super::disk::Disk;
use super::super::store::Store;
use super::super::tests::{KINDS, Rig, content, direct_store, memory_file, pattern};
use super::*;

const BLOCK: usize = 4096;

/// A file of blocks that want direct transfers, and a rig that serves it.
fn direct_rig(features: u64, bytes: usize) -> Rig {
    let store = direct_store(bytes as u64);
    store.file.write_all_at(&pattern(bytes, 5), 0).unwrap();
    Rig::new(features, Disk::on(store, bytes as u64))
}

fn file(rig: &Rig) -> Vec<u8> {
    content(&rig.path.disk.store().unwrap().file)
}

/// What the last request of a piece of room says.
fn status(rig: &Rig, room: crate::ring::Piece) -> u8 {
    *rig.get(room).last().unwrap()
}

#[test]
fn a_batch_is_one_submission() {
    for features in KINDS {
        let mut rig = direct_rig(features, 64 * BLOCK);
        // Data at a multiple of 4096 - 16: the header before it makes it aligned.
        let data: Vec<_> = (0..8).map(|at| pattern(BLOCK, 100 + at)).collect();
        let written: Vec<_> =
            (0..8).map(|at| rig.add_aligned(1, at as u64 * 8, &data[at], 0)).collect();
        let read: Vec<_> =
            (8..16).map(|at| rig.add_aligned(0, at as u64 * 8, &[], BLOCK)).collect();
        assert_eq!(rig.round(), 16);
        assert_eq!(rig.reap().len(), 16);
        let counts = rig.path.stats().counts();
        assert_eq!((counts.queued, counts.submissions, counts.batches), (16, 1, 1));
        assert_eq!((counts.bytes_read, counts.bytes_written), (8 << 12, 8 << 12));
        assert!(written.iter().all(|&room| status(&rig, room) == 0));
        let old = pattern(64 * BLOCK, 5);
        for (at, &room) in (8..).zip(&read) {
            assert!(rig.get(room) == [&old[at * BLOCK..][..BLOCK], &[0]].concat());
        }
        assert!(file(&rig) == [&data.concat()[..], &old[8 * BLOCK..]].concat());
    }
}

#[test]
fn more_than_one_batch() {
    let mut rig = direct_rig(0, 256 * BLOCK);
    let rooms: Vec<_> =
        (0..80).map(|at| rig.add_aligned(0, (at * 3 % 256) * 8, &[], BLOCK)).collect();
    let mut served = 0;
    while served < 80 {
        served += rig.round();
    }
    assert_eq!((served, rig.reap().len()), (80, 80));
    assert_eq!(rig.path.stats().counts().queued, 80);
    let old = pattern(256 * BLOCK, 5);
    for (at, &room) in rooms.iter().enumerate() {
        let start = at * 3 % 256 * BLOCK;
        assert!(rig.get(room)[..BLOCK] == old[start..start + BLOCK], "{at}");
    }
}

#[test]
fn parts_of_blocks_wait_for_whole_ones() {
    let mut rig = direct_rig(0, 16 * BLOCK);
    let mut expected = pattern(16 * BLOCK, 5);
    for turn in 0..20 {
        for (kind, sector, length) in [(1, 8, BLOCK), (1, 9, 512), (1, 16, BLOCK), (13, 20, 16)] {
            let mut data = pattern(length, turn * 4 + sector);
            if kind == 13 {
                data = [&20u64.to_le_bytes()[..], &2u32.to_le_bytes(), &[0; 4]].concat();
                expected[20 * 512..22 * 512].fill(0);
            } else {
                expected[sector * 512..][..length].copy_from_slice(&data);
            }
            rig.add_aligned(kind, sector as u64, &data, 0);
        }
        assert_eq!(rig.round(), 4);
        assert_eq!(rig.reap().len(), 4);
        assert!(file(&rig) == expected, "{turn}");
    }
    assert_eq!(rig.path.stats().counts().errors, 0);
}

#[test]
fn a_file_that_shrank_fails_what_lies_beyond() {
    let mut rig = direct_rig(0, 16 * BLOCK);
    rig.path.disk.store().unwrap().file.set_len(2 * BLOCK as u64 + 512).unwrap();
    let rooms: Vec<_> = (0..4).map(|at| rig.add_aligned(0, at * 8, &[], BLOCK)).collect();
    assert_eq!(rig.round(), 4);
    assert_eq!(rig.reap().len(), 4);
    let statuses: Vec<_> = rooms.iter().map(|&room| status(&rig, room)).collect();
    assert_eq!(statuses, [0, 0, 1, 1]);
    assert_eq!(rig.path.disk.take_failure().unwrap().raw_os_error(), Some(libc::EIO));
    // What a failed read had in its room is not what the file had.
    assert_eq!(rig.get(rooms[3]), [&[0; BLOCK][..], &[1]].concat());
}

#[test]
fn without_io_uring_everything_is_done_at_once() {
    let mut rig = direct_rig(0, 16 * BLOCK);
    rig.path.engine = Engine::Refused;
    let rooms: Vec<_> = (0..4).map(|at| rig.add_aligned(0, at * 8, &[], BLOCK)).collect();
    assert_eq!(rig.round(), 4);
    assert!(rooms.iter().all(|&room| status(&rig, room) == 0));
    let counts = rig.path.stats().counts();
    assert_eq!((counts.queued, counts.submissions, counts.bytes_read), (0, 0, 4 << 12));
}

#[test]
fn what_is_at_hand_is_read_at_once() {
    let bytes = pattern(16 * BLOCK, 9);
    let store =
        Store { file: memory_file(bytes.len() as u64), is_block_device: false, direct: None };
    store.file.write_all_at(&bytes, 0).unwrap();
    let mut rig = Rig::new(0, Disk::on(store, bytes.len() as u64));
    let room = rig.add(0, 8, &[], 2 * BLOCK);
    assert_eq!(rig.round(), 1);
    assert!(rig.get(room) == [&bytes[BLOCK..3 * BLOCK], &[0]].concat());
    assert_eq!(rig.path.stats().counts().queued, 0);
}

#[test]
fn the_end_of_a_round_waits_for_what_is_under_way() {
    let store = direct_store(16 * BLOCK as u64);
    let disk = Arc::new(Disk::on(store, 16 * BLOCK as u64));
    let mut memory = vec![1u8; 2 * BLOCK];
    let at = memory.as_ptr().align_offset(BLOCK);
    let mut vector = [iovec { iov_base: memory[at..].as_mut_ptr().cast(), iov_len: BLOCK }];
    let (mut engine, mut finished) = (Engine::Idle, Vec::new());
    let mut mover = Mover::new(&disk, &mut engine, false, &mut finished);
    // SAFETY: the vector lies in `memory`, which outlives the mover.
    assert!(!unsafe { mover.begin(Way::Read, 0, &mut vector, 3) }.unwrap());
    assert_eq!(mover.in_flight(), 1);
    drop(mover);
    assert_eq!(engine.in_flight(), 0);
    assert_eq!(memory[at..at + BLOCK], [0; BLOCK]);
    assert!(disk.store().unwrap().direct.as_ref().unwrap().is_free());
}
