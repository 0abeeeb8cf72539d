//! Packed virtqueues (2.8): one ring of descriptors that both sides write, and an event
//! suppression structure for each side.

pub mod device;
pub mod driver;
mod lines;

pub use device::PackedDevice;
pub use driver::PackedDriver;

use super::{DESCRIPTOR_SIZE, flags};
use crate::area::Area;

/// Bytes of an event suppression structure (2.8.10).
const EVENT_SIZE: usize = 4;

/// The three areas of a packed virtqueue.
#[derive(Clone)]
pub struct PackedAreas {
    /// The descriptor ring.
    pub ring: Area,
    /// Driver event suppression: when the driver wants used buffer notifications.
    pub driver: Area,
    /// Device event suppression: when the device wants available buffer notifications.
    pub device: Area,
}

impl PackedAreas {
    /// Bytes of descriptor ring, driver and device event suppression for a queue size.
    pub fn sizes(size: u16) -> [usize; 3] {
        [usize::from(size) * DESCRIPTOR_SIZE, EVENT_SIZE, EVENT_SIZE]
    }
}

/// A slot of the ring together with the wrap counter that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    slot: u16,
    wrap: bool,
}

impl Cursor {
    #[inline]
    fn advanced(self, slots: u32, size: u16) -> Self {
        let at = u32::from(self.slot) + slots;
        if at >= size.into() {
            Self { slot: (at - u32::from(size)) as u16, wrap: !self.wrap }
        } else {
            Self { slot: at as u16, wrap: self.wrap }
        }
    }

    #[inline]
    fn rewound(self, slots: u32, size: u16) -> Self {
        let at = u32::from(self.slot);
        if at < slots {
            Self { slot: (at + u32::from(size) - slots) as u16, wrap: !self.wrap }
        } else {
            Self { slot: (at - slots) as u16, wrap: self.wrap }
        }
    }

    /// AVAIL and USED as the driver writes them here: AVAIL matches the wrap counter, USED does not.
    #[inline]
    fn available_flags(self) -> u16 {
        if self.wrap { flags::AVAIL } else { flags::USED }
    }

    /// AVAIL and USED as the device writes them here: both match the wrap counter.
    #[inline]
    fn used_flags(self) -> u16 {
        if self.wrap { flags::AVAIL | flags::USED } else { 0 }
    }

    #[inline]
    fn is_available(self, descriptor_flags: u16) -> bool {
        descriptor_flags & (flags::AVAIL | flags::USED) == self.available_flags()
    }

    #[inline]
    fn is_used(self, descriptor_flags: u16) -> bool {
        descriptor_flags & (flags::AVAIL | flags::USED) == self.used_flags()
    }

    #[inline]
    fn offset(self) -> usize {
        usize::from(self.slot) * DESCRIPTOR_SIZE
    }
}
