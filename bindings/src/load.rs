//! Load without the interpreter: both halves of a ring, and the driver's end of a network device.

use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use virtq_core::pump::distance;
use virtq_core::pump::loopback::{self, Direction, LoopError, LoopSetup};
use virtq_core::pump::net::load::{self, Load, LoadError, LoadSetup};
use virtq_core::queue::DriverQueue;

use crate::errors::{VirtqError, to_py};
use crate::queue::PyDriverQueue;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(line_round_trip, module)?)?;
    module.add_class::<RingLoop>()?;
    module.add_class::<NetLoad>()
}

fn duration(seconds: f64, most: Duration) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| !duration.is_zero() && *duration <= most)
        .ok_or_else(|| {
            let most = most.as_secs();
            PyValueError::new_err(format!("seconds {seconds} is not above 0 and at most {most}"))
        })
}

/// One run at a time.
fn only<T>(running: &Mutex<T>) -> PyResult<MutexGuard<'_, T>> {
    match running.try_lock() {
        Ok(free) => Ok(free),
        Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => Err(PyOSError::new_err("it runs already")),
    }
}

fn unsigned<T: TryFrom<i128>>(name: &str, value: i128) -> PyResult<T> {
    T::try_from(value).map_err(|_| PyValueError::new_err(format!("{name} {value} is out of range")))
}

#[pyfunction]
fn line_round_trip(py: Python<'_>, one: usize, other: usize) -> PyResult<Option<f64>> {
    for cpu in [one, other] {
        if !loopback::may_run_on(cpu) {
            let text = format!("this process may not use processor {cpu}");
            return Err(PyValueError::new_err(text));
        }
    }
    Ok(py.detach(|| distance::round_trip(one, other)).map(|time| time.as_secs_f64()))
}

#[pyclass(module = "virtq._core", frozen)]
pub struct RingLoop {
    ring: Mutex<loopback::RingLoop>,
}

#[pymethods]
impl RingLoop {
    #[new]
    #[pyo3(signature = (features, size, *, direction="send", batch=32, chain=1, length=64, indirect=false, event=false, regions=1, depth=None, spread=false, pin=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        features: u128,
        size: i128,
        direction: &str,
        batch: i128,
        chain: i128,
        length: i128,
        indirect: bool,
        event: bool,
        regions: i128,
        depth: Option<i128>,
        spread: bool,
        pin: Option<(i128, i128)>,
    ) -> PyResult<Self> {
        let direction = match direction {
            "send" => Direction::Send,
            "receive" => Direction::Receive,
            "both" => Direction::Both,
            _ => {
                return Err(PyValueError::new_err(format!(
                    "direction is {direction:?}, not one of \"send\", \"receive\" and \"both\""
                )));
            }
        };
        let pin = pin
            .map(|(driver, device)| {
                Ok::<_, PyErr>((unsigned("pin", driver)?, unsigned("pin", device)?))
            })
            .transpose()?;
        let setup = LoopSetup {
            // No feature above bit 63 shapes a ring.
            features: features as u64,
            size: unsigned("size", size)?,
            direction,
            batch: unsigned("batch", batch)?,
            chain: unsigned("chain", chain)?,
            length: unsigned("length", length)?,
            indirect,
            event,
            regions: unsigned("regions", regions)?,
            depth: depth.map(|depth| unsigned("depth", depth)).transpose()?,
            spread,
            pin,
        };
        let ring = loopback::RingLoop::new(setup).map_err(to_py)?;
        Ok(Self { ring: Mutex::new(ring) })
    }

    fn run<'py>(&self, py: Python<'py>, seconds: f64) -> PyResult<Bound<'py, PyDict>> {
        let duration = duration(seconds, loopback::RUN_MAX)?;
        let mut guard = only(&self.ring)?;
        let ring = &mut *guard;
        let report = py.detach(|| ring.run(duration)).map_err(|error| match error {
            LoopError::Queue(error) => to_py(error),
            mismatch @ LoopError::Mismatch { .. } => VirtqError::new_err(mismatch.to_string()),
        })?;
        let dict = PyDict::new(py);
        dict.set_item("seconds", report.seconds)?;
        for (name, value) in [
            ("buffers", report.buffers),
            ("batches", report.batches),
            ("kicks_sent", report.kicks_sent),
            ("calls_sent", report.calls_sent),
            ("used_entries", report.used_entries),
            ("bytes", report.bytes),
            ("verified", report.verified),
        ] {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }
}

#[pyclass(module = "virtq._core", frozen)]
pub struct NetLoad {
    load: Mutex<Load>,
    transmit: Option<Py<PyDriverQueue>>,
    receive: Option<Py<PyDriverQueue>>,
}

fn load_error(error: LoadError) -> PyErr {
    match error {
        LoadError::Queue(error) => to_py(error),
        other => VirtqError::new_err(other.to_string()),
    }
}

#[pymethods]
impl NetLoad {
    #[new]
    #[pyo3(signature = (transmit, receive, *, transmit_memory=0, receive_memory=0, length=64, batch=32, mergeable=false, header_bytes=12, buffer_bytes=1536, pin=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        transmit: Option<Py<PyDriverQueue>>,
        receive: Option<Py<PyDriverQueue>>,
        transmit_memory: u64,
        receive_memory: u64,
        length: i128,
        batch: i128,
        mergeable: bool,
        header_bytes: i128,
        buffer_bytes: i128,
        pin: Option<i128>,
    ) -> PyResult<Self> {
        let (out, into) = (transmit.as_ref(), receive.as_ref());
        if out.zip(into).is_some_and(|(out, into)| out.is(into)) || out.or(into).is_none() {
            return Err(PyValueError::new_err("a load needs one queue, or two different ones"));
        }
        let setup = LoadSetup {
            length: unsigned("length", length)?,
            batch: unsigned("batch", batch)?,
            mergeable,
            header_bytes: unsigned("header_bytes", header_bytes)?,
            buffer_bytes: unsigned("buffer_bytes", buffer_bytes)?,
            pin: pin.map(|cpu| unsigned("pin", cpu)).transpose()?,
        };
        let out = out.map(|queue| queue.bind(py).get().lock());
        let into = into.map(|queue| queue.bind(py).get().lock());
        let made = Load::new(
            setup,
            out.as_deref().map(|queue| (queue, transmit_memory)),
            into.as_deref().map(|queue| (queue, receive_memory)),
        );
        drop((out, into));
        Ok(Self { load: Mutex::new(made.map_err(to_py)?), transmit, receive })
    }

    /// Bytes of guest memory that the packet buffers of a queue of `size` slots need.
    #[staticmethod]
    fn memory_bytes(size: u16, buffer_bytes: u32) -> u64 {
        load::slab_bytes(size, buffer_bytes as usize)
    }

    fn run<'py>(&self, py: Python<'py>, seconds: f64) -> PyResult<Bound<'py, PyDict>> {
        let duration = duration(seconds, load::RUN_MAX)?;
        let mut guard = only(&self.load)?;
        let load = &mut *guard;
        let queue =
            |queue: &Option<Py<PyDriverQueue>>| queue.as_ref().map(|queue| queue.clone_ref(py));
        let (out, into) = (queue(&self.transmit), queue(&self.receive));
        let (out, into) =
            (out.as_ref().map(|queue| queue.get()), into.as_ref().map(|queue| queue.get()));
        let report = py.detach(|| {
            let mut out = out.map(PyDriverQueue::lock);
            let mut into = into.map(PyDriverQueue::lock);
            let queues: [Option<&mut DriverQueue>; 2] = [out.as_deref_mut(), into.as_deref_mut()];
            // On a thread of its own, so that pinning it leaves the caller where it is.
            let [out, into] = queues;
            std::thread::scope(|scope| scope.spawn(|| load.run(out, into, duration)).join())
        });
        let report = match report {
            Ok(report) => report.map_err(load_error)?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let dict = PyDict::new(py);
        dict.set_item("seconds", report.seconds)?;
        for (name, value) in [
            ("buffers", report.transmitted + report.received),
            ("transmitted", report.transmitted),
            ("received", report.received),
            ("bytes", report.bytes),
            ("batches", report.batches),
            ("kicks_sent", report.kicks_sent),
            ("used_entries", report.used_entries),
            ("verified", report.verified),
            ("malformed", report.malformed),
        ] {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }
}
