//! A Python handler for each buffer of a batch, called from a loop that is not Python.
//!
//! What a handler mostly returns, a number or None, completes its request here. Everything else,
//! awaitables, failures and nonsense, is for the runner in Python to sort out.

use std::ptr;
use std::sync::Arc;

use pyo3::exceptions::PyException;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyInt;

use crate::batch::{PyRequest, Taken};

/// Call `handler(request)` for each buffer; returns how many there were. `finish(request, result)` is
/// called where the result does not complete the request, `failed(request, error)` where the handler
/// raised.
pub fn serve(
    py: Python<'_>,
    taken: Arc<Taken>,
    handler: &Bound<'_, PyAny>,
    finish: &Bound<'_, PyAny>,
    failed: &Bound<'_, PyAny>,
) -> PyResult<usize> {
    let count = taken.len();
    let mut last: Option<Bound<'_, PyRequest>> = None;
    for index in 0..count {
        let request = next_request(py, last.take(), &taken, index)?;
        match call(handler, &request) {
            Ok(result) => {
                if !complete(&taken, index, &request, &result) {
                    finish.call1((&request, result))?;
                }
            }
            Err(error) if error.is_instance_of::<PyException>(py) => {
                failed.call1((&request, error))?;
            }
            Err(error) => return Err(error),
        }
        last = Some(request);
    }
    Ok(count)
}

/// The object of the request before, if the handler has kept no reference to it, or a new one.
fn next_request<'py>(
    py: Python<'py>,
    last: Option<Bound<'py, PyRequest>>,
    taken: &Arc<Taken>,
    index: usize,
) -> PyResult<Bound<'py, PyRequest>> {
    if let Some(last) = last
        // SAFETY: reads the count of an object that we hold; we have the interpreter lock.
        && unsafe { ffi::Py_REFCNT(last.as_ptr()) } == 1
        && let Ok(mut request) = last.try_borrow_mut()
    {
        request.become_next(index);
        drop(request);
        return Ok(last);
    }
    Bound::new(py, PyRequest::new(taken, index))
}

/// `handler(request)`, without a tuple for the argument.
fn call<'py>(
    handler: &Bound<'py, PyAny>,
    request: &Bound<'py, PyRequest>,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: both are held during the call; the list ends with null. The result is ours, null with
    // an exception set.
    unsafe {
        let result = ffi::PyObject_CallFunctionObjArgs(
            handler.as_ptr(),
            request.as_ptr(),
            ptr::null_mut::<ffi::PyObject>(),
        );
        Bound::from_owned_ptr_or_err(handler.py(), result)
    }
}

/// Complete a request as its handler's result says; false if it does not say so plainly, or if that
/// is refused.
fn complete(
    taken: &Taken,
    index: usize,
    request: &Bound<'_, PyRequest>,
    result: &Bound<'_, PyAny>,
) -> bool {
    let written = if result.is_none() {
        match request.try_borrow() {
            Ok(request) => request.written(),
            Err(_) => return false,
        }
    } else if result.is_exact_instance_of::<PyInt>() {
        match result.extract::<u64>() {
            Ok(written) => written,
            Err(_) => return false,
        }
    } else {
        return false;
    };
    taken.complete(index, written).is_ok()
}
