//! One block request (5.2.6): a header, data, and a status byte, however they are spread over
//! descriptors.

use std::io;

use libc::iovec;

use super::disk::{Disk, ID_BYTES, SECTOR_BYTES};
use super::mover::Mover;
use super::ram::{PREFETCH_BYTES, prefetch};
use super::stats::Counts;
use super::store::Way;
use crate::ring::{Batch, Buffer, pieces};

/// Type, reserved, sector.
pub const HEADER_BYTES: u64 = 16;
const SEGMENT_BYTES: u64 = 16;
const UNMAP: u32 = 1;

/// Request types.
pub mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// The last device-writable byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What became of a request.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub status: Status,
    /// Bytes at the start of the device-writable part that were written.
    pub filled: u64,
    /// Bytes of data that came from the disk.
    pub loaded: u64,
    /// Bytes of data that went to the disk.
    pub stored: u64,
    /// It is done only once the disk was flushed.
    pub flush: bool,
}

impl Outcome {
    pub const FAILED: Self =
        Self { status: Status::IoError, filled: 0, loaded: 0, stored: 0, flush: false };
    const UNSUPPORTED: Self = Self { status: Status::Unsupported, ..Self::FAILED };
    const DONE: Self = Self { status: Status::Ok, ..Self::FAILED };
}

/// Why a request was not done.
enum Refusal {
    /// It makes no sense.
    Malformed,
    Unsupported,
    Storage(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Storage(error)
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    kind: u32,
    sector: u64,
}

impl Header {
    /// Read once: the driver may change it while we look. None if it is not all there.
    pub fn read(batch: &Batch, buffer: &Buffer) -> Option<Self> {
        let mut bytes = [0; HEADER_BYTES as usize];
        if batch.read_at(buffer, 0, &mut bytes) < bytes.len() {
            return None;
        }
        let kind = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
        let sector = u64::from_le_bytes(bytes[8..].try_into().expect("eight bytes"));
        Some(Self { kind, sector })
    }
}

struct Segment {
    sector: u64,
    sectors: u32,
    flags: u32,
}

/// How far a request is.
#[derive(Clone, Copy, Debug)]
pub enum Progress {
    /// All but the status is there.
    Ready(Outcome),
    /// Its data is under way; what becomes of it if that goes well.
    Moving(Outcome),
}

/// Carries out the requests of a batch.
pub struct Requests<'a, 'm> {
    pub disk: &'a Disk,
    pub batch: &'a Batch,
    pub mover: &'a mut Mover<'m>,
    pub counts: &'a mut Counts,
    /// Room for the pieces of a request.
    pub vectors: &'a mut Vec<iovec>,
}

impl Requests<'_, '_> {
    /// Has the processor fetch the beginning of what the request at `index` will move, where moving
    /// it is a copy.
    pub fn prefetch(&self, index: usize, header: Option<Header>) {
        let (Some(ram), Some(header)) = (self.disk.ram(), header) else { return };
        let buffer = &self.batch.buffers[index];
        let offset = header.sector.saturating_mul(SECTOR_BYTES);
        match header.kind {
            kind::IN => ram.prefetch(Way::Read, offset, buffer.writable.saturating_sub(1)),
            kind::OUT => {
                let data = buffer.readable.saturating_sub(HEADER_BYTES);
                let wanted = data.min(PREFETCH_BYTES) as usize;
                for (ptr, len) in pieces(self.batch.readable(buffer), HEADER_BYTES, wanted) {
                    prefetch(Way::Read, ptr, len);
                }
            }
            _ => {}
        }
    }

    /// Carries out the request at `index`, all but its status.
    pub fn execute(&mut self, index: usize, header: Option<Header>) -> Progress {
        let buffer = &self.batch.buffers[index];
        if buffer.writable == 0 {
            return Progress::Ready(Outcome::FAILED);
        }
        let header = header.ok_or(Refusal::Malformed);
        match header.and_then(|header| self.dispatch(buffer, header, index)) {
            Ok(progress) => progress,
            Err(Refusal::Malformed) => Progress::Ready(Outcome::FAILED),
            Err(Refusal::Unsupported) => Progress::Ready(Outcome::UNSUPPORTED),
            Err(Refusal::Storage(error)) => {
                self.disk.note(&error);
                Progress::Ready(Outcome::FAILED)
            }
        }
    }

    fn dispatch(
        &mut self,
        buffer: &Buffer,
        header: Header,
        index: usize,
    ) -> Result<Progress, Refusal> {
        let sector = header.sector;
        let counts = &mut self.counts;
        let outcome = match header.kind {
            kind::IN => {
                counts.reads += 1;
                return self.read(buffer, sector, index);
            }
            kind::OUT => {
                counts.writes += 1;
                return self.write(buffer, sector, index);
            }
            kind::FLUSH => {
                counts.flushes += 1;
                Outcome { flush: true, ..Outcome::DONE }
            }
            kind::GET_ID => {
                counts.get_ids += 1;
                self.get_id(buffer)?
            }
            kind::DISCARD => {
                counts.discards += 1;
                self.discard(buffer)?
            }
            kind::WRITE_ZEROES => {
                counts.write_zeroes += 1;
                self.write_zeroes(buffer)?
            }
            _ => return Err(Refusal::Unsupported),
        };
        Ok(Progress::Ready(outcome))
    }

    fn read(&mut self, buffer: &Buffer, sector: u64, index: usize) -> Result<Progress, Refusal> {
        let data = data_to_driver(buffer)?;
        let offset = self.disk.locate(sector, data).ok_or(Refusal::Malformed)?;
        self.gather(pieces(self.batch.writable(buffer), 0, data as usize));
        let outcome = Outcome { filled: data, loaded: data, ..Outcome::DONE };
        self.transfer(Way::Read, offset, index, outcome)
    }

    fn write(&mut self, buffer: &Buffer, sector: u64, index: usize) -> Result<Progress, Refusal> {
        let data = self.data_from_driver(buffer)?;
        let offset = self.disk.locate(sector, data).ok_or(Refusal::Malformed)?;
        self.gather(pieces(self.batch.readable(buffer), HEADER_BYTES, data as usize));
        let outcome = Outcome { stored: data, ..self.changed() };
        self.transfer(Way::Write, offset, index, outcome)
    }

    fn transfer(
        &mut self,
        way: Way,
        offset: u64,
        index: usize,
        outcome: Outcome,
    ) -> Result<Progress, Refusal> {
        // SAFETY: the batch keeps the pieces mapped until its round is over, and the mover has
        // nothing under way then. Those to be read into were taken with write access; writing to a
        // disk only reads them.
        let done = unsafe { self.mover.begin(way, offset, self.vectors, index)? };
        if !done {
            return Ok(Progress::Moving(outcome));
        }
        // A copy does not fail as a system call does where the memory's file was truncated.
        if self.batch.memory().is_some_and(|memory| memory.is_truncated()) {
            return Err(io::Error::from_raw_os_error(libc::EFAULT).into());
        }
        Ok(Progress::Ready(outcome))
    }

    fn get_id(&mut self, buffer: &Buffer) -> Result<Outcome, Refusal> {
        if data_to_driver(buffer)? < ID_BYTES as u64 {
            return Err(Refusal::Malformed);
        }
        self.batch.write_at(buffer, 0, &self.disk.serial());
        Ok(Outcome { filled: ID_BYTES as u64, ..Outcome::DONE })
    }

    fn discard(&mut self, buffer: &Buffer) -> Result<Outcome, Refusal> {
        let limits = self.disk.limits();
        let most = (limits.max_discard_seg, limits.max_discard_sectors);
        let segments = self.segments(buffer, most, 0)?;
        self.mover.quiesce();
        for segment in segments {
            let (offset, length) = segment.range();
            self.disk.discard(offset, length)?;
        }
        Ok(self.changed())
    }

    fn write_zeroes(&mut self, buffer: &Buffer) -> Result<Outcome, Refusal> {
        let limits = self.disk.limits();
        let most = (limits.max_write_zeroes_seg, limits.max_write_zeroes_sectors);
        let segments = self.segments(buffer, most, UNMAP)?;
        self.mover.quiesce();
        for segment in segments {
            let (offset, length) = segment.range();
            let unmap = limits.write_zeroes_may_unmap && segment.flags & UNMAP != 0;
            self.disk.write_zeroes(offset, length, unmap)?;
        }
        Ok(self.changed())
    }

    /// The disk was changed. With the write cache off that has to reach the storage first.
    fn changed(&self) -> Outcome {
        Outcome { flush: !self.disk.writeback(), ..Outcome::DONE }
    }

    /// All segments of a request, copied out and acceptable; otherwise none is carried out.
    fn segments(
        &self,
        buffer: &Buffer,
        (segments_max, sectors_max): (u32, u32),
        flags: u32,
    ) -> Result<Vec<Segment>, Refusal> {
        let data = self.data_from_driver(buffer)?;
        if segments_max == 0 || sectors_max == 0 {
            return Err(Refusal::Unsupported);
        }
        let count = data / SEGMENT_BYTES;
        if count == 0 || data % SEGMENT_BYTES != 0 || count > segments_max.into() {
            return Err(Refusal::Malformed);
        }
        let mut bytes = vec![0; data as usize];
        self.batch.read_at(buffer, HEADER_BYTES, &mut bytes);
        let segments: Vec<_> =
            bytes.chunks_exact(SEGMENT_BYTES as usize).map(Segment::parse).collect();
        if segments.iter().any(|segment| segment.flags & !flags != 0) {
            return Err(Refusal::Unsupported);
        }
        let fits = |segment: &Segment| {
            let bytes = u64::from(segment.sectors) * SECTOR_BYTES;
            segment.sectors <= sectors_max && self.disk.locate(segment.sector, bytes).is_some()
        };
        if segments.iter().all(fits) { Ok(segments) } else { Err(Refusal::Malformed) }
    }

    /// Bytes of data in the device-readable part, of a request that changes the disk.
    fn data_from_driver(&self, buffer: &Buffer) -> Result<u64, Refusal> {
        if self.disk.read_only() || buffer.writable > 1 {
            return Err(Refusal::Malformed);
        }
        Ok(buffer.readable - HEADER_BYTES)
    }

    fn gather(&mut self, pieces: impl Iterator<Item = (*mut u8, usize)>) {
        self.vectors.clear();
        let vectors = pieces.map(|(ptr, len)| iovec { iov_base: ptr.cast(), iov_len: len });
        self.vectors.extend(vectors);
    }
}

impl Segment {
    fn parse(bytes: &[u8]) -> Self {
        let word = |at| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let sector = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
        Self { sector, sectors: word(8), flags: word(12) }
    }

    /// (offset, length) in bytes, of a segment within the capacity.
    fn range(&self) -> (u64, u64) {
        (self.sector * SECTOR_BYTES, u64::from(self.sectors) * SECTOR_BYTES)
    }
}

/// Bytes of data in the device-writable part, of a request that has none in the other.
fn data_to_driver(buffer: &Buffer) -> Result<u64, Refusal> {
    if buffer.readable == HEADER_BYTES { Ok(buffer.writable - 1) } else { Err(Refusal::Malformed) }
}

/// Writes the status, and zeroes where nothing was written before it; returns the used length,
/// which is so always the whole device-writable part.
pub fn finish(batch: &Batch, buffer: &Buffer, outcome: Outcome) -> u32 {
    let Some(data) = buffer.writable.checked_sub(1) else { return 0 };
    let rest = (data - outcome.filled) as usize;
    for (ptr, len) in pieces(batch.writable(buffer), outcome.filled, rest) {
        // SAFETY: the batch keeps the piece mapped, and it was taken with write access.
        unsafe { ptr.write_bytes(0, len) };
    }
    batch.write_at(buffer, data, &[outcome.status as u8]);
    u32::try_from(buffer.writable).unwrap_or(u32::MAX)
}
