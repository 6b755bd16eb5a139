//! Which requests are in flight, on which connection, and what came of the others. Pure: times are nanoseconds since
//! the run's origin, connections are numbers, messages are bytes.
//!
//! A request in flight has a place, and its id is the place's number with a generation above it: a reply is matched
//! without a search, and one that comes too late finds another generation. Places are reused in turn, the longest
//! free first, so that the generations of short ids wrap as late as possible. Two lists run through the places: by
//! connection (replies in order, and whatever a lost connection takes with it) and by age (timeouts).

use std::collections::VecDeque;
use std::ops::Range;

use super::histogram::Histogram;
use super::pace::Pace;
use super::{Drive, Failure, Failures, LoadError, Report};

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
}

#[derive(Clone, Copy)]
struct Place {
    /// `NONE`: free.
    connection: u32,
    id: u64,
    generation: u64,
    /// What latency counts from.
    start: u64,
    /// What the timeout counts from.
    issued: u64,
    by_connection: Link,
    by_age: Link,
}

#[derive(Clone, Copy)]
struct Connection {
    in_flight: u32,
    /// On the present incarnation.
    issued: u64,
    /// It has an entry in `ready`.
    queued: bool,
    /// Held back by its owner: resting after a failure.
    held: bool,
    first: u32,
    last: u32,
}

/// A request to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Issued {
    pub connection: u32,
    pub place: u32,
}

pub struct Ledger {
    pub pace: Pace,
    pub failures: Failures,
    pub latency: Histogram,
    /// Answered well since the start, measured or not.
    pub answered: u64,
    places: Vec<Place>,
    free: VecDeque<u32>,
    connections: Vec<Connection>,
    ready: VecDeque<u32>,
    oldest: u32,
    newest: u32,
    message: Vec<u8>,
    id: Range<usize>,
    id_mask: u64,
    place_bits: u32,
    by_id: bool,
    verify: bool,
    /// Requests in flight per connection, at most.
    share: u32,
    per_connection: u64,
    timeout: u64,
}

impl Ledger {
    /// Refuses what contradicts itself; behind this every size and field is proved to fit.
    pub fn new(drive: &Drive) -> Result<Self, LoadError> {
        drive.check()?;
        let (id, share, place_bits) = (drive.id_bytes(), drive.share(), drive.place_bits());
        let unlinked = Link { previous: NONE, next: NONE };
        let place = Place {
            connection: NONE,
            id: 0,
            generation: 0,
            start: 0,
            issued: 0,
            by_connection: unlinked,
            by_age: unlinked,
        };
        let connection = Connection { in_flight: 0, issued: 0, queued: false, held: true, first: NONE, last: NONE };
        Ok(Self {
            pace: Pace::new(drive.rate, drive.warmup, drive.duration),
            failures: Failures::default(),
            latency: Histogram::default(),
            answered: 0,
            places: vec![place; drive.outstanding],
            free: (0..drive.outstanding as u32).collect(),
            connections: vec![connection; drive.connections],
            ready: VecDeque::with_capacity(drive.connections),
            oldest: NONE,
            newest: NONE,
            message: pattern(drive.size),
            id,
            id_mask: u64::MAX >> (64 - 8 * drive.id_bytes().len()),
            place_bits,
            by_id: drive.by_id(),
            verify: drive.verify,
            share: share as u32,
            per_connection: drive.requests_per_connection.unwrap_or(u64::MAX),
            timeout: u64::try_from(drive.timeout.as_nanos()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4),
        })
    }

    /// Whether replies may come in any order.
    pub fn by_id(&self) -> bool {
        self.by_id
    }

    pub fn in_flight(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub fn in_flight_on(&self, connection: u32) -> u32 {
        self.connections[connection as usize].in_flight
    }

    /// The connection has carried all the requests it may, and all of them have ended.
    pub fn spent(&self, connection: u32) -> bool {
        let connection = &self.connections[connection as usize];
        connection.in_flight == 0 && connection.issued >= self.per_connection
    }

    /// The connection takes requests (again), as a new incarnation. Nothing may be in flight on it.
    pub fn renew(&mut self, connection: u32) {
        let state = &mut self.connections[connection as usize];
        state.issued = 0;
        state.held = false;
        self.queue(connection);
    }

    /// The connection takes no requests until it is renewed.
    pub fn hold(&mut self, connection: u32) {
        self.connections[connection as usize].held = true;
    }

    fn takes(&self, connection: &Connection) -> bool {
        !connection.held && connection.in_flight < self.share && connection.issued < self.per_connection
    }

    fn queue(&mut self, number: u32) {
        let state = self.connections[number as usize];
        if !state.queued && self.takes(&state) {
            self.connections[number as usize].queued = true;
            self.ready.push_back(number);
        }
    }

    /// A place is free and some connection may take a request: only the schedule is waited for.
    pub fn may_issue(&self) -> bool {
        !self.free.is_empty() && !self.ready.is_empty()
    }

    /// The next request, if one is due, a place is free, and a connection takes it. Write it with [`Self::message`].
    pub fn issue(&mut self, now: u64) -> Option<Issued> {
        let start = self.pace.due(now)?;
        if self.free.is_empty() {
            return None;
        }
        let number = loop {
            let number = self.ready.pop_front()?;
            self.connections[number as usize].queued = false;
            if self.takes(&self.connections[number as usize]) {
                break number;
            }
        };
        let index = self.free.pop_front()?;
        self.pace.advance();

        let state = &mut self.connections[number as usize];
        state.in_flight += 1;
        state.issued += 1;
        let previous = std::mem::replace(&mut state.last, index);
        if previous == NONE {
            state.first = index;
        } else {
            self.places[previous as usize].by_connection.next = index;
        }
        let older = std::mem::replace(&mut self.newest, index);
        if older == NONE {
            self.oldest = index;
        } else {
            self.places[older as usize].by_age.next = index;
        }
        let place = &mut self.places[index as usize];
        place.generation = place.generation.wrapping_add(1);
        place.id = (place.generation << self.place_bits | u64::from(index)) & self.id_mask;
        place.connection = number;
        place.start = start;
        place.issued = now;
        place.by_connection = Link { previous, next: NONE };
        place.by_age = Link { previous: older, next: NONE };
        self.queue(number);
        Some(Issued { connection: number, place: index })
    }

    /// The bytes of a request in flight, valid until the next call.
    pub fn message(&mut self, place: u32) -> &[u8] {
        self.stamp(self.places[place as usize].id);
        &self.message
    }

    fn stamp(&mut self, id: u64) {
        let field = self.id.clone();
        let skip = 8 - field.len();
        self.message[field].copy_from_slice(&id.to_be_bytes()[skip..]);
    }

    /// It could not be sent: as if it had never been issued.
    pub fn take_back(&mut self, issued: Issued) {
        self.release(issued.place);
        self.connections[issued.connection as usize].issued -= 1;
        self.queue(issued.connection);
        self.pace.retreat();
    }

    /// Unlinks a place and frees it; its connection may take another request.
    fn release(&mut self, index: u32) -> Place {
        let place = self.places[index as usize];
        let Link { previous, next } = place.by_connection;
        let state = &mut self.connections[place.connection as usize];
        state.in_flight -= 1;
        match previous {
            NONE => state.first = next,
            _ => self.places[previous as usize].by_connection.next = next,
        }
        match next {
            NONE => state.last = previous,
            _ => self.places[next as usize].by_connection.previous = previous,
        }
        let Link { previous, next } = place.by_age;
        match previous {
            NONE => self.oldest = next,
            _ => self.places[previous as usize].by_age.next = next,
        }
        match next {
            NONE => self.newest = previous,
            _ => self.places[next as usize].by_age.previous = previous,
        }
        self.places[index as usize].connection = NONE;
        self.free.push_back(index);
        self.queue(place.connection);
        place
    }

    /// A whole message came in on a connection.
    pub fn reply(&mut self, connection: u32, bytes: &[u8], now: u64) {
        let Some(index) = self.asked(connection, bytes) else {
            // Not a request of ours that failed: only told while measuring.
            if self.pace.measures(now) {
                self.failures.add(Failure::Unexpected);
            }
            return;
        };
        let place = self.release(index);
        let good = !self.verify || {
            self.stamp(place.id);
            bytes == self.message
        };
        if good {
            self.answered += 1;
            if self.pace.measures(place.start) {
                self.latency.record(now.saturating_sub(place.start));
            }
        } else {
            self.failed(&place, Failure::Mismatch);
        }
    }

    /// The place whose request this replies to.
    fn asked(&self, connection: u32, bytes: &[u8]) -> Option<u32> {
        if !self.by_id {
            return Some(self.connections[connection as usize].first).filter(|&first| first != NONE);
        }
        let field = bytes.get(self.id.clone())?;
        let id = field.iter().fold(0, |id, &byte| id << 8 | u64::from(byte));
        let index = id & !(u64::MAX << self.place_bits);
        let place = self.places.get(index as usize)?;
        (place.connection == connection && place.id == id).then_some(index as u32)
    }

    fn failed(&mut self, place: &Place, failure: Failure) {
        if self.pace.measures(place.start) {
            self.failures.add(failure);
        }
    }

    /// Whatever is in flight on the connection has failed.
    pub fn fail_all(&mut self, connection: u32, failure: Failure) {
        while self.connections[connection as usize].first != NONE {
            let place = self.release(self.connections[connection as usize].first);
            self.failed(&place, failure);
        }
    }

    /// What was measured. Call it last.
    pub fn report(self, connections_opened: u64) -> Report {
        let (requests, seconds) = (self.latency.count(), self.pace.measured_seconds());
        Report {
            requests,
            errors: self.failures,
            seconds,
            rate: if seconds > 0.0 { requests as f64 / seconds } else { 0.0 },
            unsent: self.pace.unsent(),
            latency: self.latency,
            connections_opened,
            ..Report::default()
        }
    }

    /// When the oldest request times out.
    pub fn next_timeout(&self) -> Option<u64> {
        let oldest = self.places.get(self.oldest as usize)?;
        Some(oldest.issued.saturating_add(self.timeout))
    }

    /// Fails the oldest request if its time is over, and says on which connection. Call it until `None`.
    pub fn expire(&mut self, now: u64) -> Option<u32> {
        if self.next_timeout()? > now {
            return None;
        }
        let place = self.release(self.oldest);
        self.failed(&place, Failure::Timeout);
        Some(place.connection)
    }
}

/// Bytes that differ from place to place, so that a shifted or torn reply does not verify; the same in every run.
fn pattern(size: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_u32;
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Endpoint, IdField};
    use super::*;

    fn drive() -> Drive {
        Drive {
            endpoint: Endpoint::Udp("127.0.0.1:1".parse().unwrap()),
            connections: 2,
            requests_per_connection: None,
            outstanding: 4,
            rate: None,
            size: 16,
            request_id: Some(IdField { offset: 3, size: 2 }),
            verify: true,
            duration: Duration::from_secs(1),
            warmup: Duration::ZERO,
            timeout: Duration::from_nanos(100),
            reset: false,
        }
    }

    fn begun(drive: &Drive) -> Ledger {
        let mut ledger = Ledger::new(drive).unwrap();
        (0..drive.connections as u32).for_each(|connection| ledger.renew(connection));
        ledger.pace.begin(0);
        ledger
    }

    fn issue(ledger: &mut Ledger, now: u64) -> (u32, Vec<u8>) {
        let issued = ledger.issue(now).unwrap();
        (issued.connection, ledger.message(issued.place).to_vec())
    }

    #[test]
    fn requests_rotate_over_connections_up_to_the_share_of_each() {
        let mut ledger = begun(&drive());
        let connections: Vec<_> = (0..4).map(|_| issue(&mut ledger, 0).0).collect();
        assert_eq!(connections, [0, 1, 0, 1]);
        assert_eq!(ledger.issue(0), None);
    }

    #[test]
    fn replies_with_ids_may_come_in_any_order_and_only_once() {
        let mut ledger = begun(&drive());
        let requests: Vec<_> = (0..4).map(|_| issue(&mut ledger, 10)).collect();
        for (connection, message) in requests.iter().rev() {
            ledger.reply(*connection, message, 30);
            ledger.reply(*connection, message, 30);
        }
        assert_eq!((ledger.answered, ledger.in_flight(), ledger.latency.max()), (4, 0, 20));
        assert_eq!(ledger.failures.named().collect::<Vec<_>>(), [("unexpected", 4)]);
    }

    #[test]
    fn a_reply_on_another_connection_or_without_room_for_an_id_is_unexpected() {
        let mut ledger = begun(&drive());
        let (connection, message) = issue(&mut ledger, 0);
        ledger.reply(1 - connection, &message, 1);
        ledger.reply(connection, &message[..4], 1);
        ledger.reply(connection, &[], 1);
        assert_eq!((ledger.failures.of(Failure::Unexpected), ledger.in_flight()), (3, 1));
    }

    #[test]
    fn one_wrong_byte_or_a_missing_one_is_a_mismatch() {
        let mut ledger = begun(&drive());
        let (connection, mut message) = issue(&mut ledger, 0);
        message[15] ^= 1;
        ledger.reply(connection, &message, 1);
        let (connection, message) = issue(&mut ledger, 0);
        ledger.reply(connection, &message[..15], 1);
        assert_eq!((ledger.failures.of(Failure::Mismatch), ledger.answered), (2, 0));
    }

    #[test]
    fn a_lost_request_times_out_frees_its_place_and_its_late_reply_is_unexpected() {
        let mut ledger = begun(&drive());
        let requests: Vec<_> = (0..4).map(|_| issue(&mut ledger, 10)).collect();
        assert_eq!(ledger.expire(109), None);
        let expired: Vec<_> = std::iter::from_fn(|| ledger.expire(110)).collect();
        assert_eq!(expired, [0, 1, 0, 1]);
        let again = issue(&mut ledger, 110);
        assert_ne!(again.1, requests[0].1);
        ledger.reply(requests[0].0, &requests[0].1, 120);
        ledger.reply(again.0, &again.1, 120);
        assert_eq!(ledger.failures.named().collect::<Vec<_>>(), [("timeout", 4), ("unexpected", 1)]);
        assert_eq!(ledger.answered, 1);
    }

    #[test]
    fn without_an_id_replies_are_taken_in_order() {
        let stream = Endpoint::Unix("/nowhere".into());
        let mut ledger = begun(&Drive { endpoint: stream, request_id: None, connections: 1, ..drive() });
        let first = issue(&mut ledger, 0);
        let second = issue(&mut ledger, 0);
        ledger.reply(0, &second.1, 1);
        ledger.reply(0, &first.1, 1);
        assert_eq!(ledger.failures.of(Failure::Mismatch), 2);
        ledger.reply(0, &first.1, 1);
        assert_eq!(ledger.failures.of(Failure::Unexpected), 1);
    }

    #[test]
    fn a_connection_is_spent_when_its_last_reply_is_in() {
        let mut ledger = begun(&Drive { requests_per_connection: Some(2), connections: 1, ..drive() });
        let requests = [issue(&mut ledger, 0), issue(&mut ledger, 0)];
        assert_eq!(ledger.issue(0), None);
        ledger.reply(0, &requests[1].1, 1);
        assert!(!ledger.spent(0));
        ledger.reply(0, &requests[0].1, 1);
        assert!(ledger.spent(0));
        ledger.renew(0);
        assert!(!ledger.spent(0) && ledger.issue(1).is_some());
    }

    #[test]
    fn a_lost_connection_takes_its_own_requests_with_it_and_takes_no_more_while_held() {
        let mut ledger = begun(&drive());
        (0..4).for_each(|_| drop(issue(&mut ledger, 0)));
        ledger.hold(0);
        ledger.fail_all(0, Failure::Reset);
        assert_eq!((ledger.in_flight_on(0), ledger.in_flight_on(1), ledger.failures.of(Failure::Reset)), (0, 2, 2));
        assert_eq!(ledger.issue(0), None);
        ledger.renew(0);
        assert_eq!(ledger.issue(0).map(|issued| issued.connection), Some(0));
    }

    #[test]
    fn a_request_taken_back_was_never_issued() {
        let mut ledger = begun(&Drive { rate: Some(1e9), ..drive() });
        let issued = ledger.issue(0).unwrap();
        assert_eq!(ledger.issue(0), None);
        ledger.take_back(issued);
        assert_eq!((ledger.in_flight(), ledger.next_timeout()), (0, None));
        assert!(ledger.issue(0).is_some());
    }

    /// The two lists and the free queue against a plain list of what is in flight.
    #[test]
    fn a_long_random_run_agrees_with_a_plain_list() {
        let mut ledger = begun(&Drive { connections: 3, outstanding: 7, timeout: Duration::from_nanos(40), ..drive() });
        let mut open: Vec<(u32, Vec<u8>, u64)> = Vec::new();
        let mut state = 1_u64;
        for now in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let random = (state >> 33) as usize;
            match random % 5 {
                0 | 1 => {
                    if let Some(issued) = ledger.issue(now) {
                        open.push((issued.connection, ledger.message(issued.place).to_vec(), now));
                    } else {
                        let shares = (0..3).map(|connection| ledger.in_flight_on(connection));
                        assert!(open.len() == 7 || shares.clone().all(|share| share == 3));
                    }
                }
                2 | 3 if !open.is_empty() => {
                    let (connection, message, _) = open.swap_remove(random / 5 % open.len());
                    let before = ledger.answered;
                    ledger.reply(connection, &message, now);
                    assert_eq!(ledger.answered, before + 1);
                }
                _ if random % 40 == 4 => {
                    let connection = (random / 40 % 3) as u32;
                    ledger.fail_all(connection, Failure::Closed);
                    open.retain(|request| request.0 != connection);
                }
                _ => {
                    while ledger.expire(now).is_some() {}
                    open.retain(|request| request.2 + 40 > now);
                }
            }
            assert_eq!(ledger.in_flight(), open.len());
        }
        assert!(ledger.failures.of(Failure::Timeout) > 0 && ledger.failures.of(Failure::Unexpected) == 0);
    }

    #[test]
    fn contradictions_are_refused_with_what_was_wanted() {
        let refused = |drive: Drive| Ledger::new(&drive).err().unwrap().to_string();
        assert_eq!(refused(Drive { size: 0, ..drive() }), "size 0: expected 1 to 65507 bytes for udp://127.0.0.1:1");
        assert_eq!(refused(Drive { connections: 0, ..drive() }), "connections 0: expected 1 to 1048576");
        let id = Some(IdField { offset: 12, size: 5 });
        assert_eq!(
            refused(Drive { request_id: id, ..drive() }),
            "id 12:5: expected 1 to 8 bytes within a message of 16"
        );
        let huge = Some(IdField { offset: usize::MAX, size: 2 });
        assert!(refused(Drive { request_id: huge, ..drive() }).contains("expected 1 to 8 bytes"));
        let narrow = Some(IdField { offset: 0, size: 1 });
        assert!(
            refused(Drive { request_id: narrow, outstanding: 200, ..drive() })
                .contains("outstanding 200: an id of 1 bytes tells no more than 128")
        );
        assert!(refused(Drive { size: 2048, outstanding: 1 << 20, ..drive() }).contains("at most 1073741824 bytes"));
        assert!(refused(Drive { rate: Some(f64::NAN), ..drive() }).contains("rate NaN"));
    }
}
