//! From the driver to the port.

use super::{BATCH, FRAME_BYTES_MAX, FRAME_BYTES_MIN, Frames, HEADER_BYTES, Ledger, Sender, Tally};
use crate::error::QueueError;
use crate::pump::Path;
use crate::queue::DeviceQueue;
use crate::ring::{Batch, Buffer};

/// Hands what a driver transmits to a port, batch by batch.
///
/// All buffers of a batch are used together, with nothing written: in order that is one used entry.
/// A buffer that holds no packet, or that the device is to write, is used and counted. Disabled, the
/// ring goes on and its packets are discarded.
pub struct TransmitPath {
    sender: Box<dyn Sender>,
    ledger: Ledger,
    batch: Batch,
    /// Buffers of the batch that hold a packet.
    packets: Vec<usize>,
}

impl TransmitPath {
    pub(super) fn new(sender: Box<dyn Sender>, ledger: Ledger) -> Self {
        Self { sender, ledger, batch: Batch::new(), packets: Vec::with_capacity(BATCH) }
    }
}

fn holds_packet(buffer: &Buffer) -> bool {
    let sizes = (HEADER_BYTES + FRAME_BYTES_MIN) as u64..=(HEADER_BYTES + FRAME_BYTES_MAX) as u64;
    buffer.writable == 0 && sizes.contains(&buffer.readable)
}

impl Path for TransmitPath {
    fn round(&mut self, queue: &mut DeviceQueue, enabled: bool) -> Result<usize, QueueError> {
        self.batch.clear();
        let taken = queue.take(BATCH, &mut self.batch)?;
        if taken == 0 {
            return Ok(0);
        }
        self.packets.clear();
        let buffers = self.batch.buffers.iter().enumerate();
        self.packets.extend(buffers.filter(|(_, buffer)| holds_packet(buffer)).map(|(at, _)| at));
        let packets = self.packets.len();
        let mut tally = Tally { dropped_malformed: (taken - packets) as u64, ..Tally::default() };
        if enabled {
            self.sender.send(&Frames::new(&self.batch, &self.packets), &mut tally);
        } else {
            tally.dropped_disabled += packets as u64;
        }
        for index in 0..taken {
            queue.complete(&self.batch, index, 0)?;
        }
        // Before the driver can see the buffers used: then the counters have what they held.
        self.ledger.add(&tally);
        queue.notify()?;
        Ok(taken)
    }
}
