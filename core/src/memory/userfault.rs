//! Waiting for pages that are still on their way (postcopy migration), by way of userfaultfd.
//!
//! Whoever touches a page of a registered mapping that its file does not have yet sleeps until the
//! process that owns the memory has put it there and says so on its copy of the descriptor. If that
//! process goes away, nobody would ever say so: a thread watches for that, and lets everything go on
//! with what is there.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::Mapping;
use crate::event::Event;

const API: u64 = 0xaa;
const REGISTER_MODE_MISSING: u64 = 1;
/// In the ioctls that a registered range allows: waking who waits for it.
const CAN_WAKE: u64 = 1 << 2;

/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `_IOWR(0xaa, 0x00, struct uffdio_register)`
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
/// `_IOR(0xaa, 0x01, struct uffdio_range)`
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
/// `_IO(0xaa, 0x00)` on /dev/userfaultfd
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// A userfaultfd and the mappings that are registered with it, which it keeps.
pub struct Userfault {
    shared: Arc<Shared>,
    stop: Arc<Event>,
    watch: Option<JoinHandle<()>>,
}

struct Shared {
    fd: OwnedFd,
    registered: Mutex<Vec<Arc<Mapping>>>,
}

impl Userfault {
    /// A new one, which the process needs a privilege for (or access to /dev/userfaultfd): the
    /// kernel's own accesses, in a read from a disk for example, have to wait as well.
    pub fn open() -> io::Result<Self> {
        let fd = open()?;
        let mut api = Api { api: API, features: 0, ioctls: 0 };
        // SAFETY: the structure that this request fills.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API as _, &mut api) })?;
        Ok(Self {
            shared: Arc::new(Shared { fd, registered: Mutex::default() }),
            stop: Arc::new(Event::create()?),
            watch: None,
        })
    }

    /// The descriptor, whose duplicate the owner of the memory needs.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shared.fd.as_fd()
    }

    /// From now on, pages of this mapping that are not there yet are waited for.
    pub fn register(&self, mapping: &Arc<Mapping>) -> io::Result<()> {
        let (start, len) = mapping.pages();
        let mut request = Register {
            range: Range { start: start as u64, len: len as u64 },
            mode: REGISTER_MODE_MISSING,
            ioctls: 0,
        };
        let mut registered = self.shared.registered();
        // SAFETY: a structure to read and fill; the range is a mapping of ours, whose accesses may
        // now sleep, which changes nothing that they could observe.
        check(unsafe {
            libc::ioctl(self.shared.fd.as_raw_fd(), UFFDIO_REGISTER as _, &mut request)
        })?;
        registered.push(Arc::clone(mapping));
        if request.ioctls & CAN_WAKE == 0 {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        Ok(())
    }

    /// Once the other end of `socket` closes, nothing is waited for any more.
    pub fn watch(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.end_watch();
        let socket = socket.try_clone_to_owned()?;
        let (shared, stop) = (Arc::clone(&self.shared), Arc::clone(&self.stop));
        let run = move || {
            if hangs_up(&socket, &stop) {
                shared.release();
            }
        };
        self.watch = Some(std::thread::Builder::new().name("virtq-postcopy".into()).spawn(run)?);
        Ok(())
    }

    /// Nothing is waited for any more; who sleeps goes on.
    pub fn release(&self) {
        self.shared.release();
    }

    fn end_watch(&mut self) {
        if let Some(thread) = self.watch.take() {
            self.stop.signal();
            let _ = thread.join();
            self.stop.drain();
        }
    }
}

impl Drop for Userfault {
    fn drop(&mut self) {
        self.end_watch();
        self.shared.release();
    }
}

impl Shared {
    fn registered(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Mapping>>> {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self) {
        for mapping in self.registered().drain(..) {
            let (start, len) = mapping.pages();
            let range = Range { start: start as u64, len: len as u64 };
            // SAFETY: a structure to read. It can fail only for a range that is not registered.
            unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_UNREGISTER as _, &range) };
        }
    }
}

/// Sleeps until the other end of the socket closes (true) or `stop` is signalled.
fn hangs_up(socket: &OwnedFd, stop: &Event) -> bool {
    let entry =
        |fd: BorrowedFd<'_>, events| libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    let mut entries = [entry(socket.as_fd(), libc::POLLRDHUP), entry(stop.fd(), libc::POLLIN)];
    loop {
        // SAFETY: the entries and the descriptors that they name live during the call.
        unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, -1) };
        if entries[1].revents != 0 {
            return false;
        }
        if entries[0].revents != 0 {
            return true;
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: takes flags, makes a descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) } as libc::c_int;
    if fd >= 0 {
        // SAFETY: a new descriptor that nobody else owns.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    let refused = io::Error::last_os_error();
    let Ok(device) = std::fs::File::open("/dev/userfaultfd") else {
        return Err(refused);
    };
    // SAFETY: takes flags, makes a descriptor.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW as _, flags) };
    check(fd)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const PAGE: u64 = 4096;
    /// `_IOR(0xaa, 0x02, struct uffdio_range)`
    const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;

    /// None where the process may not have one.
    fn userfault() -> Option<Userfault> {
        match Userfault::open() {
            Ok(userfault) => Some(userfault),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Reads the first byte in a thread.
    fn touch(mapping: &Arc<Mapping>) -> mpsc::Receiver<u8> {
        let (sender, receiver) = mpsc::channel();
        let mapping = Arc::clone(mapping);
        std::thread::spawn(move || {
            // SAFETY: the first byte of a mapping that lives.
            let _ = sender.send(unsafe { mapping.ptr().read_volatile() });
        });
        receiver
    }

    /// The address of the next fault, waited for.
    fn fault(userfault: &Userfault) -> u64 {
        let mut entry =
            libc::pollfd { fd: userfault.fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry.
        assert_eq!(unsafe { libc::poll(&mut entry, 1, 5000) }, 1);
        let mut message = [0u64; 4];
        // SAFETY: a message has 32 bytes.
        let count =
            unsafe { libc::read(userfault.fd().as_raw_fd(), message.as_mut_ptr().cast(), 32) };
        assert_eq!(count, 32);
        message[2]
    }

    #[test]
    fn who_touches_a_missing_page_waits_for_it() {
        let Some(userfault) = userfault() else { return };
        let owner = Mapping::anonymous(PAGE).unwrap();
        let mapping = Mapping::of_file(owner.fd(), 0, PAGE).unwrap();
        userfault.register(&mapping).unwrap();
        let touched = touch(&mapping);
        let address = fault(&userfault);
        assert_eq!(address & !(PAGE - 1), mapping.ptr() as u64);
        assert!(touched.try_recv().is_err());
        // SAFETY: the first byte of a mapping that nobody else writes.
        unsafe { owner.ptr().write_volatile(7) };
        let range = Range { start: mapping.ptr() as u64, len: PAGE };
        // SAFETY: a structure to read.
        let woken = unsafe { libc::ioctl(userfault.fd().as_raw_fd(), UFFDIO_WAKE as _, &range) };
        assert_eq!(woken, 0);
        assert_eq!(touched.recv_timeout(Duration::from_secs(5)), Ok(7));
    }

    #[test]
    fn release_lets_everybody_go_on() {
        let Some(userfault) = userfault() else { return };
        let mapping = Mapping::anonymous(PAGE).unwrap();
        userfault.register(&mapping).unwrap();
        let touched = touch(&mapping);
        fault(&userfault);
        userfault.release();
        assert_eq!(touched.recv_timeout(Duration::from_secs(5)), Ok(0));
    }

    #[test]
    fn so_does_the_end_of_the_owner() {
        let Some(mut userfault) = userfault() else { return };
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mapping = Mapping::anonymous(PAGE).unwrap();
        userfault.register(&mapping).unwrap();
        userfault.watch(ours.as_fd()).unwrap();
        let touched = touch(&mapping);
        fault(&userfault);
        drop(theirs);
        assert_eq!(touched.recv_timeout(Duration::from_secs(5)), Ok(0));
    }

    #[test]
    fn dropping_ends_the_watch() {
        let Some(mut userfault) = userfault() else { return };
        let (ours, _theirs) = UnixStream::pair().unwrap();
        userfault.watch(ours.as_fd()).unwrap();
        userfault.watch(ours.as_fd()).unwrap();
        drop(userfault);
    }
}
