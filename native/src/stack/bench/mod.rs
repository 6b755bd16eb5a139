//! One host on a table: a port that keeps what it is given, a pool, a clock that stands still until it is moved. For
//! tests, benchmarks and fuzzing.

pub mod segment;

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use super::random::Random;
use super::{Cidr, Host, HostConfig, Input, Unreachable};
use crate::packet::ethernet::Mac;
use crate::packet::{Pool, PoolConfig, Slot};
use crate::port::lent::Burst;
use crate::port::{Link, Port, Sent};

/// A port without a peer: frames go in and are kept, none come out.
pub struct Recorder {
    pub sent: Vec<Vec<u8>>,
    /// What the next frame is told.
    pub answer: Sent,
    /// How many frames it still takes before it is `Full`.
    pub room: usize,
    /// The longest frame it was ever given.
    pub longest: usize,
    pub keeps: bool,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { sent: Vec::new(), answer: Sent::Queued, room: usize::MAX, longest: 0, keeps: true }
    }
}

impl Port for Recorder {
    fn link(&self) -> Link {
        Link::Up
    }

    fn generation(&self) -> u64 {
        1
    }

    fn wake_fd(&self) -> RawFd {
        -1
    }

    fn service(&mut self, _: Instant) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn lend(&mut self, _max: usize) -> Burst<'_> {
        Burst::EMPTY
    }

    fn give_back(&mut self, _dropped: usize) {}

    fn receive(&mut self, _: &Pool, _: &mut Vec<Slot>, _: usize) -> usize {
        0
    }

    #[inline(never)]
    fn send(&mut self, parts: &[&[u8]]) -> Sent {
        self.longest = self.longest.max(parts.iter().map(|part| part.len()).sum());
        if self.answer != Sent::Queued {
            return self.answer;
        }
        if self.room == 0 {
            return Sent::Full;
        }
        self.room -= 1;
        assert!(self.sent.len() < 100_000, "what is sent at once is endless");
        if self.keeps {
            self.sent.push(parts.concat());
        }
        Sent::Queued
    }

    fn room(&mut self) -> usize {
        if self.answer == Sent::Queued { self.room } else { 0 }
    }

    fn flush(&mut self) {}

    fn arm(&mut self) -> bool {
        true
    }

    fn disarm(&mut self) {}

    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// The station `last` of one link: 10.0.0.`last`/24 and fd00::`last`/64, link address 02:00:00:00:00:`last`, virtual
/// 10.0.0.100 and fd00::100, gateways 10.0.0.1 and fd00::1, MTU 1,500. `last` is below 10: one digit of both.
pub fn station(last: u8) -> HostConfig {
    let v4 = |last: u8| IpAddr::from([10, 0, 0, last]);
    let v6 = |last: u16| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last]);
    HostConfig {
        mac: mac(last),
        addresses: vec![Cidr { address: v4(last), prefix: 24 }, Cidr { address: v6(last.into()), prefix: 64 }],
        virtual_addresses: vec![v4(100), v6(0x100)],
        gateways: vec![v4(1), v6(1)],
        mtu: 1_500,
        tcp: Default::default(),
    }
}

pub const fn mac(last: u8) -> Mac {
    [2, 0, 0, 0, 0, last]
}

pub struct Bench {
    pub host: Host,
    pub port: Recorder,
    pub pool: Pool,
    pub now: Instant,
}

impl Bench {
    pub fn of(config: HostConfig, pool: Vec<(usize, usize)>) -> Self {
        let pool = Pool::new(&PoolConfig { classes: pool }).expect("memory for the pool");
        Self { host: Host::new(config), port: Recorder::default(), pool, now: Instant::now() }
    }

    /// Ports follow from `seed`; each connection's initial sequence number is `isn`, and one more every 4 µs.
    pub fn know(&mut self, seed: u64, isn: u32) {
        self.host.random = Random::seeded(seed);
        self.host.tcp.foresee(isn);
    }

    /// A frame as the wire brings it. Panics when the pool is dry.
    pub fn receive(&mut self, frame: &[u8]) -> Input {
        let mut slot = self.pool.take(frame.len()).expect("a free slot");
        slot.copy_from_slice(frame);
        self.host.receive(slot, self.now, &self.pool, &mut self.port)
    }

    /// Returns the flows that turned out to be unreachable.
    pub fn pass(&mut self, time: Duration) -> Vec<(u32, Unreachable)> {
        self.now += time;
        let mut unreachable = Vec::new();
        self.host.on_timer(self.now, &mut self.port, &mut unreachable);
        unreachable
    }

    /// Is every buffer back in the pool?
    pub fn has_all_buffers(&self) -> bool {
        self.pool.statistics().iter().all(|class| class.free == class.slots)
    }
}
