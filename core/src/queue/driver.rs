//! The driver half of a virtqueue.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::Setup;
use crate::area::Area;
use crate::error::{Fault, QueueError};
use crate::event::Event;
use crate::memory::Memory;
use crate::order::{AnyOrder, InOrder};
use crate::ring::packed::PackedDriver;
use crate::ring::split::SplitDriver;
use crate::ring::{
    DESCRIPTOR_SIZE, DriverHalf, IndirectTables, Piece, Position, QUEUE_SIZE_MAX, Reaped, feature,
};

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

/// The driver half of a virtqueue. On lines of its own: the other half may be its neighbour.
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
