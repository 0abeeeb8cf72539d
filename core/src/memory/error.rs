//! Why a mapping or a change of the memory table is refused, with the range.

use std::fmt;

/// Why a mapping or a change of the memory table is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemoryError {
    /// A region, mapping or translation of size 0.
    Empty {
        /// Its address, or offset in the file.
        address: u64,
    },
    /// Address + size exceeds 64 bits, or a file offset exceeds 63.
    Overflow {
        /// First address, or offset in the file.
        address: u64,
        /// Size in bytes.
        size: u64,
    },
    /// The file ends before the range that was to be mapped.
    FileTooShort {
        /// First byte to map.
        offset: u64,
        /// Bytes to map.
        size: u64,
        /// Bytes in the file.
        file_size: u64,
    },
    /// The operating system refused.
    System {
        /// What was tried.
        what: &'static str,
        /// First byte in the file.
        offset: u64,
        /// Bytes to map.
        size: u64,
        /// The error number.
        errno: i32,
    },
    /// The region is larger than what is mapped for it.
    MappingTooSmall {
        /// Guest address of the region.
        guest_addr: u64,
        /// Its size in bytes.
        size: u64,
        /// Bytes mapped.
        mapped: u64,
    },
    /// The guest range overlaps that of another region.
    GuestOverlap {
        /// Guest address of the region.
        guest_addr: u64,
        /// Its size in bytes.
        size: u64,
        /// Guest address of the other.
        other_addr: u64,
        /// Size of the other.
        other_size: u64,
    },
    /// The user range overlaps that of another region.
    UserOverlap {
        /// User address of the region.
        user_addr: u64,
        /// Its size in bytes.
        size: u64,
        /// User address of the other.
        other_addr: u64,
        /// Size of the other.
        other_size: u64,
    },
    /// No region has exactly these addresses and this size.
    NoSuchRegion {
        /// Guest address asked for.
        guest_addr: u64,
        /// Size asked for.
        size: u64,
    },
    /// One region, mapping or translation more than fits.
    TooMany {
        /// What there would be too many of.
        what: &'static str,
        /// How many may be.
        limit: usize,
        /// The address of the one that was refused.
        address: u64,
        /// Its size in bytes.
        size: u64,
    },
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Empty { address } => write!(f, "the range at {address:#x} has size 0"),
            Self::Overflow { address, size } => {
                write!(f, "the range {address:#x}+{size:#x} exceeds the address space")
            }
            Self::FileTooShort { offset, size, file_size } => {
                write!(f, "the file has {file_size:#x} bytes, too few to map {offset:#x}+{size:#x}")
            }
            Self::System { what, offset, size, errno } => {
                let reason = std::io::Error::from_raw_os_error(errno);
                write!(f, "{what} failed for {offset:#x}+{size:#x} of the file: {reason}")
            }
            Self::MappingTooSmall { guest_addr, size, mapped } => write!(
                f,
                "guest range {guest_addr:#x}+{size:#x} is larger than its mapping of {mapped:#x} bytes"
            ),
            Self::GuestOverlap { guest_addr, size, other_addr, other_size } => write!(
                f,
                "guest range {guest_addr:#x}+{size:#x} overlaps the region at {other_addr:#x}+{other_size:#x}"
            ),
            Self::UserOverlap { user_addr, size, other_addr, other_size } => write!(
                f,
                "user range {user_addr:#x}+{size:#x} overlaps the region at {other_addr:#x}+{other_size:#x}"
            ),
            Self::NoSuchRegion { guest_addr, size } => {
                write!(f, "no region has the guest range {guest_addr:#x}+{size:#x}")
            }
            Self::TooMany { what, limit, address, size } => {
                write!(f, "{address:#x}+{size:#x} refused: there are {limit} {what} already")
            }
        }
    }
}

impl std::error::Error for MemoryError {}
