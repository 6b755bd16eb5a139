//! A UDP kernel socket: a client's, connected to its one peer, or a server's with a connection per peer address.
//!
//! What the kernel cannot take now is dropped and counted, as a full link would do.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use hashbrown::HashMap;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit, intern};

use super::cell::GilCell;
use super::connection::{Connection, Phase};
use super::core::Core;
use super::dispatch::Incoming;
use super::endpoint::Endpoint;
use super::packet::Body;
use super::sockets::{Sockets, failure};
use super::stream::extra_info;
use super::wire::Wire;

/// Datagrams taken per event, so that timers and other sockets get their turn.
const BURST: usize = 64;

#[derive(Default)]
struct State {
    socket: Option<UdpSocket>,
    token: u64,
    peers: HashMap<SocketAddr, Py<Connection>>,
    /// Oldest first; those that have gone are skipped, and left out before they outnumber the others.
    order: VecDeque<SocketAddr>,
    python: Option<Py<PyAny>>,
}

#[pyclass(frozen, weakref, module = "libvnf._native")]
pub struct Datagrams {
    sockets: Py<Sockets>,
    endpoint: Option<Py<Endpoint>>,
    connection: Option<Py<Connection>>,
    state: GilCell<State>,
}

impl Datagrams {
    pub fn new(sockets: Py<Sockets>, endpoint: Option<Py<Endpoint>>, connection: Option<Py<Connection>>) -> Self {
        Self { sockets, endpoint, connection, state: GilCell::new(State::default()) }
    }

    pub fn begin(&self, py: Python<'_>, socket: OwnedFd, token: u64) {
        self.state.with(py, |state| (state.socket, state.token) = (Some(socket.into()), token));
    }

    /// Sends one datagram; an error is the peer's, as the network told it (RFC 1122 4.1.3.3), or its size.
    pub fn send(&self, py: Python<'_>, bytes: &[u8], address: Option<SocketAddr>) {
        let sent = self.state.with(py, |state| match (&state.socket, address) {
            (Some(socket), Some(address)) => socket.send_to(bytes, address),
            (Some(socket), None) => socket.send(bytes),
            (None, _) => Ok(0),
        });
        match sent {
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
                    || error.raw_os_error() == Some(libc::ENOBUFS) =>
            {
                self.sockets.get().datagrams_dropped.bump();
            }
            Err(error) => self.failed(py, &error),
            Ok(_) => {}
        }
    }

    fn failed(&self, py: Python<'_>, error: &io::Error) {
        if let Some(connection) = &self.connection {
            let error = failure(py, error, None);
            Connection::unreachable(connection, py, error.value(py).as_any());
        }
    }

    pub fn readable(slf: &Py<Self>, py: Python<'_>) {
        let inner = slf.get();
        let core = inner.sockets.get().core.get();
        inner.sockets.get().with_scratch(py, |scratch| {
            for _ in 0..BURST {
                let received = inner.state.with(py, |state| match &state.socket {
                    Some(socket) if inner.connection.is_some() => socket.recv(scratch).map(|count| (count, None)),
                    Some(socket) => socket.recv_from(scratch).map(|(count, from)| (count, Some(from))),
                    None => Err(ErrorKind::WouldBlock.into()),
                });
                let (count, from) = match received {
                    Ok(received) => received,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                    Err(error) => {
                        inner.failed(py, &error);
                        continue;
                    }
                };
                let connection = match (&inner.connection, from) {
                    (Some(connection), _) => Some(connection.clone_ref(py)),
                    (None, Some(from)) => Self::peer(slf, py, from),
                    (None, None) => None,
                };
                if let Some(connection) = connection {
                    let body = Body::copy(&core.pool, &scratch[..count]);
                    Connection::datagram(&connection, py, Incoming::Body(body));
                }
            }
            inner.state.with(py, |state| {
                if let Some(socket) = &state.socket {
                    inner.sockets.get().rearm(py, socket, state.token);
                }
            });
        });
    }

    /// The connection of a peer; a new one, unless there are too many.
    fn peer(slf: &Py<Self>, py: Python<'_>, from: SocketAddr) -> Option<Py<Connection>> {
        let inner = slf.get();
        let core = &inner.sockets.get().core;
        let known = inner.state.with(py, |state| state.peers.get(&from).map(|known| known.clone_ref(py)));
        if let Some(known) = known {
            if known.get().phase(py) == Phase::Open {
                return Some(known);
            }
            inner.forget(py, from, &known);
        }
        let endpoint = inner.endpoint.as_ref()?;
        let admitted = endpoint.get().state.with(py, |state| state.accepting)
            && (core.get().open_connections() < core.get().limits.max_connections || inner.evict(py));
        if !admitted {
            core.get().counters.connections_refused.bump();
            return None;
        }
        match Connection::create(py, core, endpoint) {
            Ok(connection) => {
                let kept = connection.clone_ref(py);
                let old = inner.state.with(py, |state| {
                    state.order.push_back(from);
                    state.peers.insert(from, kept)
                });
                drop(old);
                let wire = Wire::Datagrams { socket: slf.clone_ref(py), address: Some(from) };
                Connection::accepted(&connection, py, wire);
                Some(connection)
            }
            Err(error) => {
                Core::failed(core, py, None, None, error);
                None
            }
        }
    }

    /// Forgets a peer whose connection has ended; a newer connection may have the address already.
    pub fn forget(&self, py: Python<'_>, address: SocketAddr, connection: &Py<Connection>) {
        let old = self.state.with(py, |state| {
            let old = state.peers.get(&address).is_some_and(|known| known.is(connection));
            let old = if old { state.peers.remove(&address) } else { None };
            if state.order.len() > 64 + 2 * state.peers.len() {
                let peers = &state.peers;
                let mut seen = hashbrown::HashSet::with_capacity(peers.len());
                state.order.retain(|address| peers.contains_key(address) && seen.insert(*address));
            }
            old
        });
        drop(old);
    }

    /// Ends the oldest of the idle peers among the first few, so that strangers cannot shut the door for others.
    fn evict(&self, py: Python<'_>) -> bool {
        for _ in 0..16 {
            let oldest = self.state.with(py, |state| {
                let address = state.order.pop_front()?;
                Some((address, state.peers.get(&address).map(|known| known.clone_ref(py))))
            });
            let Some((address, connection)) = oldest else { return false };
            let Some(connection) = connection else { continue };
            let (occupied, open) = connection.get().state.with(py, |state| {
                (state.busy || state.open_requests > 0 || state.request.is_some(), state.phase == Phase::Open)
            });
            if !open {
                continue;
            }
            if occupied {
                self.state.with(py, |state| state.order.push_back(address));
                continue;
            }
            self.sockets.get().core.get().counters.connections_evicted.bump();
            connection.get().state.with(py, |state| state.reason = Some("evicted".into()));
            Connection::finish(&connection, py);
            return true;
        }
        false
    }

    /// Closes the socket; the connections over it end.
    pub fn close(slf: &Py<Self>, py: Python<'_>) {
        let inner = slf.get();
        let (socket, token, python, peers) = inner.state.with(py, |state| {
            state.order.clear();
            (state.socket.take(), state.token, state.python.take(), std::mem::take(&mut state.peers))
        });
        let Some(socket) = socket else { return };
        if let Some(python) = python
            && let Err(error) = python.call_method0(py, intern!(py, "detach"))
        {
            error.write_unraisable(py, None);
        }
        inner.sockets.get().forget(py, token);
        drop(socket);
        for connection in peers.values().chain(&inner.connection) {
            if connection.get().phase(py) != Phase::Closed {
                Connection::finish_with(connection, py, "closed");
            }
        }
    }
}

#[pymethods]
impl Datagrams {
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
        visit.call(&self.endpoint)?;
        visit.call(&self.connection)?;
        self.state
            .peek(|state| {
                state.peers.values().try_for_each(|peer| visit.call(peer))?;
                visit.call(&state.python)
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.state.with(py, |state| std::mem::take(&mut state.peers));
        drop(old);
    }
}
