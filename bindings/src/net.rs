//! Ports of network devices, and the data path between them and virtqueues.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use virtq_core::pump::net::{
    Counters, Hub, HubLink, Link, OpenError, PcapLink, Port, SinkLink, SourceLink, Tally, TapLink,
};

use crate::pump::PumpHandle;
use crate::queue::PyDeviceQueue;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<NetHub>()?;
    module.add_class::<NetPort>()?;
    module.add_class::<NetPump>()
}

/// ValueError for what the caller or a file got wrong, else OSError with errno, text and file name as
/// Python's own functions raise it.
fn to_py(py: Python<'_>, error: &io::Error, about: Option<&Path>) -> PyErr {
    if let Some(code) = error.raw_os_error() {
        let text = py.import("os").and_then(|os| os.getattr("strerror")?.call1((code,))?.extract());
        return match text {
            Ok::<String, _>(text) => {
                PyOSError::new_err((code, text, about.map(|path| path.as_os_str().to_owned())))
            }
            Err(error) => error,
        };
    }
    let text = match about {
        Some(about) => format!("{}: {error}", about.display()),
        None => error.to_string(),
    };
    match error.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => PyValueError::new_err(text),
        _ => PyOSError::new_err(text),
    }
}

fn refused(py: Python<'_>, refused: &OpenError) -> PyErr {
    to_py(py, &refused.error, refused.path.as_deref())
}

fn add<'py>(dict: &Bound<'py, PyDict>, prefix: &str, tally: &Tally) -> PyResult<()> {
    tally.each().try_for_each(|(name, value)| dict.set_item(format!("{prefix}{name}"), value))
}

#[pyclass(module = "virtq._core", frozen)]
pub struct NetHub {
    hub: Arc<Hub>,
}

#[pymethods]
impl NetHub {
    #[new]
    fn new() -> Self {
        Self { hub: Arc::new(Hub::new()) }
    }

    #[getter]
    fn members(&self) -> usize {
        self.hub.members()
    }
}

#[pyclass(module = "virtq._core", frozen)]
pub struct NetPort {
    port: Port,
    sink: Option<Arc<SinkLink>>,
    name: Option<String>,
}

impl NetPort {
    fn over(link: impl Link + 'static) -> Self {
        Self { port: Port::new(Arc::new(link)), sink: None, name: None }
    }
}

#[pymethods]
impl NetPort {
    #[staticmethod]
    #[pyo3(signature = (keep=0))]
    fn sink(keep: usize) -> Self {
        let sink = Arc::new(SinkLink::new(keep));
        Self { sink: Some(Arc::clone(&sink)), port: Port::new(sink), name: None }
    }

    #[staticmethod]
    #[pyo3(signature = (size=64, count=None))]
    fn source(py: Python<'_>, size: usize, count: Option<u64>) -> PyResult<Self> {
        SourceLink::new(size, count).map(Self::over).map_err(|error| to_py(py, &error, None))
    }

    #[staticmethod]
    fn hub(hub: &NetHub) -> Self {
        Self::over(HubLink::new(Arc::clone(&hub.hub)))
    }

    #[staticmethod]
    #[pyo3(signature = (name, pairs=1))]
    fn tap(py: Python<'_>, name: &str, pairs: u16) -> PyResult<Self> {
        let link = py.detach(|| TapLink::open(name, pairs)).map_err(|error| refused(py, &error))?;
        let name = Some(link.name().to_owned());
        Ok(Self { name, ..Self::over(link) })
    }

    #[staticmethod]
    #[pyo3(signature = (read=None, write=None))]
    fn pcap(py: Python<'_>, read: Option<PathBuf>, write: Option<PathBuf>) -> PyResult<Self> {
        let opened = py.detach(|| PcapLink::open(read.as_deref(), write.as_deref()));
        opened.map(Self::over).map_err(|error| refused(py, &error))
    }

    #[getter]
    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    #[getter]
    fn offers_offloads(&self) -> bool {
        self.port.link().offers_offloads()
    }

    fn set_offloads(&self, py: Python<'_>, features: u128) -> PyResult<()> {
        // Features above bit 63 exist, and none of them is an offload that a port knows.
        let set = self.port.link().set_offloads(features as u64);
        set.map_err(|error| to_py(py, &error, self.name.as_deref().map(Path::new)))
    }

    #[getter]
    fn kept<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        let frames = self.sink.as_ref().map(|sink| py.detach(|| sink.last())).unwrap_or_default();
        frames.iter().map(|frame| PyBytes::new(py, frame)).collect()
    }

    #[getter]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        add(&dict, "tx_", &self.port.transmitted())?;
        add(&dict, "rx_", &self.port.received())?;
        if let Some(sink) = self.sink.as_ref().filter(|sink| sink.keep() > 0) {
            dict.set_item("checksum", py.detach(|| sink.checksum()))?;
        }
        Ok(dict)
    }
}

#[pyclass(module = "virtq._core", frozen)]
pub struct NetPump {
    handle: PumpHandle,
    counters: Arc<Counters>,
}

#[pymethods]
impl NetPump {
    #[new]
    #[pyo3(signature = (port, queue, *, receive, pair=0, mergeable=false, mtu=None, wait="event", enabled=true))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        port: &NetPort,
        queue: &Bound<'_, PyDeviceQueue>,
        receive: bool,
        pair: u16,
        mergeable: bool,
        mtu: Option<u16>,
        wait: &str,
        enabled: bool,
    ) -> PyResult<Self> {
        let failed = |error: io::Error| to_py(py, &error, None);
        let poller = port.port.poller(pair).map_err(failed)?;
        let (handle, counters) = if receive {
            let (path, counters) = port.port.receive(pair, mergeable, mtu).map_err(failed)?;
            let name = format!("virtq-rx{pair}");
            (PumpHandle::start_beside(queue, &poller, &name, path, wait, enabled)?, counters)
        } else {
            let (path, counters) = port.port.transmit(pair).map_err(failed)?;
            let name = format!("virtq-tx{pair}");
            (PumpHandle::start_beside(queue, &poller, &name, path, wait, enabled)?, counters)
        };
        Ok(Self { handle, counters })
    }

    fn enable(&self, py: Python<'_>, on: bool) {
        self.handle.enable(py, on);
    }

    fn wake(&self, py: Python<'_>) {
        self.handle.wake(py);
    }

    #[getter]
    fn attention_fd(&self, py: Python<'_>) -> i32 {
        self.handle.attention_fd(py)
    }

    fn trouble(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.handle.trouble(py)
    }

    fn stop<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.handle.stop(py)
    }

    #[getter]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        add(&dict, "", &self.counters.read())?;
        Ok(dict)
    }
}
