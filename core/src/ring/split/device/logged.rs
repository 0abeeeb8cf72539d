//! The device half while it writes down what it holds (`crate::inflight`).
//!
//! What is to be taken again (after a device half that is gone, or because it was put back) comes
//! before the available ring, and counts as taken there: the available position is always that of
//! the used ring plus what is held.

use super::{INDEX, SplitDevice, head_offset, read_descriptor, used_offset};
use crate::area::Ordering;
use crate::error::{Fault, QueueError};
use crate::inflight::{Part, SplitLog};
use crate::order::{Order, Taken};
use crate::ring::{Batch, DeviceHalf, Position};

impl<O: Order> SplitDevice<O> {
    pub(super) fn attach_log(&mut self, part: Part) -> Result<(), QueueError> {
        let used = self.areas.used.load16(INDEX, Ordering::Acquire);
        let (log, held) = SplitLog::open(part, self.common.size, used)
            .map_err(|fault| self.common.fail(fault.into()))?;
        if let Some(held) = held {
            self.next_used = used;
            self.last_avail = used.wrapping_add(held);
            self.seen = self.last_avail;
        }
        self.log = Some(Box::new(log));
        Ok(())
    }

    pub(super) fn has_pending(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.pending().is_some())
    }

    pub(super) fn take_logged(
        &mut self,
        max: usize,
        batch: &mut Batch,
    ) -> Result<usize, QueueError> {
        batch.hold(&self.common.memory);
        let mut again = 0;
        while again < max && self.has_pending() {
            if let Err(error) = self.take_again(batch) {
                return if again > 0 { Ok(again) } else { Err(self.common.fail(error)) };
            }
            again += 1;
        }
        let first = batch.buffers.len();
        let result = self.take_available(max - again, batch);
        let log = self.log.as_mut().expect("take() has looked");
        for buffer in &batch.buffers[first..] {
            log.take(self.taken.describe(buffer.token).0);
        }
        match result {
            Err(_) if again > 0 => Ok(again),
            result => result.map(|taken| again + taken),
        }
    }

    fn take_again(&mut self, batch: &mut Batch) -> Result<(), QueueError> {
        let log = self.log.as_mut().expect("take() has looked");
        let Some(head) = log.pending() else { return Ok(()) };
        if !self.taken.admits(head) {
            return Err(Fault::AlreadyOutstanding { id: head }.into());
        }
        let first = read_descriptor(&self.areas.desc, head);
        self.take_chain(head, first, batch)?;
        // It has its place before the available ring's next entry already.
        self.last_avail = self.last_avail.wrapping_sub(1);
        self.log.as_mut().expect("as before").retake();
        Ok(())
    }

    pub(super) fn flush_logged(&mut self) -> Result<(usize, usize), QueueError> {
        let log = self.log.as_mut().expect("flush() has looked");
        let first = self.next_used;
        let (mut buffers, mut entries) = (0, 0);
        while let Some(used) = self.taken.next_used(self.merge) {
            log.using(&used, O::MERGES);
            let offset = used_offset(self.next_used & self.mask);
            self.areas.used.store32(offset, used.id.into(), Ordering::Relaxed);
            self.areas.used.store32(offset + 4, used.written, Ordering::Relaxed);
            self.next_used = self.next_used.wrapping_add(used.buffers);
            buffers += usize::from(used.buffers);
            entries += 1;
        }
        if entries > 0 {
            // Release: pairs with the driver's acquire load of the index, as in `flush`. It also
            // comes after the list of the batch in the log: a heir that finds the index finds that.
            self.areas.used.store16(INDEX, self.next_used, Ordering::Release);
            log.used(self.next_used);
            self.log_used(first, buffers as u16);
            self.common.check_mapping()?;
        }
        Ok((buffers, entries))
    }

    /// What is held stays written down. If none of it was overtaken, the available ring has it too,
    /// and the position goes back to the first of it.
    pub(super) fn abandon_logged(&mut self) -> Position {
        self.taken.abandon();
        let log = self.log.as_ref().expect("abandon() has looked");
        let avail = &self.areas.avail;
        let mut at = self.next_used;
        let untouched = log.held().all(|head| {
            let offset = head_offset(at & self.mask);
            at = at.wrapping_add(1);
            avail.load16(offset, Ordering::Relaxed) == head
        });
        if untouched {
            self.last_avail = self.next_used;
        }
        self.seen = self.last_avail;
        self.position()
    }

    pub(super) fn release_log(&mut self) -> bool {
        let Some(log) = &mut self.log else { return true };
        if self.last_avail != self.next_used {
            return false;
        }
        log.release();
        true
    }
}
