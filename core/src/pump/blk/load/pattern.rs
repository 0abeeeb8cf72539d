//! What the sectors of a disk under load hold: bytes that follow from the sector's number, so that
//! whatever is read can be checked, whoever wrote it and however often.

use super::super::SECTOR_BYTES;
use crate::memory::{copy_from_shared, copy_to_shared, fill_streaming};

const SECTOR: usize = SECTOR_BYTES as usize;
const LINE: usize = 64;
/// Stands where the device is to write.
const UNWRITTEN: [u8; SECTOR] = [0xa5; SECTOR];
/// 2^64 divided by the golden ratio: multiplied by it, neighbouring numbers end up far apart.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a block should read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// What the load writes.
    Pattern,
    /// What a null disk answers.
    Zeroes,
}

/// A number that changes in about half of its bits whenever `value` changes in one (splitmix64).
pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(SPREAD);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn sector_bytes(sector: u64, seed: u64) -> [u8; SECTOR] {
    let mut word = mix(sector ^ mix(seed));
    let mut bytes = [0; SECTOR];
    for place in bytes.chunks_exact_mut(8) {
        place.copy_from_slice(&word.to_le_bytes());
        word = word.wrapping_add(SPREAD);
    }
    bytes
}

/// Blocks of whole sectors in memory that a device reads and writes.
#[derive(Clone, Copy)]
pub struct Block {
    /// The first of `bytes` bytes.
    pub ptr: *mut u8,
    pub bytes: usize,
}

impl Block {
    /// Writes the pattern of the sectors from `sector` on, past the caches: in the device's hands
    /// next, it should not have to be asked for here. Before the device is told comes `streamed`.
    ///
    /// # Safety
    /// The block must be valid for writing.
    pub unsafe fn fill(self, sector: u64, seed: u64) {
        if !self.ptr.addr().is_multiple_of(LINE) {
            for (at, sector) in (0..self.bytes).step_by(SECTOR).zip(sector..) {
                // SAFETY: within the block.
                unsafe { copy_to_shared(self.ptr.add(at), &sector_bytes(sector, seed)) };
            }
            return;
        }
        for (at, sector) in (0..self.bytes).step_by(SECTOR).zip(sector..) {
            let mut word = mix(sector ^ mix(seed));
            for at in (at..at + SECTOR).step_by(LINE) {
                let words = std::array::from_fn(|_| {
                    let now = word;
                    word = word.wrapping_add(SPREAD);
                    now.to_le()
                });
                // SAFETY: a line within the block.
                unsafe { fill_streaming(self.ptr.add(at), words) };
            }
        }
    }

    /// Writes what no device answers with.
    ///
    /// # Safety
    /// As for `fill`.
    pub unsafe fn spoil(self) {
        for at in (0..self.bytes).step_by(SECTOR) {
            // SAFETY: within the block.
            unsafe { copy_to_shared(self.ptr.add(at), &UNWRITTEN) };
        }
    }

    /// The first sector whose content is not as it should be.
    ///
    /// # Safety
    /// The block must be valid for reading.
    pub unsafe fn differing(self, sector: u64, seed: u64, content: Content) -> Option<u64> {
        let mut bytes = [0; SECTOR];
        let sectors = (0..self.bytes).step_by(SECTOR).zip(sector..);
        for (at, sector) in sectors {
            // SAFETY: within the block.
            unsafe { copy_from_shared(self.ptr.add(at), &mut bytes) };
            let expected = match content {
                Content::Pattern => sector_bytes(sector, seed),
                Content::Zeroes => [0; SECTOR],
            };
            if bytes != expected {
                return Some(sector);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_told_from_any_other() {
        let mut bytes = vec![0; 3 * SECTOR];
        let block = Block { ptr: bytes.as_mut_ptr(), bytes: bytes.len() };
        // SAFETY: the block is the vector.
        unsafe {
            assert_eq!(block.differing(7, 1, Content::Zeroes), None);
            assert_eq!(block.differing(7, 1, Content::Pattern), Some(7));
            block.fill(7, 1);
            assert_eq!(block.differing(7, 1, Content::Pattern), None);
            assert_eq!(block.differing(8, 1, Content::Pattern), Some(8));
            assert_eq!(block.differing(7, 2, Content::Pattern), Some(7));
            *block.ptr.add(2 * SECTOR + 511) ^= 1;
            assert_eq!(block.differing(7, 1, Content::Pattern), Some(9));
            block.spoil();
            assert_eq!(block.differing(7, 1, Content::Zeroes), Some(7));
        }
    }
}
