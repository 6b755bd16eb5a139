//! System calls that the standard library does not offer, for the load generator and for kernel sockets: non-blocking
//! connect, epoll with a timeout in nanoseconds, several datagrams per call, a thread's cpu. Nothing here decides.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use super::Endpoint;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_length(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// A socket address as the kernel wants it.
#[derive(Clone, Copy)]
struct Address {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

impl Address {
    const fn empty() -> Self {
        // SAFETY: sockaddr_storage is plain bytes; all zeros is the address family "unspecified".
        Self { storage: unsafe { zeroed() }, length: size_of::<libc::sockaddr_storage>() as libc::socklen_t }
    }

    fn of<T>(value: T) -> Self {
        const { assert!(size_of::<T>() <= size_of::<libc::sockaddr_storage>()) };
        let mut address = Self::empty();
        // SAFETY: sockaddr_storage is large enough (above) and aligned for every sockaddr type.
        unsafe { (&raw mut address.storage).cast::<T>().write(value) };
        address.length = size_of::<T>() as libc::socklen_t;
        address
    }

    fn internet(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(address) => {
                // SAFETY: a plain C struct for which all zeros is valid.
                let mut raw: libc::sockaddr_in = unsafe { zeroed() };
                raw.sin_family = libc::AF_INET as libc::sa_family_t;
                raw.sin_port = address.port().to_be();
                raw.sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
                Self::of(raw)
            }
            SocketAddr::V6(address) => {
                // SAFETY: a plain C struct for which all zeros is valid.
                let mut raw: libc::sockaddr_in6 = unsafe { zeroed() };
                raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                raw.sin6_port = address.port().to_be();
                raw.sin6_addr.s6_addr = address.ip().octets();
                raw.sin6_flowinfo = address.flowinfo();
                raw.sin6_scope_id = address.scope_id();
                Self::of(raw)
            }
        }
    }

    fn unix(path: &Path) -> io::Result<Self> {
        // SAFETY: a plain C struct for which all zeros is valid.
        let mut raw: libc::sockaddr_un = unsafe { zeroed() };
        raw.sun_family = libc::AF_UNIX as libc::sa_family_t;
        let bytes = path.as_os_str().as_bytes();
        // One byte stays zero: the end of the path.
        if bytes.len() >= raw.sun_path.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path is too long for a Unix socket"));
        }
        for (to, from) in raw.sun_path.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        Ok(Self::of(raw))
    }
}

fn set_option<T>(fd: RawFd, level: libc::c_int, name: libc::c_int, value: T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes at `value`, which lives through the call.
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), length) }).map(drop)
}

/// Opens a non-blocking socket towards the endpoint. `true`: connected already; else it becomes writable.
pub fn connect(endpoint: &Endpoint) -> io::Result<(OwnedFd, bool)> {
    let (family, kind, address) = match endpoint {
        Endpoint::Tcp(address) | Endpoint::Udp(address) => {
            let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            let datagrams = matches!(endpoint, Endpoint::Udp(_));
            (family, if datagrams { libc::SOCK_DGRAM } else { libc::SOCK_STREAM }, Address::internet(*address))
        }
        Endpoint::Unix(path) => (libc::AF_UNIX, libc::SOCK_STREAM, Address::unix(path)?),
    };
    // SAFETY: no pointers; the result is checked and owned at once.
    let fd = unsafe {
        let fd = check(libc::socket(family, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0))?;
        OwnedFd::from_raw_fd(fd)
    };
    match endpoint {
        Endpoint::Tcp(_) => set_option(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1_i32)?,
        Endpoint::Udp(_) | Endpoint::Unix(_) => {}
    }
    // SAFETY: the address and its length describe `address.storage`, which lives through the call.
    let result = unsafe { libc::connect(fd.as_raw_fd(), (&raw const address.storage).cast(), address.length) };
    match check(result) {
        Ok(_) => Ok((fd, true)),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok((fd, false)),
        Err(error) => Err(error),
    }
}

/// Datagrams wait in the socket while this thread is busy: as much room as the system grants.
pub fn widen(fd: &OwnedFd) {
    for option in [libc::SO_RCVBUF, libc::SO_SNDBUF] {
        // The kernel clamps the value and refuses only what is not a socket.
        let _ = set_option(fd.as_raw_fd(), libc::SOL_SOCKET, option, 4_i32 << 20);
    }
}

/// What became of a connect.
pub fn take_error(fd: &OwnedFd) -> io::Result<()> {
    let mut error: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `error`.
    check(unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut error).cast(), &raw mut length)
    })?;
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Closing will reset the connection and leave no TIME_WAIT.
pub fn reset_on_close(fd: &OwnedFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // Fails only on what is not a socket; then closing is all there is.
    let _ = set_option(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, linger);
}

/// Lengthens the queue of connections that wait to be accepted (the standard library asks for 128).
pub fn deepen_backlog(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::listen(fd.as_raw_fd(), 4096) }).map(drop)
}

/// The next waiting connection, non-blocking, without delay.
pub fn accept(listener: &OwnedFd, tcp: bool) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: null pointers say that the peer's address is not wanted; the result is checked and owned at once.
    let fd = unsafe {
        let fd = check(libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags))?;
        OwnedFd::from_raw_fd(fd)
    };
    if tcp {
        // A connection that died meanwhile refuses this; reading will say so.
        let _ = set_option(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1_i32);
    }
    Ok(fd)
}

pub fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`.
    check_length(unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) })
}

pub fn send(fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the kernel reads at most `bytes.len()` bytes.
    check_length(unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) })
}

/// Half-closes: no more will be sent.
#[cfg(feature = "python")]
pub fn end(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) }).map(drop)
}

/// What happened to the descriptor registered with `token`.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub token: u64,
    /// Errors and hang-ups included: reading tells which.
    pub readable: bool,
    pub writable: bool,
    /// The peer has ended, or the connection failed: read until that is seen.
    pub ended: bool,
}

pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked and owned at once.
        let fd = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        Ok(Self { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; 256] })
    }

    /// Edge-triggered, both directions: whoever is told must read, or write, until the kernel would block. The
    /// registration ends when the descriptor is closed.
    pub fn add(&self, fd: &impl AsRawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd.as_raw_fd(), token)
    }

    /// What is ready now is told again.
    #[cfg(feature = "python")]
    pub fn rearm(&self, fd: &impl AsRawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd.as_raw_fd(), token)
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, token: u64) -> io::Result<()> {
        let events = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32;
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: the kernel copies `event` before it returns.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd, &raw mut event) }).map(drop)
    }

    /// Readable when an event waits: another loop can watch this one.
    #[cfg(feature = "python")]
    pub fn descriptor(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Waits until something happens, at most `timeout`; returns how many events [`Self::event`] has.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<usize> {
        let timeout = libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // epoll_pwait2 (Linux 5.11): the older calls count in milliseconds.
        // SAFETY: the kernel writes at most `events.len()` events; the timeout lives through the call; no signal mask.
        let result = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                self.events.len() as libc::c_int,
                &raw const timeout,
                std::ptr::null::<libc::sigset_t>(),
                0_usize,
            )
        };
        match check_length(result as isize) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            other => other,
        }
    }

    pub fn event(&self, index: usize) -> Event {
        let event = self.events[index];
        let has = |mask: i32| event.events & mask as u32 != 0;
        Event {
            token: event.u64,
            readable: has(libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR),
            writable: has(libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR),
            ended: has(libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR),
        }
    }
}

/// Sleeps until the descriptor is readable, at most `timeout`.
pub fn sleep_on(fd: RawFd, timeout: Duration) {
    let mut wanted = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: one pollfd and one timespec that live through the call; no signal mask. Whatever it returns, the caller
    // looks again.
    unsafe { libc::ppoll(&raw mut wanted, 1, &raw const timeout, std::ptr::null()) };
}

/// Room for several datagrams, received and sent with one call. Each has a buffer of `stride` bytes.
pub struct Datagrams {
    stride: usize,
    bytes: Vec<u8>,
    lengths: Vec<usize>,
    addresses: Vec<Address>,
}

impl Datagrams {
    pub const MOST: usize = 64;

    pub fn new(longest: usize) -> Self {
        // An odd number of cache lines, so that the buffers do not fall into the same cache sets.
        let stride = ((longest / 64 + 1) | 1) * 64;
        Self {
            stride,
            bytes: vec![0; stride * Self::MOST],
            lengths: vec![0; Self::MOST],
            addresses: vec![Address::empty(); Self::MOST],
        }
    }

    pub fn get(&self, index: usize) -> &[u8] {
        &self.bytes[index * self.stride..][..self.lengths[index]]
    }

    pub fn set(&mut self, index: usize, bytes: &[u8]) {
        self.bytes[index * self.stride..][..bytes.len()].copy_from_slice(bytes);
        self.lengths[index] = bytes.len();
    }

    /// Runs `call` on the headers of datagrams `range`; `named`: with room for, or the value of, their peers.
    fn with_headers(
        &mut self,
        range: std::ops::Range<usize>,
        receiving: bool,
        named: bool,
        call: impl FnOnce(&mut [libc::mmsghdr]) -> libc::c_int,
    ) -> io::Result<usize> {
        // SAFETY: plain C structs for which all zeros is valid.
        let mut headers: [libc::mmsghdr; Self::MOST] = unsafe { zeroed() };
        // SAFETY: as above.
        let mut vectors: [libc::iovec; Self::MOST] = unsafe { zeroed() };
        let used = range.len();
        for (slot, index) in range.clone().enumerate() {
            let buffer = &mut self.bytes[index * self.stride..][..self.stride];
            vectors[slot].iov_base = buffer.as_mut_ptr().cast();
            vectors[slot].iov_len = if receiving { self.stride } else { self.lengths[index] };
            headers[slot].msg_hdr.msg_iov = &raw mut vectors[slot];
            headers[slot].msg_hdr.msg_iovlen = 1;
            if named {
                let address = &mut self.addresses[index];
                if receiving {
                    address.length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
                }
                headers[slot].msg_hdr.msg_name = (&raw mut address.storage).cast();
                headers[slot].msg_hdr.msg_namelen = address.length;
            }
        }
        let count = check_length(call(&mut headers[..used]) as isize)?;
        if receiving {
            for (header, index) in headers[..count].iter().zip(range) {
                self.lengths[index] = (header.msg_len as usize).min(self.stride);
                self.addresses[index].length = header.msg_hdr.msg_namelen;
            }
        }
        Ok(count)
    }

    /// Takes what waits, at most [`Self::MOST`]; longer datagrams are cut. `named`: remembers where they came from.
    pub fn receive(&mut self, fd: &OwnedFd, named: bool) -> io::Result<usize> {
        self.with_headers(0..Self::MOST, true, named, |headers| {
            let count = headers.len() as libc::c_uint;
            // SAFETY: every header points to buffers of this object, exclusively borrowed, and to their true lengths;
            // the headers and vectors live through the call.
            unsafe { libc::recvmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), count, 0, std::ptr::null_mut()) }
        })
    }

    /// Sends the datagrams `range`, `named` to where they came from; returns how many were taken.
    pub fn send(&mut self, fd: &OwnedFd, range: std::ops::Range<usize>, named: bool) -> io::Result<usize> {
        self.with_headers(range, false, named, |headers| {
            let count = headers.len() as libc::c_uint;
            // SAFETY: as in `receive`.
            unsafe { libc::sendmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), count, libc::MSG_NOSIGNAL) }
        })
    }
}

/// The calling thread runs on one cpu until this is dropped; then where it ran before.
pub struct Pinned(libc::cpu_set_t);

impl Pinned {
    pub fn to(cpu: usize) -> io::Result<Self> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        if cpu >= libc::CPU_SETSIZE as usize {
            return Err(invalid());
        }
        // SAFETY: cpu_set_t is a plain bit set; `cpu` lies within it; the kernel reads and writes its true size.
        unsafe {
            let (mut before, mut wanted): (libc::cpu_set_t, libc::cpu_set_t) = (zeroed(), zeroed());
            libc::CPU_SET(cpu, &mut wanted);
            check(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut before))?;
            check(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const wanted))?;
            Ok(Self(before))
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the set was written by the kernel; the size is its true size.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const self.0) };
    }
}

/// The cpu time the calling thread has used.
pub fn thread_cpu() -> Duration {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// For how long this machine has been suspended since it was started: what `Instant`, CLOCK_MONOTONIC, leaves out. Never
/// more than that.
pub fn suspended() -> Duration {
    let with = read(libc::CLOCK_BOOTTIME);
    with.saturating_sub(read(libc::CLOCK_MONOTONIC))
}

fn read(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec; the clocks asked for exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Allows as many open files as the hard limit does.
pub fn raise_file_limit() {
    // SAFETY: the kernel writes, then reads, one plain struct.
    unsafe {
        let mut limit: libc::rlimit = zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}
