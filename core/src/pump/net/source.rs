//! A port that makes up packets, as many as there are buffers for.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::frame::Maker;
use super::sink::Forget;
use super::{
    BATCH, FRAME_BYTES_MAX, FRAME_BYTES_MIN, HEADER_BYTES, Ledger, Link, Receiver, Sender, Tally,
};

/// Gives frames that can be told apart and checked: behind the Ethernet header a sequence number in 8
/// big-endian bytes, then bytes that count up from its lowest one, cut to the size. Every queue pair
/// that asks gets the next number. What is sent here is forgotten.
pub struct SourceLink {
    size: usize,
    made: Arc<Made>,
}

struct Made {
    count: Option<u64>,
    numbers: Mutex<Numbers>,
}

#[derive(Default)]
struct Numbers {
    next: u64,
    /// Those of packets that came back.
    returned: BTreeSet<u64>,
}

impl Made {
    fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn claim(&self) -> Option<u64> {
        let mut numbers = self.lock();
        if let Some(returned) = numbers.returned.pop_first() {
            return Some(returned);
        }
        let next = numbers.next;
        let is_left = self.count.is_none_or(|count| next < count);
        numbers.next += u64::from(is_left);
        is_left.then_some(next)
    }
}

impl SourceLink {
    /// `count` frames of `size` bytes; None: without end. Fails for a size that no frame has.
    pub fn new(size: usize, count: Option<u64>) -> io::Result<Self> {
        if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&size) {
            let text =
                format!("a frame of {size} bytes is not in {FRAME_BYTES_MIN}..={FRAME_BYTES_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(Self { size, made: Arc::new(Made { count, numbers: Mutex::default() }) })
    }
}

impl Link for SourceLink {
    fn sender(&self, _pair: u16) -> io::Result<Box<dyn Sender>> {
        Ok(Box::new(Forget::new()))
    }

    fn receiver(&self, _pair: u16, _ledger: &Ledger) -> io::Result<Box<dyn Receiver>> {
        let made = Arc::clone(&self.made);
        Ok(Box::new(Generator { maker: Maker::new(self.size), made, last: 0 }))
    }
}

struct Generator {
    maker: Maker,
    made: Arc<Made>,
    last: u64,
}

impl Receiver for Generator {
    fn next(&mut self, packet: &mut Vec<u8>, _tally: &mut Tally) -> bool {
        let Some(sequence) = self.made.claim() else { return false };
        self.last = sequence;
        packet.extend_from_slice(&[0; HEADER_BYTES]);
        packet.extend_from_slice(self.maker.frame(sequence));
        true
    }

    fn give_back(&mut self, _packet: Vec<u8>) {
        self.made.lock().returned.insert(self.last);
    }

    fn ahead(&self) -> usize {
        let next = self.made.lock().next;
        self.made.count.map_or(BATCH, |count| count.saturating_sub(next).min(BATCH as u64) as usize)
    }
}
