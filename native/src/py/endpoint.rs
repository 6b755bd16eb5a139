//! What all connections of one server, or of one client, have in common; and the handlers of events.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyType;
use pyo3::{PyTraverseError, PyVisit};

use super::cell::{Counter, GilCell};
use super::client::Client;
use super::core::Core;
use super::framing::{FramingSpec, IdSpec};

/// What can happen to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Accept,
    Connect,
    Data,
    Sent,
    Writable,
    End,
    Close,
    Error,
}

impl Event {
    const NAMES: [(&'static str, Self); 8] = [
        ("accept", Self::Accept),
        ("connect", Self::Connect),
        ("data", Self::Data),
        ("sent", Self::Sent),
        ("writable", Self::Writable),
        ("end", Self::End),
        ("close", Self::Close),
        ("error", Self::Error),
    ];

    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, event)| *event == self).map_or("", |(name, _)| name)
    }

    pub fn parse(name: &str) -> PyResult<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, event)| *event).ok_or_else(|| {
            let known: Vec<_> = Self::NAMES.iter().map(|(name, _)| *name).collect();
            PyValueError::new_err(format!("{name:?} is not an event: expected one of {}", known.join(", ")))
        })
    }
}

/// One handler per event.
#[derive(Default)]
pub struct Handlers([Option<Py<PyAny>>; 8]);

impl Handlers {
    pub fn get(&self, event: Event) -> Option<&Py<PyAny>> {
        self.0[event as usize].as_ref()
    }

    /// Returns the handler that was there, to be dropped where Python code may run.
    pub fn set(&mut self, event: Event, handler: Option<Py<PyAny>>) -> Option<Py<PyAny>> {
        std::mem::replace(&mut self.0[event as usize], handler)
    }

    pub fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.0.iter().try_for_each(|handler| visit.call(handler))
    }
}

pub struct State {
    pub name: String,
    pub handler: Option<Py<PyAny>>,
    pub session: Option<Py<PyAny>>,
    pub request: Py<PyType>,
    pub handlers: Handlers,
    pub client: Option<Py<Client>>,
    pub accepting: bool,
    /// None: for ever. Looked at by the tick, once a second.
    pub idle_s: Option<f64>,
}

#[pyclass(frozen, module = "libvnf._native")]
pub struct Endpoint {
    pub core: Py<Core>,
    pub datagram: bool,
    pub framing: FramingSpec,
    pub request_id: Option<IdSpec>,
    /// What its requests send is held until what they wrote is durable.
    pub commits: bool,
    pub state: GilCell<State>,
    pub opened: Counter,
    pub closed: Counter,
    pub messages: Counter,
}

impl Endpoint {
    /// Without handlers, framing or ids; `new` gives those.
    pub fn plain(py: Python<'_>, core: Py<Core>, name: &str) -> Self {
        let request = core.get().request_type.clone_ref(py);
        Self {
            datagram: false,
            framing: FramingSpec::Pieces,
            request_id: None,
            commits: false,
            state: GilCell::new(State {
                name: name.into(),
                handler: None,
                session: None,
                request,
                handlers: Handlers::default(),
                client: None,
                accepting: true,
                idle_s: None,
            }),
            core,
            opened: Counter::default(),
            closed: Counter::default(),
            messages: Counter::default(),
        }
    }

    /// Whether it is a client's, which matches replies by id.
    pub fn matches_by_id(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| state.client.as_ref().is_some_and(|client| client.get().has_ids()))
    }
}

#[pymethods]
impl Endpoint {
    #[new]
    #[pyo3(signature = (core, name, /, *, datagram=false, framing=None, request_id=None, commit=false))]
    fn new(
        py: Python<'_>,
        core: Py<Core>,
        name: &str,
        datagram: bool,
        framing: Option<&Bound<'_, PyAny>>,
        request_id: Option<&Bound<'_, PyAny>>,
        commit: bool,
    ) -> PyResult<Self> {
        if commit {
            core.get().commits.begin();
        }
        let idle_s = datagram.then_some(core.get().limits.idle_s);
        let endpoint = Self {
            datagram,
            framing: FramingSpec::from_object(framing)?,
            request_id: IdSpec::from_object(request_id)?,
            commits: commit,
            ..Self::plain(py, core, name)
        };
        endpoint.state.with(py, |state| state.idle_s = idle_s);
        Ok(endpoint)
    }

    #[getter]
    fn name(&self, py: Python<'_>) -> String {
        self.state.with(py, |state| state.name.clone())
    }

    #[getter]
    fn open_connections(&self) -> u64 {
        self.opened.get() - self.closed.get()
    }

    #[getter]
    fn messages(&self) -> u64 {
        self.messages.get()
    }

    #[getter]
    fn opened(&self) -> u64 {
        self.opened.get()
    }

    #[getter]
    fn handler(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.state.with(py, |state| state.handler.as_ref().map(|handler| handler.clone_ref(py)))
    }

    #[setter]
    fn set_handler(&self, py: Python<'_>, handler: Option<Py<PyAny>>) {
        let old = self.state.with(py, |state| std::mem::replace(&mut state.handler, handler));
        drop(old);
    }

    #[getter]
    fn session(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.state.with(py, |state| state.session.as_ref().map(|session| session.clone_ref(py)))
    }

    #[setter]
    fn set_session(&self, py: Python<'_>, session: Option<Py<PyAny>>) {
        let old = self.state.with(py, |state| std::mem::replace(&mut state.session, session));
        drop(old);
    }

    #[getter]
    fn request(&self, py: Python<'_>) -> Py<PyType> {
        self.state.with(py, |state| state.request.clone_ref(py))
    }

    #[setter]
    fn set_request(&self, py: Python<'_>, request: Py<PyType>) {
        let old = self.state.with(py, |state| std::mem::replace(&mut state.request, request));
        drop(old);
    }

    #[getter]
    fn accepting(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| state.accepting)
    }

    #[setter]
    fn set_accepting(&self, py: Python<'_>, accepting: bool) {
        self.state.with(py, |state| state.accepting = accepting);
    }

    #[getter]
    fn idle_s(&self, py: Python<'_>) -> Option<f64> {
        self.state.with(py, |state| state.idle_s)
    }

    #[setter]
    fn set_idle_s(&self, py: Python<'_>, idle_s: Option<f64>) {
        self.state.with(py, |state| state.idle_s = idle_s);
    }

    #[pyo3(signature = (event, handler, /))]
    fn on(&self, py: Python<'_>, event: &str, handler: Option<Py<PyAny>>) -> PyResult<()> {
        let event = Event::parse(event)?;
        let old = self.state.with(py, |state| state.handlers.set(event, handler));
        drop(old);
        Ok(())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.core)?;
        if let FramingSpec::Python(function) = &self.framing {
            visit.call(function)?;
        }
        if let Some(IdSpec::Python(function)) = &self.request_id {
            visit.call(function)?;
        }
        self.state
            .peek(|state| {
                visit.call(&state.handler)?;
                visit.call(&state.session)?;
                visit.call(&state.request)?;
                visit.call(&state.client)?;
                state.handlers.traverse(visit)
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.state.with(py, |state| {
            (state.handler.take(), state.session.take(), state.client.take(), std::mem::take(&mut state.handlers))
        });
        drop(old);
    }
}
