//! A small world, so that chance finds what matters: few addresses, ports and tags, in matches and frames alike.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::flow::{Action, Encapsulate, Head, Limit, Match, Rewrite, Rule};
use crate::packet::ethernet::{self, Mac};
use crate::packet::{array, ipv4, ipv6, protocol};
use crate::port::lent::Lent;
use crate::stack::Cidr;

#[derive(Clone, Copy)]
struct Tuple {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ports: (u16, u16),
}

impl Tuple {
    fn reversed(self) -> Self {
        let ports = (self.ports.1, self.ports.0);
        Self { source: self.destination, destination: self.source, ports, ..self }
    }
}

/// Decisions, out of bytes.
pub struct Choices<'a> {
    data: &'a [u8],
    /// All matches are of one.
    pub has_one_shape: bool,
    /// Tunnels around the packet that is being made.
    tunnels: u8,
}

pub fn head(frame: &[u8]) -> Head {
    let mut head = Head::default();
    head.take(Lent::of(frame));
    head
}

impl<'a> Choices<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self { data, has_one_shape: false, tunnels: 0 }
    }

    pub fn is_over(&self) -> bool {
        self.data.is_empty()
    }

    /// 0 at the end of the bytes.
    pub fn below(&mut self, end: u8) -> u8 {
        let Some((&first, rest)) = self.data.split_first() else { return 0 };
        self.data = rest;
        first % end
    }

    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[usize::from(self.below(values.len() as u8))]
    }

    fn maybe<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.below(4) == 0).then(|| value(self))
    }

    /// Most packets are of a few flows, and many matches are for those.
    fn tuple(&mut self, is_v4: bool) -> Tuple {
        let choice = self.below(8);
        if choice < 2 {
            let (source, destination) = (self.address(is_v4), self.address(is_v4));
            return Tuple { source, destination, protocol: self.protocol(is_v4), ports: (self.port(), self.port()) };
        }
        let (one, other) = if is_v4 {
            (Ipv4Addr::new(10, 0, 0, 1).into(), Ipv4Addr::new(10, 0, 0, 2).into())
        } else {
            (Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 1).into(), Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 2).into())
        };
        let icmp = if is_v4 { protocol::ICMP } else { protocol::ICMPV6 };
        let protocol = [protocol::UDP, protocol::TCP, icmp][usize::from(choice % 3)];
        let ports = if protocol == icmp { (1, 0) } else { (1, 2) };
        let tuple = Tuple { source: one, destination: other, protocol, ports };
        if self.below(2) == 0 { tuple } else { tuple.reversed() }
    }

    fn mac(&mut self) -> Mac {
        [2, 0, 0, 0, 0, 1 + self.below(2)]
    }

    fn v4(&mut self) -> Ipv4Addr {
        self.of(&[[10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 1, 1], [10, 128, 0, 1]]).into()
    }

    fn v6(&mut self) -> Ipv6Addr {
        let [high, low] = self.of(&[[1, 1], [1, 2], [2, 1], [2, 2]]);
        Ipv6Addr::new(0xfd00, 0, 0, high, 0, 0, 0, low)
    }

    fn address(&mut self, is_v4: bool) -> IpAddr {
        if is_v4 { self.v4().into() } else { self.v6().into() }
    }

    fn port(&mut self) -> u16 {
        self.of(&[0, 1, 2, 2_152])
    }

    fn cidr(&mut self, is_v4: bool) -> Cidr {
        let prefixes: &[u8] = if is_v4 { &[0, 9, 24, 31, 32, 32] } else { &[0, 16, 64, 127, 128, 128] };
        Cidr { address: self.address(is_v4), prefix: self.of(prefixes) }
    }

    fn exact(&mut self, is_v4: bool) -> Match {
        let prefix = if is_v4 { 32 } else { 128 };
        let tuple = self.tuple(is_v4);
        Match {
            port: self.maybe(|choices| choices.below(2).into()),
            source: Some(Cidr { address: tuple.source, prefix }),
            destination: Some(Cidr { address: tuple.destination, prefix }),
            protocol: Some(tuple.protocol),
            source_port: Some(tuple.ports.0),
            destination_port: Some(tuple.ports.1),
            priority: self.of(&[0, 0, 0, 1]),
            ..Match::default()
        }
    }

    pub fn flow(&mut self) -> Match {
        if self.has_one_shape {
            return Match { port: None, ..self.exact(true) };
        }
        let is_v4 = self.below(3) != 0;
        if self.below(2) == 0 {
            return self.exact(is_v4);
        }
        Match {
            port: self.maybe(|choices| choices.below(2).into()),
            source_mac: self.maybe(Self::mac),
            destination_mac: self.maybe(Self::mac),
            vlan: self.maybe(Self::vlan),
            ethertype: self.maybe(|choices| choices.of(&[ethernet::IPV4, ethernet::IPV6, ethernet::ARP])),
            source: self.maybe(|choices| choices.cidr(is_v4)),
            destination: self.maybe(|choices| choices.cidr(is_v4)),
            protocol: self.maybe(|choices| choices.protocol(is_v4)),
            source_port: self.maybe(Self::port),
            destination_port: self.maybe(Self::port),
            teid: self.maybe(|choices| choices.below(3).into()),
            priority: self.of(&[-1, 0, 0, 0, 1, 2]),
        }
    }

    fn vlan(&mut self) -> u16 {
        self.of(&[0, 5, 7])
    }

    fn protocol(&mut self, is_v4: bool) -> u8 {
        let icmp = if is_v4 { protocol::ICMP } else { protocol::ICMPV6 };
        self.of(&[protocol::TCP, protocol::UDP, icmp, 47])
    }

    pub fn rule(&mut self) -> Rule {
        let is_v4 = self.below(3) != 0;
        let mut actions = if self.below(3) == 0 { vec![Action::Count] } else { Vec::new() };
        if self.below(4) == 0 {
            // Whole bytes a millisecond, so that nothing is rounded.
            let limit = Limit { bits_per_s: 8_000.0 * f64::from(1 + self.below(4)), burst_bytes: 300.0 };
            actions.push(Action::Limit(limit));
        }
        let last = self.of(&[
            Action::Drop,
            Action::Forward(1),
            Action::Route(1),
            Action::Reply,
            Action::Accept,
            Action::ToPython,
            // Nothing: then it is the list that has no end.
            Action::Count,
        ]);
        if last.is_last() {
            let first = usize::from(actions.first() == Some(&Action::Count)) as u8;
            for _ in 0..self.below(3) {
                let action = match self.below(6) {
                    0 => Action::Decapsulate,
                    1 => Action::Encapsulate(self.tunnel(is_v4)),
                    _ => Action::Rewrite(self.rewrite(is_v4)),
                };
                let at = first + self.below(actions.len() as u8 - first + 1);
                actions.insert(usize::from(at), action);
            }
            actions.push(last);
        }
        let timeout = |choices: &mut Self| Duration::from_millis(choices.of(&[1, 20, 63, 64, 65, 200, 5_000, 300_000]));
        Rule { actions, idle: self.maybe(timeout), hard: self.maybe(timeout) }
    }

    fn tunnel(&mut self, is_v4: bool) -> Encapsulate {
        let (source, destination) = (self.address(is_v4), self.address(is_v4));
        Encapsulate { teid: self.below(3).into(), source, destination, source_port: 2_152 }
    }

    fn rewrite(&mut self, is_v4: bool) -> Rewrite {
        Rewrite {
            source_mac: self.maybe(Self::mac),
            destination_mac: self.maybe(Self::mac),
            vlan: self.maybe(Self::vlan),
            source: self.maybe(|choices| choices.address(is_v4)),
            destination: self.maybe(|choices| choices.address(is_v4)),
            source_port: self.maybe(Self::port),
            destination_port: self.maybe(Self::port),
            ttl: self.maybe(|choices| choices.below(3)),
            dscp: self.maybe(|choices| choices.below(64)),
        }
    }

    pub fn frame(&mut self) -> Vec<u8> {
        let is_v4 = self.below(3) != 0;
        let mut frame = [self.mac(), self.mac()].concat();
        for _ in 0..self.of(&[0, 0, 0, 0, 1, 1, 2, 3]) {
            frame.extend([0x81, 0]);
            frame.extend(self.vlan().to_be_bytes());
        }
        let ethertype = match self.below(16) {
            0 => ethernet::ARP,
            _ if is_v4 => ethernet::IPV4,
            _ => ethernet::IPV6,
        };
        frame.extend(ethertype.to_be_bytes());
        let is_error = self.below(4) == 0;
        frame.extend(self.packet(is_v4, is_error));
        match self.below(16) {
            0 => frame.truncate(usize::from(self.below(120))),
            1 => {
                let at = usize::from(self.below(120)) % frame.len();
                frame[at] ^= 1 << self.below(8);
            }
            2 => frame.resize(frame.len() + 200, 0),
            _ => {}
        }
        frame
    }

    fn packet(&mut self, is_v4: bool, is_error: bool) -> Vec<u8> {
        let tuple = self.tuple(is_v4);
        let protocol = match (is_error, is_v4) {
            (true, true) => protocol::ICMP,
            (true, false) => protocol::ICMPV6,
            _ => tuple.protocol,
        };
        let segment = if is_error { self.error(is_v4) } else { self.segment(&tuple) };
        // Most errors are told to whom the packet is from.
        let destination = match (is_error && self.below(4) != 0, is_v4) {
            (false, _) => tuple.destination,
            (true, true) => array::<4>(&segment, 8 + 12).into(),
            (true, false) => array::<16>(&segment, 8 + 8).into(),
        };
        let mut packet = match (tuple.source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                ipv4::emit(source, destination, protocol, segment.len(), ipv4::Fragment::WHOLE).to_vec()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                ipv6::emit(source, destination, protocol, segment.len(), 64).to_vec()
            }
            _ => unreachable!("one family"),
        };
        if is_v4 && self.below(16) == 0 {
            packet[6..8].copy_from_slice(&self.of(&[0x2000_u16, 0x2001, 0x0001]).to_be_bytes());
        }
        packet.extend(segment);
        packet
    }

    fn segment(&mut self, tuple: &Tuple) -> Vec<u8> {
        let mut segment = vec![0; 20];
        let (source, destination) = tuple.ports;
        match tuple.protocol {
            protocol::ICMP | protocol::ICMPV6 => {
                // Asking, answering, and neither.
                let types = if tuple.source.is_ipv4() { [8, 0, 9] } else { [128, 129, 135] };
                let number = if self.below(8) == 0 { 2 } else { usize::from(destination != 0) };
                segment[0] = types[number];
                segment[4..6].copy_from_slice(&(source | destination).to_be_bytes());
            }
            protocol => {
                segment[..2].copy_from_slice(&source.to_be_bytes());
                segment[2..4].copy_from_slice(&destination.to_be_bytes());
                segment[12] = 0x50;
                if protocol == protocol::UDP && self.tunnels < 3 && self.below(4) == 0 {
                    self.tunnel_packet(&mut segment);
                }
            }
        }
        segment
    }

    /// Makes a G-PDU of a datagram.
    fn tunnel_packet(&mut self, segment: &mut Vec<u8>) {
        segment[2..4].copy_from_slice(&2_152_u16.to_be_bytes());
        segment[8..10].copy_from_slice(&[0x30, 0xff]);
        self.tunnels += 1;
        let inner = if self.below(4) == 0 { Vec::new() } else { self.packet(true, false) };
        self.tunnels -= 1;
        segment[10..12].copy_from_slice(&(inner.len() as u16).to_be_bytes());
        segment[12..16].copy_from_slice(&u32::from(self.below(3)).to_be_bytes());
        segment.truncate(16);
        segment.extend(inner);
        let len = segment.len() as u16;
        segment[4..6].copy_from_slice(&len.to_be_bytes());
    }

    /// An ICMP error and what it quotes.
    fn error(&mut self, is_v4: bool) -> Vec<u8> {
        let mut error = vec![0; 8];
        error[0] = if is_v4 { self.of(&[3, 11, 12, 5]) } else { self.of(&[1, 2, 3, 4]) };
        error.extend(self.packet(is_v4, false));
        error
    }
}
