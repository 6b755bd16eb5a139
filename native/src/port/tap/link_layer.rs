//! The Ethernet that a TUN interface does not have: one link with two stations, the host behind the port and, for every
//! other address, the kernel. Pure.

use std::net::Ipv6Addr;

use crate::packet::arp::{self, Operation};
use crate::packet::checksum::pseudo_v6;
use crate::packet::ethernet::{self, Frame, Mac};
use crate::packet::icmp::{self, v6};
use crate::packet::ipv6::{self, Upper};
use crate::packet::{ndp, protocol};

/// What becomes of a frame that the host sends.
#[derive(Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// An IP packet, behind the Ethernet header.
    Packet,
    /// The host is told this, as if by the kernel.
    Answer(Vec<u8>),
    /// An announcement: nobody has to hear it.
    Nothing,
    /// Neither IP nor address resolution.
    Foreign,
}

/// The station that the kernel is taken for.
pub fn far(near: Mac) -> Mac {
    let [rest @ .., last] = near;
    let [a, b, c, d, e] = rest;
    [a, b, c, d, e, last ^ 1]
}

/// The Ethernet header of a packet from the kernel; none where it is no IP packet.
pub fn incoming(first_byte: u8, near: Mac) -> Option<[u8; ethernet::HEADER]> {
    let ethertype = match first_byte >> 4 {
        4 => ethernet::IPV4,
        6 => ethernet::IPV6,
        _ => return None,
    };
    Some(ethernet::emit(near, far(near), ethertype))
}

pub fn outgoing(frame: &[u8], near: Mac) -> Outgoing {
    let Ok(ethernet) = Frame::new_checked(frame) else { return Outgoing::Foreign };
    match ethernet.ethertype() {
        ethernet::IPV4 => Outgoing::Packet,
        ethernet::IPV6 => neighbour_discovery(ethernet.payload(), near).unwrap_or(Outgoing::Packet),
        ethernet::ARP => resolution(ethernet.payload(), near),
        _ => Outgoing::Foreign,
    }
}

/// RFC 826: the answer to a request. A probe or an announcement of the host's own address has none.
fn resolution(bytes: &[u8], near: Mac) -> Outgoing {
    let Ok(asked) = arp::Message::parse(bytes) else { return Outgoing::Foreign };
    let is_own = asked.sender.is_unspecified() || asked.sender == asked.target;
    if asked.operation == Operation::Reply || is_own {
        return Outgoing::Nothing;
    }
    let answer = arp::Message {
        operation: Operation::Reply,
        sender_mac: far(near),
        sender: asked.target,
        target_mac: asked.sender_mac,
        target: asked.sender,
    };
    let to = asked.sender_mac;
    Outgoing::Answer([&ethernet::emit(to, far(near), ethernet::ARP)[..], &answer.emit()].concat())
}

/// RFC 4861 §7.2.4: the advertisement that a solicitation asks for. None: the packet is neither of the two.
fn neighbour_discovery(bytes: &[u8], near: Mac) -> Option<Outgoing> {
    let packet = ipv6::Packet::new_checked(bytes).ok()?;
    let Ok(Upper::Transport { protocol: protocol::ICMPV6, at, .. }) = packet.upper() else { return None };
    let [kind, _, _, _, _, _, _, _, body @ ..] = packet.bytes().get(at..)? else { return None };
    match *kind {
        v6::NEIGHBOUR_ADVERTISEMENT => return Some(Outgoing::Nothing),
        v6::NEIGHBOUR_SOLICITATION => {}
        _ => return None,
    }
    let Ok(asked) = ndp::Body::parse(body, ndp::SOURCE_LINK_ADDRESS) else { return Some(Outgoing::Foreign) };
    let to = packet.source();
    // Duplicate address detection: nobody else has it.
    if to.is_unspecified() || to == asked.target {
        return Some(Outgoing::Nothing);
    }
    Some(Outgoing::Answer(advertisement(asked.target, to, asked.link_address.unwrap_or(near), far(near))))
}

fn advertisement(target: Ipv6Addr, to: Ipv6Addr, to_mac: Mac, mac: Mac) -> Vec<u8> {
    let body = ndp::emit(target, ndp::TARGET_LINK_ADDRESS, mac);
    let pseudo = pseudo_v6(target, to, protocol::ICMPV6);
    let head = icmp::emit(v6::NEIGHBOUR_ADVERTISEMENT, 0, [ndp::SOLICITED | ndp::OVERRIDE, 0, 0, 0], pseudo, &body);
    let ip = ipv6::emit(target, to, protocol::ICMPV6, head.len() + body.len(), ndp::HOP_LIMIT);
    [&ethernet::emit(to_mac, mac, ethernet::IPV6)[..], &ip, &head, &body].concat()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const NEAR: Mac = [2, 0, 0, 0, 0, 2];
    const FAR: Mac = [2, 0, 0, 0, 0, 3];

    fn request(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let message = arp::Message {
            operation: Operation::Request,
            sender_mac: NEAR,
            sender: Ipv4Addr::from(sender),
            target_mac: [0; 6],
            target: Ipv4Addr::from(target),
        };
        [&ethernet::emit(ethernet::BROADCAST, NEAR, ethernet::ARP)[..], &message.emit()].concat()
    }

    fn solicitation(source: &str, target: &str) -> Vec<u8> {
        let (source, target): (Ipv6Addr, Ipv6Addr) = (source.parse().unwrap(), target.parse().unwrap());
        let to = ndp::solicited_node(target);
        let body = ndp::emit(target, ndp::SOURCE_LINK_ADDRESS, NEAR);
        let head = icmp::emit(v6::NEIGHBOUR_SOLICITATION, 0, [0; 4], pseudo_v6(source, to, protocol::ICMPV6), &body);
        let ip = ipv6::emit(source, to, protocol::ICMPV6, head.len() + body.len(), ndp::HOP_LIMIT);
        [&ethernet::emit(ethernet::multicast(to), NEAR, ethernet::IPV6)[..], &ip, &head, &body].concat()
    }

    #[test]
    fn every_other_address_is_the_far_stations() {
        assert_eq!(far(NEAR), FAR);
        let Outgoing::Answer(answer) = outgoing(&request([10, 0, 0, 2], [10, 0, 0, 1]), NEAR) else { panic!() };
        let frame = Frame::new_checked(&answer).unwrap();
        assert_eq!((frame.destination(), frame.source()), (NEAR, FAR));
        let told = arp::Message::parse(frame.payload()).unwrap();
        assert_eq!((told.operation, told.sender_mac, told.sender), (Operation::Reply, FAR, [10, 0, 0, 1].into()));
        assert_eq!((told.target_mac, told.target), (NEAR, [10, 0, 0, 2].into()));
    }

    #[test]
    fn a_solicitation_is_answered_with_a_checked_advertisement() {
        let Outgoing::Answer(answer) = outgoing(&solicitation("fd00::2", "fd00::1"), NEAR) else { panic!() };
        let packet = ipv6::Packet::new_checked(&answer[ethernet::HEADER..]).unwrap();
        let (source, to) = (packet.source(), packet.destination());
        assert_eq!((source, to), ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap()));
        let message =
            icmp::Message::new_checked(&packet.bytes()[ipv6::HEADER..], pseudo_v6(source, to, protocol::ICMPV6))
                .unwrap();
        let body = ndp::Body::parse(message.body(), ndp::TARGET_LINK_ADDRESS).unwrap();
        assert_eq!((body.target, body.link_address), (source, Some(FAR)));
        assert_eq!(message.rest()[0], ndp::SOLICITED | ndp::OVERRIDE);
    }

    #[test]
    fn announcements_and_probes_are_heard_by_nobody() {
        for frame in
            [request([10, 0, 0, 2], [10, 0, 0, 2]), request([0, 0, 0, 0], [10, 0, 0, 2]), solicitation("::", "fd00::2")]
        {
            assert_eq!(outgoing(&frame, NEAR), Outgoing::Nothing);
        }
    }

    #[test]
    fn packets_pass_and_what_is_neither_is_told_apart() {
        let header = |ethertype| ethernet::emit(FAR, NEAR, ethertype);
        assert_eq!(outgoing(&header(ethernet::IPV4), NEAR), Outgoing::Packet);
        assert_eq!(outgoing(&header(ethernet::IPV6), NEAR), Outgoing::Packet);
        assert_eq!(outgoing(&header(0x8100), NEAR), Outgoing::Foreign);
        assert_eq!(outgoing(&header(ethernet::ARP), NEAR), Outgoing::Foreign);
        assert_eq!(outgoing(&[0; 3], NEAR), Outgoing::Foreign);
        assert_eq!(incoming(0x45, NEAR), Some(ethernet::emit(NEAR, FAR, ethernet::IPV4)));
        assert_eq!(incoming(0x60, NEAR), Some(ethernet::emit(NEAR, FAR, ethernet::IPV6)));
        assert_eq!(incoming(0x50, NEAR), None);
    }
}
