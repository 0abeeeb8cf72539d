//! The device half: takes available descriptors in ring order and overwrites them with used ones.

mod logged;

use std::sync::Arc;

use super::{Cursor, PackedAreas};
use crate::area::{Ordering, full_fence};
use crate::error::{Fault, QueueError};
use crate::inflight::{PackedLog, Part};
use crate::memory::Memory;
use crate::notify::{EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE, Passed, event_word, packed_wanted};
use crate::order::{Order, Taken, Token, UsedEntry};
use crate::ring::chain::{Chain, Descriptor, Table};
use crate::ring::{
    BURST_MAX, Batch, Burst, Common, DESCRIPTOR_SIZE, DeviceHalf, Position, Segment, flags,
};

/// Flags that tell whether a descriptor is available, plain, and in which direction.
const PLAIN: u16 = flags::AVAIL | flags::USED | flags::NEXT | flags::INDIRECT | flags::WRITE;

/// The device half of a packed virtqueue.
pub struct PackedDevice<O: Order> {
    common: Common,
    areas: PackedAreas,
    /// Next descriptor to take.
    next_avail: Cursor,
    /// Where the next used descriptor goes.
    next_used: Cursor,
    /// Slots from `next_used` to `next_avail`: taken, not used.
    slots_taken: u32,
    /// Slots used since the driver was last asked whether it wants a notification.
    passed: u32,
    /// Whether it was never asked: what an owner before us told the driver is not known.
    never_asked: bool,
    taken: O::Taken,
    merge: bool,
    /// Where what is taken is written down, if it is.
    log: Option<Box<PackedLog>>,
}

impl<O: Order> PackedDevice<O> {
    /// A device half of `size` slots. Without a position it starts at slot 0 with wrap counters 1.
    pub fn new(
        size: u16,
        features: u64,
        areas: PackedAreas,
        memory: Arc<Memory>,
        position: Option<Position>,
    ) -> Self {
        let start = Cursor { slot: 0, wrap: true };
        let (next_avail, next_used) = position.map_or((start, start), |position| {
            (
                Cursor { slot: position.available, wrap: position.available_wrap },
                Cursor { slot: position.used, wrap: position.used_wrap },
            )
        });
        let lap = if next_avail.wrap == next_used.wrap { 0 } else { u32::from(size) };
        Self {
            common: Common::new(size, features, memory),
            areas,
            next_avail,
            next_used,
            slots_taken: u32::from(next_avail.slot) + lap - u32::from(next_used.slot),
            passed: 0,
            never_asked: true,
            taken: O::Taken::new(size),
            merge: true,
            log: None,
        }
    }

    /// Look the areas up again.
    pub fn set_areas(&mut self, areas: PackedAreas) {
        self.areas = areas;
    }

    #[inline]
    fn read(&self, at: Cursor, order: Ordering) -> (u64, u64) {
        let word = self.areas.ring.load64(at.offset() + 8, order);
        (self.areas.ring.load64(at.offset(), Ordering::Relaxed), word)
    }

    /// The next descriptor, if it is available. Flags come first: acquire pairs with the driver's
    /// release store of them, so that the rest of the chain is seen whole.
    #[inline]
    fn head(&self) -> Option<Descriptor> {
        let word = self.areas.ring.load64(self.next_avail.offset() + 8, Ordering::Acquire);
        if !self.next_avail.is_available((word >> 48) as u16) {
            return None;
        }
        let addr = self.areas.ring.load64(self.next_avail.offset(), Ordering::Relaxed);
        Some(Descriptor::from_words(addr, word))
    }

    #[inline]
    fn take_one(&mut self, head: Descriptor, batch: &mut Batch) -> Result<(), QueueError> {
        // Most buffers are one direct descriptor in the region of the one before.
        if head.high & (flags::NEXT | flags::INDIRECT) == 0
            && head.len > 0
            && let Some(ptr) =
                self.common.memory.hit(&self.common.cache, head.addr, head.len.into())
            && self.taken.admits(head.low)
        {
            let write = head.high & flags::WRITE != 0;
            let writable = if write { u64::from(head.len) } else { 0 };
            let token = self.taken.push(head.low, 1, writable);
            batch.push_single(token, Segment { ptr, addr: head.addr, len: head.len }, write);
            self.next_avail = self.next_avail.advanced(1, self.common.size);
            self.slots_taken += 1;
            return Ok(());
        }
        self.take_list(head, batch)
    }

    #[inline(never)]
    fn take_list(&mut self, head: Descriptor, batch: &mut Batch) -> Result<(), QueueError> {
        let size = self.common.size;
        let room = u32::from(size) - self.slots_taken;
        let indirect = self.common.indirect;
        let first = self.next_avail;
        let (mut at, mut read, mut slots) = (first, head, 0);
        let ring = &self.areas.ring;
        let mut chain = Chain::new(batch, &mut self.common, first.slot);
        loop {
            slots += 1;
            if slots > room {
                return Err(Fault::ChainTooLong { head: first.slot, limit: room }.into());
            }
            let has_next = read.high & flags::NEXT != 0;
            if read.high & flags::INDIRECT != 0 {
                if !indirect {
                    return Err(Fault::IndirectNotNegotiated { descriptor: at.slot }.into());
                }
                if has_next || slots > 1 {
                    return Err(Fault::IndirectWithNext { descriptor: at.slot }.into());
                }
                let table = Table { addr: read.addr, len: read.len, follow: false };
                chain.push_table(at.slot, table)?;
            } else {
                chain.push(at.slot, read.addr, read.len, read.high & flags::WRITE != 0)?;
            }
            at = at.advanced(1, size);
            if !has_next {
                break;
            }
            let word = ring.load64(at.offset() + 8, Ordering::Relaxed);
            read = Descriptor::from_words(ring.load64(at.offset(), Ordering::Relaxed), word);
        }
        chain.check_size()?;
        // The identifier of a list is in its last descriptor (2.8.6).
        let id = read.low;
        if !self.taken.admits(id) {
            return Err(Fault::AlreadyOutstanding { id }.into());
        }
        let token = self.taken.push(id, slots as u16, chain.writable());
        chain.finish(token);
        self.next_avail = at;
        self.slots_taken += slots;
        Ok(())
    }

    fn write_used(&self, at: Cursor, used: &UsedEntry, order: Ordering) {
        let write = if used.written > 0 { flags::WRITE } else { 0 };
        let word = Descriptor::word(used.written, used.id, at.used_flags() | write);
        self.areas.ring.store64(at.offset() + 8, word, order);
        if self.common.memory.log().is_some() {
            self.common.memory.mark_dirty(self.areas.ring.guest_addr(at.offset() + 8), 8);
        }
    }

    /// So many slots were taken and used at once.
    #[inline]
    fn pass(&mut self, slots: u32) {
        self.next_avail = self.next_avail.advanced(slots, self.common.size);
        self.next_used = self.next_used.advanced(slots, self.common.size);
        self.passed = self.passed.saturating_add(slots);
    }

    /// A used descriptor for each of the first `count` buffers of a burst, at least one.
    #[inline]
    fn retire_each(&self, burst: &Burst, count: usize) {
        let ring = &self.areas.ring;
        let word = |index: usize, lap: u16| {
            let (id, written) = burst.used(index);
            let write = if written > 0 { flags::WRITE } else { 0 };
            Descriptor::word(written, id, lap | write)
        };
        let (mut at, mut done) = (self.next_used, 0);
        while done < count {
            let stretch = usize::from(self.common.size - at.slot).min(count - done);
            let (base, lap) = (at.offset() + 8, at.used_flags());
            for slot in usize::from(done == 0)..stretch {
                let offset = base + slot * DESCRIPTOR_SIZE;
                ring.store64(offset, word(done + slot, lap), Ordering::Relaxed);
            }
            done += stretch;
            at = at.advanced(stretch as u32, self.common.size);
        }
        // The first one last, as in `flush`.
        let (first, lap) = (self.next_used.offset() + 8, self.next_used.used_flags());
        ring.store64(first, word(0, lap), Ordering::Release);
    }

    fn advance_used(&mut self, used: &UsedEntry) {
        self.next_used = self.next_used.advanced(used.slots, self.common.size);
        self.slots_taken -= used.slots;
        self.passed = self.passed.saturating_add(used.slots);
    }
}

impl<O: Order> DeviceHalf for PackedDevice<O> {
    fn take(&mut self, max: usize, batch: &mut Batch) -> Result<usize, QueueError> {
        self.common.check()?;
        batch.hold(&self.common.memory);
        if self.log.is_some() {
            return self.take_logged(max, batch);
        }
        for taken in 0..max {
            // With every slot taken, what stands at the next one is a descriptor of ours.
            if self.slots_taken == u32::from(self.common.size) {
                return Ok(taken);
            }
            let Some(head) = self.head() else {
                self.common.check_mapping()?;
                return Ok(taken);
            };
            if let Err(error) = self.take_one(head, batch) {
                return if taken > 0 { Ok(taken) } else { Err(self.common.fail(error)) };
            }
        }
        self.common.check_mapping()?;
        Ok(max)
    }

    fn put_back(&mut self, token: Token) -> Result<(), QueueError> {
        let slots = u32::from(self.taken.undo(token)?);
        if let Some(log) = &mut self.log {
            log.put_back(); // it is taken again by what the log has
            return Ok(());
        }
        self.next_avail = self.next_avail.rewound(slots, self.common.size);
        self.slots_taken -= slots;
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
        let Some(first) = self.taken.next_used(self.merge) else {
            return Ok((0, 0));
        };
        let first_at = self.next_used;
        let first = self.common.as_written(first);
        self.advance_used(&first);
        let (mut buffers, mut entries) = (usize::from(first.buffers), 1);
        // Forward, if what is published by then must do for a device half that comes after us when we
        // are killed here: in order, all that lies behind it is as the driver made it available.
        let forward = O::IN_ORDER && self.merge;
        // Release, always: pairs with the driver's acquire load of these flags; payload, and all
        // descriptors if it is the first one that comes last, are visible before.
        if forward {
            self.write_used(first_at, &first, Ordering::Release);
        }
        while let Some(used) = self.taken.next_used(self.merge) {
            let order = if forward { Ordering::Release } else { Ordering::Relaxed };
            self.write_used(self.next_used, &used, order);
            self.advance_used(&used);
            buffers += usize::from(used.buffers);
            entries += 1;
        }
        if !forward {
            // The first one last, so that the driver finds the whole batch.
            self.write_used(first_at, &first, Ordering::Release);
        }
        self.common.check_mapping()?;
        Ok((buffers, entries))
    }

    fn gather(&mut self, max: usize, write: bool, burst: &mut Burst) -> Result<usize, QueueError> {
        self.common.check()?;
        burst.restart(&self.common.memory, (self.next_avail.slot, self.next_avail.wrap));
        // What is written down goes by way of `take`.
        if !self.taken.is_empty() || self.log.is_some() {
            return Ok(0);
        }
        let room = u32::from(self.common.size) - self.slots_taken;
        let most = max.min(BURST_MAX).min(room as usize);
        let write_flag = if write { flags::WRITE } else { 0 };
        let mut window = self.common.window;
        let mut at = self.next_avail;
        self.taken.begin_burst();
        let (mut len, mut blocked) = (0, false);
        while len < most {
            // Availability, direction and plainness in one comparison.
            let wanted = at.available_flags() | write_flag;
            let word = self.areas.ring.load64(at.offset() + 8, Ordering::Acquire);
            if (word >> 48) as u16 & PLAIN != wanted {
                blocked = at.is_available((word >> 48) as u16);
                break;
            }
            blocked = true;
            let addr = self.areas.ring.load64(at.offset(), Ordering::Relaxed);
            let read = Descriptor::from_words(addr, word);
            if read.len == 0 || !self.taken.admits_to_burst(read.low) {
                break;
            }
            let Some(ptr) = self.common.locate(&mut window, addr, read.len) else { break };
            burst.put(len, read.low, Segment { ptr, addr, len: read.len });
            at = at.advanced(1, self.common.size);
            len += 1;
            blocked = false;
        }
        self.common.window = window;
        burst.set_len(len, blocked);
        if len == 0 {
            self.common.check_mapping()?;
        }
        Ok(len)
    }

    fn retire(&mut self, burst: &Burst, count: usize, write: bool) -> Result<usize, QueueError> {
        self.common.check()?;
        if burst.start() != (self.next_avail.slot, self.next_avail.wrap) || count > burst.len() {
            return Err(QueueError::Stale);
        }
        if count == 0 {
            return Ok(0);
        }
        if count == 1 || O::IN_ORDER && self.merge && !write {
            // One for all of them (2.8.8).
            let (id, written) = burst.used(count - 1);
            let write = if written > 0 { flags::WRITE } else { 0 };
            let word = Descriptor::word(written, id, self.next_used.used_flags() | write);
            // Release: as in `flush`.
            self.areas.ring.store64(self.next_used.offset() + 8, word, Ordering::Release);
            self.pass(count as u32);
            self.common.check_mapping()?;
            return Ok(1);
        }
        if !(O::IN_ORDER && self.merge) {
            self.retire_each(burst, count);
            self.pass(count as u32);
            self.common.check_mapping()?;
            return Ok(count);
        }
        // Forward, as in `flush`.
        let (mut at, mut from, mut entries) = (self.next_used, 0, 0);
        while from < count {
            let last = burst.run_end(from, count, write);
            let (id, written) = burst.used(last);
            let write = if written > 0 { flags::WRITE } else { 0 };
            let word = Descriptor::word(written, id, at.used_flags() | write);
            self.areas.ring.store64(at.offset() + 8, word, Ordering::Release);
            at = at.advanced((last + 1 - from) as u32, self.common.size);
            from = last + 1;
            entries += 1;
        }
        self.pass(count as u32);
        self.common.check_mapping()?;
        Ok(entries)
    }

    fn call_wanted(&mut self, settled: bool) -> Result<bool, QueueError> {
        self.common.check()?;
        let slots = self.passed;
        if slots == 0 {
            return Ok(false);
        }
        let settled = settled || slots >= self.common.size.into() || self.never_asked;
        if settled {
            // Full barrier: pairs with the driver's, between stating its wish and reading the ring.
            full_fence();
        }
        let word = self.areas.driver.load32(0, Ordering::Relaxed);
        let passed = Passed { slot: self.next_used.slot, wrap: self.next_used.wrap, slots };
        let wanted = packed_wanted(word, passed, self.common.size, self.common.event_idx)
            .map_err(|fault| self.common.fail(fault.into()))?;
        if settled || wanted {
            self.passed = 0;
        }
        let first = std::mem::take(&mut self.never_asked);
        Ok(wanted || first && (word >> 16) as u16 & 3 == EVENT_DESC)
    }

    fn enable_kicks(&mut self) -> bool {
        let word = if self.common.event_idx {
            event_word(self.next_avail.slot, self.next_avail.wrap, EVENT_DESC)
        } else {
            event_word(0, false, EVENT_ENABLE)
        };
        self.areas.device.store32(0, word, Ordering::Relaxed);
        // Full barrier: pairs with the driver's, between writing descriptors and reading this.
        full_fence();
        self.has_available()
    }

    fn disable_kicks(&mut self) {
        self.areas.device.store32(0, event_word(0, false, EVENT_DISABLE), Ordering::Relaxed);
    }

    fn has_available(&self) -> bool {
        self.common.broken.is_none()
            && (self.has_pending()
                || self.slots_taken < u32::from(self.common.size)
                    && self.next_avail.is_available(
                        (self.read(self.next_avail, Ordering::Acquire).1 >> 48) as u16,
                    ))
    }

    fn outstanding(&self) -> usize {
        self.taken.len()
    }

    fn position(&self) -> Position {
        Position {
            available: self.next_avail.slot,
            available_wrap: self.next_avail.wrap,
            used: self.next_used.slot,
            used_wrap: self.next_used.wrap,
            descriptor: 0,
        }
    }

    fn abandon(&mut self) -> Position {
        if self.log.is_some() {
            return self.abandon_logged();
        }
        let (_, slots) = self.taken.abandon();
        self.next_avail = self.next_avail.rewound(slots, self.common.size);
        self.slots_taken -= slots;
        self.position()
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
