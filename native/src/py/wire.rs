//! What is under a connection: one kind for each way that bytes can take.

use std::io;
use std::net::SocketAddr;

use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit, intern};

use super::connection::Connection;
use super::datagrams::Datagrams;
use super::engine::Engine;
use super::protocol::{DatagramProtocol, StreamProtocol};
use super::stream::Stream;
use crate::stack::FlowId;
use crate::stack::tcp::TcpId;

/// What carries a connection's bytes.
pub enum Wire {
    /// Not made yet, or gone.
    None,
    /// A byte stream on a transport with asyncio's interface.
    Stream { transport: Py<PyAny>, write: Py<PyAny>, protocol: Py<StreamProtocol> },
    /// Datagrams on such a transport; without address: to its one peer.
    Datagram { transport: Py<PyAny>, sendto: Py<PyAny>, address: Option<Py<PyAny>>, protocol: Py<DatagramProtocol> },
    /// A byte stream on a kernel socket.
    Socket(Py<Stream>),
    /// Datagrams on a kernel socket; without address: to its one peer.
    Datagrams { socket: Py<Datagrams>, address: Option<SocketAddr> },
    /// A UDP flow on a bypass port.
    Flow { engine: Py<Engine>, port: usize, flow: FlowId, owner: u32 },
    /// A TCP connection on a bypass port.
    Tcp { engine: Py<Engine>, port: usize, id: TcpId, owner: u32 },
    /// A bypass port itself: each frame is a message.
    Port { engine: Py<Engine>, port: usize },
}

impl Wire {
    pub fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Self::None => Ok(()),
            Self::Stream { transport, write, protocol } => {
                visit.call(transport)?;
                visit.call(write)?;
                visit.call(protocol)
            }
            Self::Datagram { transport, sendto, address, protocol } => {
                visit.call(transport)?;
                visit.call(sendto)?;
                visit.call(address)?;
                visit.call(protocol)
            }
            Self::Socket(stream) => visit.call(stream),
            Self::Datagrams { socket, .. } => visit.call(socket),
            Self::Flow { engine, .. } | Self::Tcp { engine, .. } | Self::Port { engine, .. } => visit.call(engine),
        }
    }

    pub fn is_stream(&self) -> bool {
        matches!(self, Self::Stream { .. } | Self::Socket(_) | Self::Tcp { .. })
    }

    /// A stream changes hands: from now on it feeds `connection`, or waits in a pool.
    pub fn hand_over(&self, py: Python<'_>, connection: Option<Py<Connection>>) {
        match self {
            Self::Stream { protocol, .. } => protocol.get().hand_over(py, connection),
            Self::Socket(stream) => stream.get().hand_over(py, connection),
            Self::Tcp { engine, port, owner, .. } => engine.get().tcp_hand_over(py, *port, *owner, connection),
            Self::None | Self::Datagram { .. } | Self::Datagrams { .. } | Self::Flow { .. } | Self::Port { .. } => {}
        }
    }

    /// The object under it that has asyncio's `get_extra_info`.
    pub fn transport(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        match self {
            Self::Stream { transport, .. } | Self::Datagram { transport, .. } => Some(transport.clone_ref(py)),
            Self::Socket(stream) => Some(stream.clone_ref(py).into_any()),
            Self::Datagrams { socket, .. } => Some(socket.clone_ref(py).into_any()),
            Self::None | Self::Flow { .. } | Self::Tcp { .. } | Self::Port { .. } => None,
        }
    }

    /// A stream that takes bytes as they are queued, without Python.
    pub fn is_native(&self) -> bool {
        matches!(self, Self::Socket(_) | Self::Tcp { .. })
    }

    /// A second hold on a stream, to close it where Python may run.
    pub fn stream(&self, py: Python<'_>) -> Option<Self> {
        match self {
            Self::Stream { transport, write, protocol } => Some(Self::Stream {
                transport: transport.clone_ref(py),
                write: write.clone_ref(py),
                protocol: protocol.clone_ref(py),
            }),
            Self::Socket(stream) => Some(Self::Socket(stream.clone_ref(py))),
            Self::Tcp { engine, port, id, owner } => {
                Some(Self::Tcp { engine: engine.clone_ref(py), port: *port, id: *id, owner: *owner })
            }
            Self::None | Self::Datagram { .. } | Self::Datagrams { .. } | Self::Flow { .. } | Self::Port { .. } => None,
        }
    }

    /// Sends what a native stream takes now.
    pub fn write(&self, py: Python<'_>, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Socket(stream) => stream.get().write(py, bytes),
            Self::Tcp { engine, port, id, .. } => Ok(engine.get().tcp_send(py, *port, *id, bytes)),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// A native stream sends no more.
    pub fn end(&self, py: Python<'_>) {
        match self {
            Self::Socket(stream) => stream.get().end(py),
            Self::Tcp { engine, port, id, .. } => engine.get().tcp_end(py, *port, *id),
            _ => {}
        }
    }

    /// Closes a stream; its connection stays its owner until it has finished. `aborts`: its peer gets a reset, and cannot
    /// take the cut for the end of the answer (RFC 9293 3.10.5).
    pub fn close(&self, py: Python<'_>, aborts: bool) {
        match self {
            Self::Stream { transport, .. } if aborts => abort(py, transport),
            Self::Stream { transport, .. } | Self::Datagram { transport, .. } => {
                if let Err(error) = transport.call_method0(py, intern!(py, "close")) {
                    error.write_unraisable(py, None);
                }
            }
            Self::Socket(stream) => stream.get().close(py, aborts),
            Self::Tcp { engine, port, id, .. } => engine.get().tcp_close(py, *port, *id, aborts),
            Self::Datagrams { socket, .. } => Datagrams::close(socket, py),
            Self::None | Self::Flow { .. } | Self::Port { .. } => {}
        }
    }
}

/// Ends a wire that no connection owns.
pub fn close_wire(py: Python<'_>, wire: &Wire, aborts: bool) {
    wire.close(py, aborts);
    if let Wire::Tcp { engine, port, owner, .. } = wire {
        engine.get().tcp_forget(py, *port, *owner);
    }
}

/// A TCP peer gets a reset (RFC 9293 3.10.5), so that it cannot take the cut for the end of the answer.
fn abort(py: Python<'_>, transport: &Py<PyAny>) {
    let socket = transport.call_method1(py, intern!(py, "get_extra_info"), (intern!(py, "socket"),));
    // Transports that are no sockets have no descriptor, and their own way to abort.
    if let Ok(fd) = socket.and_then(|socket| socket.call_method0(py, intern!(py, "fileno"))?.extract::<i32>(py)) {
        reset_at_close(fd);
    }
    if let Err(error) = transport.call_method0(py, intern!(py, "abort")) {
        error.write_unraisable(py, None);
    }
}

#[allow(unsafe_code)]
fn reset_at_close(fd: i32) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the option is read from `linger`, whose size is given; a descriptor that is not a socket is an error.
    // Where it fails, the close is an ordinary one.
    unsafe {
        let size = size_of::<libc::linger>() as libc::socklen_t;
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size);
    }
}
