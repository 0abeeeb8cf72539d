//! Buffers as the device half hands them out: many at once, their pieces checked and mapped.

use std::sync::Arc;

use crate::memory::{Memory, copy_from_shared, copy_to_shared};
use crate::order::Token;

/// A piece of a buffer, as a device sees it: checked and mapped.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Where it is mapped; valid while the batch that it came in holds its memory.
    pub ptr: *mut u8,
    /// Guest address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
}

/// A buffer taken by the device half. Its segments lie in the batch, device-readable ones first.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Names it until it is used.
    pub token: Token,
    /// Index of its first segment in the batch.
    pub first: u32,
    /// Device-readable segments.
    pub readable_segments: u32,
    /// Device-writable segments, which follow them.
    pub writable_segments: u32,
    /// Bytes of the device-readable part.
    pub readable: u64,
    /// Bytes of the device-writable part.
    pub writable: u64,
}

/// Buffers taken together, oldest first; reuse it to avoid allocation.
#[derive(Default)]
pub struct Batch {
    /// The buffers.
    pub buffers: Vec<Buffer>,
    /// Their segments.
    pub segments: Vec<Segment>,
    /// Keeps the segments mapped.
    memory: Option<Arc<Memory>>,
}

// SAFETY: segments point into memory that `memory` keeps mapped and that is shared with another
// process anyway; whoever reads or writes through them treats it as such.
unsafe impl Send for Batch {}
// SAFETY: as above; a shared batch gives out copies of pointers only.
unsafe impl Sync for Batch {}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forget the buffers, keep the room.
    pub fn clear(&mut self) {
        self.buffers.clear();
        self.segments.clear();
    }

    /// The device-readable segments of a buffer.
    #[inline]
    pub fn readable(&self, buffer: &Buffer) -> &[Segment] {
        let first = buffer.first as usize;
        &self.segments[first..first + buffer.readable_segments as usize]
    }

    /// The device-writable segments of a buffer.
    #[inline]
    pub fn writable(&self, buffer: &Buffer) -> &[Segment] {
        let first = (buffer.first + buffer.readable_segments) as usize;
        &self.segments[first..first + buffer.writable_segments as usize]
    }

    /// The memory that the segments lie in; None before the first take.
    pub fn memory(&self) -> Option<&Arc<Memory>> {
        self.memory.as_ref()
    }

    /// Hold `memory` from now on. A batch that has buffers keeps one memory.
    pub(super) fn hold(&mut self, memory: &Arc<Memory>) {
        match &self.memory {
            Some(held) if Arc::ptr_eq(held, memory) => {}
            _ => {
                assert!(self.buffers.is_empty(), "clear a batch before taking from another memory");
                self.memory = Some(Arc::clone(memory));
            }
        }
    }

    /// A buffer of one segment joins the batch.
    #[inline]
    pub(super) fn push_single(&mut self, token: Token, segment: Segment, write: bool) {
        let bytes = u64::from(segment.len);
        self.buffers.push(Buffer {
            token,
            first: self.segments.len() as u32,
            readable_segments: u32::from(!write),
            writable_segments: u32::from(write),
            readable: if write { 0 } else { bytes },
            writable: if write { bytes } else { 0 },
        });
        self.segments.push(segment);
    }

    /// Copy device-readable bytes from `offset` on; returns how many there were.
    #[inline]
    pub fn read_at(&self, buffer: &Buffer, offset: u64, into: &mut [u8]) -> usize {
        if let [segment] = self.readable(buffer)
            && offset == 0
            && segment.len as usize == into.len()
        {
            // SAFETY: the segment is mapped while the batch holds its memory.
            unsafe { copy_from_shared(segment.ptr, into) };
            return into.len();
        }
        self.gather(buffer, offset, into)
    }

    fn gather(&self, buffer: &Buffer, offset: u64, into: &mut [u8]) -> usize {
        let mut done = 0;
        for (ptr, len) in pieces(self.readable(buffer), offset, into.len()) {
            // SAFETY: the segment is mapped while the batch holds its memory.
            unsafe { copy_from_shared(ptr, &mut into[done..done + len]) };
            done += len;
        }
        done
    }

    /// Copy into the device-writable part from `offset` on; returns how many bytes fitted.
    pub fn write_at(&self, buffer: &Buffer, offset: u64, from: &[u8]) -> usize {
        let mut done = 0;
        for (ptr, len) in pieces(self.writable(buffer), offset, from.len()) {
            // SAFETY: as in `read_at`; taken with write access.
            unsafe { copy_to_shared(ptr, &from[done..done + len]) };
            done += len;
        }
        done
    }
}

/// The mapped pieces of `segments` that make up `len` bytes from `offset` on.
pub fn pieces(
    segments: &[Segment],
    offset: u64,
    len: usize,
) -> impl Iterator<Item = (*mut u8, usize)> {
    let (mut skip, mut left) = (offset, len);
    segments.iter().filter_map(move |segment| {
        let from = skip.min(segment.len.into());
        skip -= from;
        let take = (segment.len as usize - from as usize).min(left);
        left -= take;
        // SAFETY: `from` is within the segment.
        (take > 0).then(|| (unsafe { segment.ptr.add(from as usize) }, take))
    })
}
