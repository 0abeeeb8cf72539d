//! Split virtqueues (2.7): a descriptor table, an available ring and a used ring.

pub mod device;
pub mod driver;

pub use device::SplitDevice;
pub use driver::SplitDriver;

use super::DESCRIPTOR_SIZE;
use crate::area::Area;

/// Flag of the available ring: no used buffer notifications, please. Also of the used ring, for
/// available buffer notifications.
const NO_NOTIFY: u16 = 1;

/// Offsets within the available ring (2.7.6).
const FLAGS: usize = 0;
const INDEX: usize = 2;
const RING: usize = 4;
const HEAD_SIZE: usize = 2;

/// Bytes of a used element (2.7.8): id, then len.
const USED_ELEMENT_SIZE: usize = 8;

/// The three areas of a split virtqueue.
#[derive(Clone)]
pub struct SplitAreas {
    /// The descriptor table.
    pub desc: Area,
    /// The available ring, with `used_event` behind it.
    pub avail: Area,
    /// The used ring, with `avail_event` behind it.
    pub used: Area,
}

impl SplitAreas {
    /// Bytes of descriptor table, available ring and used ring for a queue size.
    pub fn sizes(size: u16) -> [usize; 3] {
        let size = usize::from(size);
        [size * DESCRIPTOR_SIZE, RING + size * HEAD_SIZE + 2, RING + size * USED_ELEMENT_SIZE + 2]
    }
}

fn head_offset(slot: u16) -> usize {
    RING + usize::from(slot) * HEAD_SIZE
}

fn used_offset(slot: u16) -> usize {
    RING + usize::from(slot) * USED_ELEMENT_SIZE
}

fn used_event_offset(size: u16) -> usize {
    head_offset(size)
}

fn avail_event_offset(size: u16) -> usize {
    used_offset(size)
}

fn descriptor_offset(slot: u16) -> usize {
    usize::from(slot) * DESCRIPTOR_SIZE
}
