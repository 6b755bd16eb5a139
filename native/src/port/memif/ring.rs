//! One ring in shared memory, seen field by field. Every access is one atomic load or store: what the peer changes
//! between two of our reads cannot surprise us, because there is no second read.
//!
//! ```text
//! 0 cookie u32 · 4 flags u16 · 6 head u16 · 64 tail u16 · 128 descriptors, 16 bytes each:
//!   flags u16 · region u16 · length u32 · offset u32 · metadata u32
//! ```
//! The indices run freely; slot = index & (slots − 1). The client always writes `head`, the server always `tail`. The
//! receiver of the ring's frames owns `flags`.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::region::Region;

pub const COOKIE: u32 = 0x03E3_1F20;
/// In the ring's flags: its receiver polls and wants no eventfd written.
const MASK_INT: u16 = 1;
/// In a descriptor's flags: the frame goes on in the next descriptor.
pub const NEXT: u16 = 1;
const FLAGS_AT: usize = 4;
const DESCRIPTORS_AT: usize = 128;
const DESCRIPTOR_BYTES: usize = 16;
/// What peers use; twice this would make a full ring look empty to arithmetic on u16.
pub const MAX_LOG2_SLOTS: u8 = 14;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    Head = 6,
    Tail = 64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    pub flags: u16,
    pub region: u16,
    pub length: u32,
    pub offset: u32,
}

pub struct Ring {
    base: NonNull<u8>,
    /// Of an index: its slot.
    mask: u16,
    _region: Arc<Region>,
}

// SAFETY: `base` points into the mapping `_region` keeps alive, and all accesses are atomic.
unsafe impl Send for Ring {}

impl Ring {
    pub const fn bytes(log2_slots: u8) -> usize {
        DESCRIPTORS_AT + (DESCRIPTOR_BYTES << log2_slots)
    }

    /// A view of the ring at `offset`; the text of a refusal is fit for a peer's eyes.
    pub fn new(region: &Arc<Region>, offset: u32, log2_slots: u8) -> Result<Self, String> {
        if !(1..=MAX_LOG2_SLOTS).contains(&log2_slots) {
            return Err(format!("ring of 2^{log2_slots} slots, 2^1 to 2^{MAX_LOG2_SLOTS} wanted"));
        }
        // Descriptors are read as two u64; a mapping begins at a page.
        if !offset.is_multiple_of(8) {
            return Err(format!("ring at offset {offset}, a multiple of 8 wanted"));
        }
        let base = region.at(offset as usize, Self::bytes(log2_slots)).ok_or_else(|| {
            format!("ring at {offset} of 2^{log2_slots} slots ends outside its region of {} bytes", region.bytes())
        })?;
        Ok(Self { base, mask: (1 << log2_slots) - 1, _region: region.clone() })
    }

    /// Writes the header of a ring of our own. Its memory is new, so the indices are 0 already.
    pub fn initialise(&self) {
        // SAFETY: offset 0 lies within the ring and is aligned to 8.
        unsafe { self.base.cast::<AtomicU32>().as_ref() }.store(COOKIE.to_le(), Ordering::Release);
    }

    pub fn cookie(&self) -> u32 {
        // SAFETY: as in `initialise`.
        u32::from_le(unsafe { self.base.cast::<AtomicU32>().as_ref() }.load(Ordering::Acquire))
    }

    #[inline]
    pub fn slots(&self) -> u16 {
        self.mask + 1
    }

    #[inline]
    pub fn slot(&self, index: u16) -> usize {
        usize::from(index & self.mask)
    }

    #[inline]
    fn field(&self, at: usize) -> &AtomicU16 {
        // SAFETY: all callers pass an even offset within the header, which `new` proved to be inside the region.
        unsafe { self.base.add(at).cast::<AtomicU16>().as_ref() }
    }

    /// What the peer published up to this index is visible after this load.
    #[inline]
    pub fn load(&self, index: Index) -> u16 {
        u16::from_le(self.field(index as usize).load(Ordering::Acquire))
    }

    /// What we wrote is visible to whoever sees this index.
    #[inline]
    pub fn store(&self, index: Index, value: u16) {
        self.field(index as usize).store(value.to_le(), Ordering::Release);
    }

    /// As the sender of its frames: does the receiver want its eventfd written?
    #[inline]
    pub fn wants_kick(&self) -> bool {
        u16::from_le(self.field(FLAGS_AT).load(Ordering::Relaxed)) & MASK_INT == 0
    }

    /// As the receiver of its frames: do we want our eventfd written?
    pub fn set_wants_kick(&self, wanted: bool) {
        self.field(FLAGS_AT).store(if wanted { 0 } else { MASK_INT.to_le() }, Ordering::Relaxed);
    }

    #[inline]
    fn words(&self, index: u16) -> [&AtomicU64; 2] {
        let at = DESCRIPTORS_AT + self.slot(index) * DESCRIPTOR_BYTES;
        // SAFETY: `slot` is below the number of slots, so both words lie within the ring; `base` is aligned to 8.
        unsafe { [self.base.add(at).cast().as_ref(), self.base.add(at + 8).cast().as_ref()] }
    }

    /// Where the descriptor at `index` is, to ask for its cache line ahead.
    #[inline]
    pub fn address(&self, index: u16) -> NonNull<u8> {
        // SAFETY: within the ring, as in `words`.
        unsafe { self.base.add(DESCRIPTORS_AT + self.slot(index) * DESCRIPTOR_BYTES) }
    }

    #[inline]
    pub fn descriptor(&self, index: u16) -> Descriptor {
        let [first, second] = self.words(index).map(|word| u64::from_le(word.load(Ordering::Relaxed)));
        Descriptor {
            flags: first as u16,
            region: (first >> 16) as u16,
            length: (first >> 32) as u32,
            offset: second as u32,
        }
    }

    #[inline]
    pub fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        let first =
            u64::from(descriptor.flags) | u64::from(descriptor.region) << 16 | u64::from(descriptor.length) << 32;
        let [one, two] = self.words(index);
        one.store(first.to_le(), Ordering::Relaxed);
        two.store(u64::from(descriptor.offset).to_le(), Ordering::Relaxed);
    }
}

/// How a client arranges its one region: all rings, client to server first, then the buffers of each in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub log2_slots: u8,
    pub buffer_bytes: u32,
    /// Rings in each direction.
    pub queues: u16,
}

impl Layout {
    fn place(self, client_to_server: bool, queue: u16) -> u32 {
        u32::from(queue) + if client_to_server { 0 } else { u32::from(self.queues) }
    }

    pub fn ring_offset(self, client_to_server: bool, queue: u16) -> u32 {
        self.place(client_to_server, queue) * Ring::bytes(self.log2_slots) as u32
    }

    pub fn buffers_offset(self, client_to_server: bool, queue: u16) -> u32 {
        let rings = 2 * u32::from(self.queues) * Ring::bytes(self.log2_slots) as u32;
        // Where a cache line begins.
        rings.next_multiple_of(64) + self.place(client_to_server, queue) * (self.buffer_bytes << self.log2_slots)
    }

    /// In u64, so that a configuration that is too large can be seen to be.
    pub fn region_bytes(self) -> u64 {
        let rings = 2 * u64::from(self.queues) * Ring::bytes(self.log2_slots) as u64;
        rings.next_multiple_of(64) + 2 * u64::from(self.queues) * (u64::from(self.buffer_bytes) << self.log2_slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(bytes: usize) -> Arc<Region> {
        Arc::new(Region::create(c"ring", bytes).unwrap())
    }

    fn bytes(region: &Region) -> &[u8] {
        // SAFETY: the whole mapping, which nothing else writes during these tests.
        unsafe { std::slice::from_raw_parts(region.at(0, region.bytes()).unwrap().as_ptr(), region.bytes()) }
    }

    #[test]
    fn fields_stand_at_the_offsets_of_the_specification() {
        let region = region(4096);
        let ring = Ring::new(&region, 0, 2).unwrap();
        ring.initialise();
        ring.set_wants_kick(false);
        ring.store(Index::Head, 0x0102);
        ring.store(Index::Tail, 0x0304);
        ring.set_descriptor(5, Descriptor { flags: NEXT, region: 2, length: 3, offset: 4 });
        assert_eq!(bytes(&region)[..8], [0x20, 0x1f, 0xe3, 0x03, 1, 0, 2, 1]);
        assert_eq!(bytes(&region)[64..66], [4, 3]);
        assert_eq!(bytes(&region)[144..160], [1, 0, 2, 0, 3, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(ring.descriptor(1), Descriptor { flags: NEXT, region: 2, length: 3, offset: 4 });
    }

    #[test]
    fn a_ring_must_lie_aligned_within_its_region() {
        let region = region(4096);
        assert!(Ring::new(&region, 4096 - 192, 2).is_ok());
        assert!(Ring::new(&region, 4096 - 184, 2).err().unwrap().contains("outside its region of 4096 bytes"));
        assert!(Ring::new(&region, u32::MAX - 7, 2).is_err());
        assert!(Ring::new(&region, 4, 2).err().unwrap().contains("multiple of 8"));
        assert!(Ring::new(&region, 0, 15).err().unwrap().contains("2^15"));
        assert!(Ring::new(&region, 0, 0).is_err());
        assert!(Ring::new(&region, 0, 255).is_err());
    }

    #[test]
    fn rings_and_buffers_of_the_layout_do_not_overlap() {
        for (log2_slots, queues) in [(1, 1), (10, 1), (1, 3), (4, 8)] {
            let layout = Layout { log2_slots, buffer_bytes: 2048, queues };
            let both = || [true, false].into_iter().flat_map(|way| (0..queues).map(move |queue| (way, queue)));
            let rings = both().map(|(way, queue)| (layout.ring_offset(way, queue), Ring::bytes(log2_slots) as u32));
            let buffers = both().map(|(way, queue)| (layout.buffers_offset(way, queue), 2048 << log2_slots));
            let mut end = 0;
            for (begin, bytes) in rings.chain(buffers) {
                assert!(begin >= end && begin < end + 64 && begin.is_multiple_of(8), "{begin} after {end}");
                end = begin + bytes;
            }
            assert_eq!(u64::from(end), layout.region_bytes());
        }
    }
}
