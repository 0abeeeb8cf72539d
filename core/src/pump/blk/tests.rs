use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use libc::iovec;

use super::direct::Direct;
use super::disk::Disk;
use super::store::{Store, Way};
use super::*;
use crate::memory::{Mapping, Memory, Region};
use crate::queue::{DriverQueue, Setup};
use crate::ring::{Piece, Reaped, feature};

pub(super) const KINDS: [u64; 4] =
    [0, feature::IN_ORDER, feature::RING_PACKED, feature::RING_PACKED | feature::IN_ORDER];
const ARENA: u64 = 0x10_0000;

/// A driver, a device queue and a path, without a thread.
pub(super) struct Rig {
    pub(super) memory: Arc<Memory>,
    pub(super) driver: DriverQueue,
    pub(super) queue: DeviceQueue,
    pub(super) path: BlkPath,
    next: u64,
}

impl Rig {
    pub(super) fn new(features: u64, disk: Disk) -> Self {
        let mapping = Mapping::anonymous(64 << 20).unwrap();
        let region = Region {
            guest_addr: 0,
            size: mapping.len(),
            user_addr: mapping.ptr() as u64,
            offset: 0,
            mapping,
        };
        let memory = Arc::new(Memory::new().with_region(region).unwrap());
        let setup = Setup {
            index: 0,
            size: 256,
            features,
            desc: 0x1000,
            driver: 0x4000,
            device: 0x8000,
            position: None,
        };
        let driver = DriverQueue::new(Arc::clone(&memory), setup.clone(), None).unwrap();
        let queue = DeviceQueue::new(Arc::clone(&memory), setup).unwrap();
        Self { memory, driver, queue, path: BlkPath::new(Arc::new(disk)), next: ARENA }
    }

    fn place(&mut self, bytes: &[u8]) -> Piece {
        let piece = Piece { addr: self.next, len: bytes.len() as u32 };
        self.memory.write(&mut Default::default(), piece.addr, bytes).unwrap();
        self.next += bytes.len() as u64;
        piece
    }

    pub(super) fn get(&self, piece: Piece) -> Vec<u8> {
        let mut bytes = vec![0; piece.len as usize];
        self.memory.read(&mut Default::default(), piece.addr, &mut bytes).unwrap();
        bytes
    }

    pub(super) fn add(&mut self, kind: u32, sector: u64, data: &[u8], room: usize) -> Piece {
        let mut readable = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        readable.extend(data);
        let readable = self.place(&readable);
        let writable = self.place(&vec![0xee; room + 1]);
        self.driver.add(&[readable], &[writable], 0).unwrap();
        writable
    }

    /// The same with the data aligned to 4096 bytes.
    pub(super) fn add_aligned(
        &mut self,
        kind: u32,
        sector: u64,
        data: &[u8],
        room: usize,
    ) -> Piece {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        let header = self.place(&header);
        self.next = self.next.next_multiple_of(4096);
        let data = (!data.is_empty()).then(|| self.place(data));
        self.next = self.next.next_multiple_of(4096);
        let writable = self.place(&vec![0xee; room + 1]);
        let whole = Piece { len: writable.len - 1, ..writable };
        let status = Piece { addr: writable.addr + room as u64, len: 1 };
        let readable: Vec<_> = [header].into_iter().chain(data).collect();
        self.driver
            .add(&readable, &if room > 0 { vec![whole, status] } else { vec![status] }, 0)
            .unwrap();
        writable
    }

    pub(super) fn round(&mut self) -> usize {
        self.driver.publish();
        self.path.round(&mut self.queue, true).unwrap()
    }

    pub(super) fn reap(&mut self) -> Vec<Reaped> {
        let mut reaped = Vec::new();
        self.driver.reap(256, &mut reaped).unwrap();
        reaped
    }
}

pub(super) fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + seed * 7 + at / 251) as u8).collect()
}

#[test]
fn what_was_written_is_read() {
    for features in KINDS {
        let mut rig = Rig::new(features, Disk::memory(1 << 20).unwrap());
        let data = pattern(1024, 1);
        let stored = rig.add(1, 3, &data, 0);
        let loaded = rig.add(0, 3, &[], 1024);
        assert_eq!(rig.round(), 2);
        assert_eq!(rig.reap().iter().map(|one| one.written).collect::<Vec<_>>(), [1, 1025]);
        assert_eq!(rig.get(stored), [0]);
        assert_eq!(rig.get(loaded), [&data[..], &[0]].concat());
        let expected = Counts {
            batches: 1,
            reads: 1,
            writes: 1,
            bytes_read: 1024,
            bytes_written: 1024,
            ..Counts::default()
        };
        assert_eq!(rig.path.stats().counts(), expected);
        assert_eq!(rig.path.disk.stats().counts(), expected);
        assert_eq!(rig.round(), 0);
    }
}

#[test]
fn a_round_ends_when_it_moved_enough() {
    for features in KINDS {
        let mut rig = Rig::new(features, Disk::memory(8 << 20).unwrap());
        let rooms: Vec<_> = (0..5).map(|_| rig.add(0, 0, &[], 400 << 10)).collect();
        let mut small = rig.add(0, 1, &[], 512);
        assert_eq!(rig.round(), 3);
        assert_eq!(rig.reap().len(), 3);
        assert_eq!(rig.get(rooms[2])[400 << 10], 0);
        assert_eq!(rig.get(rooms[3])[400 << 10], 0xee);
        assert_eq!(rig.round(), 3);
        assert_eq!(rig.reap().len(), 3);
        small.addr += 512;
        small.len = 1;
        assert_eq!(rig.get(small), [0]);
        assert_eq!(rig.round(), 0);
    }
}

#[test]
fn a_disabled_ring_is_left_alone() {
    let mut rig = Rig::new(0, Disk::memory(4096).unwrap());
    rig.add(0, 0, &[], 512);
    rig.driver.publish();
    assert_eq!(rig.path.round(&mut rig.queue, false), Ok(0));
    assert!(!rig.path.wants().buffers);
    assert_eq!(rig.queue.outstanding(), 0);
    assert_eq!(rig.path.round(&mut rig.queue, true), Ok(1));
    assert!(rig.path.wants().buffers);
}

#[test]
fn an_old_memory_is_let_go() {
    let mut rig = Rig::new(0, Disk::memory(4096).unwrap());
    rig.add(0, 0, &[], 512);
    assert_eq!(rig.round(), 1);
    let old = Arc::downgrade(&rig.memory);
    rig.memory = Arc::new((*rig.memory).clone());
    rig.queue.set_memory(Arc::clone(&rig.memory)).unwrap();
    drop(rig.driver);
    assert_eq!(rig.path.round(&mut rig.queue, true), Ok(0));
    assert!(old.upgrade().is_none());
}

/// /dev/null takes every write and cannot be flushed.
fn unflushable() -> Disk {
    let file = File::options().read(true).write(true).open("/dev/null").unwrap();
    Disk::on(Store { file, is_block_device: false, direct: None }, 1 << 20)
}

#[test]
fn a_failed_flush_fails_what_waited_for_it() {
    for (writeback, expected) in [(true, [0, 1, 0]), (false, [1, 1, 0])] {
        let mut rig = Rig::new(0, unflushable());
        rig.path.disk.set_writeback(writeback);
        let mut rooms = vec![rig.add(1, 0, &[1; 512], 0), rig.add(4, 0, &[], 0)];
        rooms.push(rig.add(8, 0, &[], 20));
        assert_eq!(rig.round(), 3);
        let statuses: Vec<_> = rooms.iter().map(|&room| *rig.get(room).last().unwrap()).collect();
        assert_eq!(statuses, expected);
        let counts = rig.path.stats().counts();
        assert_eq!(counts.bytes_written, if writeback { 512 } else { 0 });
        assert_eq!(counts.errors, expected.iter().filter(|&&status| status == 1).count() as u64);
        let failure = rig.path.disk.take_failure().unwrap();
        assert_eq!(failure.raw_os_error(), Some(libc::EINVAL));
        assert!(rig.path.disk.take_failure().is_none());
    }
}

#[test]
fn sectors_are_located_without_overflow() {
    let disk = Disk::null(100 * SECTOR_BYTES).unwrap();
    assert_eq!(disk.locate(0, 100 * SECTOR_BYTES), Some(0));
    assert_eq!(disk.locate(99, SECTOR_BYTES), Some(99 * SECTOR_BYTES));
    assert_eq!(disk.locate(100, 0), Some(100 * SECTOR_BYTES));
    for (sector, bytes) in [
        (100, 512),
        (99, 1024),
        (101, 0),
        (0, 100),
        (0, 101 * 512),
        (u64::MAX, 0),
        (u64::MAX, 512),
        (1 << 55, 512),
        (u64::MAX / 512, 1 << 32),
        (1, u64::MAX - 511),
    ] {
        assert_eq!(disk.locate(sector, bytes), None, "{sector} {bytes}");
    }
}

#[test]
fn the_capacity_follows_the_file() {
    let disk = Disk::memory(4096).unwrap();
    assert_eq!((disk.capacity(), disk.refresh().unwrap()), (8, 8));
    let file = memory_file(5000);
    let disk = Disk::on(Store { file, is_block_device: false, direct: None }, 4096);
    assert_eq!((disk.capacity(), disk.refresh().unwrap()), (8, 9));
}

pub(super) fn memory_file(size: u64) -> File {
    use std::os::fd::FromRawFd;
    // SAFETY: makes a descriptor that nobody else owns.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"test".as_ptr(), 0)) };
    file.set_len(size).unwrap();
    file
}

pub(super) fn content(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn vectors(bytes: &mut [u8], lengths: &[usize]) -> Vec<iovec> {
    let mut rest = bytes;
    let mut made = Vec::new();
    for &length in lengths {
        let (now, later) = rest.split_at_mut(length);
        made.push(iovec { iov_base: now.as_mut_ptr().cast(), iov_len: length });
        rest = later;
    }
    made
}

#[test]
fn more_pieces_than_one_call_takes() {
    let store = Store { file: memory_file(1 << 20), is_block_device: false, direct: None };
    let mut data = pattern(3000 * 100, 2);
    let lengths: Vec<_> = (0..3000).flat_map(|_| [0, 100]).collect();
    // SAFETY: the vectors lie in `data`.
    unsafe { store.transfer(Way::Write, 700, &mut vectors(&mut data, &lengths)).unwrap() };
    assert_eq!(content(&store.file)[700..700 + data.len()], data);
    let mut back = vec![0; data.len()];
    // SAFETY: the vectors lie in `back`.
    unsafe { store.transfer(Way::Read, 700, &mut vectors(&mut back, &lengths)).unwrap() };
    assert_eq!(back, data);
}

#[test]
fn a_file_that_ends_early_is_an_error() {
    let store = Store { file: memory_file(1000), is_block_device: false, direct: None };
    let mut data = vec![0; 1024];
    // SAFETY: the vectors lie in `data`.
    let read = unsafe { store.transfer(Way::Read, 0, &mut vectors(&mut data, &[1024])) };
    assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EIO));
}

/// A file that pretends to want whole blocks of 4096 bytes in memory aligned to 512.
pub(super) fn direct_store(size: u64) -> Store {
    let direct = Some(Direct::with(512, 4096));
    Store { file: memory_file(size), is_block_device: false, direct }
}

#[test]
fn unaligned_transfers_go_by_way_of_whole_blocks() {
    const SIZE: usize = 3 << 20;
    let store = direct_store(SIZE as u64);
    let mut expected = pattern(SIZE, 3);
    store.file.write_all_at(&expected, 0).unwrap();
    for (round, (offset, length)) in [
        (0, 512),
        (512, 512),
        (3584, 1024),
        (4096, 4096),
        (4608, 8192),
        (100 * 4096, 5 * 4096),
        (512, (1 << 20) - 512),
        (512, (2 << 20) + 1024),
        (1 << 20, 1 << 20),
        (SIZE - 512, 512),
        (0, SIZE),
    ]
    .into_iter()
    .enumerate()
    {
        for shift in [0, 8, 512] {
            let mut data = vec![0; length + shift];
            data[shift..].copy_from_slice(&pattern(length, round + shift));
            expected[offset..offset + length].copy_from_slice(&data[shift..]);
            let cut = length / 3;
            let lengths = [cut, 0, length - cut];
            // SAFETY: the vectors lie in `data`.
            unsafe {
                let mut parts = vectors(&mut data[shift..], &lengths);
                store.transfer(Way::Write, offset as u64, &mut parts).unwrap();
            }
            assert!(content(&store.file) == expected, "write {offset} {length} {shift}");
            let mut back = vec![0; length + shift];
            // SAFETY: the vectors lie in `back`.
            unsafe {
                let mut parts = vectors(&mut back[shift..], &lengths);
                store.transfer(Way::Read, offset as u64, &mut parts).unwrap();
            }
            assert!(back[shift..] == data[shift..], "read {offset} {length} {shift}");
        }
    }
}

#[test]
fn neighbours_in_a_block_do_not_undo_each_other() {
    let store = direct_store(8192);
    std::thread::scope(|scope| {
        for sector in 0..16u64 {
            let store = &store;
            scope.spawn(move || {
                for turn in 0..200u8 {
                    let mut data = [turn; 512];
                    let offset = sector * 512;
                    // SAFETY: the vectors lie in `data`.
                    unsafe {
                        let mut parts = vectors(&mut data, &[512]);
                        store.transfer(Way::Write, offset, &mut parts).unwrap();
                        data = [0xff; 512];
                        let mut parts = vectors(&mut data, &[512]);
                        store.transfer(Way::Read, offset, &mut parts).unwrap();
                    }
                    assert_eq!(data, [turn; 512]);
                }
            });
        }
    });
}

#[test]
fn zeroes_of_every_length_end_where_they_should() {
    const SIZE: usize = (64 << 20) + (1 << 20);
    // Files in memory have no quicker way that keeps the blocks, so these are written.
    for direct in [None, Some(Direct::with(512, 4096))] {
        let store = Store { file: memory_file(SIZE as u64), is_block_device: false, direct };
        for (offset, length) in
            [(512, 512), (0, 64 << 10), (1024, (64 << 10) + 512), (512, (64 << 20) + 3 * 512)]
        {
            let start = offset - 512.min(offset);
            store.file.write_all_at(&vec![7; length + 1024], start as u64).unwrap();
            store.write_zeroes(offset as u64, length as u64, false).unwrap();
            let mut bytes = vec![0; length + 1024];
            store.file.read_exact_at(&mut bytes, start as u64).unwrap();
            let zeroes = offset - start..offset - start + length;
            assert!(bytes[zeroes.clone()].iter().all(|&byte| byte == 0));
            assert!(bytes[..zeroes.start].iter().all(|&byte| byte == 7));
            assert!(bytes[zeroes.end..].iter().all(|&byte| byte == 7));
        }
    }
}
