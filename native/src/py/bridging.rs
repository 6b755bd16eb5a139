//! Ports that are only joined, for `vnf bridge`: a face of `crate::forward::run`.

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::capture::Capture;
use super::cell::GilCell;
use super::ports;
use crate::forward::run::{self, Ports};
use crate::port::Link;

#[derive(Default)]
struct State {
    /// Of each port, as it was given.
    names: Vec<(String, &'static str)>,
    /// None while it runs.
    ports: Option<Ports>,
}

#[pyclass(frozen, module = "libvnf._native")]
pub struct Bridge {
    state: GilCell<State>,
}

#[pymethods]
impl Bridge {
    #[new]
    fn new() -> Self {
        Self { state: GilCell::new(State { names: Vec::new(), ports: Some(Vec::new()) }) }
    }

    #[pyo3(signature = (name, options, /, *, capture=None))]
    fn add_port(
        &self,
        py: Python<'_>,
        name: String,
        options: &Bound<'_, PyDict>,
        capture: Option<Py<Capture>>,
    ) -> PyResult<()> {
        let (kind, port, _) = ports::open(&name, options, capture)?;
        self.state.with(py, |state| {
            let Some(ports) = &mut state.ports else { return Err(running()) };
            ports.push(port);
            state.names.push((name, kind));
            Ok(())
        })
    }

    #[pyo3(signature = (pairs, progress, /))]
    fn run(&self, py: Python<'_>, pairs: Vec<(usize, usize)>, progress: &Bound<'_, PyAny>) -> PyResult<()> {
        let (names, ports) = self.state.with(py, |state| (state.names.clone(), state.ports.take()));
        let mut ports = ports.ok_or_else(running)?;
        if pairs.iter().any(|&(one, two)| one == two || one.max(two) >= ports.len()) {
            self.state.with(py, |state| state.ports = Some(ports));
            return Err(PyValueError::new_err("pairs: expected two different ports each"));
        }
        let progress = progress.clone().unbind();
        let (ports, outcome) = py.detach(move || {
            let mut outcome = Ok(());
            run::run(&mut ports, &pairs, &mut |ports| {
                let told = Python::attach(|py| {
                    py.check_signals()?;
                    progress.bind(py).call1((rows(py, &names, ports)?,))?.is_truthy()
                });
                match told {
                    Ok(stops) => !stops,
                    Err(error) => {
                        outcome = Err(error);
                        false
                    }
                }
            });
            (ports, outcome)
        });
        self.state.with(py, |state| state.ports = Some(ports));
        outcome
    }

    fn ports<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        // Out of the cell, since making Python objects may run Python code.
        let (names, ports) = self.state.with(py, |state| (state.names.clone(), state.ports.take()));
        let ports = ports.ok_or_else(running)?;
        let found = rows(py, &names, &ports);
        self.state.with(py, |state| state.ports = Some(ports));
        found
    }

    fn close(&self, py: Python<'_>) {
        let ports = self.state.with(py, |state| {
            state.names.clear();
            state.ports.as_mut().map(std::mem::take)
        });
        drop(ports);
    }
}

fn running() -> PyErr {
    PyRuntimeError::new_err("the bridge runs")
}

fn rows<'py>(py: Python<'py>, names: &[(String, &'static str)], ports: &Ports) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for ((name, kind), port) in names.iter().zip(ports) {
        let row = PyDict::new(py);
        row.set_item("name", name)?;
        row.set_item("type", kind)?;
        row.set_item("link", if let Link::Down(reason) = port.link() { reason } else { "up".into() })?;
        row.set_item("peer", port.peer())?;
        let counters = PyDict::new(py);
        for (counter, value) in port.counters() {
            counters.set_item(counter, value)?;
        }
        row.set_item("counters", counters)?;
        list.append(row)?;
    }
    Ok(list)
}
