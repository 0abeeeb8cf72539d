//! Packet buffers in guest memory.

use super::LoadSetup;
use crate::error::{Fault, QueueError};
use crate::memory::Access;
use crate::queue::DriverQueue;
use crate::ring::Piece;

/// Buffers begin so that the frame behind the header begins on a cache line.
pub(super) const LINE_BYTES: u64 = 64;

/// The packet buffers of one queue, one for each slot.
pub(super) struct Slab {
    pieces: Box<[Piece]>,
    pub(super) hosts: Box<[*mut u8]>,
    /// The next buffer to be added, and its number since the beginning.
    next: usize,
    pub(super) number: u64,
}

// SAFETY: the pointers lead into memory that the queue beside it keeps mapped, and that the device
// shares anyway.
unsafe impl Send for Slab {}

/// Bytes of guest memory for the packet buffers of a queue of `size` slots, each of `buffer_bytes`,
/// header included.
pub fn slab_bytes(size: u16, buffer_bytes: usize) -> u64 {
    u64::from(size) * stride(buffer_bytes) + 2 * LINE_BYTES
}

fn stride(buffer_bytes: usize) -> u64 {
    (buffer_bytes as u64).next_multiple_of(LINE_BYTES) + LINE_BYTES
}

impl Slab {
    pub(super) fn new(
        queue: &DriverQueue,
        setup: &LoadSetup,
        addr: u64,
        buffer_bytes: usize,
    ) -> Result<Self, QueueError> {
        let need = slab_bytes(queue.setup().size, buffer_bytes);
        if addr.checked_add(need).is_none() {
            return Err(Fault::AddressOverflow { address: addr, length: need }.into());
        }
        // The whole range lies in one region.
        let (base, _) = queue.memory().contiguous(addr, need, Access::Write)?;
        let skew = LINE_BYTES - setup.header_bytes as u64 % LINE_BYTES;
        let first = addr.next_multiple_of(LINE_BYTES) + skew % LINE_BYTES;
        let starts = (0..u64::from(queue.setup().size))
            .map(|slot| first + slot * stride(buffer_bytes) - addr);
        let len = buffer_bytes as u32;
        Ok(Self {
            pieces: starts.clone().map(|start| Piece { addr: addr + start, len }).collect(),
            hosts: starts.map(|start| base.wrapping_add(start as usize)).collect(),
            next: 0,
            number: 0,
        })
    }

    /// Where the buffer of a cookie is.
    #[inline]
    pub(super) fn host(&self, cookie: u64) -> *mut u8 {
        self.hosts[cookie as usize]
    }

    /// Where the next `count` buffers to be added are, at most all: up to the last one, and from the
    /// first one on.
    #[inline]
    pub(super) fn upcoming(&self, count: usize) -> [&[*mut u8]; 2] {
        let (first, next) = self.hosts.split_at(self.next);
        let straight = count.min(next.len());
        [&next[..straight], &first[..count - straight]]
    }

    /// Add `count` buffers in turn, cookies their places.
    pub(super) fn add(
        &mut self,
        queue: &mut DriverQueue,
        count: usize,
        write: bool,
    ) -> Result<(), QueueError> {
        let mut left = count;
        while left > 0 {
            let now = left.min(self.pieces.len() - self.next);
            let added = queue.add_each(
                &self.pieces[self.next..self.next + now],
                write,
                self.next as u64,
            )?;
            if added < now {
                return Err(QueueError::Full { needed: now, free: added });
            }
            self.number += now as u64;
            self.next = (self.next + now) % self.pieces.len();
            left -= now;
        }
        Ok(())
    }
}
