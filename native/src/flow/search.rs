//! The way of a burst through the table, in stages, so that the packets wait for memory together: keys and hashes, and
//! ask for the buckets; look at the buckets, and ask for the rules; compare the rules, and ask for their actions; run those.

use std::hash::{BuildHasher, Hasher};
use std::ptr::NonNull;

use foldhash::fast::SeedableRandomState;

use super::index::Tag;
use super::key::{Facts, NARROW, has};
use super::program::Program;
use super::rules::{Entry, MORE, NONE};
use super::table::{Table, Tuple};
use super::{Action, Failed, Head, PortIndex, Rewrite, Verdict, edit, limit};
use crate::packet::headers::Headers;
use crate::packet::prefetch::prefetch;
use crate::port::lent::BURST;

/// What is known of the packets of one burst. Its content is of no meaning between two of them.
pub(super) struct Search {
    packets: [Packet; BURST],
}

#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Packet {
    facts: Facts,
    /// Of the shape that is being asked, and a rule that may be the one.
    key: [u64; NARROW],
    tag: Tag,
    candidate: u32,
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
        Self { packets: [Packet::default(); BURST] }
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
        let position = bits.trailing_zeros() as usize % 32;
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
        let only = match self.order[..] {
            [number] => self.tuples[usize::from(number)].as_ref().is_some_and(|tuple| tuple.is_narrow),
            _ => false,
        };
        for (heads, headers) in heads.chunks_mut(BURST).zip(headers.chunks(BURST)) {
            let quotes = if only {
                self.find_all::<true>(port, heads, headers)
            } else {
                self.find_all::<false>(port, heads, headers)
            };
            for (at, (head, headers)) in heads.iter_mut().zip(headers).enumerate() {
                let is_quote = quotes & 1 << at != 0 && self.flow_of_quoted(at, port, head, headers).is_some();
                verdicts.push(self.act(at, head, headers, is_quote, now));
            }
        }
    }

    /// Finds the rules of a burst; the packets that are ICMP errors, as bits. `ONLY`: there is one shape, and a narrow one, so
    /// that most words and all comparisons of rules are left out, half of the work.
    #[inline(always)]
    fn find_all<const ONLY: bool>(&mut self, port: PortIndex, heads: &[Head], headers: &[Headers]) -> u32 {
        let Self { rules, index: all, tuples, order, seed, search, .. } = self;
        let (packets, entries, index) = (&mut search.packets, &rules.entries[..], all.open());
        let mut quotes = 0_u32;
        for (at, ((head, headers), packet)) in heads.iter().zip(headers).zip(&mut *packets).enumerate() {
            if ONLY {
                packet.facts.read::<false>(port, head.bytes(), headers);
            } else {
                packet.facts.read::<true>(port, head.bytes(), headers);
            }
            packet.found = NOTHING;
            quotes |= u32::from(packet.facts.has & has::QUOTE != 0) << at;
        }
        for &number in &*order {
            let Some(tuple) = &tuples[usize::from(number)] else { continue };
            let mut open = 0_u32;
            for (at, packet) in packets[..heads.len()].iter_mut().enumerate() {
                if tuple.may_have(&packet.facts) && (ONLY || tuple.may_win(&packet.found)) {
                    packet.key = tuple.narrow(number, &packet.facts);
                    packet.tag = tuple.tag_of::<ONLY>(&packet.key, &packet.facts, seed);
                    index.prefetch(packet.tag);
                    open |= 1 << at;
                }
            }
            let mut hits = 0_u32;
            for at in each(open) {
                let packet = &mut packets[at];
                if let Some(rule) = index.first(packet.tag) {
                    let entry = NonNull::from(&entries[rule as usize]).cast();
                    if ONLY {
                        prefetch(entry, 64, true);
                    } else {
                        prefetch(entry, 128, true);
                    }
                    packet.candidate = rule;
                    hits |= 1 << at;
                }
            }
            for at in each(hits) {
                let Packet { facts, key, tag, candidate, found } = &mut packets[at];
                let is = |rule: u32| tuple.is_key_of::<ONLY>(&entries[rule as usize], key, facts);
                let mut rule = *candidate;
                if !is(rule) {
                    match all.find(*tag, is) {
                        Some(other) => rule = other,
                        None => continue,
                    }
                }
                let entry = &entries[rule as usize];
                match &entry.program {
                    Program::Just(_) => {}
                    // It begins at a multiple of 16, and so ends at most 48 bytes into another line.
                    Program::One(_, step) => prefetch(NonNull::from(&**step).cast(), size_of::<Action>() + 48, false),
                    Program::List(_, steps) => prefetch(NonNull::from(&**steps).cast(), 1, false),
                }
                if ONLY {
                    found.rule = rule;
                    continue;
                }
                let other = Found { rule, priority: entry.priority, bits: tuple.bits };
                if other.is_before(found, entries) {
                    *found = other;
                }
            }
        }
        quotes
    }

    /// An ICMP error about a packet of a flow whose other direction is translated by an exact rule is that rule's, unless
    /// a more important one matches the error itself. It goes to who sent what it quotes (RFC 792, RFC 4443 §3.1); one to
    /// somebody else is forged, to get past what guards that one.
    #[cold]
    fn flow_of_quoted(&mut self, at: usize, port: PortIndex, head: &Head, headers: &Headers) -> Option<()> {
        let quoted = headers.quoted(head.bytes())?;
        let (sender, _) = quoted.addresses(head.bytes())?;
        headers.addresses(head.bytes()).filter(|(_, told)| *told == sender)?;
        let mut facts = Facts::default();
        facts.read::<true>(port, head.bytes(), &Headers { vlan: headers.vlan, ..quoted });
        let facts = facts.reversed();
        let mut best = NOTHING;
        for &number in &self.order {
            let Some(tuple) = self.tuples[usize::from(number)].as_ref().filter(|tuple| tuple.is_exact) else {
                continue;
            };
            if !(tuple.may_have(&facts) && tuple.may_win(&best)) {
                continue;
            }
            let key = tuple.narrow(number, &facts);
            let is = |rule: u32| tuple.is_key_of::<false>(&self.rules.entries[rule as usize], &key, &facts);
            let Some(rule) = self.index.find(tuple.tag_of::<false>(&key, &facts, &self.seed), is) else { continue };
            let entry = &self.rules.entries[rule as usize];
            let found = Found { rule, priority: entry.priority, bits: tuple.bits };
            if found.is_before(&best, &self.rules.entries) {
                best = found;
            }
        }
        let rule = self.rules.entries.get(best.rule as usize)?;
        if !rule.program.rewrites() {
            return None;
        }
        let direct = &mut self.search.packets[at].found;
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
        let rule = self.search.packets[at].found.rule as usize;
        let Some(entry) = self.rules.entries.get_mut(rule) else {
            self.counters.missed += 1;
            return Verdict::Miss;
        };
        let length = head.frame_len();
        let waited = now.saturating_sub(entry.seen);
        entry.packets += 1;
        entry.bytes += length as u64;
        // An error keeps no flow alive: anybody can say one (RFC 5508, REQ-6).
        entry.seen = if is_quote { entry.seen } else { now };
        self.counters.matched += 1;
        let verdict = entry.program.verdict();
        self.counters.drop_by_rule += u64::from(verdict == Verdict::Drop);
        let steps = match &entry.program {
            Program::Just(_) => return verdict,
            Program::One(_, step) => std::slice::from_ref(&**step),
            Program::List(_, steps) => steps,
        };
        let mut edited = Edited { head, headers, fresh: None, is_stale: false, is_quote };
        for (number, step) in steps.iter().enumerate() {
            if let Action::Limit(limit) = step {
                entry.tokens = limit.refill(entry.tokens, waited);
                let passes = limit::take(&mut entry.tokens, length);
                if is_quote {
                    entry.tokens -= limit.gained(waited);
                }
                if !passes {
                    self.counters.drop_by_rule -= u64::from(verdict == Verdict::Drop);
                    self.rules.cold[rule].limited += 1;
                    self.counters.drop_limited += 1;
                    return Verdict::Drop;
                }
            } else if !edited.step(step) {
                // A bucket behind this step has been filling all the same.
                for limit in steps[number..].iter().filter_map(Action::limit).filter(|_| !is_quote) {
                    entry.tokens = limit.refill(entry.tokens, waited);
                }
                self.counters.drop_by_rule -= u64::from(verdict == Verdict::Drop);
                self.rules.cold[rule].failed += 1;
                self.counters.drop_failed += 1;
                return Verdict::Drop;
            }
        }
        verdict
    }
}

/// A packet that actions are run on.
struct Edited<'a> {
    head: &'a mut Head,
    /// As they were before the first action.
    headers: &'a Headers,
    fresh: Option<Headers>,
    /// They are from before the last edit, which may have moved them, or made a G-PDU of another port's datagram.
    is_stale: bool,
    /// Is it an ICMP error that is translated by the packet in it?
    is_quote: bool,
}

impl Edited<'_> {
    /// False: it was not possible.
    #[inline]
    fn step(&mut self, action: &Action) -> bool {
        match action {
            Action::Rewrite(to) => self.rewrite(to),
            Action::Encapsulate(tunnel) => self.edit(|head, headers| edit::encapsulate(head, headers, tunnel)),
            Action::Decapsulate => self.edit(edit::decapsulate),
            // A limit is its rule's; the others are no steps.
            _ => true,
        }
    }

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
    /// Has the packet what this shape asks for?
    #[inline(always)]
    fn may_have(&self, facts: &Facts) -> bool {
        facts.has & self.shape.requires == self.shape.requires
    }

    /// May a rule of this shape be more important than what was found?
    #[inline(always)]
    fn may_win(&self, found: &Found) -> bool {
        found.rule == NONE || (self.highest, self.bits) >= (found.priority, found.bits)
    }

    /// The hash of the packet's words under the mask; `NARROW_ONE`: the shape is known to be narrow.
    #[inline(always)]
    fn tag_of<const NARROW_ONE: bool>(&self, narrow: &[u64; NARROW], facts: &Facts, seed: &SeedableRandomState) -> Tag {
        if NARROW_ONE || self.is_narrow {
            return tag(seed, narrow, None);
        }
        let more: [u64; MORE] = std::array::from_fn(|word| facts.words[NARROW + word] & self.shape.mask[NARROW + word]);
        tag(seed, narrow, Some(&more))
    }

    /// The first words, as rules of this shape keep them.
    #[inline(always)]
    fn narrow(&self, number: u8, facts: &Facts) -> [u64; NARROW] {
        let (words, mask) = (&facts.words, &self.shape.mask);
        [words[0] & mask[0] | u64::from(number), words[1] & mask[1], words[2] & mask[2]]
    }

    /// Has the rule the packet's key?
    #[inline(always)]
    fn is_key_of<const NARROW_ONE: bool>(&self, entry: &Entry, key: &[u64; NARROW], facts: &Facts) -> bool {
        let more = || {
            let pairs = entry.more.iter().zip(&facts.words[NARROW..]).zip(&self.shape.mask[NARROW..]);
            pairs.fold(0, |other, ((rule, packet), mask)| other | (rule ^ packet & mask)) == 0
        };
        let ([a, b, c], [d, e, f]) = (entry.narrow, *key);
        (a ^ d) | (b ^ e) | (c ^ f) == 0 && (NARROW_ONE || self.is_narrow || more())
    }
}
