//! Memory of commands, used again.
//!
//! A batch is some megabytes that live until it is answered. Given back to the allocator, they come from the kernel anew
//! each time, and that takes longer than all that is written into them.

use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Smaller ones are the allocator's.
const SMALLEST: usize = 4 * 1024;
/// What is kept for later, at most.
const MOST_SPARE: usize = 16 << 20;

struct Spare {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

static SPARE: Mutex<Spare> = Mutex::new(Spare { buffers: Vec::new(), bytes: 0 });

/// A vector whose memory is kept when it is dropped.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Bytes(Vec<u8>);

impl Bytes {
    /// Empty, with room for so much.
    pub fn new(room: usize) -> Self {
        if room < SMALLEST {
            return Self(Vec::with_capacity(room));
        }
        let mut bytes = {
            let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes = spare.buffers.pop().unwrap_or_default();
            spare.bytes -= bytes.capacity();
            bytes
        };
        bytes.reserve(room);
        Self(bytes)
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if self.0.capacity() < SMALLEST {
            return;
        }
        let mut bytes = mem::take(&mut self.0);
        bytes.clear();
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.bytes + bytes.capacity() <= MOST_SPARE {
            spare.bytes += bytes.capacity();
            spare.buffers.push(bytes);
        }
    }
}

impl Deref for Bytes {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_comes_back_empty() {
        for _ in 0..100 {
            let mut some: Vec<Bytes> = (0..10).map(|_| Bytes::new(SMALLEST)).collect();
            assert!(some.iter().all(|bytes| bytes.is_empty() && bytes.capacity() >= SMALLEST));
            some.iter_mut().for_each(|bytes| bytes.extend_from_slice(&[1; SMALLEST]));
        }
    }

    #[test]
    fn only_so_much_is_kept() {
        drop((0..40).map(|_| Bytes::new(1 << 20)).collect::<Vec<_>>());
        let spare = SPARE.lock().unwrap();
        assert!(spare.bytes <= MOST_SPARE);
        assert_eq!(spare.bytes, spare.buffers.iter().map(Vec::capacity).sum::<usize>());
    }
}
