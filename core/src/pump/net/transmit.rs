//! From the driver to the port.

use super::{BATCH, FRAME_BYTES_MAX, FRAME_BYTES_MIN, Frames, HEADER_BYTES, Ledger, Sender, Tally};
use crate::error::QueueError;
use crate::pump::Path;
use crate::queue::DeviceQueue;
use crate::ring::{Batch, Buffer, Burst};

/// Hands what a driver transmits to a port, batch by batch.
///
/// All buffers of a batch are used together, with nothing written: in order that is one used entry.
/// A buffer that holds no packet, or that the device is to write, is used and counted. Disabled, the
/// ring goes on and its packets are discarded.
pub struct TransmitPath {
    sender: Box<dyn Sender>,
    ledger: Ledger,
    burst: Burst,
    batch: Batch,
    /// Buffers of the batch that hold a packet.
    packets: Vec<usize>,
}

impl TransmitPath {
    pub(super) fn new(sender: Box<dyn Sender>, ledger: Ledger) -> Self {
        let (burst, batch) = (Burst::new(), Batch::new());
        Self { sender, ledger, burst, batch, packets: Vec::with_capacity(BATCH) }
    }

    /// Packets in one piece each, all of them; none where something else comes next.
    fn round_of_plain(
        &mut self,
        queue: &mut DeviceQueue,
        enabled: bool,
    ) -> Result<usize, QueueError> {
        let mut plain = queue.gather(BATCH, false, &mut self.burst)?;
        // A driver that makes packets available one by one is left alone with its lines for a
        // moment, as long as that makes the burst longer.
        for _ in 0..LOOKS {
            if plain == 0 || plain >= FULL {
                break;
            }
            (0..PAUSES).for_each(|_| std::hint::spin_loop());
            let before =
                std::mem::replace(&mut plain, queue.gather(BATCH, false, &mut self.burst)?);
            if plain == before {
                break;
            }
        }
        if plain == 0 || !self.burst.segments().iter().all(|one| is_packet(one.len.into())) {
            return Ok(0);
        }
        let mut tally = Tally::default();
        if enabled {
            self.sender.send(&Frames::plain(&self.burst), &mut tally);
        } else {
            tally.dropped_disabled += plain as u64;
        }
        // As below.
        self.ledger.add(&tally);
        queue.retire(&self.burst, plain, false)?;
        queue.call_soon()?;
        Ok(plain)
    }
}

/// So many packets are worth a round without a second look.
const FULL: usize = 32;
const LOOKS: usize = 3;
const PAUSES: usize = 2;

fn is_packet(bytes: u64) -> bool {
    let sizes = (HEADER_BYTES + FRAME_BYTES_MIN) as u64..=(HEADER_BYTES + FRAME_BYTES_MAX) as u64;
    sizes.contains(&bytes)
}

fn holds_packet(buffer: &Buffer) -> bool {
    buffer.writable == 0 && is_packet(buffer.readable)
}

impl Path for TransmitPath {
    fn round(&mut self, queue: &mut DeviceQueue, enabled: bool) -> Result<usize, QueueError> {
        let done = self.round_of_any(queue, enabled);
        if !matches!(done, Ok(1..)) {
            // Whoever waits now must not have missed a wish of the driver.
            queue.call()?;
        }
        done
    }
}

impl TransmitPath {
    fn round_of_any(
        &mut self,
        queue: &mut DeviceQueue,
        enabled: bool,
    ) -> Result<usize, QueueError> {
        let plain = self.round_of_plain(queue, enabled)?;
        if plain > 0 || self.burst.is_empty() && !self.burst.is_blocked() {
            return Ok(plain);
        }
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
