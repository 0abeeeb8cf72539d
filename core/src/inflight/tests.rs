//! A device half that is killed at every single one of its stores, and the one that comes after it.

use std::cell::Cell;
use std::sync::Arc;

use super::Region;
use crate::error::QueueError;
use crate::memory::{self, Mapping, Memory};
use crate::queue::{DeviceQueue, DriverQueue, IndirectSetup, Setup};
use crate::ring::{Batch, Piece, Position, Reaped, feature};

thread_local! {
    /// How many stores this thread may still make; None: as many as it likes.
    static STORES_LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Whether this thread's stores no longer happen, as after a SIGKILL.
pub(crate) fn killed() -> bool {
    STORES_LEFT.with(|left| match left.get() {
        Some(0) => true,
        Some(some) => {
            left.set(Some(some - 1));
            false
        }
        None => false,
    })
}

/// Run `life` with so many stores; true if it was killed before its end.
fn live(stores: u32, life: impl FnOnce()) -> bool {
    STORES_LEFT.with(|left| left.set(Some(stores)));
    life();
    STORES_LEFT.with(|left| left.replace(None)) == Some(0)
}

const SIZE: u16 = 8;
const BASE: u64 = 0x10_0000;
const DATA: u64 = BASE + 0x8000;
const KINDS: [u64; 4] =
    [0, feature::IN_ORDER, feature::RING_PACKED, feature::RING_PACKED | feature::IN_ORDER];

/// Small and repeatable.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

struct World {
    memory: Arc<Memory>,
    setup: Setup,
    driver: DriverQueue,
    file: Arc<Mapping>,
    next_cookie: u64,
    /// Added, oldest first; each names itself in its first device-readable bytes.
    waiting: Vec<u64>,
    reaped: Vec<u64>,
}

impl World {
    fn new(features: u64) -> Self {
        let mapping = Mapping::anonymous(0x20_000).unwrap();
        let region = memory::Region {
            guest_addr: BASE,
            size: mapping.len(),
            user_addr: BASE,
            offset: 0,
            mapping,
        };
        let memory = Arc::new(Memory::default().with_region(region).unwrap());
        let setup = Setup {
            index: 1,
            size: SIZE,
            features: features | feature::INDIRECT_DESC,
            desc: BASE,
            driver: BASE + 0x1000,
            device: BASE + 0x2000,
            position: None,
        };
        let tables = IndirectSetup { addr: BASE + 0x4000, length: 4 };
        let driver = DriverQueue::new(Arc::clone(&memory), setup.clone(), Some(tables)).unwrap();
        let packed = setup.is_packed();
        let file = Mapping::anonymous(Region::size(2, SIZE, packed)).unwrap();
        let (waiting, reaped) = (Vec::new(), Vec::new());
        Self { memory, setup, driver, file, next_cookie: 0, waiting, reaped }
    }

    fn region(&self) -> Region {
        let size = Region::size(2, SIZE, self.setup.is_packed());
        Region::map(self.file.fd(), 0, size, 2, SIZE).unwrap()
    }

    /// Where a front-end such as QEMU says that it begins: split at the used index; packed where it
    /// began at first, since it knows nothing better.
    fn device(&self) -> Result<DeviceQueue, QueueError> {
        let used = self.driver.device_position().used;
        let position = if self.setup.is_packed() {
            Position { available_wrap: true, used_wrap: true, ..Position::default() }
        } else {
            Position { available: used, used, ..Position::default() }
        };
        let setup = Setup { position: Some(position), ..self.setup.clone() };
        let mut device = DeviceQueue::new(Arc::clone(&self.memory), setup)?;
        device.attach_inflight(&self.region())?;
        Ok(device)
    }

    /// As many buffers as the dice and the ring allow: direct lists of one to three descriptors, or
    /// (four to five pieces do not fit a table of four) indirect ones.
    fn add(&mut self, dice: &mut Dice) {
        for _ in 0..dice.below(4) {
            let at = DATA + (self.next_cookie % 64) * 0x80;
            let name = self.next_cookie.to_le_bytes();
            self.memory.write(&mut crate::memory::Cache::default(), at, &name).unwrap();
            let readable = [Piece { addr: at, len: 8 }];
            let writable: Vec<Piece> = (0..dice.below(5) as u64)
                .map(|piece| Piece { addr: at + 16 + 8 * piece, len: 8 })
                .collect();
            match self.driver.add(&readable, &writable, self.next_cookie) {
                Ok(()) => {
                    self.waiting.push(self.next_cookie);
                    self.next_cookie += 1;
                }
                Err(QueueError::Full { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
        self.driver.kick().unwrap();
    }

    fn reap(&mut self) {
        let mut used: Vec<Reaped> = Vec::new();
        self.driver.reap(usize::MAX, &mut used).unwrap();
        for one in used {
            let place = self.waiting.iter().position(|&cookie| cookie == one.cookie);
            self.waiting.remove(place.expect("reaped once"));
            self.reaped.push(one.cookie);
        }
    }
}

/// Which cookies a batch holds.
fn names(batch: &Batch) -> Vec<u64> {
    let name = |buffer| {
        let mut bytes = [0; 8];
        assert_eq!(batch.read_at(buffer, 0, &mut bytes), 8);
        u64::from_le_bytes(bytes)
    };
    batch.buffers.iter().map(name).collect()
}

/// Rounds of taking, putting back, completing in some order, publishing. A dead device's loads go
/// on, so it stops when it meets the impossible.
fn work(device: &mut DeviceQueue, dice: &mut Dice, world: &mut World, seen: &mut Vec<Vec<u64>>) {
    let mut held: Vec<(Batch, usize)> = Vec::new();
    for _ in 0..6 {
        let mut batch = Batch::new();
        if device.take(1 + dice.below(4), &mut batch).is_err() {
            return;
        }
        seen.push(names(&batch));
        if !batch.buffers.is_empty() && dice.below(4) == 0 {
            let keep = dice.below(batch.buffers.len() + 1);
            let back = batch.buffers.len() - keep;
            device.put_back(&mut batch, keep).unwrap();
            let last = seen.last_mut().unwrap();
            last.truncate(last.len() - back);
        }
        let count = batch.buffers.len();
        held.extend((0..count).map(|index| (copy(&batch), index)));
        for _ in 0..dice.below(4).min(held.len()) {
            let (batch, index) = held.remove(dice.below(held.len()));
            let full = batch.buffers[index].writable as u32;
            let written = if dice.below(3) == 0 { 0 } else { full };
            device.complete(&batch, index, written).unwrap();
        }
        if device.notify().is_err() {
            return;
        }
        STORES_LEFT.with(|left| {
            // The driver lives on, whatever becomes of the device.
            let mine = left.replace(None);
            world.reap();
            if mine != Some(0) {
                world.add(dice);
            }
            left.set(mine);
        });
    }
}

fn copy(batch: &Batch) -> Batch {
    let mut copy = Batch::new();
    copy.buffers.clone_from(&batch.buffers);
    copy.segments.clone_from(&batch.segments);
    copy
}

/// What the heir does: it takes everything that is not used, and nothing else, oldest first if
/// nothing was overtaken, and uses it.
fn inherit(world: &mut World, features: u64, what: &str) {
    world.reap();
    let mut heir = world.device().unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut taken = Vec::new();
    loop {
        let mut batch = Batch::new();
        let count = heir.take(3, &mut batch).unwrap_or_else(|error| panic!("{what}: {error}"));
        if count == 0 {
            break;
        }
        taken.extend(names(&batch));
        for index in 0..count {
            heir.complete(&batch, index, 0).unwrap();
        }
    }
    assert_eq!(taken, world.waiting, "{what}: taken by the heir, features {features:#x}");
    heir.notify().unwrap();
    world.reap();
    assert_eq!(world.waiting, [], "{what}: all is used");
    let mut all = world.reaped.clone();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..world.next_cookie), "{what}: each once");
    // And life goes on, for more than the ring's length.
    for round in 0..2 * SIZE {
        let piece = [Piece { addr: DATA, len: 8 }];
        world.driver.add(&piece, &[], world.next_cookie).unwrap();
        world.driver.kick().unwrap();
        let mut batch = Batch::new();
        assert_eq!(heir.take(9, &mut batch), Ok(1), "{what}: round {round}");
        heir.complete(&batch, 0, 0).unwrap();
        heir.notify().unwrap();
        let mut used = Vec::new();
        assert_eq!(world.driver.reap(9, &mut used), Ok(1), "{what}: round {round}");
        world.next_cookie += 1;
        world.reaped.push(world.next_cookie - 1);
    }
    let position = heir.stop();
    assert_eq!(position.available, position.used);
    assert!(heir.release_inflight());
}

#[test]
fn killed_at_every_store() {
    for features in KINDS {
        let mut kills = 0;
        for seed in 0..40 {
            let mut stores = 0;
            loop {
                let what = format!("features {features:#x}, seed {seed}, killed after {stores}");
                let mut world = World::new(features);
                let mut dice = Dice(seed);
                world.add(&mut dice);
                let died = live(stores, || {
                    let mut device = world.device().unwrap();
                    work(&mut device, &mut dice, &mut world, &mut Vec::new());
                });
                inherit(&mut world, features, &what);
                if !died {
                    break;
                }
                stores += 1;
                kills += 1;
            }
        }
        assert!(kills > 1000, "{kills}");
    }
}

#[test]
fn killed_again_and_again() {
    for features in KINDS {
        for seed in 0..1500 {
            let what = format!("features {features:#x}, seed {seed}");
            let mut world = World::new(features);
            let mut dice = Dice(seed);
            for _ in 0..1 + dice.below(6) {
                world.reap();
                world.add(&mut dice);
                let stores = dice.below(150) as u32;
                live(stores, || {
                    let mut device = world.device().unwrap_or_else(|e| panic!("{what}: {e}"));
                    work(&mut device, &mut dice, &mut world, &mut Vec::new());
                });
            }
            inherit(&mut world, features, &what);
        }
    }
}

/// Rows 5 and 6 of the catalogue, and everything else that a front-end can write there.
#[test]
fn whatever_is_in_the_region_breaks_at_most_the_queue() {
    for features in KINDS {
        let (mut refused, mut served) = (0, 0);
        for seed in 0..4000 {
            let mut world = World::new(features);
            let mut dice = Dice(seed);
            world.add(&mut dice);
            let stores = 20 + dice.below(100) as u32;
            live(stores, || {
                let mut device = world.device().unwrap();
                work(&mut device, &mut dice, &mut world, &mut Vec::new());
            });
            for _ in 0..1 + dice.below(4) {
                let part = Region::size(1, SIZE, world.setup.is_packed()) as usize;
                // Mostly in the header; the second part is this queue's.
                let bound = if dice.below(2) == 0 { 32 } else { part };
                let at = part + dice.below(bound);
                let value = [0, 1, 2, 7, 8, 0x80, 0xff, dice.below(256) as u8][dice.below(8)];
                // SAFETY: inside the mapping.
                unsafe { world.file.ptr().add(at).write_volatile(value) };
            }
            let Ok(mut heir) = world.device() else {
                refused += 1;
                continue;
            };
            served += 1;
            for _ in 0..20 {
                let mut batch = Batch::new();
                if heir.take(3, &mut batch).is_err() {
                    assert!(heir.broken().is_some());
                    break;
                }
                for index in 0..batch.buffers.len() {
                    heir.complete(&batch, index, 0).unwrap();
                }
                if heir.notify().is_err() || world.driver.reap(9, &mut Vec::new()).is_err() {
                    break; // the driver finds used what was not: its own front-end's doing
                }
                let piece = [Piece { addr: DATA, len: 8 }];
                let _ = world.driver.add(&piece, &[], 0);
                world.driver.kick().unwrap();
            }
            heir.stop();
        }
        assert!(refused > 100 && served > 100, "{features:#x}: {refused} refused, {served} served");
    }
}

#[test]
fn a_region_that_is_not_for_the_queue_is_refused() {
    let refusal = |queues, entries, index, size, packed| {
        let bytes = Region::size(2, 8, false);
        let file = Mapping::anonymous(bytes).unwrap();
        let region = Region::map(file.fd(), 0, bytes, queues, entries).unwrap();
        region.part(index, size, packed).err().map(|error| error.to_string())
    };
    assert_eq!(refusal(2, 8, 1, 8, false), None);
    for (queues, entries, index, size, packed, why) in [
        (2, 8, 2, 8, false, "for 2 virtqueues"),
        (2, 4, 1, 8, false, "up to 4 slots"),
        (2, 8, 1, 8, true, "640 are needed"),
        (65535, 8, 1, 8, false, "are needed"),
        (2, 32768, 1, 8, false, "are needed"),
    ] {
        let text = refusal(queues, entries, index, size, packed).unwrap();
        assert!(text.contains(why), "{text}");
    }
    let file = Mapping::anonymous(4096).unwrap();
    let odd = Region::map(file.fd(), 4, 2048, 1, 8).unwrap();
    assert!(odd.part(0, 8, false).is_err());
    assert!(Region::map(file.fd(), 0, 8192, 1, 8).is_err());
}

/// Without a region: in order, what a device half that merges leaves behind is a ring that another
/// one goes on with, wherever it was killed; one that writes an entry for each buffer, the first of
/// them last, can leave one that is torn, and then the driver half can tell.
#[test]
fn killed_without_a_region() {
    for (merge, features) in [true, false].into_iter().flat_map(|merge| {
        [feature::IN_ORDER, feature::IN_ORDER | feature::RING_PACKED].map(|kind| (merge, kind))
    }) {
        let mut torn = 0;
        for stores in 0..60 {
            let what = format!("merge {merge}, features {features:#x}, after {stores} stores");
            let mut world = World::new(features);
            let start = |world: &World| {
                let position = Position { descriptor: 0, ..world.driver.device_position() };
                let position = Position {
                    available: position.used,
                    available_wrap: position.used_wrap,
                    ..position
                };
                let setup = Setup { position: Some(position), ..world.setup.clone() };
                let mut device = DeviceQueue::new(Arc::clone(&world.memory), setup).unwrap();
                device.set_merge(merge);
                device
            };
            for _ in 0..5 {
                let at = DATA + world.next_cookie * 0x80;
                let name = world.next_cookie.to_le_bytes();
                world.memory.write(&mut memory::Cache::default(), at, &name).unwrap();
                let pieces = [Piece { addr: at, len: 8 }, Piece { addr: at + 16, len: 8 }];
                world.driver.add(&pieces[..1], &pieces[1..], world.next_cookie).unwrap();
                world.waiting.push(world.next_cookie);
                world.next_cookie += 1;
            }
            world.driver.kick().unwrap();
            let mut device = start(&world);
            live(stores, || {
                for round in [2, 3] {
                    let mut batch = Batch::new();
                    device.take(round, &mut batch).unwrap();
                    for index in 0..batch.buffers.len() {
                        // Short, so that each has an entry of its own also if entries are merged.
                        device.complete(&batch, index, 1).unwrap();
                    }
                    device.flush().unwrap();
                }
            });
            if world.driver.is_torn() {
                torn += 1;
                continue;
            }
            let mut heir = start(&world);
            world.reap();
            let mut batch = Batch::new();
            heir.take(9, &mut batch).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(names(&batch), world.waiting, "{what}");
            for index in 0..batch.buffers.len() {
                heir.complete(&batch, index, 8).unwrap();
            }
            heir.flush().unwrap();
            world.reap();
            assert_eq!(world.waiting, [], "{what}");
        }
        let can_be_torn = !merge && features & feature::RING_PACKED != 0;
        assert_eq!(torn > 0, can_be_torn, "merge {merge}, features {features:#x}: {torn} times");
    }
}
