//! Locks that are held, and when their leases are to be renewed. Pure.
//!
//! A lease counts from before its renewal was sent: the store began to count later. It is renewed only while the loop has
//! shown that it lives; one that does not is as good as dead, and its lock goes to who asks for it. A lock may have an end
//! of its own, which no renewal goes beyond.

use std::collections::HashMap;
use std::time::{Duration, Instant};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lock {
    pub table: usize,
    pub key: Vec<u8>,
    pub owner: u64,
}

/// A lock that is no longer held, and was not given back.
pub type Lapsed = Lock;

#[derive(Debug)]
struct Lease {
    span: Duration,
    /// When it is to end, renewed or not.
    end: Option<Instant>,
    until: Instant,
    renew_at: Instant,
}

#[derive(Debug, Default)]
pub struct Leases(HashMap<Lock, Lease>);

impl Leases {
    /// The lock is ours for `span` from `since` on, when that was asked for, and renewed for up to `hold`.
    pub fn held(&mut self, lock: Lock, span: Duration, hold: Option<Duration>, since: Instant) {
        let end = hold.and_then(|hold| since.checked_add(hold));
        let lease = Lease { span, end, until: since, renew_at: since + span / 3 };
        self.0.insert(lock.clone(), lease);
        self.renewed(&lock, since);
    }

    /// Renewed, if it has not been given back meanwhile.
    pub fn renewed(&mut self, lock: &Lock, since: Instant) {
        if let Some(lease) = self.0.get_mut(lock) {
            let until = lease.until.max(since + lease.span);
            lease.until = lease.end.map_or(until, |end| until.min(end));
        }
    }

    /// Given back, or another's. Whether it was held.
    pub fn gone(&mut self, lock: &Lock) -> bool {
        self.0.remove(lock).is_some()
    }

    pub fn next(&self) -> Option<Instant> {
        self.0.values().map(|lease| lease.renew_at.min(lease.until)).min()
    }

    /// What is to be renewed now, and what has lapsed. `lives`: the loop has shown so within its limit.
    pub fn due(&mut self, lives: bool, now: Instant) -> (Vec<(Lock, Duration)>, Vec<Lapsed>) {
        let lapsed: Vec<Lapsed> =
            self.0.iter().filter(|(_, it)| it.until <= now).map(|(lock, _)| lock.clone()).collect();
        self.0.retain(|_, lease| lease.until > now);
        let mut renew = Vec::new();
        for (lock, lease) in self.0.iter_mut().filter(|(_, lease)| lease.renew_at <= now) {
            lease.renew_at = now + lease.span / 3;
            if lives {
                let left = lease.end.map_or(lease.span, |end| end - now);
                renew.push((lock.clone(), lease.span.min(left)));
            }
        }
        (renew, lapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_secs(3);

    fn lock() -> Lock {
        Lock { table: 0, key: b"k".to_vec(), owner: 7 }
    }

    #[test]
    fn a_lease_is_renewed_at_every_third_of_it() {
        let now = Instant::now();
        let mut leases = Leases::default();
        leases.held(lock(), SPAN, None, now);
        assert_eq!(leases.next(), Some(now + SPAN / 3));
        assert_eq!(leases.due(true, now + SPAN / 3), (vec![(lock(), SPAN)], vec![]));
        leases.renewed(&lock(), now + SPAN / 3);
        assert_eq!(leases.due(true, now + SPAN / 3 * 2), (vec![(lock(), SPAN)], vec![]));
        assert_eq!(leases.due(true, now + SPAN + SPAN / 6).1, vec![], "it was renewed once");
    }

    #[test]
    fn a_lease_that_cannot_be_renewed_lapses_when_it_does_at_the_store_or_before() {
        let now = Instant::now();
        let mut leases = Leases::default();
        leases.held(lock(), SPAN, None, now);
        assert_eq!(leases.due(true, now + SPAN).1, vec![lock()]);
        assert!(!leases.gone(&lock()));
    }

    #[test]
    fn nothing_is_renewed_for_a_loop_that_stands_still() {
        let now = Instant::now();
        let mut leases = Leases::default();
        leases.held(lock(), SPAN, None, now);
        assert_eq!(leases.due(false, now + SPAN / 2), (vec![], vec![]));
        assert_eq!(leases.due(false, now + SPAN).1, vec![lock()]);
    }

    #[test]
    fn a_lock_with_an_end_is_not_renewed_beyond_it() {
        let now = Instant::now();
        let mut leases = Leases::default();
        leases.held(lock(), SPAN, Some(SPAN * 2), now);
        assert_eq!(leases.due(true, now + SPAN / 2), (vec![(lock(), SPAN)], vec![]));
        leases.renewed(&lock(), now + SPAN / 2);
        assert_eq!(leases.due(true, now + SPAN), (vec![(lock(), SPAN)], vec![]));
        leases.renewed(&lock(), now + SPAN);
        let late = now + SPAN + SPAN / 2;
        assert_eq!(leases.due(true, late), (vec![(lock(), SPAN / 2)], vec![]));
        leases.renewed(&lock(), late);
        assert_eq!(leases.next().map(|at| at.min(now + SPAN * 2)), Some(late + SPAN / 3));
        assert_eq!(leases.due(true, now + SPAN * 2).1, vec![lock()]);
    }

    #[test]
    fn an_end_before_the_first_renewal_counts() {
        let now = Instant::now();
        let mut leases = Leases::default();
        leases.held(lock(), SPAN, Some(SPAN / 6), now);
        assert_eq!(leases.next(), Some(now + SPAN / 6));
        assert_eq!(leases.due(true, now + SPAN / 6).1, vec![lock()]);
    }

    #[test]
    fn a_late_renewal_does_not_bring_back_what_was_given_back() {
        let now = Instant::now();
        let mut leases = Leases::default();
        leases.held(lock(), SPAN, None, now);
        assert!(leases.gone(&lock()));
        leases.renewed(&lock(), now);
        assert_eq!(leases.next(), None);
    }
}
