//! The four rings that a socket shares with the kernel: places are written by one side and read by the other, each side
//! publishes how far it is by an index that runs freely.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::sys::Mapping;

/// Asks the kernel to be called for this ring (`XDP_RING_NEED_WAKEUP` of linux/if_xdp.h).
const NEED_WAKEUP: u32 = libc::XDP_RING_NEED_WAKEUP;

/// `T` is the place of a frame in memory, or that with its length (`xdp_desc`).
struct Ring<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    mask: u32,
    _mapping: Mapping,
    _entries: PhantomData<T>,
}

// SAFETY: the addresses lie in the mapping that the ring owns; indices are atomic, entries belong to one side at a time.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T: Copy> Ring<T> {
    fn map(fd: BorrowedFd<'_>, page: u64, at: &libc::xdp_ring_offset, slots: u32) -> io::Result<Self> {
        let bytes = at.desc as usize + slots as usize * size_of::<T>();
        let mapping = Mapping::of(fd, page as libc::off_t, bytes)?;
        let outside = || io::Error::other("the kernel's ring has places outside itself");
        let index = |offset: u64| Some(mapping.at(offset, 4)?.cast::<AtomicU32>()).filter(|at| at.is_aligned());
        let (Some(producer), Some(consumer), Some(flags)) = (index(at.producer), index(at.consumer), index(at.flags))
        else {
            return Err(outside());
        };
        let entries = mapping.at(at.desc, slots as usize * size_of::<T>()).ok_or_else(outside)?.cast::<T>();
        if !slots.is_power_of_two() || !entries.is_aligned() {
            return Err(outside());
        }
        Ok(Self { producer, consumer, flags, entries, mask: slots - 1, _mapping: mapping, _entries: PhantomData })
    }

    fn slots(&self) -> u32 {
        self.mask + 1
    }

    #[inline]
    fn entry(&self, index: u32) -> NonNull<T> {
        // SAFETY: the masked index is below the number of entries, all of which `map` proved to be inside.
        unsafe { self.entries.add((index & self.mask) as usize) }
    }

    #[inline]
    fn index(at: &NonNull<AtomicU32>) -> &AtomicU32 {
        // SAFETY: `map` proved the place to be aligned and inside the mapping, which lives as long as the ring.
        unsafe { at.as_ref() }
    }
}

/// A ring we write: frames to fill (`fill`), frames to send (`tx`).
pub struct Producer<T> {
    ring: Ring<T>,
    next: u32,
    /// Where the consumer was when last looked.
    seen: u32,
}

impl<T: Copy> Producer<T> {
    pub fn map(fd: BorrowedFd<'_>, page: u64, at: &libc::xdp_ring_offset, slots: u32) -> io::Result<Self> {
        Ok(Self { ring: Ring::map(fd, page, at, slots)?, next: 0, seen: 0 })
    }

    /// Puts `value` into the next place; `publish` shows it. `false`: the ring is full.
    #[inline]
    pub fn put(&mut self, value: T) -> bool {
        if self.next.wrapping_sub(self.seen) == self.ring.slots() && self.waiting() == self.ring.slots() {
            return false;
        }
        // SAFETY: the place is inside the ring, and ours until the producer index passes it.
        unsafe { self.ring.entry(self.next).write(value) };
        self.next = self.next.wrapping_add(1);
        true
    }

    #[inline]
    pub fn publish(&self) {
        Ring::<T>::index(&self.ring.producer).store(self.next, Ordering::Release);
    }

    /// How many the kernel has not taken yet.
    #[inline]
    pub fn waiting(&mut self) -> u32 {
        self.seen = Ring::<T>::index(&self.ring.consumer).load(Ordering::Acquire);
        self.next.wrapping_sub(self.seen)
    }

    /// The kernel wants a system call before it goes on with this ring.
    #[inline]
    pub fn wants_call(&self) -> bool {
        Ring::<T>::index(&self.ring.flags).load(Ordering::Relaxed) & NEED_WAKEUP != 0
    }
}

/// A ring we read: frames received (`rx`), frames that have been sent (`completion`).
pub struct Consumer<T> {
    ring: Ring<T>,
    next: u32,
}

impl<T: Copy> Consumer<T> {
    pub fn map(fd: BorrowedFd<'_>, page: u64, at: &libc::xdp_ring_offset, slots: u32) -> io::Result<Self> {
        Ok(Self { ring: Ring::map(fd, page, at, slots)?, next: 0 })
    }

    #[inline]
    pub fn available(&self) -> u32 {
        Ring::<T>::index(&self.ring.producer).load(Ordering::Acquire).wrapping_sub(self.next)
    }

    /// The entry `ahead` places on, which must be available.
    #[inline]
    pub fn peek(&self, ahead: u32) -> T {
        // SAFETY: the place is inside the ring; the kernel wrote it before the index that made it available, and leaves
        // it alone until `release`.
        unsafe { self.ring.entry(self.next.wrapping_add(ahead)).read() }
    }

    #[inline]
    pub fn release(&mut self, count: u32) {
        self.next = self.next.wrapping_add(count);
        Ring::<T>::index(&self.ring.consumer).store(self.next, Ordering::Release);
    }
}
