//! Latencies in fixed memory: log-linear buckets, 128 to every power of two, so that a bucket's middle is less than
//! 0.4 % off any value in it, whatever the magnitude. Values below 256 are exact. Units are the caller's; `load` counts
//! nanoseconds.

/// Linear buckets per power of two, as a power of two.
const BITS: u32 = 7;
const LINEAR: usize = 1 << BITS;
/// One group for every leading-bit position from `BITS` to 63, and the exact values below.
const BUCKETS: usize = (64 - BITS as usize + 1) * LINEAR;

/// Counts of values by size. 58 kB, of which a run touches a few lines.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: Box<[u64]>,
    count: u64,
    sum: u128,
    min: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into_boxed_slice(), count: 0, sum: 0, min: u64::MAX, max: 0 }
    }
}

fn bucket(value: u64) -> usize {
    let shift = (63 - (value | 1).leading_zeros()).saturating_sub(BITS);
    shift as usize * LINEAR + (value >> shift) as usize
}

/// The middle of a bucket's values.
fn middle(bucket: usize) -> u64 {
    if bucket < 2 * LINEAR {
        return bucket as u64;
    }
    let shift = bucket / LINEAR - 1;
    (((bucket % LINEAR + LINEAR) as u64) << shift) + (1 << shift >> 1)
}

impl Histogram {
    pub fn record(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.count += 1;
        self.sum += u128::from(value);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// Exact; 0 when empty.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Exact; 0 when empty.
    pub fn min(&self) -> u64 {
        if self.count == 0 { 0 } else { self.min }
    }

    /// Exact; 0 when empty.
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 }
    }

    /// The value that `quantile` (0 to 1) of all values do not exceed (nearest rank); 0 when empty.
    pub fn quantile(&self, quantile: f64) -> u64 {
        let rank = ((quantile * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        if rank == self.count {
            return self.max;
        }
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return middle(index).clamp(self.min, self.max);
            }
        }
        0
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Histogram({} values, {}..{})", self.count, self.min(), self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift64*: values of every magnitude, the same in every run.
    fn values(count: usize) -> Vec<u64> {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        (0..count)
            .map(|_| {
                state ^= state >> 12;
                state ^= state << 25;
                state ^= state >> 27;
                let random = state.wrapping_mul(0x2545_F491_4F6C_DD1D);
                random >> (random & 63)
            })
            .collect()
    }

    #[test]
    fn quantiles_agree_with_sorting_within_one_percent() {
        for count in [1, 2, 3, 100, 50_000] {
            let mut sorted = values(count);
            let mut histogram = Histogram::default();
            sorted.iter().for_each(|&value| histogram.record(value));
            sorted.sort_unstable();
            for quantile in [0.0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0] {
                let rank = ((quantile * count as f64).ceil() as usize).clamp(1, count);
                let (exact, measured) = (sorted[rank - 1] as f64, histogram.quantile(quantile) as f64);
                assert!((measured - exact).abs() <= exact * 0.01, "{count} values, {quantile}: {measured} for {exact}");
            }
            assert_eq!((histogram.min(), histogram.max()), (sorted[0], sorted[count - 1]));
        }
    }

    #[test]
    fn buckets_ascend_without_a_gap_and_the_largest_value_has_one() {
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        for exponent in 0..64 {
            let power = 1_u64 << exponent;
            assert!(bucket(power) - bucket(power - 1) <= 1, "at {power}");
        }
        for value in values(10_000) {
            let error = middle(bucket(value)).abs_diff(value) as f64;
            assert!(error <= value as f64 * 0.004, "{value} is {error} off");
        }
    }

    #[test]
    fn an_empty_histogram_is_all_zeros() {
        let empty = Histogram::default();
        assert_eq!((empty.count(), empty.min(), empty.max(), empty.quantile(0.99), empty.mean()), (0, 0, 0, 0, 0.0));
    }
}
