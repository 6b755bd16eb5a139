//! `@vnf.frames`: frames that a VNF's author decides about, in batches or one by one.
//!
//! A connection stands for the port: its handler gets each frame as a message, by the same dispatch as everything else
//! (requests, coroutines, request ids), and errors are told to it. A handler of batches gets many at once (`batch.rs`).

mod batch;
mod burst;
mod columns;
mod frame;
mod rewriting;
mod store;
mod verdict;

use std::time::Instant;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyString;
use pyo3::{PyTraverseError, PyVisit};

pub use batch::Batch;
pub use columns::Column;
pub use frame::{Frame, settle};
pub use verdict::{CLOSED, Decision};

use self::batch::Batches;
use super::connection::Connection;
use super::engine::Engine;
use super::wire::Wire;
use crate::packet::Slot;

/// Who decides about the frames of a port.
pub enum Handler {
    /// This connection's handler, one by one.
    PerFrame(Py<Connection>),
    /// This function, many at once.
    Batches(Box<Batches>),
}

impl Handler {
    pub fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Self::PerFrame(connection) => visit.call(connection),
            Self::Batches(batches) => batches.traverse(visit),
        }
    }
}

/// Gives frames of port `index`, which has a handler, to that; leaves those for the port's own host. Inside a batch.
pub fn deliver(engine: &Py<Engine>, py: Python<'_>, index: usize, _now: Instant, frames: &mut Vec<Slot>) {
    let one_by_one = engine.get().state.with(py, |state| match &state.ports.get(index)?.handler {
        Some(Handler::PerFrame(connection)) => Some(connection.clone_ref(py)),
        _ => None,
    });
    match one_by_one {
        Some(connection) => {
            if !frames.is_empty() {
                burst::run(engine, py, index, &connection, frames);
            }
        }
        None => {
            for slot in frames.drain(..) {
                if !engine.get().add_to_batch(py, index, &slot) {
                    Batch::run(engine, py, index);
                    engine.get().add_to_batch(py, index, &slot);
                }
            }
            Batch::run(engine, py, index);
        }
    }
    engine.get().state.with(py, |state| {
        if let Some(open) = state.ports.get_mut(index) {
            frames.append(&mut open.accepted);
        }
    });
}

/// From now on the frames of a port are for `connection`, which stands for the port; many at once for `batches`.
#[pyfunction]
#[pyo3(signature = (engine, port, connection, batches=None, /))]
pub fn attach_frames(
    engine: Py<Engine>,
    port: &Bound<'_, PyString>,
    connection: Py<Connection>,
    batches: Option<Py<PyAny>>,
) -> PyResult<()> {
    let py = port.py();
    let inner = engine.get();
    inner.core.get().check_thread()?;
    let index = usize::from(inner.port_named(port)?);
    let handler = match batches {
        None => Handler::PerFrame(connection.clone_ref(py)),
        Some(handler) => Handler::Batches(Box::new(Batches::new(connection.clone_ref(py), handler))),
    };
    let rest = inner.state.with(py, |state| {
        let open = &mut state.ports[index];
        if open.handler.is_some() {
            return Some(handler);
        }
        (open.handler, open.has_handler) = (Some(handler), true);
        None
    });
    if let Some(rest) = rest {
        drop(rest);
        return Err(PyValueError::new_err(format!("the frames of {port} have a handler already")));
    }
    Connection::accepted(&connection, py, Wire::Port { engine, port: index });
    Ok(())
}
