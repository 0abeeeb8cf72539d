//! A disk in the memory of this process. Transfers are copies and make no system call; where nothing
//! was written yet, it takes no memory, read or not.

use std::io;
use std::ptr;

use libc::iovec;

use super::store::Way;
use crate::memory::{copy_streaming, streamed};

/// How much of the next transfer is fetched while one is made.
pub const PREFETCH_BYTES: u64 = 1024;
#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;

/// Zeroes at first.
pub struct Ram {
    base: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory of which only copies are made, by whatever thread. Requests that overlap in
// time and place race as they do on any disk: each byte is that of one or the other.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    /// So many bytes, at least one.
    pub fn new(bytes: u64) -> io::Result<Self> {
        let beyond = || io::Error::from_raw_os_error(libc::ENOMEM);
        let bytes = usize::try_from(bytes).map_err(|_| beyond())?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // Private, so that reading a page that was never written maps the one page of zeroes.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping where the kernel likes, over nothing that exists.
        let base = unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // A disk is read here and there: with large pages the processor finds its addresses quicker.
        // Advice, and no loss where it is not taken.
        // SAFETY: the mapping made above.
        unsafe { libc::madvise(base, bytes, libc::MADV_HUGEPAGE) };
        Ok(Self { base: base.cast(), bytes })
    }

    /// Where a range begins; EIO if it is not all there.
    fn at(&self, offset: u64, length: usize) -> io::Result<*mut u8> {
        let beyond = || io::Error::from_raw_os_error(libc::EIO);
        let start = usize::try_from(offset).map_err(|_| beyond())?;
        let end = start.checked_add(length).ok_or_else(beyond)?;
        if end > self.bytes {
            return Err(beyond());
        }
        Ok(self.base.wrapping_add(start))
    }

    /// Has the processor fetch the beginning of a range that is transferred next; what follows, its
    /// own prefetching finds.
    #[inline]
    pub fn prefetch(&self, way: Way, offset: u64, length: u64) {
        let length = length.min(PREFETCH_BYTES) as usize;
        if let Ok(start) = self.at(offset, length) {
            prefetch(way, start, length);
        }
    }

    /// Moves all bytes of `vectors`. Beyond the end: EIO, and nothing is moved.
    ///
    /// Writes go past the caches: a disk is written here and there, and its lines would have to be
    /// fetched only to be overwritten. Before anybody is told of them comes `settle`.
    ///
    /// # Safety
    /// Each vector must be valid for writing (`Way::Read`) or reading (`Way::Write`).
    pub unsafe fn transfer(&self, way: Way, offset: u64, vectors: &[iovec]) -> io::Result<()> {
        let length = vectors.iter().map(|vector| vector.iov_len).sum();
        let mut here = self.at(offset, length)?;
        for vector in vectors {
            let there = vector.iov_base.cast::<u8>();
            // SAFETY: the range was checked, the vector is valid by contract, and nobody but this
            // disk has a pointer into its memory, so they do not overlap.
            unsafe {
                match way {
                    Way::Read => there.copy_from_nonoverlapping(here, vector.iov_len),
                    Way::Write => copy_streaming(there, here, vector.iov_len),
                }
            }
            here = here.wrapping_add(vector.iov_len);
        }
        Ok(())
    }

    /// Other threads, too, see what was written.
    #[inline]
    pub fn settle(&self) {
        streamed();
    }

    /// Make the range read as zeroes; with `unmap` its whole pages go back to the system. Beyond the
    /// end: EIO.
    pub fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let start = self.at(offset, length)?;
        // SAFETY: takes a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize };
        let before = start.addr().next_multiple_of(page) - start.addr();
        let pages = length.saturating_sub(before) / page * page;
        // SAFETY: all of it lies within the range, which was checked.
        unsafe {
            if !unmap || pages == 0 {
                start.write_bytes(0, length);
                return Ok(());
            }
            start.write_bytes(0, before);
            let middle = start.wrapping_add(before);
            // A private page without a file behind it is a page of zeroes from then on.
            if libc::madvise(middle.cast(), pages, libc::MADV_DONTNEED) != 0 {
                return Err(io::Error::last_os_error());
            }
            middle.wrapping_add(pages).write_bytes(0, length - before - pages);
        }
        Ok(())
    }
}

/// Has the processor fetch lines of memory that are read (`Way::Read`) or written next.
#[inline]
pub fn prefetch(way: Way, start: *const u8, length: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..length).step_by(LINE_BYTES) {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
        let line = start.wrapping_add(at).cast();
        // SAFETY: a hint, which has no other effect and faults nowhere.
        unsafe {
            match way {
                Way::Read => _mm_prefetch::<_MM_HINT_T0>(line),
                Way::Write => _mm_prefetch::<_MM_HINT_ET0>(line),
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (way, start, length);
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped; pointers into it do not outlive a call.
        unsafe { libc::munmap(self.base.cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 64 << 10;

    fn vector(bytes: &mut [u8]) -> [iovec; 1] {
        [iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }]
    }

    fn content(ram: &Ram) -> Vec<u8> {
        let mut bytes = vec![1; BYTES];
        // SAFETY: the vector is the slice.
        unsafe { ram.transfer(Way::Read, 0, &vector(&mut bytes)).unwrap() };
        bytes
    }

    #[test]
    fn zeroes_begin_and_end_where_they_should() {
        let ram = Ram::new(BYTES as u64).unwrap();
        assert_eq!(content(&ram), [0; BYTES]);
        for unmap in [false, true] {
            for (offset, length) in [
                (0, BYTES),
                (512, 512),
                (512, 4096),
                (4096, 4096),
                (3584, 8704),
                (5000, 30000),
                (9, 0),
            ] {
                let mut bytes = vec![7; BYTES];
                // SAFETY: the vector is the slice.
                unsafe { ram.transfer(Way::Write, 0, &vector(&mut bytes)).unwrap() };
                ram.write_zeroes(offset as u64, length as u64, unmap).unwrap();
                bytes[offset..offset + length].fill(0);
                assert!(content(&ram) == bytes, "{offset} {length} {unmap}");
            }
        }
    }

    #[test]
    fn what_lies_beyond_the_end_is_an_error() {
        let ram = Ram::new(BYTES as u64).unwrap();
        let mut bytes = [9; 512];
        for offset in [BYTES as u64 - 511, BYTES as u64, u64::MAX] {
            // SAFETY: the vector is the slice.
            let moved = unsafe { ram.transfer(Way::Write, offset, &vector(&mut bytes)) };
            assert_eq!(moved.unwrap_err().raw_os_error(), Some(libc::EIO));
            let zeroed = ram.write_zeroes(offset, 512, true);
            assert_eq!(zeroed.unwrap_err().raw_os_error(), Some(libc::EIO));
        }
        ram.write_zeroes(0, u64::MAX, true).unwrap_err();
        assert_eq!(content(&ram), [0; BYTES]);
        Ram::new(u64::MAX).err().unwrap();
    }
}
