//! TCP (RFC 9293) for one host: our demultiplexer around a protocol engine that sees one connection at a time.
//!
//! A segment's way in: `Host::receive` → `ingress` (checksum, flow table, RFC 5961 checks) → the flow's own `engine`
//! (smoltcp's protocol code) → the flow is *touched*. [`Host::tcp_events`] tells the owner what the touched flows mean to
//! it; the owner reads with [`Host::tcp_receive`] and queues with [`Host::tcp_send`]; [`Host::tcp_flush`] lets every
//! touched flow send what it now has to: data first, so that acknowledgements ride on replies.

mod arena;
mod egress;
mod flows;
mod half_open;
mod host;
mod ingress;
mod protocol;
mod recovery;
mod smoltcp;
#[cfg(test)]
mod tests;
mod time_wait;
mod wheel;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use foldhash::fast::SeedableRandomState;
use hashbrown::HashMap;

use self::flows::Flows;
use self::half_open::HalfOpen;
use self::smoltcp::Smoltcp;
use self::time_wait::TimeWait;
use self::wheel::Wheel;
use super::Unreachable;
use super::flows::Key;
use super::random::Random;

/// A TCP connection's place in the host, and its turn in that place: of a connection that is gone nothing else answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TcpId {
    pub index: u32,
    pub serial: u32,
}

/// What a host's TCP is told once. Times count up to a day.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpConfig {
    /// (bytes each way, at most 4 MiB; how many), descending: a new connection gets the largest that is free, so windows
    /// shrink as connections grow many. The last class has as many as are needed, up to `max_connections`.
    pub buffers: Vec<(usize, usize)>,
    /// Connections of all states but TIME_WAIT.
    pub max_connections: usize,
    /// Handshakes that peers began with one listener and have not finished; with more the oldest gives way (RFC 4987
    /// §3.4).
    pub half_open_per_listener: usize,
    /// The same from one source, an IPv4 address or an IPv6 /64; further ones are dropped.
    pub half_open_per_source: usize,
    /// The first retransmission timeout, and the least one, in whole milliseconds, 5 or more (RFC 6298 says 1 s; data
    /// centres want less).
    pub rto: Duration,
    /// How long a peer may leave our data, SYN or FIN unacknowledged.
    pub user_timeout: Duration,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// After a silence of so long the peer is probed, after three more without an answer given up.
    pub keep_alive: Option<Duration>,
    /// How long the end that closed first remembers a connection (RFC 9293 §3.6.1 says 4 minutes).
    pub time_wait: Duration,
    /// Connections that are remembered so; with more the oldest gives way.
    pub max_time_wait: usize,
    /// Connections that were closed here and whose peer has not taken everything: with more the oldest gives way
    /// to the next one that is accepted.
    pub max_orphans: usize,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            buffers: vec![(262_144, 64), (65_536, 512), (16_384, 1_024), (4_096, 4_096), (1_024, usize::MAX)],
            max_connections: 1 << 20,
            half_open_per_listener: 4_096,
            half_open_per_source: 1_024,
            rto: Duration::from_millis(200),
            user_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(5),
            keep_alive: None,
            time_wait: Duration::from_secs(10),
            max_orphans: 16_384,
            max_time_wait: 131_072,
        }
    }
}

/// A SYN to a listener, before anything is remembered of it.
#[derive(Clone, Copy, Debug)]
pub struct Knock {
    /// The owner's number of it.
    pub listener: u32,
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// What becomes of a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Welcome {
    /// A handshake begins.
    Accept,
    /// Answer with a reset: nobody listens.
    Refuse,
    /// No answer: the peer tries again.
    Ignore,
}

/// Asked at each SYN for a listener.
pub type AcceptHook = Box<dyn FnMut(&Knock) -> Welcome + Send>;

/// What a connection's owner is told, in the order it happened per connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpEvent {
    /// A peer's handshake is done. Call [`super::Host::tcp_adopt`] or [`super::Host::tcp_abort`]. `Readable` may follow.
    Accepted { id: TcpId, listener: u32 },
    /// A connection that was opened here is established.
    Connected { id: TcpId, owner: u32 },
    /// Bytes have come, or the peer's end (`tcp_ended`, once all bytes have been taken).
    Readable { id: TcpId, owner: u32 },
    /// `tcp_send` took less than it was given; now there is room.
    Writable { id: TcpId, owner: u32 },
    /// The connection is gone, and so is `id`. Not told after `tcp_close` and `tcp_abort`.
    Closed { id: TcpId, owner: u32, reason: Gone },
}

/// Why a connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// A reset in answer to our SYN.
    Refused,
    /// A reset of a connection that was established.
    Reset,
    /// The handshake, or an acknowledgement, took too long; or the peer does not answer probes.
    TimedOut,
    /// While connecting only: later errors of the network are not believed (RFC 5461).
    Unreachable(Unreachable),
}

/// Paths whose MTU a router has told, remembered for new connections.
const MAX_PATHS: usize = 1_024;
/// RFC 8201 §4: for so long.
const PATH_MTU_FOR: Duration = Duration::from_secs(600);

/// No time that an owner tells counts as longer.
const LONGEST: Duration = Duration::from_secs(86_400);

fn micros(time: Duration) -> u64 {
    time.min(LONGEST).as_micros() as u64
}

/// All TCP state of a host. Its parts are in order of dependence: flows hold memory of their arena.
pub(super) struct Tcp {
    config: TcpConfig,
    /// The first time that was told, the last one, and the microseconds in between.
    origin: Option<Instant>,
    seen: Option<Instant>,
    now: u64,
    flows: Flows,
    protocol: Smoltcp,
    wheel: Wheel,
    time_wait: TimeWait,
    half_open: HalfOpen,
    listeners: HashMap<(Option<IpAddr>, u16), u32, SeedableRandomState>,
    listens_on_ephemeral: bool,
    hook: Option<AcceptHook>,
    next_port: u32,
    /// The key of initial sequence numbers.
    secret: Random,
    /// Connections that wait for their neighbour's link address.
    unresolved: Vec<TcpId>,
    paths: HashMap<IpAddr, (u16, u64), SeedableRandomState>,
    /// When to flush again after the port was full.
    again_at: Option<u64>,
    full_since: Option<u64>,
    due: Vec<TcpId>,
}

impl Tcp {
    pub fn new(config: TcpConfig, random: &mut Random) -> Self {
        Self {
            flows: Flows::new(&config.buffers, config.max_connections, config.keep_alive, random),
            protocol: Smoltcp::new(config.rto),
            wheel: Wheel::new(),
            time_wait: TimeWait::new(config.time_wait, config.max_time_wait, random),
            half_open: HalfOpen::new(random),
            listeners: HashMap::with_hasher(random.hasher()),
            listens_on_ephemeral: false,
            hook: None,
            next_port: 0,
            secret: random.split(),
            unresolved: Vec::new(),
            paths: HashMap::with_hasher(random.hasher()),
            again_at: None,
            full_since: None,
            due: Vec::new(),
            origin: None,
            seen: None,
            now: 0,
            config,
        }
    }

    /// The time is now. It begins with the first segment or connection: the caller's clock need not be this machine's.
    #[inline]
    fn see(&mut self, now: Instant) {
        if self.seen != Some(now) {
            self.seen = Some(now);
            let origin = *self.origin.get_or_insert(now);
            self.now = now.saturating_duration_since(origin).as_micros() as u64;
        }
    }

    fn after(&self, time: Duration) -> u64 {
        self.now + micros(time)
    }

    pub const fn foresee(&mut self, isn: u32) {
        self.secret = Random::fixed(isn as u64);
    }

    /// RFC 6528: a keyed hash of the addresses and ports, and a clock that ticks every 4 µs.
    fn isn(&self, key: &Key) -> u32 {
        (self.secret.keyed(key) as u32).wrapping_add((self.now / 4) as u32)
    }

    pub fn deadline(&self) -> Option<Instant> {
        let origin = self.origin?;
        // What waits to be told or sent is due at once.
        if !self.flows.touched.is_empty() || !self.flows.dirty.is_empty() && self.again_at.is_none() {
            return Some(origin);
        }
        let next = [self.again_at, self.wheel.deadline(), self.time_wait.deadline()].into_iter().flatten().min()?;
        Some(origin + Duration::from_micros(next))
    }

    pub fn gauges(&self) -> [(&'static str, u64); 4] {
        [
            ("tcp_connections", self.flows.len() as u64),
            ("tcp_half_open", self.half_open.len() as u64),
            ("tcp_time_wait", self.time_wait.len() as u64),
            ("tcp_buffers", self.flows.buffers_in_use() as u64),
        ]
    }
}
