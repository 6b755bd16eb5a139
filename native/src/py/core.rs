//! Dispatch for one event loop: limits, the registry of connections, and the batch.
//!
//! Everything native that the loop calls is a batch: `enter`, handlers run, `leave`. The last `leave` flushes what the
//! handlers sent and finishes what they closed, so that a hundred replies leave in one write.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple, PyType};
use pyo3::{PyTraverseError, PyVisit};

use super::cell::{Counter, GilCell, thread_mark};
use super::commit::{self, Commits};
use super::connection::Connection;
use super::coroutine;
use super::dispatch;
use super::endpoint::{Endpoint, Event};
use super::engine::Engine;
use super::framing::FramingKey;
use super::packet::{Account, Packet};
use super::request::Request;
use super::wire::{Wire, close_wire};
use crate::packet::{Pool, PoolConfig};

/// Seconds a closing connection may take to send what is queued.
const CLOSE_S: u32 = 10;
/// How often streams that wait for kept packets are looked at.
const THROTTLED_LOOK_S: f64 = 0.01;

pub struct Limits {
    /// Of datagram endpoints that say nothing else.
    pub idle_s: f64,
    pub max_connections: u64,
    pub max_requests: u64,
    pub max_buffered_bytes: usize,
    pub max_kept_bytes: usize,
    pub max_kept_bytes_per_connection: usize,
    pub max_flows: usize,
}

impl Limits {
    fn parse(limits: &Bound<'_, PyDict>) -> PyResult<Self> {
        let number = |name: &str| -> PyResult<f64> {
            let found =
                limits.get_item(name)?.ok_or_else(|| PyValueError::new_err(format!("limits: {name} is missing")))?;
            found.extract()
        };
        Ok(Self {
            idle_s: number("idle_s")?,
            max_connections: number("max_connections")? as u64,
            max_requests: number("max_requests")? as u64,
            max_buffered_bytes: number("max_buffered_bytes")? as usize,
            max_kept_bytes: number("max_kept_bytes")? as usize,
            max_kept_bytes_per_connection: number("max_kept_bytes_per_connection")? as usize,
            max_flows: number("max_flows")? as usize,
        })
    }
}

macro_rules! counters {
    ($($name:ident: $meaning:literal,)*) => {
        /// What happened, by name.
        #[derive(Default)]
        pub struct Counters { $(#[doc = $meaning] pub $name: Counter,)* }

        impl Counters {
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

counters! {
    connections_opened: "made or accepted",
    connections_closed: "of those, over",
    connections_failed: "could not be made",
    connections_refused: "over max_connections, or while draining",
    connections_evicted: "idle datagram connections that made room for new ones",
    requests_opened: "begun",
    requests_ended: "of those, ended",
    requests_refused: "over max_requests",
    messages_in: "given to handlers or inboxes",
    messages_out: "sent by handlers",
    handler_errors: "exceptions that handlers raised",
    framing_errors: "streams that could not be framed",
    drop_datagram_size: "datagrams that the framing refused",
    drop_queue_full: "datagrams for a busy connection with a full queue",
    drop_kept_quota: "datagrams and frames for a connection that keeps too much",
    drop_paused: "datagrams and frames for a paused connection",
    drop_no_request_id: "messages too short for their request id",
    drop_send_failed: "datagrams the transport refused",
    drop_not_connected: "messages queued on connections that were never made",
    drop_verdict: "frames that handlers of frames dropped",
    drop_verdict_failed: "frames for which the verdict could not be carried out",
    drop_undecided: "frames that got no verdict",
    streams_throttled: "times a stream was paused because its packets are kept",
    commits_failed: "requests whose writes could not be made durable",
    drop_uncommitted: "messages of such requests, and those still held when their connection ended",
    client_timeouts: "requests of clients without an answer in time",
    client_retransmissions: "datagrams sent again by clients",
    client_unmatched: "answers nobody had asked for",
}

/// Which connections out may take each other's place: same url, same framing.
pub type PoolKey = (String, FramingKey);

#[derive(Default)]
pub struct State {
    depth: u32,
    now: Option<f64>,
    flush_scheduled: bool,
    dirty: Vec<Py<Connection>>,
    closing: Vec<Py<Connection>>,
    deferred: Vec<Py<Connection>>,
    connections: Vec<Option<Py<Connection>>>,
    free: Vec<usize>,
    throttled: Vec<Py<Connection>>,
    pub engines: Vec<Py<Engine>>,
    pub shell: Option<Py<Packet>>,
    pub blank: Option<Py<Request>>,
    pub current: Option<(Py<Connection>, Py<Request>)>,
    /// The stand-in for the current task while coroutines are stepped, and the task it replaced.
    pub stand_in: Option<Py<PyAny>>,
    pub replaced: Option<Py<PyAny>>,
    pub stand_in_entered: bool,
    outgoing: Option<Py<Endpoint>>,
    /// Code objects of handlers whose parameters have been looked at, by address and event.
    checked: HashMap<(usize, u8), Py<PyAny>>,
    last_checked: Option<(Event, Py<PyAny>)>,
    fatal: Option<PyErr>,
    pub tick: u32,
    spare: HashMap<PoolKey, VecDeque<Wire>>,
}

#[pyclass(frozen, weakref, module = "libvnf._native")]
pub struct Core {
    pub event_loop: Py<PyAny>,
    call_soon: Py<PyAny>,
    time: Py<PyAny>,
    pub connection_type: Py<PyType>,
    pub request_type: Py<PyType>,
    resolve: Py<PyAny>,
    on_failure: Py<PyAny>,
    check: Py<PyAny>,
    targets: Py<PyDict>,
    pub tasks: coroutine::Tasks,
    pub commits: Commits,
    pub limits: Limits,
    pub counters: Counters,
    pub pool: Pool,
    pub account: Arc<Account>,
    pub state: GilCell<State>,
    thread: usize,
}

impl Core {
    /// Whether a connection that keeps so many bytes gets nothing more.
    pub fn is_too_much(&self, kept: usize) -> bool {
        kept > self.limits.max_kept_bytes_per_connection
            || (kept > 0 && self.account.kept() > self.limits.max_kept_bytes)
    }

    /// RuntimeError on any thread but the loop's.
    pub fn check_thread(&self) -> PyResult<()> {
        if self.thread == thread_mark() {
            return Ok(());
        }
        Err(PyRuntimeError::new_err("this belongs to the event loop's thread: use vnf.call_threadsafe(fn, *args)"))
    }

    pub fn enter(&self, py: Python<'_>) {
        self.state.with(py, |state| {
            state.depth += 1;
            if state.depth == 1 {
                state.now = None;
            }
        });
    }

    /// The loop's time; within a batch that of the first who asked.
    pub fn now(&self, py: Python<'_>) -> PyResult<f64> {
        let (known, batch) = self.state.with(py, |state| (state.now, state.depth > 0));
        if let (Some(now), true) = (known, batch) {
            return Ok(now);
        }
        let now = self.time.call0(py)?.extract(py)?;
        self.state.with(py, |state| state.now = Some(now));
        Ok(now)
    }

    /// The end of a batch; the outermost one flushes. Errors that are no `Exception` come out here.
    pub fn leave(slf: &Py<Self>, py: Python<'_>) -> PyResult<()> {
        let core = slf.get();
        if core.state.with(py, |state| state.depth) == 1 {
            Self::settle(slf, py);
        }
        let (fatal, more) = core.state.with(py, |state| {
            state.depth -= 1;
            let more = state.depth == 0
                && (!state.dirty.is_empty() || !state.closing.is_empty() || !state.deferred.is_empty());
            (if state.depth == 0 { state.fatal.take() } else { None }, more)
        });
        if more {
            Self::schedule_flush(slf, py);
        }
        fatal.map_or(Ok(()), Err)
    }

    /// Inside the outermost batch: what was sent so far leaves, what was closed is finished.
    pub fn settle(slf: &Py<Self>, py: Python<'_>) {
        let core = slf.get();
        // Two rounds: what close handlers send still leaves with this batch, and a handler of `sent` that sends
        // for ever does not hold the loop.
        for _ in 0..2 {
            let (dirty, closing, deferred) = core.state.with(py, |state| {
                (
                    std::mem::take(&mut state.dirty),
                    std::mem::take(&mut state.closing),
                    std::mem::take(&mut state.deferred),
                )
            });
            if dirty.is_empty() && closing.is_empty() && deferred.is_empty() {
                break;
            }
            for connection in &dirty {
                Connection::flush(connection, py);
            }
            for connection in &closing {
                Connection::finish(connection, py);
            }
            for connection in &deferred {
                Connection::pump(connection, py);
            }
            core.state.with(py, |state| {
                if state.dirty.capacity() == 0 {
                    let mut dirty = dirty;
                    dirty.clear();
                    state.dirty = dirty;
                }
            });
        }
        coroutine::leave_stand_in(core, py);
        core.flush_engines(py);
    }

    fn flush_engines(&self, py: Python<'_>) {
        let count = self.state.with(py, |state| state.engines.len());
        for index in 0..count {
            let engine = self.state.with(py, |state| state.engines.get(index).map(|engine| engine.clone_ref(py)));
            if let Some(engine) = engine {
                engine.get().flush(py);
            }
        }
    }

    /// Outside a batch: the loop flushes at its next turn.
    pub fn schedule_flush(slf: &Py<Self>, py: Python<'_>) {
        let core = slf.get();
        let wanted = core.state.with(py, |state| {
            let wanted = state.depth == 0 && !state.flush_scheduled;
            state.flush_scheduled |= wanted;
            wanted
        });
        if wanted {
            let flush = slf.bind(py).getattr(intern!(py, "flush"));
            if let Err(error) = flush.and_then(|flush| core.call_soon.call1(py, (flush,))) {
                core.state.with(py, |state| state.flush_scheduled = false);
                // The loop is closed: nothing can be flushed any more.
                error.write_unraisable(py, None);
            }
        }
    }

    pub fn mark_dirty(slf: &Py<Self>, py: Python<'_>, connection: &Py<Connection>) {
        let connection = connection.clone_ref(py);
        slf.get().state.with(py, |state| state.dirty.push(connection));
        Self::schedule_flush(slf, py);
    }

    /// `Connection::finish` at the end of the batch.
    pub fn finish_later(slf: &Py<Self>, py: Python<'_>, connection: &Py<Connection>) {
        let connection = connection.clone_ref(py);
        slf.get().state.with(py, |state| state.closing.push(connection));
        Self::schedule_flush(slf, py);
    }

    /// `Connection::pump` at the end of the batch.
    pub fn pump_later(slf: &Py<Self>, py: Python<'_>, connection: &Py<Connection>) {
        let connection = connection.clone_ref(py);
        slf.get().state.with(py, |state| state.deferred.push(connection));
        Self::schedule_flush(slf, py);
    }

    /// A stream waits until Python lets go of its packets. Letting go happens anywhere, so it is looked for by a timer.
    pub fn throttle(slf: &Py<Self>, py: Python<'_>, connection: &Py<Connection>) {
        let core = slf.get();
        let connection = connection.clone_ref(py);
        core.counters.streams_throttled.bump();
        let first = core.state.with(py, |state| {
            state.throttled.push(connection);
            state.throttled.len() == 1
        });
        if first {
            Self::look_at_throttled_later(slf, py);
        }
    }

    fn look_at_throttled_later(slf: &Py<Self>, py: Python<'_>) {
        let set = slf.bind(py).getattr(intern!(py, "unthrottle")).and_then(|unthrottle| {
            slf.get().event_loop.call_method1(py, intern!(py, "call_later"), (THROTTLED_LOOK_S, unthrottle))
        });
        if let Err(error) = set {
            error.write_unraisable(py, None);
        }
    }

    /// Takes a connection into the registry; returns its place.
    pub fn register(&self, py: Python<'_>, connection: &Py<Connection>) -> usize {
        let connection = connection.clone_ref(py);
        self.counters.connections_opened.bump();
        self.state.with(py, |state| match state.free.pop() {
            Some(place) => {
                state.connections[place] = Some(connection);
                place
            }
            None => {
                state.connections.push(Some(connection));
                state.connections.len() - 1
            }
        })
    }

    pub fn unregister(&self, py: Python<'_>, place: usize) {
        self.counters.connections_closed.bump();
        let old = self.state.with(py, |state| {
            state.free.push(place);
            state.connections[place].take()
        });
        drop(old);
    }

    pub fn open_connections(&self) -> u64 {
        self.counters.connections_opened.get() - self.counters.connections_closed.get()
    }

    pub fn open_requests(&self) -> u64 {
        self.counters.requests_opened.get() - self.counters.requests_ended.get()
    }

    pub fn request_ended(&self, py: Python<'_>, origin: Option<&Py<Connection>>, id: Option<&Py<PyAny>>) {
        self.counters.requests_ended.bump();
        if let Some(origin) = origin {
            Connection::request_ended(origin, py, id);
        }
    }

    /// What `url` means, asked once.
    pub fn target<'py>(&self, py: Python<'py>, url: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyAny>> {
        let targets = self.targets.bind(py);
        if let Some(target) = targets.get_item(url)? {
            return Ok(target);
        }
        let target = self.resolve.bind(py).call1((url,))?;
        if targets.len() >= 65_536 {
            targets.clear();
        }
        targets.set_item(url, &target)?;
        Ok(target)
    }

    /// An exception came out of a handler: tell, and end the request where there is an id, else the connection.
    pub fn failed(
        slf: &Py<Self>,
        py: Python<'_>,
        connection: Option<&Py<Connection>>,
        request: Option<&Py<Request>>,
        error: PyErr,
    ) {
        let core = slf.get();
        core.counters.handler_errors.bump();
        if !error.is_instance_of::<pyo3::exceptions::PyException>(py) {
            core.state.with(py, |state| {
                state.fatal.get_or_insert(error);
            });
            return;
        }
        let value = error.value(py);
        // Before Python 3.12 the traceback of a caught error is not yet part of the exception.
        if let Some(traceback) = error.traceback(py)
            && let Err(second) = value.setattr(intern!(py, "__traceback__"), traceback)
        {
            second.write_unraisable(py, None);
        }
        core.report(py, connection, request, value);
        if let Some(connection) = connection {
            Connection::handler_failed(connection, py, request, value, "handler error");
        }
    }

    /// Tells the log what a handler raised.
    pub fn report(
        &self,
        py: Python<'_>,
        connection: Option<&Py<Connection>>,
        request: Option<&Py<Request>>,
        error: &Bound<'_, pyo3::exceptions::PyBaseException>,
    ) {
        let told = self.on_failure.bind(py).call1((
            connection.map(|connection| connection.bind(py)),
            request.map(|request| request.bind(py)),
            error,
        ));
        if let Err(second) = told {
            second.write_unraisable(py, None);
        }
    }

    /// Refuses a function that cannot be called as `event`'s handlers are. Asked once per code object and event.
    pub fn check_handler(&self, py: Python<'_>, event: Event, handler: &Py<PyAny>) -> PyResult<()> {
        let known = |(of, last): &(Event, Py<PyAny>)| *of == event && last.is(handler);
        if self.state.with(py, |state| state.last_checked.as_ref().is_some_and(known)) {
            return Ok(());
        }
        let code = handler.getattr(py, intern!(py, "__code__")).ok();
        let key = code.as_ref().map(|code| (code.as_ptr() as usize, event as u8));
        let last = (event, handler.clone_ref(py));
        let (seen, old) = self.state.with(py, |state| {
            let seen = key.is_some_and(|key| state.checked.contains_key(&key));
            (seen, if seen { state.last_checked.replace(last) } else { Some(last) })
        });
        drop(old);
        if seen {
            return Ok(());
        }
        self.check.call1(py, (event.name(), handler))?;
        if let (Some(key), Some(code)) = (key, code) {
            // The code object is kept, so that its address stays its own.
            let old = self.state.with(py, |state| state.checked.insert(key, code));
            drop(old);
        }
        Ok(())
    }

    /// The endpoint of connections that handlers open without naming one.
    pub fn outgoing(slf: &Py<Self>, py: Python<'_>) -> PyResult<Py<Endpoint>> {
        let core = slf.get();
        if let Some(outgoing) =
            core.state.with(py, |state| state.outgoing.as_ref().map(|outgoing| outgoing.clone_ref(py)))
        {
            return Ok(outgoing);
        }
        let outgoing = Py::new(py, Endpoint::plain(py, slf.clone_ref(py), "outgoing"))?;
        let kept = outgoing.clone_ref(py);
        core.state.with(py, |state| state.outgoing = Some(kept));
        Ok(outgoing)
    }

    pub fn spare_put(&self, py: Python<'_>, key: PoolKey, wire: Wire, limit: usize) -> Option<Wire> {
        self.state.with(py, |state| {
            let spare = state.spare.entry(key).or_default();
            if spare.len() >= limit {
                return Some(wire);
            }
            spare.push_back(wire);
            None
        })
    }

    pub fn spare_take(&self, py: Python<'_>, key: &PoolKey) -> Option<Wire> {
        self.state.with(py, |state| state.spare.get_mut(key).and_then(VecDeque::pop_back))
    }

    /// Removes the spare wires for which `gone` says so; whether there were any.
    pub fn spare_remove(&self, py: Python<'_>, gone: impl Fn(&Wire) -> bool) -> bool {
        let old = self.state.with(py, |state| {
            let mut old = Vec::new();
            for spare in state.spare.values_mut() {
                let (out, kept): (VecDeque<_>, VecDeque<_>) =
                    std::mem::take(spare).into_iter().partition(|wire| gone(wire));
                *spare = kept;
                old.extend(out);
            }
            old
        });
        !old.is_empty()
    }
}

#[pymethods]
impl Core {
    #[new]
    #[pyo3(signature = (event_loop, /, *, connection, request, resolve, on_failure, limits))]
    fn new(
        py: Python<'_>,
        event_loop: Py<PyAny>,
        connection: Py<PyType>,
        request: Py<PyType>,
        resolve: Py<PyAny>,
        on_failure: Py<PyAny>,
        limits: &Bound<'_, PyDict>,
    ) -> PyResult<Self> {
        Ok(Self {
            call_soon: event_loop.getattr(py, "call_soon")?,
            time: event_loop.getattr(py, "time")?,
            tasks: coroutine::Tasks::new(py)?,
            commits: Commits::new(py)?,
            check: py.import("libvnf.handlers")?.getattr("check_handler")?.unbind(),
            event_loop,
            connection_type: connection,
            request_type: request,
            resolve,
            on_failure,
            targets: PyDict::new(py).unbind(),
            limits: Limits::parse(limits)?,
            counters: Counters::default(),
            pool: Pool::new(&PoolConfig::default())?,
            account: Arc::default(),
            state: GilCell::new(State::default()),
            thread: thread_mark(),
        })
    }

    #[getter(open_connections)]
    fn py_open_connections(&self) -> u64 {
        self.open_connections()
    }

    #[getter(open_requests)]
    fn py_open_requests(&self) -> u64 {
        self.open_requests()
    }

    fn connections<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let open: Vec<_> = self
            .state
            .with(py, |state| state.connections.iter().flatten().map(|connection| connection.clone_ref(py)).collect());
        PyList::new(py, open)
    }

    pub fn flush(slf: Py<Self>, py: Python<'_>) -> PyResult<()> {
        slf.get().check_thread()?;
        slf.get().state.with(py, |state| {
            state.flush_scheduled = false;
            state.depth += 1;
        });
        Self::leave(&slf, py)
    }

    fn tick(slf: Py<Self>, py: Python<'_>) -> PyResult<()> {
        let core = slf.get();
        core.check_thread()?;
        core.enter(py);
        let (tick, count) = core.state.with(py, |state| {
            state.tick = state.tick.wrapping_add(1);
            (state.tick, state.connections.len())
        });
        for place in 0..count {
            let connection = core
                .state
                .with(py, |state| state.connections[place].as_ref().map(|connection| connection.clone_ref(py)));
            if let Some(connection) = connection {
                Connection::tick(&connection, py, tick, CLOSE_S);
            }
        }
        Self::leave(&slf, py)
    }

    /// Lets streams on that were paused because Python kept their packets; returns how many still are.
    fn unthrottle(slf: Py<Self>, py: Python<'_>) -> PyResult<usize> {
        let core = slf.get();
        core.check_thread()?;
        core.enter(py);
        for connection in core.state.with(py, |state| std::mem::take(&mut state.throttled)) {
            if !Connection::unthrottle(&connection, py) {
                core.state.with(py, |state| state.throttled.push(connection));
            }
        }
        Self::leave(&slf, py)?;
        let left = core.state.with(py, |state| state.throttled.len());
        if left > 0 {
            Self::look_at_throttled_later(&slf, py);
        }
        Ok(left)
    }

    /// Closes the connections that wait in pools.
    fn empty_pools(&self, py: Python<'_>) -> PyResult<()> {
        self.check_thread()?;
        let spare = self.state.with(py, |state| std::mem::take(&mut state.spare));
        for wire in spare.values().flatten() {
            close_wire(py, wire, true);
        }
        Ok(())
    }

    #[getter]
    fn throttled(&self, py: Python<'_>) -> usize {
        self.state.with(py, |state| state.throttled.len())
    }

    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = PyDict::new(py);
        for (name, value) in self.counters.list() {
            found.set_item(name, value)?;
        }
        found.set_item("connections_open", self.open_connections())?;
        found.set_item("requests_open", self.open_requests())?;
        found.set_item("kept_bytes", self.account.kept())?;
        Ok(found)
    }

    fn pool_statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = PyDict::new(py);
        for class in self.pool.statistics() {
            let row = PyDict::new(py);
            row.set_item("slot_bytes", class.slot_bytes)?;
            row.set_item("slots", class.slots)?;
            row.set_item("free", class.free)?;
            row.set_item("exhausted", class.exhausted)?;
            found.set_item(class.slot_bytes.to_string(), row)?;
        }
        Ok(found)
    }

    /// The request that is being served, by a step of its handler or, with `commit=`, by a task that has started.
    fn current_request(&self, py: Python<'_>) -> PyResult<Option<Py<Request>>> {
        self.check_thread()?;
        Ok(commit::serving(py, self).map(|(request, _)| request))
    }

    #[pyo3(signature = (function, /, *args, request=None))]
    fn call(
        slf: Py<Self>,
        function: Py<PyAny>,
        args: &Bound<'_, PyTuple>,
        request: Option<Py<Request>>,
    ) -> PyResult<()> {
        let py = args.py();
        slf.get().check_thread()?;
        slf.get().enter(py);
        let origin = request.as_ref().and_then(|request| request.get().origin(py));
        match request.as_ref().zip(origin.as_ref()) {
            Some((request, origin)) => dispatch::with_current(py, &slf, origin, request, || {
                dispatch::run_plain(&slf, py, None, &function, args);
            }),
            None => dispatch::run_plain(&slf, py, None, &function, args),
        }
        Self::leave(&slf, py)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        visit.call(&self.call_soon)?;
        visit.call(&self.time)?;
        visit.call(&self.connection_type)?;
        visit.call(&self.request_type)?;
        visit.call(&self.resolve)?;
        visit.call(&self.on_failure)?;
        visit.call(&self.targets)?;
        self.state
            .peek(|state| {
                state.connections.iter().try_for_each(|connection| visit.call(connection))?;
                state.dirty.iter().try_for_each(|connection| visit.call(connection))?;
                state.closing.iter().try_for_each(|connection| visit.call(connection))?;
                state.deferred.iter().try_for_each(|connection| visit.call(connection))?;
                state.throttled.iter().try_for_each(|connection| visit.call(connection))?;
                state.engines.iter().try_for_each(|engine| visit.call(engine))?;
                state.spare.values().flatten().try_for_each(|wire| wire.traverse(visit))?;
                visit.call(&state.outgoing)?;
                visit.call(&state.blank)?;
                visit.call(&state.stand_in)
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        self.targets.bind(py).clear();
        let old = self.state.with(py, std::mem::take);
        drop(old);
    }
}
