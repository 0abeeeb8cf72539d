//! The region in which device queues write down what they hold.

use std::ffi::c_int;
use std::os::fd::BorrowedFd;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use virtq_core::inflight::Region;

use crate::errors::memory_to_py;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Inflight>()
}

/// What device queues hold, in memory that outlives them.
#[pyclass(frozen, module = "virtq._core")]
pub struct Inflight {
    pub region: Region,
}

#[pymethods]
impl Inflight {
    #[new]
    fn new(fd: c_int, size: u64, offset: u64, queues: u16, queue_size: u16) -> PyResult<Self> {
        if fd < 0 {
            return Err(PyValueError::new_err(format!("{fd} is not a file descriptor")));
        }
        // SAFETY: the descriptor is the caller's for the time of the call.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let region = Region::map(fd, offset, size, queues, queue_size).map_err(memory_to_py)?;
        Ok(Self { region })
    }

    #[staticmethod]
    fn bytes(queues: u16, queue_size: u16, packed: bool) -> u64 {
        Region::size(queues, queue_size, packed)
    }
}
