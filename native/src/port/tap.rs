//! TAP and TUN: frames, or IP packets, to and from the kernel through a character device.

use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

use super::lent::Burst;
use super::{Link, Port, Sent};

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
}

impl TapConfig {
    pub fn new(name: &str, interface: &str) -> Self {
        Self { name: name.into(), interface: interface.into(), layer: Layer::Ethernet, queues: 1, mtu: None }
    }
}

pub struct Tap;

impl Tap {
    pub fn new(config: TapConfig) -> io::Result<Self> {
        Err(io::Error::other(format!("{}: tap is not there yet", config.name)))
    }
}

impl Port for Tap {
    fn link(&self) -> Link {
        Link::Down("not open".into())
    }

    fn generation(&self) -> u64 {
        0
    }

    fn wake_fd(&self) -> RawFd {
        -1
    }

    fn service(&mut self, _now: Instant) {}

    fn lend(&mut self, _max: usize) -> Burst<'_> {
        Burst::EMPTY
    }

    fn give_back(&mut self, _dropped: usize) {}

    fn send(&mut self, _parts: &[&[u8]]) -> Sent {
        Sent::Down
    }

    fn flush(&mut self) {}

    fn arm(&mut self) -> bool {
        true
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}
