//! The driver half: writes the descriptor table and the available ring, reads the used ring.

use std::sync::Arc;

use super::{
    FLAGS, INDEX, NO_NOTIFY, SplitAreas, avail_event_offset, descriptor_offset, head_offset,
    used_event_offset, used_offset,
};
use crate::area::{Area, Ordering, full_fence};
use crate::error::{Fault, QueueError};
use crate::memory::Memory;
use crate::notify::need_event;
use crate::order::{Added, Order, Sent};
use crate::ring::chain::Descriptor;
use crate::ring::{
    Common, DESCRIPTOR_SIZE, DriverHalf, IndirectTables, Piece, Position, Reaped, alike, bytes,
    flags, reap_sent,
};

/// A used element that covers more buffers than were reaped so far.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    /// Buffers still to be reaped.
    left: u16,
    id: u16,
    /// Bytes written to the last of them.
    written: u32,
}

/// The driver half of a split virtqueue.
pub struct SplitDriver<O: Order> {
    common: Common,
    areas: SplitAreas,
    tables: Option<IndirectTables>,
    mask: u16,
    free: u16,
    /// Where the next head goes; the device sees it as `idx` after `publish`.
    next_avail: u16,
    /// `next_avail` as the device sees it.
    published: u16,
    /// `published` when the device was last asked whether it wants a notification.
    asked: u16,
    /// Next buffer to reap.
    last_used: u16,
    run: Run,
    added: O::Added,
    added_total: u64,
    published_total: u64,
    used_entries: u64,
}

impl<O: Order> SplitDriver<O> {
    /// A driver half of `size` slots (a power of two), its areas initialized. With a position
    /// it continues there, nothing outstanding.
    pub fn new(
        size: u16,
        features: u64,
        areas: SplitAreas,
        tables: Option<IndirectTables>,
        memory: Arc<Memory>,
        position: Option<Position>,
    ) -> Self {
        let mut driver = Self {
            common: Common::new(size, features, memory),
            areas,
            tables,
            mask: size - 1,
            free: size,
            next_avail: 0,
            published: 0,
            asked: 0,
            last_used: 0,
            run: Run::default(),
            added: O::Added::new(size),
            added_total: 0,
            published_total: 0,
            used_entries: 0,
        };
        driver.start_at(position.unwrap_or_default());
        driver
    }

    fn start_at(&mut self, position: Position) {
        self.areas.desc.clear();
        self.areas.avail.clear();
        self.areas.used.clear();
        self.next_avail = position.available;
        self.published = position.available;
        self.asked = position.available;
        self.last_used = position.available;
        self.free = self.common.size;
        self.run = Run::default();
        self.published_total = self.added_total;
        self.added.set_cursor(position.descriptor & self.mask);
        self.areas.avail.store16(INDEX, position.available, Ordering::Relaxed);
        self.areas.used.store16(INDEX, position.available, Ordering::Release);
        if self.common.event_idx {
            let used_event = used_event_offset(self.common.size);
            self.areas.avail.store16(used_event, position.available, Ordering::Relaxed);
            let avail_event = avail_event_offset(self.common.size);
            self.areas.used.store16(avail_event, position.available, Ordering::Relaxed);
        }
    }

    #[inline]
    fn wants_table(&self, pieces: usize) -> bool {
        let fits = |tables: &IndirectTables| pieces <= usize::from(tables.length);
        pieces > 1 && self.tables.as_ref().is_some_and(fits)
    }

    #[inline]
    fn write_descriptor(&self, slot: u16, piece: Piece, descriptor_flags: u16, next: u16) {
        let word = Descriptor::word(piece.len, descriptor_flags, next);
        put_descriptor(&self.areas.desc, descriptor_offset(slot), piece.addr, word);
    }

    #[inline]
    fn write_single(&self, head: u16, piece: Piece, descriptor_flags: u16) -> u16 {
        self.write_descriptor(head, piece, descriptor_flags, 0);
        self.added.next_slot(head)
    }

    /// A chain of direct descriptors; returns the slot that follows it.
    fn write_chain(&self, head: u16, readable: &[Piece], writable: &[Piece]) -> u16 {
        let pieces = readable.len() + writable.len();
        let mut slot = head;
        for (position, piece) in readable.iter().chain(writable).enumerate() {
            let mut descriptor_flags = if position < readable.len() { 0 } else { flags::WRITE };
            let following = self.added.next_slot(slot);
            let mut next = 0;
            if position + 1 < pieces {
                descriptor_flags |= flags::NEXT;
                next = following;
            }
            self.write_descriptor(slot, *piece, descriptor_flags, next);
            slot = following;
        }
        slot
    }

    /// A table for the whole chain, entry 0 linked to 1 and so on (2.7.5.3.1).
    fn write_table(&self, head: u16, readable: &[Piece], writable: &[Piece]) -> u16 {
        let tables = self.tables.as_ref().expect("wants_table() was asked first");
        let pieces = readable.len() + writable.len();
        let start = tables.offset(head);
        for (entry, piece) in readable.iter().chain(writable).enumerate() {
            let mut entry_flags = if entry < readable.len() { 0 } else { flags::WRITE };
            let mut next = 0;
            if entry + 1 < pieces {
                entry_flags |= flags::NEXT;
                next = entry as u16 + 1;
            }
            let offset = start + entry * DESCRIPTOR_SIZE;
            tables.area.store64(offset, piece.addr, Ordering::Relaxed);
            let word = Descriptor::word(piece.len, entry_flags, next);
            tables.area.store64(offset + 8, word, Ordering::Relaxed);
        }
        let table =
            Piece { addr: tables.area.guest_addr(start), len: (pieces * DESCRIPTOR_SIZE) as u32 };
        self.write_descriptor(head, table, flags::INDIRECT, 0);
        self.added.next_slot(head)
    }

    /// The next used element, checked against what is outstanding.
    fn next_run(&mut self, pending: u16) -> Result<(), QueueError> {
        let slot = self.last_used & self.mask;
        let offset = used_offset(slot);
        let id = self.areas.used.load32(offset, Ordering::Relaxed);
        let written = self.areas.used.load32(offset + 4, Ordering::Relaxed);
        let Some((left, writable)) = self.added.covered(id, self.published_total) else {
            return Err(Fault::UsedIdUnknown { slot, id }.into());
        };
        if left > pending {
            return Err(Fault::BatchBeyondIndex { slot, id, available: pending }.into());
        }
        if written > writable {
            return Err(Fault::UsedLength { id: id as u16, length: written, writable }.into());
        }
        self.used_entries += 1;
        self.run = Run { left, id: id as u16, written };
        Ok(())
    }

    /// Up to `most` of the `pending` buffers that are used in order by an element each, without a look
    /// at anything but these.
    #[inline]
    fn reap_singles(&mut self, pending: u16, most: usize, into: &mut Vec<Reaped>) -> usize {
        let (used, mask, mut slot) = (&self.areas.used, self.mask, self.last_used);
        let most = most.min(pending.into());
        let sent = self.added.pop_singles(self.published_total, most, |cookie, id, writable| {
            let offset = used_offset(slot & mask);
            let written = used.load32(offset + 4, Ordering::Relaxed);
            if used.load32(offset, Ordering::Relaxed) != id.into() || written > writable {
                return false;
            }
            slot = slot.wrapping_add(1);
            into.push(Reaped { cookie, written });
            true
        });
        self.used_entries += u64::from(sent.count);
        self.free += sent.count * sent.slots;
        self.last_used = slot;
        sent.count.into()
    }

    /// The next buffer, if it is used in order by an element of its own.
    #[inline]
    fn reap_single(&mut self) -> Option<Reaped> {
        let offset = used_offset(self.last_used & self.mask);
        let id = self.areas.used.load32(offset, Ordering::Relaxed);
        let written = self.areas.used.load32(offset + 4, Ordering::Relaxed);
        let sent = self.added.pop_oldest(self.published_total, id, written)?;
        self.used_entries += 1;
        self.free += sent.slots;
        self.last_used = self.last_used.wrapping_add(1);
        Some(Reaped { cookie: sent.cookie, written })
    }

    /// One buffer in one piece; there is room.
    #[inline]
    fn add_single(&mut self, piece: Piece, write: bool, cookie: u64) {
        let head = self.added.next_id(self.added.cursor());
        let after = self.write_single(head, piece, if write { flags::WRITE } else { 0 });
        let writable = if write { piece.len } else { 0 };
        let sent = Sent { cookie, writable, slots: 1, id: head, serial: self.added_total };
        self.added.push(sent, after);
        self.added_total += 1;
        self.free -= 1;
        put_head(&self.areas.avail, self.next_avail & self.mask, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Up to `most` of the run's buffers; all but its last count as completely written (2.7.9).
    #[inline]
    fn reap_run(&mut self, most: usize, into: &mut Vec<Reaped>) -> usize {
        let most = most.min(self.run.left.into()) as u16;
        let sent = self.added.pop(self.run.id, most, true);
        self.run.left -= sent.count;
        self.free += sent.count * sent.slots;
        self.last_used = self.last_used.wrapping_add(sent.count);
        let short = (self.run.left == 0).then_some(self.run.written);
        reap_sent(sent, short, into)
    }
}

/// A descriptor, left alone where it is there already: a line that nobody writes stays in the caches
/// of both sides. What the device may have made of it does not matter, it is only compared.
#[inline(always)]
fn put_descriptor(desc: &Area, offset: usize, addr: u64, word: u64) {
    if desc.load64(offset, Ordering::Relaxed) != addr {
        desc.store64(offset, addr, Ordering::Relaxed);
    }
    if desc.load64(offset + 8, Ordering::Relaxed) != word {
        desc.store64(offset + 8, word, Ordering::Relaxed);
    }
}

/// The head in a slot of the available ring, likewise.
#[inline(always)]
fn put_head(avail: &Area, slot: u16, head: u16) {
    if avail.load16(head_offset(slot), Ordering::Relaxed) != head {
        avail.store16(head_offset(slot), head, Ordering::Relaxed);
    }
}

impl<O: Order> DriverHalf for SplitDriver<O> {
    #[inline]
    fn add(
        &mut self,
        readable: &[Piece],
        writable: &[Piece],
        cookie: u64,
    ) -> Result<(), QueueError> {
        self.common.check()?;
        let pieces = readable.len() + writable.len();
        let needed = self.slots_needed(pieces);
        if needed > self.free.into() {
            return Err(QueueError::Full { needed, free: self.free.into() });
        }
        let head = self.added.next_id(self.added.cursor());
        let after = match (readable, writable) {
            ([piece], []) => self.write_single(head, *piece, 0),
            ([], [piece]) => self.write_single(head, *piece, flags::WRITE),
            _ if needed == 1 => self.write_table(head, readable, writable),
            _ => self.write_chain(head, readable, writable),
        };
        let sent = Sent {
            cookie,
            writable: bytes(writable),
            slots: needed as u16,
            id: head,
            serial: self.added_total,
        };
        self.added.push(sent, after);
        self.added_total += 1;
        self.free -= needed as u16;
        put_head(&self.areas.avail, self.next_avail & self.mask, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(())
    }

    fn add_each(
        &mut self,
        pieces: &[Piece],
        write: bool,
        cookie: u64,
    ) -> Result<usize, QueueError> {
        self.common.check()?;
        if let [piece] = pieces
            && self.free > 0
        {
            self.add_single(*piece, write, cookie);
            return Ok(1);
        }
        let count = pieces.len().min(self.free.into());
        let (desc, avail, mask, next_avail) =
            (&self.areas.desc, &self.areas.avail, self.mask, self.next_avail);
        let descriptor_flags = if write { flags::WRITE } else { 0 };
        let mut done = 0;
        while done < count {
            let alike = alike(&pieces[done..count], write);
            let first = Sent {
                cookie: cookie.wrapping_add(done as u64),
                writable: if write { pieces[done].len } else { 0 },
                slots: 1,
                id: self.added.next_id(self.added.cursor()),
                serial: self.added_total,
            };
            self.added.push_singles(first, alike as u16, |at, head| {
                let at = done + usize::from(at);
                let word = Descriptor::word(pieces[at].len, descriptor_flags, 0);
                put_descriptor(desc, descriptor_offset(head), pieces[at].addr, word);
                put_head(avail, next_avail.wrapping_add(at as u16) & mask, head);
            });
            self.added_total += alike as u64;
            done += alike;
        }
        self.free -= count as u16;
        self.next_avail = next_avail.wrapping_add(count as u16);
        Ok(count)
    }

    fn slots_needed(&self, pieces: usize) -> usize {
        if self.wants_table(pieces) { 1 } else { pieces }
    }

    fn publish(&mut self) -> usize {
        let buffers = self.next_avail.wrapping_sub(self.published);
        if buffers > 0 {
            // Release: pairs with the device's acquire load of the index; descriptors, ring entries
            // and payload are visible before it.
            self.areas.avail.store16(INDEX, self.next_avail, Ordering::Release);
            self.published = self.next_avail;
            self.published_total = self.added_total;
        }
        buffers.into()
    }

    fn kick_wanted(&mut self, settled: bool) -> Result<bool, QueueError> {
        self.common.check()?;
        let (old, new) = (self.asked, self.published);
        if old == new {
            return Ok(false);
        }
        let size = self.common.size;
        let settled = settled || new.wrapping_sub(old) >= size;
        if settled {
            // Full barrier: pairs with the device's, between stating its wish and reading the index.
            full_fence();
        }
        let used = &self.areas.used;
        let wanted = if self.common.event_idx {
            need_event(used.load16(avail_event_offset(size), Ordering::Relaxed), new, old)
        } else {
            used.load16(FLAGS, Ordering::Relaxed) & NO_NOTIFY == 0
        };
        if settled || wanted {
            self.asked = new;
        }
        Ok(wanted)
    }

    fn reap(&mut self, max: usize, into: &mut Vec<Reaped>) -> Result<usize, QueueError> {
        self.common.check()?;
        // Acquire: pairs with the device's release store of the index.
        let index = self.areas.used.load16(INDEX, Ordering::Acquire);
        let outstanding = self.published.wrapping_sub(self.last_used);
        if index.wrapping_sub(self.last_used) > outstanding {
            let fault = Fault::UsedJump { index, last: self.last_used, outstanding };
            return Err(self.common.fail(fault.into()));
        }
        if O::IN_ORDER
            && max == 1
            && index != self.last_used
            && self.run.left == 0
            && let Some(one) = self.reap_single()
        {
            into.push(one);
            self.common.check_mapping()?;
            return Ok(1);
        }
        into.reserve(usize::from(index.wrapping_sub(self.last_used)).min(max));
        let mut reaped = 0;
        while reaped < max && self.last_used != index {
            if self.run.left == 0 {
                let mut pending = index.wrapping_sub(self.last_used);
                if O::IN_ORDER {
                    let singles = self.reap_singles(pending, max - reaped, into);
                    reaped += singles;
                    pending -= singles as u16;
                    if reaped == max || pending == 0 {
                        break;
                    }
                }
                if let Err(error) = self.next_run(pending) {
                    return if reaped > 0 { Ok(reaped) } else { Err(self.common.fail(error)) };
                }
            }
            reaped += self.reap_run(max - reaped, into);
        }
        self.common.check_mapping()?;
        Ok(reaped)
    }

    fn enable_calls(&mut self) -> bool {
        let avail = &self.areas.avail;
        if self.common.event_idx {
            avail.store16(used_event_offset(self.common.size), self.last_used, Ordering::Relaxed);
        } else {
            avail.store16(FLAGS, 0, Ordering::Relaxed);
        }
        // Full barrier: pairs with the device's, between publishing the index and reading this.
        full_fence();
        self.has_used()
    }

    fn disable_calls(&mut self) {
        // With EVENT_IDX an event index that stays behind is quiet by itself (2.7.10).
        if !self.common.event_idx {
            self.areas.avail.store16(FLAGS, NO_NOTIFY, Ordering::Relaxed);
        }
    }

    fn has_used(&self) -> bool {
        self.common.broken.is_none()
            && self.areas.used.load16(INDEX, Ordering::Acquire) != self.last_used
    }

    fn free(&self) -> usize {
        self.free.into()
    }

    fn outstanding(&self) -> usize {
        self.added.len()
    }

    fn take_back(&mut self) -> Vec<u64> {
        let cookies = self.added.drain();
        self.common.broken = None;
        self.start_at(Position::default());
        cookies
    }

    fn position(&self) -> Position {
        Position {
            available: self.published,
            used: self.last_used,
            descriptor: self.added.cursor(),
            ..Position::default()
        }
    }

    fn device_position(&self) -> Position {
        let used = self.areas.used.load16(INDEX, Ordering::Acquire);
        Position { used, ..self.position() }
    }

    fn broken(&self) -> Option<&Fault> {
        self.common.broken.as_ref()
    }

    fn used_entries(&self) -> u64 {
        self.used_entries
    }
}
