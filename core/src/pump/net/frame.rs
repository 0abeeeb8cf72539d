//! Frames that can be told apart and checked: behind the Ethernet header a sequence number in 8
//! big-endian bytes, then bytes that count up from its lowest one, cut to the size.

use super::FRAME_BYTES_MIN;

/// Broadcast, from a locally administered address, of the type for local experiments.
const ETHERNET: [u8; FRAME_BYTES_MIN] =
    [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];
const SEQUENCE_BYTES: usize = 8;
const BODY: usize = FRAME_BYTES_MIN + SEQUENCE_BYTES;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV4_BYTES: usize = 20;

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

/// Looks at a whole frame.
pub fn check(frame: &[u8]) -> Check {
    if frame.len() < BODY {
        return Check::Unknown;
    }
    if frame[..FRAME_BYTES_MIN] == ETHERNET {
        let (number, body) = frame[FRAME_BYTES_MIN..].split_at(SEQUENCE_BYTES);
        let sequence = u64::from_be_bytes(number.try_into().expect("eight bytes"));
        let counts = |(at, byte): (usize, &u8)| *byte == (sequence as u8).wrapping_add(at as u8);
        let right = body.iter().enumerate().all(counts);
        return if right { Check::Sequence(sequence) } else { Check::Wrong };
    }
    if frame[12..14] != IPV4 || frame.len() < FRAME_BYTES_MIN + IPV4_BYTES {
        return Check::Unknown;
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
            for sequence in [0, 1, 255, 256, u64::MAX] {
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
