//! A virtqueue of whatever layout and order, with its memory, its notifications and its counters.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use crate::area::Area;
use crate::error::{Fault, QueueError};
use crate::inflight::Region;
use crate::memory::Memory;
use crate::order::{AnyOrder, InOrder};
use crate::ring::packed::{PackedAreas, PackedDevice, PackedDriver};
use crate::ring::split::{SplitAreas, SplitDevice, SplitDriver};
use crate::ring::{
    Batch, Burst, DESCRIPTOR_SIZE, DeviceHalf, DriverHalf, IndirectTables, Piece, Position,
    QUEUE_SIZE_MAX, Reaped, feature,
};

/// Where a virtqueue is and what was negotiated for it.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Number of the queue within its device.
    pub index: u16,
    /// Slots.
    pub size: u16,
    /// Negotiated features.
    pub features: u64,
    /// Guest address of the descriptor area.
    pub desc: u64,
    /// Guest address of the driver area.
    pub driver: u64,
    /// Guest address of the device area.
    pub device: u64,
    /// Where to start; None for a new queue.
    pub position: Option<Position>,
}

impl Setup {
    /// Whether the layout is the packed one.
    pub fn is_packed(&self) -> bool {
        self.features & feature::RING_PACKED != 0
    }

    /// Whether buffers are used in order.
    pub fn is_in_order(&self) -> bool {
        self.features & feature::IN_ORDER != 0
    }

    fn check(&self) -> Result<(), QueueError> {
        let size = u32::from(self.size);
        if size == 0 || size > QUEUE_SIZE_MAX {
            return Err(QueueError::Invalid(format!("queue size {size} is not in 1..=32768")));
        }
        if !self.is_packed() && !size.is_power_of_two() {
            return Err(QueueError::Invalid(format!(
                "queue size {size} is not a power of two, as a split virtqueue needs"
            )));
        }
        if let Some(position) = self.position {
            for (name, slot) in [("available", position.available), ("used", position.used)] {
                if self.is_packed() && slot >= self.size {
                    return Err(QueueError::Invalid(format!(
                        "{name} position {slot} is beyond the queue size {size}"
                    )));
                }
            }
            let ahead = if self.is_packed() {
                let lap = if position.available_wrap == position.used_wrap { 0 } else { size };
                (u32::from(position.available) + lap).wrapping_sub(position.used.into())
            } else {
                position.available.wrapping_sub(position.used).into()
            };
            if ahead > size {
                return Err(QueueError::Invalid(format!(
                    "available position {} is behind the used position {} or more than the queue size {size} ahead of it",
                    position.available, position.used
                )));
            }
        }
        Ok(())
    }

    fn split_areas(&self, memory: &Memory) -> Result<SplitAreas, QueueError> {
        let [desc, avail, used] = SplitAreas::sizes(self.size);
        Ok(SplitAreas {
            desc: Area::new(memory, "descriptor table", self.desc, desc, 16)?,
            avail: Area::new(memory, "available ring", self.driver, avail, 2)?,
            used: Area::new(memory, "used ring", self.device, used, 4)?,
        })
    }

    fn packed_areas(&self, memory: &Memory) -> Result<PackedAreas, QueueError> {
        let [ring, driver, device] = PackedAreas::sizes(self.size);
        Ok(PackedAreas {
            ring: Area::new(memory, "descriptor ring", self.desc, ring, 16)?,
            driver: Area::new(memory, "driver event suppression", self.driver, driver, 4)?,
            device: Area::new(memory, "device event suppression", self.device, device, 4)?,
        })
    }
}

/// An eventfd of ours or the other side's. Made non-blocking: a counter that the other side filled
/// up must not hang us, and says what we wanted to say already.
pub struct Event(OwnedFd);

impl Event {
    /// A new one, counter 0.
    pub fn create() -> std::io::Result<Self> {
        // SAFETY: makes a descriptor that nobody else owns.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// Take over a descriptor.
    pub fn new(fd: OwnedFd) -> Self {
        // SAFETY: fcntl on a descriptor that we own.
        unsafe {
            let status = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
            libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, status | libc::O_NONBLOCK);
        }
        Self(fd)
    }

    /// The descriptor, to poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Add one to the counter.
    pub fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: writes eight bytes from a local.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Reset the counter; true if it was not zero.
    pub fn drain(&self) -> bool {
        let mut count = [0u8; 8];
        // SAFETY: reads at most eight bytes into a local.
        let read =
            unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        read > 0
    }
}

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

/// What a driver half has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverStats {
    /// Buffers reaped.
    pub buffers: u64,
    /// Publications.
    pub batches: u64,
    /// Bytes that the device wrote.
    pub bytes_written: u64,
    /// Available buffer notifications sent.
    pub kicks_sent: u64,
    /// Publications after which the device wanted no notification.
    pub kicks_saved: u64,
    /// Used buffer notifications that came.
    pub calls_received: u64,
    /// Used elements or descriptors read.
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

#[repr(u8)]
enum DriverRing {
    SplitAny(SplitDriver<AnyOrder>),
    SplitInOrder(SplitDriver<InOrder>),
    PackedAny(PackedDriver<AnyOrder>),
    PackedInOrder(PackedDriver<InOrder>),
}

macro_rules! driver_ring {
    ($queue:expr, $ring:ident => $body:expr) => {
        match $queue {
            DriverRing::SplitAny($ring) => $body,
            DriverRing::SplitInOrder($ring) => $body,
            DriverRing::PackedAny($ring) => $body,
            DriverRing::PackedInOrder($ring) => $body,
        }
    };
}

/// Where indirect tables are: `length` descriptors for each slot of the ring.
#[derive(Clone, Copy, Debug)]
pub struct IndirectSetup {
    /// Guest address of the first table.
    pub addr: u64,
    /// Descriptors in each.
    pub length: u16,
}

/// The driver half of a virtqueue, likewise.
#[repr(align(128))]
pub struct DriverQueue {
    ring: DriverRing,
    setup: Setup,
    kick: Option<Event>,
    call: Option<Event>,
    memory: Arc<Memory>,
    stats: DriverStats,
}

impl DriverQueue {
    /// A driver half; its areas are initialized.
    pub fn new(
        memory: Arc<Memory>,
        setup: Setup,
        indirect: Option<IndirectSetup>,
    ) -> Result<Self, QueueError> {
        setup.check()?;
        let (size, features, position) = (setup.size, setup.features, setup.position);
        if position.is_some_and(|position| {
            position.available != position.used || position.available_wrap != position.used_wrap
        }) {
            return Err(QueueError::Invalid(
                "a driver half can only start where nothing is outstanding".into(),
            ));
        }
        let indirect = indirect.filter(|_| features & feature::INDIRECT_DESC != 0);
        let tables = indirect.map(|tables| tables.map(&memory, size)).transpose()?;
        let held = Arc::clone(&memory);
        let ring = if setup.is_packed() {
            let areas = setup.packed_areas(&memory)?;
            if setup.is_in_order() {
                DriverRing::PackedInOrder(PackedDriver::new(
                    size, features, areas, tables, memory, position,
                ))
            } else {
                DriverRing::PackedAny(PackedDriver::new(
                    size, features, areas, tables, memory, position,
                ))
            }
        } else {
            let areas = setup.split_areas(&memory)?;
            if setup.is_in_order() {
                DriverRing::SplitInOrder(SplitDriver::new(
                    size, features, areas, tables, memory, position,
                ))
            } else {
                DriverRing::SplitAny(SplitDriver::new(
                    size, features, areas, tables, memory, position,
                ))
            }
        };
        let stats = DriverStats::default();
        Ok(Self { ring, setup, kick: None, call: None, memory: held, stats })
    }

    /// Where it is and what was negotiated.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The memory that its rings and buffers are in.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Counters.
    pub fn stats(&self) -> DriverStats {
        let used_entries = driver_ring!(&self.ring, ring => ring.used_entries());
        DriverStats { used_entries, ..self.stats }
    }

    /// The eventfd that we write.
    pub fn set_kick(&mut self, fd: Option<OwnedFd>) {
        self.kick = fd.map(Event::new);
    }

    /// The eventfd that the device writes.
    pub fn set_call(&mut self, fd: Option<OwnedFd>) {
        self.call = fd.map(Event::new);
    }

    /// The kick eventfd.
    pub fn kick_event(&self) -> Option<&Event> {
        self.kick.as_ref()
    }

    /// The call eventfd, to poll.
    pub fn call_event(&self) -> Option<&Event> {
        self.call.as_ref()
    }

    /// Reset the call counter.
    pub fn drain_call(&mut self) {
        if self.call.as_ref().is_some_and(Event::drain) {
            self.stats.calls_received += 1;
        }
    }

    /// Add a buffer of device-readable pieces followed by device-writable ones.
    pub fn add(
        &mut self,
        readable: &[Piece],
        writable: &[Piece],
        cookie: u64,
    ) -> Result<(), QueueError> {
        if readable.is_empty() && writable.is_empty() {
            return Err(QueueError::Invalid("a buffer needs at least one piece".into()));
        }
        let bytes = |part: &[Piece]| part.iter().map(|piece| u64::from(piece.len)).sum::<u64>();
        if readable.len() + writable.len() > 1 && bytes(readable) + bytes(writable) > 1 << 32 {
            let bytes = bytes(readable) + bytes(writable);
            return Err(QueueError::Invalid(format!(
                "a buffer of {bytes} bytes exceeds 2^32 (2.7.5)"
            )));
        }
        driver_ring!(&mut self.ring, ring => ring.add(readable, writable, cookie))
    }

    /// Add each piece as a buffer of its own, cookies counting up from `cookie`; returns how many
    /// fitted.
    pub fn add_each(
        &mut self,
        pieces: &[Piece],
        write: bool,
        cookie: u64,
    ) -> Result<usize, QueueError> {
        driver_ring!(&mut self.ring, ring => ring.add_each(pieces, write, cookie))
    }

    /// Descriptor slots that a buffer of so many pieces takes.
    pub fn slots_needed(&self, pieces: usize) -> usize {
        driver_ring!(&self.ring, ring => ring.slots_needed(pieces))
    }

    /// Make what was added available; returns how many buffers.
    pub fn publish(&mut self) -> usize {
        let buffers = driver_ring!(&mut self.ring, ring => ring.publish());
        self.stats.batches += u64::from(buffers > 0);
        buffers
    }

    /// Publish, and notify the device if it wants it for what was published since the last time;
    /// true if sent.
    pub fn kick(&mut self) -> Result<bool, QueueError> {
        self.publish_and_ask(true)
    }

    /// As `kick`, but without a wait until the device can see what was published: a wish of its own
    /// that crosses it may be missed. `kick` must follow before the caller waits for anything.
    #[inline]
    pub fn kick_soon(&mut self) -> Result<bool, QueueError> {
        self.publish_and_ask(false)
    }

    #[inline]
    fn publish_and_ask(&mut self, settled: bool) -> Result<bool, QueueError> {
        if let Some(fault) = self.broken() {
            return Err(QueueError::Broken(fault.clone()));
        }
        let published = self.publish() > 0;
        let wanted = driver_ring!(&mut self.ring, ring => ring.kick_wanted(settled))?;
        if wanted {
            if let Some(kick) = &self.kick {
                kick.signal();
                self.stats.kicks_sent += 1;
            }
        } else if published {
            self.stats.kicks_saved += 1;
        }
        Ok(wanted)
    }

    /// Up to `max` used buffers, behind those in `into`; returns how many.
    pub fn reap(&mut self, max: usize, into: &mut Vec<Reaped>) -> Result<usize, QueueError> {
        let before = into.len();
        let reaped = driver_ring!(&mut self.ring, ring => ring.reap(max, into))?;
        self.stats.buffers += reaped as u64;
        self.stats.bytes_written += match &into[before..] {
            [] => 0,
            [one] => one.written.into(),
            many => many.iter().map(|one| u64::from(one.written)).sum(),
        };
        Ok(reaped)
    }

    /// Ask for used buffer notifications; true if used buffers wait already.
    pub fn enable_calls(&mut self) -> bool {
        driver_ring!(&mut self.ring, ring => ring.enable_calls())
    }

    /// Ask for none.
    pub fn disable_calls(&mut self) {
        driver_ring!(&mut self.ring, ring => ring.disable_calls());
    }

    /// Whether used buffers wait. False on a broken queue.
    pub fn has_used(&self) -> bool {
        driver_ring!(&self.ring, ring => ring.has_used())
    }

    /// Free descriptor slots.
    pub fn free(&self) -> usize {
        driver_ring!(&self.ring, ring => ring.free())
    }

    /// Buffers added and not reaped.
    pub fn outstanding(&self) -> usize {
        driver_ring!(&self.ring, ring => ring.outstanding())
    }

    /// After a reset: the cookies of all buffers not reaped, oldest first. The ring is as new.
    pub fn take_back(&mut self) -> Vec<u64> {
        driver_ring!(&mut self.ring, ring => ring.take_back())
    }

    /// Where it stands.
    pub fn position(&self) -> Position {
        driver_ring!(&self.ring, ring => ring.position())
    }

    /// Whether a device half that is gone has left the ring in between, see
    /// [`DriverHalf::is_torn`].
    pub fn is_torn(&self) -> bool {
        driver_ring!(&self.ring, ring => ring.is_torn())
    }

    /// Where the device stands, going by what it has used, reaped or not.
    pub fn device_position(&self) -> Position {
        driver_ring!(&self.ring, ring => ring.device_position())
    }

    /// The fault that broke the queue.
    pub fn broken(&self) -> Option<&Fault> {
        driver_ring!(&self.ring, ring => ring.broken())
    }
}

impl IndirectSetup {
    fn map(self, memory: &Memory, size: u16) -> Result<IndirectTables, QueueError> {
        if u32::from(self.length) > QUEUE_SIZE_MAX || self.length == 0 {
            return Err(QueueError::Invalid(format!(
                "indirect tables of {} descriptors are not in 1..=32768",
                self.length
            )));
        }
        let bytes = usize::from(size) * usize::from(self.length) * DESCRIPTOR_SIZE;
        let area = Area::new(memory, "indirect tables", self.addr, bytes, 16)?;
        Ok(IndirectTables { area, length: self.length })
    }
}
