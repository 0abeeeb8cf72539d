//! Virtqueues: split (2.7) and packed (2.8), each with a driver and a device half that mirror each
//! other.

mod batch;
mod burst;
pub(crate) mod chain;
pub mod packed;
mod rows;
pub mod split;

use std::sync::Arc;

use crate::error::{Fault, QueueError};
use crate::inflight::Part;
use crate::memory::{Cache, Memory, Window, Windows};
use crate::order::{SentRun, Token, UsedEntry};

pub use batch::{Batch, Buffer, Segment, pieces};
pub use burst::{BURST_MAX, Burst};

/// Descriptor flags of both layouts.
pub mod flags {
    /// The chain goes on.
    pub const NEXT: u16 = 1;
    /// Device-writable (else device-readable).
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
    /// Packed: the driver's wrap counter.
    pub const AVAIL: u16 = 1 << 7;
    /// Packed: the device's wrap counter.
    pub const USED: u16 = 1 << 15;
}

/// Feature bits that shape a ring.
pub mod feature {
    /// VIRTIO_F_INDIRECT_DESC
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// VIRTIO_F_EVENT_IDX
    pub const EVENT_IDX: u64 = 1 << 29;
    /// VIRTIO_F_RING_PACKED
    pub const RING_PACKED: u64 = 1 << 34;
    /// VIRTIO_F_IN_ORDER
    pub const IN_ORDER: u64 = 1 << 35;
}

/// Bytes of a descriptor.
pub const DESCRIPTOR_SIZE: usize = 16;
/// The largest queue (2.7, 2.8.1).
pub const QUEUE_SIZE_MAX: u32 = 32768;

/// A piece of a buffer, as a driver names it. It begins as a descriptor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Piece {
    /// Guest address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
}

/// Bytes of all pieces, as far as a used length can count.
#[inline]
fn bytes(pieces: &[Piece]) -> u32 {
    pieces.iter().fold(0, |sum: u32, piece| sum.saturating_add(piece.len))
}

/// Where a queue half stands. Split: free-running indices, wraps false. Packed: slots and wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Next buffer (split) or slot (packed) to be made available or taken.
    pub available: u16,
    /// Its wrap counter.
    pub available_wrap: bool,
    /// Next buffer or slot to be used or reaped.
    pub used: u16,
    /// Its wrap counter.
    pub used_wrap: bool,
    /// Split, in order, driver: the next descriptor slot.
    pub descriptor: u16,
}

/// A buffer that came back to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaped {
    /// The name it was added under.
    pub cookie: u64,
    /// Bytes that the device wrote.
    pub written: u32,
}

/// How many of the pieces, from the first on, make buffers that are alike: any device-readable ones,
/// device-writable ones of the same length.
#[inline]
fn alike(pieces: &[Piece], write: bool) -> usize {
    if !write {
        return pieces.len();
    }
    pieces.iter().take_while(|piece| piece.len == pieces[0].len).count()
}

/// Hand out buffers that left together; `short` is what was written to the last of them, where that
/// is known.
#[inline]
fn reap_sent(sent: SentRun, short: Option<u32>, into: &mut Vec<Reaped>) -> usize {
    let SentRun { cookie, count, writable, .. } = sent;
    let one = |at| Reaped { cookie: cookie.wrapping_add(at), written: writable };
    into.extend((0..u64::from(count)).map(one));
    if let (Some(written), Some(last)) = (short, into.last_mut()) {
        last.written = written;
    }
    count.into()
}

/// What both halves of both layouts hold beside the ring itself.
struct Common {
    size: u16,
    indirect: bool,
    event_idx: bool,
    broken: Option<Fault>,
    memory: Arc<Memory>,
    cache: Cache,
    /// What to exclusive-or the next used entry with: fault injection.
    spoil: Option<(u16, u32)>,
    windows: Windows,
    /// Where the last buffer of a burst was found.
    window: Window,
}

impl Common {
    fn new(size: u16, features: u64, memory: Arc<Memory>) -> Self {
        Self {
            size,
            indirect: features & feature::INDIRECT_DESC != 0,
            event_idx: features & feature::EVENT_IDX != 0,
            broken: None,
            windows: Windows::of(Arc::clone(&memory)),
            memory,
            cache: Cache::default(),
            spoil: None,
            window: Window::NONE,
        }
    }

    #[inline]
    fn check(&self) -> Result<(), QueueError> {
        if self.broken.is_some() { Err(self.is_broken()) } else { Ok(()) }
    }

    #[cold]
    #[inline(never)]
    fn is_broken(&self) -> QueueError {
        self.broken.clone().map_or(QueueError::Stale, QueueError::Broken)
    }

    /// Look addresses up in a new snapshot from now on.
    fn set_memory(&mut self, memory: Arc<Memory>) {
        self.windows = Windows::of(Arc::clone(&memory));
        self.memory = memory;
        self.window = Window::NONE;
    }

    /// Where a plain buffer is mapped, if it lies in one region and nothing else has to be done for
    /// it: `window` is the region of the one before.
    #[inline(always)]
    fn locate(&mut self, window: &mut Window, addr: u64, len: u32) -> Option<*mut u8> {
        window.locate(addr, len).or_else(|| self.windows.locate(window, addr, len))
    }

    /// A fault breaks the queue for good; a translation miss does not.
    #[cold]
    fn fail(&mut self, error: QueueError) -> QueueError {
        if let QueueError::Broken(fault) = &error {
            self.broken.get_or_insert_with(|| fault.clone());
        }
        error
    }

    /// A used entry as it is to be written: as it is, unless a fault is to be injected.
    #[inline]
    fn as_written(&mut self, used: UsedEntry) -> UsedEntry {
        match self.spoil.take() {
            None => used,
            Some((id, written)) => {
                UsedEntry { id: used.id ^ id, written: used.written ^ written, ..used }
            }
        }
    }

    #[inline]
    fn check_mapping(&mut self) -> Result<(), QueueError> {
        if self.memory.is_truncated() { Err(self.truncated()) } else { Ok(()) }
    }

    #[cold]
    #[inline(never)]
    fn truncated(&mut self) -> QueueError {
        self.fail(Fault::Truncated.into())
    }
}

/// The device half of a virtqueue, whatever its layout and order.
pub trait DeviceHalf {
    /// Take up to `max` buffers into `batch`, behind those that it has; returns how many. Stops
    /// before a malformed one, which the next call reports.
    fn take(&mut self, max: usize, batch: &mut Batch) -> Result<usize, QueueError>;
    /// The newest taken buffer is as if it had not been taken.
    fn put_back(&mut self, token: Token) -> Result<(), QueueError>;
    /// A buffer is done, `written` bytes of it written; `flush` publishes it.
    fn complete(&mut self, token: Token, written: u32) -> Result<(), QueueError>;
    /// Whether a buffer is taken and neither done nor put back.
    fn is_taken(&self, token: Token) -> bool;
    /// Fault injection: write the next used entry with identifier and length exclusive-ored.
    fn spoil_next_used(&mut self, id: u16, written: u32);
    /// Publish what may leave; returns (buffers, used entries written).
    fn flush(&mut self) -> Result<(usize, usize), QueueError>;
    /// Look at up to `max` plain buffers that are available next, all device-writable or all
    /// device-readable; returns how many. None while other buffers are taken, and none where the next
    /// one is not plain or not right: `take` deals with it. Nothing changes before `retire`.
    fn gather(&mut self, max: usize, write: bool, burst: &mut Burst) -> Result<usize, QueueError>;
    /// Take the first `count` buffers of what was gathered last and use and publish them at once;
    /// returns how many used entries were written.
    fn retire(&mut self, burst: &Burst, count: usize, write: bool) -> Result<usize, QueueError>;
    /// Whether the driver wants a notification for what was published since the last question.
    ///
    /// Not `settled`: without waiting until the driver can see what was published. A wish that crosses
    /// it may be missed, so a no is none: what was published stays in question, and a settled question
    /// must follow before anybody waits for the driver. It becomes one where much is in question.
    fn call_wanted(&mut self, settled: bool) -> Result<bool, QueueError>;
    /// Ask for notifications; true if buffers are available already.
    fn enable_kicks(&mut self) -> bool;
    /// Ask for none.
    fn disable_kicks(&mut self);
    /// Whether buffers are available. False on a broken queue.
    fn has_available(&self) -> bool;
    /// Buffers taken and not yet published.
    fn outstanding(&self) -> usize;
    /// Where it stands.
    fn position(&self) -> Position;
    /// Forget what is outstanding and rewind so that it is taken again, where that is possible.
    fn abandon(&mut self) -> Position;
    /// Look addresses up in a new snapshot of the memory from now on.
    fn set_memory(&mut self, memory: Arc<Memory>);
    /// Mark writes to the used ring in the dirty log as if it were at this address (None: where it
    /// is). A packed ring has none.
    fn set_used_log(&mut self, _addr: Option<u64>) {}
    /// The fault that broke the queue.
    fn broken(&self) -> Option<&Fault>;
    /// Break the queue for a reason found above the ring.
    fn set_broken(&mut self, fault: Fault);
    /// One used entry per buffer, for peers that need it.
    fn set_merge(&mut self, merge: bool);
    /// From now on write down what is taken, and first of all take again what a device half before
    /// us had taken, by what it wrote down. Only before anything was taken.
    fn attach_inflight(&mut self, part: Part) -> Result<(), QueueError>;
    /// After `abandon`: what is written down is not needed, because the next device half finds
    /// everything from the position on. False if it does not.
    fn release_inflight(&mut self) -> bool;
}

/// The driver half of a virtqueue, whatever its layout and order.
pub trait DriverHalf {
    /// Add a buffer of device-readable pieces followed by device-writable ones; the device sees it
    /// after `publish`. Needs at least one piece.
    fn add(
        &mut self,
        readable: &[Piece],
        writable: &[Piece],
        cookie: u64,
    ) -> Result<(), QueueError>;
    /// Add each piece as a buffer of its own, cookies counting up from `cookie`; returns how many
    /// fitted.
    fn add_each(&mut self, pieces: &[Piece], write: bool, cookie: u64)
    -> Result<usize, QueueError>;
    /// Descriptor slots that a buffer of so many pieces takes.
    fn slots_needed(&self, pieces: usize) -> usize;
    /// Make what was added available; returns how many buffers.
    fn publish(&mut self) -> usize;
    /// Whether the device wants a notification for what was published since the last question;
    /// `settled` as in [`DeviceHalf::call_wanted`].
    fn kick_wanted(&mut self, settled: bool) -> Result<bool, QueueError>;
    /// Up to `max` used buffers, behind those in `into`; returns how many.
    fn reap(&mut self, max: usize, into: &mut Vec<Reaped>) -> Result<usize, QueueError>;
    /// Ask for notifications; true if used buffers wait already.
    fn enable_calls(&mut self) -> bool;
    /// Ask for none.
    fn disable_calls(&mut self);
    /// Whether used buffers wait. False on a broken queue.
    fn has_used(&self) -> bool;
    /// Free descriptor slots.
    fn free(&self) -> usize;
    /// Buffers added and not reaped.
    fn outstanding(&self) -> usize;
    /// After a reset: the cookies of all buffers not reaped, oldest first. The ring is as new.
    fn take_back(&mut self) -> Vec<u64>;
    /// Where it stands.
    fn position(&self) -> Position;
    /// Where the device half stands, going by what it has used: behind everything that is used,
    /// reaped or not.
    fn device_position(&self) -> Position;
    /// Whether a device half that is gone has left used buffers behind of which older ones are missing,
    /// so that what the driver made available there is lost.
    fn is_torn(&self) -> bool {
        false
    }
    /// The fault that broke the queue.
    fn broken(&self) -> Option<&Fault>;
    /// Used entries read so far.
    fn used_entries(&self) -> u64;
}

/// Where a driver half puts indirect tables: `length` descriptors for each buffer that can be
/// outstanding, by its head (split) or identifier (packed).
#[derive(Clone)]
pub struct IndirectTables {
    /// The tables of all slots, one after the other.
    pub area: crate::area::Area,
    /// Descriptors in each.
    pub length: u16,
}

impl IndirectTables {
    fn offset(&self, place: u16) -> usize {
        usize::from(place) * usize::from(self.length) * DESCRIPTOR_SIZE
    }
}
