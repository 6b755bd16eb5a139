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

mod bypass;
mod check;
mod distance;
pub mod frames;
pub mod histogram;
mod kernel;
mod ledger;
pub mod options;
mod pace;
mod progress;
mod report;
pub(crate) mod sys;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::packet::Pool;
use crate::port::Port;
use crate::stack::Host;

pub use distance::core_distance;
pub use histogram::Histogram;
pub use report::{Failure, Failures, Phase, Progress, Report};

/// An endpoint that has shown no sign of life for so long (or for the timeout, if that is longer) is not reached.
const REACH_NS: u64 = 5_000_000_000;
/// Before the next request of a schedule is due, this long is spun rather than slept: waking up takes up to 50 µs.
const SPIN_NS: u64 = 80_000;
/// How long a stop may go unnoticed.
const PATIENCE_NS: u64 = 50_000_000;

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
    /// Close connections with a reset (on kernel sockets SO_LINGER 0), which leaves no TIME_WAIT behind: for connections by the ten
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
    /// UDP and TCP.
    Port(Box<PortTransport>),
}

/// A host of our own on a port. Its addresses are those of both ends; the client end has the first that reaches the
/// endpoint, and for TCP the others too, once all source ports of one are taken.
pub struct PortTransport {
    pub port: Box<dyn Port>,
    pub host: Host,
    pub pool: Pool,
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

/// Why there is no report.
#[derive(Debug)]
pub enum LoadError {
    /// The configuration contradicts itself; says what was found and what was wanted.
    Config(String),
    /// The endpoint was never reached.
    Unreached { endpoint: Endpoint, failure: Failure, detail: String },
    /// A server end could not be set up.
    Listen { endpoint: Endpoint, error: io::Error },
    /// A port had no peer in time; the number of the port.
    Down { port: usize, why: String },
    /// The system refused something else.
    System { what: &'static str, error: io::Error },
}

impl fmt::Display for LoadError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(message) => formatter.write_str(message),
            Self::Unreached { endpoint, detail, .. } => write!(formatter, "{endpoint}: {detail}"),
            Self::Listen { endpoint, error } => write!(formatter, "{endpoint}: cannot listen: {error}"),
            Self::Down { port, why } => write!(formatter, "port {port}: {why}"),
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
        Transport::Port(port) => {
            bypass::Bypass::new(*port, config.drive.as_ref(), &config.respond)?.run(stop, progress)
        }
    }?;
    report.cpu_seconds = (sys::thread_cpu() - cpu_start).as_secs_f64();
    Ok(report)
}
