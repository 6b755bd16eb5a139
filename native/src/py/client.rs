//! Long-lived clients: replies matched to requests by an id that the library writes itself.
//!
//! With `Field` the caller's id is replaced on the wire by one of ours, unique among all that is outstanding, and put
//! back into the reply. With an extractor function ids stay as they are and a duplicate in flight is an error. Without
//! either, replies come in the order of the requests, one at a time per connection.

use std::collections::VecDeque;

use hashbrown::HashMap;
use pyo3::exceptions::{PyConnectionError, PyRuntimeError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt};
use pyo3::{PyTraverseError, PyVisit, intern};

use super::cell::GilCell;
use super::commit;
use super::connection::{Connection, Phase};
use super::core::Core;
use super::dispatch::{self, Incoming};
use super::endpoint::{Endpoint, Event};
use super::framing::IdSpec;
use super::outbound::HIGH_WATER;
use super::packet::{Body, Packet, with_bytes};
use super::request::Request;

/// Who waits for a reply.
enum Waiting {
    Future(Py<PyAny>),
    Callback(Py<PyAny>, Option<Py<Request>>),
}

struct Asked {
    /// The caller's id, to be put back.
    theirs: u64,
    /// The extractor's id.
    key: Option<Py<PyAny>>,
    waiting: Waiting,
    connection: Py<Connection>,
    /// In whose name it was asked, where that may be held until a commit.
    sender: Option<Py<Request>>,
    /// Kept for retransmission; empty on streams.
    bytes: Box<[u8]>,
    tries_left: u32,
    timeout_s: f64,
}

#[derive(Default)]
struct State {
    connections: Vec<Py<Connection>>,
    turn: usize,
    next: u64,
    asked: HashMap<u64, Asked>,
    /// Extractor's id → ours.
    by_key: Option<Py<PyDict>>,
    /// (when, id), ascending for equal time-outs; entries of answered requests are skipped when due.
    due: VecDeque<(f64, u64)>,
    /// Those with a time-out of their own.
    due_apart: Vec<(f64, u64)>,
    /// Where a message is copied to be given its id.
    scratch: Vec<u8>,
}

#[pyclass(frozen, weakref, module = "libvnf._native")]
pub struct Client {
    core: Py<Core>,
    endpoint: Py<Endpoint>,
    ids: Option<IdSpec>,
    timeout_s: f64,
    retries: u32,
    state: GilCell<State>,
}

impl Client {
    pub fn has_ids(&self) -> bool {
        self.ids.is_some()
    }

    /// A message on one of the client's connections. Inside a batch.
    pub fn message(slf: &Py<Self>, py: Python<'_>, connection: &Py<Connection>, incoming: Incoming) {
        let inner = slf.get();
        let core = inner.core.get();
        let (found, incoming) = match (&inner.ids, incoming) {
            (Some(IdSpec::Field(field)), Incoming::Body(mut body)) => {
                let field = field.get();
                let found = field.read(body.bytes(py)).and_then(|id| inner.remove(py, id));
                if let Some(asked) = &found {
                    match body.bytes_mut() {
                        Some(bytes) => {
                            field.write(bytes, asked.theirs);
                        }
                        None => {
                            let mut copy: Box<[u8]> = body.bytes(py).into();
                            field.write(&mut copy, asked.theirs);
                            body = Body::Heap(copy);
                        }
                    }
                }
                (found, Incoming::Body(body))
            }
            // No client has a port of its own.
            (Some(IdSpec::Field(_)), incoming @ Incoming::Frame(..)) => (None, incoming),
            (Some(IdSpec::Field(field)), Incoming::Packet(packet)) => {
                let field = field.get();
                let found = field.read(packet.get().bytes(py)).and_then(|id| inner.remove(py, id));
                match &found {
                    Some(asked) => {
                        let mut copy: Box<[u8]> = packet.get().bytes(py).into();
                        field.write(&mut copy, asked.theirs);
                        (found, Incoming::Body(Body::Heap(copy)))
                    }
                    None => (None, Incoming::Packet(packet)),
                }
            }
            (Some(IdSpec::Python(function)), incoming) => {
                let packet = match incoming.into_packet(py, core) {
                    Ok(packet) => packet,
                    Err(error) => return Core::failed(&inner.core, py, Some(connection), None, error),
                };
                let found = match function.bind(py).call1((&packet,)) {
                    Ok(key) => inner.id_of(py, &key).and_then(|id| inner.remove(py, id)),
                    Err(error) => return Core::failed(&inner.core, py, Some(connection), None, error),
                };
                (found, Incoming::Packet(packet))
            }
            (None, incoming) => {
                let first = inner.state.with(py, |state| {
                    state.asked.iter().filter(|(_, asked)| asked.connection.is(connection)).map(|(id, _)| *id).min()
                });
                (first.and_then(|id| inner.remove(py, id)), incoming)
            }
        };
        let packet = match incoming.into_packet(py, core) {
            Ok(packet) => packet,
            Err(error) => return Core::failed(&inner.core, py, Some(connection), None, error),
        };
        match found {
            Some(asked) => inner.answer(py, asked, packet),
            None => {
                let handler = inner
                    .endpoint
                    .get()
                    .state
                    .with(py, |state| state.handlers.get(Event::Data).map(|handler| handler.clone_ref(py)));
                match handler {
                    Some(handler) => match (connection, py.None(), &packet).into_pyobject(py) {
                        Ok(arguments) => dispatch::run_plain(&inner.core, py, Some(connection), &handler, &arguments),
                        Err(error) => Core::failed(&inner.core, py, Some(connection), None, error),
                    },
                    None => core.counters.client_unmatched.bump(),
                }
                dispatch::retire_packet(py, core, connection, packet);
            }
        }
    }

    fn answer(&self, py: Python<'_>, asked: Asked, packet: Py<Packet>) {
        match asked.waiting {
            Waiting::Future(future) => {
                packet.get().count_as_kept(py, &asked.connection.get().account(py));
                settle(py, &future, Ok(packet));
            }
            Waiting::Callback(function, request) => {
                dispatch::run_reply(py, &asked.connection, &function, request, packet);
            }
        }
    }

    fn refuse(&self, py: Python<'_>, asked: Asked, error: &PyErr) {
        match asked.waiting {
            Waiting::Future(future) => settle(py, &future, Err(error.clone_ref(py))),
            Waiting::Callback(_, request) => {
                let handler = self
                    .endpoint
                    .get()
                    .state
                    .with(py, |state| state.handlers.get(Event::Error).map(|handler| handler.clone_ref(py)));
                match handler {
                    Some(handler) => {
                        let arguments = (&asked.connection, &request, error.value(py)).into_pyobject(py);
                        match arguments {
                            Ok(arguments) => {
                                dispatch::run_plain(&self.core, py, None, &handler, &arguments);
                            }
                            Err(error) => Core::failed(&self.core, py, None, None, error),
                        }
                    }
                    None => self.core.get().report(py, Some(&asked.connection), request.as_ref(), error.value(py)),
                }
                if let Some(request) = request {
                    request.get().let_go(py);
                }
            }
        }
    }

    fn id_of(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> Option<u64> {
        let by_key = self.state.with(py, |state| state.by_key.as_ref().map(|by_key| by_key.clone_ref(py)))?;
        by_key.bind(py).get_item(key).ok().flatten().and_then(|id| id.extract().ok())
    }

    fn remove(&self, py: Python<'_>, id: u64) -> Option<Asked> {
        let (asked, by_key) = self
            .state
            .with(py, |state| (state.asked.remove(&id), state.by_key.as_ref().map(|by_key| by_key.clone_ref(py))));
        if let (Some(Asked { key: Some(key), .. }), Some(by_key)) = (&asked, by_key)
            && let Err(error) = by_key.bind(py).del_item(key)
        {
            error.write_unraisable(py, None);
        }
        asked
    }

    /// A connection of the client has gone: what was asked on it fails, on streams at once.
    pub fn lost(slf: &Py<Self>, py: Python<'_>, connection: &Py<Connection>, reason: &str) {
        let inner = slf.get();
        let (ids, old) = inner.state.with(py, |state| {
            let ids: Vec<u64> =
                state.asked.iter().filter(|(_, asked)| asked.connection.is(connection)).map(|(id, _)| *id).collect();
            let old: Vec<_> = state.connections.extract_if(.., |one| one.is(connection)).collect();
            (ids, old)
        });
        drop(old);
        let error = PyConnectionError::new_err(format!("connection lost: {reason}"));
        for id in ids {
            if let Some(asked) = inner.remove(py, id) {
                inner.refuse(py, asked, &error);
            }
        }
    }

    fn begin(
        slf: &Py<Self>,
        py: Python<'_>,
        packet: &Bound<'_, PyAny>,
        timeout_s: Option<f64>,
        waiting: Waiting,
    ) -> PyResult<()> {
        let inner = slf.get();
        let core = inner.core.get();
        core.check_thread()?;
        let timeout_s = timeout_s.unwrap_or(inner.timeout_s);
        let now = core.now(py)?;
        let mut bytes = inner.state.with(py, |state| std::mem::take(&mut state.scratch));
        bytes.clear();
        with_bytes(packet, |packet| bytes.extend_from_slice(packet))?;
        let connection = inner.state.with(py, |state| {
            let open = state.connections.len();
            (0..open).find_map(|_| {
                state.turn = (state.turn + 1) % open;
                let one = &state.connections[state.turn];
                (one.get().phase(py) == Phase::Open).then(|| one.clone_ref(py))
            })
        });
        let Some(connection) = connection else {
            return Err(PyConnectionError::new_err("client: not connected"));
        };
        let (theirs, id, key) = match &inner.ids {
            Some(IdSpec::Field(field)) => {
                let field = field.get();
                let Some(theirs) = field.read(&bytes) else {
                    return Err(PyValueError::new_err(format!(
                        "client: the request id lies outside a message of {} bytes",
                        bytes.len()
                    )));
                };
                let id = inner.free_id(py, field.mask())?;
                field.write(&mut bytes, id);
                (theirs, id, None)
            }
            Some(IdSpec::Python(function)) => {
                let key = function.bind(py).call1((Packet::from_body(py, Body::Heap(bytes.as_slice().into()))?,))?;
                if inner.id_of(py, &key).is_some() {
                    return Err(PyValueError::new_err(format!("client: request id {key} is in flight already")));
                }
                (0, inner.free_id(py, u64::MAX)?, Some(key.unbind()))
            }
            None => {
                let taken =
                    inner.state.with(py, |state| state.asked.values().any(|asked| asked.connection.is(&connection)));
                if taken {
                    return Err(PyRuntimeError::new_err(
                        "client: without request_id one request at a time per connection: give request_id= or a larger pool",
                    ));
                }
                (0, inner.free_id(py, u64::MAX)?, None)
            }
        };
        if let Some(key) = &key {
            let by_key = inner.by_key(py);
            by_key.bind(py).set_item(key, PyInt::new(py, id))?;
        }
        let datagram = connection.get().state.with(py, |state| state.datagram);
        Connection::send_bytes(&connection, py, &bytes, None).inspect_err(|_| {
            if let (Some(key), Some(by_key)) =
                (&key, inner.state.with(py, |state| state.by_key.as_ref().map(|by_key| by_key.clone_ref(py))))
            {
                // Not sent, so not asked.
                let _ = by_key.bind(py).del_item(key);
            }
        })?;
        let asked = Asked {
            theirs,
            key,
            waiting,
            connection,
            sender: core.commits.any().then(|| commit::sender(py, core)).flatten().map(|(request, _)| request),
            bytes: if datagram && inner.retries > 0 { bytes.as_slice().into() } else { Box::default() },
            tries_left: if datagram { inner.retries } else { 0 },
            timeout_s,
        };
        let apart = (timeout_s - inner.timeout_s).abs() > f64::EPSILON;
        inner.state.with(py, |state| {
            // Those answered already go as others come, or a second's requests would pile up for each second of time-out.
            while let Some((_, first)) = state.due.front()
                && !state.asked.contains_key(first)
            {
                state.due.pop_front();
            }
            let entry = (now + timeout_s, id);
            if apart {
                state.due_apart.push(entry);
            } else {
                state.due.push_back(entry);
            }
            state.asked.insert(id, asked);
            if bytes.capacity() <= HIGH_WATER {
                state.scratch = bytes;
            }
        });
        Ok(())
    }

    fn by_key(&self, py: Python<'_>) -> Py<PyDict> {
        if let Some(by_key) = self.state.with(py, |state| state.by_key.as_ref().map(|by_key| by_key.clone_ref(py))) {
            return by_key;
        }
        let made = PyDict::new(py).unbind();
        let kept = made.clone_ref(py);
        self.state.with(py, |state| state.by_key = Some(kept));
        made
    }

    /// Whether the caller waits no more for `id`: it cancelled its future.
    fn given_up(&self, py: Python<'_>, id: u64) -> bool {
        let future = self.state.with(py, |state| match state.asked.get(&id) {
            Some(Asked { waiting: Waiting::Future(future), .. }) => Some(future.clone_ref(py)),
            _ => None,
        });
        let done =
            future.map(|future| future.call_method0(py, intern!(py, "done")).and_then(|done| done.is_truthy(py)));
        matches!(done, Some(Ok(true)))
    }

    /// An id that nothing outstanding has.
    fn free_id(&self, py: Python<'_>, mask: u64) -> PyResult<u64> {
        if self.state.with(py, |state| state.asked.len() as u64 > mask) {
            let all: Vec<u64> = self.state.with(py, |state| state.asked.keys().copied().collect());
            for id in all {
                if self.given_up(py, id) {
                    drop(self.remove(py, id));
                }
            }
        }
        self.state.with(py, |state| {
            if state.asked.len() as u64 > mask {
                return Err(PyRuntimeError::new_err("client: every request id is in flight"));
            }
            loop {
                state.next = state.next.wrapping_add(1) & mask;
                if !state.asked.contains_key(&state.next) {
                    return Ok(state.next);
                }
            }
        })
    }
}

fn settle(py: Python<'_>, future: &Py<PyAny>, outcome: Result<Py<Packet>, PyErr>) {
    let settled = (|| {
        if future.call_method0(py, intern!(py, "done"))?.is_truthy(py)? {
            return Ok(());
        }
        match outcome {
            Ok(packet) => future.call_method1(py, intern!(py, "set_result"), (packet,))?,
            Err(error) => future.call_method1(py, intern!(py, "set_exception"), (error.into_value(py),))?,
        };
        PyResult::Ok(())
    })();
    if let Err(error) = settled {
        error.write_unraisable(py, None);
    }
}

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (core, endpoint, /, *, request_id, timeout_s, retries))]
    fn new(
        py: Python<'_>,
        core: Py<Core>,
        endpoint: Py<Endpoint>,
        request_id: Option<&Bound<'_, PyAny>>,
        timeout_s: f64,
        retries: u32,
    ) -> PyResult<Py<Self>> {
        let ids = IdSpec::from_object(request_id)?;
        let client = Py::new(
            py,
            Self {
                core,
                endpoint: endpoint.clone_ref(py),
                ids,
                timeout_s,
                retries,
                state: GilCell::new(State::default()),
            },
        )?;
        let kept = client.clone_ref(py);
        endpoint.get().state.with(py, |state| state.client = Some(kept));
        Ok(client)
    }

    #[getter]
    fn outstanding(&self, py: Python<'_>) -> usize {
        self.state.with(py, |state| state.asked.len())
    }

    #[getter]
    fn connections(&self, py: Python<'_>) -> usize {
        self.state.with(py, |state| state.connections.len())
    }

    #[pyo3(signature = (connection, /))]
    fn add(&self, py: Python<'_>, connection: Py<Connection>) {
        connection.get().state.with(py, |state| state.matched = true);
        Core::pump_later(&connection.get().core, py, &connection);
        self.state.with(py, |state| state.connections.push(connection));
    }

    #[pyo3(signature = (packet, /, timeout_s=None))]
    fn ask<'py>(
        slf: Py<Self>,
        py: Python<'py>,
        packet: &Bound<'py, PyAny>,
        timeout_s: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let future = slf.get().core.get().event_loop.bind(py).call_method0(intern!(py, "create_future"))?;
        Self::begin(&slf, py, packet, timeout_s, Waiting::Future(future.clone().unbind()))?;
        Ok(future)
    }

    #[pyo3(signature = (packet, request, on_reply, /))]
    fn send(
        slf: Py<Self>,
        py: Python<'_>,
        packet: &Bound<'_, PyAny>,
        request: Option<Py<Request>>,
        on_reply: Py<PyAny>,
    ) -> PyResult<()> {
        if let Some(request) = &request {
            request.get().hold(py)?;
        }
        let held = request.as_ref().map(|request| request.clone_ref(py));
        Self::begin(&slf, py, packet, None, Waiting::Callback(on_reply, request)).inspect_err(|_| {
            if let Some(held) = held {
                held.get().let_go(py);
            }
        })
    }

    #[pyo3(signature = (now, /))]
    fn expire(slf: Py<Self>, py: Python<'_>, now: f64) -> PyResult<Option<f64>> {
        let inner = slf.get();
        let core = inner.core.get();
        core.enter(py);
        let due: Vec<u64> = inner.state.with(py, |state| {
            let mut due = Vec::new();
            while let Some((when, id)) = state.due.front().copied() {
                if when > now && state.asked.contains_key(&id) {
                    break;
                }
                state.due.pop_front();
                if state.asked.contains_key(&id) && when <= now {
                    due.push(id);
                }
            }
            let asked = &state.asked;
            due.extend(
                state.due_apart.extract_if(.., |(when, id)| *when <= now || !asked.contains_key(id)).map(|(_, id)| id),
            );
            due
        });
        for id in due {
            if inner.given_up(py, id) {
                drop(inner.remove(py, id));
                continue;
            }
            let again = inner.state.with(py, |state| {
                let asked = state.asked.get_mut(&id)?;
                if asked.tries_left == 0 {
                    return None;
                }
                asked.tries_left -= 1;
                let when = now + asked.timeout_s;
                // What is held has not been sent yet, and is not sent again; its time runs.
                let held = asked.sender.as_ref().is_some_and(|sender| sender.get().withholds(py));
                let again = (asked.connection.clone_ref(py), (!held).then(|| asked.bytes.clone()));
                if (asked.timeout_s - inner.timeout_s).abs() > f64::EPSILON {
                    state.due_apart.push((when, id));
                } else {
                    state.due.push_back((when, id));
                }
                Some(again)
            });
            match again {
                Some((_, None)) => {}
                Some((connection, Some(bytes))) => {
                    core.counters.client_retransmissions.bump();
                    if Connection::send_bytes(&connection, py, &bytes, None).is_err() {
                        core.counters.drop_send_failed.bump();
                    }
                }
                None => {
                    if let Some(asked) = inner.remove(py, id) {
                        core.counters.client_timeouts.bump();
                        let error = PyTimeoutError::new_err("client: no answer in time");
                        inner.refuse(py, asked, &error);
                    }
                }
            }
        }
        Core::leave(&inner.core, py)?;
        Ok(inner.state.with(py, |state| {
            let apart = state.due_apart.iter().map(|(when, _)| *when);
            state.due.front().map(|(when, _)| *when).into_iter().chain(apart).reduce(f64::min)
        }))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.core)?;
        visit.call(&self.endpoint)?;
        if let Some(IdSpec::Python(function)) = &self.ids {
            visit.call(function)?;
        }
        self.state
            .peek(|state| {
                state.connections.iter().try_for_each(|connection| visit.call(connection))?;
                for asked in state.asked.values() {
                    visit.call(&asked.connection)?;
                    visit.call(&asked.sender)?;
                    match &asked.waiting {
                        Waiting::Future(future) => visit.call(future)?,
                        Waiting::Callback(function, request) => {
                            visit.call(function)?;
                            visit.call(request)?;
                        }
                    }
                }
                visit.call(&state.by_key)
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.state.with(py, std::mem::take);
        drop(old);
    }
}
