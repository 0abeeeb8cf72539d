//! Order as a type: what is outstanding, and what leaves next.
//!
//! With IN_ORDER (6, bit 35) buffers leave as they came, so what is outstanding is a queue, a
//! buffer's place in it is arithmetic, and one used entry covers a whole run. Without it, what is
//! outstanding is a table. The rings take the order as a type parameter and never test for it.

use std::collections::VecDeque;

use crate::error::QueueError;

/// Buffers are used in the order in which they were made available.
#[derive(Debug)]
pub enum InOrder {}

/// Buffers are used in any order.
#[derive(Debug)]
pub enum AnyOrder {}

/// The two orders, with the bookkeeping that each needs.
pub trait Order {
    /// Whether buffers leave as they came, so that one used entry may cover several.
    const IN_ORDER: bool;
    /// What the device half has taken and not yet used.
    type Taken: Taken;
    /// What the driver half has added and not yet reaped.
    type Added: Added;
}

impl Order for InOrder {
    const IN_ORDER: bool = true;
    type Taken = TakenQueue;
    type Added = AddedRuns;
}

impl Order for AnyOrder {
    const IN_ORDER: bool = false;
    type Taken = TakenTable;
    type Added = AddedTable;
}

/// Names a buffer that the device half has taken. Stale once the buffer was used or put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    index: u32,
    serial: u32,
}

/// One used entry to be written, and what it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedEntry {
    /// Identifier of the last buffer that it covers.
    pub id: u16,
    /// Bytes written to that last buffer.
    pub written: u32,
    /// Buffers covered.
    pub buffers: u16,
    /// Descriptor slots covered.
    pub slots: u32,
}

/// What the device half has taken and not yet used.
pub trait Taken {
    /// Nothing outstanding, for a ring of `size` slots.
    fn new(size: u16) -> Self;
    /// Whether a buffer of this identifier may be taken now.
    fn admits(&self, id: u16) -> bool;
    /// A burst begins: none of its buffers were seen yet.
    fn begin_burst(&mut self);
    /// Whether a buffer of this identifier may be part of the burst; it was none of it before.
    fn admits_to_burst(&mut self, id: u16) -> bool;
    /// A buffer was taken.
    fn push(&mut self, id: u16, slots: u16, writable: u64) -> Token;
    /// The newest taken buffer goes back; returns its slots.
    fn undo(&mut self, token: Token) -> Result<u16, QueueError>;
    /// A buffer is done; it leaves when the order lets it.
    fn complete(&mut self, token: Token, written: u32) -> Result<(), QueueError>;
    /// Whether a buffer is taken and neither done nor put back.
    fn is_taken(&self, token: Token) -> bool;
    /// The next used entry to write; `merge` lets it cover more than one buffer.
    fn next_used(&mut self, merge: bool) -> Option<UsedEntry>;
    /// (identifier, slots) of a buffer that is taken.
    fn describe(&self, token: Token) -> (u16, u16);
    /// Buffers taken whose used entry was not handed out yet.
    fn len(&self) -> usize;
    /// Nothing is outstanding.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Forget what is outstanding; returns the (buffers, slots) by which the available position can
    /// be rewound so that they are taken again.
    fn abandon(&mut self) -> (u16, u32);
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Free,
    Taken,
    Done,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    serial: u32,
    id: u16,
    slots: u16,
    writable: u64,
    written: u32,
    state: State,
}

fn check_written(entry: &Entry, written: u32) -> Result<(), QueueError> {
    if u64::from(written) > entry.writable {
        return Err(QueueError::Invalid(format!(
            "buffer {} cannot have {written} bytes written, its device-writable part has {}",
            entry.id, entry.writable
        )));
    }
    Ok(())
}

/// In order: a circular queue, oldest first.
#[derive(Debug)]
pub struct TakenQueue {
    entries: Box<[Entry]>,
    mask: u32,
    head: u32,
    tail: u32,
    serial: u32,
}

impl TakenQueue {
    #[inline]
    fn find(&mut self, token: Token) -> Result<&mut Entry, QueueError> {
        match self.entries.get_mut(token.index as usize) {
            Some(entry) if entry.serial == token.serial && entry.state == State::Taken => Ok(entry),
            _ => Err(QueueError::Stale),
        }
    }
}

impl Taken for TakenQueue {
    fn new(size: u16) -> Self {
        let capacity = usize::from(size).next_power_of_two();
        Self {
            entries: vec![Entry::default(); capacity].into_boxed_slice(),
            mask: capacity as u32 - 1,
            head: 0,
            tail: 0,
            serial: 0,
        }
    }

    #[inline]
    fn admits(&self, _id: u16) -> bool {
        self.tail.wrapping_sub(self.head) <= self.mask
    }

    #[inline]
    fn begin_burst(&mut self) {}

    /// In order, an identifier is not what tells buffers apart.
    #[inline]
    fn admits_to_burst(&mut self, _id: u16) -> bool {
        true
    }

    #[inline]
    fn push(&mut self, id: u16, slots: u16, writable: u64) -> Token {
        let index = self.tail & self.mask;
        self.tail = self.tail.wrapping_add(1);
        self.serial = self.serial.wrapping_add(1);
        let serial = self.serial;
        self.entries[index as usize] =
            Entry { serial, id, slots, writable, written: 0, state: State::Taken };
        Token { index, serial }
    }

    fn undo(&mut self, token: Token) -> Result<u16, QueueError> {
        let newest = self.tail.wrapping_sub(1) & self.mask;
        if self.head == self.tail || token.index != newest {
            return Err(QueueError::Stale);
        }
        let entry = self.find(token)?;
        entry.state = State::Free;
        let slots = entry.slots;
        self.tail = self.tail.wrapping_sub(1);
        Ok(slots)
    }

    fn is_taken(&self, token: Token) -> bool {
        let entry = self.entries.get(token.index as usize);
        entry.is_some_and(|entry| entry.serial == token.serial && entry.state == State::Taken)
    }

    #[inline]
    fn complete(&mut self, token: Token, written: u32) -> Result<(), QueueError> {
        let entry = self.find(token)?;
        check_written(entry, written)?;
        entry.written = written;
        entry.state = State::Done;
        Ok(())
    }

    /// A run of finished buffers, of which only the last may have been written short of its full
    /// device-writable part: skipped buffers count as completely written (2.7.9, 2.8.8).
    #[inline]
    fn next_used(&mut self, merge: bool) -> Option<UsedEntry> {
        let mut run: Option<UsedEntry> = None;
        while self.head != self.tail {
            let entry = &mut self.entries[(self.head & self.mask) as usize];
            if entry.state != State::Done {
                break;
            }
            entry.state = State::Free;
            self.head = self.head.wrapping_add(1);
            let (buffers, slots) = run.map_or((0, 0), |used| (used.buffers, used.slots));
            run = Some(UsedEntry {
                id: entry.id,
                written: entry.written,
                buffers: buffers + 1,
                slots: slots + u32::from(entry.slots),
            });
            if !merge || u64::from(entry.written) != entry.writable {
                break;
            }
        }
        run
    }

    fn describe(&self, token: Token) -> (u16, u16) {
        let entry = &self.entries[token.index as usize];
        (entry.id, entry.slots)
    }

    fn len(&self) -> usize {
        self.tail.wrapping_sub(self.head) as usize
    }

    fn abandon(&mut self) -> (u16, u32) {
        let mut slots = 0;
        let buffers = self.len() as u16;
        while self.head != self.tail {
            let entry = &mut self.entries[(self.head & self.mask) as usize];
            entry.state = State::Free;
            slots += u32::from(entry.slots);
            self.head = self.head.wrapping_add(1);
        }
        (buffers, slots)
    }
}

/// Any order: a table by identifier, and what is done in the order of completion.
#[derive(Debug)]
pub struct TakenTable {
    /// Grows to the largest identifier seen; a split ring's are below its size.
    entries: Vec<Entry>,
    done: Vec<UsedEntry>,
    /// Those of `done` that were handed out.
    gone: usize,
    taken: usize,
    /// Serial of the newest buffer taken.
    serial: u32,
    /// The burst in which an identifier was seen last.
    bursts: Vec<u32>,
    burst: u32,
}

impl TakenTable {
    #[inline]
    fn find(&mut self, token: Token) -> Result<&mut Entry, QueueError> {
        match self.entries.get_mut(token.index as usize) {
            Some(entry) if entry.serial == token.serial && entry.state == State::Taken => Ok(entry),
            _ => Err(QueueError::Stale),
        }
    }
}

impl Taken for TakenTable {
    fn new(size: u16) -> Self {
        Self {
            entries: vec![Entry::default(); size.into()],
            done: Vec::with_capacity(size.into()),
            gone: 0,
            taken: 0,
            serial: 0,
            bursts: vec![0; size.into()],
            burst: 0,
        }
    }

    #[inline]
    fn admits(&self, id: u16) -> bool {
        self.entries.get(usize::from(id)).is_none_or(|entry| entry.state != State::Taken)
    }

    #[inline]
    fn begin_burst(&mut self) {
        self.burst = self.burst.wrapping_add(1);
        if self.burst == 0 {
            self.bursts.fill(0);
            self.burst = 1;
        }
    }

    /// Bursts are looked at while nothing is taken.
    #[inline]
    fn admits_to_burst(&mut self, id: u16) -> bool {
        let index = usize::from(id);
        if index >= self.bursts.len() {
            self.bursts.resize(index + 1, 0);
        }
        std::mem::replace(&mut self.bursts[index], self.burst) != self.burst
    }

    #[inline]
    fn push(&mut self, id: u16, slots: u16, writable: u64) -> Token {
        let index = usize::from(id);
        if index >= self.entries.len() {
            self.entries.resize(index + 1, Entry::default());
        }
        self.serial = self.serial.wrapping_add(1);
        self.taken += 1;
        let serial = self.serial;
        self.entries[index] =
            Entry { serial, id, slots, writable, written: 0, state: State::Taken };
        Token { index: id.into(), serial }
    }

    fn undo(&mut self, token: Token) -> Result<u16, QueueError> {
        if token.serial != self.serial {
            return Err(QueueError::Stale);
        }
        let entry = self.find(token)?;
        entry.state = State::Free;
        let slots = entry.slots;
        self.taken -= 1;
        self.serial = self.serial.wrapping_sub(1);
        Ok(slots)
    }

    fn is_taken(&self, token: Token) -> bool {
        let entry = self.entries.get(token.index as usize);
        entry.is_some_and(|entry| entry.serial == token.serial && entry.state == State::Taken)
    }

    #[inline]
    fn complete(&mut self, token: Token, written: u32) -> Result<(), QueueError> {
        let entry = self.find(token)?;
        check_written(entry, written)?;
        entry.state = State::Free;
        let used = UsedEntry { id: entry.id, written, buffers: 1, slots: entry.slots.into() };
        self.taken -= 1;
        self.done.push(used);
        Ok(())
    }

    #[inline]
    fn next_used(&mut self, _merge: bool) -> Option<UsedEntry> {
        let used = self.done.get(self.gone).copied();
        self.gone += 1;
        if used.is_none() {
            self.done.clear();
            self.gone = 0;
        }
        used
    }

    fn describe(&self, token: Token) -> (u16, u16) {
        let entry = &self.entries[token.index as usize];
        (entry.id, entry.slots)
    }

    fn len(&self) -> usize {
        self.taken + self.done.len() - self.gone
    }

    /// If an unfinished buffer was overtaken by a finished one, rewinding would take that one twice.
    fn abandon(&mut self) -> (u16, u32) {
        let serial = self.serial;
        let age = |entry: &Entry| serial.wrapping_sub(entry.serial);
        let (mut buffers, mut slots, mut oldest) = (0, 0, 0);
        for entry in self.entries.iter_mut().filter(|entry| entry.state == State::Taken) {
            entry.state = State::Free;
            oldest = oldest.max(age(entry) + 1);
            buffers += 1;
            slots += u32::from(entry.slots);
        }
        self.taken = 0;
        if oldest == u32::from(buffers) { (buffers, slots) } else { (0, 0) }
    }
}

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
