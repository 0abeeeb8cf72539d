//! Frames that can be told apart and checked: behind the Ethernet header a sequence number in 8
//! big-endian bytes, then bytes that count up from its lowest one, cut to the size.

use super::{FRAME_BYTES_MIN, HEADER_BYTES};
use crate::memory::{copy_from_shared, copy_to_shared};

/// Broadcast, from a locally administered address, of the type for local experiments.
const ETHERNET: [u8; FRAME_BYTES_MIN] =
    [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];
const SEQUENCE_BYTES: usize = 8;
const BODY: usize = FRAME_BYTES_MIN + SEQUENCE_BYTES;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV4_BYTES: usize = 20;

const ETHERNET_START: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0];
const ETHERNET_END: [u8; 6] = [0, 0, 0, 1, 0x88, 0xb5];
/// From this size on a frame is not put together before it is copied.
const DIRECT_MIN: usize = 40;

/// The header of a packet, left alone where it is there already: a line that nobody writes stays in
/// the caches of both sides.
///
/// # Safety
/// `into` must be valid for reading and writing [`HEADER_BYTES`].
#[inline]
pub unsafe fn put_header(into: *mut u8, header: &[u8; HEADER_BYTES]) {
    let mut there = [0; HEADER_BYTES];
    let (first, rest) = there.split_at_mut(8);
    // SAFETY: valid by contract.
    unsafe {
        copy_from_shared(into, first);
        copy_from_shared(into.add(8), rest);
        if there != *header {
            copy_to_shared(into, &header[..8]);
            copy_to_shared(into.add(8), &header[8..]);
        }
    }
}

/// Makes them, one size each.
pub struct Maker {
    frame: Box<[u8]>,
    /// 256 patterns overlap: the one for a sequence number begins at its lowest byte.
    pattern: Box<[u8]>,
    size: usize,
}

impl Maker {
    /// For frames of `size` bytes.
    pub fn new(size: usize) -> Self {
        let mut frame = vec![0; size.max(BODY)].into_boxed_slice();
        frame[..FRAME_BYTES_MIN].copy_from_slice(&ETHERNET);
        Self { frame, pattern: (0..size + 256).map(|at| at as u8).collect(), size }
    }

    /// Bytes of a frame.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Write the frame with this sequence number straight into shared memory.
    ///
    /// # Safety
    /// `into` must be valid for writing [`Maker::size`] bytes.
    #[inline]
    pub unsafe fn write(&mut self, into: *mut u8, sequence: u64) {
        // SAFETY: all within the frame.
        unsafe {
            if self.size < DIRECT_MIN {
                return copy_to_shared(into, self.frame(sequence));
            }
            // The first 24 bytes are put together in registers: what was just written in pieces and is
            // read as a whole would have to wait.
            let number = sequence.to_be_bytes();
            let low = sequence as u8;
            let [n0, n1, n2, n3, n4, n5, n6, n7] = number;
            let [e8, e9, e10, e11, e12, e13] = ETHERNET_END;
            copy_to_shared(into, &ETHERNET_START);
            copy_to_shared(into.add(8), &[e8, e9, e10, e11, e12, e13, n0, n1]);
            copy_to_shared(into.add(16), &[n2, n3, n4, n5, n6, n7, low, low.wrapping_add(1)]);
            let start = usize::from(low) + 2;
            let rest = &self.pattern[start..start + self.size - 24];
            copy_to_shared(into.add(24), rest);
        }
    }

    /// The frame with this sequence number.
    #[inline]
    pub fn frame(&mut self, sequence: u64) -> &[u8] {
        let start = usize::from(sequence as u8);
        let rest = self.frame.len() - BODY;
        self.frame[FRAME_BYTES_MIN..BODY].copy_from_slice(&sequence.to_be_bytes());
        self.frame[BODY..].copy_from_slice(&self.pattern[start..start + rest]);
        &self.frame[..self.size]
    }
}

/// What a received frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// One of those above, whole, with its sequence number.
    Sequence(u64),
    /// Another kind, of which what can be checked is right.
    Right,
    /// Nothing that can be checked.
    Unknown,
    /// Not what was sent.
    Wrong,
}

/// Looks at a whole frame, if it is one of those above.
pub fn check_sequence(frame: &[u8]) -> Check {
    if frame.len() < BODY || frame[..FRAME_BYTES_MIN] != ETHERNET {
        return Check::Unknown;
    }
    let (number, body) = frame[FRAME_BYTES_MIN..].split_at(SEQUENCE_BYTES);
    let sequence = u64::from_be_bytes(number.try_into().expect("eight bytes"));
    let counts = |(at, byte): (usize, &u8)| *byte == (sequence as u8).wrapping_add(at as u8);
    let right = body.iter().enumerate().all(counts);
    if right { Check::Sequence(sequence) } else { Check::Wrong }
}

/// Looks at a whole frame of any kind.
pub fn check(frame: &[u8]) -> Check {
    let own = check_sequence(frame);
    if own != Check::Unknown
        || frame.len() < FRAME_BYTES_MIN + IPV4_BYTES
        || frame[12..FRAME_BYTES_MIN] != IPV4
    {
        return own;
    }
    let ip = &frame[FRAME_BYTES_MIN..];
    let words = ip[..IPV4_BYTES].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    let total = usize::from(ip[2]) << 8 | usize::from(ip[3]);
    if ip[0] != 0x45 || sum != 0xffff || total > ip.len() { Check::Wrong } else { Check::Right }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_right_and_a_changed_byte_is_not() {
        for size in [22, 23, 64, 300, 1500] {
            let mut maker = Maker::new(size);
            for sequence in [0, 1, 255, 256, 0x0102_0304_0506_0708, u64::MAX] {
                let mut written = vec![0; size];
                // SAFETY: as long as a frame.
                unsafe { maker.write(written.as_mut_ptr(), sequence) };
                assert_eq!(written, maker.frame(sequence));
                let mut frame = maker.frame(sequence).to_vec();
                assert_eq!((frame.len(), check(&frame)), (size, Check::Sequence(sequence)));
                if size > BODY {
                    frame[size - 1] ^= 1;
                    assert_eq!(check(&frame), Check::Wrong);
                }
            }
        }
        assert_eq!(Maker::new(14).frame(5), ETHERNET);
    }

    #[test]
    fn an_ipv4_frame_is_known_by_its_checksum() {
        let mut frame = [0u8; 60];
        frame[12..14].copy_from_slice(&IPV4);
        frame[14] = 0x45;
        frame[17] = 46;
        frame[22] = 64;
        let sum: u32 = 0x4500 + 46 + 0x4000;
        frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        assert_eq!(check(&frame), Check::Right);
        frame[30] ^= 4;
        assert_eq!(check(&frame), Check::Wrong);
        assert_eq!(check(&[0; 60]), Check::Unknown);
    }
}
