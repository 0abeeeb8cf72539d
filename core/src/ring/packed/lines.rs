//! Plain descriptors in a row, four to a cache line.
//!
//! In order the identifier of a buffer is its slot, so a row of descriptors is the row of pieces with
//! numbers that count up. Where the processor can, each four are one store of a whole line.

use crate::area::Area;
use crate::ring::chain::Descriptor;
use crate::ring::{DESCRIPTOR_SIZE, Piece};

/// Descriptors of a cache line.
const LINE: usize = 4;

/// Write a descriptor for each piece, from `slot` on and not beyond the end of the ring, each with its
/// slot as identifier. Nothing is published by that: the descriptor before them comes last.
#[inline]
pub(super) fn write(ring: &Area, slot: u16, pieces: &[Piece], flags: u16) {
    let first = (LINE - usize::from(slot) % LINE) % LINE;
    let (first, rest) = pieces.split_at(first.min(pieces.len()));
    write_each(ring, slot, first, flags);
    let slot = slot + first.len() as u16;
    let (lines, last) = rest.split_at(rest.len() - rest.len() % LINE);
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    if wide::is_there() {
        wide::write(ring, slot, lines, flags);
        return write_each(ring, slot + lines.len() as u16, last, flags);
    }
    write_each(ring, slot, lines, flags);
    write_each(ring, slot + lines.len() as u16, last, flags);
}

#[inline]
fn write_each(ring: &Area, slot: u16, pieces: &[Piece], flags: u16) {
    for (slot, piece) in (slot..).zip(pieces) {
        let word = Descriptor::word(piece.len, slot, flags);
        ring.store_pair(usize::from(slot) * DESCRIPTOR_SIZE, [piece.addr, word]);
    }
}

#[cfg(all(target_arch = "x86_64", not(loom)))]
mod wide {
    use std::arch::x86_64::{
        _mm512_add_epi64, _mm512_maskz_loadu_epi32, _mm512_or_si512, _mm512_set_epi64,
        _mm512_storeu_si512,
    };
    use std::mem::offset_of;
    use std::sync::atomic::{Ordering, compiler_fence};

    use super::{Area, DESCRIPTOR_SIZE, Descriptor, LINE, Piece};

    // A piece is the first twelve bytes of a descriptor.
    const _: () = assert!(
        offset_of!(Piece, addr) == 0
            && offset_of!(Piece, len) == 8
            && size_of::<Piece>() == DESCRIPTOR_SIZE
    );

    /// Whether the processor has AVX-512.
    #[inline]
    pub fn is_there() -> bool {
        #[cfg(test)]
        if super::tests::is_portable() {
            return false;
        }
        is_x86_feature_detected!("avx512f")
    }

    /// Whole lines.
    #[inline]
    pub fn write(ring: &Area, slot: u16, pieces: &[Piece], flags: u16) {
        #[cfg(test)]
        if crate::inflight::killed() {
            return;
        }
        let into = ring.bytes(usize::from(slot) * DESCRIPTOR_SIZE, size_of_val(pieces));
        // SAFETY: `is_there` was asked, and all of it lies in the ring.
        unsafe { write_lines(into, pieces, Descriptor::word(0, slot, flags)) };
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn write_lines(into: *mut u8, pieces: &[Piece], first: u64) {
        let words = |word: [i64; LINE]| {
            let [a, b, c, d] = word;
            _mm512_set_epi64(d, 0, c, 0, b, 0, a, 0)
        };
        // Identifiers have bits 32 to 47, and none goes beyond 32767.
        let id = |id: i64| id << 32;
        let mut high = words([0, 1, 2, 3].map(|at| first as i64 + id(at)));
        let next = words([id(LINE as i64); LINE]);
        for (line, pieces) in pieces.chunks_exact(LINE).enumerate() {
            // SAFETY: four pieces, without what lies between them, and a line inside the ring.
            unsafe {
                let low = _mm512_maskz_loadu_epi32(0x7777, pieces.as_ptr().cast());
                let descriptors = _mm512_or_si512(low, high);
                let at = line * LINE * DESCRIPTOR_SIZE;
                _mm512_storeu_si512(into.add(at).cast(), descriptors);
            }
            high = _mm512_add_epi64(high, next);
        }
        compiler_fence(Ordering::SeqCst);
    }
}

#[cfg(all(test, not(loom)))]
pub(super) mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::area::Ordering;
    use crate::memory::{Mapping, Memory, Region};

    thread_local! {
        static PORTABLE: Cell<bool> = const { Cell::new(false) };
    }

    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub fn is_portable() -> bool {
        PORTABLE.get()
    }

    /// What `run` gives as it is, and without the instructions of this processor.
    pub fn both_ways<T>(run: impl Fn() -> T) -> [T; 2] {
        [false, true].map(|portable| {
            PORTABLE.set(portable);
            let done = run();
            PORTABLE.set(false);
            done
        })
    }

    #[test]
    fn rows_are_written_alike_wherever_they_begin_and_end() {
        let size = 64_u16;
        for (slot, count) in (0..9).flat_map(|slot| (0..20).map(move |count| (slot, count))) {
            let pieces: Vec<_> = (0..count)
                .map(|at| Piece {
                    addr: 0x1234_5678_9abc_0000 + at * 64,
                    len: 0xf000_0000 + at as u32,
                })
                .collect();
            let ways = both_ways(|| {
                let mapping = Mapping::anonymous(4096).unwrap();
                let user_addr = mapping.ptr() as u64;
                let (guest_addr, offset) = (0, 0);
                let region = Region { guest_addr, size: 4096, user_addr, offset, mapping };
                let memory = Memory::new().with_region(region).unwrap();
                let bytes = usize::from(size) * DESCRIPTOR_SIZE;
                let ring = Area::new(&memory, "ring", 0, bytes, 16).unwrap();
                write(&ring, slot, &pieces, 0x8082);
                let word = |at: usize| ring.load64(at * 8, Ordering::Relaxed);
                (0..usize::from(size))
                    .map(|at| (word(2 * at), word(2 * at + 1)))
                    .collect::<Vec<_>>()
            });
            for (at, found) in ways[0].iter().enumerate() {
                let piece = at.checked_sub(slot.into()).and_then(|at| pieces.get(at));
                let wanted = piece.map_or((0, 0), |piece| {
                    (piece.addr, Descriptor::word(piece.len, at as u16, 0x8082))
                });
                assert_eq!(*found, wanted, "slot {at} of {count} from {slot}");
            }
            assert_eq!(ways[0], ways[1]);
        }
    }
}
