//! The frames the peer sends, shown where they lie: one index load per burst, one descriptor read per buffer.
//!
//! The slots of what is shown stay ours until [`Receiver::give_back`]. A frame spread over several buffers is gathered
//! into memory of the receiver's first.
#![allow(unsafe_code)]

use std::ptr::{NonNull, copy_nonoverlapping};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::region::Region;
use super::ring::{Descriptor, NEXT, Ring};
use super::traffic::{Buffers, Counters, Cursor};
use crate::packet::prefetch::prefetch_frame;
use crate::port::lent::{AHEAD, BURST, Burst, Lent};

/// Chained frames shown in one burst; further ones wait for the next.
const CHAINS_PER_BURST: usize = 8;

pub struct Receiver {
    cursor: Cursor,
    buffers: Buffers,
    max_frame: usize,
    /// Slots that `lend` has looked at and `give_back` will hand to the peer.
    shown: u16,
    /// The chained frames of a burst; each allocated when first needed, and never moved.
    gathered: Vec<Box<[u8]>>,
}

/// Why a chain is not shown.
enum Broken {
    Bad,
    TooLong,
}

impl Receiver {
    pub fn of_server(ring: Ring, regions: Arc<[Arc<Region>]>, max_frame: usize) -> Self {
        Self::new(Cursor::of_server(ring), Buffers::Offered { regions }, max_frame)
    }

    /// Offers all its buffers at once: only after CONNECTED, for a server may clear the indices before.
    pub fn of_client(ring: Ring, buffers: Buffers, max_frame: usize) -> Self {
        let receiver = Self::new(Cursor::of_client(ring, false), buffers, max_frame);
        receiver.offer(0, receiver.cursor.ring.slots());
        receiver.cursor.publish();
        receiver
    }

    fn new(cursor: Cursor, buffers: Buffers, max_frame: usize) -> Self {
        Self { cursor, buffers, max_frame, shown: 0, gathered: Vec::new() }
    }

    /// Gives consumed slots of a client back, complete: DPDK 22.11 never clears the flags of a first descriptor.
    #[inline]
    fn offer(&self, from: u16, count: u16) {
        for step in 0..count {
            let index = from.wrapping_add(step);
            if let Some(descriptor) = self.buffers.empty(self.cursor.ring.slot(index)) {
                self.cursor.ring.set_descriptor(index, descriptor);
            }
        }
    }

    /// Looks how many slots wait, unless `wanted` are known to. `Err`: the peer broke the rules; the reason.
    #[inline]
    pub fn refresh(&mut self, wanted: usize) -> Result<(), String> {
        if usize::from(self.cursor.available()) < wanted.min(BURST) { self.cursor.refresh().map(drop) } else { Ok(()) }
    }

    #[inline]
    pub fn available(&self) -> u16 {
        self.cursor.available()
    }

    /// As [`crate::port::Port::lend`], of what the last `refresh` found.
    #[inline]
    pub fn lend(&mut self, max: usize, counters: &mut Counters) -> Burst<'_> {
        debug_assert_eq!(self.shown, 0, "lent, and not given back");
        let available = self.cursor.available();
        let (mut burst, mut bytes, mut chains, mut looked_at) = (Burst::EMPTY, 0, 0, 0);
        while self.shown < available && looked_at < max.min(BURST) {
            looked_at += 1;
            let index = self.cursor.next.wrapping_add(self.shown);
            let descriptor = self.cursor.ring.descriptor(index);
            let length = descriptor.length as usize;
            if descriptor.flags & NEXT != 0 {
                if chains == CHAINS_PER_BURST {
                    break;
                }
                match self.gather(index, descriptor, chains) {
                    Ok(frame) => {
                        chains += 1;
                        bytes += frame.len();
                        burst.push(frame);
                    }
                    Err(Broken::Bad) => counters.rx_bad_chain += 1,
                    Err(Broken::TooLong) => counters.rx_too_long += 1,
                }
                continue;
            }
            self.shown += 1;
            match self.buffers.locate(self.cursor.ring.slot(index), &descriptor) {
                None => counters.rx_bad_descriptor += 1,
                Some(_) if length > self.max_frame => counters.rx_too_long += 1,
                Some(at) => {
                    if burst.len() < AHEAD {
                        prefetch_frame(at, length, false);
                    }
                    bytes += length;
                    // SAFETY: `at` was proved to be followed by `length` bytes of a mapping that `buffers` keeps for as
                    // long as the burst borrows it.
                    burst.push(unsafe { Lent::new(at, descriptor.length) });
                }
            }
        }
        counters.rx_frames += burst.len() as u64;
        counters.rx_bytes += bytes as u64;
        burst
    }

    /// What was shown is the peer's again.
    #[inline]
    pub fn give_back(&mut self) {
        if self.shown > 0 {
            self.offer(self.cursor.next, self.shown);
            self.cursor.next = self.cursor.next.wrapping_add(self.shown);
            self.shown = 0;
            self.cursor.publish();
        }
    }

    /// Copies the chain that begins with `descriptor` at `index` into `gathered[place]`. All its slots count as shown.
    #[cold]
    fn gather<'a>(&mut self, mut index: u16, mut descriptor: Descriptor, place: usize) -> Result<Lent<'a>, Broken> {
        if place == self.gathered.len() {
            self.gathered.push(vec![0; self.max_frame].into());
        }
        let (mut length, mut broken) = (0, None);
        loop {
            self.shown += 1;
            match self.buffers.locate(self.cursor.ring.slot(index), &descriptor) {
                // One lie spoils the whole frame, however long it is.
                None => broken = Some(Broken::Bad),
                Some(_) if broken.is_some() => {}
                Some(at) => match self.gathered[place][length..].get_mut(..descriptor.length as usize) {
                    Some(piece) => {
                        // SAFETY: `at` was proved to be followed by as many bytes. The peer may change them meanwhile:
                        // they are bytes, checked by whoever parses the copy.
                        unsafe { copy_nonoverlapping(at.as_ptr(), piece.as_mut_ptr(), piece.len()) };
                        length += piece.len();
                    }
                    None => broken = Some(Broken::TooLong),
                },
            }
            if descriptor.flags & NEXT == 0 {
                break;
            }
            // A DPDK 22.11 client would leave the flag there for ever and glue later frames together. The slot is ours
            // until we publish, and other clients write all of it anyway.
            self.cursor.ring.set_descriptor(index, Descriptor { flags: 0, ..descriptor });
            if self.shown == self.cursor.available() {
                // Senders publish whole frames only.
                broken = Some(Broken::Bad);
                break;
            }
            index = index.wrapping_add(1);
            descriptor = self.cursor.ring.descriptor(index);
        }
        match broken {
            Some(broken) => Err(broken),
            // SAFETY: `length` bytes were written there, which stay where they are and as they are until the next burst.
            None => Ok(unsafe { Lent::new(NonNull::from(&*self.gathered[place]).cast(), length as u32) }),
        }
    }

    /// Wants a wake-up for the next frame. `false`: there is one already (or an index that `lend` will refuse).
    pub fn arm(&self) -> bool {
        self.cursor.ring.set_wants_kick(true);
        // Our flag before their index: the sender does it the other way round, so one of us sees the other.
        fence(Ordering::SeqCst);
        self.cursor.is_at_the_end()
    }

    pub fn disarm(&self) {
        self.cursor.ring.set_wants_kick(false);
    }
}
