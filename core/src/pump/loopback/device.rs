//! The device's end of the loop.

use std::sync::atomic::{AtomicBool, Ordering};

use super::lane::DeviceLane;
use super::{Copies, LoopError, LoopReport, LoopSetup, is_sampled, matches, nap};
use crate::memory::{copy_from_shared, fill_shared, prefetch_write};
use crate::pump::pace::{Idleness, Pace};
use crate::queue::DeviceQueue;
use crate::ring::{Batch, Burst};

/// What the device does in each round.
#[derive(Default)]
pub struct DeviceEnd {
    pub receiver: Option<Receiver>,
    pub sender: Option<Sender>,
}

impl DeviceEnd {
    /// Rounds until the driver stops.
    pub fn work(&mut self, event: bool, stop: &AtomicBool) -> Result<(), LoopError> {
        let mut idle = Idleness::default();
        while !stop.load(Ordering::Relaxed) {
            if self.turn(event)? {
                idle.is_over();
            } else if event {
                self.sleep()?;
            } else {
                idle.pause();
            }
        }
        Ok(())
    }

    /// One round; whether it did anything.
    #[inline(never)]
    pub fn turn(&mut self, event: bool) -> Result<bool, LoopError> {
        let mut progress = false;
        if let Some(receiver) = &mut self.receiver {
            progress |= receiver.round(event)?;
        }
        if let Some(sender) = &mut self.sender {
            progress |= sender.round(event)?;
        }
        Ok(progress)
    }

    /// Nothing is left to do: whatever the driver wants to be told of, it is told of now, and ask for
    /// notifications of whatever is available from now on, as before sleeping.
    pub fn ask(&mut self) -> Result<(), LoopError> {
        for queue in self.queues() {
            queue.call()?;
            queue.drain_kick();
            queue.enable_kicks();
        }
        Ok(())
    }

    fn queues(&mut self) -> impl Iterator<Item = &mut DeviceQueue> {
        let receiver = self.receiver.as_mut().map(|receiver| &mut receiver.lane.queue);
        receiver.into_iter().chain(self.sender.as_mut().map(|sender| &mut sender.lane.queue))
    }

    /// Ask for notifications, and wait for one if there is still nothing to do.
    fn sleep(&mut self) -> Result<(), LoopError> {
        for queue in self.queues() {
            queue.call()?;
        }
        let waiting = self.queues().any(DeviceQueue::enable_kicks);
        if !waiting {
            let kicks: Vec<_> = self.queues().filter_map(|queue| queue.kick().cloned()).collect();
            nap(kicks.iter().map(AsRef::as_ref));
        }
        for queue in self.queues() {
            queue.drain_kick();
            queue.disable_kicks();
        }
        Ok(())
    }

    pub fn count(&self, report: &mut LoopReport) {
        let receiver = self.receiver.as_ref().map(|receiver| &receiver.lane.queue);
        let sender = self.sender.as_ref().map(|sender| &sender.lane.queue);
        for queue in receiver.into_iter().chain(sender) {
            let stats = queue.stats();
            report.batches += stats.batches;
            report.calls_sent += stats.calls_sent;
            report.used_entries += stats.used_entries;
        }
        report.verified += self.receiver.as_ref().map_or(0, |receiver| receiver.verified);
    }
}

fn hand_back(queue: &mut DeviceQueue, event: bool) -> Result<(), LoopError> {
    queue.flush()?;
    if event {
        // As when the driver hands over.
        queue.call_soon()?;
    }
    Ok(())
}

/// Takes buffers and copies them out.
pub struct Receiver {
    lane: DeviceLane,
    burst: Burst,
    batch: Batch,
    most: usize,
    pace: Pace,
    copies: Copies,
    done: u64,
    verified: u64,
}

impl Receiver {
    pub fn new(lane: DeviceLane, setup: &LoopSetup) -> Self {
        let copies = Copies::new(setup.length);
        let (burst, batch, pace) = (Burst::new(), Batch::new(), Pace::new(setup.buffers()));
        Self { lane, burst, batch, most: setup.batch, pace, copies, done: 0, verified: 0 }
    }

    fn round(&mut self, event: bool) -> Result<bool, LoopError> {
        if !event && !self.pace.is_rested() {
            return Ok(false);
        }
        let plain = self.lane.queue.gather(self.most, false, &mut self.burst)?;
        if plain > 0 {
            for (place, segment) in self.burst.segments().iter().enumerate() {
                let copy = self.copies.slot(place);
                if segment.len as usize != copy.len() {
                    return Err(self.mismatch(place));
                }
                // SAFETY: the segment is mapped while the burst holds it.
                unsafe { copy_from_shared(segment.ptr, copy) };
            }
            self.lane.queue.retire(&self.burst, plain, false)?;
            self.check_last(plain)?;
            self.pace.found(plain);
            if event {
                self.lane.queue.call_soon()?;
            }
            return Ok(true);
        }
        if self.burst.is_blocked() {
            return self.round_of_any(event);
        }
        self.pace.found(0);
        Ok(false)
    }

    /// Buffers of any form.
    fn round_of_any(&mut self, event: bool) -> Result<bool, LoopError> {
        self.batch.clear();
        let taken = self.lane.queue.take(self.most, &mut self.batch)?;
        self.pace.found(taken);
        if taken == 0 {
            return Ok(false);
        }
        for (place, buffer) in self.batch.buffers.iter().enumerate() {
            let copy = self.copies.slot(place);
            if self.batch.read_at(buffer, 0, copy) != copy.len() {
                return Err(self.mismatch(place));
            }
        }
        self.lane.queue.complete_all(&self.batch)?;
        hand_back(&mut self.lane.queue, event)?;
        self.check_last(taken)?;
        Ok(true)
    }

    /// Compare the last one of a burst, if it is its turn.
    fn check_last(&mut self, count: usize) -> Result<(), LoopError> {
        if is_sampled(self.done, count) {
            if !matches(self.copies.slot(count - 1), self.done + count as u64 - 1) {
                return Err(self.mismatch(count - 1));
            }
            self.verified += 1;
        }
        self.done += count as u64;
        Ok(())
    }

    fn mismatch(&self, place: usize) -> LoopError {
        LoopError::Mismatch { buffer: self.done + place as u64, receiver: "device" }
    }
}

/// Takes buffers and fills them.
pub struct Sender {
    lane: DeviceLane,
    burst: Burst,
    batch: Batch,
    most: usize,
    pace: Pace,
    payload: Box<[u8]>,
    number: u64,
}

impl Sender {
    pub fn new(lane: DeviceLane, setup: &LoopSetup) -> Self {
        let payload = vec![0; setup.length as usize].into_boxed_slice();
        let (burst, batch, pace) = (Burst::new(), Batch::new(), Pace::new(setup.buffers()));
        Self { lane, burst, batch, most: setup.batch, pace, payload, number: 0 }
    }

    fn round(&mut self, event: bool) -> Result<bool, LoopError> {
        if !event && !self.pace.is_rested() {
            return Ok(false);
        }
        let plain = self.lane.queue.gather(self.most, true, &mut self.burst)?;
        if plain > 0 {
            // The driver has read these lines last.
            self.burst.segments().iter().for_each(|segment| prefetch_write(segment.ptr));
            for place in 0..plain {
                let segment = self.burst.segments()[place];
                // SAFETY: the segment is mapped while the burst holds it.
                unsafe { fill_shared(segment.ptr, segment.len as usize, self.number) };
                self.burst.set_written(place, segment.len);
                self.number += 1;
            }
            self.lane.queue.retire(&self.burst, plain, true)?;
            self.pace.found(plain);
            if event {
                self.lane.queue.call_soon()?;
            }
            return Ok(true);
        }
        if self.burst.is_blocked() {
            return self.round_of_any(event);
        }
        self.pace.found(0);
        Ok(false)
    }

    /// Buffers of any form.
    fn round_of_any(&mut self, event: bool) -> Result<bool, LoopError> {
        self.batch.clear();
        let taken = self.lane.queue.take(self.most, &mut self.batch)?;
        self.pace.found(taken);
        for index in 0..taken {
            let word = self.number.to_ne_bytes();
            for part in self.payload.chunks_mut(8) {
                part.copy_from_slice(&word[..part.len()]);
            }
            let written = self.batch.write_at(&self.batch.buffers[index], 0, &self.payload);
            self.lane.queue.complete(&self.batch, index, written as u32)?;
            self.number += 1;
        }
        if taken > 0 {
            hand_back(&mut self.lane.queue, event)?;
        }
        Ok(taken > 0)
    }
}
