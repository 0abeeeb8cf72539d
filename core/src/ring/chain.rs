//! Building one buffer of a batch from descriptors, checked one by one.

use std::sync::Arc;

use super::{Batch, Buffer, Common, DESCRIPTOR_SIZE, QUEUE_SIZE_MAX, Segment, flags};
use crate::error::{Fault, QueueError};
use crate::memory::{Access, Cache, Memory, Window, Windows};
use crate::order::Token;

/// A descriptor as the other side wrote it, read once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub addr: u64,
    pub len: u32,
    /// Split: flags, next. Packed: id, flags.
    pub low: u16,
    pub high: u16,
}

impl Descriptor {
    /// From its two words.
    #[inline]
    pub fn from_words(addr: u64, word: u64) -> Self {
        Self { addr, len: word as u32, low: (word >> 32) as u16, high: (word >> 48) as u16 }
    }

    /// The second word of a descriptor.
    #[inline]
    pub fn word(len: u32, low: u16, high: u16) -> u64 {
        u64::from(len) | u64::from(low) << 32 | u64::from(high) << 48
    }
}

/// A buffer in the making. What it pushed is taken back unless it is finished.
pub(super) struct Chain<'a> {
    batch: &'a mut Batch,
    memory: &'a Arc<Memory>,
    cache: &'a mut Cache,
    window: &'a mut Window,
    windows: &'a mut Windows,
    head: u16,
    first: usize,
    readable_segments: u32,
    readable: u64,
    writable: u64,
    writing: bool,
    finished: bool,
}

impl<'a> Chain<'a> {
    #[inline]
    pub fn new(batch: &'a mut Batch, common: &'a mut Common, head: u16) -> Self {
        let first = batch.segments.len();
        Self {
            batch,
            memory: &common.memory,
            cache: &mut common.cache,
            window: &mut common.window,
            windows: &mut common.windows,
            head,
            first,
            readable_segments: 0,
            readable: 0,
            writable: 0,
            writing: false,
            finished: false,
        }
    }

    /// Append the range of one descriptor.
    pub fn push(
        &mut self,
        descriptor: u16,
        addr: u64,
        len: u32,
        write: bool,
    ) -> Result<(), QueueError> {
        let access = if write {
            if !self.writing {
                self.writing = true;
                self.readable_segments = (self.batch.segments.len() - self.first) as u32;
            }
            self.writable += u64::from(len);
            Access::Write
        } else {
            if self.writing {
                return Err(Fault::ReadableAfterWritable { descriptor }.into());
            }
            self.readable += u64::from(len);
            Access::Read
        };
        let segments = &mut self.batch.segments;
        if len > 0
            && let Some(ptr) = self
                .memory
                .hit(self.cache, addr, len.into())
                .or_else(|| self.windows.locate(self.window, addr, len))
        {
            segments.push(Segment { ptr, addr, len });
            return Ok(());
        }
        let mut at = addr;
        self.memory.translate(self.cache, addr, len.into(), access, &mut |ptr, length| {
            segments.push(Segment { ptr, addr: at, len: length as u32 });
            at = at.wrapping_add(length);
        })
    }

    /// Append an indirect table; `follow` tells a split table's order from a packed one's.
    pub fn push_table(&mut self, descriptor: u16, table: Table) -> Result<(), QueueError> {
        let entries = table.len / DESCRIPTOR_SIZE as u32;
        if table.len == 0
            || !table.len.is_multiple_of(DESCRIPTOR_SIZE as u32)
            || entries > QUEUE_SIZE_MAX
        {
            return Err(Fault::IndirectLength { descriptor, length: table.len }.into());
        }
        let (mut entry, mut seen) = (0, 0);
        loop {
            seen += 1;
            if seen > entries {
                return Err(Fault::ChainTooLong { head: self.head, limit: entries }.into());
            }
            let read = self.table_entry(table.addr, entry)?;
            // In a packed table WRITE is the only flag that means anything (2.8.7).
            let entry_flags = if table.follow { read.low } else { read.high & flags::WRITE };
            if entry_flags & flags::INDIRECT != 0 {
                return Err(Fault::NestedIndirect { entry }.into());
            }
            self.push(entry as u16, read.addr, read.len, entry_flags & flags::WRITE != 0)?;
            if table.follow {
                if entry_flags & flags::NEXT == 0 {
                    return Ok(());
                }
                entry = u32::from(read.high);
                if entry >= entries {
                    return Err(Fault::NextOutOfRange {
                        descriptor,
                        next: read.high,
                        size: entries,
                    }
                    .into());
                }
            } else {
                entry += 1;
                if entry == entries {
                    return Ok(());
                }
            }
        }
    }

    /// One entry of a table, copied out once; it may cross regions.
    fn table_entry(&mut self, addr: u64, entry: u32) -> Result<Descriptor, QueueError> {
        let offset = u64::from(entry) * DESCRIPTOR_SIZE as u64;
        let at = addr.checked_add(offset).ok_or(Fault::AddressOverflow {
            address: addr,
            length: offset + DESCRIPTOR_SIZE as u64,
        })?;
        let mut raw = [0; DESCRIPTOR_SIZE];
        self.memory.read(self.cache, at, &mut raw)?;
        let word = |at: usize| {
            u64::from_le_bytes(raw[at..at + 8].try_into().expect("eight bytes of sixteen"))
        };
        Ok(Descriptor::from_words(word(0), word(8)))
    }

    /// Bytes of the device-writable part so far.
    pub fn writable(&self) -> u64 {
        self.writable
    }

    /// The buffer is whole: it joins the batch. 2^32 bytes are the most that a chain may have.
    #[inline]
    pub fn check_size(&self) -> Result<(), QueueError> {
        let bytes = self.readable + self.writable;
        if bytes > 1 << 32 {
            return Err(Fault::ChainTooLarge { head: self.head, bytes }.into());
        }
        Ok(())
    }

    /// The buffer joins the batch.
    #[inline]
    pub fn finish(mut self, token: Token) {
        let segments = (self.batch.segments.len() - self.first) as u32;
        let readable_segments = if self.writing { self.readable_segments } else { segments };
        self.batch.buffers.push(Buffer {
            token,
            first: self.first as u32,
            readable_segments,
            writable_segments: segments - readable_segments,
            readable: self.readable,
            writable: self.writable,
        });
        self.finished = true;
    }
}

impl Drop for Chain<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.finished {
            self.batch.segments.truncate(self.first);
        }
    }
}

/// An indirect table: where it is, its bytes, and whether its entries are linked (split) or taken
/// one after the other (packed).
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub addr: u64,
    pub len: u32,
    pub follow: bool,
}
