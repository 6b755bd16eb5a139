//! `Splice`: two kernel sockets joined by the native thread.

use std::os::fd::{AsRawFd, OwnedFd};

use pyo3::exceptions::PyConnectionError;
use pyo3::prelude::*;

use super::connection::Connection;
use super::splice_relay::Spliced;
use super::wire::Wire;
use crate::splice;

#[pyclass(frozen, module = "libvnf._native")]
pub struct Splice(splice::Splice);

impl Splice {
    pub fn moved(&self) -> u64 {
        let outcome = self.0.outcome();
        outcome.forth + outcome.back
    }

    pub fn stop(&self) {
        self.0.stop();
    }
}

/// The thread has a descriptor of its own: the connection may close its one at any time.
fn duplicate(connection: &Bound<'_, Connection>) -> PyResult<OwnedFd> {
    let py = connection.py();
    connection.get().check_spliceable(py)?;
    let socket = connection.get().state.with(py, |state| match &state.wire {
        Wire::Socket(stream) => Some(stream.get().duplicate(py)),
        _ => None,
    });
    Ok(socket.ok_or_else(|| PyConnectionError::new_err("splice: not a kernel socket"))??)
}

#[pymethods]
impl Splice {
    #[new]
    #[pyo3(signature = (first, second, /))]
    fn new(first: &Bound<'_, Connection>, second: &Bound<'_, Connection>) -> PyResult<Py<Self>> {
        let py = first.py();
        let splice = Py::new(py, Self(splice::Splice::start(duplicate(first)?, duplicate(second)?)?))?;
        for connection in [first, second] {
            let spliced = Spliced::Thread { splice: splice.clone_ref(py), seen: 0 };
            connection.get().state.with(py, |state| state.spliced = Some(Box::new(spliced)));
        }
        Ok(splice)
    }

    #[getter]
    fn done_fd(&self) -> i32 {
        self.0.done_fd().as_raw_fd()
    }

    fn result(&self) -> (u64, u64, Option<String>) {
        let outcome = self.0.outcome();
        (outcome.forth, outcome.back, outcome.error)
    }

    fn close(&self) {
        self.stop();
    }
}
