//! What the packets of a device go to and come from, as the paths see it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::counters::Totals;
use super::{Counters, HEADER_BYTES, Ledger, ReceivePath, Tally, TransmitPath};
use crate::memory::copy_from_shared;
use crate::pump::Poller;
use crate::ring::{Batch, Burst, Segment, pieces};

/// A frame that the driver transmitted, where it lies in guest memory.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    segments: &'a [Segment],
    len: usize,
}

impl Frame<'_> {
    /// Bytes of the frame, without the header before it.
    #[allow(clippy::len_without_is_empty)] // No frame is empty.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The pieces of the packet, header and frame.
    pub fn segments(&self) -> &[Segment] {
        self.segments
    }

    /// Append the frame to `into`. The driver may write it meanwhile: each byte is read once.
    pub fn append_to(&self, into: &mut Vec<u8>) {
        self.append(HEADER_BYTES as u64, self.len, into);
    }

    /// Append header and frame to `into`.
    pub fn append_packet_to(&self, into: &mut Vec<u8>) {
        self.append(0, HEADER_BYTES + self.len, into);
    }

    fn append(&self, offset: u64, len: usize, into: &mut Vec<u8>) {
        let mut at = into.len();
        into.resize(at + len, 0);
        for (ptr, len) in pieces(self.segments, offset, len) {
            // SAFETY: the segment is mapped while its batch holds the memory.
            unsafe { copy_from_shared(ptr, &mut into[at..at + len]) };
            at += len;
        }
    }
}

/// The frames of one batch, none shorter or longer than a frame can be.
pub struct Frames<'a>(Lie<'a>);

/// How they lie in memory.
enum Lie<'a> {
    /// Buffers of any form, those chosen.
    Any(&'a Batch, &'a [usize]),
    /// Each in one piece.
    Plain(&'a [Segment]),
}

impl<'a> Frames<'a> {
    pub(super) fn new(batch: &'a Batch, chosen: &'a [usize]) -> Self {
        Self(Lie::Any(batch, chosen))
    }

    pub(super) fn plain(burst: &'a Burst) -> Self {
        Self(Lie::Plain(burst.segments()))
    }

    /// How many there are.
    #[allow(clippy::len_without_is_empty)] // There is always one.
    pub fn len(&self) -> usize {
        match self.0 {
            Lie::Any(_, chosen) => chosen.len(),
            Lie::Plain(segments) => segments.len(),
        }
    }

    /// The packets as one segment each, header and frame, where that is how all of them lie.
    pub fn segments(&self) -> Option<&'a [Segment]> {
        match self.0 {
            Lie::Any(..) => None,
            Lie::Plain(segments) => Some(segments),
        }
    }

    /// The frames in the order in which they were sent.
    pub fn iter(&self) -> impl Iterator<Item = Frame<'a>> + use<'a> {
        let (chosen, plain) = match self.0 {
            Lie::Any(batch, chosen) => (Some((batch, chosen)), &[][..]),
            Lie::Plain(segments) => (None, segments),
        };
        let any = chosen.into_iter().flat_map(|(batch, chosen)| {
            chosen.iter().map(move |index| {
                let buffer = &batch.buffers[*index];
                let len = buffer.readable as usize - HEADER_BYTES;
                Frame { segments: batch.readable(buffer), len }
            })
        });
        any.chain(plain.iter().map(|segment| Frame {
            segments: std::slice::from_ref(segment),
            len: segment.len as usize - HEADER_BYTES,
        }))
    }
}

/// Where the frames of one transmit queue go.
pub trait Sender: Send {
    /// Send what one batch holds. Whatever happens to a frame, `tally` has it.
    fn send(&mut self, frames: &Frames<'_>, tally: &mut Tally);
}

/// Where the packets of one receive queue come from.
pub trait Receiver: Send {
    /// Append the next packet, header and frame, to the empty `packet`; false if there is none now.
    /// What is passed over on the way is counted in `tally`.
    fn next(&mut self, packet: &mut Vec<u8>, tally: &mut Tally) -> bool;

    /// Whether `fill` has packets now.
    fn fills(&self) -> bool {
        false
    }

    /// Put the next packets into plain buffers, one each from the first on and into `most` of them at
    /// most, and say what was written; returns how many. None where that is not possible: then `next`
    /// is asked. No frame may be larger than `frame_bytes_max`.
    fn fill(
        &mut self,
        _burst: &mut Burst,
        _most: usize,
        _frame_bytes_max: usize,
        _tally: &mut Tally,
    ) -> usize {
        0
    }

    /// The path ends before there were buffers for the packet that `next` gave last. By default it is
    /// lost, as it would be on a cable.
    fn give_back(&mut self, _packet: Vec<u8>) {}

    /// How many packets are known to wait behind the one that `next` gave.
    fn ahead(&self) -> usize {
        0
    }

    /// Readable when `next` may have a packet again. None: only a wake-up tells.
    fn source(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Told before each round. While disabled, `next` is not called.
    fn enable(&mut self, _enabled: bool) {}
}

/// A kind of port.
pub trait Link: Send + Sync {
    /// What takes the frames of a queue pair. Fails if there is no such pair.
    fn sender(&self, pair: u16) -> io::Result<Box<dyn Sender>>;

    /// What has the packets for a queue pair. Fails if there is no such pair.
    fn receiver(&self, pair: u16, ledger: &Ledger) -> io::Result<Box<dyn Receiver>>;

    /// Whether packets may carry unfinished checksums and segments, so that the device can offer the
    /// features for them.
    fn offers_offloads(&self) -> bool {
        false
    }

    /// Which offloads the driver accepts in received packets, as negotiated features.
    fn set_offloads(&self, _features: u64) -> io::Result<()> {
        Ok(())
    }
}

/// The port of one device: a link, and what passed it in each direction, whichever queues it used.
pub struct Port {
    link: Arc<dyn Link>,
    /// Of each queue pair, the thread that polls for it.
    pollers: Mutex<BTreeMap<u16, Arc<Poller>>>,
    transmitted: Arc<Totals>,
    received: Arc<Totals>,
}

impl Port {
    /// A port that nothing has passed yet.
    pub fn new(link: Arc<dyn Link>) -> Self {
        let (transmitted, received) = (Arc::default(), Arc::default());
        Self { link, pollers: Mutex::default(), transmitted, received }
    }

    /// What it leads to.
    pub fn link(&self) -> &dyn Link {
        self.link.as_ref()
    }

    /// What polls the paths of a queue pair, both directions on one thread.
    pub fn poller(&self, pair: u16) -> io::Result<Arc<Poller>> {
        let mut pollers = self.pollers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        Ok(Arc::clone(match pollers.entry(pair) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(place) => place.insert(Arc::new(Poller::new()?)),
        }))
    }

    /// What came from the driver, on all queues together.
    pub fn transmitted(&self) -> Tally {
        self.transmitted.read()
    }

    /// What went to the driver, on all queues together.
    pub fn received(&self) -> Tally {
        self.received.read()
    }

    /// A path from the transmit queue of a queue pair to here, and its counters.
    pub fn transmit(&self, pair: u16) -> io::Result<(TransmitPath, Arc<Counters>)> {
        let ledger = Ledger::new(&self.transmitted);
        let counters = Arc::clone(ledger.path());
        Ok((TransmitPath::new(self.link.sender(pair)?, ledger), counters))
    }

    /// A path from here to the receive queue of a queue pair, and its counters. `mtu` is the negotiated
    /// one: larger packets are not passed on unless they are to be segmented.
    pub fn receive(
        &self,
        pair: u16,
        mergeable: bool,
        mtu: Option<u16>,
    ) -> io::Result<(ReceivePath, Arc<Counters>)> {
        let ledger = Ledger::new(&self.received);
        let counters = Arc::clone(ledger.path());
        let receiver = self.link.receiver(pair, &ledger)?;
        Ok((ReceivePath::new(receiver, ledger, mergeable, mtu), counters))
    }
}

/// Why a port cannot be opened.
#[derive(Debug)]
pub struct OpenError {
    /// The file or interface; None where the fault is in what was asked for.
    pub path: Option<PathBuf>,
    /// `InvalidInput` for what makes no sense, `InvalidData` for a file that is not what it should be.
    pub error: io::Error,
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self { path: None, error }
    }
}

/// The error for a queue pair that a port does not have.
pub(super) fn no_such_pair(pair: u16, pairs: usize) -> io::Error {
    let text = format!("queue pair {pair} of a port that has {pairs}");
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
