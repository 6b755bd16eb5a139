//! The frames we send, each copied once into the peer's next buffer; nothing of them is seen before the index is
//! published.
#![allow(unsafe_code)]

use std::ptr::{NonNull, copy_nonoverlapping};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::region::Region;
use super::ring::{Descriptor, NEXT, Ring};
use super::traffic::{Buffers, Counters, Cursor};
use crate::packet::prefetch::{prefetch, prefetch_frame};
use crate::port::lent::{BURST, Lent, copy};

/// Buffers one frame may be spread over.
const MAX_CHAIN: usize = 64;
/// How many slots ahead the sender asks for the peer's buffers.
const PREFETCH_SLOTS: u16 = 8;
const DESCRIPTORS_AHEAD: u16 = 24;

/// What became of a frame given to [`Sender::send`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Queued,
    Full,
    TooLong,
}

pub struct Sender {
    cursor: Cursor,
    buffers: Buffers,
    queued_frames: u64,
    queued_bytes: u64,
}

impl Sender {
    pub fn of_server(ring: Ring, regions: Arc<[Arc<Region>]>) -> Self {
        Self::new(Cursor::of_server(ring), Buffers::Offered { regions })
    }

    pub fn of_client(ring: Ring, buffers: Buffers) -> Self {
        Self::new(Cursor::of_client(ring, true), buffers)
    }

    fn new(cursor: Cursor, buffers: Buffers) -> Self {
        Self { cursor, buffers, queued_frames: 0, queued_bytes: 0 }
    }

    /// Buffers that are free: as many frames can be sent, if each fits one. Looks again when fewer than a burst are known
    /// to be. `Err`: the peer broke the rules; the reason.
    #[inline]
    pub fn free(&mut self) -> Result<usize, String> {
        match usize::from(self.cursor.available()) {
            known if known < BURST => self.cursor.refresh().map(usize::from),
            known => Ok(known),
        }
    }

    /// Asks for the buffers of the next `count` frames of about `len` bytes.
    #[inline]
    pub fn expect(&mut self, count: usize, len: usize) {
        let count = count.min(usize::from(self.cursor.available())) as u16;
        for step in (0..count).step_by(4) {
            let index = self.cursor.next.wrapping_add(DESCRIPTORS_AHEAD + step);
            prefetch(self.cursor.ring.address(index), 1, true);
        }
        for step in PREFETCH_SLOTS..count {
            if let Some((_, at)) = self.empty(self.cursor.next.wrapping_add(step)) {
                prefetch_frame(at, len, true);
            }
        }
    }

    /// Frames that no flush has handed over yet.
    pub fn queued(&self) -> u64 {
        self.queued_frames
    }

    /// Writes one frame of `total` > 0 bytes into the peer's next buffers; `parts` must have as many. `Err`: the peer broke
    /// the rules; the reason.
    #[inline(always)]
    pub fn send(&mut self, parts: &[Lent<'_>], total: usize) -> Result<Outcome, String> {
        if self.cursor.available() == 0 && self.cursor.refresh()? == 0 {
            return Ok(Outcome::Full);
        }
        let index = self.cursor.next;
        let Some((descriptor, at)) = self.empty(index) else { return Err(self.lie(index)) };
        if total > descriptor.length as usize {
            return self.send_chain(parts, total);
        }
        let (mut to, mut left) = (at, total);
        for part in parts {
            let count = part.len().min(left);
            // SAFETY: `at` was proved to be followed by descriptor.length ≥ total bytes, of which `left` are not written
            // yet; a part is readable for its length. Parts are not in this port's mappings: what a port lends goes to
            // others.
            unsafe {
                copy(part.as_ptr(), to.as_ptr(), count);
                to = to.add(count);
            }
            left -= count;
        }
        self.cursor.ring.set_descriptor(index, Descriptor { flags: 0, length: total as u32, ..descriptor });
        self.cursor.next = index.wrapping_add(1);
        if index.is_multiple_of(4) {
            prefetch(self.cursor.ring.address(index.wrapping_add(DESCRIPTORS_AHEAD)), 1, true);
        }
        if self.cursor.available() > PREFETCH_SLOTS {
            // A descriptor that lies now is caught when its turn comes; a hint may go anywhere.
            if let Some((_, ahead)) = self.empty(self.cursor.next.wrapping_add(PREFETCH_SLOTS)) {
                prefetch_frame(ahead, total, true);
            }
        }
        self.queued_frames += 1;
        self.queued_bytes += total as u64;
        Ok(Outcome::Queued)
    }

    /// The empty buffer at `index`, its length being its capacity; none if it is a lie.
    #[inline]
    fn empty(&self, index: u16) -> Option<(Descriptor, NonNull<u8>)> {
        let slot = self.cursor.ring.slot(index);
        let descriptor = self.buffers.empty(slot).unwrap_or_else(|| self.cursor.ring.descriptor(index));
        Some((descriptor, self.buffers.locate(slot, &descriptor)?))
    }

    #[cold]
    fn lie(&self, index: u16) -> String {
        let Descriptor { region, length, offset, .. } = self.cursor.ring.descriptor(index);
        let slot = self.cursor.ring.slot(index);
        format!("empty buffer {slot} is outside: region {region}, offset {offset}, length {length}")
    }

    #[cold]
    fn send_chain(&mut self, parts: &[Lent<'_>], total: usize) -> Result<Outcome, String> {
        let (mut capacity, mut chain) = (0, Vec::new());
        while capacity < total {
            if chain.len() == MAX_CHAIN.min(usize::from(self.cursor.ring.slots())) {
                return Ok(Outcome::TooLong);
            }
            let have = chain.len();
            if have >= usize::from(self.cursor.available()) && have >= usize::from(self.cursor.refresh()?) {
                return Ok(Outcome::Full);
            }
            let index = self.cursor.next.wrapping_add(have as u16);
            let Some(more) = self.empty(index) else { return Err(self.lie(index)) };
            capacity += more.0.length as usize;
            chain.push(more);
        }
        let mut bytes = parts.iter().copied().filter(|part| !part.is_empty());
        let (mut part, mut left) = (Lent::EMPTY, total);
        for (step, (descriptor, at)) in chain.iter().enumerate() {
            let length = left.min(descriptor.length as usize);
            let mut written = 0;
            while written < length {
                if part.is_empty() {
                    part = bytes.next().expect("parts of `total` bytes");
                }
                let count = part.len().min(length - written);
                // SAFETY: written + count ≤ length ≤ the bytes proved to follow `at`; the rest as in `send`.
                unsafe { copy_nonoverlapping(part.as_ptr(), at.add(written).as_ptr(), count) };
                part = part.skip(count);
                written += count;
            }
            left -= length;
            let flags = if step + 1 < chain.len() { NEXT } else { 0 };
            let index = self.cursor.next.wrapping_add(step as u16);
            self.cursor.ring.set_descriptor(index, Descriptor { flags, length: length as u32, ..*descriptor });
        }
        self.cursor.next = self.cursor.next.wrapping_add(chain.len() as u16);
        self.queued_frames += 1;
        self.queued_bytes += total as u64;
        Ok(Outcome::Queued)
    }

    /// Shows the peer what is queued, without the fence that makes sure of waking it: `flush` follows. `true`: the peer
    /// is seen to sleep already.
    #[inline]
    pub fn hand_over(&self) -> bool {
        if self.queued_frames == 0 {
            return false;
        }
        self.cursor.publish();
        self.cursor.ring.wants_kick()
    }

    /// Hands over what is queued. `true`: the peer wants to be woken for it.
    #[inline]
    pub fn flush(&mut self, counters: &mut Counters) -> bool {
        if self.queued_frames == 0 {
            return false;
        }
        self.cursor.publish();
        counters.tx_frames += std::mem::take(&mut self.queued_frames);
        counters.tx_bytes += std::mem::take(&mut self.queued_bytes);
        // Our index before their flag: see `Receiver::arm`.
        fence(Ordering::SeqCst);
        self.cursor.ring.wants_kick()
    }
}
