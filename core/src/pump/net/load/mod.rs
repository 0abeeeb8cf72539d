//! The driver's end of a network device under load: frames out, frames in, as fast as the rings go.
//!
//! The frames that it sends are those of a source port (see `SourceLink`), so that whoever receives
//! them can tell them apart and check them. Of what it receives, one frame in 32 is checked:
//! such a frame byte for byte, an IPv4 one by its checksum and length.

mod receive;
mod report;
mod slab;
mod transmit;

use std::time::{Duration, Instant};

use super::{FRAME_BYTES_MAX, FRAME_BYTES_MIN};
use crate::error::QueueError;
use crate::pump::loopback::run_on;
use crate::queue::DriverQueue;

pub use report::{LoadError, LoadReport};
pub use slab::slab_bytes;

use receive::Receive;
use transmit::Transmit;

/// The longest that one run may take.
pub const RUN_MAX: Duration = Duration::from_secs(60);
/// Rounds between two looks at the clock.
const ROUNDS: usize = 64;

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
        let transmit =
            transmit.map(|(queue, addr)| Transmit::new(queue, &setup, addr)).transpose()?;
        let receive = receive.map(|(queue, addr)| Receive::new(queue, &setup, addr)).transpose()?;
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
