//! From a hash to the numbers of rules: a hash table without keys, since those stand in the rules, which are touched next.
//!
//! A bucket is a cache line of seven places, so that one wait finds a rule among millions, and the line can be asked for
//! long before it is looked at (which no map of a library lets one do): a byte of each place's hash, all compared at
//! once; the hashes; and the rules. What finds its bucket full goes to the next one; a bucket counts what went past it,
//! so that a search knows where to end.
//!
//! It grows by doubling, a few buckets with every insertion: no insertion waits for the move of a million entries. As
//! the whole hash stands in the bucket, rules are not looked at for that.

use std::ptr::NonNull;

use crate::packet::prefetch::prefetch;

/// A hash: the bucket is of its lower bits, the byte of its upper ones.
pub(super) type Tag = u32;

const PLACES: usize = 7;
/// Words of a bucket: two with seven bytes and how many entries went past, seven hashes, and seven rules.
const LINE: usize = 16;
const HASHES: usize = 2;
const RULES: usize = 9;
/// The lowest and the highest bit of each byte.
const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = LOW << 7;
/// Where the count stands.
const PAST: u32 = 56;

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

/// An index, and where its buckets are.
pub(super) struct Opened<'a> {
    lines: &'a [[u32; LINE]],
    /// None, unless it grows.
    old: &'a [[u32; LINE]],
    index: &'a Index,
}

impl Opened<'_> {
    #[inline(always)]
    pub fn prefetch(&self, tag: Tag) {
        for lines in [self.lines, self.old] {
            if let Some(line) = bucket(lines, tag) {
                prefetch(NonNull::from(line).cast(), 64, false);
            }
        }
    }

    /// A rule with this tag, nearly always the one that is looked for. `None`: there is none.
    #[inline(always)]
    pub fn first(&self, tag: Tag) -> Option<u32> {
        let line = bucket(self.lines, tag)?;
        for place in places_of(line, byte(tag)) {
            if line[HASHES + place] == tag {
                return Some(line[RULES + place]);
            }
        }
        if meta(line) >> PAST == 0 && self.old.is_empty() { None } else { self.index.find(tag, |_| true) }
    }
}

impl Index {
    pub fn new() -> Self {
        Self { buckets: Buckets::new(FEWEST_BUCKETS), old: None, entries: 0 }
    }

    /// For many look-ups.
    #[inline(always)]
    pub fn open(&self) -> Opened<'_> {
        let old = self.old.as_ref().map_or(&[][..], |(old, _)| old.lines());
        Opened { lines: self.buckets.lines(), old, index: self }
    }

    /// The rule with this tag that `is` says yes to.
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
    /// A power of two.
    count: usize,
}

impl Buckets {
    fn new(count: usize) -> Self {
        let words = vec![0; (count + 1) * LINE];
        let first = words.as_ptr().align_offset(64);
        Self { words, first: if first < LINE { first } else { 0 }, count }
    }

    fn count(&self) -> usize {
        self.count
    }

    #[inline]
    fn lines(&self) -> &[[u32; LINE]] {
        &self.words[self.first..].as_chunks().0[..self.count]
    }

    #[inline]
    fn line(&self, bucket: usize) -> &[u32; LINE] {
        &self.lines()[bucket & (self.count - 1)]
    }

    #[inline]
    fn line_mut(&mut self, bucket: usize) -> &mut [u32; LINE] {
        &mut self.words[self.first..].as_chunks_mut().0[bucket & (self.count - 1)]
    }

    fn find(&self, tag: Tag, mut is: impl FnMut(u32) -> bool) -> Option<(usize, usize, u32)> {
        for bucket in tag as usize..tag as usize + self.count {
            let line = self.line(bucket);
            for place in places_of(line, byte(tag)) {
                let rule = line[RULES + place];
                if line[HASHES + place] == tag && is(rule) {
                    return Some((bucket, place, rule));
                }
            }
            if meta(line) >> PAST == 0 {
                break;
            }
        }
        None
    }

    fn insert(&mut self, tag: Tag, rule: u32) {
        let mut bucket = tag as usize;
        loop {
            let line = self.line_mut(bucket);
            if let Some(place) = places_of(line, 0).next() {
                set_meta(line, meta(line) | byte(tag) << (place * 8));
                (line[HASHES + place], line[RULES + place]) = (tag, rule);
                return;
            }
            count_past(line, 1);
            bucket += 1;
        }
    }

    fn remove(&mut self, tag: Tag, rule: u32) -> bool {
        let Some((found, place, _)) = self.find(tag, |other| other == rule) else { return false };
        let line = self.line_mut(found);
        set_meta(line, meta(line) & !(0xff << (place * 8)));
        for bucket in tag as usize..found {
            count_past(self.line_mut(bucket), -1);
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
        set_meta(line, meta(line) & 0xff << PAST);
        let is_used = move |place: &usize| meta(&was) >> (place * 8) & 0xff != 0;
        (0..PLACES).filter(is_used).map(move |place| (was[HASHES + place], was[RULES + place]))
    }
}

/// The bucket where a search begins; of none, none.
#[inline(always)]
fn bucket(lines: &[[u32; LINE]], tag: Tag) -> Option<&[u32; LINE]> {
    lines.get(tag as usize & lines.len().wrapping_sub(1))
}

/// What of a hash is compared first; 0 is an empty place.
#[inline(always)]
fn byte(tag: Tag) -> u64 {
    u64::from(tag >> 24 | 0x80)
}

#[inline(always)]
fn meta(line: &[u32; LINE]) -> u64 {
    u64::from(line[1]) << 32 | u64::from(line[0])
}

fn set_meta(line: &mut [u32; LINE], meta: u64) {
    (line[0], line[1]) = (meta as u32, (meta >> 32) as u32);
}

/// Counts what goes past a bucket. What is too much for the byte is not counted down again: then searches go on in vain.
fn count_past(line: &mut [u32; LINE], more: i8) {
    let past = (meta(line) >> PAST) as u8;
    if past < u8::MAX {
        let past = u64::from(past.wrapping_add_signed(more));
        set_meta(line, meta(line) & !(0xff << PAST) | past << PAST);
    }
}

/// The places with this byte, and perhaps some behind one of those (Mycroft 1987).
#[inline(always)]
fn places_of(line: &[u32; LINE], byte: u64) -> impl Iterator<Item = usize> + use<> {
    let other = meta(line) ^ (byte * LOW);
    let mut bits = other.wrapping_sub(LOW) & !other & HIGH & !(0xff << PAST);
    std::iter::from_fn(move || {
        let place = bits.trailing_zeros() as usize / 8;
        (bits != 0).then(|| {
            bits &= bits - 1;
            place
        })
    })
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
        for (seed, tags, most) in [(1, 1 << 20, 6_000), (2, 200, 1_000), (3, 3, 200)] {
            let (mut random, mut index, mut list) = (Random(seed), Index::new(), Vec::new());
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
            let is_clear = |bucket| matches!(meta(index.buckets.line(bucket)) >> PAST, 0 | 255);
            assert!(
                (0..index.buckets.count())
                    .all(|bucket| { is_clear(bucket) && meta(index.buckets.line(bucket)) << 8 == 0 })
            );
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
