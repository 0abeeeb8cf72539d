//! What a load has done, and why it does not go on.

use crate::error::QueueError;

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadReport {
    /// How long it took.
    pub seconds: f64,
    /// Frames that the device has used.
    pub transmitted: u64,
    /// Frames that were received.
    pub received: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Publications of both queues.
    pub batches: u64,
    /// Available buffer notifications sent.
    pub kicks_sent: u64,
    /// Used elements or descriptors read.
    pub used_entries: u64,
    /// Received frames that were checked and are right.
    pub verified: u64,
    /// Received packets that were too short to be one.
    pub malformed: u64,
}

/// Why a run ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// The device broke a ring.
    Queue(QueueError),
    /// A frame that was received is not what it should be; the how-manieth it was.
    Mismatch(u64),
    /// A packet in more buffers than the ring has, or in none.
    BufferCount(u16),
}

impl From<QueueError> for LoadError {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Queue(error) => error.fmt(f),
            Self::Mismatch(number) => {
                write!(f, "the frame received as number {number} is not what was sent")
            }
            Self::BufferCount(count) => write!(f, "a packet in {count} buffers"),
        }
    }
}

impl std::error::Error for LoadError {}
