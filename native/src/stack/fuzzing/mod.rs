//! What a fuzzer feeds a host with. Each entry takes any bytes, must not panic, and proves that every buffer went back to
//! the pool; the fuzz targets of `native/fuzz` and a test call them.

mod tcp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::Input;
use super::bench::{Bench, mac, station};
use crate::packet::checksum::Sum;
use crate::packet::ethernet::{self, Mac};
use crate::packet::{icmp, ipv4, ipv6, protocol};

pub use tcp::{tcp_segment, tcp_talk};

const US: Mac = mac(2);
const PEER: Mac = mac(1);
const OWN_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const PEER_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
const OWN_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
const PEER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7);

/// A host with a listener and a flow of each kind, and a pool too small to be comfortable.
struct Stage(Bench);

impl Stage {
    fn new() -> Self {
        let mut bench = Bench::of(station(2), vec![(2_048, 8), (65_536, 16)]);
        bench.port.keeps = false;
        let Bench { host, port, now, .. } = &mut bench;
        host.listen(None, 5000, 1).expect("the first listener");
        for (own, peer) in [(IpAddr::from(OWN_V4), IpAddr::from(PEER_V4)), (OWN_V6.into(), PEER_V6.into())] {
            let peer = SocketAddr::new(peer, 9);
            host.adopt(SocketAddr::new(own, 4000), peer, PEER, 2).expect("a new 5-tuple");
            let client = host.open(peer, 3).expect("a free port");
            host.send(client, b"waits for its neighbour", *now, port);
        }
        Self(bench)
    }

    fn receive(&mut self, frame: &[u8]) {
        let Some(mut slot) = self.0.pool.take(frame.len()) else { return };
        slot.copy_from_slice(frame);
        let Bench { host, port, pool, now } = &mut self.0;
        match host.receive(slot, *now, pool, port) {
            Input::Consumed | Input::Unreachable { .. } => {}
            Input::Datagram(datagram) => {
                assert!(datagram.payload.len() <= usize::from(u16::MAX));
                let adopted = host.adopt(datagram.destination, datagram.source, datagram.source_mac, 4);
                if let Ok(flow) = adopted {
                    host.send(flow, &datagram.payload, *now, port);
                    host.close(flow);
                }
            }
        }
    }

    fn pass(&mut self, seconds: u8) {
        self.0.pass(Duration::from_secs(seconds.into()));
    }

    /// Everything under way expires, and every buffer is free again. No frame was longer than the link allows.
    fn end(mut self) {
        self.pass(31);
        assert!(self.0.has_all_buffers(), "a buffer was kept");
        assert!(self.0.port.longest <= ethernet::HEADER + 1_500, "a frame of {} bytes", self.0.port.longest);
    }
}

/// Frames, each behind two bytes: how to mend it, so that it gets past the first checks, and its length.
pub fn headers(mut data: &[u8]) {
    let mut stage = Stage::new();
    while let [how, len, rest @ ..] = data {
        let (frame, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        let mut frame = frame.to_vec();
        mend(&mut frame, *how);
        stage.receive(&frame);
        stage.pass(how >> 6);
        data = rest;
    }
    stage.end();
}

/// Bit 0: to us, from the peer. Bit 1: the IP header's version, length and checksum. Bit 2: the addresses. Bit 3: ICMP's
/// checksum. Bits 4 and 5: the Ethernet type. Bits 6 and 7: seconds that pass afterwards.
fn mend(frame: &mut [u8], how: u8) {
    if how & 1 != 0 && frame.len() >= 12 {
        frame[..6].copy_from_slice(&US);
        frame[6..12].copy_from_slice(&PEER);
    }
    let Some((ethernet, packet)) = frame.split_at_mut_checked(ethernet::HEADER) else { return };
    let ethertype = match how >> 4 & 3 {
        0 => u16::from_be_bytes([ethernet[12], ethernet[13]]),
        1 => ethernet::IPV4,
        2 => ethernet::IPV6,
        _ => ethernet::ARP,
    };
    ethernet[12..].copy_from_slice(&ethertype.to_be_bytes());
    let is_v4 = ethertype == ethernet::IPV4;
    if !is_v4 && ethertype != ethernet::IPV6 {
        return;
    }
    let least = if is_v4 { ipv4::HEADER } else { ipv6::HEADER };
    if packet.len() < least {
        return;
    }
    if how & 4 != 0 {
        if is_v4 {
            packet[12..16].copy_from_slice(&PEER_V4.octets());
            packet[16..20].copy_from_slice(&OWN_V4.octets());
        } else {
            packet[8..24].copy_from_slice(&PEER_V6.octets());
            packet[24..40].copy_from_slice(&OWN_V6.octets());
        }
    }
    if how & 2 != 0 {
        let len = packet.len() as u16;
        if is_v4 {
            packet[0] = 0x40 | packet[0] & 15;
            packet[2..4].copy_from_slice(&len.to_be_bytes());
        } else {
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&(len - ipv6::HEADER as u16).to_be_bytes());
        }
    }
    let header_len = if is_v4 { usize::from(packet[0] & 15) * 4 } else { ipv6::HEADER };
    if how & 2 != 0 && is_v4 && header_len >= ipv4::HEADER && header_len <= packet.len() {
        packet[10..12].fill(0);
        let checksum = Sum::ZERO.bytes(&packet[..header_len]).finish();
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    if how & 8 != 0
        && let Some(message) = packet.get_mut(header_len..)
        && message.len() >= icmp::HEADER
    {
        let pseudo = if is_v4 {
            Sum::ZERO
        } else {
            crate::packet::checksum::pseudo_v6(PEER_V6, OWN_V6, protocol::ICMPV6).word(message.len() as u16)
        };
        message[2..4].fill(0);
        let checksum = pseudo.bytes(message).finish();
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Fragments, each of four bytes: family, identification and "more"; offset in units of 8; length; and what they are
/// filled with.
pub fn fragments(data: &[u8]) {
    let mut stage = Stage::new();
    let (chunks, _) = data.as_chunks::<4>();
    for &[flags, offset, len, fill] in chunks {
        let (is_v4, more, identification) = (flags & 1 != 0, flags & 2 != 0, u32::from(flags >> 2 & 7));
        // Far ones too, where the longest datagram ends.
        let offset = if offset < 0xf0 { usize::from(offset) * 8 } else { (0x1f00 + usize::from(offset)) * 8 };
        let payload = vec![fill; usize::from(len) * if flags & 0x80 != 0 { 5 } else { 1 }];
        let next = if flags & 0x40 != 0 { protocol::UDP } else { fill };
        let frame = if is_v4 {
            let place = ipv4::Fragment { identification: identification as u16, offset, more, dont_fragment: false };
            let ip = ipv4::emit(PEER_V4, OWN_V4, next, payload.len(), place);
            [&ethernet::emit(US, PEER, ethernet::IPV4)[..], &ip, &payload].concat()
        } else {
            let len = ipv6::FRAGMENT_HEADER + payload.len();
            let ip = ipv6::emit(PEER_V6, OWN_V6, ipv6::FRAGMENT, len, ipv6::HOP_LIMIT);
            let fragment = ipv6::emit_fragment(next, offset, more, identification);
            [&ethernet::emit(US, PEER, ethernet::IPV6)[..], &ip, &fragment, &payload].concat()
        };
        stage.receive(&frame);
        stage.pass(u8::from(flags == 0xff));
    }
    stage.end();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_once_upset_tcp_does_so_no_more() {
        tcp_talk(include_bytes!("../../../fuzz/seeds/tcp_talk/endless"));
    }

    #[test]
    fn any_bytes_are_survived() {
        let mut state = 0x0123_4567_89ab_cdefu64;
        for round in 0..3_000 {
            let bytes: Vec<u8> = (0..round % 700)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    (state >> 24) as u8
                })
                .collect();
            headers(&bytes);
            fragments(&bytes);
            if round % 16 == 0 {
                tcp_segment(&bytes);
                tcp_talk(&bytes);
            }
        }
    }
}
