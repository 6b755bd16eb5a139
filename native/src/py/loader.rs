//! `run_load` and `generate_frames`: the load generators, from a dictionary of options to a dictionary of results.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::load::frames::{self, FrameOptions, FrameReport};
use crate::load::options::{self, Options};
use crate::load::{self, LoadError, Report};

fn refused(error: &LoadError) -> PyErr {
    match error {
        LoadError::Config(_) => PyValueError::new_err(error.to_string()),
        _ => PyOSError::new_err(error.to_string()),
    }
}

fn parse(found: &Bound<'_, PyDict>) -> PyResult<Options> {
    let mut options = Options::default();
    for (key, value) in found {
        let key: String = key.extract()?;
        if value.is_none() {
            continue;
        }
        match key.as_str() {
            "endpoint" => options.endpoint = value.extract()?,
            "respond" => options.respond = value.extract()?,
            "transport" => options.transport = value.extract()?,
            "connections" => options.connections = value.extract()?,
            "outstanding" => options.outstanding = value.extract()?,
            "requests_per_connection" => options.requests_per_connection = value.extract()?,
            "rate" => options.rate = value.extract()?,
            "size" => options.size = value.extract()?,
            "id" => options.id = value.extract()?,
            "verify" => options.verify = value.extract()?,
            "duration_s" => options.duration_s = value.extract()?,
            "warmup_s" => options.warmup_s = value.extract()?,
            "timeout_s" => options.timeout_s = value.extract()?,
            "reset" => options.reset = value.extract()?,
            "cpu" => options.cpu = value.extract()?,
            "capture" => options.capture = value.extract()?,
            _ => return Err(PyValueError::new_err(format!("{key:?} is not an option of the load generator"))),
        }
    }
    Ok(options)
}

fn tell<'py>(py: Python<'py>, report: &Report) -> PyResult<Bound<'py, PyDict>> {
    let found = PyDict::new(py);
    found.set_item("requests", report.requests)?;
    found.set_item("seconds", report.seconds)?;
    found.set_item("rate", report.rate)?;
    found.set_item("unsent", report.unsent)?;
    found.set_item("connections_opened", report.connections_opened)?;
    found.set_item("connections_accepted", report.connections_accepted)?;
    found.set_item("echoed", report.echoed)?;
    found.set_item("cpu_seconds", report.cpu_seconds)?;
    found.set_item("mean_us", report.latency.mean() / 1_000.0)?;
    for (name, quantile) in [("p50_us", 0.5), ("p90_us", 0.9), ("p99_us", 0.99), ("p999_us", 0.999)] {
        found.set_item(name, report.latency_us(quantile))?;
    }
    found.set_item("max_us", report.latency.max() as f64 / 1_000.0)?;
    let errors = PyDict::new(py);
    for (name, count) in report.errors.named() {
        errors.set_item(name, count)?;
    }
    found.set_item("errors", errors)?;
    Ok(found)
}

/// Who is told about a run's progress, and what that raised.
struct Listener<'a> {
    progress: &'a Py<PyAny>,
    stop: &'a AtomicBool,
    raised: Option<PyErr>,
}

impl Listener<'_> {
    /// Calls `progress` with the dictionary that `fill` fills; when that returns True, or raises, the run ends.
    fn tell(&mut self, fill: impl FnOnce(&Bound<'_, PyDict>) -> PyResult<()>) {
        let told = Python::attach(|py| -> PyResult<bool> {
            py.check_signals()?;
            let found = PyDict::new(py);
            fill(&found)?;
            self.progress.bind(py).call1((found,))?.is_truthy()
        });
        match told {
            Ok(false) => {}
            Ok(true) => self.stop.store(true, Ordering::Relaxed),
            Err(error) => {
                self.raised.get_or_insert(error);
                self.stop.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// Runs on the calling thread, without the GIL but for the calls of `progress`; those end the run by returning True.
#[pyfunction]
#[pyo3(signature = (options, progress, /))]
pub fn run_load<'py>(options: &Bound<'py, PyDict>, progress: Py<PyAny>) -> PyResult<Bound<'py, PyDict>> {
    let py = options.py();
    let options = parse(options)?;
    let config = options::parse(&options).and_then(options::open).map_err(|error| refused(&error))?;
    let stop = AtomicBool::new(false);
    let mut listener = Listener { progress: &progress, stop: &stop, raised: None };
    let outcome = py.detach(|| {
        load::run(config, &stop, &mut |progressed| {
            listener.tell(|found| {
                found.set_item("phase", progressed.phase.name())?;
                found.set_item("seconds", progressed.seconds)?;
                found.set_item("requests", progressed.requests)?;
                found.set_item("rate", progressed.rate)?;
                found.set_item("errors", progressed.errors)?;
                found.set_item("p50_us", progressed.p50_us)?;
                found.set_item("p99_us", progressed.p99_us)
            });
        })
    });
    match listener.raised {
        Some(error) => Err(error),
        None => tell(py, &outcome.map_err(|error| refused(&error))?),
    }
}

fn parse_frames(found: &Bound<'_, PyDict>) -> PyResult<FrameOptions> {
    let mut options = FrameOptions::default();
    for (key, value) in found {
        let key: String = key.extract()?;
        if value.is_none() {
            continue;
        }
        match key.as_str() {
            "ports" => options.ports = value.extract()?,
            "frame" => options.frame = Some(value.extract()?),
            "size" => options.size = value.extract()?,
            "flows" => options.flows = value.extract()?,
            "vary_at" => options.vary_at = value.extract()?,
            "checksums_at" => options.checksums_at = value.extract()?,
            "expect" => options.expect = Some(value.extract()?),
            "both_ways" => options.both_ways = value.extract()?,
            "outstanding" => options.outstanding = Some(value.extract()?),
            "rate" => options.rate = value.extract()?,
            "duration_s" => options.duration_s = value.extract()?,
            "warmup_s" => options.warmup_s = value.extract()?,
            "timeout_s" => options.timeout_s = value.extract()?,
            "cpu" => options.cpu = value.extract()?,
            _ => return Err(PyValueError::new_err(format!("{key:?} is not an option of the frame generator"))),
        }
    }
    Ok(options)
}

fn tell_frames<'py>(py: Python<'py>, report: &FrameReport) -> PyResult<Bound<'py, PyDict>> {
    let found = PyDict::new(py);
    found.set_item("seconds", report.seconds)?;
    found.set_item("rate", report.rate)?;
    found.set_item("sent_rate", report.sent_rate)?;
    found.set_item("sent", report.sent)?;
    found.set_item("received", report.received)?;
    found.set_item("received_bytes", report.received_bytes)?;
    found.set_item("other", report.other)?;
    let ports = report.counters.iter().map(|counters| {
        let found = PyDict::new(py);
        counters.iter().try_for_each(|(name, count)| found.set_item(name, count)).map(|()| found)
    });
    found.set_item("ports", ports.collect::<PyResult<Vec<_>>>()?)?;
    Ok(found)
}

/// As `run_load`, of frames.
#[pyfunction]
#[pyo3(signature = (options, progress, /))]
pub fn generate_frames<'py>(options: &Bound<'py, PyDict>, progress: Py<PyAny>) -> PyResult<Bound<'py, PyDict>> {
    let py = options.py();
    let options = parse_frames(options)?;
    let stop = AtomicBool::new(false);
    let mut listener = Listener { progress: &progress, stop: &stop, raised: None };
    let outcome = py
        .detach(|| frames::run(&options, &stop, &mut |count| listener.tell(|found| found.set_item("received", count))));
    match listener.raised {
        Some(error) => Err(error),
        None => tell_frames(py, &outcome.map_err(|error| refused(&error))?),
    }
}

/// The round trip of a cache line between cpu 0 and 1.
#[pyfunction]
pub fn core_distance_ns(py: Python<'_>) -> PyResult<f64> {
    py.detach(|| load::core_distance((0, 1))).map_err(|error| refused(&error))
}
