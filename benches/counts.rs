//! The same steps each time, to be counted: both halves in turn on one thread, 64-byte payloads.
//!
//! `counts KIND DIRECTION BATCH BUFFERS [event|index]`, KIND being the feature bits in hexadecimal.
//! Prints buffers, used entries, kicks and calls. Under callgrind, `DriverEnd::turn` and
//! `DeviceEnd::turn` have the instructions of each half.

use virtq_core::pump::loopback::{Direction, LoopSetup, RingLoop};
use virtq_core::ring::feature;

fn main() {
    // `cargo bench` passes a word of its own.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let [kind, direction, batch, buffers, rest @ ..] = &words[..] else {
        println!("counts: say KIND DIRECTION BATCH BUFFERS [event|index]");
        return;
    };
    let features = u64::from_str_radix(kind, 16).expect("KIND is hexadecimal");
    let wait = rest.first().map(String::as_str);
    let setup = LoopSetup {
        features: features | if wait == Some("index") { feature::EVENT_IDX } else { 0 },
        size: 256,
        direction: if direction == "receive" { Direction::Receive } else { Direction::Send },
        batch: batch.parse().expect("BATCH is a number"),
        chain: 1,
        length: 64,
        indirect: false,
        event: wait.is_some(),
        regions: 1,
        depth: None,
        spread: false,
        pin: None,
    };
    let mut ring = RingLoop::new(setup).unwrap_or_else(|error| panic!("{error}"));
    let buffers = buffers.parse().expect("BUFFERS is a number");
    let did = ring.alternate(buffers).expect("both halves are well behaved");
    println!("{} {} {} {}", did.buffers, did.used_entries, did.kicks_sent, did.calls_sent);
}
