//! The bypass engine: ports and their hosts, polled from the event loop.
//!
//! `turn` is one slice of about 50 µs, so that timers and tasks stay punctual. While there is work it asks to be called
//! again at once. When there is none it polls on for a while, without the GIL, because waking a sleeping thread costs
//! more than a request; then it arms the ports and lets the loop sleep on their descriptors.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyConnectionError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use pyo3::{PyTraverseError, PyVisit};

use super::cell::{Counter, GilCell};
use super::connection::{Connection, Phase};
use super::core::Core;
use super::endpoint::Endpoint;
use super::packet::Body;
use super::polling::Polling;
use super::ports::{PortOptions, cidr};
use super::wire::Wire;
use crate::packet::{Pool, Slot};
use crate::port::queue::{Queue, QueuePort};
use crate::port::{Link, Port, Sent};
use crate::stack::{BindError, Datagram, FlowId, Host, HostConfig, Input, OpenError, To, Unreachable};

/// Frames taken from a port at once.
const BURST: usize = 32;
/// Frames handled before what was sent meanwhile is handed over: the peer can begin while we go on.
const HAND_OVER: usize = 8;
/// How long a turn may take before the loop's timers and tasks get their chance.
const SLICE: Duration = Duration::from_micros(50);
/// The longest silence that is polled through.
const POLL: Duration = Duration::from_micros(100);
/// A shorter sleep is not worth a timer.
const SHORTEST: Duration = Duration::from_micros(100);
/// Batches of a turn whose clock stands still meanwhile.
const ROUNDS: usize = 16;

struct Open {
    name: String,
    kind: &'static str,
    port: Box<dyn Port>,
    /// The far end, where that is the program itself.
    queue: Option<Queue>,
    host: Host,
    config: HostConfig,
    /// The link's generation that was announced.
    announced: u64,
    listeners: Vec<Option<Py<Endpoint>>>,
    /// By owner number.
    flows: Vec<Option<Py<Connection>>>,
    free: Vec<u32>,
    /// Owners of flows that peers began, oldest first.
    begun_by_peers: VecDeque<u32>,
    unflushed: bool,
}

impl Open {
    fn new(name: String, kind: &'static str, port: Box<dyn Port>, config: HostConfig) -> Self {
        Self {
            name,
            kind,
            port,
            queue: None,
            host: Host::new(config.clone()),
            config,
            announced: 0,
            listeners: Vec::new(),
            flows: Vec::new(),
            free: Vec::new(),
            begun_by_peers: VecDeque::new(),
            unflushed: false,
        }
    }

    fn place(&mut self, connection: Py<Connection>) -> u32 {
        match self.free.pop() {
            Some(owner) => {
                self.flows[owner as usize] = Some(connection);
                owner
            }
            None => {
                self.flows.push(Some(connection));
                self.flows.len() as u32 - 1
            }
        }
    }

    fn forget(&mut self, owner: u32) -> Option<Py<Connection>> {
        self.free.push(owner);
        // Numbers of flows that have ended leave the queue of peers before they outnumber those that have not.
        if self.begun_by_peers.len() > 64 + 2 * (self.flows.len() - self.free.len()) {
            let mut seen = vec![false; self.flows.len()];
            let flows = &self.flows;
            self.begun_by_peers.retain(|&of| {
                let first = !std::mem::replace(&mut seen[of as usize], true);
                first && of != owner && flows[of as usize].is_some()
            });
        }
        self.flows[owner as usize].take()
    }
}

struct State {
    ports: Vec<Open>,
    frames: Vec<Slot>,
    polling: Polling,
    armed: bool,
    /// A turn runs; it flushes for good at its end.
    in_turn: bool,
    sleep: Sleep,
}

/// What the last turn told the event loop.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sleep {
    /// To come again at once; or it was woken since.
    No,
    Until(Instant),
    /// For as long as no descriptor wakes it.
    Forever,
}

/// Another clock than the system's.
struct Clock {
    /// Returns seconds.
    read: Py<PyAny>,
    base: Instant,
}

impl State {
    /// Whether the event loop must be woken to be there at `wanted`; it will be, then.
    fn wakes_for(&mut self, wanted: Option<Instant>) -> bool {
        let Some(wanted) = wanted else { return false };
        let wakes = match self.sleep {
            Sleep::No => false,
            Sleep::Until(known) => wanted < known,
            Sleep::Forever => true,
        };
        if wakes {
            self.sleep = Sleep::No;
        }
        wakes
    }

    /// Until when the event loop may sleep; `Sleep::No` when frames are waiting already.
    fn fall_asleep(&mut self) -> Sleep {
        let deadlines = self.ports.iter().flat_map(|open| [open.port.deadline(), open.host.deadline()]);
        let deadline = deadlines.flatten().min();
        self.armed = self.ports.iter_mut().fold(true, |quiet, open| open.port.arm() && quiet);
        if !self.armed {
            self.ports.iter_mut().for_each(|open| open.port.disarm());
            return Sleep::No;
        }
        deadline.map_or(Sleep::Forever, Sleep::Until)
    }
}

/// Where a native connect goes.
#[pyclass(frozen, module = "libvnf._native")]
pub struct Target {
    engine: Py<Engine>,
    port: usize,
    remote: SocketAddr,
}

#[pymethods]
impl Target {
    /// Starts connecting: a flow needs no handshake.
    #[pyo3(signature = (connection, /))]
    fn open(&self, py: Python<'_>, connection: Py<Connection>) {
        Engine::connect(self, py, &connection);
    }

    #[getter]
    #[allow(clippy::unused_self)]
    fn datagram(&self) -> bool {
        true
    }
}

#[pyclass(frozen, weakref, module = "libvnf._native")]
pub struct Engine {
    core: Py<Core>,
    state: GilCell<State>,
    clock: Option<Clock>,
    /// Makes the event loop call `turn` soon.
    wake: GilCell<Option<Py<PyAny>>>,
    turns: Counter,
    sleeps: Counter,
}

/// What a frame meant, with the connection it is for.
enum Meant {
    Nothing,
    Message(Py<Connection>, Slot),
    First(Py<Endpoint>, Datagram),
    Unreachable(Py<Connection>, Unreachable),
}

impl Engine {
    /// The time of everything here.
    fn now(&self, py: Python<'_>) -> Instant {
        let Some(clock) = &self.clock else { return Instant::now() };
        let seconds = clock.read.call0(py).and_then(|seconds| seconds.extract::<f64>(py)).and_then(|seconds| {
            Duration::try_from_secs_f64(seconds).map_err(|error| PyValueError::new_err(format!("clock: {error}")))
        });
        match seconds {
            Ok(seconds) => clock.base + seconds,
            Err(error) => {
                // A clock that fails stands still.
                error.write_unraisable(py, None);
                self.state.with(py, |state| state.polling.now())
            }
        }
    }

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

    /// Hands to the peers what was sent in this batch.
    pub fn flush(&self, py: Python<'_>) {
        let wake = self.state.with(py, |state| {
            let mut wanted = None;
            for open in &mut state.ports {
                if state.in_turn {
                    // Making sure that a sleeping peer wakes costs a fence: once a turn will do.
                    if open.unflushed {
                        open.port.hand_over();
                    }
                } else if std::mem::take(&mut open.unflushed) {
                    open.port.flush();
                    if open.queue.as_ref().is_some_and(Queue::has_sent) {
                        wanted = Some(state.polling.now());
                    }
                    wanted = [wanted, open.host.deadline()].into_iter().flatten().min();
                }
            }
            state.wakes_for(wanted)
        });
        if wake {
            self.call_wake(py);
        }
    }

    /// The event loop sleeps, and there is something to do sooner than it knows.
    fn call_wake(&self, py: Python<'_>) {
        let wake = self.wake.with(py, |wake| wake.as_ref().map(|wake| wake.clone_ref(py)));
        if let Some(wake) = wake
            && let Err(error) = wake.call0(py)
        {
            error.write_unraisable(py, None);
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

    /// A flow from here to `target`.
    pub fn connect(target: &Target, py: Python<'_>, connection: &Py<Connection>) {
        let engine = target.engine.get();
        let held = connection.clone_ref(py);
        let (opened, old) = engine.state.with(py, |state| {
            let Some(open) = state.ports.get_mut(target.port) else { return (Err("the port is closed"), Some(held)) };
            let owner = open.place(held);
            match open.host.open(target.remote, owner) {
                Ok(flow) => (Ok((flow, owner)), None),
                Err(error) => {
                    let why = match error {
                        OpenError::NoRoute => "no address of that family, and no gateway, leads there",
                        OpenError::PortsExhausted => "every local port towards that address is taken",
                        OpenError::InUse => "the address is in use",
                        OpenError::TooMany => "there are as many connections as there may be",
                    };
                    (Err(why), open.forget(owner))
                }
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

    /// Connects, disconnects, announces, retries: what is due besides frames.
    fn service(&self, py: Python<'_>, now: Instant) {
        let gone = self.state.with(py, |state| {
            let mut gone = Vec::new();
            for open in &mut state.ports {
                open.port.service(now);
                let generation = open.port.generation();
                if generation != open.announced && open.port.link() == Link::Up {
                    open.announced = generation;
                    open.host.announce(open.port.as_mut());
                    open.unflushed = true;
                }
                if open.host.deadline().is_some_and(|deadline| deadline <= now) {
                    let mut unreachable = Vec::new();
                    open.host.on_timer(now, open.port.as_mut(), &mut unreachable);
                    open.unflushed = true;
                    for (owner, reason) in unreachable {
                        if let Some(Some(connection)) = open.flows.get(owner as usize) {
                            gone.push((connection.clone_ref(py), reason));
                        }
                    }
                }
            }
            gone
        });
        for (connection, reason) in gone {
            self.unreachable(py, &connection, reason);
        }
    }

    fn unreachable(&self, py: Python<'_>, connection: &Py<Connection>, reason: Unreachable) {
        let error = match reason {
            Unreachable::Port => pyo3::exceptions::PyConnectionRefusedError::new_err("port unreachable"),
            Unreachable::Host => PyOSError::new_err((libc::EHOSTUNREACH, "host unreachable")),
            Unreachable::Network => PyOSError::new_err((libc::ENETUNREACH, "network unreachable")),
            Unreachable::Other => PyOSError::new_err((libc::EPROTO, "rejected by the peer's host")),
        };
        let value = error.into_value(py);
        Connection::unreachable(connection, py, value.bind(py).as_any());
    }

    /// Takes a burst from one port and delivers it; how many frames there were.
    fn burst(slf: &Py<Self>, py: Python<'_>, index: usize, now: Instant, pool: &Pool, frames: &mut Vec<Slot>) -> usize {
        let inner = slf.get();
        let got = inner.state.with(py, |state| state.ports[index].port.receive(pool, frames, BURST));
        inner.deliver(slf, py, index, now, pool, frames);
        got
    }

    fn deliver(&self, slf: &Py<Self>, py: Python<'_>, index: usize, now: Instant, pool: &Pool, frames: &mut Vec<Slot>) {
        for (count, frame) in frames.drain(..).enumerate() {
            let meant = self.state.with(py, |state| {
                let open = &mut state.ports[index];
                if count % HAND_OVER == HAND_OVER - 1 {
                    open.port.hand_over();
                }
                match open.host.receive(frame, now, pool, open.port.as_mut()) {
                    Input::Consumed => {
                        open.unflushed = true;
                        Meant::Nothing
                    }
                    Input::Datagram(datagram) => match datagram.to {
                        To::Flow(owner) => match open.flows.get(owner as usize) {
                            Some(Some(connection)) => Meant::Message(connection.clone_ref(py), datagram.payload),
                            _ => Meant::Nothing,
                        },
                        To::Listener(listener) => match open.listeners.get(listener as usize) {
                            Some(Some(endpoint)) => Meant::First(endpoint.clone_ref(py), datagram),
                            _ => Meant::Nothing,
                        },
                    },
                    Input::Unreachable { to, reason } => match open.flows.get(to as usize) {
                        Some(Some(connection)) => Meant::Unreachable(connection.clone_ref(py), reason),
                        _ => Meant::Nothing,
                    },
                }
            });
            match meant {
                Meant::Nothing => {}
                Meant::Message(connection, payload) => Connection::datagram(&connection, py, Body::Slot(payload)),
                Meant::Unreachable(connection, reason) => self.unreachable(py, &connection, reason),
                Meant::First(endpoint, datagram) => self.first(slf, py, index, &endpoint, datagram),
            }
        }
    }

    /// The first datagram of a new peer.
    fn first(&self, slf: &Py<Self>, py: Python<'_>, index: usize, endpoint: &Py<Endpoint>, datagram: Datagram) {
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
        Connection::datagram(&connection, py, Body::Slot(datagram.payload));
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

    /// The far end of a port that `add_queue` made.
    fn queue(&self, py: Python<'_>, name: &str) -> PyResult<Queue> {
        self.core.get().check_thread()?;
        let found = self
            .state
            .with(py, |state| state.ports.iter().find(|open| open.name == name).and_then(|open| open.queue.clone()));
        found.ok_or_else(|| PyValueError::new_err(format!("there is no queue {name:?}")))
    }

    /// Polls without the GIL until frames come or `until`; the port they came by.
    fn spin(&self, py: Python<'_>, until: Instant, pool: &Pool, frames: &mut Vec<Slot>) -> Option<usize> {
        // The ports leave the cell meanwhile: another thread may run Python code, but none that gets at them, since
        // everything that would is refused off the loop's thread.
        let mut ports = self.state.with(py, |state| std::mem::take(&mut state.ports));
        let (ports, found) = py.detach(|| {
            let found = 'polling: loop {
                for (index, open) in ports.iter_mut().enumerate() {
                    if open.port.receive(pool, frames, BURST) > 0 {
                        break 'polling Some(index);
                    }
                }
                if Instant::now() >= until {
                    break None;
                }
                for _ in 0..16 {
                    std::hint::spin_loop();
                }
            };
            (ports, found)
        });
        self.state.with(py, |state| state.ports = ports);
        found
    }
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (core, /, *, clock=None, wake=None))]
    fn new(py: Python<'_>, core: Py<Core>, clock: Option<Py<PyAny>>, wake: Option<Py<PyAny>>) -> PyResult<Py<Self>> {
        let base = Instant::now();
        let engine = Py::new(
            py,
            Self {
                state: GilCell::new(State {
                    ports: Vec::new(),
                    frames: Vec::with_capacity(2 * BURST),
                    polling: Polling::new(POLL, base),
                    armed: false,
                    in_turn: false,
                    sleep: Sleep::No,
                }),
                core: core.clone_ref(py),
                clock: clock.map(|read| Clock { read, base }),
                wake: GilCell::new(wake),
                turns: Counter::default(),
                sleeps: Counter::default(),
            },
        )?;
        let kept = engine.clone_ref(py);
        core.get().state.with(py, |state| state.engines.push(kept));
        Ok(engine)
    }

    #[pyo3(signature = (name, options, /))]
    fn add_port(&self, py: Python<'_>, name: String, options: &Bound<'_, PyDict>) -> PyResult<()> {
        let options = PortOptions::parse(&name, options)?;
        let open = Open::new(name, "memif", options.open()?, options.host);
        self.state.with(py, |state| state.ports.push(open));
        Ok(())
    }

    #[pyo3(signature = (name, options, /))]
    fn add_queue(&self, py: Python<'_>, name: String, options: &Bound<'_, PyDict>) -> PyResult<()> {
        let options = options.copy()?;
        options.set_item("type", "memif")?;
        options.set_item("path", &name)?;
        let seed: Option<u64> = options.get_item("seed")?.map(|seed| seed.extract()).transpose()?;
        if seed.is_some() {
            options.del_item("seed")?;
        }
        let config = PortOptions::parse(&name, &options)?.host;
        let queue = Queue::default();
        let mut open = Open::new(name, "queue", Box::new(QueuePort::new(config.mtu, queue.clone())), config);
        open.queue = Some(queue);
        if let Some(seed) = seed {
            open.host = Host::seeded(open.config.clone(), seed);
        }
        self.state.with(py, |state| state.ports.push(open));
        Ok(())
    }

    #[pyo3(signature = (name, address, /))]
    fn add_address(&self, py: Python<'_>, name: &str, address: &str) -> PyResult<()> {
        let address = cidr(address)?;
        self.state
            .with(py, |state| {
                let open = state.ports.iter_mut().find(|open| open.name == name)?;
                open.config.addresses.push(address);
                open.host.add_address(address);
                // The link's next service announces it.
                open.announced = 0;
                Some(())
            })
            .ok_or_else(|| PyValueError::new_err(format!("there is no port {name:?}")))
    }

    #[pyo3(signature = (name, frame, /))]
    fn give_frame(&self, py: Python<'_>, name: &str, frame: Vec<u8>) -> PyResult<()> {
        self.queue(py, name)?.give(frame);
        let wakes = self.state.with(py, |state| state.wakes_for(Some(state.polling.now())));
        if wakes {
            self.call_wake(py);
        }
        Ok(())
    }

    #[pyo3(signature = (name, /))]
    fn take_frames<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        Ok(self.queue(py, name)?.take().iter().map(|frame| PyBytes::new(py, frame)).collect())
    }

    #[pyo3(signature = (port, host, number, endpoint, /))]
    fn listen(
        &self,
        py: Python<'_>,
        port: &str,
        host: Option<&str>,
        number: u16,
        endpoint: Py<Endpoint>,
    ) -> PyResult<()> {
        let address = host.map(parse_address).transpose()?;
        let bound = self.state.with(py, |state| {
            let open = state.ports.iter_mut().find(|open| open.name == port)?;
            open.listeners.push(Some(endpoint));
            Some(open.host.listen(address, number, open.listeners.len() as u32 - 1))
        });
        match bound {
            Some(Ok(())) => Ok(()),
            Some(Err(BindError::InUse)) => {
                Err(PyOSError::new_err((libc::EADDRINUSE, format!("port {number} is in use on {port}"))))
            }
            Some(Err(BindError::NotLocal)) => {
                Err(PyValueError::new_err(format!("{} is not an address of {port}", host.unwrap_or_default())))
            }
            None => Err(PyValueError::new_err(format!("there is no port {port:?}"))),
        }
    }

    #[pyo3(signature = (port, host, number, /))]
    fn target(slf: Py<Self>, py: Python<'_>, port: &str, host: &str, number: u16) -> PyResult<Target> {
        let remote = SocketAddr::new(parse_address(host)?, number);
        let index = slf.get().state.with(py, |state| state.ports.iter().position(|open| open.name == port));
        let port = index.ok_or_else(|| PyValueError::new_err(format!("there is no port {port:?}")))?;
        Ok(Target { engine: slf, port, remote })
    }

    fn wake_fds(&self, py: Python<'_>) -> Vec<i32> {
        self.state.with(py, |state| state.ports.iter().map(|open| open.port.wake_fd()).filter(|fd| *fd >= 0).collect())
    }

    fn turn(slf: Py<Self>, py: Python<'_>) -> PyResult<Option<f64>> {
        let inner = slf.get();
        let core = inner.core.get();
        core.check_thread()?;
        py.check_signals()?;
        inner.turns.bump();
        let pool = core.pool.clone();
        let begin = inner.now(py);
        core.enter(py);
        let (mut frames, count) = inner.state.with(py, |state| {
            state.polling.begin(begin);
            (state.in_turn, state.sleep) = (true, Sleep::No);
            if std::mem::take(&mut state.armed) {
                for open in &mut state.ports {
                    open.port.disarm();
                }
            }
            (std::mem::take(&mut state.frames), state.ports.len())
        });
        inner.service(py, begin);
        let mut now = begin;
        // Where time stands still during a turn, nothing comes by polling on.
        let polls = inner.clock.is_none();
        let mut busy = true;
        for _ in 0..if polls { usize::MAX } else { ROUNDS } {
            let mut got = 0;
            for index in 0..count {
                got += Self::burst(&slf, py, index, now, &pool, &mut frames);
            }
            if got == 0 {
                let until = inner.state.with(py, |state| state.polling.until(now, begin + SLICE));
                let found = until.filter(|_| polls).and_then(|until| inner.spin(py, until, &pool, &mut frames));
                now = inner.now(py);
                let Some(index) = found else {
                    busy = false;
                    break;
                };
                inner.deliver(&slf, py, index, now, &pool, &mut frames);
            }
            inner.state.with(py, |state| state.polling.worked(now));
            // The end of the batch: replies leave before the next burst is looked for.
            if let Err(error) = Core::leave(&inner.core, py) {
                inner.state.with(py, |state| state.in_turn = false);
                inner.flush(py);
                return Err(error);
            }
            core.enter(py);
            now = inner.now(py);
            inner.state.with(py, |state| state.polling.set_now(now));
            if polls && now >= begin + SLICE {
                break;
            }
        }
        let left = Core::leave(&inner.core, py);
        inner.state.with(py, |state| state.in_turn = false);
        inner.flush(py);
        let sleep = inner.state.with(py, |state| {
            state.frames = frames;
            let goes_on = if polls { state.polling.goes_on(now) } else { busy };
            state.sleep = if goes_on { Sleep::No } else { state.fall_asleep() };
            state.sleep
        });
        left?;
        let wait = match sleep {
            Sleep::No => return Ok(Some(0.0)),
            Sleep::Until(deadline) => Some(deadline.saturating_duration_since(now).max(SHORTEST).as_secs_f64()),
            Sleep::Forever => None,
        };
        inner.sleeps.bump();
        Ok(wait)
    }

    fn ports<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        struct Row {
            name: String,
            kind: &'static str,
            link: Link,
            mac: [u8; 6],
            addresses: Vec<String>,
            counters: Vec<(&'static str, u64)>,
        }
        let rows = self.state.with(py, |state| {
            state
                .ports
                .iter()
                .map(|open| Row {
                    name: open.name.clone(),
                    kind: open.kind,
                    link: open.port.link(),
                    mac: open.config.mac,
                    addresses: open
                        .config
                        .addresses
                        .iter()
                        .map(|cidr| format!("{}/{}", cidr.address, cidr.prefix))
                        .collect(),
                    counters: open.port.counters().into_iter().chain(open.host.counters()).collect(),
                })
                .collect::<Vec<_>>()
        });
        let list = PyList::empty(py);
        for row in rows {
            let found = PyDict::new(py);
            found.set_item("name", row.name)?;
            found.set_item("type", row.kind)?;
            found.set_item(
                "link",
                match row.link {
                    Link::Up => "up".into(),
                    Link::Down(reason) => reason,
                },
            )?;
            found.set_item("mac", row.mac.map(|byte| format!("{byte:02x}")).join(":"))?;
            found.set_item("addresses", row.addresses)?;
            let counters = PyDict::new(py);
            for (name, value) in row.counters {
                counters.set_item(name, value)?;
            }
            found.set_item("counters", counters)?;
            list.append(found)?;
        }
        Ok(list)
    }

    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = PyDict::new(py);
        found.set_item("turns", self.turns.get())?;
        found.set_item("sleeps", self.sleeps.get())?;
        found.set_item("poll_budget_us", self.state.with(py, |state| state.polling.budget().as_micros() as u64))?;
        Ok(found)
    }

    fn close(&self, py: Python<'_>) {
        let flows: Vec<Py<Connection>> = self.state.with(py, |state| {
            state.ports.iter().flat_map(|open| open.flows.iter().flatten()).map(|flow| flow.clone_ref(py)).collect()
        });
        for connection in flows {
            Connection::finish_with(&connection, py, "the port closed");
            Connection::finish(&connection, py);
        }
        let ports = self.state.with(py, |state| std::mem::take(&mut state.ports));
        let wake = self.wake.with(py, Option::take);
        drop((ports, wake));
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.core)?;
        self.clock.as_ref().map_or(Ok(()), |clock| visit.call(&clock.read))?;
        self.wake.peek(|wake| visit.call(wake)).unwrap_or(Ok(()))?;
        self.state
            .peek(|state| {
                for open in &state.ports {
                    open.listeners.iter().try_for_each(|endpoint| visit.call(endpoint))?;
                    open.flows.iter().try_for_each(|flow| visit.call(flow))?;
                }
                Ok(())
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let ports = self.state.with(py, |state| std::mem::take(&mut state.ports));
        let wake = self.wake.with(py, Option::take);
        drop((ports, wake));
    }
}

fn parse_address(host: &str) -> PyResult<IpAddr> {
    host.parse().map_err(|_| PyValueError::new_err(format!("{host:?} is not an IP address")))
}
