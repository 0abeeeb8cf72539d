//! A Python handler for each buffer of a batch, called from a loop that is not Python.
//!
//! What a handler mostly returns, a number or None, completes its request here. A coroutine takes its
//! first step here, if the loop runs in a task: one that has nothing to wait for is through with it,
//! and never needs a task of its own. Everything else, awaitables, failures and nonsense, is for the
//! runner in Python to sort out.

use std::ptr;
use std::sync::Arc;

use pyo3::exceptions::PyException;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyInt, PyType};

use crate::batch::{PyRequest, Taken};

/// What is called for the requests that are not completed here.
pub struct Sequel<'a, 'py> {
    /// `finish(request, result)`: the result does not complete the request.
    pub finish: &'a Bound<'py, PyAny>,
    /// `failed(request, error)`: the handler raised.
    pub failed: &'a Bound<'py, PyAny>,
    /// `waits(request, coroutine, step)`: the handler's coroutine has begun, and `step` is what it
    /// waits for. With None no coroutine is begun; nor is one behind the first that waits, since the
    /// task in which all of them begin becomes that one's.
    pub waits: Option<&'a Bound<'py, PyAny>>,
}

/// Call `handler(request)` for each buffer; returns how many there were.
pub fn serve<'py>(
    py: Python<'py>,
    taken: Arc<Taken>,
    handler: &Bound<'py, PyAny>,
    mut sequel: Sequel<'_, 'py>,
) -> PyResult<usize> {
    let count = taken.len();
    let mut last: Option<Bound<'py, PyRequest>> = None;
    for index in 0..count {
        let request = next_request(py, last.take(), &taken, index)?;
        let mut outcome = call(handler, &request);
        if let (Some(waits), Ok(result)) = (sequel.waits, &outcome)
            && is_coroutine(result)?
        {
            let coroutine = result.clone();
            outcome = match first_step(&coroutine) {
                Ok(Step::Returned(result)) => Ok(result),
                Ok(Step::Waits(step)) => {
                    waits.call1((&request, coroutine, step))?;
                    sequel.waits = None;
                    continue;
                }
                // It ends its request and no other, unlike what ends the whole program.
                Err(error) if is_cancelled(py, &error)? => {
                    sequel.failed.call1((&request, error))?;
                    continue;
                }
                Err(error) => Err(error),
            };
        }
        match outcome {
            Ok(result) => {
                if !complete(&taken, index, &request, &result) {
                    sequel.finish.call1((&request, result))?;
                }
            }
            Err(error) if error.is_instance_of::<PyException>(py) => {
                sequel.failed.call1((&request, error))?;
            }
            Err(error) => return Err(error),
        }
        last = Some(request);
    }
    Ok(count)
}

/// What came of a coroutine's first step.
enum Step<'py> {
    Returned(Bound<'py, PyAny>),
    Waits(Bound<'py, PyAny>),
}

/// `coroutine.send(None)`, without an exception where it returns.
fn first_step<'py>(coroutine: &Bound<'py, PyAny>) -> PyResult<Step<'py>> {
    let py = coroutine.py();
    let mut result = ptr::null_mut();
    // SAFETY: the coroutine is held, None lives for ever. The result is ours unless it failed.
    unsafe {
        match ffi::PyIter_Send(coroutine.as_ptr(), ffi::Py_None(), &raw mut result) {
            ffi::PySendResult::PYGEN_RETURN => {
                Ok(Step::Returned(Bound::from_owned_ptr_or_err(py, result)?))
            }
            ffi::PySendResult::PYGEN_NEXT => {
                Ok(Step::Waits(Bound::from_owned_ptr_or_err(py, result)?))
            }
            ffi::PySendResult::PYGEN_ERROR => Err(PyErr::fetch(py)),
        }
    }
}

fn is_coroutine(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    static COROUTINE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = COROUTINE.import(value.py(), "types", "CoroutineType")?;
    Ok(value.get_type().is(class))
}

fn is_cancelled(py: Python<'_>, error: &PyErr) -> PyResult<bool> {
    static CANCELLED: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = CANCELLED.import(py, "asyncio", "CancelledError")?;
    Ok(error.is_instance(py, class))
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
