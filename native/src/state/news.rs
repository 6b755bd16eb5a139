//! What the loop is told without having asked: entries that others changed, and how the store is. Bounded, however long
//! the loop does not listen.

use std::collections::HashMap;

use super::counters::Counters;
use super::resp::{List, Reply};
use super::slots::Tables;

/// Beyond that the table is told as a whole.
const MOST_KEYS: usize = 65_536;

/// What may be stale of a table.
#[derive(Debug, PartialEq, Eq)]
pub enum Stale {
    Keys(Vec<Vec<u8>>),
    All,
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
        match self.stale.entry(table).or_insert_with(|| Stale::Keys(Vec::new())) {
            Stale::Keys(keys) if keys.len() < MOST_KEYS => keys.push(key.to_vec()),
            all => *all = Stale::All,
        }
    }

    pub fn all_stale(&mut self, tables: &Tables) {
        for table in (0..).take_while(|&table| tables.get(table).is_some()) {
            self.stale.insert(table, Stale::All);
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
            match (self.stale.get_mut(&table), stale) {
                (Some(Stale::Keys(keys)), Stale::Keys(more)) if keys.len() + more.len() <= MOST_KEYS => {
                    keys.extend(more)
                }
                (Some(all), _) => *all = Stale::All,
                (None, stale) => drop(self.stale.insert(table, stale)),
            }
        }
        if newer.state.is_some() {
            self.state = newer.state.take();
        }
    }
}
