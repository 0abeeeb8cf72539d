//! Disks, and the data path that serves one without the interpreter.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use virtq_core::pump::blk::{
    BlkPath, Counts, Disk, ID_BYTES, Limits, OpenError, Options, SEGMENTS_MAX, Stats,
};

use crate::memory::with_bytes;
use crate::pump::PumpHandle;
use crate::queue::PyDeviceQueue;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<BlkDisk>()?;
    module.add_class::<BlkPump>()
}

/// OSError with errno and text, as Python's own functions raise it.
fn system(py: Python<'_>, error: &io::Error, path: Option<PathBuf>) -> PyErr {
    let code = error.raw_os_error().unwrap_or(libc::EIO);
    let text = py.import("os").and_then(|os| os.getattr("strerror")?.call1((code,))?.extract());
    match text {
        Ok::<String, _>(text) => match path {
            Some(path) => PyOSError::new_err((code, text, path.into_os_string())),
            None => PyOSError::new_err((code, text)),
        },
        Err(error) => error,
    }
}

fn made(py: Python<'_>, disk: Result<Disk, OpenError>, path: Option<PathBuf>) -> PyResult<BlkDisk> {
    match disk {
        Ok(disk) => Ok(BlkDisk { disk: Arc::new(disk) }),
        Err(OpenError::System(error)) => Err(system(py, &error, path)),
        Err(OpenError::Unfit(text)) => Err(PyValueError::new_err(text)),
    }
}

fn dict<'py>(py: Python<'py>, counts: &Counts) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in counts.named() {
        dict.set_item(name, value)?;
    }
    Ok(dict)
}

#[pyclass(module = "virtq._core", frozen)]
pub struct BlkDisk {
    disk: Arc<Disk>,
}

impl BlkDisk {
    /// Does something with the disk while other Python threads run.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        body: impl FnOnce(&Disk) -> io::Result<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| body(&self.disk)).map_err(|error| system(py, &error, None))
    }
}

#[pymethods]
impl BlkDisk {
    #[staticmethod]
    #[pyo3(signature = (path, *, read_only=false, direct=false, io_uring=true))]
    fn file(
        py: Python<'_>,
        path: PathBuf,
        read_only: bool,
        direct: bool,
        io_uring: bool,
    ) -> PyResult<Self> {
        let options = Options { read_only, direct, no_io_uring: !io_uring };
        let disk = py.detach(|| Disk::file(&path, options));
        made(py, disk, Some(path))
    }

    #[staticmethod]
    fn memory(py: Python<'_>, size: u64) -> PyResult<Self> {
        made(py, Disk::memory(size), None)
    }

    #[staticmethod]
    fn null(py: Python<'_>, size: u64) -> PyResult<Self> {
        made(py, Disk::null(size), None)
    }

    #[getter]
    fn capacity(&self) -> u64 {
        self.disk.capacity()
    }

    fn refresh(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, Disk::refresh)
    }

    #[getter]
    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    #[getter]
    fn block_size(&self) -> u32 {
        self.disk.block_size()
    }

    #[getter]
    fn writeback(&self) -> bool {
        self.disk.writeback()
    }

    #[setter]
    fn set_writeback(&self, on: bool) {
        self.disk.set_writeback(on);
    }

    #[getter]
    fn serial<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let serial = self.disk.serial();
        let end = serial.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        PyBytes::new(py, &serial[..end])
    }

    #[setter]
    fn set_serial(&self, serial: &Bound<'_, PyAny>) -> PyResult<()> {
        with_bytes(serial, |bytes| {
            let mut padded = [0; ID_BYTES];
            let Some(room) = padded.get_mut(..bytes.len()) else {
                return Err(PyValueError::new_err(format!(
                    "a serial of {} bytes, at most {ID_BYTES} are possible",
                    bytes.len()
                )));
            };
            room.copy_from_slice(bytes);
            self.disk.set_serial(padded);
            Ok(())
        })?
    }

    #[getter]
    fn limits<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let limits = self.disk.limits();
        let dict = PyDict::new(py);
        for (name, value) in [
            ("max_discard_sectors", limits.max_discard_sectors),
            ("max_discard_seg", limits.max_discard_seg),
            ("discard_sector_alignment", limits.discard_sector_alignment),
            ("max_write_zeroes_sectors", limits.max_write_zeroes_sectors),
            ("max_write_zeroes_seg", limits.max_write_zeroes_seg),
            ("write_zeroes_may_unmap", limits.write_zeroes_may_unmap.into()),
        ] {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }

    #[pyo3(signature = (*, max_discard_sectors=None, max_discard_seg=None, discard_sector_alignment=None, max_write_zeroes_sectors=None, max_write_zeroes_seg=None, write_zeroes_may_unmap=None))]
    fn set_limits(
        &self,
        max_discard_sectors: Option<u32>,
        max_discard_seg: Option<u32>,
        discard_sector_alignment: Option<u32>,
        max_write_zeroes_sectors: Option<u32>,
        max_write_zeroes_seg: Option<u32>,
        write_zeroes_may_unmap: Option<bool>,
    ) -> PyResult<()> {
        for segments in [max_discard_seg, max_write_zeroes_seg].into_iter().flatten() {
            if segments > SEGMENTS_MAX {
                return Err(PyValueError::new_err(format!(
                    "{segments} segments, at most {SEGMENTS_MAX} are possible"
                )));
            }
        }
        let now = self.disk.limits();
        self.disk.set_limits(Limits {
            max_discard_sectors: max_discard_sectors.unwrap_or(now.max_discard_sectors),
            max_discard_seg: max_discard_seg.unwrap_or(now.max_discard_seg),
            discard_sector_alignment: discard_sector_alignment
                .unwrap_or(now.discard_sector_alignment),
            max_write_zeroes_sectors: max_write_zeroes_sectors
                .unwrap_or(now.max_write_zeroes_sectors),
            max_write_zeroes_seg: max_write_zeroes_seg.unwrap_or(now.max_write_zeroes_seg),
            write_zeroes_may_unmap: write_zeroes_may_unmap.unwrap_or(now.write_zeroes_may_unmap),
        });
        Ok(())
    }

    #[getter]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        dict(py, &self.disk.stats().counts())
    }

    fn failure(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let error = self.disk.take_failure()?;
        Some(system(py, &error, None).into_value(py).into_any())
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        offset: u64,
        length: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        // Before there is memory allocated for a length that is none.
        self.with(py, |disk| disk.check_read(offset, length as u64))?;
        PyBytes::new_with(py, length, |into| self.with(py, |disk| disk.read(offset, into)))
    }

    fn write(&self, py: Python<'_>, offset: u64, data: &Bound<'_, PyAny>) -> PyResult<()> {
        with_bytes(data, |bytes| self.with(py, |disk| disk.write(offset, bytes)))?
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, Disk::flush)
    }

    fn discard(&self, py: Python<'_>, offset: u64, length: u64) -> PyResult<()> {
        self.with(py, |disk| disk.discard(offset, length))
    }

    fn write_zeroes(&self, py: Python<'_>, offset: u64, length: u64, unmap: bool) -> PyResult<()> {
        self.with(py, |disk| disk.write_zeroes(offset, length, unmap))
    }
}

#[pyclass(module = "virtq._core", frozen)]
pub struct BlkPump {
    handle: PumpHandle,
    stats: Arc<Stats>,
}

#[pymethods]
impl BlkPump {
    #[new]
    #[pyo3(signature = (disk, queue, *, wait="event", enabled=true))]
    fn new(
        disk: &BlkDisk,
        queue: &Bound<'_, PyDeviceQueue>,
        wait: &str,
        enabled: bool,
    ) -> PyResult<Self> {
        let path = BlkPath::new(Arc::clone(&disk.disk)).polling(wait == "poll");
        let stats = path.stats();
        Ok(Self { handle: PumpHandle::start(queue, "virtq-blk", path, wait, enabled)?, stats })
    }

    fn enable(&self, py: Python<'_>, on: bool) {
        self.handle.enable(py, on);
    }

    fn wake(&self, py: Python<'_>) {
        self.handle.wake(py);
    }

    #[getter]
    fn attention_fd(&self, py: Python<'_>) -> i32 {
        self.handle.attention_fd(py)
    }

    fn trouble(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.handle.trouble(py)
    }

    fn stop<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.handle.stop(py)
    }

    #[getter]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        dict(py, &self.stats.counts())
    }
}
