//! The device half while it writes down what it holds (`crate::inflight`).
//!
//! What is to be taken again (after a device half that is gone, or because it was put back) comes
//! before the ring, by the copies of its descriptors, and its slots count as taken already.

use super::{Cursor, PackedDevice};
use crate::area::Ordering;
use crate::error::{Fault, QueueError};
use crate::inflight::{PackedLog, Part, UsedAt};
use crate::order::{Order, Taken};
use crate::ring::chain::{Chain, Descriptor, Table};
use crate::ring::{Batch, DeviceHalf, Position, flags};

const DRIVER_FLAGS: u16 = flags::AVAIL | flags::USED;

impl From<Cursor> for UsedAt {
    fn from(at: Cursor) -> Self {
        Self { slot: at.slot, wrap: at.wrap }
    }
}

impl<O: Order> PackedDevice<O> {
    pub(super) fn attach_log(&mut self, part: Part) -> Result<(), QueueError> {
        let size = self.common.size;
        let ring = &self.areas.ring;
        let is_available = |at: UsedAt| {
            let at = Cursor { slot: at.slot, wrap: at.wrap };
            let word = ring.load64(at.offset() + 8, Ordering::Acquire);
            at.is_available((word >> 48) as u16)
        };
        let (log, found) = PackedLog::open(part, size, self.next_used.into(), is_available)
            .map_err(|fault| self.common.fail(fault.into()))?;
        self.log = Some(Box::new(log));
        if let Some(found) = found {
            self.next_used = Cursor { slot: found.used.slot, wrap: found.used.wrap };
            self.next_avail = self.next_used.advanced(found.slots, size);
            self.slots_taken = found.slots;
            self.unuse();
        }
        Ok(())
    }

    /// A device half that was killed in the middle of a batch has left used descriptors behind, of
    /// which the first is missing: the driver must not come upon the others before their time.
    fn unuse(&mut self) {
        let log = self.log.as_ref().expect("it was just attached");
        let ring = &self.areas.ring;
        let mut at = self.next_used;
        for copy in log.held() {
            let word = ring.load64(at.offset() + 8, Ordering::Relaxed);
            let found = Descriptor::from_words(0, word);
            if at.is_used(found.high) {
                // In order the copy is what was there. Otherwise only the flags matter.
                let was = if O::MERGES { copy } else { found };
                let high = was.high & !DRIVER_FLAGS | at.available_flags();
                let word = Descriptor::word(was.len, was.low, high);
                ring.store64(at.offset() + 8, word, Ordering::Release);
            }
            at = at.advanced(1, self.common.size);
        }
    }

    pub(super) fn has_pending(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.pending().is_some())
    }

    pub(super) fn take_logged(
        &mut self,
        max: usize,
        batch: &mut Batch,
    ) -> Result<usize, QueueError> {
        for taken in 0..max {
            let result = if self.has_pending() {
                self.take_again(batch)
            } else if self.slots_taken == u32::from(self.common.size) {
                return Ok(taken);
            } else if let Some(head) = self.head() {
                let first = self.next_avail;
                self.take_one(head, batch).map(|()| self.write_down(first, batch))
            } else {
                self.common.check_mapping()?;
                return Ok(taken);
            };
            if let Err(error) = result {
                return if taken > 0 { Ok(taken) } else { Err(self.common.fail(error)) };
            }
        }
        self.common.check_mapping()?;
        Ok(max)
    }

    /// The newest buffer, taken from the slots that begin at `first`. They are read once more: what
    /// a heir finds in the copies is checked anew.
    fn write_down(&mut self, first: Cursor, batch: &Batch) {
        let newest = batch.buffers.last().expect("a buffer was taken");
        let (id, slots) = self.taken.describe(newest.token);
        let (ring, size) = (&self.areas.ring, self.common.size);
        let descriptors = (0..u32::from(slots)).map(|slot| {
            let at = first.advanced(slot, size);
            let addr = ring.load64(at.offset(), Ordering::Relaxed);
            Descriptor::from_words(addr, ring.load64(at.offset() + 8, Ordering::Relaxed))
        });
        self.log.as_mut().expect("take() has looked").take(id, slots, descriptors);
    }

    fn take_again(&mut self, batch: &mut Batch) -> Result<(), QueueError> {
        let log = self.log.as_ref().expect("take() has looked");
        let Some(descriptors) = log.pending() else { return Ok(()) };
        let indirect = self.common.indirect;
        let slots = descriptors.len();
        let mut chain = Chain::new(batch, &mut self.common, descriptors[0].low);
        for (place, read) in descriptors.iter().enumerate() {
            let place = place as u16;
            if read.high & flags::INDIRECT != 0 {
                if !indirect {
                    return Err(Fault::IndirectNotNegotiated { descriptor: place }.into());
                }
                if slots > 1 {
                    return Err(Fault::IndirectWithNext { descriptor: place }.into());
                }
                let table = Table { addr: read.addr, len: read.len, follow: false };
                chain.push_table(place, table)?;
            } else {
                chain.push(place, read.addr, read.len, read.high & flags::WRITE != 0)?;
            }
        }
        chain.check_size()?;
        let id = descriptors[slots - 1].low;
        if !self.taken.admits(id) {
            return Err(Fault::AlreadyOutstanding { id }.into());
        }
        let token = self.taken.push(id, slots as u16, chain.writable());
        chain.finish(token);
        self.log.as_mut().expect("as before").retake();
        Ok(())
    }

    pub(super) fn flush_logged(&mut self) -> Result<(usize, usize), QueueError> {
        let first_at = self.next_used;
        let (mut first, mut buffers, mut entries) = (None, 0, 0);
        while let Some(used) = self.taken.next_used(self.merge) {
            self.log.as_mut().expect("flush() has looked").using(&used, O::MERGES);
            if first.is_none() {
                first = Some(used);
            } else {
                self.write_used(self.next_used, &used, Ordering::Relaxed);
            }
            self.advance_used(&used);
            buffers += usize::from(used.buffers);
            entries += 1;
        }
        let Some(first) = first else { return Ok((0, 0)) };
        let now = self.next_used.into();
        self.log.as_mut().expect("as before").publishing(now);
        // Release: pairs with the driver's acquire load of these flags, as in `flush`. It also comes
        // after the log knows the batch: a heir that finds the first one used finds that.
        self.write_used(first_at, &first, Ordering::Release);
        self.log.as_mut().expect("as before").used(now);
        self.common.check_mapping()?;
        Ok((buffers, entries))
    }

    /// What is held stays written down. If none of it was overtaken, the ring has it too, and the
    /// position goes back to the first of it.
    pub(super) fn abandon_logged(&mut self) -> Position {
        self.taken.abandon();
        let log = self.log.as_ref().expect("abandon() has looked");
        let (ring, size) = (&self.areas.ring, self.common.size);
        let mut at = self.next_used;
        let untouched = log.held().all(|copy| {
            let addr = ring.load64(at.offset(), Ordering::Relaxed);
            let word = ring.load64(at.offset() + 8, Ordering::Relaxed);
            at = at.advanced(1, size);
            addr == copy.addr && word == Descriptor::word(copy.len, copy.low, copy.high)
        });
        if untouched {
            self.next_avail = self.next_used;
            self.slots_taken = 0;
        }
        self.position()
    }

    pub(super) fn release_log(&mut self) -> bool {
        let Some(log) = &mut self.log else { return true };
        if self.slots_taken > 0 {
            return false;
        }
        log.release();
        true
    }
}
