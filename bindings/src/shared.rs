//! Queues that several threads use: whoever waits for one does so without the interpreter lock.

use std::sync::{Mutex, MutexGuard};

use pyo3::prelude::*;
use virtq_core::pump::{SharedQueue, Visit};

/// The lock, even behind a thread that panicked with it.
pub fn lock<T>(queue: &Mutex<T>) -> MutexGuard<'_, T> {
    queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Look into a queue. If a data path is in the middle of a round, other Python threads run meanwhile.
pub fn visit(queue: &SharedQueue) -> Visit<'_> {
    if let Some(visit) = queue.try_visit() {
        return visit;
    }
    let knock = queue.knock();
    Python::attach(|py| py.detach(|| knock.wait()));
    knock.enter()
}
