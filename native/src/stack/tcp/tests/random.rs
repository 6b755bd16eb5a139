//! A stream of numbers that a seed decides (SplitMix64).

pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Of `low..=high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    /// As often small as large: first how many bits, then which.
    pub fn up_to(&mut self, high: usize) -> usize {
        let bits = self.between(0, high.ilog2() as usize + 1);
        (self.next() as usize & ((1 << bits) - 1)).min(high)
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.next() as usize % choices.len()]
    }

    pub fn in_ten_thousand(&mut self, chance: u32) -> bool {
        self.next() % 10_000 < u64::from(chance)
    }
}
