//! Asking for memory before it is needed, so that many waits become one.
#![allow(unsafe_code)]

use std::ptr::NonNull;

const LINE: usize = 64;

/// Asks for the cache lines of `length` bytes at `address`, to be written or only read.
#[inline]
pub fn prefetch(address: NonNull<u8>, length: usize, to_write: bool) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..length).step_by(LINE) {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
        let address = address.as_ptr().wrapping_add(line).cast();
        // SAFETY: a hint; it cannot fault.
        unsafe {
            if to_write {
                _mm_prefetch::<_MM_HINT_ET0>(address);
            } else {
                _mm_prefetch::<_MM_HINT_T0>(address);
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (address, length, to_write, LINE);
}
