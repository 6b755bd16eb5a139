//! The packet pool: buffers in fixed size classes, carved once from one mapping.
//!
//! A [`Slot`] owns its buffer and gives it back when dropped, on whatever thread that happens. A pool that runs dry
//! answers `None` and counts; it never blocks and never grows. Memory is reserved at once but touched only when used.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// How many slots of which size. Sizes ascend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// (bytes per slot, number of slots)
    pub classes: Vec<(usize, usize)>,
}

impl Default for PoolConfig {
    /// Small messages, whole frames, reassembled datagrams: 60 MB reserved.
    fn default() -> Self {
        Self { classes: vec![(256, 32_768), (2_048, 16_384), (65_536, 256)] }
    }
}

/// One size class as [`Pool::statistics`] reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassStatistics {
    pub slot_bytes: usize,
    pub slots: usize,
    pub free: usize,
    /// How often a slot of this class was wanted while none was free (and no larger one either).
    pub exhausted: u64,
}

struct Class {
    slot_bytes: usize,
    slots: usize,
    /// Addresses of free slots; last in, first out, so that a hot buffer is used again.
    free: Mutex<Vec<NonNull<u8>>>,
    exhausted: AtomicU64,
}

struct Inner {
    classes: Vec<Class>,
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the addresses in the free lists are plain numbers guarded by their mutexes; the mapping outlives every slot
// because each slot holds an `Arc` of `Inner`.
unsafe impl Send for Inner {}
// SAFETY: as above; all shared mutation goes through the mutexes and atomics.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: `base` and `bytes` are what mmap returned, and no slot is left (each holds an `Arc` of this).
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// A handle to one pool; clones share it.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

impl Pool {
    /// Reserves the memory of all classes. Fails with the system's error when the mapping is refused.
    pub fn new(config: &PoolConfig) -> std::io::Result<Self> {
        let bytes = config.classes.iter().map(|(size, count)| size * count).sum::<usize>().max(1);
        // SAFETY: an anonymous private mapping of a positive length; the result is checked below.
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
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| std::io::Error::other("mmap returned null"))?;
        let mut offset = 0;
        let classes = config
            .classes
            .iter()
            .map(|&(slot_bytes, slots)| {
                let free = (0..slots)
                    .rev()
                    // SAFETY: offset + (slots * slot_bytes) stays within the mapping, by the sum above.
                    .map(|index| unsafe { base.add(offset + index * slot_bytes) })
                    .collect();
                offset += slots * slot_bytes;
                Class { slot_bytes, slots, free: Mutex::new(free), exhausted: AtomicU64::new(0) }
            })
            .collect();
        Ok(Self(Arc::new(Inner { classes, base, bytes })))
    }

    /// A slot of exactly `len` visible bytes, from the smallest class that holds them (or the next larger one when that
    /// is empty). `None`: nothing fits or nothing is free; counted. The bytes are whatever the last owner left.
    pub fn take(&self, len: usize) -> Option<Slot> {
        let mut wanted = None;
        for (index, class) in self.0.classes.iter().enumerate() {
            if class.slot_bytes < len {
                continue;
            }
            wanted.get_or_insert(index);
            let taken = class.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
            if let Some(data) = taken {
                return Some(Slot { pool: self.0.clone(), data, class: index as u8, start: 0, len: len as u32 });
            }
        }
        if let Some(class) = wanted.or(self.0.classes.len().checked_sub(1)) {
            self.0.classes[class].exhausted.fetch_add(1, Ordering::Relaxed);
        }
        None
    }

    /// The largest message a slot can hold.
    pub fn largest(&self) -> usize {
        self.0.classes.last().map_or(0, |class| class.slot_bytes)
    }

    /// One row per size class, in ascending size.
    pub fn statistics(&self) -> Vec<ClassStatistics> {
        self.0
            .classes
            .iter()
            .map(|class| ClassStatistics {
                slot_bytes: class.slot_bytes,
                slots: class.slots,
                free: class.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner).len(),
                exhausted: class.exhausted.load(Ordering::Relaxed),
            })
            .collect()
    }
}

/// One buffer of the pool, with a window of visible bytes. Dereferences to that window.
pub struct Slot {
    pool: Arc<Inner>,
    data: NonNull<u8>,
    class: u8,
    start: u32,
    len: u32,
}

// SAFETY: a slot is the only owner of its buffer.
unsafe impl Send for Slot {}
// SAFETY: shared access is read-only.
unsafe impl Sync for Slot {}

impl Slot {
    /// Bytes the buffer occupies in the pool, whatever its window: what a quota counts.
    pub fn footprint(&self) -> usize {
        self.pool.classes[self.class as usize].slot_bytes
    }

    /// The buffer for another message, of exactly `len` bytes; `None`, and it goes back, when it is not of the class that
    /// is meant for those.
    pub fn renew(mut self, len: usize) -> Option<Self> {
        let class = usize::from(self.class);
        let fits = |class: usize| self.pool.classes[class].slot_bytes >= len;
        if !fits(class) || class > 0 && fits(class - 1) {
            return None;
        }
        (self.start, self.len) = (0, len as u32);
        Some(self)
    }

    /// Narrows the window to `start..start + len` of the present one. Panics when that lies outside it.
    pub fn narrow(&mut self, start: usize, len: usize) {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len as usize), "window outside the slot");
        self.start += start as u32;
        self.len = len as u32;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let class = &self.pool.classes[self.class as usize];
        class.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(self.data);
    }
}

impl Deref for Slot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the window lies within the slot's buffer (checked by `take` and `narrow`), which this slot owns; the
        // mapping is zero-filled by the kernel, so every byte is initialised.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().add(self.start as usize), self.len as usize) }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr().add(self.start as usize), self.len as usize) }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Slot({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Pool {
        Pool::new(&PoolConfig { classes: vec![(64, 2), (256, 1)] }).unwrap()
    }

    #[test]
    fn a_dropped_slot_returns_to_its_class() {
        let pool = small();
        let slot = pool.take(10).unwrap();
        assert_eq!((slot.len(), slot.footprint()), (10, 64));
        assert_eq!(pool.statistics()[0].free, 1);
        drop(slot);
        assert_eq!(pool.statistics()[0].free, 2);
    }

    #[test]
    fn an_empty_class_borrows_from_the_next_and_a_dry_pool_counts() {
        let pool = small();
        let kept: Vec<_> = (0..3).map(|_| pool.take(64).unwrap()).collect();
        assert_eq!(kept[2].footprint(), 256);
        assert!(pool.take(64).is_none());
        assert_eq!(pool.statistics()[0].exhausted, 1);
        assert!(pool.take(257).is_none());
    }

    #[test]
    fn narrowing_moves_the_window() {
        let pool = small();
        let mut slot = pool.take(8).unwrap();
        slot.copy_from_slice(b"abcdefgh");
        slot.narrow(2, 4);
        slot.narrow(1, 2);
        assert_eq!(&*slot, b"de");
    }

    #[test]
    fn a_slot_is_used_again_for_what_its_class_is_meant_for() {
        let pool = small();
        let mut slot = pool.take(8).unwrap();
        slot.narrow(2, 4);
        assert_eq!(slot.renew(64).unwrap().len(), 64);
        assert_eq!(pool.statistics()[0].free, 2);
        assert!(pool.take(64).unwrap().renew(65).is_none());
        assert!(pool.take(65).unwrap().renew(64).is_none());
        assert_eq!((pool.statistics()[0].free, pool.statistics()[1].free), (2, 1));
    }

    #[test]
    fn a_slot_keeps_its_pool_alive() {
        let slot = {
            let pool = small();
            pool.take(64).unwrap()
        };
        assert_eq!(slot.len(), 64);
    }
}
