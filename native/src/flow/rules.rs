//! The rules of a table: what is installed, by number. A packet that an IPv4 rule matches touches one cache line of it.

use std::collections::TryReserveError;
use std::time::Duration;

use super::key::NARROW;
use super::program::Program;
use super::{Action, Statistics};

pub(super) const NONE: u32 = u32::MAX;
/// A timeout that never comes.
pub(super) const NEVER: u64 = u64::MAX;

pub(super) const MORE: usize = super::key::WORDS - NARROW;

/// Times are nanoseconds of the table's clock.
#[repr(C, align(64))]
pub(super) struct Entry {
    /// The shape's number is in the first word.
    pub narrow: [u64; NARROW],
    pub packets: u64,
    pub bytes: u64,
    /// When the last packet came (an ICMP error about the flow is none), or it was installed.
    pub seen: u64,
    pub program: Program,
    // The second line.
    pub more: [u64; MORE],
    /// Counts installations: of two rules the one with the smaller number is older.
    pub order: u64,
    /// In its token bucket at `seen`, less what errors have taken since: so there may be a debt.
    pub tokens: f64,
    pub priority: i32,
    /// The next less important rule with the same key; of an empty place, the next empty one.
    pub next: u32,
}

const _: () = assert!(size_of::<Entry>() == 128);

/// What only installation, expiry and drops look at.
#[derive(Clone, Copy, Default)]
pub(super) struct Cold {
    pub installed: u64,
    pub idle: u64,
    pub hard: u64,
    pub limited: u64,
    pub failed: u64,
}

impl Entry {
    pub fn has_key(&self, narrow: &[u64; NARROW], more: &[u64; MORE]) -> bool {
        self.narrow == *narrow && self.more == *more
    }

    /// Has it the key, of a shape that is narrow?
    #[inline(always)]
    pub fn has_narrow_key(&self, key: &[u64; NARROW]) -> bool {
        let ([a, b, c], [d, e, f]) = (self.narrow, *key);
        (a ^ d) | (b ^ e) | (c ^ f) == 0
    }

    #[inline(always)]
    pub fn count(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }

    pub fn shape(&self) -> usize {
        self.narrow[0] as usize & 0xff
    }

    pub fn is_used(&self) -> bool {
        self.order != 0
    }
}

/// Places for rules, which stay where they are.
pub(super) struct Rules {
    pub entries: Vec<Entry>,
    pub cold: Vec<Cold>,
    free: u32,
    used: usize,
    capacity: usize,
    /// Of the rules installed last, for those that do the same.
    recent: Vec<Program>,
}

/// Programs that a new rule's is compared with.
const RECENT: usize = 8;

impl Rules {
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.min(1 << 28);
        Self { entries: Vec::new(), cold: Vec::new(), free: NONE, used: 0, capacity, recent: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.used
    }

    pub fn is_full(&self) -> bool {
        self.used >= self.capacity
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.entries.len() * size_of::<Entry>() + self.cold.len() * size_of::<Cold>()
    }

    /// Memory for all, before the first: it is not touched before it is needed, and no rule is ever copied.
    pub fn reserve(&mut self) -> Result<(), TryReserveError> {
        if self.entries.capacity() < self.capacity {
            self.entries.try_reserve_exact(self.capacity)?;
            self.cold.try_reserve_exact(self.capacity)?;
        }
        Ok(())
    }

    /// An empty place.
    pub fn take(&mut self) -> u32 {
        debug_assert!(!self.is_full());
        self.used += 1;
        if self.free != NONE {
            let rule = self.free;
            self.free = self.entries[rule as usize].next;
            return rule;
        }
        self.entries.push(Entry {
            narrow: [0; NARROW],
            packets: 0,
            bytes: 0,
            seen: 0,
            program: Program::NOTHING,
            more: [0; MORE],
            order: 0,
            tokens: 0.0,
            priority: 0,
            next: NONE,
        });
        self.cold.push(Cold::default());
        self.entries.len() as u32 - 1
    }

    pub fn give_back(&mut self, rule: u32) {
        let entry = &mut self.entries[rule as usize];
        entry.program = Program::NOTHING;
        entry.order = 0;
        entry.next = self.free;
        self.free = rule;
        self.used -= 1;
    }

    /// The program for these actions: one that others have, if it is like that.
    pub fn program(&mut self, actions: &[Action]) -> Program {
        let new = Program::new(actions);
        if matches!(new, Program::Just(_)) {
            return new;
        }
        // The longer one is not asked for, the further it moves to the front, and out.
        let known = self.recent.iter().position(|recent| *recent == new);
        let program = match known {
            Some(at) => self.recent.remove(at),
            None => {
                if self.recent.len() == RECENT {
                    self.recent.remove(0);
                }
                new
            }
        };
        self.recent.push(program.clone());
        program
    }

    pub fn statistics(&self, rule: u32, now: u64) -> Statistics {
        let (entry, cold) = (&self.entries[rule as usize], &self.cold[rule as usize]);
        Statistics {
            packets: entry.packets,
            bytes: entry.bytes,
            limited: cold.limited,
            failed: cold.failed,
            idle: Duration::from_nanos(now.saturating_sub(entry.seen)),
        }
    }
}
