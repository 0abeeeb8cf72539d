//! The data path of the network device in one process: the load of a driver on one thread, the paths
//! of a device on another, both at the work they do in `virtq bench net`.
//!
//! Rates on shared machines jump, so each kind of ring runs in many short windows, taken in turn, and
//! the table shows the best and the median. `--alone`: both ends in turn on one thread, so that no
//! cache line changes hands; what is left is what the instructions cost.
//!
//! `cargo bench -p virtq-core --bench net -- [--windows N] [--ms MILLISECONDS] [--kind WORDS]
//! [--direction send|receive|both] [--batch N] [--size N] [--length BYTES] [--mergeable] [--alone]`

mod options;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use options::{KINDS, is_set, option, text};
use virtq_core::memory::{
    Mapping, Memory, Region, copy_from_shared, copy_to_shared, prefetch, prefetch_write,
};
use virtq_core::pump::loopback::run_on;
use virtq_core::pump::net::load::{Load, LoadSetup, slab_bytes};
use virtq_core::pump::net::{
    HEADER_BYTES, Link, Port, ReceivePath, SinkLink, SourceLink, TransmitPath,
};
use virtq_core::pump::{Path, Poller, SharedQueue, Worker};
use virtq_core::queue::{DeviceQueue, DriverQueue, Setup};

/// Beside them: their frames alone.
const LINES: &str = "lines alone";
/// Guest addresses of the areas of a queue, and of its packet buffers.
const AREAS: u64 = 0x10_0000;
const BUFFERS: u64 = 0x100_0000;
/// Rounds of one end before the other has its turn, and turns of a slice that is timed.
const ROUNDS: usize = 8;
const TURNS: usize = 100;

/// Both halves of a queue.
struct Pair {
    driver: DriverQueue,
    device: Arc<SharedQueue>,
}

/// A device and its driver.
struct Rig {
    load: Load,
    port: Port,
    mergeable: bool,
    /// Transmit and receive queue.
    pairs: [Option<Pair>; 2],
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
            let device = Arc::new(SharedQueue::new(device).expect("an event"));
            Some(Pair { driver, device })
        });
        let [transmit, receive] = &pairs;
        let load = Load::new(
            LoadSetup {
                length,
                batch: option("--batch", 32) as usize,
                mergeable,
                header_bytes: HEADER_BYTES,
                buffer_bytes: buffer_bytes as u32,
                pin: (!is_set("--alone")).then_some(0),
            },
            transmit.as_ref().map(|pair| (&pair.driver, BUFFERS)),
            receive.as_ref().map(|pair| {
                (&pair.driver, BUFFERS + slab_bytes(size, HEADER_BYTES + length) + 4096)
            }),
        )
        .expect("a load that can be");
        Self { load, port, mergeable, pairs }
    }

    fn transmit(&self) -> TransmitPath {
        self.port.transmit(0).expect("a pair").0
    }

    fn receive(&self) -> ReceivePath {
        self.port.receive(0, self.mergeable, None).expect("a pair").0
    }

    /// Million frames a second, both queues of the device polled by one thread.
    fn run(&mut self, duration: Duration) -> f64 {
        // Threads run where the one that starts them does.
        run_on(1);
        let poller = Arc::new(Poller::new().expect("an event"));
        let name = "device";
        let [transmit, receive] =
            self.pairs.each_ref().map(|pair| pair.as_ref().map(|pair| Arc::clone(&pair.device)));
        let workers = [
            transmit.map(|queue| Worker::poll(name, &poller, queue, self.transmit(), true)),
            receive.map(|queue| Worker::poll(name, &poller, queue, self.receive(), true)),
        ];
        let workers = workers.map(|one| one.map(|worker| worker.expect("a thread")));
        let [transmit, receive] =
            self.pairs.each_mut().map(|pair| pair.as_mut().map(|pair| &mut pair.driver));
        let load = &mut self.load;
        let report = std::thread::scope(|scope| {
            let driver = scope.spawn(|| load.run(transmit, receive, duration));
            driver.join().expect("no panic").expect("a device that behaves")
        });
        drop(workers);
        (report.transmitted + report.received) as f64 / report.seconds / 1e6
    }

    /// How many frames the device found at once.
    fn frames_each(&self) -> f64 {
        let stats = self.pairs.iter().flatten().map(|pair| pair.device.visit().stats());
        let sum = stats.fold([0, 0], |[frames, batches], stats| {
            [frames + stats.buffers, batches + stats.batches]
        });
        sum[0] as f64 / sum[1].max(1) as f64
    }

    /// Nanoseconds of driver and device for each frame, in turn on one thread: of the quickest slice.
    fn run_alone(&mut self, duration: Duration) -> [f64; 2] {
        let (mut transmit, mut receive) = (self.transmit(), self.receive());
        let mut least = [f64::MAX; 2];
        let start = Instant::now();
        while start.elapsed() < duration {
            let (mut spent, mut frames) = ([Duration::ZERO; 2], 0);
            for _ in 0..TURNS {
                let begun = Instant::now();
                let [sends, receives] =
                    self.pairs.each_mut().map(|pair| pair.as_mut().map(|pair| &mut pair.driver));
                frames += self.load.turn(sends, receives, ROUNDS).expect("a good device");
                spent[0] += begun.elapsed();
                let begun = Instant::now();
                let [sends, receives] =
                    self.pairs.each_ref().map(|pair| pair.as_ref().map(|pair| pair.device.visit()));
                if let Some(mut queue) = sends {
                    for _ in 0..ROUNDS {
                        transmit.round(&mut queue, true).expect("a good driver");
                    }
                }
                if let Some(mut queue) = receives {
                    for _ in 0..ROUNDS {
                        receive.round(&mut queue, true).expect("a good driver");
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

/// The same cache lines without a ring: frames of 64 bytes and two indices in each direction, nothing
/// looked up or checked. What a ring cannot beat.
struct Lines {
    lanes: [Lane; 2],
}

/// One direction: who writes the frames, and what was written and read so far.
struct Lane {
    frames: Mapping64,
    written: Alone,
    read: Alone,
}

#[repr(align(128))]
#[derive(Default)]
struct Alone(AtomicUsize);

/// Where the frames are: a line each, as far apart as those of a driver.
struct Mapping64 {
    mapping: Arc<Mapping>,
}

const SLOTS: usize = 256;
const STRIDE: usize = 1600;

impl Mapping64 {
    fn at(&self, number: usize) -> *mut u8 {
        self.mapping.ptr().wrapping_add(number % SLOTS * STRIDE)
    }
}

impl Lane {
    fn new() -> Self {
        let mapping = Mapping::anonymous((SLOTS * STRIDE) as u64).expect("memory");
        Self { frames: Mapping64 { mapping }, written: Alone::default(), read: Alone::default() }
    }

    /// Write a batch of frames if there is room for it.
    #[inline]
    fn write(&self, batch: usize, line: &mut [u8; 64]) {
        let number = self.written.0.load(Ordering::Relaxed);
        if number + batch - self.read.0.load(Ordering::Acquire) > SLOTS {
            return std::hint::spin_loop();
        }
        (0..batch).for_each(|at| prefetch_write(self.frames.at(number + at)));
        for at in 0..batch {
            line[..8].copy_from_slice(&(number + at).to_le_bytes());
            // SAFETY: a line of the mapping.
            unsafe { copy_to_shared(self.frames.at(number + at), line) };
        }
        self.written.0.store(number + batch, Ordering::Release);
    }

    /// Copy out a batch of frames if they are there.
    #[inline]
    fn read(&self, batch: usize, copies: &mut [[u8; 64]; 64]) {
        let number = self.read.0.load(Ordering::Relaxed);
        if self.written.0.load(Ordering::Acquire) - number < batch {
            return std::hint::spin_loop();
        }
        (0..batch).for_each(|at| prefetch(self.frames.at(number + at)));
        for at in 0..batch {
            // SAFETY: a line of the mapping.
            unsafe { copy_from_shared(self.frames.at(number + at), &mut copies[at % 64]) };
        }
        std::hint::black_box(&copies);
        self.read.0.store(number + batch, Ordering::Release);
    }
}

impl Lines {
    fn new() -> Self {
        Self { lanes: [Lane::new(), Lane::new()] }
    }

    fn count(&self) -> usize {
        self.lanes.iter().map(|lane| lane.read.0.load(Ordering::Relaxed)).sum()
    }

    /// Million frames a second: in one direction or in both.
    fn run(&self, duration: Duration) -> f64 {
        let both = text("--direction").is_none_or(|direction| direction == "both");
        let batch = option("--batch", 32) as usize;
        let stop = AtomicBool::new(false);
        let before = self.count();
        let start = Instant::now();
        std::thread::scope(|scope| {
            for end in 0..2 {
                let stop = &stop;
                scope.spawn(move || {
                    run_on(end);
                    let (mut line, mut copies) = ([7; 64], [[0; 64]; 64]);
                    while !stop.load(Ordering::Relaxed) {
                        for (at, lane) in self.lanes.iter().enumerate().take(1 + usize::from(both))
                        {
                            if at == end {
                                lane.write(batch, &mut line);
                            } else {
                                lane.read(batch, &mut copies);
                            }
                        }
                    }
                });
            }
            std::thread::sleep(duration);
            stop.store(true, Ordering::Relaxed);
        });
        (self.count() - before) as f64 / start.elapsed().as_secs_f64() / 1e6
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
    let lines = text("--kind").is_none_or(|kind| kind == LINES).then(Lines::new);
    let mut bare = Vec::new();
    for _ in 0..windows {
        for (_, rig, rates) in &mut rigs {
            rates.push(rig.run(duration));
        }
        bare.extend(lines.iter().map(|lines| lines.run(duration)));
    }
    println!("{:<20}{:>10}{:>10}{:>18}", "million frames/s", "median", "best", "frames at once");
    let rates = rigs.into_iter().map(|(name, rig, rates)| (*name, rates, rig.frames_each()));
    let bare = lines.is_some().then_some((LINES, bare, option("--batch", 32) as f64));
    for (name, mut rates, each) in rates.chain(bare) {
        rates.sort_by(f64::total_cmp);
        let (median, best) = (rates[rates.len() / 2], rates[rates.len() - 1]);
        println!("{name:<20}{median:>10.1}{best:>10.1}{each:>18.1}");
    }
}
