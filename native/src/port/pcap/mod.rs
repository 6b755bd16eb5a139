//! Captures as a port: frames come from one file and go to another.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Instant;

use super::lent::Burst;
use super::{Link, Port, Sent};

/// How fast a capture is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as frames are taken.
    Full,
    /// As their time stamps say.
    Recorded,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcapConfig {
    pub name: String,
    pub input: Option<PathBuf>,
    pub output: Option<PathBuf>,
    pub pace: Pace,
    /// From the beginning again at the end.
    pub repeat: bool,
    pub mtu: usize,
}

impl PcapConfig {
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), input: None, output: None, pace: Pace::Full, repeat: false, mtu: 9216 }
    }
}

pub struct Pcap;

impl Pcap {
    pub fn new(config: PcapConfig) -> io::Result<Self> {
        Err(io::Error::other(format!("{}: pcap is not there yet", config.name)))
    }
}

impl Port for Pcap {
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
