//! What a fuzzer plays with a table: installs, removals, packets and time, each compared with a list of rules that is walked
//! from end to end ([`model`]). The fuzz target of `native/fuzz` and a test call [`flows`].

mod edits;
mod model;
mod universe;

use std::time::{Duration, Instant};

pub use edits::edits;

use super::table::AT_ONCE;
use super::{Counters, Expiry, Head, Match, Statistics, Table, Verdict};
use crate::packet::headers::Headers;
use model::Model;
use universe::Choices;

const CAPACITY: usize = 14;

/// The table and the model, side by side.
struct Pair {
    table: Table,
    model: Model,
    begin: Instant,
    /// Whole milliseconds: then both reckon without rounding.
    millis: u64,
}

impl Pair {
    fn now(&self) -> Instant {
        self.begin + Duration::from_millis(self.millis)
    }

    fn install(&mut self, choices: &mut Choices<'_>) {
        let (m, rule) = (choices.flow(), choices.rule());
        let theirs = self.model.install(m, rule.clone(), self.millis);
        assert_eq!(self.table.install(m, rule, self.now()), theirs, "{m:?}");
    }

    fn replace(&mut self, choices: &mut Choices<'_>) {
        let at = usize::from(choices.below(CAPACITY as u8));
        let (Some(m), rule) = (self.model.rules.get(at).map(|known| known.m), choices.rule()) else { return };
        let theirs = self.model.install(m, rule.clone(), self.millis);
        assert_eq!(self.table.install(m, rule, self.now()), theirs, "{m:?}");
    }

    fn remove(&mut self, m: &Match) {
        assert_eq!(self.table.remove(m, self.now()), self.model.remove(m, self.millis), "{m:?}");
    }

    fn process(&mut self, choices: &mut Choices<'_>) {
        let port = u16::from(choices.below(2));
        let most = if choices.below(16) == 0 { 80 } else { 5 };
        let frames: Vec<Vec<u8>> = (0..=choices.below(most)).map(|_| choices.frame()).collect();
        let mut heads: Vec<Head> = frames.iter().map(|frame| universe::head(frame)).collect();
        let headers: Vec<Headers> = heads.iter().map(|head| Headers::read(head.bytes(), head.frame_len())).collect();
        let mut theirs = heads.clone();
        let mut verdicts = Vec::new();
        self.table.process(port, &mut heads, &headers, self.now(), &mut verdicts);
        assert_eq!(verdicts.len(), frames.len());
        for (at, (head, other)) in heads.iter().zip(&mut theirs).enumerate() {
            let verdict = self.model.process(port, other, &headers[at], self.millis);
            assert_eq!(verdicts[at], verdict, "{:02x?}", frames[at]);
            if verdict != Verdict::Drop {
                assert_eq!(head.bytes(), other.bytes(), "{:02x?}", frames[at]);
            }
        }
    }

    fn pass(&mut self, millis: u64) {
        self.millis += millis;
        let now = self.now();
        let mut ended: Vec<(Match, Expiry, Statistics)> = Vec::new();
        self.table.expire(now, AT_ONCE, &mut ended);
        while self.table.deadline().is_some_and(|deadline| deadline <= now) {
            self.table.expire(now, AT_ONCE, &mut ended);
        }
        let mut theirs = self.model.expire(self.millis);
        let by_match = |(m, ..): &(Match, Expiry, Statistics)| format!("{m:?}");
        ended.sort_by_key(by_match);
        theirs.sort_by_key(by_match);
        assert_eq!(ended, theirs);
        assert_eq!(self.table.deadline().is_some(), self.model.deadline().is_some());
        if let Some(deadline) = self.model.deadline() {
            assert!(self.table.deadline().is_some_and(|ours| ours <= self.begin + Duration::from_millis(deadline)));
        }
    }

    /// Everything that can be asked, page by page.
    fn compare(&self) {
        assert_eq!(self.table.len(), self.model.rules.len());
        let (mut listed, mut from) = (Vec::new(), Some(0));
        while let Some(at) = from {
            let (page, next) = self.table.list(at, 3, self.now());
            assert!(page.len() <= 3);
            listed.extend(page);
            from = next;
        }
        listed.sort_by_key(|listed| format!("{:?}", listed.flow));
        assert_eq!(listed, self.model.list(self.millis));
        for listed in &listed {
            assert_eq!(self.table.statistics(&listed.flow, self.now()), Some(listed.statistics));
        }
        let counters = self.table.counters();
        assert_eq!(counters, self.model.counters);
        assert_eq!(
            counters.installed - counters.replaced,
            counters.removed + counters.ended_idle + counters.ended_hard + self.table.len() as u64
        );
    }
}

/// Plays what `data` chooses.
pub fn flows(data: &[u8]) {
    play(data);
}

/// The counters show what came of it.
fn play(data: &[u8]) -> Counters {
    let choices = &mut Choices::new(data);
    // Such a table has a way of its own.
    choices.has_one_shape = choices.below(4) == 0;
    let table = Table::seeded(CAPACITY, choices.below(255).into());
    let mut pair = Pair { table, model: Model::new(CAPACITY), begin: Instant::now(), millis: 0 };
    // The table's clock begins with the first call.
    pair.pass(0);
    pair.install(choices);
    while !choices.is_over() {
        match choices.below(16) {
            0..4 => pair.install(choices),
            4 => pair.replace(choices),
            5 => pair.remove(&choices.flow()),
            6 => {
                let at = usize::from(choices.below(CAPACITY as u8));
                if let Some(m) = pair.model.rules.get(at).map(|rule| rule.m) {
                    pair.remove(&m);
                }
            }
            7..13 => pair.process(choices),
            13 => pair.pass(u64::from(choices.below(250))),
            14 => pair.pass(u64::from(choices.below(250)) * 100),
            _ => pair.compare(),
        }
    }
    pair.compare();
    pair.pass(u64::from(u32::MAX));
    for m in pair.model.rules.iter().map(|rule| rule.m).collect::<Vec<_>>() {
        pair.remove(&m);
    }
    pair.compare();
    assert!(pair.table.is_empty());
    assert_eq!(pair.table.deadline(), None);
    pair.table.counters()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64, and some hundred games.
    #[test]
    fn random_games_agree_with_a_list_of_rules() {
        let mut state = 0_u64;
        let mut sums = [0; 12];
        for _ in 0..250 {
            let data: Vec<u8> = (0..4_000)
                .map(|_| {
                    state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                    ((z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 56) as u8
                })
                .collect();
            for (sum, (_, count)) in sums.iter_mut().zip(play(&data).list()) {
                *sum += count;
            }
        }
        assert!(sums.iter().all(|&sum| sum > 100), "something hardly ever happened: {sums:?}");
    }
}
