//! The native half of `libvnf.Connection`: what an author calls.
//!
//! Its life stands in `life.rs`, how bytes come in in `inbound.rs`, how they leave in `outbound.rs`. One rule keeps both sound: no Python code
//! runs, and no Python object is dropped, while `state` is borrowed.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use pyo3::exceptions::{PyConnectionError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};
use pyo3::{PyTraverseError, PyVisit, intern};

use super::cell::GilCell;
use super::commit::Held;
use super::core::{Core, PoolKey};
use super::dispatch;
use super::endpoint::{Endpoint, Event, Handlers};
use super::framing::FramingSpec;
use super::outbound::HIGH_WATER;
use super::packet::{Account, Packet};
use super::request::Request;
use super::splice_relay::Spliced;
use super::wire::Wire;

/// Where a connection stands. Entered: Connecting by `connect`; Open by accept or when the transport is made; Closing by
/// `close` while something is still queued or to be told; Closed by `finish`, which nothing leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Connecting,
    Open,
    Closing,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    Connected,
    Readable,
    Writable,
    Closed,
}

impl Wait {
    fn parse(name: &str) -> PyResult<Self> {
        match name {
            "connected" => Ok(Self::Connected),
            "readable" => Ok(Self::Readable),
            "writable" => Ok(Self::Writable),
            "closed" => Ok(Self::Closed),
            _ => Err(PyValueError::new_err(format!(
                "{name:?}: expected \"connected\", \"readable\", \"writable\" or \"closed\""
            ))),
        }
    }
}

pub struct State {
    pub wire: Wire,
    pub phase: Phase,
    pub datagram: bool,
    pub framing: FramingSpec,
    /// This connection's own handler of messages, apart from the others because most connections out have just it.
    pub on_data: Option<Py<PyAny>>,
    pub handlers: Option<Box<Handlers>>,
    pub request: Option<Py<Request>>,
    author: Option<Py<PyAny>>,
    // Inbound.
    pub unread: Vec<u8>,
    pub unread_at: usize,
    /// Bytes after `unread_at` that hold no delimiter.
    pub searched: usize,
    /// Bytes needed before it is worth looking for a message again.
    pub needed: usize,
    pub queue: VecDeque<Py<Packet>>,
    pub busy: bool,
    pub paused: bool,
    pub throttled: bool,
    pub pumping: bool,
    pub reading_stopped: bool,
    pub peer_ended: bool,
    /// `take` has said so: an empty packet before was an empty message.
    pub end_told: bool,
    /// A client matches its messages, from `Client::add` on; until then (the handshake) they go to the inbox.
    pub matched: bool,
    // Outbound.
    pub out: Vec<u8>,
    pub out_datagrams: VecDeque<Box<[u8]>>,
    /// What may not leave before a commit; never empty.
    pub held: Option<Box<Held>>,
    pub dirty: bool,
    pub write_blocked: bool,
    /// More than the high-water mark waited when the socket was full.
    pub above_mark: bool,
    pub end_wanted: bool,
    pub end_sent: bool,
    pub asked_sent: bool,
    // Life.
    pub ids: Option<Py<PyDict>>,
    pub open_requests: u32,
    pub waiters: Vec<(Wait, Py<PyAny>)>,
    pub reason: Option<Cow<'static, str>>,
    /// Where it was and whither, for close handlers: (local, remote).
    pub was: Option<Box<(String, String)>>,
    pub error: Option<Py<PyAny>>,
    pub place: Option<usize>,
    pub last_tick: u32,
    pub account: Option<Arc<Account>>,
    pub pool: Option<Box<(PoolKey, usize)>>,
    pub finishing: bool,
    pub spliced: Option<Box<Spliced>>,
}

impl State {
    pub fn held_bytes(&self) -> usize {
        self.held.as_ref().map_or(0, |held| held.bytes)
    }
}

#[pyclass(frozen, subclass, weakref, module = "libvnf._native")]
pub struct Connection {
    pub core: Py<Core>,
    pub endpoint: Py<Endpoint>,
    pub state: GilCell<State>,
}

impl Connection {
    fn set_handler(slf: &Bound<'_, Self>, event: Event, handler: Option<Py<PyAny>>) -> PyResult<()> {
        let py = slf.py();
        slf.get().core.get().check_thread()?;
        let (old, waiting) = slf.get().state.with(py, |state| {
            if event == Event::Data {
                let waiting = state.unread.len() > state.unread_at || !state.queue.is_empty();
                return (std::mem::replace(&mut state.on_data, handler), waiting);
            }
            (state.handlers.get_or_insert_default().set(event, handler), false)
        });
        drop(old);
        if waiting {
            // What came before the handler did waits in the inbox.
            Core::pump_later(&slf.get().core, py, slf.as_unbound());
        }
        Ok(())
    }

    /// Sets a handler after a look at its parameters; returns it, so that it can decorate.
    fn register(slf: &Bound<'_, Self>, event: Event, handler: Py<PyAny>) -> PyResult<Py<PyAny>> {
        slf.get().core.get().check_handler(slf.py(), event, &handler)?;
        Self::set_handler(slf, event, Some(handler.clone_ref(slf.py())))?;
        Ok(handler)
    }

    pub fn phase(&self, py: Python<'_>) -> Phase {
        self.state.with(py, |state| state.phase)
    }

    pub fn stands_for_port(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| matches!(state.wire, Wire::Port { .. }))
    }

    pub fn account(&self, py: Python<'_>) -> Arc<Account> {
        let parent = &self.core.get().account;
        self.state.with(py, |state| state.account.get_or_insert_with(|| Arc::new(Account::child(parent))).clone())
    }

    /// Whether it has ended, or will with this batch: a wire made now comes too late.
    pub fn is_over(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| state.phase == Phase::Closed || state.finishing)
    }

    /// The handler of messages, and the request the connection carries.
    pub fn data_handler(&self, py: Python<'_>) -> Option<(Py<PyAny>, Option<Py<Request>>)> {
        let (own, carried) = self.state.with(py, |state| {
            let own = state.on_data.as_ref().map(|handler| handler.clone_ref(py));
            (own, state.request.as_ref().map(|request| request.clone_ref(py)))
        });
        let handler = own.or_else(|| {
            self.endpoint.get().state.with(py, |state| {
                if state.client.is_some() {
                    return None;
                }
                state.handlers.get(Event::Data).or(state.handler.as_ref()).map(|handler| handler.clone_ref(py))
            })
        })?;
        Some((handler, carried))
    }

    pub fn handler(&self, py: Python<'_>, event: Event) -> Option<Py<PyAny>> {
        let own = self.state.with(py, |state| {
            state.handlers.as_ref().and_then(|all| all.get(event)).map(|handler| handler.clone_ref(py))
        });
        own.or_else(|| {
            self.endpoint.get().state.with(py, |state| state.handlers.get(event).map(|handler| handler.clone_ref(py)))
        })
    }

    /// Calls the author's handler of `event`, if there is one.
    pub fn fire(slf: &Py<Self>, py: Python<'_>, event: Event, extra: Option<&Bound<'_, PyAny>>) -> bool {
        let inner = slf.get();
        let Some(handler) = inner.handler(py, event) else { return false };
        let request = inner.state.with(py, |state| state.request.as_ref().map(|request| request.clone_ref(py)));
        let arguments = match extra {
            Some(extra) => (slf, &request, extra).into_pyobject(py),
            None => (slf, &request).into_pyobject(py),
        };
        match arguments {
            Ok(arguments) => {
                let run = || dispatch::run_plain(&inner.core, py, Some(slf), &handler, &arguments);
                match &request {
                    Some(request) => dispatch::with_current(py, &inner.core, slf, request, run),
                    None => run(),
                }
            }
            Err(error) => Core::failed(&inner.core, py, None, None, error),
        }
        true
    }

    pub fn ids(&self, py: Python<'_>) -> Py<PyDict> {
        if let Some(ids) = self.state.with(py, |state| state.ids.as_ref().map(|ids| ids.clone_ref(py))) {
            return ids;
        }
        let ids = PyDict::new(py).unbind();
        let kept = ids.clone_ref(py);
        self.state.with(py, |state| state.ids = Some(kept));
        ids
    }

    pub fn set_busy(&self, py: Python<'_>, busy: bool) {
        self.state.with(py, |state| state.busy = busy);
    }

    /// Ends being busy; true when it was and more may wait.
    pub fn set_busy_false(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| {
            std::mem::replace(&mut state.busy, false)
                && (state.unread.len() > state.unread_at || !state.queue.is_empty())
        })
    }

    /// Whether the author takes messages out of the inbox, rather than having a handler called.
    pub fn is_pulled(&self, py: Python<'_>) -> bool {
        self.data_handler(py).is_none()
            && (!self.state.with(py, |state| state.matched)
                || self.endpoint.get().state.with(py, |state| state.session.is_some()))
    }
}

#[pymethods]
impl Connection {
    #[new]
    #[pyo3(signature = (core, endpoint, /))]
    fn new(py: Python<'_>, core: Py<Core>, endpoint: Py<Endpoint>) -> Self {
        Self {
            state: GilCell::new(State {
                wire: Wire::None,
                phase: Phase::Connecting,
                datagram: endpoint.get().datagram,
                framing: endpoint.get().framing.clone_ref(py),
                on_data: None,
                handlers: None,
                request: None,
                author: None,
                unread: Vec::new(),
                unread_at: 0,
                searched: 0,
                needed: 0,
                queue: VecDeque::new(),
                busy: false,
                paused: false,
                throttled: false,
                pumping: false,
                reading_stopped: false,
                peer_ended: false,
                end_told: false,
                matched: false,
                out: Vec::new(),
                out_datagrams: VecDeque::new(),
                held: None,
                dirty: false,
                write_blocked: false,
                above_mark: false,
                end_wanted: false,
                end_sent: false,
                asked_sent: false,
                ids: None,
                open_requests: 0,
                waiters: Vec::new(),
                reason: None,
                was: None,
                error: None,
                place: None,
                last_tick: 0,
                account: None,
                pool: None,
                finishing: false,
                spliced: None,
            }),
            core,
            endpoint,
        }
    }

    #[getter]
    fn core(&self, py: Python<'_>) -> Py<Core> {
        self.core.clone_ref(py)
    }

    #[getter]
    fn endpoint(&self, py: Python<'_>) -> Py<Endpoint> {
        self.endpoint.clone_ref(py)
    }

    #[getter]
    fn state(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.state.with(py, |state| state.author.as_ref().map(|author| author.clone_ref(py)))
    }

    #[setter]
    fn set_state(&self, py: Python<'_>, author: Option<Py<PyAny>>) {
        let old = self.state.with(py, |state| std::mem::replace(&mut state.author, author));
        drop(old);
    }

    #[getter]
    fn request(&self, py: Python<'_>) -> Option<Py<Request>> {
        self.state.with(py, |state| state.request.as_ref().map(|request| request.clone_ref(py)))
    }

    #[setter]
    fn set_request(&self, py: Python<'_>, request: Option<Py<Request>>) -> PyResult<()> {
        if let Some(request) = &request
            && !request.get().take_hold(py)
        {
            return Err(PyRuntimeError::new_err("the request has ended"));
        }
        if self.phase(py) == Phase::Closed {
            if let Some(request) = request {
                request.get().let_go(py);
            }
            return Err(PyConnectionError::new_err("the connection is closed: it can carry no request"));
        }
        let old = self.state.with(py, |state| std::mem::replace(&mut state.request, request));
        if let Some(old) = old {
            old.get().let_go(py);
        }
        Ok(())
    }

    #[getter]
    fn connected(&self, py: Python<'_>) -> bool {
        self.phase(py) == Phase::Open
    }

    #[getter]
    fn closed(&self, py: Python<'_>) -> bool {
        matches!(self.phase(py), Phase::Closing | Phase::Closed)
    }

    /// Whether `take` has told the peer's end.
    #[getter]
    fn ended(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| state.end_told)
    }

    /// Whether closing it now would cut something off: a handler or session, an open request, unsent bytes.
    #[getter]
    fn busy(&self, py: Python<'_>) -> bool {
        let session = self.endpoint.get().state.with(py, |state| state.session.is_some());
        self.state.with(py, |state| {
            session
                || state.busy
                || state.open_requests > 0
                || state.request.is_some()
                || state.spliced.is_some()
                || state.dirty
                || state.write_blocked
                || !state.out.is_empty()
                || !state.out_datagrams.is_empty()
                || state.held.is_some()
                || !state.queue.is_empty()
        })
    }

    #[getter]
    fn close_reason(&self, py: Python<'_>) -> Option<String> {
        self.state.with(py, |state| state.reason.as_ref().map(ToString::to_string))
    }

    #[getter]
    fn buffered(&self, py: Python<'_>) -> usize {
        self.state.with(py, |state| {
            let datagrams: usize = state.out_datagrams.iter().map(|one| one.len()).sum();
            state.out.len() + datagrams + state.held_bytes()
        })
    }

    #[getter]
    fn kept(&self, py: Python<'_>) -> usize {
        self.state.with(py, |state| state.account.as_ref().map_or(0, |account| account.kept()))
    }

    #[getter]
    fn transport(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.state.with(py, |state| state.wire.transport(py))
    }

    #[getter]
    fn local(&self, py: Python<'_>) -> PyResult<String> {
        self.address(py, true)
    }

    #[getter]
    fn remote(&self, py: Python<'_>) -> PyResult<String> {
        self.address(py, false)
    }

    #[pyo3(signature = (*parts))]
    fn send(slf: &Bound<'_, Self>, parts: &Bound<'_, PyTuple>) -> PyResult<()> {
        Self::send_parts(slf, parts)
    }

    fn end(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().core.get().check_thread()?;
        let py = slf.py();
        let dirty = slf.get().state.with(py, |state| {
            state.end_wanted = true;
            state.phase == Phase::Open && !state.datagram
        });
        if dirty {
            Self::mark_dirty(slf.as_unbound(), py);
        }
        Ok(())
    }

    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().core.get().check_thread()?;
        Self::close_now(slf.as_unbound(), slf.py());
        Ok(())
    }

    /// From now on `close` does not give it back to its pool.
    fn spoil(&self, py: Python<'_>) {
        self.state.with(py, |state| state.pool = None);
    }

    #[pyo3(signature = (reason="aborted", /))]
    fn abort(slf: &Bound<'_, Self>, reason: &str) -> PyResult<()> {
        slf.get().core.get().check_thread()?;
        Self::abort_with(slf.as_unbound(), slf.py(), reason.to_string());
        Ok(())
    }

    fn pause(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().core.get().check_thread()?;
        slf.get().state.with(slf.py(), |state| state.paused = true);
        Self::adjust_reading(slf.as_unbound(), slf.py());
        Ok(())
    }

    fn resume(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().core.get().check_thread()?;
        slf.get().state.with(slf.py(), |state| state.paused = false);
        Self::adjust_reading(slf.as_unbound(), slf.py());
        Core::pump_later(&slf.get().core, slf.py(), slf.as_unbound());
        Ok(())
    }

    #[pyo3(signature = (event, handler, /))]
    fn on(slf: &Bound<'_, Self>, event: &str, handler: Option<Py<PyAny>>) -> PyResult<()> {
        Self::set_handler(slf, Event::parse(event)?, handler)
    }

    /// `fn(conn, request)` when it has been accepted.
    #[pyo3(signature = (handler, /))]
    fn on_accept(slf: &Bound<'_, Self>, handler: Py<PyAny>) -> PyResult<Py<PyAny>> {
        Self::register(slf, Event::Accept, handler)
    }

    /// `fn(conn, request)` when it is connected.
    #[pyo3(signature = (handler, /))]
    fn on_connect(slf: &Bound<'_, Self>, handler: Py<PyAny>) -> PyResult<Py<PyAny>> {
        Self::register(slf, Event::Connect, handler)
    }

    /// `fn(conn, request, packet)` per message.
    #[pyo3(signature = (handler, /))]
    fn on_data(slf: &Bound<'_, Self>, handler: Py<PyAny>) -> PyResult<Py<PyAny>> {
        Self::register(slf, Event::Data, handler)
    }

    /// `fn(conn, request)` when the transport has taken everything sent so far.
    #[pyo3(signature = (handler, /))]
    fn on_sent(slf: &Bound<'_, Self>, handler: Py<PyAny>) -> PyResult<Py<PyAny>> {
        Self::register(slf, Event::Sent, handler)
    }

    /// `fn(conn, request)` when it is below the high-water mark again.
    #[pyo3(signature = (handler, /))]
    fn on_writable(slf: &Bound<'_, Self>, handler: Py<PyAny>) -> PyResult<Py<PyAny>> {
        Self::register(slf, Event::Writable, handler)
    }

    /// `fn(conn, request)` when the peer sends no more.
    #[pyo3(signature = (handler, /))]
    fn on_end(slf: &Bound<'_, Self>, handler: Py<PyAny>) -> PyResult<Py<PyAny>> {
        Self::register(slf, Event::End, handler)
    }

    /// `fn(conn, request, reason)`, once.
    #[pyo3(signature = (handler, /))]
    fn on_close(slf: &Bound<'_, Self>, handler: Py<PyAny>) -> PyResult<Py<PyAny>> {
        Self::register(slf, Event::Close, handler)
    }

    /// `fn(conn, request, error)` when it could not be made, broke, or a handler raised.
    #[pyo3(signature = (handler, /))]
    fn on_error(slf: &Bound<'_, Self>, handler: Py<PyAny>) -> PyResult<Py<PyAny>> {
        Self::register(slf, Event::Error, handler)
    }

    #[pyo3(signature = (url, /, *, framing=None, pool=0, request=None))]
    fn connect(
        slf: &Bound<'_, Self>,
        url: &Bound<'_, PyString>,
        framing: Option<&Bound<'_, PyAny>>,
        pool: usize,
        request: Option<Py<Request>>,
    ) -> PyResult<Py<Self>> {
        let py = slf.py();
        let inner = slf.get();
        let request = request.or_else(|| {
            let current = inner.core.get().state.with(py, |state| match &state.current {
                Some((connection, request)) if connection.is(slf) => Some(request.clone_ref(py)),
                _ => None,
            });
            current
                .or_else(|| inner.state.with(py, |state| state.request.as_ref().map(|request| request.clone_ref(py))))
        });
        let endpoint = Core::outgoing(&inner.core, py)?;
        Self::open(py, &inner.core, &endpoint, url, framing, pool, request)
    }

    #[pyo3(signature = (until=None, size=None, limit=65_536, /))]
    fn take(
        slf: &Bound<'_, Self>,
        until: Option<&[u8]>,
        size: Option<usize>,
        limit: usize,
    ) -> PyResult<Option<Py<Packet>>> {
        slf.get().core.get().check_thread()?;
        Self::take_from_inbox(slf.as_unbound(), slf.py(), until, size, limit)
    }

    #[pyo3(signature = (what, /))]
    fn wait<'py>(slf: &Bound<'py, Self>, what: &str) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let inner = slf.get();
        inner.core.get().check_thread()?;
        let what = Wait::parse(what)?;
        Self::forget_waiters(slf.as_unbound(), py)?;
        let future = inner.core.get().event_loop.bind(py).call_method0(intern!(py, "create_future"))?;
        let (now, error) = inner.state.with(py, |state| {
            let over = state.phase == Phase::Closed;
            let now = over
                || match what {
                    Wait::Connected => state.phase == Phase::Open,
                    Wait::Readable => {
                        state.unread.len() > state.unread_at && state.needed == 0
                            || !state.queue.is_empty()
                            || state.peer_ended
                    }
                    Wait::Writable => {
                        state.phase == Phase::Open
                            && !state.write_blocked
                            && state.out.len() + state.held_bytes() < HIGH_WATER
                    }
                    Wait::Closed => false,
                };
            if !now {
                state.waiters.push((what, future.clone().unbind()));
            }
            let failed = over && matches!(what, Wait::Connected | Wait::Writable);
            (now, failed.then(|| (state.error.as_ref().map(|error| error.clone_ref(py)), state.reason.clone())))
        });
        if now {
            let error = error.map(|(error, reason)| {
                error.unwrap_or_else(|| {
                    let text = format!("connection closed: {}", reason.unwrap_or_default());
                    PyConnectionError::new_err(text).into_value(py).into_any()
                })
            });
            Self::settle(py, future.as_unbound(), error.as_ref());
        }
        Ok(future)
    }

    #[pyo3(signature = (error, /))]
    fn failed(slf: &Bound<'_, Self>, error: Py<PyAny>) {
        Self::failed_with(slf.as_unbound(), slf.py(), error);
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let py = slf.py();
        let phase = format!("{:?}", slf.get().phase(py)).to_lowercase();
        let (local, remote) = (slf.get().address(py, true)?, slf.get().address(py, false)?);
        Ok(format!(
            "<Connection {} {local} ↔ {remote} {phase}>",
            slf.get().endpoint.get().state.with(py, |s| s.name.clone())
        ))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.core)?;
        visit.call(&self.endpoint)?;
        self.state
            .peek(|state| {
                state.wire.traverse(visit)?;
                if let Some(handlers) = &state.handlers {
                    handlers.traverse(visit)?;
                }
                if let FramingSpec::Python(function) = &state.framing {
                    visit.call(function)?;
                }
                visit.call(&state.on_data)?;
                visit.call(&state.request)?;
                visit.call(&state.author)?;
                visit.call(&state.ids)?;
                visit.call(&state.error)?;
                state.spliced.as_ref().map_or(Ok(()), |spliced| spliced.traverse(visit))?;
                state.held.as_ref().map_or(Ok(()), |held| held.traverse(visit))?;
                state.queue.iter().try_for_each(|packet| visit.call(packet))?;
                state.waiters.iter().try_for_each(|(_, future)| visit.call(future))
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.state.with(py, |state| {
            (
                std::mem::replace(&mut state.wire, Wire::None),
                (state.handlers.take(), state.on_data.take()),
                state.request.take(),
                state.author.take(),
                state.ids.take(),
                std::mem::take(&mut state.queue),
                std::mem::take(&mut state.waiters),
                state.error.take(),
                (state.spliced.take(), state.held.take()),
                std::mem::take(&mut state.framing),
            )
        });
        drop(old);
    }
}
