//! What the standard library does not offer of system calls and mappings.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_long};
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

pub fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// What a system call that makes a descriptor returned.
///
/// # Safety
/// `result` is a new descriptor that nobody else owns, or negative.
pub unsafe fn opened(result: c_long) -> io::Result<OwnedFd> {
    let fd = checked(result as c_int)?;
    // SAFETY: the caller's promise.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub fn socket(family: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; a socket is a new descriptor.
    unsafe { opened(c_long::from(libc::socket(family, kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, protocol))) }
}

pub fn bind<T>(fd: BorrowedFd<'_>, address: &T) -> io::Result<()> {
    // SAFETY: `address` is valid for its size, and the kernel checks what it says.
    let result = unsafe { libc::bind(fd.as_raw_fd(), (&raw const *address).cast(), size_of::<T>() as libc::socklen_t) };
    checked(result).map(drop)
}

pub fn set_option<T>(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let size = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is valid for its size. What a memory region given in it needs is argued where that is done.
    checked(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const *value).cast(), size) }).map(drop)
}

/// # Safety
/// `T` is plain numbers: any bytes are a value of it.
pub unsafe fn option<T>(fd: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<T> {
    // SAFETY: the caller's promise.
    let mut value: T = unsafe { zeroed() };
    let mut size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes into `value`.
    checked(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut size) })?;
    Ok(value)
}

/// Memory of our own, or shared with the kernel. A child made by `fork` does not have it.
pub struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: plain memory, which this value alone owns.
unsafe impl Send for Mapping {}

/// What the processor can map at once.
const HUGE: usize = 2 << 20;

impl Mapping {
    /// In huge pages where that is possible: frames lie far apart, and with small ones each costs a walk of the tables.
    pub fn anonymous(bytes: usize) -> io::Result<Self> {
        let bytes = bytes.next_multiple_of(HUGE);
        let whole = Self::map(-1, 0, bytes + HUGE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)?;
        let skipped = whole.base.as_ptr().align_offset(HUGE);
        let Self { base, bytes: mapped } = *std::mem::ManuallyDrop::new(whole);
        // SAFETY: both ends are parts of the new mapping that no value has: the mapping from `skipped` on, `bytes` long, is
        // kept. Less than HUGE is skipped.
        unsafe {
            let kept = base.add(skipped);
            if skipped > 0 {
                libc::munmap(base.as_ptr().cast(), skipped);
            }
            libc::munmap(kept.as_ptr().add(bytes).cast(), mapped - skipped - bytes);
            libc::madvise(kept.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
            Ok(Self { base: kept, bytes })
        }
    }

    pub fn of(fd: BorrowedFd<'_>, offset: libc::off_t, bytes: usize) -> io::Result<Self> {
        Self::map(fd.as_raw_fd(), offset, bytes, libc::MAP_SHARED | libc::MAP_POPULATE)
    }

    fn map(fd: c_int, offset: libc::off_t, bytes: usize, flags: c_int) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; the result is checked.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, fd, offset) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        let mapping = Self { base, bytes };
        // SAFETY: the range is the mapping just made.
        checked(unsafe { libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_DONTFORK) })?;
        Ok(mapping)
    }

    /// Where `length` bytes at `offset` begin, if they lie within.
    #[inline]
    pub fn at(&self, offset: u64, length: usize) -> Option<NonNull<u8>> {
        let offset = usize::try_from(offset).ok()?;
        if offset.checked_add(length)? > self.bytes {
            return None;
        }
        // SAFETY: offset ≤ bytes, so the address is within the mapping or just behind it.
        Some(unsafe { self.base.add(offset) })
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever holds an address in it also holds this value.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
