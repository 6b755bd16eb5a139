//! When a sender should believe that a segment is lost, where the engine would wait for its timer.
//!
//! The engine sends one segment again at the third duplicate acknowledgement, and knows no more. Here is added: the next
//! hole of the same window at a partial acknowledgement (NewReno, RFC 6582 §3.2), an earlier belief when too little is on
//! its way for three duplicates (RFC 5827 §3.1), and a segment that was lost again, told by the arrival of what left after it.
//! Arrivals are known by selective acknowledgements (RFC 6675 §4: Linux sends few duplicates, each for many segments), or
//! else by counting duplicates. After a timeout the engine sends everything again: then nothing is hastened until what had been
//! sent by then is acknowledged (RFC 6582 §3.2, step 4).

use crate::packet::tcp::before;

/// As RFC 5681 §3.2: fewer may be segments that overtook each other.
const DUPLICATES: u32 = 3;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// Entered when a loss is believed; left when what had been sent by then is acknowledged.
    Recovering(u32),
    /// Entered when the timer sent again; left in the same way.
    TimedOut(u32),
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Recovery {
    phase: Phase,
    /// Since the last progress, or since the segment that is missing was sent again.
    duplicates: u32,
    /// The largest segment sent, in bytes.
    largest: u32,
    /// The next segment at the last acknowledgement is no timeout's.
    is_asked: bool,
}

/// What an acknowledgement says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Progress,
    /// With the bytes that it reports beyond, and one past the last of them.
    Duplicate(Option<(u32, u32)>),
}

impl Recovery {
    /// `acknowledgement` has come, with `sent_end` one past what was sent. Shall its segment be sent again at once?
    pub fn heard(&mut self, heard: Heard, acknowledgement: u32, sent_end: u32) -> bool {
        let is_lost = match (heard, self.phase) {
            (Heard::Progress, phase) => {
                self.duplicates = 0;
                self.is_asked = false;
                match phase {
                    Phase::Recovering(end) if before(acknowledgement, end) => true,
                    Phase::TimedOut(end) if before(acknowledgement, end) => false,
                    _ => {
                        self.phase = Phase::Open;
                        false
                    }
                }
            }
            (Heard::Duplicate(selective), phase) => {
                self.duplicates += 1;
                let segments = |bytes: u32| bytes.div_ceil(self.largest.max(1));
                // What was never sent has not arrived, whatever the peer says.
                let honest = selective.filter(|&(_, last)| !before(sent_end, last));
                let (arrived, last) = honest.unwrap_or((0, acknowledgement));
                match phase {
                    Phase::Open => {
                        let enough = (segments(sent_end.wrapping_sub(acknowledgement)) - 1).clamp(1, DUPLICATES);
                        self.duplicates.max(segments(arrived)) >= enough
                    }
                    Phase::Recovering(end) => {
                        before(end, last) || self.duplicates > segments(end.wrapping_sub(acknowledgement)) + DUPLICATES
                    }
                    Phase::TimedOut(_) => {
                        self.is_asked |= self.duplicates == DUPLICATES; // the engine's own rule
                        false
                    }
                }
            }
        };
        if is_lost {
            self.is_asked = true;
            self.duplicates = 0;
            if heard != Heard::Progress {
                self.phase = Phase::Recovering(sent_end);
            }
        }
        is_lost
    }

    /// A segment leaves, of `span`; `again`: it begins at the last acknowledgement, and was sent before.
    pub fn sent(&mut self, span: u32, again: bool, sent_end: u32) {
        self.largest = self.largest.max(span);
        if again && !std::mem::take(&mut self.is_asked) {
            self.phase = Phase::TimedOut(sent_end);
            self.duplicates = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Heard::Progress;
    use super::*;

    const DUPLICATE: Heard = Heard::Duplicate(None);

    /// Ten segments of 1000 bytes from 0 on are on their way.
    fn ten() -> Recovery {
        let mut recovery = Recovery::default();
        for number in 1..=10 {
            recovery.sent(1_000, false, number * 1_000);
        }
        recovery
    }

    fn hear(recovery: &mut Recovery, heard: Heard, acknowledgement: u32, times: usize) -> Vec<bool> {
        (0..times).map(|_| recovery.heard(heard, acknowledgement, 10_000)).collect()
    }

    #[test]
    fn the_third_duplicate_is_a_loss_and_the_fourth_is_not_another() {
        assert_eq!(hear(&mut ten(), DUPLICATE, 0, 5), [false, false, true, false, false]);
    }

    #[test]
    fn the_next_hole_of_the_same_window_waits_for_no_duplicates() {
        let mut recovery = ten();
        hear(&mut recovery, DUPLICATE, 0, 3);
        recovery.sent(1_000, true, 10_000);
        assert_eq!(hear(&mut recovery, Progress, 4_000, 1), [true]);
        recovery.sent(1_000, true, 10_000);
        assert_eq!(hear(&mut recovery, Progress, 10_000, 1), [false]);
        assert_eq!(recovery.phase, Phase::Open);
    }

    #[test]
    fn two_segments_on_their_way_can_cause_one_duplicate_only() {
        let mut recovery = Recovery::default();
        recovery.sent(1_000, false, 1_000);
        recovery.sent(1_000, false, 2_000);
        assert!(recovery.heard(DUPLICATE, 0, 2_000));
    }

    #[test]
    fn more_duplicates_than_segments_tell_that_it_was_lost_again() {
        let mut recovery = ten();
        hear(&mut recovery, DUPLICATE, 0, 3);
        recovery.sent(1_000, true, 10_000);
        let told = hear(&mut recovery, DUPLICATE, 0, 15);
        assert_eq!(told.iter().position(|&lost| lost), Some(13));
    }

    #[test]
    fn one_report_may_stand_for_many_duplicates() {
        let mut recovery = ten();
        assert!(!recovery.heard(Heard::Duplicate(Some((2_000, 3_000))), 0, 10_000));
        assert!(recovery.heard(Heard::Duplicate(Some((8_000, 9_000))), 0, 10_000));
        recovery.sent(1_000, true, 10_000);
        assert!(!recovery.heard(Heard::Duplicate(Some((9_000, 10_000))), 0, 12_000));
        // What left after it has come.
        assert!(recovery.heard(Heard::Duplicate(Some((10_000, 11_000))), 0, 12_000));
    }

    #[test]
    fn after_a_timeout_nothing_is_hastened_until_all_of_it_is_acknowledged() {
        let mut recovery = ten();
        recovery.sent(1_000, true, 10_000);
        assert_eq!(recovery.phase, Phase::TimedOut(10_000));
        assert_eq!(hear(&mut recovery, DUPLICATE, 0, 5), [false; 5]);
        assert_eq!(hear(&mut recovery, Progress, 9_000, 1), [false]);
        assert_eq!(hear(&mut recovery, Progress, 10_000, 1), [false]);
        assert_eq!(recovery.phase, Phase::Open);
    }
}
