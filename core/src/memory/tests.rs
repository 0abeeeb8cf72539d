use std::fs::File;
use std::os::fd::{AsFd, FromRawFd};

use super::*;

const PAGE: u64 = 4096;

fn region(guest_addr: u64, size: u64) -> Region {
    let mapping = Mapping::anonymous(size).unwrap();
    Region { guest_addr, size, user_addr: guest_addr + (1 << 40), offset: 0, mapping }
}

/// A memory of these guest ranges.
fn memory(ranges: &[(u64, u64)]) -> Memory {
    ranges.iter().fold(Memory::new(), |memory, &(guest_addr, size)| {
        memory.with_region(region(guest_addr, size)).unwrap()
    })
}

/// The pieces as (region index, offset in it, length).
fn pieces(
    memory: &Memory,
    cache: &mut Cache,
    addr: u64,
    len: u64,
    access: Access,
) -> Result<Vec<(usize, u64, u64)>, QueueError> {
    let mut pieces = Vec::new();
    memory.translate(cache, addr, len, access, &mut |host, length| {
        let place = memory.regions().iter().enumerate().find_map(|(index, region)| {
            let offset = (host as u64).wrapping_sub(region.mapping.ptr() as u64);
            (offset < region.size).then_some((index, offset))
        });
        let (index, offset) = place.expect("a piece outside of guest memory");
        assert!(offset + length <= memory.regions()[index].size);
        pieces.push((index, offset, length));
    })?;
    Ok(pieces)
}

fn read_pieces(memory: &Memory, addr: u64, len: u64) -> Result<Vec<(usize, u64, u64)>, QueueError> {
    pieces(memory, &mut Cache::default(), addr, len, Access::Read)
}

fn unmapped<T>(address: u64, length: u64) -> Result<T, QueueError> {
    Err(QueueError::Broken(Fault::Unmapped { address, length }))
}

fn overflow<T>(address: u64, length: u64) -> Result<T, QueueError> {
    Err(QueueError::Broken(Fault::AddressOverflow { address, length }))
}

fn miss<T>(address: u64, length: u64, writable: bool) -> Result<T, QueueError> {
    Err(QueueError::Miss { address, length, writable })
}

#[test]
fn regions_are_sorted_and_snapshots_do_not_change() {
    let first = memory(&[(0x10000, PAGE)]);
    let second = first.with_region(region(0, PAGE)).unwrap();
    let addresses = |memory: &Memory| -> Vec<u64> {
        memory.regions().iter().map(|region| region.guest_addr).collect()
    };
    assert_eq!(addresses(&first), [0x10000]);
    assert_eq!(addresses(&second), [0, 0x10000]);
    let third = second.without_region(0x10000, PAGE, None).unwrap();
    assert_eq!(addresses(&third), [0]);
    assert_eq!(read_pieces(&second, 0x10010, 4), Ok(vec![(1, 0x10, 4)]));
    assert_eq!(read_pieces(&third, 0x10010, 4), unmapped(0x10010, 4));
}

#[test]
fn a_region_is_removed_by_its_exact_range() {
    let memory = memory(&[(0, PAGE), (PAGE, PAGE)]);
    for (guest_addr, size, user_addr) in
        [(0, 2 * PAGE, None), (1, PAGE, None), (0, PAGE, Some(0)), (4 * PAGE, PAGE, None)]
    {
        assert_eq!(
            memory.without_region(guest_addr, size, user_addr).map(|_| ()),
            Err(MemoryError::NoSuchRegion { guest_addr, size })
        );
    }
    memory.without_region(0, PAGE, Some(1 << 40)).unwrap();
}

#[test]
fn a_mapping_outlives_its_memory() {
    let memory = memory(&[(0, PAGE)]);
    memory.write(&mut Cache::default(), 8, b"here").unwrap();
    let (host, mapping) = memory.contiguous(8, 4, Access::Read).unwrap();
    drop(memory);
    let mut bytes = [0; 4];
    // SAFETY: inside the mapping, which is alive.
    unsafe { copy_from_shared(host, &mut bytes) };
    assert_eq!(&bytes, b"here");
    assert_eq!(Arc::strong_count(&mapping), 1);
}

#[test]
fn a_cache_is_good_for_any_memory() {
    let many = memory(&[(0, PAGE), (PAGE, PAGE), (2 * PAGE, PAGE)]);
    let few = memory(&[(2 * PAGE, PAGE)]);
    let mut cache = Cache::default();
    for _ in 0..2 {
        assert_eq!(pieces(&many, &mut cache, 2 * PAGE, 8, Access::Read), Ok(vec![(2, 0, 8)]));
        assert_eq!(pieces(&few, &mut cache, 2 * PAGE, 8, Access::Read), Ok(vec![(0, 0, 8)]));
        assert_eq!(
            pieces(&Memory::new(), &mut cache, 2 * PAGE, 8, Access::Read),
            unmapped(2 * PAGE, 8)
        );
    }
}

#[test]
fn length_0_has_no_pieces() {
    let memory = memory(&[(0, PAGE)]);
    assert_eq!(read_pieces(&memory, 4, 0), Ok(vec![]));
    assert_eq!(read_pieces(&memory, 1 << 50, 0), Ok(vec![]));
    memory.read(&mut Cache::default(), 1 << 50, &mut []).unwrap();
    memory.write(&mut Cache::default(), 1 << 50, &[]).unwrap();
}

#[test]
fn every_range_of_three_regions() {
    // Two adjacent regions, a gap, and one more; in units of a quarter page.
    let memory = memory(&[(0x1000, 0x1000), (0x2000, 0x1000), (0x4000, 0x1000)]);
    let held = |addr: u64| (0x1000..0x3000).contains(&addr) || (0x4000..0x5000).contains(&addr);
    let mut cache = Cache::default();
    for start in (0..0x6000).step_by(0x400) {
        for len in (0x400..0x6000).step_by(0x400) {
            let missing = (start..start + len).step_by(0x400).find(|&addr| !held(addr));
            let result = pieces(&memory, &mut cache, start, len, Access::Write);
            let Some(missing) = missing else {
                let result = result.unwrap();
                assert_eq!(result.iter().map(|piece| piece.2).sum::<u64>(), len);
                assert_eq!(
                    result.len(),
                    if start < 0x2000 && start + len > 0x2000 { 2 } else { 1 }
                );
                continue;
            };
            let gap_end = (missing..start + len).step_by(0x400).find(|&addr| held(addr));
            let length = gap_end.unwrap_or(start + len) - missing;
            assert_eq!(result, unmapped(missing, length), "{start:#x}+{len:#x}");
        }
    }
}

#[test]
fn read_and_write_cross_regions() {
    let memory = memory(&[(0, PAGE), (PAGE, PAGE)]);
    let mut cache = Cache::default();
    memory.write(&mut cache, PAGE - 3, b"abcdefg").unwrap();
    let mut bytes = [0; 9];
    memory.read(&mut cache, PAGE - 4, &mut bytes).unwrap();
    assert_eq!(&bytes, b"\0abcdefg\0");
}

#[test]
fn nothing_is_written_where_not_all_can_be() {
    let memory = memory(&[(0, PAGE)]);
    let mut cache = Cache::default();
    assert_eq!(memory.write(&mut cache, PAGE - 2, b"abcd"), unmapped(PAGE, 2));
    let mut bytes = [9; 2];
    memory.read(&mut cache, PAGE - 2, &mut bytes).unwrap();
    assert_eq!(bytes, [0, 0]);
}

#[test]
fn user_addresses_lead_to_guest_addresses() {
    let memory = memory(&[(0x1000, PAGE), (0x8000, PAGE)]);
    let user = 1 << 40;
    assert_eq!(memory.guest_from_user(user + 0x8010, 16), Some(0x8010));
    assert_eq!(memory.guest_from_user(user + 0x8000, PAGE), Some(0x8000));
    assert_eq!(memory.guest_from_user(user + 0x8001, PAGE), None);
    assert_eq!(memory.guest_from_user(user + 0x2000, 1), None);
    assert_eq!(memory.guest_from_user(user, 1), None);
    assert_eq!(memory.guest_from_user(u64::MAX, u64::MAX), None);
}

#[test]
fn row_4_contiguous_does_not_cross_regions() {
    let memory = memory(&[(0, PAGE), (PAGE, PAGE)]);
    let contiguous =
        |addr, len| memory.contiguous(addr, len, Access::Read).map(|(host, _)| host as usize);
    let base = memory.regions()[0].mapping.ptr() as usize;
    assert_eq!(contiguous(16, PAGE - 16), Ok(base + 16));
    assert_eq!(contiguous(PAGE - 16, 48), unmapped(PAGE, 32));
    assert_eq!(contiguous(PAGE + 16, PAGE), unmapped(2 * PAGE, 16));
    assert_eq!(contiguous(u64::MAX - 3, 8), overflow(u64::MAX - 3, 8));
    // A buffer may cross them.
    assert_eq!(read_pieces(&memory, PAGE - 16, 48), Ok(vec![(0, PAGE - 16, 16), (1, 0, 32)]));
}

#[test]
fn row_7_ring_that_is_mapped_in_part_or_not_at_all() {
    let memory = memory(&[(0x1000, PAGE), (0x3000, PAGE)]);
    let contiguous = |addr, len| memory.contiguous(addr, len, Access::Write).map(|_| ());
    assert_eq!(contiguous(0x1000, PAGE), Ok(()));
    assert_eq!(contiguous(0x1800, 0x1000), unmapped(0x2000, 0x800));
    assert_eq!(contiguous(0x1800, 0x2000), unmapped(0x2000, 0x1000));
    assert_eq!(contiguous(0x2000, 0x100), unmapped(0x2000, 0x100));
    assert_eq!(contiguous(0x800, 0x1000), unmapped(0x800, 0x800));
    assert_eq!(contiguous(1 << 60, 2), unmapped(1 << 60, 2));
}

#[test]
fn row_10_buffer_unmapped_or_overflowing() {
    let memory = memory(&[(0, PAGE)]);
    assert_eq!(read_pieces(&memory, PAGE, 1), unmapped(PAGE, 1));
    assert_eq!(read_pieces(&memory, PAGE - 1, 2), unmapped(PAGE, 1));
    assert_eq!(read_pieces(&memory, 16, u64::MAX - 16), unmapped(PAGE, u64::MAX - PAGE));
    assert_eq!(read_pieces(&memory, 16, u64::MAX), overflow(16, u64::MAX));
    assert_eq!(read_pieces(&memory, u64::MAX, 1), overflow(u64::MAX, 1));
    assert_eq!(
        read_pieces(&memory, u64::MAX - 7, 0xffff_ffff),
        overflow(u64::MAX - 7, 0xffff_ffff)
    );
    assert_eq!(read_pieces(&Memory::new(), 0, 1), unmapped(0, 1));
    // A hit in the cache checks as much.
    let mut cache = Cache::default();
    pieces(&memory, &mut cache, 0, 1, Access::Read).unwrap();
    assert_eq!(
        pieces(&memory, &mut cache, 8, u64::MAX - 7, Access::Write),
        overflow(8, u64::MAX - 7)
    );
}

#[test]
fn row_24_overlapping_regions() {
    let memory = memory(&[(0x4000, 0x2000)]);
    let refused = |guest_addr, size| {
        matches!(
            memory.with_region(region(guest_addr, size)),
            Err(MemoryError::GuestOverlap { other_addr: 0x4000, other_size: 0x2000, .. })
        )
    };
    for (guest_addr, size) in
        [(0x4000, 0x2000), (0x3000, 0x1001), (0x5fff, 1), (0x4800, 8), (0, 0x10000)]
    {
        assert!(refused(guest_addr, size), "{guest_addr:#x}+{size:#x}");
    }
    for (guest_addr, size) in [(0x3000, 0x1000), (0x6000, 1), (0, 1)] {
        assert!(!refused(guest_addr, size), "{guest_addr:#x}+{size:#x}");
    }
    let user_addr = (1 << 40) + 0x5000;
    let same_user = Region { user_addr, ..region(0x10000, 0x1000) };
    let error = memory.with_region(same_user).unwrap_err();
    assert!(matches!(error, MemoryError::UserOverlap { .. }));
    assert_eq!(
        error.to_string(),
        "user range 0x10000005000+0x1000 overlaps the region at 0x10000004000+0x2000"
    );
}

#[test]
fn row_24_region_of_size_0_overflowing_or_larger_than_its_mapping() {
    let mapping = Mapping::anonymous(PAGE).unwrap();
    let add = |guest_addr, size, user_addr| {
        let mapping = Arc::clone(&mapping);
        Memory::new()
            .with_region(Region { guest_addr, size, user_addr, offset: 0, mapping })
            .map(|_| ())
    };
    let top = u64::MAX - PAGE + 1;
    assert_eq!(add(0, 0, 0), Err(MemoryError::Empty { address: 0 }));
    assert_eq!(add(top, PAGE, 0), Err(MemoryError::Overflow { address: top, size: PAGE }));
    assert_eq!(add(0, PAGE, top), Err(MemoryError::Overflow { address: top, size: PAGE }));
    assert_eq!(add(top - 1, PAGE, top - 1), Ok(()));
    assert_eq!(
        add(0, PAGE + 1, 0),
        Err(MemoryError::MappingTooSmall { guest_addr: 0, size: PAGE + 1, mapped: PAGE })
    );
}

#[test]
fn row_24_more_regions_than_slots() {
    let mapping = Mapping::anonymous(PAGE).unwrap();
    let region = |index: u64| {
        let (guest_addr, user_addr) = (index * 2 * PAGE, (1 << 40) + index * 2 * PAGE);
        Region { guest_addr, size: PAGE, user_addr, offset: 0, mapping: Arc::clone(&mapping) }
    };
    let full = (0..MAX_REGIONS as u64)
        .fold(Memory::new(), |memory, index| memory.with_region(region(index)).unwrap());
    let error = full.with_region(region(MAX_REGIONS as u64)).unwrap_err();
    assert!(matches!(error, MemoryError::TooMany { limit: MAX_REGIONS, .. }), "{error}");
    let mut cache = Cache::default();
    for index in (0..MAX_REGIONS as u64).rev().step_by(7) {
        let addr = index * 2 * PAGE;
        full.translate(&mut cache, addr, PAGE, Access::Read, &mut |_, _| {}).unwrap();
        assert_eq!(cache.region as u64, index);
        assert_eq!(full.guest_from_user((1 << 40) + addr + 5, 1), Some(addr + 5));
        assert_eq!(
            full.translate(&mut cache, addr + PAGE, 4, Access::Read, &mut |_, _| {}),
            unmapped(addr + PAGE, 4)
        );
    }
}

#[test]
fn row_24_truncated_file_reads_as_zeros() {
    // SAFETY: a new descriptor that nobody else owns.
    let file =
        unsafe { File::from_raw_fd(libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(4 * PAGE).unwrap();
    let mapping = Mapping::of_file(file.as_fd(), 0, 4 * PAGE).unwrap();
    let memory = memory(&[(1 << 20, PAGE)])
        .with_region(Region { guest_addr: 0, size: 4 * PAGE, user_addr: 0, offset: 0, mapping })
        .unwrap();
    let mut cache = Cache::default();
    memory.write(&mut cache, 0, &[1; 4 * PAGE as usize]).unwrap();
    file.set_len(PAGE).unwrap();
    assert!(!memory.is_truncated());
    let mut bytes = [9; 4 * PAGE as usize];
    memory.read(&mut cache, 0, &mut bytes).unwrap();
    assert!(bytes[..PAGE as usize].iter().all(|&byte| byte == 1));
    assert!(bytes[PAGE as usize..].iter().all(|&byte| byte == 0));
    assert!(memory.is_truncated());
    assert!(!memory.without_region(0, 4 * PAGE, None).unwrap().is_truncated());
    memory.write(&mut cache, 2 * PAGE, b"still writable").unwrap();
}

/// Two regions behind an IOTLB: IOVA page 0x100 is in the second, 0x101 and 0x102 in the first.
fn behind_iotlb() -> (Memory, Arc<Iotlb>) {
    let iotlb = Arc::new(Iotlb::new());
    let user = 1 << 40;
    iotlb.update(0x10_0000, PAGE, user + 0x8000, true, false).unwrap();
    iotlb.update(0x10_1000, PAGE, user + 0x1000, true, true).unwrap();
    iotlb.update(0x10_2000, PAGE, user + 0x2000, true, true).unwrap();
    let memory = memory(&[(0x1000, 2 * PAGE), (0x8000, PAGE)]);
    (memory.with_iotlb(Some(Arc::clone(&iotlb))), iotlb)
}

#[test]
fn iova_goes_through_the_iotlb() {
    let (memory, iotlb) = behind_iotlb();
    assert_eq!(
        read_pieces(&memory, 0x10_0800, 0x2000),
        Ok(vec![(1, 0x800, 0x800), (0, 0, 0x1000), (0, 0x1000, 0x800)])
    );
    // A guest address is no longer one, even if the cache knows its region.
    let mut cache = Cache::default();
    pieces(&memory.with_iotlb(None), &mut cache, 0x1000, 8, Access::Read).unwrap();
    assert_eq!(pieces(&memory, &mut cache, 0x1000, 8, Access::Read), miss(0x1000, 8, false));
    assert_eq!(
        pieces(&memory, &mut cache, 0x10_0800, 0x1000, Access::Write),
        miss(0x10_0800, 0x800, true)
    );
    assert_eq!(read_pieces(&memory, 0x10_2800, 0x1000), miss(0x10_3000, 0x800, false));
    assert_eq!(read_pieces(&memory, u64::MAX, 2), overflow(u64::MAX, 2));
    iotlb.invalidate(0x10_1000, PAGE);
    assert_eq!(read_pieces(&memory, 0x10_0800, 0x2000), miss(0x10_1000, 0x1000, false));
}

#[test]
fn a_translation_to_no_region_is_a_fault() {
    let (memory, iotlb) = behind_iotlb();
    iotlb.update(0x20_0000, PAGE, 0x77, true, true).unwrap();
    assert_eq!(read_pieces(&memory, 0x20_0010, 8), unmapped(0x20_0010, 8));
    // A translation that is longer than its region ends with it.
    iotlb.update(0x30_0000, 4 * PAGE, (1 << 40) + 0x8000, true, true).unwrap();
    assert_eq!(read_pieces(&memory, 0x30_0ff0, 32), unmapped(0x30_1000, 16));
}

#[test]
fn contiguous_joins_translations_of_one_region() {
    let (memory, _iotlb) = behind_iotlb();
    let base = memory.regions()[0].mapping.ptr() as usize;
    let contiguous =
        |addr, len, access| memory.contiguous(addr, len, access).map(|(host, _)| host as usize);
    assert_eq!(contiguous(0x10_1010, 0x1100, Access::Write), Ok(base + 0x10));
    assert_eq!(contiguous(0x10_0ff0, 0x20, Access::Read), unmapped(0x10_1000, 0x10));
    assert_eq!(contiguous(0x10_2000, 0x1001, Access::Read), miss(0x10_3000, 1, false));
}

#[test]
fn dirty_pages_are_guest_physical() {
    let log = DirtyLog::new(Mapping::anonymous(PAGE).unwrap());
    let (memory, iotlb) = behind_iotlb();
    let memory = memory.with_log(Some(Arc::clone(&log)));
    let logged = || {
        // SAFETY: the first byte of a live mapping.
        unsafe { log.mapping().ptr().cast::<u16>().read_volatile() }.to_le()
    };
    memory.write(&mut Cache::default(), 0x10_2000, b"x").unwrap();
    assert_eq!(logged(), 1 << 2);
    memory.mark_dirty(0x10_1fff, 1);
    assert_eq!(logged(), 1 << 1 | 1 << 2);
    iotlb.invalidate(0, 0);
    memory.mark_dirty(0x10_1fff, 1);
    assert_eq!(log.ignored(), 1);
    let plain = memory.with_iotlb(None);
    plain.write(&mut Cache::default(), 0x8000, b"x").unwrap();
    plain.read(&mut Cache::default(), 0x2000, &mut [0]).unwrap();
    assert_eq!(logged(), 1 << 1 | 1 << 2 | 1 << 8);
    plain.with_log(None).mark_dirty(0, 1);
    assert_eq!(logged(), 1 << 1 | 1 << 2 | 1 << 8);
}

#[test]
fn a_memory_may_be_shared_between_threads() {
    fn check<T: Send + Sync + Clone>() {}
    check::<Memory>();
    check::<Region>();
}
