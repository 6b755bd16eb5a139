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
    key: RandomState,
    count: u64,
}

impl Random {
    pub fn new() -> Self {
        Self { key: RandomState::new(), count: 0 }
    }

    pub fn next(&mut self) -> u64 {
        self.count += 1;
        self.key.hash_one(self.count)
    }

    /// A keyed hash: for those who know the key the same each time.
    pub fn keyed(&self, value: impl Hash) -> u64 {
        self.key.hash_one(value)
    }
}

/// A fast hasher for keys that peers choose: both its seeds are random.
pub(super) fn hasher() -> SeedableRandomState {
    static SHARED: OnceLock<SharedSeed> = OnceLock::new();
    let shared = SHARED.get_or_init(|| SharedSeed::from_u64(Random::new().next()));
    SeedableRandomState::with_seed(Random::new().next(), shared)
}
