//! TAP and TUN: frames, or IP packets, to and from the kernel through a character device.
//!
//! [`device`] opens it, [`link_layer`] stands in for the Ethernet that TUN does not have, [`spread`] keeps a flow on one
//! queue, and here is the port. The interface is the kernel's: it may be set down, renamed or removed under us, which
//! rtnetlink tells; it is looked at again then. One that was removed is taken again when it has been made again.

mod device;
mod link_layer;
mod spread;

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use self::device::Queue;
use self::link_layer::Outgoing;
use super::counting::counters;
use super::interface::{Interfaces, News, dropped};
use super::lent::{BURST, Burst, LONGEST, Lent};
use super::waiting::{Bell, Epoll};
use super::{HEADER_BYTES, Link, Port, Sent};
use crate::packet::ethernet::{self, Mac};

/// Frames that wait for the flush.
const DEPTH: usize = 1024;
/// Answers of the link layer that wait for the host.
const ANSWERS: usize = 256;
/// How long an interface that was made again, and cannot be opened, is left alone: who made it may hold it for a moment.
const RETRY: Duration = Duration::from_millis(250);
/// Tokens in the epoll set; queues count up from `FIRST_QUEUE`.
const NEWS: u64 = 0;
const BELL: u64 = 1;
const FIRST_QUEUE: u64 = 2;

/// What the device carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Ethernet frames (TAP).
    Ethernet,
    /// IP packets (TUN). The port puts Ethernet headers on and takes them off, and answers ARP and NDP itself.
    Ip,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapConfig {
    pub name: String,
    pub interface: String,
    pub layer: Layer,
    pub queues: u16,
    /// None: the interface's.
    pub mtu: Option<usize>,
    /// The host's, whom packets of `Layer::Ip` are for.
    pub mac: Mac,
}

impl TapConfig {
    pub fn new(name: &str, interface: &str) -> Self {
        let (name, interface, mac) = (name.into(), interface.into(), [2, 0, 0, 0, 0, 2]);
        Self { name, interface, layer: Layer::Ethernet, queues: 1, mtu: None, mac }
    }
}

counters! {
    rx_frames,
    rx_bytes,
    rx_too_long,
    rx_pool_dry,
    /// By the kernel, because the port was too slow.
    rx_dropped,
    /// Of `Layer::Ip`: of no known version.
    rx_not_ip,
    /// Answers to ARP and NDP that found no room.
    rx_answers_full,
    tx_frames,
    tx_bytes,
    tx_full,
    tx_too_long,
    tx_down,
    /// Queued, but the interface was down or gone at the flush.
    tx_lost,
    /// The kernel did not take it: shorter than its headers, for one.
    tx_refused,
    /// Of `Layer::Ip`: neither IP nor address resolution.
    tx_not_ip,
    connects,
    disconnects,
}

/// Frames that were read, one behind the other.
struct Received {
    bytes: Box<[u8]>,
    /// Bytes for one: the longest, and one more to tell what is longer still.
    stride: usize,
    lens: [usize; BURST],
    count: usize,
}

impl Received {
    fn new(longest: usize) -> Self {
        let stride = longest + 1;
        Self { bytes: vec![0; BURST * stride].into_boxed_slice(), stride, lens: [0; BURST], count: 0 }
    }

    fn next(&mut self) -> &mut [u8] {
        &mut self.bytes[self.count * self.stride..][..self.stride]
    }

    fn take(&mut self, len: usize) {
        self.lens[self.count] = len;
        self.count += 1;
    }
}

#[derive(Default)]
struct Queued {
    bytes: Vec<u8>,
    /// Where each frame ends.
    ends: Vec<usize>,
}

/// The interface counts on; what came before the port opened it is not the port's, and what it counted it keeps.
#[derive(Clone, Copy, Default)]
struct Dropped {
    earlier: u64,
    at_open: u64,
    last: u64,
}

impl Dropped {
    fn sum(self) -> u64 {
        self.earlier + self.last.saturating_sub(self.at_open)
    }
}

pub struct Tap {
    config: TapConfig,
    interfaces: Interfaces,
    news: News,
    epoll: Epoll,
    bell: Bell,
    /// None: removed.
    queues: Vec<Queue>,
    /// What it is called now.
    interface: String,
    index: u32,
    /// What the kernel had dropped by then, and before.
    dropped: Cell<Dropped>,
    mtu: usize,
    /// Why there is no link; none when there is.
    down: Option<String>,
    retry_at: Option<Instant>,
    generation: u64,
    armed: bool,
    received: Received,
    /// The queue whose turn it is.
    turn: usize,
    queued: Queued,
    answers: VecDeque<Vec<u8>>,
    counters: Counters,
}

impl Tap {
    /// Opens the interface, or makes it: then it is gone with the port.
    pub fn new(config: TapConfig) -> io::Result<Self> {
        let (interfaces, news, epoll, bell) = (Interfaces::new()?, News::new()?, Epoll::new()?, Bell::new()?);
        epoll.add(&news, NEWS, true)?;
        epoll.add(&bell, BELL, true)?;
        let mut tap = Self {
            interfaces,
            news,
            epoll,
            bell,
            queues: Vec::new(),
            interface: config.interface.clone(),
            index: 0,
            dropped: Cell::default(),
            mtu: 0,
            down: Some("not open".into()),
            retry_at: None,
            generation: 0,
            armed: false,
            received: Received::new(0),
            turn: 0,
            queued: Queued::default(),
            answers: VecDeque::new(),
            counters: Counters::default(),
            config,
        };
        let name = tap.config.interface.clone();
        tap.open().map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
        tap.look();
        Ok(tap)
    }

    fn open(&mut self) -> io::Result<()> {
        let (queues, interface, mtu) = device::open(&self.config, &self.interfaces)?;
        for (token, queue) in (FIRST_QUEUE..).zip(&queues) {
            self.epoll.add(queue, token, self.armed)?;
        }
        self.index = self.interfaces.index(&interface)?;
        let at_open = dropped(self.index).unwrap_or(0);
        self.dropped.set(Dropped { earlier: self.dropped.get().sum(), at_open, last: at_open });
        (self.queues, self.interface) = (queues, interface);
        self.mtu = mtu.min(LONGEST - HEADER_BYTES);
        self.received = Received::new(self.mtu + HEADER_BYTES);
        Ok(())
    }

    /// What has become of the interface.
    fn look(&mut self) {
        if self.queues.is_empty() {
            self.retry_at = None;
            if !self.interfaces.exists(&self.config.interface) {
                return;
            }
            if let Err(error) = self.open() {
                self.set_down(format!("{}: {error}", self.config.interface));
                self.retry_at = Some(Instant::now() + RETRY);
                return;
            }
        }
        let found = self.queues[0].interface().and_then(|name| {
            let is_up = self.interfaces.is_up(&name)?;
            Ok((name, is_up))
        });
        match found {
            Ok((name, true)) => {
                self.interface = name;
                if self.down.take().is_some() {
                    self.generation += 1;
                    self.counters.connects += 1;
                }
            }
            Ok((name, false)) => {
                self.set_down(format!("{name} is down: ip link set {name} up"));
                self.interface = name;
            }
            Err(_) => {
                self.queues.clear();
                self.set_down(format!("{} was removed", self.interface));
            }
        }
    }

    fn set_down(&mut self, why: String) {
        if self.down.replace(why).is_none() {
            self.counters.disconnects += 1;
        }
    }

    fn longest(&self) -> usize {
        self.mtu + HEADER_BYTES
    }

    /// Reads one frame from that queue; false: it has none.
    fn read(&mut self, queue: usize) -> bool {
        let (longest, near) = (self.longest(), self.config.mac);
        let at = if self.config.layer == Layer::Ip { ethernet::HEADER } else { 0 };
        let room = self.received.next();
        let Some(len) = self.queues[queue].read(&mut room[at..]) else { return false };
        if at + len > longest {
            self.counters.rx_too_long += 1;
            return true;
        }
        if at > 0 {
            let Some(header) = link_layer::incoming(room[at], near) else {
                self.counters.rx_not_ip += 1;
                return true;
            };
            room[..at].copy_from_slice(&header);
        }
        self.received.take(at + len);
        true
    }

    fn enqueue(&mut self, len: usize, write: impl FnOnce(&mut Vec<u8>)) -> Sent {
        if self.down.is_some() {
            self.counters.tx_down += 1;
            return Sent::Down;
        }
        if len == 0 || len > self.longest() {
            self.counters.tx_too_long += 1;
            return Sent::TooLong;
        }
        if self.queued.ends.len() >= DEPTH {
            self.counters.tx_full += 1;
            return Sent::Full;
        }
        let start = self.queued.bytes.len();
        write(&mut self.queued.bytes);
        if self.config.layer == Layer::Ip {
            match link_layer::outgoing(&self.queued.bytes[start..], self.config.mac) {
                Outgoing::Packet => {}
                other => {
                    self.queued.bytes.truncate(start);
                    self.keep_from_kernel(other);
                    return Sent::Queued;
                }
            }
        }
        self.queued.ends.push(self.queued.bytes.len());
        Sent::Queued
    }

    #[cold]
    fn keep_from_kernel(&mut self, frame: Outgoing) {
        match frame {
            Outgoing::Answer(_) if self.answers.len() >= ANSWERS => self.counters.rx_answers_full += 1,
            Outgoing::Answer(answer) => {
                self.answers.push_back(answer);
                if self.armed {
                    self.bell.ring();
                }
            }
            Outgoing::Foreign => self.counters.tx_not_ip += 1,
            Outgoing::Packet | Outgoing::Nothing => {}
        }
    }

    fn write(&mut self, frame: &[u8]) {
        let queue = match self.queues.len() {
            0 => {
                self.counters.tx_lost += 1;
                return;
            }
            1 => 0,
            several => spread::spread(frame) as usize % several,
        };
        let skip = if self.config.layer == Layer::Ip { ethernet::HEADER } else { 0 };
        match self.queues[queue].write(&frame[skip..]) {
            Ok(()) => {
                self.counters.tx_frames += 1;
                self.counters.tx_bytes += frame.len() as u64;
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => self.counters.tx_full += 1,
                // The interface is down, or gone.
                Some(libc::EIO | libc::EBADFD) => {
                    self.counters.tx_lost += 1;
                    self.look();
                }
                _ => self.counters.tx_refused += 1,
            },
        }
    }

    fn want_frames(&mut self, wanted: bool) {
        self.armed = wanted;
        for (token, queue) in (FIRST_QUEUE..).zip(&self.queues) {
            // It was added, so it can be changed.
            drop(self.epoll.want(queue, token, wanted));
        }
    }
}

impl Port for Tap {
    fn link(&self) -> Link {
        self.down.clone().map_or(Link::Up, Link::Down)
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn wake_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn service(&mut self, now: Instant) {
        let mut changed = self.retry_at.is_some_and(|at| at <= now);
        for ready in self.epoll.ready() {
            match ready.token {
                NEWS => changed |= self.news.take(),
                BELL => self.bell.calm(),
                _ => changed |= ready.broken,
            }
        }
        if changed {
            self.look();
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    fn mtu(&self) -> Option<usize> {
        Some(self.mtu)
    }

    fn lend(&mut self, max: usize) -> Burst<'_> {
        let max = max.min(BURST);
        while self.received.count < max
            && let Some(answer) = self.answers.pop_front()
        {
            self.received.next()[..answer.len()].copy_from_slice(&answer);
            self.received.take(answer.len());
        }
        // Each queue has its share, in turns. What is dropped counts against it as well.
        let queues = self.queues.len();
        let share = max.div_ceil(queues.max(1));
        for _ in 0..queues {
            self.turn = if self.turn + 1 < queues { self.turn + 1 } else { 0 };
            let mut left = share;
            while left > 0 && self.received.count < max && self.read(self.turn) {
                left -= 1;
            }
        }
        let mut burst = Burst::EMPTY;
        for (bytes, len) in
            self.received.bytes.chunks(self.received.stride).zip(&self.received.lens[..self.received.count])
        {
            burst.push(Lent::of(&bytes[..*len]));
        }
        burst
    }

    fn give_back(&mut self, dropped: usize) {
        let count = std::mem::take(&mut self.received.count);
        self.counters.rx_frames += (count - dropped) as u64;
        self.counters.rx_pool_dry += dropped as u64;
        self.counters.rx_bytes += self.received.lens[..count].iter().sum::<usize>() as u64;
    }

    fn send(&mut self, parts: &[&[u8]]) -> Sent {
        let len = parts.iter().map(|part| part.len()).sum();
        self.enqueue(len, |bytes| parts.iter().for_each(|part| bytes.extend_from_slice(part)))
    }

    fn send_lent(&mut self, head: &[u8], rest: Lent<'_>) -> Sent {
        self.enqueue(head.len() + rest.len(), |bytes| {
            bytes.extend_from_slice(head);
            let start = bytes.len();
            bytes.resize(start + rest.len(), 0);
            rest.copy_to(0, &mut bytes[start..]);
        })
    }

    fn room(&mut self) -> usize {
        if self.down.is_some() { usize::MAX } else { DEPTH - self.queued.ends.len() }
    }

    fn flush(&mut self) {
        if self.queued.ends.is_empty() {
            return;
        }
        let mut queued = std::mem::take(&mut self.queued);
        let mut start = 0;
        for end in queued.ends.drain(..) {
            self.write(&queued.bytes[start..end]);
            start = end;
        }
        queued.bytes.clear();
        self.queued = queued;
    }

    fn hand_over(&mut self) {
        // A frame costs its write, now or later.
        self.flush();
    }

    fn arm(&mut self) -> bool {
        self.want_frames(true);
        let waits = !self.answers.is_empty() || self.epoll.ready().any(|ready| ready.token >= FIRST_QUEUE);
        if waits {
            self.want_frames(false);
        }
        !waits
    }

    fn disarm(&mut self) {
        self.want_frames(false);
        self.bell.calm();
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut dropped_by = self.dropped.get();
        if let Some(last) = Some(self.index).filter(|_| !self.queues.is_empty()).and_then(|index| dropped(index).ok()) {
            dropped_by.last = last;
            self.dropped.set(dropped_by);
        }
        Counters { rx_dropped: dropped_by.sum(), ..self.counters.clone() }.list()
    }
}
