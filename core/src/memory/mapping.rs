//! One mapping of shared memory.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use super::MemoryError;
use super::sigbus;

/// Memory shared by way of a file, mapped readable and writable; unmapped when the last [`Arc`] goes.
///
/// If the file shrinks under it, what lies beyond the file's new end becomes zeros of our own and
/// [`Mapping::is_truncated`] turns true; the process goes on. (A system call given such memory fails
/// with EFAULT instead.)
#[derive(Debug)]
pub struct Mapping {
    /// First byte of the mapping proper, which begins on a page.
    base: *mut u8,
    /// Its size, a multiple of the page size.
    mapped: usize,
    /// What was asked for begins this far into it.
    skip: usize,
    len: u64,
    fd: OwnedFd,
    watch: Option<sigbus::Watch>,
}

// SAFETY: the mapping is plain memory, valid from any thread until it is dropped; who reads and writes
// it by way of the pointer has to expect other processes doing so too.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of a file from `offset` on, which need not be page aligned. The descriptor is
    /// duplicated. A regular file must be long enough; a device may be of no size.
    pub fn of_file(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<Arc<Self>, MemoryError> {
        if len == 0 {
            return Err(MemoryError::Empty { address: offset });
        }
        let end = offset
            .checked_add(len)
            .filter(|&end| i64::try_from(end).is_ok())
            .ok_or(MemoryError::Overflow { address: offset, size: len })?;
        let failed = |what| refused(what, offset, len);
        if let Some(file_size) = regular_file_size(fd).map_err(failed("fstat"))?
            && end > file_size
        {
            return Err(MemoryError::FileTooShort { offset, size: len, file_size });
        }
        let file = fd.try_clone_to_owned().map_err(failed("dup"))?;
        let page = page_bytes_of(fd);
        Self::map(file, offset, len, page)
    }

    /// New memory in a file without a name, zeroed, that can be shared by sending [`Mapping::fd`].
    /// The length is rounded up to whole pages. Nobody can make the file shorter.
    pub fn anonymous(len: u64) -> Result<Arc<Self>, MemoryError> {
        if len == 0 {
            return Err(MemoryError::Empty { address: 0 });
        }
        let len = len
            .checked_next_multiple_of(page_bytes())
            .filter(|&len| i64::try_from(len).is_ok())
            .ok_or(MemoryError::Overflow { address: 0, size: len })?;
        let failed = |what| refused(what, 0, len);
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"virtq".as_ptr(), flags) };
        check(fd).map_err(failed("memfd_create"))?;
        // SAFETY: a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: takes a descriptor and a length that fits.
        check(unsafe { libc::ftruncate(fd.as_raw_fd(), len as libc::off_t) })
            .map_err(failed("ftruncate"))?;
        // Without the seal a peer could shrink the file; that would be survived, so no need to insist.
        // SAFETY: takes a descriptor and a number.
        unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
        Self::map(fd, 0, len, page_bytes())
    }

    /// The first byte.
    #[inline]
    pub fn ptr(&self) -> *mut u8 {
        self.base.wrapping_add(self.skip)
    }

    /// Bytes from there on.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The whole pages that it takes: address and size in bytes.
    #[cfg(not(loom))]
    pub(super) fn pages(&self) -> (usize, usize) {
        (self.base as usize, self.mapped)
    }

    /// Our own descriptor of the file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether the file was found truncated under the mapping.
    #[inline]
    pub fn is_truncated(&self) -> bool {
        self.watch.as_ref().is_some_and(sigbus::Watch::is_truncated)
    }

    /// Maps whole pages of `page` bytes around the range.
    fn map(fd: OwnedFd, offset: u64, len: u64, page: u64) -> Result<Arc<Self>, MemoryError> {
        let overflow = MemoryError::Overflow { address: offset, size: len };
        let skip = offset % page;
        let mapped = (skip + len)
            .checked_next_multiple_of(page)
            .and_then(|mapped| usize::try_from(mapped).ok())
            .ok_or(overflow)?;
        // SAFETY: a new mapping where the kernel likes, over nothing that exists.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                fd.as_raw_fd(),
                (offset - skip) as libc::off_t,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(refused("mmap", offset, len)(io::Error::last_os_error()));
        }
        let mut mapping =
            Self { base: base.cast(), mapped, skip: skip as usize, len, fd, watch: None };
        // From here on a failure unmaps by dropping.
        let watch = sigbus::Watch::new(base as usize, mapped, page as usize);
        mapping.watch = Some(watch.ok_or(MemoryError::TooMany {
            what: "mappings",
            limit: sigbus::MAX_WATCHES,
            address: offset,
            size: len,
        })?);
        Ok(Arc::new(mapping))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // First of all, so that no new mapping at the same address meets the old watch.
        self.watch = None;
        // SAFETY: exactly what `map` mapped; nobody holds a pointer into it without an `Arc`.
        unsafe { libc::munmap(self.base.cast(), self.mapped) };
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The size of a regular file; other things need not have any.
fn regular_file_size(fd: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    // SAFETY: all zeros is a valid value of the structure.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: a descriptor and a structure to fill.
    check(unsafe { libc::fstat(fd.as_raw_fd(), &mut status) })?;
    let regular = status.st_mode & libc::S_IFMT == libc::S_IFREG;
    Ok(regular.then_some(status.st_size as u64))
}

fn page_bytes() -> u64 {
    // SAFETY: takes a number.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 }
}

/// The unit in which a file can be mapped.
fn page_bytes_of(fd: BorrowedFd<'_>) -> u64 {
    // SAFETY: all zeros is a valid value of the structure.
    let mut system: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a descriptor and a structure to fill.
    let known = unsafe { libc::fstatfs(fd.as_raw_fd(), &mut system) } == 0;
    if known && system.f_type as u32 == libc::HUGETLBFS_MAGIC as u32 {
        (system.f_bsize as u64).max(page_bytes())
    } else {
        page_bytes()
    }
}

/// A system call that failed for a range of a file.
fn refused(what: &'static str, offset: u64, size: u64) -> impl FnOnce(io::Error) -> MemoryError {
    move |error| MemoryError::System {
        what,
        offset,
        size,
        errno: error.raw_os_error().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, SeekFrom, Write};

    use super::*;

    /// A file in memory without seals.
    fn file(len: u64) -> File {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: a new descriptor that nobody else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len).unwrap();
        file
    }

    fn byte(mapping: &Mapping, at: u64) -> u8 {
        assert!(at < mapping.len());
        // SAFETY: inside the mapping.
        unsafe { mapping.ptr().add(at as usize).read_volatile() }
    }

    #[test]
    fn offset_need_not_be_aligned() {
        let mut file = file(3 * 4096);
        file.seek(SeekFrom::Start(4096 + 100)).unwrap();
        file.write_all(b"hello").unwrap();
        let mapping = Mapping::of_file(file.as_fd(), 4096 + 100, 5000).unwrap();
        assert_eq!(mapping.len(), 5000);
        assert_eq!((0..5).map(|at| byte(&mapping, at)).collect::<Vec<_>>(), b"hello");
        // SAFETY: inside the mapping.
        unsafe { mapping.ptr().add(4999).write_volatile(7) };
        let mut end = [0];
        file.seek(SeekFrom::Start(4096 + 100 + 4999)).unwrap();
        file.read_exact(&mut end).unwrap();
        assert_eq!(end, [7]);
    }

    #[test]
    fn offset_below_a_huge_page_is_mapped_from_its_begin() {
        const HUGE: u64 = 2 << 20;
        let file = file(2 * HUGE);
        let fd = file.try_clone().unwrap().into();
        let mapping = Mapping::map(fd, HUGE + 8192, 100, HUGE).unwrap();
        assert_eq!(mapping.skip, 8192);
        assert_eq!(mapping.mapped as u64, HUGE);
    }

    #[test]
    fn hugetlbfs_where_there_are_huge_pages() {
        let flags = libc::MFD_CLOEXEC | libc::MFD_HUGETLB;
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"huge".as_ptr(), flags) };
        if fd < 0 {
            return;
        }
        // SAFETY: a new descriptor that nobody else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        let page = page_bytes_of(file.as_fd());
        assert!(page > page_bytes());
        file.set_len(2 * page).unwrap();
        let mapping = Mapping::of_file(file.as_fd(), page + 4096, 4096).unwrap();
        assert_eq!((mapping.skip, mapping.mapped as u64), (4096, page));
        // Without free huge pages this is a SIGBUS, too.
        assert_eq!(byte(&mapping, 0), 0);
        file.set_len(page).unwrap();
        assert_eq!(byte(&mapping, 100), 0);
        assert!(mapping.is_truncated());
    }

    #[test]
    fn anonymous_memory_is_zero_shared_and_sealed() {
        let mapping = Mapping::anonymous(5000).unwrap();
        assert_eq!(mapping.len(), 8192);
        assert_eq!(byte(&mapping, 8191), 0);
        let again = Mapping::of_file(mapping.fd(), 0, 8192).unwrap();
        // SAFETY: inside the mapping.
        unsafe { mapping.ptr().write_volatile(9) };
        assert_eq!(byte(&again, 0), 9);
        let file = File::from(mapping.fd().try_clone_to_owned().unwrap());
        file.set_len(4096).unwrap_err();
        assert!(!mapping.is_truncated());
    }

    #[test]
    fn descriptors_are_closed_on_exec_and_our_own() {
        let file = file(4096);
        let mapping = Mapping::of_file(file.as_fd(), 0, 4096).unwrap();
        for mapping in [&mapping, &Mapping::anonymous(1).unwrap()] {
            assert_ne!(mapping.fd().as_raw_fd(), file.as_raw_fd());
            // SAFETY: takes a descriptor.
            let flags = unsafe { libc::fcntl(mapping.fd().as_raw_fd(), libc::F_GETFD) };
            assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        }
        drop(file);
        assert_eq!(byte(&mapping, 4095), 0);
    }

    #[test]
    fn a_device_has_no_size_to_check() {
        let zero = File::options().read(true).write(true).open("/dev/zero").unwrap();
        let mapping = Mapping::of_file(zero.as_fd(), 0, 1 << 20).unwrap();
        assert_eq!(byte(&mapping, (1 << 20) - 1), 0);
    }

    #[test]
    fn what_cannot_be_mapped_says_why() {
        let null = File::open("/dev/null").unwrap();
        let error = Mapping::of_file(null.as_fd(), 0, 4096).unwrap_err();
        assert!(matches!(error, MemoryError::System { what: "mmap", .. }), "{error}");
        let read_only = File::open("/proc/self/exe").unwrap();
        let error = Mapping::of_file(read_only.as_fd(), 0, 4096).unwrap_err();
        assert!(error.to_string().contains("denied"), "{error}");
    }

    #[test]
    fn row_24_offset_and_size_past_the_end_of_the_file() {
        let file = file(8192);
        let short = |offset, size| MemoryError::FileTooShort { offset, size, file_size: 8192 };
        let of_file = |offset, size| {
            Mapping::of_file(file.as_fd(), offset, size).err().map(|e| e.to_string())
        };
        assert_eq!(of_file(0, 8192), None);
        for (offset, size) in [(0, 8193), (4096, 4097), (8192, 1), (1 << 40, 4096)] {
            assert_eq!(of_file(offset, size), Some(short(offset, size).to_string()));
        }
        for (address, size) in [(u64::MAX, 1), (1, u64::MAX), (4096, i64::MAX as u64)] {
            let overflow = MemoryError::Overflow { address, size };
            assert_eq!(of_file(address, size), Some(overflow.to_string()));
        }
        Mapping::anonymous(u64::MAX).unwrap_err();
    }

    #[test]
    fn row_24_mapping_of_size_0() {
        let error = Mapping::of_file(file(4096).as_fd(), 0x10, 0).unwrap_err();
        assert_eq!(error, MemoryError::Empty { address: 0x10 });
        Mapping::anonymous(0).unwrap_err();
    }

    #[test]
    fn row_24_file_truncated_under_its_mapping() {
        let file = file(16 * 4096);
        let mapping = Mapping::of_file(file.as_fd(), 0, 16 * 4096).unwrap();
        let other = Mapping::of_file(file.as_fd(), 0, 4096).unwrap();
        // SAFETY: inside the mapping.
        unsafe { mapping.ptr().write_bytes(0xaa, 16 * 4096) };
        file.set_len(4096).unwrap();
        assert_eq!(byte(&mapping, 100), 0xaa);
        assert!(!mapping.is_truncated());
        assert_eq!(byte(&mapping, 5 * 4096 + 17), 0);
        assert!(mapping.is_truncated());
        // From another thread, by writing, and in the middle of a copy.
        std::thread::scope(|scope| {
            // SAFETY: inside the mapping.
            scope.spawn(|| unsafe { mapping.ptr().add(9 * 4096).write_volatile(3) });
        });
        assert_eq!(byte(&mapping, 9 * 4096), 3);
        // SAFETY: inside the mapping.
        let copy = unsafe { std::slice::from_raw_parts(mapping.ptr(), 16 * 4096) }.to_vec();
        assert!(copy[..4096].iter().all(|&b| b == 0xaa));
        assert_eq!(copy[4096..].iter().map(|&b| u64::from(b)).sum::<u64>(), 3);
        assert!(!other.is_truncated());
        // A new mapping in the same slot starts afresh.
        drop(mapping);
        assert!(!Mapping::anonymous(4096).unwrap().is_truncated());
    }

    #[test]
    fn row_24_truncated_while_mappings_come_and_go() {
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        let mapping = Mapping::anonymous(4096).unwrap();
                        assert_eq!(byte(&mapping, 0), 0);
                        assert!(!mapping.is_truncated());
                    }
                });
            }
            let faulting: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..500 {
                            let file = file(3 * 4096);
                            let mapping = Mapping::of_file(file.as_fd(), 0, 3 * 4096).unwrap();
                            file.set_len(0).unwrap();
                            assert_eq!(byte(&mapping, 4096), 0);
                            assert!(mapping.is_truncated());
                        }
                    })
                })
                .collect();
            let failed = faulting.into_iter().filter_map(|thread| thread.join().err()).count();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(failed, 0);
        });
    }
}
