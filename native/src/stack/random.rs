//! Numbers a stranger cannot foresee: hash seeds, ephemeral ports (RFC 6056), identifications (RFC 7739).
//!
//! The standard library keys its SipHash from the operating system; run over a counter it is a keyed pseudo-random
//! function, which needs neither a dependency nor `unsafe`.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::OnceLock;

use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;

#[derive(Debug)]
pub(super) struct Random {
    key: Key,
    count: u64,
}

#[derive(Debug)]
enum Key {
    Secret(RandomState),
    /// Of tests and fuzzers, which want to see the same again.
    Known(u64),
}

impl Random {
    pub fn new() -> Self {
        Self { key: Key::Secret(RandomState::new()), count: 0 }
    }

    /// Whose numbers follow from `seed`, and whose every keyed hash is `seed`.
    pub const fn known(seed: u64) -> Self {
        Self { key: Key::Known(seed), count: 0 }
    }

    pub fn next(&mut self) -> u64 {
        self.count += 1;
        match &self.key {
            Key::Secret(key) => key.hash_one(self.count),
            // Knuth's MMIX constants; the upper half is the better one.
            Key::Known(seed) => {
                let mixed = (seed ^ self.count).wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                (mixed ^ mixed >> 32).wrapping_mul(0x5851_f42d_4c95_7f2d).rotate_left(32)
            }
        }
    }

    /// A keyed hash: for those who know the key the same each time.
    pub fn keyed(&self, value: impl Hash) -> u64 {
        match &self.key {
            Key::Secret(key) => key.hash_one(value),
            Key::Known(seed) => *seed,
        }
    }
}

/// A fast hasher for keys that peers choose: both its seeds are random.
pub(super) fn hasher() -> SeedableRandomState {
    static SHARED: OnceLock<SharedSeed> = OnceLock::new();
    let shared = SHARED.get_or_init(|| SharedSeed::from_u64(Random::new().next()));
    SeedableRandomState::with_seed(Random::new().next(), shared)
}
