//! How far two processors are from each other: what a cache line takes to go round between them.
//!
//! Two ends of a ring pay it for every line that changes hands, so it says more about a rate than the
//! clock does. A host that moves a virtual machine's processors changes it, by a factor of five where
//! they end up without a cache in common.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::loopback::run_on;

/// Trips that are timed at once. The median of several such times leaves out interruptions.
const TRIPS: u64 = 50;
const TIMES: usize = 9;
/// Longer than all of it takes, unless one of the processors has something else to do.
const PATIENCE: Duration = Duration::from_millis(5);
/// At the line between two at the clock.
const LOOKS: u32 = 1024;

/// A line that nobody else writes in.
#[repr(align(128))]
struct Line(AtomicU64);

/// How long a line takes from one processor to another and back, both of which this process may use.
/// None if it cannot be told: they are the same, or one of them had no time.
pub fn round_trip(one: usize, other: usize) -> Option<Duration> {
    if one == other {
        return None;
    }
    let (line, stop) = (Line(AtomicU64::new(0)), AtomicBool::new(false));
    // Acquire and release pair with each other, though nothing is behind the number.
    let until = |number: u64| {
        while line.0.load(Ordering::Acquire) != number {
            if stop.load(Ordering::Relaxed) {
                return false;
            }
            std::hint::spin_loop();
        }
        true
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            run_on(other);
            for trip in 0.. {
                if !until(2 * trip + 1) {
                    return;
                }
                line.0.store(2 * trip + 2, Ordering::Release);
            }
        });
        let timing = scope.spawn(|| {
            run_on(one);
            let (begun, mut times, mut number) = (Instant::now(), Vec::with_capacity(TIMES), 0);
            // The first time, the other thread may be on its way still.
            while times.len() <= TIMES {
                let start = Instant::now();
                for _ in 0..TRIPS {
                    line.0.store(number + 1, Ordering::Release);
                    number += 2;
                    let mut looks = 0_u32;
                    while line.0.load(Ordering::Acquire) != number {
                        looks += 1;
                        if looks.is_multiple_of(LOOKS) && begun.elapsed() > PATIENCE {
                            return None;
                        }
                        std::hint::spin_loop();
                    }
                }
                times.push(start.elapsed() / TRIPS as u32);
            }
            let timed = &mut times[1..];
            timed.sort();
            Some(timed[TIMES / 2])
        });
        let found = timing.join();
        stop.store(true, Ordering::Relaxed);
        found.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pump::loopback::may_run_on;

    #[test]
    fn a_line_goes_round_or_nobody_says_so() {
        assert_eq!(round_trip(0, 0), None);
        let usable: Vec<usize> = (0..64).filter(|&cpu| may_run_on(cpu)).take(2).collect();
        if let [one, other] = usable[..] {
            // A machine that is busy elsewhere may not let both run at once, however often one asks.
            let found = (0..50).find_map(|_| round_trip(one, other));
            assert!(found.is_none_or(|time| time > Duration::ZERO && time < PATIENCE));
        }
    }
}
