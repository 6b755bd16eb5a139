//! Both ends on a port: UDP and TCP over a host of our own.
//!
//! A turn: a burst of frames in ([`Host::receive`]; datagrams are answered at once), what it meant to TCP connections
//! ([`Host::tcp_events`]), what is due out, and everything to the peer (`tcp_flush`, `flush`). A generator polls while
//! anything is in flight and sleeps when nothing was for a millisecond. The clock is read once per turn; the rest of what
//! time does (timeouts, the port's and the host's timers, progress, stop) is looked at once per millisecond.

mod echo;
mod tcp;
mod udp;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::ledger::Ledger;
use super::progress::{Clock, Ticker};
use super::{
    Drive, Endpoint, Failure, LoadError, PATIENCE_NS, PortTransport, Progress, REACH_NS, Report, Respond, SPIN_NS, sys,
};
use crate::packet::{Pool, Slot};
use crate::port::{Link, Port};
use crate::stack::tcp::TcpEvent;
use crate::stack::{BindError, Host, Input, OpenError, To, Unreachable};

/// Frames taken, and requests issued, between two looks at the clock.
const BATCH: usize = 64;
/// How often timers are looked at, and how long there must be nothing to do before the thread sleeps.
const COARSE_NS: u64 = 1_000_000;
/// After polling in vain for so long the cpu is offered to others: the peer may be waiting for this very one.
const YIELD_NS: u64 = 100_000;
/// What the peers get at the end to take leave of every connection.
const FAREWELL: Duration = Duration::from_secs(1);
/// Owner numbers of the server end's flows have this bit; those of the client's are its connections.
const ANSWERS: u32 = 1 << 31;

/// The time of a turn, on the run's clock and on the machine's.
#[derive(Clone, Copy)]
struct Moment {
    now: u64,
    instant: Instant,
}

enum Client<'a> {
    Udp(udp::Client<'a>),
    Tcp(tcp::Client<'a>),
}

pub struct Bypass<'a> {
    port: Box<dyn Port>,
    host: Host,
    pool: Pool,
    client: Option<Client<'a>>,
    datagrams: udp::Echo,
    streams: echo::Echo,
    /// Of the port's link, as last announced on.
    generation: Option<u64>,
    up: bool,
    frames: Vec<Slot>,
    events: Vec<TcpEvent>,
    unreachable: Vec<(u32, Unreachable)>,
}

fn unreached(drive: &Drive, failure: Failure, detail: String) -> LoadError {
    LoadError::Unreached { endpoint: drive.endpoint.clone(), failure, detail }
}

/// How long an endpoint may show no sign of life.
fn reach_ns(drive: &Drive) -> u64 {
    let timeout = u64::try_from(drive.timeout.as_nanos()).unwrap_or(u64::MAX);
    REACH_NS.max(timeout.saturating_mul(3).min(u64::MAX / 4))
}

/// Why the host could not begin a flow, after so many.
fn no_way(error: OpenError, opened: u64) -> (Failure, String) {
    match error {
        OpenError::NoRoute => {
            let detail = "not in the network of any address of the port, and no gateway is set";
            (Failure::Unreachable, detail.into())
        }
        OpenError::PortsExhausted | OpenError::InUse => {
            (Failure::Ports, format!("no source port is left after {opened} flows; give the port more addresses"))
        }
        OpenError::TooMany => (Failure::Ports, format!("the port's host has no room for more than {opened} flows")),
    }
}

fn on_a_port(endpoint: &Endpoint) -> LoadError {
    LoadError::Config(format!("{endpoint}: expected tcp:// or udp:// on a port"))
}

impl<'a> Client<'a> {
    fn new(drive: &'a Drive) -> Result<Self, LoadError> {
        match drive.endpoint {
            Endpoint::Udp(remote) => udp::Client::new(drive, remote).map(Self::Udp),
            Endpoint::Tcp(remote) => tcp::Client::new(drive, remote).map(Self::Tcp),
            Endpoint::Unix(_) => Err(on_a_port(&drive.endpoint)),
        }
    }

    fn begin(&mut self, host: &mut Host) -> Result<(), LoadError> {
        match self {
            Self::Udp(client) => client.begin(host),
            Self::Tcp(client) => {
                client.begin();
                Ok(())
            }
        }
    }

    fn ledger(&self) -> &Ledger {
        match self {
            Self::Udp(client) => &client.ledger,
            Self::Tcp(client) => &client.ledger,
        }
    }

    fn ledger_mut(&mut self) -> &mut Ledger {
        match self {
            Self::Udp(client) => &mut client.ledger,
            Self::Tcp(client) => &mut client.ledger,
        }
    }

    /// An answer is waited for.
    fn waits(&self) -> bool {
        self.ledger().in_flight() > 0 || matches!(self, Self::Tcp(client) if client.connecting > 0)
    }

    fn finished(&self, now: u64) -> bool {
        let ledger = self.ledger();
        now >= ledger.pace.end() && ledger.in_flight() == 0
    }

    /// `false`: the link is down.
    #[inline]
    fn pump(&mut self, moment: Moment, host: &mut Host, port: &mut dyn Port) -> Result<bool, LoadError> {
        match self {
            Self::Udp(client) => client.pump(moment, host, port),
            Self::Tcp(client) => client.pump(moment, host).map(|()| true),
        }
    }

    fn on_time(&mut self, moment: Moment, link: Link, host: &mut Host) -> Result<(), LoadError> {
        match self {
            Self::Udp(client) => client.on_time(moment.now, link, host),
            Self::Tcp(client) => client.on_time(moment, link, host),
        }
    }

    fn report(self) -> Report {
        let (ledger, opened) = match self {
            Self::Udp(client) => (client.ledger, client.opened),
            Self::Tcp(client) => (client.ledger, client.opened),
        };
        ledger.report(opened)
    }
}

impl<'a> Bypass<'a> {
    pub fn new(transport: PortTransport, drive: Option<&'a Drive>, respond: &[Respond]) -> Result<Self, LoadError> {
        let PortTransport { port, mut host, pool } = transport;
        let mut streams = echo::Echo::default();
        for (listener, Respond { endpoint, size }) in respond.iter().enumerate() {
            streams.sizes.push(*size);
            listen(&mut host, endpoint, *size, listener as u32)?;
        }
        Ok(Self {
            port,
            host,
            pool,
            client: drive.map(Client::new).transpose()?,
            datagrams: udp::Echo::default(),
            streams,
            generation: None,
            up: false,
            frames: Vec::with_capacity(BATCH),
            events: Vec::with_capacity(BATCH),
            unreachable: Vec::new(),
        })
    }

    fn echoed(&self) -> u64 {
        self.datagrams.echoed + self.streams.echoed
    }

    pub fn run(mut self, stop: &AtomicBool, progress: &mut dyn FnMut(&Progress)) -> Result<Report, LoadError> {
        let clock = Clock::start();
        let mut ticker = Ticker::new(progress);
        let (mut coarse, mut busy_until, mut received_at) = (0, 0, 0);
        if let Some(client) = &mut self.client {
            client.begin(&mut self.host)?;
        }
        loop {
            let received = self.port.receive(&self.pool, &mut self.frames, BATCH);
            let instant = Instant::now();
            let now = clock.at(instant);
            let moment = Moment { now, instant };
            self.turn(moment)?;
            if now >= coarse {
                coarse = now + COARSE_NS;
                self.on_time(moment)?;
                ticker.tick(now, self.client.as_ref().map(Client::ledger), self.echoed());
                if stop.load(Ordering::Relaxed) {
                    if let Some(client) = &mut self.client {
                        client.ledger_mut().pace.cut(now);
                    }
                    break;
                }
                if self.client.as_ref().is_some_and(|client| client.finished(now)) {
                    break;
                }
            }
            if received > 0 {
                received_at = now;
            } else if now - received_at > YIELD_NS {
                std::thread::yield_now();
            }
            if received > 0 || (self.up && self.client.as_ref().is_some_and(Client::waits)) {
                busy_until = now + COARSE_NS;
            } else if now >= busy_until {
                let wake = self.wake(now, clock).min(ticker.next()).min(now + PATIENCE_NS);
                if wake > now && self.port.arm() {
                    sys::sleep_on(self.port.wake_fd(), Duration::from_nanos(wake - now));
                    self.port.disarm();
                    coarse = 0;
                }
            }
        }
        self.farewell();
        let (echoed, connections_accepted) = (self.echoed(), self.streams.accepted);
        let report = self.client.map_or_else(Report::default, Client::report);
        Ok(Report { echoed, connections_accepted, ..report })
    }

    /// The frames that came, what they meant, and what is due.
    #[inline]
    fn turn(&mut self, moment: Moment) -> Result<(), LoadError> {
        self.take(moment)?;
        self.host.tcp_events(&mut self.events);
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            match event {
                TcpEvent::Connected { owner, .. }
                | TcpEvent::Readable { owner, .. }
                | TcpEvent::Writable { owner, .. }
                | TcpEvent::Closed { owner, .. }
                    if owner & ANSWERS == 0 =>
                {
                    if let Some(Client::Tcp(client)) = &mut self.client {
                        client.on_event(event, moment.now, &mut self.host)?;
                    }
                }
                _ => self.streams.on_event(event, &mut self.host),
            }
        }
        self.events = events;
        if self.up
            && let Some(client) = &mut self.client
        {
            self.up = client.pump(moment, &mut self.host, &mut *self.port)?;
        }
        self.host.tcp_flush(moment.instant, &mut *self.port);
        self.port.flush();
        Ok(())
    }

    /// When something is to be done even if no frame comes.
    fn wake(&self, now: u64, clock: Clock) -> u64 {
        let timers = [self.port.deadline(), self.host.deadline()].into_iter().flatten().map(|time| clock.at(time));
        let Some(client) = &self.client else { return timers.min().unwrap_or(u64::MAX) };
        let ledger = client.ledger();
        let scheduled = if self.up && ledger.may_issue() { ledger.pace.next_due(now) } else { None };
        let ends = Some(ledger.pace.end()).filter(|&end| end > now);
        let due = scheduled.map(|due| due.saturating_sub(SPIN_NS));
        let rested = match client {
            Client::Udp(_) => None,
            Client::Tcp(client) => client.next_rest_over(),
        };
        [due, ends, rested, ledger.next_timeout()].into_iter().flatten().chain(timers).min().unwrap_or(u64::MAX)
    }

    fn on_time(&mut self, moment: Moment) -> Result<(), LoadError> {
        self.port.service(moment.instant);
        let link = self.port.link();
        self.up = link == Link::Up;
        let generation = Some(self.port.generation()).filter(|_| self.up);
        if self.up && generation != self.generation {
            self.generation = generation;
            self.host.announce(&mut *self.port);
        }
        if self.host.deadline().is_some_and(|deadline| deadline <= moment.instant) {
            self.host.on_timer(moment.instant, &mut *self.port, &mut self.unreachable);
        }
        self.port.flush();
        for (owner, reason) in self.unreachable.drain(..) {
            if let (0, Some(Client::Udp(client))) = (owner & ANSWERS, &mut self.client) {
                client.failed(owner, reason)?;
            }
        }
        match &mut self.client {
            Some(client) => client.on_time(moment, link, &mut self.host),
            None => Ok(()),
        }
    }

    /// What came in.
    #[inline]
    fn take(&mut self, moment: Moment) -> Result<(), LoadError> {
        let mut frames = std::mem::take(&mut self.frames);
        let (host, port) = (&mut self.host, &mut *self.port);
        for frame in frames.drain(..) {
            match host.receive(frame, moment.instant, &self.pool, port) {
                Input::Consumed => {}
                Input::Datagram(datagram) => match (datagram.to, &mut self.client) {
                    (To::Flow(owner), Some(Client::Udp(client))) if owner & ANSWERS == 0 => {
                        client.reply(owner, &datagram.payload, moment.now, host);
                    }
                    (To::Flow(owner), _) => self.datagrams.known(owner, &datagram.payload, moment, host, port),
                    (To::Listener(_), _) => self.datagrams.adopt(&datagram, moment, host, port),
                },
                Input::Unreachable { to, reason } => {
                    if let (0, Some(Client::Udp(client))) = (to & ANSWERS, &mut self.client) {
                        client.failed(to, reason)?;
                    }
                }
            }
        }
        self.frames = frames;
        Ok(())
    }

    /// All that the host still knows of, those just closed included.
    fn connections(&self) -> u64 {
        self.host.counters().into_iter().find(|(name, _)| *name == "tcp_connections").map_or(0, |(_, count)| count)
    }

    /// Every connection is closed, and its peer gets a while to know: what it still sends is taken, and no longer counted.
    fn farewell(&mut self) {
        if let Some(Client::Tcp(client)) = &mut self.client {
            client.close_all(&mut self.host);
        }
        let begun = Instant::now();
        let (echoed, accepted) = (self.streams.echoed, self.streams.accepted);
        let mut looked = begun;
        let mut drives = self.client.is_some();
        while self.up && begun.elapsed() < FAREWELL {
            let instant = Instant::now();
            self.host.tcp_flush(instant, &mut *self.port);
            self.port.flush();
            if instant.duration_since(looked).as_nanos() > u128::from(COARSE_NS) {
                looked = instant;
                self.port.service(instant);
                self.up = self.port.link() == Link::Up;
                if self.host.deadline().is_some_and(|deadline| deadline <= instant) {
                    self.host.on_timer(instant, &mut *self.port, &mut self.unreachable);
                }
                let left = self.connections();
                if drives && left <= self.streams.open() as u64 {
                    drives = false;
                }
                if !drives && self.streams.open() > 0 {
                    self.streams.close_all(&mut self.host);
                } else if left == 0 {
                    break;
                }
            }
            if self.port.receive(&self.pool, &mut self.frames, BATCH) == 0 {
                std::thread::yield_now();
            }
            for frame in self.frames.drain(..) {
                self.host.receive(frame, instant, &self.pool, &mut *self.port);
            }
            self.host.tcp_events(&mut self.events);
            // Of the client's nothing is told any more.
            for event in self.events.drain(..) {
                self.streams.on_event(event, &mut self.host);
            }
        }
        (self.streams.echoed, self.streams.accepted) = (echoed, accepted);
    }
}

fn listen(host: &mut Host, endpoint: &Endpoint, size: usize, listener: u32) -> Result<(), LoadError> {
    let local = |address: &SocketAddr| Some(address.ip()).filter(|ip: &IpAddr| !ip.is_unspecified());
    let bound = match endpoint {
        Endpoint::Udp(address) => host.listen(local(address), address.port(), listener),
        Endpoint::Tcp(_) if !(1..=1 << 20).contains(&size) => {
            return Err(LoadError::Config(format!("size {size}: expected 1 to {} bytes for {endpoint}", 1 << 20)));
        }
        Endpoint::Tcp(address) => host.tcp_listen(local(address), address.port(), listener),
        Endpoint::Unix(_) => return Err(on_a_port(endpoint)),
    };
    bound.map_err(|error| {
        let detail = match error {
            BindError::InUse => "another --respond has this address",
            BindError::NotLocal => "not an address of the port",
        };
        let error = std::io::Error::new(std::io::ErrorKind::AddrNotAvailable, detail);
        LoadError::Listen { endpoint: endpoint.clone(), error }
    })
}
