//! A block device under load, driven without the interpreter.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use virtq_core::pump::blk::load::{Content, Goal, Load, LoadError, Options, Report};
use virtq_core::queue::DriverQueue;

use crate::errors::{range_to_py, to_py};
use crate::memory::Memory;
use crate::queue::PyDriverQueue;

/// How long the queues are held, and signals wait, at most.
const SLICE: Duration = Duration::from_millis(50);
/// The longest run, in seconds.
const SECONDS_MAX: f64 = 3600.0;
/// Pieces of a request: header, data, status.
const PIECES: usize = 3;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<BlkLoad>()
}

#[pyclass(module = "virtq._core", frozen)]
pub struct BlkLoad {
    load: Mutex<Load>,
    running: AtomicBool,
    /// In an order that all loads have in common, so that two never wait for each other.
    queues: Vec<Py<PyDriverQueue>>,
}

#[pymethods]
impl BlkLoad {
    #[new]
    #[pyo3(signature = (memory, address, queues, *, capacity_sectors, block_bytes=4096, depth=32, batch=8, write_percent=0, random=true, wait="poll", seed=0, verify=None, verify_every=16))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        memory: &Memory,
        address: u64,
        mut queues: Vec<Bound<'_, PyDriverQueue>>,
        capacity_sectors: u64,
        block_bytes: u32,
        depth: u16,
        batch: u16,
        write_percent: u8,
        random: bool,
        wait: &str,
        seed: u64,
        verify: Option<&str>,
        verify_every: u32,
    ) -> PyResult<Self> {
        let event = match wait {
            "poll" => false,
            "event" => true,
            _ => return Err(wrong(format!("wait is {wait:?}, not \"poll\" or \"event\""))),
        };
        let verify = match verify {
            None => None,
            Some("pattern") => Some(Content::Pattern),
            Some("zeroes") => Some(Content::Zeroes),
            Some(other) => {
                let text = format!("verify is {other:?}, not \"pattern\", \"zeroes\" or None");
                return Err(wrong(text));
            }
        };
        let options = Options {
            capacity_sectors,
            block_bytes,
            depth,
            batch,
            write_percent,
            random,
            event,
            seed,
            verify,
            verify_every,
        };
        options.check().map_err(wrong)?;
        check(&queues, &options)?;
        let load = Load::new(&memory.snapshot(), address, queues.len(), options);
        queues.sort_by_key(|queue| queue.as_ptr().addr());
        Ok(Self {
            load: Mutex::new(load.map_err(range_to_py)?),
            running: AtomicBool::new(false),
            queues: queues.into_iter().map(Bound::unbind).collect(),
        })
    }

    #[staticmethod]
    #[pyo3(signature = (*, block_bytes=4096, depth=32, queues=1))]
    fn memory_bytes(block_bytes: u32, depth: u16, queues: u16) -> PyResult<u64> {
        let options = Options {
            capacity_sectors: u64::MAX,
            block_bytes,
            depth,
            batch: 1,
            write_percent: 0,
            random: false,
            event: false,
            seed: 0,
            verify: None,
            verify_every: 1,
        };
        options.check().map_err(wrong)?;
        Ok(options.arena_bytes(queues.into()))
    }

    fn run<'py>(&self, py: Python<'py>, seconds: f64) -> PyResult<Bound<'py, PyDict>> {
        if !(seconds > 0.0 && seconds <= SECONDS_MAX) {
            return Err(wrong(format!(
                "seconds is {seconds}, not above 0 and up to {SECONDS_MAX}"
            )));
        }
        self.reach(py, Goal::Time(Instant::now() + Duration::from_secs_f64(seconds)))
    }

    fn fill<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.reach(py, Goal::Fill)
    }

    #[getter]
    fn outstanding(&self) -> usize {
        self.lock().outstanding()
    }
}

impl BlkLoad {
    fn lock(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn reach<'py>(&self, py: Python<'py>, goal: Goal) -> PyResult<Bound<'py, PyDict>> {
        if self.running.swap(true, Ordering::Acquire) {
            return Err(wrong("the load is running, in another thread".into()));
        }
        let result = self.carry_out(py, goal);
        self.running.store(false, Ordering::Release);
        result.and_then(|()| dict(py, self.lock().report()))
    }

    /// Slice by slice: whoever looks at the load or a queue meanwhile waits with the interpreter
    /// lock held, so that lock must not be wanted while either is held.
    fn carry_out(&self, py: Python<'_>, goal: Goal) -> PyResult<()> {
        self.lock().begin(goal);
        while !py.detach(|| self.slice()).map_err(failure)? {
            py.check_signals()?;
        }
        Ok(())
    }

    fn slice(&self) -> Result<bool, LoadError> {
        let mut load = self.lock();
        let mut guards: Vec<MutexGuard<'_, DriverQueue>> = self
            .queues
            .iter()
            .map(|queue| queue.get().queue.lock().unwrap_or_else(|held| held.into_inner()))
            .collect();
        let mut queues: Vec<&mut DriverQueue> =
            guards.iter_mut().map(|guard| &mut **guard).collect();
        load.advance(&mut queues, Instant::now() + SLICE)
    }
}

fn wrong(text: String) -> PyErr {
    PyValueError::new_err(text)
}

fn failure(error: LoadError) -> PyErr {
    match error {
        LoadError::Queue(error) => to_py(error),
        stalled @ LoadError::Stalled { .. } => PyTimeoutError::new_err(stalled.to_string()),
    }
}

/// Whether the queues can take such a load.
fn check(queues: &[Bound<'_, PyDriverQueue>], options: &Options) -> PyResult<()> {
    if queues.is_empty() {
        return Err(wrong("queues is empty, at least one is needed".into()));
    }
    for (index, queue) in queues.iter().enumerate() {
        if let Some(first) = queues[..index].iter().position(|other| other.is(queue)) {
            return Err(wrong(format!("queues[{index}] is queues[{first}] once more")));
        }
        let queue = queue.get().queue.lock().unwrap_or_else(|held| held.into_inner());
        if queue.outstanding() > 0 {
            let count = queue.outstanding();
            return Err(wrong(format!("queues[{index}] has {count} buffers outstanding")));
        }
        let needed = queue.slots_needed(PIECES) * usize::from(options.depth);
        if needed > queue.free() {
            return Err(wrong(format!(
                "depth is {}, which takes {needed} slots: queues[{index}] has {}",
                options.depth,
                queue.free()
            )));
        }
        if options.event && queue.call_event().is_none() {
            return Err(wrong(format!("queues[{index}] has no call eventfd to wait for")));
        }
    }
    Ok(())
}

fn dict<'py>(py: Python<'py>, report: &Report) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in report.tally.named() {
        dict.set_item(name, value)?;
    }
    dict.set_item("seconds", report.seconds)?;
    dict.set_item("cpu_seconds", report.cpu_seconds)?;
    let latency = &report.latency_ns;
    for (name, quantile) in [("p50_ns", 0.5), ("p99_ns", 0.99), ("p999_ns", 0.999)] {
        dict.set_item(name, latency.value_at_quantile(quantile))?;
    }
    dict.set_item("min_ns", latency.min())?;
    dict.set_item("max_ns", latency.max())?;
    dict.set_item("mean_ns", latency.mean())?;
    dict.set_item("first_failure", report.first_failure.as_deref())?;
    Ok(dict)
}
