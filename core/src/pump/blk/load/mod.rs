//! The driver's side of a block device under load: a number of requests is kept in flight, each
//! looked at when it comes back, without the interpreter.
//!
//! Every request has a slot: a cache line with its header and its status (the device reads the one
//! and writes the other, so that the line changes hands once each way), and a block of its own for
//! the data. The payload of every write is written; of the reads that are sampled, every byte is
//! checked.

mod pattern;
mod report;

use std::fmt;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::SECTOR_BYTES;
use super::request::{HEADER_BYTES, kind};
use crate::error::QueueError;
use crate::memory::{Access, Mapping, Memory, copy_from_shared, copy_to_shared, streamed};
use crate::queue::DriverQueue;
use crate::ring::{Piece, QUEUE_SIZE_MAX, Reaped};

pub use pattern::Content;
pub use report::{Report, Tally};

use pattern::{Block, mix};

/// A header, and behind it the status.
const CONTROL_BYTES: u64 = 64;
const STATUS_AT: u64 = HEADER_BYTES;
/// Alignment of the data.
const PAGE_BYTES: u64 = 4096;
/// No device answers with this.
const NO_STATUS: u8 = 0xff;
/// The most data that one request may carry.
pub const BLOCK_BYTES_MAX: u32 = 1 << 24;
/// How long nothing at all may come back before the device is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a polling load that finds nothing looks at the clock.
const SPINS_PER_LOOK: u32 = 64;

/// What to load a device with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Sectors of 512 bytes to work on, from the first one.
    pub capacity_sectors: u64,
    /// Data bytes of a request, whole sectors.
    pub block_bytes: u32,
    /// Requests in flight on each queue.
    pub depth: u16,
    /// Requests that are made available at once, at most. Fewer than the depth, so that the device
    /// has something to do while the next ones are prepared.
    pub batch: u16,
    /// Of 100 requests, how many write; the others read.
    pub write_percent: u8,
    /// Blocks in an order that seems random; else one after the other.
    pub random: bool,
    /// Sleep until notified; else look again and again.
    pub event: bool,
    /// Another seed: other data, other random numbers.
    pub seed: u64,
    /// What reads should find; None: not looked at.
    pub verify: Option<Content>,
    /// Every so many reads one is checked.
    pub verify_every: u32,
}

impl Options {
    /// Whether a load can be made of them; why not, in words.
    pub fn check(&self) -> Result<(), String> {
        let block = u64::from(self.block_bytes);
        if block == 0 || !block.is_multiple_of(SECTOR_BYTES) || self.block_bytes > BLOCK_BYTES_MAX {
            return Err(format!(
                "block_bytes is {block}, not a multiple of {SECTOR_BYTES} up to {BLOCK_BYTES_MAX}"
            ));
        }
        if self.blocks() == 0 {
            return Err(format!(
                "capacity_sectors is {}, too few for one block of {block} bytes",
                self.capacity_sectors
            ));
        }
        if self.depth == 0 || u32::from(self.depth) > QUEUE_SIZE_MAX {
            return Err(format!("depth is {}, not in 1..={QUEUE_SIZE_MAX}", self.depth));
        }
        if self.batch == 0 {
            return Err("batch is 0, at least 1 is needed".into());
        }
        if self.write_percent > 100 {
            return Err(format!("write_percent is {}, not in 0..=100", self.write_percent));
        }
        if self.verify_every == 0 {
            return Err("verify_every is 0, at least 1 is needed".into());
        }
        Ok(())
    }

    /// Guest memory that a load on so many queues needs.
    pub fn arena_bytes(&self, queues: usize) -> u64 {
        let slots = queues as u64 * u64::from(self.depth);
        (slots * CONTROL_BYTES).next_multiple_of(PAGE_BYTES) + slots * u64::from(self.block_bytes)
    }

    /// Blocks to work on.
    pub fn blocks(&self) -> u64 {
        self.capacity_sectors / (u64::from(self.block_bytes) / SECTOR_BYTES).max(1)
    }
}

/// Why a load does not go on.
#[derive(Debug)]
pub enum LoadError {
    /// A queue broke, or has no room for a request.
    Queue(QueueError),
    /// Nothing came back for a while.
    Stalled {
        /// Requests in flight.
        outstanding: usize,
    },
}

impl From<QueueError> for LoadError {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(error) => error.fmt(f),
            Self::Stalled { outstanding } => write!(
                f,
                "none of {outstanding} requests came back within {} seconds",
                PATIENCE.as_secs()
            ),
        }
    }
}

/// When to begin no further request.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// At this time.
    Time(Instant),
    /// When each block was written once, in order.
    Fill,
}

#[derive(Clone, Copy)]
struct Slot {
    sector: u64,
    begun: Instant,
    write: bool,
    sampled: bool,
}

/// A run under way.
struct Run {
    goal: Goal,
    begun: Instant,
    last_answer: Instant,
    /// Blocks that were begun to be filled.
    filled: u64,
}

/// Keeps requests in flight on some queues.
pub struct Load {
    options: Options,
    /// Guest address of the slots, and where they are mapped.
    addr: u64,
    base: *mut u8,
    _mapping: Arc<Mapping>,
    slots: Vec<Slot>,
    /// By queue: the slots with nothing in flight.
    free: Vec<Vec<usize>>,
    dice: u64,
    next_block: u64,
    reads: u64,
    reaped: Vec<Reaped>,
    run: Option<Run>,
    report: Report,
}

// SAFETY: `base` points into `_mapping`, which any thread may use.
unsafe impl Send for Load {}

impl Load {
    /// A load on so many queues, with its slots at `addr`: `Options::arena_bytes` of one region that
    /// nobody else uses. The options must be checked.
    pub fn new(
        memory: &Memory,
        addr: u64,
        queues: usize,
        options: Options,
    ) -> Result<Self, QueueError> {
        let length = options.arena_bytes(queues);
        let (base, mapping) = memory.contiguous(addr, length, Access::Write)?;
        let depth = usize::from(options.depth);
        let now = Instant::now();
        let slot = Slot { sector: 0, begun: now, write: false, sampled: false };
        let lane = |at: usize| (at * depth..(at + 1) * depth).rev().collect();
        Ok(Self {
            addr,
            base,
            _mapping: mapping,
            slots: vec![slot; queues * depth],
            free: (0..queues).map(lane).collect(),
            dice: mix(options.seed),
            next_block: 0,
            reads: 0,
            reaped: Vec::with_capacity(depth),
            run: None,
            report: Report::default(),
            options,
        })
    }

    /// What it was made of.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Requests in flight.
    pub fn outstanding(&self) -> usize {
        self.slots.len() - self.free.iter().map(Vec::len).sum::<usize>()
    }

    /// What was seen since `begin`.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Begins a run, which `advance` carries on.
    pub fn begin(&mut self, goal: Goal) {
        self.report.clear();
        let now = Instant::now();
        self.run = Some(Run { goal, begun: now, last_answer: now, filled: 0 });
    }

    /// Carries the run on until `pause` or its end; true at its end, when nothing is in flight. The
    /// queues must be those that the load was made for, in the same order.
    pub fn advance(
        &mut self,
        queues: &mut [&mut DriverQueue],
        pause: Instant,
    ) -> Result<bool, LoadError> {
        let Some(mut run) = self.run.take() else { return Ok(true) };
        for queue in queues.iter_mut() {
            queue.disable_calls(); // asked for only while waiting
        }
        let cpu = thread_cpu();
        let before = Sums::of(queues);
        let result = self.work(&mut run, queues, pause);
        Sums::of(queues).add_difference(before, &mut self.report.tally);
        self.report.cpu_seconds += (thread_cpu() - cpu).as_secs_f64();
        self.report.seconds = (run.last_answer - run.begun).as_secs_f64();
        if !matches!(result, Ok(true)) {
            self.run = Some(run);
        }
        result
    }

    fn work(
        &mut self,
        run: &mut Run,
        queues: &mut [&mut DriverQueue],
        pause: Instant,
    ) -> Result<bool, LoadError> {
        let mut now = Instant::now();
        let mut spins = 0;
        loop {
            let answers = self.reap(queues, &mut now)?;
            if answers > 0 {
                run.last_answer = now;
            }
            self.begin_requests(run, queues, now)?;
            if self.outstanding() == 0 {
                return Ok(true);
            }
            if answers > 0 {
                if now >= pause {
                    return Ok(false);
                }
                continue;
            }
            spins += 1;
            if self.options.event {
                wait(queues, pause)?;
            } else if spins < SPINS_PER_LOOK {
                std::hint::spin_loop();
                continue;
            }
            spins = 0;
            now = Instant::now();
            if now - run.last_answer > PATIENCE {
                return Err(LoadError::Stalled { outstanding: self.outstanding() });
            }
            if now >= pause {
                return Ok(false);
            }
        }
    }

    /// Looks at everything that came back; returns how much. Sets the time if there was something.
    fn reap(
        &mut self,
        queues: &mut [&mut DriverQueue],
        now: &mut Instant,
    ) -> Result<usize, LoadError> {
        let mut answers = 0;
        for (lane, queue) in queues.iter_mut().enumerate() {
            self.reaped.clear();
            let count = queue.reap(usize::MAX, &mut self.reaped)?;
            if count == 0 {
                continue;
            }
            answers += count;
            *now = Instant::now();
            for index in 0..count {
                let slot = self.reaped[index].cookie as usize;
                self.finish(slot, *now);
                self.free[lane].push(slot);
            }
        }
        Ok(answers)
    }

    fn finish(&mut self, index: usize, now: Instant) {
        let slot = self.slots[index];
        let latency = u64::try_from((now - slot.begun).as_nanos()).unwrap_or(u64::MAX);
        self.report.latency_ns.saturating_record(latency.max(1));
        let mut status = [0];
        // SAFETY: the control line lies in the mapping.
        unsafe { copy_from_shared(self.control(index).add(STATUS_AT as usize), &mut status) };
        let tally = &mut self.report.tally;
        tally.requests += 1;
        *(if slot.write { &mut tally.writes } else { &mut tally.reads }) += 1;
        let way = if slot.write { "writing" } else { "reading" };
        if status != [0] {
            tally.errors += 1;
            return self.report.fail(|| {
                format!("{way} at sector {} ended with status {}", slot.sector, status[0])
            });
        }
        tally.bytes += u64::from(self.options.block_bytes);
        if let (true, Some(content)) = (slot.sampled, self.options.verify) {
            tally.verified += 1;
            let (block, seed) = (self.block(index), self.options.seed);
            // SAFETY: the block lies in the mapping.
            if let Some(sector) = unsafe { block.differing(slot.sector, seed, content) } {
                self.report.tally.mismatches += 1;
                self.report.fail(|| format!("sector {sector} was read with other bytes"));
            }
        }
    }

    /// Makes a request of every free slot, until the goal is reached.
    fn begin_requests(
        &mut self,
        run: &mut Run,
        queues: &mut [&mut DriverQueue],
        now: Instant,
    ) -> Result<(), LoadError> {
        for (lane, queue) in queues.iter_mut().enumerate() {
            let mut added = 0;
            while let Some(&slot) = self.free[lane].last() {
                let Some((block, write)) = self.next(run, now) else { break };
                self.prepare(slot, block, write, now);
                let (readable, writable) = self.pieces(slot);
                let stored = usize::from(write);
                queue.add(&readable[..1 + stored], &writable[stored..], slot as u64)?;
                self.free[lane].pop();
                added += 1;
                if added == self.options.batch {
                    streamed();
                    queue.kick()?;
                    added = 0;
                }
            }
            if added > 0 {
                streamed();
                queue.kick()?;
            }
        }
        Ok(())
    }

    /// The next block, and whether to write it; None when the goal is reached.
    fn next(&mut self, run: &mut Run, now: Instant) -> Option<(u64, bool)> {
        let blocks = self.options.blocks();
        match run.goal {
            Goal::Time(end) if now >= end => None,
            Goal::Fill if run.filled == blocks => None,
            Goal::Fill => {
                run.filled += 1;
                Some((run.filled - 1, true))
            }
            Goal::Time(_) => {
                let block = if self.options.random {
                    ((u128::from(self.roll()) * u128::from(blocks)) >> 64) as u64
                } else {
                    let block = self.next_block;
                    self.next_block = (block + 1) % blocks;
                    block
                };
                let write = match self.options.write_percent {
                    0 => false,
                    100 => true,
                    percent => self.roll() % 100 < u64::from(percent),
                };
                Some((block, write))
            }
        }
    }

    fn roll(&mut self) -> u64 {
        self.dice = self.dice.wrapping_add(1);
        mix(self.dice)
    }

    /// Writes header, status and data of a request.
    fn prepare(&mut self, index: usize, block: u64, write: bool, now: Instant) {
        let sector = block * (u64::from(self.options.block_bytes) / SECTOR_BYTES);
        let sampled = !write && self.options.verify.is_some() && {
            self.reads += 1;
            self.reads.is_multiple_of(self.options.verify_every.into())
        };
        self.slots[index] = Slot { sector, begun: now, write, sampled };
        let mut control = [0; STATUS_AT as usize + 1];
        let kind = if write { kind::OUT } else { kind::IN };
        control[..4].copy_from_slice(&kind.to_le_bytes());
        control[8..16].copy_from_slice(&sector.to_le_bytes());
        control[STATUS_AT as usize] = NO_STATUS;
        let data = self.block(index);
        // SAFETY: all of it lies in the mapping, and nothing of it is with the device.
        unsafe {
            copy_to_shared(self.control(index), &control);
            if write {
                data.fill(sector, self.options.seed);
            } else if sampled {
                data.spoil();
            }
        }
    }

    /// Header and data to write; room for data and status. A request has its data once.
    fn pieces(&self, index: usize) -> ([Piece; 2], [Piece; 2]) {
        let control = self.addr + index as u64 * CONTROL_BYTES;
        let header = Piece { addr: control, len: HEADER_BYTES as u32 };
        let data =
            Piece { addr: self.addr + self.block_offset(index), len: self.options.block_bytes };
        let status = Piece { addr: control + STATUS_AT, len: 1 };
        ([header, data], [data, status])
    }

    fn control(&self, index: usize) -> *mut u8 {
        self.base.wrapping_add(index * CONTROL_BYTES as usize)
    }

    fn block(&self, index: usize) -> Block {
        let ptr = self.base.wrapping_add(self.block_offset(index) as usize);
        Block { ptr, bytes: self.options.block_bytes as usize }
    }

    fn block_offset(&self, index: usize) -> u64 {
        let controls = (self.slots.len() as u64 * CONTROL_BYTES).next_multiple_of(PAGE_BYTES);
        controls + index as u64 * u64::from(self.options.block_bytes)
    }
}

/// Counters of all queues together.
#[derive(Clone, Copy, Default)]
struct Sums {
    batches: u64,
    kicks: u64,
    calls: u64,
    used_entries: u64,
}

impl Sums {
    fn of(queues: &[&mut DriverQueue]) -> Self {
        queues.iter().map(|queue| queue.stats()).fold(Self::default(), |sums, stats| Self {
            batches: sums.batches + stats.batches,
            kicks: sums.kicks + stats.kicks_sent,
            calls: sums.calls + stats.calls_received,
            used_entries: sums.used_entries + stats.used_entries,
        })
    }

    fn add_difference(self, before: Self, tally: &mut Tally) {
        tally.batches += self.batches - before.batches;
        tally.kicks += self.kicks - before.kicks;
        tally.calls += self.calls - before.calls;
        tally.used_entries += self.used_entries - before.used_entries;
    }
}

/// Sleeps until a device has used something, or until `pause`.
fn wait(queues: &mut [&mut DriverQueue], pause: Instant) -> Result<(), QueueError> {
    let mut entries = [libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 }; 8];
    let mut many = Vec::new();
    let entries = match entries.get_mut(..queues.len()) {
        Some(few) => few,
        None => {
            many.resize(queues.len(), libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 });
            &mut many[..]
        }
    };
    let mut ready = false;
    for (entry, queue) in entries.iter_mut().zip(queues.iter_mut()) {
        ready |= queue.enable_calls() || queue.broken().is_some();
        let Some(call) = queue.call_event() else {
            return Err(QueueError::Invalid("the queue has no call eventfd to wait for".into()));
        };
        entry.fd = call.fd().as_raw_fd();
    }
    if !ready {
        let left = pause.saturating_duration_since(Instant::now());
        let timeout = libc::timespec {
            tv_sec: left.as_secs() as libc::time_t,
            tv_nsec: left.subsec_nanos().into(),
        };
        // SAFETY: the entries and the descriptors that they name live during the call. A signal
        // ends it early, which costs one look.
        unsafe {
            let count = entries.len() as libc::nfds_t;
            libc::ppoll(entries.as_mut_ptr(), count, &timeout, std::ptr::null());
        }
    }
    for (entry, queue) in entries.iter().zip(queues.iter_mut()) {
        if entry.revents != 0 {
            queue.drain_call();
        }
        queue.disable_calls();
    }
    Ok(())
}

/// Time that this thread has been running.
fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills the structure.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
