//! A port whose far end is the program itself: what the host sends is taken from it, what the host shall receive is
//! given to it. For tests and simulated networks; always up, and without a descriptor to sleep on.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::lent::{self, Burst, Lent};
use super::{HEADER_BYTES, Link, Port, Sent};

/// Frames that may wait in each direction.
const DEPTH: usize = 65_536;

#[derive(Default)]
struct Lanes {
    inbound: VecDeque<Vec<u8>>,
    /// Sent, and flushed.
    outbound: Vec<Vec<u8>>,
    rx_full: u64,
}

/// The far end.
#[derive(Clone, Default)]
pub struct Queue(Arc<Mutex<Lanes>>);

impl Queue {
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One frame for the host; false, and counted, when too many wait already.
    pub fn give(&self, frame: Vec<u8>) -> bool {
        let mut lanes = self.lanes();
        let room = lanes.inbound.len() < DEPTH;
        if room {
            lanes.inbound.push_back(frame);
        } else {
            lanes.rx_full += 1;
        }
        room
    }

    /// What the host has sent since.
    pub fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.lanes().outbound)
    }

    pub fn has_sent(&self) -> bool {
        !self.lanes().outbound.is_empty()
    }
}

#[derive(Default)]
struct Counts {
    rx_frames: u64,
    rx_bytes: u64,
    rx_pool_dry: u64,
    tx_frames: u64,
    tx_bytes: u64,
    tx_full: u64,
    tx_too_long: u64,
}

/// The host's end.
pub struct QueuePort {
    mtu: usize,
    queue: Queue,
    queued: Vec<Vec<u8>>,
    lent: Vec<Vec<u8>>,
    counts: Counts,
}

impl QueuePort {
    /// Carries IP packets up to `mtu`.
    pub fn new(mtu: usize, queue: Queue) -> Self {
        Self { mtu, queue, queued: Vec::new(), lent: Vec::new(), counts: Counts::default() }
    }
}

impl Port for QueuePort {
    fn link(&self) -> Link {
        Link::Up
    }

    fn generation(&self) -> u64 {
        1
    }

    fn wake_fd(&self) -> RawFd {
        -1
    }

    fn service(&mut self, _now: Instant) {}

    fn lend(&mut self, max: usize) -> Burst<'_> {
        let mut lanes = self.queue.lanes();
        let count = max.min(lent::BURST).min(lanes.inbound.len());
        self.lent.extend(lanes.inbound.drain(..count));
        let mut burst = Burst::EMPTY;
        self.lent.iter().for_each(|frame| burst.push(Lent::of(frame)));
        burst
    }

    fn give_back(&mut self, dropped: usize) {
        let bytes: usize = self.lent.iter().map(Vec::len).sum();
        self.counts.rx_frames += (self.lent.len() - dropped) as u64;
        self.counts.rx_pool_dry += dropped as u64;
        self.counts.rx_bytes += bytes as u64;
        self.lent.clear();
    }

    fn send(&mut self, parts: &[&[u8]]) -> Sent {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if len == 0 || len > self.mtu + HEADER_BYTES {
            self.counts.tx_too_long += 1;
            Sent::TooLong
        } else if self.queue.lanes().outbound.len() + self.queued.len() >= DEPTH {
            self.counts.tx_full += 1;
            Sent::Full
        } else {
            self.queued.push(parts.concat());
            Sent::Queued
        }
    }

    fn room(&mut self) -> usize {
        DEPTH.saturating_sub(self.queue.lanes().outbound.len() + self.queued.len())
    }

    fn flush(&mut self) {
        self.counts.tx_frames += self.queued.len() as u64;
        self.counts.tx_bytes += self.queued.iter().map(|frame| frame.len() as u64).sum::<u64>();
        self.queue.lanes().outbound.append(&mut self.queued);
    }

    fn arm(&mut self) -> bool {
        self.queue.lanes().inbound.is_empty()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counts { rx_frames, rx_bytes, rx_pool_dry, tx_frames, tx_bytes, tx_full, tx_too_long } = self.counts;
        vec![
            ("rx_frames", rx_frames),
            ("rx_bytes", rx_bytes),
            ("rx_pool_dry", rx_pool_dry),
            ("rx_full", self.queue.lanes().rx_full),
            ("tx_frames", tx_frames),
            ("tx_bytes", tx_bytes),
            ("tx_full", tx_full),
            ("tx_too_long", tx_too_long),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Pool, PoolConfig};

    #[test]
    fn frames_pass_in_order_and_leave_only_with_a_flush() {
        let pool = Pool::new(&PoolConfig { classes: vec![(64, 8)] }).unwrap();
        let queue = Queue::default();
        let mut port = QueuePort::new(64, queue.clone());
        assert!(port.arm());
        assert!(queue.give(b"one".to_vec()) && queue.give(b"two".to_vec()));
        assert!(!port.arm());
        let mut frames = Vec::new();
        assert_eq!(port.receive(&pool, &mut frames, 8), 2);
        assert_eq!(frames.iter().map(|frame| frame.to_vec()).collect::<Vec<_>>(), [b"one", b"two"]);
        assert_eq!(port.send(&[b"an", b"swer"]), Sent::Queued);
        assert!(!queue.has_sent());
        port.flush();
        assert_eq!(queue.take(), [b"answer".to_vec()]);
        assert!(queue.take().is_empty());
    }

    #[test]
    fn what_cannot_be_carried_is_refused_and_counted() {
        let mut port = QueuePort::new(64, Queue::default());
        assert_eq!(port.send(&[&[0; 64 + HEADER_BYTES + 1]]), Sent::TooLong);
        assert_eq!(port.send(&[]), Sent::TooLong);
        assert!(port.counters().contains(&("tx_too_long", 2)));
    }

    #[test]
    fn too_many_frames_are_refused_and_counted() {
        let queue = Queue::default();
        let port = QueuePort::new(64, queue.clone());
        assert!((0..DEPTH).all(|_| queue.give(vec![0])));
        assert!(!queue.give(vec![0]));
        assert!(port.counters().contains(&("rx_full", 1)));
    }
}
