//! The load generator and responder behind `vnf load`.
//!
//! One thread plays one or both ends of a chain A-B-C: the client end ([`Drive`]) and any number of server ends
//! ([`Respond`]), over kernel sockets ([`kernel`]) or a host of our own on a port ([`bypass`]). What is in flight, when
//! the next request is due, and what came of it is kept in one place for both ([`ledger`], [`pace`]), without I/O.
//!
//! What is measured: the requests that *started* after the warm-up and before the end. In a closed loop a request
//! starts when it is issued; in an open loop at its scheduled time, whether or not it could be sent then, so that a
//! server's pause is charged to every request it delayed (no coordinated omission). On connections that carry a given
//! number of requests, opening one is part of its first request. Requests in flight at the end are waited for, up to
//! the timeout. The clock is read once per socket event on kernel sockets, and once per batch of at most 64 frames
//! (about 20 µs at full speed) on a port.

mod check;
mod distance;
pub mod histogram;
mod kernel;
mod ledger;
pub mod options;
mod pace;
mod progress;
mod sys;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use distance::core_distance;
pub use histogram::Histogram;

/// Where requests go, or where they are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(formatter, "tcp://{address}"),
            Self::Udp(address) => write!(formatter, "udp://{address}"),
            Self::Unix(path) => write!(formatter, "unix://{}", path.display()),
        }
    }
}

/// Where a big-endian id lies in each message: written into the request, expected back in the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdField {
    pub offset: usize,
    /// 1 to 8 bytes.
    pub size: usize,
}

/// The client end.
#[derive(Clone, Debug, PartialEq)]
pub struct Drive {
    pub endpoint: Endpoint,
    /// Sockets, or flows with source ports of their own.
    pub connections: usize,
    /// After so many a connection is closed and another opened when the next request needs it. `None`: kept for ever,
    /// and opened before the clock starts.
    pub requests_per_connection: Option<u64>,
    /// The most requests in flight over all connections; each carries its share, rounded up.
    pub outstanding: usize,
    /// Requests per second on a fixed schedule (open loop). `None`: the next when one is answered (closed loop).
    pub rate: Option<f64>,
    /// Bytes of a request; on a stream also of every reply.
    pub size: usize,
    /// Replies are matched by this id. `None`: by order on a stream and on a socket with one request at a time; else,
    /// on UDP, by the first 8 bytes.
    pub request_id: Option<IdField>,
    /// A reply must equal its request byte for byte.
    pub verify: bool,
    pub duration: Duration,
    pub warmup: Duration,
    /// A request without a reply for so long is counted as lost. Where replies are matched by order its connection is
    /// closed with it, since a late reply would be taken for the next.
    pub timeout: Duration,
    /// Close connections with a reset (SO_LINGER 0), which leaves no TIME_WAIT behind: for connections by the ten
    /// thousands per second, more than there are ports to wait. The server sees ECONNRESET.
    pub reset: bool,
}

/// A server end: echoes every message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Respond {
    pub endpoint: Endpoint,
    /// Bytes of a message on a stream: only whole ones are echoed. Datagrams are echoed whatever their size.
    pub size: usize,
}

/// What carries the traffic.
#[derive(Default)]
pub enum Transport {
    #[default]
    Kernel,
}

/// One run.
#[derive(Default)]
pub struct LoadConfig {
    pub drive: Option<Drive>,
    pub respond: Vec<Respond>,
    pub transport: Transport,
    /// The cpu the calling thread is pinned to during the run.
    pub cpu: Option<usize>,
}

/// Why a request got no good reply, or what else went wrong. Each is counted by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No reply in time.
    Timeout,
    /// `verify` is on, and the reply differs.
    Mismatch,
    /// A reply that no request waits for: late, duplicate, or with an id never given. Not one of the requests.
    Unexpected,
    /// The peer's host said that nobody listens there.
    Refused,
    /// The peer reset the connection.
    Reset,
    /// The peer closed the connection before it answered.
    Closed,
    /// No way to the peer's host or network.
    Unreachable,
    /// No local port is free: connections are opened faster than TIME_WAIT gives ports back (see [`Drive::reset`]).
    Ports,
    /// The port lost its peer, or another error of the system.
    Down,
}

impl Failure {
    pub const ALL: [Self; 9] = [
        Self::Timeout,
        Self::Mismatch,
        Self::Unexpected,
        Self::Refused,
        Self::Reset,
        Self::Closed,
        Self::Unreachable,
        Self::Ports,
        Self::Down,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Mismatch => "mismatch",
            Self::Unexpected => "unexpected",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Unreachable => "unreachable",
            Self::Ports => "ports",
            Self::Down => "down",
        }
    }

    fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ECONNREFUSED | libc::ENOENT) => Self::Refused,
            Some(libc::ECONNRESET | libc::EPIPE) => Self::Reset,
            Some(libc::EHOSTUNREACH | libc::ENETUNREACH) => Self::Unreachable,
            Some(libc::ETIMEDOUT) => Self::Timeout,
            Some(libc::EADDRNOTAVAIL | libc::EADDRINUSE) => Self::Ports,
            _ => Self::Down,
        }
    }
}

/// How often each [`Failure`] happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures([u64; Failure::ALL.len()]);

impl Failures {
    pub fn add(&mut self, failure: Failure) {
        self.0[failure as usize] += 1;
    }

    pub fn of(&self, failure: Failure) -> u64 {
        self.0[failure as usize]
    }

    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Those that happened, by name.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Failure::ALL.into_iter().map(|failure| (failure.name(), self.of(failure))).filter(|&(_, count)| count > 0)
    }
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Connections are being opened, or the port's peer waited for.
    Connecting,
    Warmup,
    Measuring,
    /// Waiting for the replies to what is in flight.
    Draining,
    /// No client end: answering until stopped.
    Responding,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Warmup => "warmup",
            Self::Measuring => "measuring",
            Self::Draining => "draining",
            Self::Responding => "responding",
        }
    }
}

/// Told about ten times a second.
#[derive(Clone, Debug)]
pub struct Progress {
    pub phase: Phase,
    /// Since the phases began (the start of the warm-up).
    pub seconds: f64,
    /// Answered since the start, warm-up included; of responders alone: echoed.
    pub requests: u64,
    /// Answered (echoed) per second since the last progress.
    pub rate: f64,
    /// Of the measured requests so far.
    pub errors: u64,
    pub p50_us: f64,
    pub p99_us: f64,
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Measured requests that were answered well.
    pub requests: u64,
    pub errors: Failures,
    /// The measured time: from the end of the warm-up to the end, or to the stop.
    pub seconds: f64,
    /// `requests / seconds`
    pub rate: f64,
    /// In nanoseconds.
    pub latency: Histogram,
    /// Open loop: scheduled within the measured time, never sent for want of a free place among `outstanding`.
    pub unsent: u64,
    /// Connections (flows) opened over the whole run.
    pub connections_opened: u64,
    /// Connections the server ends accepted (datagrams: none).
    pub connections_accepted: u64,
    /// Messages the server ends echoed over the whole run.
    pub echoed: u64,
    /// This thread's cpu time over the whole run.
    pub cpu_seconds: f64,
}

/// Why there is no report.
#[derive(Debug)]
pub enum LoadError {
    /// The configuration contradicts itself; says what was found and what was wanted.
    Config(String),
    /// The endpoint was never reached.
    Unreached { endpoint: Endpoint, failure: Failure, detail: String },
    /// A server end could not be set up.
    Listen { endpoint: Endpoint, error: io::Error },
    /// The system refused something else.
    System { what: &'static str, error: io::Error },
}

impl fmt::Display for LoadError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(message) => formatter.write_str(message),
            Self::Unreached { endpoint, detail, .. } => write!(formatter, "{endpoint}: {detail}"),
            Self::Listen { endpoint, error } => write!(formatter, "{endpoint}: cannot listen: {error}"),
            Self::System { what, error } => write!(formatter, "{what}: {error}"),
        }
    }
}

impl std::error::Error for LoadError {}

impl LoadError {
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::System { what, error }
    }
}

/// Runs on the calling thread until the duration is over, or `stop` is set: what was measured until then is reported.
/// Without a client end it answers until stopped. `progress` is called about ten times a second.
pub fn run(config: LoadConfig, stop: &AtomicBool, progress: &mut dyn FnMut(&Progress)) -> Result<Report, LoadError> {
    if config.drive.is_none() && config.respond.is_empty() {
        return Err(LoadError::Config("nothing to do: expected an endpoint to drive or to respond at".into()));
    }
    let _pinned = config.cpu.map(sys::Pinned::to).transpose().map_err(LoadError::system("cannot pin to that cpu"))?;
    let cpu_start = sys::thread_cpu();
    let mut report = match config.transport {
        Transport::Kernel => kernel::run(config.drive.as_ref(), &config.respond, stop, progress),
    }?;
    report.cpu_seconds = (sys::thread_cpu() - cpu_start).as_secs_f64();
    Ok(report)
}
