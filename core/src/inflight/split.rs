//! The split layout's part: a mark for each head, and a list of the batch that was used last.

use std::collections::VecDeque;

use super::{Part, VERSION, field};
use crate::area::{Area, Ordering};
use crate::error::Fault;
use crate::order::UsedEntry;

const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;
const HEADER_SIZE: usize = 16;
const ENTRY_SIZE: usize = 16;

/// Of an entry: whether it is in flight, the next of its batch, the order of taking.
const INFLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// Bytes of the part for so many entries.
#[cfg(not(loom))]
pub(super) fn size(entries: u16) -> usize {
    HEADER_SIZE + usize::from(entries) * ENTRY_SIZE
}

fn at(head: u16) -> usize {
    HEADER_SIZE + usize::from(head) * ENTRY_SIZE
}

/// Writes down what the device half of a split virtqueue holds.
pub(crate) struct SplitLog {
    area: Area,
    entries: u16,
    counter: u64,
    last_batch_head: u16,
    /// Heads taken and not used, oldest first. In any order those in the middle leave as well.
    held: VecDeque<u16>,
    /// The newest of them that are to be taken again.
    pending: usize,
    /// The batch that is about to be published.
    leaving: Vec<u16>,
}

impl SplitLog {
    /// The log, and how many buffers a device half before us had taken, which are to be taken again;
    /// None if there was none. `used` is the index of the used ring, `size` the ring's.
    pub fn open(part: Part, size: u16, used: u16) -> Result<(Self, Option<u16>), Fault> {
        let mut log = Self {
            area: part.area,
            entries: part.entries,
            counter: 0,
            last_batch_head: 0,
            held: VecDeque::new(),
            pending: 0,
            leaving: Vec::new(),
        };
        match log.area.load16(field::VERSION, Ordering::Relaxed) {
            0 => {
                log.initialize(used);
                Ok((log, None))
            }
            VERSION => {
                log.held = log.recover(size, used)?;
                log.pending = log.held.len();
                let count = log.pending as u16;
                Ok((log, Some(count)))
            }
            version => Err(Fault::InflightVersion { version }),
        }
    }

    fn initialize(&self, used: u16) {
        for head in 0..self.entries {
            self.area.store64(at(head), 0, Ordering::Release);
        }
        self.area.store64(field::FEATURES, 0, Ordering::Release);
        self.area.store16(field::DESC_NUM, self.entries, Ordering::Release);
        self.area.store16(LAST_BATCH_HEAD, 0, Ordering::Release);
        self.area.store16(USED_IDX, used, Ordering::Release);
        self.area.store16(field::VERSION, VERSION, Ordering::Release);
    }

    fn recover(&mut self, size: u16, used: u16) -> Result<VecDeque<u16>, Fault> {
        let entries = self.entries;
        let found = self.area.load16(field::DESC_NUM, Ordering::Relaxed);
        if found != entries {
            return Err(Fault::InflightEntries { found, entries });
        }
        let known = self.area.load16(USED_IDX, Ordering::Relaxed);
        self.last_batch_head = self.area.load16(LAST_BATCH_HEAD, Ordering::Relaxed);
        // Published, but perhaps not all unmarked any more: the last batch.
        let batch = used.wrapping_sub(known);
        if batch > entries {
            return Err(Fault::InflightBatch { used, known, entries });
        }
        let mut head = self.last_batch_head;
        for _ in 0..batch {
            if head >= entries {
                return Err(Fault::InflightLink { field: "last_batch_head", value: head, entries });
            }
            self.area.store16(at(head) + INFLIGHT, 0, Ordering::Release);
            head = self.area.load16(at(head) + NEXT, Ordering::Relaxed);
        }
        self.area.store16(USED_IDX, used, Ordering::Release);
        if self.last_batch_head >= entries {
            self.last_batch_head = 0;
        }

        // Heads beyond a ring that is smaller than its part cannot be in flight.
        let mut taken: Vec<(u64, u16)> = (0..size)
            .filter(|&head| self.area.load16(at(head) + INFLIGHT, Ordering::Relaxed) & 0xff == 1)
            .map(|head| (self.area.load64(at(head) + COUNTER, Ordering::Relaxed), head))
            .collect();
        taken.sort_unstable();
        self.counter = taken.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(taken.into_iter().map(|(_, head)| head).collect())
    }

    /// A buffer was taken from the available ring.
    pub fn take(&mut self, head: u16) {
        self.area.store64(at(head) + COUNTER, self.counter, Ordering::Release);
        self.area.store16(at(head) + INFLIGHT, 1, Ordering::Release);
        self.counter = self.counter.wrapping_add(1);
        self.held.push_back(head);
    }

    /// The oldest buffer that is to be taken again.
    pub fn pending(&self) -> Option<u16> {
        self.held.get(self.held.len() - self.pending).copied()
    }

    /// It was taken again.
    pub fn retake(&mut self) {
        self.pending -= 1;
    }

    /// The newest buffer taken was put back.
    pub fn put_back(&mut self) {
        self.pending += 1;
    }

    /// Buffers are about to be used: those that this entry of the used ring covers.
    pub fn using(&mut self, used: &UsedEntry, in_order: bool) {
        for _ in 0..used.buffers {
            let head = if in_order {
                self.held.pop_front()
            } else {
                let place = self.held.iter().position(|&head| head == used.id);
                place.and_then(|place| self.held.remove(place))
            };
            let head = head.expect("what is used was taken");
            self.area.store16(at(head) + NEXT, self.last_batch_head, Ordering::Release);
            self.area.store16(LAST_BATCH_HEAD, head, Ordering::Release);
            self.last_batch_head = head;
            self.leaving.push(head);
        }
    }

    /// The index of the used ring covers them now.
    pub fn used(&mut self, index: u16) {
        for head in self.leaving.drain(..) {
            self.area.store16(at(head) + INFLIGHT, 0, Ordering::Release);
        }
        self.area.store16(USED_IDX, index, Ordering::Release);
    }

    /// What is held, oldest first.
    pub fn held(&self) -> impl Iterator<Item = u16> {
        self.held.iter().copied()
    }

    /// The part is free for another beginning.
    pub fn release(&mut self) {
        self.area.store16(field::VERSION, 0, Ordering::Release);
        for head in self.held.drain(..) {
            self.area.store16(at(head) + INFLIGHT, 0, Ordering::Release);
        }
        self.pending = 0;
    }
}
