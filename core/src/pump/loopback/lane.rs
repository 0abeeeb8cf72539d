//! One direction: memory, a queue in it, and the buffers that go through.

use std::sync::Arc;

use super::LoopSetup;
use crate::error::QueueError;
use crate::event::Event;
use crate::memory::{Access, Mapping, Memory, MemoryError, Region};
use crate::queue::{DeviceQueue, DriverQueue, IndirectSetup, Setup};
use crate::ring::packed::PackedAreas;
use crate::ring::split::SplitAreas;
use crate::ring::{DESCRIPTOR_SIZE, Piece, feature};

const PAGE_BYTES: u64 = 4096;
/// Payloads begin on cache lines of their own.
const LINE_BYTES: u64 = 64;

/// The driver's end of a lane.
pub struct DriverLane {
    pub queue: DriverQueue,
    /// The pieces of all buffers, one buffer after the other.
    pub pieces: Box<[Piece]>,
    /// Where each buffer begins; its pieces are adjacent.
    pub hosts: Box<[*mut u8]>,
    pub call: Arc<Event>,
    /// Slots that are never used.
    spare: usize,
}

impl DriverLane {
    /// Slots for more buffers.
    #[inline]
    pub fn free(&self) -> usize {
        self.queue.free() - self.spare
    }
}

// SAFETY: the pointers lead into memory that the queue keeps mapped and that both ends share anyway.
unsafe impl Send for DriverLane {}

/// The device's end of a lane.
pub struct DeviceLane {
    pub queue: DeviceQueue,
}

/// Where a queue's three areas and its tables are, one after the other, pages apart.
struct Plan {
    areas: [u64; 3],
    tables: u64,
    end: u64,
}

fn plan(setup: &LoopSetup) -> Plan {
    let packed = setup.features & feature::RING_PACKED != 0;
    let sizes = if packed { PackedAreas::sizes(setup.size) } else { SplitAreas::sizes(setup.size) };
    let mut at = 0;
    let mut place = |bytes: usize| {
        let start = at;
        at += (bytes as u64).next_multiple_of(PAGE_BYTES);
        start
    };
    let areas = sizes.map(&mut place);
    let table_bytes = usize::from(setup.size) * setup.chain * DESCRIPTOR_SIZE;
    let tables = place(if setup.indirect { table_bytes } else { 0 });
    Plan { areas, tables, end: at }
}

/// Regions of about the same number of buffers each, the first with the rings before them; returns
/// the address of each buffer as well. Between two regions is a page of nothing.
fn memory(setup: &LoopSetup, rings: u64) -> Result<(Memory, Vec<u64>), MemoryError> {
    let mut stride = u64::from(setup.length).next_multiple_of(LINE_BYTES);
    if setup.spread {
        // Other offsets than the neighbours have: the same one would be the same set of a cache.
        stride = stride.next_multiple_of(PAGE_BYTES) + LINE_BYTES;
    }
    let buffers = setup.buffers();
    let mut memory = Memory::new();
    let mut addresses = Vec::with_capacity(buffers);
    let mut at = 0;
    for number in 0..setup.regions {
        let mut head = if number == 0 { rings } else { 0 };
        if setup.spread {
            head += addresses.len() as u64 * stride % PAGE_BYTES;
        }
        let share = (number + 1) * buffers / setup.regions - number * buffers / setup.regions;
        let size = (head + share as u64 * stride).max(1).next_multiple_of(PAGE_BYTES);
        let mapping = Mapping::anonymous(size)?;
        let user_addr = mapping.ptr() as u64;
        memory =
            memory.with_region(Region { guest_addr: at, size, user_addr, offset: 0, mapping })?;
        addresses.extend((0..share as u64).map(|buffer| at + head + buffer * stride));
        at += size + PAGE_BYTES;
    }
    Ok((memory, addresses))
}

/// The adjacent pieces of one buffer: of equal size but for the last.
fn cut(addr: u64, setup: &LoopSetup) -> impl Iterator<Item = Piece> {
    let (chain, length) = (setup.chain as u32, setup.length);
    let part = length / chain;
    (0..chain).map(move |piece| Piece {
        addr: addr + u64::from(piece * part),
        len: if piece + 1 == chain { length - piece * part } else { part },
    })
}

/// Memory and both halves of a queue; `event` only: each half gets the other's notifications.
pub fn build(setup: &LoopSetup, receive: bool) -> Result<(DriverLane, DeviceLane), QueueError> {
    let plan = plan(setup);
    let (memory, addresses) =
        memory(setup, plan.end).map_err(|error| QueueError::Invalid(error.to_string()))?;
    let memory = Arc::new(memory);
    let [desc, driver, device] = plan.areas;
    let ring = Setup {
        index: u16::from(!receive),
        size: setup.size,
        features: setup.negotiated(),
        desc,
        driver,
        device,
        position: None,
    };
    let indirect =
        setup.indirect.then_some(IndirectSetup { addr: plan.tables, length: setup.chain as u16 });
    let mut driver = DriverQueue::new(Arc::clone(&memory), ring.clone(), indirect)?;
    let mut device = DeviceQueue::new(Arc::clone(&memory), ring)?;
    let event = || Event::create().map_err(|error| QueueError::Invalid(error.to_string()));
    let duplicate = |event: &Event| {
        let fd = event.fd().try_clone_to_owned();
        fd.map_err(|error| QueueError::Invalid(error.to_string()))
    };
    let (kick, call) = (event()?, Arc::new(event()?));
    device.set_kick(Some(duplicate(&kick)?));
    driver.set_kick(Some(duplicate(&kick)?));
    device.set_call(Some(duplicate(&call)?));
    driver.set_call(Some(duplicate(&call)?));
    if !setup.event {
        device.disable_kicks();
        driver.disable_calls();
    }
    let hosts = addresses
        .iter()
        .map(|&addr| {
            memory.contiguous(addr, setup.length.into(), Access::Write).map(|(host, _)| host)
        })
        .collect::<Result<_, _>>()?;
    let pieces = addresses.iter().flat_map(|&addr| cut(addr, setup)).collect();
    let spare = usize::from(setup.size) - setup.buffers() * setup.slots();
    let lane = DriverLane { queue: driver, pieces, hosts, call, spare };
    Ok((lane, DeviceLane { queue: device }))
}
