//! Handshakes that peers began: how many there are, of which listener and from where (RFC 4987 §3).

use std::collections::VecDeque;
use std::net::IpAddr;

use foldhash::fast::SeedableRandomState;
use hashbrown::HashMap;

use super::TcpId;
use crate::stack::random::Random;

#[derive(Default)]
struct Queue {
    count: usize,
    /// Oldest first; those whose handshake is over are out of date.
    order: VecDeque<TcpId>,
}

pub(super) struct HalfOpen {
    listeners: HashMap<u32, Queue, SeedableRandomState>,
    sources: HashMap<u128, usize, SeedableRandomState>,
}

/// An IPv4 address, or the /64 that one IPv6 subscriber has.
fn source(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6) >> 64 << 64,
    }
}

impl HalfOpen {
    pub fn new(random: &mut Random) -> Self {
        Self { listeners: HashMap::with_hasher(random.hasher()), sources: HashMap::with_hasher(random.hasher()) }
    }

    pub fn len(&self) -> usize {
        self.listeners.values().map(|queue| queue.count).sum()
    }

    pub fn from(&self, address: IpAddr) -> usize {
        self.sources.get(&source(address)).copied().unwrap_or(0)
    }

    pub fn of(&self, listener: u32) -> usize {
        self.listeners.get(&listener).map_or(0, |queue| queue.count)
    }

    pub fn begin(&mut self, id: TcpId, listener: u32, address: IpAddr) {
        *self.sources.entry(source(address)).or_default() += 1;
        let queue = self.listeners.entry(listener).or_default();
        queue.count += 1;
        queue.order.push_back(id);
    }

    /// The handshake is over, well or not.
    pub fn end(&mut self, listener: u32, address: IpAddr, is_half_open: impl Fn(TcpId) -> bool) {
        if let Some(count) = self.sources.get_mut(&source(address)) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&source(address));
            }
        }
        if let Some(queue) = self.listeners.get_mut(&listener) {
            queue.count -= 1;
            if queue.order.len() > 64 + 2 * queue.count {
                queue.order.retain(|&id| is_half_open(id));
            }
        }
    }

    /// The oldest of a listener that may still be half open; the caller sees whether it is.
    pub fn oldest(&mut self, listener: u32) -> Option<TcpId> {
        self.listeners.get_mut(&listener)?.order.pop_front()
    }
}
