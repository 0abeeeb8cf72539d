//! A port that takes everything and gives nothing.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{FRAME_BYTES_MAX, Frames, Ledger, Link, Receiver, Sender, Tally};

/// Copies frames out of guest memory and forgets them; or sums them up and keeps the last ones, so
/// that whoever sent them can be checked.
pub struct SinkLink {
    keep: usize,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    checksum: u64,
    last: VecDeque<Vec<u8>>,
}

impl SinkLink {
    /// Keeps the last `keep` frames and a checksum of all; 0: neither.
    pub fn new(keep: usize) -> Self {
        Self { keep, seen: Arc::default() }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    /// The CRC-32 of each frame, added up modulo 2^64: the same whatever the order.
    pub fn checksum(&self) -> u64 {
        self.seen().checksum
    }

    /// The frames that were kept, oldest first.
    pub fn last(&self) -> Vec<Vec<u8>> {
        self.seen().last.iter().cloned().collect()
    }

    /// How many frames are kept.
    pub fn keep(&self) -> usize {
        self.keep
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Link for SinkLink {
    fn sender(&self, _pair: u16) -> io::Result<Box<dyn Sender>> {
        Ok(if self.keep == 0 {
            Box::new(Forget::new())
        } else {
            Box::new(Keep { keep: self.keep, seen: Arc::clone(&self.seen), spare: Vec::new() })
        })
    }

    fn receiver(&self, _pair: u16, _ledger: &Ledger) -> io::Result<Box<dyn Receiver>> {
        Ok(Box::new(Silent))
    }
}

/// Never has a packet.
pub(super) struct Silent;

impl Receiver for Silent {
    fn next(&mut self, _packet: &mut Vec<u8>, _tally: &mut Tally) -> bool {
        false
    }
}

/// Copies each frame out, as a device that does something with it would.
pub(super) struct Forget {
    frame: Vec<u8>,
}

impl Forget {
    pub fn new() -> Self {
        Self { frame: Vec::with_capacity(FRAME_BYTES_MAX) }
    }
}

impl Sender for Forget {
    fn send(&mut self, frames: &Frames<'_>, tally: &mut Tally) {
        for frame in frames.iter() {
            self.frame.clear();
            frame.append_to(&mut self.frame);
            tally.packets += 1;
            tally.bytes += frame.len() as u64;
        }
    }
}

struct Keep {
    keep: usize,
    seen: Arc<Mutex<Seen>>,
    spare: Vec<u8>,
}

impl Sender for Keep {
    fn send(&mut self, frames: &Frames<'_>, tally: &mut Tally) {
        let mut seen = lock(&self.seen);
        for frame in frames.iter() {
            let mut copy = std::mem::take(&mut self.spare);
            copy.clear();
            frame.append_to(&mut copy);
            seen.checksum = seen.checksum.wrapping_add(crc32(&copy).into());
            seen.last.push_back(copy);
            if seen.last.len() > self.keep {
                self.spare = seen.last.pop_front().unwrap_or_default();
            }
            tally.packets += 1;
            tally.bytes += frame.len() as u64;
        }
    }
}

/// The CRC-32 of Ethernet, zlib and PNG.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| CRC_TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

static CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let (mut crc, mut bit) = (index as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_check_value() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }
}
