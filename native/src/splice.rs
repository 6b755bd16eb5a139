//! Joins two stream sockets with splice(2): the bytes go through a pipe in the kernel and touch no user memory.
//!
//! One thread, made on first use, serves every pair of the process from one edge-triggered epoll: whatever wakes a pair,
//! both its directions are pumped until the kernel says "not now", so no edge is lost. Half-closes are passed on by
//! shutdown(2); a full receiver leaves its bytes in the pipe and so in the sender's window. SIGPIPE must be ignored by
//! the process (Rust's and Python's are): splice(2) has no flag for it.
#![allow(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

/// Bytes moved for one pair before the others get their turn.
const SLICE_BYTES: u64 = 1 << 20;
/// Asked of the kernel at once; a pipe holds this much by default (pipe(7)).
const CHUNK_BYTES: usize = 64 << 10;
/// The epoll key of the thread's own wake-up; pairs count from 1.
const WAKE: u64 = 0;

/// What a pair has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub forth: u64,
    pub back: u64,
    pub error: Option<String>,
}

/// A running pair. Dropping it stops it.
pub struct Splice {
    id: u64,
    outcome: Arc<Mutex<Outcome>>,
    done: PipeReader,
}

impl Splice {
    /// Takes both sockets and starts at once.
    pub fn start(left: OwnedFd, right: OwnedFd) -> io::Result<Self> {
        for socket in [&left, &right] {
            set_nonblocking(socket.as_fd())?;
        }
        let (done, finished) = io::pipe()?;
        let outcome = Arc::default();
        let pair = Pair {
            forth: Direction::new()?,
            back: Direction::new()?,
            left,
            right,
            outcome: Arc::clone(&outcome),
            _finished: finished,
        };
        let id = Splicer::get()?.submit(|queue| {
            queue.last_id += 1;
            queue.orders.push_back(Order::Start(queue.last_id, Box::new(pair)));
            queue.last_id
        });
        Ok(Self { id, outcome, done })
    }

    /// Readable (as end of file) once both directions have ended.
    pub fn done_fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }

    /// The bytes moved, and the error that ended it, if any. Final once `done_fd` is readable.
    pub fn outcome(&self) -> Outcome {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops it if it still runs; `done_fd` becomes readable soon.
    pub fn stop(&self) {
        if let Ok(splicer) = Splicer::get() {
            splicer.submit(|queue| queue.orders.push_back(Order::Stop(self.id)));
        }
    }
}

impl Drop for Splice {
    fn drop(&mut self) {
        self.stop();
    }
}

enum Order {
    Start(u64, Box<Pair>),
    Stop(u64),
}

#[derive(Default)]
struct Queue {
    last_id: u64,
    orders: VecDeque<Order>,
}

/// The hand-over to the thread.
struct Splicer {
    queue: Arc<Mutex<Queue>>,
    wake: UnixStream,
}

impl Splicer {
    fn get() -> io::Result<&'static Self> {
        static SPLICER: OnceLock<Splicer> = OnceLock::new();
        if let Some(splicer) = SPLICER.get() {
            return Ok(splicer);
        }
        // Two threads may both come here; the one that loses the race drops its wake-up, which ends its thread.
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let queue = Arc::<Mutex<Queue>>::default();
        let epoll = Epoll::new()?;
        epoll.add(waker.as_fd(), WAKE)?;
        let orders = Arc::clone(&queue);
        thread::Builder::new().name("vnf-splice".into()).spawn(move || serve(&epoll, &waker, &orders))?;
        Ok(SPLICER.get_or_init(|| Self { queue, wake }))
    }

    fn submit<R>(&self, change: impl FnOnce(&mut Queue) -> R) -> R {
        let result = change(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner));
        // A full socket has wake-ups enough in it.
        let _ = (&self.wake).write(&[1]);
        result
    }
}

/// The thread: orders and readiness in, pumped pairs out. Ends when its `Splicer` is gone.
fn serve(epoll: &Epoll, waker: &UnixStream, queue: &Mutex<Queue>) {
    let mut pairs: HashMap<u64, Box<Pair>> = HashMap::new();
    let mut ready: Vec<u64> = Vec::new();
    let mut unfinished: Vec<u64> = Vec::new();
    loop {
        ready.append(&mut unfinished);
        // Pairs with more to do are not made to wait; new readiness is looked at between their slices.
        if epoll.wait(if ready.is_empty() { -1 } else { 0 }, &mut ready).is_err() {
            return;
        }
        if ready.contains(&WAKE) {
            let mut bytes = [0; 256];
            loop {
                match (&*waker).read(&mut bytes) {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
            let orders = std::mem::take(&mut queue.lock().unwrap_or_else(PoisonError::into_inner).orders);
            for order in orders {
                match order {
                    Order::Stop(id) => drop(pairs.remove(&id)),
                    Order::Start(id, pair) => {
                        let added = epoll.add(pair.left.as_fd(), id).and_then(|()| epoll.add(pair.right.as_fd(), id));
                        match added {
                            Ok(()) => {
                                pairs.insert(id, pair);
                                ready.push(id);
                            }
                            Err(error) => pair.fail(&error),
                        }
                    }
                }
            }
        }
        ready.sort_unstable();
        ready.dedup();
        for id in ready.drain(..) {
            let Some(pair) = pairs.get_mut(&id) else { continue };
            match pair.pump() {
                Ok(Pumped::Waits) => {}
                Ok(Pumped::More) => unfinished.push(id),
                // Dropping a pair closes its descriptors (which leaves the epoll) and its end of the `done` pipe.
                Ok(Pumped::Over) => drop(pairs.remove(&id)),
                Err(error) => {
                    pair.fail(&error);
                    pairs.remove(&id);
                }
            }
        }
    }
}

enum Pumped {
    /// Nothing can move until an edge.
    Waits,
    /// Its slice is used up.
    More,
    /// Both directions have ended.
    Over,
}

struct Pair {
    left: OwnedFd,
    right: OwnedFd,
    forth: Direction,
    back: Direction,
    outcome: Arc<Mutex<Outcome>>,
    /// Dropped last of all: whoever sees its end finds the final outcome.
    _finished: PipeWriter,
}

impl Pair {
    fn pump(&mut self) -> io::Result<Pumped> {
        let before = self.forth.moved + self.back.moved;
        let result = loop {
            let forth = self.forth.step(self.left.as_fd(), self.right.as_fd());
            let back = self.back.step(self.right.as_fd(), self.left.as_fd());
            match (forth, back) {
                (Err(error), _) | (_, Err(error)) => break Err(error),
                (Ok(false), Ok(false)) => {
                    break Ok(if self.forth.ended && self.back.ended { Pumped::Over } else { Pumped::Waits });
                }
                _ if self.forth.moved + self.back.moved - before > SLICE_BYTES => break Ok(Pumped::More),
                _ => {}
            }
        };
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        (outcome.forth, outcome.back) = (self.forth.moved, self.back.moved);
        result
    }

    fn fail(&self, error: &io::Error) {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).error = Some(error.to_string());
    }
}

/// One way: socket → pipe → socket.
struct Direction {
    output: PipeReader,
    input: PipeWriter,
    in_pipe: usize,
    /// The sender has ended.
    drained: bool,
    /// And the receiver has been told.
    ended: bool,
    moved: u64,
}

impl Direction {
    fn new() -> io::Result<Self> {
        let (output, input) = io::pipe()?;
        Ok(Self { output, input, in_pipe: 0, drained: false, ended: false, moved: 0 })
    }

    /// One attempt to fill the pipe and one to empty it; whether anything changed.
    fn step(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let mut progress = false;
        if !self.drained {
            // "Not now" means an empty socket or a full pipe: the second half of this step makes room for the next.
            match splice(from, self.input.as_fd(), CHUNK_BYTES)? {
                Some(0) => (self.drained, progress) = (true, true),
                Some(moved) => (self.in_pipe, progress) = (self.in_pipe + moved, true),
                None => {}
            }
        }
        if self.in_pipe > 0
            && let Some(moved) = splice(self.output.as_fd(), to, self.in_pipe)?
        {
            self.in_pipe -= moved;
            self.moved += moved as u64;
            progress |= moved > 0;
        }
        if self.drained && self.in_pipe == 0 {
            self.ended = true;
            shutdown_write(to)?;
            progress = true;
        }
        Ok(progress)
    }
}

/// Moves up to `size` bytes; None: nothing can be moved now. Zero: the source has ended.
fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: usize) -> io::Result<Option<usize>> {
    loop {
        // SAFETY: two open descriptors and null offsets, which stand for "where the streams are"; no memory is shared.
        let moved = unsafe {
            libc::splice(
                from.as_raw_fd(),
                std::ptr::null_mut(),
                to.as_raw_fd(),
                std::ptr::null_mut(),
                size,
                libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK,
            )
        };
        if let Ok(moved) = usize::try_from(moved) {
            return Ok(Some(moved));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock => return Ok(None),
            io::ErrorKind::Interrupted => {}
            _ => return Err(error),
        }
    }
}

fn shutdown_write(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a system call on an open descriptor.
    if unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // The peer was faster: there is nobody left to tell.
    if error.kind() == io::ErrorKind::NotConnected { Ok(()) } else { Err(error) }
}

fn set_nonblocking(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: two system calls on an open descriptor.
    let done = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        flags >= 0 && libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

struct Epoll(OwnedFd);

impl Epoll {
    fn new() -> io::Result<Self> {
        // SAFETY: a system call without pointers.
        let fd: RawFd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn add(&self, file: BorrowedFd<'_>, key: u64) -> io::Result<()> {
        let events = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET).cast_unsigned();
        let mut event = libc::epoll_event { events, u64: key };
        // SAFETY: two open descriptors; the kernel copies the event before the call returns.
        let done =
            unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, file.as_raw_fd(), &raw mut event) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Appends the keys of what is ready.
    fn wait(&self, timeout_ms: i32, ready: &mut Vec<u64>) -> io::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        loop {
            // SAFETY: `events` has room for the 64 that are asked for.
            let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), 64, timeout_ms) };
            if let Ok(count) = usize::try_from(count) {
                ready.extend(events.iter().take(count).map(|event| event.u64));
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;

    fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    fn until_done(splice: &Splice) -> Outcome {
        assert_eq!((&splice.done).read(&mut [0; 1]).unwrap(), 0);
        splice.outcome()
    }

    #[test]
    fn bytes_and_half_closes_go_both_ways() {
        let ((mut a, a_far), (mut b, b_far)) = (tcp_pair(), tcp_pair());
        let splice = Splice::start(a_far.into(), b_far.into()).unwrap();
        a.write_all(b"question").unwrap();
        a.shutdown(Shutdown::Write).unwrap();
        let mut heard = Vec::new();
        b.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"question");
        b.write_all(b"the answer after the half-close").unwrap();
        drop(b);
        heard.clear();
        a.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"the answer after the half-close");
        assert_eq!(until_done(&splice), Outcome { forth: 8, back: 31, error: None });
    }

    #[test]
    fn a_slow_reader_gets_every_byte_of_a_large_stream_in_order() {
        let ((a, a_far), (mut b, b_far)) = (tcp_pair(), UnixStream::pair().unwrap());
        let splice = Splice::start(a_far.into(), b_far.into()).unwrap();
        let sent: Vec<u8> = (0..8_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let copy = sent.clone();
        let writer = thread::spawn(move || {
            (&a).write_all(&copy).unwrap();
            a.shutdown(Shutdown::Write).unwrap();
            a
        });
        let mut heard = Vec::new();
        let mut piece = [0; 1000];
        loop {
            let count = b.read(&mut piece).unwrap();
            if count == 0 {
                break;
            }
            heard.extend_from_slice(&piece[..count]);
        }
        assert!(heard == sent);
        drop(b);
        drop(writer.join().unwrap());
        assert_eq!(until_done(&splice), Outcome { forth: 8_000_000, back: 0, error: None });
    }

    #[test]
    fn a_reset_ends_the_pair_with_its_error() {
        let ((mut a, a_far), (b, b_far)) = (tcp_pair(), tcp_pair());
        let splice = Splice::start(a_far.into(), b_far.into()).unwrap();
        // Unread bytes at close make TCP answer with RST (RFC 9293 3.6.1).
        a.write_all(b"never read").unwrap();
        b.peek(&mut [0; 1]).unwrap();
        drop(b);
        let outcome = until_done(&splice);
        assert!(outcome.error.is_some(), "{outcome:?}");
    }

    #[test]
    fn a_stopped_pair_is_done_and_lets_go_of_its_sockets() {
        let ((mut a, a_far), (_b, b_far)) = (tcp_pair(), tcp_pair());
        let splice = Splice::start(a_far.into(), b_far.into()).unwrap();
        splice.stop();
        assert_eq!(until_done(&splice).error, None);
        assert_eq!(a.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn many_pairs_share_the_thread() {
        let pairs: Vec<_> = (0..50)
            .map(|_| {
                let ((a, a_far), (b, b_far)) = (tcp_pair(), tcp_pair());
                (a, b, Splice::start(a_far.into(), b_far.into()).unwrap())
            })
            .collect();
        for (number, (a, _, _)) in pairs.iter().enumerate() {
            (&*a).write_all(&[number as u8; 10_000]).unwrap();
            a.shutdown(Shutdown::Write).unwrap();
        }
        for (number, (_, b, _)) in pairs.iter().enumerate() {
            let mut heard = Vec::new();
            (&*b).read_to_end(&mut heard).unwrap();
            assert!(heard == [number as u8; 10_000]);
        }
    }
}
