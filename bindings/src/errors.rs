//! The exceptions of the core, and which error becomes which.

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use virtq_core::error::QueueError;
use virtq_core::memory::MemoryError;

create_exception!(
    virtq._core,
    VirtqError,
    PyException,
    "Base of every error that the core raises."
);
create_exception!(
    virtq._core,
    MemoryError_,
    VirtqError,
    "A region, mapping or range of guest memory is not as asked; the text names the range."
);
create_exception!(
    virtq._core,
    TranslationMiss,
    MemoryError_,
    "A guest range has no mapping (yet): args == (text, address, length, writable)."
);
create_exception!(
    virtq._core,
    RingFault,
    VirtqError,
    "The other side broke the ring: args == (text, requirement id or \"\"). The queue stays broken."
);
create_exception!(
    virtq._core,
    QueueFull,
    VirtqError,
    "The ring has no room for what was to be added; nothing was added."
);
create_exception!(
    virtq._core,
    StaleBuffer,
    VirtqError,
    "The request was taken before the queue was stopped, reset or put it back; its outcome is void."
);

/// An error of a queue operation.
pub fn to_py(error: QueueError) -> PyErr {
    let text = error.to_string();
    match error {
        QueueError::Broken(fault) => RingFault::new_err((text, fault.requirement())),
        QueueError::Miss { address, length, writable } => {
            TranslationMiss::new_err((text, address, length, writable))
        }
        QueueError::Full { .. } => QueueFull::new_err(text),
        QueueError::Stale | QueueError::Stopped => StaleBuffer::new_err(text),
        QueueError::Invalid(_) => PyValueError::new_err(text),
    }
}

/// A mapping or region that was refused.
pub fn memory_to_py(error: MemoryError) -> PyErr {
    MemoryError_::new_err(error.to_string())
}

/// A range of guest memory that the caller named, not the other side: no ring is at fault.
pub fn range_to_py(error: QueueError) -> PyErr {
    match error {
        QueueError::Broken(fault) => MemoryError_::new_err(fault.to_string()),
        other => to_py(other),
    }
}

/// Adds the exceptions to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("VirtqError", py.get_type::<VirtqError>())?;
    module.add("MemoryError_", py.get_type::<MemoryError_>())?;
    module.add("TranslationMiss", py.get_type::<TranslationMiss>())?;
    module.add("RingFault", py.get_type::<RingFault>())?;
    module.add("QueueFull", py.get_type::<QueueFull>())?;
    module.add("StaleBuffer", py.get_type::<StaleBuffer>())
}
