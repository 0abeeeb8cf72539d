//! Transfers past the page cache (O_DIRECT), which want aligned memory, offsets and lengths.
//!
//! What is aligned goes straight to guest memory. Anything else goes by way of an aligned buffer,
//! and a write of part of a block reads that block first. Nobody else may write the block in
//! between, so such a write is alone, while aligned ones keep each other company.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use libc::iovec;

use super::store::{Way, transfer};
use crate::memory::{copy_from_shared, copy_to_shared};

/// Bytes that go through the aligned buffer at a time; a multiple of every block size.
const CHUNK_BYTES: u64 = 1 << 20;
/// What every device and file system takes, where the kernel does not say.
const SAFE_BYTES: u32 = 4096;

/// What a file wants of direct transfers.
#[derive(Debug)]
pub struct Direct {
    memory_alignment: usize,
    /// Of offsets and lengths.
    pub block_bytes: u64,
    /// Held for writing while a block is read to be written back, for reading by any other change.
    blocks: RwLock<()>,
}

impl Direct {
    /// Asks the kernel about an open file.
    pub fn of(file: &File) -> io::Result<Self> {
        let mut info = MaybeUninit::<libc::statx>::zeroed();
        // SAFETY: an empty path names the descriptor itself; the kernel fills the structure, of
        // which all zeroes are a value.
        let info = unsafe {
            let (fd, flags) = (file.as_raw_fd(), libc::AT_EMPTY_PATH);
            let wanted = libc::STATX_DIOALIGN;
            if libc::statx(fd, c"".as_ptr(), flags, wanted, info.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            info.assume_init()
        };
        let or_safe = |bytes: u32| if bytes == 0 { SAFE_BYTES } else { bytes };
        let memory_alignment = or_safe(info.stx_dio_mem_align) as usize;
        Ok(Self::with(memory_alignment, or_safe(info.stx_dio_offset_align).max(512).into()))
    }

    /// Two powers of two; blocks of at most `CHUNK_BYTES`.
    pub fn with(memory_alignment: usize, block_bytes: u64) -> Self {
        Self { memory_alignment, block_bytes, blocks: RwLock::new(()) }
    }

    /// Moves all bytes of `vectors`, which are used up.
    ///
    /// # Safety
    /// As for [`super::store::Store::transfer`].
    pub unsafe fn transfer(
        &self,
        file: &File,
        way: Way,
        offset: u64,
        vectors: &mut [iovec],
    ) -> io::Result<()> {
        // SAFETY: as promised to us.
        unsafe {
            if self.admits(offset, vectors) {
                let _beside_others = (way == Way::Write).then(|| self.beside_others());
                transfer(file, way, offset, vectors)
            } else {
                self.bounce(file, way, offset, vectors)
            }
        }
    }

    /// For a change of whole blocks.
    pub fn beside_others(&self) -> RwLockReadGuard<'_, ()> {
        self.blocks.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody holds blocks.
    #[cfg(test)]
    pub fn is_free(&self) -> bool {
        self.blocks.try_write().is_ok()
    }

    /// Whether a transfer can go straight to and from memory.
    pub fn admits(&self, offset: u64, vectors: &[iovec]) -> bool {
        offset.is_multiple_of(self.block_bytes)
            && vectors.iter().all(|vector| {
                vector.iov_base.addr().is_multiple_of(self.memory_alignment)
                    && (vector.iov_len as u64).is_multiple_of(self.block_bytes)
            })
    }

    unsafe fn bounce(
        &self,
        file: &File,
        way: Way,
        mut offset: u64,
        vectors: &mut [iovec],
    ) -> io::Result<()> {
        let block = self.block_bytes;
        let end = offset + vectors.iter().map(|vector| vector.iov_len as u64).sum::<u64>();
        let mut memory = Vec::new();
        let mut cursor = Cursor { vectors, at: 0 };
        while offset < end {
            let start = offset - offset % block;
            let stop = end.min(start + CHUNK_BYTES);
            let length = (stop.next_multiple_of(block) - start) as usize;
            let buffer = aligned(&mut memory, length, self.memory_alignment.max(block as usize));
            let part = (offset - start) as usize..(stop - start) as usize;
            // SAFETY: the cursor's vectors are valid by contract.
            unsafe {
                match way {
                    Way::Read => {
                        move_block(file, Way::Read, start, buffer)?;
                        cursor.scatter(&buffer[part]);
                    }
                    Way::Write => self.write_part(file, start, buffer, part, &mut cursor)?,
                }
            }
            offset = stop;
        }
        Ok(())
    }

    /// Writes whole blocks of which `part` comes from the cursor and the rest stays as it is.
    unsafe fn write_part(
        &self,
        file: &File,
        start: u64,
        buffer: &mut [u8],
        part: std::ops::Range<usize>,
        cursor: &mut Cursor<'_>,
    ) -> io::Result<()> {
        let block = self.block_bytes as usize;
        if part.len() == buffer.len() {
            // SAFETY: as promised to us.
            unsafe { cursor.gather(buffer) };
            let _beside_others = self.beside_others();
            return move_block(file, Way::Write, start, buffer);
        }
        let _alone = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        if part.start > 0 {
            move_block(file, Way::Read, start, &mut buffer[..block])?;
        }
        let last = buffer.len() - block;
        if part.end < buffer.len() && (last > 0 || part.start == 0) {
            move_block(file, Way::Read, start + last as u64, &mut buffer[last..])?;
        }
        // SAFETY: as promised to us.
        unsafe { cursor.gather(&mut buffer[part]) };
        move_block(file, Way::Write, start, buffer)
    }
}

fn aligned(memory: &mut Vec<u8>, length: usize, alignment: usize) -> &mut [u8] {
    if memory.len() < length + alignment {
        *memory = vec![0; length + alignment];
    }
    let skip = memory.as_ptr().align_offset(alignment);
    &mut memory[skip..skip + length]
}

fn move_block(file: &File, way: Way, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    let mut vector = [iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }];
    // SAFETY: the vector is the slice, which is ours alone.
    unsafe { transfer(file, way, offset, &mut vector) }
}

/// A place in a list of vectors.
struct Cursor<'a> {
    vectors: &'a [iovec],
    /// Bytes of the first one that are done.
    at: usize,
}

impl Cursor<'_> {
    /// # Safety
    /// What is left of the vectors must be valid for writing.
    unsafe fn scatter(&mut self, mut from: &[u8]) {
        while let Some((ptr, length)) = self.next(from.len()) {
            let (now, later) = from.split_at(length);
            // SAFETY: a part of a vector.
            unsafe { copy_to_shared(ptr, now) };
            from = later;
        }
    }

    /// # Safety
    /// What is left of the vectors must be valid for reading.
    unsafe fn gather(&mut self, mut into: &mut [u8]) {
        while let Some((ptr, length)) = self.next(into.len()) {
            let (now, later) = std::mem::take(&mut into).split_at_mut(length);
            // SAFETY: a part of a vector.
            unsafe { copy_from_shared(ptr, now) };
            into = later;
        }
    }

    /// The next piece of at most `max` bytes; None if that is 0.
    fn next(&mut self, max: usize) -> Option<(*mut u8, usize)> {
        if max == 0 {
            return None;
        }
        loop {
            let (first, rest) = self.vectors.split_first()?;
            if self.at < first.iov_len {
                let length = max.min(first.iov_len - self.at);
                let ptr = first.iov_base.cast::<u8>().wrapping_add(self.at);
                self.at += length;
                return Some((ptr, length));
            }
            (self.vectors, self.at) = (rest, 0);
        }
    }
}
