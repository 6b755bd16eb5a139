//! Ports: where frames enter and leave.
//!
//! A port never blocks and never trusts its peer. Its owner polls it, or sleeps on [`Port::wake_fd`] after
//! [`Port::arm`] said that nothing is waiting.

pub mod memif;
pub mod options;
pub mod pair;
pub mod queue;

use std::os::fd::RawFd;
use std::time::Instant;

use crate::packet::{Pool, Slot};

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

    /// Counts the times the link came up: a change tells the owner to announce its addresses.
    fn generation(&self) -> u64;

    /// Readable (level-triggered, an epoll descriptor) when `service` has work or, while armed, frames arrived. -1 for a
    /// port whose owner gives it its frames.
    fn wake_fd(&self) -> RawFd;

    /// Accepts, shakes hands, notices a dead peer, reconnects. Cheap when there is nothing to do; call it when
    /// `wake_fd` is readable, when `deadline` has passed, and now and then while polling.
    fn service(&mut self, now: Instant);

    /// When `service` wants to be called next even if nothing happens.
    fn deadline(&self) -> Option<Instant>;

    /// Copies up to `max` waiting frames, each once, into slots of `pool` and appends them to `frames`; returns how
    /// many were taken from the ring, dropped ones (dry pool, invalid descriptor) included.
    fn receive(&mut self, pool: &Pool, frames: &mut Vec<Slot>, max: usize) -> usize;

    /// Queues one frame made of `parts`, in order. Nothing reaches the peer before `flush`.
    fn send(&mut self, parts: &[&[u8]]) -> Sent;

    /// How many frames `send` takes at least, as far as the port knows; a port that is down takes, and drops, any number.
    fn room(&mut self) -> usize {
        usize::MAX
    }

    /// Hands everything queued to the peer, and wakes it if it asked for that.
    fn flush(&mut self);

    /// Shows a peer that polls what is queued so far, cheaply; one that sleeps may miss it. `flush` must follow.
    fn hand_over(&mut self) {}

    /// Asks to be woken through `wake_fd`. `false`: frames are waiting already, do not sleep.
    fn arm(&mut self) -> bool;

    /// Polling again: no wake-ups wanted.
    fn disarm(&mut self);

    /// Every counter by its name.
    fn counters(&self) -> Vec<(&'static str, u64)>;
}
