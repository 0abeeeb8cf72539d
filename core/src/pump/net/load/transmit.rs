//! The transmit queue under load.

use super::slab::Slab;
use super::{LoadError, LoadSetup};
use crate::error::QueueError;
use crate::memory::{copy_to_shared, prefetch_write};
use crate::pump::net::frame::Maker;
use crate::queue::DriverQueue;
use crate::ring::Reaped;

/// Frames of the next batch whose lines are asked for beside those of this one.
const NEXT: usize = 16;

/// Sends frames.
pub(super) struct Transmit {
    slab: Slab,
    /// The next so many frames' lines were asked for.
    asked: usize,
    maker: Maker,
    reaped: Vec<Reaped>,
    /// Frames that the device has used.
    pub(super) done: u64,
}

impl Transmit {
    /// Takes packet buffers at this guest address.
    pub(super) fn new(
        queue: &DriverQueue,
        setup: &LoadSetup,
        addr: u64,
    ) -> Result<Self, QueueError> {
        let bytes = setup.header_bytes + setup.length;
        let slab = Slab::new(queue, setup, addr, bytes)?;
        for host in &slab.hosts {
            // SAFETY: a whole buffer of the slab, not with the device yet.
            unsafe { copy_to_shared(*host, &vec![0; setup.header_bytes]) };
        }
        let maker = Maker::new(setup.length);
        Ok(Self { slab, asked: 0, maker, reaped: Vec::new(), done: 0 })
    }

    /// Whether there was room for another batch.
    pub(super) fn round(
        &mut self,
        queue: &mut DriverQueue,
        setup: &LoadSetup,
    ) -> Result<bool, LoadError> {
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
