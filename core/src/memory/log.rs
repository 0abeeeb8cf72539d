//! The dirty log: a bit per page of guest-physical memory, for live migration.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::Mapping;

/// Bytes of guest memory that one bit of the log stands for, whatever the host's page size is.
pub const LOG_PAGE_BYTES: u64 = 4096;

/// A log in shared memory: page `n` is bit `n % 8` of byte `n / 8`.
#[derive(Debug)]
pub struct DirtyLog {
    mapping: Arc<Mapping>,
    ignored: AtomicU64,
}

impl DirtyLog {
    /// A log over the whole of a mapping.
    pub fn new(mapping: Arc<Mapping>) -> Arc<Self> {
        Arc::new(Self { mapping, ignored: AtomicU64::new(0) })
    }

    /// Marks the pages of a range of guest-physical addresses as written; call it after writing them.
    /// Pages beyond the log are counted and otherwise ignored.
    pub fn mark(&self, addr: u64, len: u64) {
        let Some(extent) = len.checked_sub(1) else {
            return;
        };
        let first = addr / LOG_PAGE_BYTES;
        let end = addr.saturating_add(extent) / LOG_PAGE_BYTES + 1;
        let logged_end = end.min(self.mapping.len().saturating_mul(8));
        let beyond = end - logged_end.max(first);
        if beyond != 0 {
            self.count_ignored(beyond);
        }
        let mut page = first;
        while page < logged_end {
            let stop = logged_end.min((page | 7) + 1);
            let mask = (0xff_u8 << (page % 8)) & (0xff >> ((8 - stop % 8) % 8));
            // SAFETY: `page / 8` is below the length of the mapping, which `self` keeps alive; a byte
            // is always aligned.
            let byte = unsafe { AtomicU8::from_ptr(self.mapping.ptr().add((page / 8) as usize)) };
            // Release pairs with the acquiring exchange by which the migration thread collects the
            // bits: who sees the bit sees the page. That is also why a bit that is set already is
            // set again: a plain load orders nothing, and the page's last bytes could be missed.
            byte.fetch_or(mask, Ordering::Release);
            page = stop;
        }
    }

    /// Pages that could not be marked.
    pub fn ignored(&self) -> u64 {
        self.ignored.load(Ordering::Relaxed)
    }

    /// The memory that holds the bits.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    pub(super) fn count_ignored(&self, pages: u64) {
        self.ignored.fetch_add(pages, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The marked pages.
    fn marked(log: &DirtyLog) -> Vec<u64> {
        // SAFETY: the whole of a live mapping that only this test uses.
        let bytes =
            unsafe { std::slice::from_raw_parts(log.mapping.ptr(), log.mapping.len() as usize) };
        (0..bytes.len() as u64 * 8).filter(|&n| bytes[n as usize / 8] >> (n % 8) & 1 == 1).collect()
    }

    fn log() -> Arc<DirtyLog> {
        DirtyLog::new(Mapping::anonymous(4096).unwrap())
    }

    #[test]
    fn marks_every_page_that_is_touched() {
        for first in 0..20 {
            for pages in 1..30 {
                let log = log();
                log.mark(first * 4096 + 4095, (pages - 1) * 4096 + 1);
                assert_eq!(marked(&log), (first..first + pages).collect::<Vec<_>>());
                assert_eq!(log.ignored(), 0);
            }
        }
    }

    #[test]
    fn marks_add_up_and_length_0_marks_nothing() {
        let log = log();
        log.mark(0x1000, 0);
        log.mark(0x3000, 1);
        log.mark(0x9000, 0x1001);
        log.mark(0x3fff, 1);
        assert_eq!(marked(&log), [3, 9, 10]);
    }

    #[test]
    fn counts_pages_beyond_the_log() {
        let log = log();
        let pages = log.mapping.len() * 8;
        log.mark((pages - 2) * 4096, 5 * 4096);
        assert_eq!(marked(&log), [pages - 2, pages - 1]);
        assert_eq!(log.ignored(), 3);
        log.mark(u64::MAX - 1, 2);
        log.mark(u64::MAX, u64::MAX);
        assert_eq!(log.ignored(), 5);
        assert_eq!(marked(&log).len(), 2);
    }
}
