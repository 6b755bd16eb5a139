//! How far two cpus are from each other: what a figure of two busy threads must be read with.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::{LoadError, sys};

#[repr(align(128))]
struct Line(AtomicU32);

/// One round trip in nanoseconds of a cache line between `cpus` (0 and 1 on a machine with two): the median of 31 rounds
/// of 2,000. Virtual machines are moved, and this moves with them: measure before and after a benchmark.
pub fn core_distance(cpus: (usize, usize)) -> Result<f64, LoadError> {
    const ROUNDS: usize = 31;
    const TRIPS: u32 = 2_000;
    let (ball, pinned) = (Line(AtomicU32::new(0)), Line(AtomicU32::new(0)));
    if cpus.0 == cpus.1 {
        return Err(LoadError::Config(format!("cpus {} and {}: expected two different ones", cpus.0, cpus.1)));
    }
    let error = LoadError::system("cannot pin to that cpu");
    std::thread::scope(|scope| {
        let far = scope.spawn(|| {
            let there = sys::Pinned::to(cpus.1);
            pinned.0.store(if there.is_ok() { 1 } else { 2 }, Ordering::Release);
            if there.is_ok() {
                for turn in 0..ROUNDS as u32 * TRIPS {
                    while ball.0.load(Ordering::Acquire) != 2 * turn + 1 {
                        spin_loop();
                    }
                    ball.0.store(2 * turn + 2, Ordering::Release);
                }
            }
            there.map(drop)
        });
        while pinned.0.load(Ordering::Acquire) == 0 {
            spin_loop();
        }
        let here = sys::Pinned::to(cpus.0);
        let mut rounds = Vec::with_capacity(ROUNDS);
        if pinned.0.load(Ordering::Acquire) == 1 {
            for round in 0..ROUNDS as u32 {
                let start = Instant::now();
                for turn in round * TRIPS..(round + 1) * TRIPS {
                    ball.0.store(2 * turn + 1, Ordering::Release);
                    while ball.0.load(Ordering::Acquire) != 2 * turn + 2 {
                        spin_loop();
                    }
                }
                rounds.push(start.elapsed().as_nanos() as f64 / f64::from(TRIPS));
            }
        }
        let there = far.join().unwrap_or_else(|_| Err(std::io::Error::other("the other thread died")));
        here.and(there).map_err(error)?;
        rounds.sort_unstable_by(f64::total_cmp);
        Ok(rounds[ROUNDS / 2])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_that_does_not_exist_or_is_the_same_is_refused() {
        assert!(core_distance((0, 0)).is_err());
        assert!(core_distance((0, 100_000)).is_err());
        assert!(core_distance((100_000, 0)).is_err());
    }
}
