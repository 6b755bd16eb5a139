//! When a sender should believe that a segment is lost, where the engine would wait for its timer.
//!
//! The engine sends one segment again at the third duplicate acknowledgement, and knows no more. Here is added: the next
//! hole of the same window at a partial acknowledgement (NewReno, RFC 6582 §3.2), an earlier belief when too little is on
//! its way for three duplicates (RFC 5827 §3.1), and a segment that was lost again, told by the arrival of what left after it.
//! Arrivals are known by selective acknowledgements (RFC 6675 §4: Linux sends few duplicates, each for many segments), or
//! else by counting duplicates. When nothing at all is heard of several segments for twice the round trip, the last of what
//! arrived, or its acknowledgement, is lost: one segment is sent again as a question (RFC 8985 §7; the first rather than the
//! last, which is what the engine can send). After a timeout the engine sends everything again: then nothing is hastened until what had been
//! sent by then is acknowledged (RFC 6582 §3.2, step 4).

use crate::packet::tcp::before;

/// As RFC 5681 §3.2: fewer may be segments that overtook each other.
const DUPLICATES: u32 = 3;
/// A segment of so many bytes is full: every second of them is acknowledged at once.
const FULL: u32 = 512;
/// Microseconds; a busy peer may take so long.
const LEAST_WAIT: u64 = 10_000;

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
    /// What the round trip is measured by: the end of a segment and when it left; sent again, it tells nothing.
    timed: Option<(u32, u64)>,
    /// Microseconds, smoothed as RFC 6298 §2.3 says, eightfold.
    round_trip: Option<u32>,
    /// What was acknowledged and sent when the question was put off last; and until when.
    quiet: (u32, u32),
    ask_at: Option<u64>,
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

    /// All that was due has been sent, by `now`. When shall be asked, if nothing is heard until then?
    pub fn wait(&mut self, acknowledged: u32, sent_end: u32, now: u64) -> Option<u64> {
        // One segment, or small ones, may be acknowledged late (RFC 9293 §3.8.6.3).
        let is_much = self.largest >= FULL && sent_end.wrapping_sub(acknowledged) >= 2 * self.largest;
        let round_trip = self.round_trip.filter(|_| is_much && self.phase == Phase::Open)?;
        if self.quiet != (acknowledged, sent_end) {
            self.quiet = (acknowledged, sent_end);
            self.ask_at = Some(now + LEAST_WAIT.max(u64::from(round_trip / 4)));
        }
        self.ask_at
    }

    /// Shall the first segment be sent again now, as a question? Once until something is heard.
    pub fn asks(&mut self, acknowledged: u32, sent_end: u32, now: u64) -> bool {
        let is_due = self.ask_at.is_some_and(|at| now >= at) && self.quiet == (acknowledged, sent_end);
        if is_due && self.phase == Phase::Open {
            self.ask_at = None;
            self.is_asked = true;
            self.phase = Phase::Recovering(sent_end);
            return true;
        }
        false
    }

    /// `end` left, or with `acknowledged` came back, at `now`.
    pub fn time(&mut self, acknowledged: u32, end: u32, now: u64) {
        match self.timed {
            Some((timed, since)) if !before(acknowledged, timed) => {
                let sample = u32::try_from(now.saturating_sub(since)).unwrap_or(u32::MAX >> 4).min(u32::MAX >> 4);
                self.round_trip = Some(self.round_trip.map_or(8 * sample, |smooth| smooth - smooth / 8 + sample));
                self.timed = None;
            }
            None if before(acknowledged, end) => self.timed = Some((end, now)),
            _ => {}
        }
    }

    /// A segment leaves, of `span`; `again`: it begins at the last acknowledgement, and was sent before.
    pub fn sent(&mut self, span: u32, again: bool, sent_end: u32) {
        self.largest = self.largest.max(span);
        if again {
            self.timed = None;
        }
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
    fn silence_after_several_segments_is_asked_about_once() {
        let mut recovery = ten();
        assert_eq!(recovery.wait(0, 10_000, 0), None, "the round trip is not known");
        recovery.time(0, 1_000, 0);
        recovery.time(1_000, 10_000, 40);
        assert_eq!(recovery.wait(1_000, 10_000, 50), Some(130));
        assert_eq!(recovery.wait(1_000, 10_000, 60), Some(130));
        assert!(!recovery.asks(1_000, 10_000, 129));
        assert!(recovery.asks(1_000, 10_000, 130));
        assert!(!recovery.asks(1_000, 10_000, 300));
        assert_eq!(recovery.wait(1_000, 10_000, 300), None);
    }

    #[test]
    fn one_segment_is_not_asked_about() {
        let mut recovery = ten();
        recovery.time(0, 1_000, 0);
        recovery.time(9_000, 10_000, 1);
        assert_eq!(recovery.wait(9_000, 10_000, 2), None);
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
