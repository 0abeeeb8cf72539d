//! The core alone: a driver half on one thread, a device half on another, 64-byte payloads.
//!
//! The sender writes every payload, the receiver copies it out, batches of 32, queue of 256. Rates
//! on shared machines jump, so each kind of ring runs in many short windows, taken in turn, and the
//! table shows the best and the median.
//!
//! `cargo bench -p virtq-core -- [--windows N] [--ms MILLISECONDS] [--kind WORDS]
//! [--direction send|receive|both] [--batch N] [--size N] [--regions N] [--length BYTES] [--free]`
//!
//! `--kind` picks one kind of ring, such as "packed, in order". `--free`: do not pin the threads.

mod options;

use std::time::Duration;

use options::{KINDS, is_set, option, text};
use virtq_core::pump::loopback::{Direction, LoopReport, LoopSetup, RingLoop};

fn main() {
    let windows = option("--windows", 20).clamp(1, 1000);
    let duration = Duration::from_millis(option("--ms", 200).clamp(1, 10_000));
    let direction = match text("--direction").as_deref() {
        Some("receive") => Direction::Receive,
        Some("both") => Direction::Both,
        _ => Direction::Send,
    };
    let free = is_set("--free");
    let mut kinds = Vec::new();
    for (name, features) in
        KINDS.iter().filter(|(name, _)| text("--kind").is_none_or(|kind| kind == *name))
    {
        let setup = LoopSetup {
            features: *features,
            size: option("--size", 256) as u16,
            direction,
            batch: option("--batch", 32) as usize,
            chain: 1,
            length: option("--length", 64) as u32,
            indirect: false,
            event: false,
            regions: option("--regions", 1) as usize,
            depth: None,
            spread: false,
            pin: (!free).then_some((0, 1)),
        };
        let ring = RingLoop::new(setup).unwrap_or_else(|error| panic!("{error}"));
        kinds.push((name, ring, Vec::new(), LoopReport::default()));
    }
    for _ in 0..windows {
        for (_, ring, rates, last) in &mut kinds {
            *last = ring.run(duration).expect("both halves are well behaved");
            rates.push(last.buffers as f64 / last.seconds / 1e6);
        }
    }
    println!(
        "{:<20}{:>10}{:>10}{:>24}",
        "million buffers/s", "median", "best", "used entries per 1000"
    );
    for (name, _, rates, last) in &mut kinds {
        rates.sort_by(f64::total_cmp);
        let (median, best) = (rates[rates.len() / 2], rates[rates.len() - 1]);
        let entries = last.used_entries * 1000 / last.buffers.max(1);
        println!("{name:<20}{median:>10.1}{best:>10.1}{entries:>24}");
    }
}
