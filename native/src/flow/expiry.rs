//! When rules end: a wheel of wheels (Varghese, Lauck 1987), each slot a ring of rules linked through their numbers.
//!
//! A tick's digits in base 64 say where it stands: at the level of the first digit in which it differs from now. So all
//! of one level come before all of the next, and no wheel turns over. When the time of a slot has come its rules are
//! pending: whoever asks takes them one by one, ends them, or puts them back, into a finer slot or to a later time. No
//! step of it takes longer the more rules there are.

use std::collections::TryReserveError;

const SLOTS: usize = 64;
const BITS: u32 = 6;
const LEVELS: usize = 11;
const NONE: u32 = u32::MAX;

pub(super) struct Wheel {
    links: Vec<Link>,
    slots: [[u32; SLOTS]; LEVELS],
    /// Slots that are not empty, a bit each.
    filled: [u64; LEVELS],
    pending: u32,
    now: u64,
}

/// A rule's place in its ring. `next` of one that is in none is `NONE`.
#[derive(Clone, Copy)]
struct Link {
    next: u32,
    previous: u32,
    /// Where it was put. What is pending has left it.
    level: u8,
    slot: u8,
}

const NOWHERE: Link = Link { next: NONE, previous: NONE, level: 0, slot: 0 };

impl Wheel {
    pub fn new() -> Self {
        Self { links: Vec::new(), slots: [[NONE; SLOTS]; LEVELS], filled: [0; LEVELS], pending: NONE, now: 0 }
    }

    /// Room for so many rules, so that growing copies nothing.
    pub fn reserve(&mut self, rules: usize) -> Result<(), TryReserveError> {
        if self.links.capacity() < rules { self.links.try_reserve_exact(rules) } else { Ok(()) }
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.links.len() * size_of::<Link>()
    }

    /// Puts a rule that is in no slot at `tick`, or at the next one when that is past.
    pub fn insert(&mut self, rule: u32, tick: u64) {
        let index = rule as usize;
        if index >= self.links.len() {
            self.links.resize(index + 1, NOWHERE);
        }
        debug_assert!(self.links[index].next == NONE, "{rule} has its place");
        let tick = tick.max(self.now.saturating_add(1));
        let level = (63 - (tick ^ self.now | 1).leading_zeros()) / BITS;
        let slot = (tick >> (level * BITS)) as usize % SLOTS;
        let head = &mut self.slots[level as usize][slot];
        let (next, previous) = if *head == NONE {
            *head = rule;
            self.filled[level as usize] |= 1 << slot;
            (rule, rule)
        } else {
            (*head, self.links[*head as usize].previous)
        };
        self.links[index] = Link { next, previous, level: level as u8, slot: slot as u8 };
        self.links[previous as usize].next = rule;
        self.links[next as usize].previous = rule;
    }

    /// Takes a rule out of its slot, if it is in one.
    pub fn remove(&mut self, rule: u32) {
        let Some(&Link { next, previous, level, slot }) = self.links.get(rule as usize) else { return };
        if next == NONE {
            return;
        }
        self.links[rule as usize] = NOWHERE;
        self.links[previous as usize].next = next;
        self.links[next as usize].previous = previous;
        let successor = if next == rule { NONE } else { next };
        let head = &mut self.slots[usize::from(level)][usize::from(slot)];
        if self.pending == rule {
            self.pending = successor;
        } else if *head == rule {
            *head = successor;
            if successor == NONE {
                self.filled[usize::from(level)] &= !(1 << slot);
            }
        }
        if next == rule {
            self.links[rule as usize] = NOWHERE;
        }
    }

    /// Makes everything pending whose slot begins at `until` or before.
    pub fn advance(&mut self, until: u64) {
        while let Some((level, slot, start)) = self.first()
            && start <= until
        {
            self.filled[level] &= !(1 << slot);
            let ring = std::mem::replace(&mut self.slots[level][slot], NONE);
            self.now = start;
            if self.pending == NONE {
                self.pending = ring;
                continue;
            }
            let (end, last) = (self.links[self.pending as usize].previous, self.links[ring as usize].previous);
            self.links[end as usize].next = ring;
            self.links[ring as usize].previous = end;
            self.links[last as usize].next = self.pending;
            self.links[self.pending as usize].previous = last;
        }
        self.now = self.now.max(until);
    }

    /// The next of those whose time may have come. It is in no slot then.
    pub fn pop(&mut self) -> Option<u32> {
        let rule = self.pending;
        (rule != NONE).then(|| {
            self.remove(rule);
            rule
        })
    }

    /// When there is something to look at.
    pub fn deadline(&self) -> Option<u64> {
        if self.pending != NONE { Some(self.now) } else { self.first().map(|(_, _, start)| start) }
    }

    /// The first slot that is not empty, and the tick it begins at.
    fn first(&self) -> Option<(usize, usize, u64)> {
        let level = self.filled.iter().position(|&filled| filled != 0)?;
        let slot = self.filled[level].trailing_zeros();
        let shift = level as u32 * BITS;
        let above = self.now.checked_shr(shift + BITS).unwrap_or(0).checked_shl(shift + BITS).unwrap_or(0);
        Some((level, slot as usize, above | u64::from(slot) << shift))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_pending_in_its_tick_and_once() {
        let mut wheel = Wheel::new();
        wheel.insert(3, 5);
        assert_eq!(wheel.deadline(), Some(5));
        wheel.advance(4);
        assert_eq!(wheel.pop(), None);
        wheel.advance(5);
        assert_eq!((wheel.deadline(), wheel.pop(), wheel.pop(), wheel.deadline()), (Some(5), Some(3), None, None));
        wheel.insert(3, 2);
        assert_eq!(wheel.deadline(), Some(6));
    }

    #[test]
    fn the_end_of_time_is_a_tick_like_others() {
        let mut wheel = Wheel::new();
        wheel.advance(12_345);
        wheel.insert(0, u64::MAX);
        let mut looks = 0;
        while let Some(deadline) = wheel.deadline() {
            wheel.advance(deadline);
            assert_eq!(wheel.pop(), Some(0));
            looks += 1;
            if deadline < u64::MAX {
                wheel.insert(0, u64::MAX);
            }
        }
        assert!(looks <= LEVELS, "{looks}");
    }

    /// Against a plain list, at steps of all sizes; who is early is put back, as the table does.
    #[test]
    fn a_long_random_run_agrees_with_a_list() {
        let (mut wheel, mut list) = (Wheel::new(), vec![None; 300]);
        let (mut now, mut state) = (0_u64, 7_u64);
        let mut ended = 0;
        for _ in 0..100_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let random = state >> 33;
            let rule = (random % 300) as usize;
            match random / 300 % 4 {
                0 | 1 => {
                    wheel.remove(rule as u32);
                    let tick = now + 1 + (random >> 8) % [10, 1_000, 300_000][random as usize % 3];
                    wheel.insert(rule as u32, tick);
                    list[rule] = Some(tick);
                }
                2 => {
                    wheel.remove(rule as u32);
                    list[rule] = None;
                }
                _ => {
                    let least = list.iter().flatten().min();
                    assert_eq!(wheel.deadline().is_some(), least.is_some());
                    assert!(wheel.deadline() <= least.copied());
                    now += (random >> 8) % [3, 100, 20_000][random as usize % 3];
                    wheel.advance(now);
                    while let Some(rule) = wheel.pop() {
                        let tick = list[rule as usize].expect("only who has a place");
                        if tick <= now {
                            list[rule as usize] = None;
                            ended += 1;
                        } else {
                            wheel.insert(rule, tick);
                        }
                    }
                    assert!(list.iter().flatten().all(|&tick| tick > now));
                }
            }
        }
        assert!(ended > 10_000, "{ended}");
    }
}
