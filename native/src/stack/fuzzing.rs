//! What a fuzzer feeds a host with. Each entry takes any bytes, must not panic, and proves that every buffer went back to
//! the pool; the fuzz targets of `native/fuzz` and a test call them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use super::{Cidr, Host, HostConfig, Input};
use crate::packet::checksum::Sum;
use crate::packet::ethernet::{self, Mac};
use crate::packet::{Pool, PoolConfig, Slot, icmp, ipv4, ipv6, protocol};
use crate::port::{Link, Port, Sent};

const US: Mac = [2, 0, 0, 0, 0, 2];
const PEER: Mac = [2, 0, 0, 0, 0, 1];
const OWN_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const PEER_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
const OWN_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
const PEER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7);

/// Takes frames within the MTU and forgets them.
struct Sink;

impl Port for Sink {
    fn link(&self) -> Link {
        Link::Up
    }

    fn generation(&self) -> u64 {
        1
    }

    fn wake_fd(&self) -> RawFd {
        -1
    }

    fn service(&mut self, _: Instant) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn receive(&mut self, _: &Pool, _: &mut Vec<Slot>, _: usize) -> usize {
        0
    }

    fn send(&mut self, parts: &[&[u8]]) -> Sent {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        assert!(len <= ethernet::HEADER + 1_500, "a frame of {len} bytes");
        Sent::Queued
    }

    fn flush(&mut self) {}

    fn arm(&mut self) -> bool {
        true
    }

    fn disarm(&mut self) {}

    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// A host with a listener and a flow of each kind, and a pool too small to be comfortable.
struct Stage {
    host: Host,
    pool: Pool,
    now: Instant,
}

impl Stage {
    fn new() -> Self {
        let mut host = Host::new(HostConfig {
            mac: US,
            addresses: vec![Cidr { address: OWN_V4.into(), prefix: 24 }, Cidr { address: OWN_V6.into(), prefix: 64 }],
            virtual_addresses: vec![Ipv4Addr::new(10, 0, 0, 100).into()],
            gateways: vec![Ipv4Addr::new(10, 0, 0, 1).into()],
            mtu: 1_500,
            tcp: Default::default(),
        });
        let now = Instant::now();
        host.listen(None, 5000, 1).expect("the first listener");
        for (own, peer) in [(IpAddr::from(OWN_V4), IpAddr::from(PEER_V4)), (OWN_V6.into(), PEER_V6.into())] {
            let peer = SocketAddr::new(peer, 9);
            host.adopt(SocketAddr::new(own, 4000), peer, PEER, 2).expect("a new 5-tuple");
            let client = host.open(peer, 3).expect("a free port");
            host.send(client, b"waits for its neighbour", now, &mut Sink);
        }
        let pool = Pool::new(&PoolConfig { classes: vec![(2_048, 8), (65_536, 16)] }).expect("two megabytes");
        Self { host, pool, now }
    }

    fn receive(&mut self, frame: &[u8]) {
        let Some(mut slot) = self.pool.take(frame.len()) else { return };
        slot.copy_from_slice(frame);
        match self.host.receive(slot, self.now, &self.pool, &mut Sink) {
            Input::Consumed | Input::Unreachable { .. } => {}
            Input::Datagram(datagram) => {
                assert!(datagram.payload.len() <= usize::from(u16::MAX));
                let adopted = self.host.adopt(datagram.destination, datagram.source, datagram.source_mac, 4);
                if let Ok(flow) = adopted {
                    self.host.send(flow, &datagram.payload, self.now, &mut Sink);
                    self.host.close(flow);
                }
            }
        }
    }

    fn pass(&mut self, seconds: u8) {
        self.now += Duration::from_secs(seconds.into());
        self.host.on_timer(self.now, &mut Sink, &mut Vec::new());
    }

    /// Everything under way expires, and every buffer is free again.
    fn end(mut self) {
        self.pass(31);
        assert!(self.pool.statistics().iter().all(|class| class.free == class.slots), "a buffer was kept");
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
        }
    }
}
