//! Coroutines of handlers, stepped without a task until they wait for something.
//!
//! The first step runs inside the batch, in a context of its own, with a stand-in as the current task; most handlers end
//! there. One that waits gets an `asyncio.Task` over a [`Driver`], which makes each further step a batch of its own.
#![allow(unsafe_code)]

use pyo3::exceptions::{PyBaseException, PyStopIteration};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pyo3::{PyTraverseError, PyVisit, ffi, intern};

use super::cell::GilCell;
use super::connection::Connection;
use super::core::Core;
use super::dispatch::{Done, with_current_of};

/// asyncio's ways to say which task is running, and ours to stand in for one.
pub struct Tasks {
    task: Py<PyAny>,
    stand_in: Py<PyAny>,
    swap: Py<PyAny>,
    running: Py<PyAny>,
}

impl Tasks {
    pub fn new(py: Python<'_>) -> PyResult<Self> {
        let module = py.import("libvnf.task")?;
        Ok(Self {
            task: py.import("asyncio")?.getattr("Task")?.unbind(),
            stand_in: module.getattr("StandIn")?.unbind(),
            swap: module.getattr("swap_current_task")?.unbind(),
            running: module.getattr("running")?.unbind(),
        })
    }
}

pub fn is_coroutine(object: &Py<PyAny>) -> bool {
    // SAFETY: a type check of a live object.
    unsafe { ffi::PyCoro_CheckExact(object.as_ptr()) != 0 }
}

enum Step {
    Waits(Py<PyAny>),
    Returned,
    Raised(PyErr),
}

fn send_none(py: Python<'_>, coroutine: &Py<PyAny>) -> Step {
    let mut result = std::ptr::null_mut();
    // SAFETY: a live coroutine and None; `result` becomes a new reference unless the answer is PYGEN_ERROR.
    unsafe {
        match ffi::PyIter_Send(coroutine.as_ptr(), ffi::Py_None(), &raw mut result) {
            ffi::PySendResult::PYGEN_NEXT => Step::Waits(Bound::from_owned_ptr(py, result).unbind()),
            ffi::PySendResult::PYGEN_RETURN => {
                drop(Bound::from_owned_ptr(py, result));
                Step::Returned
            }
            ffi::PySendResult::PYGEN_ERROR => Step::Raised(PyErr::fetch(py)),
        }
    }
}

/// The first step of a handler's coroutine, in a context of its own and without a task. Most end there.
pub fn begin_coroutine(py: Python<'_>, core: &Py<Core>, coroutine: Py<PyAny>, done: Done) {
    if let Err(error) = enter_stand_in(core.get(), py) {
        let (connection, request) = (done.connection(), done.request());
        Core::failed(core, py, connection, request, error);
        done.finish(py, core, true);
        return;
    }
    // SAFETY: a new context, entered and left around one step on this thread.
    let context = unsafe {
        let context = ffi::PyContext_CopyCurrent();
        Bound::from_owned_ptr_or_err(py, context)
    };
    let context = match context {
        Ok(context) => context,
        Err(error) => {
            Core::failed(core, py, done.connection(), done.request(), error);
            done.finish(py, core, true);
            return;
        }
    };
    // SAFETY: see above.
    unsafe { ffi::PyContext_Enter(context.as_ptr()) };
    let step = with_current_of(py, core, &done, || send_none(py, &coroutine));
    // SAFETY: see above; an exception in flight has been fetched already.
    unsafe { ffi::PyContext_Exit(context.as_ptr()) };
    match step {
        Step::Returned => {
            renew_stand_in(core.get(), py, None);
            done.finish(py, core, false);
        }
        Step::Raised(error) => {
            renew_stand_in(core.get(), py, None);
            if error.is_instance_of::<pyo3::exceptions::asyncio::CancelledError>(py) {
                done.finish(py, core, true);
                return;
            }
            Core::failed(core, py, done.connection(), done.request(), error);
            done.finish(py, core, true);
        }
        Step::Waits(awaited) => {
            done.suspended(py);
            let spare = done.clone_ref(py);
            let driver = Driver {
                core: core.clone_ref(py),
                state: GilCell::new(DriverState {
                    coroutine: Some(coroutine),
                    awaited: Some(awaited),
                    done: Some(done),
                }),
            };
            let tasks = &core.get().tasks;
            let made = Py::new(py, driver).and_then(|driver| {
                let options = PyDict::new(py);
                options.set_item(intern!(py, "loop"), &core.get().event_loop)?;
                options.set_item(intern!(py, "context"), &context)?;
                let task = tasks.task.bind(py).call((driver,), Some(&options))?;
                tasks.running.bind(py).call1((&task,))?;
                Ok(task)
            });
            match made {
                Ok(task) => renew_stand_in(core.get(), py, Some(&task)),
                Err(error) => {
                    renew_stand_in(core.get(), py, None);
                    Core::failed(core, py, spare.connection(), spare.request(), error);
                    spare.finish(py, core, true);
                }
            }
        }
    }
}

/// Makes a stand-in the loop's current task, so that `asyncio.timeout` and `TaskGroup` work before there is a task.
fn enter_stand_in(core: &Core, py: Python<'_>) -> PyResult<()> {
    if core.state.with(py, |state| state.stand_in_entered) {
        return Ok(());
    }
    let stand_in = match core.state.with(py, |state| state.stand_in.as_ref().map(|stand_in| stand_in.clone_ref(py))) {
        Some(stand_in) => stand_in,
        None => core.tasks.stand_in.call0(py)?,
    };
    let replaced = core.tasks.swap.call1(py, (&core.event_loop, &stand_in))?;
    core.state.with(py, |state| {
        state.stand_in_entered = true;
        (state.stand_in, state.replaced) = (Some(stand_in), Some(replaced));
    });
    Ok(())
}

/// At the end of the batch, and before a task of asyncio's goes on.
pub fn leave_stand_in(core: &Core, py: Python<'_>) {
    let replaced = core.state.with(py, |state| {
        if !state.stand_in_entered {
            return None;
        }
        state.stand_in_entered = false;
        state.replaced.take()
    });
    if let Some(replaced) = replaced
        && let Err(error) = core.tasks.swap.call1(py, (&core.event_loop, replaced))
    {
        error.write_unraisable(py, None);
    }
}

/// One stand-in serves a batch, unless a coroutine kept it: then it becomes the face of that coroutine's task.
fn renew_stand_in(core: &Core, py: Python<'_>, task: Option<&Bound<'_, PyAny>>) {
    let kept = core.state.with(py, |state| {
        let kept = state.stand_in.as_ref().is_some_and(|stand_in| {
            // SAFETY: a plain read of the reference count of a live object. Two are ours: the state's and asyncio's.
            unsafe { ffi::Py_REFCNT(stand_in.as_ptr()) > 2 }
        });
        if kept { state.stand_in.take() } else { None }
    });
    let Some(kept) = kept else { return };
    if let Some(task) = task
        && let Err(error) = kept.call_method1(py, intern!(py, "become"), (task,))
    {
        error.write_unraisable(py, None);
    }
    leave_stand_in(core, py);
}

struct DriverState {
    coroutine: Option<Py<PyAny>>,
    /// What the first step waits for; asyncio's task is given it first.
    awaited: Option<Py<PyAny>>,
    done: Option<Done>,
}

/// What `asyncio.Task` runs once a handler's coroutine waits: each further step is a batch of its own.
#[pyclass(frozen, module = "libvnf._native")]
pub struct Driver {
    core: Py<Core>,
    state: GilCell<DriverState>,
}

impl Driver {
    fn step(&self, py: Python<'_>, advance: impl FnOnce(&Py<PyAny>) -> Step) -> PyResult<Option<Py<PyAny>>> {
        let (coroutine, done) = self.state.with(py, |state| {
            (
                state.coroutine.as_ref().map(|coroutine| coroutine.clone_ref(py)),
                state.done.as_ref().map(|done| done.clone_ref(py)),
            )
        });
        let (Some(coroutine), Some(done)) = (coroutine, done) else {
            return Ok(None);
        };
        self.core.get().enter(py);
        let step = with_current_of(py, &self.core, &done, || advance(&coroutine));
        let result = match step {
            Step::Waits(awaited) => Ok(Some(awaited)),
            Step::Returned => {
                self.finish(py, false);
                Ok(None)
            }
            Step::Raised(error) => {
                if error.is_instance_of::<pyo3::exceptions::PyException>(py) {
                    Core::failed(&self.core, py, done.connection(), done.request(), error);
                    self.finish(py, true);
                    Ok(None)
                } else {
                    self.finish(py, true);
                    if matches!(done, Done::Session { .. })
                        && let Some(connection) = done.connection()
                    {
                        Connection::abort_with(connection, py, "cancelled");
                    }
                    Err(error)
                }
            }
        };
        Core::leave(&self.core, py)?;
        result
    }

    fn finish(&self, py: Python<'_>, failed: bool) {
        let (done, coroutine) = self.state.with(py, |state| (state.done.take(), state.coroutine.take()));
        drop(coroutine);
        if let Some(done) = done {
            done.finish(py, &self.core, failed);
        }
    }
}

#[pymethods]
impl Driver {
    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        if let Some(awaited) = self.state.with(py, |state| state.awaited.take()) {
            return Ok(Some(awaited));
        }
        self.step(py, |coroutine| send_none(py, coroutine))
    }

    #[pyo3(signature = (value, /))]
    fn send(&self, py: Python<'_>, value: Py<PyAny>) -> PyResult<Py<PyAny>> {
        drop(value);
        self.__next__(py)?.ok_or_else(|| PyStopIteration::new_err(()))
    }

    #[pyo3(signature = (kind, value=None, traceback=None, /))]
    fn throw(
        &self,
        py: Python<'_>,
        kind: Py<PyAny>,
        value: Option<Py<PyAny>>,
        traceback: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        drop(traceback);
        let awaited = self.state.with(py, |state| state.awaited.take());
        drop(awaited);
        let error = match (value, kind.bind(py).cast::<PyBaseException>()) {
            (Some(value), _) => value,
            (None, Ok(_)) => kind,
            (None, Err(_)) => kind.call0(py)?,
        };
        self.step(py, |coroutine| match coroutine.call_method1(py, intern!(py, "throw"), (error,)) {
            Ok(awaited) => Step::Waits(awaited),
            Err(error) if error.is_instance_of::<PyStopIteration>(py) => Step::Returned,
            Err(error) => Step::Raised(error),
        })?
        .ok_or_else(|| PyStopIteration::new_err(()))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let (coroutine, awaited) = self.state.with(py, |state| {
            (state.coroutine.as_ref().map(|coroutine| coroutine.clone_ref(py)), state.awaited.take())
        });
        drop(awaited);
        if let Some(coroutine) = coroutine {
            self.core.get().enter(py);
            let closed = coroutine.call_method0(py, intern!(py, "close"));
            self.finish(py, true);
            Core::leave(&self.core, py)?;
            closed?;
        }
        Ok(())
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.core)?;
        self.state
            .peek(|state| {
                visit.call(&state.coroutine)?;
                visit.call(&state.awaited)?;
                match &state.done {
                    Some(done) => {
                        visit.call(done.connection())?;
                        visit.call(done.request())
                    }
                    None => Ok(()),
                }
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.state.with(py, |state| (state.coroutine.take(), state.awaited.take(), state.done.take()));
        drop(old);
    }
}
