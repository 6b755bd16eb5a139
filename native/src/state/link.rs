//! One connection to a node: what is to be sent, what has come, and what the next reply belongs to. Bytes and the time
//! come in as arguments; whoever owns the socket moves them.
//!
//! ```text
//! Resting ── begin ──► Connecting ── connected ──► Greeting ── every greeting answered ──► Up
//!    ▲                     │                          │                                     │
//!    └──────── lost (failed, ended, silent, garbage, refused) ──────────────────────────────┘
//! ```

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::resp::{self, Reader};

/// The first pause after a failure; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not before `until`.
    Resting {
        until: Option<Instant>,
    },
    Connecting,
    /// So many greetings are not answered yet.
    Greeting(usize),
    Up,
}

/// What a reply belongs to. Replies come in the order of the commands.
#[derive(Debug, PartialEq, Eq)]
pub enum Expected {
    /// The server must agree to each of these before the connection is used.
    Greeting,
    /// A piece of an operation, by its number.
    Piece(u64),
    /// `CLUSTER SLOTS`
    Slots,
    /// The write that makes `WAIT` wait for what this node wrote before it.
    Mark,
    /// `WAIT`, for these pieces.
    Wait(Vec<u64>),
    /// Whatever it is, it says no more than that the node is alive.
    Anything,
}

pub struct Link {
    pub phase: Phase,
    /// How many connections there have been: no late event meets a successor.
    pub generation: u32,
    pub expected: VecDeque<Expected>,
    /// Taken out while replies are looked at.
    pub reader: Reader,
    out: Vec<u8>,
    sent: usize,
    /// When the node was last heard, or first given something to answer.
    heard: Instant,
    pause: Duration,
    /// The last failure.
    pub why: String,
    longest_reply: usize,
}

impl Link {
    pub fn new(longest_reply: usize, now: Instant) -> Self {
        Self {
            phase: Phase::Resting { until: None },
            generation: 0,
            expected: VecDeque::new(),
            reader: Reader::new(longest_reply),
            out: Vec::new(),
            sent: 0,
            heard: now,
            pause: FIRST_PAUSE,
            why: String::new(),
            longest_reply,
        }
    }

    pub fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }

    /// From Resting: a connection is on its way.
    pub fn begin(&mut self, now: Instant) {
        self.phase = Phase::Connecting;
        self.generation = self.generation.wrapping_add(1);
        self.heard = now;
    }

    /// From Connecting: these commands have to be agreed to first.
    pub fn connected(&mut self, greetings: &[Vec<u8>], now: Instant) {
        self.phase = Phase::Greeting(greetings.len());
        self.heard = now;
        for greeting in greetings {
            self.push(Expected::Greeting, greeting, now);
        }
    }

    /// One greeting was agreed to; whether it was the last.
    pub fn greeted(&mut self) -> bool {
        let Phase::Greeting(left) = self.phase else { return false };
        self.phase = if left <= 1 { Phase::Up } else { Phase::Greeting(left - 1) };
        if self.is_up() {
            self.pause = FIRST_PAUSE;
            self.why.clear();
        }
        self.is_up()
    }

    /// From any phase. What was expected will not come. `spread`: 0 to 255, so that many clients do not come back at once.
    pub fn lost(&mut self, why: String, spread: u8, now: Instant) -> VecDeque<Expected> {
        self.phase = Phase::Resting { until: Some(now + self.pause + self.pause * u32::from(spread) / 512) };
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.why = why;
        self.clear()
    }

    /// From any phase: not needed any more.
    pub fn rest(&mut self) -> VecDeque<Expected> {
        self.phase = Phase::Resting { until: None };
        self.clear()
    }

    fn clear(&mut self) -> VecDeque<Expected> {
        self.generation = self.generation.wrapping_add(1);
        self.reader = Reader::new(self.longest_reply);
        (self.out, self.sent) = (Vec::new(), 0);
        std::mem::take(&mut self.expected)
    }

    pub fn push(&mut self, expected: Expected, command: &[u8], now: Instant) {
        if self.expected.is_empty() {
            self.heard = now;
        }
        self.expected.push_back(expected);
        self.out.extend_from_slice(command);
    }

    pub fn push_words(&mut self, expected: Expected, words: &[&[u8]], now: Instant) {
        if self.expected.is_empty() {
            self.heard = now;
        }
        self.expected.push_back(expected);
        resp::command(&mut self.out, words);
    }

    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// When there has been silence for `span`, if an answer is owed or a connection on its way.
    pub fn silent_at(&self, span: Duration) -> Option<Instant> {
        let is_owed = match self.phase {
            Phase::Resting { .. } => false,
            Phase::Connecting => true,
            Phase::Greeting(_) | Phase::Up => !self.expected.is_empty(),
        };
        is_owed.then(|| self.heard + span)
    }

    /// When an idle connection is to be asked whether it still is one.
    pub fn ping_at(&self, span: Duration) -> Option<Instant> {
        (self.is_up() && self.expected.is_empty()).then(|| self.heard + span)
    }

    pub fn unsent(&self) -> &[u8] {
        &self.out[self.sent..]
    }

    pub fn wrote(&mut self, count: usize) {
        self.sent += count;
        // Where there is always more, what was sent must go too; each octet is moved once at most, in the mean.
        if self.sent > 64 << 10 && self.sent > self.out.len() / 2 {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        if self.sent >= self.out.len() {
            // A large batch does not hold on to its memory.
            if self.out.capacity() > 1 << 20 {
                self.out = Vec::new();
            }
            self.out.clear();
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting() -> Vec<Vec<u8>> {
        vec![b"a".to_vec(), b"b".to_vec()]
    }

    #[test]
    fn a_link_is_up_when_every_greeting_was_agreed_to() {
        let now = Instant::now();
        let mut link = Link::new(100, now);
        link.begin(now);
        link.connected(&greeting(), now);
        assert_eq!(link.unsent(), b"ab");
        assert!(!link.greeted() && link.greeted() && link.is_up());
    }

    #[test]
    fn pauses_grow_to_a_second_and_begin_anew_after_success() {
        let now = Instant::now();
        let mut link = Link::new(100, now);
        let mut pauses = vec![];
        for _ in 0..9 {
            link.begin(now);
            link.lost("x".into(), 0, now);
            let Phase::Resting { until: Some(until) } = link.phase else { panic!("{:?}", link.phase) };
            pauses.push((until - now).as_millis());
        }
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1000, 1000, 1000]);
        link.begin(now);
        link.connected(&greeting(), now);
        assert!(!link.greeted() && link.greeted());
        link.lost("x".into(), 255, now);
        let Phase::Resting { until: Some(until) } = link.phase else { panic!("{:?}", link.phase) };
        assert!((20..30).contains(&(until - now).as_millis()));
    }

    #[test]
    fn only_who_owes_an_answer_is_silent() {
        let (now, span) = (Instant::now(), Duration::from_secs(1));
        let mut link = Link::new(100, now);
        assert_eq!(link.silent_at(span), None);
        link.begin(now);
        assert_eq!(link.silent_at(span), Some(now + span), "a connection that does not come about");
        link.connected(&greeting(), now);
        link.expected.clear();
        assert!(!link.greeted() && link.greeted());
        assert_eq!((link.silent_at(span), link.ping_at(span)), (None, Some(now + span)));
        link.push(Expected::Anything, b"PING", now + span);
        assert_eq!((link.silent_at(span), link.ping_at(span)), (Some(now + 2 * span), None));
    }

    #[test]
    fn what_was_sent_goes_also_when_there_is_always_more() {
        let now = Instant::now();
        let mut link = Link::new(100, now);
        let mut next = 0_u8;
        for round in 0..100_u8 {
            link.push(Expected::Anything, &[round; 50_000], now);
            link.wrote(50_000 - usize::from(round == 0));
            next = round;
        }
        assert_eq!(link.unsent(), [next]);
        assert!(link.out.len() < 200_000, "{} for one octet", link.out.len());
    }

    #[test]
    fn nothing_of_a_lost_connection_is_sent_on_the_next() {
        let now = Instant::now();
        let mut link = Link::new(100, now);
        link.begin(now);
        link.connected(&greeting(), now);
        link.wrote(1);
        let generation = link.generation;
        assert_eq!(link.lost("x".into(), 0, now).len(), 2);
        assert!(link.unsent().is_empty() && link.expected.is_empty() && link.generation != generation);
    }
}
