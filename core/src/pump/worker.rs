//! The thread of one queue: rounds of work, and waiting in between.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use super::SharedQueue;
use super::poller::{Member, Poller, Turn};
use super::wait::{PATIENCE, SPIN, Wait};
use crate::error::QueueError;
use crate::event::{Event, sleep};
use crate::queue::DeviceQueue;
use crate::ring::Position;

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
    ///
    /// A round that did nothing, or failed, leaves no notification undecided: the driver may be waiting
    /// for it, and the path may be about to.
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
    /// On a thread that it shares: whether it has left it.
    left: Mutex<bool>,
    leaves: Condvar,
}

impl Control {
    fn new(shared: Arc<SharedQueue>, enabled: bool) -> io::Result<Arc<Self>> {
        let attention = Event::create()?;
        if !shared.attach() {
            return Err(io::Error::other("another data path works on this queue"));
        }
        Ok(Arc::new(Self {
            shared,
            stop: AtomicBool::new(false),
            enabled: AtomicBool::new(enabled),
            attention,
            trouble: Mutex::new(None),
            left: Mutex::new(false),
            leaves: Condvar::new(),
        }))
    }

    fn report(&self, error: QueueError) {
        *self.trouble.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(error);
        self.attention.signal();
    }
}

/// A path on its thread, or on one that it shares. Dropping it stops it.
pub struct Worker {
    control: Arc<Control>,
    thread: Thread,
}

enum Thread {
    Own(JoinHandle<()>),
    Shared,
    Ended,
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
        let control = Control::new(shared, enabled)?;
        let theirs = Arc::clone(&control);
        let run = move || Run { control: &theirs, path, wait, idle_since: None }.run();
        match std::thread::Builder::new().name(name.into()).spawn(run) {
            Ok(thread) => Ok(Self { control, thread: Thread::Own(thread) }),
            Err(error) => {
                control.shared.detach();
                Err(error)
            }
        }
    }

    /// Have a poller run `path` on `shared`, beside others. Fails as `start` does.
    pub fn poll(
        name: &str,
        poller: &Arc<Poller>,
        shared: Arc<SharedQueue>,
        path: impl Path,
        enabled: bool,
    ) -> io::Result<Self> {
        let control = Control::new(shared, enabled)?;
        let theirs = Arc::clone(&control);
        let seat = Seat { control: theirs, path: Some(path), began: false, rests: None };
        // A seat that is dropped has left.
        match poller.join(name, Box::new(seat)) {
            Ok(()) => Ok(Self { control, thread: Thread::Shared }),
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
        match std::mem::replace(&mut self.thread, Thread::Ended) {
            Thread::Own(thread) => {
                // A panicked path has printed its message; its queue stops all the same.
                let _ = thread.join();
            }
            Thread::Shared => {
                let left =
                    self.control.left.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                let gone = self.control.leaves.wait_while(left, |left| !*left);
                drop(gone);
            }
            Thread::Ended => return,
        }
        self.control.shared.detach();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.join();
    }
}

/// A path at the table of a poller.
struct Seat<P: Path> {
    control: Arc<Control>,
    /// None only while it is dropped.
    path: Option<P>,
    began: bool,
    rests: Option<Rest>,
}

/// Why a path is not polled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// Until somebody wakes it.
    UntilWoken,
    /// The queue is broken.
    ForGood,
}

impl<P: Path> Member for Seat<P> {
    fn turn(&mut self, look: bool) -> Turn {
        let control = &self.control;
        if control.stop.load(Ordering::Relaxed) {
            // A broken queue has nobody to call.
            let _ = control.shared.work().call();
            return Turn::Over;
        }
        if let Some(rest) = self.rests {
            if !look || !control.shared.wake().drain() || rest == Rest::ForGood {
                return Turn::Asleep;
            }
            self.rests = None;
        }
        let enabled = control.enabled.load(Ordering::Relaxed);
        let path = self.path.as_mut().expect("there until it is dropped");
        let mut queue = control.shared.work();
        if !std::mem::replace(&mut self.began, true) {
            queue.disable_kicks();
        }
        match path.round(&mut queue, enabled) {
            Ok(0) if is_only_woken(path) => {
                self.rests = Some(Rest::UntilWoken);
                Turn::Asleep
            }
            Ok(0) => Turn::Idle,
            Ok(_) => Turn::Busy,
            Err(error) => {
                drop(queue);
                let missing = matches!(error, QueueError::Miss { .. });
                self.rests = Some(if missing { Rest::UntilWoken } else { Rest::ForGood });
                control.report(error);
                Turn::Asleep
            }
        }
    }

    fn wake(&self) -> &Event {
        self.control.shared.wake()
    }
}

impl<P: Path> Drop for Seat<P> {
    fn drop(&mut self) {
        // Before anybody is told that it has left.
        self.path = None;
        *self.control.left.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = true;
        self.control.leaves.notify_all();
    }
}

/// Whether nothing comes to a path unless someone says so.
fn is_only_woken(path: &impl Path) -> bool {
    let wants = path.wants();
    !wants.buffers && (!wants.source || path.source().is_none())
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
        // A broken queue has nobody to call.
        let _ = self.control.shared.work().call();
    }

    /// Report, and sleep until it may be over: a fault stays, a missing translation may come.
    fn halt(&self, error: QueueError) {
        let for_good = !matches!(error, QueueError::Miss { .. });
        self.control.report(error);
        loop {
            sleep(&[self.control.shared.wake().fd()], -1);
            self.control.shared.wake().drain();
            if !for_good || self.control.stop.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    fn idle(&mut self, mut queue: std::sync::MutexGuard<'_, DeviceQueue>) {
        match self.wait {
            Wait::Poll => {
                if is_only_woken(&self.path) {
                    drop(queue);
                    let wake = self.control.shared.wake();
                    sleep(&[wake.fd()], -1);
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
        sleep(&fds, if unnotified { NAP_MS } else { -1 });
        wake.drain();
        let mut queue = self.control.shared.work();
        queue.drain_kick();
        queue.disable_kicks();
    }
}
