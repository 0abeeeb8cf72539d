//! The device half of a virtqueue.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::Setup;
use crate::error::{Fault, QueueError};
use crate::event::Event;
use crate::inflight::Region;
use crate::memory::Memory;
use crate::order::{AnyOrder, InOrder};
use crate::ring::packed::PackedDevice;
use crate::ring::split::SplitDevice;
use crate::ring::{Batch, Burst, DeviceHalf, Position};

/// What a device half has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceStats {
    /// Buffers used.
    pub buffers: u64,
    /// Takes that found buffers.
    pub batches: u64,
    /// Device-readable bytes of taken buffers.
    pub bytes_read: u64,
    /// Bytes written to used buffers.
    pub bytes_written: u64,
    /// Available buffer notifications that came.
    pub kicks_received: u64,
    /// Used buffer notifications sent.
    pub calls_sent: u64,
    /// Publications after which the driver wanted no notification.
    pub calls_saved: u64,
    /// Used elements or descriptors written.
    pub used_entries: u64,
}

// With a tag of its own, which is told apart by one load.
#[repr(u8)]
enum DeviceRing {
    SplitAny(SplitDevice<AnyOrder>),
    SplitInOrder(SplitDevice<InOrder>),
    PackedAny(PackedDevice<AnyOrder>),
    PackedInOrder(PackedDevice<InOrder>),
}

macro_rules! device_ring {
    ($queue:expr, $ring:ident => $body:expr) => {
        match $queue {
            DeviceRing::SplitAny($ring) => $body,
            DeviceRing::SplitInOrder($ring) => $body,
            DeviceRing::PackedAny($ring) => $body,
            DeviceRing::PackedInOrder($ring) => $body,
        }
    };
}

/// The device half of a virtqueue. On lines of its own: the other half may be its neighbour.
#[repr(align(128))]
pub struct DeviceQueue {
    ring: DeviceRing,
    setup: Setup,
    memory: Arc<Memory>,
    kick: Option<Arc<Event>>,
    call: Option<Event>,
    err: Option<Event>,
    stats: DeviceStats,
    error_signalled: bool,
    /// Whether something was published since the last decision on a notification.
    call_due: bool,
    stopped: bool,
}

impl DeviceQueue {
    /// A device half on areas that the driver has set up.
    pub fn new(memory: Arc<Memory>, setup: Setup) -> Result<Self, QueueError> {
        setup.check()?;
        let (size, features, position) = (setup.size, setup.features, setup.position);
        let held = Arc::clone(&memory);
        let ring = if setup.is_packed() {
            let areas = setup.packed_areas(&memory)?;
            if setup.is_in_order() {
                DeviceRing::PackedInOrder(PackedDevice::new(size, features, areas, held, position))
            } else {
                DeviceRing::PackedAny(PackedDevice::new(size, features, areas, held, position))
            }
        } else {
            let areas = setup.split_areas(&memory)?;
            if setup.is_in_order() {
                DeviceRing::SplitInOrder(SplitDevice::new(size, features, areas, held, position))
            } else {
                DeviceRing::SplitAny(SplitDevice::new(size, features, areas, held, position))
            }
        };
        Ok(Self {
            ring,
            setup,
            memory,
            kick: None,
            call: None,
            err: None,
            stats: DeviceStats::default(),
            error_signalled: false,
            call_due: false,
            stopped: false,
        })
    }

    /// Where it is and what was negotiated.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Counters.
    pub fn stats(&self) -> DeviceStats {
        self.stats
    }

    /// The memory that addresses are looked up in.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The eventfd that the driver writes.
    pub fn set_kick(&mut self, fd: Option<OwnedFd>) {
        self.kick = fd.map(|fd| Arc::new(Event::new(fd)));
    }

    /// The eventfd that we write.
    pub fn set_call(&mut self, fd: Option<OwnedFd>) {
        self.call = fd.map(Event::new);
    }

    /// The eventfd that tells the other side of a broken queue.
    pub fn set_err(&mut self, fd: Option<OwnedFd>) {
        self.err = fd.map(Event::new);
    }

    /// The kick eventfd, to poll.
    pub fn kick(&self) -> Option<&Arc<Event>> {
        self.kick.as_ref()
    }

    /// Reset the kick counter.
    pub fn drain_kick(&mut self) {
        if self.kick.as_ref().is_some_and(|kick| kick.drain()) {
            self.stats.kicks_received += 1;
        }
    }

    /// One used entry per buffer, for peers that need it (the default is to merge).
    pub fn set_merge(&mut self, merge: bool) {
        device_ring!(&mut self.ring, ring => ring.set_merge(merge));
    }

    /// Look everything up in a new snapshot from now on. Fails if the rings are not in it, and then
    /// the queue is broken.
    pub fn set_memory(&mut self, memory: Arc<Memory>) -> Result<(), QueueError> {
        let areas = if self.setup.is_packed() {
            self.setup.packed_areas(&memory).map(|areas| match &mut self.ring {
                DeviceRing::PackedAny(ring) => ring.set_areas(areas),
                DeviceRing::PackedInOrder(ring) => ring.set_areas(areas),
                _ => unreachable!("the layout follows the setup"),
            })
        } else {
            self.setup.split_areas(&memory).map(|areas| match &mut self.ring {
                DeviceRing::SplitAny(ring) => ring.set_areas(areas),
                DeviceRing::SplitInOrder(ring) => ring.set_areas(areas),
                _ => unreachable!("the layout follows the setup"),
            })
        };
        if let Err(error) = areas {
            let fault = match &error {
                QueueError::Broken(fault) => fault.clone(),
                _ => Fault::Unmapped { address: self.setup.desc, length: 0 },
            };
            self.break_queue(fault);
            return Err(error);
        }
        device_ring!(&mut self.ring, ring => ring.set_memory(Arc::clone(&memory)));
        self.memory = memory;
        Ok(())
    }

    /// Mark writes to the used ring in the dirty log as if it were at this address (None: where it
    /// is).
    pub fn set_used_log(&mut self, addr: Option<u64>) {
        device_ring!(&mut self.ring, ring => ring.set_used_log(addr));
    }

    /// Break the queue for a reason found above the ring, and tell the other side.
    pub fn break_queue(&mut self, fault: Fault) {
        device_ring!(&mut self.ring, ring => ring.set_broken(fault));
        self.signal_error();
    }

    fn signal_error(&mut self) {
        if !std::mem::replace(&mut self.error_signalled, true)
            && let Some(err) = &self.err
        {
            err.signal();
        }
    }

    /// Fault injection: write the next used entry with identifier and length exclusive-ored.
    pub fn spoil_next_used(&mut self, id: u16, written: u32) {
        device_ring!(&mut self.ring, ring => ring.spoil_next_used(id, written));
    }

    /// Fault injection: the notification that is due gets lost. True if there was one.
    pub fn lose_call(&mut self) -> Result<bool, QueueError> {
        if !std::mem::take(&mut self.call_due) {
            return Ok(false);
        }
        let result = device_ring!(&mut self.ring, ring => ring.call_wanted(true));
        self.watch(result)
    }

    #[inline]
    fn watch<T>(&mut self, result: Result<T, QueueError>) -> Result<T, QueueError> {
        if let Err(error) = &result {
            self.look_at(error);
        }
        result
    }

    #[cold]
    fn look_at(&mut self, error: &QueueError) {
        if matches!(error, QueueError::Broken(_)) {
            self.signal_error();
        }
    }

    /// Take up to `max` buffers into `batch`, behind those that it has; returns how many.
    pub fn take(&mut self, max: usize, batch: &mut Batch) -> Result<usize, QueueError> {
        if self.stopped {
            return Err(QueueError::Stopped);
        }
        let before = batch.buffers.len();
        let result = device_ring!(&mut self.ring, ring => ring.take(max, batch));
        let taken = self.watch(result)?;
        if taken > 0 {
            self.stats.batches += 1;
            self.stats.bytes_read +=
                batch.buffers[before..].iter().map(|buffer| buffer.readable).sum::<u64>();
        }
        Ok(taken)
    }

    /// The buffers of `batch` from `start` on are as if they had not been taken; they leave it.
    /// They must be the newest taken ones, none of them completed.
    pub fn put_back(&mut self, batch: &mut Batch, start: usize) -> Result<usize, QueueError> {
        if self.stopped {
            return Err(QueueError::Stopped);
        }
        let mut count = 0;
        while batch.buffers.len() > start {
            let buffer = batch.buffers[batch.buffers.len() - 1];
            device_ring!(&mut self.ring, ring => ring.put_back(buffer.token))?;
            self.stats.bytes_read -= buffer.readable;
            batch.segments.truncate(buffer.first as usize);
            batch.buffers.pop();
            count += 1;
        }
        Ok(count)
    }

    /// A buffer of a batch is done, `written` bytes of it written.
    #[inline]
    pub fn complete(
        &mut self,
        batch: &Batch,
        index: usize,
        written: u32,
    ) -> Result<(), QueueError> {
        if self.stopped {
            return Err(QueueError::Stale);
        }
        let buffer = batch
            .buffers
            .get(index)
            .ok_or_else(|| QueueError::Invalid(format!("the batch has no buffer {index}")))?;
        device_ring!(&mut self.ring, ring => ring.complete(buffer.token, written))?;
        self.stats.bytes_written += u64::from(written);
        if written > 0 && self.memory.log().is_some() {
            let mut left = u64::from(written);
            for segment in batch.writable(buffer) {
                let part = left.min(segment.len.into());
                self.memory.mark_dirty(segment.addr, part);
                left -= part;
            }
        }
        Ok(())
    }

    /// The buffers of a batch are done, so many bytes written to each. Stops at the first for which
    /// that cannot be.
    pub fn complete_each(
        &mut self,
        batch: &Batch,
        written: impl Iterator<Item = u32>,
    ) -> Result<(), QueueError> {
        if self.stopped {
            return Err(QueueError::Stale);
        }
        if self.memory.log().is_some() {
            let mut each = (0..batch.buffers.len()).zip(written);
            return each.try_for_each(|(index, one)| self.complete(batch, index, one));
        }
        let total = &mut self.stats.bytes_written;
        device_ring!(&mut self.ring, ring => {
            batch.buffers.iter().zip(written).try_for_each(|(buffer, one)| {
                ring.complete(buffer.token, one)?;
                *total += u64::from(one);
                Ok(())
            })
        })
    }

    /// Every buffer of a batch is done, nothing written to any.
    pub fn complete_all(&mut self, batch: &Batch) -> Result<(), QueueError> {
        if self.stopped {
            return Err(QueueError::Stale);
        }
        device_ring!(&mut self.ring, ring => {
            batch.buffers.iter().try_for_each(|buffer| ring.complete(buffer.token, 0))
        })
    }

    /// Whether the buffer at `index` is still to be completed.
    pub fn is_taken(&self, batch: &Batch, index: usize) -> bool {
        !self.stopped
            && batch
                .buffers
                .get(index)
                .is_some_and(|buffer| device_ring!(&self.ring, ring => ring.is_taken(buffer.token)))
    }

    /// Look at up to `max` plain buffers that are available next: direct, in one region each, all
    /// device-readable or (`write`) all device-writable. Returns how many; none where something else
    /// comes next or buffers are outstanding, and then `take` tells. Nothing is taken before `retire`.
    #[inline]
    pub fn gather(
        &mut self,
        max: usize,
        write: bool,
        burst: &mut Burst,
    ) -> Result<usize, QueueError> {
        if self.stopped {
            return Err(QueueError::Stopped);
        }
        let result = device_ring!(&mut self.ring, ring => ring.gather(max, write, burst));
        self.watch(result)
    }

    /// Take the first `count` buffers of the burst gathered last, use them with what was written to
    /// each, and publish them. `call` is still to be asked. The rest is as if it was never looked at.
    #[inline]
    pub fn retire(&mut self, burst: &Burst, count: usize, write: bool) -> Result<(), QueueError> {
        if self.stopped {
            return Err(QueueError::Stopped);
        }
        let result = device_ring!(&mut self.ring, ring => ring.retire(burst, count, write));
        let entries = self.watch(result)?;
        if count > 0 {
            self.stats.batches += 1;
            self.stats.buffers += count as u64;
            self.stats.used_entries += entries as u64;
            let (read, written) = burst.bytes(count, write);
            self.stats.bytes_read += read;
            self.stats.bytes_written += written;
            self.call_due = true;
        }
        Ok(())
    }

    /// Publish what may leave; returns how many buffers.
    pub fn flush(&mut self) -> Result<usize, QueueError> {
        if self.stopped {
            return Err(QueueError::Stopped);
        }
        let result = device_ring!(&mut self.ring, ring => ring.flush());
        let (buffers, entries) = self.watch(result)?;
        self.stats.buffers += buffers as u64;
        self.stats.used_entries += entries as u64;
        self.call_due |= buffers > 0;
        Ok(buffers)
    }

    /// Send a used buffer notification if the driver wants one for what was published since the
    /// last time; true if sent.
    pub fn call(&mut self) -> Result<bool, QueueError> {
        self.ask_for_call(true)
    }

    /// As `call`, but without a wait until the driver can see what was published: a wish of its own
    /// that crosses it may be missed. `call` must follow before the caller waits for anything.
    #[inline]
    pub fn call_soon(&mut self) -> Result<bool, QueueError> {
        self.ask_for_call(false)
    }

    #[inline]
    fn ask_for_call(&mut self, settled: bool) -> Result<bool, QueueError> {
        if !self.call_due {
            return Ok(false);
        }
        // Before an error: what is broken asks no more.
        self.call_due = false;
        let result = device_ring!(&mut self.ring, ring => ring.call_wanted(settled));
        let wanted = self.watch(result)?;
        if !settled && !wanted {
            self.call_due = true;
            return Ok(false);
        }
        if wanted {
            if let Some(call) = &self.call {
                call.signal();
                self.stats.calls_sent += 1;
            }
        } else {
            self.stats.calls_saved += 1;
        }
        Ok(wanted)
    }

    /// Flush, and call for all that was published since the last call; true if a notification was
    /// sent.
    pub fn notify(&mut self) -> Result<bool, QueueError> {
        self.flush()?;
        self.call()
    }

    /// Ask for available buffer notifications; true if buffers are available already.
    pub fn enable_kicks(&mut self) -> bool {
        device_ring!(&mut self.ring, ring => ring.enable_kicks())
    }

    /// Ask for none.
    pub fn disable_kicks(&mut self) {
        device_ring!(&mut self.ring, ring => ring.disable_kicks());
    }

    /// Whether buffers are available. False on a broken or stopped queue.
    pub fn has_available(&self) -> bool {
        !self.stopped && device_ring!(&self.ring, ring => ring.has_available())
    }

    /// Buffers taken and not yet published.
    pub fn outstanding(&self) -> usize {
        device_ring!(&self.ring, ring => ring.outstanding())
    }

    /// Where it stands.
    pub fn position(&self) -> Position {
        device_ring!(&self.ring, ring => ring.position())
    }

    /// The fault that broke the queue.
    pub fn broken(&self) -> Option<&Fault> {
        device_ring!(&self.ring, ring => ring.broken())
    }

    /// From now on write down in `region` what is taken, and first of all take again what a device
    /// half before this one had taken, by what it wrote down; the position follows from that. Only
    /// before anything was taken. Fails if the region is not for such a queue, and breaks the queue if
    /// what is in it cannot be.
    pub fn attach_inflight(&mut self, region: &Region) -> Result<(), QueueError> {
        let part = region.part(self.setup.index, self.setup.size, self.setup.is_packed())?;
        let result = device_ring!(&mut self.ring, ring => ring.attach_inflight(part));
        self.watch(result)
    }

    /// Of a stopped queue: what is written down is not needed any more, since the next device half
    /// finds everything from the position on. False if it does not: something was overtaken.
    pub fn release_inflight(&mut self) -> bool {
        self.stopped && device_ring!(&mut self.ring, ring => ring.release_inflight())
    }

    /// Publish what may leave, forget the rest, and say where the next owner resumes.
    pub fn stop(&mut self) -> Position {
        if !self.stopped {
            // A broken queue has nothing to publish; its position is where it broke.
            let _ = self.notify();
            self.stopped = true;
            device_ring!(&mut self.ring, ring => ring.abandon());
        }
        self.position()
    }
}
