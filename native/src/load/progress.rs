//! The run's clock, and the ten reports of progress per second.

use std::time::{Duration, Instant};

use super::ledger::Ledger;
use super::{Phase, Progress};

const TICK: Duration = Duration::from_millis(100);

/// Nanoseconds since the run's origin.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    #[inline]
    pub fn now(self) -> u64 {
        self.at(Instant::now())
    }

    #[inline]
    pub fn at(self, instant: Instant) -> u64 {
        instant.saturating_duration_since(self.0).as_nanos() as u64
    }
}

pub struct Ticker<'a> {
    progress: &'a mut dyn FnMut(&Progress),
    last: u64,
    last_requests: u64,
}

impl<'a> Ticker<'a> {
    pub fn new(progress: &'a mut dyn FnMut(&Progress)) -> Self {
        Self { progress, last: 0, last_requests: 0 }
    }

    pub fn next(&self) -> u64 {
        self.last + TICK.as_nanos() as u64
    }

    /// Tells where the run stands if it is time to.
    #[inline]
    pub fn tick(&mut self, now: u64, ledger: Option<&Ledger>, echoed: u64) {
        if now >= self.next() {
            self.tell(now, ledger, echoed);
        }
    }

    fn tell(&mut self, now: u64, ledger: Option<&Ledger>, echoed: u64) {
        let requests = ledger.map_or(echoed, |ledger| ledger.answered);
        let micros = |quantile| ledger.map_or(0.0, |ledger| ledger.latency.quantile(quantile) as f64 / 1e3);
        (self.progress)(&Progress {
            phase: ledger.map_or(Phase::Responding, |ledger| ledger.pace.phase(now)),
            seconds: ledger.map_or(now as f64 / 1e9, |ledger| ledger.pace.seconds_since_start(now)),
            requests,
            rate: (requests - self.last_requests) as f64 * 1e9 / (now - self.last) as f64,
            errors: ledger.map_or(0, |ledger| ledger.failures.total()),
            p50_us: micros(0.5),
            p99_us: micros(0.99),
        });
        (self.last, self.last_requests) = (now, requests);
    }
}
