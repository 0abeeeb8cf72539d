//! The thread of one queue: rounds of work, and waiting in between.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::SharedQueue;
use crate::error::QueueError;
use crate::queue::{DeviceQueue, Event};
use crate::ring::Position;

/// How a path waits when it finds nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Look again at once, and never ask for notifications.
    Poll,
    /// Look again for a while, then sleep until notified.
    Adaptive,
    /// Sleep until notified.
    Event,
}

/// How long `Wait::Adaptive` looks before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// How long `Wait::Poll` looks before it lets others on its processor go first.
const PATIENCE: Duration = Duration::from_micros(10);
/// What a path without a descriptor of its own waits for when it needs no buffers.
const ONLY_WOKEN: Wants = Wants { buffers: false, source: true };
/// How long to sleep where the driver promised no notification.
const NAP_MS: i32 = 1;

/// What a path that did nothing waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants {
    /// Available buffers.
    pub buffers: bool,
    /// Its own source.
    pub source: bool,
}

/// What is done with the buffers of one queue.
pub trait Path: Send + 'static {
    /// One round, at most one batch; returns how many buffers or packets it handled. Disabled
    /// (vhost-user): the ring goes on without side effects.
    fn round(&mut self, queue: &mut DeviceQueue, enabled: bool) -> Result<usize, QueueError>;

    /// What to wait for after a round that did nothing.
    fn wants(&self) -> Wants {
        Wants { buffers: true, source: false }
    }

    /// A descriptor that becomes readable when there is work beside available buffers.
    fn source(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

struct Control {
    shared: Arc<SharedQueue>,
    stop: AtomicBool,
    enabled: AtomicBool,
    /// Signalled when `trouble` is set, for whoever watches over the path.
    attention: Event,
    trouble: Mutex<Option<QueueError>>,
}

/// A path on its thread. Dropping it stops the thread.
pub struct Worker {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Start a thread that runs `path` on `shared`. Fails if another path works on it.
    pub fn start(
        name: &str,
        shared: Arc<SharedQueue>,
        path: impl Path,
        wait: Wait,
        enabled: bool,
    ) -> io::Result<Self> {
        let attention = Event::create()?;
        if !shared.attach() {
            return Err(io::Error::other("another data path works on this queue"));
        }
        let control = Arc::new(Control {
            shared,
            stop: AtomicBool::new(false),
            enabled: AtomicBool::new(enabled),
            attention,
            trouble: Mutex::new(None),
        });
        let theirs = Arc::clone(&control);
        let run = move || Run { control: &theirs, path, wait, idle_since: None }.run();
        match std::thread::Builder::new().name(name.into()).spawn(run) {
            Ok(thread) => Ok(Self { control, thread: Some(thread) }),
            Err(error) => {
                control.shared.detach();
                Err(error)
            }
        }
    }

    /// Switch side effects on or off.
    pub fn enable(&self, enabled: bool) {
        self.control.enabled.store(enabled, Ordering::Relaxed);
        self.control.shared.wake().signal();
    }

    /// Look again: a translation that was missing may be there.
    pub fn wake(&self) {
        self.control.shared.wake().signal();
    }

    /// Becomes readable when `trouble` has something new.
    pub fn attention(&self) -> &Event {
        &self.control.attention
    }

    /// Why the path does not go on (a fault, or a translation miss), taken once.
    pub fn trouble(&self) -> Option<QueueError> {
        self.control.attention.drain();
        self.control.trouble.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()
    }

    /// Finish the round, end the thread, stop the queue and say where the next owner resumes.
    pub fn stop(&mut self) -> Position {
        self.join();
        self.control.shared.visit().stop()
    }

    fn join(&mut self) {
        self.control.stop.store(true, Ordering::Relaxed);
        self.control.shared.wake().signal();
        if let Some(thread) = self.thread.take() {
            // A panicked path has printed its message; its queue stops all the same.
            let _ = thread.join();
            self.control.shared.detach();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.join();
    }
}

struct Run<'a, P: Path> {
    control: &'a Control,
    path: P,
    wait: Wait,
    idle_since: Option<Instant>,
}

impl<P: Path> Run<'_, P> {
    fn run(mut self) {
        self.control.shared.work().disable_kicks();
        while !self.control.stop.load(Ordering::Relaxed) {
            let enabled = self.control.enabled.load(Ordering::Relaxed);
            let mut queue = self.control.shared.work();
            match self.path.round(&mut queue, enabled) {
                Ok(0) => self.idle(queue),
                Ok(_) => self.idle_since = None,
                Err(error) => {
                    drop(queue);
                    self.halt(error);
                }
            }
        }
    }

    /// Report, and sleep until it may be over: a fault stays, a missing translation may come.
    fn halt(&self, error: QueueError) {
        let for_good = !matches!(error, QueueError::Miss { .. });
        self.report(error);
        loop {
            self.sleep(&[self.control.shared.wake().fd()], -1);
            self.control.shared.wake().drain();
            if !for_good || self.control.stop.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    fn report(&self, error: QueueError) {
        let trouble = &self.control.trouble;
        *trouble.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(error);
        self.control.attention.signal();
    }

    fn idle(&mut self, mut queue: std::sync::MutexGuard<'_, DeviceQueue>) {
        match self.wait {
            Wait::Poll => {
                let wants = self.path.wants();
                if wants == ONLY_WOKEN && self.path.source().is_none() {
                    // Nothing comes here unless someone says so.
                    drop(queue);
                    let wake = self.control.shared.wake();
                    self.sleep(&[wake.fd()], -1);
                    wake.drain();
                    return;
                }
                drop(queue);
                let since = *self.idle_since.get_or_insert_with(Instant::now);
                if since.elapsed() < PATIENCE {
                    std::hint::spin_loop();
                } else {
                    // The processor may be another path's too.
                    std::thread::yield_now();
                }
                return;
            }
            Wait::Adaptive => {
                let since = *self.idle_since.get_or_insert_with(Instant::now);
                if since.elapsed() < SPIN {
                    drop(queue);
                    std::hint::spin_loop();
                    return;
                }
            }
            Wait::Event => {}
        }
        self.idle_since = None;
        let wants = self.path.wants();
        if wants.buffers && queue.enable_kicks() {
            queue.disable_kicks();
            return;
        }
        let kick = queue.kick().filter(|_| wants.buffers).cloned();
        drop(queue);
        let wake = self.control.shared.wake();
        let mut fds = vec![wake.fd()];
        fds.extend(kick.as_ref().map(|kick| kick.fd()));
        fds.extend(self.path.source().filter(|_| wants.source));
        let unnotified = wants.buffers && kick.is_none();
        self.sleep(&fds, if unnotified { NAP_MS } else { -1 });
        wake.drain();
        let mut queue = self.control.shared.work();
        queue.drain_kick();
        queue.disable_kicks();
    }

    fn sleep(&self, fds: &[BorrowedFd<'_>], timeout_ms: i32) {
        let entry = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut entries: Vec<_> = fds.iter().map(|fd| entry(fd.as_raw_fd())).collect();
        // SAFETY: the entries and the descriptors that they name live during the call. A signal
        // ends it early, which costs one round.
        unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout_ms) };
    }
}
