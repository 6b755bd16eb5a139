//! Kernel sockets, driven from here: an epoll of our own, which the event loop watches as one descriptor.
//!
//! A turn takes what is ready and is one batch, so that a hundred replies leave in one write each peer, and neither a
//! Python frame, nor a transport, nor a `bytes` object is needed per connection or piece. Registrations are
//! edge-triggered: who stops before the kernel would block re-arms. `stream.rs` and `datagrams.rs` are what is watched.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyConnectionError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pyo3::{PyTraverseError, PyVisit, intern};

use super::cell::{Counter, GilCell};
use super::connection::Connection;
use super::core::Core;
use super::datagrams::Datagrams;
use super::endpoint::Endpoint;
use super::stream::Stream;
use super::wire::{Wire, close_wire};
use crate::load::Endpoint as Address;
use crate::load::sys::{self, Epoll, Event};

/// Connections accepted per event, so that those that are open get their turn.
const ACCEPTS: usize = 64;
/// A process without free descriptors tries to accept again after that.
const ACCEPT_AGAIN_S: f64 = 1.0;
/// How long a turn may go on with new batches before the loop's timers and tasks get their chance.
const SLICE: Duration = Duration::from_micros(50);
/// More than one piece of a stream needs, and the longest datagram.
const SCRATCH: usize = 256 << 10;

enum Watched {
    Listener { socket: Arc<OwnedFd>, endpoint: Py<Endpoint> },
    Stream(Py<Stream>),
    Datagrams(Py<Datagrams>),
}

impl Watched {
    fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            Self::Listener { socket, endpoint } => {
                Self::Listener { socket: socket.clone(), endpoint: endpoint.clone_ref(py) }
            }
            Self::Stream(stream) => Self::Stream(stream.clone_ref(py)),
            Self::Datagrams(datagrams) => Self::Datagrams(datagrams.clone_ref(py)),
        }
    }
}

/// What is watched, by token: a place and how often it has been taken, so that no late event meets a successor.
#[derive(Default)]
struct State {
    places: Vec<(u32, Option<Watched>)>,
    free: Vec<u32>,
    /// Deadlines of connects, ascending; those that are done are skipped when due.
    connecting: VecDeque<(Instant, u64)>,
    timer: Option<Py<PyAny>>,
    scratch: Vec<u8>,
    closed: bool,
}

impl State {
    fn get(&self, token: u64) -> Option<&Watched> {
        let (taken, watched) = self.places.get(token as u32 as usize)?;
        watched.as_ref().filter(|_| *taken == (token >> 32) as u32)
    }
}

#[pyclass(frozen, weakref, module = "libvnf._native")]
pub struct Sockets {
    pub core: Py<Core>,
    connect_s: f64,
    /// None once closed.
    epoll: GilCell<Option<Epoll>>,
    state: GilCell<State>,
    connects: Counter,
    connect_failures: Counter,
    accept_failures: Counter,
    pub datagrams_dropped: Counter,
}

impl Sockets {
    fn watch(&self, py: Python<'_>, watched: Watched) -> u64 {
        self.state.with(py, |state| {
            let place = state.free.pop().unwrap_or_else(|| {
                state.places.push((0, None));
                state.places.len() as u32 - 1
            });
            let (taken, slot) = &mut state.places[place as usize];
            *taken = taken.wrapping_add(1);
            *slot = Some(watched);
            u64::from(*taken) << 32 | u64::from(place)
        })
    }

    /// The descriptor behind `token` is about to be closed.
    pub fn forget(&self, py: Python<'_>, token: u64) {
        let old = self.state.with(py, |state| {
            state.get(token)?;
            let place = token as u32;
            state.free.push(place);
            state.places[place as usize].1.take()
        });
        drop(old);
    }

    fn add(&self, py: Python<'_>, socket: &OwnedFd, token: u64) -> io::Result<()> {
        self.epoll.with(py, |epoll| match epoll {
            Some(epoll) => epoll.add(socket, token),
            None => Err(ErrorKind::NotConnected.into()),
        })
    }

    /// What is ready on `socket` now is told at the next turn.
    pub fn rearm(&self, py: Python<'_>, socket: &impl std::os::fd::AsRawFd, token: u64) {
        // It is registered and open, so only memory can be short; then the peer's next bytes tell.
        let _ = self.epoll.with(py, |epoll| epoll.as_ref().map(|epoll| epoll.rearm(socket, token)));
    }

    /// Lends the buffer that everything is received into.
    pub fn with_scratch<R>(&self, py: Python<'_>, use_it: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut scratch = self.state.with(py, |state| std::mem::take(&mut state.scratch));
        scratch.resize(SCRATCH, 0);
        let result = use_it(&mut scratch);
        self.state.with(py, |state| state.scratch = scratch);
        result
    }

    /// A stream's socket, connected or on its way.
    fn stream(
        slf: &Py<Self>,
        py: Python<'_>,
        socket: OwnedFd,
        connection: &Py<Connection>,
        url: Option<&str>,
    ) -> PyResult<(Py<Stream>, u64)> {
        let stream = Py::new(py, Stream::new(slf.clone_ref(py), connection.clone_ref(py), url))?;
        let token = slf.get().watch(py, Watched::Stream(stream.clone_ref(py)));
        let added = slf.get().add(py, &socket, token);
        stream.get().begin(py, socket, token);
        if let Err(error) = added {
            stream.get().close(py, true);
            return Err(failure(py, &error, None));
        }
        Ok((stream, token))
    }

    fn datagrams(
        slf: &Py<Self>,
        py: Python<'_>,
        socket: OwnedFd,
        endpoint: Option<Py<Endpoint>>,
        connection: Option<Py<Connection>>,
    ) -> PyResult<Py<Datagrams>> {
        let datagrams = Py::new(py, Datagrams::new(slf.clone_ref(py), endpoint, connection))?;
        let token = slf.get().watch(py, Watched::Datagrams(datagrams.clone_ref(py)));
        let added = slf.get().add(py, &socket, token);
        datagrams.get().begin(py, socket, token);
        if let Err(error) = added {
            Datagrams::close(&datagrams, py);
            return Err(failure(py, &error, None));
        }
        Ok(datagrams)
    }

    fn connect(slf: &Py<Self>, py: Python<'_>, target: &SocketTarget, connection: &Py<Connection>) {
        let inner = slf.get();
        inner.connects.bump();
        if inner.state.with(py, |state| state.closed) {
            // A close handler that connects while the VNF stops: nobody would close that socket any more.
            inner.connect_failures.bump();
            return Connection::fail_soon(connection, py, PyConnectionError::new_err("the VNF stops"));
        }
        let begun = match sys::connect(&target.address) {
            Ok((socket, _)) if target.datagram() => {
                Self::datagrams(slf, py, socket, None, Some(connection.clone_ref(py))).map(|datagrams| {
                    Connection::made(connection, py, Wire::Datagrams { socket: datagrams, address: None });
                })
            }
            // Connected or not: the next turn says so, and the author has set his handlers by then.
            Ok((socket, _)) => Self::stream(slf, py, socket, connection, Some(&target.url)).map(|(_, token)| {
                let deadline = Instant::now() + Duration::from_secs_f64(inner.connect_s);
                let first = inner.state.with(py, |state| {
                    state.connecting.push_back((deadline, token));
                    state.timer.is_none()
                });
                if first {
                    Self::expire_after(slf, py, inner.connect_s);
                }
            }),
            Err(error) => Err(failure(py, &error, Some(&target.url))),
        };
        if let Err(error) = begun {
            inner.connect_failures.bump();
            Connection::fail_soon(connection, py, error);
        }
    }

    pub fn connect_failed(&self, py: Python<'_>, connection: &Py<Connection>, error: PyErr) {
        self.connect_failures.bump();
        Connection::failed_with(connection, py, error.into_value(py).into_any());
    }

    /// Calls `name` of this object after a while.
    fn call_later(slf: &Py<Self>, py: Python<'_>, after_s: f64, name: &str) -> Option<Py<PyAny>> {
        let event_loop = &slf.get().core.get().event_loop;
        slf.getattr(py, name)
            .and_then(|method| event_loop.call_method1(py, intern!(py, "call_later"), (after_s, method)))
            .inspect_err(|error| error.clone_ref(py).write_unraisable(py, None))
            .ok()
    }

    fn expire_after(slf: &Py<Self>, py: Python<'_>, after_s: f64) {
        let timer = Self::call_later(slf, py, after_s, "expire");
        let old = slf.get().state.with(py, |state| std::mem::replace(&mut state.timer, timer));
        drop(old);
    }

    fn accept(slf: &Py<Self>, py: Python<'_>, token: u64, socket: &Arc<OwnedFd>, endpoint: &Py<Endpoint>) {
        let inner = slf.get();
        for _ in 0..ACCEPTS {
            match sys::accept(socket, false) {
                Ok(accepted) => Self::accepted(slf, py, accepted, endpoint),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                        inner.accept_failures.bump();
                        Self::call_later(slf, py, ACCEPT_AGAIN_S, "accept_again");
                        return;
                    }
                    // accept(2): errors of the new connection itself; the next one may be well.
                    _ => inner.accept_failures.bump(),
                },
            }
        }
        inner.rearm(py, &**socket, token);
    }

    fn accepted(slf: &Py<Self>, py: Python<'_>, socket: OwnedFd, endpoint: &Py<Endpoint>) {
        let core = &slf.get().core;
        if !Connection::admit(py, core.get(), endpoint.get()) {
            sys::reset_on_close(&socket);
            return;
        }
        let made = Connection::create(py, core, endpoint).and_then(|connection| {
            let (stream, _) = Self::stream(slf, py, socket, &connection, None)?;
            Connection::accepted(&connection, py, Wire::Socket(stream));
            Ok(())
        });
        if let Err(error) = made {
            Core::failed(core, py, None, None, error);
        }
    }

    fn happened(slf: &Py<Self>, py: Python<'_>, event: Event) {
        let inner = slf.get();
        let watched = inner.state.with(py, |state| state.get(event.token).map(|watched| watched.clone_ref(py)));
        match watched {
            Some(Watched::Stream(stream)) => Stream::happened(&stream, py, event),
            Some(Watched::Datagrams(datagrams)) if event.readable => Datagrams::readable(&datagrams, py),
            Some(Watched::Listener { socket, endpoint }) => Self::accept(slf, py, event.token, &socket, &endpoint),
            Some(Watched::Datagrams(_)) | None => {}
        }
    }
}

/// As Python says it: an `OSError` of the class that fits, always a `ConnectionError`.
pub fn failure(py: Python<'_>, error: &io::Error, url: Option<&str>) -> PyErr {
    let number = error.raw_os_error().unwrap_or(libc::EIO);
    let text = py.import("os").and_then(|os| os.call_method1("strerror", (number,))?.extract::<String>());
    let text = text.unwrap_or_else(|_| error.to_string());
    let text = url.map_or_else(|| text.clone(), |url| format!("{url}: {text}"));
    // OSError makes the class that the number belongs to, but only when it is called.
    match py.get_type::<PyOSError>().call1((number, &text)) {
        Ok(found) if found.is_instance_of::<PyConnectionError>() => PyErr::from_value(found),
        _ => PyConnectionError::new_err((number, text)),
    }
}

/// Takes over a descriptor that Python has let go of.
#[allow(unsafe_code)]
fn own(fd: i32) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(PyValueError::new_err("a closed socket"));
    }
    // SAFETY: the caller is the kernel transport, which passes what `socket.detach()` returned, and nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[pymethods]
impl Sockets {
    #[new]
    #[pyo3(signature = (core, connect_s, /))]
    fn new(core: Py<Core>, connect_s: f64) -> PyResult<Self> {
        Ok(Self {
            core,
            connect_s,
            epoll: GilCell::new(Some(Epoll::new()?)),
            state: GilCell::new(State::default()),
            connects: Counter::default(),
            connect_failures: Counter::default(),
            accept_failures: Counter::default(),
            datagrams_dropped: Counter::default(),
        })
    }

    /// -1 once closed.
    fn fileno(&self, py: Python<'_>) -> i32 {
        self.epoll.with(py, |epoll| epoll.as_ref().map_or(-1, Epoll::descriptor))
    }

    /// Batches of what is ready, for a slice of time: the way through the loop and back costs more than another look.
    fn turn(slf: Py<Self>, py: Python<'_>) -> PyResult<()> {
        let inner = slf.get();
        let begun = Instant::now();
        loop {
            let count =
                inner.epoll.with(py, |epoll| epoll.as_mut().map_or(Ok(0), |epoll| epoll.wait(Duration::ZERO)))?;
            if count == 0 {
                return Ok(());
            }
            inner.core.get().enter(py);
            for index in 0..count {
                // A handler may have closed everything.
                let Some(event) = inner.epoll.with(py, |epoll| epoll.as_ref().map(|epoll| epoll.event(index))) else {
                    break;
                };
                Self::happened(&slf, py, event);
            }
            Core::leave(&inner.core, py)?;
            if begun.elapsed() > SLICE {
                return Ok(());
            }
        }
    }

    #[pyo3(signature = (fd, endpoint, /))]
    fn listen(slf: Py<Self>, py: Python<'_>, fd: i32, endpoint: Py<Endpoint>) -> PyResult<()> {
        let socket = Arc::new(own(fd)?);
        let token = slf.get().watch(py, Watched::Listener { socket: socket.clone(), endpoint });
        slf.get().add(py, &socket, token).inspect_err(|_| slf.get().forget(py, token))?;
        Ok(())
    }

    #[pyo3(signature = (fd, endpoint, /))]
    fn serve_datagrams(slf: Py<Self>, py: Python<'_>, fd: i32, endpoint: Py<Endpoint>) -> PyResult<()> {
        Self::datagrams(&slf, py, own(fd)?, Some(endpoint), None).map(drop)
    }

    #[pyo3(signature = (fd, connection, /))]
    fn adopt(slf: Py<Self>, py: Python<'_>, fd: i32, connection: Py<Connection>) -> PyResult<()> {
        let inner = slf.get();
        let socket = own(fd)?;
        inner.core.get().enter(py);
        let wire = if connection.get().state.with(py, |state| state.datagram) {
            Self::datagrams(&slf, py, socket, None, Some(connection.clone_ref(py)))
                .map(|socket| Wire::Datagrams { socket, address: None })
        } else {
            Self::stream(&slf, py, socket, &connection, None).map(|(stream, _)| Wire::Socket(stream))
        };
        match wire {
            Ok(wire) if connection.get().is_over(py) => close_wire(py, &wire, true),
            Ok(wire) => Connection::made(&connection, py, wire),
            Err(error) => inner.connect_failed(py, &connection, error),
        }
        Core::leave(&inner.core, py)
    }

    #[pyo3(signature = (scheme, address, url, /))]
    fn target(slf: Py<Self>, scheme: &str, address: &str, url: String) -> PyResult<SocketTarget> {
        let parse = || address.parse().map_err(|_| PyValueError::new_err(format!("{address:?} is not an address")));
        let address = match scheme {
            "tcp" => Address::Tcp(parse()?),
            "udp" => Address::Udp(parse()?),
            "unix" => Address::Unix(address.into()),
            _ => return Err(PyValueError::new_err(format!("{scheme:?}: expected \"tcp\", \"udp\" or \"unix\""))),
        };
        Ok(SocketTarget { sockets: slf, address, url })
    }

    /// No listener accepts any more; datagram sockets stay, for the peers they know.
    fn unlisten(&self, py: Python<'_>) {
        let old: Vec<_> = self.state.with(py, |state| {
            let State { places, free, .. } = state;
            places
                .iter_mut()
                .zip(0..)
                .filter_map(|((_, watched), place)| {
                    let listener = watched.take_if(|watched| matches!(watched, Watched::Listener { .. }))?;
                    free.push(place);
                    Some(listener)
                })
                .collect()
        });
        drop(old);
    }

    fn accept_again(&self, py: Python<'_>) {
        let listeners: Vec<_> = self.state.with(py, |state| {
            let tokens = state.places.iter().zip(0_u64..);
            tokens
                .filter_map(|((taken, watched), place)| match watched {
                    Some(Watched::Listener { socket, .. }) => Some((socket.clone(), u64::from(*taken) << 32 | place)),
                    _ => None,
                })
                .collect()
        });
        for (socket, token) in listeners {
            self.rearm(py, &*socket, token);
        }
    }

    /// Fails the connects that took too long.
    fn expire(slf: Py<Self>, py: Python<'_>) -> PyResult<()> {
        let inner = slf.get();
        let now = Instant::now();
        inner.core.get().enter(py);
        let next = loop {
            let (deadline, stream) = match inner.state.with(py, |state| {
                let (deadline, token) = *state.connecting.front()?;
                let stream = match state.get(token) {
                    Some(Watched::Stream(stream)) if stream.get().is_connecting(py) => Some(stream.clone_ref(py)),
                    _ => None,
                };
                if stream.is_none() || deadline <= now {
                    state.connecting.pop_front();
                }
                Some((deadline, stream))
            }) {
                None => break None,
                Some(found) => found,
            };
            match stream {
                Some(_) if deadline > now => break Some(deadline - now),
                Some(stream) => Stream::expired(&stream, py, inner.connect_s),
                None => {}
            }
        };
        let old = inner.state.with(py, |state| state.timer.take());
        drop(old);
        if let Some(after) = next {
            // A millisecond more, for a clock that counts in milliseconds.
            Self::expire_after(&slf, py, after.as_secs_f64() + 0.001);
        }
        Core::leave(&inner.core, py)
    }

    /// Everything watched is closed; connections have been ended before.
    fn close(slf: Py<Self>, py: Python<'_>) -> PyResult<()> {
        let inner = slf.get();
        let (timer, places) = inner.state.with(py, |state| {
            state.closed = true;
            let watched: Vec<_> =
                state.places.iter().flat_map(|(_, watched)| watched).map(|w| w.clone_ref(py)).collect();
            (state.timer.take(), watched)
        });
        if let Some(timer) = timer {
            timer.call_method0(py, intern!(py, "cancel"))?;
        }
        inner.core.get().enter(py);
        for watched in places {
            match watched {
                Watched::Stream(stream) => Stream::stopped(&stream, py),
                Watched::Datagrams(datagrams) => Datagrams::close(&datagrams, py),
                Watched::Listener { .. } => {}
            }
        }
        inner.unlisten(py);
        let left = Core::leave(&inner.core, py);
        drop(inner.epoll.with(py, Option::take));
        left
    }

    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = PyDict::new(py);
        found.set_item("connects", self.connects.get())?;
        found.set_item("connect_failures", self.connect_failures.get())?;
        found.set_item("accept_failures", self.accept_failures.get())?;
        found.set_item("datagrams_dropped_at_send", self.datagrams_dropped.get())?;
        Ok(found)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.core)?;
        self.state
            .peek(|state| {
                visit.call(&state.timer)?;
                state.places.iter().flat_map(|(_, watched)| watched).try_for_each(|watched| match watched {
                    Watched::Listener { endpoint, .. } => visit.call(endpoint),
                    Watched::Stream(stream) => visit.call(stream),
                    Watched::Datagrams(datagrams) => visit.call(datagrams),
                })
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.state.with(py, std::mem::take);
        drop(old);
    }
}

/// Where a connection goes: an address or a path of this machine's network.
#[pyclass(frozen, module = "libvnf._native")]
pub struct SocketTarget {
    sockets: Py<Sockets>,
    address: Address,
    url: String,
}

#[pymethods]
impl SocketTarget {
    #[getter]
    pub fn datagram(&self) -> bool {
        matches!(self.address, Address::Udp(_))
    }

    #[pyo3(signature = (connection, /))]
    pub fn open(&self, py: Python<'_>, connection: Py<Connection>) {
        Sockets::connect(&self.sockets, py, self, &connection);
    }
}
