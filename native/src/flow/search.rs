//! The way of a burst through the table, in stages, so that the packets wait for memory together: keys and hashes, and
//! ask for the buckets; look at the buckets, and ask for the rules; compare the rules, and ask for their actions; run those.
//!
//! Here is the way of all tables; [`super::alone`] is the shorter one of those with one shape.

use std::hash::{BuildHasher, Hasher};
use std::ptr::NonNull;

use super::index::Tag;
use super::key::{NARROW, Words, read, reversed};
use super::rules::{Entry, MORE, NONE};
use super::table::{Table, Tuple};
use super::{Head, PortIndex, Verdict};
use crate::packet::headers::{Headers, has};
use crate::packet::prefetch::prefetch;
use crate::port::lent::BURST;

/// What is known of the packets of one burst. Its content is of no meaning between two of them.
pub(super) struct Search {
    pub lookups: [Lookup; BURST],
    packets: [Packet; BURST],
}

/// Of the shape that is being asked; at the end, the packet's rule.
#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
pub(super) struct Lookup {
    pub key: [u64; NARROW],
    pub tag: Tag,
    /// One that may be the one; or [`NONE`].
    pub rule: u32,
}

#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Packet {
    words: Words,
    found: Found,
}

/// The most important rule so far.
#[derive(Clone, Copy)]
struct Found {
    rule: u32,
    priority: i32,
    bits: u32,
}

const NOTHING: Found = Found { rule: NONE, priority: i32::MIN, bits: 0 };

impl Default for Found {
    fn default() -> Self {
        NOTHING
    }
}

impl Default for Search {
    fn default() -> Self {
        Self { lookups: [Lookup::default(); BURST], packets: [Packet::default(); BURST] }
    }
}

/// Peers choose what is hashed, but do not know the seed that `hasher` begins with. `more` is of the packets of shapes that
/// are not narrow.
#[inline(always)]
pub(super) fn tag(mut hasher: impl Hasher, narrow: &[u64; NARROW], more: Option<&[u64; MORE]>) -> Tag {
    let two = |upper: u64, lower: u64| u128::from(upper) << 64 | u128::from(lower);
    hasher.write_u128(two(narrow[0], narrow[1]));
    if let Some(&[a, b, c, d, e]) = more {
        hasher.write_u128(two(narrow[2], a));
        hasher.write_u128(two(b, c));
        hasher.write_u128(two(d, e));
    } else {
        hasher.write_u128(two(narrow[2], 0));
    }
    (hasher.finish() >> 32) as Tag
}

/// The positions of the bits that are set.
#[inline]
fn each(mut bits: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let position = bits.trailing_zeros() as usize % 32;
        (bits != 0).then(|| {
            bits &= bits - 1;
            position
        })
    })
}

impl Table {
    /// `verdicts` are [`Verdict::Miss`] before.
    pub(super) fn run(
        &mut self,
        port: PortIndex,
        heads: &mut [Head],
        headers: &[Headers],
        now: u64,
        verdicts: &mut [Verdict],
    ) {
        self.index.step(1);
        let is_narrow = |number: u8| self.tuples[usize::from(number)].as_ref().is_some_and(|tuple| tuple.is_narrow);
        let alone = if let [number] = self.order[..] { Some(number).filter(|&number| is_narrow(number)) } else { None };
        let bursts = heads.chunks_mut(BURST).zip(headers.chunks(BURST)).zip(verdicts.chunks_mut(BURST));
        for ((heads, headers), verdicts) in bursts {
            let left = match alone {
                Some(number) => self.run_alone(number, port, heads, headers, now, verdicts),
                None => self.find_all(port, heads, headers),
            };
            for at in each(left) {
                let (head, headers, direct) = (&mut heads[at], &headers[at], self.search.lookups[at].rule);
                let is_error = headers.has & has::QUOTE != 0;
                let quoted = if is_error { self.rule_of_quoted(direct, port, head, headers) } else { None };
                verdicts[at] = self.act(quoted.unwrap_or(direct), head, headers, quoted.is_some(), now);
            }
        }
    }

    /// Finds the rules of a burst; all its packets, as bits.
    #[inline(always)]
    fn find_all(&mut self, port: PortIndex, heads: &[Head], headers: &[Headers]) -> u32 {
        let Self { rules, index: all, tuples, order, seed, search, .. } = self;
        let (entries, index, hasher) = (&rules.entries[..], all.open(), seed.build_hasher());
        let (packets, lookups) = (&mut search.packets[..heads.len()], &mut search.lookups[..heads.len()]);
        for ((head, headers), packet) in heads.iter().zip(headers).zip(&mut *packets) {
            read(&mut packet.words, port, head.bytes(), headers);
            packet.found = NOTHING;
        }
        for &number in &*order {
            let Some(tuple) = &tuples[usize::from(number)] else { continue };
            let mut open = 0_u32;
            for (at, (packet, lookup)) in packets.iter().zip(&mut *lookups).enumerate() {
                if tuple.may_have(&headers[at]) && tuple.may_win(&packet.found) {
                    lookup.key = tuple.narrow(number, &packet.words);
                    lookup.tag = tuple.tag_of(hasher.clone(), &lookup.key, &packet.words);
                    index.prefetch(lookup.tag);
                    open |= 1 << at;
                }
            }
            let mut hits = 0_u32;
            for at in each(open) {
                if let Some(rule) = index.first(lookups[at].tag) {
                    prefetch(NonNull::from(&entries[rule as usize]).cast(), size_of::<Entry>(), true);
                    lookups[at].rule = rule;
                    hits |= 1 << at;
                }
            }
            for at in each(hits) {
                let (Packet { words, found }, Lookup { key, tag, mut rule }) = (&mut packets[at], lookups[at]);
                let is = |rule: u32| tuple.is_key_of(&entries[rule as usize], &key, words);
                if !is(rule) {
                    let Some(other) = all.find(tag, is) else { continue };
                    rule = other;
                }
                let entry = &entries[rule as usize];
                entry.program.prefetch();
                let other = Found { rule, priority: entry.priority, bits: tuple.bits };
                if other.is_before(found, entries) {
                    *found = other;
                }
            }
        }
        for (lookup, packet) in lookups.iter_mut().zip(packets) {
            lookup.rule = packet.found.rule;
        }
        u32::MAX >> (BURST - heads.len())
    }

    /// An ICMP error about a packet of a flow whose other direction is translated by an exact rule is that rule's, unless
    /// a more important one, `direct`, matches the error itself. It goes to who sent what it quotes (RFC 792, RFC 4443 §3.1);
    /// one to somebody else is forged, to get past what guards that one.
    #[cold]
    fn rule_of_quoted(&mut self, direct: u32, port: PortIndex, head: &Head, headers: &Headers) -> Option<u32> {
        let quoted = Headers { vlan: headers.vlan, ..headers.quoted(head.bytes())? };
        let (sender, _) = quoted.addresses(head.bytes())?;
        headers.addresses(head.bytes()).filter(|(_, told)| *told == sender)?;
        let mut words = Words::default();
        read(&mut words, port, head.bytes(), &quoted);
        let words = reversed(words, &quoted);
        let mut best = NOTHING;
        for &number in &self.order {
            let Some(tuple) = self.tuples[usize::from(number)].as_ref().filter(|tuple| tuple.is_exact) else {
                continue;
            };
            if !(tuple.may_have(&quoted) && tuple.may_win(&best)) {
                continue;
            }
            let key = tuple.narrow(number, &words);
            let is = |rule: u32| tuple.is_key_of(&self.rules.entries[rule as usize], &key, &words);
            let tag = tuple.tag_of(self.seed.build_hasher(), &key, &words);
            let Some(rule) = self.index.find(tag, is) else { continue };
            let entry = &self.rules.entries[rule as usize];
            let found = Found { rule, priority: entry.priority, bits: tuple.bits };
            if found.is_before(&best, &self.rules.entries) {
                best = found;
            }
        }
        if !self.rules.entries.get(best.rule as usize)?.program.rewrites() {
            return None;
        }
        if let Some(entry) = self.rules.entries.get(direct as usize) {
            let bits = self.tuples[entry.shape()].as_ref().map_or(0, |tuple| tuple.bits);
            let known = Found { rule: direct, priority: entry.priority, bits };
            if known.is_before(&best, &self.rules.entries) {
                return None;
            }
        }
        self.counters.translated += 1;
        Some(best.rule)
    }
}

impl Found {
    /// Is it the more important one? Of equals the one that says more, then the older one.
    fn is_before(&self, other: &Self, entries: &[Entry]) -> bool {
        let Some(theirs) = entries.get(other.rule as usize) else { return true };
        let age = |found: &Self| std::cmp::Reverse(entries[found.rule as usize].order);
        (self.priority, self.bits)
            .cmp(&(other.priority, other.bits))
            .then_with(|| age(self).cmp(&std::cmp::Reverse(theirs.order)))
            .is_gt()
    }
}

impl Tuple {
    /// Has the packet what this shape asks for?
    #[inline(always)]
    pub(super) fn may_have(&self, headers: &Headers) -> bool {
        headers.has & self.shape.requires == self.shape.requires
    }

    /// May a rule of this shape be more important than what was found?
    #[inline(always)]
    fn may_win(&self, found: &Found) -> bool {
        found.rule == NONE || (self.highest, self.bits) >= (found.priority, found.bits)
    }

    /// The hash of the packet's words under the mask.
    #[inline(always)]
    fn tag_of(&self, hasher: impl Hasher, key: &[u64; NARROW], words: &Words) -> Tag {
        let more = || std::array::from_fn(|word| words[NARROW + word] & self.shape.mask[NARROW + word]);
        if self.is_narrow { tag(hasher, key, None) } else { tag(hasher, key, Some(&more())) }
    }

    /// The first of the words, as rules of this shape keep them.
    #[inline(always)]
    pub(super) fn narrow(&self, number: u8, words: &[u64]) -> [u64; NARROW] {
        let mask = &self.shape.mask;
        [words[0] & mask[0] | u64::from(number), words[1] & mask[1], words[2] & mask[2]]
    }

    /// Has the rule the packet's key?
    #[inline(always)]
    fn is_key_of(&self, entry: &Entry, key: &[u64; NARROW], words: &Words) -> bool {
        let more = || {
            let pairs = entry.more.iter().zip(&words[NARROW..]).zip(&self.shape.mask[NARROW..]);
            pairs.fold(0, |other, ((rule, packet), mask)| other | (rule ^ packet & mask)) == 0
        };
        entry.has_narrow_key(key) && (self.is_narrow || more())
    }
}
