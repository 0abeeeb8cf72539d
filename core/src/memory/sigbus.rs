//! Surviving a file that is truncated under its mapping.
//!
//! Touching memory that lies beyond the end of its file raises SIGBUS in whichever thread touches it.
//! A handler for the process looks the address up in a table of our mappings, puts zeros where the
//! file's page is gone, notes it, and lets the access go on. Anything else goes to whoever handled
//! SIGBUS before us, and so by default kills the process as ever.
//!
//! The handler runs in the middle of anything, so it takes no lock: the table is static, and each slot
//! has a sequence number, odd while the slot changes. That a slot changes while the handler reads it
//! means that it is not the one it looks for, since the mapping that is being touched is alive.
//!
//! A handler that somebody installs after the first mapping (Python's faulthandler, say) gets the
//! signal before ours does.

use std::ptr;
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
use std::sync::{Mutex, Once, PoisonError};

use libc::{c_int, c_void, siginfo_t};

/// How many mappings can be watched at a time: as many as Linux lets a process have by default.
pub(super) const MAX_WATCHES: usize = 1 << 16;

/// `si_code` of an access to memory that does not exist, as opposed to memory that failed.
const BUS_ADRERR: c_int = 2;

struct Slot {
    /// Odd while the other fields change.
    sequence: AtomicU32,
    truncated: AtomicBool,
    /// log2 of the size in which the range can be replaced.
    page_shift: AtomicU8,
    start: AtomicUsize,
    /// `start == end` in a slot that is free.
    end: AtomicUsize,
}

impl Slot {
    const fn new() -> Self {
        Self {
            sequence: AtomicU32::new(0),
            truncated: AtomicBool::new(false),
            page_shift: AtomicU8::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
        }
    }

    /// Changes the slot; only one thread may do so at a time.
    fn set(&self, start: usize, end: usize, page_shift: u8) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        // With the acquire fence in `get`: who sees one of the new values sees the odd number too.
        fence(Ordering::Release);
        self.truncated.store(false, Ordering::Relaxed);
        self.page_shift.store(page_shift, Ordering::Relaxed);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        // Pairs with the acquiring load in `get`: who sees the even number sees the values.
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// Start, end and page shift, unless they are changing.
    fn get(&self) -> Option<(usize, usize, u8)> {
        let before = self.sequence.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Relaxed);
        let end = self.end.load(Ordering::Relaxed);
        let page_shift = self.page_shift.load(Ordering::Relaxed);
        // Pairs with the release fence in `set`.
        fence(Ordering::Acquire);
        let after = self.sequence.load(Ordering::Relaxed);
        (before == after && before & 1 == 0).then_some((start, end, page_shift))
    }
}

/// All zeros, so it takes no memory until it is used.
static SLOTS: [Slot; MAX_WATCHES] = [const { Slot::new() }; MAX_WATCHES];
/// Slots from here on have never been used.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Slots below `USED` that are free.
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
/// Faults that were survived.
static CAUGHT: AtomicU64 = AtomicU64::new(0);

static INSTALL: Once = Once::new();
/// Who handled the signal before.
static PREVIOUS_HANDLER: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);
static PREVIOUS_FLAGS: AtomicI32 = AtomicI32::new(0);

/// Faults that were survived since the process began.
#[inline]
pub(super) fn caught() -> u64 {
    CAUGHT.load(Ordering::Relaxed)
}

/// A mapping's entry in the table; remove it before the mapping.
#[derive(Debug)]
pub(super) struct Watch {
    slot: usize,
}

impl Watch {
    /// Watches a range of whole pages; None if the table is full.
    pub fn new(start: usize, len: usize, page_bytes: usize) -> Option<Self> {
        INSTALL.call_once(install);
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = match free.pop() {
            Some(slot) => slot,
            None => {
                let slot = USED.load(Ordering::Relaxed);
                (slot < MAX_WATCHES).then_some(())?;
                slot
            }
        };
        SLOTS[slot].set(start, start + len, page_bytes.trailing_zeros() as u8);
        // The handler runs in a thread that got the mapping from this one, so it sees this.
        USED.fetch_max(slot + 1, Ordering::Release);
        Some(Self { slot })
    }

    #[inline]
    pub fn is_truncated(&self) -> bool {
        SLOTS[self.slot].truncated.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        SLOTS[self.slot].set(0, 0, 0);
        free.push(self.slot);
    }
}

fn install() {
    // SAFETY: all zeros is a valid value of the structure.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // The previous handler first: ours may run as soon as it is there.
    // SAFETY: asks for the current action.
    unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &mut action) };
    PREVIOUS_FLAGS.store(action.sa_flags as i32, Ordering::Relaxed);
    PREVIOUS_HANDLER.store(action.sa_sigaction, Ordering::Release);
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and is async-signal-safe.
    unsafe {
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
    }
}

/// Async-signal-safe: atomics and system calls only, and errno is left as it was.
extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid structure; for a fault, `si_addr` is set.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // SAFETY: this thread's errno.
    let errno = unsafe { *libc::__errno_location() };
    let survived = code == BUS_ADRERR && replace_page(address);
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    if !survived {
        forward(signal, code, info, context);
    }
}

/// Puts zeros at an address, if it is in a mapping of ours.
fn replace_page(address: usize) -> bool {
    let used = USED.load(Ordering::Acquire);
    let found = SLOTS[..used].iter().find_map(|slot| {
        slot.get()
            .filter(|&(start, end, _)| start <= address && address < end)
            .map(|(start, end, page_shift)| (slot, start, end, page_shift))
    });
    let Some((slot, start, end, page_shift)) = found else {
        return false;
    };
    let page = 1usize << page_shift;
    let at = address & !(page - 1);
    let kind = if at == start || at + page == end { SEPARATE } else { libc::MAP_PRIVATE };
    // A page at a time: another may still be there (a full tmpfs looks the same as a short file). A
    // process that has no mapping left to split off gets all of it replaced; one that is a mapping
    // above what it may have, which a split in the middle can lead to, must let go of some first.
    let replaced = map_zeros(at, page, kind | libc::MAP_FIXED)
        || map_zeros(start, end - start, SEPARATE | libc::MAP_FIXED)
        || (unmap(start, end - start)
            && map_zeros(start, end - start, SEPARATE | libc::MAP_FIXED_NOREPLACE));
    if !replaced {
        return false;
    }
    slot.truncated.store(true, Ordering::Relaxed);
    CAUGHT.fetch_add(1, Ordering::Relaxed);
    true
}

/// The kernel never makes one mapping of such memory and what lies next to it. At the borders of a
/// range that matters: where it had grown together with a neighbour, replacing all of it would take one
/// mapping more.
const SEPARATE: c_int = libc::MAP_SHARED;

fn map_zeros(start: usize, len: usize, kind: c_int) -> bool {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = kind | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: whole pages of a mapping of ours, alive as it is being touched; the memory stays
    // readable and writable, and that its content changes is what shared memory does.
    let mapped = unsafe { libc::mmap(start as *mut c_void, len, protection, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}

fn unmap(start: usize, len: usize) -> bool {
    // SAFETY: as above, but for the moment until zeros are mapped there; the choice is between this
    // and certain death.
    unsafe { libc::munmap(start as *mut c_void, len) == 0 }
}

/// Leaves the signal to who handled it before us.
fn forward(signal: c_int, code: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let handler = PREVIOUS_HANDLER.load(Ordering::Acquire);
    // Sent by a process rather than caused by an access: it does not come again by itself.
    let sent = code <= 0;
    match handler {
        libc::SIG_IGN if sent => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: sets the default action; both functions are async-signal-safe. The access is
            // repeated on return and kills the process, or the signal, blocked here, does.
            unsafe {
                let mut default: libc::sigaction = std::mem::zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &default, ptr::null_mut());
                if sent {
                    libc::raise(signal);
                }
            }
        }
        _ if PREVIOUS_FLAGS.load(Ordering::Relaxed) & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);
            // SAFETY: installed with SA_SIGINFO, so a function of this signature.
            let handler: Handler = unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        _ => {
            // SAFETY: installed without SA_SIGINFO, so a function of this signature.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `body` in a forked child and returns its wait status. The test process has threads, so
    /// the child may only do what a signal handler may.
    fn in_child(body: impl FnOnce() -> c_int) -> c_int {
        // SAFETY: the child calls async-signal-safe functions only.
        match unsafe { libc::fork() } {
            0 => {
                let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                // SAFETY: a valid limit; then ends the child at once.
                unsafe {
                    libc::setrlimit(libc::RLIMIT_CORE, &no_core);
                    libc::_exit(body());
                }
            }
            child => {
                assert!(child > 0);
                let mut status = 0;
                // SAFETY: a child of ours.
                assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
                status
            }
        }
    }

    fn killed_by(status: c_int) -> Option<c_int> {
        libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status))
    }

    fn exit_code(status: c_int) -> Option<c_int> {
        libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status))
    }

    /// Maps a file without any content.
    fn beyond_a_file(len: usize) -> *mut u8 {
        // SAFETY: system calls with valid arguments; the mapping is new.
        unsafe {
            let fd = libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC);
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let base = libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, fd, 0);
            assert_ne!(base, libc::MAP_FAILED);
            libc::close(fd);
            base.cast()
        }
    }

    fn touch(address: *mut u8) -> u8 {
        // SAFETY: mapped memory, with or without a page of a file.
        unsafe { address.read_volatile() }
    }

    fn watched(len: usize, page_bytes: usize) -> (*mut u8, Watch) {
        let base = beyond_a_file(len);
        (base, Watch::new(base as usize, len, page_bytes).unwrap())
    }

    #[test]
    fn fault_elsewhere_kills() {
        let (ours, watch) = watched(4096, 4096);
        let elsewhere = beyond_a_file(4096);
        assert_eq!(exit_code(in_child(|| touch(ours).into())), Some(0));
        assert_eq!(killed_by(in_child(|| touch(elsewhere).into())), Some(libc::SIGBUS));
        // A child's fault is not ours; and without the watch the same address kills.
        assert!(!watch.is_truncated());
        drop(watch);
        assert_eq!(killed_by(in_child(|| touch(ours).into())), Some(libc::SIGBUS));
    }

    /// With whoever was there before us replaced.
    fn raise_in_child(handler: usize, flags: c_int) -> c_int {
        let (_, _watch) = watched(4096, 4096);
        in_child(|| {
            PREVIOUS_HANDLER.store(handler, Ordering::Relaxed);
            PREVIOUS_FLAGS.store(flags, Ordering::Relaxed);
            // SAFETY: raises a signal that is handled.
            unsafe { libc::raise(libc::SIGBUS) };
            1
        })
    }

    extern "C" fn exit_7(_signal: c_int) {
        // SAFETY: ends the child.
        unsafe { libc::_exit(7) }
    }

    extern "C" fn exit_8(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
        // SAFETY: a valid structure by contract; ends the child.
        unsafe { libc::_exit(if (*info).si_signo == signal { 8 } else { 9 }) }
    }

    #[test]
    fn raised_signal_kills_by_default() {
        assert_eq!(killed_by(raise_in_child(libc::SIG_DFL, 0)), Some(libc::SIGBUS));
    }

    #[test]
    fn raised_signal_goes_to_the_previous_handler() {
        assert_eq!(exit_code(raise_in_child(libc::SIG_IGN, 0)), Some(1));
        assert_eq!(exit_code(raise_in_child(exit_7 as *const () as usize, 0)), Some(7));
        let handler = exit_8 as *const () as usize;
        assert_eq!(exit_code(raise_in_child(handler, libc::SA_SIGINFO)), Some(8));
    }

    #[test]
    fn errno_survives() {
        let (ours, watch) = watched(4096, 4096);
        // SAFETY: this thread's errno.
        let errno = unsafe { &mut *libc::__errno_location() };
        *errno = 77;
        assert_eq!(touch(ours), 0);
        assert_eq!(*errno, 77);
        assert!(watch.is_truncated());
        assert!(caught() > 0);
    }

    #[test]
    fn a_huge_page_is_replaced_as_a_whole() {
        const HUGE: usize = 2 << 20;
        let base = beyond_a_file(4 * HUGE) as usize;
        let start = base.next_multiple_of(HUGE);
        let watch = Watch::new(start, 2 * HUGE, HUGE).unwrap();
        let status = in_child(|| {
            let caught_before = caught();
            touch((start + HUGE + 5000) as *mut u8);
            touch((start + HUGE) as *mut u8);
            touch((start + 2 * HUGE - 1) as *mut u8);
            let once = caught() == caught_before + 1;
            touch(start as *mut u8);
            (!(once && watch.is_truncated() && caught() == caught_before + 2)).into()
        });
        assert_eq!(exit_code(status), Some(0));
        // Beyond the watch it is somebody else's.
        let after = (start + 2 * HUGE) as *mut u8;
        assert_eq!(killed_by(in_child(|| touch(after).into())), Some(libc::SIGBUS));
    }

    #[test]
    fn more_holes_than_a_process_may_have_mappings() {
        let pages = 1 << 18;
        let (ours, _watch) = watched(pages * 4096, 4096);
        let status = in_child(|| {
            for page in (0..pages).step_by(2) {
                touch(ours.wrapping_add(page * 4096));
            }
            0
        });
        assert_eq!(exit_code(status), Some(0));
    }

    #[test]
    fn thousands_of_mappings_are_told_apart() {
        let base = beyond_a_file(8192 * 4096);
        let at = |page: usize| base.wrapping_add(page * 4096);
        let watches: Vec<_> =
            (0..8192).map(|page| Watch::new(at(page) as usize, 4096, 4096).unwrap()).collect();
        for page in [0, 509, 4096, 8191] {
            assert_eq!(touch(at(page)), 0);
        }
        let truncated: Vec<_> = (0..8192).filter(|&page| watches[page].is_truncated()).collect();
        assert_eq!(truncated, [0, 509, 4096, 8191]);
    }
}
