//! The core alone: a driver half on one thread sends 64-byte packets to a device half on another.
//!
//! The sender writes every payload, the receiver copies it out, batches of 32, queue of 256. Rates
//! on shared machines jump, so each kind of ring runs in many short windows, taken in turn, and the
//! table shows the best and the median.
//!
//! `cargo bench -p virtq-core -- [--windows N] [--ms MILLISECONDS]`

use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtq_core::memory::{Mapping, Memory, Region};
use virtq_core::queue::{DeviceQueue, DriverQueue, Setup};
use virtq_core::ring::{Batch, Piece, feature};

const QUEUE_SIZE: u16 = 256;
const BATCH: usize = 32;
const PACKET: usize = 64;
const PAYLOADS: u64 = 0x10000;
const MEMORY_SIZE: u64 = 0x40000;

const KINDS: [(&str, u64); 4] = [
    ("split, any order", 0),
    ("split, in order", feature::IN_ORDER),
    ("packed, any order", feature::RING_PACKED),
    ("packed, in order", feature::RING_PACKED | feature::IN_ORDER),
];

struct Window {
    packets: u64,
    seconds: f64,
    used_entries: u64,
}

fn memory() -> Arc<Memory> {
    let mapping = Mapping::anonymous(MEMORY_SIZE).expect("memory for the rings");
    let region = Region { guest_addr: 0, size: MEMORY_SIZE, user_addr: 0, offset: 0, mapping };
    Arc::new(Memory::new().with_region(region).expect("an empty table takes a region"))
}

fn receive(mut queue: DeviceQueue, stop: &AtomicBool) -> (u64, u64) {
    let mut batch = Batch::new();
    let (mut packet, mut sum, mut received) = ([0u8; PACKET], 0u64, 0u64);
    while !stop.load(Ordering::Relaxed) {
        batch.clear();
        let taken = queue.take(BATCH, &mut batch).expect("our own driver half is well behaved");
        if taken == 0 {
            spin_loop();
            continue;
        }
        for index in 0..taken {
            batch.read_at(&batch.buffers[index], 0, &mut packet);
            sum = sum.wrapping_add(u64::from(packet[0]) ^ u64::from(packet[PACKET - 1]));
        }
        queue.complete_all(&batch).expect("taken just now");
        received += queue.flush().expect("not broken") as u64;
    }
    black_box(sum);
    (received, queue.stats().used_entries)
}

fn window(features: u64, duration: Duration) -> Window {
    let memory = memory();
    let setup = Setup {
        index: 0,
        size: QUEUE_SIZE,
        features,
        desc: 0,
        driver: 0x4000,
        device: 0x8000,
        position: None,
    };
    let base = memory
        .contiguous(
            PAYLOADS,
            u64::from(QUEUE_SIZE) * PACKET as u64,
            virtq_core::memory::Access::Write,
        )
        .expect("mapped above")
        .0 as usize;
    let mut driver = DriverQueue::new(Arc::clone(&memory), setup.clone(), None).expect("valid");
    let device = DeviceQueue::new(memory, setup).expect("valid");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(device, &stop));
        let (mut reaped, mut slot) = (Vec::with_capacity(QUEUE_SIZE.into()), 0u64);
        let mut pieces = [Piece { addr: 0, len: 0 }; BATCH];
        let start = Instant::now();
        let mut packets = 0u64;
        while start.elapsed() < duration {
            for _ in 0..64 {
                reaped.clear();
                packets += driver.reap(usize::MAX, &mut reaped).expect("well behaved") as u64;
                if driver.free() < BATCH {
                    spin_loop();
                    continue;
                }
                for piece in &mut pieces {
                    let at = slot % u64::from(QUEUE_SIZE) * PACKET as u64;
                    // SAFETY: the slot's payload is inside the mapping and not with the device.
                    unsafe {
                        std::ptr::write_bytes((base + at as usize) as *mut u8, slot as u8, PACKET);
                    }
                    *piece = Piece { addr: PAYLOADS + at, len: PACKET as u32 };
                    slot += 1;
                }
                driver.add_each(&pieces, false, slot).expect("there is room");
                driver.publish();
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        let (received, used_entries) = receiver.join().expect("the receiver returns");
        assert!(received >= packets, "{packets} came back, {received} were received");
        Window { packets, seconds, used_entries: used_entries * 1000 / received.max(1) }
    })
}

fn option(name: &str, default: u64) -> u64 {
    let args: Vec<String> = std::env::args().collect();
    let at = args.iter().position(|arg| arg == name);
    at.and_then(|at| args.get(at + 1)).and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn main() {
    let windows = option("--windows", 20).clamp(1, 1000);
    let duration = Duration::from_millis(option("--ms", 200).clamp(1, 10_000));
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); KINDS.len()];
    let mut entries = vec![0; KINDS.len()];
    for _ in 0..windows {
        for (kind, (_, features)) in KINDS.iter().enumerate() {
            let seen = window(*features, duration);
            rates[kind].push(seen.packets as f64 / seen.seconds / 1e6);
            entries[kind] = seen.used_entries;
        }
    }
    println!(
        "{:<20}{:>10}{:>10}{:>24}",
        "million packets/s", "median", "best", "used entries per 1000"
    );
    for (kind, (name, _)) in KINDS.iter().enumerate() {
        rates[kind].sort_by(f64::total_cmp);
        let (median, best) =
            (rates[kind][rates[kind].len() / 2], rates[kind][rates[kind].len() - 1]);
        println!("{name:<20}{median:>10.1}{best:>10.1}{:>24}", entries[kind]);
    }
}
