//! Notifications between the two halves, and between threads: eventfds.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// An eventfd of ours or the other side's. Made non-blocking: a counter that the other side filled
/// up must not hang us, and says what we wanted to say already.
pub struct Event(OwnedFd);

impl Event {
    /// A new one, counter 0.
    pub fn create() -> std::io::Result<Self> {
        // SAFETY: makes a descriptor that nobody else owns.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// Take over a descriptor.
    pub fn new(fd: OwnedFd) -> Self {
        // SAFETY: fcntl on a descriptor that we own.
        unsafe {
            let status = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
            libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, status | libc::O_NONBLOCK);
        }
        Self(fd)
    }

    /// The descriptor, to poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Add one to the counter.
    pub fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: writes eight bytes from a local.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Reset the counter; true if it was not zero.
    pub fn drain(&self) -> bool {
        let mut count = [0u8; 8];
        // SAFETY: reads at most eight bytes into a local.
        let read =
            unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        read > 0
    }
}

/// Wait until one of these can be read, for so long at most (-1: as long as it takes).
pub fn sleep(fds: &[BorrowedFd<'_>], timeout_ms: i32) {
    let entry = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut entries: Vec<_> = fds.iter().map(|fd| entry(fd.as_raw_fd())).collect();
    // SAFETY: the entries and the descriptors that they name live during the call. A signal ends it
    // early, which costs one round.
    unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout_ms) };
}
