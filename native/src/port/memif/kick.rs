//! Waking a peer without ever waiting for it.
//!
//! The eventfd is shared with the peer, which can fill its counter and clear O_NONBLOCK at any moment: a plain write
//! would then hang us for as long as it likes. So the kernel signals it for us: an asynchronous read of nothing from
//! /dev/zero names the eventfd as the place to report its completion, and that report (eventfd_signal) never blocks. Where
//! AIO is forbidden, a thread of its own does the plain writes and hangs in our stead.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

/// Completions that may pile up; half of them are collected at a time. Small, for the system grants 65,536 of them to
/// all its processes (fs.aio-max-nr).
const DEPTH: usize = 16;
/// Threads that peers may hold captive at a time, in the whole process.
const MAX_THREADS: usize = 16;
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// `struct iocb` of linux/aio_abi.h, little endian.
#[repr(C)]
#[derive(Default)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}
const OPCODE_PREAD: u16 = 0;
const FLAG_EVENTFD: u32 = 1;

/// `struct io_event` of linux/aio_abi.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Completion {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

struct Aio {
    context: libc::c_ulong,
    zero: File,
    uncollected: usize,
}

impl Aio {
    fn new() -> io::Result<Self> {
        let zero = File::open("/dev/zero")?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: `context` is zero, as io_setup wants, and outlives the call.
        if unsafe { libc::syscall(libc::SYS_io_setup, DEPTH as libc::c_uint, &raw mut context) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { context, zero, uncollected: 0 })
    }

    fn kick(&mut self, eventfd: &OwnedFd) -> bool {
        if self.uncollected >= DEPTH / 2 {
            self.collect();
        }
        let mut request = Request {
            opcode: OPCODE_PREAD,
            file: self.zero.as_raw_fd() as u32,
            flags: FLAG_EVENTFD,
            eventfd: eventfd.as_raw_fd() as u32,
            ..Request::default()
        };
        let mut list = [&raw mut request];
        // SAFETY: one request, complete before the call returns: /dev/zero is never asynchronous and 0 bytes need no
        // buffer.
        let submitted = unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_mut_ptr()) };
        self.uncollected += 1;
        submitted == 1
    }

    fn collect(&mut self) {
        let mut completions = [Completion::default(); DEPTH];
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: room for DEPTH completions is given, and no waiting is asked for.
        unsafe {
            libc::syscall(libc::SYS_io_getevents, self.context, 0, DEPTH, completions.as_mut_ptr(), &raw mut now)
        };
        self.uncollected = 0;
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: the context is ours and nothing is under way in it.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

#[derive(Default)]
enum Method {
    /// Nobody wanted to be woken so far.
    #[default]
    Undecided,
    Aio(Aio),
    /// One wake-up may wait behind the one being written; more would say nothing new.
    Thread(Option<SyncSender<Arc<OwnedFd>>>),
}

/// The way we wake the peers of one port.
#[derive(Default)]
pub struct Kicker(Method);

impl Kicker {
    /// Adds one to the peer's eventfd; never blocks. `false`: it could not be done.
    pub fn kick(&mut self, eventfd: &Arc<OwnedFd>) -> bool {
        if matches!(self.0, Method::Undecided) {
            self.0 = Aio::new().map_or(Method::Thread(None), Method::Aio);
        }
        match &mut self.0 {
            Method::Undecided => false,
            Method::Aio(aio) => aio.kick(eventfd),
            Method::Thread(thread) => {
                if thread.is_none() {
                    *thread = start_thread();
                }
                match thread.as_ref().map(|thread| thread.try_send(eventfd.clone())) {
                    Some(Ok(()) | Err(TrySendError::Full(_))) => true,
                    Some(Err(TrySendError::Disconnected(_))) | None => false,
                }
            }
        }
    }

    /// The peer is gone: a thread that hangs on its eventfd is left behind.
    pub fn forget_peer(&mut self) {
        if let Method::Thread(thread) = &mut self.0 {
            *thread = None;
        }
    }
}

/// An eventfd of our own, for a ring of ours.
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn start_thread() -> Option<SyncSender<Arc<OwnedFd>>> {
    if THREADS.fetch_add(1, Ordering::Relaxed) >= MAX_THREADS {
        THREADS.fetch_sub(1, Ordering::Relaxed);
        return None;
    }
    let (sender, receiver) = sync_channel::<Arc<OwnedFd>>(1);
    let work = move || {
        for eventfd in receiver {
            // SAFETY: eight readable bytes. The write may block or fail: both are the peer's loss alone.
            unsafe { libc::write(eventfd.as_raw_fd(), 1u64.to_ne_bytes().as_ptr().cast(), 8) };
        }
        THREADS.fetch_sub(1, Ordering::Relaxed);
    };
    let started = std::thread::Builder::new().name("memif-kick".into()).stack_size(64 * 1024).spawn(work);
    if started.is_err() {
        THREADS.fetch_sub(1, Ordering::Relaxed);
    }
    started.ok().map(|_| sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eventfd(initial: u64) -> Arc<OwnedFd> {
        // SAFETY: the descriptor is new and ours; the write is of eight readable bytes.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
            assert!(fd >= 0);
            assert!(initial == 0 || libc::write(fd, initial.to_ne_bytes().as_ptr().cast(), 8) == 8);
            Arc::new(OwnedFd::from_raw_fd(fd))
        }
    }

    /// Blocks until the counter is not zero.
    fn read(eventfd: &OwnedFd) -> u64 {
        let mut count = [0; 8];
        // SAFETY: eight writable bytes.
        assert_eq!(unsafe { libc::read(eventfd.as_raw_fd(), count.as_mut_ptr().cast(), 8) }, 8);
        u64::from_ne_bytes(count)
    }

    #[test]
    fn aio_counts_each_kick_and_never_fills_up() {
        let mut aio = Aio::new().expect("this kernel forbids AIO: run where io_setup is allowed");
        let eventfd = eventfd(0);
        for _ in 0..10_000 {
            assert!(aio.kick(&eventfd));
        }
        assert_eq!(read(&eventfd), 10_000);
    }

    #[test]
    fn a_full_and_blocking_eventfd_hangs_nobody() {
        let full = eventfd(u64::MAX - 1);
        let mut kicker = Kicker::default();
        for _ in 0..10_000 {
            kicker.kick(&full);
        }
        let other = eventfd(0);
        assert!(kicker.kick(&other));
        assert_eq!(read(&other), 1);
    }

    #[test]
    fn the_thread_hangs_in_our_stead_and_ends_once_released() {
        let full = eventfd(u64::MAX - 1);
        let mut kicker = Kicker(Method::Thread(None)); // as where AIO is not to be had
        for _ in 0..1000 {
            kicker.kick(&full);
        }
        kicker.forget_peer();
        let other = eventfd(0);
        assert!(kicker.kick(&other));
        assert!(read(&other) >= 1);
        // Reading lets the captive go.
        assert!(read(&full) >= u64::MAX - 1);
    }

    #[test]
    fn what_is_no_eventfd_is_not_kicked() {
        let (reader, _writer) = io::pipe().unwrap();
        assert!(!Aio::new().unwrap().kick(&OwnedFd::from(reader)));
    }
}
