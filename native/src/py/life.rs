//! A connection's life: how it begins, what it counts while it is open, and the one way it ends.

use std::borrow::Cow;

use pyo3::exceptions::{PyBaseException, PyConnectionError, PyRuntimeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::connection::{Connection, Phase, Wait};
use super::core::Core;
use super::dispatch;
use super::endpoint::{Endpoint, Event};
use super::engine::{Engine, Target};
use super::frames::settle;
use super::framing::FramingSpec;
use super::request::Request;
use super::sockets::failure;
use super::wire::{Wire, close_wire};

/// Waiting futures from which on it is looked, at every power of two, whether anyone still waits.
const MANY_WAITERS: usize = 8;

impl Connection {
    /// A new connection of the author's class.
    pub fn create(py: Python<'_>, core: &Py<Core>, endpoint: &Py<Endpoint>) -> PyResult<Py<Self>> {
        Ok(core.get().connection_type.bind(py).call1((core, endpoint))?.cast_into::<Self>()?.unbind())
    }

    /// Whether `endpoint` may have one more connection now.
    pub fn admit(py: Python<'_>, core: &Core, endpoint: &Endpoint) -> bool {
        let admitted =
            core.open_connections() < core.limits.max_connections && endpoint.state.with(py, |state| state.accepting);
        if !admitted {
            core.counters.connections_refused.bump();
        }
        admitted
    }

    /// Begins a connection to `url`; it is usable at once.
    pub fn open(
        py: Python<'_>,
        core: &Py<Core>,
        endpoint: &Py<Endpoint>,
        url: &Bound<'_, PyString>,
        framing: Option<&Bound<'_, PyAny>>,
        pool: usize,
        request: Option<Py<Request>>,
    ) -> PyResult<Py<Self>> {
        let inner = core.get();
        inner.check_thread()?;
        let target = inner.target(py, url)?;
        let connection = Self::create(py, core, endpoint)?;
        let native = target.cast::<Target>().ok();
        let datagram = match native {
            Some(target) => target.get().datagram,
            None => target.getattr(intern!(py, "datagram"))?.is_truthy()?,
        };
        let framing = match framing.filter(|framing| !framing.is_none()) {
            Some(framing) => FramingSpec::from_object(Some(framing))?,
            None => endpoint.get().framing.clone_ref(py),
        };
        if let Some(request) = &request
            && !request.get().take_hold(py)
        {
            return Err(PyRuntimeError::new_err("connect: the request has ended"));
        }
        let key = match pool {
            0 => None,
            _ => Some(Box::new(((url.to_str()?.to_owned(), framing.key()), pool))),
        };
        let spare = key.as_ref().and_then(|key| inner.spare_take(py, &key.0));
        connection.get().state.with(py, |state| {
            state.datagram = datagram;
            state.framing = framing;
            state.request = request;
            state.pool = key;
        });
        if let Some(wire) = spare {
            wire.hand_over(py, Some(connection.clone_ref(py)));
            Self::made(&connection, py, wire);
            return Ok(connection);
        }
        if inner.open_connections() >= inner.limits.max_connections {
            inner.counters.connections_refused.bump();
            Self::fail_soon(&connection, py, PyConnectionError::new_err("max_connections reached"));
            return Ok(connection);
        }
        match native {
            Some(target) => Engine::connect(target.get(), py, &connection),
            None => {
                if let Err(error) = target.call_method1(intern!(py, "open"), (&connection,)) {
                    if let Some(request) = connection.get().state.with(py, |state| state.request.take()) {
                        request.get().let_go(py);
                    }
                    return Err(error);
                }
            }
        }
        Ok(connection)
    }

    /// The wire is there: registers the connection, tells the author, sends what waited.
    pub fn made(slf: &Py<Self>, py: Python<'_>, wire: Wire) {
        let inner = slf.get();
        let core = inner.core.get();
        let place = core.register(py, slf);
        let tick = core.state.with(py, |state| state.tick);
        inner.state.with(py, |state| {
            state.wire = wire;
            state.place = Some(place);
            state.last_tick = tick;
            if state.phase == Phase::Connecting {
                state.phase = Phase::Open;
            }
        });
        inner.endpoint.get().opened.bump();
        Self::wake(slf, py, Wait::Connected);
        Self::wake(slf, py, Wait::Writable);
        Self::fire(slf, py, Event::Connect, None);
        let waiting = inner.state.with(py, |state| {
            !state.out.is_empty()
                || !state.out_datagrams.is_empty()
                || state.end_wanted
                || state.phase == Phase::Closing
        });
        if waiting {
            Self::mark_dirty(slf, py);
        }
    }

    /// As `made`, for a connection that a peer opened: the accept handler and the session run.
    pub fn accepted(slf: &Py<Self>, py: Python<'_>, wire: Wire) {
        Self::made(slf, py, wire);
        Self::fire(slf, py, Event::Accept, None);
        let session = slf.get().endpoint.get().state.with(py, |state| state.session.as_ref().map(|s| s.clone_ref(py)));
        if let Some(session) = session {
            dispatch::run_session(py, slf, &session);
        }
    }

    /// `failed_with` at the loop's next turn: not before the author had the chance to say who hears of it.
    pub fn fail_soon(slf: &Py<Self>, py: Python<'_>, error: PyErr) {
        let told = slf.getattr(py, intern!(py, "failed")).and_then(|failed| {
            let event_loop = &slf.get().core.get().event_loop;
            event_loop.call_method1(py, intern!(py, "call_soon"), (failed, error.into_value(py)))
        });
        if let Err(error) = told {
            error.write_unraisable(py, None);
        }
    }

    /// The connection could not be made.
    pub fn failed_with(slf: &Py<Self>, py: Python<'_>, error: Py<PyAny>) {
        let inner = slf.get();
        let reason = error.bind(py).str().map_or_else(|_| "could not connect".to_string(), |text| text.to_string());
        let kept = error.clone_ref(py);
        let lost = inner.state.with(py, |state| {
            state.error = Some(kept);
            state.out_datagrams.len() + usize::from(!state.out.is_empty())
        });
        inner.core.get().counters.connections_failed.bump();
        inner.core.get().counters.drop_not_connected.add(lost as u64);
        inner.core.get().enter(py);
        Self::fire(slf, py, Event::Error, Some(error.bind(py)));
        Self::finish_with(slf, py, reason);
        if let Err(error) = Core::leave(&inner.core, py) {
            error.write_unraisable(py, None);
        }
    }

    /// The network says that a datagram cannot reach the peer. A client goes on (it has time-outs); others end.
    pub fn unreachable(slf: &Py<Self>, py: Python<'_>, error: &Bound<'_, PyAny>) {
        let inner = slf.get();
        if inner.endpoint.get().state.with(py, |state| state.client.is_some()) {
            return;
        }
        let kept = error.clone().unbind();
        inner.state.with(py, |state| state.error.get_or_insert(kept).clone_ref(py));
        Self::fire(slf, py, Event::Error, Some(error));
        Self::finish_with(slf, py, format!("unreachable: {error}"));
        Self::wake(slf, py, Wait::Readable);
    }

    /// The stream broke.
    pub fn lost(slf: &Py<Self>, py: Python<'_>, error: &std::io::Error) {
        Self::finish_with(slf, py, format!("reset: {}", failure(py, error, None).value(py)));
    }

    pub fn request_opened(slf: &Py<Self>, py: Python<'_>) {
        slf.get().state.with(py, |state| state.open_requests += 1);
    }

    pub fn request_ended(slf: &Py<Self>, py: Python<'_>, id: Option<&Py<PyAny>>) {
        let inner = slf.get();
        let ids = inner.state.with(py, |state| {
            state.open_requests = state.open_requests.saturating_sub(1);
            state.ids.as_ref().filter(|_| id.is_some()).map(|ids| ids.clone_ref(py))
        });
        if let (Some(ids), Some(id)) = (ids, id) {
            // The entry may belong to a newer request already, or the id's hash may raise: then there is nothing to do.
            if let Err(error) = ids.bind(py).del_item(id)
                && !error.is_instance_of::<pyo3::exceptions::PyKeyError>(py)
            {
                error.write_unraisable(py, None);
            }
        }
        Self::close_if_ended(slf, py);
    }

    /// The peer has ended, everything it asked is answered, and the author has no say in it: close.
    pub fn close_if_ended(slf: &Py<Self>, py: Python<'_>) {
        let inner = slf.get();
        let ready = inner.state.with(py, |state| {
            state.peer_ended
                && state.phase == Phase::Open
                && !state.busy
                && state.spliced.is_none()
                && state.open_requests == 0
                && state.queue.is_empty()
        });
        if ready && inner.handler(py, Event::End).is_none() && !inner.is_pulled(py) {
            Self::close_now(slf, py);
        }
    }

    /// After a handler raised: `error` handlers hear of it; without request ids the connection is over, unless it stands
    /// for a whole port.
    pub fn handler_failed(
        slf: &Py<Self>,
        py: Python<'_>,
        request: Option<&Py<Request>>,
        error: &Bound<'_, PyBaseException>,
        reason: &'static str,
    ) {
        let inner = slf.get();
        if let Some(handler) = inner.handler(py, Event::Error) {
            let told = handler.bind(py).call1((slf, request, error));
            if let Err(second) = told {
                // The handler of errors failed itself: log, and go on with the end below.
                inner.core.get().report(py, Some(slf), request, second.value(py));
            }
        }
        let stays = inner.stands_for_port(py);
        match request {
            Some(request) if stays || inner.endpoint.get().request_id.is_some() => request.get().finish(py),
            _ if stays => {}
            _ => Self::abort_with(slf, py, reason),
        }
    }

    /// `finish` at the end of the batch, with the first reason given.
    pub fn finish_with(slf: &Py<Self>, py: Python<'_>, reason: impl Into<Cow<'static, str>>) {
        let first = slf.get().state.with(py, |state| {
            if state.finishing {
                return false;
            }
            state.finishing = true;
            state.phase = Phase::Closing;
            state.reason.get_or_insert_with(|| reason.into());
            true
        });
        if first {
            Self::remember(slf, py);
            Core::finish_later(&slf.get().core, py, slf);
        }
    }

    /// Where it was and whither, for close handlers, while there is something under it that knows.
    fn remember(slf: &Py<Self>, py: Python<'_>) {
        let inner = slf.get();
        if inner.handler(py, Event::Close).is_some() && inner.state.with(py, |state| state.was.is_none()) {
            let [local, remote] = [true, false].map(|local| inner.address(py, local).unwrap_or_default());
            if !remote.is_empty() {
                inner.state.with(py, |state| state.was = Some(Box::new((local, remote))));
            }
        }
    }

    /// Ends it for good at the end of the batch: handlers told, waiters woken, the request let go.
    pub fn finish(slf: &Py<Self>, py: Python<'_>) {
        let inner = slf.get();
        Self::remember(slf, py);
        let (wire, place, waiters, reason, ids, queue, held, error) = inner.state.with(py, |state| {
            state.phase = Phase::Closed;
            state.out = Vec::new();
            let left = state.unread.split_off(state.unread_at.min(state.unread.len()));
            (state.unread, state.unread_at, state.searched, state.needed) = (left, 0, 0, 0);
            (
                std::mem::replace(&mut state.wire, Wire::None),
                state.place.take(),
                std::mem::take(&mut state.waiters),
                state.reason.clone().unwrap_or_else(|| "closed".into()),
                state.ids.take(),
                std::mem::take(&mut state.out_datagrams),
                state.held.take(),
                state.error.as_ref().map(|error| error.clone_ref(py)),
            )
        });
        let waited = ids.map_or(0, |ids| dispatch::waiting(ids.bind(py))) + queue.len();
        inner.core.get().counters.drop_not_connected.add(waited as u64);
        drop(queue);
        inner.core.get().counters.drop_uncommitted.add(held.map_or(0, |held| held.len() as u64));
        let unread =
            inner.state.with(py, |state| matches!(wire, Wire::Port { .. }).then(|| std::mem::take(&mut state.queue)));
        for packet in unread.into_iter().flatten() {
            inner.core.get().counters.drop_not_connected.bump();
            settle(py, &packet);
        }
        match &wire {
            Wire::Flow { engine, port, flow, owner } => engine.get().close_flow(py, *port, *flow, *owner),
            Wire::Datagram { address: Some(address), protocol, .. } => {
                if let Err(error) = protocol.get().forget(py, address, slf) {
                    error.write_unraisable(py, None);
                }
            }
            Wire::Datagrams { address: Some(address), socket } => socket.get().forget(py, *address, slf),
            // A client's socket is its own; a server's peers share one.
            Wire::Datagram { address: None, .. } | Wire::Datagrams { address: None, .. } => {
                close_wire(py, &wire, false)
            }
            Wire::Socket(_) | Wire::Tcp { .. } => close_wire(py, &wire, false),
            Wire::None | Wire::Stream { .. } | Wire::Port { .. } => {}
        }
        drop(wire);
        if let Some(place) = place {
            inner.core.get().unregister(py, place);
            inner.endpoint.get().closed.bump();
        }
        if !waiters.is_empty() {
            let error = error.unwrap_or_else(|| {
                let error = PyConnectionError::new_err(format!("connection closed: {reason}"));
                error.into_value(py).into_any()
            });
            for (what, future) in waiters {
                let failed = matches!(what, Wait::Connected | Wait::Writable);
                Self::settle(py, &future, failed.then_some(&error));
            }
        }
        Self::relay_broken(slf, py, &reason);
        if let Some(client) =
            inner.endpoint.get().state.with(py, |state| state.client.as_ref().map(|c| c.clone_ref(py)))
        {
            super::client::Client::lost(&client, py, slf, &reason);
        }
        if inner.handler(py, Event::Close).is_some() {
            Self::fire(slf, py, Event::Close, Some(PyString::new(py, &reason).as_any()));
        }
        let (request, handlers) =
            inner.state.with(py, |state| (state.request.take(), (state.handlers.take(), state.on_data.take())));
        drop(handlers);
        if let Some(request) = request {
            request.get().let_go(py);
        }
    }

    /// Futures that were cancelled or timed out are forgotten when there are many, or reading with a time-out from a
    /// silent peer would collect them for ever.
    pub fn forget_waiters(slf: &Py<Self>, py: Python<'_>) -> PyResult<()> {
        let all = slf.get().state.with(py, |state| {
            let many = state.waiters.len() >= MANY_WAITERS && state.waiters.len().is_power_of_two();
            if many { std::mem::take(&mut state.waiters) } else { Vec::new() }
        });
        let mut waiting = Vec::new();
        let mut failed = Ok(());
        for (what, future) in all {
            match future.call_method0(py, intern!(py, "done")).and_then(|done| done.is_truthy(py)) {
                Ok(true) => {}
                Ok(false) => waiting.push((what, future)),
                Err(error) => failed = Err(error),
            }
        }
        slf.get().state.with(py, |state| state.waiters.append(&mut waiting));
        failed
    }

    /// Ends the futures that wait for `what`.
    pub fn wake(slf: &Py<Self>, py: Python<'_>, what: Wait) {
        let woken = slf.get().state.with(py, |state| {
            if state.waiters.is_empty() {
                return Vec::new();
            }
            let (woken, kept) = std::mem::take(&mut state.waiters).into_iter().partition(|(waits, _)| *waits == what);
            state.waiters = kept;
            woken
        });
        for (_, future) in woken {
            Self::settle(py, &future, None);
        }
    }

    pub fn settle(py: Python<'_>, future: &Py<PyAny>, error: Option<&Py<PyAny>>) {
        let settled = (|| {
            if future.call_method0(py, intern!(py, "done"))?.is_truthy(py)? {
                return Ok(());
            }
            match error {
                None => future.call_method1(py, intern!(py, "set_result"), (py.None(),))?,
                Some(error) => future.call_method1(py, intern!(py, "set_exception"), (error,))?,
            };
            PyResult::Ok(())
        })();
        if let Err(error) = settled {
            error.write_unraisable(py, None);
        }
    }

    /// One second has passed.
    pub fn tick(slf: &Py<Self>, py: Python<'_>, tick: u32, close_s: u32) {
        let inner = slf.get();
        let idle_s = inner.endpoint.get().state.with(py, |state| state.idle_s);
        inner.hear_thread(py, tick);
        let (since, phase, occupied) = inner.state.with(py, |state| {
            (
                tick.wrapping_sub(state.last_tick),
                state.phase,
                state.busy || state.open_requests > 0 || state.held.is_some(),
            )
        });
        match phase {
            Phase::Open if !occupied && idle_s.is_some_and(|idle_s| f64::from(since) > idle_s) => {
                Self::abort_with(slf, py, "idle");
            }
            Phase::Closing if since > close_s => Self::abort_with(slf, py, "close timed out"),
            _ => {}
        }
    }
}
