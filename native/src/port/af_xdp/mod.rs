//! AF_XDP: frames from and to a network interface, past the kernel's stack.

use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::time::Instant;

use super::lent::Burst;
use super::{Link, Port, Sent};

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
        }
    }
}

pub struct AfXdp;

impl AfXdp {
    pub fn new(config: AfXdpConfig) -> io::Result<Self> {
        Err(io::Error::other(format!("{}: af_xdp is not there yet", config.name)))
    }
}

impl Port for AfXdp {
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
