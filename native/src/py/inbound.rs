//! How bytes come in: buffered, framed, given to handlers or kept in the inbox; and when to stop the peer.

use pyo3::exceptions::{PyConnectionError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt};

use super::connection::{Connection, Phase, State, Wait};
use super::core::Core;
use super::dispatch::{self, Incoming};
use super::endpoint::Event;
use super::engine::Engine;
use super::framing::FramingSpec;
use super::outbound::{HIGH_WATER, KEPT_CAPACITY};
use super::packet::{Body, Packet};
use super::wire::Wire;
use crate::framing::{Cut, LARGEST_MESSAGE, find};
use crate::packet::Pool;
use crate::stack::tcp::TcpId;

/// Datagrams that may wait for a busy handler or in an inbox.
const DATAGRAM_QUEUE: usize = 1_024;
/// Bytes that a framing function is shown first; twice as many each time it finds no message in them. Shown all at
/// once, a peer with many small messages would make every one of them cost a copy of all that follow.
const FRAMING_VIEW: usize = 1_024;

/// Who is told that a stream stops or restarts.
enum Change {
    Transport(Py<PyAny>),
    WantData(Py<Engine>, usize, TcpId),
}

/// What `next_message` found.
enum Next {
    Message(Body),
    /// A Python framing is to be asked about these bytes.
    Ask(Py<PyAny>, Vec<u8>),
    Broken(&'static str),
    Nothing,
}

impl State {
    fn available(&self) -> usize {
        self.unread.len() - self.unread_at
    }

    /// Takes `next` bytes off the unread ones; the message is `start..end` of them.
    fn consume(&mut self, pool: &Pool, start: usize, end: usize, next: usize) -> Body {
        let at = self.unread_at;
        let body = Body::copy(pool, &self.unread[at + start..at + end]);
        self.unread_at += next;
        (self.searched, self.needed) = (0, 0);
        if self.unread_at == self.unread.len() {
            self.unread.clear();
            self.unread_at = 0;
            if self.unread.capacity() > KEPT_CAPACITY {
                self.unread = Vec::new();
            }
        }
        body
    }

    /// A framing function found no message in the first `shown` bytes; `size`: how long it will be, or 0. Whether there
    /// is more to be shown already.
    fn incomplete(&mut self, shown: usize, size: usize) -> bool {
        (self.searched, self.needed) = (shown, size.max(shown + 1));
        self.available() >= self.needed
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.unread_at > HIGH_WATER && self.unread_at * 2 > self.unread.len() {
            self.unread.drain(..self.unread_at);
            self.unread_at = 0;
        }
        self.unread.extend_from_slice(bytes);
    }

    /// The message at the beginning of bytes that nothing waits before. What is left over is kept, because its handler
    /// may look for it; without a message, everything is.
    fn cut_fresh(&mut self, pool: &Pool, fresh: &[u8]) -> Option<Body> {
        let (start, end, next) = match &self.framing {
            FramingSpec::Pieces => (0, fresh.len(), fresh.len()),
            FramingSpec::Native(framing) => match framing.cut(fresh, 0) {
                Cut::Message { start, end, next } => (start, end, next),
                Cut::More(_) | Cut::Broken(_) => return None,
            },
            FramingSpec::Python(_) => return None,
        };
        self.keep(&fresh[next..]);
        Some(Body::copy(pool, &fresh[start..end]))
    }

    /// The next message; `fresh` has just come, and is not among the unread bytes yet.
    fn next_message(&mut self, py: Python<'_>, pool: &Pool, largest: usize, fresh: &[u8]) -> Next {
        if !fresh.is_empty() {
            if self.available() == 0
                && self.needed == 0
                && let Some(body) = self.cut_fresh(pool, fresh)
            {
                return Next::Message(body);
            }
            self.keep(fresh);
        }
        let available = self.available();
        if available == 0 || available < self.needed {
            return Next::Nothing;
        }
        match &self.framing {
            FramingSpec::Pieces => Next::Message(self.consume(pool, 0, available, available)),
            FramingSpec::Native(framing) => match framing.cut(&self.unread[self.unread_at..], self.searched) {
                Cut::Message { start, end, next } => Next::Message(self.consume(pool, start, end, next)),
                Cut::More(needed) if needed > largest => Next::Broken("message larger than max_buffered_bytes"),
                Cut::More(needed) => {
                    (self.needed, self.searched) = (needed, available);
                    Next::Nothing
                }
                Cut::Broken(why) => Next::Broken(why),
            },
            FramingSpec::Python(function) => {
                if self.searched == available {
                    return if available >= largest { Next::Broken("never complete") } else { Next::Nothing };
                }
                let shown = available.min(FRAMING_VIEW.max(self.searched * 2).max(self.needed));
                Next::Ask(function.clone_ref(py), self.unread[self.unread_at..self.unread_at + shown].to_vec())
            }
        }
    }
}

impl Connection {
    /// Bytes of a stream. Inside a batch.
    pub fn feed(slf: &Py<Self>, py: Python<'_>, bytes: &[u8]) {
        if Self::relay_bytes(slf, py, bytes) {
            return;
        }
        let inner = slf.get();
        let tick = inner.core.get().state.with(py, |state| state.tick);
        let open = inner.state.with(py, |state| {
            if state.phase != Phase::Open {
                // Nobody will read it; kept, it would grow for as long as the peer does not take what is queued for it.
                return false;
            }
            state.last_tick = tick;
            true
        });
        if open {
            Self::pump_from(slf, py, bytes);
        }
    }

    /// Delivers what can be delivered; then stops or restarts the peer.
    pub fn pump(slf: &Py<Self>, py: Python<'_>) {
        Self::pump_from(slf, py, &[]);
    }

    fn pump_from(slf: &Py<Self>, py: Python<'_>, mut fresh: &[u8]) {
        let inner = slf.get();
        if inner.is_pulled(py) {
            inner.state.with(py, |state| state.keep(fresh));
            Self::wake(slf, py, Wait::Readable);
            Self::adjust_reading(slf, py);
            return;
        }
        // A handler may come back here through `resume` or a finished neighbour: the outer loop goes on for it.
        let pumping = inner.state.with(py, |state| {
            if state.pumping || !state.queue.is_empty() {
                state.keep(std::mem::take(&mut fresh));
            }
            std::mem::replace(&mut state.pumping, true)
        });
        if pumping {
            return;
        }
        let pool = inner.core.get().pool.clone();
        let largest = inner.core.get().limits.max_buffered_bytes.max(1);
        loop {
            if !Self::may_deliver(slf, py) {
                break;
            }
            let queued = inner.state.with(py, |state| state.queue.pop_front());
            if let Some(packet) = queued {
                dispatch::message(py, slf, Incoming::Packet(packet));
                continue;
            }
            let fresh = std::mem::take(&mut fresh);
            match inner.state.with(py, |state| state.next_message(py, &pool, largest, fresh)) {
                Next::Nothing => break,
                Next::Message(body) => dispatch::message(py, slf, Incoming::Body(body)),
                Next::Ask(function, bytes) => {
                    if !Self::ask_framing(slf, py, &function, &bytes) {
                        break;
                    }
                }
                Next::Broken(why) => {
                    Self::framing_failed(slf, py, why);
                    break;
                }
            }
        }
        inner.state.with(py, |state| {
            state.keep(fresh);
            state.pumping = false;
        });
        Self::adjust_reading(slf, py);
        Self::close_if_ended(slf, py);
    }

    fn may_deliver(slf: &Py<Self>, py: Python<'_>) -> bool {
        let inner = slf.get();
        let core = inner.core.get();
        let (ready, datagram, kept) = inner.state.with(py, |state| {
            let ready = state.phase == Phase::Open && !state.busy && !state.paused && !state.throttled;
            (ready, state.datagram, state.account.as_ref().map_or(0, |account| account.kept()))
        });
        if !ready {
            return false;
        }
        let over = core.is_too_much(kept);
        if over && !datagram {
            inner.state.with(py, |state| state.throttled = true);
            Core::throttle(&inner.core, py, slf);
            return false;
        }
        true
    }

    /// Whether a throttled stream may go on now.
    pub fn unthrottle(slf: &Py<Self>, py: Python<'_>) -> bool {
        let inner = slf.get();
        let core = inner.core.get();
        let free = inner.state.with(py, |state| {
            let kept = state.account.as_ref().map_or(0, |account| account.kept());
            let free = state.phase == Phase::Closed
                || (kept <= core.limits.max_kept_bytes_per_connection / 2
                    && (kept == 0 || core.account.kept() <= core.limits.max_kept_bytes));
            if free {
                state.throttled = false;
            }
            free
        });
        if free {
            Self::pump(slf, py);
        }
        free
    }

    /// Asks the author's framing function; false when it need not be asked again: no message yet, or never.
    fn ask_framing(slf: &Py<Self>, py: Python<'_>, function: &Py<PyAny>, bytes: &[u8]) -> bool {
        let inner = slf.get();
        let answer = function.bind(py).call1((PyBytes::new(py, bytes),));
        let size = match answer {
            Ok(answer) => match answer.cast::<PyInt>() {
                Ok(number) => number.extract::<i64>().unwrap_or(i64::MAX),
                Err(_) => {
                    Self::framing_failed(slf, py, "the framing function returned no number");
                    return false;
                }
            },
            Err(error) => {
                let core = inner.core.get();
                core.report(py, Some(slf), None, error.value(py));
                Self::framing_failed(slf, py, "the framing function raised");
                return false;
            }
        };
        let largest = inner.core.get().limits.max_buffered_bytes.min(LARGEST_MESSAGE);
        match usize::try_from(size) {
            Err(_) => {
                Self::framing_failed(slf, py, "negative size");
                false
            }
            Ok(size) if size > largest => {
                Self::framing_failed(slf, py, "message larger than max_buffered_bytes");
                false
            }
            Ok(size) if size == 0 || size > bytes.len() => {
                let more = inner.state.with(py, |state| state.incomplete(bytes.len(), size));
                if bytes.len() >= largest {
                    Self::framing_failed(slf, py, "never complete");
                    return false;
                }
                more
            }
            Ok(size) => {
                let pool = &inner.core.get().pool;
                let body = inner.state.with(py, |state| state.consume(pool, 0, size, size));
                dispatch::message(py, slf, Incoming::Body(body));
                true
            }
        }
    }

    fn framing_failed(slf: &Py<Self>, py: Python<'_>, why: &str) {
        slf.get().core.get().counters.framing_errors.bump();
        Self::abort_with(slf, py, format!("framing: {why}"));
    }

    /// One datagram. Inside a batch.
    pub fn datagram(slf: &Py<Self>, py: Python<'_>, incoming: Incoming) {
        let inner = slf.get();
        let core = inner.core.get();
        let counters = &core.counters;
        enum Fate {
            Deliver,
            Queue,
            WrongSize,
            Full,
            Paused,
            Quota,
            Closed,
        }
        let (len, tick) = (incoming.bytes(py).len(), core.state.with(py, |state| state.tick));
        let fate = inner.state.with(py, |state| {
            state.last_tick = tick;
            if state.phase != Phase::Open {
                return Fate::Closed;
            }
            if let FramingSpec::Native(framing) = &state.framing
                && !framing.datagram_fits(len)
            {
                return Fate::WrongSize;
            }
            if state.paused {
                return Fate::Paused;
            }
            let kept = state.account.as_ref().map_or(0, |account| account.kept());
            if core.is_too_much(kept) {
                return Fate::Quota;
            }
            if state.busy || state.pumping {
                return if state.queue.len() < DATAGRAM_QUEUE { Fate::Queue } else { Fate::Full };
            }
            Fate::Deliver
        });
        match fate {
            Fate::Deliver => {
                dispatch::message(py, slf, incoming);
            }
            Fate::Queue => match incoming.into_packet(py, core) {
                Ok(packet) => {
                    packet.get().count_as_kept(py, &inner.account(py));
                    inner.state.with(py, |state| state.queue.push_back(packet));
                }
                Err(error) => Core::failed(&inner.core, py, Some(slf), None, error),
            },
            Fate::WrongSize => counters.drop_datagram_size.bump(),
            Fate::Full => counters.drop_queue_full.bump(),
            Fate::Paused => counters.drop_paused.bump(),
            Fate::Quota => counters.drop_kept_quota.bump(),
            Fate::Closed => counters.drop_not_connected.bump(),
        }
    }

    /// A datagram for the author to take.
    pub fn to_inbox(slf: &Py<Self>, py: Python<'_>, packet: Py<Packet>) {
        let inner = slf.get();
        packet.get().count_as_kept(py, &inner.account(py));
        let rejected = inner.state.with(py, |state| {
            if state.queue.len() >= DATAGRAM_QUEUE {
                return Some(packet);
            }
            state.queue.push_back(packet);
            None
        });
        if rejected.is_some() {
            inner.core.get().counters.drop_queue_full.bump();
        }
        drop(rejected);
        Self::wake(slf, py, Wait::Readable);
    }

    /// The peer will send no more.
    pub fn end_of_stream(slf: &Py<Self>, py: Python<'_>) {
        let inner = slf.get();
        inner.state.with(py, |state| state.peer_ended = true);
        if Self::relay_end(slf, py) {
            return;
        }
        Self::wake(slf, py, Wait::Readable);
        if !Self::fire(slf, py, Event::End, None) {
            Self::close_if_ended(slf, py);
        }
    }

    /// Stops or restarts reading from the transport, as pauses and the amount unread want it.
    pub fn adjust_reading(slf: &Py<Self>, py: Python<'_>) {
        let inner = slf.get();
        let limit = inner.core.get().limits.max_buffered_bytes;
        let relay_waits = inner.relay_waits(py);
        let change = inner.state.with(py, |state| {
            if !state.wire.is_stream() {
                return None;
            }
            if state.phase != Phase::Open || state.peer_ended {
                return None;
            }
            let waiting = state.available();
            let high = limit.min(HIGH_WATER.max(state.needed));
            let stop = state.paused || state.throttled || relay_waits || waiting >= high;
            if stop == state.reading_stopped {
                return None;
            }
            state.reading_stopped = stop;
            match &state.wire {
                Wire::Socket(stream) => {
                    stream.get().set_reading(py, !stop);
                    None
                }
                // Who does not read closes the window by that.
                Wire::Tcp { .. } if stop => None,
                Wire::Tcp { engine, port, id, .. } => Some(Change::WantData(engine.clone_ref(py), *port, *id)),
                wire => wire.transport(py).map(Change::Transport),
            }
            .map(|change| (change, stop))
        });
        match change {
            None => {}
            Some((Change::WantData(engine, port, id), _)) => engine.get().tcp_want_data(py, port, id),
            Some((Change::Transport(transport), stop)) => {
                let method = if stop { intern!(py, "pause_reading") } else { intern!(py, "resume_reading") };
                if let Err(error) = transport.call_method0(py, method) {
                    // The transport is closing: its connection_lost is on the way.
                    if !error.is_instance_of::<pyo3::exceptions::PyRuntimeError>(py) {
                        error.write_unraisable(py, None);
                    }
                }
            }
        }
    }

    /// The next message or piece of a connection without a handler; see `Connection.take` in the stub.
    pub fn take_from_inbox(
        slf: &Py<Self>,
        py: Python<'_>,
        until: Option<&[u8]>,
        size: Option<usize>,
        limit: usize,
    ) -> PyResult<Option<Py<Packet>>> {
        let inner = slf.get();
        let core = inner.core.get();
        if let Some(packet) = inner.state.with(py, |state| state.queue.pop_front()) {
            return Ok(Some(packet));
        }
        let largest = core.limits.max_buffered_bytes.max(1);
        let limit = limit.min(largest);
        if size.is_some_and(|size| size > largest) {
            return Err(PyValueError::new_err(format!("receive: size is over max_buffered_bytes ({largest})")));
        }
        let (next, available, peer_ended, phase) = inner.state.with(py, |state| {
            let available = state.available();
            state.needed = 0;
            let next = match (until, size) {
                (Some(until), _) if !until.is_empty() => match find(&state.unread[state.unread_at..], until) {
                    Some(at) if at + until.len() <= limit => {
                        let end = at + until.len();
                        Next::Message(state.consume(&core.pool, 0, end, end))
                    }
                    Some(_) => Next::Broken("limit"),
                    None if available >= limit => Next::Broken("limit"),
                    None => Next::Nothing,
                },
                (_, Some(size)) if available >= size => Next::Message(state.consume(&core.pool, 0, size, size)),
                (_, Some(size)) => {
                    state.needed = size;
                    Next::Nothing
                }
                (_, None) => state.next_message(py, &core.pool, largest, &[]),
            };
            if matches!(next, Next::Nothing) && state.needed == 0 && available > 0 {
                state.needed = available + 1;
            }
            (next, available, state.peer_ended, state.phase)
        });
        match next {
            Next::Message(body) => Self::taken(slf, py, body),
            Next::Broken("limit") => {
                let error = py.import(intern!(py, "libvnf.errors"))?.getattr(intern!(py, "MessageTooLong"))?;
                Err(PyErr::from_value(error.call1((format!("no {until:?} within {limit} bytes"),))?))
            }
            Next::Broken(why) => {
                Self::framing_failed(slf, py, why);
                Err(PyConnectionError::new_err(format!("framing: {why}")))
            }
            Next::Ask(function, bytes) => {
                let size =
                    function.bind(py).call1((PyBytes::new(py, &bytes),)).and_then(|found| found.extract::<i64>());
                let size = match size {
                    Ok(size) => usize::try_from(size).ok().filter(|size| *size <= largest),
                    Err(_) => None,
                };
                match size {
                    None => {
                        Self::framing_failed(slf, py, "the framing function raised or lied");
                        Err(PyConnectionError::new_err("framing: the framing function raised or lied"))
                    }
                    Some(size) if size == 0 || size > bytes.len() => {
                        let more = inner.state.with(py, |state| state.incomplete(bytes.len(), size));
                        if bytes.len() >= largest {
                            Self::framing_failed(slf, py, "never complete");
                        } else if more {
                            return Self::take_from_inbox(slf, py, until, None, limit);
                        }
                        Self::adjust_reading(slf, py);
                        Self::nothing_more(slf, py, available, peer_ended, phase)
                    }
                    Some(size) => {
                        let body = inner.state.with(py, |state| state.consume(&core.pool, 0, size, size));
                        Self::taken(slf, py, body)
                    }
                }
            }
            Next::Nothing => {
                Self::adjust_reading(slf, py);
                Self::nothing_more(slf, py, available, peer_ended, phase)
            }
        }
    }

    /// A message leaves the inbox; there is room for more.
    fn taken(slf: &Py<Self>, py: Python<'_>, body: Body) -> PyResult<Option<Py<Packet>>> {
        let inner = slf.get();
        let packet = Packet::from_body(py, body)?;
        packet.get().count_as_kept(py, &inner.account(py));
        inner.core.get().counters.messages_in.bump();
        Self::adjust_reading(slf, py);
        Ok(Some(packet))
    }

    /// Not yet, or never: an empty packet at the peer's end, an error when the connection broke.
    fn nothing_more(
        slf: &Py<Self>,
        py: Python<'_>,
        available: usize,
        peer_ended: bool,
        phase: Phase,
    ) -> PyResult<Option<Py<Packet>>> {
        if peer_ended && available == 0 {
            slf.get().state.with(py, |state| state.end_told = true);
            return Packet::from_body(py, Body::Empty).map(Some);
        }
        if peer_ended {
            return Err(PyConnectionError::new_err(format!(
                "the peer ended inside a message, after {available} bytes"
            )));
        }
        if phase == Phase::Closed || phase == Phase::Closing {
            let (error, reason) = slf
                .get()
                .state
                .with(py, |state| (state.error.as_ref().map(|error| error.clone_ref(py)), state.reason.clone()));
            return Err(match error {
                Some(error) => PyErr::from_value(error.into_bound(py)),
                None => PyConnectionError::new_err(format!("connection closed: {}", reason.unwrap_or_default())),
            });
        }
        Ok(None)
    }
}
