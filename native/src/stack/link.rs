//! ARP (RFC 826) and NDP (RFC 4861): who has which link address. Only own addresses are answered for; virtual ones are
//! the balancer's to answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use super::host::{Envelope, Host, Link};
use super::neighbours::{Heard, Pending, Solicit};
use crate::packet::arp::{self, Operation};
use crate::packet::checksum::pseudo_v6;
use crate::packet::ethernet::{self, Mac};
use crate::packet::icmp::{self, v6};
use crate::packet::{ipv6, ndp, protocol};
use crate::port::{Port, Sent};

impl Host {
    /// Gratuitous ARP and unsolicited neighbour advertisements for the own addresses, when the link has come up. Whoever
    /// was known on the link before is asked for anew.
    pub fn announce(&mut self, port: &mut dyn Port) {
        self.neighbours.forget();
        for address in self.addresses.own().collect::<Vec<_>>() {
            match address {
                // RFC 5227 §2.3: a request for the own address, from the own address.
                IpAddr::V4(own) => self.send_arp(Operation::Request, own, ethernet::BROADCAST, [0; 6], own, port),
                IpAddr::V6(own) => {
                    self.advertise(own, ndp::ALL_NODES, ethernet::multicast(ndp::ALL_NODES), ndp::OVERRIDE, port);
                }
            }
        }
    }

    pub(super) fn arp(&mut self, bytes: &[u8], link: Link, now: Instant, port: &mut dyn Port) {
        let message = match arp::Message::parse(bytes) {
            Ok(message) => message,
            Err(malformed) => {
                self.drop_malformed(malformed);
                return;
            }
        };
        if link.destination != self.mac && link.destination != ethernet::BROADCAST {
            self.counters.drop_not_for_us += 1;
            return;
        }
        if self.addresses.is_own(message.sender) {
            self.counters.neighbour_conflict += 1;
            return;
        }
        // 0.0.0.0 probes for an address (RFC 5227 §2.1.1): it may ask, but is nobody to remember.
        let is_probe = message.sender.is_unspecified();
        if !ethernet::is_unicast(message.sender_mac) || !is_probe && self.addresses.is_martian(message.sender) {
            self.counters.drop_martian += 1;
            return;
        }
        let is_for_us = self.addresses.is_own(message.target);
        let heard = match message.operation {
            Operation::Request if is_for_us => Heard::Question,
            Operation::Reply if is_for_us && link.destination == self.mac => Heard::Answer,
            _ => Heard::Gossip,
        };
        self.counters.rx_arp += 1;
        if !is_probe {
            self.hear(message.sender.into(), message.sender_mac, message.target.into(), heard, now, port);
        }
        if heard == Heard::Question {
            let (to, asked) = (message.sender_mac, message.target);
            self.send_arp(Operation::Reply, asked, to, to, message.sender, port);
        }
    }

    /// A solicitation or an advertisement.
    pub(super) fn ndp(
        &mut self,
        message: icmp::Message<'_>,
        envelope: Envelope,
        link: Link,
        now: Instant,
        port: &mut dyn Port,
    ) {
        let (IpAddr::V6(source), IpAddr::V6(destination)) = (envelope.source, envelope.destination) else { return };
        // A router would have lowered it: the message comes from this link (RFC 4861 §7.1).
        if envelope.hop_limit != ndp::HOP_LIMIT || message.code() != 0 {
            self.counters.drop_malformed += 1;
            return;
        }
        let is_question = message.kind() == v6::NEIGHBOUR_SOLICITATION;
        let option = if is_question { ndp::SOURCE_LINK_ADDRESS } else { ndp::TARGET_LINK_ADDRESS };
        let body = match ndp::Body::parse(message.body(), option) {
            Ok(body) => body,
            Err(malformed) => {
                self.drop_malformed(malformed);
                return;
            }
        };
        if body.link_address.is_some_and(|mac| !ethernet::is_unicast(mac)) {
            self.counters.drop_martian += 1;
            return;
        }
        if is_question {
            self.solicited(body, source, destination, link, now, port);
        } else {
            self.advertised(message.rest()[0], body, destination, now, port);
        }
    }

    fn solicited(
        &mut self,
        body: ndp::Body,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        link: Link,
        now: Instant,
        port: &mut dyn Port,
    ) {
        let is_probe = source.is_unspecified();
        // A probe says nothing of its sender and goes to the group (RFC 4861 §7.1.1).
        if is_probe && (body.link_address.is_some() || destination != ndp::solicited_node(body.target)) {
            self.counters.drop_malformed += 1;
            return;
        }
        if !self.addresses.is_own(body.target) {
            self.counters.drop_neighbour_ignored += 1;
            return;
        }
        self.counters.rx_ndp += 1;
        if is_probe {
            // The asker has no address yet: all nodes are told (RFC 4861 §7.2.4).
            let all = ndp::ALL_NODES;
            return self.advertise(body.target, all, ethernet::multicast(all), ndp::OVERRIDE, port);
        }
        if let Some(mac) = body.link_address {
            self.hear(source.into(), mac, body.target.into(), Heard::Question, now, port);
        }
        let to = body.link_address.unwrap_or(link.source);
        self.advertise(body.target, source, to, ndp::SOLICITED | ndp::OVERRIDE, port);
    }

    /// RFC 4861 §7.2.5.
    fn advertised(&mut self, flags: u8, body: ndp::Body, destination: Ipv6Addr, now: Instant, port: &mut dyn Port) {
        if self.addresses.is_own(body.target) {
            self.counters.neighbour_conflict += 1;
            return;
        }
        let is_solicited = flags & ndp::SOLICITED != 0;
        if is_solicited && destination.is_multicast() {
            self.counters.drop_malformed += 1;
            return;
        }
        let target = IpAddr::V6(body.target);
        let known = self.neighbours.link_address(target);
        // Without the flag an advertisement may confirm what is known, but not change it.
        let mac = match (known, body.link_address) {
            (Some(known), None) if is_solicited => known,
            (Some(known), Some(mac)) if known == mac || flags & ndp::OVERRIDE != 0 => mac,
            (None, Some(mac)) => mac,
            _ => {
                self.counters.drop_neighbour_ignored += 1;
                return;
            }
        };
        self.counters.rx_ndp += 1;
        let heard = if is_solicited { Heard::Answer } else { Heard::Gossip };
        self.hear(target, mac, target, heard, now, port);
    }

    /// A neighbour's link address: what waited for it leaves.
    fn hear(&mut self, address: IpAddr, mac: Mac, ours: IpAddr, heard: Heard, now: Instant, port: &mut dyn Port) {
        if !self.addresses.is_on_link(address) {
            return;
        }
        self.tcp_neighbour_heard();
        for mut pending in self.neighbours.learn(address, mac, ours, heard, now) {
            let mut sent = Sent::Queued;
            for frame in &mut pending.frames {
                frame[..6].copy_from_slice(&mac);
                sent = port.send(&[frame]);
                if sent != Sent::Queued {
                    break;
                }
            }
            if pending.flow == Pending::NO_FLOW {
                self.counters.drop_port += u64::from(sent != Sent::Queued);
            } else {
                self.count_udp(sent, pending.frames.len() as u64);
            }
        }
    }

    /// Asks for a neighbour.
    pub(super) fn solicit(&mut self, solicit: Solicit, port: &mut dyn Port) {
        match (solicit.source, solicit.target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                let to = solicit.to.unwrap_or(ethernet::BROADCAST);
                self.send_arp(Operation::Request, source, to, solicit.to.unwrap_or([0; 6]), target, port);
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                let group = ndp::solicited_node(target);
                let (to, to_mac) = match solicit.to {
                    Some(mac) => (target, mac),
                    None => (group, ethernet::multicast(group)),
                };
                let body = ndp::emit(target, ndp::SOURCE_LINK_ADDRESS, self.mac);
                self.send_ndp(v6::NEIGHBOUR_SOLICITATION, [0; 4], source, to, to_mac, body, port);
            }
            _ => {}
        }
    }

    fn send_arp(
        &mut self,
        operation: Operation,
        sender: Ipv4Addr,
        to: Mac,
        target_mac: Mac,
        target: Ipv4Addr,
        port: &mut dyn Port,
    ) {
        let message = arp::Message { operation, sender_mac: self.mac, sender, target_mac, target };
        let sent = port.send(&[&ethernet::emit(to, self.mac, ethernet::ARP), &message.emit()]);
        self.counters.tx_arp += u64::from(sent == Sent::Queued);
    }

    fn advertise(&mut self, own: Ipv6Addr, to: Ipv6Addr, to_mac: Mac, flags: u8, port: &mut dyn Port) {
        let body = ndp::emit(own, ndp::TARGET_LINK_ADDRESS, self.mac);
        self.send_ndp(v6::NEIGHBOUR_ADVERTISEMENT, [flags, 0, 0, 0], own, to, to_mac, body, port);
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    fn send_ndp(
        &mut self,
        kind: u8,
        rest: [u8; 4],
        source: Ipv6Addr,
        to: Ipv6Addr,
        to_mac: Mac,
        body: [u8; ndp::BODY],
        port: &mut dyn Port,
    ) {
        let head = icmp::emit(kind, 0, rest, pseudo_v6(source, to, protocol::ICMPV6), &body);
        let ip = ipv6::emit(source, to, protocol::ICMPV6, head.len() + body.len(), ndp::HOP_LIMIT);
        let sent = port.send(&[&ethernet::emit(to_mac, self.mac, ethernet::IPV6), &ip, &head, &body]);
        self.counters.tx_ndp += u64::from(sent == Sent::Queued);
    }
}
