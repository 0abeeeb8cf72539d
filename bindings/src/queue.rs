//! Both halves of a virtqueue, and the buffers that the device half hands out.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyIndexError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use virtq_core::error::{Fault, QueueError};
use virtq_core::pump::{SharedQueue, Visit};
use virtq_core::queue::{DeviceQueue, DriverQueue, IndirectSetup, Setup};
use virtq_core::ring::{Batch, Buffer, Piece, Position, Reaped};

use crate::errors::to_py;
use crate::inflight::Inflight;
use crate::memory::{Memory as PyMemory, with_bytes};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("Position", position_type(module.py())?)?;
    module.add_class::<PyDeviceQueue>()?;
    module.add_class::<PyDriverQueue>()?;
    module.add_class::<PyBatch>()?;
    module.add_class::<PyRequest>()
}

fn position_type(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static TYPE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    TYPE.get_or_try_init(py, || {
        let fields = ["available", "available_wrap", "used", "used_wrap", "descriptor"];
        crate::named_tuple(py, "Position", &fields)
    })
    .map(|made| made.bind(py))
}

fn position_to_py(py: Python<'_>, position: Position) -> PyResult<Py<PyAny>> {
    let fields = (
        position.available,
        u16::from(position.available_wrap),
        position.used,
        u16::from(position.used_wrap),
        position.descriptor,
    );
    Ok(position_type(py)?.call1(fields)?.unbind())
}

fn position_from_py(position: &Bound<'_, PyTuple>) -> PyResult<Position> {
    let (available, available_wrap, used, used_wrap, descriptor): (u16, u16, u16, u16, u16) =
        position.extract()?;
    Ok(Position {
        available,
        available_wrap: available_wrap != 0,
        used,
        used_wrap: used_wrap != 0,
        descriptor,
    })
}

fn duplicate(fd: Option<i32>) -> PyResult<Option<OwnedFd>> {
    let Some(fd) = fd else { return Ok(None) };
    if fd < 0 {
        return Err(PyValueError::new_err(format!("{fd} is not a file descriptor")));
    }
    // SAFETY: borrowed for the duplication only; a closed descriptor is an error.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    borrowed.try_clone_to_owned().map(Some).map_err(PyOSError::new_err)
}

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

fn lock<T>(queue: &Mutex<T>) -> MutexGuard<'_, T> {
    queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Look into a queue. If a data path is in the middle of a round, other Python threads run meanwhile.
fn visit(queue: &SharedQueue) -> Visit<'_> {
    if let Some(visit) = queue.try_visit() {
        return visit;
    }
    let knock = queue.knock();
    Python::attach(|py| py.detach(|| knock.wait()));
    knock.enter()
}

struct Args<'py> {
    features: u64,
    size: i128,
    areas: [u64; 3],
    index: u16,
    position: Option<Bound<'py, PyTuple>>,
}

impl Args<'_> {
    fn setup(self) -> PyResult<Setup> {
        let size = u16::try_from(self.size).map_err(|_| {
            PyValueError::new_err(format!("queue size {} is not in 1..=32768", self.size))
        })?;
        let [desc, driver, device] = self.areas;
        let position = self.position.as_ref().map(position_from_py).transpose()?;
        Ok(Setup {
            index: self.index,
            size,
            features: self.features,
            desc,
            driver,
            device,
            position,
        })
    }
}

#[pyclass(name = "DeviceQueue", module = "virtq._core", frozen)]
pub struct PyDeviceQueue {
    pub queue: Arc<SharedQueue>,
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
        Ok(Self { queue: Arc::new(SharedQueue::new(queue).map_err(PyOSError::new_err)?) })
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

    fn set_memory(&self, memory: &PyMemory) -> PyResult<()> {
        visit(&self.queue).set_memory(memory.snapshot()).map_err(to_py)
    }

    #[pyo3(signature = (max=65535))]
    fn take(&self, max: usize) -> PyResult<PyBatch> {
        let mut batch = Batch::new();
        visit(&self.queue).take(max, &mut batch).map_err(to_py)?;
        Ok(PyBatch(Arc::new(Taken { queue: Arc::clone(&self.queue), batch: Mutex::new(batch) })))
    }

    #[pyo3(signature = (batch, start=0))]
    fn put_back(&self, batch: &PyBatch, start: usize) -> PyResult<usize> {
        if !Arc::ptr_eq(&batch.0.queue, &self.queue) {
            return Err(PyValueError::new_err("the batch was taken from another queue"));
        }
        visit(&self.queue).put_back(&mut lock(&batch.0.batch), start).map_err(to_py)
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

/// A batch with the queue that it came from.
struct Taken {
    queue: Arc<SharedQueue>,
    batch: Mutex<Batch>,
}

impl Taken {
    fn buffer(&self, index: usize) -> PyResult<Buffer> {
        lock(&self.batch).buffers.get(index).copied().ok_or_else(|| to_py(QueueError::Stale))
    }

    fn complete(&self, index: usize, written: u64) -> PyResult<()> {
        let written = u32::try_from(written)
            .map_err(|_| PyValueError::new_err(format!("{written} bytes exceed 2^32 - 1")))?;
        let batch = lock(&self.batch);
        if index >= batch.buffers.len() {
            return Err(to_py(QueueError::Stale));
        }
        visit(&self.queue).complete(&batch, index, written).map_err(to_py)
    }
}

#[pyclass(name = "Batch", module = "virtq._core", frozen)]
pub struct PyBatch(Arc<Taken>);

#[derive(FromPyObject)]
enum Written {
    Same(u64),
    Each(Vec<u64>),
}

#[pymethods]
impl PyBatch {
    fn __len__(&self) -> usize {
        lock(&self.0.batch).buffers.len()
    }

    fn __getitem__(&self, index: isize) -> PyResult<PyRequest> {
        let len = self.__len__();
        let at = if index < 0 { index + len as isize } else { index };
        let at = usize::try_from(at).ok().filter(|at| *at < len);
        let index = at.ok_or_else(|| PyIndexError::new_err("batch index out of range"))?;
        Ok(PyRequest { taken: Arc::clone(&self.0), index, read: 0, written: 0 })
    }

    fn __iter__(&self) -> BatchIterator {
        BatchIterator { taken: Arc::clone(&self.0), next: 0 }
    }

    fn readable<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        lengths(py, lock(&self.0.batch).buffers.iter().map(|buffer| buffer.readable))
    }

    fn writable<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        lengths(py, lock(&self.0.batch).buffers.iter().map(|buffer| buffer.writable))
    }

    fn read_all<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let batch = lock(&self.0.batch);
        batch.buffers.iter().map(|buffer| read(py, &batch, buffer, 0, u64::MAX)).collect()
    }

    #[pyo3(signature = (written=Written::Same(0)))]
    fn complete(&self, written: Written) -> PyResult<()> {
        let count = self.__len__();
        match written {
            Written::Same(written) => (0..count).try_for_each(|i| self.0.complete(i, written)),
            Written::Each(each) if each.len() == count => {
                each.into_iter().enumerate().try_for_each(|(i, one)| self.0.complete(i, one))
            }
            Written::Each(each) => Err(PyValueError::new_err(format!(
                "{} written lengths for {count} buffers",
                each.len()
            ))),
        }
    }
}

fn lengths<'py>(py: Python<'py>, values: impl Iterator<Item = u64>) -> PyResult<Bound<'py, PyAny>> {
    let raw: Vec<u8> = values.flat_map(u64::to_ne_bytes).collect();
    let bytes = PyBytes::new(py, &raw);
    py.import("builtins")?.getattr("memoryview")?.call1((bytes,))?.call_method1("cast", ("Q",))
}

fn read<'py>(
    py: Python<'py>,
    batch: &Batch,
    buffer: &Buffer,
    offset: u64,
    length: u64,
) -> PyResult<Bound<'py, PyBytes>> {
    let length = buffer.readable.saturating_sub(offset).min(length) as usize;
    PyBytes::new_with(py, length, |into| {
        batch.read_at(buffer, offset, into);
        Ok(())
    })
}

#[pyclass(module = "virtq._core")]
struct BatchIterator {
    taken: Arc<Taken>,
    next: usize,
}

#[pymethods]
impl BatchIterator {
    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&mut self) -> Option<PyRequest> {
        let index = self.next;
        if index >= lock(&self.taken.batch).buffers.len() {
            return None;
        }
        self.next += 1;
        Some(PyRequest { taken: Arc::clone(&self.taken), index, read: 0, written: 0 })
    }
}

#[pyclass(name = "Request", module = "virtq._core")]
pub struct PyRequest {
    taken: Arc<Taken>,
    index: usize,
    read: u64,
    written: u64,
}

impl PyRequest {
    fn put(&mut self, offset: u64, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let buffer = self.taken.buffer(self.index)?;
        let batch = lock(&self.taken.batch);
        let end = with_bytes(data, |bytes| {
            let end = offset.saturating_add(bytes.len() as u64);
            if end <= buffer.writable {
                batch.write_at(&buffer, offset, bytes);
            }
            end
        })?;
        if end > buffer.writable {
            return Err(PyValueError::new_err(format!(
                "{} bytes at offset {offset} exceed the {} device-writable bytes",
                end - offset,
                buffer.writable
            )));
        }
        self.written = self.written.max(end);
        Ok(())
    }
}

#[pymethods]
impl PyRequest {
    #[getter]
    fn readable(&self) -> PyResult<u64> {
        Ok(self.taken.buffer(self.index)?.readable)
    }

    #[getter]
    fn writable(&self) -> PyResult<u64> {
        Ok(self.taken.buffer(self.index)?.writable)
    }

    #[getter]
    fn written(&self) -> u64 {
        self.written
    }

    #[getter]
    fn outstanding(&self) -> bool {
        visit(&self.taken.queue).is_taken(&lock(&self.taken.batch), self.index)
    }

    #[getter]
    fn queue_index(&self) -> u16 {
        visit(&self.taken.queue).setup().index
    }

    #[pyo3(signature = (length=-1))]
    fn read<'py>(&mut self, py: Python<'py>, length: i64) -> PyResult<Bound<'py, PyBytes>> {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        let buffer = self.taken.buffer(self.index)?;
        let bytes = read(py, &lock(&self.taken.batch), &buffer, self.read, length)?;
        self.read += bytes.as_bytes().len() as u64;
        Ok(bytes)
    }

    fn write(&mut self, data: &Bound<'_, PyAny>) -> PyResult<u64> {
        self.put(self.written, data)?;
        Ok(self.written)
    }

    fn write_at(&mut self, offset: u64, data: &Bound<'_, PyAny>) -> PyResult<()> {
        self.put(offset, data)
    }

    fn segments(&self) -> PyResult<Vec<(u64, u32, bool)>> {
        let buffer = self.taken.buffer(self.index)?;
        let batch = lock(&self.taken.batch);
        let readable = batch.readable(&buffer).iter().map(|part| (part.addr, part.len, false));
        let writable = batch.writable(&buffer).iter().map(|part| (part.addr, part.len, true));
        Ok(readable.chain(writable).collect())
    }

    #[pyo3(signature = (written=None))]
    fn complete(&self, written: Option<u64>) -> PyResult<()> {
        self.taken.complete(self.index, written.unwrap_or(self.written))
    }
}

#[pyclass(name = "DriverQueue", module = "virtq._core", frozen)]
pub struct PyDriverQueue {
    queue: Mutex<DriverQueue>,
}

impl PyDriverQueue {
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
