//! The buffers that a device queue hands out: many at once, and one by one.

use std::sync::{Arc, Mutex, MutexGuard};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyMemoryView};

use virtq_core::error::QueueError;
use virtq_core::pump::SharedQueue;
use virtq_core::ring::{Batch, Buffer};

use crate::errors::to_py;
use crate::memory::with_bytes;
use crate::shared::{lock, visit};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyBatch>()?;
    module.add_class::<PyRequest>()
}

/// Where a queue's batches come from: the room of one that nobody holds any more is used again.
pub struct Shelf {
    queue: Arc<SharedQueue>,
    spare: Mutex<Option<Batch>>,
}

impl Shelf {
    pub fn new(queue: &Arc<SharedQueue>) -> Arc<Self> {
        Arc::new(Self { queue: Arc::clone(queue), spare: Mutex::new(None) })
    }

    /// Up to `max` buffers of the queue.
    pub fn take(self: &Arc<Self>, max: usize) -> PyResult<Arc<Taken>> {
        let mut batch = lock(&self.spare).take().unwrap_or_default();
        visit(&self.queue).take(max, &mut batch).map_err(to_py)?;
        Ok(Arc::new(Taken { shelf: Arc::clone(self), batch: Mutex::new(batch) }))
    }
}

/// A batch with the queue that it came from.
pub struct Taken {
    shelf: Arc<Shelf>,
    batch: Mutex<Batch>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut old = std::mem::take(&mut *lock(&self.batch));
        old.clear();
        // Without the memory that it held, which may be on its way out.
        let mut spare = Batch::new();
        spare.buffers = old.buffers;
        spare.segments = old.segments;
        *lock(&self.shelf.spare) = Some(spare);
    }
}

impl Taken {
    pub fn len(&self) -> usize {
        self.batch().buffers.len()
    }

    fn batch(&self) -> MutexGuard<'_, Batch> {
        lock(&self.batch)
    }

    /// A number of each buffer, as bytes. Nothing of Python's is made while the batch is locked: that
    /// may run anything, such as a finalizer that looks into this batch.
    fn each(&self, value: impl Fn(&Batch, &Buffer) -> u64) -> Vec<u8> {
        let batch = self.batch();
        batch.buffers.iter().flat_map(|buffer| value(&batch, buffer).to_ne_bytes()).collect()
    }

    /// A buffer, with the batch that its pieces lie in.
    fn buffer(&self, index: usize) -> PyResult<(MutexGuard<'_, Batch>, Buffer)> {
        let batch = self.batch();
        match batch.buffers.get(index).copied() {
            Some(buffer) => Ok((batch, buffer)),
            None => Err(to_py(QueueError::Stale)),
        }
    }

    pub fn complete(&self, index: usize, written: u64) -> PyResult<()> {
        let written = bytes_written(written)?;
        let batch = self.batch();
        if index >= batch.buffers.len() {
            return Err(to_py(QueueError::Stale));
        }
        visit(&self.shelf.queue).complete(&batch, index, written).map_err(to_py)
    }

    /// All of them, in one visit.
    fn complete_each(&self, written: impl Iterator<Item = u32>) -> PyResult<()> {
        let batch = self.batch();
        visit(&self.shelf.queue).complete_each(&batch, written).map_err(to_py)
    }
}

fn bytes_written(count: u64) -> PyResult<u32> {
    u32::try_from(count)
        .map_err(|_| PyValueError::new_err(format!("{count} bytes exceed 2^32 - 1")))
}

#[pyclass(name = "Batch", module = "virtq._core", frozen)]
pub struct PyBatch(pub Arc<Taken>);

impl PyBatch {
    /// Untake the buffers from `start` on.
    pub fn put_back(&self, queue: &Arc<SharedQueue>, start: usize) -> PyResult<usize> {
        if !Arc::ptr_eq(&self.0.shelf.queue, queue) {
            return Err(PyValueError::new_err("the batch was taken from another queue"));
        }
        visit(queue).put_back(&mut self.0.batch(), start).map_err(to_py)
    }
}

#[derive(FromPyObject)]
enum Written {
    Same(u64),
    Each(Vec<u64>),
}

#[pymethods]
impl PyBatch {
    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn __getitem__(&self, index: isize) -> PyResult<PyRequest> {
        let len = self.__len__();
        let at = if index < 0 { index + len as isize } else { index };
        let at = usize::try_from(at).ok().filter(|at| *at < len);
        let index = at.ok_or_else(|| PyIndexError::new_err("batch index out of range"))?;
        Ok(PyRequest::new(&self.0, index))
    }

    fn __iter__(&self) -> BatchIterator {
        BatchIterator { taken: Arc::clone(&self.0), next: 0 }
    }

    fn readable<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        numbers(py, &self.0.each(|_, buffer| buffer.readable))
    }

    fn writable<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        numbers(py, &self.0.each(|_, buffer| buffer.writable))
    }

    fn addresses<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let first = |batch: &Batch, buffer: &Buffer| {
            batch.segments.get(buffer.first as usize).map_or(0, |segment| segment.addr)
        };
        numbers(py, &self.0.each(first))
    }

    fn read_all<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let batch = self.0.batch();
        batch.buffers.iter().map(|buffer| read(py, &batch, buffer, 0, u64::MAX)).collect()
    }

    fn read_array<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let (rows, length) = {
            let batch = self.0.batch();
            (batch.buffers.len(), uniform(&batch)?)
        };
        let array = empty_array(py)?.call1(((rows, length), "B"))?;
        if rows == 0 || length == 0 {
            return Ok(array);
        }
        let room = PyBuffer::<u8>::get(&array)?;
        let batch = self.0.batch();
        if room.item_count() != rows * length || batch.buffers.len() != rows {
            return Err(to_py(QueueError::Stale));
        }
        // SAFETY: a new array of so many bytes, which nobody else has seen; `room` holds it.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(room.buf_ptr().cast::<u8>(), room.item_count())
        };
        batch.read_rows(length, bytes);
        Ok(array)
    }

    fn write_array(&self, rows: PyBuffer<u8>) -> PyResult<usize> {
        let batch = self.0.batch();
        let count = batch.buffers.len();
        let shape = rows.shape();
        if shape.len() != 2 || shape[0] != count || !rows.is_c_contiguous() {
            return Err(PyValueError::new_err(format!(
                "a contiguous array of {count} rows of bytes is needed, one for each buffer; the shape is {shape:?}"
            )));
        }
        let length = shape[1];
        if let Some(at) = batch.buffers.iter().position(|it| it.writable < length as u64) {
            return Err(PyValueError::new_err(format!(
                "rows of {length} bytes exceed the {} device-writable bytes of buffer {at}",
                batch.buffers[at].writable
            )));
        }
        if count == 0 || length == 0 {
            return Ok(length);
        }
        // SAFETY: a contiguous buffer of this many bytes, which `rows` keeps exported. Another thread
        // may change them meanwhile; they are only copied.
        let bytes =
            unsafe { std::slice::from_raw_parts(rows.buf_ptr().cast::<u8>(), count * length) };
        batch.write_rows(length, bytes);
        Ok(length)
    }

    #[pyo3(signature = (written=Written::Same(0)))]
    fn complete(&self, written: Written) -> PyResult<()> {
        let count = self.__len__();
        match written {
            Written::Same(written) => {
                self.0.complete_each(std::iter::repeat_n(bytes_written(written)?, count))
            }
            Written::Each(each) if each.len() == count => {
                let each: Vec<u32> =
                    each.into_iter().map(bytes_written).collect::<PyResult<_>>()?;
                self.0.complete_each(each.into_iter())
            }
            Written::Each(each) => Err(PyValueError::new_err(format!(
                "{} written lengths for {count} buffers",
                each.len()
            ))),
        }
    }
}

/// Native 64-bit words as a memory view.
fn numbers<'py>(py: Python<'py>, words: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    PyMemoryView::from(PyBytes::new(py, words).as_any())?.call_method1("cast", ("Q",))
}

/// `numpy.empty`.
fn empty_array(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static EMPTY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    EMPTY.import(py, "numpy", "empty")
}

/// The device-readable bytes of each buffer, if they are as many.
fn uniform(batch: &Batch) -> PyResult<usize> {
    let length = batch.buffers.first().map_or(0, |buffer| buffer.readable);
    if let Some(at) = batch.buffers.iter().position(|buffer| buffer.readable != length) {
        let other = batch.buffers[at].readable;
        return Err(PyValueError::new_err(format!(
            "the buffers are not of one length: the first has {length} device-readable bytes, buffer {at} has {other}"
        )));
    }
    Ok(length as usize)
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
        if index >= self.taken.len() {
            return None;
        }
        self.next += 1;
        Some(PyRequest::new(&self.taken, index))
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
    pub fn new(taken: &Arc<Taken>, index: usize) -> Self {
        Self { taken: Arc::clone(taken), index, read: 0, written: 0 }
    }

    /// From now on it is another buffer of the same batch. Only for an object that nobody has.
    pub fn become_next(&mut self, index: usize) {
        self.index = index;
        self.read = 0;
        self.written = 0;
    }

    fn put(&mut self, offset: u64, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let (end, writable) = with_bytes(data, |bytes| {
            let (batch, buffer) = self.taken.buffer(self.index)?;
            let end = offset.saturating_add(bytes.len() as u64);
            if end <= buffer.writable {
                batch.write_at(&buffer, offset, bytes);
            }
            Ok::<_, PyErr>((end, buffer.writable))
        })??;
        if end > writable {
            return Err(PyValueError::new_err(format!(
                "{} bytes at offset {offset} exceed the {writable} device-writable bytes",
                end - offset,
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
        Ok(self.taken.buffer(self.index)?.1.readable)
    }

    #[getter]
    fn writable(&self) -> PyResult<u64> {
        Ok(self.taken.buffer(self.index)?.1.writable)
    }

    #[getter]
    pub fn written(&self) -> u64 {
        self.written
    }

    #[getter]
    fn outstanding(&self) -> bool {
        let batch = self.taken.batch();
        visit(&self.taken.shelf.queue).is_taken(&batch, self.index)
    }

    #[getter]
    fn queue_index(&self) -> u16 {
        visit(&self.taken.shelf.queue).setup().index
    }

    #[pyo3(signature = (length=-1))]
    fn read<'py>(&mut self, py: Python<'py>, length: i64) -> PyResult<Bound<'py, PyBytes>> {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        let (batch, buffer) = self.taken.buffer(self.index)?;
        let bytes = read(py, &batch, &buffer, self.read, length)?;
        self.read += bytes.as_bytes().len() as u64;
        Ok(bytes)
    }

    fn peek<'py>(&self, py: Python<'py>, length: u64) -> PyResult<Bound<'py, PyBytes>> {
        let (batch, buffer) = self.taken.buffer(self.index)?;
        read(py, &batch, &buffer, self.read, length)
    }

    fn write(&mut self, data: &Bound<'_, PyAny>) -> PyResult<u64> {
        self.put(self.written, data)?;
        Ok(self.written)
    }

    fn write_at(&mut self, offset: u64, data: &Bound<'_, PyAny>) -> PyResult<()> {
        self.put(offset, data)
    }

    fn segments(&self) -> PyResult<Vec<(u64, u32, bool)>> {
        let (batch, buffer) = self.taken.buffer(self.index)?;
        let readable = batch.readable(&buffer).iter().map(|part| (part.addr, part.len, false));
        let writable = batch.writable(&buffer).iter().map(|part| (part.addr, part.len, true));
        Ok(readable.chain(writable).collect())
    }

    #[pyo3(signature = (written=None))]
    fn complete(&self, written: Option<u64>) -> PyResult<()> {
        self.taken.complete(self.index, written.unwrap_or(self.written))
    }
}
