//! Guest memory, virtqueues and data paths of virtq. Knows no Python.
//!
//! The unit everywhere is the batch: buffers are added, taken, completed and reaped many at a
//! time, and one buffer is a batch of one. Section numbers are those of VIRTIO 1.4.

pub mod area;
pub mod error;
#[cfg(not(loom))]
pub mod event;
pub mod inflight;
pub mod memory;
pub mod notify;
pub mod order;
#[cfg(not(loom))]
pub mod pump;
#[cfg(not(loom))]
pub mod queue;
pub mod ring;
