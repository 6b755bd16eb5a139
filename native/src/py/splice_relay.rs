//! Two connections joined here: what one receives, the other sends; no framing, no handler, no Python in between. Any
//! pair of streams can be; two kernel sockets have something better (`splicer.rs`).
//!
//! Each end of a pair holds the other, from `relay` until both directions have ended or either connection is over:
//! `finish` comes through `relay_broken`, so neither keeps the other alive for longer. Back-pressure is that of `out`: a
//! connection is not read from while the other has the high-water mark waiting, and again when that has been flushed.

use std::borrow::Cow;

use pyo3::exceptions::{PyConnectionError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit, intern};

use super::connection::{Connection, Phase};
use super::outbound::HIGH_WATER;
use super::splicer::Splice;

/// What one end knows of its pair.
pub enum Spliced {
    Relay(Relay),
    /// The thread reads and writes the socket; `seen`: how many bytes it had moved at the last look.
    Thread {
        splice: Py<Splice>,
        seen: u64,
    },
}

pub struct Relay {
    other: Py<Connection>,
    /// Bytes received here and queued there.
    moved: u64,
    /// The future that hears how it ended; the pair's first connection has it.
    done: Option<Py<PyAny>>,
}

impl Spliced {
    pub fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Self::Relay(relay) => {
                visit.call(&relay.other)?;
                visit.call(&relay.done)
            }
            Self::Thread { splice, .. } => visit.call(splice),
        }
    }
}

impl Connection {
    fn other_end(&self, py: Python<'_>) -> Option<Py<Self>> {
        self.state.with(py, |state| match state.spliced.as_deref() {
            Some(Spliced::Relay(relay)) => Some(relay.other.clone_ref(py)),
            Some(Spliced::Thread { .. }) | None => None,
        })
    }

    /// Out of its pair; a thread's pair is stopped, which ends the wait for it.
    fn take_relay(&self, py: Python<'_>) -> Option<Relay> {
        match self.state.with(py, |state| state.spliced.take()).map(|spliced| *spliced) {
            Some(Spliced::Relay(relay)) => Some(relay),
            Some(Spliced::Thread { splice, .. }) => {
                splice.get().stop();
                None
            }
            None => None,
        }
    }

    /// What the thread moves is activity of the connection.
    pub fn hear_thread(&self, py: Python<'_>, tick: u32) {
        self.state.with(py, |state| {
            if let Some(Spliced::Thread { splice, seen }) = state.spliced.as_deref_mut() {
                let moved = splice.get().moved();
                if std::mem::replace(seen, moved) != moved {
                    state.last_tick = tick;
                }
            }
        });
    }

    fn heard(&self, py: Python<'_>) {
        let tick = self.core.get().state.with(py, |state| state.tick);
        self.state.with(py, |state| state.last_tick = tick);
    }

    /// `feed` of a spliced connection; false: it is not one.
    pub fn relay_bytes(slf: &Py<Self>, py: Python<'_>, bytes: &[u8]) -> bool {
        let Some(other) = slf.get().other_end(py) else { return false };
        if slf.get().phase(py) != Phase::Open {
            return true;
        }
        let refused = other.get().state.with(py, |state| {
            // One that is closing ends the pair with this batch, and says why.
            if state.phase == Phase::Open && !state.end_wanted {
                state.out.extend_from_slice(bytes);
            }
            state.end_wanted
        });
        if refused {
            Self::abort_with(slf, py, "splice: bytes for the other connection after its end()");
            return true;
        }
        slf.get().moved(py, bytes.len());
        Self::mark_dirty(&other, py);
        Self::adjust_reading(slf, py);
        true
    }

    fn moved(&self, py: Python<'_>, count: usize) {
        self.state.with(py, |state| {
            if let Some(Spliced::Relay(relay)) = state.spliced.as_deref_mut() {
                relay.moved += count as u64;
            }
        });
    }

    /// `end_of_stream` of a spliced connection: a half-close of the other, after what is queued there.
    pub fn relay_end(slf: &Py<Self>, py: Python<'_>) -> bool {
        let Some(other) = slf.get().other_end(py) else { return false };
        other.get().state.with(py, |state| state.end_wanted = true);
        Self::mark_dirty(&other, py);
        true
    }

    /// Whether what was received here waits at the other end for its peer.
    pub fn relay_waits(&self, py: Python<'_>) -> bool {
        let high = self.core.get().limits.max_buffered_bytes.clamp(1, HIGH_WATER);
        self.other_end(py).is_some_and(|other| other.get().state.with(py, |state| state.out.len() >= high))
    }

    /// How much may be received at once; at least one byte.
    pub fn relay_room(&self, py: Python<'_>) -> usize {
        let Some(other) = self.other_end(py) else { return usize::MAX };
        let queued = other.get().state.with(py, |state| state.out.len());
        self.core.get().limits.max_buffered_bytes.saturating_sub(queued).max(1)
    }

    /// Some of what was queued may have left: lets the other be read from again, or ends the pair.
    pub fn relay_flushed(slf: &Py<Self>, py: Python<'_>) {
        let Some(other) = slf.get().other_end(py) else { return };
        slf.get().heard(py);
        other.get().heard(py);
        Self::adjust_reading(&other, py);
        let ended = [slf, &other].iter().all(|end| {
            end.get().state.with(py, |state| state.phase == Phase::Open && state.peer_ended && state.end_sent)
        });
        if !ended {
            return;
        }
        let (Some(here), Some(there)) = (slf.get().take_relay(py), other.get().take_relay(py)) else { return };
        let (first, second) = if here.done.is_some() { (here, there) } else { (there, here) };
        if let Some(done) = &first.done {
            succeed(py, done, (first.moved, second.moved));
        }
        Self::close_now(slf, py);
        Self::close_now(&other, py);
    }

    /// It is over before both directions have ended: so is the other, and who waits hears why.
    pub fn relay_broken(slf: &Py<Self>, py: Python<'_>, reason: &str) {
        let Some(here) = slf.get().take_relay(py) else { return };
        let there = here.other.get().take_relay(py);
        let which = if here.done.is_some() { "first" } else { "second" };
        let why = format!("splice: the {which} connection closed: {reason}");
        if let Some(done) = here.done.as_ref().or(there.as_ref().and_then(|there| there.done.as_ref())) {
            let error = PyConnectionError::new_err(why.clone());
            Self::settle(py, done, Some(&error.into_value(py).into_any()));
        }
        Self::abort_with(&here.other, py, why);
    }

    /// An open stream that is in no pair, or why not.
    pub fn check_spliceable(&self, py: Python<'_>) -> PyResult<()> {
        self.core.get().check_thread()?;
        enum Found {
            Fits,
            Closed(Cow<'static, str>),
            NotStream,
            Spliced,
        }
        let found = self.state.with(py, |state| {
            if state.phase != Phase::Open {
                return Found::Closed(state.reason.clone().unwrap_or_else(|| "not connected yet".into()));
            }
            match &state.spliced {
                _ if !state.wire.is_stream() => Found::NotStream,
                Some(_) => Found::Spliced,
                None => Found::Fits,
            }
        });
        match found {
            Found::Fits => Ok(()),
            Found::Closed(reason) => {
                Err(PyConnectionError::new_err(format!("splice: the connection is not open: {reason}")))
            }
            Found::NotStream => Err(PyValueError::new_err("splice: streams can be joined, datagrams cannot")),
            Found::Spliced => Err(PyRuntimeError::new_err("splice: the connection is spliced already")),
        }
    }

    /// Queues what waits in this inbox on `sink`, unframed, and returns how many bytes: they are moved, so no limit is asked.
    fn pass_inbox(&self, py: Python<'_>, sink: &Py<Self>) -> PyResult<usize> {
        let (packets, unread) = self.state.with(py, |state| {
            let mut unread = std::mem::take(&mut state.unread);
            unread.drain(..std::mem::take(&mut state.unread_at));
            (state.searched, state.needed) = (0, 0);
            (std::mem::take(&mut state.queue), unread)
        });
        let pieces = packets.iter().map(|packet| packet.get().bytes(py)).chain([&unread[..]]);
        let count = pieces.clone().map(<[u8]>::len).sum();
        let refused = sink.get().state.with(py, |state| {
            state.out.extend(pieces.flatten());
            state.end_wanted && count > 0
        });
        if refused {
            return Err(PyConnectionError::new_err("splice: bytes for a connection after its end()"));
        }
        Self::mark_dirty(sink, py);
        Ok(count)
    }
}

fn succeed(py: Python<'_>, future: &Py<PyAny>, value: (u64, u64)) {
    let told = (|| {
        if !future.call_method0(py, intern!(py, "done"))?.is_truthy(py)? {
            future.call_method1(py, intern!(py, "set_result"), (value,))?;
        }
        PyResult::Ok(())
    })();
    if let Err(error) = told {
        error.write_unraisable(py, None);
    }
}

#[pyfunction]
#[pyo3(signature = (source, sink, /))]
pub fn pass_inbox(source: &Bound<'_, Connection>, sink: &Bound<'_, Connection>) -> PyResult<usize> {
    source.get().check_spliceable(source.py())?;
    sink.get().check_spliceable(source.py())?;
    source.get().pass_inbox(source.py(), sink.as_unbound())
}

#[pyfunction]
#[pyo3(signature = (first, second, /))]
pub fn relay<'py>(first: &Bound<'py, Connection>, second: &Bound<'py, Connection>) -> PyResult<Bound<'py, PyAny>> {
    let py = first.py();
    if first.is(second) {
        return Err(PyValueError::new_err("splice: a connection cannot be joined with itself"));
    }
    first.get().check_spliceable(py)?;
    second.get().check_spliceable(py)?;
    let future = first.get().core.get().event_loop.bind(py).call_method0(intern!(py, "create_future"))?;
    let pairs = [(first.as_unbound(), second.as_unbound()), (second.as_unbound(), first.as_unbound())];
    let [forth, back] = pairs.map(|(here, there)| here.get().pass_inbox(py, there));
    let mut done = Some(future.clone().unbind());
    for ((here, there), waiting) in pairs.into_iter().zip([forth?, back?]) {
        let relay = Relay { other: there.clone_ref(py), moved: waiting as u64, done: done.take() };
        here.get().state.with(py, |state| {
            (state.paused, state.throttled, state.pool) = (false, false, None);
            state.spliced = Some(Box::new(Spliced::Relay(relay)));
        });
    }
    for (here, _) in pairs {
        if here.get().state.with(py, |state| state.peer_ended) {
            Connection::relay_end(here, py);
        }
        Connection::adjust_reading(here, py);
        // Both may have ended already, which is seen once they are flushed.
        Connection::mark_dirty(here, py);
    }
    Ok(future)
}
