//! Copies to and from memory that the other side may write at the same time.
//!
//! What is copied out may be torn, but it is copied once: the caller checks and uses its own copy.

use std::sync::atomic::{Ordering, compiler_fence};

/// Copies `into.len()` bytes out of shared memory. A naturally aligned 1, 2, 4 or 8 bytes are one
/// access.
///
/// # Safety
/// `from` must be valid for reading that many bytes.
#[inline]
pub unsafe fn copy_from_shared(from: *const u8, into: &mut [u8]) {
    macro_rules! word {
        ($type:ty) => {
            if from.cast::<$type>().is_aligned() {
                // SAFETY: valid by contract, and aligned.
                let value = unsafe { from.cast::<$type>().read_volatile() };
                into.copy_from_slice(&value.to_ne_bytes());
                return;
            }
        };
    }
    match into.len() {
        1 => word!(u8),
        2 => word!(u16),
        4 => word!(u32),
        8 => word!(u64),
        _ => {}
    }
    // SAFETY: valid by contract; they may overlap.
    unsafe { from.copy_to(into.as_mut_ptr(), into.len()) };
    // Without it the compiler might read the source again instead of the copy.
    compiler_fence(Ordering::SeqCst);
}

/// Copies into shared memory. A naturally aligned 1, 2, 4 or 8 bytes are one access.
///
/// # Safety
/// `into` must be valid for writing `from.len()` bytes.
#[inline]
pub unsafe fn copy_to_shared(into: *mut u8, from: &[u8]) {
    macro_rules! word {
        ($type:ty) => {
            if into.cast::<$type>().is_aligned()
                && let Ok(bytes) = from.try_into()
            {
                let value = <$type>::from_ne_bytes(bytes);
                // SAFETY: valid by contract, and aligned.
                unsafe { into.cast::<$type>().write_volatile(value) };
                return;
            }
        };
    }
    match from.len() {
        1 => word!(u8),
        2 => word!(u16),
        4 => word!(u32),
        8 => word!(u64),
        _ => {}
    }
    // SAFETY: valid by contract; they may overlap, as the caller's bytes may be a view of guest memory.
    unsafe { into.copy_from(from.as_ptr(), from.len()) };
    compiler_fence(Ordering::SeqCst);
}

/// Fills shared memory with a word, the last of them cut where the length is no multiple of eight.
///
/// # Safety
/// `into` must be valid for writing `len` bytes.
#[inline]
pub unsafe fn fill_shared(into: *mut u8, len: usize, word: u64) {
    let bytes = word.to_ne_bytes();
    for at in (0..len - len % 8).step_by(8) {
        // SAFETY: valid by contract.
        unsafe { into.add(at).cast::<[u8; 8]>().write(bytes) };
    }
    let rest = len - len % 8;
    // SAFETY: as above.
    unsafe { into.add(rest).copy_from(bytes.as_ptr(), len - rest) };
    compiler_fence(Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_alignment() {
        let source: Vec<u8> = (0..64).collect();
        for start in 0..9 {
            for length in 0..40 {
                let mut out = vec![0; length];
                // SAFETY: inside `source`.
                unsafe { copy_from_shared(source.as_ptr().add(start), &mut out) };
                assert_eq!(out, source[start..start + length]);
                let mut target = vec![0xee; 64];
                // SAFETY: inside `target`.
                unsafe { copy_to_shared(target.as_mut_ptr().add(start), &out) };
                assert_eq!(target[start..start + length], out);
                assert!(
                    target[..start].iter().chain(&target[start + length..]).all(|&b| b == 0xee)
                );
            }
        }
    }
}
