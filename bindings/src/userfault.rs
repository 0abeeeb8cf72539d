//! Pages that are still on their way, as Python sees them.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::memory::Memory;

/// A userfaultfd; documented in `virtq/_core.pyi`.
#[pyclass(module = "virtq._core", frozen)]
pub struct Userfault(Mutex<virtq_core::memory::Userfault>);

impl Userfault {
    fn inner(&self) -> std::sync::MutexGuard<'_, virtq_core::memory::Userfault> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Userfault {
    #[new]
    fn new() -> PyResult<Self> {
        Ok(Self(Mutex::new(virtq_core::memory::Userfault::open()?)))
    }

    fn fileno(&self) -> i32 {
        self.inner().fd().as_raw_fd()
    }

    /// The address in this process of each region, by guest address.
    #[staticmethod]
    fn bases(memory: &Memory) -> Vec<(u64, u64)> {
        let snapshot = memory.snapshot();
        snapshot.regions().iter().map(|it| (it.guest_addr, it.mapping.ptr() as u64)).collect()
    }

    fn register(&self, memory: &Memory) -> PyResult<()> {
        let inner = self.inner();
        for region in memory.snapshot().regions() {
            inner.register(&region.mapping)?;
        }
        Ok(())
    }

    fn watch(&self, socket: i32) -> PyResult<()> {
        if socket < 0 {
            return Err(PyValueError::new_err(format!("{socket} is not a descriptor")));
        }
        // SAFETY: borrowed for the call, during which the caller keeps it open.
        Ok(self.inner().watch(unsafe { BorrowedFd::borrow_raw(socket) })?)
    }

    fn release(&self) {
        self.inner().release();
    }
}

/// Adds the class to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Userfault>()
}
