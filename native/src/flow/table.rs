//! The table of flows: rules by what they match, found by tuple space search (Srinivasan, Suri, Varghese 1999).
//!
//! Matches of one shape ([`super::key`]) are found by one look-up in an index that all shapes share; shapes are asked in
//! the order of the highest priority they have, and no further than can change the answer. Rules with the same key
//! but different priorities are a chain, the most important one first, and the index knows its head. A packet's cost
//! is the number of shapes, not that of rules.
//!
//! Everything is bounded: rules by the capacity, shapes by [`MOST_SHAPES`], the work of each call by a constant and the number
//! of shapes; but that rules of one key are walked through, when they are installed or removed.

use std::collections::{BTreeMap, TryReserveError};
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use foldhash::fast::SeedableRandomState;

use super::expiry::Wheel;
use super::index::{Index, Tag};
use super::key::{NARROW, Shape, WORDS, Words};
use super::rules::{Cold, MORE, NEVER, NONE, Rules};
use super::search::{Search, tag};
use super::{Expiry, Head, Match, PortIndex, Refused, Rule, Statistics, Verdict};
use crate::packet::headers::Headers;
use crate::stack::random::Random;

/// Kinds of matches at once: each is a look-up for every packet that no more important rule matches.
pub const MOST_SHAPES: usize = 256;
/// Rules for one call of [`Table::expire`]: some tens of microseconds.
pub const AT_ONCE: usize = 256;
/// Nanoseconds of the wheel's tick.
const TICK: u64 = 1_000_000;

/// Of the whole table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that matched a rule, ICMP errors about its packets included.
    pub matched: u64,
    /// Packets that matched none.
    pub missed: u64,
    /// ICMP errors that were translated.
    pub translated: u64,
    /// Matched packets that their rule drops, …
    pub drop_by_rule: u64,
    /// that were over its limit, …
    pub drop_limited: u64,
    /// that an action could not be done to.
    pub drop_failed: u64,
    pub installed: u64,
    /// Of these, in the place of a rule with the same match.
    pub replaced: u64,
    pub removed: u64,
    pub ended_idle: u64,
    pub ended_hard: u64,
    /// Rules that were not installed.
    pub refused: u64,
}

impl Counters {
    pub fn list(&self) -> [(&'static str, u64); 12] {
        [
            ("matched", self.matched),
            ("missed", self.missed),
            ("translated", self.translated),
            ("drop_by_rule", self.drop_by_rule),
            ("drop_limited", self.drop_limited),
            ("drop_failed", self.drop_failed),
            ("installed", self.installed),
            ("replaced", self.replaced),
            ("removed", self.removed),
            ("ended_idle", self.ended_idle),
            ("ended_hard", self.ended_hard),
            ("refused", self.refused),
        ]
    }
}

/// One rule of a listing.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// As it was installed, but that address bits behind a prefix are 0, …
    pub flow: Match,
    /// and that `Count`, which every rule does, stands once and first.
    pub rule: Rule,
    pub statistics: Statistics,
}

/// All rules of one shape.
#[derive(Clone)]
pub(super) struct Tuple {
    pub shape: Shape,
    pub is_narrow: bool,
    pub is_exact: bool,
    pub bits: u32,
    /// How many rules there are of each priority.
    priorities: BTreeMap<i32, usize>,
    pub highest: i32,
}

pub struct Table {
    pub(super) rules: Rules,
    pub(super) index: Index,
    wheel: Wheel,
    /// By number; `None` is free.
    pub(super) tuples: Vec<Option<Tuple>>,
    /// Numbers of tuples, in the order in which they are asked.
    pub(super) order: Vec<u8>,
    pub(super) seed: SeedableRandomState,
    pub(super) counters: Counters,
    pub(super) search: Search,
    installations: u64,
    clock: Clock,
}

/// Nanoseconds since the first call. They do not go back.
#[derive(Default)]
struct Clock {
    epoch: Option<Instant>,
    now: u64,
}

impl Clock {
    fn tell(&mut self, now: Instant) -> u64 {
        let epoch = *self.epoch.get_or_insert(now);
        self.now = self.now.max(nanos(now.saturating_duration_since(epoch)));
        self.now
    }
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos().min(u128::from(NEVER)) as u64
}

impl Table {
    /// A table for `capacity` rules. Memory for them is reserved with the first one, and used as they come: about 200 bytes
    /// each, and for those with a step of their own 48 more if it translates addresses, 96 if it is another one.
    pub fn new(capacity: usize) -> Self {
        Self::with_random(capacity, Random::new())
    }

    /// For tests: the same in every run.
    pub fn seeded(capacity: usize, seed: u64) -> Self {
        Self::with_random(capacity, Random::seeded(seed))
    }

    fn with_random(capacity: usize, mut random: Random) -> Self {
        Self {
            rules: Rules::new(capacity),
            index: Index::new(),
            wheel: Wheel::new(),
            tuples: Vec::new(),
            order: Vec::new(),
            seed: random.hasher(),
            counters: Counters::default(),
            search: Search::default(),
            installations: 0,
            clock: Clock::default(),
        }
    }

    pub fn len(&self) -> usize {
        self.rules.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn capacity(&self) -> usize {
        self.rules.capacity()
    }

    /// Memory that is in use, but for the lists of actions.
    pub fn bytes(&self) -> usize {
        self.rules.bytes() + self.wheel.bytes() + self.index.bytes()
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Installs a rule, in the place of one with the same match (`true`): then it is the youngest, and its statistics and
    /// timeouts begin anew.
    pub fn install(&mut self, m: Match, rule: Rule, now: Instant) -> Result<bool, Refused> {
        let installed = self.install_checked(&m, &rule, now);
        match installed {
            Ok(replaced) => {
                self.counters.installed += 1;
                self.counters.replaced += u64::from(replaced);
            }
            Err(_) => self.counters.refused += 1,
        }
        installed
    }

    fn install_checked(&mut self, m: &Match, rule: &Rule, now: Instant) -> Result<bool, Refused> {
        rule.check()?;
        let (shape, words) = Shape::of(m)?;
        let now = self.clock.tell(now);
        let found = self.tuple(&shape).and_then(|tuple| self.find(tuple, &words, m.priority));
        if found.is_none() && self.rules.is_full() {
            return Err(Refused::Full);
        }
        self.reserve().map_err(|_| Refused::Memory)?;
        let number = match found {
            Some(number) => {
                self.wheel.remove(number);
                number
            }
            None => self.place(shape, &words, m.priority)?,
        };
        self.installations += 1;
        let program = self.rules.program(&rule.actions);
        let entry = &mut self.rules.entries[number as usize];
        (entry.packets, entry.bytes, entry.seen, entry.order) = (0, 0, now, self.installations);
        entry.tokens = program.limit().map_or(0.0, |limit| limit.tokens());
        entry.program = program;
        let (idle, hard) = (rule.idle.map_or(NEVER, nanos), rule.hard.map_or(NEVER, nanos));
        self.rules.cold[number as usize] = Cold { installed: now, idle, hard, limited: 0, failed: 0 };
        self.arm(number);
        Ok(found.is_some())
    }

    fn reserve(&mut self) -> Result<(), TryReserveError> {
        self.rules.reserve()?;
        self.wheel.reserve(self.rules.capacity())
    }

    /// Ends a rule; what it had done.
    pub fn remove(&mut self, m: &Match, now: Instant) -> Option<Statistics> {
        let number = self.number(m)?;
        self.clock.tell(now);
        self.counters.removed += 1;
        Some(self.end(number))
    }

    pub fn statistics(&self, m: &Match, now: Instant) -> Option<Statistics> {
        let now = self.clock.epoch.map_or(0, |epoch| nanos(now.saturating_duration_since(epoch)));
        self.number(m).map(|number| self.rules.statistics(number, now))
    }

    /// Up to `most` rules from place `from` on, in no order, and the place to go on from. Rules that stay are listed once, whatever
    /// is installed or removed between the pages. Begin with 0.
    pub fn list(&self, from: usize, most: usize, now: Instant) -> (Vec<Listed>, Option<usize>) {
        let now = self.clock.epoch.map_or(0, |epoch| nanos(now.saturating_duration_since(epoch)));
        let mut listed = Vec::new();
        for (number, entry) in self.rules.entries.iter().enumerate().skip(from) {
            if listed.len() == most {
                return (listed, Some(number));
            }
            if !entry.is_used() {
                continue;
            }
            let cold = &self.rules.cold[number];
            let timeout = |nanos| (nanos != NEVER).then(|| Duration::from_nanos(nanos));
            let (idle, hard) = (timeout(cold.idle), timeout(cold.hard));
            listed.push(Listed {
                flow: self.flow(number as u32),
                rule: Rule { actions: entry.program.actions(), idle, hard },
                statistics: self.rules.statistics(number as u32, now),
            });
        }
        (listed, None)
    }

    /// Finds the rule of each packet that came by `port`, runs its actions on the head, and appends what becomes of it.
    /// `headers` were read from `heads`; of a head that was changed (which only packets with a verdict but `Miss` and `Drop`
    /// are) they are no longer true.
    pub fn process(
        &mut self,
        port: PortIndex,
        heads: &mut [Head],
        headers: &[Headers],
        now: Instant,
        verdicts: &mut Vec<Verdict>,
    ) {
        assert_eq!(heads.len(), headers.len());
        let first = verdicts.len();
        verdicts.resize(first + heads.len(), Verdict::Miss);
        if self.order.is_empty() {
            self.counters.missed += heads.len() as u64;
            return;
        }
        let now = self.clock.tell(now);
        self.run(port, heads, headers, now, &mut verdicts[first..]);
    }

    /// When [`Table::expire`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let tick = self.wheel.deadline()?;
        self.clock.epoch?.checked_add(Duration::from_nanos(tick.saturating_mul(TICK)))
    }

    /// Ends rules whose time has come, and appends them to `ended`. It looks at `most` of them: ask for the deadline again. A
    /// rule ends here and nowhere else; a packet that comes before finds it.
    pub fn expire(&mut self, now: Instant, most: usize, ended: &mut Vec<(Match, Expiry, Statistics)>) {
        let now = self.clock.tell(now);
        self.wheel.advance(now / TICK);
        for _ in 0..most {
            let Some(number) = self.wheel.pop() else { break };
            let (at, why) = self.ending(number);
            if at > now {
                self.wheel.insert(number, at.div_ceil(TICK));
                continue;
            }
            match why {
                Expiry::Idle => self.counters.ended_idle += 1,
                Expiry::Hard => self.counters.ended_hard += 1,
            }
            let flow = self.flow(number);
            ended.push((flow, why, self.end(number)));
        }
    }

    /// When a rule ends, as things are.
    fn ending(&self, number: u32) -> (u64, Expiry) {
        let (cold, seen) = (&self.rules.cold[number as usize], self.rules.entries[number as usize].seen);
        let (idle, hard) = (seen.saturating_add(cold.idle), cold.installed.saturating_add(cold.hard));
        if hard <= idle { (hard, Expiry::Hard) } else { (idle, Expiry::Idle) }
    }

    fn arm(&mut self, number: u32) {
        let (at, _) = self.ending(number);
        if at != NEVER {
            self.wheel.insert(number, at.div_ceil(TICK));
        }
    }

    fn flow(&self, number: u32) -> Match {
        let entry = &self.rules.entries[number as usize];
        let tuple = self.tuples[entry.shape()].as_ref().expect("a rule's shape is there");
        let mut words: Words = [0; WORDS];
        words[..NARROW].copy_from_slice(&entry.narrow);
        words[NARROW..].copy_from_slice(&entry.more);
        tuple.shape.matching(&words, entry.priority)
    }

    fn tuple(&self, shape: &Shape) -> Option<usize> {
        let is = |&&number: &&u8| self.tuples[usize::from(number)].as_ref().is_some_and(|tuple| tuple.shape == *shape);
        self.order.iter().find(is).map(|&number| usize::from(number))
    }

    fn number(&self, m: &Match) -> Option<u32> {
        let (shape, words) = Shape::of(m).ok()?;
        self.find(self.tuple(&shape)?, &words, m.priority)
    }

    fn find(&self, tuple: usize, words: &Words, priority: i32) -> Option<u32> {
        let (_, mut number) = self.head(tuple, words)?;
        while number != NONE {
            let entry = &self.rules.entries[number as usize];
            if entry.priority == priority {
                return Some(number);
            }
            number = entry.next;
        }
        None
    }

    /// The most important rule with that key.
    fn head(&self, tuple: usize, words: &Words) -> Option<(Tag, u32)> {
        let (narrow, more) = split(tuple, words);
        let tag = self.tag(tuple, &narrow, &more);
        let number = self.index.find(tag, |number| self.rules.entries[number as usize].has_key(&narrow, &more))?;
        Some((tag, number))
    }

    fn tag(&self, tuple: usize, narrow: &[u64; NARROW], more: &[u64; MORE]) -> Tag {
        let is_narrow = self.tuples[tuple].as_ref().is_none_or(|tuple| tuple.is_narrow);
        tag(self.seed.build_hasher(), narrow, (!is_narrow).then_some(more))
    }

    /// A place for a rule that is not there yet, under its key.
    fn place(&mut self, shape: Shape, words: &Words, priority: i32) -> Result<u32, Refused> {
        let tuple = self.enlist(shape, priority)?;
        let number = self.rules.take();
        let (narrow, more) = split(tuple, words);
        let head = self.head(tuple, words);
        let entry = &mut self.rules.entries[number as usize];
        (entry.narrow, entry.more, entry.priority, entry.next) = (narrow, more, priority, NONE);
        let Some((tag, head)) = head else {
            let tag = self.tag(tuple, &narrow, &more);
            self.index.insert(tag, number);
            return Ok(number);
        };
        if self.rules.entries[head as usize].priority < priority {
            self.rules.entries[number as usize].next = head;
            self.index.replace(tag, head, number);
            return Ok(number);
        }
        let mut before = head;
        loop {
            let next = self.rules.entries[before as usize].next;
            if next == NONE || self.rules.entries[next as usize].priority < priority {
                self.rules.entries[number as usize].next = next;
                self.rules.entries[before as usize].next = number;
                return Ok(number);
            }
            before = next;
        }
    }

    /// Takes a rule out of everything.
    fn end(&mut self, number: u32) -> Statistics {
        let statistics = self.rules.statistics(number, self.clock.now);
        self.wheel.remove(number);
        let entry = &self.rules.entries[number as usize];
        let (tuple, priority, next) = (entry.shape(), entry.priority, entry.next);
        let (narrow, more) = (entry.narrow, entry.more);
        let tag = self.tag(tuple, &narrow, &more);
        let same = |other: u32| self.rules.entries[other as usize].has_key(&narrow, &more);
        let head = self.index.find(tag, same).expect("a rule is in the index, or behind one that is");
        if head != number {
            let mut before = head;
            while self.rules.entries[before as usize].next != number {
                before = self.rules.entries[before as usize].next;
            }
            self.rules.entries[before as usize].next = next;
        } else if next != NONE {
            self.index.replace(tag, number, next);
        } else {
            self.index.remove(tag, number);
        }
        self.rules.give_back(number);
        self.delist(tuple, priority);
        statistics
    }

    /// One more rule of this shape and priority; the shape's number.
    fn enlist(&mut self, shape: Shape, priority: i32) -> Result<usize, Refused> {
        let number = match self.tuple(&shape) {
            Some(number) => number,
            None => {
                let free = self.tuples.iter().position(Option::is_none).unwrap_or(self.tuples.len());
                if free == MOST_SHAPES {
                    return Err(Refused::Shapes);
                }
                if free == self.tuples.len() {
                    self.tuples.push(None);
                }
                self.tuples[free] = Some(Tuple {
                    is_narrow: shape.is_narrow(),
                    is_exact: shape.is_exact(),
                    bits: shape.bits(),
                    shape,
                    priorities: BTreeMap::new(),
                    highest: priority,
                });
                self.order.push(free as u8);
                self.sort();
                free
            }
        };
        let tuple = self.tuples[number].as_mut().expect("found, or just made");
        *tuple.priorities.entry(priority).or_default() += 1;
        if tuple.highest < priority {
            tuple.highest = priority;
            self.sort();
        }
        Ok(number)
    }

    fn delist(&mut self, number: usize, priority: i32) {
        let tuple = self.tuples[number].as_mut().expect("a rule's shape is there");
        let count = tuple.priorities.get_mut(&priority).expect("a rule's priority is counted");
        *count -= 1;
        if *count > 0 {
            return;
        }
        tuple.priorities.remove(&priority);
        match tuple.priorities.last_key_value() {
            None => {
                self.tuples[number] = None;
                self.order.retain(|&other| usize::from(other) != number);
            }
            Some((&highest, _)) if highest != tuple.highest => {
                tuple.highest = highest;
                self.sort();
            }
            Some(_) => {}
        }
    }

    fn sort(&mut self) {
        let tuples = &self.tuples;
        let rank = |&number: &u8| tuples[usize::from(number)].as_ref().map(|tuple| (tuple.highest, tuple.bits));
        self.order.sort_by_key(|number| std::cmp::Reverse(rank(number)));
    }
}

/// A key, as rules keep it: with the shape's number.
fn split(tuple: usize, words: &Words) -> ([u64; NARROW], [u64; MORE]) {
    let mut narrow = [0; NARROW];
    narrow.copy_from_slice(&words[..NARROW]);
    narrow[0] |= tuple as u64;
    let mut more = [0; MORE];
    more.copy_from_slice(&words[NARROW..]);
    (narrow, more)
}
