//! The data path of the network device in one process: the load of a driver on one thread, the paths
//! of a device on another, both at the work they do in `virtq bench net`.
//!
//! Rates on shared machines jump, so each kind of ring runs in many short windows, taken in turn, and
//! the table shows the best and the median. `--alone`: both ends in turn on one thread, so that no
//! cache line changes hands; what is left is what the instructions cost.
//!
//! `cargo bench -p virtq-core --bench net -- [--windows N] [--ms MILLISECONDS] [--kind WORDS]
//! [--direction send|receive|both] [--batch N] [--size N] [--length BYTES] [--mergeable] [--alone]`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtq_core::memory::{Mapping, Memory, Region};
use virtq_core::pump::Path;
use virtq_core::pump::loopback::run_on;
use virtq_core::pump::net::load::{Load, LoadSetup, slab_bytes};
use virtq_core::pump::net::{HEADER_BYTES, Link, Port, SinkLink, SourceLink};
use virtq_core::queue::{DeviceQueue, DriverQueue, Setup};
use virtq_core::ring::feature;

const KINDS: [(&str, u64); 4] = [
    ("split, any order", 0),
    ("split, in order", feature::IN_ORDER),
    ("packed, any order", feature::RING_PACKED),
    ("packed, in order", feature::RING_PACKED | feature::IN_ORDER),
];
/// Guest addresses of the areas of a queue, and of its packet buffers.
const AREAS: u64 = 0x10_0000;
const BUFFERS: u64 = 0x100_0000;
/// Rounds of one end before the other has its turn, and turns of a slice that is timed.
const ROUNDS: usize = 8;
const TURNS: usize = 100;

fn text(name: &str) -> Option<String> {
    let args: Vec<String> = std::env::args().collect();
    let at = args.iter().position(|arg| arg == name)?;
    args.get(at + 1).cloned()
}

fn option(name: &str, default: u64) -> u64 {
    text(name).and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn is_set(name: &str) -> bool {
    std::env::args().any(|arg| arg == name)
}

/// Both halves of a queue.
struct Pair {
    driver: DriverQueue,
    device: DeviceQueue,
    path: Box<dyn FnMut(&mut DeviceQueue) -> usize + Send>,
}

/// A device and its driver.
struct Rig {
    load: Load,
    /// Transmit and receive queue.
    pairs: [Option<Pair>; 2],
    /// Of the device in all runs: rounds, those that found something, frames.
    rounds: [u64; 3],
}

impl Rig {
    fn new(features: u64) -> Self {
        let (size, length) = (option("--size", 256) as u16, option("--length", 64) as usize);
        let direction = text("--direction").unwrap_or_else(|| "both".into());
        let mergeable = is_set("--mergeable");
        let buffer_bytes = HEADER_BYTES + if mergeable { 2048 } else { length.max(1518) };
        let mapping = Mapping::anonymous(64 << 20).expect("64 MiB of memory");
        let user_addr = mapping.ptr() as u64;
        let region = Region { guest_addr: 0, size: mapping.len(), user_addr, offset: 0, mapping };
        let memory = Arc::new(Memory::new().with_region(region).expect("the first region"));
        let link: Arc<dyn Link> = if direction == "send" {
            Arc::new(SinkLink::new(0))
        } else {
            Arc::new(SourceLink::new(length, None).expect("a size that can be"))
        };
        let port = Port::new(link);
        let pairs = [("receive", 0), ("send", 1)].map(|(other, index): (_, u16)| {
            if direction == other {
                return None;
            }
            let areas = AREAS * u64::from(1 + index);
            let setup = Setup {
                index,
                size,
                features,
                desc: areas,
                driver: areas + 0x8_0000,
                device: areas + 0xa_0000,
                position: None,
            };
            let mut driver =
                DriverQueue::new(Arc::clone(&memory), setup.clone(), None).expect("a queue");
            driver.disable_calls();
            let mut device = DeviceQueue::new(Arc::clone(&memory), setup).expect("a queue");
            device.disable_kicks();
            let path: Box<dyn FnMut(&mut DeviceQueue) -> usize + Send> = if index == 0 {
                let (mut path, _) = port.transmit(0).expect("a pair");
                Box::new(move |queue| path.round(queue, true).expect("a driver that behaves"))
            } else {
                let (mut path, _) = port.receive(0, mergeable, None).expect("a pair");
                Box::new(move |queue| path.round(queue, true).expect("a driver that behaves"))
            };
            Some(Pair { driver, device, path })
        });
        let [transmit, receive] = &pairs;
        let load = Load::new(
            LoadSetup {
                length,
                batch: option("--batch", 32) as usize,
                mergeable,
                header_bytes: HEADER_BYTES,
                buffer_bytes: buffer_bytes as u32,
                pin: (!is_set("--free")).then_some(0),
            },
            transmit.as_ref().map(|pair| (&pair.driver, BUFFERS)),
            receive.as_ref().map(|pair| {
                (&pair.driver, BUFFERS + slab_bytes(size, HEADER_BYTES + length) + 4096)
            }),
        )
        .expect("a load that can be");
        Self { load, pairs, rounds: [0; 3] }
    }

    /// Million frames a second.
    fn run(&mut self, duration: Duration) -> f64 {
        let (mut drivers, mut devices) = (Vec::new(), Vec::new());
        let present: [bool; 2] = std::array::from_fn(|at| self.pairs[at].is_some());
        for pair in self.pairs.iter_mut().flatten() {
            drivers.push(&mut pair.driver);
            devices.push((&mut pair.device, &mut pair.path));
        }
        let mut drivers = drivers.into_iter();
        let [transmit, receive] = present.map(|there| if there { drivers.next() } else { None });
        let stop = AtomicBool::new(false);
        let (load, rounds) = (&mut self.load, &mut self.rounds);
        let report = std::thread::scope(|scope| {
            scope.spawn(|| {
                if !is_set("--free") {
                    run_on(1);
                }
                while !stop.load(Ordering::Relaxed) {
                    for (queue, path) in &mut devices {
                        let did = path(queue);
                        rounds[0] += 1;
                        rounds[1] += u64::from(did > 0);
                        rounds[2] += did as u64;
                    }
                }
            });
            let driver = scope.spawn(|| load.run(transmit, receive, duration));
            let report = driver.join().expect("no panic").expect("a device that behaves");
            stop.store(true, Ordering::Relaxed);
            report
        });
        (report.transmitted + report.received) as f64 / report.seconds / 1e6
    }

    /// Nanoseconds of driver and device for each frame, in turn on one thread: of the quickest slice.
    fn run_alone(&mut self, duration: Duration) -> [f64; 2] {
        let mut least = [f64::MAX; 2];
        let start = Instant::now();
        while start.elapsed() < duration {
            let (mut spent, mut frames) = ([Duration::ZERO; 2], 0);
            for _ in 0..TURNS {
                let begun = Instant::now();
                let [transmit, receive] =
                    self.pairs.each_mut().map(|pair| pair.as_mut().map(|pair| &mut pair.driver));
                frames += self.load.turn(transmit, receive, ROUNDS).expect("a good device");
                spent[0] += begun.elapsed();
                let begun = Instant::now();
                for _ in 0..ROUNDS {
                    for pair in self.pairs.iter_mut().flatten() {
                        (pair.path)(&mut pair.device);
                    }
                }
                spent[1] += begun.elapsed();
            }
            for (least, spent) in least.iter_mut().zip(spent) {
                *least = least.min(spent.as_nanos() as f64 / frames.max(1) as f64);
            }
        }
        least
    }
}

fn main() {
    let windows = option("--windows", 20).clamp(1, 1000);
    let duration = Duration::from_millis(option("--ms", 200).clamp(1, 10_000));
    let kinds = KINDS.iter().filter(|(name, _)| text("--kind").is_none_or(|kind| kind == *name));
    let mut rigs: Vec<_> =
        kinds.map(|(name, features)| (name, Rig::new(*features), Vec::new())).collect();
    if is_set("--alone") {
        println!("{:<20}{:>12}{:>12}", "ns per frame", "driver", "device");
        for (name, rig, _) in &mut rigs {
            let [driver, device] = rig.run_alone(duration);
            println!("{name:<20}{driver:>12.2}{device:>12.2}");
        }
        return;
    }
    for _ in 0..windows {
        for (_, rig, rates) in &mut rigs {
            rates.push(rig.run(duration));
        }
    }
    println!(
        "{:<20}{:>10}{:>10}{:>18}{:>14}",
        "million frames/s", "median", "best", "frames a round", "idle rounds"
    );
    for (name, rig, rates) in &mut rigs {
        rates.sort_by(f64::total_cmp);
        let (median, best) = (rates[rates.len() / 2], rates[rates.len() - 1]);
        let [all, busy, frames] = rig.rounds.map(|count| count as f64);
        let (each, idle) = (frames / busy.max(1.0), 100.0 * (1.0 - busy / all.max(1.0)));
        println!("{name:<20}{median:>10.1}{best:>10.1}{each:>18.1}{idle:>13.0}%");
    }
}
