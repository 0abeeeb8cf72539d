//! The driver's end of a network device under load: frames out, frames in, as fast as the rings go.
//!
//! The frames that it sends are those of a source port (see `SourceLink`), so that whoever receives
//! them can tell them apart and check them. Of what it receives, one frame in 32 is checked:
//! such a frame byte for byte, an IPv4 one by its checksum and length.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::frame::{Check, Maker, check};
use super::{FRAME_BYTES_MAX, FRAME_BYTES_MIN};
use crate::error::{Fault, QueueError};
use crate::memory::{
    Access, copy_frame_from_shared, copy_from_shared, copy_to_shared, prefetch, prefetch_write,
};
use crate::pump::loopback::run_on;
use crate::queue::DriverQueue;
use crate::ring::{Piece, Reaped};

/// The longest that one run may take.
pub const RUN_MAX: Duration = Duration::from_secs(60);
/// Rounds between two looks at the clock.
const ROUNDS: usize = 64;
/// Buffers begin so that the frame behind the header begins on a cache line.
const LINE_BYTES: u64 = 64;
/// Where a header has `num_buffers`, if it has one.
const NUM_BUFFERS: usize = 10;

/// What is to be sent and received.
#[derive(Clone, Copy, Debug)]
pub struct LoadSetup {
    /// Bytes of a frame that is sent.
    pub length: usize,
    /// Packets that are sent and received at once.
    pub batch: usize,
    /// A received packet may be spread over several buffers.
    pub mergeable: bool,
    /// Bytes of the header before each frame.
    pub header_bytes: usize,
    /// Bytes of a receive buffer, header included.
    pub buffer_bytes: u32,
    /// Processor to run on.
    pub pin: Option<usize>,
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadReport {
    /// How long it took.
    pub seconds: f64,
    /// Frames that the device has used.
    pub transmitted: u64,
    /// Frames that were received.
    pub received: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Publications of both queues.
    pub batches: u64,
    /// Available buffer notifications sent.
    pub kicks_sent: u64,
    /// Used elements or descriptors read.
    pub used_entries: u64,
    /// Received frames that were checked and are right.
    pub verified: u64,
    /// Received packets that were too short to be one.
    pub malformed: u64,
}

/// Why a run ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// The device broke a ring.
    Queue(QueueError),
    /// A frame that was received is not what it should be; the how-manieth it was.
    Mismatch(u64),
    /// A packet in more buffers than the ring has, or in none.
    BufferCount(u16),
}

impl From<QueueError> for LoadError {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Queue(error) => error.fmt(f),
            Self::Mismatch(number) => {
                write!(f, "the frame received as number {number} is not what was sent")
            }
            Self::BufferCount(count) => write!(f, "a packet in {count} buffers"),
        }
    }
}

impl std::error::Error for LoadError {}

/// The packet buffers of one queue, one for each slot.
struct Slab {
    pieces: Box<[Piece]>,
    hosts: Box<[*mut u8]>,
    /// The next buffer to be added, and its number since the beginning.
    next: usize,
    number: u64,
}

// SAFETY: the pointers lead into memory that the queue beside it keeps mapped, and that the device
// shares anyway.
unsafe impl Send for Slab {}

/// Bytes of guest memory for the packet buffers of a queue of `size` slots, each of `buffer_bytes`,
/// header included.
pub fn slab_bytes(size: u16, buffer_bytes: usize) -> u64 {
    u64::from(size) * stride(buffer_bytes) + 2 * LINE_BYTES
}

fn stride(buffer_bytes: usize) -> u64 {
    (buffer_bytes as u64).next_multiple_of(LINE_BYTES) + LINE_BYTES
}

impl Slab {
    fn new(
        queue: &DriverQueue,
        setup: &LoadSetup,
        addr: u64,
        buffer_bytes: usize,
    ) -> Result<Self, QueueError> {
        let need = slab_bytes(queue.setup().size, buffer_bytes);
        if addr.checked_add(need).is_none() {
            return Err(Fault::AddressOverflow { address: addr, length: need }.into());
        }
        // The whole range lies in one region.
        let (base, _) = queue.memory().contiguous(addr, need, Access::Write)?;
        let skew = LINE_BYTES - setup.header_bytes as u64 % LINE_BYTES;
        let first = addr.next_multiple_of(LINE_BYTES) + skew % LINE_BYTES;
        let starts = (0..u64::from(queue.setup().size))
            .map(|slot| first + slot * stride(buffer_bytes) - addr);
        let len = buffer_bytes as u32;
        Ok(Self {
            pieces: starts.clone().map(|start| Piece { addr: addr + start, len }).collect(),
            hosts: starts.map(|start| base.wrapping_add(start as usize)).collect(),
            next: 0,
            number: 0,
        })
    }

    /// Where the buffer of a cookie is.
    #[inline]
    fn host(&self, cookie: u64) -> *mut u8 {
        self.hosts[cookie as usize]
    }

    /// Where the next `count` buffers to be added are, at most all: up to the last one, and from the
    /// first one on.
    #[inline]
    fn upcoming(&self, count: usize) -> [&[*mut u8]; 2] {
        let (first, next) = self.hosts.split_at(self.next);
        let straight = count.min(next.len());
        [&next[..straight], &first[..count - straight]]
    }

    /// Add `count` buffers in turn, cookies their places.
    fn add(
        &mut self,
        queue: &mut DriverQueue,
        count: usize,
        write: bool,
    ) -> Result<(), QueueError> {
        let mut left = count;
        while left > 0 {
            let now = left.min(self.pieces.len() - self.next);
            let added = queue.add_each(
                &self.pieces[self.next..self.next + now],
                write,
                self.next as u64,
            )?;
            if added < now {
                return Err(QueueError::Full { needed: now, free: added });
            }
            self.number += now as u64;
            self.next = (self.next + now) % self.pieces.len();
            left -= now;
        }
        Ok(())
    }
}

/// Frames of the next batch whose lines are asked for beside those of this one.
const NEXT: usize = 16;

struct Transmit {
    slab: Slab,
    /// The next so many frames' lines were asked for.
    asked: usize,
    maker: Maker,
    reaped: Vec<Reaped>,
    done: u64,
}

impl Transmit {
    fn round(&mut self, queue: &mut DriverQueue, setup: &LoadSetup) -> Result<bool, LoadError> {
        if queue.free() < setup.batch {
            self.reaped.clear();
            queue.reap(usize::MAX, &mut self.reaped)?;
            self.done += self.reaped.len() as u64;
            if queue.free() < setup.batch {
                return Ok(false);
            }
        }
        let header_bytes = setup.header_bytes;
        // The device has read these lines last: those of the next batch come while this one is written.
        let free = queue.free().min(setup.batch + NEXT);
        let lines = self.slab.upcoming(free).into_iter().flatten().skip(self.asked);
        lines.for_each(|host| prefetch_write(host.wrapping_add(header_bytes)));
        self.asked = free - setup.batch;
        let hosts = self.slab.upcoming(setup.batch);
        let mut number = self.slab.number;
        for hosts in hosts {
            let frames = hosts.iter().map(|host| host.wrapping_add(header_bytes));
            // SAFETY: in whole buffers of the slab, which the device does not have.
            unsafe { self.maker.write_each(frames, number) };
            number += hosts.len() as u64;
        }
        self.slab.add(queue, setup.batch, false)?;
        queue.kick_soon()?;
        Ok(true)
    }
}

struct Receive {
    slab: Slab,
    /// Copies of the frames that came last, one behind the other; small ones stay in the first
    /// cache.
    copies: Box<[u8]>,
    /// Where the copy of the packet that is under way begins.
    start: usize,
    reaped: Vec<Reaped>,
    /// Of the packet that is under way: buffers to come, bytes so far.
    left: u16,
    bytes: usize,
    /// Sequence number of the last frame checked that had one.
    sequence: Option<u64>,
    report: LoadReport,
}

/// Batches that are looked at together.
const BATCHES: usize = 4;
/// How many frames ahead the lines of one are asked for.
const AHEAD: usize = 32;
/// Of so many frames that are received one is checked.
const SAMPLED: u64 = 32;
/// As long as it fits, the next copy goes behind the last one.
const COPIES_BYTES: usize = 4096;

impl Receive {
    fn round(&mut self, queue: &mut DriverQueue, setup: &LoadSetup) -> Result<bool, LoadError> {
        self.reaped.clear();
        let got = queue.reap(BATCHES * setup.batch, &mut self.reaped)?;
        self.reaped.iter().take(AHEAD).for_each(|one| self.prefetch(one, setup));
        let mut added = false;
        let mut place = 0;
        while place < got {
            let end = got.min(place + setup.batch);
            if setup.mergeable {
                self.take_pieces(place..end, queue, setup)?;
            } else {
                self.take_plain(place..end, setup)?;
            }
            place = end;
            // Those that are still to be copied are free already.
            added |= self.make_available(queue, got - place, setup)?;
        }
        if got == 0 {
            added = self.make_available(queue, 0, setup)?;
        }
        Ok(got > 0 || added)
    }

    /// Copy out packets that may be spread over several buffers.
    fn take_pieces(
        &mut self,
        places: Range<usize>,
        queue: &DriverQueue,
        setup: &LoadSetup,
    ) -> Result<(), LoadError> {
        for place in places {
            if let Some(one) = self.reaped.get(place + AHEAD) {
                self.prefetch(one, setup);
            }
            self.take(place, queue, setup)?;
        }
        Ok(())
    }

    /// Copy out packets of one buffer each.
    #[inline]
    fn take_plain(&mut self, places: Range<usize>, setup: &LoadSetup) -> Result<(), LoadError> {
        let skip = setup.header_bytes;
        for place in places {
            if let Some(one) = self.reaped.get(place + AHEAD) {
                prefetch(self.slab.host(one.cookie).wrapping_add(skip));
            }
            let Reaped { cookie, written } = self.reaped[place];
            let Some(bytes) = (written as usize).checked_sub(skip) else {
                self.report.malformed += 1;
                continue;
            };
            let mut start = (self.start + self.bytes).next_multiple_of(LINE_BYTES as usize);
            if start >= COPIES_BYTES {
                start = 0;
            }
            let copy = &mut self.copies[start..start + bytes];
            // SAFETY: a whole buffer of the slab, as long as what was written at least; the ring
            // checked that.
            unsafe { copy_frame_from_shared(self.slab.host(cookie).add(skip), copy) };
            (self.start, self.bytes) = (start, bytes);
            self.report.received += 1;
            self.report.bytes += bytes as u64;
            // At once: the next packet may be copied over this one.
            if self.report.received.is_multiple_of(SAMPLED) {
                self.verify()?;
            }
        }
        Ok(())
    }

    /// Give back what there is beside `kept` buffers, once it is a batch.
    fn make_available(
        &mut self,
        queue: &mut DriverQueue,
        kept: usize,
        setup: &LoadSetup,
    ) -> Result<bool, LoadError> {
        let room = queue.free().saturating_sub(kept);
        if room < setup.batch {
            return Ok(false);
        }
        self.slab.add(queue, room, true)?;
        queue.kick_soon()?;
        Ok(true)
    }

    #[inline]
    fn prefetch(&self, one: &Reaped, setup: &LoadSetup) {
        let host = self.slab.host(one.cookie);
        if setup.mergeable {
            prefetch(host);
        }
        prefetch(host.wrapping_add(setup.header_bytes));
    }

    /// Copy out what is in one used buffer.
    #[inline]
    fn take(
        &mut self,
        place: usize,
        queue: &DriverQueue,
        setup: &LoadSetup,
    ) -> Result<(), LoadError> {
        let Reaped { cookie, written } = self.reaped[place];
        let host = self.slab.host(cookie);
        let written = written as usize;
        let mut skip = 0;
        if self.left == 0 {
            skip = setup.header_bytes;
            if written < skip {
                self.report.malformed += 1;
                return Ok(());
            }
            self.left = if setup.mergeable { self.buffer_count(host, queue)? } else { 1 };
            self.start = (self.start + self.bytes).next_multiple_of(LINE_BYTES as usize);
            if self.start >= COPIES_BYTES {
                self.start = 0;
            }
            self.bytes = 0;
        }
        let into = self.start + self.bytes;
        let part = (written - skip).min(self.copies.len() - into);
        // SAFETY: a whole buffer of the slab, as long as what was written at least; the ring
        // checked that.
        unsafe { copy_from_shared(host.add(skip), &mut self.copies[into..into + part]) };
        self.bytes += part;
        self.left -= 1;
        if self.left == 0 {
            self.report.received += 1;
            self.report.bytes += self.bytes as u64;
            // At once: the next packet may be copied over this one.
            if self.report.received.is_multiple_of(SAMPLED) {
                self.verify()?;
            }
        }
        Ok(())
    }

    fn buffer_count(&self, host: *mut u8, queue: &DriverQueue) -> Result<u16, LoadError> {
        let mut raw = [0; 2];
        // SAFETY: a mergeable header has 12 bytes at least, and so has each buffer.
        unsafe { copy_from_shared(host.add(NUM_BUFFERS), &mut raw) };
        let count = u16::from_le_bytes(raw);
        if count == 0 || count > queue.setup().size {
            return Err(LoadError::BufferCount(count));
        }
        Ok(count)
    }

    fn verify(&mut self) -> Result<(), LoadError> {
        match check(&self.copies[self.start..self.start + self.bytes]) {
            Check::Sequence(sequence) if self.sequence.is_none_or(|last| last < sequence) => {
                self.sequence = Some(sequence);
                self.report.verified += 1;
            }
            Check::Right => self.report.verified += 1,
            Check::Unknown => {}
            Check::Sequence(_) | Check::Wrong => {
                return Err(LoadError::Mismatch(self.report.received - 1));
            }
        }
        Ok(())
    }
}

/// Notify the device where it wished so while something was published.
fn settle(
    transmit: Option<&mut DriverQueue>,
    receive: Option<&mut DriverQueue>,
) -> Result<(), QueueError> {
    transmit.into_iter().chain(receive).try_for_each(|queue| queue.kick().map(|_| ()))
}

/// A load for the queues of one pair; one of them may be missing. They are passed to each run.
pub struct Load {
    setup: LoadSetup,
    transmit: Option<Transmit>,
    receive: Option<Receive>,
}

impl Load {
    /// Put packet buffers at the guest addresses beside the queues; each needs [`slab_bytes`] there.
    /// Both queues must be empty.
    pub fn new(
        setup: LoadSetup,
        transmit: Option<(&DriverQueue, u64)>,
        receive: Option<(&DriverQueue, u64)>,
    ) -> Result<Self, QueueError> {
        let invalid = |text: String| Err(QueueError::Invalid(text));
        if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&setup.length) {
            return invalid(format!(
                "length {} is not in {FRAME_BYTES_MIN}..={FRAME_BYTES_MAX}",
                setup.length
            ));
        }
        if !matches!(setup.header_bytes, 10 | 12) || setup.mergeable && setup.header_bytes != 12 {
            return invalid(format!("header_bytes {} is not 12 (legacy: 10)", setup.header_bytes));
        }
        if (setup.buffer_bytes as usize) < setup.header_bytes + FRAME_BYTES_MIN
            || setup.buffer_bytes as usize > setup.header_bytes + FRAME_BYTES_MAX
        {
            return invalid(format!("buffer_bytes {} has no room for a frame", setup.buffer_bytes));
        }
        for (name, queue) in [("transmit", &transmit), ("receive", &receive)] {
            let Some((queue, _)) = queue else { continue };
            let size = usize::from(queue.setup().size);
            if setup.batch == 0 || setup.batch > size {
                return invalid(format!("batch {} is not in 1..={size}", setup.batch));
            }
            if queue.outstanding() > 0 {
                return invalid(format!("the {name} queue has buffers outstanding already"));
            }
        }
        if let Some(cpu) = setup.pin.filter(|cpu| !crate::pump::loopback::may_run_on(*cpu)) {
            return invalid(format!("pin names processor {cpu}, which this process may not use"));
        }
        let transmit = transmit
            .map(|(queue, addr)| {
                let bytes = setup.header_bytes + setup.length;
                let slab = Slab::new(queue, &setup, addr, bytes)?;
                for host in &slab.hosts {
                    // SAFETY: a whole buffer of the slab, not with the device yet.
                    unsafe { copy_to_shared(*host, &vec![0; setup.header_bytes]) };
                }
                let maker = Maker::new(setup.length);
                Ok::<_, QueueError>(Transmit { slab, asked: 0, maker, reaped: Vec::new(), done: 0 })
            })
            .transpose()?;
        let receive = receive
            .map(|(queue, addr)| {
                let slab = Slab::new(queue, &setup, addr, setup.buffer_bytes as usize)?;
                let most =
                    if setup.mergeable { FRAME_BYTES_MAX } else { setup.buffer_bytes as usize };
                Ok::<_, QueueError>(Receive {
                    slab,
                    copies: vec![0; COPIES_BYTES + most].into_boxed_slice(),
                    start: 0,
                    reaped: Vec::new(),
                    left: 0,
                    bytes: 0,
                    sequence: None,
                    report: LoadReport::default(),
                })
            })
            .transpose()?;
        Ok(Self { setup, transmit, receive })
    }

    /// Send and receive for `duration` (at most [`RUN_MAX`]) on the queues that it was made for.
    pub fn run(
        &mut self,
        mut transmit: Option<&mut DriverQueue>,
        mut receive: Option<&mut DriverQueue>,
        duration: Duration,
    ) -> Result<LoadReport, LoadError> {
        let before = self.count(transmit.as_deref(), receive.as_deref());
        if let Some(cpu) = self.setup.pin {
            run_on(cpu);
        }
        let start = Instant::now();
        let duration = duration.min(RUN_MAX);
        while start.elapsed() < duration {
            for _ in 0..ROUNDS {
                if !self.round(transmit.as_deref_mut(), receive.as_deref_mut())? {
                    settle(transmit.as_deref_mut(), receive.as_deref_mut())?;
                    std::hint::spin_loop();
                }
            }
        }
        settle(transmit.as_deref_mut(), receive.as_deref_mut())?;
        let seconds = start.elapsed().as_secs_f64();
        let after = self.count(transmit.as_deref(), receive.as_deref());
        Ok(LoadReport {
            seconds,
            transmitted: after.transmitted - before.transmitted,
            received: after.received - before.received,
            bytes: after.bytes - before.bytes,
            batches: after.batches - before.batches,
            kicks_sent: after.kicks_sent - before.kicks_sent,
            used_entries: after.used_entries - before.used_entries,
            verified: after.verified - before.verified,
            malformed: after.malformed - before.malformed,
        })
    }

    /// So many rounds, wherever we are; returns how many frames were sent or received.
    pub fn turn(
        &mut self,
        mut transmit: Option<&mut DriverQueue>,
        mut receive: Option<&mut DriverQueue>,
        rounds: usize,
    ) -> Result<u64, LoadError> {
        let before = self.count(transmit.as_deref(), receive.as_deref());
        for _ in 0..rounds {
            self.round(transmit.as_deref_mut(), receive.as_deref_mut())?;
        }
        let after = self.count(transmit.as_deref(), receive.as_deref());
        Ok(after.transmitted + after.received - before.transmitted - before.received)
    }

    /// One round of each queue; whether anything was done.
    #[inline]
    fn round(
        &mut self,
        transmit: Option<&mut DriverQueue>,
        receive: Option<&mut DriverQueue>,
    ) -> Result<bool, LoadError> {
        let mut progress = false;
        if let (Some(end), Some(queue)) = (&mut self.transmit, transmit) {
            progress |= end.round(queue, &self.setup)?;
        }
        if let (Some(end), Some(queue)) = (&mut self.receive, receive) {
            progress |= end.round(queue, &self.setup)?;
        }
        Ok(progress)
    }

    fn count(&self, transmit: Option<&DriverQueue>, receive: Option<&DriverQueue>) -> LoadReport {
        let mut report = self.receive.as_ref().map_or_else(Default::default, |end| end.report);
        report.transmitted = self.transmit.as_ref().map_or(0, |end| end.done);
        report.bytes += report.transmitted * self.setup.length as u64;
        for stats in transmit.into_iter().chain(receive).map(DriverQueue::stats) {
            report.batches += stats.batches;
            report.kicks_sent += stats.kicks_sent;
            report.used_entries += stats.used_entries;
        }
        report
    }
}
