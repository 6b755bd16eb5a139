//! When the next request is due, and which phase a run is in. Pure: times are nanoseconds since the run's origin.
//!
//! An open loop needs no queue: the k-th request is due at `start + k / rate`, and those that could not be sent yet are
//! simply the numbers between the next one and the present. Their latency counts from when they were due.

use std::time::Duration;

use super::Phase;

#[derive(Debug)]
pub struct Pace {
    /// Nanoseconds between two requests of an open loop.
    interval: Option<f64>,
    warmup: u64,
    duration: u64,
    /// The times below exist once the run has begun.
    begun: bool,
    start: u64,
    measured_from: u64,
    end: u64,
    /// The number of the next scheduled request.
    next: u64,
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4)
}

impl Pace {
    pub fn new(rate: Option<f64>, warmup: Duration, duration: Duration) -> Self {
        Self {
            interval: rate.map(|rate| 1e9 / rate),
            warmup: nanoseconds(warmup),
            duration: nanoseconds(duration),
            begun: false,
            start: 0,
            measured_from: u64::MAX,
            end: u64::MAX,
            next: 0,
        }
    }

    /// Everything is connected: the warm-up starts.
    pub fn begin(&mut self, now: u64) {
        self.begun = true;
        self.start = now;
        self.measured_from = now + self.warmup;
        self.end = self.measured_from + self.duration;
        self.next = 0;
    }

    /// Requests are due from now on, but nothing counts before [`Self::begin`].
    pub fn rehearse(&mut self, now: u64) {
        self.begun = true;
        self.start = now;
    }

    pub fn begun(&self) -> bool {
        self.begun
    }

    /// Ends now instead of at the set time.
    pub fn cut(&mut self, now: u64) {
        if self.begun {
            self.end = self.end.min(now);
        }
    }

    fn scheduled(&self, number: u64, interval: f64) -> u64 {
        self.start + (number as f64 * interval) as u64
    }

    /// When the next request starts if it can be issued now; `None`: none is due, or the run is over.
    #[inline]
    pub fn due(&self, now: u64) -> Option<u64> {
        let start = self.next_due(now)?;
        (start <= now && now < self.end).then_some(start)
    }

    /// When the next request will be due: an open loop's schedule, or at once.
    pub fn next_due(&self, now: u64) -> Option<u64> {
        let due = match self.interval {
            None => now,
            Some(interval) => self.scheduled(self.next, interval),
        };
        (self.begun && due < self.end).then_some(due)
    }

    /// The request that was due has been issued.
    #[inline]
    pub fn advance(&mut self) {
        self.next += 1;
    }

    /// It could not be sent after all.
    pub fn retreat(&mut self) {
        self.next -= 1;
    }

    /// Whether a request that started then counts.
    #[inline]
    pub fn measures(&self, start: u64) -> bool {
        start >= self.measured_from && start < self.end
    }

    pub fn phase(&self, now: u64) -> Phase {
        match now {
            _ if self.measured_from == u64::MAX => Phase::Connecting,
            _ if now >= self.end => Phase::Draining,
            _ if now >= self.measured_from => Phase::Measuring,
            _ => Phase::Warmup,
        }
    }

    pub fn end(&self) -> u64 {
        self.end
    }

    pub fn seconds_since_start(&self, now: u64) -> f64 {
        if self.begun { now.saturating_sub(self.start) as f64 / 1e9 } else { 0.0 }
    }

    pub fn measured_seconds(&self) -> f64 {
        let is_set = self.measured_from != u64::MAX;
        if is_set { self.end.saturating_sub(self.measured_from) as f64 / 1e9 } else { 0.0 }
    }

    /// Scheduled in the measured time and never issued.
    pub fn unsent(&self) -> u64 {
        let (Some(interval), true) = (self.interval, self.begun) else { return 0 };
        let before = |time: u64| (time.saturating_sub(self.start) as f64 / interval).ceil() as u64;
        before(self.end).saturating_sub(self.next.max(before(self.measured_from)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn open(rate: f64) -> Pace {
        let mut pace = Pace::new(Some(rate), Duration::from_millis(10), Duration::from_millis(100));
        pace.begin(1000 * MS);
        pace
    }

    #[test]
    fn a_late_request_starts_when_it_was_due() {
        let mut pace = open(1000.0);
        assert_eq!(pace.due(1000 * MS), Some(1000 * MS));
        pace.advance();
        assert_eq!(pace.due(1000 * MS), None);
        assert_eq!(pace.next_due(1000 * MS), Some(1001 * MS));
        assert_eq!(pace.due(1050 * MS), Some(1001 * MS));
    }

    #[test]
    fn a_closed_loop_is_always_due_until_the_end() {
        let mut pace = Pace::new(None, Duration::ZERO, Duration::from_millis(5));
        assert_eq!(pace.due(7), None);
        pace.begin(7);
        assert_eq!(pace.due(9), Some(9));
        assert_eq!(pace.due(7 + 5 * MS), None);
        assert_eq!(pace.unsent(), 0);
    }

    #[test]
    fn what_a_stall_kept_back_is_counted_as_unsent() {
        let mut pace = open(1000.0);
        (0..30).for_each(|_| pace.advance());
        assert_eq!(pace.unsent(), 80);
        pace.cut(1050 * MS);
        assert_eq!(pace.unsent(), 20);
        assert!((pace.measured_seconds() - 0.04).abs() < 1e-9);
    }

    #[test]
    fn nothing_counts_in_a_rehearsal() {
        let mut pace = Pace::new(Some(1000.0), Duration::ZERO, Duration::from_millis(100));
        pace.rehearse(5 * MS);
        assert_eq!((pace.due(6 * MS), pace.phase(6 * MS)), (Some(5 * MS), Phase::Connecting));
        pace.advance();
        assert!(!pace.measures(5 * MS));
        pace.begin(9 * MS);
        assert_eq!((pace.due(9 * MS), pace.phase(9 * MS)), (Some(9 * MS), Phase::Measuring));
    }

    #[test]
    fn only_what_starts_between_warmup_and_end_is_measured() {
        let pace = open(1000.0);
        let measured = [1009, 1010, 1109, 1110].map(|ms| pace.measures(ms * MS));
        assert_eq!(measured, [false, true, true, false]);
        let phases = [1009, 1010, 1110].map(|ms| pace.phase(ms * MS));
        assert_eq!(phases, [Phase::Warmup, Phase::Measuring, Phase::Draining]);
    }
}
