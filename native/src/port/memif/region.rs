//! Shared memory: our own memfd, or a peer's, mapped only after its seals and its size proved that no access to it can
//! fault.
//!
//! A memfd that its owner can still truncate turns our next read into SIGBUS; so can one of huge pages, whose holes
//! need not be refillable. F_GET_SEALS answers for memfds alone, which proves the kind as well. A sparse memfd costs
//! its whole size once read: the caller caps the sum.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// A shared mapping of a memfd. A child made by `fork` does not have it.
pub struct Region {
    base: NonNull<u8>,
    bytes: usize,
    /// Of our own memory: a peer's is mapped, and its descriptors are not for it to fill our table with.
    memfd: Option<OwnedFd>,
}

// SAFETY: the mapping is plain memory that any thread may reach through the checked accessors below.
unsafe impl Send for Region {}
// SAFETY: as above; what is shared with a peer is accessed atomically (`ring`) or copied as untrusted bytes.
unsafe impl Sync for Region {}

impl Region {
    /// Memory of our own to share: zeros, of a size that no one can change any more.
    pub fn create(name: &std::ffi::CStr, bytes: usize) -> io::Result<Self> {
        // SAFETY: `name` is a C string; the result is checked.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and ours.
        let memfd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: plain system calls on our descriptor; results are checked.
        let sealed = unsafe {
            libc::ftruncate(fd, bytes as libc::off_t) == 0
                && libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW) == 0
        };
        if !sealed {
            return Err(io::Error::last_os_error());
        }
        let mut region = Self::map(fd, bytes)?;
        region.memfd = Some(memfd);
        Ok(region)
    }

    /// Maps the first `claim` bytes of what a peer sent; the text of a refusal is fit for its eyes.
    pub fn from_peer(memfd: OwnedFd, claim: u64) -> Result<Self, String> {
        let bytes = usize::try_from(claim).ok().filter(|bytes| *bytes > 0);
        let bytes = bytes.ok_or_else(|| format!("a region of {claim} bytes"))?;
        let fd = memfd.as_raw_fd();
        // SAFETY: F_GET_SEALS takes no argument.
        let seals = unsafe { libc::fcntl(fd, libc::F_GET_SEALS) };
        if seals < 0 {
            return Err("region is not a memfd".into());
        }
        if seals & libc::F_SEAL_SHRINK == 0 {
            return Err("region is not sealed: F_SEAL_SHRINK wanted".into());
        }
        // SAFETY: an all-zero statfs is a valid value to be overwritten; the result is checked.
        let (kind, status) = unsafe {
            let mut filesystem: libc::statfs = std::mem::zeroed();
            (libc::fstatfs(fd, &mut filesystem), filesystem)
        };
        if kind != 0 || status.f_type == libc::HUGETLBFS_MAGIC {
            return Err("region is of huge pages: pages that can run out are refused".into());
        }
        // SAFETY: an all-zero stat is a valid value to be overwritten; the result is checked.
        let (found, status) = unsafe {
            let mut status: libc::stat = std::mem::zeroed();
            (libc::fstat(fd, &mut status), status)
        };
        if found != 0 || u64::try_from(status.st_size).unwrap_or(0) < claim {
            return Err(format!("region holds {} bytes, {claim} claimed", status.st_size));
        }
        Self::map(fd, bytes).map_err(|error| format!("region cannot be mapped: {error}"))
    }

    fn map(fd: c_int, bytes: usize) -> io::Result<Self> {
        const PROTECTION: c_int = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; the result is checked.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, PROTECTION, libc::MAP_SHARED, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        let region = Self { base, bytes, memfd: None };
        // A forked child would keep the peer's memory alive, and could be talked to through it.
        // SAFETY: the range is the mapping just made.
        if unsafe { libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_DONTFORK) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(region)
    }

    /// What is shared with a peer; none of a peer's.
    pub fn memfd(&self) -> Option<BorrowedFd<'_>> {
        self.memfd.as_ref().map(AsFd::as_fd)
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where `length` bytes at `offset` begin, if they lie within.
    #[inline]
    pub fn at(&self, offset: usize, length: usize) -> Option<NonNull<u8>> {
        if offset.checked_add(length)? > self.bytes {
            return None;
        }
        // SAFETY: offset ≤ bytes, so the address is within the mapping or just behind it.
        Some(unsafe { self.base.add(offset) })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever holds an address in it also holds this region.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Proves that a received descriptor is an eventfd: only then may we poll and signal it.
pub fn prove_eventfd(fd: OwnedFd) -> Result<OwnedFd, String> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .map_err(|error| format!("ring descriptor cannot be examined: {error}"))?;
    if link.as_os_str() == "anon_inode:[eventfd]" { Ok(fd) } else { Err("ring descriptor is not an eventfd".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memfd(flags: u32, bytes: i64, seals: c_int) -> OwnedFd {
        // SAFETY: plain system calls on a descriptor made here; results are asserted.
        unsafe {
            let fd = libc::memfd_create(c"peer".as_ptr(), flags);
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            assert_eq!(libc::ftruncate(fd, bytes), 0);
            assert!(seals == 0 || libc::fcntl(fd, libc::F_ADD_SEALS, seals) == 0);
            OwnedFd::from_raw_fd(fd)
        }
    }

    fn refusal(fd: OwnedFd, claim: u64) -> String {
        Region::from_peer(fd, claim).err().unwrap_or_default()
    }

    #[test]
    fn only_a_memfd_that_cannot_shrink_and_is_large_enough_is_mapped() {
        const SEALABLE: u32 = libc::MFD_ALLOW_SEALING;
        assert_eq!(Region::from_peer(memfd(SEALABLE, 8192, libc::F_SEAL_SHRINK), 8000).unwrap().bytes(), 8000);
        assert!(refusal(memfd(SEALABLE, 8192, 0), 8192).contains("F_SEAL_SHRINK"));
        assert!(refusal(memfd(0, 8192, 0), 8192).contains("F_SEAL_SHRINK"));
        assert_eq!(refusal(memfd(SEALABLE, 8192, libc::F_SEAL_SHRINK), 8193), "region holds 8192 bytes, 8193 claimed");
        assert_eq!(refusal(memfd(SEALABLE, 8192, libc::F_SEAL_SHRINK), 0), "a region of 0 bytes");
        assert!(refusal(memfd(SEALABLE, 8192, libc::F_SEAL_SHRINK), u64::MAX).contains("8192 bytes"));
        assert!(
            refusal(memfd(SEALABLE, 8192, libc::F_SEAL_SHRINK | libc::F_SEAL_WRITE), 8192).contains("cannot be mapped")
        );
    }

    #[test]
    fn what_is_no_memfd_is_no_region() {
        let file = std::fs::File::open("/dev/zero").unwrap();
        assert_eq!(refusal(file.into(), 4096), "region is not a memfd");
    }

    #[test]
    fn our_own_region_would_be_accepted_by_ourselves() {
        let ours = Region::create(c"ours", 4096).unwrap();
        let theirs = Region::from_peer(ours.memfd().unwrap().try_clone_to_owned().unwrap(), 4096).unwrap();
        assert!(theirs.at(4095, 1).is_some() && theirs.at(4096, 1).is_none() && theirs.at(usize::MAX, 2).is_none());
    }

    #[test]
    fn a_forked_child_does_not_inherit_a_mapping() {
        let region = Region::create(c"ours", 4096).unwrap();
        let wanted = format!("{:x}-", region.at(0, 1).unwrap().as_ptr() as usize);
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mine = maps.split_once(&wanted).unwrap().1;
        let flags = mine.lines().find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(flags.split(' ').any(|flag| flag == "dc"), "{flags}");
    }

    #[test]
    fn a_pipe_is_no_eventfd() {
        let (reader, _writer) = io::pipe().unwrap();
        assert_eq!(prove_eventfd(reader.into()).unwrap_err(), "ring descriptor is not an eventfd");
        // SAFETY: the descriptor is new and ours.
        let eventfd = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
        assert!(prove_eventfd(eventfd).is_ok());
    }
}
