//! The device half: reads the descriptor table and the available ring, writes the used ring.

mod logged;

use std::sync::Arc;

use super::{
    FLAGS, INDEX, NO_NOTIFY, SplitAreas, avail_event_offset, descriptor_offset, head_offset,
    used_event_offset, used_offset,
};
use crate::area::{Area, Ordering, full_fence};
use crate::error::{Fault, QueueError};
use crate::inflight::{Part, SplitLog};
use crate::memory::Memory;
use crate::notify::need_event;
use crate::order::{Order, Taken, Token};
use crate::ring::chain::{Chain, Descriptor, Table};
use crate::ring::{BURST_MAX, Batch, Burst, Common, DeviceHalf, Position, Segment, flags};

/// The device half of a split virtqueue.
pub struct SplitDevice<O: Order> {
    common: Common,
    areas: SplitAreas,
    mask: u16,
    /// Next entry of the available ring to take.
    last_avail: u16,
    /// Where the next used element goes; the driver sees it as `idx` after a flush.
    next_used: u16,
    /// `next_used` when the driver was last asked whether it wants a notification; None before.
    asked: Option<u16>,
    /// The available index as it was when it was last read for a burst, or `last_avail`.
    seen: u16,
    taken: O::Taken,
    merge: bool,
    /// Where what is taken is written down, if it is.
    log: Option<Box<SplitLog>>,
    /// Where the dirty log has the used ring, if not at its own address.
    used_log: Option<u64>,
}

impl<O: Order> SplitDevice<O> {
    /// A device half of `size` slots (a power of two). Without a position it starts at 0.
    pub fn new(
        size: u16,
        features: u64,
        areas: SplitAreas,
        memory: Arc<Memory>,
        position: Option<Position>,
    ) -> Self {
        let position = position.unwrap_or_default();
        Self {
            common: Common::new(size, features, memory),
            areas,
            mask: size - 1,
            last_avail: position.available,
            next_used: position.used,
            asked: None,
            seen: position.available,
            taken: O::Taken::new(size),
            merge: true,
            log: None,
            used_log: None,
        }
    }

    /// Look the areas up again.
    pub fn set_areas(&mut self, areas: SplitAreas) {
        self.areas = areas;
    }

    #[inline]
    fn avail_index(&self) -> u16 {
        // Acquire: pairs with the driver's release store of the index, so that ring entries and
        // descriptors behind it are seen whole.
        self.areas.avail.load16(INDEX, Ordering::Acquire)
    }

    #[inline]
    fn take_one(&mut self, batch: &mut Batch) -> Result<(), QueueError> {
        let size = self.common.size;
        let slot = self.last_avail & self.mask;
        let head = self.areas.avail.load16(head_offset(slot), Ordering::Relaxed);
        if head >= size {
            return Err(Fault::HeadOutOfRange { slot, head, size }.into());
        }
        if !self.taken.admits(head) {
            return Err(Fault::AlreadyOutstanding { id: head }.into());
        }
        // Most buffers are one direct descriptor in the region of the one before.
        let read = read_descriptor(&self.areas.desc, head);
        if read.low & (flags::NEXT | flags::INDIRECT) == 0
            && read.len > 0
            && let Some(ptr) =
                self.common.memory.hit(&self.common.cache, read.addr, read.len.into())
        {
            let write = read.low & flags::WRITE != 0;
            let writable = if write { u64::from(read.len) } else { 0 };
            let token = self.taken.push(head, 1, writable);
            batch.push_single(token, Segment { ptr, addr: read.addr, len: read.len }, write);
            self.last_avail = self.last_avail.wrapping_add(1);
            return Ok(());
        }
        self.take_chain(head, read, batch)
    }

    #[inline(never)]
    fn take_chain(
        &mut self,
        head: u16,
        first: Descriptor,
        batch: &mut Batch,
    ) -> Result<(), QueueError> {
        let size = self.common.size;
        let indirect = self.common.indirect;
        let desc = &self.areas.desc;
        let mut chain = Chain::new(batch, &mut self.common, head);
        let (mut at, mut read, mut slots) = (head, first, 0);
        loop {
            slots += 1;
            if slots > size {
                return Err(Fault::ChainTooLong { head, limit: size.into() }.into());
            }
            if read.low & flags::INDIRECT != 0 {
                if !indirect {
                    return Err(Fault::IndirectNotNegotiated { descriptor: at }.into());
                }
                if read.low & flags::NEXT != 0 {
                    return Err(Fault::IndirectWithNext { descriptor: at }.into());
                }
                chain.push_table(at, Table { addr: read.addr, len: read.len, follow: true })?;
                break;
            }
            chain.push(at, read.addr, read.len, read.low & flags::WRITE != 0)?;
            if read.low & flags::NEXT == 0 {
                break;
            }
            if read.high >= size {
                return Err(Fault::NextOutOfRange {
                    descriptor: at,
                    next: read.high,
                    size: size.into(),
                }
                .into());
            }
            at = read.high;
            read = read_descriptor(desc, at);
        }
        chain.check_size()?;
        let token = self.taken.push(head, slots, chain.writable());
        chain.finish(token);
        self.last_avail = self.last_avail.wrapping_add(1);
        Ok(())
    }

    /// The used element of a slot, left alone where it is there already: in order the same ones recur,
    /// and a line that nobody writes stays in both caches.
    #[inline(always)]
    fn write_element(&self, slot: u16, id: u16, written: u32) {
        let (used, offset) = (&self.areas.used, used_offset(slot));
        if used.load32(offset, Ordering::Relaxed) != u32::from(id) {
            used.store32(offset, id.into(), Ordering::Relaxed);
        }
        if used.load32(offset + 4, Ordering::Relaxed) != written {
            used.store32(offset + 4, written, Ordering::Relaxed);
        }
    }

    /// The available buffers that are known; looks again when there are none left.
    #[inline]
    fn known(&mut self) -> u16 {
        if self.seen == self.last_avail {
            self.seen = self.avail_index();
        }
        self.seen.wrapping_sub(self.last_avail)
    }

    fn take_available(&mut self, max: usize, batch: &mut Batch) -> Result<usize, QueueError> {
        let index = self.avail_index();
        let size = self.common.size;
        // The driver cannot have more buffers out than the ring has slots.
        if index.wrapping_sub(self.next_used) > size || index.wrapping_sub(self.last_avail) > size {
            let fault = Fault::AvailableJump { index, used: self.next_used, size };
            return Err(self.common.fail(fault.into()));
        }
        let count = usize::from(index.wrapping_sub(self.last_avail)).min(max);
        batch.hold(&self.common.memory);
        for taken in 0..count {
            if let Err(error) = self.take_one(batch) {
                self.seen = self.last_avail;
                return if taken > 0 { Ok(taken) } else { Err(self.common.fail(error)) };
            }
        }
        self.seen = self.last_avail;
        self.common.check_mapping()?;
        Ok(count)
    }

    fn log_used(&self, first: u16, entries: u16) {
        if self.common.memory.log().is_none() {
            return;
        }
        for entry in 0..entries {
            let slot = first.wrapping_add(entry) & self.mask;
            self.mark_used(used_offset(slot), 8);
        }
        self.mark_used(FLAGS, 4);
    }

    fn mark_used(&self, offset: usize, len: u64) {
        let memory = &self.common.memory;
        match (self.used_log, memory.log()) {
            // It is an address of the log, whatever the rings' own addresses are.
            (Some(base), Some(log)) => log.mark(base.saturating_add(offset as u64), len),
            _ => memory.mark_dirty(self.areas.used.guest_addr(offset), len),
        }
    }
}

#[inline]
fn read_descriptor(desc: &Area, slot: u16) -> Descriptor {
    let offset = descriptor_offset(slot);
    let addr = desc.load64(offset, Ordering::Relaxed);
    Descriptor::from_words(addr, desc.load64(offset + 8, Ordering::Relaxed))
}

impl<O: Order> DeviceHalf for SplitDevice<O> {
    fn take(&mut self, max: usize, batch: &mut Batch) -> Result<usize, QueueError> {
        self.common.check()?;
        if self.log.is_some() {
            return self.take_logged(max, batch);
        }
        self.take_available(max, batch)
    }

    fn put_back(&mut self, token: Token) -> Result<(), QueueError> {
        self.taken.undo(token)?;
        match &mut self.log {
            // It is taken again by what the log has.
            Some(log) => log.put_back(),
            None => self.last_avail = self.last_avail.wrapping_sub(1),
        }
        self.seen = self.last_avail;
        Ok(())
    }

    #[inline]
    fn complete(&mut self, token: Token, written: u32) -> Result<(), QueueError> {
        self.taken.complete(token, written)
    }

    fn is_taken(&self, token: Token) -> bool {
        self.taken.is_taken(token)
    }

    fn spoil_next_used(&mut self, id: u16, written: u32) {
        self.common.spoil = Some((id, written));
    }

    fn flush(&mut self) -> Result<(usize, usize), QueueError> {
        self.common.check()?;
        if self.log.is_some() {
            return self.flush_logged();
        }
        let first = self.next_used;
        let (mut buffers, mut entries) = (0, 0);
        while let Some(used) = self.taken.next_used(self.merge) {
            // Under IN_ORDER the one element of a batch goes to the slot of its first buffer, with
            // the head of its last one (2.7.9).
            let offset = used_offset(self.next_used & self.mask);
            let used = self.common.as_written(used);
            self.areas.used.store32(offset, used.id.into(), Ordering::Relaxed);
            self.areas.used.store32(offset + 4, used.written, Ordering::Relaxed);
            self.next_used = self.next_used.wrapping_add(used.buffers);
            buffers += usize::from(used.buffers);
            entries += 1;
        }
        if entries > 0 {
            // Release: pairs with the driver's acquire load of the index; elements and payload are
            // visible before it.
            self.areas.used.store16(INDEX, self.next_used, Ordering::Release);
            self.log_used(first, buffers as u16);
            self.common.check_mapping()?;
        }
        Ok((buffers, entries))
    }

    fn gather(&mut self, max: usize, write: bool, burst: &mut Burst) -> Result<usize, QueueError> {
        self.common.check()?;
        burst.restart(&self.common.memory, (self.last_avail, false));
        // What is written down goes by way of `take`.
        if !self.taken.is_empty() || self.log.is_some() {
            return Ok(0);
        }
        let (size, known) = (self.common.size, self.known());
        if known > size {
            // `take` has the words for it.
            self.seen = self.last_avail;
            return Ok(0);
        }
        let count = usize::from(known).min(max).min(BURST_MAX);
        let wanted = if write { flags::WRITE } else { 0 };
        let mut window = self.common.window;
        self.taken.begin_burst();
        let mut len = 0;
        while len < count {
            let slot = self.last_avail.wrapping_add(len as u16) & self.mask;
            let head = self.areas.avail.load16(head_offset(slot), Ordering::Relaxed);
            if head >= size {
                break;
            }
            let read = read_descriptor(&self.areas.desc, head);
            if read.low & (flags::NEXT | flags::INDIRECT | flags::WRITE) != wanted
                || read.len == 0
                || !self.taken.admits_to_burst(head)
            {
                break;
            }
            let Some(ptr) = self.common.locate(&mut window, read.addr, read.len) else { break };
            burst.put(len, head, Segment { ptr, addr: read.addr, len: read.len });
            len += 1;
        }
        self.common.window = window;
        burst.set_len(len, len < count);
        if len == 0 {
            self.common.check_mapping()?;
        }
        Ok(len)
    }

    fn retire(&mut self, burst: &Burst, count: usize, write: bool) -> Result<usize, QueueError> {
        self.common.check()?;
        if burst.start() != (self.last_avail, false) || count > burst.len() {
            return Err(QueueError::Stale);
        }
        let (mut from, mut entries) = (0, 0);
        if count == 1 || O::IN_ORDER && self.merge && !write && count > 0 {
            // One for all of them (2.7.9).
            let (id, written) = burst.used(count - 1);
            self.write_element(self.next_used & self.mask, id, written);
            (from, entries) = (count, 1);
        }
        while from < count {
            let last =
                if O::IN_ORDER && self.merge { burst.run_end(from, count, write) } else { from };
            let (id, written) = burst.used(last);
            let slot = self.next_used.wrapping_add(from as u16) & self.mask;
            self.write_element(slot, id, written);
            from = last + 1;
            entries += 1;
        }
        if count > 0 {
            self.last_avail = self.last_avail.wrapping_add(count as u16);
            self.next_used = self.next_used.wrapping_add(count as u16);
            // Release: as in `flush`.
            self.areas.used.store16(INDEX, self.next_used, Ordering::Release);
            self.common.check_mapping()?;
        }
        Ok(entries)
    }

    fn call_wanted(&mut self, settled: bool) -> Result<bool, QueueError> {
        self.common.check()?;
        let (old, new) = (self.asked, self.next_used);
        if old == Some(new) {
            return Ok(false);
        }
        let size = self.common.size;
        let settled = settled || old.is_none_or(|old| new.wrapping_sub(old) >= size);
        if settled {
            // Full barrier: pairs with the driver's, between stating its wish and reading the index.
            full_fence();
        }
        let avail = &self.areas.avail;
        let wanted = if self.common.event_idx {
            let event = avail.load16(used_event_offset(size), Ordering::Relaxed);
            old.is_none_or(|old| need_event(event, new, old))
        } else {
            avail.load16(FLAGS, Ordering::Relaxed) & NO_NOTIFY == 0
        };
        if settled || wanted {
            self.asked = Some(new);
        }
        Ok(wanted)
    }

    fn enable_kicks(&mut self) -> bool {
        let used = &self.areas.used;
        if self.common.event_idx {
            used.store16(avail_event_offset(self.common.size), self.last_avail, Ordering::Relaxed);
        } else {
            used.store16(FLAGS, 0, Ordering::Relaxed);
        }
        // Full barrier: pairs with the driver's, between publishing the index and reading this.
        full_fence();
        self.has_available()
    }

    fn disable_kicks(&mut self) {
        // With EVENT_IDX an event index that stays behind is quiet by itself (2.7.10).
        if !self.common.event_idx {
            self.areas.used.store16(FLAGS, NO_NOTIFY, Ordering::Relaxed);
        }
    }

    fn has_available(&self) -> bool {
        self.common.broken.is_none()
            && (self.avail_index() != self.last_avail || self.has_pending())
    }

    fn outstanding(&self) -> usize {
        self.taken.len()
    }

    fn position(&self) -> Position {
        Position { available: self.last_avail, used: self.next_used, ..Position::default() }
    }

    fn abandon(&mut self) -> Position {
        if self.log.is_some() {
            return self.abandon_logged();
        }
        let (buffers, _) = self.taken.abandon();
        self.last_avail = self.last_avail.wrapping_sub(buffers);
        self.seen = self.last_avail;
        self.position()
    }

    fn set_used_log(&mut self, addr: Option<u64>) {
        self.used_log = addr;
    }

    fn set_memory(&mut self, memory: Arc<Memory>) {
        self.common.set_memory(memory);
    }

    fn broken(&self) -> Option<&Fault> {
        self.common.broken.as_ref()
    }

    fn set_broken(&mut self, fault: Fault) {
        self.common.broken.get_or_insert(fault);
    }

    fn set_merge(&mut self, merge: bool) {
        self.merge = merge;
    }

    fn attach_inflight(&mut self, part: Part) -> Result<(), QueueError> {
        self.attach_log(part)
    }

    fn release_inflight(&mut self) -> bool {
        self.release_log()
    }
}
