//! Transfers handed to the kernel many at a time (io_uring), for those that have to wait for the
//! storage: it works on them all at once, where a thread that makes system calls waits for each.
//!
//! The file is registered. Guest memory is not: registered buffers are pinned pages, and a page that
//! its owner gave back meanwhile (a balloon, virtio-mem) is another one from then on, so that reads
//! would end up where the guest no longer looks.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, squeue, types};
use libc::iovec;

use super::store::{VECTORS_MAX, Way};

/// Transfers in the kernel's hands at once; what one round takes several times over.
const ENTRIES: usize = 128;
/// How often a polling path looks at the completion queue before it sleeps all the same.
const SPINS: u32 = 20_000;

/// The flag of io_uring_enter that waits (IORING_ENTER_GETEVENTS).
const ENTER_GETEVENTS: u32 = 1;

/// A transfer that was begun.
pub struct Transfer {
    /// What it is for.
    pub tag: usize,
    pub way: Way,
    pub offset: u64,
    /// Not empty, and without empty ones at the front.
    pub vectors: Vec<iovec>,
}

/// A ring of its own for one path, used by one thread.
pub struct Uring {
    ring: IoUring,
    /// The registered file, or its descriptor where registration was refused.
    registered: bool,
    fd: types::Fd,
    /// By the number that the kernel gives back.
    transfers: Vec<Option<Transfer>>,
    free: Vec<usize>,
    /// Numbers that the kernel was not told of yet, oldest first.
    fresh: Vec<usize>,
    /// Came back, with the kernel's answer: bytes, or a negated errno.
    done: Vec<(Transfer, i32)>,
    /// Submissions since somebody took the count.
    pub submissions: u64,
    /// Whether the kernel takes no more.
    broken: bool,
}

// SAFETY: the vectors point into memory that whoever began the transfer keeps; the ring itself may
// be used by any one thread at a time.
unsafe impl Send for Uring {}

impl Uring {
    /// For transfers to and from `file`, which must live as long. Fails where io_uring is missing,
    /// forbidden, or out of resources.
    pub fn new(file: &File) -> io::Result<Self> {
        let ring = IoUring::new(ENTRIES as u32)?;
        let fd = file.as_raw_fd();
        let registered = ring.submitter().register_files(&[fd]).is_ok();
        Ok(Self {
            ring,
            registered,
            fd: types::Fd(fd),
            transfers: (0..ENTRIES).map(|_| None).collect(),
            free: (0..ENTRIES).rev().collect(),
            fresh: Vec::with_capacity(ENTRIES),
            done: Vec::with_capacity(ENTRIES),
            submissions: 0,
            broken: false,
        })
    }

    /// Whether another transfer can be begun.
    pub fn has_room(&self) -> bool {
        !self.broken && !self.free.is_empty()
    }

    /// Transfers that have not come back.
    pub fn in_flight(&self) -> usize {
        ENTRIES - self.free.len()
    }

    /// Begins a transfer; the kernel hears of it with the next `submit`. There must be room.
    ///
    /// # Safety
    /// The vectors must be valid for writing (`Way::Read`) or reading (`Way::Write`) until the
    /// transfer came back.
    pub unsafe fn push(&mut self, transfer: Transfer) {
        let number = self.free.pop().expect("there is room");
        let entry = self.entry(&transfer).user_data(number as u64);
        self.transfers[number] = Some(transfer);
        self.fresh.push(number);
        // SAFETY: the vectors are valid by contract, and the list of them is kept in `transfers`.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the queue has an entry for every transfer");
    }

    /// Tells the kernel of all that were begun, in one call.
    pub fn submit(&mut self) {
        if !self.fresh.is_empty() {
            self.enter(0);
        }
    }

    /// Waits until at least one came back, if any is in flight.
    pub fn wait(&mut self, polling: bool) {
        self.submit();
        self.collect();
        let mut spins = 0;
        while self.done.is_empty() && self.in_flight() > 0 {
            if polling && spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                self.enter(1);
            }
            self.collect();
        }
    }

    /// Those that came back, with the kernel's answer.
    pub fn finished(&mut self) -> std::vec::Drain<'_, (Transfer, i32)> {
        self.collect();
        self.done.drain(..)
    }

    fn entry(&self, transfer: &Transfer) -> squeue::Entry {
        let count = transfer.vectors.len().min(VECTORS_MAX) as u32;
        let (list, offset) = (transfer.vectors.as_ptr(), transfer.offset);
        let (fd, registered) = (self.fd, types::Fixed(0));
        match (transfer.way, self.registered) {
            (Way::Read, true) => opcode::Readv::new(registered, list, count).offset(offset).build(),
            (Way::Read, false) => opcode::Readv::new(fd, list, count).offset(offset).build(),
            (Way::Write, true) => {
                opcode::Writev::new(registered, list, count).offset(offset).build()
            }
            (Way::Write, false) => opcode::Writev::new(fd, list, count).offset(offset).build(),
        }
    }

    fn enter(&mut self, want: usize) {
        let submitting = !self.fresh.is_empty();
        match self.ring.submit_and_wait(want) {
            Ok(submitted) => {
                self.submissions += u64::from(submitting);
                self.fresh.drain(..submitted.min(self.fresh.len()));
            }
            // What came back has to be collected first; or a signal, after which one looks again.
            Err(error)
                if [libc::EINTR, libc::EAGAIN, libc::EBUSY]
                    .contains(&error.raw_os_error().unwrap_or(0)) => {}
            Err(_) => self.give_up(),
        }
    }

    /// The kernel does not take what it was not told of yet. That comes back as interrupted once
    /// the rest came back, and nothing is begun here any more: it would be submitted, too.
    fn give_up(&mut self) {
        self.broken = true;
        while self.in_flight() > self.fresh.len() {
            // SAFETY: submits nothing, and passes no signal set.
            let waited = unsafe {
                self.ring.submitter().enter::<libc::sigset_t>(0, 1, ENTER_GETEVENTS, None)
            };
            if waited.is_err() {
                std::thread::yield_now();
            }
            self.collect();
        }
        for number in std::mem::take(&mut self.fresh) {
            self.finish(number, -libc::EINTR);
        }
    }

    fn collect(&mut self) {
        loop {
            let next = self.ring.completion().next();
            let Some(entry) = next else { return };
            self.finish(entry.user_data() as usize, entry.result());
        }
    }

    fn finish(&mut self, number: usize, result: i32) {
        let transfer = self.transfers.get_mut(number).and_then(Option::take);
        self.done.push((transfer.expect("the kernel gives each number back once"), result));
        self.free.push(number);
    }
}

impl Drop for Uring {
    /// The kernel must be through with the memory before its owner lets go of it.
    fn drop(&mut self) {
        while self.in_flight() > 0 {
            self.done.clear();
            self.wait(false);
        }
    }
}
