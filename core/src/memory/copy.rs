//! Copies to and from memory that the other side may write at the same time.
//!
//! What is copied out may be torn, but it is copied once: the caller checks and uses its own copy.

use std::sync::atomic::{Ordering, compiler_fence};

use chunk::{Chunk, get, of_pair, put, put_streaming};

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
        // SAFETY: valid by contract.
        CHUNK..=WIDE_MAX => return unsafe { copy_wide(from, into.as_mut_ptr(), into.len()) },
        _ => {}
    }
    // SAFETY: valid by contract; they may overlap.
    unsafe { from.copy_to(into.as_mut_ptr(), into.len()) };
    // Without it the compiler might read the source again instead of the copy.
    compiler_fence(Ordering::SeqCst);
}

/// Copies `into.len()` bytes out of shared memory, each once: made for packets, of which the smallest
/// are the most.
///
/// # Safety
/// `from` must be valid for reading that many bytes.
#[inline(always)]
pub unsafe fn copy_frame_from_shared(from: *const u8, into: &mut [u8]) {
    // SAFETY: valid by contract.
    unsafe {
        match <&mut [u8; LINE]>::try_from(&mut *into) {
            Ok(line) => copy_wide(from, line.as_mut_ptr(), LINE),
            Err(_) => copy_from_shared(from, into),
        }
    }
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
        // SAFETY: valid by contract.
        CHUNK..=WIDE_MAX => return unsafe { copy_wide(from.as_ptr(), into, from.len()) },
        _ => {}
    }
    // SAFETY: valid by contract; they may overlap, as the caller's bytes may be a view of guest memory.
    unsafe { into.copy_from(from.as_ptr(), from.len()) };
    compiler_fence(Ordering::SeqCst);
}

/// Ask for a line of memory that will be read soon. Any address will do.
#[inline(always)]
pub fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which has no other effect and faults nowhere.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Ask for a line of memory that will be written soon, to have it for ourselves: without it, stores
/// to lines that another processor has read wait for each other. Any address will do.
#[inline(always)]
pub fn prefetch_write(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which has no other effect and faults nowhere; where there is no such
    // instruction, its encoding does nothing.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Fills shared memory with a word, the last of them cut where the length is no multiple of eight.
///
/// # Safety
/// `into` must be valid for writing `len` bytes.
#[inline]
pub unsafe fn fill_shared(into: *mut u8, len: usize, word: u64) {
    let chunk = of_pair([word, word]);
    let whole = len - len % CHUNK;
    let mut at = 0;
    while at < whole {
        // SAFETY: valid by contract.
        unsafe { put(into.add(at), chunk) };
        at += CHUNK;
    }
    if whole == len {
        return;
    }
    let words = [word, word];
    // SAFETY: as above.
    unsafe { into.add(whole).copy_from(words.as_ptr().cast(), len - whole) };
    compiler_fence(Ordering::SeqCst);
}

/// Stores two words into shared memory, little-endian, in one or two accesses.
///
/// # Safety
/// `into` must be valid for writing 16 bytes.
#[inline(always)]
pub unsafe fn store_pair(into: *mut u8, words: [u64; 2]) {
    // SAFETY: valid by contract.
    unsafe { put(into, of_pair(words.map(u64::to_le))) };
}

/// Copies past the caches, for bytes that this processor will not look at again soon: they neither
/// have to be fetched first, nor push others out, nor must whoever looks next ask this processor for
/// them. Where the target is not aligned to a cache line, and elsewhere than on x86-64, a plain copy.
///
/// Others may see the bytes later than what is written after them, until [`streamed`] was called.
///
/// # Safety
/// `from` must be valid for reading `len` bytes and `into` for writing them; they do not overlap.
#[inline]
pub unsafe fn copy_streaming(from: *const u8, into: *mut u8, len: usize) {
    let whole = if into.addr().is_multiple_of(LINE) { len - len % LINE } else { 0 };
    let mut at = 0;
    // SAFETY: within both ranges.
    unsafe {
        while at < whole {
            let line: [Chunk; 4] = std::array::from_fn(|part| get(from.add(at + part * CHUNK)));
            put_streaming(into.add(at), line);
            at += LINE;
        }
        if at < len {
            into.add(at).copy_from_nonoverlapping(from.add(at), len - at);
        }
    }
    compiler_fence(Ordering::SeqCst);
}

/// Fills a cache line past the caches, as [`copy_streaming`] does: with eight words.
///
/// # Safety
/// `into` must be aligned to a cache line, and valid for writing one.
#[inline(always)]
pub unsafe fn fill_streaming(into: *mut u8, words: [u64; 8]) {
    let line = std::array::from_fn(|part| of_pair([words[2 * part], words[2 * part + 1]]));
    // SAFETY: valid by contract, and aligned.
    unsafe { put_streaming(into, line) };
}

/// Whoever sees what is written from now on sees what was streamed before as well. Comes before the
/// release that publishes it.
#[inline]
pub fn streamed() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: an instruction that every x86-64 processor has.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;
/// What is moved at once.
const CHUNK: usize = size_of::<Chunk>();
/// Above it a call of the C library's function pays.
const WIDE_MAX: usize = 128;

/// Copies `len` bytes, `CHUNK` at least, in chunks of which the last may overlap the one before; what
/// comes to stand in `into` was read once. Where both ranges overlap, the bytes may be mixed.
#[inline(always)]
unsafe fn copy_wide(from: *const u8, into: *mut u8, len: usize) {
    // SAFETY: within both ranges.
    unsafe {
        if len == 4 * CHUNK {
            // A packet of the smallest size: all loads before all stores.
            let line: [Chunk; 4] = std::array::from_fn(|at| get(from.add(at * CHUNK)));
            for (at, chunk) in line.into_iter().enumerate() {
                put(into.add(at * CHUNK), chunk);
            }
            return;
        }
        let mut at = 0;
        while at < len - CHUNK {
            put(into.add(at), get(from.add(at)));
            at += CHUNK;
        }
        let last = len - CHUNK;
        put(into.add(last), get(from.add(last)));
    }
}

#[cfg(target_arch = "x86_64")]
mod chunk {
    use std::arch::asm;
    use std::arch::x86_64::__m128i;

    pub type Chunk = __m128i;

    /// One load, which the compiler neither repeats nor takes apart.
    #[inline(always)]
    pub unsafe fn get(from: *const u8) -> Chunk {
        let chunk;
        // SAFETY: valid by contract; needs no alignment.
        unsafe {
            asm!("movups {}, [{}]", out(xmm_reg) chunk, in(reg) from,
                options(nostack, preserves_flags, readonly));
        }
        chunk
    }

    /// One store.
    #[inline(always)]
    pub unsafe fn put(into: *mut u8, chunk: Chunk) {
        // SAFETY: as above.
        unsafe {
            asm!("movups [{}], {}", in(reg) into, in(xmm_reg) chunk,
                options(nostack, preserves_flags));
        }
    }

    /// A line in four stores that go past the caches.
    #[inline(always)]
    pub unsafe fn put_streaming(into: *mut u8, line: [Chunk; 4]) {
        let [a, b, c, d] = line;
        // SAFETY: valid and aligned by contract.
        unsafe {
            asm!("movntps [{into}], {}", "movntps [{into} + 16], {}",
                "movntps [{into} + 32], {}", "movntps [{into} + 48], {}",
                in(xmm_reg) a, in(xmm_reg) b, in(xmm_reg) c, in(xmm_reg) d, into = in(reg) into,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    pub fn of_pair(words: [u64; 2]) -> Chunk {
        // SAFETY: both are 16 bytes without padding.
        unsafe { std::mem::transmute(words) }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod chunk {
    use std::sync::atomic::{Ordering, compiler_fence};

    pub type Chunk = [u64; 2];

    #[inline(always)]
    pub unsafe fn get(from: *const u8) -> Chunk {
        // SAFETY: valid by contract.
        let chunk = unsafe { from.cast::<Chunk>().read_unaligned() };
        // Without it the compiler might read the source again instead of the copy.
        compiler_fence(Ordering::SeqCst);
        chunk
    }

    #[inline(always)]
    pub unsafe fn put(into: *mut u8, chunk: Chunk) {
        // SAFETY: as above.
        unsafe { into.cast::<Chunk>().write_unaligned(chunk) };
        compiler_fence(Ordering::SeqCst);
    }

    #[inline(always)]
    pub unsafe fn put_streaming(into: *mut u8, line: [Chunk; 4]) {
        // SAFETY: valid by contract.
        unsafe { into.cast::<[Chunk; 4]>().write_unaligned(line) };
    }

    #[inline(always)]
    pub fn of_pair(words: [u64; 2]) -> Chunk {
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streamed_bytes_are_all_there_and_no_more() {
        let source: Vec<u8> = (0..1200).map(|at| (at % 251) as u8).collect();
        for into in [0, 64, 16, 3] {
            for from in [0, 5] {
                for length in [0, 1, 63, 64, 65, 512, 777, 1024] {
                    let mut room = vec![0xee; 1500];
                    let start = room.as_ptr().align_offset(LINE) + into;
                    // SAFETY: inside both; 63 + 64 + 1024 bytes and more are there.
                    unsafe {
                        let target = room.as_mut_ptr().add(start);
                        copy_streaming(source.as_ptr().add(from), target, length);
                    }
                    streamed();
                    assert_eq!(room[start..start + length], source[from..from + length]);
                    let (before, after) = (&room[..start], &room[start + length..]);
                    assert!(before.iter().chain(after).all(|&byte| byte == 0xee));
                }
            }
        }
        let mut room = vec![0xee_u8; 200];
        let start = room.as_ptr().align_offset(LINE);
        let words: [u64; 8] = std::array::from_fn(|at| 0x0101 * at as u64);
        // SAFETY: an aligned line inside the vector.
        unsafe { fill_streaming(room.as_mut_ptr().add(start), words) };
        streamed();
        let expected: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(room[start..start + LINE], expected);
    }

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
