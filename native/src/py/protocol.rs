//! asyncio's protocols: the way from a Python transport (kernel sockets, the in-memory network) into connections.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use pyo3::{PyTraverseError, PyVisit, intern};

use super::cell::GilCell;
use super::connection::{Connection, Phase};
use super::core::Core;
use super::dispatch::Incoming;
use super::endpoint::Endpoint;
use super::packet::Body;
use super::wire::{Wire, close_wire};

fn method(py: Python<'_>, transport: &Py<PyAny>, name: &str) -> PyResult<Py<PyAny>> {
    transport.getattr(py, name)
}

#[pyclass(frozen, weakref, module = "libvnf._native")]
pub struct StreamProtocol {
    core: Py<Core>,
    endpoint: Option<Py<Endpoint>>,
    connection: GilCell<Option<Py<Connection>>>,
    transport: GilCell<Option<Py<PyAny>>>,
}

impl StreamProtocol {
    /// The wire changes hands: from now on it feeds `connection`, or waits in a pool.
    pub fn hand_over(&self, py: Python<'_>, connection: Option<Py<Connection>>) {
        let old = self.connection.with(py, |slot| std::mem::replace(slot, connection));
        drop(old);
    }

    fn current(&self, py: Python<'_>) -> Option<Py<Connection>> {
        self.connection.with(py, |slot| slot.as_ref().map(|connection| connection.clone_ref(py)))
    }

    /// A pooled wire that says anything is of no further use.
    fn leave_pool(slf: &Py<Self>, py: Python<'_>, abort: bool) {
        let inner = slf.get();
        inner.core.get().spare_remove(py, |wire| matches!(wire, Wire::Stream { protocol, .. } if protocol.is(slf)));
        let transport =
            inner.transport.with(py, |transport| transport.as_ref().map(|transport| transport.clone_ref(py)));
        if let (Some(transport), true) = (transport, abort)
            && let Err(error) = transport.call_method0(py, intern!(py, "abort"))
        {
            error.write_unraisable(py, None);
        }
    }
}

#[pymethods]
impl StreamProtocol {
    #[new]
    #[pyo3(signature = (core, endpoint, connection, /))]
    fn new(core: Py<Core>, endpoint: Option<Py<Endpoint>>, connection: Option<Py<Connection>>) -> Self {
        Self { core, endpoint, connection: GilCell::new(connection), transport: GilCell::new(None) }
    }

    #[getter]
    fn connection(&self, py: Python<'_>) -> Option<Py<Connection>> {
        self.current(py)
    }

    #[pyo3(signature = (transport, /))]
    fn connection_made(slf: Py<Self>, py: Python<'_>, transport: Py<PyAny>) -> PyResult<()> {
        let inner = slf.get();
        let core = inner.core.get();
        core.check_thread()?;
        let kept = transport.clone_ref(py);
        inner.transport.with(py, |slot| *slot = Some(kept));
        let write = method(py, &transport, "write")?;
        let wire = Wire::Stream { transport: transport.clone_ref(py), write, protocol: slf.clone_ref(py) };
        core.enter(py);
        match (inner.current(py), &inner.endpoint) {
            (Some(connection), _) => {
                if connection.get().is_over(py) {
                    close_wire(py, &wire, true);
                } else {
                    Connection::made(&connection, py, wire);
                }
            }
            (None, Some(endpoint)) => {
                if Connection::admit(py, core, endpoint.get()) {
                    match Connection::create(py, &inner.core, endpoint) {
                        Ok(connection) => {
                            inner.hand_over(py, Some(connection.clone_ref(py)));
                            Connection::accepted(&connection, py, wire);
                        }
                        Err(error) => {
                            close_wire(py, &wire, true);
                            Core::failed(&inner.core, py, None, None, error);
                        }
                    }
                } else {
                    close_wire(py, &wire, true);
                }
            }
            (None, None) => {
                close_wire(py, &wire, true);
                Core::leave(&inner.core, py)?;
                return Err(PyRuntimeError::new_err("StreamProtocol: neither an endpoint nor a connection was given"));
            }
        }
        Core::leave(&inner.core, py)
    }

    #[pyo3(signature = (data, /))]
    fn data_received(slf: Py<Self>, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let inner = slf.get();
        let Some(connection) = inner.current(py) else {
            Self::leave_pool(&slf, py, true);
            return Ok(());
        };
        inner.core.get().enter(py);
        match data.cast_exact::<PyBytes>() {
            Ok(bytes) => Connection::feed(&connection, py, bytes.as_bytes()),
            Err(_) => super::packet::with_bytes(data, |bytes| Connection::feed(&connection, py, bytes))?,
        }
        Core::leave(&inner.core, py)
    }

    fn eof_received(slf: Py<Self>, py: Python<'_>) -> PyResult<bool> {
        let inner = slf.get();
        let Some(connection) = inner.current(py) else {
            Self::leave_pool(&slf, py, true);
            return Ok(false);
        };
        inner.core.get().enter(py);
        Connection::end_of_stream(&connection, py);
        Core::leave(&inner.core, py)?;
        Ok(true)
    }

    #[pyo3(signature = (error, /))]
    fn connection_lost(slf: Py<Self>, py: Python<'_>, error: Option<Py<PyAny>>) -> PyResult<()> {
        let inner = slf.get();
        let old = inner.transport.with(py, Option::take);
        drop(old);
        let Some(connection) = inner.current(py) else {
            Self::leave_pool(&slf, py, false);
            return Ok(());
        };
        inner.core.get().enter(py);
        let reason = match &error {
            Some(error) => format!("reset: {}", error.bind(py).str()?),
            None => "ended".to_string(),
        };
        let over = connection.get().state.with(py, |state| {
            // The peer's data may still be read; its end is part of it unless the connection broke.
            state.peer_ended |= error.is_none();
            state.finishing
        });
        if !over {
            Connection::finish_with(&connection, py, reason.clone());
        }
        inner.hand_over(py, None);
        Core::leave(&inner.core, py)
    }

    fn pause_writing(slf: Py<Self>, py: Python<'_>) {
        if let Some(connection) = slf.get().current(py) {
            Connection::write_blocked(&connection, py, true);
        }
    }

    fn resume_writing(slf: Py<Self>, py: Python<'_>) -> PyResult<()> {
        let inner = slf.get();
        if let Some(connection) = inner.current(py) {
            inner.core.get().enter(py);
            Connection::write_blocked(&connection, py, false);
            return Core::leave(&inner.core, py);
        }
        Ok(())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.core)?;
        visit.call(&self.endpoint)?;
        self.connection.peek(|connection| visit.call(connection)).unwrap_or(Ok(()))?;
        self.transport.peek(|transport| visit.call(transport)).unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let connection = self.connection.with(py, Option::take);
        let transport = self.transport.with(py, Option::take);
        drop((connection, transport));
    }
}

#[pyclass(frozen, weakref, module = "libvnf._native")]
pub struct DatagramProtocol {
    core: Py<Core>,
    endpoint: Option<Py<Endpoint>>,
    connection: Option<Py<Connection>>,
    transport: GilCell<Option<(Py<PyAny>, Py<PyAny>)>>,
    /// Address → connection, oldest first.
    peers: Py<PyDict>,
}

impl DatagramProtocol {
    fn peer(
        slf: &Py<Self>,
        py: Python<'_>,
        endpoint: &Py<Endpoint>,
        address: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Py<Connection>>> {
        let inner = slf.get();
        let core = inner.core.get();
        let peers = inner.peers.bind(py);
        if let Some(found) = peers.get_item(address)? {
            let connection = found.cast_into::<Connection>()?.unbind();
            if connection.get().phase(py) == Phase::Open {
                return Ok(Some(connection));
            }
            peers.del_item(address)?;
        }
        if !endpoint.get().state.with(py, |state| state.accepting) {
            core.counters.connections_refused.bump();
            return Ok(None);
        }
        if core.open_connections() >= core.limits.max_connections && !Self::evict(inner, py)? {
            core.counters.connections_refused.bump();
            return Ok(None);
        }
        let Some((transport, sendto)) = inner
            .transport
            .with(py, |slot| slot.as_ref().map(|(transport, sendto)| (transport.clone_ref(py), sendto.clone_ref(py))))
        else {
            return Ok(None);
        };
        let connection = Connection::create(py, &inner.core, endpoint)?;
        peers.set_item(address, &connection)?;
        let address = Some(address.clone().unbind());
        Connection::accepted(
            &connection,
            py,
            Wire::Datagram { transport, sendto, address, protocol: slf.clone_ref(py) },
        );
        Ok(Some(connection))
    }

    /// Forgets a peer whose connection has ended.
    pub fn forget(&self, py: Python<'_>, address: &Py<PyAny>, connection: &Py<Connection>) -> PyResult<()> {
        let peers = self.peers.bind(py);
        // A newer connection may have the address already.
        if peers.get_item(address)?.is_some_and(|found| found.is(connection)) {
            peers.del_item(address)?;
        }
        Ok(())
    }

    /// Ends the oldest of the idle peers among the first few, so that strangers cannot shut the door for others.
    fn evict(&self, py: Python<'_>) -> PyResult<bool> {
        let peers = self.peers.bind(py);
        for _ in 0..16 {
            let Some(first) = peers.call_method0(intern!(py, "__iter__"))?.try_iter()?.next().transpose()? else {
                return Ok(false);
            };
            let connection = peers.get_item(&first)?;
            peers.del_item(&first)?;
            let Some(connection) = connection else { continue };
            let connection = connection.cast_into::<Connection>()?.unbind();
            let (occupied, open) = connection.get().state.with(py, |state| {
                (state.busy || state.open_requests > 0 || state.request.is_some(), state.phase == Phase::Open)
            });
            if !open {
                continue;
            }
            if occupied {
                peers.set_item(&first, &connection)?;
                continue;
            }
            self.core.get().counters.connections_evicted.bump();
            connection.get().state.with(py, |state| state.reason = Some("evicted".into()));
            Connection::finish(&connection, py);
            return Ok(true);
        }
        Ok(false)
    }
}

#[pymethods]
impl DatagramProtocol {
    #[new]
    #[pyo3(signature = (core, endpoint, connection, /))]
    fn new(py: Python<'_>, core: Py<Core>, endpoint: Option<Py<Endpoint>>, connection: Option<Py<Connection>>) -> Self {
        Self { core, endpoint, connection, transport: GilCell::new(None), peers: PyDict::new(py).unbind() }
    }

    #[pyo3(signature = (transport, /))]
    fn connection_made(slf: Py<Self>, py: Python<'_>, transport: Py<PyAny>) -> PyResult<()> {
        let inner = slf.get();
        inner.core.get().check_thread()?;
        let sendto = method(py, &transport, "sendto")?;
        let pair = (transport.clone_ref(py), sendto.clone_ref(py));
        inner.transport.with(py, |slot| *slot = Some(pair));
        if let Some(connection) = &inner.connection {
            let wire = Wire::Datagram { transport, sendto, address: None, protocol: slf.clone_ref(py) };
            inner.core.get().enter(py);
            if connection.get().is_over(py) {
                close_wire(py, &wire, true);
            } else {
                Connection::made(connection, py, wire);
            }
            return Core::leave(&inner.core, py);
        }
        Ok(())
    }

    #[pyo3(signature = (data, address, /))]
    fn datagram_received(
        slf: Py<Self>,
        py: Python<'_>,
        data: Bound<'_, PyBytes>,
        address: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let inner = slf.get();
        inner.core.get().enter(py);
        let connection = match (&inner.connection, &inner.endpoint) {
            (Some(connection), _) => Ok(Some(connection.clone_ref(py))),
            (None, Some(endpoint)) => Self::peer(&slf, py, endpoint, address),
            (None, None) => Ok(None),
        };
        match connection {
            Ok(Some(connection)) => {
                Connection::datagram(&connection, py, Incoming::Body(Body::Bytes(data.unbind())));
            }
            Ok(None) => {}
            Err(error) => Core::failed(&inner.core, py, None, None, error),
        }
        Core::leave(&inner.core, py)
    }

    /// An ICMP error (a port nobody listens on): the connection's `error` handler hears of it, the server lives on.
    #[pyo3(signature = (error, /))]
    fn error_received(slf: Py<Self>, py: Python<'_>, error: Py<PyAny>) -> PyResult<()> {
        let inner = slf.get();
        if let Some(connection) = &inner.connection {
            inner.core.get().enter(py);
            Connection::unreachable(connection, py, error.bind(py));
            return Core::leave(&inner.core, py);
        }
        Ok(())
    }

    #[pyo3(signature = (error, /))]
    fn connection_lost(slf: Py<Self>, py: Python<'_>, error: Option<Py<PyAny>>) -> PyResult<()> {
        let inner = slf.get();
        inner.core.get().enter(py);
        let reason = match &error {
            Some(error) => format!("lost: {}", error.bind(py).str()?),
            None => "closed".to_string(),
        };
        let old = inner.transport.with(py, Option::take);
        drop(old);
        let mut all: Vec<Py<Connection>> = Vec::new();
        for (_, peer) in inner.peers.bind(py).iter() {
            all.push(peer.cast_into::<Connection>()?.unbind());
        }
        inner.peers.bind(py).call_method0(intern!(py, "clear"))?;
        all.extend(inner.connection.as_ref().map(|connection| connection.clone_ref(py)));
        for connection in all {
            if connection.get().phase(py) != Phase::Closed {
                Connection::finish_with(&connection, py, reason.clone());
            }
        }
        Core::leave(&inner.core, py)
    }

    fn pause_writing(&self) {}

    fn resume_writing(&self) {}

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.core)?;
        visit.call(&self.endpoint)?;
        visit.call(&self.connection)?;
        visit.call(&self.peers)?;
        self.transport
            .peek(|pair| match pair {
                Some((transport, sendto)) => {
                    visit.call(transport)?;
                    visit.call(sendto)
                }
                None => Ok(()),
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.transport.with(py, Option::take);
        drop(old);
        self.peers.bind(py).clear();
    }
}
