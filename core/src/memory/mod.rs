//! Guest memory: a table of mapped regions, looked up by guest address.
//!
//! A [`Memory`] is an immutable snapshot: changing the table makes a new one, and whoever still uses
//! the old one keeps its mappings alive. Every range is checked once, as a whole, against the region
//! that holds it; what comes out is a host pointer and a length that need no further check.
//!
//! With an [`Iotlb`] the addresses are IOVAs: they go through it to user addresses (those of the
//! process that owns the memory) and from there to a region. A range without a translation is a
//! [`QueueError::Miss`] that names it, so that the caller can resolve it and try again.

mod copy;
mod error;
mod iotlb;
mod log;
mod mapping;
mod region;
mod sigbus;
#[cfg(not(loom))]
mod userfault;
mod windows;

use std::sync::Arc;

use crate::error::{Fault, QueueError};

pub use copy::{
    copy_frame_from_shared, copy_from_shared, copy_streaming, copy_to_shared, fill_shared,
    fill_streaming, prefetch, prefetch_write, store_pair, streamed,
};
pub use error::MemoryError;
pub use iotlb::{Iotlb, MAX_TRANSLATIONS};
pub use log::{DirtyLog, LOG_PAGE_BYTES};
pub use mapping::Mapping;
pub use region::{MAX_REGIONS, Region};
#[cfg(not(loom))]
pub use userfault::Userfault;
pub use windows::{Window, Windows};

use region::Table;

/// What a range is to be used for; only an IOTLB tells the two apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading by the device.
    Read,
    /// Writing by the device.
    Write,
}

/// The region of the last hit. It is only ever a guess, checked against the [`Memory`] it is used
/// with, so it needs no invalidation.
#[derive(Debug, Default, Clone)]
pub struct Cache {
    region: usize,
}

/// A snapshot of guest memory.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    table: Table,
    log: Option<Arc<DirtyLog>>,
    iotlb: Option<Arc<Iotlb>>,
}

impl Memory {
    /// A memory without regions.
    pub fn new() -> Self {
        Self::default()
    }

    /// This memory and one more region. Fails if the region is empty, overflows, is larger than its
    /// mapping, or overlaps another in guest or user addresses, or if there are [`MAX_REGIONS`].
    pub fn with_region(&self, region: Region) -> Result<Self, MemoryError> {
        Ok(Self { table: self.table.with(region)?, ..self.clone() })
    }

    /// This memory without the region that has exactly this guest address, size and (if given) user
    /// address.
    pub fn without_region(
        &self,
        guest_addr: u64,
        size: u64,
        user_addr: Option<u64>,
    ) -> Result<Self, MemoryError> {
        Ok(Self { table: self.table.without(guest_addr, size, user_addr)?, ..self.clone() })
    }

    /// This memory without any region.
    pub fn without_regions(&self) -> Self {
        Self { table: Table::default(), ..self.clone() }
    }

    /// The regions, sorted by guest address.
    pub fn regions(&self) -> &[Region] {
        self.table.regions()
    }

    /// This memory with writes noted in `log` (or in none).
    pub fn with_log(&self, log: Option<Arc<DirtyLog>>) -> Self {
        Self { log, ..self.clone() }
    }

    /// The dirty log.
    pub fn log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref()
    }

    /// This memory with every address going through `iotlb` first (or through none).
    pub fn with_iotlb(&self, iotlb: Option<Arc<Iotlb>>) -> Self {
        Self { iotlb, ..self.clone() }
    }

    /// The IOTLB.
    pub fn iotlb(&self) -> Option<&Arc<Iotlb>> {
        self.iotlb.as_ref()
    }

    /// Calls `piece` with host pointer and length of each contiguous piece of the range, in order; a
    /// range of length 0 has none. On an error `piece` may have been called for what precedes it.
    ///
    /// The error names the first part that is missing: [`Fault::AddressOverflow`],
    /// [`Fault::Unmapped`], or with an IOTLB [`QueueError::Miss`].
    #[inline]
    pub fn translate(
        &self,
        cache: &mut Cache,
        addr: u64,
        len: u64,
        access: Access,
        piece: &mut impl FnMut(*mut u8, u64),
    ) -> Result<(), QueueError> {
        if len != 0
            && let Some(host) = self.hit(cache, addr, len)
        {
            piece(host, len);
            return Ok(());
        }
        self.translate_slowly(cache, addr, len, access, piece)
    }

    /// One host pointer for the whole range, which must lie in one region, and the mapping that keeps
    /// it valid. Errors as for [`Memory::translate`]; where a second region begins, that part counts as
    /// [`Fault::Unmapped`].
    pub fn contiguous(
        &self,
        addr: u64,
        len: u64,
        access: Access,
    ) -> Result<(*mut u8, Arc<Mapping>), QueueError> {
        let mut first: Option<(usize, u64)> = None;
        let mut covered = 0;
        let complete = self.walk(addr, len.max(1), access, &mut |region, offset, length| {
            let (expected_region, start) = *first.get_or_insert((region, offset));
            if expected_region != region || start + covered != offset {
                return false;
            }
            covered += length;
            true
        })?;
        match first {
            Some((index, offset)) if complete => {
                let region = &self.regions()[index];
                let host = region.mapping.ptr().wrapping_add(offset as usize);
                Ok((host, Arc::clone(&region.mapping)))
            }
            _ => Err(Fault::Unmapped { address: addr + covered, length: len - covered }.into()),
        }
    }

    /// Copies guest memory out. The other side may write it meanwhile: each byte is read once.
    pub fn read(&self, cache: &mut Cache, addr: u64, into: &mut [u8]) -> Result<(), QueueError> {
        let mut rest = &mut into[..];
        let len = rest.len() as u64;
        self.translate(cache, addr, len, Access::Read, &mut |host, length| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(length as usize);
            // SAFETY: `translate` gives ranges inside a mapping that this memory keeps alive.
            unsafe { copy_from_shared(host, now) };
            rest = later;
        })
    }

    /// Copies into guest memory and notes it in the dirty log. On an error nothing is written (but
    /// for an IOTLB entry that disappears while the copy runs).
    pub fn write(&self, cache: &mut Cache, addr: u64, from: &[u8]) -> Result<(), QueueError> {
        let len = from.len() as u64;
        if self.hit(cache, addr, len).is_none() {
            self.translate(cache, addr, len, Access::Write, &mut |_, _| {})?;
        }
        let mut rest = from;
        self.translate(cache, addr, len, Access::Write, &mut |host, length| {
            let (now, later) = rest.split_at(length as usize);
            // SAFETY: `translate` gives ranges inside a mapping that this memory keeps alive.
            unsafe { copy_to_shared(host, now) };
            rest = later;
        })?;
        self.mark_dirty(addr, len);
        Ok(())
    }

    /// The guest address of a range of user addresses that lies in one region.
    pub fn guest_from_user(&self, user_addr: u64, len: u64) -> Option<u64> {
        let (index, offset, available) = self.table.find_user(user_addr)?;
        (len <= available).then(|| self.regions()[index].guest_addr + offset)
    }

    /// Notes in the dirty log that the range was written; call it after writing. The address is what
    /// the other side named: with an IOTLB an IOVA.
    #[inline]
    pub fn mark_dirty(&self, addr: u64, len: u64) {
        if let Some(log) = &self.log {
            self.mark_in(log, addr, len);
        }
    }

    /// Whether a file was found truncated under the mapping of any region.
    #[inline]
    pub fn is_truncated(&self) -> bool {
        sigbus::caught() != 0 && self.regions().iter().any(|region| region.mapping.is_truncated())
    }

    /// The common case of `translate`: no IOTLB, and the region of the last hit holds the whole
    /// range. None says nothing.
    #[inline]
    pub fn hit(&self, cache: &Cache, addr: u64, len: u64) -> Option<*mut u8> {
        if self.iotlb.is_some() {
            return None;
        }
        let span = self.table.spans().get(cache.region)?;
        // An address below the region wraps to an offset beyond any size; the region itself ends
        // below 2^64, so a range inside it does not overflow.
        let offset = addr.wrapping_sub(span.guest_addr);
        (offset < span.size && len <= span.size - offset)
            .then(|| span.host.wrapping_add(offset as usize))
    }

    #[cold]
    #[inline(never)]
    fn translate_slowly(
        &self,
        cache: &mut Cache,
        addr: u64,
        len: u64,
        access: Access,
        piece: &mut dyn FnMut(*mut u8, u64),
    ) -> Result<(), QueueError> {
        let spans = self.table.spans();
        self.walk(addr, len, access, &mut |region, offset, length| {
            cache.region = region;
            piece(spans[region].host.wrapping_add(offset as usize), length);
            true
        })?;
        Ok(())
    }

    /// Calls `visit(region index, offset in it, length)` for each piece of a range until it returns
    /// false; returns whether it never did.
    fn walk(
        &self,
        addr: u64,
        len: u64,
        access: Access,
        visit: &mut dyn FnMut(usize, u64, u64) -> bool,
    ) -> Result<bool, QueueError> {
        let overflow = Fault::AddressOverflow { address: addr, length: len };
        let end = addr.checked_add(len).ok_or(overflow)?;
        let mut at = addr;
        while at < end {
            let (region, offset, length) = match &self.iotlb {
                None => self.find_guest(at, end - at)?,
                Some(iotlb) => self.find_iova(iotlb, at, end - at, access)?,
            };
            if !visit(region, offset, length) {
                return Ok(false);
            }
            at += length;
        }
        Ok(true)
    }

    fn find_guest(&self, addr: u64, len: u64) -> Result<(usize, u64, u64), QueueError> {
        match self.table.find_guest(addr) {
            Ok((region, offset, available)) => Ok((region, offset, len.min(available))),
            Err(gap) => Err(Fault::Unmapped { address: addr, length: len.min(gap) }.into()),
        }
    }

    fn find_iova(
        &self,
        iotlb: &Iotlb,
        iova: u64,
        len: u64,
        access: Access,
    ) -> Result<(usize, u64, u64), QueueError> {
        let (user, translated) = iotlb.lookup(iova, len, access)?;
        match self.table.find_user(user) {
            Some((region, offset, available)) => Ok((region, offset, translated.min(available))),
            // The IOTLB has the address, so asking for it again would change nothing.
            None => Err(Fault::Unmapped { address: iova, length: translated }.into()),
        }
    }

    #[cold]
    fn mark_in(&self, log: &DirtyLog, addr: u64, len: u64) {
        if self.iotlb.is_none() {
            return log.mark(addr, len);
        }
        let regions = self.regions();
        let walked = self.walk(addr, len, Access::Write, &mut |region, offset, length| {
            log.mark(regions[region].guest_addr + offset, length);
            true
        });
        if walked.is_err() {
            // The translation went away after the write: there is no page left to name.
            log.count_ignored(1);
        }
    }
}

#[cfg(test)]
mod tests;
