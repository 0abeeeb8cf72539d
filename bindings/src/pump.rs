//! What every data path has in Python: its worker, started with it and ended at the latest with it.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use virtq_core::pump::{Path, Poller, Wait, Worker};

use crate::errors::to_py;
use crate::queue::PyDeviceQueue;

/// A worker on the queue of a Python object. Whoever waits for the worker's thread waits without
/// the interpreter lock, and so does whoever waits for the one who waits.
pub struct PumpHandle {
    /// None only while it is dropped.
    worker: Mutex<Option<Worker>>,
    queue: Py<PyDeviceQueue>,
}

impl PumpHandle {
    /// Start `path` on the queue, on a thread called `name`. Raises ValueError if `wait` is none of
    /// "poll", "adaptive" and "event", OSError if another path works on the queue.
    pub fn start(
        queue: &Bound<'_, PyDeviceQueue>,
        name: &str,
        path: impl Path,
        wait: &str,
        enabled: bool,
    ) -> PyResult<Self> {
        let shared = Arc::clone(&queue.get().queue);
        let worker = Worker::start(name, shared, path, wait_from(wait)?, enabled)?;
        Ok(Self { worker: Mutex::new(Some(worker)), queue: queue.clone().unbind() })
    }

    /// The same, polled on the thread of `poller` where `wait` is "poll".
    pub fn start_beside(
        queue: &Bound<'_, PyDeviceQueue>,
        poller: &Arc<Poller>,
        name: &str,
        path: impl Path,
        wait: &str,
        enabled: bool,
    ) -> PyResult<Self> {
        if wait_from(wait)? != Wait::Poll {
            return Self::start(queue, name, path, wait, enabled);
        }
        let worker = Worker::poll(name, poller, Arc::clone(&queue.get().queue), path, enabled)?;
        Ok(Self { worker: Mutex::new(Some(worker)), queue: queue.clone().unbind() })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Worker>> {
        self.worker.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn with<T: Send>(&self, py: Python<'_>, body: impl FnOnce(&mut Worker) -> T + Send) -> T {
        py.detach(|| body(self.lock().as_mut().expect("there until drop")))
    }

    /// Switch side effects on or off.
    pub fn enable(&self, py: Python<'_>, on: bool) {
        self.with(py, |worker| worker.enable(on));
    }

    /// Look again: a translation that was missing may be there.
    pub fn wake(&self, py: Python<'_>) {
        self.with(py, |worker| worker.wake());
    }

    /// Becomes readable when `trouble` has something; owned by the pump.
    pub fn attention_fd(&self, py: Python<'_>) -> i32 {
        self.with(py, |worker| worker.attention().fd().as_raw_fd())
    }

    /// Why the path does not go on, as an exception instance, taken once.
    pub fn trouble(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let trouble = self.with(py, |worker| worker.trouble())?;
        Some(to_py(trouble).into_value(py).into_any())
    }

    /// Finish the round, end the thread, stop the queue and say where the next owner resumes.
    pub fn stop<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.with(py, |worker| worker.stop());
        self.queue.bind(py).getattr("position")
    }
}

impl Drop for PumpHandle {
    fn drop(&mut self) {
        let worker = self.lock().take();
        // Its thread may have a long transfer to finish, which other Python threads need not await.
        Python::attach(|py| py.detach(|| drop(worker)));
    }
}

/// How to wait, by its name. Raises ValueError for another.
pub fn wait_from(name: &str) -> PyResult<Wait> {
    match name {
        "poll" => Ok(Wait::Poll),
        "adaptive" => Ok(Wait::Adaptive),
        "event" => Ok(Wait::Event),
        _ => Err(PyValueError::new_err(format!(
            "wait is {name:?}, not one of \"poll\", \"adaptive\" and \"event\""
        ))),
    }
}
