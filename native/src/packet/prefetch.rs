//! Asking for memory before it is needed, so that many waits become one.
#![allow(unsafe_code)]

use std::ptr::NonNull;

const LINE: usize = 64;

/// Asks for the cache lines of `length` bytes from the one of `address` on, to be written or only read.
#[inline(always)]
pub fn prefetch(address: NonNull<u8>, length: usize, to_write: bool) {
    #[cfg(target_arch = "x86_64")]
    let mut line = 0;
    // Most often there is one: an iterator would count them first.
    #[cfg(target_arch = "x86_64")]
    while line < length {
        let address = address.as_ptr().wrapping_add(line);
        line += LINE;
        // SAFETY: hints; they cannot fault. The intrinsic for writing falls back to reading without the compiler's
        // leave, and a line that was fetched to be read must be asked for again to be written. In long mode PREFETCHW
        // is always there (AMD64 manual, volume 3; Intel's before Broadwell take it for a NOP).
        unsafe {
            if to_write {
                std::arch::asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
            } else {
                std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (address, length, to_write, LINE);
}

/// Bytes of a frame that are asked for ahead: all of a usual one. Waiting for the hardware to see the pattern costs a third.
const FRAME: usize = 1536;

/// Asks for the cache lines of a frame of `length` bytes. Lines that the other core has written cost up to 300 ns each
/// when they are waited for one after the other.
#[inline]
pub fn prefetch_frame(address: NonNull<u8>, length: usize, to_write: bool) {
    prefetch(address, length.min(FRAME), to_write);
}
