//! A tap interface of the host.
//!
//! The kernel puts the same 12 bytes in front of each frame as the device does (its `virtio_net_hdr` is
//! that header), so packets pass as they are, with the offloads that both sides agreed on.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::mem::zeroed;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::port::no_such_pair;
use super::{
    BATCH, FRAME_BYTES_MAX, FRAME_BYTES_MIN, Frame, Frames, HEADER_BYTES, Ledger, Link, OpenError,
    Receiver, Sender, Tally, offload,
};

/// Pieces of a packet that are written in place; one in more pieces is copied first.
const PIECES_MAX: usize = 64;
const PACKET_BYTES_MAX: usize = HEADER_BYTES + FRAME_BYTES_MAX;
/// Where a header has `hdr_len`.
const HDR_LEN: Range<usize> = 2..4;
/// Header flag: the checksum is not complete.
const NEEDS_CSUM: u8 = 1;
/// Bit beside the types in `gso_type`.
const GSO_ECN: u8 = 0x80;

/// An open tap interface with a queue for each queue pair.
pub struct TapLink {
    queues: Arc<Queues>,
    name: String,
}

struct Queues {
    files: Vec<File>,
    /// What the driver accepts, as feature bits.
    offloads: AtomicU64,
}

impl TapLink {
    /// Open the interface `name`, with a `%d` in it the first free one, with `pairs` queues. It is made
    /// if there is none, and then goes when the link does.
    pub fn open(name: &str, pairs: u16) -> Result<Self, OpenError> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['/', '\0']) {
            let text = format!("{name:?} is not an interface name of up to 15 bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text).into());
        }
        if pairs == 0 {
            let text = "a tap without a queue pair";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text).into());
        }
        let refused = |error| OpenError { path: Some(name.into()), error };
        let (first, name) = Self::open_first(name, pairs, refused)?;
        let mut files = vec![first];
        for _ in 1..pairs {
            let (file, _) = attach(control()?, &name, libc::IFF_MULTI_QUEUE).map_err(refused)?;
            // The kernel spreads packets over attached queues; this one is when its path is enabled.
            set_attached(&file, false).map_err(refused)?;
            files.push(file);
        }
        let header = HEADER_BYTES as libc::c_int;
        set(&files[0], libc::TUNSETVNETHDRSZ, &header).map_err(refused)?;
        set(&files[0], libc::TUNSETVNETLE, &1).map_err(refused)?;
        let queues = Arc::new(Queues { files, offloads: AtomicU64::new(0) });
        let link = Self { queues, name };
        link.set_offloads(0).map_err(refused)?;
        Ok(link)
    }

    /// A persistent interface that was made for several queues opens only as such, even for one.
    fn open_first(
        name: &str,
        pairs: u16,
        refused: impl Fn(io::Error) -> OpenError,
    ) -> Result<(File, String), OpenError> {
        if pairs == 1 {
            match attach(control()?, name, 0) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                result => return result.map_err(refused),
            }
        }
        attach(control()?, name, libc::IFF_MULTI_QUEUE).map_err(refused)
    }

    /// What the interface is called.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A new queue that belongs to no interface yet.
fn control() -> Result<File, OpenError> {
    let path = "/dev/net/tun";
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    options.open(path).map_err(|error| OpenError { path: Some(path.into()), error })
}

/// Make `file` a queue of an interface; returns it and the name that the interface has.
fn attach(file: File, name: &str, extra: libc::c_int) -> io::Result<(File, String)> {
    // SAFETY: a structure of integers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (into, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *into = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | extra;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads and writes one ifreq.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel ends the name with a zero byte.
    let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) };
    Ok((file, name.to_string_lossy().into_owned()))
}

fn set_attached(file: &File, attached: bool) -> io::Result<()> {
    // SAFETY: as in `attach`.
    let mut request: libc::ifreq = unsafe { zeroed() };
    let flags = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads one ifreq.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETQUEUE, &request) } as isize)?;
    Ok(())
}

fn set(file: &File, request: libc::Ioctl, value: &libc::c_int) -> io::Result<()> {
    // SAFETY: these requests read one int.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, value) } as isize)?;
    Ok(())
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

impl Link for TapLink {
    fn sender(&self, pair: u16) -> io::Result<Box<dyn Sender>> {
        self.queues.check(pair)?;
        let queues = Arc::clone(&self.queues);
        Ok(Box::new(Writer { queues, pair: pair.into(), packet: Vec::new() }))
    }

    fn receiver(&self, pair: u16, _ledger: &Ledger) -> io::Result<Box<dyn Receiver>> {
        self.queues.check(pair)?;
        let queues = Arc::clone(&self.queues);
        Ok(Box::new(Reader { queues, pair: pair.into(), attached: pair == 0, failed: false }))
    }

    fn offers_offloads(&self) -> bool {
        true
    }

    fn set_offloads(&self, features: u64) -> io::Result<()> {
        let known = [
            (offload::GUEST_CSUM, libc::TUN_F_CSUM),
            (offload::GUEST_TSO4, libc::TUN_F_TSO4),
            (offload::GUEST_TSO6, libc::TUN_F_TSO6),
            (offload::GUEST_ECN, libc::TUN_F_TSO_ECN),
            (offload::GUEST_UFO, libc::TUN_F_UFO),
        ];
        let chosen = known.iter().filter(|(feature, _)| features & feature != 0);
        let flags = chosen.fold(0, |flags, (_, flag)| flags | flag);
        let fd = self.queues.files[0].as_raw_fd();
        // SAFETY: the argument is a number.
        check(unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) } as isize)?;
        self.queues.offloads.store(features, Ordering::Relaxed);
        Ok(())
    }
}

impl Queues {
    fn check(&self, pair: u16) -> io::Result<()> {
        let pairs = self.files.len();
        if usize::from(pair) < pairs { Ok(()) } else { Err(no_such_pair(pair, pairs)) }
    }

    /// Whether the driver may get a packet with this header. What waited in the interface while other
    /// offloads were set may be what this driver did not ask for.
    fn admits(&self, packet: &[u8]) -> bool {
        let needed = match packet[1] & !GSO_ECN {
            0 => 0,
            1 => offload::GUEST_TSO4,
            3 => offload::GUEST_UFO,
            4 => offload::GUEST_TSO6,
            _ => return false,
        };
        let checksum = if packet[0] & NEEDS_CSUM == 0 { 0 } else { offload::GUEST_CSUM };
        let ecn = if packet[1] & GSO_ECN == 0 { 0 } else { offload::GUEST_ECN };
        let all = needed | checksum | ecn;
        self.offloads() & all == all
    }

    fn offloads(&self) -> u64 {
        self.offloads.load(Ordering::Relaxed)
    }
}

/// From a transmit queue to the interface.
struct Writer {
    queues: Arc<Queues>,
    pair: usize,
    packet: Vec<u8>,
}

impl Writer {
    /// Write a packet where it lies; the driver may write it meanwhile, which concerns only itself.
    fn write(&mut self, frame: &Frame<'_>) -> io::Result<usize> {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut pieces = [empty; PIECES_MAX];
        let segments = frame.segments();
        let count = if segments.len() <= PIECES_MAX {
            for (piece, segment) in pieces.iter_mut().zip(segments) {
                piece.iov_base = segment.ptr.cast();
                piece.iov_len = segment.len as usize;
            }
            segments.len()
        } else {
            self.packet.clear();
            frame.append_packet_to(&mut self.packet);
            pieces[0].iov_base = self.packet.as_mut_ptr().cast();
            pieces[0].iov_len = self.packet.len();
            1
        };
        let write = |file: &File| {
            // SAFETY: the pieces are mapped while the batch of the frame holds its memory.
            check(unsafe { libc::writev(file.as_raw_fd(), pieces.as_ptr(), count as libc::c_int) })
        };
        match write(&self.queues.files[self.pair]) {
            // The queue is detached while its receive half is disabled.
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) && self.pair > 0 => {
                write(&self.queues.files[0])
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.write_unhinted(frame),
            result => result,
        }
    }

    /// The same without `hdr_len`: the kernel refuses a packet for one that is too large, and it need
    /// not be right (5.1.6.2.2).
    fn write_unhinted(&mut self, frame: &Frame<'_>) -> io::Result<usize> {
        self.packet.clear();
        frame.append_packet_to(&mut self.packet);
        self.packet[HDR_LEN].fill(0);
        (&self.queues.files[self.pair]).write(&self.packet)
    }
}

impl Sender for Writer {
    fn send(&mut self, frames: &Frames<'_>, tally: &mut Tally) {
        for frame in frames.iter() {
            // Refused: the interface is down or gone, or the header asks for what makes no sense.
            match self.write(&frame) {
                Ok(_) => {
                    tally.packets += 1;
                    tally.bytes += frame.len() as u64;
                }
                Err(_) => tally.dropped_port_error += 1,
            }
        }
    }
}

/// From the interface to a receive queue.
struct Reader {
    queues: Arc<Queues>,
    pair: usize,
    attached: bool,
    failed: bool,
}

impl Reader {
    fn read(&self, packet: &mut Vec<u8>) -> io::Result<()> {
        packet.reserve(PACKET_BYTES_MAX);
        // The kernel passes over `num_buffers`.
        packet.extend_from_slice(&[0; HEADER_BYTES]);
        let fd = self.queues.files[self.pair].as_raw_fd();
        // SAFETY: there is room for so many bytes from the beginning on.
        let read = unsafe { libc::read(fd, packet.as_mut_ptr().cast(), PACKET_BYTES_MAX) };
        match check(read) {
            Ok(read) => {
                // SAFETY: the header was initialized above, and the kernel wrote what is behind it.
                unsafe { packet.set_len(read) };
                Ok(())
            }
            Err(error) => {
                packet.clear();
                Err(error)
            }
        }
    }
}

impl Receiver for Reader {
    fn next(&mut self, packet: &mut Vec<u8>, tally: &mut Tally) -> bool {
        for _ in 0..BATCH {
            match self.read(packet) {
                Ok(()) => self.failed = false,
                Err(error) => {
                    let failed = error.kind() != io::ErrorKind::WouldBlock;
                    tally.dropped_port_error += u64::from(failed && !self.failed);
                    self.failed = failed;
                    return false;
                }
            }
            if packet.len() >= HEADER_BYTES + FRAME_BYTES_MIN && self.queues.admits(packet) {
                if self.queues.offloads() & offload::GUEST_CSUM == 0 {
                    packet[0] = 0; // Not even that the checksum is right.
                }
                return true;
            }
            tally.dropped_malformed += 1;
            packet.clear();
        }
        false // For now: the descriptor is still readable.
    }

    /// None while reading fails: a descriptor whose interface is gone polls as readable for ever.
    fn source(&self) -> Option<BorrowedFd<'_>> {
        (!self.failed).then(|| self.queues.files[self.pair].as_fd())
    }

    fn enable(&mut self, enabled: bool) {
        if self.pair > 0 && self.attached != enabled {
            // If the kernel refuses, reading will say so.
            let _ = set_attached(&self.queues.files[self.pair], enabled);
            self.attached = enabled;
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.enable(false);
    }
}
