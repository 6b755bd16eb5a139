//! Numbers a stranger cannot foresee: hash seeds, ephemeral ports (RFC 6056), identifications (RFC 7739).
//!
//! The standard library keys its SipHash from the operating system; run over a counter it is a keyed pseudo-random
//! function, which needs neither a dependency nor `unsafe`. A host made with a seed foresees everything, and does the
//! same in every run: that is for tests.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::OnceLock;

use foldhash::SharedSeed;
use foldhash::fast::{FixedState, SeedableRandomState};

#[derive(Debug)]
enum Key {
    System(RandomState),
    Seed(u64),
    /// Every keyed hash is this.
    Fixed(u64),
}

#[derive(Debug)]
pub(crate) struct Random {
    key: Key,
    count: u64,
}

impl Random {
    pub fn new() -> Self {
        Self { key: Key::System(RandomState::new()), count: 0 }
    }

    pub fn seeded(seed: u64) -> Self {
        Self { key: Key::Seed(seed), count: 0 }
    }

    /// Whose every keyed hash is `value`: for tests that want a certain initial sequence number.
    pub const fn fixed(value: u64) -> Self {
        Self { key: Key::Fixed(value), count: 0 }
    }

    pub fn next(&mut self) -> u64 {
        self.count += 1;
        match &self.key {
            Key::System(key) => key.hash_one(self.count),
            Key::Seed(seed) => split_mix(*seed, self.count),
            Key::Fixed(seed) => split_mix(*seed, self.count),
        }
    }

    /// A fast hasher for keys that peers choose: both its seeds are random.
    pub fn hasher(&mut self) -> SeedableRandomState {
        static SHARED: OnceLock<SharedSeed> = OnceLock::new();
        static FORESEEN: SharedSeed = SharedSeed::from_u64(0);
        let shared = match self.key {
            Key::System(_) => SHARED.get_or_init(|| SharedSeed::from_u64(Self::new().next())),
            Key::Seed(_) => &FORESEEN,
            Key::Fixed(_) => &FORESEEN,
        };
        SeedableRandomState::with_seed(self.next(), shared)
    }

    /// Another one, of which this one tells nothing, unless it was given a seed.
    pub fn split(&mut self) -> Self {
        match &self.key {
            Key::System(_) => Self::new(),
            Key::Seed(_) => Self::seeded(self.next()),
            Key::Fixed(_) => Self::seeded(self.next()),
        }
    }

    /// A keyed hash: for those who know the key the same each time.
    pub fn keyed(&self, value: impl Hash) -> u64 {
        match &self.key {
            Key::System(key) => key.hash_one(value),
            Key::Seed(seed) => split_mix(*seed, FixedState::default().hash_one(value)),
            Key::Fixed(seed) => *seed,
        }
    }
}

/// The `count`th number of SplitMix64 (Steele, Lea, Flood 2014): the same on every machine.
fn split_mix(seed: u64, count: u64) -> u64 {
    let mut z = seed.wrapping_add(count.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_foresees_every_number_and_every_hash() {
        let run = |seed| {
            let mut random = Random::seeded(seed);
            (random.next(), random.hasher().hash_one("key"), random.next())
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        // From the reference implementation, begun with 1234567.
        assert_eq!(Random::seeded(1_234_567).next(), 6_457_827_717_110_365_317);
    }

    #[test]
    fn without_a_seed_no_two_runs_are_alike() {
        assert_ne!(Random::new().next(), Random::new().next());
        assert_ne!(Random::new().hasher().hash_one("key"), Random::new().hasher().hash_one("key"));
    }
}
