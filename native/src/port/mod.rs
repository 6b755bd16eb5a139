//! Ports: where frames enter and leave.
//!
//! A port never blocks and never trusts its peer. Its owner polls it, or sleeps on [`Port::wake_fd`] after
//! [`Port::arm`] said that nothing is waiting.
//!
//! Frames come in by one of two ways: [`Port::receive`] copies them into slots of the pool; [`Port::lend`] shows them
//! where they are (see [`lent`]), for those that only pass through.

pub mod af_xdp;
pub mod capture;
mod counting;
mod interface;
pub mod lent;
pub mod memif;
pub mod options;
pub mod pair;
pub mod pcap;
pub mod polling;
pub mod queue;
pub mod tap;
pub(crate) mod waiting;
pub mod watched;

use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

use self::lent::{Burst, Lent};
use self::options::{Kind, PortOptions};
use crate::packet::ethernet::Mac;
use crate::packet::{Pool, Slot};
use crate::stack::HostConfig;

/// An Ethernet header and one 802.1Q tag: what a frame is longer than its IP packet.
pub const HEADER_BYTES: usize = 14 + 4;

/// What became of a frame given to [`Port::send`]. All but `Queued` are counted by the port as a drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    Queued,
    /// The peer has left no room.
    Full,
    /// Longer than the port can carry.
    TooLong,
    /// No peer is connected.
    Down,
}

/// Whether a peer is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    Up,
    /// Why there is no peer now ("waiting for a client", "peer: Incorrect secret", …).
    Down(String),
}

/// The contract of every port.
pub trait Port: Send {
    fn link(&self) -> Link;

    /// Who is at the other end, for people, where the port can tell.
    fn peer(&self) -> Option<String> {
        None
    }

    /// Counts the times the link came up: a change tells the owner to announce its addresses.
    fn generation(&self) -> u64;

    /// Readable (level-triggered, an epoll descriptor) when `service` has work or, while armed, frames arrived. -1 for a
    /// port that nothing but its owner or the time wakes.
    fn wake_fd(&self) -> RawFd;

    /// Accepts, shakes hands, notices a dead peer, reconnects. Cheap when there is nothing to do; call it when
    /// `wake_fd` is readable, when `deadline` has passed, and now and then while polling.
    fn service(&mut self, now: Instant);

    /// When `service` wants to be called next even if nothing happens.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The link address that the port itself has, where it has one.
    fn mac(&self) -> Option<Mac> {
        None
    }

    /// The largest IP packet, where what the port stands on has a say in it.
    fn mtu(&self) -> Option<usize> {
        None
    }

    /// Copies up to `max` waiting frames, each once, into slots of `pool` and appends them to `frames`; returns how
    /// many there were, those dropped for want of a slot included.
    fn receive(&mut self, pool: &Pool, frames: &mut Vec<Slot>, max: usize) -> usize {
        let (mut taken, mut dry) = (0, 0);
        let burst = self.lend(max);
        for lent in burst.in_turn() {
            taken += 1;
            match pool.take(lent.len()) {
                Some(mut slot) => {
                    lent.copy_to(0, &mut slot);
                    frames.push(slot);
                }
                None => dry += 1,
            }
        }
        self.give_back(dry);
        taken
    }

    /// Shows up to `max` (at most [`lent::BURST`]) waiting frames where they are. They count as received. Nothing else is
    /// called on the port before `give_back`, which must follow, also after an empty burst.
    fn lend(&mut self, max: usize) -> Burst<'_>;

    /// What the last `lend` showed is done with; `dropped` of it for want of a slot in the pool, which the port counts
    /// as `rx_pool_dry` rather than as received.
    fn give_back(&mut self, dropped: usize);

    /// Queues one frame made of `parts`, in order. Nothing reaches the peer before `flush`.
    fn send(&mut self, parts: &[&[u8]]) -> Sent;

    /// As `send`, of `head` and what another port has lent. A port that can does it with one copy.
    fn send_lent(&mut self, head: &[u8], rest: Lent<'_>) -> Sent {
        let mut copy = [0; lent::LONGEST];
        match copy.get_mut(..rest.len()) {
            Some(copy) => {
                rest.copy_to(0, copy);
                self.send(&[head, copy])
            }
            // The port says how it counts that.
            None => self.send(&[head, &vec![0; rest.len()]]),
        }
    }

    /// How many frames `send` takes at least, as far as the port knows; a port that is down takes, and drops, any number.
    fn room(&mut self) -> usize {
        usize::MAX
    }

    /// As many frames of about that length will probably be sent soon: a port may ask ahead for the memory.
    fn expect(&mut self, _count: usize, _len: usize) {}

    /// Hands everything queued to the peer, and wakes it if it asked for that.
    fn flush(&mut self);

    /// Shows a peer that polls what is queued so far, cheaply; one that sleeps may miss it. `flush` must follow.
    fn hand_over(&mut self) {}

    /// Asks to be woken through `wake_fd`. `false`: frames are waiting already, do not sleep.
    fn arm(&mut self) -> bool;

    /// Polling again: no wake-ups wanted.
    fn disarm(&mut self) {}

    /// Every counter by its name.
    fn counters(&self) -> Vec<(&'static str, u64)>;

    /// The port within, for good, where this one only watches it.
    fn unwatched(&mut self) -> Option<Box<dyn Port>> {
        None
    }
}

/// Whether a counter of that name counts packets that went no further.
pub fn counts_drops(name: &str) -> bool {
    const WORDS: [&str; 9] = ["drop", "dropped", "bad", "dry", "full", "long", "down", "lost", "invalid"];
    match name {
        // What a capture lacks has passed all the same.
        "capture_lost" => false,
        "connections_refused" | "requests_refused" | "tx_refused" => true,
        "rx_empty" | "rx_foreign" | "rx_not_ip" | "tx_not_ip" => true,
        _ => name.split('_').any(|word| WORDS.contains(&word)),
    }
}

/// Opens a port, and completes what its host is told by what only the open port knows.
pub fn open(options: PortOptions) -> io::Result<(Box<dyn Port>, HostConfig)> {
    let PortOptions { kind, mut host, mac_is_given, mtu_is_given, .. } = options;
    let port: Box<dyn Port> = match kind {
        Kind::Memif(config) => Box::new(memif::Memif::new(config)?),
        Kind::AfXdp(config) => Box::new(af_xdp::AfXdp::new(config)?),
        Kind::Tap(config) => Box::new(tap::Tap::new(config)?),
        Kind::Pcap(config) => Box::new(pcap::Pcap::new(config)?),
    };
    host.mac = port.mac().filter(|_| !mac_is_given).unwrap_or(host.mac);
    host.mtu = port.mtu().filter(|_| !mtu_is_given).unwrap_or(host.mtu);
    Ok((port, host))
}
