//! Calling handlers: the request they get, and what follows when they have ended. Coroutines: `coroutine.rs`.
#![allow(unsafe_code)]

use std::collections::VecDeque;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyTuple, PyType};
use pyo3::{PyTraverseError, PyVisit, ffi};

use super::cell::GilCell;
use super::commit;
use super::connection::{Connection, Phase};
use super::core::Core;
use super::coroutine::{begin_coroutine, is_coroutine};
use super::engine::Engine;
use super::frames::{Frame, settle};
use super::framing::IdSpec;
use super::packet::{Body, Packet, is_unshared};
use super::request::Request;
use super::tracing;
use crate::packet::Slot;

/// Messages that may wait for the handler of their request id.
const EXCHANGE_QUEUE: usize = 1_024;

/// What follows when a handler has ended, at once or later.
pub enum Done {
    Nothing,
    /// The connection may have its next message.
    Message {
        connection: Py<Connection>,
        request: Py<Request>,
    },
    /// The request id may have its next message.
    Exchange {
        connection: Py<Connection>,
        exchange: Py<Exchange>,
        request: Py<Request>,
    },
    /// The session has returned: the connection closes.
    Session {
        connection: Py<Connection>,
    },
}

impl Done {
    pub fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            Self::Nothing => Self::Nothing,
            Self::Message { connection, request } => {
                Self::Message { connection: connection.clone_ref(py), request: request.clone_ref(py) }
            }
            Self::Exchange { connection, exchange, request } => Self::Exchange {
                connection: connection.clone_ref(py),
                exchange: exchange.clone_ref(py),
                request: request.clone_ref(py),
            },
            Self::Session { connection } => Self::Session { connection: connection.clone_ref(py) },
        }
    }

    pub fn connection(&self) -> Option<&Py<Connection>> {
        match self {
            Self::Nothing => None,
            Self::Message { connection, .. } | Self::Exchange { connection, .. } | Self::Session { connection } => {
                Some(connection)
            }
        }
    }

    pub fn request(&self) -> Option<&Py<Request>> {
        match self {
            Self::Message { request, .. } | Self::Exchange { request, .. } => Some(request),
            Self::Nothing | Self::Session { .. } => None,
        }
    }

    /// The handler's coroutine waits for something.
    pub fn suspended(&self, py: Python<'_>) {
        match self {
            Self::Message { connection, .. } => connection.get().set_busy(py, true),
            Self::Exchange { exchange, .. } => exchange.get().state.with(py, |state| state.busy = true),
            Self::Nothing | Self::Session { .. } => {}
        }
    }

    pub fn finish(self, py: Python<'_>, core: &Py<Core>, failed: bool) {
        match self {
            Self::Nothing => {}
            Self::Message { connection, request } => {
                request.get().let_go(py);
                if connection.get().set_busy_false(py) {
                    Core::pump_later(core, py, &connection);
                } else {
                    Connection::close_if_ended(&connection, py);
                }
            }
            Self::Exchange { connection, exchange, request } => {
                exchange.get().state.with(py, |state| state.busy = false);
                // What waited for it belongs to the same request, unless that has ended.
                Exchange::next(&exchange, py, &connection);
                request.get().let_go(py);
                Connection::close_if_ended(&connection, py);
            }
            Self::Session { connection } => {
                if !failed {
                    Connection::close_now(&connection, py);
                }
            }
        }
    }
}

/// One request id of one connection: its request, and the messages that wait for it.
#[pyclass(frozen, module = "libvnf._native")]
pub struct Exchange {
    state: GilCell<ExchangeState>,
}

struct ExchangeState {
    request: Py<Request>,
    busy: bool,
    /// `next` is at work further up the stack.
    draining: bool,
    queue: VecDeque<Py<Packet>>,
}

#[pymethods]
impl Exchange {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.state.peek(|state| visit.call(&state.request)).unwrap_or(Ok(()))
    }
}

impl Exchange {
    /// Gives the messages that waited to the handler, until it waits again.
    fn next(slf: &Py<Self>, py: Python<'_>, connection: &Py<Connection>) {
        // A handler that ends at once comes back here: the outer loop goes on for it.
        if slf.get().state.with(py, |state| std::mem::replace(&mut state.draining, true)) {
            return;
        }
        while connection.get().phase(py) == Phase::Open {
            let packet = slf.get().state.with(py, |state| if state.busy { None } else { state.queue.pop_front() });
            let Some(packet) = packet else { break };
            // By its id: if the request has ended meanwhile, it begins the next one.
            deliver(py, connection, Incoming::Packet(packet));
        }
        slf.get().state.with(py, |state| state.draining = false);
    }
}

/// Messages that wait for busy request ids, and will in vain.
pub fn waiting(ids: &Bound<'_, PyDict>) -> usize {
    let exchanges = ids.values().into_iter().filter_map(|found| found.cast_into::<Exchange>().ok());
    let count = |exchange: &Exchange, py| {
        exchange.state.with(py, |state| {
            state.queue.iter().for_each(|packet| settle(py, packet));
            state.queue.len()
        })
    };
    exchanges.map(|exchange| count(exchange.get(), exchange.py())).sum()
}

/// A message on its way to a handler.
pub enum Incoming {
    Body(Body),
    Packet(Py<Packet>),
    /// That came by a port of that engine.
    Frame(Py<Engine>, usize, Slot),
}

impl Incoming {
    pub fn bytes<'a>(&'a self, py: Python<'a>) -> &'a [u8] {
        match self {
            Self::Body(body) => body.bytes(py),
            Self::Packet(packet) => packet.get().bytes(py),
            Self::Frame(_, _, slot) => slot,
        }
    }

    pub fn into_packet(self, py: Python<'_>, core: &Core) -> PyResult<Py<Packet>> {
        match self {
            Self::Packet(packet) => Ok(packet),
            Self::Body(body) => {
                if let Some(shell) = core.state.with(py, |state| state.shell.take()) {
                    shell.get().fill(py, body);
                    return Ok(shell);
                }
                Packet::from_body(py, body)
            }
            Self::Frame(engine, port, slot) => {
                let frame = Frame::wrap(py, &engine, port, None, Body::Slot(slot))?;
                Ok(frame.into_bound(py).into_super().unbind())
            }
        }
    }
}

/// After the handler: the shell serves again, or its buffer counts as kept.
pub fn retire_packet(py: Python<'_>, core: &Core, connection: &Py<Connection>, packet: Py<Packet>) {
    if is_unshared(&packet) {
        if packet.bind(py).is_exact_instance_of::<Frame>() {
            if let Ok(frame) = packet.into_bound(py).into_any().cast_into_exact::<Frame>() {
                Frame::retire(frame.unbind(), py);
            }
            return;
        }
        packet.get().fill(py, Body::Empty);
        let old = core.state.with(py, |state| state.shell.replace(packet));
        drop(old);
    } else {
        packet.get().count_as_kept(py, &connection.get().account(py));
    }
}

pub fn new_request(
    py: Python<'_>,
    core: &Py<Core>,
    class: &Py<PyType>,
    origin: &Py<Connection>,
    id: Option<Py<PyAny>>,
) -> PyResult<Py<Request>> {
    let inner = core.get();
    let plain = class.is(&inner.request_type);
    let blank = if plain { inner.state.with(py, |state| state.blank.take()) } else { None };
    let request = match blank {
        Some(blank) => blank,
        None => class.bind(py).call0()?.cast_into::<Request>()?.unbind(),
    };
    request.get().begin(py, core, Some(origin), id);
    inner.counters.requests_opened.bump();
    Connection::request_opened(origin, py);
    Ok(request)
}

/// Takes an ended request back for the next message when nobody has seen it.
pub fn retire_request(py: Python<'_>, core: &Core, request: Py<Request>) {
    let reuse = {
        let inner = request.get();
        // SAFETY: a plain read of the reference count of a live object.
        inner.is_ended(py) && inner.is_blank(py) && unsafe { ffi::Py_REFCNT(request.as_ptr()) } == 1
    };
    if reuse && request.bind(py).get_type().is(&core.request_type) {
        let old = core.state.with(py, |state| state.blank.replace(request));
        drop(old);
    }
}

/// Gives one message to the connection's handler, its client, or its inbox. Inside a batch.
pub fn message(py: Python<'_>, connection: &Py<Connection>, incoming: Incoming) {
    let inner = connection.get();
    inner.core.get().counters.messages_in.bump();
    inner.endpoint.get().messages.bump();
    deliver(py, connection, incoming);
}

/// As `message`, for one that is counted already.
fn deliver(py: Python<'_>, connection: &Py<Connection>, incoming: Incoming) {
    let inner = connection.get();
    let core = &inner.core;
    let endpoint = inner.endpoint.get();
    if let Incoming::Packet(packet) = &incoming
        && let Ok(frame) = packet.bind(py).as_any().cast_exact::<Frame>()
        && Frame::finds_rule(frame)
    {
        return;
    }
    let Some((handler, carried)) = inner.data_handler(py) else {
        let matched = inner.state.with(py, |state| state.matched);
        let client = endpoint.state.with(py, |state| state.client.as_ref().map(|client| client.clone_ref(py)));
        if let Some(client) = client.filter(|_| matched) {
            super::client::Client::message(&client, py, connection, incoming);
            return;
        }
        match incoming.into_packet(py, core.get()) {
            Ok(packet) => {
                tracing::awaited();
                Connection::to_inbox(connection, py, packet);
            }
            Err(error) => Core::failed(core, py, Some(connection), None, error),
        }
        return;
    };
    let packet = match incoming.into_packet(py, core.get()) {
        Ok(packet) => packet,
        Err(error) => return Core::failed(core, py, Some(connection), None, error),
    };
    if let Some(request) = carried {
        // If it has ended, the message comes too late for it, but not for the connection.
        request.get().take_hold(py);
        run_message(py, connection, &handler, packet, request, None);
        return;
    }
    let class = endpoint.state.with(py, |state| state.request.clone_ref(py));
    if core.get().open_requests() >= core.get().limits.max_requests {
        core.get().counters.requests_refused.bump();
        settle(py, &packet);
        if !endpoint.datagram {
            Connection::abort_with(connection, py, "max_requests");
        }
        return;
    }
    match &endpoint.request_id {
        None => match new_request(py, core, &class, connection, None) {
            Ok(request) => run_message(py, connection, &handler, packet, request, None),
            Err(error) => Core::failed(core, py, Some(connection), None, error),
        },
        Some(spec) => exchange(py, connection, &handler, packet, spec, &class),
    }
}

fn exchange(
    py: Python<'_>,
    connection: &Py<Connection>,
    handler: &Py<PyAny>,
    packet: Py<Packet>,
    spec: &IdSpec,
    class: &Py<PyType>,
) {
    let inner = connection.get();
    let core = &inner.core;
    let id: Py<PyAny> = match spec {
        IdSpec::Field(field) => match field.get().read(packet.get().bytes(py)) {
            Some(id) => PyInt::new(py, id).into_any().unbind(),
            None => {
                core.get().counters.drop_no_request_id.bump();
                settle(py, &packet);
                if !inner.endpoint.get().datagram {
                    Connection::abort_with(connection, py, "request id: message too short");
                }
                return;
            }
        },
        IdSpec::Python(function) => match function.call1(py, (&packet,)) {
            Ok(id) => id,
            Err(error) => return Core::failed(core, py, Some(connection), None, error),
        },
    };
    let ids = inner.ids(py);
    let ids = ids.bind(py);
    let found = match ids.get_item(&id) {
        Ok(found) => found.and_then(|found| found.cast_into::<Exchange>().ok()),
        Err(error) => return Core::failed(core, py, Some(connection), None, error),
    };
    let mut packet = Some(packet);
    let exchange = match found {
        Some(exchange) => {
            let exchange = exchange.unbind();
            let full = exchange.get().state.with(py, |state| {
                if !state.busy {
                    return None;
                }
                if state.queue.len() >= EXCHANGE_QUEUE {
                    return Some(true);
                }
                state.queue.extend(packet.take());
                Some(false)
            });
            match full {
                Some(true) => {
                    packet.iter().for_each(|packet| settle(py, packet));
                    return core.get().counters.drop_queue_full.bump();
                }
                Some(false) => return,
                None => exchange,
            }
        }
        None => {
            let made = new_request(py, core, class, connection, Some(id.clone_ref(py))).and_then(|request| {
                // The handler's hold is taken below, for this and for later messages alike.
                let state = ExchangeState {
                    request: request.clone_ref(py),
                    busy: false,
                    draining: false,
                    queue: VecDeque::new(),
                };
                let exchange = Py::new(py, Exchange { state: GilCell::new(state) })?;
                ids.set_item(&id, &exchange)?;
                Ok((exchange, request))
            });
            match (made, packet.take()) {
                (Ok((exchange, request)), Some(packet)) => {
                    run_message(py, connection, handler, packet, request, Some(exchange));
                }
                (Err(error), _) => Core::failed(core, py, Some(connection), None, error),
                (Ok(_), None) => {}
            }
            return;
        }
    };
    let request = exchange.get().state.with(py, |state| state.request.clone_ref(py));
    if let Some(packet) = packet {
        request.get().take_hold(py);
        run_message(py, connection, handler, packet, request, Some(exchange));
    }
}

fn run_message(
    py: Python<'_>,
    connection: &Py<Connection>,
    handler: &Py<PyAny>,
    packet: Py<Packet>,
    request: Py<Request>,
    exchange: Option<Py<Exchange>>,
) {
    let core = &connection.get().core;
    let arguments = [connection.as_ptr(), request.as_ptr(), packet.as_ptr()];
    tracing::called(py, "handler", handler);
    let outcome = with_current(py, core, connection, &request, || vectorcall(py, handler, &arguments));
    match outcome {
        Ok(result) if is_coroutine(&result) => {
            let done = match exchange {
                None => Done::Message { connection: connection.clone_ref(py), request: request.clone_ref(py) },
                Some(exchange) => {
                    Done::Exchange { connection: connection.clone_ref(py), exchange, request: request.clone_ref(py) }
                }
            };
            begin_coroutine(py, core, result, done);
        }
        Ok(_) => {
            request.get().let_go(py);
        }
        Err(error) => {
            Core::failed(core, py, Some(connection), Some(&request), error);
            request.get().let_go(py);
        }
    }
    retire_packet(py, core.get(), connection, packet);
    retire_request(py, core.get(), request);
}

/// Gives a client's reply to the function that waits for it; the request goes on from there.
pub fn run_reply(
    py: Python<'_>,
    connection: &Py<Connection>,
    function: &Py<PyAny>,
    request: Option<Py<Request>>,
    packet: Py<Packet>,
) {
    match request {
        Some(request) => run_message(py, connection, function, packet, request, None),
        None => {
            let core = &connection.get().core;
            match (connection, py.None(), &packet).into_pyobject(py) {
                Ok(arguments) => run_plain(core, py, Some(connection), function, &arguments),
                Err(error) => Core::failed(core, py, Some(connection), None, error),
            }
            retire_packet(py, core.get(), connection, packet);
        }
    }
}

/// Runs a handler that belongs to no message: an event, a timer, a session.
pub fn run_plain(
    core: &Py<Core>,
    py: Python<'_>,
    connection: Option<&Py<Connection>>,
    function: &Py<PyAny>,
    args: &Bound<'_, PyTuple>,
) {
    tracing::called(py, "event handler", function);
    match function.bind(py).call1(args) {
        Ok(result) => {
            let result = result.unbind();
            if is_coroutine(&result) {
                begin_coroutine(py, core, result, Done::Nothing);
            }
        }
        Err(error) => Core::failed(core, py, connection, None, error),
    }
}

pub fn run_session(py: Python<'_>, connection: &Py<Connection>, session: &Py<PyAny>) {
    let core = &connection.get().core;
    tracing::called(py, "session", session);
    match vectorcall(py, session, &[connection.as_ptr()]) {
        Ok(result) if is_coroutine(&result) => {
            begin_coroutine(py, core, result, Done::Session { connection: connection.clone_ref(py) });
        }
        Ok(_) => Connection::close_now(connection, py),
        Err(error) => Core::failed(core, py, Some(connection), None, error),
    }
}

/// Calls with borrowed arguments, so that reference counts tell afterwards who kept them.
pub fn vectorcall(py: Python<'_>, function: &Py<PyAny>, arguments: &[*mut ffi::PyObject]) -> PyResult<Py<PyAny>> {
    // SAFETY: `arguments` are live objects for the length of the call; the result is a new reference or null with an
    // exception set.
    unsafe {
        let result =
            ffi::PyObject_Vectorcall(function.as_ptr(), arguments.as_ptr(), arguments.len(), std::ptr::null_mut());
        Bound::from_owned_ptr_or_err(py, result).map(Bound::unbind)
    }
}

/// Runs `call` while `connection` and `request` are what `connect` refers to.
pub fn with_current<R>(
    py: Python<'_>,
    core: &Py<Core>,
    connection: &Py<Connection>,
    request: &Py<Request>,
    call: impl FnOnce() -> R,
) -> R {
    let mine = Some((connection.clone_ref(py), request.clone_ref(py)));
    let before = core.get().state.with(py, |state| std::mem::replace(&mut state.current, mine));
    let result = if core.get().commits.any() && request.get().commits(py) {
        let nested = before.as_ref().is_some_and(|(_, before)| before.is(request));
        commit::step(py, core.get(), request, nested, call)
    } else {
        call()
    };
    let mine = core.get().state.with(py, |state| std::mem::replace(&mut state.current, before));
    drop(mine);
    result
}

pub fn with_current_of<R>(py: Python<'_>, core: &Py<Core>, done: &Done, call: impl FnOnce() -> R) -> R {
    match (done.connection(), done.request()) {
        (Some(connection), Some(request)) => with_current(py, core, connection, request, call),
        _ => call(),
    }
}
