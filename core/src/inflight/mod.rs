//! In-flight tracking: which buffers a device half has taken and not yet used, kept in memory that
//! outlives it, so that its heir takes them again (the vhost-user document, "Inflight I/O tracking").
//!
//! One region holds a part for every virtqueue. The front-end keeps the region while back-ends come
//! and go, and may write to it at any time, so it is read only when a queue starts: every word once,
//! into a local, checked. From then on this side knows by itself what is there, and only writes.
//!
//! A killed process leaves behind its stores up to one of them, in the order of the program. So
//! every store here is a release store, which the compiler keeps in that order, and each change has
//! one store that makes it count.

mod packed;
#[cfg(not(loom))]
mod region;
mod split;
#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, not(loom)))]
pub(crate) use tests::killed;

use crate::area::Area;

#[cfg(not(loom))]
pub use region::Region;

pub(crate) use packed::{PackedLog, UsedAt};
pub(crate) use split::SplitLog;

/// What `version` says of a part that is in use; 0 is one that is not.
const VERSION: u16 = 1;

/// Where both layouts have the first words of a queue's part.
mod field {
    pub const FEATURES: usize = 0;
    pub const VERSION: usize = 8;
    pub const DESC_NUM: usize = 10;
}

/// What a region has for one virtqueue.
pub struct Part {
    pub(crate) area: Area,
    pub(crate) entries: u16,
}
