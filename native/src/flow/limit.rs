//! The token bucket of a rule: a byte that passes takes one token; the rate brings new ones, up to the burst.

use super::Limit;

impl Limit {
    /// A bucket to begin with: full.
    pub(super) fn tokens(&self) -> f64 {
        self.burst_bytes
    }

    /// What is in the bucket `nanos` after `tokens` were.
    #[inline]
    pub(super) fn refill(&self, tokens: f64, nanos: u64) -> f64 {
        (tokens + self.gained(nanos)).min(self.burst_bytes)
    }

    /// What comes into a bucket that is never full.
    #[inline]
    pub(super) fn gained(&self, nanos: u64) -> f64 {
        nanos as f64 * self.bits_per_s / 8e9
    }
}

/// Takes `bytes` out, if so many are there.
#[inline]
pub(super) fn take(tokens: &mut f64, bytes: usize) -> bool {
    let left = *tokens - bytes as f64;
    if left >= 0.0 {
        *tokens = left;
    }
    left >= 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_is_the_rate_and_a_burst_is_passed_at_once() {
        let limit = Limit { bits_per_s: 8e6, burst_bytes: 10_000.0 };
        let mut tokens = limit.tokens();
        let burst = (0..100).filter(|_| take(&mut tokens, 1_000)).count();
        assert_eq!(burst, 10);
        // 1,000 bytes take a millisecond; asked for every 100 µs, through a second.
        let passed = (0..10_000).filter(|_| {
            tokens = limit.refill(tokens, 100_000);
            take(&mut tokens, 1_000)
        });
        assert!((998..=1_000).contains(&passed.count()));
        assert_eq!(limit.refill(tokens, u64::MAX), 10_000.0);
    }

    #[test]
    fn the_least_rate_and_the_shortest_pauses_are_not_lost() {
        let limit = Limit { bits_per_s: 8.0, burst_bytes: 100.0 };
        let mut tokens = 0.0;
        for _ in 0..1_000_000 {
            tokens = limit.refill(tokens, 10);
        }
        assert!((tokens - 0.01_f64).abs() < 1e-9, "{tokens}");
    }
}
