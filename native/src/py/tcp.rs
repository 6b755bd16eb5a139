//! TCP over bypass ports: what a host tells of its connections, and what ours ask of it.
//!
//! A connection's owner number leads from the host to it; `flows[owner]` is empty while its wire waits in a pool. An
//! event may be older than what became of its connection since, so every one is held against the connection's own id.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pyo3::exceptions::PyConnectionError;
use pyo3::prelude::*;

use super::connection::{Connection, Phase};
use super::core::Core;
use super::engine::{Engine, Target};
use super::flows::why;
use super::opened::{Gate, Open};
use super::sockets::failure;
use super::wire::Wire;
use crate::stack::tcp::{Gone, TcpEvent, TcpId};
use crate::stack::{BindError, Unreachable};

/// The most that is taken from a connection before its handlers see it.
const PIECE: usize = 65_536;

impl Open {
    pub fn listen_tcp(&mut self, address: Option<IpAddr>, number: u16, listener: u32) -> Result<(), BindError> {
        self.host.tcp_listen(address, number, listener)?;
        if self.served.is_empty() {
            let gate = self.gate.clone();
            self.host.tcp_accept_hook(Some(Box::new(move |_| gate.welcome())));
        }
        self.served.push((address, number));
        Ok(())
    }

    pub fn unlisten_tcp(&mut self, only: Option<u16>) {
        let host = &mut self.host;
        self.served.retain(|&(address, number)| {
            let ends = only.is_none_or(|only| only == number);
            if ends {
                host.tcp_unlisten(address, number);
            }
            !ends
        });
    }
}

/// What was taken from a connection's ring.
struct Taken {
    bytes: usize,
    /// There is more already.
    more: bool,
    ended: bool,
}

impl Engine {
    /// Starts a handshake; how it ends is an event.
    pub fn connect_tcp(target: &Target, py: Python<'_>, connection: &Py<Connection>) {
        let engine = target.engine.get();
        let now = engine.now(py);
        let timeout = Duration::try_from_secs_f64(engine.connect_s).unwrap_or(Duration::MAX);
        let held = connection.clone_ref(py);
        let (opened, old) = engine.state.with(py, |state| {
            let Some(open) = state.ports.get_mut(target.port) else { return (Err("the port is closed"), Some(held)) };
            let owner = open.place(held);
            match open.host.tcp_open(target.remote, owner, timeout, now) {
                Ok(id) => {
                    open.connecting.insert(owner, (id, target.remote));
                    open.unflushed = true;
                    (Ok(()), None)
                }
                Err(error) => (Err(why(error)), open.forget(owner)),
            }
        });
        drop(old);
        match opened {
            Ok(()) => Core::schedule_flush(&engine.core, py),
            Err(why) => {
                let error = PyConnectionError::new_err(format!("tcp://{}: {why}", target.remote));
                Connection::fail_soon(connection, py, error);
            }
        }
    }

    /// Queues bytes; how many were taken. When fewer than all, there will be an event.
    pub fn tcp_send(&self, py: Python<'_>, port: usize, id: TcpId, bytes: &[u8]) -> usize {
        self.with_host(py, port, |open| open.host.tcp_send(id, bytes)).unwrap_or(0)
    }

    /// Half-closes, after what is queued.
    pub fn tcp_end(&self, py: Python<'_>, port: usize, id: TcpId) {
        self.with_host(py, port, |open| open.host.tcp_end(id));
    }

    /// Closes after what is queued, or resets at once. The owner number stays taken until `tcp_forget`.
    pub fn tcp_close(&self, py: Python<'_>, port: usize, id: TcpId, aborts: bool) {
        self.with_host(py, port, |open| if aborts { open.host.tcp_abort(id) } else { open.host.tcp_close(id) });
    }

    pub fn tcp_forget(&self, py: Python<'_>, port: usize, owner: u32) {
        let old = self.state.with(py, |state| state.ports.get_mut(port).and_then(|open| open.forget(owner)));
        drop(old);
    }

    /// A stream changes hands.
    pub fn tcp_hand_over(&self, py: Python<'_>, port: usize, owner: u32, connection: Option<Py<Connection>>) {
        let old = self.state.with(py, |state| match state.ports.get_mut(port) {
            Some(open) => std::mem::replace(&mut open.flows[owner as usize], connection),
            None => connection,
        });
        drop(old);
    }

    /// The connection reads again: what has come meanwhile is told once more.
    pub fn tcp_want_data(&self, py: Python<'_>, port: usize, id: TcpId) {
        let wakes = self.state.with(py, |state| {
            let Some(open) = state.ports.get_mut(port) else { return false };
            open.host.tcp_want_data(id);
            // The window opens with the next flush.
            open.unflushed = true;
            state.pending = true;
            let now = state.polling.now();
            state.wakes_for(Some(now))
        });
        if wakes {
            self.call_wake(py);
        }
    }

    pub fn tcp_address(&self, py: Python<'_>, port: usize, id: TcpId, local: bool) -> String {
        let address = self.state.with(py, |state| {
            let host = &state.ports.get(port)?.host;
            if local { host.tcp_local(id) } else { host.tcp_remote(id) }
        });
        address.map(|address| address.to_string()).unwrap_or_default()
    }

    /// Does something to the host that may make it send.
    fn with_host<R>(&self, py: Python<'_>, port: usize, act: impl FnOnce(&mut Open) -> R) -> Option<R> {
        self.state.with(py, |state| {
            let open = state.ports.get_mut(port)?;
            open.unflushed = true;
            Some(act(open))
        })
    }

    /// Before frames are handled: shuts the gate where there are connections enough. Returns it for the count.
    pub fn watch_gate(&self, py: Python<'_>, index: usize, frames: bool) -> Option<Arc<Gate>> {
        let core = self.core.get();
        self.state.with(py, |state| {
            let open = state.ports.get(index).filter(|open| frames && !open.served.is_empty())?;
            let full = core.open_connections() >= core.limits.max_connections;
            let was = open.gate.full.swap(full, Ordering::Relaxed);
            (full || was).then(|| open.gate.clone())
        })
    }

    /// Hears what the host of a port has to tell; how much that was.
    pub fn tcp_events(&self, slf: &Py<Self>, py: Python<'_>, index: usize) -> usize {
        let events = self.state.with(py, |state| {
            let open = state.ports.get_mut(index)?;
            open.host.tcp_events(&mut open.events);
            if open.events.is_empty() {
                return None;
            }
            open.unflushed = true;
            Some(std::mem::take(&mut open.events))
        });
        let Some(mut events) = events else { return 0 };
        let count = events.len();
        for event in events.drain(..) {
            match event {
                TcpEvent::Accepted { id, listener } => self.tcp_accepted(slf, py, index, id, listener),
                TcpEvent::Connected { id, owner } => self.tcp_connected(slf, py, index, id, owner),
                TcpEvent::Readable { id, owner } => self.tcp_readable(slf, py, index, id, owner),
                TcpEvent::Writable { id, owner } => {
                    if let Some(connection) = self.tcp_owner(py, index, id, owner) {
                        Connection::unblocked(&connection, py);
                    }
                }
                TcpEvent::Closed { id, owner, reason } => self.tcp_closed(slf, py, index, id, owner, reason),
            }
        }
        self.state.with(py, |state| {
            if let Some(open) = state.ports.get_mut(index)
                && open.events.is_empty()
            {
                open.events = events;
            }
        });
        count
    }

    /// The connection that `owner` stands for, if `id` is what carries it.
    fn tcp_owner(&self, py: Python<'_>, index: usize, id: TcpId, owner: u32) -> Option<Py<Connection>> {
        let connection = self.state.with(py, |state| state.ports.get(index)?.owner(py, owner))?;
        let carried =
            connection.get().state.with(py, |state| matches!(state.wire, Wire::Tcp { id: of, .. } if of == id));
        carried.then_some(connection)
    }

    fn tcp_accepted(&self, slf: &Py<Self>, py: Python<'_>, index: usize, id: TcpId, listener: u32) {
        let core = self.core.get();
        let endpoint = self.state.with(py, |state| {
            let open = state.ports.get(index)?;
            open.listeners.get(listener as usize).map(|endpoint| endpoint.clone_ref(py))
        });
        let Some(endpoint) = endpoint.filter(|endpoint| Connection::admit(py, core, endpoint.get())) else {
            return self.tcp_close(py, index, id, true);
        };
        let connection = match Connection::create(py, &self.core, &endpoint) {
            Ok(connection) => connection,
            Err(error) => {
                self.tcp_close(py, index, id, true);
                return Core::failed(&self.core, py, None, None, error);
            }
        };
        let held = connection.clone_ref(py);
        let (owner, old) = self.state.with(py, |state| {
            let Some(open) = state.ports.get_mut(index) else { return (None, Some(held)) };
            let owner = open.place(held);
            if open.host.tcp_adopt(id, owner) { (Some(owner), None) } else { (None, open.forget(owner)) }
        });
        drop(old);
        if let Some(owner) = owner {
            let wire = Wire::Tcp { engine: slf.clone_ref(py), port: index, id, owner };
            Connection::accepted(&connection, py, wire);
        }
    }

    /// The owner's connection, if `id` is the handshake that it waits for; the wait is over.
    fn tcp_handshake(
        &self,
        py: Python<'_>,
        index: usize,
        id: TcpId,
        owner: u32,
    ) -> Option<(Py<Connection>, SocketAddr)> {
        self.state.with(py, |state| {
            let open = state.ports.get_mut(index)?;
            let (of, remote) = *open.connecting.get(&owner)?;
            if of != id {
                return None;
            }
            open.connecting.remove(&owner);
            Some((open.owner(py, owner)?, remote))
        })
    }

    fn tcp_connected(&self, slf: &Py<Self>, py: Python<'_>, index: usize, id: TcpId, owner: u32) {
        let Some((connection, _)) = self.tcp_handshake(py, index, id, owner) else { return };
        if connection.get().is_over(py) {
            self.tcp_close(py, index, id, true);
            return self.tcp_forget(py, index, owner);
        }
        Connection::made(&connection, py, Wire::Tcp { engine: slf.clone_ref(py), port: index, id, owner });
    }

    fn tcp_readable(&self, slf: &Py<Self>, py: Python<'_>, index: usize, id: TcpId, owner: u32) {
        let Some(connection) = self.tcp_owner(py, index, id, owner) else {
            return self.tcp_spoilt(slf, py, index, id, owner);
        };
        let mut scratch = self.state.with(py, |state| std::mem::take(&mut state.scratch));
        scratch.resize(PIECE, 0);
        loop {
            let (phase, stopped, over) = connection
                .get()
                .state
                .with(py, |state| (state.phase, state.reading_stopped, state.peer_ended || state.finishing));
            if stopped || over {
                break;
            }
            let room = connection.get().relay_room(py).min(scratch.len());
            let Some(taken) = self.tcp_take(py, index, id, &mut scratch[..room]) else { break };
            // Who is closing reads no more, but lets the peer have done.
            if taken.bytes > 0 && phase == Phase::Open {
                Connection::feed(&connection, py, &scratch[..taken.bytes]);
            }
            if taken.ended {
                Connection::end_of_stream(&connection, py);
            }
            if !taken.more {
                break;
            }
        }
        self.state.with(py, |state| state.scratch = scratch);
    }

    fn tcp_take(&self, py: Python<'_>, index: usize, id: TcpId, scratch: &mut [u8]) -> Option<Taken> {
        self.state.with(py, |state| {
            let host = &mut state.ports.get_mut(index)?.host;
            let mut bytes = 0;
            while bytes < scratch.len() {
                let room = &mut scratch[bytes..];
                let took = host.tcp_receive(id, |shown| {
                    let count = shown.len().min(room.len());
                    room[..count].copy_from_slice(&shown[..count]);
                    (count, count)
                })?;
                if took == 0 {
                    break;
                }
                bytes += took;
            }
            let more = bytes == scratch.len();
            Some(Taken { bytes, more, ended: host.tcp_ended(id) })
        })
    }

    fn tcp_closed(&self, slf: &Py<Self>, py: Python<'_>, index: usize, id: TcpId, owner: u32, reason: Gone) {
        if let Some((connection, remote)) = self.tcp_handshake(py, index, id, owner) {
            let url = format!("tcp://{remote}");
            self.tcp_forget(py, index, owner);
            if connection.get().is_over(py) {
                return;
            }
            let error = match reason {
                Gone::TimedOut => {
                    PyConnectionError::new_err(format!("{url}: not connected within {} s", self.connect_s))
                }
                _ => failure(py, &told(reason), Some(&url)),
            };
            return Connection::failed_with(&connection, py, error.into_value(py).into_any());
        }
        match self.tcp_owner(py, index, id, owner) {
            Some(connection) => Connection::lost(&connection, py, &told(reason)),
            None => self.tcp_spoilt(slf, py, index, id, owner),
        }
    }

    /// A pooled wire that says anything is of no further use.
    fn tcp_spoilt(&self, slf: &Py<Self>, py: Python<'_>, index: usize, id: TcpId, owner: u32) {
        let mine = |wire: &Wire| matches!(wire, Wire::Tcp { engine, port, id: of, .. } if engine.is(slf) && *port == index && *of == id);
        if self.core.get().spare_remove(py, mine) {
            self.tcp_close(py, index, id, true);
            self.tcp_forget(py, index, owner);
        }
    }
}

/// As the kernel says it.
fn told(reason: Gone) -> io::Error {
    io::Error::from_raw_os_error(match reason {
        Gone::Refused | Gone::Unreachable(Unreachable::Port) => libc::ECONNREFUSED,
        Gone::Reset => libc::ECONNRESET,
        Gone::TimedOut => libc::ETIMEDOUT,
        Gone::Unreachable(Unreachable::Network) => libc::ENETUNREACH,
        Gone::Unreachable(Unreachable::Host | Unreachable::Other) => libc::EHOSTUNREACH,
    })
}
