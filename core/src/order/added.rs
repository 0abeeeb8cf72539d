//! What the driver half has added and not yet reaped.

use std::collections::VecDeque;

/// A buffer that the driver half has added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// The caller's name for it.
    pub cookie: u64,
    /// How many buffers were added before it.
    pub serial: u64,
    /// Bytes of its device-writable part, as far as a used length can count.
    pub writable: u32,
    /// Descriptor slots it occupies; never 0.
    pub slots: u16,
    /// Identifier in the ring.
    pub id: u16,
}

impl Sent {
    /// Whether this is a free place of a table.
    fn is_free(&self) -> bool {
        self.slots == 0
    }
}

/// Buffers that leave together, added one after the other under cookies that count up, each with the
/// same slots and writable bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentRun {
    /// The cookie of the first.
    pub cookie: u64,
    /// How many.
    pub count: u16,
    /// Device-writable bytes of each.
    pub writable: u32,
    /// Descriptor slots of each.
    pub slots: u16,
}

/// What the driver half has added and not yet reaped, and which identifiers and split descriptors
/// are free. Descriptors of a split chain follow `next_slot`, which only this side ever reads.
pub trait Added {
    /// Nothing outstanding, for a ring of `size` slots.
    fn new(size: u16) -> Self;
    /// The split descriptor or packed identifier that the next buffer gets; `slot` is the packed
    /// ring's next slot.
    fn next_id(&self, slot: u16) -> u16;
    /// The split descriptor that follows `slot` in a chain.
    fn next_slot(&self, slot: u16) -> u16;
    /// A buffer was added; `after` is the split descriptor that follows its last one.
    fn push(&mut self, sent: Sent, after: u16);
    /// `first` and `count - 1` more like it were added, each in one slot, the cookies, serials and (in
    /// order) identifiers counting up; `place` is told the identifier of each. There is room for all.
    fn push_singles(&mut self, first: Sent, count: u16, place: impl FnMut(u16, u16));
    /// How many buffers, oldest first, a used entry with this identifier covers, and the
    /// device-writable bytes of the last of them; None if it is not outstanding among the first
    /// `published` added.
    fn covered(&self, id: u32, published: u64) -> Option<(u16, u32)>;
    /// How many buffers behind the oldest `skip` a used entry with this identifier covers, and their
    /// slots; None if it is not outstanding.
    fn covered_slots(&self, id: u32, skip: usize) -> Option<(usize, u32)>;
    /// Remove the buffer that leaves next under this identifier, and up to `most` in all of those like
    /// it that leave with it, and free their places: in a split ring the descriptors, in a packed one
    /// the identifiers.
    fn pop(&mut self, id: u16, most: u16, split: bool) -> SentRun;
    /// Remove buffers of the oldest run, up to `most` and only such as are among the first `published`
    /// added, as long as `is_used` finds each used by an entry of its own: it is told cookie,
    /// identifier and device-writable bytes. None in any order, where `covered` and `pop` do it.
    fn pop_singles(
        &mut self,
        published: u64,
        most: usize,
        is_used: impl FnMut(u64, u16, u32) -> bool,
    ) -> SentRun;
    /// Remove the oldest buffer, of those among the first `published` added, if this is its identifier
    /// and it has room for what was written. None in any order, where `covered` and `pop` do it.
    fn pop_oldest(&mut self, published: u64, id: u32, written: u32) -> Option<SentRun>;
    /// Remove the buffer of this identifier and tell its cookie, if it is outstanding among the first
    /// `published` added, has one slot, and room for what was written. None in order, where `pop_singles`
    /// does it.
    fn pop_single(&mut self, _id: u16, _written: u32, _published: u64) -> Option<u64> {
        None
    }
    /// Descriptor slots of each buffer of the oldest run.
    fn front_slots(&self) -> u32;
    /// Buffers outstanding.
    fn len(&self) -> usize;
    /// Nothing is outstanding.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Remove all; their cookies, oldest first.
    fn drain(&mut self) -> Vec<u64>;
    /// The next split descriptor (0 where there is no such order).
    fn cursor(&self) -> u16;
    /// Set the next split descriptor.
    fn set_cursor(&mut self, slot: u16);
}

/// Outstanding buffers that follow each other in every way.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    cookie: u64,
    writable: u32,
    count: u16,
    slots: u16,
    /// Identifier of the first; that of each other is `slots` further on, round the ring.
    id: u16,
}

impl Run {
    /// The how-manieth of the run an identifier names, in a ring of `size` slots.
    #[inline]
    fn place_of(&self, id: u32, size: u32) -> Option<u32> {
        let first = u32::from(self.id);
        let distance = if id >= first { id - first } else { id + size - first };
        let slots = u32::from(self.slots);
        let (place, rest) =
            if slots <= 1 { (distance, 0) } else { (distance / slots, distance % slots) };
        (place < self.count.into() && rest == 0).then_some(place)
    }
}

/// In order: the free descriptors are a counter, and what is outstanding is a queue of runs. A batch
/// that is added at once is one of them, however long it is.
#[derive(Debug)]
pub struct AddedRuns {
    /// The oldest run, empty if there is none, and those behind it. A driver whose cookies count up
    /// never has more than one but where they start again.
    front: Run,
    rest: VecDeque<Run>,
    /// What the next buffer must be like to extend the newest run: cookie, device-writable bytes, slots.
    like: (u64, u32, u16),
    /// Buffers of all runs, and the serial of the oldest.
    len: usize,
    oldest: u64,
    size: u16,
    cursor: u16,
}

impl AddedRuns {
    /// The identifier `slots` after `id`, round the ring.
    #[inline]
    fn after(&self, id: u16, slots: u32) -> u16 {
        let (at, size) = (u32::from(id) + slots, u32::from(self.size));
        (if at >= size { at - size } else { at }) as u16
    }

    #[inline]
    fn push_run(&mut self, run: Run, serial: u64) {
        // Identifiers follow each other anyway.
        let follows = (run.cookie, run.writable, run.slots) == self.like;
        if follows && self.len > 0 && self.rest.is_empty() {
            self.front.count += run.count;
            self.like.0 = run.cookie.wrapping_add(run.count.into());
            self.len += usize::from(run.count);
        } else {
            self.push_apart(run, serial, follows);
        }
    }

    #[inline(never)]
    fn push_apart(&mut self, run: Run, serial: u64, follows: bool) {
        self.like = (run.cookie.wrapping_add(run.count.into()), run.writable, run.slots);
        if self.len == 0 {
            self.oldest = serial;
            self.front = run;
        } else if let Some(last) = self.rest.back_mut().filter(|_| follows) {
            last.count += run.count;
        } else if follows {
            self.front.count += run.count;
        } else {
            self.rest.push_back(run);
        }
        self.len += usize::from(run.count);
    }

    /// The first `count` buffers of the oldest run are gone; `id` is that of the next one, if any.
    #[inline]
    fn shorten(&mut self, count: u16, id: u16) {
        self.len -= usize::from(count);
        self.oldest += u64::from(count);
        let run = &mut self.front;
        run.count -= count;
        run.id = id;
        run.cookie = run.cookie.wrapping_add(count.into());
        if run.count == 0 {
            self.next_run();
        }
    }

    #[inline(never)]
    fn next_run(&mut self) {
        if let Some(next) = self.rest.pop_front() {
            self.front = next;
        }
    }
}

impl Added for AddedRuns {
    fn new(size: u16) -> Self {
        let (front, rest) = (Run::default(), VecDeque::new());
        Self { front, rest, like: (0, 0, 0), len: 0, oldest: 0, size, cursor: 0 }
    }

    /// Split: the cursor. Packed: the slot itself, which is unique among outstanding buffers. Both
    /// advance alike, so the cursor serves split rings only.
    #[inline]
    fn next_id(&self, slot: u16) -> u16 {
        slot
    }

    #[inline]
    fn next_slot(&self, slot: u16) -> u16 {
        if slot + 1 == self.size { 0 } else { slot + 1 }
    }

    #[inline]
    fn push(&mut self, sent: Sent, after: u16) {
        let Sent { cookie, writable, slots, id, serial } = sent;
        self.push_run(Run { cookie, writable, count: 1, slots, id }, serial);
        self.cursor = after;
    }

    #[inline]
    fn push_singles(&mut self, first: Sent, count: u16, mut place: impl FnMut(u16, u16)) {
        let Sent { cookie, writable, id, serial, .. } = first;
        let straight = count.min(self.size - id);
        for at in 0..straight {
            place(at, id + at);
        }
        for at in straight..count {
            place(at, at - straight);
        }
        self.push_run(Run { cookie, writable, count, slots: 1, id }, serial);
        self.cursor = self.after(id, count.into());
    }

    #[inline]
    fn covered(&self, id: u32, published: u64) -> Option<(u16, u32)> {
        let size = u32::from(self.size);
        if id >= size {
            return None;
        }
        // All before the newest `len` were published, and all are within one lap.
        let visible = published.wrapping_sub(self.oldest).min(self.len as u64) as u32;
        if let Some(place) = self.front.place_of(id, size) {
            return (place < visible).then_some((place as u16 + 1, self.front.writable));
        }
        let mut before = u32::from(self.front.count);
        for run in &self.rest {
            if before >= visible {
                return None;
            }
            if let Some(place) = run.place_of(id, size) {
                let position = before + place;
                return (position < visible).then_some((position as u16 + 1, run.writable));
            }
            before += u32::from(run.count);
        }
        None
    }

    fn covered_slots(&self, id: u32, skip: usize) -> Option<(usize, u32)> {
        let size = u32::from(self.size);
        let each = |run: &Run| {
            let (first, slots) = (u32::from(run.id), u32::from(run.slots));
            (0..u32::from(run.count)).map(move |at| ((first + at * slots) % size, slots))
        };
        let mut slots = 0;
        let runs = std::iter::once(&self.front).chain(&self.rest);
        for (position, (buffer, taken)) in runs.flat_map(each).skip(skip).enumerate() {
            slots += taken;
            if buffer == id {
                return Some((position + 1, slots));
            }
        }
        None
    }

    #[inline]
    fn pop(&mut self, _id: u16, most: u16, _split: bool) -> SentRun {
        let run = self.front;
        debug_assert!(run.count > 0, "covered() was asked first");
        let count = run.count.min(most);
        self.shorten(count, self.after(run.id, u32::from(count) * u32::from(run.slots)));
        SentRun { cookie: run.cookie, count, writable: run.writable, slots: run.slots }
    }

    #[inline]
    fn pop_singles(
        &mut self,
        published: u64,
        most: usize,
        mut is_used: impl FnMut(u64, u16, u32) -> bool,
    ) -> SentRun {
        let Run { cookie, writable, slots, count, mut id } = self.front;
        let visible = published.wrapping_sub(self.oldest).min(count.into()) as usize;
        let most = visible.min(most) as u16;
        let mut count = 0;
        while count < most && is_used(cookie.wrapping_add(count.into()), id, writable) {
            count += 1;
            id = self.after(id, slots.into());
        }
        if count > 0 {
            self.shorten(count, id);
        }
        SentRun { cookie, count, writable, slots }
    }

    #[inline]
    fn pop_oldest(&mut self, published: u64, id: u32, written: u32) -> Option<SentRun> {
        let Run { cookie, writable, count, slots, id: first } = self.front;
        let visible = count > 0 && published != self.oldest;
        if !visible || u32::from(first) != id || written > writable {
            return None;
        }
        self.shorten(1, self.after(first, slots.into()));
        Some(SentRun { cookie, count: 1, writable, slots })
    }

    #[inline]
    fn front_slots(&self) -> u32 {
        self.front.slots.into()
    }

    fn len(&self) -> usize {
        self.len
    }

    fn drain(&mut self) -> Vec<u64> {
        self.cursor = 0;
        self.len = 0;
        let cookies =
            |run: Run| (0..u64::from(run.count)).map(move |at| run.cookie.wrapping_add(at));
        let front = std::mem::take(&mut self.front);
        std::iter::once(front).chain(self.rest.drain(..)).flat_map(cookies).collect()
    }

    fn cursor(&self) -> u16 {
        self.cursor
    }

    fn set_cursor(&mut self, slot: u16) {
        self.cursor = slot;
    }
}

/// Any order: a free list threaded through a private array, and a table by identifier.
///
/// What became free last is used again last: where buffers are added in turn and a device happens to
/// use them in turn, each finds its old place, and what is written there is there already.
#[derive(Debug)]
pub struct AddedTable {
    table: Box<[Sent]>,
    next: Box<[u16]>,
    /// First and last of the free list; the first is `NONE` where there is none.
    free: u16,
    last: u16,
    count: usize,
}

/// No identifier: a queue has 32768 at most.
const NONE: u16 = u16::MAX;

impl AddedTable {
    /// A chain of places is free again.
    #[inline]
    fn give_back(&mut self, first: u16, last: u16) {
        if self.free == NONE {
            self.free = first;
        } else {
            self.next[usize::from(self.last)] = first;
        }
        self.next[usize::from(last)] = NONE;
        self.last = last;
        self.count -= 1;
    }
}

impl Added for AddedTable {
    fn new(size: u16) -> Self {
        Self {
            table: vec![Sent::default(); size.into()].into_boxed_slice(),
            next: (1..=size).map(|slot| if slot < size { slot } else { NONE }).collect(),
            free: 0,
            last: size - 1,
            count: 0,
        }
    }

    #[inline]
    fn next_id(&self, _slot: u16) -> u16 {
        self.free
    }

    #[inline]
    fn next_slot(&self, slot: u16) -> u16 {
        self.next[usize::from(slot)]
    }

    #[inline]
    fn push(&mut self, sent: Sent, after: u16) {
        self.table[usize::from(sent.id)] = sent;
        self.free = after;
        self.count += 1;
    }

    #[inline]
    fn push_singles(&mut self, first: Sent, count: u16, mut place: impl FnMut(u16, u16)) {
        let mut sent = first;
        for at in 0..count {
            sent.id = self.free;
            place(at, sent.id);
            self.free = self.next[usize::from(sent.id)];
            self.table[usize::from(sent.id)] = sent;
            sent.cookie = sent.cookie.wrapping_add(1);
            sent.serial += 1;
        }
        self.count += usize::from(count);
    }

    #[inline]
    fn covered(&self, id: u32, published: u64) -> Option<(u16, u32)> {
        match self.table.get(id as usize) {
            Some(sent) if !sent.is_free() && sent.serial < published => Some((1, sent.writable)),
            _ => None,
        }
    }

    fn covered_slots(&self, id: u32, _skip: usize) -> Option<(usize, u32)> {
        let sent = self.table.get(id as usize).filter(|sent| !sent.is_free())?;
        Some((1, sent.slots.into()))
    }

    /// The buffer's links are still a chain of its places, which goes behind the free list.
    #[inline]
    fn pop(&mut self, id: u16, _most: u16, split: bool) -> SentRun {
        let Sent { cookie, writable, slots, .. } = self.table[usize::from(id)];
        // Which makes it a free place of the table.
        self.table[usize::from(id)].slots = 0;
        debug_assert!(slots > 0, "covered() was asked first");
        let mut last = id;
        if split {
            for _ in 1..slots {
                last = self.next[usize::from(last)];
            }
        }
        self.give_back(id, last);
        SentRun { cookie, count: 1, writable, slots }
    }

    #[inline]
    fn pop_singles(
        &mut self,
        _published: u64,
        _most: usize,
        _is_used: impl FnMut(u64, u16, u32) -> bool,
    ) -> SentRun {
        SentRun { cookie: 0, count: 0, writable: 0, slots: 0 }
    }

    #[inline]
    fn pop_oldest(&mut self, _published: u64, _id: u32, _written: u32) -> Option<SentRun> {
        None
    }

    #[inline]
    fn pop_single(&mut self, id: u16, written: u32, published: u64) -> Option<u64> {
        let sent = self.table.get_mut(usize::from(id))?;
        if sent.slots != 1 || sent.serial >= published || written > sent.writable {
            return None;
        }
        sent.slots = 0;
        let cookie = sent.cookie;
        self.give_back(id, id);
        Some(cookie)
    }

    #[inline]
    fn front_slots(&self) -> u32 {
        0
    }

    fn len(&self) -> usize {
        self.count
    }

    fn drain(&mut self) -> Vec<u64> {
        let mut all: Vec<Sent> =
            self.table.iter().copied().filter(|sent| !sent.is_free()).collect();
        all.sort_by_key(|sent| sent.serial);
        *self = Self::new(self.table.len() as u16);
        all.into_iter().map(|sent| sent.cookie).collect()
    }

    fn cursor(&self) -> u16 {
        0
    }

    fn set_cursor(&mut self, _slot: u16) {}
}
