//! From a hash to the numbers of rules: a hash table without keys, since those stand in the rules, which are touched next.
//!
//! A bucket is a cache line of seven hashes, each with its rule, so that one wait finds a rule among millions, and the
//! line can be asked for long before it is looked at (which no map of a library lets one do). What finds its bucket full
//! goes to the next one; a bucket counts what went past it, so that a search knows where to end.
//!
//! It grows by doubling, a few buckets with every insertion: no insertion waits for the move of a million entries. As
//! the whole hash stands in the bucket, rules are not looked at for that.

use std::ptr::NonNull;

use crate::packet::prefetch::prefetch;

/// Of a hash; 0 stands for an empty place.
pub(super) type Tag = u32;

const PLACES: usize = 7;
/// Seven tags, how many went past, seven rules, and nothing: 64 bytes.
const LINE: usize = 16;
const PAST: usize = 7;
const RULES: usize = 8;

const FEWEST_BUCKETS: usize = 64;
/// Entries per bucket above which it grows.
const MOST_PER_BUCKET: usize = 5;
/// Buckets moved with each insertion: the move ends long before the new buckets are as full.
const MOVED_AT_ONCE: usize = 4;

pub(super) struct Index {
    buckets: Buckets,
    /// While it grows: what it was, and how many buckets of that are empty by now.
    old: Option<(Buckets, usize)>,
    entries: usize,
}

impl Index {
    pub fn new() -> Self {
        Self { buckets: Buckets::new(FEWEST_BUCKETS), old: None, entries: 0 }
    }

    #[inline]
    pub fn prefetch(&self, tag: Tag) {
        self.buckets.prefetch(tag);
        if let Some((old, _)) = &self.old {
            old.prefetch(tag);
        }
    }

    /// The rule with this tag that `is` says yes to.
    #[inline]
    pub fn find(&self, tag: Tag, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        let found = self.buckets.find(tag, &mut is);
        match &self.old {
            Some((old, _)) if found.is_none() => old.find(tag, &mut is),
            _ => found,
        }
        .map(|(_, _, rule)| rule)
    }

    /// Adds an entry that is not there.
    pub fn insert(&mut self, tag: Tag, rule: u32) {
        if self.old.is_none() && self.entries >= self.buckets.count() * MOST_PER_BUCKET {
            let double = Buckets::new(self.buckets.count() * 2);
            self.old = Some((std::mem::replace(&mut self.buckets, double), 0));
        }
        self.step(MOVED_AT_ONCE);
        self.buckets.insert(tag, rule);
        self.entries += 1;
    }

    /// Takes an entry out that is there.
    pub fn remove(&mut self, tag: Tag, rule: u32) {
        let removed = self.buckets.remove(tag, rule) || self.old.as_mut().is_some_and(|(old, _)| old.remove(tag, rule));
        debug_assert!(removed, "{rule} was not in the index");
        self.entries -= usize::from(removed);
    }

    /// Puts `rule` where `old` is.
    pub fn replace(&mut self, tag: Tag, old: u32, rule: u32) {
        let done = self.buckets.replace(tag, old, rule)
            || self.old.as_mut().is_some_and(|(buckets, _)| buckets.replace(tag, old, rule));
        debug_assert!(done, "{old} was not in the index");
    }

    /// Moves some buckets, if it is growing.
    #[inline]
    pub fn step(&mut self, buckets: usize) {
        if self.old.is_some() {
            self.move_on(buckets);
        }
    }

    #[cold]
    fn move_on(&mut self, buckets: usize) {
        let Some((old, moved)) = &mut self.old else { return };
        let end = (*moved + buckets).min(old.count());
        for bucket in *moved..end {
            for (tag, rule) in old.empty(bucket) {
                self.buckets.insert(tag, rule);
            }
        }
        *moved = end;
        if end == old.count() {
            self.old = None;
        }
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        let old = self.old.as_ref().map_or(0, |(old, _)| old.words.len());
        (self.buckets.words.len() + old) * size_of::<u32>()
    }
}

struct Buckets {
    /// Fresh zeros of the operating system, which cost nothing until they are touched. The lines begin at `first`.
    words: Vec<u32>,
    first: usize,
    mask: usize,
}

impl Buckets {
    fn new(count: usize) -> Self {
        let words = vec![0; (count + 1) * LINE];
        let first = words.as_ptr().align_offset(64);
        Self { words, first: if first < LINE { first } else { 0 }, mask: count - 1 }
    }

    fn count(&self) -> usize {
        self.mask + 1
    }

    #[inline]
    fn line(&self, bucket: usize) -> &[u32; LINE] {
        &self.words[self.first..].as_chunks().0[bucket & self.mask]
    }

    #[inline]
    fn line_mut(&mut self, bucket: usize) -> &mut [u32; LINE] {
        &mut self.words[self.first..].as_chunks_mut().0[bucket & self.mask]
    }

    #[inline]
    fn prefetch(&self, tag: Tag) {
        prefetch(NonNull::from(self.line(tag as usize)).cast(), 64, false);
    }

    #[inline]
    fn find(&self, tag: Tag, mut is: impl FnMut(u32) -> bool) -> Option<(usize, usize, u32)> {
        for bucket in tag as usize..=tag as usize + self.mask {
            let line = self.line(bucket);
            let mut places = places_of(line, tag);
            while places != 0 {
                let place = places.trailing_zeros() as usize;
                let rule = line[RULES + place];
                if is(rule) {
                    return Some((bucket, place, rule));
                }
                places &= places - 1;
            }
            if line[PAST] == 0 {
                break;
            }
        }
        None
    }

    fn insert(&mut self, tag: Tag, rule: u32) {
        let mut bucket = tag as usize;
        loop {
            let line = self.line_mut(bucket);
            let empty = places_of(line, 0);
            if empty != 0 {
                let place = empty.trailing_zeros() as usize;
                (line[place], line[RULES + place]) = (tag, rule);
                return;
            }
            line[PAST] += 1;
            bucket += 1;
        }
    }

    fn remove(&mut self, tag: Tag, rule: u32) -> bool {
        let Some((found, place, _)) = self.find(tag, |other| other == rule) else { return false };
        self.line_mut(found)[place] = 0;
        for bucket in tag as usize..found {
            self.line_mut(bucket)[PAST] -= 1;
        }
        true
    }

    fn replace(&mut self, tag: Tag, old: u32, rule: u32) -> bool {
        let Some((bucket, place, _)) = self.find(tag, |other| other == old) else { return false };
        self.line_mut(bucket)[RULES + place] = rule;
        true
    }

    /// Takes everything out of a bucket, and what was there. What went past it is still found.
    fn empty(&mut self, bucket: usize) -> impl Iterator<Item = (Tag, u32)> + use<> {
        let line = self.line_mut(bucket);
        let was = *line;
        line[..PLACES].fill(0);
        (0..PLACES).map(move |place| (was[place], was[RULES + place])).filter(|&(tag, _)| tag != 0)
    }
}

/// The places in a bucket with this tag, a bit each; without a branch that cannot be foreseen.
#[inline]
fn places_of(line: &[u32; LINE], tag: Tag) -> u32 {
    let mut places = 0;
    for (place, &other) in line[..PLACES].iter().enumerate() {
        places |= u32::from(other == tag) << place;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Random(u64);

    impl Random {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 33) % end
        }
    }

    fn all_found(index: &Index, list: &[(Tag, u32)]) {
        for &(tag, rule) in list {
            assert_eq!(index.find(tag, |other| other == rule), Some(rule));
        }
    }

    /// Through several doublings and back, with tags from a million different ones down to three.
    #[test]
    fn a_long_random_run_agrees_with_a_list() {
        for (seed, tags) in [(1, 1 << 20), (2, 200), (3, 3)] {
            let (mut random, mut index, mut list) = (Random(seed), Index::new(), Vec::new());
            let most = if tags == 3 { 900 } else { 6_000 };
            for number in 0..40_000_u32 {
                let grows = number / 10_000 % 2 == 0;
                if (random.below(4) < if grows { 3 } else { 1 }) && list.len() < most {
                    let tag = 1 + random.below(tags) as Tag;
                    index.insert(tag, number);
                    list.push((tag, number));
                } else if !list.is_empty() {
                    let at = random.below(list.len() as u64) as usize;
                    let (tag, rule) = list[at];
                    if random.below(3) == 0 {
                        index.replace(tag, rule, number);
                        list[at].1 = number;
                    } else {
                        index.remove(tag, rule);
                        list.swap_remove(at);
                        assert_eq!(index.find(tag, |other| other == rule), None);
                    }
                }
                if number % 1_000 == 0 {
                    all_found(&index, &list);
                }
            }
            all_found(&index, &list);
            for (tag, rule) in list.drain(..) {
                index.remove(tag, rule);
            }
            index.step(usize::MAX / 2);
            assert_eq!((index.entries, index.old.is_none()), (0, true));
            assert!(index.buckets.words.iter().enumerate().all(|(at, &word)| {
                word == 0 || at < index.buckets.first || (at - index.buckets.first) % LINE >= RULES
            }));
        }
    }

    #[test]
    fn no_insertion_moves_more_than_a_few_buckets_and_the_move_ends_before_the_next() {
        let mut index = Index::new();
        let mut random = Random(5);
        for number in 0..200_000 {
            let before = index.old.as_ref().map(|(_, moved)| *moved);
            index.insert(1 + random.below(1 << 31) as Tag, number);
            let after = index.old.as_ref().map(|(_, moved)| *moved);
            if let (Some(before), Some(after)) = (before, after) {
                assert_eq!(after - before, MOVED_AT_ONCE);
            }
            assert!(index.entries <= index.buckets.count() * (MOST_PER_BUCKET + 1));
        }
        assert!(index.bytes() <= 200_000 * 64 / 2);
    }

    #[test]
    fn buckets_are_cache_lines() {
        let buckets = Buckets::new(1_024);
        assert_eq!(buckets.line(0).as_ptr().align_offset(64), 0);
        assert_eq!(buckets.line(1_024).as_ptr(), buckets.line(0).as_ptr());
    }
}
