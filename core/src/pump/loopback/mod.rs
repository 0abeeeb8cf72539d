//! Both halves of a virtqueue at work against each other, on two threads: what a kind of ring is
//! worth, with nothing around it.
//!
//! Both ends do all the work that a data path has: the sender writes every payload, the receiver
//! copies it out, whatever the other half wrote is checked, and one payload in 32 is compared with what
//! it must be.

mod device;
mod driver;
mod lane;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::QueueError;
use crate::event::{Event, sleep};
use crate::memory::MAX_REGIONS;
use crate::ring::{QUEUE_SIZE_MAX, feature};
use device::DeviceEnd;
use driver::DriverEnd;

/// The longest that one run may take.
pub const RUN_MAX: Duration = Duration::from_secs(60);
/// The most bytes that a buffer may have.
pub const LENGTH_MAX: u32 = 1 << 16;
/// Buffers whose copies are kept apart: those of one burst, so that they stay in the first cache.
const COPIES: usize = 32;
/// Rounds between two looks at the clock.
const ROUNDS: usize = 64;
/// How long an end that sleeps may miss the end of the run.
const NAP_MS: i32 = 20;

/// Which way the payloads go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the driver to the device.
    Send,
    /// From the device to the driver.
    Receive,
    /// Both, in a queue each; each end serves its two halves in turn.
    Both,
}

/// What is to be run.
#[derive(Clone, Debug)]
pub struct LoopSetup {
    /// Negotiated features; those that shape a ring count.
    pub features: u64,
    /// Slots of each queue.
    pub size: u16,
    /// Which way the payloads go.
    pub direction: Direction,
    /// Buffers that are published, taken and used at once.
    pub batch: usize,
    /// Pieces of each buffer.
    pub chain: usize,
    /// Bytes of each buffer, all pieces together.
    pub length: u32,
    /// Chains in indirect tables.
    pub indirect: bool,
    /// Sleep until notified instead of polling.
    pub event: bool,
    /// Regions of memory that the buffers are spread over.
    pub regions: usize,
    /// Buffers outstanding at the most, which are used again and again; None: as many as fit.
    pub depth: Option<usize>,
    /// Each buffer on a page of its own, at offsets that do not depend on `regions`; else they are
    /// neighbours.
    pub spread: bool,
    /// Processors of driver and device.
    pub pin: Option<(usize, usize)>,
}

impl LoopSetup {
    fn check(&self) -> Result<(), QueueError> {
        let invalid = |text: String| Err(QueueError::Invalid(text));
        if !(1..=QUEUE_SIZE_MAX).contains(&self.size.into()) {
            return invalid(format!("size {} is not in 1..={QUEUE_SIZE_MAX}", self.size));
        }
        let size = usize::from(self.size);
        if self.chain == 0 || self.chain > size {
            return invalid(format!("chain {} is not in 1..={size}, the queue size", self.chain));
        }
        let most = self.buffers();
        if self.depth.is_some_and(|depth| depth == 0 || depth > size / self.slots()) {
            return invalid(format!(
                "depth {} is not in 1..={}, the buffers that fit into the queue",
                self.depth.unwrap_or_default(),
                size / self.slots()
            ));
        }
        if self.batch == 0 || self.batch > most {
            return invalid(format!(
                "batch {} is not in 1..={most}, the buffers that may be outstanding",
                self.batch
            ));
        }
        let least = self.chain.max(1);
        if (self.length as usize) < least || self.length > LENGTH_MAX {
            return invalid(format!(
                "length {} is not in {least}..={LENGTH_MAX}, a byte or more for each piece",
                self.length
            ));
        }
        if self.regions == 0 || self.regions > MAX_REGIONS {
            return invalid(format!("regions {} is not in 1..={MAX_REGIONS}", self.regions));
        }
        for cpu in self.pin.iter().flat_map(|&(driver, device)| [driver, device]) {
            if !may_run_on(cpu) {
                return invalid(format!(
                    "pin names processor {cpu}, which this process may not use"
                ));
            }
        }
        Ok(())
    }

    /// Slots that each buffer takes.
    fn slots(&self) -> usize {
        if self.indirect { 1 } else { self.chain }
    }

    /// Buffers that may be outstanding.
    fn buffers(&self) -> usize {
        self.depth.unwrap_or(usize::from(self.size) / self.slots())
    }

    /// Negotiated features with what the other fields ask for.
    fn negotiated(&self) -> u64 {
        self.features | if self.indirect { feature::INDIRECT_DESC } else { 0 }
    }
}

/// Whether a thread of this process may be pinned to a processor.
pub fn may_run_on(cpu: usize) -> bool {
    // SAFETY: a plain bit set that the call fills; the index is checked.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) == 0
            && cpu < 8 * size_of::<libc::cpu_set_t>()
            && libc::CPU_ISSET(cpu, &set)
    }
}

/// Pin the calling thread. A processor that went away since it was checked leaves it where it is.
pub fn run_on(cpu: usize) {
    // SAFETY: as in `may_run_on`.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if cpu < 8 * size_of::<libc::cpu_set_t>() {
            libc::CPU_SET(cpu, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
        }
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoopReport {
    /// Buffers that went all the way: sent, received, used and seen used by the driver.
    pub buffers: u64,
    /// How long it took.
    pub seconds: f64,
    /// Batches that the device took.
    pub batches: u64,
    /// Available buffer notifications.
    pub kicks_sent: u64,
    /// Used buffer notifications.
    pub calls_sent: u64,
    /// Used elements or descriptors that the device wrote.
    pub used_entries: u64,
    /// Bytes of the payloads.
    pub bytes: u64,
    /// Payloads that were compared.
    pub verified: u64,
}

impl LoopReport {
    fn since(&self, before: &Self, seconds: f64) -> Self {
        Self {
            buffers: self.buffers - before.buffers,
            seconds,
            batches: self.batches - before.batches,
            kicks_sent: self.kicks_sent - before.kicks_sent,
            calls_sent: self.calls_sent - before.calls_sent,
            used_entries: self.used_entries - before.used_entries,
            bytes: self.bytes - before.bytes,
            verified: self.verified - before.verified,
        }
    }
}

/// Why a run ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoopError {
    /// One half found a fault in what the other wrote.
    Queue(QueueError),
    /// A payload is not what was sent.
    Mismatch {
        /// The how-manieth buffer it was.
        buffer: u64,
        /// Who received it.
        receiver: &'static str,
    },
}

impl From<QueueError> for LoopError {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

impl std::fmt::Display for LoopError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Queue(error) => error.fmt(f),
            Self::Mismatch { buffer, receiver } => {
                write!(
                    f,
                    "the {receiver} received another payload in buffer {buffer} than was sent"
                )
            }
        }
    }
}

impl std::error::Error for LoopError {}

/// One or two queues with both halves, ready to run.
pub struct RingLoop {
    setup: LoopSetup,
    driver: DriverEnd,
    device: DeviceEnd,
}

impl RingLoop {
    /// Set up memory and queues. Fails for what makes no sense, naming it.
    pub fn new(setup: LoopSetup) -> Result<Self, QueueError> {
        setup.check()?;
        let mut driver = DriverEnd::default();
        let mut device = DeviceEnd::default();
        if setup.direction != Direction::Receive {
            let (sender, receiver) = lane::build(&setup, false)?;
            driver.sender = Some(driver::Sender::new(sender, &setup));
            device.receiver = Some(device::Receiver::new(receiver, &setup));
        }
        if setup.direction != Direction::Send {
            let (receiver, sender) = lane::build(&setup, true)?;
            driver.receiver = Some(driver::Receiver::new(receiver, &setup));
            device.sender = Some(device::Sender::new(sender, &setup));
        }
        Ok(Self { setup, driver, device })
    }

    /// Run both halves for `duration` (at most [`RUN_MAX`]). Can be called again and again; after an
    /// error it says the same.
    pub fn run(&mut self, duration: Duration) -> Result<LoopReport, LoopError> {
        let duration = duration.min(RUN_MAX);
        let before = self.count();
        let stop = AtomicBool::new(false);
        let (driver, device, setup) = (&mut self.driver, &mut self.device, &self.setup);
        let start = Instant::now();
        let (seconds, ended) = std::thread::scope(|scope| {
            let far = scope.spawn(|| {
                setup.pin.iter().for_each(|pin| run_on(pin.1));
                stopping(&stop, || device.work(setup.event, &stop))
            });
            let near = scope.spawn(|| {
                setup.pin.iter().for_each(|pin| run_on(pin.0));
                let done = stopping(&stop, || driver.work(setup.event, &stop, start + duration));
                (start.elapsed().as_secs_f64(), done)
            });
            let (seconds, near) =
                near.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let far = far.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (seconds, near.and(far))
        });
        ended?;
        Ok(self.count().since(&before, seconds))
    }

    /// One end after the other on this thread, each until it finds nothing to do, until so many buffers
    /// went all the way: the same steps each time, to count instructions and notifications by.
    pub fn alternate(&mut self, buffers: u64) -> Result<LoopReport, LoopError> {
        let before = self.count();
        let start = Instant::now();
        let event = self.setup.event;
        loop {
            while self.driver.turn(event)? {}
            if event {
                self.driver.ask()?;
            }
            while self.device.turn(event)? {}
            if event {
                self.device.ask()?;
            }
            let done = self.count().since(&before, start.elapsed().as_secs_f64());
            if done.buffers >= buffers {
                return Ok(done);
            }
        }
    }

    fn count(&self) -> LoopReport {
        let mut report = LoopReport::default();
        self.driver.count(&mut report);
        self.device.count(&mut report);
        report.bytes = report.buffers * u64::from(self.setup.length);
        report
    }
}

/// Stop the other end when this one ends, however it does.
fn stopping<T>(stop: &AtomicBool, work: impl FnOnce() -> T) -> T {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let _stop = Stop(stop);
    work()
}

/// Wait until one of the events was signalled, for [`NAP_MS`] at most.
fn nap<'a>(events: impl Iterator<Item = &'a Event>) {
    sleep(&events.map(Event::fd).collect::<Vec<_>>(), NAP_MS);
}

/// Where copies go: room for the payloads of one burst.
struct Copies {
    bytes: Box<[u8]>,
    length: usize,
}

impl Copies {
    fn new(length: u32) -> Self {
        let length = length as usize;
        Self { bytes: vec![0; length.next_multiple_of(64) * COPIES].into_boxed_slice(), length }
    }

    #[inline]
    fn slot(&mut self, number: usize) -> &mut [u8] {
        let start = (number % COPIES) * self.length.next_multiple_of(64);
        &mut self.bytes[start..start + self.length]
    }
}

/// Every eight bytes of a payload are the number of its buffer.
fn matches(payload: &[u8], number: u64) -> bool {
    let mut words = payload.chunks_exact(8);
    let same = |word: &[u8]| u64::from_ne_bytes(word.try_into().expect("eight bytes")) == number;
    words.by_ref().all(same) && words.remainder() == &number.to_ne_bytes()[..payload.len() % 8]
}

/// Whether a burst of `count` buffers behind `done` has one whose turn it is to be compared: at least
/// one in so many is.
fn is_sampled(done: u64, count: usize) -> bool {
    (done + count as u64) / SAMPLED != done / SAMPLED
}

/// Of so many payloads one is compared, the last one of its burst.
const SAMPLED: u64 = 32;
