//! A port that is watched: frames come through it one at a time, and what is sent while each is dealt with is noted.
//!
//! Ports are put into this while somebody traces, and taken out again ([`Port::unwatched`]), so that it costs nothing at
//! other times. What deals with frames may say so by [`note`].

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::lent::{Burst, Lent};
use super::queue::{Queue, QueuePort};
use super::{Link, Port, Sent};
use crate::packet::ethernet::Mac;
use crate::packet::{Pool, Slot};

/// Bytes of a frame that are kept: its headers, and those of what it carries.
pub const KEPT: usize = 192;
/// Frames that one may make us send before we stop writing them down, and what is said of it.
const MOST: usize = 64;

/// The beginning of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glimpse {
    /// The port's place in its engine.
    pub port: usize,
    /// Of the whole frame; 0 for one that the port dropped before anyone could see it.
    pub len: usize,
    pub head: Vec<u8>,
}

impl Glimpse {
    fn of(port: usize, parts: &[&[u8]], rest: Lent<'_>) -> Self {
        let mut head: Vec<u8> = parts.iter().flat_map(|part| part.iter()).take(KEPT).copied().collect();
        let (at, len) = (head.len(), parts.iter().map(|part| part.len()).sum::<usize>() + rest.len());
        head.resize(len.min(KEPT), 0);
        rest.copy_head(&mut head[at..]);
        Self { port, len, head }
    }
}

/// One frame, from when it was taken.
#[derive(Debug)]
pub struct Watched {
    pub frame: Glimpse,
    pub since: Instant,
    pub sent: Vec<(Glimpse, Sent)>,
    pub notes: Vec<String>,
}

/// What the watched ports of one engine share.
#[derive(Default)]
pub struct Watch(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    /// One more frame may be taken.
    wants: bool,
    frame: Option<Watched>,
}

impl Seen {
    fn one(frame: Glimpse, since: Instant) -> Self {
        Self { wants: false, frame: Some(Watched { frame, since, sent: Vec::new(), notes: Vec::new() }) }
    }
}

impl Watch {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next frame may come, from whichever port is asked first.
    pub fn begin(&self) {
        NOTES.with_borrow_mut(Vec::clear);
        *self.seen() = Seen { wants: true, frame: None };
    }

    pub fn has_frame(&self) -> bool {
        self.seen().frame.is_some()
    }

    /// What was taken since, and what came of it. No further frame may come.
    pub fn end(&self) -> Option<Watched> {
        let mut watched = std::mem::take(&mut *self.seen()).frame?;
        watched.notes = NOTES.with_borrow_mut(std::mem::take);
        Some(watched)
    }
}

/// How many watches there are.
static WATCHES: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Of the frame that this thread deals with.
    static NOTES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// While this lives notes are taken.
pub struct Noting(());

impl Default for Noting {
    fn default() -> Self {
        WATCHES.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Noting {
    fn drop(&mut self) {
        WATCHES.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Says what is done with the frame that is dealt with; `words` is called only while somebody wants to know.
#[inline]
pub fn note(words: impl FnOnce() -> String) {
    if WATCHES.load(Ordering::Relaxed) > 0 {
        let words = words();
        NOTES.with_borrow_mut(|notes| {
            if notes.len() < MOST {
                notes.push(words);
            }
        });
    }
}

/// A port, and who watches it.
pub struct WatchedPort {
    inner: Box<dyn Port>,
    index: usize,
    watch: Arc<Watch>,
}

impl WatchedPort {
    pub fn new(inner: Box<dyn Port>, index: usize, watch: Arc<Watch>) -> Self {
        Self { inner, index, watch }
    }

    fn wrote_down(&self, frame: Glimpse, sent: Sent) -> Sent {
        if let Some(watched) = &mut self.watch.seen().frame
            && watched.sent.len() < MOST
        {
            watched.sent.push((frame, sent));
        }
        sent
    }
}

impl Port for WatchedPort {
    fn link(&self) -> Link {
        self.inner.link()
    }

    fn peer(&self) -> Option<String> {
        self.inner.peer()
    }

    fn generation(&self) -> u64 {
        self.inner.generation()
    }

    fn wake_fd(&self) -> RawFd {
        self.inner.wake_fd()
    }

    fn service(&mut self, now: Instant) {
        self.inner.service(now);
    }

    fn deadline(&self) -> Option<Instant> {
        self.inner.deadline()
    }

    fn mac(&self) -> Option<Mac> {
        self.inner.mac()
    }

    fn mtu(&self) -> Option<usize> {
        self.inner.mtu()
    }

    fn receive(&mut self, pool: &Pool, frames: &mut Vec<Slot>, max: usize) -> usize {
        let mut seen = self.watch.seen();
        if !seen.wants || max == 0 {
            return 0;
        }
        let (since, before) = (Instant::now(), frames.len());
        let taken = self.inner.receive(pool, frames, 1);
        if taken > 0 {
            let frame = match frames.get(before) {
                Some(slot) => Glimpse::of(self.index, &[slot], Lent::EMPTY),
                None => Glimpse::of(self.index, &[], Lent::EMPTY),
            };
            *seen = Seen::one(frame, since);
        }
        taken
    }

    fn lend(&mut self, max: usize) -> Burst<'_> {
        let mut seen = self.watch.seen();
        let since = Instant::now();
        let burst = self.inner.lend(if seen.wants { max.min(1) } else { 0 });
        if let Some(lent) = burst.first() {
            let frame = Glimpse::of(self.index, &[], *lent);
            *seen = Seen::one(frame, since);
        }
        burst
    }

    fn give_back(&mut self, dropped: usize) {
        self.inner.give_back(dropped);
    }

    fn send(&mut self, parts: &[&[u8]]) -> Sent {
        let sent = self.inner.send(parts);
        self.wrote_down(Glimpse::of(self.index, parts, Lent::EMPTY), sent)
    }

    fn send_lent(&mut self, head: &[u8], rest: Lent<'_>) -> Sent {
        let frame = Glimpse::of(self.index, &[head], rest);
        let sent = self.inner.send_lent(head, rest);
        self.wrote_down(frame, sent)
    }

    fn room(&mut self) -> usize {
        self.inner.room()
    }

    fn flush(&mut self) {
        self.inner.flush();
    }

    fn hand_over(&mut self) {
        self.inner.hand_over();
    }

    fn arm(&mut self) -> bool {
        self.inner.arm()
    }

    fn disarm(&mut self) {
        self.inner.disarm();
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.inner.counters()
    }

    fn unwatched(&mut self) -> Option<Box<dyn Port>> {
        Some(std::mem::replace(&mut self.inner, Box::new(QueuePort::new(0, Queue::default()))))
    }
}

#[cfg(test)]
mod tests {
    use super::super::pair::pair;
    use super::*;
    use crate::packet::PoolConfig;

    fn watched() -> (Box<dyn Port>, impl Port, Arc<Watch>) {
        let (near, far) = pair(1500, 64);
        let watch = Arc::<Watch>::default();
        (Box::new(WatchedPort::new(Box::new(near), 3, watch.clone())), far, watch)
    }

    fn send(port: &mut dyn Port, frames: &[&[u8]]) {
        frames.iter().for_each(|frame| assert_eq!(port.send(&[frame]), Sent::Queued));
        port.flush();
    }

    #[test]
    fn frames_come_one_at_a_time_and_when_asked_for() {
        let (mut near, mut far, watch) = watched();
        let pool = Pool::new(&PoolConfig::default()).unwrap();
        send(&mut far, &[b"one", b"two", b"three"]);
        let mut frames = Vec::new();
        assert_eq!(near.receive(&pool, &mut frames, 32), 0);
        for expected in [&b"one"[..], b"two"] {
            watch.begin();
            assert_eq!(near.receive(&pool, &mut frames, 32) + near.receive(&pool, &mut frames, 32), 1);
            let seen = watch.end().unwrap();
            assert_eq!((seen.frame.port, seen.frame.len, &seen.frame.head[..]), (3, expected.len(), expected));
        }
        watch.begin();
        let burst = near.lend(32);
        assert_eq!((burst.len(), burst[0].len()), (1, 5));
        near.give_back(0);
        assert_eq!(near.lend(32).len(), 0);
        near.give_back(0);
        assert_eq!(watch.end().unwrap().frame.head, b"three");
        assert!(watch.end().is_none());
    }

    #[test]
    fn what_is_sent_and_said_meanwhile_belongs_to_the_frame() {
        let (mut near, mut far, watch) = watched();
        let noting = Noting::default();
        near.send(&[b"before"]);
        note(|| "before".into());
        send(&mut far, &[b"one"]);
        watch.begin();
        assert_eq!(near.lend(1).len(), 1);
        near.give_back(0);
        near.send_lent(b"long", Lent::of(&[7; 400]));
        near.send(&[b"a", &[0; 9000]]);
        note(|| "dealt with".into());
        let seen = watch.end().unwrap();
        assert_eq!(seen.notes, ["dealt with"]);
        let [(long, Sent::Queued), (_, Sent::TooLong)] = &seen.sent[..] else { panic!("{:?}", seen.sent) };
        assert_eq!((long.len, long.head.len(), &long.head[..5]), (404, KEPT, &b"long\x07"[..]));
        drop(noting);
        watch.begin();
        note(|| panic!("nobody wants to know"));
    }

    #[test]
    fn a_port_comes_out_as_it_went_in() {
        let (mut near, mut far, _) = watched();
        let mut bare = near.unwatched().unwrap();
        assert!(bare.unwatched().is_none());
        send(&mut far, &[b"one", b"two"]);
        assert_eq!(bare.lend(32).len(), 2);
        bare.give_back(0);
    }
}
