//! Both ends on a port: UDP over a host of our own.
//!
//! A generator polls while anything is in flight and sleeps when nothing was for a millisecond. The clock is read once
//! per batch; the rest of what time does (timeouts, the port's and the host's timers, progress, stop) is looked at once
//! per millisecond. Before the clock starts, one request at a time is sent until one is answered: it finds the link
//! address, and shows that somebody is there.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::ledger::Ledger;
use super::progress::{Clock, Ticker};
use super::{
    Drive, Endpoint, Failure, LoadError, PATIENCE_NS, PortTransport, Progress, REACH_NS, Report, Respond, SPIN_NS, sys,
};
use crate::packet::{Pool, Slot};
use crate::port::{Link, Port, Sent};
use crate::stack::{Datagram, FlowId, Host, Input, OpenError, To, Unreachable};

/// Frames taken, and requests issued, between two looks at the clock.
const BATCH: usize = 64;
/// How often timers are looked at, and how long there must be nothing to do before the thread sleeps.
const COARSE_NS: u64 = 1_000_000;
/// After polling in vain for so long the cpu is offered to others: the peer may be waiting for this very one.
const YIELD_NS: u64 = 100_000;
/// Owner numbers of the server end's flows have this bit; those of the client's are its connections.
const ANSWERS: u32 = 1 << 31;
/// Flows the server end keeps; with more peers the longest known one is forgotten, and adopted anew when it sends.
const KEPT_FLOWS: usize = 65_536;

struct Client<'a> {
    drive: &'a Drive,
    remote: SocketAddr,
    ledger: Ledger,
    flows: Vec<Option<FlowId>>,
    opened: u64,
    /// A request was answered: the clock runs.
    reached: bool,
}

pub struct Bypass<'a> {
    port: Box<dyn Port>,
    host: Host,
    pool: Pool,
    client: Option<Client<'a>>,
    /// Adopted flows, the oldest overwritten first once all places are taken.
    answers: Vec<Option<FlowId>>,
    next_answer: usize,
    echoed: u64,
    /// Of the port's link, as last announced on.
    generation: Option<u64>,
    up: bool,
    frames: Vec<Slot>,
    unreachable: Vec<(u32, Unreachable)>,
}

fn udp_only(endpoint: &Endpoint) -> Result<SocketAddr, LoadError> {
    match endpoint {
        Endpoint::Udp(address) => Ok(*address),
        _ => Err(LoadError::Config(format!("{endpoint}: expected udp:// on a port; streams need kernel sockets"))),
    }
}

impl Client<'_> {
    fn unreached(&self, failure: Failure, detail: String) -> LoadError {
        LoadError::Unreached { endpoint: self.drive.endpoint.clone(), failure, detail }
    }

    fn flow(&mut self, connection: u32, host: &mut Host) -> Result<FlowId, LoadError> {
        if let Some(flow) = self.flows[connection as usize] {
            return Ok(flow);
        }
        let flow = host.open(self.remote, connection).map_err(|error| match error {
            OpenError::NoRoute => {
                let detail = "not in the network of any address of the port, and no gateway is set".into();
                self.unreached(Failure::Unreachable, detail)
            }
            OpenError::PortsExhausted | OpenError::InUse | OpenError::TooMany => {
                self.unreached(Failure::Ports, format!("no source port is left after {} flows", self.opened))
            }
        })?;
        self.flows[connection as usize] = Some(flow);
        self.opened += 1;
        Ok(flow)
    }

    fn close(&mut self, connection: u32, host: &mut Host) {
        if let Some(flow) = self.flows[connection as usize].take() {
            host.close(flow);
        }
        self.ledger.renew(connection);
    }

    #[inline]
    fn reply(&mut self, connection: u32, bytes: &[u8], now: u64, host: &mut Host) {
        self.ledger.reply(connection, bytes, now);
        if !self.reached && self.ledger.answered > 0 {
            self.reached = true;
            self.ledger.pace.begin(now);
        }
        if self.ledger.spent(connection) {
            self.close(connection, host);
        }
    }

    /// Issues what is due, a batch at most. `false`: the link is down.
    #[inline]
    fn pump(&mut self, now: u64, instant: Instant, host: &mut Host, port: &mut dyn Port) -> Result<bool, LoadError> {
        for _ in 0..BATCH {
            if !self.reached && self.ledger.in_flight() > 0 {
                break;
            }
            let Some(issued) = self.ledger.issue(now) else { break };
            let flow = self.flow(issued.connection, host)?;
            match host.send(flow, self.ledger.message(issued.place), instant, port) {
                Sent::Queued => {}
                Sent::TooLong => {
                    let detail = format!("{} bytes are too long for the port", self.drive.size);
                    return Err(self.unreached(Failure::Down, detail));
                }
                sent => {
                    self.ledger.take_back(issued);
                    return Ok(sent == Sent::Full);
                }
            }
        }
        Ok(true)
    }

    fn failed(&mut self, connection: u32, reason: Unreachable) -> Result<(), LoadError> {
        let (failure, detail) = match reason {
            Unreachable::Port => (Failure::Refused, "connection refused"),
            Unreachable::Host | Unreachable::Network | Unreachable::Other => {
                (Failure::Unreachable, "the host is unreachable")
            }
        };
        if !self.reached {
            return Err(self.unreached(failure, detail.into()));
        }
        self.ledger.fail_all(connection, failure);
        Ok(())
    }

    fn expire(&mut self, now: u64, host: &mut Host) {
        while let Some(connection) = self.ledger.expire(now) {
            // Where order tells replies apart, a late one would be taken for the next: another port hears none.
            if !self.ledger.by_id() || self.ledger.spent(connection) {
                self.close(connection, host);
            }
        }
    }

    fn finished(&self, now: u64) -> bool {
        now >= self.ledger.pace.end() && self.ledger.in_flight() == 0
    }
}

impl<'a> Bypass<'a> {
    pub fn new(transport: PortTransport, drive: Option<&'a Drive>, respond: &[Respond]) -> Result<Self, LoadError> {
        let PortTransport { port, mut host, pool } = transport;
        for (listener, Respond { endpoint, .. }) in respond.iter().enumerate() {
            let address = udp_only(endpoint)?;
            let ip = Some(address.ip()).filter(|ip: &IpAddr| !ip.is_unspecified());
            host.listen(ip, address.port(), listener as u32).map_err(|error| {
                let kind = std::io::ErrorKind::AddrNotAvailable;
                LoadError::Listen {
                    endpoint: endpoint.clone(),
                    error: std::io::Error::new(
                        kind,
                        match error {
                            crate::stack::BindError::InUse => "another --respond has this address",
                            crate::stack::BindError::NotLocal => "not an address of the port",
                        },
                    ),
                }
            })?;
        }
        let client = drive.map(|drive| {
            let (remote, ledger) = (udp_only(&drive.endpoint)?, Ledger::new(drive)?);
            let flows = vec![None; drive.connections];
            Ok(Client { drive, remote, ledger, flows, opened: 0, reached: false })
        });
        Ok(Self {
            port,
            host,
            pool,
            client: client.transpose()?,
            answers: Vec::new(),
            next_answer: 0,
            echoed: 0,
            generation: None,
            up: false,
            frames: Vec::with_capacity(BATCH),
            unreachable: Vec::new(),
        })
    }

    pub fn run(mut self, stop: &AtomicBool, progress: &mut dyn FnMut(&Progress)) -> Result<Report, LoadError> {
        let clock = Clock::start();
        let mut ticker = Ticker::new(progress);
        let (mut coarse, mut busy_until, mut received_at) = (0, 0, 0);
        self.begin()?;
        loop {
            let received = self.port.receive(&self.pool, &mut self.frames, BATCH);
            let instant = Instant::now();
            let now = clock.at(instant);
            self.take(now, instant)?;
            if self.up
                && let Some(client) = &mut self.client
            {
                self.up = client.pump(now, instant, &mut self.host, &mut *self.port)?;
            }
            self.port.flush();

            if now >= coarse {
                coarse = now + COARSE_NS;
                self.on_time(now, instant)?;
                let ledger = self.client.as_ref().map(|client| &client.ledger);
                ticker.tick(now, ledger, self.echoed);
                if stop.load(Ordering::Relaxed) {
                    if let Some(client) = &mut self.client {
                        client.ledger.pace.cut(now);
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
            if received > 0 || (self.up && self.client.as_ref().is_some_and(|client| client.ledger.in_flight() > 0)) {
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
        let report = self.client.map_or_else(Report::default, |client| client.ledger.report(client.opened));
        Ok(Report { echoed: self.echoed, ..report })
    }

    /// All flows that are to be kept exist before the first request: a wrong address is an error now.
    fn begin(&mut self) -> Result<(), LoadError> {
        let Some(client) = &mut self.client else { return Ok(()) };
        let ahead = if client.drive.requests_per_connection.is_none() { client.flows.len() } else { 1 };
        for connection in 0..ahead {
            client.flow(connection as u32, &mut self.host)?;
        }
        (0..client.flows.len()).for_each(|connection| client.ledger.renew(connection as u32));
        client.ledger.pace.rehearse(0);
        Ok(())
    }

    /// When something is to be done even if no frame comes.
    fn wake(&self, now: u64, clock: Clock) -> u64 {
        let timers = [self.port.deadline(), self.host.deadline()].into_iter().flatten().map(|time| clock.at(time));
        let Some(Client { ledger, .. }) = &self.client else { return timers.min().unwrap_or(u64::MAX) };
        let scheduled = if self.up && ledger.may_issue() { ledger.pace.next_due(now) } else { None };
        let ends = Some(ledger.pace.end()).filter(|&end| end > now);
        let due = scheduled.map(|due| due.saturating_sub(SPIN_NS));
        [due, ends, ledger.next_timeout()].into_iter().flatten().chain(timers).min().unwrap_or(u64::MAX)
    }

    fn on_time(&mut self, now: u64, instant: Instant) -> Result<(), LoadError> {
        self.port.service(instant);
        let link = self.port.link();
        self.up = link == Link::Up;
        let generation = Some(self.port.generation()).filter(|_| self.up);
        if self.up && generation != self.generation {
            self.generation = generation;
            self.host.announce(&mut *self.port);
        }
        if self.host.deadline().is_some_and(|deadline| deadline <= instant) {
            self.host.on_timer(instant, &mut *self.port, &mut self.unreachable);
        }
        self.port.flush();
        let Some(client) = &mut self.client else {
            self.unreachable.clear();
            return Ok(());
        };
        for (owner, reason) in self.unreachable.drain(..) {
            if owner & ANSWERS == 0 {
                client.failed(owner, reason)?;
            }
        }
        client.expire(now, &mut self.host);
        if !client.reached && now > REACH_NS.max(3 * client.drive.timeout.as_nanos() as u64) {
            let detail = match link {
                Link::Up => "no reply".into(),
                Link::Down(why) => format!("the port is down: {why}"),
            };
            return Err(client.unreached(Failure::Timeout, detail));
        }
        Ok(())
    }

    /// What came in.
    #[inline]
    fn take(&mut self, now: u64, instant: Instant) -> Result<(), LoadError> {
        let mut frames = std::mem::take(&mut self.frames);
        for frame in frames.drain(..) {
            match self.host.receive(frame, instant, &self.pool, &mut *self.port) {
                Input::Consumed => {}
                Input::Datagram(datagram) => match (datagram.to, &mut self.client) {
                    (To::Flow(owner), Some(client)) if owner & ANSWERS == 0 => {
                        client.reply(owner, &datagram.payload, now, &mut self.host);
                    }
                    (To::Flow(owner), _) => {
                        if let Some(&Some(flow)) = self.answers.get((owner & !ANSWERS) as usize) {
                            self.echo(flow, &datagram.payload, instant);
                        }
                    }
                    (To::Listener(_), _) => self.adopt(&datagram, instant),
                },
                Input::Unreachable { to, reason } => {
                    if to & ANSWERS == 0
                        && let Some(client) = &mut self.client
                    {
                        client.failed(to, reason)?;
                    }
                }
            }
        }
        self.frames = frames;
        Ok(())
    }

    #[inline]
    fn echo(&mut self, flow: FlowId, payload: &[u8], instant: Instant) {
        if self.host.send(flow, payload, instant, &mut *self.port) == Sent::Queued {
            self.echoed += 1;
        }
    }

    /// The first datagram of a peer to the server end.
    fn adopt(&mut self, datagram: &Datagram, instant: Instant) {
        let place = self.next_answer;
        if place == self.answers.len() {
            self.answers.push(None);
        }
        if let Some(oldest) = self.answers[place].take() {
            self.host.close(oldest);
        }
        let owner = ANSWERS | place as u32;
        // A peer to whom no way leads back gets no answer.
        if let Ok(flow) = self.host.adopt(datagram.destination, datagram.source, datagram.source_mac, owner) {
            self.answers[place] = Some(flow);
            self.next_answer = (place + 1) % KEPT_FLOWS;
            self.echo(flow, &datagram.payload, instant);
        }
    }
}
