//! What the loop is told without having asked: entries that others changed, and how the store is. Bounded, however long
//! the loop does not listen.

use std::collections::{BTreeSet, HashMap};

use super::counters::Counters;
use super::resp::{List, Reply};
use super::slots::{Partition, Tables};

/// Beyond that the table is told as a whole.
const MOST_KEYS: usize = 65_536;

/// What may be stale of a table.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stale {
    pub keys: Vec<Vec<u8>>,
    /// Everything in these partitions, by their numbers.
    pub partitions: BTreeSet<usize>,
    pub all: bool,
}

impl Stale {
    fn everything() -> Self {
        Self { all: true, ..Self::default() }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct State {
    /// Why it is down; None: it is up.
    pub down: Option<String>,
    /// Waiting does not help: the store refuses this client.
    pub hopeless: bool,
}

#[derive(Debug, Default)]
pub struct News {
    pub stale: HashMap<usize, Stale>,
    pub state: Option<State>,
    /// A greeting was refused since the store was up last.
    pub hopeless: bool,
    told: Option<State>,
}

impl News {
    pub fn is_empty(&self) -> bool {
        self.stale.is_empty() && self.state.is_none()
    }

    /// What the server tells by itself: invalidations are all we asked for.
    pub fn pushed(&mut self, mut push: List<'_>, tables: &Tables, counters: &mut Counters) {
        if push.next() != Some(Reply::Data(b"invalidate")) {
            return;
        }
        match push.next() {
            Some(Reply::List(keys)) => {
                for key in keys {
                    if let Reply::Data(key) = key
                        && let Some((table, key)) = tables.find(key)
                    {
                        counters.invalidations += 1;
                        self.key_stale(table, key);
                    }
                }
            }
            // FLUSHALL and FLUSHDB.
            _ => self.all_stale(tables),
        }
    }

    fn key_stale(&mut self, table: usize, key: &[u8]) {
        let stale = self.stale.entry(table).or_default();
        match stale.keys.len() {
            _ if stale.all => {}
            count if count < MOST_KEYS => stale.keys.push(key.to_vec()),
            _ => *stale = Stale::everything(),
        }
    }

    fn all_stale(&mut self, tables: &Tables) {
        for table in (0..).take_while(|&table| tables.get(table).is_some()) {
            self.stale.insert(table, Stale::everything());
        }
    }

    /// Nobody tells any more of what others change in these slots.
    pub fn slots_stale(&mut self, tables: &Tables, are: impl Fn(u16) -> bool) {
        for (handle, table) in (0..).map_while(|handle| Some((handle, tables.get(handle)?))) {
            let of = |(number, partition): (usize, &Partition)| are(partition.slot).then_some(number);
            let mut partitions = table.partitions.iter().enumerate().filter_map(of).peekable();
            if partitions.peek().is_some() {
                self.stale.entry(handle).or_default().partitions.extend(partitions);
            }
        }
    }

    /// Whether the store's state has ever been told.
    pub fn has_told(&self) -> bool {
        self.told.is_some()
    }

    /// Told once per change.
    pub fn health(&mut self, down: Option<String>) {
        if down.is_none() {
            self.hopeless = false;
        }
        let state = State { down, hopeless: self.hopeless };
        if self.told.as_ref() != Some(&state) {
            self.state = Some(State { down: state.down.clone(), hopeless: state.hopeless });
            self.told = Some(state);
        }
    }

    /// Adds what is newer.
    pub fn append(&mut self, newer: &mut Self) {
        for (table, stale) in newer.stale.drain() {
            let told = self.stale.entry(table).or_default();
            if told.all || stale.all || told.keys.len() + stale.keys.len() > MOST_KEYS {
                *told = Stale::everything();
            } else {
                told.keys.extend(stale.keys);
                told.partitions.extend(stale.partitions);
            }
        }
        if newer.state.is_some() {
            self.state = newer.state.take();
        }
    }
}
