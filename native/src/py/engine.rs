//! The bypass engine: ports and their hosts, polled from the event loop.
//!
//! `turn` is one slice of about 50 µs, so that timers and tasks stay punctual. While there is work it asks to be called
//! again at once. When there is none it polls on for a while, without the GIL, because waking a sleeping thread costs
//! more than a request; then it arms the ports and lets the loop sleep on their descriptors.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};
use pyo3::{PyTraverseError, PyVisit};

use super::capture::Capture;
use super::cell::{Counter, GilCell};
use super::connection::Connection;
use super::core::Core;
use super::dispatch::Incoming;
use super::endpoint::Endpoint;
use super::forwarding::{self, Spun};
use super::frames::{self, Frame};
use super::opened::Open;
use super::packet::Body;
use super::ports;
use super::tracing::{self, Trace};
use crate::flow::Table;
use crate::forward::Forwarder;
use crate::packet::{Pool, Slot};
use crate::port::Link;
use crate::port::polling::{self, Polling};
use crate::port::queue::{Queue, QueuePort};
use crate::stack::{BindError, Datagram, Input, To, Unreachable};

/// Frames taken from a port at once.
const BURST: usize = 32;
/// Frames handled before what was sent meanwhile is handed over: the peer can begin while we go on.
const HAND_OVER: usize = 8;
/// How long a turn may take before the loop's timers and tasks get their chance.
const SLICE: Duration = Duration::from_micros(50);
/// A shorter sleep is not worth a timer.
const SHORTEST: Duration = Duration::from_micros(100);
/// Batches of a turn whose clock stands still meanwhile.
const ROUNDS: usize = 16;

pub struct State {
    pub ports: Vec<Open>,
    frames: Vec<Slot>,
    /// The shell of a frame that nobody kept.
    pub shell: Option<Py<Frame>>,
    /// Buffers of such frames.
    pub spare: Vec<Slot>,
    /// Where bytes of streams stay between their host and their connection.
    pub scratch: Vec<u8>,
    pub polling: Polling,
    armed: bool,
    /// A turn runs; it flushes for good at its end.
    pub in_turn: bool,
    /// A host has something to tell, or to be told, without a frame.
    pub pending: bool,
    pub trace: Option<Box<Trace>>,
    sleep: Sleep,
    /// Elsewhere while it polls without the GIL.
    pub forwarder: Option<Box<Forwarder>>,
}

/// What the last turn told the event loop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sleep {
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
    pub fn wakes_for(&mut self, wanted: Option<Instant>) -> bool {
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
        if self.pending || self.ports.iter().any(|open| !open.events.is_empty()) {
            return Sleep::No;
        }
        let rules = self.forwarder.as_ref().and_then(|forwarder| forwarder.table().deadline());
        // Rules that end together end over many turns.
        if rules.is_some_and(|deadline| deadline <= self.polling.now()) {
            return Sleep::No;
        }
        let deadlines = self.ports.iter().flat_map(|open| [open.port.deadline(), open.host.deadline()]);
        let deadline = deadlines.flatten().chain(rules).min();
        self.armed = self.ports.iter_mut().all(|open| open.port.arm());
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
    pub engine: Py<Engine>,
    pub port: usize,
    pub remote: SocketAddr,
    #[pyo3(get)]
    pub datagram: bool,
}

#[pymethods]
impl Target {
    /// Starts connecting.
    #[pyo3(signature = (connection, /))]
    fn open(&self, py: Python<'_>, connection: Py<Connection>) {
        Engine::connect(self, py, &connection);
    }
}

#[pyclass(frozen, weakref, module = "libvnf._native")]
pub struct Engine {
    pub core: Py<Core>,
    pub state: GilCell<State>,
    /// Of the ports, by place: they are told on any thread, and when the ports are closed.
    pub names: GilCell<Vec<String>>,
    pub connect_s: f64,
    clock: Option<Clock>,
    /// Makes the event loop call `turn` soon.
    wake: GilCell<Option<Py<PyAny>>>,
    /// Is told of rules that have ended.
    pub on_ended: GilCell<Option<Py<PyAny>>>,
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
    pub fn now(&self, py: Python<'_>) -> Instant {
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

    /// Hands to the peers what was sent in this batch.
    pub fn flush(&self, py: Python<'_>) {
        let (unflushed, in_turn) =
            self.state.with(py, |state| (state.ports.iter().any(|open| open.unflushed), state.in_turn));
        if !unflushed {
            return;
        }
        let time = if in_turn { None } else { Some(self.now(py)) };
        let wakes = self.state.with(py, |state| {
            let now = time.unwrap_or(state.polling.now());
            let mut wanted = None;
            for open in state.ports.iter_mut().filter(|open| open.unflushed) {
                open.host.tcp_flush(now, open.port.as_mut());
                if in_turn {
                    // Making sure that a sleeping peer wakes costs a fence: once a turn will do.
                    open.port.hand_over();
                    continue;
                }
                open.unflushed = false;
                open.port.flush();
                open.host.tcp_events(&mut open.events);
                if !open.events.is_empty() || open.queue.as_ref().is_some_and(Queue::has_sent) {
                    wanted = Some(now);
                }
                wanted = [wanted, open.host.deadline()].into_iter().flatten().min();
            }
            state.wakes_for(wanted)
        });
        if wakes {
            self.call_wake(py);
        }
    }

    /// The event loop sleeps, and there is something to do sooner than it knows.
    pub fn call_wake(&self, py: Python<'_>) {
        let wake = self.wake.with(py, |wake| wake.as_ref().map(|wake| wake.clone_ref(py)));
        if let Some(wake) = wake
            && let Err(error) = wake.call0(py)
        {
            error.write_unraisable(py, None);
        }
    }

    /// Connects, disconnects, announces, retries: what is due besides frames; how many hosts had something to do.
    fn service(&self, py: Python<'_>, now: Instant) -> usize {
        let (gone, due) = self.state.with(py, |state| {
            let (mut gone, mut due) = (Vec::new(), 0);
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
                    due += 1;
                    let found = unreachable.into_iter().map(|(owner, reason)| (open.owner(py, owner), reason));
                    gone.extend(found.filter_map(|(connection, reason)| Some((connection?, reason))));
                }
            }
            (gone, due)
        });
        for (connection, reason) in gone {
            self.unreachable(py, &connection, reason);
        }
        self.expire(py, now);
        due
    }

    /// Takes a burst from one port and delivers it; how much there was, and how much of that native code has not finished.
    fn burst(
        slf: &Py<Self>,
        py: Python<'_>,
        index: usize,
        now: Instant,
        pool: &Pool,
        frames: &mut Vec<Slot>,
    ) -> (usize, usize) {
        let inner = slf.get();
        let traced = tracing::before(inner, py);
        // Straight into a batch, or from the ring to the handler, where nobody else decides.
        let collected = if forwarding::decides(inner, py, index) {
            None
        } else {
            inner.collect(py, index).or_else(|| inner.take_burst(py, index, frames))
        };
        let got = collected
            .unwrap_or_else(|| inner.state.with(py, |state| forwarding::take(state, index, now, pool, frames, BURST)));
        let unfinished = collected.unwrap_or(frames.len());
        let events = inner.deliver(slf, py, index, now, pool, frames);
        tracing::after(inner, py, traced);
        (got + events, unfinished + events)
    }

    /// What frames mean, to flows and listeners; how many events of TCP there were among it.
    fn deliver(
        &self,
        slf: &Py<Self>,
        py: Python<'_>,
        index: usize,
        now: Instant,
        pool: &Pool,
        frames: &mut Vec<Slot>,
    ) -> usize {
        if self.state.with(py, |state| state.ports.get(index).is_some_and(|open| open.has_handler)) {
            frames::deliver(slf, py, index, now, frames);
        }
        let refused = self.watch_gate(py, index, !frames.is_empty());
        for (count, frame) in frames.drain(..).enumerate() {
            let meant = self.state.with(py, |state| {
                let Some(open) = state.ports.get_mut(index) else { return Meant::Nothing };
                if count % HAND_OVER == HAND_OVER - 1 {
                    open.port.hand_over();
                }
                match open.host.receive(frame, now, pool, open.port.as_mut()) {
                    Input::Consumed => {
                        open.unflushed = true;
                        Meant::Nothing
                    }
                    Input::Datagram(datagram) => match datagram.to {
                        To::Flow(owner) => match open.owner(py, owner) {
                            Some(connection) => Meant::Message(connection, datagram.payload),
                            None => Meant::Nothing,
                        },
                        To::Listener(listener) => match open.listeners.get(listener as usize) {
                            Some(endpoint) => Meant::First(endpoint.clone_ref(py), datagram),
                            None => Meant::Nothing,
                        },
                    },
                    Input::Unreachable { to, reason } => match open.owner(py, to) {
                        Some(connection) => Meant::Unreachable(connection, reason),
                        None => Meant::Nothing,
                    },
                }
            });
            match meant {
                Meant::Nothing => {}
                Meant::Message(connection, payload) => {
                    Connection::datagram(&connection, py, Incoming::Body(Body::Slot(payload)))
                }
                Meant::Unreachable(connection, reason) => self.unreachable(py, &connection, reason),
                Meant::First(endpoint, datagram) => self.first(slf, py, index, &endpoint, datagram),
            }
        }
        if let Some(gate) = refused {
            self.core.get().counters.connections_refused.add(gate.take_refused());
        }
        self.tcp_events(slf, py, index)
    }

    /// The far end of a port that `add_queue` made.
    fn queue(&self, py: Python<'_>, name: &str) -> PyResult<Queue> {
        self.core.get().check_thread()?;
        let found = self
            .state
            .with(py, |state| state.ports.iter().find(|open| open.name == name).and_then(|open| open.queue.clone()));
        found.ok_or_else(|| PyValueError::new_err(format!("there is no queue {name:?}")))
    }

    /// Forwards and polls without the GIL.
    fn spin(&self, py: Python<'_>, until: Instant, slice: Instant, pool: &Pool, frames: &mut Vec<Slot>) -> Spun {
        // The ports leave the cell meanwhile: another thread may run Python code, but none that gets at them, since
        // everything that would is refused off the loop's thread.
        let (mut ports, forwarder) =
            self.state.with(py, |state| (std::mem::take(&mut state.ports), state.forwarder.take()));
        let Some(mut forwarder) = forwarder else { return Spun::default() };
        let (ports, forwarder, spun) = py.detach(|| {
            let spun = forwarding::spin(&mut ports, &mut forwarder, until, slice, pool, frames);
            (ports, forwarder, spun)
        });
        self.state.with(py, |state| (state.ports, state.forwarder) = (ports, Some(forwarder)));
        spun
    }
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (core, /, *, connect_s=5.0, clock=None, wake=None))]
    fn new(
        py: Python<'_>,
        core: Py<Core>,
        connect_s: f64,
        clock: Option<Py<PyAny>>,
        wake: Option<Py<PyAny>>,
    ) -> PyResult<Py<Self>> {
        let base = Instant::now();
        let engine = Py::new(
            py,
            Self {
                state: GilCell::new(State {
                    ports: Vec::new(),
                    frames: Vec::with_capacity(2 * BURST),
                    shell: None,
                    spare: Vec::new(),
                    scratch: Vec::new(),
                    polling: Polling::new(polling::LONGEST, base),
                    armed: false,
                    in_turn: false,
                    pending: false,
                    trace: None,
                    sleep: Sleep::No,
                    forwarder: Some(Box::new(Forwarder::new(Table::new(core.get().limits.max_flows)))),
                }),
                core: core.clone_ref(py),
                names: GilCell::new(Vec::new()),
                connect_s,
                clock: clock.map(|read| Clock { read, base }),
                wake: GilCell::new(wake),
                on_ended: GilCell::new(None),
                turns: Counter::default(),
                sleeps: Counter::default(),
            },
        )?;
        let kept = engine.clone_ref(py);
        core.get().state.with(py, |state| state.engines.push(kept));
        Ok(engine)
    }

    #[pyo3(signature = (name, options, /, *, capture=None))]
    fn add_port(
        &self,
        py: Python<'_>,
        name: String,
        options: &Bound<'_, PyDict>,
        capture: Option<Py<Capture>>,
    ) -> PyResult<()> {
        self.core.get().check_thread()?;
        let (kind, port, host) = ports::open(&name, options, capture)?;
        let open = Open::new(name, kind, port, None, host, None);
        self.add(py, open);
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
        let config = ports::parse(&name, &options)?.host;
        let queue = Queue::default();
        let port = Box::new(QueuePort::new(config.mtu, queue.clone()));
        let open = Open::new(name, "queue", port, Some(queue), config, seed);
        self.add(py, open);
        Ok(())
    }

    #[pyo3(signature = (name, address, /))]
    fn add_address(&self, py: Python<'_>, name: &str, address: &str) -> PyResult<()> {
        self.core.get().check_thread()?;
        let address =
            crate::port::options::cidr("address", address).map_err(|error| PyValueError::new_err(error.to_string()))?;
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
        let datagram = endpoint.get().datagram;
        let bound = self.state.with(py, |state| {
            let open = state.ports.iter_mut().find(|open| open.name == port)?;
            let listener = open.listeners.len() as u32;
            let bound = if datagram {
                open.host.listen(address, number, listener)
            } else {
                open.listen_tcp(address, number, listener)
            };
            if bound.is_ok() {
                open.listeners.push(endpoint.clone_ref(py));
            }
            Some(bound)
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

    /// No TCP listener of the port (on that number) accepts any more; datagrams still come in, for peers that are known.
    #[pyo3(signature = (port, number=None, /))]
    fn unlisten(&self, py: Python<'_>, port: &str, number: Option<u16>) {
        self.state.with(py, |state| {
            for open in state.ports.iter_mut().filter(|open| open.name == port) {
                open.unlisten_tcp(number);
            }
        });
    }

    #[pyo3(signature = (scheme, port, host, number, /))]
    fn target(slf: Py<Self>, py: Python<'_>, scheme: &str, port: &str, host: &str, number: u16) -> PyResult<Target> {
        let datagram = match scheme {
            "tcp" => false,
            "udp" => true,
            _ => return Err(PyValueError::new_err(format!("{scheme:?}: expected \"tcp\" or \"udp\""))),
        };
        let remote = SocketAddr::new(parse_address(host)?, number);
        let index = slf.get().state.with(py, |state| state.ports.iter().position(|open| open.name == port));
        let port = index.ok_or_else(|| PyValueError::new_err(format!("there is no port {port:?}")))?;
        Ok(Target { engine: slf, port, remote, datagram })
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
        let mut now = begin;
        let mut serviced = false;
        // Where time stands still during a turn, nothing comes by polling on.
        let polls = inner.clock.is_none();
        let mut busy = true;
        for _ in 0..if polls { usize::MAX } else { ROUNDS } {
            let pending = inner.state.with(py, |state| usize::from(std::mem::take(&mut state.pending)));
            let (mut got, mut unfinished) = (pending, pending);
            for index in 0..count {
                let burst = Self::burst(&slf, py, index, now, &pool, &mut frames);
                (got, unfinished) = (got + burst.0, unfinished + burst.1);
            }
            // A peer that has gone may have left frames: they come before `service` finds out.
            if !serviced && got < BURST {
                serviced = true;
                let due = inner.service(py, now);
                (got, unfinished) = (got + due, unfinished + due);
            }
            if unfinished == 0 {
                let slice = begin + SLICE;
                let until = inner.state.with(py, |state| {
                    if got > 0 {
                        state.polling.worked(now);
                    }
                    let until = if got > 0 { Some(slice) } else { state.polling.until(now, slice) };
                    until.filter(|_| state.trace.is_none())
                });
                let spun = until.filter(|_| polls).map(|until| inner.spin(py, until, slice, &pool, &mut frames));
                let Spun { found, worked } = spun.unwrap_or_default();
                now = inner.now(py);
                if let Some(worked) = worked {
                    inner.state.with(py, |state| state.polling.busy_until(worked));
                }
                match found {
                    Some(index) => drop(inner.deliver(&slf, py, index, now, &pool, &mut frames)),
                    // Where time stands still frames that came are followed by what they left behind.
                    None if got > 0 && !polls => {}
                    None => {
                        busy = false;
                        break;
                    }
                }
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
            inner.state.with(py, |state| state.polling.busy_until(now));
            if polls && now >= begin + SLICE {
                break;
            }
        }
        if !serviced {
            inner.service(py, now);
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

    #[pyo3(signature = (one, two, /))]
    fn bridge(&self, py: Python<'_>, one: &Bound<'_, PyString>, two: &Bound<'_, PyString>) -> PyResult<()> {
        self.join(py, one, two)
    }

    fn ports<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        self.core.get().check_thread()?;
        let rows = self.state.with(py, |state| state.ports.iter().map(Open::row).collect::<Vec<_>>());
        let list = PyList::empty(py);
        for row in rows {
            list.append(row.into_dict(py)?)?;
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

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let core = self.core.get();
        core.check_thread()?;
        let flows: Vec<Py<Connection>> = self.state.with(py, |state| {
            state.ports.iter().flat_map(|open| open.flows.iter().flatten()).map(|flow| flow.clone_ref(py)).collect()
        });
        core.enter(py);
        for connection in flows {
            Connection::abort_with(&connection, py, "the VNF stops");
        }
        let left = Core::leave(&self.core, py);
        let now = self.now(py);
        let (mut ports, wake) =
            (self.state.with(py, |state| std::mem::take(&mut state.ports)), self.wake.with(py, Option::take));
        let shell = self.state.with(py, |state| state.shell.take());
        for open in &mut ports {
            open.host.tcp_flush(now, open.port.as_mut());
            open.port.flush();
        }
        let on_ended = self.on_ended.with(py, Option::take);
        let forwarder = self.state.with(py, |state| state.forwarder.take());
        drop((ports, wake, on_ended, forwarder, shell));
        left
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.core)?;
        self.clock.as_ref().map_or(Ok(()), |clock| visit.call(&clock.read))?;
        self.wake.peek(|wake| visit.call(wake)).unwrap_or(Ok(()))?;
        self.on_ended.peek(|told| visit.call(told)).unwrap_or(Ok(()))?;
        self.state
            .peek(|state| {
                visit.call(&state.shell)?;
                state.ports.iter().try_for_each(|open| open.traverse(visit))
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.state.with(py, |state| (std::mem::take(&mut state.ports), state.shell.take()));
        let wake = self.wake.with(py, Option::take);
        let on_ended = self.on_ended.with(py, Option::take);
        drop((old, wake, on_ended));
    }
}

fn parse_address(host: &str) -> PyResult<IpAddr> {
    host.parse().map_err(|_| PyValueError::new_err(format!("{host:?} is not an IP address")))
}
