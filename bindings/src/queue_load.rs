//! A driver half that keeps a device busy, without the interpreter.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use virtq_core::pump::load::{self, LoadError, Shape};

use crate::errors::{VirtqError, range_to_py, to_py};
use crate::memory::Memory;
use crate::pump::wait_from;
use crate::queue::PyDriverQueue;

/// A run is not interrupted, so it is short.
const RUN_MOST: Duration = Duration::from_secs(60);

#[pyclass(module = "virtq._core", frozen)]
pub struct Load {
    queue: Py<PyDriverQueue>,
    load: Mutex<load::Load>,
}

fn failed(error: LoadError) -> PyErr {
    match error {
        LoadError::Queue(error) => to_py(error),
        LoadError::Mismatch(number) => {
            VirtqError::new_err(format!("the reply to buffer {number} is not what was sent"))
        }
        LoadError::Strange(cookie) => PyRuntimeError::new_err(format!(
            "buffer {cookie:#x} came back, which the load did not add"
        )),
        LoadError::Held(count) => {
            PyTimeoutError::new_err(format!("{count} buffers did not come back from the device"))
        }
    }
}

#[pymethods]
impl Load {
    #[new]
    #[pyo3(signature = (queue, memory, address, *, readable=64, writable=0, depth=128, batch=1, wait="poll", echo=false))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        queue: Py<PyDriverQueue>,
        memory: &Memory,
        address: u64,
        readable: u32,
        writable: u32,
        depth: u16,
        batch: u16,
        wait: &str,
        echo: bool,
    ) -> PyResult<Self> {
        let wait = wait_from(wait)?;
        let shape = Shape { readable, writable, depth, batch, wait, echo };
        let load = load::Load::new(&memory.snapshot(), address, shape).map_err(range_to_py)?;
        Ok(Self { queue, load: Mutex::new(load) })
    }

    #[staticmethod]
    #[pyo3(signature = (*, readable=64, writable=0, depth=128))]
    fn bytes(readable: u32, writable: u32, depth: u16) -> u64 {
        let wait = virtq_core::pump::Wait::Poll;
        load::Load::bytes(&Shape { readable, writable, depth, batch: 1, wait, echo: false })
    }

    fn run<'py>(&self, py: Python<'py>, seconds: f64) -> PyResult<Bound<'py, PyDict>> {
        let duration = Duration::try_from_secs_f64(seconds)
            .ok()
            .filter(|duration| *duration <= RUN_MOST)
            .ok_or_else(|| PyValueError::new_err(format!("{seconds} s is not within 60 s")))?;
        let queue = self.queue.get();
        let (done, before, after) = py.detach(|| {
            let mut load = self.load.lock().unwrap_or_else(PoisonError::into_inner);
            let mut queue = queue.lock();
            let before = queue.stats();
            let done = load.run(&mut queue, duration);
            (done, before, queue.stats())
        });
        let done = done.map_err(failed)?;
        let dict = PyDict::new(py);
        dict.set_item("buffers", done.buffers)?;
        dict.set_item("bytes_written", done.bytes_written)?;
        dict.set_item("verified", done.verified)?;
        dict.set_item("seconds", done.seconds)?;
        for (name, before, after) in [
            ("batches", before.batches, after.batches),
            ("kicks_sent", before.kicks_sent, after.kicks_sent),
            ("calls_received", before.calls_received, after.calls_received),
            ("used_entries", before.used_entries, after.used_entries),
        ] {
            dict.set_item(name, after - before)?;
        }
        Ok(dict)
    }
}

/// Adds the class to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Load>()
}
