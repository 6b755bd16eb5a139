//! The native half of `libvnf.Request`: who carries it, and its end.
#![allow(unsafe_code)]

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit, ffi};

use super::cell::GilCell;
use super::connection::Connection;
use super::core::Core;

#[derive(Default)]
struct State {
    core: Option<Py<Core>>,
    /// The connection whose message began it.
    origin: Option<Py<Connection>>,
    id: Option<Py<PyAny>>,
    carriers: u32,
    /// An attribute was set, or the dictionary of attributes given out: somebody's data is in it.
    touched: bool,
    ended: bool,
}

/// One request's state, across connections.
#[pyclass(frozen, subclass, module = "libvnf._native")]
pub struct Request(GilCell<State>);

impl Request {
    /// Begins the life of a fresh object: it belongs to `core`, came by `origin`, and its handler carries it.
    pub fn begin(&self, py: Python<'_>, core: &Py<Core>, origin: Option<&Py<Connection>>, id: Option<Py<PyAny>>) {
        let (core, origin) = (core.clone_ref(py), origin.map(|origin| origin.clone_ref(py)));
        let old = self.0.with(py, |state| {
            std::mem::replace(state, State { core: Some(core), origin, id, carriers: 1, touched: false, ended: false })
        });
        drop(old);
    }

    fn check_thread(&self, py: Python<'_>) -> PyResult<()> {
        let core = self.0.with(py, |state| state.core.as_ref().map(|core| core.clone_ref(py)));
        core.map_or(Ok(()), |core| core.get().check_thread())
    }

    pub fn is_ended(&self, py: Python<'_>) -> bool {
        self.0.with(py, |state| state.ended)
    }

    /// Whether nothing distinguishes it from a fresh one, so that it may serve the next message.
    pub fn is_blank(&self, py: Python<'_>) -> bool {
        self.0.with(py, |state| !state.touched)
    }

    /// Whether its handler has left it as it began.
    pub fn is_fresh(&self, py: Python<'_>) -> bool {
        self.0.with(py, |state| !state.ended && !state.touched && state.carriers == 1)
    }

    pub fn take_hold(&self, py: Python<'_>) -> bool {
        self.0.with(py, |state| {
            if state.ended {
                return false;
            }
            state.carriers += 1;
            true
        })
    }

    pub fn let_go(&self, py: Python<'_>) {
        let last = self.0.with(py, |state| {
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
        let found = self.0.with(py, |state| {
            if state.ended {
                return None;
            }
            state.ended = true;
            state
                .core
                .as_ref()
                .map(|core| (core.clone_ref(py), state.origin.take(), state.id.as_ref().map(|id| id.clone_ref(py))))
        });
        if let Some((core, origin, id)) = found {
            core.get().request_ended(py, origin.as_ref(), id.as_ref());
        }
    }
}

#[pymethods]
impl Request {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, pyo3::types::PyTuple>, _kwargs: Option<&Bound<'_, pyo3::types::PyDict>>) -> Self {
        Self(GilCell::new(State::default()))
    }

    #[getter]
    fn ended(&self, py: Python<'_>) -> bool {
        self.is_ended(py)
    }

    #[getter]
    fn id(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.0.with(py, |state| state.id.as_ref().map(|id| id.clone_ref(py)))
    }

    #[getter]
    fn core(&self, py: Python<'_>) -> Option<Py<Core>> {
        self.0.with(py, |state| state.core.as_ref().map(|core| core.clone_ref(py)))
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

    fn __setattr__(slf: &Bound<'_, Self>, name: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        slf.get().0.with(slf.py(), |state| state.touched = true);
        // SAFETY: three live objects and the generic setter, which is what the slot would hold without this method.
        let set = unsafe { ffi::PyObject_GenericSetAttr(slf.as_ptr(), name.as_ptr(), value.as_ptr()) };
        if set == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }

    /// The dictionary of attributes. Who has it may write into it.
    fn attributes(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        slf.get().0.with(slf.py(), |state| state.touched = true);
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
        self.0
            .peek(|state| {
                visit.call(&state.origin)?;
                visit.call(&state.id)?;
                visit.call(&state.core)
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.0.with(py, |state| (state.origin.take(), state.id.take(), state.core.take()));
        drop(old);
    }
}
