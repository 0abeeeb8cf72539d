//! A virtqueue of whatever layout and order, with its memory, its notifications and its counters.

mod device;
mod driver;

use crate::area::Area;
use crate::error::QueueError;
use crate::memory::Memory;
use crate::ring::packed::PackedAreas;
use crate::ring::split::SplitAreas;
use crate::ring::{Position, QUEUE_SIZE_MAX, feature};

pub use device::{DeviceQueue, DeviceStats};
pub use driver::{DriverQueue, DriverStats, IndirectSetup};

/// Where a virtqueue is and what was negotiated for it.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Number of the queue within its device.
    pub index: u16,
    /// Slots.
    pub size: u16,
    /// Negotiated features.
    pub features: u64,
    /// Guest address of the descriptor area.
    pub desc: u64,
    /// Guest address of the driver area.
    pub driver: u64,
    /// Guest address of the device area.
    pub device: u64,
    /// Where to start; None for a new queue.
    pub position: Option<Position>,
}

impl Setup {
    /// Whether the layout is the packed one.
    pub fn is_packed(&self) -> bool {
        self.features & feature::RING_PACKED != 0
    }

    /// Whether buffers are used in order.
    pub fn is_in_order(&self) -> bool {
        self.features & feature::IN_ORDER != 0
    }

    fn check(&self) -> Result<(), QueueError> {
        let size = u32::from(self.size);
        if size == 0 || size > QUEUE_SIZE_MAX {
            return Err(QueueError::Invalid(format!("queue size {size} is not in 1..=32768")));
        }
        if !self.is_packed() && !size.is_power_of_two() {
            return Err(QueueError::Invalid(format!(
                "queue size {size} is not a power of two, as a split virtqueue needs"
            )));
        }
        if let Some(position) = self.position {
            for (name, slot) in [("available", position.available), ("used", position.used)] {
                if self.is_packed() && slot >= self.size {
                    return Err(QueueError::Invalid(format!(
                        "{name} position {slot} is beyond the queue size {size}"
                    )));
                }
            }
            let ahead = if self.is_packed() {
                let lap = if position.available_wrap == position.used_wrap { 0 } else { size };
                (u32::from(position.available) + lap).wrapping_sub(position.used.into())
            } else {
                position.available.wrapping_sub(position.used).into()
            };
            if ahead > size {
                return Err(QueueError::Invalid(format!(
                    "available position {} is behind the used position {} or more than the queue size {size} ahead of it",
                    position.available, position.used
                )));
            }
        }
        Ok(())
    }

    fn split_areas(&self, memory: &Memory) -> Result<SplitAreas, QueueError> {
        let [desc, avail, used] = SplitAreas::sizes(self.size);
        Ok(SplitAreas {
            desc: Area::new(memory, "descriptor table", self.desc, desc, 16)?,
            avail: Area::new(memory, "available ring", self.driver, avail, 2)?,
            used: Area::new(memory, "used ring", self.device, used, 4)?,
        })
    }

    fn packed_areas(&self, memory: &Memory) -> Result<PackedAreas, QueueError> {
        let [ring, driver, device] = PackedAreas::sizes(self.size);
        Ok(PackedAreas {
            ring: Area::new(memory, "descriptor ring", self.desc, ring, 16)?,
            driver: Area::new(memory, "driver event suppression", self.driver, driver, 4)?,
            device: Area::new(memory, "device event suppression", self.device, device, 4)?,
        })
    }
}
