//! Rings and descriptors written by the fuzzer: whatever they say, frames come from inside the region, nothing is
//! written outside it, counters account for all that was shown, and our own indices move only forward.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use libvnf_native::port::lent::{BURST, Lent};
use libvnf_native::port::memif::receiver::Receiver;
use libvnf_native::port::memif::region::Region;
use libvnf_native::port::memif::ring::{Descriptor, Index, Layout, Ring};
use libvnf_native::port::memif::sender::{Outcome, Sender};
use libvnf_native::port::memif::traffic::{Buffers, Counters};

const LAYOUT: Layout = Layout { log2_slots: 3, buffer_bytes: 256, queues: 1 };
const MAX_FRAME: usize = 1000;

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes([self.byte()?, self.byte()?]))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from(self.u16()?) | u32::from(self.u16()?) << 16)
    }
}

fuzz_target!(|bytes: &[u8]| {
    let _ = play(&mut Input(bytes));
});

fn play(input: &mut Input<'_>) -> Option<()> {
    let region = Arc::new(Region::create(c"fuzz", LAYOUT.region_bytes() as usize).ok()?);
    let ring = |client_to_server| Ring::new(&region, LAYOUT.ring_offset(client_to_server, 0), LAYOUT.log2_slots).ok();
    let server = input.byte()? & 1 == 0;
    let regions: Arc<[_]> = vec![region.clone(); 2].into();
    let (receives, sends) = (server, !server);
    let (mut receiver, mut sender) = if server {
        (Receiver::of_server(ring(receives)?, regions.clone(), MAX_FRAME), Sender::of_server(ring(sends)?, regions))
    } else {
        (
            Receiver::of_client(ring(receives)?, Buffers::own(&region, LAYOUT, receives, 0), MAX_FRAME),
            Sender::of_client(ring(sends)?, Buffers::own(&region, LAYOUT, sends, 0)),
        )
    };
    let mut counters = Counters::default();
    let (mut shown, mut queued) = (0, 0);
    let frame = [0x5a; MAX_FRAME];
    while let Some(verb) = input.byte() {
        let hostile = ring(verb & 0x80 != 0)?;
        match verb & 7 {
            0 => hostile.store(Index::Head, input.u16()?),
            1 => hostile.store(Index::Tail, input.u16()?),
            // Near truths reach further than noise.
            2 => {
                let index = if verb & 0x40 != 0 { Index::Head } else { Index::Tail };
                hostile.store(index, hostile.load(index).wrapping_add(u16::from(input.byte()? & 15)));
            }
            3 => {
                let (index, flags, region) = (input.u16()?, input.u16()?, input.u16()?);
                let (length, offset) = (input.u32()?, input.u32()?);
                hostile.set_descriptor(index, Descriptor { flags, region, length, offset });
            }
            4 => {
                let (index, word) = (u16::from(input.byte()?), input.u16()?);
                let (flags, region, length) = (word & 1, word >> 1 & 1, u32::from(word >> 4));
                hostile.set_descriptor(index, Descriptor { flags, region, length, offset: u32::from(word) });
            }
            5 => {
                let max = usize::from(input.byte()?);
                receiver.refresh(max).ok()?;
                let burst = receiver.lend(max, &mut counters);
                assert!(burst.len() <= max.min(BURST));
                let mut copy = [0; MAX_FRAME];
                for lent in burst.iter() {
                    assert!(!lent.is_empty());
                    lent.copy_to(0, &mut copy[..lent.len()]);
                }
                shown += burst.len() as u64;
                receiver.give_back();
            }
            6 => {
                let length = usize::from(input.u16()?) % MAX_FRAME + 1;
                let cut = usize::from(input.byte()?).min(length);
                let parts = [&frame[..cut], &frame[cut..length]].map(Lent::of);
                let outcome = sender.send(&parts, length).ok()?;
                queued += u64::from(outcome == Outcome::Queued);
                assert_eq!(sender.queued() + counters.tx_frames, queued);
            }
            _ => {
                sender.flush(&mut counters);
                receiver.arm();
                receiver.disarm();
            }
        }
    }
    assert_eq!(shown, counters.rx_frames);
    Some(())
}
