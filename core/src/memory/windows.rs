//! Where buffers were found: a range of memory is looked up once, not once a buffer.

use std::sync::Arc;

use super::Memory;

/// A mapped range of guest memory.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    guest_addr: u64,
    size: u64,
    host: *mut u8,
}

// SAFETY: an address in a mapping, which any thread may use; whoever keeps a window keeps its memory.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// A window that holds nothing.
    pub const NONE: Self = Self { guest_addr: 0, size: 0, host: std::ptr::null_mut() };

    /// Where a range is mapped that lies in the window as a whole; `len` is not 0.
    #[inline]
    pub fn locate(&self, addr: u64, len: u32) -> Option<*mut u8> {
        // An address below it wraps to an offset beyond any size.
        let offset = addr.wrapping_sub(self.guest_addr);
        let inside = offset < self.size && u64::from(len) <= self.size - offset;
        inside.then(|| self.host.wrapping_add(offset as usize))
    }
}

/// The regions of one memory that buffers were found in, by the granule of an address, which is about
/// as large as the smallest region: what the last window is for buffers that lie next to each other,
/// this is for those that lie anywhere.
#[derive(Debug)]
pub struct Windows {
    memory: Arc<Memory>,
    granule_bits: u32,
    /// Empty until something was looked for. Any place may hold any window: each is checked as the
    /// window that it is.
    places: Box<[Window]>,
}

const PLACES: usize = 1024;

impl Windows {
    /// Nothing was found in `memory` yet.
    pub fn of(memory: Arc<Memory>) -> Self {
        let granule_bits = memory.table.granule_bits();
        Self { memory, granule_bits, places: Box::default() }
    }

    #[inline]
    fn place(&self, addr: u64) -> usize {
        // Neighbouring granules have different places, and so have regions at large powers of two.
        let granule = addr >> self.granule_bits;
        (granule ^ granule >> 10 ^ granule >> 20) as usize % PLACES
    }

    /// Where a range is mapped that lies in one region; `len` is not 0. `last` becomes the window that
    /// the range had to be searched for. None says nothing: neither with an IOTLB nor with a dirty log
    /// is anything found.
    #[inline]
    pub fn locate(&mut self, last: &mut Window, addr: u64, len: u32) -> Option<*mut u8> {
        match self.places.get(self.place(addr)).and_then(|window| window.locate(addr, len)) {
            None => self.search(last, addr, len),
            found => found,
        }
    }

    #[cold]
    #[inline(never)]
    fn search(&mut self, last: &mut Window, addr: u64, len: u32) -> Option<*mut u8> {
        let memory = &self.memory;
        if memory.iotlb.is_some() || memory.log.is_some() {
            return None;
        }
        let (region, ..) = memory.table.find_guest(addr).ok()?;
        let span = &memory.table.spans()[region];
        *last = Window { guest_addr: span.guest_addr, size: span.size, host: span.host };
        if self.places.is_empty() {
            self.places = vec![Window::NONE; PLACES].into_boxed_slice();
        }
        self.places[self.place(addr)] = *last;
        last.locate(addr, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{DirtyLog, Iotlb, Mapping, Region};

    const PAGE: u64 = 4096;

    /// Regions of so many pages, one page apart.
    fn memory(regions: u64, pages: u64) -> (Arc<Memory>, Vec<u64>) {
        let pitch = (pages + 1) * PAGE;
        let mapping = Mapping::anonymous(pages * PAGE).unwrap();
        let memory = (0..regions).fold(Memory::new(), |memory, number| {
            let (guest_addr, size) = (number * pitch, pages * PAGE);
            let mapping = Arc::clone(&mapping);
            let user_addr = guest_addr + (1 << 40);
            memory.with_region(Region { guest_addr, size, user_addr, offset: 0, mapping }).unwrap()
        });
        (Arc::new(memory), (0..regions).map(|number| number * pitch + 64).collect())
    }

    /// What a table of as many regions as vhost-user allows has found once, it finds without a search,
    /// whatever their size: nobody takes another's place.
    #[test]
    fn many_regions_do_not_push_each_other_out() {
        for pages in [1, 2, 3, 512] {
            let (memory, addrs) = memory(509, pages);
            let mut windows = Windows::of(memory);
            for &addr in &addrs {
                let mut last = Window::NONE;
                let host = windows.locate(&mut last, addr, 4000).unwrap();
                assert_eq!(last.locate(addr, 4000), Some(host));
                assert!(windows.locate(&mut last, addr, (pages * PAGE) as u32).is_none());
            }
            for &addr in &addrs {
                let mut last = Window::NONE;
                assert!(windows.locate(&mut last, addr, 4000).is_some());
                assert_eq!(last.size, 0, "{pages} {addr:#x} was searched for");
            }
        }
    }

    #[test]
    fn what_is_no_one_regions_is_not_found() {
        let (memory, addrs) = memory(2, 1);
        let mut windows = Windows::of(memory);
        let mut last = Window::NONE;
        assert!(windows.locate(&mut last, addrs[0], 64).is_some());
        // The same granule, beyond the region; the hole between two; nothing at all.
        for (addr, len) in [(addrs[0], 4096), (PAGE, 1), (2 * PAGE - 8, 16), (u64::MAX, 1)] {
            assert_eq!(windows.locate(&mut last, addr, len), None, "{addr:#x}");
        }
    }

    #[test]
    fn nothing_is_found_where_more_has_to_be_done() {
        let (memory, addrs) = memory(1, 2);
        let log = DirtyLog::new(Mapping::anonymous(PAGE).unwrap());
        let logged = memory.with_log(Some(log));
        let translated = memory.with_iotlb(Some(Arc::new(Iotlb::default())));
        for memory in [logged, translated] {
            let mut last = Window::NONE;
            let mut windows = Windows::of(Arc::new(memory));
            assert_eq!(windows.locate(&mut last, addrs[0], 64), None);
            assert_eq!(last.size, 0);
        }
    }
}
