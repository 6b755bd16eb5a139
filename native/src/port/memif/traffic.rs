//! What both ways through the rings stand on: our place in a ring, where buffers are, the counters.
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

use std::ptr::NonNull;
use std::sync::Arc;

use super::region::Region;
use super::ring::{Descriptor, Index, Layout, Ring};
use crate::port::counting::counters;

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
pub struct Cursor {
    pub ring: Ring,
    theirs: Index,
    ours: Index,
    theirs_bias: u16,
    ours_bias: u16,
    /// The next index we use, and the first we may not.
    pub next: u16,
    limit: u16,
}

impl Cursor {
    pub fn of_server(ring: Ring) -> Self {
        let (theirs, ours) = (Index::Head, Index::Tail);
        // The tail is ours, and starts at 0 whatever the memory held.
        ring.store(ours, 0);
        Self { ring, theirs, ours, theirs_bias: 0, ours_bias: 0, next: 0, limit: 0 }
    }

    pub fn of_client(ring: Ring, sends: bool) -> Self {
        let (theirs, ours) = (Index::Tail, Index::Head);
        let slots = ring.slots();
        let (theirs_bias, ours_bias) = if sends { (slots, 0) } else { (0, slots) };
        Self { ring, theirs, ours, theirs_bias, ours_bias, next: 0, limit: 0 }
    }

    #[inline]
    pub fn available(&self) -> u16 {
        self.limit.wrapping_sub(self.next)
    }

    /// Reads the peer's index: how far we may go. `Err`: it cannot be true.
    #[inline]
    pub fn refresh(&mut self) -> Result<u16, String> {
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

    /// Whether the peer has not gone on since.
    pub fn is_at_the_end(&self) -> bool {
        self.ring.load(self.theirs).wrapping_add(self.theirs_bias) == self.next
    }

    #[inline]
    pub fn publish(&self) {
        self.ring.store(self.ours, self.next.wrapping_add(self.ours_bias));
    }
}

/// Where a descriptor's buffer is.
pub enum Buffers {
    /// A client's own: one per slot, at a place only we decide.
    Own { region: Arc<Region>, offsets: Box<[u32]>, bytes: u32 },
    /// A server's: wherever the peer's descriptor says, if that is inside.
    Offered { regions: Arc<[Arc<Region>]> },
}

impl Buffers {
    /// The buffers of one ring of a client, scattered by the bits of the slot's number read backwards. Frames at equal
    /// distances teach a core's prefetcher to fetch the next one, and so to take from the other core what that is just
    /// writing; 60-byte frames then come at two thirds of the rate where a cache line takes 300 ns there and back.
    pub fn own(region: &Arc<Region>, layout: Layout, client_to_server: bool, queue: u16) -> Self {
        let (first, bytes) = (layout.buffers_offset(client_to_server, queue), layout.buffer_bytes);
        let backwards = |slot: u16| u32::from(slot.reverse_bits() >> (16 - layout.log2_slots));
        let offsets = (0..1 << layout.log2_slots).map(|slot| first + backwards(slot) * bytes).collect();
        Self::Own { region: region.clone(), offsets, bytes }
    }

    /// `length` bytes of the buffer of a descriptor read from `slot`; none if it is a lie.
    #[inline]
    pub fn locate(&self, slot: usize, descriptor: &Descriptor) -> Option<NonNull<u8>> {
        let length = descriptor.length as usize;
        if length == 0 {
            return None;
        }
        match self {
            Self::Own { region, offsets, bytes } => {
                if length > *bytes as usize {
                    None
                } else {
                    region.at(offsets[slot] as usize, length)
                }
            }
            Self::Offered { regions } => {
                regions.get(usize::from(descriptor.region))?.at(descriptor.offset as usize, length)
            }
        }
    }

    /// A client's descriptor of an empty buffer.
    #[inline]
    pub fn empty(&self, slot: usize) -> Option<Descriptor> {
        match self {
            Self::Own { offsets, bytes, .. } => {
                Some(Descriptor { flags: 0, region: 0, length: *bytes, offset: offsets[slot] })
            }
            Self::Offered { .. } => None,
        }
    }
}
