//! The other side of the wire: what a host under test is given and has sent, frames made by hand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::packet::arp::{self, Operation};
use crate::packet::checksum::{Sum, pseudo_v4, pseudo_v6};
use crate::packet::ethernet::{self, Mac};
use crate::packet::{icmp, ipv4, ipv6, ndp, protocol, udp};
pub use crate::stack::bench::Bench;
use crate::stack::bench::{mac, station};
use crate::stack::{Datagram, HostConfig, Input};

pub const US: Mac = mac(2);
pub const PEER: Mac = mac(1);
pub const OTHER: Mac = mac(9);

pub fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

pub fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

pub fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

impl Bench {
    /// Station 2 of the link.
    pub(crate) fn new() -> Self {
        Self::with_mtu(1_500)
    }

    pub fn with_mtu(mtu: usize) -> Self {
        Self::of(HostConfig { mtu, ..station(2) }, vec![(2_048, 256), (65_536, 80)])
    }

    pub fn datagram(&mut self, frame: &[u8]) -> Datagram {
        match self.receive(frame) {
            Input::Datagram(datagram) => datagram,
            other => panic!("no datagram but {other:?}; counters {:?}", self.counted()),
        }
    }

    pub fn consume(&mut self, frame: &[u8]) {
        let input = self.receive(frame);
        assert!(matches!(input, Input::Consumed), "{input:?}");
    }

    /// `frame` is consumed, and all it leaves behind is this count.
    pub fn drops(&mut self, what: &str, frame: &[u8], counter: &str) {
        let before = self.counter(counter);
        let sent = self.port.sent.len();
        let input = self.receive(frame);
        assert!(matches!(input, Input::Consumed), "{what}: {input:?}");
        assert_eq!(self.counter(counter), before + 1, "{what}: {counter} in {:?}", self.counted());
        assert_eq!(self.port.sent.len(), sent, "{what}: answered");
    }

    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.host.counters();
        counters.iter().find(|counter| counter.0 == name).unwrap_or_else(|| panic!("no counter {name}")).1
    }

    pub fn counted(&self) -> Vec<(&'static str, u64)> {
        self.host.counters().into_iter().filter(|counter| counter.1 != 0).collect()
    }

    /// The frames sent since the last look.
    pub fn sent(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.port.sent)
    }

    pub fn sent_one(&mut self) -> Vec<u8> {
        let mut sent = self.sent();
        assert_eq!(sent.len(), 1, "{:?}", self.counted());
        sent.remove(0)
    }
}

pub fn arp_frame(to: Mac, operation: Operation, sender_mac: Mac, sender: &str, target: &str) -> Vec<u8> {
    let message = arp::Message { operation, sender_mac, sender: v4(sender), target_mac: [0; 6], target: v4(target) };
    // Padded to Ethernet's least, as on a real wire.
    [&ethernet::emit(to, sender_mac, ethernet::ARP)[..], &message.emit(), &[0; 18]].concat()
}

pub fn arp_of(frame: &[u8]) -> arp::Message {
    let ethernet = ethernet::Frame::new_checked(frame).unwrap();
    assert_eq!(ethernet.ethertype(), ethernet::ARP);
    arp::Message::parse(ethernet.payload()).unwrap()
}

/// An IP packet from `PEER` to `US`.
pub fn ip_frame(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let ip = ipv4::emit(source, destination, protocol, payload.len(), ipv4::Fragment::WHOLE);
            [&ethernet::emit(US, PEER, ethernet::IPV4)[..], &ip, payload].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let ip = ipv6::emit(source, destination, protocol, payload.len(), 64);
            [&ethernet::emit(US, PEER, ethernet::IPV6)[..], &ip, payload].concat()
        }
        _ => panic!("two families"),
    }
}

pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8) -> Sum {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => pseudo_v4(source, destination, protocol),
        (IpAddr::V6(source), IpAddr::V6(destination)) => pseudo_v6(source, destination, protocol),
        _ => panic!("two families"),
    }
}

/// A UDP datagram without what is below it.
pub fn udp_bytes(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let pseudo = pseudo(source.ip(), destination.ip(), protocol::UDP);
    [&udp::emit(source.port(), destination.port(), pseudo, payload)[..], payload].concat()
}

pub fn udp_frame(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let (source, destination) = (address(source), address(destination));
    let bytes = udp_bytes(source, destination, payload);
    ip_frame(source.ip(), destination.ip(), protocol::UDP, &bytes)
}

/// What a frame of the host carries: its checksums are proved on the way.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub to: Mac,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub payload: Vec<u8>,
}

pub fn udp_of(frame: &[u8]) -> Seen {
    let ethernet = ethernet::Frame::new_checked(frame).unwrap();
    assert_eq!(ethernet.source(), US);
    let (source, destination, bytes) = ip_of(frame);
    let pseudo = pseudo(source, destination, protocol::UDP);
    let datagram = udp::Datagram::new_checked(&bytes, pseudo, false).unwrap();
    Seen {
        to: ethernet.destination(),
        source: SocketAddr::new(source, datagram.source_port()),
        destination: SocketAddr::new(destination, datagram.destination_port()),
        payload: datagram.payload().to_vec(),
    }
}

/// Addresses and payload of a whole IP packet.
pub fn ip_of(frame: &[u8]) -> (IpAddr, IpAddr, Vec<u8>) {
    let ethernet = ethernet::Frame::new_checked(frame).unwrap();
    match ethernet.ethertype() {
        ethernet::IPV4 => {
            let packet = ipv4::Packet::new_checked(ethernet.payload()).unwrap();
            (packet.source().into(), packet.destination().into(), packet.payload().to_vec())
        }
        ethernet::IPV6 => {
            let packet = ipv6::Packet::new_checked(ethernet.payload()).unwrap();
            (packet.source().into(), packet.destination().into(), packet.bytes()[ipv6::HEADER..].to_vec())
        }
        other => panic!("ethertype {other:#x}"),
    }
}

pub fn icmp_frame(source: &str, destination: &str, kind: u8, code: u8, rest: [u8; 4], body: &[u8]) -> Vec<u8> {
    let (source, destination): (IpAddr, IpAddr) = (source.parse().unwrap(), destination.parse().unwrap());
    let (protocol, pseudo) = icmp_protocol(source, destination);
    let bytes = [&icmp::emit(kind, code, rest, pseudo, body)[..], body].concat();
    ip_frame(source, destination, protocol, &bytes)
}

fn icmp_protocol(source: IpAddr, destination: IpAddr) -> (u8, Sum) {
    if source.is_ipv4() {
        (protocol::ICMP, Sum::ZERO)
    } else {
        (protocol::ICMPV6, pseudo(source, destination, protocol::ICMPV6))
    }
}

/// Type, code, rest and body of an ICMP message, its checksum proved.
pub fn icmp_of(frame: &[u8]) -> (u8, u8, [u8; 4], Vec<u8>) {
    let (source, destination, bytes) = ip_of(frame);
    let message = icmp::Message::new_checked(&bytes, icmp_protocol(source, destination).1).unwrap();
    (message.kind(), message.code(), message.rest(), message.body().to_vec())
}

/// A neighbour solicitation or advertisement as `PEER` sends it.
pub fn ndp_frame(kind: u8, flags: u8, source: &str, destination: &str, body: &[u8]) -> Vec<u8> {
    let mut frame = icmp_frame(source, destination, kind, 0, [flags, 0, 0, 0], body);
    frame[14 + 7] = ndp::HOP_LIMIT;
    if v6(destination).is_multicast() {
        frame[..6].copy_from_slice(&ethernet::multicast(v6(destination)));
    }
    frame
}

/// Writes the IPv4 header checksum of a frame that was altered.
pub fn mend_ipv4(frame: &mut [u8]) {
    let header = 14..14 + usize::from(frame[14] & 15) * 4;
    frame[24..26].fill(0);
    let checksum = Sum::ZERO.bytes(&frame[header]).finish();
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
}

pub fn random(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 16) as usize
}
