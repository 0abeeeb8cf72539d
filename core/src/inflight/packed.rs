//! The packed layout's part: copies of the descriptors in flight, since used ones are written over
//! them in the ring; a list of the free entries; and where the used descriptors were, before and
//! after the batch that is being published.

use std::collections::VecDeque;

use super::{Part, VERSION, field};
use crate::area::{Area, Ordering};
use crate::error::Fault;
use crate::order::UsedEntry;
use crate::ring::chain::Descriptor;

/// free_head and old_free_head, in one word so that they change together.
const FREE_HEADS: usize = 12;
/// used_idx, old_used_idx, used_wrap_counter, old_used_wrap_counter, padding: one word as well.
const USED: usize = 16;
const HEADER_SIZE: usize = 32;
const ENTRY_SIZE: usize = 32;

/// Of an entry.
const INFLIGHT: usize = 0;
const NEXT: usize = 2;
const LAST: usize = 4;
const NUM: usize = 6;
const COUNTER: usize = 8;
/// id, flags, len: as in the ring's descriptor, but in another order.
const ID: usize = 16;
const FLAGS: usize = 18;
const LEN: usize = 20;
const ADDR: usize = 24;

/// Bytes of the part for so many entries.
#[cfg(not(loom))]
pub(super) fn size(entries: u16) -> usize {
    HEADER_SIZE + usize::from(entries) * ENTRY_SIZE
}

fn at(entry: u16) -> usize {
    HEADER_SIZE + usize::from(entry) * ENTRY_SIZE
}

/// A position in the ring of used descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UsedAt {
    pub slot: u16,
    pub wrap: bool,
}

/// A buffer in flight: the entry of its first descriptor, its identifier, its descriptors.
#[derive(Clone, Copy, Debug)]
struct Held {
    head: u16,
    id: u16,
    num: u16,
}

/// What a device half before us left behind.
pub(crate) struct Found {
    /// Where the next used descriptor goes.
    pub used: UsedAt,
    /// The slots that it had taken from there on.
    pub slots: u32,
}

/// Writes down what the device half of a packed virtqueue holds.
pub(crate) struct PackedLog {
    area: Area,
    entries: u16,
    /// Our own knowledge of the links, and of the descriptors in flight.
    next: Vec<u16>,
    copies: Vec<Descriptor>,
    free_head: u16,
    /// `free_head` and the position before the batch that is being published.
    old_free_head: u16,
    old_used: UsedAt,
    counter: u64,
    /// Taken and not used, oldest first. In any order those in the middle leave as well.
    held: VecDeque<Held>,
    /// The newest of them that are to be taken again.
    pending: usize,
    /// Heads of the batch that is about to be published.
    leaving: Vec<u16>,
}

impl PackedLog {
    /// The log, and what a device half before us left; None if there was none, and then used
    /// descriptors begin at `start`. `is_available` tells whether the descriptor at a position still
    /// looks as the driver made it available there; the ring has `size` slots.
    pub fn open(
        part: Part,
        size: u16,
        start: UsedAt,
        is_available: impl FnOnce(UsedAt) -> bool,
    ) -> Result<(Self, Option<Found>), Fault> {
        let Part { area, entries } = part;
        let empty = Descriptor { addr: 0, len: 0, low: 0, high: 0 };
        let mut log = Self {
            area,
            entries,
            next: (1..=entries).collect(),
            copies: vec![empty; entries.into()],
            free_head: 0,
            old_free_head: 0,
            old_used: start,
            counter: 0,
            held: VecDeque::new(),
            pending: 0,
            leaving: Vec::new(),
        };
        match log.area.load16(field::VERSION, Ordering::Relaxed) {
            0 => {
                log.initialize();
                Ok((log, None))
            }
            VERSION => {
                let found = log.recover(size, is_available)?;
                log.pending = log.held.len();
                Ok((log, Some(found)))
            }
            version => Err(Fault::InflightVersion { version }),
        }
    }

    fn initialize(&self) {
        for entry in 0..self.entries {
            let next = self.next[usize::from(entry)];
            self.area.store64(at(entry), u64::from(next) << 16, Ordering::Release);
        }
        self.area.store64(field::FEATURES, 0, Ordering::Release);
        self.area.store16(field::DESC_NUM, self.entries, Ordering::Release);
        self.store_free();
        self.store_used(self.old_used);
        self.area.store16(field::VERSION, VERSION, Ordering::Release);
    }

    fn store_free(&self) {
        let word = u32::from(self.free_head) | u32::from(self.old_free_head) << 16;
        self.area.store32(FREE_HEADS, word, Ordering::Release);
    }

    fn store_used(&self, now: UsedAt) {
        let old = self.old_used;
        let word = u64::from(now.slot)
            | u64::from(old.slot) << 16
            | u64::from(now.wrap) << 32
            | u64::from(old.wrap) << 40;
        self.area.store64(USED, word, Ordering::Release);
    }

    fn recover(
        &mut self,
        size: u16,
        is_available: impl FnOnce(UsedAt) -> bool,
    ) -> Result<Found, Fault> {
        let entries = self.entries;
        let found = self.area.load16(field::DESC_NUM, Ordering::Relaxed);
        if found != entries {
            return Err(Fault::InflightEntries { found, entries });
        }
        let heads = self.area.load32(FREE_HEADS, Ordering::Relaxed);
        let word = self.area.load64(USED, Ordering::Relaxed);
        let now = used_at("used_idx", word as u16, (word >> 32) as u8, size)?;
        let old = used_at("old_used_idx", (word >> 16) as u16, (word >> 40) as u8, size)?;
        // A batch that was being published: is it? Its first descriptor is written last.
        let published = now != old && !is_available(old);
        (self.free_head, self.old_used) =
            if published { (heads as u16, now) } else { ((heads >> 16) as u16, old) };
        self.old_free_head = self.free_head;

        let mut seen = vec![false; entries.into()];
        let (mut entry, mut free) = (self.free_head, 0);
        while entry < entries {
            if std::mem::replace(&mut seen[usize::from(entry)], true) {
                return Err(Fault::InflightLink { field: "free list", value: entry, entries });
            }
            let next = self.area.load16(at(entry) + NEXT, Ordering::Relaxed);
            self.next[usize::from(entry)] = next;
            self.area.store16(at(entry) + INFLIGHT, 0, Ordering::Release);
            (entry, free) = (next, free + 1);
        }
        let mut taken: Vec<(u64, u16)> = (0..entries)
            .filter(|&entry| !seen[usize::from(entry)])
            .filter(|&entry| self.area.load16(at(entry) + INFLIGHT, Ordering::Relaxed) & 0xff == 1)
            .map(|entry| (self.area.load64(at(entry) + COUNTER, Ordering::Relaxed), entry))
            .collect();
        taken.sort_unstable();
        self.counter = taken.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        let mut slots = 0;
        for (_, head) in taken {
            let held = self.read_held(head, &mut seen)?;
            slots += u32::from(held.num);
            if slots > size.into() {
                return Err(Fault::InflightLink { field: "num", value: held.num, entries: size });
            }
            self.held.push_back(held);
        }
        // What is neither is lost, and some day there would be no entry for a descriptor.
        if free + slots < size.into() {
            let value = free as u16;
            return Err(Fault::InflightLink { field: "free list of", value, entries });
        }
        // Only now, so that a heir that does not come this far leaves everything as it was.
        self.store_free();
        self.store_used(self.old_used);
        Ok(Found { used: self.old_used, slots })
    }

    fn read_held(&mut self, head: u16, seen: &mut [bool]) -> Result<Held, Fault> {
        let entries = self.entries;
        let num = self.area.load16(at(head) + NUM, Ordering::Relaxed);
        if num == 0 || num > entries {
            return Err(Fault::InflightLink { field: "num", value: num, entries });
        }
        let (mut entry, mut id) = (head, 0);
        for _ in 0..num {
            if entry >= entries || std::mem::replace(&mut seen[usize::from(entry)], true) {
                return Err(Fault::InflightLink { field: "next", value: entry, entries });
            }
            let offset = at(entry);
            let copy = Descriptor {
                addr: self.area.load64(offset + ADDR, Ordering::Relaxed),
                len: self.area.load32(offset + LEN, Ordering::Relaxed),
                low: self.area.load16(offset + ID, Ordering::Relaxed),
                high: self.area.load16(offset + FLAGS, Ordering::Relaxed),
            };
            let next = self.area.load16(offset + NEXT, Ordering::Relaxed);
            self.copies[usize::from(entry)] = copy;
            self.next[usize::from(entry)] = next;
            (entry, id) = (next, copy.low);
        }
        Ok(Held { head, id, num })
    }

    /// A buffer with this identifier was taken from the ring: its `num` descriptors.
    pub fn take(&mut self, id: u16, num: u16, descriptors: impl Iterator<Item = Descriptor>) {
        let head = self.free_head;
        let (mut entry, mut last) = (head, head);
        for descriptor in descriptors.take(num.into()) {
            let offset = at(entry);
            self.area.store64(offset + ADDR, descriptor.addr, Ordering::Release);
            self.area.store32(offset + LEN, descriptor.len, Ordering::Release);
            self.area.store16(offset + FLAGS, descriptor.high, Ordering::Release);
            self.area.store16(offset + ID, descriptor.low, Ordering::Release);
            self.copies[usize::from(entry)] = descriptor;
            last = entry;
            entry = self.next[usize::from(entry)];
        }
        self.area.store16(at(head) + LAST, last, Ordering::Release);
        self.area.store16(at(head) + NUM, num, Ordering::Release);
        self.area.store64(at(head) + COUNTER, self.counter, Ordering::Release);
        self.counter = self.counter.wrapping_add(1);
        self.area.store16(at(head) + INFLIGHT, 1, Ordering::Release);
        // This makes it count: until now these entries are in the free list.
        self.free_head = entry;
        self.old_free_head = entry;
        self.store_free();
        self.held.push_back(Held { head, id, num });
    }

    /// The descriptors of the oldest buffer that is to be taken again.
    pub fn pending(&self) -> Option<Vec<Descriptor>> {
        let held = self.held.get(self.held.len() - self.pending)?;
        Some(self.descriptors(held).collect())
    }

    /// It was taken again.
    pub fn retake(&mut self) {
        self.pending -= 1;
    }

    /// The newest buffer taken was put back.
    pub fn put_back(&mut self) {
        self.pending += 1;
    }

    fn descriptors(&self, held: &Held) -> impl Iterator<Item = Descriptor> {
        let follow = |entry: &u16| Some(self.next[usize::from(*entry)]);
        std::iter::successors(Some(held.head), follow)
            .take(held.num.into())
            .map(|entry| self.copies[usize::from(entry)])
    }

    /// The descriptors of all that is held, oldest first.
    pub fn held(&self) -> impl Iterator<Item = Descriptor> {
        self.held.iter().flat_map(|held| self.descriptors(held))
    }

    /// Buffers are about to be used: those that this used descriptor covers.
    pub fn using(&mut self, used: &UsedEntry, in_order: bool) {
        for _ in 0..used.buffers {
            let held = if in_order {
                self.held.pop_front()
            } else {
                let place = self.held.iter().position(|held| held.id == used.id);
                place.and_then(|place| self.held.remove(place))
            };
            let held = held.expect("what is used was taken");
            let mut last = held.head;
            for _ in 1..held.num {
                last = self.next[usize::from(last)];
            }
            self.next[usize::from(last)] = self.free_head;
            self.area.store16(at(last) + NEXT, self.free_head, Ordering::Release);
            self.free_head = held.head;
            self.leaving.push(held.head);
        }
    }

    /// All of them are known, and the next used descriptor will be at `now`: the first one may be
    /// written.
    pub fn publishing(&mut self, now: UsedAt) {
        self.store_free();
        self.store_used(now);
    }

    /// The first used descriptor is written.
    pub fn used(&mut self, now: UsedAt) {
        for head in self.leaving.drain(..) {
            self.area.store16(at(head) + INFLIGHT, 0, Ordering::Release);
        }
        self.old_free_head = self.free_head;
        self.old_used = now;
        self.store_free();
        self.store_used(now);
    }

    /// The part is free for another beginning.
    pub fn release(&mut self) {
        self.area.store16(field::VERSION, 0, Ordering::Release);
        self.held.clear();
        self.pending = 0;
    }
}

fn used_at(field: &'static str, slot: u16, wrap: u8, size: u16) -> Result<UsedAt, Fault> {
    if slot >= size || wrap > 1 {
        let value = if slot >= size { slot } else { wrap.into() };
        return Err(Fault::InflightLink { field, value, entries: size });
    }
    Ok(UsedAt { slot, wrap: wrap == 1 })
}
