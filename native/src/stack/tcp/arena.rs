//! Ring buffers for connections: pairs of slices in a few size classes.
//!
//! Each class reserves address space in chunks and touches nothing: a page costs memory once bytes come to it. A pair
//! that is given back is the next one handed out.
#![allow(unsafe_code)]

use std::ptr::NonNull;

/// Address space reserved at once.
const CHUNK: usize = 16 << 20;
/// The longest ring: a pair of them fits into a chunk.
const LONGEST: usize = 4 << 20;
/// After each ring, so that the beginnings of rings, which are powers of two long, do not all fall into one set of the
/// caches: that would leave room there for those of a dozen connections.
const GAP: usize = 64;

struct Class {
    /// Bytes of one ring; a pair is two of them.
    bytes: usize,
    /// Pairs that may exist, and those that do.
    limit: usize,
    made: usize,
    free: Vec<NonNull<u8>>,
    chunk: Option<NonNull<u8>>,
    used: usize,
}

pub(super) struct Arena {
    classes: Vec<Class>,
    chunks: Vec<(NonNull<u8>, usize)>,
}

// SAFETY: the addresses are owned by this arena and by the pairs it handed out, each by one only.
unsafe impl Send for Arena {}

/// Two rings of equal size, to be given back to the arena they came from.
#[derive(Debug)]
pub(super) struct Pair {
    class: usize,
    base: NonNull<u8>,
}

// SAFETY: a pair is the only owner of its memory.
unsafe impl Send for Pair {}

impl Arena {
    /// `classes`: (bytes of a ring, pairs), in the order they are tried. A ring has at least one byte, at most 4 MiB.
    pub fn new(classes: &[(usize, usize)]) -> Self {
        let class = |&(bytes, limit): &(usize, usize)| Class {
            bytes: bytes.clamp(1, LONGEST),
            limit,
            made: 0,
            free: Vec::new(),
            chunk: None,
            used: CHUNK,
        };
        Self { classes: classes.iter().map(class).collect(), chunks: Vec::new() }
    }

    /// The largest pair that is to be had.
    pub fn take(&mut self) -> Option<Pair> {
        for (index, class) in self.classes.iter_mut().enumerate() {
            if let Some(base) = class.free.pop() {
                return Some(Pair { class: index, base });
            }
            if class.made == class.limit {
                continue;
            }
            const { assert!(2 * (LONGEST + GAP) <= CHUNK) };
            let size = 2 * (class.bytes + GAP);
            if class.chunk.is_none() || class.used + size > CHUNK {
                class.chunk = reserve(CHUNK);
                self.chunks.extend(class.chunk.map(|chunk| (chunk, CHUNK)));
                class.used = 0;
            }
            // SAFETY: `used + size` is within the chunk: by the check above, and a new one is longer than any `size`.
            let base = class.chunk.map(|chunk| unsafe { chunk.add(class.used) })?;
            class.used += size;
            class.made += 1;
            return Some(Pair { class: index, base });
        }
        None
    }

    pub fn give_back(&mut self, pair: Pair) {
        self.classes[pair.class].free.push(pair.base);
    }

    /// The two rings of a pair.
    ///
    /// # Safety
    /// While either slice is used the pair is neither given back nor asked for its rings again, and the arena lives.
    pub unsafe fn rings(&self, pair: &Pair) -> [&'static mut [u8]; 2] {
        let bytes = self.classes[pair.class].bytes;
        // SAFETY: the pair owns `2 * (bytes + GAP)` bytes from `base`, zeroed by the kernel; that they are used by one at
        // a time and not beyond the arena is the caller's promise.
        unsafe {
            [
                std::slice::from_raw_parts_mut(pair.base.as_ptr(), bytes),
                std::slice::from_raw_parts_mut(pair.base.as_ptr().add(bytes + GAP), bytes),
            ]
        }
    }

    /// Pairs that are handed out.
    pub fn in_use(&self) -> usize {
        self.classes.iter().map(|class| class.made - class.free.len()).sum()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for (base, bytes) in self.chunks.drain(..) {
            // SAFETY: what mmap returned; the rings' users have ended before the arena (see `rings`).
            unsafe { libc::munmap(base.as_ptr().cast(), bytes) };
        }
    }
}

fn reserve(bytes: usize) -> Option<NonNull<u8>> {
    // SAFETY: an anonymous private mapping of a positive length; the result is checked.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED { None } else { NonNull::new(base.cast()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_free_pair_comes_first_and_a_returned_one_again() {
        let mut arena = Arena::new(&[(4096, 1), (1024, 2)]);
        let pairs: Vec<_> = (0..3).map(|_| arena.take().unwrap()).collect();
        assert_eq!(pairs.iter().map(|pair| pair.class).collect::<Vec<_>>(), [0, 1, 1]);
        assert!(arena.take().is_none());
        let mut pairs = pairs.into_iter();
        arena.give_back(pairs.next().unwrap());
        assert_eq!((arena.in_use(), arena.take().unwrap().class), (2, 0));
    }

    #[test]
    fn whatever_the_classes_a_ring_lies_within_its_chunk() {
        let mut classes = vec![(usize::MAX, 5), (0, 1)];
        classes.resize(300, (1024, 1));
        let mut arena = Arena::new(&classes);
        let pairs: Vec<_> = std::iter::from_fn(|| arena.take()).collect();
        assert_eq!((pairs.len(), pairs[303].class), (304, 299));
        for pair in &pairs {
            // SAFETY: the pairs live, and each is asked once.
            let [rx, tx] = unsafe { arena.rings(pair) };
            assert!((1..=LONGEST).contains(&rx.len()));
            (rx[rx.len() - 1], tx[tx.len() - 1]) = (1, 1);
        }
    }

    #[test]
    fn the_rings_of_pairs_do_not_overlap() {
        let mut arena = Arena::new(&[(1024, usize::MAX)]);
        let pairs: Vec<_> = (0..20_000).map(|_| arena.take().unwrap()).collect();
        for (number, pair) in pairs.iter().enumerate() {
            // SAFETY: the pairs live, and each is asked once.
            let [rx, tx] = unsafe { arena.rings(pair) };
            rx.fill(number as u8);
            tx.fill(!(number as u8));
        }
        for (number, pair) in pairs.iter().enumerate() {
            // SAFETY: the slices of the first round are gone.
            let [rx, tx] = unsafe { arena.rings(pair) };
            assert!(rx.iter().all(|&byte| byte == number as u8) && tx.iter().all(|&byte| byte == !(number as u8)));
        }
    }
}
