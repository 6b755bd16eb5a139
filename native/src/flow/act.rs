//! What the rule that was found does to its packet.

use super::program::Program;
use super::table::Table;
use super::{Action, Failed, Head, Rewrite, Verdict, edit, limit};
use crate::packet::headers::Headers;

impl Table {
    /// Runs a rule, or none.
    #[inline]
    pub(super) fn act(&mut self, rule: u32, head: &mut Head, headers: &Headers, is_quote: bool, now: u64) -> Verdict {
        let rule = rule as usize;
        let Some(entry) = self.rules.entries.get_mut(rule) else {
            self.counters.missed += 1;
            return Verdict::Miss;
        };
        let length = head.frame_len();
        let waited = now.saturating_sub(entry.seen);
        entry.count(length);
        // An error keeps no flow alive: anybody can say one (RFC 5508, REQ-6).
        entry.seen = if is_quote { entry.seen } else { now };
        self.counters.matched += 1;
        let verdict = entry.program.verdict();
        self.counters.drop_by_rule += u64::from(verdict == Verdict::Drop);
        let whole;
        let steps = match &entry.program {
            Program::Just(_) => return verdict,
            Program::Translate(_, translation) => {
                if !is_quote && translation.apply(head, headers) {
                    return verdict;
                }
                whole = Action::Rewrite(translation.whole());
                std::slice::from_ref(&whole)
            }
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
