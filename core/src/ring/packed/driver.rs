//! The driver half: makes descriptors available in ring order and finds used ones in their place.

use std::sync::Arc;

use super::{Cursor, PackedAreas, lines};
use crate::area::{Ordering, full_fence};
use crate::error::{Fault, QueueError};
use crate::memory::Memory;
use crate::notify::{EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE, Passed, event_word, packed_wanted};
use crate::order::{Added, Order, Sent};
use crate::ring::chain::Descriptor;
use crate::ring::{
    Common, DESCRIPTOR_SIZE, DriverHalf, IndirectTables, Piece, Position, Reaped, alike, bytes,
    flags, reap_sent,
};

/// A used descriptor that covers more buffers than were reaped so far.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    /// Buffers still to be reaped.
    left: u16,
    id: u16,
    /// Bytes written to the last of them.
    written: u32,
}

/// The driver half of a packed virtqueue.
pub struct PackedDriver<O: Order> {
    common: Common,
    areas: PackedAreas,
    tables: Option<IndirectTables>,
    free: u32,
    /// Where the next descriptor goes.
    next_avail: Cursor,
    /// First descriptor that the device does not see yet, and its second word, held back.
    held: Option<(Cursor, u64)>,
    /// Where the next used descriptor will be found.
    next_used: Cursor,
    /// Slots published since the device was last asked whether it wants a notification.
    passed: u32,
    run: Run,
    added: O::Added,
    added_total: u64,
    published_total: u64,
    used_entries: u64,
}

impl<O: Order> PackedDriver<O> {
    /// A driver half of `size` slots, its areas initialized. With a position it continues there,
    /// nothing outstanding.
    pub fn new(
        size: u16,
        features: u64,
        areas: PackedAreas,
        tables: Option<IndirectTables>,
        memory: Arc<Memory>,
        position: Option<Position>,
    ) -> Self {
        let start = Cursor { slot: 0, wrap: true };
        let mut driver = Self {
            common: Common::new(size, features, memory),
            areas,
            tables,
            free: size.into(),
            next_avail: start,
            held: None,
            next_used: start,
            passed: 0,
            run: Run::default(),
            added: O::Added::new(size),
            added_total: 0,
            published_total: 0,
            used_entries: 0,
        };
        driver.start_at(position.map_or(start, |position| Cursor {
            slot: position.available,
            wrap: position.available_wrap,
        }));
        driver
    }

    /// Descriptors from `at` to the end of the ring look used in the lap before; those before `at`
    /// look used in this one.
    fn start_at(&mut self, at: Cursor) {
        self.areas.ring.clear();
        self.areas.driver.clear();
        self.areas.device.clear();
        for slot in 0..self.common.size {
            let wrap = if slot < at.slot { at.wrap } else { !at.wrap };
            let cursor = Cursor { slot, wrap };
            let word = Descriptor::word(0, 0, cursor.used_flags());
            self.areas.ring.store64(cursor.offset() + 8, word, Ordering::Relaxed);
        }
        self.next_avail = at;
        self.next_used = at;
        self.held = None;
        self.passed = 0;
        self.free = self.common.size.into();
        self.run = Run::default();
        self.published_total = self.added_total;
    }

    #[inline]
    fn wants_table(&self, pieces: usize) -> bool {
        let fits = |tables: &IndirectTables| pieces <= usize::from(tables.length);
        pieces > 1 && self.tables.as_ref().is_some_and(fits)
    }

    /// A descriptor at the next slot; the first one since `publish` is held back.
    #[inline]
    fn write_descriptor(&mut self, piece: Piece, id: u16, descriptor_flags: u16) {
        let at = self.next_avail;
        let ring = &self.areas.ring;
        ring.store64(at.offset(), piece.addr, Ordering::Relaxed);
        let word = Descriptor::word(piece.len, id, descriptor_flags | at.available_flags());
        if self.held.is_none() {
            self.held = Some((at, word));
        } else {
            ring.store64(at.offset() + 8, word, Ordering::Relaxed);
        }
        self.next_avail = at.advanced(1, self.common.size);
    }

    /// A plain descriptor for each piece, in order: its identifier is its slot.
    #[inline]
    fn write_row(&mut self, pieces: &[Piece], descriptor_flags: u16) {
        let mut rest = pieces;
        if self.held.is_none() {
            let [first, others @ ..] = pieces else { return };
            self.write_descriptor(*first, self.next_avail.slot, descriptor_flags);
            rest = others;
        }
        while !rest.is_empty() {
            let at = self.next_avail;
            let straight = usize::from(self.common.size - at.slot).min(rest.len());
            let (now, later) = rest.split_at(straight);
            lines::write(&self.areas.ring, at.slot, now, descriptor_flags | at.available_flags());
            self.next_avail = at.advanced(straight as u32, self.common.size);
            rest = later;
        }
    }

    fn write_list(&mut self, id: u16, readable: &[Piece], writable: &[Piece]) {
        let pieces = readable.len() + writable.len();
        for (position, piece) in readable.iter().chain(writable).enumerate() {
            let next = if position + 1 < pieces { flags::NEXT } else { 0 };
            let write = if position < readable.len() { 0 } else { flags::WRITE };
            self.write_descriptor(*piece, id, next | write);
        }
    }

    /// A table for the whole list; its entries are positional (2.8.7).
    fn write_table(&mut self, id: u16, readable: &[Piece], writable: &[Piece]) {
        let tables = self.tables.as_ref().expect("wants_table() was asked first");
        let pieces = readable.len() + writable.len();
        // By identifier: in any order a slot may be written again while a buffer that was made
        // available through it is outstanding.
        let start = tables.offset(id);
        for (entry, piece) in readable.iter().chain(writable).enumerate() {
            let write = if entry < readable.len() { 0 } else { flags::WRITE };
            let offset = start + entry * DESCRIPTOR_SIZE;
            tables.area.store64(offset, piece.addr, Ordering::Relaxed);
            let word = Descriptor::word(piece.len, 0, write);
            tables.area.store64(offset + 8, word, Ordering::Relaxed);
        }
        let table =
            Piece { addr: tables.area.guest_addr(start), len: (pieces * DESCRIPTOR_SIZE) as u32 };
        self.write_descriptor(table, id, flags::INDIRECT);
    }

    /// The word at the next used slot, if the device has used something there. Acquire: pairs with
    /// the device's release store of the flags; payload is visible behind it.
    #[inline]
    fn used_word(&self) -> Option<u64> {
        let word = self.areas.ring.load64(self.next_used.offset() + 8, Ordering::Acquire);
        let published = self.free < u32::from(self.common.size);
        (published && self.next_used.is_used((word >> 48) as u16)).then_some(word)
    }

    /// The next used descriptor, checked against what is outstanding. False if there is none.
    fn next_run(&mut self) -> Result<bool, QueueError> {
        let Some(word) = self.used_word() else {
            return Ok(false);
        };
        let used = Descriptor::from_words(0, word);
        let (id, slot) = (used.low, self.next_used.slot);
        let Some((left, writable)) = self.added.covered(id.into(), self.published_total) else {
            return Err(Fault::UsedIdUnknown { slot, id: id.into() }.into());
        };
        // The length has a meaning only with WRITE (2.8.4), which QEMU's devices never set, though
        // their length is right: without the flag a length is believed if the buffer has the room.
        let claimed = used.high & flags::WRITE != 0 || used.len <= writable;
        let written = if claimed { used.len } else { 0 };
        if written > writable {
            return Err(Fault::UsedLength { id, length: written, writable }.into());
        }
        self.used_entries += 1;
        self.run = Run { left, id, written };
        Ok(true)
    }

    /// Up to `most` buffers that are used in order by a descriptor each, without a look at anything
    /// but these.
    #[inline]
    fn reap_singles(&mut self, most: usize, into: &mut Vec<Reaped>) -> usize {
        let (ring, size, mut at) = (&self.areas.ring, self.common.size, self.next_used);
        let slots = self.added.front_slots();
        let sent = self.added.pop_singles(self.published_total, most, |cookie, id, writable| {
            // Acquire: as in `used_word`.
            let word = ring.load64(at.offset() + 8, Ordering::Acquire);
            let used = Descriptor::from_words(0, word);
            if !at.is_used(used.high) || used.low != id || used.len > writable {
                return false;
            }
            at = at.advanced(slots, size);
            into.push(Reaped { cookie, written: used.len });
            true
        });
        self.used_entries += u64::from(sent.count);
        self.free += u32::from(sent.count) * slots;
        self.next_used = at;
        sent.count.into()
    }

    /// The next buffer, if it is used in order by a descriptor of its own.
    #[inline]
    fn reap_single(&mut self) -> Option<Reaped> {
        let at = self.next_used;
        // Acquire: as in `used_word`.
        let word = self.areas.ring.load64(at.offset() + 8, Ordering::Acquire);
        let used = Descriptor::from_words(0, word);
        if !at.is_used(used.high) {
            return None;
        }
        let sent = self.added.pop_oldest(self.published_total, used.low.into(), used.len)?;
        self.used_entries += 1;
        self.free += u32::from(sent.slots);
        self.next_used = at.advanced(sent.slots.into(), self.common.size);
        Some(Reaped { cookie: sent.cookie, written: used.len })
    }

    /// Up to `most` buffers of one slot each, used in any order.
    #[inline]
    fn reap_each(&mut self, most: usize, into: &mut Vec<Reaped>) -> usize {
        let (ring, size, mut at) = (&self.areas.ring, self.common.size, self.next_used);
        let most = most.min((u32::from(size) - self.free) as usize);
        let mut count = 0;
        while count < most {
            // Acquire: as in `used_word`.
            let word = ring.load64(at.offset() + 8, Ordering::Acquire);
            let used = Descriptor::from_words(0, word);
            if !at.is_used(used.high) {
                break;
            }
            let Some(cookie) = self.added.pop_single(used.low, used.len, self.published_total)
            else {
                break; // `next_run` says what is wrong, if anything is
            };
            into.push(Reaped { cookie, written: used.len });
            at = at.advanced(1, size);
            count += 1;
        }
        self.used_entries += count as u64;
        self.free += count as u32;
        self.next_used = at;
        count
    }

    /// One buffer in one piece; there is room.
    #[inline]
    fn add_single(&mut self, piece: Piece, write: bool, cookie: u64) {
        let id = self.added.next_id(self.next_avail.slot);
        self.write_descriptor(piece, id, if write { flags::WRITE } else { 0 });
        let writable = if write { piece.len } else { 0 };
        let sent = Sent { cookie, writable, slots: 1, id, serial: self.added_total };
        let after = self.added.next_slot(id);
        self.added.push(sent, after);
        self.added_total += 1;
        self.free -= 1;
        self.passed = self.passed.saturating_add(1);
    }

    /// Up to `most` of the run's buffers; all but its last count as completely written (2.8.8).
    #[inline]
    fn reap_run(&mut self, most: usize, into: &mut Vec<Reaped>) -> usize {
        let most = most.min(self.run.left.into()) as u16;
        let sent = self.added.pop(self.run.id, most, false);
        self.run.left -= sent.count;
        let slots = u32::from(sent.count) * u32::from(sent.slots);
        self.free += slots;
        self.next_used = self.next_used.advanced(slots, self.common.size);
        let short = (self.run.left == 0).then_some(self.run.written);
        reap_sent(sent, short, into)
    }

    /// Where the device goes on, by what it has used, and how many slots from there are outstanding.
    fn device_at(&self) -> (Cursor, u32) {
        let size = self.common.size;
        let (mut at, mut skip) = (self.next_used, 0);
        let mut left = u32::from(size) - self.free;
        // The rest of a run that was reaped in part lies before the next used descriptor.
        if self.run.left > 0
            && let Some((buffers, slots)) = self.added.covered_slots(self.run.id.into(), 0)
        {
            (at, skip, left) = (at.advanced(slots, size), buffers, left.saturating_sub(slots));
        }
        while left > 0 {
            let word = self.areas.ring.load64(at.offset() + 8, Ordering::Acquire);
            let used = Descriptor::from_words(0, word);
            if !at.is_used(used.high) {
                break;
            }
            let Some((buffers, slots)) = self.added.covered_slots(used.low.into(), skip) else {
                break; // reap() will say what is wrong with it
            };
            skip += buffers;
            at = at.advanced(slots, size);
            left = left.saturating_sub(slots);
        }
        (at, left)
    }
}

impl<O: Order> DriverHalf for PackedDriver<O> {
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
        if needed > self.free as usize {
            return Err(QueueError::Full { needed, free: self.free as usize });
        }
        let id = self.added.next_id(self.next_avail.slot);
        match (readable, writable) {
            ([piece], []) => self.write_descriptor(*piece, id, 0),
            ([], [piece]) => self.write_descriptor(*piece, id, flags::WRITE),
            _ if needed == 1 => self.write_table(id, readable, writable),
            _ => self.write_list(id, readable, writable),
        }
        let sent = Sent {
            cookie,
            writable: bytes(writable),
            slots: needed as u16,
            id,
            serial: self.added_total,
        };
        let after = self.added.next_slot(id);
        self.added.push(sent, after);
        self.added_total += 1;
        self.free -= needed as u32;
        self.passed = self.passed.saturating_add(needed as u32);
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
        let count = pieces.len().min(self.free as usize);
        let descriptor_flags = if write { flags::WRITE } else { 0 };
        let size = self.common.size;
        let mut done = 0;
        while done < count {
            let alike = alike(&pieces[done..count], write);
            let first = Sent {
                cookie: cookie.wrapping_add(done as u64),
                writable: if write { pieces[done].len } else { 0 },
                slots: 1,
                id: self.added.next_id(self.next_avail.slot),
                serial: self.added_total,
            };
            let pieces = &pieces[done..done + alike];
            if O::IN_ORDER {
                self.added.push_singles(first, alike as u16, |_, _| {});
                self.write_row(pieces, descriptor_flags);
            } else {
                let (ring, mut next, mut held) = (&self.areas.ring, self.next_avail, self.held);
                self.added.push_singles(first, alike as u16, |at, id| {
                    let Piece { addr, len } = pieces[usize::from(at)];
                    let word = Descriptor::word(len, id, descriptor_flags | next.available_flags());
                    // The first one since `publish` is held back.
                    if held.is_some() {
                        ring.store_pair(next.offset(), [addr, word]);
                    } else {
                        ring.store64(next.offset(), addr, Ordering::Relaxed);
                        held = Some((next, word));
                    }
                    next = next.advanced(1, size);
                });
                (self.next_avail, self.held) = (next, held);
            }
            self.added_total += alike as u64;
            done += alike;
        }
        self.free -= count as u32;
        self.passed = self.passed.saturating_add(count as u32);
        Ok(count)
    }

    fn slots_needed(&self, pieces: usize) -> usize {
        if self.wants_table(pieces) { 1 } else { pieces }
    }

    fn publish(&mut self) -> usize {
        if let Some((at, word)) = self.held.take() {
            // Release: pairs with the device's acquire load of these flags; every later descriptor
            // of the batch and the payload are visible before them.
            self.areas.ring.store64(at.offset() + 8, word, Ordering::Release);
        }
        let buffers = self.added_total - self.published_total;
        self.published_total = self.added_total;
        buffers as usize
    }

    fn kick_wanted(&mut self, settled: bool) -> Result<bool, QueueError> {
        self.common.check()?;
        if self.held.is_some() {
            return Err(QueueError::Invalid("publish before asking for a notification".into()));
        }
        let slots = self.passed;
        if slots == 0 {
            return Ok(false);
        }
        let settled = settled || slots >= self.common.size.into();
        if settled {
            // Full barrier: pairs with the device's, between stating its wish and reading the ring.
            full_fence();
        }
        let word = self.areas.device.load32(0, Ordering::Relaxed);
        let passed = Passed { slot: self.next_avail.slot, wrap: self.next_avail.wrap, slots };
        let wanted = packed_wanted(word, passed, self.common.size, self.common.event_idx)
            .map_err(|fault| self.common.fail(fault.into()))?;
        if settled || wanted {
            self.passed = 0;
        }
        Ok(wanted)
    }

    fn reap(&mut self, max: usize, into: &mut Vec<Reaped>) -> Result<usize, QueueError> {
        self.common.check()?;
        if O::IN_ORDER
            && max == 1
            && self.run.left == 0
            && let Some(one) = self.reap_single()
        {
            into.push(one);
            self.common.check_mapping()?;
            return Ok(1);
        }
        let mut reaped = 0;
        while reaped < max {
            if self.run.left == 0 {
                reaped += if O::IN_ORDER {
                    self.reap_singles(max - reaped, into)
                } else {
                    self.reap_each(max - reaped, into)
                };
                if reaped == max {
                    break;
                }
                match self.next_run() {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(_) if reaped > 0 => return Ok(reaped),
                    Err(error) => return Err(self.common.fail(error)),
                }
            }
            reaped += self.reap_run(max - reaped, into);
        }
        self.common.check_mapping()?;
        Ok(reaped)
    }

    fn enable_calls(&mut self) -> bool {
        let word = if self.common.event_idx {
            event_word(self.next_used.slot, self.next_used.wrap, EVENT_DESC)
        } else {
            event_word(0, false, EVENT_ENABLE)
        };
        self.areas.driver.store32(0, word, Ordering::Relaxed);
        // Full barrier: pairs with the device's, between writing used descriptors and reading this.
        full_fence();
        self.has_used()
    }

    fn disable_calls(&mut self) {
        self.areas.driver.store32(0, event_word(0, false, EVENT_DISABLE), Ordering::Relaxed);
    }

    fn has_used(&self) -> bool {
        self.common.broken.is_none() && (self.run.left > 0 || self.used_word().is_some())
    }

    fn free(&self) -> usize {
        self.free as usize
    }

    fn outstanding(&self) -> usize {
        self.added.len()
    }

    fn take_back(&mut self) -> Vec<u64> {
        let cookies = self.added.drain();
        self.common.broken = None;
        self.start_at(Cursor { slot: 0, wrap: true });
        cookies
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

    fn device_position(&self) -> Position {
        let (at, _) = self.device_at();
        Position { used: at.slot, used_wrap: at.wrap, ..self.position() }
    }

    /// Of several used descriptors the first is written last, by some devices.
    fn is_torn(&self) -> bool {
        let (at, left) = self.device_at();
        (0..left).any(|slot| {
            let at = at.advanced(slot, self.common.size);
            let word = self.areas.ring.load64(at.offset() + 8, Ordering::Relaxed);
            at.is_used((word >> 48) as u16)
        })
    }

    fn broken(&self) -> Option<&Fault> {
        self.common.broken.as_ref()
    }

    fn used_entries(&self) -> u64 {
        self.used_entries
    }
}
