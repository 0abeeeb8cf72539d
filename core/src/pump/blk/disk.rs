//! What is behind a block device: its sectors, its limits, its name.

use std::fmt;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use libc::iovec;

use super::direct::Direct;
use super::ram::Ram;
use super::stats::Stats;
use super::store::{Store, Way};

/// Bytes of a sector, whatever the block size.
pub const SECTOR_BYTES: u64 = 512;
/// Bytes that GET_ID answers.
pub const ID_BYTES: usize = 20;
/// The most segments that a limit may allow, since a request's segments are copied out first.
pub const SEGMENTS_MAX: u32 = 1 << 16;

/// What discard and write zeroes requests may hold, named as in the configuration space (5.2.4). No
/// segments or no sectors: the request type is unsupported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Limits {
    pub max_discard_sectors: u32,
    pub max_discard_seg: u32,
    pub discard_sector_alignment: u32,
    pub max_write_zeroes_sectors: u32,
    pub max_write_zeroes_seg: u32,
    pub write_zeroes_may_unmap: bool,
}

/// How to open a file as a disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Refuse whatever changes it.
    pub read_only: bool,
    /// Go past the page cache (O_DIRECT).
    pub direct: bool,
    /// Make every transfer by a system call of its own, never through io_uring.
    pub no_io_uring: bool,
}

/// Why there is no disk.
#[derive(Debug)]
pub enum OpenError {
    /// The operating system's reason.
    System(io::Error),
    /// The file or the size cannot be a disk; in words.
    Unfit(String),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(error) => error.fmt(f),
            Self::Unfit(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for OpenError {}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

enum Backing {
    Stored(Store),
    Ram(Ram),
    /// Reads zeroes, forgets what is written.
    Null,
}

/// A disk that any number of paths serve at the same time.
pub struct Disk {
    backing: Backing,
    capacity: AtomicU64,
    read_only: bool,
    io_uring: bool,
    block_size: u32,
    writeback: AtomicBool,
    serial: RwLock<[u8; ID_BYTES]>,
    limits: RwLock<Limits>,
    stats: Stats,
    /// The errno of the first failure that nobody asked for yet.
    failure: AtomicI32,
}

impl Disk {
    fn new(
        backing: Backing,
        size: u64,
        read_only: bool,
        block_size: u32,
    ) -> Result<Self, OpenError> {
        let capacity = size / SECTOR_BYTES;
        if capacity == 0 {
            let text = format!("{size} bytes are less than a sector of {SECTOR_BYTES}");
            return Err(OpenError::Unfit(text));
        }
        let limits = Limits {
            max_discard_sectors: 1 << 22,
            max_discard_seg: 32,
            discard_sector_alignment: block_size / SECTOR_BYTES as u32,
            max_write_zeroes_sectors: 1 << 22,
            max_write_zeroes_seg: 32,
            write_zeroes_may_unmap: true,
        };
        Ok(Self {
            backing,
            capacity: AtomicU64::new(capacity),
            read_only,
            io_uring: true,
            block_size,
            writeback: AtomicBool::new(true),
            serial: RwLock::new([0; ID_BYTES]),
            limits: RwLock::new(if read_only { Limits::default() } else { limits }),
            stats: Stats::default(),
            failure: AtomicI32::new(0),
        })
    }

    /// A file that is open already.
    #[cfg(test)]
    pub(super) fn on(store: Store, size: u64) -> Self {
        Self::new(Backing::Stored(store), size, false, SECTOR_BYTES as u32).expect("large enough")
    }

    /// A regular file or a block device.
    pub fn file(path: &Path, options: Options) -> Result<Self, OpenError> {
        // Before opening it, which would wait at a pipe for the other end.
        let kind = std::fs::metadata(path)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let text = format!("{} is neither a regular file nor a block device", path.display());
            return Err(OpenError::Unfit(text));
        }
        let flags = if options.direct { libc::O_DIRECT } else { 0 };
        let mut file = File::options()
            .read(true)
            .write(!options.read_only)
            .custom_flags(flags | libc::O_CLOEXEC)
            .open(path)?;
        let size = file.seek(SeekFrom::End(0))?;
        let direct = options.direct.then(|| Direct::of(&file)).transpose()?;
        let block_bytes = match &direct {
            Some(direct) => direct.block_bytes,
            None if kind.is_block_device() => logical_block_bytes(&file)?,
            None => SECTOR_BYTES,
        };
        if direct.is_some() && !size.is_multiple_of(block_bytes) {
            return Err(OpenError::Unfit(format!(
                "{size} bytes are not a multiple of {block_bytes}, as direct transfers need"
            )));
        }
        let store = Store { file, is_block_device: kind.is_block_device(), direct };
        let disk = Self::new(Backing::Stored(store), size, options.read_only, block_bytes as u32)?;
        Ok(Self { io_uring: !options.no_io_uring, ..disk })
    }

    /// Zeroes in memory of this process.
    pub fn memory(size: u64) -> Result<Self, OpenError> {
        let sectors = size - size % SECTOR_BYTES;
        let ram = Ram::new(sectors.max(SECTOR_BYTES))?;
        Self::new(Backing::Ram(ram), size, false, SECTOR_BYTES as u32)
    }

    /// Reads zeroes, forgets what is written.
    pub fn null(size: u64) -> Result<Self, OpenError> {
        Self::new(Backing::Null, size, false, SECTOR_BYTES as u32)
    }

    /// Sectors.
    pub fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Look at the file's size again; returns the capacity in sectors.
    pub fn refresh(&self) -> io::Result<u64> {
        if let Backing::Stored(store) = &self.backing {
            let size = (&store.file).seek(SeekFrom::End(0))?;
            let whole = size - size % u64::from(self.block_size);
            self.capacity.store(whole / SECTOR_BYTES, Ordering::Relaxed);
        }
        Ok(self.capacity())
    }

    /// Whether whatever changes it is refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Whether transfers that wait for the storage may go through io_uring.
    pub fn io_uring(&self) -> bool {
        self.io_uring
    }

    /// Bytes that transfers are best a multiple of, and begin at one.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Whether writes may stay in a cache until a flush.
    pub fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    /// Switch the write cache.
    pub fn set_writeback(&self, on: bool) {
        self.writeback.store(on, Ordering::Relaxed);
    }

    /// What GET_ID answers, padded with zeroes.
    pub fn serial(&self) -> [u8; ID_BYTES] {
        *self.serial.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Set what GET_ID answers.
    pub fn set_serial(&self, serial: [u8; ID_BYTES]) {
        *self.serial.write().unwrap_or_else(PoisonError::into_inner) = serial;
    }

    /// What discard and write zeroes requests may hold.
    pub fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Set what discard and write zeroes requests may hold.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// What the requests of all paths came to.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The first failure of the storage since the last question.
    pub fn take_failure(&self) -> Option<io::Error> {
        let code = self.failure.swap(0, Ordering::Relaxed);
        (code != 0).then(|| io::Error::from_raw_os_error(code))
    }

    /// Keeps an error for `take_failure`.
    pub(super) fn note(&self, error: &io::Error) {
        let code = error.raw_os_error().unwrap_or(libc::EIO);
        let _ = self.failure.compare_exchange(0, code, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The byte offset of sectors that the disk has.
    pub(super) fn locate(&self, sector: u64, bytes: u64) -> Option<u64> {
        let left = self.capacity().checked_sub(sector)?;
        (bytes.is_multiple_of(SECTOR_BYTES) && bytes / SECTOR_BYTES <= left)
            .then(|| sector * SECTOR_BYTES)
    }

    /// The file, if there is one.
    pub(super) fn store(&self) -> Option<&Store> {
        match &self.backing {
            Backing::Stored(store) => Some(store),
            Backing::Ram(_) | Backing::Null => None,
        }
    }

    /// The memory, if it is in memory.
    #[inline]
    pub(super) fn ram(&self) -> Option<&Ram> {
        match &self.backing {
            Backing::Ram(ram) => Some(ram),
            Backing::Stored(_) | Backing::Null => None,
        }
    }

    /// Moves all bytes of `vectors`, which are used up.
    ///
    /// # Safety
    /// As for [`Store::transfer`].
    pub(super) unsafe fn transfer(
        &self,
        way: Way,
        offset: u64,
        vectors: &mut [iovec],
    ) -> io::Result<()> {
        match (&self.backing, way) {
            // SAFETY: as promised to us.
            (Backing::Stored(store), _) => unsafe { store.transfer(way, offset, vectors) },
            // SAFETY: as promised to us.
            (Backing::Ram(ram), _) => unsafe { ram.transfer(way, offset, vectors) },
            (Backing::Null, Way::Write) => Ok(()),
            (Backing::Null, Way::Read) => {
                for vector in vectors {
                    // SAFETY: as promised to us.
                    unsafe { vector.iov_base.cast::<u8>().write_bytes(0, vector.iov_len) };
                }
                Ok(())
            }
        }
    }

    /// Whether a range can be read: it ends within the capacity, else EIO.
    pub fn check_read(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check(offset, length, libc::EIO)
    }

    fn check(&self, offset: u64, length: u64, beyond: i32) -> io::Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.capacity().saturating_mul(SECTOR_BYTES) => Ok(()),
            _ => Err(io::Error::from_raw_os_error(beyond)),
        }
    }

    fn check_change(&self, offset: u64, length: u64) -> io::Result<()> {
        if self.read_only {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        self.check(offset, length, libc::ENOSPC)
    }

    /// Read at a byte offset. Beyond the capacity: EIO.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.check_read(offset, into.len() as u64)?;
        let mut vector = [iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() }];
        // SAFETY: the vector is the slice.
        unsafe { self.transfer(Way::Read, offset, &mut vector) }
    }

    /// Write at a byte offset. Read-only: EROFS; beyond the capacity: ENOSPC.
    pub fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.check_change(offset, from.len() as u64)?;
        let base = from.as_ptr().cast_mut().cast();
        let mut vector = [iovec { iov_base: base, iov_len: from.len() }];
        // SAFETY: the vector is the slice, and writing to a disk only reads it.
        unsafe { self.transfer(Way::Write, offset, &mut vector) }
    }

    /// Commit what was written to the storage below.
    pub fn flush(&self) -> io::Result<()> {
        match &self.backing {
            Backing::Stored(store) => store.flush(),
            Backing::Ram(_) | Backing::Null => Ok(()),
        }
    }

    /// A range's content is no longer needed; does nothing where the storage cannot use that.
    /// Errors as for `write`.
    pub fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check_change(offset, length)?;
        match &self.backing {
            Backing::Stored(store) if length > 0 => store.discard(offset, length),
            Backing::Ram(ram) if length > 0 => ram.write_zeroes(offset, length, true),
            _ => Ok(()),
        }
    }

    /// Make a range read as zeroes; with `unmap` it may be deallocated. Errors as for `write`.
    pub fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        self.check_change(offset, length)?;
        match &self.backing {
            Backing::Stored(store) if length > 0 => store.write_zeroes(offset, length, unmap),
            Backing::Ram(ram) if length > 0 => ram.write_zeroes(offset, length, unmap),
            _ => Ok(()),
        }
    }
}

fn logical_block_bytes(file: &File) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKSSZGET, &raw mut bytes) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((bytes as u64).max(SECTOR_BYTES))
}
