//! TIME-WAIT (RFC 9293 §3.6.1) without the connection: what is needed to acknowledge a FIN again, and no more.
//!
//! A new SYN beyond the old sequence numbers ends it early (RFC 1122 §4.2.2.13), resets do not (RFC 1337).

use std::collections::VecDeque;
use std::time::Duration;

use foldhash::fast::SeedableRandomState;
use hashbrown::HashTable;

use super::micros;
use crate::stack::flows::Key;
use crate::stack::random::Random;

#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    /// The next sequence numbers: ours, and the peer's.
    pub send_next: u32,
    pub receive_next: u32,
}

struct Entry {
    key: Key,
    waiting: Waiting,
    until: u64,
    /// Not ended early.
    lives: bool,
}

/// A queue in the order of the ends, written and read from one side to the other, and a table of places in it: with a
/// hundred thousand entries, whatever is touched at random costs a walk to memory.
pub(super) struct TimeWait {
    queue: VecDeque<Entry>,
    /// The place of the queue's first entry; places count on for ever, round 2^32.
    first: u32,
    table: HashTable<u32>,
    hasher: SeedableRandomState,
    length: u64,
    limit: usize,
}

impl TimeWait {
    pub fn new(length: Duration, limit: usize, random: &mut Random) -> Self {
        Self {
            queue: VecDeque::new(),
            first: 0,
            table: HashTable::new(),
            hasher: random.hasher(),
            length: micros(length),
            limit: limit.clamp(1, 1 << 24),
        }
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    #[inline]
    pub fn get(&self, key: &Key) -> Option<Waiting> {
        if self.table.is_empty() {
            return None;
        }
        let at = |place: u32| &self.queue[place.wrapping_sub(self.first) as usize];
        self.table.find(key.hash_with(&self.hasher), |&place| at(place).key == *key).map(|&place| at(place).waiting)
    }

    /// Begins, or begins again. `true`: an older one had to give way.
    pub fn begin(&mut self, key: Key, waiting: Waiting, now: u64) -> bool {
        self.remove(&key);
        let mut evicted = false;
        // Those that ended early stay in the queue until their turn comes, or until they are as many as the others.
        while self.table.len() >= self.limit || self.queue.len() >= 2 * self.limit {
            evicted |= self.pop();
        }
        let place = self.first.wrapping_add(self.queue.len() as u32);
        self.queue.push_back(Entry { key, waiting, until: now + self.length, lives: true });
        let Self { queue, first, table, hasher, .. } = self;
        let hash_of = |&place: &u32| queue[place.wrapping_sub(*first) as usize].key.hash_with(hasher);
        table.insert_unique(key.hash_with(hasher), place, hash_of);
        evicted
    }

    /// Ends early.
    pub fn remove(&mut self, key: &Key) -> Option<Waiting> {
        if self.table.is_empty() {
            return None;
        }
        let Self { queue, first, table, hasher, .. } = self;
        let is_it = |&place: &u32| queue[place.wrapping_sub(*first) as usize].key == *key;
        let (place, _) = table.find_entry(key.hash_with(hasher), is_it).ok()?.remove();
        let entry = &mut queue[place.wrapping_sub(*first) as usize];
        entry.lives = false;
        Some(entry.waiting)
    }

    /// The first of the queue ends. `true`: it had not ended yet.
    fn pop(&mut self) -> bool {
        let Some(entry) = self.queue.pop_front() else { return false };
        let place = self.first;
        self.first = place.wrapping_add(1);
        if entry.lives
            && let Ok(found) = self.table.find_entry(entry.key.hash_with(&self.hasher), |&found| found == place)
        {
            found.remove();
        }
        entry.lives
    }

    pub fn expire(&mut self, now: u64) {
        while self.queue.front().is_some_and(|entry| entry.until <= now) {
            self.pop();
        }
    }

    pub fn deadline(&self) -> Option<u64> {
        self.queue.front().map(|entry| entry.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> Key {
        Key::new(format!("10.0.0.1:{port}").parse().unwrap(), "10.0.0.2:80".parse().unwrap())
    }

    fn waiting() -> Waiting {
        Waiting { send_next: 1, receive_next: 2 }
    }

    #[test]
    fn an_entry_ends_in_time_and_one_begun_again_later() {
        let mut all = TimeWait::new(Duration::from_secs(10), 100, &mut Random::new());
        all.begin(key(1), waiting(), 0);
        all.begin(key(2), waiting(), 0);
        all.begin(key(1), waiting(), 5_000_000);
        all.expire(10_000_000);
        assert!(all.get(&key(1)).is_some() && all.get(&key(2)).is_none());
        all.expire(15_000_000);
        assert_eq!((all.len(), all.deadline()), (0, None));
    }

    #[test]
    fn the_oldest_gives_way_and_the_queue_stays_short() {
        let mut all = TimeWait::new(Duration::from_secs(10), 2, &mut Random::new());
        assert!(!all.begin(key(1), waiting(), 0) && !all.begin(key(2), waiting(), 0));
        assert!(all.begin(key(3), waiting(), 0));
        assert!(all.get(&key(1)).is_none() && all.len() == 2);
        for _ in 0..10_000 {
            all.begin(key(9), waiting(), 0);
            all.remove(&key(9));
        }
        assert!(all.queue.len() < 2_000);
    }
}
