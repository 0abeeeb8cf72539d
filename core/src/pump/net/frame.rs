//! Frames that can be told apart and checked: behind the Ethernet header a sequence number in 8
//! big-endian bytes, then bytes that count up from its lowest one, cut to the size.

use super::{FRAME_BYTES_MIN, HEADER_BYTES};
use crate::memory::{copy_from_shared, copy_to_shared, store_pair};

/// Broadcast, from a locally administered address, of the type for local experiments.
const ETHERNET: [u8; FRAME_BYTES_MIN] =
    [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];
const SEQUENCE_BYTES: usize = 8;
const BODY: usize = FRAME_BYTES_MIN + SEQUENCE_BYTES;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV4_BYTES: usize = 20;

/// The same as two little-endian words, of which the second has room for two bytes more.
const ETHERNET_START: u64 = u64::from_le_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0]);
const ETHERNET_END: u64 = u64::from_le_bytes([0, 0, 0, 1, 0x88, 0xb5, 0, 0]);
/// From this size on a frame is not put together before it is copied.
const DIRECT_MIN: usize = 48;

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
    /// Whether the processor's widest registers are used.
    wide: bool,
}

impl Maker {
    /// For frames of `size` bytes.
    pub fn new(size: usize) -> Self {
        let mut frame = vec![0; size.max(BODY)].into_boxed_slice();
        frame[..FRAME_BYTES_MIN].copy_from_slice(&ETHERNET);
        let pattern = (0..size.max(WIDE) + 256).map(|at| at as u8).collect();
        Self { frame, pattern, size, wide: wide::is_there() }
    }

    /// Bytes of a frame.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Write frames whose sequence numbers count up from `first` straight into shared memory.
    ///
    /// # Safety
    /// Each of `frames` must be valid for writing [`Maker::size`] bytes.
    #[inline]
    pub unsafe fn write_each(&mut self, frames: impl Iterator<Item = *mut u8>, first: u64) {
        if self.wide {
            // SAFETY: by contract, and `wide::is_there` was asked.
            return unsafe { wide::write_each(self, frames, first) };
        }
        let mut sequence = first;
        for frame in frames {
            // SAFETY: by contract.
            unsafe { self.write(frame, sequence) };
            sequence = sequence.wrapping_add(1);
        }
    }

    /// # Safety
    /// `into` must be valid for writing [`Maker::size`] bytes.
    #[inline]
    unsafe fn write(&mut self, into: *mut u8, sequence: u64) {
        // SAFETY: all within the frame.
        unsafe {
            if self.size < DIRECT_MIN {
                return copy_to_shared(into, self.frame(sequence));
            }
            // The first 24 bytes are put together in registers: what was just written in pieces and is
            // read as a whole would have to wait.
            let low = sequence as u8;
            let start = usize::from(low) + 2;
            let rest = &self.pattern[start..start + self.size - 24];
            let number = sequence.swap_bytes();
            let second = ETHERNET_END | number << 48;
            let third = number >> 16 | u64::from(low) << 48 | u64::from(low.wrapping_add(1)) << 56;
            let (after, rest) = rest.split_first_chunk().expect("16 bytes at least");
            store_pair(into, [ETHERNET_START, second]);
            store_pair(into.add(16), [third, u64::from_le_bytes(*after)]);
            copy_to_shared(into.add(32), rest);
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

/// Bytes that are written at once where that is possible.
const WIDE: usize = 64;

/// A frame is its pattern, begun so much earlier that its numbers are right behind the head, with the
/// head laid over it.
#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::{
        __m512i, _mm_set_epi64x, _mm512_loadu_si512, _mm512_mask_blend_epi8,
        _mm512_mask_storeu_epi8, _mm512_maskz_loadu_epi8, _mm512_set1_epi64, _mm512_storeu_si512,
        _mm512_zextsi128_si512,
    };
    use std::sync::atomic::{Ordering, compiler_fence};

    use super::{BODY, ETHERNET_END, ETHERNET_START, FRAME_BYTES_MIN, Maker, SEQUENCE_BYTES, WIDE};

    /// Frames above it are mostly copied by the C library.
    const LARGE: usize = 2048;
    const ETHERNET: u64 = (1 << FRAME_BYTES_MIN) - 1;
    const SEQUENCE: u64 = ((1 << SEQUENCE_BYTES) - 1) << FRAME_BYTES_MIN;

    /// Whether the processor has AVX-512, with operations on bytes.
    pub fn is_there() -> bool {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn write_each(maker: &Maker, frames: impl Iterator<Item = *mut u8>, first: u64) {
        let head = _mm_set_epi64x(ETHERNET_END as i64, ETHERNET_START as i64);
        let head = _mm512_zextsi128_si512(head);
        let mut sequence = first;
        for frame in frames {
            // SAFETY: by contract: `size` bytes of the frame, and at most as many of the pattern, behind
            // the 255 that it may begin later, or a whole line.
            unsafe {
                let start = usize::from((sequence as u8).wrapping_sub(BODY as u8));
                let pattern = maker.pattern.as_ptr().add(start);
                // Its first two bytes end a word of eight, the others begin the next one.
                let number = sequence.swap_bytes().rotate_right(16) as i64;
                let line = _mm512_loadu_si512(pattern.cast());
                let line = _mm512_mask_blend_epi8(ETHERNET, line, head);
                let line = _mm512_mask_blend_epi8(SEQUENCE, line, _mm512_set1_epi64(number));
                if maker.size == WIDE {
                    _mm512_storeu_si512(frame.cast(), line);
                } else {
                    write_rest(frame, pattern, maker.size, line);
                }
            }
            sequence = sequence.wrapping_add(1);
        }
        compiler_fence(Ordering::SeqCst);
    }

    /// A frame that is not one line.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn write_rest(frame: *mut u8, pattern: *const u8, size: usize, first: __m512i) {
        let mut line = first;
        let mut at = 0;
        // SAFETY: within both.
        unsafe {
            if size > LARGE {
                // Long copies know how to write lines that they need not fetch first.
                _mm512_storeu_si512(frame.cast(), line);
                return frame.add(WIDE).copy_from(pattern.add(WIDE), size - WIDE);
            }
            while at + WIDE <= size {
                _mm512_storeu_si512(frame.add(at).cast(), line);
                at += WIDE;
                let left = size.saturating_sub(at).min(WIDE);
                line = _mm512_maskz_loadu_epi8(mask(left), pattern.add(at).cast());
            }
            _mm512_mask_storeu_epi8(frame.add(at).cast(), mask(size - at), line);
        }
    }

    /// The first so many bytes of a line.
    #[inline]
    fn mask(bytes: usize) -> u64 {
        if bytes < WIDE { (1 << bytes) - 1 } else { u64::MAX }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod wide {
    use super::Maker;

    pub fn is_there() -> bool {
        false
    }

    pub unsafe fn write_each(_: &Maker, _: impl Iterator<Item = *mut u8>, _: u64) {}
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
        let sizes = [14, 22, 23, 40, 47, 48, 60, 63, 64, 65, 127, 128, 129, 300, 1500, 9000];
        for (size, wide) in sizes.into_iter().flat_map(|size| [(size, true), (size, false)]) {
            let mut maker = Maker::new(size);
            maker.wide &= wide;
            for sequence in [0, 1, 255, 256, 0x0102_0304_0506_0708, u64::MAX - 1] {
                let mut written = vec![0xee; 2 * size + 32];
                let start = written.as_mut_ptr();
                // SAFETY: two frames one behind the other, and 16 bytes on either side.
                unsafe {
                    let frames = [start.add(16), start.add(16 + size)];
                    maker.write_each(frames.into_iter(), sequence);
                }
                let around = written[..16].iter().chain(&written[16 + 2 * size..]);
                assert!(around.into_iter().all(|&byte| byte == 0xee), "{size}");
                let both = &written[16..16 + 2 * size];
                assert_eq!(both[..size], *maker.frame(sequence), "{size}, wide: {wide}");
                assert_eq!(both[size..], *maker.frame(sequence + 1), "{size}, wide: {wide}");
                let mut frame = maker.frame(sequence).to_vec();
                if size < BODY {
                    assert_eq!((frame.len(), check(&frame)), (size, Check::Unknown));
                    continue;
                }
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
