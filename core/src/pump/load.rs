//! A driver half that keeps any device busy: buffers of one shape, as many in flight as told, for a
//! while. What the device does with them is its own affair.
//!
//! Every buffer's device-readable part is filled with its number before it is added, its
//! device-writable part is copied out when it comes back, and of a device that echoes a sample is
//! compared.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::wait::{SPIN, Wait};
use crate::error::QueueError;
use crate::event::sleep;
use crate::memory::{Access, Mapping, Memory, copy_from_shared, fill_shared};
use crate::queue::DriverQueue;
use crate::ring::{Piece, Reaped};

/// How long to sleep before the clock is looked at again.
const NAP_MS: i32 = 20;
/// How long a device may take for what it holds when the time is over.
const DRAIN: Duration = Duration::from_secs(5);
/// Looks at the ring between two looks at the clock.
const LOOKS: u32 = 64;
/// Of an echo every so many replies are compared: a prime, so that every slot has its turn.
const SAMPLE: u64 = 61;
/// Parts of buffers begin on cache lines of their own.
const ALIGN: usize = 64;
/// Bytes of a buffer's part at the most.
const PART_MAX: u32 = 1 << 20;

/// What the buffers look like, and how they are kept going.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Device-readable bytes of each.
    pub readable: u32,
    /// Device-writable bytes of each.
    pub writable: u32,
    /// Buffers in flight.
    pub depth: u16,
    /// Buffers made available at a time.
    pub batch: u16,
    /// How to wait when none came back.
    pub wait: Wait,
    /// Whether each reply is to begin with the bytes of its request.
    pub echo: bool,
}

impl Shape {
    fn stride(&self) -> usize {
        self.writable_at() + (self.writable as usize).next_multiple_of(ALIGN)
    }

    fn writable_at(&self) -> usize {
        (self.readable as usize).next_multiple_of(ALIGN)
    }

    fn check(&self) -> Result<(), QueueError> {
        let wrong = if self.readable == 0 && self.writable == 0 {
            "a buffer of no bytes".into()
        } else if self.readable > PART_MAX || self.writable > PART_MAX {
            format!("a part of more than {PART_MAX} bytes")
        } else if self.depth == 0 || self.batch == 0 || self.batch > self.depth {
            format!("batches of {} with {} in flight", self.batch, self.depth)
        } else {
            return Ok(());
        };
        Err(QueueError::Invalid(format!("the load cannot be: {wrong}")))
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Done {
    /// Buffers that came back.
    pub buffers: u64,
    /// Bytes that the device wrote.
    pub bytes_written: u64,
    /// Replies that were compared, and were right.
    pub verified: u64,
    /// From the first buffer made available to the last that came back.
    pub seconds: f64,
}

/// Why a run did not end well.
#[derive(Debug)]
pub enum LoadError {
    /// The ring is broken.
    Queue(QueueError),
    /// A reply is not what was sent; which buffer, counted from the first.
    Mismatch(u64),
    /// Buffers came back that the load had not added.
    Strange(u64),
    /// So many buffers did not come back.
    Held(usize),
}

impl From<QueueError> for LoadError {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

/// A place for one buffer.
#[derive(Clone, Copy)]
struct Slot {
    /// The number of the buffer that is there.
    number: u64,
    with_device: bool,
}

/// The buffers, in memory that the device sees.
pub struct Load {
    shape: Shape,
    address: u64,
    host: *mut u8,
    /// Keeps `host` valid.
    _mapping: Arc<Mapping>,
    slots: Vec<Slot>,
    /// Places that are not with the device, the longest unused first.
    free: VecDeque<u16>,
    /// Of the next buffer.
    number: u64,
    reply: Vec<u8>,
    reaped: Vec<Reaped>,
    pieces: Vec<Piece>,
}

// SAFETY: `host` is an address in the mapping, which any thread may use.
unsafe impl Send for Load {}

impl Load {
    /// Bytes of memory that buffers of a shape take.
    pub fn bytes(shape: &Shape) -> u64 {
        shape.stride() as u64 * u64::from(shape.depth)
    }

    /// Buffers from guest address `address` on.
    pub fn new(memory: &Memory, address: u64, shape: Shape) -> Result<Self, QueueError> {
        shape.check()?;
        let (host, mapping) = memory.contiguous(address, Self::bytes(&shape), Access::Write)?;
        Ok(Self {
            shape,
            address,
            host,
            _mapping: mapping,
            slots: vec![Slot { number: 0, with_device: false }; shape.depth.into()],
            free: (0..shape.depth).collect(),
            number: 0,
            reply: vec![0; shape.writable as usize],
            reaped: Vec::with_capacity(shape.depth.into()),
            pieces: Vec::with_capacity(shape.batch.into()),
        })
    }

    /// Keep the device busy for `duration`, then wait for what it holds.
    pub fn run(&mut self, queue: &mut DriverQueue, duration: Duration) -> Result<Done, LoadError> {
        let start = Instant::now();
        let (end, mut done) = (start + duration, Done::default());
        let mut last = start;
        let mut idle = 0u32;
        loop {
            let came = self.collect(queue, &mut done)?;
            if came > 0 || idle.is_multiple_of(LOOKS) {
                let now = Instant::now();
                if came > 0 {
                    last = now;
                }
                if now >= end {
                    break;
                }
            }
            let added = self.refill(queue)?;
            if came > 0 || added {
                idle = 0;
            } else {
                idle = idle.wrapping_add(1);
                self.wait(queue, last);
            }
        }
        self.drain(queue, &mut done)?;
        done.seconds = start.elapsed().as_secs_f64();
        Ok(done)
    }

    /// Wait for what the device holds.
    fn drain(&mut self, queue: &mut DriverQueue, done: &mut Done) -> Result<(), LoadError> {
        let mut last = Instant::now();
        loop {
            let held = self.slots.len() - self.free.len();
            if held == 0 {
                return Ok(());
            }
            if self.collect(queue, done)? > 0 {
                last = Instant::now();
            } else if last.elapsed() > DRAIN {
                return Err(LoadError::Held(held));
            } else {
                self.wait(queue, last);
            }
        }
    }

    /// Take back what was used: every reply is copied out.
    fn collect(&mut self, queue: &mut DriverQueue, done: &mut Done) -> Result<usize, LoadError> {
        self.reaped.clear();
        let came = queue.reap(usize::MAX, &mut self.reaped)?;
        for at in 0..came {
            let Reaped { cookie, written } = self.reaped[at];
            let slot = match self.slots.get_mut(cookie as usize) {
                Some(slot) if slot.with_device => slot,
                _ => return Err(LoadError::Strange(cookie)),
            };
            slot.with_device = false;
            let number = slot.number;
            self.free.push_back(cookie as u16);
            let length = (written as usize).min(self.reply.len());
            // SAFETY: within the slot's device-writable part, in the mapping that we hold.
            unsafe {
                let from = self.place(cookie as usize).add(self.shape.writable_at());
                copy_from_shared(from, &mut self.reply[..length]);
            }
            if self.shape.echo && number.is_multiple_of(SAMPLE) {
                let expected = self.reply.len().min(self.shape.readable as usize);
                let word = number.to_ne_bytes();
                let right = |part: &[u8]| part == &word[..part.len()];
                if length < expected || !self.reply[..expected].chunks(word.len()).all(right) {
                    return Err(LoadError::Mismatch(number));
                }
                done.verified += 1;
            }
            done.bytes_written += u64::from(written);
        }
        done.buffers += came as u64;
        Ok(came)
    }

    fn place(&self, slot: usize) -> *mut u8 {
        // SAFETY: slots are within the mapping.
        unsafe { self.host.add(slot * self.shape.stride()) }
    }

    /// Make whole batches available while there is room; false if there was none.
    fn refill(&mut self, queue: &mut DriverQueue) -> Result<bool, LoadError> {
        let Shape { readable, writable, batch, .. } = self.shape;
        let both = readable > 0 && writable > 0;
        let slots_needed = queue.slots_needed(1 + usize::from(both)) * usize::from(batch);
        let mut any = false;
        while self.free.len() >= batch.into() && queue.free() >= slots_needed {
            if both {
                for _ in 0..batch {
                    let slot = self.next();
                    let [read, write] = self.pieces_of(slot);
                    queue.add(&[read], &[write], slot.into())?;
                }
            } else {
                self.refill_each(queue)?;
            }
            queue.kick()?;
            any = true;
        }
        Ok(any)
    }

    /// A batch of buffers of one piece, all added at once where their places follow each other.
    fn refill_each(&mut self, queue: &mut DriverQueue) -> Result<(), LoadError> {
        let part = usize::from(self.shape.readable == 0);
        let mut first = 0;
        self.pieces.clear();
        for _ in 0..self.shape.batch {
            let slot = self.next();
            if usize::from(slot) != usize::from(first) + self.pieces.len() {
                queue.add_each(&self.pieces, part == 1, first.into())?;
                self.pieces.clear();
            }
            if self.pieces.is_empty() {
                first = slot;
            }
            self.pieces.push(self.pieces_of(slot)[part]);
        }
        queue.add_each(&self.pieces, part == 1, first.into())?;
        Ok(())
    }

    /// The next buffer's place, its device-readable part written.
    fn next(&mut self) -> u16 {
        let slot = self.free.pop_front().expect("as many as a batch");
        let number = self.number;
        self.number += 1;
        self.slots[usize::from(slot)] = Slot { number, with_device: true };
        // SAFETY: the slot's device-readable part, which is not with the device.
        unsafe { fill_shared(self.place(slot.into()), self.shape.readable as usize, number) };
        slot
    }

    /// Its device-readable part, and its device-writable part.
    fn pieces_of(&self, slot: u16) -> [Piece; 2] {
        let addr = self.address + (usize::from(slot) * self.shape.stride()) as u64;
        let behind = addr + self.shape.writable_at() as u64;
        [Piece { addr, len: self.shape.readable }, Piece { addr: behind, len: self.shape.writable }]
    }

    fn wait(&self, queue: &mut DriverQueue, since: Instant) {
        let is_over = match self.shape.wait {
            Wait::Poll => false,
            Wait::Adaptive => since.elapsed() > SPIN,
            Wait::Event => true,
        };
        if !is_over {
            return std::hint::spin_loop();
        }
        queue.drain_call();
        if !queue.enable_calls()
            && let Some(call) = queue.call_event()
        {
            sleep(&[call.fd()], NAP_MS);
        }
        queue.disable_calls();
    }
}
