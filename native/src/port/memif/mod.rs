//! memif: Ethernet frames through shared memory. Both roles, against a peer that may do anything.
//!
//! From the bottom up: [`control`] (messages), [`region`] and [`ring`] (shared memory), [`handshake`] (the control
//! channel's state machines), [`kick`] (waking the peer), `socket` (the control channel's descriptors), `door` (the
//! interfaces of one socket), `half_open` (a connection until its handshake is done), [`traffic`], [`receiver`] and
//! [`sender`] (frames), `spread` (frames to queues), `peer` (a connection afterwards), and here the port that owns them. A
//! peer's mistake ends its connection with a reason, never the port: a server then waits for the next client, a client
//! connects again, for ever.

mod config;
pub mod control;
mod door;
mod half_open;
pub mod handshake;
pub mod kick;
mod peer;
pub mod receiver;
pub mod region;
pub mod ring;
pub mod sender;
mod socket;
mod spread;
pub mod traffic;

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

pub use self::config::{MemifConfig, Role};
use self::control::Message;
use self::door::Place;
use self::half_open::{HalfOpen, Machine, Progress};
use self::handshake::{End, MAX_QUEUES};
use self::kick::Kicker;
use self::peer::Peer;
use self::sender::Outcome;
use self::socket::{Control, Incoming};
use self::traffic::Counters;
use super::lent::{Burst, Lent};
use super::waiting::Epoll;
use super::{HEADER_BYTES, Link, Port, Sent};

/// From accepting or connecting to CONNECTED.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// Connections of a server whose handshake is under way.
pub const MAX_HALF_OPEN: usize = 8;
/// Messages of one connection handled per call of `service`; what is left keeps `wake_fd` readable.
const MESSAGES_PER_SERVICE: usize = 16;
/// Tokens in the epoll set; connections count up from `FIRST_CONNECTION`.
const LISTENER: u64 = 0;
const RECEIVE_RING: u64 = 1;
const BELL: u64 = 2;
const FIRST_CONNECTION: u64 = 3;

pub struct Memif {
    config: MemifConfig,
    epoll: Epoll,
    /// Of a server.
    place: Option<Place>,
    half_open: Vec<HalfOpen>,
    peer: Option<Peer>,
    next_token: u64,
    /// When a server that could not accept tries again.
    accept_at: Option<Instant>,
    /// When a client tries again, and how long it waits after the next failure.
    retry_at: Option<Instant>,
    retry_after: Duration,
    down: String,
    armed: bool,
    generation: u64,
    kicker: Kicker,
    counters: Counters,
}

impl Memif {
    /// Listens at once, as a server; a client connects with the first call of `service`.
    pub fn new(config: MemifConfig) -> io::Result<Self> {
        let named = |text: String| format!("memif {:?}: {text}", config.name);
        config.validate().map_err(|text| io::Error::new(io::ErrorKind::InvalidInput, named(text)))?;
        let epoll = Epoll::new()?;
        let path = config.path.display();
        let (place, down) = match config.role {
            Role::Server => {
                let most_queues = if config.queues == 1 { MAX_QUEUES } else { config.queues };
                let place = Place::take(&config.path, config.id, most_queues)
                    .map_err(|error| io::Error::new(error.kind(), named(error.to_string())))?;
                epoll.add(&place.listener(), LISTENER, true)?;
                epoll.add_for_news(place.bell(), BELL)?;
                (Some(place), format!("waiting for a client on {path}"))
            }
            Role::Client => (None, format!("connecting to {path}")),
        };
        let retry_at = (config.role == Role::Client).then(Instant::now);
        Ok(Self {
            config,
            epoll,
            place,
            half_open: Vec::new(),
            peer: None,
            next_token: FIRST_CONNECTION,
            accept_at: None,
            retry_at,
            retry_after: FIRST_RETRY,
            down,
            armed: false,
            generation: 0,
            kicker: Kicker::default(),
            counters: Counters::default(),
        })
    }

    fn max_frame(&self) -> usize {
        self.config.mtu + HEADER_BYTES
    }

    /// Its token, unless it cannot be watched.
    fn open(&mut self, control: Control, machine: Machine, now: Instant) -> Option<u64> {
        let token = self.next_token;
        self.next_token += 1;
        if let Err(error) = self.epoll.add(&control.as_fd(), token, true) {
            self.failed(&format!("cannot watch the control socket: {error}"), now);
            return None;
        }
        let (deadline, layout) = (now + HANDSHAKE_TIMEOUT, self.config.layout());
        self.half_open.push(HalfOpen::new(token, control, machine, deadline, layout));
        Some(token)
    }

    /// A server's half of a handshake; none, and the client told why, where there are too many.
    fn receive_client(&mut self, control: &Control) -> Option<handshake::Server> {
        if self.half_open.len() >= MAX_HALF_OPEN {
            self.counters.handshakes_crowded += 1;
            drop(control.send(&Message::disconnect("Too many handshakes under way"), None));
            return None;
        }
        let MemifConfig { id, name, .. } = &self.config;
        let most_queues = self.place.as_ref().map_or(1, Place::most_queues);
        Some(handshake::Server::new(*id, self.config.padded_secret(), name, most_queues))
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..MESSAGES_PER_SERVICE {
            let Some(place) = &self.place else { return };
            let control = match place.accept() {
                Ok(Some(control)) => control,
                Ok(None) => return,
                // The socket stays readable: it is left alone for a while, or there would be no sleep any more.
                Err(error) => {
                    drop(self.epoll.want(&place.listener(), LISTENER, false));
                    self.accept_at = Some(now + LAST_RETRY);
                    return self.failed(&format!("cannot accept a client: {error}"), now);
                }
            };
            // A failure shows as the end of the connection.
            if let Some(machine) = self.receive_client(&control)
                && control.send(&machine.hello(), None).is_ok()
            {
                self.open(control, Machine::Server(machine), now);
            }
        }
    }

    /// Takes clients over that another port has greeted, and goes on with the INIT they sent to that.
    fn take_over(&mut self, now: Instant) {
        for (control, init) in self.place.as_ref().map(Place::visitors).unwrap_or_default() {
            if let Some(machine) = self.receive_client(&control)
                && let Some(token) = self.open(control, Machine::Server(machine), now)
            {
                self.advance(token, Some(init), now);
            }
        }
    }

    fn connect(&mut self, now: Instant) {
        self.retry_at = None;
        match Control::connect(&self.config.path) {
            Ok(control) => {
                let MemifConfig { id, name, .. } = &self.config;
                let machine = handshake::Client::new(*id, self.config.padded_secret(), name, self.config.layout());
                self.open(control, Machine::Client(machine), now);
            }
            Err(error) => self.failed(&format!("cannot connect to {}: {error}", self.config.path.display()), now),
        }
    }

    /// No connection came of it: remember why, and when to try again.
    fn failed(&mut self, reason: &str, now: Instant) {
        if self.peer.is_none() {
            reason.clone_into(&mut self.down);
        }
        if self.config.role == Role::Client {
            self.retry_at = Some(now + self.retry_after);
            self.retry_after = (self.retry_after * 2).min(LAST_RETRY);
        }
    }

    /// Handles what a half-open connection has sent, after what it has sent to another port.
    fn advance(&mut self, token: u64, mut before: Option<Message>, now: Instant) {
        let Some(place) = self.half_open.iter().position(|half| half.token == token) else { return };
        let taken = self.peer.is_some() || self.half_open.iter().any(|half| half.claimed && half.token != token);
        let mut half = self.half_open.swap_remove(place);
        for _ in 0..MESSAGES_PER_SERVICE {
            let mut progress = match before.take() {
                Some(message) => half.handle(&message, Vec::new(), taken, &self.config),
                None => half.proceed(taken, &self.config),
            };
            if let Progress::Elsewhere { id, message } = progress {
                if self.place.as_ref().is_some_and(|place| place.knows(id)) {
                    return self.pass_on(half, id, message);
                }
                progress = half.handle(&message, Vec::new(), taken, &self.config);
            }
            match progress {
                Progress::Moves => {}
                Progress::Connected => return self.promote(half, now),
                Progress::Ended(end) => {
                    self.counters.handshakes_refused += 1;
                    return self.abandon(half, end, now);
                }
                Progress::Waits | Progress::Elsewhere { .. } => break,
            }
        }
        self.half_open.push(half);
    }

    fn pass_on(&mut self, half: HalfOpen, id: u32, message: Message) {
        self.epoll.remove(&half.control.as_fd());
        let given = self.place.as_ref().map(|place| place.hand_over(id, half.control, message));
        if let Some(Err(control)) = given {
            self.counters.handshakes_crowded += 1;
            drop(control.send(&Message::disconnect("Too many handshakes under way"), None));
        }
    }

    fn abandon(&mut self, half: HalfOpen, end: End, now: Instant) {
        let reason = match end {
            End::ByPeer(reason) => reason,
            End::Refused(reason) => {
                drop(half.control.send(&Message::disconnect(&reason), None));
                format!("refused: {reason}")
            }
        };
        self.epoll.remove(&half.control.as_fd());
        drop(half);
        self.failed(&reason, now);
    }

    /// The handshake is done: frames may flow.
    fn promote(&mut self, half: HalfOpen, now: Instant) {
        let connected = match &half.machine {
            Machine::Server(machine) => Some(machine.connected()),
            Machine::Client(_) => None,
        };
        let peer = Peer::new(half, self.max_frame(), self.armed);
        let watched = connected
            .map_or(Ok(()), |message| peer.control.send(&message, None))
            .and_then(|()| peer.receive_eventfds.iter().try_for_each(|fd| self.epoll.add_for_news(fd, RECEIVE_RING)));
        if let Err(error) = watched {
            self.forget(&peer);
            return self.failed(&format!("cannot begin: {error}"), now);
        }
        self.peer = Some(peer);
        self.generation += 1;
        self.counters.connects += 1;
        self.retry_after = FIRST_RETRY;
    }

    fn forget(&mut self, peer: &Peer) {
        self.epoll.remove(&peer.control.as_fd());
        peer.receive_eventfds.iter().for_each(|fd| self.epoll.remove(fd));
        self.kicker.forget_peer();
    }

    /// The control socket of a connected peer is readable.
    fn hear(&mut self, now: Instant) {
        let Some(peer) = &self.peer else { return };
        match peer.control.receive() {
            Incoming::Nothing => {}
            Incoming::Closed => self.hang_up(End::ByPeer("peer closed the connection".into()), now),
            Incoming::Garbage(reason) => self.hang_up(End::Refused(reason), now),
            Incoming::Message(Message::Disconnect { reason, .. }, _) => {
                self.hang_up(End::ByPeer(format!("peer: {reason}")), now);
            }
            Incoming::Message(other, _) => {
                self.hang_up(End::Refused(format!("{} while connected", other.kind())), now);
            }
        }
    }

    fn hang_up(&mut self, end: End, now: Instant) {
        let Some(peer) = self.peer.take() else { return };
        self.counters.disconnects += 1;
        self.counters.tx_lost += peer.queued();
        let reason = match end {
            End::ByPeer(reason) => reason,
            End::Refused(reason) => {
                self.counters.violations += 1;
                drop(peer.control.send(&Message::disconnect(&reason), None));
                format!("refused: {reason}")
            }
        };
        self.forget(&peer);
        drop(peer);
        self.failed(&reason, now);
    }

    fn expire(&mut self, now: Instant) {
        while let Some(place) = self.half_open.iter().position(|half| half.deadline <= now) {
            let half = self.half_open.swap_remove(place);
            self.counters.handshakes_timed_out += 1;
            let limit = HANDSHAKE_TIMEOUT.as_secs();
            self.abandon(half, End::Refused(format!("Handshake not finished within {limit} s")), now);
        }
    }
}

impl Memif {
    /// For each number of parts of its own.
    fn queue<'a>(&mut self, parts: impl AsRef<[Lent<'a>]>) -> Sent {
        let parts = parts.as_ref();
        let Some(peer) = &mut self.peer else {
            self.counters.tx_down += 1;
            return Sent::Down;
        };
        let total = parts.iter().map(|part| part.len()).sum();
        if total == 0 || total > self.config.mtu + HEADER_BYTES {
            self.counters.tx_too_long += 1;
            return Sent::TooLong;
        }
        match peer.send(parts, total) {
            Ok(Outcome::Queued) => Sent::Queued,
            Ok(Outcome::Full) => {
                self.counters.tx_full += 1;
                Sent::Full
            }
            Ok(Outcome::TooLong) => {
                self.counters.tx_too_long += 1;
                Sent::TooLong
            }
            Err(reason) => {
                self.hang_up(End::Refused(reason), Instant::now());
                self.counters.tx_down += 1;
                Sent::Down
            }
        }
    }
}

impl Port for Memif {
    fn link(&self) -> Link {
        if self.peer.is_some() { Link::Up } else { Link::Down(self.down.clone()) }
    }

    fn peer(&self) -> Option<String> {
        self.peer.as_ref().map(Peer::describe)
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn wake_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn service(&mut self, now: Instant) {
        let ready: Vec<u64> = self.epoll.ready().map(|ready| ready.token).collect();
        // The connected peer first: whoever replaces a dead one must find the interface free.
        if self.peer.as_ref().is_some_and(|peer| ready.contains(&peer.token)) {
            self.hear(now);
        }
        for token in ready.iter().copied().filter(|token| *token >= FIRST_CONNECTION) {
            self.advance(token, None, now);
        }
        if ready.contains(&BELL) {
            self.take_over(now);
        }
        if ready.contains(&LISTENER) {
            self.accept(now);
        }
        if self.accept_at.is_some_and(|at| at <= now)
            && let Some(place) = &self.place
        {
            self.accept_at = None;
            // It was added, so it can be changed.
            drop(self.epoll.want(&place.listener(), LISTENER, true));
        }
        self.expire(now);
        if self.retry_at.is_some_and(|at| at <= now) {
            self.connect(now);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.half_open.iter().map(|half| half.deadline).chain(self.retry_at).chain(self.accept_at).min()
    }

    fn lend(&mut self, max: usize) -> Burst<'_> {
        let Some(peer) = &mut self.peer else { return Burst::EMPTY };
        if let Err(reason) = peer.choose(max) {
            self.hang_up(End::Refused(reason), Instant::now());
            return Burst::EMPTY;
        }
        self.peer.as_mut().map_or(Burst::EMPTY, |peer| peer.lend(max, &mut self.counters))
    }

    fn give_back(&mut self, dropped: usize) {
        if let Some(peer) = &mut self.peer {
            peer.give_back();
        }
        self.counters.rx_frames -= dropped as u64;
        self.counters.rx_pool_dry += dropped as u64;
    }

    fn send(&mut self, parts: &[&[u8]]) -> Sent {
        match *parts {
            [one] => self.queue([Lent::of(one)]),
            [one, two] => self.queue([Lent::of(one), Lent::of(two)]),
            _ => self.queue(parts.iter().map(|part| Lent::of(part)).collect::<Vec<_>>()),
        }
    }

    fn send_lent(&mut self, head: &[u8], rest: Lent<'_>) -> Sent {
        match (head.is_empty(), rest.is_empty()) {
            (_, true) => self.queue([Lent::of(head)]),
            (true, false) => self.queue([rest]),
            (false, false) => self.queue([Lent::of(head), rest]),
        }
    }

    fn room(&mut self) -> usize {
        let Some(peer) = &mut self.peer else { return usize::MAX };
        peer.free().unwrap_or_else(|reason| {
            self.hang_up(End::Refused(reason), Instant::now());
            usize::MAX
        })
    }

    fn expect(&mut self, count: usize, len: usize) {
        if let Some(peer) = &mut self.peer {
            peer.expect(count, len);
        }
    }

    fn flush(&mut self) {
        let Some(peer) = &mut self.peer else { return };
        peer.flush(&mut self.counters, |eventfd, counters| {
            if self.kicker.kick(eventfd) {
                counters.kicks += 1;
            } else {
                counters.kicks_failed += 1;
            }
        });
    }

    fn hand_over(&mut self) {
        // A kick now spares a sleeping peer the wait for `flush`, which then finds it awake.
        if self.peer.as_ref().is_some_and(Peer::hand_over) {
            self.flush();
        }
    }

    fn arm(&mut self) -> bool {
        self.armed = self.peer.as_ref().is_none_or(Peer::arm);
        if !self.armed {
            self.disarm();
        }
        self.armed
    }

    fn disarm(&mut self) {
        self.armed = false;
        if let Some(peer) = &self.peer {
            peer.disarm();
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.counters.list()
    }
}

impl Drop for Memif {
    fn drop(&mut self) {
        let farewell = Message::disconnect("Interface closed");
        for control in
            self.half_open.iter().map(|half| &half.control).chain(self.peer.as_ref().map(|peer| &peer.control))
        {
            drop(control.send(&farewell, None));
        }
    }
}
