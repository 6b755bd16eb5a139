//! Two ports in one process, back to back: what one sends the other receives. For tests, benches and fuzzing.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::lent::{self, Burst, Lent};
use super::waiting::{Bell, Epoll};
use super::{HEADER_BYTES, Link, Port, Sent};

/// One direction, as its receiver and its sender see it.
struct Lane {
    state: Mutex<LaneState>,
    /// Readable while the receiver is armed and frames arrived, or once the sender is gone.
    wake: Bell,
}

#[derive(Default)]
struct LaneState {
    frames: VecDeque<Vec<u8>>,
    armed: bool,
    /// One of the two ends was dropped.
    closed: bool,
}

impl Lane {
    fn new() -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self { state: Mutex::default(), wake: Bell::new()? }))
    }

    fn state(&self) -> MutexGuard<'_, LaneState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
    tx_down: u64,
    tx_lost: u64,
}

/// One end.
pub struct PairPort {
    mtu: usize,
    depth: usize,
    inbound: Arc<Lane>,
    outbound: Arc<Lane>,
    queued: Vec<Vec<u8>>,
    lent: Vec<Vec<u8>>,
    epoll: Epoll,
    counts: Counts,
}

/// Two connected ports that carry IP packets up to `mtu` and hold up to `depth` frames in each direction. Panics when
/// the system refuses the four descriptors they need.
pub fn pair(mtu: usize, depth: usize) -> (PairPort, PairPort) {
    let [one, two] = [(), ()].map(|()| Lane::new().expect("an eventfd"));
    let left = PairPort::new(mtu, depth, one.clone(), two.clone()).expect("an epoll set");
    (left, PairPort::new(mtu, depth, two, one).expect("an epoll set"))
}

impl PairPort {
    fn new(mtu: usize, depth: usize, inbound: Arc<Lane>, outbound: Arc<Lane>) -> std::io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(&inbound.wake, 0, true)?;
        Ok(Self {
            mtu,
            depth,
            inbound,
            outbound,
            queued: Vec::new(),
            lent: Vec::new(),
            epoll,
            counts: Counts::default(),
        })
    }
}

impl Port for PairPort {
    fn link(&self) -> Link {
        if self.inbound.state().closed { Link::Down("the other end is gone".into()) } else { Link::Up }
    }

    fn generation(&self) -> u64 {
        1
    }

    fn wake_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn service(&mut self, _now: Instant) {
        self.inbound.wake.calm();
    }

    fn lend(&mut self, max: usize) -> Burst<'_> {
        let mut state = self.inbound.state();
        let count = max.min(lent::BURST).min(state.frames.len());
        self.lent.extend(state.frames.drain(..count));
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
        let frame = parts.concat();
        let state = self.outbound.state();
        if state.closed {
            self.counts.tx_down += 1;
            Sent::Down
        } else if frame.is_empty() || frame.len() > self.mtu + HEADER_BYTES {
            self.counts.tx_too_long += 1;
            Sent::TooLong
        } else if state.frames.len() + self.queued.len() >= self.depth {
            self.counts.tx_full += 1;
            Sent::Full
        } else {
            self.queued.push(frame);
            Sent::Queued
        }
    }

    fn room(&mut self) -> usize {
        let state = self.outbound.state();
        if state.closed { usize::MAX } else { self.depth.saturating_sub(state.frames.len() + self.queued.len()) }
    }

    fn flush(&mut self) {
        if self.queued.is_empty() {
            return;
        }
        let mut state = self.outbound.state();
        if state.closed {
            self.counts.tx_lost += self.queued.drain(..).count() as u64;
            return;
        }
        self.counts.tx_frames += self.queued.len() as u64;
        self.counts.tx_bytes += self.queued.iter().map(|frame| frame.len() as u64).sum::<u64>();
        state.frames.extend(self.queued.drain(..));
        if state.armed {
            self.outbound.wake.ring();
        }
    }

    fn arm(&mut self) -> bool {
        let mut state = self.inbound.state();
        state.armed = state.frames.is_empty();
        state.armed
    }

    fn disarm(&mut self) {
        self.inbound.state().armed = false;
        self.inbound.wake.calm();
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counts { rx_frames, rx_bytes, rx_pool_dry, tx_frames, tx_bytes, tx_full, tx_too_long, tx_down, tx_lost } =
            self.counts;
        vec![
            ("rx_frames", rx_frames),
            ("rx_bytes", rx_bytes),
            ("rx_pool_dry", rx_pool_dry),
            ("tx_frames", tx_frames),
            ("tx_bytes", tx_bytes),
            ("tx_full", tx_full),
            ("tx_too_long", tx_too_long),
            ("tx_down", tx_down),
            ("tx_lost", tx_lost),
        ]
    }
}

impl Drop for PairPort {
    fn drop(&mut self) {
        for lane in [&self.inbound, &self.outbound] {
            lane.state().closed = true;
            lane.wake.ring();
        }
    }
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use super::*;
    use crate::packet::{Pool, PoolConfig};

    fn pool() -> Pool {
        Pool::new(&PoolConfig { classes: vec![(64, 8)] }).unwrap()
    }

    fn readable(port: &PairPort) -> bool {
        let mut poll = libc::pollfd { fd: port.wake_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd is given.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    }

    fn received(port: &mut PairPort) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        port.receive(&pool(), &mut frames, 64);
        frames.iter().map(|frame| frame.to_vec()).collect()
    }

    #[test]
    fn frames_arrive_in_order_and_only_after_a_flush() {
        let (mut left, mut right) = pair(64, 8);
        assert_eq!(left.send(&[b"ab", b"", b"c"]), Sent::Queued);
        assert_eq!(left.send(&[b"d"]), Sent::Queued);
        assert!(received(&mut right).is_empty());
        left.flush();
        assert_eq!(received(&mut right), [b"abc".to_vec(), b"d".to_vec()]);
        assert!(received(&mut left).is_empty());
    }

    #[test]
    fn an_armed_end_is_woken_and_a_waiting_frame_forbids_sleep() {
        let (mut left, mut right) = pair(64, 8);
        assert!(right.arm() && !readable(&right));
        left.send(&[b"x"]);
        assert!(!readable(&right));
        left.flush();
        assert!(readable(&right));
        right.disarm();
        assert!(!readable(&right) && !right.arm());
        assert_eq!(received(&mut right).len(), 1);
        assert!(right.arm());
    }

    #[test]
    fn what_cannot_be_carried_is_refused_and_counted() {
        let (mut left, right) = pair(64, 1);
        assert_eq!(left.send(&[&[0; 64 + HEADER_BYTES + 1]]), Sent::TooLong);
        assert_eq!(left.send(&[]), Sent::TooLong);
        assert_eq!(left.send(&[b"x"]), Sent::Queued);
        assert_eq!(left.send(&[b"y"]), Sent::Full);
        drop(right);
        assert_eq!(left.send(&[b"z"]), Sent::Down);
        assert!(readable(&left) && left.link() != Link::Up);
        let counted: Vec<_> = left.counters().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [("tx_full", 1), ("tx_too_long", 2), ("tx_down", 1)]);
    }
}
