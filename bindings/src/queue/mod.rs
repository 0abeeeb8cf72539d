//! Both halves of a virtqueue.

mod device;
mod driver;

use std::os::fd::{BorrowedFd, OwnedFd};

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;

use virtq_core::queue::Setup;
use virtq_core::ring::Position;

pub use device::PyDeviceQueue;
pub use driver::PyDriverQueue;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("Position", position_type(module.py())?)?;
    module.add_class::<PyDeviceQueue>()?;
    module.add_class::<PyDriverQueue>()
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

/// What both halves are made of.
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
