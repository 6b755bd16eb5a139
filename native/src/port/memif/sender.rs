//! The frames we send, each copied once into the peer's next buffer; nothing of them is seen before the index is
//! published.
#![allow(unsafe_code)]

use std::ptr::{NonNull, copy_nonoverlapping};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::region::Region;
use super::ring::{Descriptor, Layout, NEXT, Ring};
use super::traffic::{Buffers, Counters, Cursor, prefetch};
use crate::port::lent::Lent;

/// Buffers one frame may be spread over.
const MAX_CHAIN: usize = 64;
/// How many slots ahead the sender asks for the peer's buffers.
const PREFETCH_SLOTS: u16 = 6;

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
    pub fn of_server(ring: Ring, regions: Vec<Arc<Region>>) -> Self {
        let (cursor, buffers) = (Cursor::of_server(ring), Buffers::Offered { regions });
        Self { cursor, buffers, queued_frames: 0, queued_bytes: 0 }
    }

    pub fn of_client(ring: Ring, region: Arc<Region>, layout: Layout) -> Self {
        let cursor = Cursor::of_client(ring, true);
        let buffers = Buffers::Own { region, first: layout.buffers_offset(true), bytes: layout.buffer_bytes };
        Self { cursor, buffers, queued_frames: 0, queued_bytes: 0 }
    }

    /// Buffers that are free: as many frames can be sent, if each fits one. `Err`: the peer broke the rules; the reason.
    #[inline]
    pub fn free(&mut self) -> Result<usize, String> {
        match self.cursor.available() {
            0 => self.cursor.refresh().map(usize::from),
            known => Ok(usize::from(known)),
        }
    }

    /// Frames that no flush has handed over yet.
    pub fn queued(&self) -> u64 {
        self.queued_frames
    }

    /// Writes one frame of `total` > 0 bytes into the peer's next buffers; `parts` must have as many. `Err`: the peer broke
    /// the rules; the reason.
    #[inline]
    pub fn send(&mut self, parts: &[Lent<'_>], total: usize) -> Result<Outcome, String> {
        if self.cursor.available() == 0 && self.cursor.refresh()? == 0 {
            return Ok(Outcome::Full);
        }
        let index = self.cursor.next;
        let (descriptor, at) = self.room(index)?;
        if total > descriptor.length as usize {
            return self.send_chain(parts, total, (descriptor, at));
        }
        let (mut to, mut left) = (at, total);
        for part in parts {
            let count = part.len().min(left);
            // SAFETY: `at` was proved to be followed by descriptor.length ≥ total bytes, of which `left` are not written
            // yet; a part is readable for its length. Parts are not in this port's mappings: what a port lends goes to others.
            unsafe {
                copy_nonoverlapping(part.as_ptr(), to.as_ptr(), count);
                to = to.add(count);
            }
            left -= count;
        }
        self.cursor.ring.set_descriptor(index, Descriptor { flags: 0, length: total as u32, ..descriptor });
        self.cursor.next = index.wrapping_add(1);
        if self.cursor.available() > PREFETCH_SLOTS {
            // A descriptor that lies now is caught when its turn comes; a hint may go anywhere.
            if let Ok((_, ahead)) = self.room(self.cursor.next.wrapping_add(PREFETCH_SLOTS)) {
                prefetch(ahead, total, true);
            }
        }
        self.queued_frames += 1;
        self.queued_bytes += total as u64;
        Ok(Outcome::Queued)
    }

    /// The empty buffer at `index`, its length being its capacity.
    #[inline]
    fn room(&self, index: u16) -> Result<(Descriptor, NonNull<u8>), String> {
        let slot = self.cursor.ring.slot(index);
        let descriptor = self.buffers.own(slot).unwrap_or_else(|| self.cursor.ring.descriptor(index));
        match self.buffers.locate(slot, &descriptor) {
            Some(at) => Ok((descriptor, at)),
            None => {
                let Descriptor { region, length, offset, .. } = descriptor;
                Err(format!("empty buffer {slot} is outside: region {region}, offset {offset}, length {length}"))
            }
        }
    }

    #[cold]
    fn send_chain(
        &mut self,
        parts: &[Lent<'_>],
        total: usize,
        first: (Descriptor, NonNull<u8>),
    ) -> Result<Outcome, String> {
        let (mut capacity, mut chain) = (first.0.length as usize, vec![first]);
        while capacity < total {
            if chain.len() == MAX_CHAIN.min(usize::from(self.cursor.ring.slots())) {
                return Ok(Outcome::TooLong);
            }
            let have = chain.len();
            if have >= usize::from(self.cursor.available()) && have >= usize::from(self.cursor.refresh()?) {
                return Ok(Outcome::Full);
            }
            let more = self.room(self.cursor.next.wrapping_add(have as u16))?;
            capacity = capacity.saturating_add(more.0.length as usize);
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
