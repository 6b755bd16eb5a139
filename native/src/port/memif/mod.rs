//! memif: Ethernet frames through shared memory. Both roles, against a peer that may do anything.
//!
//! From the bottom up: [`control`] (messages), [`region`] and [`ring`] (shared memory), [`handshake`] (the control
//! channel's state machines), [`kick`] (waking the peer), `socket` (the control channel's descriptors), [`traffic`],
//! [`receiver`] and [`sender`] (frames), and here the port that owns them. A peer's mistake ends its connection with a reason, never the port: a
//! server then waits for the next client, a client connects again, for ever.

pub mod control;
pub mod handshake;
pub mod kick;
pub mod receiver;
pub mod region;
pub mod ring;
pub mod sender;
mod socket;
pub mod traffic;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::control::{Message, SECRET_BYTES};
use self::handshake::{Attach, Effect, End, Step};
use self::kick::Kicker;
use self::receiver::Receiver;
use self::region::{Region, prove_eventfd};
use self::ring::{COOKIE, Layout, MAX_LOG2_SLOTS, Ring};
use self::sender::{Outcome, Sender};
use self::socket::{Control, Epoll, Incoming, Listener};
use self::traffic::Counters;
use super::lent::{Burst, Lent};
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
const FIRST_CONNECTION: u64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Listens and maps what the client shares ("master").
    Server,
    /// Connects and shares its memory ("slave").
    Client,
}

#[derive(Clone, PartialEq, Eq)]
pub struct MemifConfig {
    pub name: String,
    /// A socket file (mode 0600), or an abstract name beginning with '@', which every process of the network namespace
    /// can reach: give that one a secret.
    pub path: PathBuf,
    pub role: Role,
    /// The interface behind the socket.
    pub id: u32,
    /// At most 24 bytes, none of them 0.
    pub secret: Option<Vec<u8>>,
    /// Per ring, of a client; a power of two.
    pub ring_slots: u32,
    /// Per slot, of a client.
    pub buffer_bytes: u32,
    /// Rings in each direction, of a client; a server takes as many as its client brings, up to this if more than one.
    pub queues: u16,
    /// The largest IP packet.
    pub mtu: usize,
    /// What a client may make us map, or we share as one.
    pub max_region_bytes_total: usize,
}

impl MemifConfig {
    pub fn new(name: &str, path: impl Into<PathBuf>, role: Role) -> Self {
        Self {
            name: name.into(),
            path: path.into(),
            role,
            id: 0,
            secret: None,
            ring_slots: 1024,
            buffer_bytes: 2048,
            queues: 1,
            mtu: 1500,
            max_region_bytes_total: 256 << 20,
        }
    }

    fn layout(&self) -> Layout {
        Layout { log2_slots: self.ring_slots.trailing_zeros() as u8, buffer_bytes: self.buffer_bytes }
    }

    fn padded_secret(&self) -> Option<[u8; SECRET_BYTES]> {
        self.secret.as_ref().map(|secret| {
            let mut padded = [0; SECRET_BYTES];
            padded[..secret.len()].copy_from_slice(secret);
            padded
        })
    }

    fn validate(&self) -> Result<(), String> {
        let most_slots = 1 << MAX_LOG2_SLOTS;
        if !self.ring_slots.is_power_of_two() || !(2..=most_slots).contains(&self.ring_slots) {
            return Err(format!("ring_slots is {}, a power of two from 2 to {most_slots} wanted", self.ring_slots));
        }
        if !(64..=65_536).contains(&self.buffer_bytes) {
            return Err(format!("buffer_bytes is {}, 64 to 65536 wanted", self.buffer_bytes));
        }
        if !(68..=65_535).contains(&self.mtu) {
            return Err(format!("mtu is {}, 68 to 65535 wanted", self.mtu));
        }
        if let Some(secret) = &self.secret
            && (secret.is_empty() || secret.len() > SECRET_BYTES || secret.contains(&0))
        {
            return Err(format!("secret has {} bytes, 1 to {SECRET_BYTES} without NUL wanted", secret.len()));
        }
        let (bytes, most) = (self.layout().region_bytes(), self.max_region_bytes_total);
        if self.role == Role::Client && bytes > most as u64 {
            return Err(format!("ring_slots × buffer_bytes need {bytes} bytes, max_region_bytes_total allows {most}"));
        }
        if self.role == Role::Client && bytes > u64::from(u32::MAX) {
            return Err(format!("ring_slots × buffer_bytes need {bytes} bytes, less than 4 GiB wanted"));
        }
        Ok(())
    }
}

enum Machine {
    Server(handshake::Server),
    Client(handshake::Client),
}

/// A ring with its eventfd.
type Wired = (Ring, Arc<OwnedFd>);

/// A connection whose handshake is under way, with what it has brought along so far.
struct HalfOpen {
    token: u64,
    control: Control,
    machine: Machine,
    deadline: Instant,
    /// It passed INIT: the interface is reserved for it.
    claimed: bool,
    regions: Vec<Arc<Region>>,
    region_bytes: usize,
    layout: Layout,
    /// Client to server, server to client.
    rings: [Option<Wired>; 2],
}

/// A connected peer.
struct Peer {
    token: u64,
    control: Control,
    receiver: Receiver,
    sender: Sender,
    receive_eventfd: Arc<OwnedFd>,
    send_eventfd: Arc<OwnedFd>,
}

enum Progress {
    /// Nothing more to read now.
    Waits,
    /// A message was handled.
    Moves,
    Connected,
    Ended(End),
}

pub struct Memif {
    config: MemifConfig,
    epoll: Epoll,
    listener: Option<Listener>,
    half_open: Vec<HalfOpen>,
    peer: Option<Peer>,
    next_token: u64,
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
        let (listener, down) = match config.role {
            Role::Server => {
                let listener = Listener::bind(&config.path)
                    .map_err(|error| io::Error::new(error.kind(), named(error.to_string())))?;
                epoll.add(listener.as_fd(), LISTENER, false)?;
                (Some(listener), format!("waiting for a client on {path}"))
            }
            Role::Client => (None, format!("connecting to {path}")),
        };
        let retry_at = (config.role == Role::Client).then(Instant::now);
        Ok(Self {
            config,
            epoll,
            listener,
            half_open: Vec::new(),
            peer: None,
            next_token: FIRST_CONNECTION,
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

    fn open(&mut self, control: Control, machine: Machine, now: Instant) {
        let token = self.next_token;
        self.next_token += 1;
        if let Err(error) = self.epoll.add(control.as_fd(), token, false) {
            self.failed(&format!("cannot watch the control socket: {error}"), now);
            return;
        }
        self.half_open.push(HalfOpen {
            token,
            control,
            machine,
            deadline: now + HANDSHAKE_TIMEOUT,
            claimed: false,
            regions: Vec::new(),
            region_bytes: 0,
            layout: self.config.layout(),
            rings: [None, None],
        });
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..MESSAGES_PER_SERVICE {
            let Some(control) = self.listener.as_ref().and_then(Listener::accept) else { return };
            if self.half_open.len() >= MAX_HALF_OPEN {
                self.counters.handshakes_crowded += 1;
                drop(control.send(&Message::disconnect("Too many handshakes under way"), None));
                continue;
            }
            let MemifConfig { id, name, .. } = &self.config;
            let machine = handshake::Server::new(*id, self.config.padded_secret(), name);
            // A failure shows as the end of the connection.
            if control.send(&machine.hello(), None).is_ok() {
                self.open(control, Machine::Server(machine), now);
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

    /// Handles what a half-open connection has sent.
    fn advance(&mut self, token: u64, now: Instant) {
        let Some(place) = self.half_open.iter().position(|half| half.token == token) else { return };
        let taken = self.peer.is_some() || self.half_open.iter().any(|half| half.claimed && half.token != token);
        let mut half = self.half_open.swap_remove(place);
        for _ in 0..MESSAGES_PER_SERVICE {
            match half.proceed(taken, &self.config) {
                Progress::Moves => {}
                Progress::Waits => break,
                Progress::Connected => return self.promote(half, now),
                Progress::Ended(end) => {
                    self.counters.handshakes_refused += 1;
                    return self.abandon(half, end, now);
                }
            }
        }
        self.half_open.push(half);
    }

    fn abandon(&mut self, half: HalfOpen, end: End, now: Instant) {
        let reason = match end {
            End::ByPeer(reason) => reason,
            End::Refused(reason) => {
                drop(half.control.send(&Message::disconnect(&reason), None));
                format!("refused: {reason}")
            }
        };
        self.epoll.remove(half.control.as_fd());
        drop(half);
        self.failed(&reason, now);
    }

    /// The handshake is done: frames may flow.
    fn promote(&mut self, half: HalfOpen, now: Instant) {
        let max_frame = self.max_frame();
        let HalfOpen { token, control, machine, regions, layout, rings: [Some(c2s), Some(s2c)], .. } = half else {
            return;
        };
        let ((receive, receive_eventfd), (send, send_eventfd)) =
            if matches!(machine, Machine::Server(_)) { (c2s, s2c) } else { (s2c, c2s) };
        receive.set_wants_kick(self.armed);
        let (receiver, sender) = match (&machine, regions.first()) {
            (Machine::Client(_), Some(region)) => (
                Receiver::of_client(receive, region.clone(), layout, max_frame),
                Sender::of_client(send, region.clone(), layout),
            ),
            _ => (Receiver::of_server(receive, regions.clone(), max_frame), Sender::of_server(send, regions)),
        };
        let peer = Peer { token, control, receiver, sender, receive_eventfd, send_eventfd };
        if let Machine::Server(machine) = machine
            && let Err(error) = peer.control.send(&machine.connected(), None)
        {
            self.epoll.remove(peer.control.as_fd());
            return self.failed(&format!("control socket: {error}"), now);
        }
        if let Err(error) = self.epoll.add(peer.receive_eventfd.as_fd(), RECEIVE_RING, true) {
            self.epoll.remove(peer.control.as_fd());
            return self.failed(&format!("cannot watch the receive ring: {error}"), now);
        }
        self.peer = Some(peer);
        self.generation += 1;
        self.counters.connects += 1;
        self.retry_after = FIRST_RETRY;
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
        self.counters.tx_lost += peer.sender.queued();
        let reason = match end {
            End::ByPeer(reason) => reason,
            End::Refused(reason) => {
                self.counters.violations += 1;
                drop(peer.control.send(&Message::disconnect(&reason), None));
                format!("refused: {reason}")
            }
        };
        self.epoll.remove(peer.control.as_fd());
        self.epoll.remove(peer.receive_eventfd.as_fd());
        self.kicker.forget_peer();
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

impl HalfOpen {
    /// Reads one message, performs what it asks for and answers.
    fn proceed(&mut self, taken: bool, config: &MemifConfig) -> Progress {
        let (message, descriptors) = match self.control.receive() {
            Incoming::Nothing => return Progress::Waits,
            Incoming::Closed => return Progress::Ended(End::ByPeer("peer closed the connection".into())),
            Incoming::Garbage(reason) => return Progress::Ended(End::Refused(reason)),
            Incoming::Message(message, descriptors) => (message, descriptors),
        };
        let step = match &mut self.machine {
            Machine::Server(server) => server.handle(&message, descriptors.len(), taken),
            Machine::Client(client) => client.handle(&message, descriptors.len()),
        };
        let done = step.and_then(|step| {
            self.perform(step.effect, descriptors.into_iter().next(), config).map_err(End::Refused)?;
            Ok(step)
        });
        match done {
            Err(end) => Progress::Ended(end),
            // A server's CONNECTED goes out once everything is in place.
            Ok(Step { effect: Effect::Connected { .. }, .. }) => Progress::Connected,
            Ok(Step { reply: Some(reply), attach, .. }) => match self.control.send(&reply, self.attached(attach)) {
                Ok(()) => Progress::Moves,
                Err(error) => Progress::Ended(End::ByPeer(format!("control socket: {error}"))),
            },
            Ok(Step { reply: None, .. }) => Progress::Moves,
        }
    }

    fn attached(&self, attach: Attach) -> Option<BorrowedFd<'_>> {
        match attach {
            Attach::Nothing => None,
            Attach::Region => self.regions.first().map(|region| region.as_fd()),
            Attach::Eventfd { client_to_server } => {
                self.rings[usize::from(!client_to_server)].as_ref().map(|(_, eventfd)| eventfd.as_fd())
            }
        }
    }

    fn perform(&mut self, effect: Effect, descriptor: Option<OwnedFd>, config: &MemifConfig) -> Result<(), String> {
        match (effect, descriptor) {
            (Effect::Claim, _) => self.claimed = true,
            (Effect::MapRegion { bytes }, Some(memfd)) => {
                let most = config.max_region_bytes_total;
                let sum = usize::try_from(bytes).ok().and_then(|bytes| self.region_bytes.checked_add(bytes));
                let Some(sum) = sum.filter(|sum| *sum <= most) else {
                    return Err(format!("region of {bytes} bytes beside {}: at most {most}", self.region_bytes));
                };
                self.regions.push(Arc::new(Region::from_peer(memfd, bytes)?));
                self.region_bytes = sum;
            }
            (Effect::AddRing(ring), Some(eventfd)) => {
                let region = self.regions.get(usize::from(ring.region)).ok_or("ring in an unknown region")?;
                let wired = (Ring::new(region, ring.offset, ring.log2_slots)?, Arc::new(prove_eventfd(eventfd)?));
                self.rings[usize::from(!ring.client_to_server)] = Some(wired);
            }
            (Effect::CreateRegion(layout), _) => {
                let text = |error: io::Error| format!("cannot share memory: {error}");
                let region = Arc::new(Region::create(c"memif", layout.region_bytes() as usize).map_err(text)?);
                for client_to_server in [true, false] {
                    let ring = Ring::new(&region, layout.ring_offset(client_to_server), layout.log2_slots)?;
                    ring.initialise();
                    let eventfd = kick::eventfd().map_err(text)?;
                    self.rings[usize::from(!client_to_server)] = Some((ring, Arc::new(eventfd)));
                }
                self.regions.push(region);
                self.layout = layout;
            }
            (Effect::Connected { .. }, _) => {
                for (ring, _) in self.rings.iter().flatten() {
                    let cookie = ring.cookie();
                    if cookie != COOKIE {
                        return Err(format!("ring cookie {cookie:#x}, {COOKIE:#x} wanted"));
                    }
                }
            }
            (Effect::Nothing, _) => {}
            (Effect::MapRegion { .. } | Effect::AddRing(_), None) => return Err("a descriptor is missing".into()),
        }
        Ok(())
    }
}

impl Memif {
    fn queue(&mut self, parts: &[Lent<'_>]) -> Sent {
        let Some(peer) = &mut self.peer else {
            self.counters.tx_down += 1;
            return Sent::Down;
        };
        let total = parts.iter().map(|part| part.len()).sum();
        if total == 0 || total > self.config.mtu + HEADER_BYTES {
            self.counters.tx_too_long += 1;
            return Sent::TooLong;
        }
        match peer.sender.send(parts, total) {
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

    fn kick(&mut self) {
        let Some(peer) = &self.peer else { return };
        if self.kicker.kick(&peer.send_eventfd) {
            self.counters.kicks += 1;
        } else {
            self.counters.kicks_failed += 1;
        }
    }
}

impl Port for Memif {
    fn link(&self) -> Link {
        if self.peer.is_some() { Link::Up } else { Link::Down(self.down.clone()) }
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn wake_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn service(&mut self, now: Instant) {
        let ready = self.epoll.ready();
        // The connected peer first: whoever replaces a dead one must find the interface free.
        if self.peer.as_ref().is_some_and(|peer| ready.contains(&peer.token)) {
            self.hear(now);
        }
        for token in ready.iter().copied().filter(|token| *token >= FIRST_CONNECTION) {
            self.advance(token, now);
        }
        if ready.contains(&LISTENER) {
            self.accept(now);
        }
        self.expire(now);
        if self.retry_at.is_some_and(|at| at <= now) {
            self.connect(now);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.half_open.iter().map(|half| half.deadline).chain(self.retry_at).min()
    }

    fn lend(&mut self, max: usize) -> Burst<'_> {
        let Some(peer) = &mut self.peer else { return Burst::EMPTY };
        if let Err(reason) = peer.receiver.refresh(max) {
            self.hang_up(End::Refused(reason), Instant::now());
            return Burst::EMPTY;
        }
        self.peer.as_mut().map_or(Burst::EMPTY, |peer| peer.receiver.lend(max, &mut self.counters))
    }

    fn give_back(&mut self, dropped: usize) {
        if let Some(peer) = &mut self.peer {
            peer.receiver.give_back();
        }
        self.counters.rx_frames -= dropped as u64;
        self.counters.rx_pool_dry += dropped as u64;
    }

    fn send(&mut self, parts: &[&[u8]]) -> Sent {
        match *parts {
            [one] => self.queue(&[Lent::of(one)]),
            [one, two] => self.queue(&[Lent::of(one), Lent::of(two)]),
            _ => self.queue(&parts.iter().map(|part| Lent::of(part)).collect::<Vec<_>>()),
        }
    }

    fn send_lent(&mut self, head: &[u8], rest: Lent<'_>) -> Sent {
        self.queue(&[Lent::of(head), rest])
    }

    fn room(&mut self) -> usize {
        let Some(peer) = &mut self.peer else { return usize::MAX };
        peer.sender.free().unwrap_or_else(|reason| {
            self.hang_up(End::Refused(reason), Instant::now());
            usize::MAX
        })
    }

    fn flush(&mut self) {
        let Some(peer) = &mut self.peer else { return };
        if peer.sender.flush(&mut self.counters) {
            self.kick();
        }
    }

    fn hand_over(&mut self) {
        // A kick now spares a sleeping peer the wait for `flush`, which then finds it awake.
        if self.peer.as_ref().is_some_and(|peer| peer.sender.hand_over()) {
            self.flush();
        }
    }

    fn arm(&mut self) -> bool {
        self.armed = self.peer.as_ref().is_none_or(|peer| peer.receiver.arm());
        if !self.armed {
            self.disarm();
        }
        self.armed
    }

    fn disarm(&mut self) {
        self.armed = false;
        if let Some(peer) = &self.peer {
            peer.receiver.disarm();
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
