//! What the device half has taken and not yet used.

use crate::error::QueueError;

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
