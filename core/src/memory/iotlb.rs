//! The IOTLB: from I/O virtual addresses to user addresses, filled on demand by the other side.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use super::{Access, MemoryError};
use crate::error::QueueError;

/// How many translations an IOTLB may hold, so that a peer cannot grow it without end.
pub const MAX_TRANSLATIONS: usize = 1 << 18;

#[derive(Debug, Clone, Copy)]
struct Translation {
    /// The last IOVA (inclusive, so that a range may end at the top of the address space).
    last: u64,
    user: u64,
    readable: bool,
    writable: bool,
}

impl Translation {
    fn allows(&self, access: Access) -> bool {
        match access {
            Access::Read => self.readable,
            Access::Write => self.writable,
        }
    }
}

/// A shared table of translations. It changes under the snapshots of memory that use it: an
/// invalidation counts for every lookup after it.
#[derive(Debug, Default)]
pub struct Iotlb {
    /// By first IOVA; no two overlap.
    translations: RwLock<BTreeMap<u64, Translation>>,
}

impl Iotlb {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a translation; what it overlaps is replaced in that part. Fails for size 0, for an overflow
    /// of either range, and beyond [`MAX_TRANSLATIONS`].
    pub fn update(
        &self,
        iova: u64,
        size: u64,
        user_addr: u64,
        readable: bool,
        writable: bool,
    ) -> Result<(), MemoryError> {
        let extent = size.checked_sub(1).ok_or(MemoryError::Empty { address: iova })?;
        let last = iova.checked_add(extent).ok_or(MemoryError::Overflow { address: iova, size })?;
        user_addr.checked_add(extent).ok_or(MemoryError::Overflow { address: user_addr, size })?;
        let mut translations = self.translations.write().unwrap_or_else(PoisonError::into_inner);
        cut(&mut translations, iova, last);
        if translations.len() >= MAX_TRANSLATIONS {
            return Err(MemoryError::TooMany {
                what: "translations",
                limit: MAX_TRANSLATIONS,
                address: iova,
                size,
            });
        }
        let translation = Translation { last, user: user_addr, readable, writable };
        translations.insert(iova, translation);
        Ok(())
    }

    /// Removes what is known of a range; a size of 0 or `u64::MAX` means everything.
    pub fn invalidate(&self, iova: u64, size: u64) {
        let mut translations = self.translations.write().unwrap_or_else(PoisonError::into_inner);
        if size == 0 || size == u64::MAX {
            translations.clear();
        } else {
            cut(&mut translations, iova, iova.saturating_add(size - 1));
        }
    }

    /// The user address of `iova` and how many of the `len` bytes (at least 1) it is good for.
    /// [`QueueError::Miss`] names the first part that has no translation, or not for this access.
    pub fn lookup(&self, iova: u64, len: u64, access: Access) -> Result<(u64, u64), QueueError> {
        let miss =
            |length| QueueError::Miss { address: iova, length, writable: access == Access::Write };
        let translations = self.translations.read().unwrap_or_else(PoisonError::into_inner);
        let found = translations.range(..=iova).next_back();
        if let Some((&first, translation)) = found.filter(|(_, found)| iova <= found.last) {
            // `last - iova` is one less than what is left, which may be 2^64.
            let length = len.min((translation.last - iova).saturating_add(1));
            return match translation.allows(access) {
                true => Ok((translation.user + (iova - first), length)),
                false => Err(miss(length)),
            };
        }
        let next = translations.range(iova..).next();
        Err(miss(next.map_or(len, |(&first, _)| len.min(first - iova))))
    }

    /// How many translations there are.
    pub fn len(&self) -> usize {
        self.translations.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there is no translation.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Removes `first..=last`, keeping what overlapping translations have outside of it. In a full table
/// what a cut leaves behind it is forgotten as well: that only makes for another miss.
fn cut(translations: &mut BTreeMap<u64, Translation>, first: u64, last: u64) {
    let begins_before =
        translations.range(..first).next_back().map(|(&start, _)| start).into_iter();
    let affected: Vec<u64> = begins_before
        .chain(translations.range(first..=last).map(|(&start, _)| start))
        .filter(|start| translations[start].last >= first)
        .collect();
    for start in affected {
        let Some(old) = translations.remove(&start) else {
            continue;
        };
        if start < first {
            translations.insert(start, Translation { last: first - 1, ..old });
        }
        if old.last > last && translations.len() < MAX_TRANSLATIONS {
            let user = old.user + (last + 1 - start);
            translations.insert(last + 1, Translation { user, ..old });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn miss(address: u64, length: u64, writable: bool) -> Result<(u64, u64), QueueError> {
        Err(QueueError::Miss { address, length, writable })
    }

    #[test]
    fn lookup_stops_at_the_end_of_a_translation() {
        let iotlb = Iotlb::new();
        iotlb.update(0x1000, 0x1000, 0x70000, true, true).unwrap();
        assert_eq!(iotlb.lookup(0x1800, 0x10, Access::Read), Ok((0x70800, 0x10)));
        assert_eq!(iotlb.lookup(0x1800, 0x1000, Access::Write), Ok((0x70800, 0x800)));
        assert_eq!(iotlb.lookup(0x2000, 8, Access::Read), miss(0x2000, 8, false));
    }

    #[test]
    fn miss_names_the_gap_up_to_the_next_translation() {
        let iotlb = Iotlb::new();
        iotlb.update(0x1000, 0x1000, 0x70000, true, true).unwrap();
        assert_eq!(iotlb.lookup(0xf00, 0x800, Access::Write), miss(0xf00, 0x100, true));
    }

    #[test]
    fn permission_is_a_miss() {
        let iotlb = Iotlb::new();
        iotlb.update(0, 0x1000, 0, true, false).unwrap();
        iotlb.update(0x1000, 0x1000, 0x1000, false, true).unwrap();
        assert_eq!(iotlb.lookup(0x10, 4, Access::Read), Ok((0x10, 4)));
        assert_eq!(iotlb.lookup(0x10, 4, Access::Write), miss(0x10, 4, true));
        assert_eq!(iotlb.lookup(0x1010, 4, Access::Write), Ok((0x1010, 4)));
        assert_eq!(iotlb.lookup(0x1010, 4, Access::Read), miss(0x1010, 4, false));
    }

    #[test]
    fn update_replaces_the_middle() {
        let iotlb = Iotlb::new();
        iotlb.update(0, 0x3000, 0x100000, true, true).unwrap();
        iotlb.update(0x1000, 0x1000, 0x900000, true, true).unwrap();
        assert_eq!(iotlb.len(), 3);
        assert_eq!(iotlb.lookup(0xfff, 9, Access::Read), Ok((0x100fff, 1)));
        assert_eq!(iotlb.lookup(0x1000, 0x2000, Access::Read), Ok((0x900000, 0x1000)));
        assert_eq!(iotlb.lookup(0x2000, 0x2000, Access::Read), Ok((0x102000, 0x1000)));
    }

    #[test]
    fn invalidate_cuts_several_and_all() {
        let iotlb = Iotlb::new();
        for page in 0..8 {
            iotlb.update(page << 12, 0x1000, 0x100000 + (page << 12), true, true).unwrap();
        }
        iotlb.invalidate(0x1800, 0x2000);
        assert_eq!(iotlb.lookup(0x17ff, 8, Access::Read), Ok((0x1017ff, 1)));
        assert_eq!(iotlb.lookup(0x1800, 0x4000, Access::Read), miss(0x1800, 0x2000, false));
        assert_eq!(iotlb.lookup(0x3800, 8, Access::Read), Ok((0x103800, 8)));
        iotlb.invalidate(0, u64::MAX);
        assert!(iotlb.is_empty());
        iotlb.update(0, 1, 0, true, true).unwrap();
        iotlb.invalidate(77, 0);
        assert!(iotlb.is_empty());
    }

    #[test]
    fn the_whole_address_space_is_one_translation() {
        let iotlb = Iotlb::new();
        iotlb.update(0, u64::MAX, 0, true, true).unwrap();
        assert_eq!(iotlb.lookup(u64::MAX - 9, 8, Access::Write), Ok((u64::MAX - 9, 8)));
        iotlb.update(u64::MAX - 0xfff, 0x1000, 0x5000, true, true).unwrap();
        assert_eq!(iotlb.lookup(u64::MAX, 1, Access::Read), Ok((0x5fff, 1)));
        iotlb.invalidate(u64::MAX - 1, 0x1000);
        assert_eq!(iotlb.lookup(u64::MAX, 1, Access::Read), miss(u64::MAX, 1, false));
        assert_eq!(iotlb.lookup(0, 1, Access::Read), Ok((0, 1)));
    }

    #[test]
    fn refuses_size_0_and_overflow() {
        let iotlb = Iotlb::new();
        assert_eq!(iotlb.update(5, 0, 0, true, true), Err(MemoryError::Empty { address: 5 }));
        assert_eq!(
            iotlb.update(u64::MAX, 2, 0, true, true),
            Err(MemoryError::Overflow { address: u64::MAX, size: 2 })
        );
        assert_eq!(
            iotlb.update(0, 2, u64::MAX, true, true),
            Err(MemoryError::Overflow { address: u64::MAX, size: 2 })
        );
        assert!(iotlb.is_empty());
    }

    #[test]
    fn refuses_more_than_the_limit() {
        let iotlb = Iotlb::new();
        for page in 0..MAX_TRANSLATIONS as u64 {
            iotlb.update(page * 2, 1, 0, true, true).unwrap();
        }
        assert!(matches!(iotlb.update(1, 1, 0, true, true), Err(MemoryError::TooMany { .. })));
        iotlb.update(2, 1, 7, true, true).unwrap();
        assert_eq!(iotlb.lookup(2, 1, Access::Read), Ok((7, 1)));
        iotlb.update(u64::MAX - 0xffff, 0x1000, 0, true, true).unwrap_err();
        iotlb.invalidate(4, 1);
        iotlb.update(u64::MAX - 0xffff, 0x1000, 0, true, true).unwrap();
        for byte in 1..0x800 {
            iotlb.invalidate(u64::MAX - 0xffff + byte * 2, 1);
        }
        assert!(iotlb.len() <= MAX_TRANSLATIONS);
    }
}
