//! What can go wrong, with the fact and the place.

use std::fmt;

/// A fault of the other side, found in what it wrote. The queue that it happened on is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // The text of each variant names its fields.
pub enum Fault {
    /// The available index ran ahead of what the ring holds.
    AvailableJump { index: u16, used: u16, size: u16 },
    /// A head in the available ring names no descriptor.
    HeadOutOfRange { slot: u16, head: u16, size: u16 },
    /// A descriptor's `next` names no descriptor.
    NextOutOfRange { descriptor: u16, next: u16, size: u32 },
    /// A chain has more descriptors than the queue (or its table) holds: a loop, or too long.
    ChainTooLong { head: u16, limit: u32 },
    /// A chain of more than 2^32 bytes.
    ChainTooLarge { head: u16, bytes: u64 },
    /// A device-readable descriptor follows a device-writable one.
    ReadableAfterWritable { descriptor: u16 },
    /// INDIRECT without the feature negotiated.
    IndirectNotNegotiated { descriptor: u16 },
    /// INDIRECT together with NEXT, or as part of a packed list.
    IndirectWithNext { descriptor: u16 },
    /// INDIRECT within an indirect table.
    NestedIndirect { entry: u32 },
    /// An indirect table of length 0, not a multiple of 16, or too long.
    IndirectLength { descriptor: u16, length: u32 },
    /// A buffer made available while the same identifier is outstanding.
    AlreadyOutstanding { id: u16 },
    /// Address + length exceeds 64 bits.
    AddressOverflow { address: u64, length: u64 },
    /// Guest memory that is in no region.
    Unmapped { address: u64, length: u64 },
    /// A file shrank under its mapping.
    Truncated,
    /// A reserved value in a packed event suppression structure.
    ReservedEventFlags { flags: u16 },
    /// A packed event offset beyond the ring.
    EventOffset { offset: u16, size: u16 },
    /// A used identifier that is not outstanding.
    UsedIdUnknown { slot: u16, id: u32 },
    /// More used than were made available.
    UsedJump { index: u16, last: u16, outstanding: u16 },
    /// A used length beyond the device-writable part.
    UsedLength { id: u16, length: u32, writable: u32 },
    /// An in-order batch whose identifier is not among the buffers that it can cover.
    BatchId { slot: u16, id: u32 },
    /// An in-order batch whose end lies beyond the used index.
    BatchBeyondIndex { slot: u16, id: u32, available: u16 },
    /// No fault of the other side: the device gave the queue up, for a reason in words.
    GivenUp { reason: String },
    /// An in-flight region of another version.
    InflightVersion { version: u16 },
    /// An in-flight region for another number of entries than it was made for.
    InflightEntries { found: u16, entries: u16 },
    /// An in-flight region whose used index is not that of the ring, nor one batch behind.
    InflightBatch { used: u16, known: u16, entries: u16 },
    /// A word of an in-flight region that leads out of it, or in circles.
    InflightLink { field: &'static str, value: u16, entries: u16 },
}

impl Fault {
    /// The id in the requirement catalogue of what was broken; empty where the text has no clause.
    pub fn requirement(&self) -> &'static str {
        match self {
            Self::AvailableJump { .. } => "split.avail.drv.no-decrement",
            Self::NextOutOfRange { .. } => "split.desc.drv.no-loop",
            Self::ChainTooLong { .. } => "split.indirect.drv.chain-within-queue-size",
            Self::ChainTooLarge { .. } => "split.desc.drv.chain-4gib",
            Self::ReadableAfterWritable { .. } => "packed.list.drv.writable-after-readable",
            Self::IndirectNotNegotiated { .. } => "split.indirect.drv.negotiated-only",
            Self::IndirectWithNext { .. } => "split.indirect.drv.not-with-next",
            Self::NestedIndirect { .. } => "split.indirect.drv.no-nesting",
            Self::BatchId { .. } => "resv.dev.in-order-use",
            _ => "",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::GivenUp { ref reason } => f.write_str(reason),
            Self::AvailableJump { index, used, size } => write!(
                f,
                "available index {index} is more than the queue size {size} ahead of the used index {used}"
            ),
            Self::HeadOutOfRange { slot, head, size } => {
                write!(f, "available ring slot {slot} holds head {head}, queue size is {size}")
            }
            Self::NextOutOfRange { descriptor, next, size } => {
                write!(f, "descriptor {descriptor} links to {next}, table size is {size}")
            }
            Self::ChainTooLong { head, limit } => {
                write!(f, "chain at {head} is a loop or has more than {limit} descriptors")
            }
            Self::ChainTooLarge { head, bytes } => {
                write!(f, "chain at {head} has {bytes} bytes, more than 2^32")
            }
            Self::ReadableAfterWritable { descriptor } => {
                write!(f, "descriptor {descriptor} is device-readable after a device-writable one")
            }
            Self::IndirectNotNegotiated { descriptor } => {
                write!(f, "descriptor {descriptor} is INDIRECT, which was not negotiated")
            }
            Self::IndirectWithNext { descriptor } => {
                write!(f, "descriptor {descriptor} combines INDIRECT with NEXT")
            }
            Self::NestedIndirect { entry } => {
                write!(f, "entry {entry} of an indirect table is itself INDIRECT")
            }
            Self::IndirectLength { descriptor, length } => write!(
                f,
                "descriptor {descriptor} refers to an indirect table of {length} bytes, \
                 not a positive multiple of 16 of at most 32768 entries"
            ),
            Self::AlreadyOutstanding { id } => {
                write!(f, "buffer {id} was made available while it is outstanding")
            }
            Self::AddressOverflow { address, length } => {
                write!(f, "address {address:#x} + length {length:#x} exceeds 64 bits")
            }
            Self::Unmapped { address, length } => {
                write!(f, "guest memory {address:#x}+{length:#x} is not mapped")
            }
            Self::Truncated => write!(f, "a file was truncated under its mapping"),
            Self::ReservedEventFlags { flags } => {
                write!(f, "event suppression flags have the reserved value {flags}")
            }
            Self::EventOffset { offset, size } => {
                write!(f, "event suppression offset {offset} is beyond the queue size {size}")
            }
            Self::UsedIdUnknown { slot, id } => {
                write!(f, "used slot {slot} holds id {id}, which is not outstanding")
            }
            Self::UsedJump { index, last, outstanding } => write!(
                f,
                "used index {index} is more than the {outstanding} outstanding buffers ahead of {last}"
            ),
            Self::UsedLength { id, length, writable } => write!(
                f,
                "buffer {id} was used with length {length}, its device-writable part has {writable} bytes"
            ),
            Self::BatchId { slot, id } => {
                write!(
                    f,
                    "in-order batch at used slot {slot} ends with id {id}, which is not outstanding"
                )
            }
            Self::BatchBeyondIndex { slot, id, available } => write!(
                f,
                "in-order batch at used slot {slot} ends with id {id}, beyond the {available} buffers that the used index covers"
            ),
            Self::InflightVersion { version } => {
                write!(f, "the in-flight region has version {version}, not 1")
            }
            Self::InflightEntries { found, entries } => {
                write!(f, "the in-flight region has {found} entries, not {entries}")
            }
            Self::InflightBatch { used, known, entries } => write!(
                f,
                "the in-flight region knows used index {known}, which is more than {entries} behind {used}"
            ),
            Self::InflightLink { field, value, entries } => {
                write!(f, "the in-flight region has {field} {value}, out of {entries} or met twice")
            }
        }
    }
}

/// Why an operation on a queue did not happen.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // The text of each variant names its fields.
pub enum QueueError {
    /// The other side broke the ring; every later operation says the same.
    Broken(Fault),
    /// A guest range has no translation yet; resolve it and retry, nothing was lost.
    Miss { address: u64, length: u64, writable: bool },
    /// No room; nothing was added.
    Full { needed: usize, free: usize },
    /// The buffer was taken before a stop, reset or put-back, or was completed already.
    Stale,
    /// The queue was stopped.
    Stopped,
    /// The caller's mistake, in words.
    Invalid(String),
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(fault) => fault.fmt(f),
            Self::Miss { address, length, writable } => {
                let access = if *writable { "write" } else { "read" };
                write!(f, "no translation to {access} guest memory {address:#x}+{length:#x}")
            }
            Self::Full { needed, free } => {
                write!(f, "the ring has {free} free descriptors, {needed} are needed")
            }
            Self::Stale => write!(f, "the buffer is no longer outstanding"),
            Self::Stopped => write!(f, "the queue is stopped"),
            Self::Invalid(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for QueueError {}

impl From<Fault> for QueueError {
    fn from(fault: Fault) -> Self {
        Self::Broken(fault)
    }
}
