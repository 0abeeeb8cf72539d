//! The driver half.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use virtq_core::error::QueueError;
use virtq_core::queue::{DriverQueue, IndirectSetup};
use virtq_core::ring::{Piece, Reaped};

use super::{Args, duplicate, position_to_py};
use crate::errors::to_py;
use crate::memory::Memory as PyMemory;
use crate::shared::lock;

/// Wait until `fd` is readable or the other end of `alarm` hangs up; false on time-out.
fn wait_readable(fd: &OwnedFd, alarm: Option<&OwnedFd>, timeout: Option<Duration>) -> bool {
    let alarm_fd = alarm.map_or(-1, AsRawFd::as_raw_fd); // -1 is never ready
    let entry = |fd, events| libc::pollfd { fd, events, revents: 0 };
    let mut entries = [entry(fd.as_raw_fd(), libc::POLLIN), entry(alarm_fd, libc::POLLRDHUP)];
    let timeout_ms = timeout
        .map_or(-1, |timeout| timeout.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32);
    // SAFETY: two entries, alive during the call.
    unsafe { libc::poll(entries.as_mut_ptr(), 2, timeout_ms) > 0 }
}

/// Whether the other end has hung up.
fn hung_up(fd: &OwnedFd) -> bool {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one entry, alive during the call.
    unsafe { libc::poll(&mut entry, 1, 0) > 0 }
}

#[pyclass(name = "DriverQueue", module = "virtq._core", frozen)]
pub struct PyDriverQueue {
    pub queue: Mutex<DriverQueue>,
}

impl PyDriverQueue {
    /// The queue, for a load that works on it.
    pub fn lock(&self) -> MutexGuard<'_, DriverQueue> {
        lock(&self.queue)
    }

    fn reap_some(&self, max: usize) -> PyResult<Vec<Reaped>> {
        let mut queue = lock(&self.queue);
        let mut reaped = Vec::with_capacity(max.min(queue.outstanding()));
        queue.reap(max, &mut reaped).map_err(to_py)?;
        Ok(reaped)
    }
}

fn pieces(list: Vec<(u64, u64)>) -> PyResult<Vec<Piece>> {
    list.into_iter()
        .map(|(addr, len)| {
            let len = u32::try_from(len).map_err(|_| {
                PyValueError::new_err(format!("a piece of {len} bytes exceeds 2^32 - 1"))
            })?;
            Ok(Piece { addr, len })
        })
        .collect()
}

#[pymethods]
impl PyDriverQueue {
    #[new]
    #[pyo3(signature = (memory, features, size, desc, driver, device, *, index=0, indirect_table=0, indirect_length=0, position=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        memory: &PyMemory,
        features: u64,
        size: i128,
        desc: u64,
        driver: u64,
        device: u64,
        index: u16,
        indirect_table: u64,
        indirect_length: u16,
        position: Option<Bound<'_, PyTuple>>,
    ) -> PyResult<Self> {
        let args = Args { features, size, areas: [desc, driver, device], index, position };
        let indirect = (indirect_length > 0)
            .then_some(IndirectSetup { addr: indirect_table, length: indirect_length });
        let queue = DriverQueue::new(memory.snapshot(), args.setup()?, indirect).map_err(to_py)?;
        Ok(Self { queue: Mutex::new(queue) })
    }

    #[getter]
    fn index(&self) -> u16 {
        lock(&self.queue).setup().index
    }

    #[getter]
    fn size(&self) -> u16 {
        lock(&self.queue).setup().size
    }

    #[getter]
    fn features(&self) -> u64 {
        lock(&self.queue).setup().features
    }

    #[getter]
    fn free(&self) -> usize {
        lock(&self.queue).free()
    }

    #[getter]
    fn outstanding(&self) -> usize {
        lock(&self.queue).outstanding()
    }

    fn set_kick(&self, fd: Option<i32>) -> PyResult<()> {
        let fd = duplicate(fd)?;
        lock(&self.queue).set_kick(fd);
        Ok(())
    }

    fn set_call(&self, fd: Option<i32>) -> PyResult<()> {
        let fd = duplicate(fd)?;
        lock(&self.queue).set_call(fd);
        Ok(())
    }

    #[getter]
    fn kick_fd(&self) -> Option<i32> {
        lock(&self.queue).kick_event().map(|event| event.fd().as_raw_fd())
    }

    #[getter]
    fn call_fd(&self) -> Option<i32> {
        lock(&self.queue).call_event().map(|event| event.fd().as_raw_fd())
    }

    #[pyo3(signature = (readable, writable, cookie=0))]
    fn add(
        &self,
        readable: Vec<(u64, u64)>,
        writable: Vec<(u64, u64)>,
        cookie: u64,
    ) -> PyResult<()> {
        let (readable, writable) = (pieces(readable)?, pieces(writable)?);
        lock(&self.queue).add(&readable, &writable, cookie).map_err(to_py)
    }

    #[pyo3(signature = (addresses, lengths, writable, first_cookie=0, all_or_nothing=false))]
    fn add_batch(
        &self,
        py: Python<'_>,
        addresses: PyBuffer<u64>,
        lengths: PyBuffer<u32>,
        writable: bool,
        first_cookie: u64,
        all_or_nothing: bool,
    ) -> PyResult<usize> {
        let (addresses, lengths) = (addresses.to_vec(py)?, lengths.to_vec(py)?);
        if addresses.len() != lengths.len() {
            return Err(PyValueError::new_err(format!(
                "{} addresses but {} lengths",
                addresses.len(),
                lengths.len()
            )));
        }
        let mut queue = lock(&self.queue);
        let free = queue.free();
        if all_or_nothing && free < addresses.len() {
            return Err(to_py(QueueError::Full { needed: addresses.len(), free }));
        }
        let pieces: Vec<Piece> =
            addresses.into_iter().zip(lengths).map(|(addr, len)| Piece { addr, len }).collect();
        queue.add_each(&pieces, writable, first_cookie).map_err(to_py)
    }

    fn publish(&self) -> usize {
        lock(&self.queue).publish()
    }

    fn kick(&self) -> PyResult<bool> {
        lock(&self.queue).kick().map_err(to_py)
    }

    #[pyo3(signature = (max=65535))]
    fn reap(&self, max: usize) -> PyResult<Vec<(u64, u32)>> {
        Ok(self.reap_some(max)?.into_iter().map(|one| (one.cookie, one.written)).collect())
    }

    fn reap_into(&self, cookies: PyBuffer<u64>, written: PyBuffer<u32>) -> PyResult<usize> {
        let room = cookies.item_count().min(written.item_count());
        let writable = !cookies.readonly() && !written.readonly();
        if !writable || !cookies.is_c_contiguous() || !written.is_c_contiguous() {
            return Err(PyValueError::new_err("the arrays must be writable and contiguous"));
        }
        let reaped = self.reap_some(room)?;
        let (cookies, written) = (cookies.buf_ptr().cast::<u64>(), written.buf_ptr().cast::<u32>());
        for (at, one) in reaped.iter().enumerate() {
            // SAFETY: `at` is below the item count of both contiguous arrays, which the buffers
            // hold; the interpreter lock is held.
            unsafe {
                cookies.add(at).write(one.cookie);
                written.add(at).write(one.written);
            }
        }
        Ok(reaped.len())
    }

    fn enable_calls(&self) -> bool {
        lock(&self.queue).enable_calls()
    }

    fn disable_calls(&self) {
        lock(&self.queue).disable_calls();
    }

    #[getter]
    fn has_used(&self) -> bool {
        lock(&self.queue).has_used()
    }

    #[pyo3(signature = (timeout_s=None, alarm_fd=None))]
    fn wait(
        &self,
        py: Python<'_>,
        timeout_s: Option<f64>,
        alarm_fd: Option<i32>,
    ) -> PyResult<bool> {
        let alarm = duplicate(alarm_fd)?;
        let timeout = timeout_s
            .map(Duration::try_from_secs_f64)
            .transpose()
            .map_err(|_| PyValueError::new_err("the time-out is not a number of seconds"))?;
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let call = {
                let mut queue = lock(&self.queue);
                queue.drain_call();
                if queue.enable_calls() {
                    queue.disable_calls();
                    return Ok(true);
                }
                if queue.broken().is_some() {
                    return Ok(true); // reap() says why
                }
                let Some(call) = queue.call_event() else {
                    return Err(PyValueError::new_err("the queue has no call eventfd to wait for"));
                };
                call.fd().try_clone_to_owned().map_err(PyOSError::new_err)?
            };
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if !py.detach(|| wait_readable(&call, alarm.as_ref(), left)) {
                py.check_signals()?;
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    return Ok(lock(&self.queue).has_used());
                }
            } else if alarm.as_ref().is_some_and(hung_up) {
                return Ok(lock(&self.queue).has_used());
            }
        }
    }

    fn take_back(&self) -> Vec<u64> {
        lock(&self.queue).take_back()
    }

    #[getter]
    fn position(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        position_to_py(py, lock(&self.queue).position())
    }

    #[getter]
    fn torn(&self) -> bool {
        lock(&self.queue).is_torn()
    }

    #[getter]
    fn device_position(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        position_to_py(py, lock(&self.queue).device_position())
    }

    #[getter]
    fn broken(&self) -> Option<String> {
        lock(&self.queue).broken().map(ToString::to_string)
    }

    #[getter]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = lock(&self.queue).stats();
        let dict = PyDict::new(py);
        for (name, value) in [
            ("buffers", stats.buffers),
            ("batches", stats.batches),
            ("bytes_written", stats.bytes_written),
            ("kicks_sent", stats.kicks_sent),
            ("kicks_saved", stats.kicks_saved),
            ("calls_received", stats.calls_received),
            ("used_entries", stats.used_entries),
        ] {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }
}
