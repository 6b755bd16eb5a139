//! What runs on the client's thread: it sleeps in epoll, moves bytes between sockets and the cluster's state machine, and
//! carries out what that orders.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;

use super::*;
use crate::load::Endpoint;
use crate::load::sys;
use crate::state::cluster::{Cluster, Order};
use crate::state::tls::{Session, Tls};

/// Read from one connection before the others get their turn.
const SLICE: usize = 16;
/// Names that are being resolved at once: each is a thread for that long.
const RESOLVING: usize = 8;

pub(super) struct Socket {
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

pub(super) struct Thread<'a> {
    tls: Option<Tls>,
    shared: &'a Arc<Shared>,
    cluster: Cluster,
    epoll: Epoll,
    pub(super) sockets: HashMap<Key, Socket>,
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
    pub(super) fn new(settings: Settings, random: u32, epoll: Epoll, shared: &'a Arc<Shared>) -> Self {
        let tls = settings.tls.clone();
        let cluster = Cluster::new(settings, random, Instant::now());
        let sockets = HashMap::new();
        Self { tls, shared, cluster, epoll, sockets, unread: Vec::new(), resolving: 0, answers_dropped: 0 }
    }

    pub(super) fn run(mut self) -> io::Result<()> {
        while !self.shared.closing.load(Ordering::SeqCst) {
            self.turn()?;
        }
        Ok(())
    }

    pub(super) fn turn(&mut self) -> io::Result<()> {
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
        match Builder::new().name("vnf-resolve".into()).spawn(resolve) {
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
