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
mod ram;
mod request;
mod stats;
mod store;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::error::QueueError;
use crate::pump::{Path, Wants};
use crate::queue::DeviceQueue;
use crate::ring::Batch;

pub use disk::{Disk, ID_BYTES, Limits, OpenError, Options, SECTOR_BYTES, SEGMENTS_MAX};
pub use stats::{Counts, Stats};

use request::{Outcome, Requests, Status, finish};

/// Requests taken at once.
const BATCH_MAX: usize = 64;
/// A round that moved so many bytes ends, so that the driver has its answers while we go on.
const ROUND_BYTES: u64 = 1 << 20;

/// Serves one queue of a disk.
pub struct BlkPath {
    disk: Arc<Disk>,
    stats: Arc<Stats>,
    batch: Batch,
    enabled: bool,
}

impl BlkPath {
    /// A path to `disk`.
    pub fn new(disk: Arc<Disk>) -> Self {
        Self { disk, stats: Arc::default(), batch: Batch::new(), enabled: true }
    }

    /// What the requests of this path came to; grows as it works.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Carries out the oldest requests of the batch, all but their statuses.
    fn execute(&self, counts: &mut Counts) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(self.batch.buffers.len());
        let vectors = Vec::new();
        let mut requests = Requests { disk: &self.disk, batch: &self.batch, counts, vectors };
        let mut bytes = 0;
        for buffer in &self.batch.buffers {
            outcomes.push(requests.execute(buffer));
            bytes += buffer.readable + buffer.writable;
            if bytes >= ROUND_BYTES {
                break;
            }
        }
        outcomes
    }

    /// One flush for all requests that wait for one.
    fn settle(&self, outcomes: &mut [Outcome]) {
        let waiting = || outcomes.iter().any(|outcome| outcome.flush);
        if waiting()
            && let Err(error) = self.disk.flush()
        {
            self.disk.note(&error);
            for outcome in outcomes.iter_mut().filter(|outcome| outcome.flush) {
                *outcome = Outcome::FAILED;
            }
        }
    }
}

impl Path for BlkPath {
    fn round(&mut self, queue: &mut DeviceQueue, enabled: bool) -> Result<usize, QueueError> {
        self.enabled = enabled;
        self.batch.clear();
        let taken = if enabled { queue.take(BATCH_MAX, &mut self.batch)? } else { 0 };
        if taken == 0 {
            if self.batch.memory().is_some_and(|memory| !Arc::ptr_eq(memory, queue.memory())) {
                self.batch = Batch::new(); // lets go of a memory that is no longer the queue's
            }
            return Ok(0);
        }
        let mut counts = Counts { batches: 1, ..Counts::default() };
        let mut outcomes = self.execute(&mut counts);
        queue.put_back(&mut self.batch, outcomes.len())?;
        self.settle(&mut outcomes);
        for outcome in &outcomes {
            counts.bytes_written += outcome.stored;
            counts.errors += u64::from(outcome.status == Status::IoError);
            counts.unsupported += u64::from(outcome.status == Status::Unsupported);
        }
        self.stats.add(&counts);
        self.disk.stats().add(&counts);
        for (index, outcome) in outcomes.iter().enumerate() {
            let written = finish(&self.batch, &self.batch.buffers[index], *outcome);
            queue.complete(&self.batch, index, written)?;
        }
        queue.notify()?;
        Ok(outcomes.len())
    }

    fn wants(&self) -> Wants {
        Wants { buffers: self.enabled, source: false }
    }
}
