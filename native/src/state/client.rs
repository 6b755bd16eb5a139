//! The client's thread: sockets, the clock, and the hand-over to and from the event loop. What is decided, `cluster.rs`
//! decides.
//!
//! The loop submits and drains; both only take a lock for as long as a vector changes hands. The thread sleeps in epoll
//! and is rung out of it when it has said that it sleeps. It ends when the client is closed or dropped, and if it should
//! panic, it says so by [`Drained::ended`]: whoever waits for an answer then is owed one by whoever drains.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::cluster::{Cluster, Gauges, Key, Order};
use super::counters::Counters;
use super::lease::Lapsed;
use super::news::News;
use super::operation::{Answer, Request};
use super::settings::Settings;
use super::slots::Table;
use super::tls::{Session, Tls};
use super::topology::Address;
use crate::load::Endpoint;
use crate::load::sys::{self, Epoll};
use crate::port::waiting::Bell;

/// The thread's own bell among the tokens of its epoll.
const BELL: u64 = u64::MAX;
/// Read from one connection before the others get their turn.
const SLICE: usize = 16;
/// Names that are being resolved at once: each is a thread for that long.
const RESOLVING: usize = 8;

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
        let thread = thread::Builder::new().name("vnf-store".into()).spawn(move || {
            let ended = catch_unwind(AssertUnwindSafe(|| Thread::new(settings, random, epoll, &theirs).run()));
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

struct Socket {
    generation: u32,
    fd: OwnedFd,
    session: Option<Session>,
    is_open: bool,
    /// Nothing more can be written until it says so.
    is_full: bool,
    /// Its end was told, and will not be again: read on until it is seen.
    ended: bool,
}

impl Socket {
    fn receive(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match &mut self.session {
            Some(session) => session.read(&self.fd, room),
            None => sys::receive(&self.fd, room),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.session {
            Some(session) => session.write(&self.fd, bytes),
            None => sys::send(&self.fd, bytes),
        }
    }

    /// What was sent is on its way, as far as that can be: only a session keeps something back.
    fn flush(&mut self) -> io::Result<()> {
        self.session.as_mut().map_or(Ok(()), |session| session.flush(&self.fd))
    }
}

struct Thread<'a> {
    tls: Option<Tls>,
    shared: &'a Arc<Shared>,
    cluster: Cluster,
    epoll: Epoll,
    sockets: HashMap<Key, Socket>,
    /// Connections that were read from for a slice and have more.
    unread: Vec<Key>,
    resolving: usize,
    answers_dropped: u64,
}

/// A token of the epoll: the key, and 32 bits of its generation, so that a late event meets no successor.
fn token(key: Key, generation: u32) -> u64 {
    (key as u64) << 32 | u64::from(generation)
}

impl<'a> Thread<'a> {
    fn new(settings: Settings, random: u32, epoll: Epoll, shared: &'a Arc<Shared>) -> Self {
        let tls = settings.tls.clone();
        let cluster = Cluster::new(settings, random, Instant::now());
        let sockets = HashMap::new();
        Self { tls, shared, cluster, epoll, sockets, unread: Vec::new(), resolving: 0, answers_dropped: 0 }
    }

    fn run(mut self) -> io::Result<()> {
        while !self.shared.closing.load(Ordering::SeqCst) {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        self.sleep()?;
        let inbox = std::mem::take(&mut *lock(&self.shared.inbox));
        for table in inbox.tables {
            // The caller has its number already: his list was asked the same.
            let _ = self.cluster.tables.add(table);
        }
        let now = Instant::now();
        for (key, generation, address, resolved) in inbox.resolved {
            self.resolving -= 1;
            match resolved {
                Ok(ip) => self.connect(key, generation, &address, &Endpoint::Tcp(ip), now),
                Err(error) => self.cluster.lost(key, generation, error.to_string(), now),
            }
        }
        for (id, request) in inbox.requests {
            self.cluster.submit(id, request, now);
        }
        if self.cluster.wake().is_some_and(|at| at <= now) {
            let beat = self.shared.began + Duration::from_millis(self.shared.beat.load(Ordering::Relaxed));
            self.cluster.beat(beat);
            self.cluster.suspended(sys::suspended());
            self.cluster.tick(now);
        }
        self.carry_out(now);
        self.deliver();
        Ok(())
    }

    fn sleep(&mut self) -> io::Result<()> {
        self.shared.asleep.store(true, Ordering::SeqCst);
        let is_idle = self.unread.is_empty() && {
            let inbox = lock(&self.shared.inbox);
            inbox.requests.is_empty() && inbox.resolved.is_empty()
        };
        let until = self.cluster.wake().map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = if is_idle { until.unwrap_or(Duration::from_secs(1)) } else { Duration::ZERO };
        let count = self.epoll.wait(timeout)?;
        self.shared.asleep.store(false, Ordering::SeqCst);
        let now = Instant::now();
        for key in std::mem::take(&mut self.unread) {
            self.read(key, now);
        }
        for index in 0..count {
            let event = self.epoll.event(index);
            if event.token == BELL {
                self.shared.call.calm();
                continue;
            }
            let key = (event.token >> 32) as Key;
            let Some(socket) = self.sockets.get_mut(&key).filter(|it| it.generation == event.token as u32) else {
                continue;
            };
            socket.ended |= event.ended;
            if event.writable {
                socket.is_full = false;
                if !socket.is_open {
                    match sys::take_error(&socket.fd) {
                        Ok(()) => {
                            socket.is_open = true;
                            self.cluster.opened(key, socket.generation, now);
                        }
                        Err(error) => {
                            self.cluster.lost(key, event.token as u32, words(&error), now);
                            continue;
                        }
                    }
                }
                self.write(key, now);
            }
            if event.readable {
                self.read(key, now);
            }
        }
        Ok(())
    }

    fn read(&mut self, key: Key, now: Instant) {
        for _ in 0..SLICE {
            let Some(socket) = self.sockets.get_mut(&key).filter(|socket| socket.is_open) else { return };
            let generation = socket.generation;
            let Some(room) = self.cluster.room(key, generation) else { return };
            let asked = room.len();
            match socket.receive(room) {
                Ok(0) => return self.cluster.lost(key, generation, "it closed the connection".to_owned(), now),
                Ok(count) => {
                    self.cluster.received(key, generation, count, now);
                    // A session gives what is in one record, and may have more of them.
                    if count < asked && socket.session.is_none() && !socket.ended {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    return self.cluster.distrust(key, generation, error.to_string(), now);
                }
                Err(error) => return self.cluster.lost(key, generation, words(&error), now),
            }
        }
        self.unread.push(key);
    }

    fn write(&mut self, key: Key, now: Instant) {
        let Some(socket) = self.sockets.get_mut(&key).filter(|socket| socket.is_open) else { return };
        while !socket.is_full {
            let Some((generation, bytes)) = self.cluster.unsent(key).filter(|(it, _)| *it == socket.generation) else {
                return match socket.flush() {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => socket.is_full = true,
                    Err(error) => self.cluster.lost(key, socket.generation, words(&error), now),
                    Ok(()) => {}
                };
            };
            match socket.send(bytes) {
                Ok(count) => self.cluster.wrote(key, generation, count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => socket.is_full = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.cluster.lost(key, generation, words(&error), now),
            }
        }
    }

    /// Until the cluster has no more orders and nothing can be written.
    fn carry_out(&mut self, now: Instant) {
        loop {
            let (orders, dirty) = (self.cluster.take_orders(), self.cluster.take_dirty());
            if orders.is_empty() && dirty.is_empty() {
                return;
            }
            for order in orders {
                match order {
                    Order::Connect(key, generation, address) => self.find(key, generation, address, now),
                    Order::Close(key, generation) => {
                        if self.sockets.get(&key).is_some_and(|socket| socket.generation == generation) {
                            self.sockets.remove(&key);
                        }
                    }
                }
            }
            for key in dirty {
                self.write(key, now);
            }
        }
    }

    /// Connects to an address; a name becomes one first, on a thread that may take its time.
    fn find(&mut self, key: Key, generation: u32, address: Address, now: Instant) {
        if address.is_path() {
            return self.connect(key, generation, &address, &Endpoint::Unix(address.host.clone().into()), now);
        }
        if let Ok(ip) = address.host.parse::<IpAddr>() {
            let endpoint = Endpoint::Tcp(SocketAddr::new(ip, address.port));
            return self.connect(key, generation, &address, &endpoint, now);
        }
        if self.resolving >= RESOLVING {
            return self.cluster.lost(key, generation, "too many names to resolve at once".to_owned(), now);
        }
        let shared = Arc::clone(self.shared);
        let resolve = move || {
            let found = (address.host.as_str(), address.port).to_socket_addrs().and_then(|mut found| {
                found.next().ok_or_else(|| io::Error::new(ErrorKind::NotFound, "the name has no address"))
            });
            lock(&shared.inbox).resolved.push((key, generation, address, found));
            shared.wake();
        };
        match thread::Builder::new().name("vnf-resolve".into()).spawn(resolve) {
            Ok(_) => self.resolving += 1,
            Err(error) => self.cluster.lost(key, generation, error.to_string(), now),
        }
    }

    fn connect(&mut self, key: Key, generation: u32, address: &Address, endpoint: &Endpoint, now: Instant) {
        // It may have been given up while its name was resolved.
        if self.cluster.room(key, generation).is_none() {
            return;
        }
        let session = match self.tls.as_ref().map(|tls| tls.session(&address.host)).transpose() {
            Ok(session) => session,
            Err(why) => return self.cluster.distrust(key, generation, why, now),
        };
        let connected = sys::connect(endpoint).and_then(|(fd, _)| {
            // Whether it is there already, its first event tells.
            self.epoll.add(&fd, token(key, generation))?;
            Ok(fd)
        });
        match connected {
            Ok(fd) => {
                self.sockets
                    .insert(key, Socket { generation, fd, session, is_open: false, is_full: true, ended: false });
            }
            Err(error) => self.cluster.lost(key, generation, words(&error), now),
        }
    }

    fn deliver(&mut self) {
        let counters = Counters { answers_dropped: self.answers_dropped, ..self.cluster.counters };
        *lock(&self.shared.statistics) = (counters, self.cluster.gauges());
        let cluster = &mut self.cluster;
        if cluster.done.is_empty() && cluster.news.is_empty() && cluster.lapsed.is_empty() {
            return;
        }
        let mut outbox = lock(&self.shared.outbox);
        // What is in it already has been rung for.
        let was_empty = outbox.done.is_empty() && outbox.news.is_empty() && outbox.lapsed.is_empty();
        for (id, mut answer) in cluster.done.drain(..) {
            let weight = answer.weight();
            if outbox.bytes + weight > self.shared.queued_bytes && !outbox.done.is_empty() && answer.give_up() {
                self.answers_dropped += 1;
            } else {
                outbox.bytes += weight;
            }
            outbox.done.push((id, answer));
        }
        outbox.news.append(&mut cluster.news);
        outbox.lapsed.append(&mut cluster.lapsed);
        drop(outbox);
        if was_empty {
            self.shared.bell.ring();
        }
    }
}

fn words(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        ErrorKind::ConnectionReset => "connection reset".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::state::operation::{Failure, Octets};

    const DEADLINE: Duration = Duration::from_secs(30);

    fn client(address: Address) -> Client {
        let settings = Settings { seeds: vec![address], timeout: Duration::from_millis(500), ..Settings::default() };
        let client = Client::start(settings, 1).unwrap();
        client.add_table(Table::new("vnf", "t", 1, false).unwrap());
        client
    }

    fn read() -> Request {
        Request::Read { table: 0, keys: [&b"k"[..]].into_iter().collect::<Octets>() }
    }

    /// What is drained until `enough`, each time.
    fn until(client: &Client, mut enough: impl FnMut(&Drained) -> bool) {
        let began = Instant::now();
        loop {
            let drained = client.drain();
            if enough(&drained) {
                return;
            }
            assert!(began.elapsed() < DEADLINE, "not within {DEADLINE:?}");
            sys::sleep_on(client.wake_fd(), Duration::from_millis(100));
        }
    }

    /// Why the read failed.
    fn failure(client: &Client) -> String {
        let mut why = None;
        until(client, |drained| {
            for (_, answer) in &drained.done {
                if let Answer::Values(values) = answer
                    && let [Err(Failure::Unavailable(text))] = &values[..]
                {
                    why = Some(text.clone());
                }
            }
            why.is_some()
        });
        why.unwrap()
    }

    fn peer() -> (TcpListener, Address) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, Address::new("127.0.0.1", port))
    }

    #[test]
    fn a_peer_that_talks_nonsense_is_told_as_what_it_is() {
        let (listener, address) = peer();
        let client = client(address);
        client.submit(1, read()).unwrap();
        // As often as it comes, until it is gone.
        let nonsense = thread::spawn(move || {
            listener.incoming().take(4).for_each(|it| drop(it.and_then(|mut it| it.write_all(b"220 smtp ready\r\n"))));
        });
        failure(&client);
        assert!(client.statistics().iter().any(|(name, value)| *name == "garbage" && *value > 0));
        nonsense.join().unwrap();
    }

    #[test]
    fn a_peer_that_takes_everything_and_says_nothing_costs_no_more_than_time() {
        let (listener, address) = peer();
        let client = client(address);
        client.submit(1, read()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        assert!(peer.read(&mut [0; 1000]).unwrap() > 0);
        failure(&client);
    }

    #[test]
    fn an_end_that_comes_together_with_data_is_seen_with_it() {
        let path = std::env::temp_dir().join(format!("vnf-client-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let settings = Settings { seeds: vec![Address::new(path.to_str().unwrap(), 0)], ..Settings::default() };
        let shared = Arc::new(Shared::new(&settings).unwrap());
        let mut thread = Thread::new(settings, 1, Epoll::new().unwrap(), &shared);
        thread.turn().unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        fs::remove_file(&path).unwrap();
        thread.turn().unwrap();
        assert!(peer.read(&mut [0; 1 << 16]).unwrap() > 0, "the greeting");
        peer.write_all(b"+OK\r\n").unwrap();
        drop(peer);
        assert_eq!(thread.sockets.len(), 1);
        thread.turn().unwrap();
        assert!(thread.sockets.is_empty());
    }

    #[test]
    fn a_name_without_an_address_is_told() {
        let client = client(Address::new("no-such-name.invalid", 6379));
        client.submit(1, read()).unwrap();
        assert!(!failure(&client).is_empty());
    }

    #[test]
    fn a_name_is_resolved() {
        let (listener, address) = peer();
        let _client = client(Address { host: "localhost".to_owned(), ..address });
        let (mut peer, _) = listener.accept().unwrap();
        let mut hello = [0; 8];
        peer.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"*2\r\n$5\r\n");
    }

    #[test]
    fn closing_ends_the_thread_and_says_so() {
        let client = client(Address::new("127.0.0.1", 1));
        client.close();
        assert_eq!(client.drain().ended, Some(None));
        assert_eq!(client.submit(1, read()), Err(Refused::Closed));
    }

    #[test]
    fn a_panic_ends_the_thread_and_is_told() {
        let client = client(Address::new("127.0.0.1", 1));
        // Indexes beyond its payloads: the binding refuses such a batch.
        let keys: Octets = [&b"k"[..]].into_iter().collect();
        let writes = Box::new(super::super::operation::Writes { keys, ..Default::default() });
        client.submit(1, Request::Write { table: 0, writes }).unwrap();
        let mut why = None;
        until(&client, |drained| {
            why = drained.ended.clone();
            why.is_some()
        });
        assert_eq!(why, Some(Some("the store's thread panicked".to_owned())));
        assert_eq!(client.submit(2, read()), Err(Refused::Closed));
    }
}
