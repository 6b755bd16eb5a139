//! AF_XDP: frames from and to a network interface, past the kernel's stack.
//!
//! From the bottom up: `sys` (system calls), [`ring`] and [`queue`] (frames), [`bpf`] (the program that says what is
//! ours), `session` (all of it,
//! open), and here the port. All that is changed on the interface hangs on
//! descriptors: however the process ends, nothing is left.
//!
//! An interface that goes down, or away, takes the port down, not the VNF: when one of its name is there again, the port
//! opens it again.

mod admission;
pub mod bpf;
pub mod queue;
pub mod ring;
mod session;
mod sys;
#[cfg(test)]
mod tests;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use self::queue::{HEADROOM, Kick, Queue};
use self::session::Session;
use super::counting::counters;
use super::interface::{Interfaces, News};
use super::lent::{BURST, Burst, Lent};
use super::waiting::Epoll;
use super::{HEADER_BYTES, Link, Port, Sent};
use crate::packet::ethernet::{self, Mac};

/// How long what a predecessor has left may take to go: its sockets and its program outlive it for some milliseconds.
const PATIENCE: Duration = Duration::from_millis(500);
/// When an interface that came back could not be opened, or takes no more frames, it is tried again.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_SENDING: Duration = Duration::from_millis(1);
/// Frames that the kernel sends in one call, in copy mode (`TX_BATCH_SIZE` of net/xdp/xsk.c).
const KERNEL_BATCH: u32 = 32;

/// How the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// Native where the driver can, else generic.
    Auto,
    Native,
    Generic,
}

/// What is taken from the interface; the rest stays with the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// What is for the port's addresses, ARP and neighbour discovery for them included.
    Addresses,
    All,
    /// Datagrams to that port, whatever their address: the kernel answers ARP.
    Udp(u16),
    Tcp(u16),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AfXdpConfig {
    pub name: String,
    pub interface: String,
    /// Empty: all that the interface has.
    pub queues: Vec<u32>,
    /// Empty: `Addresses`.
    pub take: Vec<Take>,
    /// The host's, virtual ones too.
    pub addresses: Vec<IpAddr>,
    pub attach: Attach,
    pub zero_copy: bool,
    /// Of each of the four rings of a queue; a power of two.
    pub ring_slots: u32,
    /// Of one buffer: 2048 or 4096.
    pub frame_bytes: u32,
    /// None: the interface's.
    pub mtu: Option<usize>,
    /// None: the interface's.
    pub mac: Option<Mac>,
}

impl AfXdpConfig {
    pub fn new(name: &str, interface: &str) -> Self {
        Self {
            name: name.into(),
            interface: interface.into(),
            queues: Vec::new(),
            take: Vec::new(),
            addresses: Vec::new(),
            attach: Attach::Auto,
            zero_copy: false,
            ring_slots: 2048,
            frame_bytes: 2048,
            mtu: None,
            mac: None,
        }
    }

    /// The largest IP packet that a buffer holds behind the headroom the kernel leaves.
    fn carries(&self) -> usize {
        self.frame_bytes as usize - HEADROOM - HEADER_BYTES
    }

    fn validate(&self, facts: &Facts) -> Result<(), String> {
        let Self { interface, frame_bytes, .. } = self;
        let by_address = self.take.is_empty() || self.take.contains(&Take::Addresses);
        if by_address && self.addresses.is_empty() {
            return Err("take: without an address nothing is taken: expected address=…, or take=all, take=udp:PORT, \
                        take=tcp:PORT"
                .into());
        }
        let carries = self.carries();
        match self.mtu {
            // RFC 791: the least that every host takes.
            _ if facts.mtu < 576 => Err(format!("{interface} has an MTU of {}: expected 576 or more", facts.mtu)),
            Some(mtu) if mtu > facts.mtu => Err(format!("mtu: {mtu}: {interface} has an MTU of {}", facts.mtu)),
            Some(mtu) if mtu > carries => Err(format!("mtu: {mtu}: frame_bytes={frame_bytes} carries {carries}")),
            None if facts.mtu > carries => Err(format!(
                "{interface} has an MTU of {}: frame_bytes={frame_bytes} carries {carries}; expected mtu={carries} or \
                 less{}",
                facts.mtu,
                if *frame_bytes < 4096 { ", or frame_bytes=4096" } else { "" }
            )),
            _ => Ok(()),
        }
    }
}

counters! {
    rx_frames,
    rx_bytes,
    rx_pool_dry,
    /// The kernel's count: no buffer was free, or the frame was too long for one.
    rx_dropped,
    /// The kernel's count of these: no buffer was free.
    rx_no_buffer,
    /// The kernel's count.
    rx_ring_full,
    /// Handed to the kernel.
    tx_frames,
    tx_bytes,
    tx_full,
    /// Too long for the port, or shorter than an Ethernet header.
    tx_too_long,
    tx_down,
    /// Queued, but the interface was gone before they left.
    tx_lost,
    /// The interface threw them away.
    tx_dropped,
    kicks,
    kicks_failed,
    /// Times the link came up, and went down.
    connects,
    disconnects,
}

/// What the kernel says of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Facts {
    index: u32,
    mac: Mac,
    mtu: usize,
    queues: u32,
    is_up: bool,
    has_carrier: bool,
}

impl Facts {
    fn of(interfaces: &Interfaces, name: &str) -> io::Result<Self> {
        let not_ethernet =
            || io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is not an Ethernet interface"));
        Ok(Self {
            index: interfaces.index(name)?,
            mac: interfaces.mac(name)?.ok_or_else(not_ethernet)?,
            mtu: interfaces.mtu(name)?,
            queues: interfaces.receive_queues(name),
            is_up: interfaces.is_up(name)?,
            has_carrier: interfaces.has_carrier(name)?,
        })
    }
}

pub struct AfXdp {
    config: AfXdpConfig,
    interfaces: Interfaces,
    news: News,
    /// None: there is no such interface now.
    facts: Option<Facts>,
    epoll: Epoll,
    session: Option<Session>,
    /// As announced to the owner.
    is_up: bool,
    /// Why not.
    down: String,
    /// The longest frame that can be sent now.
    longest: usize,
    generation: u64,
    /// The queues are in the epoll set.
    armed: bool,
    /// The queue that lent last.
    turn: usize,
    /// When to open the interface again.
    reopen_at: Option<Instant>,
    /// When to try again to send what the kernel has not taken.
    resend_at: Option<Instant>,
    /// Frames, and their bytes, that wait for the flush.
    queued: (u64, u64),
    counters: Counters,
}

impl AfXdp {
    pub fn new(config: AfXdpConfig) -> io::Result<Self> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        let name = &config.interface;
        let (interfaces, news, epoll) = (Interfaces::new()?, News::new()?, Epoll::new()?);
        epoll.add(&news, 0, true)?;
        let facts = Facts::of(&interfaces, name).map_err(|error| match error.raw_os_error() {
            Some(libc::ENODEV) => invalid(format!("there is no interface {name} in this network namespace")),
            _ => error,
        })?;
        config.validate(&facts).map_err(invalid)?;
        if !facts.is_up {
            return Err(io::Error::other(format!("{name} is down: ip link set {name} up")));
        }
        let session = Session::open(&config, &facts, PATIENCE)?;
        let mut port = Self {
            config,
            interfaces,
            news,
            facts: Some(facts),
            epoll,
            session: Some(session),
            is_up: false,
            down: String::new(),
            longest: 0,
            generation: 0,
            armed: false,
            turn: 0,
            reopen_at: None,
            resend_at: None,
            queued: (0, 0),
            counters: Counters::default(),
        };
        port.judge();
        Ok(port)
    }

    /// The program was attached by the driver, not above it.
    pub fn is_native(&self) -> bool {
        self.session.as_ref().is_some_and(Session::is_native)
    }

    /// Something has happened to some interface.
    fn look(&mut self, now: Instant) {
        self.facts = Facts::of(&self.interfaces, &self.config.interface).ok();
        let index = self.facts.map(|facts| facts.index);
        if self.session.as_ref().is_some_and(|session| !index.is_some_and(|index| session.is_of(index))) {
            self.close();
        }
        if self.session.is_none() {
            self.reopen_at = index.map(|_| now);
        }
        self.judge();
        if self.is_up {
            // What was refused while it was down still waits; a ring that is full of that takes nothing new.
            self.resend_at = Some(now);
        }
    }

    /// Whether frames can pass, by the interface's state.
    fn judge(&mut self) {
        let name = &self.config.interface;
        let down = match (&self.facts, &self.session) {
            (None, _) => format!("{name} is gone"),
            (Some(facts), _) if !facts.is_up => format!("{name} is down"),
            (Some(facts), _) if !facts.has_carrier => format!("{name} has no carrier"),
            // `reopen` has said why.
            (Some(_), None) if !self.down.is_empty() => std::mem::take(&mut self.down),
            (Some(_), None) => format!("{name} is not open"),
            (Some(facts), Some(_)) => {
                self.longest = facts.mtu.min(self.config.mtu.unwrap_or(facts.mtu)) + HEADER_BYTES;
                self.longest = self.longest.min(self.config.frame_bytes as usize);
                String::new()
            }
        };
        let is_up = down.is_empty();
        match (self.is_up, is_up) {
            (false, true) => {
                self.generation += 1;
                self.counters.connects += 1;
            }
            (true, false) => self.counters.disconnects += 1,
            _ => {}
        }
        (self.is_up, self.down) = (is_up, down);
    }

    fn close(&mut self) {
        self.disarm();
        let Some(mut session) = self.session.take() else { return };
        self.counters.tx_lost += session.unsent();
        self.counters = self.with_kernels(Some(&session));
        (self.turn, self.resend_at, self.queued) = (0, None, (0, 0));
    }

    fn reopen(&mut self, now: Instant) {
        self.reopen_at = None;
        let Some(facts) = &self.facts else { return };
        let opened = self
            .config
            .validate(facts)
            .map_err(io::Error::other)
            .and_then(|()| Session::open(&self.config, facts, Duration::ZERO));
        match opened {
            Ok(session) => self.session = Some(session),
            Err(error) => {
                self.down = error.to_string();
                self.reopen_at = Some(now + RETRY);
            }
        }
        self.judge();
    }

    /// Its own counters, with the kernel's of the open sockets added.
    fn with_kernels(&self, session: Option<&Session>) -> Counters {
        let mut counters = self.counters.clone();
        for found in session.into_iter().flat_map(Session::statistics) {
            counters.rx_dropped += found.rx_dropped;
            counters.rx_no_buffer += found.rx_fill_ring_empty_descs;
            counters.rx_ring_full += found.rx_ring_full;
        }
        counters
    }

    fn kick(&mut self) {
        let Some(session) = &mut self.session else { return };
        let counters = &mut self.counters;
        let (frames, bytes) = std::mem::take(&mut self.queued);
        counters.tx_frames += frames;
        counters.tx_bytes += bytes;
        self.resend_at = match session.sender().kick(&mut counters.kicks, &mut counters.tx_dropped) {
            Kick::Done => None,
            Kick::Waits => Some(Instant::now() + RETRY_SENDING),
            Kick::Refused(_) => {
                counters.kicks_failed += 1;
                None
            }
        };
    }

    #[inline]
    fn put(&mut self, head: &[&[u8]], rest: Lent<'_>) -> Sent {
        let total = head.iter().map(|part| part.len()).sum::<usize>() + rest.len();
        let Some(session) = self.session.as_mut().filter(|_| self.is_up) else {
            self.counters.tx_down += 1;
            return Sent::Down;
        };
        if !(ethernet::HEADER..=self.longest).contains(&total) {
            self.counters.tx_too_long += 1;
            return Sent::TooLong;
        }
        if !session.sender().send(head, rest, total) {
            self.counters.tx_full += 1;
            return Sent::Full;
        }
        self.queued.0 += 1;
        self.queued.1 += total as u64;
        Sent::Queued
    }
}

impl Port for AfXdp {
    fn link(&self) -> Link {
        if self.is_up { Link::Up } else { Link::Down(self.down.clone()) }
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn wake_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn service(&mut self, now: Instant) {
        if self.news.take() {
            self.look(now);
        }
        if self.reopen_at.is_some_and(|at| at <= now) {
            self.reopen(now);
        }
        if self.resend_at.is_some_and(|at| at <= now) {
            self.kick();
        }
    }

    fn deadline(&self) -> Option<Instant> {
        [self.reopen_at, self.resend_at].into_iter().flatten().min()
    }

    fn mac(&self) -> Option<Mac> {
        self.facts.as_ref().map(|facts| facts.mac)
    }

    fn mtu(&self) -> Option<usize> {
        self.facts.as_ref().map(|facts| facts.mtu)
    }

    fn lend(&mut self, max: usize) -> Burst<'_> {
        let Some(session) = &mut self.session else { return Burst::EMPTY };
        let queues = &mut session.queues;
        // The next one with frames, so that none waits for another.
        for _ in 0..queues.len() {
            self.turn = (self.turn + 1) % queues.len();
            if queues[self.turn].has_frames() {
                break;
            }
        }
        let (burst, bytes) = queues[self.turn].lend(max.min(BURST));
        self.counters.rx_frames += burst.len() as u64;
        self.counters.rx_bytes += bytes;
        burst
    }

    fn give_back(&mut self, dropped: usize) {
        self.counters.rx_frames -= dropped as u64;
        self.counters.rx_pool_dry += dropped as u64;
        if let Some(session) = &mut self.session {
            session.queues[self.turn].give_back();
        }
    }

    fn send(&mut self, parts: &[&[u8]]) -> Sent {
        self.put(parts, Lent::EMPTY)
    }

    fn send_lent(&mut self, head: &[u8], rest: Lent<'_>) -> Sent {
        self.put(&[head], rest)
    }

    fn room(&mut self) -> usize {
        match &mut self.session {
            Some(session) if self.is_up => session.sender().room(),
            _ => usize::MAX,
        }
    }

    fn flush(&mut self) {
        if self.session.as_mut().is_some_and(|session| session.sender().queued() > 0) {
            self.kick();
        }
    }

    fn hand_over(&mut self) {
        // As many go by one call; more cost another one, now or at the flush.
        if self.session.as_mut().is_some_and(|session| session.sender().queued() >= KERNEL_BATCH) {
            self.kick();
        }
    }

    /// The sockets are in the set of what is waited for only while somebody sleeps: who is in it is told of every single
    /// frame that was sent, which costs as much as the rest of a frame's way through here.
    fn arm(&mut self) -> bool {
        let Some(session) = &self.session else { return true };
        if session.queues.iter().any(Queue::has_frames) {
            return false;
        }
        if !std::mem::replace(&mut self.armed, true)
            && session.queues.iter().any(|queue| self.epoll.add(queue, 0, true).is_err())
        {
            self.disarm();
        }
        // A frame that came meanwhile is told of at once: the set is level-triggered.
        self.armed
    }

    fn disarm(&mut self) {
        if !std::mem::take(&mut self.armed) {
            return;
        }
        for queue in self.session.iter().flat_map(|session| &session.queues) {
            self.epoll.remove(queue);
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.with_kernels(self.session.as_ref()).list()
    }
}
