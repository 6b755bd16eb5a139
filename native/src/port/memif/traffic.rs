//! Frames through the rings: one copy each, one index load and one index store per burst.
//!
//! The two roles and the two directions differ only in which index belongs to whom:
//!
//! | we are | ring | theirs says we may go to | ours says we went to |
//! | --- | --- | --- | --- |
//! | server | either | head | tail |
//! | client, sending | client→server | tail + slots | head |
//! | client, receiving | server→client | tail | head − slots (all else is on offer) |
//!
//! A client knows where its buffers are and never reads that back from shared memory; a server checks every region,
//! offset and length it reads.
#![allow(unsafe_code)]

use std::ptr::{NonNull, copy_nonoverlapping};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::region::Region;
use super::ring::{Descriptor, Index, Layout, NEXT, Ring};
use crate::packet::{Pool, Slot};

/// Descriptors read ahead, so that their buffers are on the way while earlier ones are copied.
const WINDOW: usize = 32;
/// Buffers one frame may be spread over when we send.
const MAX_CHAIN: usize = 64;

/// Every counter of a port, by the name it has outside.
macro_rules! counters {
    ($($(#[$about:meta])* $name:ident),+ $(,)?) => {
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counters { $($(#[$about])* pub $name: u64),+ }
        impl Counters {
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),+]
            }
        }
    };
}

counters! {
    rx_frames,
    rx_bytes,
    /// A region, offset or length that points outside, or a length of 0.
    rx_bad_descriptor,
    /// A chain without an end, or with a bad descriptor in it.
    rx_bad_chain,
    rx_too_long,
    rx_pool_dry,
    /// Handed to the peer.
    tx_frames,
    tx_bytes,
    tx_full,
    /// Too long for the port, or empty.
    tx_too_long,
    tx_down,
    /// Queued, but the peer was gone before the flush.
    tx_lost,
    kicks,
    kicks_failed,
    /// Times the link came up.
    connects,
    /// Times it went down, whoever wanted it.
    disconnects,
    /// Of these, because the peer broke the rules.
    violations,
    /// Handshakes that one side gave up, reason given.
    handshakes_refused,
    handshakes_timed_out,
    /// Connections closed at once because too many were half open.
    handshakes_crowded,
}

/// Our place in one ring.
struct Cursor {
    ring: Ring,
    theirs: Index,
    ours: Index,
    theirs_bias: u16,
    ours_bias: u16,
    /// The next index we use, and the first we may not.
    next: u16,
    limit: u16,
}

impl Cursor {
    fn of_server(ring: Ring) -> Self {
        let (theirs, ours) = (Index::Head, Index::Tail);
        // The tail is ours, and starts at 0 whatever the memory held.
        ring.store(ours, 0);
        Self { ring, theirs, ours, theirs_bias: 0, ours_bias: 0, next: 0, limit: 0 }
    }

    fn of_client(ring: Ring, sends: bool) -> Self {
        let (theirs, ours) = (Index::Tail, Index::Head);
        let slots = ring.slots();
        let (theirs_bias, ours_bias) = if sends { (slots, 0) } else { (0, slots) };
        Self { ring, theirs, ours, theirs_bias, ours_bias, next: 0, limit: 0 }
    }

    #[inline]
    fn available(&self) -> u16 {
        self.limit.wrapping_sub(self.next)
    }

    /// Reads the peer's index: how far we may go. `Err`: it cannot be true.
    #[inline]
    fn refresh(&mut self) -> Result<u16, String> {
        let theirs = self.ring.load(self.theirs);
        let limit = theirs.wrapping_add(self.theirs_bias);
        let available = limit.wrapping_sub(self.next);
        if available > self.ring.slots() {
            let (name, slots) = (self.theirs, self.ring.slots());
            return Err(format!("ring {name:?} at {theirs} while we are at {}: more than {slots} slots", self.next));
        }
        self.limit = limit;
        Ok(available)
    }

    #[inline]
    fn publish(&self) {
        self.ring.store(self.ours, self.next.wrapping_add(self.ours_bias));
    }
}

/// Where a descriptor's buffer is.
enum Buffers {
    /// A client's own: one per slot, at a place only we decide.
    Own { region: Arc<Region>, first: u32, bytes: u32 },
    /// A server's: wherever the peer's descriptor says, if that is inside.
    Offered { regions: Vec<Arc<Region>> },
}

impl Buffers {
    /// `length` bytes of the buffer of a descriptor read from `slot`; none if it is a lie.
    #[inline]
    fn locate(&self, slot: usize, descriptor: &Descriptor) -> Option<NonNull<u8>> {
        let length = descriptor.length as usize;
        if length == 0 {
            return None;
        }
        match self {
            Self::Own { region, first, bytes } => {
                let offset = *first as usize + slot * *bytes as usize;
                if length > *bytes as usize { None } else { region.at(offset, length) }
            }
            Self::Offered { regions } => {
                regions.get(usize::from(descriptor.region))?.at(descriptor.offset as usize, length)
            }
        }
    }

    /// A client's descriptor of an empty buffer.
    #[inline]
    fn own(&self, slot: usize) -> Option<Descriptor> {
        match self {
            Self::Own { first, bytes, .. } => {
                Some(Descriptor { flags: 0, region: 0, length: *bytes, offset: first + slot as u32 * bytes })
            }
            Self::Offered { .. } => None,
        }
    }
}

/// Lines of a frame that are asked for ahead: beyond those the hardware has seen the pattern.
const PREFETCH_BYTES: usize = 256;
/// How many slots ahead the sender asks for the peer's buffers.
const PREFETCH_SLOTS: u16 = 6;

/// Asks for the cache lines of `length` bytes at `address`, to be written or only read. Lines that the other core has
/// written cost up to 300 ns each when they are waited for one after the other.
#[inline]
fn prefetch(address: NonNull<u8>, length: usize, to_write: bool) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..length.min(PREFETCH_BYTES)).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
        let address = address.as_ptr().wrapping_add(line).cast();
        // SAFETY: a hint; it cannot fault.
        unsafe {
            if to_write {
                _mm_prefetch::<_MM_HINT_ET0>(address);
            } else {
                _mm_prefetch::<_MM_HINT_T0>(address);
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (address, length, to_write);
}

/// One descriptor's worth of a received frame.
#[derive(Clone, Copy)]
struct Piece {
    at: Option<NonNull<u8>>,
    length: u32,
    goes_on: bool,
}

/// The frames the peer sends.
pub struct Receiver {
    cursor: Cursor,
    buffers: Buffers,
    max_frame: usize,
    /// The pieces of a chain being gathered; kept for its memory.
    chain: Vec<(NonNull<u8>, usize)>,
}

// SAFETY: the addresses in `chain` are used only within one call of `receive`.
unsafe impl Send for Receiver {}

impl Receiver {
    pub fn of_server(ring: Ring, regions: Vec<Arc<Region>>, max_frame: usize) -> Self {
        let (cursor, buffers) = (Cursor::of_server(ring), Buffers::Offered { regions });
        Self { cursor, buffers, max_frame, chain: Vec::new() }
    }

    /// Offers all its buffers at once: only after CONNECTED, for a server may clear the indices before.
    pub fn of_client(ring: Ring, region: Arc<Region>, layout: Layout, max_frame: usize) -> Self {
        let cursor = Cursor::of_client(ring, false);
        let buffers = Buffers::Own { region, first: layout.buffers_offset(false), bytes: layout.buffer_bytes };
        let receiver = Self { cursor, buffers, max_frame, chain: Vec::new() };
        receiver.offer(0, receiver.cursor.ring.slots());
        receiver.cursor.publish();
        receiver
    }

    /// Gives consumed slots of a client back, complete: DPDK 22.11 never clears the flags of a first descriptor.
    fn offer(&self, from: u16, count: u16) {
        for step in 0..count {
            let index = from.wrapping_add(step);
            if let Some(descriptor) = self.buffers.own(self.cursor.ring.slot(index)) {
                self.cursor.ring.set_descriptor(index, descriptor);
            }
        }
    }

    /// As [`crate::port::Port::receive`]. `Err`: the peer broke the rules; the reason.
    pub fn receive(
        &mut self,
        pool: &Pool,
        frames: &mut Vec<Slot>,
        max: usize,
        counters: &mut Counters,
    ) -> Result<usize, String> {
        let mut available = usize::from(self.cursor.refresh()?);
        if available == 0 {
            return Ok(0);
        }
        let mut window = [Piece { at: None, length: 0, goes_on: false }; WINDOW];
        let (mut taken, mut gathering) = (0, None);
        while available > 0 && taken < max {
            // Never more than will be used up below, so that no descriptor is read twice.
            let count = available.min(WINDOW).min(max - taken);
            let first = self.cursor.next;
            for (step, piece) in window[..count].iter_mut().enumerate() {
                *piece = self.look(first.wrapping_add(step as u16));
            }
            for piece in &window[..count] {
                if !piece.goes_on && gathering.is_none() {
                    taken += 1;
                    self.take(*piece, pool, frames, counters);
                } else if self.gather(*piece, gathering.get_or_insert(Ok(0))) {
                    taken += 1;
                    self.finish_chain(gathering.take(), pool, frames, counters);
                }
            }
            self.offer(first, count as u16);
            self.cursor.next = first.wrapping_add(count as u16);
            available -= count;
        }
        if gathering.is_some() {
            // Senders publish whole frames only.
            taken += 1;
            counters.rx_bad_chain += 1;
            self.chain.clear();
        }
        self.cursor.publish();
        Ok(taken)
    }

    /// Reads one descriptor, once, and checks it.
    #[inline]
    fn look(&self, index: u16) -> Piece {
        let ring = &self.cursor.ring;
        let descriptor = ring.descriptor(index);
        let at = self.buffers.locate(ring.slot(index), &descriptor);
        let goes_on = descriptor.flags & NEXT != 0;
        if let Some(at) = at {
            prefetch(at, descriptor.length as usize, false);
        }
        if goes_on {
            // A DPDK 22.11 client would leave the flag there for ever and glue later frames together. The slot is
            // ours until we publish, and other clients write all of it anyway.
            ring.set_descriptor(index, Descriptor { flags: 0, ..descriptor });
        }
        Piece { at, length: descriptor.length, goes_on }
    }

    /// A frame in one buffer.
    #[inline]
    fn take(&self, piece: Piece, pool: &Pool, frames: &mut Vec<Slot>, counters: &mut Counters) {
        let length = piece.length as usize;
        let Some(at) = piece.at else {
            counters.rx_bad_descriptor += 1;
            return;
        };
        if length > self.max_frame {
            counters.rx_too_long += 1;
            return;
        }
        let Some(mut slot) = pool.take(length) else {
            counters.rx_pool_dry += 1;
            return;
        };
        // SAFETY: `at` was proved to be followed by `length` bytes of a mapping that `buffers` keeps alive, and the slot
        // has as many. The peer may change them meanwhile: they are bytes, checked by whoever parses the copy.
        unsafe { copy_nonoverlapping(at.as_ptr(), slot.as_mut_ptr(), length) };
        counters.rx_frames += 1;
        counters.rx_bytes += length as u64;
        frames.push(slot);
    }

    /// Adds one piece of a chain. `true`: that was the last.
    #[cold]
    fn gather(&mut self, piece: Piece, sum: &mut Result<usize, ()>) -> bool {
        *sum = match (*sum, piece.at) {
            (Ok(sum), Some(at)) => {
                // Pieces beyond the limit need not be remembered: the frame is dropped anyway.
                if sum <= self.max_frame {
                    self.chain.push((at, piece.length as usize));
                }
                Ok(sum.saturating_add(piece.length as usize))
            }
            _ => Err(()),
        };
        !piece.goes_on
    }

    #[cold]
    fn finish_chain(
        &mut self,
        sum: Option<Result<usize, ()>>,
        pool: &Pool,
        frames: &mut Vec<Slot>,
        counters: &mut Counters,
    ) {
        match sum {
            Some(Ok(sum)) if sum > self.max_frame => counters.rx_too_long += 1,
            Some(Ok(sum)) => match pool.take(sum) {
                Some(mut slot) => {
                    let mut rest = &mut slot[..];
                    for (at, length) in &self.chain {
                        let (piece, tail) = std::mem::take(&mut rest).split_at_mut(*length);
                        // SAFETY: as in `take`.
                        unsafe { copy_nonoverlapping(at.as_ptr(), piece.as_mut_ptr(), *length) };
                        rest = tail;
                    }
                    counters.rx_frames += 1;
                    counters.rx_bytes += sum as u64;
                    frames.push(slot);
                }
                None => counters.rx_pool_dry += 1,
            },
            _ => counters.rx_bad_chain += 1,
        }
        self.chain.clear();
    }

    /// Wants a wake-up for the next frame. `false`: there is one already (or an index that `receive` will refuse).
    pub fn arm(&self) -> bool {
        self.cursor.ring.set_wants_kick(true);
        // Our flag before their index: the sender does it the other way round, so one of us sees the other.
        fence(Ordering::SeqCst);
        let waiting = self.cursor.ring.load(self.cursor.theirs).wrapping_add(self.cursor.theirs_bias);
        waiting == self.cursor.next
    }

    pub fn disarm(&self) {
        self.cursor.ring.set_wants_kick(false);
    }
}

/// What became of a frame given to [`Sender::send`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Queued,
    Full,
    TooLong,
}

/// The frames we send.
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

    /// Writes one frame of `total` > 0 bytes into the peer's next buffers. `Err`: the peer broke the rules; the reason.
    #[inline]
    pub fn send(&mut self, parts: &[&[u8]], total: usize) -> Result<Outcome, String> {
        if self.cursor.available() == 0 && self.cursor.refresh()? == 0 {
            return Ok(Outcome::Full);
        }
        let index = self.cursor.next;
        let (descriptor, at) = self.room(index)?;
        if total > descriptor.length as usize {
            return self.send_chain(parts, total, (descriptor, at));
        }
        let mut to = at;
        for part in parts {
            // SAFETY: `at` was proved to be followed by descriptor.length ≥ total bytes, and total is the sum of the
            // parts. The parts are ours, the buffer is in shared memory: they cannot overlap.
            unsafe {
                copy_nonoverlapping(part.as_ptr(), to.as_ptr(), part.len());
                to = to.add(part.len());
            }
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
        parts: &[&[u8]],
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
        let (mut part, mut left): (&[u8], usize) = (&[], total);
        for (step, (descriptor, at)) in chain.iter().enumerate() {
            let length = left.min(descriptor.length as usize);
            let mut written = 0;
            while written < length {
                if part.is_empty() {
                    part = bytes.next().unwrap_or_default();
                }
                let count = part.len().min(length - written);
                // SAFETY: written + count ≤ length ≤ the bytes proved to follow `at`; no overlap, as in `send`.
                unsafe { copy_nonoverlapping(part.as_ptr(), at.add(written).as_ptr(), count) };
                part = &part[count..];
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
