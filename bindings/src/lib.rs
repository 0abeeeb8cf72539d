//! What Python sees of virtq-core, as `virtq._core`. `virtq/_core.pyi` documents it.

mod batch;
mod blk;
mod blk_load;
mod errors;
mod inflight;
mod load;
mod memory;
mod net;
mod pump;
mod queue;
mod queue_load;
mod serve;
mod shared;
mod userfault;

use pyo3::prelude::*;
use pyo3::types::IntoPyDict;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    batch::register(module)?;
    blk::register(module)?;
    blk_load::register(module)?;
    errors::register(module)?;
    inflight::register(module)?;
    load::register(module)?;
    memory::register(module)?;
    net::register(module)?;
    queue::register(module)?;
    queue_load::register(module)?;
    userfault::register(module)
}

/// A new class made by `collections.namedtuple`.
fn named_tuple(py: Python<'_>, name: &str, fields: &[&str]) -> PyResult<Py<PyAny>> {
    let module = [("module", "virtq._core")].into_py_dict(py)?;
    let namedtuple = py.import("collections")?.getattr("namedtuple")?;
    Ok(namedtuple.call((name, fields.to_vec()), Some(&module))?.unbind())
}
