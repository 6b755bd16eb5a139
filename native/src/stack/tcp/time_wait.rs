//! TIME-WAIT (RFC 9293 §3.6.1) without the connection: what is needed to acknowledge a FIN again, and no more.
//!
//! A new SYN beyond the old sequence numbers ends it early (RFC 1122 §4.2.2.13), resets do not (RFC 1337).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use foldhash::fast::SeedableRandomState;
use hashbrown::HashMap;

use crate::packet::ethernet::Mac;
use crate::stack::flows::Key;
use crate::stack::random::Random;

#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    /// The next sequence numbers: ours, and the peer's.
    pub send_next: u32,
    pub receive_next: u32,
    pub mac: Mac,
    /// Tells this entry from an earlier one of the same key.
    serial: u64,
}

pub(super) struct TimeWait {
    table: HashMap<Key, Waiting, SeedableRandomState>,
    /// Ends in their order; one whose serial number is not that of the table is out of date.
    queue: VecDeque<(Instant, u64, Key)>,
    serial: u64,
    length: Duration,
    limit: usize,
}

impl TimeWait {
    pub fn new(length: Duration, limit: usize, random: &mut Random) -> Self {
        Self {
            table: HashMap::with_hasher(random.hasher()),
            queue: VecDeque::new(),
            serial: 0,
            length,
            limit: limit.max(1),
        }
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    #[inline]
    pub fn get(&self, key: &Key) -> Option<Waiting> {
        if self.table.is_empty() { None } else { self.table.get(key).copied() }
    }

    /// Begins, or begins again. `true`: the oldest had to give way.
    pub fn begin(&mut self, key: Key, send_next: u32, receive_next: u32, mac: Mac, now: Instant) -> bool {
        let evicts = self.table.len() >= self.limit && !self.table.contains_key(&key);
        if evicts {
            while let Some((_, serial, oldest)) = self.queue.pop_front() {
                if self.table.get(&oldest).is_some_and(|waiting| waiting.serial == serial) {
                    self.table.remove(&oldest);
                    break;
                }
            }
        }
        self.serial += 1;
        let serial = self.serial;
        self.table.insert(key, Waiting { send_next, receive_next, mac, serial });
        self.queue.push_back((now + self.length, serial, key));
        // Those that ended early leave the queue before they outnumber the others.
        if self.queue.len() > 1_024 + 2 * self.table.len() {
            let table = &self.table;
            self.queue.retain(|(_, serial, key)| table.get(key).is_some_and(|waiting| waiting.serial == *serial));
        }
        evicts
    }

    pub fn remove(&mut self, key: &Key) -> Option<Waiting> {
        if self.table.is_empty() { None } else { self.table.remove(key) }
    }

    pub fn expire(&mut self, now: Instant) {
        while let Some(&(end, serial, key)) = self.queue.front() {
            if end > now {
                break;
            }
            self.queue.pop_front();
            if self.table.get(&key).is_some_and(|waiting| waiting.serial == serial) {
                self.table.remove(&key);
            }
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.queue.front().map(|&(end, ..)| end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> Key {
        Key::new(format!("10.0.0.1:{port}").parse().unwrap(), "10.0.0.2:80".parse().unwrap())
    }

    #[test]
    fn an_entry_ends_in_time_and_one_begun_again_later() {
        let now = Instant::now();
        let mut waiting = TimeWait::new(Duration::from_secs(10), 100, &mut Random::new());
        waiting.begin(key(1), 1, 2, [0; 6], now);
        waiting.begin(key(2), 1, 2, [0; 6], now);
        waiting.begin(key(1), 1, 2, [0; 6], now + Duration::from_secs(5));
        waiting.expire(now + Duration::from_secs(10));
        assert!(waiting.get(&key(1)).is_some() && waiting.get(&key(2)).is_none());
        waiting.expire(now + Duration::from_secs(15));
        assert_eq!((waiting.len(), waiting.deadline()), (0, None));
    }

    #[test]
    fn the_oldest_gives_way_and_the_queue_stays_short() {
        let now = Instant::now();
        let mut waiting = TimeWait::new(Duration::from_secs(10), 2, &mut Random::new());
        assert!(!waiting.begin(key(1), 1, 2, [0; 6], now) && !waiting.begin(key(2), 1, 2, [0; 6], now));
        assert!(waiting.begin(key(3), 1, 2, [0; 6], now));
        assert!(waiting.get(&key(1)).is_none() && waiting.len() == 2);
        for _ in 0..10_000 {
            waiting.begin(key(9), 1, 2, [0; 6], now);
            waiting.remove(&key(9));
        }
        assert!(waiting.queue.len() < 2_000);
    }
}
