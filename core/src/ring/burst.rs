//! Plain buffers, many at a time: the fast path of the device half.
//!
//! Most buffers are one direct descriptor in one region of memory. A burst of them needs no tokens and
//! no list of segments: it is looked at where it lies in the ring, served, and used as a whole.
//! Nothing changes in the queue before that, so a burst that is dropped was never taken.

use std::sync::Arc;

use super::Segment;
use crate::memory::Memory;

/// The most buffers of a burst.
pub const BURST_MAX: usize = 96;

/// Buffers of one segment each, all device-readable or all device-writable, oldest first.
#[repr(align(128))]
pub struct Burst {
    segments: [Segment; BURST_MAX],
    ids: [u16; BURST_MAX],
    written: [u32; BURST_MAX],
    /// Bytes of all of them, and of the shortest.
    bytes: u64,
    shortest: u32,
    len: usize,
    blocked: bool,
    /// Where in the ring it begins: slot or index, and wrap counter.
    start: (u16, bool),
    /// Keeps the segments mapped.
    memory: Option<Arc<Memory>>,
}

// SAFETY: as for a batch: segments point into memory that `memory` keeps mapped and that another
// process shares anyway.
unsafe impl Send for Burst {}
// SAFETY: as above.
unsafe impl Sync for Burst {}

impl Default for Burst {
    fn default() -> Self {
        Self {
            segments: [Segment { ptr: std::ptr::null_mut(), addr: 0, len: 0 }; BURST_MAX],
            ids: [0; BURST_MAX],
            written: [0; BURST_MAX],
            bytes: 0,
            shortest: u32::MAX,
            len: 0,
            blocked: false,
            start: (0, false),
            memory: None,
        }
    }
}

impl Burst {
    /// An empty one; reuse it.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many buffers it has.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it ends where something else is available than a plain buffer, which `take` deals with,
    /// or is empty because buffers are outstanding.
    #[inline]
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// The buffers, mapped while the burst is as it is.
    #[inline]
    pub fn segments(&self) -> &[Segment] {
        &self.segments[..self.len]
    }

    /// Say how many bytes of a buffer were written: no more than it has.
    #[inline]
    pub fn set_written(&mut self, index: usize, written: u32) {
        assert!(index < self.len && written <= self.segments[index].len);
        self.written[index] = written;
    }

    /// How many buffers, from the first on, have room for so many bytes.
    #[inline]
    pub fn at_least(&self, bytes: u32) -> usize {
        if self.shortest >= bytes {
            return self.len;
        }
        self.segments().iter().take_while(|segment| segment.len >= bytes).count()
    }

    /// Say that so many bytes were written to each of the first `count` buffers: no more than any of
    /// them has.
    #[inline]
    pub fn set_all_written(&mut self, count: usize, written: u32) {
        assert!(count <= self.at_least(written));
        self.written[..count].fill(written);
    }

    /// Hold `memory` and forget the buffers.
    #[inline]
    pub(super) fn restart(&mut self, memory: &Arc<Memory>, start: (u16, bool)) {
        self.len = 0;
        self.bytes = 0;
        self.shortest = u32::MAX;
        self.blocked = true;
        self.start = start;
        match &self.memory {
            Some(held) if Arc::ptr_eq(held, memory) => {}
            _ => self.memory = Some(Arc::clone(memory)),
        }
    }

    #[inline]
    pub(super) fn start(&self) -> (u16, bool) {
        self.start
    }

    /// A buffer at `index`; `set_len` makes it one of the burst.
    #[inline]
    pub(super) fn put(&mut self, index: usize, id: u16, segment: Segment) {
        self.segments[index] = segment;
        self.ids[index] = id;
        self.written[index] = 0;
        self.bytes += u64::from(segment.len);
        self.shortest = self.shortest.min(segment.len);
    }

    #[inline]
    pub(super) fn set_len(&mut self, len: usize, blocked: bool) {
        assert!(len <= BURST_MAX);
        self.len = len;
        self.blocked = blocked;
    }

    /// Device-readable bytes of the first `count` buffers, and bytes written to them.
    #[cfg(not(loom))]
    #[inline]
    pub(crate) fn bytes(&self, count: usize, write: bool) -> (u64, u64) {
        if write {
            (0, self.written[..count].iter().map(|&bytes| u64::from(bytes)).sum())
        } else if count == self.len {
            (self.bytes, 0)
        } else {
            (self.segments[..count].iter().map(|segment| u64::from(segment.len)).sum(), 0)
        }
    }

    /// Identifier and written bytes of a buffer.
    #[inline]
    pub(super) fn used(&self, index: usize) -> (u16, u32) {
        (self.ids[index], self.written[index])
    }

    /// The last buffer, from `from` on and before `end`, up to which one used entry may cover them
    /// all: skipped buffers count as completely written (2.7.9, 2.8.8).
    #[inline]
    pub(super) fn run_end(&self, from: usize, end: usize, write: bool) -> usize {
        let mut last = from;
        if !write {
            return end - 1;
        }
        while last + 1 < end && self.written[last] == self.segments[last].len {
            last += 1;
        }
        last
    }
}
