//! Rings and descriptors written by the fuzzer: whatever they say, frames come from inside the region, nothing is
//! written outside it, counters account for all that was taken, and our own indices move only forward.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use libvnf_native::packet::{Pool, PoolConfig};
use libvnf_native::port::memif::region::Region;
use libvnf_native::port::memif::ring::{Descriptor, Index, Layout, Ring};
use libvnf_native::port::memif::traffic::{Counters, Receiver, Sender};

const LAYOUT: Layout = Layout { log2_slots: 3, buffer_bytes: 256 };
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
    let pool = Pool::new(&PoolConfig { classes: vec![(MAX_FRAME, 16)] }).ok()?;
    let region = Arc::new(Region::create(c"fuzz", LAYOUT.region_bytes() as usize).ok()?);
    let ring = |client_to_server| Ring::new(&region, LAYOUT.ring_offset(client_to_server), LAYOUT.log2_slots).ok();
    let server = input.byte()? & 1 == 0;
    let regions = vec![region.clone(); 2];
    let (receives, sends) = (server, !server);
    let (mut receiver, mut sender) = if server {
        (Receiver::of_server(ring(receives)?, regions.clone(), MAX_FRAME), Sender::of_server(ring(sends)?, regions))
    } else {
        (
            Receiver::of_client(ring(receives)?, region.clone(), LAYOUT, MAX_FRAME),
            Sender::of_client(ring(sends)?, region.clone(), LAYOUT),
        )
    };
    let mut counters = Counters::default();
    let (mut taken_in_all, mut queued) = (0, 0);
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
                let mut frames = Vec::new();
                let max = usize::from(input.byte()?);
                let taken = receiver.receive(&pool, &mut frames, max, &mut counters).ok()?;
                assert!(frames.len() <= taken && taken <= max);
                assert!(frames.iter().all(|frame| !frame.is_empty() && frame.len() <= MAX_FRAME));
                taken_in_all += taken as u64;
            }
            6 => {
                let length = usize::from(input.u16()?) % MAX_FRAME + 1;
                let cut = usize::from(input.byte()?).min(length);
                let parts = [&frame[..cut], &frame[cut..length]];
                let outcome = sender.send(&parts, length).ok()?;
                queued += u64::from(outcome == libvnf_native::port::memif::traffic::Outcome::Queued);
                assert_eq!(sender.queued() + counters.tx_frames, queued);
            }
            _ => {
                sender.flush(&mut counters);
                receiver.arm();
                receiver.disarm();
            }
        }
    }
    let Counters { rx_frames, rx_bad_descriptor, rx_bad_chain, rx_too_long, rx_pool_dry, .. } = counters;
    assert_eq!(taken_in_all, rx_frames + rx_bad_descriptor + rx_bad_chain + rx_too_long + rx_pool_dry);
    Some(())
}
