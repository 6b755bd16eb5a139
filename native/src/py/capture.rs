//! `--capture FILE`: one file that all ports of an engine are written to (`port/capture`).

use std::io;
use std::path::PathBuf;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;

use super::cell::GilCell;
use crate::port::Port;
use crate::port::capture::{self, CaptureWriter};

#[pyclass(frozen, module = "libvnf._native")]
pub struct Capture {
    writer: GilCell<Option<CaptureWriter>>,
}

impl Capture {
    /// The same port, written to the file; as it was, when that is complete.
    pub fn around(&self, py: Python<'_>, port: Box<dyn Port>, name: &str) -> Box<dyn Port> {
        self.writer.with(py, |writer| match writer {
            Some(writer) => capture::capture(port, name, writer),
            None => port,
        })
    }
}

#[pymethods]
impl Capture {
    #[new]
    #[pyo3(signature = (path, /))]
    fn new(path: PathBuf) -> PyResult<Self> {
        let writer = CaptureWriter::create(&path).map_err(|error| failure(&error))?;
        Ok(Self { writer: GilCell::new(Some(writer)) })
    }

    #[getter]
    fn failure(&self, py: Python<'_>) -> Option<String> {
        self.writer.with(py, |writer| writer.as_ref().and_then(CaptureWriter::failure))
    }

    fn close(&self, py: Python<'_>) {
        let writer = self.writer.with(py, Option::take);
        // Waits for the thread that writes.
        py.detach(|| drop(writer));
    }
}

/// As Python's own: with number and words.
fn failure(error: &io::Error) -> PyErr {
    match error.raw_os_error() {
        Some(number) => PyOSError::new_err((number, io::Error::from_raw_os_error(number).to_string())),
        None => PyOSError::new_err(error.to_string()),
    }
}
