//! From the port to the driver.

use std::os::fd::BorrowedFd;

use super::{
    BATCH, FRAME_BYTES_MAX, FRAME_BYTES_MIN, HEADER_BYTES, Ledger, NUM_BUFFERS_OFFSET, Receiver,
    Tally,
};
use crate::error::QueueError;
use crate::memory::prefetch_write;
use crate::pump::{Path, Wants};
use crate::queue::DeviceQueue;
use crate::ring::{Batch, Burst};

const BUFFERS: Wants = Wants { buffers: true, source: false };
const PACKETS: Wants = Wants { buffers: false, source: true };
const NOTHING: Wants = Wants { buffers: false, source: false };

/// Buffers behind a full burst whose lines are asked for as well. The driver has read them last: those of
/// the next burst come while this one is written.
const AHEAD: usize = 16;

/// A VLAN tag may come on top of the MTU, as the Ethernet header does.
const VLAN_BYTES: usize = 4;
const VLAN_TYPES: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
/// Where the header has `gso_type`, and its bit that is no type.
const GSO_TYPE_OFFSET: usize = 1;
const GSO_ECN: u8 = 0x80;

/// Fills a driver's receive buffers with the packets of a port.
///
/// Mergeable: a packet is spread over as many buffers as it needs, all but the last filled, and all of
/// them are used together. Else it gets one buffer, and if it does not fit it is dropped and the
/// buffer stays. A packet for which there are not enough buffers waits for them. Disabled, nothing is
/// taken from the port.
pub struct ReceivePath {
    receiver: Box<dyn Receiver>,
    ledger: Ledger,
    mergeable: bool,
    frame_bytes_max: usize,
    burst: Burst,
    batch: Batch,
    /// The first buffer of the batch that is not completed.
    next: usize,
    /// Buffers of the last burst that were not filled, though their lines were asked for.
    asked: usize,
    /// The packet whose turn it is; empty if there is none.
    packet: Vec<u8>,
    wants: Wants,
}

enum Placed {
    Done,
    TooLarge,
    /// There are too few buffers now.
    Later,
}

impl ReceivePath {
    pub(super) fn new(
        receiver: Box<dyn Receiver>,
        ledger: Ledger,
        mergeable: bool,
        mtu: Option<u16>,
    ) -> Self {
        Self {
            receiver,
            ledger,
            mergeable,
            frame_bytes_max: mtu.map_or(FRAME_BYTES_MAX, |mtu| FRAME_BYTES_MIN + usize::from(mtu)),
            burst: Burst::new(),
            batch: Batch::new(),
            next: 0,
            asked: 0,
            packet: Vec::new(),
            wants: PACKETS,
        }
    }

    /// Let the port fill plain buffers, one packet each; None where that is not possible.
    fn fill(
        &mut self,
        queue: &mut DeviceQueue,
        tally: &mut Tally,
    ) -> Result<Option<usize>, QueueError> {
        if !self.packet.is_empty() || !self.receiver.fills() {
            return Ok(None);
        }
        if queue.gather(BATCH + AHEAD, true, &mut self.burst)? == 0 {
            if self.burst.is_blocked() {
                return Ok(None);
            }
            self.wants = BUFFERS;
            return Ok(Some(0));
        }
        let segments = self.burst.segments();
        for segment in segments.iter().skip(self.asked) {
            prefetch_write(segment.ptr.wrapping_add(HEADER_BYTES));
        }
        let found = segments.len();
        let filled = self.receiver.fill(&mut self.burst, BATCH, self.frame_bytes_max, tally);
        self.asked = found - filled;
        queue.retire(&self.burst, filled, true)?;
        Ok((filled > 0).then_some(filled))
    }

    fn deliver(&mut self, queue: &mut DeviceQueue, tally: &mut Tally) -> Result<usize, QueueError> {
        let waited = !self.packet.is_empty();
        for handled in 0..BATCH {
            if self.packet.is_empty() && !self.receiver.next(&mut self.packet, tally) {
                self.wants = PACKETS;
                self.put_back(queue)?;
                return Ok(handled);
            }
            if self.admits(tally) {
                match self.place(queue, tally)? {
                    Placed::Done => {
                        tally.packets += 1;
                        tally.bytes += (self.packet.len() - HEADER_BYTES) as u64;
                    }
                    Placed::TooLarge => tally.dropped_no_room += 1,
                    // What was taken for the packet goes back at the beginning of the next round, not
                    // now: buffers that are available would keep the worker from waiting for more.
                    Placed::Later => {
                        self.wants = BUFFERS;
                        return Ok(handled);
                    }
                }
            }
            self.packet.clear();
            if waited && self.receiver.fills() {
                self.put_back(queue)?;
                return Ok(handled + 1);
            }
        }
        self.put_back(queue)?;
        Ok(BATCH)
    }

    /// Whether the driver may have the packet whose turn it is.
    fn admits(&self, tally: &mut Tally) -> bool {
        let packet = &self.packet;
        if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&packet.len().wrapping_sub(HEADER_BYTES)) {
            tally.dropped_malformed += 1;
            return false;
        }
        let mut most = HEADER_BYTES + self.frame_bytes_max;
        if packet.len() <= most || packet[GSO_TYPE_OFFSET] & !GSO_ECN != 0 {
            return true;
        }
        let tagged = VLAN_TYPES.iter().any(|tag| packet[HEADER_BYTES + 12..].starts_with(tag));
        most += if tagged { VLAN_BYTES } else { 0 };
        tally.dropped_mtu += u64::from(packet.len() > most);
        packet.len() <= most
    }

    /// Write the packet into the next buffers. Nothing is completed unless all of it fits.
    fn place(&mut self, queue: &mut DeviceQueue, tally: &mut Tally) -> Result<Placed, QueueError> {
        let needed = self.packet.len() as u64;
        let mut end = self.next;
        let mut room = 0;
        while room < needed && (end == self.next || self.mergeable) {
            if end == self.batch.buffers.len() && !self.take(queue, end == self.next)? {
                // A packet for which not even a full ring has room will never get more.
                let is_all = self.next == 0 && end == usize::from(queue.setup().size);
                return Ok(if is_all { Placed::TooLarge } else { Placed::Later });
            }
            let writable = self.batch.buffers[end].writable;
            if end == self.next && writable < HEADER_BYTES as u64 {
                queue.complete(&self.batch, end, 0)?;
                tally.dropped_malformed += 1;
                self.next += 1;
            } else {
                room += writable;
            }
            end += 1;
        }
        if room < needed {
            return Ok(Placed::TooLarge);
        }
        self.spread(queue, end)?;
        Ok(Placed::Done)
    }

    /// Take buffers behind those of the batch: for one more piece of a packet, or for as many packets as
    /// are known to wait.
    fn take(&mut self, queue: &mut DeviceQueue, first: bool) -> Result<bool, QueueError> {
        let packets = if first { 1 + self.receiver.ahead() } else { 1 };
        Ok(queue.take(packets.min(BATCH), &mut self.batch)? > 0)
    }

    /// Fill the buffers up to `end` with the packet.
    fn spread(&mut self, queue: &mut DeviceQueue, end: usize) -> Result<(), QueueError> {
        // At most the 32768 buffers of a ring.
        let count = (end - self.next) as u16;
        self.packet[NUM_BUFFERS_OFFSET..HEADER_BYTES].copy_from_slice(&count.to_le_bytes());
        let mut rest = &self.packet[..];
        for index in self.next..end {
            let buffer = &self.batch.buffers[index];
            let (part, later) = rest.split_at(buffer.writable.min(rest.len() as u64) as usize);
            self.batch.write_at(buffer, 0, part);
            queue.complete(&self.batch, index, part.len() as u32)?;
            rest = later;
        }
        self.next = end;
        Ok(())
    }

    fn put_back(&mut self, queue: &mut DeviceQueue) -> Result<(), QueueError> {
        if self.next < self.batch.buffers.len() {
            queue.put_back(&mut self.batch, self.next)?;
        }
        self.batch.clear();
        self.next = 0;
        Ok(())
    }
}

impl Path for ReceivePath {
    fn round(&mut self, queue: &mut DeviceQueue, enabled: bool) -> Result<usize, QueueError> {
        // One used entry per buffer, also in order: DPDK's in-order receive functions take the used
        // entries one for one and know no skipped buffers. Merging would rarely pay here: only
        // buffers that were filled may be skipped.
        queue.set_merge(false);
        self.put_back(queue)?;
        self.receiver.enable(enabled);
        if !enabled {
            self.wants = NOTHING;
            queue.call()?;
            return Ok(0);
        }
        let mut tally = Tally::default();
        let delivered = match self.fill(queue, &mut tally) {
            Ok(Some(filled)) => Ok(filled),
            Ok(None) => self.deliver(queue, &mut tally),
            Err(error) => Err(error),
        };
        self.ledger.add(&tally);
        // Whatever stopped the round, what is complete goes out.
        queue.flush()?;
        if matches!(delivered, Ok(1..)) {
            queue.call_soon()?;
        } else {
            // Whoever waits now must not have missed a wish of the driver.
            queue.call()?;
        }
        delivered
    }

    fn wants(&self) -> Wants {
        self.wants
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        self.receiver.source()
    }
}

impl Drop for ReceivePath {
    fn drop(&mut self) {
        if !self.packet.is_empty() {
            self.receiver.give_back(std::mem::take(&mut self.packet));
        }
    }
}
