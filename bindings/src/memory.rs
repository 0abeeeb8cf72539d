//! Guest memory as Python sees it: a table that changes, of which queues hold snapshots.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, PoisonError, RwLock};

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyMemoryView};
use virtq_core::error::Fault;
use virtq_core::memory::{
    self as core, Access, Cache, DirtyLog, Iotlb, Mapping, MemoryError, Region,
};

use crate::errors::{MemoryError_, memory_to_py, range_to_py};

/// From this many bytes on a copy lets other Python threads run.
const DETACH_BYTES: usize = 64 << 10;

/// The named tuple of a region.
static REGION_INFO: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// A table of mapped regions of guest memory. Queues hold a snapshot of the table; a mapping lives as
/// long as any queue, request or view that uses it.
#[pyclass(frozen, module = "virtq._core")]
#[derive(Default)]
pub struct Memory {
    current: RwLock<Arc<core::Memory>>,
}

impl Memory {
    /// The memory as it is now.
    pub fn snapshot(&self) -> Arc<core::Memory> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(
        &self,
        change: impl FnOnce(&core::Memory) -> Result<core::Memory, MemoryError>,
    ) -> PyResult<()> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(change(&current).map_err(memory_to_py)?);
        Ok(())
    }

    fn iotlb(&self) -> PyResult<Arc<Iotlb>> {
        let disabled = || MemoryError_::new_err("the IOTLB is not enabled");
        self.snapshot().iotlb().cloned().ok_or_else(disabled)
    }
}

#[pymethods]
impl Memory {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// A memory of one region backed by a new memfd of `size` bytes (rounded up to pages).
    #[staticmethod]
    #[pyo3(signature = (size, guest_addr = 0))]
    fn allocate(size: u64, guest_addr: u64) -> PyResult<Self> {
        let memory = Self::default();
        let mapping = Mapping::anonymous(size).map_err(memory_to_py)?;
        memory.change(|memory| memory.with_region(region(mapping, guest_addr, 0, None)))?;
        Ok(memory)
    }

    /// Map `size` bytes of `fd` at file offset `offset`. Without `user_addr` the region has the address
    /// of its mapping in this process. Raises MemoryError_ on overlap (of guest or user range), size 0,
    /// overflow, a file that is too short. `fd` stays the caller's.
    #[pyo3(signature = (fd, guest_addr, size, offset = 0, user_addr = None))]
    fn add_region(
        &self,
        fd: c_int,
        guest_addr: u64,
        size: u64,
        offset: u64,
        user_addr: Option<u64>,
    ) -> PyResult<()> {
        let mapping = map(fd, offset, size)?;
        self.change(|memory| memory.with_region(region(mapping, guest_addr, offset, user_addr)))
    }

    /// Remove the region that has exactly this range. Raises MemoryError_ if there is none.
    #[pyo3(signature = (guest_addr, size, user_addr = None))]
    fn remove_region(&self, guest_addr: u64, size: u64, user_addr: Option<u64>) -> PyResult<()> {
        self.change(|memory| memory.without_region(guest_addr, size, user_addr))
    }

    /// Remove every region; the dirty log and the IOTLB stay.
    fn clear(&self) -> PyResult<()> {
        self.change(|memory| Ok(memory.without_regions()))
    }

    /// The regions, by guest address.
    #[getter]
    fn regions(&self, py: Python<'_>) -> PyResult<Vec<Py<PyAny>>> {
        let info = region_info(py)?;
        self.snapshot()
            .regions()
            .iter()
            .map(|it| info.call1(py, (it.guest_addr, it.size, it.user_addr, it.offset)))
            .collect()
    }

    /// The file descriptor of the region at `guest_addr`; owned by the memory.
    fn fd_of(&self, guest_addr: u64) -> PyResult<c_int> {
        let snapshot = self.snapshot();
        let mut regions = snapshot.regions().iter();
        let found =
            regions.find(|it| it.guest_addr <= guest_addr && guest_addr - it.guest_addr < it.size);
        let missing = Fault::Unmapped { address: guest_addr, length: 1 };
        let region = found.ok_or_else(|| range_to_py(missing.into()))?;
        Ok(region.mapping.fd().as_raw_fd())
    }

    /// The bytes of a guest range. Raises MemoryError_ naming what is not mapped.
    fn read<'py>(&self, py: Python<'py>, addr: u64, length: u64) -> PyResult<Bound<'py, PyBytes>> {
        let snapshot = self.snapshot();
        let mut cache = Cache::default();
        // Before there is memory allocated for a length that is none.
        let checked = snapshot.translate(&mut cache, addr, length, Access::Read, &mut |_, _| {});
        checked.map_err(range_to_py)?;
        PyBytes::new_with(py, length as usize, |into| {
            let mut copy = || snapshot.read(&mut cache, addr, into);
            if length as usize > DETACH_BYTES { py.detach(copy) } else { copy() }
                .map_err(range_to_py)
        })
    }

    /// Write into a guest range and note it in the dirty log. Raises MemoryError_ naming what is not
    /// mapped; nothing is written then.
    fn write(&self, py: Python<'_>, addr: u64, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let snapshot = self.snapshot();
        with_bytes(data, |bytes| {
            let copy = || snapshot.write(&mut Cache::default(), addr, bytes);
            if bytes.len() > DETACH_BYTES { py.detach(copy) } else { copy() }.map_err(range_to_py)
        })?
    }

    /// A writable view without a copy; it keeps the mapping alive. One region only. What is written by
    /// way of it is not noted in the dirty log.
    fn view<'py>(
        &self,
        py: Python<'py>,
        addr: u64,
        length: u64,
    ) -> PyResult<Bound<'py, PyMemoryView>> {
        let found = self.snapshot().contiguous(addr, length, Access::Write);
        let (host, mapping) = found.map_err(range_to_py)?;
        let view = View { mapping, host, length: length as usize };
        PyMemoryView::from(Bound::new(py, view)?.as_any())
    }

    /// The guest address of a range of user addresses that lies in one region.
    #[pyo3(signature = (user_addr, length = 1))]
    fn guest_from_user(&self, user_addr: u64, length: u64) -> PyResult<u64> {
        self.snapshot().guest_from_user(user_addr, length).ok_or_else(|| {
            let text = format!("user range {user_addr:#x}+{length:#x} is not in one region");
            MemoryError_::new_err(text)
        })
    }

    /// Use `size` bytes at `offset` of `fd` as the dirty log: a bit per 4096-byte page.
    #[pyo3(signature = (fd, size = 0, offset = 0))]
    fn set_log(&self, fd: Option<c_int>, size: u64, offset: u64) -> PyResult<()> {
        let log = fd.map(|fd| map(fd, offset, size).map(DirtyLog::new)).transpose()?;
        self.change(|memory| Ok(memory.with_log(log)))
    }

    /// Note in the dirty log that a range was written.
    fn mark_dirty(&self, addr: u64, length: u64) {
        self.snapshot().mark_dirty(addr, length);
    }

    /// With it on, every address in rings and descriptors goes through the IOTLB first. It begins empty.
    fn iotlb_enable(&self, on: bool) -> PyResult<()> {
        self.change(|memory| {
            let iotlb = on.then(|| memory.iotlb().cloned().unwrap_or_default());
            Ok(memory.with_iotlb(iotlb))
        })
    }

    /// Add a translation, in place of what it overlaps. Queues that hold a snapshot see it at once.
    fn iotlb_update(
        &self,
        iova: u64,
        size: u64,
        user_addr: u64,
        readable: bool,
        writable: bool,
    ) -> PyResult<()> {
        let iotlb = self.iotlb()?;
        iotlb.update(iova, size, user_addr, readable, writable).map_err(memory_to_py)
    }

    /// Remove the translations of a range; size 0 or 2**64 - 1: all of them.
    fn iotlb_invalidate(&self, iova: u64, size: u64) -> PyResult<()> {
        self.iotlb()?.invalidate(iova, size);
        Ok(())
    }
}

/// Exports a range of a mapping by the buffer protocol.
#[pyclass(frozen, module = "virtq._core")]
struct View {
    /// Keeps `host` valid.
    mapping: Arc<Mapping>,
    host: *mut u8,
    length: usize,
}

// SAFETY: an address in a mapping, which any thread may use.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

#[pymethods]
impl View {
    /// The descriptor of the file behind it.
    fn fileno(&self) -> c_int {
        self.mapping.fd().as_raw_fd()
    }

    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let this = slf.get();
        let (host, length) = (this.host.cast::<c_void>(), this.length as ffi::Py_ssize_t);
        // SAFETY: the interpreter passes a structure to fill (or null, which is refused there); the
        // buffer refers to the object, the object to the mapping.
        match unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), host, length, 0, flags) } {
            0 => Ok(()),
            _ => Err(PyErr::fetch(slf.py())),
        }
    }
}

/// Calls `body` with the bytes of an object that has the buffer protocol.
pub fn with_bytes<T>(data: &Bound<'_, PyAny>, body: impl FnOnce(&[u8]) -> T) -> PyResult<T> {
    if let Ok(bytes) = data.cast::<PyBytes>() {
        return Ok(body(bytes.as_bytes()));
    }
    let buffer = PyUntypedBuffer::get(data)?;
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("the buffer is not C-contiguous"));
    }
    let length = buffer.len_bytes();
    if length == 0 {
        return Ok(body(&[]));
    }
    // SAFETY: a contiguous buffer of this length, which stays exported until `buffer` goes. Another
    // thread may change its bytes meanwhile, as it may with any function that takes a buffer; the
    // bytes are only copied.
    Ok(body(unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast(), length) }))
}

/// Adds the classes to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Memory>()?;
    module.add("RegionInfo", region_info(module.py())?)
}

fn region_info(py: Python<'_>) -> PyResult<&Py<PyAny>> {
    REGION_INFO.get_or_try_init(py, || {
        crate::named_tuple(py, "RegionInfo", &["guest_addr", "size", "user_addr", "offset"])
    })
}

fn region(mapping: Arc<Mapping>, guest_addr: u64, offset: u64, user_addr: Option<u64>) -> Region {
    let user_addr = user_addr.unwrap_or(mapping.ptr() as u64);
    Region { guest_addr, size: mapping.len(), user_addr, offset, mapping }
}

fn map(fd: c_int, offset: u64, size: u64) -> PyResult<Arc<Mapping>> {
    if fd < 0 {
        let errno = libc::EBADF;
        return Err(memory_to_py(MemoryError::System { what: "fstat", offset, size, errno }));
    }
    // SAFETY: the descriptor is the caller's for the time of the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    Mapping::of_file(fd, offset, size).map_err(memory_to_py)
}
