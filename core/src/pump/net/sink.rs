//! A port that takes everything and gives nothing.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::frame::{Check, check_sequence};
use super::{FRAME_BYTES_MAX, Frames, HEADER_BYTES, Ledger, Link, Receiver, Sender, Tally};
use crate::memory::copy_frame_from_shared;
use crate::ring::Segment;

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

/// Copies each frame out, as a device that does something with it would. Of each burst it looks at
/// the last one: if that claims to come from a source and is not as a source makes it, it counts as an
/// error of the port instead.
pub(super) struct Forget {
    frame: Vec<u8>,
    /// The frames of one burst, apart from each other as long as they are small.
    copies: Box<[u8]>,
}

/// Room for the copies of a burst, and how far apart small ones begin.
const COPIES_BYTES: usize = FRAME_BYTES_MAX.next_multiple_of(128);
const SMALL_BYTES: usize = 128;
const COPIES: usize = 32;

impl Forget {
    pub fn new() -> Self {
        Self { frame: Vec::new(), copies: vec![0; COPIES_BYTES].into_boxed_slice() }
    }

    /// Copy frames that lie in one piece each; returns their bytes, and the last one.
    fn copy(&mut self, segments: &[Segment]) -> (usize, &[u8]) {
        let (mut bytes, mut last) = (0, 0..0);
        for (place, segment) in segments.iter().enumerate() {
            let len = segment.len as usize - HEADER_BYTES;
            let start = if len <= SMALL_BYTES { place % COPIES * SMALL_BYTES } else { 0 };
            last = start..start + len;
            // SAFETY: mapped while the burst holds it; it is longer than a header.
            unsafe {
                copy_frame_from_shared(
                    segment.ptr.add(HEADER_BYTES),
                    &mut self.copies[last.clone()],
                );
            }
            bytes += len;
        }
        (bytes, &self.copies[last])
    }
}

impl Sender for Forget {
    fn send(&mut self, frames: &Frames<'_>, tally: &mut Tally) {
        if let Some(segments) = frames.segments() {
            let (bytes, last) = self.copy(segments);
            let (count, len) = (segments.len() as u64, last.len() as u64);
            let wrong = u64::from(check_sequence(last) == Check::Wrong);
            tally.packets += count - wrong;
            tally.bytes += bytes as u64 - wrong * len;
            tally.dropped_port_error += wrong;
            return;
        }
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
