//! An open file, and the system calls that move a disk's bytes.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use libc::iovec;

use super::direct::Direct;

/// Pieces that one system call takes (IOV_MAX).
pub const VECTORS_MAX: usize = 1024;
/// A file system or device answers with one of these to what it cannot do at all or not here.
const CANNOT: [i32; 5] = [libc::EOPNOTSUPP, libc::ENOSYS, libc::ENODEV, libc::EINVAL, libc::ENOTTY];
// _IO(0x12, 119) and _IO(0x12, 127), counted from _IO(0x12, 104): the encoding depends on the
// processor.
const BLKDISCARD: libc::Ioctl = libc::BLKSSZGET + 15;
const BLKZEROOUT: libc::Ioctl = libc::BLKSSZGET + 23;

/// What is written where nothing quicker makes zeroes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Which way bytes move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the file.
    Read,
    /// To the file.
    Write,
}

/// A regular file or a block device.
pub struct Store {
    pub file: File,
    pub is_block_device: bool,
    /// Present if the file is open with O_DIRECT.
    pub direct: Option<Direct>,
}

impl Store {
    /// Moves all bytes of `vectors`, which are used up. A file that ends before is an error (EIO).
    ///
    /// # Safety
    /// Each vector must be valid for writing (`Way::Read`) or reading (`Way::Write`).
    pub unsafe fn transfer(&self, way: Way, offset: u64, vectors: &mut [iovec]) -> io::Result<()> {
        // SAFETY: as promised to us.
        unsafe {
            match &self.direct {
                None => transfer(&self.file, way, offset, vectors),
                Some(direct) => direct.transfer(&self.file, way, offset, vectors),
            }
        }
    }

    /// Reads what can be had without waiting for the storage, from the beginning of `vectors`;
    /// returns how many bytes that was, or None if the file system cannot tell. Says nothing of
    /// errors: who reads the rest meets them.
    ///
    /// # Safety
    /// Each vector must be valid for writing.
    pub unsafe fn read_at_hand(&self, offset: u64, vectors: &[iovec]) -> Option<usize> {
        let (fd, at) = (self.file.as_raw_fd(), offset as libc::off_t);
        let count = vectors.len().min(VECTORS_MAX) as libc::c_int;
        // SAFETY: the vectors are valid by contract.
        let read = unsafe { libc::preadv2(fd, vectors.as_ptr(), count, at, libc::RWF_NOWAIT) };
        if read < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP) {
            return None;
        }
        Some(usize::try_from(read).unwrap_or(0))
    }

    /// Commit what was written.
    pub fn flush(&self) -> io::Result<()> {
        // SAFETY: a descriptor that we own.
        done(|| unsafe { libc::fdatasync(self.file.as_raw_fd()) })
    }

    /// The range's content is no longer needed; does nothing where the storage cannot use that.
    pub fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        if self.is_block_device {
            self.attempt(|| self.ioctl(BLKDISCARD, offset, length))?;
        } else {
            self.attempt(|| self.fallocate(libc::FALLOC_FL_PUNCH_HOLE, offset, length))?;
        }
        Ok(())
    }

    /// Make the range read as zeroes; with `unmap` it may be deallocated.
    pub fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        let punch = || self.fallocate(libc::FALLOC_FL_PUNCH_HOLE, offset, length);
        if unmap && self.attempt(punch)? {
            return Ok(());
        }
        let zeroed = if self.is_block_device {
            self.attempt(|| self.ioctl(BLKZEROOUT, offset, length))?
        } else {
            self.attempt(|| self.fallocate(libc::FALLOC_FL_ZERO_RANGE, offset, length))?
        };
        if zeroed { Ok(()) } else { self.write_zero_bytes(offset, length) }
    }

    fn write_zero_bytes(&self, mut offset: u64, mut length: u64) -> io::Result<()> {
        let base = ZEROES.as_ptr().cast_mut().cast();
        while length > 0 {
            let now = length.min((ZEROES.len() * VECTORS_MAX) as u64);
            let whole = iovec { iov_base: base, iov_len: ZEROES.len() };
            let mut vectors = vec![whole; now.div_ceil(ZEROES.len() as u64) as usize];
            if let (Some(last), rest @ 1..) = (vectors.last_mut(), now as usize % ZEROES.len()) {
                last.iov_len = rest;
            }
            // SAFETY: every vector lies in the static and is only read.
            unsafe { self.transfer(Way::Write, offset, &mut vectors)? };
            offset += now;
            length -= now;
        }
        Ok(())
    }

    /// True if done, false if the storage cannot.
    fn attempt(&self, call: impl Fn() -> libc::c_int) -> io::Result<bool> {
        let _beside_others = self.direct.as_ref().map(Direct::beside_others);
        match done(call) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error().is_some_and(|code| CANNOT.contains(&code)) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn fallocate(&self, mode: libc::c_int, offset: u64, length: u64) -> libc::c_int {
        let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
        let (offset, length) = (offset as libc::off_t, length as libc::off_t);
        // SAFETY: a descriptor that we own.
        unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, length) }
    }

    fn ioctl(&self, request: libc::Ioctl, offset: u64, length: u64) -> libc::c_int {
        let range = [offset, length];
        // SAFETY: both requests read a range of two words, which lives during the call.
        unsafe { libc::ioctl(self.file.as_raw_fd(), request, range.as_ptr()) }
    }
}

/// Calls again what a signal interrupted.
fn done(call: impl Fn() -> libc::c_int) -> io::Result<()> {
    loop {
        if call() == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Moves all bytes of `vectors` with as many calls as it takes.
///
/// # Safety
/// As for [`Store::transfer`].
pub unsafe fn transfer(
    file: &File,
    way: Way,
    mut offset: u64,
    mut vectors: &mut [iovec],
) -> io::Result<()> {
    loop {
        while vectors.first().is_some_and(|vector| vector.iov_len == 0) {
            vectors = &mut std::mem::take(&mut vectors)[1..];
        }
        if vectors.is_empty() {
            return Ok(());
        }
        let (fd, at) = (file.as_raw_fd(), offset as libc::off_t);
        let count = vectors.len().min(VECTORS_MAX) as libc::c_int;
        // SAFETY: the vectors are valid by contract. What is no longer behind them, since a file
        // was truncated under its mapping, is an error of the call.
        let moved = unsafe {
            match way {
                Way::Read => libc::preadv(fd, vectors.as_ptr(), count, at),
                Way::Write => libc::pwritev(fd, vectors.as_ptr(), count, at),
            }
        };
        match moved {
            1.. => {
                offset += moved as u64;
                advance(vectors, moved as usize);
            }
            0 => return Err(io::Error::from_raw_os_error(libc::EIO)),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// The first `bytes` of them are done.
pub fn advance(vectors: &mut [iovec], mut bytes: usize) {
    for vector in vectors {
        let part = bytes.min(vector.iov_len);
        vector.iov_base = vector.iov_base.wrapping_byte_add(part);
        vector.iov_len -= part;
        bytes -= part;
        if bytes == 0 {
            return;
        }
    }
}
