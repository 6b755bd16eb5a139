//! A stream's kernel socket: non-blocking, watched by `Sockets`, feeding one connection.
//!
//! The socket is closed here and nowhere else; whoever still holds the object finds it closed. What the kernel does not
//! take stays in the connection's own queue, so back-pressure has one place.

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};

use pyo3::exceptions::PyConnectionError;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit, intern};

use super::cell::GilCell;
use super::connection::{Connection, Phase};
use super::sockets::{Sockets, failure};
use super::wire::Wire;
use crate::load::sys::{self, Event};

/// Pieces read per event, so that one fast peer does not hold up the others.
const PIECES: usize = 4;

#[derive(Default)]
struct State {
    socket: Option<OwnedFd>,
    token: u64,
    connection: Option<Py<Connection>>,
    /// Where it connects to; None once connected.
    connecting: Option<String>,
    /// The connection wants no more for now; and something was there meanwhile.
    stopped: bool,
    missed: bool,
    /// A Python socket over the same descriptor, once somebody has asked.
    python: Option<Py<PyAny>>,
}

/// What one attempt to read brought.
enum Read {
    Bytes(usize),
    Later,
    Failed(std::io::Error),
    Closed,
}

#[pyclass(frozen, weakref, module = "libvnf._native")]
pub struct Stream {
    sockets: Py<Sockets>,
    state: GilCell<State>,
}

impl Stream {
    pub fn new(sockets: Py<Sockets>, connection: Py<Connection>, connecting: Option<&str>) -> Self {
        let state = State { connection: Some(connection), connecting: connecting.map(Into::into), ..State::default() };
        Self { sockets, state: GilCell::new(state) }
    }

    pub fn begin(&self, py: Python<'_>, socket: OwnedFd, token: u64) {
        self.state.with(py, |state| (state.socket, state.token) = (Some(socket), token));
    }

    pub fn is_connecting(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| state.connecting.is_some())
    }

    /// From now on it feeds `connection`, or waits in a pool.
    pub fn hand_over(&self, py: Python<'_>, connection: Option<Py<Connection>>) {
        let old = self.state.with(py, |state| std::mem::replace(&mut state.connection, connection));
        drop(old);
    }

    /// Sends what the kernel takes now.
    pub fn write(&self, py: Python<'_>, bytes: &[u8]) -> std::io::Result<usize> {
        self.state.with(py, |state| match &state.socket {
            Some(socket) => match sys::send(socket, bytes) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
                sent => sent,
            },
            None => Err(ErrorKind::NotConnected.into()),
        })
    }

    /// Another descriptor of the same socket.
    pub fn duplicate(&self, py: Python<'_>) -> std::io::Result<OwnedFd> {
        self.state.with(py, |state| match &state.socket {
            Some(socket) => socket.try_clone(),
            None => Err(ErrorKind::NotConnected.into()),
        })
    }

    /// No more will be sent.
    pub fn end(&self, py: Python<'_>) {
        self.state.with(py, |state| {
            if let Some(socket) = &state.socket {
                // A connection that has failed meanwhile refuses; reading says so.
                let _ = sys::end(socket);
            }
        });
    }

    pub fn set_reading(&self, py: Python<'_>, reading: bool) {
        self.state.with(py, |state| {
            state.stopped = !reading;
            if reading
                && std::mem::take(&mut state.missed)
                && let Some(socket) = &state.socket
            {
                self.sockets.get().rearm(py, socket, state.token);
            }
        });
    }

    /// Closes the socket. `reset`: the peer cannot take the cut for the end of the answer (RFC 9293 3.10.5).
    pub fn close(&self, py: Python<'_>, reset: bool) {
        let old = self.state.with(py, |state| {
            state.connecting = None;
            let socket = state.socket.take()?;
            Some((socket, state.token, state.connection.take(), state.python.take()))
        });
        let Some((socket, token, connection, python)) = old else { return };
        if let Some(python) = python
            && let Err(error) = python.call_method0(py, intern!(py, "detach"))
        {
            error.write_unraisable(py, None);
        }
        self.sockets.get().forget(py, token);
        if reset {
            sys::reset_on_close(&socket);
        }
        drop((socket, connection));
    }

    fn connection(&self, py: Python<'_>) -> Option<Py<Connection>> {
        self.state.with(py, |state| state.connection.as_ref().map(|connection| connection.clone_ref(py)))
    }

    pub fn happened(slf: &Py<Self>, py: Python<'_>, event: Event) {
        let inner = slf.get();
        if inner.is_connecting(py) {
            if !event.writable || !Self::connected(slf, py, event.ended) {
                return;
            }
        } else if event.writable
            && let Some(connection) = inner.connection(py)
        {
            Connection::unblocked(&connection, py);
        }
        if event.readable {
            Self::read(slf, py, event.ended);
        }
    }

    /// The connect is over; whether there is something to read from.
    fn connected(slf: &Py<Self>, py: Python<'_>, ended: bool) -> bool {
        let inner = slf.get();
        let (outcome, url, connection) = inner.state.with(py, |state| {
            let outcome = match &state.socket {
                Some(socket) if ended => sys::take_error(socket),
                _ => Ok(()),
            };
            (outcome, state.connecting.take(), state.connection.as_ref().map(|connection| connection.clone_ref(py)))
        });
        let Some(connection) = connection else { return false };
        match outcome {
            Err(error) => {
                inner.close(py, false);
                inner.sockets.get().connect_failed(py, &connection, failure(py, &error, url.as_deref()));
                false
            }
            Ok(()) if connection.get().is_over(py) => {
                inner.close(py, true);
                false
            }
            Ok(()) => {
                Connection::made(&connection, py, Wire::Socket(slf.clone_ref(py)));
                true
            }
        }
    }

    /// The connect took too long.
    pub fn expired(slf: &Py<Self>, py: Python<'_>, connect_s: f64) {
        let inner = slf.get();
        let url = inner.state.with(py, |state| state.connecting.take()).unwrap_or_default();
        let connection = inner.connection(py);
        inner.close(py, true);
        if let Some(connection) = connection {
            let error = PyConnectionError::new_err(format!("{url}: not connected within {connect_s} s"));
            inner.sockets.get().connect_failed(py, &connection, error);
        }
    }

    /// The VNF stops: connections that were made have been ended before.
    pub fn stopped(slf: &Py<Self>, py: Python<'_>) {
        let connection = slf.get().connection(py);
        slf.get().close(py, true);
        if let Some(connection) = connection {
            Connection::abort_with(&connection, py, "the VNF stops");
        }
    }

    /// Takes what has come, at most a few pieces. `ended`: reads until that is seen.
    fn read(slf: &Py<Self>, py: Python<'_>, ended: bool) {
        let inner = slf.get();
        let sockets = inner.sockets.get();
        sockets.with_scratch(py, |scratch| {
            for _ in 0..PIECES {
                let connection = inner.connection(py);
                let room = connection.as_ref().map_or(usize::MAX, |connection| connection.get().relay_room(py));
                let room = room.min(scratch.len());
                let read = inner.state.with(py, |state| {
                    state.missed = state.stopped;
                    match &state.socket {
                        Some(_) if state.stopped => Read::Closed,
                        Some(socket) => match sys::receive(socket, &mut scratch[..room]) {
                            Ok(count) => Read::Bytes(count),
                            Err(error) if error.kind() == ErrorKind::WouldBlock => Read::Later,
                            Err(error) => Read::Failed(error),
                        },
                        None => Read::Closed,
                    }
                });
                let Some(connection) = connection else {
                    // A pooled wire that says anything is of no further use.
                    if !matches!(read, Read::Later | Read::Closed) {
                        sockets.core.get().spare_remove(py, |wire| matches!(wire, Wire::Socket(one) if one.is(slf)));
                        inner.close(py, true);
                    }
                    return;
                };
                match read {
                    Read::Later | Read::Closed => return,
                    Read::Failed(error) => {
                        inner.close(py, false);
                        return Connection::lost(&connection, py, &error);
                    }
                    Read::Bytes(0) => return Connection::end_of_stream(&connection, py),
                    Read::Bytes(_) if connection.get().phase(py) != Phase::Open => {}
                    Read::Bytes(count) => {
                        Connection::feed(&connection, py, &scratch[..count]);
                        if count < room && !ended {
                            return;
                        }
                    }
                }
            }
            inner.state.with(py, |state| {
                if let Some(socket) = &state.socket {
                    sockets.rearm(py, socket, state.token);
                }
            });
        });
    }
}

/// A Python socket over `fd`, which stays whose it is: `detach` it before `fd` is closed.
fn python_socket(py: Python<'_>, fd: i32) -> PyResult<Py<PyAny>> {
    let options = pyo3::types::PyDict::new(py);
    options.set_item("fileno", fd)?;
    Ok(py.import("socket")?.getattr("socket")?.call((), Some(&options))?.unbind())
}

/// What asyncio's transports tell: "socket", "sockname", "peername". `python` is the Python socket over `fd`, made once
/// somebody asks.
pub fn extra_info(
    py: Python<'_>,
    fd: Option<i32>,
    python: &mut Option<Py<PyAny>>,
    name: &str,
) -> PyResult<Option<Py<PyAny>>> {
    if let (Some(fd), None) = (fd, &python) {
        *python = Some(python_socket(py, fd)?);
    }
    let Some(socket) = python else { return Ok(None) };
    Ok(match name {
        "socket" => Some(socket.clone_ref(py)),
        "sockname" => socket.call_method0(py, intern!(py, "getsockname")).ok(),
        "peername" => socket.call_method0(py, intern!(py, "getpeername")).ok(),
        _ => None,
    })
}

#[pymethods]
impl Stream {
    #[pyo3(signature = (name, default=None, /))]
    pub fn get_extra_info(
        &self,
        py: Python<'_>,
        name: &str,
        default: Option<Py<PyAny>>,
    ) -> PyResult<Option<Py<PyAny>>> {
        let (fd, mut python) = self.state.with(py, |state| {
            (state.socket.as_ref().map(AsRawFd::as_raw_fd), state.python.as_ref().map(|known| known.clone_ref(py)))
        });
        let told = extra_info(py, fd, &mut python, name)?;
        let old = self.state.with(py, |state| std::mem::replace(&mut state.python, python));
        drop(old);
        Ok(told.or(default))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.sockets)?;
        self.state
            .peek(|state| {
                visit.call(&state.connection)?;
                visit.call(&state.python)
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.state.with(py, |state| state.connection.take());
        drop(old);
    }
}
