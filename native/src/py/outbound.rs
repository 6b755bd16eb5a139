//! How bytes leave: queued by `send`, flushed at the end of the batch; and the ways a connection is closed.

use std::borrow::Cow;
use std::net::SocketAddr;

use pyo3::exceptions::PyConnectionError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use super::connection::{Connection, Phase, Wait};
use super::core::{Core, PoolKey};
use super::datagrams::Datagrams;
use super::endpoint::Event;
use super::engine::Engine;
use super::frames::{Decision, Frame};
use super::packet::{Packet, with_bytes};
use super::wire::{Wire, close_wire};
use crate::stack::FlowId;
use crate::stack::tcp::TcpId;

/// Queued bytes that make `drain` wait; unread bytes at which a stream is stopped while its handler is busy.
pub const HIGH_WATER: usize = 65_536;
/// A larger buffer is not kept for the next batch.
pub const KEPT_CAPACITY: usize = 4 * HIGH_WATER;

/// Where the bytes of one `send` go, decided while the state is borrowed.
enum Route {
    Queued,
    Stream,
    Datagram(Py<PyAny>, Option<Py<PyAny>>),
    Socket(Py<Datagrams>, Option<SocketAddr>),
    Flow(Py<Engine>, usize, FlowId),
    Port(Py<Engine>, usize),
    Full(usize),
    Closed(Cow<'static, str>),
}

/// The bytes of a message: of one part as they are, of several joined.
fn joined<R>(parts: &Bound<'_, PyTuple>, use_it: impl FnOnce(&[u8]) -> R) -> PyResult<R> {
    if parts.len() == 1 {
        return with_bytes(&parts.get_borrowed_item(0)?.to_owned(), use_it);
    }
    let mut whole = Vec::new();
    for part in parts.iter_borrowed() {
        with_bytes(&part.to_owned(), |bytes| whole.extend_from_slice(bytes))?;
    }
    Ok(use_it(&whole))
}

/// What `send` raises over `max_buffered_bytes`.
pub fn buffer_full(py: Python<'_>, queued: usize, more: usize, limit: usize) -> PyResult<PyErr> {
    let full = py.import(intern!(py, "libvnf.errors"))?.getattr(intern!(py, "BufferFull"))?;
    let text = format!(
        "send: {queued} bytes are queued already and {more} more exceed max_buffered_bytes ({limit}): \
         await drain() or wait for on_writable"
    );
    Ok(PyErr::from_value(full.call1((text,))?))
}

impl Connection {
    pub fn send_parts(slf: &Bound<'_, Self>, parts: &Bound<'_, PyTuple>) -> PyResult<()> {
        slf.get().core.get().check_thread()?;
        let py = slf.py();
        if parts.len() == 1 {
            let part = parts.get_borrowed_item(0)?;
            // A `bytes` that is the whole datagram goes to asyncio as it is.
            if let Ok(bytes) = part.cast_exact::<PyBytes>() {
                return Self::send_bytes(slf.as_unbound(), py, bytes.as_bytes(), Some(bytes.to_owned()));
            }
            if let Ok(packet) = part.cast_exact::<Packet>() {
                let whole = packet.get().as_bytes_object(py).map(|bytes| bytes.into_bound(py));
                return Self::send_bytes(slf.as_unbound(), py, packet.get().bytes(py), whole);
            }
            if let Ok(frame) = part.cast_exact::<Frame>() {
                let frame = frame.to_owned();
                Frame::with_outgoing(&frame, |bytes| Self::send_bytes(slf.as_unbound(), py, bytes, None))??;
                // To send a frame on is a decision about it.
                if slf.get().stands_for_port(py) {
                    Frame::decide(&frame, Decision::Sent)?;
                }
                return Ok(());
            }
        }
        joined(parts, |bytes| Self::send_bytes(slf.as_unbound(), py, bytes, None))?
    }

    /// Queues or sends one message. `whole`: a `bytes` object with just this content, if there is one.
    pub fn send_bytes(slf: &Py<Self>, py: Python<'_>, bytes: &[u8], whole: Option<Bound<'_, PyBytes>>) -> PyResult<()> {
        if slf.get().core.get().commits.any() && Self::hold(slf, py, bytes)? {
            return Ok(());
        }
        Self::transmit(slf, py, bytes, whole, false)
    }

    /// `late`: it was accepted before, and has waited since; what was called meanwhile does not concern it.
    fn transmit(
        slf: &Py<Self>,
        py: Python<'_>,
        bytes: &[u8],
        whole: Option<Bound<'_, PyBytes>>,
        late: bool,
    ) -> PyResult<()> {
        let inner = slf.get();
        let core = inner.core.get();
        let limit = if late { usize::MAX } else { core.limits.max_buffered_bytes };
        let (route, newly_dirty) = inner.state.with(py, |state| {
            if state.phase == Phase::Closed || (state.phase == Phase::Closing && !late) {
                return (Route::Closed(state.reason.clone().unwrap_or_else(|| "closed".into())), false);
            }
            if state.end_wanted && !late {
                return (Route::Closed("end() was called".into()), false);
            }
            match &state.wire {
                Wire::Flow { engine, port, flow, .. } => (Route::Flow(engine.clone_ref(py), *port, *flow), false),
                Wire::Port { engine, port } => (Route::Port(engine.clone_ref(py), *port), false),
                Wire::Datagram { sendto, address, .. } => {
                    let address = address.as_ref().map(|address| address.clone_ref(py));
                    (Route::Datagram(sendto.clone_ref(py), address), false)
                }
                Wire::Datagrams { socket, address } => (Route::Socket(socket.clone_ref(py), *address), false),
                Wire::None if state.datagram => {
                    let queued: usize = state.out_datagrams.iter().map(|one| one.len() + 64).sum();
                    if queued.saturating_add(bytes.len()) > limit {
                        return (Route::Full(queued), false);
                    }
                    state.out_datagrams.push_back(bytes.into());
                    (Route::Queued, false)
                }
                Wire::None | Wire::Stream { .. } | Wire::Socket(_) | Wire::Tcp { .. } => {
                    // One message may always be queued; a second one waits for room.
                    if !state.out.is_empty() && state.out.len() + bytes.len() > limit {
                        // Who is refused waits for `writable`, also when the transport itself never said stop.
                        state.above_mark = true;
                        return (Route::Full(state.out.len()), false);
                    }
                    state.out.extend_from_slice(bytes);
                    // Who stops at the mark waits for `writable`, also when the transport takes all of it at once.
                    state.above_mark |= state.out.len() > HIGH_WATER;
                    let made = state.wire.is_stream();
                    (Route::Stream, made && !std::mem::replace(&mut state.dirty, made))
                }
            }
        });
        match route {
            Route::Queued => {}
            Route::Stream => {
                if newly_dirty {
                    Core::mark_dirty(&inner.core, py, slf);
                }
            }
            Route::Flow(engine, port, flow) => engine.get().send(py, port, flow, bytes),
            Route::Port(engine, port) => {
                engine.get().emit(py, port, &[bytes]);
            }
            Route::Socket(socket, address) => {
                socket.get().send(py, bytes, address);
                Self::mark_sent(slf, py);
            }
            Route::Datagram(sendto, address) => {
                let whole = whole.unwrap_or_else(|| PyBytes::new(py, bytes));
                if let Err(error) = sendto.bind(py).call1((whole, address)) {
                    // A datagram too long for its transport, or a transport that is closing: counted, not fatal.
                    if !error.is_instance_of::<pyo3::exceptions::PyException>(py) {
                        return Err(error);
                    }
                    core.counters.drop_send_failed.bump();
                }
                Self::mark_sent(slf, py);
            }
            Route::Closed(reason) => {
                return Err(PyConnectionError::new_err(format!("send: the connection is closed: {reason}")));
            }
            Route::Full(queued) => {
                return Err(buffer_full(py, queued, bytes.len(), limit)?);
            }
        }
        core.counters.messages_out.bump();
        Ok(())
    }

    /// The `sent` handler of a datagram runs at the end of the batch, as that of a stream does.
    fn mark_sent(slf: &Py<Self>, py: Python<'_>) {
        if slf.get().handler(py, Event::Sent).is_some() {
            slf.get().state.with(py, |state| state.asked_sent = true);
            Self::mark_dirty(slf, py);
        }
    }

    pub fn mark_dirty(slf: &Py<Self>, py: Python<'_>) {
        if !slf.get().state.with(py, |state| std::mem::replace(&mut state.dirty, true)) {
            Core::mark_dirty(&slf.get().core, py, slf);
        }
    }

    /// Hands what is queued to the transport; then the half-close and the close that wait behind it.
    pub fn flush(slf: &Py<Self>, py: Python<'_>) {
        Self::flush_wire(slf, py);
        Self::relay_flushed(slf, py);
    }

    fn flush_wire(slf: &Py<Self>, py: Python<'_>) {
        let inner = slf.get();
        let (datagrams, mut sent) = inner.state.with(py, |state| {
            state.dirty = false;
            if matches!(state.wire, Wire::None) {
                return (Default::default(), false);
            }
            (std::mem::take(&mut state.out_datagrams), std::mem::take(&mut state.asked_sent))
        });
        for datagram in datagrams {
            Self::send_late(slf, py, &datagram);
        }
        if inner.state.with(py, |state| state.wire.is_native()) {
            return Self::flush_stream(slf, py);
        }
        let job = inner.state.with(py, |state| match &state.wire {
            Wire::Stream { transport, write, .. } => {
                let bytes = if state.write_blocked || state.out.is_empty() {
                    None
                } else {
                    let bytes = PyBytes::new(py, &state.out).unbind();
                    if state.out.capacity() > 65_536 {
                        state.out = Vec::new();
                    } else {
                        state.out.clear();
                    }
                    Some((write.clone_ref(py), bytes))
                };
                let empty = state.out.is_empty() && state.held.is_none();
                let end = empty && state.end_wanted && !state.end_sent && state.phase == Phase::Open;
                state.end_sent |= end;
                let close = empty && state.phase == Phase::Closing && !state.finishing;
                Some((bytes, end, close, transport.clone_ref(py)))
            }
            _ => None,
        });
        match job {
            Some((bytes, end, close, transport)) => {
                let outcome = (|| {
                    if let Some((write, bytes)) = bytes {
                        sent = true;
                        write.bind(py).call1((bytes,))?;
                    }
                    if end {
                        transport.call_method0(py, intern!(py, "write_eof"))?;
                    }
                    if close {
                        transport.call_method0(py, intern!(py, "close"))?;
                    }
                    PyResult::Ok(())
                })();
                if let Err(error) = outcome {
                    Self::abort_with(slf, py, format!("transport: {error}"));
                    return;
                }
            }
            None => {
                let close = inner.state.with(py, |state| {
                    state.phase == Phase::Closing && !matches!(state.wire, Wire::None) && state.held.is_none()
                });
                if close {
                    Self::finish_with(slf, py, "closed");
                }
            }
        }
        // Who waits to write was held up by what this batch queued, unless the transport says stop.
        let (room, told) = inner.state.with(py, |state| {
            let room = state.phase == Phase::Open
                && !state.write_blocked
                && state.out.is_empty()
                && state.held_bytes() < HIGH_WATER;
            (room, room && std::mem::take(&mut state.above_mark))
        });
        if room {
            Self::wake(slf, py, Wait::Writable);
        }
        if told {
            Self::fire(slf, py, Event::Writable, None);
        }
        if sent {
            Self::fire(slf, py, Event::Sent, None);
        }
    }

    /// `flush` on a native stream: what it does not take now stays queued, and is tried again when there is room.
    fn flush_stream(slf: &Py<Self>, py: Python<'_>) {
        struct Flushed {
            room: bool,
            sent: bool,
            writable: bool,
            close: Option<Wire>,
        }
        let flushed = slf.get().state.with(py, |state| {
            let mut sent = false;
            if !state.write_blocked && !state.out.is_empty() {
                let count = state.wire.write(py, &state.out)?;
                sent = count == state.out.len();
                state.write_blocked = !sent;
                state.out.drain(..count);
                state.above_mark |= state.out.len() >= HIGH_WATER;
                if sent && state.out.capacity() > KEPT_CAPACITY {
                    state.out = Vec::new();
                }
            }
            let all = state.out.is_empty() && state.held.is_none();
            let room = state.out.is_empty() && state.held_bytes() < HIGH_WATER;
            let open = state.phase == Phase::Open;
            let end = all && state.end_wanted && !state.end_sent && open;
            let close = all && state.phase == Phase::Closing && !state.finishing;
            if end {
                state.end_sent = true;
                state.wire.end(py);
            }
            state.peer_ended |= close;
            let close = if close { state.wire.stream(py) } else { None };
            let writable = room && open && std::mem::take(&mut state.above_mark);
            std::io::Result::Ok(Flushed { room: room && open, sent: sent && all, writable, close })
        });
        let flushed = match flushed {
            Ok(flushed) => flushed,
            Err(error) => {
                let wire = slf.get().state.with(py, |state| state.wire.stream(py));
                Self::lost(slf, py, &error);
                if let Some(wire) = wire {
                    wire.close(py, false);
                }
                return;
            }
        };
        if let Some(wire) = flushed.close {
            Self::finish_with(slf, py, "closed");
            wire.close(py, false);
        }
        if flushed.room {
            Self::wake(slf, py, Wait::Writable);
        }
        if flushed.writable {
            Self::fire(slf, py, Event::Writable, None);
        }
        if flushed.sent {
            Self::fire(slf, py, Event::Sent, None);
        }
    }

    /// The stream has room again.
    pub fn unblocked(slf: &Py<Self>, py: Python<'_>) {
        if slf.get().state.with(py, |state| std::mem::take(&mut state.write_blocked)) {
            Self::mark_dirty(slf, py);
        }
    }

    /// Sends what `send` has accepted before the wire was there, or a commit: what fails now is counted.
    pub fn send_late(slf: &Py<Self>, py: Python<'_>, bytes: &[u8]) {
        if Self::transmit(slf, py, bytes, None, true).is_err() {
            slf.get().core.get().counters.drop_send_failed.bump();
        }
    }

    /// The transport takes no more for now, or takes again.
    pub fn write_blocked(slf: &Py<Self>, py: Python<'_>, blocked: bool) {
        let waiting = slf.get().state.with(py, |state| {
            state.write_blocked = blocked;
            !state.out.is_empty() || state.phase == Phase::Closing
        });
        if blocked {
            return;
        }
        if waiting {
            Self::mark_dirty(slf, py);
        }
        Self::wake(slf, py, Wait::Writable);
        Self::fire(slf, py, Event::Writable, None);
    }

    /// Closes after what is queued; gives a pooled wire back instead.
    pub fn close_now(slf: &Py<Self>, py: Python<'_>) {
        let inner = slf.get();
        enum Way {
            Nothing,
            Pool(PoolKey, usize, Wire),
            Flush,
            Finish,
        }
        let tick = inner.core.get().state.with(py, |state| state.tick);
        let way = inner.state.with(py, |state| {
            match state.phase {
                Phase::Closing | Phase::Closed => return Way::Nothing,
                Phase::Connecting => {
                    state.phase = Phase::Closing;
                    state.reason.get_or_insert_with(|| "closed".into());
                    return Way::Nothing;
                }
                Phase::Open => {}
            }
            let clean = state.unread.len() == state.unread_at
                && state.queue.is_empty()
                && state.out.is_empty()
                && state.held.is_none()
                && !state.peer_ended
                && !state.end_wanted
                && !state.reading_stopped
                && !state.write_blocked;
            if let Some((key, limit)) = state.pool.take().map(|pool| *pool)
                && clean
                && !state.datagram
            {
                return Way::Pool(key, limit, std::mem::replace(&mut state.wire, Wire::None));
            }
            // The time it has to send what is queued begins now, not when the peer was last heard.
            (state.phase, state.last_tick) = (Phase::Closing, tick);
            state.reason.get_or_insert_with(|| "closed".into());
            if state.wire.is_stream() || state.held.is_some() { Way::Flush } else { Way::Finish }
        });
        match way {
            Way::Nothing => {}
            Way::Flush => Self::mark_dirty(slf, py),
            Way::Finish => Self::finish_with(slf, py, "closed"),
            Way::Pool(key, limit, wire) => {
                wire.hand_over(py, None);
                if let Some(wire) = inner.core.get().spare_put(py, key, wire, limit) {
                    close_wire(py, &wire, false);
                }
                Self::finish_with(slf, py, "closed");
            }
        }
    }

    /// Closes at once with `reason`; what is queued is lost.
    pub fn abort_with(slf: &Py<Self>, py: Python<'_>, reason: impl Into<Cow<'static, str>>) {
        let (open, stream) = slf.get().state.with(py, |state| {
            let stream = state.wire.stream(py);
            if state.phase == Phase::Closing && !state.finishing {
                // It was closing in peace; now it is not.
                state.reason = None;
            }
            (state.phase != Phase::Closed, stream)
        });
        if !open {
            return;
        }
        Self::finish_with(slf, py, reason);
        if let Some(stream) = stream {
            stream.close(py, true);
        }
    }

    /// `host:port` of one end, or a path.
    pub fn address(&self, py: Python<'_>, local: bool) -> PyResult<String> {
        enum Found {
            Transport(Py<PyAny>),
            Address(Py<PyAny>),
            Text(String),
            Flow(Py<Engine>, usize, FlowId),
            Tcp(Py<Engine>, usize, TcpId),
            Port(Py<Engine>, usize),
            None,
        }
        let found = self.state.with(py, |state| match &state.wire {
            Wire::Datagram { address: Some(address), .. } if !local => Found::Address(address.clone_ref(py)),
            Wire::Datagrams { address: Some(address), .. } if !local => Found::Text(address.to_string()),
            Wire::Flow { engine, port, flow, .. } => Found::Flow(engine.clone_ref(py), *port, *flow),
            Wire::Tcp { engine, port, id, .. } => Found::Tcp(engine.clone_ref(py), *port, *id),
            Wire::Port { engine, port } if local => Found::Port(engine.clone_ref(py), *port),
            wire => wire.transport(py).map_or(Found::None, Found::Transport),
        });
        let address = match found {
            Found::None => {
                let was = self.state.with(py, |state| state.was.as_ref().map(|was| (**was).clone()));
                let (ours, theirs) = was.unwrap_or_default();
                return Ok(if local { ours } else { theirs });
            }
            Found::Flow(engine, port, flow) => return Ok(engine.get().address(py, port, flow, local)),
            Found::Tcp(engine, port, id) => return Ok(engine.get().tcp_address(py, port, id, local)),
            Found::Port(engine, port) => return Ok(engine.get().port_name(py, port)),
            Found::Address(address) => address,
            Found::Text(address) => return Ok(address),
            Found::Transport(transport) => {
                let key = if local { intern!(py, "sockname") } else { intern!(py, "peername") };
                transport.call_method1(py, intern!(py, "get_extra_info"), (key,))?
            }
        };
        let address = address.bind(py);
        if let Ok((host, port)) =
            address.get_item(0).and_then(|host| Ok((host.extract::<String>()?, address.get_item(1)?.extract::<u32>()?)))
        {
            return Ok(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") });
        }
        Ok(address.extract::<String>().unwrap_or_default())
    }
}
