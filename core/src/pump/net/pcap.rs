//! Capture files, in the classic format of libpcap: a header of 24 bytes, then packets with 16 bytes
//! before each. Written in nanoseconds and the byte order of this machine; read in either unit and
//! order.
//!
//! Reading checks the structure of the whole file first, so that a cut or foreign file is one error in
//! the beginning and not a surprise in the middle.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use super::sink::{Forget, Silent};
use super::{BATCH, Frames, HEADER_BYTES, Ledger, Link, OpenError, Receiver, Sender, Tally};

const MAGIC_MICROSECONDS: u32 = 0xa1b2_c3d4;
const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const MAGIC_PCAPNG: u32 = 0x0a0d_0d0a;
const VERSION: [u16; 2] = [2, 4];
const LINK_ETHERNET: u32 = 1;
const FILE_HEADER_BYTES: usize = 24;
const RECORD_HEADER_BYTES: usize = 16;
/// The most that libpcap accepts in one record.
const RECORD_BYTES_MAX: u32 = 262_144;

/// Gives the frames of one file to queue pair 0, and writes what is sent, on any pair, to another.
pub struct PcapLink {
    reader: Option<Arc<Mutex<Records>>>,
    writer: Option<Arc<Mutex<Capture>>>,
}

impl PcapLink {
    /// Open the file to read and create the one to write; one of them may be missing.
    pub fn open(read: Option<&Path>, write: Option<&Path>) -> Result<Self, OpenError> {
        if read.is_none() && write.is_none() {
            let error = invalid_input("a capture port needs a file to read or to write");
            return Err(error.into());
        }
        let about = |path: &Path| {
            let path = path.to_path_buf();
            |error| OpenError { path: Some(path), error }
        };
        let open_reader = |path| Records::open(path).map_err(about(path));
        let reader = read.map(open_reader).transpose()?;
        let open_writer = |path| Capture::create(path, reader.as_ref()).map_err(about(path));
        let writer = write.map(open_writer).transpose()?;
        Ok(Self {
            reader: reader.map(|reader| Arc::new(Mutex::new(reader))),
            writer: writer.map(|writer| Arc::new(Mutex::new(writer))),
        })
    }
}

impl Link for PcapLink {
    fn sender(&self, _pair: u16) -> io::Result<Box<dyn Sender>> {
        Ok(match &self.writer {
            Some(writer) => Box::new(Recorder { capture: Arc::clone(writer) }),
            None => Box::new(Forget::new()),
        })
    }

    fn receiver(&self, pair: u16, _ledger: &Ledger) -> io::Result<Box<dyn Receiver>> {
        Ok(match &self.reader {
            Some(reader) if pair == 0 => Box::new(Player { records: Arc::clone(reader) }),
            _ => Box::new(Silent),
        })
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn invalid_input(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

fn invalid_data(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// The packets of a file, one after the other.
struct Records {
    file: BufReader<File>,
    swapped: bool,
    /// Packets not read yet.
    left: u64,
    /// A packet that came back.
    returned: Option<Vec<u8>>,
}

impl Records {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(invalid_data("it is not a regular file".into()));
        }
        let size = file.metadata()?.len();
        let mut records =
            Self { file: BufReader::new(file), swapped: false, left: 0, returned: None };
        records.read_file_header()?;
        records.count(size)?;
        records.file.seek(SeekFrom::Start(FILE_HEADER_BYTES as u64))?;
        Ok(records)
    }

    fn read_file_header(&mut self) -> io::Result<()> {
        let mut raw = [0; FILE_HEADER_BYTES];
        let short = |_| invalid_data("it is too short for the header of a capture".into());
        self.file.read_exact(&mut raw).map_err(short)?;
        let magic = self.number(&raw, 0);
        self.swapped = match magic {
            MAGIC_MICROSECONDS | MAGIC_NANOSECONDS => false,
            _ if [MAGIC_MICROSECONDS, MAGIC_NANOSECONDS].contains(&magic.swap_bytes()) => true,
            MAGIC_PCAPNG => {
                let text =
                    "it is in the pcapng format; `editcap -F nsecpcap` makes it a classic one";
                return Err(invalid_data(text.into()));
            }
            _ => {
                return Err(invalid_data(format!("it begins with {magic:#010x}: no capture file")));
            }
        };
        // Above the link type there may be the length of a frame check sequence.
        match self.number(&raw, 20) & 0xffff {
            LINK_ETHERNET => Ok(()),
            other => Err(invalid_data(format!("its link type is {other}, not Ethernet (1)"))),
        }
    }

    fn number(&self, raw: &[u8], at: usize) -> u32 {
        let number = u32::from_ne_bytes(raw[at..at + 4].try_into().expect("four bytes"));
        if self.swapped { number.swap_bytes() } else { number }
    }

    /// Walk over all records of a file of `size` bytes.
    fn count(&mut self, size: u64) -> io::Result<()> {
        let mut at = FILE_HEADER_BYTES as u64;
        while at < size {
            let number = self.left + 1;
            let cut = |missing: u64| {
                invalid_data(format!("packet {number}, at byte {at}, is cut by {missing} bytes"))
            };
            let data = at + RECORD_HEADER_BYTES as u64;
            if data > size {
                return Err(cut(data - size));
            }
            let length = self.record_length()?;
            if length > RECORD_BYTES_MAX {
                return Err(invalid_data(format!(
                    "packet {number}, at byte {at}, has a length of {length} bytes"
                )));
            }
            let end = data + u64::from(length);
            if end > size {
                return Err(cut(end - size));
            }
            self.file.seek_relative(length.into())?;
            at = end;
            self.left = number;
        }
        Ok(())
    }

    fn record_length(&mut self) -> io::Result<u32> {
        let mut raw = [0; RECORD_HEADER_BYTES];
        self.file.read_exact(&mut raw)?;
        Ok(self.number(&raw, 8))
    }

    /// Append the next packet to `into`.
    fn next(&mut self, into: &mut Vec<u8>) -> io::Result<()> {
        let length = self.record_length()?.min(RECORD_BYTES_MAX) as usize;
        let start = into.len();
        into.resize(start + length, 0);
        self.file.read_exact(&mut into[start..])
    }
}

/// From a file to a receive queue, as fast as there are buffers.
struct Player {
    records: Arc<Mutex<Records>>,
}

impl Receiver for Player {
    fn next(&mut self, packet: &mut Vec<u8>, tally: &mut Tally) -> bool {
        let mut records = lock(&self.records);
        if let Some(returned) = records.returned.take() {
            *packet = returned;
            return true;
        }
        if records.left == 0 {
            return false;
        }
        records.left -= 1;
        packet.resize(HEADER_BYTES, 0);
        if records.next(packet).is_err() {
            // The file changed since it was checked: it has no more packets.
            records.left = 0;
            tally.dropped_port_error += 1;
            packet.clear();
            return false;
        }
        true
    }

    fn give_back(&mut self, packet: Vec<u8>) {
        lock(&self.records).returned = Some(packet);
    }

    fn ahead(&self) -> usize {
        lock(&self.records).left.min(BATCH as u64) as usize
    }
}

/// A file that is written.
struct Capture {
    file: File,
    /// Bytes of it that are whole packets.
    size: u64,
    pending: Vec<u8>,
}

impl Capture {
    fn create(path: &Path, source: Option<&Records>) -> io::Result<Self> {
        // Not truncated before it is known not to be the one that is read.
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        let found = file.metadata()?;
        if let Some(source) = source {
            let read = source.file.get_ref().metadata()?;
            if (read.dev(), read.ino()) == (found.dev(), found.ino()) {
                return Err(invalid_input("the file is to be read and written at once"));
            }
        }
        if found.is_file() {
            file.set_len(0)?;
        }
        let mut header = Vec::with_capacity(FILE_HEADER_BYTES);
        header.extend(MAGIC_NANOSECONDS.to_ne_bytes());
        header.extend(VERSION.iter().flat_map(|part| part.to_ne_bytes()));
        header.extend([0; 8]); // Time zone and accuracy: always 0.
        header.extend(RECORD_BYTES_MAX.to_ne_bytes());
        header.extend(LINK_ETHERNET.to_ne_bytes());
        let mut capture = Self { file, size: 0, pending: header };
        capture.commit()?;
        Ok(capture)
    }

    /// Write what is pending, or none of it.
    fn commit(&mut self) -> io::Result<()> {
        let written = self.file.write_all(&self.pending);
        if written.is_ok() {
            self.size += self.pending.len() as u64;
        } else if self.file.set_len(self.size).is_ok() {
            // Without the part of a packet that a full disk left, what follows is readable again.
            self.file.seek(SeekFrom::Start(self.size))?;
        }
        self.pending.clear();
        written
    }
}

/// From a transmit queue to a file, which holds whole packets after each batch.
struct Recorder {
    capture: Arc<Mutex<Capture>>,
}

impl Sender for Recorder {
    fn send(&mut self, frames: &Frames<'_>, tally: &mut Tally) {
        let mut capture = lock(&self.capture);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (mut packets, mut bytes) = (0, 0);
        for frame in frames.iter() {
            let length = frame.len() as u32;
            for field in [now.as_secs() as u32, now.subsec_nanos(), length, length] {
                capture.pending.extend(field.to_ne_bytes());
            }
            frame.append_to(&mut capture.pending);
            packets += 1;
            bytes += u64::from(length);
        }
        if capture.commit().is_ok() {
            tally.packets += packets;
            tally.bytes += bytes;
        } else {
            tally.dropped_port_error += packets;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn file(name: &str, bytes: &[u8]) -> PathBuf {
        let name = format!("virtq-{}-{name}.pcap", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn capture(magic: u32, put: fn(u32) -> [u8; 4], packets: &[&[u8]]) -> Vec<u8> {
        let mut bytes: Vec<u8> = [magic, 0, 0, 0, 65535, LINK_ETHERNET].map(put).concat();
        for packet in packets {
            let length = packet.len() as u32;
            bytes.extend([1, 2, length, length + 5].map(put).concat());
            bytes.extend(*packet);
        }
        bytes
    }

    fn read_all(path: &Path) -> Vec<Vec<u8>> {
        let records = Arc::new(Mutex::new(Records::open(path).unwrap()));
        let mut player = Player { records };
        let mut packets = Vec::new();
        let (mut packet, mut tally) = (Vec::new(), Tally::default());
        while player.next(&mut packet, &mut tally) {
            packets.push(packet.split_off(HEADER_BYTES));
            packet.clear();
        }
        assert_eq!(tally, Tally::default());
        packets
    }

    #[test]
    fn either_unit_and_byte_order() {
        for (magic, put) in [
            (MAGIC_MICROSECONDS, u32::to_le_bytes as fn(u32) -> [u8; 4]),
            (MAGIC_NANOSECONDS, u32::to_le_bytes),
            (MAGIC_MICROSECONDS, u32::to_be_bytes),
            (MAGIC_NANOSECONDS, u32::to_be_bytes),
        ] {
            let path = file("order", &capture(magic, put, &[b"one packet", b"", b"another"]));
            assert_eq!(read_all(&path), [&b"one packet"[..], b"", b"another"]);
            std::fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn no_length_of_a_cut_file_is_accepted_but_those_of_whole_packets() {
        let bytes = capture(MAGIC_NANOSECONDS, u32::to_ne_bytes, &[b"first", b"second"]);
        let whole = [24, 24 + 16 + 5, bytes.len()];
        for length in 0..=bytes.len() {
            let path = file("cut", &bytes[..length]);
            let opened = PcapLink::open(Some(&path), None);
            match opened {
                Ok(_) => assert!(whole.contains(&length), "{length} bytes"),
                Err(failed) => {
                    assert!(!whole.contains(&length), "{length} bytes: {}", failed.error);
                    assert_eq!(failed.error.kind(), io::ErrorKind::InvalidData);
                    assert_eq!(failed.path.as_ref(), Some(&path));
                }
            }
            std::fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn foreign_files_are_refused_with_the_reason() {
        let mut other_link = capture(MAGIC_NANOSECONDS, u32::to_ne_bytes, &[]);
        other_link[20..24].copy_from_slice(&113u32.to_ne_bytes());
        let mut huge = capture(MAGIC_NANOSECONDS, u32::to_ne_bytes, &[b"packet"]);
        huge[32..36].copy_from_slice(&u32::MAX.to_ne_bytes());
        for (bytes, reason) in [
            (&[0x5a; 100][..], "0x5a5a5a5a"),
            (&[0x0a, 0x0d, 0x0d, 0x0a].repeat(10)[..], "pcapng"),
            (&other_link, "link type is 113"),
            (&huge, "length of 4294967295"),
        ] {
            let path = file("foreign", bytes);
            let failed = PcapLink::open(Some(&path), None).err().expect("refused");
            assert!(failed.error.to_string().contains(reason), "{}", failed.error);
            std::fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn the_file_that_is_read_is_not_overwritten() {
        let bytes = capture(MAGIC_NANOSECONDS, u32::to_ne_bytes, &[b"packet"]);
        let path = file("same", &bytes);
        let failed = PcapLink::open(Some(&path), Some(&path)).err().expect("refused");
        assert_eq!(failed.error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        assert!(PcapLink::open(None, None).is_err());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_cut_after_it_was_checked_ends_there() {
        let packet: &[u8] = &[7; 60_000];
        let path = file("later", &capture(MAGIC_NANOSECONDS, u32::to_ne_bytes, &[packet; 3]));
        let records = Arc::new(Mutex::new(Records::open(&path).unwrap()));
        File::options().write(true).open(&path).unwrap().set_len(100_000).unwrap();
        let mut player = Player { records };
        let (mut packet, mut tally) = (Vec::new(), Tally::default());
        assert!(player.next(&mut packet, &mut tally));
        packet.clear();
        assert!(!player.next(&mut packet, &mut tally));
        assert!(packet.is_empty());
        assert!(!player.next(&mut packet, &mut tally));
        assert_eq!(tally.dropped_port_error, 1);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let capture = Capture::create(Path::new("/dev/full"), None);
        assert_eq!(capture.err().expect("refused").raw_os_error(), Some(libc::ENOSPC));
    }
}
