//! UDP flows on bypass ports: a connection per peer, made by the first datagram, ours or the peer's.

use pyo3::exceptions::{PyConnectionError, PyOSError};
use pyo3::prelude::*;

use super::connection::{Connection, Phase};
use super::core::Core;
use super::dispatch::Incoming;
use super::endpoint::Endpoint;
use super::engine::{Engine, Target};
use super::packet::Body;
use super::wire::Wire;
use crate::port::Sent;
use crate::stack::{Datagram, FlowId, OpenError, Unreachable};

impl Engine {
    /// Sends one datagram on a flow. What does not fit is dropped, and counted by the host or its port.
    pub fn send(&self, py: Python<'_>, port: usize, flow: FlowId, bytes: &[u8]) {
        let sent = self.state.with(py, |state| {
            let now = state.polling.now();
            let open = state.ports.get_mut(port)?;
            open.unflushed = true;
            Some(open.host.send(flow, bytes, now, open.port.as_mut()))
        });
        match sent {
            Some(Sent::Queued) => Core::schedule_flush(&self.core, py),
            Some(Sent::Full | Sent::TooLong | Sent::Down) => {}
            None => self.core.get().counters.drop_send_failed.bump(),
        }
    }

    pub fn address(&self, py: Python<'_>, port: usize, flow: FlowId, local: bool) -> String {
        let address = self.state.with(py, |state| {
            let host = &state.ports.get(port)?.host;
            if local { host.local_address(flow) } else { host.remote_address(flow) }
        });
        address.map(|address| address.to_string()).unwrap_or_default()
    }

    pub fn close_flow(&self, py: Python<'_>, port: usize, flow: FlowId, owner: u32) {
        let old = self.state.with(py, |state| {
            let open = state.ports.get_mut(port)?;
            open.host.close(flow);
            open.forget(owner)
        });
        drop(old);
    }

    /// A connection from here to `target`. A flow of datagrams needs no handshake.
    pub fn connect(target: &Target, py: Python<'_>, connection: &Py<Connection>) {
        if !target.datagram {
            return Self::connect_tcp(target, py, connection);
        }
        let engine = target.engine.get();
        let held = connection.clone_ref(py);
        let (opened, old) = engine.state.with(py, |state| {
            let Some(open) = state.ports.get_mut(target.port) else { return (Err("the port is closed"), Some(held)) };
            let owner = open.place(held);
            match open.host.open(target.remote, owner) {
                Ok(flow) => (Ok((flow, owner)), None),
                Err(error) => (Err(why(error)), open.forget(owner)),
            }
        });
        drop(old);
        match opened {
            Ok((flow, owner)) => {
                let wire = Wire::Flow { engine: target.engine.clone_ref(py), port: target.port, flow, owner };
                Connection::made(connection, py, wire);
            }
            Err(why) => {
                let error = PyConnectionError::new_err(format!("udp://{}: {why}", target.remote));
                Connection::fail_soon(connection, py, error);
            }
        }
    }

    pub fn unreachable(&self, py: Python<'_>, connection: &Py<Connection>, reason: Unreachable) {
        let error = match reason {
            Unreachable::Port => pyo3::exceptions::PyConnectionRefusedError::new_err("port unreachable"),
            Unreachable::Host => PyOSError::new_err((libc::EHOSTUNREACH, "host unreachable")),
            Unreachable::Network => PyOSError::new_err((libc::ENETUNREACH, "network unreachable")),
            Unreachable::Other => PyOSError::new_err((libc::EPROTO, "rejected by the peer's host")),
        };
        let value = error.into_value(py);
        Connection::unreachable(connection, py, value.bind(py).as_any());
    }

    /// The first datagram of a new peer.
    pub fn first(&self, slf: &Py<Self>, py: Python<'_>, index: usize, endpoint: &Py<Endpoint>, datagram: Datagram) {
        let core = self.core.get();
        if !endpoint.get().state.with(py, |state| state.accepting) {
            core.counters.connections_refused.bump();
            return;
        }
        if core.open_connections() >= core.limits.max_connections && !self.evict(py, index) {
            core.counters.connections_refused.bump();
            return;
        }
        let connection = match Connection::create(py, &self.core, endpoint) {
            Ok(connection) => connection,
            Err(error) => return Core::failed(&self.core, py, None, None, error),
        };
        let held = connection.clone_ref(py);
        let (adopted, old) = self.state.with(py, |state| {
            let open = &mut state.ports[index];
            let owner = open.place(held);
            match open.host.adopt(datagram.destination, datagram.source, datagram.source_mac, owner) {
                Ok(flow) => {
                    open.begun_by_peers.push_back(owner);
                    (Some((flow, owner)), None)
                }
                Err(_) => (None, open.forget(owner)),
            }
        });
        drop(old);
        let Some((flow, owner)) = adopted else {
            return core.counters.connections_refused.bump();
        };
        Connection::accepted(&connection, py, Wire::Flow { engine: slf.clone_ref(py), port: index, flow, owner });
        Connection::datagram(&connection, py, Incoming::Body(Body::Slot(datagram.payload)));
    }

    /// Ends the oldest idle flow among the first few that peers began, so that strangers cannot shut the door.
    fn evict(&self, py: Python<'_>, index: usize) -> bool {
        for _ in 0..16 {
            let oldest = self.state.with(py, |state| {
                let open = &mut state.ports[index];
                let owner = open.begun_by_peers.pop_front()?;
                Some((owner, open.flows[owner as usize].as_ref().map(|connection| connection.clone_ref(py))))
            });
            let Some((owner, connection)) = oldest else { return false };
            let Some(connection) = connection else { continue };
            let (occupied, mine) = connection.get().state.with(py, |state| {
                let mine = matches!(&state.wire, Wire::Flow { port, owner: of, .. } if *port == index && *of == owner);
                (state.busy || state.open_requests > 0 || state.request.is_some(), mine && state.phase == Phase::Open)
            });
            if !mine {
                continue;
            }
            if occupied {
                self.state.with(py, |state| state.ports[index].begun_by_peers.push_back(owner));
                continue;
            }
            self.core.get().counters.connections_evicted.bump();
            connection.get().state.with(py, |state| state.reason = Some("evicted".into()));
            Connection::finish(&connection, py);
            return true;
        }
        false
    }
}

/// Why no connection could begin.
pub fn why(error: OpenError) -> &'static str {
    match error {
        OpenError::NoRoute => "no address of that family, and no gateway, leads there",
        OpenError::PortsExhausted => "every local port towards that address is taken",
        OpenError::InUse => "the address is in use",
        OpenError::TooMany => "there are as many connections as there may be",
    }
}
