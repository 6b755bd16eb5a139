//! A timer wheel: who is to be looked at in which millisecond.
//!
//! An entry is a hint: whoever fires looks at his own clock and comes back if it is too early. So entries are never
//! removed, and what lies beyond the horizon is put at its edge.

use super::TcpId;

const SLOTS: usize = 4_096;
const WORDS: usize = SLOTS / 64;

pub(super) struct Wheel {
    /// The next millisecond that has not fired.
    next: u64,
    slots: Vec<Vec<TcpId>>,
    /// Room of slots that have fired, for those that fill next: not each of them shall keep what its fullest took.
    spare: Vec<Vec<TcpId>>,
    /// Slots that are not empty, a bit each.
    filled: [u64; WORDS],
}

impl Wheel {
    pub fn new() -> Self {
        Self { next: 0, slots: (0..SLOTS).map(|_| Vec::new()).collect(), spare: Vec::new(), filled: [0; WORDS] }
    }

    /// Puts `id` at `micros`, or where it comes next; returns when it will fire.
    pub fn insert(&mut self, id: TcpId, micros: u64) -> u64 {
        let tick = micros.div_ceil(1_000).clamp(self.next, self.next + SLOTS as u64 - 1);
        let slot = tick as usize % SLOTS;
        if self.slots[slot].capacity() == 0 {
            self.slots[slot] = self.spare.pop().unwrap_or_default();
        }
        self.slots[slot].push(id);
        self.filled[slot / 64] |= 1 << (slot % 64);
        tick * 1_000
    }

    /// Appends everything due at `micros` to `due`.
    pub fn fire(&mut self, micros: u64, due: &mut Vec<TcpId>) {
        let until = micros / 1_000;
        let ticks = (until + 1).saturating_sub(self.next).min(SLOTS as u64);
        for tick in self.next..self.next + ticks {
            let slot = tick as usize % SLOTS;
            if self.filled[slot / 64] & 1 << (slot % 64) != 0 {
                self.filled[slot / 64] &= !(1 << (slot % 64));
                let mut fired = std::mem::take(&mut self.slots[slot]);
                due.append(&mut fired);
                self.spare.push(fired);
            }
        }
        self.next = self.next.max(until + 1);
    }

    /// When the next entry fires.
    pub fn deadline(&self) -> Option<u64> {
        let start = self.next as usize % SLOTS;
        let word = |index: usize| {
            let word = self.filled[index % WORDS];
            // The word of the start is looked at twice: from the start on first, up to it last.
            match index - start / 64 {
                0 => word & u64::MAX << (start % 64),
                WORDS => word & !(u64::MAX << (start % 64)),
                _ => word,
            }
        };
        let index = (start / 64..=start / 64 + WORDS).find(|&index| word(index) != 0)?;
        let slot = index * 64 + word(index).trailing_zeros() as usize;
        Some((self.next + (slot - start) as u64) * 1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u32) -> TcpId {
        TcpId { index, serial: 0 }
    }

    #[test]
    fn entries_fire_in_their_millisecond_and_once() {
        let mut wheel = Wheel::new();
        assert_eq!((wheel.insert(id(1), 5_000), wheel.insert(id(2), 5_001)), (5_000, 6_000));
        assert_eq!(wheel.deadline(), Some(5_000));
        let mut due = Vec::new();
        wheel.fire(4_999, &mut due);
        assert!(due.is_empty());
        wheel.fire(5_000, &mut due);
        assert_eq!(due, [id(1)]);
        wheel.fire(50_000, &mut due);
        assert_eq!(due, [id(1), id(2)]);
        assert_eq!(wheel.deadline(), None);
    }

    #[test]
    fn bursts_leave_no_room_behind_in_every_slot() {
        let mut wheel = Wheel::new();
        let mut due = Vec::new();
        for millisecond in 0..2 * SLOTS as u64 {
            (0..1_000).for_each(|index| _ = wheel.insert(id(index), millisecond * 1_000));
            wheel.fire(millisecond * 1_000, &mut due);
            due.clear();
        }
        let room: usize = wheel.slots.iter().chain(&wheel.spare).map(Vec::capacity).sum();
        assert!(room < 2_048, "{room}");
    }

    #[test]
    fn what_is_late_fires_next_and_what_is_far_away_at_the_horizon() {
        let mut wheel = Wheel::new();
        let mut due = Vec::new();
        wheel.fire(100_000_000, &mut due);
        assert_eq!(wheel.insert(id(1), 3), 100_001_000);
        let horizon = (100_001 + SLOTS as u64 - 1) * 1_000;
        assert_eq!(wheel.insert(id(2), 900_000_000), horizon);
        assert_eq!(wheel.deadline(), Some(100_001_000));
        wheel.fire(100_001_000, &mut due);
        assert_eq!(due, [id(1)]);
        assert_eq!(wheel.deadline(), Some(horizon));
    }

    /// Against a plain list, at steps of all sizes.
    #[test]
    fn a_long_random_run_agrees_with_a_list() {
        let mut wheel = Wheel::new();
        let (mut now, mut state) = (0_u64, 7_u64);
        let mut list: Vec<(u64, u32)> = Vec::new();
        for number in 0..20_000_u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let random = state >> 33;
            if random % 3 != 0 {
                let at = wheel.insert(id(number), now + random % 5_000_000);
                list.push((at, number));
                continue;
            }
            assert_eq!(wheel.deadline(), list.iter().map(|&(at, _)| at).min());
            now += random / 3 % [3_000, 100_000, 9_000_000][random as usize % 7 % 3];
            let mut due = Vec::new();
            wheel.fire(now, &mut due);
            let mut fired: Vec<u32> = due.iter().map(|id| id.index).collect();
            let mut expected: Vec<u32> = list.iter().filter(|entry| entry.0 <= now).map(|entry| entry.1).collect();
            list.retain(|entry| entry.0 > now);
            fired.sort_unstable();
            expected.sort_unstable();
            assert_eq!(fired, expected);
        }
    }
}
