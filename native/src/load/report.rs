//! What a run tells: while it runs, and at its end.

use std::io;

use super::Histogram;

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
    /// No local port is free: connections are opened faster than TIME_WAIT gives ports back (see [`super::Drive::reset`]).
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

    pub(super) fn of(error: &io::Error) -> Self {
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

impl Report {
    /// The latency that `quantile` of the requests did not exceed, in microseconds.
    pub fn latency_us(&self, quantile: f64) -> f64 {
        self.latency.quantile(quantile) as f64 / 1e3
    }
}
