//! The table of regions and its two orders: by guest address, by user address.

use std::sync::Arc;

use super::{Mapping, MemoryError};

/// How many regions a memory may have. vhost-user allows 509 for a configurable table; this leaves
/// room without letting a peer grow the table at will.
pub const MAX_REGIONS: usize = 4096;

/// A range of guest memory and where it is mapped.
#[derive(Debug, Clone)]
pub struct Region {
    /// First guest address.
    pub guest_addr: u64,
    /// Size in bytes.
    pub size: u64,
    /// The same memory's first address in the process that owns it.
    pub user_addr: u64,
    /// Where in the file the region begins; for reports only.
    pub offset: u64,
    /// Host memory of at least `size` bytes.
    pub mapping: Arc<Mapping>,
}

/// What the hot path needs of a region, packed tightly.
#[derive(Debug, Clone)]
pub(super) struct Span {
    pub guest_addr: u64,
    pub size: u64,
    pub host: *mut u8,
}

// SAFETY: a span is an address range; the pointer is only used by way of `Memory`, which holds the
// mapping, and mappings are shared memory that any thread may use.
unsafe impl Send for Span {}
// SAFETY: as above.
unsafe impl Sync for Span {}

/// Regions that do not overlap.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    /// By guest address.
    regions: Vec<Region>,
    /// `spans[i]` is of `regions[i]`.
    spans: Vec<Span>,
    /// User address and index in `regions`, by user address.
    by_user: Vec<(u64, usize)>,
    granule_bits: u32,
}

/// Of a granule at the least: a page.
const GRANULE_BITS_MIN: u32 = 12;

impl Table {
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    #[inline]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// A power of two of bytes that is no more than the smallest region has, or a page: neighbours
    /// within it are hardly ever in two regions, and all regions together have few of them.
    #[inline]
    pub fn granule_bits(&self) -> u32 {
        self.granule_bits
    }

    pub fn with(&self, region: Region) -> Result<Self, MemoryError> {
        self.check(&region)?;
        let at = self.regions.partition_point(|other| other.guest_addr < region.guest_addr);
        let mut regions = self.regions.clone();
        regions.insert(at, region);
        Ok(Self::of(regions))
    }

    pub fn without(
        &self,
        guest_addr: u64,
        size: u64,
        user_addr: Option<u64>,
    ) -> Result<Self, MemoryError> {
        let matches = |region: &Region| {
            region.guest_addr == guest_addr
                && region.size == size
                && user_addr.is_none_or(|user_addr| region.user_addr == user_addr)
        };
        let at = self
            .regions
            .iter()
            .position(matches)
            .ok_or(MemoryError::NoSuchRegion { guest_addr, size })?;
        let mut regions = self.regions.clone();
        regions.remove(at);
        Ok(Self::of(regions))
    }

    /// The region that holds a guest address, the offset in it, and the bytes from there to its end;
    /// else the bytes to the next region.
    pub fn find_guest(&self, addr: u64) -> Result<(usize, u64, u64), u64> {
        let next = self.spans.partition_point(|span| span.guest_addr <= addr);
        if let Some(index) = next.checked_sub(1) {
            let span = &self.spans[index];
            let offset = addr - span.guest_addr;
            if offset < span.size {
                return Ok((index, offset, span.size - offset));
            }
        }
        Err(self.spans.get(next).map_or(u64::MAX, |span| span.guest_addr - addr))
    }

    /// The region that holds a user address, the offset in it, and the bytes from there to its end.
    pub fn find_user(&self, addr: u64) -> Option<(usize, u64, u64)> {
        let next = self.by_user.partition_point(|&(user_addr, _)| user_addr <= addr);
        let (user_addr, index) = self.by_user[next.checked_sub(1)?];
        let offset = addr - user_addr;
        let size = self.spans[index].size;
        (offset < size).then(|| (index, offset, size - offset))
    }

    fn of(regions: Vec<Region>) -> Self {
        let spans = regions
            .iter()
            .map(|region| Span {
                guest_addr: region.guest_addr,
                size: region.size,
                host: region.mapping.ptr(),
            })
            .collect();
        let mut by_user: Vec<_> =
            regions.iter().enumerate().map(|(index, region)| (region.user_addr, index)).collect();
        by_user.sort_unstable();
        let smallest = regions.iter().map(|region| region.size).min();
        let granule_bits = smallest.map_or(0, u64::ilog2).max(GRANULE_BITS_MIN);
        Self { regions, spans, by_user, granule_bits }
    }

    fn check(&self, region: &Region) -> Result<(), MemoryError> {
        let &Region { guest_addr, size, user_addr, .. } = region;
        if size == 0 {
            return Err(MemoryError::Empty { address: guest_addr });
        }
        for address in [guest_addr, user_addr] {
            if address.checked_add(size).is_none() {
                return Err(MemoryError::Overflow { address, size });
            }
        }
        let mapped = region.mapping.len();
        if mapped < size {
            return Err(MemoryError::MappingTooSmall { guest_addr, size, mapped });
        }
        let limit = MAX_REGIONS;
        if self.regions.len() >= limit {
            let address = guest_addr;
            return Err(MemoryError::TooMany { what: "regions", limit, address, size });
        }
        let overlap = |mine: u64, theirs: u64, their_size: u64| {
            mine < theirs + their_size && theirs < mine + size
        };
        for other in &self.regions {
            let other_size = other.size;
            if overlap(guest_addr, other.guest_addr, other_size) {
                let other_addr = other.guest_addr;
                return Err(MemoryError::GuestOverlap { guest_addr, size, other_addr, other_size });
            }
            if overlap(user_addr, other.user_addr, other_size) {
                let other_addr = other.user_addr;
                return Err(MemoryError::UserOverlap { user_addr, size, other_addr, other_size });
            }
        }
        Ok(())
    }
}
