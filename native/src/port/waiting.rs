//! Descriptors to sleep on: an epoll set, which itself can be waited for, and a bell that a thread rings for its own loop.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Level-triggered, but for what is added to tell only of news.
pub struct Epoll(OwnedFd);

/// What is ready, by the token it was added with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    pub token: u64,
    /// The descriptor's device has failed or is gone; told also of what is not wanted.
    pub broken: bool,
}

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked.
        let fd = checked(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the descriptor is new and ours.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn control(&self, what: c_int, fd: &impl AsRawFd, token: u64, events: c_int) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        // SAFETY: `event` outlives the call.
        checked(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), what, fd.as_raw_fd(), &raw mut event) }).map(drop)
    }

    /// Closing the descriptor takes it out again.
    pub fn add(&self, fd: &impl AsRawFd, token: u64, wanted: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, if wanted { libc::EPOLLIN } else { 0 })
    }

    /// Only news count, so that an eventfd, which a peer may have made blocking, need never be read.
    pub fn add_for_news(&self, fd: &impl AsRawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, libc::EPOLLIN | libc::EPOLLET)
    }

    /// Out of the set, and out of what its device has to tell: one that stays in costs with every frame. Closing alone would
    /// leave in what a peer also holds.
    pub fn remove(&self, fd: &impl AsRawFd) {
        // SAFETY: no event is needed to remove. What is not in the set need not be.
        unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_DEL, fd.as_raw_fd(), std::ptr::null_mut()) };
    }

    /// Whether it shall be told that there is something to read.
    pub fn want(&self, fd: &impl AsRawFd, token: u64, wanted: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, if wanted { libc::EPOLLIN } else { 0 })
    }

    /// What is ready now; some of it, when it is much. News are used up by this.
    pub fn ready(&self) -> impl Iterator<Item = Ready> + use<> {
        const ROOM: usize = 32;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; ROOM];
        // SAFETY: room for ROOM events is given.
        let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), ROOM as c_int, 0) };
        let broken = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
        events
            .into_iter()
            .take(count.max(0) as usize)
            .map(move |event| Ready { token: event.u64, broken: event.events & broken != 0 })
    }
}

impl AsRawFd for Epoll {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// An eventfd.
pub struct Bell(OwnedFd);

impl Bell {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked.
        let fd = checked(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: the descriptor is new and ours.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Readable from now on.
    pub fn ring(&self) {
        // SAFETY: eight readable bytes. A full counter is readable as well.
        unsafe { libc::write(self.0.as_raw_fd(), 1u64.to_ne_bytes().as_ptr().cast(), 8) };
    }

    pub fn calm(&self) {
        // SAFETY: eight writable bytes. An empty counter is calm already.
        unsafe { libc::read(self.0.as_raw_fd(), [0u8; 8].as_mut_ptr().cast(), 8) };
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
