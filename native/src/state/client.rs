//! The client: the hand-over between the event loop and a thread of its own, where the sockets and the clock are
//! (`client/thread.rs`). What is decided, `cluster.rs` decides.
//!
//! The loop submits and drains; both only take a lock for as long as a vector changes hands. The thread sleeps in epoll
//! and is rung out of it when it has said that it sleeps. It ends when the client is closed or dropped, and if it should
//! panic, it says so by [`Drained::ended`]: whoever waits for an answer then is owed one by whoever drains.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::answer::Answer;
use super::cluster::{Gauges, Key};
use super::counters::Counters;
use super::lease::Lapsed;
use super::news::News;
use super::request::Request;
use super::settings::Settings;
use super::slots::Table;
use super::topology::Address;
use crate::load::sys::Epoll;
use crate::port::waiting::Bell;

/// The thread's own bell among the tokens of its epoll.
const BELL: u64 = u64::MAX;
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// So much waits already.
    Full,
    Closed,
}

/// What the loop has not been told yet.
#[derive(Default)]
pub struct Drained {
    pub done: Vec<(u64, Answer)>,
    pub news: News,
    pub lapsed: Vec<Lapsed>,
    /// The thread is no more: nothing else will come. Why, if nobody had asked for that.
    pub ended: Option<Option<String>>,
    bytes: usize,
}

/// For which connection, and what its address came to.
type Resolved = (Key, u32, Address, io::Result<SocketAddr>);

#[derive(Default)]
struct Inbox {
    requests: Vec<(u64, Request)>,
    tables: Vec<Table>,
    resolved: Vec<Resolved>,
}

struct Shared {
    inbox: Mutex<Inbox>,
    outbox: Mutex<Drained>,
    /// Rung for the thread, when it sleeps.
    call: Bell,
    asleep: AtomicBool,
    closing: AtomicBool,
    /// Rung for the loop.
    bell: Bell,
    operations: AtomicUsize,
    bytes: AtomicUsize,
    /// Milliseconds from `began` to the last sign of life of the loop.
    beat: AtomicU64,
    began: Instant,
    statistics: Mutex<(Counters, Gauges)>,
    queued_operations: usize,
    queued_bytes: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new(settings: &Settings) -> io::Result<Self> {
        Ok(Self {
            inbox: Mutex::default(),
            outbox: Mutex::default(),
            call: Bell::new()?,
            asleep: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            bell: Bell::new()?,
            operations: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            beat: AtomicU64::new(0),
            began: Instant::now(),
            statistics: Mutex::default(),
            queued_operations: settings.queued_operations,
            queued_bytes: settings.queued_bytes,
        })
    }

    fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.call.ring();
        }
    }
}

pub struct Client {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Client {
    pub fn start(settings: Settings, random: u32) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(&settings)?);
        let epoll = Epoll::new()?;
        epoll.add(&shared.call, BELL)?;
        let theirs = Arc::clone(&shared);
        let thread = Builder::new().name("vnf-store".into()).spawn(move || {
            let ended = catch_unwind(AssertUnwindSafe(|| thread::Thread::new(settings, random, epoll, &theirs).run()));
            let why = match ended {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("the store's thread ended: {error}")),
                Err(_) => Some("the store's thread panicked".to_owned()),
            };
            theirs.closing.store(true, Ordering::SeqCst);
            lock(&theirs.outbox).ended = Some(why);
            theirs.bell.ring();
        })?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Readable when there is something to drain.
    pub fn wake_fd(&self) -> RawFd {
        self.shared.bell.as_raw_fd()
    }

    /// One that the caller's own [`super::slots::Tables`] did not have: its number is the same here.
    pub fn add_table(&self, table: Table) {
        lock(&self.shared.inbox).tables.push(table);
    }

    pub fn submit(&self, id: u64, request: Request) -> Result<(), Refused> {
        let shared = &self.shared;
        if shared.closing.load(Ordering::SeqCst) {
            return Err(Refused::Closed);
        }
        let weight = request.weight();
        if shared.operations.load(Ordering::Relaxed) >= shared.queued_operations
            || shared.bytes.load(Ordering::Relaxed) + weight > shared.queued_bytes
        {
            return Err(Refused::Full);
        }
        shared.operations.fetch_add(1, Ordering::Relaxed);
        shared.bytes.fetch_add(weight, Ordering::Relaxed);
        lock(&shared.inbox).requests.push((id, request));
        Ok(())
    }

    /// What was submitted is begun. Once for many: on the loop's own cpu each ring is a switch to the thread and back.
    pub fn go(&self) {
        self.shared.wake();
    }

    /// An operation submitted with that weight was told to whoever asked.
    pub fn release(&self, weight: usize) {
        self.shared.operations.fetch_sub(1, Ordering::Relaxed);
        self.shared.bytes.fetch_sub(weight, Ordering::Relaxed);
    }

    pub fn drain(&self) -> Drained {
        self.shared.bell.calm();
        let mut outbox = lock(&self.shared.outbox);
        let ended = outbox.ended.clone();
        std::mem::replace(&mut *outbox, Drained { ended, ..Drained::default() })
    }

    pub fn beat(&self) {
        let now = self.shared.began.elapsed().as_millis();
        self.shared.beat.store(u64::try_from(now).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub fn statistics(&self) -> Vec<(&'static str, u64)> {
        let (counters, gauges) = *lock(&self.shared.statistics);
        let mut all: Vec<_> = counters.named().chain(gauges).collect();
        all.push(("queued_bytes_now", self.shared.bytes.load(Ordering::Relaxed) as u64));
        all.push(("queued_operations_now", self.shared.operations.load(Ordering::Relaxed) as u64));
        all
    }

    /// Ends the thread, and returns when it has.
    pub fn close(&self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.call.ring();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // Its end, also by a panic, is told by what is drained.
            let _ = thread.join();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
mod thread;
