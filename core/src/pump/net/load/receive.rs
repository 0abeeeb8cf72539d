//! The receive queue under load.

use std::ops::Range;

use super::slab::{LINE_BYTES, Slab};
use super::{LoadError, LoadReport, LoadSetup};
use crate::error::QueueError;
use crate::memory::{copy_frame_from_shared, copy_from_shared, prefetch};
use crate::pump::net::FRAME_BYTES_MAX;
use crate::pump::net::frame::{Check, check};
use crate::queue::DriverQueue;
use crate::ring::Reaped;

/// Where a header has `num_buffers`, if it has one.
const NUM_BUFFERS: usize = 10;

/// Receives frames, copies them out, and checks some.
pub(super) struct Receive {
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
    pub(super) report: LoadReport,
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
    /// Takes packet buffers at this guest address.
    pub(super) fn new(
        queue: &DriverQueue,
        setup: &LoadSetup,
        addr: u64,
    ) -> Result<Self, QueueError> {
        let slab = Slab::new(queue, setup, addr, setup.buffer_bytes as usize)?;
        let most = if setup.mergeable { FRAME_BYTES_MAX } else { setup.buffer_bytes as usize };
        Ok(Self {
            slab,
            copies: vec![0; COPIES_BYTES + most].into_boxed_slice(),
            start: 0,
            reaped: Vec::new(),
            left: 0,
            bytes: 0,
            sequence: None,
            report: LoadReport::default(),
        })
    }

    /// Whether anything came, or was given back.
    pub(super) fn round(
        &mut self,
        queue: &mut DriverQueue,
        setup: &LoadSetup,
    ) -> Result<bool, LoadError> {
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
