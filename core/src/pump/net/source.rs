//! A port that makes up packets, as many as there are buffers for.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::frame::{Maker, put_header};
use super::sink::Forget;
use crate::ring::Burst;

use super::{
    BATCH, FRAME_BYTES_MAX, FRAME_BYTES_MIN, HEADER_BYTES, Ledger, Link, Receiver, Sender, Tally,
};

/// Gives frames that can be told apart and checked: behind the Ethernet header a sequence number in 8
/// big-endian bytes, then bytes that count up from its lowest one, cut to the size. Every queue pair
/// that asks gets the next number, or the next few. What is sent here is forgotten.
pub struct SourceLink {
    size: usize,
    made: Arc<Made>,
}

struct Made {
    count: Option<u64>,
    next: AtomicU64,
    /// Numbers of packets that came back, and whether there may be any.
    returned: Mutex<BTreeSet<u64>>,
    some_returned: AtomicBool,
}

impl Made {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.returned.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The first of those that came back.
    fn claim_returned(&self) -> Option<u64> {
        if !self.some_returned.load(Ordering::Relaxed) {
            return None;
        }
        let mut returned = self.lock();
        let first = returned.pop_first();
        self.some_returned.store(!returned.is_empty(), Ordering::Relaxed);
        first
    }

    fn claim_new(&self, most: usize) -> (u64, usize) {
        let mut claimed = 0;
        let claim = |next| {
            let left = self.count.map_or(u64::MAX, |count| count - next);
            claimed = left.min(most as u64);
            Some(next + claimed)
        };
        // The closure always has a value.
        let (Ok(first) | Err(first)) =
            self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim);
        (first, claimed as usize)
    }

    fn give_back(&self, number: u64) {
        let mut returned = self.lock();
        returned.insert(number);
        self.some_returned.store(true, Ordering::Relaxed);
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
        let (next, some_returned) = (AtomicU64::new(0), AtomicBool::new(false));
        let made = Made { count, next, returned: Mutex::default(), some_returned };
        Ok(Self { size, made: Arc::new(made) })
    }
}

impl Link for SourceLink {
    fn sender(&self, _pair: u16) -> io::Result<Box<dyn Sender>> {
        Ok(Box::new(Forget::new()))
    }

    fn receiver(&self, _pair: u16, _ledger: &Ledger) -> io::Result<Box<dyn Receiver>> {
        let made = Arc::clone(&self.made);
        Ok(Box::new(Generator { maker: Maker::new(self.size), made, own: 0..0, last: 0 }))
    }
}

/// The header of a packet without offloads in one buffer.
const ONE_BUFFER: [u8; HEADER_BYTES] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Of numbers without end, how many a queue pair claims at once: each claim waits until all frames that
/// were just written have their lines.
const CLAIM: usize = 1024;

struct Generator {
    maker: Maker,
    made: Arc<Made>,
    /// Numbers that are claimed and not made yet.
    own: Range<u64>,
    last: u64,
}

impl Generator {
    /// The first of up to `most` numbers in a row, and how many they are. None while some came back:
    /// those go first, one by one.
    fn claim(&mut self, most: usize) -> (u64, usize) {
        if self.made.some_returned.load(Ordering::Relaxed) {
            return (0, 0);
        }
        if self.own.is_empty() {
            let wanted = if self.made.count.is_none() { CLAIM } else { most };
            let (first, count) = self.made.claim_new(wanted);
            self.own = first..first + count as u64;
        }
        let first = self.own.start;
        let count = (self.own.end - first).min(most as u64);
        self.own.start += count;
        (first, count as usize)
    }
}

impl Drop for Generator {
    /// Whoever asks next goes on where this one ends. If others have gone on already, the rest is left
    /// out: each sees numbers that go up.
    fn drop(&mut self) {
        let Range { start, end } = self.own;
        let next = &self.made.next;
        let _ = next.compare_exchange(end, start, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl Receiver for Generator {
    fn next(&mut self, packet: &mut Vec<u8>, _tally: &mut Tally) -> bool {
        let sequence = match self.made.claim_returned() {
            Some(returned) => returned,
            None => match self.claim(1) {
                (first, 1) => first,
                _ => return false,
            },
        };
        self.last = sequence;
        packet.extend_from_slice(&[0; HEADER_BYTES]);
        packet.extend_from_slice(self.maker.frame(sequence));
        true
    }

    fn fills(&self) -> bool {
        let made = &self.made;
        !made.some_returned.load(Ordering::Relaxed)
            && made.count.is_none_or(|count| made.next.load(Ordering::Relaxed) < count)
    }

    fn fill(
        &mut self,
        burst: &mut Burst,
        most: usize,
        frame_bytes_max: usize,
        tally: &mut Tally,
    ) -> usize {
        let size = self.maker.size();
        let needed = (HEADER_BYTES + size) as u32;
        if size > frame_bytes_max {
            return 0;
        }
        let (first, count) = self.claim(burst.at_least(needed).min(most));
        let frames = burst.segments()[..count].iter().map(|segment| {
            // SAFETY: the segment is mapped while the burst holds it, and has room for a header.
            unsafe { put_header(segment.ptr, &ONE_BUFFER) };
            segment.ptr.wrapping_add(HEADER_BYTES)
        });
        // SAFETY: as above, and room for a frame.
        unsafe { self.maker.write_each(frames, first) };
        burst.set_all_written(count, needed);
        if let Some(before_last) = (count as u64).checked_sub(1) {
            self.last = first + before_last;
        }
        tally.packets += count as u64;
        tally.bytes += (count * size) as u64;
        count
    }

    fn give_back(&mut self, _packet: Vec<u8>) {
        self.made.give_back(self.last);
    }

    fn ahead(&self) -> usize {
        let next = self.made.next.load(Ordering::Relaxed);
        self.made.count.map_or(BATCH, |count| count.saturating_sub(next).min(BATCH as u64) as usize)
    }
}
