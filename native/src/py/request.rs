//! The native half of `libvnf.Request`: who carries it, and its end.
#![allow(unsafe_code)]

use pyo3::exceptions::{PyBaseException, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit, ffi};

use super::cell::GilCell;
use super::commit::Writes;
use super::connection::Connection;
use super::core::Core;

#[derive(Default)]
pub struct State {
    pub core: Option<Py<Core>>,
    /// The connection whose message began it.
    pub origin: Option<Py<Connection>>,
    id: Option<Py<PyAny>>,
    pub carriers: u32,
    /// An attribute was set, or the dictionary of attributes given out: somebody's data is in it.
    pub touched: bool,
    pub ended: bool,
    /// Its server has `commit=`.
    pub commits: bool,
    pub writes: Option<Box<Writes>>,
}

/// One request's state, across connections.
#[pyclass(frozen, subclass, module = "libvnf._native")]
pub struct Request {
    pub state: GilCell<State>,
}

impl Request {
    /// Begins the life of a fresh object: it belongs to `core`, came by `origin`, and its handler carries it.
    pub fn begin(&self, py: Python<'_>, core: &Py<Core>, origin: Option<&Py<Connection>>, id: Option<Py<PyAny>>) {
        let commits = core.get().commits.any() && origin.is_some_and(|origin| origin.get().endpoint.get().commits);
        let (core, origin) = (core.clone_ref(py), origin.map(|origin| origin.clone_ref(py)));
        let old = self.state.with(py, |state| {
            let begun = State { core: Some(core), origin, id, carriers: 1, commits, ..State::default() };
            std::mem::replace(state, begun)
        });
        drop(old);
    }

    fn check_thread(&self, py: Python<'_>) -> PyResult<()> {
        let core = self.state.with(py, |state| state.core.as_ref().map(|core| core.clone_ref(py)));
        core.map_or(Ok(()), |core| core.get().check_thread())
    }

    pub fn commits(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| state.commits)
    }

    pub fn origin(&self, py: Python<'_>) -> Option<Py<Connection>> {
        self.state.with(py, |state| state.origin.as_ref().map(|origin| origin.clone_ref(py)))
    }

    pub fn is_ended(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| state.ended)
    }

    /// Whether nothing distinguishes it from a fresh one, so that it may serve the next message.
    pub fn is_blank(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| !state.touched)
    }

    /// Whether its handler has left it as it began.
    pub fn is_fresh(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| !state.ended && !state.touched && state.carriers == 1)
    }

    pub fn take_hold(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| {
            if state.ended {
                return false;
            }
            state.carriers += 1;
            true
        })
    }

    pub fn let_go(&self, py: Python<'_>) {
        let last = self.state.with(py, |state| {
            if state.ended || state.carriers == 0 {
                return false;
            }
            state.carriers -= 1;
            state.carriers == 0
        });
        if last {
            self.finish(py);
        }
    }

    /// Ends it, whoever still carries it.
    pub fn finish(&self, py: Python<'_>) {
        let found = self.state.with(py, |state| {
            if state.ended {
                return None;
            }
            state.ended = true;
            let told = state.writes.as_mut().is_some_and(|writes| !writes.at_end.is_empty());
            let id = state.id.as_ref().map(|id| id.clone_ref(py));
            state.core.as_ref().map(|core| (core.clone_ref(py), state.origin.take(), id, told))
        });
        let Some((core, origin, id, told)) = found else { return };
        if told {
            self.tell_end(py, &core);
        }
        core.get().request_ended(py, origin.as_ref(), id.as_ref());
    }
}

#[pymethods]
impl Request {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, pyo3::types::PyTuple>, _kwargs: Option<&Bound<'_, pyo3::types::PyDict>>) -> Self {
        Self { state: GilCell::new(State::default()) }
    }

    #[getter]
    fn ended(&self, py: Python<'_>) -> bool {
        self.is_ended(py)
    }

    #[getter]
    fn id(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.state.with(py, |state| state.id.as_ref().map(|id| id.clone_ref(py)))
    }

    #[getter]
    fn core(&self, py: Python<'_>) -> Option<Py<Core>> {
        self.state.with(py, |state| state.core.as_ref().map(|core| core.clone_ref(py)))
    }

    fn end(&self, py: Python<'_>) -> PyResult<()> {
        self.check_thread(py)?;
        self.finish(py);
        Ok(())
    }

    pub fn hold(&self, py: Python<'_>) -> PyResult<()> {
        self.check_thread(py)?;
        if self.take_hold(py) { Ok(()) } else { Err(PyRuntimeError::new_err("the request has ended")) }
    }

    fn release(&self, py: Python<'_>) -> PyResult<()> {
        self.check_thread(py)?;
        self.let_go(py);
        Ok(())
    }

    #[pyo3(signature = (function, /))]
    fn on_end(&self, py: Python<'_>, function: Py<PyAny>) -> PyResult<bool> {
        self.check_thread(py)?;
        Ok(self.tell_at_end(py, function))
    }

    fn await_commit(&self, py: Python<'_>) -> PyResult<bool> {
        self.check_thread(py)?;
        Ok(self.await_one(py))
    }

    fn committed(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().check_thread(slf.py())?;
        Self::one_committed(slf.as_unbound(), slf.py())
    }

    #[pyo3(signature = (error, /))]
    fn commit_failed(slf: &Bound<'_, Self>, error: &Bound<'_, PyBaseException>) -> PyResult<()> {
        slf.get().check_thread(slf.py())?;
        Self::one_failed(slf.as_unbound(), slf.py(), error)
    }

    fn __setattr__(slf: &Bound<'_, Self>, name: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        slf.get().state.with(slf.py(), |state| state.touched = true);
        // SAFETY: three live objects and the generic setter, which is what the slot would hold without this method.
        let set = unsafe { ffi::PyObject_GenericSetAttr(slf.as_ptr(), name.as_ptr(), value.as_ptr()) };
        if set == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }

    /// The dictionary of attributes. Who has it may write into it.
    fn attributes(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        slf.get().state.with(slf.py(), |state| state.touched = true);
        // SAFETY: a live object and the generic getter, a new reference or null with an exception set.
        unsafe {
            let found = ffi::PyObject_GenericGetDict(slf.as_ptr(), std::ptr::null_mut());
            Bound::from_owned_ptr_or_err(slf.py(), found).map(Bound::unbind)
        }
    }

    fn __delattr__(slf: &Bound<'_, Self>, name: &Bound<'_, PyAny>) -> PyResult<()> {
        // SAFETY: as above; null means delete.
        let set = unsafe { ffi::PyObject_GenericSetAttr(slf.as_ptr(), name.as_ptr(), std::ptr::null_mut()) };
        if set == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.state
            .peek(|state| {
                visit.call(&state.origin)?;
                visit.call(&state.id)?;
                state.writes.as_ref().map_or(Ok(()), |writes| writes.traverse(visit))?;
                visit.call(&state.core)
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old =
            self.state.with(py, |state| (state.origin.take(), state.id.take(), state.core.take(), state.writes.take()));
        drop(old);
    }
}
