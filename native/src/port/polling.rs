//! How long to poll before sleeping.
//!
//! A look at a ring costs 0.1 µs, waking a sleeping thread 30–50 µs on a virtual machine, so a short silence is polled
//! through. But polling steals a shared core from its other users. The budget grows while sleeps turn out to have been
//! shorter than polling would have been, falls to nothing when they are long, and is nothing while the kernel keeps
//! taking the core away from this thread: nothing but what falling asleep costs by itself.
#![allow(unsafe_code)]

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// The longest silence that is polled through.
pub const LONGEST: Duration = Duration::from_micros(100);

/// A silence that is polled through even on a shared core: falling asleep and being woken keeps it, and the peer's, busy
/// for as long. Without this a stream that never stops for longer makes a thread sleep thirty thousand times a second.
const SLEEP_COST: Duration = Duration::from_micros(5);
/// Where the budget begins again after it fell to nothing.
const SMALLEST: Duration = Duration::from_micros(10);
/// How often the kernel is asked whether it took the core away.
const LOOK: Duration = Duration::from_millis(10);
/// How long the core counts as shared after it did.
const SHARED: Duration = Duration::from_millis(100);

pub struct Polling {
    most: Duration,
    budget: Duration,
    now: Instant,
    last_work: Instant,
    next_look: Instant,
    switches: i64,
    shared_until: Instant,
}

impl Polling {
    pub fn new(most: Duration, now: Instant) -> Self {
        Self {
            most,
            budget: most / 2,
            now,
            last_work: now,
            next_look: now + LOOK,
            switches: involuntary_switches(),
            shared_until: now,
        }
    }

    /// The time of the running burst: the engine's clock.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// What was found has been handled: only from now on is it silent.
    pub fn busy_until(&mut self, now: Instant) {
        (self.now, self.last_work) = (now, now);
    }

    pub fn budget(&self) -> Duration {
        self.budget
    }

    pub fn begin(&mut self, now: Instant) {
        self.now = now;
        if now < self.next_look {
            return;
        }
        self.next_look = now + LOOK;
        let switches = involuntary_switches();
        if switches > self.switches + 1 {
            self.shared_until = now + SHARED;
        }
        self.switches = switches;
    }

    /// Frames were found at `now`; what went before was the silence. `busy_until` follows.
    pub fn worked(&mut self, now: Instant) {
        let silence = now.saturating_duration_since(self.last_work);
        if silence > self.most {
            self.budget = Duration::ZERO;
        } else if silence > self.budget {
            self.budget = (self.budget * 2).clamp(SMALLEST, self.most);
        }
        self.last_work = now;
    }

    fn end(&self) -> Instant {
        let budget = if self.last_work < self.shared_until { Duration::ZERO } else { self.budget };
        self.last_work + budget.max(SLEEP_COST.min(self.most))
    }

    /// Until when to poll on within a slice that ends at `slice`; None: not at all.
    pub fn until(&self, now: Instant, slice: Instant) -> Option<Instant> {
        let until = self.end().min(slice);
        (until > now).then_some(until)
    }

    /// Whether to be called again rather than sleep.
    pub fn goes_on(&self, now: Instant) -> bool {
        self.last_work == self.now || self.end() > now
    }
}

/// How often the kernel took the core away from this thread.
fn involuntary_switches() -> i64 {
    // SAFETY: a zeroed rusage is a valid one, and the kernel fills it.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        if libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) == 0 { usage.ru_nivcsw } else { 0 }
    }
}

/// Sleeps until one of `fds` is readable, a signal came, or `timeout` is over.
pub fn sleep_on(fds: &[RawFd], timeout: Duration) {
    let mut polled: Vec<_> = fds.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    let millis = timeout.as_micros().div_ceil(1000).min(60_000) as libc::c_int;
    // SAFETY: as many entries as are told; a negative descriptor is one that poll(2) passes over.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, millis) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn short_silences_are_polled_through_and_long_ones_are_not() {
        let start = Instant::now();
        let mut polling = Polling::new(micros(100), start);
        polling.worked(start + micros(80));
        assert_eq!(polling.budget(), micros(100));
        assert!(polling.goes_on(start + micros(150)));
        polling.worked(start + micros(1_000));
        assert_eq!(polling.budget(), Duration::ZERO);
        assert!(polling.goes_on(start + micros(1_004)) && !polling.goes_on(start + micros(1_006)));
        polling.worked(start + micros(1_050));
        assert_eq!(polling.budget(), SMALLEST);
    }

    #[test]
    fn handling_what_came_is_no_silence() {
        let start = Instant::now();
        let mut polling = Polling::new(micros(100), start);
        polling.worked(start + micros(10));
        polling.busy_until(start + micros(1_000));
        polling.worked(start + micros(1_010));
        assert_eq!(polling.budget(), micros(50));
        polling.busy_until(start + micros(1_020));
        polling.begin(start + micros(1_021));
        assert!(polling.goes_on(start + micros(1_060)) && !polling.goes_on(start + micros(1_080)));
    }

    #[test]
    fn a_slice_bounds_the_polling() {
        let start = Instant::now();
        let polling = Polling::new(micros(100), start);
        assert_eq!(polling.until(start, start + micros(20)), Some(start + micros(20)));
        assert_eq!(polling.until(start, start + micros(90)), Some(start + micros(50)));
        assert_eq!(polling.until(start + micros(60), start + micros(90)), None);
    }
}
