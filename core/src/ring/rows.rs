//! The bytes of a batch's buffers as the rows of an array, which is how numpy wants them.

use super::{Batch, Segment};
use crate::memory::{copy_from_shared, copy_to_shared};

/// How many rows ahead the memory of a buffer is asked for: each row is somewhere else, and the
/// processor does not guess where.
const AHEAD: usize = 12;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Rows longer than this are fetched well enough by copying them.
const PREFETCH_MOST: usize = 4 * LINE;

/// Have the processor fetch what is about to be read.
#[inline]
fn prefetch(segment: &Segment, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..len.min(segment.len as usize)).step_by(LINE) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint only, on an address inside the segment.
        unsafe { _mm_prefetch(segment.ptr.add(at).cast::<i8>(), _MM_HINT_T0) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (segment, len);
}

impl Batch {
    fn prefetch_row(&self, index: usize, length: usize) {
        if length <= PREFETCH_MOST
            && let Some(buffer) = self.buffers.get(index)
            && let Some(first) = self.segments.get(buffer.first as usize)
        {
            prefetch(first, length);
        }
    }

    /// Copy the first `length` device-readable bytes of each buffer, which must have them, into a row
    /// of `rows`; `length` is not 0.
    pub fn read_rows(&self, length: usize, rows: &mut [u8]) {
        for ahead in 0..AHEAD {
            self.prefetch_row(ahead, length);
        }
        let rows = rows.chunks_exact_mut(length);
        for (index, (buffer, row)) in self.buffers.iter().zip(rows).enumerate() {
            self.prefetch_row(index + AHEAD, length);
            match self.readable(buffer) {
                // SAFETY: the segment is mapped while the batch holds its memory; a row of a cache
                // line is the usual packet, and is copied without a call.
                [only, ..] if length == LINE && only.len as usize >= LINE => unsafe {
                    copy_from_shared(only.ptr, &mut row[..LINE]);
                },
                _ => {
                    self.read_at(buffer, 0, row);
                }
            }
        }
    }

    /// Copy each row into the device-writable part of a buffer, which must have room for it; `length`
    /// is not 0.
    pub fn write_rows(&self, length: usize, rows: &[u8]) {
        for (buffer, row) in self.buffers.iter().zip(rows.chunks_exact(length)) {
            match self.writable(buffer) {
                // SAFETY: as above; taken with write access.
                [only, ..] if only.len as usize >= length => unsafe {
                    copy_to_shared(only.ptr, row);
                },
                _ => {
                    self.write_at(buffer, 0, row);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::{AnyOrder, Order, Taken};
    use crate::ring::Buffer;

    /// A batch whose buffers are cut out of `memory`: for each, the lengths of its device-readable
    /// and of its device-writable pieces.
    fn batch(memory: &mut [u8], shapes: &[(&[u32], &[u32])]) -> Batch {
        let mut batch = Batch::new();
        let mut at = 0;
        for (readable, writable) in shapes {
            let first = batch.segments.len() as u32;
            for len in readable.iter().chain(*writable) {
                let ptr = memory[at..at + *len as usize].as_mut_ptr();
                batch.segments.push(Segment { ptr, addr: at as u64, len: *len });
                at += *len as usize;
            }
            let bytes = |part: &[u32]| part.iter().map(|len| u64::from(*len)).sum();
            batch.buffers.push(Buffer {
                token: <AnyOrder as Order>::Taken::new(1).push(0, 1, 0),
                first,
                readable_segments: readable.len() as u32,
                writable_segments: writable.len() as u32,
                readable: bytes(readable),
                writable: bytes(writable),
            });
        }
        batch
    }

    #[test]
    fn rows_are_what_lies_in_the_pieces() {
        for length in [1, 7, 63, 64, 65, 300] {
            let half = length / 2;
            let rest = length - half;
            let mut memory: Vec<u8> = (0..4096).map(|at| (at % 251) as u8).collect();
            let before = memory.clone();
            let shapes: [(&[u32], &[u32]); 3] = [
                (&[length], &[length]),
                (&[half, rest], &[rest, half]),
                (&[length + 9], &[length]),
            ];
            let batch = batch(&mut memory, &shapes);
            let length = length as usize;
            let mut rows = vec![0; 3 * length];
            batch.read_rows(length, &mut rows);
            let starts = [0, 2 * length, 4 * length];
            for (row, start) in rows.chunks_exact(length).zip(starts) {
                assert_eq!(row, &before[start..start + length]);
            }
            let fill: Vec<u8> = (0..3 * length).map(|at| (at % 13) as u8 | 0x80).collect();
            batch.write_rows(length, &fill);
            for (row, start) in fill.chunks_exact(length).zip([length, 3 * length, 5 * length + 9])
            {
                assert_eq!(&memory[start..start + length], row);
            }
        }
    }
}
