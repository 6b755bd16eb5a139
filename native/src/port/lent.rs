//! Frames where a port received them: in memory that its peer may still change, so never as a slice. Whoever decides
//! by their bytes copies those first, and sends on what it has decided by.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::{NonNull, copy_nonoverlapping};

use crate::packet::prefetch::prefetch_frame;

/// The most frames that are lent at once.
pub const BURST: usize = 32;
/// How many frames ahead of its turn the memory of one is asked for. Asked for all of a burst at once, a core leaves some out.
pub const AHEAD: usize = 8;
/// The longest frame that ports carry: 9216 bytes of IP, and its headers.
pub const LONGEST: usize = 9216 + super::HEADER_BYTES;

/// One frame, or its end.
#[derive(Clone, Copy)]
pub struct Lent<'a> {
    at: NonNull<u8>,
    len: u32,
    port: PhantomData<&'a [u8]>,
}

impl<'a> Lent<'a> {
    pub const EMPTY: Self = Self { at: NonNull::dangling(), len: 0, port: PhantomData };

    /// # Safety
    /// `len` bytes at `at` stay mapped and readable for `'a`. Their content may change at any time.
    pub unsafe fn new(at: NonNull<u8>, len: u32) -> Self {
        Self { at, len, port: PhantomData }
    }

    /// Bytes that nobody else changes.
    pub fn of(bytes: &'a [u8]) -> Self {
        // SAFETY: the bytes are borrowed for `'a`. No port carries 4 GiB in a frame.
        unsafe { Self::new(NonNull::from(bytes).cast(), bytes.len() as u32) }
    }

    #[inline]
    pub fn len(self) -> usize {
        self.len as usize
    }

    #[inline]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Without its first `count` bytes, or as many as there are.
    #[inline]
    #[must_use]
    pub fn skip(self, count: usize) -> Self {
        let count = count.min(self.len());
        // SAFETY: at most `len` bytes on, within or one past the end of the same memory.
        Self { at: unsafe { self.at.add(count) }, len: self.len - count as u32, ..self }
    }

    /// Only its first `count` bytes, or as many as there are.
    #[inline]
    #[must_use]
    pub fn first(self, count: usize) -> Self {
        Self { len: count.min(self.len()) as u32, ..self }
    }

    /// Copies the beginning, as far as `to` has room; how many bytes that were.
    #[inline]
    pub fn copy_head(self, to: &mut [u8]) -> usize {
        let count = to.len().min(self.len());
        // SAFETY: `count` readable bytes at `at`, as many writable ones in `to`, which is borrowed alone. What a peer writes
        // meanwhile are bytes all the same.
        unsafe { copy(self.at.as_ptr(), to.as_mut_ptr(), count) };
        count
    }

    /// Copies all of `to` from byte `from` on. Panics when the frame ends before.
    #[inline]
    pub fn copy_to(self, from: usize, to: &mut [u8]) {
        let rest = self.skip(from);
        assert!(to.len() <= rest.len(), "{} bytes from {from} of {}", to.len(), self.len());
        rest.copy_head(to);
    }

    /// Where it is, for ports that copy it themselves.
    #[inline]
    pub fn as_ptr(self) -> *const u8 {
        self.at.as_ptr()
    }
}

/// What one call of `lend` shows.
pub struct Burst<'a> {
    frames: [Lent<'a>; BURST],
    count: usize,
}

impl<'a> Burst<'a> {
    pub const EMPTY: Self = Self { frames: [Lent::EMPTY; BURST], count: 0 };

    /// Panics when it is full.
    #[inline]
    pub fn push(&mut self, frame: Lent<'a>) {
        self.frames[self.count] = frame;
        self.count += 1;
    }

    /// The frames, for who looks into each: their memory is asked for on the way. That of the first few, `lend` asked for.
    #[inline]
    pub fn in_turn(&self) -> impl Iterator<Item = Lent<'a>> {
        self.iter().enumerate().map(|(at, frame)| {
            if let Some(next) = self.get(at + AHEAD) {
                prefetch_frame(next.at, next.len(), false);
            }
            *frame
        })
    }
}

impl<'a> Deref for Burst<'a> {
    type Target = [Lent<'a>];

    #[inline]
    fn deref(&self) -> &[Lent<'a>] {
        &self.frames[..self.count]
    }
}

/// As `copy_nonoverlapping`, without a call for what is short.
///
/// # Safety
/// As `copy_nonoverlapping`'s.
#[inline]
pub unsafe fn copy(from: *const u8, to: *mut u8, count: usize) {
    /// Both ends of `count` ≥ `N` bytes, which overlap in the middle.
    #[inline]
    unsafe fn ends<const N: usize>(from: *const u8, to: *mut u8, count: usize) {
        // SAFETY: the caller's, of N ≤ count bytes from the beginning and as many before the end.
        unsafe {
            let (first, last) =
                (from.cast::<[u8; N]>().read_unaligned(), from.add(count - N).cast::<[u8; N]>().read_unaligned());
            to.cast::<[u8; N]>().write_unaligned(first);
            to.add(count - N).cast::<[u8; N]>().write_unaligned(last);
        }
    }
    // SAFETY: the caller's.
    unsafe {
        match count {
            32..=64 => ends::<32>(from, to, count),
            16..32 => ends::<16>(from, to, count),
            0 => {}
            _ => copy_nonoverlapping(from, to, count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lent_frame_is_copied_in_parts() {
        let frame = Lent::of(b"abcdefgh");
        let mut head = [0; 3];
        assert_eq!(frame.copy_head(&mut head), 3);
        let mut rest = [0; 4];
        frame.copy_to(3, &mut rest);
        assert_eq!((&head, &rest), (b"abc", b"defg"));
        assert_eq!(frame.skip(9).len(), 0);
        assert_eq!(frame.skip(6).first(9).copy_head(&mut [0; 9]), 2);
    }

    #[test]
    #[should_panic(expected = "4 bytes from 6 of 8")]
    fn nothing_is_copied_from_beyond_the_end() {
        Lent::of(b"abcdefgh").copy_to(6, &mut [0; 4]);
    }
}
