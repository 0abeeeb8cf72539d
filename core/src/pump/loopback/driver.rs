//! The driver's end of the loop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::lane::DriverLane;
use super::{Copies, LoopError, LoopReport, LoopSetup, ROUNDS, is_sampled, matches, nap};
use crate::memory::{copy_from_shared, fill_shared, prefetch_write};
use crate::pump::pace::Idleness;
use crate::queue::DriverQueue;
use crate::ring::Reaped;

/// What the driver does in each round.
#[derive(Default)]
pub struct DriverEnd {
    pub sender: Option<Sender>,
    pub receiver: Option<Receiver>,
}

impl DriverEnd {
    /// Rounds until the deadline, or until the other end stops.
    pub fn work(
        &mut self,
        event: bool,
        stop: &AtomicBool,
        deadline: Instant,
    ) -> Result<(), LoopError> {
        let mut idle = Idleness::default();
        while !stop.load(Ordering::Relaxed) && Instant::now() < deadline {
            for _ in 0..ROUNDS {
                if self.turn(event)? {
                    idle.is_over();
                } else if event {
                    self.sleep()?;
                    break;
                } else {
                    idle.pause();
                }
            }
        }
        Ok(())
    }

    /// One round; whether it did anything.
    #[inline(never)]
    pub fn turn(&mut self, event: bool) -> Result<bool, LoopError> {
        let mut progress = false;
        if let Some(sender) = &mut self.sender {
            progress |= sender.round(event)?;
        }
        if let Some(receiver) = &mut self.receiver {
            progress |= receiver.round(event)?;
        }
        Ok(progress)
    }

    /// Nothing is left to do: whatever the device wants to be told of, it is told of now, and ask for
    /// notifications of whatever is used from now on, as before sleeping.
    pub fn ask(&mut self) -> Result<(), LoopError> {
        for lane in self.lanes() {
            lane.queue.kick()?;
            lane.queue.drain_call();
            lane.queue.enable_calls();
        }
        Ok(())
    }

    fn lanes(&mut self) -> impl Iterator<Item = &mut DriverLane> {
        let sender = self.sender.as_mut().map(|sender| &mut sender.lane);
        sender.into_iter().chain(self.receiver.as_mut().map(|receiver| &mut receiver.lane))
    }

    /// Ask for notifications, and wait for one if there is still nothing to do.
    fn sleep(&mut self) -> Result<(), LoopError> {
        for lane in self.lanes() {
            lane.queue.kick()?;
        }
        let waiting = self.lanes().any(|lane| lane.queue.enable_calls());
        if !waiting {
            let calls: Vec<_> =
                self.lanes().map(|lane| std::sync::Arc::clone(&lane.call)).collect();
            nap(calls.iter().map(AsRef::as_ref));
        }
        for lane in self.lanes() {
            lane.queue.drain_call();
            lane.queue.disable_calls();
        }
        Ok(())
    }

    pub fn count(&self, report: &mut LoopReport) {
        if let Some(sender) = &self.sender {
            report.buffers += sender.done;
            report.kicks_sent += sender.lane.queue.stats().kicks_sent;
        }
        if let Some(receiver) = &self.receiver {
            report.buffers += receiver.done;
            report.verified += receiver.verified;
            report.kicks_sent += receiver.lane.queue.stats().kicks_sent;
        }
    }
}

/// Buffers in the order in which they go round.
struct Cycle {
    batch: usize,
    chain: usize,
    slots: usize,
    /// Number of the next buffer to be added.
    number: u64,
    /// Its place among the buffers of the lane.
    next: usize,
}

impl Cycle {
    fn new(setup: &LoopSetup) -> Self {
        let (batch, chain, slots) = (setup.batch, setup.chain, setup.slots());
        Self { batch, chain, slots, number: 0, next: 0 }
    }

    /// Add `count` buffers, cookies the numbers of the buffers; there is room for them.
    fn add(&mut self, lane: &mut DriverLane, count: usize, write: bool) -> Result<(), LoopError> {
        let buffers = lane.hosts.len();
        let end = self.next + count;
        if self.chain == 1 && end <= buffers {
            lane.queue.add_each(&lane.pieces[self.next..end], write, self.number)?;
            self.number += count as u64;
            self.next = if end == buffers { 0 } else { end };
            return Ok(());
        }
        let mut left = count;
        while left > 0 {
            let now = left.min(buffers - self.next);
            let pieces = &lane.pieces[self.next * self.chain..(self.next + now) * self.chain];
            if self.chain == 1 {
                lane.queue.add_each(pieces, write, self.number)?;
            } else {
                for (at, pieces) in pieces.chunks_exact(self.chain).enumerate() {
                    let (readable, writable) =
                        if write { (&[][..], pieces) } else { (pieces, &[][..]) };
                    lane.queue.add(readable, writable, self.number + at as u64)?;
                }
            }
            self.number += now as u64;
            self.next = if self.next + now == buffers { 0 } else { self.next + now };
            left -= now;
        }
        Ok(())
    }
}

fn hand_over(queue: &mut DriverQueue, event: bool) -> Result<(), LoopError> {
    if event {
        // Not settled: there is more to do, and before this end waits it asks again.
        queue.kick_soon()?;
    } else {
        queue.publish();
    }
    Ok(())
}

/// How many buffers ahead the memory of one is asked for: the device has read it last.
const AHEAD: usize = 8;

/// Fills buffers and makes them available.
pub struct Sender {
    lane: DriverLane,
    cycle: Cycle,
    length: usize,
    reaped: Vec<Reaped>,
    done: u64,
}

impl Sender {
    pub fn new(lane: DriverLane, setup: &LoopSetup) -> Self {
        let length = setup.length as usize;
        Self { lane, cycle: Cycle::new(setup), length, reaped: Vec::new(), done: 0 }
    }

    fn round(&mut self, event: bool) -> Result<bool, LoopError> {
        let wanted = self.cycle.batch;
        if self.lane.free() < wanted * self.cycle.slots {
            self.reaped.clear();
            self.lane.queue.reap(usize::MAX, &mut self.reaped)?;
            self.done += self.reaped.len() as u64;
            if self.lane.free() < wanted * self.cycle.slots {
                return Ok(false);
            }
        }
        let (mut at, mut number) = (self.cycle.next, self.cycle.number);
        let buffers = self.lane.hosts.len();
        for _ in 0..wanted {
            let ahead = if at + AHEAD < buffers { at + AHEAD } else { 0 };
            prefetch_write(self.lane.hosts[ahead]);
            // SAFETY: a whole buffer of the lane, mapped as long as its queue.
            unsafe { fill_shared(self.lane.hosts[at], self.length, number) };
            number += 1;
            at = if at + 1 == buffers { 0 } else { at + 1 };
        }
        self.cycle.add(&mut self.lane, wanted, false)?;
        hand_over(&mut self.lane.queue, event)?;
        Ok(true)
    }
}

/// Keeps buffers available and copies out what the device wrote.
pub struct Receiver {
    lane: DriverLane,
    cycle: Cycle,
    copies: Copies,
    reaped: Vec<Reaped>,
    done: u64,
    verified: u64,
}

impl Receiver {
    pub fn new(lane: DriverLane, setup: &LoopSetup) -> Self {
        let copies = Copies::new(setup.length);
        Self { lane, cycle: Cycle::new(setup), copies, reaped: Vec::new(), done: 0, verified: 0 }
    }

    fn round(&mut self, event: bool) -> Result<bool, LoopError> {
        self.reaped.clear();
        let got = self.lane.queue.reap(self.cycle.batch, &mut self.reaped)?;
        let buffers = self.lane.hosts.len();
        let mut at = (self.done % buffers as u64) as usize;
        for (place, reaped) in self.reaped.iter().enumerate() {
            let copy = self.copies.slot(place);
            if reaped.cookie != self.done + place as u64 || reaped.written as usize != copy.len() {
                return Err(self.mismatch(place));
            }
            // SAFETY: as in `Sender::round`.
            unsafe { copy_from_shared(self.lane.hosts[at], copy) };
            at = if at + 1 == buffers { 0 } else { at + 1 };
        }
        if got > 0 {
            if is_sampled(self.done, got) {
                if !matches(self.copies.slot(got - 1), self.done + got as u64 - 1) {
                    return Err(self.mismatch(got - 1));
                }
                self.verified += 1;
            }
            self.done += got as u64;
        }
        let free = self.lane.free() / self.cycle.slots;
        let room = free >= self.cycle.batch;
        if room {
            self.cycle.add(&mut self.lane, free - free % self.cycle.batch, true)?;
            hand_over(&mut self.lane.queue, event)?;
        }
        Ok(got > 0 || room)
    }

    fn mismatch(&self, place: usize) -> LoopError {
        LoopError::Mismatch { buffer: self.done + place as u64, receiver: "driver" }
    }
}
