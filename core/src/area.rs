//! Ring memory as both sides see it: little-endian words that the other side may change at any time.
//!
//! Every access is an atomic load or store of a whole word, so a word is read once and never torn.
//! Under `loom` an area is a row of model-checked cells instead of mapped memory; the ring code is
//! the same.

pub use std::sync::atomic::Ordering;

/// A full barrier between publishing an index and looking at the other side's wish for a
/// notification (and, on the other side, between stating the wish and looking at the index).
#[inline]
pub fn full_fence() {
    #[cfg(not(loom))]
    std::sync::atomic::fence(Ordering::SeqCst);
    #[cfg(loom)]
    loom::sync::atomic::fence(Ordering::SeqCst);
}

#[cfg(not(loom))]
mod host {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

    use crate::error::QueueError;
    use crate::memory::{Access, Mapping, Memory};

    /// A contiguous, aligned range of mapped memory.
    #[derive(Clone)]
    pub struct Area {
        ptr: *mut u8,
        len: usize,
        addr: u64,
        _mapping: Arc<Mapping>,
    }

    // SAFETY: the memory is shared with other processes anyway; every access is atomic, and the
    // mapping lives as long as the area.
    unsafe impl Send for Area {}
    // SAFETY: as above.
    unsafe impl Sync for Area {}

    impl Area {
        /// The area of `len` bytes at a guest address that must be a multiple of `align`.
        pub fn new(
            memory: &Memory,
            name: &str,
            addr: u64,
            len: usize,
            align: u64,
        ) -> Result<Self, QueueError> {
            if !addr.is_multiple_of(align) {
                return Err(QueueError::Invalid(format!(
                    "the {name} at {addr:#x} is not aligned to {align} bytes"
                )));
            }
            let (ptr, mapping) = memory.contiguous(addr, len as u64, Access::Write)?;
            if !(ptr as usize as u64).is_multiple_of(align) {
                return Err(QueueError::Invalid(format!(
                    "the {name} at {addr:#x} is mapped at an address that is not aligned to {align} bytes"
                )));
            }
            Ok(Self { ptr, len, addr, _mapping: mapping })
        }

        /// `len` bytes at `offset` of a mapping that is no guest memory. Both must lie inside, at a
        /// multiple of what is accessed.
        pub fn of_mapping(mapping: &Arc<Mapping>, offset: usize, len: usize) -> Self {
            assert!((offset + len) as u64 <= mapping.len(), "{offset}+{len}");
            let ptr = mapping.ptr().wrapping_add(offset);
            Self { ptr, len, addr: offset as u64, _mapping: Arc::clone(mapping) }
        }

        /// The guest address of a byte of the area.
        pub fn guest_addr(&self, offset: usize) -> u64 {
            self.addr + offset as u64
        }

        /// Zero the whole area. Only the side that sets it up does this, before the other looks.
        pub fn clear(&self) {
            // SAFETY: ptr..ptr+len is mapped for as long as `self` lives.
            unsafe { std::ptr::write_bytes(self.ptr, 0, self.len) }
        }

        #[inline]
        fn at(&self, offset: usize, size: usize) -> *mut u8 {
            debug_assert!(offset + size <= self.len, "{offset}+{size} of {}", self.len);
            // SAFETY: callers index with masked or checked slots, so the offset is inside.
            unsafe { self.ptr.add(offset) }
        }

        /// Where `len` bytes are, which lie inside, for more than a word at once.
        #[inline]
        pub(crate) fn bytes(&self, offset: usize, len: usize) -> *mut u8 {
            self.at(offset, len)
        }

        /// Write two 64-bit words side by side, in whatever order and each at once; nothing may depend
        /// on either alone.
        #[inline(always)]
        pub fn store_pair(&self, offset: usize, words: [u64; 2]) {
            #[cfg(test)]
            if crate::inflight::killed() {
                return;
            }
            // SAFETY: inside the area.
            unsafe { crate::memory::store_pair(self.at(offset, 16), words) };
        }

        /// Read a 16-bit word.
        #[inline]
        pub fn load16(&self, offset: usize, order: Ordering) -> u16 {
            // SAFETY: inside the area, aligned because the area and every layout are.
            u16::from_le(unsafe { AtomicU16::from_ptr(self.at(offset, 2).cast()) }.load(order))
        }

        /// Write a 16-bit word.
        #[inline]
        pub fn store16(&self, offset: usize, value: u16, order: Ordering) {
            #[cfg(test)]
            if crate::inflight::killed() {
                return;
            }
            // SAFETY: as in `load16`.
            unsafe { AtomicU16::from_ptr(self.at(offset, 2).cast()) }.store(value.to_le(), order);
        }

        /// Read a 32-bit word.
        #[inline]
        pub fn load32(&self, offset: usize, order: Ordering) -> u32 {
            // SAFETY: as in `load16`.
            u32::from_le(unsafe { AtomicU32::from_ptr(self.at(offset, 4).cast()) }.load(order))
        }

        /// Write a 32-bit word.
        #[inline]
        pub fn store32(&self, offset: usize, value: u32, order: Ordering) {
            #[cfg(test)]
            if crate::inflight::killed() {
                return;
            }
            // SAFETY: as in `load16`.
            unsafe { AtomicU32::from_ptr(self.at(offset, 4).cast()) }.store(value.to_le(), order);
        }

        /// Read a 64-bit word.
        #[inline]
        pub fn load64(&self, offset: usize, order: Ordering) -> u64 {
            // SAFETY: as in `load16`.
            u64::from_le(unsafe { AtomicU64::from_ptr(self.at(offset, 8).cast()) }.load(order))
        }

        /// Write a 64-bit word.
        #[inline]
        pub fn store64(&self, offset: usize, value: u64, order: Ordering) {
            #[cfg(test)]
            if crate::inflight::killed() {
                return;
            }
            // SAFETY: as in `load16`.
            unsafe { AtomicU64::from_ptr(self.at(offset, 8).cast()) }.store(value.to_le(), order);
        }
    }
}

#[cfg(loom)]
mod model {
    use loom::sync::atomic::{AtomicU64, Ordering};
    use std::sync::Arc;

    /// A row of cells, one for each even offset; a word lives in the cell where it starts.
    #[derive(Clone)]
    pub struct Area {
        cells: Arc<Vec<AtomicU64>>,
    }

    impl Area {
        /// An area of `len` bytes, all zero.
        pub fn cells(len: usize) -> Self {
            Self { cells: Arc::new((0..len.div_ceil(2)).map(|_| AtomicU64::new(0)).collect()) }
        }

        /// Cells have no guest address.
        pub fn guest_addr(&self, offset: usize) -> u64 {
            offset as u64
        }

        /// Zero every cell.
        pub fn clear(&self) {
            for cell in self.cells.iter() {
                cell.store(0, Ordering::Relaxed);
            }
        }

        /// Write two 64-bit words side by side.
        pub fn store_pair(&self, offset: usize, words: [u64; 2]) {
            self.store64(offset, words[0], Ordering::Relaxed);
            self.store64(offset + 8, words[1], Ordering::Relaxed);
        }

        fn cell(&self, offset: usize) -> &AtomicU64 {
            &self.cells[offset / 2]
        }

        /// Read a 16-bit word.
        pub fn load16(&self, offset: usize, order: Ordering) -> u16 {
            self.cell(offset).load(order) as u16
        }

        /// Write a 16-bit word.
        pub fn store16(&self, offset: usize, value: u16, order: Ordering) {
            self.cell(offset).store(value.into(), order);
        }

        /// Read a 32-bit word.
        pub fn load32(&self, offset: usize, order: Ordering) -> u32 {
            self.cell(offset).load(order) as u32
        }

        /// Write a 32-bit word.
        pub fn store32(&self, offset: usize, value: u32, order: Ordering) {
            self.cell(offset).store(value.into(), order);
        }

        /// Read a 64-bit word.
        pub fn load64(&self, offset: usize, order: Ordering) -> u64 {
            self.cell(offset).load(order)
        }

        /// Write a 64-bit word.
        pub fn store64(&self, offset: usize, value: u64, order: Ordering) {
            self.cell(offset).store(value, order);
        }
    }
}

#[cfg(not(loom))]
pub use host::Area;
#[cfg(loom)]
pub use model::Area;
