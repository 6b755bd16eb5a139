//! The way of a burst through a table whose rules all have one shape, and a narrow one, as nearly all have that are large:
//! [`super::search`] without what is only there to choose among shapes, so that keys and hashes stay in registers, and with
//! the end of those packets whose rule has nothing but a verdict (`docs/design/flows.md` says what that is worth).

use std::hash::BuildHasher;
use std::ptr::NonNull;

use super::index::Index;
use super::key::{NARROW, narrow};
use super::program::Program;
use super::rules::{Entry, NONE};
use super::search::{Lookup, tag};
use super::table::Table;
use super::{Head, PortIndex, Verdict};
use crate::packet::headers::{Headers, has};
use crate::packet::prefetch::prefetch;

/// No rule has such a key: a VLAN's id has twelve bits.
const NO_KEY: [u64; NARROW] = [u64::MAX; NARROW];

impl Table {
    /// Decides about packets that need no more than the verdict of their rule. Those that are left, as bits: there is no
    /// rule, it has actions, or it is an ICMP error.
    #[inline(never)]
    pub(super) fn run_alone(
        &mut self,
        number: u8,
        port: PortIndex,
        heads: &[Head],
        headers: &[Headers],
        now: u64,
        verdicts: &mut [Verdict],
    ) -> u32 {
        let Self { rules, index: all, tuples, seed, search, counters, .. } = self;
        let Some(tuple) = &tuples[usize::from(number)] else { return 0 };
        let (entries, index, hasher) = (&mut rules.entries[..], all.open(), seed.build_hasher());
        let lookups = &mut search.lookups[..heads.len()];
        for ((head, headers), lookup) in heads.iter().zip(headers).zip(&mut *lookups) {
            if !tuple.may_have(headers) {
                *lookup = Lookup { key: NO_KEY, ..Lookup::default() };
                continue;
            }
            lookup.key = tuple.narrow(number, &narrow(port, head.bytes(), headers));
            lookup.tag = tag(hasher.clone(), &lookup.key, None);
            index.prefetch(lookup.tag);
        }
        for lookup in &mut *lookups {
            lookup.rule = index.first(lookup.tag).unwrap_or(NONE);
            if let Some(entry) = entries.get(lookup.rule as usize) {
                prefetch(NonNull::from(entry).cast(), 64, true);
            }
        }
        let (mut left, mut dropped) = (0_u32, 0);
        let packets = lookups.iter_mut().zip(heads).zip(headers).zip(verdicts);
        for (at, (((lookup, head), headers), verdict)) in packets.enumerate() {
            if let Some(entry) = entries.get_mut(lookup.rule as usize) {
                if !entry.has_narrow_key(&lookup.key) {
                    lookup.rule = other(all, entries, lookup);
                } else if let Program::Just(end) = &entry.program
                    && headers.has & has::QUOTE == 0
                {
                    *verdict = end.verdict();
                    dropped += u64::from(*verdict == Verdict::Drop);
                    entry.count(head.frame_len());
                    entry.seen = now;
                    continue;
                } else {
                    entry.program.prefetch();
                }
            }
            left |= 1 << at;
        }
        counters.matched += heads.len() as u64 - u64::from(left.count_ones());
        counters.drop_by_rule += dropped;
        left
    }
}

/// The rule, where the first with the packet's tag is another packet's.
#[cold]
fn other(index: &Index, entries: &[Entry], lookup: &Lookup) -> u32 {
    let is = |rule: u32| entries[rule as usize].has_narrow_key(&lookup.key);
    index.find(lookup.tag, is).unwrap_or(NONE)
}
