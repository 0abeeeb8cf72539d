//! The shared memory, and which part of it belongs to which virtqueue.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::{Part, packed, split};
use crate::area::Area;
use crate::error::QueueError;
use crate::memory::{Mapping, MemoryError};

/// What a queue's part is a multiple of.
const ALIGNMENT: usize = 64;

/// The parts of all virtqueues, one after the other.
#[derive(Clone)]
pub struct Region {
    mapping: Arc<Mapping>,
    queues: u16,
    entries: u16,
}

impl Region {
    /// Bytes of the region for `queues` virtqueues of up to `entries` slots.
    pub fn size(queues: u16, entries: u16, packed: bool) -> u64 {
        u64::from(queues) * Self::part_size(entries, packed) as u64
    }

    fn part_size(entries: u16, packed: bool) -> usize {
        let bytes = if packed { packed::size(entries) } else { split::size(entries) };
        bytes.next_multiple_of(ALIGNMENT)
    }

    /// `size` bytes at `offset` of a file, as the other side names them. The descriptor stays the
    /// caller's.
    pub fn map(
        fd: BorrowedFd<'_>,
        offset: u64,
        size: u64,
        queues: u16,
        entries: u16,
    ) -> Result<Self, MemoryError> {
        let mapping = Mapping::of_file(fd, offset, size)?;
        Ok(Self { mapping, queues, entries })
    }

    /// The part of one virtqueue of `size` slots.
    pub fn part(&self, index: u16, size: u16, packed: bool) -> Result<Part, QueueError> {
        let refused = |text: String| Err(QueueError::Invalid(text));
        if index >= self.queues {
            return refused(format!(
                "the in-flight region is for {} virtqueues, this is number {index}",
                self.queues
            ));
        }
        if size > self.entries {
            return refused(format!(
                "the in-flight region is for queues of up to {} slots, this one has {size}",
                self.entries
            ));
        }
        let needed = Self::size(self.queues, self.entries, packed);
        if self.mapping.len() < needed {
            return refused(format!(
                "the in-flight region has {} bytes, {needed} are needed",
                self.mapping.len()
            ));
        }
        if !(self.mapping.ptr() as usize).is_multiple_of(align_of::<u64>()) {
            return refused("the in-flight region does not begin at a multiple of 8 bytes".into());
        }
        let bytes = Self::part_size(self.entries, packed);
        let area = Area::of_mapping(&self.mapping, usize::from(index) * bytes, bytes);
        Ok(Part { area, entries: self.entries })
    }
}
