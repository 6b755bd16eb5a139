//! The way of a burst through the table, in stages, so that the packets wait for memory together: keys and hashes, and
//! ask for the buckets; look at the buckets, and ask for the rules; compare the rules, and ask for their actions; run those.

use std::hash::{BuildHasher, Hasher};
use std::ptr::NonNull;

use foldhash::fast::SeedableRandomState;

use super::index::Tag;
use super::key::{Facts, NARROW, has};
use super::rules::{Entry, MORE, NONE};
use super::table::{Table, Tuple};
use super::{Action, Failed, Head, PortIndex, Rewrite, Verdict, edit, limit};
use crate::packet::headers::Headers;
use crate::packet::prefetch::prefetch;
use crate::port::lent::BURST;

/// What is known of the packets of one burst. Its content is of no meaning between two of them.
pub(super) struct Search {
    facts: [Facts; BURST],
    narrow: [[u64; NARROW]; BURST],
    tags: [Tag; BURST],
    candidates: [u32; BURST],
    found: [Found; BURST],
}

/// The most important rule so far.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Found {
    rule: u32,
    priority: i32,
    bits: u32,
}

const NOTHING: Found = Found { rule: NONE, priority: i32::MIN, bits: 0 };

impl Default for Search {
    fn default() -> Self {
        Self {
            facts: [Facts::default(); BURST],
            narrow: [[0; NARROW]; BURST],
            tags: [0; BURST],
            candidates: [NONE; BURST],
            found: [NOTHING; BURST],
        }
    }
}

/// Peers choose what is hashed, but do not know the seed. `more` is of the packets of shapes that are not narrow.
#[inline(always)]
pub(super) fn tag(seed: &SeedableRandomState, narrow: &[u64; NARROW], more: Option<&[u64; MORE]>) -> Tag {
    let two = |upper: u64, lower: u64| u128::from(upper) << 64 | u128::from(lower);
    let mut hasher = seed.build_hasher();
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
        let position = bits.trailing_zeros() as usize;
        (bits != 0).then(|| {
            bits &= bits - 1;
            position
        })
    })
}

impl Table {
    pub(super) fn run(
        &mut self,
        port: PortIndex,
        heads: &mut [Head],
        headers: &[Headers],
        now: u64,
        verdicts: &mut Vec<Verdict>,
    ) {
        self.index.step(1);
        verdicts.reserve(heads.len());
        for (heads, headers) in heads.chunks_mut(BURST).zip(headers.chunks(BURST)) {
            let mut quotes = 0_u32;
            for (at, (head, headers)) in heads.iter().zip(headers).enumerate() {
                let facts = &mut self.search.facts[at];
                facts.read(port, head.bytes(), headers);
                quotes |= u32::from(facts.has & has::QUOTE != 0) << at;
                self.search.found[at] = NOTHING;
            }
            self.find_all(heads.len());
            for (at, (head, headers)) in heads.iter_mut().zip(headers).enumerate() {
                let is_quote = quotes & 1 << at != 0 && self.flow_of_quoted(at, port, head, headers).is_some();
                verdicts.push(self.act(at, head, headers, is_quote, now));
            }
        }
    }

    fn find_all(&mut self, count: usize) {
        let Self { rules, index, tuples, order, seed, search, .. } = self;
        let is_only = order.len() == 1;
        for &number in &*order {
            let Some(tuple) = &tuples[usize::from(number)] else { continue };
            let mut open = 0_u32;
            for at in 0..count {
                if !tuple.may_win(&search.facts[at], &search.found[at]) {
                    continue;
                }
                let tag = tuple.key(number, &search.facts[at], seed, &mut search.narrow[at]);
                search.tags[at] = tag;
                index.prefetch(tag);
                open |= 1 << at;
            }
            let mut hits = 0_u32;
            for at in each(open) {
                let Some(rule) = index.first(search.tags[at]) else { continue };
                let length = if tuple.is_narrow && is_only { 64 } else { 128 };
                prefetch(NonNull::from(&rules.entries[rule as usize]).cast(), length, true);
                search.candidates[at] = rule;
                hits |= 1 << at;
            }
            for at in each(hits) {
                let (narrow, facts) = (&search.narrow[at], &search.facts[at]);
                let is = |rule: u32| tuple.is_key_of(&rules.entries[rule as usize], narrow, facts);
                let mut rule = search.candidates[at];
                if !is(rule) {
                    match index.find(search.tags[at], is) {
                        Some(other) => rule = other,
                        None => continue,
                    }
                }
                let entry = &rules.entries[rule as usize];
                let actions = &*entry.actions;
                prefetch(NonNull::from(actions).cast(), size_of_val(actions), false);
                if is_only {
                    search.found[at].rule = rule;
                    continue;
                }
                let found = Found { rule, priority: entry.priority, bits: tuple.bits };
                if found.is_before(&search.found[at], &rules.entries) {
                    search.found[at] = found;
                }
            }
        }
    }

    /// An ICMP error about a packet of a flow whose other direction is translated by an exact rule is that rule's, unless
    /// a more important one matches the error itself.
    #[cold]
    fn flow_of_quoted(&mut self, at: usize, port: PortIndex, head: &Head, headers: &Headers) -> Option<()> {
        let quoted = headers.quoted(head.bytes())?;
        let mut facts = Facts::default();
        facts.read(port, head.bytes(), &Headers { vlan: headers.vlan, ..quoted });
        let facts = facts.reversed();
        let mut best = NOTHING;
        for &number in &self.order {
            let Some(tuple) = self.tuples[usize::from(number)].as_ref().filter(|tuple| tuple.is_exact) else {
                continue;
            };
            if !tuple.may_win(&facts, &best) {
                continue;
            }
            let mut narrow = [0; NARROW];
            let tag = tuple.key(number, &facts, &self.seed, &mut narrow);
            let is = |rule: u32| tuple.is_key_of(&self.rules.entries[rule as usize], &narrow, &facts);
            let Some(rule) = self.index.find(tag, is) else { continue };
            let entry = &self.rules.entries[rule as usize];
            let found = Found { rule, priority: entry.priority, bits: tuple.bits };
            if found.is_before(&best, &self.rules.entries) {
                best = found;
            }
        }
        let rule = self.rules.entries.get(best.rule as usize)?;
        if !rule.actions.iter().any(|action| matches!(action, Action::Rewrite(_))) {
            return None;
        }
        let direct = &mut self.search.found[at];
        if let Some(entry) = self.rules.entries.get(direct.rule as usize) {
            let bits = self.tuples[entry.shape()].as_ref().map_or(0, |tuple| tuple.bits);
            let known = Found { rule: direct.rule, priority: entry.priority, bits };
            if known.is_before(&best, &self.rules.entries) {
                return None;
            }
        }
        *direct = best;
        self.counters.translated += 1;
        Some(())
    }

    /// Runs the rule that was found.
    #[inline]
    fn act(&mut self, at: usize, head: &mut Head, headers: &Headers, is_quote: bool, now: u64) -> Verdict {
        let rule = self.search.found[at].rule as usize;
        let Some(entry) = self.rules.entries.get_mut(rule) else {
            self.counters.missed += 1;
            return Verdict::Miss;
        };
        let length = head.frame_len();
        let waited = now.saturating_sub(entry.seen);
        entry.packets += 1;
        entry.bytes += length as u64;
        entry.seen = now;
        self.counters.matched += 1;
        let mut packet = Packet { head, headers, fresh: None, is_stale: false, is_quote };
        for (step, action) in entry.actions.iter().enumerate() {
            let done = match action {
                Action::Count => true,
                Action::Limit(limit) => {
                    entry.tokens = limit.refill(entry.tokens, waited);
                    if !limit::take(&mut entry.tokens, length) {
                        self.rules.cold[rule].limited += 1;
                        self.counters.drop_limited += 1;
                        return Verdict::Drop;
                    }
                    true
                }
                Action::Rewrite(to) => packet.rewrite(to),
                Action::Encapsulate(tunnel) => packet.edit(|head, headers| edit::encapsulate(head, headers, tunnel)),
                Action::Decapsulate => packet.edit(edit::decapsulate),
                Action::Drop => {
                    self.counters.drop_by_rule += 1;
                    return Verdict::Drop;
                }
                Action::Forward(port) => return Verdict::Forward(*port),
                Action::Route(port) => return Verdict::Route(*port),
                Action::Reply => return Verdict::Reply,
                Action::Accept => return Verdict::Accept,
                Action::ToPython => return Verdict::ToPython,
            };
            if !done {
                // A bucket behind this action has been filling all the same.
                let behind = entry.actions[step..].iter();
                for limit in
                    behind.filter_map(|action| if let Action::Limit(limit) = action { Some(limit) } else { None })
                {
                    entry.tokens = limit.refill(entry.tokens, waited);
                }
                self.rules.cold[rule].failed += 1;
                self.counters.drop_failed += 1;
                return Verdict::Drop;
            }
        }
        Verdict::Miss
    }
}

/// A packet that actions are run on.
struct Packet<'a> {
    head: &'a mut Head,
    /// As they were before the first action.
    headers: &'a Headers,
    fresh: Option<Headers>,
    /// They are from before the last edit, which may have moved them, or made a G-PDU of another port's datagram.
    is_stale: bool,
    /// Is it an ICMP error that is translated by the packet in it?
    is_quote: bool,
}

impl Packet<'_> {
    fn rewrite(&mut self, to: &Rewrite) -> bool {
        let is_quote = self.is_quote;
        self.edit(|head, headers| {
            if !is_quote {
                return edit::rewrite(head, headers, to);
            }
            let quoted = headers.quoted(head.bytes()).ok_or(Failed::NoQuote)?;
            edit::translate_quoted(head, headers, &quoted, to)
        })
    }

    fn edit(&mut self, edit: impl FnOnce(&mut Head, &Headers) -> Result<(), Failed>) -> bool {
        if self.is_stale {
            self.fresh = Some(Headers::read(self.head.bytes(), self.head.frame_len()));
        }
        self.is_stale = true;
        edit(self.head, self.fresh.as_ref().unwrap_or(self.headers)).is_ok()
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
    /// Has the packet what this shape asks for, and may a rule of it be more important than what was found?
    #[inline]
    fn may_win(&self, facts: &Facts, found: &Found) -> bool {
        facts.has & self.shape.requires == self.shape.requires
            && (found.rule == NONE || (self.highest, self.bits) >= (found.priority, found.bits))
    }

    /// Writes the first words of the packet under the mask, with the shape's number; the hash of all of them.
    #[inline(always)]
    fn key(&self, number: u8, facts: &Facts, seed: &SeedableRandomState, narrow: &mut [u64; NARROW]) -> Tag {
        let mask = &self.shape.mask;
        narrow[0] = facts.words[0] & mask[0] | u64::from(number);
        narrow[1] = facts.words[1] & mask[1];
        narrow[2] = facts.words[2] & mask[2];
        if self.is_narrow {
            return tag(seed, narrow, None);
        }
        let more: [u64; MORE] = std::array::from_fn(|word| facts.words[NARROW + word] & mask[NARROW + word]);
        tag(seed, narrow, Some(&more))
    }

    /// Is it the rule with that key?
    #[inline(always)]
    fn is_key_of(&self, entry: &Entry, narrow: &[u64; NARROW], facts: &Facts) -> bool {
        let more = || {
            let pairs = entry.more.iter().zip(&facts.words[NARROW..]).zip(&self.shape.mask[NARROW..]);
            pairs.fold(0, |other, ((rule, packet), mask)| other | (rule ^ packet & mask)) == 0
        };
        let [a, b, c] = &entry.narrow;
        (a ^ narrow[0]) | (b ^ narrow[1]) | (c ^ narrow[2]) == 0 && (self.is_narrow || more())
    }
}
