//! The data path of a block device (5.2): requests are carried out directly between guest memory
//! and a file, a batch at a time.
//!
//! Whatever the file or the driver does wrong ends as the status of that request: IOERR for what
//! failed or makes no sense, UNSUPP for what this device does not know. A request without room for
//! a status is used with nothing written. Every other one is used with its whole device-writable
//! part written, zeroes where there is nothing to tell, so that IN_ORDER may skip it (2.7.9).

mod direct;
mod disk;
pub mod load;
mod mover;
mod ram;
mod request;
mod stats;
mod store;
#[cfg(test)]
mod tests;
mod uring;

use std::io;
use std::sync::Arc;

use libc::iovec;

use crate::error::QueueError;
use crate::pump::{Path, Wants};
use crate::queue::DeviceQueue;
use crate::ring::Batch;

pub use disk::{Disk, ID_BYTES, Limits, OpenError, Options, SECTOR_BYTES, SEGMENTS_MAX};
pub use stats::{Counts, Stats};

use mover::{Engine, Mover};
use request::{Header, Outcome, Progress, Requests, Status, finish};

/// Requests taken at once.
const BATCH_MAX: usize = 64;
/// Requests after which a round takes no more, though some are still under way.
const ROUND_REQUESTS: usize = 256;
/// A batch that moved so many bytes ends, so that the driver has its answers while we go on.
const BATCH_BYTES: u64 = 1 << 20;

/// Serves one queue of a disk.
pub struct BlkPath {
    disk: Arc<Disk>,
    stats: Arc<Stats>,
    /// Before the batch, so that it lets go of the memory first.
    engine: Engine,
    batch: Batch,
    enabled: bool,
    polling: bool,
    room: Room,
}

/// What a round works with, kept for the next.
#[derive(Default)]
struct Room {
    /// Of the requests taken last.
    headers: Vec<Option<Header>>,
    /// Of the batch, by index.
    progress: Vec<Progress>,
    /// Indices of those that can be answered.
    ready: Vec<usize>,
    finished: Vec<(usize, io::Result<()>)>,
    vectors: Vec<iovec>,
}

// SAFETY: the vectors are left over from the last transfer; nobody follows them.
unsafe impl Send for Room {}

impl BlkPath {
    /// A path to `disk`.
    pub fn new(disk: Arc<Disk>) -> Self {
        Self {
            engine: if disk.io_uring() { Engine::Idle } else { Engine::Refused },
            disk,
            stats: Arc::default(),
            batch: Batch::new(),
            enabled: true,
            polling: false,
            room: Room::default(),
        }
    }

    /// Look for the storage's answers again and again before sleeping.
    pub fn polling(self, polling: bool) -> Self {
        Self { polling, ..self }
    }

    /// What the requests of this path came to; grows as it works.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Takes requests, carries them out and answers them, and goes on doing so while some are under
    /// way; none is when it returns.
    fn serve(&mut self, queue: &mut DeviceQueue) -> Result<usize, QueueError> {
        let Self { disk, stats, batch, engine, room, .. } = self;
        room.progress.clear();
        let mover = Mover::new(disk, engine, self.polling, &mut room.finished);
        let counts = Counts { batches: 1, ..Counts::default() };
        let mut round = Round {
            disk,
            stats,
            queue,
            batch,
            mover,
            counts,
            headers: &mut room.headers,
            progress: &mut room.progress,
            ready: &mut room.ready,
            vectors: &mut room.vectors,
        };
        let mut served = 0;
        loop {
            let taken = match round.take() {
                // The next round meets it again, when nothing is under way any more.
                Err(_) if round.mover.in_flight() > 0 => 0,
                taken => taken?,
            };
            if taken > 0 {
                round.begin()?;
            }
            round.mover.submit();
            served += round.answer()?;
            if round.mover.in_flight() == 0 {
                return Ok(served);
            }
        }
    }
}

/// A round under way.
struct Round<'a> {
    disk: &'a Disk,
    stats: &'a Stats,
    queue: &'a mut DeviceQueue,
    batch: &'a mut Batch,
    mover: Mover<'a>,
    counts: Counts,
    headers: &'a mut Vec<Option<Header>>,
    progress: &'a mut Vec<Progress>,
    ready: &'a mut Vec<usize>,
    vectors: &'a mut Vec<iovec>,
}

impl Round<'_> {
    fn take(&mut self) -> Result<usize, QueueError> {
        match self.batch.buffers.len() {
            ROUND_REQUESTS.. => Ok(0),
            held => self.queue.take(BATCH_MAX.min(ROUND_REQUESTS - held), self.batch),
        }
    }

    /// Carries out what was taken, all but the statuses, or puts it under way.
    fn begin(&mut self) -> Result<(), QueueError> {
        let first = self.progress.len();
        let mut requests = Requests {
            disk: self.disk,
            batch: self.batch,
            mover: &mut self.mover,
            counts: &mut self.counts,
            vectors: self.vectors,
        };
        self.headers.clear();
        let new = &self.batch.buffers[first..];
        self.headers.extend(new.iter().map(|buffer| Header::read(requests.batch, buffer)));
        let mut bytes = 0;
        for (at, buffer) in new.iter().enumerate() {
            if let Some(&next) = self.headers.get(at + 1) {
                requests.prefetch(first + at + 1, next);
            }
            let index = first + at;
            let progress = requests.execute(index, self.headers[at]);
            self.progress.push(progress);
            if matches!(progress, Progress::Ready(_)) {
                self.ready.push(index);
            }
            bytes += buffer.readable + buffer.writable;
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        self.queue.put_back(self.batch, self.progress.len())?;
        Ok(())
    }

    /// Answers what can be answered, and waits for something if there is nothing; returns how much.
    fn answer(&mut self) -> Result<usize, QueueError> {
        if self.ready.is_empty() {
            self.mover.wait();
        }
        for (index, result) in self.mover.finished() {
            if let Progress::Moving(outcome) = self.progress[index] {
                let outcome = match result {
                    Ok(()) => outcome,
                    Err(error) => {
                        self.disk.note(&error);
                        Outcome::FAILED
                    }
                };
                self.progress[index] = Progress::Ready(outcome);
                self.ready.push(index);
            }
        }
        if self.ready.is_empty() {
            return Ok(0);
        }
        self.settle();
        for &index in &*self.ready {
            let Progress::Ready(outcome) = self.progress[index] else { continue };
            self.counts.bytes_read += outcome.loaded;
            self.counts.bytes_written += outcome.stored;
            self.counts.errors += u64::from(outcome.status == Status::IoError);
            self.counts.unsupported += u64::from(outcome.status == Status::Unsupported);
        }
        self.count();
        if let Some(ram) = self.disk.ram() {
            ram.settle();
        }
        for &index in &*self.ready {
            let Progress::Ready(outcome) = self.progress[index] else { continue };
            let written = finish(self.batch, &self.batch.buffers[index], outcome);
            self.queue.complete(self.batch, index, written)?;
        }
        let answered = self.ready.len();
        self.ready.clear();
        self.queue.notify()?;
        Ok(answered)
    }

    /// Before the driver has the answers, so that it finds them counted.
    fn count(&mut self) {
        (self.counts.queued, self.counts.submissions) = self.mover.take_counts();
        let counts = std::mem::take(&mut self.counts);
        self.stats.add(&counts);
        self.disk.stats().add(&counts);
    }

    /// One flush for all requests that wait for one.
    fn settle(&mut self) {
        let waits = |progress: &Progress| matches!(progress, Progress::Ready(it) if it.flush);
        if self.ready.iter().any(|&index| waits(&self.progress[index]))
            && let Err(error) = self.disk.flush()
        {
            self.disk.note(&error);
            for &index in &*self.ready {
                if waits(&self.progress[index]) {
                    self.progress[index] = Progress::Ready(Outcome::FAILED);
                }
            }
        }
    }
}

impl Path for BlkPath {
    fn round(&mut self, queue: &mut DeviceQueue, enabled: bool) -> Result<usize, QueueError> {
        self.enabled = enabled;
        self.batch.clear();
        let served = if enabled { self.serve(queue)? } else { 0 };
        if served == 0 && self.batch.memory().is_some_and(|held| !Arc::ptr_eq(held, queue.memory()))
        {
            self.batch = Batch::new(); // lets go of a memory that is no longer the queue's
        }
        Ok(served)
    }

    fn wants(&self) -> Wants {
        Wants { buffers: self.enabled, source: false }
    }
}
