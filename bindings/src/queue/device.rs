//! The device half.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use virtq_core::error::Fault;
use virtq_core::pump::SharedQueue;
use virtq_core::queue::DeviceQueue;

use super::{Args, duplicate, position_to_py};
use crate::batch::{PyBatch, Shelf};
use crate::errors::to_py;
use crate::inflight::Inflight;
use crate::memory::Memory as PyMemory;
use crate::serve::Sequel;
use crate::shared::visit;

/// A wait that does not sleep is short.
const LINGER_MOST_US: u32 = 1000;

#[pyclass(name = "DeviceQueue", module = "virtq._core", frozen)]
pub struct PyDeviceQueue {
    pub queue: Arc<SharedQueue>,
    shelf: Arc<Shelf>,
}

#[pymethods]
impl PyDeviceQueue {
    #[new]
    #[pyo3(signature = (memory, features, size, desc, driver, device, *, index=0, position=None, one_used_entry_per_buffer=false, inflight=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        memory: &PyMemory,
        features: u64,
        size: i128,
        desc: u64,
        driver: u64,
        device: u64,
        index: u16,
        position: Option<Bound<'_, PyTuple>>,
        one_used_entry_per_buffer: bool,
        inflight: Option<&Inflight>,
    ) -> PyResult<Self> {
        let args = Args { features, size, areas: [desc, driver, device], index, position };
        let mut queue = DeviceQueue::new(memory.snapshot(), args.setup()?).map_err(to_py)?;
        queue.set_merge(!one_used_entry_per_buffer);
        if let Some(inflight) = inflight {
            queue.attach_inflight(&inflight.region).map_err(to_py)?;
        }
        let queue = Arc::new(SharedQueue::new(queue).map_err(PyOSError::new_err)?);
        Ok(Self { shelf: Shelf::new(&queue), queue })
    }

    #[getter]
    fn index(&self) -> u16 {
        visit(&self.queue).setup().index
    }

    #[getter]
    fn size(&self) -> u16 {
        visit(&self.queue).setup().size
    }

    #[getter]
    fn features(&self) -> u64 {
        visit(&self.queue).setup().features
    }

    fn set_kick(&self, fd: Option<i32>) -> PyResult<()> {
        let fd = duplicate(fd)?;
        visit(&self.queue).set_kick(fd);
        Ok(())
    }

    fn set_call(&self, fd: Option<i32>) -> PyResult<()> {
        let fd = duplicate(fd)?;
        visit(&self.queue).set_call(fd);
        Ok(())
    }

    fn set_err(&self, fd: Option<i32>) -> PyResult<()> {
        let fd = duplicate(fd)?;
        visit(&self.queue).set_err(fd);
        Ok(())
    }

    #[getter]
    fn kick_fd(&self) -> Option<i32> {
        visit(&self.queue).kick().map(|kick| kick.fd().as_raw_fd())
    }

    fn drain_kick(&self) {
        visit(&self.queue).drain_kick();
    }

    fn set_used_log(&self, addr: Option<u64>) {
        visit(&self.queue).set_used_log(addr);
    }

    fn set_memory(&self, memory: &PyMemory) -> PyResult<()> {
        visit(&self.queue).set_memory(memory.snapshot()).map_err(to_py)
    }

    #[pyo3(signature = (max=65535))]
    fn take(&self, max: usize) -> PyResult<PyBatch> {
        self.shelf.take(max).map(PyBatch)
    }

    #[pyo3(signature = (batch, start=0))]
    fn put_back(&self, batch: &PyBatch, start: usize) -> PyResult<usize> {
        batch.put_back(&self.queue, start)
    }

    #[pyo3(signature = (handler, finish, failed, max, waits=None))]
    fn serve(
        &self,
        py: Python<'_>,
        handler: &Bound<'_, PyAny>,
        finish: &Bound<'_, PyAny>,
        failed: &Bound<'_, PyAny>,
        max: usize,
        waits: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<usize> {
        let sequel = Sequel { finish, failed, waits };
        crate::serve::serve(py, self.shelf.take(max)?, handler, sequel)
    }

    fn linger(&self, py: Python<'_>, microseconds: u32) -> bool {
        let end = Instant::now() + Duration::from_micros(microseconds.min(LINGER_MOST_US).into());
        py.detach(|| {
            while !self.queue.visit().has_available() {
                if Instant::now() >= end {
                    return false;
                }
                std::hint::spin_loop();
            }
            true
        })
    }

    fn flush(&self) -> PyResult<usize> {
        visit(&self.queue).flush().map_err(to_py)
    }

    fn notify(&self) -> PyResult<bool> {
        visit(&self.queue).notify().map_err(to_py)
    }

    fn enable_kicks(&self) -> bool {
        visit(&self.queue).enable_kicks()
    }

    fn disable_kicks(&self) {
        visit(&self.queue).disable_kicks();
    }

    #[getter]
    fn has_available(&self) -> bool {
        visit(&self.queue).has_available()
    }

    #[getter]
    fn outstanding(&self) -> usize {
        visit(&self.queue).outstanding()
    }

    #[getter]
    fn position(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        position_to_py(py, visit(&self.queue).position())
    }

    #[getter]
    fn broken(&self) -> Option<String> {
        visit(&self.queue).broken().map(ToString::to_string)
    }

    #[pyo3(signature = (id=0, written=0))]
    fn spoil_next_used(&self, id: u16, written: u32) {
        visit(&self.queue).spoil_next_used(id, written);
    }

    fn lose_call(&self) -> PyResult<bool> {
        let mut queue = visit(&self.queue);
        queue.flush().and_then(|_| queue.lose_call()).map_err(to_py)
    }

    fn give_up(&self, reason: String) {
        visit(&self.queue).break_queue(Fault::GivenUp { reason });
    }

    fn stop(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let position = visit(&self.queue).stop();
        position_to_py(py, position)
    }

    fn release_inflight(&self) -> bool {
        visit(&self.queue).release_inflight()
    }

    #[getter]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = visit(&self.queue).stats();
        let dict = PyDict::new(py);
        for (name, value) in [
            ("buffers", stats.buffers),
            ("batches", stats.batches),
            ("bytes_read", stats.bytes_read),
            ("bytes_written", stats.bytes_written),
            ("kicks_received", stats.kicks_received),
            ("calls_sent", stats.calls_sent),
            ("calls_saved", stats.calls_saved),
            ("used_entries", stats.used_entries),
        ] {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }
}
