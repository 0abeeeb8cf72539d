//! A device queue that a data path works on while others may look in.
//!
//! The thread of the path holds the queue nearly all the time. Visitors (a new memory table, a
//! statistics display) say that they wait, so that the path lets them in between two batches. Those
//! who changed something wake it when they leave.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

use crate::event::Event;
use crate::queue::DeviceQueue;

/// A device queue with a door.
pub struct SharedQueue {
    queue: Mutex<DeviceQueue>,
    visitors: AtomicU32,
    attached: AtomicBool,
    wake: Event,
}

/// Exclusive access for someone who is not the data path.
pub struct Visit<'a> {
    shared: &'a SharedQueue,
    queue: Option<MutexGuard<'a, DeviceQueue>>,
    changed: bool,
}

impl SharedQueue {
    /// A queue that nobody works on yet.
    pub fn new(queue: DeviceQueue) -> std::io::Result<Self> {
        Ok(Self {
            queue: Mutex::new(queue),
            visitors: AtomicU32::new(0),
            attached: AtomicBool::new(false),
            wake: Event::create()?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, DeviceQueue> {
        // A panic elsewhere leaves the ring's own state valid: every step checks before it changes.
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Look in from outside the data path; waits for the end of its round.
    pub fn visit(&self) -> Visit<'_> {
        self.knock().enter()
    }

    /// Look in if nobody is inside.
    pub fn try_visit(&self) -> Option<Visit<'_>> {
        match self.queue.try_lock() {
            Ok(queue) => Some(Visit { shared: self, queue: Some(queue), changed: false }),
            Err(TryLockError::Poisoned(poisoned)) => {
                Some(Visit { shared: self, queue: Some(poisoned.into_inner()), changed: false })
            }
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Ask to be let in: the data path begins no further round until the knock is dropped.
    pub fn knock(&self) -> Knock<'_> {
        self.visitors.fetch_add(1, Ordering::Relaxed);
        Knock(self)
    }

    /// The data path's own access; visitors go first.
    pub(super) fn work(&self) -> MutexGuard<'_, DeviceQueue> {
        while self.visitors.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
        self.lock()
    }

    /// Whether a data path works on it. False if one did already.
    pub(super) fn attach(&self) -> bool {
        !self.attached.swap(true, Ordering::AcqRel)
    }

    pub(super) fn detach(&self) {
        self.attached.store(false, Ordering::Release);
    }

    /// Makes the data path look again.
    pub fn wake(&self) -> &Event {
        &self.wake
    }
}

/// A visitor at the door.
pub struct Knock<'a>(&'a SharedQueue);

impl<'a> Knock<'a> {
    /// Wait for the end of the data path's round.
    pub fn wait(&self) {
        drop(self.0.lock());
    }

    /// Go in.
    pub fn enter(self) -> Visit<'a> {
        Visit { shared: self.0, queue: Some(self.0.lock()), changed: false }
    }
}

impl Drop for Knock<'_> {
    fn drop(&mut self) {
        self.0.visitors.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Deref for Visit<'_> {
    type Target = DeviceQueue;

    fn deref(&self) -> &DeviceQueue {
        self.queue.as_ref().expect("held until drop")
    }
}

impl DerefMut for Visit<'_> {
    fn deref_mut(&mut self) -> &mut DeviceQueue {
        self.changed = true;
        self.queue.as_mut().expect("held until drop")
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.queue = None;
        if self.changed && self.shared.attached.load(Ordering::Acquire) {
            self.shared.wake.signal();
        }
    }
}
